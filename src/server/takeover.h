/* takeover.h - handing the listening socket to a new process, so that no connection is refused while servers change.
 *
 * The running server offers its listener on a UNIX socket path (mode 0600, and only to processes of its own user).  The
 * new one connects and gets the descriptor at once, loads, and when it can answer says `claim`: then the old one
 * removes the path, stops listening and drains, and the new one may offer at the same path. */
#ifndef MF_SERVER_TAKEOVER_H
#define MF_SERVER_TAKEOVER_H

#include "base/error.h"

struct event_base;

typedef struct mf_takeover mf_takeover; /* an offer */

/* `taken` is called once, on the loop, when a new process has claimed the listener; it may close the offer. */
mf_status mf_takeover_offer(struct event_base *base, const char *path, int listen_fd, void (*taken)(void *context),
                            void *context, mf_takeover **offer, mf_error *err);
void mf_takeover_close(mf_takeover **offer); /* removes the path, unless it was claimed; NULL is fine */

/* Waits at most timeout_ms.  *listen_fd -1 and MF_OK: nobody offers anything there.  *control_fd is for
 * mf_takeover_claim; closing it instead leaves everything with the old process. */
mf_status mf_takeover_receive(const char *path, int timeout_ms, int *listen_fd, int *control_fd, mf_error *err);
/* Tells the old process to drain and waits until it says that it will.  Closes control_fd. */
mf_status mf_takeover_claim(int control_fd, int timeout_ms, mf_error *err);

#endif
