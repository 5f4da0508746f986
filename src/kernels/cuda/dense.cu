/* dense.cu - the operations of a model that work on rows and elements: embed, norm, rope, cache writes, and the like.
 *
 * Every element's arithmetic is that of kernels/ref/dense.c; the norm's sum has an order that its width alone
 * decides. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/matrix.cuh"
#include "kernels/cuda/sm90.cuh"

namespace
{

constexpr int THREADS = 256;

int64_t blocks_for(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}

/* n of something, `each` a block. */
template <typename Kernel, typename... Args>
int launch_rows(Kernel kernel, int64_t n, int64_t each, void *stream, Args... args)
{
    return launch_early(kernel, dim3((unsigned)blocks_for(n, each)), THREADS, (size_t)0, stream, args...);
}

/* ---- embed ---- */

template <int FORMAT>
__global__ void embed_kernel(const mf_cuda_matrix table, const int32_t *ids, float *out, int64_t out_stride)
{
    begin_early();
    const int64_t t = blockIdx.x, k = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (k < table.k) {
        out[t * out_stride + k] = matrix_value<FORMAT>(table, ids[t], k);
    }
}

/* ---- norm ---- */

/* WARPS warps take a row; one: eight rows share a block.  A thread keeps up to KEPT elements between the two passes. */
template <int WARPS> __global__ void __launch_bounds__(THREADS) norm_kernel(const __grid_constant__ mf_cuda_norm p)
{
    constexpr int KEPT = 8;
    __shared__ float parts[WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t t = WARPS == 1 ? (int64_t)blockIdx.x * (THREADS / 32) + warp : blockIdx.x;
    const int first = WARPS == 1 ? lane : threadIdx.x;
    const bool is_mine = t < p.num_tokens;
    float weight[KEPT], v[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t i = first + k * WARPS * 32;
        weight[k] = i < p.n ? p.weight[i] : 0.0f;
    }
    begin_early();
    if (WARPS == 1 && !is_mine) {
        return;
    }
    const float *row = p.x + t * p.x_stride, *add = p.add ? p.add + t * p.n : NULL;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t i = first + k * WARPS * 32;
        v[k] = i < p.n ? row[i] : 0.0f;
        v[k] = add && i < p.n ? __fadd_rn(v[k], add[i]) : v[k];
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t i = first + k * WARPS * 32;
        if (add && i < p.n) {
            p.acc[t * p.x_stride + i] = v[k];
        }
        sum = __fmaf_rn(v[k], v[k], sum);
    }
    for (int64_t i = first + KEPT * WARPS * 32; i < p.n; i += WARPS * 32) {
        float x = row[i];
        if (add) {
            x = __fadd_rn(x, add[i]);
            p.acc[t * p.x_stride + i] = x;
        }
        sum = __fmaf_rn(x, x, sum);
    }
    sum = sum_of(sum);
    if (WARPS > 1) {
        if (lane == 0) {
            parts[warp] = sum;
        }
        __syncthreads();
        sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            sum = __fadd_rn(sum, parts[w]);
        }
    }
    const float scale = norm_scale(sum, p.n, p.eps);
    auto store = [&](int64_t i, float x, float w) {
        const float y = __fmul_rn(__fmul_rn(x, scale), w);
        if (p.out) {
            p.out[t * p.out_stride + i] = y;
        }
        if (p.planes) {
            float part[3];
            split_bf16(y, part);
#pragma unroll
            for (int k = 0; k < 3; k++) {
                p.planes[(k * p.num_tokens + t) * p.n + i] = f32_to_bf16(part[k]);
            }
        }
        if (p.rounded) {
            p.rounded[t * p.n + i] = f32_to_bf16(y);
        }
    };
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t i = first + k * WARPS * 32;
        if (i < p.n) {
            store(i, v[k], weight[k]);
        }
    }
    const float *sums = add ? p.acc + t * p.x_stride : row;
    for (int64_t i = first + KEPT * WARPS * 32; i < p.n; i += WARPS * 32) {
        store(i, sums[i], p.weight[i]);
    }
}

/* norm_kernel<8> of many rows without gaps, whose result nobody reads in f32: so many blocks a multiprocessor that
 * loads, sums and stores of different rows overlap.  SPLITS: what rounding leaves, too. */
template <bool ADDS, bool SPLITS>
__global__ void __launch_bounds__(THREADS, 8) norm_rows_kernel(const __grid_constant__ mf_cuda_norm p)
{
    constexpr int KEPT = 8, WARPS = THREADS / 32;
    __shared__ float parts[WARPS];
    begin_early();
    const int n = (int)p.n;
    const int64_t row = blockIdx.x * p.n;
    float *x = p.acc + row;
    const float *add = p.add + row;
    auto store = [&](int i, float v, float scale) {
        const float y = __fmul_rn(__fmul_rn(v, scale), p.weight[i]);
        const uint16_t high = f32_to_bf16(y);
        p.rounded[row + i] = high;
        if (SPLITS) { /* linear_input.cuh's split_bf16; what is left is a number */
            const float rest = (high & 0x7f80u) != 0x7f80u ? __fsub_rn(y, bf16_to_f32(high)) : 0.0f;
            const uint32_t middle = pack_bf16(rest, 0.0f);
            p.rests[row + i] = (uint16_t)middle;
            p.rests[row + p.num_tokens * p.n + i] =
                (uint16_t)pack_bf16(__fsub_rn(rest, __uint_as_float(middle << 16)), 0.0f);
        }
    };
    float v[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = threadIdx.x + k * THREADS;
        v[k] = i < n ? x[i] : 0.0f;
    }
    if (ADDS) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int i = threadIdx.x + k * THREADS;
            v[k] = i < n ? __fadd_rn(v[k], add[i]) : v[k];
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (ADDS && i < n) {
            x[i] = v[k];
        }
        sum = __fmaf_rn(v[k], v[k], sum);
    }
    for (int i = threadIdx.x + KEPT * THREADS; i < n; i += THREADS) {
        float one = x[i];
        if (ADDS) {
            one = __fadd_rn(one, add[i]);
            x[i] = one;
        }
        sum = __fmaf_rn(one, one, sum);
    }
    sum = sum_of(sum);
    if ((threadIdx.x & 31) == 0) {
        parts[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        sum = __fadd_rn(sum, parts[w]);
    }
    const float scale = norm_scale(sum, p.n, p.eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int i = threadIdx.x + k * THREADS;
        if (i < n) {
            store(i, v[k], scale);
        }
    }
    for (int i = threadIdx.x + KEPT * THREADS; i < n; i += THREADS) {
        store(i, x[i], scale);
    }
}

/* ---- rope ---- */

__global__ void rope_kernel(float *x, int64_t row_stride, int num_vectors, int64_t vector_stride, int dim, int pair,
                            const float *cos_sin, const int32_t *position, int64_t count)
{
    begin_early();
    const int half = dim / 2;
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= count) {
        return;
    }
    const int i = (int)(at % half);
    const int64_t v = at / half % num_vectors, t = at / half / num_vectors;
    const float *table = cos_sin + (int64_t)position[t] * dim;
    float *vector = x + t * row_stride + v * vector_stride;
    float *a = pair ? vector + 2 * i : vector + i, *b = pair ? vector + 2 * i + 1 : vector + i + half;
    const float c = table[2 * i], s = table[2 * i + 1], a0 = *a, b0 = *b;
    *a = __fsub_rn(__fmul_rn(a0, c), __fmul_rn(b0, s));
    *b = __fadd_rn(__fmul_rn(b0, c), __fmul_rn(a0, s));
}

/* ---- cache ---- */

__global__ void kv_write_kernel(const mf_cuda_kv_write p)
{
    begin_early();
    const int64_t t = blockIdx.x, i = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (i >= p.row_size) {
        return;
    }
    const int64_t position = p.position[t];
    const int64_t block = p.block_table[(int64_t)p.sequence[t] * p.max_blocks + position / p.block_size];
    const int64_t to = (block * p.block_size + position % p.block_size) * p.row_size + i;
    const float v = p.rows[t * p.rows_stride + i];
    if (p.is_bf16) {
        ((uint16_t *)p.cache)[to] = f32_to_bf16(v);
    } else {
        ((float *)p.cache)[to] = v;
    }
}

/* ---- between the projections and grouped-query attention ---- */

/* Positions, tables and weights are no kernel's work: they are read before the kernels in front have ended. */
template <int KEPT>
__global__ void __launch_bounds__(THREADS) gqa_prepare_kernel(const __grid_constant__ mf_cuda_gqa_prepare p)
{
    __shared__ float rooms[THREADS / 32][KEPT * 32];
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, skipped = p.leaves_queries ? p.num_heads : 0,
              parts = p.num_heads - skipped + 2 * p.num_kv_heads;
    const int64_t at = (int64_t)blockIdx.x * (THREADS / 32) + warp, t = at / parts;
    const int part = skipped + (int)(at % parts);
    if (t >= p.num_tokens) {
        wait_for_previous();
        return;
    }
    const bool is_query = part < p.num_heads, is_value = part >= p.num_heads + p.num_kv_heads;
    const int kv_head = is_query ? 0 : (part - p.num_heads) % p.num_kv_heads;
    const int64_t position = p.position[t];
    const int64_t block = p.block_table[(int64_t)p.sequence[t] * p.max_blocks + position / p.block_size];
    const int keys = p.num_kv_heads * p.head_dim, dim = is_value ? p.values / p.num_kv_heads : p.head_dim;
    const int in_row = (is_value ? keys : 0) + kv_head * dim;
    const int64_t row = (block * p.block_size + position % p.block_size) * p.row_size + in_row;
    const float *norm = is_value ? NULL : is_query ? p.q_norm : p.k_norm;
    float2 angle[KEPT];
    float v[KEPT], weight[KEPT];
    if (!is_value && p.rope_dim > 0) {
        load_angles(angle, p.rope_dim, p.rope_pair, p.cos_sin + position * p.rope_dim, lane);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        weight[k] = norm && k * 32 + lane < dim ? norm[k * 32 + lane] : 0.0f;
    }
    wait_for_previous();
    float *x = is_query ? p.q + (t * p.num_heads + part) * dim : p.rows + t * p.row_size + in_row;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        v[k] = k * 32 + lane < dim ? x[k * 32 + lane] : 0.0f;
    }
    if (norm && !p.norm_after_rope) {
        norm_head(v, dim, weight, p.eps, lane);
    }
    if (!is_value && p.rope_dim > 0) {
        rotate_head(v, rooms[warp], p.rope_dim, p.rope_pair, angle, lane);
    }
    if (norm && p.norm_after_rope) {
        norm_head(v, dim, weight, p.eps, lane);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int e = k * 32 + lane;
        if (e < dim && is_query) {
            x[e] = v[k];
        } else if (e < dim) {
            store_cached(p, row + e, v[k]);
        }
    }
    for (int e = KEPT * 32 + lane; is_value && e < dim; e += 32) { /* heads are no longer, values may be */
        store_cached(p, row + e, x[e]);
    }
}

__global__ void __launch_bounds__(THREADS) mla_prepare_kernel(const __grid_constant__ mf_cuda_mla_prepare p)
{
    let_next_start();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, parts = p.num_heads + 1, half = p.rope / 2;
    const int64_t at = (int64_t)blockIdx.x * (THREADS / 32) + warp, t = at / parts;
    const int part = (int)(at % parts);
    if (t >= p.num_tokens) {
        wait_for_previous();
        return;
    }
    if (part == p.num_heads) {
        cache_latent<false>(p, t, lane);
        return;
    }
    const float *table = p.cos_sin + (int64_t)p.position[t] * p.rope; /* nobody writes them: no need to wait */
    float *query = p.q + (t * p.num_heads + part) * (p.nope + p.rope) + p.nope;
    const float2 angle = lane < half ? *(const float2 *)(table + 2 * lane) : make_float2(1.0f, 0.0f);
    wait_for_previous();
    for (int i = lane; i < half; i += 32) {
        const int first = p.rope_pair ? 2 * i : i, second = p.rope_pair ? 2 * i + 1 : i + half;
        const float2 v = rotated(query[first], query[second], i == lane ? angle : *(const float2 *)(table + 2 * i));
        query[first] = v.x;
        query[second] = v.y;
    }
}

/* ---- between host and device ---- */

/* The kernels behind read what it brings before they wait for the one in front of them, so it lets nobody start before
 * its end, with its stores done. */
__global__ void __launch_bounds__(1024)
    carry_kernel(uint32_t *to, const uint32_t *from, int64_t words, uint32_t *zeros, int64_t num_zeros)
{
    wait_for_previous();
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first * 4; i < words; i += step * 4) {
        if (i + 4 <= words) {
            *(uint4 *)(to + i) = __ldcv((const uint4 *)(from + i));
        } else {
            for (int64_t k = i; k < words; k++) {
                to[k] = __ldcv(from + k);
            }
        }
    }
    for (int64_t i = first; i < num_zeros; i += step) {
        zeros[i] = 0;
    }
    __threadfence();
}

/* ---- elements ---- */

__global__ void sigmoid_gate_kernel(float *x, int64_t x_stride, const float *gate, int64_t gate_stride, int64_t n,
                                    int64_t count)
{
    begin_early();
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < count) {
        const int64_t r = at / n, i = at % n;
        const float g = gate[r * gate_stride + i];
        x[r * x_stride + i] = __fmul_rn(x[r * x_stride + i], __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-g))));
    }
}

__global__ void convert_kernel(const float *x, int64_t x_stride, int64_t n, int64_t count, bool is_bf16, uint16_t *out)
{
    begin_early();
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < count) {
        const float v = x[at / n * x_stride + at % n];
        out[at] = is_bf16 ? f32_to_bf16(v) : f32_to_f16(v);
    }
}

/* Four at a time: n is a multiple of 4, all aligned. */
__global__ void convert_wide_kernel(const float *x, int64_t x_stride, int64_t n, int64_t count, uint16_t *out)
{
    begin_early();
    const int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (at < count) {
        const float4 v = *(const float4 *)(x + at / n * x_stride + at % n);
        *(uint2 *)(out + at) = make_uint2((uint32_t)f32_to_bf16(v.x) | (uint32_t)f32_to_bf16(v.y) << 16,
                                          (uint32_t)f32_to_bf16(v.z) | (uint32_t)f32_to_bf16(v.w) << 16);
    }
}

__global__ void clip_kernel(float *x, int64_t n, float limit)
{
    begin_early();
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) {
        const float v = x[i];
        x[i] = v > limit ? limit : v < -limit ? -limit : v;
    }
}

__global__ void scale_rows_kernel(float *x, int64_t n, const float *factors, const int32_t *position, int64_t count)
{
    begin_early();
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < count) {
        x[at] = __fmul_rn(x[at], factors[position[at / n]]);
    }
}

__global__ void add_kernel(float *acc, const float *x, int64_t n)
{
    begin_early();
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) {
        acc[i] = __fadd_rn(acc[i], x[i]);
    }
}

__global__ void glu_kernel(float *gate, const float *up, int64_t n)
{
    begin_early();
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) {
        const float g = gate[i];
        gate[i] = __fmul_rn(__fmul_rn(g, __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-g)))), up[i]);
    }
}

/* ---- the largest logit ---- */

constexpr int BEST_EACH = 4096; /* columns of a block */

/* Order of keys: the number's, the lower id first among equals; zeros are equal whatever their sign. */
__global__ void __launch_bounds__(THREADS)
    best_kernel(const float *logits, int64_t n, int64_t num_ids, unsigned long long *keys)
{
    begin_early();
    const float *row = logits + blockIdx.y * n;
    const int64_t end = ((int64_t)blockIdx.x + 1) * BEST_EACH < n ? ((int64_t)blockIdx.x + 1) * BEST_EACH : n;
    unsigned long long best = 0;
    for (int64_t i = (int64_t)blockIdx.x * BEST_EACH + threadIdx.x; i < end; i += THREADS) {
        const float v = row[i];
        const bool is_bad = is_nan(v) || v == __uint_as_float(0x7f800000u);
        const unsigned long long key =
            is_bad        ? ~0ull
            : i < num_ids ? (unsigned long long)ordered(__fadd_rn(v, 0.0f)) << 32 | (0xffffffffu - (uint32_t)i)
                          : 0;
        best = key > best ? key : best;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(MF_FULL_WARP, best, step);
        best = other > best ? other : best;
    }
    if ((threadIdx.x & 31) == 0) {
        atomicMax(keys + blockIdx.y, best);
    }
}

/* ---- random values: weights_dummy.c's next_sums, from any place of the sequence ---- */

MF_DEV uint64_t random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A thread makes the values of one random number: two, or one byte. */
template <typename T, bool BYTES>
__global__ void fill_kernel(T *data, int64_t count, int64_t chunk, uint64_t seed, const uint32_t *codes)
{
    begin_early();
    constexpr int EACH = BYTES ? 1 : 2;
    __shared__ uint32_t table[MF_CUDA_FILL_CODES];
    if (!BYTES) {
        for (int i = threadIdx.x; i < MF_CUDA_FILL_CODES; i += THREADS) {
            table[i] = codes[i];
        }
        __syncthreads();
    }
    for (int64_t draw = (int64_t)blockIdx.x * THREADS + threadIdx.x; draw * EACH < count;
         draw += (int64_t)gridDim.x * THREADS) {
        const int64_t at = draw * EACH, in_chunk = at % chunk / EACH; /* chunks are even */
        const uint64_t start = random_mix(seed + (uint64_t)(at / chunk));
        uint64_t u = random_mix(start + (uint64_t)(in_chunk + 1) * 0x9e3779b97f4a7c15u);
        if (BYTES) {
            data[at] = (T)(u >> 56);
            continue;
        }
        const uint64_t bytes = 0x00ff00ff00ff00ffu, halves = 0x0000ffff0000ffffu;
        u = (u & bytes) + (u >> 8 & bytes);
        u = (u & halves) + (u >> 16 & halves);
        data[at] = (T)table[(uint32_t)u];
        if (at + 1 < count) {
            data[at + 1] = (T)table[(uint32_t)(u >> 32)];
        }
    }
}

} // namespace

int mf_cuda_launch_embed(const mf_cuda_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                         int64_t out_stride, void *stream)
{
    const dim3 grid((unsigned)num_tokens, (unsigned)blocks_for(table->k, THREADS));
    return with_format(table->format, [&](auto f) {
        return launch_early(embed_kernel<decltype(f)::value>, grid, THREADS, (size_t)0, stream, *table, ids, out,
                            out_stride);
    });
}

int mf_cuda_launch_norm(const mf_cuda_norm *call, void *stream)
{
    if (call->n <= 256) {
        return launch_rows(norm_kernel<1>, call->num_tokens, THREADS / 32, stream, *call);
    }
    return launch_rows(norm_kernel<8>, call->num_tokens, 1, stream, *call);
}

int mf_cuda_launch_carry(void *to, const void *from, int64_t bytes, void *zeros, int64_t zero_bytes, void *stream)
{
    const int64_t words = bytes / 4, num_zeros = zero_bytes / 4;
    const int64_t wanted = blocks_for(words / 4 + 1 > num_zeros ? words / 4 + 1 : num_zeros, 1024);
    return launch_early(carry_kernel, dim3((unsigned)(wanted < 8 ? wanted : 8)), 1024u, (size_t)0, stream,
                        (uint32_t *)to, (const uint32_t *)from, words, (uint32_t *)zeros, num_zeros);
}

int mf_cuda_launch_norm_rows(const mf_cuda_norm *call, void *stream)
{
    auto kernel = call->add     ? call->rests ? norm_rows_kernel<true, true> : norm_rows_kernel<true, false>
                      : call->rests ? norm_rows_kernel<false, true>
                                : norm_rows_kernel<false, false>;
    return launch_rows(kernel, call->num_tokens, 1, stream, *call);
}

int mf_cuda_launch_rope(float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride, int64_t dim, int pair,
                        const float *cos_sin, const int32_t *position, int64_t num_tokens, void *stream)
{
    const int64_t count = num_tokens * num_vectors * (dim / 2);
    return count == 0 ? 0
                      : launch_rows(rope_kernel, count, THREADS, stream, x, row_stride, (int)num_vectors, vector_stride,
                                    (int)dim, pair, cos_sin, position, count);
}

int mf_cuda_launch_kv_write(const mf_cuda_kv_write *call, void *stream)
{
    const dim3 grid((unsigned)call->num_tokens, (unsigned)blocks_for(call->row_size, THREADS));
    return launch_early(kv_write_kernel, grid, THREADS, (size_t)0, stream, *call);
}

int mf_cuda_launch_gqa_prepare(const mf_cuda_gqa_prepare *call, void *stream)
{
    const int64_t parts = (call->leaves_queries ? 0 : call->num_heads) + 2 * call->num_kv_heads,
                  warps = call->num_tokens * parts;
    want_all_shared(gqa_prepare_kernel<4>);
    return call->head_dim <= 128 ? launch_rows(gqa_prepare_kernel<4>, warps, THREADS / 32, stream, *call)
                                 : launch_rows(gqa_prepare_kernel<8>, warps, THREADS / 32, stream, *call);
}

int mf_cuda_launch_mla_prepare(const mf_cuda_mla_prepare *call, void *stream)
{
    const int64_t warps = call->num_tokens * (call->num_heads + 1);
    want_all_shared(mla_prepare_kernel);
    return launch_rows(mla_prepare_kernel, warps, THREADS / 32, stream, *call);
}

int mf_cuda_launch_sigmoid_gate(float *x, int64_t x_stride, const float *gate, int64_t gate_stride, int64_t num_rows,
                                int64_t n, void *stream)
{
    return launch_rows(sigmoid_gate_kernel, num_rows * n, THREADS, stream, x, x_stride, gate, gate_stride, n,
                       num_rows * n);
}

int mf_cuda_launch_convert(const float *x, int64_t x_stride, int64_t num_rows, int64_t n, int dtype, void *out,
                           void *stream)
{
    const int64_t count = num_rows * n;
    const bool is_wide = n % 4 == 0 && x_stride % 4 == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)out % 8 == 0;
    if (dtype == MF_BF16 && is_wide) {
        return launch_rows(convert_wide_kernel, count, 4 * THREADS, stream, x, x_stride, n, count, (uint16_t *)out);
    }
    return launch_rows(convert_kernel, count, THREADS, stream, x, x_stride, n, count, dtype == MF_BF16,
                       (uint16_t *)out);
}

int mf_cuda_launch_clip(float *x, int64_t n, float limit, void *stream)
{
    return launch_rows(clip_kernel, n, THREADS, stream, x, n, limit);
}

int mf_cuda_launch_scale_rows(float *x, int64_t n, const float *factors, const int32_t *position, int64_t num_tokens,
                              void *stream)
{
    return launch_rows(scale_rows_kernel, num_tokens * n, THREADS, stream, x, n, factors, position, num_tokens * n);
}

int mf_cuda_launch_add(float *acc, const float *x, int64_t n, void *stream)
{
    return launch_rows(add_kernel, n, THREADS, stream, acc, x, n);
}

int mf_cuda_launch_glu(float *gate, const float *up, int64_t n, void *stream)
{
    return launch_rows(glu_kernel, n, THREADS, stream, gate, up, n);
}

int mf_cuda_launch_best(const float *logits, int64_t num_rows, int64_t n, int64_t num_ids, uint64_t *keys, void *stream)
{
    const dim3 grid((unsigned)blocks_for(n, BEST_EACH), (unsigned)num_rows);
    return launch_early(best_kernel, grid, THREADS, (size_t)0, stream, logits, n, num_ids, (unsigned long long *)keys);
}

int mf_cuda_launch_fill(void *data, int64_t count, int64_t chunk, uint64_t seed, int size, const uint32_t *codes,
                        void *stream)
{
    const int64_t wanted = blocks_for(count, 2 * THREADS);
    const unsigned blocks = (unsigned)(wanted < 2048 ? wanted : 2048);
    cudaStream_t s = (cudaStream_t)stream;
    if (!codes) {
        fill_kernel<uint8_t, true><<<blocks, THREADS, 0, s>>>((uint8_t *)data, count, chunk, seed, codes);
    } else if (size == 1) {
        fill_kernel<uint8_t, false><<<blocks, THREADS, 0, s>>>((uint8_t *)data, count, chunk, seed, codes);
    } else if (size == 2) {
        fill_kernel<uint16_t, false><<<blocks, THREADS, 0, s>>>((uint16_t *)data, count, chunk, seed, codes);
    } else {
        fill_kernel<uint32_t, false><<<blocks, THREADS, 0, s>>>((uint32_t *)data, count, chunk, seed, codes);
    }
    return (int)cudaGetLastError();
}
