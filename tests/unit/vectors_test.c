/* vectors_test.c - the CPU table's vectors on every rung that this machine has: what must keep the plain loops' bits does,
 * and what need not stays close to the definition.  Sizes are odd, and memory behind an output stays as it was. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#include "base/random.h"
#include "base/sys.h"
#include "kernels/activation.h"
#include "kernels/cpu/cpu_kernels.h"

enum { MAX_RUNGS = 16, POISON = 0xa5 };

typedef struct rung {
    const char *name;
    mf_device *device;
    const mf_cpu_kernels *kernels;
} rung;

static rung rungs[MAX_RUNGS];
static int num_rungs;

static void close_rungs(void)
{
    for (int i = 0; i < num_rungs; i++) {
        mf_device_close(&rungs[i].device);
    }
}

/* [0] is plain C. */
static void open_rungs(void)
{
    for (size_t i = 0; num_rungs == 0 || mf_cpu_isa_level(i).name; i++) {
        mf_error err = { 0 };
        mf_device_options options = { .num_threads = 1 };
        const mf_isa_level level = mf_cpu_isa_level(i);
        if (!level.is_available) {
            continue;
        }
        setenv("MOEFUSE_ISA", level.name, 1);
        CHECK_OK(mf_device_open("cpu", &options, &rungs[num_rungs].device, &err), err);
        unsetenv("MOEFUSE_ISA");
        rungs[num_rungs].name = level.name;
        rungs[num_rungs].kernels = rungs[num_rungs].device->kernels;
        num_rungs++;
        if (num_rungs == 1) {
            atexit(close_rungs);
        }
        CHECK(num_rungs < MAX_RUNGS);
    }
}

#define EACH_RUNG(r)                                    \
    if (num_rungs == 0) {                               \
        open_rungs();                                   \
    }                                                   \
    for (const rung *r = rungs; r < rungs + num_rungs; r++)

/* Normal values of many sizes; with `specials`, NaN, infinities, zeros and subnormals among them. */
static void fill(float *x, int64_t n, uint64_t *seed, bool specials)
{
    static const float special[] = { NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, -3e-45f, 0x1.fffffep127f };
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)((mf_random_unit(seed) * 2 - 1) * exp2(mf_random_unit(seed) * 24 - 16));
        if (specials && mf_random_below(seed, 12) == 0) {
            x[i] = special[mf_random_below(seed, sizeof special / sizeof *special)];
        }
    }
}

static void *guarded(size_t bytes)
{
    void *block = mf_alloc_aligned(bytes);
    CHECK(block != NULL);
    memset(block, POISON, bytes);
    return block;
}

static void same_bytes(const char *what, const char *name, const void *got, const void *expected, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (((const uint8_t *)got)[i] != ((const uint8_t *)expected)[i]) {
            fail_msg("%s on %s: byte %zu of %zu is 0x%02x, expected 0x%02x", what, name, i, bytes,
                     ((const uint8_t *)got)[i], ((const uint8_t *)expected)[i]);
        }
    }
}

/* ---- packing ---- */

/* Packs n tokens of k columns in calls that end at multiples of 64, by the rung or by the plain loops. */
static void pack_tokens(const rung *r, bool plain, mf_cpu_form form, int64_t k, int64_t n, int64_t cut, const float *x,
                        uint8_t *out)
{
    const bool panel = mf_cpu_form_is_panel(form);
    const int64_t row_bytes = mf_cpu_form_bytes(form, k);
    for (int64_t t = 0; t < n; t++) {
        mf_cpu_pack pack = { .form = form, .k = k, .token = t, .num_tokens = n, .row = panel ? out : out + t * row_bytes };
        for (int64_t first = 0; first < k; first += cut) {
            const int64_t count = k - first < cut ? k - first : cut;
            if (plain) {
                mf_cpu_pack_c(&pack, r->kernels->split, x + t * k + first, first, count);
            } else {
                r->kernels->pack(&pack, x + t * k + first, first, count);
            }
        }
    }
}

static void check_pack(const rung *r, mf_cpu_form form, int64_t k, int64_t n, int64_t cut, uint64_t *seed)
{
    const bool codes = form == MF_CPU_FORM_I8 || form == MF_CPU_FORM_I8_SPLIT || form == MF_CPU_FORM_I8_HALVES ||
                       form == MF_CPU_FORM_I8_PANEL;
    const size_t bytes = (size_t)(n * mf_cpu_form_bytes(form, k)) + 64;
    float *x = mf_alloc_array((size_t)(k * n), sizeof *x);
    uint8_t *got = guarded(bytes), *expected = guarded(bytes);
    CHECK(x != NULL);
    fill(x, k * n, seed, true);
    for (int64_t i = 0; i < k * n; i++) {
        x[i] = codes ? (float)((int64_t)mf_random_below(seed, 255) - 127) : x[i];
    }
    pack_tokens(r, false, form, k, n, cut, x, got);
    pack_tokens(r, true, form, k, n, cut, x, expected);
    char what[96];
    snprintf(what, sizeof what, "form %d, k %d, %d tokens, calls of %d columns", (int)form, (int)k, (int)n, (int)cut);
    same_bytes(what, r->name, got, expected, bytes);
    mf_free(x);
    mf_free_aligned(got);
    mf_free_aligned(expected);
}

TEST(packed_inputs_have_the_bits_of_the_plain_loops)
{
    static const int64_t columns[] = { 1, 2, 15, 31, 32, 33, 63, 64, 65, 127, 128, 200, 257, 640 };
    static const int64_t tokens[] = { 1, 3, 7, 16 };
    uint64_t seed = 11;
    EACH_RUNG(r)
    {
        for (int f = 0; f < MF_CPU_FORM_COUNT; f++) {
            for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
                for (size_t j = 0; j < sizeof tokens / sizeof *tokens; j++) {
                    check_pack(r, (mf_cpu_form)f, columns[i], tokens[j], columns[i], &seed);
                    check_pack(r, (mf_cpu_form)f, columns[i], tokens[j], 64, &seed);
                }
            }
        }
    }
}

static float packed_at(mf_cpu_form form, const void *row, int64_t i)
{
    switch (form) {
    case MF_CPU_FORM_BF16:
    case MF_CPU_FORM_BF16_QUADS:
        return mf_bf16_to_f32(((const uint16_t *)row)[i]);
    case MF_CPU_FORM_I8:
    case MF_CPU_FORM_I8_SPLIT:
    case MF_CPU_FORM_I8_HALVES:
        return ((const int8_t *)row)[i];
    default:
        return ((const float *)row)[i];
    }
}

/* Where the products read a column is where packing puts it, in calls of 64 columns too, and zeros stand behind the row. */
TEST(packed_columns_lie_where_the_form_says)
{
    enum { K = 130, COLUMNS = 256 };
    float x[K], row[COLUMNS + 64] __attribute__((aligned(64)));
    for (int k = 0; k < K; k++) {
        x[k] = (float)(k % 120 + 1); /* exact in every form */
    }
    EACH_RUNG(r)
    {
        for (int f = 0; f < MF_CPU_FORM_COUNT; f++) {
            const mf_cpu_form form = (mf_cpu_form)f;
            mf_cpu_pack pack = { .form = form, .k = K, .num_tokens = 1, .row = row };
            if (mf_cpu_form_is_panel(form)) {
                continue;
            }
            memset(row, POISON, sizeof row);
            for (int64_t first = 0; first < K; first += 64) {
                r->kernels->pack(&pack, x + first, first, K - first < 64 ? K - first : 64);
            }
            for (int64_t k = 0; k < mf_cpu_form_columns(form, K); k++) {
                CHECK(packed_at(form, row, mf_cpu_form_place(r->kernels, form, k)) == (k < K ? x[k] : 0.0f));
            }
        }
    }
}

/* ---- rows ---- */

TEST(rows_are_loaded_and_stored_to_the_bit_at_any_length_and_place)
{
    static const mf_dtype dtypes[] = { MF_F32, MF_BF16, MF_F16 };
    uint64_t seed = 12;
    float x[100];
    EACH_RUNG(r)
    {
        for (int64_t n = 0; n < 100; n++) {
            const mf_dtype dtype = dtypes[n % 3];
            uint8_t got[512], expected[512];
            float back[104], plain[104];
            fill(x, n, &seed, true);
            memset(got, POISON, sizeof got);
            memset(expected, POISON, sizeof expected);
            memset(back, POISON, sizeof back);
            memset(plain, POISON, sizeof plain);
            r->kernels->store_row(x, n, dtype, got + n % 5);
            mf_store_row(x, n, dtype, expected + n % 5);
            same_bytes("store_row", r->name, got, expected, sizeof got);
            r->kernels->load_row(got + n % 5, dtype, n, back);
            mf_load_row(got + n % 5, dtype, n, plain);
            same_bytes("load_row", r->name, back, plain, sizeof back);
        }
    }
}

TEST(sums_of_rows_and_rotations_have_the_bits_of_the_plain_loops)
{
    uint64_t seed = 13;
    float x[640], table[256], got[640], expected[640];
    EACH_RUNG(r)
    {
        for (int64_t n = 0; n < 70; n++) {
            fill(got, 640, &seed, false);
            fill(x, 640, &seed, false);
            memcpy(expected, got, sizeof got);
            r->kernels->add(got, x, n);
            rungs[0].kernels->add(expected, x, n);
            same_bytes("add", r->name, got, expected, sizeof got);
        }
        for (int64_t dim = 2; dim <= 200; dim += dim < 70 ? 2 : 42) {
            for (int pair = 0; pair < 2; pair++) {
                fill(got, 640, &seed, false);
                fill(table, 256, &seed, false);
                memcpy(expected, got, sizeof got);
                r->kernels->rope(got, 3, dim + 5, dim, pair, table);
                rungs[0].kernels->rope(expected, 3, dim + 5, dim, pair, table);
                same_bytes(pair ? "rope of pairs" : "rope of halves", r->name, got, expected, sizeof got);
            }
        }
    }
}

/* ---- quantisation ---- */

TEST(quantised_values_and_scales_have_the_bits_of_the_plain_loops)
{
    uint64_t seed = 14;
    EACH_RUNG(r)
    {
        for (int q = MF_QUANT_FP8_GROUP; q < MF_QUANT_COUNT; q++) {
            for (int64_t n = 1; n < 400; n += n < 70 ? 1 : 37) {
                float got[404], expected[404];
                float scale = -1.0f, plain_scale = -1.0f;
                fill(got, 404, &seed, n % 4 == 3);
                memcpy(expected, got, sizeof got);
                r->kernels->quantise((mf_quant)q, 0.37f, n % 2, got, n, &scale);
                rungs[0].kernels->quantise((mf_quant)q, 0.37f, n % 2, expected, n, &plain_scale);
                for (int64_t i = 0; i < n; i++) { /* a NaN is as good as another */
                    if (isnan(got[i]) && isnan(expected[i])) {
                        got[i] = expected[i] = 0.0f;
                    }
                }
                CHECK(scale == plain_scale || (isnan(scale) && isnan(plain_scale)));
                char what[64];
                snprintf(what, sizeof what, "quantise by rule %d, %d values", q, (int)n);
                same_bytes(what, r->name, got, expected, sizeof got);
            }
        }
    }
}

TEST(a_nan_anywhere_reaches_the_scale)
{
    EACH_RUNG(r)
    {
        for (int64_t n = 1; n < 80; n++) {
            for (int64_t at = 0; at < n; at++) {
                float x[80] = { 0 };
                float scale = 0.0f;
                x[at] = NAN;
                r->kernels->quantise(MF_QUANT_INT8_TOKEN, 0.0f, false, x, n, &scale);
                CHECK(isnan(scale));
                CHECK(x[at] == 0.0f);
            }
        }
    }
}

/* ---- activations ---- */

/* The definition in double, and the size of what is rounded on the way. */
static double exact_activation(const mf_slot *s, double g, double u, double *size)
{
    const double sigmoid = 1.0 / (1.0 + exp(-g));
    const double g1 = fmin(g, s->limit), u1 = fmax(fmin(u, s->limit), -s->limit);
    *size = fabs(g * u);
    switch (s->activation) {
    case MF_ACT_SILU:
        return g * sigmoid * u;
    case MF_ACT_SILU_CLAMP:
        return g1 / (1.0 + exp(-g1)) * u1;
    case MF_ACT_SILU_CLAMP_AFTER:
        return fmin(g * sigmoid, s->limit) * u1;
    case MF_ACT_SWIGLU_OAI:
        *size = fabs(g1 * (fabs(u1) + 1.0));
        return g1 / (1.0 + exp(-(double)s->alpha * g1)) * (u1 + 1.0);
    case MF_ACT_GELU_TANH:
        return 0.5 * g * (1.0 + tanh(0.79788456080286536 * (g + 0.044715 * g * g * g))) * u;
    case MF_ACT_GELU_ERF:
        return 0.5 * g * (1.0 + erf(g * 0.70710678118654752)) * u;
    case MF_ACT_SITU:
        return s->beta * tanh(g / s->beta) * sigmoid * (s->lbeta * tanh(u / s->lbeta));
    default:
        *size = u * u;
        return u > 0 ? u * u : 0.0;
    }
}

/* Ten roundings, and e^x within 2 ulp whose argument's rounding weighs up to |x| / 2 ulp more, |x| < 16 here. */
TEST(activations_stay_within_twenty_ulps_of_what_they_multiply)
{
    enum { N = 1000 };
    static float g[N], u[N], h[N];
    uint64_t seed = 15;
    EACH_RUNG(r)
    {
        for (int a = MF_ACT_SILU; a <= MF_ACT_RELU2; a++) {
            mf_slot slot = { .activation = (mf_activation)a, .limit = 7, .alpha = 1.702f, .beta = 5, .lbeta = 3 };
            for (int i = 0; i < N; i++) {
                g[i] = (float)((mf_random_unit(&seed) * 2 - 1) * exp2(mf_random_unit(&seed) * 12 - 8));
                u[i] = (float)((mf_random_unit(&seed) * 2 - 1) * exp2(mf_random_unit(&seed) * 12 - 8));
            }
            h[N - 1] = 1234.5f;
            r->kernels->activate(&slot, MF_F32, g, u, N - 1, h);
            CHECK(h[N - 1] == 1234.5f);
            for (int i = 0; i < N - 1; i++) {
                double size;
                const double exact = exact_activation(&slot, g[i], u[i], &size);
                if (!(fabs(h[i] - exact) <= 20 * 0x1p-24 * size)) {
                    fail_msg("activation %d on %s: g %.9g, u %.9g: %.9g, expected %.9g", a, r->name, g[i], u[i], h[i], exact);
                }
            }
        }
    }
}

TEST(activations_round_to_their_dtype_and_keep_nan)
{
    enum { N = 37 };
    static const float values[] = { NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e30f, -1e30f, 90.0f, -90.0f, 1.5f };
    uint64_t seed = 16;
    EACH_RUNG(r)
    {
        for (int a = MF_ACT_SILU; a <= MF_ACT_RELU2; a++) {
            mf_slot slot = { .activation = (mf_activation)a, .limit = 7, .alpha = 1.702f, .beta = 5, .lbeta = 3 };
            for (int round = 0; round < 40; round++) {
                const mf_dtype dtype = round % 2 ? MF_BF16 : MF_F16;
                float g[N], u[N], h[N], plain[N];
                for (int i = 0; i < N; i++) {
                    g[i] = values[mf_random_below(&seed, sizeof values / sizeof *values)];
                    u[i] = values[mf_random_below(&seed, sizeof values / sizeof *values)];
                }
                r->kernels->activate(&slot, dtype, g, u, N, h);
                rungs[0].kernels->activate(&slot, dtype, g, u, N, plain);
                for (int i = 0; i < N; i++) {
                    if (isnan(h[i]) != isnan(plain[i]) || (!isnan(h[i]) && mf_round_to_dtype(h[i], dtype) != h[i])) {
                        fail_msg("activation %d on %s: g %g, u %g: %.9g, plain %.9g", a, r->name, g[i], u[i], h[i], plain[i]);
                    }
                }
            }
        }
    }
}

/* ---- sums ---- */

TEST(norms_stay_close_and_touch_nothing_behind_them)
{
    uint64_t seed = 17;
    EACH_RUNG(r)
    {
        for (int64_t n = 1; n < 300; n += n < 40 ? 1 : 29) {
            float x[304], weight[304], out[304];
            double sum = 0;
            for (int64_t i = 0; i < 304; i++) {
                x[i] = (float)(mf_random_unit(&seed) * 8 - 4);
                weight[i] = (float)(mf_random_unit(&seed) + 0.5);
                out[i] = 77.0f;
            }
            for (int64_t i = 0; i < n; i++) {
                sum += (double)x[i] * x[i];
            }
            r->kernels->rms_norm(x, weight, n, 1e-6f, out);
            for (int64_t i = 0; i < n; i++) {
                const double exact = x[i] / sqrt(sum / (double)n + 1e-6) * weight[i];
                CHECK(fabs(out[i] - exact) <= 1e-6 * fabs(exact)); /* a chain of 300 roundings at most, by lanes */
            }
            for (int64_t i = n; i < 304; i++) {
                CHECK(out[i] == 77.0f);
            }
        }
    }
}
