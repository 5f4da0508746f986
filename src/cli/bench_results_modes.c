/* bench_results_modes.c - `moefuse bench compare` and `moefuse bench report`: modes that read saved results and run
 * nothing. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "cli/bench_compare.h"
#include "cli/bench_modes.h"
#include "cli/bench_report.h"

enum { MAX_FILES = 64 };

/* "5%" or "0.05". */
static mf_status parse_share(const char *name, const char *text, double *out, mf_error *err)
{
    char *end = NULL;
    double value = strtod(text, &end);
    bool percent = end != text && strcmp(end, "%") == 0;
    if (end == text || (*end && !percent) || !(value >= 0) || isinf(value)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: expected a share as 5%% or 0.05; got \"%.64s\"", name, text);
    }
    *out = percent ? value / 100 : value;
    return MF_OK;
}

typedef struct compare_flags {
    const char *threshold;
    bool force, json, help;
} compare_flags;

static int compare_files(const compare_flags *f, const char *const *paths, int32_t num_paths, double threshold,
                         mf_error *err)
{
    mf_result_set a = { 0 }, b = { 0 };
    bool worse = false;
    mf_compare_options options = {
        .name_a = paths[0], .name_b = num_paths > 1 ? paths[1] : paths[0], .threshold = threshold, .force = f->force
    };
    json_t *document = f->json ? json_object() : NULL;
    mf_status status = mf_result_set_load(paths, 1, &a, err);
    if (status == MF_OK && num_paths > 1) {
        status = mf_result_set_load(paths + 1, 1, &b, err);
    }
    if (status == MF_OK) {
        status = mf_compare(&a, num_paths > 1 ? &b : NULL, &options, stdout, document, &worse, err);
    }
    if (status == MF_OK && f->json) {
        mf_console_json(document, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    } else {
        json_decref(document);
    }
    mf_result_set_close(&a);
    mf_result_set_close(&b);
    if (status != MF_OK) {
        mf_console_error(err);
        return status == MF_ERR_INVALID ? MF_EXIT_USAGE : MF_EXIT_FAILED;
    }
    if (worse) {
        fflush(stdout);
        fprintf(stderr, "moefuse: B is worse than A by more than %g %%\n", threshold * 100);
    }
    return worse ? MF_EXIT_WORSE : MF_EXIT_OK;
}

int mf_bench_mode_compare(int argc, char **argv)
{
    compare_flags f = { 0 };
    const mf_flag rows[] = {
        { "compare", "--threshold", NULL, MF_FLAG_TEXT, &f.threshold, .argument = "SHARE",
          .help = "exit 3 when a metric of B is worse by more than this, as 5% (never)" },
        { "compare", "--force", NULL, MF_FLAG_BOOL, &f.force, .help = "compare unequal workloads too" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &f.json, .help = "one JSON document on stdout" },
        { "output", "--help", "-h", MF_FLAG_BOOL, &f.help, .help = "this text" },
    };
    const char *paths[2];
    int32_t num_paths;
    double threshold = NAN;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, sizeof rows / sizeof *rows, argc, argv, paths, 2, &num_paths, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.help) {
        printf("usage: moefuse bench compare A.json [B.json] [flags]\n\n"
               "Shows what changed from A to B: files of `moefuse bench`, of vLLM's or of SGLang's benchmark.  One "
               "file alone compares\n"
               "its fusion variants.  A change is better or worse when its 95 %% interval over rounds excludes zero "
               "(Welch), or, with a\n"
               "single round, when it is 1 %% or more.\n");
        mf_flags_help(rows, sizeof rows / sizeof *rows, stdout);
        return MF_EXIT_OK;
    }
    if (num_paths < 1) {
        mf_fail(&err, MF_ERR_INVALID, "bench compare: expected A.json and B.json, or one file with several variants");
        return mf_usage_error(&err);
    }
    if (f.threshold && parse_share("--threshold", f.threshold, &threshold, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    return compare_files(&f, paths, num_paths, threshold, &err);
}

typedef struct report_flags {
    const char *output, *title;
    bool help;
} report_flags;

static mf_status write_report(const report_flags *f, const char *const *paths, int32_t num_paths, mf_error *err)
{
    mf_result_set set;
    MF_TRY(mf_result_set_load(paths, num_paths, &set, err));
    mf_buffer html = { 0 };
    mf_status status = mf_report_make(&set, f->title, &html, err);
    mf_result_set_close(&set);
    FILE *out = NULL;
    if (status == MF_OK) {
        out = fopen(f->output, "we");
        status = out ? MF_OK : mf_fail(err, MF_ERR_IO, "--output %.400s: %s", f->output, strerror(errno));
    }
    if (out) {
        bool written = fwrite(html.data, 1, html.size, out) == html.size;
        if (fclose(out) != 0 || !written) {
            status = mf_fail(err, MF_ERR_IO, "--output %.400s: %s", f->output, strerror(errno));
        }
    }
    if (status == MF_OK) {
        fprintf(stderr, "wrote %s, %zu bytes\n", f->output, html.size);
    }
    mf_buffer_close(&html);
    return status;
}

int mf_bench_mode_report(int argc, char **argv)
{
    report_flags f = { .output = "report.html" };
    const mf_flag rows[] = {
        { "output", "--output", "-o", MF_FLAG_TEXT, &f.output, .argument = "FILE",
          .help = "the HTML file (report.html)" },
        { "output", "--title", NULL, MF_FLAG_TEXT, &f.title, .argument = "TEXT",
          .help = "its heading (the model's name)" },
        { "output", "--help", "-h", MF_FLAG_BOOL, &f.help, .help = "this text" },
    };
    const char *paths[MAX_FILES];
    int32_t num_paths;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, sizeof rows / sizeof *rows, argc, argv, paths, MAX_FILES, &num_paths, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.help) {
        printf("usage: moefuse bench report FILE... [-o report.html]\n\n"
               "Draws saved results of `moefuse bench serve` (or of vLLM's or SGLang's client) into one HTML file that "
               "needs nothing\n"
               "else: latency and throughput against concurrency, fusion variants in the same axes, expert load, "
               "tables.  Equal input\n"
               "gives equal bytes.\n");
        mf_flags_help(rows, sizeof rows / sizeof *rows, stdout);
        return MF_EXIT_OK;
    }
    if (num_paths < 1) {
        mf_fail(&err, MF_ERR_INVALID, "bench report: expected result files; got none");
        return mf_usage_error(&err);
    }
    if (write_report(&f, paths, num_paths, &err) != MF_OK) {
        mf_console_error(&err);
        return MF_EXIT_FAILED;
    }
    return MF_EXIT_OK;
}
