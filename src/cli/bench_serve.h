/* bench_serve.h - the parts of `moefuse bench serve`: what is asked for, and the runs that it takes. */
#ifndef MF_CLI_BENCH_SERVE_H
#define MF_CLI_BENCH_SERVE_H

#include "cli/bench_load.h"
#include "cli/bench_result.h"
#include "cli/model_flags.h"

enum { MF_MAX_SWEEP = 32, MF_MAX_VARIANTS = 3, MF_MAX_ROUNDS = 100 };

/* One way to run the same model. */
typedef struct mf_serve_variant {
    const char *name;
    bool separate_shared, separate_gate; /* --disable-shared-experts-fusion, --disable-fused-gate */
} mf_serve_variant;

/* "on", "off", "both", "gate", "all": what they mean, in the order in which they take turns. */
int32_t mf_serve_variants(const char *fusion, mf_serve_variant out[MF_MAX_VARIANTS]);

typedef struct mf_serve_bench {
    mf_model_flags model;
    const mf_flag *model_rows;
    const char *base_url, *api_key, *backend, *served_model_name, *tokenizer, *label, *fusion;
    const char *dataset_name, *dataset_path;
    int64_t input_len, output_len, prefix_len, file_output_len, num_prompts, num_warmups, rounds;
    double range_ratio, request_rate, burstiness, temperature; /* temperature NaN: not sent */
    int64_t levels[MF_MAX_SWEEP];                              /* of concurrency; 0 = no limit */
    int32_t num_levels;
    bool ignore_eos, save_detailed, json;
    const char *result_file; /* NULL: nothing is saved */
    char date[32];
    mf_bench_metrics_options metrics;

    /* found out */
    char model_id[257];
    const char *tokenizer_id;
    mf_tokenizer *tok;  /* NULL: none was given */
    int64_t vocab_size; /* above 0: the model has no tokenizer, random prompts are ids below it */
    json_t *flags;     /* what was asked, for the results */
} mf_serve_bench;

/* Runs everything that was asked and returns the results, one object per run, in *results (a new list, also after a
 * failure with what was made until then). */
mf_status mf_serve_bench_run(mf_serve_bench *bench, json_t **results, mf_error *err);
/* The shortest words for several runs: a line per level and variant, medians over rounds, and the changes between
 * variants. */
void mf_serve_summary_print(FILE *out, const json_t *results);

#endif
