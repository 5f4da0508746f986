/* result_set.h - saved benchmark results, grouped: runs of one setting are rounds of each other.  Reads what `moefuse
 * bench`, vLLM's client and SGLang's (JSON lines) write, under vLLM's names. */
#ifndef MF_CLI_RESULT_SET_H
#define MF_CLI_RESULT_SET_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef enum mf_result_kind {
    MF_RESULT_SERVE = 0,
    MF_RESULT_LATENCY,
    MF_RESULT_THROUGHPUT,
    MF_NUM_RESULT_KINDS
} mf_result_kind;

typedef struct mf_metric {
    const char *key, *title; /* "median_ttft_ms", "Median TTFT (ms)" */
    bool more_is_better;
    const char *other_key; /* SGLang's name where it differs; else NULL */
} mf_metric;

const mf_metric *mf_metrics_of(mf_result_kind kind, size_t *count);

typedef struct mf_result_group {
    mf_result_kind kind;
    const char *variant; /* "fused"; "" when the file does not say */
    double concurrency;  /* 0 = no limit */
    double rate;         /* infinite: all at once */
    const json_t **runs; /* [num_runs] */
    int32_t num_runs;
} mf_result_group;

typedef struct mf_result_set {
    json_t *documents;
    mf_result_group *groups; /* in order of variants' first appearance, then concurrency, then rate */
    int32_t num_groups;
    const char *variants[16]; /* in order of first appearance */
    int32_t num_variants;
} mf_result_set;

/* Several files make one set.  A file with no result in it is refused by name. */
mf_status mf_result_set_load(const char *const *paths, int32_t num_paths, mf_result_set *out, mf_error *err);
/* The same from documents; takes the list. */
mf_status mf_result_set_make(json_t *documents, const char *name, mf_result_set *out, mf_error *err);
void mf_result_set_close(mf_result_set *set);

const mf_result_group *mf_result_set_find(const mf_result_set *set, const char *variant, double concurrency,
                                          double rate);

/* One value per round; latencies of `bench latency` count as rounds.  values has room for `capacity`. */
size_t mf_result_values(const mf_result_group *group, const mf_metric *metric, double *values, size_t capacity);
double mf_result_number(const json_t *run, const char *key, const char *other_key); /* NaN when it is not there */

/* Why the two did not do the same work; false: they did. */
bool mf_result_workloads_differ(const mf_result_group *a, const mf_result_group *b, char *why, size_t size);

#endif
