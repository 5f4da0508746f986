/* expert_load.c - see expert_load.h. */
#include "server/expert_load.h"

#include <math.h>
#include <string.h>

#include "base/sys.h"

static const int64_t second_ns = 1000000000;

mf_status mf_expert_load_open(mf_expert_load *load, int32_t num_layers, const bool *is_moe, int32_t num_experts,
                              int64_t now_ns, mf_error *err)
{
    *load = (mf_expert_load){ .num_layers = num_layers, .num_experts = num_experts, .opened_ns = now_ns };
    for (int32_t i = 0; i < num_layers; i++) {
        load->num_rows += is_moe[i];
    }
    if (load->num_rows == 0 || num_experts == 0) {
        load->num_rows = 0;
        return MF_OK;
    }
    size_t slot_bytes;
    if (!mf_mul_ok((size_t)load->num_rows * sizeof(uint32_t), (size_t)num_experts, &slot_bytes)) {
        return mf_fail(err, MF_ERR_LIMIT, "expert load: %d layers of %d experts are too many", load->num_rows,
                       num_experts);
    }
    int64_t fitting = (int64_t)((size_t)MF_EXPERT_LOAD_MAX_BYTES / slot_bytes);
    load->num_slots = (int32_t)(fitting > MF_EXPERT_LOAD_WINDOW_S + 1 ? MF_EXPERT_LOAD_WINDOW_S + 1
                                : fitting < 2                         ? 2
                                                                      : fitting);
    load->spacing_ns = MF_EXPERT_LOAD_WINDOW_S * second_ns / (load->num_slots - 1);
    load->layer_rows = mf_alloc_array((size_t)load->num_rows, sizeof *load->layer_rows);
    load->counts = mf_alloc_array((size_t)load->num_slots, slot_bytes);
    load->times_ns = mf_alloc_array((size_t)load->num_slots, sizeof *load->times_ns);
    load->tokens = mf_alloc_array((size_t)load->num_slots, sizeof *load->tokens);
    if (!load->layer_rows || !load->counts || !load->times_ns || !load->tokens) {
        mf_expert_load_close(load);
        return mf_fail(err, MF_ERR_NOMEM, "expert load: out of memory for %d snapshots", MF_EXPERT_LOAD_WINDOW_S + 1);
    }
    int32_t row = 0;
    for (int32_t i = 0; i < num_layers; i++) {
        if (is_moe[i]) {
            load->layer_rows[row++] = i;
        }
    }
    /* The first snapshot is the start itself: all zero. */
    load->times_ns[0] = now_ns;
    load->num_taken = 1;
    return MF_OK;
}

void mf_expert_load_close(mf_expert_load *load)
{
    mf_free(load->layer_rows);
    mf_free(load->counts);
    mf_free(load->times_ns);
    mf_free(load->tokens);
    *load = (mf_expert_load){ 0 };
}

/* The engine's counts of one MoE layer, or NULL when it has none of that shape (yet). */
static const int64_t *engine_row(const mf_expert_load *load, const mf_engine_stats *stats, int32_t row)
{
    if (!stats || !stats->expert_load || stats->num_layers != load->num_layers ||
        stats->num_experts != load->num_experts) {
        return NULL;
    }
    return stats->expert_load + (int64_t)load->layer_rows[row] * load->num_experts;
}

static uint32_t *slot_row(const mf_expert_load *load, int32_t slot, int32_t row)
{
    return load->counts + ((size_t)slot * (size_t)load->num_rows + (size_t)row) * (size_t)load->num_experts;
}

void mf_expert_load_tick(mf_expert_load *load, const mf_engine_stats *stats, int64_t now_ns)
{
    /* A timer that comes a little early still counts as its second. */
    if (load->num_rows == 0 || !engine_row(load, stats, 0) ||
        now_ns - load->times_ns[load->newest] < load->spacing_ns - load->spacing_ns / 8) {
        return;
    }
    int32_t slot = (load->newest + 1) % load->num_slots;
    for (int32_t row = 0; row < load->num_rows; row++) {
        const int64_t *from = engine_row(load, stats, row);
        uint32_t *to = slot_row(load, slot, row);
        for (int32_t e = 0; e < load->num_experts; e++) {
            to[e] = (uint32_t)from[e];
        }
    }
    load->times_ns[slot] = now_ns;
    load->tokens[slot] = stats->computed_tokens;
    load->newest = slot;
    load->num_taken += load->num_taken < load->num_slots;
}

mf_load_window mf_expert_load_window(const mf_expert_load *load, const mf_engine_stats *stats, double window_s,
                                     int64_t now_ns)
{
    int64_t tokens_now = stats ? stats->computed_tokens : 0;
    mf_load_window w = { .slot = -1, .window_s = (double)(now_ns - load->opened_ns) / 1e9, .tokens = tokens_now };
    if (load->num_rows == 0 || window_s <= 0) {
        return w;
    }
    int64_t begin_ns = now_ns - (int64_t)(window_s * 1e9);
    for (int32_t i = 0; i < load->num_taken; i++) {
        w.slot = (load->newest - i + load->num_slots) % load->num_slots;
        if (load->times_ns[w.slot] <= begin_ns) {
            break;
        }
    }
    w.window_s = (double)(now_ns - load->times_ns[w.slot]) / 1e9;
    w.tokens = tokens_now - load->tokens[w.slot];
    return w;
}

int64_t mf_expert_load_row(const mf_expert_load *load, const mf_engine_stats *stats, const mf_load_window *window,
                           int32_t row, int64_t *out)
{
    const int64_t *now = engine_row(load, stats, row);
    int64_t sum = 0;
    if (!now) {
        memset(out, 0, (size_t)load->num_experts * sizeof *out);
        return 0;
    }
    const uint32_t *then = window->slot >= 0 ? slot_row(load, window->slot, row) : NULL;
    for (int32_t e = 0; e < load->num_experts; e++) {
        out[e] = then ? (int64_t)((uint32_t)now[e] - then[e]) : now[e];
        sum += out[e];
    }
    return sum;
}

double mf_load_jain(const int64_t *counts, int32_t num_experts)
{
    double sum = 0, squares = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        sum += (double)counts[e];
        squares += (double)counts[e] * (double)counts[e];
    }
    return squares > 0 ? sum * sum / (num_experts * squares) : NAN;
}

double mf_load_max_over_mean(const int64_t *counts, int32_t num_experts)
{
    double sum = 0, most = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        sum += (double)counts[e];
        most = (double)counts[e] > most ? (double)counts[e] : most;
    }
    return sum > 0 ? most * num_experts / sum : NAN;
}
