/* cuda_row.c - the host's side of attention_row.cu: which calls of one row it takes, and how it cuts them. */
#include "kernels/cuda/dense_ops.h"

bool mf_cuda_plan_row(const mf_device *device, const mf_cuda_attention *a, const mf_cuda_gqa_prepare *r, mf_cuda_row *p)
{
    const mf_cuda_state *state = mf_cuda_state_of(device);
    const mf_cuda_gpu *gpu = &state->gpu;
    const int32_t group = a->num_heads / a->num_kv_heads, tiles = (group + MF_CUDA_ROW_HEADS - 1) / MF_CUDA_ROW_HEADS;
    const int64_t units = a->num_kv_heads * tiles, most = 2 * gpu->num_multiprocessors / units, dim = a->head_dim;
    if (a->num_tokens != 1 || gpu->capability != 90 || state->in_front || units > MF_CUDA_ROW_UNITS || most < 1 ||
        a->most_spans > MF_CUDA_ROW_PIECES || gpu->shared_bytes < MF_CUDA_ROW_SHARED ||
        (a->block_size & (a->block_size - 1)) != 0 || a->window > INT32_MAX || a->chunk > INT32_MAX) {
        return false;
    }
    const int64_t splits = min_i64(a->most_spans, most),
                  columns = (min_i64(group, MF_CUDA_ROW_HEADS) + 1) / 2 * dim, /* of pairs of heads */
                  mergers = a->most_spans <= 32 ? 16 : a->most_spans <= 128 ? 32 : MF_CUDA_ROW_MERGERS,
                  each = (columns + mergers - 1) / mergers, heads = dim % each == 0 ? 2 : min_i64(2 * (each / dim + 2), MF_CUDA_ROW_HEADS);
    if ((a->most_spans + 3) * heads > MF_CUDA_ROW_FACTORS ||
        (a->most_spans + 3) * (each + heads + 1) * 8 > (int64_t)4 * MF_CUDA_PIECE * dim) {
        return false;
    }
    uint8_t *exchange = state->exchange;
    int32_t block_bits = 0;
    while ((int64_t)1 << block_bits < a->block_size) {
        block_bits++;
    }
    *p = (mf_cuda_row){ .position = a->position,
                        .sequence = a->sequence,
                        .block_table = a->block_table,
                        .max_blocks = (int32_t)a->max_blocks,
                        .block_bits = block_bits,
                        .group = group,
                        .num_kv_heads = a->num_kv_heads,
                        .head_dim = a->head_dim,
                        .splits = (int32_t)splits,
                        .mergers = (int32_t)mergers,
                        .window = (int32_t)a->window,
                        .chunk = (int32_t)a->chunk,
                        .q = r->q,
                        .rows = r->rows,
                        .cos_sin = r->cos_sin,
                        .q_norm = r->q_norm,
                        .k_norm = r->k_norm,
                        .eps = r->eps,
                        .scale = a->scale,
                        .rope_dim = r->rope_dim,
                        .rope_pair = r->rope_pair,
                        .norm_after_rope = r->norm_after_rope,
                        .row_size = (int32_t)a->row_size,
                        .value_at = a->value_at,
                        .cache = r->cache,
                        .words = (uint64_t *)(exchange + MF_CUDA_ROW_FRONT),
                        .launches = (uint64_t *)exchange,
                        .sinks = a->sinks,
                        .rounded = a->rounded,
                        .out = a->out };
    return true;
}
