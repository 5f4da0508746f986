/* grouped_prepare.cu - what the grouped products need first: pairs sorted by slot, and for products of codes the tokens' codes.
 *
 * Up to MF_CUDA_SORTED_PAIRS pairs: one launch, whose first block sorts while the others quantise.  More: that launch
 * counts the slots, and a second one places the pairs.
 * The order inside a slot is whatever the counters give: a token's column of a product does not see its neighbours, so
 * no bit of the result shows it. */
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/row_codes.cuh"

namespace
{

constexpr int BLOCK = 1024;

/* Exclusive sums over the slots of `counts`, in place; the total to counts[slots]. */
MF_DEV void scan_counts(uint32_t *counts, int slots)
{
    __shared__ uint32_t sums[BLOCK / 32];
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int each = (slots + BLOCK - 1) / BLOCK, from = tid * each, to = min(slots, from + each);
    uint32_t mine = 0;
    for (int i = from; i < to; i++) {
        mine += counts[i];
    }
    uint32_t before = sum_before(mine, lane, warp, sums);
    __syncthreads();
    for (int i = from; i < to; i++) {
        const uint32_t n = counts[i];
        counts[i] = before;
        before += n;
    }
    if (tid == BLOCK - 1) {
        counts[slots] = before;
    }
    __syncthreads();
}

MF_DEV void zero_counts(uint32_t *counts, int slots)
{
    for (int i = threadIdx.x; i <= slots; i += BLOCK) {
        counts[i] = 0;
    }
    __syncthreads();
}

MF_DEV void write_offsets(const mf_cuda_grouped &p, const uint32_t *starts, int slots)
{
    for (int i = threadIdx.x; i <= slots; i += BLOCK) {
        p.offsets[i] = (int32_t)starts[i];
    }
}

/* PAIRS: at most. */
template <int PAIRS> MF_DEV void sort_in_block(const mf_cuda_grouped &p, uint32_t *counts)
{
    constexpr int KEPT = PAIRS / BLOCK;
    const int slots = (int)p.e.num_slots, pairs = (int)p.e.num_pairs;
    int32_t id[KEPT];
    uint32_t place[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = k * BLOCK + threadIdx.x;
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
            p.sorted[counts[id[k]] + place[k]] = k * BLOCK + threadIdx.x;
        }
    }
    write_offsets(p, counts, slots);
}

MF_DEV void count_chunk(const mf_cuda_grouped &p, uint32_t *counts, int64_t first, int64_t end)
{
    const int slots = (int)p.e.num_slots;
    zero_counts(counts, slots);
    for (int64_t i = first + threadIdx.x; i < end; i += BLOCK) {
        const int32_t id = pair_id(p.e, i);
        if (id >= 0 && id < slots) {
            atomicAdd(counts + id, 1u);
        }
    }
    __syncthreads();
}

/* Pieces of 16 bytes first, first + step, .. below `pieces` of x's copy for packed weights: columns in their order. */
template <bool WIDE> MF_DEV void order_columns(const mf_cuda_grouped &p, int64_t first, int64_t step, int64_t pieces)
{
    const uint32_t per_row = (uint32_t)p.x_groups * 16;
    for (int64_t i = first; i < pieces; i += step) {
        const int64_t row = (uint32_t)i / per_row;
        const int piece = (int)((uint32_t)i % per_row), column = (piece >> 4) * 128 + packed_column<WIDE>((piece & 15) * 8);
        uint32_t words[4];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const int k = column + 32 * q, next = k + (WIDE ? 1 : 4);
            words[q] = 0;
            if (k < p.e.hidden_size) {
                words[q] = load_at<uint16_t>(p.e.x, row * p.e.x_stride + k, p.e.bytewise) |
                           (uint32_t)load_at<uint16_t>(p.e.x, row * p.e.x_stride + next, p.e.bytewise) << 16;
            }
        }
        ((uint4 *)p.x_codes)[i] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

/* A row of `pieces` times eight numbers, of which at(piece, q) gives the two of a piece that go into word q, as codes
 * (numbers of bf16, too) and their scale; by a warp. */
template <typename At> MF_DEV float quantise_row(int quant, int pieces, uint4 *to, At at)
{
    const int lane = threadIdx.x & 31;
    uint32_t amax = 0;
    for (int i = lane; i < 4 * pieces; i += 32) {
        const uint32_t two = at(i >> 2, i & 3), a = two << 16 & 0x7fffffffu, b = two & 0x7fff0000u;
        amax = max(amax, max(a, b)); /* a NaN is the largest of all */
    }
    const float scale = quant_scale(quant, 0.0f, false, __uint_as_float(__reduce_max_sync(MF_FULL_WARP, amax)));
    for (int i = lane; i < pieces; i += 32) {
        uint32_t words[4];
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint32_t two = at(i, q);
            words[q] = pack_bf16(quant_code(quant, __uint_as_float(two << 16), scale),
                                 quant_code(quant, __uint_as_float(two & 0xffff0000u), scale));
        }
        to[i] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    return scale;
}

/* x as codes of one scale a token, columns in packed weights' order: rows first, first + step, .. */
MF_DEV void quantise_tokens(const mf_cuda_grouped &p, int64_t first, int64_t step)
{
    for (int64_t row = first; row < p.e.num_tokens; row += step) {
        const float scale = quantise_row(p.quant, (int)p.x_groups * 16, (uint4 *)p.x_codes + row * p.x_groups * 16,
                                         [&](int piece, int q) {
            const int k = (piece >> 4) * 128 + packed_column<true>((piece & 15) * 8) + 32 * q;
            return k < p.e.hidden_size
                       ? load_at<uint16_t>(p.e.x, row * p.e.x_stride + k, p.e.bytewise) |
                             (uint32_t)load_at<uint16_t>(p.e.x, row * p.e.x_stride + k + 1, p.e.bytewise) << 16
                       : 0u;
        });
        if ((threadIdx.x & 31) == 0) {
            p.x_scales_out[row] = scale;
        }
    }
}

/* The same of the intermediate, in its place. */
__global__ void __launch_bounds__(256) quantise_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    wait_for_previous();
    let_next_start();
    const int64_t rows = p.offsets[p.e.num_slots], warps = (int64_t)gridDim.x * 8;
    for (int64_t row = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5); row < rows; row += warps) {
        const mf_cuda_slot &slot = p.e.slots[pair_id(p.e, p.sorted[row])];
        uint4 *h = (uint4 *)((uint16_t *)p.e.h + row * p.e.h_stride);
        const float scale = quantise_row(p.quant, (int)((slot.up.n + 127) / 128) * 16, h,
                                         [&](int piece, int q) { return ((const uint32_t *)h)[4 * piece + q]; });
        if ((threadIdx.x & 31) == 0) {
            p.h_scales[row] = scale;
        }
    }
}

/* x as codes of one scale a token, in their order: rows first, first + step, .., a warp each. */
template <int CODES> MF_DEV void quantise_rows(const mf_cuda_grouped &p, int64_t first, int64_t step)
{
    for (int64_t row = first; row < p.e.num_tokens; row += step) {
        const int64_t from = row * p.e.x_stride;
        const float scale = quantise_whole_row<CODES>(
            (int)p.x_groups * 16, p.x_codes + row * p.x_groups * 128, [&](int piece) {
                if (p.x_is_wide) {
                    return __ldg((const uint4 *)((const uint16_t *)p.e.x + from) + piece);
                }
                uint32_t words[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int64_t at = from + 8 * piece + 2 * k;
                    words[k] = load_at<uint16_t>(p.e.x, at, p.e.bytewise) |
                               (uint32_t)load_at<uint16_t>(p.e.x, at + 1, p.e.bytewise) << 16;
                }
                return make_uint4(words[0], words[1], words[2], words[3]);
            });
        if ((threadIdx.x & 31) == 0) {
            p.x_scales_out[row] = scale;
        }
    }
}

__global__ void __launch_bounds__(BLOCK) prepare_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    extern __shared__ uint32_t counts[];
    wait_for_previous();
    let_next_start();
    const bool is_small = p.e.num_pairs <= MF_CUDA_SORTED_PAIRS;
    if (is_small && blockIdx.x == 0) {
        if (p.e.num_pairs <= MF_CUDA_PREPARE_PAIRS) {
            sort_in_block<MF_CUDA_PREPARE_PAIRS>(p, counts);
        } else {
            sort_in_block<MF_CUDA_SORTED_PAIRS>(p, counts);
        }
        return;
    }
    if (!is_small) {
        const int64_t chunk = (p.e.num_pairs + gridDim.x - 1) / gridDim.x, first = blockIdx.x * chunk;
        count_chunk(p, counts, first, min(first + chunk, p.e.num_pairs));
        for (int i = threadIdx.x; i < p.e.num_slots; i += BLOCK) {
            if (counts[i] > 0) {
                atomicAdd(p.work + MF_CUDA_WORK_COUNTS + i, counts[i]);
            }
        }
    }
    const int64_t block = blockIdx.x - is_small, blocks = gridDim.x - is_small, work = p.e.num_tokens * p.x_groups;
    if (p.quant) {
        quantise_tokens(p, block * (BLOCK / 32) + (threadIdx.x >> 5), blocks * (BLOCK / 32));
    } else if (p.packed >= MF_CUDA_PACKED_FP8_BLOCK) {
        order_columns<true>(p, block * BLOCK + threadIdx.x, blocks * BLOCK, work * 16);
    } else if (p.packed) {
        order_columns<false>(p, block * BLOCK + threadIdx.x, blocks * BLOCK, work * 16);
    } else if (p.codes == MF_CUDA_CODES_FP8_ROW) {
        quantise_rows<MF_CUDA_CODES_FP8_ROW>(p, block + blocks * (threadIdx.x >> 5), blocks * (BLOCK / 32));
    } else if (p.codes == MF_CUDA_CODES_INT8_ROW) {
        quantise_rows<MF_CUDA_CODES_INT8_ROW>(p, block + blocks * (threadIdx.x >> 5), blocks * (BLOCK / 32));
    } else if (p.codes) {
        quantise_groups(p, block * (BLOCK / 4) + (threadIdx.x >> 2), blocks * (BLOCK / 4), work);
    }
}

__global__ void __launch_bounds__(BLOCK) place_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    extern __shared__ uint32_t counts[];
    const int slots = (int)p.e.num_slots;
    uint32_t *own = counts + slots + 1; /* this block's counts, then next places */
    wait_for_previous();
    let_next_start();
    for (int i = threadIdx.x; i < slots; i += BLOCK) {
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
    for (int i = threadIdx.x; i < slots; i += BLOCK) {
        if (own[i] > 0) {
            own[i] = counts[i] + atomicAdd(p.work + MF_CUDA_WORK_CURSORS + i, own[i]);
        }
    }
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += BLOCK) {
        const int32_t id = pair_id(p.e, i);
        if (id >= 0 && id < slots) {
            p.sorted[atomicAdd(own + id, 1u)] = (int32_t)i;
        }
    }
}

} // namespace

int mf_cuda_launch_prepare(const mf_cuda_grouped *call, void *stream)
{
    const bool is_small = call->e.num_pairs <= MF_CUDA_SORTED_PAIRS, early = call->e.starts_early != 0;
    /* A row's warp has many instructions: four rows a block, or as many as warps where there are too many rows for that. */
    const bool by_row = call->codes > MF_CUDA_CODES_FP8_BLOCK, by_warp = call->quant || by_row;
    const int64_t per_block = by_row ? 4 : by_warp ? BLOCK / 32 : call->packed ? BLOCK / 16 : BLOCK / 4;
    const int64_t work = call->e.num_tokens * (by_warp ? 1 : call->x_groups);
    const int64_t groups = call->codes || call->packed ? (work + per_block - 1) / per_block : 0;
    int64_t blocks = is_small ? 1 + groups : groups > call->blocks ? groups : call->blocks;
    blocks = blocks < 2 * call->blocks ? blocks : 2 * call->blocks;
    const size_t bytes = ((size_t)call->e.num_slots + 1) * 4;
    const int error = launch_kernel(early, prepare_kernel, dim3((unsigned)blocks), BLOCK, bytes, stream, *call);
    if (error != 0 || is_small) {
        return error;
    }
    return launch_shared(early, place_kernel, dim3((unsigned)call->blocks), BLOCK, 2 * bytes, stream, *call);
}

int mf_cuda_launch_quantise_packed(const mf_cuda_grouped *call, void *stream)
{
    const int64_t blocks = (call->e.num_pairs + 7) / 8, most = call->blocks * 8;
    return launch_kernel(call->e.starts_early != 0, quantise_kernel, dim3((unsigned)(blocks < most ? blocks : most)), 256, 0,
                         stream, *call);
}
