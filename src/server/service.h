/* service.h - the engine's thread, and the two bounded queues between it and the I/O thread.
 *
 * The I/O thread submits, cancels, pauses and polls; the engine's thread opens the model, steps, and wakes the I/O
 * thread by an eventfd.  A command is seen before the next step.  No call here waits for the engine.
 *
 * Every live request has a slot, and its commands are marks in that slot: a cancel always has room.  Each serial ends
 * with exactly one FINISHED or REFUSED event. */
#ifndef MF_SERVER_SERVICE_H
#define MF_SERVER_SERVICE_H

#include <stdbool.h>

#include "moefuse_engine.h"

typedef struct mf_service mf_service;

typedef enum mf_service_state {
    MF_SERVICE_LOADING = 0,
    MF_SERVICE_READY,
    MF_SERVICE_FAILED /* the model could not be opened, or the engine's thread ended: mf_service_failure says why */
} mf_service_state;

typedef struct mf_service_options {
    /* Runs on the engine's thread: opens the engine (with progress) and whatever the rest of the server wants of the
     * model. */
    mf_status (*open)(void *context, mf_engine **engine, mf_error *err);
    void *context;
    int32_t max_num_queued_reqs;
    int64_t max_num_queued_tokens;
    int32_t max_live_requests; /* running and queued together */
    int32_t
        num_ring_events; /* of the event queue; 0 = 4,096.  Fuller than that, the engine waits for mf_service_poll */
} mf_service_options;

typedef enum mf_service_event_type {
    MF_SERVICE_TOKEN = 0,
    MF_SERVICE_PROMPT_LOGPROB,
    MF_SERVICE_FINISHED,
    MF_SERVICE_REFUSED, /* the engine did not take it: `status` and `message` say why */
    MF_SERVICE_STEP     /* a step that made no other event: chunks of prompts alone.  serial 0, user_data NULL */
} mf_service_event_type;

typedef struct mf_service_event {
    mf_service_event_type type;
    uint64_t serial; /* what mf_service_submit returned */
    void *user_data;
    mf_event event;      /* top_logprobs is valid until the next poll */
    int64_t step_ns;     /* when the step that made it ended: monotonic */
    int32_t step_tokens; /* rows of that step, in the first event of each; 0 in the others */
    mf_status status;
    const char *message;
} mf_service_event;

mf_status mf_service_open(const mf_service_options *options, mf_service **service, mf_error *err);
/* Stops after the present step; what is live is dropped without events. */
void mf_service_close(mf_service **service);

mf_service_state mf_service_get_state(const mf_service *service);
/* Why it failed; set before the state is.  The status tells a refused model from missing memory. */
const char *mf_service_failure(const mf_service *service);
mf_status mf_service_failure_status(const mf_service *service);
int mf_service_wake_fd(
    const mf_service *service); /* readable when mf_service_poll has something, or the state changed */

/* Why a submit was MF_ERR_BUSY. */
typedef enum mf_service_full {
    MF_SERVICE_NOT_FULL = 0,
    MF_SERVICE_FULL_REQUESTS,
    MF_SERVICE_FULL_TOKENS
} mf_service_full;

/* Copies the request.  MF_ERR_BUSY: more requests or prompt tokens wait than may; *serial is never 0 and never used
 * again. What waits is counted with commands on their way; when nothing waits, one submit of any size is taken.  The
 * request's guide is the service's on success, else it stays the caller's. */
mf_status mf_service_submit(mf_service *service, const mf_request *request, uint64_t *serial, mf_error *err);
/* All of them or none.  full (optional): which limit. */
mf_status mf_service_submit_all(mf_service *service, const mf_request *requests, int32_t num_requests,
                                uint64_t *serials, mf_service_full *full, mf_error *err);
void mf_service_cancel(mf_service *service, uint64_t serial); /* a FINISHED event follows, unless one was on its way */
void mf_service_pause(mf_service *service, uint64_t serial, bool paused);
void mf_service_reset_prefix_cache(mf_service *service);

/* Whether one more request would be taken now.  full (optional): which limit is in the way. */
bool mf_service_has_room(mf_service *service, mf_service_full *full);
int32_t mf_service_num_live(const mf_service *service); /* serials whose last event has not been polled */

/* Up to `capacity` events in order; 0 when none waits. */
int32_t mf_service_poll(mf_service *service, mf_service_event *events, int32_t capacity);

/* The engine's numbers as of its last step, copied: expert_load points into the snapshot's own memory. */
typedef struct mf_service_snapshot {
    mf_engine_stats stats;
    int64_t heartbeat_ns; /* when the engine's thread last went round its loop */
    bool has_work;        /* at that moment, or commands have come since */
    int32_t queued_reqs;  /* admitted and not yet running, commands on their way included */
    int64_t queued_tokens;
    int64_t *expert_load; /* [num_layers, num_experts] */
    int64_t num_late;     /* commands for serials that had ended */
} mf_service_snapshot;

/* *snapshot is zeroed before its first use and closed after its last; the call takes no lock that the engine's thread
 * holds while it computes.  The experts' counts may be a tenth of a second older than the rest. */
mf_status mf_service_snapshot_take(mf_service *service, mf_service_snapshot *snapshot, mf_error *err);
void mf_service_snapshot_close(mf_service_snapshot *snapshot);

#endif
