/* kernels_avx2.c - AVX2, FMA and F16C. */
#include "kernels/cpu/cpu_kernels.h"

void mf_cpu_kernels_fill_avx2(mf_cpu_kernels *k)
{
    (void)k;
}
