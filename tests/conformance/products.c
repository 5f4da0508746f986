/* products.c - weights times inputs, called directly: every rung, format and input, against double on dequantised
 * weights; bits do not depend on the other rows and tokens of a call; nothing is read outside the rows.
 *
 * Weights, scales, zero points and inputs each end where an inaccessible page begins, and start anywhere. */
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/number.h"
#include "experts_case.h"
#include "kernels/cpu/inputs.h"

enum { MAX_TOKENS = MF_CPU_MOST_TILE_TOKENS, MAX_BLOCKS = MAX_TOKENS + 8 };

/* ---- memory that ends at a page nobody may touch ---- */

typedef struct guarded {
    void *base;
    size_t mapped;
} guarded;

static guarded blocks[MAX_BLOCKS];
static int num_blocks;

static void *guarded_alloc(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inside = (bytes + page - 1) / page * page;
    char *base = mmap(NULL, inside + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + inside, page, PROT_NONE) != 0 || num_blocks == MAX_BLOCKS) {
        fail_msg("no guarded memory of %zu bytes", bytes);
    }
    memset(base, CONF_POISON, inside);
    blocks[num_blocks++] = (guarded){ base, inside + page };
    return base + inside - bytes;
}

static void *guarded_copy(const void *data, size_t bytes)
{
    return memcpy(guarded_alloc(bytes), data, bytes);
}

static void guarded_free_all(void)
{
    while (num_blocks > 0) {
        num_blocks--;
        munmap(blocks[num_blocks].base, blocks[num_blocks].mapped);
    }
}

/* ---- a case ---- */

typedef struct product_case {
    const mf_cpu_kernels *kernels;
    const mf_cpu_product *product;
    mf_cpu_input input;
    case_matrix w;
    int64_t num_tokens;
    double *x; /* [num_tokens, k] values, codes times scale */
    float x_scale[MAX_TOKENS];
    float *codes;                 /* [num_tokens, k] what is packed */
    const void *rows[MAX_TOKENS]; /* in the product's form, or panels */
    char label[260];
} product_case;

static int64_t grid_columns(const mf_matrix *m)
{
    const int64_t group = mf_matrix_group(m);
    return group ? (m->k + group - 1) / group : 1;
}

/* The matrix again, its parts at the ends of pages. */
static mf_matrix guarded_matrix(const mf_matrix *m)
{
    mf_matrix g = *m;
    const int64_t bits = mf_format_bits(m->format);
    g.data = guarded_copy(m->data, (size_t)((m->n - 1) * m->row_stride * bits / 8 + (m->k * bits + 7) / 8));
    if (m->format >= MF_FORMAT_FP8_BLOCK) {
        const int64_t rows = m->format == MF_FORMAT_FP8_BLOCK ? (m->n + 127) / 128 : m->n;
        const size_t count = (size_t)((rows - 1) * m->scale_row_stride + grid_columns(m));
        g.scale = guarded_copy(m->scale, count * mf_dtype_size(m->scale_dtype));
        g.zero = m->zero ? guarded_copy(m->zero, count) : NULL;
    }
    return g;
}

static void make_inputs(product_case *c, uint64_t *seed)
{
    const int64_t k = c->w.m.k;
    c->x = calloc((size_t)(c->num_tokens * k), sizeof *c->x);
    c->codes = calloc((size_t)(c->num_tokens * k), sizeof *c->codes);
    for (int64_t t = 0; t < c->num_tokens; t++) {
        c->x_scale[t] = (float)(exp2(conf_normal(seed)) / 40);
        for (int64_t i = 0; i < k; i++) {
            float v = (float)conf_normal(seed);
            v = c->input == MF_CPU_INPUT_BF16 ? mf_bf16_to_f32(mf_f32_to_bf16(v))
                : c->input == MF_CPU_INPUT_I8 ? (float)(conf_below(seed, 255) - 127)
                                              : v;
            c->codes[t * k + i] = v;
            c->x[t * k + i] = c->input == MF_CPU_INPUT_I8 ? (double)v * c->x_scale[t] : v;
        }
    }
}

/* Tokens [first, first + n) packed into memory of their own. */
static void pack_inputs(product_case *c, int64_t first, int64_t n, const void **rows)
{
    const int64_t k = c->w.m.k;
    const mf_cpu_form form = c->product->form;
    const int64_t bytes = mf_cpu_form_bytes(form, k);
    const int64_t step = mf_cpu_form_is_panel(form) ? MF_CPU_PANEL : 1;
    for (int64_t t = 0; t < n; t += step) {
        const int64_t count = n - t < step ? n - t : step;
        uint8_t *row = guarded_alloc((size_t)(bytes * count));
        rows[t / step] = row;
        for (int64_t i = 0; i < count; i++) {
            const mf_cpu_pack pack = mf_cpu_pack_at(form, k, row, bytes, i, count);
            c->kernels->pack(&pack, c->codes + (first + t + i) * k, 0, k);
        }
    }
}

static void run(const product_case *c, int64_t first_row, int64_t num_rows, int64_t first_token, int64_t num_tokens,
                const void *const *rows, float *out)
{
    const mf_cpu_tile tile = { .w = &c->w.m,
                               .first_row = first_row,
                               .num_rows = num_rows,
                               .num_tokens = num_tokens,
                               .x = rows,
                               .x_scale = c->x_scale + first_token,
                               .out = out,
                               .out_stride = num_rows };
    c->product->fn(&tile);
}

/* Zero point times scale, which AVX2 rounds to f32 before a code's product with the scale is added: nothing is lost with
 * scales of 16 bits. */
static double size_of_zero(const product_case *c, int64_t row, int64_t column)
{
    const mf_matrix *m = &c->w.m;
    if (m->format != MF_FORMAT_INT4_GROUP || !m->zero) {
        return 0;
    }
    const int64_t at = row * m->scale_row_stride + column / m->group_size;
    return fabs(m->zero[at] * conf_get(m->scale, m->scale_dtype, at));
}

static void check_values(const product_case *c, const float *out)
{
    const mf_matrix *m = &c->w.m;
    for (int64_t t = 0; t < c->num_tokens; t++) {
        for (int64_t r = 0; r < m->n; r++) {
            double sum = 0, sum_of_magnitudes = 0, sum_of_zeros = 0;
            for (int64_t k = 0; k < m->k; k++) {
                const double term = c->w.value[r * m->k + k] * c->x[t * m->k + k];
                sum += term;
                sum_of_magnitudes += fabs(term);
                sum_of_zeros += size_of_zero(c, r, k) * fabs(c->x[t * m->k + k]);
            }
            /* f32 sums in at least 8 chains, a few roundings each for value, product and scale */
            const double bound = (sum_of_magnitudes * ((double)m->k / 8 + 16) + sum_of_zeros) * 0x1p-24 + 1e-37;
            const double got = out[t * m->n + r];
            if (!(fabs(got - sum) <= bound)) {
                fail_msg("%s: row %d, token %d: %.9g, expected %.9g within %.3g", c->label, (int)r, (int)t, got, sum,
                         bound);
            }
        }
    }
}

/* Some rows and tokens alone, against the same of the whole. */
static void check_parts(product_case *c, const float *out)
{
    static const struct {
        int64_t row, num_rows, token, num_tokens;
    } parts[] = { { 0, 1, 0, 1 }, { 0, INT64_MAX, 0, 1 }, { 2, 3, 0, 2 }, { 1, 5, 1, 3 }, { 0, INT64_MAX, 2, 5 } };
    const mf_matrix *m = &c->w.m;
    for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
        const int64_t row = parts[p].row, token = parts[p].token;
        const int64_t num_rows = parts[p].num_rows == INT64_MAX ? m->n : parts[p].num_rows;
        if (token + parts[p].num_tokens > c->num_tokens || row + num_rows > m->n) {
            continue;
        }
        const int mark = num_blocks;
        const void *rows[MAX_TOKENS];
        pack_inputs(c, token, parts[p].num_tokens, rows);
        float *part = conf_alloc((size_t)(num_rows * parts[p].num_tokens) * sizeof *part);
        run(c, row, num_rows, token, parts[p].num_tokens, rows, part);
        for (int64_t t = 0; t < parts[p].num_tokens; t++) {
            const float *whole = out + (token + t) * m->n + row;
            if (conf_difference(part + t * num_rows, whole, MF_F32, num_rows) >= 0) {
                fail_msg("%s: rows %d + %d, tokens %d + %d have other bits than in the whole call", c->label, (int)row,
                         (int)num_rows, (int)token, (int)parts[p].num_tokens);
            }
        }
        conf_free(part);
        while (num_blocks > mark) {
            num_blocks--;
            munmap(blocks[num_blocks].base, blocks[num_blocks].mapped);
        }
    }
}

static void check_case(const conf_device *device, mf_format format, mf_cpu_input input, int variant, int64_t n,
                       int64_t k, int64_t num_tokens)
{
    uint64_t seed = (uint64_t)(k * 1000 + n * 10 + num_tokens + format * 77 + variant);
    product_case c = { .kernels = mf_cpu_kernels_of(device->device), .input = input };
    c.product = &c.kernels->product[format][input];
    c.num_tokens = num_tokens < c.kernels->tile_tokens ? num_tokens : c.kernels->tile_tokens;
    snprintf(c.label, sizeof c.label, "%s: %s, input %d, variant %d, %d x %d, %d tokens", device->label,
             mf_format_name(format), (int)input, variant, (int)n, (int)k, (int)c.num_tokens);
    case_matrix_make(&c.w, &seed, format, variant, n, k);
    const mf_matrix original = c.w.m;
    c.w.m = guarded_matrix(&original);
    make_inputs(&c, &seed);
    pack_inputs(&c, 0, c.num_tokens, c.rows);
    float *out = conf_alloc((size_t)(n * c.num_tokens) * sizeof *out);
    run(&c, 0, n, 0, c.num_tokens, c.rows, out);
    conf_check_guards(out);
    check_values(&c, out);
    check_parts(&c, out);
    conf_free(out);
    free(c.x);
    free(c.codes);
    guarded_free_all();
    c.w.m = original;
    case_matrix_free(&c.w);
}

/* The rungs: devices with one thread; three threads run the same products. */
static void for_each_product(void (*check)(const conf_device *device, mf_format format, mf_cpu_input input))
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 1; d < count; d++) {
        if (mf_device_num_threads(devices[d].device) != 1) {
            continue;
        }
        for (int f = 0; f < MF_FORMAT_COUNT; f++) {
            for (int i = 0; i < MF_CPU_INPUT_COUNT; i++) {
                if (mf_cpu_kernels_of(devices[d].device)->product[f][i].fn) {
                    check(&devices[d], (mf_format)f, (mf_cpu_input)i);
                }
            }
        }
    }
}

static void check_odd_widths(const conf_device *device, mf_format format, mf_cpu_input input)
{
    static const int64_t widths[] = { 1, 2, 31, 33, 65, 129, 511, 1410, 2880 };
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        for (int variant = 0; variant < (conf_full() ? 10 : 2); variant++) {
            check_case(device, format, input, (int)i + variant, 7, widths[i], 3);
        }
    }
}

TEST(products_are_right_at_odd_widths_and_read_nothing_outside)
{
    for_each_product(check_odd_widths);
}

static void check_token_counts(const conf_device *device, mf_format format, mf_cpu_input input)
{
    static const int64_t counts[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, MAX_TOKENS };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        check_case(device, format, input, (int)i, (int64_t)i + 5, i % 2 ? 160 : 577, counts[i]);
    }
}

TEST(products_are_right_and_have_the_same_bits_for_any_number_of_tokens)
{
    for_each_product(check_token_counts);
}

static void check_many_rows(const conf_device *device, mf_format format, mf_cpu_input input)
{
    check_case(device, format, input, 0, 140, 300, 2);
    check_case(device, format, input, 1, 140, 1290, 11);
}

TEST(products_are_right_across_blocks_of_rows)
{
    for_each_product(check_many_rows);
}

/* Rows so long that a rung may take them in pieces: sums that wait meanwhile keep their bits. */
static void check_long_rows(const conf_device *device, mf_format format, mf_cpu_input input)
{
    static const struct {
        int64_t n, k, num_tokens;
    } sizes[] = {
        { 3, 7201, 1 }, { 5, 7201, 2 }, { 67, 2051, 6 }, { 67, 2051, 13 }, { 6, 2304, 24 }, { 66, 2051, 25 },
    };
    for (size_t i = 0; format == MF_FORMAT_BF16 && i < sizeof sizes / sizeof sizes[0]; i++) {
        check_case(device, format, input, (int)i, sizes[i].n, sizes[i].k, sizes[i].num_tokens);
    }
}

TEST(products_of_long_rows_are_right_and_have_the_same_bits_for_any_number_of_tokens)
{
    for_each_product(check_long_rows);
}

/* One code that means NaN makes its row NaN and no other. */
static void check_nan_code(const conf_device *device, mf_format format, mf_cpu_input input)
{
    if (format != MF_FORMAT_FP8_BLOCK && format != MF_FORMAT_FP8_CHANNEL) {
        return;
    }
    static const int64_t counts[] = { 1, 3, 20 };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        enum { N = 6, K = 333, BAD = 2 };
        uint64_t seed = 5;
        product_case c = { .kernels = mf_cpu_kernels_of(device->device), .input = input, .num_tokens = counts[i] };
        c.product = &c.kernels->product[format][input];
        case_matrix_make(&c.w, &seed, format, 0, N, K);
        ((uint8_t *)c.w.codes)[BAD * c.w.m.row_stride + (i % 2 ? K - 1 : 130)] = i % 2 ? 0x7f : 0xff;
        make_inputs(&c, &seed);
        pack_inputs(&c, 0, c.num_tokens, c.rows);
        float out[N * 20];
        run(&c, 0, N, 0, c.num_tokens, c.rows, out);
        for (int64_t t = 0; t < c.num_tokens; t++) {
            for (int r = 0; r < N; r++) {
                if (isnan(out[t * N + r]) != (r == BAD)) {
                    fail_msg("%s: %s, input %d, %d tokens: row %d is %g", device->label, mf_format_name(format),
                             (int)input, (int)c.num_tokens, r, out[t * N + r]);
                }
            }
        }
        free(c.x);
        free(c.codes);
        guarded_free_all();
        case_matrix_free(&c.w);
    }
}

TEST(a_nan_code_makes_its_row_nan_and_no_other)
{
    for_each_product(check_nan_code);
}

/* Scales near the ends of f32 and e8m0: values stay finite, so must the products. */
static void check_extreme_scales(const conf_device *device, mf_format format, mf_cpu_input input)
{
    if (format != MF_FORMAT_FP8_BLOCK && format != MF_FORMAT_MXFP4) {
        return;
    }
    static const int exponents[] = { -125, -100, 8, 60, 112 };
    for (size_t e = 0; e < sizeof exponents / sizeof exponents[0]; e++) {
        enum { N = 5, K = 128 };
        uint64_t seed = 9;
        product_case c = { .kernels = mf_cpu_kernels_of(device->device), .input = input, .num_tokens = e % 2 ? 2 : 9 };
        c.product = &c.kernels->product[format][input];
        case_matrix_make(&c.w, &seed, format, 0, N, K);
        snprintf(c.label, sizeof c.label, "%s: %s, input %d, scales 2^%d", device->label, mf_format_name(format),
                 (int)input, exponents[e]);
        for (int64_t i = 0; i < (format == MF_FORMAT_MXFP4 ? N * c.w.m.scale_row_stride : 1); i++) {
            if (c.w.m.scale_dtype == MF_F8_E8M0) {
                ((uint8_t *)c.w.scales)[i] = (uint8_t)(127 + exponents[e]);
            } else {
                conf_put(c.w.scales, c.w.m.scale_dtype, i, ldexp(1.0, exponents[e]));
            }
        }
        case_matrix_decode(&c.w);
        make_inputs(&c, &seed);
        pack_inputs(&c, 0, c.num_tokens, c.rows);
        float out[N * 9];
        run(&c, 0, N, 0, c.num_tokens, c.rows, out);
        check_values(&c, out);
        free(c.x);
        free(c.codes);
        guarded_free_all();
        case_matrix_free(&c.w);
    }
}

TEST(scales_near_the_ends_of_f32_give_finite_products)
{
    for_each_product(check_extreme_scales);
}
