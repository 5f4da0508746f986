/* warm_up.c - see warm_up.h. */
#include "server/warm_up.h"

#include "base/error.h"

mf_status mf_warm_up(mf_engine *engine, int32_t vocab_size, mf_error *err)
{
    enum { PROMPT = 16 };
    int32_t prompt[PROMPT];
    for (int32_t i = 0; i < PROMPT; i++) {
        prompt[i] = (int32_t)((int64_t)(i * 37 + 1) % vocab_size);
    }
    int64_t longest = mf_engine_max_model_len(engine);
    mf_request request = MF_REQUEST_INIT;
    request.prompt_token_ids = prompt;
    request.num_prompt_tokens = longest > PROMPT + 2 ? PROMPT : 1;
    request.sampling.max_tokens = longest > 2 ? 2 : 1;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = 1;
    uint64_t id;
    MF_TRY(mf_engine_submit(engine, &request, &id, err));
    mf_finish_reason reason = MF_FINISH_NONE;
    while (reason == MF_FINISH_NONE) {
        mf_event events[8];
        int32_t n;
        MF_TRY(mf_engine_step(engine, events, 8, &n, err));
        for (int32_t i = 0; i < n; i++) {
            reason = events[i].type == MF_EVENT_FINISHED ? events[i].finish_reason : reason;
        }
    }
    mf_engine_reset_prefix_cache(engine);
    return reason == MF_FINISH_ERROR
               ? mf_fail(err, MF_ERR_FORMAT, "the model's logits are not finite: a weight holds NaN or infinity")
               : MF_OK;
}
