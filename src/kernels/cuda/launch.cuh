/* launch.cuh - the host's side of a launch: dynamic shared memory past the default, and programmatic dependent launch. */
#ifndef MF_KERNELS_CUDA_LAUNCH_CUH
#define MF_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

/* Lets a kernel have `bytes` of dynamic shared memory beside what it declares. */
template <typename Kernel> static int allow_shared(Kernel kernel, size_t bytes)
{
    return bytes <= 32 * 1024
               ? (int)cudaSuccess
               : (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* What a launch is started with; attributes are added to it. */
struct launch_config {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config;
};

/* early: the launch may begin before the one in front of it has ended (sm_90); the kernel waits itself. */
static inline void begin_launch(launch_config &c, bool early, dim3 grid, unsigned threads, size_t shared_bytes, void *stream)
{
    c.config = {};
    c.config.gridDim = grid;
    c.config.blockDim = dim3(threads);
    c.config.dynamicSmemBytes = shared_bytes;
    c.config.stream = (cudaStream_t)stream;
    c.config.attrs = c.attributes;
    if (early) {
        c.attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        c.attributes[0].val.programmaticStreamSerializationAllowed = 1;
        c.config.numAttrs = 1;
    }
}

template <typename... Params, typename... Args>
static int launch_kernel(bool early, void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared_bytes,
                         void *stream, Args... args)
{
    launch_config c;
    begin_launch(c, early, grid, threads, shared_bytes, stream);
    return (int)cudaLaunchKernelEx(&c.config, kernel, args...);
}

/* A launch in clusters of `cluster` blocks, early and with as much shared memory as it asks for. */
template <typename... Params, typename... Args>
static int launch_clusters(unsigned cluster, void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared_bytes,
                           void *stream, Args... args)
{
    const int error = allow_shared(kernel, shared_bytes);
    if (error != 0) {
        return error;
    }
    launch_config c;
    begin_launch(c, true, grid, threads, shared_bytes, stream);
    cudaLaunchAttribute &attribute = c.attributes[c.config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    return (int)cudaLaunchKernelEx(&c.config, kernel, args...);
}

/* Dynamic shared memory and an early start. */
template <typename... Params, typename... Args>
static int launch_shared(bool early, void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared_bytes,
                         void *stream, Args... args)
{
    const int error = allow_shared(kernel, shared_bytes);
    return error != 0 ? error : launch_kernel(early, kernel, grid, threads, shared_bytes, stream, args...);
}

/* launch_shared of a kernel that reads `bytes` from `base` on once (0: nothing of the kind): these leave the second-level
 * cache before what the kernels of a step share, their code above all. */
template <typename... Params, typename... Args>
static int launch_streaming(bool early, const void *base, size_t bytes, void (*kernel)(Params...), dim3 grid,
                            unsigned threads, size_t shared_bytes, void *stream, Args... args)
{
    const int error = allow_shared(kernel, shared_bytes);
    if (error != 0) {
        return error;
    }
    launch_config c;
    begin_launch(c, early, grid, threads, shared_bytes, stream);
    if (bytes > 0) {
        cudaLaunchAttribute &attribute = c.attributes[c.config.numAttrs++];
        attribute.id = cudaLaunchAttributeAccessPolicyWindow;
        cudaAccessPolicyWindow &window = attribute.val.accessPolicyWindow;
        window = {};
        window.base_ptr = (void *)base;
        window.num_bytes = bytes;
        window.hitRatio = 1.0f;
        window.hitProp = cudaAccessPropertyStreaming;
        window.missProp = cudaAccessPropertyNormal;
    }
    return (int)cudaLaunchKernelEx(&c.config, kernel, args...);
}

#endif
