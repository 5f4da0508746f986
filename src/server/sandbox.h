/* sandbox.h - what a server that has loaded its model gives up: opening files for writing, starting programs, making
 * sockets, tracing, executable memory (seccomp), and reading files outside a few folders (Landlock).
 *
 * What is open stays open: the listener and its connections, the log, mapped weights, /proc files held open by
 * process_stats.h.  Threads may still be started. */
#ifndef MF_SERVER_SANDBOX_H
#define MF_SERVER_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

typedef struct mf_sandbox_options {
    const char *model_dir; /* stays readable; NULL: nothing of a model */
    const char *const
        *readable; /* [num_readable] further files or folders that stay readable; missing ones are skipped */
    size_t num_readable;
    const char *const *removable; /* [num_removable] sockets that may still be removed, NULL ones are skipped */
    size_t num_removable;
    bool landlock_only;   /* devices whose driver makes calls of its own at any time */
} mf_sandbox_options;

typedef struct mf_sandbox_state {
    bool seccomp;         /* of all threads */
    int landlock_abi;     /* 0: not in force */
    int landlock_threads; /* that it covers, this one included */
    int num_threads;      /* there were */
} mf_sandbox_state;

/* For all threads of the process, for ever.  Call once, after the model is loaded and everything that must be open is
 * open. What the kernel lacks is left out with a log line; MF_ERR_DEVICE: the kernel has it and refuses.  *state is
 * optional. */
mf_status mf_sandbox_enter(const mf_sandbox_options *options, mf_sandbox_state *state, mf_error *err);

#endif
