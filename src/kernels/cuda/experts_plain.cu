/* experts_plain.cu - experts in f32 arithmetic: every format, every size, every alignment.  Where nothing faster fits.
 *
 * A block takes one pair and some rows of its slot's matrix.  The pair's input lies in shared memory, quantised if the slot
 * asks for it; a warp sums a row: lane l takes columns 4l.. of each 128, one tree at the end, so the order depends on the
 * row's length alone. */
#include "kernels/cuda/experts.cuh"

namespace
{

constexpr int WARPS = 8;
constexpr int ROWS = 32; /* of a block */

/* max |x| over the block as bits: a NaN is the largest of all. */
MF_DEV uint32_t block_max(uint32_t v)
{
    __shared__ uint32_t most[WARPS];
    v = __reduce_max_sync(MF_FULL_WARP, v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        most[threadIdx.x >> 5] = v;
    }
    __syncthreads();
    v = most[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) {
        v = most[w] > v ? most[w] : v;
    }
    return v;
}

/* Codes in place of x[n], scales behind them: one per 128 columns, or one. */
MF_DEV void quantise(int quant, float static_scale, bool e8m0, float *x, int64_t n, float *scales)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (quant == QUANT_FP8_GROUP) {
        for (int64_t g = warp; g * 128 < n; g += WARPS) {
            uint32_t amax = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int64_t i = g * 128 + lane + 32 * k;
                const uint32_t a = i < n ? __float_as_uint(x[i]) & 0x7fffffffu : 0;
                amax = a > amax ? a : amax;
            }
            amax = __reduce_max_sync(MF_FULL_WARP, amax);
            const float scale = quant_scale(quant, 0.0f, e8m0, __uint_as_float(amax));
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int64_t i = g * 128 + lane + 32 * k;
                if (i < n) {
                    x[i] = quant_code(quant, x[i], scale);
                }
            }
            if (lane == 0) {
                scales[g] = scale;
            }
        }
    } else {
        uint32_t amax = 0;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            const uint32_t a = __float_as_uint(x[i]) & 0x7fffffffu;
            amax = a > amax ? a : amax;
        }
        const float scale = quant_scale(quant, static_scale, e8m0, __uint_as_float(block_max(amax)));
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            x[i] = quant_code(quant, x[i], scale);
        }
        if (threadIdx.x == 0) {
            scales[0] = scale;
        }
    }
    __syncthreads();
}

/* Code of column k without its scale. */
MF_DEV float code_at(const mf_cuda_matrix &m, const uint8_t *row, int64_t scale_row, int64_t k)
{
    switch (m.format) {
    case MF_FORMAT_F32:
        return load_at<float>(row, k, m.reserved);
    case MF_FORMAT_BF16:
        return bf16_to_f32(load_at<uint16_t>(row, k, m.reserved));
    case MF_FORMAT_F16:
        return f16_to_f32(load_at<uint16_t>(row, k, m.reserved));
    case MF_FORMAT_FP8_BLOCK:
    case MF_FORMAT_FP8_CHANNEL:
        return e4m3_to_f32(row[k]);
    case MF_FORMAT_INT8_CHANNEL:
        return (float)(int8_t)row[k];
    case MF_FORMAT_INT4_GROUP: {
        const int c = (row[k / 2] >> (4 * (k & 1))) & 15;
        return (float)(c - (m.zero ? m.zero[scale_row + k / m.group_size] : 8));
    }
    default:
        return e2m1_to_f32((row[k / 2] >> (4 * (k & 1))) & 15);
    }
}

MF_DEV int64_t scale_index(const mf_cuda_matrix &m, int64_t scale_row, int64_t k)
{
    switch (m.format) {
    case MF_FORMAT_FP8_BLOCK:
        return scale_row + k / 128;
    case MF_FORMAT_INT4_GROUP:
        return scale_row + k / m.group_size;
    case MF_FORMAT_MXFP4:
        return scale_row + k / 32;
    default:
        return scale_row;
    }
}

MF_DEV int bits_of(int format)
{
    return format == MF_FORMAT_F32                                ? 32
           : format == MF_FORMAT_BF16 || format == MF_FORMAT_F16  ? 16
           : format == MF_FORMAT_INT4_GROUP || format == MF_FORMAT_MXFP4 ? 4
                                                                  : 8;
}

/* Row r of m times the block's input; every lane has the result. */
MF_DEV float row_product(const mf_cuda_matrix &m, int64_t r, const float *x, const float *scales)
{
    const int lane = threadIdx.x & 31;
    const uint8_t *row = m.data + r * m.row_stride * bits_of(m.format) / 8;
    const int64_t scale_row = (m.format == MF_FORMAT_FP8_BLOCK ? r / 128 : r) * m.scale_row_stride;
    const bool scaled = m.format >= MF_FORMAT_FP8_BLOCK;
    float acc = 0.0f;
    int32_t integer = 0;
    for (int64_t first = 0; first < m.k; first += 128) {
        float part = 0.0f;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int64_t k = first + 4 * lane + e;
            if (k >= m.k) {
                continue;
            }
            const float c = code_at(m, row, scale_row, k);
            if (m.quant == QUANT_NONE) {
                const float v = scaled ? __fmul_rn(c, scale_at(m, scale_index(m, scale_row, k))) : c;
                acc = __fmaf_rn(v, x[k], acc);
            } else if (m.quant == QUANT_INT8_TOKEN) {
                const int32_t product = (int32_t)c * (int32_t)x[k];
                if (m.format == MF_FORMAT_INT4_GROUP) {
                    acc = __fmaf_rn(scale_at(m, scale_index(m, scale_row, k)), (float)product, acc);
                } else {
                    integer += product;
                }
            } else {
                part = __fmaf_rn(c, x[k], part);
            }
        }
        if (m.quant == QUANT_FP8_GROUP) {
            acc = __fmaf_rn(__fmul_rn(scales[first / 128], scale_at(m, scale_row + first / 128)), part, acc);
        } else if (m.quant == QUANT_FP8_TOKEN || m.quant == QUANT_FP8_STATIC) {
            acc = __fadd_rn(acc, part);
        }
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        acc = __fadd_rn(acc, __shfl_xor_sync(MF_FULL_WARP, acc, d));
        integer += __shfl_xor_sync(MF_FULL_WARP, integer, d);
    }
    if (m.quant == QUANT_NONE || m.quant == QUANT_FP8_GROUP) {
        return acc;
    }
    if (m.quant == QUANT_INT8_TOKEN) {
        return m.format == MF_FORMAT_INT4_GROUP
                   ? __fmul_rn(acc, scales[0])
                   : __fmul_rn(__fmul_rn((float)integer, scales[0]), scale_at(m, scale_row));
    }
    return __fmul_rn(__fmul_rn(scales[0], scale_at(m, scale_row)), acc);
}

/* h[pair] = act(w13 x[token]), rows [blockIdx.x * ROWS, + ROWS). */
__global__ void __launch_bounds__(WARPS * 32) plain_up(const __grid_constant__ mf_cuda_experts p)
{
    extern __shared__ float x[];
    float *scales = x + p.hidden_size;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int64_t pair = blockIdx.y; pair < p.num_pairs; pair += gridDim.y) {
        const int32_t id = pair_id(p, pair);
        const int64_t first = (int64_t)blockIdx.x * ROWS;
        if (id < 0 || id >= p.num_slots || p.slots[id].path13 != MF_CUDA_PATH_PLAIN || first >= p.slots[id].up.n) {
            continue;
        }
        const mf_cuda_slot &slot = p.slots[id];
        const int64_t token = pair_token(p, pair);
        const float factor =
            p.input_scale
                ? load_at<float>(p.input_scale, token * p.input_scale_stride + (uint32_t)pair % (uint32_t)p.num_columns,
                                 p.bytewise)
                : 1.0f;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < p.hidden_size; i += blockDim.x) {
            float v = load_float(p.x, p.act_dtype, token * p.x_stride + i, p.bytewise);
            x[i] = p.input_scale ? round_to_dtype(__fmul_rn(v, factor), p.act_dtype) : v;
        }
        __syncthreads();
        if (slot.up.quant != QUANT_NONE) {
            quantise(slot.up.quant, slot.input_scale13, p.e8m0, x, p.hidden_size, scales);
        }
        for (int64_t i = first + warp; i < first + ROWS && i < slot.up.n; i += WARPS) {
            float g = slot.gate.data ? row_product(slot.gate, i, x, scales) : 0.0f;
            float u = row_product(slot.up, i, x, scales);
            g = slot.gate_bias ? __fadd_rn(g, slot.gate_bias[i]) : g;
            u = slot.up_bias ? __fadd_rn(u, slot.up_bias[i]) : u;
            if (lane == 0) {
                store_float(p.h, p.act_dtype, pair * p.h_stride + i, activate(slot, g, u), false);
            }
        }
    }
}

/* y[pair] = w2 h[pair]; ids past the last slot give zeros. */
__global__ void __launch_bounds__(WARPS * 32) plain_down(const __grid_constant__ mf_cuda_experts p)
{
    extern __shared__ float h[];
    float *scales = h + p.max_width;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t first = (int64_t)blockIdx.x * ROWS;
    for (int64_t pair = blockIdx.y; pair < p.num_pairs; pair += gridDim.y) {
        const int32_t id = pair_id(p, pair);
        if (id < 0 || (id < p.num_slots && p.slots[id].path2 != MF_CUDA_PATH_PLAIN)) {
            continue;
        }
        const int64_t out = y_offset(p, pair);
        if (id >= p.num_slots) {
            for (int64_t i = first + threadIdx.x; i < first + ROWS && i < p.hidden_size; i += blockDim.x) {
                store_float(p.y, p.y_dtype, out + i, 0.0f, p.bytewise);
            }
            continue;
        }
        const mf_cuda_slot &slot = p.slots[id];
        __syncthreads();
        for (int64_t i = threadIdx.x; i < slot.down.k; i += blockDim.x) {
            h[i] = load_float(p.h, p.act_dtype, pair * p.h_stride + i, false);
        }
        __syncthreads();
        if (slot.down.quant != QUANT_NONE) {
            quantise(slot.down.quant, slot.input_scale2, p.e8m0, h, slot.down.k, scales);
        }
        for (int64_t i = first + warp; i < first + ROWS && i < p.hidden_size; i += WARPS) {
            float v = row_product(slot.down, i, h, scales);
            v = slot.down_bias ? __fadd_rn(v, slot.down_bias[i]) : v;
            if (lane == 0) {
                store_float(p.y, p.y_dtype, out + i, v, p.bytewise);
            }
        }
    }
}

/* e4m3 codes, as f16, and one scale per 128 columns of rows that meet FP8_BLOCK weights; a warp per group. */
__global__ void __launch_bounds__(256) quantise_rows(const __grid_constant__ mf_cuda_experts p, const int second)
{
    const int lane = threadIdx.x & 31;
    const int64_t columns = second ? p.max_width : p.hidden_size, rows = second ? p.num_pairs : p.num_tokens;
    const int64_t groups = (columns + 127) / 128, work = rows * groups, warps = (int64_t)gridDim.x * (blockDim.x / 32);
    for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32; i < work; i += warps) {
        const int64_t row = i / groups, g = i % groups;
        if (second) {
            const int32_t id = pair_id(p, row);
            if (id < 0 || id >= p.num_slots || p.slots[id].path2 != MF_CUDA_PATH_FP8 || g * 128 >= p.slots[id].down.k) {
                continue;
            }
        }
        const int64_t from = row * (second ? p.h_stride : p.x_stride) + g * 128 + 4 * lane;
        float v[4];
        uint32_t amax = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v[k] = load_float(second ? p.h : p.x, p.act_dtype, from + k, !second && p.bytewise);
            const uint32_t a = __float_as_uint(v[k]) & 0x7fffffffu;
            amax = a > amax ? a : amax;
        }
        amax = __reduce_max_sync(MF_FULL_WARP, amax);
        const float scale = quant_scale(QUANT_FP8_GROUP, 0.0f, p.e8m0, __uint_as_float(amax));
        const int64_t at = row * (second ? p.h_stride : p.hidden_size) + g * 128 + 4 * lane;
        *(uint2 *)((second ? p.h_codes : p.x_codes) + at) = quant_e4m3_as_f16(v, scale);
        if (lane == 0) {
            (second ? p.h_scales : p.x_scales)[row * groups + g] = scale;
        }
    }
}

/* x without gaps, for kernels that read 16 bytes at a time. */
__global__ void __launch_bounds__(256) copy_rows(const __grid_constant__ mf_cuda_experts p, uint16_t *copy)
{
    const int64_t n = p.num_tokens * p.hidden_size;
    for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < n; i += (int64_t)gridDim.x * 256) {
        copy[i] = load_at<uint16_t>(p.x, i / p.hidden_size * p.x_stride + i % p.hidden_size, p.bytewise);
    }
}

__global__ void __launch_bounds__(256) zero_rows(const __grid_constant__ mf_cuda_experts p)
{
    const int64_t warps = (int64_t)gridDim.x * 8;
    for (int64_t pair = ((int64_t)blockIdx.x * 256 + threadIdx.x) / 32; pair < p.num_pairs; pair += warps) {
        if (pair_id(p, pair) >= p.num_slots) {
            for (int64_t i = threadIdx.x & 31; i < p.hidden_size; i += 32) {
                store_float(p.y, p.y_dtype, y_offset(p, pair) + i, 0.0f, p.bytewise);
            }
        }
    }
}

int quantise_launch(const mf_cuda_experts *call, int second, cudaStream_t stream)
{
    const int64_t columns = second ? call->max_width : call->hidden_size;
    const int64_t work = (second ? call->num_pairs : call->num_tokens) * ((columns + 127) / 128);
    const int64_t blocks = (work + 7) / 8;
    quantise_rows<<<(unsigned)(blocks < 1 ? 1 : blocks < 4096 ? blocks : 4096), 256, 0, stream>>>(*call, second);
    return (int)cudaGetLastError();
}

} // namespace

int mf_cuda_launch_quantise_x(const mf_cuda_experts *call, void *stream)
{
    return quantise_launch(call, 0, (cudaStream_t)stream);
}

int mf_cuda_launch_quantise_h(const mf_cuda_experts *call, void *stream)
{
    return quantise_launch(call, 1, (cudaStream_t)stream);
}

int mf_cuda_launch_copy_x(const mf_cuda_experts *call, void *copy, void *stream)
{
    const int64_t blocks = (call->num_tokens * call->hidden_size + 255) / 256;
    copy_rows<<<(unsigned)(blocks < 8192 ? blocks : 8192), 256, 0, (cudaStream_t)stream>>>(*call, (uint16_t *)copy);
    return (int)cudaGetLastError();
}

int mf_cuda_launch_zero_rows(const mf_cuda_experts *call, void *stream)
{
    const int64_t blocks = (call->num_pairs + 7) / 8;
    zero_rows<<<(unsigned)(blocks < 4096 ? blocks : 4096), 256, 0, (cudaStream_t)stream>>>(*call);
    return (int)cudaGetLastError();
}

int mf_cuda_launch_plain(const mf_cuda_experts *call, int second, void *stream)
{
    const int64_t rows = second ? call->hidden_size : call->max_width, columns = second ? call->max_width : call->hidden_size;
    const size_t bytes = (size_t)(columns + (columns + 127) / 128) * 4;
    const dim3 grid((unsigned)((rows + ROWS - 1) / ROWS), (unsigned)(call->num_pairs < 65535 ? call->num_pairs : 65535));
    cudaError_t error = cudaSuccess;
    if (bytes > 32 * 1024) {
        error = cudaFuncSetAttribute(second ? plain_down : plain_up, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    }
    if (error == cudaSuccess) {
        if (second) {
            plain_down<<<grid, WARPS * 32, bytes, (cudaStream_t)stream>>>(*call);
        } else {
            plain_up<<<grid, WARPS * 32, bytes, (cudaStream_t)stream>>>(*call);
        }
        error = cudaGetLastError();
    }
    return (int)error;
}
