/* stand_ins.c - for what tests/cuda/build.sh leaves out: the "cpu" device (minutes of compiling) and the log (jansson). */
#include <stdarg.h>
#include <stdio.h>

#include "base/log.h"
#include "kernels/ops.h"

mf_status mf_cpu_device_init(mf_device *device, const mf_device_options *options, mf_error *err)
{
    (void)device;
    (void)options;
    return mf_fail(err, MF_ERR_UNSUPPORTED, "device cpu: left out of this build");
}

mf_isa_level mf_cpu_isa_level(size_t i)
{
    (void)i;
    return (mf_isa_level){ 0 };
}

void mf_log(mf_log_level level, const char *fmt, ...)
{
    va_list args;
    (void)level;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}
