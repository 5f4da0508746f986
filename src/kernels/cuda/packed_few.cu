/* packed_few.cu - FP8 blocks of weights beside bf16 activations, for up to four tokens: w13, then w2, a launch each.
 *
 * A unit is a tile of 16 rows (of w13: 8 of gate and 8 of up) of one slot.  A team of one to eight warps divides a
 * tile's lines of 128 columns among them, for few rows of many columns are too few tiles for every multiprocessor.  A
 * warp copies its lines, of one unit after the other, into a ring of its own, multiplies them by the tokens (mma.sync:
 * the sum over an instruction's 16 columns is the same as in grouped_packed.cuh) and leaves a line's sums, a part, in
 * shared memory; the team adds parts in the order of lines, times their scales.  So the bits are grouped_packed.cuh's,
 * whoever multiplied a line.  w2's blocks ask for their first weights before the intermediate is there. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/packed_few.h"
#include "kernels/cuda/packed_rows.cuh"

namespace
{

constexpr int FEW_WARPS = MF_CUDA_PACKED_FEW_WARPS, FEW_THREADS = 32 * FEW_WARPS;
constexpr int TILE_BYTES = 16 * LINE, TOKEN_BYTES = 256, SCALES_EACH = MF_CUDA_PACKED_FEW_SCALES;

/* A slot in use, and the pairs whose tokens are multiplied together. */
struct few_slot {
    const uint8_t *codes[2], *scales[2]; /* gate's and up's, or w2's twice */
    int64_t strides[2];                  /* bytes from a row to the next one */
    const float *bias[2];
    swiglu act;
    int32_t scale_strides[2], dtype, count;
    int32_t pairs[MF_CUDA_PACKED_FEW_TOKENS];
};
static_assert(sizeof(few_slot) <= MF_CUDA_PACKED_FEW_SLOT, "the plan knows how much");

/* Of the tokens' 16 pieces of 8 columns, where the one with columns 8 piece .. lies: lanes that load together meet all
 * banks. */
MF_DEV int piece_at(int token, int piece)
{
    return token * TOKEN_BYTES + ((piece & 12) | ((piece & 3) ^ (piece >> 3) ^ (2 * (token & 1)))) * 16;
}

MF_DEV float few_scale(const uint8_t *scales, int dtype, int64_t i)
{
    return dtype == MF_F32       ? __ldg((const float *)scales + i)
           : dtype == MF_BF16    ? bf16_to_f32(__ldg((const uint16_t *)scales + i))
           : dtype == MF_F8_E8M0 ? e8m0_to_f32(__ldg(scales + i))
                                 : f16_to_f32(__ldg((const uint16_t *)scales + i));
}

/* Lists the slots in use, a pair a thread; returns how many.  What a slot has more pairs for than MOST comes again. */
template <bool DOWN, int MOST> MF_DEV int list_slots(const mf_cuda_grouped &p, few_slot *list, int32_t *ids)
{
    const int own = threadIdx.x, pairs = (int)p.e.num_pairs;
    if (own < pairs) {
        ids[own] = pair_id(p.e, own);
    }
    __syncthreads();
    bool leads = false;
    const int32_t id = own < pairs ? ids[own] : -1;
    if (id >= 0 && id < p.e.num_slots) {
        int before = 0;
        for (int i = 0; i < own; i++) {
            before += ids[i] == id;
        }
        leads = before % MOST == 0;
    }
    const uint32_t leaders = __ballot_sync(MF_FULL_WARP, leads);
    int at = __popc(leaders & ((1u << (own & 31)) - 1));
    if ((own & 31) == 0 && own < MF_CUDA_PACKED_FEW_PAIRS) {
        ids[MF_CUDA_PACKED_FEW_PAIRS + own / 32] = __popc(leaders);
    }
    __syncthreads();
    if (leads) {
        at += own >= 32 ? ids[MF_CUDA_PACKED_FEW_PAIRS] : 0;
        const mf_cuda_slot &slot = p.e.slots[id];
        const mf_cuda_matrix &m0 = DOWN ? slot.down : slot.gate, &m1 = DOWN ? slot.down : slot.up;
        /* All of it is asked for before the first is needed. */
        few_slot found = { { m0.data, m1.data },
                           { m0.scale, m1.scale },
                           { m0.row_stride, m1.row_stride },
                           { DOWN ? slot.down_bias : slot.gate_bias, DOWN ? slot.down_bias : slot.up_bias },
                           swiglu_of(slot),
                           { (int32_t)m0.scale_row_stride, (int32_t)m1.scale_row_stride },
                           m0.scale_dtype };
        few_slot &to = list[at];
        int count = 0;
        for (int i = own; i < pairs && count < MOST; i++) {
            if (ids[i] == id) {
                to.pairs[count++] = i;
            }
        }
        to.count = count;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            to.codes[half] = found.codes[half];
            to.scales[half] = found.scales[half];
            to.strides[half] = found.strides[half];
            to.bias[half] = found.bias[half];
            to.scale_strides[half] = found.scale_strides[half];
        }
        to.act = found.act;
        to.dtype = found.dtype;
    }
    __syncthreads();
    return ids[MF_CUDA_PACKED_FEW_PAIRS] + ids[MF_CUDA_PACKED_FEW_PAIRS + 1];
}

MF_DEV void few_store(const mf_cuda_grouped &p, int pair, int row, float v)
{
    const int64_t at = y_offset(p.e, pair) + row;
    if (p.e.y_dtype == MF_BF16 && p.e.y_is_wide) {
        ((uint16_t *)p.e.y)[at] = (uint16_t)pack_bf16(v, 0.0f);
    } else {
        store_float(p.e.y, p.e.y_dtype, at, v, p.e.bytewise);
    }
}

/* What a warp brings next: lines of its team's units, one after the other. */
template <int MOST> struct few_source {
    const uint8_t *codes[2],
        *tokens[(MOST + 1) / 2]; /* a lane's: rows lane / 8 and lane / 8 + 8, tokens lane / 16 and on */
    int64_t fours[2];            /* bytes to four rows below */
    int unit, line;
    uint32_t entry; /* where in shared memory */
};

template <bool DOWN, int MOST>
__global__ void __launch_bounds__(FEW_THREADS, MOST < 4 ? 3 : 2) few_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    extern __shared__ __align__(128) uint8_t shared[];
    constexpr int DEPTH = MF_CUDA_PACKED_FEW_DEPTH(MOST), ENTRY = TILE_BYTES + MOST * TOKEN_BYTES, ROWS = DOWN ? 16 : 8,
                  TOKENS = (MOST + 1) / 2;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const int splits = DOWN ? p.few_splits2 : p.few_splits, teams = FEW_WARPS / splits;
    const int team = warp / splits, member = warp % splits;
    const int columns = (int)(DOWN ? p.width : p.e.hidden_size), lines = (columns + 127) >> 7;
    const int tiles = (int)((DOWN ? p.e.hidden_size : p.width) / ROWS);
    few_slot *list = (few_slot *)(shared + FEW_WARPS * DEPTH * ENTRY);
    int32_t *ids = (int32_t *)(list + p.e.num_pairs);
    /* A team's, twice: one unit's are added up while the next one's come. */
    const int parts_floats = splits == 1 ? 0 : lines * MOST * 16,
              team_words = 2 * (parts_floats + 2 * lines + 16 * splits);
    float *parts = (float *)(ids + MF_CUDA_PACKED_FEW_PAIRS + 4) + team * team_words,
          *scales = parts + 2 * parts_floats;
    uint32_t *nans = (uint32_t *)(scales + 4 * lines);
    const uint32_t ring = shared_address(shared + warp * DEPTH * ENTRY), ring_end = ring + DEPTH * ENTRY;
    if (!DOWN) {
        wait_for_previous();
        let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    }
    const int units = list_slots<DOWN, MOST>(p, list, ids) * tiles, step = teams * (int)gridDim.x;
    const int first_unit = team * (int)gridDim.x + (int)blockIdx.x;
    const int from = member * lines / splits, to = (member + 1) * lines / splits;

    /* ---- copies: eight lanes a row of codes, sixteen a token ---- */
    const int chunk = lane & 7, piece = lane & 15;
    const uint32_t codes_to = swizzled(lane >> 3, chunk), fours_to = swizzled((lane >> 3) + 4, chunk);
    uint32_t tokens_to[TOKENS];
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        tokens_to[i] = TILE_BYTES + piece_at(2 * i + (lane >> 4), piece);
    }
    auto begin_unit = [&](few_source<MOST> &next) {
        next.line = from;
        if (next.unit >= units) {
            return;
        }
        const few_slot &slot = list[next.unit / tiles];
        const int row = next.unit % tiles * ROWS + (lane >> 3);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            next.fours[half] = 4 * slot.strides[half];
            next.codes[half] = slot.codes[half] + (int64_t)(row + (DOWN ? 8 * half : 0)) * slot.strides[half] +
                               from * LINE + chunk * 16;
        }
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const int t = 2 * i + (lane >> 4), pair = slot.pairs[t < slot.count ? t : 0];
            next.tokens[i] = (DOWN ? (const uint8_t *)p.e.h + (int64_t)pair * p.e.h_stride * 2
                                   : (const uint8_t *)p.e.x + pair_token(p.e, pair) * p.e.x_stride * 2) +
                             from * 256 + piece * 16;
        }
    };
    auto copy_codes = [&](const few_source<MOST> &next) {
        const uint32_t bytes = next.line * LINE + chunk * 16 < columns ? 16 : 0;
        copy_async_at(next.entry + codes_to, next.codes[0], bytes);
        copy_async_at(next.entry + fours_to, next.codes[0] + next.fours[0], bytes);
        copy_async_at(next.entry + codes_to + 8 * LINE, next.codes[1], bytes);
        copy_async_at(next.entry + fours_to + 8 * LINE, next.codes[1] + next.fours[1], bytes);
    };
    auto copy_tokens = [&](const few_source<MOST> &next) {
        const uint32_t bytes = next.line * 128 + piece * 8 < columns ? 16 : 0;
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            if (MOST > 1 || lane < 16) { /* one that is not there is the first one once more */
                copy_async_at(next.entry + tokens_to[i], next.tokens[i], bytes);
            }
        }
    };
    auto go_on = [&](few_source<MOST> &next) {
        next.codes[0] += LINE;
        next.codes[1] += LINE;
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            next.tokens[i] += 256;
        }
        next.entry = next.entry + ENTRY == ring_end ? ring : next.entry + ENTRY;
        if (++next.line == to) {
            next.unit += step;
            begin_unit(next);
        }
    };
    few_source<MOST> next = {};
    next.unit = first_unit;
    next.entry = ring;
    begin_unit(next);
    if (DOWN) {
        few_source<MOST> again = next;
#pragma unroll 1
        for (int i = 0; i < DEPTH && units > next.unit; i++) {
            copy_codes(next);
            go_on(next);
        }
        wait_for_previous();
        let_next_start();
#pragma unroll 1
        for (int i = 0; i < DEPTH; i++) {
            if (units > again.unit) {
                copy_tokens(again);
                go_on(again);
            }
            copy_commit(); /* the first one has all codes so far */
        }
        for (int pair = 0; pair < (int)p.e.num_pairs; pair++) { /* ids past the last slot */
            if (ids[pair] >= p.e.num_slots) {
                for (int64_t i = (int64_t)blockIdx.x * FEW_THREADS + threadIdx.x; i < p.e.hidden_size;
                     i += (int64_t)gridDim.x * FEW_THREADS) {
                    store_float(p.e.y, p.e.y_dtype, y_offset(p.e, pair) + i, 0.0f, p.e.bytewise);
                }
            }
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < DEPTH; i++) {
            if (units > next.unit) {
                copy_codes(next);
                copy_tokens(next);
                go_on(next);
            }
            copy_commit();
        }
    }

    /* The team's threads have a unit's scales, asked for while the one before is multiplied. */
    const int own_lines = (DOWN ? 1 : 2) * lines;
    float unit_scales[SCALES_EACH] = {};
    auto load_scales = [&](int unit) {
        if (unit >= units) {
            return;
        }
        const few_slot &slot = list[unit / tiles];
        const int block = unit % tiles * ROWS >> 7;
#pragma unroll
        for (int i = 0; i < SCALES_EACH; i++) {
            const int at = (member + splits * i) * 32 + lane, half = at < lines ? 0 : 1;
            if (at < own_lines) {
                unit_scales[i] = few_scale(slot.scales[half], slot.dtype,
                                           (int64_t)block * slot.scale_strides[half] + at - half * lines);
            }
        }
    };
    load_scales(first_unit);

    /* ---- products ---- */
    const uint8_t *const own_ring = shared + warp * DEPTH * ENTRY;
    int place = 0, turn = 0;
    for (int unit = first_unit; unit < units; unit += step, turn++) {
        const few_slot &slot = list[unit / tiles];
        const int count = slot.count, row = unit % tiles * ROWS, odd = turn & 1;
        float *own_parts = parts + odd * parts_floats, *own_scales = scales + odd * 2 * lines;
        uint32_t *own_nans = nans + odd * 16 * splits;
        uint32_t seen[2] = { 0, 0 };
#pragma unroll
        for (int i = 0; i < SCALES_EACH; i++) {
            const int at = (member + splits * i) * 32 + lane;
            if (at < own_lines) {
                own_scales[at] = unit_scales[i];
            }
        }
        load_scales(unit + step);
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f }; /* of a team of one */
#pragma unroll 1
        for (int line = from; line < to; line++) {
            const uint8_t *entry = own_ring + place;
            copy_wait<DEPTH - 1>();
            __syncwarp();
            uint4 codes[2][2];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                codes[i & 1][i >> 1] = *(const uint4 *)(entry + swizzled(g + 8 * (i & 1), 2 * q + (i >> 1)));
            }
            float sums[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
            for (int j = 0; j < 4; j++) { /* two steps of 16 columns each */
                /* A product's other columns are some token's once more: nobody reads their sums. */
                const uint4 b = *(const uint4 *)(entry + TILE_BYTES + piece_at(g & (MOST - 1), 4 * q + j));
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    uint32_t a[2][2];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const uint4 c = codes[half][j >> 1];
                        const uint32_t word = j & 1 ? (k ? c.w : c.z) : (k ? c.y : c.x);
                        seen[half] |= wide_codes<MF_CUDA_PACKED_FP8_BLOCK>::nan_bits(word);
                        wide_codes<MF_CUDA_PACKED_FP8_BLOCK>::widen(word, a[half][0], a[half][1]);
                    }
                    mma_bf16(sums, a[0][0], a[1][0], a[0][1], a[1][1], k ? b.z : b.x, k ? b.w : b.y);
                }
            }
            __syncwarp(); /* the entry has been read */
            place = place + ENTRY == DEPTH * ENTRY ? 0 : place + ENTRY;
            if (units > next.unit) {
                copy_codes(next);
                copy_tokens(next);
                go_on(next);
            }
            copy_commit();
            if (splits == 1) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    acc[i] = __fmaf_rn(sums[i], own_scales[DOWN || i < 2 ? line : lines + line], acc[i]);
                }
                continue;
            }
            float *part = own_parts + line * MOST * 16 + g;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (MOST > 1 ? 2 * q + (i & 1) < MOST : q == 0 && (i & 1) == 0) {
                    part[(2 * q + (i & 1)) * 16 + 8 * (i >> 1)] = sums[i];
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            seen[half] |= __shfl_xor_sync(MF_FULL_WARP, seen[half], 1);
            seen[half] |= __shfl_xor_sync(MF_FULL_WARP, seen[half], 2);
            seen[half] &= 0x80808080u;
        }
        if (splits == 1) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = 2 * q + (i & 1), at = row + g + (DOWN ? 8 * (i >> 1) : 0);
                const float *bias = slot.bias[i >> 1];
                acc[i] = seen[i >> 1] ? __uint_as_float(0x7fc00000u) : acc[i];
                if (slot.bias[0] || slot.bias[1]) {
                    acc[i] = __fadd_rn(acc[i], bias ? bias[at] : 0.0f);
                }
                if (DOWN && t < count) {
                    few_store(p, slot.pairs[t], at, acc[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < 2 && !DOWN; i++) {
                const int t = 2 * q + i;
                if (t < count) {
                    ((uint16_t *)p.e.h)[(int64_t)slot.pairs[t] * p.e.h_stride + row + g] =
                        (uint16_t)pack_bf16(apply(slot.act, acc[i], acc[i + 2]), 0.0f);
                }
            }
            continue;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (q == 0) {
                own_nans[member * 16 + g + 8 * half] = seen[half];
            }
        }

        /* ---- parts are added in the order of lines, by a warp or two in turn ---- */
        sync_threads(1 + team, 32 * splits);
        constexpr int ADDERS = MOST < 4 ? 1 : 2;
        const int adders = splits < ADDERS ? splits : ADDERS, turned = (member + turn) % splits;
        if (turned >= adders) {
            continue;
        }
        for (int base = 32 * turned; base < 16 * count; base += 32 * adders) { /* whole warps */
            const int t = (base + lane) >> 4, r = lane & 15;
            const float *part = own_parts + (t < count ? t : 0) * 16 + r,
                        *of = own_scales + (DOWN || r < 8 ? 0 : lines);
            float sum = 0.0f;
#pragma unroll 8
            for (int line = 0; line < lines; line++) {
                sum = __fmaf_rn(part[line * MOST * 16], of[line], sum);
            }
            uint32_t bits = 0;
            for (int m = 0; m < splits; m++) {
                bits |= own_nans[m * 16 + r];
            }
            sum = bits ? __uint_as_float(0x7fc00000u) : sum;
            if constexpr (DOWN) {
                const int at = row + r;
                if (slot.bias[0]) {
                    sum = __fadd_rn(sum, slot.bias[0][at]);
                }
                if (t < count) {
                    few_store(p, slot.pairs[t], at, sum);
                }
            } else {
                const int at = row + (r & 7);
                if (slot.bias[0] || slot.bias[1]) {
                    const float *bias = slot.bias[r >> 3];
                    sum = __fadd_rn(sum, bias ? bias[at] : 0.0f);
                }
                const float up = __shfl_xor_sync(MF_FULL_WARP, sum, 8);
                if (t < count && r < 8) {
                    ((uint16_t *)p.e.h)[(int64_t)slot.pairs[t] * p.e.h_stride + at] =
                        (uint16_t)pack_bf16(apply(slot.act, sum, up), 0.0f);
                }
            }
        }
    }
}

template <bool DOWN, int MOST> int launch(const mf_cuda_grouped *call, void *stream)
{
    const auto kernel = few_kernel<DOWN, MOST>;
    const int splits = DOWN ? call->few_splits2 : call->few_splits;
    const int64_t columns = DOWN ? call->width : call->e.hidden_size,
                  rows = DOWN ? call->e.hidden_size / 16 : call->width / 8;
    const int64_t bytes = mf_cuda_packed_few_bytes(call->e.num_pairs, MOST, (columns + 127) / 128, splits);
    const int64_t most = call->few_blocks * (bytes > MF_CUDA_PACKED_FEW_HALF    ? 1
                                             : bytes > MF_CUDA_PACKED_FEW_THIRD ? 2
                                                                                : 3);
    const int64_t teams = FEW_WARPS / splits, needed = (call->e.num_pairs * rows + teams - 1) / teams;
    want_all_shared(kernel);
    return launch_shared(call->e.starts_early != 0, kernel, dim3((unsigned)(needed < most ? needed : most)),
                         FEW_THREADS, (size_t)bytes, stream, *call);
}

template <int MOST> int launch_both(const mf_cuda_grouped *call, void *stream)
{
    const int error = launch<false, MOST>(call, stream);
    return error != 0 ? error : launch<true, MOST>(call, stream);
}

} // namespace

int mf_cuda_launch_packed_few(const mf_cuda_grouped *call, void *stream)
{
    return call->e.num_tokens == 1   ? launch_both<1>(call, stream)
           : call->e.num_tokens == 2 ? launch_both<2>(call, stream)
                                     : launch_both<4>(call, stream);
}
