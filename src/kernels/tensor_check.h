/* tensor_check.h - the one place where a caller's tensor views are checked: presence, dtype, rank, shape, stride, extent.
 *
 * Messages name the argument, what was found and what was expected.  After a check passes, every element's offset fits
 * in int64_t, the last axis has unit stride (or at most one element) and rows do not overlap. */
#ifndef MF_KERNELS_TENSOR_CHECK_H
#define MF_KERNELS_TENSOR_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define MF_DT(dtype) (1u << (dtype)) /* a set of one dtype; sets are joined with | */
#define MF_DT_FLOAT3 (MF_DT(MF_F32) | MF_DT(MF_BF16) | MF_DT(MF_F16))
#define MF_DT_FLOAT4 (MF_DT_FLOAT3 | MF_DT(MF_F64))

enum { MF_ANY = -1 }; /* a shape entry that may be anything >= 0 */

/* A view is absent when it has neither data nor a rank.  data may be NULL in a view without elements ([0, 8]). */
bool mf_tensor_present(const mf_tensor *t);
bool mf_tensor_empty(const mf_tensor *t); /* some axis is 0 */

/* The tensor is required and must have one of `dtypes` and the given rank and shape. */
mf_status mf_check_tensor(const mf_tensor *t, const char *name, uint32_t dtypes, int32_t ndim, const int64_t *shape,
                          mf_error *err);
mf_status mf_check_1d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, mf_error *err);
mf_status mf_check_2d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, int64_t n1, mf_error *err);
mf_status mf_check_3d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, int64_t n1, int64_t n2,
                      mf_error *err);

/* The same, but an absent tensor is fine. */
mf_status mf_check_optional_1d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, mf_error *err);
mf_status mf_check_optional_2d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, int64_t n1, mf_error *err);

/* data is a multiple of the element's size.  For ops that read through typed pointers. */
mf_status mf_check_aligned(const mf_tensor *t, const char *name, mf_error *err);

/* The views share no byte.  Only dense views are compared: strided ones may interleave without overlapping. */
mf_status mf_check_disjoint(const mf_tensor *a, const char *a_name, const mf_tensor *b, const char *b_name, mf_error *err);

/* The optional pair that says which of num_tokens rows take part: num_valid_tokens i32 [1], whose value is clamped to
 * [0, num_tokens] into *num_valid, and row_valid u8 [num_tokens].  Where the host cannot read the device's memory
 * *num_valid is num_tokens and the device clamps. */
mf_status mf_check_rows(const mf_tensor *num_valid_tokens, const mf_tensor *row_valid, int64_t num_tokens, bool is_readable,
                        int64_t *num_valid, mf_error *err);

/* The workspace is there, 64-byte aligned and large enough. */
mf_status mf_check_workspace(const void *workspace, size_t bytes, size_t needed, mf_error *err);

#endif
