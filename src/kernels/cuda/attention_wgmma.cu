/* attention_wgmma.cu - prefill of grouped queries over a bf16 cache on Hopper, in attention_mma.cuh's arithmetic and
 * with its bits: wgmma sums as mma.sync does.
 *
 * A block takes 128 rows (heads of a kv head, of some tokens), 64 a warpgroup.  A warp of a third warpgroup brings
 * keys and values of two pieces at a time by tensor copies.  The second piece's scores are weighed while the first
 * one's values are summed, the next pair is scored with the second one's values; the two warpgroups take turns at that.
 */
#include <type_traits>

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace
{

constexpr int HELPERS = 128, THREADS = HELPERS + 256, ROWS = 128;

constexpr int PAIR = 2 * PIECE, PITCH = PAIR * LINE; /* pieces come in pairs, as lines of 64 columns of 128 rows */
constexpr int PAIR_BOXES = PAIR / BOX;
template <int DIM> constexpr int PART = PAIR *DIM * 2; /* keys, or values, of a pair */
template <int DIM> constexpr int STAGES = DIM == 128 ? 3 : 6;
template <int DIM> constexpr int SHARED_BYTES = ROWS *DIM * 2 + STAGES<DIM> * 2 * PART<DIM>;

template <int DIM> struct barriers {
    uint64_t keys[STAGES<DIM>], values[STAGES<DIM>], empty[STAGES<DIM>];
};

/* One warp: lanes find where 16 positions each lie, 4 pairs at a time and one time ahead.  Where a pair's rows follow
 * one another, two copies bring it.  Positions that no row of the run sees arrive as zeros where a box has no others.
 */
template <int DIM>
MF_DEV void bring(const mf_cuda_attention_maps &c, const int32_t *sequences, const int32_t *positions, int tokens,
                  uint8_t *stages, barriers<DIM> &b)
{
    constexpr int LINES = DIM / 64, AT_ONCE = 32 / PAIR_BOXES, NOWHERE = -PAIR;
    const mf_cuda_attention &p = c.p;
    const int lane = threadIdx.x & 31, key_line = blockIdx.y * LINES, value_line = key_line + p.value_at / 64;
    const uint32_t size = (uint32_t)p.block_size;
    cursor<STAGES<DIM>> at = { 0, 1 };
    for (int begin = 0, end; begin < tokens; begin = end) {
        end = run_end(sequences, positions, begin, tokens);
        const int32_t *blocks = p.block_table + (int64_t)sequences[begin] * p.max_blocks;
        const int lowest = (int)first_seen(p, positions[begin]), highest = positions[end - 1], last = highest / PAIR;
        auto find = [&](int pair) { /* a row of the cache */
                                    const int position = pair * PAIR + lane * BOX;
                                    return position + BOX > lowest && position <= highest
                                               ? (int)(blocks[(uint32_t)position / size] * size +
                                                       (uint32_t)position % size)
                                               : NOWHERE;
        };
        int found = find(lowest / PAIR);
        for (int pair = lowest / PAIR; pair <= last; pair += AT_ONCE) {
            const int row = found;
            if (pair + AT_ONCE <= last) {
                found = find(pair + AT_ONCE);
            }
            const int first_row = __shfl_sync(MF_FULL_WARP, row, lane / PAIR_BOXES * PAIR_BOXES);
            const uint32_t follows =
                __ballot_sync(MF_FULL_WARP, row == first_row + lane % PAIR_BOXES * BOX && row >= 0);
            for (int i = 0; i < AT_ONCE && pair + i <= last; i++) {
                uint8_t *keys = stages + at.stage * 2 * PART<DIM>;
                const int box_row = __shfl_sync(MF_FULL_WARP, row, i * PAIR_BOXES + lane % PAIR_BOXES);
                const bool is_whole = (follows >> i * PAIR_BOXES & ((1u << PAIR_BOXES) - 1)) == (1u << PAIR_BOXES) - 1;
                barrier_wait(&b.empty[at.stage], at.parity);
                if (lane == 0) {
                    barrier_expect(&b.keys[at.stage], PART<DIM>);
                    barrier_expect(&b.values[at.stage], PART<DIM>);
                    if (is_whole) {
                        copy_box(keys, &c.whole, box_row, key_line, &b.keys[at.stage]);
                        copy_box(keys + PART<DIM>, &c.whole, box_row, value_line, &b.values[at.stage]);
                    }
                }
                __syncwarp();
                if (!is_whole && lane < 2 * LINES * PAIR_BOXES) {
                    const int line = lane / PAIR_BOXES % LINES, of_values = lane / (PAIR_BOXES * LINES);
                    copy_box(keys + of_values * PART<DIM> + line * PITCH + lane % PAIR_BOXES * BOX * LINE, &c.part,
                             box_row, (of_values ? value_line : key_line) + line,
                             of_values ? &b.values[at.stage] : &b.keys[at.stage]);
                }
                cursor<STAGES<DIM>>::next(at);
            }
        }
    }
}

/* A warp's 16 rows of queries from what the projection left: norm, rope, bf16.  Partners meet where the last four rows
 * will lie. */
template <int DIM>
MF_DEV void make_queries(const mf_cuda_attention &p, const mf_cuda_gqa_prepare &r, const int32_t *positions, int64_t t0,
                         int tokens, int row0, uint8_t *queries)
{
    constexpr int KEPT = DIM / 32, AT_ONCE = 4;
    const int lane = threadIdx.x & 31, group = p.num_heads / p.num_kv_heads;
    static_assert(AT_ONCE * LINE >= DIM * 4, "room for a head");
    float *room = (float *)(queries + (row0 % 64 + 16 - AT_ONCE) * LINE);
    float v[AT_ONCE][KEPT];
    head_maker<KEPT> maker[AT_ONCE];
#pragma unroll 1
    for (int i = 0; i < 16; i += AT_ONCE) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const int row = row0 + i + n, token = row / group < tokens ? row / group : 0;
            const float *from =
                p.q + (t0 + token) * p.q_stride + (int64_t)(blockIdx.y * group + row % group) * p.q_head_stride;
            if (r.rope_dim > 0) {
                load_angles(maker[n].angle, r.rope_dim, r.rope_pair, r.cos_sin + (int64_t)positions[token] * r.rope_dim,
                            lane);
            }
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                v[n][k] = from[k * 32 + lane];
                maker[n].weight[k] = r.q_norm ? r.q_norm[k * 32 + lane] : 0.0f;
            }
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            make_head(v[n], r, r.q_norm, maker[n], room, lane);
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            const int row = row0 + i + n;
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                const int e = k * 32 + lane;
                *(uint16_t *)(queries + e / 64 * SUB + swizzled(row % 64, e % 64 / 8) + e % 8 * 2) =
                    row / group < tokens ? f32_to_bf16(__fmul_rn(v[n][k], p.scale)) : (uint16_t)0;
            }
        }
    }
}

/* The same where halves of a whole head are rotated: partners lie in one thread, and rows go through side by side. */
template <int DIM>
MF_DEV void make_whole_queries(const mf_cuda_attention &p, const mf_cuda_gqa_prepare &r, const int32_t *positions,
                               int64_t t0, int tokens, int row0, uint8_t *queries)
{
    constexpr int KEPT = DIM / 32, HALF = KEPT / 2, AT_ONCE = 16;
    const int lane = threadIdx.x & 31, group = p.num_heads / p.num_kv_heads;
    const float *heads = p.q + t0 * p.q_stride + (int64_t)blockIdx.y * group * p.q_head_stride + lane;
    float weight[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        weight[k] = r.q_norm ? r.q_norm[k * 32 + lane] : 0.0f;
    }
    int token = row0 / group, head = row0 % group;
#pragma unroll 1
    for (int i = 0; i < 16; i += AT_ONCE) {
        float v[AT_ONCE][KEPT];
        float2 angle[AT_ONCE][HALF];
        bool is_there[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            is_there[n] = token < tokens;
            const int at = is_there[n] ? token : 0;
            const float *from = heads + at * p.q_stride + head * p.q_head_stride;
            const float2 *angles = (const float2 *)r.cos_sin + positions[at] * (DIM / 2) + lane;
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                v[n][k] = from[k * 32];
            }
#pragma unroll
            for (int k = 0; k < HALF; k++) {
                angle[n][k] = angles[k * 32];
            }
            if (++head == group) {
                head = 0;
                token++;
            }
        }
        auto norm = [&]() {
            float sum[AT_ONCE];
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                sum[n] = 0.0f;
#pragma unroll
                for (int k = 0; k < KEPT; k++) {
                    sum[n] = __fmaf_rn(v[n][k], v[n][k], sum[n]);
                }
            }
            float own = 0.0f; /* a lane finds the factor of one row */
#pragma unroll
            for (int step = 16; step > 0; step /= 2) {
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++) {
                    sum[n] = __fadd_rn(sum[n], __shfl_xor_sync(MF_FULL_WARP, sum[n], step));
                }
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                own = lane % AT_ONCE == n ? sum[n] : own;
            }
            own = norm_scale(own, DIM, r.eps);
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                const float scale = __shfl_sync(MF_FULL_WARP, own, n);
#pragma unroll
                for (int k = 0; k < KEPT; k++) {
                    v[n][k] = __fmul_rn(__fmul_rn(v[n][k], scale), weight[k]);
                }
            }
        };
        if (r.q_norm && !r.norm_after_rope) {
            norm();
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
            for (int k = 0; k < HALF; k++) {
                const float c = angle[n][k].x, s = angle[n][k].y, low = v[n][k], high = v[n][k + HALF];
                v[n][k] = __fsub_rn(__fmul_rn(low, c), __fmul_rn(high, s));
                v[n][k + HALF] = __fadd_rn(__fmul_rn(high, c), __fmul_rn(low, s));
            }
        }
        if (r.q_norm && r.norm_after_rope) {
            norm();
        }
        static_assert(AT_ONCE % 8 == 0, "a row's place in its eight is n % 8");
        uint8_t *to = queries + (row0 % 64 + i) * LINE + lane % 8 * 2;
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                *(uint16_t *)(to + k / 2 * SUB + swizzled(n, k % 2 * 4 + lane / 8)) =
                    is_there[n] ? (uint16_t)pack_query(v[n][k], 0.0f, p.scale) : (uint16_t)0;
            }
        }
    }
}

/* Rows of a warpgroup's results, through its part of shared memory; row r of it is head r % group of token r / group.
 */
template <int DIM>
MF_DEV void store_rounded(const mf_cuda_attention &p, const float (&value)[DIM / 2], const float (&part_of_all)[2],
                          int64_t t0, int begin, int end, int own, uint8_t *room)
{
    constexpr int CHUNKS = DIM / 8, AT_ONCE = 32 / CHUNKS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, group = p.num_heads / p.num_kv_heads;
    sync_threads(1 + own, 128); /* the queries have been read */
#pragma unroll
    for (int n = 0; n < CHUNKS; n += 2) {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *of = value + 4 * (n + i / 2) + 2 * (i % 2);
            v[i] = pack_query(of[0], of[1], part_of_all[i % 2]);
        }
        const int chunk = n + (lane >> 4);
        store_matrices(room + chunk / 8 * SUB + swizzled(warp * 16 + (lane & 15), chunk % 8), v[0], v[1], v[2], v[3]);
    }
    __syncwarp();
    const int chunk = lane % CHUNKS;
    int row = warp * 16 + lane / CHUNKS, token = (own * 64 + row) / group, head = (own * 64 + row) % group;
#pragma unroll
    for (int i = 0; i < 16 / AT_ONCE; i++) {
        if (token >= begin && token < end) {
            *(uint4 *)(p.rounded + ((t0 + token) * p.num_heads + blockIdx.y * group + head) * DIM + chunk * 8) =
                *(const uint4 *)(room + chunk / 8 * SUB + swizzled(row, chunk % 8));
        }
        row += AT_ONCE;
        for (head += AT_ONCE; head >= group; head -= group) {
            token++;
        }
    }
}

/* What queries come as: f32 that are ready, what the projection left, or bf16 times the scale. */
enum queries { READY, LEFT, ROUNDED };

/* Rows of bf16 as they lie. */
template <int DIM>
MF_DEV void bring_queries(const mf_cuda_attention &p, int64_t t0, int tokens, int own, int in_group, uint8_t *queries)
{
    constexpr int CHUNKS = DIM / 8, EACH = 64 * CHUNKS / 128;
    const int group = p.num_heads / p.num_kv_heads;
    uint4 v[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int at = i * 128 + in_group, row = own * 64 + at / CHUNKS, token = row / group;
        const uint16_t *from =
            (const uint16_t *)p.q + ((t0 + token) * p.num_heads + blockIdx.y * group + row % group) * DIM;
        v[i] = token < tokens ? *(const uint4 *)(from + at % CHUNKS * 8) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int at = i * 128 + in_group, row = at / CHUNKS, chunk = at % CHUNKS;
        *(uint4 *)(queries + chunk / 8 * SUB + swizzled(row, chunk % 8)) = v[i];
    }
}

template <int DIM, int QUERIES>
MF_DEV void attend(const mf_cuda_attention &p, const mf_cuda_gqa_prepare &r, const int32_t *sequences,
                   const int32_t *positions, int64_t t0, int tokens, uint8_t *shared, barriers<DIM> &b)
{
    constexpr int CHUNKS = DIM / 8;
    const int tid = threadIdx.x - HELPERS, own = __shfl_sync(MF_FULL_WARP, tid >> 7, 0), in_group = tid & 127,
              warp = in_group >> 5, lane = tid & 31, g = lane >> 2, q = lane & 3;
    const int group = p.num_heads / p.num_kv_heads, kv_head = blockIdx.y;
    uint8_t *queries = shared + own * 64 * DIM * 2, *stages = shared + ROWS * DIM * 2;
    if constexpr (QUERIES == ROUNDED) {
        bring_queries<DIM>(p, t0, tokens, own, in_group, queries);
    } else if constexpr (QUERIES == LEFT) {
        if (r.rope_dim == DIM && !r.rope_pair) {
            make_whole_queries<DIM>(p, r, positions, t0, tokens, own * 64 + warp * 16, queries);
        } else {
            make_queries<DIM>(p, r, positions, t0, tokens, own * 64 + warp * 16, queries);
        }
    }
#pragma unroll 4
    for (int i = 0; i < (QUERIES == READY ? 64 * CHUNKS / 128 : 0); i++) {
        const int at = i * 128 + in_group, row = at / CHUNKS, chunk = at % CHUNKS, all = own * 64 + row;
        const bool is_there = all / group < tokens;
        const float *from = p.q + (t0 + all / group) * p.q_stride + (kv_head * group + all % group) * p.q_head_stride;
        *(uint4 *)(queries + chunk / 8 * SUB + swizzled(row, chunk % 8)) =
            is_there ? pack_chunk(from + chunk * 8, p.scale) : make_uint4(0, 0, 0, 0);
    }
    sync_threads(1 + own, 128);
    fence_shared_for_products();
    sync_threads(1 + own, 128);
    const uint64_t query = product_operand(queries);
    int token[2], head[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = own * 64 + warp * 16 + g + 8 * e;
        token[e] = row / group;
        head[e] = kv_head * group + row % group;
    }
    float sums[64], value[DIM / 2], out[DIM / 2];
    uint32_t packed[4][4]; /* weights of a piece */
    auto begin_scores = [&](int stage) {
        const uint64_t keys = product_operand(stages + stage * 2 * PART<DIM>);
        pin(sums);
        products_begin();
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            products<128>::bf16(sums, query + k / 4 * (SUB >> 4) + 2 * (k % 4),
                                keys + k / 4 * (PITCH >> 4) + 2 * (k % 4), k > 0);
        }
        products_commit();
    };
    auto begin_values = [&](int stage, int half) {
        const uint64_t values = value_operand(stages + stage * 2 * PART<DIM> + PART<DIM> + half * PIECE * LINE, PITCH);
        pin(out);
        products_begin();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            value_products<DIM>::add(out, packed[step], values + step * (16 * LINE >> 4), step > 0);
        }
        products_commit();
    };
    cursor<STAGES<DIM>> at = { 0, 0 };
    constexpr int TURN = 3; /* barriers: one of each warpgroup's turns */
    if (own == 1) {
        arrive_threads(TURN, 256);
    }
    for (int begin = 0, end; begin < tokens; begin = end) {
        end = run_end(sequences, positions, begin, tokens);
        const int begin_position = positions[begin], lowest = (int)first_seen(p, begin_position),
                  highest = positions[end - 1], last_first = (int)first_seen(p, highest), from = lowest / PAIR,
                  to = highest / PAIR;
        float m[2], sum[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            m[e] = start_maximum2(p, head[e]);
            sum[e] = start_sum(p);
        }
#pragma unroll
        for (int i = 0; i < DIM / 2; i++) {
            value[i] = 0.0f;
        }
        /* Whether some rows of the run do not see all of a pair. */
        auto is_cut = [&](int pair) { return pair * PAIR < last_first || pair * PAIR + PAIR - 1 > begin_position; };
        float of_old[2], of_next[2];
        bool has_part[2], keeps;
        auto find_factors = [&](const float(&most)[2], const float(&part)[2]) {
            keeps = true;
#pragma unroll
            for (int e = 0; e < 2; e++) { /* without a part the maximum is minus infinity, which changes nothing */
                has_part[e] = part[e] != 0.0f;
                merge_factors2(m[e], most[e], of_old[e], of_next[e]);
                sum[e] = merged(sum[e], of_old[e], part[e], of_next[e]);
                keeps &= has_part[e] && of_old[e] == 1.0f;
            }
            keeps = __all_sync(MF_FULL_WARP, keeps);
        };
        /* A value that some rows of the run do not see is weighed with 0 there, which a NaN or infinity would survive:
         * then each token has the values to itself. */
        auto mend = [&](int stage, int pair, int half) {
            float none = 0.0f;
#pragma unroll
            for (int i = 0; i < DIM / 2; i++) {
                none = __fmaf_rn(out[i], 0.0f, none);
            }
            if (__any_sync(MF_FULL_WARP, none != 0.0f)) {
                const uint8_t *values = stages + stage * 2 * PART<DIM> + PART<DIM> + half * PIECE * LINE;
                const int base = pair * PAIR + half * PIECE;
#pragma unroll 1
                for (int only = begin; only < end; only++) {
                    const int seen = (int)first_seen(p, positions[only]);
#pragma unroll
                    for (int n = 0; n < DIM / 8; n++) {
                        float alone[4];
                        weigh_seen(alone, packed, values, PITCH, n, seen - base, positions[only] - base);
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            out[4 * n + k] = token[k / 2] == only ? alone[k] : out[4 * n + k];
                        }
                    }
                }
            }
        };
        auto merge = [&]() {
            if (keeps) { /* times 1 changes nothing */
#pragma unroll
                for (int i = 0; i < DIM / 2; i++) {
                    value[i] = __fmaf_rn(out[i], of_next[i / 2 % 2], value[i]);
                }
            } else {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (has_part[e]) {
#pragma unroll
                        for (int n = 0; n < DIM / 8; n++) {
                            float &low = value[4 * n + 2 * e], &high = value[4 * n + 2 * e + 1];
                            low = merged(low, of_old[e], out[4 * n + 2 * e], of_next[e]);
                            high = merged(high, of_old[e], out[4 * n + 2 * e + 1], of_next[e]);
                        }
                    }
                }
            }
        };
        /* The scores of a pair are there: weighs the first piece, then the second one while the first one's values are
         * summed, and scores the next pair while the second one's are.  PLAIN: all rows see all of the pair.  Products
         * are never open from one turn to another, which would have them done one by one. */
        auto take_pair = [&](int pair, auto is_plain, auto has_next) {
            constexpr bool PLAIN = decltype(is_plain)::value, HAS_NEXT = decltype(has_next)::value;
            const int stage = at.stage;
            scores s[2];
            float most[2], part[2];
#pragma unroll
            for (int i = 0; i < 64; i++) {
                s[i / 32].v[i / 4 % 8][i % 4] = sums[i];
            }
            if (!PLAIN) {
                int first[2], last[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const bool is_mine = token[e] >= begin && token[e] < end;
                    last[e] = is_mine ? positions[token[e]] : -1;
                    first[e] = is_mine ? (int)first_seen(p, last[e]) : 0;
                }
                mask(s[0], pair * PAIR, q, first, last);
                mask(s[1], pair * PAIR + PIECE, q, first, last);
            }
            weigh(s[0], most, part);
            pack_weights(packed, s[0]);
            barrier_wait(&b.values[stage], at.parity);
            begin_values(stage, 0);
            cursor<STAGES<DIM>>::next(at);
            if (HAS_NEXT) { /* here, where it also keeps the compiler from weighing before the products begin */
                barrier_wait(&b.keys[at.stage], at.parity);
            }
            find_factors(most, part);
            weigh_own(s[1], most, part);
            not_before(part[0], queries);
            not_before(part[1], queries);
            products_wait<0>();
            pin(out);
            if (!PLAIN) {
                mend(stage, pair, 0);
            }
            merge();
            sum_threads(part);
            pack_weights(packed, s[1]);
            sync_threads(TURN + own, 256);
            begin_values(stage, 1);
            if (HAS_NEXT) {
                begin_scores(at.stage);
            }
            arrive_threads(TURN + 1 - own, 256);
            find_factors(most, part);
            products_wait<HAS_NEXT && PLAIN ? 1 : 0>();
            pin(out);
            if (!PLAIN) {
                mend(stage, pair, 1);
            }
            merge();
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(&b.empty[stage]);
            }
            products_wait<0>();
            pin(sums);
        };
        barrier_wait(&b.keys[at.stage], at.parity);
        begin_scores(at.stage);
        products_wait<0>();
        pin(sums);
        const std::true_type yes;
        const std::false_type no;
#pragma unroll 1
        for (int pair = from; pair < to; pair++) {
#pragma unroll 1
            for (; pair < to && !is_cut(pair); pair++) {
                take_pair(pair, yes, yes);
            }
            if (pair < to) {
                take_pair(pair, no, yes);
            }
        }
        take_pair(to, no, no);
        const float part_of_all[2] = { __frcp_rn(sum[0]), __frcp_rn(sum[1]) };
        if (p.rounded && end == tokens) {
            store_rounded<DIM>(p, value, part_of_all, t0, begin, end, own, queries);
        } else {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if (token[e] >= begin && token[e] < end) {
                    const int64_t row = ((t0 + token[e]) * p.num_heads + head[e]) * DIM + 2 * q;
#pragma unroll
                    for (int n = 0; n < DIM / 8; n++) {
                        const float low = __fmul_rn(value[4 * n + 2 * e], part_of_all[e]),
                                    high = __fmul_rn(value[4 * n + 2 * e + 1], part_of_all[e]);
                        if (p.rounded) {
                            *(uint32_t *)(p.rounded + row + n * 8) = pack_bf16(low, high);
                        } else {
                            *(float2 *)(p.out + row + n * 8) = make_float2(low, high);
                        }
                    }
                }
            }
        }
    }
    if (own == 0) {
        sync_threads(TURN, 256); /* no arrival is left over */
    }
}

template <int DIM, int QUERIES>
__global__ void __launch_bounds__(THREADS, 1) prefill_kernel(const __grid_constant__ mf_cuda_attention_maps c)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    const mf_cuda_attention &p = c.p;
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ int32_t sequences[ROWS], positions[ROWS];
    __shared__ barriers<DIM> b;
    let_next_start();
    const int each = ROWS / (p.num_heads / p.num_kv_heads);
    const int64_t t0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * each; /* the longest contexts first */
    const int tokens = p.num_tokens - t0 < each ? (int)(p.num_tokens - t0) : each;
    if (threadIdx.x < tokens) { /* no kernel's work: no need to wait */
        sequences[threadIdx.x] = p.sequence[t0 + threadIdx.x];
        positions[threadIdx.x] = p.position[t0 + threadIdx.x];
    }
    if (threadIdx.x == 0) {
        prefetch_map(&c.whole);
        prefetch_map(&c.part);
        for (int i = 0; i < STAGES<DIM>; i++) {
            barrier_init(&b.keys[i], 1);
            barrier_init(&b.values[i], 1);
            barrier_init(&b.empty[i], 8);
        }
        barrier_init_fence();
    }
    __syncthreads();
    wait_for_previous();
    if (threadIdx.x < HELPERS) {
        give_registers<24>();
        if (threadIdx.x < 32) {
            bring<DIM>(c, sequences, positions, tokens, shared + ROWS * DIM * 2, b);
        }
    } else {
        take_registers<240>();
        attend<DIM, QUERIES>(p, c.r, sequences, positions, t0, tokens, shared, b);
    }
}

template <int DIM> int launch(const mf_cuda_attention_maps &c, void *stream)
{
    const int each = ROWS / (c.p.num_heads / c.p.num_kv_heads);
    const dim3 grid((unsigned)((c.p.num_tokens + each - 1) / each), (unsigned)c.p.num_kv_heads);
    auto kernel = c.makes_queries    ? prefill_kernel<DIM, LEFT>
                  : c.p.q_is_rounded ? prefill_kernel<DIM, ROUNDED>
                                     : prefill_kernel<DIM, READY>;
    return launch_shared(true, kernel, grid, THREADS, (size_t)SHARED_BYTES<DIM>, stream, c);
}

} // namespace

int mf_cuda_launch_attention_wgmma(const mf_cuda_attention_maps *call, void *stream)
{
    return call->p.head_dim == 64 ? launch<64>(*call, stream) : launch<128>(*call, stream);
}
