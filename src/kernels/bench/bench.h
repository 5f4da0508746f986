/* bench.h - measuring the kernels and the machine: all that programs see of it, and no tensor.
 *
 * `moefuse doctor` asks for levels and rates, `moefuse bench kernels` for rows.  This part of the tree is linked into
 * the program only, not into the library. */
#ifndef MF_KERNELS_BENCH_H
#define MF_KERNELS_BENCH_H

#include <stdbool.h>

#include "base/error.h"

/* ---- the machine ---- */

/* One rung of the cpu device's ladder. */
typedef struct mf_bench_level {
    const char *name;  /* as MOEFUSE_ISA says it */
    const char *needs; /* "AVX2, FMA, F16C" */
    bool is_available; /* the CPU and the system allow it */
    bool is_used;
    bool is_passed_over; /* another level is faster here: nothing is wrong */
    char reason[160];    /* why it is not used; "" when it is */
} mf_bench_level;

enum { MF_BENCH_MAX_LEVELS = 16 };

/* Lowest first.  Returns how many. */
int32_t mf_bench_levels(mf_bench_level *levels, int32_t capacity);

typedef enum mf_rate_kind {
    MF_RATE_F32,  /* f32 multiply-adds */
    MF_RATE_BF16, /* bf16 products summed in f32 by one instruction */
    MF_RATE_INT8, /* 8-bit products summed in i32 */
    MF_RATE_COUNT
} mf_rate_kind;

const char *mf_rate_kind_name(mf_rate_kind kind); /* "f32 fma", "bf16 dot", "int8 dot" */

/* Giga-operations per second of all `threads` together: the best of this level's own loop, or of any level up to it
 * with `or_lower`.  0 where there is no such loop.  Takes about `seconds`. */
mf_status mf_bench_rate(const char *level, bool or_lower, mf_rate_kind kind, int32_t threads, double seconds,
                        double *gops, mf_error *err);

/* Read bandwidth, GB/s, by each of `count` numbers of threads, over one block of `bytes`, in huge pages where the
 * system gives them or in small ones.  *huge_bytes: how much of the block is in huge pages as the system counts; -1:
 * not known. */
mf_status mf_bench_read_rates(const int32_t *threads, int32_t count, bool huge, int64_t bytes, double seconds_each,
                              double *gb_per_s, int64_t *huge_bytes, mf_error *err);

/* ---- the kernels ---- */

enum { MF_BENCH_INT4_GROUP = 32 }; /* unless asked otherwise */

typedef struct mf_bench_options {
    const char *ops; /* names with commas, or "all" */
    const char *shapes;
    const char *formats;
    const char *act_quant;        /* "none", "w8a8", "int8" */
    const char *dtype;            /* of activations: "bf16", "f32" */
    const char *routing;          /* "uniform", "skewed" */
    const char *tokens;           /* "1,4,16"; NULL: the op's own list */
    int64_t context;              /* of attention */
    int64_t group_size;           /* columns under one scale of int4_group */
    int32_t threads;              /* 0 = all */
    bool pin_threads, interleave; /* as --pin-threads and --numa interleave */
    int32_t repeats;              /* 0 = as many as fit `seconds`, at least 5 unless they take ten times as long */
    double seconds;               /* per point */
    uint64_t seed;
} mf_bench_options;

#define MF_BENCH_OPTIONS_INIT                                                                                          \
    {                                                                                                                  \
        .ops = "experts", .shapes = "v2-lite", .formats = "bf16", .act_quant = "none", .dtype = "bf16",                \
        .routing = "uniform", .context = 1024, .group_size = MF_BENCH_INT4_GROUP, .seconds = 1.0                      \
    }

typedef struct mf_bench_row {
    char op[32]; /* "experts", "layer SLOT" */
    const char *shape;
    char dtype[40]; /* of weights, and how activations enter: "int4_group+int8" */
    const char *act_dtype, *routing;
    const char *device; /* the device's description */
    const char *level;  /* the highest rung in use */
    int32_t threads, repeats;
    int64_t tokens;
    double experts; /* distinct experts touched, mean; 0: not an op on experts */
    double us, us_min, us_p10, us_p90;
    double gb_per_s, gflops;  /* at the median; 0: not told */
    double ceiling;           /* measured in this run; 0: none */
    const char *ceiling_unit; /* "GB/s", "GFLOP/s", "GOP/s" or NULL */
    double share;             /* of the ceiling */
    double ratio;             /* 0: none */
    const char *ratio_of;     /* "SERIAL / SLOT" */
} mf_bench_row;

/* Calls `row` for each result as it comes and `note` (may be NULL) with a line on what runs next. */
typedef struct mf_bench_sink {
    void (*row)(void *context, const mf_bench_row *row);
    void (*note)(void *context, const char *line);
    void *context;
} mf_bench_sink;

/* Names that the options know, as "a|b|c". */
const char *mf_bench_op_names(void);
const char *mf_bench_shape_names(void);
const char *mf_bench_format_names(void);

/* MF_ERR_INVALID names the option as the program's flag: "--shape: ...". */
mf_status mf_bench_kernels(const mf_bench_options *options, const mf_bench_sink *sink, mf_error *err);

#endif
