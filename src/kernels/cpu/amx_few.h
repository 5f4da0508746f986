/* amx_few.h - products of few tokens with vectors and the bits of tiles (products_amx_few.c,
 * products_amx_few_int8.c). */
#ifndef MF_KERNELS_CPU_AMX_FEW_H
#define MF_KERNELS_CPU_AMX_FEW_H

#include "kernels/cpu/cpu_kernels.h"

enum { MF_CPU_AMX_FEW = 4 };

/* Of a tile with one panel of bf16: how many of its first rows it has multiplied.  *rest: whether those after them are
 * all left to tiles, and not the next sixteen only. */
int64_t mf_cpu_amx_few(const mf_cpu_tile *tile, bool *rest);

/* The same for one panel of int8 codes, up to 16 tokens; needs VNNI.  All rows it leaves are left to tiles. */
int64_t mf_cpu_amx_few_int8(const mf_cpu_tile *tile);

#endif
