/* experts_few.cu - experts for few tokens (at most FEW_PAIRS pairs): each slot's weights are streamed once, straight into
 * registers, past all tokens that chose it.
 *
 * No alignment is needed: a block finds a slot's pairs among all ids itself.  w13: a block takes 8 gate and the 8 matching
 * up rows of a slot, so the activation stays inside it; its 8 warps take a segment of H each.  w2: a block takes 16 output
 * rows of every slot, a warp a slot, so that the combine's fixed order can follow in the same block. */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/sum_reduce.cuh"

namespace
{

/* Bytes between the columns that neighbouring lanes q hold of a token. */
template <int PATH> constexpr int TOKEN_LANE_BYTES = TOKEN_CHUNKS<PATH> * 16;

constexpr int MAX_PAIRS = 128; /* MF_CUDA_FEW_PAIRS of plan.h */
constexpr int TOKENS = 8;

/* The pairs whose slot is `id`, ascending, as a 128-bit set that every lane of the warp holds. */
struct pair_set {
    uint32_t word[4];
};

MF_DEV pair_set pairs_of(const int32_t *ids, int num_pairs, int32_t id, int lane)
{
    pair_set set;
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const int pair = w * 32 + lane;
        set.word[w] = __ballot_sync(MF_FULL_WARP, pair < num_pairs && ids[pair] == id);
    }
    return set;
}

MF_DEV int list_pairs(const pair_set &set, uint8_t *list, int lane)
{
    int before = 0;
#pragma unroll
    for (int w = 0; w < 4; w++) {
        if (set.word[w] >> lane & 1) {
            list[before + __popc(set.word[w] & ((1u << lane) - 1u))] = (uint8_t)(w * 32 + lane);
        }
        before += __popc(set.word[w]);
    }
    __syncwarp();
    return before;
}

MF_DEV int first_pair(const pair_set &set)
{
    return set.word[0]   ? __ffs(set.word[0]) - 1
           : set.word[1] ? 31 + __ffs(set.word[1])
           : set.word[2] ? 63 + __ffs(set.word[2])
                         : 95 + __ffs(set.word[3]);
}

struct unit_chunks {
    uint4 low[2], high[2];
};

/* Chunks q and q + 4 of a unit; a NULL row is zeros. */
MF_DEV void load_weights(unit_chunks &c, const uint8_t *low, const uint8_t *high, int64_t unit)
{
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const int64_t at = unit * UNIT_BYTES;
    c.low[0] = low ? load_stream(low + at) : zero;
    c.low[1] = low ? load_stream(low + at + 64) : zero;
    c.high[0] = high ? load_stream(high + at) : zero;
    c.high[1] = high ? load_stream(high + at + 64) : zero;
}

/* A token's columns of half a unit; `token` is where the lane's chunk of the first half of unit 0 is. */
template <int PATH> MF_DEV token_chunk<PATH> load_token(const uint8_t *token, int64_t unit, int half)
{
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const uint4 *from = (const uint4 *)(token + unit * TOKEN_UNIT_BYTES<PATH> + half * (TOKEN_UNIT_BYTES<PATH> / 2));
    token_chunk<PATH> c;
#pragma unroll
    for (int k = 0; k < TOKEN_CHUNKS<PATH>; k++) {
        c.v[k] = token ? from[k] : zero;
    }
    return c;
}

/* Scales of the two halves of a tile's rows and of the lane's two tokens, per unit. */
struct unit_scales {
    const mf_cuda_matrix *low, *high;
    int64_t low_row, high_row;
    const float *token[2];
};

template <int PATH>
MF_DEV void add_unit(float (&acc)[4], const unit_chunks &c, const token_chunk<PATH> (&token)[2], const unit_scales &s, int unit)
{
    if (product_of<PATH>::SCALED) {
        float part[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        add_half<PATH>(part, c.low[0], c.high[0], token[0]);
        add_half<PATH>(part, c.low[1], c.high[1], token[1]);
        const float low = s.low ? scale_at(*s.low, s.low_row + unit) : 0.0f, high = scale_at(*s.high, s.high_row + unit);
        const float t0 = s.token[0] ? s.token[0][unit] : 0.0f, t1 = s.token[1] ? s.token[1][unit] : 0.0f;
        acc[0] = __fmaf_rn(part[0], __fmul_rn(t0, low), acc[0]);
        acc[1] = __fmaf_rn(part[1], __fmul_rn(t1, low), acc[1]);
        acc[2] = __fmaf_rn(part[2], __fmul_rn(t0, high), acc[2]);
        acc[3] = __fmaf_rn(part[3], __fmul_rn(t1, high), acc[3]);
    } else {
        add_half<PATH>(acc, c.low[0], c.high[0], token[0]);
        add_half<PATH>(acc, c.low[1], c.high[1], token[1]);
    }
}

/* Units whose weights are in flight, and blocks a multiprocessor: more of one leaves fewer registers for the other. */
constexpr int UP_AHEAD = 2, UP_BLOCKS = 3, DOWN_AHEAD = 1, DOWN_BLOCKS = 2;

/* Unit u of a row of activations to 128 codes and a scale, by one warp: as quantise_rows does. */
MF_DEV void quantise_unit(const mf_cuda_experts &p, const void *row, int64_t offset, int u, uint8_t *codes, float *scales)
{
    const int lane = threadIdx.x & 31;
    float v[4];
    uint32_t amax = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        v[k] = load_float(row, p.act_dtype, offset + u * 128 + 4 * lane + k, p.bytewise);
        const uint32_t a = __float_as_uint(v[k]) & 0x7fffffffu;
        amax = a > amax ? a : amax;
    }
    amax = __reduce_max_sync(MF_FULL_WARP, amax);
    const float scale = quant_scale(QUANT_FP8_GROUP, 0.0f, p.e8m0, __uint_as_float(amax));
    ((uint2 *)codes)[u * 32 + lane] = quant_e4m3_as_f16(v, scale);
    if (lane == 0) {
        scales[u] = scale;
    }
}

/* Units [first, end) of two rows and a token. */
template <int PATH, int AHEAD>
MF_DEV void run_units(float (&acc)[4], const uint8_t *low, const uint8_t *high, const uint8_t *token, float token_scale,
                      bool scale_input, const unit_scales &s, int first, int end, unit_chunks (&ahead)[AHEAD])
{
    for (int u = first; u < end; u += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (u + k < end) {
                const unit_chunks now = ahead[k];
                if (u + k + AHEAD < end) {
                    load_weights(ahead[k], low, high, u + k + AHEAD);
                }
                token_chunk<PATH> columns[2] = { load_token<PATH>(token, u + k, 0), load_token<PATH>(token, u + k, 1) };
                if (PATH == MF_CUDA_PATH_BF16 && scale_input) {
                    columns[0].v[0] = scale_chunk(columns[0].v[0], token_scale);
                    columns[1].v[0] = scale_chunk(columns[1].v[0], token_scale);
                }
                add_unit<PATH>(acc, now, columns, s, u + k);
            }
        }
    }
}

template <int AHEAD>
MF_DEV void load_ahead(unit_chunks (&ahead)[AHEAD], const uint8_t *low, const uint8_t *high, int first, int end)
{
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        if (first + k < end) {
            load_weights(ahead[k], low, high, first + k);
        }
    }
}

MF_DEV int64_t scale_row_of(const mf_cuda_matrix &m, int64_t row)
{
    return row / 128 * m.scale_row_stride;
}

/* OWN: one token, quantised by each block for itself: cheaper than a launch. */
template <int PATH, bool OWN>
__global__ void __launch_bounds__(SEGMENTS * 32, UP_BLOCKS) few_up(const __grid_constant__ mf_cuda_experts p)
{
    extern __shared__ uint4 own[];
    __shared__ int32_t ids[MAX_PAIRS];
    __shared__ uint8_t list[MAX_PAIRS];
    __shared__ float parts[SEGMENTS][16][TOKENS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int pair = blockIdx.y, num_pairs = (int)p.num_pairs;
    const int64_t i0 = (int64_t)blockIdx.x * 8;
    wait_for_previous();
    let_next_start(); /* after the wait: who starts now may read what was written before this launch */
    const int units = (int)(p.hidden_size / product_of<PATH>::UNIT);
    const int first = segment_start(warp, units), end = segment_start(warp + 1, units);
    uint8_t *own_codes = (uint8_t *)own;
    float *own_scales = (float *)(own_codes + p.hidden_size * 2);
    if ((int)threadIdx.x < num_pairs) {
        ids[threadIdx.x] = pair_id(p, threadIdx.x);
    }
    if (OWN) { /* while the ids are on their way */
        for (int u = first; u < end; u++) {
            quantise_unit(p, p.x, 0, u, own_codes, own_scales);
        }
    }
    __syncthreads();
    const int32_t id = ids[pair];
    if (id < 0 || id >= p.num_slots || p.slots[id].path13 != PATH || i0 >= p.slots[id].up.n) {
        return;
    }
    const pair_set set = pairs_of(ids, num_pairs, id, lane);
    if (first_pair(set) != pair) {
        return;
    }
    const mf_cuda_slot &slot = p.slots[id];
    constexpr int SIZE = product_of<PATH>::SIZE;
    const uint8_t *low =
        slot.gate.data ? slot.gate.data + (i0 + g) * slot.gate.row_stride * SIZE + q * 16 : NULL;
    const uint8_t *high = slot.up.data + (i0 + g) * slot.up.row_stride * SIZE + q * 16;
    unit_chunks ahead[UP_AHEAD];
    load_ahead(ahead, low, high, first, end);

    if (warp == 0) {
        list_pairs(set, list, lane);
    }
    __syncthreads();
    const int count = __popc(set.word[0]) + __popc(set.word[1]) + __popc(set.word[2]) + __popc(set.word[3]);
    unit_scales s = { slot.gate.data ? &slot.gate : NULL, &slot.up, 0, 0, { NULL, NULL } };
    if (PATH == MF_CUDA_PATH_FP8) {
        s.low_row = slot.gate.data ? scale_row_of(slot.gate, i0) : 0;
        s.high_row = scale_row_of(slot.up, i0);
    }
    for (int base = 0; base < count; base += TOKENS) {
        const uint8_t *token = NULL;
        float token_scale = 1.0f;
        if (OWN) {
            token = base + g < count ? own_codes + q * TOKEN_LANE_BYTES<PATH> : NULL;
        } else if (base + g < count) {
            const int64_t row = pair_token(p, list[base + g]);
            token = (PATH == MF_CUDA_PATH_FP8 ? (const uint8_t *)(p.x_codes + row * p.hidden_size)
                                              : (const uint8_t *)p.x + row * p.x_stride * SIZE) +
                    q * TOKEN_LANE_BYTES<PATH>;
            token_scale = p.input_scale ? input_scale_of(p, list[base + g]) : 1.0f;
        }
        if (PATH == MF_CUDA_PATH_FP8) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int n = base + 2 * q + k;
                s.token[k] = n >= count ? NULL : OWN ? own_scales : p.x_scales + pair_token(p, list[n]) * units;
            }
        }
        if (base > 0) {
            load_ahead(ahead, low, high, first, end);
        }
        float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
        run_units<PATH>(acc, low, high, token, token_scale, p.input_scale != NULL, s, first, end, ahead);
        parts[warp][g][2 * q] = acc[0];
        parts[warp][g][2 * q + 1] = acc[1];
        parts[warp][g + 8][2 * q] = acc[2];
        parts[warp][g + 8][2 * q + 1] = acc[3];
        __syncthreads();
        if (threadIdx.x < 64) {
            const int i = threadIdx.x & 7, n = threadIdx.x >> 3;
            float gate = 0.0f, up = 0.0f;
#pragma unroll
            for (int w = 0; w < SEGMENTS; w++) {
                gate = __fadd_rn(gate, parts[w][i][n]);
                up = __fadd_rn(up, parts[w][i + 8][n]);
            }
            if (base + n < count) {
                store_float(p.h, p.act_dtype, (int64_t)list[base + n] * p.h_stride + i0 + i,
                            finish_up(slot, i0 + i, gate, up), false);
            }
        }
        __syncthreads();
    }
}

/* The 16 rows from h0 of w2 times the intermediates of every pair, given to `take(pair, row in tile, value)` by the lane
 * that has it. */
template <int PATH, bool OWN, typename TAKE>
MF_DEV void down_rows(const mf_cuda_experts &p, const int32_t *ids, const uint8_t *leaders, int num_leaders,
                      uint8_t *list, uint8_t *own, int64_t h0, int warp, int warps, int lane, TAKE take)
{
    constexpr int SIZE = product_of<PATH>::SIZE;
    const int g = lane >> 2, q = lane & 3;
    bool waited = false;
    for (int l = warp; l < num_leaders; l += warps) {
        const int32_t id = ids[leaders[l]];
        const pair_set set = pairs_of(ids, (int)p.num_pairs, id, lane);
        const int count = list_pairs(set, list, lane);
        if (id >= p.num_slots) {
            wait_for_previous();
            for (int n = lane; n < count * 16; n += 32) {
                take(list[n / 16], n % 16, 0.0f);
            }
            __syncwarp();
            continue;
        }
        const mf_cuda_slot &slot = p.slots[id];
        if (slot.path2 != PATH) {
            continue;
        }
        const mf_cuda_matrix &m = slot.down;
        const int64_t low_row = h0 + g, high_row = h0 + 8 + g;
        const uint8_t *low = low_row < p.hidden_size ? m.data + low_row * m.row_stride * SIZE + q * 16 : NULL;
        const uint8_t *high = high_row < p.hidden_size ? m.data + high_row * m.row_stride * SIZE + q * 16 : NULL;
        const int units = (int)(m.k / product_of<PATH>::UNIT);
        unit_chunks ahead[DOWN_AHEAD];
        load_ahead(ahead, low, high, 0, units);
        if (!waited) { /* the weights above are on their way while w13 still runs */
            wait_for_previous();
            waited = true;
        }
        const int64_t groups = (p.max_width + 127) / 128;
        float *own_scales = (float *)(own + groups * 256);
        if (OWN) { /* a slot that one token chose twice has the same intermediate twice */
            for (int u = 0; u < units; u++) {
                quantise_unit(p, p.h, (int64_t)list[0] * p.h_stride, u, own, own_scales);
            }
            __syncwarp();
        }
        unit_scales s = { &m, &m, 0, 0, { NULL, NULL } };
        if (PATH == MF_CUDA_PATH_FP8) {
            s.low_row = s.high_row = scale_row_of(m, h0);
        }
        for (int base = 0; base < count; base += TOKENS) {
            const uint8_t *token = NULL;
            if (OWN) {
                token = base + g < count ? own + q * TOKEN_LANE_BYTES<PATH> : NULL;
            } else if (base + g < count) {
                token = (const uint8_t *)(PATH == MF_CUDA_PATH_FP8 ? p.h_codes : (const uint16_t *)p.h) +
                        (int64_t)list[base + g] * p.h_stride * 2 + q * TOKEN_LANE_BYTES<PATH>;
            }
            if (PATH == MF_CUDA_PATH_FP8) {
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const int n = base + 2 * q + k;
                    s.token[k] = n >= count ? NULL : OWN ? own_scales : p.h_scales + list[n] * groups;
                }
            }
            if (base > 0) {
                load_ahead(ahead, low, high, 0, units);
            }
            float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
            run_units<PATH>(acc, low, high, token, 1.0f, false, s, 0, units, ahead);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int n = base + 2 * q + (k & 1), row = g + (k >> 1) * 8;
                if (n < count && h0 + row < p.hidden_size) {
                    take(list[n], row, finish_down(slot, h0 + row, acc[k]));
                }
            }
        }
        __syncwarp();
    }
    if (!waited) {
        wait_for_previous();
    }
}

/* ids and the first pair of each distinct slot, in shared memory. */
MF_DEV int find_leaders(const mf_cuda_experts &p, int32_t *ids, uint8_t *leaders, int *num_leaders)
{
    const int num_pairs = (int)p.num_pairs;
    for (int i = threadIdx.x; i < num_pairs; i += blockDim.x) {
        ids[i] = pair_id(p, i);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        int found = 0;
        for (int base = 0; base < num_pairs; base += 32) {
            const int i = base + (int)threadIdx.x;
            bool leads = i < num_pairs && ids[i] >= 0;
            for (int o = 0; leads && o < i; o++) {
                leads = ids[o] != ids[i];
            }
            const uint32_t set = __ballot_sync(MF_FULL_WARP, leads);
            if (leads) {
                leaders[found + __popc(set & ((1u << threadIdx.x) - 1u))] = (uint8_t)i;
            }
            found += __popc(set);
        }
        if (threadIdx.x == 0) {
            *num_leaders = found;
        }
    }
    __syncthreads();
    return *num_leaders;
}

constexpr int DOWN_WARPS = 16, FEW_DOWN_WARPS = 10; /* the fewer for one token: three such blocks share a multiprocessor */

/* Codes and scales of one row of `width`. */
__host__ __device__ inline int64_t own_row_bytes(int64_t width)
{
    return (width + 127) / 128 * 272;
}

template <int PATH> __global__ void __launch_bounds__(DOWN_WARPS * 32) few_down(const __grid_constant__ mf_cuda_experts p)
{
    __shared__ int32_t ids[MAX_PAIRS];
    __shared__ uint8_t leaders[MAX_PAIRS], lists[DOWN_WARPS][MAX_PAIRS];
    __shared__ int num_leaders;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    let_next_start();
    const int count = find_leaders(p, ids, leaders, &num_leaders);
    const int64_t h0 = (int64_t)blockIdx.x * 16;
    down_rows<PATH, false>(p, ids, leaders, count, lists[warp], NULL, h0, warp, blockDim.x >> 5, lane,
                    [&](int pair, int row, float v) {
                        if (h0 + row < p.hidden_size) {
                            store_float(p.y, p.y_dtype, y_offset(p, pair) + h0 + row, v, p.bytewise);
                        }
                    });
}

/* The same, with the combine of the block's 16 columns behind it: y is rounded to its dtype but never written. */
template <int PATH, bool OWN, int WARPS>
__global__ void __launch_bounds__(WARPS * 32, WARPS < DOWN_WARPS ? DOWN_BLOCKS : 1)
    few_combine(const __grid_constant__ mf_cuda_experts p, const __grid_constant__ mf_cuda_sum sum)
{
    __shared__ int32_t ids[MAX_PAIRS];
    __shared__ uint8_t leaders[MAX_PAIRS], lists[WARPS][MAX_PAIRS];
    __shared__ int num_leaders;
    __shared__ float weights[MAX_PAIRS];
    __shared__ float y[MAX_PAIRS][16];
    extern __shared__ uint4 own[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    let_next_start();
    for (int i = threadIdx.x; i < (int)p.num_pairs; i += blockDim.x) { /* written before w13 began, as the ids were */
        weights[i] = sum_weight(sum, i / (int)p.num_columns, i % (int)p.num_columns);
    }
    const int count = find_leaders(p, ids, leaders, &num_leaders);
    const int64_t h0 = (int64_t)blockIdx.x * 16;
    const int64_t own_bytes = OWN ? own_row_bytes(p.max_width) : 0;
    down_rows<PATH, OWN>(p, ids, leaders, count, lists[warp], (uint8_t *)own + warp * own_bytes, h0, warp, blockDim.x >> 5, lane,
                    [&](int pair, int row, float v) { y[pair][row] = round_to_dtype(v, p.y_dtype); });
    __syncthreads();
    const int columns = (int)p.num_columns, routed = columns - sum.num_shared;
    for (int i = threadIdx.x; i < (int)p.num_tokens * 16; i += blockDim.x) {
        const int t = i / 16, row = i % 16;
        const int64_t h = h0 + row;
        if (h >= p.hidden_size) {
            continue;
        }
        float r = 0.0f, s = 0.0f;
        if (sum_row_valid(sum, t)) {
            for (int c = 0; c <= columns; c++) {
                if (c == routed && sum.identity) {
                    r = __fmaf_rn(load_at<float>(sum.identity, t, sum.bytewise),
                                  load_float(sum.hidden, sum.dtype, t * sum.hidden_stride + h, sum.bytewise), r);
                }
                if (c < columns && ids[t * columns + c] >= 0) {
                    const float w = weights[t * columns + c], v = y[t * columns + c][row];
                    r = c < routed ? __fmaf_rn(w, v, r) : r;
                    s = c < routed ? s : __fmaf_rn(w, v, s);
                }
            }
            for (int a = 0; a < sum.num_addends; a++) {
                s = __fmaf_rn(addend_weight(sum, t, a),
                              load_float(sum.addends[a], sum.dtype, t * sum.addend_strides[a] + h, sum.bytewise), s);
            }
        }
        float v = __fmaf_rn(sum.factor, r, s);
        if (sum.residual) {
            v = __fadd_rn(v, load_float(sum.residual, sum.out_dtype, t * sum.residual_stride + h, sum.bytewise));
        }
        store_float(sum.out, sum.out_dtype, t * sum.out_stride + h, v, sum.bytewise);
    }
}

/* A launch that may begin before the one ahead of it has ended; the kernels wait themselves. */
template <typename... ARGS>
int launch_early(void (*kernel)(mf_cuda_experts, ARGS...), dim3 grid, unsigned threads, int64_t shared_bytes, void *stream,
                 const mf_cuda_experts &call, ARGS... args)
{
    return launch_shared(call.starts_early != 0, kernel, grid, threads, (size_t)shared_bytes, stream, call, args...);
}

unsigned down_threads(const mf_cuda_experts *call)
{
    const int64_t warps = call->num_pairs < 4 ? 4 : call->num_pairs < DOWN_WARPS ? call->num_pairs : DOWN_WARPS;
    return (unsigned)warps * 32;
}

dim3 down_grid(const mf_cuda_experts *call)
{
    return dim3((unsigned)((call->hidden_size + 15) / 16));
}

} // namespace

int mf_cuda_launch_few_up(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    const dim3 grid((unsigned)((call->max_width + 7) / 8), (unsigned)call->num_pairs);
    if (path == MF_CUDA_PATH_FP8 && call->quantises_itself) {
        const int64_t bytes = call->hidden_size * 2 + call->hidden_size / 32;
        return launch_early(few_up<MF_CUDA_PATH_FP8, true>, grid, SEGMENTS * 32, bytes, stream, *call);
    }
    return path == MF_CUDA_PATH_FP8 ? launch_early(few_up<MF_CUDA_PATH_FP8, false>, grid, SEGMENTS * 32, 0, stream, *call)
                                    : launch_early(few_up<MF_CUDA_PATH_BF16, false>, grid, SEGMENTS * 32, 0, stream, *call);
}

int mf_cuda_launch_few_down(const mf_cuda_experts *call, mf_cuda_path path, void *stream)
{
    return path == MF_CUDA_PATH_FP8
               ? launch_early(few_down<MF_CUDA_PATH_FP8>, down_grid(call), down_threads(call), 0, stream, *call)
               : launch_early(few_down<MF_CUDA_PATH_BF16>, down_grid(call), down_threads(call), 0, stream, *call);
}

namespace
{
template <int PATH, bool OWN> int launch_combine(const mf_cuda_experts *call, const mf_cuda_sum *sum, void *stream)
{
    const unsigned threads = down_threads(call);
    const int64_t bytes = OWN ? threads / 32 * own_row_bytes(call->max_width) : 0;
    return threads <= FEW_DOWN_WARPS * 32
               ? launch_early(few_combine<PATH, OWN, FEW_DOWN_WARPS>, down_grid(call), threads, bytes, stream, *call, *sum)
               : launch_early(few_combine<PATH, OWN, DOWN_WARPS>, down_grid(call), threads, bytes, stream, *call, *sum);
}
} // namespace

int mf_cuda_launch_few_combine(const mf_cuda_experts *call, mf_cuda_path path, const mf_cuda_sum *sum, void *stream)
{
    return path == MF_CUDA_PATH_BF16  ? launch_combine<MF_CUDA_PATH_BF16, false>(call, sum, stream)
           : call->quantises_itself ? launch_combine<MF_CUDA_PATH_FP8, true>(call, sum, stream)
                                    : launch_combine<MF_CUDA_PATH_FP8, false>(call, sum, stream);
}
