/* linear_fp8.cu - products of FP8 codes, e4m3 with a scale per block or row, through the tensor cores: codes are
 * widened to bf16, which holds them all, and meet inputs rounded to bf16.
 *
 * The order of sums, the same in both kernels: 128 columns from zero in eight steps of 16, times their scale onto the
 * run's sum, k ascending; RUNS runs of k, added up in order.  In which of its steps a column is met is a matter of
 * loads: lane t of four holds columns 16t .. 16t + 15 of each half of a block, four of them a step, of the weights and
 * of the inputs. */
#include <cuda_bf16.h>

#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/matrix.cuh"

namespace
{

constexpr int RUNS = 8, BLOCK = 128, STEPS = BLOCK / 16, WARPS = 8;

MF_DEV int run_start(int run, int blocks)
{
    return run * blocks / RUNS;
}

/* Four codes as two pairs of bf16. */
MF_DEV void widen(uint32_t codes, uint32_t &first, uint32_t &second)
{
    const uint32_t halves[2] = { e4m3_pair_to_f16(codes & 0xffffu), e4m3_pair_to_f16(codes >> 16) };
    uint32_t pairs[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float2 v = __half22float2(*(const __half2 *)&halves[i]);
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v.x, v.y);
        pairs[i] = *(const uint32_t *)&pair;
    }
    first = pairs[0];
    second = pairs[1];
}

MF_DEV uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* A lane's codes of a block: two rows, two halves. */
struct codes {
    uint4 low[2], high[2];
};

MF_DEV codes load_codes(const uint8_t *low, const uint8_t *high, int block, int t)
{
    codes c;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        c.low[j] = load_stream(low + block * BLOCK + j * 64 + t * 16);
        c.high[j] = load_stream(high + block * BLOCK + j * 64 + t * 16);
    }
    return c;
}

MF_DEV void widen_step(const codes &c, int s, uint32_t (&a)[4])
{
    widen(word_of(c.low[s / 4], s % 4), a[0], a[2]);
    widen(word_of(c.high[s / 4], s % 4), a[1], a[3]);
}

/* Sixteen rows from r0 on, as a lane sees them. */
template <int FORMAT> struct rows_of {
    const uint8_t *low, *high;
    int64_t low_scale, high_scale;

    MF_DEV_MEMBER rows_of at(const mf_cuda_matrix &m, int64_t r0, int g)
    {
        const int64_t a = min(r0 + g, m.n - 1), b = min(r0 + g + 8, m.n - 1);
        return { matrix_row<FORMAT>(m, a), matrix_row<FORMAT>(m, b), matrix_scale_row<FORMAT>(m, a),
                 matrix_scale_row<FORMAT>(m, b) };
    }
};

template <int FORMAT> MF_DEV float block_scale(const mf_cuda_matrix &m, int64_t scale_row, int block)
{
    return scale_at(m, scale_row + scale_column<FORMAT>(m, (int64_t)block * BLOCK));
}

MF_DEV void add_block(float (&sum)[4], const float (&block)[4], float low, float high)
{
    sum[0] = __fmaf_rn(block[0], low, sum[0]);
    sum[1] = __fmaf_rn(block[1], low, sum[1]);
    sum[2] = __fmaf_rn(block[2], high, sum[2]);
    sum[3] = __fmaf_rn(block[3], high, sum[3]);
}

MF_DEV int matrix_of(const mf_cuda_linear &p)
{
    int which = 0;
    while (which + 1 < p.num && blockIdx.x >= p.first_block[which + 1]) {
        which++;
    }
    return which;
}

MF_DEV void store(const mf_cuda_linear &p, int which, int64_t row, int64_t token, float v)
{
    if (row < p.w[which].n && token < p.num_tokens) {
        const float *bias = p.bias[which];
        p.out[which][token * p.out_stride[which] + row] = bias ? __fadd_rn(v, bias[row]) : v;
    }
}

/* ---- few tokens: sixteen rows a block, a run of k a warp ---- */

template <int FORMAT, int TILES>
__global__ void __launch_bounds__(WARPS * 32) few_kernel(const __grid_constant__ mf_cuda_linear p)
{
    constexpr int DEPTH = TILES <= 2 ? 4 : 2, TOKENS = TILES * 8; /* blocks that are on the way together */
    __shared__ float parts[RUNS][16][TOKENS + 1];
    let_next_start();
    const int which = matrix_of(p), lane = threadIdx.x & 31, run = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = ((int64_t)blockIdx.x - p.first_block[which]) * 16;
    const rows_of<FORMAT> rows = rows_of<FORMAT>::at(m, r0, g);
    const int blocks = (int)(m.k / BLOCK), end = run_start(run + 1, blocks);
    const uint16_t *x[TILES];
    float sum[TILES][4] = {};
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        x[i] = (const uint16_t *)p.x + min((int64_t)i * 8 + g, p.num_tokens - 1) * p.x_stride + t * 16;
    }
    bool waits = true;
    for (int b = run_start(run, blocks); b < end; b += DEPTH) {
        codes c[DEPTH];
        float low[DEPTH], high[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int block = min(b + d, end - 1);
            c[d] = load_codes(rows.low, rows.high, block, t);
            low[d] = block_scale<FORMAT>(m, rows.low_scale, block);
            high[d] = block_scale<FORMAT>(m, rows.high_scale, block);
        }
        if (waits) { /* weights are nobody's result */
            wait_for_previous();
            waits = false;
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (b + d >= end) {
                break;
            }
            float acc[TILES][4] = {};
#pragma unroll
            for (int j = 0; j < 2; j++) {
                uint32_t a[4][4];
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    widen_step(c[d], j * 4 + s, a[s]);
                }
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    const uint4 *from = (const uint4 *)(x[i] + (b + d) * BLOCK + j * 64);
                    const uint4 v[2] = { from[0], from[1] };
#pragma unroll
                    for (int s = 0; s < 4; s++) {
                        mma_bf16(acc[i], a[s][0], a[s][1], a[s][2], a[s][3], word_of(v[s / 2], s % 2 * 2),
                                 word_of(v[s / 2], s % 2 * 2 + 1));
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                add_block(sum[i], acc[i], low[d], high[d]);
            }
        }
    }
    if (waits) {
        wait_for_previous();
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            parts[run][g + e / 2 * 8][i * 8 + t * 2 + e % 2] = sum[i][e];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * TOKENS; i += WARPS * 32) {
        const int row = i % 16, token = i / 16;
        float v = 0.0f;
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            v = __fadd_rn(v, parts[r][row][token]);
        }
        store(p, which, r0 + row, token, v);
    }
}

/* ---- many: 128 rows and 64 tokens a block, the runs one after the other ---- */

constexpr int TILE_ROWS = WARPS * 16, TILE_TOKENS = 64, TILES = TILE_TOKENS / 8,
              GRANULES = BLOCK / 4; /* of four inputs */

/* Where granule i of a token lies: four tokens of a tile at one granule fall into other banks. */
MF_DEV int granule_at(int token, int i)
{
    return token * GRANULES + (i ^ (token & 3));
}

MF_DEV void fetch_inputs(uint2 *to, const mf_cuda_linear &p, int64_t t0, int block)
{
#pragma unroll
    for (int k = 0; k < TILE_TOKENS * GRANULES / (WARPS * 32); k++) {
        const int at = k * WARPS * 32 + threadIdx.x, token = at / GRANULES, i = at % GRANULES;
        const uint16_t *row = (const uint16_t *)p.x + min(t0 + token, p.num_tokens - 1) * p.x_stride;
        copy_8_async(to + granule_at(token, i), row + block * BLOCK + i * 4);
    }
    copy_commit();
}

template <int FORMAT>
__global__ void __launch_bounds__(WARPS * 32) tile_kernel(const __grid_constant__ mf_cuda_linear p)
{
    __shared__ uint2 inputs[2][TILE_TOKENS * GRANULES];
    begin_early();
    const int which = matrix_of(p), lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = ((int64_t)blockIdx.x - p.first_block[which]) * TILE_ROWS + warp * 16;
    const int64_t t0 = (int64_t)blockIdx.y * TILE_TOKENS;
    const rows_of<FORMAT> rows = rows_of<FORMAT>::at(m, r0, g);
    const int blocks = (int)(m.k / BLOCK);
    float all[TILES][4] = {}, sum[TILES][4] = {};
    int run = 0;
    codes next = load_codes(rows.low, rows.high, 0, t);
    fetch_inputs(inputs[0], p, t0, 0);
    for (int b = 0; b < blocks; b++) {
        const codes c = next;
        const float low = block_scale<FORMAT>(m, rows.low_scale, b), high = block_scale<FORMAT>(m, rows.high_scale, b);
        if (b + 1 < blocks) {
            next = load_codes(rows.low, rows.high, b + 1, t);
            fetch_inputs(inputs[(b + 1) & 1], p, t0, b + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const uint2 *x = inputs[b & 1];
        float acc[TILES][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            uint32_t a[4];
            widen_step(c, s, a);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const uint2 v = x[granule_at(i * 8 + g, s / 4 * 16 + t * 4 + s % 4)];
                mma_bf16(acc[i], a[0], a[1], a[2], a[3], v.x, v.y);
            }
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            add_block(sum[i], acc[i], low, high);
        }
        while (run_start(run + 1, blocks) <= b) { /* past runs without a block, whose zeros change nothing */
            run++;
        }
        if (b + 1 == run_start(run + 1, blocks)) {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    all[i][e] = __fadd_rn(all[i][e], sum[i][e]);
                    sum[i][e] = 0.0f;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            store(p, which, r0 + g + e / 2 * 8, t0 + i * 8 + t * 2 + e % 2, all[i][e]);
        }
    }
}

template <typename Kernel>
int launch(Kernel kernel, const mf_cuda_linear &call, int64_t rows, int64_t tokens, void *stream)
{
    mf_cuda_linear p = call;
    int64_t blocks = 0;
    for (int i = 0; i < p.num; i++) {
        p.first_block[i] = blocks;
        blocks += (p.w[i].n + rows - 1) / rows;
    }
    p.first_block[p.num] = blocks;
    const dim3 grid((unsigned)blocks, (unsigned)((p.num_tokens + tokens - 1) / tokens));
    const stretch weights = weights_of(p);
    return launch_streaming(mf_cuda_starts_early != 0, weights.base, weights.bytes, kernel, grid, WARPS * 32, (size_t)0,
                            stream, p);
}

template <int FORMAT> int launch_format(const mf_cuda_linear &p, void *stream)
{
    const int64_t tokens = p.num_tokens;
    return tokens <= 8    ? launch(few_kernel<FORMAT, 1>, p, 16, 8, stream)
           : tokens <= 16 ? launch(few_kernel<FORMAT, 2>, p, 16, 16, stream)
           : tokens <= 32 ? launch(few_kernel<FORMAT, 4>, p, 16, 32, stream)
                          : launch(tile_kernel<FORMAT>, p, TILE_ROWS, TILE_TOKENS, stream);
}

} // namespace

int mf_cuda_launch_linear_fp8(const mf_cuda_linear *call, void *stream)
{
    return call->w[0].format == MF_FORMAT_FP8_BLOCK ? launch_format<MF_FORMAT_FP8_BLOCK>(*call, stream)
                                                    : launch_format<MF_FORMAT_FP8_CHANNEL>(*call, stream);
}
