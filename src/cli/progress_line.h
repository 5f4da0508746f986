/* progress_line.h - progress of counted work on stderr: a line redrawn ten times a second on a terminal, else a plain
 * line per 10 % or 5 s, whichever is later. */
#ifndef MF_CLI_PROGRESS_LINE_H
#define MF_CLI_PROGRESS_LINE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mf_progress_line {
    const char *what; /* "concurrency 4" */
    bool enabled, tty, drawn;
    int64_t total;
    int32_t last_tenth;
    double last_time_s;
} mf_progress_line;

void mf_progress_line_start(mf_progress_line *line, const char *what, int64_t total, bool disabled);
/* seconds since the start; tokens made so far; `note` follows the figures, may be "". */
void mf_progress_line_draw(mf_progress_line *line, int64_t done, int64_t tokens, double seconds, const char *note);
void mf_progress_line_end(mf_progress_line *line); /* what was drawn disappears */

#endif
