/* sm90.cuh - every instruction that is written as PTX, one function each.  Those past sm_80 say so. */
#ifndef MF_KERNELS_CUDA_SM90_CUH
#define MF_KERNELS_CUDA_SM90_CUH

#include <stdint.h>

#define MF_PTX static __device__ __forceinline__

/* 16 bytes that are read once: weights streamed past few tokens. */
MF_PTX uint4 load_stream(const void *p)
{
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3},[%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

/* A number that is needed much later, asked for here and not where it is used. */
MF_PTX float load_early(const float *p)
{
    float v;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}

MF_PTX int32_t load_early(const int32_t *p)
{
    int32_t v;
    asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* 4, 8 or 16 bytes, asked for here and in this order: left to itself the compiler asks for fewer at a time to save
 * registers. */
template <int WORDS> MF_PTX void load_now(const void *p, uint32_t (&v)[WORDS])
{
    if constexpr (WORDS == 1) {
        asm volatile("ld.global.u32 %0, [%1];" : "=r"(v[0]) : "l"(p));
    } else if constexpr (WORDS == 2) {
        asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "l"(p));
    } else {
        asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "l"(p));
    }
}

/* 16 bytes that another block wrote during this launch. */
MF_PTX uint4 load_fresh(const void *p)
{
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* c[16 x 8] += a[16 x 16] b[16 x 8], bf16 in, f32 sums. */
MF_PTX void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

MF_PTX void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Two e4m3 codes to the f16 numbers that they are; sm_89 on. */
MF_PTX uint32_t e4m3_pair_to_f16(uint32_t codes)
{
#if __CUDA_ARCH__ >= 890
    uint32_t pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((uint16_t)codes));
    return pair;
#else
    return codes; /* the plan never comes here */
#endif
}

/* 16 bytes to shared memory, or 16 zeros. */
MF_PTX void copy_async(void *shared, const void *global, bool is_there)
{
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(is_there ? 16 : 0) : "memory");
}

/* The first `bytes` of 16, then zeros, to an address in shared memory. */
MF_PTX void copy_async_at(uint32_t shared, const void *global, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

/* What becomes of something in the second-level cache, as createpolicy.fractional makes it: it leaves when its turn
 * comes, first, or last. */
constexpr uint64_t EVICT_NORMAL = 0x1000000000000000, EVICT_FIRST = 0x12f0000000000000, EVICT_LAST = 0x14f0000000000000;

/* 16 bytes that are read again while much else passes through that cache. */
MF_PTX void copy_async_kept_at(uint32_t shared, const void *global)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "l"(EVICT_LAST)
                 : "memory");
#endif
}

MF_PTX void store_by(void *global, uint4 v, uint64_t policy)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(global), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w), "l"(policy)
                 : "memory");
#endif
}

MF_PTX void copy_word_async_at(uint32_t shared, const void *global)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

/* The first `bytes` of a word, then zeros. */
MF_PTX void copy_bytes_async_at(uint32_t shared, const void *global, int bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

/* One word, or zero. */
MF_PTX void copy_word_async(void *shared, const void *global, bool is_there)
{
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(is_there ? 4 : 0) : "memory");
}

/* 8 bytes. */
MF_PTX void copy_8_async(void *shared, const void *global)
{
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(global) : "memory");
}

MF_PTX void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most PENDING of this thread's groups are not there yet. */
template <int PENDING> MF_PTX void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* 1 / d within an ulp; subnormals are zero. */
MF_PTX float reciprocal_approx(float d)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return r;
}

/* v with subnormals and -0 as +0; infinities and NaNs stay. */
MF_PTX float flush_to_zero(float v)
{
    float r;
    asm("add.ftz.f32 %0, %1, 0f00000000;" : "=f"(r) : "f"(v));
    return r;
}

/* d < bound ? 0 : v, as a selection; left to itself the compiler branches around what v is made of. */
MF_PTX float zero_if_below(float d, float bound, float v)
{
    float r;
    asm("{ .reg .pred p; setp.lt.f32 p, %1, %2; selp.f32 %0, 0f00000000, %3, p; }" : "=f"(r) : "f"(d), "f"(bound), "f"(v));
    return r;
}

/* Two f32 to the nearest bf16, the first in the low half. */
MF_PTX uint32_t pack_bf16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* Words that blocks of one launch share. */
MF_PTX uint32_t load_relaxed(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

MF_PTX uint32_t load_acquire(const uint32_t *p)
{
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

/* After what this block's threads wrote before its last barrier. */
MF_PTX void store_release(uint32_t *p, uint32_t v)
{
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

MF_PTX void store_relaxed(uint32_t *p, uint32_t v)
{
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

MF_PTX uint64_t load_8_relaxed(const uint64_t *p)
{
    uint64_t v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
}

/* Two of them; each is whole. */
MF_PTX void load_16_relaxed(const uint64_t *p, uint64_t &a, uint64_t &b)
{
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(p) : "memory");
}

MF_PTX void store_8_relaxed(uint64_t *p, uint64_t v)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

/* Two of them; each becomes whole. */
MF_PTX void store_16_relaxed(uint64_t *p, uint64_t a, uint64_t b)
{
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(a), "l"(b) : "memory");
}

MF_PTX void add_relaxed(uint32_t *p, uint32_t v)
{
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

MF_PTX void add_8_relaxed(uint64_t *p, uint64_t v)
{
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

/* Barrier `name` (not 0) of n threads of the block, whole warps; and one that says whether any of them came with true. */
MF_PTX void sync_threads(int name, int n)
{
    asm volatile("barrier.sync %0, %1;" ::"r"(name), "r"(n) : "memory");
}

/* The same with numbers that the compiler knows: only such barriers leave the others to blocks beside this one. */
template <int NAME, int N> MF_PTX void sync_threads()
{
    asm volatile("barrier.sync %0, %1;" ::"n"(NAME), "n"(N) : "memory");
}

MF_PTX bool sync_threads_or(int name, int n, bool v)
{
    uint32_t any;
    asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %3, 0; barrier.red.or.pred q, %1, %2, p; selp.u32 %0, 1, 0, q; }"
                 : "=r"(any)
                 : "r"(name), "r"(n), "r"((uint32_t)v)
                 : "memory");
    return any != 0;
}

/* v is made here, whatever becomes of it. */
MF_PTX void keep_here(float &v)
{
    asm volatile("" : "+f"(v));
}

/* The sum before, in shared memory; plainer than what atomicAdd becomes. */
MF_PTX int add_shared(int *p, int v)
{
    int before;
    asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"((uint32_t)__cvta_generic_to_shared(p)), "r"(v) : "memory");
    return before;
}

/* 16 bytes of shared memory, asked for here. */
MF_PTX uint4 load_shared_16(const void *p)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"((uint32_t)__cvta_generic_to_shared(p))
                 : "memory");
    return v;
}

/* n += a > b in two instructions, where the compiler makes three. */
MF_PTX void count_if_more(int &n, uint32_t a, uint32_t b)
{
    asm("{ .reg .pred p; setp.gt.u32 p, %1, %2; @p add.s32 %0, %0, 1; }" : "+r"(n) : "r"(a), "r"(b));
}

/* 2^x; results below the smallest normal number are 0. */
MF_PTX float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Four 8 x 8 tiles of 16-bit elements, transposed: lane l names row l % 8 of tile l / 8; lane (g, q) gets rows 2q, 2q + 1 of
 * column g of each. */
MF_PTX void load_transposed(uint32_t (&r)[4], const void *shared)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* The same as they lie: lane (g, q) gets columns 2q, 2q + 1 of row g of each. */
MF_PTX void load_tiles(uint32_t (&r)[4], const void *shared)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* The same as they are, from an address in shared memory: lane (g, q) gets columns 2q, 2q + 1 of row g. */
MF_PTX void load_tiles(uint32_t (&r)[4], uint32_t shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

/* Programmatic dependent launch (sm_90): what kernels before this one wrote is there; the next one may start. */
MF_PTX void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

MF_PTX void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
