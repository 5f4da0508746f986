/* error.h - making and forwarding mf_error.  A message is written where the fault is found and forwarded as is. */
#ifndef MF_BASE_ERROR_H
#define MF_BASE_ERROR_H

#include <stdarg.h>

#include "moefuse.h"

#define MF_PRINTF(fmt_index, first) __attribute__((format(printf, fmt_index, first)))

/* Fills *err (when not NULL) and returns status, so that `return mf_fail(err, MF_ERR_INVALID, "...")` is one line.
 * Control bytes in the result are replaced by '?': messages reach terminals and logs. */
mf_status mf_fail(mf_error *err, mf_status status, const char *fmt, ...) MF_PRINTF(3, 4);

/* Puts "context: " before the message that is already in *err; keeps the status.  Returns err's status, or `status`
 * when err is NULL. */
mf_status mf_fail_context(mf_error *err, mf_status status, const char *fmt, ...) MF_PRINTF(3, 4);

/* Appends a second line of advice ("download the shard again"). */
void mf_error_advise(mf_error *err, const char *fmt, ...) MF_PRINTF(2, 3);

void mf_error_clear(mf_error *err);

#define MF_TRY(call)                         \
    do {                                     \
        mf_status mf_try_status_ = (call);   \
        if (mf_try_status_ != MF_OK) {       \
            return mf_try_status_;           \
        }                                    \
    } while (0)

/* For functions with one cleanup label: `status` must be a local of type mf_status. */
#define MF_TRY_GOTO(call, label)             \
    do {                                     \
        status = (call);                     \
        if (status != MF_OK) {               \
            goto label;                      \
        }                                    \
    } while (0)

#endif
