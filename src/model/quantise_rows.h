/* quantise_rows.h - floating-point matrices into INT8_CHANNEL, INT4_GROUP and FP8_BLOCK, a run of rows at a time:
 * shared by loading with --quantization and by `moefuse quantize`, which therefore give the same bits.
 *
 * Rules, per row, group or block, from its largest magnitude (a NaN or inf there makes the scale NaN or inf, never a
 * silent 0): int8  scale = f32 amax / 127, code = rint(w / scale) int4  groups of columns: scale = f16(m / -8) of the
 * value m of largest magnitude, code = rint(w / scale) + 8 in 0..15 fp8   blocks of 128 x 128: scale = f32 amax / 448,
 * code = e4m3(w / scale) */
#ifndef MF_MODEL_QUANTISE_ROWS_H
#define MF_MODEL_QUANTISE_ROWS_H

#include "kernels/ops.h"

enum { MF_QUANTISE_ROWS = 128 }; /* most rows of a run: one row of fp8 blocks */

/* *to: [n, k] in the format, without pointers; rows of four-bit codes fill whole multiples of row_unit codes (2 or 8).
 */
void mf_quantise_layout(mf_format format, int64_t n, int64_t k, int64_t group, int64_t row_unit, mf_matrix *to,
                        int64_t *code_bytes, int64_t *scale_bytes);

/* Floats that a run of rows needs room for. */
int64_t mf_quantise_scratch(const mf_matrix *to);

/* Writes rows [first, first + count) behind to->data and to->scale; first is a multiple of MF_QUANTISE_ROWS.  Runs of
 * different rows may be written at the same time. */
void mf_quantise_rows(const mf_matrix *from, const mf_matrix *to, int64_t first, int64_t count, float *scratch);

#endif
