/* inputs.h - which form of its input a product takes, and rows in that form. */
#ifndef MF_KERNELS_CPU_INPUTS_H
#define MF_KERNELS_CPU_INPUTS_H

#include "kernels/cpu/cpu_kernels.h"

/* What a matrix wants to be multiplied with. */
typedef struct mf_cpu_source {
    mf_quant quant;
    mf_cpu_form form;
    mf_cpu_tile_fn fn;
} mf_cpu_source;

/* For inputs of act_dtype, quantised as `quant` says. */
static inline mf_cpu_source mf_cpu_source_for(const mf_cpu_kernels *kernels, mf_format format, mf_dtype act_dtype,
                                              mf_quant quant)
{
    const mf_cpu_input input = quant == MF_QUANT_INT8_TOKEN                          ? MF_CPU_INPUT_I8
                               : quant == MF_QUANT_NONE && act_dtype == MF_BF16 ? MF_CPU_INPUT_BF16
                                                                                : MF_CPU_INPUT_F32;
    const mf_cpu_product *product = &kernels->product[format][input];
    return (mf_cpu_source){ .quant = quant, .form = product->form, .fn = product->fn };
}

/* Bytes from one packed row to the next.  Rows that start at the same place of a page would push each other out of a cache
 * when several are read side by side. */
static inline int64_t mf_cpu_row_bytes(mf_cpu_form form, int64_t k)
{
    const int64_t bytes = mf_cpu_form_bytes(form, k);
    return bytes % 2048 == 0 && !mf_cpu_form_is_panel(form) ? bytes + 64 : bytes;
}

/* Tokens of the next tile when `left` of them remain, whole panels of them: tiles as equal as possible, since a small one at
 * the end reads and decodes its rows for a few. */
static inline int64_t mf_cpu_tile_share(const mf_cpu_kernels *kernels, int64_t left)
{
    const int64_t num_tiles = (left + kernels->tile_tokens - 1) / kernels->tile_tokens;
    const int64_t share = ((left + num_tiles - 1) / num_tiles + MF_CPU_PANEL - 1) / MF_CPU_PANEL * MF_CPU_PANEL;
    return share < left ? share : left;
}

/* Where tokens [first, first + n) of a run of `count` start: one pointer per token, or per panel of 16.  Rows and panels
 * stand in order from `rows` on, row_bytes per token; first is a multiple of MF_CPU_PANEL for panels. */
static inline void mf_cpu_point(mf_cpu_form form, const uint8_t *rows, int64_t row_bytes, int64_t first, int64_t n,
                                const void **x)
{
    const int64_t step = mf_cpu_form_is_panel(form) ? MF_CPU_PANEL : 1;
    for (int64_t i = 0; i < n; i += step) {
        *x++ = rows + (first + i) * row_bytes;
    }
}

/* Where token i of `count` goes when packed. */
static inline mf_cpu_pack mf_cpu_pack_at(mf_cpu_form form, int64_t k, uint8_t *rows, int64_t row_bytes, int64_t i,
                                         int64_t count)
{
    mf_cpu_pack pack = { .form = form, .k = k, .num_tokens = 1, .row = rows + i * row_bytes };
    if (mf_cpu_form_is_panel(form)) {
        const int64_t first = i / MF_CPU_PANEL * MF_CPU_PANEL;
        pack.token = i - first;
        pack.num_tokens = count - first < MF_CPU_PANEL ? count - first : MF_CPU_PANEL;
        pack.row = rows + first * row_bytes;
    }
    return pack;
}

#endif
