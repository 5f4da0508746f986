/* call_fakes.h - an HTTP exchange and an engine's service made up for tests of calls: what is written is kept, what is
 * submitted is kept, and the test says what the engine does. */
#ifndef CALL_FAKES_H
#define CALL_FAKES_H

#include "server/http_server.h"
#include "server/service.h"

struct mf_exchange {
    const char *body, *timeout_header;
    int64_t received_ns;
    const mf_exchange_events *events;
    void *data;
    /* what came out */
    int status;
    char content_type[64];
    mf_buffer written; /* body, or all events */
    int32_t num_writes;
    bool has_begun, has_ended, has_closed, is_error;
    mf_api_error error;
    int32_t writes_until_full; /* > 0: the write that brings it to 0 fills the backlog */
};

void fake_exchange_init(mf_exchange *exchange, const char *body);
void fake_exchange_close(mf_exchange *exchange);
/* The client goes. */
void fake_exchange_go(mf_exchange *exchange, const char *cause);

enum { FAKE_MAX_REQUESTS = 64, FAKE_MAX_EVENTS = 512 };

typedef struct fake_submitted {
    uint64_t serial;
    void *user_data;
    mf_sampling_params sampling; /* its arrays are not copied */
    int32_t prompt[256];
    int32_t num_prompt;
    int64_t deadline_ns;
    int32_t priority;
    mf_guide guide;
    bool is_cancelled, is_paused, has_ended;
    int32_t num_pauses, num_made;
} fake_submitted;

struct mf_service {
    fake_submitted requests[FAKE_MAX_REQUESTS];
    int32_t num_requests;
    mf_service_event events[FAKE_MAX_EVENTS];
    mf_logprob tops[FAKE_MAX_EVENTS][MF_MAX_LOGPROBS];
    int32_t num_events, num_read;
    mf_service_full full;  /* refuses while it is set */
    mf_service_full ahead; /* says so before anything is submitted */
    int64_t now_ns;       /* of steps */
};

/* The engine's doing: each takes the index of the request in the order of submission. */
void fake_token(mf_service *service, int32_t request, int32_t token_id, float logprob);
void fake_token_with_top(mf_service *service, int32_t request, int32_t token_id, float logprob, const mf_logprob *top,
                         int32_t n);
void fake_prompt_logprob(mf_service *service, int32_t request, int32_t position, float logprob, int32_t rank,
                         const mf_logprob *top, int32_t n);
void fake_end(mf_service *service, int32_t request, mf_finish_reason reason, int32_t stop_token_id);
void fake_end_in_queue(mf_service *service, int32_t request); /* its deadline passed before it ran */
void fake_refuse(mf_service *service, int32_t request, mf_status status, const char *message);

#endif
