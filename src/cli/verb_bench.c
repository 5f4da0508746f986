/* verb_bench.c - `moefuse bench MODE`: finds the mode. */
#include <stdio.h>
#include <string.h>

#include "cli/bench_modes.h"

typedef struct bench_mode {
    const char *name, *summary;
    int (*main)(int argc, char **argv);
} bench_mode;

static const bench_mode modes[] = {
    { "kernels", "one operation at a time, at models' shapes, beside the machine's ceilings", mf_bench_mode_kernels },
    { "latency", "one batch of sequences from prompt to last token", mf_bench_mode_latency },
    { "throughput", "many prompts through the scheduler", mf_bench_mode_throughput },
    { "serve", "a server as its clients meet it: rates, concurrency, fusion on and off in turn", mf_bench_mode_serve },
    { "compare", "two saved results: change, interval, verdict", mf_bench_mode_compare },
    { "report", "saved results as one HTML file", mf_bench_mode_report },
};
enum { NUM_MODES = sizeof modes / sizeof *modes };

static void print_help(FILE *out)
{
    fprintf(out, "usage: moefuse bench MODE [flags]\n\nmodes:\n");
    for (size_t i = 0; i < NUM_MODES; i++) {
        fprintf(out, "  %-10s  %s\n", modes[i].name, modes[i].summary);
    }
    fprintf(out, "\n`moefuse bench MODE --help` lists a mode's flags.\n");
}

int mf_verb_bench(int argc, char **argv)
{
    for (size_t i = 0; mf_flags_listing && i < NUM_MODES; i++) {
        char command[64];
        snprintf(command, sizeof command, "bench %s", modes[i].name);
        mf_flags_listing->command = command;
        modes[i].main(0, argv);
    }
    if (mf_flags_listing) {
        return MF_EXIT_OK;
    }
    if (argc < 1 || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0) {
        print_help(argc < 1 ? stderr : stdout);
        return argc < 1 ? MF_EXIT_USAGE : MF_EXIT_OK;
    }
    const char *names[NUM_MODES];
    for (size_t i = 0; i < NUM_MODES; i++) {
        if (strcmp(argv[0], modes[i].name) == 0) {
            return modes[i].main(argc - 1, argv + 1);
        }
        names[i] = modes[i].name;
    }
    mf_error err = { 0 };
    const char *near = mf_nearest_name(argv[0], names, NUM_MODES);
    if (near) {
        mf_fail(&err, MF_ERR_INVALID, "bench: unknown mode \"%.64s\"; did you mean \"%s\"?", argv[0], near);
    } else {
        mf_fail(&err, MF_ERR_INVALID, "bench: unknown mode \"%.64s\"; known: kernels, latency, throughput, serve, compare, report", argv[0]);
    }
    return mf_usage_error(&err);
}
