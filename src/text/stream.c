/* stream.c - token ids into text as they come: see stream.h.
 *
 * Bytes pass a UTF-8 repairer, then one matcher per stop string (Knuth-Morris-Pratt: at each byte it knows the longest
 * prefix of its string that the text ends with).  The longest such prefix of any string is what has to be held back. */
#include "text/stream.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "text/utf8.h"
#include "text/vocab.h"

typedef struct stop_matcher {
    char text[MF_STREAM_MAX_STOP_BYTES];
    uint16_t fallback[MF_STREAM_MAX_STOP_BYTES]; /* [i]: longest proper prefix that text[0..i] ends with */
    uint16_t size;
    uint16_t matched; /* prefix that the text so far ends with */
} stop_matcher;

struct mf_stream {
    const mf_tokenizer *tok;
    bool include_stop, skip_special;
    int32_t min_ids, num_ids; /* num_ids: pushed */
    int32_t hit;              /* index of the stop string, -1 while there is none */
    mf_utf8_repair repair;
    char held[MF_STREAM_MAX_STOP_BYTES];
    size_t num_held;
    mf_buffer fresh; /* repaired text of the token at hand */
    size_t num_stops;
    stop_matcher stops[];
};

static void prepare(stop_matcher *m, const char *text, size_t size)
{
    memcpy(m->text, text, size);
    m->size = (uint16_t)size;
    size_t k = 0;
    for (size_t i = 1; i < size; i++) {
        while (k > 0 && text[i] != text[k]) {
            k = m->fallback[k - 1];
        }
        k += text[i] == text[k];
        m->fallback[i] = (uint16_t)k;
    }
}

mf_status mf_stream_open(const mf_tokenizer *tok, const mf_stream_options *options, mf_stream **out, mf_error *err)
{
    static const mf_stream_options none = { 0 };
    *out = NULL;
    options = options ? options : &none;
    if (options->num_stops > MF_STREAM_MAX_STOPS) {
        return mf_fail(err, MF_ERR_INVALID, "stop: expected at most %d strings; got %zu", MF_STREAM_MAX_STOPS,
                       options->num_stops);
    }
    for (size_t i = 0; i < options->num_stops; i++) {
        const mf_stop_string *stop = &options->stops[i];
        if (stop->size == 0 || stop->size > MF_STREAM_MAX_STOP_BYTES || !mf_utf8_valid(stop->text, stop->size, NULL)) {
            return mf_fail(err, MF_ERR_INVALID,
                           "stop: string %zu: expected 1 to %d bytes of valid UTF-8; got %zu bytes", i,
                           MF_STREAM_MAX_STOP_BYTES, stop->size);
        }
    }
    mf_stream *s = mf_alloc_zero(sizeof *s + options->num_stops * sizeof s->stops[0]);
    /* Each byte of a token becomes three at most, and so does a cut character before it. */
    if (s && mf_buffer_reserve(&s->fresh, 3 * MF_VOCAB_MAX_TOKEN_BYTES + 3) != MF_OK) {
        mf_free(s);
        s = NULL;
    }
    if (!s) {
        return mf_fail(err, MF_ERR_NOMEM, "out of memory for a text stream");
    }
    s->tok = tok;
    s->include_stop = options->include_stop;
    s->skip_special = options->skip_special;
    s->min_ids = options->min_ids;
    s->hit = -1;
    s->num_stops = options->num_stops;
    for (size_t i = 0; i < s->num_stops; i++) {
        prepare(&s->stops[i], options->stops[i].text, options->stops[i].size);
    }
    *out = s;
    return MF_OK;
}

void mf_stream_close(mf_stream **stream)
{
    if (*stream) {
        mf_buffer_close(&(*stream)->fresh);
        mf_free(*stream);
        *stream = NULL;
    }
}

/* The longest prefix of a stop string that the text ends with, after one more byte; a whole string sets s->hit, or
 * passes as other text while too few ids have come. */
static size_t step(mf_stream *s, char byte)
{
    size_t longest = 0, whole = 0;
    for (size_t i = 0; i < s->num_stops; i++) {
        stop_matcher *m = &s->stops[i];
        size_t k = m->matched;
        while (k > 0 && byte != m->text[k]) {
            k = m->fallback[k - 1];
        }
        k += byte == m->text[k];
        if (k == m->size && s->num_ids <= s->min_ids) {
            k = m->fallback[k - 1];
        }
        m->matched = (uint16_t)k;
        longest = k > longest ? k : longest;
        if (k == m->size && k > whole) {
            whole = k;
            s->hit = (int32_t)i;
        }
    }
    return whole > 0 ? whole : longest;
}

/* Passes repaired text on, as far as it is certain. */
static mf_status give(mf_stream *s, const char *bytes, size_t n, mf_buffer *text)
{
    if (s->num_stops == 0) {
        return mf_buffer_append(text, bytes, n);
    }
    /* Everything held and new fits, so that below nothing fails half-way. */
    MF_TRY(mf_buffer_reserve(text, s->num_held + n));
    for (size_t i = 0; i < n && s->hit < 0; i++) {
        size_t keep = step(s, bytes[i]);
        /* The text ends with `keep` bytes that stay; all held before them are certain now. */
        size_t release = s->num_held + 1 - keep;
        if (s->hit >= 0 && s->include_stop) {
            release = s->num_held + 1;
        }
        if (release > s->num_held) {
            MF_TRY(mf_buffer_append(text, s->held, s->num_held));
            MF_TRY(mf_buffer_append(text, &bytes[i], 1));
            s->num_held = 0;
        } else {
            MF_TRY(mf_buffer_append(text, s->held, release));
            memmove(s->held, s->held + release, s->num_held - release);
            s->num_held -= release;
            if (s->hit < 0) {
                s->held[s->num_held++] = bytes[i];
            }
        }
    }
    if (s->hit >= 0) {
        s->num_held = 0;
    }
    return MF_OK;
}

mf_status mf_stream_push(mf_stream *s, int32_t id, mf_buffer *text, int32_t *stop, mf_error *err)
{
    size_t size;
    const char *bytes = mf_tokenizer_token_bytes(s->tok, id, &size);
    *stop = s->hit;
    if (!bytes) {
        return mf_fail(err, MF_ERR_INVALID, "token id %d: expected 0 to %d", id, mf_tokenizer_vocab_size(s->tok) - 1);
    }
    s->num_ids += s->num_ids < INT32_MAX;
    if (s->hit >= 0 || (s->skip_special && mf_tokenizer_is_special(s->tok, id))) {
        return MF_OK;
    }
    mf_buffer_clear(&s->fresh);
    mf_status status = mf_utf8_repair_push(&s->repair, bytes, size, &s->fresh);
    if (status == MF_OK) {
        status = give(s, mf_buffer_text(&s->fresh), s->fresh.size, text);
    }
    *stop = s->hit;
    return status == MF_OK
               ? MF_OK
               : mf_fail(err, status, "cannot append the text of token id %d: %s", id, mf_status_name(status));
}

mf_status mf_stream_finish(mf_stream *s, mf_buffer *text, int32_t *stop, mf_error *err)
{
    mf_status status = MF_OK;
    if (s->hit < 0) {
        mf_buffer_clear(&s->fresh);
        status = mf_utf8_repair_finish(&s->repair, &s->fresh);
        if (status == MF_OK) {
            status = give(s, mf_buffer_text(&s->fresh), s->fresh.size, text);
        }
        if (status == MF_OK) {
            status = mf_buffer_append(text, s->held, s->num_held);
        }
    }
    *stop = s->hit;
    s->hit = -1;
    s->num_ids = 0;
    s->num_held = 0;
    s->repair = (mf_utf8_repair){ 0 };
    for (size_t i = 0; i < s->num_stops; i++) {
        s->stops[i].matched = 0;
    }
    return status == MF_OK ? MF_OK : mf_fail(err, status, "cannot append a text's end: %s", mf_status_name(status));
}

size_t mf_stream_held(const mf_stream *s)
{
    return s->num_held + s->repair.num_kept;
}
