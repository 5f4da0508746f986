/* prepare.h - from a checked request to what the engine takes: prompts as ids, bad words as ids, the guide that constrains
 * the answer, max_tokens resolved and lengths checked.  Templates, tokenizing and grammar compiling happen here, on any
 * thread: nothing shared is written. */
#ifndef MF_SERVER_PREPARE_H
#define MF_SERVER_PREPARE_H

#include "server/api_request.h"
#include "text/guide.h"

typedef struct mf_prepared_prompt {
    mf_ids ids;
    int32_t max_tokens; /* for this prompt: what it asked for, or the rest of the context */
    bool opens_reasoning; /* chat: it ends with <think>, or harmony's header of it, so the answer begins inside */
    char *echo_text;    /* with echo: the prompt's text, owned */
    size_t echo_size;
} mf_prepared_prompt;

typedef struct mf_prepared {
    mf_prepared_prompt *prompts; /* [num_prompts] */
    int32_t num_prompts;
    mf_sampling_params sampling; /* complete but for max_tokens and seed; its arrays are the request's or this one's */
    int32_t *bad_word_ids, *bad_word_lengths;
    mf_guide_program *guide; /* NULL = none; each sequence opens a state of it */
} mf_prepared;

/* `request` must outlive the result.  Too long a prompt is 400 with vLLM's text. */
mf_status mf_prepare(const mf_serve_model *model, const mf_api_request *request, mf_prepared **out, mf_api_error *error);
void mf_prepared_close(mf_prepared **prepared);

#endif
