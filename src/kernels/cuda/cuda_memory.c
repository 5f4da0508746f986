/* cuda_memory.c - what whole models need of device cuda's memory beside alloc and copy: page-locked memory, copies and
 * fills in the stream's order, graphs.  cuda_device.c's table points here. */
#include <cuda_runtime_api.h>

#include "kernels/cuda/dense_ops.h"

/* ---- memory ---- */

static mf_status memory_info(mf_device *device, int64_t *free_bytes, int64_t *total_bytes, mf_error *err)
{
    size_t available = 0, total = 0;
    MF_TRY(mf_cuda_enter(device, err));
    MF_TRY(mf_cuda_check(device, cudaMemGetInfo(&available, &total), "cudaMemGetInfo", err));
    *free_bytes = (int64_t)available;
    *total_bytes = (int64_t)total;
    return MF_OK;
}

static mf_status alloc_host(mf_device *device, size_t bytes, void **out, mf_error *err)
{
    *out = NULL;
    MF_TRY(mf_cuda_enter(device, err));
    cudaError_t error = cudaHostAlloc(out, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        *out = NULL;
        return mf_fail(err, MF_ERR_NOMEM, "device %s: no page-locked memory for %zu bytes", device->name, bytes);
    }
    return mf_cuda_check(device, error, "cudaHostAlloc", err);
}

static void release_host(mf_device *device, void *block)
{
    mf_error ignored;
    if (block && mf_cuda_enter(device, &ignored) == MF_OK) {
        (void)mf_cuda_check(device, cudaFreeHost(block), "cudaFreeHost", &ignored);
    }
}

static mf_status copy_async(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    return bytes == 0 ? MF_OK
                      : mf_cuda_check(device, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(device)),
                                      "cudaMemcpyAsync", err);
}

static mf_status carry(mf_device *device, void *to, const void *from, size_t bytes, void *zeros, size_t zero_bytes,
                       mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    return mf_cuda_check(device,
                         mf_cuda_launch_carry(to, from, (int64_t)bytes, zeros, (int64_t)zero_bytes, stream_of(device)),
                         "carrying", err);
}

static mf_status zero(mf_device *device, void *block, size_t bytes, mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    return bytes == 0
               ? MF_OK
               : mf_cuda_check(device, cudaMemsetAsync(block, 0, bytes, stream_of(device)), "cudaMemsetAsync", err);
}

/* The codes lie behind one another in the rounded inputs' memory: a wait between two fills of other codes keeps them
 * apart. */
static mf_status fill(mf_device *device, const mf_fill_call *call, mf_error *err)
{
    enum { BYTES = MF_CUDA_FILL_CODES * 4 };
    MF_TRY(mf_cuda_enter(device, err));
    MF_TRY(mf_cuda_reserve(device, BYTES, err));
    uint32_t *codes = call->is_bytes ? NULL : mf_cuda_state_of(device)->rounded;
    if (codes) { /* from pageable memory: taken before the call returns, written in the stream's order */
        MF_TRY(mf_cuda_check(device,
                             cudaMemcpyAsync(codes, call->codes, BYTES, cudaMemcpyHostToDevice, stream_of(device)),
                             "cudaMemcpyAsync", err));
    }
    return mf_cuda_check(
        device,
        mf_cuda_launch_fill(call->data, call->count, call->chunk, call->seed, call->size, codes, stream_of(device)),
        "fill", err);
}

/* ---- graphs ---- */

static mf_status graph_begin(mf_device *device, mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    return mf_cuda_check(device, cudaStreamBeginCapture(stream_of(device), cudaStreamCaptureModeThreadLocal),
                         "cudaStreamBeginCapture", err);
}

static mf_status graph_end(mf_device *device, void **out, int64_t *num_launches, mf_error *err)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    size_t nodes = 0;
    *out = NULL;
    (void)mf_cuda_enter(device, err); /* launches what waits; the capture ends all the same */
    cudaError_t error = cudaStreamEndCapture(stream_of(device), &graph);
    if (error == cudaSuccess) {
        error = cudaGraphGetNodes(graph, NULL, &nodes);
    }
    if (error == cudaSuccess) {
        error = cudaGraphInstantiate(&exec, graph, 0);
    }
    if (graph) {
        (void)cudaGraphDestroy(graph);
    }
    *num_launches = (int64_t)nodes;
    *out = exec;
    return mf_cuda_check(device, error, "capturing a step", err);
}

static mf_status graph_run(mf_device *device, void *graph, mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    return mf_cuda_check(device, cudaGraphLaunch(graph, stream_of(device)), "cudaGraphLaunch", err);
}

static void graph_close(mf_device *device, void *graph)
{
    mf_error ignored;
    if (graph && mf_cuda_enter(device, &ignored) == MF_OK) {
        (void)mf_cuda_check(device, cudaGraphExecDestroy(graph), "cudaGraphExecDestroy", &ignored);
    }
}

/* ---- the table ---- */

void mf_cuda_add_memory_ops(mf_device_memory_ops *ops)
{
    ops->info = memory_info;
    ops->alloc_host = alloc_host;
    ops->release_host = release_host;
    ops->copy_async = copy_async;
    ops->zero = zero;
    ops->carry = carry;
    ops->fill = fill;
    ops->graph_begin = graph_begin;
    ops->graph_end = graph_end;
    ops->graph_run = graph_run;
    ops->graph_close = graph_close;
}
