/* stacked_test.c - experts released in one tensor per layer (gpt-oss): what becomes of their columns and biases, and
 * what is said when one is not as it should be.  Starts from golden checkpoints; a changed one is their copy with one
 * tensor other. */
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/number.h"
#include "kernels/ops.h"
#include "model/checkpoint.h"
#include "model/quantise_checkpoint.h"
#include "model/safetensors_write.h"
#include "model/weights.h"
#include "test.h"

static const char *golden_dir(const char *name, char path[600])
{
    snprintf(path, 600, "%s/tests/model/goldens/%s", MF_SOURCE_DIR, name);
    return path;
}

static float stored_value(const mf_st_tensor *t, int64_t i)
{
    uint16_t bits;
    float f;
    if (t->dtype == MF_F32) {
        memcpy(&f, t->data + 4 * i, 4);
        return f;
    }
    memcpy(&bits, t->data + 2 * i, 2);
    return mf_bf16_to_f32(bits);
}

static const mf_st_tensor *tensor_of(const mf_checkpoint *c, int64_t layer, const char *part)
{
    char name[200];
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s", (int)layer, part);
    const mf_st_tensor *t = mf_checkpoint_find(c, name);
    CHECK(t != NULL);
    return t;
}

/* Element [e, k, column] of a stack by columns against row r of the matrix. */
static void check_matrix(const mf_matrix *m, const mf_st_tensor *t, int64_t e, int64_t first, int64_t step, float most)
{
    float *row = calloc((size_t)m->k, sizeof *row);
    CHECK_EQ(t->shape[1], m->k);
    for (int64_t r = 0; r < m->n; r++) {
        mf_matrix_decode_row(m, r, 0, m->k, row);
        for (int64_t k = 0; k < m->k; k++) {
            CHECK(fabsf(row[k] - stored_value(t, (e * m->k + k) * t->shape[2] + first + r * step)) <= most);
        }
    }
    free(row);
}

static void check_bias(const float *bias, const mf_st_tensor *t, int64_t e, int64_t n, int64_t first, int64_t step)
{
    for (int64_t i = 0; i < n; i++) {
        CHECK(bias[i] == stored_value(t, e * t->shape[1] + first + i * step));
    }
}

/* `most`: how far values may be off. */
static void check_experts(const char *name, const mf_weights_options *options, mf_format format, float most)
{
    char dir[600];
    mf_error err = { 0 };
    mf_model_config *config;
    mf_weights *w;
    mf_checkpoint *c;
    CHECK_OK(mf_model_config_load(golden_dir(name, dir), &config, &err), err);
    CHECK_OK(mf_weights_load(dir, config, options, &w, &err), err);
    CHECK_OK(mf_checkpoint_open(dir, true, &c, &err), err);
    for (int64_t l = 0; l < config->num_layers; l++) {
        const mf_st_tensor *gate_up = tensor_of(c, l, "gate_up_proj"), *down = tensor_of(c, l, "down_proj");
        const mf_st_tensor *gate_up_bias = tensor_of(c, l, "gate_up_proj_bias"),
                           *down_bias = tensor_of(c, l, "down_proj_bias");
        for (int64_t e = 0; e < config->gate.num_experts; e++) {
            const mf_mlp_weights *x = &w->layers[l].experts[e];
            CHECK_EQ(x->gate.format, format);
            check_matrix(&x->gate, gate_up, e, 0, 2, most);
            check_matrix(&x->up, gate_up, e, 1, 2, most);
            check_matrix(&x->down, down, e, 0, 1, most);
            check_bias(x->gate_bias, gate_up_bias, e, x->gate.n, 0, 2);
            check_bias(x->up_bias, gate_up_bias, e, x->up.n, 1, 2);
            check_bias(x->down_bias, down_bias, e, x->down.n, 0, 1);
        }
    }
    mf_checkpoint_close(&c);
    mf_weights_close(&w);
    mf_model_config_close(&config);
}

TEST(experts_stored_by_columns_become_rows_with_the_same_values)
{
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        for (int use_map = 0; use_map < 2; use_map++) {
            const mf_weights_options options = { .use_map = use_map, .num_threads = threads };
            check_experts("gpt_oss", &options, MF_FORMAT_BF16, 0.0f);
            check_experts("gpt_oss_f32", &options, MF_FORMAT_F32, 0.0f);
        }
    }
}

/* int8 of a row: half a step of the largest of some 48 normal values of deviation 1 / sqrt(24), and its scale's
 * rounding. */
TEST(experts_stored_by_columns_can_be_quantised_while_loading)
{
    const mf_weights_options options = { .use_map = true, .num_threads = 2, .quantization = MF_QUANTIZATION_INT8 };
    check_experts("gpt_oss", &options, MF_FORMAT_INT8_CHANNEL, 0.01f);
}

static void tell(void *context, const char *finding)
{
    (void)context;
    fail_msg("%s", finding);
}

TEST(a_check_of_stacked_experts_reads_them_all_and_finds_nothing)
{
    static const char *const names[] = { "gpt_oss", "gpt_oss_mxfp4", "gpt_oss_f32" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char dir[600];
        mf_error err = { 0 };
        mf_model_config *config;
        int32_t findings;
        CHECK_OK(mf_model_config_load(golden_dir(names[i], dir), &config, &err), err);
        CHECK_OK(mf_weights_check(dir, config, true, 10, tell, NULL, &findings, &err), err);
        CHECK_EQ(findings, 0);
        mf_model_config_close(&config);
    }
}

TEST(quantising_a_checkpoint_of_experts_stored_by_columns_is_refused_by_name)
{
    char dir[600];
    mf_error err = { 0 };
    mf_quantise_plan plan;
    const mf_quantise_options options = { .format = MF_FORMAT_INT8_CHANNEL };
    CHECK_EQ(mf_quantise_plan_make(golden_dir("gpt_oss", dir), &options, &plan, &err), MF_ERR_UNSUPPORTED);
    CHECK(strstr(err.message, "mlp.experts.") && strstr(err.message, "stored by columns"));
    mf_quantise_plan_close(&plan);
}

/* ---- a copy with one tensor other ---- */

typedef struct change {
    const char *golden;
    const char *tensor;
    const char *name;    /* NULL: dropped; else as tensor to keep it */
    mf_dtype dtype;      /* what it says it is: as many bytes a value */
    int swap;            /* 1: the last two sizes exchanged */
    const char *message; /* NULL: it loads */
} change;

static void write_changed(const change *x, const char *dir)
{
    char golden[600], path[700];
    mf_error err = { 0 };
    mf_checkpoint *c;
    mf_file config;
    mf_st_entry entries[200];
    const mf_st_tensor *sources[200];
    int n = 0;
    CHECK_OK(mf_checkpoint_open(golden_dir(x->golden, golden), true, &c, &err), err);
    for (int64_t i = 0; i < c->num_tensors && n < 200; i++) {
        const mf_st_tensor *t = &c->tensors[i];
        const bool is_it = strcmp(t->name, x->tensor) == 0;
        if (is_it && !x->name) {
            continue;
        }
        entries[n] = (mf_st_entry){
            .name = is_it ? x->name : t->name, .dtype = is_it ? x->dtype : t->dtype, .ndim = t->ndim, .bytes = t->bytes
        };
        memcpy(entries[n].shape, t->shape, sizeof(int64_t) * (size_t)t->ndim);
        if (is_it && x->swap) {
            entries[n].shape[t->ndim - 1] = t->shape[t->ndim - 2];
            entries[n].shape[t->ndim - 2] = t->shape[t->ndim - 1];
        }
        sources[n++] = t;
    }
    mf_st_writer writer;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    CHECK_OK(mf_st_writer_open(path, entries, n, &writer, &err), err);
    for (int i = 0; i < n; i++) {
        CHECK_OK(mf_st_writer_write(&writer, sources[i]->data, sources[i]->bytes, &err), err);
    }
    CHECK_OK(mf_st_writer_finish(&writer, &err), err);
    mf_st_writer_close(&writer);
    mf_checkpoint_close(&c);
    snprintf(path, sizeof path, "%s/config.json", golden);
    CHECK_OK(mf_file_open(path, true, 0, &config, &err), err);
    snprintf(path, sizeof path, "%s/config.json", dir);
    CHECK_OK(mf_write_new_file(path, config.data, config.size, &err), err);
    mf_file_close(&config);
}

TEST(a_stack_that_is_not_as_it_should_be_is_named)
{
    static const change rows[] = {
        { "gpt_oss", "model.layers.1.mlp.experts.gate_up_proj", NULL, MF_BF16, 0,
          "missing: model.layers.1.mlp.experts.gate_up_proj" },
        { "gpt_oss", "model.layers.1.mlp.experts.down_proj", NULL, MF_BF16, 0,
          "missing: model.layers.1.mlp.experts.down_proj" },
        { "gpt_oss", "model.layers.2.mlp.experts.gate_up_proj_bias", NULL, MF_BF16, 0,
          "missing: model.layers.2.mlp.experts.gate_up_proj_bias" },
        { "gpt_oss", "model.layers.0.self_attn.sinks", NULL, MF_BF16, 0, "missing: model.layers.0.self_attn.sinks" },
        { "gpt_oss", "model.layers.0.mlp.experts.down_proj_bias", "model.layers.0.mlp.experts.down_bias", MF_BF16, 0,
          "unexpected: model.layers.0.mlp.experts.down_bias" },
        { "gpt_oss", "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.gate_up_proj", MF_F16, 0,
          NULL },
        { "gpt_oss", "model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj", MF_BF16, 1,
          "\"model.layers.1.mlp.experts.down_proj\": expected shape [8, 24, 48]; got [8, 48, 24]" },
        { "gpt_oss", "model.layers.1.mlp.experts.down_proj_bias", "model.layers.1.mlp.experts.down_proj_bias", MF_BF16,
          1, "\"model.layers.1.mlp.experts.down_proj_bias\": expected shape [8, 48]; got [48, 8]" },
        { "gpt_oss_f32", "model.layers.1.mlp.experts.down_proj_bias", "model.layers.1.mlp.experts.down_proj_bias",
          MF_I32, 0, "\"model.layers.1.mlp.experts.down_proj_bias\": expected dtype f32, bf16 or f16; got i32" },
        { "gpt_oss_f32", "model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj", MF_I32, 0,
          "\"model.layers.1.mlp.experts.down_proj\"" },
        { "gpt_oss_mxfp4", "model.layers.1.mlp.experts.gate_up_proj_blocks", NULL, MF_U8, 0,
          "missing: model.layers.1.mlp.experts.gate_up_proj_blocks" },
        { "gpt_oss_mxfp4", "model.layers.0.mlp.experts.down_proj_bias", NULL, MF_U8, 0,
          "missing: model.layers.0.mlp.experts.down_proj_bias" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char dir[] = "/tmp/mf_stacked_XXXXXX", path[700];
        mf_error err = { 0 };
        mf_model_config *config;
        mf_weights *w = NULL;
        CHECK(mkdtemp(dir) != NULL);
        write_changed(&rows[i], dir);
        CHECK_OK(mf_model_config_load(dir, &config, &err), err);
        const mf_weights_options options = { .use_map = true, .num_threads = 1 };
        mf_status status = mf_weights_load(dir, config, &options, &w, &err);
        if (rows[i].message ? status == MF_OK || !strstr(err.message, rows[i].message) : status != MF_OK) {
            fail_msg("%s: expected \"%s\"; got status %d \"%s\"", rows[i].tensor,
                     rows[i].message ? rows[i].message : "nothing", (int)status, err.message);
        }
        mf_weights_close(&w);
        mf_model_config_close(&config);
        static const char *const files[] = { "model.safetensors", "config.json" };
        for (int f = 0; f < 2; f++) {
            snprintf(path, sizeof path, "%s/%s", dir, files[f]);
            unlink(path);
        }
        rmdir(dir);
    }
}
