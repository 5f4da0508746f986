/* weights_test.c - a checkpoint against its config: every tensor once, each problem named. */
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/number.h"
#include "base/sys.h"
#include "checkpoint_writer.h"
#include "model/family.h"
#include "model/weights.h"
#include "test.h"

static const mf_weights_options mapped = { .use_map = true };

static mf_status load_with(cw *w, const mf_weights_options *options, mf_model_config **config, mf_weights **weights,
                           mf_error *err)
{
    *weights = NULL;
    mf_status status = mf_model_config_load(w->dir, config, err);
    if (status == MF_OK) {
        status = mf_weights_load(w->dir, *config, options, weights, err);
    }
    return status;
}

static void close_both(mf_model_config **config, mf_weights **weights)
{
    mf_weights_close(weights);
    mf_model_config_close(config);
}

/* Writes and loads; the load must succeed. */
static mf_weights *load(cw *w, mf_model_config **config)
{
    cw_write(w);
    mf_weights *weights;
    mf_error err;
    CHECK_OK(load_with(w, &mapped, config, &weights, &err), err);
    return weights;
}

/* Writes and loads; the load must fail so, mapped and read. */
static void expect(cw *w, mf_status status, const char *message)
{
    cw_write(w);
    for (int use_map = 0; use_map < 2; use_map++) {
        mf_weights_options options = { .use_map = use_map };
        mf_model_config *config;
        mf_weights *weights;
        mf_error err = { 0 };
        mf_status got = load_with(w, &options, &config, &weights, &err);
        if (got != status || !strstr(err.message, message)) {
            fail_msg("expected status %d with \"%s\"; got %d \"%s\"", (int)status, message, (int)got, err.message);
        }
        CHECK(weights == NULL);
        close_both(&config, &weights);
    }
}

static void check_matrix(const mf_matrix *m, int64_t n, int64_t k, const cw_tensor *t)
{
    CHECK_EQ(m->n, n);
    CHECK_EQ(m->k, k);
    CHECK_EQ(m->row_stride, k);
    CHECK_MEM(m->data, t->data, t->bytes);
}

/* ---- what loads ---- */

TEST(every_tensor_of_a_v3_checkpoint_lands_in_its_place)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    check_matrix(&x->embed_tokens, 24, 16, cw_get(w, "model.embed_tokens.weight"));
    check_matrix(&x->lm_head, 24, 16, cw_get(w, "lm_head.weight"));
    const mf_layer_weights *l = &x->layers[0];
    check_matrix(&l->q_a_proj, 8, 16, cw_get(w, "model.layers.0.self_attn.q_a_proj.weight"));
    check_matrix(&l->q_b_proj, 16, 8, cw_get(w, "model.layers.0.self_attn.q_b_proj.weight"));
    CHECK(l->q_proj.data == NULL);
    check_matrix(&l->kv_a_proj, 12, 16, cw_get(w, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"));
    check_matrix(&l->kv_b_proj, 16, 8, cw_get(w, "model.layers.0.self_attn.kv_b_proj.weight"));
    check_matrix(&l->o_proj, 16, 8, cw_get(w, "model.layers.0.self_attn.o_proj.weight"));
    check_matrix(&l->dense.gate, 24, 16, cw_get(w, "model.layers.0.mlp.gate_proj.weight"));
    check_matrix(&l->dense.up, 24, 16, cw_get(w, "model.layers.0.mlp.up_proj.weight"));
    check_matrix(&l->dense.down, 16, 24, cw_get(w, "model.layers.0.mlp.down_proj.weight"));
    CHECK(l->router.data == NULL && l->experts == NULL && l->shared.gate.data == NULL && l->q_a_bias == NULL);
    l = &x->layers[2];
    check_matrix(&l->router, 12, 16, cw_get(w, "model.layers.2.mlp.gate.weight"));
    check_matrix(&l->shared.gate, 8, 16, cw_get(w, "model.layers.2.mlp.shared_experts.gate_proj.weight"));
    check_matrix(&l->shared.up, 8, 16, cw_get(w, "model.layers.2.mlp.shared_experts.up_proj.weight"));
    check_matrix(&l->shared.down, 16, 8, cw_get(w, "model.layers.2.mlp.shared_experts.down_proj.weight"));
    check_matrix(&l->experts[1].gate, 8, 16, cw_get(w, "model.layers.2.mlp.experts.1.gate_proj.weight"));
    check_matrix(&l->experts[10].up, 8, 16, cw_get(w, "model.layers.2.mlp.experts.10.up_proj.weight"));
    check_matrix(&l->experts[11].down, 16, 8, cw_get(w, "model.layers.2.mlp.experts.11.down_proj.weight"));
    CHECK_MEM(l->e_score_correction_bias, cw_get(w, "model.layers.2.mlp.gate.e_score_correction_bias")->data, 12 * 4);
    const struct {
        const float *values;
        const char *name;
        int n;
    } norms[] = { { x->norm, "model.norm.weight", 16 },
                  { l->input_norm, "model.layers.2.input_layernorm.weight", 16 },
                  { l->post_attention_norm, "model.layers.2.post_attention_layernorm.weight", 16 },
                  { l->q_a_norm, "model.layers.2.self_attn.q_a_layernorm.weight", 8 },
                  { l->kv_a_norm, "model.layers.2.self_attn.kv_a_layernorm.weight", 8 } };
    for (size_t i = 0; i < sizeof norms / sizeof norms[0]; i++) {
        const uint8_t *stored = cw_get(w, norms[i].name)->data;
        for (int j = 0; j < norms[i].n; j++) {
            uint16_t h;
            memcpy(&h, stored + 2 * j, 2);
            CHECK(norms[i].values[j] == mf_bf16_to_f32(h));
        }
    }
    /* Matrices are views: nothing but the norms (2 * 16 + 8 + 8 per layer, 16 at the end) was copied, as f32. */
    CHECK_EQ(x->stats.bytes_converted, (3 * (2 * 16 + 8 + 8) + 16) * 4);
    int64_t stored = 0;
    for (size_t i = 0; i < w->num_tensors; i++) {
        stored += (int64_t)w->tensors[i].bytes;
    }
    CHECK_EQ(x->stats.bytes_total, stored);
    CHECK_EQ(x->stats.bytes_by_format[MF_FORMAT_F32], 2 * 12 * 4);
    CHECK_EQ(x->stats.num_skipped_tensors, 0);
    close_both(&c, &x);
    cw_free(w);
}

TEST(v2_with_and_without_query_lora_loads)
{
    cw *w = cw_new(CW_V2);
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    check_matrix(&x->layers[1].shared.down, 16, 16,
                 cw_get(w, "model.layers.1.mlp.shared_experts.down_proj.weight")); /* S * I = 16 */
    CHECK(x->layers[1].e_score_correction_bias == NULL);
    close_both(&c, &x);
    cw_free(w);
    w = cw_new(CW_V2_LITE);
    x = load(w, &c);
    check_matrix(&x->layers[1].q_proj, 16, 16, cw_get(w, "model.layers.1.self_attn.q_proj.weight"));
    CHECK(x->layers[1].q_a_proj.data == NULL && x->layers[1].q_a_norm == NULL);
    close_both(&c, &x);
    cw_free(w);
}

TEST(mixed_float_formats_are_views_of_their_own)
{
    cw *w = cw_new(CW_V3);
    cw_remake(w, "model.layers.1.mlp.experts.3.up_proj.weight", "F32", 2, (int64_t[]){ 8, 16 });
    cw_remake(w, "model.layers.1.mlp.shared_experts.up_proj.weight", "F16", 2, (int64_t[]){ 8, 16 });
    cw_remake(w, "model.layers.1.input_layernorm.weight", "F32", 1, (int64_t[]){ 16 });
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    CHECK_EQ(x->layers[1].experts[3].up.format, MF_FORMAT_F32);
    CHECK_EQ(x->layers[1].shared.up.format, MF_FORMAT_F16);
    CHECK_EQ(x->layers[1].experts[3].gate.format, MF_FORMAT_BF16);
    CHECK_MEM(x->layers[1].input_norm, cw_get(w, "model.layers.1.input_layernorm.weight")->data, 64);
    close_both(&c, &x);
    cw_free(w);
}

TEST(misaligned_tensors_are_copied_and_counted)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *c;
    mf_weights *x;
    int64_t converted[4];
    for (size_t pad = 0; pad < 4; pad++) {
        w->pad_header = pad;
        x = load(w, &c);
        converted[pad] = x->stats.bytes_converted;
        check_matrix(&x->embed_tokens, 24, 16, cw_get(w, "model.embed_tokens.weight"));
        CHECK_MEM(x->layers[2].e_score_correction_bias,
                  cw_get(w, "model.layers.2.mlp.gate.e_score_correction_bias")->data, 12 * 4);
        CHECK_EQ((uintptr_t)x->embed_tokens.data % 2, 0);
        CHECK_EQ((uintptr_t)x->layers[2].experts[5].up.data % 2, 0);
        CHECK_EQ((uintptr_t)x->layers[2].e_score_correction_bias % 4, 0);
        close_both(&c, &x);
    }
    int64_t stored = 0, norms = (3 * (2 * 16 + 8 + 8) + 16) * 2, biases = 2 * 12 * 4;
    for (size_t i = 0; i < w->num_tensors; i++) {
        stored += (int64_t)w->tensors[i].bytes;
    }
    CHECK_EQ(converted[0], 2 * norms); /* norms become f32 in any case */
    CHECK_EQ(converted[2], 2 * norms + biases);
    CHECK_EQ(converted[1], 2 * norms + stored - norms);
    CHECK_EQ(converted[3], converted[1]);
    cw_free(w);
}

TEST(attention_bias_covers_three_projections)
{
    cw *w = cw_new(CW_V3);
    cw_set(w, "attention_bias", "true");
    expect(w, MF_ERR_FORMAT,
           "missing: model.layers.0.self_attn.q_a_proj.bias, model.layers.0.self_attn.kv_a_proj_with_mqa.bias, "
           "model.layers.0.self_attn.o_proj.bias, model.layers.1.self_attn.q_a_proj.bias");
    for (int l = 0; l < 3; l++) {
        static const char *const names[] = { "q_a_proj", "kv_a_proj_with_mqa", "o_proj" };
        static const int64_t sizes[] = { 8, 12, 16 };
        for (int i = 0; i < 3; i++) {
            char name[100];
            snprintf(name, sizeof name, "model.layers.%d.self_attn.%s.bias", l, names[i]);
            cw_add(w, name, "BF16", 1, &sizes[i]);
        }
    }
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    CHECK(x->layers[2].q_a_bias && x->layers[2].kv_a_bias && x->layers[2].o_bias);
    close_both(&c, &x);
    cw_free(w);
}

TEST(shards_and_reading_give_the_same_weights_as_one_mapped_file)
{
    cw *one = cw_new(CW_V3), *many = cw_new(CW_V3);
    cw_shard(many, 4);
    mf_model_config *c1, *c2;
    mf_weights *a = load(one, &c1), *b;
    mf_error err;
    cw_write(many);
    mf_weights_options read = { .use_map = false };
    CHECK_OK(load_with(many, &read, &c2, &b, &err), err);
    for (int e = 0; e < 12; e++) {
        CHECK_MEM(a->layers[1].experts[e].down.data, b->layers[1].experts[e].down.data, 16 * 8 * 2);
    }
    CHECK_MEM(a->norm, b->norm, 16 * 4);
    CHECK_EQ(a->stats.bytes_total, b->stats.bytes_total);
    close_both(&c1, &a);
    close_both(&c2, &b);
    cw_free(one);
    cw_free(many);
}

TEST(stacked_experts_are_slices_gate_rows_first)
{
    cw *w = cw_new(CW_V3_STACKED);
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    const uint8_t *gate_up = cw_get(w, "model.layers.1.mlp.experts.gate_up_proj")->data;
    const uint8_t *down = cw_get(w, "model.layers.1.mlp.experts.down_proj")->data;
    for (int e = 0; e < 12; e++) {
        const mf_mlp_weights *m = &x->layers[1].experts[e];
        CHECK_EQ(m->gate.n, 8);
        CHECK_EQ(m->up.k, 16);
        CHECK_EQ(m->down.n, 16);
        CHECK_MEM(m->gate.data, gate_up + e * 2 * 8 * 16 * 2, 8 * 16 * 2);
        CHECK_MEM(m->up.data, gate_up + (e * 2 + 1) * 8 * 16 * 2, 8 * 16 * 2);
        CHECK_MEM(m->down.data, down + e * 16 * 8 * 2, 16 * 8 * 2);
    }
    close_both(&c, &x);
    cw_add(w, "model.layers.1.mlp.experts.3.up_proj.weight", "BF16", 2, (int64_t[]){ 8, 16 });
    expect(w, MF_ERR_FORMAT,
           "tensor \"model.layers.1.mlp.experts.3.up_proj.weight\" and tensor "
           "\"model.layers.1.mlp.experts.gate_up_proj\"");
    cw_remove(w, "model.layers.1.mlp.experts.3.up_proj.weight");
    cw_remake(w, "model.layers.2.mlp.experts.down_proj", "BF16", 3, (int64_t[]){ 12, 8, 16 });
    expect(w, MF_ERR_FORMAT,
           "tensor \"model.layers.2.mlp.experts.down_proj\": expected shape [12, 16, 8]; got [12, 8, 16]");
    cw_remove(w, "model.layers.2.mlp.experts.down_proj");
    expect(w, MF_ERR_FORMAT, "missing: model.layers.2.mlp.experts.down_proj");
    cw_free(w);
}

/* ---- fp8 ---- */

TEST(fp8_weights_come_with_their_block_scales)
{
    cw *w = cw_new(CW_V3_FP8);
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    const mf_matrix *m = &x->layers[1].experts[7].down;
    CHECK_EQ(m->format, MF_FORMAT_FP8_BLOCK);
    CHECK_EQ(m->scale_dtype, MF_F32);
    CHECK_EQ(m->scale_row_stride, 1);
    CHECK_MEM(m->scale, cw_get(w, "model.layers.1.mlp.experts.7.down_proj.weight_scale_inv")->data, 4);
    CHECK_EQ(x->layers[1].router.format, MF_FORMAT_BF16);
    CHECK_EQ(x->lm_head.format, MF_FORMAT_BF16);
    close_both(&c, &x);
    cw_free(w);
}

TEST(fp8_scales_may_be_bf16_or_exponents)
{
    cw *w = cw_new(CW_V3_FP8);
    const char *name = "model.layers.1.mlp.experts.7.down_proj.weight_scale_inv";
    mf_model_config *c;
    cw_remake(w, name, "BF16", 2, (int64_t[]){ 1, 1 });
    mf_weights *x = load(w, &c);
    CHECK_EQ(x->layers[1].experts[7].down.scale_dtype, MF_BF16);
    close_both(&c, &x);
    cw_remake(w, name, "F8_E8M0", 2, (int64_t[]){ 1, 1 });
    x = load(w, &c);
    CHECK_EQ(x->layers[1].experts[7].down.scale_dtype, MF_F8_E8M0);
    close_both(&c, &x);
    cw_remake(w, name, "U8", 2, (int64_t[]){ 1, 1 });
    expect(w, MF_ERR_FORMAT, "down_proj.weight_scale_inv\": expected dtype f32, bf16 or f8_e8m0; got u8");
    cw_set(w, "quantization_config.scale_fmt", "\"ue8m0\"");
    x = load(w, &c);
    CHECK_EQ(x->layers[1].experts[7].down.scale_dtype, MF_F8_E8M0);
    close_both(&c, &x);
    cw_free(w);
}

TEST(an_fp8_weight_and_its_scale_need_each_other)
{
    cw *w = cw_new(CW_V3_FP8);
    const char *scale = "model.layers.1.mlp.shared_experts.up_proj.weight_scale_inv";
    cw_remake(w, scale, "F32", 2, (int64_t[]){ 1, 2 });
    expect(w, MF_ERR_FORMAT,
           "up_proj.weight_scale_inv\": expected shape [1, 1] (one scale per 128 x 128 block); got [1, 2]");
    cw_remove(w, scale);
    expect(w, MF_ERR_FORMAT, "missing: model.layers.1.mlp.shared_experts.up_proj.weight_scale_inv");
    /* a bf16 weight where the config says fp8, without and with a scale */
    cw_remake(w, "model.layers.1.mlp.shared_experts.up_proj.weight", "BF16", 2, (int64_t[]){ 8, 16 });
    expect(w, MF_ERR_FORMAT, "up_proj.weight\": expected dtype f8_e4m3 (config.json: quantization_config");
    /* which is right once the module is excluded */
    cw_set(w, "quantization_config.modules_to_not_convert", "[\"model.layers.1.mlp.shared_experts.up_proj\"]");
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    CHECK_EQ(x->layers[1].shared.up.format, MF_FORMAT_BF16);
    CHECK_EQ(x->layers[1].shared.gate.format, MF_FORMAT_FP8_BLOCK);
    close_both(&c, &x);
    cw_add(w, scale, "F32", 2, (int64_t[]){ 1, 1 });
    expect(w, MF_ERR_FORMAT,
           "up_proj.weight_scale_inv\" is a scale, but its weight is bf16 and config.json does not say that it is "
           "quantised");
    cw_free(w);
    /* fp8 bytes under a config without quantisation */
    w = cw_new(CW_V3);
    cw_remake(w, "lm_head.weight", "F8_E4M3", 2, (int64_t[]){ 24, 16 });
    expect(w, MF_ERR_FORMAT,
           "lm_head.weight\": expected dtype f32, bf16 or f16 (config.json does not say that it is quantised); got "
           "f8_e4m3");
    cw_free(w);
    /* and a router that is fp8 although routers never are */
    w = cw_new(CW_V3_FP8);
    cw_remake(w, "model.layers.1.mlp.gate.weight", "F8_E4M3", 2, (int64_t[]){ 12, 16 });
    cw_add(w, "model.layers.1.mlp.gate.weight_scale_inv", "F32", 2, (int64_t[]){ 1, 1 });
    expect(w, MF_ERR_FORMAT,
           "mlp.gate.weight_scale_inv\" is a scale, but its weight is f8_e4m3 and config.json does not say");
    cw_free(w);
}

TEST(stacked_fp8_experts_keep_their_scales_in_step)
{
    cw *w = cw_new(CW_V3_FP8_STACKED);
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    const uint8_t *scales = cw_get(w, "model.layers.2.mlp.experts.gate_up_proj_scale_inv")->data; /* [12, 2, 1] */
    const uint8_t *codes = cw_get(w, "model.layers.2.mlp.experts.gate_up_proj")->data;
    for (int e = 0; e < 12; e++) {
        const mf_mlp_weights *m = &x->layers[2].experts[e];
        CHECK_MEM(m->gate.scale, scales + (2 * e) * 4, 4);
        CHECK_MEM(m->up.scale, scales + (2 * e + 1) * 4, 4);
        CHECK_MEM(m->up.data, codes + (2 * e + 1) * 128 * 16, 128 * 16);
    }
    close_both(&c, &x);
    cw_remove(w, "model.layers.2.mlp.experts.down_proj_scale_inv");
    expect(w, MF_ERR_FORMAT, "missing: model.layers.2.mlp.experts.down_proj_scale_inv");
    cw_free(w);
    /* a stack whose gate and up rows share a scale block cannot be cut */
    w = cw_new(CW_V3_STACKED);
    cw_set(w, "quantization_config",
           "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"modules_to_not_convert\":"
           " [\"self_attn\", \"shared_experts\", \"model.layers.0\"]}");
    cw_remake(w, "model.layers.1.mlp.experts.gate_up_proj", "F8_E4M3", 3, (int64_t[]){ 12, 16, 16 });
    cw_add(w, "model.layers.1.mlp.experts.gate_up_proj_scale_inv", "F32", 3, (int64_t[]){ 12, 1, 1 });
    expect(w, MF_ERR_UNSUPPORTED,
           "tensor \"model.layers.1.mlp.experts.gate_up_proj\": its scale blocks cross from gate to up");
    cw_free(w);
}

/* ---- names ---- */

TEST(missing_and_unexpected_names_are_counted_in_one_message)
{
    cw *w = cw_new(CW_V3);
    cw_remove(w, "model.layers.2.mlp.experts.7.up_proj.weight");
    expect(w, MF_ERR_FORMAT, "missing: model.layers.2.mlp.experts.7.up_proj.weight");
    cw_add(w, "model.layers.2.mlp.experts.7.w1.weight", "BF16", 2, (int64_t[]){ 8, 16 });
    expect(w, MF_ERR_FORMAT,
           "missing: model.layers.2.mlp.experts.7.up_proj.weight; unexpected: model.layers.2.mlp.experts.7.w1.weight");
    cw_free(w);
    /* 258 names: the first ones and how many more */
    w = cw_new(CW_V3);
    cw_set(w, "n_routed_experts", "98"); /* not a multiple of 4 groups: */
    cw_set(w, "n_group", "1");
    cw_set(w, "topk_group", "1");
    for (int l = 1; l < 3; l++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight", l);
        cw_remake(w, name, "BF16", 2, (int64_t[]){ 98, 16 });
        snprintf(name, sizeof name, "model.layers.%d.mlp.gate.e_score_correction_bias", l);
        cw_remake(w, name, "F32", 1, (int64_t[]){ 98 });
    }
    /* 86 experts too few in two layers: 86 * 3 * 2 = 516 */
    cw_write(w);
    mf_model_config *c;
    mf_weights *x;
    mf_error err;
    CHECK_EQ(load_with(w, &mapped, &c, &x, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message,
              "missing: model.layers.1.mlp.experts.12.gate_proj.weight, model.layers.1.mlp.experts.12.up_proj.weight");
    int commas = 0;
    for (const char *p = strstr(err.message, "missing"); *p; p++) {
        commas += *p == ',';
    }
    char more[40];
    snprintf(more, sizeof more, "(+%d more)", 516 - commas - 1);
    CHECK_HAS(err.message, more);
    CHECK(commas + 1 >= 10 && commas + 1 <= 20);
    close_both(&c, &x);
    cw_free(w);
}

TEST(names_match_whole_components)
{
    static const char *const strangers[] = { "model.layers.1.mlp.shared_expert.up_proj.weight",
                                             "model.layers.1.mlp.shared_experts_gate.weight",
                                             "model.layers.1.mlp.experts.1.up_proj.weight2",
                                             "model.layers.1.mlp.experts.01.up_proj.weight",
                                             "model.layers.1.mlp.experts.12.up_proj.weight",
                                             "model.layers.1.ffn.gate.weight",
                                             "model.layers.3.input_layernorm.weight",
                                             "model.layers.1.mlp.gate.bias",
                                             "model.layers.0.mlp.gate.weight",
                                             "lm_head.bias",
                                             "model.layers.1.self_attn.q_proj.weight",
                                             "xmtp.weight" };
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++) {
        cw *w = cw_new(CW_V3);
        cw_add(w, strangers[i], "BF16", 2, (int64_t[]){ 8, 16 });
        char message[200];
        snprintf(message, sizeof message, "unexpected: %s", strangers[i]);
        expect(w, MF_ERR_FORMAT, message);
        cw_free(w);
    }
}

TEST(draft_layers_rotary_tables_and_cache_scales_are_skipped_and_counted)
{
    cw *w = cw_new(CW_V3);
    cw_add(w, "model.layers.3.enorm.weight", "BF16", 1, (int64_t[]){ 16 });
    cw_add(w, "model.layers.3.eh_proj.weight", "BF16", 2, (int64_t[]){ 16, 32 });
    expect(w, MF_ERR_FORMAT, "unexpected: model.layers.3.enorm.weight, model.layers.3.eh_proj.weight");
    cw_set(w, "num_nextn_predict_layers", "2");
    cw_add(w, "model.layers.4.mlp.experts.999.up_proj.weight", "BF16", 1, (int64_t[]){ 1 });
    cw_add(w, "model.layers.1.self_attn.rotary_emb.inv_freq", "F32", 1, (int64_t[]){ 2 });
    cw_add(w, "model.layers.1.self_attn.k_scale", "F32", 1, (int64_t[]){ 1 });
    cw_add(w, "model.layers.1.self_attn.attn.v_scale", "F32", 0, NULL);
    cw_add(w, "mtp.fc.weight", "BF16", 1, (int64_t[]){ 1 });
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    CHECK_EQ(x->stats.num_skipped_tensors, 7);
    CHECK_EQ(x->stats.num_skipped_layers, 2);
    close_both(&c, &x);
    cw_copy(w, "model.embed_tokens.weight", "model.layers.3.embed_tokens.weight");
    x = load(w, &c);
    close_both(&c, &x);
    cw_remake(w, "model.layers.3.embed_tokens.weight", "BF16", 2, (int64_t[]){ 24, 15 });
    expect(w, MF_ERR_FORMAT,
           "tensor \"model.layers.3.embed_tokens.weight\": expected shape [24, 16] as the main model's; got [24, 15]");
    cw_remove(w, "model.layers.3.embed_tokens.weight");
    cw_add(w, "model.layers.5.enorm.weight", "BF16", 1, (int64_t[]){ 16 });
    expect(w, MF_ERR_FORMAT, "unexpected: model.layers.5.enorm.weight");
    cw_free(w);
}

TEST(k25_finds_its_tensors_behind_a_prefix_and_skips_vision)
{
    cw *w = cw_new(CW_V3);
    json_t *inner = w->config;
    w->config = json_pack("{s:[s], s:o}", "architectures", "KimiK25ForConditionalGeneration", "text_config", inner);
    for (size_t i = 0; i < w->num_tensors; i++) {
        char name[256];
        snprintf(name, sizeof name, "language_model.%.200s", w->tensors[i].name);
        strcpy(w->tensors[i].name, name);
    }
    cw_add(w, "vision_tower.encoder.blocks.0.wqkv.weight", "BF16", 2, (int64_t[]){ 4, 4 });
    cw_add(w, "mm_projector.linear_1.weight", "BF16", 2, (int64_t[]){ 4, 4 });
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    CHECK_EQ(x->stats.num_skipped_tensors, 2);
    close_both(&c, &x);
    cw_add(w, "vision_tower2.weight", "BF16", 1, (int64_t[]){ 4 });
    expect(w, MF_ERR_FORMAT, "unexpected: vision_tower2.weight");
    cw_free(w);
}

/* ---- shapes, dtypes, values ---- */

TEST(shapes_are_equal_exactly)
{
    static const struct {
        const char *name;
        int ndim;
        int64_t shape[3];
        const char *message;
    } rows[] = {
        { "model.layers.1.mlp.experts.3.up_proj.weight", 2, { 16, 8 }, "expected shape [8, 16]; got [16, 8]" },
        { "model.layers.1.mlp.experts.3.up_proj.weight", 3, { 1, 8, 16 }, "expected shape [8, 16]; got [1, 8, 16]" },
        { "model.layers.1.mlp.experts.3.up_proj.weight", 1, { 128 }, "expected shape [8, 16]; got [128]" },
        { "model.layers.1.mlp.gate.weight", 2, { 11, 16 }, "expected shape [12, 16]; got [11, 16]" },
        { "model.layers.1.mlp.gate.e_score_correction_bias", 2, { 1, 12 }, "expected shape [12]; got [1, 12]" },
        { "model.norm.weight", 1, { 17 }, "expected shape [16]; got [17]" },
        { "model.norm.weight", 1, { 0 }, "expected shape [16]; got [0]" },
        { "model.embed_tokens.weight", 2, { 23, 16 }, "expected shape [24, 16] or more rows; got [23, 16]" },
        { "lm_head.weight", 2, { 24, 17 }, "expected shape [24, 16] or more rows; got [24, 17]" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = cw_new(CW_V3);
        cw_remake(w, rows[i].name, "F32", rows[i].ndim, rows[i].shape);
        char message[300];
        snprintf(message, sizeof message, "model.safetensors: tensor \"%s\": %s", rows[i].name, rows[i].message);
        expect(w, MF_ERR_FORMAT, message);
        cw_free(w);
    }
}

TEST(a_padded_vocabulary_loads)
{
    cw *w = cw_new(CW_V3);
    cw_remake(w, "model.embed_tokens.weight", "BF16", 2, (int64_t[]){ 32, 16 });
    cw_remake(w, "lm_head.weight", "BF16", 2, (int64_t[]){ 26, 16 });
    mf_model_config *c;
    mf_weights *x = load(w, &c);
    CHECK_EQ(x->embed_tokens.n, 32);
    CHECK_EQ(x->lm_head.n, 26);
    close_both(&c, &x);
    cw_free(w);
}

TEST(dtypes_that_do_not_fit_are_refused_not_reinterpreted)
{
    static const char *const dtypes[] = { "I8", "U8", "I32", "I64", "F8_E4M3", "F8_E8M0" };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        cw *w = cw_new(CW_V3);
        cw_remake(w, "model.layers.1.mlp.experts.3.up_proj.weight", dtypes[i], 2, (int64_t[]){ 8, 16 });
        expect(
            w, MF_ERR_FORMAT,
            "up_proj.weight\": expected dtype f32, bf16 or f16 (config.json does not say that it is quantised); got");
        cw_free(w);
        w = cw_new(CW_V3);
        cw_remake(w, "model.norm.weight", dtypes[i], 1, (int64_t[]){ 16 });
        expect(w, MF_ERR_FORMAT, "model.norm.weight\": expected dtype f32, bf16 or f16; got");
        cw_free(w);
    }
}

TEST(norms_and_biases_must_be_finite)
{
    static const struct {
        const char *name, *message;
        float value;
    } rows[] = { { "model.layers.1.mlp.gate.e_score_correction_bias", "element 5 is NaN; expected finite values", NAN },
                 { "model.layers.1.mlp.gate.e_score_correction_bias", "element 5 is infinite", INFINITY },
                 { "model.norm.weight", "element 5 is infinite", -INFINITY } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = cw_new(CW_V3);
        cw_tensor *t = cw_get(w, rows[i].name);
        cw_remake(w, rows[i].name, "F32", 1, t->shape);
        memcpy(t->data + 5 * 4, &rows[i].value, 4);
        char message[200];
        snprintf(message, sizeof message, "tensor \"%s\": %s", rows[i].name, rows[i].message);
        expect(w, MF_ERR_FORMAT, message);
        cw_free(w);
    }
}

static void count_warnings(void *context, mf_log_level level, const char *line)
{
    if (level == MF_LOG_WARN && (strstr(line, "precision is already lost") || strstr(line, "matches no tensor"))) {
        ++*(int *)context;
    }
}

TEST(a_bf16_bias_and_a_module_without_tensor_are_warned_about_once)
{
    int warnings = 0;
    cw *w = cw_new(CW_V3_FP8);
    cw_remake(w, "model.layers.1.mlp.gate.e_score_correction_bias", "BF16", 1, (int64_t[]){ 12 });
    cw_remake(w, "model.layers.2.mlp.gate.e_score_correction_bias", "BF16", 1, (int64_t[]){ 12 });
    mf_model_config *c;
    mf_log_set_sink(count_warnings, &warnings, MF_LOG_WARN);
    mf_weights *x = load(w, &c);
    CHECK_EQ(warnings, 1);
    close_both(&c, &x);
    cw_set(w, "quantization_config.modules_to_not_convert", "[\"lm_head\", \"mlp.gate\", \"visual\"]");
    warnings = 0;
    x = load(w, &c);
    CHECK_EQ(warnings, 2); /* the bias, and "visual" */
    close_both(&c, &x);
    mf_log_set_sink(NULL, NULL, MF_LOG_WARN);
    cw_free(w);
}

/* ---- tied embeddings ---- */

TEST(tied_embeddings_follow_the_config_not_the_files)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *c;
    cw_set(w, "tie_word_embeddings", "true");
    expect(w, MF_ERR_FORMAT,
           "tensor \"lm_head.weight\" differs from \"model.embed_tokens.weight\"; tie_word_embeddings");
    memcpy(cw_get(w, "lm_head.weight")->data, cw_get(w, "model.embed_tokens.weight")->data, 24 * 16 * 2);
    mf_weights *x = load(w, &c);
    CHECK(x->lm_head.data == x->embed_tokens.data);
    close_both(&c, &x);
    cw_remake(w, "lm_head.weight", "F32", 2, (int64_t[]){ 24, 16 });
    expect(w, MF_ERR_FORMAT, "tensor \"lm_head.weight\" differs");
    cw_remove(w, "lm_head.weight");
    x = load(w, &c);
    CHECK(x->lm_head.data == x->embed_tokens.data && x->lm_head.n == 24);
    close_both(&c, &x);
    cw_set(w, "tie_word_embeddings", NULL); /* the class default is false */
    expect(w, MF_ERR_FORMAT, "missing: lm_head.weight");
    cw_free(w);
}

/* ---- hostile sizes ---- */

TEST(a_config_far_larger_than_the_files_is_refused_at_once)
{
    cw *w = cw_new(CW_V3);
    cw_set(w, "n_routed_experts", "4096");
    cw_set(w, "num_hidden_layers", "1024");
    cw_set(w, "moe_intermediate_size", "1");
    double start = mf_now_s();
    expect(w, MF_ERR_FORMAT, "config.json asks for 12");
    CHECK(mf_now_s() - start < 2.0);
    cw_free(w);
}
