/* profile.c - see profile.h. */
#include "kernels/profile.h"

#include "base/sys.h"

typedef struct profile {
    mf_device_ops ops; /* the first member: device->ops leads here */
    mf_device_memory_ops memory;
    const mf_device_ops *inner;
    mf_part part; /* the one that runs */
    int64_t since_ns;
    double seconds[MF_NUM_PARTS];
} profile;

static profile *profile_of(const mf_device *device)
{
    return (profile *)(uintptr_t)device->ops;
}

/* The inner table, once the part is noted. */
static const mf_device_ops *enter(mf_device *device, mf_part part)
{
    profile *p = profile_of(device);
    if (p->inner->memory) {
        p->inner->memory->mark(device, (int)part);
    } else if (part != p->part) {
        const int64_t now = mf_now_ns();
        p->seconds[p->part] += (double)(now - p->since_ns) * 1e-9;
        p->since_ns = now;
        p->part = part;
    }
    return p->inner;
}

static mf_status gate(mf_device *device, const mf_gate_call *call, mf_error *err)
{
    return enter(device, MF_PART_GATE)->gate(device, call, err);
}

static mf_status gate_unfused(mf_device *device, const mf_gate_call *call, void *workspace, mf_error *err)
{
    return enter(device, MF_PART_GATE)->gate_unfused(device, call, workspace, err);
}

static mf_status layer_rows(mf_device *device, const mf_layer_rows_call *call, mf_error *err)
{
    return enter(device, MF_PART_GATE)->layer_rows(device, call, err);
}

static mf_status align(mf_device *device, const mf_align_call *call, mf_error *err)
{
    return enter(device, MF_PART_EXPERTS)->align(device, call, err);
}

static mf_status experts(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    return enter(device, MF_PART_EXPERTS)->experts(device, call, err);
}

static mf_status sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err)
{
    return enter(device, MF_PART_COMBINE)->sum_reduce(device, call, err);
}

static mf_status experts_combine(mf_device *device, const mf_experts_call *call, const mf_sum_reduce_call *sum,
                                 mf_error *err)
{
    return enter(device, MF_PART_EXPERTS)->experts_combine(device, call, sum, err);
}

static void embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride)
{
    enter(device, MF_PART_REST)->embed(device, table, ids, num_tokens, out, out_stride);
}

static void rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride)
{
    enter(device, MF_PART_REST)->rms_norm(device, x, x_stride, num_tokens, n, weight, eps, out, out_stride);
}

static void linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride)
{
    enter(device, MF_PART_DENSE)->linear(device, w, bias, act_dtype, x, x_stride, num_tokens, out, out_stride);
}

static void rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride,
                 int64_t dim, bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens)
{
    enter(device, MF_PART_ATTENTION)->rope(device, x, row_stride, num_vectors, vector_stride, dim, pair, cos_sin,
                                           position, num_tokens);
}

static void kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride,
                     int64_t num_tokens)
{
    enter(device, MF_PART_ATTENTION)->kv_write(device, kv, rows, rows_stride, num_tokens);
}

static void mla_attention(mf_device *device, const mf_mla_args *args)
{
    enter(device, MF_PART_ATTENTION)->mla_attention(device, args);
}

static void gqa_attention(mf_device *device, const mf_gqa_args *args)
{
    enter(device, MF_PART_ATTENTION)->gqa_attention(device, args);
}

static void delta_net(mf_device *device, const mf_delta_net_args *args)
{
    enter(device, MF_PART_ATTENTION)->delta_net(device, args);
}

static void sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n)
{
    enter(device, MF_PART_REST)->sigmoid_gate(device, x, x_stride, gate, gate_stride, num_rows, n);
}

static void convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out)
{
    enter(device, MF_PART_REST)->convert(device, x, n, dtype, out);
}

static void clip(mf_device *device, float *x, int64_t n, float limit)
{
    enter(device, MF_PART_REST)->clip(device, x, n, limit);
}

static void scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens)
{
    enter(device, MF_PART_REST)->scale_rows(device, x, n, factors, position, num_tokens);
}

static void add(mf_device *device, float *acc, const float *x, int64_t n)
{
    enter(device, MF_PART_REST)->add(device, acc, x, n);
}

static void linear_many(mf_device *device, const mf_linear_call *call)
{
    enter(device, MF_PART_DENSE)->linear_many(device, call);
}

static void add_norm(mf_device *device, const mf_add_norm_call *call)
{
    enter(device, MF_PART_REST)->add_norm(device, call);
}

static bool linear_add(mf_device *device, const mf_linear_call *call)
{
    return enter(device, MF_PART_DENSE)->linear_add(device, call);
}

static bool norm_linear(mf_device *device, const mf_add_norm_call *norm, float *acc_out, const mf_linear_call *call)
{
    return enter(device, MF_PART_DENSE)->norm_linear(device, norm, acc_out, call);
}

static void gqa_prepare(mf_device *device, const mf_gqa_prepare_call *call)
{
    enter(device, MF_PART_ATTENTION)->gqa_prepare(device, call);
}

static bool gqa_project(mf_device *device, const mf_add_norm_call *norm, const mf_linear_call *call,
                        const mf_gqa_prepare_call *prepare, const mf_gqa_args *args)
{
    return enter(device, MF_PART_DENSE)->gqa_project(device, norm, call, prepare, args);
}

static bool gqa_at_once(mf_device *device, const mf_gqa_prepare_call *prepare, const mf_gqa_args *args, const mf_matrix *reader,
                        mf_dtype act_dtype, bool *is_rounded)
{
    return enter(device, MF_PART_ATTENTION)->gqa_at_once(device, prepare, args, reader, act_dtype, is_rounded);
}

static bool mla_at_once(mf_device *device, const mf_mla_prepare_call *prepare, const mf_mla_args *args, const mf_matrix *reader,
                        mf_dtype act_dtype, bool *is_rounded)
{
    return enter(device, MF_PART_ATTENTION)->mla_at_once(device, prepare, args, reader, act_dtype, is_rounded);
}

static void mla_prepare(mf_device *device, const mf_mla_prepare_call *call)
{
    enter(device, MF_PART_ATTENTION)->mla_prepare(device, call);
}

static void glu(mf_device *device, float *gate, const float *up, int64_t n)
{
    enter(device, MF_PART_DENSE)->glu(device, gate, up, n);
}

static void best(mf_device *device, const float *logits, int64_t num_rows, int64_t n, int64_t num_ids, uint64_t *keys)
{
    enter(device, MF_PART_REST)->best(device, logits, num_rows, n, num_ids, keys);
}

static void pick(mf_device *device, const mf_pick_call *call)
{
    enter(device, MF_PART_REST)->pick(device, call);
}

static mf_status copy_async(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err)
{
    return enter(device, MF_PART_REST)->memory->copy_async(device, to, from, bytes, err);
}

static void step_ends(mf_device *device)
{
    (void)enter(device, MF_PART_REST);
}

/* What is NULL in the inner table stays so: the walk asks. */
#define WRAP(p, name)                            \
    if ((p)->inner->name) {                      \
        (p)->ops.name = name;                    \
    }

static void wrap(profile *p)
{
    WRAP(p, gate)
    WRAP(p, gate_unfused)
    WRAP(p, layer_rows)
    WRAP(p, align)
    WRAP(p, experts)
    WRAP(p, sum_reduce)
    WRAP(p, experts_combine)
    WRAP(p, embed)
    WRAP(p, rms_norm)
    WRAP(p, linear)
    WRAP(p, rope)
    WRAP(p, kv_write)
    WRAP(p, mla_attention)
    WRAP(p, gqa_attention)
    WRAP(p, delta_net)
    WRAP(p, sigmoid_gate)
    WRAP(p, convert)
    WRAP(p, clip)
    WRAP(p, scale_rows)
    WRAP(p, add)
    WRAP(p, linear_many)
    WRAP(p, linear_add)
    WRAP(p, add_norm)
    WRAP(p, norm_linear)
    WRAP(p, gqa_prepare)
    WRAP(p, gqa_project)
    WRAP(p, gqa_at_once)
    WRAP(p, mla_prepare)
    WRAP(p, mla_at_once)
    WRAP(p, glu)
    WRAP(p, best)
    WRAP(p, pick)
}

mf_status mf_profile_open(mf_device *device, mf_error *err)
{
    profile *p = mf_alloc_zero(sizeof *p);
    if (!p) {
        return mf_fail(err, MF_ERR_NOMEM, "profile: out of memory");
    }
    p->inner = device->ops;
    p->ops = *device->ops;
    p->part = MF_PART_REST;
    p->since_ns = mf_now_ns();
    wrap(p);
    p->ops.step_ends = step_ends;
    if (p->inner->memory) {
        p->memory = *p->inner->memory;
        p->memory.copy_async = copy_async;
        p->memory.graph_begin = NULL;
        p->ops.memory = &p->memory;
        mf_status status = p->inner->memory->mark
                               ? p->inner->memory->marks_open(device, err)
                               : mf_fail(err, MF_ERR_UNSUPPORTED, "profile: device %s notes no parts", device->name);
        if (status != MF_OK) {
            mf_free(p);
            return status;
        }
    }
    device->ops = &p->ops;
    return MF_OK;
}

void mf_profile_close(mf_device *device)
{
    profile *p = profile_of(device);
    device->ops = p->inner;
    if (p->inner->memory) {
        p->inner->memory->marks_close(device);
    }
    mf_free(p);
}

mf_status mf_profile_take(mf_device *device, double seconds[MF_NUM_PARTS], mf_error *err)
{
    profile *p = profile_of(device);
    if (p->inner->memory) {
        return p->inner->memory->marks_take(device, seconds, err);
    }
    p->seconds[p->part] += (double)(mf_now_ns() - p->since_ns) * 1e-9;
    p->since_ns = mf_now_ns();
    for (int i = 0; i < MF_NUM_PARTS; i++) {
        seconds[i] += p->seconds[i];
        p->seconds[i] = 0.0;
    }
    return MF_OK;
}
