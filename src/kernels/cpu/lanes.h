/* lanes.h - products of many tokens with sixteen rows as lanes, called by those that multiply few (quads_*.c, ...). */
#ifndef MF_KERNELS_CPU_LANES_H
#define MF_KERNELS_CPU_LANES_H

#include "kernels/cpu/cpu_kernels.h"

/* MF_CPU_FORM_BF16_QUADS.  INT4_GROUP: groups of a multiple of 32 columns, or one group a row; zero points above 16
 * give nonsense. */
void mf_cpu_lanes_int4_bf16(const mf_cpu_tile *tile);
void mf_cpu_lanes_mxfp4_bf16(const mf_cpu_tile *tile);
void mf_cpu_lanes_fp8_block_bf16(const mf_cpu_tile *tile);
/* MF_CPU_FORM_I8_HALVES, the same groups and zero points */
void mf_cpu_lanes_int4_codes(const mf_cpu_tile *tile);
/* MF_CPU_FORM_I8 */
void mf_cpu_lanes_int8_codes(const mf_cpu_tile *tile);

#endif
