/* amx_few.h - products of few tokens with vectors and the bits of tiles (products_amx_few.c,
 * products_amx_few_int8.c).  Each says how many of a tile's first rows it has multiplied; the others are left to tiles. */
#ifndef MF_KERNELS_CPU_AMX_FEW_H
#define MF_KERNELS_CPU_AMX_FEW_H

#include "kernels/cpu/cpu_kernels.h"

/* One token of bf16, int4 codes. */
int64_t mf_cpu_amx_few(const mf_cpu_tile *tile);

/* One panel of int8 codes; needs VNNI. */
int64_t mf_cpu_amx_few_int8(const mf_cpu_tile *tile);

#endif
