/* log.h - one sink for what a library wants said.  Libraries never print: the program installs a sink. */
#ifndef MF_BASE_LOG_H
#define MF_BASE_LOG_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef enum mf_log_level { MF_LOG_DEBUG = 0, MF_LOG_INFO, MF_LOG_WARN, MF_LOG_ERROR } mf_log_level;

/* line: one line of valid UTF-8 without control characters. */
typedef void (*mf_log_sink)(void *context, mf_log_level level, const char *line);

/* sink NULL: silence (the default).  Set before other threads start. */
void mf_log_set_sink(mf_log_sink sink, void *context, mf_log_level least);
/* At most 1 KiB; what comes from outside may be in it as it is: see mf_log_escape. */
void mf_log(mf_log_level level, const char *fmt, ...) MF_PRINTF(2, 3);

/* Control characters, also those of ISO 6429 above U+007F, and bytes that are not UTF-8 become \xNN: nothing in a line
 * can steer a terminal or begin a line of its own.  Cut at a whole piece where out is full; out is always ended. */
void mf_log_escape(const char *text, size_t size, char *out, size_t out_size);

/* Lines that a sink could not write, counted by the sink. */
void mf_log_add_dropped(int64_t lines);
int64_t mf_log_num_dropped(void);

#endif
