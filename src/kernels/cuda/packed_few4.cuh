/* packed_few4.cuh - what the kernels for few tokens beside codes of 4 bits share: copies, scales, how tokens lie. */
#ifndef MF_KERNELS_CUDA_PACKED_FEW4_CUH
#define MF_KERNELS_CUDA_PACKED_FEW4_CUH

#include "kernels/cuda/packed_rows.cuh"

namespace
{

/* 16 bytes, or zeros, that leave the second-level cache before all else. */
MF_PTX void copy_once_at(uint32_t shared, const void *global, uint32_t bytes)
{
    constexpr uint64_t EVICT_FIRST = 0x12f0000000000000; /* as copy_box_once has it */
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared), "l"(global),
                 "r"(bytes), "l"(EVICT_FIRST)
                 : "memory");
}

/* ---- a group's scale as the conversions take it where it is of a usual size; packed_scale has all others ---- */

template <int KIND> struct few4_scale;

/* Zero points below 128 and finite scales. */
template <> struct few4_scale<MF_CUDA_PACKED_INT4_ANY> {
    packed_scale<MF_CUDA_PACKED_INT4_ANY> s;
    MF_DEV_MEMBER bool is_slow(const few4_scale &f, const raw_scale &r)
    {
        return r.zero >= 128 || (f.s.high & 0x7f80u) == 0x7f80u;
    }
    MF_DEV_MEMBER few4_scale make(const raw_scale &r)
    {
        few4_scale f;
        const float scale = __uint_as_float(r.bits);
        f.s.high = pack_bf16(scale, scale);
        const float rest = __fsub_rn(scale, __uint_as_float(f.s.high << 16));
        f.s.low = pack_bf16(rest, rest);
        f.s.offset = r.zero * 0x00010001u + 0xc300c300u;
        return f;
    }
    MF_DEV_MEMBER uint32_t widen(const few4_scale &f, uint32_t w, int i)
    {
        return packed_scale<MF_CUDA_PACKED_INT4_ANY>::widen<false>(f.s, w, i);
    }
};

template <> struct few4_scale<MF_CUDA_PACKED_MXFP4> {
    packed_scale<MF_CUDA_PACKED_MXFP4> s;
    MF_DEV_MEMBER bool is_slow(const few4_scale &, const raw_scale &r)
    {
        return r.bits > 128;
    }
    MF_DEV_MEMBER few4_scale make(const raw_scale &r)
    {
        few4_scale f;
        f.s.first = r.bits * 0x00800080u + 0x3f003f00u;
        return f;
    }
    MF_DEV_MEMBER uint32_t widen(const few4_scale &f, uint32_t w, int i)
    {
        return packed_scale<MF_CUDA_PACKED_MXFP4>::template widen<false>(f.s, w, i);
    }
};

/* Code c at bits 7 to 4 is the bf16 c 2^-129; scales are normal and below 1/4, so that exponents can be added. */
template <> struct few4_scale<MF_CUDA_PACKED_INT4> {
    uint32_t large, minus_eight;
    MF_DEV_MEMBER bool is_slow(const few4_scale &, const raw_scale &r)
    {
        return (r.bits & 0x7fffu) - 0x80u >= 0x3e00u;
    }
    MF_DEV_MEMBER few4_scale make(const raw_scale &r)
    {
        const uint32_t both = twice(r.bits);
        return { both + 0x40804080u, (both + 0x01800180u) ^ 0x80008000u };
    }
    MF_DEV_MEMBER uint32_t widen(const few4_scale &f, uint32_t w, int i)
    {
        const uint32_t at = i < 2 ? w : w >> 8;
        return fma_bf16x2((i & 1 ? at : at * 16) & 0x00f000f0u, f.large, f.minus_eight);
    }
};

/* Eight columns as the products take them: those that are four apart side by side. */
MF_DEV uint4 paired(const uint4 &v)
{
    return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
                      __byte_perm(v.y, v.w, 0x7632));
}

/* Of 128 columns' 16 pieces of eight, where one lies: what four lanes load together follows one another. */
MF_DEV int few4_piece_at(int piece)
{
    return (piece & 3) * 4 + (piece >> 2 & 3);
}

MF_DEV void few4_store(const mf_cuda_grouped &p, int pair, int row, float v)
{
    const int64_t at = y_offset(p.e, pair) + row;
    if (p.e.y_dtype == MF_BF16 && p.e.y_is_wide) {
        ((uint16_t *)p.e.y)[at] = (uint16_t)pack_bf16(v, 0.0f);
    } else {
        store_float(p.e.y, p.e.y_dtype, at, v, p.e.bytewise);
    }
}

/* A row of scales or zero points as words: they begin `phase` bytes behind `words` and end before byte `end`. */
struct few4_row {
    const uint8_t *words;
    int32_t phase, end;
};

MF_DEV few4_row few4_row_at(const uint8_t *first, int bytes)
{
    few4_row r;
    r.phase = (int)((uintptr_t)first & 3);
    r.words = first - r.phase;
    r.end = r.phase + bytes;
    return r;
}

} // namespace

#endif
