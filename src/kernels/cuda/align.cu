/* align.cu - token-expert pairs sorted by slot, stable, each slot's run padded to whole blocks; bit-equal to ref/align.c.
 *
 * Up to some 80,000 pairs are one launch (plan.c): of few every block counts all, of more the blocks of a cluster share
 * them.  What does not fit is chunks, counted by a first launch.  Each warp takes a run of consecutive pairs: it counts its
 * slots, and, once everybody's counts have been scanned, it places its pairs.  Equal slots among the 32 pairs of a step are
 * told apart by their lane, so the order is the flat index's and no result depends on timing. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/sm90.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace
{

constexpr int KEPT = 4; /* steps of 32 pairs that a warp keeps in registers */

/* The slot of flat pair i, or -1; ids past the last slot are counted by the caller. */
MF_DEV int32_t slot_at(const mf_cuda_align &p, uint32_t i)
{
    const uint32_t columns = (uint32_t)p.num_columns;
    return load_at<int32_t>(p.ids, (int64_t)(i / columns) * p.ids_stride + i % columns, p.bytewise);
}

__global__ void __launch_bounds__(1024) count_kernel(const __grid_constant__ mf_cuda_align p)
{
    extern __shared__ uint32_t counts[];
    let_next_start();
    wait_for_previous();
    for (int s = threadIdx.x; s < p.num_slots; s += blockDim.x) {
        counts[s] = 0;
    }
    __syncthreads();
    const int64_t first = blockIdx.x * p.chunk, end = first + p.chunk < p.num_pairs ? first + p.chunk : p.num_pairs;
    for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        const int32_t slot = slot_at(p, (uint32_t)i);
        if (slot >= p.num_slots) {
            if (p.errors) {
                atomicAdd((int32_t *)p.errors, 1);
            }
        } else if (slot >= 0) {
            atomicAdd(counts + slot, 1u);
        }
    }
    __syncthreads();
    for (int s = threadIdx.x; s < p.num_slots; s += blockDim.x) {
        p.counts[(int64_t)blockIdx.x * p.num_slots + s] = counts[s];
    }
}

/* Sum over the block of what threads before this one hold, and the total. */
MF_DEV uint64_t scan_block(uint64_t mine, uint64_t *total)
{
    __shared__ uint64_t sums[33];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    uint64_t sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t before = __shfl_up_sync(MF_FULL_WARP, sum, d);
        sum += lane >= d ? before : 0;
    }
    if (lane == 31) {
        sums[warp] = sum;
    }
    __syncthreads();
    if (warp == 0) {
        uint64_t s = lane < warps ? sums[lane] : 0;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const uint64_t before = __shfl_up_sync(MF_FULL_WARP, s, d);
            s += lane >= d ? before : 0;
        }
        sums[lane] = s;
    }
    __syncthreads();
    *total = sums[warps - 1];
    const uint64_t before = warp > 0 ? sums[warp - 1] : 0;
    __syncthreads();
    return before + sum - mine;
}

/* place: this block's walk; the rest of what the block writes is its share of slots and of the tail. */
__global__ void __launch_bounds__(1024) align_kernel(const __grid_constant__ mf_cuda_align p)
{
    extern __shared__ uint32_t shared[];
    let_next_start();
    wait_for_previous();
    const int slots = p.num_slots, walkers = p.warps;
    uint32_t *totals = shared;          /* [P] all pairs of the slot */
    uint32_t *starts = shared + slots;  /* [P] the slot's first place; kept offsets are written at once */
    uint32_t *table = starts + slots;   /* [walkers, P] counts, then next places */
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const bool single = p.chunks == 1;
    const int64_t first = blockIdx.x * p.chunk, end = first + p.chunk < p.num_pairs ? first + p.chunk : p.num_pairs;
    const int64_t run = (p.chunk + walkers * 32 - 1) / (walkers * 32) * 32;
    const int64_t from = first + warp * run, to = from + run < end ? from + run : end;

    for (int i = threadIdx.x; i < walkers * slots; i += blockDim.x) {
        table[i] = 0;
    }
    __syncthreads();
    int32_t own[KEPT]; /* short runs are read once */
    const bool is_short = to - from <= KEPT * 32;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t i = from + k * 32 + lane;
        own[k] = is_short && warp < walkers && i < to ? slot_at(p, (uint32_t)i) : -1;
    }
    auto walk = [&](auto step) {
        if (warp < walkers && is_short) {
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                if (from + k * 32 < to) {
                    step(from + k * 32 + lane, own[k]);
                }
            }
        } else if (warp < walkers) {
            for (int64_t base = from; base < to; base += 32) {
                step(base + lane, base + lane < to ? slot_at(p, (uint32_t)(base + lane)) : -1);
            }
        }
    };
    walk([&](int64_t, int32_t slot) {
        const bool is_past = slot >= slots;
        if (single && is_past && p.errors) {
            atomicAdd((int32_t *)p.errors, 1);
        }
        const bool kept = slot >= 0 && !is_past;
        const uint32_t same = __match_any_sync(MF_FULL_WARP, kept ? slot : -1);
        if (kept && lane == __ffs(same) - 1) {
            table[warp * slots + slot] += __popc(same);
        }
        __syncwarp();
    });
    __syncthreads();
    for (int s = threadIdx.x; s < slots; s += blockDim.x) {
        uint32_t total = 0, before = 0;
        for (int c = 0; !single && c < p.chunks; c++) {
            const uint32_t n = p.counts[(int64_t)c * slots + s];
            before += c < (int)blockIdx.x ? n : 0;
            total += n;
        }
        uint32_t next = before;
        for (int w = 0; w < walkers; w++) {
            const uint32_t n = table[w * slots + s];
            table[w * slots + s] = next;
            next += n;
        }
        totals[s] = single ? next : total;
    }
    __syncthreads();

    /* Exclusive sums over the slots of padded counts (high half) and of counts (low half). */
    const int each = (slots + blockDim.x - 1) / blockDim.x;
    const uint32_t b = (uint32_t)p.block_size; /* the capacity is below 2^31, so it is */
    uint64_t mine = 0;
    for (int k = 0; k < each; k++) {
        const int s = threadIdx.x * each + k;
        if (s < slots && totals[s] > 0) {
            mine += (uint64_t)(((totals[s] - 1) / b + 1) * b) << 32 | totals[s];
        }
    }
    uint64_t all;
    uint64_t sum = scan_block(mine, &all);
    for (int k = 0; k < each; k++) {
        const int s = threadIdx.x * each + k;
        if (s < slots) {
            starts[s] = (uint32_t)(sum >> 32);
            if (p.offsets && blockIdx.x == 0) {
                store_at<int32_t>(p.offsets, s, (int32_t)(uint32_t)sum, p.bytewise);
            }
            if (totals[s] > 0) {
                sum += (uint64_t)(((totals[s] - 1) / b + 1) * b) << 32 | totals[s];
            }
        }
    }
    const int64_t padded = (int64_t)(all >> 32);
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        if (p.offsets) {
            store_at<int32_t>(p.offsets, slots, (int32_t)(uint32_t)all, p.bytewise);
        }
        store_at<int32_t>(p.total, 0, (int32_t)padded, p.bytewise);
    }
    __syncthreads();

    const int32_t fill = (int32_t)p.num_pairs;
    const int warps = blockDim.x >> 5;
    for (int s = blockIdx.x * warps + warp; s < slots; s += gridDim.x * warps) {
        const uint32_t n = totals[s];
        if (n == 0) {
            continue;
        }
        const uint32_t start = starts[s], blocks = (n - 1) / b + 1, first_block = start / b;
        for (uint32_t k = lane; k < blocks; k += 32) {
            store_at<int32_t>(p.experts, (int64_t)first_block + k, s, p.bytewise);
        }
        for (uint32_t k = n + lane; k < blocks * b; k += 32) {
            store_at<int32_t>(p.sorted, (int64_t)start + k, fill, p.bytewise);
        }
    }
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = padded + at; i < p.capacity; i += step) {
        store_at<int32_t>(p.sorted, i, fill, p.bytewise);
    }
    for (int64_t i = padded / b + at; i < p.capacity / b; i += step) {
        store_at<int32_t>(p.experts, i, -1, p.bytewise);
    }

    walk([&](int64_t i, int32_t slot) {
        const bool kept = slot >= 0 && slot < slots;
        const uint32_t same = __match_any_sync(MF_FULL_WARP, kept ? slot : -1);
        uint32_t *next = table + warp * slots + (kept ? slot : 0);
        const uint32_t place = kept ? *next + __popc(same & ((1u << lane) - 1u)) : 0;
        __syncwarp();
        if (kept) {
            store_at<int32_t>(p.sorted, (int64_t)starts[slot] + place, (int32_t)i, p.bytewise);
            if (lane == __ffs(same) - 1) {
                *next += __popc(same);
            }
        }
        __syncwarp();
    });
}

/* ---- one launch ---- */

MF_DEV uint32_t blocks_of(const mf_cuda_align &p, uint32_t n)
{
    const uint32_t b = (uint32_t)p.block_size;
    return p.block_shift >= 0 ? (n + b - 1) >> p.block_shift : n > 0 ? (n - 1) / b + 1 : 0;
}

/* A slot's row has a byte a warp: how many of the warp's pairs are the slot's, at most 32 a step. */
template <int WARPS> struct slot_row {
    static constexpr int WORDS = WARPS / 4;
    uint32_t w[WORDS];
    __device__ __forceinline__ explicit slot_row(const uint32_t *row)
    {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            const uint4 q = *(const uint4 *)(row + i);
            w[i] = q.x;
            w[i + 1] = q.y;
            w[i + 2] = q.z;
            w[i + 3] = q.w;
        }
    }
    /* Of the warps that ones has a 1 for. */
    __device__ __forceinline__ uint32_t sum(const uint32_t (&ones)[WORDS]) const
    {
        uint32_t n = 0;
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            n = __dp4a(w[i], ones[i], n);
        }
        return n;
    }
};

/* Sums over the slots: blocks, and pairs in the low half.  Halves of 16 bits hold one step's of all blocks. */
template <bool WIDE> struct sum_of {
    using type = uint32_t;
};
template <> struct sum_of<true> {
    using type = uint64_t;
};
template <typename T> MF_DEV T reduce_add(T v)
{
    if constexpr (sizeof(T) == 4) {
        return __reduce_add_sync(MF_FULL_WARP, v);
    } else {
        return (T)__reduce_add_sync(MF_FULL_WARP, (uint32_t)(v >> 32)) << 32 |
               __reduce_add_sync(MF_FULL_WARP, (uint32_t)v);
    }
}

/* SHARES 0: every block counts all pairs and writes its own piece of the output, which it makes in shared memory -
 * padding first, pairs over it - so that global memory sees whole lines.  Else so many blocks are a cluster: each
 * counts a run of pairs and gives its counts to all.  Clusters count the same and share the slots: a block writes its
 * run's pairs of its cluster's slots where they belong - single words, which is what takes time -, and a part of these
 * slots' padding. */
template <int WARPS, int STEPS, int SHARES>
__global__ void __launch_bounds__(WARPS * 32) align_once_kernel(const __grid_constant__ mf_cuda_align p)
{
    constexpr int THREADS = WARPS * 32, WORDS = slot_row<WARPS>::WORDS, OF = SHARES > 0 ? SHARES : 1;
    static_assert(STEPS * 32 < 256, "counts of a byte");
    extern __shared__ __align__(16) uint32_t shared[];
    using sum_t = typename sum_of<(SHARES > 0 && STEPS > 1)>::type;
    constexpr int HALF = sizeof(sum_t) * 4;
    constexpr sum_t low = ((sum_t)1 << HALF) - 1;
    __shared__ sum_t sums[32];
    __shared__ __align__(8) uint64_t full;
    const int slots = p.num_slots, pairs = (int)p.num_pairs, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int blocks = gridDim.x, clusters = blocks / OF; /* a power of two */
    const int block = blockIdx.x % OF, cluster = blockIdx.x / OF;
    int32_t *piece = (int32_t *)shared;                                    /* [slice] this block's part of sorted */
    uint32_t *table = shared + p.slice;                                    /* [P, WARPS bytes] */
    uint32_t *masks = table + slots * WORDS, *mask = masks + warp * slots; /* [WARPS, P] */
    uint32_t *starts = masks + slots * WARPS, *ends = starts + slots;      /* [P] of this run's pairs; [P] of all */
    uint32_t *given = ends + slots;                                        /* [SHARES, P] */
    uint8_t *mine = (uint8_t *)table + warp;                               /* of slot s at s * WARPS */
    const uint32_t lanes_before = (1u << lane) - 1u;
    let_next_start();
    for (int i = threadIdx.x * 4; i < slots * (WORDS + WARPS); i += THREADS * 4) {
        *(int4 *)(table + i) = make_int4(0, 0, 0, 0); /* the masks, too, and up to three words behind them */
    }
    for (int i = threadIdx.x * 4; SHARES == 0 && i < p.slice; i += THREADS * 4) {
        *(int4 *)(piece + i) = make_int4(pairs, pairs, pairs, pairs);
    }
    if (SHARES > 0 && threadIdx.x == 0) {
        barrier_init(&full, 1);
        barrier_init_fence();
        barrier_expect(&full, (uint32_t)(SHARES * slots) * 4);
    }
    uint32_t ones[WORDS];  /* 1 for each warp before this one */
    uint32_t of_block[OF]; /* `given` of the cluster's blocks */
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        const int n = min(max(warp - i * 4, 0), 4);
        ones[i] = n == 4 ? 0x01010101u : 0x01010101u & ((1u << n * 8) - 1u);
    }
#pragma unroll
    for (int r = 0; r < SHARES; r++) {
        of_block[r] = address_of_block(given, r);
    }
    const uint32_t to_barrier = shared_address(&full) - shared_address(given), to_own = (uint32_t)(block * slots) * 4;
    const int run = SHARES > 0 ? block * p.run : 0, run_end = SHARES > 0 ? min(run + p.run, pairs) : pairs;
    const int steps = STEPS == 1 ? 1 : ((SHARES > 0 ? p.run : pairs) + THREADS - 1) / THREADS,
              first = run + warp * steps * 32 + lane;
    const bool dense = p.ids_stride == p.num_columns;
    __syncthreads(); /* the zeros */
    if (SHARES > 0) {
        cluster_meet();
    }
    wait_for_previous();
    int32_t slot[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        const int i = first + k * 32;
        slot[k] = -1;
        if (k < steps && i < run_end) {
            slot[k] = dense ? load_at<int32_t>(p.ids, i, false) : slot_at(p, (uint32_t)i);
        }
    }
    uint32_t rank[STEPS]; /* among the warp's pairs of that slot */
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k >= steps) {
            break;
        }
        if (slot[k] >= slots) {
            slot[k] = -1;
            if (p.errors && cluster == 0) {
                atomicAdd((int32_t *)p.errors, 1);
            }
        }
        /* Which lanes have this lane's slot: cheaper than a match instruction, whose time is per different value. */
        uint32_t *lanes = mask + slot[k];
        if (slot[k] >= 0) {
            atomicOr(lanes, 1u << lane);
        }
        __syncwarp();
        uint32_t same = 0, before = 0;
        if (slot[k] >= 0) {
            same = *lanes;
            before = STEPS > 1 ? mine[slot[k] * WARPS] : 0;
        }
        const uint32_t of_lane = __popc(same & lanes_before);
        rank[k] = before + of_lane;
        if (STEPS > 1) {
            __syncwarp();
        }
        if (slot[k] >= 0 && of_lane == 0) {
            if (STEPS > 1) {
                *lanes = 0;
            }
            mine[slot[k] * WARPS] = (uint8_t)(before + __popc(same));
        }
        if (STEPS > 1) {
            __syncwarp();
        }
    }
    __syncthreads();

    if (SHARES > 0) {
        uint32_t all[WORDS];
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            all[i] = 0x01010101u;
        }
#pragma unroll 1
        for (int s = threadIdx.x; s < slots; s += THREADS) {
            const uint32_t n = slot_row<WARPS>(table + s * WORDS).sum(all);
#pragma unroll
            for (int r = 0; r < SHARES; r++) {
                give_word_at(of_block[r] + to_own + s * 4, n, of_block[r] + to_barrier);
            }
        }
        if (warp * 32 < slots) { /* others need not know */
            barrier_wait(&full, 0);
        }
    }
    /* Blocks (high half) and pairs (low half) of the slots before. */
    sum_t carried = 0;
#pragma unroll 1
    for (int from = 0; from < slots; from += THREADS) {
        const int s = from + threadIdx.x;
        uint32_t n = 0, of_runs_before = 0;
        if (s < slots) {
            if (SHARES > 0) {
#pragma unroll
                for (int r = 0; r < SHARES; r++) {
                    const uint32_t v = given[r * slots + s];
                    of_runs_before += r < block ? v : 0;
                    n += v;
                }
            } else {
                uint32_t all[WORDS];
#pragma unroll
                for (int i = 0; i < WORDS; i++) {
                    all[i] = 0x01010101u;
                }
                n = slot_row<WARPS>(table + s * WORDS).sum(all);
            }
        }
        const sum_t own = (sum_t)blocks_of(p, n) << HALF | n;
        sum_t sum = own;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const sum_t v = __shfl_up_sync(MF_FULL_WARP, sum, d);
            sum += lane >= d ? v : 0;
        }
        if (lane == 31) {
            sums[warp] = sum;
        }
        __syncthreads();
        const sum_t of_warp = lane < WARPS ? sums[lane] : 0;
        const sum_t earlier = carried + sum - own + reduce_add<sum_t>(lane < warp ? of_warp : 0);
        carried += reduce_add<sum_t>(of_warp);
        if (s < slots) {
            const uint32_t start = (uint32_t)(earlier >> HALF) * (uint32_t)p.block_size;
            starts[s] = start + of_runs_before;
            if (SHARES > 0) {
                ends[s] = start + n;
            }
            if (p.offsets && blockIdx.x == 0) {
                store_at<int32_t>(p.offsets, s, (int32_t)(earlier & low), false);
            }
        }
        __syncthreads();
    }
    const int used = (int)(carried >> HALF);
    const int64_t from = (int64_t)blockIdx.x * p.slice, to = from + p.slice < p.capacity ? from + p.slice : p.capacity;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k < steps && slot[k] >= 0 && (SHARES == 0 || (slot[k] & (clusters - 1)) == cluster)) {
            const uint32_t at = starts[slot[k]] + slot_row<WARPS>(table + slot[k] * WORDS).sum(ones) + rank[k];
            if (SHARES > 0 || (at >= from && at < to)) {
                if (SHARES > 0) {
                    store_at<int32_t>(p.sorted, at, first + k * 32, false);
                } else {
                    piece[at - from] = first + k * 32;
                }
                const uint32_t in = p.block_shift >= 0 ? at >> p.block_shift : at / (uint32_t)p.block_size;
                if (in * (uint32_t)p.block_size == at) { /* a block's first entry names the block */
                    store_at<int32_t>(p.experts, in, slot[k], false);
                }
            }
        }
    }
    if (SHARES > 0) {
        /* What fills slots' last blocks: half a warp a slot. */
#pragma unroll 1
        for (int s = cluster + (block + (warp * 2 + (lane >> 4)) * SHARES) * clusters; s < slots;
             s += SHARES * WARPS * 2 * clusters) {
            const uint32_t end = ends[s], rest = blocks_of(p, end) * (uint32_t)p.block_size;
            if (p.wide && p.block_size % 4 == 0) {
#pragma unroll 1
                for (uint32_t i = (end & ~3u) + (lane & 15) * 4; i < rest; i += 64) {
                    if (i >= end) {
                        *(int4 *)((int32_t *)p.sorted + i) = make_int4(pairs, pairs, pairs, pairs);
                    } else {
                        for (uint32_t j = end; j < i + 4; j++) {
                            store_at<int32_t>(p.sorted, j, pairs, false);
                        }
                    }
                }
            } else {
#pragma unroll 1
                for (uint32_t i = end + (lane & 15); i < rest; i += 16) {
                    store_at<int32_t>(p.sorted, i, pairs, false);
                }
            }
        }
        /* What no slot has. */
#pragma unroll 1
        for (int64_t i = (int64_t)used * p.block_size + blockIdx.x * THREADS + threadIdx.x; i < p.capacity;
             i += blocks * THREADS) {
            store_at<int32_t>(p.sorted, i, pairs, false);
        }
    }
#pragma unroll 1
    for (int i = used + (int)(blockIdx.x * THREADS + threadIdx.x); i < (int)p.num_blocks; i += blocks * THREADS) {
        store_at<int32_t>(p.experts, i, -1, false);
    }
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        if (p.offsets) {
            store_at<int32_t>(p.offsets, slots, (int32_t)(carried & low), false);
        }
        store_at<int32_t>(p.total, 0, (int32_t)((int64_t)used * p.block_size), false);
    }
    if (SHARES > 0) {
        return;
    }
    __syncthreads();
    const int length = (int)(to - from);
    if (p.wide) {
        for (int i = threadIdx.x * 4; i + 3 < length; i += THREADS * 4) {
            *(int4 *)((int32_t *)p.sorted + from + i) = *(const int4 *)(piece + i);
        }
    }
    for (int i = (p.wide ? length & ~3 : 0) + threadIdx.x; i < length; i += THREADS) {
        store_at<int32_t>(p.sorted, from + i, piece[i], false);
    }
}

template <typename KERNEL>
int start(KERNEL kernel, const mf_cuda_align *call, unsigned blocks, unsigned threads, size_t bytes, cudaStream_t stream)
{
    return launch_shared(call->starts_early != 0, kernel, dim3(blocks), threads, bytes, stream, *call);
}

template <int WARPS, int STEPS, int SHARES> int start_once(const mf_cuda_align *call, cudaStream_t stream)
{
    const unsigned blocks = (unsigned)call->once_blocks;
    const size_t bytes = (size_t)mf_cuda_align_shared(call->num_slots, WARPS, SHARES, call->slice);
    const auto kernel = align_once_kernel<WARPS, STEPS, SHARES>;
    if (SHARES == 0) {
        return start(kernel, call, blocks, WARPS * 32, bytes, stream);
    }
    if (SHARES > 8) {
        (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
    return launch_clusters(SHARES, kernel, dim3(blocks), WARPS * 32, bytes, stream, *call);
}

template <int SHARES> int start_cluster(const mf_cuda_align *call, cudaStream_t stream)
{
    return call->run <= 512    ? start_once<16, 1, SHARES>(call, stream)
           : call->run <= 1024 ? start_once<32, 1, SHARES>(call, stream)
                               : start_once<32, MF_CUDA_ALIGN_STEPS, SHARES>(call, stream);
}

} // namespace

int mf_cuda_launch_align(const mf_cuda_align *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    const size_t counts = (size_t)call->num_slots * 4, bytes = counts * (2 + (size_t)call->warps);
    if (call->once_blocks > 0) {
        if (call->run == 0) {
            return call->num_pairs <= 512    ? start_once<16, 1, 0>(call, s)
                   : call->num_pairs <= 1024 ? start_once<16, 2, 0>(call, s)
                                             : start_once<32, 4, 0>(call, s);
        }
        return call->shares == 8 ? start_cluster<8>(call, s) : start_cluster<16>(call, s);
    }
    const unsigned threads = call->num_pairs > 512 || call->num_slots > 2048 ? 1024 : 256;
    int error = 0;
    if (call->chunks > 1) {
        error = start(count_kernel, call, (unsigned)call->chunks, 1024, counts, s);
    }
    return error ? error : start(align_kernel, call, (unsigned)call->chunks, threads, bytes, s);
}
