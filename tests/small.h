/* small.h - whether tests run under a tool that costs a hundredfold: every kernel, on as little as it takes. */
#ifndef MF_TESTS_SMALL_H
#define MF_TESTS_SMALL_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static inline bool is_small(void)
{
    const char *v = getenv("MOEFUSE_CONFORMANCE");
    return v && strcmp(v, "small") == 0;
}

#endif
