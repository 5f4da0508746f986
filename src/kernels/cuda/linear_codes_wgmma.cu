/* linear_codes_wgmma.cu - linear_codes.cu's products of integer codes for some tokens, up to 64: linear_wgmma.cu's WAVE
 * with weights that become bf16 in registers, as the products' operand.
 *
 * 64 weight rows a cluster of 4 or 8 blocks, two runs of k a block.  A lane loads chunks of its warp's rows g and g +
 * 8, the first of them before the kernel in front has ended; the four lanes of a row hand each other words, so that
 * each has of every 16 columns that follow one another those that the operand wants: 2q, 2q + 1, 2q + 8 and 2q + 9. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_codes.cuh"
#include "kernels/cuda/linear_wave.cuh"

namespace
{

constexpr int X_UNITS = 8; /* at most, of the ring of tokens: 64 columns each */
constexpr int X_ROOM = 64 * 1024;

/* A lane's chunk becomes its words of the four chunks.  8 bits: its columns in order.  4 bits: codes i and i + 4 of a
 * word are neighbours, i = 0, 1 of the chunk's first instruction. */
template <int KIND> MF_DEV void share_chunk(uint32_t (&w)[4], const uint4 &v, int q)
{
    if (kind_of<KIND>::IS_8BIT) {
        w[0] = __byte_perm(v.x, v.z, 0x5410);
        w[1] = __byte_perm(v.x, v.z, 0x7632);
        w[2] = __byte_perm(v.y, v.w, 0x5410);
        w[3] = __byte_perm(v.y, v.w, 0x7632);
    } else {
        constexpr uint32_t EVEN = 0x0f0f0f0fu;
        const uint32_t even[2] = { (v.x & EVEN) | (v.y << 4 & ~EVEN), (v.z & EVEN) | (v.w << 4 & ~EVEN) };
        const uint32_t odd[2] = { (v.x >> 4 & EVEN) | (v.y & ~EVEN), (v.z >> 4 & EVEN) | (v.w & ~EVEN) };
        const uint32_t low[2] = { __byte_perm(even[0], even[1], 0x5140), __byte_perm(even[0], even[1], 0x7362) };
        const uint32_t high[2] = { __byte_perm(odd[0], odd[1], 0x5140), __byte_perm(odd[0], odd[1], 0x7362) };
        w[0] = __byte_perm(low[0], high[0], 0x5410);
        w[1] = __byte_perm(low[0], high[0], 0x7632);
        w[2] = __byte_perm(low[1], high[1], 0x5410);
        w[3] = __byte_perm(low[1], high[1], 0x7632);
    }
    transpose(w, q);
}

/* N tokens, in a ring of call.x_stages units. */
template <int KIND, int N, int BLOCKS, bool UNIFORM>
__global__ void __launch_bounds__(STREAM_THREADS) codes_kernel(const __grid_constant__ mf_cuda_linear_maps call)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    using kind = kind_of<KIND>;
    constexpr int X_BYTES = N * LINE, RUNS = BLOCKS * WAVE_EACH, HELD = 256 / kind::BLOCK;
    extern __shared__ __align__(1024) uint8_t tokens[];
    __shared__ uint64_t full[X_UNITS];
    const mf_cuda_linear &p = call.p;
    const int rank = blockIdx.x % BLOCKS, block = blockIdx.x / BLOCKS, which = matrix_of(p, block);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const mf_cuda_matrix &m = p.w[which];
    const int r0 = (int)(block - p.first_block[which]) * 64;
    const int units = (int)m.k / 64, first = run_start(rank * WAVE_EACH, units, RUNS),
              count = run_start((rank + 1) * WAVE_EACH, units, RUNS) - first;
    const int64_t rows[2] = { min((int64_t)r0 + warp * 16 + g, m.n - 1),
                              min((int64_t)r0 + warp * 16 + g + 8, m.n - 1) };
    const uint8_t *const codes[2] = { matrix_row<kind::FORMAT>(m, rows[0]), matrix_row<kind::FORMAT>(m, rows[1]) };
    scale_row<KIND> scales[2] = {};
    if constexpr (!kind::IS_8BIT) {
        scales[0] = scale_row<KIND>::at(m, rows[0]);
        scales[1] = scale_row<KIND>::at(m, rows[1]);
    }
    auto bring_tokens = [&](int unit, int slot) {
        barrier_expect(&full[slot], X_BYTES);
        copy_box(tokens + slot * X_BYTES, &call.x, 0, first + unit, &full[slot]);
    };
    if (tid == 0) {
        for (int s = 0; s < X_UNITS; s++) {
            barrier_init(&full[s], 1);
        }
        barrier_init_fence();
    }
    /* Runs that end at these columns; the second begins where the first ends. */
    const int ends[WAVE_EACH] = { run_start(rank * WAVE_EACH + 1, units, RUNS) * 64, (first + count) * 64 };
    held_codes<KIND, HELD> next;
    held_codes<KIND, HELD>::load(next, (int)m.k, scales, codes, first * 64, first * 64 < ends[0] ? ends[0] : ends[1],
                                 q);
    let_next_start();
    wait_for_previous();
    if (tid == 0) {
        for (int i = 0; i < min(count, call.x_stages); i++) {
            bring_tokens(i, i);
        }
    }
    __syncthreads();
    float acc[WAVE_EACH][N / 2];
    clear_sums<WAVE_EACH, N>(acc);
    int unit = 0, slot = 0, column = first * 64;
    uint32_t parity = 0;
#pragma unroll
    for (int e = 0; e < WAVE_EACH; e++) {
        const int end = ends[e];
#pragma unroll 1
        while (column < end) {
            const held_codes<KIND, HELD> held = next;
            const int behind = min(column + 256, end), last = ends[WAVE_EACH - 1];
            if (behind < last) {
                held_codes<KIND, HELD>::load(next, (int)m.k, scales, codes, behind, behind < end ? end : last, q);
            }
#pragma unroll
            for (int d = 0; d < HELD; d++) {
                const int at = column + d * kind::BLOCK;
                if (at >= end) {
                    break;
                }
                uint32_t w[2][4];
                share_chunk<KIND>(w[0], held.v[d][0], q);
                share_chunk<KIND>(w[1], held.v[d][1], q);
#pragma unroll
                for (int u = 0; u < kind::BLOCK / 64; u++) {
                    if (at + u * 64 >= end) {
                        break;
                    }
                    barrier_wait(&full[slot], parity);
                    const uint64_t operand = product_operand(tokens + slot * X_BYTES);
#pragma unroll
                    for (int c = 0; c < 64 / kind::CHUNK; c++) {
                        const int lender = u * (64 / kind::CHUNK) + c;
                        uint32_t a[2][2 * kind::STEPS];
                        widen_chunk<KIND, UNIFORM>(a, held.groups[d], lender, w[0][lender], w[1][lender]);
                        products_begin();
#pragma unroll
                        for (int s = 0; s < kind::STEPS; s++) {
                            packed_products<N>::add(acc[e], a[0][2 * s], a[1][2 * s], a[0][2 * s + 1], a[1][2 * s + 1],
                                                    operand + 2 * (c * kind::STEPS + s));
                        }
                        products_commit();
                        products_wait<1>();
                    }
                    if (unit + call.x_stages < count) {
                        products_wait<0>();
                        __syncthreads();
                        if (tid == 0) {
                            bring_tokens(unit + call.x_stages, slot);
                        }
                    }
                    unit++;
                    if (++slot == call.x_stages) {
                        slot = 0;
                        parity ^= 1;
                    }
                }
            }
            column = behind;
        }
    }
    finish_wave<N, BLOCKS>(p, which, r0, rank, (float *)tokens, acc, [&](int64_t row, float v) {
        const float scaled = kind::IS_8BIT ? __fmul_rn(v, scale_at(m, matrix_scale_row<kind::FORMAT>(m, row))) : v;
        return p.bias[which] ? __fadd_rn(scaled, p.bias[which][row]) : scaled;
    });
}

template <int KIND, int N, int BLOCKS, bool UNIFORM> int launch_codes(mf_cuda_linear_maps &call, void *stream)
{
    constexpr int X_BYTES = N * LINE, FITS = X_ROOM / X_BYTES < X_UNITS ? X_ROOM / X_BYTES : X_UNITS;
    const int units = (int)(call.p.w[0].k / 64), of_block = (units + BLOCKS - 1) / BLOCKS;
    call.x_stages = of_block < FITS ? of_block : FITS;
    const size_t sums = (size_t)WAVE_EACH * N * 68 * 4, ring = (size_t)call.x_stages * X_BYTES;
    return launch_clusters(BLOCKS, codes_kernel<KIND, N, BLOCKS, UNIFORM>,
                           dim3((unsigned)(call.p.first_block[call.p.num] * BLOCKS)), STREAM_THREADS,
                           ring < sums ? sums : ring, stream, call);
}

template <int KIND, int N, bool UNIFORM> int launch_runs(mf_cuda_linear_maps &call, void *stream)
{
    return call.p.runs == 8 ? launch_codes<KIND, N, 4, UNIFORM>(call, stream)
                            : launch_codes<KIND, N, 8, UNIFORM>(call, stream);
}

template <int KIND, bool UNIFORM> int launch_tokens(mf_cuda_linear_maps &call, void *stream)
{
    return call.x_rows == 16   ? launch_runs<KIND, 16, UNIFORM>(call, stream)
           : call.x_rows == 32 ? launch_runs<KIND, 32, UNIFORM>(call, stream)
                               : launch_runs<KIND, 64, UNIFORM>(call, stream);
}

} // namespace

int mf_cuda_launch_linear_codes_stream(mf_cuda_linear_maps *call, int kind, void *stream)
{
    return with_uniform_kind(call->p, kind, [&](auto k, auto uniform) {
        return launch_tokens<decltype(k)::value, decltype(uniform)::value>(*call, stream);
    });
}
