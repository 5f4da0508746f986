/* linear_few.cu - linear.cu's products of bf16 weights for some tokens, more than linear_ring.cu's: FEW streams the
 * weights once past all of them, with TILE's bits. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/product.cuh"

namespace
{

/* ---- FEW: 16 rows a block, a run of k a warp ---- */

/* A lane's 16-byte chunk of four becomes its operands of two steps of 16 columns: chunks 0 and 1 meet in the first, 2
 * and 3 in the second.  Lane q has words 2 * (q / 2) and the next of chunk q % 2 in both. */
MF_DEV void share_chunks(uint4 &v, int q)
{
    const bool is_low = q < 2;
    const uint32_t a = __shfl_xor_sync(MF_FULL_WARP, is_low ? v.z : v.x, 2);
    const uint32_t b = __shfl_xor_sync(MF_FULL_WARP, is_low ? v.w : v.y, 2);
    v = is_low ? make_uint4(v.x, v.y, a, b) : make_uint4(a, b, v.z, v.w);
}

/* The same words of a row of x: half a unit from `half` on. */
MF_DEV uint4 share_of(const uint8_t *half, int q)
{
    const uint2 first = *(const uint2 *)(half + (q & 1) * 16 + (q >> 1) * 8),
                second = *(const uint2 *)(half + 32 + (q & 1) * 16 + (q >> 1) * 8);
    return make_uint4(first.x, first.y, second.x, second.y);
}

/* A block takes TILES * 8 tokens, whose planes are read from device memory.  Kernels are kept short: between the
 * products of a step their code is fetched anew. */
template <int TILES, int RUNS, int PARTS>
__global__ void __launch_bounds__(32 * RUNS, RUNS == 16 || TILES > 2 ? 1
                                             : PARTS == 1            ? 3
                                                          : 2) few_kernel(const __grid_constant__ mf_cuda_linear p)
{
    constexpr int AHEAD = RUNS == 8 ? 2 : 4; /* units whose loads are under way together */
    __shared__ float sums[RUNS][TILES * 8][17];
    const int which = matrix_of(p, blockIdx.x), lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2,
              q = lane & 3;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = (blockIdx.x - p.first_block[which]) * 16, num_rows = p.num_batches > 0 ? p.rows : m.n;
    const int64_t row0 = r0 + (p.num_batches > 0 ? blockIdx.z * p.batch_rows + p.first_row : 0);
    const int64_t x_at = p.num_batches > 0 ? blockIdx.z * p.x_step : 0;
    const int units = (int)(m.k / 64), start = run_start(warp, units, RUNS), end = run_start(warp + 1, units, RUNS);
    const uint8_t *low = r0 + g < num_rows ? m.data + ((row0 + g) * m.row_stride + q * 8) * 2 : NULL;
    const uint8_t *high = r0 + g + 8 < num_rows ? m.data + ((row0 + g + 8) * m.row_stride + q * 8) * 2 : NULL;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 l[AHEAD][2], h[AHEAD][2];
    auto load_weights = [&](int slot, int u) {
        const int64_t at = (int64_t)u * UNIT_BYTES;
        if (u < end) {
            l[slot][0] = low ? load_stream(low + at) : zero;
            l[slot][1] = low ? load_stream(low + at + 64) : zero;
            h[slot][0] = high ? load_stream(high + at) : zero;
            h[slot][1] = high ? load_stream(high + at + 64) : zero;
        }
    };
    let_next_start();
#pragma unroll
    for (int i = 0; i < AHEAD; i++) { /* nobody writes weights: they need not wait for what comes before */
        load_weights(i, start + i);
    }
    wait_for_previous();
    const int64_t pitch = p.x_stride * 2, plane = p.x_plane * 2;
    const int64_t t0 = (int64_t)blockIdx.y * TILES * 8, num_tokens = p.num_tokens - t0;
    const uint8_t *x = (const uint8_t *)((const uint16_t *)p.x + x_at + t0 * p.x_stride);
    float acc[TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
    }
    for (int u0 = start; u0 < end; u0 += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (u0 + i < end) {
                uint4 low_chunks[2] = { l[i][0], l[i][1] }, high_chunks[2] = { h[i][0], h[i][1] };
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    share_chunks(low_chunks[k], q);
                    share_chunks(high_chunks[k], q);
                }
                load_weights(i, u0 + i + AHEAD);
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
#pragma unroll
                    for (int n = 0; n < TILES; n++) {
                        const int64_t t = n * 8 + g;
                        const uint8_t *unit = x + part * plane + t * pitch + (int64_t)(u0 + i) * UNIT_BYTES;
                        token_chunk<MF_CUDA_PATH_BF16> first, second;
                        first.v[0] = t < num_tokens ? share_of(unit, q) : zero;
                        second.v[0] = t < num_tokens ? share_of(unit + 64, q) : zero;
                        add_half<MF_CUDA_PATH_BF16>(acc[n], low_chunks[0], high_chunks[0], first);
                        add_half<MF_CUDA_PATH_BF16>(acc[n], low_chunks[1], high_chunks[1], second);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        sums[warp][n * 8 + 2 * q][g] = acc[n][0];
        sums[warp][n * 8 + 2 * q + 1][g] = acc[n][1];
        sums[warp][n * 8 + 2 * q][g + 8] = acc[n][2];
        sums[warp][n * 8 + 2 * q + 1][g + 8] = acc[n][3];
    }
    __syncthreads();
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
    for (int i = threadIdx.x; i < TILES * 8 * 16; i += 32 * RUNS) {
        const int t = i >> 4, r = i & 15;
        if (t < num_tokens && r0 + r < num_rows) {
            float v = 0.0f;
#pragma unroll
            for (int s = 0; s < RUNS; s++) {
                v = __fadd_rn(v, sums[s][t][r]);
            }
            out[(t0 + t) * p.out_stride[which] + r0 + r] = p.bias[which] ? __fadd_rn(v, p.bias[which][r0 + r]) : v;
        }
    }
}

template <int TILES, int RUNS, int PARTS> int launch_few_of(const mf_cuda_linear &p, cudaStream_t stream)
{
    const dim3 grid((unsigned)p.first_block[p.num], (unsigned)((p.num_tokens + TILES * 8 - 1) / (TILES * 8)),
                    p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    return launch_early(few_kernel<TILES, RUNS, PARTS>, grid, 32u * RUNS, (size_t)0, stream, p);
}

template <int TILES> int launch_few(const mf_cuda_linear &p, cudaStream_t stream)
{
    return p.runs == 8    ? p.parts == 1 ? launch_few_of<TILES, 8, 1>(p, stream) : launch_few_of<TILES, 8, 3>(p, stream)
              : p.parts == 1 ? launch_few_of<TILES, 16, 1>(p, stream)
                          : launch_few_of<TILES, 16, 3>(p, stream);
}

} // namespace

int mf_cuda_launch_linear_few(const mf_cuda_linear *call, void *stream)
{
    const mf_cuda_linear p = cut(call, 16);
    cudaStream_t s = (cudaStream_t)stream;
    return p.num_tokens <= 16 ? launch_few<2>(p, s) : launch_few<4>(p, s);
}
