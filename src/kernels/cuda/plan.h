/* plan.h - from a validated call to what is launched: sizes, grids, paths, workspace.  Plain C: no CUDA, no device.
 *
 * Whatever decides a bit of the result (a slot's path) depends on the slot alone; grids and tiles depend on the batch and
 * change no bit. */
#ifndef MF_KERNELS_CUDA_PLAN_H
#define MF_KERNELS_CUDA_PLAN_H

#include "kernels/cuda/packed_one.h"
#include "kernels/ops.h"

/* What a plan needs to know of the GPU. */
typedef struct mf_cuda_gpu {
    int32_t capability;     /* 80, 90: major * 10 + minor */
    int32_t num_multiprocessors;
    int64_t shared_bytes;   /* a block may have */
    int64_t window_bytes;   /* an access policy of the second-level cache may hold for */
} mf_cuda_gpu;

/* histogram_memset: zero the histogram first; it then takes the counts itself. */
mf_status mf_cuda_plan_gate(const mf_cuda_gpu *gpu, const mf_gate_call *call, mf_cuda_gate *out, mf_cuda_grid *grid,
                            bool *histogram_memset, mf_error *err);
/* The grid of the separate steps and their buffers over the caller's workspace. */
void mf_cuda_plan_gate_steps(const mf_cuda_gpu *gpu, const mf_gate_call *call, void *workspace, mf_cuda_gate *out,
                             mf_cuda_grid *grid);

mf_status mf_cuda_plan_align(const mf_cuda_gpu *gpu, const mf_align_call *call, mf_cuda_align *out, mf_error *err);

/* has_x: false in experts_combine, where x is never in memory. */
mf_status mf_cuda_plan_sum(const mf_cuda_gpu *gpu, const mf_sum_reduce_call *call, bool has_x, mf_cuda_sum *out, mf_error *err);

void mf_cuda_plan_layer_rows(const mf_layer_rows_call *call, mf_cuda_layer_rows *out);

/* ---- experts ---- */

static inline int64_t mf_cuda_round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

enum { MF_CUDA_FEW_PAIRS = 128 }; /* up to here a slot's weights are streamed once past all its tokens, without sorting */

/* Paths that a table's slots take, as sets of 1 << mf_cuda_path. */
typedef struct mf_cuda_paths {
    uint32_t w13, w2;
    const void *maps; /* of a table that grouped.cu computes: every slot's tensor maps; NULL: the other kernels */
    int32_t width;    /* with maps: of every slot; 0: they differ */
    mf_cuda_even even;
    int32_t codes;    /* with maps, not packed: mf_cuda_codes */
    int32_t packed;   /* with maps: grouped_packed.cuh's, mf_cuda_packed */
    int32_t quant;    /* with packed: mf_quant of every matrix */
    mf_cuda_alike alike; /* with packed */
} mf_cuda_paths;

/* Whether grouped.cu computes a table, and of what codes: a property of its slots, never of the batch. */
bool mf_cuda_is_grouped(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_cuda_slot *slots, int32_t *codes);

/* What grouped_packed.cuh makes bf16 of: rows that the copy engine takes; 4 bits: a scale for whole 32 columns. */
mf_cuda_packed mf_cuda_packed_matrix(const mf_cuda_matrix *m);
/* The same for grouped_packed.cuh: how, or MF_CUDA_PACKED_NONE. */
mf_cuda_packed mf_cuda_packed_of(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_cuda_slot *slots);

/* A matrix as kernels see it; its `reserved` says that codes or scales are not aligned to their own size. */
mf_cuda_matrix mf_cuda_plan_matrix(const mf_matrix *m, int32_t quant);
/* A slot as kernels see it, its paths chosen. */
void mf_cuda_plan_slot(const mf_cuda_gpu *gpu, const mf_experts *experts, const mf_slot *slot, mf_cuda_slot *out);

typedef struct mf_cuda_experts_plan {
    bool is_few;       /* no sorting */
    bool is_combined;  /* one launch does w2 and the combine */
    bool copies_x;     /* x is not aligned for the tensor cores: a copy is */
    bool sorts;
    void *x_copy, *y;  /* in the workspace; y [T, C, H] where experts_combine needs it */
    bool is_grouped;   /* `grouped` is launched, and nothing else but a copy of x */
    mf_cuda_experts call;
    mf_cuda_align align;
    mf_cuda_grouped grouped;
    mf_cuda_packed_one packed_one;
} mf_cuda_experts_plan;

mf_cuda_even mf_cuda_even_slots(const mf_cuda_slot *slots, int64_t num_slots);

/* Lays grouped.cu's buffers over base (NULL: counts bytes), and plans a call of it; plan->call is filled already. */
size_t mf_cuda_grouped_lay_out(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens, int64_t num_columns,
                               mf_dtype y_dtype, bool with_y, uint8_t *base, mf_cuda_experts_plan *plan);
mf_status mf_cuda_plan_grouped(const mf_cuda_gpu *gpu, const mf_experts_call *call, const mf_cuda_paths *paths,
                               mf_cuda_experts_plan *plan, mf_error *err);

/* Up to four tokens whose slots a warp can list, slots of one width: fills call->one if grouped_one.cu takes the call. */
void mf_cuda_plan_one(const mf_cuda_gpu *gpu, const mf_cuda_paths *paths, mf_cuda_grouped *call);
/* Whether grouped_one.cu can end with this combine. */
bool mf_cuda_one_combines(const mf_cuda_grouped *call, const mf_cuda_sum *sum);

/* How the slots of a packed table lie, and packed_one.cu's calls: fills plan->packed_one if it takes this one. */
void mf_cuda_alike_slots(const mf_cuda_slot *slots, int64_t num_slots, mf_cuda_alike *out);
void mf_cuda_plan_packed_one(const mf_cuda_gpu *gpu, const mf_cuda_paths *paths, mf_cuda_experts_plan *plan);

/* Whether packed_few4.cu can end with this combine, and should. */
bool mf_cuda_few4_combines(const mf_cuda_grouped *call, const mf_cuda_sum *sum);

size_t mf_cuda_experts_bytes(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens, int64_t num_columns);
/* The same and room for y where w2 and the combine are two launches. */
size_t mf_cuda_experts_combine_bytes(const mf_experts *experts, const mf_cuda_paths *paths, int64_t num_tokens,
                                     int64_t num_columns, mf_dtype y_dtype);
mf_status mf_cuda_plan_experts(const mf_cuda_gpu *gpu, const mf_experts_call *call, const mf_cuda_slot *slots,
                               const mf_cuda_paths *paths, bool combine, mf_dtype y_dtype, mf_cuda_experts_plan *out,
                               mf_error *err);

#endif
