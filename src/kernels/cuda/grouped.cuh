/* grouped.cuh - what the kernels of the grouped products on Hopper share: tiles of tokens, stages in shared memory, the
 * products' arithmetic.
 *
 * Order of sums, the same for every tile, batch and kernel here: K ascending in one accumulator (bf16), or a part of
 * 128 columns from zero and then acc = fma(part, scale_x * scale_w, acc), parts ascending (FP8_BLOCK).  A column of a
 * product does not see its neighbours, so tokens may be tiled anyhow. */
#ifndef MF_KERNELS_CUDA_GROUPED_CUH
#define MF_KERNELS_CUDA_GROUPED_CUH

#include "kernels/cuda/experts.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

constexpr int LINE = 128;          /* bytes of K in a stage's rows */
constexpr int SUBTILE = 64 * LINE; /* 64 weight rows: one product's */
constexpr int SCALE_BYTES = 1024;  /* of a stage: the tokens' scales, whole swizzle atoms */

/* A block: a warp that brings weights, three that gather tokens, two warpgroups that multiply. */
constexpr int THREADS = 384, PRODUCERS = 128, GATHERERS = 96;
enum { BARRIER_BOTH = 1, BARRIER_GATHER, BARRIER_CODES, BARRIER_PRODUCERS, BARRIER_LISTS, BARRIER_OWN }; /* OWN + warpgroup */

/* A unit of work.  It stays in shared memory while it is worked on: registers are for sums. */
struct unit {
    int32_t slot;                  /* -1: no more work */
    int32_t is_down, first, count; /* its tokens: sorted[first ..] */
    int32_t row;                   /* first row: of gate and of up, or of down */
    int32_t steps;                 /* tiles of rows, one after the other */
    int32_t lines;                 /* of K: stages of a step */
    int32_t tile;                  /* of tokens: its counter */
    int32_t need;                  /* what the counter must have reached */
};

constexpr int STAGES_AT_MOST = 6, UNITS = 8; /* one being written, one begun in each stage */

struct shared_state {
    uint64_t full[STAGES_AT_MOST], empty[STAGES_AT_MOST], announced[UNITS];
    unit units[UNITS];
    int32_t sums[THREADS / 32];
};

typedef const volatile unit *unit_ref;

MF_DEV void init_announcements(shared_state *s)
{
    for (int i = 0; i < UNITS; i++) {
        barrier_init(&s->announced[i], 1);
    }
}

/* By one thread, before the others come.  A stage is full when the thread that brings weights and all that gather
 * tokens have arrived, empty when the multiplying warps have: a lane of each, or all. */
MF_DEV void init_state(shared_state *s, int stages, int empty_arrivals)
{
    for (int i = 0; i < stages; i++) {
        barrier_init(&s->full[i], 1 + GATHERERS);
        barrier_init(&s->empty[i], empty_arrivals);
    }
    init_announcements(s);
    barrier_init_fence();
}

/* The block's n-th unit, once its first stage is free: whoever has its place in the ring has left its last stage. */
MF_DEV void announce(shared_state *s, int n, const unit &u)
{
    s->units[n % UNITS] = u;
    barrier_arrive(&s->announced[n % UNITS]);
}

MF_DEV void announce_end(shared_state *s, int n)
{
    s->units[n % UNITS].slot = -1;
    barrier_arrive(&s->announced[n % UNITS]);
}

/* Waits for it. */
MF_DEV unit_ref announced_unit(shared_state *s, int n)
{
    barrier_wait(&s->announced[n % UNITS], n / UNITS & 1);
    return &s->units[n % UNITS];
}

struct stage_cursor {
    int stage, stages;
    uint32_t parity;
    MF_DEV_MEMBER void next(stage_cursor &c)
    {
        if (++c.stage == c.stages) {
            c.stage = 0;
            c.parity ^= 1;
        }
    }
};

/* The sum of what threads of the block before this one hold; sums: a word a warp in shared memory, all written after. */
template <typename T> MF_DEV T sum_before(T mine, int lane, int warp, T *sums)
{
    T sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const T before = __shfl_up_sync(MF_FULL_WARP, sum, d);
        sum += lane >= d ? before : 0;
    }
    if (lane == 31) {
        sums[warp] = sum;
    }
    __syncthreads();
    T before = sum - mine;
    for (int w = 0; w < warp; w++) {
        before += sums[w];
    }
    return before;
}

MF_DEV int tiles_of(int count, int most)
{
    return (count + most - 1) / most;
}

/* Tokens of each of a slot's tiles but the last: all nearly alike. */
MF_DEV int tile_size(int count, int tiles)
{
    return ((count + tiles - 1) / tiles + 7) & ~7;
}

/* Where each slot's pairs and tiles of at most `most` begin; by the whole block, before everything. */
MF_DEV void scan_tiles(const mf_cuda_grouped &p, int most, int32_t *offsets, int32_t *prefix, int32_t *sums)
{
    const int slots = (int)p.e.num_slots, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    for (int i = tid; i <= slots; i += THREADS) {
        offsets[i] = p.offsets[i];
    }
    __syncthreads();
    const int each = (slots + THREADS - 1) / THREADS, from = tid * each, to = min(slots, from + each);
    int32_t mine = 0;
    for (int i = from; i < to; i++) {
        mine += tiles_of(offsets[i + 1] - offsets[i], most);
    }
    int32_t before = sum_before(mine, lane, warp, sums);
    for (int i = from; i < to; i++) {
        prefix[i] = before;
        before += tiles_of(offsets[i + 1] - offsets[i], most);
    }
    if (tid == THREADS - 1) {
        prefix[slots] = before;
    }
    __syncthreads();
}

/* The slot that tile `tile` belongs to: prefix[slot] <= tile < prefix[slot + 1]. */
template <typename Number> MF_DEV int slot_of(const int32_t *prefix, int slots, Number tile)
{
    int low = 0, high = slots;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (prefix[middle] <= tile) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The next unit of work.  A block waits for those before its own only, and blocks that run have claimed them: a launch
 * ends however few of its blocks find room at a time. */
MF_DEV uint32_t claim_unit(const mf_cuda_grouped &p)
{
    return atomicAdd(p.work + MF_CUDA_WORK_NEXT, 1u);
}

/* The last block whose work is written leaves the counters as it found them; returns whether this one is. */
MF_DEV bool leave_counters(const mf_cuda_grouped &p, int tiles)
{
    const int tid = threadIdx.x - PRODUCERS;
    named_barrier<BARRIER_BOTH, 256>();
    bool is_last = false;
    if (tid == 0) {
        __threadfence();
        is_last = atomicAdd(p.work + MF_CUDA_WORK_DONE, 1u) == gridDim.x - 1;
    }
    if (!sync_threads_or(BARRIER_BOTH, 256, is_last)) {
        return false;
    }
    for (int i = tid; i < tiles; i += 256) {
        p.work[MF_CUDA_WORK_TILES + i] = 0;
    }
    for (int i = tid; p.clears_counts && i < p.e.num_slots; i += 256) {
        p.work[MF_CUDA_WORK_COUNTS + i] = p.work[MF_CUDA_WORK_CURSORS + i] = 0;
    }
    if (tid == 0) {
        p.work[MF_CUDA_WORK_NEXT] = p.work[MF_CUDA_WORK_DONE] = 0;
    }
    return true;
}

/* Of one of the two warpgroups that multiply. */
MF_DEV void own_barrier(int group)
{
    if (group == 0) {
        named_barrier<BARRIER_OWN, 128>();
    } else {
        named_barrier<BARRIER_OWN + 1, 128>();
    }
}

/* The place of a 16-byte chunk in swizzled rows. */
MF_DEV uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * LINE + ((chunk ^ (row & 7)) << 4));
}

MF_DEV const CUtensorMap *map_of(const mf_cuda_grouped &p, int slot, int matrix, int box)
{
    return (const CUtensorMap *)p.maps + ((int64_t)slot * 3 + matrix) * MF_CUDA_BOXES + box;
}

/* g * sigmoid(g) from the fast exponential and division; three units in the last place of f32, rounded to bf16 next. */
MF_DEV float fast_sigmoid_times(float g, float alpha)
{
    return __fdividef(g, 1.0f + exp2f(__fmul_rn(__fmul_rn(g, alpha), -1.44269504f)));
}

/* The activations that MF_CUDA_GROUPED plans (experts_plan.c): all are g * sigmoid(alpha g) * (u + beta) with clamps.
 */
struct swiglu {
    float limit, alpha, beta;
    int32_t kind;
};

MF_DEV swiglu swiglu_of(int32_t activation, float limit, float alpha)
{
    swiglu s;
    s.kind = activation;
    s.limit = activation == MF_ACT_SILU ? __uint_as_float(0x7f800000u) : limit;
    s.alpha = activation == MF_ACT_SWIGLU_OAI ? alpha : 1.0f;
    s.beta = activation == MF_ACT_SWIGLU_OAI ? 1.0f : 0.0f;
    return s;
}

MF_DEV swiglu swiglu_of(const mf_cuda_slot &slot)
{
    return swiglu_of(slot.activation, slot.limit, slot.alpha);
}

MF_DEV float apply(const swiglu &s, float g, float u)
{
    if (s.kind != MF_ACT_SILU) {
        if (s.kind != MF_ACT_SILU_CLAMP_AFTER) {
            g = g > s.limit ? s.limit : g;
        }
        u = act_clamp(u, s.limit);
    }
    float r = fast_sigmoid_times(g, s.alpha);
    if (s.kind == MF_ACT_SILU_CLAMP_AFTER) {
        r = r > s.limit ? s.limit : r;
    }
    return __fmul_rn(r, __fadd_rn(u, s.beta));
}

/* The intermediate of two tokens in one row, from their sums and the row's biases. */
MF_DEV uint32_t two_results(const swiglu &act, bool has_bias, float gate0, float gate1, float up0, float up1,
                            float gate_bias, float up_bias)
{
    if (has_bias) {
        gate0 = __fadd_rn(gate0, gate_bias);
        gate1 = __fadd_rn(gate1, gate_bias);
        up0 = __fadd_rn(up0, up_bias);
        up1 = __fadd_rn(up1, up_bias);
    }
    return pack_bf16(apply(act, gate0, up0), apply(act, gate1, up1));
}

/* x / scale, good for its code: x * r and what that is off by.  r: 1 / scale, rounded, and normal.  Of all numbers x of
 * bf16 and all scales that a largest one of bf16 gives, none has another code, e4m3 or int8, than the division's. */
MF_DEV float divided(float x, float scale, float r)
{
    const float q = __fmul_rn(x, r);
    return __fmaf_rn(__fmaf_rn(-q, scale, x), r, q);
}

/* Four codes; the first in the low byte. */
MF_DEV uint32_t four_codes(const float *q)
{
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(q[0], q[1]), __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(q[2], q[3]), __NV_SATFINITE, __NV_E4M3);
    return low | high << 16;
}

/* 128 bf16 of a row, 128 / LANES in each of LANES lanes, to codes and their scale; ALONE: other lanes are elsewhere. */
template <bool ALONE, int LANES>
MF_DEV void quantise_group(const uint4 (&v)[16 / LANES], bool e8m0, uint4 (&codes)[8 / LANES], float &scale)
{
    constexpr int WORDS = 64 / LANES;
    const uint32_t lanes = ALONE ? ((1u << LANES) - 1) << (threadIdx.x & (32 - LANES)) : MF_FULL_WARP;
    uint32_t words[WORDS], largest = 0; /* two at a time, as 16 bits each: a NaN is the largest of all */
#pragma unroll
    for (int i = 0; i < WORDS / 4; i++) {
        words[4 * i] = v[i].x;
        words[4 * i + 1] = v[i].y;
        words[4 * i + 2] = v[i].z;
        words[4 * i + 3] = v[i].w;
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        largest = __vmaxu2(largest, words[i] & 0x7fff7fffu);
    }
#pragma unroll
    for (int d = 1; d < LANES; d *= 2) {
        largest = __vmaxu2(largest, __shfl_xor_sync(lanes, largest, d));
    }
    scale = quant_scale(QUANT_FP8_GROUP, 0.0f, e8m0,
                        __uint_as_float(max(largest << 16, largest & 0xffff0000u)));
    const float r = __frcp_rn(scale);
    const bool is_finite = scale < __uint_as_float(0x7f800000u);
#pragma unroll
    for (int i = 0; i < WORDS / 8; i++) {
        float x[16];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            x[2 * k] = __uint_as_float(words[8 * i + k] << 16);
            x[2 * k + 1] = __uint_as_float(words[8 * i + k] & 0xffff0000u);
        }
        if (is_finite) {
#pragma unroll
            for (int k = 0; k < 16; k++) {
                x[k] = divided(x[k], scale, r);
            }
        } else { /* finite / inf, or NaN */
#pragma unroll
            for (int k = 0; k < 16; k++) {
                x[k] = __fdividef(x[k], scale);
            }
        }
        codes[i] = make_uint4(four_codes(x), four_codes(x + 4), four_codes(x + 8), four_codes(x + 12));
    }
}

/* 16 bf16 of a row and its seven neighbours'. */
template <bool ALONE> MF_DEV uint4 quantise_16(const uint4 (&v)[2], bool e8m0, float &scale)
{
    uint4 codes[1];
    quantise_group<ALONE, 8>(v, e8m0, codes, scale);
    return codes[0];
}

/* 16 columns of x from element `from` on. */
MF_DEV void load_columns(const mf_cuda_grouped &p, int64_t from, uint4 (&raw)[2])
{
    if (p.x_is_wide) {
        raw[0] = __ldg((const uint4 *)((const uint16_t *)p.e.x + from));
        raw[1] = __ldg((const uint4 *)((const uint16_t *)p.e.x + from) + 1);
        return;
    }
    uint32_t words[8];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        words[k] = load_at<uint16_t>(p.e.x, from + 2 * k, p.e.bytewise) |
                   (uint32_t)load_at<uint16_t>(p.e.x, from + 2 * k + 1, p.e.bytewise) << 16;
    }
    raw[0] = make_uint4(words[0], words[1], words[2], words[3]);
    raw[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

/* Columns at .. at + 15 of the i-th group of 128 columns of x. */
MF_DEV void load_group(const mf_cuda_grouped &p, int64_t i, int at, uint4 (&raw)[2])
{
    const uint32_t per_row = (uint32_t)p.x_groups;
    load_columns(p, (int64_t)((uint32_t)i / per_row) * p.e.x_stride + (int64_t)((uint32_t)i % per_row) * 128 + at, raw);
}

/* Codes and scales of groups first, first + step, .. below `groups` of x, groups of 128 columns; four lanes each, with
 * two pieces of 16 columns. */
MF_DEV void quantise_groups(const mf_cuda_grouped &p, int64_t first, int64_t step, int64_t groups)
{
    const int at = (threadIdx.x & 3) * 16;
    const uint32_t per_row = (uint32_t)p.x_groups, rows = (uint32_t)step / per_row, more = (uint32_t)step % per_row;
    uint32_t row = (uint32_t)first / per_row, group = (uint32_t)first % per_row;
    uint4 next[4];
    auto load = [&]() {
        const int64_t from = (int64_t)row * p.e.x_stride + group * 128 + at;
        uint4 half[2];
        load_columns(p, from, half);
        next[0] = half[0];
        next[1] = half[1];
        load_columns(p, from + 64, half);
        next[2] = half[0];
        next[3] = half[1];
        row += rows;
        group += more;
        row += group >= per_row;
        group -= group >= per_row ? per_row : 0;
    };
    if (first < groups) {
        load();
    }
    for (int64_t i = first; i < groups; i += step) {
        const uint4 raw[4] = { next[0], next[1], next[2], next[3] };
        if (i + step < groups) { /* on its way while these become codes */
            load();
        }
        float scale;
        uint4 codes[2];
        quantise_group<true, 4>(raw, p.e.e8m0, codes, scale);
        *(uint4 *)(p.x_codes + i * 128 + at) = codes[0];
        *(uint4 *)(p.x_codes + i * 128 + at + 64) = codes[1];
        if (at == 0) {
            p.x_scales_out[i] = scale;
        }
    }
}

/* acc += part * (token scale * weight scale), for a lane's two tokens of every eight. */
template <int N> MF_DEV void promote(float *acc, const float (&part)[N / 2], const float *token_scales, float scale)
{
    const int q = threadIdx.x & 3;
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        const float2 t = *(const float2 *)(token_scales + 8 * i + 2 * q);
        const float low = __fmul_rn(t.x, scale), high = __fmul_rn(t.y, scale);
        acc[4 * i] = __fmaf_rn(part[4 * i], low, acc[4 * i]);
        acc[4 * i + 1] = __fmaf_rn(part[4 * i + 1], high, acc[4 * i + 1]);
        acc[4 * i + 2] = __fmaf_rn(part[4 * i + 2], low, acc[4 * i + 2]);
        acc[4 * i + 3] = __fmaf_rn(part[4 * i + 3], high, acc[4 * i + 3]);
    }
}

template <bool FP8, int N> MF_DEV void add_line(float (&sums)[N / 2], uint64_t rows, uint64_t tokens, bool add)
{
#pragma unroll
    for (int k = 0; k < 4; k++) { /* 32 bytes of K each */
        if (FP8) {
            products<N>::e4m3(sums, rows + 2 * k, tokens + 2 * k, add || k > 0);
        } else {
            products<N>::bf16(sums, rows + 2 * k, tokens + 2 * k, add || k > 0);
        }
    }
}

/* y of ids past the last slot: no tile sees them. */
MF_DEV void zero_strangers(const mf_cuda_grouped &p)
{
    const int tid = threadIdx.x - PRODUCERS;
    for (int64_t base = (int64_t)blockIdx.x * 256; base < p.e.num_pairs; base += (int64_t)gridDim.x * 256) {
        const int64_t pair = base + tid;
        if (pair < p.e.num_pairs && pair_id(p.e, pair) >= p.e.num_slots) {
            for (int64_t i = 0; i < p.e.hidden_size; i++) {
                store_float(p.e.y, p.e.y_dtype, y_offset(p.e, pair) + i, 0.0f, p.e.bytewise);
            }
        }
    }
}

/* The same of a few pairs, whose ids a launch has at hand: by all threads of all blocks, a row after the other. */
MF_DEV void zero_few_strangers(const mf_cuda_grouped &p, const int32_t *ids, int pairs, uint32_t threads)
{
    for (int pair = 0; pair < pairs; pair++) {
        if (ids[pair] >= p.e.num_slots) {
            for (int64_t i = (int64_t)blockIdx.x * threads + threadIdx.x; i < p.e.hidden_size;
                 i += (int64_t)gridDim.x * threads) {
                store_float(p.e.y, p.e.y_dtype, y_offset(p.e, pair) + i, 0.0f, p.e.bytewise);
            }
        }
    }
}

#endif
