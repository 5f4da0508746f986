/* config_test.c - config.json: what released configs become, and what each refusal says. */
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint_writer.h"
#include "model/config.h"
#include "model/family.h"
#include "model/tensor_map.h"
#include "test.h"

/* The released values of DeepSeek-V3. */
static const char v3_text[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
    " \"auto_map\": {\"AutoConfig\": \"configuration_deepseek.DeepseekV3Config\"}, \"aux_loss_alpha\": 0.001, "
    "\"bos_token_id\": 0,"
    " \"eos_token_id\": 1, \"ep_size\": 1, \"first_k_dense_replace\": 3, \"hidden_act\": \"silu\", \"hidden_size\": "
    "7168,"
    " \"initializer_range\": 0.02, \"intermediate_size\": 18432, \"kv_lora_rank\": 512, \"max_position_embeddings\": "
    "163840,"
    " \"model_type\": \"deepseek_v3\", \"moe_intermediate_size\": 2048, \"moe_layer_freq\": 1, \"n_group\": 8,"
    " \"n_routed_experts\": 256, \"n_shared_experts\": 1, \"norm_topk_prob\": true, \"num_attention_heads\": 128,"
    " \"num_experts_per_tok\": 8, \"num_hidden_layers\": 61, \"num_key_value_heads\": 128, "
    "\"num_nextn_predict_layers\": 1,"
    " \"pretraining_tp\": 1, \"q_lora_rank\": 1536, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64,"
    " \"quantization_config\": {\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\","
    " \"weight_block_size\": [128, 128]}, \"rms_norm_eps\": 1e-06, \"rope_scaling\": {\"beta_fast\": 32, "
    "\"beta_slow\": 1,"
    " \"factor\": 40, \"mscale\": 1.0, \"mscale_all_dim\": 1.0, \"original_max_position_embeddings\": 4096, \"type\": "
    "\"yarn\"},"
    " \"rope_theta\": 10000, \"routed_scaling_factor\": 2.5, \"scoring_func\": \"sigmoid\", \"seq_aux\": true,"
    " \"tie_word_embeddings\": false, \"topk_group\": 4, \"topk_method\": \"noaux_tc\", \"torch_dtype\": \"bfloat16\","
    " \"transformers_version\": \"4.33.1\", \"use_cache\": true, \"v_head_dim\": 128, \"vocab_size\": 129280}";

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

TEST(deepseek_v3_as_released_is_read)
{
    mf_model_config *c = parse(v3_text);
    CHECK_STR(c->architecture, "DeepseekV3ForCausalLM");
    CHECK_STR(c->family->name, "DeepSeek-V3");
    CHECK_STR(c->model_type, "deepseek_v3");
    CHECK_EQ(c->num_layers, 61);
    CHECK_EQ(c->num_nextn_layers, 1);
    CHECK_EQ(c->num_moe_layers, 58);
    CHECK_EQ(c->layer_is_moe[2], 0);
    CHECK_EQ(c->layer_is_moe[3], 1);
    CHECK_EQ(c->layer_is_moe[60], 1);
    CHECK_EQ(c->layer_is_moe[61], 0);
    CHECK_EQ(c->gate.num_experts, 256);
    CHECK_EQ(c->gate.top_k, 8);
    CHECK_EQ(c->gate.n_group, 8);
    CHECK_EQ(c->gate.topk_group, 4);
    CHECK_EQ(c->gate.scoring, MF_SCORING_SIGMOID);
    CHECK_EQ(c->gate.bias_domain, MF_BIAS_SCORE);
    CHECK_EQ(c->gate.group_score, MF_GROUP_SCORE_TOP2_SUM);
    CHECK_EQ(c->gate.renorm, MF_RENORM_SUM_EPS);
    CHECK(c->gate.renorm_eps == 1e-20);
    CHECK(c->gate.routed_scaling_factor == 2.5);
    CHECK_EQ(c->gate.fold_scale, 1);
    CHECK_EQ(c->gate.num_shared_slots, 0);
    CHECK(c->has_correction_bias);
    CHECK_EQ(c->num_shared_experts, 1);
    CHECK_EQ(c->rope.type, MF_ROPE_YARN);
    CHECK(c->rope.pair && c->rope.truncate);
    CHECK_EQ(c->rope.dim, 64);
    CHECK_EQ(c->rope.original_max_position_embeddings, 4096);
    CHECK(c->rope.theta == 10000 && c->rope.factor == 40 && c->rope.mscale_all_dim == 1.0 &&
          c->rope.attention_factor == 0.0);
    CHECK(c->latent_norm_eps == 1e-6);
    /* 192^-1/2 * (0.1 ln 40 + 1)^2: ln 40 = 3.6888794541, 1.36888794541^2 = 1.87385420711, / 13.8564064606 = 0.13523378
     */
    CHECK(fabs(c->softmax_scale - 0.1352337788) < 1e-9);
    CHECK_EQ(c->quant.schemes[0].method, MF_QUANT_FP8_BLOCK);
    CHECK(!c->quant.schemes[0].ue8m0_scales);
    CHECK_EQ(c->bos_token_id, 0);
    CHECK_EQ(c->num_eos_token_ids, 1);
    CHECK_EQ(c->eos_token_ids[0], 1);
    CHECK(isnan(c->default_temperature) && isnan(c->default_top_p));
    CHECK_EQ(c->default_top_k, -1);
    CHECK_EQ(c->torch_dtype, MF_BF16);
    mf_model_config_close(&c);
    CHECK(c == NULL);
}

/* By hand.  Embedding and head 129280 * 7168 * 2 = 1,853,358,080.
 * Attention: 1536*7168 + 1536 + 24576*1536 + 576*7168 + 512 + 32768*512 + 7168*16384 + two norms of 7168 = 187,121,664;
 * * 61 = 11,414,421,504.  Dense: 3 * 18432 * 7168 = 396,361,728; * 3 = 1,189,085,184.  An expert: 3 * 2048 * 7168 =
 * 44,040,192; a MoE layer has 257 of them, a router of 256 * 7168 and 256 biases: 11,320,164,608; * 58 =
 * 656,569,547,264.  Last norm 7168. Sum 671,026,419,200.  A token leaves 248 experts of 58 layers out: -
 * 633,474,121,728 = 37,552,297,472. */
TEST(deepseek_v3_has_671_billion_parameters_of_which_37_are_active)
{
    mf_model_config *c = parse(v3_text);
    mf_model_size size = mf_model_config_size(c);
    CHECK(size.total_params == 671026419200);
    CHECK(size.active_params == 37552297472);
    /* Per layer 9 attention and norm tensors, 3 dense or 2 + 3 shared + 768; 3 for the model. */
    CHECK(mf_tensor_map_count(c) == 3 + 61 * 9 + 3 * 3 + 58 * (5 + 768));
    mf_model_config_close(&c);
}

TEST(deepseek_v2_and_lite_are_read)
{
    cw *w = cw_new(CW_V2);
    mf_model_config *c;
    mf_error err;
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->gate.scoring, MF_SCORING_SOFTMAX);
    CHECK_EQ(c->gate.bias_domain, MF_BIAS_NONE);
    CHECK_EQ(c->gate.renorm, MF_RENORM_NONE);
    CHECK_EQ(c->gate.group_score, MF_GROUP_SCORE_MAX);
    CHECK_EQ(c->gate.n_group, 4);
    CHECK_EQ(c->gate.topk_group, 2);
    CHECK(c->gate.routed_scaling_factor == 16.0 && c->gate.fold_scale == 1);
    CHECK(!c->has_correction_bias);
    CHECK_EQ(c->num_shared_experts, 2);
    CHECK_EQ(c->rope.type, MF_ROPE_DEFAULT);
    CHECK(c->rope.pair);
    CHECK(fabs(c->softmax_scale - 0.35355339059327) < 1e-12); /* 8^-1/2 */
    mf_model_config_close(&c);
    cw_free(w);
    w = cw_new(CW_V2_LITE);
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->q_lora_rank, 0);
    CHECK_EQ(c->gate.n_group, 1);
    CHECK_EQ(c->gate.topk_group, 1);
    CHECK_EQ(c->gate.group_score, MF_GROUP_SCORE_UNSET);
    mf_model_config_close(&c);
    cw_set(w, "n_group", "5"); /* greedy ignores groups, however odd */
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->gate.n_group, 1);
    mf_model_config_close(&c);
    cw_set(w, "topk_method", NULL); /* the class default is greedy */
    CHECK_OK(parse_cw(w, &c, &err), err);
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(kimi_k2_is_deepseek_v3_by_architecture_and_k25_nests_it)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *c;
    mf_error err;
    cw_set(w, "model_type", "\"kimi_k2\"");
    cw_set(w, "n_group", "1");
    cw_set(w, "topk_group", "1");
    cw_set(w, "rope_theta", "50000.0");
    cw_set(w, "routed_scaling_factor", "2.827");
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_STR(c->model_type, "kimi_k2");
    CHECK(c->rope.theta == 50000.0 && c->gate.routed_scaling_factor == 2.827);
    CHECK_EQ(c->gate.group_score, MF_GROUP_SCORE_UNSET);
    mf_model_config_close(&c);

    json_t *outer = json_pack("{s:[s], s:O, s:[i,i]}", "architectures", "KimiK25ForConditionalGeneration",
                              "text_config", w->config, "eos_token_id", 5, 6);
    char *text = json_dumps(outer, 0);
    json_decref(outer);
    c = parse(text);
    free(text);
    CHECK_STR(c->family->name, "Kimi-K2.5");
    CHECK_EQ(c->num_layers, 3);
    CHECK_EQ(c->num_eos_token_ids, 3); /* 1 inside, 5 and 6 outside */
    mf_model_config_close(&c);
    cw_free(w);
}

/* ---- refusals ---- */

typedef struct bad_row {
    const char *key, *value; /* NULL: removed */
    mf_status status;
    const char *message; /* behind "config.json: " */
} bad_row;

static void expect_refusals(cw_kind kind, const bad_row *rows, size_t num_rows)
{
    for (size_t i = 0; i < num_rows; i++) {
        cw *w = cw_new(kind);
        cw_set(w, rows[i].key, rows[i].value);
        mf_model_config *c;
        mf_error err = { 0 };
        mf_status status = parse_cw(w, &c, &err);
        char expected[400];
        snprintf(expected, sizeof expected, "config.json: %s", rows[i].message);
        if (status != rows[i].status || strncmp(err.message, expected, strlen(expected)) != 0) {
            fail_msg("%s = %s: expected status %d \"%s\"; got %d \"%s\"", rows[i].key,
                     rows[i].value ? rows[i].value : "nothing", (int)rows[i].status, expected, (int)status,
                     err.message);
        }
        CHECK(c == NULL);
        cw_free(w);
    }
}

#define INT_KEY(key, range) "key \"" key "\": expected an integer in " range "; got "

TEST(absurd_values_are_refused_with_key_range_and_find)
{
    static const bad_row rows[] = {
        { "num_experts_per_tok", "\"eight\"", MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "\"eight\"" },
        { "num_experts_per_tok", "0", MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "0" },
        { "num_experts_per_tok", "65", MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "65" },
        { "num_experts_per_tok", "3.0", MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "3.0" },
        { "num_experts_per_tok", "null", MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "null" },
        { "num_experts_per_tok", NULL, MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "nothing" },
        { "num_experts_per_tok", "[3]", MF_ERR_INVALID, INT_KEY("num_experts_per_tok", "1..64") "a list" },
        { "num_experts_per_tok", "13", MF_ERR_INVALID,
          "key \"num_experts_per_tok\": expected at most n_routed_experts 12; got 13" },
        { "hidden_size", "-1", MF_ERR_INVALID, INT_KEY("hidden_size", "1..1048576") "-1" },
        { "hidden_size", "1048577", MF_ERR_INVALID, INT_KEY("hidden_size", "1..1048576") "1048577" },
        { "hidden_size", "9223372036854775807", MF_ERR_INVALID,
          INT_KEY("hidden_size", "1..1048576") "9223372036854775807" },
        { "hidden_size", "true", MF_ERR_INVALID, INT_KEY("hidden_size", "1..1048576") "true" },
        { "hidden_size", "1e3", MF_ERR_INVALID, INT_KEY("hidden_size", "1..1048576") "1000.0" },
        { "intermediate_size", "0", MF_ERR_INVALID, INT_KEY("intermediate_size", "1..1048576") "0" },
        { "moe_intermediate_size", "0", MF_ERR_INVALID, INT_KEY("moe_intermediate_size", "1..1048576") "0" },
        { "vocab_size", "0", MF_ERR_INVALID, INT_KEY("vocab_size", "1..16777216") "0" },
        { "vocab_size", "2147483648", MF_ERR_INVALID, INT_KEY("vocab_size", "1..16777216") "2147483648" },
        { "num_hidden_layers", "0", MF_ERR_INVALID, INT_KEY("num_hidden_layers", "1..1024") "0" },
        { "num_hidden_layers", "1025", MF_ERR_INVALID, INT_KEY("num_hidden_layers", "1..1024") "1025" },
        { "num_attention_heads", "0", MF_ERR_INVALID, INT_KEY("num_attention_heads", "1..4096") "0" },
        { "n_routed_experts", "0", MF_ERR_INVALID, INT_KEY("n_routed_experts", "1..4096") "0" },
        { "n_routed_experts", "4097", MF_ERR_INVALID, INT_KEY("n_routed_experts", "1..4096") "4097" },
        { "n_shared_experts", "17", MF_ERR_INVALID, INT_KEY("n_shared_experts", "0..16") "17" },
        { "n_shared_experts", "-1", MF_ERR_INVALID, INT_KEY("n_shared_experts", "0..16") "-1" },
        { "first_k_dense_replace", "4", MF_ERR_INVALID, INT_KEY("first_k_dense_replace", "0..3") "4" },
        { "first_k_dense_replace", NULL, MF_ERR_INVALID, INT_KEY("first_k_dense_replace", "0..3") "nothing" },
        { "q_lora_rank", "0", MF_ERR_INVALID, INT_KEY("q_lora_rank", "1..65536") "0" },
        { "kv_lora_rank", "null", MF_ERR_INVALID, INT_KEY("kv_lora_rank", "1..65536") "null" },
        { "qk_rope_head_dim", "5", MF_ERR_INVALID, "key \"qk_rope_head_dim\": expected an even integer; got 5" },
        { "qk_nope_head_dim", "0", MF_ERR_INVALID, INT_KEY("qk_nope_head_dim", "1..4096") "0" },
        { "v_head_dim", "0", MF_ERR_INVALID, INT_KEY("v_head_dim", "1..4096") "0" },
        { "max_position_embeddings", "0", MF_ERR_INVALID, INT_KEY("max_position_embeddings", "1..1073741824") "0" },
        { "num_nextn_predict_layers", "65", MF_ERR_INVALID, INT_KEY("num_nextn_predict_layers", "0..64") "65" },
        { "num_mtp_layers", "1", MF_ERR_INVALID,
          "key \"num_nextn_predict_layers\": differs from \"num_mtp_layers\", which means the same" },
        { "num_local_experts", "8", MF_ERR_INVALID,
          "key \"n_routed_experts\": differs from \"num_local_experts\", which means the same" },
        { "n_group", "5", MF_ERR_INVALID, "key \"n_group\": 5 does not divide n_routed_experts 12" },
        { "n_group", "0", MF_ERR_INVALID, INT_KEY("n_group", "1..4096") "0" },
        { "n_group", NULL, MF_ERR_INVALID, INT_KEY("n_group", "1..4096") "nothing" },
        { "topk_group", "5", MF_ERR_INVALID, "key \"topk_group\": expected at most n_group 4; got 5" },
        { "n_group", "12", MF_ERR_INVALID, "key \"topk_group\": 2 x 1 experts cannot give num_experts_per_tok 3" },
        { "rms_norm_eps", "0", MF_ERR_INVALID, "key \"rms_norm_eps\": expected a number in 1e-30..1; got 0" },
        { "rms_norm_eps", "\"1e-6\"", MF_ERR_INVALID,
          "key \"rms_norm_eps\": expected a number in 1e-30..1; got \"1e-6\"" },
        { "routed_scaling_factor", NULL, MF_ERR_INVALID,
          "key \"routed_scaling_factor\": expected a number in 1e-06..1e+06; got nothing" },
        { "routed_scaling_factor", "0", MF_ERR_INVALID, "key \"routed_scaling_factor\": expected a number" },
        { "routed_scaling_factor", "1e300", MF_ERR_INVALID,
          "key \"routed_scaling_factor\": expected a number in 1e-06..1e+06; got 1e+300" },
        { "norm_topk_prob", "1", MF_ERR_INVALID, "key \"norm_topk_prob\": expected true or false; got 1" },
        { "norm_topk_prob", NULL, MF_ERR_INVALID, "key \"norm_topk_prob\": expected true or false; got nothing" },
        { "tie_word_embeddings", "\"no\"", MF_ERR_INVALID,
          "key \"tie_word_embeddings\": expected true or false; got \"no\"" },
        { "attention_bias", "0", MF_ERR_INVALID, "key \"attention_bias\": expected true or false; got 0" },
        { "rope_theta", "1", MF_ERR_INVALID, "key \"rope_theta\": expected a number in 2..1e+12; got 1" },
        { "eos_token_id", "24", MF_ERR_INVALID,
          "key \"eos_token_id\": expected a token id in 0..23 or a list of them; got 24" },
        { "eos_token_id", "-1", MF_ERR_INVALID, "key \"eos_token_id\": expected a token id in 0..23" },
        { "eos_token_id", "[0, \"x\"]", MF_ERR_INVALID, "key \"eos_token_id\": expected a token id" },
        { "eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", MF_ERR_LIMIT,
          "key \"eos_token_id\": more than 16 different ids" },
        { "bos_token_id", "24", MF_ERR_INVALID, INT_KEY("bos_token_id", "0..23") "24" },
        { "model_type", "7", MF_ERR_INVALID, "key \"model_type\": expected a string; got 7" },
        { "architectures", "\"DeepseekV3ForCausalLM\"", MF_ERR_INVALID,
          "key \"architectures\": expected a list whose first entry is a name; got \"DeepseekV3ForCausalLM\"" },
        { "architectures", "[]", MF_ERR_INVALID,
          "key \"architectures\": expected a list whose first entry is a name; got a list" },
        { "architectures", NULL, MF_ERR_INVALID,
          "key \"architectures\": expected a list whose first entry is a name; got nothing" },
    };
    expect_refusals(CW_V3, rows, sizeof rows / sizeof rows[0]);
}

TEST(what_would_change_values_and_is_not_done_is_refused_by_name)
{
    static const bad_row rows[] = {
        { "hidden_act", "\"gelu\"", MF_ERR_UNSUPPORTED, "key \"hidden_act\": expected \"silu\"; got \"gelu\"" },
        { "scoring_func", "\"softmax\"", MF_ERR_UNSUPPORTED, "key \"scoring_func\": expected \"sigmoid\"" },
        { "topk_method", "\"greedy\"", MF_ERR_UNSUPPORTED, "key \"topk_method\": expected \"noaux_tc\"" },
        { "moe_layer_freq", "2", MF_ERR_UNSUPPORTED, "key \"moe_layer_freq\": expected 1; got 2" },
        { "num_key_value_heads", "1", MF_ERR_UNSUPPORTED,
          "key \"num_key_value_heads\": expected num_attention_heads 2" },
        { "mlp_bias", "true", MF_ERR_UNSUPPORTED, "key \"mlp_bias\": expected false; got true" },
        { "torch_dtype", "\"float64\"", MF_ERR_UNSUPPORTED,
          "key \"torch_dtype\": expected \"bfloat16\", \"float16\" or \"float32\"; got \"float64\"" },
        { "dtype", "\"float16\"", MF_ERR_INVALID,
          "key \"dtype\": is \"float16\" and \"torch_dtype\" is \"bfloat16\": expected the same" },
        { "compression_config", "{\"quant_method\": \"sparse\"}", MF_ERR_UNSUPPORTED, "key \"compression_config.quant_method\"" },
        { "rope_scaling", "{\"type\": \"dynamic\", \"factor\": 2}", MF_ERR_UNSUPPORTED,
          "key \"rope_scaling.type\": expected \"default\", \"linear\", \"llama3\", \"yarn\", or \"dynamic\" with \"alpha\"; got \"dynamic\"" },
        { "rope_scaling", "{\"type\": \"yarn\", \"rope_type\": \"linear\", \"factor\": 2}", MF_ERR_INVALID,
          "key \"rope_scaling.rope_type\": is \"linear\" and \"type\" is \"yarn\": expected the same" },
        { "rope_scaling", "{\"factor\": 2}", MF_ERR_INVALID,
          "key \"rope_scaling.rope_type\": expected \"default\", \"linear\", \"llama3\" or \"yarn\"; got nothing" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 0.5}", MF_ERR_INVALID,
          "key \"rope_scaling.factor\": expected a number in 1..1e+06; got 0.5" },
        { "rope_scaling", "{\"type\": \"linear\"}", MF_ERR_INVALID, "key \"rope_scaling.factor\": expected a number" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 4, \"long_factor\": [1]}", MF_ERR_UNSUPPORTED,
          "key \"rope_scaling.long_factor\": is not a rope key that is known here" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 4, \"beta_fast\": 1, \"beta_slow\": 2}", MF_ERR_INVALID,
          "key \"rope_scaling.beta_fast\": expected at least beta_slow 2; got 1" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 4, \"partial_rotary_factor\": 0.5}", MF_ERR_UNSUPPORTED,
          "key \"rope_scaling.partial_rotary_factor\": expected 1; got 0.5" },
        { "rope_scaling", "\"yarn\"", MF_ERR_INVALID, "key \"rope_scaling\": expected an object; got \"yarn\"" },
        { "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 5000}", MF_ERR_INVALID,
          "key \"rope_parameters.rope_theta\": is 5000 and \"rope_theta\" is 10000" },
    };
    expect_refusals(CW_V3, rows, sizeof rows / sizeof rows[0]);
    static const bad_row v2_rows[] = {
        { "norm_topk_prob", "true", MF_ERR_UNSUPPORTED,
          "key \"norm_topk_prob\": expected false; got true: implementations of DeepSeek-V2 disagree" },
        { "scoring_func", "\"sigmoid\"", MF_ERR_UNSUPPORTED, "key \"scoring_func\": expected \"softmax\"" },
        { "topk_method", "\"noaux_tc\"", MF_ERR_UNSUPPORTED,
          "key \"topk_method\": expected \"greedy\" or \"group_limited_greedy\"; got \"noaux_tc\"" },
        { "n_group", NULL, MF_ERR_INVALID, INT_KEY("n_group", "1..4096") "nothing" },
    };
    expect_refusals(CW_V2, v2_rows, sizeof v2_rows / sizeof v2_rows[0]);
}

TEST(an_unknown_architecture_lists_the_known_ones)
{
    static const bad_row rows[] = {
        { "architectures", "[\"LlamaForCausalLM\"]", MF_ERR_UNSUPPORTED,
          "key \"architectures\": unknown architecture \"LlamaForCausalLM\"; known are DeepseekV2ForCausalLM, "
          "DeepseekV3ForCausalLM, KimiK25ForConditionalGeneration" }
    };
    expect_refusals(CW_V3, rows, 1);
}

TEST(quantisation_is_read_or_named)
{
    static const char head[] = "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]";
    static const struct {
        const char *tail;
        const char *message;
    } rows[] = {
        { ", \"activation_scheme\": \"static\"}",
          "quantization_config.activation_scheme\": expected \"dynamic\" beside weight_block_size" },
        { ", \"fmt\": \"e5m2\"}", "quantization_config.fmt\": expected \"e4m3\"" },
        { ", \"expert_dtype\": \"fp4\"}", "quantization_config.expert_dtype\": expected \"fp8\"; got \"fp4\"" },
        { ", \"scale_fmt\": \"e5m3\"}", "quantization_config.scale_fmt\": expected \"ue8m0\" or \"float\"" },
        { ", \"modules_to_convert\": [\"lm_head\"]}", "quantization_config.modules_to_convert\": expected nothing" },
        { ", \"smooth\": 0.5}",
          "quantization_config.smooth\": is not a key of quant_method \"fp8\" that is known here" },
        { ", \"modules_to_not_convert\": [\"*.mlp\"]}", "modules_to_not_convert\": \"*.mlp\" is a pattern" },
        { ", \"modules_to_not_convert\": [7]}",
          "modules_to_not_convert\": entry 0: expected a module's name; got an integer" },
        { ", \"modules_to_not_convert\": [\"\"]}", "entry 0: expected a module's name; got an empty string" },
        { ", \"modules_to_not_convert\": \"lm_head\"}", "modules_to_not_convert\": expected a list" },
        { ", \"modules_to_not_convert\": [\"a\"], \"ignored_layers\": [\"b\"]}", "differs from \"ignored_layers\"" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = cw_new(CW_V3);
        char value[300];
        snprintf(value, sizeof value, "%s%s", head, rows[i].tail);
        cw_set(w, "quantization_config", value);
        mf_model_config *c;
        mf_error err = { 0 };
        CHECK(parse_cw(w, &c, &err) != MF_OK);
        CHECK_HAS(err.message, rows[i].message);
        cw_free(w);
    }
    static const bad_row others[] = {
        { "quantization_config", "{\"quant_method\": \"bitsandbytes\"}", MF_ERR_UNSUPPORTED,
          "key \"quantization_config.quant_method\": expected \"fp8\"" },
        { "quantization_config", "{\"quant_method\": \"compressed-tensors\"}", MF_ERR_UNSUPPORTED,
          "key \"quantization_config.config_groups\": expected an object with 1 to 16 groups; got nothing" },
        { "quantization_config", "{\"bits\": 4}", MF_ERR_INVALID,
          "key \"quantization_config.quant_method\": expected a string; got nothing" },
        { "quantization_config", "{\"quant_method\": \"fp8\", \"activation_scheme\": \"token\"}", MF_ERR_UNSUPPORTED,
          "key \"quantization_config.activation_scheme\": expected \"dynamic\" or \"static\"" },
        { "quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [64, 128]}", MF_ERR_UNSUPPORTED,
          "key \"quantization_config.weight_block_size\"" },
        { "quantization_config", "[]", MF_ERR_INVALID, "key \"quantization_config\": expected an object; got a list" },
    };
    expect_refusals(CW_V3, others, sizeof others / sizeof others[0]);
}

TEST(excluded_modules_match_whole_components_only)
{
    cw *w = cw_new(CW_V3_FP8);
    cw_set(w, "quantization_config.modules_to_not_convert",
           "[\"lm_head\", \"mlp.gate\", \"shared_expert\", \"model.layers.1.self_attn\", \"experts.1\", \"lm_head\"]");
    mf_model_config *c;
    mf_error err;
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK_EQ(c->quant.excluded.num_names, 5);
    static const struct {
        const char *module;
        bool excluded;
    } rows[] = { { "lm_head", true },
                 { "model.layers.1.mlp.gate", true },
                 { "model.layers.1.mlp.gate_proj", false },
                 { "model.layers.1.mlp.shared_experts.up_proj", false },
                 { "model.layers.1.mlp.shared_expert.up_proj", true },
                 { "model.layers.1.self_attn.o_proj", true },
                 { "model.layers.11.self_attn.o_proj", false },
                 { "xmodel.layers.1.self_attn.o_proj", false },
                 { "model.layers.2.mlp.experts.1.up_proj", true },
                 { "model.layers.2.mlp.experts.10.up_proj", false },
                 { "", false },
                 { ".lm_head", true },
                 { "lm_head.", true } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (mf_module_is_excluded(&c->quant, rows[i].module, NULL) != rows[i].excluded) {
            fail_msg("%s", rows[i].module);
        }
    }
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(old_and_new_rope_spelling_give_the_same)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *a, *b;
    mf_error err;
    const char *yarn = "{\"type\": \"yarn\", \"factor\": 4, \"original_max_position_embeddings\": 128, \"mscale\": "
                       "0.707, \"mscale_all_dim\": 0.707}";
    cw_set(w, "rope_scaling", yarn);
    CHECK_OK(parse_cw(w, &a, &err), err);
    cw_set(w, "rope_scaling", NULL);
    cw_set(w, "rope_theta", NULL);
    cw_set(
        w, "rope_parameters",
        "{\"rope_type\": \"yarn\", \"rope_theta\": 10000.0, \"factor\": 4, \"original_max_position_embeddings\": 128,"
        " \"mscale\": 0.707, \"mscale_all_dim\": 0.707}");
    CHECK_OK(parse_cw(w, &b, &err), err);
    CHECK_MEM(&a->rope, &b->rope, sizeof a->rope);
    CHECK(a->softmax_scale == b->softmax_scale);
    /* 8^-1/2 (0.0707 ln 4 + 1)^2: ln 4 = 1.3862943611, 1.09801101133^2 = 1.20562818; * 0.353553390593 = 0.426253930 */
    CHECK(fabs(a->softmax_scale - 0.426253930) < 1e-8);
    CHECK(a->rope.beta_fast == 32 && a->rope.beta_slow == 1 && a->rope.truncate);
    mf_model_config_close(&b);
    cw_set(w, "rope_scaling", yarn); /* both, the same */
    CHECK_OK(parse_cw(w, &b, &err), err);
    mf_model_config_close(&b);
    cw_set(w, "rope_scaling.factor", "8");
    CHECK_EQ(parse_cw(w, &b, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "config.json: key \"rope_parameters\": differs from \"rope_scaling\"");
    /* factor null: positions over original positions */
    cw_set(w, "rope_parameters", NULL);
    cw_set(w, "rope_scaling.factor", "null");
    CHECK_OK(parse_cw(w, &b, &err), err);
    CHECK(b->rope.factor == 4.0); /* 512 / 128 */
    mf_model_config_close(&b);
    mf_model_config_close(&a);
    cw_free(w);
}

TEST(rope_interleave_false_pairs_halves_and_temperature_needs_a_type)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *c;
    mf_error err;
    cw_set(w, "rope_interleave", "false");
    cw_set(w, "rope_scaling", "{\"rope_type\": \"default\", \"mscale_all_dim\": 1.0}");
    CHECK_OK(parse_cw(w, &c, &err), err);
    CHECK(!c->rope.pair);
    CHECK(fabs(c->softmax_scale - 0.35355339059327) < 1e-12);
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(sizes_whose_product_is_absurd_are_refused)
{
    cw *w = cw_new(CW_V3);
    cw_set(w, "hidden_size", "1048576");
    cw_set(w, "moe_intermediate_size", "1048576");
    cw_set(w, "n_routed_experts", "4096");
    cw_set(w, "num_hidden_layers", "1024");
    mf_model_config *c;
    mf_error err;
    CHECK_EQ(parse_cw(w, &c, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "config.json: the sizes give more than 2^50 parameters");
    cw_free(w);
}

TEST(broken_json_is_refused_with_file_and_place)
{
    static const struct {
        const char *text, *message;
    } rows[] = { { "", "config.json: not valid JSON" },
                 { "[]", "config.json: expected a JSON object at the top; got a list" },
                 { "{\"a\": 1, \"a\": 2}", "duplicate object key" },
                 { "{\"a\": 1} {", "config.json: not valid JSON: line 1" },
                 { "\xef\xbb\xbf{}", "byte order mark" },
                 { "{\"hidden_size\": 99999999999999999999}", "not valid JSON" } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_model_config *c;
        mf_error err;
        CHECK(mf_model_config_parse(rows[i].text, strlen(rows[i].text), "config.json", &c, &err) != MF_OK);
        CHECK_HAS(err.message, rows[i].message);
        CHECK(c == NULL);
    }
}

TEST(long_strings_in_messages_are_cut_at_a_character)
{
    cw *w = cw_new(CW_V3);
    char value[300] = "\"";
    for (int i = 0; i < 60; i++) {
        strcat(value, "\xe2\x82\xac"); /* three bytes: 48 falls on a border, 47 and 49 would not */
    }
    strcat(value, "\"");
    cw_set(w, "vocab_size", value);
    mf_model_config *c;
    mf_error err;
    CHECK_EQ(parse_cw(w, &c, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "\xe2\x82\xac...\"");
    char *shifted = strchr(value, '\xe2');
    memmove(shifted + 1, shifted, strlen(shifted) + 1);
    *shifted = 'x';
    cw_set(w, "vocab_size", value);
    CHECK_EQ(parse_cw(w, &c, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "\xe2\x82\xac...\"");
    cw_free(w);
}

/* ---- directories ---- */

TEST(a_directory_gives_config_and_sampling_defaults)
{
    cw *w = cw_new(CW_V3);
    w->generation = json_pack("{s:[i,i], s:f, s:f, s:i, s:f, s:b}", "eos_token_id", 1, 7, "temperature", 0.6, "top_p",
                              0.95, "top_k", 20, "repetition_penalty", 1.05, "do_sample", 1);
    cw_write(w);
    mf_model_config *c;
    mf_error err;
    CHECK_OK(mf_model_config_load(w->dir, &c, &err), err);
    CHECK_EQ(c->num_eos_token_ids, 2);
    CHECK_EQ(c->eos_token_ids[0], 1);
    CHECK_EQ(c->eos_token_ids[1], 7);
    CHECK(c->default_temperature == 0.6 && c->default_top_p == 0.95 && c->default_repetition_penalty == 1.05);
    CHECK_EQ(c->default_top_k, 20);
    mf_model_config_close(&c);
    json_object_set_new(w->generation, "top_p", json_real(1.5));
    cw_write(w);
    CHECK_EQ(mf_model_config_load(w->dir, &c, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "generation_config.json: key \"top_p\": expected a number in 0..1; got 1.5");
    cw_write_bytes(cw_path(w, "generation_config.json"), "{", 1);
    CHECK_EQ(mf_model_config_load(w->dir, &c, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "generation_config.json: not valid JSON");
    cw_free(w);
}

TEST(what_is_no_model_directory_is_said)
{
    char dir[300], path[400];
    mf_model_config *c;
    mf_error err;
    cw_make_dir(dir, sizeof dir);
    CHECK_EQ(mf_model_config_load(dir, &c, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "holds no config.json; expected a model's directory");
    snprintf(path, sizeof path, "%s/config.json", dir);
    CHECK_EQ(mf_model_config_load(path, &c, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "no such directory");
    CHECK_EQ(mkfifo(path, 0600), 0);
    CHECK_EQ(mf_model_config_load(dir, &c, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "expected a regular file; got a special file");
    unlink(path);
    CHECK_EQ(symlink("nowhere", path), 0);
    CHECK_EQ(mf_model_config_load(dir, &c, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "config.json: cannot open");
    unlink(path);
    char other[400];
    snprintf(other, sizeof other, "%s/model", dir);
    cw_write_bytes(other, "x", 1);
    CHECK_EQ(mf_model_config_load(other, &c, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "not a directory");
    cw_write_bytes(path, "x", 1);
    CHECK_EQ(truncate(path, 9 << 20), 0);
    CHECK_EQ(mf_model_config_load(dir, &c, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "expected at most 8388608 bytes");
    cw_remove_dir(dir);
}
