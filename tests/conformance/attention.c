/* attention.c - MLA and grouped-query attention on every device against double precision, at the edges of numbers, and in
 * what they need of memory.  attention_bits.c has their promises about bits. */
#include "attention_case.h"

#include <math.h>
#include <stdlib.h>

/* Sums of n terms in f32 err by about sqrt(n) 2^-25 of their size: 5e-7 for 300 terms, ten times that in a weight whose
 * score is 10; NMSE squares it.  The other formats of kv_b only make other numbers.  With a bf16 cache queries, weights and
 * latent results may be rounded, each by up to 2^-9 of its size, 2^-10 in the mean: 1e-6 each, a little more through the
 * scores. */
static double bound_of(const attention_shape *s)
{
    return s->cache == MF_F32 ? 1e-11 : 1e-5;
}

TEST(attention_is_within_rounding_of_the_unabsorbed_definition_in_double)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        attention_case a;
        attention_make(&a, attention_shape_at(i), 40 + (uint64_t)i);
        attention_make_want(&a);
        for (int d = 0; d < count; d++) {
            if (!conf_full() && (d == 0 ? i % 4 == 3 : (d + i / 2) % 2 == 1)) {
                continue; /* one thread with half of the shapes, three with the others */
            }
            float *out = attention_attend_whole(devices[d].device, &a);
            case_error e = { 0 };
            for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
                case_error_add(&e, (double)out[j], a.want[j]);
            }
            if (!(case_nmse(&e) <= bound_of(&a.s))) {
                fail_msg("%s, %s: NMSE %g", devices[d].label, a.s.name, case_nmse(&e));
            }
            conf_free(out);
        }
        attention_discard(&a);
    }
}

TEST(attention_decodes_the_latent_weights_of_every_format)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < 2 * MF_FORMAT_COUNT; i++) {
        const mf_format f = (mf_format)(i / 2);
        attention_shape s = { "mla, 3 heads of 11 and 9, latent 52", true, 3, 1, 11, 9, 6, 52, 16, { 40, 3, 1 }, f };
        s.cache = i % 2 ? MF_BF16 : MF_F32;
        attention_case a;
        attention_make(&a, &s, 70 + (uint64_t)f);
        attention_make_want(&a);
        for (int d = 0; d < count; d++) {
            float *out = attention_attend_whole(devices[d].device, &a);
            case_error e = { 0 };
            for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
                case_error_add(&e, (double)out[j], a.want[j]);
            }
            if (!(case_nmse(&e) <= bound_of(&s))) {
                fail_msg("%s, %s: NMSE %g", devices[d].label, mf_format_name(f), case_nmse(&e));
            }
            conf_free(out);
        }
        attention_discard(&a);
    }
}

TEST(attention_of_a_query_with_nan_or_infinity_touches_its_own_result_alone)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        if (!attention_is_sampled(i)) {
            continue;
        }
        attention_case a;
        attention_make(&a, attention_shape_at(i), 150 + (uint64_t)i);
        for (int d = 0; d < count; d++) {
            if (!attention_meets(devices, i, d, i % 4 == 0)) {
                continue;
            }
            float *whole = attention_attend_whole(devices[d].device, &a);
            const int bad = a.s.length[0] / 3;
            float *q = a.q + (int64_t)bad * a.query;
            const float saved[2] = { q[0], q[a.query - 1] };
            q[0] = NAN;
            q[a.query - 1] = INFINITY;
            float *out = attention_attend_whole(devices[d].device, &a);
            CHECK(isnan(out[(int64_t)bad * a.out]));
            if (!a.s.has_sinks) { /* else no weight at all may be a zero */
                CHECK(isnan(out[(int64_t)(bad + 1) * a.out - 1])); /* infinity - infinity, or no weight at all */
            }
            CHECK_EQ(conf_difference(out, whole, MF_F32, (int64_t)bad * a.out), -1);
            const int64_t rest = (int64_t)(bad + 1) * a.out;
            CHECK_EQ(conf_difference(out + rest, whole + rest, MF_F32, (int64_t)a.tokens * a.out - rest), -1);
            q[0] = saved[0];
            q[a.query - 1] = saved[1];
            conf_free(out);
            conf_free(whole);
        }
        attention_discard(&a);
    }
}

/* softmax over one position is 1, whatever the score, large ones included */
TEST(attention_with_one_token_gives_its_value_back)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        if (attention_shape_at(i)->has_sinks) {
            continue;
        }
        attention_case a;
        attention_make(&a, attention_shape_at(i), 170 + (uint64_t)i);
        attention_make_want(&a);
        for (int j = 0; j < a.query; j++) {
            a.q[j] *= 1e10f;
        }
        for (int d = 0; d < count; d++) {
            const int32_t zero = 0;
            float *out = conf_alloc((size_t)(a.tokens * a.out) * 4);
            attention_attend(devices[d].device, &a, 1, &zero, &zero, out);
            case_error e = { 0 };
            for (int j = 0; j < a.out; j++) {
                case_error_add(&e, (double)out[j], a.want[j]);
            }
            CHECK(case_nmse(&e) <= bound_of(&a.s));
            conf_free(out);
        }
        attention_discard(&a);
    }
}

/* Scores far apart: weights underflow to 0 and the sums stay those of the large ones. */
TEST(attention_survives_scores_of_any_size)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    const attention_shape s = { "steep", false, 2, 1, 8, 8, 0, 0, 16, { 700, 1, 1 } };
    attention_case a;
    attention_make(&a, &s, 190);
    for (int t = 0; t < s.length[0]; t++) {
        /* a maximum that rises, falls below all others for a whole span, and comes back */
        const float size = t < 300 ? (float)t : t < 600 ? -1e30f : 200.0f;
        for (int j = 0; j < 8; j++) {
            a.rows[(int64_t)t * a.row_size + j] = size;
            for (int h = 0; h < 2; h++) {
                a.q[(int64_t)t * a.query + h * 8 + j] = h ? 1.0f : 1e-3f;
            }
        }
    }
    attention_fill(&a);
    attention_make_want(&a);
    for (int d = 0; d < count; d++) {
        float *out = attention_attend_whole(devices[d].device, &a);
        case_error e = { 0 };
        for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
            case_error_add(&e, (double)out[j], a.want[j]);
        }
        if (!(case_nmse(&e) <= 1e-9)) { /* scores up to 700 carry errors of 2^-15 */
            fail_msg("%s: NMSE %g", devices[d].label, case_nmse(&e));
        }
        conf_free(out);
    }
    attention_discard(&a);
}

TEST(attention_needs_no_more_scratch_for_longer_prompts_and_little_for_longer_contexts)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    const mf_matrix kv_b = { .n = 16 * 256, .k = 512, .row_stride = 512, .format = MF_FORMAT_BF16 };
    for (int d = 1; d < count; d++) {
        mf_device *device = devices[d].device;
        const double threads = mf_device_num_threads(device);
        mf_mla_args mla = { .num_tokens = 8192,
                            .num_heads = 128,
                            .qk_nope_head_dim = 128,
                            .qk_rope_head_dim = 64,
                            .v_head_dim = 128,
                            .kv_lora_rank = 512,
                            .kv_b = &kv_b,
                            .kv.max_context = 163840 };
        mf_gqa_args gqa = { .num_tokens = 8192,
                            .num_heads = 96,
                            .num_kv_heads = 8,
                            .head_dim = 128,
                            .v_head_dim = 128,
                            .kv.max_context = 163840 };
        const double large[2] = { 4.0 * (double)device->ops->mla_scratch_floats(device, &mla),
                                  4.0 * (double)device->ops->gqa_scratch_floats(device, &gqa) };
        CHECK(large[0] <= (16 + 16 * threads) * 1048576.0); /* the portion's queries and results are shared */
        CHECK(large[1] <= 16 * threads * 1048576.0);
        for (int64_t n = 1; n <= 8192; n *= 2) { /* sized at open for the largest batch and context */
            mla.num_tokens = gqa.num_tokens = n;
            mla.kv.max_context = gqa.kv.max_context = 20 * n;
            CHECK(4.0 * (double)device->ops->mla_scratch_floats(device, &mla) <= large[0]);
            CHECK(4.0 * (double)device->ops->gqa_scratch_floats(device, &gqa) <= large[1]);
        }
    }
}

TEST(attention_cache_rows_go_to_their_blocks)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        attention_case a;
        attention_make(&a, attention_shape_at(i), 200 + (uint64_t)i);
        const int64_t values = (int64_t)a.num_blocks * a.s.block_size * a.row_size;
        const size_t bytes = (size_t)attention_cached_bytes(&a, values);
        uint8_t *filled = conf_alloc(bytes);
        memcpy(filled, a.cache, bytes);
        for (int d = 0; d < count; d++) {
            attention_put(&a, NULL, values, a.cache);
            enum { STEP = 23 };
            for (int s = 0; s < ATTENTION_SEQUENCES; s++) {
                for (int first = 0; first < a.s.length[s]; first += STEP) {
                    int32_t sequence[STEP], position[STEP];
                    const int n = a.s.length[s] - first < STEP ? a.s.length[s] - first : STEP;
                    const int64_t stride = a.row_size + 3;
                    float *rows = conf_alloc((size_t)(n * stride) * 4);
                    for (int t = 0; t < n; t++) { /* the later ones first */
                        sequence[t] = s;
                        position[t] = first + n - 1 - t;
                        memcpy(rows + t * stride, a.rows + (int64_t)(a.first[s] + position[t]) * a.row_size,
                               (size_t)a.row_size * 4);
                    }
                    mf_kv_view kv = { .cache = a.cache,
                                      .dtype = a.s.cache,
                                      .row_size = a.row_size,
                                      .block_size = a.s.block_size,
                                      .block_table = a.table,
                                      .max_blocks = a.max_blocks,
                                      .sequence = sequence,
                                      .position = position,
                                      .max_context = first + n };
                    devices[d].device->ops->kv_write(devices[d].device, &kv, rows, stride, n);
                    conf_free(rows);
                }
            }
            CHECK_EQ(memcmp(a.cache, filled, bytes), 0);
        }
        conf_free(filled);
        attention_discard(&a);
    }
}
