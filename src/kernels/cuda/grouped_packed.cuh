/* grouped_packed.cuh - grouped.cu's products for weights that are no bf16 and activations of bf16: both in one launch.
 * grouped_packed.cu has it for codes of 4 bits, grouped_blocks.cu for FP8 blocks, grouped_wide.cu for the rest.
 *
 * Tensor copies bring rows of codes, a stage's 256 columns (wide: 128) at a time; a thread loads its 32 of every 128
 * columns of two rows, makes bf16 of them in registers, and these are the products' operand (packed.cuh).  Rows of that
 * operand are free as well: in w13 a thread's two rows are a gate row and its up row, so that it ends with both sums of
 * one result.  Tokens are gathered as in grouped.cu, from a copy with their columns in the operand's order; the
 * intermediate is written so.
 *
 * Sums: columns ascending in steps of 128, inside them in the operand's order, one accumulator.  Codes of 4 bits:
 * weights rounded to bf16 once (MXFP4: exact).  Wide ones are exact: FP8 blocks have the 128 columns in an accumulator
 * of their own, which times their scale is added to the sum; a row's scale multiplies the sum at the end; F16 is two
 * products a step.  TILES 64-row tiles a warpgroup, up to MAX tokens: neither changes a bit. */
#ifndef MF_KERNELS_CUDA_GROUPED_PACKED_CUH
#define MF_KERNELS_CUDA_GROUPED_PACKED_CUH

#include <type_traits>

#include "kernels/cuda/packed_rows.cuh"
#include "kernels/cuda/packed_wide.cuh"

namespace
{

/* ---- the two warpgroups that multiply ---- */

/* COUNT registers of each row: 8 columns each, from the 16 that begin at 16 k. */
template <int KIND, int TILES, int COUNT, bool SLOW>
MF_DEV void widen(const packed_scale<KIND> (&scales)[TILES][2], const uint4 (&codes)[TILES][2], int k,
                  uint32_t (&a)[TILES][2][COUNT])
{
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 c = codes[t][half];
            const uint32_t word = k / 2 == 0 ? c.x : k / 2 == 1 ? c.y : k / 2 == 2 ? c.z : c.w;
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                a[t][half][i] = packed_scale<KIND>::template widen<SLOW>(scales[t][half], word, 2 * (k & 1) + i);
            }
        }
    }
}

template <int KIND, int TILES, int MAX, int N>
MF_DEV void multiply(const mf_cuda_grouped &p, unit_ref u, uint8_t *stages, shared_state *s, stage_cursor &cursor,
                     int64_t *places, uint8_t *staging)
{
    constexpr int STAGE = stage_bytes<KIND, TILES, MAX>(), TOGETHER = TILES == 1 ? 2 : 1;
    constexpr bool WIDE = false;
    typedef packed_scale<KIND> scale_type;
    const int tid = threadIdx.x - PRODUCERS, group = tid >> 7, warp = tid >> 5 & 3, lane = tid & 31, g = lane >> 2,
              q = lane & 3;
    const int steps = u->steps;
    const bool is_down = u->is_down;
    const mf_cuda_slot &slot = p.e.slots[u->slot];
    const mf_cuda_matrix &m0 = is_down ? slot.down : slot.gate, &m1 = is_down ? slot.down : slot.up;
    const scale_grid grid = grid_of<KIND>(m0);
    const int pieces = (int)((m0.k + 127) >> 7);
    if (is_down) {
        list_places(p, u, places);
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        float acc[TILES][N / 2];
        int rows[TILES][2]; /* of the stage */
        uint32_t addresses[TILES][2], zero_addresses[TILES][2];
        const int first = u->row + 128 * TILES * step;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                acc[t][i] = 0.0f;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r =
                    is_down ? down_row<WIDE, TILES>(group, warp, g, t, half) : up_row<WIDE, TILES>(group, warp, g, t);
                const mf_cuda_matrix &m = half ? m1 : m0;
                const uint32_t at = (uint32_t)(first + r) * (uint32_t)m.scale_row_stride;
                addresses[t][half] = (uint32_t)(uintptr_t)m.scale + at * grid.size;
                zero_addresses[t][half] = (uint32_t)(uintptr_t)m.zero + at;
                rows[t][half] = is_down || !half ? r : 64 * TILES + r;
            }
            pin(acc[t]);
        }
        int previous = -1;
#pragma unroll 1
        for (int piece = 0; piece < pieces; piece++) {
            const uint8_t *stage = stages + cursor.stage * STAGE;
            const int half_line = piece & 1;
            scale_type scales[TILES][2];
            uint4 codes[TILES][2];
            bool slow = false;
            if (!half_line) {
                barrier_wait(&s->full[cursor.stage], cursor.parity);
                fence_shared_for_products();
            }
#pragma unroll
            for (int t = 0; t < TILES; t++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = rows[t][half];
                    const raw_scale raw = load_scale<KIND>(
                        stage + scales_at<KIND, TILES, MAX>(), stage + zeros_at<KIND, TILES, MAX>(), grid, row,
                        addresses[t][half], zero_addresses[t][half], piece >> 1, 128 * half_line + 32 * q);
                    codes[t][half] = *(const uint4 *)(stage + swizzled(row, 4 * half_line + q));
                    scales[t][half] = scale_type::make(raw.bits, raw.zero);
                    slow = slow || scale_type::is_slow(scales[t][half]);
                }
            }
            slow = __any_sync(MF_FULL_WARP, slow);
            const uint64_t tokens = product_operand(stage + tokens_at<KIND, TILES>() + half_line * 2 * MAX * LINE);
#pragma unroll
            for (int k = 0; k < 8; k += TOGETHER) { /* 16 columns each */
                uint32_t a[TILES][2][2 * TOGETHER];
                if (slow) {
                    widen<KIND, TILES, 2 * TOGETHER, true>(scales, codes, k, a);
                } else {
                    widen<KIND, TILES, 2 * TOGETHER, false>(scales, codes, k, a);
                }
                products_begin();
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    const uint64_t part = tokens + (k >> 2) * (MAX * LINE >> 4) + 2 * ((k + i) & 3);
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        packed_products<N>::add(acc[t], a[t][0][2 * i], a[t][1][2 * i], a[t][0][2 * i + 1],
                                                a[t][1][2 * i + 1], part);
                    }
                }
                products_commit();
                products_wait<1>();
                if (k == 0 && !half_line) { /* all of the stage before has been read */
                    if (previous >= 0 && lane == 0) {
                        barrier_arrive(&s->empty[previous]);
                    }
                    previous = cursor.stage;
                }
            }
            if (half_line || piece + 1 == pieces) {
                stage_cursor::next(cursor);
            }
        }
        products_wait<0>();
        if (lane == 0) {
            barrier_arrive(&s->empty[previous]);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            pin(acc[t]);
        }
        if (is_down) {
            write_down<WIDE, TILES, N>(p, u, first, acc, places, staging);
        } else {
            write_up<WIDE, TILES, N>(p, u, acc, staging);
        }
    }
}

template <int KIND, int TILES, int MAX>
MF_DEV void consume(const mf_cuda_grouped &p, int tiles, uint8_t *stages, shared_state *s, int64_t *places,
                    uint8_t *staging, const scale_words *words, float *token_scales)
{
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int i = 0;; i++) {
        barrier_wait(&s->full[cursor.stage], cursor.parity);
        unit_ref u = &s->units[i % UNITS];
        if (u->slot < 0) {
            leave_counters(p, tiles);
            return;
        }
        auto go = [&](auto n) {
            constexpr int N = decltype(n)::value;
            if constexpr (packed_kind<KIND>::WIDE && BLOCKS<MAX> == 2) {
                multiply_few<KIND, MAX, N>(p, u, stages, s, cursor, places, staging, words, token_scales);
            } else if constexpr (KIND == MF_CUDA_PACKED_FP8_BLOCK) {
                multiply_blocks<TILES, MAX, N>(p, u, stages, s, cursor, places, staging, words);
            } else if constexpr (packed_kind<KIND>::WIDE) {
                multiply_wide<KIND, TILES, MAX, N>(p, u, stages, s, cursor, places, staging, token_scales);
            } else {
                multiply<KIND, TILES, MAX, N>(p, u, stages, s, cursor, places, staging);
            }
        };
        if constexpr (MAX < 128) {
            if (u->count <= 8) {
                go(std::integral_constant<int, 8>());
            } else if (MAX == 16 || u->count <= 16) {
                go(std::integral_constant<int, 16>());
            } else if (MAX == 32 || u->count <= 32) {
                go(std::integral_constant<int, (MAX < 32 ? MAX : 32)>());
            } else {
                go(std::integral_constant<int, MAX>());
            }
        } else {
            if (u->count <= 32) {
                go(std::integral_constant<int, 32>());
            } else if (u->count <= 64) {
                go(std::integral_constant<int, 64>());
            } else if (u->count <= 96) {
                go(std::integral_constant<int, 96>());
            } else {
                go(std::integral_constant<int, 128>());
            }
        }
    }
}

/* ---- the warp that brings weights, and gives out work ---- */

template <int KIND, int TILES, int MAX>
MF_DEV void bring_weights(const mf_cuda_grouped &p, const int32_t *offsets, const int32_t *prefix, uint32_t first_unit,
                          uint8_t *stages, shared_state *s)
{
    constexpr int STAGE = stage_bytes<KIND, TILES, MAX>();
    typedef packed_kind<KIND> kind;
    const int slots = (int)p.e.num_slots, tiles = prefix[slots];
    const int64_t ups = (int64_t)tiles * p.up_tiles, units = ups + (p.phase == 1 ? 0 : (int64_t)tiles * p.down_units);
    const int64_t before = p.phase == 2 ? ups : 0;
    stage_cursor cursor = { 0, p.stages, 1 };
    int64_t next = before + first_unit;
    int made = 0;
    while (next < units) {
        const int64_t claimed = before + claim_unit(p);
        const bool is_down = next >= ups;
        const int64_t local = is_down ? next - ups : next;
        const int row_tiles = is_down ? p.down_units : p.up_tiles;
        const int low = slot_of(prefix, slots, (int)(local / row_tiles));
        const int slot_tiles = prefix[low + 1] - prefix[low], inside = (int)(local - (int64_t)prefix[low] * row_tiles);
        const int row_tile = inside / slot_tiles, tile = inside % slot_tiles;
        const int begin = offsets[low], count = offsets[low + 1] - begin, size = tile_size(count, slot_tiles);
        const int width = p.width > 0 ? p.width : (int)p.e.slots[low].up.n;
        unit u;
        u.slot = low;
        u.is_down = is_down;
        u.first = begin + tile * size;
        u.count = min(size, count - tile * size);
        u.steps = is_down ? min(p.down_steps, p.down_tiles - row_tile * p.down_steps) : 1;
        u.row = row_tile * (is_down ? 128 * TILES * p.down_steps : 64 * TILES);
        u.lines = ((is_down ? width : (int)p.e.hidden_size) + kind::COLUMNS - 1) / kind::COLUMNS;
        u.tile = prefix[low] + tile;
        u.need = (width + 64 * TILES - 1) / (64 * TILES);
        if (u.count > 0 && (is_down || u.row < width)) {
            const CUtensorMap *maps = (const CUtensorMap *)p.maps + (int64_t)low * 3;
            const int stages_used = u.steps * u.lines;
            for (int i = 0, line = 0, first = u.row; i < stages_used; i++) {
                barrier_wait(&s->empty[cursor.stage], cursor.parity);
                if (i == 0) {
                    announce(s, made++, u);
                }
                uint64_t *full = &s->full[cursor.stage];
                uint8_t *to = stages + cursor.stage * STAGE;
                barrier_expect(full, tokens_at<KIND, TILES>());
#pragma unroll
                for (int k = 0; k < 2 * TILES; k++) {
                    const CUtensorMap *map = is_down ? maps + 2 : k < TILES ? maps : maps + 1;
#pragma unroll
                    for (int c = 0; c < kind::CODE_LINES; c++) {
                        copy_packed_box(to + (c * 2 * TILES + k) * SUBTILE, map, first + 64 * (is_down ? k : k % TILES),
                                        LINE * (kind::CODE_LINES * line + c), full);
                    }
                }
                stage_cursor::next(cursor);
                if (++line == u.lines) {
                    line = 0;
                    first += 128 * TILES;
                }
            }
        }
        next = claimed;
    }
    barrier_wait(&s->empty[cursor.stage], cursor.parity);
    announce_end(s, made);
    barrier_arrive(&s->full[cursor.stage]);
}

/* ---- the warps that gather tokens ---- */

/* A stage's scales of 4-bit codes. */
template <int KIND, int TILES, int MAX>
MF_DEV void gather_scales(const scale_grid &grid, const mf_cuda_matrix &m0, const mf_cuda_matrix &m1, int row0,
                          bool is_down, int line, uint8_t *stage)
{
    const int first = first_scale(grid, line), count = scales_of_line(grid), num_rows = (int)m0.n;
    const int stride0 = (int)m0.scale_row_stride, stride1 = (int)m1.scale_row_stride;
    for (int r = threadIdx.x - 32; r < 128 * TILES; r += GATHERERS) {
        const bool is_up = !is_down && r >= 64 * TILES;
        const int row = row0 + (is_up ? r - 64 * TILES : r);
        const int at = row < num_rows ? row * (is_up ? stride1 : stride0) : 0,
                  columns = row < num_rows ? grid.columns : 0;
        copy_elements(stage + scales_at<KIND, TILES, MAX>() + r * SCALE_PITCH,
                      (is_up ? m1.scale : m0.scale) + (int64_t)at * grid.size, first, count, grid.size, columns);
        if (grid.has_zeros) {
            copy_elements(stage + zeros_at<KIND, TILES, MAX>() + r * ZERO_PITCH, (is_up ? m1.zero : m0.zero) + at,
                          first, count, 1, columns);
        }
    }
}

/* The words that hold those of FP8 blocks: gate's and up's, or of TILES blocks of w2. */
template <int TILES>
MF_DEV void gather_block_scales(const mf_cuda_matrix &m0, const mf_cuda_matrix &m1, int row, bool is_down, int line,
                                uint32_t *words)
{
    const int tid = threadIdx.x - 32;
    const int own_row = is_down ? row + 128 * tid : row;
    const mf_cuda_matrix &m = tid ? m1 : m0;
    if (tid < (is_down ? TILES : 2) && own_row < m.n) {
        const uint8_t *at = block_scale_at(m, own_row, line);
        const int before = (int)((uintptr_t)at & 3);
        copy_bytes_async(words + tid, at - before, before + scale_size(m.scale_dtype));
    }
}

template <int KIND, int TILES, int MAX>
MF_DEV void gather(const mf_cuda_grouped &p, uint32_t *rows, uint8_t *stages, shared_state *s, scale_words *words)
{
    typedef packed_kind<KIND> kind;
    constexpr int STAGE = stage_bytes<KIND, TILES, MAX>(), CHUNKS = 8 * kind::TOKEN_LINES, TOKEN_BYTES = CHUNKS * 16;
    const int tid = threadIdx.x - 32, chunk = tid % CHUNKS, first_row = tid / CHUNKS;
    stage_cursor cursor = { 0, p.stages, 0 };
    for (int n = 0;; n++) {
        const unit u = *(const unit *)announced_unit(s, n);
        if (u.slot < 0) {
            barrier_arrive(&s->full[cursor.stage]);
            return;
        }
        const mf_cuda_slot &slot = p.e.slots[u.slot];
        const mf_cuda_matrix &m0 = u.is_down ? slot.down : slot.gate, &m1 = u.is_down ? slot.down : slot.up;
        const int pieces = (int)((m0.k + 127) >> 7);
        scale_grid grid;
        if constexpr (!kind::WIDE) {
            grid = grid_of<KIND>(m0);
        }
        if (u.is_down && p.phase != 2 && tid == 0) { /* one, not all of a launch's gatherers at one word */
            while (load_acquire(p.work + MF_CUDA_WORK_TILES + u.tile) < (uint32_t)u.need) {
            }
        }
        named_barrier<BARRIER_GATHER, GATHERERS>(); /* nobody reads the last unit's rows any more */
        for (int t = tid; t < u.count; t += GATHERERS) {
            rows[t] = u.is_down ? (uint32_t)(u.first + t) : (uint32_t)p.sorted[u.first + t] / (uint32_t)p.e.num_columns;
        }
        named_barrier<BARRIER_GATHER, GATHERERS>();
        const uint8_t *rows_from = (u.is_down ? p.h_bytes : p.x_bytes) + chunk * 16;
        const uint32_t pitch = (uint32_t)(u.is_down ? p.h_pitch : p.x_pitch);
        const uint32_t to_line = tokens_at<KIND, TILES>() + (chunk >> 3) * MAX * LINE;
        for (int step = 0; step < u.steps; step++) {
            for (int line = 0; line < u.lines; line++) {
                if (step + line > 0) {
                    barrier_wait(&s->empty[cursor.stage], cursor.parity ^ 1);
                }
                uint8_t *stage = stages + cursor.stage * STAGE, *to = stage + to_line;
                const uint8_t *from = rows_from + line * TOKEN_BYTES;
                /* A row's last stage may be half. */
                const int there = kind::WIDE || 2 * line + (chunk >> 4) < pieces ? u.count : 0;
#pragma unroll 4
                for (int t = first_row; t < there; t += GATHERERS / CHUNKS) {
                    copy_async(to + swizzled(t, chunk & 7), from + (uint64_t)rows[t] * pitch, true);
                }
                const int row = u.row + (u.is_down ? 128 * TILES * step : 0);
                if constexpr (!kind::WIDE) {
                    gather_scales<KIND, TILES, MAX>(grid, m0, m1, row, u.is_down, line, stage);
                } else if constexpr (KIND == MF_CUDA_PACKED_FP8_BLOCK) {
                    gather_block_scales<TILES>(m0, m1, row, u.is_down, line, words->of[cursor.stage]);
                }
                barrier_arrive_after_copies(&s->full[cursor.stage]);
                stage_cursor::next(cursor);
            }
        }
    }
}

template <int KIND, int TILES, int MAX>
__global__ void __launch_bounds__(THREADS, BLOCKS<MAX>) packed_kernel(const __grid_constant__ mf_cuda_grouped p)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[]; /* no other shared memory: it begins at a swizzle atom */
    uint8_t *staging = stages + p.stages * stage_bytes<KIND, TILES, MAX>();
    int64_t *places = (int64_t *)(staging + (TILES == 2 ? STAGING : 0));
    shared_state *s = (shared_state *)(places + MAX);
    scale_words *words = (scale_words *)(s + 1);
    float *token_scales = TILES == 2 ? (float *)staging : (float *)(words + 1); /* with codes of a scale a token */
    int32_t *offsets = (int32_t *)(words + 1) + (TILES == 2 ? 0 : MAX), *prefix = offsets + p.e.num_slots + 1;
    if (threadIdx.x == 0) {
        init_state(s, p.stages, packed_kind<KIND>::WIDE && BLOCKS<MAX> == 2 ? 256 : 8);
    }
    wait_for_previous();
    let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    const uint32_t first = threadIdx.x == 0 ? claim_unit(p) : 0;
    scan_tiles(p, MAX, offsets, prefix, s->sums);
    if (threadIdx.x < PRODUCERS) {
        give_registers<PRODUCER_REGISTERS_OF<KIND, MAX>>();
        if (threadIdx.x == 0) {
            bring_weights<KIND, TILES, MAX>(p, offsets, prefix, first, stages, s);
        } else if (threadIdx.x >= 32) {
            gather<KIND, TILES, MAX>(p, (uint32_t *)(prefix + p.e.num_slots + 1), stages, s, words);
        }
    } else {
        take_registers<CONSUMER_REGISTERS_OF<KIND, MAX>>();
        zero_strangers(p);
        consume<KIND, TILES, MAX>(p, prefix[p.e.num_slots], stages, s, places, staging, words, token_scales);
    }
}

template <int KIND, int TILES, int MAX> int launch(const mf_cuda_grouped *call, cudaStream_t stream)
{
    const auto kernel = packed_kernel<KIND, TILES, MAX>;
    const size_t bytes = (size_t)call->stages * stage_bytes<KIND, TILES, MAX>() + (TILES == 2 ? STAGING : 0) + MAX * 8 +
                         sizeof(shared_state) + sizeof(scale_words) + ((size_t)call->e.num_slots + 1) * 8 +
                         MAX * (TILES == 2 ? 4 : 8);
    return launch_shared(true, kernel, dim3((unsigned)call->blocks), THREADS, bytes, stream, *call);
}

/* The plan's shared memory, and its tiles. */
template <int KIND> int launch_kind(const mf_cuda_grouped *call, cudaStream_t stream)
{
    constexpr int TILES = KIND == MF_CUDA_PACKED_F16 ? 1 : 2;
    switch (call->max_tokens) {
    case MF_CUDA_PACKED_FEW:
        return launch<KIND, 1, MF_CUDA_PACKED_FEW>(call, stream);
    case MF_CUDA_PACKED_SEVERAL:
        if constexpr (packed_kind<KIND>::WIDE) {
            return launch<KIND, 1, MF_CUDA_PACKED_SEVERAL>(call, stream);
        }
    case MF_CUDA_PACKED_SOME:
        return launch<KIND, 1, MF_CUDA_PACKED_SOME>(call, stream);
    default:
        return launch<KIND, TILES, MF_CUDA_PACKED_MANY>(call, stream);
    }
}

} // namespace

#endif
