/* quantise_test.c - weights quantised while loading: every value within half a step of its own, counts, refusals. */
#include <math.h>
#include <stdlib.h>

#include "checkpoint_writer.h"
#include "kernels/format.h"
#include "model/weights.h"
#include "test.h"

typedef struct pair {
    mf_model_config *config;
    mf_weights *plain, *quantised;
} pair;

static void load_pair(pair *p, cw *w, mf_quantization quantization)
{
    mf_error err = { 0 };
    *p = (pair){ 0 };
    mf_weights_options options = { .use_map = true };
    CHECK_OK(mf_model_config_load(w->dir, &p->config, &err), err);
    CHECK_OK(mf_weights_load(w->dir, p->config, &options, &p->plain, &err), err);
    options.quantization = quantization;
    options.num_threads = 2;
    CHECK_OK(mf_weights_load(w->dir, p->config, &options, &p->quantised, &err), err);
}

static void close_pair(pair *p)
{
    mf_weights_close(&p->plain);
    mf_weights_close(&p->quantised);
    mf_model_config_close(&p->config);
}

/* Half a step of the code that holds w, and the rounding of the scale to its dtype. */
static double half_step(const mf_matrix *m, int64_t row, int64_t k, double w)
{
    const int64_t group = mf_matrix_group(m);
    const double scale = fabs((double)mf_matrix_scale_at(m, mf_matrix_scale_row(m, row) + (group ? k / group : 0)));
    switch (m->format) {
    case MF_FORMAT_INT8_CHANNEL:
        return 0.5 * scale;
    case MF_FORMAT_INT4_GROUP: /* -8..7 steps: the extreme of the other sign is one step short */
        return fabs(w) > 7 * scale ? 1.01 * scale : 0.51 * scale;
    default: /* e4m3: 3 bits of mantissa, steps of 2^-9 below 2^-6 */
        return fmax(fabs(w) * 0x1.08p-4, 0x1.08p-10 * scale);
    }
}

static void check_matrix(const mf_matrix *plain, const mf_matrix *coded, mf_format format)
{
    CHECK_EQ(coded->format, format);
    CHECK_EQ(coded->n, plain->n);
    CHECK_EQ(coded->k, plain->k);
    float *a = calloc((size_t)plain->k, sizeof *a), *b = calloc((size_t)plain->k, sizeof *b);
    for (int64_t r = 0; r < plain->n; r++) {
        mf_matrix_decode_row(plain, r, 0, plain->k, a);
        mf_matrix_decode_row(coded, r, 0, plain->k, b);
        for (int64_t k = 0; k < plain->k; k++) {
            if (!(fabs((double)a[k] - (double)b[k]) <= half_step(coded, r, k, (double)a[k]) * (1 + 1e-5))) {
                fail_msg("%s: row %d, column %d: %g became %g", mf_format_name(format), (int)r, (int)k, (double)a[k],
                         (double)b[k]);
            }
        }
    }
    free(a);
    free(b);
}

TEST(quantised_weights_are_within_half_a_step_of_their_own)
{
    static const mf_format formats[] = { MF_FORMAT_BF16, MF_FORMAT_INT8_CHANNEL, MF_FORMAT_INT4_GROUP, MF_FORMAT_FP8_BLOCK };
    for (int q = MF_QUANTIZATION_INT8; q <= MF_QUANTIZATION_FP8; q++) {
        cw *w = cw_new(CW_V3);
        cw_write(w);
        pair p;
        load_pair(&p, w, (mf_quantization)q);
        int64_t num_moe = 0;
        for (int64_t l = 0; l < p.config->num_layers; l++) {
            const mf_layer_weights *plain = &p.plain->layers[l], *coded = &p.quantised->layers[l];
            check_matrix(&plain->o_proj, &coded->o_proj, formats[q]);
            CHECK(coded->kv_b_proj.data == plain->kv_b_proj.data || coded->kv_b_proj.format == plain->kv_b_proj.format);
            if (!p.config->layer_is_moe[l]) {
                check_matrix(&plain->dense.down, &coded->dense.down, formats[q]);
                continue;
            }
            num_moe++;
            CHECK_EQ(coded->router.format, plain->router.format);
            for (int64_t e = 0; e < p.config->gate.num_experts; e++) {
                check_matrix(&plain->experts[e].gate, &coded->experts[e].gate, formats[q]);
                check_matrix(&plain->experts[e].up, &coded->experts[e].up, formats[q]);
                check_matrix(&plain->experts[e].down, &coded->experts[e].down, formats[q]);
            }
        }
        CHECK(num_moe > 0);
        check_matrix(&p.plain->lm_head, &p.quantised->lm_head, MF_FORMAT_INT8_CHANNEL);
        CHECK_EQ(p.quantised->embed_tokens.format, p.plain->embed_tokens.format);
        CHECK(p.quantised->stats.bytes_total < p.plain->stats.bytes_total);
        CHECK(p.quantised->stats.bytes_by_format[formats[q]] > 0);
        int64_t sum = 0;
        for (int f = 0; f < MF_FORMAT_COUNT; f++) {
            CHECK(p.quantised->stats.bytes_by_format[f] >= 0);
            sum += p.quantised->stats.bytes_by_format[f];
        }
        CHECK_EQ(sum, p.quantised->stats.bytes_total);
        close_pair(&p);
        cw_free(w);
    }
}

static bool cancel(void *context, const mf_progress_info *info)
{
    int *calls = context;
    const bool is_quantising = strcmp(info->what, "quantising") == 0;
    *calls += is_quantising;
    return !is_quantising;
}

TEST(quantising_reports_progress_and_can_be_cancelled)
{
    cw *w = cw_new(CW_V3);
    cw_write(w);
    mf_error err = { 0 };
    mf_model_config *config;
    mf_weights *weights;
    int calls = 0;
    mf_weights_options options = { .use_map = true, .quantization = MF_QUANTIZATION_INT4, .progress = { cancel, &calls } };
    CHECK_OK(mf_model_config_load(w->dir, &config, &err), err);
    CHECK_EQ(mf_weights_load(w->dir, config, &options, &weights, &err), MF_ERR_CANCELLED);
    CHECK_EQ(calls, 1);
    CHECK(!weights);
    mf_model_config_close(&config);
    cw_free(w);
}

TEST(quantization_names_are_parsed_and_others_refused)
{
    mf_quantization q = MF_QUANTIZATION_FP8;
    mf_error err = { 0 };
    CHECK_OK(mf_quantization_parse(NULL, &q, &err), err);
    CHECK_EQ(q, MF_QUANTIZATION_NONE);
    CHECK_OK(mf_quantization_parse("int4", &q, &err), err);
    CHECK_EQ(q, MF_QUANTIZATION_INT4);
    CHECK_EQ(mf_quantization_parse("int5", &q, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "quantization \"int5\": expected none, int8, int4 or fp8");
}
