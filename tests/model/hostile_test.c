/* hostile_test.c - mutants of checkpoints and failing allocations: refused or served, never a crash, a leak or a hang.
 */
#include <malloc.h>
#include <stdlib.h>

#include "base/sys.h"
#include "checkpoint_writer.h"
#include "model/weights.h"
#include "mutate.h"
#include "test.h"

enum { NUM_MUTANTS = 1000 };

/* ---- allocations under watch ---- */

static struct {
    void *(*alloc)(size_t);
    void *(*resize)(void *, size_t);
    void (*release)(void *);
    int64_t live_blocks, live_bytes, peak_bytes;
    int64_t calls, fail_at; /* fail_at < 0: never */
    bool fail_on;           /* all later ones fail too */
} heap;

static bool fails(void)
{
    int64_t call = heap.calls++;
    return heap.fail_at >= 0 && (call == heap.fail_at || (heap.fail_on && call > heap.fail_at));
}

static void account(void *block, int sign)
{
    heap.live_blocks += sign;
    heap.live_bytes += sign * (int64_t)malloc_usable_size(block);
    heap.peak_bytes = heap.live_bytes > heap.peak_bytes ? heap.live_bytes : heap.peak_bytes;
}

static void *watched_alloc(size_t bytes)
{
    void *block = fails() ? NULL : heap.alloc(bytes);
    if (block) {
        account(block, 1);
    }
    return block;
}

static void *watched_resize(void *block, size_t bytes)
{
    if (fails()) {
        return NULL;
    }
    if (block) {
        account(block, -1);
    }
    void *fresh = heap.resize(block, bytes);
    if (fresh || block) {
        account(fresh ? fresh : block, 1);
    }
    return fresh;
}

static void watched_release(void *block)
{
    if (block) {
        account(block, -1);
    }
    heap.release(block);
}

static void watch_heap(void)
{
    memset(&heap, 0, sizeof heap);
    heap.alloc = mf_sys_table.alloc;
    heap.resize = mf_sys_table.resize;
    heap.release = mf_sys_table.release;
    heap.fail_at = -1;
    mf_sys_table.alloc = watched_alloc;
    mf_sys_table.resize = watched_resize;
    mf_sys_table.release = watched_release;
}

static void unwatch_heap(void)
{
    mf_sys_table.alloc = heap.alloc;
    mf_sys_table.resize = heap.resize;
    mf_sys_table.release = heap.release;
}

/* ---- using what was accepted ---- */

/* Reads every byte that the weights point to: a view past its file's end is an ASan report or a fault here. */
static uint64_t sum_matrix(const mf_matrix *m)
{
    static const int sizes[MF_FORMAT_COUNT] = {
        [MF_FORMAT_F32] = 4, [MF_FORMAT_BF16] = 2, [MF_FORMAT_F16] = 2, [MF_FORMAT_FP8_BLOCK] = 1,
        [MF_FORMAT_FP8_CHANNEL] = 1
    };
    uint64_t sum = 0;
    const uint8_t *data = m->data;
    for (int64_t i = 0; data && i < m->n * m->row_stride * sizes[m->format]; i++) {
        sum += data[i];
    }
    const uint8_t *scale = m->scale;
    int64_t scale_rows = m->format == MF_FORMAT_FP8_CHANNEL ? m->n : (m->n + 127) / 128;
    int64_t scale_bytes = scale_rows * m->scale_row_stride * (int64_t)mf_dtype_size(m->scale_dtype);
    for (int64_t i = 0; scale && i < scale_bytes; i++) {
        sum += scale[i];
    }
    return sum;
}

static uint64_t sum_weights(const mf_weights *w)
{
    const mf_model_config *c = w->config;
    uint64_t sum = sum_matrix(&w->embed_tokens) + sum_matrix(&w->lm_head);
    double norms = 0;
    CHECK(w->embed_tokens.data && w->lm_head.data && w->norm);
    for (int64_t l = 0; l < c->num_layers; l++) {
        const mf_layer_weights *x = &w->layers[l];
        const mf_matrix *const all[] = { &x->q_proj,      &x->q_a_proj,   &x->q_b_proj,   &x->kv_a_proj,  &x->kv_b_proj,
                                         &x->k_proj,      &x->v_proj,     &x->o_proj,     &x->dense.gate, &x->dense.up,   &x->dense.down, &x->router,
                                         &x->shared.gate, &x->shared.up,  &x->shared.down };
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            sum += sum_matrix(all[i]);
        }
        for (int64_t e = 0; c->layer_is_moe[l] && e < c->gate.num_experts; e++) {
            CHECK(x->experts[e].gate.data && x->experts[e].up.data && x->experts[e].down.data);
            sum += sum_matrix(&x->experts[e].gate) + sum_matrix(&x->experts[e].up) + sum_matrix(&x->experts[e].down);
        }
        for (int64_t i = 0; i < c->hidden_size; i++) {
            norms += (double)x->input_norm[i] + (double)x->post_attention_norm[i];
        }
        for (int64_t i = 0; c->qk_norm && i < c->head_dim; i++) {
            norms += (double)x->q_norm[i] + (double)x->k_norm[i];
        }
        for (int64_t i = 0; x->k_bias && i < c->num_kv_heads * c->head_dim; i++) {
            norms += (double)x->q_bias[i] + (double)x->k_bias[i] + (double)x->v_bias[i];
        }
    }
    return sum + (norms == 0.5);
}

static mf_status load(const char *dir, bool use_map, mf_model_config **config, mf_weights **weights, mf_error *err)
{
    mf_weights_options options = { .use_map = use_map };
    *weights = NULL;
    mf_status status = mf_model_config_load(dir, config, err);
    return status == MF_OK ? mf_weights_load(dir, *config, &options, weights, err) : status;
}

static size_t directory_bytes(const char *dir)
{
    static const char *const files[] = { "config.json",
                                         "generation_config.json",
                                         "model.safetensors",
                                         "model.safetensors.index.json",
                                         "model-00001-of-00003.safetensors",
                                         "model-00002-of-00003.safetensors",
                                         "model-00003-of-00003.safetensors" };
    size_t sum = 0;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        FILE *f = fopen(path, "rb");
        if (f) {
            fseek(f, 0, SEEK_END);
            sum += (size_t)ftell(f);
            fclose(f);
        }
    }
    return sum;
}

static void try_mutants(cw_kind kind, int shards, uint64_t first_seed, int count)
{
    cw *w = cw_new(kind);
    w->generation = json_pack("{s:[i,i], s:f, s:i}", "eos_token_id", 1, 7, "temperature", 0.6, "top_k", 20);
    cw_shard(w, shards);
    cw_write(w);
    char dir[300], what[600];
    cw_make_dir(dir, sizeof dir);
    int accepted = 0;
    volatile uint64_t sink = 0;
    for (int i = 0; i < count; i++) {
        mutate_directory(w->dir, dir, first_seed + (uint64_t)i, what, sizeof what);
        size_t bytes = directory_bytes(dir);
        watch_heap();
        double start = mf_now_s();
        mf_model_config *c;
        mf_weights *x;
        mf_error err = { 0 };
        mf_status status = load(dir, i % 2, &c, &x, &err);
        double seconds = mf_now_s() - start;
        if (status == MF_OK) {
            accepted++;
            sink += sum_weights(x);
        }
        mf_weights_close(&x);
        mf_model_config_close(&c);
        unwatch_heap();
        bool names_file = strstr(err.message, ".json") || strstr(err.message, ".safetensors");
        if ((status != MF_OK && !names_file) || heap.live_blocks != 0 || seconds > 1.0 ||
            heap.peak_bytes > 2 * (int64_t)bytes + (64 << 20)) {
            fail_msg("seed %llu (%s): status %d \"%s\", %lld blocks left, %.2f s, peak %lld bytes",
                     (unsigned long long)first_seed + (unsigned)i, what, (int)status, err.message,
                     (long long)heap.live_blocks, seconds, (long long)heap.peak_bytes);
        }
    }
    print_message("%d mutants: %d accepted\n", count, accepted);
    /* Neither all nor none: else the mutants test nothing. */
    CHECK(accepted > count / 50 && accepted < count * 3 / 4);
    cw_remove_dir(dir);
    cw_free(w);
}

TEST(mutants_of_one_file_are_refused_by_name_or_served)
{
    try_mutants(CW_V3, 0, 1, NUM_MUTANTS / 4);
    try_mutants(CW_V2_LITE, 0, 10001, NUM_MUTANTS / 4);
}

TEST(mutants_of_grouped_query_models_are_refused_by_name_or_served)
{
    try_mutants(CW_QWEN3, 0, 40001, NUM_MUTANTS / 4);
    try_mutants(CW_GLM4, 3, 50001, NUM_MUTANTS / 4);
}

TEST(mutants_of_shards_are_refused_by_name_or_served)
{
    try_mutants(CW_V3_FP8, 3, 20001, NUM_MUTANTS / 4);
    try_mutants(CW_V3_STACKED, 3, 30001, NUM_MUTANTS / 4);
}

TEST(a_mutant_is_the_same_for_the_same_seed)
{
    cw *w = cw_new(CW_V3);
    cw_write(w);
    char a[300], b[300], path[400], what_a[600], what_b[600];
    cw_make_dir(a, sizeof a);
    cw_make_dir(b, sizeof b);
    for (uint64_t seed = 1; seed < 20; seed++) {
        mutate_directory(w->dir, a, seed, what_a, sizeof what_a);
        mutate_directory(w->dir, b, seed, what_b, sizeof what_b);
        CHECK_STR(what_a, what_b);
        size_t na, nb;
        snprintf(path, sizeof path, "%s/model.safetensors", a);
        uint8_t *x = cw_read(path, &na);
        snprintf(path, sizeof path, "%s/model.safetensors", b);
        uint8_t *y = cw_read(path, &nb);
        CHECK_EQ(na, nb);
        CHECK_MEM(x, y, na);
        free(x);
        free(y);
    }
    cw_remove_dir(a);
    cw_remove_dir(b);
    cw_free(w);
}

/* ---- the k-th allocation fails ---- */

/* Runs the whole load with allocation k failing (on: all later ones too) until k lies past the last; returns the
 * number. */
static int64_t sweep(const char *dir, bool use_map, bool on, int64_t step)
{
    for (int64_t k = 0;; k += step) {
        watch_heap();
        heap.fail_at = k;
        heap.fail_on = on;
        mf_model_config *c;
        mf_weights *x;
        mf_error err = { 0 };
        mf_status status = load(dir, use_map, &c, &x, &err);
        bool reached = heap.calls > k;
        mf_weights_close(&x);
        mf_model_config_close(&c);
        int64_t left = heap.live_blocks;
        unwatch_heap();
        if (left != 0 || (reached && status != MF_ERR_NOMEM) || (!reached && status != MF_OK)) {
            fail_msg("allocation %lld: status %d \"%s\", %lld blocks left", (long long)k, (int)status, err.message,
                     (long long)left);
        }
        if (!reached) {
            return heap.calls;
        }
    }
}

TEST(a_load_without_memory_at_any_point_ends_cleanly)
{
    cw *w = cw_new(CW_V3_STACKED); /* few tensors: every allocation can be tried */
    cw_set(w, "quantization_config",
           "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"modules_to_not_convert\":"
           " [\"mlp\", \"self_attn\"]}");
    w->generation = json_pack("{s:[i,i]}", "eos_token_id", 1, 7);
    cw_shard(w, 2);
    w->pad_header = 1; /* so that tensors are copied too */
    cw_write(w);
    int64_t calls = sweep(w->dir, false, false, 1);
    sweep(w->dir, true, true, 1);
    print_message("%lld allocations\n", (long long)calls);
    CHECK(calls > 300);
    cw_free(w);
}

TEST(dummy_weights_without_memory_end_cleanly)
{
    cw *w = cw_new(CW_V3);
    char *text = json_dumps(w->config, 0);
    mf_model_config *c;
    mf_error err;
    CHECK_OK(mf_model_config_parse(text, strlen(text), "config.json", &c, &err), err);
    mf_weights_options options = { .dummy = true, .num_threads = 1 };
    for (int64_t k = 0;; k++) {
        watch_heap();
        heap.fail_at = k;
        mf_weights *x;
        mf_status status = mf_weights_load(NULL, c, &options, &x, &err);
        bool reached = heap.calls > k;
        mf_weights_close(&x);
        int64_t left = heap.live_blocks;
        unwatch_heap();
        CHECK_EQ(left, 0);
        CHECK_EQ(status, reached ? MF_ERR_NOMEM : MF_OK);
        if (!reached) {
            CHECK(k > 5);
            break;
        }
    }
    mf_model_config_close(&c);
    free(text);
    cw_free(w);
}
