/* families_test.c - keys of each family's config.json: what changes a value is read or refused by name, and defaults are the
 * class defaults of transformers.  Starts from the config of the family's golden checkpoint. */
#include <jansson.h>
#include <stdlib.h>

#include "base/file.h"
#include "model/config.h"
#include "test.h"

static mf_status parse_changed(const char *golden, const char *key, const char *value, mf_model_config **out, mf_error *err)
{
    char path[600];
    snprintf(path, sizeof path, "%s/tests/model/goldens/%s/config.json", MF_SOURCE_DIR, golden);
    json_error_t problem;
    json_t *config = json_load_file(path, 0, &problem);
    CHECK(config != NULL);
    if (key && value) {
        json_t *parsed = json_loads(value, JSON_DECODE_ANY, &problem);
        CHECK(parsed != NULL);
        json_object_set_new(config, key, parsed);
    } else if (key) {
        json_object_del(config, key);
    }
    char *text = json_dumps(config, 0);
    json_decref(config);
    mf_status status = mf_model_config_parse(text, strlen(text), "config.json", out, err);
    free(text);
    return status;
}

static mf_model_config *changed(const char *golden, const char *key, const char *value)
{
    mf_model_config *config;
    mf_error err = { 0 };
    CHECK_OK(parse_changed(golden, key, value, &config, &err), err);
    return config;
}

typedef struct refusal {
    const char *golden, *key, *value, *message;
} refusal;

TEST(keys_that_a_family_cannot_honour_are_refused_by_name)
{
    static const refusal rows[] = {
        { "mixtral", "sliding_window", "0", "key \"sliding_window\": expected an integer in 1..1073741824; got 0" },
        { "mixtral", "num_experts", "9", "num_local_experts" },
        { "mixtral", "num_experts_per_tok", "9", "key \"num_experts_per_tok\": expected at most num_local_experts 8; got 9" },
        { "mixtral", "hidden_act", "\"gelu\"", "key \"hidden_act\": expected \"silu\"" },
        { "qwen2", "layer_types", "[\"full_attention\",\"sliding_attention\",\"full_attention\",\"full_attention\"]",
          "key \"layer_types\": entry 1 slides, and use_sliding_window is false" },
        { "qwen2_window", "layer_types", "[\"full_attention\"]", "key \"layer_types\": expected a list of 5 kinds of attention" },
        { "glm4", "use_sliding_window", "true", "key \"use_sliding_window\": expected false" },
        { "qwen2", "shared_expert_intermediate_size", "0", "key \"shared_expert_intermediate_size\": expected an integer in 1..1048576" },
        { "qwen2", "mlp_only_layers", "[4]", "key \"mlp_only_layers\": entry 0: expected a layer in 0..3" },
        { "olmoe", "clip_qkv", "-1", "key \"clip_qkv\"" },
        { "olmoe", "num_local_experts", "11", "num_experts" },
        { "ernie", "use_bias", "true", "key \"use_bias\": expected false; got true" },
        { "ernie", "moe_norm_min", "0", "key \"moe_norm_min\"" },
        { "ernie", "moe_k", "13", "key \"moe_k\": expected at most moe_num_experts 12; got 13" },
        { "minimax", "rotary_dim", "20", "key \"rotary_dim\": expected an integer in 2..16; got 20" },
        { "minimax", "rotary_dim", "7", "key \"partial_rotary_factor\": expected an even number of rotated dimensions" },
        { "minimax", "shared_intermediate_size", "64", "key \"shared_intermediate_size\": expected 0" },
        { "minimax", "scoring_func", "\"softmax\"", "key \"scoring_func\": expected \"sigmoid\"" },
        { "minimax", "qk_norm_type", "\"per_head\"", "key \"qk_norm_type\": expected \"per_layer\"" },
        { "dots1_layer_types", "sliding_window", "null", "key \"layer_types\": entry 1 slides, and there is no sliding_window" },
        { "dots1", "layer_types", "[\"chunked_attention\",\"full_attention\",\"full_attention\"]",
          "key \"layer_types\": entry 0: expected \"full_attention\" or \"sliding_attention\"" },
        { "gpt_oss", "rope_scaling", NULL, "key \"rope_parameters\": expected an object" },
        { "gpt_oss", "sliding_window", "null", "key \"layer_types\": entry 0 slides, and there is no sliding_window" },
        { "gpt_oss", "swiglu_limit", "0", "key \"swiglu_limit\"" },
        { "gpt_oss", "hidden_act", "\"gelu\"", "key \"hidden_act\": expected \"silu\"" },
        { "gpt_oss", "num_experts", "9", "num_local_experts" },
        { "qwen3_next", "use_sliding_window", "true", "key \"use_sliding_window\": expected false" },
        { "qwen3_next", "hidden_act", "\"gelu\"", "key \"hidden_act\": expected \"silu\"" },
        { "qwen3_next", "linear_num_key_heads", "3", "key \"linear_num_key_heads\": 3 does not divide linear_num_value_heads 4" },
        { "qwen3_next", "linear_conv_kernel_dim", "17", "key \"linear_conv_kernel_dim\": expected an integer in 1..16; got 17" },
        { "qwen3_next", "linear_value_head_dim", "0", "key \"linear_value_head_dim\": expected an integer in 1..1024; got 0" },
        { "qwen3_next", "full_attention_interval", "5", "key \"full_attention_interval\": expected at least one layer of full attention" },
        { "qwen3_next", "layer_types", "[\"full_attention\"]", "key \"layer_types\": expected a list of 4 times" },
        { "qwen3_next", "layer_types", "[\"linear_attention\",\"linear_attention\",\"sliding_attention\",\"full_attention\"]",
          "key \"layer_types\": entry 2: expected \"linear_attention\" or \"full_attention\"" },
        { "qwen3_next", "layer_types", "[\"linear_attention\",\"linear_attention\",\"full_attention\",\"full_attention\"]",
          "key \"full_attention_interval\": 4 differs from layer_types in layer 2" },
        { "qwen3_next_odd", "layer_types", "[\"linear_attention\",\"linear_attention\",\"linear_attention\",\"linear_attention\",\"linear_attention\"]",
          "key \"layer_types\": expected at least one layer of full attention among 5" },
        { "qwen3_next", "partial_rotary_factor", "0.3", "key \"partial_rotary_factor\": expected an even number of rotated dimensions" },
        { "bailing", "use_bias", "true", "key \"use_bias\": expected false; got true" },
        { "bailing", "norm_topk_prob", "false", "key \"norm_topk_prob\": expected true" },
        { "bailing", "moe_router_enable_expert_bias", "false", "key \"moe_router_enable_expert_bias\": expected true" },
        { "bailing", "score_function", "\"softmax\"", "key \"score_function\": expected \"sigmoid\"" },
        { "bailing", "router_dtype", "\"bf16\"", "key \"router_dtype\": expected \"fp32\"" },
        { "bailing", "norm_head", "true", "key \"norm_head\": expected false; got true" },
        { "bailing", "use_rmsnorm", "false", "key \"use_rmsnorm\": expected true" },
        { "bailing", "moe_shared_expert_intermediate_size", "21", "key \"moe_shared_expert_intermediate_size\": expected moe_intermediate_size" },
        { "bailing", "partial_rotary_factor", NULL, "key \"partial_rotary_factor\": expected a number, or \"rotary_dim\"" },
        { "bailing", "rotary_dim", "16", "key \"rotary_dim\": 16 differs from partial_rotary_factor 0.5 of head_dim 24" },
        { "bailing", "use_sliding_window", "true", "key \"use_sliding_window\": expected false" },
        { "bailing", "first_k_dense_replace", "4", "key \"first_k_dense_replace\": expected an integer in 0..3; got 4" },
        { "llama4", "no_rope_layers", "[1, 1]", "key \"no_rope_layers\": expected a list of a 0 or 1 for every layer" },
        { "llama4", "no_rope_layers", "[1, 1, 2, 0]", "key \"no_rope_layers\": entry 2: expected 0 or 1" },
        { "llama4", "no_rope_layers", "3", "key \"no_rope_layers\"" },
        { "llama4", "layer_types", "[\"sliding_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]",
          "key \"layer_types\": entry 0: expected \"full_attention\" or \"chunked_attention\"" },
        { "llama4", "attention_chunk_size", "null", "key \"attention_chunk_size\": is null and layer 0 attends in chunks" },
        { "llama4", "floor_scale", "0", "key \"floor_scale\"" },
        { "llama4", "moe_layers", "[4]", "key \"moe_layers\": entry 0: expected a layer in 0..3" },
        { "llama4", "moe_layers", "\"all\"", "key \"moe_layers\": expected a list of layers" },
        { "llama4", "intermediate_size_mlp", NULL, "key \"intermediate_size_mlp\"" },
        { "llama4", "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":2,\"high_freq_factor\":1,\"original_max_position_embeddings\":32}",
          "key \"rope_scaling.high_freq_factor\": expected at least low_freq_factor 2; got 1" },
        { "llama4", "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8}", "key \"rope_scaling.original_max_position_embeddings\"" },
        { "hunyuan", "use_cla", "true", "key \"use_cla\": expected false; got true" },
        { "hunyuan", "moe_topk", "[4, 3]", "key \"moe_topk\": expected one integer in 1..12, or 2 times the same" },
        { "hunyuan", "num_experts", "[12, 12]", "key \"num_experts\": expected an integer in 1..4096" },
        { "glm4_lite", "mlp_layer_types", "[\"dense\"]", "key \"mlp_layer_types\": expected a list of 3 times \"dense\" or \"sparse\"" },
        { "glm4_lite", "mlp_layer_types", "[\"dense\",\"moe\",\"dense\"]", "key \"mlp_layer_types\": entry 1: expected \"dense\" or \"sparse\"" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_model_config *config = NULL;
        mf_error err = { 0 };
        mf_status status = parse_changed(rows[i].golden, rows[i].key, rows[i].value, &config, &err);
        if (status == MF_OK || !strstr(err.message, rows[i].message)) {
            fail_msg("%s, %s = %s: expected \"%s\"; got status %d \"%s\"", rows[i].golden, rows[i].key, rows[i].value,
                     rows[i].message, (int)status, err.message);
        }
    }
}

TEST(absent_keys_take_the_class_defaults)
{
    mf_model_config *c = changed("mixtral", "rope_theta", NULL);
    CHECK(c->rope.theta == 1e6);
    mf_model_config_close(&c);
    c = changed("minimax", "rope_theta", NULL);
    CHECK(c->rope.theta == 5e6);
    mf_model_config_close(&c);
    c = changed("ernie", "rope_theta", NULL);
    CHECK(c->rope.theta == 5e5 && c->rope.pair && c->tie_word_embeddings);
    mf_model_config_close(&c);
    c = changed("qwen2", "qkv_bias", NULL);
    CHECK(c->input_bias && !c->output_bias);
    mf_model_config_close(&c);
    c = changed("qwen2", "norm_topk_prob", NULL);
    CHECK_EQ(c->gate.renorm, MF_RENORM_NONE);
    mf_model_config_close(&c);
    c = changed("gpt_oss", "layer_types", NULL);
    CHECK(c->layer_is_local[0] && !c->layer_is_local[1] && c->layer_is_local[2]);
    mf_model_config_close(&c);
    c = changed("gpt_oss", "swiglu_limit", NULL);
    CHECK(c->activation_limit == 7.0 && c->activation_alpha == 1.702 && c->input_bias && c->output_bias);
    mf_model_config_close(&c);
    c = changed("gpt_oss", "sliding_window", NULL);
    CHECK_EQ(c->window, 128);
    mf_model_config_close(&c);
    c = changed("gpt_oss", "head_dim", NULL);
    CHECK_EQ(c->head_dim, 64);
    mf_model_config_close(&c);
    c = changed("llama4", "attention_chunk_size", NULL);
    CHECK_EQ(c->chunk, 8192);
    mf_model_config_close(&c);
    c = changed("llama4", "no_rope_layers", "[]"); /* as absent: every fourth layer */
    CHECK(!c->layer_has_no_rope[0] && !c->layer_has_no_rope[2] && c->layer_has_no_rope[3]);
    CHECK(c->layer_is_local[0] && !c->layer_is_local[3]);
    mf_model_config_close(&c);
    c = changed("llama4", "attn_temperature_tuning", "4"); /* as older files have it */
    CHECK_EQ(c->query_floor, 9);
    mf_model_config_close(&c);
    c = changed("llama4", "attn_temperature_tuning", "false");
    CHECK_EQ(c->query_floor, 0);
    mf_model_config_close(&c);
    c = changed("llama4", "interleave_moe_layer_step", "2");
    CHECK(!c->layer_is_moe[0] && c->layer_is_moe[1] && c->num_moe_layers == 2);
    CHECK(c->intermediate_size == 40 && c->moe_intermediate_size == 24 && c->num_shared_experts == 1);
    mf_model_config_close(&c);
    c = changed("llama4", "use_qk_norm", "false");
    CHECK_EQ(c->qk_norm, MF_QK_NORM_NONE);
    mf_model_config_close(&c);
    c = changed("olmoe", "num_key_value_heads", NULL);
    CHECK_EQ(c->num_kv_heads, c->num_heads);
    mf_model_config_close(&c);
    c = changed("qwen3_next", "norm_topk_prob", NULL); /* unlike the other Qwen families */
    CHECK_EQ(c->gate.renorm, MF_RENORM_SUM);
    mf_model_config_close(&c);
    c = changed("qwen3_next", "head_dim", NULL);
    CHECK(c->head_dim == 256 && c->rope.dim == 64);
    mf_model_config_close(&c);
    c = changed("qwen3_next", "partial_rotary_factor", NULL);
    CHECK_EQ(c->rope.dim, 4);
    mf_model_config_close(&c);
    c = changed("qwen3_next", "full_attention_interval", NULL);
    CHECK_EQ(c->num_linear_layers, 3);
    CHECK(c->layer_is_linear[2] && !c->layer_is_linear[3]);
    mf_model_config_close(&c);
    c = changed("qwen3_next", "linear_num_value_heads", NULL);
    CHECK_EQ(c->linear_num_v_heads, 32);
    mf_model_config_close(&c);
    c = changed("bailing", "rope_theta", NULL);
    CHECK(c->rope.theta == 6e5 && !c->rope.pair);
    mf_model_config_close(&c);
    c = changed("bailing", "rotary_dim", "12");
    CHECK_EQ(c->rope.dim, 12);
    mf_model_config_close(&c);
    c = changed("bailing", "use_qkv_bias", NULL);
    CHECK(!c->input_bias && !c->output_bias && c->qk_norm == MF_QK_NORM_HEAD);
    mf_model_config_close(&c);
    c = changed("bailing", "routed_scaling_factor", NULL);
    CHECK(c->gate.routed_scaling_factor == 1.0);
    mf_model_config_close(&c);
    c = changed("glm4_lite", "mlp_layer_types", NULL); /* first_k_dense_replace 2 is not read */
    CHECK_EQ(c->num_moe_layers, 2);
    CHECK(!c->layer_is_moe[0] && c->layer_is_moe[1]);
    mf_model_config_close(&c);
}

/* Which layers slide: transformers' rules, and the class default of dots1's window. */
TEST(windows_go_to_the_layers_that_the_keys_name)
{
    static const struct {
        const char *golden, *key, *value;
        int64_t window;
        uint8_t local[5];
    } rows[] = {
        { "mixtral_window", NULL, NULL, 9, { 1, 1 } },
        { "mixtral_window", "sliding_window", "null", 0, { 0, 0 } },
        { "qwen2_window", NULL, NULL, 13, { 1, 0, 1, 0, 0 } },
        { "qwen2_window", "sliding_window", NULL, 4096, { 1, 0, 1, 0, 0 } },
        { "qwen2_window", "max_window_layers", NULL, 13, { 1, 0, 1, 0, 1 } },
        { "qwen2_window", "use_sliding_window", "false", 0, { 0, 0, 0, 0, 0 } },
        { "qwen3_window", NULL, NULL, 17, { 1, 1 } },
        { "dots1_window", NULL, NULL, 7, { 0, 1, 1 } },
        { "dots1_window", "sliding_window", NULL, 4096, { 0, 1, 1 } },
        { "dots1_window", "sliding_window", "null", 0, { 0, 0, 0 } },
        { "dots1_layer_types", NULL, NULL, 11, { 0, 1, 0 } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_model_config *c = changed(rows[i].golden, rows[i].key, rows[i].value);
        CHECK_EQ(c->window, rows[i].window);
        CHECK_EQ(memcmp(c->layer_is_local, rows[i].local, (size_t)c->num_layers), 0);
        mf_model_config_close(&c);
    }
}

TEST(a_shared_expert_is_cut_into_chunks_of_the_routed_width)
{
    mf_model_config *c = changed("qwen2", NULL, NULL);
    CHECK_EQ(c->num_shared_experts, 4);
    CHECK(c->has_shared_gate);
    mf_model_config_close(&c);
    c = changed("qwen2_wide", NULL, NULL); /* 40 = 16 + 16 + 8 */
    CHECK_EQ(c->num_shared_experts, 3);
    CHECK_EQ(c->shared_intermediate_size, 40);
    mf_model_config_close(&c);
    c = changed("hunyuan", "num_shared_expert", "[2, 2]");
    CHECK_EQ(c->num_shared_experts, 2);
    mf_model_config_close(&c);
}

/* theta * alpha^(d / (d - 2)) = 10000 * 1000^(16 / 14) */
TEST(alpha_enlarges_the_base_of_rope)
{
    mf_model_config *c = changed("hunyuan", NULL, NULL);
    CHECK(c->rope.theta > 26826957.9 && c->rope.theta < 26826958.0);
    mf_model_config_close(&c);
}
