/* experts_tile.cu - experts for many tokens: tiles of 128 weight rows by TOKENS tokens of one slot, pairs sorted by slot.
 *
 * Weights and tokens come to shared memory by asynchronous copies, STAGES units ahead; rows lie there as in device memory
 * but for the lowest bit of the row, which swaps the halves of its 128 bytes, so that eight lanes' 16-byte reads meet all
 * banks.  w13: a tile is 64 gate and the 64 matching up rows, eight by eight, so that a thread holds a pair's gate and up
 * and the activation stays in registers.  The order of sums is product.cuh's. */
#include "kernels/cuda/product.cuh"

namespace
{

constexpr int THREADS = 256;
constexpr int ROWS = 128;
constexpr int STAGES = 4;

template <int TOKENS> struct tile_shape; /* warps over rows and tokens; m16 and n8 tiles of a warp */
template <> struct tile_shape<128> {
    static constexpr int WARPS_M = 4, WARPS_N = 2, M = 2, N = 8;
};
template <> struct tile_shape<32> {
    static constexpr int WARPS_M = 8, WARPS_N = 1, M = 1, N = 4;
};

MF_DEV int swap_halves(int row, int chunk)
{
    return row * 8 + (chunk ^ ((row & 1) << 2));
}

template <int PATH, int TOKENS, bool UP>
__global__ void __launch_bounds__(THREADS, TOKENS == 128 ? 1 : 2) tile_kernel(const __grid_constant__ mf_cuda_experts p)
{
    using shape = tile_shape<TOKENS>;
    constexpr int SIZE = product_of<PATH>::SIZE, M = shape::M, N = shape::N;
    constexpr int A_COPIES = ROWS * 8 / THREADS, B_COPIES = TOKENS * 8 / THREADS, STAGE = (ROWS + TOKENS) * 8;
    static_assert(A_COPIES * THREADS == ROWS * 8 && B_COPIES * THREADS == TOKENS * 8, "every thread copies the same");
    static_assert(shape::WARPS_M * M * 16 == ROWS && shape::WARPS_N * N * 8 == TOKENS, "warps cover the tile");
    extern __shared__ __align__(128) uint4 stages[];
    __shared__ int32_t pairs[TOKENS];

    const int64_t row_tiles = ((UP ? p.max_width : p.hidden_size) + (UP ? ROWS / 2 : ROWS) - 1) / (UP ? ROWS / 2 : ROWS);
    const int block = (int)(blockIdx.x / row_tiles), tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    if ((int64_t)block * TOKENS >= *p.total) {
        return;
    }
    const int32_t id = p.block_slots[block];
    const mf_cuda_slot &slot = p.slots[id];
    const int64_t row0 = blockIdx.x % row_tiles * (UP ? ROWS / 2 : ROWS);
    if ((UP ? slot.path13 : slot.path2) != PATH || row0 >= (UP ? slot.up.n : p.hidden_size)) {
        return;
    }
    if (tid < TOKENS) {
        pairs[tid] = p.sorted[(int64_t)block * TOKENS + tid];
    }
    __syncthreads();
    const mf_cuda_matrix &w = UP ? slot.up : slot.down;
    const int units = (int)(w.k / product_of<PATH>::UNIT);

    /* This thread's copies of every stage: rows are fixed, only the unit moves. */
    const uint8_t *a_from[A_COPIES], *b_from[B_COPIES];
    uint32_t there = 0;
#pragma unroll
    for (int k = 0; k < A_COPIES; k++) {
        const int row = (tid + k * THREADS) >> 3, chunk = tid & 7;
        const mf_cuda_matrix *m = &w;
        int64_t r = row0 + row;
        if (UP) {
            m = row & 8 ? &slot.up : &slot.gate;
            r = row0 + (row >> 4) * 8 + (row & 7);
        }
        const bool is_there = m->data && r < m->n;
        a_from[k] = is_there ? m->data + r * m->row_stride * SIZE + chunk * 16 : w.data;
        there |= (uint32_t)is_there << k;
    }
#pragma unroll
    for (int k = 0; k < B_COPIES; k++) {
        const int n = (tid + k * THREADS) >> 3, chunk = tid & 7;
        const int32_t pair = pairs[n];
        const bool is_there = pair < (int32_t)p.num_pairs;
        const int64_t r = is_there ? (UP ? pair_token(p, pair) : pair) : 0;
        const uint8_t *from = UP ? (PATH == MF_CUDA_PATH_FP8 ? p.x_codes + r * p.hidden_size
                                                             : (const uint8_t *)p.x + r * p.x_stride * SIZE)
                                 : (PATH == MF_CUDA_PATH_FP8 ? p.h_codes : (const uint8_t *)p.h) + r * p.h_stride * SIZE;
        b_from[k] = from + chunk * 16;
        there |= (uint32_t)is_there << (A_COPIES + k);
    }
    auto copy_unit = [&](int unit) {
        if (unit < units) {
            uint4 *stage = stages + unit % STAGES * STAGE;
#pragma unroll
            for (int k = 0; k < A_COPIES; k++) {
                copy_async(stage + swap_halves((tid + k * THREADS) >> 3, tid & 7), a_from[k] + (int64_t)unit * UNIT_BYTES,
                           there >> k & 1);
            }
#pragma unroll
            for (int k = 0; k < B_COPIES; k++) {
                copy_async(stage + ROWS * 8 + swap_halves((tid + k * THREADS) >> 3, tid & 7),
                           b_from[k] + (int64_t)unit * UNIT_BYTES, there >> (A_COPIES + k) & 1);
            }
        }
        copy_commit();
    };

    const int m0 = warp / shape::WARPS_N * M, n0 = warp % shape::WARPS_N * N;
    float acc[M][N][4], total[UP ? M : 1][UP ? N : 1][4];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                acc[m][n][k] = 0.0f;
                if (UP) {
                    total[UP ? m : 0][UP ? n : 0][k] = 0.0f;
                }
            }
        }
    }
    /* FP8: where the scales of this thread's tokens lie, as offsets in units. */
    int32_t token_scales[PATH == MF_CUDA_PATH_FP8 ? N * 2 : 1];
    float input_scales[PATH == MF_CUDA_PATH_FP8 || !UP ? 1 : N];
    const float *scales = UP ? p.x_scales : p.h_scales;
    const int64_t scale_stride = UP ? units : (p.max_width + 127) / 128;
    if (PATH == MF_CUDA_PATH_FP8) {
#pragma unroll
        for (int n = 0; n < N * 2; n++) {
            const int32_t pair = pairs[(n0 + n / 2) * 8 + 2 * q + n % 2];
            const int64_t row = pair < (int32_t)p.num_pairs ? (UP ? pair_token(p, pair) : pair) : 0;
            token_scales[PATH == MF_CUDA_PATH_FP8 ? n : 0] = (int32_t)row;
        }
    } else if (UP && p.input_scale) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int32_t pair = pairs[(n0 + n) * 8 + g];
            input_scales[PATH == MF_CUDA_PATH_FP8 || !UP ? 0 : n] =
                pair < (int32_t)p.num_pairs ? input_scale_of(p, pair) : 1.0f;
        }
    }

    for (int u = 0; u < STAGES - 1; u++) {
        copy_unit(u);
    }
    int segment = 1;
    for (int u = 0; u < units; u++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        copy_unit(u + STAGES - 1);
        const uint4 *a_rows = stages + u % STAGES * STAGE, *b_rows = a_rows + ROWS * 8;
        if (UP) { /* a segment may be empty */
            while (segment < SEGMENTS && segment_start(segment, units) <= u) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int n = 0; n < N; n++) {
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            float &t = total[UP ? m : 0][UP ? n : 0][k];
                            t = __fadd_rn(t, acc[m][n][k]);
                            acc[m][n][k] = 0.0f;
                        }
                    }
                }
                segment++;
            }
        }
        uint4 low[M][2], high[M][2];
        float low_scale[M], high_scale[M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            const int row = (m0 + m) * 16 + g;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                low[m][half] = a_rows[swap_halves(row, q + 4 * half)];
                high[m][half] = a_rows[swap_halves(row + 8, q + 4 * half)];
            }
            if (PATH == MF_CUDA_PATH_FP8) {
                const int64_t r = UP ? row0 + (m0 + m) * 8 : row0 + (m0 + m) * 16;
                const int64_t at = r / 128;
                const bool inside = r < w.n;
                high_scale[m] = inside ? scale_at(w, at * w.scale_row_stride + u) : 0.0f;
                low_scale[m] = !UP              ? high_scale[m]
                               : slot.gate.data ? scale_at(slot.gate, at * slot.gate.scale_row_stride + u)
                                                : 0.0f;
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int row = (n0 + n) * 8 + g;
            uint4 token[2] = { b_rows[swap_halves(row, q)], b_rows[swap_halves(row, q + 4)] };
            if (PATH == MF_CUDA_PATH_BF16 && UP && p.input_scale) {
                token[0] = scale_chunk(token[0], input_scales[PATH == MF_CUDA_PATH_FP8 || !UP ? 0 : n]);
                token[1] = scale_chunk(token[1], input_scales[PATH == MF_CUDA_PATH_FP8 || !UP ? 0 : n]);
            }
            float t0 = 0.0f, t1 = 0.0f;
            if (PATH == MF_CUDA_PATH_FP8) {
                t0 = scales[token_scales[PATH == MF_CUDA_PATH_FP8 ? 2 * n : 0] * scale_stride + u];
                t1 = scales[token_scales[PATH == MF_CUDA_PATH_FP8 ? 2 * n + 1 : 0] * scale_stride + u];
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
                if (PATH == MF_CUDA_PATH_FP8) {
                    float part[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
                    add_half<PATH>(part, low[m][0], high[m][0], token[0]);
                    add_half<PATH>(part, low[m][1], high[m][1], token[1]);
                    acc[m][n][0] = __fmaf_rn(part[0], __fmul_rn(t0, low_scale[m]), acc[m][n][0]);
                    acc[m][n][1] = __fmaf_rn(part[1], __fmul_rn(t1, low_scale[m]), acc[m][n][1]);
                    acc[m][n][2] = __fmaf_rn(part[2], __fmul_rn(t0, high_scale[m]), acc[m][n][2]);
                    acc[m][n][3] = __fmaf_rn(part[3], __fmul_rn(t1, high_scale[m]), acc[m][n][3]);
                } else {
                    add_half<PATH>(acc[m][n], low[m][0], high[m][0], token[0]);
                    add_half<PATH>(acc[m][n], low[m][1], high[m][1], token[1]);
                }
            }
        }
    }
    copy_wait<0>();

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int32_t pair = pairs[(n0 + n) * 8 + 2 * q + k];
                if (pair >= (int32_t)p.num_pairs) {
                    continue;
                }
                if (UP) {
                    const int64_t i = row0 + (m0 + m) * 8 + g;
                    const float gate = __fadd_rn(total[UP ? m : 0][UP ? n : 0][k], acc[m][n][k]);
                    const float up = __fadd_rn(total[UP ? m : 0][UP ? n : 0][k + 2], acc[m][n][k + 2]);
                    if (i < w.n) {
                        store_float(p.h, p.act_dtype, pair * p.h_stride + i, finish_up(slot, i, gate, up), false);
                    }
                } else {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int64_t i = row0 + (m0 + m) * 16 + g + 8 * half;
                        if (i < p.hidden_size) {
                            store_float(p.y, p.y_dtype, y_offset(p, pair) + i,
                                        finish_down(slot, i, acc[m][n][k + 2 * half]), p.bytewise);
                        }
                    }
                }
            }
        }
    }
}

template <int PATH, int TOKENS, bool UP> int launch(const mf_cuda_experts *call, cudaStream_t stream)
{
    constexpr int BYTES = STAGES * (ROWS + TOKENS) * UNIT_BYTES;
    const int64_t rows = UP ? call->max_width : call->hidden_size, tile = UP ? ROWS / 2 : ROWS;
    const cudaError_t error =
        cudaFuncSetAttribute(tile_kernel<PATH, TOKENS, UP>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    const int64_t grid = (rows + tile - 1) / tile * call->num_blocks;
    if (grid > INT32_MAX) {
        return (int)cudaErrorInvalidConfiguration;
    }
    tile_kernel<PATH, TOKENS, UP><<<(unsigned)grid, THREADS, BYTES, stream>>>(*call);
    return (int)cudaGetLastError();
}

template <bool UP> int launch_path(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    if (path == MF_CUDA_PATH_FP8) {
        return call->tile_tokens == 128 ? launch<MF_CUDA_PATH_FP8, 128, UP>(call, s)
                                        : launch<MF_CUDA_PATH_FP8, 32, UP>(call, s);
    }
    return call->tile_tokens == 128 ? launch<MF_CUDA_PATH_BF16, 128, UP>(call, s)
                                    : launch<MF_CUDA_PATH_BF16, 32, UP>(call, s);
}

} // namespace

int mf_cuda_launch_tile_up(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    return launch_path<true>(call, path, stream);
}

int mf_cuda_launch_tile_down(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    return launch_path<false>(call, path, stream);
}
