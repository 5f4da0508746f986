/* linear_codes_ring.cu - linear_codes.cu's products of integer codes for up to 8 tokens, with the same bits: RING.
 *
 * A warp streams its run of k of one tile of 16 rows after the other through a ring of its own in shared memory, so
 * that what fits is on its way before the kernels in front have ended.  A unit is 128 bytes of each row.  A unit's
 * scales are made what the conversions want once, a lane a row and group.  Tokens lie in shared memory in the order in
 * which an instruction wants them: of 16 columns lane q of a row has four, of 8 bits those that follow one another, of
 * 4 bits two pairs of a word's codes i and i + 4, so that no lane hands another anything. */
#include "kernels/cuda/carveout.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/linear_codes.cuh"

namespace
{

constexpr int ROWS = 16, CODE_ROOM = ROWS * 128;
constexpr int MOST_GROUPS = 4; /* of a unit: of 64 columns and more */
constexpr int X_PAD = 64;      /* bytes between tokens: two of them meet all banks */

template <int KIND> constexpr int UNIT_COLUMNS = kind_of<KIND>::IS_8BIT ? 128 : 256;
/* A warp's, beside its ring: its unit's scales as the conversions want them. */
template <int KIND> constexpr int SCALE_ROOM = kind_of<KIND>::IS_8BIT ? 0 : MOST_GROUPS *(ROWS * 16);

/* ---- shared memory by address: one number that stays in a register ---- */

MF_PTX uint32_t load_word(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}

MF_PTX uint4 load_words(uint32_t at)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

MF_PTX void store_words(uint32_t at, const uint4 &v)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

/* The number, which the compiler does not make again from what it was made from. */
MF_PTX uint32_t kept(uint32_t v)
{
    asm volatile("mov.u32 %0, %0;" : "+r"(v));
    return v;
}

/* ---- tokens ---- */

MF_DEV uint4 load_x(const mf_cuda_linear &p, int64_t at)
{
    if (!p.x_is_f32) {
        return __ldcg((const uint4 *)((const uint16_t *)p.x + at));
    }
    const float4 a = __ldcg((const float4 *)((const float *)p.x + at)),
                 b = __ldcg((const float4 *)((const float *)p.x + at + 4));
    return make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w));
}

/* Of 32 columns lane q has 16 bytes: its operand of the first 16 columns and of the others. */
template <int KIND> MF_DEV void store_x(uint8_t *to, int chunk, const uint4 &v)
{
    uint2 low, high;
    if (kind_of<KIND>::IS_8BIT) {
        low = make_uint2(v.x, v.y);
        high = make_uint2(v.z, v.w);
    } else {
        low = make_uint2(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632));
        high = make_uint2(__byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632));
    }
    uint8_t *at = to + chunk / 4 * 64 + (chunk & 1) * 32 + (chunk >> 1 & 1) * 8;
    *(uint2 *)at = low;
    *(uint2 *)(at + 16) = high;
}

template <int KIND, int THREADS> MF_DEV void stage_x(uint8_t *to, const mf_cuda_linear &p, int tokens, int k)
{
    constexpr int TOGETHER = 2;
    const int chunks = k / 8, all = tokens * chunks;
#pragma unroll 1
    for (int first = threadIdx.x; first < all; first += TOGETHER * THREADS) {
        uint4 v[TOGETHER];
        int t[TOGETHER], c[TOGETHER];
#pragma unroll
        for (int j = 0; j < TOGETHER; j++) {
            const int i = first + j * THREADS;
            t[j] = i / chunks;
            c[j] = i - t[j] * chunks;
            if (i < all) {
                v[j] = load_x(p, t[j] * p.x_stride + c[j] * 8);
            }
        }
#pragma unroll
        for (int j = 0; j < TOGETHER; j++) {
            if (first + j * THREADS < all) {
                store_x<KIND>(to + t[j] * (k * 2 + X_PAD), c[j], v[j]);
            }
        }
    }
}

/* ---- weights ---- */

MF_DEV int group_bits(const mf_cuda_matrix &m)
{
    return 31 - __clz((int)m.group_size);
}

/* Groups of columns [column, end) of a unit. */
template <int KIND> MF_DEV int groups_of(int column, int end, int bits)
{
    return ((min(end, column + UNIT_COLUMNS<KIND>) - 1) >> bits) - (column >> bits) + 1;
}

/* A warp's units in the order in which it asks for them. */
struct asking {
    const uint8_t *from;           /* this lane's chunk of its first row */
    int which, tile, column, rows; /* rows: of the tile that there are from this lane's first on */
};

template <int KIND> MF_DEV void enter_tile(asking &a, const mf_cuda_linear &p, int lane)
{
    constexpr int BITS = format_of<kind_of<KIND>::FORMAT>::BITS;
    a.which = matrix_of(p, a.tile);
    const mf_cuda_matrix &m = p.w[a.which];
    const int r0 = (a.tile - (int)p.first_block[a.which]) * ROWS;
    a.rows = min((int)m.n - r0, ROWS) - (lane >> 3);
    a.from = m.data + (min(r0 + (lane >> 3), (int)m.n - 1) * m.row_stride + a.column) * BITS / 8 + (lane & 7) * 16;
}

/* Up to a unit of a run's `columns` that are left.  to: the unit; lane_at: this lane's place of the first and third of
 * its rows.  What there is not is not copied, and rows that there are not are the first one again. */
template <int KIND>
MF_DEV void ask_unit(uint32_t to, uint32_t lane_at, asking &a, const mf_cuda_matrix &m, int columns, int lane)
{
    constexpr int BITS = format_of<kind_of<KIND>::FORMAT>::BITS;
    if ((lane & 7) * 128 / BITS < columns) {
        const int64_t step = m.row_stride * BITS / 2; /* four rows on */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            copy_async_at(to + (lane_at ^ (i & 1) * 64) + i * 512, a.rows > 4 * i ? a.from + i * step : a.from, 16);
        }
    }
    a.from += 128;
}

MF_DEV uint4 as_words(const packed_scale<MF_CUDA_PACKED_INT4> &s)
{
    return make_uint4(s.scale, s.large, s.minus_eight, 0);
}

MF_DEV uint4 as_words(const packed_scale<MF_CUDA_PACKED_INT4_ANY> &s)
{
    return make_uint4(s.high, s.low, s.offset, s.zero);
}

/* A unit's scales of rows [16] and groups from `first` on, a lane's at a time.  true: there is one that wants SLOW. */
template <int KIND>
MF_DEV bool expand_scales(uint32_t to, const mf_cuda_matrix &m, int r0, int first, int groups, int lane)
{
    const int row = lane & 15, at = min(r0 + row, (int)m.n - 1) * (int)m.scale_row_stride + first;
    bool slow = false;
#pragma unroll 1
    for (int i = lane >> 4; i < groups; i += 2) {
        const int32_t zero = KIND == MF_CUDA_PACKED_INT4_ANY && m.zero ? __ldg(m.zero + at + i) : 8;
        packed_scale<KIND> s;
        if (KIND == MF_CUDA_PACKED_INT4_ANY && m.scale_dtype == MF_F32) {
            s = packed_scale<KIND>::make(__float_as_uint(__ldg((const float *)m.scale + at + i)), zero);
        } else {
            const uint16_t h = __ldg((const uint16_t *)m.scale + at + i);
            const float wide = m.scale_dtype == MF_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
            s = packed_scale<KIND>::make(KIND == MF_CUDA_PACKED_INT4_ANY ? __float_as_uint(wide) : h, zero);
        }
        slow = slow || packed_scale<KIND>::is_slow(s);
        store_words(to + (i * ROWS + row) * 16, as_words(s));
    }
    const bool any = __any_sync(MF_FULL_WARP, slow);
    __syncwarp();
    return any;
}

/* ---- products ---- */

/* 32 columns.  codes: this lane's word of row g; x: its operand. */
template <int KIND, bool SLOW>
MF_DEV void add_columns(float (&acc)[4], uint32_t codes, const packed_scale<KIND> (&scale)[2], uint32_t x, int shift)
{
    const uint4 b = load_words(x);
    const uint32_t words[2][2] = { { load_word(codes), load_word(codes + 8) },
                                   { load_word(codes + 1024), load_word(codes + 1032) } };
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const uint32_t low = words[0][s] >> shift, high = words[1][s] >> shift;
        mma_bf16(acc, packed_scale<KIND>::template widen<SLOW>(scale[0], low, 0),
                 packed_scale<KIND>::template widen<SLOW>(scale[1], high, 0),
                 packed_scale<KIND>::template widen<SLOW>(scale[0], low, 1),
                 packed_scale<KIND>::template widen<SLOW>(scale[1], high, 1), s == 0 ? b.x : b.z, s == 0 ? b.y : b.w);
    }
}

MF_DEV void add_bytes(float (&acc)[4], uint32_t codes, uint32_t b0, uint32_t b1)
{
    uint32_t low[2], high[2];
    wide_codes<MF_CUDA_PACKED_INT8>::widen(load_word(codes), low[0], low[1]);
    wide_codes<MF_CUDA_PACKED_INT8>::widen(load_word(codes + 1024), high[0], high[1]);
    mma_bf16(acc, low[0], high[0], low[1], high[1], b0, b1);
}

MF_DEV void load_scale(packed_scale<MF_CUDA_PACKED_INT4> &s, uint32_t at)
{
    const uint4 v = load_words(at);
    s.scale = v.x, s.large = v.y, s.minus_eight = v.z;
}

MF_DEV void load_scale(packed_scale<MF_CUDA_PACKED_INT4_ANY> &s, uint32_t at)
{
    const uint4 v = load_words(at);
    s.high = v.x, s.low = v.y, s.offset = v.z, s.zero = v.w;
}

/* A unit's columns [column, end).  codes: this lane's first word of row g; scales: row g's. */
template <int KIND>
MF_DEV void add_unit(float (&acc)[4], uint32_t codes, uint32_t scales, bool slow, int bits, int column, int end,
                     uint32_t x, int shift)
{
    if constexpr (kind_of<KIND>::IS_8BIT) {
        const int last = end - column;
#pragma unroll 1
        for (int c = 0; c < last; c += 32) {
            const uint4 b = load_words(x + c * 2);
            add_bytes(acc, codes ^ c, b.x, b.y);
            add_bytes(acc, codes ^ (c + 16), b.z, b.w);
        }
    } else {
        /* Bytes of the row's codes, half as many as columns: where the next group begins, where all end. */
        const int group = 1 << (bits - 1), last = (end - column) / 2;
        int next = 0, left = group - (column / 2 & (group - 1));
        packed_scale<KIND> scale[2];
#pragma unroll 1
        for (int c = 0; c < last; c += 32) {
            if (c == next) {
                load_scale(scale[0], scales);
                load_scale(scale[1], scales + 128);
                scales += ROWS * 16;
                next += left;
                left = group;
            }
            if (!slow) {
                add_columns<KIND, false>(acc, codes ^ c, scale, x + c * 4, shift);
                add_columns<KIND, false>(acc, codes ^ (c + 16), scale, x + c * 4 + 64, shift);
            } else {
#pragma unroll 1
                for (int i = 0; i < 32; i += 16) {
                    add_columns<KIND, true>(acc, codes ^ (c + i), scale, x + c * 4 + i * 4, shift);
                }
            }
        }
    }
}

/* One loop asks for a unit and multiplies another, so that neither is written out twice: this code is met cold. */
template <int KIND, int RUNS, int DEPTH>
__global__ void __launch_bounds__(32 * RUNS, RUNS == 8 ? 4 : 2) ring_kernel(const __grid_constant__ mf_cuda_linear p)
{
    using kind = kind_of<KIND>;
    constexpr int COLUMNS = UNIT_COLUMNS<KIND>, FIXED = SCALE_ROOM<KIND>, UNIT = CODE_ROOM, PITCH = ROWS + 1,
                  THREADS = 32 * RUNS;
    extern __shared__ __align__(128) uint8_t shared[];
    const int lane = threadIdx.x & 31, run = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int k = (int)p.w[0].k, units = k / 64, start = run_start(run, units, RUNS) * 64,
              end = run_start(run + 1, units, RUNS) * 64, tiles = (int)p.first_block[p.num], tokens = (int)p.num_tokens;
    float *sums = (float *)(shared + RUNS * (p.ring_units * UNIT + FIXED)); /* [2][run][token] */
    uint8_t *x = (uint8_t *)(sums + 2 * RUNS * tokens * PITCH);
    const uint32_t scales = kept((uint32_t)__cvta_generic_to_shared(shared + run * (p.ring_units * UNIT + FIXED))),
                   own_x =
                       kept((uint32_t)__cvta_generic_to_shared(x) + (g < tokens ? g : 0) * (k * 2 + X_PAD) + q * 16),
                   own_code = kept(g * (128 + 16) + (kind::IS_8BIT ? 4 * q : 4 * (q >> 1))),
                   lane_at = kept((uint32_t)((lane >> 3) * 128 + (((lane & 7) ^ (lane >> 3)) << 4)));
    asking a = {};
    a.tile = (int)blockIdx.x;
    a.column = start;
    int tile = (int)blockIdx.x, column = start, which = 0, parity = 0, r0 = 0;
    float acc[4] = { 0.0f, 0.0f, 0.0f, 0.0f }, row_scale = 1.0f;
    const int own_row = threadIdx.x % ROWS;
    let_next_start();
#pragma unroll 1
    for (int step = 0; tile < tiles; step++) {
        /* Nobody writes weights: they need not wait for what comes before. */
        if (a.tile < tiles) {
            if (a.column == start) {
                enter_tile<KIND>(a, p, lane);
            }
            if (a.column < end) {
                ask_unit<KIND>(scales + FIXED + (step & (DEPTH - 1)) * UNIT, lane_at, a, p.w[a.which], end - a.column,
                               lane);
            }
            a.column += COLUMNS;
            if (a.column >= end) {
                a.column = start;
                a.tile += gridDim.x;
            }
        }
        copy_commit();
        if (step < DEPTH - 1) {
            continue;
        }
        if (column == start) { /* of a tile */
            which = matrix_of(p, tile);
            r0 = (tile - (int)p.first_block[which]) * ROWS;
            if constexpr (kind::IS_8BIT) {
                row_scale = scale_at(
                    p.w[which], matrix_scale_row<kind::FORMAT>(p.w[which], min(r0 + own_row, (int)p.w[which].n - 1)));
            }
        }
        const uint32_t unit = scales + FIXED + ((step + 1) & (DEPTH - 1)) * UNIT;
        const mf_cuda_matrix &m = p.w[which];
        bool slow = false;
        int bits = 0;
        if constexpr (!kind::IS_8BIT) {
            bits = group_bits(m);
            slow = expand_scales<KIND>(scales, m, r0, column >> bits,
                                       column < end ? groups_of<KIND>(column, end, bits) : 0, lane);
        }
        copy_wait<DEPTH - 1>();
        __syncwarp();
        if (step == DEPTH - 1) {
            wait_for_previous();
            stage_x<KIND, THREADS>(x, p, tokens, k);
            __syncthreads();
        }
        add_unit<KIND>(acc, unit + own_code, scales + g * 16, slow, bits, column, min(column + COLUMNS, end),
                       own_x + column * 2, 8 * (q & 1));
        __syncwarp();
        column += COLUMNS;
        if (column < end) {
            continue;
        }
        float *of = sums + parity * RUNS * tokens * PITCH; /* the other one's readers have met the last barrier since */
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (2 * q + e < tokens) {
                float *to = of + (run * tokens + 2 * q + e) * PITCH + g;
                to[0] = acc[e];
                to[8] = acc[2 + e];
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < tokens * ROWS; i += THREADS) {
            const int t = i / ROWS;
            const float *from = of + t * PITCH + own_row;
            float v = 0.0f;
#pragma unroll
            for (int s = 0; s < RUNS; s++) {
                v = __fadd_rn(v, from[s * tokens * PITCH]);
            }
            if (r0 + own_row < m.n) {
                v = kind::IS_8BIT ? __fmul_rn(v, row_scale) : v;
                p.out[which][t * p.out_stride[which] + r0 + own_row] =
                    p.bias[which] ? __fadd_rn(v, p.bias[which][r0 + own_row]) : v;
            }
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            acc[e] = 0.0f;
        }
        parity ^= 1;
        column = start;
        tile += gridDim.x;
    }
}

template <int KIND, int RUNS, int DEPTH> int launch(const mf_cuda_linear &p, void *stream)
{
    const auto kernel = ring_kernel<KIND, RUNS, DEPTH>;
    const int64_t tiles = p.first_block[p.num], blocks = tiles < p.most_blocks ? tiles : p.most_blocks;
    want_all_shared(kernel);
    const stretch weights = weights_of(p);
    return launch_streaming(mf_cuda_starts_early != 0, weights.base, weights.bytes, kernel, dim3((unsigned)blocks),
                            32u * RUNS, (size_t)mf_cuda_codes_ring_shared(&p, KIND), stream, p);
}

} // namespace

int64_t mf_cuda_codes_ring_shared(const mf_cuda_linear *p, int kind)
{
    const bool is_8bit = kind == MF_CUDA_PACKED_INT8;
    const int64_t sums = 2 * p->runs * p->num_tokens * (ROWS + 1) * 4;
    return p->runs * (p->ring_units * CODE_ROOM + (is_8bit ? 0 : SCALE_ROOM<MF_CUDA_PACKED_INT4>)) + sums +
           p->num_tokens * (p->w[0].k * 2 + X_PAD);
}

int mf_cuda_launch_codes_ring(const mf_cuda_linear *call, int kind, void *stream)
{
    const mf_cuda_linear p = cut(call, ROWS);
    return with_kind(kind, [&](auto k) {
        constexpr int KIND = decltype(k)::value;
        return p.runs == 8 ? p.is_deep ? launch<KIND, 8, 4>(p, stream) : launch<KIND, 8, 2>(p, stream)
               : p.is_deep ? launch<KIND, 16, 4>(p, stream)
                           : launch<KIND, 16, 2>(p, stream);
    });
}
