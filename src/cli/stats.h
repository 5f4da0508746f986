/* stats.h - the few statistics that bench and eval state: numpy's percentiles, intervals over rounds, Wilson's
 * interval. */
#ifndef MF_CLI_STATS_H
#define MF_CLI_STATS_H

#include <stdbool.h>
#include <stddef.h>

void mf_sort_doubles(double *values, size_t count);
/* Of ascending values, between the two nearest as numpy.percentile does it; 0 for none.  percent 0..100. */
double mf_percentile(const double *sorted, size_t count, double percent);
double mf_mean(const double *values, size_t count);            /* 0 for none */
double mf_std(const double *values, size_t count);             /* of the population, as numpy.std */
double mf_sample_variance(const double *values, size_t count); /* over count - 1; 0 below two */

/* Two-sided 95 % quantile of Student's t; infinite below one degree of freedom. */
double mf_t_quantile(double degrees);

typedef struct mf_interval {
    double low, high;
} mf_interval;

/* Welch's 95 % interval of mean(b) - mean(a).  false: fewer than two values on a side. */
bool mf_difference_interval(const double *a, size_t num_a, const double *b, size_t num_b, mf_interval *out);
/* Wilson's 95 % interval of a share. */
mf_interval mf_wilson(double share, double count);

#endif
