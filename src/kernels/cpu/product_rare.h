/* product_rare.h - what products of every ISA leave to plain C: rows with NaN codes or scales out of the fast paths'
 * range, and groups that no vector fits. */
#ifndef MF_KERNELS_CPU_PRODUCT_RARE_H
#define MF_KERNELS_CPU_PRODUCT_RARE_H

#include "kernels/cpu/cpu_kernels.h"

/* A NaN weight times anything is NaN, and so is the sum: rows [r, r + num_rows) of the tile that hold one give NaN. */
void mf_cpu_spread_nan_codes(const mf_cpu_tile *tile, int64_t r, int64_t num_rows);
/* Any format and group size, with inputs in any form that is no panel; `split` as the form's. */
void mf_cpu_tile_rare(const mf_cpu_tile *tile, mf_cpu_form form, int64_t split);
/* FP8_BLOCK: rows again that have a scale of at least `limit`, or a NaN. */
void mf_cpu_redo_huge_scales(const mf_cpu_tile *tile, mf_cpu_form form, float limit);

#endif
