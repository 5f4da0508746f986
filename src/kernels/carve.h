/* carve.h - taking pieces from a caller's workspace; the same code with base NULL counts how much that is. */
#ifndef MF_KERNELS_CARVE_H
#define MF_KERNELS_CARVE_H

#include <stddef.h>
#include <stdint.h>

#include "base/sys.h"

/* count elements of size bytes at the next multiple of 64.  *total is what has been taken so far; it becomes SIZE_MAX,
 * which nobody can lend, when the sizes overflow (count < 0 says that the caller's product did). */
static inline void *mf_carve(void *base, size_t *total, int64_t count, size_t size)
{
    size_t bytes;
    size_t at = *total;
    if (at == SIZE_MAX || count < 0 || !mf_mul_ok((size_t)count, size, &bytes) || bytes > PTRDIFF_MAX - 64 ||
        !mf_add_ok(at, (bytes + 63) / 64 * 64, total) || *total > PTRDIFF_MAX) {
        *total = SIZE_MAX;
        return NULL;
    }
    return base ? (uint8_t *)base + at : NULL;
}

/* a * b * c, or -1 when it does not fit. */
static inline int64_t mf_carve_count(int64_t a, int64_t b, int64_t c)
{
    int64_t ab, abc;
    return mf_mul_ok(a, b, &ab) && mf_mul_ok(ab, c, &abc) ? abc : -1;
}

#endif
