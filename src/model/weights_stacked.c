/* weights_stacked.c - routed experts whose matrices lie in one tensor per layer, as transformers saves them and gpt-oss
 * and Llama-4 are released, and the biases beside such stacks.
 *
 * Rows are views.  Matrices stored by columns are converted (weights_convert.c). */
#include <stdio.h>

#include "kernels/ops.h"
#include "model/weights_matcher.h"

/* All checks of one stacked tensor and its scales; *weight stays empty when it cannot be used. */
static mf_status check_stack(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t, const char *name,
                             const int64_t shape[3], mf_ready_tensor *weight, mf_ready_tensor *scale)
{
    char scale_name[MF_MAX_TENSOR_NAME + 32];
    const mf_quant_config *quant = &m->config->quant;
    const char *suffix = x->scheme            ? x->scheme->scale_suffix
                         : quant->num_schemes ? quant->schemes[0].scale_suffix
                                              : NULL;
    snprintf(scale_name, sizeof scale_name, "%s%s", name, suffix ? suffix : "_scale_inv");
    const mf_st_tensor *scale_tensor = mf_match_take(m, scale_name);
    if (!t) {
        return MF_OK;
    }
    if (!mf_match_has_shape(t, shape, 3)) {
        return mf_match_wrong_shape(m, t, shape, 3, "");
    }
    int64_t scale_shape[3] = { shape[0], 0, 0 };
    if (x->scheme) {
        scale_shape[1] = mf_match_scale_rows(x->scheme, shape[1]);
        scale_shape[2] = mf_match_scale_columns(x->scheme, shape[2]);
    }
    bool ok;
    MF_TRY(mf_match_check_format(m, x, t, scale_name, scale_tensor, scale_shape, 3, &ok));
    if (!ok) {
        return MF_OK;
    }
    MF_TRY(mf_match_check_deep(m, t));
    MF_TRY(mf_match_check_deep(m, scale_tensor));
    MF_TRY(mf_match_make_ready(m, t, weight));
    return mf_match_make_ready(m, scale_tensor, scale);
}

/* At a layer's first expert: which form its experts have, and all checks of the stacked tensors. */
static mf_status look_for_stack(mf_matcher *m, const mf_wanted *x)
{
    const mf_model_config *c = m->config;
    mf_stacked_layer *s = &m->stack;
    *s = (mf_stacked_layer){ .layer = x->layer };
    if (!c->family->stacked_gate_up ||
        !mf_tensor_name(c->family, c->family->stacked_gate_up, x->layer, -1, s->gate_up_name, sizeof s->gate_up_name) ||
        !mf_tensor_name(c->family, c->family->stacked_down, x->layer, -1, s->down_name, sizeof s->down_name)) {
        return MF_OK;
    }
    const mf_st_tensor *gate_up = mf_match_take(m, s->gate_up_name), *down = mf_match_take(m, s->down_name);
    s->stacked = gate_up || down || c->family->stacked_only;
    if (!s->stacked) {
        return MF_OK;
    }
    s->file = gate_up ? gate_up->file : down ? down->file : "";
    if (!gate_up) {
        MF_TRY(mf_match_add_name(m, &m->missing, "missing", s->gate_up_name));
    }
    if (!down) {
        MF_TRY(mf_match_add_name(m, &m->missing, "missing", s->down_name));
    }
    int64_t experts = c->gate.num_experts, width = c->moe_intermediate_size, hidden = c->hidden_size;
    const mf_quant_method method = x->scheme ? x->scheme->method : MF_QUANT_NONE;
    if (method > MF_QUANT_FP8_CHANNEL && method != MF_QUANT_INT8_CHANNEL) {
        mf_fail(&m->error, MF_ERR_UNSUPPORTED,
                "%s: tensor \"%.256s\": experts in one tensor are loaded unquantised, or in eight bits with scales per "
                "block or row",
                s->file, s->gate_up_name);
        MF_TRY(mf_match_problem(m));
        return MF_OK;
    }
    if (x->scheme && width % x->scheme->block_n != 0) {
        mf_fail(&m->error, MF_ERR_UNSUPPORTED,
                "%s: tensor \"%.256s\": its scale blocks cross from gate to up, because moe_intermediate_size %lld is "
                "no multiple of 128",
                s->file, s->gate_up_name, (long long)width);
        MF_TRY(mf_match_problem(m));
        gate_up = NULL;
    }
    const bool by_columns = c->family->stacked_columns;
    if (by_columns && x->scheme) {
        mf_fail(&m->error, MF_ERR_UNSUPPORTED,
                "%s: tensor \"%.256s\": experts stored by columns are loaded unquantised", s->file, s->gate_up_name);
        return mf_match_problem(m);
    }
    const int64_t up_rows = by_columns ? hidden : 2 * width, up_columns = by_columns ? 2 * width : hidden;
    const int64_t down_rows = by_columns ? width : hidden, down_columns = by_columns ? hidden : width;
    MF_TRY(check_stack(m, x, gate_up, s->gate_up_name, (int64_t[3]){ experts, up_rows, up_columns }, &s->gate_up,
                       &s->gate_up_scale));
    return check_stack(m, x, down, s->down_name, (int64_t[3]){ experts, down_rows, down_columns }, &s->down,
                       &s->down_scale);
}

/* A matrix whose columns are stored as rows, or every other of them: to be converted. */
static mf_status place_columns(mf_matcher *m, const mf_wanted *x, mf_ready_tensor weight)
{
    const bool is_down = x->role == MF_ROLE_EXPERT_DOWN, is_up = x->role == MF_ROLE_EXPERT_UP;
    const bool in_turn = !is_down && m->config->family->stacked_rows_alternate;
    const int64_t *shape = weight.tensor->shape, size = (int64_t)mf_dtype_size(weight.tensor->dtype);
    mf_matrix matrix = { .n = x->n, .k = x->k, .row_stride = x->k };
    const uint8_t *expert = weight.data + x->expert * shape[1] * shape[2] * size;
    matrix.data = expert + (!is_up ? 0 : in_turn ? 1 : x->n) * size;
    mf_match_float_format(weight.tensor->dtype, &matrix.format);
    mf_match_count(m, matrix.format, mf_matrix_bytes(&matrix));
    m->weights->stats.bytes_converted += mf_matrix_bytes(&matrix);
    *x->matrix = matrix;
    const mf_conversion conversion = { .kind = MF_CONVERT_COLUMNS,
                                       .name = weight.tensor->name,
                                       .codes = matrix.data,
                                       .column_step = in_turn ? 2 : 1,
                                       .stored_columns = shape[2],
                                       .done_with = expert,
                                       .done_bytes = is_down || is_up ? (size_t)(shape[1] * shape[2] * size) : 0 };
    return mf_match_add_conversion(m, x, &conversion);
}

/* A bias of one expert inside the stack's: rows of gate and up in turn, or gate's first. */
static mf_status place_stacked_bias(mf_matcher *m, const mf_wanted *x)
{
    const mf_family *family = m->config->family;
    const bool is_down = x->role == MF_ROLE_EXPERT_DOWN_BIAS, is_up = x->role == MF_ROLE_EXPERT_UP_BIAS;
    const char *template = is_down ? family->stacked_down : family->stacked_gate_up;
    const bool says = x->expert == 0 && !is_up,
               in_turn = !is_down && family->stacked_rows_alternate; /* once per tensor */
    char base[MF_MAX_TENSOR_NAME], name[MF_MAX_TENSOR_NAME + 8];
    if (!mf_tensor_name(family, template, x->layer, -1, base, sizeof base)) {
        return MF_ERR_INTERNAL;
    }
    snprintf(name, sizeof name, "%s_bias", base);
    const int64_t shape[2] = { m->config->gate.num_experts, is_down ? x->n : 2 * x->n };
    const mf_st_tensor *t = mf_match_take(m, name);
    if (!t) {
        return says ? mf_match_add_name(m, &m->missing, "missing", name) : MF_OK;
    }
    mf_format format;
    const bool fits = mf_match_has_shape(t, shape, 2), is_float = mf_match_float_format(t->dtype, &format);
    if (!fits || !is_float) {
        return !says   ? MF_OK
               : !fits ? mf_match_wrong_shape(m, t, shape, 2, "")
                       : mf_match_wrong_dtype(m, t, "f32, bf16 or f16");
    }
    if (says) {
        MF_TRY(mf_match_check_finite(m, t));
        mf_match_count(m, format, (int64_t)t->bytes);
    }
    float *values = mf_arena_array(m->arena, (size_t)x->n, sizeof *values);
    if (!values) {
        return mf_fail(&m->error, MF_ERR_NOMEM, "%s: tensor \"%.256s\": no memory for %lld values", t->file, t->name,
                       (long long)x->n);
    }
    const int64_t first = x->expert * shape[1] + (!is_up ? 0 : in_turn ? 1 : x->n), step = in_turn ? 2 : 1;
    for (int64_t i = 0; i < x->n; i++) {
        values[i] = mf_match_value_at(t->data, t->dtype, first + i * step);
    }
    m->weights->stats.bytes_converted += x->n * (int64_t)sizeof *values;
    *x->vector = values;
    return MF_OK;
}

static mf_status place_stacked(mf_matcher *m, const mf_wanted *x)
{
    const mf_stacked_layer *s = &m->stack;
    bool is_down = x->role == MF_ROLE_EXPERT_DOWN;
    const mf_st_tensor *single = mf_match_take(m, x->name);
    if (x->scale_name[0]) {
        mf_match_take(m, x->scale_name);
    }
    if (single) {
        mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.200s\" and tensor \"%.200s\" in %s hold the same expert",
                single->file, single->name, is_down ? s->down_name : s->gate_up_name, s->file);
        return mf_match_problem(m);
    }
    mf_ready_tensor weight = is_down ? s->down : s->gate_up;
    if (!weight.tensor) { /* reported already */
        return MF_OK;
    }
    if (m->config->family->stacked_columns) {
        return place_columns(m, x, weight);
    }
    const int64_t *shape = weight.tensor->shape;
    int64_t first = x->expert * shape[1] * shape[2], first_scale = 0;
    first += x->role == MF_ROLE_EXPERT_UP ? x->n * x->k : 0;
    if (x->scheme) {
        first_scale = x->expert * mf_match_scale_rows(x->scheme, shape[1]);
        first_scale += x->role == MF_ROLE_EXPERT_UP ? mf_match_scale_rows(x->scheme, x->n) : 0;
        first_scale *= mf_match_scale_columns(x->scheme, x->k);
    }
    mf_match_place_slice(m, x, x->n, weight, first, is_down ? s->down_scale : s->gate_up_scale, first_scale);
    return MF_OK;
}

mf_status mf_match_stacked(mf_matcher *m, const mf_wanted *x, bool *is_placed)
{
    *is_placed = true;
    if (x->kind == MF_WANT_VECTOR) {
        return place_stacked_bias(m, x);
    }
    if (m->stack.layer != x->layer) {
        MF_TRY(look_for_stack(m, x));
    }
    *is_placed = m->stack.stacked;
    return *is_placed ? place_stacked(m, x) : MF_OK;
}
