/* http_harness.h - a real server on a loop that the test itself turns: no thread, so the test sees both sides at any
 * moment. */
#ifndef MF_TESTS_HTTP_HARNESS_H
#define MF_TESTS_HTTP_HARNESS_H

#include <event2/event.h>

#include "server/http_server.h"
#include "test.h"

enum { MAX_HELD = 64 };

typedef struct harness {
    struct event_base *base;
    mf_http_server *server;
    mf_http_options options;
    mf_http_limits limits;
    /* what the handlers saw */
    mf_exchange *held[MAX_HELD]; /* of /hold, in order */
    int num_held, num_handled, num_gone, num_drained;
    char gone_cause[32];
    char last_body[256], last_tail[64], last_query[64], last_id[160];
    size_t last_body_size;
    bool refuses; /* as while loading */
    int answered[16], num_answered;
} harness;

void harness_open(harness *h); /* with h->options and h->limits as set by harness_init */
void harness_init(harness *h);
void harness_close(harness *h);
void turn_for(harness *h, int ms);
#define TURN_UNTIL(h, condition, ms)                                                                                   \
    do {                                                                                                               \
        for (int t_ = 0; t_ < (ms) && !(condition); t_++) {                                                            \
            turn_for((h), 1);                                                                                          \
        }                                                                                                              \
        CHECK(condition);                                                                                              \
    } while (0)

/* ---- the client's side ---- */

int dial(harness *h);
int dial_with(harness *h, int receive_bytes); /* a small receive buffer: a slow reader */
void say(harness *h, int fd, const char *text);
void say_bytes(harness *h, int fd, const void *bytes, size_t n); /* turns the server while the socket is full */
void hang_up(int fd);
void reset(int fd);

/* Reads until the text holds `mark` (NULL: until the end), turning the server meanwhile; "" when nothing came within
 * ms. The result is valid until the next call. */
const char *hear(harness *h, int fd, const char *mark, int ms);
size_t heard_size(void);
bool hear_end(harness *h, int fd, int ms); /* the server closed, and not by a reset */
/* One whole answer with a Content-Length. */
const char *hear_answer(harness *h, int fd);
/* Sends on a connection of its own and returns all until the server closes. */
const char *ask(harness *h, const char *request);
int status_of(const char *answer);
int num_descriptors(void);
long resident_kib(void);

#endif
