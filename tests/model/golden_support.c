/* golden_support.c - see golden_support.h. */
#include "golden_support.h"

#include <stdlib.h>

#include "base/cpu_features.h"
#include "base/sys.h"

const char *const golden_names[] = { "v3",         "v2_lite", "v2",           "v2_e60",   "v3_fp8",  "v3_fp8_straddle", "v3_f16",
                                     "v3_sharded", "v3_mtp",  "v3_no_shared", "v3_dense", "kimi_k2", "qwen3",           "qwen3_e12",
                                     "qwen3_fp8",  "glm4",    "glm4_air",     "glm4_plain", "glm4_fp8",
                                     "glm4_lite",  "qwen2",   "qwen2_wide",   "mixtral",  "olmoe",   "ernie",           "ernie_plain",
                                     "minimax",    "dots1",   "hunyuan",      "kimi_k2_int4", "v3_mixed", "qwen3_int8", "mixtral_fp8", "qwen3_gptq", "qwen3_awq", "v3_mxfp4", "mixtral_window",
                                     "qwen2_window", "qwen3_window", "dots1_window", "dots1_layer_types", "gpt_oss", "gpt_oss_mxfp4", "gpt_oss_f32",
                                     "llama4", "llama4_dense", "llama4_vision", "qwen3_next", "qwen3_next_odd", "bailing", "bailing_fp8", NULL };
const char *const golden_devices[] = { "ref", "cpu", "cpu/c", "cpu/avx2", "cuda", NULL };

void golden_open(const char *name, golden *out)
{
    golden_open_file(name, "golden.bin", out);
}

void golden_open_file(const char *name, const char *file, golden *out)
{
    char path[600];
    mf_error err;
    memset(out, 0, sizeof *out);
    out->name = name;
    const char *root = getenv("MOEFUSE_SOURCE_DIR"); /* a program built elsewhere */
    snprintf(out->dir, sizeof out->dir, "%s/tests/model/goldens/%s", root ? root : MF_SOURCE_DIR, name);
    snprintf(path, sizeof path, "%s/%s", out->dir, file);
    CHECK_OK(mf_file_open(path, true, 0, &out->file, &err), err);
    CHECK(out->file.size > 20);
    CHECK_MEM(out->file.data, "MFGL", 4);
    int32_t header[4]; /* version, prompt, generated, vocab */
    memcpy(header, out->file.data + 4, sizeof header);
    CHECK_EQ(header[0], 1);
    out->num_prompt = header[1];
    out->num_generated = header[2];
    out->vocab_size = header[3];
    out->num_tokens = header[1] + header[2];
    CHECK(out->num_prompt > 0 && out->num_tokens > out->num_prompt && out->vocab_size > 0);
    CHECK_EQ(out->file.size, 20 + (size_t)out->num_tokens * 4 * (size_t)(1 + out->vocab_size));
    out->ids = (const int32_t *)(const void *)(out->file.data + 20);
    out->logits = (const float *)(out->ids + out->num_tokens);
}

void golden_close(golden *g)
{
    mf_file_close(&g->file);
}

bool golden_device_usable(const char *device)
{
    const char *only = getenv("MOEFUSE_GOLDEN_DEVICE");
    if (only || strcmp(device, "cuda") == 0) {
        return only && strcmp(device, only) == 0;
    }
    return strcmp(device, "cpu/avx2") != 0 || mf_cpu_features_get()->avx2_fma_f16c;
}

mf_model_options golden_options(const char *device)
{
    if (strncmp(device, "cpu/", 4) == 0) {
        setenv("MOEFUSE_ISA", device + 4, 1);
    } else {
        unsetenv("MOEFUSE_ISA");
    }
    return (mf_model_options){ .device = strcmp(device, "ref") == 0 || strcmp(device, "cuda") == 0 ? device : "cpu",
                               .num_threads = 1,
                               .use_map = true,
                               .max_batch_tokens = 128,
                               .plan.num_shared_expert_replicas = 1 };
}

mf_model *golden_model(const golden *g, const mf_model_options *options)
{
    mf_error err;
    mf_model *model = NULL;
    CHECK_OK(mf_model_open(g->dir, options, &model, &err), err);
    CHECK_EQ(mf_model_get_config(model)->vocab_size, g->vocab_size);
    return model;
}

float *golden_logits(const golden *g, int32_t n)
{
    float *logits = mf_alloc_array((size_t)n * (size_t)g->vocab_size, sizeof *logits);
    CHECK(logits != NULL);
    return logits;
}

void golden_run(mf_model *model, const int32_t *ids, int32_t n, int32_t chunk, float *logits, int32_t *expert_load,
                int32_t *bad_rows)
{
    enum { MAX_ROWS = 128, BLOCK = 4, NUM_BLOCKS = MAX_ROWS / BLOCK };
    mf_error err;
    mf_kv_store *store = NULL;
    int32_t table[NUM_BLOCKS], position[MAX_ROWS], sequence[MAX_ROWS] = { 0 }, rows[MAX_ROWS];
    int64_t vocab = mf_model_get_config(model)->vocab_size;
    CHECK(n <= MAX_ROWS && chunk > 0);
    for (int32_t i = 0; i < NUM_BLOCKS; i++) {
        table[i] = (i * 13 + 5) % NUM_BLOCKS; /* scattered: 13 is odd, so every block comes once */
    }
    CHECK_OK(mf_kv_store_open(model, NUM_BLOCKS, BLOCK, 1, &store, &err), err);
    for (int32_t start = 0; start < n; start += chunk) {
        int32_t count = n - start < chunk ? n - start : chunk;
        for (int32_t i = 0; i < count; i++) {
            position[i] = start + i;
            rows[i] = i;
        }
        mf_batch batch = { .num_tokens = count,
                           .token_ids = ids + start,
                           .position = position,
                           .sequence = sequence,
                           .block_table = table,
                           .num_sequences = 1,
                           .max_blocks = NUM_BLOCKS,
                           .num_logit_rows = count,
                           .logit_rows = rows };
        CHECK_OK(mf_model_forward(model, store, &batch, logits + start * vocab, expert_load, bad_rows, &err), err);
    }
    mf_kv_store_close(&store);
}
