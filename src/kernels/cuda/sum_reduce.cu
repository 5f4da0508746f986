/* sum_reduce.cu - the combine: a few elements of every column a thread, all columns' loads before the first sum; bit-equal to
 * ref/sum_reduce.c.
 *
 * The order of the chain is the contract's whatever the vector width, so narrow and unaligned views take the same code with
 * one element a thread. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sm90.cuh"
#include "kernels/cuda/sum_reduce.cuh"

namespace
{

constexpr int THREADS = 128;
constexpr int BATCH = 8; /* columns whose loads are in flight together */
constexpr int PLAIN_COLUMNS = 10, MAX_Y = 65535;
/* Threads of a block: few tokens take 2 to 3 us, of which starting blocks is a part; many keep more loads under way in small ones. */
constexpr int FEW_THREADS = 256, MANY_THREADS = 128, FEW_TOKENS = 512;

struct bf16_bits {
    uint16_t u;
};
struct f16_bits {
    uint16_t u;
};

MF_DEV float widen(float v)
{
    return v;
}
MF_DEV float widen(bf16_bits v)
{
    return bf16_to_f32(v.u);
}
MF_DEV float widen(f16_bits v)
{
    return f16_to_f32(v.u);
}
MF_DEV double widen(double v)
{
    return v;
}

MF_DEV float fused(float w, float v, float acc)
{
    return __fmaf_rn(w, v, acc);
}
MF_DEV double fused(float w, double v, double acc)
{
    return __fma_rn((double)w, v, acc);
}

template <typename T, int V> struct __align__(V * sizeof(T) == 16 ? 16 : sizeof(T)) pack {
    T v[V];
};

template <typename T, int V> MF_DEV pack<T, V> load_pack(const void *base, int64_t i, bool bytewise)
{
    if (V == 1) {
        pack<T, V> one;
        one.v[0] = load_at<T>(base, i, bytewise);
        return one;
    }
    return *(const pack<T, V> *)((const T *)base + i);
}

template <typename T, int V> MF_DEV pack<T, V> stream_pack(const void *base, int64_t i, bool bytewise)
{
    if (V * sizeof(T) == 16) {
        pack<T, V> r;
        const uint4 q = load_stream((const T *)base + i);
        memcpy(&r, &q, 16);
        return r;
    }
    return load_pack<T, V>(base, i, bytewise);
}

/* Sum: float, or double for f64. */
template <typename T, int V, typename SUM>
MF_DEV void add_terms(const mf_cuda_sum &p, int64_t t, int64_t h, SUM (&r)[V], SUM (&s)[V])
{
    const int routed = p.num_columns - p.num_shared;
    const int64_t x = t * p.x_stride + h;
    for (int c0 = 0; c0 < p.num_columns; c0 += BATCH) {
        float w[BATCH];
        bool use[BATCH];
        pack<T, V> v[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int c = c0 + k;
            use[k] = c < p.num_columns && (!p.ids || load_at<int32_t>(p.ids, t * p.ids_stride + c, p.bytewise) >= 0);
            w[k] = use[k] ? sum_weight(p, t, c) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (use[k]) {
                v[k] = stream_pack<T, V>(p.x, x + (c0 + k) * p.column_stride, p.bytewise);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const int c = c0 + k;
            if (c == routed && p.identity) {
                const float iw = load_at<float>(p.identity, t, p.bytewise);
                const pack<T, V> hidden = load_pack<T, V>(p.hidden, t * p.hidden_stride + h, p.bytewise);
#pragma unroll
                for (int e = 0; e < V; e++) {
                    r[e] = fused(iw, widen(hidden.v[e]), r[e]);
                }
            }
            if (use[k]) {
                if (c < routed) {
#pragma unroll
                    for (int e = 0; e < V; e++) {
                        r[e] = fused(w[k], widen(v[k].v[e]), r[e]);
                    }
                } else {
#pragma unroll
                    for (int e = 0; e < V; e++) {
                        s[e] = fused(w[k], widen(v[k].v[e]), s[e]);
                    }
                }
            }
        }
    }
    if (p.identity && p.num_columns % BATCH == 0 && routed == p.num_columns) { /* the loop above ended at it */
        const float iw = load_at<float>(p.identity, t, p.bytewise);
        const pack<T, V> hidden = load_pack<T, V>(p.hidden, t * p.hidden_stride + h, p.bytewise);
#pragma unroll
        for (int e = 0; e < V; e++) {
            r[e] = fused(iw, widen(hidden.v[e]), r[e]);
        }
    }
    for (int a = 0; a < p.num_addends; a++) {
        const float w = addend_weight(p, t, a);
        const pack<T, V> v = load_pack<T, V>(p.addends[a], t * p.addend_strides[a] + h, p.bytewise);
#pragma unroll
        for (int e = 0; e < V; e++) {
            s[e] = fused(w, widen(v.v[e]), s[e]);
        }
    }
}

/* The last steps of a row's V elements, and their store. */
template <int V> MF_DEV void finish_row(const mf_cuda_sum &p, int64_t t, int64_t h, const float (&r)[V], const float (&s)[V])
{
    float out[V];
#pragma unroll
    for (int e = 0; e < V; e++) {
        out[e] = __fmaf_rn(p.factor, r[e], s[e]);
    }
    if (p.residual) {
#pragma unroll
        for (int e = 0; e < V; e++) {
            out[e] = __fadd_rn(out[e], load_float(p.residual, p.out_dtype, t * p.residual_stride + h + e, p.bytewise));
        }
    }
    const int64_t at = t * p.out_stride + h;
    if (V == 8 && p.out_dtype != MF_F32) {
        uint32_t packed[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t low = p.out_dtype == MF_BF16 ? f32_to_bf16(out[2 * e % V]) : f32_to_f16(out[2 * e % V]);
            const uint32_t high =
                p.out_dtype == MF_BF16 ? f32_to_bf16(out[(2 * e + 1) % V]) : f32_to_f16(out[(2 * e + 1) % V]);
            packed[e] = low | high << 16;
        }
        *(uint4 *)((uint16_t *)p.out + at) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    } else {
#pragma unroll
        for (int e = 0; e < V; e++) {
            store_float(p.out, p.out_dtype, at + e, out[e], p.bytewise);
        }
    }
}

/* ---- the usual combine: x, weights, ids and a residual, aligned; every load of a row before the first sum ----
 *
 * Plain loads: hints to stream past the caches cost more than they save, since what is combined was just written. */

/* What it needs, close together. */
struct plain_call {
    const void *x;
    const int32_t *ids;
    const float *weights;
    const void *residual;
    void *out;
    int64_t x_stride, column_stride, ids_stride, weights_stride, residual_stride, out_stride, num_tokens;
    int32_t hidden_size, num_columns, routed, out_dtype;
    float factor;
};

MF_DEV uint32_t pair_of(int dtype, float low, float high)
{
    return dtype == MF_BF16 ? pack_bf16(low, high) : (uint32_t)f32_to_f16(low) | (uint32_t)f32_to_f16(high) << 16;
}

/* V = 4 aligned elements of `out`'s type as f32. */
template <int V> MF_DEV void load_elements(const void *base, int dtype, int64_t at, float (&v)[V])
{
    static_assert(V == 4, "one load");
    if (dtype == MF_F32) {
        const float4 q = *(const float4 *)((const float *)base + at);
        v[0] = q.x;
        v[1] = q.y;
        v[2] = q.z;
        v[3] = q.w;
        return;
    }
    const uint2 q = *(const uint2 *)((const uint16_t *)base + at);
    const uint32_t pairs[2] = { q.x, q.y };
#pragma unroll
    for (int e = 0; e < V; e++) {
        const uint16_t h = (uint16_t)(pairs[e / 2] >> (e % 2 * 16));
        v[e] = dtype == MF_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
    }
}

template <int V> MF_DEV void store_elements(void *base, int dtype, int64_t at, const float (&v)[V])
{
    static_assert(V == 4, "one store");
    if (dtype == MF_F32) {
        *(float4 *)((float *)base + at) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        *(uint2 *)((uint16_t *)base + at) = make_uint2(pair_of(dtype, v[0], v[1]), pair_of(dtype, v[2], v[3]));
    }
}

/* V elements of a column: one load. */
template <typename T, int V> struct __align__(V * sizeof(T)) column_pack {
    T v[V];
};

/* The chain over the columns in use. */
template <typename T, int V, int C>
MF_DEV void chain(const plain_call &p, const column_pack<T, V> (&v)[C], const float (&w)[C], const bool (&use)[C], float (&r)[V])
{
    float s[V];
#pragma unroll
    for (int e = 0; e < V; e++) {
        r[e] = s[e] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < C; c++) {
        if (use[c] && c < p.routed) {
#pragma unroll
            for (int e = 0; e < V; e++) {
                r[e] = fused(w[c], widen(v[c].v[e]), r[e]);
            }
        } else if (use[c]) {
#pragma unroll
            for (int e = 0; e < V; e++) {
                s[e] = fused(w[c], widen(v[c].v[e]), s[e]);
            }
        }
    }
#pragma unroll
    for (int e = 0; e < V; e++) {
        r[e] = __fmaf_rn(p.factor, r[e], s[e]);
    }
}

/* Of sum_lean_kernel's elements, in their place. */
template <int V> MF_DEV void store_bf16(uint16_t *to, const float (&r)[V])
{
    if constexpr (V == 2) {
        *(uint32_t *)to = pack_bf16(r[0], r[1]);
    } else if constexpr (V == 4) {
        *(uint2 *)to = make_uint2(pack_bf16(r[0], r[1]), pack_bf16(r[2], r[3]));
    } else {
        *(uint4 *)to =
            make_uint4(pack_bf16(r[0], r[1]), pack_bf16(r[2], r[3]), pack_bf16(r[4], r[5]), pack_bf16(r[6], r[7]));
    }
}

/* A row with columns that are skipped, a few at a time: with as few registers as a row without. */
template <int V, int C> MF_DEV void sum_row_with_gaps(const plain_call &p, int64_t t, int h)
{
    constexpr int EACH = 3;
    const bf16_bits *x = (const bf16_bits *)p.x + t * p.x_stride + h;
    float r[V], s[V];
#pragma unroll
    for (int e = 0; e < V; e++) {
        r[e] = s[e] = 0.0f;
    }
#pragma unroll 1
    for (int c0 = 0; c0 < C; c0 += EACH) {
        column_pack<bf16_bits, V> v[EACH];
        bool use[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            use[k] = c0 + k < C && p.ids[t * p.ids_stride + c0 + k] >= 0;
            if (use[k]) {
                v[k] = *(const column_pack<bf16_bits, V> *)(x + (c0 + k) * p.column_stride);
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const float w = use[k] ? p.weights[t * p.weights_stride + c0 + k] : 0.0f;
#pragma unroll
            for (int e = 0; e < V; e++) {
                if (use[k] && c0 + k < p.routed) {
                    r[e] = fused(w, widen(v[k].v[e]), r[e]);
                } else if (use[k]) {
                    s[e] = fused(w, widen(v[k].v[e]), s[e]);
                }
            }
        }
    }
#pragma unroll
    for (int e = 0; e < V; e++) {
        r[e] = __fmaf_rn(p.factor, r[e], s[e]);
    }
    store_bf16<V>((uint16_t *)p.out + t * p.out_stride + h, r);
}

/* bf16 in and out, weights, C columns, a block's row in grid.y: little code, which for few tokens is time, because a
 * launch finds none of it in the caches.  IDS: columns with a negative id are skipped, unread; of many tokens a row
 * without has a way of its own, whose registers hold twice as many bytes under way. */
template <int V, int C, bool IDS, int BLOCK>
__global__ void __launch_bounds__(BLOCK) sum_lean_kernel(const __grid_constant__ plain_call p)
{
    constexpr bool APART = IDS && BLOCK == MANY_THREADS;
    const int h = (int)(blockIdx.x * BLOCK + threadIdx.x) * V;
    let_next_start();
    wait_for_previous();
    if (h >= p.hidden_size) {
        return;
    }
    const int64_t t = blockIdx.y;
    if constexpr (APART) {
        int32_t lowest = 0;
#pragma unroll
        for (int c = 0; c < C; c++) {
            lowest = min(lowest, p.ids[t * p.ids_stride + c]);
        }
        if (lowest < 0) {
            sum_row_with_gaps<V, C>(p, t, h);
            return;
        }
    }
    const bf16_bits *x = (const bf16_bits *)p.x + t * p.x_stride + h;
    const float *weights = p.weights + t * p.weights_stride;
    column_pack<bf16_bits, V> v[C];
    float w[C], r[V];
    bool use[C];
#pragma unroll
    for (int c = 0; c < C; c++) {
        use[c] = !IDS || APART || p.ids[t * p.ids_stride + c] >= 0;
    }
#pragma unroll
    for (int c = 0; c < C; c++) {
        if constexpr (!IDS || APART) {
            uint32_t words[V / 2];
            load_now(x + c * p.column_stride, words); /* all before the first sum */
            memcpy(&v[c], words, sizeof words);
        } else if (use[c]) {
            v[c] = *(const column_pack<bf16_bits, V> *)(x + c * p.column_stride);
        }
    }
#pragma unroll
    for (int c = 0; c < C; c++) {
        w[c] = weights[c];
    }
    chain<bf16_bits, V, C>(p, v, w, use, r);
    store_bf16<V>((uint16_t *)p.out + t * p.out_stride + h, r);
}

template <typename T, int BLOCK> __global__ void __launch_bounds__(BLOCK) sum_plain_kernel(const __grid_constant__ plain_call p)
{
    constexpr int V = 4, C = PLAIN_COLUMNS;
    const int h = (int)(blockIdx.x * BLOCK + threadIdx.x) * V;
    let_next_start();
    wait_for_previous();
    for (int64_t t = blockIdx.y; h < p.hidden_size && t < p.num_tokens; t += gridDim.y) {
        const T *x = (const T *)p.x + t * p.x_stride + h;
        column_pack<T, V> v[C];
        float w[C], r[V];
        bool use[C];
#pragma unroll
        for (int c = 0; c < C; c++) {
            use[c] = c < p.num_columns && (!p.ids || p.ids[t * p.ids_stride + c] >= 0);
        }
#pragma unroll
        for (int c = 0; c < C; c++) {
            if (use[c]) {
                v[c] = *(const column_pack<T, V> *)(x + c * p.column_stride);
            }
            w[c] = use[c] && p.weights ? p.weights[t * p.weights_stride + c] : 1.0f;
        }
        chain<T, V, C>(p, v, w, use, r);
        if (p.residual) {
            float residual[V];
            load_elements<V>(p.residual, p.out_dtype, t * p.residual_stride + h, residual);
#pragma unroll
            for (int e = 0; e < V; e++) {
                r[e] = __fadd_rn(r[e], residual[e]);
            }
        }
        store_elements<V>(p.out, p.out_dtype, t * p.out_stride + h, r);
    }
}

template <typename T, int V> __global__ void __launch_bounds__(THREADS) sum_kernel(const __grid_constant__ mf_cuda_sum p)
{
    const int64_t chunks = (p.hidden_size + V * THREADS - 1) / (V * THREADS), work = p.num_tokens * chunks;
    for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
        const int64_t t = i / chunks, h = (i % chunks) * (V * THREADS) + threadIdx.x * V;
        if (h >= p.hidden_size) {
            continue;
        }
        float r[V], s[V];
#pragma unroll
        for (int e = 0; e < V; e++) {
            r[e] = s[e] = 0.0f;
        }
        if (sum_row_valid(p, t)) {
            add_terms<T, V, float>(p, t, h, r, s);
        }
        finish_row<V>(p, t, h, r, s);
    }
}

__global__ void __launch_bounds__(THREADS) sum_f64_kernel(const __grid_constant__ mf_cuda_sum p)
{
    const int64_t work = p.num_tokens * p.hidden_size;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < work; i += (int64_t)gridDim.x * THREADS) {
        const int64_t t = i / p.hidden_size, h = i % p.hidden_size;
        double r[1] = { 0.0 }, s[1] = { 0.0 };
        if (sum_row_valid(p, t)) {
            add_terms<double, 1, double>(p, t, h, r, s);
        }
        double v = __fma_rn((double)p.factor, r[0], s[0]);
        if (p.residual) {
            v = __dadd_rn(v, load_at<double>(p.residual, t * p.residual_stride + h, p.bytewise));
        }
        store_at<double>(p.out, t * p.out_stride + h, v, p.bytewise);
    }
}

bool is_plain(const mf_cuda_sum *call)
{
    return call->vector > 1 && call->hidden_size < 1 << 30 && call->num_columns <= PLAIN_COLUMNS && !call->identity && !call->num_addends &&
           !call->num_valid && !call->row_valid && (!call->residual || call->wide_residual);
}

template <typename T> int start_plain(const plain_call &p, bool starts_early, cudaStream_t stream)
{
    const bool is_few = p.num_tokens <= FEW_TOKENS;
    const int threads = is_few ? FEW_THREADS : MANY_THREADS, each = 4 * threads;
    const dim3 grid((unsigned)((p.hidden_size + each - 1) / each), (unsigned)(p.num_tokens < MAX_Y ? p.num_tokens : MAX_Y));
    return launch_kernel(starts_early, is_few ? sum_plain_kernel<T, FEW_THREADS> : sum_plain_kernel<T, MANY_THREADS>,
                         grid, threads, 0, stream, p);
}

template <int V, int C, int BLOCK> int start_row(const plain_call &p, bool starts_early, cudaStream_t stream)
{
    const dim3 grid((unsigned)((p.hidden_size + V * BLOCK - 1) / (V * BLOCK)), (unsigned)p.num_tokens);
    return launch_kernel(starts_early, p.ids ? sum_lean_kernel<V, C, true, BLOCK> : sum_lean_kernel<V, C, false, BLOCK>,
                         grid, BLOCK, 0, stream, p);
}

template <int C> int start_lean(const plain_call &p, bool narrow, bool starts_early, cudaStream_t stream)
{
    if (p.num_tokens <= FEW_TOKENS) {
        return narrow ? start_row<2, C, FEW_THREADS>(p, starts_early, stream)
                      : start_row<4, C, FEW_THREADS>(p, starts_early, stream);
    }
    return narrow ? start_row<2, C, MANY_THREADS>(p, starts_early, stream)
                  : start_row<8, C, MANY_THREADS>(p, starts_early, stream);
}

int launch_lean(const plain_call &p, bool narrow, bool starts_early, cudaStream_t stream)
{
    switch (p.num_columns) {
    case 4:
        return start_lean<4>(p, narrow, starts_early, stream);
    case 6:
        return start_lean<6>(p, narrow, starts_early, stream);
    case 8:
        return start_lean<8>(p, narrow, starts_early, stream);
    case 9:
        return start_lean<9>(p, narrow, starts_early, stream);
    default:
        return start_plain<bf16_bits>(p, starts_early, stream);
    }
}

int launch_plain(const mf_cuda_sum *call, cudaStream_t stream)
{
    plain_call p = {};
    p.x = call->x;
    p.ids = (const int32_t *)call->ids;
    p.weights = (const float *)call->weights;
    p.residual = call->residual;
    p.out = call->out;
    p.x_stride = call->x_stride;
    p.column_stride = call->column_stride;
    p.ids_stride = call->ids_stride;
    p.weights_stride = call->weights_stride;
    p.residual_stride = call->residual_stride;
    p.out_stride = call->out_stride;
    p.num_tokens = call->num_tokens;
    p.hidden_size = (int32_t)call->hidden_size;
    p.num_columns = call->num_columns;
    p.routed = call->num_columns - call->num_shared;
    p.out_dtype = call->out_dtype;
    p.factor = call->factor;
    const bool early = call->starts_early != 0;
    if (call->dtype == MF_F32) {
        return start_plain<float>(p, early, stream);
    }
    if (!p.weights || p.residual || p.out_dtype != MF_BF16 || p.num_tokens > MAX_Y) {
        return start_plain<bf16_bits>(p, early, stream);
    }
    return launch_lean(p, call->narrow != 0, early, stream);
}

template <typename T, int V> int launch(const mf_cuda_sum *call, cudaStream_t stream)
{
    const int64_t chunks = (call->hidden_size + V * THREADS - 1) / (V * THREADS), work = call->num_tokens * chunks;
    sum_kernel<T, V><<<(unsigned)(work < 1 << 30 ? work : 1 << 30), THREADS, 0, stream>>>(*call);
    return (int)cudaGetLastError();
}

} // namespace

int mf_cuda_launch_sum_reduce(const mf_cuda_sum *call, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    if (call->dtype == MF_F64) {
        const int64_t blocks = (call->num_tokens * call->hidden_size + THREADS - 1) / THREADS;
        sum_f64_kernel<<<(unsigned)(blocks < 1 << 20 ? blocks : 1 << 20), THREADS, 0, s>>>(*call);
        return (int)cudaGetLastError();
    }
    if (is_plain(call) && call->dtype != MF_F16) {
        return launch_plain(call, s);
    }
    if (call->vector > 1) {
        return call->dtype == MF_F32    ? launch<float, 4>(call, s)
               : call->dtype == MF_BF16 ? launch<bf16_bits, 8>(call, s)
                                        : launch<f16_bits, 8>(call, s);
    }
    return call->dtype == MF_F32    ? launch<float, 1>(call, s)
           : call->dtype == MF_BF16 ? launch<bf16_bits, 1>(call, s)
                                    : launch<f16_bits, 1>(call, s);
}
