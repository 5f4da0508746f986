/* stats.c - see stats.h. */
#include "cli/stats.h"

#include <math.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void mf_sort_doubles(double *values, size_t count)
{
    if (count > 1) {
        qsort(values, count, sizeof *values, ascending);
    }
}

double mf_percentile(const double *sorted, size_t count, double percent)
{
    if (count == 0) {
        return 0;
    }
    double place = (double)(count - 1) * percent / 100;
    size_t below = (size_t)place;
    double next = sorted[below + 1 < count ? below + 1 : below];
    return sorted[below] + (next - sorted[below]) * (place - (double)below);
}

double mf_mean(const double *values, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += values[i];
    }
    return count ? sum / (double)count : 0;
}

static double squares(const double *values, size_t count)
{
    double mean = mf_mean(values, count), sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += (values[i] - mean) * (values[i] - mean);
    }
    return sum;
}

double mf_std(const double *values, size_t count)
{
    return count ? sqrt(squares(values, count) / (double)count) : 0;
}

double mf_sample_variance(const double *values, size_t count)
{
    return count > 1 ? squares(values, count) / (double)(count - 1) : 0;
}

double mf_t_quantile(double degrees)
{
    static const double table[] = { 12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004,
                                    2.262157,  2.228139, 2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905,
                                    2.109816,  2.100922, 2.093024, 2.085963, 2.079614, 2.073873, 2.068658, 2.063899,
                                    2.059539,  2.055529, 2.051831, 2.048407, 2.045230, 2.042272 };
    const size_t size = sizeof table / sizeof *table;
    if (!(degrees >= 1)) {
        return INFINITY;
    }
    if (degrees < (double)size + 1) { /* rounded down: the wider interval */
        return table[(size_t)degrees - 1];
    }
    /* Cornish and Fisher's expansion around the normal quantile; within 1e-5 from 31 degrees on. */
    const double z = 1.959963985, z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;
    return z + (z3 + z) / (4 * degrees) + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees * degrees) +
           (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees * degrees * degrees);
}

bool mf_difference_interval(const double *a, size_t num_a, const double *b, size_t num_b, mf_interval *out)
{
    if (num_a < 2 || num_b < 2) {
        return false;
    }
    double va = mf_sample_variance(a, num_a) / (double)num_a, vb = mf_sample_variance(b, num_b) / (double)num_b;
    double difference = mf_mean(b, num_b) - mf_mean(a, num_a), half = 0;
    if (va + vb > 0) {
        double degrees = (va + vb) * (va + vb) / (va * va / (double)(num_a - 1) + vb * vb / (double)(num_b - 1));
        /* Equal variances give n - 1 or 2n - 2 exactly; the division may miss them by its last bit. */
        half = mf_t_quantile(degrees + 1e-9) * sqrt(va + vb);
    }
    *out = (mf_interval){ difference - half, difference + half };
    return true;
}

mf_interval mf_wilson(double share, double count)
{
    if (count <= 0) {
        return (mf_interval){ 0, 1 };
    }
    const double z = 1.959963985;
    double centre = (share + z * z / (2 * count)) / (1 + z * z / count);
    double half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count);
    return (mf_interval){ centre - half < 0 ? 0 : centre - half, centre + half > 1 ? 1 : centre + half };
}
