/* request.h - a request inside the engine: its tokens, its blocks, its state, and the table of state changes.
 *
 * One allocation holds a request with all its arrays, sized at submit by prompt and max_tokens; it is freed whole. */
#ifndef MF_ENGINE_REQUEST_H
#define MF_ENGINE_REQUEST_H

#include <stdbool.h>

#include "base/error.h"
#include "engine/kv_cache.h"
#include "moefuse_engine.h"

typedef enum mf_request_state {
    MF_REQUEST_NEW = 0,   /* made, not yet queued; also: to be freed */
    MF_REQUEST_WAITING,   /* queued, never ran */
    MF_REQUEST_RUNNING,   /* owns blocks */
    MF_REQUEST_PREEMPTED, /* queued again in front; what it had computed will be computed again */
    MF_REQUEST_FINISHED,  /* its event waits to be read */
    MF_REQUEST_NUM_STATES
} mf_request_state;

/* What a state change takes away and gives. */
enum {
    MF_LEAVE_QUEUE = 1 << 0,
    MF_LEAVE_RUNNING = 1 << 1,
    MF_GIVE_BLOCKS = 1 << 2,   /* owns none afterwards, and no state; nothing counts as computed */
    MF_JOIN_QUEUE_BACK = 1 << 3,
    MF_JOIN_QUEUE_FRONT = 1 << 4,
    MF_JOIN_RUNNING = 1 << 5,  /* and takes a state */
    MF_JOIN_FINISHED = 1 << 6,
    MF_LEAVE_FINISHED = 1 << 7,
    MF_FREE_SLOT = 1 << 8,     /* and the memory */
    MF_RELEASE_GUIDE = 1 << 9
};

/* The set of the above for a change, 0 when it is not allowed. */
uint32_t mf_request_transition(mf_request_state from, mf_request_state to);

typedef struct mf_live_request {
    uint64_t id;
    void *user_data;
    mf_request_state state;
    int32_t slot;
    struct mf_live_request *previous, *next; /* in the queue or the finished list */

    mf_sampling_params sampling; /* its arrays are in this allocation; max_tokens resolved */
    uint64_t seed;
    mf_guide guide; /* fill NULL: none, or released */
    int64_t deadline_ns;
    int32_t priority; /* the lower goes first */
    bool paused;

    int32_t *tokens; /* [num_prompt_tokens + max_tokens] */
    int32_t num_prompt_tokens;
    int32_t num_tokens;         /* prompt and made */
    int32_t num_computed;       /* leading tokens whose keys and values are in the store */
    int32_t num_scheduled;      /* tokens of it in the step being made */
    int32_t num_prompt_rows;    /* leading prompt rows whose logprobs have been told */
    int32_t num_cached;         /* prompt tokens taken from the cache at the first start */
    mf_kv_sequence kv;
    int32_t state_slot;         /* of the store's states, while it owns blocks; -1 = none */

    mf_finish_reason finish_reason;
    int32_t stop_token_id;
    int64_t submitted_ns, started_ns, first_token_ns, last_token_ns, finished_ns;
} mf_live_request;

typedef struct mf_request_limits {
    int32_t vocab_size;
    int32_t max_model_len;
    int32_t block_size;
} mf_request_limits;

/* Checks every field; *max_tokens is the resolved one.  MF_ERR_INVALID names field, value and range. */
mf_status mf_request_validate(const mf_request *request, const mf_request_limits *limits, int32_t *max_tokens, mf_error *err);

/* Validates and copies all but the guide, which submit hands over once nothing can fail any more. */
mf_status mf_live_request_make(const mf_request *request, const mf_request_limits *limits, mf_live_request **out,
                               mf_error *err);
void mf_live_request_release_guide(mf_live_request *request); /* once; then there is none */
void mf_live_request_free(mf_live_request **request);          /* releases its guide too */

static inline int32_t mf_live_request_num_made(const mf_live_request *r)
{
    return r->num_tokens - r->num_prompt_tokens;
}

/* Prompt rows from which the caller wants logprobs: row p tells of token p + 1. */
static inline bool mf_live_request_wants_prompt_row(const mf_live_request *r, int32_t position)
{
    return r->sampling.prompt_logprobs >= 0 && position >= r->num_prompt_rows && position + 1 < r->num_prompt_tokens;
}

#endif
