/* stream.h - token ids into text as they come: whole characters only, stopping at stop strings.
 *
 * What a stream has given out, joined, is what mf_tokenizer_decode makes of all its ids, cut at the first stop string;
 * but for a blank that some tokenizers strip from a whole text's beginning: what a stream gives out stands behind a
 * prompt, and is joined to it. Text is held back while it could be the beginning of a stop string.  Pushing allocates
 * nothing but room in the caller's buffer. */
#ifndef MF_TEXT_STREAM_H
#define MF_TEXT_STREAM_H

#include "text/tokenizer.h"

enum { MF_STREAM_MAX_STOPS = 16, MF_STREAM_MAX_STOP_BYTES = 256 };

typedef struct mf_stream mf_stream;

typedef struct mf_stop_string {
    const char *text; /* valid UTF-8, 1..MF_STREAM_MAX_STOP_BYTES bytes */
    size_t size;
} mf_stop_string;

typedef struct mf_stream_options {
    const mf_stop_string *stops; /* copied */
    size_t num_stops;            /* 0..MF_STREAM_MAX_STOPS */
    bool include_stop;           /* the stop string itself is given out too */
    bool skip_special;           /* special tokens leave no text */
    int32_t min_ids;             /* a stop string counts only when it ends in the text of a later id than this many */
} mf_stream_options;

/* options may be NULL.  The tokenizer must outlive the stream. */
mf_status mf_stream_open(const mf_tokenizer *tok, const mf_stream_options *options, mf_stream **out, mf_error *err);
void mf_stream_close(mf_stream **stream);

/* Appends to *text what the id makes certain.  *stop is the index of the stop string that was hit, -1 for none: of
 * those that end first, the longest.  After a hit nothing more is given out.  An id outside the vocabulary is
 * MF_ERR_INVALID and changes nothing. */
mf_status mf_stream_push(mf_stream *stream, int32_t id, mf_buffer *text, int32_t *stop, mf_error *err);

/* The end: a character that was cut becomes U+FFFD (which may complete a stop string), and what was held back comes
 * out. The stream begins anew. */
mf_status mf_stream_finish(mf_stream *stream, mf_buffer *text, int32_t *stop, mf_error *err);

/* Bytes of text, or of a character, that are held back now. */
size_t mf_stream_held(const mf_stream *stream);

#endif
