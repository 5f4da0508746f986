/* plan.c - decides, per layer and once, whether the shared expert runs as slots of the grouped product: see plan.h.
 *
 * What never decides: the number of experts, powers of two, a model's name.  The conditions stand in slot_obstacle in the
 * order in which they are checked; the first that fails is the reason that people see. */
#include "model/plan.h"

#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "kernels/format.h"

/* ---- can the shared MLP be cut into views of width I? ---- */

/* Columns (or, for blocks, rows) that share a scale or a byte: a cut must fall between two of them. */
static int64_t row_unit(const mf_matrix *m)
{
    return m->format == MF_FORMAT_FP8_BLOCK ? MF_FP8_BLOCK_SIZE : 1;
}

static int64_t column_unit(const mf_matrix *m)
{
    int64_t group = mf_matrix_group(m);
    return group ? group : mf_format_is_4bit(m->format) ? 2 : 1;
}

/* Writes why a cut at multiples of `width` would split a scale block of one matrix; false when it would not. */
static bool straddles(const char *name, const mf_matrix *m, bool by_rows, int64_t width, char *reason, size_t size)
{
    int64_t unit = by_rows ? row_unit(m) : column_unit(m);
    if (!m->data || (by_rows ? m->n : m->k) <= width || width % unit == 0) {
        return false;
    }
    snprintf(reason, size, "%s is %s [%lld, %lld], chunks of %lld %s straddle its scale blocks of %lld", name,
             mf_format_name(m->format), (long long)m->n, (long long)m->k, (long long)width, by_rows ? "rows" : "columns",
             (long long)unit);
    return true;
}

static bool chunks_straddle(const mf_mlp_weights *shared, int64_t width, char *reason, size_t size)
{
    return straddles("gate_proj", &shared->gate, true, width, reason, size) ||
           straddles("up_proj", &shared->up, true, width, reason, size) ||
           straddles("down_proj", &shared->down, false, width, reason, size);
}

/* Writes the first condition that keeps a shared MLP out of the slots; false when none does.  Activation and limits
 * are not among them: every slot carries its own; nor pairs of formats, which the CPU's kernels take per slot, but on a device
 * whose kernels take a table. */
static bool slot_obstacle(const mf_plan *plan, const mf_layer_weights *layer, int64_t num_chunks, int64_t width, char *reason,
                          size_t size)
{
    const mf_model_config *config = plan->config;
    const mf_mlp_weights *shared = &layer->shared;
    const mf_mlp_weights *routed = &layer->experts[0];
    if (plan->options.disable_shared_experts_fusion) {
        snprintf(reason, size, "--disable-shared-experts-fusion");
        return true;
    }
    if (shared->up.k != routed->up.k || shared->down.n != routed->down.n) {
        snprintf(reason, size, "it maps %lld channels to %lld, the routed experts %lld to %lld", (long long)shared->up.k,
                 (long long)shared->down.n, (long long)routed->up.k, (long long)routed->down.n);
        return true;
    }
    if (plan->options.one_format_a_table && shared->up.format != routed->up.format) {
        snprintf(reason, size, "it is %s, the routed experts are %s: the device has no kernel for both in one table",
                 mf_format_name(shared->up.format), mf_format_name(routed->up.format));
        return true;
    }
    if (chunks_straddle(shared, width, reason, size)) {
        return true;
    }
    if (num_chunks > MF_PLAN_MAX_SHARED_CHUNKS) {
        snprintf(reason, size, "%lld chunks of width %lld; the gate has at most %d shared columns", (long long)num_chunks,
                 (long long)width, MF_PLAN_MAX_SHARED_CHUNKS);
        return true;
    }
    int64_t num_slots = config->gate.num_experts + num_chunks * plan->options.num_shared_expert_replicas;
    if (num_slots > MF_PLAN_MAX_SLOTS) {
        snprintf(reason, size, "%lld experts and %lld x %d shared slots exceed %d slots", (long long)config->gate.num_experts,
                 (long long)num_chunks, (int)plan->options.num_shared_expert_replicas, MF_PLAN_MAX_SLOTS);
        return true;
    }
    return false;
}

/* ---- the plan ---- */

static void warn(mf_plan *plan, const char *fmt, ...) MF_PRINTF(2, 3);

static void warn(mf_plan *plan, const char *fmt, ...)
{
    int32_t limit = (int32_t)(sizeof plan->warnings / sizeof plan->warnings[0]);
    if (plan->num_warnings < limit) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(plan->warnings[plan->num_warnings++], sizeof plan->warnings[0], fmt, args);
        va_end(args);
    }
}

/* Who decides between the modes, and what they are at a few tokens. */
static void choose_bands(const mf_plan *plan, const mf_layer_weights *layer, bool can_be_slots, mf_layer_plan *out)
{
    const mf_plan_options *options = &plan->options;
    const mf_mlp_weights *routed = &layer->experts[0];
    const mf_band_table key = { .gpu = options->gpu ? options->gpu : "",
                                .format = routed->up.format,
                                .hidden_size = routed->up.k,
                                .width = routed->up.n,
                                .num_experts = plan->config->gate.num_experts,
                                .top_k = plan->config->gate.top_k,
                                .num_shared = out->num_shared_chunks };
    const mf_band_table *found = mf_bands_find(&key);
    if (!options->has_second_stream || (can_be_slots && options->disable_fusion_bands)) {
        out->mode = can_be_slots ? MF_MODE_SLOT : MF_MODE_SERIAL;
    } else {
        out->bands = can_be_slots ? (found ? found->fused : mf_bands_unmeasured)
                     : found      ? found->apart
                                  : mf_bands_unmeasured_apart;
        out->source = found ? found->source : NULL;
        out->mode = out->bands[0].mode;
    }
    out->has_slots = out->mode == MF_MODE_SLOT;
    out->is_apart = !out->has_slots;
    for (const mf_mode_band *b = out->bands; b; b = b->max_tokens == INT64_MAX ? NULL : b + 1) {
        out->has_slots = out->has_slots || b->mode == MF_MODE_SLOT;
        out->is_apart = out->is_apart || b->mode != MF_MODE_SLOT;
    }
}

static void plan_layer(const mf_plan *plan, const mf_layer_weights *layer, mf_layer_plan *out)
{
    int64_t width = plan->config->moe_intermediate_size;
    out->fused_gate = !plan->options.disable_fused_gate;
    out->routed_format = layer->experts[0].up.format;
    out->num_replicas = 1;
    out->has_shared = layer->shared.up.data != NULL;
    if (!out->has_shared) {
        return;
    }
    out->shared_format = layer->shared.up.format;
    int64_t num_chunks = (layer->shared.up.n - 1) / width + 1; /* a last chunk may be narrower: a slot has its own width */
    if (slot_obstacle(plan, layer, num_chunks, width, out->reason, sizeof out->reason)) {
        char ignored[sizeof out->reason];
        bool cut = num_chunks <= MF_PLAN_MAX_SHARED_CHUNKS && !chunks_straddle(&layer->shared, width, ignored, sizeof ignored);
        /* The same chunks as slots would have, so that the bits stay the same; one wide product where slots are impossible. */
        out->num_shared_chunks = cut ? (int32_t)num_chunks : 1;
        choose_bands(plan, layer, false, out);
        return;
    }
    out->num_shared_chunks = (int32_t)num_chunks;
    choose_bands(plan, layer, true, out);
    out->num_replicas = plan->options.num_shared_expert_replicas;
}

/* Flags without effect are said, never ignored. */
static void add_warnings(mf_plan *plan, int32_t num_shared)
{
    mf_plan_options *options = &plan->options;
    for (int64_t l = 0; l < plan->config->num_layers && options->warns_of_wide_inputs; l++) {
        if (plan->layers[l].is_moe && plan->layers[l].routed_format == MF_FORMAT_FP8_BLOCK) {
            warn(plan, "experts of FP8 blocks with inputs that are not quantised take this device's plain kernels; --act-quant w8a8, as "
                       "other servers run such checkpoints, is some ten times as fast");
            break;
        }
    }
    int32_t replicas = options->num_shared_expert_replicas;
    if (options->disable_fused_gate && plan->num_moe == 0) {
        warn(plan, "--disable-fused-gate has no effect: the model has no MoE layer");
    }
    if (num_shared == 0) {
        if (options->disable_shared_experts_fusion) {
            warn(plan, "--disable-shared-experts-fusion has no effect: the model has no shared expert");
        }
        if (replicas > 1) {
            warn(plan, "--num-shared-expert-replicas %d has no effect: the model has no shared expert", (int)replicas);
            options->num_shared_expert_replicas = 1;
        }
    } else if (replicas > 1 && plan->num_slot == 0) {
        warn(plan, "--num-shared-expert-replicas %d has no effect: no shared expert is in slots", (int)replicas);
        options->num_shared_expert_replicas = 1;
    } else if (replicas > 1) {
        warn(plan,
             "--num-shared-expert-replicas %d: no benefit expected on one device, where replicas share one copy of the bytes; "
             "elsewhere 8 copies were reported to cost 1-2 GB and gain nothing (vLLM #15502)",
             (int)replicas);
    }
}

mf_status mf_plan_make(const mf_model_config *config, const mf_weights *weights, const mf_plan_options *options,
                       mf_plan **out, mf_error *err)
{
    *out = NULL;
    if (options->num_shared_expert_replicas < 1 || options->num_shared_expert_replicas > MF_PLAN_MAX_REPLICAS) {
        return mf_fail(err, MF_ERR_INVALID, "--num-shared-expert-replicas: expected 1..%d; got %d", MF_PLAN_MAX_REPLICAS,
                       (int)options->num_shared_expert_replicas);
    }
    mf_plan *plan = mf_alloc_zero(sizeof *plan);
    mf_layer_plan *layers = mf_alloc_array((size_t)config->num_layers, sizeof *layers);
    if (!plan || !layers) {
        mf_free(plan);
        mf_free(layers);
        return mf_fail(err, MF_ERR_NOMEM, "fusion plan: out of memory");
    }
    plan->config = config;
    plan->options = *options;
    plan->layers = layers;
    int32_t num_shared = 0;
    for (int64_t l = 0; l < config->num_layers; l++) {
        if (!config->layer_is_moe[l]) {
            continue;
        }
        layers[l].is_moe = true;
        plan_layer(plan, &weights->layers[l], &layers[l]);
        plan->num_moe++;
        plan->num_fused_gate += layers[l].fused_gate;
        if (layers[l].has_shared) {
            num_shared++;
            plan->num_slot += layers[l].mode == MF_MODE_SLOT;
            plan->num_overlap += layers[l].mode == MF_MODE_OVERLAP;
            plan->num_serial += layers[l].mode == MF_MODE_SERIAL;
        }
    }
    add_warnings(plan, num_shared);
    *out = plan;
    return MF_OK;
}

void mf_plan_close(mf_plan **plan)
{
    if (plan && *plan) {
        mf_free((*plan)->layers);
        mf_free(*plan);
        *plan = NULL;
    }
}

/* ---- for people ---- */

static const char *mode_word(mf_layer_mode mode)
{
    return mode == MF_MODE_OVERLAP ? "overlap" : "serial";
}

static mf_layer_mode majority_mode(const mf_plan *plan)
{
    if (plan->num_slot >= plan->num_overlap && plan->num_slot >= plan->num_serial) {
        return MF_MODE_SLOT;
    }
    return plan->num_overlap >= plan->num_serial ? MF_MODE_OVERLAP : MF_MODE_SERIAL;
}

static mf_status print_layer(const mf_plan *plan, int64_t l, mf_buffer *out)
{
    const mf_layer_plan *layer = &plan->layers[l];
    if (!layer->is_moe) {
        return mf_buffer_printf(out, "        layer %lld: dense\n", (long long)l);
    }
    if (!layer->has_shared) {
        return mf_buffer_printf(out, "        layer %lld: %s experts, no shared expert\n", (long long)l,
                                mf_format_name(layer->routed_format));
    }
    if (layer->mode != MF_MODE_SLOT) {
        return mf_buffer_printf(out, "        layer %lld: shared expert separate (%s): %s\n", (long long)l,
                                mode_word(layer->mode), layer->reason);
    }
    int32_t first = plan->config->gate.num_experts;
    int32_t count = layer->num_shared_chunks * layer->num_replicas;
    MF_TRY(mf_buffer_printf(out, "        layer %lld: %s experts, %s shared expert in slot%s %d", (long long)l,
                            mf_format_name(layer->routed_format), mf_format_name(layer->shared_format),
                            count > 1 ? "s" : "", (int)first));
    return count > 1 ? mf_buffer_printf(out, "..%d\n", (int)(first + count - 1)) : mf_buffer_append_text(out, "\n");
}

/* "SLOT up to 64 tokens, OVERLAP up to 256, SLOT beyond (NVIDIA H200, 2026-11-30)": once for all layers that have the
 * same. */
static mf_status print_bands(const mf_plan *plan, mf_buffer *out)
{
    for (int64_t l = 0; l < plan->config->num_layers; l++) {
        const mf_layer_plan *layer = &plan->layers[l];
        bool is_told = !layer->bands;
        for (int64_t i = 0; i < l && !is_told; i++) {
            is_told = plan->layers[i].bands == layer->bands;
        }
        if (is_told) {
            continue;
        }
        MF_TRY(mf_buffer_append_text(out, "        "));
        const mf_mode_band *b = layer->bands;
        for (; b->max_tokens != INT64_MAX; b++) {
            MF_TRY(
                mf_buffer_printf(out, "%s up to %lld tokens, ", mf_layer_mode_name(b->mode), (long long)b->max_tokens));
        }
        MF_TRY(mf_buffer_printf(out, "%s %s (%s)\n", mf_layer_mode_name(b->mode),
                                b == layer->bands ? "at any number of tokens" : "beyond",
                                layer->source ? layer->source : "this shape was not measured"));
    }
    return MF_OK;
}

mf_status mf_plan_print(const mf_plan *plan, const char *device_name, bool all_layers, mf_buffer *out)
{
    (void)device_name; /* cpu and ref take every pair of formats: no reason depends on the backend so far */
    if (plan->num_moe == 0) {
        return mf_buffer_append_text(out, "fusion  none: the model has no MoE layer\n");
    }
    MF_TRY(mf_buffer_printf(out, "fusion  gate fused %d/%d", (int)plan->num_fused_gate, (int)plan->num_moe));
    if (plan->num_slot + plan->num_overlap + plan->num_serial == 0) {
        MF_TRY(mf_buffer_append_text(out, " | shared slots: none, the model has no shared expert"));
    } else {
        MF_TRY(mf_buffer_printf(out, " | shared slots: SLOT %d, OVERLAP %d, SERIAL %d", (int)plan->num_slot,
                                (int)plan->num_overlap, (int)plan->num_serial));
    }
    MF_TRY(mf_buffer_printf(out, " | replicas %d\n", (int)plan->options.num_shared_expert_replicas));
    MF_TRY(print_bands(plan, out));
    mf_layer_mode most = majority_mode(plan);
    const mf_layer_plan *shown = NULL; /* the reason of the majority is printed once */
    for (int64_t l = 0; l < plan->config->num_layers; l++) {
        const mf_layer_plan *layer = &plan->layers[l];
        bool separate = layer->is_moe && layer->has_shared && layer->mode != MF_MODE_SLOT;
        if (all_layers) {
            MF_TRY(print_layer(plan, l, out));
        } else if (separate && layer->mode == most) {
            if (!shown || strcmp(shown->reason, layer->reason) != 0) {
                int32_t same = 0;
                for (int64_t i = l; i < plan->config->num_layers; i++) {
                    const mf_layer_plan *other = &plan->layers[i];
                    same += other->has_shared && other->mode == most && strcmp(other->reason, layer->reason) == 0;
                }
                MF_TRY(mf_buffer_printf(out, "        %d layer%s: shared expert separate (%s): %s\n", (int)same,
                                        same > 1 ? "s" : "", mode_word(layer->mode), layer->reason));
            }
            shown = layer;
        } else if (layer->is_moe && layer->has_shared && layer->mode != most) {
            MF_TRY(print_layer(plan, l, out));
        }
    }
    return MF_OK;
}
