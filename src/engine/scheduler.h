/* scheduler.h - who runs in the next step: the queue, the running set, slots, and the plan of one batch.
 *
 * The lower priority first; of equal ones, first come, first served.  Decodes go first, then chunks of prompts, up to
 * max_num_batched_tokens.  A starting request gets blocks for all tokens it has; only making new tokens can run out of
 * blocks, and then, of the requests that are last in priority, the one that started last goes back to the queue, in front of
 * its equals, and is computed again later. */
#ifndef MF_ENGINE_SCHEDULER_H
#define MF_ENGINE_SCHEDULER_H

#include "engine/request.h"

typedef struct mf_scheduler_limits {
    int32_t max_num_seqs;
    int32_t max_num_batched_tokens; /* >= max_num_seqs, so that every decode fits */
    int32_t max_prompt_rows;        /* rows of logits per step for prompt logprobs, beside one per sequence */
    int32_t max_num_queued_reqs;
    int64_t max_num_queued_tokens;
} mf_scheduler_limits;

typedef struct mf_request_list {
    mf_live_request *head, *tail;
    int32_t count;
} mf_request_list;

typedef struct mf_scheduler {
    mf_scheduler_limits limits;
    mf_kv_cache *kv; /* borrowed */

    mf_live_request **slots;  /* [num_slots], owned; a request's id names its slot */
    int32_t *free_slots;      /* [num_slots], a stack */
    int32_t num_slots, num_free_slots;
    uint64_t last_serial;     /* of ids */

    mf_request_list queue;    /* WAITING and PREEMPTED, by priority */
    int64_t num_queued_tokens;
    mf_live_request **running; /* [max_num_seqs], by priority, then in the order they started */
    int32_t num_running;
    int32_t *free_states;      /* [max_num_seqs], a stack: the states that no running request has */
    int32_t num_free_states;
    mf_request_list finished;
    int32_t num_deadlines;     /* unfinished requests that have one */
    int32_t num_paused;        /* unfinished */

    mf_live_request **planned; /* [max_num_seqs]: decodes, then chunks */
    int32_t num_planned, num_planned_tokens, num_planned_decodes;
    int32_t budget, prompt_rows; /* left, while planning */

    const mf_kv_sequence **check_sequences; /* [max_num_seqs], for mf_scheduler_check */
    const int32_t **check_tokens;

    int64_t num_preemptions, num_illegal_transitions;
    int64_t prefix_queries, prefix_hits; /* tokens */
    int64_t num_prompt_tokens;           /* of requests that started */
} mf_scheduler;

mf_status mf_scheduler_open(const mf_scheduler_limits *limits, mf_kv_cache *kv, mf_scheduler *scheduler, mf_error *err);
void mf_scheduler_close(mf_scheduler *scheduler); /* frees its requests too; a zeroed one is fine */

/* Queues a NEW request and gives it its id.  MF_ERR_BUSY: the request stays the caller's. */
mf_status mf_scheduler_add(mf_scheduler *scheduler, mf_live_request *request, mf_error *err);

/* The unfinished request with this id, else NULL. */
mf_live_request *mf_scheduler_find(const mf_scheduler *scheduler, uint64_t id);

/* Makes the plan: planned[0..num_planned), each with num_scheduled tokens from num_computed on. */
void mf_scheduler_plan(mf_scheduler *scheduler, int64_t now_ns);

/* Ends a queued or running request.  forget: what it computed must not be found by others. */
void mf_scheduler_finish(mf_scheduler *scheduler, mf_live_request *request, mf_finish_reason reason, bool forget,
                         int64_t now_ns);
void mf_scheduler_expire(mf_scheduler *scheduler, int64_t now_ns); /* ends those past their deadline */
void mf_scheduler_set_paused(mf_scheduler *scheduler, mf_live_request *request, bool paused);

/* Frees the finished request at the head of the list. */
void mf_scheduler_drop_finished(mf_scheduler *scheduler);

/* Blocks conserved, and lists, counts and states in step with each other. */
mf_status mf_scheduler_check(mf_scheduler *scheduler, mf_error *err);

/* After a violation: an empty pool, every running request back in the queue. */
void mf_scheduler_rebuild(mf_scheduler *scheduler);

#endif
