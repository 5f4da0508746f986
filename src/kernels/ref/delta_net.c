/* delta_net.c - the gated delta net and the sigmoid gate of attention in their plainest form: see mf_delta_net_args. */
#include <math.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/ref/ref_ops.h"

/* Per row the convolved channels; per head the decayed sums of one token. */
size_t mf_ref_delta_net_scratch_floats(const mf_device *device, const mf_delta_net_args *args)
{
    (void)device;
    return (size_t)(mf_delta_net_channels(args) + args->v_dim);
}

/* Channel c of a row before the convolution. */
static float input(const mf_delta_net_args *args, int64_t row, int64_t c)
{
    const int64_t keys = args->num_k_heads * args->k_dim, values = args->num_v_heads / args->num_k_heads * args->v_dim;
    const int64_t section = 2 * (args->k_dim + values); /* of a key head */
    const float *x = args->qkvz + row * args->num_k_heads * section;
    if (c < keys) {
        return x[c / args->k_dim * section + c % args->k_dim];
    }
    if (c < 2 * keys) {
        c -= keys;
        return x[c / args->k_dim * section + args->k_dim + c % args->k_dim];
    }
    c -= 2 * keys;
    return x[c / values * section + 2 * args->k_dim + c % values];
}

/* The convolution at one row; its input becomes the youngest of the slot's. */
static void convolve(const mf_delta_net_args *args, int64_t row, float *past, float *y)
{
    const int64_t channels = mf_delta_net_channels(args), num_past = args->conv_size - 1;
    for (int64_t c = 0; c < channels; c++) {
        const float *w = args->conv + c * args->conv_size;
        const float x = input(args, row, c);
        float sum = 0.0f;
        for (int64_t j = 0; j < num_past; j++) {
            sum += w[j] * past[j * channels + c];
        }
        sum += w[num_past] * x;
        y[c] = sum * mf_act_sigmoid(sum);
        for (int64_t j = 0; j + 1 < num_past; j++) {
            past[j * channels + c] = past[(j + 1) * channels + c];
        }
        if (num_past > 0) {
            past[(num_past - 1) * channels + c] = x;
        }
    }
}

static void normalise(float *x, int64_t n, float scale)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    const float factor = 1.0f / sqrtf(sum + 1e-6f);
    for (int64_t i = 0; i < n; i++) {
        x[i] = x[i] * factor * scale;
    }
}

/* torch's: above 20 the identity. */
static float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

/* One value head at one row: the recurrence, then the norm and its gate. */
static void step(const mf_delta_net_args *args, int64_t row, int64_t head, const float *y, float *state, float *sums)
{
    const int64_t k_dim = args->k_dim, v_dim = args->v_dim, keys = args->num_k_heads * k_dim;
    const int64_t ratio = args->num_v_heads / args->num_k_heads, key_head = head / ratio, nth = head % ratio;
    const float *q = y + key_head * k_dim, *k = y + keys + key_head * k_dim, *v = y + 2 * keys + head * v_dim;
    const float *ba = args->ba + (row * args->num_k_heads + key_head) * 2 * ratio;
    const float *z = args->qkvz + (row * args->num_k_heads + key_head) * 2 * (k_dim + ratio * v_dim) + 2 * k_dim +
                     (ratio + nth) * v_dim;
    const float beta = mf_act_sigmoid(ba[nth]);
    const float decay = expf(-expf(args->a_log[head]) * softplus(ba[ratio + nth] + args->dt_bias[head]));
    float *out = args->out + (row * args->num_v_heads + head) * v_dim;
    memset(sums, 0, (size_t)v_dim * sizeof *sums);
    memset(out, 0, (size_t)v_dim * sizeof *out);
    for (int64_t i = 0; i < k_dim; i++) {
        for (int64_t j = 0; j < v_dim; j++) {
            state[i * v_dim + j] *= decay;
            sums[j] += k[i] * state[i * v_dim + j];
        }
    }
    for (int64_t i = 0; i < k_dim; i++) {
        for (int64_t j = 0; j < v_dim; j++) {
            state[i * v_dim + j] += k[i] * (beta * (v[j] - sums[j]));
            out[j] += q[i] * state[i * v_dim + j];
        }
    }
    mf_ref_rms_norm(NULL, out, v_dim, 1, v_dim, args->norm, args->norm_eps, out, v_dim);
    for (int64_t j = 0; j < v_dim; j++) {
        out[j] *= z[j] * mf_act_sigmoid(z[j]);
    }
}

void mf_ref_delta_net(mf_device *device, const mf_delta_net_args *args)
{
    (void)device;
    const mf_state_view *view = &args->state;
    const float query_scale = 1.0f / sqrtf((float)args->k_dim);
    float *y = args->scratch, *sums = y + mf_delta_net_channels(args);
    for (int64_t run = 0; run < view->num_runs; run++) {
        float *state = view->states + view->slot[run] * view->slot_floats;
        float *past = state + mf_delta_net_matrix_floats(args);
        if (view->is_new[run]) {
            memset(state, 0, (size_t)mf_delta_net_state_floats(args) * sizeof *state);
        }
        for (int32_t i = view->start[run]; i < view->start[run + 1]; i++) {
            const int64_t row = view->rows[i];
            convolve(args, row, past, y);
            for (int64_t h = 0; h < args->num_k_heads; h++) {
                normalise(y + h * args->k_dim, args->k_dim, query_scale);
                normalise(y + (args->num_k_heads + h) * args->k_dim, args->k_dim, 1.0f);
            }
            for (int64_t h = 0; h < args->num_v_heads; h++) {
                step(args, row, h, y, state + h * args->k_dim * args->v_dim, sums);
            }
        }
    }
}

void mf_ref_sigmoid_gate(mf_device *device, float *x, int64_t x_stride, const float *gate, int64_t gate_stride,
                         int64_t num_rows, int64_t n)
{
    (void)device;
    for (int64_t r = 0; r < num_rows; r++) {
        for (int64_t i = 0; i < n; i++) {
            x[r * x_stride + i] *= mf_act_sigmoid(gate[r * gate_stride + i]);
        }
    }
}
