/* align.cu - token-expert pairs sorted by slot, stable, each slot's run padded to whole blocks; bit-equal to ref/align.c.
 *
 * Up to 4,096 pairs are one block and one launch; more are chunks, counted by a first launch.  Within a block each warp
 * walks a run of consecutive pairs twice: it counts its slots, and, once everybody's counts have been scanned, it places its
 * pairs.  Equal slots among the 32 pairs of a step are told apart by their lane, so the order is the flat index's and no
 * result depends on timing. */
#include "kernels/cuda/numbers.cuh"

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

} // namespace

int mf_cuda_launch_align(const mf_cuda_align *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    const size_t counts = (size_t)call->num_slots * 4, bytes = counts * (2 + (size_t)call->warps);
    const unsigned threads = call->num_pairs > 512 || call->num_slots > 2048 ? 1024 : 256;
    cudaError_t error = cudaSuccess;
    if (call->chunks > 1) {
        if (counts > 32 * 1024) {
            error = cudaFuncSetAttribute(count_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)counts);
        }
        if (error == cudaSuccess) {
            count_kernel<<<(unsigned)call->chunks, 1024, counts, s>>>(*call);
            error = cudaGetLastError();
        }
    }
    if (error == cudaSuccess && bytes > 32 * 1024) {
        error = cudaFuncSetAttribute(align_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    }
    if (error == cudaSuccess) {
        align_kernel<<<(unsigned)call->chunks, threads, bytes, s>>>(*call);
        error = cudaGetLastError();
    }
    return (int)error;
}
