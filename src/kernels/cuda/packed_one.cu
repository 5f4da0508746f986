/* packed_one.cu - integer weights of 4 bits, or 8 bits with a scale a row, beside bf16 activations, for one token: w13,
 * then w2, a launch each.
 *
 * A unit is 8 rows (of w13: 4 of gate and 4 of up) of the slot of one pair, and a warp's alone: the sums of these
 * formats are one chain over all columns, and one token has too few units of 16 rows for every scheduler.  They are the
 * rows 0 to 7 of mma.sync's 16, whose sums are wgmma's.  Nothing is listed: a pair's id says where its slot's rows lie.
 * A warp copies its units' codes and scales, one unit after the other, into a ring of its own.  Columns come in
 * grouped_packed.cuh's order, so the bits are that kernel's.  w13 has x in shared memory; w2's rings have their part of
 * the intermediate, which lies in memory as the products read it.  w2's blocks begin beside w13's and ask for their
 * first weights before the intermediate is there.  Where a plain combine follows, a block of w2 has all pairs of its
 * rows and ends with it. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/packed_few4.cuh"
#include "kernels/cuda/packed_one.h"
#include "kernels/cuda/packed_wide.cuh"
#include "kernels/cuda/sum_reduce.cuh"

namespace
{

constexpr int ONE_REGISTERS = 72; /* 12 warps of w13 and 16 of w2 are on a multiprocessor together */
constexpr int ROWS = MF_CUDA_PACKED_ONE_ROWS, ROW_BYTES = MF_CUDA_PACKED_ONE_BYTES, CODE_BYTES = ROWS * ROW_BYTES;

template <int KIND> constexpr bool HAS_NANS = KIND == MF_CUDA_PACKED_FP8_CHANNEL;

MF_DEV void one_wait(int depth)
{
    switch (depth) {
    case 2:
        copy_wait<1>();
        break;
    case 3:
        copy_wait<2>();
        break;
    case 4:
        copy_wait<3>();
        break;
    case 5:
        copy_wait<4>();
        break;
    default:
        copy_wait<MF_CUDA_PACKED_ONE_DEPTH - 1>();
    }
}

/* The whole 16 bytes that hold `bytes` from `from` on, by LANES lanes of a warp; what lies behind them: zeros, unread.
 */
template <int LANES> MF_DEV void copy_span(uint32_t to, const uint8_t *from, int bytes)
{
    const int phase = (int)((uintptr_t)from & 15), end = phase + bytes;
    from -= phase;
#pragma unroll 1
    for (int i = 16 * (threadIdx.x & (LANES - 1)); i < end; i += 16 * LANES) {
        copy_async_at(to + i, from + i, (uint32_t)min(end - i, 16));
    }
}

/* sums[16 x 8] += weights by the token, of which rows 8 to 15 are nobody's: their operands are whatever registers have.
 */
MF_PTX void mma_half(float (&c)[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1)
{
    asm("{ .reg .b32 any; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,any,%5,any},{%6,%7},"
        "{%0,%1,%2,%3}; }"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a2), "r"(b0), "r"(b1));
}

/* A group's scale, and that of another lane of four. */
template <int KIND> struct one_scale;

template <> struct one_scale<MF_CUDA_PACKED_INT4> : few4_scale<MF_CUDA_PACKED_INT4> {
    MF_DEV_MEMBER one_scale make(const raw_scale &r)
    {
        return { few4_scale<MF_CUDA_PACKED_INT4>::make(r) };
    }
    MF_DEV_MEMBER one_scale of_lane(const one_scale &s, int from)
    {
        one_scale r;
        r.large = __shfl_sync(MF_FULL_WARP, s.large, from);
        r.minus_eight = __shfl_sync(MF_FULL_WARP, s.minus_eight, from);
        return r;
    }
};

/* Odd codes of a word, whose bits are a bf16's 7 to 4, as they are: c 2^-129, a quarter of the code after one fma,
 * which meets four times the scale. */
template <> struct one_scale<MF_CUDA_PACKED_INT4_ANY> {
    uint32_t high, low, offset, high4, low4, offset4;
    MF_DEV_MEMBER bool is_slow(const one_scale &f, const raw_scale &r)
    {
        return r.zero >= 128 || (f.high & 0x7f80u) >= 0x7d00u;
    }
    MF_DEV_MEMBER one_scale whole(uint32_t high, uint32_t low, uint32_t offset)
    {
        return { high,
                 low,
                 offset,
                 mul_bf16x2(high, 0x40804080u),
                 mul_bf16x2(low, 0x40804080u),
                 fma_bf16x2(offset, 0x3e803e80u, 0x42004200u) };
    }
    MF_DEV_MEMBER one_scale make(const raw_scale &r)
    {
        const few4_scale<MF_CUDA_PACKED_INT4_ANY> f = few4_scale<MF_CUDA_PACKED_INT4_ANY>::make(r);
        return whole(f.s.high, f.s.low, f.s.offset);
    }
    MF_DEV_MEMBER one_scale of_lane(const one_scale &s, int from)
    {
        return whole(__shfl_sync(MF_FULL_WARP, s.high, from), __shfl_sync(MF_FULL_WARP, s.low, from),
                     __shfl_sync(MF_FULL_WARP, s.offset, from));
    }
    MF_DEV_MEMBER uint32_t widen(const one_scale &s, uint32_t w, int i)
    {
        const uint32_t at = i < 2 ? w : w >> 8;
        if (i & 1) {
            const uint32_t v = fma_bf16x2(at & 0x00f000f0u, 0x7f007f00u, s.offset4);
            return fma_bf16x2(v, s.high4, mul_bf16x2(v, s.low4));
        }
        const uint32_t v = add_bf16x2(masked_or<0x000f000fu>(at, 0x43004300u), s.offset);
        return fma_bf16x2(v, s.high, mul_bf16x2(v, s.low));
    }
};

/* What a warp brings next. */
struct one_source {
    const uint8_t *codes[2];         /* a lane's: rows lane / 16 and lane / 16 + 4; those two below follow */
    uint32_t entry;                  /* where in shared memory */
    int32_t unit, stage, pair, turn; /* unit: of the warp's; stage -1: none any more; turn: of scales */
};

/* SHARED: groups have whole pieces of 128 columns. */
template <int KIND, bool DOWN, bool SHARED>
__global__ void __maxnreg__(ONE_REGISTERS)
    one_kernel(const __grid_constant__ mf_cuda_grouped p, const __grid_constant__ mf_cuda_packed_one one,
               const __grid_constant__ mf_cuda_sum sum, uint32_t part)
{
    extern __shared__ __align__(128) uint8_t shared[];
    constexpr bool WIDE = packed_kind<KIND>::WIDE;
    constexpr int COLUMNS = (WIDE ? 1 : 2) * ROW_BYTES, AT_ONCE = DOWN ? ROWS : ROWS / 2;
    const mf_cuda_packed_one_launch &o = one.of[DOWN ? 1 : 0];
    const mf_cuda_alike_matrix &lies = DOWN ? one.alike.down : one.alike.up;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const int warps = o.warps, depth = o.depth, entry_bytes = o.stage_bytes, scale_bytes = o.scale_bytes,
              zero_bytes = o.zero_bytes, unit_bytes = (DOWN ? 1 : 2) * (scale_bytes + zero_bytes),
              ring_bytes = depth * entry_bytes, warp_bytes = ring_bytes + o.turns * unit_bytes;
    const int columns = (int)(DOWN ? p.width : p.e.hidden_size), stages = (columns + COLUMNS - 1) / COLUMNS;
    const int tiles = (int)((DOWN ? p.e.hidden_size : p.width) / AT_ONCE), pairs = (int)p.e.num_pairs;
    const int shift = lies.group_shift, size = KIND == MF_CUDA_PACKED_INT4 ? 2 : lies.scale_size;
    const int row_scales = (columns + (1 << shift) - 1) >> shift;
    uint8_t *behind = shared + warps * warp_bytes;
    /* Of w2 with a combine. */
    float *weights = (float *)behind, *results = weights + 2 * ((pairs + 31) & ~31);
    int32_t *ids = (int32_t *)(weights + ((pairs + 31) & ~31));
    const bool combines = DOWN && p.few_combines;

    /* A warp's i-th unit; with a combine, the pairs of one tile after the other are a block's. */
    auto locate = [&](int i, int &tile) {
        const int of = i * warps + warp, unit = combines ? of : of * (int)gridDim.x + (int)blockIdx.x,
                  whole = part ? (int)__umulhi((uint32_t)unit, part) : unit,
                  rest = unit - whole * (combines ? pairs : tiles);
        tile = combines ? (int)blockIdx.x + whole * (int)gridDim.x : rest;
        return combines ? (tile < tiles ? rest : -1) : whole < pairs ? whole : -1;
    };
    const int32_t *const ids_of = (const int32_t *)p.e.ids; /* pairs' */
    const mf_cuda_slot *const slots = p.e.slots;

    /* ---- copies: 16 lanes a row of codes, a warp a stage of the token ---- */
    uint8_t *const ring = shared + warp * warp_bytes;
    const uint32_t ring_address = shared_address(ring);
    const int chunk = lane & 15, odd = lane >> 4;
    const uint32_t codes_to = odd * ROW_BYTES + ((chunk ^ (WIDE ? odd : odd << 2)) << 4);
    /* The next unit from `unit` on whose pair has a slot: its place, or stage -1. */
    auto find_unit = [&](int &unit, int &stage, int &pair, int &tile) {
        for (;; unit++) {
            pair = locate(unit, tile);
            const int id = pair < 0 ? 0 : ids_of[pair];
            if (pair < 0 || (id >= 0 && id < p.e.num_slots)) {
                stage = pair < 0 ? -1 : 0;
                return id;
            }
        }
    };
    auto begin_unit = [&](one_source &next) {
        int tile;
        const int id = find_unit(next.unit, next.stage, next.pair, tile);
        if (next.stage < 0) {
            return;
        }
        const mf_cuda_slot &slot = slots[id];
        const mf_cuda_matrix &first = DOWN ? slot.down : slot.gate, &second = DOWN ? slot.down : slot.up;
        const int64_t row = (int64_t)(tile * AT_ONCE + odd) * lies.row_bytes + chunk * 16;
        next.codes[0] = first.data + row;
        next.codes[1] = DOWN ? next.codes[0] + 4 * lies.row_bytes : second.data + row;
        if constexpr (!WIDE) { /* gate's, up's; behind them zero points */
            constexpr int LANES = DOWN ? 32 : 16;
            const bool is_second = !DOWN && odd;
            const int count = AT_ONCE * row_scales, from = tile * count;
            const uint32_t to = ring_address + ring_bytes + next.turn * unit_bytes;
            copy_span<LANES>(to + (is_second ? scale_bytes : 0),
                             (is_second ? second.scale : first.scale) + (int64_t)from * size, count * size);
            if (KIND == MF_CUDA_PACKED_INT4_ANY && lies.has_zeros) {
                copy_span<LANES>(to + (DOWN ? 1 : 2) * scale_bytes + (is_second ? zero_bytes : 0),
                                 (is_second ? second.zero : first.zero) + from, count);
            }
            next.turn = next.turn + 1 == o.turns ? 0 : next.turn + 1;
        }
    };
    auto copy_weights = [&](const one_source &next) {
        const uint32_t bytes =
            next.stage * COLUMNS + chunk * (COLUMNS / 16) < columns ? 16 : 0; /* whole chunks: a row's length */
        const uint32_t to = next.entry + codes_to, from = (uint32_t)next.stage * ROW_BYTES;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            copy_once_at(to + i * 2 * ROW_BYTES, next.codes[i >> 1] + (from + (i & 1) * 2 * (uint32_t)lies.row_bytes),
                         bytes);
        }
    };
    auto copy_token = [&](int pair, int stage, uint32_t entry) {
        const uint8_t *from =
            (const uint8_t *)p.e.h + ((uint32_t)pair * (uint32_t)p.e.h_stride * 2 + stage * (2 * COLUMNS) + lane * 16);
        const uint32_t to = entry + CODE_BYTES + lane * 16;
        /* A lane's 8 columns in memory's order of 128: 32 (lane % 4) + 8 (lane / 4 % 4) and on. */
        const int left = columns - stage * COLUMNS - (lane >> 4) * 128 - (lane & 3) * 32 - (lane >> 2 & 3) * 8;
        copy_async_at(to, from, left > 0 ? 16 : 0);
        if constexpr (!WIDE) {
            copy_async_at(to + 512, from + 512, left > 256 ? 16 : 0);
        }
    };
    /* The next stage, if there is one. */
    auto bring = [&](one_source &next) {
        if (next.stage >= 0 && ++next.stage == stages) {
            next.unit++;
            begin_unit(next);
        }
        if (next.stage >= 0) {
            copy_weights(next);
        }
    };
    one_source next = {};
    next.unit = -1;
    next.stage = stages - 1;
    next.entry = ring_address;
    if constexpr (DOWN) {
#pragma unroll 1
        for (int i = 0; i < depth; i++) {
            bring(next);
            next.entry += entry_bytes;
        }
    }

    /* ---- products ---- */
    const uint32_t code0 = g * ROW_BYTES + (WIDE ? (2 * q ^ (g & 1)) << 4 : (q ^ (g & 1) << 2) << 4);
    int turn = 0, place = 0; /* in the ring: what has been read there makes room for what is `depth` stages later */
    /* The first time through without work, before the wait: a launch meets its code cold. */
#pragma unroll 1
    for (int pass = DOWN ? 1 : 0; pass < 2; pass++) {
        if (pass) {
            if constexpr (DOWN) {
                int again = 0, again_stage, again_pair, again_tile;
                find_unit(again, again_stage, again_pair, again_tile);
                if (combines && (int)threadIdx.x < pairs) {
                    const int t = (int)threadIdx.x / (int)p.e.num_columns;
                    ids[threadIdx.x] = ids_of[threadIdx.x];
                    weights[threadIdx.x] = sum_weight(sum, t, (int)threadIdx.x - t * (int)p.e.num_columns);
                }
                wait_for_previous();
                let_next_start();
#pragma unroll 1
                for (int i = 0; i < depth; i++) {
                    if (again_stage >= 0) {
                        copy_token(again_pair, again_stage, ring_address + i * entry_bytes);
                        if (++again_stage == stages) {
                            again++;
                            find_unit(again, again_stage, again_pair, again_tile);
                        }
                    }
                    copy_commit(); /* the first one has all codes so far */
                }
                if (!combines) {
                    zero_few_strangers(p, ids_of, pairs, blockDim.x);
                }
            } else {
                const int64_t bytes = p.e.num_slots * (int64_t)sizeof(mf_cuda_slot);
                for (int64_t i = ((int64_t)threadIdx.x * gridDim.x + blockIdx.x) * 128; i < bytes;
                     i += (int64_t)blockDim.x * gridDim.x * 128) {
                    prefetch_line((const uint8_t *)slots + i);
                }
                wait_for_previous();
                /* All of x, its columns in order: a thread's first pieces are asked for before it looks at the ids. */
                constexpr int AHEAD = 2;
                const uint32_t row_pieces = (uint32_t)(columns + 127) / 128 * 16,
                               all_pieces = (uint32_t)p.e.num_tokens * row_pieces;
                uint4 ahead[AHEAD];
                auto load_piece = [&](uint32_t i) {
                    const uint32_t t = p.e.num_tokens == 1 ? 0 : i / row_pieces, piece = i - t * row_pieces;
                    return i < all_pieces && (int)piece * 8 < columns
                               ? __ldg((const uint4 *)((const uint16_t *)p.e.x + t * p.e.x_stride) + piece)
                               : make_uint4(0, 0, 0, 0);
                };
                auto store_piece = [&](uint32_t i, const uint4 &v) {
                    if (i < all_pieces) { /* rows are whole pieces of 16 */
                        *(uint4 *)(behind + (i >> 4) * 256 + few4_piece_at((int)i & 15) * 16) = WIDE ? v : paired(v);
                    }
                };
#pragma unroll
                for (int i = 0; i < AHEAD; i++) {
                    ahead[i] = load_piece(threadIdx.x + i * blockDim.x);
                }
#pragma unroll 1
                for (int i = 0; i < depth; i++) {
                    bring(next);
                    next.entry += entry_bytes;
                    copy_commit();
                }
#pragma unroll
                for (int i = 0; i < AHEAD; i++) {
                    store_piece(threadIdx.x + i * blockDim.x, ahead[i]);
                }
                for (uint32_t i = threadIdx.x + AHEAD * blockDim.x; i < all_pieces; i += blockDim.x) {
                    store_piece(i, load_piece(i));
                }
                __syncthreads();
            }
        }
#pragma unroll 1
        for (int unit = 0;; unit++) {
            int tile = 0, pair = 0, id = 0;
            if (pass) {
                pair = locate(unit, tile);
                if (pair < 0) {
                    break;
                }
                id = ids_of[pair];
                if (id < 0 || id >= p.e.num_slots) {
                    continue;
                }
            }
            /* A lane's row of the unit, and of its matrix; whose scales begin where. */
            const bool is_second = !DOWN && g >= 4;
            const int inside = DOWN ? g : g & 3, row = tile * AT_ONCE + inside;
            const mf_cuda_slot &slot = slots[id];
            const mf_cuda_matrix &of = DOWN ? slot.down : is_second ? slot.up : slot.gate;
            float bias = 0.0f, row_scale = 1.0f;
            bool has_bias = false;
            if (one.alike.has_biases) {
                const float *const biases = DOWN ? slot.down_bias : is_second ? slot.up_bias : slot.gate_bias;
                has_bias = DOWN ? biases != NULL : slot.gate_bias || slot.up_bias;
                if (biases) {
                    bias = load_early(biases + row);
                }
            }
            const uint8_t *row_from = NULL, *row_zeros = NULL; /* a row's scales and zero points */
            if constexpr (WIDE) {
                row_scale = scale_at(of, (int64_t)row * lies.scale_stride);
            } else {
                const int first = tile * AT_ONCE * row_scales;
                const uint8_t *from = ring + ring_bytes + turn * unit_bytes;
                row_from = from + (is_second ? scale_bytes : 0) + ((uint32_t)(uintptr_t)of.scale + first * size & 15) +
                           inside * row_scales * size;
                row_zeros = from + (DOWN ? 1 : 2) * scale_bytes + (is_second ? zero_bytes : 0) +
                            ((uint32_t)(uintptr_t)of.zero + first & 15) + inside * row_scales;
                turn = turn + 1 == o.turns ? 0 : turn + 1;
            }
            const uint8_t *tokens =
                DOWN || !pass ? ring : behind + (uint32_t)pair_token(p.e, pair) * ((columns + 127) >> 7) * 256 + q * 16;
            float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
            uint32_t seen = 0;
#pragma unroll 1
            for (int stage = 0; stage < (pass ? stages : 1); stage++) {
                const uint8_t *entry = ring + place;
                one_wait(depth);
                __syncwarp();
                if (!DOWN && warp == 0 && pass && stage == 0) {
                    let_next_start(); /* its first weights come behind these */
                }
                if (DOWN) {
                    tokens = entry + CODE_BYTES + q * 16;
                }
                if constexpr (WIDE) {
#pragma unroll
                    for (int piece = 0; piece < 2; piece++) {
                        if (COLUMNS * stage + 128 * piece >= columns) {
                            break;
                        }
                        uint4 codes[2];
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            codes[j] = *(const uint4 *)(entry + piece * LINE + (code0 ^ j << 4));
                        }
#pragma unroll
                        for (int k = 0; k < 8; k += 2) {
                            const uint4 b = *(const uint4 *)(tokens + piece * 256 + k * 32);
#pragma unroll
                            for (int j = 0; j < 2; j++) {
                                const uint32_t word = word_of(codes[k >> 2], k + j & 3);
                                uint32_t low, high;
                                wide_codes<KIND>::widen(word, low, high);
                                if (HAS_NANS<KIND>) {
                                    seen |= wide_codes<KIND>::nan_bits(word);
                                }
                                mma_half(acc, low, high, j ? b.z : b.x, j ? b.w : b.y);
                            }
                        }
                    }
                    tokens += 512;
                } else {
                    /* Of groups of 128 columns and more a lane makes the scale of one piece for all four; else its own.
                     */
                    const int left = (columns - COLUMNS * stage + 127) >> 7;
                    auto raw_at = [&](int column) {
                        raw_scale r = { 0u, 8u };
                        const int i = (COLUMNS * stage + column) >> shift;
                        const uint8_t *from = row_from + i * size;
                        if (KIND == MF_CUDA_PACKED_INT4) {
                            r.bits = *(const uint16_t *)from;
                        } else if (size == 4) {
                            r.bits = *(const uint32_t *)from;
                        } else {
                            const uint16_t v = *(const uint16_t *)from;
                            r.bits = lies.scale_dtype == MF_F16 ? __float_as_uint(f16_to_f32(v)) : (uint32_t)v << 16;
                        }
                        if (KIND == MF_CUDA_PACKED_INT4_ANY && lies.has_zeros) {
                            r.zero = row_zeros[i];
                        }
                        return r;
                    };
                    auto multiply = [&](int piece, const uint4 &codes, const auto &of) {
#pragma unroll
                        for (int w = 0; w < 4; w++) {
                            const uint4 b = *(const uint4 *)(tokens + piece * 256 + w * 64);
                            const uint32_t c = word_of(codes, w);
#pragma unroll
                            for (int j = 0; j < 2; j++) {
                                mma_half(acc, of(c, 2 * j), of(c, 2 * j + 1), j ? b.z : b.x, j ? b.w : b.y);
                            }
                        }
                    };
                    auto multiply_slowly = [&](int piece, const uint4 &codes, int column, raw_scale r) {
                        if (column + 32 * q >= columns) { /* any word stands there */
                            r.bits = 0;
                        }
                        const packed_scale<KIND> full = packed_scale<KIND>::make(r.bits, r.zero);
                        multiply(piece, codes, [&](uint32_t w, int i) {
                            return packed_scale<KIND>::template widen<true>(full, w, i);
                        });
                    };
                    raw_scale shared_raw;
                    one_scale<KIND> shared_scale;
                    bool is_slow = false;
                    if constexpr (SHARED) {
                        shared_raw = raw_at(128 * q);
                        shared_scale = one_scale<KIND>::make(shared_raw);
                        is_slow = q < left && (COLUMNS * stage + 128 * q + 128 > columns ||
                                               one_scale<KIND>::is_slow(shared_scale, shared_raw));
                        is_slow = __any_sync(MF_FULL_WARP, is_slow) && pass;
                    }
#pragma unroll 1
                    for (int half_stage = 0; half_stage < 2; half_stage++) {
                        const int from_column = COLUMNS * stage + 256 * half_stage;
                        if (2 * half_stage >= left) {
                            break;
                        }
                        uint4 codes[2];
#pragma unroll
                        for (int piece = 0; piece < 2; piece++) {
                            codes[piece] = *(const uint4 *)(entry + half_stage * LINE + (code0 ^ piece << 6));
                        }
                        raw_scale raw[2];
                        one_scale<KIND> scales[2];
                        if constexpr (!SHARED) {
                            is_slow = from_column + 256 > columns;
#pragma unroll
                            for (int piece = 0; piece < 2; piece++) {
                                raw[piece] = raw_at(256 * half_stage + 128 * piece + 32 * q);
                                scales[piece] = one_scale<KIND>::make(raw[piece]);
                                is_slow = is_slow || one_scale<KIND>::is_slow(scales[piece], raw[piece]);
                            }
                            is_slow = __any_sync(MF_FULL_WARP, is_slow) && pass;
                        }
                        if (!is_slow) {
#pragma unroll
                            for (int piece = 0; piece < 2; piece++) {
                                if (SHARED && 2 * half_stage + piece >= left) {
                                    break;
                                }
                                if constexpr (SHARED) {
                                    scales[piece] =
                                        one_scale<KIND>::of_lane(shared_scale, (lane & 28) | (2 * half_stage + piece));
                                }
                                multiply(piece, codes[piece], [&](uint32_t w, int i) {
                                    return one_scale<KIND>::widen(scales[piece], w, i);
                                });
                            }
                        } else {
#pragma unroll 1
                            for (int piece = 0; piece < 2 && 2 * half_stage + piece < left; piece++) {
                                raw_scale r = { piece ? raw[1].bits : raw[0].bits, piece ? raw[1].zero : raw[0].zero };
                                if constexpr (SHARED) {
                                    const int from = (lane & 28) | (2 * half_stage + piece);
                                    r.bits = __shfl_sync(MF_FULL_WARP, shared_raw.bits, from);
                                    r.zero = __shfl_sync(MF_FULL_WARP, shared_raw.zero, from);
                                }
                                const uint4 &a = codes[0], &b = codes[1];
                                const uint4 own = make_uint4(piece ? b.x : a.x, piece ? b.y : a.y, piece ? b.z : a.z,
                                                             piece ? b.w : a.w);
                                multiply_slowly(piece, own, from_column + 128 * piece, r);
                            }
                        }
                        tokens += 512;
                    }
                }
                __syncwarp(); /* the entry has been read */
                if (!pass) {
                    break;
                }
                next.entry = ring_address + place;
                bring(next);
                if (DOWN && next.stage >= 0) {
                    copy_token(next.pair, next.stage, next.entry);
                }
                copy_commit();
                place = place + entry_bytes == ring_bytes ? 0 : place + entry_bytes;
            }
            float v = acc[0];
            if constexpr (HAS_NANS<KIND>) {
                seen |= __shfl_xor_sync(MF_FULL_WARP, seen, 1);
                seen |= __shfl_xor_sync(MF_FULL_WARP, seen, 2);
                v = seen & 0x80808080u ? __uint_as_float(0x7fc00000u) : v;
            }
            v = WIDE ? __fmul_rn(v, row_scale) : v;
            v = has_bias ? __fadd_rn(v, bias) : v;
            if constexpr (DOWN) {
                if (q == 0 && pass) {
                    if (combines) {
                        results[((tile / (int)gridDim.x) * pairs + pair) * ROWS + g] = round_to_dtype(v, p.e.y_dtype);
                    } else {
                        few4_store(p, pair, row, v);
                    }
                }
            } else {
                const float up = __shfl_xor_sync(MF_FULL_WARP, v, 16);
                if (q == 0 && g < 4 && pass) {
                    const swiglu act = swiglu_of(one.alike.activation, one.alike.limit, one.alike.alpha);
                    const int at = row & 7,
                              place = few4_piece_at(row >> 3 & 15) * 8 + (WIDE ? at : 2 * (at & 3) + (at >> 2));
                    ((uint16_t *)p.e.h)[(int64_t)pair * p.e.h_stride + (row & ~127) + place] =
                        (uint16_t)pack_bf16(apply(act, v, up), 0.0f);
                }
            }
            if (!pass) {
                turn = 0;
                break;
            }
        }
    }

    /* ---- the combine: the chain of ref/sum_reduce.c over a token's columns ---- */
    if constexpr (DOWN) {
        if (!combines) {
            return;
        }
        __syncthreads();
        const int each = (int)p.e.num_tokens * ROWS, num_columns = (int)p.e.num_columns,
                  shared_from = num_columns - sum.num_shared;
        const int own_tiles = (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
        for (int i = threadIdx.x; i < own_tiles * each; i += blockDim.x) {
            const int turn = i / each, t = (i - turn * each) / ROWS, r = i % ROWS;
            const int64_t to = (int64_t)((int)blockIdx.x + turn * (int)gridDim.x) * ROWS + r;
            const float *own = results + (turn * pairs + t * num_columns) * ROWS + r;
            const float residual =
                sum.residual ? load_float(sum.residual, sum.out_dtype, t * sum.residual_stride + to, sum.bytewise)
                             : 0.0f;
            float sums[2] = { 0.0f, 0.0f };
#pragma unroll 4
            for (int c = 0; c < num_columns; c++) {
                const int32_t id = ids[t * num_columns + c];
                const float v = id >= 0 && id < p.e.num_slots ? own[c * ROWS] : 0.0f, w = weights[t * num_columns + c];
                if (id >= 0) {
                    if (c < shared_from) {
                        sums[0] = __fmaf_rn(w, v, sums[0]);
                    } else {
                        sums[1] = __fmaf_rn(w, v, sums[1]);
                    }
                }
            }
            float out = __fmaf_rn(sum.factor, sums[0], sums[1]);
            if (sum.residual) {
                out = __fadd_rn(out, residual);
            }
            store_float(sum.out, sum.out_dtype, t * sum.out_stride + to, out, sum.bytewise);
        }
    }
}

/* part: a unit's pair (w2 with a combine: its turn) is what lies 32 bits above its product with it; 0: the unit itself.
 */
template <int KIND, bool DOWN, bool SHARED>
int launch_one(const mf_cuda_grouped *call, const mf_cuda_packed_one *one, const mf_cuda_sum *sum, void *stream)
{
    const auto kernel = one_kernel<KIND, DOWN, SHARED>;
    const mf_cuda_packed_one_launch &o = one->of[DOWN ? 1 : 0];
    const mf_cuda_sum none = {};
    const int64_t parts = !DOWN                ? call->width / (ROWS / 2)
                          : call->few_combines ? call->e.num_pairs
                                               : call->e.hidden_size / ROWS;
    const uint32_t part = parts > 1 ? (uint32_t)(((uint64_t)1 << 32) / (uint64_t)parts + 1) : 0;
    want_all_shared(kernel);
    return launch_shared(call->e.starts_early != 0, kernel, dim3((unsigned)call->few_blocks), 32 * o.warps,
                         (size_t)o.bytes, stream, *call, *one, DOWN && call->few_combines ? *sum : none, part);
}

template <int KIND, bool DOWN>
int launch_half(const mf_cuda_grouped *call, const mf_cuda_packed_one *one, const mf_cuda_sum *sum, void *stream)
{
    if constexpr (KIND == MF_CUDA_PACKED_INT4 || KIND == MF_CUDA_PACKED_INT4_ANY) {
        if ((DOWN ? one->alike.down : one->alike.up).group_shift >= 7) {
            return launch_one<KIND, DOWN, true>(call, one, sum, stream);
        }
    }
    return launch_one<KIND, DOWN, false>(call, one, sum, stream);
}

template <int KIND>
int launch_kind(const mf_cuda_grouped *call, const mf_cuda_packed_one *one, const mf_cuda_sum *sum, void *stream)
{
    const int error = launch_half<KIND, false>(call, one, sum, stream);
    return error != 0 ? error : launch_half<KIND, true>(call, one, sum, stream);
}

} // namespace

int mf_cuda_launch_packed_one(const mf_cuda_grouped *call, const mf_cuda_packed_one *one, const mf_cuda_sum *sum,
                              void *stream)
{
    switch (call->packed) {
    case MF_CUDA_PACKED_INT4:
        return launch_kind<MF_CUDA_PACKED_INT4>(call, one, sum, stream);
    case MF_CUDA_PACKED_INT4_ANY:
        return launch_kind<MF_CUDA_PACKED_INT4_ANY>(call, one, sum, stream);
    case MF_CUDA_PACKED_FP8_CHANNEL:
        return launch_kind<MF_CUDA_PACKED_FP8_CHANNEL>(call, one, sum, stream);
    default:
        return launch_kind<MF_CUDA_PACKED_INT8>(call, one, sum, stream);
    }
}
