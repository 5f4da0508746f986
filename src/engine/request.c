/* request.c - making requests and their state changes: see request.h. */
#include "engine/request.h"

#include <string.h>

#include "base/sys.h"

uint32_t mf_request_transition(mf_request_state from, mf_request_state to)
{
    static const uint16_t table[MF_REQUEST_NUM_STATES][MF_REQUEST_NUM_STATES] = {
        [MF_REQUEST_NEW] = {
            [MF_REQUEST_WAITING] = MF_JOIN_QUEUE_BACK,
        },
        [MF_REQUEST_WAITING] = {
            [MF_REQUEST_RUNNING] = MF_LEAVE_QUEUE | MF_JOIN_RUNNING,
            [MF_REQUEST_FINISHED] = MF_LEAVE_QUEUE | MF_JOIN_FINISHED | MF_RELEASE_GUIDE,
        },
        [MF_REQUEST_RUNNING] = {
            [MF_REQUEST_PREEMPTED] = MF_LEAVE_RUNNING | MF_GIVE_BLOCKS | MF_JOIN_QUEUE_FRONT,
            [MF_REQUEST_FINISHED] = MF_LEAVE_RUNNING | MF_GIVE_BLOCKS | MF_JOIN_FINISHED | MF_RELEASE_GUIDE,
        },
        [MF_REQUEST_PREEMPTED] = {
            [MF_REQUEST_RUNNING] = MF_LEAVE_QUEUE | MF_JOIN_RUNNING,
            [MF_REQUEST_FINISHED] = MF_LEAVE_QUEUE | MF_JOIN_FINISHED | MF_RELEASE_GUIDE,
        },
        [MF_REQUEST_FINISHED] = {
            [MF_REQUEST_NEW] = MF_LEAVE_FINISHED | MF_FREE_SLOT,
        },
    };
    if ((unsigned)from >= MF_REQUEST_NUM_STATES || (unsigned)to >= MF_REQUEST_NUM_STATES) {
        return 0;
    }
    return table[from][to];
}

/* Takes count * size bytes, rounded up to 8, from a block that is first measured (base NULL) and then filled. */
typedef struct carver {
    char *base;
    size_t used;
} carver;

static void *carve(carver *c, size_t count, size_t size)
{
    char *p = c->base ? c->base + c->used : NULL;
    c->used += (count * size + 7) & ~(size_t)7; /* counts are within the limits that validation set */
    return p;
}

static void *carve_copy(carver *c, const void *from, size_t count, size_t size)
{
    void *p = carve(c, count, size);
    if (p && count > 0) {
        memcpy(p, from, count * size);
    }
    return p;
}

static mf_live_request *lay_out(carver *c, const mf_request *request, const mf_request_limits *limits, int32_t max_tokens,
                                size_t num_bad_word_tokens)
{
    const mf_sampling_params *p = &request->sampling;
    size_t num_tokens = (size_t)request->num_prompt_tokens + (size_t)max_tokens;
    size_t num_blocks = (num_tokens + (size_t)limits->block_size - 1) / (size_t)limits->block_size;
    mf_live_request head = { .sampling = *p };
    mf_live_request *r = carve(c, 1, sizeof *r);
    head.sampling.stop_token_ids = carve_copy(c, p->stop_token_ids, (size_t)p->num_stop_token_ids, sizeof(int32_t));
    head.sampling.allowed_token_ids = carve_copy(c, p->allowed_token_ids, (size_t)p->num_allowed_token_ids, sizeof(int32_t));
    head.sampling.logit_bias = carve_copy(c, p->logit_bias, (size_t)p->num_logit_bias, sizeof *p->logit_bias);
    head.sampling.bad_words = carve_copy(c, p->bad_words, num_bad_word_tokens, sizeof(int32_t));
    head.sampling.bad_word_lengths = carve_copy(c, p->bad_word_lengths, (size_t)p->num_bad_words, sizeof(int32_t));
    head.kv.blocks = carve(c, num_blocks, sizeof(int32_t));
    head.kv.capacity = (int32_t)num_blocks;
    head.kv.root = head.kv.serial = mf_kv_root(request->cache_salt);
    /* Last, so that the untouched tail of a long max_tokens costs address space only. */
    head.tokens = carve(c, num_tokens, sizeof(int32_t));
    if (r) {
        *r = head;
        memcpy(r->tokens, request->prompt_token_ids, (size_t)request->num_prompt_tokens * sizeof(int32_t));
    }
    return r;
}

mf_status mf_live_request_make(const mf_request *request, const mf_request_limits *limits, mf_live_request **out,
                               mf_error *err)
{
    *out = NULL;
    int32_t max_tokens;
    MF_TRY(mf_request_validate(request, limits, &max_tokens, err));
    size_t num_bad_word_tokens = 0;
    for (int32_t i = 0; i < request->sampling.num_bad_words; i++) {
        num_bad_word_tokens += (size_t)request->sampling.bad_word_lengths[i];
    }
    carver c = { 0 };
    lay_out(&c, request, limits, max_tokens, num_bad_word_tokens);
    c.base = mf_alloc(c.used);
    if (!c.base) {
        return mf_fail(err, MF_ERR_NOMEM, "request: out of memory for %d prompt tokens and max_tokens %d",
                       request->num_prompt_tokens, max_tokens);
    }
    c.used = 0;
    mf_live_request *r = lay_out(&c, request, limits, max_tokens, num_bad_word_tokens);
    r->user_data = request->user_data;
    r->deadline_ns = request->deadline_ns;
    r->priority = request->priority;
    r->sampling.max_tokens = max_tokens;
    r->num_prompt_tokens = request->num_prompt_tokens;
    r->num_tokens = request->num_prompt_tokens;
    r->stop_token_id = -1;
    r->state_slot = -1;
    *out = r;
    return MF_OK;
}

void mf_live_request_release_guide(mf_live_request *r)
{
    mf_guide guide = r->guide;
    r->guide = (mf_guide){ 0 };
    if (guide.fill) {
        guide.release(guide.context);
    }
}

void mf_live_request_free(mf_live_request **request)
{
    if (*request) {
        mf_live_request_release_guide(*request);
    }
    mf_free(*request);
    *request = NULL;
}
