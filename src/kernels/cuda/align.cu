/* align.cu - token-expert pairs sorted by slot, stable, each slot's run padded to whole blocks; bit-equal to ref/align.c.
 *
 * Up to 4,096 pairs are one launch: every block counts all pairs and writes its own piece of the output, which it makes in
 * shared memory - padding first, pairs over it - so that global memory sees whole lines.  More pairs are chunks, counted by
 * a first launch.  Each warp takes a run of consecutive pairs: it counts its slots, and, once everybody's counts have been
 * scanned, it places its pairs.  Equal slots among the 32 pairs of a step are told apart by their lane, so the order is the
 * flat index's and no result depends on timing. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/sm90.cuh"

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

/* The slots' counts lie as 16-bit numbers, one a warp, in rows of an odd number of words. */
template <int WARPS> struct slot_row {
    static constexpr int WORDS = WARPS / 2, STRIDE = WORDS + 1;
};

template <int WARPS> __global__ void __launch_bounds__(WARPS * 32) align_once_kernel(const __grid_constant__ mf_cuda_align p)
{
    constexpr int THREADS = WARPS * 32, STEPS = WARPS == 32 ? 4 : 2, WORDS = slot_row<WARPS>::WORDS, STRIDE = slot_row<WARPS>::STRIDE;
    static_assert(MF_CUDA_ALIGN_PAIRS < 65536 && WARPS <= 32, "counts of 16 bits, one sum a lane");
    extern __shared__ __align__(16) uint32_t shared[];
    __shared__ uint32_t sums[32];
    const int slots = p.num_slots, pairs = (int)p.num_pairs, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t *piece = (int32_t *)shared;                                      /* [slice] this block's part of sorted */
    uint32_t *table = shared + p.slice;                                      /* [P, STRIDE] */
    uint32_t *masks = table + slots * STRIDE, *mask = masks + warp * slots;  /* [WARPS, P] */
    uint32_t *starts = masks + slots * WARPS;                                /* [P] */
    uint16_t *mine = (uint16_t *)table + warp;                               /* of slot s at s * STRIDE * 2 */
    const int64_t from = (int64_t)blockIdx.x * p.slice, to = from + p.slice < p.capacity ? from + p.slice : p.capacity;
    let_next_start();
    for (int i = threadIdx.x * 4; i < slots * (STRIDE + WARPS); i += THREADS * 4) {
        *(int4 *)(table + i) = make_int4(0, 0, 0, 0); /* the masks, too, and up to three words behind them */
    }
    for (int i = threadIdx.x * 4; i < p.slice; i += THREADS * 4) {
        *(int4 *)(piece + i) = make_int4(pairs, pairs, pairs, pairs);
    }
    const int steps = (pairs + THREADS - 1) / THREADS, first = warp * steps * 32 + lane;
    const bool dense = p.ids_stride == p.num_columns;
    wait_for_previous();
    int32_t slot[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        const int i = first + k * 32;
        slot[k] = -1;
        if (k < steps && i < pairs) {
            slot[k] = dense ? load_at<int32_t>(p.ids, i, p.bytewise) : slot_at(p, (uint32_t)i);
        }
    }
    __syncthreads(); /* the zeros */
    uint32_t rank[STEPS]; /* among the warp's pairs of that slot */
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k >= steps) {
            break;
        }
        if (slot[k] >= slots) {
            slot[k] = -1;
            if (p.errors && blockIdx.x == 0) {
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
            before = mine[slot[k] * (STRIDE * 2)];
        }
        const uint32_t of_lane = __popc(same & ((1u << lane) - 1u));
        rank[k] = before + of_lane;
        __syncwarp();
        if (slot[k] >= 0 && of_lane == 0) {
            *lanes = 0;
            mine[slot[k] * (STRIDE * 2)] = (uint16_t)(before + __popc(same));
        }
        __syncwarp();
    }
    __syncthreads();

    /* Per slot the warps' counts become sums of those before; then blocks (high half) and counts (low half) over the slots. */
    const int rounds = (slots + THREADS - 1) / THREADS;
    uint32_t carried = 0;
    for (int round = 0; round < rounds; round++) {
        const int s = round * THREADS + threadIdx.x;
        uint32_t n = 0;
        if (s < slots) {
            uint32_t row[WORDS];
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                row[i] = table[s * STRIDE + i];
            }
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                const uint32_t low = row[i] & 0xffffu, high = row[i] >> 16;
                table[s * STRIDE + i] = n | (n + low) << 16;
                n += low + high;
            }
        }
        const uint32_t own = blocks_of(p, n) << 16 | n;
        uint32_t sum = own;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const uint32_t v = __shfl_up_sync(MF_FULL_WARP, sum, d);
            sum += lane >= d ? v : 0;
        }
        if (lane == 31) {
            sums[warp] = sum;
        }
        __syncthreads();
        const uint32_t of_warp = lane < WARPS ? sums[lane] : 0;
        const uint32_t before = carried + sum - own + __reduce_add_sync(MF_FULL_WARP, lane < warp ? of_warp : 0);
        carried += __reduce_add_sync(MF_FULL_WARP, of_warp);
        if (s < slots) {
            starts[s] = (before >> 16) * (uint32_t)p.block_size;
            if (p.offsets && blockIdx.x == 0) {
                store_at<int32_t>(p.offsets, s, (int32_t)(before & 0xffffu), p.bytewise);
            }
        }
        __syncthreads();
    }
    const int blocks = (int)(carried >> 16);
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        if (p.offsets) {
            store_at<int32_t>(p.offsets, slots, (int32_t)(carried & 0xffffu), p.bytewise);
        }
        store_at<int32_t>(p.total, 0, (int32_t)((int64_t)blocks * p.block_size), p.bytewise);
    }
    #pragma unroll 1
    for (int i = blocks + (int)(blockIdx.x * THREADS + threadIdx.x); i < (int)p.num_blocks; i += gridDim.x * THREADS) {
        store_at<int32_t>(p.experts, i, -1, p.bytewise);
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        if (k < steps && slot[k] >= 0) {
            const uint32_t place = mine[slot[k] * (STRIDE * 2)] + rank[k], at = starts[slot[k]] + place;
            if (at >= from && at < to) {
                piece[at - from] = first + k * 32;
                /* A block's first entry names the block. */
                if (p.block_shift >= 0) {
                    if ((place & ((uint32_t)p.block_size - 1)) == 0) {
                        store_at<int32_t>(p.experts, at >> p.block_shift, slot[k], p.bytewise);
                    }
                } else if (place % (uint32_t)p.block_size == 0) {
                    store_at<int32_t>(p.experts, at / (uint32_t)p.block_size, slot[k], p.bytewise);
                }
            }
        }
    }
    __syncthreads();
    const int length = (int)(to - from);
    if (p.wide) {
        for (int i = threadIdx.x * 4; i + 3 < length; i += THREADS * 4) {
            *(int4 *)((int32_t *)p.sorted + from + i) = *(const int4 *)(piece + i);
        }
    }
    for (int i = (p.wide ? length & ~3 : 0) + threadIdx.x; i < length; i += THREADS) {
        store_at<int32_t>(p.sorted, from + i, piece[i], p.bytewise);
    }
}

template <typename KERNEL>
int start(KERNEL kernel, const mf_cuda_align *call, unsigned blocks, unsigned threads, size_t bytes, cudaStream_t stream)
{
    return launch_shared(call->starts_early != 0, kernel, dim3(blocks), threads, bytes, stream, *call);
}

} // namespace

int mf_cuda_launch_align(const mf_cuda_align *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    const size_t counts = (size_t)call->num_slots * 4, bytes = counts * (2 + (size_t)call->warps);
    if (call->slice > 0) {
        const int64_t blocks = call->capacity > 0 ? (call->capacity - 1) / call->slice + 1 : 1;
        const size_t piece = (size_t)call->slice * 4;
        return call->warps <= 16 ? start(align_once_kernel<16>, call, (unsigned)blocks, 512,
                                         piece + counts * (1 + slot_row<16>::STRIDE + 16) + 16, s)
                                 : start(align_once_kernel<32>, call, (unsigned)blocks, 1024,
                                         piece + counts * (1 + slot_row<32>::STRIDE + 32) + 16, s);
    }
    const unsigned threads = call->num_pairs > 512 || call->num_slots > 2048 ? 1024 : 256;
    int error = 0;
    if (call->chunks > 1) {
        error = start(count_kernel, call, (unsigned)call->chunks, 1024, counts, s);
    }
    return error ? error : start(align_kernel, call, (unsigned)call->chunks, threads, bytes, s);
}
