/* llama4.c - the text side of Llama-4 Scout and Maverick: rope layers see chunks of the context, layers without rope
 * all of it with queries scaled by their position; one expert per token, chosen by logit, whose input its sigmoid
 * scales; a shared expert; dense layers between. */
#include "model/config_parts.h"
#include "model/families/gqa_names.h"

#define FEED_FORWARD MF_GQA_LAYER "feed_forward."

static const char *const names[MF_ROLE_COUNT] = {
    MF_GQA_OUTER_NAMES,
    [MF_ROLE_DENSE_GATE] = FEED_FORWARD "gate_proj.weight",
    [MF_ROLE_DENSE_UP] = FEED_FORWARD "up_proj.weight",
    [MF_ROLE_DENSE_DOWN] = FEED_FORWARD "down_proj.weight",
    [MF_ROLE_ROUTER] = FEED_FORWARD "router.weight",
    [MF_ROLE_EXPERT_GATE] = FEED_FORWARD "experts.{e}.gate_proj.weight",
    [MF_ROLE_EXPERT_UP] = FEED_FORWARD "experts.{e}.up_proj.weight",
    [MF_ROLE_EXPERT_DOWN] = FEED_FORWARD "experts.{e}.down_proj.weight",
    [MF_ROLE_SHARED_GATE] = FEED_FORWARD "shared_expert.gate_proj.weight",
    [MF_ROLE_SHARED_UP] = FEED_FORWARD "shared_expert.up_proj.weight",
    [MF_ROLE_SHARED_DOWN] = FEED_FORWARD "shared_expert.down_proj.weight",
};

/* no_rope_layers holds 1 for layers with rope and 0 for those without; an empty one means the same as none. */
static mf_status read_rope_layers(const mf_reader *reader, mf_model_config *config)
{
    static const int64_t fourth = 4;
    int64_t interval;
    MF_TRY(mf_read_int(reader, "no_rope_layer_interval", 1, MF_MAX_LAYERS, &fourth, &interval));
    const json_t *list = mf_read_value(reader, "no_rope_layers");
    const int64_t given = (int64_t)json_array_size(list);
    if (list && (!json_is_array(list) || (given > 0 && given < config->num_layers))) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, "no_rope_layers", "a list of a 0 or 1 for every layer");
    }
    for (int64_t l = 0; l < config->num_layers; l++) {
        const json_t *entry = json_array_get(list, (size_t)l);
        const int64_t has_rope = given > 0 ? json_integer_value(entry) : (l + 1) % interval != 0;
        if ((given > 0 && !json_is_integer(entry)) || has_rope < 0 || has_rope > 1) {
            return mf_read_fail(reader, MF_ERR_INVALID, "no_rope_layers", "entry %lld: expected 0 or 1", (long long)l);
        }
        config->layer_has_no_rope[l] = !has_rope;
        config->layer_is_local[l] = (uint8_t)has_rope;
    }
    return MF_OK;
}

/* Older files have a number where newer ones have true. */
static mf_status read_tuning(const mf_reader *reader, mf_model_config *config)
{
    static const bool yes = true;
    static const int64_t floor = 8192;
    static const double scale = 0.1;
    bool is_tuned = json_integer_value(mf_read_value(reader, "attn_temperature_tuning")) > 0;
    if (!is_tuned) {
        MF_TRY(mf_read_bool(reader, "attn_temperature_tuning", &yes, &is_tuned));
    }
    MF_TRY(mf_read_number(reader, "attn_scale", 0, 100, &scale, &config->query_scale));
    MF_TRY(mf_read_int(reader, "floor_scale", 1, 1 << 30, &floor, &config->query_floor));
    config->query_floor = is_tuned ? config->query_floor : 0;
    return MF_OK;
}

static mf_status read_attention(const mf_reader *reader, mf_model_config *config)
{
    static const mf_gqa_defaults defaults = { .rope_theta = 500000.0, .pair = true, .head_dim = 128 };
    static const int64_t none = 0, chunk = 8192;
    static const bool yes = true;
    MF_TRY(mf_config_read_gqa(reader, &defaults, config));
    config->output_bias = config->input_bias;
    bool has_norms;
    MF_TRY(mf_read_bool(reader, "use_qk_norm", &yes, &has_norms));
    config->qk_norm = has_norms ? MF_QK_NORM_HEAD : MF_QK_NORM_NONE;
    config->qk_norm_after_rope = true;
    config->qk_norm_unweighted = has_norms;
    MF_TRY(read_rope_layers(reader, config));
    MF_TRY(mf_config_read_layer_types(reader, "chunked_attention", config));
    const bool is_null = json_is_null(json_object_get(reader->object, "attention_chunk_size"));
    MF_TRY(mf_read_int(reader, "attention_chunk_size", 1, 1 << 30, is_null ? &none : &chunk, &config->chunk));
    for (int64_t l = 0; config->chunk == 0 && l < config->num_layers; l++) {
        if (config->layer_is_local[l]) {
            return mf_read_fail(reader, MF_ERR_INVALID, "attention_chunk_size",
                                "is null and layer %lld attends in chunks", (long long)l);
        }
    }
    return read_tuning(reader, config);
}

static mf_status read_config(const mf_reader *reader, mf_model_config *config)
{
    MF_TRY(read_attention(reader, config));
    MF_TRY(mf_config_read_experts(reader, "num_local_experts", "num_experts", "num_experts_per_tok", config));
    config->moe_intermediate_size = config->intermediate_size;
    MF_TRY(mf_config_set_shared(reader, "intermediate_size", config->moe_intermediate_size, config));
    MF_TRY(mf_read_int(reader, "intermediate_size_mlp", 1, MF_MAX_SIZE, NULL, &config->intermediate_size));
    config->gate.scoring = MF_SCORING_TOPK_SIGMOID;
    config->gate.bias_domain = MF_BIAS_NONE;
    config->gate.renorm = MF_RENORM_NONE;
    return mf_config_read_moe_layers(reader, "moe_layers", "interleave_moe_layer_step", config);
}

const mf_family mf_family_llama4 = {
    .name = "Llama-4",
    .architecture = "Llama4ForCausalLM",
    .prefix = "",
    .names = names,
    .stacked_gate_up = FEED_FORWARD "experts.gate_up_proj",
    .stacked_down = FEED_FORWARD "experts.down_proj",
    .stacked_columns = true,
    .chat_templates = (const char *const[]){ "llama-4", NULL },
    .read = read_config,
};

/* The multimodal release: its text side. */
const mf_family mf_family_llama4_conditional = {
    .name = "Llama-4",
    .architecture = "Llama4ForConditionalGeneration",
    .config_key = "text_config",
    .prefix = "language_model.",
    .names = names,
    .stacked_gate_up = FEED_FORWARD "experts.gate_up_proj",
    .stacked_down = FEED_FORWARD "experts.down_proj",
    .stacked_columns = true,
    .skip = (const char *const[]){ "vision_model", "multi_modal_projector", NULL },
    .chat_templates = (const char *const[]){ "llama-4", NULL },
    .read = read_config,
};
