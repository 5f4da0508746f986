/* grouped_prepare.cu - what the grouped products need first: pairs sorted by slot, and for FP8 the tokens' codes.
 *
 * Up to MF_CUDA_PREPARE_PAIRS pairs: one launch, whose first block sorts while the others quantise.  More: that launch counts
 * the slots, and a second one places the pairs.  The order inside a slot is whatever the counters give: a token's column of
 * a product does not see its neighbours, so no bit of the result shows it. */
#include "kernels/cuda/experts.cuh"
#include "kernels/cuda/sm90.cuh"

namespace
{

constexpr int THREADS = 1024, KEPT = MF_CUDA_PREPARE_PAIRS / THREADS;

/* Exclusive sums over the slots of `counts`, in place; the total to counts[slots]. */
MF_DEV void scan_counts(uint32_t *counts, int slots)
{
    __shared__ uint32_t sums[THREADS / 32];
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int each = (slots + THREADS - 1) / THREADS, from = tid * each, to = min(slots, from + each);
    uint32_t mine = 0;
    for (int i = from; i < to; i++) {
        mine += counts[i];
    }
    uint32_t sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t before = __shfl_up_sync(MF_FULL_WARP, sum, d);
        sum += lane >= d ? before : 0;
    }
    if (lane == 31) {
        sums[warp] = sum;
    }
    __syncthreads();
    uint32_t before = sum - mine;
    for (int w = 0; w < warp; w++) {
        before += sums[w];
    }
    __syncthreads();
    for (int i = from; i < to; i++) {
        const uint32_t n = counts[i];
        counts[i] = before;
        before += n;
    }
    if (tid == THREADS - 1) {
        counts[slots] = before;
    }
    __syncthreads();
}

MF_DEV void zero_counts(uint32_t *counts, int slots)
{
    for (int i = threadIdx.x; i <= slots; i += THREADS) {
        counts[i] = 0;
    }
    __syncthreads();
}

MF_DEV void write_offsets(const mf_cuda_grouped &p, const uint32_t *starts, int slots)
{
    for (int i = threadIdx.x; i <= slots; i += THREADS) {
        p.offsets[i] = (int32_t)starts[i];
    }
}

MF_DEV void sort_in_block(const mf_cuda_grouped &p, uint32_t *counts)
{
    const int slots = (int)p.e.num_slots, pairs = (int)p.e.num_pairs;
    int32_t id[KEPT];
    uint32_t place[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = k * THREADS + threadIdx.x;
        id[k] = i < pairs ? pair_id(p.e, i) : -1;
    }
    zero_counts(counts, slots);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if (id[k] >= 0 && id[k] < slots) {
            place[k] = atomicAdd(counts + id[k], 1u);
        }
    }
    __syncthreads();
    scan_counts(counts, slots);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if (id[k] >= 0 && id[k] < slots) {
            p.sorted[counts[id[k]] + place[k]] = k * THREADS + threadIdx.x;
        }
    }
    write_offsets(p, counts, slots);
}

MF_DEV void count_chunk(const mf_cuda_grouped &p, uint32_t *counts, int64_t first, int64_t end)
{
    const int slots = (int)p.e.num_slots;
    zero_counts(counts, slots);
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) {
        const int32_t id = pair_id(p.e, i);
        if (id >= 0 && id < slots) {
            atomicAdd(counts + id, 1u);
        }
    }
    __syncthreads();
}

/* The input scale of a token's group of 128 and its codes, by one warp. */
MF_DEV void quantise_group(const mf_cuda_grouped &p, int64_t row, int64_t group)
{
    const int lane = threadIdx.x & 31;
    const int64_t from = row * p.e.x_stride + group * 128 + 4 * lane;
    float v[4];
    if (p.x_is_wide) {
        const uint2 w = __ldg((const uint2 *)((const uint16_t *)p.e.x + from));
        v[0] = __uint_as_float(w.x << 16);
        v[1] = __uint_as_float(w.x & 0xffff0000u);
        v[2] = __uint_as_float(w.y << 16);
        v[3] = __uint_as_float(w.y & 0xffff0000u);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v[k] = load_float(p.e.x, p.e.act_dtype, from + k, p.e.bytewise);
        }
    }
    uint32_t amax = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t a = __float_as_uint(v[k]) & 0x7fffffffu;
        amax = a > amax ? a : amax;
    }
    amax = __reduce_max_sync(MF_FULL_WARP, amax);
    const float scale = quant_scale(QUANT_FP8_GROUP, 0.0f, p.e.e8m0, __uint_as_float(amax));
    uint32_t codes = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        codes |= (uint32_t)quant_e4m3(v[k], scale) << 8 * k;
    }
    *(uint32_t *)(p.x_codes + row * p.e.hidden_size + group * 128 + 4 * lane) = codes;
    if (lane == 0) {
        p.x_scales_out[row * p.x_groups + group] = scale;
    }
}

__global__ void __launch_bounds__(THREADS) prepare_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    extern __shared__ uint32_t counts[];
    wait_for_previous();
    let_next_start();
    const bool sorts = !p.few_rows, is_small = sorts && p.e.num_pairs <= MF_CUDA_PREPARE_PAIRS;
    if (is_small && blockIdx.x == 0) {
        sort_in_block(p, counts);
        return;
    }
    if (sorts && !is_small) {
        const int64_t chunk = (p.e.num_pairs + gridDim.x - 1) / gridDim.x, first = blockIdx.x * chunk;
        count_chunk(p, counts, first, min(first + chunk, p.e.num_pairs));
        for (int i = threadIdx.x; i < p.e.num_slots; i += THREADS) {
            if (counts[i] > 0) {
                atomicAdd(p.work + MF_CUDA_WORK_COUNTS + i, counts[i]);
            }
        }
    }
    if (p.fp8) {
        const int64_t block = blockIdx.x - is_small, blocks = gridDim.x - is_small, work = p.e.num_tokens * p.x_groups;
        for (int64_t i = block * (THREADS / 32) + (threadIdx.x >> 5); i < work; i += blocks * (THREADS / 32)) {
            quantise_group(p, i / p.x_groups, i % p.x_groups);
        }
    }
}

__global__ void __launch_bounds__(THREADS) place_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    extern __shared__ uint32_t counts[];
    const int slots = (int)p.e.num_slots;
    uint32_t *own = counts + slots + 1; /* this block's counts, then next places */
    wait_for_previous();
    let_next_start();
    for (int i = threadIdx.x; i < slots; i += THREADS) {
        counts[i] = p.work[MF_CUDA_WORK_COUNTS + i];
    }
    __syncthreads();
    scan_counts(counts, slots);
    if (blockIdx.x == 0) {
        write_offsets(p, counts, slots);
    }
    const int64_t chunk = (p.e.num_pairs + gridDim.x - 1) / gridDim.x, first = blockIdx.x * chunk;
    const int64_t end = min(first + chunk, p.e.num_pairs);
    count_chunk(p, own, first, end);
    for (int i = threadIdx.x; i < slots; i += THREADS) {
        if (own[i] > 0) {
            own[i] = counts[i] + atomicAdd(p.work + MF_CUDA_WORK_CURSORS + i, own[i]);
        }
    }
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) {
        const int32_t id = pair_id(p.e, i);
        if (id >= 0 && id < slots) {
            p.sorted[atomicAdd(own + id, 1u)] = (int32_t)i;
        }
    }
}

int launch(void (*kernel)(mf_cuda_grouped), unsigned blocks, size_t bytes, const mf_cuda_grouped *call, cudaStream_t stream)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = call->e.starts_early ? 1 : 0;
    return (int)cudaLaunchKernelEx(&config, kernel, *call);
}

} // namespace

int mf_cuda_launch_prepare(const mf_cuda_grouped *call, void *stream)
{
    const bool is_small = call->e.num_pairs <= MF_CUDA_PREPARE_PAIRS;
    const int64_t groups = call->fp8 ? (call->e.num_tokens * call->x_groups + 31) / 32 : 0;
    int64_t blocks = call->few_rows ? groups : is_small ? 1 + groups : groups > call->blocks ? groups : call->blocks;
    blocks = blocks < 2 * call->blocks ? blocks : 2 * call->blocks;
    const size_t bytes = ((size_t)call->e.num_slots + 1) * 4;
    const int error = launch(prepare_kernel, (unsigned)blocks, bytes, call, (cudaStream_t)stream);
    if (error != 0 || is_small) {
        return error;
    }
    return launch(place_kernel, (unsigned)call->blocks, 2 * bytes, call, (cudaStream_t)stream);
}
