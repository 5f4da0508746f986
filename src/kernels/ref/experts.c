/* experts.c - y[t, c] = w2 . act(w13 . x[t]) of the slot that ids[t, c] names, one column after the other. */
#include "kernels/activation.h"
#include "kernels/quantise.h"
#include "kernels/ref/ref_ops.h"

/* What enters a product: values, or codes with one scale per group. */
typedef struct operand {
    float *v;
    float *scales;
    mf_quant quant;
} operand;

enum { GROUP = 128 };

static int64_t align16(int64_t n)
{
    return (n + 15) / 16 * 16;
}

/* Room for x, the intermediate and the output of one column, each with its scales. */
size_t mf_ref_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns)
{
    (void)num_tokens;
    (void)num_columns;
    int64_t h = experts->hidden_size;
    int64_t i = experts->max_intermediate_size;
    return (size_t)(3 * align16(h) + 2 * align16(i)) * sizeof(float);
}

static void quantise(operand *x, int64_t n, mf_act_quant act_quant, mf_format format, float static_scale)
{
    x->quant = mf_quant_for(act_quant, format, static_scale);
    if (x->quant != MF_QUANT_NONE) {
        mf_quantise_row(x->quant, static_scale, act_quant == MF_ACT_QUANT_W8A8_E8M0, x->v, n, x->v, x->scales);
    }
}

/* INT4 codes times int8 codes: exact inside a weight's group, the groups' sums in f32. */
static float int4_product(const mf_matrix *w, int64_t r, const operand *x)
{
    float total = 0.0f;
    int64_t scale_row = mf_matrix_scale_row(w, r);
    for (int64_t first = 0, g = 0; first < w->k; first += w->group_size, g++) {
        int64_t end = w->k - first < w->group_size ? w->k : first + w->group_size;
        int32_t sum = 0;
        for (int64_t k = first; k < end; k++) {
            float code;
            mf_matrix_decode_codes(w, r, k, 1, &code);
            sum += (int32_t)code * (int32_t)x->v[k];
        }
        total += mf_matrix_scale_at(w, scale_row + g) * (float)sum;
    }
    return total * x->scales[0];
}

/* Row r of w times x; codes and scales stay apart when x is quantised. */
static float product(const mf_matrix *w, int64_t r, const operand *x)
{
    if (x->quant == MF_QUANT_NONE) {
        return mf_ref_dot(w, r, x->v);
    }
    if (w->format == MF_FORMAT_INT4_GROUP) {
        return int4_product(w, r, x);
    }
    float codes[GROUP];
    float total = 0.0f;
    int32_t integer = 0;
    int64_t scale_row = mf_matrix_scale_row(w, r);
    for (int64_t first = 0, g = 0; first < w->k; first += GROUP, g++) {
        int64_t count = w->k - first < GROUP ? w->k - first : GROUP;
        mf_matrix_decode_codes(w, r, first, count, codes);
        float sum = 0.0f;
        for (int64_t i = 0; i < count; i++) {
            if (x->quant == MF_QUANT_INT8_TOKEN) {
                integer += (int32_t)codes[i] * (int32_t)x->v[first + i];
            } else {
                sum += codes[i] * x->v[first + i];
            }
        }
        total += x->quant == MF_QUANT_FP8_GROUP ? x->scales[g] * mf_matrix_scale_at(w, scale_row + g) * sum : sum;
    }
    switch (x->quant) {
    case MF_QUANT_INT8_TOKEN:
        return (float)integer * x->scales[0] * mf_matrix_scale_at(w, scale_row);
    case MF_QUANT_FP8_GROUP:
        return total;
    default:
        return x->scales[0] * mf_matrix_scale_at(w, scale_row) * total;
    }
}

static const uint8_t *element(const mf_tensor *t, int64_t i, int64_t j)
{
    return (const uint8_t *)t->data + (i * t->stride[0] + j * t->stride[1]) * (int64_t)mf_dtype_size(t->dtype);
}

static void one_column(const mf_experts_call *call, const mf_slot *slot, int64_t t, int64_t c)
{
    const mf_experts *experts = call->experts;
    const mf_experts_args *args = call->args;
    const int64_t hidden = experts->hidden_size;
    const int64_t width = slot->up.n;
    float *workspace = call->workspace;
    operand x = { .v = workspace, .scales = workspace + align16(hidden) };
    float *y = x.scales + align16(hidden);
    operand h = { .v = y + align16(hidden), .scales = y + align16(hidden) + align16(experts->max_intermediate_size) };

    mf_load_row(element(&args->x, t, 0), experts->act_dtype, hidden, x.v);
    if (args->input_scale.data) {
        float scale;
        memcpy(&scale, element(&args->input_scale, t, c), 4);
        for (int64_t i = 0; i < hidden; i++) {
            x.v[i] = mf_round_to_dtype(x.v[i] * scale, experts->act_dtype);
        }
    }
    quantise(&x, hidden, experts->act_quant, slot->up.format, slot->input_scale13);
    for (int64_t i = 0; i < width; i++) {
        float g = slot->gate.data ? product(&slot->gate, i, &x) : 0.0f;
        float u = product(&slot->up, i, &x);
        g = slot->gate_bias ? g + slot->gate_bias[i] : g;
        u = slot->up_bias ? u + slot->up_bias[i] : u;
        h.v[i] = mf_round_to_dtype(mf_activate(slot, g, u), experts->act_dtype);
    }
    quantise(&h, width, experts->act_quant, slot->down.format, slot->input_scale2);
    for (int64_t i = 0; i < hidden; i++) {
        float v = product(&slot->down, i, &h);
        y[i] = slot->down_bias ? v + slot->down_bias[i] : v;
    }
    mf_store_row(y, hidden, args->y.dtype, (uint8_t *)element(&args->y, t, c));
}

mf_status mf_ref_experts(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    (void)device;
    (void)err;
    const mf_experts_args *args = call->args;
    for (int64_t t = 0; t < call->num_tokens; t++) {
        for (int64_t c = 0; c < call->num_columns; c++) {
            int32_t id;
            memcpy(&id, element(&args->topk_ids, t, c), 4);
            if (id >= call->experts->num_slots) {
                /* A caller's mistake that the gate has counted: the column is zero rather than left over. */
                size_t bytes = (size_t)call->experts->hidden_size * mf_dtype_size(args->y.dtype);
                memset((uint8_t *)element(&args->y, t, c), 0, bytes);
            } else if (id >= 0) {
                one_column(call, &call->experts->slots[id], t, c);
            }
        }
    }
    return MF_OK;
}
