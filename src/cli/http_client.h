/* http_client.h - HTTP/1.1 requests over libevent's loop: connections that are kept and used again, one request at a
 * time each, and their answers' bytes handed on as they arrive.  Plain HTTP only: no TLS, no redirects, no proxies. */
#ifndef MF_CLI_HTTP_CLIENT_H
#define MF_CLI_HTTP_CLIENT_H

#include <sys/socket.h>

#include "cli/http_response.h"

struct event_base;

typedef struct mf_http_target {
    char host[300];   /* as the Host header says it, with the port */
    char prefix[512]; /* before every path, without a slash at its end; a "/v1" at the URL's end is not part of it */
    struct sockaddr_storage address;
    socklen_t address_size;
} mf_http_target;

/* Reads http://HOST[:PORT][/PREFIX] and looks the host up, which may wait for a name server. */
mf_status mf_http_target_open(const char *url, mf_http_target *target, mf_error *err);

typedef struct mf_http_connection mf_http_connection;

typedef struct mf_http_handler {
    void *context;
    mf_http_body_fn body; /* pieces of the body, whatever the status; an error ends the request and is its failure */
    /* The end: the answer is complete (failure NULL), or not.  A new request may be sent, or the connection closed,
     * from here. */
    void (*done)(void *context, const mf_http_response *response, const mf_error *failure);
} mf_http_handler;

mf_status mf_http_connection_open(struct event_base *base, const mf_http_target *target, mf_http_connection **out,
                                  mf_error *err);
void mf_http_connection_close(mf_http_connection **connection); /* in the middle of a request too: done is not called */

typedef struct mf_http_request {
    const char *method, *path; /* path without the target's prefix */
    const char *body;          /* JSON; NULL = none */
    size_t body_size;
    const char *api_key; /* NULL = none */
    double silence_s;    /* without a byte for so long the request fails */
} mf_http_request;

/* Connects where there is no connection.  A kept connection that turns out to be closed already is opened anew, once.
 * What goes wrong is told to handler->done later, on the loop. */
mf_status mf_http_connection_send(mf_http_connection *connection, const mf_http_request *request,
                                  const mf_http_handler *handler, mf_error *err);
/* The answer being read: its head is complete when body bytes come. */
const mf_http_response *mf_http_connection_response(const mf_http_connection *connection);

/* One request and its whole answer, on a loop of its own.  *status is the HTTP status. */
mf_status mf_http_fetch(const mf_http_target *target, const mf_http_request *request, int *status, mf_buffer *body,
                        mf_error *err);

#endif
