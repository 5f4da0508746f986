/* packed_few4.cu - weights of 4 bits beside bf16 activations, for a few tokens: w13, then w2, a launch each.
 *
 * A unit is a tile of 16 rows (of w13: 8 of gate and 8 of up) of one slot, and a warp's alone: the sums of these
 * formats are one chain over all columns.  A warp copies its units' codes and scales, one unit after the other, into a
 * ring of its own, 512 columns a stage, and multiplies them by up to eight tokens (mma.sync, whose sums over 16 columns
 * are wgmma's).  Columns come in grouped_packed.cuh's order, so the bits are that kernel's.  w13 has all of x in shared
 * memory; w2's rings have their tokens' part of the intermediate, which lies in memory as the products read it.  w2's
 * blocks begin beside w13's and ask for their first weights before the intermediate is there.  Where a plain combine
 * follows, a block of w2 has all slots of its rows and ends with it. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/packed_few4.cuh"
#include "kernels/cuda/packed_few4.h"
#include "kernels/cuda/sum_reduce.cuh"

namespace
{

constexpr int MOST = MF_CUDA_FEW4_MOST, TOKEN_BYTES = MF_CUDA_FEW4_TOKEN_BYTES;
/* As many as 16 warps can have; one token: w2's blocks shall find room beside w13's. */
constexpr int FEW4_REGISTERS = 128, FEW4_REGISTERS_ONE = 96;
static_assert(FEW4_REGISTERS * 32 * MF_CUDA_FEW4_WARPS <= 65536, "a block must start");
constexpr int ROW_BYTES = 2 * LINE, CODE_BYTES = 16 * ROW_BYTES; /* of a stage: 512 columns */

/* Rows of scales and of zero points in a stage: all words that hold those of 512 columns. */
template <int KIND> struct few4_stage {
    static constexpr int SCALES = KIND == MF_CUDA_PACKED_MXFP4 ? 24 : KIND == MF_CUDA_PACKED_INT4 ? 40 : 68;
    static constexpr int ZEROS = KIND == MF_CUDA_PACKED_INT4_ANY ? 24 : 0;
    static constexpr int SCALES_AT = CODE_BYTES, ZEROS_AT = SCALES_AT + 16 * SCALES, TOKENS_AT = ZEROS_AT + 16 * ZEROS;
    static_assert(TOKENS_AT % 16 == 0, "copies of 16 bytes");
};

/* A slot in use, and the pairs whose tokens are multiplied together. */
struct few4_slot {
    const uint8_t *codes[2], *scales[2], *zeros[2]; /* gate's and up's, or w2's twice */
    const float *bias[2];
    int64_t strides[2];       /* bytes from a row to the next one */
    int32_t scale_strides[2]; /* elements */
    swiglu act;
    scale_grid grid;
    int32_t count, pairs[MOST];
};
static_assert(sizeof(few4_slot) <= MF_CUDA_FEW4_SLOT && MF_CUDA_FEW4_SLOT % 8 == 0, "the plan knows how much");

/* ---- which slots ---- */

MF_DEV void few4_put(few4_slot &to, const few4_slot &found)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        to.codes[half] = found.codes[half];
        to.scales[half] = found.scales[half];
        to.zeros[half] = found.zeros[half];
        to.bias[half] = found.bias[half];
        to.strides[half] = found.strides[half];
        to.scale_strides[half] = found.scale_strides[half];
    }
    to.act = found.act;
    to.grid = found.grid;
}

/* Lists the slots in use, a pair a thread; returns how many.  What a slot has more than `most` pairs for comes again.
 * ids: room for whole 32, counts behind them.  last: what is to be done, too, before the block's last barrier here. */
template <int KIND, bool DOWN, typename Last>
MF_DEV int few4_list(const mf_cuda_grouped &p, int most, few4_slot *list, int32_t *ids, int32_t own_id,
                     const Last &last)
{
    constexpr int GROUPS = MF_CUDA_FEW4_PAIRS / 32;
    const int own = threadIdx.x, pairs = (int)p.e.num_pairs, groups = (pairs + 31) >> 5;
    int32_t *counts = ids + MF_CUDA_FEW4_PAIRS;
    if (own < 32 * groups) {
        ids[own] = own_id; /* past the last pair: -1 */
    }
    const bool is_one = own < pairs && own_id >= 0 && own_id < p.e.num_slots;
    uint32_t same[GROUPS]; /* a bit for every pair with this one's slot */
    int before = 0;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        same[k] = 0;
        if (k < groups && own < 32 * groups) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int4 v = ((const int4 *)ids)[8 * k + i];
                same[k] |= (v.x == own_id ? 1u << 4 * i : 0u) | (v.y == own_id ? 2u << 4 * i : 0u) |
                           (v.z == own_id ? 4u << 4 * i : 0u) | (v.w == own_id ? 8u << 4 * i : 0u);
            }
            before += k < own >> 5 ? __popc(same[k]) : k == own >> 5 ? __popc(same[k] & ((1u << (own & 31)) - 1)) : 0;
        }
    }
    const bool leads = is_one && before % (uint32_t)most == 0;
    const uint32_t leaders = __ballot_sync(MF_FULL_WARP, leads);
    int at = __popc(leaders & ((1u << (own & 31)) - 1));
    if (groups > 1) {
        if ((own & 31) == 0 && own < pairs) {
            counts[own >> 5] = __popc(leaders);
        }
        __syncthreads();
    } else if (own == 0) {
        counts[0] = __popc(leaders);
    }
    if (leads) {
        for (int k = 0; k < own >> 5; k++) {
            at += counts[k];
        }
        const mf_cuda_slot &slot = p.e.slots[own_id];
        const mf_cuda_matrix &m0 = DOWN ? slot.down : slot.gate, &m1 = DOWN ? slot.down : slot.up;
        /* All of it is asked for before the first is needed. */
        const few4_slot found = { { m0.data, m1.data },
                                  { m0.scale, m1.scale },
                                  { m0.zero, m1.zero },
                                  { DOWN ? slot.down_bias : slot.gate_bias, DOWN ? slot.down_bias : slot.up_bias },
                                  { m0.row_stride >> 1, m1.row_stride >> 1 },
                                  { (int32_t)m0.scale_row_stride, (int32_t)m1.scale_row_stride },
                                  swiglu_of(slot),
                                  grid_of<KIND>(m0) };
        few4_slot &to = list[at];
        int count = 0;
#pragma unroll
        for (int k = 0; k < GROUPS; k++) {
            uint32_t left = k < own >> 5 ? 0 : k == own >> 5 ? same[k] & ~0u << (own & 31) : same[k];
            while (left && count < most) {
                to.pairs[count++] = 32 * k + __ffs((int)left) - 1;
                left &= left - 1;
            }
        }
        to.count = count;
        few4_put(to, found);
    }
    last();
    __syncthreads();
    int total = 0;
    for (int k = 0; k < groups; k++) {
        total += counts[k];
    }
    return total;
}

/* The same with less code, which a launch meets cold: faster for one token's few pairs. */
template <int KIND, bool DOWN>
MF_DEV int few4_list_one(const mf_cuda_grouped &p, int most, few4_slot *list, int32_t *ids, int32_t own_id)
{
    const int own = threadIdx.x, pairs = (int)p.e.num_pairs, warps = (pairs + 31) >> 5;
    int32_t *counts = ids + MF_CUDA_FEW4_PAIRS;
    if (own < pairs) {
        ids[own] = own_id;
    }
    __syncthreads();
    bool leads = false;
    if (own < pairs && own_id >= 0 && own_id < p.e.num_slots) {
        int before = 0;
#pragma unroll 4
        for (int i = 0; i < own; i++) {
            before += ids[i] == own_id;
        }
        leads = before % most == 0;
    }
    const uint32_t leaders = __ballot_sync(MF_FULL_WARP, leads);
    int at = __popc(leaders & ((1u << (own & 31)) - 1));
    if ((own & 31) == 0 && own < pairs) {
        counts[own >> 5] = __popc(leaders);
    }
    __syncthreads();
    int total = 0;
    for (int i = 0; i < warps; i++) {
        at += i < own >> 5 ? counts[i] : 0;
        total += counts[i];
    }
    if (leads) {
        const mf_cuda_slot &slot = p.e.slots[own_id];
        const mf_cuda_matrix &m0 = DOWN ? slot.down : slot.gate, &m1 = DOWN ? slot.down : slot.up;
        /* All of it is asked for before the first is needed. */
        const few4_slot found = { { m0.data, m1.data },
                                  { m0.scale, m1.scale },
                                  { m0.zero, m1.zero },
                                  { DOWN ? slot.down_bias : slot.gate_bias, DOWN ? slot.down_bias : slot.up_bias },
                                  { m0.row_stride >> 1, m1.row_stride >> 1 },
                                  { (int32_t)m0.scale_row_stride, (int32_t)m1.scale_row_stride },
                                  swiglu_of(slot),
                                  grid_of<KIND>(m0) };
        few4_slot &to = list[at];
        int count = 0;
        for (int i = own; i < pairs && count < most; i++) {
            if (ids[i] == own_id) {
                to.pairs[count++] = i;
            }
        }
        to.count = count;
        few4_put(to, found);
    }
    __syncthreads();
    return total;
}

MF_DEV void few4_wait(int depth)
{
    if (depth == 2) {
        copy_wait<1>();
    } else if (depth == 3) {
        copy_wait<2>();
    } else {
        copy_wait<MF_CUDA_FEW4_DEPTH - 1>();
    }
}

/* The `count` words that hold what begins at byte `at` of a row, every other one; past the row's end: zeros, unread. */
template <int MOST_WORDS> MF_DEV void copy_words(uint32_t to, const few4_row &row, int at, int count, int first)
{
    at = (row.phase + at & ~3) + 4 * first;
    to += 4 * first;
#pragma unroll
    for (int i = 0; i < MOST_WORDS; i += 2) {
        if (i < count) {
            copy_bytes_async_at(to + 4 * i, row.words + (uint32_t)(at + 4 * i), max(0, min(row.end - at - 4 * i, 4)));
        }
    }
}

/* What a warp brings next. */
struct few4_source {
    const uint8_t *codes[4];   /* a lane's: rows lane / 8, and 4, 8, 12 below */
    few4_row scales, zeros;    /* of row lane % 16 */
    uint32_t entry;            /* where in shared memory */
    int32_t unit, stage, slot; /* unit: of the warp's; slot: in the list, -1: none */
};

template <int KIND, bool DOWN, bool ONE>
__global__ void __maxnreg__(ONE ? FEW4_REGISTERS_ONE : FEW4_REGISTERS)
    few4_kernel(const __grid_constant__ mf_cuda_grouped p, const __grid_constant__ mf_cuda_sum sum)
{
    extern __shared__ __align__(128) uint8_t shared[];
    typedef few4_stage<KIND> at;
    constexpr int ROWS = DOWN ? 16 : 8;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const int warps = blockDim.x >> 5, depth = DOWN ? p.few_depth2 : p.few_depth, most = DOWN ? p.few_most : MOST;
    const int entry_bytes = at::TOKENS_AT + (DOWN ? most * TOKEN_BYTES : 0);
    const int columns = (int)(DOWN ? p.width : p.e.hidden_size), pieces = (columns + 127) >> 7,
              stages = (columns + 511) >> 9;
    const int tiles = (int)((DOWN ? p.e.hidden_size : p.width) / ROWS), pairs = (int)p.e.num_pairs;
    few4_slot *list = (few4_slot *)(shared + warps * depth * entry_bytes);
    int32_t *ids = (int32_t *)(list + pairs);
    uint8_t *behind = (uint8_t *)list + MF_CUDA_FEW4_LIST_BYTES(pairs);
    float *results = (float *)behind, *weights = results; /* of w2 with a combine: [pairs], then [tile][pair][16] */
    const uint32_t x_pitch = (uint32_t)MF_CUDA_FEW4_X_PITCH(columns);
    const bool combines = DOWN && p.few_combines;
    if constexpr (!DOWN) {
        const int64_t bytes = p.e.num_slots * (int64_t)sizeof(mf_cuda_slot);
        for (int64_t i = ((int64_t)threadIdx.x * gridDim.x + blockIdx.x) * 128; i < bytes;
             i += (int64_t)blockDim.x * gridDim.x * 128) {
            prefetch_line((const uint8_t *)p.e.slots + i);
        }
        wait_for_previous();
        let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    }
    const int32_t own_id = (int)threadIdx.x < pairs ? pair_id(p.e, threadIdx.x) : -1;
    /* All of x, its columns in order: a thread's first pieces are asked for before it looks at the ids. */
    constexpr int AHEAD = 4;
    uint4 x_ahead[AHEAD];
    const uint32_t row_pieces = (uint32_t)pieces * 16, all_pieces = (uint32_t)p.e.num_tokens * row_pieces;
    auto load_piece = [&](uint32_t i) {
        const uint32_t t = i / row_pieces, piece = i - t * row_pieces;
        return i < all_pieces && (int)piece * 8 < columns
                   ? __ldg((const uint4 *)((const uint16_t *)p.e.x + t * p.e.x_stride) + piece)
                   : make_uint4(0, 0, 0, 0);
    };
    auto store_piece = [&](uint32_t i, const uint4 &v) {
        const uint32_t t = i / row_pieces, piece = i - t * row_pieces;
        if (i < all_pieces) {
            *(uint4 *)(behind + t * x_pitch + (piece >> 4) * 256 + few4_piece_at((int)piece & 15) * 16) = paired(v);
        }
    };
    if constexpr (!DOWN && ONE) {
        for (int piece = threadIdx.x; piece < (int)row_pieces; piece += blockDim.x) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (piece * 8 < columns) {
                v = __ldg((const uint4 *)p.e.x + piece);
            }
            *(uint4 *)(behind + (piece >> 4) * 256 + few4_piece_at(piece & 15) * 16) = paired(v);
        }
    } else if constexpr (!DOWN) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            x_ahead[i] = load_piece(threadIdx.x + i * blockDim.x);
        }
    } else if (combines) {
        if ((int)threadIdx.x < pairs) {
            const int t = (int)threadIdx.x / (int)p.e.num_columns;
            weights[threadIdx.x] = sum_weight(sum, t, (int)threadIdx.x - t * (int)p.e.num_columns);
        }
        results += (pairs + 31) & ~31;
    }
    int slots;
    if constexpr (ONE) {
        slots = few4_list_one<KIND, DOWN>(p, most, list, ids, own_id);
    } else {
        slots = few4_list<KIND, DOWN>(p, most, list, ids, own_id, [&] {
            if constexpr (!DOWN) {
#pragma unroll
                for (int i = 0; i < AHEAD; i++) {
                    store_piece(threadIdx.x + i * blockDim.x, x_ahead[i]);
                }
                for (uint32_t i = threadIdx.x + AHEAD * blockDim.x; i < all_pieces; i += blockDim.x) {
                    store_piece(i, load_piece(i));
                }
            }
        });
    }

    /* ---- units: a warp's i-th; with a combine, the slots of one tile after the other are a block's ---- */
    auto locate = [&](int i, int &tile) {
        const int of = i * warps + warp;
        if (combines) {
            const int turn = slots > 0 ? of / slots : 0;
            tile = (int)blockIdx.x + turn * (int)gridDim.x;
            return slots > 0 && tile < tiles ? of - turn * slots : -1;
        }
        const int unit = of * (int)gridDim.x + (int)blockIdx.x, slot = unit / tiles;
        tile = unit - slot * tiles;
        return slot < slots ? slot : -1;
    };

    /* ---- copies: eight lanes a row of codes, two a row of scales, a warp a token ---- */
    uint8_t *const ring = shared + warp * depth * entry_bytes;
    const uint32_t ring_address = shared_address(ring);
    const int chunk = lane & 7;
    const uint32_t codes_to = (lane >> 3) * ROW_BYTES + ((chunk ^ (lane >> 3 & 1) << 2) << 4);
    auto begin_unit = [&](few4_source &next) {
        int tile;
        next.stage = 0;
        next.slot = locate(next.unit, tile);
        if (next.slot < 0) {
            return;
        }
        const few4_slot &slot = list[next.slot];
        const int row = tile * ROWS + (lane >> 3);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int half = i >> 1;
            next.codes[i] =
                slot.codes[half] + (int64_t)(row + 4 * (DOWN ? i : i & 1)) * slot.strides[half] + chunk * 16;
        }
        const int r = lane & 15, half = r >> 3;
        const int64_t first = (int64_t)(tile * ROWS + (DOWN ? r : r & 7)) * slot.scale_strides[half];
        next.scales = few4_row_at(slot.scales[half] + first * slot.grid.size, slot.grid.columns * slot.grid.size);
        if (KIND == MF_CUDA_PACKED_INT4_ANY) {
            next.zeros = few4_row_at(slot.zeros[half] + first, slot.grid.columns);
        }
    };
    auto copy_weights = [&](const few4_source &next) {
        const int left = columns - next.stage * 512 - chunk * 32;
        const uint32_t to = next.entry + codes_to;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint8_t *from = next.codes[i] + (uint32_t)next.stage * ROW_BYTES;
            copy_once_at(to + i * 4 * ROW_BYTES, from, left > 0 ? 16 : 0);
            copy_once_at(to + i * 4 * ROW_BYTES + LINE, from + LINE, left > 256 ? 16 : 0);
        }
        const scale_grid &grid = list[next.slot].grid;
        const int size = KIND == MF_CUDA_PACKED_MXFP4  ? 1
                         : KIND == MF_CUDA_PACKED_INT4 ? 2
                                                       : grid.size,
                  count = KIND == MF_CUDA_PACKED_MXFP4 ? 16 : 512 >> min(grid.shift, 9),
                  first = KIND == MF_CUDA_PACKED_MXFP4 ? 16 * next.stage : 512 * next.stage >> grid.shift;
        copy_words<at::SCALES / 4>(next.entry + at::SCALES_AT + (lane & 15) * at::SCALES, next.scales, first * size,
                                   size == 4 ? count : (count * size + 6) >> 2, lane >> 4);
        if (KIND == MF_CUDA_PACKED_INT4_ANY && grid.has_zeros) {
            copy_words<at::ZEROS / 4>(next.entry + at::ZEROS_AT + (lane & 15) * at::ZEROS, next.zeros, first,
                                      (count + 6) >> 2, lane >> 4);
        }
    };
    auto copy_tokens = [&](const few4_source &next) {
        const few4_slot &slot = list[next.slot];
        const int left = columns - next.stage * 512 - (lane >> 4) * 128 - (lane & 3) * 32 - (lane >> 2 & 3) * 8;
        const uint32_t to = next.entry + at::TOKENS_AT + lane * 16;
        const int count = slot.count;
        for (int i = 0; i < count; i++) {
            const uint8_t *from = (const uint8_t *)p.e.h + ((uint32_t)slot.pairs[i] * (uint32_t)p.e.h_stride * 2 +
                                                            next.stage * 1024 + lane * 16);
            copy_async_at(to + i * TOKEN_BYTES, from, left > 0 ? 16 : 0);
            copy_async_at(to + i * TOKEN_BYTES + 512, from + 512, left > 256 ? 16 : 0);
        }
    };
    auto go_on = [&](few4_source &next) {
        if (++next.stage == stages) {
            next.unit++;
            begin_unit(next);
        }
    };
    few4_source next = {};
    next.entry = ring_address;
    begin_unit(next);
    if (DOWN) {
        few4_source again = next;
#pragma unroll 1
        for (int i = 0; i < depth && next.slot >= 0; i++) {
            copy_weights(next);
            go_on(next);
            next.entry += entry_bytes;
        }
        wait_for_previous();
        let_next_start();
#pragma unroll 1
        for (int i = 0; i < depth; i++) {
            if (again.slot >= 0) {
                copy_tokens(again);
                go_on(again);
                again.entry += entry_bytes;
            }
            copy_commit(); /* the first one has all codes so far */
        }
        if (!combines) {
            zero_few_strangers(p, ids, pairs, blockDim.x);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < depth; i++) {
            if (next.slot >= 0) {
                copy_weights(next);
                go_on(next);
                next.entry += entry_bytes;
            }
            copy_commit();
        }
    }

    /* ---- products ---- */
    const uint32_t code0 = g * ROW_BYTES + ((q ^ (g & 1) << 2) << 4);
    int place = 0; /* in the ring: what has been read there makes room for what is `depth` stages later */
    for (int unit = 0;; unit++) {
        int tile;
        const int index = locate(unit, tile);
        if (index < 0) {
            break;
        }
        const few4_slot &slot = list[index];
        const int count = slot.count, row = tile * ROWS + g;
        const scale_grid grid = slot.grid;
        float bias[2] = { 0.0f, 0.0f };
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (slot.bias[half]) {
                bias[half] = load_early(slot.bias[half] + row + (DOWN ? 8 * half : 0));
            }
        }
        /* Where a lane's scales are in a stage: of the first piece, and bytes to the second one's. */
        const int size = KIND == MF_CUDA_PACKED_MXFP4 ? 1 : KIND == MF_CUDA_PACKED_INT4 ? 2 : grid.size;
        const int own = grid.shift < 8 ? 32 * q >> grid.shift : 0, own_step = grid.shift < 8 ? 128 >> grid.shift : 0,
                  half_step = grid.shift < 9 ? 256 >> grid.shift : 0;
        int scale_phase[2], zero_phase[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t first = (uint32_t)(row + (DOWN ? 8 * half : 0)) * (uint32_t)slot.scale_strides[half];
            scale_phase[half] = (int)((uint32_t)(uintptr_t)slot.scales[half] + first * size);
            zero_phase[half] = (int)((uint32_t)(uintptr_t)slot.zeros[half] + first);
        }
        const int token = g < count ? g : 0; /* columns of a product without a token: nobody reads their sums */
        const uint8_t *tokens = DOWN ? NULL : behind + (uint32_t)pair_token(p.e, slot.pairs[token]) * x_pitch + q * 16;
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll 1
        for (int stage = 0; stage < stages; stage++) {
            const uint8_t *entry = ring + place;
            few4_wait(depth);
            __syncwarp();
            if (DOWN) {
                tokens = entry + at::TOKENS_AT + token * TOKEN_BYTES + q * 16;
            }
            const int first = KIND == MF_CUDA_PACKED_MXFP4 ? 0 : 512 * stage >> grid.shift;
            const uint8_t *scales_from[2], *zeros_from[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                scales_from[half] = entry + at::SCALES_AT + (g + 8 * half) * at::SCALES +
                                    (scale_phase[half] + first * size & 3) + own * size;
                zeros_from[half] =
                    entry + at::ZEROS_AT + (g + 8 * half) * at::ZEROS + (zero_phase[half] + first & 3) + own;
            }
#pragma unroll(ONE ? 1 : 2)
            for (int half_stage = 0; half_stage < 2; half_stage++) {
                const int from_column = 512 * stage + 256 * half_stage;
                if (from_column >= columns) {
                    break;
                }
                raw_scale raw[2][2];
                few4_scale<KIND> scales[2][2];
                uint4 codes[2][2];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    codes[i >> 1][i & 1] =
                        *(const uint4 *)(entry + half_stage * LINE + (i & 1) * 8 * ROW_BYTES + (code0 ^ (i >> 1) << 6));
                }
                bool slow = from_column + 256 > columns;
                auto each = [&](const auto &load) { /* one way for all: how they lie does not differ */
#pragma unroll
                                                    for (int half = 0; half < 2; half++) {
#pragma unroll
                                                        for (int piece = 0; piece < 2; piece++) {
                                                            raw[piece][half].bits =
                                                                load(scales_from[half] + piece * own_step * size);
                                                        }
                                                    }
                };
                if (KIND == MF_CUDA_PACKED_MXFP4) {
                    each([](const uint8_t *from) { return (uint32_t)*from; });
                } else if (KIND == MF_CUDA_PACKED_INT4) {
                    each([](const uint8_t *from) { return (uint32_t) * (const uint16_t *)from; });
                } else if (grid.dtype == MF_F16) {
                    each([](const uint8_t *from) { return __float_as_uint(f16_to_f32(*(const uint16_t *)from)); });
                } else if (grid.dtype == MF_BF16) {
                    each([](const uint8_t *from) { return (uint32_t) * (const uint16_t *)from << 16; });
                } else {
                    each([](const uint8_t *from) { return *(const uint32_t *)from; });
                }
#pragma unroll
                for (int half = 0; half < 2; half++) {
#pragma unroll
                    for (int piece = 0; piece < 2; piece++) {
                        raw_scale &r = raw[piece][half];
                        r.zero = 8;
                        if (KIND == MF_CUDA_PACKED_INT4_ANY && grid.has_zeros) {
                            r.zero = zeros_from[half][piece * own_step];
                        }
                        scales[piece][half] = few4_scale<KIND>::make(r);
                        slow = slow || few4_scale<KIND>::is_slow(scales[piece][half], r);
                    }
                    scales_from[half] += half_step * size;
                    zeros_from[half] += half_step;
                }
                auto multiply = [&](int piece, const uint4(&codes)[2], const auto &of) {
#pragma unroll
                    for (int w = 0; w < 4; w++) {
                        const uint4 b = *(const uint4 *)(tokens + piece * 256 + w * 64);
                        const uint32_t c0 = w == 0   ? codes[0].x
                                            : w == 1 ? codes[0].y
                                            : w == 2 ? codes[0].z
                                                     : codes[0].w;
                        const uint32_t c1 = w == 0   ? codes[1].x
                                            : w == 1 ? codes[1].y
                                            : w == 2 ? codes[1].z
                                                     : codes[1].w;
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            mma_bf16(acc, of(0, c0, 2 * j), of(1, c1, 2 * j), of(0, c0, 2 * j + 1),
                                     of(1, c1, 2 * j + 1), j ? b.z : b.x, j ? b.w : b.y);
                        }
                    }
                };
                if (!__any_sync(MF_FULL_WARP, slow)) {
                    multiply(0, codes[0], [&](int half, uint32_t w, int i) {
                        return few4_scale<KIND>::widen(scales[0][half], w, i);
                    });
                    multiply(1, codes[1], [&](int half, uint32_t w, int i) {
                        return few4_scale<KIND>::widen(scales[1][half], w, i);
                    });
                } else {
#pragma unroll 1
                    for (int piece = 0; piece < 2 && from_column + 128 * piece < columns; piece++) {
                        const bool is_there =
                            from_column + 128 * piece + 32 * q < columns; /* else any word stands there */
                        packed_scale<KIND> full[2];
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const uint32_t bits = piece ? raw[1][half].bits : raw[0][half].bits;
                            full[half] = packed_scale<KIND>::make(is_there ? bits : 0,
                                                                  piece ? raw[1][half].zero : raw[0][half].zero);
                        }
                        const uint4 own_codes[2] = { piece ? codes[1][0] : codes[0][0],
                                                     piece ? codes[1][1] : codes[0][1] };
                        multiply(piece, own_codes, [&](int half, uint32_t w, int i) {
                            return packed_scale<KIND>::template widen<true>(full[half], w, i);
                        });
                    }
                }
                tokens += 512;
            }
            __syncwarp(); /* the entry has been read */
            if (next.slot >= 0) {
                next.entry = ring_address + place;
                copy_weights(next);
                if (DOWN) {
                    copy_tokens(next);
                }
                go_on(next);
            }
            copy_commit();
            place = place + entry_bytes == depth * entry_bytes ? 0 : place + entry_bytes;
        }
        const bool has_bias = slot.bias[0] || slot.bias[1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (has_bias) {
                acc[i] = __fadd_rn(acc[i], bias[i >> 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int t = 2 * q + i;
            if (t >= count) {
                continue;
            }
            const int pair = slot.pairs[t];
            if (DOWN) {
                if (combines) {
                    float *to = results + ((tile / (int)gridDim.x) * pairs + pair) * 16 + g;
                    to[0] = round_to_dtype(acc[i], p.e.y_dtype);
                    to[8] = round_to_dtype(acc[i + 2], p.e.y_dtype);
                } else {
                    few4_store(p, pair, row, acc[i]);
                    few4_store(p, pair, row + 8, acc[i + 2]);
                }
            } else {
                const int place = (tile >> 4) * 128 + few4_piece_at(tile & 15) * 8 + (g < 4 ? 2 * g : 2 * g - 7);
                ((uint16_t *)p.e.h)[(int64_t)pair * p.e.h_stride + place] =
                    (uint16_t)pack_bf16(apply(slot.act, acc[i], acc[i + 2]), 0.0f);
            }
        }
    }

    /* ---- the combine: the chain of ref/sum_reduce.c over a token's columns ---- */
    if constexpr (DOWN) {
        if (!combines) {
            return;
        }
        __syncthreads();
        const int each = (int)p.e.num_tokens * 16, num_columns = (int)p.e.num_columns,
                  shared_from = num_columns - sum.num_shared;
        const int own_tiles = (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
        for (int i = threadIdx.x; i < own_tiles * each; i += blockDim.x) {
            const int turn = i / each, t = (i - turn * each) >> 4, r = i & 15;
            const int64_t to = (int64_t)((int)blockIdx.x + turn * (int)gridDim.x) * 16 + r;
            const float *own = results + (turn * pairs + t * num_columns) * 16 + r;
            const float residual =
                sum.residual ? load_float(sum.residual, sum.out_dtype, t * sum.residual_stride + to, sum.bytewise)
                             : 0.0f;
            float sums[2] = { 0.0f, 0.0f };
#pragma unroll 4
            for (int c = 0; c < num_columns; c++) {
                const int32_t id = ids[t * num_columns + c];
                const float v = id < p.e.num_slots ? own[c * 16] : 0.0f, w = weights[t * num_columns + c];
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

template <int KIND, bool ONE> int launch_kind(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream)
{
    const auto up = few4_kernel<KIND, false, ONE>, down = few4_kernel<KIND, true, ONE>;
    const bool early = call->e.starts_early != 0;
    const dim3 grid((unsigned)call->few_blocks);
    const mf_cuda_sum none = {};
    want_all_shared(up);
    want_all_shared(down);
    const int error =
        launch_shared(early, up, grid, 32 * call->few_warps, (size_t)call->few_bytes, stream, *call, none);
    return error != 0 ? error
                      : launch_shared(early, down, grid, 32 * call->few_warps2, (size_t)call->few_bytes2, stream, *call,
                                      call->few_combines ? *sum : none);
}

template <int KIND> int launch_tokens(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream)
{
    return call->e.num_tokens == 1 ? launch_kind<KIND, true>(call, sum, stream)
                                   : launch_kind<KIND, false>(call, sum, stream);
}

} // namespace

int mf_cuda_launch_packed_few4(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream)
{
    return call->packed == MF_CUDA_PACKED_MXFP4  ? launch_tokens<MF_CUDA_PACKED_MXFP4>(call, sum, stream)
           : call->packed == MF_CUDA_PACKED_INT4 ? launch_tokens<MF_CUDA_PACKED_INT4>(call, sum, stream)
                                                 : launch_tokens<MF_CUDA_PACKED_INT4_ANY>(call, sum, stream);
}
