/* console.h - everything the program says to a person: errors, log lines, progress.  Results go to stdout elsewhere;
 * all of this goes to stderr. */
#ifndef MF_CLI_CONSOLE_H
#define MF_CLI_CONSOLE_H

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"

/* Exit codes of every verb. */
enum {
    MF_EXIT_OK = 0,
    MF_EXIT_FAILED = 1,
    MF_EXIT_USAGE = 2,
    MF_EXIT_WORSE = 3,       /* a comparison or a threshold failed */
    MF_EXIT_MODEL = 4,       /* model refused */
    MF_EXIT_RESOURCE = 5,    /* memory or device not available */
    MF_EXIT_CANNOT_BIND = 6,
    MF_EXIT_UNREADABLE = 66, /* weights unreadable after load */
    MF_EXIT_INTERRUPTED = 130
};

/* "moefuse: error: ..." with the advice line, if any, below. */
void mf_console_error(const mf_error *err);
/* Prints a document and its newline on stdout and releases it; NULL (out of memory) prints nothing. */
void mf_console_json(json_t *document, size_t flags);
int mf_exit_code(mf_status status); /* for an error while opening a model */

/* A progress bar on a terminal (10 a second), else a plain line per 10 % or 5 s, whichever is later. */
typedef struct mf_console_progress {
    bool enabled, tty, drawn;
    int32_t last_tenth;
    double last_time;
} mf_console_progress;

void mf_console_progress_start(mf_console_progress *state, bool disabled);
bool mf_console_progress_draw(void *context, const mf_progress_info *info); /* an mf_progress_fn */
void mf_console_progress_end(mf_console_progress *state);

/* "9.2 GB", "64 KiB": decimal units as disks and links have them. */
const char *mf_format_bytes(int64_t bytes, char *out, size_t size);
/* 1234567 -> "1,234,567" */
const char *mf_format_count(int64_t count, char *out, size_t size);
/* 671026419200 -> "671.0 B" */
const char *mf_format_params(int64_t count, char *out, size_t size);

#endif
