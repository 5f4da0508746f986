/* grouped_one_codes.cuh - grouped_one.cu's products of codes: a warpgroup's w13, whose parts go to shared memory, and
 * w2, which begins with the tiles whose intermediate is there. */
#ifndef MF_KERNELS_CUDA_GROUPED_ONE_CODES_CUH
#define MF_KERNELS_CUDA_GROUPED_ONE_CODES_CUH

#include "kernels/cuda/grouped_one.cuh"

/* 0 or 1; the compiler sees that a warp has but one, and keeps what follows from it in uniform registers, where the
 * products want their operands. */
MF_DEV int own_warpgroup()
{
    return __shfl_sync(MF_FULL_WARP, (int)(threadIdx.x - PRODUCERS) >> 7, 0);
}

/* Sums of either kind as they lie in shared memory. */
MF_DEV float as_word(float v)
{
    return v;
}

MF_DEV float as_word(int32_t v)
{
    return __int_as_float(v);
}

template <int CODES> MF_DEV sum_type<CODES> of_word(float v)
{
    if constexpr (IS_INT8<CODES>) {
        return __float_as_int(v);
    } else {
        return v;
    }
}

/* sum + part, the one addition there is: rounded where it has to be. */
MF_DEV float plus(float sum, float part)
{
    return __fadd_rn(sum, part);
}

MF_DEV int32_t plus(int32_t sum, int32_t part)
{
    return sum + part;
}

/* w13: [warpgroup: gate, up][line][8 rows][T] */
template <int T, typename Number> MF_DEV void put_up_parts(const Number (&sums)[4 * T], float *parts, int line)
{
    float acc[4 * T];
#pragma unroll
    for (int i = 0; i < 4 * T; i++) {
        acc[i] = as_word(sums[i]);
    }
    const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) { /* the eight columns where the warp's two lines meet themselves */
        v[i] = T == 2 ? (warp < 2 ? acc[i] : acc[(4 + i) % (4 * T)])
                      : (warp == 0   ? acc[i]
                         : warp == 1 ? acc[4 + i]
                         : warp == 2 ? acc[(8 + i) % (4 * T)]
                                     : acc[(12 + i) % (4 * T)]);
    }
    if (T == 2) {
        if (q >> 1 == (warp & 1)) {
            *(float2 *)(parts + ((line + 2 * warp + (q & 1)) * UP_ROWS + g) * T) =
                q & 1 ? make_float2(v[2], v[3]) : make_float2(v[0], v[1]);
        }
    } else {
        *(float2 *)(parts + ((line + 2 * warp + (q >> 1)) * UP_ROWS + g) * T + 2 * (q & 1)) =
            q >> 1 ? make_float2(v[2], v[3]) : make_float2(v[0], v[1]);
    }
}

/* COUNT lines' products, all at once. */
template <int CODES, int N, int COUNT>
MF_DEV void multiply_lines(const uint64_t (&rows)[COUNT], const uint64_t (&tokens)[COUNT],
                           sum_type<CODES> (&acc)[COUNT][N / 2])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
#pragma unroll
        for (int k = 0; k < N / 2; k++) {
            acc[i][k] = 0;
        }
        pin(acc[i]);
    }
    products_begin(); /* nothing may wait between the products, or the compiler makes them wait for one another */
#pragma unroll
    for (int k = 0; k < 4; k++) { /* 32 bytes of every line: the next product does not need the one before */
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if constexpr (IS_INT8<CODES>) {
                integer_products<N>::s8(acc[i], rows[i] + 2 * k, tokens[i] + 2 * k, k > 0);
            } else {
                products<N>::e4m3(acc[i], rows[i] + 2 * k, tokens[i] + 2 * k, k > 0);
            }
        }
    }
    products_commit();
    products_wait<0>();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        pin(acc[i]);
    }
}

/* w13: COUNT stages, the first of them a unit's stage k; stages: this warpgroup's half. */
template <int CODES, int T, int COUNT>
MF_DEV void multiply_up(one_state *s, const uint8_t *stages, stage_cursor &r, const uint8_t *x, int k, float *parts)
{
    constexpr int N = UP_LINES * T;
    sum_type<CODES> acc[COUNT][N / 2];
    uint64_t tokens[COUNT], rows[COUNT];
    stage_cursor ahead = r;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        barrier_wait(&s->full[ahead.stage], ahead.parity);
        tokens[i] = product_operand(x + (k + i) * (N * LINE));
        rows[i] = product_operand(stages + ahead.stage * STAGE);
        stage_cursor::next(ahead);
    }
    multiply_lines<CODES, N, COUNT>(rows, tokens, acc);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        leave_stage(s, r);
        put_up_parts<T>(acc[i], parts, i * UP_LINES);
    }
}

/* What multiplies and adds the lines of a tile's rows of w2. */
struct down_lines {
    const uint8_t *rows, *h;
    const float *token_scales, *low_scales,
        *high_scales; /* blocks: of the tile's lines: tokens, rows g and g + 8 of a lane */
    int line_bytes;
};

/* COUNT lines: their parts are added in the order of lines; a lane has two rows and two tokens. */
template <int CODES, int T, int COUNT>
MF_DEV void add_down_lines(const down_lines &d, int line, int of_box, sum_type<CODES> (&sums)[4])
{
    const int q = threadIdx.x & 3;
    sum_type<CODES> acc[COUNT][4];
    uint64_t rows[COUNT], tokens[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        rows[i] = product_operand(d.rows + (of_box + i) * d.line_bytes);
        tokens[i] = product_operand(d.h + (line + i) * (H_ROWS * LINE));
    }
    multiply_lines<CODES, 8, COUNT>(rows, tokens, acc);
    if constexpr (BY_ROW<CODES>) {
#pragma unroll
        for (int i = 0; i < 4 * COUNT; i++) {
            sums[i & 3] = plus(sums[i & 3], acc[i >> 2][i & 3]);
        }
    } else if (2 * q < T) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const float2 token = *(const float2 *)(d.token_scales + (line + i) * T + 2 * q);
            const float low = d.low_scales[line + i], high = d.high_scales[line + i];
            sums[0] = __fmaf_rn(acc[i][0], __fmul_rn(token.x, low), sums[0]);
            sums[1] = __fmaf_rn(acc[i][1], __fmul_rn(token.y, low), sums[1]);
            sums[2] = __fmaf_rn(acc[i][2], __fmul_rn(token.x, high), sums[2]);
            sums[3] = __fmaf_rn(acc[i][3], __fmul_rn(token.y, high), sums[3]);
        }
    }
}

/* What a lane needs of a group of w2's rows. */
struct down_lane {
    int row, q, first_row, low_scales, high_scales; /* rows `row` and row + 8 of the group; where their scales begin */
};

/* A tile's sums of a lane's two rows and two tokens times their scales. */
template <int CODES, int T>
MF_DEV void scale_down_sums(const mf_cuda_grouped &p, const down_lane &l, int tile, const float *h_scales,
                            const float *down_scales, const sum_type<CODES> (&sums)[4], float (&v)[4])
{
    const float2 token = *(const float2 *)(h_scales + tile * T + 2 * l.q);
    const float *of = down_scales + tile * p.one.down_rows;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        v[e] = scaled_sum<CODES>(sums[e], e & 1 ? token.y : token.x, of[e < 2 ? l.low_scales : l.high_scales]);
    }
}

template <int T>
MF_DEV void put_down_sums(const mf_cuda_grouped &p, const one_state *s, const down_lane &l, int tile,
                          const float (&v)[4], float *sums)
{
    float *to = sums_of<T>(p, sums, 0, tile, l.row) + 2 * l.q, end[4] = { v[0], v[1], v[2], v[3] };
    if (s->biased[T == 4 ? tile >> 5 : 0] >> (tile & 31) & 1) {
        const float *bias = s->end[tile].down_bias;
        const int last = (int)p.e.hidden_size - 1, row = l.first_row + l.row;
        end[0] = __fadd_rn(v[0], bias[min(row, last)]);
        end[1] = __fadd_rn(v[1], bias[min(row, last)]);
        end[2] = __fadd_rn(v[2], bias[min(row + 8, last)]);
        end[3] = __fadd_rn(v[3], bias[min(row + 8, last)]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        end[i] = as_stored(end[i], p.e.y_dtype);
    }
    if (l.row < p.one.down_rows) {
        *(float2 *)to = make_float2(end[0], end[1]);
    }
    if (l.row + 8 < p.one.down_rows) {
        *(float2 *)(to + 8 * T) = make_float2(end[2], end[3]);
    }
}

/* COUNT tiles of at most two lines in one box, every other one of the block's; r: at the first one's stage. */
template <int CODES, int T, int COUNT>
MF_DEV void multiply_short_tiles(const mf_cuda_grouped &p, one_state *s, const share &w, const uint8_t *stages,
                                 stage_cursor &r, const uint8_t *h, const float *h_scales, const float *down_scales,
                                 const down_lane &l, int tile, float *sums)
{
    const int lines = p.one.h_lines, second = lines - 1;
    sum_type<CODES> acc[2 * COUNT][4];
    uint64_t rows[2 * COUNT], tokens[2 * COUNT];
    stage_cursor ahead = r;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        if (i > 0) {
            barrier_wait(&s->full[ahead.stage], ahead.parity);
            stage_cursor::next(ahead);
        }
        barrier_wait(&s->full[ahead.stage], ahead.parity);
        rows[2 * i] = product_operand(stages + ahead.stage * STAGE);
        rows[2 * i + 1] = product_operand(stages + ahead.stage * STAGE + second * p.one.down_rows * LINE);
        tokens[2 * i] = product_operand(h + (tile + 2 * i) * lines * (H_ROWS * LINE));
        tokens[2 * i + 1] = product_operand(h + ((tile + 2 * i) * lines + second) * (H_ROWS * LINE));
        stage_cursor::next(ahead);
    }
    multiply_lines<CODES, 8, 2 * COUNT>(rows, tokens, acc);
#pragma unroll
    for (int i = 0; i < 2 * COUNT - 1; i++) {
        leave_stage(s, r);
    }
    if (2 * l.q >= T) {
        return;
    }
    if constexpr (BY_ROW<CODES>) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float v[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                acc[2 * i][e] = second > 0 ? plus(acc[2 * i][e], acc[2 * i + 1][e]) : acc[2 * i][e];
            }
            scale_down_sums<CODES, T>(p, l, tile + 2 * i, h_scales, down_scales, acc[2 * i], v);
            put_down_sums<T>(p, s, l, tile + 2 * i, v, sums);
        }
    } else {
        float2 token[2 * COUNT];
        float low[2 * COUNT], high[2 * COUNT];
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++) {
            const int at = (tile + 2 * (i / 2)) * lines + (i & 1) * second;
            token[i] = *(const float2 *)(h_scales + at * T + 2 * l.q);
            low[i] = down_scales[l.low_scales + at];
            high[i] = down_scales[l.high_scales + at];
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float v[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll
            for (int k = 2 * i; k < 2 * i + 2; k++) {
                if (k == 2 * i || second > 0) {
                    v[0] = __fmaf_rn(acc[k][0], __fmul_rn(token[k].x, low[k]), v[0]);
                    v[1] = __fmaf_rn(acc[k][1], __fmul_rn(token[k].y, low[k]), v[1]);
                    v[2] = __fmaf_rn(acc[k][2], __fmul_rn(token[k].x, high[k]), v[2]);
                    v[3] = __fmaf_rn(acc[k][3], __fmul_rn(token[k].y, high[k]), v[3]);
                }
            }
            put_down_sums<T>(p, s, l, tile + 2 * i, v, sums);
        }
    }
}

/* Tiles first_tile to end_tile - 1 of a group of w2's rows: the warpgroups take them in turn.  What lies behind a
 * line's rows is multiplied, and not looked at. */
template <int CODES, int T>
MF_DEV void multiply_down(const mf_cuda_grouped &p, one_state *s, const share &w, const uint8_t *stages,
                          stage_cursor &r, const uint8_t *h, const float *h_scales, const float *down_scales, int n,
                          int first_tile, int end_tile, float *sums)
{
    const int turn = own_warpgroup(), lane = threadIdx.x & 31;
    const int lines = p.one.h_lines, real = p.width / 128;
    down_lane l;
    l.row = (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
    l.q = lane & 3;
    l.first_row = (w.first_group + n) * p.one.down_rows;
    const int next_block = 128 - (l.first_row & 127); /* the first row with other scales */
    l.low_scales = (2 * n + (l.row >= next_block)) * w.tiles * lines;
    l.high_scales = (2 * n + (l.row + 8 >= next_block)) * w.tiles * lines;
    if (BY_ROW<CODES>) { /* of the group's first tile */
        l.low_scales = n * w.tiles * p.one.down_rows + min(l.row, p.one.down_rows - 1);
        l.high_scales = n * w.tiles * p.one.down_rows + min(l.row + 8, p.one.down_rows - 1);
    }
    auto pass = [&]() {
        barrier_wait(&s->full[r.stage], r.parity);
        leave_stage(s, r);
    };
    if (lines <= 2 && lines == real && w.down_boxes == 1) {
        int tile = first_tile;
        if (tile < end_tile && (tile & 1) != turn) {
            pass();
            tile++;
        }
        while (tile < end_tile) {
            if (tile + 2 < end_tile) {
                multiply_short_tiles<CODES, T, 2>(p, s, w, stages, r, h, h_scales, down_scales, l, tile, sums);
                tile += 4;
            } else {
                multiply_short_tiles<CODES, T, 1>(p, s, w, stages, r, h, h_scales, down_scales, l, tile, sums);
                tile += 2;
            }
            if (tile - 1 < end_tile) {
                pass();
            }
        }
        return;
    }
    down_lines d;
    d.line_bytes = p.one.down_rows * LINE;
    for (int tile = first_tile; tile < end_tile; tile++) {
        sum_type<CODES> v[4] = { 0, 0, 0, 0 };
        d.h = h + tile * lines * (H_ROWS * LINE);
        d.token_scales = h_scales + tile * lines * T;
        d.low_scales = down_scales + l.low_scales + tile * lines;
        d.high_scales = down_scales + l.high_scales + tile * lines;
        for (int line = 0; line < lines; line += p.one.box_lines) {
            barrier_wait(&s->full[r.stage], r.parity);
            if ((tile & 1) == turn) {
                d.rows = stages + r.stage * STAGE;
                const int here = min(p.one.box_lines, real - line);
                int k = 0;
                for (; k + 2 <= here; k += 2) {
                    add_down_lines<CODES, T, 2>(d, line + k, k, v);
                }
                if (k < here) {
                    add_down_lines<CODES, T, 1>(d, line + k, k, v);
                }
            }
            leave_stage(s, r);
        }
        if ((tile & 1) == turn && 2 * l.q < T) {
            if constexpr (BY_ROW<CODES>) {
                float scaled[4];
                scale_down_sums<CODES, T>(p, l, tile, h_scales, down_scales, v, scaled);
                put_down_sums<T>(p, s, l, tile, scaled, sums);
            } else {
                put_down_sums<T>(p, s, l, tile, v, sums);
            }
        }
    }
}

/* A share of w13; half: of the stages, this warpgroup's. */
template <int CODES, int T>
MF_DEV void multiply_segments(one_state *s, const uint8_t *half, stage_cursor &r, const share &w, const uint8_t *x,
                              float *up_parts)
{
    const int group = own_warpgroup();
    int turn = 0;
    for (int i = 0; i < w.segments; i++) {
        const segment of = segment_of(w, i);
        for (int k = of.first; k < of.end; k += BATCH, turn++) {
            if (turn >= 2) {
                sync_in_turn<PARTS_FREE, CONSUMERS + HELPERS>(turn);
            }
            float *parts = up_parts + ((turn & 1) * 2 + group) * (PARTS_LINES * UP_ROWS * T);
            if (k + 1 < of.end) {
                multiply_up<CODES, T, 2>(s, half, r, x, k, parts);
            } else {
                multiply_up<CODES, T, 1>(s, half, r, x, k, parts);
            }
            arrive_in_turn<PARTS, CONSUMERS + HELPERS>(turn);
        }
    }
}

template <int CODES, int T>
MF_DEV void multiply_codes(const mf_cuda_grouped &p, const mf_cuda_sum &sum, one_state *s, uint8_t *stages,
                           const share &w, const uint8_t *x, uint8_t *h, float *h_scales, const float *down_scales,
                           float *up_parts, float *sums)
{
    const uint8_t *half = stages + own_warpgroup() * HALF;
    const uint32_t place = place_of(p);
    stage_cursor r = { 0, p.one.stages, 0 };
    share of = w;
    int n = 0;
    for (int block = w.block; block >= 0; n++) {
        multiply_segments<CODES, T>(s, half, r, of, x, up_parts);
        block = next_share(s, n);
        if (block >= 0) {
            of = share_of<true>(p, w.tiles, block);
        }
    }
    h_codes a = { 0, 0, 1, p.e.num_tokens == 1, {} };
    int count = 0; /* lines at a time: as few times as can be, all alike */
    if constexpr (BY_ROW<CODES>) {
        stage_h<CODES, T>(p, s, w, h, h_scales);
    } else {
        constexpr int TEAMS = CONSUMERS / 8;
        barrier_wait(&s->ends, 0);
        a.groups = p.width / 128;
        a.all = (a.one ? w.tiles : s->num_rows) * a.groups;
        const int times = max((a.all + TEAMS - 1) / TEAMS, 1);
        count = (a.all + times - 1) / times;
        if (times > 1) {
            ask_for_codes(p, s, a);
        }
        named_barrier<STAGED, CONSUMERS>(); /* x has been multiplied */
    }
    barrier_wait(&s->added, 0); /* w2's sums lie where w13's parts were: the helpers have read them */
    for (n = 0; n < w.groups; n++) {
        int tile = 0;
        do {
            int end = w.tiles;
            if (!BY_ROW<CODES> && n == 0) {
                end = make_codes<T>(p, s, w, h, h_scales, count, a);
            }
            multiply_down<CODES, T>(p, s, w, stages, r, h, h_scales, down_scales, n, tile, end, sums);
            tile = end;
        } while (tile < w.tiles);
        named_barrier<STAGED, CONSUMERS>();
        end_groups<T>(p, sum, s, w, n, 1, sums, place);
        if (n + 1 < w.groups) {
            named_barrier<STAGED, CONSUMERS>();
        }
    }
}

#endif
