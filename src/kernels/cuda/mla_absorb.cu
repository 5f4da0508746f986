/* mla_absorb.cu - MLA's queries into the latent space through the tensor cores, for attention_mla.cu: bf16 rows of
 * W_UK, queries as two bf16 numbers each, so that 16 bits of them count.
 *
 * The j are cut into quarters, steps of 16 in each: high parts, then low ones, into one sum; quarters are added in
 * order. Few rows and many share this, so a row's bits do not depend on the batch. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/attention_mma.cuh"

namespace
{

constexpr int QUARTERS = 4, COLUMNS = 64;

/* A pair of a query's elements as what bf16 holds of them and of the rest. */
MF_DEV void split_pair(float2 v, uint32_t &high, uint32_t &low)
{
    high = pack_bf16(v.x, v.y);
    low = pack_bf16(__fsub_rn(v.x, __uint_as_float(high << 16)), __fsub_rn(v.y, __uint_as_float(high & 0xffff0000u)));
}

MF_DEV void store_pair(const mf_cuda_absorb &p, int64_t at, float low, float high)
{
    *(uint32_t *)(p.rounded + at) = pack_query(low, high, p.scale);
}

/* ---- few rows ---- */

constexpr int FEW_TOKENS = 8;

/* A block takes a head, eight rows and 64 columns, a warp a quarter of the j.  Weights are the 16-row operand as they
 * come from memory: 16 bytes of a lane are eight columns, in four products. */
template <int STEPS>
__global__ void __launch_bounds__(32 * QUARTERS) few_kernel(const __grid_constant__ mf_cuda_absorb p)
{
    __shared__ float sums[QUARTERS][FEW_TOKENS][COLUMNS + 4];
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, head = blockIdx.y;
    const int64_t t0 = (int64_t)blockIdx.x * FEW_TOKENS, t = t0 + g;
    const int j0 = warp * STEPS * 16;
    const uint16_t *from = (const uint16_t *)p.kv_b.data +
                           ((int64_t)head * (p.nope + p.v_dim) + j0 + 2 * q) * p.kv_b.row_stride +
                           blockIdx.z * COLUMNS + 8 * g;
    uint4 rows[STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            rows[s][i] = load_stream(from + (s * 16 + i / 2 * 8 + i % 2) * p.kv_b.row_stride);
        }
    }
    wait_for_previous();
    const float *query = p.q + (t < p.num_tokens ? t : t0) * p.q_stride + head * p.q_head_stride + j0 + 2 * q;
    float acc[4][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        uint32_t high[2], low[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            split_pair(*(const float2 *)(query + s * 16 + i * 8), high[i], low[i]);
        }
#pragma unroll
        for (int w = 0; w < 4; w++) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = __byte_perm(word_of(rows[s][i / 2 * 2], w), word_of(rows[s][i / 2 * 2 + 1], w),
                                   i % 2 ? 0x7632 : 0x5410);
            }
            mma_bf16(acc[w], a[0], a[1], a[2], a[3], high[0], high[1]);
            mma_bf16(acc[w], a[0], a[1], a[2], a[3], low[0], low[1]);
        }
    }
#pragma unroll
    for (int w = 0; w < 4; w++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            *(float2 *)&sums[warp][2 * q + i][8 * g + 2 * w] = make_float2(acc[w][i], acc[w][2 + i]);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < FEW_TOKENS * COLUMNS / 2 / (32 * QUARTERS); i++) {
        const int at = i * 32 * QUARTERS + threadIdx.x, token = at / (COLUMNS / 2), column = at % (COLUMNS / 2) * 2;
        float2 v = *(const float2 *)&sums[0][token][column];
#pragma unroll
        for (int w = 1; w < QUARTERS; w++) {
            const float2 next = *(const float2 *)&sums[w][token][column];
            v = make_float2(__fadd_rn(v.x, next.x), __fadd_rn(v.y, next.y));
        }
        if (t0 + token < p.num_tokens) {
            store_pair(p, ((t0 + token) * p.num_heads + head) * p.rank + blockIdx.z * COLUMNS + column, v.x, v.y);
        }
    }
}

/* ---- many rows ---- */

constexpr int WARPS = 8, MANY_TOKENS = 16 * WARPS;

/* A block takes a head and 128 rows, which are the 16-row operand: a warp's 16 stay in registers while columns of
 * weights pass, 64 at a time. */
template <int STEPS> __global__ void __launch_bounds__(32 * WARPS) many_kernel(const __grid_constant__ mf_cuda_absorb p)
{
    constexpr int NOPE = STEPS * 16 * QUARTERS, CHUNKS = COLUMNS / 8;
    extern __shared__ __align__(128) uint4 weights[]; /* 2 x [NOPE][CHUNKS] */
    begin_early();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, head = blockIdx.y;
    const int64_t t0 = (int64_t)blockIdx.x * MANY_TOKENS + warp * 16;
    const uint16_t *from = (const uint16_t *)p.kv_b.data + (int64_t)head * (p.nope + p.v_dim) * p.kv_b.row_stride;
    auto copy = [&](int c) {
        uint4 *to = weights + c % 2 * NOPE * CHUNKS;
#pragma unroll
        for (int i = 0; i < NOPE * CHUNKS / (32 * WARPS); i++) {
            const int at = i * 32 * WARPS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
            copy_async(to + place<CHUNKS>(row, chunk), from + row * p.kv_b.row_stride + c * COLUMNS + chunk * 8, true);
        }
        copy_commit();
    };
    copy(0);
    uint32_t high[STEPS * QUARTERS][4], low[STEPS * QUARTERS][4];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int64_t t = t0 + g + 8 * e;
        const float *query = p.q + (t < p.num_tokens ? t : 0) * p.q_stride + head * p.q_head_stride + 2 * q;
#pragma unroll
        for (int s = 0; s < STEPS * QUARTERS; s++) {
            split_pair(*(const float2 *)(query + s * 16), high[s][e], low[s][e]);
            split_pair(*(const float2 *)(query + s * 16 + 8), high[s][2 + e], low[s][2 + e]);
        }
    }
    const int columns = p.rank / COLUMNS;
#pragma unroll 1
    for (int c = 0; c < columns; c++) {
        if (c + 1 < columns) {
            copy(c + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const uint4 *rows = weights + c % 2 * NOPE * CHUNKS;
#pragma unroll 1
        for (int n = 0; n < CHUNKS; n += 2) {
            float total[2][4];
#pragma unroll
            for (int w = 0; w < QUARTERS; w++) {
                float acc[2][4] = {};
#pragma unroll
                for (int i = 0; i < STEPS; i++) {
                    const int s = w * STEPS + i;
                    uint32_t b[4];
                    load_transposed(b, rows + place<CHUNKS>(s * 16 + (lane & 15), n + (lane >> 4)));
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        mma_bf16(acc[k], high[s][0], high[s][1], high[s][2], high[s][3], b[2 * k], b[2 * k + 1]);
                        mma_bf16(acc[k], low[s][0], low[s][1], low[s][2], low[s][3], b[2 * k], b[2 * k + 1]);
                    }
                }
#pragma unroll
                for (int k = 0; k < 2; k++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        total[k][i] = w == 0 ? acc[k][i] : __fadd_rn(total[k][i], acc[k][i]);
                    }
                }
            }
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int64_t t = t0 + g + 8 * e;
                if (t < p.num_tokens) {
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        store_pair(p, (t * p.num_heads + head) * p.rank + c * COLUMNS + (n + k) * 8 + 2 * q,
                                   total[k][2 * e], total[k][2 * e + 1]);
                    }
                }
            }
        }
        __syncthreads(); /* before this half is overwritten */
    }
}

template <int STEPS> int launch(const mf_cuda_absorb &p, void *stream)
{
    const unsigned tokens = (unsigned)p.num_tokens, heads = (unsigned)p.num_heads;
    if (p.num_tokens <= 64) {
        want_all_shared(few_kernel<STEPS>);
        return launch_early(few_kernel<STEPS>,
                            dim3((tokens + FEW_TOKENS - 1) / FEW_TOKENS, heads, (unsigned)(p.rank / COLUMNS)),
                            32 * QUARTERS, (size_t)0, stream, p);
    }
    constexpr size_t BYTES = 2 * (size_t)STEPS * 16 * QUARTERS * COLUMNS * 2;
    return launch_shared(mf_cuda_starts_early != 0, many_kernel<STEPS>,
                         dim3((tokens + MANY_TOKENS - 1) / MANY_TOKENS, heads), 32 * WARPS, BYTES, stream, p);
}

} // namespace

int mf_cuda_launch_absorb_mma(const mf_cuda_absorb *call, void *stream)
{
    switch (call->nope) {
    case 64:
        return launch<1>(*call, stream);
    case 128:
        return launch<2>(*call, stream);
    default:
        return launch<3>(*call, stream);
    }
}
