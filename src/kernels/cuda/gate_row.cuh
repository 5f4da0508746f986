/* gate_row.cuh - one row of the gate by one warp, whatever is asked of it; bit-equal to ref/gate.c.
 *
 * Lane l holds columns l, l + 32, ..., which is also the order of lanesum32.  Keys are unsigned integers whose order is the
 * floats' (0: not allowed), so a choice is two warp reductions: the largest key, then the lowest id that has it.  What
 * follows the choice touches C columns and takes a lane each.  Counts are integers, so their order is free. */
#ifndef MF_KERNELS_CUDA_GATE_ROW_CUH
#define MF_KERNELS_CUDA_GATE_ROW_CUH

#include "kernels/cuda/numbers.cuh"

namespace
{

constexpr int COLUMNS = MF_CUDA_GATE_COLUMNS;
constexpr uint32_t BAD_KEY = 0x007fffffu; /* ordered(-inf) */
constexpr uint32_t ABSENT = 0x7fffffffu;

/* A row's values, column j * 32 + lane: in registers, or (VALUES = 0) in shared memory. */
template <int VALUES> struct row_values {
    uint32_t v[VALUES];
    __device__ __forceinline__ row_values(uint32_t *, int)
    {
    }
    __device__ __forceinline__ uint32_t &operator[](int j)
    {
        return v[j];
    }
};
template <> struct row_values<0> {
    uint32_t *s;
    __device__ __forceinline__ row_values(uint32_t *shared, int lane) : s(shared + lane)
    {
    }
    __device__ __forceinline__ uint32_t &operator[](int j)
    {
        return s[j * 32];
    }
};

struct row_memory {
    int32_t *id;   /* [COLUMNS] */
    float *w;      /* [COLUMNS] */
    uint32_t *key; /* [padded width]; general kernel or groups */
    float *group;  /* [padded groups] */
    uint8_t *kept; /* [padded groups] */
};

MF_DEV float bias_of(const mf_cuda_gate &p, bool alt, int i)
{
    return canon_bias(alt ? load_float(p.bias_alt, p.bias_alt_dtype, i, p.bytewise)
                          : load_float(p.bias, p.bias_dtype, i, p.bytewise));
}

/* The canonical logit with a LOGIT bias in it; a NaN stays a NaN and marks the expert as bad. */
MF_DEV float read_logit(const mf_cuda_gate &p, int64_t t, bool alt, int i, bool bytewise)
{
    float x = load_float(p.logits, p.logits_dtype, t * p.logits_stride + i, bytewise);
    if (is_nan(x)) {
        return __uint_as_float(0x7fc00000u);
    }
    x = canon_input(x);
    if (p.bias_domain == MF_BIAS_LOGIT) {
        x = canon_input(__fadd_rn(x, bias_of(p, alt, i)));
    }
    return x;
}

/* A row's columns j * 32 + lane as f32 bits, from aligned memory. */
template <int VALUES>
MF_DEV void load_values(const void *base, int dtype, int64_t first, int width, int lane, uint32_t *values)
{
    if (dtype == MF_F32) {
        const uint32_t *from = (const uint32_t *)base + first;
#pragma unroll
        for (int j = 0; j < VALUES; j++) {
            values[j] = j * 32 + lane < width ? from[j * 32 + lane] : 0u;
        }
        return;
    }
    const uint16_t *from = (const uint16_t *)base + first;
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
        values[j] = j * 32 + lane < width ? from[j * 32 + lane] : 0u;
    }
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
        values[j] = dtype == MF_BF16 ? values[j] << 16 : __float_as_uint(f16_to_f32((uint16_t)values[j]));
    }
}

MF_DEV float score_of(const mf_cuda_gate &p, float x, float m, float sum)
{
    if (p.scoring == MF_SCORING_SOFTMAX) {
        return canon_zero(__fdiv_rn(gate_exp(__fsub_rn(x, m)), sum));
    }
    if (p.scoring == MF_SCORING_SIGMOID || p.scoring == MF_SCORING_TOPK_SIGMOID) {
        return canon_zero(gate_sigmoid(x));
    }
    return canon_zero(gate_sqrtsoftplus(x));
}

MF_DEV uint32_t reduce_max(uint32_t v)
{
    return __reduce_max_sync(MF_FULL_WARP, v);
}

MF_DEV uint32_t reduce_min(uint32_t v)
{
    return __reduce_min_sync(MF_FULL_WARP, v);
}

MF_DEV int group_of(const mf_cuda_gate &p, int i)
{
    return p.group_shift >= 0 ? i >> p.group_shift : i / p.group_size;
}

/* Keeps the best groups by (score descending, group ascending).  Keys lie in shared memory; up to 32 groups take
 * 32 / groups lanes each, more take turns. */
MF_DEV void drop_groups(const mf_cuda_gate &p, const row_memory &mem, int lane)
{
    const int groups = p.n_group, size = p.group_size;
    int shift = 0; /* of the lanes per group */
    while ((2 << shift) * groups <= 32) {
        shift++;
    }
    const int lanes = 1 << shift, part = lane & (lanes - 1);
    for (int first = 0; first < groups; first += 32 >> shift) {
        const int g = first + (lane >> shift);
        uint32_t best = BAD_KEY, second = BAD_KEY;
        if (g < groups) {
            const uint32_t *keys = mem.key + g * size;
            /* Groups of a power of two start apart, so that lanes meet different banks. */
            int at = part + (p.group_shift >= 0 && lanes <= size ? (g << shift) & (size - 1) : 0);
            for (int n = part; n < size; n += lanes) {
                const uint32_t k = keys[at];
                if (k > best) {
                    second = best;
                    best = k;
                } else if (k > second) {
                    second = k;
                }
                at += lanes;
                at = at < size ? at : part;
            }
        }
        for (int d = lanes / 2; d > 0; d /= 2) {
            const uint32_t b = __shfl_xor_sync(MF_FULL_WARP, best, d), s = __shfl_xor_sync(MF_FULL_WARP, second, d);
            if (b > best) {
                second = best > s ? best : s;
                best = b;
            } else {
                second = b > second ? b : second;
            }
        }
        if (g < groups && part == 0) {
            const float score = p.group_score == MF_GROUP_SCORE_MAX || size == 1
                                    ? unordered(best)
                                    : canon_zero(__fadd_rn(unordered(best), unordered(second)));
            mem.group[g] = score;
        }
    }
    __syncwarp();
    for (int g = lane; g < groups; g += 32) {
        const float mine = mem.group[g];
        int before = 0;
        for (int o = 0; o < groups; o++) {
            const float other = mem.group[o];
            before += other > mine || (other == mine && o < g);
        }
        mem.kept[g] = before < p.topk_group;
    }
    __syncwarp();
}

/* Counts an emitted id: in the block's histogram, the device's, or the caller's own. */
MF_DEV void count_id(const mf_cuda_gate &p, uint32_t *block_counts, int32_t id)
{
    if (!p.histogram) {
        return;
    }
    if (p.counts_to_output) {
        atomicAdd((int32_t *)p.histogram + id, 1);
    } else if (p.num_slots <= MF_CUDA_BLOCK_HISTOGRAM) {
        atomicAdd(block_counts + id, 1u);
    } else {
        atomicAdd(p.counts + id, 1u);
    }
}

MF_DEV void count_one(void *counter, int64_t i)
{
    if (counter) {
        atomicAdd((int32_t *)counter + i, 1);
    }
}

/* Logical routed id -> physical id -> per-rank number; negative: not here. */
MF_DEV int64_t map_routed(const mf_cuda_gate &p, int64_t t, int32_t logical)
{
    int64_t id = logical;
    if (p.map_copies > 0) {
        int64_t copies = 1;
        if (p.copies) {
            copies = load_at<int32_t>(p.copies, logical, p.bytewise);
            copies = copies < 1 ? 1 : copies > p.map_copies ? p.map_copies : copies;
        }
        id = load_at<int32_t>(p.map, logical * p.map_stride + (p.row_base + t) % copies, p.bytewise);
    }
    if (id >= 0 && p.ep_size > 0) {
        id += id / (p.num_physical / p.ep_size) * p.num_shared;
    }
    return id > INT32_MAX ? INT32_MAX : id;
}

/* Scores of the chosen, from their logits again: cheaper than keeping all of a row's. */
MF_DEV void weigh(const mf_cuda_gate &p, const row_memory &mem, int64_t t, bool alt, float m, float sum, int lane)
{
    const int top_k = p.top_k;
    float x[2] = { 0.0f, 0.0f };
    bool good[2] = { false, false };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int k = lane + half * 32;
        if (k < top_k) {
            const int32_t id = mem.id[k];
            float w = 0.0f;
            if (id >= 0) {
                x[half] = read_logit(p, t, alt, id, p.bytewise);
                good[half] = !is_nan(x[half]);
                w = good[half] && p.scoring != MF_SCORING_TOPK_SOFTMAX ? score_of(p, x[half], m, sum) : 0.0f;
            }
            mem.w[k] = p.scoring == MF_SCORING_TOPK_SOFTMAX ? x[half] : w;
        }
    }
    __syncwarp();
    float divisor = 1.0f;
    bool divide = false;
    if (p.scoring == MF_SCORING_TOPK_SOFTMAX) {
        const uint32_t low = __ballot_sync(MF_FULL_WARP, good[0]), high = __ballot_sync(MF_FULL_WARP, good[1]);
        divide = (low | high) != 0;
        const float first = divide ? mem.w[low ? __ffs(low) - 1 : 31 + __ffs(high)] : 0.0f;
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (lane + half * 32 < top_k) {
                mem.w[lane + half * 32] = good[half] ? gate_exp(__fsub_rn(x[half], first)) : 0.0f;
            }
        }
        __syncwarp();
    }
    if (divide || p.renorm != MF_RENORM_NONE) {
        float s = 0.0f;
        for (int k = 0; k < top_k; k++) {
            s = __fadd_rn(s, mem.w[k]);
        }
        divisor = divide                            ? s
                  : p.renorm == MF_RENORM_SUM       ? (s > 0.0f ? s : 1.0f)
                  : p.renorm == MF_RENORM_SUM_EPS   ? __fadd_rn(s, p.renorm_eps)
                  : s > p.renorm_eps                ? s
                                                    : p.renorm_eps;
        divide = true;
    }
    __syncwarp();
    for (int k = lane; k < top_k; k += 32) {
        const int32_t id = mem.id[k];
        float w = mem.w[k];
        w = divide ? canon_zero(__fdiv_rn(w, divisor)) : w;
        if (id < 0) {
            w = 0.0f;
        } else {
            if (p.scale) {
                w = canon_zero(__fmul_rn(w, canon_zero(load_at<float>(p.scale, id, p.bytewise))));
            }
            if (p.fold) {
                w = canon_zero(__fmul_rn(w, p.factor));
            }
        }
        mem.w[k] = w;
    }
    __syncwarp();
}

/* Shared columns, maps, window; w of what is not here becomes 0. */
MF_DEV void finish_columns(const mf_cuda_gate &p, const row_memory &mem, int64_t t, float shared_weight, int lane)
{
    const int64_t index = p.row_base + t;
    for (int c = lane; c < p.num_columns; c += 32) {
        int64_t id;
        float w;
        if (c < p.top_k) {
            id = mem.id[c];
            w = mem.w[c];
            if (id >= 0) {
                count_one(p.load, id);
                id = map_routed(p, t, (int32_t)id);
            }
        } else {
            const int j = c - p.top_k;
            w = shared_weight;
            if (p.ep_size > 0) {
                const int64_t local = p.num_physical / p.ep_size;
                const int64_t rank = p.ep_rank >= 0 ? p.ep_rank : index % p.ep_size;
                id = rank * (local + p.num_shared) + local + j;
            } else {
                id = p.shared_base + (int64_t)j * p.shared_stride + (p.num_replicas > 1 ? index % p.num_replicas : 0);
            }
        }
        if (id >= 0 && p.window_count >= 0) {
            id -= p.window_first;
            id = id < p.window_count ? id : -1;
        }
        mem.id[c] = id < 0 ? -1 : (int32_t)id;
        mem.w[c] = id < 0 ? 0.0f : w;
    }
    __syncwarp();
}

/* Ascending id with -1 last; equal ids keep selection order. */
MF_DEV void sort_routed(const mf_cuda_gate &p, const row_memory &mem, int lane)
{
    int32_t id[2] = { 0, 0 };
    float w[2] = { 0.0f, 0.0f };
    int place[2] = { 0, 0 };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int k = lane + half * 32;
        if (k < p.top_k) {
            id[half] = mem.id[k];
            w[half] = mem.w[k];
            for (int o = 0; o < p.top_k; o++) {
                const uint32_t other = (uint32_t)mem.id[o];
                place[half] += other < (uint32_t)id[half] || (other == (uint32_t)id[half] && o < k);
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (lane + half * 32 < p.top_k) {
            mem.id[place[half]] = id[half];
            mem.w[place[half]] = w[half];
        }
    }
    __syncwarp();
}

template <int VALUES, int STAGE>
MF_DEV void run_row(const mf_cuda_gate &p, const row_memory &mem, uint32_t *block_counts, int64_t t, int64_t valid_rows,
                    int lane)
{
    constexpr bool GENERAL = VALUES == 0;
    constexpr int UNROLL = GENERAL ? 1 : VALUES;
    const int values = GENERAL ? (p.width + 31) / 32 : VALUES;
    const bool bytewise = GENERAL && p.bytewise;
    bool valid = t < valid_rows && (!p.row_valid || p.row_valid[t] != 0);
    bool has_nan = false;
    float m = 0.0f, sum = 1.0f;
    const bool alt = valid && p.bias_alt && p.row_is_alt[t] != 0;

    if (valid && p.hash) {
        if (STAGE != MF_CUDA_GATE_FUSED && STAGE != MF_CUDA_GATE_EMIT) {
            return;
        }
        const int64_t token = p.token_i64 ? load_at<int64_t>(p.token_ids, t, p.bytewise)
                                          : load_at<int32_t>(p.token_ids, t, p.bytewise);
        valid = token >= 0 && token < p.hash_rows;
        if (!valid && lane == 0) {
            count_one(p.errors, 0);
        }
        bool nan = false;
        for (int k = lane; valid && k < p.top_k; k += 32) {
            int32_t id = load_at<int32_t>(p.hash_table, token * p.hash_stride + k, p.bytewise);
            if (id < 0 || id >= p.num_experts) {
                count_one(p.errors, 0);
                id = -1;
            } else {
                nan |= is_nan(read_logit(p, t, false, id, p.bytewise));
            }
            mem.id[k] = id;
        }
        has_nan = __any_sync(MF_FULL_WARP, nan);
        __syncwarp();
    } else if (valid && STAGE != MF_CUDA_GATE_EMIT) {
        row_values<VALUES> key(mem.key, lane);
        if (STAGE != MF_CUDA_GATE_CHOOSE) {
            bool nan = false;
            float most = -FLT_MAX;
            constexpr int KEPT = VALUES <= 16 ? VALUES : 0; /* biases in registers too */
            float bias[KEPT > 0 ? KEPT : 1];
            if (!GENERAL) { /* all loads before the first use */
                load_values<VALUES>(p.logits, p.logits_dtype, t * p.logits_stride, p.width, lane, &key[0]);
                if (KEPT > 0 && p.bias_domain != MF_BIAS_NONE) {
                    load_values<KEPT>(alt ? p.bias_alt : p.bias, alt ? p.bias_alt_dtype : p.bias_dtype, 0, p.width, lane,
                                      (uint32_t *)bias);
                }
            }
#pragma unroll UNROLL
            for (int j = 0; j < values; j++) {
                const int i = j * 32 + lane;
                float x = 0.0f;
                if (i < p.width) {
                    if (GENERAL) {
                        x = read_logit(p, t, alt, i, bytewise);
                    } else {
                        x = __uint_as_float(key[j]);
                        if (p.bias_domain == MF_BIAS_LOGIT && !is_nan(x)) {
                            x = canon_input(__fadd_rn(canon_input(x), KEPT > 0 ? canon_bias(bias[KEPT > 0 ? j : 0])
                                                                               : bias_of(p, alt, i)));
                        }
                        x = is_nan(x) ? x : canon_input(x);
                    }
                    nan |= is_nan(x);
                    most = x > most ? x : most;
                }
                key[j] = __float_as_uint(x);
            }
            has_nan = __any_sync(MF_FULL_WARP, nan);
            if (p.scoring == MF_SCORING_SOFTMAX) {
                m = unordered(reduce_max(ordered(most)));
                float part = 0.0f;
#pragma unroll UNROLL
                for (int j = 0; j < values; j++) {
                    const float x = __uint_as_float(key[j]);
                    const float e = gate_exp(__fsub_rn(x, m));
                    part = j * 32 + lane < p.width && !is_nan(x) ? __fadd_rn(part, e) : part;
                }
#pragma unroll
                for (int d = 16; d > 0; d /= 2) {
                    part = __fadd_rn(part, __shfl_xor_sync(MF_FULL_WARP, part, d));
                }
                sum = part;
            }
            const bool by_logit = p.bias_domain != MF_BIAS_SCORE &&
                                  (p.scoring == MF_SCORING_SOFTMAX || p.scoring == MF_SCORING_TOPK_SOFTMAX ||
                                   p.scoring == MF_SCORING_TOPK_SIGMOID);
            auto make_keys = [&](auto score) { /* one scoring's code is run, not all of them around a choice */
#pragma unroll UNROLL
                for (int j = 0; j < values; j++) {
                    const int i = j * 32 + lane;
                    const float x = __uint_as_float(key[j]);
                    float a = score(x);
                    if (p.bias_domain == MF_BIAS_SCORE) {
                        const float b = KEPT > 0              ? canon_bias(bias[KEPT > 0 ? j : 0])
                                        : i < p.width ? bias_of(p, alt, i)
                                                      : 0.0f;
                        a = canon_zero(__fadd_rn(a, b));
                    }
                    key[j] = i >= p.width ? 0u : is_nan(x) ? BAD_KEY : ordered(a);
                }
            };
            if (by_logit) {
                make_keys([&](float x) { return x; });
            } else if (p.scoring == MF_SCORING_SIGMOID) {
                make_keys([&](float x) { return canon_zero(gate_sigmoid(x)); });
            } else if (p.scoring == MF_SCORING_SOFTMAX) {
                make_keys([&](float x) { return score_of(p, x, m, sum); });
            } else {
                make_keys([&](float x) { return canon_zero(gate_sqrtsoftplus(x)); });
            }
        }
        if (STAGE == MF_CUDA_GATE_KEYS) {
            for (int j = 0; j < values; j++) {
                if (j * 32 + lane < p.width) {
                    p.ws_keys[t * p.width + j * 32 + lane] = key[j];
                }
            }
            if (lane == 0) {
                p.ws_stats[2 * t] = m;
                p.ws_stats[2 * t + 1] = sum;
                p.ws_flags[t] = has_nan;
            }
            __syncwarp();
            return;
        }
        if (STAGE == MF_CUDA_GATE_CHOOSE) {
            for (int j = 0; j < values; j++) {
                const int i = j * 32 + lane;
                key[j] = i < p.width ? p.ws_keys[t * p.width + i] : 0u;
            }
            __syncwarp();
        }
        if (p.n_group > 1) {
            if (!GENERAL) {
#pragma unroll UNROLL
                for (int j = 0; j < values; j++) {
                    if (j * 32 < p.width) { /* shared memory holds the width, not all that registers could */
                        mem.key[j * 32 + lane] = key[j];
                    }
                }
            }
            __syncwarp();
            drop_groups(p, mem, lane);
#pragma unroll UNROLL
            for (int j = 0; j < values; j++) {
                const int i = j * 32 + lane;
                if (i < p.width && !mem.kept[group_of(p, i)]) {
                    key[j] = 0;
                }
            }
        }
        if (p.mask) {
#pragma unroll UNROLL
            for (int j = 0; j < values; j++) {
                const int i = j * 32 + lane;
                if (i < p.width && p.mask[i] == 0) {
                    key[j] = 0;
                }
            }
        }
        uint32_t taken = ABSENT;
        for (int k = 0; k < p.top_k; k++) {
            uint32_t best = 0, at = ABSENT;
#pragma unroll UNROLL
            for (int j = 0; j < values; j++) {
                const uint32_t i = (uint32_t)(j * 32 + lane);
                if (i == taken) {
                    key[j] = 0;
                }
                const uint32_t v = key[j];
                if (v > best) {
                    best = v;
                    at = i;
                }
            }
            const uint32_t most = reduce_max(best);
            taken = most == 0 ? ABSENT : reduce_min(best == most ? at : ABSENT);
            if (lane == 0) {
                mem.id[k] = most == 0 ? -1 : (int32_t)taken;
            }
        }
        __syncwarp();
        if (STAGE == MF_CUDA_GATE_CHOOSE) {
            for (int k = lane; k < p.top_k; k += 32) {
                p.ws_ids[t * p.top_k + k] = mem.id[k];
            }
            __syncwarp();
            return;
        }
    } else if (valid) { /* EMIT */
        for (int k = lane; k < p.top_k; k += 32) {
            mem.id[k] = p.ws_ids[t * p.top_k + k];
        }
        m = p.ws_stats[2 * t];
        sum = p.ws_stats[2 * t + 1];
        has_nan = p.ws_flags[t] != 0;
        __syncwarp();
    }
    if (STAGE == MF_CUDA_GATE_KEYS || STAGE == MF_CUDA_GATE_CHOOSE) {
        return;
    }

    float identity = 0.0f;
    if (valid) {
        weigh(p, mem, t, alt, m, sum, lane);
        if (p.width > p.num_experts) {
            for (int k = 0; k < p.top_k; k++) {
                identity = mem.id[k] >= p.num_experts ? __fadd_rn(identity, mem.w[k]) : identity;
            }
            __syncwarp();
            for (int k = lane; k < p.top_k; k += 32) {
                mem.id[k] = mem.id[k] >= p.num_experts ? -1 : mem.id[k];
            }
            __syncwarp();
        }
        float shared_weight = 1.0f;
        if (p.num_shared > 0 && p.shared_weight == MF_SHARED_PER_TOKEN) {
            const float g = load_float(p.shared_gate, p.shared_gate_dtype, t, p.bytewise);
            has_nan |= is_nan(g);
            shared_weight = is_nan(g) ? 0.0f : canon_zero(gate_sigmoid(canon_input(g)));
        } else if (p.num_shared > 0 && p.shared_weight == MF_SHARED_RECIPROCAL) {
            shared_weight = canon_zero(__fdiv_rn(1.0f, p.factor));
        }
        finish_columns(p, mem, t, shared_weight, lane);
        if (p.by_id) {
            sort_routed(p, mem, lane);
        }
        if (has_nan && lane == 0) {
            count_one(p.bad_rows, 0);
        }
    }
    for (int c = lane; c < p.num_columns; c += 32) {
        const int32_t id = valid ? mem.id[c] : -1;
        const float w = valid ? mem.w[c] : 0.0f;
        store_at<int32_t>(p.ids, t * p.ids_stride + c, id, p.bytewise);
        store_at<float>(p.weights, t * p.weights_stride + c, w, p.bytewise);
        if (p.packed) {
            store_at<uint32_t>(p.packed, t * p.packed_stride + c, (uint32_t)id << 16 | f32_to_bf16(w), p.bytewise);
        }
        if (id >= p.num_slots) {
            count_one(p.errors, 0);
        } else if (id >= 0) {
            count_id(p, block_counts, id);
        }
    }
    if (p.identity && lane == 0) {
        store_at<float>(p.identity, t, identity, p.bytewise);
    }
    __syncwarp();
}

} // namespace

#endif
