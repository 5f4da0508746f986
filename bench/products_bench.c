/* products_bench.c - times one product of each rung on one thread, without the op around it.
 *
 *   moefuse_bench_products [--isa NAME] [--format NAME] [--input bf16|int8] [--tokens 1,16,64] [--rows N] [--k N]
 *
 * One CSV line per point: "near" reads the same rows again and again from the second-level cache, "far" walks through
 * 256 MiB of weights.  GB/s are of stored codes.  Times are of the thread's own CPU clock, medians. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "base/sys.h"
#include "kernels/cpu/cpu_kernels.h"

enum { MOST_TOKENS = MF_CPU_MOST_TILE_TOKENS, REPEATS = 31 };
#define FAR_BYTES ((int64_t)256 << 20)

typedef struct setup {
    const mf_cpu_kernels *kernels;
    const char *isa;
    mf_matrix w; /* all rows of the block */
    int64_t rows, row_bytes;
    int64_t far_row; /* goes on from point to point: memory that one has read may lie in a cache */
    const void *x[MOST_TOKENS];
    float x_scale[MOST_TOKENS], *out;
    uint8_t *inputs;
} setup;

static void die(const char *what)
{
    fprintf(stderr, "moefuse_bench_products: %s\n", what);
    exit(1);
}

static void *take(int64_t bytes)
{
    void *p = mf_alloc_aligned((size_t)bytes);
    if (!p) {
        die("out of memory");
    }
    return p;
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void pack_inputs(setup *s, mf_cpu_form form, int64_t tokens)
{
    const int64_t k = s->w.k, bytes = mf_cpu_form_bytes(form, k);
    float *x = take(k * 4);
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < k; i++) {
            x[i] = (float)((t + i) % 7 - 3);
        }
        const bool panel = mf_cpu_form_is_panel(form);
        const int64_t first = panel ? t / MF_CPU_PANEL * MF_CPU_PANEL : t;
        const int64_t n = panel ? (tokens - first < MF_CPU_PANEL ? tokens - first : MF_CPU_PANEL) : 1;
        uint8_t *row = s->inputs + first * bytes;
        const mf_cpu_pack pack = { .form = form, .k = k, .token = t - first, .num_tokens = n, .row = row };
        s->kernels->pack(&pack, x, 0, k);
        s->x[panel ? t / MF_CPU_PANEL : t] = row;
        s->x_scale[t] = 1.0f;
    }
    mf_free_aligned(x);
}

static void measure(setup *s, mf_cpu_input input, int64_t tokens, bool far)
{
    static const char *const names[] = { "f32", "bf16", "int8" };
    const mf_cpu_product *product = &s->kernels->product[s->w.format][input];
    if (!product->fn || tokens > s->kernels->tile_tokens) {
        return;
    }
    pack_inputs(s, product->form, tokens);
    int64_t times[REPEATS], row = far ? s->far_row : 0;
    for (int i = -2; i < REPEATS; i++) {
        const int64_t calls = far ? 8 : 4;
        const int64_t start = now();
        for (int64_t c = 0; c < calls; c++) {
            const mf_cpu_tile tile = { .w = &s->w,
                                       .first_row = row,
                                       .num_rows = s->rows,
                                       .num_tokens = tokens,
                                       .x = s->x,
                                       .x_scale = s->x_scale,
                                       .out = s->out,
                                       .out_stride = s->rows,
                                       .next = &s->w,
                                       .next_row = far ? (row + s->rows) % s->w.n : row };
            product->fn(&tile);
            row = tile.next_row;
        }
        if (i >= 0) {
            times[i] = (now() - start) / calls;
        }
    }
    s->far_row = far ? row : s->far_row;
    qsort(times, REPEATS, sizeof times[0], compare);
    const double ns = (double)times[REPEATS / 2];
    printf("%s,%s,%s,%lld,%lld,%lld,%s,%.2f,%.1f,%.1f\n", s->isa, mf_format_name(s->w.format), names[input],
           (long long)s->rows, (long long)s->w.k, (long long)tokens, far ? "far" : "near", ns / 1000,
           (double)(s->rows * s->row_bytes) / ns, 2.0 * (double)(s->rows * s->w.k * tokens) / ns);
    fflush(stdout);
}

/* Harmless codes and scales: no NaN, no subnormals. */
static mf_matrix make_matrix(mf_format format, int64_t k, uint8_t *codes, uint8_t *scales)
{
    mf_matrix m = { .data = codes, .n = FAR_BYTES / (k * mf_format_bits(format) / 8) / 1024 * 1024, .k = k, .row_stride = k, .format = format };
    if (format < MF_FORMAT_FP8_BLOCK) {
        return m;
    }
    const int64_t group = format == MF_FORMAT_FP8_BLOCK ? 128 : format >= MF_FORMAT_INT4_GROUP ? 32 : k;
    m.group_size = 32;
    m.scale = scales;
    m.scale_row_stride = (k + group - 1) / group;
    m.scale_dtype = format == MF_FORMAT_MXFP4 ? MF_F8_E8M0 : format == MF_FORMAT_INT4_GROUP ? MF_F16 : MF_F32;
    return m;
}

int main(int argc, char **argv)
{
    const char *isa = "", *format = "", *input = "", *list = "1,4,16,32,64,96";
    int64_t rows = 64, k = 2048;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--isa") == 0) {
            isa = argv[i + 1];
        } else if (strcmp(argv[i], "--format") == 0) {
            format = argv[i + 1];
        } else if (strcmp(argv[i], "--input") == 0) {
            input = argv[i + 1];
        } else if (strcmp(argv[i], "--tokens") == 0) {
            list = argv[i + 1];
        } else if (strcmp(argv[i], "--rows") == 0) {
            rows = strtol(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--k") == 0) {
            k = strtol(argv[i + 1], NULL, 10);
        } else {
            die("usage: [--isa NAME] [--format NAME] [--input bf16|int8] [--tokens 1,16,64] [--rows N] [--k N]");
        }
    }
    if (rows < 1 || rows > 1024 || 1024 % rows != 0 || k < 128 || k > 65536 || k % 128 != 0) {
        die("--rows: a divisor of 1024; --k: a multiple of 128 up to 65536");
    }
    setup s = { .rows = rows,
                .out = take(rows * MOST_TOKENS * 4),
                .inputs = take(mf_cpu_form_bytes(MF_CPU_FORM_F32, k) * MOST_TOKENS) };
    uint8_t *codes = take(FAR_BYTES), *scales = take(FAR_BYTES / 4);
    uint64_t seed = 1;
    for (int64_t i = 0; i < FAR_BYTES; i += 8) {
        const uint64_t r = mf_random_next(&seed);
        const uint64_t word = (r & 0x0f0f0f0f0f0f0f0fu) | 0x3030303030303030u;
        memcpy(codes + i, &word, 8);
    }
    printf("isa,format,input,rows,k,tokens,where,us,GB/s,GFLOP/s\n");
    for (size_t level = 0; mf_cpu_isa_level(level).name; level++) {
        const mf_isa_level rung = mf_cpu_isa_level(level);
        if (!rung.is_available || (*isa && strcmp(isa, rung.name) != 0)) {
            continue;
        }
        mf_device *device;
        mf_error err;
        setenv("MOEFUSE_ISA", rung.name, 1);
        if (mf_device_open("cpu", &(mf_device_options){ .num_threads = 1 }, &device, &err) != MF_OK) {
            die(err.message);
        }
        s.kernels = mf_cpu_kernels_of(device);
        s.isa = rung.name;
        mf_fp_env saved = mf_fp_enter();
        for (int f = MF_FORMAT_BF16; f < MF_FORMAT_COUNT; f++) {
            if (*format && strcmp(format, mf_format_name((mf_format)f)) != 0) {
                continue;
            }
            memset(scales, f == MF_FORMAT_MXFP4 ? 127 : 0x3c, (size_t)(FAR_BYTES / 4));
            s.w = make_matrix((mf_format)f, k, codes, scales);
            s.far_row = 0;
            s.row_bytes = k * mf_format_bits((mf_format)f) / 8;
            for (int in = MF_CPU_INPUT_BF16; in < MF_CPU_INPUT_COUNT; in++) {
                const bool wanted = !*input || strcmp(input, in == MF_CPU_INPUT_BF16 ? "bf16" : "int8") == 0;
                for (const char *p = list; wanted && *p;) {
                    char *end;
                    const long tokens = strtol(p, &end, 10);
                    if (end == p || tokens < 1 || tokens > MOST_TOKENS) {
                        die("--tokens: numbers from 1 to 128, with commas");
                    }
                    measure(&s, (mf_cpu_input)in, tokens, false);
                    measure(&s, (mf_cpu_input)in, tokens, true);
                    p = *end == ',' ? end + 1 : end;
                }
            }
        }
        mf_fp_leave(saved);
        mf_device_close(&device);
    }
    mf_free_aligned(codes);
    mf_free_aligned(scales);
    mf_free_aligned(s.out);
    mf_free_aligned(s.inputs);
    return 0;
}
