/* sum_reduce.c - conformance of the combine: every device against the definition, element by element, and against a
 * plain f64 sum within its error bound. */
#include <float.h>
#include <math.h>

#include "base/number.h"
#include "conf.h"
#include "kernels/fp_env.h"

enum { MAX_ADDENDS = 3 };

typedef enum sum_values { SUM_NORMAL = 0, SUM_TINY, SUM_SPECIAL, SUM_VALUES_COUNT } sum_values;
typedef enum residual_kind { RESIDUAL_NONE = 0, RESIDUAL_APART, RESIDUAL_IN_PLACE, RESIDUAL_COUNT } residual_kind;

typedef struct sum_case {
    int64_t T, C, H;
    mf_dtype dtype, out_dtype;
    int32_t S, A;
    float factor;
    bool ids, weights, identity, addend_weights, padded;
    residual_kind residual;
    sum_values values;
    int64_t slack; /* extra elements between rows */
    int64_t shift; /* bytes that every float array is moved by: 1 = aligned to nothing */
    uint64_t seed;

    mf_sum_reduce_args args; /* without out */
    mf_tensor addends[MAX_ADDENDS];
    void *blocks[20];
    int num_blocks;
    void *residual_values;   /* [T, H] in out_dtype, copied into out when in place */
} sum_case;

static void *block(sum_case *c, size_t bytes)
{
    assert_true(c->num_blocks < 20);
    return c->blocks[c->num_blocks++] = conf_alloc(bytes);
}

static double draw(sum_case *c)
{
    if (c->values == SUM_TINY) { /* products, sums and outputs among the subnormals of f32 and f16 */
        int e = c->dtype == MF_F16 || c->out_dtype == MF_F16 ? -10 - (int)conf_below(&c->seed, 16) : -110 - (int)conf_below(&c->seed, 42);
        return ldexp(conf_normal(&c->seed), e);
    }
    if (c->values == SUM_SPECIAL && conf_below(&c->seed, 9) == 0) {
        static const double list[] = { NAN, INFINITY, -INFINITY, -0.0, 0.0, FLT_MAX, -FLT_MAX, 65504.0, 0x1p-149 };
        return list[conf_below(&c->seed, 9)];
    }
    return conf_normal(&c->seed);
}

/* A [n0, n1] or [n0, n1, n2] view with slack between its rows; poison where nobody may read. */
static mf_tensor draw_rows(sum_case *c, mf_dtype dtype, int64_t n0, int64_t n1, int64_t n2, void **out)
{
    int64_t inner = n2 + (n1 > 0 ? c->slack : 0);
    int64_t outer = n1 * inner + c->slack;
    int64_t count = n0 * outer;
    char *data = (char *)block(c, (size_t)count * mf_dtype_size(dtype) + (size_t)c->shift) + c->shift;
    for (int64_t i = 0; i < n0 * n1; i++) {
        for (int64_t h = 0; h < n2; h++) {
            conf_put(data, dtype, i / n1 * outer + i % n1 * inner + h, draw(c));
        }
    }
    if (out) {
        *out = data;
    }
    return (mf_tensor){ .data = data, .dtype = dtype, .ndim = 3, .shape = { n0, n1, n2 }, .stride = { outer, inner, 1 } };
}

static mf_tensor draw_matrix(sum_case *c, mf_dtype dtype, int64_t n0, int64_t n1)
{
    mf_tensor t = draw_rows(c, dtype, n0, 1, n1, NULL);
    t.ndim = 2;
    t.shape[1] = n1;
    t.stride[1] = 1;
    return t;
}

static void poison_row(const mf_tensor *t, int64_t offset, int64_t n)
{
    for (int64_t h = 0; h < n; h++) {
        conf_put(t->data, t->dtype, offset + h, NAN);
    }
}

static void draw_ids(sum_case *c)
{
    int32_t *ids = block(c, (size_t)(c->T * c->C) * 4);
    for (int64_t i = 0; i < c->T * c->C; i++) {
        ids[i] = (int32_t)CONF_PICK(&c->seed, 0, 3, INT32_MAX, -1, INT32_MIN);
        if (ids[i] < 0) { /* nobody may read this column, nor its weight */
            poison_row(&c->args.x, i / c->C * c->args.x.stride[0] + i % c->C * c->args.x.stride[1], c->H);
            if (c->weights) {
                poison_row(&c->args.topk_weights, i / c->C * c->args.topk_weights.stride[0] + i % c->C, 1);
            }
        }
    }
    c->args.topk_ids = mf_tensor_2d(ids, MF_I32, c->T, c->C);
}

static bool row_valid(const sum_case *c, int64_t t)
{
    return !c->padded || (t < *(const int32_t *)c->args.num_valid_tokens.data &&
                          ((const uint8_t *)c->args.row_valid.data)[t] != 0);
}

static void draw_padding(sum_case *c)
{
    int32_t *n = block(c, 4);
    uint8_t *valid = block(c, (size_t)c->T);
    *n = (int32_t)(c->T - c->T / 5);
    for (int64_t t = 0; t < c->T; t++) {
        valid[t] = (uint8_t)conf_below(&c->seed, 3);
    }
    c->args.num_valid_tokens = mf_tensor_1d(n, MF_I32, 1);
    c->args.row_valid = mf_tensor_1d(valid, MF_U8, c->T);
    for (int64_t t = 0; t < c->T; t++) {
        if (row_valid(c, t)) {
            continue;
        }
        for (int64_t k = 0; k < c->C; k++) {
            poison_row(&c->args.x, t * c->args.x.stride[0] + k * c->args.x.stride[1], c->H);
        }
        if (c->identity) {
            poison_row(&c->args.hidden, t * c->args.hidden.stride[0], c->H);
        }
        for (int32_t a = 0; a < c->A; a++) {
            poison_row(&c->addends[a], t * c->addends[a].stride[0], c->H);
        }
    }
}

static void open_case(sum_case *c)
{
    mf_sum_reduce_args *a = &c->args;
    a->x = draw_rows(c, c->dtype, c->T, c->C, c->H, NULL);
    a->routed_scaling_factor = c->factor;
    a->num_shared_columns = c->S;
    if (c->weights) {
        a->topk_weights = draw_matrix(c, MF_F32, c->T, c->C);
    }
    if (c->ids) {
        draw_ids(c);
    }
    if (c->identity) {
        a->identity_weight = draw_matrix(c, MF_F32, 1, c->T);
        a->identity_weight.ndim = 1;
        a->identity_weight.shape[0] = c->T;
        a->identity_weight.stride[0] = 1;
        a->hidden = draw_matrix(c, c->dtype, c->T, c->H);
    }
    for (int32_t i = 0; i < c->A; i++) {
        c->addends[i] = draw_matrix(c, c->dtype, c->T, c->H);
    }
    a->num_addends = c->A;
    a->addends = c->addends;
    if (c->addend_weights && c->A > 0) {
        a->addend_weights = draw_matrix(c, MF_F32, c->T, c->A);
    }
    if (c->residual != RESIDUAL_NONE) {
        a->residual = draw_rows(c, c->out_dtype, c->T, 1, c->H, &c->residual_values);
        a->residual.ndim = 2;
        a->residual.shape[1] = c->H;
        a->residual.stride[1] = 1;
    }
    if (c->padded) {
        draw_padding(c);
    }
}

static void close_case(sum_case *c)
{
    for (int i = 0; i < c->num_blocks; i++) {
        conf_free(c->blocks[i]);
    }
}

static const char *case_text(const sum_case *c)
{
    static char text[400];
    snprintf(text, sizeof text,
             "T %lld C %lld H %lld %s -> %s S %d A %d factor %g ids %d weights %d identity %d addend weights %d padded %d "
             "residual %d values %d slack %lld shift %lld",
             (long long)c->T, (long long)c->C, (long long)c->H, mf_dtype_name(c->dtype), mf_dtype_name(c->out_dtype), c->S,
             c->A, (double)c->factor, c->ids, c->weights, c->identity, c->addend_weights, c->padded, c->residual, c->values,
             (long long)c->slack, (long long)c->shift);
    return text;
}

/* ---- the definition, one element at a time ---- */

static double at(const mf_tensor *t, int64_t i)
{
    return conf_get(t->data, t->dtype, i);
}

/* One rounding to f32, or none for f64. */
static double step(bool f64, double w, double x, double sum)
{
    return f64 ? fma(w, x, sum) : (double)fmaf((float)w, (float)x, (float)sum);
}

typedef struct element {
    double value;           /* by the definition, before the last rounding */
    double plain, magnitude; /* f64 sum, and the sum of its terms' magnitudes */
} element;

static element define(const sum_case *c, int64_t t, int64_t h)
{
    const mf_sum_reduce_args *a = &c->args;
    bool f64 = c->dtype == MF_F64;
    double r = 0.0, s = 0.0, factor = (double)c->factor;
    element e = { 0 };
    bool valid = row_valid(c, t);
    for (int64_t k = 0; valid && k < c->C + 1; k++) {
        double w = 1.0, v;
        if (k == c->C - c->S && c->identity) {
            w = at(&a->identity_weight, t);
            v = at(&a->hidden, t * a->hidden.stride[0] + h);
            r = step(f64, w, v, r);
            e.plain += factor * w * v;
            e.magnitude += fabs(factor * w * v);
        }
        if (k == c->C || (c->ids && ((const int32_t *)a->topk_ids.data)[t * c->C + k] < 0)) {
            continue;
        }
        w = c->weights ? at(&a->topk_weights, t * a->topk_weights.stride[0] + k) : 1.0;
        v = at(&a->x, t * a->x.stride[0] + k * a->x.stride[1] + h);
        double scale = k < c->C - c->S ? factor : 1.0;
        if (k < c->C - c->S) {
            r = step(f64, w, v, r);
        } else {
            s = step(f64, w, v, s);
        }
        e.plain += scale * w * v;
        e.magnitude += fabs(scale * w * v);
    }
    for (int32_t i = 0; valid && i < c->A; i++) {
        double w = a->addend_weights.data ? at(&a->addend_weights, t * a->addend_weights.stride[0] + i) : 1.0;
        double v = at(&c->addends[i], t * c->addends[i].stride[0] + h);
        s = step(f64, w, v, s);
        e.plain += w * v;
        e.magnitude += fabs(w * v);
    }
    e.value = step(f64, factor, r, s);
    if (c->residual != RESIDUAL_NONE) {
        double v = conf_get(c->residual_values, c->out_dtype, t * a->residual.stride[0] + h);
        e.value = f64 ? e.value + v : (double)((float)e.value + (float)v);
        e.plain += v;
        e.magnitude += fabs(v);
    }
    return e;
}

static int64_t out_stride(const sum_case *c)
{
    return c->H + 2 * c->slack; /* as draw_rows makes the residual, which may be the output */
}

static void expect(const sum_case *c, void *want)
{
    static const double half_ulp[] = { [MF_F32] = 0x1p-24, [MF_BF16] = 0x1p-8, [MF_F16] = 0x1p-11, [MF_F64] = 0x1p-53 };
    static const double smallest[] = { [MF_F32] = 0x1p-149, [MF_BF16] = 0x1p-133, [MF_F16] = 0x1p-24, [MF_F64] = 0.0 };
    double eps = c->dtype == MF_F64 ? 0x1p-53 : 0x1p-24;
    double terms = (double)(c->C + c->A + 3);
    for (int64_t t = 0; t < c->T; t++) {
        for (int64_t h = 0; h < c->H; h++) {
            element e = define(c, t, h);
            int64_t i = t * out_stride(c) + h;
            conf_put(want, c->out_dtype, i, e.value);
            double found = conf_get(want, c->out_dtype, i);
            double bound = terms * eps * e.magnitude + half_ulp[c->out_dtype] * fabs(e.plain) * 1.01 +
                           smallest[c->out_dtype] + terms * 0x1p-149;
            if (c->values != SUM_SPECIAL && !(fabs(found - e.plain) <= bound) && fabs(e.plain) < 60000.0) {
                fail_msg("the definition gives %.17g, a plain sum %.17g +- %g\n  %s", found, e.plain, bound, case_text(c));
            }
        }
    }
}

static void check(sum_case *c)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    size_t size = mf_dtype_size(c->out_dtype);
    int64_t n = c->T * out_stride(c);
    void *want = conf_alloc((size_t)n * size);
    open_case(c);
    if (c->residual == RESIDUAL_IN_PLACE) { /* so that the slack is the same */
        memcpy(want, c->residual_values, (size_t)n * size);
    }
    expect(c, want);
    for (int i = 0; i < count; i++) {
        mf_error err = { 0 };
        char *out_block = conf_alloc((size_t)n * size + (size_t)c->shift);
        char *out = out_block + c->shift;
        mf_sum_reduce_args args = c->args;
        args.out = mf_tensor_2d(out, c->out_dtype, c->T, c->H);
        args.out.stride[0] = out_stride(c);
        if (c->residual == RESIDUAL_IN_PLACE) {
            memcpy(out, c->residual_values, (size_t)n * size);
            args.residual = args.out;
        }
        CHECK_OK(mf_moe_sum_reduce(devices[i].device, &args, &err), err);
        int64_t bad = conf_difference(want, out, c->out_dtype, n);
        if (bad >= 0) {
            fail_msg("%s: out[%lld, %lld] is %a, expected %a\n  %s", devices[i].label, (long long)(bad / out_stride(c)),
                     (long long)(bad % out_stride(c)), conf_get(out, c->out_dtype, bad), conf_get(want, c->out_dtype, bad),
                     case_text(c));
        }
        conf_free(out_block);
    }
    close_case(c);
    conf_free(want);
}

/* ---- the grid ---- */

static const mf_dtype dtypes[] = { MF_F64, MF_F32, MF_BF16, MF_F16 };

static sum_case draw_case(uint64_t *seed, int64_t max_work)
{
    static const int64_t ts[] = { 0, 1, 7, 33, 128, 222, 1024 };
    static const int64_t cs[] = { 0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 24 };
    static const int64_t hs[] = { 1, 8, 24, 31, 128, 511, 1000, 1024, 3073, 4096, 7168 };
    static const float factors[] = { 1.0f, 0.3f, 2.5f };
    sum_case c = { 0 };
    do {
        c.T = conf_pick(seed, ts, 7);
        c.C = conf_pick(seed, cs, 11);
        c.H = conf_pick(seed, hs, 11);
    } while (c.T * (c.C + 2) * c.H > max_work);
    c.dtype = dtypes[conf_below(seed, 4)];
    c.out_dtype = c.dtype == MF_F64 ? MF_F64 : dtypes[1 + conf_below(seed, 3)];
    c.S = (int32_t)conf_below(seed, c.C < 4 ? c.C + 1 : 5);
    c.A = (int32_t)conf_below(seed, MAX_ADDENDS + 1);
    c.factor = factors[conf_below(seed, 3)];
    c.ids = conf_below(seed, 2);
    c.weights = conf_below(seed, 3) != 0;
    c.identity = conf_below(seed, 3) == 0;
    c.addend_weights = conf_below(seed, 2);
    c.padded = c.T > 0 && conf_below(seed, 3) == 0;
    c.residual = (residual_kind)conf_below(seed, RESIDUAL_COUNT);
    c.values = (sum_values)CONF_PICK(seed, SUM_NORMAL, SUM_NORMAL, SUM_TINY, SUM_SPECIAL);
    c.slack = CONF_PICK(seed, 0, 0, 1, 7);
    c.shift = CONF_PICK(seed, 0, 0, 1);
    c.seed = mf_random_next(seed);
    return c;
}

TEST(combines_follow_the_definition_on_every_device)
{
    uint64_t seed = 4242;
    for (int i = 0; i < (conf_full() ? 8000 : 900); i++) {
        sum_case c = draw_case(&seed, conf_full() && i % 50 == 0 ? 30000000 : i % 20 == 0 ? 300000 : 20000);
        check(&c);
    }
}

TEST(every_hidden_size_with_every_dtype_and_no_unwritten_tail)
{
    uint64_t seed = 11;
    for (int64_t h = 1; h <= 70; h += conf_small() ? 23 : 1) {
        for (int d = 0; d < 4; d++) {
            sum_case c = draw_case(&seed, 1000);
            c.T = 2;
            c.C = 3;
            c.S = 1;
            c.H = h;
            c.dtype = dtypes[d];
            c.out_dtype = d == 0 ? MF_F64 : dtypes[1 + h % 3];
            check(&c);
        }
    }
}

/* Rows that end inside a block's piece; apart, and with columns that nobody may use, in some rows or in none; short
 * ones. */
TEST(many_tokens_of_long_rows_are_combined)
{
    static const int64_t columns[] = { 4, 6, 8, 9 };
    for (int i = 0; i < 9; i++) {
        const bool has_ids = i % 2 != 0 || i == 8;
        sum_case c = { .T = conf_whole() ? 700 : 30,
                       .C = columns[i / 2 % 4],
                       .H = i == 8 ? 520 : 4104,
                       .dtype = MF_BF16,
                       .out_dtype = MF_BF16,
                       .S = i % 3,
                       .factor = 2.5f,
                       .ids = has_ids,
                       .weights = true,
                       .slack = has_ids ? 8 : 0,
                       .seed = 30 + (uint64_t)i };
        check(&c);
    }
}

TEST(rows_past_524280_are_combined)
{
    sum_case c = { .T = 524281, .C = 2, .H = 8, .dtype = MF_BF16, .out_dtype = MF_BF16, .S = 1, .factor = 2.5f,
                   .weights = true, .seed = 12 };
    check(&c);
}

TEST(a_negative_zero_sum_becomes_plus_zero_without_shared_columns)
{
    static const float x = -0.0f, w = 1.0f;
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < count; i++) {
        float out = 1.0f;
        mf_error err;
        mf_sum_reduce_args a = { .x = mf_tensor_3d(&x, MF_F32, 1, 1, 1), .topk_weights = mf_tensor_2d(&w, MF_F32, 1, 1),
                                 .routed_scaling_factor = 2.5f, .out = mf_tensor_2d(&out, MF_F32, 1, 1) };
        CHECK_OK(mf_moe_sum_reduce(devices[i].device, &a, &err), err);
        CHECK_EQ(mf_f32_bits(out), 0);
        /* r = fma(1, -2^-149, 0) keeps its sign; times 2.5 it is exact: -2 * 2^-149 after rounding to even. */
        float tiny = -0x1p-149f;
        a.x.data = &tiny;
        CHECK_OK(mf_moe_sum_reduce(devices[i].device, &a, &err), err);
        CHECK_EQ(mf_f32_bits(out), 0x80000002);
        /* A product that underflows to -0 inside the last fma: fma(0.3, -2^-149, +0) rounds to -0. */
        a.routed_scaling_factor = 0.3f;
        CHECK_OK(mf_moe_sum_reduce(devices[i].device, &a, &err), err);
        CHECK_EQ(mf_f32_bits(out), 0x80000000);
    }
}

/* 2^-133 is the smallest bf16; half of it and a little rounds up to it, half exactly to even, which is 0. */
TEST(the_last_rounding_to_bf16_keeps_subnormals)
{
    static const float x[3] = { 0x1.8p-133f, 0x1p-134f, 0x1.000002p-127f };
    static const uint16_t want[3] = { 2, 0, 0x0040 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < count; i++) {
        uint16_t out[3];
        mf_error err;
        mf_sum_reduce_args a = { .x = mf_tensor_3d(x, MF_F32, 1, 1, 3), .routed_scaling_factor = 1.0f,
                                 .out = mf_tensor_2d(out, MF_BF16, 1, 3) };
        CHECK_OK(mf_moe_sum_reduce(devices[i].device, &a, &err), err);
        CHECK_MEM(out, want, sizeof want);
    }
}

/* w * x + r in two roundings gives 0 here, in one 2^-24 times what was lost: (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24. */
TEST(multiply_and_add_is_one_rounding)
{
    static const float x[2] = { -1.0f, 1.0f + 0x1p-12f };
    static const float w[2] = { 1.0f + 0x1p-11f, 1.0f + 0x1p-12f };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < count; i++) {
        float out = 0.0f;
        mf_error err;
        mf_sum_reduce_args a = { .x = mf_tensor_3d(x, MF_F32, 1, 2, 1), .topk_weights = mf_tensor_2d(w, MF_F32, 1, 2),
                                 .routed_scaling_factor = 1.0f, .out = mf_tensor_2d(&out, MF_F32, 1, 1) };
        CHECK_OK(mf_moe_sum_reduce(devices[i].device, &a, &err), err);
        CHECK_EQ(mf_f32_bits(out), mf_f32_bits(0x1p-24f));
    }
}

#if defined(__x86_64__)
TEST(the_callers_flush_to_zero_changes_nothing)
{
    uint64_t seed = 6;
    for (int i = 0; i < 60; i++) {
        sum_case c = draw_case(&seed, 3000);
        c.values = SUM_TINY;
        c.slack = 0;
        open_case(&c);
        int count;
        const conf_device *devices = conf_devices(&count);
        size_t bytes = (size_t)(c.T * c.H) * mf_dtype_size(c.out_dtype);
        void *want = conf_alloc(bytes);
        for (int d = 0; d < 2 * count; d++) {
            mf_error err = { 0 };
            void *out = d == 0 ? want : conf_alloc(bytes);
            mf_sum_reduce_args args = c.args;
            args.out = mf_tensor_2d(out, c.out_dtype, c.T, c.H);
            unsigned before = _mm_getcsr();
            _mm_setcsr(d < count ? before : 0xffc0u); /* FTZ, DAZ, round toward zero */
            mf_status status = mf_moe_sum_reduce(devices[d % count].device, &args, &err);
            unsigned after = _mm_getcsr();
            _mm_setcsr(before);
            CHECK_OK(status, err);
            CHECK(d < count || (after & ~0x3fu) == 0xffc0u);
            CHECK_EQ(conf_difference(want, out, c.out_dtype, c.T * c.H), -1);
            if (d > 0) {
                conf_free(out);
            }
        }
        conf_free(want);
        close_case(&c);
    }
}
#endif

/* ---- what is refused ---- */

typedef struct small {
    float x[12], out[4], weights[6], residual[4], identity[2], addend[4];
    int32_t ids[6];
    mf_tensor addends[1];
    mf_sum_reduce_args args;
} small;

static void refuses(const small *s, const char *text)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < count; i++) {
        mf_error err = { 0 };
        CHECK_EQ(mf_moe_sum_reduce(devices[i].device, &s->args, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, text);
    }
}

static void open_small(small *s)
{
    memset(s, 0, sizeof *s);
    s->addends[0] = mf_tensor_2d(s->addend, MF_F32, 2, 2);
    s->args = (mf_sum_reduce_args){ .x = mf_tensor_3d(s->x, MF_F32, 2, 3, 2), .topk_ids = mf_tensor_2d(s->ids, MF_I32, 2, 3),
                                    .topk_weights = mf_tensor_2d(s->weights, MF_F32, 2, 3), .routed_scaling_factor = 1.0f,
                                    .num_shared_columns = 1, .num_addends = 1, .addends = s->addends,
                                    .residual = mf_tensor_2d(s->residual, MF_F32, 2, 2),
                                    .out = mf_tensor_2d(s->out, MF_F32, 2, 2) };
}

#define REFUSES(text, ...)                   \
    do {                                     \
        small s;                             \
        open_small(&s);                      \
        mf_sum_reduce_args *a = &s.args;     \
        (void)a;                             \
        __VA_ARGS__;                         \
        refuses(&s, text);                   \
    } while (0)

TEST(combine_refuses_by_name)
{
    REFUSES("routed_scaling_factor is not set", a->routed_scaling_factor = 0.0f);
    REFUSES("routed_scaling_factor nan", a->routed_scaling_factor = NAN);
    REFUSES("routed_scaling_factor inf", a->routed_scaling_factor = INFINITY);
    REFUSES("num_shared_columns 4", a->num_shared_columns = 4);
    REFUSES("num_shared_columns -1", a->num_shared_columns = -1);
    REFUSES("x: dtype i32; expected f32, bf16, f16 or f64", a->x.dtype = MF_I32);
    REFUSES("x is missing", a->x = (mf_tensor){ 0 });
    REFUSES("out is missing", a->out = (mf_tensor){ 0 });
    REFUSES("out: dtype f64; expected f32, bf16 or f16", a->out.dtype = MF_F64);
    REFUSES("residual: dtype bf16; expected f32", a->residual.dtype = MF_BF16);
    REFUSES("out: shape [2, 1]; expected [2, 2]", a->out.shape[1] = 1);
    REFUSES("topk_ids: shape [2, 2]; expected [2, 3]", a->topk_ids.shape[1] = 2);
    REFUSES("topk_weights: dtype bf16; expected f32", a->topk_weights.dtype = MF_BF16);
    REFUSES("identity_weight needs hidden", a->identity_weight = mf_tensor_1d(s.identity, MF_F32, 2));
    REFUSES("hidden: dtype bf16; expected f32", a->identity_weight = mf_tensor_1d(s.identity, MF_F32, 2);
            a->hidden = mf_tensor_2d(s.addend, MF_BF16, 2, 2));
    REFUSES("num_addends -1", a->num_addends = -1);
    REFUSES("num_addends 2: addends is NULL", a->num_addends = 2; a->addends = NULL);
    REFUSES("addends[0]: tensor: shape [1, 2]; expected [2, 2]", s.addends[0].shape[0] = 1);
    REFUSES("addends[0]: tensor: dtype f16; expected f32", s.addends[0].dtype = MF_F16);
    REFUSES("addend_weights: shape [2, 2]; expected [2, 1]", a->addend_weights = mf_tensor_2d(s.addend, MF_F32, 2, 2));
    REFUSES("out overlaps x", a->out.data = s.x + 2);
    REFUSES("out overlaps residual", a->out.data = s.residual + 1);
    REFUSES("out overlaps addends", a->out.data = s.addend);
    REFUSES("x: stride [6, 1, 1]", a->x.stride[1] = 1);
    REFUSES("x: stride [5, 2, 1]", a->x.stride[0] = 5);
    REFUSES("row_valid: shape [3]; expected [2]", a->row_valid = mf_tensor_1d(s.ids, MF_U8, 3));
    mf_error err;
    small s;
    open_small(&s);
    CHECK_EQ(mf_moe_sum_reduce(NULL, &s.args, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_moe_sum_reduce(conf_ref(), NULL, &err), MF_ERR_INVALID);
    s.args.x.dtype = MF_F64; /* f64 all or none */
    s.args.topk_ids = s.args.topk_weights = (mf_tensor){ 0 };
    refuses(&s, "addends[0]: tensor: dtype f32; expected f64");
}
