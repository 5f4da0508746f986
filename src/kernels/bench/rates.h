/* rates.h - loops that run as fast as an instruction set can, and nothing else: what `doctor` prints and what
 * benchmarks divide by.  One file per ISA under cpu/ holds them, because only an ISA's own files get its flags. */
#ifndef MF_KERNELS_RATES_H
#define MF_KERNELS_RATES_H

#include "kernels/bench/bench.h"

/* Runs about `rounds` rounds in registers alone and returns the operations done; a multiply-add is two. */
typedef double (*mf_rate_fn)(int64_t rounds);
/* Reads bytes (a multiple of 512) at a multiple of 64, asking `ahead` bytes ahead (0: not at all). */
typedef uint64_t (*mf_read_fn)(const void *data, size_t bytes, size_t ahead);

typedef struct mf_rates {
    const char *level;              /* the rung's name, as MOEFUSE_ISA says it */
    mf_rate_fn rate[MF_RATE_COUNT]; /* NULL: no better than a lower level's */
    mf_read_fn read;
} mf_rates;

extern const mf_rates mf_rates_c;
extern const mf_rates mf_rates_avx2; /* builds for x86-64 */
extern const mf_rates mf_rates_avx512;
extern const mf_rates mf_rates_avx512_vnni;
extern const mf_rates mf_rates_avx512_bf16;
extern const mf_rates mf_rates_amx;  /* the thread must be allowed to use tiles */
extern const mf_rates mf_rates_neon; /* builds for aarch64 */
extern const mf_rates mf_rates_neon_dotprod;
extern const mf_rates mf_rates_neon_bf16;

#endif
