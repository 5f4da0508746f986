/* linear_codes.cu - products of integer codes, INT4_GROUP and INT8_CHANNEL, with inputs rounded to bf16, on Hopper.
 *
 * A matrix counts as one of bf16: codes of 4 bits, less their zero point and times their scale, rounded once; codes of
 * 8 bits as they are, with the row's scale times the sum.  The order of sums is linear.cu's, so the bits are those of
 * products of that bf16 matrix, for any number of tokens.  FEW, of up to 16: 16 rows a block, a run of k a warp, whose
 * codes are on their way to registers before the kernel in front has ended, or have become bf16 in shared memory by
 * then. For many tokens the matrix is widened in memory, for the products of bf16; in between there are
 * linear_codes_ring.cu and linear_codes_wgmma.cu.
 *
 * A lane loads chunks, 16 bytes of two rows: 32 or 16 columns that follow one another.  An instruction is given 16
 * columns that follow one another, four a lane: the four lanes of a row hand each other words. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_codes.cuh"

namespace
{

/* ---- FEW ---- */

constexpr int ROWS = 16;

/* A lane's chunk becomes its words of the four chunks: its columns 4q .. 4q + 3 of each 16.  4 bits: those of a chunk's
 * first 16 in a word's first and third byte, so that codes 0 and 4, 1 and 5 are of one instruction. */
template <int KIND> MF_DEV void share_chunk(uint32_t (&w)[4], const uint4 &v, int q)
{
    if (kind_of<KIND>::IS_8BIT) {
        w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    } else {
        w[0] = __byte_perm(v.x, v.z, 0x5140);
        w[1] = __byte_perm(v.x, v.z, 0x7362);
        w[2] = __byte_perm(v.y, v.w, 0x5140);
        w[3] = __byte_perm(v.y, v.w, 0x7362);
    }
    transpose(w, q);
}

/* Four columns of a token as an instruction's operand, in the order in which codes are widened. */
template <int KIND> MF_DEV uint2 in_order(uint2 v)
{
    return kind_of<KIND>::IS_8BIT ? v : make_uint2(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632));
}

template <int KIND> MF_DEV uint2 columns_of(const void *x, bool is_f32, int64_t at)
{
    constexpr bool IN_ORDER = kind_of<KIND>::IS_8BIT;
    if (is_f32) {
        const float4 v = *(const float4 *)((const float *)x + at);
        return IN_ORDER ? make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w))
                        : make_uint2(pack_bf16(v.x, v.z), pack_bf16(v.y, v.w));
    }
    return in_order<KIND>(*(const uint2 *)((const uint16_t *)x + at));
}

/* TILES of eight tokens.  UNIFORM: the four lanes' chunks of a row are of one group. */
template <int KIND, int RUNS, int TILES, bool UNIFORM>
__global__ void __launch_bounds__(32 * RUNS, RUNS == 8 ? 3 : 1) few_kernel(const __grid_constant__ mf_cuda_linear p)
{
    using kind = kind_of<KIND>;
    constexpr int BLOCK = kind::BLOCK, CHUNK = kind::CHUNK, TOKENS = TILES * 8, BLOCKS = 256 / BLOCK;
    __shared__ float parts[RUNS][ROWS][TOKENS + 1];
    const int which = matrix_of(p, blockIdx.x), lane = threadIdx.x & 31, run = threadIdx.x >> 5, g = lane >> 2,
              q = lane & 3;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = (blockIdx.x - p.first_block[which]) * ROWS;
    const int units = (int)(m.k / 64), start = run_start(run, units, RUNS) * 64,
              end = run_start(run + 1, units, RUNS) * 64;
    const int64_t rows[2] = { min(r0 + g, m.n - 1), min(r0 + g + 8, m.n - 1) };
    const uint8_t *const codes[2] = { matrix_row<kind::FORMAT>(m, rows[0]), matrix_row<kind::FORMAT>(m, rows[1]) };
    scale_row<KIND> scales[2] = {};
    if constexpr (!kind::IS_8BIT) {
        scales[0] = scale_row<KIND>::at(m, rows[0]);
        scales[1] = scale_row<KIND>::at(m, rows[1]);
    }
    int64_t x_at[TILES];
    float sum[TILES][4] = {};
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        x_at[i] = min((int64_t)i * 8 + g, p.num_tokens - 1) * p.x_stride + q * 4;
    }
    let_next_start();
    bool waits = true;
#pragma unroll 1
    for (int c0 = start; c0 < end; c0 += 256) {
        held_codes<KIND, BLOCKS> held;
        held_codes<KIND, BLOCKS>::load(held, (int)m.k, scales, codes, c0, end, q);
        if (waits) { /* weights are nobody's result */
            wait_for_previous();
            waits = false;
        }
#pragma unroll
        for (int d = 0; d < BLOCKS; d++) {
            const int at = c0 + d * BLOCK;
            if (at >= end) {
                break;
            }
            uint32_t w[2][4];
            share_chunk<KIND>(w[0], held.v[d][0], q);
            share_chunk<KIND>(w[1], held.v[d][1], q);
#pragma unroll
            for (int lender = 0; lender < 4; lender++) {
                const int column = at + lender * CHUNK;
                if (lender == 2 && column >= end) { /* runs are of whole 64 columns */
                    break;
                }
                uint32_t a[2][2 * kind::STEPS];
                widen_chunk<KIND, UNIFORM>(a, held.groups[d], lender, w[0][lender], w[1][lender]);
#pragma unroll
                for (int s = 0; s < kind::STEPS; s++) {
#pragma unroll
                    for (int i = 0; i < TILES; i++) {
                        const uint2 b = columns_of<KIND>(p.x, p.x_is_f32, x_at[i] + column + s * 16);
                        mma_bf16(sum[i], a[0][2 * s], a[1][2 * s], a[0][2 * s + 1], a[1][2 * s + 1], b.x, b.y);
                    }
                }
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
            parts[run][g + e / 2 * 8][i * 8 + q * 2 + e % 2] = sum[i][e];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * TOKENS; i += 32 * RUNS) {
        const int64_t row = r0 + i % ROWS, t = i / ROWS;
        float v = 0.0f;
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            v = __fadd_rn(v, parts[r][i % ROWS][i / ROWS]);
        }
        if (row < m.n && t < p.num_tokens) {
            if (kind::IS_8BIT) {
                v = __fmul_rn(v, scale_at(m, matrix_scale_row<kind::FORMAT>(m, row)));
            }
            p.out[which][t * p.out_stride[which] + row] = p.bias[which] ? __fadd_rn(v, p.bias[which][row]) : v;
        }
    }
}

/* FEW of one token in bf16, and of runs of up to 256 columns: weights have become bf16 in shared memory, where each
 * lane finds its own, before the kernel in front has ended.  Half of a multiprocessor's registers and some of its
 * shared memory are left to the blocks of the kernel behind. */
constexpr int HELD = 256, STEPS = HELD / 16;

template <int KIND, int RUNS, bool UNIFORM>
__global__ void __launch_bounds__(32 * RUNS, 32 / RUNS) early_kernel(const __grid_constant__ mf_cuda_linear p)
{
    using kind = kind_of<KIND>;
    constexpr int BLOCKS = HELD / kind::BLOCK;
    extern __shared__ uint4 operands[]; /* [run][step][lane] */
    __shared__ float parts[RUNS][ROWS][8 + 1];
    const int which = matrix_of(p, blockIdx.x), lane = threadIdx.x & 31, run = threadIdx.x >> 5, g = lane >> 2,
              q = lane & 3;
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = (blockIdx.x - p.first_block[which]) * ROWS;
    const int units = (int)(m.k / 64), start = run_start(run, units, RUNS) * 64,
              end = run_start(run + 1, units, RUNS) * 64;
    uint4 *own = operands + run * (STEPS * 32) + lane;
    let_next_start();
    {
        const int64_t rows[2] = { min(r0 + g, m.n - 1), min(r0 + g + 8, m.n - 1) };
        const uint8_t *const codes[2] = { matrix_row<kind::FORMAT>(m, rows[0]), matrix_row<kind::FORMAT>(m, rows[1]) };
        scale_row<KIND> scales[2] = {};
        if constexpr (!kind::IS_8BIT) {
            scales[0] = scale_row<KIND>::at(m, rows[0]);
            scales[1] = scale_row<KIND>::at(m, rows[1]);
        }
        held_codes<KIND, BLOCKS> held; /* weights are nobody's result */
        held_codes<KIND, BLOCKS>::load(held, (int)m.k, scales, codes, start, end, q);
#pragma unroll
        for (int d = 0; d < BLOCKS; d++) {
            uint32_t w[2][4];
            share_chunk<KIND>(w[0], held.v[d][0], q);
            share_chunk<KIND>(w[1], held.v[d][1], q);
#pragma unroll
            for (int lender = 0; lender < 4; lender++) {
                uint32_t a[2][2 * kind::STEPS];
                widen_chunk<KIND, UNIFORM>(a, held.groups[d], lender, w[0][lender], w[1][lender]);
#pragma unroll
                for (int s = 0; s < kind::STEPS; s++) {
                    own[((d * 4 + lender) * kind::STEPS + s) * 32] =
                        make_uint4(a[0][2 * s], a[1][2 * s], a[0][2 * s + 1], a[1][2 * s + 1]);
                }
            }
        }
    }
    wait_for_previous();
    float sum[4] = {};
    /* All of x is on its way before the first of it is needed. */
    const uint16_t *x = (const uint16_t *)p.x + min((int64_t)g, p.num_tokens - 1) * p.x_stride + q * 4;
    uint2 columns[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        columns[s] = __ldcg((const uint2 *)(x + min(start + s * 16, (int)m.k - 16)));
    }
#pragma unroll
    for (int unit = 0; unit < STEPS / 4; unit++) {
        if (start + unit * 64 < end) { /* runs are of whole 64 columns */
#pragma unroll
            for (int s = unit * 4; s < unit * 4 + 4; s++) {
                const uint4 a = own[s * 32];
                const uint2 b = in_order<KIND>(columns[s]);
                mma_bf16(sum, a.x, a.y, a.z, a.w, b.x, b.y);
            }
        }
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        parts[run][g + e / 2 * 8][q * 2 + e % 2] = sum[e];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * 8; i += 32 * RUNS) {
        const int64_t row = r0 + i % ROWS, t = i / ROWS;
        if (row < m.n && t < p.num_tokens) {
            float v = 0.0f;
#pragma unroll
            for (int r = 0; r < RUNS; r++) {
                v = __fadd_rn(v, parts[r][i % ROWS][i / ROWS]);
            }
            if (kind::IS_8BIT) {
                v = __fmul_rn(v, scale_at(m, matrix_scale_row<kind::FORMAT>(m, row)));
            }
            p.out[which][t * p.out_stride[which] + row] = p.bias[which] ? __fadd_rn(v, p.bias[which][row]) : v;
        }
    }
}

template <int KIND, int RUNS, bool UNIFORM> int launch_early_kernel(const mf_cuda_linear &p, void *stream)
{
    const auto kernel = early_kernel<KIND, RUNS, UNIFORM>;
    want_all_shared(kernel);
    const stretch weights = weights_of(p);
    return launch_streaming(mf_cuda_starts_early != 0, weights.base, weights.bytes, kernel,
                            dim3((unsigned)p.first_block[p.num]), 32u * RUNS, (size_t)(RUNS * STEPS * 512), stream, p);
}

template <int KIND, int RUNS, bool UNIFORM> int launch_few(const mf_cuda_linear &p, void *stream)
{
    if (p.num_tokens == 1 && !p.x_is_f32 && p.w[0].k <= RUNS * HELD) {
        return launch_early_kernel<KIND, RUNS, UNIFORM>(p, stream);
    }
    const auto kernel = p.num_tokens <= 8 ? few_kernel<KIND, RUNS, 1, UNIFORM> : few_kernel<KIND, RUNS, 2, UNIFORM>;
    const stretch weights = weights_of(p);
    return launch_streaming(mf_cuda_starts_early != 0, weights.base, weights.bytes, kernel,
                            dim3((unsigned)p.first_block[p.num]), 32u * RUNS, (size_t)0, stream, p);
}

/* ---- the matrix in memory ---- */

constexpr int THREADS = 256, EACH = 4;

/* Eight codes a thread at a time. */
template <int KIND>
__global__ void __launch_bounds__(THREADS) widen_kernel(const __grid_constant__ mf_cuda_widen_call p)
{
    using kind = kind_of<KIND>;
    constexpr int BYTES = kind::IS_8BIT ? 8 : 4;
    const mf_cuda_matrix &m = p.w[blockIdx.y];
    const uint32_t eights = (uint32_t)m.k / 8, count = (uint32_t)m.n * eights,
                   first = blockIdx.x * (THREADS * EACH) + threadIdx.x;
    let_next_start();
    if (blockIdx.x * (THREADS * EACH) >= count) {
        wait_for_previous();
        return;
    }
    uint32_t words[EACH][BYTES / 4];
    packed_scale<kind::IS_8BIT ? MF_CUDA_PACKED_INT4 : KIND> scale[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t at = min(first + i * THREADS, count - 1), row = at / eights, column = (at - row * eights) * 8;
        const uint8_t *from = matrix_row<kind::FORMAT>(m, row) + column * BYTES / 8;
        if constexpr (kind::IS_8BIT) {
            const uint2 v = *(const uint2 *)from;
            words[i][0] = v.x;
            words[i][1] = v.y;
        } else {
            words[i][0] = *(const uint32_t *)from;
            scale[i] = expand(load_group<KIND>(scale_row<KIND>::at(m, row), column), packed_scale<KIND>());
        }
    }
    wait_for_previous(); /* who read there before */
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t at = first + i * THREADS;
        uint4 v;
        if constexpr (kind::IS_8BIT) {
            wide_codes<KIND>::widen(words[i][0], v.x, v.y);
            wide_codes<KIND>::widen(words[i][1], v.z, v.w);
        } else {
            uint32_t pairs[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                pairs[k] = packed_scale<KIND>::template widen<true>(scale[i], words[i][0], k);
            }
            v = make_uint4(__byte_perm(pairs[0], pairs[1], 0x5410), __byte_perm(pairs[2], pairs[3], 0x5410),
                           __byte_perm(pairs[0], pairs[1], 0x7632), __byte_perm(pairs[2], pairs[3], 0x7632));
        }
        if (at < count) {
            *(uint4 *)(p.out[blockIdx.y] + (size_t)at * 8) = v;
            if (kind::IS_8BIT && at % eights == 0) {
                const uint32_t row = at / eights;
                p.scale[blockIdx.y][row] = scale_at(m, matrix_scale_row<kind::FORMAT>(m, row));
            }
        }
    }
}

} // namespace

int mf_cuda_launch_linear_codes(const mf_cuda_linear *call, int kind, void *stream)
{
    const mf_cuda_linear p = cut(call, ROWS);
    return with_uniform_kind(p, kind, [&](auto k, auto uniform) {
        constexpr int KIND = decltype(k)::value;
        constexpr bool UNIFORM = decltype(uniform)::value;
        return p.runs == 8 ? launch_few<KIND, 8, UNIFORM>(p, stream) : launch_few<KIND, 16, UNIFORM>(p, stream);
    });
}

int mf_cuda_launch_widen(const mf_cuda_widen_call *call, int kind, void *stream)
{
    int64_t most = 0;
    for (int i = 0; i < call->num; i++) {
        const int64_t eights = call->w[i].n * (call->w[i].k / 8);
        most = eights > most ? eights : most;
    }
    const dim3 grid((unsigned)((most + THREADS * EACH - 1) / (THREADS * EACH)), (unsigned)call->num);
    return with_kind(kind, [&](auto k) {
        return launch_early(widen_kernel<decltype(k)::value>, grid, THREADS, (size_t)0, stream, *call);
    });
}
