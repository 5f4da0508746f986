/* service_impl.h - the service's state: service.c holds the I/O thread's half, service_thread.c the engine thread's.
 *
 * `lock` guards what both halves write; it is held for a few copies, never while the engine computes.  The event ring
 * has one writer and one reader and needs no lock. */
#ifndef MF_SERVER_SERVICE_IMPL_H
#define MF_SERVER_SERVICE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/error.h"
#include "server/service.h"

enum { MF_SERVICE_SLOT_BITS = 20 };

/* Marks: what the I/O thread wants of a slot's request.  PAUSE and RESUME undo each other. */
enum { MF_MARK_SUBMIT = 1, MF_MARK_CANCEL = 2, MF_MARK_PAUSE = 4, MF_MARK_RESUME = 8 };

typedef struct mf_service_slot {
    /* I/O thread */
    uint64_t serial; /* 0 = free */
    void *user_data;

    /* guarded by lock */
    uint32_t marks;
    bool is_listed;
    int32_t next_listed;
    mf_request *request; /* the copy, until the engine's thread takes it; one block with its arrays */

    /* engine's thread */
    uint64_t engine_serial; /* whom engine_id stands for */
    uint64_t engine_id;     /* 0 = nothing of it in the engine */
    int32_t next_end;       /* in the list of ends that wait for room in the ring */

    /* written by the engine's thread before it publishes REFUSED */
    mf_status status;
    char message[232];
} mf_service_slot;

typedef struct mf_ring_event {
    mf_service_event_type type;
    int32_t slot;
    uint64_t serial;
    int64_t step_ns;
    int32_t step_tokens;
    mf_event event;
    mf_logprob top[MF_MAX_LOGPROBS];
} mf_ring_event;

/* One slot's marks, taken at once. */
typedef struct mf_service_command {
    int32_t slot;
    uint32_t marks;
    uint64_t serial;
    mf_request *request;
} mf_service_command;

struct mf_service {
    mf_service_options options;
    pthread_t thread;
    bool has_thread;
    int wake_fd;

    mf_service_slot *slots; /* [num_slots] */
    int32_t num_slots;

    /* I/O thread */
    int32_t *free_slots; /* a stack */
    int32_t num_free_slots;
    int32_t *to_free; /* slots whose last event the last poll gave out */
    int32_t num_to_free;
    uint64_t last_count; /* of serials */

    /* The ring: event i lies in ring[i % num_ring].  tail is the writer's, head the reader's; `read` is how far the
     * reader has looked: it gives the places back with its next poll, because top_logprobs points into them. */
    mf_ring_event *ring;
    uint32_t num_ring;
    _Atomic uint64_t tail, head;
    uint64_t read;
    _Atomic bool is_signalled; /* the eventfd was written since the reader last looked */
    _Atomic bool waits_for_room;

    _Atomic int state;
    mf_status failure_status;
    char failure[1024];
    _Atomic int64_t heartbeat_ns;
    _Atomic bool has_work;

    pthread_mutex_t lock;
    pthread_cond_t come; /* commands, room, stop */
    /* guarded by lock */
    bool stop, reset, sleeps;
    int32_t first_listed, last_listed;
    int32_t sent_reqs; /* submitted and not yet in `stats` */
    int64_t sent_tokens;
    mf_engine_stats stats;
    int64_t num_late;

    pthread_mutex_t load_lock; /* guards load */
    int64_t *load;             /* the experts' counts; NULL until ready, or without any */
    size_t load_size;

    /* engine's thread */
    mf_engine *engine;
    mf_event *events; /* [num_events] of one step */
    int32_t num_events;
    mf_service_command *commands; /* [num_slots] */
    int32_t first_end, last_end;
    int32_t num_failed_steps; /* in a row */
    int64_t num_told_steps;   /* engine steps whose size has been told */
    bool is_dead;
    int64_t load_ns; /* when load was copied */
};

void *mf_service_thread(void *service);
void mf_service_signal(mf_service *service); /* wakes the I/O thread */
/* Gives back a request that never reached the engine. */
void mf_service_drop_request(mf_request *request);

#endif
