/* metrics.c - opening and counting: see metrics.h. */
#include "server/metrics.h"

#include <math.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "server/metrics_impl.h"

/* A label's value as the text format wants it; bytes that are not UTF-8 become '?'. */
static char *label_value(const char *text)
{
    text = text ? text : "";
    size_t n = strlen(text);
    bool valid = mf_utf8_valid(text, n, NULL);
    char *out = n > SIZE_MAX / 2 - 1 ? NULL : mf_alloc(2 * n + 1), *p = out;
    for (size_t i = 0; out && i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\n' || c == '"' || c == '\\') {
            *p++ = '\\';
            *p++ = c == '\n' ? 'n' : (char)c;
        } else {
            *p++ = c >= 0x80 && !valid ? '?' : (char)c;
        }
    }
    if (out) {
        *p = '\0';
    }
    return out;
}

static const char *known_mode(const char *mode)
{
    static const char *const modes[] = { "slot", "overlap", "serial", "none" };
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcasecmp(mode, modes[i]) == 0) {
            return modes[i];
        }
    }
    return "other";
}

static void close_description(mf_metrics_description *m)
{
    mf_free(m->model_name);
    mf_free(m->version);
    mf_free(m->commit);
    mf_free(m->isa);
    mf_free(m->device);
    mf_free(m->layer_modes);
    mf_free(m->layer_ids);
    mf_free(m->row_counts);
    mf_expert_load_close(&m->load);
}

/* Fills a zeroed *m. */
static mf_status open_description(mf_metrics_description *m, const mf_metrics_options *o, mf_error *err)
{
    int32_t num_layers = o->num_layers > 0 ? o->num_layers : 0;
    m->num_shared = o->num_shared;
    m->per_expert = o->per_expert;
    m->model_name = label_value(o->model_name);
    m->version = label_value(o->version);
    m->commit = label_value(o->commit);
    m->isa = label_value(o->isa);
    m->device = label_value(o->device);
    m->layer_modes = mf_alloc_array((size_t)num_layers + 1, sizeof *m->layer_modes);
    m->layer_ids = mf_alloc_array((size_t)num_layers + 1, sizeof *m->layer_ids);
    m->row_counts = mf_alloc_array((size_t)(o->num_experts > 0 ? o->num_experts : 0) + 1, sizeof *m->row_counts);
    bool *is_moe = mf_alloc_array((size_t)num_layers + 1, sizeof *is_moe);
    mf_status status = MF_OK;
    if (!m->model_name || !m->version || !m->commit || !m->isa || !m->device || !m->layer_modes || !m->layer_ids ||
        !m->row_counts || !is_moe) {
        status = mf_fail(err, MF_ERR_NOMEM, "metrics: out of memory");
    }
    for (int32_t i = 0; status == MF_OK && i < num_layers; i++) {
        is_moe[i] = o->layer_modes && o->layer_modes[i];
        m->layer_modes[i] = is_moe[i] ? known_mode(o->layer_modes[i]) : NULL;
        m->layer_ids[i] = o->layer_ids ? o->layer_ids[i] : i;
    }
    if (status == MF_OK) {
        status = mf_expert_load_open(&m->load, num_layers, is_moe, o->num_experts, mf_now_ns(), err);
    }
    mf_free(is_moe);
    if (status != MF_OK) {
        close_description(m);
    }
    return status;
}

static void open_histogram(mf_histogram *h, mf_histogram_id id, int64_t max_model_len)
{
    *h = (mf_histogram){ 0 };
    h->num_bounds = mf_histogram_bounds(id, max_model_len, h->bounds);
}

mf_status mf_metrics_open(const mf_metrics_options *options, mf_metrics **out, mf_error *err)
{
    *out = NULL;
    mf_metrics *m = mf_alloc_zero(sizeof *m);
    if (!m) {
        return mf_fail(err, MF_ERR_NOMEM, "metrics: out of memory");
    }
    mf_status status = open_description(&m->is, options, err);
    if (status != MF_OK) {
        mf_free(m);
        return status;
    }
    for (int id = 0; id < MF_NUM_HISTOGRAMS; id++) {
        open_histogram(&m->histograms[id], (mf_histogram_id)id, options->max_model_len);
    }
    mf_process_stats_open(&m->process);
    *out = m;
    return MF_OK;
}

mf_status mf_metrics_describe(mf_metrics *m, const mf_metrics_options *options, mf_error *err)
{
    mf_metrics_description fresh = { 0 };
    MF_TRY(open_description(&fresh, options, err));
    close_description(&m->is);
    m->is = fresh;
    for (int id = 0; id < MF_NUM_HISTOGRAMS; id++) {
        if (!mf_histogram_names[id].buckets) {
            open_histogram(&m->histograms[id], (mf_histogram_id)id, options->max_model_len);
        }
    }
    return MF_OK;
}

void mf_metrics_close(mf_metrics **metrics)
{
    mf_metrics *m = *metrics;
    if (m) {
        close_description(&m->is);
        mf_process_stats_close(&m->process);
        mf_free(m);
        *metrics = NULL;
    }
}

void mf_metrics_observe(mf_metrics *metrics, mf_histogram_id id, double value)
{
    mf_histogram *h = &metrics->histograms[id];
    if (isnan(value)) {
        return; /* would spoil the sum for ever */
    }
    int32_t low = 0, high = h->num_bounds; /* the first bound that is not below the value */
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (h->bounds[middle] < value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    h->counts[low]++;
    h->sum += value;
}

void mf_metrics_finished(mf_metrics *metrics, const char *finished_reason)
{
    metrics->finished[mf_finished_reason_index(finished_reason ? finished_reason : "")]++;
}

void mf_metrics_rejected(mf_metrics *metrics, mf_reject_reason reason)
{
    metrics->rejected[reason]++;
}

void mf_metrics_cancelled(mf_metrics *metrics, mf_cancel_cause cause)
{
    metrics->cancelled[cause]++;
}

void mf_metrics_answered(mf_metrics *metrics, int http_status)
{
    if (http_status >= 100 && http_status < MF_MAX_HTTP_STATUS) {
        metrics->answered[http_status]++;
    }
}

void mf_metrics_tick(mf_metrics *metrics, const mf_service_snapshot *snapshot, int64_t now_ns)
{
    if (snapshot) {
        mf_expert_load_tick(&metrics->is.load, &snapshot->stats, now_ns);
    }
}
