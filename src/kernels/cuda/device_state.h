/* device_state.h - what cuda_device.c keeps of an open GPU, for the files that fill the rest of its table. */
#ifndef MF_KERNELS_CUDA_DEVICE_STATE_H
#define MF_KERNELS_CUDA_DEVICE_STATE_H

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/plan.h"

typedef struct CUstream_st *mf_cuda_stream; /* cudaStream_t */
typedef struct CUevent_st *mf_cuda_event;   /* cudaEvent_t */

typedef struct mf_cuda_marks mf_cuda_marks;

typedef struct mf_cuda_state {
    mf_cuda_gpu gpu;
    mf_cuda_stream own, stream;
    uint32_t *counts; /* [MF_CUDA_GATE_WORDS], the gate's between its launches: see calls.h */
    uint32_t *work;   /* [MF_CUDA_WORK_WORDS]: zero between calls of the grouped products */
    void *exchange;   /* between blocks of attention of one row: see mf_cuda_row */
    void *rounded;    /* inputs of products in bf16; grows */
    size_t rounded_bytes;
    void *widened; /* integer codes' matrices in bf16 on their way into a product: see cuda_codes.c; or NULL so far */
    mf_cuda_stream beside;   /* the second stream, with work of its own */
    mf_cuda_stream in_front; /* the first one while calls go to the second; else NULL */
    uint32_t *work_beside;
    mf_cuda_event fork, join;
    bool must_join;       /* join is recorded and nobody has waited for it */
    mf_cuda_marks *marks; /* NULL: nobody asks where time goes */
    mf_add_norm_call offered; /* of the next combine; weight NULL: none */
    bool norm_is_rounded; /* nobody reads it in f32 */
    bool norm_is_taken;
    mf_cuda_linear router; /* the last product, launched with the gate of its results if that comes next; see mf_cuda_enter */
    bool router_waits;
    mf_error failure; /* status MF_OK: none so far */
} mf_cuda_state;

static inline mf_cuda_state *mf_cuda_state_of(const mf_device *device)
{
    return device->backend;
}

/* The runtime's code of a call: an error becomes the device's failure, which later operations return. */
mf_status mf_cuda_check(mf_device *device, int code, const char *what, mf_error *err);
/* Makes the device current, launches a product that has waited for its gate; refuses after a failure. */
mf_status mf_cuda_enter(mf_device *device, mf_error *err);

/* cuda_dense.c: the dense operations; room of at least `bytes` in `rounded`, which must not be in a graph already. */
void mf_cuda_add_dense_ops(mf_device_ops *ops);
void mf_cuda_dense_close(mf_device *device);
mf_status mf_cuda_reserve(mf_device *device, size_t bytes, mf_error *err);

/* cuda_memory.c: what serves whole models of the memory operations. */
void mf_cuda_add_memory_ops(mf_device_memory_ops *ops);

/* cuda_marks.c: a part (kernels/part.h) begins in the stream; nothing where nobody asks. */
void mf_cuda_mark(mf_device *device, int part);
void mf_cuda_add_mark_ops(mf_device_memory_ops *ops);

#endif
