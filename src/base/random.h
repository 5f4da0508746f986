/* random.h - a small seeded generator (SplitMix64): same seed, same numbers on every machine. */
#ifndef MF_BASE_RANDOM_H
#define MF_BASE_RANDOM_H

#include <stdint.h>

#include "base/fixed_math.h"

MF_FIXED uint64_t mf_random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

MF_FIXED uint64_t mf_random_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return mf_random_mix(*state);
}

/* Uniform in [0, 1) with 53 bits. */
MF_FIXED double mf_random_unit(uint64_t *state)
{
    return (double)(mf_random_next(state) >> 11) * 0x1p-53;
}

/* Uniform in [0, n), n >= 1; the bias of n / 2^64 is of no consequence here. */
static inline uint64_t mf_random_below(uint64_t *state, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)mf_random_next(state) * n) >> 64);
}

#endif
