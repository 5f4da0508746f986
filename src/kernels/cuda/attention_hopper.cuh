/* attention_hopper.cuh - what attention's kernels on Hopper share.  Rows of keys and values lie in shared memory as
 * lines of 64 columns, [line][row][128 bytes], swizzled as tensor copies leave them and products read them. */
#ifndef MF_KERNELS_CUDA_ATTENTION_HOPPER_CUH
#define MF_KERNELS_CUDA_ATTENTION_HOPPER_CUH

#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/attention_wgmma.h"
#include "kernels/cuda/wgmma.cuh"

constexpr int LINE = 128, SUB = 64 * LINE; /* 64 columns of 64 rows */
constexpr int BOX = MF_CUDA_ATTENTION_BOX, BOXES = PIECE / BOX;

MF_DEV uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * LINE + ((chunk ^ (row & 7)) << 4));
}

/* Lines of 64 columns, `pitch` bytes apart, rows of which are summed over. */
MF_DEV uint64_t value_operand(const void *shared, int pitch)
{
    return (uint64_t)((shared_address(shared) & 0x3ffffu) >> 4) | (uint64_t)(pitch >> 4) << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

/* sums (=, or += with `add`) 16 positions' weights in registers times their values, rows of which are positions. */
template <int DIM> struct value_products;
template <> struct value_products<128> {
    static __device__ __forceinline__ void add(float (&sums)[64], const uint32_t (&a)[4], uint64_t values, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MF_SUMS_128
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
                     : MF_OPERANDS_128
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(values), "r"(add));
#endif
    }
};
template <> struct value_products<64> {
    static __device__ __forceinline__ void add(float (&sums)[32], const uint32_t (&a)[4], uint64_t values, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MF_SUMS_64
                     "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
                     : MF_OPERANDS_64
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(values), "r"(add));
#endif
    }
};

/* Arrives at barrier `name` of n threads, and goes on. */
MF_DEV void arrive_threads(int name, int n)
{
    asm volatile("barrier.arrive %0, %1;" ::"r"(name), "r"(n) : "memory");
}

/* What follows is not pulled in front of what makes v, which is not negative: a store that never happens. */
MF_DEV void not_before(float v, const void *shared)
{
    asm volatile("{ .reg .pred p; setp.lt.f32 p, %0, 0fbf800000; @p st.shared.u32 [%1], 0; }" ::"f"(v),
                 "r"(shared_address(shared))
                 : "memory");
}

/* Tokens [begin, end) of a block that follow one another in a sequence; for whole warps. */
MF_DEV int run_end(const int32_t *sequences, const int32_t *positions, int begin, int tokens)
{
    for (int base = begin + 1; base < tokens; base += 32) {
        const int t = base + (threadIdx.x & 31);
        const bool ends =
            t >= tokens || sequences[t] != sequences[begin] || positions[t] != positions[begin] + (t - begin);
        const uint32_t where = __ballot_sync(MF_FULL_WARP, ends);
        if (where != 0) {
            return base + __ffs((int)where) - 1 < tokens ? base + __ffs((int)where) - 1 : tokens;
        }
    }
    return tokens;
}

template <int STAGES> struct cursor {
    int stage;
    uint32_t parity;
    MF_DEV_MEMBER void next(cursor &c)
    {
        if (++c.stage == STAGES) {
            c.stage = 0;
            c.parity ^= 1;
        }
    }
};

/* One warp's 16 rows by columns [8n, 8n + 8) of a piece's values as token `only` sees them: elsewhere zeros. */
MF_DEV void weigh_seen(float (&out)[4], const uint32_t (&packed)[4][4], const uint8_t *values, int pitch, int n,
                       int from, int to)
{
    const int lane = threadIdx.x & 31, column = n * 8 + (lane >> 2), q = lane & 3;
    auto value = [&](int row) {
        const uint8_t *at = values + column / 64 * pitch + swizzled(row, column % 64 / 8) + column % 8 * 2;
        return row >= from && row <= to ? (uint32_t) * (const uint16_t *)at : 0u;
    };
    out[0] = out[1] = out[2] = out[3] = 0.0f;
#pragma unroll 1
    for (int step = 0; step < 4; step++) {
        const int row = step * 16 + 2 * q;
        uint32_t w[4]; /* selected, not indexed: registers */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = step == 0 ? packed[0][i] : step == 1 ? packed[1][i] : step == 2 ? packed[2][i] : packed[3][i];
        }
        mma_bf16(out, w[0], w[1], w[2], w[3], value(row) | value(row + 1) << 16, value(row + 8) | value(row + 9) << 16);
    }
}

#endif
