/* bands.h - which mode of a layer with a shared expert is the quickest at which number of tokens, as measured on a GPU.
 *
 * All modes give the same bits, so a layer may change its mode from step to step.  Tables are shipped; where none is
 * for a device and shape, a shared expert that can be in slots always is. */
#ifndef MF_MODEL_BANDS_H
#define MF_MODEL_BANDS_H

#include "kernels/ops.h"

enum { MF_MAX_BANDS = 6 };

/* Up to and with so many tokens; a list ends with INT64_MAX. */
typedef struct mf_mode_band {
    int64_t max_tokens;
    mf_layer_mode mode;
} mf_mode_band;

typedef struct mf_band_table {
    const char *gpu;    /* mf_device's */
    const char *source; /* where and when: "NVIDIA H200, 2026-11-30" */
    mf_format format;
    int64_t hidden_size, width; /* of an expert */
    int32_t num_experts, top_k, num_shared;
    mf_mode_band fused[MF_MAX_BANDS]; /* where slots are possible */
    mf_mode_band apart[MF_MAX_BANDS]; /* where they are not: OVERLAP, SERIAL */
} mf_band_table;

/* NULL: not measured.  Only gpu, format, sizes and counts of `key` are read. */
const mf_band_table *mf_bands_find(const mf_band_table *key);

/* What is taken for a shape that was not measured: in slots, else beside the routed experts. */
extern const mf_mode_band mf_bands_unmeasured[1], mf_bands_unmeasured_apart[1];

mf_layer_mode mf_bands_mode(const mf_mode_band *bands, int64_t num_tokens);

#endif
