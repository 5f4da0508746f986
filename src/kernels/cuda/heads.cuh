/* heads.cuh - norm and rope of a head that a warp holds: element i in register i / 32 of lane i % 32, KEPT of them.
 * The arithmetic is that of kernels/ref/dense.c. */
#ifndef MF_KERNELS_CUDA_HEADS_CUH
#define MF_KERNELS_CUDA_HEADS_CUH

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/sm90.cuh"

MF_DEV float sum_of(float v)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        v = __fadd_rn(v, __shfl_xor_sync(MF_FULL_WARP, v, step));
    }
    return v;
}

MF_DEV float norm_scale(float sum, int64_t n, float eps)
{
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)n), eps)));
}

template <int KEPT> MF_DEV void norm_head(float (&v)[KEPT], int dim, const float (&weight)[KEPT], float eps, int lane)
{
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        sum = k * 32 + lane < dim ? __fmaf_rn(v[k], v[k], sum) : sum;
    }
    const float scale = norm_scale(sum_of(sum), dim, eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        v[k] = k * 32 + lane < dim ? __fmul_rn(__fmul_rn(v[k], scale), weight[k]) : 0.0f;
    }
}

/* Cosine and sine of each element that a lane holds. */
template <int KEPT> MF_DEV void load_angles(float2 (&angle)[KEPT], int dim, int pair, const float *table, int lane)
{
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int e = k * 32 + lane, i = pair ? e / 2 : e < dim / 2 ? e : e - dim / 2;
        angle[k] = e < dim ? *(const float2 *)(table + 2 * i) : make_float2(1.0f, 0.0f);
    }
}

/* Partners meet in shared memory: [32 * KEPT] of the warp's own. */
template <int KEPT>
MF_DEV void rotate_head(float (&v)[KEPT], float *room, int dim, int pair, const float2 (&angle)[KEPT], int lane)
{
    const int half = dim / 2;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        room[k * 32 + lane] = v[k];
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int e = k * 32 + lane;
        if (e < dim) {
            const bool is_second = pair ? e & 1 : e >= half;
            const float c = angle[k].x, s = angle[k].y;
            const float other = room[pair ? e ^ 1 : is_second ? e - half : e + half];
            v[k] = is_second ? __fadd_rn(__fmul_rn(v[k], c), __fmul_rn(other, s))
                             : __fsub_rn(__fmul_rn(v[k], c), __fmul_rn(other, s));
        }
    }
    __syncwarp();
}

template <typename P> MF_DEV void store_cached(const P &p, int64_t at, float v)
{
    if (p.is_bf16) {
        ((uint16_t *)p.cache)[at] = f32_to_bf16(v);
    } else {
        ((float *)p.cache)[at] = v;
    }
}

/* A pair of elements by an angle's cosine and sine. */
MF_DEV float2 rotated(float a, float b, float2 angle)
{
    return make_float2(__fsub_rn(__fmul_rn(a, angle.x), __fmul_rn(b, angle.y)),
                       __fadd_rn(__fmul_rn(b, angle.x), __fmul_rn(a, angle.y)));
}

/* MLA's row of the cache by one warp: the latent's norm, the rotated key.  Waits for the kernels in front when it has
 * asked for what is no kernel's work: positions, tables, weights.  USUAL: a latent of 512, a key of 64, a bf16 cache.
 */
template <bool USUAL> MF_DEV void cache_latent(const mf_cuda_mla_prepare &p, int64_t t, int lane)
{
    constexpr int KEPT = 16;
    const int rank = USUAL ? KEPT * 32 : p.rank, half = USUAL ? 32 : p.rope / 2;
    const uint32_t position = (uint32_t)p.position[t], size = (uint32_t)p.block_size;
    const float *table = p.cos_sin + (int64_t)position * (2 * half), *row = p.rows + t * p.row_size;
    const int64_t block = p.block_table[(int64_t)p.sequence[t] * p.max_blocks + position / size];
    const int64_t to = (block * p.block_size + position % size) * p.row_size;
    float v[KEPT], weight[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        weight[k] = USUAL || k * 32 + lane < rank ? p.norm[k * 32 + lane] : 0.0f;
    }
    const float2 angle = USUAL || lane < half ? *(const float2 *)(table + 2 * lane) : make_float2(1.0f, 0.0f);
    auto store = [&](int64_t at, float x) {
        if (USUAL) {
            ((uint16_t *)p.cache)[at] = f32_to_bf16(x);
        } else {
            store_cached(p, at, x);
        }
    };
    wait_for_previous();
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        v[k] = USUAL || k * 32 + lane < rank ? row[k * 32 + lane] : 0.0f;
    }
    for (int i = lane; i < half; i += 32) {
        const int first = p.rope_pair ? 2 * i : i, second = p.rope_pair ? 2 * i + 1 : i + half;
        const float2 key = rotated(row[rank + first], row[rank + second],
                                   USUAL || i == lane ? angle : *(const float2 *)(table + 2 * i));
        store(to + rank + first, key.x);
        store(to + rank + second, key.y);
        if (USUAL) {
            break;
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        sum = __fmaf_rn(v[k], v[k], sum);
    }
    for (int i = KEPT * 32 + lane; !USUAL && i < rank; i += 32) {
        sum = __fmaf_rn(row[i], row[i], sum);
    }
    const float scale = norm_scale(sum_of(sum), rank, p.eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        if (USUAL || k * 32 + lane < rank) {
            store(to + k * 32 + lane, __fmul_rn(__fmul_rn(v[k], scale), weight[k]));
        }
    }
    for (int i = KEPT * 32 + lane; !USUAL && i < rank; i += 32) {
        store(to + i, __fmul_rn(__fmul_rn(row[i], scale), p.norm[i]));
    }
}

/* What a warp needs to make a head of what a projection left. */
template <int KEPT> struct head_maker {
    float weight[KEPT];
    float2 angle[KEPT];
};

template <int KEPT, typename P>
MF_DEV void make_head(float (&v)[KEPT], const P &r, const float *norm, const head_maker<KEPT> &maker, float *room,
                      int lane)
{
#pragma unroll 1
    for (int turn = 0; turn < 2; turn++) { /* one place for the norm's code */
        if (norm && turn == (r.norm_after_rope != 0)) {
            norm_head(v, KEPT * 32, maker.weight, r.eps, lane);
        }
        if (turn == 0 && r.rope_dim > 0) {
            rotate_head(v, room, r.rope_dim, r.rope_pair, maker.angle, lane);
        }
    }
}

#endif
