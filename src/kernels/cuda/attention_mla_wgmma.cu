/* attention_mla_wgmma.cu - prefill of multi-head latent attention over a bf16 cache on Hopper, with the bits of
 * attention_mla.cu: wgmma sums as mma.sync does.
 *
 * A block takes 64 rows (heads of a token, or of several).  One warpgroup scores a piece and weighs the scores, two
 * more sum its values, 64 columns at a time: even lines of columns, and odd ones.  The latent part of a cached row is
 * both key and value, so a line of a piece comes once, by tensor copies, and makes room when its values are summed. */
#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/early.cuh"

namespace
{

constexpr int HELPERS = 128, THREADS = HELPERS + 3 * 128, ROWS = MF_CUDA_MLA_ROWS;
constexpr int RANK = 512, TAIL = 64, LINES = (RANK + TAIL) / 64, VALUE_LINES = RANK / 64, STAGES = 2;
constexpr int PART = LINES * SUB; /* a piece, and as much of queries */

struct message { /* from the scores' warpgroup to the values': a piece's weights and factors, or a run's end */
    uint4 weights[4][4][32]; /* [warp][step][lane]: operands as they are held */
    float2 factors[ROWS];    /* of what there is and of the piece, or 1 / sum */
};
constexpr int SHARED_BYTES = (1 + STAGES) * PART + (int)sizeof(message);
static_assert(SHARED_BYTES + 2048 <= 227 * 1024, "what a block may have");
constexpr float NO_PART = -1.0f; /* for the piece's factor: nothing of it is weighed */

struct barriers {
    uint64_t full[STAGES][LINES], empty[STAGES][LINES], told, heard;
};

struct place_of {
    int stage = 0;
    uint32_t parity = 0;
    MF_DEV_MEMBER void next(place_of &c)
    {
        if (++c.stage == STAGES) {
            c.stage = 0;
            c.parity ^= 1;
        }
    }
};

struct run {
    int begin, end, lowest, highest, first_position, last_first;
    MF_DEV_MEMBER run from(const mf_cuda_attention &p, const int32_t *sequences, const int32_t *positions, int begin,
                           int tokens)
    {
        run r;
        r.begin = begin;
        r.end = run_end(sequences, positions, begin, tokens);
        r.first_position = positions[begin];
        r.lowest = (int)first_seen(p, r.first_position);
        r.highest = positions[r.end - 1];
        r.last_first = (int)first_seen(p, r.highest);
        return r;
    }
    /* Whether some rows do not see all of a piece. */
    __device__ __forceinline__ bool is_cut(int piece) const
    {
        return piece * PIECE < last_first || piece * PIECE + PIECE - 1 > first_position;
    }
};

/* One warp: lanes find where 16 positions each lie, 8 pieces at a time and one time ahead. */
MF_DEV void bring(const mf_cuda_attention_maps &c, const int32_t *sequences, const int32_t *positions, int tokens,
                  uint8_t *stages, barriers &b)
{
    constexpr int AT_ONCE = 32 / BOXES, NOWHERE = -PIECE;
    const mf_cuda_attention &p = c.p;
    const int lane = threadIdx.x & 31;
    const uint32_t size = (uint32_t)p.block_size;
    place_of at;
    for (int begin = 0; begin < tokens;) {
        const run r = run::from(p, sequences, positions, begin, tokens);
        const int32_t *blocks = p.block_table + (int64_t)sequences[begin] * p.max_blocks;
        const int last = r.highest / PIECE;
        auto find = [&](int piece) { /* a row of the cache */
                                     const int position = piece * PIECE + lane * BOX;
                                     return position + BOX > r.lowest && position <= r.highest
                                                ? (int)(blocks[(uint32_t)position / size] * size +
                                                        (uint32_t)position % size)
                                                : NOWHERE;
        };
        int found = find(r.lowest / PIECE);
        for (int piece = r.lowest / PIECE; piece <= last; piece += AT_ONCE) {
            const int row = found;
            if (piece + AT_ONCE <= last) {
                found = find(piece + AT_ONCE);
            }
            const int first_row = __shfl_sync(MF_FULL_WARP, row, lane / BOXES * BOXES);
            const uint32_t follows = __ballot_sync(MF_FULL_WARP, row == first_row + lane % BOXES * BOX && row >= 0);
            for (int i = 0; i < AT_ONCE && piece + i <= last; i++) {
                const int box_row = __shfl_sync(MF_FULL_WARP, row, i * BOXES + lane % BOXES);
                const bool is_whole = (follows >> i * BOXES & ((1u << BOXES) - 1)) == (1u << BOXES) - 1;
                for (int line = 0; line < LINES; line++) {
                    uint8_t *to = stages + at.stage * PART + line * SUB;
                    barrier_wait(&b.empty[at.stage][line], at.parity ^ 1);
                    if (lane == 0) {
                        barrier_expect(&b.full[at.stage][line], SUB);
                        if (is_whole) {
                            copy_box(to, &c.whole, box_row, line, &b.full[at.stage][line]);
                        }
                    }
                    __syncwarp();
                    if (!is_whole && lane < BOXES) {
                        copy_box(to + lane * BOX * LINE, &c.part, box_row, line, &b.full[at.stage][line]);
                    }
                }
                place_of::next(at);
            }
        }
        begin = r.end;
    }
}

/* Scores of 64 rows and their weights, piece by piece. */
MF_DEV void score(const mf_cuda_attention &p, const int32_t *sequences, const int32_t *positions, int tokens, int group,
                  const uint8_t *queries, const uint8_t *stages, message &to, barriers &b)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, q = lane & 3;
    const uint32_t stages_at = (shared_address(stages) & 0x3ffffu) >> 4;
    const uint64_t query = product_operand(queries);
    int token[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        token[e] = (warp * 16 + g + 8 * e) / group;
    }
    float products_of[32];
    place_of at;
    uint32_t heard = 1; /* parity */
    for (int begin = 0; begin < tokens;) {
        const run r = run::from(p, sequences, positions, begin, tokens);
        float m[2] = { minus_infinity(), minus_infinity() }, sum[2] = { 0.0f, 0.0f };
#pragma unroll 1
        for (int piece = r.lowest / PIECE; piece <= r.highest / PIECE; piece++) {
            const uint64_t keys = (uint64_t)64 << 32 | (uint64_t)1 << 62 |
                                  __reduce_or_sync(MF_FULL_WARP, stages_at + at.stage * (PART >> 4) | 1u << 16);
            pin(products_of);
#pragma unroll
            for (int line = 0; line < LINES; line++) {
                barrier_wait(&b.full[at.stage][line], at.parity);
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    products<64>::bf16(products_of, query + line * (SUB >> 4) + 2 * k, keys + line * (SUB >> 4) + 2 * k,
                                       line + k > 0);
                }
            }
            products_commit();
            products_wait<0>();
            pin(products_of);
            if (lane < LINES) {
                barrier_arrive(&b.empty[at.stage][lane]);
            }
            place_of::next(at);
            scores s;
#pragma unroll
            for (int i = 0; i < 32; i++) {
                s.v[i / 4][i % 4] = products_of[i];
            }
            if (r.is_cut(piece)) {
                int first[2], last[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const bool is_mine = token[e] >= r.begin && token[e] < r.end;
                    last[e] = is_mine ? positions[token[e]] : -1;
                    first[e] = is_mine ? (int)first_seen(p, last[e]) : 0;
                }
                mask(s, piece * PIECE, q, first, last);
            }
            float most[2], part[2];
            uint32_t packed[4][4];
            weigh(s, most, part);
            pack_weights(packed, s);
            barrier_wait(&b.heard, heard);
            heard ^= 1;
#pragma unroll
            for (int e = 0; e < 2; e++) { /* without a part the maximum is minus infinity, which changes nothing */
                float2 of;
                merge_factors2(m[e], most[e], of.x, of.y);
                sum[e] = merged(sum[e], of.x, part[e], of.y);
                of.y = part[e] != 0.0f ? of.y : NO_PART;
                if (q == 0) {
                    to.factors[warp * 16 + g + 8 * e] = of;
                }
            }
#pragma unroll
            for (int step = 0; step < 4; step++) {
                to.weights[warp][step][lane] =
                    make_uint4(packed[step][0], packed[step][1], packed[step][2], packed[step][3]);
            }
            barrier_arrive(&b.told);
        }
        barrier_wait(&b.heard, heard);
        heard ^= 1;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (q == 0) {
                to.factors[warp * 16 + g + 8 * e].x = __frcp_rn(sum[e]);
            }
        }
        barrier_arrive(&b.told);
        begin = r.end;
    }
}

/* Values of 64 rows, every other 64 columns. */
MF_DEV void sum_values(const mf_cuda_attention &p, const int32_t *sequences, const int32_t *positions, int64_t t0,
                       int tokens, int group, int own, const uint8_t *stages, const message &from, barriers &b)
{
    constexpr int MINE = VALUE_LINES / 2;
    const int in_group = threadIdx.x & 127, lane = threadIdx.x & 31, warp = in_group >> 5, g = lane >> 2, q = lane & 3;
    const uint32_t stages_at = (shared_address(stages) & 0x3ffffu) >> 4;
    int token[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        token[e] = (warp * 16 + g + 8 * e) / group;
    }
    float value[MINE][32], out[32];
    place_of at;
    uint32_t told = 0; /* parity */
    auto hear = [&](float2(&of)[2]) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            of[e] = from.factors[warp * 16 + g + 8 * e];
        }
        barrier_arrive(&b.heard);
        told ^= 1;
    };
    for (int begin = 0; begin < tokens;) {
        const run r = run::from(p, sequences, positions, begin, tokens);
#pragma unroll
        for (int c = 0; c < MINE; c++) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                value[c][i] = 0.0f;
            }
        }
        float2 of[2];
#pragma unroll 1
        for (int piece = r.lowest / PIECE; piece <= r.highest / PIECE; piece++) {
            uint32_t packed[4][4];
            barrier_wait(&b.told, told);
#pragma unroll
            for (int step = 0; step < 4; step++) {
                const uint4 w = from.weights[warp][step][lane];
                packed[step][0] = w.x, packed[step][1] = w.y, packed[step][2] = w.z, packed[step][3] = w.w;
            }
            hear(of);
            const bool has_part[2] = { of[0].y != NO_PART, of[1].y != NO_PART };
            const bool keeps =
                __all_sync(MF_FULL_WARP, has_part[0] && has_part[1] && of[0].x == 1.0f && of[1].x == 1.0f);
            const bool is_cut = r.is_cut(piece);
#pragma unroll
            for (int c = 0; c < MINE; c++) {
                const int line = 2 * c + own;
                const uint64_t operand =
                    (uint64_t)64 << 32 | (uint64_t)1 << 62 |
                    __reduce_or_sync(MF_FULL_WARP, stages_at + at.stage * (PART >> 4) + line * (SUB >> 4) |
                                                       (uint32_t)(SUB >> 4) << 16);
                barrier_wait(&b.full[at.stage][line], at.parity); /* it is: seen by this thread, too */
                pin(out);
                products_begin();
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    value_products<64>::add(out, packed[step], operand + step * (16 * LINE >> 4), step > 0);
                }
                products_commit();
                products_wait<0>();
                pin(out);
                float none = 0.0f; /* as in attention_wgmma.cu: values that are no numbers, seen by some tokens only */
                if (is_cut) {
#pragma unroll
                    for (int i = 0; i < 32; i++) {
                        none = __fmaf_rn(out[i], 0.0f, none);
                    }
                }
                if (__any_sync(MF_FULL_WARP, none != 0.0f)) {
#pragma unroll 1
                    for (int only = r.begin; only < r.end; only++) {
                        const int seen = (int)first_seen(p, positions[only]);
#pragma unroll
                        for (int n = 0; n < 8; n++) {
                            float alone[4];
                            weigh_seen(alone, packed, stages + at.stage * PART + line * SUB, SUB, n,
                                       seen - piece * PIECE, positions[only] - piece * PIECE);
#pragma unroll
                            for (int k = 0; k < 4; k++) {
                                out[4 * n + k] = token[k / 2] == only ? alone[k] : out[4 * n + k];
                            }
                        }
                    }
                }
                __syncwarp();
                if (lane == 0) {
                    barrier_arrive(&b.empty[at.stage][line]);
                }
                if (keeps) { /* times 1 changes nothing */
#pragma unroll
                    for (int i = 0; i < 32; i++) {
                        value[c][i] = __fmaf_rn(out[i], of[i / 2 % 2].y, value[c][i]);
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < 32; i++) {
                        const int e = i / 2 % 2;
                        const float next = merged(value[c][i], of[e].x, out[i], of[e].y);
                        value[c][i] = has_part[e] ? next : value[c][i];
                    }
                }
            }
            place_of::next(at);
        }
        barrier_wait(&b.told, told);
        hear(of);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (token[e] >= r.begin && token[e] < r.end) {
                const int head = (int)blockIdx.y * group + (warp * 16 + g + 8 * e) % group;
                const int64_t row = ((t0 + token[e]) * p.num_heads + head) * RANK + own * 64 + 2 * q;
#pragma unroll
                for (int c = 0; c < MINE; c++) {
#pragma unroll
                    for (int n = 0; n < 8; n++) {
                        const float low = __fmul_rn(value[c][4 * n + 2 * e], of[e].x),
                                    high = __fmul_rn(value[c][4 * n + 2 * e + 1], of[e].x);
                        if (p.rounded) {
                            *(uint32_t *)(p.rounded + row + c * 128 + n * 8) = pack_bf16(low, high);
                        } else {
                            *(float2 *)(p.out + row + c * 128 + n * 8) = make_float2(low, high);
                        }
                    }
                }
            }
        }
        begin = r.end;
    }
}

__global__ void __launch_bounds__(THREADS, 1) prefill_kernel(const __grid_constant__ mf_cuda_attention_maps c)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    const mf_cuda_attention &p = c.p;
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ int32_t sequences[ROWS], positions[ROWS];
    __shared__ barriers b;
    uint8_t *stages = shared + PART;
    message &weights = *(message *)(stages + STAGES * PART);
    let_next_start();
    const int group = p.num_heads < ROWS ? p.num_heads : ROWS, each = ROWS / group;
    const int64_t t0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * each; /* the longest contexts first */
    const int tokens = p.num_tokens - t0 < each ? (int)(p.num_tokens - t0) : each;
    if (threadIdx.x < tokens) { /* no kernel's work: no need to wait */
        sequences[threadIdx.x] = p.sequence[t0 + threadIdx.x];
        positions[threadIdx.x] = p.position[t0 + threadIdx.x];
    }
    if (threadIdx.x == 0) {
        prefetch_map(&c.whole);
        prefetch_map(&c.part);
        for (int i = 0; i < STAGES; i++) {
            for (int line = 0; line < LINES; line++) {
                barrier_init(&b.full[i][line], 1);
                barrier_init(&b.empty[i][line], line < VALUE_LINES ? 8 : 4);
            }
        }
        barrier_init(&b.told, 128);
        barrier_init(&b.heard, 256);
        barrier_init_fence();
    }
    wait_for_previous();
#pragma unroll
    for (int k = 0; k < ROWS * LINES * 8 / THREADS; k++) {
        const int i = k * THREADS + threadIdx.x, row = i / (LINES * 8), chunk = i % (LINES * 8), token = row / group,
                  head = blockIdx.y * group + row % group;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (token < tokens) {
            v = chunk < RANK / 8
                    ? *(const uint4 *)((const uint16_t *)p.q + (t0 + token) * p.q_stride + head * p.q_head_stride +
                                       chunk * 8)
                    : pack_chunk(p.q_tail + (t0 + token) * p.tail_stride + head * p.tail_head_stride + chunk * 8 - RANK,
                                 p.scale);
        }
        *(uint4 *)(shared + chunk / 8 * SUB + swizzled(row, chunk % 8)) = v;
    }
    fence_shared_for_products();
    __syncthreads();
    const int role = __shfl_sync(MF_FULL_WARP, threadIdx.x / 128, 0);
    if (role == 0) {
        give_registers<24>();
        if (threadIdx.x < 32) {
            bring(c, sequences, positions, tokens, stages, b);
        }
    } else if (role == 1) {
        give_registers<72>();
        score(p, sequences, positions, tokens, group, shared, stages, weights, b);
    } else {
        take_registers<208>();
        sum_values(p, sequences, positions, t0, tokens, group, role - 2, stages, weights, b);
    }
}

} // namespace

int mf_cuda_launch_attention_mla_wgmma(const mf_cuda_attention_maps *call, void *stream)
{
    const unsigned heads = (unsigned)call->p.num_heads, group = heads < ROWS ? heads : ROWS, each = ROWS / group;
    return launch_shared(true, prefill_kernel, dim3(((unsigned)call->p.num_tokens + each - 1) / each, heads / group),
                         THREADS, (size_t)SHARED_BYTES, stream, *call);
}
