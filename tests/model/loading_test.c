/* loading_test.c - around the weights themselves: progress and cancel, dummy weights, the checker. */
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/number.h"
#include "base/sys.h"
#include "checkpoint_writer.h"
#include "model/weights.h"
#include "test.h"

static mf_status load_with(cw *w, const mf_weights_options *options, mf_model_config **config, mf_weights **weights,
                           mf_error *err)
{
    *weights = NULL;
    MF_TRY(mf_model_config_load(w->dir, config, err));
    return mf_weights_load(w->dir, *config, options, weights, err);
}

static void close_both(mf_model_config **config, mf_weights **weights)
{
    mf_weights_close(weights);
    mf_model_config_close(config);
}

/* ---- progress ---- */

typedef struct watch {
    int calls, cancel_at;
    int64_t last_done, total;
} watch;

static bool watch_progress(void *context, const mf_progress_info *info)
{
    watch *w = context;
    w->calls++;
    CHECK(info->bytes_done >= w->last_done || w->total != info->bytes_total);
    w->last_done = info->bytes_done;
    w->total = info->bytes_total;
    return w->calls != w->cancel_at;
}

TEST(touching_reports_all_bytes_and_can_be_cancelled)
{
    cw *w = cw_new(CW_V3);
    cw_shard(w, 3);
    cw_write(w);
    int64_t bytes = 0;
    for (int i = 1; i <= 3; i++) {
        char name[64];
        struct stat st;
        snprintf(name, sizeof name, "model-%05d-of-00003.safetensors", i);
        CHECK_EQ(stat(cw_path(w, name), &st), 0);
        bytes += st.st_size;
    }
    watch seen = { 0 };
    mf_weights_options options = { .use_map = true, .touch = true, .progress = { watch_progress, &seen } };
    mf_model_config *c;
    mf_weights *x;
    mf_error err;
    CHECK_OK(load_with(w, &options, &c, &x, &err), err);
    CHECK_EQ(seen.last_done, bytes);
    CHECK_EQ(seen.total, bytes);
    close_both(&c, &x);
    for (int at = 1; at <= seen.calls; at++) {
        watch stop = { .cancel_at = at };
        options.progress.context = &stop;
        CHECK_EQ(load_with(w, &options, &c, &x, &err), MF_ERR_CANCELLED);
        CHECK(x == NULL);
        CHECK_EQ(stop.calls, at);
        close_both(&c, &x);
    }
    cw_free(w);
}

/* ---- dummy weights ---- */

static float element(const mf_matrix *m, int64_t r, int64_t c)
{
    const uint8_t *row = m->data;
    uint16_t h;
    float f;
    int64_t i = r * m->row_stride + c;
    switch (m->format) {
    case MF_FORMAT_F32:
        memcpy(&f, row + 4 * i, 4);
        return f;
    case MF_FORMAT_F16:
        memcpy(&h, row + 2 * i, 2);
        return mf_f16_to_f32(h);
    case MF_FORMAT_BF16:
        memcpy(&h, row + 2 * i, 2);
        return mf_bf16_to_f32(h);
    default:
        return mf_e4m3_to_f32(row[i]);
    }
}

static mf_weights *make_dummy(const mf_model_config *c, uint64_t seed, int32_t threads)
{
    mf_weights_options options = { .dummy = true, .seed = seed, .num_threads = threads };
    mf_weights *x;
    mf_error err;
    CHECK_OK(mf_weights_load(NULL, c, &options, &x, &err), err);
    return x;
}

static void moments(const mf_matrix *m, double *mean, double *deviation)
{
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < m->n; r++) {
        for (int64_t k = 0; k < m->k; k++) {
            double v = (double)element(m, r, k);
            if (m->scale) {
                v *= (double)((const float *)m->scale)[r / 128 * m->scale_row_stride + k / 128];
            }
            sum += v;
            squares += v * v;
        }
    }
    double n = (double)m->n * (double)m->k;
    *mean = sum / n;
    *deviation = sqrt(squares / n - *mean * *mean);
}

static mf_model_config *config_of(const cw *w)
{
    char *text = json_dumps(w->config, 0);
    mf_model_config *c;
    mf_error err;
    CHECK_OK(mf_model_config_parse(text, strlen(text), "config.json", &c, &err), err);
    free(text);
    return c;
}

TEST(dummy_weights_depend_on_the_seed_and_not_on_threads)
{
    cw *w = cw_new(CW_V3);
    cw_set(w, "vocab_size", "40000"); /* 640,000 values: more than one task for a tensor */
    mf_model_config *c = config_of(w);
    mf_weights *a = make_dummy(c, 7, 1), *b = make_dummy(c, 7, 3), *d = make_dummy(c, 8, 1);
    size_t n = 40000 * 16 * 2;
    CHECK_MEM(a->embed_tokens.data, b->embed_tokens.data, n);
    CHECK_MEM(a->lm_head.data, b->lm_head.data, n);
    CHECK_MEM(a->layers[2].experts[11].down.data, b->layers[2].experts[11].down.data, 16 * 8 * 2);
    CHECK_MEM(a->layers[2].e_score_correction_bias, b->layers[2].e_score_correction_bias, 12 * 4);
    CHECK(memcmp(a->embed_tokens.data, d->embed_tokens.data, n) != 0);
    CHECK(memcmp(a->embed_tokens.data, a->lm_head.data, n) != 0);
    /* The second task's values are not the first's again. */
    CHECK(memcmp(a->embed_tokens.data, (const uint8_t *)a->embed_tokens.data + 2 * 262144, 1000) != 0);
    CHECK_EQ(a->stats.bytes_total, b->stats.bytes_total);
    CHECK(mf_weights_dummy_bytes(c) >= a->stats.bytes_total);
    mf_weights_close(&a);
    mf_weights_close(&b);
    mf_weights_close(&d);
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(dummy_weights_are_near_normal_in_every_format)
{
    static const struct {
        const char *key, *value;
        mf_format format;
    } rows[] = { { "torch_dtype", "\"bfloat16\"", MF_FORMAT_BF16 },
                 { "torch_dtype", "\"float16\"", MF_FORMAT_F16 },
                 { "torch_dtype", "\"float32\"", MF_FORMAT_F32 },
                 { "quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}",
                   MF_FORMAT_FP8_BLOCK } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = cw_new(CW_V3);
        cw_set(w, "intermediate_size", "400");
        cw_set(w, rows[i].key, rows[i].value);
        mf_model_config *c = config_of(w);
        mf_weights *x = make_dummy(c, 1, 2);
        const mf_matrix *m = &x->layers[0].dense.gate; /* [400, 16]: deviation 16^-1/2 = 0.25 */
        CHECK_EQ(m->format, rows[i].format);
        double mean, deviation;
        moments(m, &mean, &deviation);
        /* 6,400 values: the mean's deviation is 0.25 / 80 = 0.003, the deviation's about 0.0022. */
        CHECK(fabs(mean) < 0.015);
        /* fp8 scales are powers of two at or below the wanted one: the size is right within a factor of two. */
        CHECK(rows[i].format == MF_FORMAT_FP8_BLOCK ? deviation > 0.12 && deviation < 0.26
                                                    : fabs(deviation - 0.25) < 0.01);
        CHECK(x->norm[0] == 1.0f && x->norm[15] == 1.0f);
        CHECK_EQ((uintptr_t)m->data % 64, 0);
        CHECK_EQ(x->layers[1].router.format, rows[i].format == MF_FORMAT_FP8_BLOCK ? MF_FORMAT_BF16 : rows[i].format);
        float largest = 0;
        for (int e = 0; e < 12; e++) {
            largest = fmaxf(largest, fabsf(x->layers[1].e_score_correction_bias[e]));
        }
        CHECK(largest > 0 && largest < 0.05f);
        mf_weights_close(&x);
        mf_model_config_close(&c);
        cw_free(w);
    }
}

TEST(dummy_weights_beyond_memory_are_refused_with_both_numbers)
{
    cw *w = cw_new(CW_V3);
    cw_set(w, "hidden_size", "1048576");
    cw_set(w, "vocab_size", "16777216"); /* 2 * 2^44 values of two bytes: 65,536 GiB */
    mf_model_config *c = config_of(w);
    mf_weights_options options = { .dummy = true };
    mf_weights *x;
    mf_error err;
    CHECK_EQ(mf_weights_load(NULL, c, &options, &x, &err), MF_ERR_NOMEM);
    CHECK_HAS(err.message, "dummy weights of this config take 655");
    CHECK_HAS(err.message, "GiB of memory are available");
    CHECK(x == NULL);
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(making_dummy_weights_can_be_cancelled)
{
    cw *w = cw_new(CW_V3);
    mf_model_config *c = config_of(w);
    watch stop = { .cancel_at = 1 };
    mf_weights_options options = { .dummy = true, .progress = { watch_progress, &stop } };
    mf_weights *x;
    mf_error err;
    CHECK_EQ(mf_weights_load(NULL, c, &options, &x, &err), MF_ERR_CANCELLED);
    CHECK(x == NULL);
    mf_model_config_close(&c);
    cw_free(w);
}

/* ---- check ---- */

typedef struct findings {
    char text[16][1100];
    int num;
} findings;

static void keep(void *context, const char *finding)
{
    findings *f = context;
    if (f->num < 16) {
        snprintf(f->text[f->num], sizeof f->text[0], "%s", finding);
    }
    f->num++;
}

static int32_t run_check(cw *w, bool deep, int32_t most, findings *f)
{
    cw_write(w);
    memset(f, 0, sizeof *f);
    mf_model_config *c;
    mf_error err;
    CHECK_OK(mf_model_config_load(w->dir, &c, &err), err);
    int32_t num;
    CHECK_OK(mf_weights_check(w->dir, c, deep, most, keep, f, &num, &err), err);
    mf_model_config_close(&c);
    CHECK_EQ(num, f->num);
    return num;
}

static findings found;

TEST(check_reports_every_problem_at_once)
{
    cw *w = cw_new(CW_V3_FP8);
    CHECK_EQ(run_check(w, true, 100, &found), 0);
    cw_remove(w, "model.layers.0.mlp.up_proj.weight_scale_inv");
    cw_remake(w, "model.layers.1.mlp.gate.weight", "BF16", 2, (int64_t[]){ 3, 16 });
    cw_add(w, "stranger", "I8", 0, NULL);
    cw_remake(w, "model.norm.weight", "I32", 1, (int64_t[]){ 16 });
    CHECK_EQ(run_check(w, false, 100, &found), 4);
    CHECK_HAS(found.text[0], "model.norm.weight\": expected dtype");
    CHECK_HAS(found.text[1], "missing: model.layers.0.mlp.up_proj.weight_scale_inv");
    CHECK_HAS(found.text[2], "model.layers.1.mlp.gate.weight\": expected shape [12, 16]; got [3, 16]");
    CHECK_HAS(found.text[3], "unexpected: stranger");
    CHECK_EQ(run_check(w, false, 2, &found), 2);
    cw_free(w);
}

TEST(check_reads_values_only_when_deep)
{
    cw *w = cw_new(CW_V3_FP8);
    float nan = NAN;
    memcpy(cw_get(w, "model.layers.1.mlp.experts.7.down_proj.weight_scale_inv")->data, &nan, 4);
    cw_get(w, "model.layers.2.mlp.experts.7.down_proj.weight")->data[9] = 0x7f; /* e4m3's NaN */
    uint16_t inf = 0x7f80;
    memcpy(cw_get(w, "lm_head.weight")->data + 2 * 100, &inf, 2);
    CHECK_EQ(run_check(w, false, 100, &found), 0);
    CHECK_EQ(run_check(w, true, 100, &found), 3);
    CHECK_HAS(found.text[0], "tensor \"lm_head.weight\": element 100 is infinite");
    CHECK_HAS(found.text[1], "experts.7.down_proj.weight_scale_inv\": element 0 is NaN");
    CHECK_HAS(found.text[2], "model.layers.2.mlp.experts.7.down_proj.weight\": element 9 is NaN");
    cw_free(w);
}

TEST(check_looks_at_every_shard)
{
    cw *w = cw_new(CW_V3);
    cw_shard(w, 4);
    cw_write(w);
    memset(&found, 0, sizeof found);
    CHECK_EQ(truncate(cw_path(w, "model-00002-of-00004.safetensors"), 1000), 0);
    unlink(cw_path(w, "model-00004-of-00004.safetensors"));
    mf_model_config *c;
    mf_error err;
    int32_t num;
    CHECK_OK(mf_model_config_load(w->dir, &c, &err), err);
    CHECK_OK(mf_weights_check(w->dir, c, false, 100, keep, &found, &num, &err), err);
    CHECK_EQ(num, 2);
    CHECK_HAS(found.text[0], "model-00002-of-00004.safetensors");
    CHECK_HAS(found.text[1], "model-00004-of-00004.safetensors: cannot open");
    cw_write_bytes(cw_path(w, "model.safetensors"), "", 0);
    CHECK_OK(mf_weights_check(w->dir, c, false, 100, keep, &found, &num, &err), err);
    CHECK_EQ(num, 1);
    CHECK_HAS(found.text[2], "holds both");
    mf_model_config_close(&c);
    cw_free(w);
}
