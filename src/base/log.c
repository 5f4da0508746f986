/* log.c - see log.h. */
#include "base/log.h"

#include <stdio.h>

static mf_log_sink current_sink;
static void *current_context;
static mf_log_level current_least = MF_LOG_INFO;

void mf_log_set_sink(mf_log_sink sink, void *context, mf_log_level least)
{
    current_sink = sink;
    current_context = context;
    current_least = least;
}

void mf_log(mf_log_level level, const char *fmt, ...)
{
    if (!current_sink || level < current_least) {
        return;
    }
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    for (unsigned char *p = (unsigned char *)line; *p; p++) {
        if (*p < 0x20 || *p == 0x7f) {
            *p = '?';
        }
    }
    current_sink(current_context, level, line);
}
