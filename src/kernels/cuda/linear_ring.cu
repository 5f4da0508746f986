/* linear_ring.cu - linear.cu's products of bf16 weights for up to 8 tokens, with TILE's bits, and with the norm in
 * front of them inside where there is one token: RING.
 *
 * A block has a multiprocessor to itself.  Groups of its warps take tiles of 16 rows; each warp streams its run of k
 * through a ring of its own in shared memory, so that all that fits is on its way before the kernels in front have
 * ended. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/product.cuh"

namespace
{

constexpr int ROWS = 16, UNIT_ROOM = ROWS * UNIT_BYTES;
constexpr int X_PAD = 16; /* bytes between rows of x: eight tokens' words meet all banks */
constexpr int NORM_THREADS = 256;

/* Tiles that a block works on at once, and units of a warp's ring: 160 or 64 KiB in all, which leaves room for the
 * blocks of the kernels behind. */
template <int RUNS> constexpr int GROUPS = RUNS == 8 ? 2 : 1;
template <int RUNS, bool DEEP> constexpr int DEPTHS = (DEEP ? 80 : 32) / (RUNS * GROUPS<RUNS>);

int groups_of(const mf_cuda_linear &p)
{
    return p.runs == 8 ? GROUPS<8> : GROUPS<16>;
}

int depth_of(const mf_cuda_linear &p)
{
    return (p.is_deep ? 80 : 32) / (p.runs * groups_of(p));
}

MF_DEV uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * UNIT_BYTES + ((chunk ^ (row & 7)) << 4));
}

/* Eight columns of x from element `at` on as f32 or bf16, in every plane. */
template <int PARTS> MF_DEV void load_x(uint4 (&v)[PARTS], const mf_cuda_linear &p, int64_t at)
{
    const void *x = p.x;
    if (!p.x_is_f32) {
#pragma unroll
        for (int n = 0; n < PARTS; n++) {
            v[n] = __ldcg((const uint4 *)((const uint16_t *)x + n * p.x_plane + at));
        }
        return;
    }
    const float4 a = __ldcg((const float4 *)((const float *)x + at)),
                 b = __ldcg((const float4 *)((const float *)x + at + 4));
    uint32_t words[4][PARTS];
    split_pair<PARTS>(words[0], a.x, a.y);
    split_pair<PARTS>(words[1], a.z, a.w);
    split_pair<PARTS>(words[2], b.x, b.y);
    split_pair<PARTS>(words[3], b.z, b.w);
#pragma unroll
    for (int n = 0; n < PARTS; n++) {
        v[n] = make_uint4(words[0][n], words[1][n], words[2][n], words[3][n]);
    }
}

/* x [T, k] as planes of bf16 in shared memory, eight columns a thread at a time. */
template <int PARTS, int THREADS>
MF_DEV void stage_x(uint8_t *shared, const mf_cuda_linear &p, int64_t x_at, int tokens, int k)
{
    const int pitch = k * 2 + X_PAD, chunks = k / 8;
#pragma unroll 1
    for (int t = 0; t < tokens; t++) {
#pragma unroll 2
        for (int c = threadIdx.x; c < chunks; c += THREADS) {
            uint4 v[PARTS];
            load_x<PARTS>(v, p, x_at + t * p.x_stride + c * 8);
#pragma unroll
            for (int n = 0; n < PARTS; n++) {
                *(uint4 *)(shared + (n * tokens + t) * pitch + c * 16) = v[n];
            }
        }
    }
}

/* The norm's result as planes in shared memory: the sums and products of dense.cu's norm_kernel<8>, in its order.
 * Behind the planes lies the row as f32.  A thread has four elements in registers, and their weights, which it has
 * asked for before; rows of more than four a thread take turns.  Loops are left as loops: this code is met cold.
 * under_way: called when the row is on its way. */
template <int PARTS, int THREADS, typename UNDER_WAY>
MF_DEV void stage_norm(uint8_t *shared, const mf_cuda_linear &p, int n, float4 weights, UNDER_WAY under_way)
{
    __shared__ float parts[8];
    const int pitch = n * 2 + X_PAD, tid = threadIdx.x, each = THREADS * 4;
    float *row = (float *)(shared + PARTS * pitch);
    const bool writes = blockIdx.x == 0;
    float4 own = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int i = tid * 4; i < n; i += each) {
        float4 v = __ldcg((const float4 *)(p.norm_acc + i));
        if (p.norm_add) {
            const float4 add = __ldcg((const float4 *)(p.norm_add + i));
            v = make_float4(__fadd_rn(v.x, add.x), __fadd_rn(v.y, add.y), __fadd_rn(v.z, add.z), __fadd_rn(v.w, add.w));
        }
        *(float4 *)(row + i) = v;
        own = i < each ? v : own;
        if (writes && p.norm_out) {
            *(float4 *)(p.norm_out + i) = v;
        }
    }
    under_way();
    __syncthreads();
    if (tid < NORM_THREADS) {
        float sum = 0.0f;
#pragma unroll 4
        for (int i = tid; i < n; i += NORM_THREADS) {
            sum = __fmaf_rn(row[i], row[i], sum);
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            sum = __fadd_rn(sum, __shfl_xor_sync(MF_FULL_WARP, sum, step));
        }
        if ((tid & 31) == 0) {
            parts[tid >> 5] = sum;
        }
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < 8; w++) {
        sum = __fadd_rn(sum, parts[w]);
    }
    const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)n), p.norm_eps)));
#pragma unroll 1
    for (int i = tid * 4; i < n; i += each) {
        if (i >= each) {
            own = *(const float4 *)(row + i);
            weights = *(const float4 *)(p.norm_weight + i);
        }
        const float x[4] = { __fmul_rn(__fmul_rn(own.x, scale), weights.x),
                             __fmul_rn(__fmul_rn(own.y, scale), weights.y),
                             __fmul_rn(__fmul_rn(own.z, scale), weights.z),
                             __fmul_rn(__fmul_rn(own.w, scale), weights.w) };
        uint32_t low[PARTS], high[PARTS];
        split_pair<PARTS>(low, x[0], x[1]);
        split_pair<PARTS>(high, x[2], x[3]);
#pragma unroll
        for (int k = 0; k < PARTS; k++) {
            *(uint2 *)(shared + k * pitch + 2 * i) = make_uint2(low[k], high[k]);
        }
        if (writes && p.norm_rounded) { /* the first plane is what rounding makes of it */
            *(uint2 *)(p.norm_rounded + i) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
        }
    }
}

/* A warp's units of weights in the order in which it asks for them. */
struct asking {
    const uint8_t *from;
    int64_t step;               /* four rows on */
    int tile, unit, slot, rows; /* rows: of the tile that there are from this lane's first on */
};

MF_DEV void enter_tile(asking &a, const mf_cuda_linear &p, int start, int lane)
{
    const int which = matrix_of(p, a.tile);
    const mf_cuda_matrix &m = p.w[which];
    const int64_t r0 = (a.tile - p.first_block[which]) * ROWS, num_rows = p.num_batches > 0 ? p.rows : m.n;
    const int64_t row0 = r0 + (p.num_batches > 0 ? blockIdx.z * p.batch_rows + p.first_row : 0) + (lane >> 3);
    a.rows = (int)(num_rows - r0 < ROWS ? num_rows - r0 : ROWS) - (lane >> 3);
    a.from = m.data + row0 * m.row_stride * 2 + (lane & 7) * 16 + start * UNIT_BYTES;
    a.step = m.row_stride * 8;
}

template <int RUNS, int PARTS, bool NORM, bool DEEP>
__global__ void __launch_bounds__(32 * RUNS * GROUPS<RUNS>, 2) ring_kernel(const __grid_constant__ mf_cuda_linear p)
{
    constexpr int DEPTH = DEPTHS<RUNS, DEEP>, OF_GROUP = 32 * RUNS, PITCH = ROWS + 1;
    extern __shared__ __align__(128) uint8_t shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = warp / RUNS, run = warp % RUNS, g = lane >> 2,
              q = lane & 3;
    const int k = (int)p.w[0].k, units = k / 64, start = run_start(run, units, RUNS),
              count = run_start(run + 1, units, RUNS) - start, tiles = (int)p.first_block[p.num],
              tokens = (int)p.num_tokens, pitch = k * 2 + X_PAD, plane = tokens * pitch;
    const int first = blockIdx.x + group * gridDim.x, every = gridDim.x * GROUPS<RUNS>;
    uint8_t *ring = shared + warp * p.ring_units * UNIT_ROOM;
    float *sums = (float *)(shared + RUNS * p.ring_groups * p.ring_units * UNIT_ROOM); /* [group][2][run][token] */
    uint8_t *x = (uint8_t *)(sums + GROUPS<RUNS> * 2 * RUNS * tokens * PITCH);
    sums += group * 2 * RUNS * tokens * PITCH;
    const int64_t x_at = p.num_batches > 0 ? blockIdx.z * p.x_step : 0;
    asking a = { nullptr, 0, first, 0, 0, 0 };
    if (first < tiles) {
        enter_tile(a, p, start, lane);
    }
    auto ask = [&]() {
        if (a.tile < tiles && count > 0) {
            uint8_t *to = ring + a.slot * UNIT_ROOM;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool is_there = a.rows > 4 * i;
                copy_async(to + swizzled((lane >> 3) + 4 * i, lane & 7), is_there ? a.from + i * a.step : a.from,
                           is_there);
            }
            a.from += UNIT_BYTES;
            if (++a.unit == count) {
                a.unit = 0;
                a.tile += every;
                if (a.tile < tiles) {
                    enter_tile(a, p, start, lane);
                }
            }
        }
        copy_commit();
        a.slot = a.slot + 1 == DEPTH ? 0 : a.slot + 1;
    };
    let_next_start();
    float4 norm_weights = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (NORM && threadIdx.x * 4 < k) {
        norm_weights = *(const float4 *)(p.norm_weight + threadIdx.x * 4);
    }
    const int early = NORM ? min(p.early, DEPTH) : DEPTH;
#pragma unroll 1
    for (int i = 0; i < early; i++) { /* nobody writes weights: they need not wait for what comes before */
        ask();
        if (!NORM) { /* one after the other: all at once would hold up what the kernels in front still store */
            copy_wait<0>();
        }
    }
    wait_for_previous();
    if constexpr (NORM) {
        stage_norm<PARTS, 32 * RUNS * GROUPS<RUNS>>(x, p, k, norm_weights, [&] {
#pragma unroll 1
            for (int i = early; i < DEPTH; i++) {
                ask();
            }
        });
    } else {
        stage_x<PARTS, 32 * RUNS * GROUPS<RUNS>>(x, p, x_at, tokens, k);
    }
    __syncthreads();
    int slot = 0;
    const uint8_t *tokens_at = x + g * pitch + start * UNIT_BYTES + q * 4;
#pragma unroll 1
    for (int tile = first, n = 0; tile < tiles; tile += every, n++) {
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll 1
        for (int u = 0; u < count; u++) {
            copy_wait<DEPTH - 1>();
            __syncwarp();
            const uint8_t *unit = ring + slot * UNIT_ROOM, *columns = tokens_at + u * UNIT_BYTES;
            uint32_t w[4][4];
#pragma unroll
            for (int s = 0; s < 4; s++) {
                load_tiles(w[s], unit + swizzled(lane & 15, s * 2 + (lane >> 4)));
            }
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    const uint32_t *at = (const uint32_t *)(columns + part * plane + s * 32);
                    const uint32_t low = g < tokens ? at[0] : 0u, high = g < tokens ? at[4] : 0u;
                    mma_bf16(acc, w[s][0], w[s][1], w[s][2], w[s][3], low, high);
                }
            }
            __syncwarp();
            ask();
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
        }
        float *of =
            sums + (n & 1) * RUNS * tokens * PITCH; /* the other one's readers have met the last barrier since */
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (2 * q + e < tokens) {
                float *to = of + (run * tokens + 2 * q + e) * PITCH + g;
                to[0] = acc[e];
                to[8] = acc[2 + e];
            }
        }
        if (GROUPS<RUNS> == 1 || group == 0) {
            sync_threads<1, OF_GROUP>();
        } else {
            sync_threads<2, OF_GROUP>();
        }
        const int which = matrix_of(p, tile);
        const int64_t r0 = (tile - p.first_block[which]) * ROWS;
        const int rows = (int)min((p.num_batches > 0 ? p.rows : p.w[which].n) - r0, (int64_t)ROWS);
        float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0) + r0;
        const float *bias = p.bias[which] ? p.bias[which] + r0 : nullptr;
#pragma unroll 1
        for (int i = run * 32 + lane; i < tokens * ROWS; i += OF_GROUP) {
            const int t = i / ROWS, r = i % ROWS;
            float v = 0.0f;
#pragma unroll
            for (int s = 0; s < RUNS; s++) {
                v = __fadd_rn(v, of[(s * tokens + t) * PITCH + r]);
            }
            if (r < rows) {
                out[t * p.out_stride[which] + r] = bias ? __fadd_rn(v, bias[r]) : v;
            }
        }
    }
}

template <int RUNS, int PARTS, bool NORM, bool DEEP>
int launch(const mf_cuda_linear &p, int64_t bytes, cudaStream_t stream)
{
    const dim3 grid((unsigned)(p.first_block[p.num] < p.most_blocks ? p.first_block[p.num] : p.most_blocks), 1,
                    p.num_batches > 0 ? (unsigned)p.num_batches : 1);
    want_all_shared(ring_kernel<RUNS, PARTS, NORM, DEEP>);
    const stretch weights = weights_of(p);
    return launch_streaming(mf_cuda_starts_early != 0, weights.base, weights.bytes,
                            ring_kernel<RUNS, PARTS, NORM, DEEP>, grid, 32u * RUNS * GROUPS<RUNS>, (size_t)bytes,
                            stream, p);
}

template <int RUNS, int PARTS, bool DEEP> int launch_of(const mf_cuda_linear &p, int64_t bytes, cudaStream_t stream)
{
    return p.norm_weight ? launch<RUNS, PARTS, true, DEEP>(p, bytes, stream)
                         : launch<RUNS, PARTS, false, DEEP>(p, bytes, stream);
}

template <int RUNS, int PARTS> int launch_depth(const mf_cuda_linear &p, int64_t bytes, cudaStream_t stream)
{
    return p.is_deep ? launch_of<RUNS, PARTS, true>(p, bytes, stream) : launch_of<RUNS, PARTS, false>(p, bytes, stream);
}

} // namespace

void mf_cuda_linear_ring_plan(mf_cuda_linear *call)
{
    const mf_cuda_linear p = cut(call, ROWS);
    const int64_t of_block = (p.first_block[p.num] + p.most_blocks - 1) / p.most_blocks, groups = groups_of(p),
                  of_group = (of_block + groups - 1) / groups, most = depth_of(p),
                  units = of_group * ((p.w[0].k / 64 + p.runs - 1) / p.runs);
    call->ring_groups = (int32_t)(of_block < groups ? of_block : groups); /* the others have no tile */
    call->ring_units = (int32_t)(units < most ? units : most);
}

int64_t mf_cuda_linear_ring_shared(const mf_cuda_linear *p)
{
    const int64_t k = p->w[0].k, x = p->parts * p->num_tokens * (k * 2 + X_PAD) + (p->norm_weight ? k * 4 : 0);
    const int64_t warps = (int64_t)p->runs * groups_of(*p);
    return (int64_t)p->runs * p->ring_groups * p->ring_units * UNIT_ROOM + warps * 2 * p->num_tokens * (ROWS + 1) * 4 +
           x;
}

int mf_cuda_launch_linear_ring(const mf_cuda_linear *call, void *stream)
{
    const mf_cuda_linear p = cut(call, ROWS);
    const int64_t bytes = mf_cuda_linear_ring_shared(&p);
    cudaStream_t s = (cudaStream_t)stream;
    return p.runs == 8    ? p.parts == 1 ? launch_depth<8, 1>(p, bytes, s) : launch_depth<8, 3>(p, bytes, s)
              : p.parts == 1 ? launch_depth<16, 1>(p, bytes, s)
                          : launch_depth<16, 3>(p, bytes, s);
}
