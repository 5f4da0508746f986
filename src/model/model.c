/* model.c - a model on a device: opening it, its scratch memory, the paged store of keys and values, its start-up lines.
 *
 * Everything that a forward call needs is sized and checked here once. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/sys.h"
#include "kernels/profile.h"
#include "model/model_device.h"
#include "model/rope.h"

enum { MAX_BATCH_TOKENS = 1 << 20, MAX_KV_BLOCK_SIZE = 4096 };

/* ---- scratch ---- */

/* Sizes first, pointers second: the same list runs twice, once with base NULL. */
typedef struct carver {
    char *base;
    int64_t used;
    bool overflow;
} carver;

static void *carve(carver *c, int64_t rows, int64_t columns, size_t size)
{
    int64_t count, bytes, end;
    if (!mf_mul_ok(rows, columns, &count) || !mf_mul_ok(count, (int64_t)size, &bytes) || !mf_add_ok(bytes, (int64_t)63, &bytes) ||
        !mf_add_ok(c->used, bytes / 64 * 64, &end)) {
        c->overflow = true;
        return NULL;
    }
    void *part = c->base ? c->base + c->used : NULL;
    c->used = end;
    return part;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static size_t larger_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void carve_scratch(const mf_model *model, mf_model_scratch *s, carver *c)
{
    const mf_model_config *config = model->config;
    const bool linear = config->num_linear_layers > 0;
    int64_t rows = model->max_batch_tokens;
    s->x = carve(c, rows, config->hidden_size, sizeof(float));
    s->h = carve(c, rows, config->hidden_size, sizeof(float));
    s->q_a = carve(c, rows, config->q_lora_rank, sizeof(float));
    s->q = carve(c, rows, mf_model_config_q_size(config), sizeof(float));
    s->kv = carve(c, rows, mf_model_config_kv_size(config), sizeof(float));
    s->attention = carve(c, rows, larger(config->num_heads * config->v_head_dim, linear ? mf_model_config_linear_v_size(config) : 0),
                         sizeof(float));
    s->mixed = carve(c, rows, larger(config->has_attention_gate ? 2 * mf_model_config_q_size(config) : 0,
                                     linear ? mf_model_config_qkvz_size(config) : 0), sizeof(float));
    s->linear_ba = carve(c, rows, linear ? 2 * config->linear_num_v_heads : 0, sizeof(float));
    s->mlp_in = model->act_dtype == MF_F32 ? s->h : carve(c, rows, config->hidden_size, mf_dtype_size(model->act_dtype));
    s->mlp_out = carve(c, rows, config->num_moe_layers < config->num_layers ? config->hidden_size : 0, sizeof(float));
    s->router_logits = carve(c, rows, config->num_moe_layers > 0 ? config->gate.num_experts : 0, sizeof(float));
    s->shared_gate = carve(c, rows, config->has_shared_gate ? 1 : 0, sizeof(float));
    s->x_row = carve(c,
                     !model->device->ops->norm_linear ? 0
                     : rows < MF_NORM_LINEAR_ROWS     ? rows
                                                      : MF_NORM_LINEAR_ROWS,
                     config->hidden_size, sizeof(float));
    s->zero_ids = carve(c, rows, 1, sizeof(int32_t));
    s->ones = carve(c, config->qk_norm_unweighted ? 1 : 0, config->head_dim, sizeof(float));
}

/* What the host makes of a batch, wherever the model is. */
static void carve_host_scratch(const mf_model *model, mf_model_scratch *s, carver *c)
{
    const int64_t rows = model->config->num_linear_layers > 0 ? model->max_batch_tokens : 0;
    s->run_rows = carve(c, rows, 1, sizeof(int32_t));
    s->run_start = carve(c, rows + 1, 1, sizeof(int32_t));
    s->run_slot = carve(c, rows, 1, sizeof(int32_t));
    s->run_cursor = carve(c, rows, 1, sizeof(int32_t));
    s->run_is_new = carve(c, rows, 1, sizeof(uint8_t));
}

static size_t attention_workspace(const mf_model *model, int64_t layer)
{
    const mf_device_ops *ops = model->device->ops;
    size_t floats;
    if (model->config->layer_is_linear[layer]) {
        mf_delta_net_args args = mf_model_delta_net_args(model, layer, model->max_batch_tokens);
        floats = ops->delta_net_scratch_floats(model->device, &args);
    } else if (model->config->attention == MF_ATTENTION_GQA) {
        mf_gqa_args args = mf_model_gqa_args(model, layer, model->max_batch_tokens);
        floats = ops->gqa_scratch_floats(model->device, &args);
    } else {
        mf_mla_args args = mf_model_mla_args(model, layer, model->max_batch_tokens);
        floats = ops->mla_scratch_floats(model->device, &args);
    }
    return floats * sizeof(float);
}

/* A layer's, in every mode that it may have at up to so many tokens. */
static size_t moe_workspace(const mf_model *model, int64_t layer)
{
    const mf_layer_plan *plan = &model->plan->layers[layer];
    size_t most = 0;
    for (const mf_mode_band *b = plan->bands;; b++) {
        const bool is_last = !b || b->max_tokens >= model->max_batch_tokens;
        mf_moe_call call;
        mf_model_moe_call(model, layer, is_last ? model->max_batch_tokens : b->max_tokens, &call);
        most = larger_size(most, mf_moe_layer_workspace_bytes(&call.layer));
        if (is_last) {
            return most;
        }
    }
}

/* The largest need of any part that uses the workspace, at full batch and full context. */
static size_t largest_workspace(const mf_model *model)
{
    size_t largest = 0;
    for (int64_t l = 0; l < model->config->num_layers; l++) {
        size_t bytes = attention_workspace(model, l);
        largest = bytes > largest ? bytes : largest;
        if (model->layers[l].dense) {
            bytes = mf_fused_experts_workspace_bytes(model->layers[l].dense, model->max_batch_tokens, 1);
            const size_t rows = (size_t)mf_model_dense_rows(model, l) * 2 * sizeof(float);
            bytes = larger_size(bytes, rows * (size_t)model->weights->layers[l].dense.up.n);
        } else {
            bytes = moe_workspace(model, l);
        }
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}

static void *aligned(void *block)
{
    return (void *)(((uintptr_t)block + 63) / 64 * 64);
}

/* Memory where the model's device works; *out is on 64 bytes. */
static mf_status take_memory(const mf_model *model, size_t bytes, void **block, void **out, mf_error *err)
{
    *block = NULL;
    if (!mf_device_uses_host_memory(model->device)) {
        MF_TRY(mf_device_malloc(model->device, bytes, block, err));
        *out = *block;
        return MF_OK;
    }
    *block = bytes > SIZE_MAX / 2 ? NULL : mf_alloc_huge(bytes + 64, model->numa);
    *out = *block ? aligned(*block) : NULL;
    return *block ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "out of memory");
}

static void give_memory(const mf_model *model, void *block)
{
    if (model->device && !mf_device_uses_host_memory(model->device)) {
        mf_device_free(model->device, block);
    } else {
        mf_free_huge(block);
    }
}

/* f32 values that the model's device reads. */
static mf_status fill_constants(mf_model *model, mf_error *err)
{
    mf_model_scratch *s = &model->scratch;
    const size_t zeros = (size_t)model->max_batch_tokens * sizeof(int32_t);
    const int64_t num_ones = model->config->qk_norm_unweighted ? model->config->head_dim : 0;
    const float one = 1.0f;
    if (mf_device_uses_host_memory(model->device)) {
        memset(s->zero_ids, 0, zeros);
    } else {
        MF_TRY(model->device->ops->memory->zero(model->device, s->zero_ids, zeros, err));
    }
    for (int64_t i = 0; i < num_ones; i++) {
        MF_TRY(mf_device_copy(model->device, s->ones + i, &one, sizeof one, err));
    }
    return MF_OK;
}

/* A table of the host's moves to the device's own memory. */
static mf_status move_table(const mf_model *model, float **table, int64_t count, mf_error *err)
{
    void *block;
    if (mf_device_uses_host_memory(model->device) || !*table) {
        return MF_OK;
    }
    mf_status status = mf_device_malloc(model->device, (size_t)count * sizeof(float), &block, err);
    if (status == MF_OK) {
        status = mf_device_copy(model->device, block, *table, (size_t)count * sizeof(float), err);
    }
    mf_free_aligned(*table);
    *table = block; /* the device's from here on */
    return status;
}

static void free_table(const mf_model *model, float *table)
{
    if (model->device && !mf_device_uses_host_memory(model->device)) {
        mf_device_free(model->device, table);
    } else {
        mf_free_aligned(table);
    }
}

static mf_status open_tables(mf_model *model, mf_error *err)
{
    const mf_model_config *config = model->config;
    float *rope = NULL, *scales = NULL;
    MF_TRY(mf_rope_table_make(&config->rope, model->max_len, &rope, err));
    mf_status status = move_table(model, &rope, model->max_len * config->rope.dim, err);
    model->rope_table = rope;
    MF_TRY(status);
    if (config->query_floor > 0) {
        MF_TRY(mf_rope_query_scales_make(config->query_floor, config->query_scale, model->max_len, &scales, err));
        status = move_table(model, &scales, model->max_len, err);
        model->query_scales = scales;
    }
    return status;
}

/* Bytes of the activations, which are known before the weights are there. */
static int64_t activation_bytes(const mf_model *model)
{
    mf_model_scratch ignored;
    carver c = { 0 };
    carve_scratch(model, &ignored, &c);
    return c.overflow ? INT64_MAX : c.used;
}

/* The widest input of a linear layer. */
static int64_t widest_input(const mf_model_config *config)
{
    int64_t widest = larger(config->hidden_size, config->num_heads * config->v_head_dim);
    widest = larger(widest, config->q_lora_rank);
    widest = larger(widest, config->num_moe_layers < config->num_layers ? config->intermediate_size : 0);
    return larger(widest, config->num_linear_layers > 0 ? mf_model_config_linear_v_size(config) : 0);
}

/* Not filled but for zero_ids and ones: every value is written before it is read, and untouched pages cost no memory. */
static mf_status open_scratch(mf_model *model, mf_error *err)
{
    mf_model_scratch *s = &model->scratch;
    carver c = { 0 }, host = { 0 };
    void *base;
    carve_scratch(model, s, &c);
    carve_host_scratch(model, s, &host);
    mf_status status = c.overflow ? mf_fail(err, MF_ERR_NOMEM, "out of memory") : take_memory(model, (size_t)c.used, &s->block, &base, err);
    s->host_block = status != MF_OK || host.overflow ? NULL : mf_alloc_huge((size_t)host.used + 64, model->numa);
    if (!s->host_block) {
        return mf_fail(err, MF_ERR_NOMEM, "--max-num-batched-tokens %lld: out of memory for activations of %lld bytes",
                       (long long)model->max_batch_tokens, (long long)c.used);
    }
    s->total_bytes = c.used;
    c = (carver){ .base = base };
    carve_scratch(model, s, &c);
    host = (carver){ .base = aligned(s->host_block) };
    carve_host_scratch(model, s, &host);
    MF_TRY(fill_constants(model, err));
    s->workspace_bytes = largest_workspace(model); /* asked with the pointers that will be used */
    if (take_memory(model, s->workspace_bytes, &s->workspace_block, &s->workspace, err) != MF_OK) {
        return mf_fail(err, MF_ERR_NOMEM, "--max-num-batched-tokens %lld: out of memory for a workspace of %zu bytes",
                       (long long)model->max_batch_tokens, s->workspace_bytes);
    }
    s->total_bytes += (int64_t)s->workspace_bytes;
    if (model->device->ops->reserve) {
        /* An input that counts as f32 takes three numbers where one of bf16 takes one; the router's always does. */
        const int64_t widest = larger(widest_input(model->config) * (model->act_dtype == MF_F32 ? 3 : 1),
                                      3 * model->config->hidden_size);
        uint32_t formats = 0;
        for (int f = 0; f < MF_FORMAT_COUNT && model->act_dtype == MF_BF16; f++) {
            formats |= (uint32_t)(model->weights->stats.bytes_by_format[f] > 0) << f;
        }
        int64_t bytes = 0;
        MF_TRY(model->device->ops->reserve(model->device, model->max_batch_tokens, widest, formats, &bytes, err));
        s->total_bytes += bytes;
    }
    return mf_device_uses_host_memory(model->device) ? MF_OK : mf_model_device_open(model, err);
}

/* ---- layers ---- */

static mf_status create_experts(mf_model *model, const mf_slot *slots, int64_t num_slots, int64_t layer, const char *what,
                                mf_experts **experts, mf_error *err)
{
    mf_experts_desc desc = { .num_slots = num_slots,
                             .hidden_size = model->config->hidden_size,
                             .slots = slots,
                             .act_dtype = model->act_dtype,
                             .act_quant = model->act_quant };
    mf_status status = mf_experts_create(model->device, &desc, experts, err);
    return status == MF_OK ? MF_OK : mf_fail_context(err, status, "layer %lld, %s", (long long)layer, what);
}

static mf_status open_layer(mf_model *model, int64_t l, mf_arena *arena, mf_error *err)
{
    const mf_layer_plan *decided = &model->plan->layers[l];
    mf_model_layer *layer = &model->layers[l];
    if (!decided->is_moe) {
        const mf_mlp_weights *dense = &model->weights->layers[l].dense;
        mf_slot slot = { .gate = dense->gate, .up = dense->up, .down = dense->down, .activation = model->config->activation };
        return create_experts(model, &slot, 1, l, "dense MLP", &layer->dense, err);
    }
    mf_slot *slots, *shared;
    int64_t num_slots, num_shared;
    MF_TRY(mf_plan_layer_slots(model->plan, model->weights, l, arena, &slots, &num_slots, &shared, &num_shared, err));
    MF_TRY(create_experts(model, slots, num_slots, l, "experts", &layer->experts, err));
    if (num_shared) {
        MF_TRY(create_experts(model, shared, num_shared, l, "shared expert", &layer->shared, err));
    }
    const bool in_slots = decided->has_shared && decided->has_slots;
    if (num_shared && in_slots) {
        MF_TRY(create_experts(model, slots, model->config->gate.num_experts, l, "experts", &layer->routed, err));
    }
    layer->gate = model->config->gate;
    layer->gate.shared_weight = model->config->has_shared_gate ? MF_SHARED_PER_TOKEN : MF_SHARED_ONE;
    layer->gate_apart = layer->gate;
    layer->gate.num_shared_slots = in_slots ? decided->num_shared_chunks : 0;
    layer->gate.num_replicas = decided->num_replicas;
    return MF_OK;
}

static mf_status open_layers(mf_model *model, mf_error *err)
{
    model->layers = mf_alloc_array((size_t)model->config->num_layers, sizeof *model->layers);
    if (!model->layers) {
        return mf_fail(err, MF_ERR_NOMEM, "out of memory for %lld layers", (long long)model->config->num_layers);
    }
    for (int64_t l = 0; l < model->config->num_layers; l++) {
        mf_arena arena = { 0 };
        mf_status status = open_layer(model, l, &arena, err);
        mf_arena_clear(&arena);
        MF_TRY(status);
    }
    return MF_OK;
}

/* ---- open and close ---- */

static char *last_part(const char *dir)
{
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/') {
        end--;
    }
    size_t start = end;
    while (start > 0 && dir[start - 1] != '/') {
        start--;
    }
    return mf_strndup(dir + start, end - start);
}

static mf_status check_options(const mf_model *model, const mf_model_options *options, mf_error *err)
{
    if (options->max_batch_tokens < 1 || options->max_batch_tokens > MAX_BATCH_TOKENS) {
        return mf_fail(err, MF_ERR_INVALID, "--max-num-batched-tokens: expected 1..%d; got %lld", MAX_BATCH_TOKENS,
                       (long long)options->max_batch_tokens);
    }
    if (options->act_dtype != MF_F32 && options->act_dtype != MF_BF16) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "--dtype: expected float32 or bfloat16; got %s",
                       mf_dtype_name(options->act_dtype));
    }
    if (options->kv_dtype != MF_F32 && options->kv_dtype != MF_BF16) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "--kv-cache-dtype: expected float32 or bfloat16; got %s",
                       mf_dtype_name(options->kv_dtype));
    }
    if (options->act_quant != MF_ACT_QUANT_NONE && options->act_quant != MF_ACT_QUANT_INT8 &&
        options->act_quant != MF_ACT_QUANT_W8A8) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "--act-quant: expected none, int8 or w8a8; got %d", (int)options->act_quant);
    }
    if (options->max_model_len < 0 || options->max_model_len > model->config->max_position_embeddings) {
        return mf_fail(err, MF_ERR_INVALID, "--max-model-len: expected 1..%lld (max_position_embeddings); got %lld",
                       (long long)model->config->max_position_embeddings, (long long)options->max_model_len);
    }
    return MF_OK;
}

/* A model trained with bf16 activations loses nothing by them; one of f16 or f32 might. */
static void choose_dtypes(mf_model *model, const mf_model_options *options)
{
    const bool is_bf16 = model->config->torch_dtype == MF_BF16 && model->device->prefers_bf16;
    model->auto_act_dtype = options->auto_act_dtype;
    model->act_dtype = !options->auto_act_dtype ? options->act_dtype : is_bf16 ? MF_BF16 : MF_F32;
    model->kv_dtype = options->auto_kv_dtype ? model->act_dtype : options->kv_dtype;
}

/* Bytes of the weights as they will lie on the device, from headers alone; -1: not known (quantised while loading). */
static mf_status foresee_weights(const mf_model *model, const char *dir, const mf_model_options *options, int64_t *bytes,
                                 mf_error *err)
{
    *bytes = -1;
    if (options->quantization != MF_QUANTIZATION_NONE) {
        return MF_OK;
    }
    if (options->dummy) {
        *bytes = mf_weights_dummy_bytes(model->config);
        return MF_OK;
    }
    const mf_weights_options headers = { .headers_only = true, .use_map = true };
    mf_weights *weights = NULL;
    MF_TRY(mf_weights_load(dir, model->config, &headers, &weights, err));
    *bytes = weights->stats.bytes_total;
    mf_weights_close(&weights);
    return MF_OK;
}

mf_status mf_model_check_memory(const mf_memory_plan *plan, const char *device, mf_error *err)
{
    const int64_t may = (int64_t)(plan->utilization * (double)plan->total), others = plan->total - plan->available;
    if (plan->weights + plan->activations <= may - others) {
        return MF_OK;
    }
    const double gib = 0x1p-30;
    mf_status status = mf_fail(err, MF_ERR_NOMEM,
                               "device %s: weights of %.1f GiB and activations of %.1f GiB do not fit: %.1f GiB in all, of which %.2f may "
                               "be used and %.1f GiB are in use already",
                               device, (double)plan->weights * gib, (double)plan->activations * gib, (double)plan->total * gib,
                               plan->utilization, (double)others * gib);
    mf_error_advise(err, "--quantization makes weights smaller, --max-num-batched-tokens activations; --gpu-memory-utilization allows more");
    return status;
}

/* Before anything is loaded: does it fit? */
static mf_status check_memory(const mf_model *model, const char *dir, const mf_model_options *options, mf_error *err)
{
    mf_memory_plan plan = { .utilization = model->memory_utilization, .activations = activation_bytes(model) };
    if (mf_device_uses_host_memory(model->device)) {
        return MF_OK;
    }
    MF_TRY(foresee_weights(model, dir, options, &plan.weights, err));
    MF_TRY(model->device->ops->memory->info(model->device, &plan.available, &plan.total, err));
    return plan.weights < 0 ? MF_OK : mf_model_check_memory(&plan, options->device, err);
}

bool mf_model_device_budget(const mf_model *model, int64_t *bytes)
{
    int64_t available, total;
    mf_error err;
    if (!model->on_device || model->device->ops->memory->info(model->device, &available, &total, &err) != MF_OK) {
        return false;
    }
    *bytes = (int64_t)(model->memory_utilization * (double)total) - (total - available);
    *bytes = *bytes > 0 ? *bytes : 0;
    return true;
}

mf_status mf_model_open(const char *dir, const mf_model_options *options, mf_model **out, mf_error *err)
{
    *out = NULL;
    mf_status status = MF_OK;
    mf_model *model = mf_alloc_zero(sizeof *model);
    if (!model || !(model->name = last_part(dir))) {
        mf_free(model);
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", dir);
    }
    model->dummy = options->dummy;
    model->use_map = options->use_map;
    model->act_quant = options->act_quant;
    model->numa = options->numa;
    model->memory_utilization = options->memory_utilization > 0 ? options->memory_utilization : MF_MEMORY_UTILIZATION;
    mf_device_options device_options = { .num_threads = options->num_threads,
                                         .pin_threads = options->pin_threads,
                                         .numa = options->numa };
    mf_weights_options weights_options = { .dummy = options->dummy,
                                           .seed = options->seed,
                                           .quantization = options->quantization,
                                           .use_map = options->use_map,
                                           .numa = options->numa,
                                           .touch = options->touch,
                                           .progress = options->progress };
    /* What fails fast comes first: nobody waits for a load to learn that a flag was wrong. */
    MF_TRY_GOTO(mf_model_config_load(dir, &model->config, err), fail);
    MF_TRY_GOTO(check_options(model, options, err), fail);
    model->max_batch_tokens = options->max_batch_tokens;
    model->max_len = options->max_model_len ? options->max_model_len : model->config->max_position_embeddings;
    MF_TRY_GOTO(mf_device_open(options->device, &device_options, &model->device, err), fail);
    choose_dtypes(model, options);
    weights_options.device = mf_device_uses_host_memory(model->device) ? NULL : model->device;
    MF_TRY_GOTO(check_memory(model, dir, options, err), fail);
    MF_TRY_GOTO(mf_weights_load(dir, model->config, &weights_options, &model->weights, err), fail);
    mf_plan_options plan_options = options->plan;
    plan_options.one_format_a_table = model->device->one_format_a_table && model->act_dtype == MF_BF16;
    plan_options.gpu = model->device->gpu;
    plan_options.has_second_stream = model->device->ops->beside_begin != NULL;
    plan_options.warns_of_wide_inputs = model->device->wants_fp8_inputs && model->act_dtype == MF_BF16 &&
                                        model->act_quant == MF_ACT_QUANT_NONE;
    MF_TRY_GOTO(mf_plan_make(model->config, model->weights, &plan_options, &model->plan, err), fail);
    for (int32_t i = 0; i < model->plan->num_warnings; i++) {
        mf_log(MF_LOG_WARN, "%s", model->plan->warnings[i]);
    }
    MF_TRY_GOTO(open_layers(model, err), fail);
    MF_TRY_GOTO(open_tables(model, err), fail);
    MF_TRY_GOTO(open_scratch(model, err), fail);
    *out = model;
    return MF_OK;
fail:
    mf_model_close(&model);
    return status;
}

void mf_model_close(mf_model **out)
{
    if (!out || !*out) {
        return;
    }
    mf_model *model = *out;
    for (int64_t l = 0; model->layers && l < model->config->num_layers; l++) {
        mf_experts_destroy(&model->layers[l].dense);
        mf_experts_destroy(&model->layers[l].experts);
        mf_experts_destroy(&model->layers[l].routed);
        mf_experts_destroy(&model->layers[l].shared);
    }
    mf_free(model->layers);
    mf_model_device_close(model);
    give_memory(model, model->scratch.block);
    give_memory(model, model->scratch.workspace_block);
    mf_free_huge(model->scratch.host_block);
    free_table(model, model->rope_table);
    free_table(model, model->query_scales);
    mf_plan_close(&model->plan);
    mf_weights_close(&model->weights);
    mf_device_close(&model->device);
    mf_model_config_close(&model->config);
    mf_free(model->name);
    mf_free(model);
    *out = NULL;
}

const mf_model_config *mf_model_get_config(const mf_model *model)
{
    return model->config;
}

const mf_weights *mf_model_get_weights(const mf_model *model)
{
    return model->weights;
}

const mf_plan *mf_model_get_plan(const mf_model *model)
{
    return model->plan;
}

const mf_device *mf_model_get_device(const mf_model *model)
{
    return model->device;
}

int64_t mf_model_max_len(const mf_model *model)
{
    return model->max_len;
}

int64_t mf_model_workspace_bytes(const mf_model *model)
{
    return model->scratch.total_bytes + model->max_len * model->config->rope.dim * (int64_t)sizeof(float);
}

/* ---- keys and values ---- */

int64_t mf_kv_store_block_bytes(const mf_model *model, int32_t block_size)
{
    return (model->config->num_layers - model->config->num_linear_layers) * block_size * mf_model_config_kv_size(model->config) *
           (int64_t)mf_dtype_size(model->kv_dtype);
}

int64_t mf_kv_store_state_bytes(const mf_model *model)
{
    const int64_t layers = model->config->num_linear_layers;
    const mf_delta_net_args args = mf_model_delta_net_args(model, 0, 0);
    return layers > 0 ? layers * mf_delta_net_state_floats(&args) * (int64_t)sizeof(float) : 0;
}

/* Not zeroed either: is_new says where zeros are meant. */
static mf_status open_states(const mf_model *model, int32_t num_states, mf_kv_store *store, mf_error *err)
{
    const int64_t one = mf_kv_store_state_bytes(model);
    if (one == 0) {
        return MF_OK;
    }
    int64_t bytes;
    if (num_states < 1 || !mf_mul_ok(one, (int64_t)num_states, &bytes) || bytes > INT64_MAX - 64) {
        return mf_fail(err, MF_ERR_INVALID, "states of linear layers: expected at least 1 that fits in 64 bits; got %d of %lld bytes",
                       (int)num_states, (long long)one);
    }
    void *states = NULL;
    mf_status status = take_memory(model, (size_t)bytes, &store->state_block, &states, err);
    store->state_length = mf_alloc_array((size_t)num_states, sizeof *store->state_length);
    store->run_of_state = mf_alloc_array((size_t)num_states, sizeof *store->run_of_state);
    if (status != MF_OK || !store->state_length || !store->run_of_state) {
        return mf_fail(err, MF_ERR_NOMEM, "states of linear layers: %d of %lld bytes: out of memory", (int)num_states,
                       (long long)one);
    }
    for (int32_t i = 0; i < num_states; i++) {
        store->state_length[i] = store->run_of_state[i] = -1;
    }
    store->states = states;
    store->slot_floats = one / model->config->num_linear_layers / (int64_t)sizeof(float);
    store->num_states = num_states;
    return MF_OK;
}

/* Not zeroed: a row is written before any query reads it, and blocks that nobody uses cost no memory. */
mf_status mf_kv_store_open(const mf_model *model, int32_t num_blocks, int32_t block_size, int32_t num_states, mf_kv_store **out,
                           mf_error *err)
{
    *out = NULL;
    if (num_blocks < 1 || block_size < 1 || block_size > MAX_KV_BLOCK_SIZE) {
        return mf_fail(err, MF_ERR_INVALID, "KV cache: expected at least 1 block of 1..%d tokens; got %d of %d",
                       MAX_KV_BLOCK_SIZE, (int)num_blocks, (int)block_size);
    }
    int64_t bytes;
    if (!mf_mul_ok(mf_kv_store_block_bytes(model, block_size), (int64_t)num_blocks, &bytes) || bytes > INT64_MAX - 64) {
        return mf_fail(err, MF_ERR_INVALID, "KV cache: %d blocks of %d tokens do not fit in 64 bits", (int)num_blocks,
                       (int)block_size);
    }
    mf_kv_store *store = mf_alloc_zero(sizeof *store);
    void *block = NULL, *cache = NULL;
    if (!store || take_memory(model, (size_t)bytes, &block, &cache, err) != MF_OK) {
        mf_free(store);
        return mf_fail(err, MF_ERR_NOMEM, "KV cache of %d blocks x %d tokens needs %lld bytes: out of memory", (int)num_blocks,
                       (int)block_size, (long long)bytes);
    }
    store->model = (mf_model *)(uintptr_t)model;
    store->block = block;
    store->cache = cache;
    store->dtype = model->kv_dtype;
    store->row_size = mf_model_config_kv_size(model->config);
    store->num_layers = model->config->num_layers - model->config->num_linear_layers;
    store->layer_bytes = (int64_t)num_blocks * block_size * store->row_size * (int64_t)mf_dtype_size(model->kv_dtype);
    store->num_blocks = num_blocks;
    store->block_size = block_size;
    mf_status status = open_states(model, num_states, store, err);
    if (status != MF_OK) {
        mf_kv_store_close(&store);
    }
    *out = store;
    return status;
}

void mf_kv_store_close(mf_kv_store **store)
{
    if (store && *store) {
        mf_model_device_forget((*store)->model);
        give_memory((*store)->model, (*store)->block);
        give_memory((*store)->model, (*store)->state_block);
        mf_free((*store)->state_length);
        mf_free((*store)->run_of_state);
        mf_free(*store);
        *store = NULL;
    }
}

/* ---- for people ---- */

static const char *bytes_text(int64_t bytes, char out[32])
{
    static const char *const units[] = { "bytes", "kB", "MB", "GB", "TB" };
    double value = (double)bytes;
    int unit = 0;
    while (value >= 999.95 && unit < 4) {
        value /= 1000.0;
        unit++;
    }
    snprintf(out, 32, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return out;
}

static const char *count_text(int64_t count, char out[32])
{
    static const char *const units[] = { "", " K", " M", " B", " T" };
    double value = (double)count;
    int unit = 0;
    while (value >= 999.95 && unit < 4) {
        value /= 1000.0;
        unit++;
    }
    snprintf(out, 32, unit == 0 ? "%.0f%s" : "%.1f%s", value, units[unit]);
    return out;
}

static mf_status print_model_line(const mf_model *model, mf_buffer *out)
{
    const mf_model_config *config = model->config;
    char total[32], active[32];
    MF_TRY(mf_buffer_printf(out, "model   %s \"%s\"  %lld layers", config->model_type, model->name,
                            (long long)config->num_layers));
    if (config->num_moe_layers > 0) {
        MF_TRY(mf_buffer_printf(out, " (%lld dense, %lld MoE)  %d experts top-%d",
                                (long long)(config->num_layers - config->num_moe_layers), (long long)config->num_moe_layers,
                                (int)config->gate.num_experts, (int)config->gate.top_k));
        if (config->num_shared_experts > 0) {
            MF_TRY(mf_buffer_printf(out, " + %lld shared", (long long)config->num_shared_experts));
        }
    }
    mf_model_size size = mf_model_config_size(config);
    return mf_buffer_printf(out, "  %s total, %s active\n", count_text(size.total_params, total),
                            count_text(size.active_params, active));
}

static const char *reason_for_dtype(const mf_model *model)
{
    return !model->auto_act_dtype                          ? ""
           : model->act_dtype == MF_BF16                   ? " (auto: bf16 checkpoint, faster here)"
           : model->config->torch_dtype != MF_BF16         ? " (auto: the checkpoint is not bf16)"
                                                           : " (auto: bf16 is not faster here)";
}

/* "cpu avx2+fma+f16c, 2 threads" in columns: "cpu  avx2+fma+f16c  2 threads | activations f32" */
static mf_status print_device_line(const mf_model *model, mf_buffer *out)
{
    const char *text = mf_device_description(model->device);
    MF_TRY(mf_buffer_append_text(out, "device  "));
    size_t name = strcspn(text, ", ");
    MF_TRY(mf_buffer_append(out, text, name));
    text += name;
    while (*text) {
        text += strspn(text, ", ");
        size_t part = 0; /* up to the next comma */
        while (text[part] && text[part] != ',') {
            part++;
        }
        MF_TRY(mf_buffer_append_text(out, "  "));
        MF_TRY(mf_buffer_append(out, text, part));
        text += part;
    }
    return mf_buffer_printf(out, " | activations %s%s%s%s\n", model->act_dtype == MF_BF16 ? "bf16" : "f32",
                            reason_for_dtype(model),
                            model->act_quant == MF_ACT_QUANT_INT8   ? ", int8 per token for int8/int4 weights"
                            : model->act_quant == MF_ACT_QUANT_W8A8 ? ", FP8 or int8 for FP8/int8 experts"
                                                                    : "",
                            model->kv_dtype == MF_BF16 ? " | KV cache bf16" : "");
}

/* "weights 9.2 GB (mapped; int4_group, 1.1 GB bf16)": the format with most bytes by name, the others with their sizes. */
static mf_status print_memory_line(const mf_model *model, mf_buffer *out)
{
    const mf_weights_stats *stats = &model->weights->stats;
    char text[32];
    int most = 0;
    for (int f = 1; f < MF_FORMAT_COUNT; f++) {
        most = stats->bytes_by_format[f] > stats->bytes_by_format[most] ? f : most;
    }
    const char *how = model->dummy ? "dummy" : model->on_device ? "on the device" : model->use_map ? "mapped" : "copied";
    MF_TRY(mf_buffer_printf(out, "memory  weights %s (%s; %s", bytes_text(stats->bytes_total, text), how,
                            mf_format_name((mf_format)most)));
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        if (f != most && stats->bytes_by_format[f] > 0) {
            MF_TRY(mf_buffer_printf(out, ", %s %s", bytes_text(stats->bytes_by_format[f], text), mf_format_name((mf_format)f)));
        }
    }
    return mf_buffer_printf(out, ") | workspace %s\n", bytes_text(mf_model_workspace_bytes(model), text));
}

mf_status mf_model_print_plan(const mf_model *model, bool all_layers, mf_buffer *out)
{
    MF_TRY(print_model_line(model, out));
    MF_TRY(print_device_line(model, out));
    MF_TRY(print_memory_line(model, out));
    MF_TRY(mf_model_device_print(model, out));
    return mf_plan_print(model->plan, mf_device_name(model->device), all_layers, out);
}

mf_status mf_model_profile_begin(const mf_model *model, mf_error *err)
{
    return mf_profile_open(model->device, err);
}

mf_status mf_model_profile_take(const mf_model *model, double seconds[MF_NUM_PARTS], mf_error *err)
{
    return mf_profile_take(model->device, seconds, err);
}

void mf_model_profile_end(const mf_model *model)
{
    mf_profile_close(model->device);
}
