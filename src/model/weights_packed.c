/* weights_packed.c - integer codes with groups and zero points as they are released: compressed-tensors'
 * pack-quantized, GPTQ, AWQ, and the zero points of int8.
 *
 * pack-quantized holds codes where kernels read them, so it is used in place (its zero points, one word for eight rows,
 * are widened here).  GPTQ and AWQ are transposed: weights_convert.c.  All keep (code - zero) * scale exactly. */
#include <string.h>

#include "base/arena.h"
#include "kernels/ops.h"
#include "model/weights_matcher.h"

/* The tensors of one matrix. */
typedef struct parts {
    const mf_st_tensor *codes, *scales, *zeros;
    int64_t columns; /* of the scale grid */
} parts;

static const mf_st_tensor *take_part(mf_matcher *m, const mf_wanted *x, const char *part)
{
    char name[MF_MAX_TENSOR_NAME];
    return mf_wanted_part(x, part, name) ? mf_match_take(m, name) : NULL;
}

static mf_status part_is_missing(mf_matcher *m, const mf_wanted *x, const char *part)
{
    char name[MF_MAX_TENSOR_NAME];
    return mf_wanted_part(x, part, name) ? mf_match_add_name(m, &m->missing, "missing", name) : MF_ERR_INTERNAL;
}

static int32_t word_at(const mf_st_tensor *t, int64_t i)
{
    int32_t w;
    memcpy(&w, t->data + 4 * i, 4);
    return w;
}

static mf_status check_part(mf_matcher *m, const mf_st_tensor *t, mf_dtype dtype, int64_t n, int64_t k,
                            const char *more, bool *ok)
{
    const int64_t shape[2] = { n, k };
    *ok = false;
    if (t->dtype != dtype) {
        return mf_match_wrong_dtype(m, t, mf_dtype_name(dtype));
    }
    if (!mf_match_has_shape(t, shape, 2)) {
        return mf_match_wrong_shape(m, t, shape, 2, more);
    }
    *ok = true;
    return MF_OK;
}

static mf_status check_scales(mf_matcher *m, const mf_st_tensor *t, int64_t n, int64_t k, bool *ok)
{
    const int64_t shape[2] = { n, k };
    *ok = false;
    if (t->dtype != MF_F32 && t->dtype != MF_BF16 && t->dtype != MF_F16) {
        return mf_match_wrong_dtype(m, t, "f32, bf16 or f16");
    }
    if (!mf_match_has_shape(t, shape, 2)) {
        return mf_match_wrong_shape(m, t, shape, 2, " (one scale per row and group of columns)");
    }
    *ok = true;
    return mf_match_check_deep(m, t);
}

/* The groups must be runs of columns: an index may only say so again. */
static mf_status check_group_index(mf_matcher *m, const mf_wanted *x, const char *part, bool *ok)
{
    const mf_st_tensor *t = take_part(m, x, part);
    *ok = true;
    if (!t) {
        return MF_OK;
    }
    if (t->dtype != MF_I32 || !mf_match_has_shape(t, &x->k, 1)) {
        *ok = false;
        return t->dtype != MF_I32 ? mf_match_wrong_dtype(m, t, "i32") : mf_match_wrong_shape(m, t, &x->k, 1, "");
    }
    for (int64_t i = 0; i < x->k; i++) {
        if (word_at(t, i) != (int32_t)(i / x->scheme->block_k)) {
            *ok = false;
            mf_fail(&m->error, MF_ERR_UNSUPPORTED,
                    "%s: tensor \"%.256s\": column %lld is in group %d; only groups of %lld columns in their order are "
                    "supported "
                    "(no desc_act, no actorder \"group\")",
                    t->file, t->name, (long long)i, (int)word_at(t, i), (long long)x->scheme->block_k);
            return mf_match_problem(m);
        }
    }
    return MF_OK;
}

static int64_t group_size(const mf_wanted *x)
{
    return x->scheme->block_k == MF_QUANT_WHOLE_ROW ? (x->k + 1) / 2 * 2 : x->scheme->block_k;
}

/* ---- pack-quantized ---- */

static mf_status check_stored_shape(mf_matcher *m, const mf_wanted *x, bool *ok)
{
    const mf_st_tensor *t = take_part(m, x, "weight_shape");
    int64_t stored[2], two = 2;
    *ok = false;
    if (!t) {
        return part_is_missing(m, x, "weight_shape");
    }
    if ((t->dtype != MF_I64 && t->dtype != MF_I32) || !mf_match_has_shape(t, &two, 1)) {
        return t->ndim == 1 && t->shape[0] == 2 ? mf_match_wrong_dtype(m, t, "i64 or i32")
                                                : mf_match_wrong_shape(m, t, &two, 1, "");
    }
    if (t->dtype == MF_I64) {
        memcpy(stored, t->data, sizeof stored);
    } else {
        stored[0] = word_at(t, 0);
        stored[1] = word_at(t, 1);
    }
    *ok = stored[0] == x->n && stored[1] == x->k;
    if (!*ok) {
        mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.256s\": expected the values %lld, %lld; got %lld, %lld",
                t->file, t->name, (long long)x->n, (long long)x->k, (long long)stored[0], (long long)stored[1]);
        return mf_match_problem(m);
    }
    return MF_OK;
}

/* Words of eight rows' zero points: [ceil(n / 8), columns].  *zeros stays NULL when all are 8. */
static mf_status widen_zeros(mf_matcher *m, const mf_wanted *x, const parts *p, const uint8_t **zeros)
{
    bool differs = false;
    uint8_t *bytes = mf_arena_array(m->arena, (size_t)x->n, (size_t)p->columns);
    if (!bytes) {
        return mf_fail(&m->error, MF_ERR_NOMEM, "%s: tensor \"%.256s\": no memory for its zero points", p->zeros->file,
                       p->zeros->name);
    }
    for (int64_t r = 0; r < x->n; r++) {
        for (int64_t g = 0; g < p->columns; g++) {
            const uint32_t word = (uint32_t)word_at(p->zeros, r / 8 * p->columns + g);
            bytes[r * p->columns + g] = word >> (r % 8 * 4) & 15;
            differs |= bytes[r * p->columns + g] != 8;
        }
    }
    *zeros = differs ? bytes : NULL;
    m->weights->stats.bytes_converted += differs ? x->n * p->columns : 0;
    return MF_OK;
}

static mf_status place_packed(mf_matcher *m, const mf_wanted *x, parts *p)
{
    bool ok, shape_ok, index_ok;
    const int64_t words = mf_div_up(x->k, 8);
    p->zeros = take_part(m, x, "weight_zero_point");
    MF_TRY(check_stored_shape(m, x, &shape_ok));
    MF_TRY(check_group_index(m, x, "weight_g_idx", &index_ok));
    MF_TRY(check_part(m, p->codes, MF_I32, x->n, words, " (eight codes per word)", &ok));
    if (!ok || !shape_ok || !index_ok) {
        return MF_OK;
    }
    MF_TRY(check_scales(m, p->scales, x->n, p->columns, &ok));
    if (!ok) {
        return MF_OK;
    }
    if (x->scheme->has_zeros && !p->zeros) {
        return part_is_missing(m, x, "weight_zero_point");
    }
    const uint8_t *data, *scales, *zeros = NULL;
    if (p->zeros) {
        MF_TRY(check_part(m, p->zeros, MF_I32, mf_div_up(x->n, 8), p->columns, " (eight zero points per word)", &ok));
        if (!ok) {
            return MF_OK;
        }
        MF_TRY(widen_zeros(m, x, p, &zeros));
        if (zeros && !x->scheme->has_zeros) {
            mf_fail(&m->error, MF_ERR_FORMAT,
                    "%s: tensor \"%.256s\": zero points other than 8; config.json says symmetric", p->zeros->file,
                    p->zeros->name);
            return mf_match_problem(m);
        }
    }
    MF_TRY(mf_match_aligned(m, p->codes, &data));
    MF_TRY(mf_match_aligned(m, p->scales, &scales));
    *x->matrix = (mf_matrix){ .data = data,
                              .n = x->n,
                              .k = x->k,
                              .row_stride = 8 * words,
                              .format = MF_FORMAT_INT4_GROUP,
                              .scale = scales,
                              .scale_dtype = p->scales->dtype,
                              .scale_row_stride = p->columns,
                              .group_size = group_size(x),
                              .zero = zeros };
    mf_match_count(m, MF_FORMAT_INT4_GROUP, mf_matrix_bytes(x->matrix));
    return MF_OK;
}

/* ---- gptq and awq ---- */

mf_status mf_match_add_conversion(mf_matcher *m, const mf_wanted *x, const mf_conversion *conversion)
{
    mf_conversion *copy = mf_arena_alloc(m->arena, sizeof *copy);
    if (!copy) {
        return mf_fail(&m->error, MF_ERR_NOMEM, "%s: out of memory", conversion->name);
    }
    *copy = *conversion;
    copy->target = x->matrix;
    copy->next = m->weights->conversions;
    m->weights->conversions = copy;
    return MF_OK;
}

static bool zeros_are_8(const mf_st_tensor *t, uint8_t plus)
{
    const uint32_t usual = 0x11111111u * (8u - plus);
    for (int64_t i = 0; i < t->num_elements; i++) {
        if ((uint32_t)word_at(t, i) != usual) {
            return false;
        }
    }
    return true;
}

static mf_status place_transposed(mf_matcher *m, const mf_wanted *x, parts *p)
{
    const bool is_awq = x->scheme->method == MF_QUANT_INT4_AWQ;
    bool ok;
    p->zeros = take_part(m, x, "qzeros");
    if (x->n % 8 != 0 || x->k % (is_awq ? 2 : 8) != 0) {
        mf_fail(&m->error, MF_ERR_UNSUPPORTED,
                "%s: tensor \"%.256s\": %lld x %lld weights do not fill whole words of eight codes", p->codes->file,
                p->codes->name, (long long)x->n, (long long)x->k);
        return mf_match_problem(m);
    }
    MF_TRY(check_part(m, p->codes, MF_I32, is_awq ? x->k : x->k / 8, is_awq ? x->n / 8 : x->n,
                      is_awq ? " (eight rows' codes per word)" : " (eight columns' codes per word)", &ok));
    if (!ok) {
        return MF_OK;
    }
    MF_TRY(check_scales(m, p->scales, p->columns, x->n, &ok));
    if (!ok) {
        return MF_OK;
    }
    if (!p->zeros) {
        return part_is_missing(m, x, "qzeros");
    }
    MF_TRY(check_part(m, p->zeros, MF_I32, p->columns, x->n / 8, " (eight rows' zero points per word)", &ok));
    if (!ok) {
        return MF_OK;
    }
    if (x->scheme->has_group_index) {
        MF_TRY(check_group_index(m, x, "g_idx", &ok));
        if (!ok) {
            return MF_OK;
        }
    }
    const uint8_t plus = x->scheme->zero_plus;
    mf_conversion conversion = { .kind = is_awq ? MF_CONVERT_AWQ : MF_CONVERT_GPTQ,
                                 .name = p->codes->name,
                                 .codes = p->codes->data,
                                 .scales = p->scales->data,
                                 .zeros = zeros_are_8(p->zeros, plus) ? NULL : p->zeros->data,
                                 .zero_plus = plus };
    *x->matrix = (mf_matrix){ .data = p->codes->data,
                              .n = x->n,
                              .k = x->k,
                              .row_stride = x->k,
                              .format = MF_FORMAT_INT4_GROUP,
                              .scale = p->scales->data,
                              .scale_dtype = p->scales->dtype,
                              .scale_row_stride = p->columns,
                              .group_size = group_size(x),
                              .zero = conversion.zeros };
    mf_match_count(m, MF_FORMAT_INT4_GROUP, mf_matrix_bytes(x->matrix));
    m->weights->stats.bytes_converted += mf_matrix_bytes(x->matrix);
    return mf_match_add_conversion(m, x, &conversion);
}

mf_status mf_match_four_bits(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t)
{
    parts p = { .codes = t, .scales = mf_match_take(m, x->scale_name), .columns = mf_div_up(x->k, x->scheme->block_k) };
    if (!p.scales) { /* the rest is taken all the same: it is not unexpected */
        static const char *const rest[] = { "weight_zero_point", "weight_shape", "weight_g_idx", "qzeros", "g_idx" };
        for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
            take_part(m, x, rest[i]);
        }
        return mf_match_add_name(m, &m->missing, "missing", x->scale_name);
    }
    return x->scheme->method == MF_QUANT_INT4_PACKED ? place_packed(m, x, &p) : place_transposed(m, x, &p);
}

/* ---- int8 ---- */

/* Zero points beside eight-bit codes: all 0 is the plain form; others are taken off the codes where the results fit. */
mf_status mf_match_int8_zeros(mf_matcher *m, const mf_wanted *x)
{
    const mf_st_tensor *t = take_part(m, x, "weight_zero_point");
    const mf_matrix *matrix = x->matrix;
    if (!t) {
        return x->scheme->has_zeros ? part_is_missing(m, x, "weight_zero_point") : MF_OK;
    }
    const int64_t count = matrix->scale_row_stride ? matrix->n : 1;
    if (t->dtype != MF_I8) {
        return mf_match_wrong_dtype(m, t, "i8");
    }
    if (t->num_elements != count || t->ndim > 2 || (t->ndim == 2 && t->shape[0] != count)) {
        const int64_t shape[2] = { count, 1 };
        return mf_match_wrong_shape(m, t, shape, 2, "");
    }
    bool differs = false;
    for (int64_t i = 0; i < count; i++) {
        differs |= t->data[i] != 0;
    }
    if (!differs) {
        return MF_OK;
    }
    if (!x->scheme->has_zeros) {
        mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.256s\": zero points other than 0; config.json says symmetric",
                t->file, t->name);
        return mf_match_problem(m);
    }
    m->weights->stats.bytes_converted += matrix->n * matrix->k;
    return mf_match_add_conversion(
        m, x,
        &(mf_conversion){ .kind = MF_CONVERT_INT8_ZEROS, .name = t->name, .codes = matrix->data, .zeros = t->data });
}
