/* products_neon_dotprod.c - int8 inputs with SDOT: sixteen products an instruction. */
#include "kernels/cpu/neon.h"

INLINE int32x4_t dot_codes(int32x4_t acc, int8x16_t w, int8x16_t x)
{
    return vdotq_s32(acc, w, x);
}

#include "kernels/cpu/codes_neon.h"

void mf_cpu_kernels_fill_neon_dotprod(mf_cpu_kernels *k)
{
    k->isa = "neon_dotprod";
    fill_codes(k);
}
