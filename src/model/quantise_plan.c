/* quantise_plan.c - what a quantised checkpoint holds: which matrices become codes, which tensors stay, and the
 * quantization_config that says so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "model/checkpoint.h"
#include "model/quantise_checkpoint.h"
#include "model/quantise_rows.h"
#include "model/weights_impl.h"

typedef struct planner {
    mf_quantise_plan *plan;
    const mf_quantise_options *options;
    mf_checkpoint *checkpoint;
    uint8_t *replaced; /* [num_tensors] */
    int64_t capacity;
    json_t *kept; /* names of linear layers that stay as they are */
    mf_error *err;
} planner;

static mf_quantise_item *add_item(planner *p)
{
    mf_quantise_plan *plan = p->plan;
    if (plan->num_items == p->capacity) {
        int64_t capacity = p->capacity ? 2 * p->capacity : 256;
        mf_quantise_item *items = mf_resize_array(plan->items, (size_t)capacity, sizeof *items);
        if (!items) {
            return NULL;
        }
        plan->items = items;
        p->capacity = capacity;
    }
    mf_quantise_item *item = &plan->items[plan->num_items++];
    *item = (mf_quantise_item){ .layer = -1 };
    return item;
}

static mf_status out_of_memory(const planner *p)
{
    return mf_fail(p->err, MF_ERR_NOMEM, "quantising: out of memory");
}

/* The tensor whose bytes hold this matrix: by name, else (experts stacked in one tensor) by address. */
static const mf_st_tensor *source_of(const planner *p, const mf_wanted *x)
{
    const mf_st_tensor *t = mf_checkpoint_find(p->checkpoint, x->name);
    if (t) {
        return t;
    }
    const uint8_t *data = x->matrix->data;
    const mf_family *family = p->plan->config->family;
    const char *template = x->role == MF_ROLE_EXPERT_DOWN ? family->stacked_down : family->stacked_gate_up;
    char name[MF_MAX_TENSOR_NAME];
    t = template && mf_tensor_name(family, template, x->layer, -1, name, sizeof name)
            ? mf_checkpoint_find(p->checkpoint, name)
            : NULL;
    return t && data >= t->data && data < t->data + t->bytes ? t : NULL;
}

static int32_t shard_of(const mf_checkpoint *c, const mf_st_tensor *t)
{
    int32_t low = 0, high = c->num_shards - 1; /* the last shard whose first tensor is not behind t */
    const int64_t index = t - c->tensors;
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (c->shards[middle].first_tensor <= index) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static mf_status keep_module(planner *p, const mf_wanted *x)
{
    json_t *name = json_stringn(x->name, x->module_bytes);
    return name && json_array_append_new(p->kept, name) == 0 ? MF_OK : out_of_memory(p);
}

static mf_status plan_wanted(void *context, const mf_wanted *x)
{
    planner *p = context;
    if (x->kind == MF_WANT_VECTOR || x->role == MF_ROLE_EMBED) {
        return MF_OK;
    }
    if (!mf_weights_may_quantise(p->plan->config, x, p->options->format)) {
        return keep_module(p, x);
    }
    const mf_st_tensor *t = source_of(p, x);
    if (!t) {
        return mf_fail(p->err, MF_ERR_UNSUPPORTED,
                       "tensor \"%.256s\": its values stand at an odd address of their file", x->name);
    }
    mf_quantise_item *item = add_item(p);
    char *module = mf_arena_strndup(p->plan->arena, x->name, x->module_bytes);
    if (!item || !module) {
        return out_of_memory(p);
    }
    p->replaced[t - p->checkpoint->tensors] = 1;
    item->source = x->matrix->data;
    item->shard = shard_of(p->checkpoint, t);
    item->module = module;
    item->from = *x->matrix;
    item->layer = x->layer;
    item->part = mf_part_of(x->role);
    mf_quantise_layout(p->options->format, x->matrix->n, x->matrix->k, p->options->group, 8, &item->to,
                       &item->code_bytes, &item->scale_bytes);
    p->plan->has_short_groups |= p->options->format == MF_FORMAT_INT4_GROUP && x->matrix->k % p->options->group != 0;
    return MF_OK;
}

static mf_status plan_copies(planner *p)
{
    for (int64_t i = 0; i < p->checkpoint->num_tensors; i++) {
        const mf_st_tensor *t = &p->checkpoint->tensors[i];
        mf_quantise_item *item = p->replaced[i] ? NULL : add_item(p);
        if (!item && !p->replaced[i]) {
            return out_of_memory(p);
        }
        if (item) {
            item->source = t->data;
            item->shard = shard_of(p->checkpoint, t);
            item->tensor = t;
        }
    }
    return MF_OK;
}

static int compare_items(const void *a, const void *b)
{
    const mf_quantise_item *x = a, *y = b;
    return x->shard != y->shard ? (x->shard < y->shard ? -1 : 1) : x->source < y->source ? -1 : x->source > y->source;
}

/* Draft layers stay as they are: programs that run them must know. */
static mf_status keep_draft_layers(planner *p)
{
    const mf_model_config *c = p->plan->config;
    for (int64_t i = c->num_layers; i < c->num_layers + c->num_nextn_layers; i++) {
        char name[MF_MAX_TENSOR_NAME];
        const char *form =
            p->options->format == MF_FORMAT_FP8_BLOCK ? "%smodel.layers.%lld" : "re:%smodel\\.layers\\.%lld\\..*";
        snprintf(name, sizeof name, form, c->family->prefix, (long long)i);
        if (json_array_append_new(p->kept, json_string(name)) != 0) {
            return out_of_memory(p);
        }
    }
    for (int64_t i = 0; i < p->checkpoint->num_tensors; i++) { /* beside the layers: "mtp." */
        if (strncmp(p->checkpoint->tensors[i].name, "mtp.", 4) == 0) {
            const char *form = p->options->format == MF_FORMAT_FP8_BLOCK ? "mtp" : "re:mtp\\..*";
            return json_array_append_new(p->kept, json_string(form)) == 0 ? MF_OK : out_of_memory(p);
        }
    }
    return MF_OK;
}

static json_t *describe(const mf_quantise_options *options, json_t *kept)
{
    if (options->format == MF_FORMAT_FP8_BLOCK) {
        return json_pack("{s:s, s:s, s:s, s:[i,i], s:O}", "quant_method", "fp8", "activation_scheme", "dynamic", "fmt",
                         "e4m3", "weight_block_size", 128, 128, "modules_to_not_convert", kept);
    }
    const bool is_four = options->format == MF_FORMAT_INT4_GROUP;
    json_t *weights = json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", is_four ? 4 : 8, "type", "int", "symmetric", 1,
                                "strategy", is_four ? "group" : "channel", "dynamic", 0);
    if (weights && is_four) {
        json_object_set_new(weights, "group_size", json_integer(options->group));
    }
    const char *format = is_four ? "pack-quantized" : "int-quantized";
    return json_pack("{s:s, s:s, s:s, s:O, s:{s:{s:[s], s:o, s:n, s:n}}}", "quant_method", "compressed-tensors",
                     "format", format, "quantization_status", "compressed", "ignore", kept, "config_groups", "group_0",
                     "targets", "Linear", "weights", weights, "input_activations", "output_activations");
}

mf_status mf_quantise_plan_make(const char *in, const mf_quantise_options *options, mf_quantise_plan *plan,
                                mf_error *err)
{
    *plan = (mf_quantise_plan){ 0 };
    planner p = { .plan = plan, .options = options, .err = err };
    const mf_weights_options loading = { .use_map = true, .headers_only = true };
    mf_status status;
    MF_TRY_GOTO(mf_model_config_load(in, &plan->config, err), done);
    if (plan->config->quant.num_schemes > 0) {
        status = mf_fail(err, MF_ERR_UNSUPPORTED, "%s: is quantised already (config.json: quantization_config)", in);
        goto done;
    }
    MF_TRY_GOTO(mf_weights_load(in, plan->config, &loading, &plan->weights, err), done);
    if (plan->weights->conversions) {
        status = mf_fail(err, MF_ERR_UNSUPPORTED,
                         "%s: tensor \"%.256s\": experts stored by columns are quantised while loading (--quantization) only", in,
                         plan->weights->conversions->name);
        goto done;
    }
    p.checkpoint = plan->weights->checkpoint;
    p.replaced = mf_alloc_zero((size_t)p.checkpoint->num_tensors);
    p.kept = json_array();
    plan->arena = mf_alloc_zero(sizeof *plan->arena);
    if (!p.replaced || !p.kept || !plan->arena) {
        status = out_of_memory(&p);
        goto done;
    }
    MF_TRY_GOTO(mf_tensor_map_walk(plan->config, plan->weights, plan_wanted, &p), done);
    if (plan->num_items == 0) {
        status = mf_fail(err, MF_ERR_UNSUPPORTED, "%s: has no linear layers", in);
        goto done;
    }
    MF_TRY_GOTO(plan_copies(&p), done);
    MF_TRY_GOTO(keep_draft_layers(&p), done);
    qsort(plan->items, (size_t)plan->num_items, sizeof *plan->items, compare_items);
    plan->quantization_config = describe(options, p.kept);
    status = plan->quantization_config ? MF_OK : out_of_memory(&p);
done:
    mf_free(p.replaced);
    json_decref(p.kept);
    if (status != MF_OK) {
        mf_quantise_plan_close(plan);
    }
    return status;
}

void mf_quantise_plan_close(mf_quantise_plan *plan)
{
    json_decref(plan->quantization_config);
    if (plan->arena) {
        mf_arena_clear(plan->arena);
        mf_free(plan->arena);
    }
    mf_free(plan->items);
    mf_weights_close(&plan->weights);
    mf_model_config_close(&plan->config);
    *plan = (mf_quantise_plan){ 0 };
}
