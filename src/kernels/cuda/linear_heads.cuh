/* linear_heads.cuh - the end of a tile of queries, keys or values of many tokens on Hopper: norm and rope of a head, in
 * the order of heads.cuh and with its bits, then bf16 queries for attention or rows of the cache.
 *
 * A thread has, of two tokens, columns 8n + 2q and the next of the head, n = 0..15.  heads.cuh's lane l sums the
 * squares of elements l, 32 + l, 64 + l, 96 + l, which are one thread's here; of its tree of lanes the steps 16, 8 and
 * 1 stay in a thread, and 4 and 2 meet its neighbours. */
#ifndef MF_KERNELS_CUDA_LINEAR_HEADS_CUH
#define MF_KERNELS_CUDA_LINEAR_HEADS_CUH

#include "kernels/cuda/heads.cuh"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/wgmma.cuh"

constexpr int HEAD = 128;
constexpr int HEADS_ROOM = 16 * HEAD * 2; /* bytes of a warp: its 16 tokens' heads in bf16, lines of 64 columns */

/* Columns of n of the thread's elements: v[4n + 2e + k] is column 8n + 2q + k of token e. */
MF_DEV void norm_own_heads(float (&v)[64], const float *weight, float eps, int q)
{
    float scale[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float sum[4][2];
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float s = 0.0f;
#pragma unroll
                for (int n = j; n < 16; n += 4) {
                    s = __fmaf_rn(v[4 * n + 2 * e + k], v[4 * n + 2 * e + k], s);
                }
                sum[j][k] = s;
            }
        }
        float part[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float s = __fadd_rn(__fadd_rn(sum[0][k], sum[2][k]), __fadd_rn(sum[1][k], sum[3][k]));
            s = __fadd_rn(s, __shfl_xor_sync(MF_FULL_WARP, s, 2));
            part[k] = __fadd_rn(s, __shfl_xor_sync(MF_FULL_WARP, s, 1));
        }
        const float mean =
            __fmul_rn(__fadd_rn(part[0], part[1]), 1.0f / HEAD); /* HEAD is a power of two: no division */
        scale[e] = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, eps)));
    }
#pragma unroll
    for (int n = 0; n < 16; n++) { /* for both tokens, so that no weight has to be kept */
        const float2 w = *(const float2 *)(weight + 8 * n + 2 * q);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            v[4 * n + 2 * e] = __fmul_rn(__fmul_rn(v[4 * n + 2 * e], scale[e]), w.x);
            v[4 * n + 2 * e + 1] = __fmul_rn(__fmul_rn(v[4 * n + 2 * e + 1], scale[e]), w.y);
        }
    }
}

/* Cosines and sines of the thread's columns of both halves, of two tokens. */
struct head_angles {
    float4 of[2][8];
};

MF_DEV void load_angles(head_angles &angles, const mf_cuda_gqa_prepare &r, const int32_t (&position)[2])
{
    const int q = threadIdx.x & 3;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const float *from = r.cos_sin + (int64_t)position[e] * HEAD + 4 * q;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            angles.of[e][n] = *(const float4 *)(from + 16 * n);
        }
    }
}

/* Halves of whole heads. */
MF_DEV void rotate_own_heads(float (&v)[64], const head_angles &angles)
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const float4(&angle)[8] = angles.of[e];
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float &low = v[4 * n + 2 * e + k], &high = v[4 * (n + 8) + 2 * e + k];
                const float c = k == 0 ? angle[n].x : angle[n].z, s = k == 0 ? angle[n].y : angle[n].w, first = low;
                low = __fsub_rn(__fmul_rn(first, c), __fmul_rn(high, s));
                high = __fadd_rn(__fmul_rn(high, c), __fmul_rn(first, s));
            }
        }
    }
}

MF_DEV uint32_t head_place(int row, int chunk)
{
    return (uint32_t)(chunk / 8 * (16 * 128) + row * 128 + ((chunk % 8 ^ (row & 7)) << 4));
}

/* Where the caller's token goes: of queries a row of heads.q, of keys and values one of the cache, which may be any. */
struct head_rows {
    uint8_t *base;
    int64_t pitch;
    int32_t row;
};

MF_DEV head_rows rows_of_heads(const mf_cuda_gqa_prepare &r, int which, int r0, int64_t t)
{
    head_rows to;
    const int64_t token = t < r.num_tokens ? t : r.num_tokens - 1;
    if (which == 0) {
        to.base = (uint8_t *)r.q + r0 * 2;
        to.pitch = (int64_t)r.num_heads * HEAD * 2;
        to.row = (int32_t)token;
        return to;
    }
    const uint32_t size = (uint32_t)r.block_size, position = (uint32_t)r.position[token];
    const int32_t block = r.block_table[(int64_t)r.sequence[token] * r.max_blocks + position / size];
    to.base = (uint8_t *)r.cache + ((which == 2 ? r.num_kv_heads * HEAD : 0) + r0) * 2;
    to.pitch = r.row_size * 2;
    to.row = (int32_t)((uint32_t)block * size + position % size);
    return to;
}

/* Positions of the thread's two tokens of the 16 from t0 on. */
MF_DEV void find_positions(const mf_cuda_gqa_prepare &r, int64_t t0, int32_t (&position)[2])
{
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int64_t t = t0 + ((threadIdx.x & 31) >> 2) + 8 * e;
        position[e] = r.position[t < r.num_tokens ? t : r.num_tokens - 1];
    }
}

/* A warp's 16 tokens from t0 on of matrix `which`, whose rows r0 .. r0 + 127 are a head; weight: of its norm, or NULL.
 */
MF_DEV void finish_heads(const mf_cuda_linear_maps &call, int which, int r0, int64_t t0, const head_rows &to,
                         const head_angles &angles, const float *weight, float (&v)[64], uint8_t *room)
{
    const mf_cuda_gqa_prepare &r = call.heads;
    const int lane = threadIdx.x & 31, q = lane & 3;
    const float *bias = call.p.bias[which], *row_scale = call.p.row_scale[which];
    if (row_scale) {
#pragma unroll
        for (int n = 0; n < 16; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[4 * n + i] = __fmul_rn(v[4 * n + i], row_scale[r0 + 8 * n + 2 * q + (i & 1)]);
            }
        }
    }
    if (bias) {
#pragma unroll
        for (int n = 0; n < 16; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[4 * n + i] = __fadd_rn(v[4 * n + i], bias[r0 + 8 * n + 2 * q + (i & 1)]);
            }
        }
    }
    if (which < 2) {
        if (weight && !r.norm_after_rope) {
            norm_own_heads(v, weight, r.eps, q);
        }
        if (r.rope_dim > 0) {
            rotate_own_heads(v, angles);
        }
        if (weight && r.norm_after_rope) {
            norm_own_heads(v, weight, r.eps, q);
        }
    }
    const float factor =
        which == 0 ? call.query_scale : 1.0f; /* times 1 changes nothing, and is less code than a choice */
    __syncwarp();                             /* what lay in the room has been read */
#pragma unroll
    for (int n = 0; n < 16; n += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float low = v[4 * (n + i / 2) + 2 * (i % 2)], high = v[4 * (n + i / 2) + 2 * (i % 2) + 1];
            words[i] = pack_bf16(__fmul_rn(low, factor), __fmul_rn(high, factor));
        }
        store_matrices(room + head_place(lane & 15, n + (lane >> 4)), words[0], words[1], words[2], words[3]);
    }
    __syncwarp();
    const int left = r.num_tokens - t0 < 16 ? (int)(r.num_tokens - t0) : 16;
    uint8_t *base = to.base + (lane & 15) * 16;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = 2 * i + (lane >> 4), at = __shfl_sync(MF_FULL_WARP, to.row, row);
        if (row < left) {
            *(uint4 *)(base + at * to.pitch) = *(const uint4 *)(room + head_place(row, lane & 15));
        }
    }
}

#endif
