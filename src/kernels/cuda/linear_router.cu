/* linear_router.cu - a norm of many tokens and the router's product of it in one launch on Hopper: dense.cu's norm_rows
 * and linear_tiles.cu's product of three planes, with their bits, without the planes' way through memory.
 *
 * A block takes some tokens and all rows.  Its warps first sum the squares of the tokens' elements, a warp a token, in
 * norm_kernel<8>'s order; then some bring the elements again, line by line, as planes of bf16 in shared memory (and
 * rounded to memory) and ask for weights some lines ahead, and a warpgroup multiplies. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/linear_lines.cuh"

namespace
{

constexpr int ROWS = MF_CUDA_ROUTER_ROWS, TOKENS = MF_CUDA_ROUTER_TOKENS, PARTS = 3;
constexpr int MULTIPLIERS = 128, SPLITTERS = 256, THREADS = MULTIPLIERS + SPLITTERS;
constexpr int EACH = TOKENS * 8 / SPLITTERS; /* eights of a line's elements that a thread splits */
constexpr int PLANES = PARTS * TOKENS * LINE, WEIGHTS = ROWS * LINE; /* bytes of a line */
constexpr int STAGES = 4, WEIGHT_STAGES = 5, AHEAD = 3, BYTES = STAGES * PLANES + WEIGHT_STAGES * WEIGHTS;
static_assert(TOKENS == 64 && PLANES % 1024 == 0 && WEIGHTS % 1024 == 0, "operands of 64 rows, on 1024 bytes");

struct eight {
    float v[8];
};

/* The factor of a token's norm, by a warp. */
MF_DEV float find_scale(const mf_cuda_norm &p, int64_t t)
{
    constexpr int WARPS = 8, DEEP = 4; /* of norm_kernel<8>; its threads' elements at once */
    const int lane = threadIdx.x & 31, n = (int)p.n;
    const float *row = p.acc + t * p.n;
    float sum[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        sum[w] = 0.0f;
    }
#pragma unroll 1
    for (int base = 0; base < n; base += DEEP * WARPS * 32) {
        float v[DEEP][WARPS];
#pragma unroll
        for (int k = 0; k < DEEP; k++) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const int i = base + (k * WARPS + w) * 32 + lane;
                v[k][w] = i < n ? row[i] : 0.0f; /* zeros change no sum */
            }
        }
#pragma unroll
        for (int k = 0; k < DEEP; k++) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                sum[w] = __fmaf_rn(v[k][w], v[k][w], sum[w]);
            }
        }
    }
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        all = __fadd_rn(all, sum_of(sum[w]));
    }
    return norm_scale(all, n, p.eps);
}

MF_DEV eight load_eight(const float *x)
{
    const float4 low = *(const float4 *)x, high = *(const float4 *)(x + 4);
    return { { low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w } };
}

/* Two normed elements as a word of each plane; what is left of what is no number is 0. */
MF_DEV void split_two(float x, float y, uint32_t (&words)[PARTS])
{
    words[0] = pack_bf16(x, y);
    const bool x_is_number = (words[0] & 0x7f80u) != 0x7f80u, y_is_number = (words[0] & 0x7f800000u) != 0x7f800000u;
    const float of_x = x_is_number ? __fsub_rn(x, __uint_as_float(words[0] << 16)) : 0.0f,
                of_y = y_is_number ? __fsub_rn(y, __uint_as_float(words[0] & 0xffff0000u)) : 0.0f;
    words[1] = pack_bf16(of_x, of_y);
    words[2] = pack_bf16(__fsub_rn(of_x, __uint_as_float(words[1] << 16)),
                         __fsub_rn(of_y, __uint_as_float(words[1] & 0xffff0000u)));
}

__global__ void __launch_bounds__(THREADS, 1) router_kernel(const __grid_constant__ mf_cuda_router call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t shared[];
    __shared__ uint64_t full[STAGES], empty[STAGES], weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES];
    __shared__ float scales[TOKENS];
    uint8_t *planes = shared, *weights = shared + STAGES * PLANES;
    const mf_cuda_norm &norm = call.norm;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, units = (int)(norm.n / 64);
    const int64_t t0 = (int64_t)blockIdx.x * TOKENS;
    let_next_start();
    if (tid == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&full[i], SPLITTERS / 32);
            barrier_init(&empty[i], MULTIPLIERS / 32);
        }
        for (int i = 0; i < WEIGHT_STAGES; i++) {
            barrier_init(&weights_full[i], 1);
            barrier_init(&weights_empty[i], MULTIPLIERS / 32);
        }
        barrier_init_fence();
    }
    __syncthreads();
    auto bring_weights = [&](int u) {
        if (tid == MULTIPLIERS && u < units) {
            const int stage = u % WEIGHT_STAGES;
            barrier_wait(&weights_empty[stage], (u / WEIGHT_STAGES & 1) ^ 1);
            barrier_expect(&weights_full[stage], WEIGHTS);
            copy_box(weights + stage * WEIGHTS, &call.w, 0, u, &weights_full[stage]);
        }
    };
    for (int u = 0; u < AHEAD; u++) { /* no kernel's work */
        bring_weights(u);
    }
    __syncwarp();
    wait_for_previous();
    for (int r = warp; r < TOKENS; r += THREADS / 32) {
        if (t0 + r < norm.num_tokens) {
            const float scale = find_scale(norm, t0 + r);
            if (lane == 0) {
                scales[r] = scale;
            }
        }
    }
    __syncthreads();
    if (tid >= MULTIPLIERS) {
        const int own = tid - MULTIPLIERS, chunk = own & 7;
        const float *x[EACH];
        uint16_t *rounded[EACH];
        uint32_t place[EACH];
        float scale[EACH];
        bool is_there[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int r = (own >> 3) + i * (SPLITTERS / 8);
            is_there[i] = t0 + r < norm.num_tokens;
            const int64_t at = (is_there[i] ? t0 + r : t0) * norm.n + chunk * 8;
            x[i] = norm.acc + at;
            rounded[i] = norm.rounded + at;
            scale[i] = is_there[i] ? scales[r] : 0.0f;
            place[i] = (uint32_t)(r * LINE + ((chunk ^ (r & 7)) << 4));
        }
        const float *w = norm.weight + chunk * 8;
        eight next[2][EACH]; /* of the next two lines */
        auto load = [&](eight(&to)[EACH], int u) {
            if (u < units) {
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    to[i] = load_eight(x[i] + u * 64);
                }
            }
        };
        auto take = [&](eight(&of)[EACH], int u) {
            const int stage = u % STAGES;
            uint8_t *to = planes + stage * PLANES;
            const eight weight = load_eight(w + u * 64);
            uint4 words[EACH][PARTS];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                uint32_t pairs[4][PARTS];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    split_two(__fmul_rn(__fmul_rn(of[i].v[2 * k], scale[i]), weight.v[2 * k]),
                              __fmul_rn(__fmul_rn(of[i].v[2 * k + 1], scale[i]), weight.v[2 * k + 1]), pairs[k]);
                }
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    words[i][part] = make_uint4(pairs[0][part], pairs[1][part], pairs[2][part], pairs[3][part]);
                }
                if (is_there[i]) {
                    *(uint4 *)(rounded[i] + u * 64) = words[i][0];
                }
            }
            barrier_wait(&empty[stage], (u / STAGES & 1) ^ 1);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    *(uint4 *)(to + part * TOKENS * LINE + place[i]) = words[i][part];
                }
            }
            fence_shared_for_products();
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(&full[stage]);
            }
            bring_weights(u + AHEAD);
            __syncwarp();
        };
        load(next[0], 0);
        load(next[1], 1);
#pragma unroll 1
        for (int u = 0; u < units; u += 2) {
            take(next[0], u);
            load(next[0], u + 2);
            if (u + 1 < units) {
                take(next[1], u + 1);
                load(next[1], u + 3);
            }
        }
        return;
    }
    const int g = lane >> 2, q = lane & 3;
    float acc[ROWS / 2], total[ROWS / 2];
#pragma unroll
    for (int k = 0; k < ROWS / 2; k++) {
        acc[k] = total[k] = 0.0f;
    }
    auto give_back = [&](int u) {
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(&empty[u % STAGES]);
            barrier_arrive(&weights_empty[u % WEIGHT_STAGES]);
        }
    };
#pragma unroll 1
    for (int run = 0; run < call.runs; run++) {
        const int from = run_start(run, units, call.runs), to = run_start(run + 1, units, call.runs);
        if (from == to) { /* an empty run adds nothing but a zero's sign, which is + already */
            continue;
        }
#pragma unroll 1
        for (int u = from; u < to; u++) {
            barrier_wait(&weights_full[u % WEIGHT_STAGES], u / WEIGHT_STAGES & 1);
            barrier_wait(&full[u % STAGES], u / STAGES & 1);
            const uint8_t *x = planes + u % STAGES * PLANES, *rows = weights + u % WEIGHT_STAGES * WEIGHTS;
            pin(acc);
            products_begin();
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                add_line<ROWS>(acc, product_operand(x + part * TOKENS * LINE), product_operand(rows),
                               u > from || part > 0);
            }
            products_commit();
            if (u > from) {
                products_wait<1>();
                give_back(u - 1);
            }
        }
        products_wait<0>();
        pin(acc);
        give_back(to - 1);
#pragma unroll
        for (int k = 0; k < ROWS / 2; k++) {
            total[k] = __fadd_rn(total[k], acc[k]);
        }
    }
    /* Element 4n + 2e + k: token g + 8e of the warp's 16, row 8n + 2q + k. */
#pragma unroll
    for (int i = 0; i < ROWS / 2; i++) {
        const int64_t t = t0 + warp * 16 + g + i / 2 % 2 * 8;
        const int r = i / 4 * 8 + 2 * q + i % 2;
        if (t < norm.num_tokens && r < call.rows) {
            call.out[t * call.out_stride + r] = call.bias ? __fadd_rn(total[i], call.bias[r]) : total[i];
        }
    }
}

} // namespace

int mf_cuda_launch_router(const mf_cuda_router *call, void *stream)
{
    const dim3 grid((unsigned)((call->norm.num_tokens + TOKENS - 1) / TOKENS));
    return launch_shared(true, router_kernel, grid, THREADS, (size_t)BYTES, stream, *call);
}
