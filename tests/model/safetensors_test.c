/* safetensors_test.c - the validator of file bytes: what it accepts, and what each refusal says. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sys.h"
#include "checkpoint_writer.h"
#include "model/safetensors.h"
#include "test.h"

/* A file's bytes: length, header text, data_bytes zeros. */
static uint8_t *make_file(const char *header, size_t data_bytes, size_t *size)
{
    size_t n = strlen(header);
    uint8_t *file = calloc(1, 8 + n + data_bytes + 1);
    for (int i = 0; i < 8; i++) {
        file[i] = (uint8_t)((uint64_t)n >> (8 * i));
    }
    memcpy(file + 8, header, n);
    *size = 8 + n + data_bytes;
    return file;
}

static mf_status parse_text(const char *header, size_t data_bytes, mf_checkpoint **c, mf_error *err)
{
    size_t size;
    uint8_t *file = make_file(header, data_bytes, &size);
    mf_status status = mf_safetensors_parse(file, size, "m.safetensors", c, err);
    free(file);
    return status;
}

#define T(name, dtype, shape, begin, end)                                                                              \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

TEST(tensors_are_found_by_name_with_shape_dtype_and_place)
{
    size_t size;
    uint8_t *file = make_file(
        "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "F32", "[2,3]", 4, 28) "," T("a", "BF16", "[2]", 0, 4) "," T(
            "none", "I8", "[0,7]", 28, 28) "," T("scalar", "I64", "[]", 28, 36) "}   ",
        36, &size);
    mf_checkpoint *c;
    mf_error err;
    CHECK_OK(mf_safetensors_parse(file, size, "m.safetensors", &c, &err), err);
    CHECK_EQ(mf_checkpoint_num_tensors(c), 4);
    CHECK_EQ(mf_checkpoint_bytes(c), 36);
    const mf_st_tensor *t = mf_checkpoint_find(c, "b");
    CHECK(t != NULL);
    CHECK_EQ(t->dtype, MF_F32);
    CHECK_EQ(t->ndim, 2);
    CHECK_EQ(t->shape[1], 3);
    CHECK_EQ(t->num_elements, 6);
    CHECK_EQ(t->file_offset, size - 36 + 4);
    CHECK(t->data == file + t->file_offset);
    CHECK_EQ(mf_checkpoint_find(c, "none")->num_elements, 0);
    CHECK_EQ(mf_checkpoint_find(c, "scalar")->num_elements, 1);
    CHECK(mf_checkpoint_find(c, "") == NULL);
    CHECK(mf_checkpoint_find(c, "aa") == NULL);
    CHECK(mf_checkpoint_find(c, "__metadata__") == NULL);
    mf_checkpoint_close(&c);
    free(file);
}

TEST(every_known_dtype_is_read)
{
    static const struct {
        const char *name;
        mf_dtype dtype;
        int size;
    } rows[] = { { "F32", MF_F32, 4 },         { "F16", MF_F16, 2 },         { "BF16", MF_BF16, 2 },
                 { "F8_E4M3", MF_F8_E4M3, 1 }, { "F8_E8M0", MF_F8_E8M0, 1 }, { "I8", MF_I8, 1 },
                 { "U8", MF_U8, 1 },           { "I32", MF_I32, 4 },         { "I64", MF_I64, 8 } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char header[200];
        snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%d]}}",
                 rows[i].name, 3 * rows[i].size);
        mf_checkpoint *c;
        mf_error err;
        CHECK_OK(parse_text(header, (size_t)(3 * rows[i].size), &c, &err), err);
        CHECK_EQ(mf_checkpoint_find(c, "x")->dtype, rows[i].dtype);
        mf_checkpoint_close(&c);
    }
}

TEST(each_broken_header_is_refused_with_its_reason)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        mf_status status;
        const char *message;
    } rows[] = {
        { "", 0, MF_ERR_FORMAT, "m.safetensors: header: not valid JSON" },
        { "[]", 0, MF_ERR_FORMAT, "expected a JSON object at the top; got a list" },
        { "{\"a\":", 0, MF_ERR_FORMAT, "not valid JSON" },
        { "{} x", 0, MF_ERR_FORMAT, "not valid JSON" },
        { "{\"a\xff\":1}", 0, MF_ERR_FORMAT, "not valid UTF-8 at byte 3" },
        { "{\"a\\u0000b\":1}", 0, MF_ERR_FORMAT, "not valid JSON" },
        { "{\"__metadata__\":[]}", 0, MF_ERR_FORMAT, "__metadata__: expected an object; got a list" },
        { "{\"__metadata__\":{\"k\":1}}", 0, MF_ERR_FORMAT,
          "__metadata__ key \"k\": expected a string; got an integer" },
        { "{\"a\":7}", 0, MF_ERR_FORMAT, "tensor \"a\": expected an object; got an integer" },
        { "{\"\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, MF_ERR_FORMAT, "the name's length" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, MF_ERR_FORMAT,
          "tensor \"a\": expected exactly the keys dtype, shape and data_offsets" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, MF_ERR_FORMAT,
          "expected exactly the keys" },
        { "{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, MF_ERR_FORMAT,
          "tensor \"a\": dtype: expected a string; got an integer" },
        { "{" T("a", "F8_E5M2", "[4]", 0, 4) "}", 4, MF_ERR_UNSUPPORTED,
          "tensor \"a\": unknown dtype \"F8_E5M2\"; known are F32" },
        { "{" T("a", "BOOL", "[4]", 0, 4) "}", 4, MF_ERR_UNSUPPORTED, "unknown dtype \"BOOL\"" },
        { "{" T("a", "f32", "[1]", 0, 4) "}", 4, MF_ERR_UNSUPPORTED, "unknown dtype \"f32\"" },
        { "{" T("a", "F32", "4", 0, 4) "}", 4, MF_ERR_FORMAT, "shape: expected a list of at most 8 sizes" },
        { "{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, MF_ERR_FORMAT, "at most 8 sizes" },
        { "{" T("a", "F32", "[-1]", 0, 4) "}", 4, MF_ERR_FORMAT, "not negative" },
        { "{" T("a", "F32", "[1.0]", 0, 4) "}", 4, MF_ERR_FORMAT, "expected integers" },
        { "{" T("a", "F32", "[true]", 0, 4) "}", 4, MF_ERR_FORMAT, "expected integers" },
        /* products that wrap to a small number or to 0 */
        { "{" T("a", "F32", "[4294967296,4294967296]", 0, 0) "}", 0, MF_ERR_FORMAT,
          "the product of the sizes overflows" },
        { "{" T("a", "F32", "[4611686018427387904,4]", 0, 0) "}", 0, MF_ERR_FORMAT, "overflows" },
        { "{" T("a", "F32", "[4611686018427387905]", 0, 4) "}", 4, MF_ERR_FORMAT, "overflows" },
        { "{" T("a", "F32", "[9223372036854775807,2,0]", 0, 0) "}", 0, MF_ERR_FORMAT, "overflows" },
        { "{" T("a", "F32", "[18446744073709551617]", 0, 4) "}", 4, MF_ERR_FORMAT, "not valid JSON" },
        { "{" T("a", "F32", "[1]", 0, 4.0) "}", 4, MF_ERR_FORMAT, "data_offsets: expected [begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,2,4]}}", 4, MF_ERR_FORMAT,
          "data_offsets: expected [begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{}}}", 4, MF_ERR_FORMAT,
          "data_offsets: expected [begin, end]" },
        { "{" T("a", "F32", "[1]", 4, 0) "}", 4, MF_ERR_FORMAT, "0 <= begin <= end" },
        { "{" T("a", "F32", "[1]", -4, 0) "}", 4, MF_ERR_FORMAT, "0 <= begin <= end" },
        { "{" T("a", "F32", "[2]", 0, 4) "}", 4, MF_ERR_FORMAT, "span 4 bytes; its shape and dtype f32 need 8" },
        { "{" T("a", "F32", "[0]", 0, 4) "}", 4, MF_ERR_FORMAT, "span 4 bytes; its shape and dtype f32 need 0" },
        { "{" T("a", "F32", "[1]", 4, 8) "}", 8, MF_ERR_FORMAT,
          "tensor \"a\": begins at data byte 4; expected 0, the first byte" },
        { "{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 8, 12) "}", 12, MF_ERR_FORMAT,
          "tensor \"b\": begins at data byte 8; expected 4, the end of \"a\"" },
        { "{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[1]", 4, 8) "}", 8, MF_ERR_FORMAT,
          "tensor \"b\": begins at data byte 4; expected 8, the end of \"a\"" },
        { "{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 0, 4) "}", 4, MF_ERR_FORMAT,
          "begins at data byte 0; expected 4" },
        { "{" T("a", "F32", "[1]", 0, 4) "}", 9, MF_ERR_FORMAT, "5 bytes follow the last tensor's end" },
        { "{}", 1, MF_ERR_FORMAT, "1 bytes follow the last tensor's end" },
        { "{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[2]", 4, 12) "}", 9, MF_ERR_FORMAT,
          /* 8 + "{" 52 "," 53 "}" = 116 is where the data starts */
          "tensor \"b\" needs bytes 120..128; the file ends at 125, 3 bytes before the end of its last tensor (1 of 2 "
          "tensors incomplete)" },
        { "{" T("a", "I8", "[9223372036854775807]", 0, 9223372036854775807) "}", 4, MF_ERR_FORMAT,
          "tensor \"a\" needs bytes" },
        { "{" T("a", "F32", "[1]", 0, 4) "," T("a", "F32", "[1]", 4, 8) "}", 8, MF_ERR_FORMAT, "duplicate object key" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_checkpoint *c;
        mf_error err = { 0 };
        mf_status status = parse_text(rows[i].header, rows[i].data_bytes, &c, &err);
        if (status != rows[i].status) {
            fail_msg("%s: status %d, \"%s\"", rows[i].header, (int)status, err.message);
        }
        CHECK(c == NULL);
        CHECK_HAS(err.message, rows[i].message);
        CHECK_HAS(err.message, "m.safetensors");
    }
}

TEST(a_truncated_file_is_refused_at_every_length)
{
    size_t size;
    uint8_t *file = make_file("{" T("a", "BF16", "[3]", 0, 6) "," T("b", "F32", "[2]", 6, 14) "}", 14, &size);
    for (size_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n ? n : 1); /* exact size: reading past it is an ASan report */
        memcpy(cut, file, n);
        mf_checkpoint *c;
        mf_error err;
        CHECK_EQ(mf_safetensors_parse(cut, n, "m.safetensors", &c, &err), MF_ERR_FORMAT);
        CHECK_HAS(err.message, "m.safetensors");
        if (n >= size - 14) {
            CHECK_HAS(err.message, n < size - 8 ? "tensor \"a\" needs bytes" : "tensor \"b\" needs bytes");
            CHECK_HAS(err.message, "download it again");
        }
        free(cut);
    }
    free(file);
}

TEST(header_lengths_beyond_the_file_or_the_cap_are_refused)
{
    static const uint8_t lengths[][8] = {
        { 3 }, { 255, 255, 255, 255, 255, 255, 255, 255 }, { 0, 0, 0, 0, 0, 0, 0, 128 }, { 1, 225, 245, 5 }
    };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        uint8_t file[10];
        memcpy(file, lengths[i], 8);
        memcpy(file + 8, "{}", 2);
        mf_checkpoint *c;
        mf_error err;
        CHECK_EQ(mf_safetensors_parse(file, sizeof file, "m.safetensors", &c, &err), MF_ERR_FORMAT);
        CHECK_HAS(err.message, "header length: expected at most 2; got");
    }
}

TEST(a_git_lfs_pointer_is_recognised)
{
    static const char text[] = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1234\n";
    mf_checkpoint *c;
    mf_error err;
    CHECK_EQ(mf_safetensors_parse((const uint8_t *)text, sizeof text - 1, "m.safetensors", &c, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "Git LFS pointer");
}

TEST(deep_or_crowded_json_is_refused_before_it_is_built)
{
    char *deep = malloc(200001);
    memset(deep, '[', 100000);
    memset(deep + 100000, ']', 100000);
    deep[200000] = '\0';
    char *text = malloc(200100);
    snprintf(text, 200100, "{\"a\":%s}", deep);
    mf_checkpoint *c;
    mf_error err;
    CHECK_EQ(parse_text(text, 0, &c, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "nested deeper");
    free(text);
    size_t n = 3000000; /* a million empty objects would take 200 MB as a tree */
    text = malloc(n + 16);
    strcpy(text, "{\"a\":[{}");
    size_t at = strlen(text);
    while (at + 6 < n) {
        memcpy(text + at, ",{}", 3);
        at += 3;
    }
    strcpy(text + at, "]}");
    CHECK_EQ(parse_text(text, 0, &c, &err), MF_ERR_LIMIT);
    CHECK_HAS(err.message, "JSON values");
    free(text);
    free(deep);
}

/* DeepSeek-V3 has some 91,000 tensors; a list that is searched linearly would need minutes here. */
TEST(twenty_thousand_tensors_open_in_a_moment)
{
    enum { N = 20000, BYTES = 1024 };
    char *header = malloc((size_t)N * 120);
    size_t n = 0;
    n += (size_t)sprintf(header, "{");
    for (int i = 0; i < N; i++) {
        n += (size_t)sprintf(header + n,
                             "%s\"model.layers.3.mlp.experts.%d.up_proj.weight\":{\"dtype\":\"U8\",\"shape\":[%d],"
                             "\"data_offsets\":[%d,%d]}",
                             i ? "," : "", i, BYTES, (N - 1 - i) * BYTES, (N - i) * BYTES);
    }
    sprintf(header + n, "}");
    double start = mf_now_s();
    mf_checkpoint *c;
    mf_error err;
    CHECK_OK(parse_text(header, (size_t)N * BYTES, &c, &err), err);
    for (int i = 0; i < N; i++) {
        char name[80];
        snprintf(name, sizeof name, "model.layers.3.mlp.experts.%d.up_proj.weight", i);
        CHECK(mf_checkpoint_find(c, name) != NULL);
    }
    CHECK(mf_now_s() - start < 5.0);
    mf_checkpoint_close(&c);
    free(header);
}

/* ---- directories ---- */

static void expect_dir(const char *dir, mf_status status, const char *message)
{
    for (int use_map = 0; use_map < 2; use_map++) {
        mf_checkpoint *c;
        mf_error err = { 0 };
        mf_status got = mf_checkpoint_open(dir, use_map, &c, &err);
        if (got != status) {
            fail_msg("expected status %d with \"%s\"; got %d: %s", (int)status, message, (int)got, err.message);
        }
        if (status != MF_OK) {
            CHECK_HAS(err.message, message);
        }
        mf_checkpoint_close(&c);
    }
}

/* Replaces the index's text. */
static void write_index(const cw *w, const char *text)
{
    cw_write_bytes(cw_path(w, "model.safetensors.index.json"), text, strlen(text));
}

static const char shard1[] = "model-00001-of-00003.safetensors";

TEST(shards_hold_the_same_tensors_as_one_file_mapped_or_read)
{
    cw *one = cw_new(CW_V3), *many = cw_new(CW_V3);
    cw_write(one);
    cw_shard(many, 3);
    cw_write(many);
    for (int use_map = 0; use_map < 2; use_map++) {
        mf_checkpoint *a, *b;
        mf_error err;
        CHECK_OK(mf_checkpoint_open(one->dir, use_map, &a, &err), err);
        CHECK_OK(mf_checkpoint_open(many->dir, !use_map, &b, &err), err);
        CHECK_EQ(mf_checkpoint_num_files(a), 1);
        CHECK_EQ(mf_checkpoint_num_files(b), 3);
        CHECK_EQ(mf_checkpoint_num_tensors(a), (int64_t)one->num_tensors);
        CHECK_EQ(mf_checkpoint_num_tensors(b), (int64_t)one->num_tensors);
        CHECK_EQ(mf_checkpoint_bytes(a), mf_checkpoint_bytes(b));
        for (size_t i = 0; i < one->num_tensors; i++) {
            const cw_tensor *t = &one->tensors[i];
            const mf_st_tensor *x = mf_checkpoint_find(a, t->name), *y = mf_checkpoint_find(b, t->name);
            CHECK(x && y);
            CHECK_EQ(x->bytes, t->bytes);
            CHECK_EQ(y->bytes, t->bytes);
            CHECK_MEM(x->data, t->data, t->bytes);
            CHECK_MEM(y->data, t->data, t->bytes);
        }
        mf_checkpoint_close(&a);
        mf_checkpoint_close(&b);
    }
    cw_free(one);
    cw_free(many);
}

TEST(a_directory_needs_exactly_one_form)
{
    cw *w = cw_new(CW_V3);
    cw_write(w);
    expect_dir(w->dir, MF_OK, "");
    cw_write_bytes(cw_path(w, "model.fp16.safetensors.index.json"), "{}", 2);
    expect_dir(w->dir, MF_ERR_FORMAT, "holds the index model.fp16.safetensors.index.json");
    unlink(cw_path(w, "model.fp16.safetensors.index.json"));
    write_index(w, "{}");
    expect_dir(w->dir, MF_ERR_FORMAT, "holds both model.safetensors and model.safetensors.index.json");
    unlink(cw_path(w, "model.safetensors"));
    unlink(cw_path(w, "model.safetensors.index.json"));
    expect_dir(w->dir, MF_ERR_IO, "holds neither model.safetensors nor model.safetensors.index.json");
    expect_dir(cw_path(w, "nowhere"), MF_ERR_IO, "nowhere");
    cw_free(w);
}

TEST(index_and_shards_must_agree_in_both_directions)
{
    cw *w = cw_new(CW_V3);
    cw_shard(w, 3);
    cw_write(w);
    size_t size;
    char *index = (char *)cw_read(cw_path(w, "model.safetensors.index.json"), &size);
    index[size] = '\0';
    json_t *root = json_loads(index, 0, NULL);
    free(index);
    json_t *map = json_object_get(root, "weight_map");
    static const struct {
        const char *tensor, *shard; /* shard NULL: the entry is dropped */
        const char *message;
    } rows[] = {
        { "lm_head.weight", NULL, "tensor \"lm_head.weight\" stands in model-" },
        { "ghost", "model-00001-of-00003.safetensors",
          "tensor \"ghost\" is not in model-00001-of-00003.safetensors, where the index puts it" },
        { "model.embed_tokens.weight", "model-00002-of-00003.safetensors",
          "tensor \"model.embed_tokens.weight\" stands in model-00001-of-00003.safetensors; the index puts it in "
          "model-00002-of-00003.safetensors" },
        { "ghost", "model-00004-of-00003.safetensors", "model-00004-of-00003.safetensors: cannot open" },
        { "ghost", "../model.safetensors", "file name \"../model.safetensors\": expected letters" },
        { "ghost", "/etc/passwd", "file name \"/etc/passwd\": expected letters" },
        { "ghost", "..", "file name \"..\"" },
        { "ghost", "", "file name \"\"" },
        { "ghost", "sub/model.safetensors", "expected letters, digits" },
        { "ghost", "a b.safetensors", "expected letters, digits" },
        { "ghost", ".safetensors", "expected letters, digits" },
        { "ghost", "model.bin", "expected letters, digits, '.', '_' and '-', then .safetensors" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        json_t *copy = json_deep_copy(root), *entries = json_object_get(copy, "weight_map");
        if (rows[i].shard) {
            json_object_set_new(entries, rows[i].tensor, json_string(rows[i].shard));
        } else {
            json_object_del(entries, rows[i].tensor);
        }
        char *text = json_dumps(copy, 0);
        write_index(w, text);
        free(text);
        json_decref(copy);
        mf_checkpoint *c;
        mf_error err;
        CHECK(mf_checkpoint_open(w->dir, true, &c, &err) != MF_OK);
        CHECK_HAS(err.message, rows[i].message);
    }
    CHECK(json_object_size(map) > 0);
    write_index(w, "{\"weight_map\": {}}");
    expect_dir(w->dir, MF_ERR_FORMAT,
               "key \"weight_map\": expected an object of tensor names and files; got an empty one");
    write_index(w, "{\"weight_map\": [1]}");
    expect_dir(w->dir, MF_ERR_FORMAT, "got a list");
    write_index(w, "{}");
    expect_dir(w->dir, MF_ERR_FORMAT, "got nothing");
    write_index(w, "{\"weight_map\": {\"a\": 1}}");
    expect_dir(w->dir, MF_ERR_FORMAT, "tensor \"a\": expected a file's name; got an integer");
    write_index(w, "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}");
    expect_dir(w->dir, MF_ERR_FORMAT, "duplicate object key");
    write_index(w, "{");
    expect_dir(w->dir, MF_ERR_FORMAT, "model.safetensors.index.json: not valid JSON");
    json_decref(root);
    cw_free(w);
}

TEST(a_tensor_in_two_shards_is_refused_with_both)
{
    cw *w = cw_new(CW_V3);
    cw_shard(w, 3);
    cw_copy(w, "model.norm.weight", "twin")->shard = 1;
    cw_write(w);
    cw_copy(w, "model.norm.weight", "twin")->shard = 2; /* stands in two shards now; the index knows one */
    size_t size;
    uint8_t *data = cw_file(w, 2, &size);
    cw_write_bytes(cw_path(w, "model-00003-of-00003.safetensors"), data, size);
    free(data);
    expect_dir(w->dir, MF_ERR_FORMAT, "tensor \"twin\" stands in model-0000");
    mf_checkpoint *c;
    mf_error err;
    CHECK_EQ(mf_checkpoint_open(w->dir, true, &c, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "model-00002-of-00003.safetensors");
    CHECK_HAS(err.message, "model-00003-of-00003.safetensors");
    cw_free(w);
}

TEST(a_shard_is_a_regular_file_or_a_link_to_one)
{
    cw *w = cw_new(CW_V3);
    cw_shard(w, 3);
    cw_write(w);
    char real[600], path[600];
    snprintf(path, sizeof path, "%s", cw_path(w, shard1));
    snprintf(real, sizeof real, "%s", cw_path(w, "blob"));
    CHECK_EQ(rename(path, real), 0);
    CHECK_EQ(symlink("blob", path), 0);
    expect_dir(w->dir, MF_OK, "");
    unlink(path);
    expect_dir(w->dir, MF_ERR_IO, "model-00001-of-00003.safetensors: cannot open");
    CHECK_EQ(mkfifo(path, 0600), 0); /* opening must not wait for a writer */
    expect_dir(w->dir, MF_ERR_IO, "expected a regular file; got a special file");
    unlink(path);
    CHECK_EQ(mkdir(path, 0700), 0);
    expect_dir(w->dir, MF_ERR_IO, "expected a regular file; got a directory");
    rmdir(path);
    CHECK_EQ(symlink("/dev/zero", path), 0);
    expect_dir(w->dir, MF_ERR_IO, "expected a regular file; got a special file");
    cw_free(w);
}

TEST(a_truncated_shard_names_file_tensor_and_missing_bytes)
{
    cw *w = cw_new(CW_V3);
    cw_shard(w, 3);
    cw_write(w);
    struct stat st;
    CHECK_EQ(stat(cw_path(w, shard1), &st), 0);
    CHECK_EQ(truncate(cw_path(w, shard1), st.st_size - 100), 0);
    expect_dir(w->dir, MF_ERR_FORMAT, "100 bytes before the end of its last tensor");
    expect_dir(w->dir, MF_ERR_FORMAT, "model-00001-of-00003.safetensors: tensor \"");
    CHECK_EQ(truncate(cw_path(w, shard1), 0), 0);
    expect_dir(w->dir, MF_ERR_FORMAT, "model-00001-of-00003.safetensors: 0 bytes long");
    CHECK_EQ(truncate(cw_path(w, shard1), st.st_size + 1), 0);
    expect_dir(w->dir, MF_ERR_FORMAT, "model-00001-of-00003.safetensors");
    cw_free(w);
}
