/* gqa_test.c - the families with grouped-query attention: what their released configs become, what is refused, and their
 * checkpoints' tensors, each in its place or named. */
#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "checkpoint_writer.h"
#include "model/model.h"
#include "model/tensor_map.h"
#include "test.h"

/* The released values of Qwen3-30B-A3B. */
static const char qwen3_text[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
    " \"bos_token_id\": 151643, \"decoder_sparse_step\": 1, \"eos_token_id\": 151645, \"head_dim\": 128, \"hidden_act\":"
    " \"silu\", \"hidden_size\": 2048, \"initializer_range\": 0.02, \"intermediate_size\": 6144,"
    " \"max_position_embeddings\": 40960, \"max_window_layers\": 48, \"mlp_only_layers\": [], \"model_type\":"
    " \"qwen3_moe\", \"moe_intermediate_size\": 768, \"norm_topk_prob\": true, \"num_attention_heads\": 32,"
    " \"num_experts\": 128, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 48, \"num_key_value_heads\": 4,"
    " \"output_router_logits\": false, \"rms_norm_eps\": 1e-06, \"rope_scaling\": null, \"rope_theta\": 1000000.0,"
    " \"router_aux_loss_coef\": 0.001, \"sliding_window\": null, \"tie_word_embeddings\": false, \"torch_dtype\":"
    " \"bfloat16\", \"use_cache\": true, \"use_sliding_window\": false, \"vocab_size\": 151936}";

/* The released values of GLM-4.5-Air. */
static const char glm4_air_text[] =
    "{\"architectures\": [\"Glm4MoeForCausalLM\"], \"attention_bias\": true, \"attention_dropout\": 0.0,"
    " \"eos_token_id\": [151329, 151336, 151338], \"first_k_dense_replace\": 1, \"head_dim\": 128, \"hidden_act\":"
    " \"silu\", \"hidden_size\": 4096, \"intermediate_size\": 10944, \"max_position_embeddings\": 131072, \"model_type\":"
    " \"glm4_moe\", \"moe_intermediate_size\": 1408, \"n_group\": 1, \"n_routed_experts\": 128, \"n_shared_experts\": 1,"
    " \"norm_topk_prob\": true, \"num_attention_heads\": 96, \"num_experts_per_tok\": 8, \"num_hidden_layers\": 46,"
    " \"num_key_value_heads\": 8, \"num_nextn_predict_layers\": 1, \"pad_token_id\": 151329, \"partial_rotary_factor\":"
    " 0.5, \"rms_norm_eps\": 1e-05, \"rope_scaling\": null, \"rope_theta\": 1000000, \"routed_scaling_factor\": 1.0,"
    " \"tie_word_embeddings\": false, \"topk_group\": 1, \"torch_dtype\": \"bfloat16\", \"use_cache\": true,"
    " \"use_qk_norm\": false, \"vocab_size\": 151552}";

static mf_model_config *parse(const char *text)
{
    mf_model_config *config;
    mf_error err;
    CHECK_OK(mf_model_config_parse(text, strlen(text), "config.json", &config, &err), err);
    return config;
}

static mf_status parse_cw(const cw *w, mf_model_config **config, mf_error *err)
{
    char *text = json_dumps(w->config, 0);
    mf_status status = mf_model_config_parse(text, strlen(text), "config.json", config, err);
    free(text);
    return status;
}

/* ---- released models ---- */

TEST(qwen3_30b_a3b_as_released_is_read)
{
    mf_model_config *c = parse(qwen3_text);
    CHECK_STR(c->family->name, "Qwen3-MoE");
    CHECK_EQ(c->attention, MF_ATTENTION_GQA);
    CHECK_EQ(c->num_heads, 32);
    CHECK_EQ(c->num_kv_heads, 4);
    CHECK_EQ(c->head_dim, 128);
    CHECK_EQ(c->v_head_dim, 128);
    CHECK_EQ(mf_model_config_q_size(c), 4096);
    CHECK_EQ(mf_model_config_kv_size(c), 4 * 256);
    CHECK(c->qk_norm && !c->input_bias && !c->output_bias && !c->rope.pair);
    CHECK_EQ(c->rope.dim, 128);
    CHECK_EQ(c->rope.type, MF_ROPE_DEFAULT);
    CHECK(c->rope.theta == 1e6);
    CHECK(fabs(c->softmax_scale - 0.08838834764831845) < 1e-15); /* 128^-1/2 */
    CHECK_EQ(c->num_moe_layers, 48);
    CHECK_EQ(c->num_shared_experts, 0);
    CHECK_EQ(c->gate.num_experts, 128);
    CHECK_EQ(c->gate.top_k, 8);
    CHECK_EQ(c->gate.scoring, MF_SCORING_SOFTMAX);
    CHECK_EQ(c->gate.bias_domain, MF_BIAS_NONE);
    CHECK_EQ(c->gate.renorm, MF_RENORM_SUM);
    CHECK(c->gate.routed_scaling_factor == 1.0);
    CHECK(!c->has_correction_bias);
    /* By hand.  Embedding and head 151936 * 2048 * 2 = 622,329,856.  Attention: q and o 2 * 4096 * 2048, k and v 2 * 512 *
     * 2048, norms 2 * 128 + 2 * 2048: 18,878,720; * 48 = 906,178,560.  An expert 3 * 768 * 2048 = 4,718,592; a layer has 128
     * and a router of 128 * 2048: 604,241,920; * 48 = 29,003,612,160.  Last norm 2048.  A token leaves 120 experts out. */
    mf_model_size size = mf_model_config_size(c);
    CHECK(size.total_params == 30532122624);
    CHECK(size.active_params == 30532122624 - 48LL * 120 * 4718592);
    CHECK(mf_tensor_map_count(c) == 3 + 48 * (2 + 6 + 1 + 3 * 128));
    mf_model_config_close(&c);
}

TEST(glm_45_air_as_released_is_read)
{
    mf_model_config *c = parse(glm4_air_text);
    CHECK_STR(c->family->name, "GLM-4.5");
    CHECK_EQ(c->attention, MF_ATTENTION_GQA);
    CHECK_EQ(mf_model_config_q_size(c), 96 * 128);
    CHECK_EQ(mf_model_config_kv_size(c), 8 * 256);
    CHECK(!c->qk_norm && c->input_bias && !c->output_bias && !c->rope.pair);
    CHECK_EQ(c->rope.dim, 64);
    CHECK_EQ(c->num_nextn_layers, 1);
    CHECK_EQ(c->num_moe_layers, 45);
    CHECK_EQ(c->layer_is_moe[0], 0);
    CHECK_EQ(c->num_shared_experts, 1);
    CHECK_EQ(c->gate.scoring, MF_SCORING_SIGMOID);
    CHECK_EQ(c->gate.bias_domain, MF_BIAS_SCORE);
    CHECK_EQ(c->gate.group_score, MF_GROUP_SCORE_UNSET);
    CHECK_EQ(c->gate.renorm, MF_RENORM_SUM_EPS);
    CHECK(c->gate.renorm_eps == 1e-20 && c->gate.routed_scaling_factor == 1.0);
    CHECK(c->has_correction_bias);
    CHECK_EQ(c->num_eos_token_ids, 3);
    /* By hand.  Embedding and head 151552 * 4096 * 2 = 1,241,513,984.  Attention: q and o 2 * 12288 * 4096, k and v 2 * 1024 *
     * 4096, biases 12288 + 2 * 1024, norms 2 * 4096: 109,074,432; * 46 = 5,017,423,872.  Dense 3 * 10944 * 4096 =
     * 134,479,872.  An expert 3 * 1408 * 4096 = 17,301,504; a layer has 129, a router of 128 * 4096 and 128 biases:
     * 2,232,418,432; * 45 = 100,458,829,440.  Last norm 4096. */
    mf_model_size size = mf_model_config_size(c);
    CHECK(size.total_params == 106852251264);
    CHECK(size.active_params == 106852251264 - 45LL * 120 * 17301504);
    mf_model_config_close(&c);
}

TEST(the_lists_and_steps_of_qwen3_place_its_dense_layers)
{
    static const struct {
        const char *step, *list, *moe; /* 1: MoE */
    } cases[] = {
        { "1", "[]", "111111" },          { "1", "null", "111111" }, { "2", "[]", "010101" }, { "3", "[]", "001001" },
        { "2", "[1, 0, 1]", "000101" },   { "1", "[5]", "111110" },  { "7", "[]", "000000" }, { NULL, NULL, "111111" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cw *w = cw_new(CW_QWEN3);
        cw_set(w, "num_hidden_layers", "6");
        cw_set(w, "decoder_sparse_step", cases[i].step);
        cw_set(w, "mlp_only_layers", cases[i].list);
        mf_model_config *c;
        mf_error err;
        CHECK_OK(parse_cw(w, &c, &err), err);
        int64_t count = 0;
        for (int l = 0; l < 6; l++) {
            CHECK_EQ(c->layer_is_moe[l], cases[i].moe[l] - '0');
            count += c->layer_is_moe[l];
        }
        CHECK_EQ(c->num_moe_layers, count);
        mf_model_config_close(&c);
        cw_free(w);
    }
}

TEST(absent_keys_take_what_every_implementation_takes)
{
    mf_model_config *c;
    mf_error err;
    cw *w = cw_new(CW_QWEN3);
    cw_set(w, "head_dim", NULL);
    cw_set(w, "norm_topk_prob", NULL);
    cw_set(w, "num_experts", NULL);
    cw_set(w, "num_local_experts", "5");
    cw_set(w, "attention_bias", "true");
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->head_dim, 8); /* 16 / 2 */
    CHECK_EQ(c->gate.num_experts, 5);
    CHECK_EQ(c->gate.renorm, MF_RENORM_NONE);
    CHECK(c->input_bias && c->output_bias);
    mf_model_config_close(&c);
    cw_free(w);
    w = cw_new(CW_GLM4);
    cw_set(w, "partial_rotary_factor", NULL);
    cw_set(w, "use_qk_norm", NULL);
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->rope.dim, 6);
    CHECK(!c->qk_norm && c->input_bias && !c->output_bias);
    mf_model_config_close(&c);
    /* the newer spelling */
    cw_set(w, "rope_theta", NULL);
    cw_set(w, "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 5000, \"partial_rotary_factor\": 1.0}");
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->rope.dim, 12);
    CHECK(c->rope.theta == 5000);
    mf_model_config_close(&c);
    cw_free(w);
}

/* ---- refusals ---- */

TEST(what_would_change_values_and_is_not_done_is_refused_by_name)
{
    static const struct {
        cw_kind kind;
        const char *key, *value; /* NULL: removed */
        mf_status status;
        const char *message; /* behind "config.json: " */
    } rows[] = {
        { CW_QWEN3, "layer_types", "[\"full_attention\", \"sliding_attention\", \"full_attention\"]", MF_ERR_INVALID,
          "key \"layer_types\": entry 1 slides, and use_sliding_window is false" },
        { CW_QWEN3, "dual_chunk_attention_config", "{\"chunk_size\": 262144}", MF_ERR_UNSUPPORTED,
          "key \"dual_chunk_attention_config\": expected null" },
        { CW_QWEN3, "shared_expert_intermediate_size", "8", MF_ERR_UNSUPPORTED,
          "key \"shared_expert_intermediate_size\": expected 0" },
        { CW_QWEN3, "partial_rotary_factor", "0.5", MF_ERR_UNSUPPORTED, "key \"partial_rotary_factor\": expected 1; got 0.5" },
        { CW_QWEN3, "mlp_bias", "true", MF_ERR_UNSUPPORTED, "key \"mlp_bias\": expected false" },
        { CW_QWEN3, "mlp_only_layers", "[3]", MF_ERR_INVALID, "key \"mlp_only_layers\": entry 0: expected a layer in 0..2" },
        { CW_QWEN3, "mlp_only_layers", "[0, -1]", MF_ERR_INVALID, "key \"mlp_only_layers\": entry 1: expected a layer" },
        { CW_QWEN3, "mlp_only_layers", "0", MF_ERR_INVALID, "key \"mlp_only_layers\": expected a list of layers; got 0" },
        { CW_QWEN3, "decoder_sparse_step", "0", MF_ERR_INVALID,
          "key \"decoder_sparse_step\": expected an integer in 1..1024; got 0" },
        { CW_QWEN3, "num_key_value_heads", "3", MF_ERR_INVALID,
          "key \"num_key_value_heads\": 3 does not divide num_attention_heads 2" },
        { CW_QWEN3, "num_key_value_heads", NULL, MF_ERR_INVALID, "key \"num_key_value_heads\": expected an integer" },
        { CW_QWEN3, "head_dim", "5", MF_ERR_INVALID,
          "key \"partial_rotary_factor\": expected an even number of rotated dimensions; got 1 x 5" },
        { CW_QWEN3, "head_dim", "4097", MF_ERR_INVALID, "key \"head_dim\": expected an integer in 2..4096; got 4097" },
        { CW_QWEN3, "num_experts_per_tok", "13", MF_ERR_INVALID,
          "key \"num_experts_per_tok\": expected at most num_experts 12; got 13" },
        { CW_QWEN3, "num_local_experts", "8", MF_ERR_INVALID, "key \"num_experts\": differs from \"num_local_experts\"" },
        { CW_QWEN3, "num_experts", "[12]", MF_ERR_INVALID, "key \"num_experts\": expected an integer in 1..4096; got a list" },
        { CW_QWEN3, "rope_scaling", "{\"rope_type\": \"dynamic\", \"factor\": 2}", MF_ERR_UNSUPPORTED,
          "key \"rope_scaling.rope_type\"" },
        { CW_GLM4, "partial_rotary_factor", "0.25", MF_ERR_INVALID,
          "key \"partial_rotary_factor\": expected an even number of rotated dimensions; got 0.25 x 12" },
        { CW_GLM4, "partial_rotary_factor", "1.5", MF_ERR_INVALID,
          "key \"partial_rotary_factor\": expected a number in 0..1; got 1.5" },
        { CW_GLM4, "rope_scaling", "{\"rope_type\": \"default\", \"partial_rotary_factor\": 1.0}", MF_ERR_INVALID,
          "key \"rope_scaling.partial_rotary_factor\": is 1 here and 0.5 elsewhere" },
        { CW_GLM4, "scoring_func", "\"softmax\"", MF_ERR_UNSUPPORTED, "key \"scoring_func\": expected \"sigmoid\"" },
        { CW_GLM4, "n_group", "5", MF_ERR_INVALID, "key \"n_group\": 5 does not divide n_routed_experts 12" },
        { CW_GLM4, "use_qk_norm", "1", MF_ERR_INVALID, "key \"use_qk_norm\": expected true or false; got 1" },
        { CW_GLM4, "quantization_config", "{\"quant_method\": \"gptq\", \"bits\": 3}", MF_ERR_UNSUPPORTED,
          "key \"quantization_config.bits\": expected 4; got 3" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = cw_new(rows[i].kind);
        cw_set(w, rows[i].key, rows[i].value);
        mf_model_config *c;
        mf_error err = { 0 };
        mf_status status = parse_cw(w, &c, &err);
        char expected[400];
        snprintf(expected, sizeof expected, "config.json: %s", rows[i].message);
        if (status != rows[i].status || strncmp(err.message, expected, strlen(expected)) != 0) {
            fail_msg("%s = %s: expected status %d \"%s\"; got %d \"%s\"", rows[i].key, rows[i].value ? rows[i].value : "nothing",
                     (int)rows[i].status, expected, (int)status, err.message);
        }
        CHECK(c == NULL);
        cw_free(w);
    }
}

/* The form of GLM-4.5-Air-FP8: one scale per row. */
#define WEIGHTS "\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"channel\", \"symmetric\": true, "
#define GROUP(weights_rest, inputs)                                                                                     \
    "\"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"output_activations\": null, " WEIGHTS weights_rest   \
    "\"dynamic\": false, \"observer\": \"minmax\", \"group_size\": null}, \"input_activations\": " inputs "}}"
#define PER_TOKEN "{\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"token\", \"dynamic\": true, \"symmetric\": true}"
#define COMPRESSED "{\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\", \"kv_cache_scheme\": null, "
#define BY_CHANNEL COMPRESSED GROUP("", PER_TOKEN) ", \"ignore\": [\"lm_head\", \"model.layers.1.mlp.gate\"]}"

TEST(compressed_tensors_by_channel_and_by_block_are_read_and_others_named)
{
    cw *w = cw_new(CW_GLM4);
    mf_model_config *c;
    mf_error err;
    cw_set(w, "quantization_config", BY_CHANNEL);
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->quant.schemes[0].method, MF_QUANT_FP8_CHANNEL);
    CHECK_STR(c->quant.schemes[0].scale_suffix, "_scale");
    CHECK_EQ(c->quant.excluded.num_names, 2);
    mf_model_config_close(&c);
    json_t *weights = json_object_get(w->config, "quantization_config");
    weights = json_object_get(json_object_get(json_object_get(weights, "config_groups"), "group_0"), "weights");
    json_object_set_new(weights, "strategy", json_string("block"));
    json_object_set_new(weights, "block_structure", json_pack("[i,i]", 128, 128));
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->quant.schemes[0].method, MF_QUANT_FP8_BLOCK);
    CHECK_EQ(c->quant.schemes[0].block_n, 128);
    CHECK_STR(c->quant.schemes[0].scale_suffix, "_scale");
    mf_model_config_close(&c);
    json_object_set_new(weights, "block_structure", json_pack("[i,i]", 64, 128));
    CHECK_EQ(parse_cw(w, &c, &err), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "key \"quantization_config.config_groups.group_0.weights.block_structure\": expected [128, 128]");
    static const struct {
        const char *value, *message;
    } rows[] = {
        { COMPRESSED GROUP("\"num_bits\": 4, ", PER_TOKEN) "}", "group_0.weights.num_bits\": expected 8 (but for format" },
        { COMPRESSED GROUP("\"type\": \"int\", ", PER_TOKEN) "}", "group_0.weights.type\": int codes in format \"float-quantized\"" },
        { COMPRESSED GROUP("\"strategy\": \"token\", ", PER_TOKEN) "}",
          "weights.strategy\": expected \"channel\", \"tensor\" or \"block\"; got \"token\"" },
        { COMPRESSED GROUP("\"symmetric\": false, ", PER_TOKEN) "}", "weights.symmetric\": expected true" },
        { COMPRESSED GROUP("\"smooth\": 1, ", PER_TOKEN) "}", "weights.smooth\": is not a quantisation argument" },
        { COMPRESSED GROUP("", "{\"num_bits\": 4, \"type\": \"float\", \"dynamic\": false}") "}",
          "input_activations.num_bits\": expected 8; got 4" },
        { COMPRESSED "\"config_groups\": {}}", "config_groups\": expected an object with 1 to 16 groups" },
        { COMPRESSED "\"config_groups\": {\"a\": {\"targets\": [\"re:.*mlp.*\"]}}}", "a.weights\": expected an object" },
        { COMPRESSED "\"ignore\": [\"re:(?!x).*gate$\"], " GROUP("", "null") "}", "ignore\": pattern \"(?!x).*gate$\" has a group other than" },
        { COMPRESSED "\"transform_config\": {\"a\": 1}, " GROUP("", "null") "}", "transform_config\": expected nothing" },
        { "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", " GROUP("", "null") "}",
          "num_bits\": expected 4 (format \"pack-quantized\"); got 8" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw_set(w, "quantization_config", rows[i].value);
        CHECK(parse_cw(w, &c, &err) != MF_OK);
        CHECK_HAS(err.message, rows[i].message);
        CHECK(c == NULL);
    }
    cw_free(w);
}

/* ---- tensors ---- */

static mf_status load(cw *w, bool use_map, mf_model_config **config, mf_weights **weights, mf_error *err)
{
    mf_weights_options options = { .use_map = use_map };
    *weights = NULL;
    cw_write(w);
    MF_TRY(mf_model_config_load(w->dir, config, err));
    return mf_weights_load(w->dir, *config, &options, weights, err);
}

static void check_matrix(const mf_matrix *m, int64_t n, int64_t k, const cw_tensor *t)
{
    CHECK_EQ(m->n, n);
    CHECK_EQ(m->k, k);
    CHECK_MEM(m->data, t->data, t->bytes);
}

static void check_vector(const float *values, int n, const cw_tensor *t)
{
    CHECK(values != NULL);
    CHECK_EQ(t->bytes, (size_t)n * 2);
    for (int i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, t->data + 2 * i, 2);
        CHECK(values[i] == mf_bf16_to_f32(h));
    }
}

TEST(every_tensor_lands_in_its_place)
{
    static const cw_kind kinds[] = { CW_QWEN3, CW_GLM4 };
    for (int i = 0; i < 2; i++) {
        cw *w = cw_new(kinds[i]);
        mf_model_config *c;
        mf_weights *x;
        mf_error err;
        CHECK_OK(load(w, i == 0, &c, &x, &err), err);
        const mf_layer_weights *l = &x->layers[1];
        check_matrix(&l->q_proj, 24, 16, cw_get(w, "model.layers.1.self_attn.q_proj.weight"));
        check_matrix(&l->k_proj, 12, 16, cw_get(w, "model.layers.1.self_attn.k_proj.weight"));
        check_matrix(&l->v_proj, 12, 16, cw_get(w, "model.layers.1.self_attn.v_proj.weight"));
        check_matrix(&l->o_proj, 16, 24, cw_get(w, "model.layers.1.self_attn.o_proj.weight"));
        check_vector(l->q_norm, 12, cw_get(w, "model.layers.1.self_attn.q_norm.weight"));
        check_vector(l->k_norm, 12, cw_get(w, "model.layers.1.self_attn.k_norm.weight"));
        check_matrix(&l->router, 12, 16, cw_get(w, "model.layers.1.mlp.gate.weight"));
        check_matrix(&l->experts[11].down, 16, 8, cw_get(w, "model.layers.1.mlp.experts.11.down_proj.weight"));
        check_matrix(&x->layers[0].dense.up, 24, 16, cw_get(w, "model.layers.0.mlp.up_proj.weight"));
        CHECK(!l->q_a_proj.data && !l->kv_a_proj.data && !l->kv_b_proj.data && !l->kv_a_norm && !l->o_bias);
        if (kinds[i] == CW_GLM4) {
            check_vector(l->q_bias, 24, cw_get(w, "model.layers.1.self_attn.q_proj.bias"));
            check_vector(l->k_bias, 12, cw_get(w, "model.layers.1.self_attn.k_proj.bias"));
            check_vector(l->v_bias, 12, cw_get(w, "model.layers.1.self_attn.v_proj.bias"));
            check_matrix(&l->shared.up, 8, 16, cw_get(w, "model.layers.1.mlp.shared_experts.up_proj.weight"));
            CHECK(l->e_score_correction_bias != NULL);
        } else {
            CHECK(!l->q_bias && !l->k_bias && !l->v_bias && !l->shared.up.data && !l->e_score_correction_bias);
        }
        mf_weights_close(&x);
        mf_model_config_close(&c);
        cw_free(w);
    }
}

/* One change each: a tensor missing, doubled, strange, of another shape or dtype. */
static void expect(cw *w, const char *message)
{
    for (int use_map = 0; use_map < 2; use_map++) {
        mf_model_config *c;
        mf_weights *x;
        mf_error err = { 0 };
        mf_status status = load(w, use_map, &c, &x, &err);
        if (status != MF_ERR_FORMAT || !strstr(err.message, message)) {
            fail_msg("expected \"%s\"; got %d \"%s\"", message, (int)status, err.message);
        }
        CHECK(x == NULL);
        mf_model_config_close(&c);
    }
    cw_free(w);
}

TEST(a_checkpoint_that_does_not_fit_is_refused_with_the_tensors_name)
{
    static const char *const missing[] = { "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.q_norm.weight",
                                           "self_attn.k_norm.weight", "self_attn.k_proj.bias",   "self_attn.v_proj.bias",
                                           "mlp.gate.weight",         "self_attn.o_proj.weight", "input_layernorm.weight" };
    char name[120], text[200];
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++) {
        cw *w = cw_new(CW_GLM4);
        snprintf(name, sizeof name, "model.layers.2.%s", missing[i]);
        cw_remove(w, name);
        snprintf(text, sizeof text, "missing: %s", name);
        expect(w, text);
    }
    /* k_proj as wide as the queries: a multi-head checkpoint */
    cw *w = cw_new(CW_QWEN3);
    cw_remake(w, "model.layers.0.self_attn.k_proj.weight", "BF16", 2, (int64_t[]){ 24, 16 });
    expect(w, "tensor \"model.layers.0.self_attn.k_proj.weight\": expected shape [12, 16]; got [24, 16]");
    /* norms over the whole projection */
    w = cw_new(CW_QWEN3);
    cw_remake(w, "model.layers.1.self_attn.q_norm.weight", "BF16", 1, (int64_t[]){ 24 });
    expect(w, "tensor \"model.layers.1.self_attn.q_norm.weight\": expected shape [12]; got [24]");
    w = cw_new(CW_GLM4);
    cw_remake(w, "model.layers.1.self_attn.v_proj.bias", "BF16", 2, (int64_t[]){ 1, 12 });
    expect(w, "tensor \"model.layers.1.self_attn.v_proj.bias\": expected shape [12]; got [1, 12]");
    w = cw_new(CW_QWEN3);
    cw_remake(w, "model.layers.1.self_attn.v_proj.weight", "F8_E4M3", 2, (int64_t[]){ 12, 16 });
    expect(w, "tensor \"model.layers.1.self_attn.v_proj.weight\": expected dtype f32, bf16 or f16");
    /* tensors that the config does not ask for */
    static const struct {
        cw_kind kind;
        const char *name;
    } strange[] = { { CW_QWEN3, "model.layers.1.self_attn.q_proj.bias" },
                    { CW_GLM4, "model.layers.1.self_attn.o_proj.bias" },
                    { CW_QWEN3, "model.layers.1.mlp.shared_expert.up_proj.weight" },
                    { CW_QWEN3, "model.layers.1.mlp.gate.e_score_correction_bias" },
                    { CW_GLM4, "model.layers.1.self_attn.sinks" },
                    { CW_GLM4, "model.layers.4.self_attn.q_proj.weight" } };
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        w = cw_new(strange[i].kind);
        cw_add(w, strange[i].name, "BF16", 1, (int64_t[]){ 16 });
        snprintf(text, sizeof text, "unexpected: %s", strange[i].name);
        expect(w, text);
    }
    /* an expert twice: by itself and in the re-saved form */
    w = cw_new(CW_QWEN3);
    cw_add(w, "model.layers.1.mlp.experts.gate_up_proj", "BF16", 3, (int64_t[]){ 12, 16, 16 });
    cw_add(w, "model.layers.1.mlp.experts.down_proj", "BF16", 3, (int64_t[]){ 12, 16, 8 });
    expect(w, "hold the same expert");
    /* a name in two files */
    w = cw_new(CW_GLM4);
    cw_shard(w, 2);
    cw_copy(w, "model.layers.1.self_attn.k_norm.weight", "model.layers.1.self_attn.k_norm.weight")->shard = 1;
    cw_get(w, "model.layers.1.self_attn.k_norm.weight")->shard = 0;
    expect(w, "model.layers.1.self_attn.k_norm.weight");
    /* a missing scale */
    w = cw_new(CW_QWEN3_FP8);
    cw_remove(w, "model.layers.1.self_attn.k_proj.weight_scale_inv");
    expect(w, "missing: model.layers.1.self_attn.k_proj.weight_scale_inv");
}

/* CW_QWEN3_FP8 with one scale per row under compressed-tensors' names. */
static cw *by_channel(const char *scale_dtype)
{
    cw *w = cw_new(CW_QWEN3_FP8);
    cw_set(w, "quantization_config", BY_CHANNEL);
    for (size_t i = 0; i < w->num_tensors; i++) {
        cw_tensor *scale = &w->tensors[i];
        char *end = strstr(scale->name, "_scale_inv");
        if (end) {
            *end = '\0';
            int64_t rows = cw_get(w, scale->name)->shape[0];
            strcpy(end, "_scale");
            cw_remake(w, scale->name, scale_dtype, 2, (int64_t[]){ rows, 1 });
        }
    }
    return w;
}

TEST(fp8_by_channel_comes_with_one_scale_per_row)
{
    static const char *const dtypes[] = { "F32", "BF16" };
    mf_model_config *c;
    mf_weights *x, *dummy;
    mf_error err;
    for (int i = 0; i < 2; i++) {
        cw *w = by_channel(dtypes[i]);
        CHECK_OK(load(w, i == 0, &c, &x, &err), err);
        const mf_matrix *m = &x->layers[1].k_proj;
        CHECK_EQ(m->format, MF_FORMAT_FP8_CHANNEL);
        CHECK_EQ(m->scale_dtype, i == 0 ? MF_F32 : MF_BF16);
        CHECK_EQ(m->scale_row_stride, 1);
        CHECK_MEM(m->scale, cw_get(w, "model.layers.1.self_attn.k_proj.weight_scale")->data, (size_t)(i == 0 ? 48 : 24));
        CHECK_EQ(x->layers[1].experts[3].down.format, MF_FORMAT_FP8_CHANNEL);
        CHECK_EQ(x->layers[1].router.format, MF_FORMAT_BF16);
        mf_weights_options options = { .dummy = true, .num_threads = 1 };
        CHECK_OK(mf_weights_load(NULL, c, &options, &dummy, &err), err);
        CHECK_EQ(dummy->layers[1].k_proj.format, MF_FORMAT_FP8_CHANNEL);
        CHECK_EQ(dummy->layers[1].k_proj.scale_row_stride, 1);
        mf_weights_close(&dummy);
        mf_weights_close(&x);
        mf_model_config_close(&c);
        cw_free(w);
    }
    cw *w = by_channel("F32");
    cw_remake(w, "model.layers.1.mlp.experts.3.up_proj.weight_scale", "F32", 2, (int64_t[]){ 1, 1 });
    expect(w, "tensor \"model.layers.1.mlp.experts.3.up_proj.weight_scale\": expected shape [8, 1] (one scale per row); got "
              "[1, 1]");
    w = by_channel("F32");
    cw_remove(w, "model.layers.1.mlp.experts.3.up_proj.weight_scale");
    expect(w, "missing: model.layers.1.mlp.experts.3.up_proj.weight_scale");
    expect(by_channel("F8_E8M0"), "expected dtype f32, bf16 or f16; got f8_e8m0");
    w = by_channel("F32");
    cw_copy(w, "model.layers.1.self_attn.k_proj.weight_scale", "model.layers.1.self_attn.k_proj.weight_scale_inv");
    expect(w, "unexpected: model.layers.1.self_attn.k_proj.weight_scale_inv");
}

TEST(draft_layers_of_glm_are_skipped_and_counted)
{
    cw *w = cw_new(CW_GLM4);
    cw_copy(w, "model.layers.2.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight");
    cw_copy(w, "model.layers.2.input_layernorm.weight", "model.layers.3.enorm.weight");
    cw_copy(w, "lm_head.weight", "model.layers.3.shared_head.head.weight");
    mf_model_config *c;
    mf_weights *x;
    mf_error err;
    CHECK_OK(load(w, true, &c, &x, &err), err);
    CHECK_EQ(x->stats.num_skipped_tensors, 3);
    CHECK_EQ(x->stats.num_skipped_layers, 1);
    mf_weights_close(&x);
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(fp8_blocks_and_dummy_weights_have_the_families_shapes)
{
    static const cw_kind kinds[] = { CW_QWEN3_FP8, CW_GLM4 };
    for (int i = 0; i < 2; i++) {
        cw *w = cw_new(kinds[i]);
        mf_model_config *c;
        mf_weights *x, *dummy;
        mf_error err;
        CHECK_OK(load(w, true, &c, &x, &err), err);
        mf_weights_options options = { .dummy = true, .seed = 3, .num_threads = 1 };
        CHECK_OK(mf_weights_load(NULL, c, &options, &dummy, &err), err);
        mf_format format = kinds[i] == CW_QWEN3_FP8 ? MF_FORMAT_FP8_BLOCK : MF_FORMAT_BF16;
        for (int l = 0; l < 3; l++) {
            const mf_layer_weights *a = &x->layers[l], *b = &dummy->layers[l];
            const mf_matrix *pairs[][2] = { { &a->q_proj, &b->q_proj }, { &a->k_proj, &b->k_proj },
                                            { &a->v_proj, &b->v_proj }, { &a->o_proj, &b->o_proj },
                                            { &a->router, &b->router }, { &a->shared.down, &b->shared.down } };
            for (size_t k = 0; k < sizeof pairs / sizeof pairs[0]; k++) {
                CHECK_EQ(pairs[k][0]->n, pairs[k][1]->n);
                CHECK_EQ(pairs[k][0]->k, pairs[k][1]->k);
                CHECK_EQ(pairs[k][0]->format, pairs[k][1]->format);
                CHECK_EQ(pairs[k][0]->scale_row_stride, pairs[k][1]->scale_row_stride);
            }
            CHECK_EQ(a->k_proj.format, format);
            CHECK(b->q_norm[0] == 1.0f && b->k_norm[11] == 1.0f); /* a norm starts as the identity */
            CHECK_EQ(b->v_bias != NULL, kinds[i] == CW_GLM4);
        }
        mf_weights_close(&x);
        mf_weights_close(&dummy);
        mf_model_config_close(&c);
        cw_free(w);
    }
}

TEST(a_cache_row_holds_the_keys_of_all_kv_heads_and_then_their_values)
{
    cw *w = cw_new(CW_QWEN3);
    cw_write(w);
    mf_error err;
    mf_model *model = NULL;
    mf_model_options options = { .device = "ref",
                                 .num_threads = 1,
                                 .dummy = true,
                                 .max_batch_tokens = 4,
                                 .max_model_len = 16,
                                 .plan.num_shared_expert_replicas = 1 };
    CHECK_OK(mf_model_open(w->dir, &options, &model, &err), err);
    /* 3 layers, 16 tokens, one kv head of 12 + 12 floats */
    CHECK_EQ(mf_kv_store_block_bytes(model, 16), 3 * 16 * 24 * 4);
    mf_model_close(&model);
    cw_free(w);
}
