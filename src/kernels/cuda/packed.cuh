/* packed.cuh - weights as the products' operand from registers: their order, their values in bf16.
 *
 * A thread (g = lane / 4, q = lane % 4) holds of every 16 columns of two rows the columns 2q, 2q + 1, 2q + 8 and 2q
 * + 9. Which of the matrix's columns these are is free, as long as the tokens agree: of 128 columns it takes 32q .. 32q
 * + 31.  Of codes of 4 bits these are the 16 bytes of a row that one load brings, and of a word's eight codes come in
 * turn those 16 bits apart, i and i + 4; wider codes (WIDE) come as they follow one another, four a step.  So tokens
 * lie in memory with their columns in that order (packed_column). */
#ifndef MF_KERNELS_CUDA_PACKED_CUH
#define MF_KERNELS_CUDA_PACKED_CUH

#include "kernels/cuda/wgmma.cuh"

/* The column at a place of 128, and back. */
template <bool WIDE> __host__ __device__ constexpr int packed_column(int place)
{
    return 32 * (place >> 1 & 3) +
           (WIDE ? 2 * (place >> 3) + (place & 1) : 8 * (place >> 5) + (place >> 3 & 3) + 4 * (place & 1));
}

template <bool WIDE> __host__ __device__ constexpr int packed_place(int column)
{
    return 2 * (column >> 5) + (WIDE ? 8 * (column >> 1 & 15) + (column & 1)
                                     : 32 * (column >> 3 & 3) + 8 * (column & 3) + (column >> 2 & 1));
}

/* How a kind's rows lie in a stage.  A line: 128 bytes of K. */
template <int KIND> struct packed_kind {
    static constexpr int BITS = KIND == MF_CUDA_PACKED_F16 ? 16 : KIND >= MF_CUDA_PACKED_FP8_BLOCK ? 8 : 4;
    static constexpr bool WIDE = BITS > 4;
    static constexpr int COLUMNS = WIDE ? 128 : 256;              /* of a stage's rows; worked on in pieces of 128 */
    static constexpr int CODE_LINES = COLUMNS * BITS / (8 * 128); /* of a row of codes */
    static constexpr int TOKEN_LINES = COLUMNS / 64;              /* of a token */
};

/* ---- two bf16 at a time ---- */

MF_PTX uint32_t mul_bf16x2(uint32_t a, uint32_t b)
{
    uint32_t r = 0;
#if MF_HAS_WGMMA
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
    return r;
}

MF_PTX uint32_t add_bf16x2(uint32_t a, uint32_t b)
{
    uint32_t r = 0;
#if MF_HAS_WGMMA
    asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
    return r;
}

MF_PTX uint32_t sub_bf16x2(uint32_t a, uint32_t b)
{
    uint32_t r = 0;
#if MF_HAS_WGMMA
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
    return r;
}

MF_PTX uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r = 0;
#if MF_HAS_WGMMA
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
#endif
    return r;
}

MF_DEV uint32_t twice(uint32_t bf16)
{
    return bf16 | bf16 << 16;
}

/* (a & mask) | c in one instruction; the compiler makes two of constants. */
template <uint32_t MASK> MF_PTX uint32_t masked_or(uint32_t a, uint32_t c)
{
    uint32_t r = 0;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "n"(MASK), "r"(c));
    return r;
}

/* Bytes of a word, or with 8 more the sign of one, eight times: four selectors, the lowest byte's last. */
template <uint32_t SELECTORS> MF_PTX uint32_t permute_bytes(uint32_t w)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(r) : "r"(w), "n"(SELECTORS));
    return r;
}

/* ---- a group's scale as the conversions take it; the codes i and i + 4 of a word to values.  SLOW: scales (and zero
 * points) of a size that no checkpoint has ---- */

template <int KIND> struct packed_scale;

/* E2M1: sign, two bits of exponent and one of mantissa are a bf16's at bits 15, 8, 7 and 6 with 2^126 times less (one
 * product with two powers of 2 puts them there); times 2^(s - 127 + 126), exact.  s > 128: in two steps. */
template <> struct packed_scale<MF_CUDA_PACKED_MXFP4> {
    uint32_t first, second;
    MF_DEV_MEMBER bool is_slow(const packed_scale &s)
    {
        return s.second != 0x3f803f80u;
    }
    MF_DEV_MEMBER packed_scale make(uint32_t s, uint32_t)
    {
        packed_scale r;
        r.first = s == 255 ? 0x7fc07fc0u : twice(((s < 128 ? s : 128) + 126) << 7);
        r.second = twice(s > 128 && s < 255 ? (s - 128 + 127) << 7 : 0x3f80u);
        return r;
    }
    template <bool SLOW> MF_DEV_MEMBER uint32_t widen(const packed_scale &s, uint32_t w, int i)
    {
        const uint32_t at = i < 2 ? w : w >> 8;
        const uint32_t spread = i & 1 ? (at & 0x00f000f0u) * 0x104u : (at & 0x000f000fu) * 0x1040u;
        const uint32_t v = mul_bf16x2(spread & 0x81c081c0u, s.first);
        return SLOW ? mul_bf16x2(v, s.second) : v;
    }
};

/* Code c at bits 6 to 3 alone is the bf16 c 2^-130: one fma with 2^130 times the scale and -8 times it, rounded once.
 * From scales of 1/4 on: c below the bits of 128 is 128 + c; less 136, times the scale. */
template <> struct packed_scale<MF_CUDA_PACKED_INT4> {
    uint32_t scale, large, minus_eight;
    MF_DEV_MEMBER bool is_slow(const packed_scale &s)
    {
        return (s.scale & 0x7fffu) >= 0x3e80u;
    }
    MF_DEV_MEMBER packed_scale make(uint32_t raw, uint32_t)
    {
        packed_scale r;
        const float scale = bf16_to_f32((uint16_t)raw);
        r.scale = twice(raw);
        r.large = twice(__float_as_uint(__fmul_rn(__fmul_rn(scale, 0x1p65f), 0x1p65f)) >> 16);
        r.minus_eight = twice(__float_as_uint(__fmul_rn(scale, -8.0f)) >> 16);
        return r;
    }
    template <bool SLOW> MF_DEV_MEMBER uint32_t widen(const packed_scale &s, uint32_t w, int i)
    {
        if (SLOW) {
            return mul_bf16x2(add_bf16x2(masked_or<0x000f000fu>(w >> 4 * i, 0x43004300u), 0xc308c308u), s.scale);
        }
        return fma_bf16x2((i == 0 ? w << 3 : w >> (4 * i - 3)) & 0x00780078u, s.large, s.minus_eight);
    }
};

/* A zero point and a scale of f16 or f32 as two bf16; from zero points of 128 on, 128 + z would not be a bf16. */
template <> struct packed_scale<MF_CUDA_PACKED_INT4_ANY> {
    uint32_t high, low, offset, zero;
    MF_DEV_MEMBER bool is_slow(const packed_scale &s)
    {
        return (s.zero & 0x7fffu) >= 0x4300u;
    }
    MF_DEV_MEMBER packed_scale make(uint32_t raw, uint32_t zero)
    {
        packed_scale r;
        const float scale = __uint_as_float(raw);
        const uint32_t high = f32_to_bf16(scale);
        const float rest = __fsub_rn(scale, bf16_to_f32((uint16_t)high));
        r.high = twice(high);
        r.low = twice((high & 0x7fffu) < 0x7f80u ? f32_to_bf16(rest) : 0u);
        r.offset = twice(__float_as_uint(-128.0f - (float)zero) >> 16);
        r.zero = twice(__float_as_uint(-(float)zero) >> 16);
        return r;
    }
    template <bool SLOW> MF_DEV_MEMBER uint32_t widen(const packed_scale &s, uint32_t w, int i)
    {
        const uint32_t code = masked_or<0x000f000fu>(w >> 4 * i, 0x43004300u);
        const uint32_t value = SLOW ? add_bf16x2(add_bf16x2(code, 0xc300c300u), s.zero) : add_bf16x2(code, s.offset);
        return fma_bf16x2(value, s.high, mul_bf16x2(value, s.low));
    }
};

/* ---- codes of 8 and 16 bits, whose scales wait for the sums: four that follow one another to two pairs, exact ---- */

template <int KIND> struct wide_codes;

/* E4M3: sign, exponent and mantissa are a bf16's at bits 15 and 10 to 4 with 2^120 times less.  Its NaNs become 480;
 * whoever adds them up makes their rows NaN. */
template <> struct wide_codes<MF_CUDA_PACKED_FP8_BLOCK> {
    static constexpr bool HAS_NAN = true;
    /* Bit 7 of a byte is set where w's is a NaN; other bits are of no account. */
    MF_DEV_MEMBER uint32_t nan_bits(uint32_t w)
    {
        return (w & 0x7f7f7f7fu) + 0x01010101u;
    }
    MF_DEV_MEMBER uint32_t value(uint32_t spread)
    {
        return mul_bf16x2((uint32_t)((int32_t)spread >> 4) & 0x87f087f0u, 0x7b807b80u);
    }
    MF_DEV_MEMBER void widen(uint32_t w, uint32_t &a, uint32_t &b)
    {
        /* A byte, its sign, the next byte: the sign falls beside the first when all move by 4. */
        a = value(permute_bytes<0x1800>(w));
        b = value(permute_bytes<0x3a20>(w));
    }
};

template <> struct wide_codes<MF_CUDA_PACKED_FP8_CHANNEL> : wide_codes<MF_CUDA_PACKED_FP8_BLOCK> {
};

/* The low 7 bits below those of 128 are 128 + them; less 128, or 256 where the code's eighth is set. */
template <> struct wide_codes<MF_CUDA_PACKED_INT8> {
    static constexpr bool HAS_NAN = false;
    MF_DEV_MEMBER uint32_t nan_bits(uint32_t)
    {
        return 0;
    }
    MF_DEV_MEMBER uint32_t value(uint32_t spread)
    {
        return sub_bf16x2(masked_or<0x007f007fu>(spread, 0x43004300u), masked_or<0x00800080u>(spread, 0x43004300u));
    }
    MF_DEV_MEMBER void widen(uint32_t w, uint32_t &a, uint32_t &b)
    {
        a = value(permute_bytes<0x1100>(w));
        b = value(permute_bytes<0x3322>(w));
    }
};

/* F16 as two bf16: 8 of its 11 bits, and the rest (of an infinity: NaN). */
MF_DEV void split_f16(uint32_t pair, uint32_t &high, uint32_t &low)
{
    const float2 v = __half22float2(*(const __half2 *)&pair);
    high = __byte_perm(__float_as_uint(v.x), __float_as_uint(v.y), 0x7632);
    low = pack_bf16(__fsub_rn(v.x, __uint_as_float(high << 16)), __fsub_rn(v.y, __uint_as_float(high & 0xffff0000u)));
}

/* ---- copies ---- */

/* A box of 64 rows by 128 bytes of a matrix [rows][bytes], swizzled; what lies past its end arrives as zeros, and
 * all of it leaves the second-level cache first. */
MF_PTX void copy_packed_box(void *shared, const CUtensorMap *map, int row, int byte, uint64_t *barrier)
{
#if MF_HAS_WGMMA
    constexpr uint64_t EVICT_FIRST = 0x12f0000000000000; /* as copy_box_once has it */
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(byte), "r"(row), "l"(EVICT_FIRST)
                 : "memory");
#endif
}

/* Four bytes to shared memory, the first `count` of them from memory, the rest zeros. */
MF_PTX void copy_bytes_async(void *shared, const void *from, int count)
{
#if MF_HAS_WGMMA
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(from), "r"(count)
                 : "memory");
#endif
}

/* ---- products: sums += 64 rows by 16 columns from registers times N tokens; start: sums = ---- */

template <int N> struct packed_products;

#if MF_HAS_WGMMA
#define MF_PACKED_BODY(N, ADD, A0, A1, A2, A3, B)                                                                      \
    asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, " #ADD ";\n"                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MF_SUMS_##N                              \
                 "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 0; }"                                 \
                 : MF_OPERANDS_##N                                                                                     \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(tokens));
#else
#define MF_PACKED_BODY(N, ADD, A0, A1, A2, A3, B)
#endif

#define MF_PACKED_PRODUCTS(N, A0, A1, A2, A3, B)                                                                       \
    template <> struct packed_products<N> {                                                                            \
        static __device__ __forceinline__ void add(float (&sums)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2,        \
                                                   uint32_t a3, uint64_t tokens)                                       \
        {                                                                                                              \
            MF_PACKED_BODY(N, 0, A0, A1, A2, A3, B)                                                                    \
        }                                                                                                              \
        static __device__ __forceinline__ void start(float (&sums)[N / 2], uint32_t a0, uint32_t a1, uint32_t a2,      \
                                                     uint32_t a3, uint64_t tokens)                                     \
        {                                                                                                              \
            MF_PACKED_BODY(N, 1, A0, A1, A2, A3, B)                                                                    \
        }                                                                                                              \
    };

MF_PACKED_PRODUCTS(8, 4, 5, 6, 7, 8)
MF_PACKED_PRODUCTS(16, 8, 9, 10, 11, 12)
MF_PACKED_PRODUCTS(32, 16, 17, 18, 19, 20)
MF_PACKED_PRODUCTS(64, 32, 33, 34, 35, 36)
MF_PACKED_PRODUCTS(96, 48, 49, 50, 51, 52)
MF_PACKED_PRODUCTS(128, 64, 65, 66, 67, 68)

#endif
