/* bench_modes.h - the modes of `moefuse bench` and what those that run a model share. */
#ifndef MF_CLI_BENCH_MODES_H
#define MF_CLI_BENCH_MODES_H

#include "cli/cli.h"
#include "cli/session.h"

/* Arguments after the mode; each returns an exit code. */
int mf_bench_mode_kernels(int argc, char **argv);
int mf_bench_mode_latency(int argc, char **argv);
int mf_bench_mode_throughput(int argc, char **argv);
int mf_bench_mode_serve(int argc, char **argv);
int mf_bench_mode_compare(int argc, char **argv);
int mf_bench_mode_report(int argc, char **argv);

/* ---- running a model ---- */

typedef struct mf_bench_common {
    mf_model_flags model;
    bool json;
    const char *output_json;
    double temperature;
    int64_t input_len, output_len;
} mf_bench_common;

enum { MF_NUM_BENCH_COMMON_FLAGS = 5 + MF_NUM_MODEL_FLAGS };

/* Defaults and rows that both modes have; input and output length are the mode's. */
void mf_bench_common_fill(mf_bench_common *values, mf_flag *rows);

/* MODEL, dummy weights for a config.json alone, room for one sequence of the asked length, Ctrl-C. */
mf_status mf_bench_open(mf_bench_common *values, const char *const *positionals, int32_t num_positionals,
                        int64_t num_seqs, mf_session *session, int *exit_code, mf_error *err);

/* One sequence's random prompt: ids from the whole vocabulary, by seed. */
typedef struct mf_bench_requests {
    const mf_session *session;
    const mf_bench_common *common;
    uint64_t seed;
    int32_t *prompt; /* [input_len] */
    mf_event *events;
    int32_t max_events;
} mf_bench_requests;

mf_status mf_bench_requests_open(const mf_session *session, const mf_bench_common *common, mf_bench_requests *out,
                                 mf_error *err);
void mf_bench_requests_close(mf_bench_requests *requests);
/* Draws a prompt and queues it; MF_ERR_BUSY: the queue is full, and the next call submits the same prompt. */
mf_status mf_bench_submit_next(mf_bench_requests *requests, mf_error *err);

typedef struct mf_bench_tally {
    int64_t finished, first_tokens, tokens; /* so far */
    int64_t prompt_tokens;
    double last_first_token_s;    /* clock */
    int64_t tokens_at_last_first; /* made when the last sequence got its first one */
} mf_bench_tally;

/* One step of the engine and its events. */
mf_status mf_bench_step(mf_bench_requests *requests, mf_bench_tally *tally, mf_error *err);

void mf_bench_catch_interrupt(void); /* from here on Ctrl-C is what the next call tells */
bool mf_bench_interrupted(void);

/* {version, machine, isa, device, fusion, ...}: beside vLLM's keys. */
json_t *mf_bench_about(const mf_session *session, const mf_bench_common *common);
/* On stdout with --json, and into --output-json's file.  Releases the document. */
mf_status mf_bench_write_json(const mf_bench_common *common, json_t *document, mf_error *err);

#endif
