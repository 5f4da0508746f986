/* amx_products.c - AMX's products against the order of sums that amx_product.h promises, bit for bit, written here from
 * that promise; and against double.  Runs with the emulated instructions, and with the real ones where this process may
 * use them.  Matrices and panels end where readable memory ends. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cpu_features.h"
#include "conf.h"
#include "kernels/cpu/cpu_kernels.h"

/* ---- memory whose last byte is the last readable one ---- */

typedef struct edge {
    uint8_t *map, *data;
    size_t map_bytes;
} edge;

static edge edge_alloc(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t body = (bytes + page - 1) / page * page;
    edge e = { .map_bytes = body + page };
    e.map = mmap(NULL, e.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (e.map == MAP_FAILED || mprotect(e.map + body, page, PROT_NONE) != 0) {
        fail_msg("no memory");
    }
    e.data = e.map + body - bytes;
    return e;
}

static void edge_free(edge *e)
{
    munmap(e->map, e->map_bytes);
}

/* ---- a product to compute ---- */

typedef struct shape {
    mf_format format;
    bool int8;
    int64_t rows, k, gap; /* gap: unused elements behind each row */
    int64_t group;        /* INT4 */
    bool zeros;
    mf_dtype scale_dtype;
    int64_t first_row, num_rows, tokens;
    bool wild;   /* inputs and scales of any size */
    bool normal; /* fp8 codes whose exponent is not zero, as most blocks of models have */
} shape;

typedef struct problem {
    shape s;
    mf_matrix w;
    edge codes, scales, zeros;
    float *x, *x_scale; /* [tokens][k] as the product sees them */
    edge panels[8];
    float *out; /* [tokens][stride] */
    int64_t stride;
} problem;

static int64_t bits_of(mf_format f)
{
    static const int64_t bits[MF_FORMAT_COUNT] = { 32, 16, 16, 8, 8, 8, 4, 4 };
    return bits[f];
}

static void fill_codes(problem *p, uint64_t *seed)
{
    const shape *s = &p->s;
    const int64_t bits = bits_of(s->format);
    const int64_t stride = s->format == MF_FORMAT_INT4_GROUP || s->format == MF_FORMAT_MXFP4
                               ? (s->k + s->gap + 1) / 2 * 2
                               : s->k + s->gap;
    const size_t bytes = (size_t)(((s->rows - 1) * stride + s->k) * bits + 7) / 8;
    p->codes = edge_alloc(bytes);
    for (size_t i = 0; i < bytes; i++) {
        p->codes.data[i] = (uint8_t)mf_random_next(seed);
    }
    const bool fp8 = s->format == MF_FORMAT_FP8_BLOCK || s->format == MF_FORMAT_FP8_CHANNEL;
    for (int64_t r = 0; r < s->rows; r++) {
        for (int64_t c = 0; c < stride && (r + 1 < s->rows || c < s->k); c++) {
            uint8_t *e = p->codes.data + (r * stride + c) * bits / 8;
            if (s->format == MF_FORMAT_BF16) {
                const uint16_t h = c < s->k ? mf_f32_to_bf16((float)conf_normal(seed)) : 0x7fc0;
                memcpy(e, &h, 2);
            } else if (fp8 && s->normal && c < s->k) {
                const bool is_rare = mf_random_below(seed, 1500) == 0; /* one without a leading one */
                *e = (uint8_t)((*e & 0x80) | (is_rare ? *e & 7 : 8 + (*e & 0x7f) % 119));
            } else if (fp8 && (*e & 0x7f) == 0x7f && c < s->k) {
                *e = 0x81; /* a subnormal instead of a NaN */
            } else if (fp8 && c >= s->k) {
                *e = 0x7f;
            }
        }
    }
    p->w = (mf_matrix){ .data = p->codes.data, .n = s->rows, .k = s->k, .row_stride = stride, .format = s->format };
}

static void fill_scales(problem *p, uint64_t *seed)
{
    const shape *s = &p->s;
    mf_matrix *w = &p->w;
    if (s->format < MF_FORMAT_FP8_BLOCK) {
        return;
    }
    w->group_size = s->group;
    const int64_t group = mf_matrix_group(w);
    const int64_t columns = group ? (s->k + group - 1) / group : 1;
    const int64_t rows = s->format == MF_FORMAT_FP8_BLOCK ? (s->rows + 127) / 128 : s->rows;
    w->scale_dtype = s->format == MF_FORMAT_MXFP4 ? MF_F8_E8M0 : s->scale_dtype;
    w->scale_row_stride = columns + (group ? 3 : 0);
    const size_t size = mf_dtype_size(w->scale_dtype);
    const int64_t count = (rows - 1) * w->scale_row_stride + columns;
    p->scales = edge_alloc((size_t)count * size);
    p->zeros = edge_alloc((size_t)count);
    for (int64_t i = 0; i < count; i++) {
        if (w->scale_dtype == MF_F8_E8M0) {
            p->scales.data[i] = (uint8_t)(s->wild && mf_random_below(seed, 64) == 0 ? mf_random_below(seed, 256)
                                                                                      : 115 + mf_random_below(seed, 20));
        } else {
            conf_put(p->scales.data, w->scale_dtype, i, 0.01 + mf_random_unit(seed));
        }
        p->zeros.data[i] = (uint8_t)(mf_random_below(seed, 4) ? mf_random_below(seed, 16) : mf_random_below(seed, 256));
    }
    w->scale = p->scales.data;
    w->zero = s->zeros ? p->zeros.data : NULL;
}

static void fill_inputs(problem *p, uint64_t *seed)
{
    const shape *s = &p->s;
    const mf_cpu_form form = s->int8 ? MF_CPU_FORM_I8_PANEL : MF_CPU_FORM_BF16_PANEL;
    p->x = conf_alloc((size_t)(s->tokens * s->k) * 4);
    p->x_scale = conf_alloc((size_t)s->tokens * 4);
    for (int64_t t = 0; t < s->tokens; t++) {
        p->x_scale[t] = (float)(0.01 + mf_random_unit(seed));
        for (int64_t k = 0; k < s->k; k++) {
            p->x[t * s->k + k] = s->int8 ? (float)((int64_t)mf_random_below(seed, 255) - 127)
                                         : mf_bf16_to_f32(mf_f32_to_bf16((float)conf_normal(seed)));
            if (s->wild && t % 3 != 2) { /* tokens of ordinary sizes between others */
                static const int least[3] = { -140, -118, -70 }, count[3] = { 260, 3, 190 };
                const int64_t range = s->first_row % 3;
                const float any =
                    ldexpf(p->x[t * s->k + k], least[range] + (int)mf_random_below(seed, (uint64_t)count[range]));
                p->x[t * s->k + k] = mf_random_below(seed, 5) == 0 ? 0.0f : mf_bf16_to_f32(mf_f32_to_bf16(any));
            }
        }
        const int64_t first = t / 16 * 16, n = s->tokens - first < 16 ? s->tokens - first : 16;
        if (t == first) {
            p->panels[t / 16] = edge_alloc((size_t)(n * mf_cpu_form_bytes(form, s->k)));
        }
        mf_cpu_pack pack = { .form = form, .k = s->k, .token = t - first, .num_tokens = n, .row = p->panels[t / 16].data };
        mf_cpu_pack_c(&pack, 32, p->x + t * s->k, 0, s->k);
    }
}

static problem make(const shape *s, uint64_t seed)
{
    problem p = { .s = *s };
    fill_codes(&p, &seed);
    fill_scales(&p, &seed);
    fill_inputs(&p, &seed);
    p.stride = s->num_rows + 5;
    p.out = conf_alloc((size_t)(s->tokens * p.stride) * 4);
    return p;
}

static void drop(problem *p)
{
    edge_free(&p->codes);
    if (p->scales.map) {
        edge_free(&p->scales);
        edge_free(&p->zeros);
    }
    for (int64_t i = 0; i < (p->s.tokens + 15) / 16; i++) {
        edge_free(&p->panels[i]);
    }
    conf_free(p->x);
    conf_free(p->x_scale);
    conf_free(p->out);
}

static void run(const mf_cpu_kernels *kernels, problem *p)
{
    const mf_cpu_product *product =
        &kernels->product[p->s.format][p->s.int8 ? MF_CPU_INPUT_I8 : MF_CPU_INPUT_BF16];
    CHECK_EQ(product->form, p->s.int8 ? MF_CPU_FORM_I8_PANEL : MF_CPU_FORM_BF16_PANEL);
    const void *x[8];
    for (int i = 0; i < 8; i++) {
        x[i] = p->panels[i].data;
    }
    const mf_cpu_tile tile = { .w = &p->w,
                               .first_row = p->s.first_row,
                               .num_rows = p->s.num_rows,
                               .num_tokens = p->s.tokens,
                               .x = x,
                               .x_scale = p->x_scale,
                               .out = p->out,
                               .out_stride = p->stride };
    memset(p->out, CONF_POISON, (size_t)(p->s.tokens * p->stride) * 4);
    product->fn(&tile);
}

/* ---- what the product promises ---- */

static float flushed(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

/* c += of 32 columns, as TDPBF16PS sums; n of them are there. */
static float step_of_32(float c, const float *w, const float *x, int64_t n)
{
    float chain[2] = { 0.0f, 0.0f };
    for (int64_t i = 0; i < 32; i++) {
        const float a = i < n ? flushed(w[i]) : 0.0f, b = i < n ? flushed(x[i]) : 0.0f;
        chain[i % 2] = flushed(fmaf(a, b, chain[i % 2]));
    }
    return flushed(flushed(c) + flushed(chain[0] + chain[1]));
}

/* Where the segment that starts at k ends. */
static int64_t segment_end(const shape *s, int64_t k)
{
    const int64_t group = s->format == MF_FORMAT_FP8_BLOCK ? 128 : s->group;
    int64_t most = 256;
    if (s->int8 && (group % 64 == 0 || group >= s->k)) {
        most = 512;
    }
    int64_t end = (k / group + 1) * group;
    end = end - k > most ? k + most : end;
    return end < s->k ? end : s->k;
}

static float promised(const problem *p, int64_t row, int64_t t, const float *codes, const float *values)
{
    const shape *s = &p->s;
    const mf_matrix *w = &p->w;
    const float *x = p->x + t * s->k;
    const int64_t scale_row = mf_matrix_scale_row(w, row);
    const bool scaled = s->format == MF_FORMAT_FP8_BLOCK || s->format == MF_FORMAT_INT4_GROUP;
    const bool plain_c = s->format == MF_FORMAT_INT4_GROUP && s->group % 32 != 0 && s->group < s->k;
    float total = 0.0f;
    if (!scaled) {
        const float *from = s->format == MF_FORMAT_MXFP4 || s->format == MF_FORMAT_BF16 ? values : codes;
        int64_t dot = 0;
        for (int64_t k = 0; k < s->k; k += 32) {
            total = step_of_32(total, from + k, x + k, s->k - k);
            for (int64_t i = k; s->int8 && i < k + 32 && i < s->k; i++) {
                dot += (int64_t)codes[i] * (int64_t)x[i];
            }
        }
        const float scale = s->format == MF_FORMAT_FP8_CHANNEL || s->format == MF_FORMAT_INT8_CHANNEL
                                ? mf_matrix_scale_at(w, scale_row)
                                : 1.0f;
        return s->int8 ? (float)dot * p->x_scale[t] * scale : total * scale;
    }
    const int64_t group = s->format == MF_FORMAT_FP8_BLOCK ? 128 : s->group;
    for (int64_t k = 0, end; k < s->k; k = end) {
        end = plain_c ? k + group : segment_end(s, k);
        end = end < s->k ? end : s->k;
        float sum = 0.0f;
        int64_t dot = 0;
        for (int64_t i = k; i < end; i++) {
            dot += s->int8 ? (int64_t)codes[i] * (int64_t)x[i] : 0;
            sum += plain_c ? codes[i] * x[i] : 0.0f;
        }
        for (int64_t i = k; !plain_c && i < end; i += 32) {
            sum = step_of_32(sum, codes + i, x + i, end - i);
        }
        total = fmaf(mf_matrix_scale_at(w, scale_row + k / group), s->int8 ? (float)dot : sum, total);
    }
    return s->int8 ? total * p->x_scale[t] : total;
}

static void check(problem *p, const char *isa)
{
    const shape *s = &p->s;
    float *codes = conf_alloc((size_t)s->k * 4), *values = conf_alloc((size_t)s->k * 4);
    for (int64_t r = 0; r < p->stride; r++) {
        if (r < s->num_rows) {
            mf_matrix_decode_codes(&p->w, s->first_row + r, 0, s->k, codes);
            mf_matrix_decode_row(&p->w, s->first_row + r, 0, s->k, values);
        }
        for (int64_t t = 0; t < s->tokens; t++) {
            const float got = p->out[t * p->stride + r];
            if (r >= s->num_rows) {
                CHECK_EQ(mf_f32_bits(got), 0xa5a5a5a5u);
                continue;
            }
            const float want = promised(p, s->first_row + r, t, codes, values);
            double exact = 0, size = 0;
            for (int64_t k = 0; k < s->k; k++) {
                const double term = (double)values[k] * (double)p->x[t * s->k + k] * (s->int8 ? (double)p->x_scale[t] : 1);
                exact += term;
                size += fabs(term);
            }
            /* Chains of at most k additions, in practice far fewer: a fault is larger by orders of magnitude. */
            const bool close = s->wild || fabs((double)got - exact) <= 0x1p-20 * size + 1e-30;
            if ((mf_f32_bits(got) != mf_f32_bits(want) && !(isnan(got) && isnan(want))) || !close) {
                fail_msg("%s %s%s rows %lld k %lld group %lld zeros %d tokens %lld: row %lld token %lld is %a, promised %a, exactly %a",
                         isa, mf_format_name(s->format), s->int8 ? "+int8" : "", (long long)s->num_rows, (long long)s->k,
                         (long long)s->group, s->zeros, (long long)s->tokens, (long long)r, (long long)t, (double)got,
                         (double)want, exact);
            }
        }
    }
    conf_free(codes);
    conf_free(values);
}

/* ---- the rungs ---- */

typedef struct rungs {
    mf_cpu_kernels table[2];
    int count;
} rungs;

static rungs all_rungs(void)
{
    rungs r = { .count = 0 };
    const mf_cpu_features *f = mf_cpu_features_get();
    if (!f->avx512_core || !f->avx512_vbmi) {
        print_message("the decoders need AVX-512 VBMI, which this machine lacks\n");
        skip();
    }
    mf_cpu_kernels_fill_c(&r.table[r.count]);
    mf_cpu_kernels_fill_amx_emulated(&r.table[r.count++]);
    if (!mf_cpu_amx_refusal()) {
        mf_cpu_kernels_fill_c(&r.table[r.count]);
        mf_cpu_kernels_fill_amx(&r.table[r.count++]);
    }
    return r;
}

static void check_shape(const rungs *r, const shape *s, uint64_t seed)
{
    for (int i = 0; i < r->count; i++) {
        problem p = make(s, seed);
        run(&r->table[i], &p);
        check(&p, r->table[i].isa);
        drop(&p);
    }
}

static const int64_t all_tokens[] = { 1, 2, 3, 15, 16, 17, 31, 32, 33, 48, 95, 128 };

TEST(amx_bf16_products_have_the_promised_bits)
{
    const rungs r = all_rungs();
    static const mf_format formats[] = { MF_FORMAT_BF16, MF_FORMAT_FP8_BLOCK, MF_FORMAT_FP8_CHANNEL,
                                         MF_FORMAT_INT8_CHANNEL, MF_FORMAT_MXFP4 };
    static const int64_t widths[] = { 1, 2, 31, 32, 33, 64, 97, 128, 130, 255, 256, 300, 704 };
    uint64_t seed = 21;
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
            const int64_t rows = 1 + conf_below(&seed, 150);
            shape s = { .format = formats[f],
                        .rows = rows,
                        .k = widths[i],
                        .gap = conf_below(&seed, 3) * 7,
                        .scale_dtype = (mf_dtype)CONF_PICK(&seed, MF_F32, MF_BF16, MF_F16),
                        .first_row = conf_below(&seed, rows),
                        .tokens = all_tokens[(i + f) % 12] };
            s.num_rows = 1 + conf_below(&seed, rows - s.first_row);
            check_shape(&r, &s, 100 * f + i);
        }
    }
}

TEST(amx_int4_products_have_the_promised_bits)
{
    const rungs r = all_rungs();
    static const int64_t groups[] = { 32, 64, 96, 128, 160, 256, 320, 512, 1024, 6, 48, 100 };
    static const int64_t widths[] = { 32, 64, 65, 130, 256, 391, 704 };
    uint64_t seed = 22;
    for (size_t g = 0; g < sizeof groups / sizeof groups[0]; g++) {
        for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
            for (int kind = 0; kind < 4; kind++) {
                const int64_t rows = 1 + conf_below(&seed, 70);
                shape s = { .format = MF_FORMAT_INT4_GROUP,
                            .int8 = kind & 1,
                            .zeros = kind & 2,
                            .rows = rows,
                            .k = widths[i],
                            .gap = conf_below(&seed, 3) * 8,
                            .group = groups[g],
                            .scale_dtype = (mf_dtype)CONF_PICK(&seed, MF_F32, MF_BF16, MF_F16),
                            .first_row = conf_below(&seed, rows),
                            .tokens = all_tokens[conf_below(&seed, 12)] };
                s.num_rows = 1 + conf_below(&seed, rows - s.first_row);
                check_shape(&r, &s, 10 * g + i);
            }
        }
    }
}

/* Up to two panels have loops of their own, and one token of int4 goes through vectors, as far as widths, groups, scales
 * and the sizes of values allow. */
TEST(amx_products_of_few_tokens_have_the_promised_bits)
{
    const rungs r = all_rungs();
    static const int64_t tokens[8] = { 1, 5, 17, 32, 1, 3, 16, 23 };
    static const mf_format formats[] = { MF_FORMAT_FP8_BLOCK, MF_FORMAT_FP8_CHANNEL, MF_FORMAT_INT8_CHANNEL,
                                         MF_FORMAT_INT4_GROUP, MF_FORMAT_MXFP4 };
    static const int64_t widths[] = { 32, 64, 96, 128, 160, 416, 704, 1408, 2336 };
    uint64_t seed = 24;
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        for (int i = 0; i < 72; i++) {
            const int64_t rows = 1 + conf_below(&seed, 150);
            shape s = { .format = formats[f],
                        .rows = rows,
                        .k = widths[i % 9],
                        .gap = conf_below(&seed, 3) * 8,
                        .group = CONF_PICK(&seed, 32, 128, 64),
                        .scale_dtype = (mf_dtype)CONF_PICK(&seed, MF_F32, MF_BF16, MF_F16),
                        .first_row = conf_below(&seed, rows),
                        .tokens = tokens[i / 9],
                        .wild = i >= 36,
                        .normal = i & 1 };
            s.num_rows = 1 + conf_below(&seed, rows - s.first_row);
            check_shape(&r, &s, 200 * f + (size_t)i);
        }
    }
}

/* More panels, and full second ones, go through loops of their own in blocks of 32 rows; widths end inside a chunk of four
 * tiles of columns, and beyond 2,048 a row's scales come in two spans. */
TEST(amx_products_of_many_tokens_have_the_promised_bits)
{
    const rungs r = all_rungs();
    static const int64_t tokens[10] = { 33, 17, 48, 27, 49, 31, 63, 80, 97, 128 };
    static const mf_format formats[] = { MF_FORMAT_FP8_BLOCK, MF_FORMAT_FP8_CHANNEL, MF_FORMAT_INT8_CHANNEL,
                                         MF_FORMAT_INT4_GROUP, MF_FORMAT_MXFP4,
                                         MF_FORMAT_INT8_CHANNEL, MF_FORMAT_INT4_GROUP }; /* the last two: int8 inputs */
    static const int64_t widths[] = { 32, 64, 96, 128, 160, 256, 416, 2336 };
    uint64_t seed = 27;
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        for (int i = 0; i < 40; i++) {
            const int64_t rows = 64 + conf_below(&seed, 60);
            const bool int8 = f >= 5;
            const shape s = { .format = formats[f],
                              .int8 = int8,
                              .rows = rows,
                              .k = widths[i % 8] + (int8 && i & 8 ? 32 : 0),
                              .gap = conf_below(&seed, 3) * 8,
                              .group = CONF_PICK(&seed, 32, 128, 64),
                              .scale_dtype = (mf_dtype)CONF_PICK(&seed, MF_F32, MF_BF16, MF_F16),
                              .num_rows = rows - 31 * (i % 2),
                              .first_row = i % 2 * CONF_PICK(&seed, 5, 16, 31),
                              .tokens = tokens[(i + i / 8 + (int)f) % 10],
                              .wild = !int8 && i % 3 == 0,
                              .normal = !int8 && i % 3 == 1 };
            check_shape(&r, &s, 600 + 100 * f + (size_t)i);
        }
    }
}

TEST(amx_int8_products_have_the_promised_bits)
{
    const rungs r = all_rungs();
    static const int64_t widths[] = { 1, 3, 32, 63, 64, 65, 100, 128, 511, 512, 520, 1100 };
    uint64_t seed = 23;
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        const int64_t rows = 1 + conf_below(&seed, 150);
        shape s = { .format = MF_FORMAT_INT8_CHANNEL,
                    .int8 = true,
                    .rows = rows,
                    .k = widths[i],
                    .gap = conf_below(&seed, 3) * 7,
                    .scale_dtype = MF_F32,
                    .first_row = conf_below(&seed, rows),
                    .tokens = all_tokens[i] };
        s.num_rows = 1 + conf_below(&seed, rows - s.first_row);
        check_shape(&r, &s, i);
    }
}

/* Vectors take these too, up to a panel of tokens or half of it. */
TEST(amx_products_of_few_int8_tokens_have_the_promised_bits)
{
    const rungs r = all_rungs();
    static const mf_format formats[] = { MF_FORMAT_INT8_CHANNEL, MF_FORMAT_INT4_GROUP };
    static const int64_t widths[] = { 32, 96, 130, 256, 416, 1408, 2336, 2880 };
    uint64_t seed = 25;
    for (size_t f = 0; f < 2; f++) {
        for (int i = 0; i < 17 * 8; i++) {
            const int64_t rows = CONF_PICK(&seed, 16, 65, 129, 150);
            shape s = { .format = formats[f],
                        .int8 = true,
                        .zeros = i / 17 % 2,
                        .rows = rows,
                        .k = widths[i % 8],
                        .gap = conf_below(&seed, 3) * 8,
                        .group = CONF_PICK(&seed, 32, 64, 128),
                        .scale_dtype = (mf_dtype)CONF_PICK(&seed, MF_F32, MF_BF16, MF_F16),
                        .first_row = conf_below(&seed, rows),
                        .tokens = 1 + i % 17 };
            s.num_rows = 1 + conf_below(&seed, rows - s.first_row);
            check_shape(&r, &s, 300 * f + (size_t)i);
        }
    }
}

/* A token's row of results does not depend on who shares the call with it, nor a row's on the rows around it. */
TEST(amx_bits_do_not_depend_on_company)
{
    const rungs r = all_rungs();
    for (int i = 0; i < r.count; i++) {
        for (int f = 0; f < MF_FORMAT_COUNT; f++) {
            if (f == MF_FORMAT_F32 || f == MF_FORMAT_F16) {
                continue;
            }
            const shape many = { .format = (mf_format)f, .rows = 200, .k = 416, .group = 32, .num_rows = 200, .tokens = 53 };
            problem p = make(&many, 5);
            run(&r.table[i], &p);
            for (int64_t t = 0; t < 53; t += 13) {
                for (int64_t row = 0; row < 200; row += 37) {
                    problem one = p;
                    edge panel = edge_alloc((size_t)mf_cpu_form_bytes(MF_CPU_FORM_BF16_PANEL, 416));
                    mf_cpu_pack pack = { .form = MF_CPU_FORM_BF16_PANEL, .k = 416, .num_tokens = 1, .row = panel.data };
                    mf_cpu_pack_c(&pack, 32, p.x + t * 416, 0, 416);
                    float out[3];
                    one.s.first_row = row;
                    one.s.num_rows = 3;
                    one.s.tokens = 1;
                    one.panels[0] = panel;
                    one.out = out;
                    one.stride = 3;
                    run(&r.table[i], &one);
                    CHECK_MEM(out, p.out + t * p.stride + row, sizeof out);
                    edge_free(&panel);
                }
            }
            drop(&p);
        }
    }
}

/* NaN and inf among a row's codes, a token's values or the scales reach those sums and no others. */
TEST(amx_products_keep_nan_and_inf_where_they_are)
{
    const rungs r = all_rungs();
    for (int i = 0; i < r.count; i++) {
        const shape s = { .format = MF_FORMAT_FP8_BLOCK, .rows = 130, .k = 260, .num_rows = 130, .tokens = 19 };
        problem p = make(&s, 6);
        p.codes.data[7 * 260 + 259] = 0xff;
        conf_put(p.scales.data, MF_F32, p.w.scale_row_stride + 1, NAN); /* rows 128 and 129 */
        mf_cpu_pack pack = { .form = MF_CPU_FORM_BF16_PANEL, .k = 260, .token = 2, .num_tokens = 3, .row = p.panels[1].data };
        p.x[18 * 260 + 5] = INFINITY;
        for (int64_t row = 0; row < 130; row++) { /* inf times zero would be a NaN */
            p.codes.data[row * 260 + 5] = 0x38;
        }
        mf_cpu_pack_c(&pack, 32, p.x + 18 * 260, 0, 260);
        run(&r.table[i], &p);
        for (int64_t t = 0; t < 19; t++) {
            for (int64_t row = 0; row < 130; row++) {
                const float v = p.out[t * p.stride + row];
                CHECK_EQ(isnan(v), row == 7 || row >= 128);
                CHECK_EQ(isinf(v) != 0, t == 18 && row != 7 && row < 128);
            }
        }
        drop(&p);
    }
}

/* Every e4m3 code, every int8 code: the decoders' tables have no hole.  One token that is 1 in one column and 0 elsewhere
 * reads the matrix out. */
TEST(amx_decoders_know_every_code)
{
    const rungs r = all_rungs();
    static const mf_format formats[] = { MF_FORMAT_FP8_CHANNEL, MF_FORMAT_INT8_CHANNEL, MF_FORMAT_INT4_GROUP,
                                         MF_FORMAT_MXFP4 };
    for (size_t f = 0; f < 4 * (size_t)r.count; f++) {
        const shape s = { .format = formats[f % 4], .rows = 256, .k = 64, .group = 64, .num_rows = 256, .tokens = 2 };
        problem p = make(&s, 7);
        for (int64_t c = 0; c < 256; c++) {
            memset(p.codes.data + c * 64 * bits_of(s.format) / 8, (int)c, (size_t)(64 * bits_of(s.format) / 8));
        }
        for (int64_t t = 0; t < 2; t++) {
            for (int64_t k = 0; k < 64; k++) {
                p.x[t * 64 + k] = k == (t ? 32 : 31) ? 1.0f : 0.0f;
            }
            mf_cpu_pack pack = { .form = MF_CPU_FORM_BF16_PANEL, .k = 64, .token = t, .num_tokens = 2, .row = p.panels[0].data };
            mf_cpu_pack_c(&pack, 32, p.x + t * 64, 0, 64);
        }
        run(&r.table[f / 4], &p);
        for (int64_t row = 0; row < 256; row++) {
            float values[64];
            mf_matrix_decode_row(&p.w, row, 0, 64, values);
            for (int64_t t = 0; t < 2; t++) {
                const float got = p.out[t * p.stride + row], want = values[t ? 32 : 31];
                CHECK(got == want || (isnan(got) && isnan(want)));
            }
        }
        drop(&p);
    }
}

TEST(amx_int8_channel_has_the_bits_of_plain_c)
{
    const rungs r = all_rungs();
    mf_cpu_kernels c;
    mf_cpu_kernels_fill_c(&c);
    for (int i = 0; i < r.count; i++) {
        const shape s = { .format = MF_FORMAT_INT8_CHANNEL, .int8 = true, .rows = 100, .k = 777, .num_rows = 100, .tokens = 5 };
        problem p = make(&s, 8);
        run(&r.table[i], &p);
        const mf_cpu_product *product = &c.product[MF_FORMAT_INT8_CHANNEL][MF_CPU_INPUT_I8];
        CHECK_EQ(product->form, MF_CPU_FORM_I8);
        for (int64_t t = 0; t < 5; t++) {
            _Alignas(64) uint8_t row[2048];
            float out[100];
            const void *x[1] = { row };
            mf_cpu_pack pack = { .form = MF_CPU_FORM_I8, .k = 777, .num_tokens = 1, .row = row };
            mf_cpu_pack_c(&pack, 32, p.x + t * 777, 0, 777);
            const mf_cpu_tile tile = { .w = &p.w, .num_rows = 100, .num_tokens = 1, .x = x, .x_scale = p.x_scale + t,
                                       .out = out, .out_stride = 100 };
            product->fn(&tile);
            CHECK_MEM(out, p.out + t * p.stride, sizeof out);
        }
        drop(&p);
    }
}
