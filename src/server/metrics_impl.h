/* metrics_impl.h - what an mf_metrics holds: metrics.c counts into it, metrics_write.c and expert_load_json.c read it.
 */
#ifndef MF_SERVER_METRICS_IMPL_H
#define MF_SERVER_METRICS_IMPL_H

#include "server/expert_load.h"
#include "server/metrics_names.h"
#include "server/process_stats.h"

enum { MF_MAX_HTTP_STATUS = 600 };

typedef struct mf_histogram {
    double bounds[MF_MAX_BUCKETS];
    int64_t counts[MF_MAX_BUCKETS + 1]; /* per bucket, not cumulative; the last one is +Inf's */
    int32_t num_bounds;
    double sum;
} mf_histogram;

/* What mf_metrics_describe replaces. */
typedef struct mf_metrics_description {
    /* Label values, escaped; owned */
    char *model_name, *version, *commit, *isa, *device;
    int32_t num_shared;
    bool per_expert;
    const char **layer_modes; /* [num_layers] one of a closed list, NULL = dense; owned */
    int32_t *layer_ids;       /* [num_layers]; owned */
    mf_expert_load load;
    int64_t *row_counts; /* [num_experts] scratch of the writers; owned */
} mf_metrics_description;

struct mf_metrics {
    mf_metrics_description is;
    mf_histogram histograms[MF_NUM_HISTOGRAMS];
    int64_t finished[MF_NUM_FINISHED_REASONS], rejected[MF_NUM_REJECTS], cancelled[MF_NUM_CANCELS];
    int64_t answered[MF_MAX_HTTP_STATUS];
    mf_process_stats process;
};

#endif
