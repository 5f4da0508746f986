/* pick.cu - tokens chosen on the device: engine/sampler.c's answer for each row of logits, to the bit.
 *
 * Three launches: the largest values of pieces and rows (with the row's changes applied in place), the sums of weights,
 * the choice.  What the sampler sums in an order is summed in that order here: spans of 512 in eight lanes and a tree,
 * spans one after the other.  The exception are a nucleus's buckets, whose sums have no order to keep: the weights of a
 * bucket differ by a factor of e^(1/128), so they lie in two binades at most, and fewer than 2^28 numbers of 24 bits
 * then add up without rounding in a double.  The sampler leaves ids that no nucleus reaches out of the buckets; they
 * lie in the last bucket that is looked at or behind it, and behind all ids of the nucleus there, so here they may stay
 * in. */
#include <math.h>

#include "kernels/cuda/early.cuh"
#include "kernels/cuda/numbers.cuh"

namespace
{

constexpr int THREADS = 256, CHOOSERS = 1024;
constexpr int PIECE = 64, SPAN = 512, CHUNK = 4096; /* columns: of a piece's maximum, of a sum, of a block */
constexpr int SPANS = CHUNK / SPAN, LANES = 8, SPAN_ROOM = SPAN + LANES;
constexpr int BUCKETS = 4096, BUCKETS_PER_UNIT = 128;
constexpr uint32_t LEAST_KEY = 0x007fffffu; /* of -infinity; every number's is above */
static_assert(CHUNK % PIECE == 0 && CHUNK % SPAN == 0 && THREADS / 32 * 8 * PIECE == CHUNK && SPANS * LANES <= THREADS,
              "a warp takes eight pieces, a thread a lane of a span");

/* What the launches tell each other of a row, all in one workspace. */
struct row_state {
    unsigned long long raw_best,
        best; /* ordered value, then the id's complement; of the row as it came, and as changed */
    int rank, pad;
};

struct workspace {
    row_state *states;                 /* [rows] */
    double *buckets, *raw_sums, *sums; /* [rows, BUCKETS], [rows, spans] */
    uint32_t *pieces, *raw_pieces;     /* [rows, pieces]: ordered maxima, of ids that may be chosen */
};

MF_DEV int count_of(int n, int each)
{
    return (n + each - 1) / each;
}

MF_DEV uint32_t key_of(float v)
{
    return ordered(v + 0.0f); /* zeros are equal */
}

/* A NaN or +infinity, or nothing but -infinity. */
MF_DEV bool is_bad(unsigned long long best)
{
    return best == ~0ull || (uint32_t)(best >> 32) <= LEAST_KEY;
}

MF_DEV unsigned long long best_key(float v, int id)
{
    const bool bad = is_nan(v) || v == __uint_as_float(0x7f800000u);
    return bad ? ~0ull : (unsigned long long)key_of(v) << 32 | (0xffffffffu - (uint32_t)id);
}

MF_DEV void raise_best(unsigned long long *to, unsigned long long best)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(MF_FULL_WARP, best, step);
        best = other > best ? other : best;
    }
    if ((threadIdx.x & 31) == 0) {
        atomicMax(to, best);
    }
}

MF_DEV bool has_failed(const mf_pick &p, const row_state &state)
{
    return is_bad(state.raw_best) || (p.kind == MF_PICK_CHOOSE && is_bad(state.best));
}

MF_DEV float scale_of(const mf_pick &p)
{
    return (float)(1.0 / p.temperature);
}

MF_DEV bool draws(const mf_pick &p)
{
    return p.kind == MF_PICK_CHOOSE && p.temperature != 0.0;
}

MF_DEV bool has_top_k(const mf_pick &p, int num_ids)
{
    return p.top_k > 0 && p.top_k < num_ids;
}

MF_DEV float weight_of(float x, float max, float scale, float least)
{
    const float w = mf_fixed_exp((x - max) * scale);
    return w >= least ? w : 0.0f;
}

MF_DEV int bucket_of(float x, float max, float scale)
{
    const float place = (max - x) * (scale * BUCKETS_PER_UNIT);
    return (int)(place < (float)(BUCKETS - 1) ? place : (float)(BUCKETS - 1));
}

/* ---- the largest ---- */

/* Maxima of the block's pieces, eight of a warp, and of the row. */
MF_DEV void find_maxima(const float *columns, int first, int n, int num_ids, uint32_t *pieces,
                        unsigned long long *of_all, unsigned long long *of_ids)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    unsigned long long all = 0, ids = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int at = (warp * 8 + k) * PIECE, id = first + at + lane;
        uint32_t most = 0;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = id + h * 32;
            if (i < n) {
                const unsigned long long key = best_key(columns[at + lane + h * 32], i);
                all = key > all ? key : all;
                if (i < num_ids) {
                    ids = key > ids ? key : ids;
                    most = max(most, (uint32_t)(key >> 32));
                }
            }
        }
        most = __reduce_max_sync(MF_FULL_WARP, most);
        if (lane == 0 && first + at < num_ids) {
            pieces[(first + at) / PIECE] = most;
        }
    }
    if (of_all) {
        raise_best(of_all, all);
    }
    if (of_ids) {
        raise_best(of_ids, ids);
    }
}

__global__ void __launch_bounds__(THREADS) pick_scan_kernel(const mf_cuda_pick call, const workspace w)
{
    __shared__ float columns[CHUNK];
    begin_early();
    const int row = blockIdx.y, n = call.n, first = blockIdx.x * CHUNK;
    const mf_pick p = call.picks[row];
    float *logits = call.logits + (int64_t)row * n;
    row_state *state = w.states + row;
    if (p.kind == MF_PICK_LOGITS) {
        return;
    }
    if (draws(p) && p.top_p < 1.0 && !has_top_k(p, call.num_ids)) {
        for (int b = first / CHUNK * THREADS + threadIdx.x; b < BUCKETS; b += gridDim.x * THREADS) {
            w.buckets[(int64_t)row * BUCKETS + b] = 0.0;
        }
    }
    for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
        columns[i] = first + i < n ? logits[first + i] : 0.0f;
    }
    __syncthreads();
    uint32_t *pieces = w.pieces + (int64_t)row * call.num_pieces;
    uint32_t *raw_pieces = w.raw_pieces + (int64_t)row * call.num_pieces;
    const bool changes = p.num_changes > 0;
    find_maxima(columns, first, n, call.num_ids, changes ? raw_pieces : pieces, &state->raw_best,
                changes ? NULL : &state->best);
    if (!changes) {
        return;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.num_changes; i += THREADS) {
        mf_pick_change *c = call.changes + p.first_change + i;
        const int at = c->token_id - first;
        if (at >= 0 && at < CHUNK) {
            c->logit = columns[at];
            columns[at] = logits[c->token_id] = mf_pick_changed(&p, c, columns[at]);
        }
    }
    __syncthreads();
    find_maxima(columns, first, n, call.num_ids, pieces, NULL, &state->best);
}

/* ---- sums ---- */

MF_DEV int place_in(int i)
{
    return i / SPAN * SPAN_ROOM + i % SPAN; /* lanes of several spans meet in other banks */
}

/* The block's spans, each in eight lanes and a tree. */
MF_DEV void sum_spans(const float *values, int first, int n, double *sums)
{
    const int span = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (threadIdx.x >= SPANS * LANES) {
        return;
    }
    double sum = 0.0;
    const float *own = values + span * SPAN_ROOM + lane;
#pragma unroll 8
    for (int i = 0; i < SPAN; i += LANES) {
        sum += (double)own[i];
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
        sum += __shfl_xor_sync(MF_FULL_WARP, sum, step);
    }
    if (lane == 0 && first + span * SPAN < n) {
        sums[first / SPAN + span] = sum;
    }
}

__global__ void __launch_bounds__(THREADS) pick_sum_kernel(const mf_cuda_pick call, const workspace w)
{
    extern __shared__ double shared[];
    double *buckets = shared;                      /* [BUCKETS] */
    float *columns = (float *)(buckets + BUCKETS); /* [CHUNK] */
    float *values = columns + CHUNK;               /* [SPANS * SPAN_ROOM] */
    begin_early();
    const int row = blockIdx.y, n = call.n, first = blockIdx.x * CHUNK, num_ids = call.num_ids;
    const mf_pick p = call.picks[row];
    const row_state state = w.states[row];
    const float *logits = call.logits + (int64_t)row * n;
    const bool weighs = draws(p) && !has_top_k(p, num_ids), describes = p.num_top >= 0;
    if (p.kind == MF_PICK_LOGITS || has_failed(p, state) || (!weighs && !describes)) {
        return;
    }
    for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
        columns[i] = first + i < n ? logits[first + i] : 0.0f;
    }
    __syncthreads();
    if (weighs) {
        const float best = unordered((uint32_t)(state.best >> 32)), scale = scale_of(p);
        const bool fills = p.top_p < 1.0;
        for (int b = threadIdx.x; fills && b < BUCKETS; b += THREADS) {
            buckets[b] = 0.0;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
            const float x = columns[i], weight = first + i < num_ids ? weight_of(x, best, scale, p.min_p) : 0.0f;
            values[place_in(i)] = weight;
            if (fills && weight > 0.0f) {
                atomicAdd(buckets + bucket_of(x, best, scale), (double)weight);
            }
        }
        __syncthreads();
        sum_spans(values, first, num_ids, w.sums + (int64_t)row * call.num_spans);
        for (int b = threadIdx.x; fills && b < BUCKETS; b += THREADS) {
            if (buckets[b] != 0.0) {
                atomicAdd(w.buckets + (int64_t)row * BUCKETS + b, buckets[b]);
            }
        }
        __syncthreads();
    }
    if (!describes) {
        return;
    }
    for (int i = threadIdx.x; i < p.num_changes; i += THREADS) {
        const mf_pick_change *c = call.changes + p.first_change + i;
        const int at = c->token_id - first;
        if (at >= 0 && at < CHUNK) {
            columns[at] = c->logit;
        }
    }
    __syncthreads();
    const float raw_max = unordered((uint32_t)(state.raw_best >> 32));
    const bool ranks = p.kind == MF_PICK_DESCRIBE;
    const float own = ranks ? logits[p.token_id] : 0.0f;
    int before = 0;
    for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
        const float x = columns[i];
        values[place_in(i)] = first + i < n ? mf_fixed_exp(x - raw_max) : 0.0f;
        before += ranks && first + i < num_ids && (x > own || (x == own && first + i < p.token_id));
    }
    before = __reduce_add_sync(MF_FULL_WARP, before);
    if ((threadIdx.x & 31) == 0 && before > 0) {
        atomicAdd(&w.states[row].rank, before);
    }
    __syncthreads();
    sum_spans(values, first, n, w.raw_sums + (int64_t)row * call.num_spans);
}

/* ---- the choice ---- */

/* Of a block: `room` keys and their sums, and a number per bucket. */
struct chooser {
    unsigned long long *keys; /* value descending, then id ascending, is the descending order of these */
    double *sums;             /* [max(room, SPAN)] */
    double *prefix;           /* [BUCKETS] */
    float *weights;           /* [max(room, SPAN)] */
    int room;
    int *count, *found; /* one each */
};

MF_DEV int id_of(unsigned long long key)
{
    return (int)(0xffffffffu - (uint32_t)key);
}

MF_DEV float value_of(unsigned long long key)
{
    return unordered((uint32_t)(key >> 32));
}

/* Everybody: the first i below n for which the claim holds, or n. */
template <typename Claim> MF_DEV int first_of(const chooser &c, int n, Claim claim)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        *c.found = n;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += CHOOSERS) {
        if (claim(i)) {
            atomicMin(c.found, i);
            break;
        }
    }
    __syncthreads();
    return *c.found;
}

/* Everybody: the last i below n for which the claim holds, or -1. */
template <typename Claim> MF_DEV int last_of(const chooser &c, int n, Claim claim)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        *c.found = -1;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += CHOOSERS) {
        if (claim(i)) {
            atomicMax(c.found, i);
        }
    }
    __syncthreads();
    return *c.found;
}

/* out[i] = start + x[0] + .. + x[i], one after the other: one thread. */
template <typename Value> MF_DEV void run_sums(int n, double start, double *out, Value value)
{
    double sum = start;
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        double v[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            v[k] = value(i + k);
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            sum += v[k];
            out[i + k] = sum;
        }
    }
    for (; i < n; i++) {
        sum += value(i);
        out[i] = sum;
    }
}

/* Everybody: the same of numbers in the device's memory, at most `room` of them. */
MF_DEV void run_sums_of(const chooser &c, const double *x, int n, double start, double *out)
{
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += CHOOSERS) {
        c.sums[i] = x[i];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        run_sums(n, start, out, [&](int i) { return c.sums[i]; });
    }
    __syncthreads();
}

/* Everybody: ids of the pieces that the first claim lets in for which the second holds, unsorted.  false: no room. */
template <typename Enters, typename Takes>
MF_DEV bool gather(const chooser &c, const float *row, int num_ids, const uint32_t *pieces, Enters enters, Takes takes)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, num_pieces = count_of(num_ids, PIECE);
    __syncthreads();
    if (threadIdx.x == 0) {
        *c.count = 0;
    }
    __syncthreads();
    for (int start = warp * 32; start < num_pieces; start += CHOOSERS) {
        uint32_t open = __ballot_sync(MF_FULL_WARP, start + lane < num_pieces && enters(pieces[start + lane]));
        while (open) {
            constexpr int EACH = 8; /* pieces whose numbers are on the way together */
            int first[EACH];
            float x[EACH][2];
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                first[k] = open ? (start + __ffs((int)open) - 1) * PIECE : num_ids;
                open &= open - 1;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int id = first[k] + h * 32 + lane;
                    x[k][h] = id < num_ids ? row[id] : 0.0f;
                }
            }
#pragma unroll
            for (int k = 0; k < 2 * EACH; k++) {
                const int id = first[k / 2] + k % 2 * 32 + lane;
                const bool taken = id < num_ids && takes(x[k / 2][k % 2]);
                const uint32_t all = __ballot_sync(MF_FULL_WARP, taken);
                if (all == 0) {
                    continue;
                }
                int place = lane == 0 ? atomicAdd(c.count, __popc(all)) : 0;
                place = __shfl_sync(MF_FULL_WARP, place, 0) + __popc(all & ((1u << lane) - 1));
                if (taken && place < c.room) {
                    c.keys[place] = (unsigned long long)key_of(x[k / 2][k % 2]) << 32 | (0xffffffffu - (uint32_t)id);
                }
            }
        }
    }
    __syncthreads();
    return *c.count <= c.room;
}

/* Everybody: the gathered keys, descending. */
MF_DEV int sort_keys(const chooser &c)
{
    const int n = *c.count;
    int size = 32;
    while (size < n) {
        size *= 2;
    }
    for (int i = n + threadIdx.x; i < size; i += CHOOSERS) {
        c.keys[i] = 0;
    }
    for (int k = 2; k <= size; k *= 2) {
        for (int j = k / 2; j > 0; j /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size / 2; i += CHOOSERS) {
                const int low = i / j * 2 * j + i % j, high = low + j;
                const unsigned long long a = c.keys[low], b = c.keys[high];
                if ((a < b) == ((low & k) == 0)) {
                    c.keys[low] = b;
                    c.keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
    return n;
}

/* Everybody: the k-th largest of the pieces' maxima, which k ids at least reach; `least` where there are fewer pieces.
 */
MF_DEV uint32_t kth_largest(const chooser &c, const uint32_t *pieces, int num_pieces, int k, uint32_t least)
{
    if (num_pieces < k) {
        return least;
    }
    uint32_t found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t tried = found | 1u << bit;
        int own = 0;
        for (int i = threadIdx.x; i < num_pieces; i += CHOOSERS) {
            own += pieces[i] >= tried;
        }
        own = __reduce_add_sync(MF_FULL_WARP, own);
        __syncthreads();
        if (threadIdx.x == 0) {
            *c.count = 0;
        }
        __syncthreads();
        if ((threadIdx.x & 31) == 0 && own > 0) {
            atomicAdd(c.count, own);
        }
        __syncthreads();
        found = *c.count >= k ? tried : found;
    }
    return found > least ? found : least;
}

/* The weights of keys [0, n), and their running sums from `start`. */
MF_DEV void weigh_keys(const chooser &c, int n, float best, const mf_pick &p, double start)
{
    const float scale = scale_of(p);
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += CHOOSERS) {
        c.weights[i] = weight_of(value_of(c.keys[i]), best, scale, p.min_p);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        run_sums(n, start, c.sums, [&](int i) { return (double)c.weights[i]; });
    }
    __syncthreads();
}

/* The first of n sorted keys at which the sum of weights passes target; the last one that weighs when none does. */
MF_DEV int draw_sorted(const chooser &c, int n, double target)
{
    const int i = first_of(c, n, [&](int k) { return c.sums[k] > target; });
    return id_of(c.keys[i < n ? i : last_of(c, n, [&](int k) { return c.weights[k] > 0.0f; })]);
}

constexpr int UNKNOWN = -1;

MF_DEV int choose_top_k(const chooser &c, const float *row, const uint32_t *pieces, int num_ids, float best,
                        const mf_pick &p)
{
    const uint32_t least = kth_largest(c, pieces, count_of(num_ids, PIECE), p.top_k, LEAST_KEY + 1);
    if (!gather(
            c, row, num_ids, pieces, [&](uint32_t most) { return most >= least; },
            [&](float x) { return key_of(x) >= least; })) {
        return UNKNOWN;
    }
    const int n = min(sort_keys(c), p.top_k);
    weigh_keys(c, n, best, p, 0.0);
    const double enough = p.top_p * c.sums[n - 1];
    int kept = n;
    if (p.top_p < 1.0) {
        kept = min(n, 1 + first_of(c, n, [&](int i) { return !(c.sums[i] < enough); }));
    }
    return draw_sorted(c, kept, mf_pick_uniform(p.seed, p.position) * c.sums[kept - 1]);
}

/* Any id, by its weight: the span in which the sum passes, then the id. */
MF_DEV int choose_any(const chooser &c, const float *row, int num_ids, const double *sums, float best, const mf_pick &p)
{
    const int num_spans = count_of(num_ids, SPAN);
    const float scale = scale_of(p);
    const double target = mf_pick_uniform(p.seed, p.position) * c.prefix[num_spans - 1];
    int span = first_of(c, num_spans, [&](int i) { return c.prefix[i] > target; });
    const bool passes = span < num_spans;
    span = passes ? span : last_of(c, num_spans, [&](int i) { return sums[i] > 0.0; });
    const double start = !passes ? c.prefix[num_spans - 1] : span > 0 ? c.prefix[span - 1] : 0.0;
    const int first = span * SPAN, n = min(SPAN, num_ids - first);
    for (int i = threadIdx.x; i < n; i += CHOOSERS) {
        c.weights[i] = weight_of(row[first + i], best, scale, p.min_p);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        run_sums(n, start, c.sums, [&](int i) { return (double)c.weights[i]; });
    }
    const int i = first_of(c, n, [&](int k) { return c.weights[k] > 0.0f && c.sums[k] > target; });
    return first + (i < n ? i : last_of(c, n, [&](int k) { return c.weights[k] > 0.0f; }));
}

/* The ids of a bucket, sorted and weighed from `start`; their number, or UNKNOWN. */
MF_DEV int take_bucket(const chooser &c, const float *row, const uint32_t *pieces, int num_ids, int bucket, float best,
                       const mf_pick &p, double start)
{
    const float scale = scale_of(p);
    if (!gather(
            c, row, num_ids, pieces, [&](uint32_t most) { return bucket_of(unordered(most), best, scale) <= bucket; },
            [&](float x) {
                return bucket_of(x, best, scale) == bucket && weight_of(x, best, scale, p.min_p) > 0.0f;
            })) {
        return UNKNOWN;
    }
    const int n = sort_keys(c);
    weigh_keys(c, n, best, p, start);
    return n;
}

MF_DEV int choose_from_nucleus(const chooser &c, const float *row, const uint32_t *pieces, int num_ids,
                               const double *buckets, float best, const mf_pick &p, double total)
{
    const double enough = p.top_p * total;
    int last = BUCKETS - 1;
    constexpr int EACH = 512; /* one thread adds them up: no further than is needed */
    for (int start = 0; start < BUCKETS; start += EACH) {
        run_sums_of(c, buckets + start, EACH, start > 0 ? c.prefix[start - 1] : 0.0, c.prefix + start);
        const int b = first_of(c, EACH, [&](int i) { return !(c.prefix[start + i] < enough); });
        if (b < EACH) {
            last = min(last, start + b);
            break;
        }
    }
    const double before = last > 0 ? c.prefix[last - 1] : 0.0;
    int n = take_bucket(c, row, pieces, num_ids, last, best, p, before);
    if (n == UNKNOWN) {
        return UNKNOWN;
    }
    const int num_kept = min(n, 1 + first_of(c, n, [&](int i) { return !(c.sums[i] < enough); }));
    const double target = mf_pick_uniform(p.seed, p.position) * (num_kept > 0 ? c.sums[num_kept - 1] : before);
    if (num_kept > 0 && before <= target) {
        weigh_keys(c, num_kept, best, p, 0.0);
        return draw_sorted(c, num_kept, target - before);
    }
    int bucket = first_of(c, last, [&](int i) { return c.prefix[i] > target; });
    double sum = bucket > 0 ? c.prefix[bucket - 1] : 0.0;
    if (bucket == last) { /* rounding lets none pass */
        bucket = last_of(c, last, [&](int i) { return buckets[i] > 0.0; });
        sum = before - buckets[bucket];
    }
    n = take_bucket(c, row, pieces, num_ids, bucket, best, p, 0.0);
    return n == UNKNOWN ? UNKNOWN : draw_sorted(c, n, target - sum);
}

MF_DEV int choose(const chooser &c, const mf_cuda_pick &call, const workspace &w, const mf_pick &p,
                  const row_state &state)
{
    const int64_t row = blockIdx.x;
    const float *logits = call.logits + row * call.n;
    const uint32_t *pieces = w.pieces + row * call.num_pieces;
    const double *sums = w.sums + row * call.num_spans;
    const float best = value_of(state.best);
    if (!draws(p)) {
        return id_of(state.best);
    }
    if (has_top_k(p, call.num_ids)) {
        return choose_top_k(c, logits, pieces, call.num_ids, best, p);
    }
    const int num_spans = count_of(call.num_ids, SPAN);
    run_sums_of(c, sums, num_spans, 0.0, c.prefix);
    const double total = c.prefix[num_spans - 1];
    return p.top_p < 1.0
               ? choose_from_nucleus(c, logits, pieces, call.num_ids, w.buckets + row * BUCKETS, best, p, total)
               : choose_any(c, logits, call.num_ids, sums, best, p);
}

/* Everybody: the best ids of the row as it came, in the order of keys.  false: no room for those that tie. */
MF_DEV bool find_top(const chooser &c, const float *row, const uint32_t *pieces, int num_ids, int num_top,
                     mf_picked *out)
{
    const int k = min(num_top, num_ids);
    const uint32_t least = kth_largest(c, pieces, count_of(num_ids, PIECE), k, 0);
    if (!gather(
            c, row, num_ids, pieces, [&](uint32_t most) { return most >= least; },
            [&](float x) { return key_of(x) >= least; })) {
        return false;
    }
    sort_keys(c);
    for (int i = threadIdx.x; i < k; i += CHOOSERS) {
        out->top_ids[i] = id_of(c.keys[i]);
    }
    return true;
}

__global__ void __launch_bounds__(CHOOSERS) pick_choose_kernel(const mf_cuda_pick call, const workspace w, int room)
{
    extern __shared__ double shared[];
    __shared__ int count, found;
    begin_early();
    const int64_t row = blockIdx.x;
    const mf_pick p = call.picks[row];
    const row_state state = w.states[row];
    float *logits = call.logits + row * call.n;
    mf_picked *out = call.picked + row;
    chooser c;
    c.room = room;
    c.prefix = shared;
    c.sums = c.prefix + BUCKETS;
    c.keys = (unsigned long long *)(c.sums + room);
    c.weights = (float *)(c.keys + room);
    c.count = &count;
    c.found = &found;
    const bool bad = p.kind != MF_PICK_LOGITS && has_failed(p, state);
    int id = p.kind == MF_PICK_LOGITS || bad ? UNKNOWN
             : p.kind == MF_PICK_DESCRIBE    ? p.token_id
                                             : choose(c, call, w, p, state);
    __syncthreads();
    for (int i = threadIdx.x; p.kind == MF_PICK_CHOOSE && i < p.num_changes; i += CHOOSERS) { /* the row as it came */
        const mf_pick_change *change = call.changes + p.first_change + i;
        logits[change->token_id] = change->logit;
    }
    __syncthreads();
    if (id != UNKNOWN && p.num_top > 0 &&
        !find_top(c, logits, (p.num_changes > 0 ? w.raw_pieces : w.pieces) + row * call.num_pieces, call.num_ids,
                  p.num_top, out)) {
        id = UNKNOWN;
    }
    if (threadIdx.x == 0) {
        out->state = bad ? MF_PICKED_NONE : id == UNKNOWN ? MF_PICKED_LOGITS : MF_PICKED;
        out->token_id = id;
        out->rank = p.kind == MF_PICK_DESCRIBE ? state.rank + 1 : 0;
        out->num_top = id == UNKNOWN ? 0 : min(max(p.num_top, 0), call.num_ids);
    }
    if (id != UNKNOWN && p.num_top >= 0) {
        const int num_spans = count_of(call.n, SPAN);
        run_sums_of(c, w.raw_sums + row * call.num_spans, num_spans, 0.0, c.prefix);
        const double most = (double)value_of(state.raw_best), log_sum = mf_fixed_log(c.prefix[num_spans - 1]);
        if (threadIdx.x <= p.num_top && threadIdx.x <= call.num_ids) {
            const float logit = threadIdx.x == 0 ? logits[id] : value_of(c.keys[threadIdx.x - 1]);
            const float logprob = (float)((double)logit - most - log_sum);
            *(threadIdx.x == 0 ? &out->logprob : &out->top_logprobs[threadIdx.x - 1]) = logprob;
        }
    }
}

int64_t blocks_for(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}

template <typename T> T *carve(char **at, int64_t count)
{
    T *part = (T *)*at;
    *at += (count * (int64_t)sizeof(T) + 255) / 256 * 256;
    return part;
}

workspace lay_out(void *block, int64_t num_rows, int64_t n, int64_t *bytes)
{
    char *at = (char *)block;
    workspace w;
    w.states = carve<row_state>(&at, num_rows);
    w.buckets = carve<double>(&at, num_rows * BUCKETS);
    w.raw_sums = carve<double>(&at, num_rows * blocks_for(n, SPAN));
    w.sums = carve<double>(&at, num_rows * blocks_for(n, SPAN));
    w.pieces = carve<uint32_t>(&at, num_rows * blocks_for(n, PIECE));
    w.raw_pieces = carve<uint32_t>(&at, num_rows * blocks_for(n, PIECE));
    *bytes = at - (char *)block;
    return w;
}

int64_t chooser_bytes(int room)
{
    return BUCKETS * 8 + (int64_t)room * (8 + 8 + 4);
}

} // namespace

int64_t mf_cuda_pick_bytes(int64_t num_rows, int64_t n)
{
    int64_t bytes;
    (void)lay_out(NULL, num_rows, n, &bytes);
    return bytes;
}

int mf_cuda_launch_pick(const mf_cuda_pick *call, int64_t shared_bytes, void *stream)
{
    constexpr int ROOM = 4096, SMALL_ROOM = 2048; /* ids that are sorted; both hold a span */
    constexpr size_t SUM_BYTES = BUCKETS * 8 + CHUNK * 4 + SPANS * SPAN_ROOM * 4;
    int64_t bytes;
    const workspace w = lay_out(call->workspace, call->num_rows, call->n, &bytes);
    mf_cuda_pick p = *call;
    p.num_pieces = (int32_t)blocks_for(call->n, PIECE);
    p.num_spans = (int32_t)blocks_for(call->n, SPAN);
    const dim3 chunks((unsigned)blocks_for(call->n, CHUNK), (unsigned)call->num_rows);
    const int room = chooser_bytes(ROOM) + 1024 <= shared_bytes ? ROOM : SMALL_ROOM;
    const bool early = mf_cuda_starts_early != 0;
    int error = (int)cudaMemsetAsync(w.states, 0, (size_t)call->num_rows * sizeof(row_state), (cudaStream_t)stream);
    if (error == 0) {
        error = launch_early(pick_scan_kernel, chunks, THREADS, (size_t)0, stream, p, w);
    }
    if (error == 0) {
        error = launch_shared(early, pick_sum_kernel, chunks, THREADS, SUM_BYTES, stream, p, w);
    }
    return error != 0 ? error
                      : launch_shared(early, pick_choose_kernel, dim3((unsigned)call->num_rows), CHOOSERS,
                                      (size_t)chooser_bytes(room), stream, p, w, room);
}
