/* gate.cu - the gate's general kernel and its separate steps: every configuration, one launch; gate_rows.cu is faster at the
 * usual ones. */
#include "kernels/cuda/gate_row.cuh"
#include "kernels/cuda/sm90.cuh"

namespace
{

/* The last block to come sees all counts, gives them out and leaves the device's zero for the next launch. */
MF_DEV void give_out_counts(const mf_cuda_gate &p, uint32_t *block_counts)
{
    __shared__ bool is_last;
    const bool in_block = p.num_slots <= MF_CUDA_BLOCK_HISTOGRAM;
    __syncthreads();
    if (gridDim.x == 1 && in_block) {
        for (int i = threadIdx.x; i < p.num_slots; i += blockDim.x) {
            store_at<uint32_t>(p.histogram, i, block_counts[i], p.bytewise);
        }
        return;
    }
    for (int i = threadIdx.x; in_block && i < p.num_slots; i += blockDim.x) {
        if (block_counts[i]) {
            atomicAdd(p.counts + i, block_counts[i]);
        }
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(p.ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last) {
        __threadfence();
        for (int i = threadIdx.x; i < p.num_slots; i += blockDim.x) {
            store_at<uint32_t>(p.histogram, i, atomicExch(p.counts + i, 0u), p.bytewise);
        }
        if (threadIdx.x == 0) {
            *p.ticket = 0;
        }
    }
}

/* Shared memory: per warp ids, weights, then keys and groups where they are needed; the block's counts last. */
template <int VALUES, int STAGE>
__global__ void __launch_bounds__(256) gate_kernel(const __grid_constant__ mf_cuda_gate p)
{
    extern __shared__ __align__(16) uint8_t shared[];
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const bool keys = VALUES == 0 || p.n_group > 1;
    const int width = keys ? (p.width + 31) / 32 * 32 : 0, groups = p.n_group > 1 ? (p.n_group + 31) / 32 * 32 : 0;
    const int bytes = COLUMNS * 8 + width * 4 + groups * 8;
    uint8_t *mine = shared + warp * bytes;
    row_memory mem;
    mem.id = (int32_t *)mine;
    mem.w = (float *)(mine + COLUMNS * 4);
    mem.key = (uint32_t *)(mine + COLUMNS * 8);
    mem.group = (float *)(mine + COLUMNS * 8 + width * 4);
    mem.kept = mine + COLUMNS * 8 + width * 4 + groups * 4;
    uint32_t *block_counts = (uint32_t *)(shared + warps * bytes);
    const bool counts = p.histogram && !p.counts_to_output && (STAGE == MF_CUDA_GATE_FUSED || STAGE == MF_CUDA_GATE_EMIT);
    if (counts && p.num_slots <= MF_CUDA_BLOCK_HISTOGRAM) {
        for (int i = threadIdx.x; i < p.num_slots; i += blockDim.x) {
            block_counts[i] = 0;
        }
        __syncthreads();
    }
    const int64_t valid_rows = num_valid_rows(p.num_valid, p.num_tokens, p.bytewise);
    for (int64_t t = (int64_t)blockIdx.x * warps + warp; t < p.num_tokens; t += (int64_t)gridDim.x * warps) {
        run_row<VALUES, STAGE>(p, mem, block_counts, t, valid_rows, lane);
    }
    if (counts) {
        give_out_counts(p, block_counts);
    }
}

template <int VALUES, int STAGE> int launch(const mf_cuda_gate *call, const mf_cuda_grid *grid, cudaStream_t stream)
{
    if (grid->shared_bytes > 32 * 1024) { /* beside what the kernel declares */
        const cudaError_t error = cudaFuncSetAttribute(gate_kernel<VALUES, STAGE>,
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)grid->shared_bytes);
        if (error != cudaSuccess) {
            return (int)error;
        }
    }
    gate_kernel<VALUES, STAGE>
        <<<(unsigned)grid->blocks, (unsigned)grid->warps * 32, (size_t)grid->shared_bytes, stream>>>(*call);
    return (int)cudaGetLastError();
}

} // namespace

int mf_cuda_launch_gate(const mf_cuda_gate *call, const mf_cuda_grid *grid, mf_cuda_gate_stage stage, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    switch (stage) {
    case MF_CUDA_GATE_KEYS:
        return launch<0, MF_CUDA_GATE_KEYS>(call, grid, s);
    case MF_CUDA_GATE_CHOOSE:
        return launch<0, MF_CUDA_GATE_CHOOSE>(call, grid, s);
    case MF_CUDA_GATE_EMIT:
        return launch<0, MF_CUDA_GATE_EMIT>(call, grid, s);
    default:
        break;
    }
    if (grid->rows_width > 0) {
        return mf_cuda_launch_gate_rows(call, grid, stream);
    }
    switch (grid->values) {
    case 1:
        return launch<1, MF_CUDA_GATE_FUSED>(call, grid, s);
    case 2:
        return launch<2, MF_CUDA_GATE_FUSED>(call, grid, s);
    case 4:
        return launch<4, MF_CUDA_GATE_FUSED>(call, grid, s);
    case 8:
        return launch<8, MF_CUDA_GATE_FUSED>(call, grid, s);
    case 12:
        return launch<12, MF_CUDA_GATE_FUSED>(call, grid, s);
    case 16:
        return launch<16, MF_CUDA_GATE_FUSED>(call, grid, s);
    case 32:
        return launch<32, MF_CUDA_GATE_FUSED>(call, grid, s);
    default:
        return launch<0, MF_CUDA_GATE_FUSED>(call, grid, s);
    }
}
