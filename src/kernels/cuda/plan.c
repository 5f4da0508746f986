/* plan.c - plans of the gate, the alignment, the combine and the layer's rows: see plan.h. */
#include "kernels/cuda/plan.h"

#include <string.h>

#include "kernels/align_chunks.h"
#include "kernels/carve.h"

enum { GATE_ROW_WARPS = 8, GATE_ROWS_WARPS = 16, GATE_ROWS_SLOTS = 2048, GATE_FEW_ROWS = 2, GATE_WARM_ROWS = 8 };
enum { ALIGN_MAX_SLOTS = 16384, ALIGN_ONCE_SLOTS = 1024, ALIGN_FEW_PAIRS = 1024, ALIGN_CLUSTERS = 2 };
enum { SUM_NARROW_BYTES = 16 << 20 };

static bool is_aligned(const void *data, size_t size)
{
    return (uintptr_t)data % size == 0;
}

static bool is_odd(const mf_tensor *t)
{
    return t->data && !is_aligned(t->data, mf_dtype_size(t->dtype));
}

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- gate ---- */

/* Atomics need whole words. */
static mf_status check_counter(const mf_tensor *t, const char *name, mf_error *err)
{
    return is_odd(t) ? mf_fail(err, MF_ERR_UNSUPPORTED, "%s: not 4-byte aligned; device cuda counts in whole words", name)
                     : MF_OK;
}

static int64_t warp_bytes(const mf_cuda_gate *g, bool has_keys)
{
    int64_t width = has_keys ? (g->width + 31) / 32 * 32 : 0;
    int64_t groups = g->n_group > 1 ? (g->n_group + 31) / 32 * 32 : 0;
    return MF_CUDA_GATE_COLUMNS * 8 + width * 4 + groups * 8;
}

/* Blocks so many that every multiprocessor is full, and no more: each flushes a histogram once. */
static void plan_gate_grid(const mf_cuda_gpu *gpu, const mf_cuda_gate *g, mf_cuda_grid *grid)
{
    static const int32_t sizes[] = { 1, 2, 4, 8, 12, 16, 32 };
    *grid = (mf_cuda_grid){ 0 };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && grid->values == 0; i++) {
        if (g->width <= sizes[i] * 32 && !g->bytewise) {
            grid->values = sizes[i];
        }
    }
    const bool has_keys = grid->values == 0 || g->n_group > 1;
    const int64_t counts = g->histogram && g->num_slots <= MF_CUDA_BLOCK_HISTOGRAM ? (int64_t)g->num_slots * 4 : 0;
    const int64_t each = warp_bytes(g, has_keys);
    int64_t warps = GATE_ROW_WARPS;
    /* Few rows spread over the multiprocessors; a block of its own for each. */
    while (warps > 1 && (g->num_tokens <= warps / 2 * gpu->num_multiprocessors || warps * each + counts > 48 * 1024)) {
        warps /= 2;
    }
    grid->warps = (int32_t)warps;
    grid->shared_bytes = warps * each + counts;
    const int64_t rows_at_once = (int64_t)gpu->num_multiprocessors * 4 * GATE_ROW_WARPS / warps;
    grid->blocks = min_i64((g->num_tokens + warps - 1) / warps, rows_at_once);
}

/* What gate_rows.cu does; bytewise is known. */
static bool has_usual_rows(const mf_cuda_gate *g, const mf_gate_call *call)
{
    const mf_gate_config *c = &call->cfg;
    const bool bf16 = g->logits_dtype == MF_BF16, biased = g->bias_domain != MF_BIAS_NONE;
    const int64_t piece = g->width / 32 * (bf16 ? 2 : 4); /* bytes of a lane, read as 16, 8 or 4 at a time */
    const int64_t unit = piece % 16 == 0 ? 16 : piece % 8 == 0 ? 8 : 4;
    const bool sizes = (g->width == 64 || g->width == 128 || g->width == 256 || g->width == 384) && g->width == g->num_experts &&
                       g->top_k <= 8 && g->num_shared <= 8 && g->num_tokens < INT32_MAX / 2;
    const bool groups = g->n_group <= 1 || (g->n_group == 8 && g->width == 256 && c->group_score == MF_GROUP_SCORE_TOP2_SUM &&
                                            g->scoring == MF_SCORING_SIGMOID);
    const bool scores = g->scoring == MF_SCORING_SIGMOID ? !biased || (g->bias_domain == MF_BIAS_SCORE &&
                                                                       g->bias_dtype == MF_F32 && is_aligned(g->bias, 16))
                                                         : g->scoring == MF_SCORING_SOFTMAX && !biased;
    const bool rows = (bf16 || g->logits_dtype == MF_F32) && is_aligned(g->logits, (size_t)unit) &&
                      g->logits_stride * (bf16 ? 2 : 4) % unit == 0 && g->logits_stride < INT32_MAX &&
                      g->ids_stride < INT32_MAX && g->weights_stride < INT32_MAX;
    const bool plain = !g->bytewise && !g->hash && !g->bias_alt && !g->scale && !g->map_copies && !g->mask &&
                       !g->packed && !g->by_id && g->ep_size == 0 && g->window_count < 0 &&
                       g->shared_weight != MF_SHARED_PER_TOKEN;
    const int64_t last = g->shared_base + (int64_t)(g->num_shared - 1) * g->shared_stride;
    const bool slots = g->num_slots >= g->num_experts && g->num_slots <= GATE_ROWS_SLOTS &&
                       (g->num_shared == 0 || (g->num_replicas == 1 && g->shared_base >= 0 && last < g->num_slots &&
                                               (!g->load || min_i64(g->shared_base, last) >= g->num_experts)));
    return sizes && groups && scores && rows && plain && slots;
}

/* A block a row while few are resident, a warp a row while the GPU has warps enough, then up to four rows a warp; with a
 * histogram block 0 has no rows. */
static void plan_gate_rows(const mf_cuda_gpu *gpu, const mf_cuda_gate *g, mf_cuda_grid *grid)
{
    const int64_t extra = g->histogram && g->num_tokens > 1, most = (int64_t)gpu->num_multiprocessors * 2;
    grid->rows_width = g->width;
    grid->starts_early = gpu->capability >= 90;
    grid->rows = 0;
    if (g->num_tokens <= GATE_FEW_ROWS * gpu->num_multiprocessors) {
        grid->warps = g->width / 32;
        grid->blocks = g->num_tokens + extra;
        grid->warms = grid->starts_early && g->num_tokens <= GATE_WARM_ROWS;
        return;
    }
    grid->warps = GATE_ROWS_WARPS;
    grid->rows = 1;
    while (grid->rows < 4 && g->num_tokens > (most - extra) * grid->warps * grid->rows) {
        grid->rows *= 2;
    }
    const int64_t each = (int64_t)grid->warps * grid->rows;
    grid->blocks = min_i64((g->num_tokens + each - 1) / each + extra, most);
}

mf_status mf_cuda_plan_gate(const mf_cuda_gpu *gpu, const mf_gate_call *call, mf_cuda_gate *g, mf_cuda_grid *grid,
                            bool *histogram_memset, mf_error *err)
{
    const mf_gate_args *a = call->args;
    const mf_gate_config *c = &call->cfg;
    MF_TRY(check_counter(&a->load, "load", err));
    MF_TRY(check_counter(&a->bad_rows, "bad_rows", err));
    MF_TRY(check_counter(&a->error_count, "error_count", err));
    *g = (mf_cuda_gate){
        .logits = a->router_logits.data,
        .bias = a->e_score_correction_bias.data,
        .bias_alt = a->bias_alt.data,
        .scale = a->per_expert_scale.data,
        .shared_gate = a->shared_gate.data,
        .hash_table = a->hash_table.data,
        .token_ids = a->token_ids.data,
        .map = call->map_copies ? a->expert_map.data : NULL,
        .copies = a->expert_copies.data,
        .num_valid = a->num_valid_tokens.data,
        .row_is_alt = a->row_is_alt.data,
        .mask = a->expert_mask.data,
        .row_valid = a->row_valid.data,
        .logits_stride = a->router_logits.stride[0],
        .hash_stride = a->hash_table.stride[0],
        .hash_rows = call->hash_rows,
        .map_stride = a->expert_map.stride[0],
        .ids = a->topk_ids.data,
        .weights = a->topk_weights.data,
        .identity = a->identity_weight.data,
        .packed = c->pack ? a->packed.data : NULL,
        .histogram = a->histogram.data,
        .load = a->load.data,
        .bad_rows = a->bad_rows.data,
        .errors = a->error_count.data,
        .ids_stride = a->topk_ids.stride[0],
        .weights_stride = a->topk_weights.stride[0],
        .packed_stride = a->packed.stride[0],
        .num_tokens = call->num_tokens,
        .row_base = a->row_base,
        .window_first = c->window_first,
        .window_count = c->window_count,
        .width = call->row_width,
        .num_experts = c->num_experts,
        .top_k = c->top_k,
        .num_shared = c->num_shared_slots,
        .num_columns = call->num_columns,
        .num_slots = c->num_slots,
        .num_replicas = c->num_replicas,
        .num_physical = c->num_physical_experts,
        .shared_base = c->shared_base,
        .shared_stride = c->shared_stride,
        .ep_size = c->ep_size,
        .ep_rank = c->ep_rank,
        .n_group = c->n_group,
        .topk_group = c->topk_group,
        .group_size = call->row_width / c->n_group,
        .group_shift = -1,
        .scoring = (int32_t)c->scoring,
        .bias_domain = (int32_t)c->bias_domain,
        .renorm = (int32_t)c->renorm,
        .group_score = (int32_t)c->group_score,
        .shared_weight = (int32_t)c->shared_weight,
        .fold = c->fold_scale != 0,
        .by_id = c->out_order == MF_ORDER_ID,
        .hash = c->hash != 0,
        .map_copies = call->map_copies,
        .logits_dtype = (int32_t)a->router_logits.dtype,
        .bias_dtype = (int32_t)a->e_score_correction_bias.dtype,
        .bias_alt_dtype = (int32_t)a->bias_alt.dtype,
        .shared_gate_dtype = (int32_t)a->shared_gate.dtype,
        .token_i64 = a->token_ids.dtype == MF_I64,
        .renorm_eps = call->renorm_eps,
        .factor = call->routed_scaling_factor,
    };
    for (int32_t s = 0; s < 13; s++) {
        if (g->group_size == 1 << s) {
            g->group_shift = s;
        }
    }
    const mf_tensor *const views[] = { &a->router_logits, &a->e_score_correction_bias, &a->bias_alt, &a->per_expert_scale,
                                       &a->shared_gate,   &a->hash_table,              &a->token_ids, &a->expert_map,
                                       &a->expert_copies, &a->num_valid_tokens,        &a->topk_ids,  &a->topk_weights,
                                       &a->identity_weight, &a->packed,                &a->histogram };
    for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
        g->bytewise |= is_odd(views[i]);
    }
    *histogram_memset = g->histogram && g->num_slots > MF_CUDA_HISTOGRAM_SLOTS;
    g->counts_to_output = *histogram_memset;
    if (*histogram_memset) {
        MF_TRY(check_counter(&a->histogram, "histogram", err));
    }
    plan_gate_grid(gpu, g, grid);
    if (!g->counts_to_output && has_usual_rows(g, call)) {
        plan_gate_rows(gpu, g, grid);
    }
    return MF_OK;
}

void mf_cuda_plan_gate_steps(const mf_cuda_gpu *gpu, const mf_gate_call *call, void *workspace, mf_cuda_gate *g,
                             mf_cuda_grid *grid)
{
    const int64_t tokens = call->num_tokens;
    size_t total = 0;
    g->ws_keys = mf_carve(workspace, &total, tokens * call->row_width, 4);
    g->ws_stats = mf_carve(workspace, &total, tokens * 2, 4);
    g->ws_flags = mf_carve(workspace, &total, tokens, 4);
    g->ws_ids = mf_carve(workspace, &total, tokens * call->cfg.top_k, 4);
    int32_t bytewise = g->bytewise;
    g->bytewise = 1; /* the general kernel */
    plan_gate_grid(gpu, g, grid);
    g->bytewise = bytewise;
}

/* ---- align ---- */

/* One launch: of few pairs every block counts all, and makes a piece of the output, 8 KiB or, for huge capacities,
 * more; of more the blocks of a cluster count a run each.  More than 120 multiprocessors leave one of the GPU's eight
 * parts 16. */
static void plan_align_once(const mf_cuda_gpu *gpu, mf_cuda_align *a)
{
    const bool has_clusters = gpu->capability == 90;
    int64_t blocks, warps;
    if (a->bytewise || a->num_slots > ALIGN_ONCE_SLOTS) {
        return;
    }
    if (a->num_pairs <= (has_clusters ? ALIGN_FEW_PAIRS : MF_ALIGN_CHUNK)) {
        const int64_t most_blocks = (int64_t)gpu->num_multiprocessors * 2;
        const int64_t each = (a->capacity + most_blocks - 1) / most_blocks;
        a->slice = (int32_t)(each > 2048 ? (each + 3) / 4 * 4 : 2048);
        warps = a->num_pairs > ALIGN_FEW_PAIRS ? 32 : 16;
        blocks = a->capacity > 0 ? (a->capacity - 1) / a->slice + 1 : 1;
    } else if (has_clusters) {
        a->shares = a->num_pairs > MF_ALIGN_CHUNK && gpu->num_multiprocessors > 120 ? 16 : 8;
        a->run = (int32_t)(((a->num_pairs + a->shares - 1) / a->shares + 31) / 32 * 32);
        warps = a->run > 512 ? 32 : 16;
        blocks = a->shares * ALIGN_CLUSTERS;
    } else {
        return;
    }
    if (a->run <= MF_CUDA_ALIGN_STEPS * 1024 &&
        mf_cuda_align_shared(a->num_slots, (int32_t)warps, a->shares, a->slice) + 1024 <= gpu->shared_bytes) {
        a->once_blocks = (int32_t)blocks;
    }
}

mf_status mf_cuda_plan_align(const mf_cuda_gpu *gpu, const mf_align_call *call, mf_cuda_align *out, mf_error *err)
{
    const mf_align_args *a = call->args;
    /* Totals, starts and one warp's table lie in shared memory. */
    const int64_t most = min_i64(ALIGN_MAX_SLOTS, (gpu->shared_bytes - 1024) / 12);
    if (call->num_slots > most) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "num_slots %lld: this GPU aligns at most %lld", (long long)call->num_slots,
                       (long long)most);
    }
    MF_TRY(check_counter(&a->error_count, "error_count", err));
    const int64_t pairs = call->num_tokens * call->num_columns, chunks = mf_align_chunks(pairs, call->num_slots);
    *out = (mf_cuda_align){ .ids = a->topk_ids.data,
                            .ids_stride = a->topk_ids.stride[0],
                            .sorted = a->sorted_token_ids.data,
                            .experts = a->expert_ids.data,
                            .total = a->num_tokens_post_padded.data,
                            .offsets = a->offsets.data,
                            .errors = a->error_count.data,
                            .num_pairs = pairs,
                            .num_columns = call->num_columns,
                            .block_size = min_i64(call->block_size, INT32_MAX), /* more only without pairs */
                            .capacity = call->capacity,
                            .num_slots = (int32_t)call->num_slots,
                            .chunks = (int32_t)chunks,
                            .chunk = (pairs + chunks - 1) / chunks,
                            .counts = call->workspace };
    out->bytewise = is_odd(&a->topk_ids) || is_odd(&a->sorted_token_ids) || is_odd(&a->expert_ids) ||
                    is_odd(&a->num_tokens_post_padded) || is_odd(&a->offsets);
    /* A table of counts per walking warp; the fewer slots, the more warps, but no more than have 32 pairs. */
    const int64_t row = call->num_slots * 4, room = (gpu->shared_bytes - 1024) / row - 2;
    int64_t warps = min_i64(min_i64(32, room), (out->chunk + 31) / 32);
    const int64_t threads = pairs > 512 || call->num_slots > 2048 ? 1024 : 256; /* as align.cu launches */
    warps = min_i64(warps, threads / 32);
    out->warps = (int32_t)(warps < 1 ? 1 : warps);
    out->starts_early = gpu->capability >= 90;
    out->wide = !out->bytewise && is_aligned(out->sorted, 16);
    out->block_shift = -1;
    for (int32_t s = 0; s < 31; s++) {
        if (out->block_size == (int64_t)1 << s) {
            out->block_shift = s;
        }
    }
    out->num_blocks = out->capacity / out->block_size;
    plan_align_once(gpu, out);
    return MF_OK;
}

/* ---- sum-reduce ---- */

/* Rows start at multiples of 16 bytes. */
static bool has_wide_rows(const mf_tensor *t)
{
    if (!t->data) {
        return true;
    }
    int64_t size = (int64_t)mf_dtype_size(t->dtype);
    bool ok = is_aligned(t->data, 16);
    for (int32_t i = 0; i + 1 < t->ndim; i++) {
        ok = ok && (t->shape[i] <= 1 || t->stride[i] * size % 16 == 0);
    }
    return ok;
}

mf_status mf_cuda_plan_sum(const mf_cuda_gpu *gpu, const mf_sum_reduce_call *call, bool has_x, mf_cuda_sum *out, mf_error *err)
{
    const mf_sum_reduce_args *a = call->args;
    if (a->num_addends > MF_CUDA_MAX_ADDENDS) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "num_addends %d: device cuda adds at most %d", (int)a->num_addends,
                       MF_CUDA_MAX_ADDENDS);
    }
    *out = (mf_cuda_sum){ .x = has_x ? a->x.data : NULL,
                          .ids = a->topk_ids.data,
                          .weights = a->topk_weights.data,
                          .identity = a->identity_weight.data,
                          .hidden = a->hidden.data,
                          .addend_weights = a->addend_weights.data,
                          .residual = a->residual.data,
                          .num_valid = a->num_valid_tokens.data,
                          .row_valid = a->row_valid.data,
                          .out = a->out.data,
                          .x_stride = a->x.stride[0],
                          .column_stride = a->x.stride[1],
                          .ids_stride = a->topk_ids.stride[0],
                          .weights_stride = a->topk_weights.stride[0],
                          .hidden_stride = a->hidden.stride[0],
                          .addend_weights_stride = a->addend_weights.stride[0],
                          .residual_stride = a->residual.stride[0],
                          .out_stride = a->out.stride[0],
                          .num_tokens = call->num_tokens,
                          .hidden_size = call->hidden_size,
                          .num_columns = (int32_t)call->num_columns,
                          .num_shared = a->num_shared_columns,
                          .num_addends = a->num_addends,
                          .dtype = (int32_t)a->x.dtype,
                          .out_dtype = (int32_t)a->out.dtype,
                          .factor = a->routed_scaling_factor };
    const int64_t vector = 16 / (int64_t)mf_dtype_size(a->x.dtype);
    bool wide = call->hidden_size % vector == 0 && a->x.dtype != MF_F64 && has_wide_rows(&a->hidden) && has_wide_rows(&a->out);
    wide = wide && (!has_x || has_wide_rows(&a->x));
    bool odd = (has_x && is_odd(&a->x)) || is_odd(&a->topk_ids) || is_odd(&a->topk_weights) || is_odd(&a->identity_weight) ||
               is_odd(&a->hidden) || is_odd(&a->addend_weights) || is_odd(&a->residual) || is_odd(&a->num_valid_tokens) ||
               is_odd(&a->out);
    for (int32_t i = 0; i < a->num_addends; i++) {
        out->addends[i] = a->addends[i].data;
        out->addend_strides[i] = a->addends[i].stride[0];
        wide = wide && has_wide_rows(&a->addends[i]);
        odd = odd || is_odd(&a->addends[i]);
    }
    out->vector = wide && !odd ? (int32_t)vector : 1;
    /* While all of it is in the L2 cache, more threads of less each find their data sooner. */
    const int64_t bytes = call->num_tokens * call->num_columns * call->hidden_size * 2;
    out->narrow = a->x.dtype == MF_BF16 && bytes <= SUM_NARROW_BYTES;
    out->bytewise = odd;
    out->wide_residual = has_wide_rows(&a->residual);
    out->starts_early = gpu->capability >= 90;
    return MF_OK;
}

/* ---- the layer's rows ---- */

void mf_cuda_plan_layer_rows(const mf_layer_rows_call *call, mf_cuda_layer_rows *out)
{
    const mf_gate_args *g = call->gate;
    *out = (mf_cuda_layer_rows){ .num_tokens = call->num_tokens,
                                 .num_columns = call->num_columns,
                                 .num_routed = call->num_routed,
                                 .num_shared = call->num_shared,
                                 .hidden_size = call->hidden_size,
                                 .row_width = g->router_logits.shape[1],
                                 .num_experts = call->config->num_experts,
                                 .num_valid = g->num_valid_tokens.data,
                                 .token_ids = g->token_ids.data,
                                 .weights = g->topk_weights.data,
                                 .shared_gate = call->shared_gate.data,
                                 .logits = g->router_logits.data,
                                 .x = call->x.data,
                                 .hash_table = g->hash_table.data,
                                 .row_valid_in = g->row_valid.data,
                                 .weights_stride = g->topk_weights.stride[0],
                                 .x_stride = call->x.stride[0],
                                 .logits_stride = g->router_logits.stride[0],
                                 .hash_rows = g->hash_table.shape[0],
                                 .hash_stride = g->hash_table.stride[0],
                                 .hash = call->config->hash != 0,
                                 .token_i64 = g->token_ids.dtype == MF_I64,
                                 .logits_dtype = (int32_t)g->router_logits.dtype,
                                 .x_dtype = (int32_t)call->x.dtype,
                                 .top_k = call->config->top_k,
                                 .row_valid = call->row_valid.data,
                                 .input_scale = call->input_scale.data,
                                 .combine_weights = call->combine_weights.data,
                                 .shared_weights = call->shared_weights.data,
                                 .hidden = call->hidden.data,
                                 .shared_ids = call->shared_ids.data,
                                 .bad_rows = g->bad_rows.data };
}
