/* device_memory_test.c - models on a device with memory of its own, without a GPU: "ref" with memory operations, whose
 * every pointer must be one that they gave out.  And the plan of such memory. */
#include <stdlib.h>

#include "base/sys.h"
#include "golden_support.h"
#include "kernels/ops.h"
#include "model/staging.h"

/* ---- the device ---- */

enum { MAX_BLOCKS = 64 };

static struct {
    char *begin;
    size_t bytes;
} blocks[MAX_BLOCKS];

static int64_t free_bytes, copies, waits;
static const mf_device_ops *ref;
static mf_device_ops own;

static bool is_own(const void *p, size_t bytes)
{
    for (int i = 0; i < MAX_BLOCKS; i++) {
        if (blocks[i].begin && (const char *)p >= blocks[i].begin &&
            (const char *)p + bytes <= blocks[i].begin + blocks[i].bytes) {
            return true;
        }
    }
    return false;
}

static void check_own(const void *p, int64_t bytes, const char *what)
{
    if (!is_own(p, (size_t)bytes)) {
        fail_msg("%s: %lld bytes are not the device's", what, (long long)bytes);
    }
}

static mf_status alloc(mf_device *device, size_t bytes, void **out, mf_error *err)
{
    (void)device;
    if ((int64_t)bytes > free_bytes) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for %zu bytes", bytes);
    }
    for (int i = 0; i < MAX_BLOCKS; i++) {
        if (!blocks[i].begin) {
            blocks[i].begin = mf_alloc_aligned(bytes + 256);
            blocks[i].bytes = bytes;
            memset(blocks[i].begin, 0xa5, bytes);
            free_bytes -= (int64_t)bytes;
            *out = blocks[i].begin;
            return MF_OK;
        }
    }
    return mf_fail(err, MF_ERR_NOMEM, "too many blocks");
}

static void release(mf_device *device, void *block)
{
    (void)device;
    for (int i = 0; block && i < MAX_BLOCKS; i++) {
        if (blocks[i].begin == block) {
            free_bytes += (int64_t)blocks[i].bytes;
            mf_free_aligned(blocks[i].begin);
            blocks[i].begin = NULL;
            return;
        }
    }
    CHECK(!block);
}

static mf_status copy_async(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err)
{
    (void)device;
    (void)err;
    CHECK(bytes == 0 || is_own(to, bytes) || is_own(from, bytes));
    memcpy(to, from, bytes);
    copies++;
    return MF_OK;
}

static mf_status synchronize(mf_device *device, mf_error *err)
{
    (void)device;
    (void)err;
    waits++;
    return MF_OK;
}

static mf_status info(mf_device *device, int64_t *available, int64_t *total, mf_error *err)
{
    (void)device;
    (void)err;
    *available = free_bytes;
    *total = 64 << 20;
    return MF_OK;
}

static mf_status alloc_host(mf_device *device, size_t bytes, void **out, mf_error *err)
{
    (void)device;
    *out = malloc(bytes);
    return *out ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "no memory");
}

static void release_host(mf_device *device, void *block)
{
    (void)device;
    free(block);
}

static mf_status zero(mf_device *device, void *block, size_t bytes, mf_error *err)
{
    (void)device;
    (void)err;
    check_own(block, (int64_t)bytes, "zero");
    memset(block, 0, bytes);
    return MF_OK;
}

static const mf_device_memory_ops memory = { .alloc = alloc,
                                             .release = release,
                                             .copy = copy_async,
                                             .synchronize = synchronize,
                                             .info = info,
                                             .alloc_host = alloc_host,
                                             .release_host = release_host,
                                             .copy_async = copy_async,
                                             .zero = zero };

static void check_matrix(const mf_matrix *m, const char *what)
{
    check_own(m->data, m->n * m->row_stride / 2, what);
    if (m->scale) {
        check_own(m->scale, 1, what);
    }
    if (m->zero) {
        check_own(m->zero, 1, what);
    }
}

static void embed(mf_device *device, const mf_matrix *table, const int32_t *ids, int64_t num_tokens, float *out,
                  int64_t out_stride)
{
    check_matrix(table, "embedding");
    check_own(ids, num_tokens * 4, "ids");
    check_own(out, num_tokens * out_stride * 4, "embedded rows");
    ref->embed(device, table, ids, num_tokens, out, out_stride);
}

static void rms_norm(mf_device *device, const float *x, int64_t x_stride, int64_t num_tokens, int64_t n,
                     const float *weight, float eps, float *out, int64_t out_stride)
{
    check_own(x, n * 4, "norm's rows");
    check_own(weight, n * 4, "norm's weights");
    check_own(out, n * 4, "norm's result");
    ref->rms_norm(device, x, x_stride, num_tokens, n, weight, eps, out, out_stride);
}

static void linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride)
{
    check_matrix(w, "linear");
    if (bias) {
        check_own(bias, w->n * 4, "bias");
    }
    check_own(x, w->k * 4, "linear's input");
    check_own(out, w->n * 4, "linear's result");
    ref->linear(device, w, bias, act_dtype, x, x_stride, num_tokens, out, out_stride);
}

static void rope(mf_device *device, float *x, int64_t row_stride, int64_t num_vectors, int64_t vector_stride,
                 int64_t dim, bool pair, const float *cos_sin, const int32_t *position, int64_t num_tokens)
{
    check_own(cos_sin, dim * 4, "rope's table");
    check_own(position, num_tokens * 4, "positions");
    ref->rope(device, x, row_stride, num_vectors, vector_stride, dim, pair, cos_sin, position, num_tokens);
}

static void kv_write(mf_device *device, const mf_kv_view *kv, const float *rows, int64_t rows_stride,
                     int64_t num_tokens)
{
    check_own(kv->cache, 4, "cache");
    check_own(kv->block_table, kv->max_blocks * 4, "block table");
    check_own(kv->sequence, num_tokens * 4, "sequences");
    check_own(kv->position, num_tokens * 4, "positions");
    ref->kv_write(device, kv, rows, rows_stride, num_tokens);
}

static void delta_net(mf_device *device, const mf_delta_net_args *args)
{
    check_own(args->state.states, 4, "states");
    check_own(args->state.rows, args->num_tokens * 4, "rows of runs");
    check_own(args->state.start, args->state.num_runs * 4 + 4, "starts of runs");
    check_own(args->state.slot, args->state.num_runs * 4, "slots of runs");
    check_own(args->state.is_new, args->state.num_runs, "beginnings of runs");
    check_own(args->a_log, args->num_v_heads * 4, "a_log");
    ref->delta_net(device, args);
}

static size_t pick_bytes(const mf_device *device, int64_t num_rows, int64_t n)
{
    (void)device;
    return (size_t)(num_rows * n) + 1;
}

/* Every third row is left to the host; of the others the first change's id is given, or the largest's. */
static void pick(mf_device *device, const mf_pick_call *call)
{
    (void)device;
    check_own(call->logits, call->num_rows * call->n * 4, "rows of logits");
    check_own(call->picks, call->num_rows * (int64_t)sizeof *call->picks, "picks");
    check_own(call->picked, call->num_rows * (int64_t)sizeof *call->picked, "answers");
    for (int64_t i = 0; i < call->num_rows; i++) {
        const mf_pick *p = &call->picks[i];
        const float *row = call->logits + i * call->n;
        mf_picked *out = &call->picked[i];
        *out = (mf_picked){ .state = p->position % 3 == 0 ? MF_PICKED_LOGITS : MF_PICKED };
        if (p->num_changes > 0) {
            check_own(call->changes, (p->first_change + p->num_changes) * (int64_t)sizeof *call->changes, "changes");
            out->token_id = call->changes[p->first_change].token_id;
        }
        for (int32_t v = 0; p->num_changes == 0 && v < call->num_ids; v++) {
            out->token_id = row[v] > row[out->token_id] ? v : out->token_id;
        }
    }
}

/* A second stream that is as late as it may be: what is called on it runs when somebody waits for it. */
static struct {
    bool is_open, must_join;
    int num_late, num_forks;
    mf_experts_call call;
    mf_experts_args args;
} beside;

static mf_status beside_begin(mf_device *device, mf_error *err)
{
    (void)device;
    (void)err;
    CHECK(!beside.is_open && !beside.must_join);
    beside.is_open = true;
    beside.num_forks++;
    return MF_OK;
}

static mf_status beside_end(mf_device *device, mf_error *err)
{
    (void)device;
    (void)err;
    CHECK(beside.is_open);
    beside.is_open = false;
    beside.must_join = true;
    return MF_OK;
}

static mf_status beside_join(mf_device *device, mf_error *err)
{
    mf_status status = MF_OK;
    CHECK(!beside.is_open);
    if (beside.must_join && beside.num_late) {
        status = ref->experts(device, &beside.call, err);
        beside.num_late = 0;
    }
    beside.must_join = false;
    return status;
}

static mf_status experts(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    if (!beside.is_open) {
        return ref->experts(device, call, err);
    }
    CHECK_EQ(beside.num_late, 0);
    beside.args = *call->args;
    beside.call = *call;
    beside.call.args = &beside.args;
    beside.num_late = 1;
    memset(call->args->y.data, 0xa5,
           (size_t)(call->num_tokens * call->args->y.stride[0]) * mf_dtype_size(call->args->y.dtype));
    return MF_OK;
}

static mf_status sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err)
{
    CHECK(!beside.is_open);
    if (call->args->num_addends > 0) {
        MF_TRY(beside_join(device, err));
    }
    return ref->sum_reduce(device, call, err);
}

mf_status __real_mf_device_open(const char *name, const mf_device_options *options, mf_device **device, mf_error *err);
mf_status __wrap_mf_device_open(const char *name, const mf_device_options *options, mf_device **device, mf_error *err);

static bool with_memory; /* the next "ref" has memory of its own */
static bool with_second_stream;

mf_status __wrap_mf_device_open(const char *name, const mf_device_options *options, mf_device **device, mf_error *err)
{
    MF_TRY(__real_mf_device_open(name, options, device, err));
    if (with_memory) {
        ref = (*device)->ops;
        own = *ref;
        own.memory = &memory;
        own.embed = embed;
        own.rms_norm = rms_norm;
        own.linear = linear;
        own.rope = rope;
        own.kv_write = kv_write;
        own.delta_net = delta_net;
        own.pick_bytes = pick_bytes;
        own.pick = pick;
        if (with_second_stream) {
            own.beside_begin = beside_begin;
            own.beside_end = beside_end;
            own.beside_join = beside_join;
            own.experts = experts;
            own.sum_reduce = sum_reduce;
        }
        (*device)->ops = &own;
    }
    return MF_OK;
}

static mf_model *open_model(const golden *g, bool has_memory)
{
    mf_model_options options = golden_options("ref");
    with_memory = has_memory;
    free_bytes = 60 << 20;
    mf_model *model = golden_model(g, &options);
    with_memory = false;
    return model;
}

/* ---- claims ---- */

/* Formats, fused and stacked projections, tied and untied heads, states, biases, sinks. */
TEST(a_model_in_memory_of_the_devices_own_gives_the_same_bits)
{
    static const char *const names[] = { "v3",         "v2_lite",    "v3_fp8",    "kimi_k2_int4",  "qwen3",
                                         "qwen3_int8", "qwen3_gptq", "qwen3_awq", "gpt_oss_mxfp4", "gpt_oss",
                                         "llama4",     "hunyuan",    "qwen2",     "qwen3_next",    "mixtral_fp8",
                                         "v3_mxfp4",   "bailing_fp8" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        golden g;
        golden_open(names[i], &g);
        float *here = golden_logits(&g, g.num_tokens), *there = golden_logits(&g, g.num_tokens);
        int32_t bad_rows[2] = { 0, 0 }, *load[2];
        for (int k = 0; k < 2; k++) {
            mf_model *model = open_model(&g, k == 1);
            const mf_model_config *config = mf_model_get_config(model);
            const size_t counts = (size_t)(config->num_layers * config->gate.num_experts);
            load[k] = mf_alloc_array(counts + 1, sizeof **load);
            golden_run(model, g.ids, g.num_tokens, 7, k ? there : here, load[k], &bad_rows[k]);
            if (k == 1) {
                CHECK(mf_model_get_weights(model)->checkpoint == NULL); /* nothing of the files is kept */
                CHECK_MEM(load[0], load[1], counts * sizeof **load);
            }
            mf_model_close(&model);
        }
        CHECK_EQ(bad_rows[1], 0);
        CHECK_MEM(here, there, (size_t)g.num_tokens * (size_t)g.vocab_size * sizeof *here);
        CHECK_EQ(free_bytes, 60 << 20); /* all of it given back */
        mf_free(here);
        mf_free(there);
        mf_free(load[0]);
        mf_free(load[1]);
        golden_close(&g);
    }
}

/* One shared expert and two, one with a gate of its own; a format that keeps it out of the slots. */
TEST(a_shared_expert_beside_the_routed_ones_gives_the_bits_of_one_in_slots)
{
    static const char *const names[] = { "v3", "v2_lite", "v3_fp8", "qwen2", "qwen3_next" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        golden g;
        golden_open(names[i], &g);
        float *fused = golden_logits(&g, g.num_tokens), *apart = golden_logits(&g, g.num_tokens);
        int32_t bad_rows[2] = { 0, 0 };
        for (int k = 0; k < 2; k++) {
            mf_model_options options = golden_options("ref");
            options.plan.disable_shared_experts_fusion = k == 1;
            with_memory = with_second_stream = true;
            free_bytes = 60 << 20;
            beside.num_forks = 0;
            mf_model *model = golden_model(&g, &options);
            with_memory = with_second_stream = false;
            const mf_plan *plan = mf_model_get_plan(model);
            golden_run(model, g.ids, g.num_tokens, 7, k ? apart : fused, NULL, &bad_rows[k]);
            CHECK_EQ(plan->num_serial, 0);
            CHECK_EQ(plan->num_overlap, k ? plan->num_moe : 0);
            CHECK(k ? beside.num_forks > 0 : beside.num_forks == 0);
            mf_model_close(&model);
        }
        CHECK_EQ(bad_rows[1], bad_rows[0]);
        CHECK_MEM(apart, fused, (size_t)g.num_tokens * (size_t)g.vocab_size * sizeof *fused);
        mf_free(fused);
        mf_free(apart);
        golden_close(&g);
    }
}

static const mf_band_table *bands_of_test; /* what the next model finds measured */
const mf_band_table *__wrap_mf_bands_find(const mf_band_table *key);

const mf_band_table *__wrap_mf_bands_find(const mf_band_table *key)
{
    (void)key;
    return bands_of_test;
}

/* Chunks of 1, 3 and 11 tokens are each in another band. */
TEST(a_layer_that_changes_its_mode_with_the_tokens_gives_the_same_bits)
{
    static const char *const names[] = { "v3", "v2_lite", "v3_fp8", "qwen2", "qwen3_next" };
    static const int chunks[] = { 1, 3, 11 };
    mf_band_table table = { .source = "a test",
                            .fused = { { 2, MF_MODE_SLOT }, { 5, MF_MODE_OVERLAP }, { INT64_MAX, MF_MODE_SERIAL } },
                            .apart = { { 2, MF_MODE_SERIAL }, { INT64_MAX, MF_MODE_OVERLAP } } };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        golden g;
        golden_open(names[i], &g);
        const size_t bytes = (size_t)g.num_tokens * (size_t)g.vocab_size * sizeof(float);
        float *want = golden_logits(&g, g.num_tokens), *got = golden_logits(&g, g.num_tokens);
        mf_model *model = open_model(&g, false);
        golden_run(model, g.ids, g.num_tokens, g.num_tokens, want, NULL, NULL);
        mf_model_close(&model);
        for (int way = 0; way < 3; way++) {
            mf_model_options options = golden_options("ref");
            options.plan.disable_shared_experts_fusion = way == 1;
            options.plan.disable_fusion_bands = way == 2;
            with_memory = with_second_stream = true;
            free_bytes = 60 << 20;
            bands_of_test = &table;
            model = golden_model(&g, &options);
            with_memory = with_second_stream = false;
            bands_of_test = NULL;
            for (int c = 0; c < 3; c++) {
                beside.num_forks = 0;
                golden_run(model, g.ids, g.num_tokens, chunks[c], got, NULL, NULL);
                CHECK_MEM(got, want, bytes);
                CHECK(c == 0 || way == 2 ? beside.num_forks == 0
                                         : c == 2 || beside.num_forks > 0); /* 11: and what is left */
            }
            mf_model_close(&model);
        }
        mf_free(want);
        mf_free(got);
        golden_close(&g);
    }
}

/* More logits than are made at once, in an order of copies that loses none. */
TEST(a_step_waits_once_and_copies_its_inputs_once)
{
    golden g;
    golden_open("v2", &g);
    mf_model *model = open_model(&g, true);
    float *logits = golden_logits(&g, g.num_tokens);
    copies = waits = 0;
    golden_run(model, g.ids, g.num_tokens, g.num_tokens, logits, NULL, NULL);
    CHECK_EQ(waits, 1);
    CHECK_EQ(copies, 3); /* inputs; logits, counters */
    mf_free(logits);
    mf_model_close(&model);
    golden_close(&g);
}

/* More rows than logits are made of at once: answers come of all, logits of those that have none. */
TEST(picks_are_answered_and_only_rows_without_an_answer_bring_logits)
{
    enum { ROWS = 300, BLOCK = 4, NUM_BLOCKS = ROWS / BLOCK, POISON = 77 };
    golden g;
    golden_open("v2", &g);
    mf_model_options options = golden_options("ref");
    mf_error err = { 0 };
    mf_kv_store *store = NULL;
    int32_t table[NUM_BLOCKS], ids[ROWS], position[ROWS], rows[ROWS], sequence[ROWS] = { 0 };
    mf_pick picks[ROWS] = { 0 };
    mf_pick_change changes[ROWS] = { 0 };
    mf_picked picked[ROWS];
    const size_t vocab = (size_t)g.vocab_size;
    float *all = mf_alloc_array(ROWS * vocab, sizeof *all), *some = mf_alloc_array(ROWS * vocab, sizeof *some);
    for (int32_t i = 0; i < ROWS; i++) {
        ids[i] = g.ids[i % g.num_tokens];
        position[i] = rows[i] = i;
        table[i / BLOCK] = i / BLOCK;
        picks[i] = (mf_pick){ .kind = MF_PICK_CHOOSE, .position = i, .first_change = i, .num_changes = i % 2 };
        changes[i].token_id = i % 50;
    }
    for (size_t i = 0; i < ROWS * vocab; i++) {
        some[i] = POISON;
    }
    options.max_batch_tokens = ROWS;
    with_memory = true;
    free_bytes = 200 << 20;
    mf_model *model = golden_model(&g, &options);
    with_memory = false;
    CHECK(mf_model_picks(model) && !mf_model_picks_best(model));
    CHECK_OK(mf_kv_store_open(model, NUM_BLOCKS, BLOCK, 1, &store, &err), err);
    mf_batch batch = { .num_tokens = ROWS, .token_ids = ids, .position = position, .sequence = sequence, .block_table = table,
                       .num_sequences = 1, .max_blocks = NUM_BLOCKS, .num_logit_rows = ROWS, .logit_rows = rows };
    CHECK_OK(mf_model_forward(model, store, &batch, all, NULL, NULL, &err), err);
    batch.picks = picks;
    batch.changes = changes;
    batch.num_changes = ROWS;
    batch.picked = picked;
    batch.num_best_ids = g.vocab_size - 3;
    CHECK_OK(mf_model_forward(model, store, &batch, some, NULL, NULL, &err), err);
    for (int32_t i = 0; i < ROWS; i++) {
        const float *row = all + (size_t)i * vocab, *got = some + (size_t)i * vocab;
        int32_t best = 0;
        for (int32_t v = 0; v < batch.num_best_ids; v++) {
            best = row[v] > row[best] ? v : best;
        }
        CHECK_EQ(picked[i].state, i % 3 == 0 ? MF_PICKED_LOGITS : MF_PICKED);
        CHECK_EQ(picked[i].token_id, i % 2 ? i % 50 : best);
        if (i % 3 == 0) {
            CHECK_MEM(got, row, vocab * sizeof *row);
        } else {
            CHECK(got[0] == POISON && got[vocab - 1] == POISON);
        }
    }
    mf_kv_store_close(&store);
    mf_model_close(&model);
    mf_free(all);
    mf_free(some);
    golden_close(&g);
}

/* Rows with gaps, parts that cross from one range to the next, gaps between parts; more than one range. */
TEST(staged_weights_arrive_whole)
{
    enum { STRIDE = 1013, ROW = 777, ROWS = 40000, LONG = 50 << 20, AT = 3 << 10 };
    mf_error err = { 0 };
    mf_device *device = NULL;
    mf_staging staging = { 0 };
    const size_t total = AT + (size_t)ROW * ROWS + 256 + LONG;
    uint8_t *rows = malloc((size_t)STRIDE * ROWS), *whole = malloc(LONG), *want = calloc(1, total);
    void *block;
    with_memory = true;
    free_bytes = 200 << 20;
    CHECK_OK(mf_device_open("ref", NULL, &device, &err), err);
    with_memory = false;
    for (size_t i = 0; i < (size_t)STRIDE * ROWS; i++) {
        rows[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    for (size_t i = 0; i < LONG; i++) {
        whole[i] = (uint8_t)(i * 40503u >> 7);
    }
    for (size_t r = 0; r < ROWS; r++) {
        memcpy(want + AT + r * ROW, rows + r * STRIDE, ROW);
    }
    memcpy(want + total - LONG, whole, LONG);
    CHECK_OK(mf_staging_add(&staging, AT, rows, STRIDE, ROW, ROWS, &err), err);
    CHECK_OK(mf_staging_add(&staging, total - LONG, whole, LONG, LONG, 1, &err), err);
    CHECK_OK(mf_device_malloc(device, total, &block, &err), err);
    const mf_progress silent = { 0 };
    CHECK_OK(mf_staging_run(&staging, device, block, total, &silent, &err), err);
    CHECK_MEM((uint8_t *)block + AT, want + AT, (size_t)ROW * ROWS);
    CHECK_MEM((uint8_t *)block + total - LONG, want + total - LONG, LONG);
    mf_staging_close(&staging);
    mf_device_free(device, block);
    mf_device_close(&device);
    free(rows);
    free(whole);
    free(want);
}

TEST(what_does_not_fit_is_refused_with_the_figures_before_anything_is_loaded)
{
    mf_error err = { 0 };
    mf_memory_plan plan = { .total = (int64_t)100 << 30, .available = (int64_t)98 << 30, .utilization = 0.9 };
    plan.weights = (int64_t)80 << 30;
    plan.activations = (int64_t)8 << 30;
    CHECK_OK(mf_model_check_memory(&plan, "cuda", &err), err); /* 88 of 90 less 2 */
    plan.activations += 1;
    CHECK_EQ(mf_model_check_memory(&plan, "cuda", &err), MF_ERR_NOMEM);
    CHECK_HAS(
        err.message,
        "device cuda: weights of 80.0 GiB and activations of 8.0 GiB do not fit: 100.0 GiB in all, of which 0.90 may "
        "be used and 2.0 GiB are in use already");
    CHECK_HAS(err.message, "--gpu-memory-utilization");

    golden g;
    golden_open("v3", &g);
    mf_model_options options = golden_options("ref");
    mf_model *model = NULL;
    options.memory_utilization = 0.0626; /* of 64 MiB, of which others have 4 */
    with_memory = true;
    free_bytes = 60 << 20;
    copies = 0;
    CHECK_EQ(mf_model_open(g.dir, &options, &model, &err), MF_ERR_NOMEM);
    CHECK_HAS(err.message, "do not fit");
    CHECK_EQ(copies, 0);
    with_memory = false;
    golden_close(&g);
}
