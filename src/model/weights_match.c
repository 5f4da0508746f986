/* weights_match.c - compares a checkpoint with the tensors its config asks for and points the matrices into it.
 *
 * One walk serves loading (the first problem ends it) and checking (problems are collected).  Names that are missing or
 * unexpected are gathered over the whole walk, so that one message shows both sides of a mismatch. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/number.h"
#include "base/sys.h"
#include "kernels/ops.h"
#include "model/weights_matcher.h"

/* ---- values ---- */

const mf_st_tensor *mf_match_take(mf_matcher *m, const char *name)
{
    const mf_st_tensor *t = mf_checkpoint_find(m->checkpoint, name);
    if (t) {
        m->used[t - m->checkpoint->tensors] = 1;
    }
    return t;
}

/* The tensor's bytes at an address that suits its dtype: files may place a tensor anywhere. */
mf_status mf_match_aligned(mf_matcher *m, const mf_st_tensor *t, const uint8_t **data)
{
    *data = t->data;
    if ((uintptr_t)t->data % mf_dtype_size(t->dtype) == 0) {
        return MF_OK;
    }
    uint8_t *copy = mf_arena_alloc(m->arena, t->bytes);
    if (!copy) {
        return mf_fail(&m->error, MF_ERR_NOMEM, "%s: tensor \"%.256s\": no memory for an aligned copy of %llu bytes",
                       t->file, t->name, (unsigned long long)t->bytes);
    }
    memcpy(copy, t->data, t->bytes);
    m->weights->stats.bytes_converted += (int64_t)t->bytes;
    *data = copy;
    return MF_OK;
}

/* Element i of an aligned-or-not tensor as f32; 0 for dtypes that are no small float. */
float mf_match_value_at(const uint8_t *data, mf_dtype dtype, int64_t i)
{
    uint16_t h;
    float f;
    switch (dtype) {
    case MF_F32:
        memcpy(&f, data + 4 * i, 4);
        return f;
    case MF_F16:
        memcpy(&h, data + 2 * i, 2);
        return mf_f16_to_f32(h);
    case MF_BF16:
        memcpy(&h, data + 2 * i, 2);
        return mf_bf16_to_f32(h);
    case MF_F8_E4M3:
        return mf_e4m3_to_f32(data[i]);
    case MF_F8_E8M0:
        return mf_e8m0_to_f32(data[i]);
    default:
        return 0.0f;
    }
}

mf_status mf_match_check_finite(mf_matcher *m, const mf_st_tensor *t)
{
    for (int64_t i = 0; i < t->num_elements; i++) {
        float v = mf_match_value_at(t->data, t->dtype, i);
        if (!isfinite(v)) {
            mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.256s\": element %lld is %s; expected finite values",
                    t->file, t->name, (long long)i, isnan(v) ? "NaN" : "infinite");
            return mf_match_problem(m);
        }
    }
    return MF_OK;
}

mf_status mf_match_check_deep(mf_matcher *m, const mf_st_tensor *t)
{
    return m->options->deep && t ? mf_match_check_finite(m, t) : MF_OK;
}

void mf_match_count(mf_matcher *m, mf_format format, int64_t bytes)
{
    m->weights->stats.bytes_total += bytes;
    m->weights->stats.bytes_by_format[format] += bytes;
}

bool mf_match_float_format(mf_dtype dtype, mf_format *format)
{
    *format = dtype == MF_F32 ? MF_FORMAT_F32 : dtype == MF_BF16 ? MF_FORMAT_BF16 : MF_FORMAT_F16;
    return dtype == MF_F32 || dtype == MF_BF16 || dtype == MF_F16;
}

/* ---- vectors ---- */

/* How a vector of x->n values is stored; returns the number of dimensions. */
static int32_t vector_shape(const mf_model_config *c, const mf_wanted *x, int64_t shape[3])
{
    if (x->role == MF_ROLE_LINEAR_CONV) {
        shape[0] = x->n / c->linear_conv_size;
        shape[1] = 1;
        shape[2] = c->linear_conv_size;
        return 3;
    }
    if (x->role == MF_ROLE_CORRECTION_BIAS && c->family->correction_bias_is_row) {
        shape[0] = 1;
        shape[1] = x->n;
        return 2;
    }
    return 1;
}

static bool adds_one(const mf_model_config *c, mf_role role)
{
    return c->family->norms_add_one && (role == MF_ROLE_NORM || role == MF_ROLE_INPUT_NORM || role == MF_ROLE_POST_ATTENTION_NORM ||
                                        role == MF_ROLE_Q_NORM || role == MF_ROLE_K_NORM);
}

static mf_status place_vector(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t)
{
    mf_format format;
    int64_t shape[3] = { x->n };
    const int32_t ndim = vector_shape(m->config, x, shape);
    if (!mf_match_has_shape(t, shape, ndim)) {
        return mf_match_wrong_shape(m, t, shape, ndim, "");
    }
    if (!mf_match_float_format(t->dtype, &format)) {
        return mf_match_wrong_dtype(m, t, "f32, bf16 or f16");
    }
    mf_status found = mf_match_check_finite(m, t);
    if (found != MF_OK) {
        return found;
    }
    if (x->role == MF_ROLE_CORRECTION_BIAS && t->dtype != MF_F32 && !m->warned_bias) {
        m->warned_bias = true;
        mf_log(MF_LOG_WARN,
               "%s: tensor \"%.200s\" is %s; it decides between experts and wants f32: precision is already lost",
               t->file, t->name, mf_dtype_name(t->dtype));
    }
    mf_match_count(m, format, (int64_t)t->bytes);
    const float add = adds_one(m->config, x->role) ? 1.0f : 0.0f;
    if (t->dtype == MF_F32 && add == 0.0f) {
        const uint8_t *data;
        MF_TRY(mf_match_aligned(m, t, &data));
        *x->vector = (const float *)(const void *)data;
        return MF_OK;
    }
    float *values = mf_arena_array(m->arena, (size_t)x->n, sizeof *values);
    if (!values) {
        return mf_fail(&m->error, MF_ERR_NOMEM, "%s: tensor \"%.256s\": no memory for %lld values", t->file, t->name,
                       (long long)x->n);
    }
    for (int64_t i = 0; i < x->n; i++) {
        values[i] = mf_match_value_at(t->data, t->dtype, i);
        values[i] = add == 0.0f ? values[i] : values[i] + add; /* in f32, as transformers adds it in each forward */
    }
    m->weights->stats.bytes_converted += x->n * (int64_t)sizeof *values;
    *x->vector = values;
    return MF_OK;
}

/* ---- matrices ---- */

mf_status mf_match_make_ready(mf_matcher *m, const mf_st_tensor *t, mf_ready_tensor *out)
{
    *out = (mf_ready_tensor){ .tensor = t };
    return t ? mf_match_aligned(m, t, &out->data) : MF_OK;
}

int64_t mf_match_scale_rows(const mf_quant_scheme *scheme, int64_t n)
{
    return mf_div_up(n, scheme->block_n);
}

int64_t mf_match_scale_columns(const mf_quant_scheme *scheme, int64_t k)
{
    return mf_div_up(k, scheme->block_k);
}

static bool has_one_scale(const mf_quant_scheme *scheme)
{
    return scheme->method == MF_QUANT_FP8_TENSOR || scheme->method == MF_QUANT_INT8_TENSOR;
}

/* One [rows, k] matrix inside a tensor that may hold several: where it starts, and its scales if any. */
void mf_match_place_slice(mf_matcher *m, const mf_wanted *x, int64_t rows, mf_ready_tensor weight, int64_t first_element,
                        mf_ready_tensor scale, int64_t first_scale)
{
    mf_matrix matrix = { .n = rows, .k = x->k, .row_stride = x->k };
    int64_t size = (int64_t)mf_dtype_size(weight.tensor->dtype);
    if (x->scheme) {
        int64_t scale_size = (int64_t)mf_dtype_size(scale.tensor->dtype);
        matrix.format = mf_quant_format(x->scheme->method);
        matrix.scale_dtype = scale.tensor->dtype == MF_U8 ? MF_F8_E8M0 : scale.tensor->dtype;
        matrix.scale_row_stride = has_one_scale(x->scheme) ? 0 : mf_match_scale_columns(x->scheme, x->k);
        matrix.scale = scale.data + first_scale * scale_size;
    } else {
        mf_match_float_format(weight.tensor->dtype, &matrix.format);
    }
    matrix.data = weight.data + first_element * size;
    mf_match_count(m, matrix.format, mf_matrix_bytes(&matrix));
    *x->matrix = matrix;
}

static bool scale_fits(const mf_wanted *x, const mf_st_tensor *scale, const int64_t *shape, int32_t ndim)
{
    return has_one_scale(x->scheme) ? scale->num_elements == 1 && scale->ndim <= 2
                                    : mf_match_has_shape(scale, shape, ndim);
}

/* dtype of a weight and presence, shape and dtype of its scale.  *ok: the tensors can be used. */
mf_status mf_match_check_format(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t, const char *scale_name,
                              const mf_st_tensor *scale, const int64_t *scale_shape, int32_t scale_ndim, bool *ok)
{
    mf_format unused;
    *ok = false;
    if (!x->scheme && scale) {
        mf_fail(
            &m->error, MF_ERR_FORMAT,
            "%s: tensor \"%.256s\" is a scale, but its weight is %s and config.json does not say that it is quantised",
            scale->file, scale->name, mf_dtype_name(t->dtype));
        return mf_match_problem(m);
    }
    if (!x->scheme) {
        *ok = mf_match_float_format(t->dtype, &unused);
        return *ok ? MF_OK
                   : mf_match_wrong_dtype(m, t, "f32, bf16 or f16 (config.json does not say that it is quantised)");
    }
    const mf_quant_method method = x->scheme->method;
    const bool by_block = method == MF_QUANT_FP8_BLOCK, is_int = mf_quant_format(method) == MF_FORMAT_INT8_CHANNEL;
    if (t->dtype != (is_int ? MF_I8 : MF_F8_E4M3)) {
        return mf_match_wrong_dtype(
            m, t,
            is_int ? "i8 (config.json: quantization_config, and the module is not in ignore)"
                   : "f8_e4m3 (config.json: quantization_config, and the module is not in modules_to_not_convert)");
    }
    if (!scale) {
        return mf_match_add_name(m, &m->missing, "missing", scale_name);
    }
    if (!scale_fits(x, scale, scale_shape, scale_ndim)) {
        const int64_t one = 1;
        return has_one_scale(x->scheme)
                   ? mf_match_wrong_shape(m, scale, &one, 1, " (one scale per tensor)")
                   : mf_match_wrong_shape(m, scale, scale_shape, scale_ndim,
                                          by_block ? " (one scale per 128 x 128 block)" : " (one scale per row)");
    }
    if (!by_block) {
        *ok = mf_match_float_format(scale->dtype, &unused);
        return *ok ? MF_OK : mf_match_wrong_dtype(m, scale, "f32, bf16 or f16");
    }
    bool byte_scale = scale->dtype == MF_F8_E8M0 || (scale->dtype == MF_U8 && x->scheme->ue8m0_scales);
    if (scale->dtype != MF_F32 && scale->dtype != MF_BF16 && !byte_scale) {
        return mf_match_wrong_dtype(m, scale,
                                    x->scheme->ue8m0_scales ? "f32, bf16, f8_e8m0 or u8" : "f32, bf16 or f8_e8m0");
    }
    *ok = true;
    return MF_OK;
}

static mf_status place_matrix(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t)
{
    const mf_st_tensor *scale = x->scale_name[0] ? mf_match_take(m, x->scale_name) : NULL;
    if (!scale && x->scheme && x->scheme->method == MF_QUANT_FP8_TENSOR) { /* under either name */
        char other[MF_MAX_TENSOR_NAME];
        scale = mf_wanted_part(x, "weight_scale", other) ? mf_match_take(m, other) : NULL;
    }
    int64_t shape[2] = { x->n, x->k };
    bool padded = x->more_rows_allowed && t->ndim == 2 && t->shape[1] == x->k && t->shape[0] > x->n;
    if (!mf_match_has_shape(t, shape, 2) && !padded) {
        return mf_match_wrong_shape(m, t, shape, 2, x->more_rows_allowed ? " or more rows" : "");
    }
    int64_t scale_shape[2] = { 0, 0 };
    if (x->scheme) {
        scale_shape[0] = mf_match_scale_rows(x->scheme, t->shape[0]);
        scale_shape[1] = mf_match_scale_columns(x->scheme, x->k);
    }
    bool ok;
    MF_TRY(mf_match_check_format(m, x, t, x->scale_name, scale, scale_shape, 2, &ok));
    if (!ok) {
        return MF_OK;
    }
    MF_TRY(mf_match_check_deep(m, t));
    MF_TRY(mf_match_check_deep(m, scale));
    mf_ready_tensor weight_ready, scale_ready;
    MF_TRY(mf_match_make_ready(m, t, &weight_ready));
    MF_TRY(mf_match_make_ready(m, scale, &scale_ready));
    mf_match_place_slice(m, x, t->shape[0], weight_ready, 0, scale_ready, 0);
    return x->matrix->format == MF_FORMAT_INT8_CHANNEL ? mf_match_int8_zeros(m, x) : MF_OK;
}

/* ---- the walk ---- */

/* Tied embeddings: the head may be stored all the same, but then it must be the embedding. */
static mf_status place_tied_head(mf_matcher *m, const mf_wanted *x)
{
    mf_weights *w = m->weights;
    w->lm_head = w->embed_tokens;
    const mf_st_tensor *head = mf_match_take(m, x->name);
    if (!head || !w->embed_tokens.data) {
        return MF_OK;
    }
    char name[MF_MAX_TENSOR_NAME];
    mf_tensor_name(m->config->family, m->config->family->names[MF_ROLE_EMBED], -1, -1, name, sizeof name);
    const mf_st_tensor *embed = mf_checkpoint_find(m->checkpoint, name);
    if (embed && embed->dtype == head->dtype && mf_match_has_shape(head, embed->shape, embed->ndim) &&
        memcmp(embed->data, head->data, head->bytes) == 0) {
        return MF_OK;
    }
    mf_fail(&m->error, MF_ERR_FORMAT,
            "%s: tensor \"%.256s\" differs from \"%.256s\"; tie_word_embeddings in config.json says that they are one",
            head->file, head->name, name);
    return mf_match_problem(m);
}

static mf_status place(void *context, const mf_wanted *x)
{
    mf_matcher *m = context;
    if (x->optional) {
        return place_tied_head(m, x);
    }
    if (x->scheme && x->scheme->method == MF_QUANT_MXFP4) {
        return mf_match_mxfp4(m, x);
    }
    if (x->expert >= 0) {
        bool is_placed;
        MF_TRY(mf_match_stacked(m, x, &is_placed));
        if (is_placed) {
            return MF_OK;
        }
    }
    const mf_st_tensor *t = mf_match_take(m, x->name);
    if (!t) {
        if (x->scale_name[0]) {
            mf_match_take(m, x->scale_name); /* alone it is not worth a second name */
        }
        return mf_match_add_name(m, &m->missing, "missing", x->name);
    }
    if (x->kind == MF_WANT_VECTOR) {
        return place_vector(m, x, t);
    }
    return x->scheme && mf_quant_format(x->scheme->method) == MF_FORMAT_INT4_GROUP ? mf_match_four_bits(m, x, t)
                                                                                   : place_matrix(m, x, t);
}

mf_status mf_weights_match(mf_weights *weights, const mf_match_options *options, int32_t *num_findings, mf_error *err)
{
    mf_matcher *m = mf_alloc_zero(sizeof *m);
    mf_status status = MF_OK;
    if (!m) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", options->dir);
    }
    m->config = weights->config;
    m->checkpoint = weights->checkpoint;
    m->weights = weights;
    m->arena = weights->arena;
    m->options = options;
    m->stack.layer = -1;
    m->used = mf_alloc_zero((size_t)m->checkpoint->num_tensors);
    int64_t modules = m->config->quant.excluded.num_names + m->config->quant.excluded.num_patterns;
    m->module_matched = modules ? mf_alloc_zero((size_t)modules) : NULL;
    if (!m->used || (modules && !m->module_matched)) {
        status = mf_fail(&m->error, MF_ERR_NOMEM, "%s: out of memory", options->dir);
        goto done;
    }
    MF_TRY_GOTO(mf_tensor_map_walk(m->config, weights, place, m), done);
    MF_TRY_GOTO(mf_match_look_at_rest(m), done);
    status = mf_match_complain_about_names(m);
done:
    if (options->report && status == MF_ERR_LIMIT) { /* enough findings */
        status = MF_OK;
    }
    if (num_findings) {
        *num_findings += m->num_findings;
    }
    if (status != MF_OK && err) {
        *err = m->error;
        err->status = status;
    }
    mf_free(m->used);
    mf_free(m->module_matched);
    mf_free(m);
    return status;
}
