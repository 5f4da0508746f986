/* formats_test.c - released weight formats, matrix by matrix: values against a decoding written from the formats'
 * descriptions, no copies where none are needed, every wrong, missing and misshapen part named. */
#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "checkpoint_writer.h"
#include "golden_support.h"
#include "kernels/format.h"
#include "model/name_pattern.h"
#include "model/plan.h"
#include "model/weights_matcher.h"
#include "test.h"

/* ---- patterns ---- */

static bool matches(const char *pattern, const char *name)
{
    mf_arena arena = { 0 };
    const mf_name_pattern *p;
    const char *why;
    CHECK_EQ(mf_name_pattern_compile(pattern, &arena, &p, &why), MF_OK);
    const bool result = mf_name_pattern_matches(p, name);
    mf_arena_clear(&arena);
    return result;
}

TEST(patterns_match_as_python_does_from_the_first_character)
{
    static const struct {
        const char *pattern, *name;
        bool matches;
    } rows[] = {
        { "a", "a", true },
        { "a", "ab", true }, /* the end need not be reached */
        { "a", "ba", false },
        { ".*self_attn.*", "model.layers.3.self_attn.q_proj", true },
        { ".*self_attn.*", "model.layers.3.mlp.gate", false },
        { ".*mlp\\.(gate|up|gate_up|down)_proj.*", "model.layers.0.mlp.gate_up_proj", true },
        { ".*mlp\\.(gate|up|gate_up|down)_proj.*", "model.layers.0.mlp.experts.1.up_proj", false },
        { ".*mlp.gate$", "model.layers.0.mlp.gate", true },
        { ".*mlp.gate$", "model.layers.0.mlp.gate_proj", false },
        { "model\\.layers\\.[0-2]\\..*", "model.layers.2.x", true },
        { "model\\.layers\\.[0-2]\\..*", "model.layers.20.x", false },
        { "[^a-c]x", "dx", true },
        { "[^a-c]x", "bx", false },
        { "[]a]+$", "]a]", true },
        { "^a+b?c$", "aac", true },
        { "^a+b?c$", "aabbc", false },
        { "(?:ab|cd)*?e", "abcdabe", true },
        { "\\d+\\.\\w+$", "12.a_Z9", true },
        { "a|bc|d", "bc", true },
        { "x$|y", "xa", false },
        { "(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac",
          false }, /* where a backtracking matcher would not end */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (matches(rows[i].pattern, rows[i].name) != rows[i].matches) {
            fail_msg("\"%s\" on \"%s\"", rows[i].pattern, rows[i].name);
        }
    }
}

TEST(patterns_that_are_not_supported_say_why)
{
    static const struct {
        const char *pattern, *why;
    } rows[] = {
        { "(?!a)b", "has a group other than" },
        { "a{2}", "has a counted repetition" },
        { "\\bx", "has an escape other than" },
        { "(a", "has a group that is not closed" },
        { "a)", "closes a group" },
        { "*a", "repeats nothing" },
        { "a**", "repeats nothing" },
        { "[a", "has a class that is not closed" },
        { "[b-a]", "runs backwards" },
        { "", "is empty" },
        { "a|", "is empty or ends" },
        { "()", "has an empty alternative" },
        { "a\\", "ends in a backslash" },
        { "\xc3\xa9", "outside ASCII" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mf_arena arena = { 0 };
        const mf_name_pattern *p;
        const char *why = NULL;
        CHECK(mf_name_pattern_compile(rows[i].pattern, &arena, &p, &why) != MF_OK);
        CHECK(!p && why);
        CHECK_HAS(why, rows[i].why);
        mf_arena_clear(&arena);
    }
}

/* ---- checkpoints: qwen3_moe with its routed experts (n, k = 8, 16 and 16, 8) in another format ---- */

#define EXPERT "model.layers.1.mlp.experts.4.down_proj"
#define GROUPS(format, weights)                                                                                        \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"" format                                                 \
    "\", \"ignore\": [\"lm_head\"], \"config_groups\": "                                                               \
    "{\"a\": {\"targets\": [\"re:.*experts\\\\.\\\\d+\\\\..*\"], \"weights\": {" weights "}}}}"
#define PACKED(symmetric)                                                                                              \
    GROUPS(                                                                                                            \
        "pack-quantized",                                                                                              \
        "\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"group\", \"group_size\": 8, \"symmetric\": " symmetric)
#define INT8(strategy, symmetric)                                                                                      \
    GROUPS("int-quantized",                                                                                            \
           "\"num_bits\": 8, \"type\": \"int\", \"strategy\": \"" strategy "\", \"symmetric\": " symmetric)
#define GPTQ(more) "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 8, \"desc_act\": false" more "}"
#define AWQ                                                                                                            \
    "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 8, \"version\": \"gemm\", \"modules_to_not_convert\": "  \
    "[\"self_attn\", \"layers.0.\"]}"

static cw_tensor *add_part(cw *w, const char *module, const char *part, const char *dtype, int64_t n, int64_t k)
{
    char name[300];
    snprintf(name, sizeof name, "%s.%s", module, part);
    return cw_add(w, name, dtype, k ? 2 : 1, (int64_t[2]){ n, k });
}

/* Random bytes that follow from the name. */
static void scramble(cw_tensor *t)
{
    uint64_t state = 1;
    for (const char *p = t->name; *p; p++) {
        state = state * 6364136223846793005u + (uint8_t)*p;
    }
    for (size_t i = 0; i < t->bytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        t->data[i] = (uint8_t)(state >> 56);
    }
}

typedef void (*change_fn)(cw *w, const char *module, int64_t n, int64_t k);

static void pack(cw *w, const char *module, int64_t n, int64_t k)
{
    const int64_t shape[2] = { n, k };
    scramble(add_part(w, module, "weight_packed", "I32", n, k / 8));
    add_part(w, module, "weight_scale", "BF16", n, k / 8);
    memcpy(add_part(w, module, "weight_shape", "I64", 2, 0)->data, shape, sizeof shape);
}

static void pack_with_zeros(cw *w, const char *module, int64_t n, int64_t k)
{
    pack(w, module, n, k);
    scramble(add_part(w, module, "weight_zero_point", "I32", n / 8, k / 8));
}

static void make_int8(cw *w, const char *module, int64_t n, int64_t k)
{
    scramble(add_part(w, module, "weight", "I8", n, k));
    add_part(w, module, "weight_scale", "BF16", n, 1);
}

static void make_gptq(cw *w, const char *module, int64_t n, int64_t k)
{
    scramble(add_part(w, module, "qweight", "I32", k / 8, n));
    scramble(add_part(w, module, "qzeros", "I32", k / 8, n / 8));
    add_part(w, module, "scales", "F16", k / 8, n);
    cw_tensor *index = add_part(w, module, "g_idx", "I32", k, 0);
    for (int32_t i = 0; i < k; i++) {
        const int32_t group = i / 8;
        memcpy(index->data + 4 * i, &group, 4);
    }
}

static void make_awq(cw *w, const char *module, int64_t n, int64_t k)
{
    scramble(add_part(w, module, "qweight", "I32", k, n / 8));
    scramble(add_part(w, module, "qzeros", "I32", k / 8, n / 8));
    add_part(w, module, "scales", "F16", k / 8, n);
}

/* Every routed expert's weights replaced. */
static cw *with_experts(const char *quantization, change_fn change)
{
    static const char *const names[] = { "gate_proj", "up_proj", "down_proj" };
    cw *w = cw_new(CW_QWEN3);
    cw_set(w, "quantization_config", quantization);
    for (int layer = 1; layer < 3; layer++) {
        for (int e = 0; e < 12; e++) {
            for (int i = 0; i < 3; i++) {
                char module[200], weight[240];
                snprintf(module, sizeof module, "model.layers.%d.mlp.experts.%d.%s", layer, e, names[i]);
                snprintf(weight, sizeof weight, "%s.weight", module);
                cw_remove(w, weight);
                change(w, module, i == 2 ? 16 : 8, i == 2 ? 8 : 16);
            }
        }
    }
    return w;
}

/* GPTQ's config has no list: everything else is left out by its pattern. */
#define GPTQ_DYNAMIC ", \"dynamic\": {\"-:.*self_attn\": {}, \"-:.*layers\\\\.0\\\\.\": {}}"

typedef struct loaded {
    mf_model_config *config;
    mf_weights *weights;
    mf_error err;
    mf_status status;
} loaded;

static void load_with(cw *w, const mf_weights_options *options, loaded *l)
{
    *l = (loaded){ 0 };
    cw_write(w);
    l->status = mf_model_config_load(w->dir, &l->config, &l->err);
    if (l->status == MF_OK) {
        l->status = mf_weights_load(w->dir, l->config, options, &l->weights, &l->err);
    }
}

static void load(cw *w, loaded *l)
{
    load_with(w, &(mf_weights_options){ .use_map = true, .num_threads = 2 }, l);
}

static void load_well(cw *w, loaded *l)
{
    load(w, l);
    CHECK_OK(l->status, l->err);
}

static void close_loaded(loaded *l)
{
    mf_weights_close(&l->weights);
    mf_model_config_close(&l->config);
}

static uint32_t word(const cw_tensor *t, int64_t i)
{
    uint32_t v;
    memcpy(&v, t->data + 4 * i, 4);
    return v;
}

static float half(const cw_tensor *t, int64_t i)
{
    uint16_t h;
    memcpy(&h, t->data + 2 * i, 2);
    return strcmp(t->dtype, "F16") == 0 ? mf_f16_to_f32(h) : mf_bf16_to_f32(h);
}

static cw_tensor *part_of(cw *w, const char *module, const char *part)
{
    char name[256];
    snprintf(name, sizeof name, "%s.%s", module, part);
    return cw_get(w, name);
}

typedef float (*value_fn)(cw *w, const char *module, int64_t n, int64_t r, int64_t k);

static float packed_value(cw *w, const char *module, int64_t n, int64_t r, int64_t k)
{
    (void)n;
    const cw_tensor *codes = part_of(w, module, "weight_packed"), *scales = part_of(w, module, "weight_scale");
    const int64_t columns = codes->shape[1];
    const int code = word(codes, r * columns + k / 8) >> (k % 8 * 4) & 15;
    return (float)(code - 8) * half(scales, r * columns + k / 8);
}

static float packed_zeros_value(cw *w, const char *module, int64_t n, int64_t r, int64_t k)
{
    (void)n;
    const cw_tensor *codes = part_of(w, module, "weight_packed"), *scales = part_of(w, module, "weight_scale");
    const int64_t columns = codes->shape[1];
    const int code = word(codes, r * columns + k / 8) >> (k % 8 * 4) & 15;
    const int zero = word(part_of(w, module, "weight_zero_point"), r / 8 * columns + k / 8) >> (r % 8 * 4) & 15;
    return (float)(code - zero) * half(scales, r * columns + k / 8);
}

static float gptq(cw *w, const char *module, int64_t n, int64_t r, int64_t k, int plus)
{
    const int code = word(part_of(w, module, "qweight"), k / 8 * n + r) >> (k % 8 * 4) & 15;
    const int zero = (int)(word(part_of(w, module, "qzeros"), (k / 8 * n + r) / 8) >> (r % 8 * 4) & 15) + plus;
    return (float)(code - zero) * half(part_of(w, module, "scales"), k / 8 * n + r);
}

static float gptq_value(cw *w, const char *module, int64_t n, int64_t r, int64_t k)
{
    return gptq(w, module, n, r, k, 1);
}

static float gptq_v2_value(cw *w, const char *module, int64_t n, int64_t r, int64_t k)
{
    return gptq(w, module, n, r, k, 0);
}

static float awq_value(cw *w, const char *module, int64_t n, int64_t r, int64_t k)
{
    static const int nibble[8] = { 0, 4, 1, 5, 2, 6, 3, 7 };
    const int shift = 4 * nibble[r % 8];
    const int code = word(part_of(w, module, "qweight"), (k * n + r) / 8) >> shift & 15;
    const int zero = word(part_of(w, module, "qzeros"), (k / 8 * n + r) / 8) >> shift & 15;
    return (float)(code - zero) * half(part_of(w, module, "scales"), k / 8 * n + r);
}

static float int8_value(cw *w, const char *module, int64_t n, int64_t r, int64_t k)
{
    (void)n;
    const cw_tensor *codes = part_of(w, module, "weight");
    return (float)(int8_t)codes->data[r * codes->shape[1] + k] * half(part_of(w, module, "weight_scale"), r);
}

static void check_values(cw *w, const loaded *l, mf_format format, value_fn value)
{
    for (int64_t layer = 1; layer < 3; layer++) {
        for (int e = 0; e < 12; e++) {
            const mf_mlp_weights *mlp = &l->weights->layers[layer].experts[e];
            const mf_matrix *matrices[] = { &mlp->gate, &mlp->up, &mlp->down };
            static const char *const names[] = { "gate_proj", "up_proj", "down_proj" };
            for (int i = 0; i < 3; i++) {
                char module[200];
                const mf_matrix *m = matrices[i];
                float row[16];
                snprintf(module, sizeof module, "model.layers.%d.mlp.experts.%d.%s", (int)layer, e, names[i]);
                CHECK_EQ(m->format, format);
                for (int64_t r = 0; r < m->n; r++) {
                    mf_matrix_decode_row(m, r, 0, m->k, row);
                    for (int64_t k = 0; k < m->k; k++) {
                        const float wanted = value(w, module, m->n, r, k);
                        if (row[k] != wanted) {
                            fail_msg("%s [%d, %d]: %g; wanted %g", module, (int)r, (int)k, (double)row[k],
                                     (double)wanted);
                        }
                    }
                }
            }
        }
    }
}

TEST(each_format_holds_the_values_of_its_description)
{
    static const struct {
        const char *quantization;
        change_fn change;
        mf_format format;
        value_fn value;
        bool converts; /* codes are copied */
    } rows[] = {
        { PACKED("true"), pack, MF_FORMAT_INT4_GROUP, packed_value, false },
        { PACKED("false"), pack_with_zeros, MF_FORMAT_INT4_GROUP, packed_zeros_value, false },
        { INT8("channel", "true"), make_int8, MF_FORMAT_INT8_CHANNEL, int8_value, false },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, MF_FORMAT_INT4_GROUP, gptq_value, true },
        { GPTQ(GPTQ_DYNAMIC ", \"checkpoint_format\": \"gptq_v2\""), make_gptq, MF_FORMAT_INT4_GROUP, gptq_v2_value,
          true },
        { AWQ, make_awq, MF_FORMAT_INT4_GROUP, awq_value, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = with_experts(rows[i].quantization, rows[i].change);
        loaded l;
        load_well(w, &l);
        check_values(w, &l, rows[i].format, rows[i].value);
        CHECK_EQ(l.weights->layers[1].q_proj.format, MF_FORMAT_BF16);
        CHECK_EQ(l.weights->converted != NULL, rows[i].converts);
        const int64_t bytes = l.weights->stats.bytes_by_format[rows[i].format];
        CHECK(bytes > 0 && (!rows[i].converts || l.weights->stats.bytes_converted >= bytes));
        close_loaded(&l);
        load_with(w, &(mf_weights_options){ .headers_only = true, .use_map = true }, &l); /* sizes without the work */
        CHECK_OK(l.status, l.err);
        CHECK(!l.weights->converted);
        CHECK_EQ(l.weights->stats.bytes_by_format[rows[i].format], bytes);
        close_loaded(&l);
        cw_free(w);
    }
}

static void fill_words(cw *w, const char *part, uint32_t value)
{
    for (size_t i = 0; i < w->num_tensors; i++) {
        cw_tensor *t = &w->tensors[i];
        const size_t n = strlen(t->name), k = strlen(part);
        for (size_t at = 0; n > k && strcmp(t->name + n - k, part) == 0 && at + 4 <= t->bytes; at += 4) {
            memcpy(t->data + at, &value, 4);
        }
    }
}

TEST(zero_points_that_are_all_the_middle_cost_nothing)
{
    cw *w = with_experts(GPTQ(GPTQ_DYNAMIC), make_gptq);
    fill_words(w, ".qzeros", 0x77777777); /* stored less one */
    loaded l;
    load_well(w, &l);
    CHECK(!l.weights->layers[1].experts[0].gate.zero);
    check_values(w, &l, MF_FORMAT_INT4_GROUP, gptq_value);
    close_loaded(&l);
    fill_words(w, ".qzeros", 0xffffffff); /* 16 after the one is added */
    load_well(w, &l);
    CHECK_EQ(l.weights->layers[1].experts[0].gate.zero[0], 16);
    check_values(w, &l, MF_FORMAT_INT4_GROUP, gptq_value);
    close_loaded(&l);
    cw_free(w);
}

static bool cancel_conversion(void *context, const mf_progress_info *info)
{
    *(int *)context += strcmp(info->what, "converting") == 0;
    return strcmp(info->what, "converting") != 0;
}

TEST(a_conversion_reports_progress_and_can_be_cancelled)
{
    cw *w = with_experts(AWQ, make_awq);
    loaded l;
    int calls = 0;
    load_with(w, &(mf_weights_options){ .use_map = true, .num_threads = 1, .progress = { cancel_conversion, &calls } },
              &l);
    CHECK_EQ(l.status, MF_ERR_CANCELLED);
    CHECK_EQ(calls, 1);
    CHECK(!l.weights);
    close_loaded(&l);
    cw_free(w);
}

TEST(int8_zero_points_are_taken_off_where_the_codes_allow_it)
{
    cw *w = with_experts(INT8("channel", "false"), make_int8);
    for (size_t i = 0, n = w->num_tensors; i < n; i++) {
        char module[256];
        const char *end = strstr(w->tensors[i].name, ".weight_scale");
        if (end) {
            snprintf(module, sizeof module, "%.*s", (int)(end - w->tensors[i].name), w->tensors[i].name);
            const int64_t rows = w->tensors[i].shape[0];
            memset(add_part(w, module, "weight_zero_point", "I8", rows, 1)->data, 0, (size_t)rows);
        }
    }
    loaded l;
    load_well(w, &l);
    CHECK(!l.weights->converted);
    close_loaded(&l);
    cw_tensor *codes = part_of(w, EXPERT, "weight");
    memset(codes->data, 100, codes->bytes);
    part_of(w, EXPERT, "weight_zero_point")->data[3] = (uint8_t)-27;
    load_well(w, &l);
    float row[8];
    mf_matrix_decode_row(&l.weights->layers[1].experts[4].down, 3, 0, 8, row);
    CHECK(row[5] == 127.0f * half(part_of(w, EXPERT, "weight_scale"), 3));
    close_loaded(&l);
    part_of(w, EXPERT, "weight_zero_point")->data[3] = (uint8_t)-28;
    load(w, &l);
    CHECK_EQ(l.status, MF_ERR_UNSUPPORTED);
    CHECK_HAS(l.err.message, EXPERT ".weight_zero_point\": codes less their zero points do not fit in eight bits");
    close_loaded(&l);
    cw_free(w);
}

/* ---- what is wrong is named ---- */

typedef struct broken {
    const char *quantization;
    change_fn change;
    const char *part;  /* of EXPERT */
    const char *dtype; /* NULL: removed */
    int64_t n, k;      /* k 0: one dimension; n -1: a word is changed */
    const char *message;
} broken;

TEST(wrong_missing_and_misshapen_parts_are_named)
{
    static const broken rows[] = {
        { PACKED("true"), pack, "weight_packed", NULL, 0, 0, "missing: " EXPERT ".weight_packed" },
        { PACKED("true"), pack, "weight_packed", "I8", 16, 4, EXPERT ".weight_packed\": expected dtype i32; got i8" },
        { PACKED("true"), pack, "weight_packed", "I32", 16, 2,
          "expected shape [16, 1] (eight codes per word); got [16, 2]" },
        { PACKED("true"), pack, "weight_scale", NULL, 0, 0, "missing: " EXPERT ".weight_scale" },
        { PACKED("true"), pack, "weight_scale", "BF16", 16, 2,
          "expected shape [16, 1] (one scale per row and group of columns)" },
        { PACKED("true"), pack, "weight_scale", "F8_E4M3", 16, 1,
          EXPERT ".weight_scale\": expected dtype f32, bf16 or f16" },
        { PACKED("true"), pack, "weight_shape", NULL, 0, 0, "missing: " EXPERT ".weight_shape" },
        { PACKED("true"), pack, "weight_shape", "I64", 3, 0, EXPERT ".weight_shape\": expected shape [2]; got [3]" },
        { PACKED("true"), pack, "weight_shape", NULL, -1, 0, EXPERT ".weight_shape\": expected the values 16, 8; got" },
        { PACKED("true"), pack, "weight_g_idx", "I32", 8, 0, EXPERT ".weight_g_idx\": column 0 is in group" },
        { PACKED("true"), pack, "weight_zero_point", "I32", 2, 1,
          "zero points other than 8; config.json says symmetric" },
        { PACKED("false"), pack_with_zeros, "weight_zero_point", NULL, 0, 0, "missing: " EXPERT ".weight_zero_point" },
        { PACKED("false"), pack_with_zeros, "weight_zero_point", "I32", 16, 1,
          "expected shape [2, 1] (eight zero points per word)" },
        { INT8("channel", "true"), make_int8, "weight", "F8_E4M3", 16, 8, EXPERT ".weight\": expected dtype i8" },
        { INT8("channel", "true"), make_int8, "weight_scale", "BF16", 1, 0,
          "expected shape [16, 1] (one scale per row); got [1]" },
        { INT8("channel", "true"), make_int8, "weight_scale", NULL, 0, 0, "missing: " EXPERT ".weight_scale" },
        { INT8("channel", "true"), make_int8, "weight_zero_point", "I8", 16, 1,
          "zero points other than 0; config.json says symmetric" },
        { INT8("tensor", "true"), make_int8, "weight_scale", "BF16", 16, 1,
          "expected shape [1] (one scale per tensor); got [" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "qweight", "I32", 8, 16,
          "expected shape [1, 16] (eight columns' codes per word); got [8, 16]" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "qzeros", NULL, 0, 0, "missing: " EXPERT ".qzeros" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "qzeros", "I32", 1, 16,
          "expected shape [1, 2] (eight rows' zero points per word)" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "scales", "F16", 16, 1, EXPERT ".scales\": expected shape [1, 16]" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "g_idx", NULL, -1, 0, EXPERT ".g_idx\": column 0 is in group 1" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "g_idx", "I32", 4, 0, EXPERT ".g_idx\": expected shape [8]; got [4]" },
        { GPTQ(GPTQ_DYNAMIC), make_gptq, "bias", "F16", 16, 0, "unexpected: " EXPERT ".bias" },
        { AWQ, make_awq, "qweight", "I32", 1, 16, "expected shape [8, 2] (eight rows' codes per word)" },
        { AWQ, make_awq, "scales", NULL, 0, 0, "missing: " EXPERT ".scales" },
        { AWQ, make_awq, "weight", "BF16", 16, 8, "unexpected: " EXPERT ".weight" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = with_experts(rows[i].quantization, rows[i].change);
        char name[256];
        snprintf(name, sizeof name, "%s.%s", EXPERT, rows[i].part);
        if (rows[i].n == -1) {
            const uint32_t one = 1;
            memcpy(cw_get(w, name)->data, &one, 4);
        } else if (!rows[i].dtype) {
            cw_remove(w, name);
        } else {
            bool exists = false;
            for (size_t t = 0; t < w->num_tensors; t++) {
                exists |= strcmp(w->tensors[t].name, name) == 0;
            }
            const int64_t shape[2] = { rows[i].n, rows[i].k };
            if (exists) {
                cw_remove(w, name);
            }
            cw_add(w, name, rows[i].dtype, rows[i].k ? 2 : 1, shape);
        }
        loaded l;
        load(w, &l);
        CHECK(l.status != MF_OK);
        CHECK_HAS(l.err.message, rows[i].message);
        close_loaded(&l);
        cw_free(w);
    }
}

TEST(keys_that_change_values_are_honoured_or_named)
{
    static const struct {
        const char *value, *message;
    } rows[] = {
        { GPTQ(", \"desc_act\": true"), "quantization_config.desc_act\": expected false" },
        { "{\"quant_method\": \"gptq\", \"bits\": 8, \"group_size\": 128}",
          "quantization_config.bits\": expected 4; got 8" },
        { GPTQ(", \"checkpoint_format\": \"marlin\""), "checkpoint_format\": expected \"gptq\" or \"gptq_v2\"" },
        { GPTQ(", \"lm_head\": true"), "lm_head\": expected false" },
        { GPTQ(", \"dynamic\": {\"+:.*\": {\"bits\": 8}}"),
          "dynamic\": \"+:.*\": expected only modules that are left out" },
        { GPTQ(", \"rotation\": \"hadamard\""),
          "quantization_config.rotation\": is not a key of quant_method \"gptq\"" },
        { "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 64, \"version\": \"gemv\"}",
          "version\": expected \"gemm\"" },
        { "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 3}",
          "group_size\": expected -1 or an even number" },
        { GROUPS("pack-quantized", "\"num_bits\": 8, \"type\": \"int\", \"strategy\": \"channel\""),
          "num_bits\": expected 4" },
        { GROUPS("int-quantized", "\"num_bits\": 8, \"type\": \"int\", \"strategy\": \"group\""),
          "strategy\": expected \"channel\" or \"tensor\"" },
        { GROUPS("nvfp4-pack-quantized", "\"num_bits\": 4"), "format\": expected \"float-quantized\"" },
        { GROUPS("pack-quantized", "\"num_bits\": 4, \"type\": \"int\", \"strategy\": \"group\", \"group_size\": 32, "
                                   "\"actorder\": \"group\""),
          "actorder\": expected null" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cw *w = cw_new(CW_QWEN3);
        cw_set(w, "quantization_config", rows[i].value);
        loaded l;
        load(w, &l);
        CHECK(l.status != MF_OK && !l.config);
        CHECK_HAS(l.err.message, rows[i].message);
        cw_free(w);
    }
}

TEST(a_name_goes_before_a_pattern_and_a_pattern_before_the_class)
{
    cw *w = cw_new(CW_QWEN3);
    cw_set(w, "quantization_config",
           "{\"quant_method\": \"compressed-tensors\", \"format\": \"int-quantized\", \"ignore\": [\"re:.*k_proj\"], "
           "\"config_groups\": {"
           "\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 8, \"type\": \"int\", \"strategy\": "
           "\"channel\"}},"
           "\"b\": {\"targets\": [\"re:.*self_attn.*\"], \"weights\": {\"num_bits\": 8, \"type\": \"int\", "
           "\"strategy\": \"tensor\"}},"
           "\"c\": {\"targets\": [\"model.layers.1.self_attn.q_proj\"], \"format\": \"float-quantized\", \"weights\": "
           "{\"num_bits\": 8, "
           "\"type\": \"float\", \"strategy\": \"tensor\"}}}}");
    cw_write(w);
    mf_model_config *c;
    mf_error err = { 0 };
    CHECK_OK(mf_model_config_load(w->dir, &c, &err), err);
    static const struct {
        const char *module;
        mf_quant_method method;
    } rows[] = {
        { "model.layers.1.self_attn.q_proj", MF_QUANT_FP8_TENSOR },
        { "model.layers.2.self_attn.q_proj", MF_QUANT_INT8_TENSOR },
        { "model.layers.1.self_attn.k_proj", MF_QUANT_NONE },
        { "model.layers.1.mlp.experts.1.up_proj", MF_QUANT_INT8_CHANNEL },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const mf_quant_scheme *scheme = mf_quant_scheme_of(&c->quant, rows[i].module);
        CHECK_EQ(scheme ? scheme->method : MF_QUANT_NONE, rows[i].method);
    }
    mf_model_config_close(&c);
    cw_free(w);
}

TEST(a_head_is_quantised_where_a_group_takes_it_in)
{
    cw *w = cw_new(CW_QWEN3);
    cw_set(w, "quantization_config",
           "{\"quant_method\": \"compressed-tensors\", \"format\": \"int-quantized\", \"config_groups\": {\"a\": "
           "{\"targets\": "
           "[\"lm_head\"], \"weights\": {\"num_bits\": 8, \"type\": \"int\", \"strategy\": \"channel\"}}}}");
    cw_remove(w, "lm_head.weight");
    make_int8(w, "lm_head", 24, 16);
    loaded l;
    load_well(w, &l);
    CHECK_EQ(l.weights->lm_head.format, MF_FORMAT_INT8_CHANNEL);
    CHECK_EQ(l.weights->layers[1].q_proj.format, MF_FORMAT_BF16);
    close_loaded(&l);
    cw_free(w);
}

/* ---- fp8 with one scale ---- */

TEST(fp8_with_one_scale_is_read_and_stored_input_scales_are_skipped_only_where_declared)
{
    static const char quantization[] =
        "{\"quant_method\": \"fp8\", \"activation_scheme\": \"static\", \"ignored_layers\": [\"lm_head\"]}";
    cw *w = cw_new(CW_QWEN3_FP8);
    cw_set(w, "quantization_config", quantization);
    for (size_t i = 0; i < w->num_tensors; i++) {
        char *suffix = strstr(w->tensors[i].name, "_scale_inv");
        if (suffix && i % 2) {
            memcpy(suffix, "_scale", sizeof "_scale"); /* both names are in use */
        }
    }
    cw_add(w, EXPERT ".input_scale", "F32", 0, NULL);
    loaded l;
    load_well(w, &l);
    const mf_matrix *m = &l.weights->layers[1].experts[4].down;
    CHECK_EQ(m->format, MF_FORMAT_FP8_CHANNEL);
    CHECK_EQ(m->scale_row_stride, 0);
    CHECK_EQ(l.weights->stats.num_skipped_tensors, 1);
    close_loaded(&l);
    cw_set(w, "quantization_config.activation_scheme", "\"dynamic\"");
    load(w, &l);
    CHECK_HAS(l.err.message, "unexpected: " EXPERT ".input_scale");
    close_loaded(&l);
    cw_free(w);
}

/* ---- mxfp4 ---- */

TEST(mxfp4_rows_that_alternate_are_views)
{
    enum { EXPERTS = 2, WIDTH = 3, K = 64, ROWS = 2 * WIDTH };
    static const float values[16] = { 0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6 };
    uint8_t blocks[EXPERTS * ROWS * K / 2], scales[EXPERTS * ROWS * K / 32];
    for (size_t i = 0; i < sizeof blocks; i++) {
        blocks[i] = (uint8_t)(i * 37 + i / 7);
    }
    for (size_t i = 0; i < sizeof scales; i++) {
        scales[i] = (uint8_t)(120 + i % 13);
    }
    for (int e = 0; e < EXPERTS; e++) {
        for (int is_up = 0; is_up < 2; is_up++) {
            const mf_matrix m = mf_mxfp4_view(blocks, scales, e, ROWS, K, is_up, 2, WIDTH);
            mf_error err = { 0 };
            CHECK_OK(mf_matrix_check(&m, "view", &err), err);
            for (int r = 0; r < WIDTH; r++) {
                float row[K];
                mf_matrix_decode_row(&m, r, 0, K, row);
                for (int k = 0; k < K; k++) { /* [E, 2I, K/32, 16]: gate rows are the even ones */
                    const int at = (e * ROWS + 2 * r + is_up) * K + k;
                    CHECK(row[k] == ldexpf(values[blocks[at / 2] >> (k % 2 * 4) & 15], scales[at / 32] - 127));
                }
            }
        }
    }
}

/* ---- formats side by side ---- */

TEST(a_shared_expert_in_another_format_is_a_slot_and_is_not_requantised)
{
    golden g;
    golden_open("v3_mixed", &g);
    mf_model_options options = golden_options("cpu");
    mf_model *model = golden_model(&g, &options);
    const mf_weights *weights = mf_model_get_weights(model);
    const mf_layer_weights *layer = &weights->layers[1];
    CHECK_EQ(layer->experts[0].gate.format, MF_FORMAT_INT4_GROUP);
    CHECK(layer->experts[0].gate.zero != NULL);
    CHECK_EQ(layer->shared.gate.format, MF_FORMAT_BF16);
    CHECK_EQ(layer->o_proj.format, MF_FORMAT_FP8_CHANNEL);
    CHECK_EQ(layer->router.format, MF_FORMAT_BF16);
    const mf_plan *plan = mf_model_get_plan(model);
    CHECK_EQ(plan->layers[1].mode, MF_MODE_SLOT);
    CHECK_EQ(plan->layers[1].num_shared_chunks, 2);
    CHECK_EQ(plan->layers[1].routed_format, MF_FORMAT_INT4_GROUP);
    CHECK_EQ(plan->layers[1].shared_format, MF_FORMAT_BF16);
    mf_model_close(&model);
    golden_close(&g);
}

/* Bailing's query_key_value is one tensor: queries, keys and values are views of its rows, whatever it became. */
TEST(a_fused_projection_is_viewed_in_three_whatever_its_format)
{
    static const mf_quantization ways[] = { MF_QUANTIZATION_NONE, MF_QUANTIZATION_INT8, MF_QUANTIZATION_INT4 };
    golden g;
    golden_open("bailing", &g);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        mf_model_options options = golden_options("cpu");
        options.quantization = ways[i];
        mf_model *model = golden_model(&g, &options);
        const mf_layer_weights *w = &mf_model_get_weights(model)->layers[1];
        const mf_matrix *parts[] = { &w->q_proj, &w->k_proj, &w->v_proj };
        const int64_t rows[] = { 6 * 24, 2 * 24, 2 * 24 };
        float whole[48], part[48];
        for (int64_t p = 0, first = 0; p < 3; first += rows[p++]) {
            CHECK_EQ(parts[p]->n, rows[p]);
            CHECK_EQ(parts[p]->format, w->qkv_proj.format);
            mf_matrix_decode_row(&w->qkv_proj, first + 5, 0, 48, whole);
            mf_matrix_decode_row(parts[p], 5, 0, 48, part);
            CHECK_MEM(whole, part, sizeof part);
        }
        mf_model_close(&model);
    }
    mf_model_options options = golden_options("cpu");
    options.quantization = MF_QUANTIZATION_FP8; /* 144 rows of queries end inside a block: it stays */
    mf_model *model = golden_model(&g, &options);
    const mf_layer_weights *w = &mf_model_get_weights(model)->layers[1];
    CHECK_EQ(w->qkv_proj.format, MF_FORMAT_BF16);
    CHECK_EQ(w->q_proj.format, MF_FORMAT_BF16);
    CHECK_EQ(w->o_proj.format, MF_FORMAT_FP8_BLOCK);
    mf_model_close(&model);
    golden_close(&g);
}

/* Decay and learning rate of each head hang on a few rows. */
TEST(quantising_leaves_the_small_projection_of_linear_layers_alone)
{
    golden g;
    golden_open("qwen3_next", &g);
    mf_model_options options = golden_options("cpu");
    options.quantization = MF_QUANTIZATION_INT8;
    mf_model *model = golden_model(&g, &options);
    const mf_layer_weights *w = &mf_model_get_weights(model)->layers[0];
    CHECK_EQ(w->linear_ba.format, MF_FORMAT_BF16);
    CHECK_EQ(w->linear_qkvz.format, MF_FORMAT_INT8_CHANNEL);
    CHECK_EQ(w->linear_out.format, MF_FORMAT_INT8_CHANNEL);
    mf_model_close(&model);
    golden_close(&g);
}
