/* packed_wide.cuh - the warpgroups of grouped_packed.cuh that multiply codes of 8 bits and F16. */
#ifndef MF_KERNELS_CUDA_PACKED_WIDE_CUH
#define MF_KERNELS_CUDA_PACKED_WIDE_CUH

#include "kernels/cuda/packed_rows.cuh"

namespace
{

/* The 16 bytes of a row that hold a thread's columns 128 / BITS j and on. */
template <int KIND, int TILES> MF_DEV uint4 load_wide(const uint8_t *stage, int row, int q, int j)
{
    if (packed_kind<KIND>::CODE_LINES == 2) {
        return *(const uint4 *)(stage + (q >> 1) * 2 * TILES * SUBTILE + swizzled(row, 4 * (q & 1) + j));
    }
    return *(const uint4 *)(stage + swizzled(row, 2 * q + j));
}

MF_DEV uint32_t word_of(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int KIND, int TILES, int CHUNKS>
MF_DEV void load_codes(const uint8_t *stage, const int (&rows)[2], int q, uint4 (&codes)[2][CHUNKS])
{
#pragma unroll
    for (int i = 0; i < 2 * CHUNKS; i++) {
        codes[i & 1][i >> 1] = load_wide<KIND, TILES>(stage, rows[i & 1], q, i >> 1);
    }
}

/* COUNT steps of 16 columns from step k on: the operand's registers of both rows; F16's rest is in `low`. */
template <int KIND, int COUNT, int CHUNKS>
MF_DEV void widen_steps(const uint4 (&codes)[2][CHUNKS], int k, uint32_t (&a)[2][2 * COUNT],
                        uint32_t (&low)[2][2 * COUNT])
{
#pragma unroll
    for (int i = 0; i < 2 * COUNT; i++) {
        const int half = i & 1, at = i >> 1, step = k + at;
        uint32_t *to = a[half] + 2 * at, *rest = low[half] + 2 * at;
        if constexpr (KIND == MF_CUDA_PACKED_F16) {
            split_f16(word_of(codes[half][step >> 1], 2 * (step & 1)), to[0], rest[0]);
            split_f16(word_of(codes[half][step >> 1], 2 * (step & 1) + 1), to[1], rest[1]);
        } else {
            wide_codes<KIND>::widen(word_of(codes[half][step >> 2], step & 3), to[0], to[1]);
        }
    }
}

/* What a thread has seen of its two rows' NaNs.  One makes all sums of its row NaN: they are put right at the end. */
template <int KIND> struct nan_rows {
    static constexpr bool ANY = KIND == MF_CUDA_PACKED_FP8_BLOCK || KIND == MF_CUDA_PACKED_FP8_CHANNEL;
    uint32_t bits[2];

    template <int CHUNKS> MF_DEV_MEMBER void see(nan_rows &seen, const uint4 (&codes)[2][CHUNKS])
    {
        if constexpr (ANY) {
#pragma unroll
            for (int i = 0; i < 8 * CHUNKS; i++) {
                seen.bits[i & 1] |= wide_codes<KIND>::nan_bits(word_of(codes[i & 1][i >> 3], i >> 1 & 3));
            }
        }
    }
    template <int COUNT> MF_DEV_MEMBER void put_right(const nan_rows &seen, float (&acc)[COUNT])
    {
        if constexpr (ANY) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t bits = seen.bits[half];
                bits |= __shfl_xor_sync(MF_FULL_WARP, bits, 1);
                bits |= __shfl_xor_sync(MF_FULL_WARP, bits, 2);
#pragma unroll
                for (int i = 0; i < COUNT; i++) {
                    if ((i >> 1 & 1) == half) {
                        acc[i] = bits & 0x80808080u ? __uint_as_float(0x7fc00000u) : acc[i];
                    }
                }
            }
        }
    }
};

/* acc += part * scale, for a thread's two rows. */
template <int N> MF_DEV void add_part(float (&acc)[N / 2], const float (&part)[N / 2], const float (&scale)[2])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        acc[i] = __fmaf_rn(part[i], scale[i >> 1 & 1], acc[i]);
    }
}

/* A row's scale, or 1. */
template <int KIND> MF_DEV float row_scale(const mf_cuda_matrix &m, int row)
{
    return KIND == MF_CUDA_PACKED_FP8_CHANNEL || KIND == MF_CUDA_PACKED_INT8
               ? scale_at(m, min((int64_t)row, m.n - 1) * m.scale_row_stride)
               : 1.0f;
}

/* Sums times their rows' scales and, where x and the intermediate are codes, the tokens'. */
template <int KIND, int TILES, int N>
MF_DEV void scale_sums(const mf_cuda_grouped &p, unit_ref u, float (&acc)[TILES][N / 2],
                       const float (&scales)[TILES][2], float *token_scales)
{
    if constexpr (KIND == MF_CUDA_PACKED_FP8_CHANNEL || KIND == MF_CUDA_PACKED_INT8) {
        const int tid = threadIdx.x - PRODUCERS, q = tid & 3;
        if (p.quant) {
            named_barrier<BARRIER_BOTH, 256>(); /* the last step's readers are done */
            for (int t = tid; t < u->count; t += 256) {
                const int at = u->first + t;
                token_scales[t] = u->is_down ? p.h_scales[at] : p.x_scales_out[p.sorted[at] / (int)p.e.num_columns];
            }
            named_barrier<BARRIER_BOTH, 256>();
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                const float scale = scales[t][i >> 1 & 1];
                acc[t][i] = __fmul_rn(acc[t][i],
                                      p.quant ? __fmul_rn(token_scales[8 * (i >> 2) + 2 * q + (i & 1)], scale) : scale);
            }
        }
        if (TILES == 2 && p.quant) {
            named_barrier<BARRIER_BOTH, 256>(); /* results go through the same memory */
        }
    }
}

/* Few tokens: a warp's products of 16 rows, whose sums are those of a warpgroup's to the bit.  No one waits for another
 * warp, and a stage is free as soon as it is in registers. */
template <int KIND, int MAX, int N>
MF_DEV void multiply_few(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, shared_state *s, stage_cursor &cursor,
                         int64_t *places, uint8_t *staging, const scale_words *words, float *token_scales)
{
    constexpr bool WIDE = true, F16 = KIND == MF_CUDA_PACKED_F16, BLOCK = KIND == MF_CUDA_PACKED_FP8_BLOCK;
    constexpr int TILES = 1, STAGE = stage_bytes<KIND, TILES, MAX>(), TOKENS = N / 8;
    constexpr int CHUNKS = packed_kind<KIND>::BITS / 4;
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    const int steps = u->steps, lines = u->lines;
    const bool is_down = u->is_down;
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const mf_cuda_matrix &m0 = is_down ? slot.down : slot.gate, &m1 = is_down ? slot.down : slot.up;
    const int dtype = m0.scale_dtype, other = is_down ? 0 : 1;
    if (is_down) {
        list_places(p, u, places);
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        float acc[1][N / 2], scales[1][2];
        nan_rows<KIND> seen = { { 0, 0 } };
        int rows[2]; /* of the stage */
        const int first = u->row + 128 * step;
        uint32_t addresses[2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[0][i] = 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r =
                is_down ? down_row<WIDE, TILES>(group, warp, g, 0, half) : up_row<WIDE, TILES>(group, warp, g, 0);
            const mf_cuda_matrix &m = half ? m1 : m0;
            rows[half] = is_down || !half ? r : 64 + r;
            addresses[half] = BLOCK ? (uint32_t)(uintptr_t)block_scale_at(m, first, 0) : 0;
            scales[0][half] = row_scale<KIND>(m, first + r);
        }
#pragma unroll 1
        for (int line = 0; line < lines; line++) {
            const uint8_t *stage = stages + cursor.stage * STAGE, *tokens = stage + tokens_at<KIND, TILES>();
            uint4 codes[2][CHUNKS];
            float now[2] = { 0.0f, 0.0f }, part[N / 2];
            uint32_t b[TOKENS][4];
            barrier_wait(&s->full[cursor.stage], cursor.parity);
            load_codes<KIND, TILES, CHUNKS>(stage, rows, q, codes);
            if (BLOCK) {
                now[0] = block_scale(dtype, words->of[cursor.stage][0], addresses[0] + line * scale_size(dtype));
                now[1] = block_scale(dtype, words->of[cursor.stage][other], addresses[1] + line * scale_size(dtype));
            }
            nan_rows<KIND>::see(seen, codes);
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                part[i] = BLOCK ? 0.0f : acc[0][i];
            }
#pragma unroll
            for (int k = 0; k < 8; k++) { /* 16 columns each */
                if (k % 2 == 0) {
#pragma unroll
                    for (int n = 0; n < TOKENS; n++) { /* 32 columns of eight tokens */
                        load_tiles(b[n], tokens + (k >> 2) * MAX * LINE +
                                             swizzled(8 * n + (lane & 7), 2 * (k & 2) + (lane >> 3)));
                    }
                }
                if (k == 6) {                                /* all of the stage is in registers */
                    barrier_arrive(&s->empty[cursor.stage]); /* all lanes: each for what it has read */
                }
                uint32_t a[2][2], low[2][2];
                widen_steps<KIND, 1, CHUNKS>(codes, k, a, low);
#pragma unroll
                for (int n = 0; n < TOKENS; n++) {
                    float(&sums)[4] = *(float(*)[4])(part + 4 * n);
                    const uint32_t *of = b[n] + 2 * (k & 1);
                    mma_bf16(sums, a[0][0], a[1][0], a[0][1], a[1][1], of[0], of[1]);
                    if (F16) {
                        mma_bf16(sums, low[0][0], low[1][0], low[0][1], low[1][1], of[0], of[1]);
                    }
                }
            }
            if (BLOCK) {
                add_part<N>(acc[0], part, now);
            } else {
#pragma unroll
                for (int i = 0; i < N / 2; i++) {
                    acc[0][i] = part[i];
                }
            }
            stage_cursor::next(cursor);
        }
        nan_rows<KIND>::put_right(seen, acc[0]);
        scale_sums<KIND, TILES, N>(p, u, acc, scales, token_scales);
        if (is_down) {
            write_down<WIDE, TILES, N>(p, u, first, acc, places, staging);
        } else {
            write_up<WIDE, TILES, N>(p, u, acc, staging);
        }
    }
}

/* Codes with a scale a row, or none. */
template <int KIND, int TILES, int MAX, int N>
MF_DEV void multiply_wide(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, shared_state *s, stage_cursor &cursor,
                          int64_t *places, uint8_t *staging, float *token_scales)
{
    constexpr bool WIDE = true, F16 = KIND == MF_CUDA_PACKED_F16;
    constexpr int STAGE = stage_bytes<KIND, TILES, MAX>(), TOGETHER = TILES == 1 && !F16 ? 2 : 1;
    constexpr int CHUNKS = packed_kind<KIND>::BITS / 4;
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    const int steps = u->steps, lines = u->lines;
    const bool is_down = u->is_down;
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const mf_cuda_matrix &m0 = is_down ? slot.down : slot.gate, &m1 = is_down ? slot.down : slot.up;
    if (is_down) {
        list_places(p, u, places);
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        float acc[TILES][N / 2], scales[TILES][2];
        nan_rows<KIND> seen[TILES];
        int rows[TILES][2]; /* of the stage */
        const int first = u->row + 128 * TILES * step;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                acc[t][i] = 0.0f;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r =
                    is_down ? down_row<WIDE, TILES>(group, warp, g, t, half) : up_row<WIDE, TILES>(group, warp, g, t);
                const mf_cuda_matrix &m = half ? m1 : m0;
                rows[t][half] = is_down || !half ? r : 64 * TILES + r;
                scales[t][half] = row_scale<KIND>(m, first + r);
                seen[t].bits[half] = 0;
            }
            pin(acc[t]);
        }
        int previous = -1;
#pragma unroll 1
        for (int line = 0; line < lines; line++) {
            const uint8_t *stage = stages + cursor.stage * STAGE;
            uint4 codes[TILES][2][CHUNKS];
            barrier_wait(&s->full[cursor.stage], cursor.parity);
            fence_shared_for_products();
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                load_codes<KIND, TILES, CHUNKS>(stage, rows[t], q, codes[t]);
                nan_rows<KIND>::see(seen[t], codes[t]);
            }
            const uint64_t tokens = product_operand(stage + tokens_at<KIND, TILES>());
#pragma unroll
            for (int k = 0; k < 8; k += TOGETHER) { /* 16 columns each */
                uint32_t a[TILES][2][2 * TOGETHER], low[TILES][2][2 * TOGETHER];
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    widen_steps<KIND, TOGETHER, CHUNKS>(codes[t], k, a[t], low[t]);
                }
                products_begin();
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    const uint64_t at = tokens + ((k + i) >> 2) * (MAX * LINE >> 4) + 2 * ((k + i) & 3);
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        packed_products<N>::add(acc[t], a[t][0][2 * i], a[t][1][2 * i], a[t][0][2 * i + 1],
                                                a[t][1][2 * i + 1], at);
                        if (F16) {
                            packed_products<N>::add(acc[t], low[t][0][2 * i], low[t][1][2 * i], low[t][0][2 * i + 1],
                                                    low[t][1][2 * i + 1], at);
                        }
                    }
                }
                products_commit();
                products_wait<1>();
                if (k == 0) { /* all of the stage before has been read */
                    if (previous >= 0 && lane == 0) {
                        barrier_arrive(&s->empty[previous]);
                    }
                    previous = cursor.stage;
                }
            }
            stage_cursor::next(cursor);
        }
        products_wait<0>();
        if (lane == 0) {
            barrier_arrive(&s->empty[previous]);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            pin(acc[t]);
            nan_rows<KIND>::put_right(seen[t], acc[t]);
        }
        scale_sums<KIND, TILES, N>(p, u, acc, scales, token_scales);
        if (is_down) {
            write_down<WIDE, TILES, N>(p, u, first, acc, places, staging);
        } else {
            write_up<WIDE, TILES, N>(p, u, acc, staging);
        }
    }
}

/* FP8 blocks.  A tile's part of 128 columns is added up while the next part's codes are made numbers; there is one set
 * of its sums, whose products are waited for then. */
template <int TILES, int MAX, int N>
MF_DEV void multiply_blocks(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, shared_state *s,
                            stage_cursor &cursor, int64_t *places, uint8_t *staging, const scale_words *words)
{
    constexpr int KIND = MF_CUDA_PACKED_FP8_BLOCK, STAGE = stage_bytes<KIND, TILES, MAX>(), CHUNKS = 2;
    constexpr int TOGETHER = TILES == 1 ? 2 : 1;
    constexpr bool WIDE = true;
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    const int steps = u->steps, lines = u->lines;
    const bool is_down = u->is_down;
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const mf_cuda_matrix &m0 = is_down ? slot.down : slot.gate, &m1 = is_down ? slot.down : slot.up;
    const int dtype = m0.scale_dtype;                                                /* up's, too */
    const int own = is_down ? block_of<TILES>(group) : 0, other = is_down ? own : 1; /* of the stage's scales */
    if (is_down) {
        list_places(p, u, places);
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        float acc[TILES][N / 2], part[N / 2], scale[2] = { 0.0f, 0.0f };
        nan_rows<KIND> seen[TILES];
        int rows[TILES][2]; /* of the stage */
        const int first = u->row + 128 * TILES * step;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                acc[t][i] = part[i] = 0.0f;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r =
                    is_down ? down_row<WIDE, TILES>(group, warp, g, t, half) : up_row<WIDE, TILES>(group, warp, g, t);
                rows[t][half] = is_down || !half ? r : 64 * TILES + r;
                seen[t].bits[half] = 0;
            }
        }
        const uint32_t address0 = (uint32_t)(uintptr_t)block_scale_at(m0, first + 128 * own, 0),
                       address1 = (uint32_t)(uintptr_t)block_scale_at(m1, first + 128 * own, 0);
        int previous = -1;
#pragma unroll 1
        for (int line = 0; line < lines; line++) {
            const uint8_t *stage = stages + cursor.stage * STAGE;
            barrier_wait(&s->full[cursor.stage], cursor.parity);
            fence_shared_for_products();
            const float now0 = block_scale(dtype, words->of[cursor.stage][own], address0 + line * scale_size(dtype));
            const float now1 = block_scale(dtype, words->of[cursor.stage][other], address1 + line * scale_size(dtype));
            const uint64_t tokens = product_operand(stage + tokens_at<KIND, TILES>());
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                uint4 codes[2][CHUNKS];
                load_codes<KIND, TILES, CHUNKS>(stage, rows[t], q, codes);
                nan_rows<KIND>::see(seen[t], codes);
#pragma unroll
                for (int k = 0; k < 8; k += TOGETHER) { /* 16 columns each */
                    uint32_t a[2][2 * TOGETHER], low[2][2 * TOGETHER];
                    widen_steps<KIND, TOGETHER, CHUNKS>(codes, k, a, low);
                    if (k == 0) {
                        products_wait<0>();
                        pin(part);
                        add_part<N>(acc[t == 0 ? TILES - 1 : t - 1], part, scale); /* of zeros at first */
                        pin(part);
                        if (t == 0) {
                            if (previous >= 0 && lane == 0) { /* all of the stage before has been read */
                                barrier_arrive(&s->empty[previous]);
                            }
                            previous = cursor.stage;
                            scale[0] = now0;
                            scale[1] = now1;
                        }
                    }
                    products_begin();
#pragma unroll
                    for (int i = 0; i < TOGETHER; i++) {
                        const uint64_t at = tokens + ((k + i) >> 2) * (MAX * LINE >> 4) + 2 * ((k + i) & 3);
                        if (k + i == 0) {
                            packed_products<N>::start(part, a[0][0], a[1][0], a[0][1], a[1][1], at);
                        } else {
                            packed_products<N>::add(part, a[0][2 * i], a[1][2 * i], a[0][2 * i + 1], a[1][2 * i + 1],
                                                    at);
                        }
                    }
                    products_commit();
                    products_wait<1>();
                }
            }
            stage_cursor::next(cursor);
        }
        products_wait<0>();
        if (lane == 0) {
            barrier_arrive(&s->empty[previous]);
        }
        pin(part);
        add_part<N>(acc[TILES - 1], part, scale);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            nan_rows<KIND>::put_right(seen[t], acc[t]);
        }
        if (is_down) {
            write_down<WIDE, TILES, N>(p, u, first, acc, places, staging);
        } else {
            write_up<WIDE, TILES, N>(p, u, acc, staging);
        }
    }
}

} // namespace

#endif
