/* staging_dense.c - the dense operations of ops.h, which tests call through the device's table: for a device with
 * memory of its own the table's entries are replaced by these, which stage what the arguments name, as staging.c does
 * for the others. */
#include <stdlib.h>

#include "kernels/format.h"
#include "staging.h"

static mf_device_ops staged;
static const mf_device_ops *real;

static stage begin(mf_device *device)
{
    return (stage){ .device = device };
}

static void end(stage *s)
{
    mf_error err = { 0 };
    if (mf_device_synchronize(s->device, &err) != MF_OK) {
        fail_msg("the device failed: %s", err.message);
    }
    stage_from_device(s);
}

/* rows of n values, stride apart */
static void add_rows(stage *s, const float *x, int64_t rows, int64_t stride, int64_t n, bool is_output)
{
    stage_range(s, x, rows > 0 && n > 0 ? (size_t)((rows - 1) * stride + n) * 4 : 0, is_output);
}

static void add_matrix(stage *s, const mf_matrix *m)
{
    stage_range(s, m->data, (size_t)((((m->n - 1) * m->row_stride + m->k) * mf_format_bits(m->format) + 7) / 8), false);
    if (m->format >= MF_FORMAT_FP8_BLOCK) {
        const int64_t group = mf_matrix_group(m), columns = group ? (m->k - 1) / group + 1 : 1;
        const int64_t rows = m->format == MF_FORMAT_FP8_BLOCK ? (m->n - 1) / 128 + 1 : m->n;
        const size_t count = (size_t)((rows - 1) * m->scale_row_stride + columns);
        stage_range(s, m->scale, count * mf_dtype_size(m->scale_dtype), false);
        stage_range(s, m->zero, m->zero ? count : 0, false);
    }
}

static mf_matrix move_matrix(const stage *s, const mf_matrix *m)
{
    mf_matrix to = *m;
    to.data = stage_moved(s, m->data);
    to.scale = stage_moved(s, m->scale);
    to.zero = stage_moved(s, m->zero);
    return to;
}

/* Blocks that the table names, and rows of the batch. */
static void add_view(stage *s, const mf_kv_view *kv, int64_t num_tokens, bool is_output)
{
    int64_t sequences = 0, blocks = 0;
    for (int64_t t = 0; t < num_tokens; t++) {
        sequences = kv->sequence[t] >= sequences ? kv->sequence[t] + 1 : sequences;
    }
    for (int64_t i = 0; i < sequences * kv->max_blocks; i++) {
        blocks = kv->block_table[i] >= blocks ? kv->block_table[i] + 1 : blocks;
    }
    stage_range(s, kv->cache, (size_t)(blocks * kv->block_size * kv->row_size) * mf_dtype_size(kv->dtype), is_output);
    stage_range(s, kv->block_table, (size_t)(sequences * kv->max_blocks) * 4, false);
    stage_range(s, kv->sequence, (size_t)num_tokens * 4, false);
    stage_range(s, kv->position, (size_t)num_tokens * 4, false);
}

static void move_view(const stage *s, mf_kv_view *kv)
{
    kv->cache = stage_moved(s, kv->cache);
    kv->block_table = stage_moved(s, kv->block_table);
    kv->sequence = stage_moved(s, kv->sequence);
    kv->position = stage_moved(s, kv->position);
}

static void embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride)
{
    stage s = begin(device);
    add_matrix(&s, table);
    stage_range(&s, ids, (size_t)num_tokens * 4, false);
    add_rows(&s, out, num_tokens, out_stride, table->k, true);
    stage_to_device(&s);
    const mf_matrix m = move_matrix(&s, table);
    real->embed(device, &m, stage_moved(&s, ids), num_tokens, stage_moved(&s, out), out_stride);
    end(&s);
}

static void rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride)
{
    stage s = begin(device);
    add_rows(&s, x, num_tokens, x_stride, n, false);
    add_rows(&s, weight, 1, n, n, false);
    add_rows(&s, out, num_tokens, out_stride, n, true);
    stage_to_device(&s);
    real->rms_norm(device, stage_moved(&s, x), x_stride, num_tokens, n, stage_moved(&s, weight), eps,
                   stage_moved(&s, out), out_stride);
    end(&s);
}

static void linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride)
{
    stage s = begin(device);
    add_matrix(&s, w);
    add_rows(&s, bias, bias ? 1 : 0, w->n, w->n, false);
    add_rows(&s, x, num_tokens, x_stride, w->k, false);
    add_rows(&s, out, num_tokens, out_stride, w->n, true);
    stage_to_device(&s);
    const mf_matrix m = move_matrix(&s, w);
    real->linear(device, &m, stage_moved(&s, bias), act_dtype, stage_moved(&s, x), x_stride, num_tokens,
                 stage_moved(&s, out), out_stride);
    end(&s);
}

static void rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride,
                 int64_t dim, bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens)
{
    int64_t most = -1;
    for (int64_t t = 0; t < num_tokens; t++) {
        most = position[t] > most ? position[t] : most;
    }
    stage s = begin(device);
    add_rows(&s, x, num_tokens, row_stride, (num_vectors - 1) * vector_stride + dim, true);
    add_rows(&s, cos_sin, most + 1, dim, dim, false);
    stage_range(&s, position, (size_t)num_tokens * 4, false);
    stage_to_device(&s);
    real->rope(device, stage_moved(&s, x), row_stride, num_vectors, vector_stride, dim, pair, stage_moved(&s, cos_sin),
               stage_moved(&s, position), num_tokens);
    end(&s);
}

static void kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride,
                     int64_t num_tokens)
{
    stage s = begin(device);
    mf_kv_view view = *kv;
    add_view(&s, kv, num_tokens, true);
    add_rows(&s, rows, num_tokens, rows_stride, kv->row_size, false);
    stage_to_device(&s);
    move_view(&s, &view);
    real->kv_write(device, &view, stage_moved(&s, rows), rows_stride, num_tokens);
    end(&s);
}

static void mla_attention(mf_device *device, const mf_mla_args *args)
{
    stage s = begin(device);
    mf_mla_args a = *args;
    const size_t scratch = real->mla_scratch_floats(device, args) * 4;
    add_view(&s, &a.kv, a.num_tokens, false);
    add_matrix(&s, a.kv_b);
    add_rows(&s, a.q, 1, 0, a.num_tokens * a.num_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim), false);
    add_rows(&s, a.out, 1, 0, a.num_tokens * a.num_heads * a.v_head_dim, true);
    stage_to_device(&s);
    move_view(&s, &a.kv);
    const mf_matrix kv_b = move_matrix(&s, args->kv_b);
    a.kv_b = &kv_b;
    a.q = stage_moved(&s, args->q);
    a.out = stage_moved(&s, args->out);
    a.scratch = stage_open_workspace(device, scratch);
    real->mla_attention(device, &a);
    stage_close_workspace(device, a.scratch, scratch);
    end(&s);
}

static void gqa_attention(mf_device *device, const mf_gqa_args *args)
{
    stage s = begin(device);
    mf_gqa_args a = *args;
    const size_t scratch = real->gqa_scratch_floats(device, args) * 4;
    add_view(&s, &a.kv, a.num_tokens, false);
    add_rows(&s, a.sinks, a.sinks ? 1 : 0, 0, a.num_heads, false);
    add_rows(&s, a.q, 1, 0, a.num_tokens * a.num_heads * a.head_dim, false);
    add_rows(&s, a.out, 1, 0, a.num_tokens * a.num_heads * a.v_head_dim, true);
    stage_to_device(&s);
    move_view(&s, &a.kv);
    a.sinks = stage_moved(&s, args->sinks);
    a.q = stage_moved(&s, args->q);
    a.out = stage_moved(&s, args->out);
    a.scratch = stage_open_workspace(device, scratch);
    real->gqa_attention(device, &a);
    stage_close_workspace(device, a.scratch, scratch);
    end(&s);
}

static void delta_net(mf_device *device, const mf_delta_net_args *args)
{
    stage s = begin(device);
    mf_delta_net_args a = *args;
    const int64_t channels = mf_delta_net_channels(args), width = channels + a.num_v_heads * a.v_dim,
                  runs = a.state.num_runs;
    const size_t scratch = real->delta_net_scratch_floats(device, args) * 4;
    int64_t slots = 0;
    for (int64_t i = 0; i < runs; i++) {
        slots = a.state.slot[i] >= slots ? a.state.slot[i] + 1 : slots;
    }
    add_rows(&s, a.qkvz, 1, 0, a.num_tokens * width, false);
    add_rows(&s, a.ba, 1, 0, a.num_tokens * 2 * a.num_v_heads, false);
    add_rows(&s, a.conv, 1, 0, channels * a.conv_size, false);
    add_rows(&s, a.a_log, 1, 0, a.num_v_heads, false);
    add_rows(&s, a.dt_bias, 1, 0, a.num_v_heads, false);
    add_rows(&s, a.norm, 1, 0, a.v_dim, false);
    add_rows(&s, a.state.states, 1, 0, slots * a.state.slot_floats, true);
    stage_range(&s, a.state.rows, (size_t)a.num_tokens * 4, false);
    stage_range(&s, a.state.start, runs > 0 ? (size_t)(runs + 1) * 4 : 0, false);
    stage_range(&s, a.state.slot, (size_t)runs * 4, false);
    stage_range(&s, a.state.is_new, (size_t)runs, false);
    add_rows(&s, a.out, 1, 0, a.num_tokens * a.num_v_heads * a.v_dim, true);
    stage_to_device(&s);
    a.qkvz = stage_moved(&s, args->qkvz);
    a.ba = stage_moved(&s, args->ba);
    a.conv = stage_moved(&s, args->conv);
    a.a_log = stage_moved(&s, args->a_log);
    a.dt_bias = stage_moved(&s, args->dt_bias);
    a.norm = stage_moved(&s, args->norm);
    a.state.states = stage_moved(&s, args->state.states);
    a.state.rows = stage_moved(&s, args->state.rows);
    a.state.start = stage_moved(&s, args->state.start);
    a.state.slot = stage_moved(&s, args->state.slot);
    a.state.is_new = stage_moved(&s, args->state.is_new);
    a.out = stage_moved(&s, args->out);
    a.scratch = stage_open_workspace(device, scratch);
    real->delta_net(device, &a);
    stage_close_workspace(device, a.scratch, scratch);
    end(&s);
}

static void sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n)
{
    stage s = begin(device);
    add_rows(&s, x, num_rows, x_stride, n, true);
    add_rows(&s, gate, num_rows, gate_stride, n, false);
    stage_to_device(&s);
    real->sigmoid_gate(device, stage_moved(&s, x), x_stride, stage_moved(&s, gate), gate_stride, num_rows, n);
    end(&s);
}

static void convert(mf_device *device, const float *x, int64_t n, mf_dtype dtype, void *out)
{
    stage s = begin(device);
    add_rows(&s, x, 1, 0, n, false);
    stage_range(&s, out, (size_t)n * 2, true);
    stage_to_device(&s);
    real->convert(device, stage_moved(&s, x), n, dtype, stage_moved(&s, out));
    end(&s);
}

static void clip(mf_device *device, float *x, int64_t n, float limit)
{
    stage s = begin(device);
    add_rows(&s, x, 1, 0, n, true);
    stage_to_device(&s);
    real->clip(device, stage_moved(&s, x), n, limit);
    end(&s);
}

static void scale_rows(mf_device *device, float *x, int64_t n, const float *factors, const int32_t *position,
                       int64_t num_tokens)
{
    int64_t most = -1;
    for (int64_t t = 0; t < num_tokens; t++) {
        most = position[t] > most ? position[t] : most;
    }
    stage s = begin(device);
    add_rows(&s, x, 1, 0, num_tokens * n, true);
    add_rows(&s, factors, 1, 0, most + 1, false);
    stage_range(&s, position, (size_t)num_tokens * 4, false);
    stage_to_device(&s);
    real->scale_rows(device, stage_moved(&s, x), n, stage_moved(&s, factors), stage_moved(&s, position), num_tokens);
    end(&s);
}

static void add(mf_device *device, float *acc, const float *x, int64_t n)
{
    stage s = begin(device);
    add_rows(&s, acc, 1, 0, n, true);
    add_rows(&s, x, 1, 0, n, false);
    stage_to_device(&s);
    real->add(device, stage_moved(&s, acc), stage_moved(&s, x), n);
    end(&s);
}

static void add_norm_call(stage *s, const mf_add_norm_call *n, bool writes_acc)
{
    add_rows(s, n->acc, n->num_tokens, n->n, n->n, writes_acc);
    add_rows(s, n->add, n->add ? n->num_tokens : 0, n->n, n->n, false);
    add_rows(s, n->weight, 1, n->n, n->n, false);
    stage_range(s, n->rounded, n->rounded ? (size_t)(n->num_tokens * n->n) * 2 : 0, true);
}

static mf_add_norm_call move_norm(const stage *s, const mf_add_norm_call *norm)
{
    mf_add_norm_call n = *norm;
    n.acc = stage_moved(s, norm->acc);
    n.add = stage_moved(s, norm->add);
    n.weight = stage_moved(s, norm->weight);
    n.out = stage_moved(s, norm->out);
    n.rounded = stage_moved(s, norm->rounded);
    return n;
}

static void add_linear_call(stage *s, const mf_linear_call *c)
{
    for (int i = 0; i < c->num; i++) {
        add_matrix(s, c->w[i]);
        add_rows(s, c->bias[i], c->bias[i] ? 1 : 0, c->w[i]->n, c->w[i]->n, false);
        add_rows(s, c->out[i], c->num_tokens, c->out_stride[i], c->w[i]->n, true);
    }
}

static mf_linear_call move_linear(const stage *s, const mf_linear_call *call, mf_matrix *w)
{
    mf_linear_call c = *call;
    for (int i = 0; i < c.num; i++) {
        w[i] = move_matrix(s, call->w[i]);
        c.w[i] = &w[i];
        c.bias[i] = stage_moved(s, call->bias[i]);
        c.out[i] = stage_moved(s, call->out[i]);
    }
    c.x = stage_moved(s, call->x);
    c.rounded = stage_moved(s, call->rounded);
    return c;
}

static void linear_many(mf_device *device, const mf_linear_call *call)
{
    stage s = begin(device);
    mf_matrix w[MF_LINEAR_MOST];
    add_linear_call(&s, call);
    add_rows(&s, call->x, call->num_tokens, call->x_stride, call->w[0]->k, false);
    stage_range(&s, call->rounded, call->rounded ? (size_t)(call->num_tokens * call->w[0]->k) * 2 : 0, false);
    stage_to_device(&s);
    const mf_linear_call c = move_linear(&s, call, w);
    real->linear_many(device, &c);
    end(&s);
}

static void add_norm(mf_device *device, const mf_add_norm_call *call)
{
    stage s = begin(device);
    add_norm_call(&s, call, call->add != NULL);
    add_rows(&s, call->out, call->num_tokens, call->n, call->n, true);
    stage_to_device(&s);
    const mf_add_norm_call n = move_norm(&s, call);
    real->add_norm(device, &n);
    end(&s);
}

static bool norm_linear(mf_device *device, const mf_add_norm_call *norm, float *acc_out, const mf_linear_call *call)
{
    stage s = begin(device);
    mf_matrix w[MF_LINEAR_MOST];
    add_norm_call(&s, norm, false);
    add_rows(&s, acc_out, norm->num_tokens, norm->n, norm->n, true);
    add_linear_call(&s, call);
    stage_to_device(&s);
    const mf_add_norm_call n = move_norm(&s, norm);
    const mf_linear_call c = move_linear(&s, call, w);
    const bool is_done = real->norm_linear(device, &n, stage_moved(&s, acc_out), &c);
    end(&s);
    return is_done;
}

void stage_dense_operations(mf_device *device)
{
    if (mf_device_uses_host_memory(device)) {
        return;
    }
    real = device->ops;
    staged = *real;
    staged.embed = embed;
    staged.rms_norm = rms_norm;
    staged.linear = linear;
    staged.rope = rope;
    staged.kv_write = kv_write;
    staged.mla_attention = mla_attention;
    staged.gqa_attention = gqa_attention;
    staged.delta_net = delta_net;
    staged.sigmoid_gate = sigmoid_gate;
    staged.convert = convert;
    staged.clip = clip;
    staged.scale_rows = scale_rows;
    staged.add = add;
    staged.linear_many = real->linear_many ? linear_many : NULL;
    staged.add_norm = real->add_norm ? add_norm : NULL;
    staged.norm_linear = real->norm_linear ? norm_linear : NULL;
    device->ops = &staged;
}
