/* server_process.h - the program's own `serve` as a child on a free port, for as long as a measurement needs it.  The
 * child dies with this process. */
#ifndef MF_CLI_SERVER_PROCESS_H
#define MF_CLI_SERVER_PROCESS_H

#include "cli/flags.h"

typedef struct mf_server_process mf_server_process;

typedef struct mf_server_options {
    const char *model; /* folder */
    const mf_flag
        *model_rows; /* [num_model_rows] as mf_model_flags_fill made them, parsed; handed on but for --model */
    size_t num_model_rows;
    const char *const *more; /* further arguments, NULL at the end; they win over the rows */
    bool show_log;           /* what the child says until it is ready goes to stderr */
    bool (*stop)(void);      /* true: no longer waited for; may be NULL */
} mf_server_options;

/* Waits until the child is ready; its address goes to url[size] ("http://127.0.0.1:40123"). */
mf_status mf_server_process_start(const mf_server_options *options, mf_server_process **out, char *url, size_t size,
                                  mf_error *err);
bool mf_server_process_runs(mf_server_process *process);
/* SIGTERM, then SIGKILL after 20 s.  NULL is fine; sets *process to NULL. */
void mf_server_process_stop(mf_server_process **process);

#endif
