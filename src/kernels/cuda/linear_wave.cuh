/* linear_wave.cuh - the end of a product whose runs of k are a cluster's, two a block: WAVE of linear_wgmma.cu and
 * linear_codes_wgmma.cu. */
#ifndef MF_KERNELS_CUDA_LINEAR_WAVE_CUH
#define MF_KERNELS_CUDA_LINEAR_WAVE_CUH

#include "kernels/cuda/linear_input.cuh"
#include "kernels/cuda/linear_lines.cuh"

constexpr int STREAM_THREADS = 128;

/* Two runs of k a block: clusters of half as many blocks as there are runs. */
constexpr int WAVE_EACH = 2;

/* Sums of EACH runs at zero; products may follow. */
template <int EACH, int N> MF_DEV void clear_sums(float (&acc)[EACH][N / 2])
{
#pragma unroll
    for (int e = 0; e < EACH; e++) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[e][i] = 0.0f;
        }
        pin(acc[e]);
    }
}

/* A warpgroup's sums of 64 rows by N tokens, EACH runs, to [EACH][N][PITCH]. */
template <int EACH, int N, int PITCH> MF_DEV void lay_sums(float *sums, float (&acc)[EACH][N / 2])
{
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        pin(acc[e]);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int t = n * 8 + 2 * q + (k & 1), r = warp * 16 + g + 8 * (k >> 1);
                sums[(e * N + t) * PITCH + r] = acc[e][4 * n + k];
            }
        }
    }
}

/* 64 rows from r0 on; sums: room for [WAVE_EACH][N][68] over what was multiplied; finish:
 * what a row's sum becomes. */
template <int N, int BLOCKS, typename FINISH>
MF_DEV void finish_wave(const mf_cuda_linear &p, int which, int r0, int rank, float *sums,
                        float (&acc)[WAVE_EACH][N / 2], FINISH finish)
{
    constexpr int RUNS = BLOCKS * WAVE_EACH, OWN = 64 / BLOCKS, PITCH = 68;
    const int tid = threadIdx.x;
    const int64_t num_rows = p.num_batches > 0 ? p.rows : p.w[which].n;
    products_wait<0>();
    __syncthreads();
    lay_sums<WAVE_EACH, N, PITCH>(sums, acc);
    cluster_sync();
    float *out = p.out[which] + (p.num_batches > 0 ? blockIdx.z * p.out_step : 0);
    const int64_t stride = p.out_stride[which];
    const bool is_wide = stride % 4 == 0 && (uintptr_t)out % 16 == 0;
#pragma unroll 1
    for (int at = tid; at < OWN / 4 * N; at += STREAM_THREADS) { /* this block's rows, four at a time */
        const int r = rank * OWN + at % (OWN / 4) * 4, t = at / (OWN / 4);
        float4 part[RUNS];
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            part[run] = load_4_of_block(sums + (run % WAVE_EACH * N + t) * PITCH + r, run / WAVE_EACH);
        }
        float v[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            v[0] = __fadd_rn(v[0], part[run].x);
            v[1] = __fadd_rn(v[1], part[run].y);
            v[2] = __fadd_rn(v[2], part[run].z);
            v[3] = __fadd_rn(v[3], part[run].w);
        }
        if (t >= p.num_tokens) {
            continue;
        }
        float *to = out + t * stride + r0 + r;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v[k] = r0 + r + k < num_rows ? finish(r0 + r + k, v[k]) : v[k];
        }
        if (is_wide && r0 + r + 4 <= num_rows) {
            *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
            continue;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (r0 + r + k < num_rows) {
                to[k] = v[k];
            }
        }
    }
    cluster_sync(); /* nobody leaves whose sums are being read */
}

#endif
