/* tensor_check.c - checks of tensor views: see tensor_check.h. */
#include "kernels/tensor_check.h"

#include <stdio.h>
#include <string.h>

#include "base/sys.h"

enum { TEXT_SIZE = 160 };

bool mf_tensor_present(const mf_tensor *t)
{
    return t->data != NULL || t->ndim != 0;
}

bool mf_tensor_empty(const mf_tensor *t)
{
    for (int32_t i = 0; i < t->ndim && i < MF_MAX_DIMS; i++) {
        if (t->shape[i] == 0) {
            return true;
        }
    }
    return false;
}

/* "f32, bf16 or f16" */
static const char *dtype_set_text(uint32_t set, char *text)
{
    size_t n = 0;
    text[0] = '\0';
    for (int d = 0; d < MF_DTYPE_COUNT; d++) {
        if (!(set & MF_DT(d))) {
            continue;
        }
        uint32_t rest = set & ~(MF_DT(d + 1) - 1u);
        const char *join = n == 0 ? "" : rest ? ", " : " or ";
        int k = snprintf(text + n, TEXT_SIZE - n, "%s%s", join, mf_dtype_name((mf_dtype)d));
        if (k < 0 || (size_t)k >= TEXT_SIZE - n) {
            break;
        }
        n += (size_t)k;
    }
    return text;
}

/* "[3, 16]"; with `wanted`, -1 reads "any". */
static const char *list_text(int32_t n, const int64_t *list, bool wanted, char *text)
{
    size_t used = (size_t)snprintf(text, TEXT_SIZE, "[");
    for (int32_t i = 0; i < n; i++) {
        const char *join = i > 0 ? ", " : "";
        int k = wanted && list[i] == MF_ANY ? snprintf(text + used, TEXT_SIZE - used, "%sany", join)
                                            : snprintf(text + used, TEXT_SIZE - used, "%s%lld", join, (long long)list[i]);
        used += k > 0 ? (size_t)k : 0;
    }
    snprintf(text + used, TEXT_SIZE - used, "]");
    return text;
}

/* Elements from data to one past the last element.  Axes come from the innermost outward so that a row's extent is known
 * when its stride is checked. */
static mf_status check_strides(const mf_tensor *t, const char *name, int64_t *extent, mf_error *err)
{
    int64_t inner = 1;
    for (int32_t i = t->ndim - 1; i >= 0; i--) {
        int64_t n = t->shape[i];
        if (n == 1) {
            continue;
        }
        char found[TEXT_SIZE];
        bool last = i == t->ndim - 1;
        if (last ? t->stride[i] != 1 : t->stride[i] < inner) {
            char want[40];
            snprintf(want, sizeof want, last ? "1" : "at least %lld", (long long)inner);
            return mf_fail(err, MF_ERR_INVALID, "%s: stride %s; expected %s for axis %d", name,
                           list_text(t->ndim, t->stride, false, found), want, (int)i);
        }
        int64_t step;
        if (!mf_mul_ok(n - 1, t->stride[i], &step) || !mf_add_ok(inner, step, &inner)) {
            return mf_fail(err, MF_ERR_INVALID, "%s: stride %s times shape does not fit in 63 bits", name,
                           list_text(t->ndim, t->stride, false, found));
        }
    }
    *extent = inner;
    return MF_OK;
}

mf_status mf_check_tensor(const mf_tensor *t, const char *name, uint32_t dtypes, int32_t ndim, const int64_t *shape,
                          mf_error *err)
{
    char found[TEXT_SIZE];
    char want[TEXT_SIZE];
    if (!mf_tensor_present(t)) {
        return mf_fail(err, MF_ERR_INVALID, "%s is missing", name);
    }
    if ((uint32_t)t->dtype >= MF_DTYPE_COUNT || !(dtypes & MF_DT(t->dtype))) {
        return mf_fail(err, MF_ERR_INVALID, "%s: dtype %s; expected %s", name, mf_dtype_name(t->dtype),
                       dtype_set_text(dtypes, want));
    }
    if (t->ndim < 0 || t->ndim > MF_MAX_DIMS) {
        return mf_fail(err, MF_ERR_INVALID, "%s: ndim %d; expected %d", name, (int)t->ndim, (int)ndim);
    }
    bool same = t->ndim == ndim;
    for (int32_t i = 0; same && i < ndim; i++) {
        same = t->shape[i] >= 0 && (shape[i] == MF_ANY || t->shape[i] == shape[i]);
    }
    if (!same) {
        return mf_fail(err, MF_ERR_INVALID, "%s: shape %s; expected %s", name, list_text(t->ndim, t->shape, false, found),
                       list_text(ndim, shape, true, want));
    }
    if (mf_tensor_empty(t)) {
        return MF_OK;
    }
    if (!t->data) {
        return mf_fail(err, MF_ERR_INVALID, "%s: data is NULL with shape %s", name, list_text(ndim, t->shape, false, found));
    }
    int64_t extent = 0;
    int64_t bytes;
    MF_TRY(check_strides(t, name, &extent, err));
    if (!mf_mul_ok(extent, (int64_t)mf_dtype_size(t->dtype), &bytes) || bytes > PTRDIFF_MAX) {
        return mf_fail(err, MF_ERR_INVALID, "%s: %lld elements do not fit in memory", name, (long long)extent);
    }
    return MF_OK;
}

mf_status mf_check_1d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, mf_error *err)
{
    return mf_check_tensor(t, name, dtypes, 1, (int64_t[]){ n0 }, err);
}

mf_status mf_check_2d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, int64_t n1, mf_error *err)
{
    return mf_check_tensor(t, name, dtypes, 2, (int64_t[]){ n0, n1 }, err);
}

mf_status mf_check_3d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, int64_t n1, int64_t n2,
                      mf_error *err)
{
    return mf_check_tensor(t, name, dtypes, 3, (int64_t[]){ n0, n1, n2 }, err);
}

mf_status mf_check_optional_1d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, mf_error *err)
{
    return mf_tensor_present(t) ? mf_check_1d(t, name, dtypes, n0, err) : MF_OK;
}

mf_status mf_check_optional_2d(const mf_tensor *t, const char *name, uint32_t dtypes, int64_t n0, int64_t n1, mf_error *err)
{
    return mf_tensor_present(t) ? mf_check_2d(t, name, dtypes, n0, n1, err) : MF_OK;
}

mf_status mf_check_aligned(const mf_tensor *t, const char *name, mf_error *err)
{
    size_t size = mf_dtype_size(t->dtype);
    if (t->data && (uintptr_t)t->data % size != 0) {
        return mf_fail(err, MF_ERR_INVALID, "%s: data is not aligned to its %s elements", name, mf_dtype_name(t->dtype));
    }
    return MF_OK;
}

/* Bytes of a checked view; 0 when it has none or has gaps. */
static size_t dense_bytes(const mf_tensor *t)
{
    if (!t->data || mf_tensor_empty(t)) {
        return 0;
    }
    int64_t count = 1;
    for (int32_t i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] > 1 && t->stride[i] != count) {
            return 0;
        }
        count *= t->shape[i];
    }
    return (size_t)count * mf_dtype_size(t->dtype);
}

mf_status mf_check_disjoint(const mf_tensor *a, const char *a_name, const mf_tensor *b, const char *b_name, mf_error *err)
{
    uintptr_t a0 = (uintptr_t)a->data;
    uintptr_t b0 = (uintptr_t)b->data;
    size_t a_bytes = dense_bytes(a);
    size_t b_bytes = dense_bytes(b);
    if (a_bytes > 0 && b_bytes > 0 && (a0 <= b0 ? b0 - a0 < a_bytes : a0 - b0 < b_bytes)) {
        return mf_fail(err, MF_ERR_INVALID, "%s overlaps %s", a_name, b_name);
    }
    return MF_OK;
}

mf_status mf_check_rows(const mf_tensor *num_valid_tokens, const mf_tensor *row_valid, int64_t num_tokens, bool is_readable,
                        int64_t *num_valid, mf_error *err)
{
    MF_TRY(mf_check_optional_1d(num_valid_tokens, "num_valid_tokens", MF_DT(MF_I32), 1, err));
    MF_TRY(mf_check_optional_1d(row_valid, "row_valid", MF_DT(MF_U8), num_tokens, err));
    *num_valid = num_tokens;
    if (num_valid_tokens->data && is_readable) {
        int32_t n;
        memcpy(&n, num_valid_tokens->data, sizeof n);
        *num_valid = n < 0 ? 0 : n < num_tokens ? n : num_tokens;
    }
    return MF_OK;
}

mf_status mf_check_workspace(const void *workspace, size_t bytes, size_t needed, mf_error *err)
{
    if (bytes < needed) {
        return mf_fail(err, MF_ERR_INVALID, "workspace: %zu bytes; expected at least %zu", bytes, needed);
    }
    if (needed > 0 && (!workspace || (uintptr_t)workspace % 64 != 0)) {
        return mf_fail(err, MF_ERR_INVALID, "workspace: %s; expected 64-byte aligned memory",
                       workspace ? "misaligned" : "NULL");
    }
    return MF_OK;
}
