/* attention.cu - attention in f32 arithmetic over a cache of f32 or bf16, any sizes; the merge of spans; what MLA needs
 * of kv_b before and after.
 *
 * A block takes one row of the batch, one kv head and up to HEADS of its queries' heads.  A warp sums a score: lane l
 * takes elements l, l + 32, .., one tree; values are summed by ascending position. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/matrix.cuh"

namespace
{

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int HEADS = 8;

template <bool BF16> MF_DEV float cached(const void *cache, int64_t i)
{
    return BF16 ? bf16_to_f32(((const uint16_t *)cache)[i]) : ((const float *)cache)[i];
}

MF_DEV float warp_max(float v)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        v = fmaxf(v, __shfl_xor_sync(MF_FULL_WARP, v, step));
    }
    return v;
}

MF_DEV float warp_sum(float v)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        v = __fadd_rn(v, __shfl_xor_sync(MF_FULL_WARP, v, step));
    }
    return v;
}

struct layout {
    float *q, *weights, *values, *maximum, *sum, *of_old, *of_next;
    int64_t *offsets;
};

template <bool BF16>
__global__ void __launch_bounds__(THREADS) plain_kernel(const __grid_constant__ mf_cuda_attention p)
{
    begin_early();
    extern __shared__ __align__(16) uint8_t shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int group = p.num_heads / p.num_kv_heads, tiles = (group + p.heads_at_once - 1) / p.heads_at_once;
    const int kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles;
    const int head0 = kv_head * group + tile * p.heads_at_once;
    const int left = group - tile * p.heads_at_once, heads = left < p.heads_at_once ? left : p.heads_at_once;
    const int64_t t = blockIdx.x, position = p.position[t], first = first_seen(p, position);
    const int32_t *blocks = p.block_table + (int64_t)p.sequence[t] * p.max_blocks;
    layout s;
    s.offsets = (int64_t *)shared;
    s.q = (float *)(s.offsets + SPAN);
    s.weights = s.q + HEADS * p.head_dim;
    s.values = s.weights + HEADS * SPAN;
    s.maximum = s.values + HEADS * p.v_dim;
    s.sum = s.maximum + HEADS;
    s.of_old = s.sum + HEADS;
    s.of_next = s.of_old + HEADS;

    const int plain_dim = p.head_dim - p.tail_dim;
    for (int i = threadIdx.x; i < HEADS * p.head_dim; i += THREADS) {
        const int h = i / p.head_dim, k = i % p.head_dim;
        s.q[i] = h >= heads      ? 0.0f
                 : k < plain_dim ? p.q[t * p.q_stride + (head0 + h) * p.q_head_stride + k]
                                 : p.q_tail[t * p.tail_stride + (head0 + h) * p.tail_head_stride + k - plain_dim];
    }
    if (threadIdx.x < heads) {
        s.maximum[threadIdx.x] = start_maximum(p, head0 + threadIdx.x);
        s.sum[threadIdx.x] = start_sum(p);
    }
    const bool is_split = p.num_splits > 1;
    for (int64_t span = is_split ? first / SPAN + blockIdx.z : first / SPAN; span <= position / SPAN;
         span += p.num_splits) {
        const int64_t begin = span * SPAN < first ? first : span * SPAN;
        const int64_t end = (span + 1) * SPAN < position + 1 ? (span + 1) * SPAN : position + 1;
        const int n = (int)(end - begin);
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += THREADS) {
            s.offsets[i] = row_offset(p, blocks, begin + i);
        }
        __syncthreads();
        for (int i = warp; i < n; i += WARPS) {
            const int64_t row = s.offsets[i] + (int64_t)kv_head * p.head_dim;
            float acc[HEADS];
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                acc[h] = 0.0f;
            }
            for (int k = lane; k < p.head_dim; k += 32) {
                const float key = cached<BF16>(p.cache, row + k);
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    acc[h] = __fmaf_rn(s.q[h * p.head_dim + k], key, acc[h]);
                }
            }
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const float score = warp_sum(acc[h]);
                if (lane == 0) {
                    s.weights[h * SPAN + i] = __fmul_rn(p.scale, score);
                }
            }
        }
        __syncthreads();
        for (int h = warp; h < heads; h += WARPS) {
            float most = minus_infinity();
            for (int i = lane; i < n; i += 32) {
                most = fmaxf(most, s.weights[h * SPAN + i]);
            }
            most = warp_max(most);
            float sum = 0.0f;
            for (int i = lane; i < n; i += 32) {
                const float score = s.weights[h * SPAN + i];
                const float weight = score == minus_infinity() ? 0.0f : expf(__fsub_rn(score, most));
                s.weights[h * SPAN + i] = weight;
                sum = __fadd_rn(sum, weight);
            }
            sum = warp_sum(sum);
            if (lane == 0) {
                if (is_split) {
                    float *piece = piece_of(p, t, head0 + h, span);
                    piece[0] = most;
                    piece[1] = sum;
                } else {
                    float m = s.maximum[h], of_old, of_next;
                    merge_factors(m, most, of_old, of_next);
                    s.sum[h] = merged(s.sum[h], of_old, sum, of_next);
                    s.maximum[h] = m;
                    s.of_old[h] = of_old;
                    s.of_next[h] = of_next;
                }
            }
        }
        __syncthreads();
        for (int j = threadIdx.x; j < p.v_dim; j += THREADS) {
            float acc[HEADS];
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                acc[h] = 0.0f;
            }
            const int64_t column = p.value_at + (int64_t)kv_head * p.value_step + j;
#pragma unroll 4
            for (int i = 0; i < n; i++) {
                const float value = cached<BF16>(p.cache, s.offsets[i] + column);
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    acc[h] = __fmaf_rn(s.weights[h * SPAN + i], value, acc[h]);
                }
            }
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                if (h < heads && is_split) {
                    piece_of(p, t, head0 + h, span)[2 + j] = acc[h];
                } else if (h < heads) {
                    float &v = s.values[h * p.v_dim + j];
                    const float old = span == first / SPAN ? 0.0f : v;
                    v = merged(old, s.of_old[h], acc[h], s.of_next[h]);
                }
            }
        }
    }
    if (!is_split) {
        __syncthreads();
        for (int i = threadIdx.x; i < heads * p.v_dim; i += THREADS) {
            const int h = i / p.v_dim;
            p.out[(t * p.num_heads + head0) * p.v_dim + i] = __fdiv_rn(s.values[i], s.sum[h]);
        }
    }
}

/* One row and head: pieces in ascending order. */
__global__ void __launch_bounds__(THREADS) merge_kernel(const __grid_constant__ mf_cuda_attention p)
{
    begin_early();
    const int64_t t = blockIdx.x, position = p.position[t], first = first_seen(p, position);
    const int head = blockIdx.y;
    for (int j = threadIdx.x; j < p.v_dim; j += THREADS) {
        float m = start_maximum(p, head), sum = start_sum(p), value = 0.0f;
        for (int64_t span = first / SPAN; span <= position / SPAN; span++) {
            const float *piece = piece_of(p, t, head, span);
            float of_old, of_next;
            merge_factors(m, piece[0], of_old, of_next);
            sum = merged(sum, of_old, piece[1], of_next);
            value = merged(value, of_old, piece[2 + j], of_next);
        }
        p.out[(t * p.num_heads + head) * p.v_dim + j] = __fdiv_rn(value, sum);
    }
}

/* ---- MLA: queries into the latent space ---- */

constexpr int ABSORB_TOKENS = 4, ABSORB_COLUMNS = 64; /* or one token alone */

/* A block takes a head, TOKENS rows and 64 latent columns, two a lane; a warp a quarter of the j, ascending, and
 * the quarters are added in order. */
template <int FORMAT, int TOKENS>
__global__ void __launch_bounds__(THREADS) absorb_kernel(const __grid_constant__ mf_cuda_absorb p)
{
    constexpr int AHEAD =
        TOKENS == 1 ? 32 : 16; /* rows under way together, the first before the kernel in front ends */
    extern __shared__ __align__(16) float queries[]; /* [TOKENS][nope] */
    __shared__ float sums[WARPS][TOKENS][ABSORB_COLUMNS];
    let_next_start();
    const int head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5,
              i = blockIdx.z * ABSORB_COLUMNS + 2 * lane;
    const int64_t t0 = (int64_t)blockIdx.x * TOKENS;
    const int64_t row0 = (int64_t)head * (p.nope + p.v_dim);
    const int begin = (int)((int64_t)warp * p.nope / WARPS), end = (int)((int64_t)(warp + 1) * p.nope / WARPS);
    const bool is_quick = FORMAT == MF_FORMAT_BF16 && p.kv_b.quant && p.rank % 2 == 0; /* two columns at once */
    const uint8_t *from = matrix_row<FORMAT>(p.kv_b, row0) + 2 * (i < p.rank ? i : 0);
    const int64_t step = p.kv_b.row_stride * 2;
    uint32_t pair[AHEAD];
    auto load_rows = [&](int j0) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            pair[k] = *(const uint32_t *)(from + (j0 + k < end ? j0 + k : end - 1) * step);
        }
    };
    if (is_quick && begin < end) {
        load_rows(begin);
    }
    wait_for_previous();
    for (int k = threadIdx.x; k < TOKENS * p.nope; k += THREADS) {
        const int64_t t = t0 + k / p.nope;
        queries[k] = t < p.num_tokens ? p.q[t * p.q_stride + head * p.q_head_stride + k % p.nope] : 0.0f;
    }
    for (int k = threadIdx.x; k < TOKENS * p.tail && blockIdx.z == 0; k += THREADS) {
        const int64_t t = t0 + k / p.tail;
        if (t < p.num_tokens) {
            const float v = p.q[t * p.q_stride + head * p.q_head_stride + p.nope + k % p.tail];
            p.rounded[(t * p.num_heads + head) * (p.rank + p.tail) + p.rank + k % p.tail] =
                f32_to_bf16(__fmul_rn(v, p.scale));
        }
    }
    __syncthreads();
    float acc[TOKENS][2];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        acc[t][0] = acc[t][1] = 0.0f;
    }
    auto add_row = [&](int j, float low, float high) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            acc[t][0] = __fmaf_rn(queries[t * p.nope + j], low, acc[t][0]);
            acc[t][1] = __fmaf_rn(queries[t * p.nope + j], high, acc[t][1]);
        }
    };
    if (is_quick) {
#pragma unroll 1
        for (int j0 = begin; j0 < end; j0 += AHEAD) {
            if (j0 > begin) {
                load_rows(j0);
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (j0 + k < end) {
                    add_row(j0 + k, __uint_as_float(pair[k] << 16), __uint_as_float(pair[k] & 0xffff0000u));
                }
            }
        }
    } else {
        for (int j = begin; j < end; j++) {
            add_row(j, i < p.rank ? matrix_value<FORMAT>(p.kv_b, row0 + j, i) : 0.0f,
                    i + 1 < p.rank ? matrix_value<FORMAT>(p.kv_b, row0 + j, i + 1) : 0.0f);
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        sums[warp][t][2 * lane] = acc[t][0];
        sums[warp][t][2 * lane + 1] = acc[t][1];
    }
    __syncthreads();
    for (int k = threadIdx.x; k < TOKENS * ABSORB_COLUMNS; k += THREADS) {
        const int t = k / ABSORB_COLUMNS, c = k % ABSORB_COLUMNS, column = blockIdx.z * ABSORB_COLUMNS + c;
        if (t0 + t < p.num_tokens && column < p.rank) {
            float v = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                v = __fadd_rn(v, sums[w][t][c]);
            }
            const int64_t row = (t0 + t) * p.num_heads + head;
            if (p.rounded) {
                p.rounded[row * (p.rank + p.tail) + column] = f32_to_bf16(__fmul_rn(v, p.scale));
            } else {
                p.out[row * p.rank + column] = v;
            }
        }
    }
}

} // namespace

int64_t mf_cuda_attention_plain_shared(int heads, int head_dim, int v_dim)
{
    (void)heads;
    return (int64_t)SPAN * 8 + 4 * ((int64_t)HEADS * (head_dim + SPAN + v_dim) + 4 * HEADS);
}

int mf_cuda_launch_attention_plain(const mf_cuda_attention *call, int64_t shared_bytes, void *stream)
{
    mf_cuda_attention p = *call;
    p.heads_at_once = HEADS;
    const int group = p.num_heads / p.num_kv_heads;
    const dim3 grid((unsigned)p.num_tokens, (unsigned)(p.num_kv_heads * ((group + HEADS - 1) / HEADS)),
                    (unsigned)p.num_splits);
    auto kernel = p.cache_is_bf16 ? plain_kernel<true> : plain_kernel<false>;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (error != cudaSuccess) {
        return (int)error;
    }
    return launch_early(kernel, grid, THREADS, (size_t)shared_bytes, stream, p);
}

int mf_cuda_launch_attention_merge(const mf_cuda_attention *call, void *stream)
{
    const dim3 grid((unsigned)call->num_tokens, (unsigned)call->num_heads);
    return launch_early(merge_kernel, grid, THREADS, (size_t)0, stream, *call);
}

template <int FORMAT, int TOKENS> static int launch_absorb(const mf_cuda_absorb *call, void *stream)
{
    const dim3 grid((unsigned)((call->num_tokens + TOKENS - 1) / TOKENS), (unsigned)call->num_heads,
                    (unsigned)((call->rank + ABSORB_COLUMNS - 1) / ABSORB_COLUMNS));
    want_all_shared(absorb_kernel<FORMAT, TOKENS>);
    return launch_early(absorb_kernel<FORMAT, TOKENS>, grid, THREADS, (size_t)TOKENS * (size_t)call->nope * 4, stream,
                        *call);
}

int mf_cuda_launch_absorb(const mf_cuda_absorb *call, void *stream)
{
    if (call->kv_b.format == MF_FORMAT_BF16 && call->num_tokens == 1) {
        return launch_absorb<MF_FORMAT_BF16, 1>(call, stream);
    }
    return with_format(call->kv_b.format,
                       [&](auto f) { return launch_absorb<decltype(f)::value, ABSORB_TOKENS>(call, stream); });
}
