/* verb_info.c - `moefuse info`: what a model is and what will be fused, from its headers alone. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/arena.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "text/prompt.h"
#include "model/family.h"
#include "model/plan.h"
#include "model/weights_parts.h"

typedef struct info_flags {
    mf_model_flags model;
    bool json;
} info_flags;

/* "linear      36 of 48 layers: gated delta net, ..., attention in 3, 7, 11": the layers that do have keys and values. */
static void print_linear_layers(const mf_model_config *c)
{
    printf("linear      %" PRId64 " of %" PRId64 " layers: gated delta net, %" PRId64 " key heads of %" PRId64 ", %" PRId64
           " value heads of %" PRId64 ", convolution of %" PRId64 " tokens; attention in layers",
           c->num_linear_layers, c->num_layers, c->linear_num_k_heads, c->linear_k_dim, c->linear_num_v_heads, c->linear_v_dim,
           c->linear_conv_size);
    const char *comma = " ";
    for (int64_t l = 0; l < c->num_layers; l++) {
        if (!c->layer_is_linear[l]) {
            printf("%s%" PRId64, comma, l);
            comma = ", ";
        }
    }
    putchar('\n');
}

static void print_shape(const mf_model_config *c, const char *dir)
{
    mf_model_size size = mf_model_config_size(c);
    char total[32], active[32];
    printf("model       %s\n", dir);
    printf("family      %s, architecture %s, model_type %s\n", c->family->name, c->architecture, c->model_type);
    printf("parameters  %s total, %s active per token\n", mf_format_params(size.total_params, total, sizeof total),
           mf_format_params(size.active_params, active, sizeof active));
    printf("layers      %" PRId64 ": %" PRId64 " dense, %" PRId64 " MoE", c->num_layers, c->num_layers - c->num_moe_layers,
           c->num_moe_layers);
    if (c->num_nextn_layers) {
        printf("; %" PRId64 " MTP skipped", c->num_nextn_layers);
    }
    printf("\nwidths      hidden %" PRId64 ", dense %" PRId64 ", expert %" PRId64 ", vocabulary %" PRId64 "\n", c->hidden_size,
           c->intermediate_size, c->moe_intermediate_size, c->vocab_size);
    if (c->attention == MF_ATTENTION_GQA) {
        printf("attention   GQA, %" PRId64 " heads, %" PRId64 " kv heads, head %" PRId64 ", rope %" PRId64 ", v %" PRId64 "%s",
               c->num_heads, c->num_kv_heads, c->head_dim, c->rope.dim, c->v_head_dim, c->qk_norm != MF_QK_NORM_NONE ? ", q and k norms" : "");
    } else {
        printf("attention   MLA, %" PRId64 " heads, q LoRA %" PRId64 ", kv LoRA %" PRId64 ", nope %" PRId64 ", rope %" PRId64
               ", v %" PRId64,
               c->num_heads, c->q_lora_rank, c->kv_lora_rank, c->qk_nope_head_dim, c->qk_rope_head_dim, c->v_head_dim);
    }
    int64_t num_local = 0, num_plain = 0;
    for (int64_t l = 0; l < c->num_layers; l++) {
        num_local += c->layer_is_local[l] && (c->window || c->chunk);
        num_plain += c->layer_has_no_rope[l];
    }
    if (num_local) {
        printf("; %s of %" PRId64 " in %" PRId64 " of %" PRId64 " layers", c->window ? "a window" : "chunks",
               c->window ? c->window : c->chunk, num_local, c->num_layers);
    }
    if (num_plain) {
        printf("; %" PRId64 " without rope", num_plain);
    }
    printf("%s%s; %" PRId64 " positions\n", c->has_sinks ? "; sinks" : "", c->has_attention_gate ? ", output gate" : "",
           c->max_position_embeddings);
    if (c->num_linear_layers) {
        print_linear_layers(c);
    }
    if (c->num_moe_layers) {
        printf("experts     %d routed, top %d in %d of %d groups, %" PRId64 " shared; routed_scaling_factor %g\n",
               c->gate.num_experts, c->gate.top_k, c->gate.topk_group, c->gate.n_group, c->num_shared_experts,
               c->gate.routed_scaling_factor);
    }
}

static void print_bytes(const mf_weights *weights)
{
    char text[32];
    const mf_weights_stats *s = &weights->stats;
    printf("weights     %s", mf_format_bytes(s->bytes_total, text, sizeof text));
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        if (s->bytes_by_format[f]) {
            printf("; %s %s", mf_format_name((mf_format)f), mf_format_bytes(s->bytes_by_format[f], text, sizeof text));
        }
    }
    printf("; %s converted in memory", mf_format_bytes(s->bytes_converted, text, sizeof text));
    if (s->num_skipped_tensors) {
        printf("; %" PRId64 " tensors skipped", s->num_skipped_tensors);
    }
    putchar('\n');
}

/* One line per part of the model: what its matrices are stored as. */
static void print_parts(const mf_weights *weights)
{
    int64_t bytes[MF_PART_COUNT][MF_FORMAT_COUNT];
    char text[32];
    if (mf_weights_by_part(weights, bytes) != MF_OK) {
        return;
    }
    bool first_line = true;
    for (int part = 0; part < MF_PART_COUNT; part++) {
        bool first = true;
        for (int f = 0; f < MF_FORMAT_COUNT; f++) {
            if (!bytes[part][f]) {
                continue;
            }
            if (first) {
                printf("%-11s %-15s", first_line ? "formats" : "", mf_part_name((mf_part)part));
            }
            printf("%s%s %s", first ? "" : ", ", mf_format_name((mf_format)f), mf_format_bytes(bytes[part][f], text, sizeof text));
            first = first_line = false;
        }
        if (!first) {
            putchar('\n');
        }
    }
}

static json_t *parts_json(const mf_weights *weights)
{
    int64_t bytes[MF_PART_COUNT][MF_FORMAT_COUNT];
    json_t *parts = json_object();
    if (!weights || mf_weights_by_part(weights, bytes) != MF_OK) {
        return parts;
    }
    for (int part = 0; part < MF_PART_COUNT; part++) {
        json_t *formats = json_object();
        for (int f = 0; f < MF_FORMAT_COUNT; f++) {
            if (bytes[part][f]) {
                json_object_set_new(formats, mf_format_name((mf_format)f), json_integer(bytes[part][f]));
            }
        }
        json_object_set_new(parts, mf_part_name((mf_part)part), formats);
    }
    return parts;
}

static void print_text_side(const char *dir, const mf_model_config *c)
{
    mf_prompt prompt;
    mf_error err = { 0 };
    if (mf_prompt_open(dir, NULL, c->family->chat_templates, c->max_position_embeddings, &prompt, &err) != MF_OK) {
        printf("text        %s\n", err.message);
        return;
    }
    printf("text        %d tokens, chat template %s%s\n", mf_tokenizer_vocab_size(prompt.tokenizer),
           prompt.builtin         ? prompt.builtin->name
           : prompt.chat_template ? "of the checkpoint"
                                  : "none",
           prompt.builtin ? " (built in; the checkpoint has none)" : "");
    mf_prompt_close(&prompt);
}

static json_t *info_json(const mf_model_config *c, const mf_weights *weights, const mf_plan *plan, const char *dir)
{
    mf_model_size size = mf_model_config_size(c);
    json_t *layers = json_array();
    for (int64_t i = 0; plan && i < c->num_layers; i++) {
        const mf_layer_plan *l = &plan->layers[i];
        json_array_append_new(layers, json_pack("{s:I, s:s, s:b, s:s?, s:i, s:i, s:b, s:s}", "layer", (json_int_t)i, "attention",
                                                c->layer_is_linear[i] ? "linear" : "full", "moe", (int)l->is_moe, "mode",
                                                l->is_moe && l->has_shared ? mf_layer_mode_name(l->mode) : NULL,
                                                "shared_chunks", (int)l->num_shared_chunks, "replicas", (int)l->num_replicas,
                                                "fused_gate", (int)l->fused_gate, "reason", l->reason));
    }
    json_t *formats = json_object();
    for (int f = 0; weights && f < MF_FORMAT_COUNT; f++) {
        if (weights->stats.bytes_by_format[f]) {
            json_object_set_new(formats, mf_format_name((mf_format)f), json_integer(weights->stats.bytes_by_format[f]));
        }
    }
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:I, s:o, s:o, s:o}", "model", dir, "family",
                     c->family->name, "architecture", c->architecture, "total_params", (json_int_t)size.total_params,
                     "active_params", (json_int_t)size.active_params, "num_layers", (json_int_t)c->num_layers,
                     "num_moe_layers", (json_int_t)c->num_moe_layers, "num_linear_layers", (json_int_t)c->num_linear_layers, "hidden_size", (json_int_t)c->hidden_size,
                     "num_experts", (int)c->gate.num_experts, "top_k", (int)c->gate.top_k, "num_shared_experts",
                     (json_int_t)c->num_shared_experts, "bytes_by_format", formats, "bytes_by_part", parts_json(weights), "plan", layers);
}

static mf_status show(const info_flags *f, mf_error *err)
{
    const char *dir = f->model.model;
    mf_model_config *config = NULL;
    mf_weights *weights = NULL;
    mf_plan *plan = NULL;
    mf_buffer text = { 0 };
    mf_weights_options options = { .use_map = true, .headers_only = true };
    mf_plan_options plan_options = {
        .disable_shared_experts_fusion = f->model.disable_shared_experts_fusion,
        .disable_fused_gate = f->model.disable_fused_gate,
        .disable_fusion_bands = f->model.disable_fusion_bands,
        .num_shared_expert_replicas = (int32_t)f->model.num_shared_expert_replicas,
    };
    mf_status status;
    MF_TRY_GOTO(mf_model_config_load(dir, &config, err), done);
    bool config_only = strcmp(f->model.load_format, "dummy") == 0;
    if (!config_only) {
        MF_TRY_GOTO(mf_weights_load(dir, config, &options, &weights, err), done);
        MF_TRY_GOTO(mf_plan_make(config, weights, &plan_options, &plan, err), done);
    }
    if (f->json) {
        mf_console_json(info_json(config, weights, plan, dir), JSON_INDENT(2));
        goto done;
    }
    print_shape(config, dir);
    if (config_only) {
        printf("weights     not read (--load-format dummy): the plan needs the checkpoint's formats\n");
        goto done;
    }
    print_bytes(weights);
    print_parts(weights);
    print_text_side(dir, config);
    MF_TRY_GOTO(mf_plan_print(plan, f->model.device, true, &text), done);
    fputs(mf_buffer_text(&text), stdout);
    for (int32_t i = 0; i < plan->num_warnings; i++) {
        printf("warning     %s\n", plan->warnings[i]);
    }
done:
    mf_buffer_close(&text);
    mf_plan_close(&plan);
    mf_weights_close(&weights);
    mf_model_config_close(&config);
    return status;
}

int mf_verb_info(int argc, char **argv)
{
    info_flags f = { 0 };
    mf_flag rows[4 + MF_NUM_MODEL_FLAGS];
    rows[0] = (mf_flag){ "output", "--json", NULL, MF_FLAG_BOOL, &f.json, .help = "one JSON document on stdout" };
    mf_model_flags_fill(&f.model, rows + 1);
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, 1 + MF_NUM_MODEL_FLAGS, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.model.help) {
        printf("usage: moefuse info [MODEL] [flags]\n\nPrints sizes, formats and the fusion plan with its reasons.  Reads headers only.\n");
        mf_flags_help(rows, 1 + MF_NUM_MODEL_FLAGS, stdout);
        return MF_EXIT_OK;
    }
    if (mf_model_flags_start_log(&f.model, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (mf_model_flags_settle(&f.model, positionals, num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    mf_status status = show(&f, &err);
    if (status != MF_OK) {
        mf_console_error(&err);
    }
    return mf_exit_code(status);
}
