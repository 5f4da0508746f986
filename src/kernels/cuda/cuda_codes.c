/* cuda_codes.c - the host's side of linear_codes.cu: which matrices of integer codes go through the tensor cores, and
 * the memory where they are bf16 on their way into products of many tokens.
 *
 * That memory has one size for good, because graphs keep its address; it comes with a model, or the first product that
 * needs it. */
#include <cuda_runtime_api.h>

#include "kernels/cuda/dense_ops.h"

enum {
    WIDENED_BYTES = 256 << 20,
    LEAST_ROWS = 384, /* of a piece: whole tiles of 128 and of 192 */
    ALIGNMENT = 256
};

mf_cuda_packed mf_cuda_codes_of(const mf_device *device, const mf_matrix *m, mf_dtype act_dtype)
{
    if (act_dtype != MF_BF16 || mf_cuda_state_of(device)->gpu.capability != 90 || m->k % 64 != 0 ||
        (m->format != MF_FORMAT_INT4_GROUP && m->format != MF_FORMAT_INT8_CHANNEL)) {
        return MF_CUDA_PACKED_NONE;
    }
    const mf_cuda_matrix seen = mf_cuda_plan_matrix(m, 0);
    return m->k * 2 * LEAST_ROWS <= WIDENED_BYTES - ALIGNMENT * LEAST_ROWS ? mf_cuda_packed_matrix(&seen)
                                                                           : MF_CUDA_PACKED_NONE;
}

/* Bytes of `rows` rows and their scales. */
static int64_t widened_bytes(int64_t rows, int64_t k)
{
    return rows * k * 2 + (rows * 4 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

bool mf_cuda_plan_codes_ring(const mf_device *device, mf_cuda_linear *p, mf_cuda_packed kind)
{
    enum { ROWS = 16, LEAST_GROUP = 64, RESERVED = 1024 /* of a block */, DEEP = 4, SHALLOW = 2 };
    const mf_cuda_gpu *gpu = &mf_cuda_state_of(device)->gpu;
    const bool is_8bit = kind == MF_CUDA_PACKED_INT8;
    const int64_t columns = is_8bit ? 128 : 256, of_run = (p->w[0].k / 64 + p->runs - 1) / p->runs * 64,
                  units = (of_run + columns - 1) / columns;
    int64_t tiles = 0;
    for (int i = 0; i < p->num; i++) {
        const mf_cuda_matrix *m = &p->w[i];
        if (!is_8bit && m->group_size < LEAST_GROUP) {
            return false;
        }
        tiles += (m->n + ROWS - 1) / ROWS;
    }
    if (p->num_tokens > MF_CUDA_LINEAR_RING || tiles > INT32_MAX) {
        return false;
    }
    for (int64_t together = p->runs == 8 ? 4 : 2; together >= 1; together--) {
        if (together > 1 && tiles <= (together - 1) * gpu->num_multiprocessors) {
            continue;
        }
        p->most_blocks = (int32_t)(together * gpu->num_multiprocessors);
        const int64_t of_block = (tiles + p->most_blocks - 1) / p->most_blocks * units;
        for (p->is_deep = of_block > SHALLOW; p->is_deep >= 0; p->is_deep--) {
            p->ring_units = (int32_t)min_i64(of_block, p->is_deep ? DEEP : SHALLOW);
            if (mf_cuda_codes_ring_shared(p, kind) + RESERVED <= (gpu->shared_bytes + RESERVED) / together) {
                return true;
            }
        }
    }
    return false;
}

bool mf_cuda_codes_are_a_wave(const mf_device *device, const mf_cuda_linear *p)
{
    enum { ROWS = 16, TOGETHER = 3 }; /* of 8 runs; of 16 half as many */
    int64_t blocks = 0;
    for (int i = 0; i < p->num; i++) {
        blocks += (p->w[i].n + ROWS - 1) / ROWS;
    }
    return blocks <= TOGETHER * mf_cuda_state_of(device)->gpu.num_multiprocessors / (p->runs / 8);
}

bool mf_cuda_can_widen(const mf_cuda_linear *p)
{
    int64_t bytes = 0;
    for (int i = 0; i < p->num; i++) {
        bytes += widened_bytes(p->w[i].n, p->w[i].k);
    }
    return bytes <= WIDENED_BYTES;
}

bool mf_cuda_next_piece(const mf_cuda_linear *whole, mf_cuda_codes_piece *at)
{
    if (at->which >= whole->num) {
        return false;
    }
    at->p = *whole;
    if (mf_cuda_can_widen(whole)) {
        at->which = whole->num;
        return true;
    }
    const int i = at->which;
    const int64_t k = whole->w[i].k, row = at->row, left = whole->w[i].n - row,
                  fits = (WIDENED_BYTES - ALIGNMENT) / (k * 2 + 4) / LEAST_ROWS * LEAST_ROWS,
                  rows = min_i64(fits, left);
    mf_cuda_linear *p = &at->p;
    p->num = 1;
    p->w[0] = whole->w[i];
    p->w[0].n = rows;
    p->w[0].data += row * whole->w[i].row_stride * (whole->w[i].format == MF_FORMAT_INT8_CHANNEL ? 8 : 4) / 8;
    const int64_t scales = row * whole->w[i].scale_row_stride;
    p->w[0].scale += scales * (whole->w[i].scale_dtype == MF_F32 ? 4 : 2);
    p->w[0].zero = whole->w[i].zero ? whole->w[i].zero + scales : NULL;
    p->bias[0] = whole->bias[i] ? whole->bias[i] + row : NULL;
    p->out[0] = whole->out[i] + row;
    p->out_stride[0] = whole->out_stride[i];
    at->row = rows < left ? row + rows : 0;
    at->which += rows == left;
    return true;
}

static mf_status take_memory(mf_device *device, mf_error *err)
{
    mf_cuda_state *state = mf_cuda_state_of(device);
    if (state->widened) {
        return MF_OK;
    }
    const cudaError_t error = cudaMalloc(&state->widened, WIDENED_BYTES);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return mf_fail(err, MF_ERR_NOMEM, "device %s: no memory for %d bytes of weights in bf16", device->name,
                       (int)WIDENED_BYTES);
    }
    return mf_cuda_check(device, error, "cudaMalloc", err);
}

mf_status mf_cuda_reserve_widened(mf_device *device, uint32_t formats, int64_t *bytes, mf_error *err)
{
    const uint32_t codes = 1u << MF_FORMAT_INT4_GROUP | 1u << MF_FORMAT_INT8_CHANNEL;
    if (!(formats & codes) || mf_cuda_state_of(device)->gpu.capability != 90) {
        return MF_OK;
    }
    *bytes += WIDENED_BYTES;
    return take_memory(device, err);
}

bool mf_cuda_widen(mf_device *device, mf_cuda_linear *p, mf_cuda_packed kind)
{
    mf_cuda_state *state = mf_cuda_state_of(device);
    mf_error err;
    if (take_memory(device, &err) != MF_OK) {
        state->failure = state->failure.status == MF_OK ? err : state->failure;
        return false;
    }
    mf_cuda_widen_call call = { .num = p->num };
    uint8_t *at = state->widened;
    for (int i = 0; i < p->num; i++) {
        const mf_cuda_matrix w = p->w[i];
        call.w[i] = w;
        call.out[i] = (uint16_t *)at;
        call.scale[i] = (float *)(at + w.n * w.k * 2);
        p->w[i] = (mf_cuda_matrix){ .data = at, .row_stride = w.k, .n = w.n, .k = w.k, .format = MF_FORMAT_BF16 };
        p->row_scale[i] = kind == MF_CUDA_PACKED_INT8 ? call.scale[i] : NULL;
        at += widened_bytes(w.n, w.k);
    }
    p->w_is_made = 1;
    done(device, mf_cuda_launch_widen(&call, kind, stream_of(device)), "weights in bf16");
    return true;
}
