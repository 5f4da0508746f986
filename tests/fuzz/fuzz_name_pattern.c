/* fuzz_name_pattern.c - a pattern, a zero byte, a name: every pattern compiles or says why not, and matching ends. */
#include <stdlib.h>
#include <string.h>

#include "model/name_pattern.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    mf_arena arena = { 0 };
    if (!zero) {
        return 0;
    }
    char *name = mf_arena_strndup(&arena, (const char *)zero + 1, size - (size_t)(zero + 1 - data));
    const mf_name_pattern *pattern;
    const char *why = NULL;
    mf_status status = mf_name_pattern_compile((const char *)data, &arena, &pattern, &why);
    if ((status == MF_OK) != (pattern != NULL) || (status != MF_OK && status != MF_ERR_NOMEM && !why)) {
        abort();
    }
    if (pattern && name) {
        (void)mf_name_pattern_matches(pattern, name);
    }
    mf_arena_clear(&arena);
    return 0;
}
