/* backend.h - what libmoefuse_cuda.so offers to the library that opens it: one function.
 *
 * Both sides are built from one tree and share mf_device and mf_device_ops; version and sizes say so before anything is
 * called. */
#ifndef MF_KERNELS_CUDA_BACKEND_H
#define MF_KERNELS_CUDA_BACKEND_H

#include "kernels/ops.h"

typedef struct mf_cuda_backend {
    const char *version; /* MF_VERSION_STRING */
    size_t device_bytes, ops_bytes;
    mf_status (*init)(mf_device *device, mf_error *err); /* GPU device->ordinal; fills ops, description, backend */
} mf_cuda_backend;

#define MF_CUDA_BACKEND_SYMBOL "mf_cuda_backend_get"
MF_API const mf_cuda_backend *mf_cuda_backend_get(void);

#endif
