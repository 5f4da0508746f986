/* checkpoint_writer.c - see checkpoint_writer.h. */
#include "checkpoint_writer.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/number.h"
#include "base/random.h"

static void die(const char *what, const char *name)
{
    fprintf(stderr, "checkpoint writer: %s: %s\n", what, name);
    abort();
}

static void *need(void *block)
{
    if (!block) {
        die("out of memory", "");
    }
    return block;
}

/* ---- tensors ---- */

static size_t dtype_bytes(const char *dtype)
{
    static const struct {
        const char *name;
        size_t bytes;
    } table[] = { { "F64", 8 }, { "I64", 8 }, { "F32", 4 }, { "I32", 4 }, { "F16", 2 }, { "BF16", 2 } };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(table[i].name, dtype) == 0) {
            return table[i].bytes;
        }
    }
    return 1;
}

static uint64_t name_seed(const char *name)
{
    uint64_t h = 1469598103934665603u;
    for (; *name; name++) {
        h = (h ^ (unsigned char)*name) * 1099511628211u;
    }
    return h;
}

static void fill(cw_tensor *t)
{
    size_t size = dtype_bytes(t->dtype), n = 1;
    for (int i = 0; i < t->ndim; i++) {
        n *= (size_t)t->shape[i];
    }
    t->bytes = n * size;
    t->data = need(realloc(t->data, t->bytes + 1));
    uint64_t state = name_seed(t->name);
    for (size_t i = 0; i < n; i++) {
        float v = (float)(mf_random_unit(&state) - 0.5);
        uint16_t h = 0;
        if (strcmp(t->dtype, "F32") == 0) {
            memcpy(t->data + 4 * i, &v, 4);
        } else if (strcmp(t->dtype, "BF16") == 0 || strcmp(t->dtype, "F16") == 0) {
            h = t->dtype[0] == 'B' ? mf_f32_to_bf16(v) : mf_f32_to_f16(v);
            memcpy(t->data + 2 * i, &h, 2);
        } else if (strcmp(t->dtype, "F8_E4M3") == 0) {
            t->data[i] = mf_f32_to_e4m3(v * 100);
        } else {
            memset(t->data + size * i, 120 + (int)mf_random_below(&state, 8), size);
        }
    }
}

cw_tensor *cw_add(cw *w, const char *name, const char *dtype, int ndim, const int64_t *shape)
{
    if (w->num_tensors == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 256;
        w->tensors = need(realloc(w->tensors, w->capacity * sizeof *w->tensors));
    }
    cw_tensor *t = &w->tensors[w->num_tensors++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
    t->ndim = ndim;
    if (ndim > 0) {
        memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    }
    fill(t);
    return t;
}

cw_tensor *cw_get(cw *w, const char *name)
{
    for (size_t i = 0; i < w->num_tensors; i++) {
        if (strcmp(w->tensors[i].name, name) == 0) {
            return &w->tensors[i];
        }
    }
    die("no such tensor", name);
    return NULL;
}

void cw_remove(cw *w, const char *name)
{
    cw_tensor *t = cw_get(w, name);
    free(t->data);
    size_t i = (size_t)(t - w->tensors);
    memmove(t, t + 1, (--w->num_tensors - i) * sizeof *t);
}

void cw_remake(cw *w, const char *name, const char *dtype, int ndim, const int64_t *shape)
{
    cw_tensor *t = cw_get(w, name);
    snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
    t->ndim = ndim;
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    fill(t);
}

cw_tensor *cw_copy(cw *w, const char *from, const char *to)
{
    cw_tensor source = *cw_get(w, from);
    cw_tensor *t = cw_add(w, to, source.dtype, source.ndim, source.shape);
    memcpy(t->data, source.data, source.bytes);
    return t;
}

/* ---- the tiny models ---- */

enum {
    H = 16,
    VOCAB = 24,
    HEADS = 2,
    NOPE = 4,
    ROPE = 4,
    V = 4,
    Q_LORA = 8,
    KV_LORA = 8,
    KV_HEADS = 1, /* grouped queries */
    HEAD = 12,
    E = 12,
    DENSE = 24,
    LAYERS = 3
};

static const char *const deepseek_v3_config =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"model_type\": \"deepseek_v3\", \"vocab_size\": 24, "
    "\"hidden_size\": 16,"
    " \"intermediate_size\": 24, \"moe_intermediate_size\": 8, \"num_hidden_layers\": 3, \"num_nextn_predict_layers\": "
    "0,"
    " \"num_attention_heads\": 2, \"num_key_value_heads\": 2, \"n_shared_experts\": 1, \"n_routed_experts\": 12,"
    " \"routed_scaling_factor\": 2.5, \"kv_lora_rank\": 8, \"q_lora_rank\": 8, \"qk_rope_head_dim\": 4, "
    "\"v_head_dim\": 4,"
    " \"qk_nope_head_dim\": 4, \"topk_method\": \"noaux_tc\", \"n_group\": 4, \"topk_group\": 2, "
    "\"num_experts_per_tok\": 3,"
    " \"moe_layer_freq\": 1, \"first_k_dense_replace\": 1, \"norm_topk_prob\": true, \"scoring_func\": \"sigmoid\","
    " \"hidden_act\": \"silu\", \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-06, \"tie_word_embeddings\": "
    "false,"
    " \"rope_theta\": 10000, \"rope_scaling\": null, \"attention_bias\": false, \"torch_dtype\": \"bfloat16\","
    " \"bos_token_id\": 0, \"eos_token_id\": 1}";

static const char *const qwen3_moe_config =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", \"vocab_size\": 24, "
    "\"hidden_size\": 16, \"intermediate_size\": 24, \"moe_intermediate_size\": 8, \"num_hidden_layers\": 3,"
    " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 12, \"num_experts\": 12,"
    " \"num_experts_per_tok\": 3, \"decoder_sparse_step\": 1, \"mlp_only_layers\": [0], \"norm_topk_prob\": true,"
    " \"use_sliding_window\": false, \"sliding_window\": null, \"max_window_layers\": 3, \"hidden_act\": \"silu\","
    " \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-06, \"tie_word_embeddings\": false,"
    " \"rope_theta\": 1000000.0, \"rope_scaling\": null, \"attention_bias\": false, \"torch_dtype\": \"bfloat16\","
    " \"router_aux_loss_coef\": 0.001, \"bos_token_id\": 0, \"eos_token_id\": 1}";

static const char *const glm4_moe_config =
    "{\"architectures\": [\"Glm4MoeForCausalLM\"], \"model_type\": \"glm4_moe\", \"vocab_size\": 24, "
    "\"hidden_size\": 16, \"intermediate_size\": 24, \"moe_intermediate_size\": 8, \"num_hidden_layers\": 3,"
    " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 12, \"n_routed_experts\": 12,"
    " \"n_shared_experts\": 1, \"num_experts_per_tok\": 3, \"n_group\": 4, \"topk_group\": 2,"
    " \"routed_scaling_factor\": 2.5, \"norm_topk_prob\": true, \"first_k_dense_replace\": 1,"
    " \"use_qk_norm\": true, \"partial_rotary_factor\": 0.5, \"num_nextn_predict_layers\": 1,"
    " \"hidden_act\": \"silu\", \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-05,"
    " \"tie_word_embeddings\": false, \"rope_theta\": 1000000.0, \"rope_scaling\": null, \"attention_bias\": true,"
    " \"torch_dtype\": \"bfloat16\", \"bos_token_id\": 0, \"eos_token_id\": [1, 2]}";

static void add2(cw *w, const char *name, const char *dtype, int64_t n, int64_t k)
{
    cw_add(w, name, dtype, k ? 2 : 1, (int64_t[2]){ n, k });
}

/* A linear layer: BF16, or FP8 with its block scales. */
static void add_linear(cw *w, bool fp8, int64_t n, int64_t k, const char *name)
{
    char full[256];
    snprintf(full, sizeof full, "%s.weight", name);
    add2(w, full, fp8 ? "F8_E4M3" : "BF16", n, k);
    if (fp8) {
        snprintf(full, sizeof full, "%s.weight_scale_inv", name);
        add2(w, full, "F32", (n + 127) / 128, (k + 127) / 128);
    }
}

static void add_mlp(cw *w, bool fp8, int64_t width, const char *prefix)
{
    char name[200];
    snprintf(name, sizeof name, "%s.gate_proj", prefix);
    add_linear(w, fp8, width, H, name);
    snprintf(name, sizeof name, "%s.up_proj", prefix);
    add_linear(w, fp8, width, H, name);
    snprintf(name, sizeof name, "%s.down_proj", prefix);
    add_linear(w, fp8, H, width, name);
}

static void add_stacked(cw *w, bool fp8, int64_t width, const char *prefix)
{
    char name[200];
    snprintf(name, sizeof name, "%s.experts.gate_up_proj", prefix);
    cw_add(w, name, fp8 ? "F8_E4M3" : "BF16", 3, (int64_t[3]){ E, 2 * width, H });
    snprintf(name, sizeof name, "%s.experts.down_proj", prefix);
    cw_add(w, name, fp8 ? "F8_E4M3" : "BF16", 3, (int64_t[3]){ E, H, width });
    if (fp8) {
        snprintf(name, sizeof name, "%s.experts.gate_up_proj_scale_inv", prefix);
        cw_add(w, name, "F32", 3, (int64_t[3]){ E, (2 * width + 127) / 128, 1 });
        snprintf(name, sizeof name, "%s.experts.down_proj_scale_inv", prefix);
        cw_add(w, name, "F32", 3, (int64_t[3]){ E, 1, (width + 127) / 128 });
    }
}

static void add_grouped_attention(cw *w, int layer, bool biased, bool fp8)
{
    const struct {
        const char *name;
        int64_t n, k; /* k 0: a norm */
        bool biased;
    } rows[] = { { "q_proj", HEADS * HEAD, H, biased },
                 { "k_proj", KV_HEADS * HEAD, H, biased },
                 { "v_proj", KV_HEADS * HEAD, H, biased },
                 { "q_norm", HEAD, 0, false },
                 { "k_norm", HEAD, 0, false },
                 { "o_proj", H, HEADS * HEAD, false } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char module[100], name[120];
        snprintf(module, sizeof module, "model.layers.%d.self_attn.%s", layer, rows[i].name);
        if (rows[i].k) {
            add_linear(w, fp8, rows[i].n, rows[i].k, module);
        } else {
            snprintf(name, sizeof name, "%s.weight", module);
            add2(w, name, "BF16", rows[i].n, 0);
        }
        if (rows[i].biased) {
            snprintf(name, sizeof name, "%s.bias", module);
            add2(w, name, "BF16", rows[i].n, 0);
        }
    }
}

static void add_latent_attention(cw *w, int layer, bool q_lora, bool fp8)
{
    char base[100], name[200];
    snprintf(base, sizeof base, "model.layers.%d", layer);
    const struct {
        const char *name;
        int64_t n, k; /* k 0: a norm */
        int when;     /* 1 with q_lora, 2 without, 0 always */
    } rows[] = { { "q_a_proj", Q_LORA, H, 1 },
                 { "q_a_layernorm", Q_LORA, 0, 1 },
                 { "q_b_proj", HEADS * (NOPE + ROPE), Q_LORA, 1 },
                 { "q_proj", HEADS * (NOPE + ROPE), H, 2 },
                 { "kv_a_proj_with_mqa", KV_LORA + ROPE, H, 0 },
                 { "kv_a_layernorm", KV_LORA, 0, 0 },
                 { "kv_b_proj", HEADS * (NOPE + V), KV_LORA, 0 },
                 { "o_proj", H, HEADS * V, 0 } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].when == (q_lora ? 2 : 1)) {
            continue;
        }
        snprintf(name, sizeof name, "%s.self_attn.%s", base, rows[i].name);
        if (rows[i].k) {
            add_linear(w, fp8, rows[i].n, rows[i].k, name);
        } else {
            strcat(name, ".weight");
            add2(w, name, "BF16", rows[i].n, 0);
        }
    }
}

static void add_attention(cw *w, int layer, cw_kind kind, bool fp8)
{
    const char *const norms[] = { "input_layernorm", "post_attention_layernorm" };
    for (int i = 0; i < 2; i++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, norms[i]);
        add2(w, name, "BF16", H, 0);
    }
    if (kind == CW_QWEN3 || kind == CW_QWEN3_FP8 || kind == CW_GLM4) {
        add_grouped_attention(w, layer, kind == CW_GLM4, fp8);
    } else {
        add_latent_attention(w, layer, kind != CW_V2_LITE, fp8);
    }
}

static void make_v2(cw *w, bool lite)
{
    const char *const drop[] = { "num_nextn_predict_layers" };
    cw_set(w, drop[0], NULL);
    cw_set(w, "architectures", "[\"DeepseekV2ForCausalLM\"]");
    cw_set(w, "model_type", "\"deepseek_v2\"");
    cw_set(w, "norm_topk_prob", "false");
    cw_set(w, "scoring_func", "\"softmax\"");
    cw_set(w, "topk_method", lite ? "\"greedy\"" : "\"group_limited_greedy\"");
    cw_set(w, "n_shared_experts", "2");
    cw_set(w, "routed_scaling_factor", lite ? "1.0" : "16.0");
    if (lite) {
        cw_set(w, "q_lora_rank", "null");
        cw_set(w, "n_group", "1");
        cw_set(w, "topk_group", "1");
    }
}

cw *cw_new(cw_kind kind)
{
    cw *w = need(calloc(1, sizeof *w));
    bool v2 = kind == CW_V2 || kind == CW_V2_LITE;
    bool qwen = kind == CW_QWEN3 || kind == CW_QWEN3_FP8;
    bool fp8 = kind == CW_V3_FP8 || kind == CW_V3_FP8_STACKED || kind == CW_QWEN3_FP8;
    bool stacked = kind == CW_V3_STACKED || kind == CW_V3_FP8_STACKED;
    int64_t width = kind == CW_V3_FP8_STACKED ? 128 : 8; /* gate and up meet at a block's border */
    const char *config = qwen ? qwen3_moe_config : kind == CW_GLM4 ? glm4_moe_config : deepseek_v3_config;
    w->config = need(json_loads(config, 0, NULL));
    if (v2) {
        make_v2(w, kind == CW_V2_LITE);
    }
    if (fp8) {
        cw_set(w, "quantization_config",
               "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\", "
               "\"weight_block_size\": [128, 128]}");
    }
    if (width != 8) {
        cw_set(w, "moe_intermediate_size", "128");
    }
    add2(w, "model.embed_tokens.weight", "BF16", VOCAB, H);
    for (int layer = 0; layer < LAYERS; layer++) {
        char name[100];
        add_attention(w, layer, kind, fp8);
        snprintf(name, sizeof name, "model.layers.%d.mlp", layer);
        if (layer == 0) {
            add_mlp(w, fp8, DENSE, name);
            continue;
        }
        snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight", layer);
        add2(w, name, "BF16", E, H);
        if (!v2 && !qwen) {
            snprintf(name, sizeof name, "model.layers.%d.mlp.gate.e_score_correction_bias", layer);
            add2(w, name, "F32", E, 0);
        }
        if (!qwen) {
            snprintf(name, sizeof name, "model.layers.%d.mlp.shared_experts", layer);
            add_mlp(w, fp8, v2 ? 2 * width : width, name);
        }
        snprintf(name, sizeof name, "model.layers.%d.mlp", layer);
        if (stacked) {
            add_stacked(w, fp8, width, name);
        }
        for (int e = 0; e < E && !stacked; e++) {
            snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d", layer, e);
            add_mlp(w, fp8, width, name);
        }
    }
    add2(w, "model.norm.weight", "BF16", H, 0);
    add2(w, "lm_head.weight", "BF16", VOCAB, H);
    return w;
}

void cw_free(cw *w)
{
    if (w->dir[0]) {
        cw_remove_dir(w->dir);
    }
    for (size_t i = 0; i < w->num_tensors; i++) {
        free(w->tensors[i].data);
    }
    free(w->tensors);
    json_decref(w->config);
    json_decref(w->generation);
    free(w);
}

void cw_set(cw *w, const char *key, const char *json_text)
{
    json_t *object = w->config;
    const char *point = strchr(key, '.');
    if (point) {
        char outer[100];
        snprintf(outer, sizeof outer, "%.*s", (int)(point - key), key);
        object = json_object_get(object, outer);
        key = point + 1;
    }
    if (!json_text) {
        json_object_del(object, key);
        return;
    }
    json_t *value = json_loads(json_text, JSON_DECODE_ANY, NULL);
    if (!value || json_object_set_new(object, key, value) != 0) {
        die("bad value for key", key);
    }
}

/* ---- files ---- */

void cw_shard(cw *w, int num_shards)
{
    w->num_shards = num_shards;
    for (size_t i = 0; i < w->num_tensors; i++) {
        w->tensors[i].shard = num_shards ? (int)(i % (size_t)num_shards) : 0;
    }
}

uint8_t *cw_file(const cw *w, int shard, size_t *size)
{
    size_t text_room = 64 + w->pad_header, data_bytes = 0;
    for (size_t i = 0; i < w->num_tensors; i++) {
        text_room += 400 + strlen(w->tensors[i].name);
        data_bytes += w->tensors[i].bytes;
    }
    uint8_t *file = need(malloc(8 + text_room + data_bytes));
    char *text = (char *)file + 8;
    size_t n = (size_t)sprintf(text, "{\"__metadata__\":{\"format\":\"pt\"}"), at = 0;
    for (size_t i = 0; i < w->num_tensors; i++) {
        const cw_tensor *t = &w->tensors[i];
        if (shard >= 0 && t->shard != shard) {
            continue;
        }
        n += (size_t)sprintf(text + n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->dtype);
        for (int d = 0; d < t->ndim; d++) {
            n += (size_t)sprintf(text + n, "%s%lld", d ? "," : "", (long long)t->shape[d]);
        }
        n += (size_t)sprintf(text + n, "],\"data_offsets\":[%zu,%zu]}", at, at + t->bytes);
        at += t->bytes;
    }
    text[n++] = '}';
    size_t pad = (8 - n % 8) % 8 + w->pad_header;
    memset(text + n, ' ', pad);
    n += pad;
    for (int i = 0; i < 8; i++) {
        file[i] = (uint8_t)((uint64_t)n >> (8 * i));
    }
    size_t done = 8 + n;
    for (size_t i = 0; i < w->num_tensors; i++) {
        const cw_tensor *t = &w->tensors[i];
        if (shard < 0 || t->shard == shard) {
            memcpy(file + done, t->data, t->bytes);
            done += t->bytes;
        }
    }
    *size = done;
    return file;
}

void cw_write_bytes(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
        die("cannot write", path);
    }
}

uint8_t *cw_read(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        die("cannot read", path);
    }
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = need(malloc(*size + 1));
    if (fread(data, 1, *size, f) != *size) {
        die("short read", path);
    }
    fclose(f);
    return data;
}

void cw_make_dir(char *out, size_t size)
{
    const char *base = getenv("TMPDIR");
    snprintf(out, size, "%s/moefuse-test-XXXXXX", base ? base : P_tmpdir);
    if (!mkdtemp(out)) {
        die("cannot make a directory", out);
    }
}

void cw_remove_dir(const char *dir)
{
    DIR *listing = opendir(dir);
    for (const struct dirent *e; listing && (e = readdir(listing));) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlink(path) != 0) {
            rmdir(path);
        }
    }
    if (listing) {
        closedir(listing);
    }
    rmdir(dir);
}

const char *cw_path(const cw *w, const char *file)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", w->dir, file);
    return path;
}

static void write_json(const cw *w, const char *file, const json_t *value)
{
    char *text = need(json_dumps(value, JSON_INDENT(1)));
    cw_write_bytes(cw_path(w, file), text, strlen(text));
    free(text);
}

void cw_write(cw *w)
{
    if (!w->dir[0]) {
        cw_make_dir(w->dir, sizeof w->dir);
    }
    write_json(w, "config.json", w->config);
    if (w->generation) {
        write_json(w, "generation_config.json", w->generation);
    }
    size_t size;
    if (!w->num_shards) {
        uint8_t *data = cw_file(w, -1, &size);
        cw_write_bytes(cw_path(w, "model.safetensors"), data, size);
        free(data);
        return;
    }
    json_t *map = json_object();
    char name[64];
    for (size_t i = 0; i < w->num_tensors; i++) {
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", w->tensors[i].shard + 1, w->num_shards);
        json_object_set_new(map, w->tensors[i].name, json_string(name));
    }
    for (int s = 0; s < w->num_shards; s++) {
        uint8_t *data = cw_file(w, s, &size);
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", s + 1, w->num_shards);
        cw_write_bytes(cw_path(w, name), data, size);
        free(data);
    }
    json_t *index = json_pack("{s:{},s:o}", "metadata", "weight_map", map);
    write_json(w, "model.safetensors.index.json", index);
    json_decref(index);
}
