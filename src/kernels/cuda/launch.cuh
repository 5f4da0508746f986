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

/* early: the launch may begin before the one in front of it has ended (sm_90); the kernel waits itself. */
template <typename... Params, typename... Args>
static int launch_kernel(bool early, void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared_bytes,
                         void *stream, Args... args)
{
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    return (int)cudaLaunchKernelEx(&config, kernel, args...);
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
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return (int)cudaLaunchKernelEx(&config, kernel, args...);
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
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = attributes;
    if (early) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (bytes > 0) {
        cudaAccessPolicyWindow window = {};
        window.base_ptr = (void *)base;
        window.num_bytes = bytes;
        window.hitRatio = 1.0f;
        window.hitProp = cudaAccessPropertyStreaming;
        window.missProp = cudaAccessPropertyNormal;
        attributes[config.numAttrs].id = cudaLaunchAttributeAccessPolicyWindow;
        attributes[config.numAttrs++].val.accessPolicyWindow = window;
    }
    return (int)cudaLaunchKernelEx(&config, kernel, args...);
}

#endif
