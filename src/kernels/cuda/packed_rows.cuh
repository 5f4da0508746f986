/* packed_rows.cuh - what grouped_packed.cuh's kernels keep in a stage, which rows of the operand a thread has, and how
 * results go out. */
#ifndef MF_KERNELS_CUDA_PACKED_ROWS_CUH
#define MF_KERNELS_CUDA_PACKED_ROWS_CUH

#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/packed.cuh"

namespace
{

constexpr int SCALE_PITCH = 32, ZERO_PITCH = 16;
constexpr int WIDE_PITCH = 136; /* of staged tokens with 128 rows: rows of 16 bytes meet all banks */
constexpr int STAGING = 16 * WIDE_PITCH * 2;

/* Few tokens: two blocks a multiprocessor, so that one's units begin and end while the other's weights come. */
template <int MAX> constexpr int BLOCKS = MAX <= MF_CUDA_PACKED_SEVERAL ? 2 : 1;
template <int KIND, int MAX>
constexpr int PRODUCER_REGISTERS_OF = BLOCKS<MAX> == 2 || KIND == MF_CUDA_PACKED_FP8_BLOCK ? 40 : 56;
template <int KIND, int MAX>
constexpr int CONSUMER_REGISTERS_OF = BLOCKS<MAX> == 2                   ? 96
                                      : KIND == MF_CUDA_PACKED_FP8_BLOCK ? 232
                                                                         : 224;

/* Of a stage: codes, tokens and, of 4 bits, scales and zero points. */
template <int KIND, int TILES> __host__ __device__ constexpr int tokens_at()
{
    return 2 * TILES * SUBTILE * packed_kind<KIND>::CODE_LINES;
}

template <int KIND, int TILES, int MAX> __host__ __device__ constexpr int scales_at()
{
    return tokens_at<KIND, TILES>() + MAX * LINE * packed_kind<KIND>::TOKEN_LINES;
}

template <int KIND, int TILES, int MAX> __host__ __device__ constexpr int zeros_at()
{
    return scales_at<KIND, TILES, MAX>() + 128 * TILES * SCALE_PITCH;
}

template <int KIND, int TILES, int MAX> __host__ __device__ constexpr int stage_bytes()
{
    return packed_kind<KIND>::WIDE ? scales_at<KIND, TILES, MAX>()
                                   : zeros_at<KIND, TILES, MAX>() + 128 * TILES * ZERO_PITCH;
}

/* ---- scales of 4-bit codes ----
 *
 * A stage has the words that hold those of its columns, for every row. */

/* How a unit's scales lie: gate's and up's alike. */
struct scale_grid {
    int shift, columns, size, dtype;
    bool has_zeros;
};

template <int KIND> MF_DEV scale_grid grid_of(const mf_cuda_matrix &m)
{
    scale_grid k;
    k.shift = KIND == MF_CUDA_PACKED_MXFP4 ? 5 : 31 - __clz((int)m.group_size);
    k.columns = (int)((m.k + (1 << k.shift) - 1) >> k.shift);
    k.size = KIND == MF_CUDA_PACKED_MXFP4 ? 1 : KIND == MF_CUDA_PACKED_INT4 || m.scale_dtype != MF_F32 ? 2 : 4;
    k.dtype = m.scale_dtype;
    k.has_zeros = KIND == MF_CUDA_PACKED_INT4_ANY && m.zero;
    return k;
}

/* First scale of a stage's 256 columns, and how many they have. */
MF_DEV int first_scale(const scale_grid &grid, int line)
{
    return 256 * line >> grid.shift;
}

MF_DEV int scales_of_line(const scale_grid &grid)
{
    return grid.shift < 8 ? 256 >> grid.shift : 1;
}

/* The words that hold `count` elements of `size` bytes from `first` on of a row with `columns`; zeros where there are
 * none. */
MF_DEV void copy_elements(uint8_t *to, const uint8_t *row, int first, int count, int size, int columns)
{
    const uint8_t *word = (const uint8_t *)((uintptr_t)(row + first * size) & ~(uintptr_t)3);
    int left = (int)(row + min(first + count, columns) * size - word);
    const int words = (count * size + 4 - size + 3) / 4;
    for (int i = 0; i < words; i++, left -= 4) {
        copy_bytes_async(to + 4 * i, left > 0 ? word + 4 * i : (const uint8_t *)((uintptr_t)row & ~(uintptr_t)3),
                         left < 0   ? 0
                         : left > 4 ? 4
                                    : left);
    }
}

/* A thread's scale (f16: as f32) and zero point of a row whose place in the stage and whose scales' address are known.
 */
struct raw_scale {
    uint32_t bits, zero;
};

template <int KIND>
MF_DEV raw_scale load_scale(const uint8_t *scales, const uint8_t *zeros, const scale_grid &grid, int row,
                            uint32_t address, uint32_t zero_address, int line, int column)
{
    raw_scale r = { 0u, 8u };
    const int first = first_scale(grid, line), own = grid.shift < 8 ? column >> grid.shift : 0;
    const uint8_t *at = scales + row * SCALE_PITCH + ((address + first * grid.size) & 3) + own * grid.size;
    if (KIND == MF_CUDA_PACKED_MXFP4) {
        r.bits = *at;
    } else if (KIND == MF_CUDA_PACKED_INT4) {
        r.bits = *(const uint16_t *)at;
    } else {
        if (grid.size == 4) {
            r.bits = *(const uint32_t *)at;
        } else {
            const uint16_t h = *(const uint16_t *)at;
            r.bits = __float_as_uint(grid.dtype == MF_BF16 ? bf16_to_f32(h) : f16_to_f32(h));
        }
        if (grid.has_zeros) {
            r.zero = zeros[row * ZERO_PITCH + ((zero_address + first) & 3) + own];
        }
    }
    return r;
}

/* ---- scales of FP8 blocks ----
 *
 * A unit's rows of gate and up lie in one block of rows each, and those of down in as many as there are tiles a
 * warpgroup: a stage has two scales at most. */

struct scale_words {
    uint32_t of[STAGES_AT_MOST][2];
};

MF_DEV int scale_size(int dtype)
{
    return dtype == MF_F32 ? 4 : dtype == MF_F8_E8M0 ? 1 : 2;
}

/* The block of a step of w2 that a warpgroup's rows lie in. */
template <int TILES> MF_DEV int block_of(int group)
{
    return TILES == 2 ? group : 0;
}

MF_DEV const uint8_t *block_scale_at(const mf_cuda_matrix &m, int row, int line)
{
    return m.scale + ((row >> 7) * m.scale_row_stride + line) * scale_size(m.scale_dtype);
}

/* From the word that holds it. */
MF_DEV float block_scale(int dtype, uint32_t word, uint32_t address)
{
    const uint32_t bits = word >> 8 * (address & 3);
    return dtype == MF_F32       ? __uint_as_float(word)
           : dtype == MF_BF16    ? bf16_to_f32((uint16_t)bits)
           : dtype == MF_F8_E8M0 ? e8m0_to_f32((uint8_t)bits)
                                 : f16_to_f32((uint16_t)bits);
}

/* ---- rows of the operand ---- */

/* Row of the unit that a thread's row of tile t is: of the intermediate, gate and up alike, or of w2's.  Lanes 0 .. 7
 * of a load of 16 bytes meet all banks: rows of g and g + 1 differ by 4 (swizzled), or where lanes load every other 16
 * bytes (WIDE), by an odd number. */
template <bool WIDE, int TILES> MF_DEV int up_row(int group, int warp, int g, int t)
{
    return TILES == 2 ? packed_column<WIDE>(16 * (4 * group + warp) + 8 * t + g)
                      : 32 * group + 8 * warp + (WIDE ? g : (g >> 1) + 4 * (g & 1));
}

/* One tile: a thread's two rows follow one another, for its own stores (WIDE: or precede).  Two: as the products give
 * them. */
template <bool WIDE, int TILES> MF_DEV int down_row(int group, int warp, int g, int t, int half)
{
    return 64 * (TILES * group + t) + 16 * warp +
           (TILES == 2 ? g + 8 * half
            : WIDE     ? 2 * g + (half ^ (g & 1))
                       : 2 * ((g & 4) | (g & 1) << 1 | (g >> 1 & 1)) + half);
}

/* ---- what goes out ---- */

/* Where the tokens of a unit of w2 go. */
MF_DEV void list_places(const mf_cuda_grouped &p, unit_ref u, int64_t *places)
{
    named_barrier<BARRIER_BOTH, 256>(); /* the last unit's readers are done */
    for (int t = threadIdx.x - PRODUCERS; t < u->count; t += 256) {
        places[t] = y_offset(p.e, __ldg(p.sorted + u->first + t));
    }
    named_barrier<BARRIER_BOTH, 256>();
}

template <bool WIDE, int TILES, int N>
MF_DEV void write_up(const mf_cuda_grouped &p, unit_ref u, float (&acc)[TILES][N / 2], uint8_t *staging)
{
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    const int count = u->count, width = (int)slot.up.n, row = u->row;
    const swiglu act = swiglu_of(slot);
    float gb[TILES], ub[TILES];
    const bool has_bias = slot.gate_bias || slot.up_bias;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const int r = row + up_row<WIDE, TILES>(group, warp, g, t);
        gb[t] = slot.gate_bias && r < width ? slot.gate_bias[r] : 0.0f;
        ub[t] = slot.up_bias && r < width ? slot.up_bias[r] : 0.0f;
    }
    auto value = [&](int t, int i) {
        float a = acc[t][i], b = acc[t][i + 2];
        if (has_bias) {
            a = __fadd_rn(a, gb[t]);
            b = __fadd_rn(b, ub[t]);
        }
        return apply(act, a, b);
    };
    uint16_t *h = (uint16_t *)p.e.h + (int64_t)u->first * p.e.h_stride + (row & ~127);
    if constexpr (TILES == 2) { /* 16 tokens at a time, so that a token's 256 bytes go out in one piece */
#pragma unroll
        for (int c = 0; c < N / 16; c++) {
            if (c * 16 >= count) {
                break;
            }
            uint32_t v[4];
#pragma unroll
            for (int k = 0; k < 4; k++) { /* eight tokens of tile 0, of tile 1, the next eight */
                v[k] = pack_bf16(value(k & 1, 4 * (2 * c + k / 2)), value(k & 1, 4 * (2 * c + k / 2) + 1));
            }
            const int m = lane >> 3, token = 8 * (m >> 1) + (lane & 7);
            named_barrier<BARRIER_BOTH, 256>();
            store_transposed(staging + (token * WIDE_PITCH + 16 * (4 * group + warp) + 8 * (m & 1)) * 2, v[0], v[1],
                             v[2], v[3]);
            named_barrier<BARRIER_BOTH, 256>();
            const int own = tid >> 4;
            if (c * 16 + own < count) {
                *(uint4 *)(h + (int64_t)(c * 16 + own) * p.e.h_stride + (tid & 15) * 8) =
                    *(const uint4 *)(staging + (own * WIDE_PITCH + (tid & 15) * 8) * 2);
            }
        }
    } else {
        h += packed_place<WIDE>((row & 64) + up_row<WIDE, TILES>(group, warp, g, 0));
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int token = 8 * i + 2 * q + k;
                if (token < count) {
                    h[(int64_t)token * p.e.h_stride] = (uint16_t)pack_bf16(value(0, 4 * i + k), 0.0f);
                }
            }
        }
    }
    /* w2 reads whole 128 columns. */
    if (TILES == 1 && (row & 64) == 0 && row + 64 >= width) {
        for (int i = tid; i < count * 64; i += 256) {
            const int place = packed_place<WIDE>(64 + (i & 63));
            ((uint16_t *)p.e.h)[(int64_t)(u->first + (i >> 6)) * p.e.h_stride + row + place] = 0;
        }
    }
    named_barrier<BARRIER_BOTH, 256>();
    if (tid == 0) { /* released for all: the barrier put their stores before it */
        add_release(p.work + MF_CUDA_WORK_TILES + u->tile, 1);
    }
}

template <bool WIDE, int TILES, int N>
MF_DEV void write_down(const mf_cuda_grouped &p, unit_ref u, int first_row, float (&acc)[TILES][N / 2],
                       const int64_t *places, uint8_t *staging)
{
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3, count = u->count, hidden = (int)p.e.hidden_size;
    const float *bias = slot.down_bias;
    int rows[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = rows[t][half] = first_row + down_row<WIDE, TILES>(group, warp, g, t, half);
            if (bias && row < hidden) {
                const float b = bias[row];
#pragma unroll
                for (int i = 0; i < N / 8; i++) {
                    acc[t][4 * i + 2 * half] = __fadd_rn(acc[t][4 * i + 2 * half], b);
                    acc[t][4 * i + 2 * half + 1] = __fadd_rn(acc[t][4 * i + 2 * half + 1], b);
                }
            }
        }
    }
    if (TILES == 2 && p.e.y_dtype == MF_BF16 && p.e.y_is_wide) { /* 256 bytes of a token in one piece */
        uint8_t *own = staging + group * (STAGING / 2);
#pragma unroll
        for (int c = 0; c < N / 8; c++) {
            if (c * 8 >= count) {
                break;
            }
            uint32_t v[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                v[k] = pack_bf16(acc[k / 2 * (TILES - 1)][4 * c + 2 * (k & 1)],
                                 acc[k / 2 * (TILES - 1)][4 * c + 2 * (k & 1) + 1]);
            }
            const int m = lane >> 3;
            own_barrier(group);
            store_transposed(own + ((lane & 7) * WIDE_PITCH + 64 * (m >> 1) + 16 * warp + 8 * (m & 1)) * 2, v[0], v[1],
                             v[2], v[3]);
            own_barrier(group);
            const int token = (tid & 127) >> 4, row = first_row + 128 * group + (tid & 15) * 8;
            if (c * 8 + token < count && row < hidden) {
                *(uint4 *)((uint16_t *)p.e.y + places[c * 8 + token] + row) =
                    *(const uint4 *)(own + (token * WIDE_PITCH + (tid & 15) * 8) * 2);
            }
        }
        return;
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int token = 8 * i + 2 * q + k;
                if (token >= count) {
                    continue;
                }
                const float v0 = acc[t][4 * i + k], v1 = acc[t][4 * i + k + 2];
                const int64_t at = places[token];
                if (TILES == 1 && p.e.y_dtype == MF_BF16 && p.e.y_is_wide && (rows[t][0] | 1) < hidden) {
                    const bool swapped = WIDE && (g & 1);
                    *(uint32_t *)((uint16_t *)p.e.y + at + (rows[t][0] & ~1)) =
                        pack_bf16(swapped ? v1 : v0, swapped ? v0 : v1);
                    continue;
                }
                if (rows[t][0] < hidden) {
                    store_float(p.e.y, p.e.y_dtype, at + rows[t][0], v0, p.e.bytewise);
                }
                if (rows[t][1] < hidden) {
                    store_float(p.e.y, p.e.y_dtype, at + rows[t][1], v1, p.e.bytewise);
                }
            }
        }
    }
}

} // namespace

#endif
