/* verb_quantize.c - `moefuse quantize IN OUT`: a checkpoint written again with its linear layers quantised, in a
 * released layout, with the error of each layer. */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "cli/log_output.h"
#include "model/quantise_checkpoint.h"

typedef struct quantize_flags {
    const char *format, *log_level;
    int64_t group, threads;
    bool group_given, json, no_progress, help;
} quantize_flags;

typedef struct watch {
    mf_console_progress progress;
} watch;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static bool draw(void *context, const mf_progress_info *info)
{
    watch *w = context;
    return mf_console_progress_draw(&w->progress, info) && !interrupted;
}

static double relative(const mf_quantise_sums *s)
{
    return s->weight > 0 ? sqrt(s->error / s->weight) : 0.0;
}

static const mf_part shown[] = { MF_PART_ATTENTION, MF_PART_DENSE, MF_PART_EXPERTS, MF_PART_SHARED };
enum { NUM_SHOWN = sizeof shown / sizeof *shown };

static void print_report(const mf_quantise_report *r, const quantize_flags *f, double seconds)
{
    char before[32], after[32];
    printf("relative RMS error of the weights\nlayer ");
    for (int i = 0; i < NUM_SHOWN; i++) {
        printf("  %14s", mf_part_name(shown[i]));
    }
    putchar('\n');
    mf_quantise_sums total[MF_PART_COUNT] = { 0 };
    for (int64_t l = 0; l <= r->num_layers; l++) {
        const mf_quantise_sums *row = l < r->num_layers ? r->layers[l] : total;
        printf(l < r->num_layers ? "%5" PRId64 " " : "  all ", l);
        for (int i = 0; i < NUM_SHOWN; i++) {
            const mf_quantise_sums *s = &row[shown[i]];
            if (s->num_matrices) {
                printf("  %14.5f", relative(s));
            } else {
                printf("  %14s", "-");
            }
            if (l < r->num_layers) {
                total[shown[i]].error += s->error;
                total[shown[i]].weight += s->weight;
                total[shown[i]].num_matrices += s->num_matrices;
            }
        }
        putchar('\n');
    }
    printf("%" PRId64 " matrices as %s; tensors %s -> %s (%.1f %%) in %.1f s\n", r->num_matrices, f->format,
           mf_format_bytes(r->bytes_in, before, sizeof before), mf_format_bytes(r->bytes_out, after, sizeof after),
           100.0 * (double)r->bytes_out / (double)r->bytes_in, seconds);
}

static json_t *report_json(const mf_quantise_report *r, const quantize_flags *f, double seconds)
{
    json_t *layers = json_array();
    for (int64_t l = 0; l < r->num_layers; l++) {
        json_t *row = json_object();
        for (int i = 0; i < NUM_SHOWN; i++) {
            const mf_quantise_sums *s = &r->layers[l][shown[i]];
            if (s->num_matrices) {
                json_object_set_new(row, mf_part_name(shown[i]), json_real(relative(s)));
            }
        }
        json_array_append_new(layers, row);
    }
    return json_pack("{s:s, s:I, s:I, s:I, s:f, s:o}", "format", f->format, "matrices", (json_int_t)r->num_matrices,
                     "bytes_in", (json_int_t)r->bytes_in, "bytes_out", (json_int_t)r->bytes_out, "seconds", seconds,
                     "relative_rms_error", layers);
}

static int quantize(const quantize_flags *f, const char *in, const char *out)
{
    mf_error err = { 0 };
    watch w = { 0 };
    mf_quantise_options options = { .format = strcmp(f->format, "fp8-block") == 0 ? MF_FORMAT_FP8_BLOCK
                                              : strcmp(f->format, "int8") == 0    ? MF_FORMAT_INT8_CHANNEL
                                                                                  : MF_FORMAT_INT4_GROUP,
                                    .group = f->group,
                                    .num_threads = (int32_t)f->threads,
                                    .progress = { draw, &w } };
    mf_quantise_report report;
    const double start = mf_now_s();
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    mf_console_progress_start(&w.progress, f->no_progress);
    mf_status status = mf_checkpoint_quantise(in, out, &options, &report, &err);
    mf_console_progress_end(&w.progress);
    if (status != MF_OK) {
        mf_console_error(&err);
        return status == MF_ERR_CANCELLED ? MF_EXIT_INTERRUPTED : mf_exit_code(status);
    }
    if (report.has_short_groups) {
        mf_log(MF_LOG_WARN,
               "some rows are no multiple of the group of %" PRId64 ": other programs may not read their last groups",
               f->group);
    }
    const double seconds = mf_now_s() - start;
    if (f->json) {
        mf_console_json(report_json(&report, f, seconds), JSON_INDENT(2));
    } else {
        print_report(&report, f, seconds);
    }
    mf_quantise_report_close(&report);
    return MF_EXIT_OK;
}

int mf_verb_quantize(int argc, char **argv)
{
    quantize_flags f = { .log_level = "info", .group = 32 };
    const mf_flag rows[] = {
        { "quantize", "--format", NULL, MF_FLAG_TEXT, &f.format, .choices = "fp8-block|int8|int4", .argument = "NAME",
          .help =
              "fp8-block: DeepSeek's 128 x 128 blocks; int8: one scale per row; int4: groups of columns (required)" },
        { "quantize", "--group", NULL, MF_FLAG_INT, &f.group, &f.group_given, .min = 32, .max = 128, .argument = "N",
          .help = "int4: columns that share a scale: 32, 64 or 128 (32)" },
        { "quantize", "--threads", "-t", MF_FLAG_INT, &f.threads, .min = 0, .max = 1024, .argument = "N",
          .help = "0 = one per core (0)" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &f.json, .help = "one JSON document on stdout" },
        { "output", "--no-progress", NULL, MF_FLAG_BOOL, &f.no_progress, .help = "no progress bar" },
        { "output", "--log-level", NULL, MF_FLAG_TEXT, &f.log_level, .choices = "debug|info|warn|error",
          .argument = "NAME", .help = "least important messages that are shown (info)" },
        { "output", "--help", "-h", MF_FLAG_BOOL, &f.help, .help = "this text" },
    };
    const size_t num_rows = sizeof rows / sizeof *rows;
    const char *positionals[2];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 2, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.help) {
        printf("usage: moefuse quantize IN OUT --format fp8-block|int8|int4 [flags]\n\nWrites the model IN again with "
               "its linear layers "
               "quantised, in the layout that models are released in,\nand prints the error of each layer.  OUT "
               "appears when it is "
               "whole; an existing OUT is refused.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    mf_status status = mf_log_output_start(&(mf_log_output_options){ .level = f.log_level }, &err);
    if (status != MF_OK) {
        return mf_usage_error(&err);
    }
    if (num_positionals != 2) {
        status =
            mf_fail(&err, MF_ERR_INVALID, "quantize: expected two folders, IN and OUT; got %d", (int)num_positionals);
    } else if (!f.format) {
        status = mf_fail(&err, MF_ERR_INVALID, "--format: expected fp8-block, int8 or int4; got nothing");
    } else if (f.group_given && strcmp(f.format, "int4") != 0) {
        status = mf_fail(&err, MF_ERR_INVALID, "--group: belongs to --format int4");
    } else if (f.group != 32 && f.group != 64 && f.group != 128) {
        status = mf_fail(&err, MF_ERR_INVALID, "--group %" PRId64 ": expected 32, 64 or 128", f.group);
    }
    return status != MF_OK ? mf_usage_error(&err) : quantize(&f, positionals[0], positionals[1]);
}
