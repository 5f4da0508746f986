/* forward.c - the only layer walk: embed -> per layer { norm -> attention -> add; norm -> MLP -> add } -> norm -> lm_head.
 *
 * It reads the same for every family and device: sizes and switches come from the config, decisions from the plan, arithmetic
 * from the device's table.  Between operations activations are f32; what enters a linear layer or an expert is rounded to the
 * model's act_dtype.  Nothing is allocated and no row's result depends on another row. */
#include "model/model_device.h"

/* ---- the batch, checked before any op sees it ---- */

static mf_status check_rows(const mf_model *model, const mf_kv_store *store, const mf_batch *batch, int64_t *max_context,
                            mf_error *err)
{
    int64_t vocab = model->config->vocab_size;
    *max_context = 0;
    for (int32_t t = 0; t < batch->num_tokens; t++) {
        int32_t token = batch->token_ids[t], position = batch->position[t], sequence = batch->sequence[t];
        if (token < 0 || token >= vocab) {
            return mf_fail(err, MF_ERR_INVALID, "batch row %d: token id %d; expected 0..%lld", (int)t, (int)token,
                           (long long)vocab - 1);
        }
        if (position < 0 || position >= model->max_len) {
            return mf_fail(err, MF_ERR_INVALID, "batch row %d: position %d; expected 0..%lld", (int)t, (int)position,
                           (long long)model->max_len - 1);
        }
        if (sequence < 0 || sequence >= batch->num_sequences || position / store->block_size >= batch->max_blocks) {
            return mf_fail(err, MF_ERR_INVALID, "batch row %d: sequence %d, position %d lie outside a block table of [%d, %d]",
                           (int)t, (int)sequence, (int)position, (int)batch->num_sequences, (int)batch->max_blocks);
        }
        *max_context = position >= *max_context ? position + 1 : *max_context;
        if (t + 1 < batch->num_tokens && batch->sequence[t + 1] == sequence) {
            if (batch->position[t + 1] <= position) {
                return mf_fail(err, MF_ERR_INVALID, "batch row %d: position %d follows %d; expected ascending positions",
                               (int)t + 1, (int)batch->position[t + 1], (int)position);
            }
            continue; /* a later row of the sequence covers this one's blocks */
        }
        const int32_t *blocks = batch->block_table + (int64_t)sequence * batch->max_blocks;
        for (int32_t i = 0; i <= position / store->block_size; i++) {
            if (blocks[i] < 0 || blocks[i] >= store->num_blocks) {
                return mf_fail(err, MF_ERR_INVALID, "sequence %d, block %d of its table: %d; expected 0..%d", (int)sequence,
                               (int)i, (int)blocks[i], (int)store->num_blocks - 1);
            }
        }
    }
    return MF_OK;
}

static mf_status check_batch(const mf_model *model, const mf_kv_store *store, const mf_batch *batch, int64_t *max_context,
                             mf_error *err)
{
    if (batch->num_tokens < 0 || batch->num_tokens > model->max_batch_tokens) {
        return mf_fail(err, MF_ERR_INVALID, "batch: %d rows; expected 0..%lld", (int)batch->num_tokens,
                       (long long)model->max_batch_tokens);
    }
    for (int32_t i = 0; i < batch->num_logit_rows; i++) {
        int32_t row = batch->logit_rows[i];
        if (row < (i ? batch->logit_rows[i - 1] + 1 : 0) || row >= batch->num_tokens) {
            return mf_fail(err, MF_ERR_INVALID, "batch: logit row %d at place %d; expected ascending rows below %d", (int)row,
                           (int)i, (int)batch->num_tokens);
        }
    }
    return check_rows(model, store, batch, max_context, err);
}

/* ---- states of linear layers ---- */

/* Groups the rows by sequence into the scratch's run_* arrays, and holds each sequence to what its state has seen. */
static mf_status group_rows(mf_model *model, mf_kv_store *store, const mf_batch *batch, mf_state_view *view, mf_error *err)
{
    mf_model_scratch *s = &model->scratch;
    int32_t num_runs = 0;
    mf_status status = MF_OK;
    for (int32_t t = 0; t < batch->num_tokens && status == MF_OK; t++) {
        const int32_t sequence = batch->sequence[t], slot = batch->state_slot ? batch->state_slot[sequence] : sequence;
        if (slot < 0 || slot >= store->num_states) {
            status = mf_fail(err, MF_ERR_INVALID, "sequence %d: state %d; expected 0..%d", (int)sequence, (int)slot,
                             (int)store->num_states - 1);
            break;
        }
        int32_t run = store->run_of_state[slot];
        const int32_t expected = run >= 0 ? s->run_cursor[run] : batch->position[t] == 0 ? 0 : store->state_length[slot];
        if (run >= 0 && batch->sequence[s->run_rows[run]] != sequence) {
            status = mf_fail(err, MF_ERR_INVALID, "sequences %d and %d have one state %d", (int)batch->sequence[s->run_rows[run]],
                             (int)sequence, (int)slot);
        } else if (expected < 0) {
            status = mf_fail(err, MF_ERR_INVALID, "batch row %d: position %d; sequence %d has no state that goes on: expected 0",
                             (int)t, (int)batch->position[t], (int)sequence);
        } else if (batch->position[t] != expected) {
            status = mf_fail(err, MF_ERR_INVALID, "batch row %d: position %d; the state of sequence %d goes on at %d", (int)t,
                             (int)batch->position[t], (int)sequence, (int)expected);
        } else if (run < 0) {
            store->run_of_state[slot] = run = num_runs++;
            s->run_slot[run] = slot;
            s->run_rows[run] = t; /* its first row, until the rows are placed */
            s->run_is_new[run] = expected == 0;
            s->run_start[run] = 0; /* counts */
        }
        if (status == MF_OK) {
            s->run_cursor[run] = expected + 1;
            s->run_start[run]++;
        }
    }
    int32_t first = 0;
    for (int32_t run = 0; run < num_runs; run++) {
        const int32_t count = s->run_start[run];
        store->state_length[s->run_slot[run]] = status == MF_OK ? -1 : store->state_length[s->run_slot[run]];
        s->run_start[run] = s->run_cursor[run] = first;
        first += count;
    }
    s->run_start[num_runs] = first;
    for (int32_t t = 0; t < batch->num_tokens && status == MF_OK; t++) {
        const int32_t sequence = batch->sequence[t], slot = batch->state_slot ? batch->state_slot[sequence] : sequence;
        s->run_rows[s->run_cursor[store->run_of_state[slot]]++] = t;
    }
    for (int32_t run = 0; run < num_runs; run++) {
        store->run_of_state[s->run_slot[run]] = -1;
    }
    *view = (mf_state_view){ .slot_floats = store->slot_floats,
                             .num_runs = num_runs,
                             .rows = s->run_rows,
                             .start = s->run_start,
                             .slot = s->run_slot,
                             .is_new = s->run_is_new };
    return status;
}

/* After the walk: every layer's state has taken the batch's rows in. */
static void keep_lengths(mf_kv_store *store, const mf_batch *batch, const mf_state_view *view)
{
    for (int64_t run = 0; run < view->num_runs; run++) {
        store->state_length[view->slot[run]] = batch->position[view->rows[view->start[run + 1] - 1]] + 1;
    }
}

/* ---- attention ---- */

mf_delta_net_args mf_model_delta_net_args(const mf_model *model, int64_t layer, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    return (mf_delta_net_args){
        .num_tokens = num_tokens,
        .num_k_heads = config->linear_num_k_heads,
        .num_v_heads = config->linear_num_v_heads,
        .k_dim = config->linear_k_dim,
        .v_dim = config->linear_v_dim,
        .conv_size = config->linear_conv_size,
        .norm_eps = (float)config->rms_norm_eps,
        .qkvz = model->scratch.mixed,
        .ba = model->scratch.linear_ba,
        .conv = w->linear_conv,
        .a_log = w->linear_a_log,
        .dt_bias = w->linear_dt_bias,
        .norm = w->linear_norm,
        .out = model->scratch.attention,
        .scratch = model->scratch.workspace,
    };
}

mf_mla_args mf_model_mla_args(const mf_model *model, int64_t layer, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    return (mf_mla_args){
        .num_tokens = num_tokens,
        .num_heads = config->num_heads,
        .qk_nope_head_dim = config->qk_nope_head_dim,
        .qk_rope_head_dim = config->qk_rope_head_dim,
        .v_head_dim = config->v_head_dim,
        .kv_lora_rank = config->kv_lora_rank,
        .softmax_scale = (float)config->softmax_scale,
        .q = model->scratch.q,
        .kv_b = &model->weights->layers[layer].kv_b_proj,
        .kv.dtype = model->kv_dtype,
        .kv.max_context = model->max_len,
        .kv.row_size = config->kv_lora_rank + config->qk_rope_head_dim,
        .out = model->scratch.attention,
        .scratch = model->scratch.workspace,
    };
}

mf_gqa_args mf_model_gqa_args(const mf_model *model, int64_t layer, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const bool is_local = config->layer_is_local[layer];
    return (mf_gqa_args){
        .num_tokens = num_tokens,
        .num_heads = config->num_heads,
        .num_kv_heads = config->num_kv_heads,
        .head_dim = config->head_dim,
        .v_head_dim = config->v_head_dim,
        .softmax_scale = (float)config->softmax_scale,
        .window = is_local ? config->window : 0,
        .chunk = is_local ? config->chunk : 0,
        .sinks = model->weights->layers[layer].sinks,
        .q = model->scratch.q,
        .kv.dtype = model->kv_dtype,
        .kv.max_context = model->max_len,
        .kv.row_size = mf_model_config_kv_size(config),
        .out = model->scratch.attention,
        .scratch = model->scratch.workspace,
    };
}

/* A linear layer of the model: its input is rounded to the model's act_dtype. */
static void run_linear(mf_model *model, const mf_matrix *w, const float *bias, const float *x, int64_t x_stride,
                       int64_t num_tokens, float *out, int64_t out_stride)
{
    model->device->ops->linear(model->device, w, bias, model->act_dtype, x, x_stride, num_tokens, out, out_stride);
}

/* One of several products of h. */
typedef struct h_product {
    const mf_matrix *w;
    const float *bias;
    float *out;
    int64_t out_stride;
} h_product;

/* The deferred norm, if there is one, in a call of its own. */
static void norm_now(mf_model *model)
{
    mf_model_scratch *s = &model->scratch;
    if (s->deferred.weight) {
        model->device->ops->add_norm(model->device, &s->deferred);
        s->deferred.weight = NULL;
    }
}

static mf_linear_call call_of_h(const mf_model *model, const h_product *products, int32_t count, mf_dtype act_dtype,
                                int64_t num_tokens)
{
    const mf_model_scratch *s = &model->scratch;
    mf_linear_call call = { .num = count,
                            .act_dtype = act_dtype,
                            .x = s->h,
                            .x_stride = model->config->hidden_size,
                            .rounded = act_dtype == MF_BF16 ? s->mlp_in : NULL,
                            .num_tokens = num_tokens };
    for (int32_t i = 0; i < count; i++) {
        call.w[i] = products[i].w;
        call.bias[i] = products[i].bias;
        call.out[i] = products[i].out;
        call.out_stride[i] = products[i].out_stride;
    }
    return call;
}

/* Where x + add goes when the norm is inside the products: of few rows elsewhere, as each of the product's blocks may read x. */
static float *sum_in_products(const mf_model_scratch *s, int64_t num_tokens)
{
    return num_tokens <= MF_NORM_LINEAR_ROWS ? s->x_row : s->x;
}

/* Products of the normed input h, in one call where the device has one (it has h rounded, too, then), with the norm inside where
 * it can.  true: it did; h was not written, and x + add is in sum_in_products. */
static bool run_products(mf_model *model, const h_product *products, int32_t count, mf_dtype act_dtype, int64_t num_tokens)
{
    const mf_device_ops *ops = model->device->ops;
    mf_model_scratch *s = &model->scratch;
    const int64_t hidden = model->config->hidden_size;
    if (!ops->linear_many) {
        for (int32_t i = 0; i < count; i++) {
            ops->linear(model->device, products[i].w, products[i].bias, act_dtype, s->h, hidden, num_tokens, products[i].out,
                        products[i].out_stride);
        }
        return false;
    }
    const mf_linear_call call = call_of_h(model, products, count, act_dtype, num_tokens);
    if (s->deferred.weight && ops->norm_linear &&
        ops->norm_linear(model->device, &s->deferred, sum_in_products(s, num_tokens), &call)) {
        s->deferred.weight = NULL;
        return true;
    }
    norm_now(model);
    ops->linear_many(model->device, &call);
    return false;
}

static void run_linears_of_h(mf_model *model, const h_product *products, int32_t count, int64_t num_tokens)
{
    run_products(model, products, count, model->act_dtype, num_tokens);
}

/* The call for x += add (unless NULL), h = the norm of x, mlp_in = h in act_dtype. */
static mf_add_norm_call norm_of(const mf_model *model, const float *add, const float *weight, int64_t num_tokens)
{
    const mf_model_scratch *s = &model->scratch;
    return (mf_add_norm_call){ .acc = s->x,
                               .add = add,
                               .num_tokens = num_tokens,
                               .n = model->config->hidden_size,
                               .weight = weight,
                               .eps = (float)model->config->rms_norm_eps,
                               .out = s->h,
                               .rounded = model->act_dtype == MF_F32 ? NULL : s->mlp_in,
                               .rounded_dtype = model->act_dtype };
}

/* x += add (unless NULL); h = the norm of x, and mlp_in = h in act_dtype where somebody reads it there: the experts, and
 * linear_many.  Where the device has one call for both, it waits for the products that come next. */
static void add_and_norm(mf_model *model, const float *add, const float *weight, int64_t num_tokens, bool for_experts)
{
    const mf_device_ops *ops = model->device->ops;
    mf_model_scratch *s = &model->scratch;
    const int64_t hidden = model->config->hidden_size;
    const float eps = (float)model->config->rms_norm_eps;
    if (ops->add_norm) {
        s->deferred = norm_of(model, add, weight, num_tokens);
        return;
    }
    if (add) {
        ops->add(model->device, s->x, add, num_tokens * hidden);
    }
    ops->rms_norm(model->device, s->x, hidden, num_tokens, hidden, weight, eps, s->h, hidden);
    if (for_experts && model->act_dtype == MF_BF16) {
        ops->convert(model->device, s->h, num_tokens * hidden, MF_BF16, s->mlp_in);
    }
}

/* h [T, H] normed input -> attention [T, heads * v]: multi-head latent attention.  true: its result lies there as bf16. */
static bool run_mla(mf_model *model, int64_t layer, const mf_kv_view *kv, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    const mf_device_ops *ops = model->device->ops;
    mf_device *device = model->device;
    mf_model_scratch *s = &model->scratch;
    int64_t nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;
    int64_t latent = config->kv_lora_rank, q_lora = config->q_lora_rank;
    int64_t q_width = mf_model_config_q_size(config), kv_width = mf_model_config_kv_size(config);
    float latent_eps = (float)config->latent_norm_eps;

    const h_product latents = { &w->kv_a_proj, w->kv_a_bias, s->kv, kv_width };
    const h_product first[2] = { q_lora > 0 ? (h_product){ &w->q_a_proj, w->q_a_bias, s->q_a, q_lora }
                                            : (h_product){ &w->q_proj, NULL, s->q, q_width }, latents };
    run_linears_of_h(model, first, 2, num_tokens);
    if (q_lora > 0) {
        ops->rms_norm(device, s->q_a, q_lora, num_tokens, q_lora, w->q_a_norm, latent_eps, s->q_a, q_lora);
        run_linear(model, &w->q_b_proj, NULL, s->q_a, q_lora, num_tokens, s->q, q_width);
    }
    mf_mla_args args = mf_model_mla_args(model, layer, num_tokens);
    args.kv = *kv;
    if (ops->mla_prepare) {
        const mf_mla_prepare_call call = { .num_tokens = num_tokens,
                                           .num_heads = config->num_heads,
                                           .qk_nope_head_dim = nope,
                                           .qk_rope_head_dim = rope,
                                           .kv_lora_rank = latent,
                                           .q = s->q,
                                           .rows = s->kv,
                                           .norm = w->kv_a_norm,
                                           .eps = latent_eps,
                                           .rope_pair = config->rope.pair,
                                           .cos_sin = model->rope_table,
                                           .kv = *kv };
        bool is_rounded = false;
        if (ops->mla_at_once && ops->mla_at_once(device, &call, &args, &w->o_proj, model->act_dtype, &is_rounded)) {
            return is_rounded;
        }
        ops->mla_prepare(device, &call);
    } else {
        ops->rms_norm(device, s->kv, kv_width, num_tokens, latent, w->kv_a_norm, latent_eps, s->kv, kv_width);
        ops->rope(device, s->q + nope, q_width, config->num_heads, nope + rope, rope, config->rope.pair, model->rope_table,
                  kv->position, num_tokens);
        ops->rope(device, s->kv + latent, kv_width, 1, rope, rope, config->rope.pair, model->rope_table, kv->position, num_tokens);
        ops->kv_write(device, kv, s->kv, kv_width, num_tokens);
    }
    ops->mla_attention(device, &args);
    return false;
}

/* Norms every head of rows [T, num_heads * dim] in place; row_stride may be wider.  One call per token or per head,
 * whichever are fewer: a decode step norms all heads at once, a prefill all tokens. */
static void norm_heads(mf_model *model, float *x, int64_t row_stride, int64_t num_heads, int64_t num_tokens,
                       const float *weight)
{
    const mf_device_ops *ops = model->device->ops;
    int64_t dim = model->config->head_dim;
    float eps = (float)model->config->rms_norm_eps;
    if (row_stride == num_heads * dim) {
        ops->rms_norm(model->device, x, dim, num_tokens * num_heads, dim, weight, eps, x, dim);
        return;
    }
    bool by_token = num_tokens < num_heads;
    int64_t calls = by_token ? num_tokens : num_heads, rows = by_token ? num_heads : num_tokens;
    int64_t step = by_token ? row_stride : dim, stride = by_token ? dim : row_stride;
    for (int64_t i = 0; i < calls; i++) {
        ops->rms_norm(model->device, x + i * step, stride, rows, dim, weight, eps, x + i * step, stride);
    }
}

/* The norms of s->q and of the keys in s->kv, if the model has them. */
static void norm_queries_and_keys(mf_model *model, const mf_layer_weights *w, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    mf_model_scratch *s = &model->scratch;
    int64_t q_width = mf_model_config_q_size(config), kv_width = mf_model_config_kv_size(config);
    if (config->has_attention_gate) { /* every second vector is a gate; the norms leave the queries side by side */
        const int64_t dim = config->head_dim;
        model->device->ops->rms_norm(model->device, s->mixed, 2 * dim, num_tokens * config->num_heads, dim, w->q_norm,
                                     (float)config->rms_norm_eps, s->q, dim);
        norm_heads(model, s->kv, kv_width, config->num_kv_heads, num_tokens, w->k_norm);
    } else if (config->qk_norm == MF_QK_NORM_HEAD) {
        const bool is_weighted = !config->qk_norm_unweighted;
        norm_heads(model, s->q, q_width, config->num_heads, num_tokens, is_weighted ? w->q_norm : s->ones);
        norm_heads(model, s->kv, kv_width, config->num_kv_heads, num_tokens, is_weighted ? w->k_norm : s->ones);
    } else if (config->qk_norm == MF_QK_NORM_WHOLE) {
        const mf_device_ops *ops = model->device->ops;
        int64_t k_width = config->num_kv_heads * config->head_dim;
        float eps = (float)config->rms_norm_eps;
        ops->rms_norm(model->device, s->q, q_width, num_tokens, q_width, w->q_norm, eps, s->q, q_width);
        ops->rms_norm(model->device, s->kv, kv_width, num_tokens, k_width, w->k_norm, eps, s->kv, kv_width);
    }
}

/* Whether nothing unusual stands between the projections and attention, and the device has a call for what does. */
static bool is_prepared(const mf_model *model, int64_t layer)
{
    const mf_model_config *config = model->config;
    const bool has_rope = !config->layer_has_no_rope[layer];
    return model->device->ops->gqa_prepare && !config->has_attention_gate && !(config->qkv_clip > 0) && config->head_dim <= 256 &&
           config->qk_norm != MF_QK_NORM_WHOLE && (has_rope || !(config->query_floor > 0 || config->qk_norm_after_rope));
}

static mf_gqa_prepare_call prepare_of(const mf_model *model, int64_t layer, const mf_kv_view *kv, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    const mf_model_scratch *s = &model->scratch;
    const bool is_by_head = config->qk_norm == MF_QK_NORM_HEAD;
    const bool has_rope = !config->layer_has_no_rope[layer];
    return (mf_gqa_prepare_call){
        .num_tokens = num_tokens,
        .num_heads = config->num_heads,
        .num_kv_heads = config->num_kv_heads,
        .head_dim = config->head_dim,
        .v_head_dim = config->v_head_dim,
        .q = s->q,
        .rows = s->kv,
        .q_norm = !is_by_head ? NULL : config->qk_norm_unweighted ? s->ones : w->q_norm,
        .k_norm = !is_by_head ? NULL : config->qk_norm_unweighted ? s->ones : w->k_norm,
        .eps = (float)config->rms_norm_eps,
        .rope_dim = has_rope ? config->rope.dim : 0,
        .rope_pair = config->rope.pair,
        .norm_after_rope = config->qk_norm_after_rope,
        .cos_sin = model->rope_table,
        .kv = *kv,
    };
}

/* Products, norms, rope and the cache's rows, then attention: two calls, where the device has them. */
static bool project_and_attend(mf_model *model, int64_t layer, const h_product (*products)[3], const mf_gqa_args *args,
                               bool *is_rounded)
{
    const mf_device_ops *ops = model->device->ops;
    mf_model_scratch *s = &model->scratch;
    if (!ops->gqa_project || !is_prepared(model, layer)) {
        return false;
    }
    const mf_linear_call call = call_of_h(model, *products, 3, model->act_dtype, args->num_tokens);
    const mf_gqa_prepare_call prepare = prepare_of(model, layer, &args->kv, args->num_tokens);
    if (!ops->gqa_project(model->device, s->deferred.weight ? &s->deferred : NULL, &call, &prepare, args)) {
        return false;
    }
    s->deferred.weight = NULL;
    (void)ops->gqa_at_once(model->device, NULL, args, &model->weights->layers[layer].o_proj, model->act_dtype, is_rounded);
    return true;
}

/* Norms, rope, the cache's rows and attention in one call or two. */
static bool attend_at_once(mf_model *model, int64_t layer, const mf_kv_view *kv, int64_t num_tokens, const mf_gqa_args *args,
                           bool *is_rounded)
{
    const mf_device_ops *ops = model->device->ops;
    const mf_layer_weights *w = &model->weights->layers[layer];
    if (!is_prepared(model, layer)) {
        return false;
    }
    const mf_gqa_prepare_call call = prepare_of(model, layer, kv, num_tokens);
    if (!ops->gqa_at_once || !ops->gqa_at_once(model->device, &call, args, &w->o_proj, model->act_dtype, is_rounded)) {
        ops->gqa_prepare(model->device, &call);
        ops->gqa_attention(model->device, args);
    }
    return true;
}

static void prepare_step_by_step(mf_model *model, int64_t layer, const mf_kv_view *kv, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    const mf_device_ops *ops = model->device->ops;
    mf_device *device = model->device;
    mf_model_scratch *s = &model->scratch;
    const mf_rope_config *rope = &config->rope;
    int64_t dim = config->head_dim;
    int64_t q_width = mf_model_config_q_size(config), kv_width = mf_model_config_kv_size(config);
    if (!config->qk_norm_after_rope) {
        norm_queries_and_keys(model, w, num_tokens);
    }
    if (config->qkv_clip > 0) {
        ops->clip(device, s->q, num_tokens * q_width, (float)config->qkv_clip);
        ops->clip(device, s->kv, num_tokens * kv_width, (float)config->qkv_clip);
    }
    if (!config->layer_has_no_rope[layer]) {
        ops->rope(device, s->q, q_width, config->num_heads, dim, rope->dim, rope->pair, model->rope_table, kv->position,
                  num_tokens);
        ops->rope(device, s->kv, kv_width, config->num_kv_heads, dim, rope->dim, rope->pair, model->rope_table, kv->position,
                  num_tokens);
        if (config->qk_norm_after_rope) {
            norm_queries_and_keys(model, w, num_tokens);
        }
    } else if (config->query_floor > 0) {
        ops->scale_rows(device, s->q, q_width, model->query_scales, kv->position, num_tokens);
    }
    ops->kv_write(device, kv, s->kv, kv_width, num_tokens);
}

/* h [T, H] normed input -> attention [T, heads * v]: grouped-query attention.  true: its result lies there as bf16. */
static bool run_gqa(mf_model *model, int64_t layer, const mf_kv_view *kv, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    const mf_device_ops *ops = model->device->ops;
    mf_device *device = model->device;
    mf_model_scratch *s = &model->scratch;
    int64_t dim = config->head_dim;
    int64_t q_width = mf_model_config_q_size(config), kv_width = mf_model_config_kv_size(config);
    float *k = s->kv, *v = s->kv + config->num_kv_heads * dim;

    const bool gated = config->has_attention_gate;
    const h_product products[3] = { { &w->q_proj, w->q_bias, gated ? s->mixed : s->q, gated ? 2 * q_width : q_width },
                                    { &w->k_proj, w->k_bias, k, kv_width },
                                    { &w->v_proj, w->v_bias, v, kv_width } };
    mf_gqa_args args = mf_model_gqa_args(model, layer, num_tokens);
    args.kv = *kv;
    bool is_rounded = false;
    if (project_and_attend(model, layer, &products, &args, &is_rounded)) {
        return is_rounded;
    }
    run_linears_of_h(model, products, 3, num_tokens);
    if (!attend_at_once(model, layer, kv, num_tokens, &args, &is_rounded)) {
        prepare_step_by_step(model, layer, kv, num_tokens);
        ops->gqa_attention(device, &args);
    }
    if (gated) {
        ops->sigmoid_gate(device, s->attention, dim, s->mixed + dim, 2 * dim, num_tokens * config->num_heads, dim);
    }
    return is_rounded;
}

/* h [T, H] normed input -> h [T, H] output of a gated delta net; `view` holds this layer's states. */
static void run_delta_net(mf_model *model, int64_t layer, const mf_state_view *view, int64_t num_tokens)
{
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    mf_model_scratch *s = &model->scratch;
    const int64_t hidden = config->hidden_size;
    const h_product products[2] = { { &w->linear_qkvz, NULL, s->mixed, mf_model_config_qkvz_size(config) },
                                    { &w->linear_ba, NULL, s->linear_ba, 2 * config->linear_num_v_heads } };
    run_linears_of_h(model, products, 2, num_tokens);
    mf_delta_net_args args = mf_model_delta_net_args(model, layer, num_tokens);
    args.state = *view;
    model->device->ops->delta_net(model->device, &args);
    run_linear(model, &w->linear_out, NULL, s->attention, mf_model_config_linear_v_size(config), num_tokens, s->h, hidden);
}

/* h [T, H] normed input -> h [T, H] output; true: x has it added already. */
static bool run_attention(mf_model *model, int64_t layer, const mf_kv_view *kv, int64_t num_tokens)
{
    const mf_device_ops *ops = model->device->ops;
    const mf_model_config *config = model->config;
    const mf_layer_weights *w = &model->weights->layers[layer];
    mf_model_scratch *s = &model->scratch;
    const int64_t width = config->num_heads * config->v_head_dim;
    bool is_rounded = false;
    if (config->attention == MF_ATTENTION_GQA) {
        is_rounded = run_gqa(model, layer, kv, num_tokens);
    } else {
        is_rounded = run_mla(model, layer, kv, num_tokens);
    }
    if (is_rounded) {
        mf_linear_call call = { .num = 1,
                                .w = { &w->o_proj },
                                .bias = { w->o_bias },
                                .out = { s->x },
                                .out_stride = { config->hidden_size },
                                .act_dtype = model->act_dtype,
                                .x = s->attention,
                                .x_stride = width,
                                .rounded = s->attention,
                                .num_tokens = num_tokens };
        if (ops->linear_add && ops->linear_add(model->device, &call)) {
            return true;
        }
        call.out[0] = s->h;
        ops->linear_many(model->device, &call);
        return false;
    }
    run_linear(model, &w->o_proj, w->o_bias, s->attention, width, num_tokens, s->h, config->hidden_size);
    return false;
}

/* ---- the MLP half of a layer ---- */

int64_t mf_model_dense_rows(const mf_model *model, int64_t layer)
{
    enum { ROWS = 512 };
    const mf_mlp_weights *mlp = &model->weights->layers[layer].dense;
    const bool is_plain = mlp->gate.data && mlp->up.format == MF_FORMAT_BF16 && mlp->down.format == MF_FORMAT_BF16 && !mlp->gate_bias &&
                          !mlp->up_bias && !mlp->down_bias;
    return model->device->ops->glu && model->device->ops->linear_many && is_plain && model->config->activation == MF_ACT_SILU ? ROWS : 0;
}

/* mlp_out = MLP(h) by three products, some rows at a time. */
static void run_products_of_dense(mf_model *model, int64_t layer, int64_t num_tokens, int64_t rows)
{
    const mf_mlp_weights *mlp = &model->weights->layers[layer].dense;
    const mf_device_ops *ops = model->device->ops;
    mf_model_scratch *s = &model->scratch;
    const int64_t hidden = model->config->hidden_size, width = mlp->up.n;
    float *gate = s->workspace, *up = gate + rows * width;
    const size_t rounded_row = (size_t)hidden * mf_dtype_size(model->act_dtype);
    for (int64_t t = 0; t < num_tokens; t += rows) {
        const int64_t count = num_tokens - t < rows ? num_tokens - t : rows;
        const mf_linear_call call = { .num = 2,
                                      .w = { &mlp->gate, &mlp->up },
                                      .out = { gate, up },
                                      .out_stride = { width, width },
                                      .act_dtype = model->act_dtype,
                                      .x = s->h + t * hidden,
                                      .x_stride = hidden,
                                      .rounded = model->act_dtype == MF_BF16 ? (char *)s->mlp_in + (size_t)t * rounded_row : NULL,
                                      .num_tokens = count };
        ops->linear_many(model->device, &call);
        ops->glu(model->device, gate, up, count * width);
        run_linear(model, &mlp->down, NULL, gate, width, count, s->mlp_out + t * hidden, hidden);
    }
}

/* x += MLP(h), as an expert that every token picks, or by products where the device has better ones. */
static mf_status run_dense(mf_model *model, int64_t layer, int64_t num_tokens, mf_error *err)
{
    mf_model_scratch *s = &model->scratch;
    int64_t hidden = model->config->hidden_size;
    const int64_t rows = mf_model_dense_rows(model, layer);
    norm_now(model);
    if (rows > 0) {
        run_products_of_dense(model, layer, num_tokens, rows);
        model->device->ops->add(model->device, s->x, s->mlp_out, num_tokens * hidden);
        return MF_OK;
    }
    mf_experts_args args = { .experts = model->layers[layer].dense,
                             .x = mf_tensor_2d(s->mlp_in, model->act_dtype, num_tokens, hidden),
                             .topk_ids = mf_tensor_2d(s->zero_ids, MF_I32, num_tokens, 1),
                             .y = mf_tensor_3d(s->mlp_out, MF_F32, num_tokens, 1, hidden) };
    MF_TRY(mf_fused_experts(model->device, &args, s->workspace, s->workspace_bytes, err));
    model->device->ops->add(model->device, s->x, s->mlp_out, num_tokens * hidden);
    return MF_OK;
}

void mf_model_moe_call(const mf_model *model, int64_t layer, int64_t num_tokens, mf_moe_call *call)
{
    const mf_model_config *config = model->config;
    const mf_model_scratch *s = &model->scratch;
    const mf_model_layer *l = &model->layers[layer];
    const float *bias = model->weights->layers[layer].e_score_correction_bias;
    const mf_layer_mode mode = mf_plan_mode(&model->plan->layers[layer], num_tokens);
    const bool is_apart = l->shared && mode != MF_MODE_SLOT;
    *call = (mf_moe_call){
        .gate = { .config = is_apart ? &l->gate_apart : &l->gate,
                  .router_logits = mf_tensor_2d(s->router_logits, MF_F32, num_tokens, l->gate.num_experts) },
        .layer = { .experts = is_apart && l->routed ? l->routed : l->experts,
                   .shared = is_apart ? l->shared : NULL,
                   .mode = mode,
                   .unfused_gate = !model->plan->layers[layer].fused_gate,
                   .y_dtype = model->device->rounds_outputs ? model->act_dtype : MF_F32,
                   .x = mf_tensor_2d(s->mlp_in, model->act_dtype, num_tokens, config->hidden_size),
                   .residual = mf_tensor_2d(s->x, MF_F32, num_tokens, config->hidden_size),
                   .out = mf_tensor_2d(s->x, MF_F32, num_tokens, config->hidden_size) },
    };
    if (config->has_shared_gate) { /* the gate writes it into shared slots; a separate MLP takes it from the layer */
        mf_tensor logits = mf_tensor_1d(s->shared_gate, MF_F32, num_tokens);
        if (is_apart) {
            call->layer.shared_gate_weight = logits;
        } else {
            call->gate.shared_gate = logits;
        }
    }
    if (bias) {
        call->gate.e_score_correction_bias = mf_tensor_1d(bias, MF_F32, l->gate.num_experts);
    }
    call->layer.gate = &call->gate;
}

/* The matrices of a layer's products of its input's norm, which nothing else reads. */
static mf_linear_call readers_of_norm(const mf_model *model, int64_t layer)
{
    const mf_layer_weights *w = &model->weights->layers[layer];
    mf_linear_call readers = { .act_dtype = model->act_dtype };
    if (model->config->layer_is_linear[layer]) {
        readers.w[readers.num++] = &w->linear_qkvz;
        readers.w[readers.num++] = &w->linear_ba;
    } else if (model->config->attention == MF_ATTENTION_GQA) {
        readers.w[readers.num++] = &w->q_proj;
        readers.w[readers.num++] = &w->k_proj;
        readers.w[readers.num++] = &w->v_proj;
    } else {
        readers.w[readers.num++] = model->config->q_lora_rank > 0 ? &w->q_a_proj : &w->q_proj;
        readers.w[readers.num++] = &w->kv_a_proj;
    }
    return readers;
}

/* x += routed experts and shared expert of h.  The router reads h itself: which experts are chosen does not depend on
 * what the experts' input is rounded to.  *is_normed: the next layer's norm of x is done. */
static mf_status run_moe(mf_model *model, int64_t layer, int64_t num_tokens, int32_t *load, int32_t *bad_rows, bool *is_normed,
                         mf_error *err)
{
    mf_model_scratch *s = &model->scratch;
    int64_t num_experts = model->layers[layer].gate.num_experts;
    const mf_layer_weights *w = &model->weights->layers[layer];
    /* Experts in f32 and a shared expert's gate read h itself, which a norm inside the router's product does not leave. */
    if (model->config->has_shared_gate || model->act_dtype == MF_F32) {
        norm_now(model);
    }
    const h_product router = { &w->router, w->router_bias, s->router_logits, num_experts };
    const bool is_inside = run_products(model, &router, 1, MF_F32, num_tokens);
    if (model->config->has_shared_gate) {
        model->device->ops->linear(model->device, &model->weights->layers[layer].shared_expert_gate, NULL, MF_F32, s->h,
                                   model->config->hidden_size, num_tokens, s->shared_gate, 1);
    }
    mf_moe_call call;
    mf_model_moe_call(model, layer, num_tokens, &call);
    if (is_inside) {
        call.layer.residual.data = sum_in_products(s, num_tokens);
    }
    if (load) {
        call.gate.load = mf_tensor_1d(load + layer * num_experts, MF_I32, num_experts);
    }
    if (bad_rows) {
        call.gate.bad_rows = mf_tensor_1d(bad_rows, MF_I32, 1);
    }
    const bool offers = layer + 1 < model->config->num_layers && model->device->ops->offer_norm;
    if (offers) {
        const mf_add_norm_call norm = norm_of(model, NULL, model->weights->layers[layer + 1].input_norm, num_tokens);
        const mf_linear_call readers = readers_of_norm(model, layer + 1);
        model->device->ops->offer_norm(model->device, &norm, &readers);
    }
    const mf_status status = mf_moe_layer(model->device, &call.layer, s->workspace, s->workspace_bytes, err);
    *is_normed = offers && model->device->ops->took_norm(model->device);
    return status;
}

/* ---- the walk ---- */

static void beat(const mf_batch *batch)
{
    if (batch->beat) {
        batch->beat(batch->beat_context);
    }
}

/* Final norm and lm_head for logit rows [first, first + count); neighbouring rows go together. */
static void run_head(mf_model *model, const mf_batch *batch, int32_t first, int32_t count, float *logits)
{
    const mf_device_ops *ops = model->device->ops;
    mf_model_scratch *s = &model->scratch;
    int64_t hidden = model->config->hidden_size;
    const int32_t *rows = batch->logit_rows + first;
    for (int32_t i = 0, next; i < count; i = next) {
        for (next = i + 1; next < count && rows[next] == rows[next - 1] + 1; next++) {
        }
        ops->rms_norm(model->device, s->x + rows[i] * hidden, hidden, next - i, hidden, model->weights->norm,
                      (float)model->config->rms_norm_eps, s->h + i * hidden, hidden);
    }
    mf_matrix head = model->weights->lm_head;
    head.n = model->config->vocab_size; /* padding rows behind the vocabulary make no logits */
    run_linear(model, &head, NULL, s->h, hidden, count, logits, model->config->vocab_size);
}

/* Embedding and layers. */
static mf_status walk(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step, mf_error *err)
{
    const mf_model_config *config = model->config;
    const mf_device_ops *ops = model->device->ops;
    mf_model_scratch *s = &model->scratch;
    const int64_t num_tokens = step->num_tokens;
    mf_kv_view kv = { .dtype = store->dtype,
                      .row_size = store->row_size,
                      .block_size = store->block_size,
                      .block_table = step->block_table,
                      .max_blocks = step->max_blocks,
                      .sequence = step->sequence,
                      .position = step->position,
                      .max_context = step->max_context };
    mf_state_view states = step->states;
    int64_t num_kv_layers = 0; /* so far: linear layers have no part of the cache, the others no state */
    bool is_normed = false;    /* h is the norm of x already, by the layer before */
    ops->embed(model->device, &model->weights->embed_tokens, step->token_ids, num_tokens, s->x, config->hidden_size);
    for (int64_t l = 0; l < config->num_layers; l++) {
        const mf_layer_weights *w = &model->weights->layers[l];
        if (!is_normed) {
            add_and_norm(model, NULL, w->input_norm, num_tokens, false);
        }
        is_normed = false;
        bool is_added = false;
        if (config->layer_is_linear[l]) {
            states.states = store->states + (l - num_kv_layers) * store->num_states * store->slot_floats;
            run_delta_net(model, l, &states, num_tokens);
        } else {
            kv.cache = store->cache + num_kv_layers++ * store->layer_bytes;
            is_added = run_attention(model, l, &kv, num_tokens);
        }
        beat(batch);
        add_and_norm(model, is_added ? NULL : s->h, w->post_attention_norm, num_tokens, true);
        if (config->layer_is_moe[l]) {
            MF_TRY(run_moe(model, l, num_tokens, step->load, step->bad_rows, &is_normed, err));
        } else {
            MF_TRY(run_dense(model, l, num_tokens, err));
        }
        beat(batch);
    }
    return MF_OK;
}

mf_status mf_model_forward(mf_model *model, mf_kv_store *store, const mf_batch *batch, float *logits, int32_t *expert_load,
                           int32_t *bad_rows, mf_error *err)
{
    mf_step step = { .num_tokens = batch->num_tokens,
                     .token_ids = batch->token_ids,
                     .position = batch->position,
                     .sequence = batch->sequence,
                     .block_table = batch->block_table,
                     .max_blocks = batch->max_blocks,
                     .load = expert_load,
                     .bad_rows = bad_rows };
    MF_TRY(check_batch(model, store, batch, &step.max_context, err));
    if (batch->num_tokens == 0) {
        return MF_OK;
    }
    if (model->config->num_linear_layers > 0) {
        MF_TRY(group_rows(model, store, batch, &step.states, err));
    }
    if (model->on_device) {
        MF_TRY(mf_model_device_run(model, store, batch, &step, walk, run_head, logits, err));
    } else {
        MF_TRY(walk(model, store, batch, &step, err));
        if (batch->num_logit_rows > 0) {
            run_head(model, batch, 0, batch->num_logit_rows, logits);
        }
    }
    keep_lengths(store, batch, &step.states);
    if (model->device->ops->step_ends) {
        model->device->ops->step_ends(model->device);
    }
    return MF_OK;
}
