/* metrics_names.h - what each metric is called, what it means, and the buckets of the histograms: tables, no code that
 * counts.
 *
 * Names and buckets are vLLM's where it has them, because dashboards key on them. */
#ifndef MF_SERVER_METRICS_NAMES_H
#define MF_SERVER_METRICS_NAMES_H

#include <stdint.h>

#include "server/metrics.h"

enum { MF_MAX_BUCKETS = 64 };

typedef struct mf_histogram_name {
    const char *name, *help;
    const double *buckets; /* ascending; NULL: 1, 2, 5, 10, 20, 50, ... up to max_model_len */
    int32_t num_buckets;
} mf_histogram_name;

extern const mf_histogram_name mf_histogram_names[MF_NUM_HISTOGRAMS];

/* The upper bounds of a histogram into out[MF_MAX_BUCKETS]; their number. */
int32_t mf_histogram_bounds(mf_histogram_id id, int64_t max_model_len, double *out);

/* Reasons for which a request ends, as the label says them; the last one stands for all others. */
enum { MF_NUM_FINISHED_REASONS = 6 };
extern const char *const mf_finished_reason_labels[MF_NUM_FINISHED_REASONS];
int32_t mf_finished_reason_index(const char *reason);

extern const char *const mf_reject_labels[MF_NUM_REJECTS];
extern const char *const mf_cancel_labels[MF_NUM_CANCELS];

#endif
