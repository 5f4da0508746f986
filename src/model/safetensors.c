/* safetensors.c - the validator of one .safetensors file and the list it fills: see safetensors.h.
 *
 * Layout: 8 bytes little-endian header length, that many bytes of JSON {name: {dtype, shape, data_offsets: [begin,
 * end]}}, then the data, which the tensors must cover from its first to its last byte without holes or overlaps. */
#include "model/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "model/checkpoint.h"

/* Every other name is refused, whether the tensor is used or not. */
static const struct {
    const char *name;
    mf_dtype dtype;
} dtypes[] = { { "F32", MF_F32 },         { "F16", MF_F16 },         { "BF16", MF_BF16 },
               { "F8_E4M3", MF_F8_E4M3 }, { "F8_E8M0", MF_F8_E8M0 }, { "I8", MF_I8 },
               { "U8", MF_U8 },           { "I32", MF_I32 },         { "I64", MF_I64 } };

enum { NUM_DTYPES = sizeof dtypes / sizeof dtypes[0] };

/* ---- one entry of the header ---- */

typedef struct entry {
    mf_st_tensor tensor; /* data not set yet; bytes = end - begin */
    uint64_t begin, end; /* inside the data part */
} entry;

static mf_status bad_entry(mf_error *err, const char *file, const char *tensor, const char *what)
{
    return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\": %s", file, tensor, what);
}

static mf_status read_dtype(const char *file, const char *name, const json_t *value, mf_dtype *dtype, mf_error *err)
{
    const char *text = json_string_value(value);
    if (!text) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\": dtype: expected a string; got %s", file, name,
                       mf_json_type_name(value));
    }
    for (int i = 0; i < NUM_DTYPES; i++) {
        if (strcmp(text, dtypes[i].name) == 0) {
            *dtype = dtypes[i].dtype;
            return MF_OK;
        }
    }
    return mf_fail(
        err, MF_ERR_UNSUPPORTED,
        "%s: tensor \"%.200s\": unknown dtype \"%.40s\"; known are F32, F16, BF16, F8_E4M3, F8_E8M0, I8, U8, I32, I64",
        file, name, text);
}

/* *elements = the product of the shape, *bytes = times the dtype's size, each step checked. */
static mf_status read_shape(const char *file, const char *name, const json_t *value, mf_st_tensor *t, uint64_t *bytes,
                            mf_error *err)
{
    if (!json_is_array(value) || json_array_size(value) > MF_ST_MAX_DIMS) {
        return bad_entry(err, file, name, "shape: expected a list of at most 8 sizes");
    }
    t->ndim = (int32_t)json_array_size(value);
    int64_t product = 1;
    bool fits = true, empty = false;
    for (int32_t i = 0; i < t->ndim; i++) {
        const json_t *item = json_array_get(value, (size_t)i);
        if (!json_is_integer(item) || json_integer_value(item) < 0) {
            return bad_entry(err, file, name, "shape: expected integers that are not negative");
        }
        t->shape[i] = json_integer_value(item);
        empty |= t->shape[i] == 0;
        fits = fits && mf_mul_ok(product, t->shape[i], &product);
    }
    int64_t total = 0;
    fits = fits && mf_mul_ok(product, (int64_t)mf_dtype_size(t->dtype), &total);
    if (!fits) { /* also when another size is 0: nothing that big is meant */
        return bad_entry(err, file, name, "shape: the product of the sizes overflows");
    }
    t->num_elements = empty ? 0 : product;
    *bytes = (uint64_t)total;
    return MF_OK;
}

static mf_status read_entry(const char *file, const char *name, const json_t *value, entry *e, mf_error *err)
{
    if (!*name || strlen(name) > MF_ST_MAX_NAME) {
        return bad_entry(err, file, name, "the name's length: expected 1..512 bytes");
    }
    if (!json_is_object(value)) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\": expected an object; got %s", file, name,
                       mf_json_type_name(value));
    }
    const json_t *dtype = json_object_get(value, "dtype"), *shape = json_object_get(value, "shape");
    const json_t *offsets = json_object_get(value, "data_offsets");
    if (json_object_size(value) != 3 || !dtype || !shape || !offsets) {
        return bad_entry(err, file, name, "expected exactly the keys dtype, shape and data_offsets");
    }
    mf_st_tensor *t = &e->tensor;
    *t = (mf_st_tensor){ .file = file };
    MF_TRY(read_dtype(file, name, dtype, &t->dtype, err));
    MF_TRY(read_shape(file, name, shape, t, &t->bytes, err));
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin)) {
        return bad_entry(err, file, name, "data_offsets: expected [begin, end] with 0 <= begin <= end");
    }
    e->begin = (uint64_t)json_integer_value(begin);
    e->end = (uint64_t)json_integer_value(end);
    if (e->end - e->begin != t->bytes) {
        return mf_fail(err, MF_ERR_FORMAT,
                       "%s: tensor \"%.200s\": data_offsets span %" PRIu64
                       " bytes; its shape and dtype %s need %" PRIu64,
                       file, name, e->end - e->begin, mf_dtype_name(t->dtype), t->bytes);
    }
    return MF_OK;
}

/* ---- one file ---- */

static int compare_entries(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Entries in the order of their offsets: each must begin where the one before ended, the last end at the file's end. */
static mf_status check_offsets(const entry *entries, size_t count, const char *file, uint64_t data_start,
                               uint64_t data_size, mf_error *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        const entry *e = &entries[i];
        if (e->begin != at) {
            return mf_fail(err, MF_ERR_FORMAT,
                           "%s: tensor \"%.200s\": begins at data byte %" PRIu64 "; expected %" PRIu64 ", %s%.200s%s",
                           file, e->tensor.name, e->begin, at, i ? "the end of \"" : "the first byte",
                           i ? e[-1].tensor.name : "", i ? "\"" : "");
        }
        at = e->end;
    }
    if (at == data_size) {
        return MF_OK;
    }
    if (at < data_size) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: %" PRIu64 " bytes follow the last tensor's end at byte %" PRIu64, file,
                       data_size - at, data_start + at);
    }
    size_t first = 0;
    while (entries[first].end <= data_size) {
        first++;
    }
    const entry *e = &entries[first];
    mf_status status = mf_fail(err, MF_ERR_FORMAT,
                               "%s: tensor \"%.200s\" needs bytes %" PRIu64 "..%" PRIu64 "; the file ends at %" PRIu64
                               ", %" PRIu64 " bytes before the end of its last tensor (%zu of %zu tensors incomplete)",
                               file, e->tensor.name, data_start + e->begin, data_start + e->end, data_start + data_size,
                               at - data_size, count - first, count);
    mf_error_advise(err, "the file is truncated: download it again");
    return status;
}

static mf_status check_metadata(const json_t *value, const char *file, mf_error *err)
{
    if (!json_is_object(value)) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: __metadata__: expected an object; got %s", file,
                       mf_json_type_name(value));
    }
    const char *key;
    json_t *item;
    json_object_foreach((json_t *)(uintptr_t)value, key, item)
    {
        if (!json_is_string(item)) {
            return mf_fail(err, MF_ERR_FORMAT, "%s: __metadata__ key \"%.100s\": expected a string; got %s", file, key,
                           mf_json_type_name(item));
        }
    }
    return MF_OK;
}

static mf_status reserve(mf_checkpoint *c, size_t more)
{
    int64_t need = c->num_tensors + (int64_t)more;
    if (need <= c->capacity) {
        return MF_OK;
    }
    int64_t capacity = c->capacity * 2 > need ? c->capacity * 2 : need;
    mf_st_tensor *grown = mf_resize_array(c->tensors, (size_t)capacity, sizeof *grown);
    if (!grown) {
        return MF_ERR_NOMEM;
    }
    c->tensors = grown;
    c->capacity = capacity;
    return MF_OK;
}

static mf_status add_entries(mf_checkpoint *c, const json_t *header, const uint8_t *data, uint64_t data_start,
                             uint64_t data_size, const char *file, mf_error *err)
{
    entry *entries = mf_alloc_array(json_object_size(header) + 1, sizeof *entries);
    if (!entries) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", file);
    }
    mf_status status = MF_OK;
    size_t count = 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)header, name, value)
    {
        if (strcmp(name, "__metadata__") == 0) {
            MF_TRY_GOTO(check_metadata(value, file, err), done);
            continue;
        }
        MF_TRY_GOTO(read_entry(file, name, value, &entries[count], err), done);
        entries[count++].tensor.name = name; /* the JSON's, until all is known to be well */
    }
    qsort(entries, count, sizeof *entries, compare_entries);
    MF_TRY_GOTO(check_offsets(entries, count, file, data_start, data_size, err), done);
    bool nomem = reserve(c, count) != MF_OK;
    for (size_t i = 0; i < count && !nomem; i++) {
        mf_st_tensor t = entries[i].tensor;
        t.name = mf_arena_strdup(&c->arena, t.name);
        t.file_offset = data_start + entries[i].begin;
        t.data = data + t.file_offset;
        nomem = !t.name;
        c->tensors[c->num_tensors + (int64_t)i] = t;
        c->bytes += (int64_t)t.bytes;
    }
    if (nomem) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory for %zu tensors", file, count);
    } else {
        c->num_tensors += (int64_t)count;
    }
done:
    mf_free(entries);
    return status;
}

mf_status mf_checkpoint_add(mf_checkpoint *c, const uint8_t *data, uint64_t size, const char *file, mf_error *err)
{
    if (size < 8) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: %" PRIu64 " bytes long; expected at least the 8 of the header's length",
                       file, size);
    }
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | data[i];
    }
    if (length > MF_ST_MAX_HEADER || length > size - 8) {
        static const char lfs[] = "version https://git-lfs";
        mf_status status = mf_fail(err, MF_ERR_FORMAT, "%s: header length: expected at most %" PRIu64 "; got %" PRIu64,
                                   file, size - 8 < MF_ST_MAX_HEADER ? size - 8 : (uint64_t)MF_ST_MAX_HEADER, length);
        if (size >= sizeof lfs - 1 && memcmp(data, lfs, sizeof lfs - 1) == 0) {
            mf_error_advise(err, "this is a Git LFS pointer, not the weights: download the file itself");
        }
        return status;
    }
    /* A hostile header buys at most some 250 bytes of tree per value; a real entry has twelve values and a large body.
     */
    mf_json_limits limits = { .max_depth = 8, .max_values = 200000 + (int64_t)(size / 512), .top_is_object = true };
    json_t *header = NULL;
    char what[600];
    snprintf(what, sizeof what, "%s: header", file);
    MF_TRY(mf_json_parse((const char *)data + 8, (size_t)length, what, &limits, &header, err));
    mf_status status = add_entries(c, header, data, 8 + length, size - 8 - length, file, err);
    json_decref(header);
    return status;
}

/* ---- the list ---- */

/* qsort has no context, so whole tensors' names travel as pairs. */
typedef struct name_row {
    const char *name;
    int64_t index;
} name_row;

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const name_row *)a)->name, ((const name_row *)b)->name);
}

mf_status mf_checkpoint_index(mf_checkpoint *c, mf_error *err)
{
    size_t n = (size_t)c->num_tensors;
    name_row *rows = mf_alloc_array(n + 1, sizeof *rows);
    c->by_name = mf_alloc_array(n + 1, sizeof *c->by_name);
    if (!rows || !c->by_name) {
        mf_free(rows);
        return mf_fail(err, MF_ERR_NOMEM, "out of memory for the names of %zu tensors", n);
    }
    for (size_t i = 0; i < n; i++) {
        rows[i] = (name_row){ c->tensors[i].name, (int64_t)i };
    }
    qsort(rows, n, sizeof *rows, compare_names);
    mf_status status = MF_OK;
    for (size_t i = 0; i < n; i++) {
        c->by_name[i] = rows[i].index;
        if (i > 0 && strcmp(rows[i].name, rows[i - 1].name) == 0) {
            status = mf_fail(err, MF_ERR_FORMAT, "tensor \"%.200s\" stands in %s and in %s", rows[i].name,
                             c->tensors[rows[i - 1].index].file, c->tensors[rows[i].index].file);
            break;
        }
    }
    mf_free(rows);
    return status;
}

const mf_st_tensor *mf_checkpoint_find(const mf_checkpoint *c, const char *name)
{
    int64_t low = 0, high = c->num_tensors;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        const mf_st_tensor *t = &c->tensors[c->by_name[mid]];
        int order = strcmp(name, t->name);
        if (order == 0) {
            return t;
        }
        if (order > 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return NULL;
}

int64_t mf_checkpoint_num_tensors(const mf_checkpoint *c)
{
    return c->num_tensors;
}

const mf_st_tensor *mf_checkpoint_tensor(const mf_checkpoint *c, int64_t index)
{
    return &c->tensors[index];
}

int32_t mf_checkpoint_num_files(const mf_checkpoint *c)
{
    return c->num_shards;
}

int64_t mf_checkpoint_bytes(const mf_checkpoint *c)
{
    return c->bytes;
}

mf_status mf_safetensors_parse(const uint8_t *data, uint64_t size, const char *name, mf_checkpoint **out, mf_error *err)
{
    *out = NULL;
    mf_checkpoint *c = mf_alloc_zero(sizeof *c);
    const char *file = c ? mf_arena_strdup(&c->arena, name) : NULL;
    mf_status status = MF_OK;
    if (!file) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
        goto fail;
    }
    MF_TRY_GOTO(mf_checkpoint_add(c, data, size, file, err), fail);
    MF_TRY_GOTO(mf_checkpoint_index(c, err), fail);
    *out = c;
    return MF_OK;
fail:
    mf_checkpoint_close(&c);
    return status;
}

void mf_checkpoint_close(mf_checkpoint **checkpoint)
{
    mf_checkpoint *c = *checkpoint;
    if (c) {
        for (int32_t i = 0; i < c->num_shards; i++) {
            mf_file_close(&c->shards[i].file);
        }
        mf_free(c->shards);
        mf_free(c->tensors);
        mf_free(c->by_name);
        mf_arena_clear(&c->arena);
        mf_free(c);
        *checkpoint = NULL;
    }
}
