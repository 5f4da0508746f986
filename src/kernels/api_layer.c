/* api_layer.c - mf_moe_layer: gate -> experts -> sum-reduce, from the public operations.
 *
 * The three modes differ in where a shared chunk's rows come from - columns of the grouped product (SLOT) or a product
 * of their own whose rows enter the combine as addends (OVERLAP, SERIAL) - and in nothing that is rounded, so they
 * agree to the bit.  Everything in between lives in the caller's workspace. */
#include <math.h>

#include "kernels/activation.h"
#include "kernels/carve.h"
#include "kernels/fp_env.h"
#include "kernels/ref/canonical.h"
#include "kernels/tensor_check.h"

/* Tokens that go through experts and combine together where the backend does both at once: bounds the workspace. */
enum { MAX_SHARED = MF_GATE_MAX_SHARED, CHUNK_TOKENS = 1024 };

/* What the layer runs: a copy of the gate's arguments with its outputs filled in, and views into the workspace. */
typedef struct layer_run {
    const mf_layer_args *args;
    int64_t num_tokens, hidden_size;
    int64_t num_routed; /* K */
    int64_t num_shared; /* S, in whichever mode */
    int64_t chunk;      /* tokens between gate and out at a time */
    bool is_slot, scales_input, has_shared_weights;
    bool masks_rows;    /* some rows may not take part: row_valid is made */
    bool overlaps;      /* the shared MLP runs beside the routed experts, with scratch of its own */
    bool starts_beside; /* it does so beside the gate already */
    bool is_combined;   /* experts and combine are one operation of the backend: no y */
    mf_gate_config config;
    mf_gate_args gate;
    mf_tensor y;               /* [chunk, C, H]; is_combined: dtype and shape only */
    mf_tensor shared_ids;      /* [T, S]; not SLOT */
    mf_tensor shared_y;        /* [chunk, S, H]; not SLOT */
    mf_tensor shared_weights;  /* f32 [T, S]; not SLOT, PER_TOKEN */
    mf_tensor row_valid;       /* u8 [T] */
    mf_tensor input_scale;     /* f32 [T, C]; TOPK_SIGMOID */
    mf_tensor combine_weights; /* f32 [T, C]; TOPK_SIGMOID */
    mf_tensor hidden;          /* x in y_dtype; with zero experts */
    void *scratch;             /* of the unfused gate and of the experts, one after the other */
    size_t scratch_bytes;
    void *shared_scratch; /* of the shared MLP: the same unless it overlaps */
    size_t shared_scratch_bytes;
    size_t total_bytes;
} layer_run;

static mf_tensor carve_2d(uint8_t *base, size_t *total, mf_dtype dtype, int64_t n0, int64_t n1)
{
    return mf_tensor_2d(mf_carve(base, total, mf_carve_count(n0, n1, 1), mf_dtype_size(dtype)), dtype, n0, n1);
}

static mf_tensor carve_3d(uint8_t *base, size_t *total, mf_dtype dtype, int64_t n0, int64_t n1, int64_t n2)
{
    return mf_tensor_3d(mf_carve(base, total, mf_carve_count(n0, n1, n2), mf_dtype_size(dtype)), dtype, n0, n1, n2);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Fills the views over base (NULL: sizes only).  Needs pointers and counts that check_shapes has seen. */
static void lay_out(layer_run *run, const mf_layer_args *args, uint8_t *base)
{
    const int64_t tokens = args->x.shape[0];
    const int64_t hidden = args->x.shape[1];
    *run = (layer_run){ .args = args, .num_tokens = tokens, .hidden_size = hidden, .gate = *args->gate };
    run->config = *args->gate->config;
    run->gate.config = &run->config;
    run->is_slot = args->mode == MF_MODE_SLOT;
    run->num_routed = run->config.top_k;
    run->num_shared = run->is_slot ? run->config.num_shared_slots : args->shared ? args->shared->num_slots : 0;
    run->scales_input = run->config.scoring == MF_SCORING_TOPK_SIGMOID;
    run->config.input_scale_supported = 1;
    if (!run->is_slot) {
        run->has_shared_weights = run->num_shared > 0 && run->config.shared_weight == MF_SHARED_PER_TOKEN;
        run->config.shared_weight = MF_SHARED_ONE; /* the gate writes no shared column here */
    }
    const int64_t columns = run->num_routed + (run->is_slot ? run->num_shared : 0);
    size_t *total = &run->total_bytes;

    if (!mf_tensor_present(&run->gate.topk_ids)) {
        run->gate.topk_ids = carve_2d(base, total, MF_I32, tokens, columns);
    }
    if (!mf_tensor_present(&run->gate.topk_weights)) {
        run->gate.topk_weights = carve_2d(base, total, MF_F32, tokens, columns);
    }
    if (run->config.num_zero_experts > 0) {
        if (!mf_tensor_present(&run->gate.identity_weight)) {
            run->gate.identity_weight = mf_tensor_1d(mf_carve(base, total, tokens, 4), MF_F32, tokens);
        }
        run->hidden = args->x;
        if (args->x.dtype != args->y_dtype) {
            run->hidden = carve_2d(base, total, args->y_dtype, tokens, hidden);
        }
    }
    run->masks_rows = run->config.hash || mf_tensor_present(&run->gate.num_valid_tokens) ||
                      mf_tensor_present(&run->gate.row_valid);
    run->row_valid = mf_tensor_1d(mf_carve(base, total, tokens, 1), MF_U8, tokens);
    if (run->scales_input) {
        run->input_scale = carve_2d(base, total, MF_F32, tokens, columns);
        run->combine_weights = carve_2d(base, total, MF_F32, tokens, columns);
    }
    const mf_device_ops *ops = args->experts->device->ops;
    run->is_combined = ops->experts_combine != NULL;
    const int64_t chunk = ops->layer_chunk_tokens ? ops->layer_chunk_tokens : CHUNK_TOKENS;
    run->chunk = run->is_combined && tokens > chunk ? chunk : tokens;
    size_t scratch = 0;
    if (run->is_combined) {
        run->y = mf_tensor_3d(NULL, args->y_dtype, run->chunk, columns, hidden);
        scratch = tokens ? ops->experts_combine_workspace_bytes(args->experts, run->chunk, columns, args->y_dtype) : 0;
    } else {
        run->y = carve_3d(base, total, args->y_dtype, tokens, columns, hidden);
        scratch = mf_fused_experts_workspace_bytes(args->experts, tokens, columns);
    }
    if (!run->is_slot && run->num_shared > 0) {
        run->shared_ids = carve_2d(base, total, MF_I32, tokens, run->num_shared);
        run->shared_y = carve_3d(base, total, args->y_dtype, run->chunk, run->num_shared, hidden);
        if (run->has_shared_weights) {
            run->shared_weights = carve_2d(base, total, MF_F32, tokens, run->num_shared);
        }
        const size_t shared = mf_fused_experts_workspace_bytes(args->shared, run->chunk, run->num_shared);
        run->overlaps = args->mode == MF_MODE_OVERLAP && ops->beside_begin;
        if (run->overlaps && shared != SIZE_MAX) {
            run->shared_scratch = mf_carve(base, total, (int64_t)shared, 1);
            run->shared_scratch_bytes = shared;
        } else {
            scratch = larger(scratch, shared);
        }
    }
    if (args->unfused_gate) {
        scratch = larger(scratch, mf_moe_gate_workspace_bytes(&run->gate));
    }
    run->scratch_bytes = scratch;
    run->scratch = scratch == SIZE_MAX ? mf_carve(base, total, -1, 1) : mf_carve(base, total, (int64_t)scratch, 1);
    if (!run->shared_scratch_bytes) {
        run->shared_scratch = run->scratch;
        run->shared_scratch_bytes = scratch;
    }
    /* The gate has checked a mask and ids by the time that they are read. */
    run->starts_beside = run->overlaps && !run->masks_rows && !run->scales_input && !mf_tensor_present(&run->hidden) &&
                         tokens > 0 && tokens <= run->chunk;
}

/* Enough of the arguments to lay out the workspace. */
static mf_status check_shapes(const mf_layer_args *args, mf_error *err)
{
    if (!args || !args->gate || !args->gate->config || !args->experts) {
        return mf_fail(err, MF_ERR_INVALID, "%s is NULL",
                       !args                 ? "args"
                       : !args->gate         ? "gate"
                       : !args->gate->config ? "gate config"
                                             : "experts");
    }
    const mf_gate_config *config = args->gate->config;
    if ((unsigned)args->mode > MF_MODE_SERIAL) {
        return mf_fail(err, MF_ERR_INVALID, "mode %d; expected SLOT, OVERLAP or SERIAL", (int)args->mode);
    }
    if (args->y_dtype != MF_F32 && args->y_dtype != MF_BF16 && args->y_dtype != MF_F16) {
        return mf_fail(err, MF_ERR_INVALID, "y_dtype %s; expected f32, bf16 or f16", mf_dtype_name(args->y_dtype));
    }
    if (config->top_k < 1 || config->top_k > MF_GATE_MAX_TOP_K) {
        return mf_fail(err, MF_ERR_INVALID, "top_k %d; expected 1 to %d", (int)config->top_k, MF_GATE_MAX_TOP_K);
    }
    if (config->num_shared_slots < 0 || config->num_shared_slots > MAX_SHARED) {
        return mf_fail(err, MF_ERR_INVALID, "num_shared_slots %d; expected 0 to %d", (int)config->num_shared_slots,
                       MAX_SHARED);
    }
    MF_TRY(mf_check_2d(&args->x, "x", MF_DT(args->experts->act_dtype), MF_ANY, args->experts->hidden_size, err));
    if (args->mode == MF_MODE_SLOT) {
        return args->shared
                   ? mf_fail(err, MF_ERR_INVALID, "shared: given in mode SLOT; expected its chunks among the slots")
                   : MF_OK;
    }
    if (config->num_shared_slots != 0) {
        return mf_fail(err, MF_ERR_INVALID, "num_shared_slots %d in mode %s; expected 0", (int)config->num_shared_slots,
                       mf_layer_mode_name(args->mode));
    }
    if (args->shared && args->shared->num_slots > MAX_SHARED) {
        return mf_fail(err, MF_ERR_INVALID, "shared: %lld chunks; expected at most %d",
                       (long long)args->shared->num_slots, MAX_SHARED);
    }
    return MF_OK;
}

/* The gate's table of slots and the experts' must be the same one; a window or per-rank numbering makes ids local. */
static mf_status check_slots(const mf_layer_args *args, mf_error *err)
{
    const mf_gate_config *config = args->gate->config;
    if (config->window_count >= 0 || config->ep_size > 0) {
        return MF_OK;
    }
    int64_t physical = config->num_physical_experts >= 0 ? config->num_physical_experts : config->num_experts;
    int64_t shared = (int64_t)config->num_shared_slots * config->num_replicas;
    int64_t slots = config->num_slots >= 0 ? config->num_slots : physical + shared;
    if (args->experts->num_slots != slots) {
        return mf_fail(err, MF_ERR_INVALID, "experts: %lld slots; the gate's configuration has %lld",
                       (long long)args->experts->num_slots, (long long)slots);
    }
    return MF_OK;
}

static mf_status check_layer(const mf_device *device, const mf_layer_args *args, mf_error *err)
{
    const mf_gate_config *config = args->gate->config;
    const int64_t tokens = args->x.shape[0];
    const int64_t hidden = args->experts->hidden_size;
    MF_TRY(check_slots(args, err));
    if (args->experts->device != device || (args->shared && args->shared->device != device)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: created for another device",
                       args->experts->device != device ? "experts" : "shared");
    }
    MF_TRY(mf_check_2d(&args->gate->router_logits, "router_logits", MF_DT_FLOAT3, tokens, MF_ANY, err));
    MF_TRY(mf_check_2d(&args->out, "out", MF_DT_FLOAT3, tokens, hidden, err));
    MF_TRY(mf_check_optional_2d(&args->residual, "residual", MF_DT(args->out.dtype), tokens, hidden, err));
    if (config->shared_weight == MF_SHARED_RECIPROCAL) {
        return mf_fail(err, MF_ERR_INVALID,
                       "shared_weight RECIPROCAL: the layer's combine scales routed columns only; "
                       "expected ONE or PER_TOKEN");
    }
    bool gated = args->mode != MF_MODE_SLOT && args->shared && config->shared_weight == MF_SHARED_PER_TOKEN;
    if (gated != mf_tensor_present(&args->shared_gate_weight)) {
        return mf_fail(err, MF_ERR_INVALID, "shared_gate_weight: %s",
                       gated ? "missing with shared_weight PER_TOKEN"
                             : "given without a PER_TOKEN shared MLP of its own");
    }
    if (gated) {
        MF_TRY(mf_check_1d(&args->shared_gate_weight, "shared_gate_weight", MF_DT(MF_F32), tokens, err));
    }
    if (args->shared && args->shared->hidden_size != hidden) {
        return mf_fail(err, MF_ERR_INVALID, "shared: hidden_size %lld; expected %lld",
                       (long long)args->shared->hidden_size, (long long)hidden);
    }
    if (args->shared && args->shared->act_dtype != args->experts->act_dtype) {
        return mf_fail(err, MF_ERR_INVALID, "shared: act_dtype %s; expected that of the routed experts, %s",
                       mf_dtype_name(args->shared->act_dtype), mf_dtype_name(args->experts->act_dtype));
    }
    if (config->num_zero_experts > 0 && args->y_dtype != args->x.dtype && args->y_dtype != MF_F32) {
        return mf_fail(err, MF_ERR_INVALID, "y_dtype %s: a zero expert adds x itself; expected f32 or x's dtype, %s",
                       mf_dtype_name(args->y_dtype), mf_dtype_name(args->x.dtype));
    }
    return MF_OK;
}

static const uint8_t *at(const mf_tensor *t, int64_t i, int64_t j)
{
    return (const uint8_t *)t->data + (i * t->stride[0] + j) * (int64_t)mf_dtype_size(t->dtype);
}

static float f32_at(const mf_tensor *t, int64_t i, int64_t j)
{
    float v;
    memcpy(&v, at(t, i, j), 4);
    return v;
}

/* Rows that take part: the caller's mask, without rows whose token id lies outside the hash table.  The combine must
 * leave such rows alone in every mode, and a separate shared MLP has no ids that would say so. */
static void find_valid_rows(const layer_run *run)
{
    const mf_gate_args *gate = &run->gate;
    int64_t limit = run->num_tokens;
    if (gate->num_valid_tokens.data) {
        int32_t n;
        memcpy(&n, gate->num_valid_tokens.data, 4);
        limit = n < 0 ? 0 : n < limit ? n : limit;
    }
    uint8_t *valid = run->row_valid.data;
    for (int64_t t = 0; t < run->num_tokens; t++) {
        bool ok = t < limit && (!gate->row_valid.data || *at(&gate->row_valid, t, 0) != 0);
        if (ok && run->config.hash) {
            int64_t token;
            if (gate->token_ids.dtype == MF_I64) {
                memcpy(&token, at(&gate->token_ids, t, 0), 8);
            } else {
                int32_t narrow;
                memcpy(&narrow, at(&gate->token_ids, t, 0), 4);
                token = narrow;
            }
            ok = token >= 0 && token < gate->hash_table.shape[0];
        }
        valid[t] = ok;
    }
}

static bool row_has_nan(const mf_tensor *logits, int64_t t)
{
    for (int64_t i = 0; i < logits->shape[1]; i++) {
        float v;
        mf_load_row(at(logits, t, i), logits->dtype, 1, &v);
        if (mf_is_nan(v)) {
            return true;
        }
    }
    return false;
}

/* With HASH the gate reads the logits of the row's own experts only. */
static bool hashed_row_has_nan(const layer_run *run, int64_t t)
{
    const mf_gate_args *gate = &run->gate;
    int64_t token = 0;
    if (gate->token_ids.dtype == MF_I64) {
        memcpy(&token, at(&gate->token_ids, t, 0), 8);
    } else {
        int32_t narrow;
        memcpy(&narrow, at(&gate->token_ids, t, 0), 4);
        token = narrow;
    }
    for (int64_t k = 0; k < run->num_routed; k++) {
        int32_t id;
        float v;
        memcpy(&id, at(&gate->hash_table, token, k), 4);
        if (id >= 0 && id < run->config.num_experts) {
            mf_load_row(at(&gate->router_logits, t, id), gate->router_logits.dtype, 1, &v);
            if (mf_is_nan(v)) {
                return true;
            }
        }
    }
    return false;
}

/* ids and weights of the separate shared MLP: what the gate would have written into its columns. */
static MF_NOINLINE void write_shared_columns(const layer_run *run)
{
    const uint8_t *valid = run->row_valid.data;
    int32_t *ids = run->shared_ids.data;
    float *weights = run->shared_weights.data;
    const int64_t shared = run->num_shared;
    for (int64_t t = 0; t < run->num_tokens; t++) {
        float weight = 0.0f;
        if (valid[t] && run->has_shared_weights) {
            float logit = f32_at(&run->args->shared_gate_weight, t, 0);
            if (!mf_is_nan(logit)) {
                weight = mf_canon_zero(mf_sigmoid(mf_canon_input(logit)));
            } else if (run->gate.bad_rows.data &&
                       !(run->config.hash ? hashed_row_has_nan(run, t) : row_has_nan(&run->gate.router_logits, t))) {
                int32_t count; /* the gate has counted rows whose logits hold a NaN */
                memcpy(&count, run->gate.bad_rows.data, 4);
                count = (int32_t)((uint32_t)count + 1u);
                memcpy(run->gate.bad_rows.data, &count, 4);
            }
        }
        for (int64_t j = 0; j < shared; j++) {
            ids[t * shared + j] = valid[t] ? (int32_t)j : -1;
            if (weights) {
                weights[t * shared + j] = weight;
            }
        }
    }
}

/* TOPK_SIGMOID: a routed weight scales the expert's input and the combine then takes 1; shared columns the other way.
 */
static void split_weights(const layer_run *run)
{
    const int64_t columns = run->y.shape[1];
    float *scale = run->input_scale.data;
    float *weights = run->combine_weights.data;
    for (int64_t t = 0; t < run->num_tokens; t++) {
        for (int64_t c = 0; c < columns; c++) {
            float w = f32_at(&run->gate.topk_weights, t, c);
            bool routed = c < run->num_routed;
            scale[t * columns + c] = routed ? w : 1.0f;
            weights[t * columns + c] = routed ? 1.0f : w;
        }
    }
}

static void widen_hidden(const layer_run *run)
{
    for (int64_t t = 0; t < run->num_tokens; t++) {
        mf_load_row(at(&run->args->x, t, 0), run->args->x.dtype, run->hidden_size,
                    (float *)run->hidden.data + t * run->hidden_size);
    }
}

/* Rows [first, first + count) of a tensor; absent stays absent. */
static mf_tensor rows_of(const mf_tensor *t, int64_t first, int64_t count)
{
    mf_tensor view = *t;
    if (view.data) {
        view.data = (uint8_t *)view.data + first * view.stride[0] * (int64_t)mf_dtype_size(view.dtype);
        view.shape[0] = count;
    }
    return view;
}

/* The combine of `count` tokens from `first`.  addends: room for MAX_SHARED. */
static mf_sum_reduce_args combine_args(const layer_run *run, int64_t first, int64_t count, mf_tensor *addends)
{
    const mf_layer_args *args = run->args;
    mf_sum_reduce_args sum = {
        .x = run->y,
        .topk_ids = rows_of(&run->gate.topk_ids, first, count),
        .topk_weights = rows_of(run->scales_input ? &run->combine_weights : &run->gate.topk_weights, first, count),
        .routed_scaling_factor = run->config.fold_scale ? 1.0f : (float)run->config.routed_scaling_factor,
        .num_shared_columns = run->is_slot ? (int32_t)run->num_shared : 0,
        .residual = rows_of(&args->residual, first, count),
        .row_valid = run->masks_rows ? rows_of(&run->row_valid, first, count) : (mf_tensor){ 0 },
        .out = rows_of(&args->out, first, count),
    };
    sum.x.shape[0] = count;
    if (run->config.num_zero_experts > 0) {
        sum.identity_weight = rows_of(&run->gate.identity_weight, first, count);
        sum.hidden = rows_of(&run->hidden, first, count);
    }
    if (!run->is_slot && run->num_shared > 0) {
        size_t row_bytes = (size_t)run->hidden_size * mf_dtype_size(args->y_dtype);
        for (int64_t a = 0; a < run->num_shared; a++) {
            uint8_t *row = (uint8_t *)run->shared_y.data + (size_t)a * row_bytes;
            addends[a] = mf_tensor_2d(row, args->y_dtype, count, run->hidden_size);
            addends[a].stride[0] = run->num_shared * run->hidden_size;
        }
        sum.addends = addends;
        sum.num_addends = (int32_t)run->num_shared;
        sum.addend_weights = rows_of(&run->shared_weights, first, count);
    }
    return sum;
}

static mf_status run_shared(mf_device *device, const layer_run *run, int64_t first, int64_t count, mf_error *err)
{
    const mf_experts_args shared = { .experts = run->args->shared,
                                     .x = rows_of(&run->args->x, first, count),
                                     .topk_ids = rows_of(&run->shared_ids, first, count),
                                     .y = rows_of(&run->shared_y, 0, count) };
    return mf_fused_experts(device, &shared, run->shared_scratch, run->shared_scratch_bytes, err);
}

static mf_status prepare_rows(mf_device *device, const layer_run *run, mf_error *err);

/* The shared MLP on the second stream; prepares: with the rows' preparation in front of it, there too. */
static mf_status run_beside(mf_device *device, const layer_run *run, int64_t first, int64_t count, bool prepares,
                            mf_error *err)
{
    MF_TRY(device->ops->beside_begin(device, err));
    mf_status status = prepares ? prepare_rows(device, run, err) : MF_OK;
    if (status == MF_OK) {
        status = run_shared(device, run, first, count, err);
    }
    mf_error ignored;
    const mf_status ended = device->ops->beside_end(device, status == MF_OK ? err : &ignored);
    return status == MF_OK ? ended : status;
}

/* Experts and combine of `count` tokens from `first`. */
static mf_status run_chunk(mf_device *device, const layer_run *run, int64_t first, int64_t count, mf_error *err)
{
    const mf_layer_args *args = run->args;
    mf_tensor addends[MAX_SHARED];
    const mf_sum_reduce_args sum = combine_args(run, first, count, addends);
    if (run->overlaps && !run->starts_beside) {
        MF_TRY(run_beside(device, run, first, count, false, err));
    } else if (!run->overlaps && !run->is_slot && run->num_shared > 0) {
        MF_TRY(run_shared(device, run, first, count, err));
    }
    mf_experts_args routed = { .experts = args->experts,
                               .x = rows_of(&args->x, first, count),
                               .topk_ids = rows_of(&run->gate.topk_ids, first, count),
                               .input_scale = rows_of(&run->input_scale, first, count),
                               .y = run->y };
    if (!run->is_combined) {
        MF_TRY(mf_fused_experts(device, &routed, run->scratch, run->scratch_bytes, err));
        return mf_moe_sum_reduce(device, &sum, err);
    }
    mf_sum_reduce_call sum_call;
    MF_TRY(mf_sum_reduce_check(device, &sum, false, &sum_call, err));
    const mf_experts_call call = { .experts = args->experts,
                                   .args = &routed,
                                   .num_tokens = count,
                                   .num_columns = run->y.shape[1],
                                   .workspace = run->scratch };
    return device->ops->experts_combine(device, &call, &sum_call, err);
}

static mf_status prepare_rows(mf_device *device, const layer_run *run, mf_error *err)
{
    const bool widens = run->config.num_zero_experts > 0 && run->args->x.dtype != run->args->y_dtype;
    const bool separate = !run->is_slot && run->num_shared > 0;
    if (device->ops->layer_rows && !run->masks_rows && !run->scales_input && !widens && !separate) {
        return MF_OK;
    }
    if (device->ops->layer_rows) {
        const mf_layer_rows_call call = { .gate = &run->gate,
                                          .config = &run->config,
                                          .num_tokens = run->num_tokens,
                                          .num_columns = run->y.shape[1],
                                          .num_routed = run->num_routed,
                                          .num_shared = run->num_shared,
                                          .hidden_size = run->hidden_size,
                                          .x = run->args->x,
                                          .shared_gate = run->args->shared_gate_weight,
                                          .row_valid = run->row_valid,
                                          .shared_ids = run->shared_ids,
                                          .shared_weights = run->shared_weights,
                                          .input_scale = run->input_scale,
                                          .combine_weights = run->combine_weights,
                                          .hidden = widens ? run->hidden : (mf_tensor){ 0 } };
        return device->ops->layer_rows(device, &call, err);
    }
    find_valid_rows(run);
    if (run->scales_input) {
        split_weights(run);
    }
    if (widens) {
        widen_hidden(run);
    }
    if (separate) {
        write_shared_columns(run);
    }
    return MF_OK;
}

static mf_status run_chunks(mf_device *device, const layer_run *run, mf_error *err)
{
    if (!run->starts_beside) {
        MF_TRY(prepare_rows(device, run, err));
    }
    for (int64_t first = 0; first < run->num_tokens; first += run->chunk) {
        const int64_t left = run->num_tokens - first;
        MF_TRY(run_chunk(device, run, first, left < run->chunk ? left : run->chunk, err));
    }
    return MF_OK;
}

size_t mf_moe_layer_workspace_bytes(const mf_layer_args *args)
{
    layer_run run;
    if (check_shapes(args, NULL) != MF_OK) {
        return 0; /* the call itself says what is wrong */
    }
    lay_out(&run, args, NULL);
    return run.total_bytes;
}

mf_status mf_moe_layer(mf_device *device, const mf_layer_args *args, void *workspace, size_t workspace_bytes,
                       mf_error *err)
{
    layer_run run;
    if (!device) {
        return mf_fail(err, MF_ERR_INVALID, "device is NULL");
    }
    MF_TRY(check_shapes(args, err));
    MF_TRY(check_layer(device, args, err));
    lay_out(&run, args, NULL);
    if (run.total_bytes == SIZE_MAX) {
        return mf_fail(err, MF_ERR_INVALID, "x: %lld tokens need more workspace than an address space has",
                       (long long)args->x.shape[0]);
    }
    MF_TRY(mf_check_workspace(workspace, workspace_bytes, run.total_bytes, err));
    lay_out(&run, args, workspace);
    mf_status status = MF_OK;
    if (run.starts_beside) {
        status = run_beside(device, &run, 0, run.num_tokens, true, err);
    }
    if (status == MF_OK) {
        status = args->unfused_gate ? mf_moe_gate_unfused(device, &run.gate, run.scratch, run.scratch_bytes, err)
                                    : mf_moe_fused_gate(device, &run.gate, err);
    }
    if (status == MF_OK && run.num_tokens > 0) {
        mf_fp_env saved = mf_fp_enter();
        status = run_chunks(device, &run, err);
        mf_fp_leave(saved);
    }
    if (run.overlaps) { /* waited for by the combine, unless something failed before it */
        mf_error ignored;
        const mf_status joined = device->ops->beside_join(device, status == MF_OK ? err : &ignored);
        status = status == MF_OK ? joined : status;
    }
    return status;
}
