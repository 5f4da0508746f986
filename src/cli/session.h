/* session.h - an open engine with its text side, as the verbs that generate use it. */
#ifndef MF_CLI_SESSION_H
#define MF_CLI_SESSION_H

#include <stdio.h>

#include "cli/model_flags.h"
#include "text/prompt.h"
#include "model/model.h"
#include "moefuse_engine.h"

typedef struct mf_session {
    mf_engine *engine;
    const mf_model *model;         /* the engine's */
    const mf_model_config *config; /* the model's */
    mf_prompt prompt;
    bool all_layers, max_len_given; /* for the printed plan */
    int64_t max_num_seqs, max_num_batched_tokens;
} mf_session;

/* Opens tokenizer, template and engine with progress on stderr.  The text side comes first: it is quick to refuse. */
mf_status mf_session_open(const mf_model_flags *flags, mf_session *session, mf_error *err);

/* What a server wants beyond that. */
typedef struct mf_session_options {
    const char *tokenizer_dir;     /* NULL: MODEL's own */
    bool text_is_optional;         /* without a tokenizer the text side stays empty: prompts are ids then */
    int32_t max_num_queued_reqs;   /* of the engine's queue; 0 = its default */
    int64_t max_num_queued_tokens; /* 0 = its default */
    bool (*progress)(void *context, double share); /* told as well; false: stop.  NULL = nobody */
    void *progress_context;
} mf_session_options;
mf_status mf_session_open_with(const mf_model_flags *flags, const mf_session_options *options, mf_session *session,
                               mf_error *err);

/* The same without tokenizer and template, which a measurement does not need: MODEL may be a config.json alone. options
 * may be NULL. */
mf_status mf_session_open_without_text(const mf_model_flags *flags, const mf_session_options *options,
                                       mf_session *session, mf_error *err);
void mf_session_close(mf_session *session);

/* The start-up plan: model, device, memory, fusion, limits. */
void mf_session_print_plan(const mf_session *session, FILE *out);
mf_status mf_session_write_plan(const mf_session *session, mf_buffer *out);

#endif
