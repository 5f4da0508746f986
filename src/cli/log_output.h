/* log_output.h - where log lines go and how they look: text or one JSON object a line, on stderr or at a file's end.
 *
 * A line that cannot be written (the disk is full) is dropped and counted; stderr is told at most once a minute.  The
 * file is opened once, at start: a sandboxed server cannot open it again, so rotation has to copy and truncate. */
#ifndef MF_CLI_LOG_OUTPUT_H
#define MF_CLI_LOG_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/log.h"

typedef struct mf_log_output_options {
    const char *level;  /* "debug", "info", "warn", "error" */
    const char *format; /* "text" or "json"; NULL: text */
    const char *file;   /* NULL: stderr */
} mf_log_output_options;

mf_status mf_log_output_start(const mf_log_output_options *options, mf_error *err);

/* Whether stderr is to hold JSON and nothing else. */
bool mf_log_output_is_json(void);
/* Whether what is printed for people belongs into the log instead: it is JSON, or goes to a file. */
bool mf_log_output_takes_all(void);

/* Several lines, e.g. the plan, as log lines. */
void mf_log_lines(mf_log_level level, const char *text);

/* One line as it is written, newline included; its size.  seconds and milliseconds are the wall clock's; has_time
 * false: a text line without them. */
size_t mf_log_output_format(bool json, bool has_time, int64_t seconds, int milliseconds, mf_log_level level,
                            const char *line, char *out, size_t size);

#endif
