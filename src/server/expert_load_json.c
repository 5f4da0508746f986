/* expert_load_json.c - the body of GET /v1/moe/expert-load. */
#include <inttypes.h>
#include <math.h>

#include "base/sys.h"
#include "server/metrics.h"
#include "server/metrics_impl.h"

enum { NUM_EXTREMES = 5 };

/* The experts with most (or, sign -1, least) tokens, best first, ties to the lower id. */
static int32_t extremes(const int64_t *counts, int32_t n, int64_t sign, int32_t *ids)
{
    int32_t found = 0;
    for (int32_t e = 0; e < n; e++) {
        int32_t at = found;
        while (at > 0 && sign * counts[ids[at - 1]] < sign * counts[e]) {
            at--;
        }
        if (at == NUM_EXTREMES) {
            continue;
        }
        found += found < NUM_EXTREMES;
        for (int32_t i = found - 1; i > at; i--) {
            ids[i] = ids[i - 1];
        }
        ids[at] = e;
    }
    return found;
}

static mf_status write_list32(mf_buffer *out, const char *key, const int32_t *values, int32_t n)
{
    MF_TRY(mf_buffer_printf(out, ", \"%s\": [", key));
    for (int32_t i = 0; i < n; i++) {
        MF_TRY(mf_buffer_printf(out, "%s%d", i ? ", " : "", values[i]));
    }
    return mf_buffer_append_text(out, "]");
}

static mf_status write_ratio(mf_buffer *out, const char *key, double value)
{
    if (isnan(value)) {
        return mf_buffer_printf(out, ", \"%s\": null", key);
    }
    return mf_buffer_printf(out, ", \"%s\": %.6g", key, value);
}

static mf_status write_layer(const mf_metrics *m, int32_t row, int64_t tokens, mf_buffer *out)
{
    const int64_t *counts = m->is.row_counts;
    int32_t n = m->is.load.num_experts, layer = m->is.load.layer_rows[row], ids[NUM_EXTREMES];
    MF_TRY(mf_buffer_printf(out, "{\"layer\": %d, \"mode\": \"%s\", \"routed\": [", m->is.layer_ids[layer],
                            m->is.layer_modes[layer]));
    for (int32_t e = 0; e < n; e++) {
        MF_TRY(mf_buffer_printf(out, "%s%" PRId64, e ? ", " : "", counts[e]));
    }
    MF_TRY(mf_buffer_append_text(out, "], \"shared\": ["));
    for (int32_t e = 0; e < m->is.num_shared; e++) {
        MF_TRY(mf_buffer_printf(out, "%s%" PRId64, e ? ", " : "", tokens));
    }
    MF_TRY(mf_buffer_append_text(out, "]"));
    MF_TRY(write_ratio(out, "jain", mf_load_jain(counts, n)));
    MF_TRY(write_ratio(out, "max_over_mean", mf_load_max_over_mean(counts, n)));
    MF_TRY(write_list32(out, "top", ids, extremes(counts, n, 1, ids)));
    MF_TRY(write_list32(out, "bottom", ids, extremes(counts, n, -1, ids)));
    return mf_buffer_append_text(out, "}");
}

mf_status mf_metrics_write_expert_load(const mf_metrics *metrics, const mf_service_snapshot *snapshot, int32_t window_s,
                                       int32_t layer, mf_buffer *out)
{
    const mf_engine_stats *stats = snapshot ? &snapshot->stats : NULL;
    int32_t seconds = window_s > MF_EXPERT_LOAD_WINDOW_S ? MF_EXPERT_LOAD_WINDOW_S : window_s;
    mf_load_window window = mf_expert_load_window(&metrics->is.load, stats, seconds, mf_now_ns());
    bool found = false;
    MF_TRY(mf_buffer_printf(out,
                            "{\"window_s\": %.3f, \"tokens\": %" PRId64 ", \"bad_rows\": %" PRId64 ", \"layers\": [",
                            window.window_s, window.tokens, stats ? stats->num_bad_rows : 0));
    for (int32_t row = 0; row < metrics->is.load.num_rows; row++) {
        if (layer >= 0 && metrics->is.layer_ids[metrics->is.load.layer_rows[row]] != layer) {
            continue;
        }
        mf_expert_load_row(&metrics->is.load, stats, &window, row, metrics->is.row_counts);
        MF_TRY(mf_buffer_append_text(out, found ? ",\n" : "\n"));
        MF_TRY(write_layer(metrics, row, window.tokens, out));
        found = true;
    }
    if (layer >= 0 && !found) {
        return MF_ERR_INVALID;
    }
    return mf_buffer_append_text(out, found ? "\n]}\n" : "]}\n");
}
