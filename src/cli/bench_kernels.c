/* bench_kernels.c - `moefuse bench kernels`: flags in, rows out as a table, CSV or JSON. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_modes.h"
#include "cli/log_output.h"
#include "kernels/bench/bench.h"

typedef struct kernels_flags {
    mf_bench_options options;
    const char *isa, *csv, *numa;
    int64_t threads, repeats, context, group_size, seed;
    bool json, no_progress, help;
} kernels_flags;

typedef struct row_sink {
    const kernels_flags *flags;
    FILE *csv;
    json_t *rows;
    int32_t count;
    bool to_table;
} row_sink;

static const char csv_header[] =
    "op,shape,dtype,act_dtype,routing,isa,threads,T,repeats,experts,us,us_min,us_p10,us_p90,GB/s,GFLOP/s,ceiling,"
    "ceiling_unit,share,ratio,ratio_of\n";

static const char *text_or_dash(double value, int decimals, const char *unit, char *out, size_t size)
{
    if (value > 0) {
        snprintf(out, size, "%.*f%s", decimals, value, unit);
    } else {
        snprintf(out, size, "-");
    }
    return out;
}

static void print_table_row(row_sink *sink, const mf_bench_row *r)
{
    char experts[32], gbs[32], gflops[32], unit[16], ceiling[48], share[32], ratio[48];
    if (sink->count == 0) {
        printf("%-17s %-12s %-20s %6s %7s %11s %11s %7s %8s %16s %6s\n", "op", "shape", "dtype", "T", "experts", "us",
               "us min", "GB/s", "GFLOP/s", "ceiling", "share");
    }
    snprintf(unit, sizeof unit, " %s", r->ceiling_unit ? r->ceiling_unit : "");
    text_or_dash(r->ceiling, 1, unit, ceiling, sizeof ceiling);
    ratio[0] = '\0';
    if (r->ratio > 0) {
        snprintf(ratio, sizeof ratio, "  %s %.3g", r->ratio_of, r->ratio);
    }
    printf("%-17s %-12s %-20s %6lld %7s %11.2f %11.2f %7s %8s %16s %6s%s\n", r->op, r->shape, r->dtype,
           (long long)r->tokens, text_or_dash(r->experts, 1, "", experts, sizeof experts), r->us, r->us_min,
           text_or_dash(r->gb_per_s, 1, "", gbs, sizeof gbs), text_or_dash(r->gflops, 1, "", gflops, sizeof gflops),
           ceiling, text_or_dash(r->share * 100, 0, " %", share, sizeof share), ratio);
    fflush(stdout);
}

static void print_csv_row(FILE *out, const mf_bench_row *r)
{
    fprintf(out, "%s,%s,%s,%s,%s,%s,%d,%lld,%d,%.1f,%.3f,%.3f,%.3f,%.3f,%.2f,%.2f,%.2f,%s,%.4f,%.4g,\"%s\"\n", r->op,
            r->shape, r->dtype, r->act_dtype, r->routing, r->level, r->threads, (long long)r->tokens, r->repeats,
            r->experts, r->us, r->us_min, r->us_p10, r->us_p90, r->gb_per_s, r->gflops, r->ceiling,
            r->ceiling_unit ? r->ceiling_unit : "", r->share, r->ratio, r->ratio_of ? r->ratio_of : "");
}

static json_t *row_json(const mf_bench_row *r)
{
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:I, s:i}", "op", r->op, "shape", r->shape, "dtype",
                  r->dtype, "act_dtype", r->act_dtype, "routing", r->routing, "isa", r->level, "device", r->device,
                  "threads", r->threads, "M", (json_int_t)r->tokens, "repeats", r->repeats);
    const struct {
        const char *key;
        double value;
    } figures[] = {
        { "experts", r->experts }, { "us", r->us },         { "us_min", r->us_min },         { "p10", r->us_p10 },
        { "p90", r->us_p90 },      { "GB/s", r->gb_per_s }, { "TFLOP/s", r->gflops / 1000 }, { "ceiling", r->ceiling },
        { "share", r->share },     { "ratio", r->ratio },
    };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        json_object_set_new(row, figures[i].key, figures[i].value > 0 ? json_real(figures[i].value) : json_null());
    }
    json_object_set_new(row, "ceiling_unit", r->ceiling_unit ? json_string(r->ceiling_unit) : json_null());
    json_object_set_new(row, "ratio_of", r->ratio_of ? json_string(r->ratio_of) : json_null());
    return row;
}

static void take_row(void *context, const mf_bench_row *row)
{
    row_sink *sink = context;
    if (sink->to_table) {
        print_table_row(sink, row);
    }
    if (sink->csv) {
        print_csv_row(sink->csv, row);
        fflush(sink->csv);
    }
    if (sink->rows) {
        json_array_append_new(sink->rows, row_json(row));
    }
    sink->count++;
}

static void take_note(void *context, const char *line)
{
    const row_sink *sink = context;
    if (!sink->flags->no_progress) {
        fprintf(stderr, "# %s\n", line);
    }
}

/* Appends, so that one file can hold a sitting; the header stands once. */
static mf_status open_csv(const char *path, FILE **out, mf_error *err)
{
    if (strcmp(path, "-") == 0) {
        *out = stdout;
        fputs(csv_header, stdout);
        return MF_OK;
    }
    *out = fopen(path, "ae");
    if (!*out) {
        return mf_fail(err, MF_ERR_IO, "--csv %.512s: %s", path, strerror(errno));
    }
    if (fseek(*out, 0, SEEK_END) == 0 && ftell(*out) == 0) {
        fputs(csv_header, *out);
    }
    return MF_OK;
}

/* The device climbs to MOEFUSE_ISA; here a level that it would not reach is a mistake, not a lower measurement. */
static mf_status choose_isa(const char *isa, mf_error *err)
{
    mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    unsetenv("MOEFUSE_ISA");
    int32_t count = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS);
    char known[160] = "";
    for (int32_t i = 0; i < count; i++) {
        if (strcmp(levels[i].name, isa) == 0) {
            if (!levels[i].is_used) {
                return mf_fail(err, MF_ERR_UNSUPPORTED, "--isa %s: %s", isa, levels[i].reason);
            }
            setenv("MOEFUSE_ISA", isa, 1);
            return MF_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? "|" : "", levels[i].name);
    }
    return mf_fail(err, MF_ERR_INVALID, "--isa: expected one of %s; got \"%.64s\"", known, isa);
}

static size_t fill_flags(kernels_flags *v, mf_flag *rows)
{
    const mf_bench_options defaults = MF_BENCH_OPTIONS_INIT;
    *v = (kernels_flags){
        .options = defaults, .context = defaults.context, .group_size = defaults.group_size, .numa = "first-touch"
    };
    mf_bench_options *o = &v->options;
    const mf_flag table[] = {
        { "what", "--op", NULL, MF_FLAG_TEXT, &o->ops, .argument = "NAMES",
          .help = "experts, layer, gate, align, sum-reduce, linear, lm-head, attention; several with commas, or all (experts)" },
        { "what", "--shape", NULL, MF_FLAG_TEXT, &o->shapes, .argument = "NAMES",
          .help = "v2-lite, qwen3-30b, v3-tp8, glm-air-tp2, kimi-k2-tp8, tiny; with commas, or all (v2-lite)" },
        { "what", "--format", NULL, MF_FLAG_TEXT, &o->formats, .argument = "NAMES",
          .help = "of weights: bf16, fp8_block, int8_channel, int4_group, mxfp4, ...; with commas, or all (bf16)" },
        { "what", "--group-size", NULL, MF_FLAG_INT, &v->group_size, .min = 32, .max = 1 << 20, .argument = "N",
          .help = "columns under one scale of int4_group, a multiple of 32 (32)" },
        { "what", "--act-quant", NULL, MF_FLAG_TEXT, &o->act_quant, .choices = "none|w8a8|int8", .argument = "Q",
          .help = "how activations enter; formats that it does not touch are left out (none)" },
        { "what", "--dtype", NULL, MF_FLAG_TEXT, &o->dtype, .choices = "bf16|f32", .argument = "T",
          .help = "of activations (bf16)" },
        { "what", "--tokens", NULL, MF_FLAG_TEXT, &o->tokens, .argument = "LIST",
          .help = "token counts with commas (each op's own: 1,4,16,64,256,1024 for products)" },
        { "what", "--context", NULL, MF_FLAG_INT, &v->context, .min = 1, .max = 1 << 20, .argument = "N",
          .help = "cached tokens of a sequence, for attention (1024)" },
        { "what", "--routing", NULL, MF_FLAG_TEXT, &o->routing, .choices = "uniform|skewed", .argument = "R",
          .help = "how experts are drawn; skewed: in proportion to 1, 1/2, 1/3, ... (uniform)" },
        { "what", "--seed", NULL, MF_FLAG_INT, &v->seed, .min = 0, .max = 9.2e18, .argument = "N",
          .help = "of ids and activations (0)" },
        { "device", "--threads", "-t", MF_FLAG_INT, &v->threads, .min = 0, .max = 256, .argument = "N",
          .help = "threads of the CPU pool; 0: one per core (0)" },
        { "device", "--pin-threads", NULL, MF_FLAG_BOOL, &o->pin_threads,
          .help = "keep each thread on a CPU of its own" },
        { "device", "--numa", NULL, MF_FLAG_TEXT, &v->numa, .choices = "first-touch|interleave", .argument = "P",
          .help = "where weights lie on several memory nodes (first-touch)" },
        { "device", "--isa", NULL, MF_FLAG_TEXT, &v->isa, .argument = "LEVEL",
          .help = "climb no higher: c, avx2, avx512, ... as `moefuse doctor` lists them (the highest)" },
        { "time", "--repeats", NULL, MF_FLAG_INT, &v->repeats, .min = 0, .max = 1000, .argument = "N",
          .help = "calls per point; 0: as many as fit --seconds, at least 5 (0)" },
        { "time", "--seconds", NULL, MF_FLAG_REAL, &o->seconds, .min = 0, .max = 3600, .argument = "S",
          .help = "per point (1)" },
        { "output", "--csv", NULL, MF_FLAG_TEXT, &v->csv, .argument = "FILE",
          .help = "also append rows to FILE; -: on stdout" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &v->json,
          .help = "one JSON document on stdout instead of the table" },
        { "output", "--no-progress", NULL, MF_FLAG_BOOL, &v->no_progress, .help = "no ceilings and steps on stderr" },
        { "output", "--help", "-h", MF_FLAG_BOOL, &v->help, .help = "this text" },
    };
    memcpy(rows, table, sizeof table);
    return sizeof table / sizeof *table;
}

int mf_bench_mode_kernels(int argc, char **argv)
{
    kernels_flags v;
    mf_flag rows[32];
    size_t num_rows = fill_flags(&v, rows);
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, NULL, 0, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (v.help) {
        printf("usage: moefuse bench kernels [flags]\n\nTimes operations at the shapes of models' layers.  Several "
               "layers of weights take "
               "turns and experts\nare drawn anew for each call, so that no cache holds them.  GB/s counts the stored "
               "bytes of the\n"
               "experts that a call touched; shares are of ceilings measured in the same run: of reading or of the\n"
               "instruction set's arithmetic, whichever is nearer and so binds.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    v.options.threads = (int32_t)v.threads;
    v.options.repeats = (int32_t)v.repeats;
    v.options.context = v.context;
    v.options.group_size = v.group_size;
    v.options.interleave = strcmp(v.numa, "interleave") == 0;
    v.options.seed = (uint64_t)v.seed;
    mf_log_output_start(&(mf_log_output_options){ .level = "warn" }, NULL);
    row_sink sink = { .flags = &v };
    mf_status status = v.isa && *v.isa ? choose_isa(v.isa, &err) : MF_OK;
    if (status == MF_OK && v.csv) {
        status = open_csv(v.csv, &sink.csv, &err);
    }
    if (status == MF_OK) {
        sink.rows = v.json ? json_array() : NULL;
        sink.to_table = !v.json && sink.csv != stdout;
        const mf_bench_sink bench_sink = { take_row, take_note, &sink };
        status = mf_bench_kernels(&v.options, &bench_sink, &err);
    }
    if (sink.csv && sink.csv != stdout && fclose(sink.csv) != 0 && status == MF_OK) {
        status = mf_fail(&err, MF_ERR_IO, "--csv %.512s: %s", v.csv, strerror(errno));
    }
    if (status != MF_OK) {
        json_decref(sink.rows);
        mf_console_error(&err);
        return status == MF_ERR_INVALID ? MF_EXIT_USAGE : status == MF_ERR_IO ? MF_EXIT_FAILED : mf_exit_code(status);
    }
    if (sink.rows) {
        mf_console_json(json_pack("{s:s, s:o}", "version", mf_version(), "kernels", sink.rows),
                        JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    }
    return MF_EXIT_OK;
}
