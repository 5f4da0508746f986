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
constexpr int PITCH = ROWS + 4; /* of a token's sums: eight rows by four pairs of tokens meet all banks */

template <int TOKENS> struct tile_shape; /* warps over rows and tokens; m16 and n8 tiles of a warp */
template <> struct tile_shape<128> {
    static constexpr int WARPS_M = 4, WARPS_N = 2, M = 2, N = 8;
};
template <> struct tile_shape<64> {
    static constexpr int WARPS_M = 4, WARPS_N = 2, M = 2, N = 4;
};
template <> struct tile_shape<32> {
    static constexpr int WARPS_M = 8, WARPS_N = 1, M = 1, N = 4;
};

template <int PATH, int TOKENS> __host__ __device__ constexpr int stage_bytes()
{
    return ROWS * UNIT_BYTES + TOKENS * TOKEN_UNIT_BYTES<PATH> + (product_of<PATH>::SCALED ? TOKENS * 4 : 0);
}

MF_DEV int swap_halves(int row, int chunk)
{
    return row * 8 + (chunk ^ ((row & 1) << 2));
}

/* The place of a token's chunk: as above, or, where a unit is 256 bytes and a lane reads two neighbours, with those swapped. */
template <int PATH> MF_DEV int token_place(int token, int chunk)
{
    return TOKEN_CHUNKS<PATH> == 1 ? swap_halves(token, chunk) : token * 16 + (chunk ^ (token & 1));
}

/* SCALES_INPUT: each pair has a factor for its input (bf16 only). */
template <int PATH, int TOKENS, bool UP, bool SCALES_INPUT>
__global__ void __launch_bounds__(THREADS, TOKENS == 128 || (TOKENS == 64 && product_of<PATH>::SCALED) ? 1 : 2) tile_kernel(const __grid_constant__ mf_cuda_experts p)
{
    using shape = tile_shape<TOKENS>;
    constexpr int SIZE = product_of<PATH>::SIZE, M = shape::M, N = shape::N;
    constexpr bool SCALED = product_of<PATH>::SCALED;
    constexpr int ROW_CHUNKS = TOKEN_UNIT_BYTES<PATH> / 16; /* of a token */
    constexpr int A_COPIES = ROWS * 8 / THREADS, B_COPIES = TOKENS * ROW_CHUNKS / THREADS;
    constexpr int STAGE = stage_bytes<PATH, TOKENS>() / 16, SCALES = ROWS * 8 + TOKENS * ROW_CHUNKS;
    static_assert(A_COPIES * THREADS == ROWS * 8 && B_COPIES * THREADS == TOKENS * ROW_CHUNKS, "every thread copies the same");
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
        const int n = (tid + k * THREADS) / ROW_CHUNKS, chunk = tid % ROW_CHUNKS;
        const int32_t pair = pairs[n];
        const bool is_there = pair < (int32_t)p.num_pairs;
        const int64_t r = is_there ? (UP ? pair_token(p, pair) : pair) : 0;
        const uint16_t *from = UP ? (PATH == MF_CUDA_PATH_FP8 ? p.x_codes + r * p.hidden_size
                                                              : (const uint16_t *)p.x + r * p.x_stride)
                                  : (PATH == MF_CUDA_PATH_FP8 ? p.h_codes : (const uint16_t *)p.h) + r * p.h_stride;
        b_from[k] = (const uint8_t *)from + chunk * 16;
        there |= (uint32_t)is_there << (A_COPIES + k);
    }
    /* FP8: the scales of the stage's tokens lie behind its rows, one word a token. */
    const int32_t scale_pair_id = SCALED && tid < TOKENS ? pairs[tid] : 0;
    const bool scale_there = SCALED && tid < TOKENS && scale_pair_id < (int32_t)p.num_pairs;
    const int64_t scale_row = scale_there ? (UP ? pair_token(p, scale_pair_id) : scale_pair_id) : 0;
    const float *scale_from =
        (UP ? p.x_scales : p.h_scales) + scale_row * (UP ? units : (p.max_width + 127) / 128);
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
                copy_async(stage + ROWS * 8 + token_place<PATH>((tid + k * THREADS) / ROW_CHUNKS, tid % ROW_CHUNKS),
                           b_from[k] + (int64_t)unit * TOKEN_UNIT_BYTES<PATH>, there >> (A_COPIES + k) & 1);
            }
            if (SCALED && tid < TOKENS) {
                copy_word_async((float *)(stage + SCALES) + tid, scale_from + unit, scale_there);
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
    float input_scales[SCALES_INPUT ? N : 1];
    if (SCALES_INPUT) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int32_t pair = pairs[(n0 + n) * 8 + g];
            input_scales[SCALES_INPUT ? n : 0] = pair < (int32_t)p.num_pairs ? input_scale_of(p, pair) : 1.0f;
        }
    }
    /* A tile's rows are inside one block of scales: 64 gate and 64 up rows, or 128 of w2. */
    const int64_t w_scales = row0 / 128 * w.scale_row_stride, gate_scales = row0 / 128 * slot.gate.scale_row_stride;
    const bool has_gate = !UP || slot.gate.data;
    float low_next = 0.0f, high_next = 0.0f;
    auto read_scales = [&](int unit) {
        if (SCALED && unit < units) {
            high_next = scale_at(w, w_scales + unit);
            low_next = !UP ? high_next : has_gate ? scale_at(slot.gate, gate_scales + unit) : 0.0f;
        }
    };

    read_scales(0);
    for (int u = 0; u < STAGES - 1; u++) {
        copy_unit(u);
    }
    int segment = 1;
    for (int u = 0; u < units; u++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        copy_unit(u + STAGES - 1);
        const float low_scale = low_next, high_scale = high_next;
        read_scales(u + 1);
        const uint4 *a_rows = stages + u % STAGES * STAGE, *b_rows = a_rows + ROWS * 8;
        const float *token_scales = (const float *)(a_rows + SCALES);
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
        /* Products of a step are independent of each other: a group of token tiles by all row tiles. */
        constexpr int GROUP = SCALED ? (N < 4 ? N : 4) : N;
#pragma unroll
        for (int first = 0; first < N; first += GROUP) {
            float part[M][GROUP][4];
            if (SCALED) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int n = 0; n < GROUP; n++) {
                        part[m][n][0] = part[m][n][1] = part[m][n][2] = part[m][n][3] = 0.0f;
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                row_chunk<PATH> low[M], high[M];
                token_chunk<PATH> token[GROUP];
#pragma unroll
                for (int m = 0; m < M; m++) {
                    low[m] = widen_row<PATH>(a_rows[swap_halves((m0 + m) * 16 + g, q + 4 * half)]);
                    high[m] = widen_row<PATH>(a_rows[swap_halves((m0 + m) * 16 + g + 8, q + 4 * half)]);
                }
#pragma unroll
                for (int n = 0; n < GROUP; n++) {
#pragma unroll
                    for (int k = 0; k < TOKEN_CHUNKS<PATH>; k++) {
                        const int chunk = (q + 4 * half) * TOKEN_CHUNKS<PATH> + k;
                        token[n].v[k] = b_rows[token_place<PATH>((n0 + first + n) * 8 + g, chunk)];
                    }
                    if (SCALES_INPUT) {
                        token[n].v[0] = scale_chunk(token[n].v[0], input_scales[SCALES_INPUT ? first + n : 0]);
                    }
                }
#pragma unroll
                for (int step = 0; step < STEPS<PATH>; step++) {
#pragma unroll
                    for (int n = 0; n < GROUP; n++) {
#pragma unroll
                        for (int m = 0; m < M; m++) {
                            add_step<PATH>(SCALED ? part[m][n] : acc[m][first + n], low[m], high[m], token[n], step);
                        }
                    }
                }
            }
            if (SCALED) {
#pragma unroll
                for (int n = 0; n < GROUP; n++) {
                    const float2 t = *(const float2 *)(token_scales + (n0 + first + n) * 8 + 2 * q);
                    const float low0 = __fmul_rn(t.x, low_scale), low1 = __fmul_rn(t.y, low_scale);
                    const float high0 = __fmul_rn(t.x, high_scale), high1 = __fmul_rn(t.y, high_scale);
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        float(&c)[4] = acc[m][first + n];
                        c[0] = __fmaf_rn(part[m][n][0], low0, c[0]);
                        c[1] = __fmaf_rn(part[m][n][1], low1, c[1]);
                        c[2] = __fmaf_rn(part[m][n][2], high0, c[2]);
                        c[3] = __fmaf_rn(part[m][n][3], high1, c[3]);
                    }
                }
            }
        }
    }
    /* Sums go through shared memory, so that a thread has eight neighbours of one pair: whole sectors are written, and the
     * code for one element stands once. */
    copy_wait<0>();
    __syncthreads();
    float *sums = (float *)stages; /* [TOKENS][PITCH] */
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int row = (m0 + m) * 16 + g + (k >> 1) * 8, token = (n0 + n) * 8 + 2 * q + (k & 1);
                const float v = UP ? __fadd_rn(total[UP ? m : 0][UP ? n : 0][k], acc[m][n][k]) : acc[m][n][k];
                sums[token * PITCH + row] = v;
            }
        }
    }
    __syncthreads();
    constexpr int EIGHTS = (UP ? ROWS / 2 : ROWS) / 8;
#pragma unroll 1
    for (int i = tid; i < TOKENS * EIGHTS; i += THREADS) {
        const int token = i / EIGHTS, eight = i % EIGHTS;
        const int32_t pair = pairs[token];
        const int64_t row = row0 + eight * 8;
        if (pair >= (int32_t)p.num_pairs || row >= (UP ? w.n : p.hidden_size)) {
            continue;
        }
        /* w13: eight gate rows, then their eight up rows. */
        const float *from = sums + token * PITCH + eight * (UP ? 16 : 8);
        float v[8];
        if (UP) {
#pragma unroll 1
            for (int k = 0; k < 8; k++) {
                sums[token * PITCH + eight * 16 + k] = finish_up(slot, row + k, from[k], from[k + 8]);
            }
        } else if (slot.down_bias) {
#pragma unroll 1
            for (int k = 0; k < 8; k++) {
                sums[token * PITCH + eight * 8 + k] = finish_down(slot, row + k, from[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            v[k] = from[k];
        }
        void *to = UP ? p.h : p.y;
        const int dtype = UP ? p.act_dtype : p.y_dtype;
        const int64_t at = UP ? pair * p.h_stride + row : y_offset(p, pair) + row;
        if (dtype != MF_F32 && (UP || p.y_is_wide)) {
            uint32_t packed[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                packed[k] = dtype == MF_BF16 ? f32_to_bf16(v[2 * k]) | (uint32_t)f32_to_bf16(v[2 * k + 1]) << 16
                                             : f32_to_f16(v[2 * k]) | (uint32_t)f32_to_f16(v[2 * k + 1]) << 16;
            }
            *(uint4 *)((uint16_t *)to + at) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
        } else {
#pragma unroll 1
            for (int k = 0; k < 8; k++) {
                store_float(to, dtype, at + k, from[k], !UP && p.bytewise);
            }
        }
    }
}

template <int PATH, int TOKENS, bool UP, bool SCALES_INPUT> int launch(const mf_cuda_experts *call, cudaStream_t stream)
{
    constexpr int BYTES = STAGES * stage_bytes<PATH, TOKENS>();
    static_assert(TOKENS * PITCH * 4 <= BYTES, "sums fit where the stages were");
    const auto kernel = tile_kernel<PATH, TOKENS, UP, SCALES_INPUT>;
    const int64_t rows = UP ? call->max_width : call->hidden_size, tile = UP ? ROWS / 2 : ROWS;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        return (int)error;
    }
    const int64_t grid = (rows + tile - 1) / tile * call->num_blocks;
    if (grid > INT32_MAX) {
        return (int)cudaErrorInvalidConfiguration;
    }
    kernel<<<(unsigned)grid, THREADS, BYTES, stream>>>(*call);
    return (int)cudaGetLastError();
}

template <int PATH, bool UP> int launch_tokens(const mf_cuda_experts *call, cudaStream_t stream)
{
    return call->tile_tokens == 128  ? launch<PATH, 128, UP, false>(call, stream)
           : call->tile_tokens == 64 ? launch<PATH, 64, UP, false>(call, stream)
                                     : launch<PATH, 32, UP, false>(call, stream);
}

} // namespace

int mf_cuda_launch_tile_up(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    if (call->input_scale) { /* tiles of 32 tokens, as planned */
        return launch<MF_CUDA_PATH_BF16, 32, true, true>(call, s);
    }
    return path == MF_CUDA_PATH_FP8 ? launch_tokens<MF_CUDA_PATH_FP8, true>(call, s)
                                    : launch_tokens<MF_CUDA_PATH_BF16, true>(call, s);
}

int mf_cuda_launch_tile_down(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    return path == MF_CUDA_PATH_FP8 ? launch_tokens<MF_CUDA_PATH_FP8, false>(call, s)
                                    : launch_tokens<MF_CUDA_PATH_BF16, false>(call, s);
}
