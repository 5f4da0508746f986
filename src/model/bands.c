/* bands.c - see bands.h.
 *
 * From `moefuse_cuda_bench modes`: the whole layer as a model calls it (gate to residual), replayed from graphs over four
 * layers of weights.  Another mode than the usual one is listed where two runs showed it at least 3 % quicker, unless
 * whole models showed no gain; the figures are in lab/cuda/016. */
#include "model/bands.h"

#include <string.h>

#define ALWAYS(mode) { { INT64_MAX, mode } }

const mf_mode_band mf_bands_unmeasured[1] = ALWAYS(MF_MODE_SLOT);
const mf_mode_band mf_bands_unmeasured_apart[1] = ALWAYS(MF_MODE_OVERLAP);

/* At a few hundred tokens two products at once take each other's place and memory's rate. */
#define SERIAL_IN_BETWEEN { { 320, MF_MODE_OVERLAP }, { 640, MF_MODE_SERIAL }, { INT64_MAX, MF_MODE_OVERLAP } }

/* H100 and H200 are one design with different memory; the table of the one serves both. */
static const mf_band_table tables[] = {
    { "sm_90", "NVIDIA H200, 2026-11-30", MF_FORMAT_BF16, 2048, 1408, 64, 6, 2, /* DeepSeek-V2-Lite */
      .fused = ALWAYS(MF_MODE_SLOT),
      .apart = SERIAL_IN_BETWEEN },
    { "sm_90", "NVIDIA H200, 2026-11-30", MF_FORMAT_BF16, 4096, 704, 128, 8, 1, /* GLM-4.5-Air, one of two ranks */
      .fused = ALWAYS(MF_MODE_SLOT),
      .apart = ALWAYS(MF_MODE_OVERLAP) },
    { "sm_90", "NVIDIA H200, 2026-11-30", MF_FORMAT_FP8_BLOCK, 7168, 256, 256, 8, 1, /* DeepSeek-V3, one of 8 ranks */
      .fused = ALWAYS(MF_MODE_SLOT),
      .apart = SERIAL_IN_BETWEEN },
};

const mf_band_table *mf_bands_find(const mf_band_table *key)
{
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        const mf_band_table *t = &tables[i];
        if (strcmp(t->gpu, key->gpu) == 0 && t->format == key->format && t->hidden_size == key->hidden_size &&
            t->width == key->width && t->num_experts == key->num_experts && t->top_k == key->top_k &&
            t->num_shared == key->num_shared) {
            return t;
        }
    }
    return NULL;
}

mf_layer_mode mf_bands_mode(const mf_mode_band *bands, int64_t num_tokens)
{
    while (num_tokens > bands->max_tokens) {
        bands++;
    }
    return bands->mode;
}
