/* grouped_one.cu - grouped.cu's products for a few tokens, the combine behind them: the same sums in one launch that
 * streams weights without a gap.
 *
 * All tokens of the call (at most four) are the products' columns for every slot that one of them chose.  Work is dealt
 * out by block before anything runs: units of 8 gate and 8 up rows (FP8: stages of units, so that a unit may begin in
 * one block and end in the next), then groups of w2's rows of all slots, so that a block has every addend of its output
 * rows.  One thread asks for the block's weights from the first to the last; those of w2 land while other blocks still
 * multiply w13.  The intermediate is handed over in words that say themselves from which launch they are.
 *
 * Blocks wait for one another's intermediate, so nobody may wait for a block that does not run: before a block turns to
 * w2 it takes the shares of w13 of blocks that have not started.  Blocks start in the order of their index.
 *
 * bf16: a warp has a unit's rows, or a slot's rows of w2, by mma.sync, whose sums are wgmma's to the bit.  FP8 w13: a
 * product's 64 rows are 8 lines of 8 rows and its columns the tokens' codes of as many lines: a line's part is where
 * its line meets itself; parts go to shared memory, from where other warps add them in the order of lines.  FP8 w2: a
 * product's 64 rows are a line of a block's rows of a slot. */
#include "kernels/cuda/grouped_one_codes.cuh"

namespace
{

/* ---- bf16: a warp's products ---- */

/* What a warp multiplies of a line: four tiles of weights and of tokens. */
struct line_tiles {
    uint32_t a[4][4], b[2][4];
};

template <int LINE_ROWS>
MF_DEV void load_line(line_tiles &t, uint32_t rows, int row, uint32_t tokens, int token, int line)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        load_tiles(t.b[k], tokens + row_chunk(token, line * 8 + k * 4 + (lane >> 3)));
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        load_tiles(t.a[k], rows + line * (LINE_ROWS * LINE) + row_chunk(row, k * 2 + (lane >> 4)));
    }
}

MF_DEV void add_line_tiles(float (&acc)[4], const line_tiles &t)
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        mma_bf16(acc, t.a[k][0], t.a[k][1], t.a[k][2], t.a[k][3], t.b[k / 2][2 * (k & 1)], t.b[k / 2][2 * (k & 1) + 1]);
    }
}

/* Lines of 16 rows, of which LINE_ROWS lie together, by the tokens' rows; a lane names one row of each.  A line is
 * loaded while the one before is multiplied. */
template <int LINE_ROWS>
MF_DEV void add_lines(float (&acc)[4], uint32_t rows, int row, uint32_t tokens, int token, int lines)
{
    line_tiles even, odd;
    load_line<LINE_ROWS>(even, rows, row, tokens, token, 0);
    for (int line = 0; line < lines; line += 2) {
        load_line<LINE_ROWS>(odd, rows, row, tokens, token, min(line + 1, lines - 1));
        add_line_tiles(acc, even);
        if (line + 1 < lines) {
            load_line<LINE_ROWS>(even, rows, row, tokens, token, min(line + 2, lines - 1));
            add_line_tiles(acc, odd);
        }
    }
}

/* A share of w13, a warp a unit. */
template <bool WARPWISE>
MF_DEV void multiply_units(const mf_cuda_grouped &p, one_state *s, const uint8_t *stages, const uint8_t *x, int block,
                           int own_units, stage_cursor &r)
{
    const int warp = (threadIdx.x - PRODUCERS) >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3,
              row = lane & 7;
    const int tokens = (int)p.e.num_tokens, token = min(row, tokens - 1), per_slot = up_units_of(p),
              up_stages = (p.one.x_lines + UP_LINES - 1) / UP_LINES;
    const uint32_t base = shared_address(stages), x_row = shared_address(x) + token * (uint32_t)(p.e.hidden_size * 2);
    constexpr int AT_ONCE = order<false, WARPWISE>::AT_ONCE;
    for (int first = 0; first < own_units; first += AT_ONCE) {
        const int end = min(first + AT_ONCE, own_units), mine = first + ((warp - first) & (WARPS - 1));
        const int unit = block + in_turn<WARPWISE>(mine, own_units) * gridDim.x, tile = unit / per_slot,
                  first_row = (unit - tile * per_slot) * UP_ROWS;
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        for (int k = 0; k < up_stages; k++) {
            for (int n = first; n < end; n++) { /* all see every stage, or they would miss its turns */
                barrier_wait(&s->full[r.stage], r.parity);
                if (n == mine) { /* lanes 8-15 and 24-31 name up's rows */
                    add_lines<UP_ROWS>(acc, base + r.stage * STAGE + (lane >> 3 & 1) * HALF + row * LINE, row,
                                       x_row + k * UP_LINES * LINE, token, min(UP_LINES, p.one.x_lines - k * UP_LINES));
                }
                leave_stage(s, r);
            }
        }
        if (mine >= end) {
            continue;
        }
        barrier_wait(&s->ends, 0);
        const tile_end &slot = s->end[tile];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int t = 2 * q + e, at = first_row + g;
            float a = acc[e], b = acc[2 + e];
            if (slot.gate_bias || slot.up_bias) {
                a = __fadd_rn(a, slot.gate_bias ? slot.gate_bias[at] : 0.0f);
                b = __fadd_rn(b, slot.up_bias ? slot.up_bias[at] : 0.0f);
            }
            const float v = apply(slot.act, a, b), next = __shfl_xor_sync(MF_FULL_WARP, v, 4);
            if (!(g & 1) && t < tokens && (s->uses[tile] >> t & 1)) {
                put_word(values_of(p, s->row[tile * TOKENS + t], at), pack_bf16(v, next), s->tag);
            }
        }
    }
}

template <bool WARPWISE>
MF_DEV void multiply_bf16(const mf_cuda_grouped &p, const mf_cuda_sum &sum, one_state *s, uint8_t *stages,
                          const share &w, const uint8_t *x, uint8_t *h, float *sums)
{
    const int warp = (threadIdx.x - PRODUCERS) >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3,
              row = lane & 7, token = min(row, (int)p.e.num_tokens - 1);
    const uint32_t base = shared_address(stages);
    stage_cursor r = { 0, p.one.stages, 0 };
    const int row_bytes = p.width * 2, lines = p.width / 64;
    const uint32_t place = place_of(p);
    int own_units = w.own_units;
    for (int n = 0, block = w.block; block >= 0; n++) {
        multiply_units<WARPWISE>(p, s, stages, x, block, own_units, r);
        block = next_share(s, n);
        if (block >= 0) {
            own_units = share_of<false>(p, w.tiles, block).own_units;
        }
    }
    asking_h a = { warp, -1, 0, 0, 0 };
    if (WARPWISE) {
        barrier_wait(&s->ends, 0);
        next_row(p, s, w.tiles, a);
    } else {
        stage_h<MF_CUDA_CODES_NONE, 1>(p, s, w, h, nullptr);
    }
    for (int n = 0; n < w.groups; n++) {
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        down_order o = first_of<false, WARPWISE>(w);
        for (int i = 0; i < w.down_stages; i++, o = next_of<false, WARPWISE>(w, o)) {
            if (WARPWISE && a.tile < w.tiles) { /* others' stages are on their way meanwhile */
                ask_for_h(p, s, w.tiles, h, a);
            }
            barrier_wait(&s->full[r.stage], r.parity);
            if (o.tile % WARPS == warp) { /* a warp a slot's rows */
                while (WARPWISE && a.tile <= o.tile) {
                    ask_for_h(p, s, w.tiles, h, a);
                }
                const int tile = in_turn<WARPWISE>(o.tile, w.tiles), first_line = o.part * p.one.box_lines,
                          h_row = s->row[tile * TOKENS + token];
                add_lines<DOWN_ROWS>(acc, base + r.stage * STAGE + (lane & 15) * LINE, row,
                                     shared_address(h) + h_row * row_bytes + first_line * LINE, h_row,
                                     min(p.one.box_lines, lines - first_line));
                if (o.part + 1 == w.down_boxes) {
                    const float *bias = s->end[tile].down_bias;
                    float *to = sums_of<TOKENS>(p, sums, n % p.one.groups, tile, g) + 2 * q;
#pragma unroll
                    for (int e = 0; e < 4; e++) { /* rows g and g + 8, tokens 2q and 2q + 1 */
                        if (2 * q < TOKENS) {
                            const int at = (w.first_group + n) * DOWN_ROWS + g + 8 * (e >> 1);
                            to[(e >> 1) * 8 * TOKENS + (e & 1)] =
                                as_stored(bias ? __fadd_rn(acc[e], bias[at]) : acc[e], p.e.y_dtype);
                        }
                        acc[e] = 0.0f;
                    }
                }
            }
            leave_stage(s, r);
        }
        if ((n + 1) % p.one.groups == 0 || n + 1 == w.groups) {
            const int from = n - n % p.one.groups;
            named_barrier<STAGED, CONSUMERS>();
            end_groups<TOKENS>(p, sum, s, w, from, n + 1 - from, sums, place);
            if (n + 1 < w.groups) {
                named_barrier<STAGED, CONSUMERS>();
            }
        }
    }
}

/* ---- the helpers: three warps ---- */

MF_DEV void read_ends(const mf_cuda_grouped &p, one_state *s, const mf_cuda_sum &sum, bool combines, int tid)
{
    if (tid < s->num_tiles) {
        const mf_cuda_slot &slot = p.e.slots[s->slot[tid]];
        tile_end &end = s->end[tid];
        end.act = swiglu_of(slot.activation, slot.limit, slot.alpha); /* every load before the first use */
        end.gate_bias = slot.gate_bias;
        end.up_bias = slot.up_bias;
        end.down_bias = slot.down_bias;
        end.gate_scale = (const float *)slot.gate.scale;
        end.up_scale = (const float *)slot.up.scale;
        end.down_scale = (const float *)slot.down.scale;
        end.gate_stride = (int32_t)slot.gate.scale_row_stride;
        end.up_stride = (int32_t)slot.up.scale_row_stride;
        end.down_stride = (int32_t)slot.down.scale_row_stride;
        end.gate_is_f32 = slot.gate.scale_dtype == MF_F32;
        end.up_is_f32 = slot.up.scale_dtype == MF_F32;
        end.down_is_f32 = slot.down.scale_dtype == MF_F32;
    }
    if (tid < 64) {
        __syncwarp();
        const uint32_t biased = __ballot_sync(MF_FULL_WARP, tid < s->num_tiles && s->end[tid].down_bias);
        if ((tid & 31) == 0) {
            s->biased[tid >> 5] = biased;
        }
    }
    if (combines && tid < p.e.num_pairs) {
        const int t = tid / (int)p.e.num_columns;
        s->weight[tid] = sum_weight(sum, t, tid - t * (int)p.e.num_columns);
    }
}

/* The intermediate's rows in the order of tiles. */
MF_DEV void list_rows(one_state *s, int tid)
{
    const int tiles = s->num_tiles;
    if (tid < tiles) {
        int n = 0;
        for (int i = 0; i < tid; i++) {
            n += __popc(s->uses[i]);
        }
        for (uint32_t of = s->uses[tid]; of; of &= of - 1) {
            s->by_tile[n++] = (int16_t)(tid * TOKENS + __ffs(of) - 1);
        }
        if (tid + 1 == tiles) {
            s->num_rows = n;
        }
    } else if (tiles == 0 && tid == 0) {
        s->num_rows = 0;
    }
}

/* That of a row of weights, f32 or bf16. */
MF_DEV float row_scale(const float *scales, int64_t stride, bool is_f32, int64_t row)
{
    return is_f32 ? __ldg(scales + row * stride) : bf16_to_f32(__ldg((const uint16_t *)scales + row * stride));
}

/* Of all segments: [segment][gate, up][x_lines], or [..][8 rows]. */
template <int CODES>
MF_DEV void read_up_scales(const mf_cuda_grouped &p, const one_state *s, const share &w, float *to, int tid)
{
    if constexpr (BY_ROW<CODES>) {
        for (int i = tid; i < w.segments * 2 * UP_ROWS; i += HELPERS) {
            const int unit = segment_of(w, i / (2 * UP_ROWS)).unit, tile = unit / up_units_of(p);
            const int64_t row = (unit - tile * up_units_of(p)) * UP_ROWS + (i & 7);
            const tile_end &end = s->end[tile];
            to[i] = i & 8 ? row_scale(end.up_scale, end.up_stride, end.up_is_f32, row)
                          : row_scale(end.gate_scale, end.gate_stride, end.gate_is_f32, row);
        }
        return;
    }
    const int per_slot = up_units_of(p), lines = p.one.x_lines, each = 2 * lines;
    for (int i = tid; i < w.segments * each; i += HELPERS) {
        const int n = i / each, of = i - n * each, line = of < lines ? of : of - lines;
        const int unit = segment_of(w, n).unit, tile = unit / per_slot;
        const int64_t block = (unit - tile * per_slot) * UP_ROWS / 128;
        const tile_end &end = s->end[tile];
        copy_word_async(to + i,
                        of < lines ? end.gate_scale + block * end.gate_stride + line
                                   : end.up_scale + block * end.up_stride + line,
                        true);
    }
}

/* Of all groups: [group][block of 128 rows][tile][h_lines], for a group's rows lie in two blocks at most, or
 * [group][tile][down_rows]. */
template <int CODES>
MF_DEV void read_down_scales(const mf_cuda_grouped &p, const one_state *s, const share &w, float *to, int tid)
{
    if constexpr (BY_ROW<CODES>) {
        const int rows = p.one.down_rows;
        for (int i = tid; i < w.groups * w.tiles * rows; i += HELPERS) {
            const int of = i / rows, n = of / w.tiles;
            const tile_end &end = s->end[of - n * w.tiles];
            const int64_t row = min((w.first_group + n) * rows + i - of * rows, (int)p.e.hidden_size - 1);
            to[i] = row_scale(end.down_scale, end.down_stride, end.down_is_f32, row);
        }
        return;
    }
    const int lines = p.one.h_lines, real = p.width / 128, last = ((int)p.e.hidden_size - 1) / 128;
    for (int i = tid; i < w.groups * 2 * w.tiles * lines; i += HELPERS) {
        const int of = i / lines, line = i - of * lines, n = of / w.tiles, tile = of - n * w.tiles;
        const tile_end &end = s->end[tile];
        const int64_t block = min((w.first_group + (n >> 1)) * p.one.down_rows / 128 + (n & 1), last);
        copy_word_async(to + i, end.down_scale + block * end.down_stride + min(line, real - 1), true);
    }
}

/* A unit's sums and its rows of h.  Lanes: [token][gate, up][row]; two tokens a warp. */
MF_DEV void end_unit(const mf_cuda_grouped &p, const one_state *s, int unit, int t, float acc)
{
    const int per_slot = up_units_of(p), tile = unit / per_slot, lane = threadIdx.x & 31, row = lane & 7;
    float up = __shfl_xor_sync(MF_FULL_WARP, acc, 8);
    const tile_end &end = s->end[tile];
    const int r = (unit - tile * per_slot) * UP_ROWS + row;
    if (end.gate_bias || end.up_bias) {
        acc = __fadd_rn(acc, end.gate_bias ? end.gate_bias[r] : 0.0f);
        up = __fadd_rn(up, end.up_bias ? end.up_bias[r] : 0.0f);
    }
    const float v = apply(end.act, acc, up), next = __shfl_xor_sync(MF_FULL_WARP, v, 1);
    if (!(lane & 9) && (s->uses[tile] >> t & 1)) { /* gate's lanes of even rows */
        put_word(values_of(p, s->row[tile * TOKENS + t], r), pack_bf16(v, next), s->tag);
    }
}

/* w13's parts, added in the order of lines while the next ones are multiplied. */
template <int CODES, int T>
MF_DEV void add_up_parts(const mf_cuda_grouped &p, one_state *s, const share &w, const float *up_parts,
                         const float *x_scales, const float *up_scales, int warp)
{
    const int lane = threadIdx.x & 31, t = warp * 2 + (lane >> 4), half = lane >> 3 & 1, row = lane & 7;
    const bool adds = warp < T / 2;
    int turn = 0, batches = 0;
    for (int i = 0; i < w.segments; i++) {
        const segment of = segment_of(w, i);
        batches += (of.end - of.first + BATCH - 1) / BATCH;
    }
    for (int i = 0; i < w.segments; i++) {
        const segment of = segment_of(w, i);
        const float *weight = up_scales + (2 * i + half) * (BY_ROW<CODES> ? UP_ROWS : p.one.x_lines);
        sum_type<CODES> acc = 0;
        if (of.first > 0 && warp == 2) { /* it has nothing else to do, and is ahead of those that add */
            for (int k = lane; k < 16 * T; k += 32) {
                s->handed[k] = __uint_as_float(take_word(handed_of(p, w.block - 1, k), s->tag));
            }
        }
        for (int k = of.first; k < of.end; k += BATCH, turn++) {
            const int first = k * UP_LINES, lines = min(min(BATCH, of.end - k) * UP_LINES, p.one.x_lines - first);
            const float *parts = up_parts + ((turn & 1) * 2 + half) * (PARTS_LINES * UP_ROWS * T) + row * T + t;
            sync_in_turn<PARTS, CONSUMERS + HELPERS>(turn);
            if (adds) {
                if (k == of.first && k > 0) {
                    acc = of_word<CODES>(s->handed[threadIdx.x - 32]);
                }
#pragma unroll 8
                for (int line = 0; line < lines; line++) {
                    if constexpr (BY_ROW<CODES>) {
                        acc = plus(acc, of_word<CODES>(parts[line * (UP_ROWS * T)]));
                    } else {
                        acc = __fmaf_rn(parts[line * (UP_ROWS * T)],
                                        __fmul_rn(x_scales[(first + line) * T + t], weight[first + line]), acc);
                    }
                }
            }
            if (turn + 2 < batches) {
                arrive_in_turn<PARTS_FREE, CONSUMERS + HELPERS>(turn);
            }
        }
        if (!adds) {
            continue;
        }
        if (of.end < w.up_stages) {
            put_word(handed_of(p, w.block, threadIdx.x - 32), __float_as_uint(as_word(acc)), s->tag);
        } else if constexpr (BY_ROW<CODES>) {
            end_unit(p, s, of.unit, t, scaled_sum<CODES>(acc, x_scales[t], weight[row]));
        } else {
            end_unit(p, s, of.unit, t, acc);
        }
    }
}

template <int CODES, int T>
MF_DEV void help(const mf_cuda_grouped &p, const mf_cuda_sum &sum, one_state *s, const share &w, const float *x_scales,
                 const float *up_parts, float *up_scales, float *down_scales)
{
    const int tid = threadIdx.x - 32;
    read_ends(p, s, sum, p.one.combines, tid);
    if constexpr (CODES) {
        named_barrier<OWN, HELPERS>();
        read_down_scales<CODES>(p, s, w, down_scales, tid);
        share of = w;
        for (int n = 0, block = w.block; block >= 0; n++) {
            read_up_scales<CODES>(p, s, of, up_scales, tid);
            copy_commit();
            if (n == 0 && !BY_ROW<CODES> && p.e.num_tokens > 1) {
                list_rows(s, tid);
            }
            copy_wait<0>();
            named_barrier<OWN, HELPERS>();
            if (n == 0) {
                barrier_arrive(&s->ends);
            }
            add_up_parts<CODES, T>(p, s, of, up_parts, x_scales, up_scales, tid >> 5);
            block = next_share(s, n);
            if (block >= 0) {
                of = share_of<true>(p, w.tiles, block);
            }
        }
        barrier_arrive(&s->added);
    } else {
        barrier_arrive(&s->ends);
    }
}

/* What is read first, on its way to the L2 cache; whoever writes it yet writes it there. */
MF_DEV void prefetch_inputs(const mf_cuda_grouped &p, const mf_cuda_sum &sum)
{
    const int tid = threadIdx.x, tokens = (int)p.e.num_tokens;
    if (tid < tokens) {
        prefetch_line((const int32_t *)p.e.ids + tid * p.e.ids_stride);
    } else if (tid < 2 * tokens && p.one.combines && sum.weights) {
        prefetch_line((const float *)sum.weights + (tid - tokens) * sum.weights_stride);
    } else if (tid == 3 * TOKENS) {
        prefetch_line(p.work + MF_CUDA_WORK_LAUNCHES);
    }
    const int lines = (int)p.e.hidden_size * 2 / LINE; /* of x, a token's row after the other; each block has some */
    if (tid >= PRODUCERS && tid < PRODUCERS + tokens) {
        for (int i = blockIdx.x; i < lines; i += gridDim.x) {
            prefetch_line((const uint16_t *)p.e.x + (tid - PRODUCERS) * p.e.x_stride + i * (LINE / 2));
        }
    }
}

/* The block's part of a matrix, at most `left` bytes, which it takes away from. */
MF_DEV void prefetch_part(const mf_cuda_matrix &m, int64_t bytes, int tid, int threads, int &left)
{
    const int64_t from = bytes * blockIdx.x / gridDim.x / LINE * LINE,
                  end = min(bytes * (blockIdx.x + 1) / gridDim.x / LINE * LINE, from + left);
    for (int64_t i = from + tid * LINE; i < end; i += threads * LINE) {
        prefetch_line(m.data + i);
    }
    left -= (int)(end - from);
}

/* Shared slots' gates and ups, then their w2, on their way to the second-level cache before the kernel in front has
 * ended.  Only a hint: that kernel may write them yet, and ids may name other slots. */
MF_DEV void prefetch_shared(const mf_cuda_grouped &p, const mf_cuda_sum &sum)
{
    const int tid = (int)threadIdx.x - 32, threads = THREADS - 32, slots = min(sum.num_shared, (int)p.e.num_slots);
    if (!p.one.combines || tid < 0) {
        return;
    }
    const int64_t size = p.codes ? 1 : 2;
    int left = HINT_BYTES;
    for (int is_down = 0; is_down < 2; is_down++) {
        for (int i = 0; i < slots && left > 0; i++) {
            const mf_cuda_slot &slot = p.e.slots[p.e.num_slots - 1 - i];
            if (is_down) {
                const int64_t bytes = ((p.e.hidden_size - 1) * slot.down.row_stride + p.width) * size;
                prefetch_part(slot.down, bytes, tid, threads, left);
            } else {
                const int64_t last = p.width - 1;
                prefetch_part(slot.gate, (last * slot.gate.row_stride + p.e.hidden_size) * size, tid, threads, left);
                prefetch_part(slot.up, (last * slot.up.row_stride + p.e.hidden_size) * size, tid, threads, left);
            }
        }
    }
}

template <int CODES, int T, bool WARPWISE>
__global__ void __launch_bounds__(THREADS, 1)
    one_kernel(const __grid_constant__ mf_cuda_grouped p, const __grid_constant__ mf_cuda_sum sum)
{
    if (!MF_HAS_WGMMA) {
        return;
    }
    extern __shared__ __align__(1024) uint8_t stages[];
    constexpr bool FP8 = CODES != MF_CUDA_CODES_NONE;
    const mf_cuda_one &one = p.one;
    one_state *s = (one_state *)(stages + one.state_at);
    uint8_t *x = stages + one.x_at, *h = stages + one.h_at;
    float *sums = (float *)(stages + one.sums_at), *floats = (float *)(stages + one.floats_at);
    /* FP8 only: scales of x, of h, of units' rows, of w2's rows; parts of w13, twice.  What w2 needs lies where x and
     * w13's parts were. */
    float *x_scales = floats, *h_scales = x_scales + one.x_lines * T,
          *up_scales = h_scales + one.most_tiles * one.h_lines * T;
    float *down_scales = up_scales + one.most_units * 2 * (BY_ROW<CODES> ? UP_ROWS : one.x_lines);
    float *up_parts = (float *)(stages + one.up_parts_at);
    if (threadIdx.x == 0) {
        for (int i = 0; i < one.stages; i++) {
            barrier_init(&s->full[i], 1);
            barrier_init(&s->empty[i], WARPS);
        }
        barrier_init(&s->ends, HELPERS);
        barrier_init(&s->added, HELPERS);
        barrier_init(&s->decided, 1);
        barrier_init(&s->known, WARPS + (FP8 ? HELPERS / 32 : 0));
        barrier_init(&s->together, WARPS + (FP8 ? HELPERS / 32 : 0));
        for (int t = 0; BY_ROW<CODES> && t < TOKENS; t++) {
            s->amax[t] = 0;
        }
        for (int i = 0; i < 3 && one.even.slots > 0; i++) { /* maps never change: no need to wait for anybody */
            prefetch_map(map_of(p, (int)p.e.num_slots, 0, i));
        }
        barrier_init_fence();
    }
    __syncthreads();
    let_next_start();
    prefetch_inputs(p, sum);
    share w = share_of<FP8>(p, one.most_tiles, blockIdx.x); /* before it is known: pairs usually name as many slots */
    prefetch_shared(p, sum);
    wait_for_previous();
    if (threadIdx.x < 32) {
        make_lists<T == 4>(p, s);
        named_arrive<HELPERS_LISTS, HELPERS + 32>();
        named_arrive<LISTS, CONSUMERS + 32>();
    } else if (threadIdx.x < PRODUCERS) {
        named_barrier<HELPERS_LISTS, HELPERS + 32>();
    } else {
        stage_x<CODES, T>(p, s, x, x_scales);
        named_barrier<LISTS, CONSUMERS + 32>();
    }
    if (s->num_tiles != w.tiles) {
        w = share_of<FP8>(p, s->num_tiles, blockIdx.x);
    }
    if (threadIdx.x < 32) {
        if (threadIdx.x == 0) {
            bring_weights<FP8, WARPWISE>(p, s, stages, w);
            if (atomicAdd(p.work + MF_CUDA_WORK_DONE, 1u) == gridDim.x - 1) { /* all know this launch's tag */
                p.work[MF_CUDA_WORK_DONE] = p.work[MF_CUDA_WORK_STARTED] = 0;
                p.work[MF_CUDA_WORK_LAUNCHES] = s->tag;
            }
        }
    } else if (threadIdx.x < PRODUCERS) {
        help<CODES, T>(p, sum, s, w, x_scales, up_parts, up_scales, down_scales);
    } else if constexpr (FP8) {
        multiply_codes<CODES, T>(p, sum, s, stages, w, x, h, h_scales, down_scales, up_parts, sums);
    } else {
        multiply_bf16<WARPWISE>(p, sum, s, stages, w, x, h, sums);
    }
}

template <int CODES, int T, bool WARPWISE>
int launch(const mf_cuda_grouped *call, const mf_cuda_sum *sum, cudaStream_t stream)
{
    return launch_shared(true, one_kernel<CODES, T, WARPWISE>, dim3((unsigned)call->blocks), THREADS,
                         (size_t)call->one.bytes, stream, *call, *sum);
}

template <int CODES> int launch_codes(const mf_cuda_grouped *call, const mf_cuda_sum *sum, cudaStream_t stream)
{
    return call->one.tokens == 2 ? launch<CODES, 2, false>(call, sum, stream)
                                 : launch<CODES, 4, false>(call, sum, stream);
}

} // namespace

int mf_cuda_launch_grouped_one(const mf_cuda_grouped *call, const mf_cuda_sum *sum, void *stream)
{
    static const mf_cuda_sum none = {};
    cudaStream_t s = (cudaStream_t)stream;
    sum = sum ? sum : &none;
    if (call->codes == MF_CUDA_CODES_FP8_BLOCK) {
        return launch_codes<MF_CUDA_CODES_FP8_BLOCK>(call, sum, s);
    }
    if (call->codes) {
        return call->codes == MF_CUDA_CODES_FP8_ROW ? launch_codes<MF_CUDA_CODES_FP8_ROW>(call, sum, s)
                                                    : launch_codes<MF_CUDA_CODES_INT8_ROW>(call, sum, s);
    }
    if (call->one.tokens == 4) {
        return launch<MF_CUDA_CODES_NONE, 4, true>(call, sum, s);
    }
    const bool has_shared = call->one.combines && sum->num_shared > 0 && sum->num_shared <= call->e.num_slots;
    return call->e.num_tokens > 1 || has_shared ? launch<MF_CUDA_CODES_NONE, 2, true>(call, sum, s)
                                                : launch<MF_CUDA_CODES_NONE, 2, false>(call, sum, s);
}
