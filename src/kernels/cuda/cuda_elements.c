/* cuda_elements.c - the host's side of dense operations on rows and elements: embed, norm, rope, cache writes, and the
 * like. */
#include "kernels/cuda/dense_ops.h"

static void embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride)
{
    if (num_tokens > 0 && begin(device)) {
        const mf_cuda_matrix m = seen_matrix(table);
        done(device, mf_cuda_launch_embed(&m, ids, num_tokens, out, out_stride, stream_of(device)), "embed");
    }
}

static void rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride)
{
    if (num_tokens > 0 && begin(device)) {
        const mf_cuda_norm p = { .x = x,
                                 .x_stride = x_stride,
                                 .num_tokens = num_tokens,
                                 .n = n,
                                 .weight = weight,
                                 .out = out,
                                 .out_stride = out_stride,
                                 .eps = eps };
        done(device, mf_cuda_launch_norm(&p, stream_of(device)), "norm");
    }
}

static void rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride,
                 int64_t dim, bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens)
{
    if (num_tokens > 0 && begin(device)) {
        done(device,
             mf_cuda_launch_rope(x, row_stride, num_vectors, vector_stride, dim, pair, cos_sin, position, num_tokens,
                                 stream_of(device)),
             "rope");
    }
}

static void kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride,
                     int64_t num_tokens)
{
    if (num_tokens > 0 && begin(device)) {
        const mf_cuda_kv_write p = { .cache = kv->cache,
                                     .block_table = kv->block_table,
                                     .sequence = kv->sequence,
                                     .position = kv->position,
                                     .row_size = kv->row_size,
                                     .block_size = kv->block_size,
                                     .max_blocks = kv->max_blocks,
                                     .rows_stride = rows_stride,
                                     .num_tokens = num_tokens,
                                     .rows = rows,
                                     .is_bf16 = kv->dtype == MF_BF16 };
        done(device, mf_cuda_launch_kv_write(&p, stream_of(device)), "cache write");
    }
}

static void sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n)
{
    if (num_rows * n > 0 && begin(device)) {
        done(device, mf_cuda_launch_sigmoid_gate(x, x_stride, gate, gate_stride, num_rows, n, stream_of(device)),
             "sigmoid gate");
    }
}

static void convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out)
{
    if (n > 0 && begin(device)) {
        done(device, mf_cuda_launch_convert(x, n, 1, n, (int)dtype, out, stream_of(device)), "convert");
    }
}

static void clip(mf_device *device, float *x, int64_t n, float limit)
{
    if (n > 0 && begin(device)) {
        done(device, mf_cuda_launch_clip(x, n, limit, stream_of(device)), "clip");
    }
}

static void scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens)
{
    if (num_tokens * n > 0 && begin(device)) {
        done(device, mf_cuda_launch_scale_rows(x, n, factors, position, num_tokens, stream_of(device)), "scale rows");
    }
}

static void add(mf_device *device, float *acc, const float *x, int64_t n)
{
    if (n > 0 && begin(device)) {
        done(device, mf_cuda_launch_add(acc, x, n, stream_of(device)), "add");
    }
}

static void glu(mf_device *device, float *gate, const float *up, int64_t n)
{
    if (n > 0 && begin(device)) {
        done(device, mf_cuda_launch_glu(gate, up, n, stream_of(device)), "activation");
    }
}

static void best(mf_device *device, const float *logits, int64_t num_rows, int64_t n, int64_t num_ids, uint64_t *keys)
{
    if (num_rows > 0 && begin(device)) {
        done(device, mf_cuda_launch_best(logits, num_rows, n, num_ids, keys, stream_of(device)), "largest logits");
    }
}

static size_t pick_bytes(const mf_device *device, int64_t num_rows, int64_t n)
{
    (void)device;
    return (size_t)mf_cuda_pick_bytes(num_rows, n);
}

static void pick(mf_device *device, const mf_pick_call *call)
{
    if (call->num_rows > 0 && begin(device)) {
        const mf_cuda_pick p = { .logits = call->logits,
                                 .num_rows = call->num_rows,
                                 .n = (int32_t)call->n,
                                 .num_ids = (int32_t)call->num_ids,
                                 .picks = call->picks,
                                 .changes = call->changes,
                                 .picked = call->picked,
                                 .workspace = call->workspace };
        done(device, mf_cuda_launch_pick(&p, mf_cuda_state_of(device)->gpu.shared_bytes, stream_of(device)), "tokens");
    }
}

void mf_cuda_add_element_ops(mf_device_ops *ops)
{
    ops->embed = embed;
    ops->rms_norm = rms_norm;
    ops->rope = rope;
    ops->kv_write = kv_write;
    ops->sigmoid_gate = sigmoid_gate;
    ops->convert = convert;
    ops->clip = clip;
    ops->scale_rows = scale_rows;
    ops->add = add;
    ops->glu = glu;
    ops->best = best;
    ops->pick_bytes = pick_bytes;
    ops->pick = pick;
}
