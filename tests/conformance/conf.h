/* conf.h - what the conformance programs share: the devices under test, guarded memory, seeded values, comparisons.
 *
 * Every op runs on every device that this machine can open and must give the bits that "ref" gives; "ref" itself is held
 * against oracles that are written here, in double or from the definition, without its code.
 *
 * MOEFUSE_CONFORMANCE=full runs the whole grid instead of a sample of it; MOEFUSE_CONFORMANCE_DEVICE=cuda holds that device
 * alone against "ref" (staging.c copies what the tests keep in the host's memory). */
#ifndef MF_TESTS_CONF_H
#define MF_TESTS_CONF_H

#include <stdbool.h>

#include "base/random.h"
#include "moefuse.h"
#include "test.h"

typedef struct conf_device {
    char label[160]; /* "cpu avx2+fma+f16c, 3 threads (MOEFUSE_ISA=avx2)" */
    mf_device *device;
} conf_device;

/* [0] is ref; then "cpu" lowered to each ISA it has, with one and with three threads.  Opened once per process. */
const conf_device *conf_devices(int *count);
mf_device *conf_ref(void);

bool conf_full(void);
bool conf_small(void); /* MOEFUSE_CONFORMANCE=small: every kernel, on as little as it takes, for tools that cost a hundredfold */
bool conf_whole(void); /* full, or a device of its own is under test: nothing is sampled that such a device has kernels for */

/* ---- memory: exactly `bytes` long, 64 guard bytes on both sides, filled with poison ---- */

enum { CONF_POISON = 0xa5 };

void *conf_alloc(size_t bytes); /* 64-byte aligned */
void conf_free(void *block);    /* fails the test when a guard byte changed */
void conf_check_guards(const void *block);

/* ---- values ---- */

double conf_normal(uint64_t *seed);
int64_t conf_below(uint64_t *seed, int64_t n); /* uniform in [0, n) */
int64_t conf_pick(uint64_t *seed, const int64_t *list, size_t n);
#define CONF_PICK(seed, ...) \
    conf_pick(seed, (const int64_t[]){ __VA_ARGS__ }, sizeof((const int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t))

/* Element i of an array of f64, f32, bf16 or f16, at any alignment. */
void conf_put(void *data, mf_dtype dtype, int64_t i, double v);
double conf_get(const void *data, mf_dtype dtype, int64_t i);

/* The first element (of 1, 2, 4 or 8 bytes) at which the arrays differ, a NaN being equal to any NaN of its float dtype;
 * -1 when there is none. */
int64_t conf_difference(const void *a, const void *b, mf_dtype dtype, int64_t n);

#endif
