/* linear_input.cuh - what the kernels of dense products share: whose block it is, runs of k, inputs as planes of bf16.
 */
#ifndef MF_KERNELS_CUDA_LINEAR_INPUT_CUH
#define MF_KERNELS_CUDA_LINEAR_INPUT_CUH

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/sm90.cuh"

MF_DEV int matrix_of(const mf_cuda_linear &p, int64_t block)
{
    int i = 0;
    while (i + 1 < p.num && block >= p.first_block[i + 1]) {
        i++;
    }
    return i;
}

/* Blocks of `rows` rows of each matrix. */
static inline mf_cuda_linear cut(const mf_cuda_linear *call, int rows)
{
    mf_cuda_linear p = *call;
    int64_t blocks = 0;
    for (int i = 0; i < p.num; i++) {
        p.first_block[i] = blocks;
        blocks += ((p.num_batches > 0 ? p.rows : p.w[i].n) + rows - 1) / rows;
    }
    p.first_block[p.num] = blocks;
    return p;
}

/* What a row's sum becomes. */
MF_DEV float finish_row(const mf_cuda_linear &p, int which, int64_t row, float sum)
{
    const float v = p.row_scale[which] ? __fmul_rn(sum, p.row_scale[which][row]) : sum;
    return p.bias[which] ? __fadd_rn(v, p.bias[which][row]) : v;
}

/* Where the weights of a launch lie that an access policy holds for: all, with what is between them, or the largest
 * matrix or its first part. */
struct stretch {
    const uint8_t *base;
    size_t bytes;
};

static inline stretch weights_of(const mf_cuda_linear &p)
{
    const uintptr_t most = (uintptr_t)p.most_window;
    uintptr_t low = UINTPTR_MAX, high = 0, largest = 0, largest_bytes = 0;
    for (int i = 0; i < p.num; i++) {
        const uintptr_t base = (uintptr_t)p.w[i].data,
                        bytes = (uintptr_t)(p.w[i].n * p.w[i].row_stride * p.element_bits / 8);
        low = base < low ? base : low;
        high = base + bytes > high ? base + bytes : high;
        largest = bytes > largest_bytes ? base : largest;
        largest_bytes = bytes > largest_bytes ? bytes : largest_bytes;
    }
    if (high - low <= most) {
        return { (const uint8_t *)low, (size_t)(high - low) };
    }
    return { (const uint8_t *)largest, (size_t)(largest_bytes < most ? largest_bytes : most) };
}

/* First unit of run `run` of a matrix whose k is cut into `runs`. */
MF_DEV int run_start(int run, int units, int runs)
{
    return (int)((int64_t)run * units / runs);
}

/* x = high + middle + low: three bf16 numbers hold the 24 bits of an f32; what is no number goes into the first. */
MF_DEV void split_bf16(float x, float (&part)[3])
{
    part[0] = bf16_to_f32(f32_to_bf16(x));
    const bool is_number = (__float_as_uint(part[0]) & 0x7f800000u) != 0x7f800000u;
    const float rest = is_number ? __fsub_rn(x, part[0]) : 0.0f;
    part[1] = bf16_to_f32(f32_to_bf16(rest));
    part[2] = __fsub_rn(rest, part[1]);
}

/* Two neighbours as a word of each plane. */
template <int PARTS> MF_DEV void split_pair(uint32_t (&words)[PARTS], float x, float y)
{
    if constexpr (PARTS == 1) {
        words[0] = pack_bf16(x, y);
    } else {
        float of_x[3], of_y[3];
        split_bf16(x, of_x);
        split_bf16(y, of_y);
#pragma unroll
        for (int n = 0; n < PARTS; n++) {
            words[n] = pack_bf16(of_x[n], of_y[n]);
        }
    }
}

#endif
