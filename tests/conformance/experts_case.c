/* experts_case.c - random expert tables and their double-precision oracle: see experts_case.h. */
#include "experts_case.h"

#include <math.h>
#include <stdlib.h>

#include "base/number.h"

/* ---- formats, decoded from their definitions ---- */

static double e4m3(uint8_t b)
{
    int e = (b >> 3) & 15, m = b & 7;
    double v = e == 15 && m == 7 ? NAN : e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return b & 0x80 ? -v : v;
}

static double e2m1(int c)
{
    int e = (c >> 1) & 3, m = c & 1;
    double v = e ? ldexp(2 + m, e - 2) : 0.5 * m;
    return c & 8 ? -v : v;
}

static double scale_value(const case_matrix *m, int64_t i)
{
    if (m->m.scale_dtype == MF_F8_E8M0) {
        uint8_t b = ((const uint8_t *)m->scales)[i];
        return b == 255 ? NAN : ldexp(1.0, b - 127);
    }
    return conf_get(m->scales, m->m.scale_dtype, i);
}

static bool is_4bit(mf_format f)
{
    return f == MF_FORMAT_INT4_GROUP || f == MF_FORMAT_MXFP4;
}

void case_matrix_decode(case_matrix *c)
{
    const mf_matrix *m = &c->m;
    for (int64_t r = 0; r < m->n; r++) {
        for (int64_t k = 0; k < m->k; k++) {
            int64_t i = r * m->row_stride + k;
            const uint8_t *bytes = c->codes;
            double v = 0;
            int nibble = is_4bit(m->format) ? (bytes[i / 2] >> (k % 2 ? 4 : 0)) & 15 : 0;
            switch (m->format) {
            case MF_FORMAT_F32:
                v = conf_get(c->codes, MF_F32, i);
                break;
            case MF_FORMAT_BF16:
                v = conf_get(c->codes, MF_BF16, i);
                break;
            case MF_FORMAT_F16:
                v = conf_get(c->codes, MF_F16, i);
                break;
            case MF_FORMAT_FP8_BLOCK:
                v = e4m3(bytes[i]) * scale_value(c, r / 128 * m->scale_row_stride + k / 128);
                break;
            case MF_FORMAT_FP8_CHANNEL:
                v = e4m3(bytes[i]) * scale_value(c, r * m->scale_row_stride);
                break;
            case MF_FORMAT_INT8_CHANNEL:
                v = (int8_t)bytes[i] * scale_value(c, r * m->scale_row_stride);
                break;
            case MF_FORMAT_INT4_GROUP: {
                int64_t s = r * m->scale_row_stride + k / m->group_size;
                v = (nibble - (m->zero ? c->zeros[s] : 8)) * scale_value(c, s);
                break;
            }
            default:
                v = e2m1(nibble) * scale_value(c, r * m->scale_row_stride + k / 32);
            }
            c->value[r * m->k + k] = v;
        }
    }
}

static void *exactly(size_t bytes)
{
    void *p = malloc(bytes);
    if (!p) {
        fail_msg("out of memory: %zu bytes", bytes);
    }
    return p;
}

/* Scales near 1 / (rms of a code * sqrt(k)), so that products stay near 1. */
static void make_scales(case_matrix *c, uint64_t *seed, int variant)
{
    mf_matrix *m = &c->m;
    const double rms = m->format == MF_FORMAT_FP8_BLOCK || m->format == MF_FORMAT_FP8_CHANNEL ? 100
                       : m->format == MF_FORMAT_INT8_CHANNEL                                  ? 73
                       : m->format == MF_FORMAT_INT4_GROUP                                    ? 4.6
                                                                                              : 3;
    static const mf_dtype floats[] = { MF_F32, MF_BF16, MF_F16 };
    int64_t rows = m->n, columns = 1;
    m->scale_dtype = floats[variant % 3];
    if (m->format == MF_FORMAT_FP8_BLOCK) {
        rows = (m->n + 127) / 128;
        columns = (m->k + 127) / 128;
        m->scale_dtype = variant % 2 ? MF_F8_E8M0 : floats[variant / 2 % 3];
    } else if (m->format == MF_FORMAT_INT4_GROUP) {
        m->group_size = (const int64_t[]){ 32, 128, 64, 6, 16 }[variant % 5];
        columns = (m->k + m->group_size - 1) / m->group_size;
    } else if (m->format == MF_FORMAT_MXFP4) {
        columns = (m->k + 31) / 32;
        m->scale_dtype = MF_F8_E8M0;
    } else if (variant % 4 == 3) {
        rows = 1; /* per tensor */
    }
    m->scale_row_stride = m->format >= MF_FORMAT_FP8_CHANNEL && rows == 1 && m->n > 1 ? 0 : columns + variant % 2;
    size_t count = (size_t)((rows - 1) * m->scale_row_stride + columns);
    c->scales = exactly(count * mf_dtype_size(m->scale_dtype));
    for (size_t i = 0; i < count; i++) {
        double s = exp2(conf_normal(seed) * 0.5) / (rms * sqrt((double)m->k));
        if (m->scale_dtype == MF_F8_E8M0) {
            ((uint8_t *)c->scales)[i] = (uint8_t)(127 + (int)rint(log2(s)));
        } else {
            conf_put(c->scales, m->scale_dtype, (int64_t)i, s);
        }
    }
    m->scale = c->scales;
    if (m->format == MF_FORMAT_INT4_GROUP && variant % 2) {
        c->zeros = exactly(count);
        for (size_t i = 0; i < count; i++) {
            c->zeros[i] = (uint8_t)conf_below(seed, 16);
        }
        m->zero = c->zeros;
    }
}

void case_matrix_make(case_matrix *c, uint64_t *seed, mf_format format, int variant, int64_t n, int64_t k)
{
    *c = (case_matrix){ .m = { .n = n, .k = k, .format = format } };
    mf_matrix *m = &c->m;
    m->row_stride = k + (variant < CASE_WIDE_ROWS ? variant % 3 : variant % 2 * 32);
    if (is_4bit(format)) {
        m->row_stride += m->row_stride % 2;
    }
    int64_t count = (n - 1) * m->row_stride + k;
    size_t bytes = format == MF_FORMAT_F32                               ? (size_t)count * 4
                   : format == MF_FORMAT_BF16 || format == MF_FORMAT_F16 ? (size_t)count * 2
                   : is_4bit(format)                                     ? (size_t)(count + 1) / 2
                                                                         : (size_t)count;
    c->codes = exactly(bytes);
    m->data = c->codes;
    const double sigma = 1 / sqrt((double)k);
    if (format <= MF_FORMAT_F16) {
        const mf_dtype dtype = format == MF_FORMAT_F32 ? MF_F32 : format == MF_FORMAT_BF16 ? MF_BF16 : MF_F16;
        for (int64_t i = 0; i < count; i++) {
            conf_put(c->codes, dtype, i, conf_normal(seed) * sigma);
        }
    } else {
        for (size_t i = 0; i < bytes; i++) {
            uint8_t b = (uint8_t)mf_random_next(seed);
            if ((format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL) && (b & 0x7f) == 0x7f) {
                b ^= 1; /* the NaN codes have tests of their own */
            }
            ((uint8_t *)c->codes)[i] = b;
        }
        make_scales(c, seed, variant);
    }
    c->value = exactly((size_t)(n * k) * sizeof(double));
    case_matrix_decode(c);
}

void case_matrix_free(case_matrix *m)
{
    free(m->codes);
    free(m->scales);
    free(m->zeros);
    free(m->value);
    *m = (case_matrix){ 0 };
}

static float *make_bias(uint64_t *seed, int64_t n)
{
    float *b = exactly((size_t)n * sizeof *b);
    for (int64_t i = 0; i < n; i++) {
        b[i] = (float)(0.3 * conf_normal(seed));
    }
    return b;
}

void case_table_add(case_table *table, uint64_t *seed, const case_slot_spec *spec)
{
    case_slot *s = &table->slots[table->num_slots];
    const int64_t hidden = table->hidden_size;
    memset(s, 0, sizeof *s);
    if (spec->activation != MF_ACT_RELU2) {
        case_matrix_make(&s->gate, seed, spec->format, spec->variant, spec->width, hidden);
    }
    case_matrix_make(&s->up, seed, spec->format, spec->variant, spec->width, hidden);
    case_matrix_make(&s->down, seed, spec->format, spec->variant, hidden, spec->width);
    if (spec->has_bias) {
        s->gate_bias = make_bias(seed, spec->width);
        s->up_bias = make_bias(seed, spec->width);
        s->down_bias = make_bias(seed, hidden);
    }
    s->slot = (mf_slot){ .gate = s->gate.m,
                         .up = s->up.m,
                         .down = s->down.m,
                         .gate_bias = s->gate_bias,
                         .up_bias = s->up_bias,
                         .down_bias = s->down_bias,
                         .activation = spec->activation,
                         .limit = spec->limit,
                         .alpha = spec->alpha,
                         .beta = spec->beta,
                         .lbeta = spec->lbeta,
                         .input_scale13 = spec->input_scale13,
                         .input_scale2 = spec->input_scale2 };
    table->list[table->num_slots++] = s->slot;
}

void case_table_free(case_table *table)
{
    for (int64_t i = 0; i < table->num_slots; i++) {
        case_slot *s = &table->slots[i];
        case_matrix_free(&s->gate);
        case_matrix_free(&s->up);
        case_matrix_free(&s->down);
        free(s->gate_bias);
        free(s->up_bias);
        free(s->down_bias);
    }
    table->num_slots = 0;
}

mf_experts *case_experts(mf_device *device, const case_table *table, mf_dtype act_dtype, mf_act_quant act_quant)
{
    mf_error err = { 0 };
    mf_experts *experts = NULL;
    mf_experts_desc desc = { .num_slots = table->num_slots,
                             .hidden_size = table->hidden_size,
                             .slots = table->list,
                             .act_dtype = act_dtype,
                             .act_quant = act_quant };
    CHECK_OK(mf_experts_create(device, &desc, &experts, &err), err);
    return experts;
}

/* ---- the oracle ---- */

static double clip(double x, double low, double high)
{
    return isnan(x) ? x : x < low ? low : x > high ? high : x;
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double activation(const mf_slot *s, double g, double u)
{
    const double limit = s->limit;
    switch (s->activation) {
    case MF_ACT_SILU:
        return g * sigmoid(g) * u;
    case MF_ACT_SILU_CLAMP:
        g = clip(g, -INFINITY, limit);
        return g * sigmoid(g) * clip(u, -limit, limit);
    case MF_ACT_SILU_CLAMP_AFTER:
        return clip(g * sigmoid(g), -INFINITY, limit) * clip(u, -limit, limit);
    case MF_ACT_SWIGLU_OAI:
        g = clip(g, -INFINITY, limit);
        return g * sigmoid(s->alpha * g) * (clip(u, -limit, limit) + 1);
    case MF_ACT_GELU_TANH:
        return 0.5 * g * (1 + tanh(sqrt(2 / acos(-1.0)) * (g + 0.044715 * g * g * g))) * u;
    case MF_ACT_GELU_ERF:
        return 0.5 * g * (1 + erf(g / sqrt(2.0))) * u;
    case MF_ACT_SITU:
        return s->beta * tanh(g / s->beta) * sigmoid(g) * s->lbeta * tanh(u / s->lbeta);
    default:
        u = clip(u, 0, INFINITY);
        return u * u;
    }
}

/* The nearest e4m3 value by search; ties to the even code. */
static double nearest_e4m3(double x)
{
    if (isnan(x)) {
        return x;
    }
    int low = 0, high = 0x7e;
    double mag = clip(fabs(x), 0, 448);
    while (high - low > 1) {
        int middle = (low + high) / 2;
        *(e4m3((uint8_t)middle) <= mag ? &low : &high) = middle;
    }
    double below = mag - e4m3((uint8_t)low), above = e4m3((uint8_t)high) - mag;
    int code = below < above || (below == above && low % 2 == 0) ? low : high;
    return copysign(e4m3((uint8_t)code), x);
}

/* x in place of its quantised self: code * scale.  Scales are f32, as is the quotient that is rounded. */
static void quantise(double *x, int64_t n, mf_format format, mf_act_quant act_quant, float static_scale)
{
    bool fp8 = format == MF_FORMAT_FP8_BLOCK || format == MF_FORMAT_FP8_CHANNEL;
    bool int4 = format == MF_FORMAT_INT4_GROUP;
    if (act_quant == MF_ACT_QUANT_NONE || (!fp8 && !int4 && format != MF_FORMAT_INT8_CHANNEL) ||
        (act_quant == MF_ACT_QUANT_INT8 ? fp8 : int4)) {
        return;
    }
    int64_t group = format == MF_FORMAT_FP8_BLOCK ? 128 : n;
    for (int64_t first = 0; first < n; first += group) {
        int64_t end = first + group < n ? first + group : n;
        double amax = 1e-10;
        for (int64_t i = first; i < end; i++) {
            amax = isnan(x[i]) || isnan(amax) ? NAN : fabs(x[i]) > amax ? fabs(x[i]) : amax;
        }
        float scale = (float)amax / (fp8 ? 448.0f : 127.0f);
        if (format == MF_FORMAT_FP8_CHANNEL && static_scale > 0) {
            scale = static_scale;
        }
        if (format == MF_FORMAT_FP8_BLOCK && act_quant == MF_ACT_QUANT_W8A8_E8M0 && isfinite(scale)) {
            scale = (float)exp2(ceil(log2((double)scale)));
        }
        for (int64_t i = first; i < end; i++) {
            double q = (float)x[i] / scale;
            x[i] = (fp8 ? nearest_e4m3(q) : clip(rint(q), -127, 127)) * (double)scale;
        }
    }
}

void case_oracle(const case_slot *s, const double *x, int64_t hidden, mf_dtype act_dtype, mf_act_quant act_quant,
                 double *y)
{
    const int64_t width = s->up.m.n;
    double *in = exactly((size_t)hidden * sizeof *in);
    double *h = exactly((size_t)width * sizeof *h);
    memcpy(in, x, (size_t)hidden * sizeof *in);
    quantise(in, hidden, s->slot.up.format, act_quant, s->slot.input_scale13);
    for (int64_t i = 0; i < width; i++) {
        double g = s->gate_bias ? (double)s->gate_bias[i] : 0, u = s->up_bias ? (double)s->up_bias[i] : 0;
        for (int64_t k = 0; k < hidden; k++) {
            g += s->gate.value ? s->gate.value[i * hidden + k] * in[k] : 0;
            u += s->up.value[i * hidden + k] * in[k];
        }
        h[i] = activation(&s->slot, g, u);
        if (act_quant != MF_ACT_QUANT_NONE && act_dtype != MF_F32) {
            uint16_t rounded;
            conf_put(&rounded, act_dtype, 0, h[i]);
            h[i] = conf_get(&rounded, act_dtype, 0);
        }
    }
    quantise(h, width, s->slot.down.format, act_quant, s->slot.input_scale2);
    for (int64_t r = 0; r < hidden; r++) {
        y[r] = s->down_bias ? (double)s->down_bias[r] : 0;
        for (int64_t k = 0; k < width; k++) {
            y[r] += s->down.value[r * width + k] * h[k];
        }
    }
    free(in);
    free(h);
}

void case_run(mf_device *device, const mf_experts *experts, const void *x, mf_dtype act_dtype, const int32_t *ids,
              const float *input_scale, int64_t num_tokens, int64_t num_columns, int64_t hidden, mf_dtype y_dtype,
              void *y)
{
    mf_error err = { 0 };
    size_t bytes = mf_fused_experts_workspace_bytes(experts, num_tokens, num_columns);
    void *workspace = conf_alloc(bytes);
    mf_experts_args args = { .experts = experts,
                             .x = mf_tensor_2d(x, act_dtype, num_tokens, hidden),
                             .topk_ids = mf_tensor_2d(ids, MF_I32, num_tokens, num_columns),
                             .y = mf_tensor_3d(y, y_dtype, num_tokens, num_columns, hidden) };
    if (input_scale) {
        args.input_scale = mf_tensor_2d(input_scale, MF_F32, num_tokens, num_columns);
    }
    memset(y, CONF_POISON, (size_t)(num_tokens * num_columns * hidden) * mf_dtype_size(y_dtype));
    CHECK_OK(mf_fused_experts(device, &args, workspace, bytes, &err), err);
    conf_check_guards(y);
    conf_free(workspace);
}

void case_error_add(case_error *e, double found, double expected)
{
    e->square += (found - expected) * (found - expected);
    e->norm += expected * expected;
}

double case_nmse(const case_error *e)
{
    return e->norm > 0 ? e->square / e->norm : e->square > 0 ? INFINITY : 0;
}

double case_bound(mf_dtype act_dtype, mf_dtype y_dtype)
{
    return act_dtype == MF_BF16 || y_dtype == MF_BF16 ? 1e-5 : act_dtype == MF_F16 || y_dtype == MF_F16 ? 1e-7 : 1e-11;
}
