/* progress_line.c - see progress_line.h. */
#include "cli/progress_line.h"

#include <stdio.h>
#include <unistd.h>

void mf_progress_line_start(mf_progress_line *line, const char *what, int64_t total, bool disabled)
{
    *line = (mf_progress_line){
        .what = what, .enabled = !disabled && total > 0, .tty = isatty(STDERR_FILENO) == 1, .total = total
    };
}

void mf_progress_line_draw(mf_progress_line *line, int64_t done, int64_t tokens, double seconds, const char *note)
{
    if (!line->enabled) {
        return;
    }
    double share = (double)done / (double)line->total, rate = seconds > 0 ? (double)tokens / seconds : 0;
    double eta = done > 0 ? seconds / (double)done * (double)(line->total - done) : 0;
    int32_t tenth = (int32_t)(share * 10);
    if (line->tty) {
        if (seconds - line->last_time_s < 0.1 && done < line->total) {
            return;
        }
        char bar[25];
        for (int i = 0; i < 24; i++) {
            bar[i] = i < (int)(share * 24) ? '#' : '-';
        }
        bar[24] = '\0';
        line->last_time_s = seconds;
        line->drawn = true;
        fprintf(stderr, "\r%s %lld/%lld [%s] %3.0f %%  %.0f tok/s  ETA %.0f s%s \033[K", line->what, (long long)done,
                (long long)line->total, bar, share * 100, rate, eta, note);
        fflush(stderr);
    } else if (tenth > line->last_tenth && seconds - line->last_time_s >= 5) {
        line->last_tenth = tenth;
        line->last_time_s = seconds;
        fprintf(stderr, "%s %lld/%lld  %3.0f %%  %.0f tok/s  ETA %.0f s%s\n", line->what, (long long)done,
                (long long)line->total, share * 100, rate, eta, note);
    }
}

void mf_progress_line_end(mf_progress_line *line)
{
    if (line->drawn) {
        fputs("\r\033[K", stderr);
        line->drawn = false;
    }
}
