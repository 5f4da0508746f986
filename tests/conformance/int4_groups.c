/* int4_groups.c - INT4_GROUP products at group sizes that no vector fits and at groups longer than any buffer, with
 * zero points of a whole byte: right in every rung, and with the same bits alone and among many tokens. */
#include <math.h>

#include "base/number.h"
#include "conf.h"
#include "kernels/cpu/inputs.h"

enum { N = 7, K = 1501, T = 13, MAX_GROUPS = K / 2 + 1 };

static uint8_t codes[N * (K + 1) / 2];
static float scales[N * MAX_GROUPS];
static uint8_t zeros[N * MAX_GROUPS];
static float x[T][K];
static float x_scale[T];
_Alignas(64) static uint8_t packed[T * 4 * (K + 64)];

static void make_inputs(uint64_t *seed, mf_cpu_input input)
{
    for (int t = 0; t < T; t++) {
        x_scale[t] = input == MF_CPU_INPUT_I8 ? (float)exp2(conf_normal(seed)) : 1.0f;
        for (int k = 0; k < K; k++) {
            const float v = (float)conf_normal(seed);
            x[t][k] = input == MF_CPU_INPUT_I8     ? (float)(conf_below(seed, 255) - 127)
                      : input == MF_CPU_INPUT_BF16 ? mf_bf16_to_f32(mf_f32_to_bf16(v))
                                                   : v;
        }
    }
}

static void run(const mf_cpu_kernels *kernels, const mf_cpu_product *product, const mf_matrix *w, int first, int count,
                float *out)
{
    const int64_t bytes = mf_cpu_form_bytes(product->form, K);
    const void *rows[T];
    for (int t = 0; t < count; t++) {
        const mf_cpu_pack pack = mf_cpu_pack_at(product->form, K, packed, bytes, t, count);
        kernels->pack(&pack, x[first + t], 0, K);
    }
    mf_cpu_point(product->form, packed, bytes, 0, count, rows);
    const mf_cpu_tile tile = {
        .w = w, .num_rows = N, .num_tokens = count, .x = rows, .x_scale = x_scale + first, .out = out, .out_stride = N
    };
    product->fn(&tile);
}

static void check_values(const char *label, const mf_matrix *w, const float *out)
{
    for (int t = 0; t < T; t++) {
        for (int r = 0; r < N; r++) {
            double sum = 0, magnitudes = 0;
            for (int k = 0; k < K; k++) {
                const int64_t s = r * w->scale_row_stride + k / w->group_size;
                const int code = codes[r * (K + 1) / 2 + k / 2] >> (k % 2 * 4) & 15;
                const double term = (code - (w->zero ? zeros[s] : 8)) * (double)scales[s] * x[t][k] * x_scale[t];
                sum += term;
                magnitudes += fabs(term);
            }
            /* f32 sums in at least 4 chains, a few roundings each for value, product and scale */
            const double bound = magnitudes * (K / 4 + 16) * 0x1p-24;
            if (!(fabs(out[t * N + r] - sum) <= bound)) {
                fail_msg("%s: row %d, token %d: %.9g, expected %.9g within %.3g", label, r, t, out[t * N + r], sum,
                         bound);
            }
        }
    }
}

static void check_group(const conf_device *device, mf_cpu_input input, int64_t group_size, bool has_zero)
{
    const mf_cpu_kernels *kernels = mf_cpu_kernels_of(device->device);
    const mf_cpu_product *product = &kernels->product[MF_FORMAT_INT4_GROUP][input];
    uint64_t seed = (uint64_t)group_size * 8 + input;
    char label[260];
    float out[T * N], alone[N];
    snprintf(label, sizeof label, "%s: groups of %d, input %d, %s zero points", device->label, (int)group_size,
             (int)input, has_zero ? "with" : "without");
    for (size_t i = 0; i < sizeof codes; i++) {
        codes[i] = (uint8_t)conf_below(&seed, 256);
    }
    for (int i = 0; i < N * MAX_GROUPS; i++) {
        scales[i] = (float)exp2(conf_normal(&seed));
        zeros[i] = (uint8_t)conf_below(&seed, i % 3 ? 16 : 256);
    }
    const mf_matrix w = { .data = codes,
                          .n = N,
                          .k = K,
                          .row_stride = K + 1,
                          .format = MF_FORMAT_INT4_GROUP,
                          .scale = scales,
                          .scale_dtype = MF_F32,
                          .scale_row_stride = MAX_GROUPS,
                          .group_size = group_size,
                          .zero = has_zero ? zeros : NULL };
    make_inputs(&seed, input);
    run(kernels, product, &w, 0, T, out);
    check_values(label, &w, out);
    for (int t = 0; t < T; t++) {
        run(kernels, product, &w, t, 1, alone);
        if (conf_difference(alone, out + t * N, MF_F32, N) >= 0) {
            fail_msg("%s: token %d has other bits alone than among %d", label, t, T);
        }
    }
}

static void check_groups(mf_cpu_input input)
{
    static const int64_t sizes[] = { 2, 6, 8, 16, 40, 48, 96, 512, 520, 544, 1024, 1500, 1504, 4096 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 1; d < count; d++) {
        if (mf_device_num_threads(devices[d].device) != 1) {
            continue; /* the same products */
        }
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            check_group(&devices[d], input, sizes[i], true);
            check_group(&devices[d], input, sizes[i], false);
        }
    }
}

TEST(int4_groups_of_any_even_size_are_right_with_f32_inputs)
{
    check_groups(MF_CPU_INPUT_F32);
}

TEST(int4_groups_of_any_even_size_are_right_with_bf16_inputs)
{
    check_groups(MF_CPU_INPUT_BF16);
}

TEST(int4_groups_of_any_even_size_are_right_with_int8_inputs)
{
    check_groups(MF_CPU_INPUT_I8);
}
