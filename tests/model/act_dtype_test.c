/* act_dtype_test.c - models whose linear layers and experts take bf16 inputs: against transformers with the same roundings,
 * and against themselves run otherwise. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "golden_support.h"
#include "model/model_impl.h"

static const char *const rounded_names[] = { "qwen3", "glm4", "qwen2", "qwen3_next", "gpt_oss", "gpt_oss_mxfp4", NULL };
/* Of these, transformers' logits with what experts write rounded, too, are there: no choice of an expert is close. */
static const char *const output_names[] = { "qwen3", "glm4", "gpt_oss", "gpt_oss_mxfp4", NULL };

static bool has_outputs(const char *name)
{
    for (int i = 0; output_names[i]; i++) {
        if (strcmp(output_names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static mf_model_options bf16_options(const char *device)
{
    mf_model_options options = golden_options(device);
    options.act_dtype = MF_BF16;
    return options;
}

/* rounds: what experts write, too, even where the device does not by itself. */
static float *prefill_as(const golden *g, const mf_model_options *options, int32_t chunk, bool rounds, bool *has_rounded)
{
    mf_model *model = golden_model(g, options);
    *has_rounded = model->device->rounds_outputs |= rounds; /* the workspace is large enough for f32 */
    float *logits = golden_logits(g, g->num_tokens);
    golden_run(model, g->ids, g->num_tokens, chunk, logits, NULL, NULL);
    mf_model_close(&model);
    return logits;
}

static float *prefill(const golden *g, const mf_model_options *options, int32_t chunk)
{
    bool has_rounded;
    return prefill_as(g, options, chunk, false, &has_rounded);
}

/* Largest difference of the rows [first, first + rows). */
static double worst_difference(const golden *g, const float *logits, int32_t first, int32_t rows)
{
    double worst = 0.0;
    for (int64_t i = (int64_t)first * g->vocab_size; i < (int64_t)(first + rows) * g->vocab_size; i++) {
        CHECK(isfinite(logits[i]));
        worst = fmax(worst, fabs((double)logits[i] - (double)g->logits[i]));
    }
    return worst;
}

/* Rounding is where a small difference can grow: two f32 sums an ulp apart that lie at the border between two bf16 numbers
 * end 2^-8 apart, every later token reads such a value from the cache, and its own sums may then round the other way too.
 * That happens to about one value in 10^5, so texts agree as closely as f32 runs do up to some row (a third of their rows or
 * more were seen) and to a few roundings' effect after it (0.4 % of the largest logit were seen).  Rounding in another
 * place, or of the router's input too, leaves no row close.  Where a device rounds what experts write and transformers' logits
 * with that are not there, it agrees as closely as one rounding more allows (1.7 % of the largest logit was seen). */
TEST(logits_with_bf16_activations_agree_with_transformers)
{
    for (int i = 0; rounded_names[i]; i++) {
        golden plain, rounded, outputs;
        golden_open(rounded_names[i], &plain);
        golden_open_file(rounded_names[i], "golden_bf16.bin", &rounded);
        golden_open_file(rounded_names[i], has_outputs(rounded_names[i]) ? "golden_bf16_outputs.bin" : "golden_bf16.bin", &outputs);
        CHECK_EQ(plain.num_tokens, rounded.num_tokens);
        CHECK_MEM(plain.ids, rounded.ids, (size_t)plain.num_tokens * sizeof *plain.ids);
        double largest = 0.0;
        for (int64_t k = 0; k < (int64_t)plain.num_tokens * plain.vocab_size; k++) {
            largest = fmax(largest, fabs((double)rounded.logits[k]));
        }
        for (int d = 0; golden_devices[d]; d++) {
            if (!golden_device_usable(golden_devices[d])) {
                continue;
            }
            mf_model_options options = bf16_options(golden_devices[d]);
            bool rounds_outputs;
            float *logits = prefill_as(&rounded, &options, rounded.num_tokens, false, &rounds_outputs);
            const golden *expected = rounds_outputs ? &outputs : &rounded;
            double all = worst_difference(expected, logits, 0, rounded.num_tokens);
            double effect = worst_difference(&plain, logits, 0, plain.num_tokens);
            int32_t close_rows = 0;
            for (int32_t t = 0; t < rounded.num_tokens; t++) {
                close_rows += worst_difference(expected, logits, t, 1) < 5e-6 * largest;
            }
            if (getenv("MOEFUSE_TEST_VERBOSE")) {
                printf("%-10s %-9s %d of %d rows are close; of the largest logit: all rows within %.3g, rounding changes %.3g\n",
                       rounded_names[i], golden_devices[d], (int)close_rows, (int)rounded.num_tokens, all / largest,
                       effect / largest);
            }
            const bool is_same = !rounds_outputs || has_outputs(rounded_names[i]);
            CHECK(!is_same || close_rows >= rounded.num_tokens / 8);
            CHECK(all < (is_same ? 1e-2 : 2e-2) * largest);
            CHECK(effect > 2e-3 * largest);
            mf_free(logits);
        }
        golden_close(&plain);
        golden_close(&rounded);
        golden_close(&outputs);
    }
}

/* The same where what experts write is rounded, too: against ref, and within a few roundings of transformers' logits. */
TEST(logits_with_rounded_outputs_of_experts_agree_with_ref)
{
    for (int i = 0; rounded_names[i]; i++) {
        golden rounded;
        golden_open_file(rounded_names[i], "golden_bf16.bin", &rounded);
        const size_t count = (size_t)rounded.num_tokens * (size_t)rounded.vocab_size;
        bool has_rounded;
        mf_model_options ref_options = bf16_options("ref");
        float *expected = prefill_as(&rounded, &ref_options, rounded.num_tokens, true, &has_rounded);
        CHECK(has_rounded);
        double largest = 0.0;
        for (size_t k = 0; k < count; k++) {
            largest = fmax(largest, fabs((double)expected[k]));
        }
        const double effect = worst_difference(&rounded, expected, 0, rounded.num_tokens);
        CHECK(effect > 1e-3 * largest && effect < 2e-2 * largest);
        for (int d = 0; golden_devices[d]; d++) {
            if (!golden_device_usable(golden_devices[d])) {
                continue;
            }
            mf_model_options options = bf16_options(golden_devices[d]);
            float *logits = prefill_as(&rounded, &options, rounded.num_tokens, true, &has_rounded);
            int32_t close_rows = 0;
            double all = 0.0;
            for (int32_t t = 0; t < rounded.num_tokens; t++) {
                double worst = 0.0;
                for (int32_t v = 0; v < rounded.vocab_size; v++) {
                    const size_t k = (size_t)t * (size_t)rounded.vocab_size + (size_t)v;
                    worst = fmax(worst, fabs((double)logits[k] - (double)expected[k]));
                }
                close_rows += worst < 5e-6 * largest;
                all = fmax(all, worst);
            }
            if (getenv("MOEFUSE_TEST_VERBOSE")) {
                printf("%-10s %-9s %d of %d rows are close to ref's; of the largest logit: all rows within %.3g, transformers "
                       "within %.3g\n",
                       rounded_names[i], golden_devices[d], (int)close_rows, (int)rounded.num_tokens, all / largest,
                       effect / largest);
            }
            CHECK(close_rows >= rounded.num_tokens / 32);
            CHECK(all < 1e-2 * largest);
            mf_free(logits);
        }
        mf_free(expected);
        golden_close(&rounded);
    }
}

static void check_bits(const golden *g, const char *device, const char *how, const float *a, const float *b)
{
    for (int64_t i = 0; i < (int64_t)g->num_tokens * g->vocab_size; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0) {
            fail_msg("%s on %s, %s: row %d, id %d: %a against %a", g->name, device, how, (int)(i / g->vocab_size),
                     (int)(i % g->vocab_size), (double)a[i], (double)b[i]);
        }
    }
}

static mf_model_options bf16_options_with(const char *device, mf_dtype kv_dtype)
{
    mf_model_options options = bf16_options(device);
    options.kv_dtype = kv_dtype;
    return options;
}

/* Experts with int8 or int4 codes, whose inputs --act-quant int8 rounds. */
static bool has_integer_weights(const char *name)
{
    static const char *const names[] = { "kimi_k2_int4", "v3_mixed", "qwen3_int8", "qwen3_gptq", "qwen3_awq" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

static void keeps_the_bits(mf_dtype kv_dtype)
{
    for (int i = 0; golden_names[i]; i++) {
        golden g;
        golden_open(golden_names[i], &g);
        for (int d = 0; golden_devices[d]; d++) {
            const char *device = golden_devices[d];
            if (!golden_device_usable(device)) {
                continue;
            }
            mf_model_options options = bf16_options_with(device, kv_dtype);
            float *one = prefill(&g, &options, g.num_tokens);
            float *other = prefill(&g, &options, 1);
            check_bits(&g, device, "token by token", one, other);
            mf_free(other);
            other = prefill(&g, &options, 7);
            check_bits(&g, device, "in chunks of 7", one, other);
            mf_free(other);
            options.plan.disable_shared_experts_fusion = true;
            other = prefill(&g, &options, g.num_tokens);
            check_bits(&g, device, "--disable-shared-experts-fusion", one, other);
            mf_free(other);
            options.plan.disable_fused_gate = true;
            options.num_threads = 3;
            other = prefill(&g, &options, 5);
            check_bits(&g, device, "all off, three threads", one, other);
            mf_free(other);
            options = bf16_options_with(device, kv_dtype);
            options.plan.num_shared_expert_replicas = 3;
            if (!has_integer_weights(golden_names[i])) { /* the others do not quantise */
                options.act_quant = MF_ACT_QUANT_INT8;
            }
            other = prefill(&g, &options, g.num_tokens);
            check_bits(&g, device, "replicas and int8", one, other);
            mf_free(other);
            mf_free(one);
        }
        golden_close(&g);
    }
}

TEST(bf16_activations_keep_the_bits_whatever_is_fused_cut_or_threaded)
{
    keeps_the_bits(MF_F32);
}

TEST(a_bf16_cache_keeps_the_bits_whatever_is_fused_cut_or_threaded)
{
    keeps_the_bits(MF_BF16);
}

/* What is cached is rounded to 8 bits.  Most rows' logits change by a few roundings' effect; where a router's choice hung by
 * a hair, an expert is another one from there on. */
TEST(logits_with_a_bf16_cache_are_those_of_an_f32_cache_within_a_few_roundings)
{
    for (int i = 0; golden_names[i]; i++) {
        golden g;
        golden_open(golden_names[i], &g);
        double largest = 0.0;
        for (int64_t k = 0; k < (int64_t)g.num_tokens * g.vocab_size; k++) {
            largest = fmax(largest, fabs((double)g.logits[k]));
        }
        for (int d = 0; golden_devices[d]; d++) {
            if (!golden_device_usable(golden_devices[d])) {
                continue;
            }
            mf_model_options options = golden_options(golden_devices[d]);
            options.kv_dtype = MF_BF16;
            float *logits = prefill(&g, &options, g.num_tokens);
            int32_t close_rows = 0, changed_rows = 0;
            for (int32_t t = 0; t < g.num_tokens; t++) {
                const double worst = worst_difference(&g, logits, t, 1);
                close_rows += worst < 2e-2 * largest;
                changed_rows += worst > 2e-5 * largest;
            }
            if (close_rows < g.num_tokens / 2 || changed_rows < g.num_tokens / 2) {
                fail_msg("%s on %s: %d of %d rows close, %d changed", g.name, golden_devices[d], (int)close_rows,
                         (int)g.num_tokens, (int)changed_rows);
            }
            mf_free(logits);
        }
        golden_close(&g);
    }
}

/* auto: bf16 where config.json says so and the device is faster with it; the cache follows. */
TEST(auto_dtype_follows_the_checkpoint_and_the_device)
{
    golden g;
    golden_open("glm4", &g);
    for (int d = 0; golden_devices[d]; d++) {
        if (golden_device_usable(golden_devices[d])) {
            mf_model_options options = golden_options(golden_devices[d]);
            options.auto_act_dtype = options.auto_kv_dtype = true;
            mf_model *model = golden_model(&g, &options);
            const bool is_bf16 = model->config->torch_dtype == MF_BF16 && model->device->prefers_bf16;
            CHECK_EQ(model->act_dtype, is_bf16 ? MF_BF16 : MF_F32);
            CHECK_EQ(model->kv_dtype, model->act_dtype);
            mf_buffer text = { 0 };
            CHECK_EQ(mf_model_print_plan(model, false, &text), MF_OK);
            CHECK_HAS(mf_buffer_text(&text), is_bf16 ? "| activations bf16 (auto: bf16 checkpoint, faster here) | KV cache bf16\n"
                                             : model->config->torch_dtype != MF_BF16
                                                 ? "| activations f32 (auto: the checkpoint is not bf16)\n"
                                                 : "| activations f32 (auto: bf16 is not faster here)\n");
            mf_buffer_close(&text);
            mf_model_close(&model);
        }
    }
    golden_close(&g);
}

/* Weights quantised while loading, inputs of the experts quantised while running. */
TEST(int8_activations_keep_the_bits_and_reach_the_experts)
{
    static const char *const names[] = { "glm4", "v2_lite", NULL };
    static const mf_quantization kinds[] = { MF_QUANTIZATION_INT8, MF_QUANTIZATION_INT4 };
    for (int i = 0; names[i]; i++) {
        golden g;
        golden_open(names[i], &g);
        for (int d = 0; golden_devices[d]; d++) {
            for (int k = 0; golden_device_usable(golden_devices[d]) && k < 4; k++) {
                mf_model_options options = golden_options(golden_devices[d]);
                options.quantization = kinds[k % 2];
                options.act_dtype = k / 2 ? MF_BF16 : MF_F32;
                float *weight_only = prefill(&g, &options, g.num_tokens);
                options.act_quant = MF_ACT_QUANT_INT8;
                float *one = prefill(&g, &options, g.num_tokens);
                CHECK(memcmp(weight_only, one, (size_t)g.num_tokens * (size_t)g.vocab_size * sizeof *one) != 0);
                options.plan.disable_shared_experts_fusion = true;
                options.num_threads = 2;
                float *other = prefill(&g, &options, 3);
                check_bits(&g, golden_devices[d], "int8, separate and in chunks", one, other);
                mf_free(weight_only);
                mf_free(one);
                mf_free(other);
            }
        }
        golden_close(&g);
    }
}

TEST(the_options_reach_the_experts_and_the_start_up_lines)
{
    static const struct {
        mf_dtype dtype;
        mf_act_quant quant;
        const char *line;
    } cases[] = {
        { MF_F32, MF_ACT_QUANT_NONE, "| activations f32\n" },
        { MF_BF16, MF_ACT_QUANT_NONE, "| activations bf16\n" },
        { MF_F32, MF_ACT_QUANT_INT8, "| activations f32, int8 per token for int8/int4 weights\n" },
        { MF_BF16, MF_ACT_QUANT_INT8, "| activations bf16, int8 per token for int8/int4 weights\n" },
        { MF_BF16, MF_ACT_QUANT_W8A8, "| activations bf16, FP8 or int8 for FP8/int8 experts\n" },
    };
    golden g;
    golden_open("glm4", &g);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mf_model_options options = golden_options("ref");
        options.act_dtype = cases[i].dtype;
        options.act_quant = cases[i].quant;
        options.plan.disable_shared_experts_fusion = true;
        mf_model *model = golden_model(&g, &options);
        CHECK_EQ(model->config->layer_is_moe[1], 1);
        const mf_experts *all[] = { model->layers[0].dense, model->layers[1].experts, model->layers[1].shared };
        for (int k = 0; k < 3; k++) {
            CHECK_EQ(all[k]->act_dtype, cases[i].dtype);
            CHECK_EQ(all[k]->act_quant, cases[i].quant);
        }
        mf_buffer text = { 0 };
        CHECK_EQ(mf_model_print_plan(model, false, &text), MF_OK);
        CHECK_HAS(mf_buffer_text(&text), cases[i].line);
        mf_buffer_close(&text);
        mf_model_close(&model);
    }
    mf_error err;
    mf_model *model = NULL;
    mf_model_options options = golden_options("ref");
    options.act_dtype = MF_F16;
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_UNSUPPORTED);
    CHECK_STR(err.message, "--dtype: expected float32 or bfloat16; got f16");
    options = golden_options("ref");
    options.kv_dtype = MF_F16;
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_UNSUPPORTED);
    CHECK_STR(err.message, "--kv-cache-dtype: expected float32 or bfloat16; got f16");
    options = golden_options("ref");
    options.act_quant = MF_ACT_QUANT_W8A8_E8M0;
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_UNSUPPORTED);
    CHECK_STR(err.message, "--act-quant: expected none, int8 or w8a8; got 2");
    golden_close(&g);
}
