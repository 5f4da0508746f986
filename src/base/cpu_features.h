/* cpu_features.h - what this machine's CPU and operating system allow. */
#ifndef MF_BASE_CPU_FEATURES_H
#define MF_BASE_CPU_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mf_cpu_features {
    bool avx2_fma_f16c; /* AVX2, FMA and F16C, and the OS saves their registers */
    bool avx512_core;   /* F, BW, VL, DQ and OS support */
    bool avx512_vnni, avx512_bf16, avx512_vbmi, avx512_fp16;
    bool is_amd, is_intel; /* AMD's AVX-512 multiplies bf16 at twice the rate of f32, Intel's at half of it */
    bool amx_bf16, amx_int8; /* the CPU and the system have tiles; mf_cpu_amx_refusal asks for them */
    bool neon;               /* always on aarch64 */
    bool neon_dotprod;       /* SDOT, UDOT */
    bool neon_bf16;          /* BFDOT, BFMMLA */
    int32_t num_cores;       /* cores this process may run on, capped by its CPU quota */
} mf_cpu_features;

const mf_cpu_features *mf_cpu_features_get(void);

/* Why this process may not use AMX tiles with bf16, in words that continue "amx: "; NULL when it may.  The first call asks
 * Linux for the permission, which holds for all threads of the process, those that run already too. */
const char *mf_cpu_amx_refusal(void);

#endif
