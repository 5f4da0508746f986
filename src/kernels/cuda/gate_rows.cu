/* gate_rows.cu - the gate of the usual models: SIGMOID with or without a SCORE bias, or SOFTMAX, 64 to 384 experts, up to 8
 * choices, no maps; bit-equal to ref/gate.c.  plan.c says what comes here.
 *
 * Few rows: a block a row, a thread an expert; each warp ranks its 32 keys, then the warps' eight best are ranked among
 * one another.  Up to GATE_WARM_ROWS of them run all of their code once on what lies in memory, and store nothing, before
 * they wait for the kernel in front: behind other kernels a launch finds none of it in the caches.  Many: a warp takes a
 * row; lane l holds experts l * V .. l * V + V - 1, so that the lowest lane of equals has the lowest id and four lanes are
 * a group.  Each lane sorts its few largest keys and the choice is eight pops of the warp's largest.  A row that the quick
 * way cannot vouch for - a NaN, a logit past 64 in magnitude, a lane with more chosen than it has sorted - takes
 * gate_row.cuh's way instead; that decides no bit.  What follows the choice is done for up to four rows at once. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/gate_usual.cuh"
#include "kernels/cuda/launch.cuh"

namespace
{

constexpr int MAX_THREADS = 512, MOST_ROWS = 4;
constexpr uint32_t ARRIVALS = 1u << 16; /* what the blocks of a launch add up to */

MF_DEV float larger(float a, float b)
{
    return fmaxf(a, b);
}
MF_DEV float smaller(float a, float b)
{
    return fminf(a, b);
}

/* The DEPTH largest of a lane's V keys, descending. */
template <int V, int DEPTH> struct lane_list {
    float v[DEPTH];
    __device__ __forceinline__ explicit lane_list(const float (&k)[V])
    {
        if constexpr (V == 2) {
            v[0] = larger(k[0], k[1]);
            v[1] = smaller(k[0], k[1]);
        } else {
            sort_fours(k);
        }
    }
    __device__ __forceinline__ void sort_fours(const float (&k)[V])
    {
#pragma unroll
        for (int q = 0; q < V; q += 4) {
            const float a = larger(k[q], k[q + 1]), b = smaller(k[q], k[q + 1]);
            const float c = larger(k[(q + 2) % V], k[(q + 3) % V]), d = smaller(k[(q + 2) % V], k[(q + 3) % V]);
            const float x = smaller(a, c), y = larger(b, d);
            const float one = larger(a, c), two = larger(x, y), three = smaller(x, y);
            if (q == 0) {
                v[0] = one;
                v[1 % DEPTH] = two;
                v[2 % DEPTH] = three;
                if (DEPTH == 4) {
                    v[DEPTH - 1] = smaller(b, d);
                }
            } else { /* two lists of three into one */
                const float low = smaller(v[0], one), high = larger(v[1 % DEPTH], two);
                v[0] = larger(v[0], one);
                v[2 % DEPTH] = larger(smaller(low, high), larger(v[2 % DEPTH], three));
                v[1 % DEPTH] = larger(low, high);
            }
        }
    }
};

/* ---- a row's logits ---- */

template <int V, bool BF16> struct raw_row {
    static constexpr int WORDS = BF16 ? V / 2 : V;
    static constexpr int PIECE = WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1; /* words of a load */
    uint32_t w[WORDS];
    __device__ __forceinline__ void load(const void *base, int64_t first, int lane)
    {
        const uint32_t *from = (const uint32_t *)base + (BF16 ? first >> 1 : first) + lane * WORDS;
#pragma unroll
        for (int i = 0; i < WORDS; i += PIECE) {
            if (PIECE == 4) {
                const uint4 q = *(const uint4 *)(from + i);
                w[i] = q.x;
                w[(i + 1) % WORDS] = q.y;
                w[(i + 2) % WORDS] = q.z;
                w[(i + 3) % WORDS] = q.w;
            } else if (PIECE == 2) {
                const uint2 q = *(const uint2 *)(from + i);
                w[i] = q.x;
                w[(i + 1) % WORDS] = q.y;
            } else {
                w[i] = from[i];
            }
        }
    }
    __device__ __forceinline__ float value(int e) const
    {
        return __uint_as_float(!BF16 ? w[e % WORDS] : e % 2 ? w[e / 2] & 0xffff0000u : w[e / 2] << 16);
    }
};

/* Where expert i of a row lies in shared memory: fours of all lanes, then their next fours, so that lanes meet no bank of
 * each other's. */
template <int V> MF_DEV int place_of(int i)
{
    return V <= 4 ? i : i % V / 4 * 128 + i / V * 4 + i % 4;
}

template <int V> MF_DEV void store_row(float *to, const float (&v)[V], int lane)
{
    if constexpr (V == 2) {
        *(float2 *)(to + lane * V) = make_float2(v[0], v[1]);
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            *(float4 *)(to + i * 32 + lane * 4) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
        }
    }
}

template <int V> MF_DEV void load_row(const float *from, float (&v)[V], int lane)
{
    if constexpr (V == 2) {
        const float2 q = *(const float2 *)(from + lane * V);
        v[0] = q.x;
        v[1] = q.y;
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const float4 q = *(const float4 *)(from + i * 32 + lane * 4);
            v[i] = q.x;
            v[i + 1] = q.y;
            v[i + 2] = q.z;
            v[i + 3] = q.w;
        }
    }
}

/* ---- shared memory of a warp ---- */

struct pick {
    uint32_t key;
    int32_t lane;
};

/* Which rows' keys are kept until the four rows' outputs, where what a pick was is then found for all at once. */
template <int V, bool SOFTMAX> struct late {
    static constexpr bool YES = SOFTMAX && V <= 4;
};

template <int V> struct warp_memory {
    static constexpr int KEPT = V <= 4 ? MOST_ROWS : 1;
    float key[KEPT][V * 32];
    float score[V * 32 > COLUMNS * 2 ? V * 32 : COLUMNS * 2]; /* or the general row's ids and weights */
    choice chosen[MOST_ROWS][MAX_K];
    pick picks[KEPT][MAX_K];
    float part[MOST_ROWS][32]; /* softmax: each lane's sum of e^(x - most) */
    float most[MOST_ROWS];
    bool done[MOST_ROWS];    /* by the general way */
    uint8_t reserved[12];
    float group[32];
    uint8_t kept[32];
};

template <int V>
static __device__ __noinline__ void take_general_row(const mf_cuda_gate &p, warp_memory<V> *own, int slot, uint32_t *counts,
                                                     int64_t t, int64_t valid_rows, int lane)
{
    row_memory mem;
    mem.id = (int32_t *)own->score;
    mem.w = own->score + COLUMNS;
    mem.key = (uint32_t *)own->key[slot];
    mem.group = own->group;
    mem.kept = own->kept;
    __syncwarp();
    run_row<0, MF_CUDA_GATE_FUSED>(p, mem, counts, t, valid_rows, lane);
}

/* A lane had equal keys among the picks: each pick takes the next of them. */
template <int V, bool SCORES> static __device__ __noinline__ void choose_among_equals(warp_memory<V> *own, int row, int lane)
{
    if (lane < MAX_K) {
        const pick mine = own->picks[0][lane];
        int skip = 0;
        for (int k = 0; k < lane; k++) {
            skip += own->picks[0][k].key == mine.key && own->picks[0][k].lane == mine.lane;
        }
        for (int e = 0; e < V; e++) {
            const int i = mine.lane * V + e;
            const int at = place_of<V>(i);
            if (ordered(own->key[0][at]) == mine.key && skip-- == 0) {
                own->chosen[row][lane] = choice{ i, SCORES ? own->score[at] : own->key[0][at] };
            }
        }
    }
    __syncwarp();
}

/* ---- the choice ---- */

/* false: the general way must do this row.  used: called when raw has been. */
template <int V, bool GROUPS, bool SOFTMAX, bool BF16, typename USED>
MF_DEV bool choose_row(const rows_call &c, const raw_row<V, BF16> &raw, const float *bias, warp_memory<V> *own, int row,
                       int lane, USED used)
{
    constexpr int DEPTH = V < 4 ? V : V == 4 ? 4 : 3;
    const int slot = late<V, SOFTMAX>::YES ? row : 0;
    float key[V], squares = 0.0f;
    __syncwarp(); /* all lanes have read what the last row left in shared memory */
#pragma unroll
    for (int e = 0; e < V; e++) {
        const float x = raw.value(e);
        squares = __fmaf_rn(x, x, squares);
        key[e] = x;
    }
    if (rarely(__any_sync(MF_FULL_WARP, !(squares <= (SOFTMAX ? 1e30f : 4096.0f))))) {
        float most = 0.0f; /* one by one; a NaN fails, too */
        bool bad = false;
#pragma unroll
        for (int e = 0; e < V; e++) {
            most = larger(most, fabsf(key[e]));
            bad |= is_nan(key[e]);
        }
        if (__any_sync(MF_FULL_WARP, bad || most > (SOFTMAX ? 1e15f : 64.0f))) {
            used();
            return false;
        }
    }
    if (SOFTMAX) {
#pragma unroll
        for (int e = 0; e < V; e++) {
            key[e] = flush_to_zero(key[e]);
        }
    } else {
#pragma unroll
        for (int e = 0; e < V; e++) {
            key[e] = sigmoid_in_range(key[e]);
        }
        store_row<V>(own->score, key, lane);
        if (c.bias) {
            float b[V];
            load_row<V>(bias, b, lane);
#pragma unroll
            for (int e = 0; e < V; e++) {
                key[e] = __fadd_rn(key[e], b[e]);
            }
        }
    }
    store_row<V>(own->key[slot], key, lane);
    used();

    const lane_list<V, DEPTH> list(key);
    bool kept = true;
    if (GROUPS) { /* four lanes a group of 32, eight groups */
        float best = list.v[0], second = list.v[1 % DEPTH];
#pragma unroll
        for (int d = 1; d < 4; d *= 2) {
            const float b = __shfl_xor_sync(MF_FULL_WARP, best, d), s = __shfl_xor_sync(MF_FULL_WARP, second, d);
            second = larger(smaller(best, b), larger(second, s));
            best = larger(best, b);
        }
        const float mine = __fadd_rn(best, second);
        const int group = lane >> 2, other = (lane & 3) * 2; /* and the one after it */
        const float o0 = __shfl_sync(MF_FULL_WARP, mine, other * 4), o1 = __shfl_sync(MF_FULL_WARP, mine, other * 4 + 4);
        const uint32_t b0 = __ballot_sync(MF_FULL_WARP, o0 > mine || (o0 == mine && other < group));
        const uint32_t b1 = __ballot_sync(MF_FULL_WARP, o1 > mine || (o1 == mine && other + 1 < group));
        const uint32_t of_group = 15u << (group * 4);
        kept = __popc(b0 & of_group) + __popc(b1 & of_group) < c.topk_group;
    }
    uint32_t head[DEPTH];
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        head[i] = kept ? ordered(list.v[i]) : 0u;
    }
    const uint32_t lanes_before = (1u << lane) - 1u;
    uint32_t most = __reduce_max_sync(MF_FULL_WARP, head[0]);
    float m = 0.0f;
    if (SOFTMAX) {
        m = unordered(most);
        float part[V];
#pragma unroll
        for (int e = 0; e < V; e++) {
            const float d = __fsub_rn(key[e], m);
            part[e] = zero_if_below(d, -87.0f, exp_in_range(d));
        }
        store_row<V>(own->score, part, lane);
    }
#pragma unroll
    for (int k = 0; k < MAX_K; k++) {
        if (k > 0) {
            most = __reduce_max_sync(MF_FULL_WARP, head[0]);
        }
        const uint32_t has = __ballot_sync(MF_FULL_WARP, head[0] == most);
        if (head[0] == most && (has & lanes_before) == 0) {
            own->picks[slot][k] = pick{ most, lane };
#pragma unroll
            for (int i = 0; i + 1 < DEPTH; i++) {
                head[i] = head[i + 1];
            }
            head[DEPTH - 1] = 0;
        }
    }
    __syncwarp();
    if (DEPTH < V) { /* a lane that gave all it had sorted may have more */
        const bool is_out = kept && head[0] == 0;
        if (rarely(__any_sync(MF_FULL_WARP, is_out))) {
            int above = 0;
#pragma unroll
            for (int e = 0; e < V; e++) {
                above += ordered(key[e]) >= most;
            }
            if (__any_sync(MF_FULL_WARP, is_out && above > DEPTH) || most == 0) {
                return false;
            }
        }
    }
    if (SOFTMAX) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum = __fadd_rn(sum, own->score[place_of<V>(j * 32 + lane)]);
        }
        own->part[row][lane] = sum;
        if (lane == 0) {
            own->most[row] = m;
        }
    }
    if (late<V, SOFTMAX>::YES) {
        return true;
    }
    /* Which of its lane's keys a pick was: four lanes a pick. */
    const pick mine = own->picks[0][lane >> 2];
    const float value = unordered(mine.key);
    constexpr int PART = V < 4 ? 1 : V / 4;
    int found = 0;
    choice hit = { 0, 0.0f };
#pragma unroll
    for (int e = 0; e < PART; e++) { /* lane % 4 looks at one of each four */
        const int q = V < 4 ? lane & (V - 1) : lane & 3, i = mine.lane * V + e * 4 + q;
        const int at = V < 4 ? i : e * 128 + mine.lane * 4 + q;
        if (own->key[0][at] == value && (V >= 4 || (lane & 3) < V)) {
            found++;
            hit = choice{ i, SOFTMAX ? value : own->score[at] };
        }
    }
    const uint32_t once = __ballot_sync(MF_FULL_WARP, found == 1), more = __ballot_sync(MF_FULL_WARP, found > 1);
    if (rarely(__popc(once) != MAX_K || more != 0)) {
        choose_among_equals<V, !SOFTMAX>(own, row, lane);
    } else if (found > 0) {
        own->chosen[row][lane >> 2] = hit;
    }
    return true;
}

/* ---- weights and outputs of four rows of a warp, eight lanes a row ---- */

/* The expert of a row's pick lane % 8, and its key. */
template <int V> MF_DEV choice find_pick(const warp_memory<V> *of, int row, int lane)
{
    const int slot = row & warp_memory<V>::KEPT - 1, k = lane & 7; /* V past 4 does not come here */
    const pick mine = of->picks[slot][k];
    const float value = unordered(mine.key);
    const int first = (mine.lane & 31) * V; /* of no valid row: anything */
    int e = 0, skip = 0;
    const uint32_t key = __shfl_up_sync(MF_FULL_WARP, mine.key, 1, 8);
    const int owner = __shfl_up_sync(MF_FULL_WARP, mine.lane, 1, 8);
    if (__any_sync(MF_FULL_WARP, k > 0 && key == mine.key && owner == mine.lane)) { /* equals: each takes the next */
        for (int o = 0; o < k; o++) {
            skip += of->picks[slot][o].key == mine.key && of->picks[slot][o].lane == mine.lane;
        }
    }
#pragma unroll
    for (int o = V - 1; o >= 0; o--) {
        int before = 0;
        if (of->key[slot][place_of<V>(first + o)] == value) {
            for (int q = 0; skip > 0 && q < o; q++) {
                before += of->key[slot][place_of<V>(first + q)] == value;
            }
            e = before == skip ? o : e;
        }
    }
    return choice{ first + e, value };
}

/* of: the memory of the warp that chose for this lane's row, its row there; done: the general way has written it. */
template <int V, bool SOFTMAX>
MF_DEV void emit_row(const rows_call &c, const warp_memory<V> *of, int row, uint32_t *counts, int t, int valid_rows, int lane)
{
    const bool here = t < c.num_tokens && !of->done[row];
    const bool valid = here && t < valid_rows && (!c.row_valid || c.row_valid[t] != 0);
    choice mine = late<V, SOFTMAX>::YES ? find_pick<V>(of, row, lane) : of->chosen[row][lane & 7];
    float sum = 1.0f;
    if (SOFTMAX) {
        const float d = __fsub_rn(mine.w, of->most[row]);
        mine.w = zero_if_below(d, -87.0f, exp_in_range(d));
        /* lanesum32's tree: the first two steps here, the others across the row's eight lanes */
        const float *part = of->part[row] + (lane & 7);
        sum = __fadd_rn(__fadd_rn(part[0], part[16]), __fadd_rn(part[8], part[24]));
#pragma unroll
        for (int d = 4; d > 0; d /= 2) {
            sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, d));
        }
    }
    emit<SOFTMAX>(c, t, lane & 7, here, valid, mine, sum, [&](int32_t id) {
        if (c.counting) {
            atomicAdd(counts + id, 1u);
        }
    });
}

/* ---- the launch's histogram ----
 *
 * With one block its counts are the histogram.  With more, block 0 does no rows: it writes zeros and then says so by
 * setting `generation`; the others add theirs when they see it.  Which generation is theirs they know from `arrivals`, to
 * which the blocks of each launch add ARRIVALS in all: as long as a block has not added its own part, the count of whole
 * launches is that of those before this one.  So nothing needs to be set back and no block is the last. */

MF_DEV void clear_histogram(const rows_call &c)
{
    const uint32_t arrivals = threadIdx.x == 0 ? load_relaxed(c.arrivals) : 0; /* on its way while zeros are written */
#pragma unroll 1
    for (int i = threadIdx.x; i < c.num_slots; i += blockDim.x) {
        c.histogram[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t before = arrivals / ARRIVALS;
        store_release(c.generation, (before + 1) % (UINT32_MAX / ARRIVALS + 1));
        add_relaxed(c.arrivals, ARRIVALS - (gridDim.x - 1));
    }
}

/* By one thread of a block; arrivals: read before. */
MF_DEV void await_zeros(const rows_call &c, uint32_t arrivals)
{
    const uint32_t awaited = (arrivals / ARRIVALS + 1) % (UINT32_MAX / ARRIVALS + 1);
    while (load_acquire(c.generation) != awaited) {
    }
    add_relaxed(c.arrivals, 1);
}

/* The block's threads, when its counts are complete and, with more blocks than one, a thread of it has awaited the zeros.
 * An expert's slot is its id, and no other's. */
MF_DEV void add_counts(const rows_call &c, const uint32_t *counts)
{
    __syncthreads();
    for (int i = threadIdx.x; i < c.num_slots; i += blockDim.x) {
        const uint32_t n = counts[i];
        if (c.load && i < c.num_experts && n > 0) {
            add_relaxed(c.load + i, n);
        }
        if (!c.histogram) {
            continue;
        }
        if (gridDim.x == 1) {
            c.histogram[i] = n;
        } else if (n > 0) {
            add_relaxed(c.histogram + i, n);
        }
    }
}

/* MAX_THREADS threads: there are as many as experts. */
template <int V, bool GROUPS, bool SOFTMAX, bool BF16>
__global__ void __launch_bounds__(MAX_THREADS, 2) gate_rows_kernel(const __grid_constant__ rows_call c)
{
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    static_assert(32 * V <= MAX_THREADS && sizeof(warp_memory<V>) % 16 == 0, "a thread an expert; bias aligned");
    warp_memory<V> *all = (warp_memory<V> *)shared, *own = all + warp;
    float *bias = (float *)(all + warps);         /* [32 V], canonical */
    uint32_t *counts = (uint32_t *)bias + 32 * V; /* [P] */
    let_next_start();
    const bool counting = c.counting != 0;
    for (int i = threadIdx.x; counting && i < c.num_slots; i += blockDim.x) {
        counts[i] = 0;
    }
    wait_for_previous();
    const bool extra = c.histogram && gridDim.x > 1; /* block 0 */
    if (extra && blockIdx.x == 0) {
        clear_histogram(c);
        return;
    }
    const int block = (int)blockIdx.x - extra, blocks = (int)gridDim.x - extra;
    int first = (block * warps + warp) * c.rows;
    const int step = blocks * warps * c.rows, tokens = c.num_tokens;
    int valid_rows = tokens;
    if (c.num_valid) {
        valid_rows = min(max(*c.num_valid, 0), tokens);
    }
    const auto is_valid = [&](int t) { return t < valid_rows && (!c.row_valid || c.row_valid[t] != 0); };
    raw_row<V, BF16> raw = {};
    bool raw_valid = is_valid(first);
    if (raw_valid) {
        raw.load(c.logits, (int64_t)first * c.logits_stride, lane);
    }
    const bool is_last = threadIdx.x == blockDim.x - 1;
    uint32_t arrivals = 0;
    if (extra && is_last) {
        arrivals = load_relaxed(c.arrivals);
    }
    if (!SOFTMAX && c.bias && threadIdx.x < 32 * V) {
        bias[place_of<V>(threadIdx.x)] = canon_bias(c.bias[threadIdx.x]);
    }
    __syncthreads(); /* bias and the zeros of counts */
    const bool alone = c.rows == 1; /* the grid has a warp for every row */
    do {
        for (int row = 0; row < c.rows; row++) {
            const bool valid = raw_valid;
            const auto load_next = [&] {
                if (!alone) {
                    const int after = row + 1 < c.rows ? first + row + 1 : first + step;
                    raw_valid = is_valid(after);
                    if (raw_valid) {
                        raw.load(c.logits, (int64_t)after * c.logits_stride, lane);
                    }
                }
            };
            bool done = false;
            if (!valid) {
                load_next();
            } else if (rarely(!choose_row<V, GROUPS, SOFTMAX, BF16>(c, raw, bias, own, row, lane, load_next))) {
                take_general_row<V>(c.general, own, late<V, SOFTMAX>::YES ? row : 0, counts, first + row, valid_rows, lane);
                done = true;
            }
            if (lane == 0) {
                own->done[row] = done;
            }
        }
        if (alone) { /* four warps' rows by one; the last of the others awaits the zeros meanwhile */
            __syncthreads();
            const int of = warp * 4 + (lane >> 3);
            if (warp * 4 < warps) {
                emit_row<V, SOFTMAX>(c, all + min(of, warps - 1), 0, counts, of < warps ? block * warps + of : tokens, valid_rows,
                                     lane);
            }
            break;
        }
        __syncwarp();
        const int row = lane >> 3;
        emit_row<V, SOFTMAX>(c, own, row, counts, row < c.rows ? first + row : tokens, valid_rows, lane);
        __syncwarp();
        first += step;
    } while (first < tokens);
    if (extra && is_last) {
        await_zeros(c, arrivals);
    }
    if (counting) {
        add_counts(c, counts);
    }
}

/* ---- few rows: a block a row, a thread an expert ---- */

/* ordered() in two instructions. */
MF_DEV uint32_t ordered_by_shift(float v)
{
    const uint32_t u = __float_as_uint(v);
    uint32_t sign;
    asm("shr.s32 %0, %1, 31;" : "=r"(sign) : "r"(u));
    return (sign | 0x80000000u) ^ u;
}

/* The eight largest keys of each warp, largest first, and whose they are. */
template <int WARPS> struct warp_lists {
    alignas(16) uint32_t keys[WARPS][32];
    alignas(16) uint32_t best[16 * WARPS]; /* then the same + 1, for those of lower ids win a tie */
    int32_t id[8 * WARPS];
    float score[8 * WARPS];
};

/* Which of eight groups, a warp each, may be chosen from; bit by group. */
template <int WARPS> MF_DEV uint32_t kept_groups(const rows_call &c, const warp_lists<WARPS> &lists, int lane)
{
    const int group = lane >> 2, other = (lane & 3) * 2;
    const auto score_of_group = [&](int g) {
        const uint2 top = *(const uint2 *)&lists.best[g * MAX_K];
        return __fadd_rn(unordered(top.x), unordered(top.y));
    };
    const float mine = score_of_group(group), o0 = score_of_group(other), o1 = score_of_group(other + 1);
    const uint32_t b0 = __ballot_sync(MF_FULL_WARP, o0 > mine || (o0 == mine && other < group));
    const uint32_t b1 = __ballot_sync(MF_FULL_WARP, o1 > mine || (o1 == mine && other + 1 < group));
    const int of = 4 * (lane & 7);
    return __ballot_sync(MF_FULL_WARP, __popc(b0 >> of & 15u) + __popc(b1 >> of & 15u) < c.topk_group) & 0xffu;
}

template <int WARPS, bool GROUPS, bool SOFTMAX, bool BF16>
__global__ void __launch_bounds__(WARPS * 32 + 32) gate_row_kernel(const __grid_constant__ rows_call c)
{
    constexpr int N = WARPS * 32;
    __shared__ union {
        warp_lists<WARPS> lists;
        candidate general[N == 64 ? 128 : N];
    } mem;
    __shared__ float parts[SOFTMAX ? N : 1];
    __shared__ choice chosen[MAX_K];
    warp_lists<WARPS> &lists = mem.lists;
    const int i = threadIdx.x, lane = i & 31, warp = i >> 5;
    let_next_start();
    const bool extra = c.histogram && gridDim.x > 1; /* block 0 */
    if (extra && (blockIdx.x == 0 || warp == WARPS)) {
        wait_for_previous();
        if (blockIdx.x == 0) {
            clear_histogram(c);
            return;
        }
        if (lane == 0) { /* one warp awaits the histogram's zeros */
            await_zeros(c, load_relaxed(c.arrivals));
        }
        __syncwarp();
        sync_threads(2, N + 32);
        return;
    }
    const int t = (int)blockIdx.x - extra;
    float b = 0.0f;
    if (!SOFTMAX && c.bias) {
        b = c.bias[i];
    }
    /* What the kernel in front writes is read past the first-level cache, for the first pass may have read it before. */
#pragma unroll 1
    for (int pass = c.warms ? 0 : 1; pass < 2; pass++) {
        const bool real = pass == 1;
        if (real) {
            wait_for_previous();
        }
        bool valid = true;
        if (real) {
            valid = (!c.num_valid || t < __ldcg(c.num_valid)) && (!c.row_valid || __ldcg(c.row_valid + t) != 0);
        }
        bool general = false;
        float most = 0.0f;
        if (valid) {
            float x;
            if (BF16) {
                x = bf16_to_f32(__ldcg((const uint16_t *)c.logits + (int64_t)t * c.logits_stride + i));
            } else {
                x = __ldcg((const float *)c.logits + (int64_t)t * c.logits_stride + i);
            }
            const bool odd = !(fabsf(x) <= (SOFTMAX ? 1e15f : 64.0f)) || !(fabsf(b) <= FLT_MAX);
            const float score = SOFTMAX ? flush_to_zero(x) : sigmoid_in_range(x);
            /* Below the largest number, so that + 1 stays one: a NaN's rank is its own, too, though nothing is made of it. */
            const uint32_t key = min(ordered_by_shift(SOFTMAX ? score : __fadd_rn(score, flush_to_zero(b))), 0xfffffffeu);
            lists.keys[warp][lane] = key;
            __syncwarp();
            int ranks[4] = { 0, 0, 0, 0 };
            uint4 k[8]; /* all asked for before the first is used */
#pragma unroll
            for (int j = 0; j < 8; j++) {
                k[j] = load_shared_16(&lists.keys[warp][j * 4]);
            }
            __syncwarp(); /* or the loads are sunk to their uses, one behind the other */
#pragma unroll
            for (int j = 0; j < 8; j++) {
                count_if_more(ranks[0], k[j].x, key);
                count_if_more(ranks[1], k[j].y, key);
                count_if_more(ranks[2], k[j].z, key);
                count_if_more(ranks[3], k[j].w, key);
            }
            int rank = ranks[0] + ranks[1] + (ranks[2] + ranks[3]);
            if (rarely(__reduce_or_sync(MF_FULL_WARP, 1u << rank) != MF_FULL_WARP)) { /* equals */
                rank += __popc(__match_any_sync(MF_FULL_WARP, key) & ((1u << lane) - 1u));
            }
            if (rank < MAX_K) {
                const int at = warp * MAX_K + rank;
                lists.best[at] = key;
                lists.best[at + MAX_K * WARPS] = key + 1;
                lists.id[at] = i;
                lists.score[at] = score;
            }
            general = sync_threads_or(1, N, odd);
            if (!general) { /* four lanes an entry of the warp's list: how many of the others' come before it */
                if (SOFTMAX) {
                    uint32_t largest = 0;
#pragma unroll
                    for (int w = 0; w < WARPS; w++) {
                        largest = max(largest, lists.best[w * MAX_K]);
                    }
                    most = unordered(largest);
                    const float d = __fsub_rn(score, most);
                    parts[i] = zero_if_below(d, -87.0f, exp_in_range(d));
                }
                const uint32_t kept = GROUPS ? kept_groups(c, lists, lane) : ~0u;
                const int at = warp * MAX_K + (lane >> 2);
                const uint32_t mine = lists.best[at];
                int place = 0;
#pragma unroll
                for (int d = 1; d < WARPS; d++) {
                    const uint2 k = *(const uint2 *)&lists.best[(warp + d) * MAX_K + (lane & 3) * 2];
                    const uint32_t least = !GROUPS || (kept >> ((warp + d) % WARPS) & 1u) ? mine : UINT32_MAX;
                    count_if_more(place, k.x, least);
                    count_if_more(place, k.y, least);
                }
                place += __shfl_xor_sync(MF_FULL_WARP, place, 1);
                place += __shfl_xor_sync(MF_FULL_WARP, place, 2);
                place += lane >> 2;
                if ((lane & 3) == 0 && place < MAX_K && (kept >> warp & 1u)) {
                    chosen[place] = choice{ lists.id[at], lists.score[at] };
                }
            }
        }
        if (real && c.histogram && !extra) {
#pragma unroll 1
            for (int s = i; s < c.num_slots; s += N) {
                c.histogram[s] = 0;
            }
        }
        sync_threads(real ? 2 : 1, real && extra ? N + 32 : N); /* the choice, and the histogram's zeros */
        if (warp > 0) {
            continue;
        }
        if (general) {
            if (real) {
                take_general_row_alone<N>(c.general, mem.general, t, c.num_tokens);
                return;
            }
            continue;
        }
        choice own = chosen[lane & 7];
        float sum = 1.0f;
        if (SOFTMAX) {
            sum = 0.0f;
#pragma unroll
            for (int j = 0; j < WARPS; j++) {
                sum = __fadd_rn(sum, parts[j * 32 + lane]);
            }
#pragma unroll
            for (int d = 16; d > 0; d /= 2) {
                sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, d));
            }
            const float d = __fsub_rn(own.w, most);
            own.w = zero_if_below(d, -87.0f, exp_in_range(d));
        }
        const bool here = real && lane < MAX_K;
        emit<SOFTMAX>(c, t, lane & 7, here, here && valid, own, sum, [&](int32_t id) {
            if (c.histogram) {
                add_relaxed(c.histogram + id, 1);
            }
            if (c.load && id < c.num_experts) {
                add_relaxed(c.load + id, 1);
            }
        });
    }
}

template <typename KERNEL>
int start(KERNEL kernel, const rows_call &c, const mf_cuda_grid *grid, int threads, size_t bytes, cudaStream_t stream)
{
    return launch_shared(grid->starts_early != 0, kernel, dim3((unsigned)grid->blocks), (unsigned)threads, bytes, stream, c);
}

/* grid->rows 0: a block a row. */
template <int V, bool GROUPS, bool SOFTMAX, bool BF16>
int launch(const rows_call &c, const mf_cuda_grid *grid, cudaStream_t stream)
{
    if (grid->rows == 0) {
        const int helpers = c.histogram && grid->blocks > 1 ? 32 : 0;
        want_all_shared(gate_row_kernel<V, GROUPS, SOFTMAX, BF16>);
        return start(gate_row_kernel<V, GROUPS, SOFTMAX, BF16>, c, grid, V * 32 + helpers, 0, stream);
    }
    const size_t bytes = (size_t)grid->warps * sizeof(warp_memory<V>) + 32 * V * 4 + (c.counting ? (size_t)c.num_slots * 4 : 0);
    return start(gate_rows_kernel<V, GROUPS, SOFTMAX, BF16>, c, grid, grid->warps * 32, bytes, stream);
}

template <bool BF16> int launch_shape(const rows_call &c, const mf_cuda_grid *grid, bool softmax, bool groups, cudaStream_t s)
{
    switch (grid->rows_width) {
    case 64:
        return softmax ? launch<2, false, true, BF16>(c, grid, s) : launch<2, false, false, BF16>(c, grid, s);
    case 128:
        return softmax ? launch<4, false, true, BF16>(c, grid, s) : launch<4, false, false, BF16>(c, grid, s);
    case 256:
        return softmax  ? launch<8, false, true, BF16>(c, grid, s)
               : groups ? launch<8, true, false, BF16>(c, grid, s)
                        : launch<8, false, false, BF16>(c, grid, s);
    default:
        return softmax ? launch<12, false, true, BF16>(c, grid, s) : launch<12, false, false, BF16>(c, grid, s);
    }
}

} // namespace

int mf_cuda_launch_gate_rows(const mf_cuda_gate *g, const mf_cuda_grid *grid, void *stream)
{
    const rows_call c = rows_call_of(g, grid);
    const bool softmax = g->scoring == MF_SCORING_SOFTMAX, groups = g->n_group > 1;
    return g->logits_dtype == MF_F32 ? launch_shape<false>(c, grid, softmax, groups, (cudaStream_t)stream)
                                     : launch_shape<true>(c, grid, softmax, groups, (cudaStream_t)stream);
}
