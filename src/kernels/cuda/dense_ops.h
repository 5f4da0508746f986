/* dense_ops.h - what the files of device cuda's dense operations share: the stream, failures that a later call tells,
 * matrices as kernels see them. */
#ifndef MF_KERNELS_CUDA_DENSE_OPS_H
#define MF_KERNELS_CUDA_DENSE_OPS_H

#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/device_state.h"
#include "kernels/cuda/plan.h"
#include "kernels/format.h"

void mf_cuda_add_element_ops(mf_device_ops *ops); /* cuda_elements.c */
/* Whether one row's attention is one launch, and that call (cuda_row.c): sizes and the GPU decide, and the context, of
 * which a block's room holds so many pieces. */
bool mf_cuda_plan_row(const mf_device *device, const mf_cuda_attention *a, const mf_cuda_gqa_prepare *r, mf_cuda_row *p);

/* ---- products (cuda_linear.c) ---- */

void mf_cuda_add_linear_ops(mf_device_ops *ops);

/* Codes: MF_CUDA_LINEAR_CODES + their kind (mf_cuda_packed). */
typedef enum mf_cuda_linear_path {
    MF_CUDA_LINEAR_PLAIN,
    MF_CUDA_LINEAR_MMA,
    MF_CUDA_LINEAR_FP8,
    MF_CUDA_LINEAR_CODES
} mf_cuda_linear_path;

/* Whether a bf16 matrix goes through the tensor cores: it alone decides. */
bool mf_cuda_takes_mma(const mf_matrix *m, mf_dtype act_dtype);
/* Whether a matrix's products round inputs of bf16 before all else. */
bool mf_cuda_takes_bf16_inputs(const mf_device *device, const mf_matrix *m);
int32_t mf_cuda_linear_runs(int64_t k);
/* One product, or several of one input, of bf16 matrices.  rounded: x in bf16 already, without gaps. */
void mf_cuda_launch_mma(mf_device *device, mf_cuda_linear *p, const void *rounded);
/* The norm of many rows where nobody reads it in f32: rounded, and what that leaves in `rests` where wanted. */
void mf_cuda_norm_rounded(mf_device *device, const mf_add_norm_call *call, uint16_t *rests);
/* Whether all products of a call, which p has already, can be one launch of wgmma: bf16, or codes of one kind that have
 * room as such.  make_bf16 then puts bf16 in place of codes; false: told by a later call. */
bool mf_cuda_takes_wgmma_together(const mf_device *device, const mf_linear_call *call, const mf_cuda_linear *p,
                                  mf_cuda_linear_path *path);
bool mf_cuda_make_bf16(mf_device *device, mf_cuda_linear *p, mf_cuda_linear_path path);

/* ---- integer codes (cuda_codes.c) ---- */

/* How a matrix of integer codes goes through the tensor cores, or MF_CUDA_PACKED_NONE: the matrix alone decides. */
mf_cuda_packed mf_cuda_codes_of(const mf_device *device, const mf_matrix *m, mf_dtype act_dtype);
/* Whether few tokens' products go through linear_codes_ring.cu, and how: x, which must lie on 16 bytes, is not looked at. */
bool mf_cuda_plan_codes_ring(const mf_device *device, mf_cuda_linear *p, mf_cuda_packed kind);
/* Whether all blocks of linear_codes.cu's FEW run at once; else linear_codes_wgmma.cu is as quick. */
bool mf_cuda_codes_are_a_wave(const mf_device *device, const mf_cuda_linear *p);
/* The product with bf16 in place of p's matrices, which are widened on the way: all at once where that has room.
 * false: told by a later call. */
bool mf_cuda_can_widen(const mf_cuda_linear *p);
bool mf_cuda_widen(mf_device *device, mf_cuda_linear *p, mf_cuda_packed kind);

/* The memory for that, where matrices of such formats (bit f: mf_format f) may need it; adds its bytes to *bytes. */
mf_status mf_cuda_reserve_widened(mf_device *device, uint32_t formats, int64_t *bytes, mf_error *err);

/* A product in pieces that have room, one after the other: from { 0 } until false. */
typedef struct mf_cuda_codes_piece {
    mf_cuda_linear p;
    int which;
    int64_t row;
} mf_cuda_codes_piece;
bool mf_cuda_next_piece(const mf_cuda_linear *whole, mf_cuda_codes_piece *at);

/* ---- what all of them use ---- */

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline mf_cuda_stream stream_of(mf_device *device)
{
    return mf_cuda_state_of(device)->stream;
}

/* false: the device has failed. */
static inline bool begin(mf_device *device)
{
    mf_error ignored;
    return mf_cuda_enter(device, &ignored) == MF_OK;
}

static inline void done(mf_device *device, int code, const char *what)
{
    mf_error ignored;
    (void)mf_cuda_check(device, code, what, &ignored);
}

static inline bool on16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* quant says here whether eight codes of a row can be read at once, from any multiple of eight. */
static inline mf_cuda_matrix seen_matrix(const mf_matrix *m)
{
    const int64_t bits = mf_format_bits(m->format), wide = bits < 16 ? bits : 16; /* eight codes have `bits` bytes */
    return mf_cuda_plan_matrix(m, (uintptr_t)m->data % (size_t)wide == 0 && m->row_stride * bits / 8 % wide == 0);
}

#endif
