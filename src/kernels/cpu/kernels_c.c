/* kernels_c.c - the ladder's first rung: plain C for any machine. */
#include "kernels/cpu/cpu_kernels.h"

void mf_cpu_kernels_fill_c(mf_cpu_kernels *k)
{
    *k = (mf_cpu_kernels){ .isa = "c" };
}
