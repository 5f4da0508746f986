/* wgmma.cuh - Hopper's own instructions: barriers in shared memory, tensor copies, products of a warpgroup.  PTX only, one
 * function each; on other GPUs the bodies are empty and no plan comes here. */
#ifndef MF_KERNELS_CUDA_WGMMA_CUH
#define MF_KERNELS_CUDA_WGMMA_CUH

#include <cuda.h>

#include "kernels/cuda/sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MF_HAS_WGMMA 1
#else
#define MF_HAS_WGMMA 0
#endif

MF_PTX uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- barriers: 64-bit words in shared memory ---- */

MF_PTX void barrier_init(uint64_t *barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/* What was initialised is seen by the copy engine too. */
MF_PTX void barrier_init_fence()
{
#if MF_HAS_WGMMA
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

MF_PTX void barrier_arrive(uint64_t *barrier)
{
#if MF_HAS_WGMMA
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

/* Arrives, and `bytes` of copies must land before the phase ends. */
MF_PTX void barrier_expect(uint64_t *barrier, uint32_t bytes)
{
#if MF_HAS_WGMMA
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#endif
}

/* Arrives when this thread's copies so far (copy_async) have landed. */
MF_PTX void barrier_arrive_after_copies(uint64_t *barrier)
{
#if MF_HAS_WGMMA
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

MF_PTX void barrier_wait(uint64_t *barrier, uint32_t parity)
{
#if MF_HAS_WGMMA
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done;\n"
                 "bra again;\n"
                 "done:\n"
                 "}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
#endif
}

/* A barrier of THREADS threads of the block. */
template <int ID, int THREADS> MF_PTX void named_barrier()
{
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

/* Arrives there, and goes on. */
template <int ID, int THREADS> MF_PTX void named_arrive()
{
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

/* ---- copies ---- */

MF_PTX void prefetch_line(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* A map on its way to where the copy engine looks for it. */
MF_PTX void prefetch_map(const CUtensorMap *map)
{
#if MF_HAS_WGMMA
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

/* A box of a matrix [lines][rows][128 bytes] to shared memory; the barrier counts its bytes. */
MF_PTX void copy_box(void *shared, const CUtensorMap *map, int row, int line, uint64_t *barrier)
{
#if MF_HAS_WGMMA
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                     shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(line)
                 : "memory");
#endif
}

/* copy_box of a matrix [rows / 32][4][4][2][K bytes]; row: in 32s. */
MF_PTX void copy_turned_box(void *shared, const CUtensorMap *map, int row, int column, uint64_t *barrier)
{
#if MF_HAS_WGMMA
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%4, %3, %3, %3, %5}], [%2];" ::"r"(
                     shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(column), "r"(row)
                 : "memory");
#endif
}

/* copy_box with such a policy. */
MF_PTX void copy_box_by(void *shared, const CUtensorMap *map, int row, int line, uint64_t *barrier, uint64_t policy)
{
#if MF_HAS_WGMMA
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1, {%3, %4, "
                 "%5}], [%2], %6;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(line), "l"(policy)
                 : "memory");
#endif
}

/* copy_box of weights that a launch reads once, or a few times close together: they leave the second-level cache before
 * what the kernels of a step share - their code, tables, activations - which a layer's experts would push out. */
MF_PTX void copy_box_once(void *shared, const CUtensorMap *map, int row, int line, uint64_t *barrier)
{
    copy_box_by(shared, map, row, line, barrier, EVICT_FIRST);
}

/* Whether this is the lane of a whole warp that does what one of them shall: with a test of its number instead the
 * compiler does not know that it is but one, and puts a loop around every copy. */
MF_PTX bool is_elected()
{
    uint32_t is = 0;
#if MF_HAS_WGMMA
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(is));
#endif
    return is != 0;
}

/* What ordinary stores and cp.async wrote to shared memory is seen by wgmma. */
MF_PTX void fence_shared_for_products()
{
#if MF_HAS_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Ordinary stores to device memory and the copy engine's loads: on the writer's side before the release, on the reader's
 * behind the acquire. */
MF_PTX void fence_global_for_copies()
{
#if MF_HAS_WGMMA
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

/* Four 8 x 8 matrices of 2-byte elements, transposed, to the 16-byte rows whose addresses the lanes give. */
MF_PTX void store_transposed(void *row, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
#if MF_HAS_WGMMA
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
#endif
}

/* Four 8 x 8 matrices of 2-byte elements to the 16-byte rows whose addresses the lanes give. */
MF_PTX void store_matrices(void *row, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
#if MF_HAS_WGMMA
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
#endif
}

/* ---- clusters of two blocks ---- */

/* The place of `p` in the shared memory of the cluster's block `rank`. */
MF_PTX uint32_t address_of_block(const void *p, int rank)
{
    uint32_t at = 0;
#if MF_HAS_WGMMA
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(p)), "r"(rank));
#endif
    return at;
}

/* Arrives at the barrier of the cluster's block `rank`. */
MF_PTX void arrive_at_block(uint64_t *barrier, int rank)
{
#if MF_HAS_WGMMA
    /* Without .release.cluster, which is a fence of the whole device each time: only products' reads went before. */
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address_of_block(barrier, rank)) : "memory");
#endif
}

/* A word to a block of the cluster, whose barrier counts its bytes. */
MF_PTX void give_word(uint32_t *word, uint32_t v, uint64_t *barrier, int rank)
{
#if MF_HAS_WGMMA
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                     address_of_block(word, rank)),
                 "r"(v), "r"(address_of_block(barrier, rank))
                 : "memory");
#endif
}

/* The same, where the addresses in that block's shared memory are known. */
MF_PTX void give_word_at(uint32_t word, uint32_t v, uint32_t barrier)
{
#if MF_HAS_WGMMA
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(word), "r"(v),
                 "r"(barrier)
                 : "memory");
#endif
}

/* copy_box to the same place of both blocks; each one's barrier counts the bytes. */
MF_PTX void copy_box_to_both(void *shared, const CUtensorMap *map, int row, int line, uint64_t *barrier)
{
#if MF_HAS_WGMMA
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(line), "h"((uint16_t)3)
                 : "memory");
#endif
}

/* The end of what all threads of a cluster do. */
MF_PTX void cluster_end()
{
#if MF_HAS_WGMMA
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/* ---- counters in device memory ---- */

MF_PTX uint32_t add_acquire_release(uint32_t *p, uint32_t n)
{
    uint32_t v;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(v) : "l"(p), "r"(n) : "memory");
    return v;
}

MF_PTX void add_release(uint32_t *p, uint32_t n)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(n) : "memory");
}

/* ---- clusters ---- */

/* All threads of a cluster's blocks; what they wrote to shared memory before is seen after. */
MF_PTX void cluster_sync()
{
#if MF_HAS_WGMMA
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* The same, and only what was initialised (barrier_init_fence) is seen. */
MF_PTX void cluster_meet()
{
#if MF_HAS_WGMMA
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* The float at the place of `p` in the shared memory of the cluster's block `rank`. */
MF_PTX float load_of_block(const float *p, int rank)
{
    float v = 0.0f;
#if MF_HAS_WGMMA
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %1, %2; ld.shared::cluster.f32 %0, [at]; }"
                 : "=f"(v)
                 : "r"(shared_address(p)), "r"(rank)
                 : "memory");
#endif
    return v;
}

/* Four of them, on 16 bytes. */
MF_PTX float4 load_4_of_block(const float *p, int rank)
{
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#if MF_HAS_WGMMA
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %4, %5; ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [at]; }"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(shared_address(p)), "r"(rank)
                 : "memory");
#endif
    return v;
}

/* ---- registers of a warpgroup ---- */

template <int COUNT> MF_PTX void give_registers()
{
#if MF_HAS_WGMMA
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

template <int COUNT> MF_PTX void take_registers()
{
#if MF_HAS_WGMMA
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

/* ---- products: 64 rows by N tokens, both with K in rows of 128 bytes, swizzled ---- */

MF_PTX uint64_t product_operand(const void *shared)
{
    return (uint64_t)((shared_address(shared) & 0x3ffffu) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

MF_PTX void products_begin()
{
#if MF_HAS_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

MF_PTX void products_commit()
{
#if MF_HAS_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

template <int PENDING> MF_PTX void products_wait()
{
#if MF_HAS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

/* Keeps the compiler from moving what it does with the sums across the asynchronous products. */
template <int COUNT> MF_PTX void pin(float (&sums)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(sums[i])::"memory");
    }
}

/* One instruction: sums (=, or += with `add`) rows x tokens over 32 bytes of K. */
template <int N> struct products;

#define MF_SUM4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])

#define MF_SUMS_8 \
    "%0, %1, %2, %3"

#define MF_SUMS_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7"

#define MF_SUMS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"

#define MF_SUMS_48 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23"

#define MF_SUMS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define MF_SUMS_80 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39"

#define MF_SUMS_96 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"

#define MF_SUMS_112 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55"

#define MF_SUMS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define MF_SUMS_144 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71"

#define MF_SUMS_160 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"

#define MF_OPERANDS_8 \
      MF_SUM4(0)

#define MF_OPERANDS_16 \
      MF_SUM4(0), MF_SUM4(4)

#define MF_OPERANDS_32 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12)

#define MF_OPERANDS_48 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20)

#define MF_OPERANDS_64 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28)

#define MF_OPERANDS_80 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), \
      MF_SUM4(32), MF_SUM4(36)

#define MF_OPERANDS_96 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), \
      MF_SUM4(32), MF_SUM4(36), MF_SUM4(40), MF_SUM4(44)

#define MF_OPERANDS_112 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), \
      MF_SUM4(32), MF_SUM4(36), MF_SUM4(40), MF_SUM4(44), MF_SUM4(48), MF_SUM4(52)

#define MF_OPERANDS_128 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), \
      MF_SUM4(32), MF_SUM4(36), MF_SUM4(40), MF_SUM4(44), MF_SUM4(48), MF_SUM4(52), MF_SUM4(56), MF_SUM4(60)

#define MF_OPERANDS_144 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), \
      MF_SUM4(32), MF_SUM4(36), MF_SUM4(40), MF_SUM4(44), MF_SUM4(48), MF_SUM4(52), MF_SUM4(56), MF_SUM4(60), \
      MF_SUM4(64), MF_SUM4(68)

#define MF_OPERANDS_160 \
      MF_SUM4(0), MF_SUM4(4), MF_SUM4(8), MF_SUM4(12), MF_SUM4(16), MF_SUM4(20), MF_SUM4(24), MF_SUM4(28), \
      MF_SUM4(32), MF_SUM4(36), MF_SUM4(40), MF_SUM4(44), MF_SUM4(48), MF_SUM4(52), MF_SUM4(56), MF_SUM4(60), \
      MF_SUM4(64), MF_SUM4(68), MF_SUM4(72), MF_SUM4(76)

template <> struct products<8> {
    static __device__ __forceinline__ void bf16(float (&sums)[4], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {" MF_SUMS_8 "}, %4, %5, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_8
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[4], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {" MF_SUMS_8 "}, %4, %5, p, 1, 1; }"
                     : MF_OPERANDS_8
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

/* Sums += 64 rows, of which a warp has 16 in registers (as mma.sync's), x eight tokens over 32 bytes of K. */
MF_PTX void product_of_registers(float (&sums)[4], const uint32_t (&rows)[4], uint64_t tokens)
{
#if MF_HAS_WGMMA
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {" MF_SUMS_8 "}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
                 : MF_OPERANDS_8
                 : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "l"(tokens));
#endif
}

template <> struct products<16> {
    static __device__ __forceinline__ void bf16(float (&sums)[8], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {" MF_SUMS_16 "}, %8, %9, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_16
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[8], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {" MF_SUMS_16 "}, %8, %9, p, 1, 1; }"
                     : MF_OPERANDS_16
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<32> {
    static __device__ __forceinline__ void bf16(float (&sums)[16], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" MF_SUMS_32 "}, %16, %17, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_32
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[16], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {" MF_SUMS_32 "}, %16, %17, p, 1, 1; }"
                     : MF_OPERANDS_32
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<48> {
    static __device__ __forceinline__ void bf16(float (&sums)[24], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %26, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {" MF_SUMS_48 "}, %24, %25, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_48
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[24], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %26, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n48k32.f32.e4m3.e4m3 {" MF_SUMS_48 "}, %24, %25, p, 1, 1; }"
                     : MF_OPERANDS_48
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<64> {
    static __device__ __forceinline__ void bf16(float (&sums)[32], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MF_SUMS_64 "}, %32, %33, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_64
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[32], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" MF_SUMS_64 "}, %32, %33, p, 1, 1; }"
                     : MF_OPERANDS_64
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<80> {
    static __device__ __forceinline__ void bf16(float (&sums)[40], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %42, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {" MF_SUMS_80 "}, %40, %41, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_80
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[40], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %42, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n80k32.f32.e4m3.e4m3 {" MF_SUMS_80 "}, %40, %41, p, 1, 1; }"
                     : MF_OPERANDS_80
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<96> {
    static __device__ __forceinline__ void bf16(float (&sums)[48], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %50, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" MF_SUMS_96 "}, %48, %49, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_96
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[48], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %50, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n96k32.f32.e4m3.e4m3 {" MF_SUMS_96 "}, %48, %49, p, 1, 1; }"
                     : MF_OPERANDS_96
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<112> {
    static __device__ __forceinline__ void bf16(float (&sums)[56], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %58, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n112k16.f32.bf16.bf16 {" MF_SUMS_112 "}, %56, %57, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_112
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[56], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %58, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n112k32.f32.e4m3.e4m3 {" MF_SUMS_112 "}, %56, %57, p, 1, 1; }"
                     : MF_OPERANDS_112
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<128> {
    static __device__ __forceinline__ void bf16(float (&sums)[64], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MF_SUMS_128 "}, %64, %65, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_128
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[64], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" MF_SUMS_128 "}, %64, %65, p, 1, 1; }"
                     : MF_OPERANDS_128
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<144> {
    static __device__ __forceinline__ void bf16(float (&sums)[72], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %74, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n144k16.f32.bf16.bf16 {" MF_SUMS_144 "}, %72, %73, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_144
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[72], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %74, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n144k32.f32.e4m3.e4m3 {" MF_SUMS_144 "}, %72, %73, p, 1, 1; }"
                     : MF_OPERANDS_144
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

template <> struct products<160> {
    static __device__ __forceinline__ void bf16(float (&sums)[80], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %82, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {" MF_SUMS_160 "}, %80, %81, p, 1, 1, 0, 0; }"
                     : MF_OPERANDS_160
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
    static __device__ __forceinline__ void e4m3(float (&sums)[80], uint64_t rows, uint64_t tokens, int add)
    {
#if MF_HAS_WGMMA
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %82, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n160k32.f32.e4m3.e4m3 {" MF_SUMS_160 "}, %80, %81, p, 1, 1; }"
                     : MF_OPERANDS_160
                     : "l"(rows), "l"(tokens), "r"(add));
#endif
    }
};

#endif
