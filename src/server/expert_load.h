/* expert_load.h - how evenly the tokens of the last minute fell on the experts: a ring of snapshots, about one a
 * second.
 *
 * Memory is taken once, at open: at most 61 snapshots of 4 bytes per MoE layer and expert (DeepSeek-V3: 3.6 MB), and
 * never more than MF_EXPERT_LOAD_MAX_BYTES - a wider model gets fewer, longer intervals.  The low 32 bits of a count
 * are enough: differences of unsigned numbers are right as long as one expert gets fewer than 2^32 tokens within the
 * window. */
#ifndef MF_SERVER_EXPERT_LOAD_H
#define MF_SERVER_EXPERT_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "moefuse_engine.h"

enum { MF_EXPERT_LOAD_WINDOW_S = 60, MF_EXPERT_LOAD_MAX_BYTES = 32 << 20 };

typedef struct mf_expert_load {
    int32_t num_layers, num_experts; /* as mf_engine_stats counts them, dense layers included */
    int32_t num_rows;                /* MoE layers */
    int32_t *layer_rows;             /* [num_rows] the layer's place in the engine's counts; owned */
    int32_t num_slots, newest, num_taken;
    int64_t spacing_ns;
    uint32_t *counts;  /* [num_slots, num_rows, num_experts]; owned */
    int64_t *times_ns; /* [num_slots]; owned */
    int64_t *tokens;   /* [num_slots] rows that went through the model; owned */
    int64_t opened_ns;
} mf_expert_load;

/* is_moe [num_layers]. */
mf_status mf_expert_load_open(mf_expert_load *load, int32_t num_layers, const bool *is_moe, int32_t num_experts,
                              int64_t now_ns, mf_error *err);
void mf_expert_load_close(mf_expert_load *load);

/* Keeps these counts unless the newest ones are younger than about a second. */
void mf_expert_load_tick(mf_expert_load *load, const mf_engine_stats *stats, int64_t now_ns);

/* A stretch of time that ends now. */
typedef struct mf_load_window {
    int32_t slot;    /* of the snapshot at its beginning; -1: since the start */
    double window_s; /* its real length: the begin falls on a snapshot */
    int64_t tokens;
} mf_load_window;

/* The youngest snapshot at least `window_s` old, else the oldest there is; window_s 0: since the start. */
mf_load_window mf_expert_load_window(const mf_expert_load *load, const mf_engine_stats *stats, double window_s,
                                     int64_t now_ns);

/* Row `row`'s counts within the window into out[num_experts]; their sum. */
int64_t mf_expert_load_row(const mf_expert_load *load, const mf_engine_stats *stats, const mf_load_window *window,
                           int32_t row, int64_t *out);

/* (sum x)^2 / (E * sum x^2): 1 = even, 1/E = all on one.  NaN when there is no load. */
double mf_load_jain(const int64_t *counts, int32_t num_experts);
double mf_load_max_over_mean(const int64_t *counts, int32_t num_experts); /* 1 = even; NaN when there is no load */

#endif
