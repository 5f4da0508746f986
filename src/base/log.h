/* log.h - one sink for what a library wants said.  Libraries never print: the program installs a sink. */
#ifndef MF_BASE_LOG_H
#define MF_BASE_LOG_H

#include "base/error.h"

typedef enum mf_log_level { MF_LOG_DEBUG = 0, MF_LOG_INFO, MF_LOG_WARN, MF_LOG_ERROR } mf_log_level;

typedef void (*mf_log_sink)(void *context, mf_log_level level, const char *line);

/* sink NULL: silence (the default).  Set before other threads start. */
void mf_log_set_sink(mf_log_sink sink, void *context, mf_log_level least);
void mf_log(mf_log_level level, const char *fmt, ...) MF_PRINTF(2, 3);

#endif
