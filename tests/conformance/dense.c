/* dense.c - the dense operations of ops.h on every device against double precision, and their promises about bits. */
#include "experts_case.h"

#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "kernels/format.h"
#include "kernels/ops.h"

static float *normals(uint64_t *seed, int64_t n)
{
    float *x = conf_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)conf_normal(seed);
    }
    return x;
}

/* ---- linear, embed ---- */

TEST(dense_linear_is_within_rounding_of_double_precision_in_every_format)
{
    static const int64_t shapes[][2] = { { 5, 7 }, { 66, 129 }, { 130, 300 } };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        for (int i = 0; i < 9; i++) {
            uint64_t seed = 100 * (uint64_t)f + (uint64_t)i;
            const int64_t n = shapes[i % 3][0], k = shapes[i % 3][1], tokens = 1 + 4 * (i % 4), stride = k + i;
            case_matrix w;
            case_matrix_make(&w, &seed, (mf_format)f, i, n, k);
            float *x = normals(&seed, tokens * stride), *bias = i % 2 ? normals(&seed, n) : NULL;
            for (int d = 0; d < count; d++) {
                float *out = conf_alloc((size_t)(tokens * (n + 3)) * sizeof *out);
                devices[d].device->ops->linear(devices[d].device, &w.m, bias, MF_F32, x, stride, tokens, out, n + 3);
                case_error e = { 0 };
                for (int64_t t = 0; t < tokens; t++) {
                    for (int64_t r = 0; r < n; r++) {
                        double sum = bias ? (double)bias[r] : 0;
                        for (int64_t c = 0; c < k; c++) {
                            sum += w.value[r * k + c] * (double)x[t * stride + c];
                        }
                        case_error_add(&e, (double)out[t * (n + 3) + r], sum);
                    }
                    CHECK_EQ(((uint8_t *)(out + t * (n + 3) + n))[0], CONF_POISON);
                }
                if (!(case_nmse(&e) <= 1e-12)) {
                    fail_msg("%s: linear %s [%d, %d]: NMSE %g", devices[d].label, mf_format_name((mf_format)f), (int)n,
                             (int)k, case_nmse(&e));
                }
                conf_free(out);
            }
            conf_free(x);
            conf_free(bias);
            case_matrix_free(&w);
        }
    }
}

TEST(dense_linear_takes_block_scales_of_any_size)
{
    static const float huge[4] = { 0x1p100f, 0x1.8p8f, 0x1p-140f, 0x1.cp7f };
    enum { N = 200, K = 250, TOKENS = 8 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int tokens = 1; tokens <= TOKENS; tokens += 7) {
        uint64_t seed = 77;
        case_matrix w;
        case_matrix_make(&w, &seed, MF_FORMAT_FP8_BLOCK, 0, N, K); /* f32 scales [2, 2] */
        CHECK_EQ(w.m.scale_row_stride, 2);
        memcpy(w.scales, huge, sizeof huge);
        case_matrix_decode(&w);
        float *x = normals(&seed, tokens * K);
        for (int d = 0; d < count; d++) {
            float *out = conf_alloc((size_t)tokens * N * 4);
            devices[d].device->ops->linear(devices[d].device, &w.m, NULL, MF_F32, x, K, tokens, out, N);
            for (int block = 0; block < 2; block++) {
                case_error e = { 0 };
                for (int i = 0; i < tokens * N; i++) {
                    double sum = 0;
                    for (int c = 0; c < K; c++) {
                        sum += w.value[i % N * K + c] * (double)x[i / N * K + c];
                    }
                    if (i % N / 128 == block) {
                        case_error_add(&e, (double)out[i], sum);
                    }
                }
                if (!(case_nmse(&e) <= 1e-12)) {
                    fail_msg("%s, %d tokens, rows %d..: NMSE %g", devices[d].label, tokens, 128 * block, case_nmse(&e));
                }
            }
            conf_free(out);
        }
        conf_free(x);
        case_matrix_free(&w);
    }
}

TEST(dense_linear_bits_do_not_depend_on_the_batch)
{
    enum { TOKENS = 31, N = 70, K = 333 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        uint64_t seed = 500 + (uint64_t)f;
        case_matrix w;
        case_matrix_make(&w, &seed, (mf_format)f, f, N, K);
        float *x = normals(&seed, TOKENS * K);
        for (int d = 0; d < count; d++) {
            mf_device *device = devices[d].device;
            float *all = conf_alloc(TOKENS * N * sizeof *all), *one = conf_alloc(N * sizeof *one);
            device->ops->linear(device, &w.m, NULL, MF_F32, x, K, TOKENS, all, N);
            for (int t = 0; t < TOKENS; t++) {
                device->ops->linear(device, &w.m, NULL, MF_F32, x + t * K, K, 1, one, N);
                CHECK_EQ(conf_difference(one, all + t * N, MF_F32, N), -1);
            }
            for (int r = 0; r < N; r += f == MF_FORMAT_FP8_BLOCK ? 128 : 9) { /* and not on the rows beside it */
                mf_matrix part = mf_matrix_rows(&w.m, r, 1);
                device->ops->linear(device, &part, NULL, MF_F32, x, K, TOKENS, one, 1);
                for (int t = 0; t < TOKENS; t++) {
                    CHECK_EQ(conf_difference(one + t, all + t * N + r, MF_F32, 1), -1);
                }
            }
            conf_free(all);
            conf_free(one);
        }
        conf_free(x);
        case_matrix_free(&w);
    }
}

/* Inputs of bf16 or f32: what is rounded, and the same bits for a token alone and among any number of others. */
static void check_inputs(mf_dtype act_dtype, mf_format format, int variant, double bound)
{
    static const int64_t shapes[][2] = { { 200, 192 }, { 70, 640 },  { 17, 64 },   { 300, 1024 },
                                         { 33, 100 },  { 40, 3136 }, { 130, 128 }, { 47, 4096 } };
    static const int64_t counts[] = { 1, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 130, 300 };
    enum { TOKENS = 300, FIRST = 6 };
    /* Whole on a device of its own; elsewhere a sample of what only such a device has kernels for. */
    const bool whole = conf_whole();
    int count;
    const conf_device *devices = conf_devices(&count);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const int64_t n = shapes[i][0], k = shapes[i][1], stride = k + 4 * (int64_t)(i % 2);
        uint64_t seed = 900 + i;
        if (!whole && (conf_small() ? i != 1 && i != 5 : format == MF_FORMAT_BF16 ? i >= FIRST : k != 128)) {
            continue;
        }
        case_matrix w;
        case_matrix_make(&w, &seed, format, variant, n, k);
        float *x = normals(&seed, TOKENS * stride), *bias = i % 2 ? normals(&seed, n) : NULL;
        for (int d = 0; d < count; d++) {
            mf_device *device = devices[d].device;
            float *all = conf_alloc((size_t)(TOKENS * n) * sizeof *all);
            device->ops->linear(device, &w.m, bias, act_dtype, x, stride, TOKENS, all, n);
            case_error e = { 0 };
            for (int64_t t = 0; t < TOKENS; t += 7) {
                for (int64_t r = 0; r < n; r++) {
                    double sum = bias ? (double)bias[r] : 0;
                    for (int64_t c = 0; c < k; c++) {
                        const float v = x[t * stride + c];
                        sum += w.value[r * k + c] * (double)(act_dtype == MF_BF16 ? mf_bf16_to_f32(mf_f32_to_bf16(v)) : v);
                    }
                    case_error_add(&e, (double)all[t * n + r], sum);
                }
            }
            if (!(case_nmse(&e) <= bound)) {
                fail_msg("%s: linear of %s (%d) and %s [%d, %d]: NMSE %g", devices[d].label, mf_format_name(format),
                         variant, mf_dtype_name(act_dtype), (int)n, (int)k, case_nmse(&e));
            }
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c += conf_small() ? 3 : 1) {
                const int64_t tokens = counts[c], first = c % 2 ? TOKENS - tokens : 0;
                float *some = conf_alloc((size_t)(tokens * n) * sizeof *some);
                device->ops->linear(device, &w.m, bias, act_dtype, x + first * stride, stride, tokens, some, n);
                CHECK_EQ(conf_difference(some, all + first * n, MF_F32, tokens * n), -1);
                conf_free(some);
            }
            conf_free(all);
        }
        conf_free(x);
        conf_free(bias);
        case_matrix_free(&w);
    }
}

TEST(dense_linear_of_bf16_inputs_rounds_them_and_has_the_same_bits_for_any_batch)
{
    check_inputs(MF_BF16, MF_FORMAT_BF16, 0, 1e-12);
}

TEST(dense_linear_of_fp8_codes_rounds_bf16_inputs_and_has_the_same_bits_for_any_batch)
{
    check_inputs(MF_BF16, MF_FORMAT_FP8_BLOCK, 0, 1e-12);
    check_inputs(MF_BF16, MF_FORMAT_FP8_CHANNEL, 0, 1e-12);
}

/* Codes of 8 bits stay as they are.  Those of 4, times their scale, may be rounded to bf16: no weight changes by more than
 * 2^-9 of itself, so that the sums' NMSE is below 2^-18. */
TEST(dense_linear_of_integer_codes_rounds_bf16_inputs_and_has_the_same_bits_for_any_batch)
{
    static const int int8[] = { 0, 100, 101, 103 }, int4[] = { 0, 100, 101, 105, 106, 107, 110, 115 };
    for (size_t i = 0; i < sizeof int8 / sizeof int8[0]; i += conf_whole() ? 1 : 3) {
        check_inputs(MF_BF16, MF_FORMAT_INT8_CHANNEL, int8[i], 1e-12);
    }
    for (size_t i = 0; i < sizeof int4 / sizeof int4[0]; i += conf_whole() ? 1 : 3) {
        check_inputs(MF_BF16, MF_FORMAT_INT4_GROUP, int4[i], 0x1p-18);
    }
}

/* On Hopper integer codes are bf16 numbers on their way into the products of these: 4 bits times their scale (of bf16 or
 * f16) rounded once, 8 bits as they are, with the row's scale times the sum. */
TEST(dense_linear_of_integer_codes_has_the_bits_of_their_bf16_matrix_on_sm_90)
{
    static const struct {
        mf_format format;
        int variant;
        int64_t group, n, k;
        bool is_odd; /* zero points up to 255, scales past 1/4, which no checkpoint has */
    } cases[] = {
        { MF_FORMAT_INT4_GROUP, 100, 32, 70, 640, false },
        { MF_FORMAT_INT4_GROUP, 101, 128, 200, 192, false },
        { MF_FORMAT_INT4_GROUP, 106, 128, 640, 2048, false },
        { MF_FORMAT_INT4_GROUP, 107, 64, 47, 4096, false },
        { MF_FORMAT_INT4_GROUP, 106, 256, 130, 1088, false },
        { MF_FORMAT_INT4_GROUP, 101, 512, 40, 3136, false },
        { MF_FORMAT_INT4_GROUP, 110, 32, 33, 3200, false },
        { MF_FORMAT_INT4_GROUP, 115, 32, 300, 1024, false },
        { MF_FORMAT_INT4_GROUP, 115, 32, 70, 640, true },
        { MF_FORMAT_INT4_GROUP, 106, 128, 40, 2048, true },
        { MF_FORMAT_INT8_CHANNEL, 100, 0, 70, 640, false },
        { MF_FORMAT_INT8_CHANNEL, 101, 0, 200, 192, false },
        { MF_FORMAT_INT8_CHANNEL, 103, 0, 640, 2048, false },
        { MF_FORMAT_INT8_CHANNEL, 102, 0, 47, 4096, false },
        { MF_FORMAT_INT4_GROUP, 101, 128, 66000, 2048, false }, /* in pieces */
        { MF_FORMAT_INT8_CHANNEL, 101, 0, 66000, 2048, false },
    };
    static const int64_t counts[] = { 1, 8, 9, 17, 33, 129, 300 };
    enum { TOKENS = 300, PIECES = 66000 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_device *device = devices[d].device;
        for (size_t i = 0; strcmp(device->gpu, "sm_90") == 0 && i < sizeof cases / sizeof cases[0]; i++) {
            const int64_t n = cases[i].n, k = cases[i].k;
            if (n == PIECES && !conf_whole()) {
                continue;
            }
            const bool is_int8 = cases[i].format == MF_FORMAT_INT8_CHANNEL;
            uint64_t seed = 970 + i;
            case_matrix w;
            case_matrix_make(&w, &seed, cases[i].format, cases[i].variant, n, k);
            if (cases[i].group > w.m.group_size) { /* the first scales of a row serve */
                w.m.group_size = cases[i].group;
                case_matrix_decode(&w);
            }
            for (int64_t at = 0; cases[i].is_odd && at < (n - 1) * w.m.scale_row_stride + k / w.m.group_size; at++) {
                if (w.zeros) {
                    w.zeros[at] = (uint8_t)mf_random_next(&seed);
                } else {
                    ((uint16_t *)w.scales)[at] += 8 << 7; /* bf16, times 256 */
                }
            }
            if (cases[i].is_odd) {
                case_matrix_decode(&w);
            }
            uint16_t *values = conf_alloc((size_t)(n * k) * sizeof *values);
            for (int64_t r = 0; r < n; r++) {
                for (int64_t c = 0; c < k; c++) {
                    const double v = is_int8 ? ((const int8_t *)w.codes)[r * w.m.row_stride + c] : w.value[r * k + c];
                    values[r * k + c] = mf_f32_to_bf16((float)v); /* 15 bits at most: no other rounding */
                }
            }
            const mf_matrix bf16 = { .data = values, .n = n, .k = k, .row_stride = k, .format = MF_FORMAT_BF16 };
            float *x = normals(&seed, TOKENS * k), *bias = normals(&seed, n);
            for (size_t c = n == PIECES ? 4 : 0; c < sizeof counts / sizeof counts[0] - (n == PIECES); c++) {
                const int64_t tokens = counts[c];
                float *got = conf_alloc((size_t)(tokens * n) * 4), *want = conf_alloc((size_t)(tokens * n) * 4);
                device->ops->linear(device, &w.m, bias, MF_BF16, x, k, tokens, got, n);
                device->ops->linear(device, &bf16, is_int8 ? NULL : bias, MF_BF16, x, k, tokens, want, n);
                for (int64_t at = 0; is_int8 && at < tokens * n; at++) {
                    want[at] = want[at] * mf_matrix_scale_at(&w.m, at % n * w.m.scale_row_stride);
                    want[at] = want[at] + bias[at % n];
                }
                if (conf_difference(got, want, MF_F32, tokens * n) != -1) {
                    fail_msg("%s: linear of case %d, %d tokens: not the bits of bf16", devices[d].label, (int)i,
                             (int)tokens);
                }
                conf_free(got);
                conf_free(want);
            }
            conf_free(values);
            conf_free(x);
            conf_free(bias);
            case_matrix_free(&w);
        }
    }
}

TEST(dense_linear_of_f32_inputs_keeps_them_and_has_the_same_bits_for_any_batch)
{
    check_inputs(MF_F32, MF_FORMAT_BF16, 0, 1e-12);
}

/* What a device has as one call is what the operations give one by one: for one token with the norm inside the
 * products, and for several beside them, or, where their inputs are f32, behind the norm. */
TEST(dense_calls_of_several_operations_have_the_bits_of_each)
{
    enum { TOKENS = 21 };
    static const int64_t widths[] = { 320, 512, 2048, 4096 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_device *device = devices[d].device;
        const mf_device_ops *ops = device->ops;
        for (int i = 0; ops->norm_linear && i < 8; i++) {
            const int64_t k = widths[i / 2];
            const mf_dtype act_dtype = i % 2 ? MF_F32 : MF_BF16;
            uint64_t seed = 950 + (uint64_t)i;
            case_matrix w[2];
            case_matrix_make(&w[0], &seed, MF_FORMAT_BF16, 0, 37, k);
            case_matrix_make(&w[1], &seed, MF_FORMAT_BF16, 0, 16, k);
            float *acc = normals(&seed, TOKENS * k), *add = normals(&seed, TOKENS * k), *weight = normals(&seed, k);
            float *sum = conf_alloc(TOKENS * (size_t)k * 4), *h = conf_alloc(TOKENS * (size_t)k * 4), *sum_inside = conf_alloc((size_t)k * 4);
            uint16_t *rounded = conf_alloc(TOKENS * (size_t)k * 2), *rounded_inside = conf_alloc((size_t)k * 2);
            float *out[2] = { conf_alloc(TOKENS * 37 * 4), conf_alloc(TOKENS * 16 * 4) };
            float *inside[2] = { conf_alloc(37 * 4), conf_alloc(16 * 4) };
            memcpy(sum, acc, TOKENS * (size_t)k * 4);
            const mf_add_norm_call norm = { .acc = sum, .add = add, .num_tokens = TOKENS, .n = k, .weight = weight, .eps = 1e-6f,
                                            .out = h, .rounded = rounded, .rounded_dtype = MF_BF16 };
            ops->add_norm(device, &norm);
            const mf_linear_call many = { .num = 2, .w = { &w[0].m, &w[1].m }, .bias = { NULL, weight }, .out = { out[0], out[1] },
                                          .out_stride = { 37, 16 }, .act_dtype = act_dtype, .x = h, .x_stride = k, .rounded = rounded,
                                          .num_tokens = TOKENS };
            ops->linear_many(device, &many);
            float *all_inside[3] = { conf_alloc(TOKENS * (size_t)k * 4), conf_alloc(TOKENS * 37 * 4),
                                     conf_alloc(TOKENS * 16 * 4) };
            uint16_t *all_rounded = conf_alloc(TOKENS * (size_t)k * 2);
            mf_add_norm_call every = norm;
            mf_linear_call into = many;
            every.acc = acc;
            every.rounded = all_rounded;
            into.out[0] = all_inside[1];
            into.out[1] = all_inside[2];
            into.x = NULL;
            into.rounded = NULL;
            if (ops->norm_linear(device, &every, all_inside[0], &into)) {
                CHECK_EQ(conf_difference(all_inside[0], sum, MF_F32, TOKENS * k), -1);
                CHECK_EQ(conf_difference(all_inside[1], out[0], MF_F32, TOKENS * 37), -1);
                CHECK_EQ(conf_difference(all_inside[2], out[1], MF_F32, TOKENS * 16), -1);
                CHECK_EQ(conf_difference(all_rounded, rounded, MF_BF16, TOKENS * k), -1);
            }
            conf_free(all_inside[0]);
            conf_free(all_inside[1]);
            conf_free(all_inside[2]);
            conf_free(all_rounded);
            for (int t = 0; t < TOKENS; t++) {
                mf_add_norm_call one = norm;
                mf_linear_call call = many;
                one.num_tokens = call.num_tokens = 1;
                one.acc = acc + t * k;
                one.add = add + t * k;
                one.rounded = rounded_inside;
                call.out[0] = inside[0];
                call.out[1] = inside[1];
                call.x = NULL;
                call.rounded = NULL;
                CHECK(ops->norm_linear(device, &one, sum_inside, &call));
                CHECK_EQ(conf_difference(inside[0], out[0] + t * 37, MF_F32, 37), -1);
                CHECK_EQ(conf_difference(inside[1], out[1] + t * 16, MF_F32, 16), -1);
                CHECK_EQ(conf_difference(sum_inside, sum + t * k, MF_F32, k), -1);
                CHECK_EQ(conf_difference(rounded_inside, rounded + t * k, MF_BF16, k), -1);
            }
            void *const blocks[] = { acc, add, weight, sum, h, sum_inside, rounded, rounded_inside, out[0], out[1], inside[0], inside[1] };
            for (size_t b = 0; b < sizeof blocks / sizeof blocks[0]; b++) {
                conf_free(blocks[b]);
            }
            case_matrix_free(&w[0]);
            case_matrix_free(&w[1]);
        }
    }
}

TEST(dense_matrix_views_decode_to_the_parents_values)
{
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        for (int variant = 0; variant < 6; variant++) {
            uint64_t seed = 700 + (uint64_t)(6 * f + variant);
            const int64_t n = 300, k = 400;
            case_matrix w;
            case_matrix_make(&w, &seed, (mf_format)f, variant, n, k);
            const int64_t step = f == MF_FORMAT_INT4_GROUP ? w.m.group_size : 128;
            mf_error err = { 0 };
            CHECK_OK(mf_matrix_check(&w.m, "w", &err), err);
            mf_matrix part = mf_matrix_rows(&w.m, 128, 100);
            part = mf_matrix_columns(&part, step, 150);
            CHECK_OK(mf_matrix_check(&part, "part", &err), err);
            float row[150];
            for (int64_t r = 0; r < 100; r++) {
                for (int64_t first = 0; first < 150; first += 37) { /* any first column */
                    int64_t m = 150 - first < 37 ? 150 - first : 37;
                    mf_matrix_decode_row(&part, r, first, m, row + first);
                }
                for (int64_t c = 0; c < 150; c++) {
                    CHECK((double)row[c] == (double)(float)w.value[(128 + r) * k + step + c]);
                }
            }
            case_matrix_free(&w);
        }
    }
}

TEST(dense_matrix_bytes_counts_codes_and_scales)
{
    /* [130, 256]: bf16 2 bytes each; fp8_block 1 byte and 2 x 2 f32 scales; int4 g 32: half a byte, 8 f16 scales and
     * zeros a row; mxfp4: half a byte, 8 e8m0 a row */
    static const uint8_t place[1];
    mf_matrix m = { .data = place, .n = 130, .k = 256, .row_stride = 256, .format = MF_FORMAT_BF16 };
    CHECK_EQ(mf_matrix_bytes(&m), 130 * 512);
    m.format = MF_FORMAT_FP8_BLOCK;
    m.scale = place;
    m.scale_row_stride = 2;
    CHECK_EQ(mf_matrix_bytes(&m), 130 * 256 + 4 * 4);
    m.format = MF_FORMAT_INT4_GROUP;
    m.group_size = 32;
    m.scale_dtype = MF_F16;
    m.scale_row_stride = 8;
    m.zero = place;
    CHECK_EQ(mf_matrix_bytes(&m), 130 * 128 + 130 * 8 * 3);
    m = (mf_matrix){ .data = place,
                     .n = 130,
                     .k = 256,
                     .row_stride = 256,
                     .format = MF_FORMAT_MXFP4,
                     .scale = place,
                     .scale_dtype = MF_F8_E8M0,
                     .scale_row_stride = 8 };
    CHECK_EQ(mf_matrix_bytes(&m), 130 * 128 + 130 * 8);
    m.format = MF_FORMAT_INT8_CHANNEL;
    m.scale_dtype = MF_F32;
    m.scale_row_stride = 0; /* per tensor */
    CHECK_EQ(mf_matrix_bytes(&m), 130 * 256 + 4);
}

TEST(dense_embed_gives_the_tables_rows)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        uint64_t seed = 800 + (uint64_t)f;
        case_matrix table;
        case_matrix_make(&table, &seed, (mf_format)f, f, 20, 50);
        const int32_t ids[4] = { 19, 0, 7, 7 };
        for (int d = 0; d < count; d++) {
            float *out = conf_alloc(4 * 60 * sizeof *out);
            devices[d].device->ops->embed(devices[d].device, &table.m, ids, 4, out, 60);
            for (int i = 0; i < 4 * 50; i++) {
                CHECK(out[i / 50 * 60 + i % 50] == (float)table.value[ids[i / 50] * 50 + i % 50]);
            }
            conf_free(out);
        }
        case_matrix_free(&table);
    }
}

/* ---- norm, rope, add, cache writes ---- */

TEST(dense_rms_norm_divides_by_the_root_of_the_mean_square)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int64_t n = 1; n < 600; n = n * 2 + 3) {
            uint64_t seed = (uint64_t)n;
            float *x = normals(&seed, 5 * (n + 2)), *weight = normals(&seed, n), *out = conf_alloc((size_t)(5 * n) * 4);
            mf_device *device = devices[d].device;
            device->ops->rms_norm(device, x, n + 2, 5, n, weight, 1e-3f, out, n);
            for (int64_t t = 0; t < 5; t++) {
                double sum = 0;
                for (int64_t i = 0; i < n; i++) {
                    sum += (double)x[t * (n + 2) + i] * (double)x[t * (n + 2) + i];
                }
                for (int64_t i = 0; i < n; i++) {
                    double want =
                        (double)x[t * (n + 2) + i] / sqrt(sum / (double)n + (double)1e-3f) * (double)weight[i];
                    CHECK(fabs((double)out[t * n + i] - want) <= 1e-6 * fabs(want)); /* about 8 roundings of 2^-24 */
                }
            }
            float *again = conf_alloc((size_t)(5 * (n + 2)) * 4);
            memcpy(again, x, (size_t)(5 * (n + 2)) * 4);
            device->ops->rms_norm(device, again, n + 2, 5, n, weight, 1e-3f, again, n + 2); /* in place */
            for (int64_t t = 0; t < 5; t++) {
                CHECK_MEM(again + t * (n + 2), out + t * n, (size_t)n * 4);
            }
            conf_free(again);
            conf_free(x);
            conf_free(weight);
            conf_free(out);
        }
    }
}

TEST(dense_rope_rotates_pairs_or_halves)
{
    enum { DIM = 6, VECTORS = 2, TOKENS = 3, STRIDE = 20 };
    static const int32_t position[TOKENS] = { 0, 5, 2 };
    float table[6 * DIM];
    for (int p = 0; p < 6; p++) {
        for (int i = 0; i < DIM / 2; i++) {
            double angle = p * pow(10000, -2.0 * i / DIM);
            table[p * DIM + 2 * i] = (float)cos(angle);
            table[p * DIM + 2 * i + 1] = (float)sin(angle);
        }
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int pair = 0; pair < 2; pair++) {
            uint64_t seed = 3;
            float *x = normals(&seed, TOKENS * STRIDE), *before = normals(&seed, TOKENS * STRIDE);
            memcpy(before, x, TOKENS * STRIDE * sizeof *x);
            devices[d].device->ops->rope(devices[d].device, x + 1, STRIDE, VECTORS, 8, DIM, pair, table, position,
                                         TOKENS);
            for (int t = 0; t < TOKENS; t++) {
                for (int v = 0; v < VECTORS; v++) {
                    for (int i = 0; i < DIM / 2; i++) {
                        int a = t * STRIDE + 1 + v * 8 + (pair ? 2 * i : i), b = a + (pair ? 1 : DIM / 2);
                        double angle = position[t] * pow(10000, -2.0 * i / DIM);
                        CHECK(fabs((double)x[a] - ((double)before[a] * cos(angle) - (double)before[b] * sin(angle))) <
                              1e-6);
                        CHECK(fabs((double)x[b] - ((double)before[b] * cos(angle) + (double)before[a] * sin(angle))) <
                              1e-6);
                    }
                }
                CHECK(x[t * STRIDE] == before[t * STRIDE] && x[t * STRIDE + 7] == before[t * STRIDE + 7]);
            }
            conf_free(x);
            conf_free(before);
        }
    }
}

TEST(dense_add_adds)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int64_t n = 0; n < 40; n += 13) {
            uint64_t seed = 9;
            float *a = normals(&seed, n), *b = normals(&seed, n), *sum = conf_alloc((size_t)n * 4);
            memcpy(sum, a, (size_t)n * 4);
            devices[d].device->ops->add(devices[d].device, sum, b, n);
            for (int64_t i = 0; i < n; i++) {
                CHECK(sum[i] == a[i] + b[i]);
            }
            conf_free(a);
            conf_free(b);
            conf_free(sum);
        }
    }
}

/* Rows of odd widths, few and more than one task's. */
TEST(dense_scale_rows_multiplies_each_row_by_its_positions_factor)
{
    enum { POSITIONS = 50 };
    static const int64_t widths[] = { 1, 13, 48, 700 }, tokens[] = { 0, 1, 37 };
    float factors[POSITIONS];
    for (int p = 0; p < POSITIONS; p++) {
        factors[p] = 1.0f + 0.37f * (float)p;
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int i = 0; i < 12; i++) {
            const int64_t n = widths[i % 4], num_tokens = tokens[i / 4];
            uint64_t seed = 10;
            int32_t position[37];
            float *before = normals(&seed, num_tokens * n), *x = conf_alloc((size_t)(num_tokens * n) * 4);
            memcpy(x, before, (size_t)(num_tokens * n) * 4);
            for (int64_t t = 0; t < num_tokens; t++) {
                position[t] = (int32_t)conf_below(&seed, POSITIONS);
            }
            devices[d].device->ops->scale_rows(devices[d].device, x, n, factors, position, num_tokens);
            for (int64_t j = 0; j < num_tokens * n; j++) {
                CHECK(x[j] == before[j] * factors[position[j / n]]);
            }
            conf_free(before);
            conf_free(x);
        }
    }
}
