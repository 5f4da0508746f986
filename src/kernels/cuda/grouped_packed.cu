/* grouped_packed.cu - grouped.cu's products for weights of 4 bits and activations of bf16: both in one launch.
 *
 * Tensor copies bring rows of codes, 128 bytes (256 columns) a stage; a thread loads 16 bytes of each of its two rows,
 * makes bf16 of them in registers, and these are the products' operand (packed.cuh).  Rows of that operand are free as
 * well: in w13 a thread's two rows are a gate row and its up row, so that it ends with both sums of one result.  Tokens
 * are gathered as in grouped.cu, from a copy with their columns in the operand's order; the intermediate is written so.
 *
 * Sums: columns ascending in steps of 128, inside them in the operand's order, one accumulator; weights rounded to bf16
 * once (MXFP4: exact).  TILES 64-row tiles a warpgroup, up to MAX tokens: neither changes a bit. */
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/packed.cuh"

namespace
{

constexpr int COLUMNS = 256;          /* of a stage's rows, 128 bytes; worked on in pieces of 128 */
constexpr int TOKEN_BYTES = 4 * LINE; /* of a token, as four lines of the products */
constexpr int SCALE_PITCH = 32, ZERO_PITCH = 16;
constexpr int WIDE_PITCH = 136; /* of staged tokens with 128 rows: rows of 16 bytes meet all banks */
constexpr int STAGING = 16 * WIDE_PITCH * 2;

/* Few tokens: two blocks a multiprocessor, so that one's units begin and end while the other's weights come. */
template <int MAX> constexpr int BLOCKS = MAX == MF_CUDA_PACKED_FEW ? 2 : 1;
template <int MAX> constexpr int PRODUCER_REGISTERS_OF = BLOCKS<MAX> == 2 ? 40 : 56;
template <int MAX> constexpr int CONSUMER_REGISTERS_OF = BLOCKS<MAX> == 2 ? 96 : 224;

template <int TILES, int MAX> __host__ __device__ constexpr int stage_bytes()
{
    return 2 * TILES * SUBTILE + MAX * TOKEN_BYTES + 128 * TILES * (SCALE_PITCH + ZERO_PITCH);
}

/* Of a stage: codes, tokens, scales, zero points. */
template <int TILES, int MAX> __host__ __device__ constexpr int scales_at()
{
    return 2 * TILES * SUBTILE + MAX * TOKEN_BYTES;
}

template <int TILES, int MAX> __host__ __device__ constexpr int zeros_at()
{
    return scales_at<TILES, MAX>() + 128 * TILES * SCALE_PITCH;
}

/* ---- scales ----
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

/* First scale of a line, and how many it has. */
MF_DEV int first_scale(const scale_grid &grid, int line)
{
    return COLUMNS * line >> grid.shift;
}

MF_DEV int scales_of_line(const scale_grid &grid)
{
    return grid.shift < 8 ? COLUMNS >> grid.shift : 1;
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

/* ---- rows of the operand ---- */

/* Row of the unit that a thread's row of tile t is: of the intermediate, gate and up alike, or of w2's.  Lanes 0 .. 7
 * of a load of 16 bytes meet all banks: rows of g and g + 1 differ by 4 (swizzled). */
template <int TILES> MF_DEV int up_row(int group, int warp, int g, int t)
{
    return TILES == 1 ? 32 * group + 8 * warp + (g >> 1) + 4 * (g & 1)
                      : packed_column(16 * (4 * group + warp) + 8 * t + g);
}

/* Few tokens: a thread's two rows follow one another, for its own stores.  Many: as the products give them. */
template <int TILES> MF_DEV int down_row(int group, int warp, int g, int t, int half)
{
    return 64 * (TILES * group + t) + 16 * warp +
           (TILES == 1 ? 2 * ((g & 4) | (g & 1) << 1 | (g >> 1 & 1)) + half : g + 8 * half);
}

/* ---- what goes out ---- */

/* Of one warpgroup. */
MF_DEV void own_barrier(int group)
{
    if (group == 0) {
        named_barrier<BARRIER_OWN, 128>();
    } else {
        named_barrier<BARRIER_OWN + 1, 128>();
    }
}

template <int TILES, int N>
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
        const int r = row + up_row<TILES>(group, warp, g, t);
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
        h += packed_place((row & 64) + up_row<TILES>(group, warp, g, 0));
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
            const int place = packed_place(64 + (i & 63));
            ((uint16_t *)p.e.h)[(int64_t)(u->first + (i >> 6)) * p.e.h_stride + row + place] = 0;
        }
    }
    named_barrier<BARRIER_BOTH, 256>();
    if (tid == 0) { /* released for all: the barrier put their stores before it */
        add_release(p.work + MF_CUDA_WORK_TILES + u->tile, 1);
    }
}

template <int TILES, int N>
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
            const int row = rows[t][half] = first_row + down_row<TILES>(group, warp, g, t, half);
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
                if (TILES == 1 && p.e.y_dtype == MF_BF16 && p.e.y_is_wide && rows[t][1] < hidden) {
                    *(uint32_t *)((uint16_t *)p.e.y + at + rows[t][0]) = pack_bf16(v0, v1);
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

/* ---- the two warpgroups that multiply ---- */

/* COUNT registers of each row: 8 columns each, from the 16 that begin at 16 k. */
template <int KIND, int TILES, int COUNT, bool SLOW>
MF_DEV void widen(const packed_scale<KIND> (&scales)[TILES][2], const uint4 (&codes)[TILES][2], int k,
                  uint32_t (&a)[TILES][2][COUNT])
{
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 c = codes[t][half];
            const uint32_t word = k / 2 == 0 ? c.x : k / 2 == 1 ? c.y : k / 2 == 2 ? c.z : c.w;
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                a[t][half][i] = packed_scale<KIND>::template widen<SLOW>(scales[t][half], word, 2 * (k & 1) + i);
            }
        }
    }
}

template <int KIND, int TILES, int MAX, int N>
MF_DEV void multiply(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, shared_state *s, stage_cursor &cursor,
                     int64_t *places, uint8_t *staging)
{
    constexpr int STAGE = stage_bytes<TILES, MAX>(), TOGETHER = TILES == 1 ? 2 : 1;
    typedef packed_scale<KIND> scale_type;
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    const int steps = u->steps;
    const bool is_down = u->is_down;
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const mf_cuda_matrix &m0 = is_down ? slot.down : slot.gate, &m1 = is_down ? slot.down : slot.up;
    const scale_grid grid = grid_of<KIND>(m0);
    const int pieces = (int)((m0.k + 127) >> 7);
    if (is_down) {
        named_barrier<BARRIER_BOTH, 256>(); /* the last unit's readers are done */
        for (int t = tid; t < u->count; t += 256) {
            places[t] = y_offset(p.e, __ldg(p.sorted + u->first + t));
        }
        named_barrier<BARRIER_BOTH, 256>();
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        float acc[TILES][N / 2];
        int rows[TILES][2]; /* of the stage */
        uint32_t addresses[TILES][2], zero_addresses[TILES][2];
        const int first = u->row + 128 * TILES * step;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                acc[t][i] = 0.0f;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = is_down ? down_row<TILES>(group, warp, g, t, half) : up_row<TILES>(group, warp, g, t);
                const mf_cuda_matrix &m = half ? m1 : m0;
                const uint32_t at = (uint32_t)(first + r) * (uint32_t)m.scale_row_stride;
                addresses[t][half] = (uint32_t)(uintptr_t)m.scale + at * grid.size;
                zero_addresses[t][half] = (uint32_t)(uintptr_t)m.zero + at;
                rows[t][half] = is_down || !half ? r : 64 * TILES + r;
            }
            pin(acc[t]);
        }
        int previous = -1;
#pragma unroll 1
        for (int piece = 0; piece < pieces; piece++) {
            const uint8_t *stage = stages + cursor.stage * STAGE;
            const int half_line = piece & 1;
            scale_type scales[TILES][2];
            uint4 codes[TILES][2];
            bool slow = false;
            if (!half_line) {
                barrier_wait(&s->full[cursor.stage], cursor.parity);
                fence_shared_for_products();
            }
#pragma unroll
            for (int t = 0; t < TILES; t++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = rows[t][half];
                    const raw_scale raw = load_scale<KIND>(
                        stage + scales_at<TILES, MAX>(), stage + zeros_at<TILES, MAX>(), grid, row, addresses[t][half],
                        zero_addresses[t][half], piece >> 1, 128 * half_line + 32 * q);
                    codes[t][half] = *(const uint4 *)(stage + swizzled(row, 4 * half_line + q));
                    scales[t][half] = scale_type::make(raw.bits, raw.zero);
                    slow = slow || scale_type::is_slow(scales[t][half]);
                }
            }
            slow = __any_sync(MF_FULL_WARP, slow);
            const uint64_t tokens = product_operand(stage + 2 * TILES * SUBTILE + half_line * 2 * MAX * LINE);
#pragma unroll
            for (int k = 0; k < 8; k += TOGETHER) { /* 16 columns each */
                uint32_t a[TILES][2][2 * TOGETHER];
                if (slow) {
                    widen<KIND, TILES, 2 * TOGETHER, true>(scales, codes, k, a);
                } else {
                    widen<KIND, TILES, 2 * TOGETHER, false>(scales, codes, k, a);
                }
                products_begin();
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    const uint64_t part = tokens + (k >> 2) * (MAX * LINE >> 4) + 2 * ((k + i) & 3);
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        packed_products<N>::add(acc[t], a[t][0][2 * i], a[t][1][2 * i], a[t][0][2 * i + 1],
                                                a[t][1][2 * i + 1], part);
                    }
                }
                products_commit();
                products_wait<1>();
                if (k == 0 && !half_line) { /* all of the stage before has been read */
                    if (previous >= 0 && lane == 0) {
                        barrier_arrive(&s->empty[previous]);
                    }
                    previous = cursor.stage;
                }
            }
            if (half_line || piece + 1 == pieces) {
                stage_cursor::next(cursor);
            }
        }
        products_wait<0>();
        if (lane == 0) {
            barrier_arrive(&s->empty[previous]);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            pin(acc[t]);
        }
        if (is_down) {
            write_down<TILES, N>(p, u, first, acc, places, staging);
        } else {
            write_up<TILES, N>(p, u, acc, staging);
        }
    }
}

template <int KIND, int TILES, int MAX>
MF_DEV void consume(const mf_cuda_grouped &p, int tiles, uint8_t *stages, shared_state *s, int64_t *places,
                    uint8_t *staging)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int i = 0;; i++) {
        barrier_wait(&s->full[cursor.stage], cursor.parity);
        unit_ref u = &s->units[i % UNITS];
        if (u->slot < 0) {
            leave_counters(p, tiles);
            return;
        }
        if constexpr (TILES == 1) {
            if (u->count <= 8) {
                multiply<KIND, TILES, MAX, 8>(p, u, stages, s, cursor, places, staging);
            } else if (MAX == 16 || u->count <= 16) {
                multiply<KIND, TILES, MAX, 16>(p, u, stages, s, cursor, places, staging);
            } else if (u->count <= 32) {
                multiply<KIND, TILES, MAX, MAX == 16 ? 16 : 32>(p, u, stages, s, cursor, places, staging);
            } else {
                multiply<KIND, TILES, MAX, MAX == 16 ? 16 : 64>(p, u, stages, s, cursor, places, staging);
            }
        } else {
            if (u->count <= 32) {
                multiply<KIND, TILES, MAX, 32>(p, u, stages, s, cursor, places, staging);
            } else if (u->count <= 64) {
                multiply<KIND, TILES, MAX, 64>(p, u, stages, s, cursor, places, staging);
            } else if (u->count <= 96) {
                multiply<KIND, TILES, MAX, 96>(p, u, stages, s, cursor, places, staging);
            } else {
                multiply<KIND, TILES, MAX, 128>(p, u, stages, s, cursor, places, staging);
            }
        }
    }
}

/* ---- the warp that brings weights, and gives out work ---- */

template <int TILES, int MAX>
MF_DEV void bring_weights(const mf_cuda_grouped &p, const int32_t *offsets, const int32_t *prefix, uint32_t first_unit,
                          uint8_t *stages, shared_state *s)
{
    constexpr int STAGE = stage_bytes<TILES, MAX>();
    const int slots = (int)p.e.num_slots, tiles = prefix[slots];
    const int64_t ups = (int64_t)tiles * p.up_tiles, units = ups + (int64_t)tiles * p.down_units;
    stage_cursor cursor = { 0, p.stages, 1 };
    int64_t next = first_unit;
    int made = 0;
    while (next < units) {
        const uint32_t claimed = claim_unit(p);
        const bool is_down = next >= ups;
        const int64_t local = is_down ? next - ups : next;
        const int row_tiles = is_down ? p.down_units : p.up_tiles;
        const int low = slot_of(prefix, slots, (int)(local / row_tiles));
        const int slot_tiles = prefix[low + 1] - prefix[low], inside = (int)(local - (int64_t)prefix[low] * row_tiles);
        const int row_tile = inside / slot_tiles, tile = inside % slot_tiles;
        const int begin = offsets[low], count = offsets[low + 1] - begin, size = tile_size(count, slot_tiles);
        const int width = p.width > 0 ? p.width : (int)p.e.slots[low].up.n;
        unit u;
        u.slot = low;
        u.is_down = is_down;
        u.first = begin + tile * size;
        u.count = min(size, count - tile * size);
        u.steps = is_down ? min(p.down_steps, p.down_tiles - row_tile * p.down_steps) : 1;
        u.row = row_tile * (is_down ? 128 * TILES * p.down_steps : 64 * TILES);
        u.lines = ((is_down ? width : (int)p.e.hidden_size) + COLUMNS - 1) / COLUMNS;
        u.tile = prefix[low] + tile;
        u.need = (width + 64 * TILES - 1) / (64 * TILES);
        if (u.count > 0 && (is_down || u.row < width)) {
            const CUtensorMap *maps = (const CUtensorMap *)p.maps + (int64_t)low * 3;
            const int stages_used = u.steps * u.lines;
            for (int i = 0, line = 0, first = u.row; i < stages_used; i++) {
                barrier_wait(&s->empty[cursor.stage], cursor.parity);
                if (i == 0) {
                    announce(s, made++, u);
                }
                uint64_t *full = &s->full[cursor.stage];
                uint8_t *to = stages + cursor.stage * STAGE;
                barrier_expect(full, 2 * TILES * SUBTILE);
#pragma unroll
                for (int k = 0; k < 2 * TILES; k++) {
                    const CUtensorMap *map = is_down ? maps + 2 : k < TILES ? maps : maps + 1;
                    copy_packed_box(to + k * SUBTILE, map, first + 64 * (is_down ? k : k % TILES), LINE * line, full);
                }
                stage_cursor::next(cursor);
                if (++line == u.lines) {
                    line = 0;
                    first += 128 * TILES;
                }
            }
        }
        next = claimed;
    }
    barrier_wait(&s->empty[cursor.stage], cursor.parity);
    announce_end(s, made);
    barrier_arrive(&s->full[cursor.stage]);
}

/* ---- the warps that gather tokens ---- */

template <int KIND, int TILES, int MAX>
MF_DEV void gather(const mf_cuda_grouped &p, uint32_t *rows, uint8_t *stages, shared_state *s)
{
    constexpr int STAGE = stage_bytes<TILES, MAX>();
    const int tid = threadIdx.x - 32, chunk = tid & 31, first_row = tid >> 5;
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int n = 0;; n++) {
        const unit u = *(const unit *)announced_unit(s, n);
        if (u.slot < 0) {
            barrier_arrive(&s->full[cursor.stage]);
            return;
        }
        const mf_cuda_slot &slot = p.e.slots[u.slot];
        const mf_cuda_matrix &m0 = u.is_down ? slot.down : slot.gate, &m1 = u.is_down ? slot.down : slot.up;
        const scale_grid grid = grid_of<KIND>(m0);
        const int count = scales_of_line(grid), num_rows = (int)m0.n, pieces = (int)((m0.k + 127) >> 7);
        const uint8_t *scale0 = m0.scale, *scale1 = m1.scale, *zero0 = m0.zero, *zero1 = m1.zero;
        const int stride0 = (int)m0.scale_row_stride, stride1 = (int)m1.scale_row_stride;
        if (u.is_down) {
            while (load_acquire(p.work + MF_CUDA_WORK_TILES + u.tile) < (uint32_t)u.need) {
            }
        }
        named_barrier<BARRIER_GATHER, GATHERERS>(); /* nobody reads the last unit's rows any more */
        for (int t = tid; t < u.count; t += GATHERERS) {
            rows[t] = u.is_down ? (uint32_t)(u.first + t) : (uint32_t)p.sorted[u.first + t] / (uint32_t)p.e.num_columns;
        }
        named_barrier<BARRIER_GATHER, GATHERERS>();
        const uint8_t *rows_from = (u.is_down ? p.h_bytes : p.x_bytes) + chunk * 16;
        const uint32_t pitch = (uint32_t)(u.is_down ? p.h_pitch : p.x_pitch);
        const uint32_t to_line = 2 * TILES * SUBTILE + (chunk >> 3) * MAX * LINE;
        for (int step = 0; step < u.steps; step++) {
            for (int line = 0; line < u.lines; line++) {
                if (step + line > 0) {
                    barrier_wait(&s->empty[cursor.stage], cursor.parity ^ 1);
                }
                uint8_t *to = stages + cursor.stage * STAGE + to_line;
                const uint8_t *from = rows_from + line * TOKEN_BYTES;
                const int there = 2 * line + (chunk >> 4) < pieces ? u.count : 0; /* a row's last stage may be half */
#pragma unroll 4
                for (int t = first_row; t < there; t += GATHERERS / 32) {
                    copy_async(to + swizzled(t, chunk & 7), from + (uint64_t)rows[t] * pitch, true);
                }
                uint8_t *stage = stages + cursor.stage * STAGE;
                const int first = first_scale(grid, line);
                for (int r = tid; r < 128 * TILES; r += GATHERERS) {
                    const bool is_up = !u.is_down && r >= 64 * TILES;
                    const int row = u.row + (u.is_down ? 128 * TILES * step + r : is_up ? r - 64 * TILES : r);
                    const int at = row < num_rows ? row * (is_up ? stride1 : stride0) : 0,
                              columns = row < num_rows ? grid.columns : 0;
                    copy_elements(stage + scales_at<TILES, MAX>() + r * SCALE_PITCH,
                                  (is_up ? scale1 : scale0) + (int64_t)at * grid.size, first, count, grid.size,
                                  columns);
                    if (grid.has_zeros) {
                        copy_elements(stage + zeros_at<TILES, MAX>() + r * ZERO_PITCH, (is_up ? zero1 : zero0) + at,
                                      first, count, 1, columns);
                    }
                }
                barrier_arrive_after_copies(&s->full[cursor.stage]);
                stage_cursor::next(cursor);
            }
        }
    }
}

template <int KIND, int TILES, int MAX>
__global__ void __launch_bounds__(THREADS, BLOCKS<MAX>) packed_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[]; /* no other shared memory: it begins at a swizzle atom */
    uint8_t *staging = stages + p.stages * stage_bytes<TILES, MAX>();
    int64_t *places = (int64_t *)(staging + (TILES == 2 ? STAGING : 0));
    shared_state *s = (shared_state *)(places + MAX);
    int32_t *offsets = (int32_t *)(s + 1), *prefix = offsets + p.e.num_slots + 1;
    if (threadIdx.x == 0) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(&s->full[i], 1 + GATHERERS);
            barrier_init(&s->empty[i], 8);
        }
        init_announcements(s);
        barrier_init_fence();
    }
    wait_for_previous();
    let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    const uint32_t first = threadIdx.x == 0 ? claim_unit(p) : 0;
    scan_tiles(p, MAX, offsets, prefix, s->sums);
    if (threadIdx.x < PRODUCERS) {
        give_registers<PRODUCER_REGISTERS_OF<MAX>>();
        if (threadIdx.x == 0) {
            bring_weights<TILES, MAX>(p, offsets, prefix, first, stages, s);
        } else if (threadIdx.x >= 32) {
            gather<KIND, TILES, MAX>(p, (uint32_t *)(prefix + p.e.num_slots + 1), stages, s);
        }
    } else {
        take_registers<CONSUMER_REGISTERS_OF<MAX>>();
        zero_strangers(p);
        consume<KIND, TILES, MAX>(p, prefix[p.e.num_slots], stages, s, places, staging);
    }
}

template <int KIND, int TILES, int MAX> int launch(const mf_cuda_grouped *call, cudaStream_t stream)
{
    const auto kernel = packed_kernel<KIND, TILES, MAX>;
    static_assert(stage_bytes<TILES, MAX>() == TILES * (16384 + 6144) + MAX * 512, "mf_cuda_packed_stage_bytes");
    const size_t bytes = (size_t)call->stages * stage_bytes<TILES, MAX>() + (TILES == 2 ? STAGING : 0) + MAX * 8 +
                         sizeof(shared_state) + ((size_t)call->e.num_slots + 1) * 8 + MAX * 4;
    return launch_shared(true, kernel, dim3((unsigned)call->blocks), THREADS, bytes, stream, *call);
}

template <int KIND> int launch_kind(const mf_cuda_grouped *call, cudaStream_t stream)
{
    switch (call->max_tokens) {
    case MF_CUDA_PACKED_FEW:
        return launch<KIND, 1, MF_CUDA_PACKED_FEW>(call, stream);
    case MF_CUDA_PACKED_SOME:
        return launch<KIND, 1, MF_CUDA_PACKED_SOME>(call, stream);
    default:
        return launch<KIND, 2, MF_CUDA_PACKED_MANY>(call, stream);
    }
}

} // namespace

int mf_cuda_launch_grouped_packed(const mf_cuda_grouped *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    switch (call->packed) {
    case MF_CUDA_PACKED_MXFP4:
        return launch_kind<MF_CUDA_PACKED_MXFP4>(call, s);
    case MF_CUDA_PACKED_INT4:
        return launch_kind<MF_CUDA_PACKED_INT4>(call, s);
    default:
        return launch_kind<MF_CUDA_PACKED_INT4_ANY>(call, s);
    }
}
