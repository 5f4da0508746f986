/* bench_compare.h - two results beside each other: change, its interval over rounds, and a verdict. */
#ifndef MF_CLI_BENCH_COMPARE_H
#define MF_CLI_BENCH_COMPARE_H

#include <stdio.h>

#include "cli/result_set.h"

typedef struct mf_compared {
    const mf_metric *metric;
    double a, b;         /* means over rounds */
    double change;       /* (b - a) / a */
    bool has_interval;   /* both sides have two rounds or more */
    double low, high;    /* 95 %, of the change */
    const char *verdict; /* "better", "worse", "same" */
} mf_compared;

/* Without an interval, less than this is "same". */
#define MF_COMPARE_NOTHING 0.01

/* false: one side does not have the metric. */
bool mf_compare_metric(const mf_result_group *a, const mf_result_group *b, const mf_metric *metric, mf_compared *out);

typedef struct mf_compare_options {
    const char *name_a, *name_b;
    double threshold; /* NaN: none */
    bool force;
} mf_compare_options;

/* Compares every group of a with its like in b and prints a table per group, or (document not NULL) fills a JSON
 * object. b NULL: variants of `a`, the first against each other one.  *worse: a metric is worse by more than the
 * threshold. */
mf_status mf_compare(const mf_result_set *a, const mf_result_set *b, const mf_compare_options *options, FILE *out,
                     json_t *document, bool *worse, mf_error *err);

#endif
