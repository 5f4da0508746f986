/* model_device.c - see model_device.h.
 *
 * A step's arrays are packed behind one another in page-locked memory, so that one copy brings them over; where each
 * lies depends on the step's sizes alone.  A graph holds pointers and sizes: steps of equal sizes, contexts rounded up,
 * share one. The first step of its kind runs call by call, the second is noted, later ones are replayed. */
#include "model/model_device.h"

#include <string.h>

#include "base/sys.h"

enum { GRAPH_TOKENS = 64, NUM_GRAPHS = 64, LOGIT_ROWS = 128 };

typedef struct step_graph {
    int64_t num_tokens, num_sequences, max_blocks, num_runs, last_used;
    int32_t num_best_ids;
    bool picks;
    const mf_kv_store *store;
    void *graph; /* NULL: seen once */
    bool is_taken;
} step_graph;

struct mf_model_device {
    uint8_t *host, *inputs; /* page-locked, and on the device */
    size_t bytes, used;     /* room, and what this step's arrays take of it */
    int32_t *counts,
        *host_counts; /* [num_counts]: layers * experts, then bad rows; behind them keys of the largest logits */
    size_t num_counts, key_offset; /* bytes to the keys, u64 [max_batch_tokens] */
    float *logits;                 /* [logit_rows, vocab] */
    int32_t logit_rows;
    void *pick_work;               /* NULL: the device chooses no tokens */
    mf_picked *picked, *host_picked; /* [max_batch_tokens], on the device and page-locked */
    step_graph graphs[NUM_GRAPHS];
    int64_t num_steps, num_launches; /* of the last graph */
};

static const mf_device_memory_ops *memory_of(const mf_model *model)
{
    return model->device->ops->memory;
}

/* ---- open and close ---- */

static void drop_graphs(mf_model *model)
{
    mf_model_device *own = model->on_device;
    for (int i = 0; i < NUM_GRAPHS; i++) {
        if (own->graphs[i].graph) {
            memory_of(model)->graph_close(model->device, own->graphs[i].graph);
        }
        own->graphs[i] = (step_graph){ 0 };
    }
}

static void close_inputs(mf_model *model)
{
    mf_model_device *own = model->on_device;
    memory_of(model)->release_host(model->device, own->host);
    mf_device_free(model->device, own->inputs);
    own->host = own->inputs = NULL;
    own->bytes = 0;
}

/* Graphs know the old place: they go. */
static mf_status grow_inputs(mf_model *model, size_t bytes, mf_error *err)
{
    mf_model_device *own = model->on_device;
    if (bytes <= own->bytes) {
        return MF_OK;
    }
    MF_TRY(mf_device_synchronize(model->device, err));
    drop_graphs(model);
    close_inputs(model);
    bytes += bytes / 2;
    MF_TRY(memory_of(model)->alloc_host(model->device, bytes, (void **)&own->host, err));
    MF_TRY(mf_device_malloc(model->device, bytes, (void **)&own->inputs, err));
    own->bytes = bytes;
    return MF_OK;
}

mf_status mf_model_device_open(mf_model *model, mf_error *err)
{
    const mf_model_config *config = model->config;
    mf_model_device *own = mf_alloc_zero(sizeof *own);
    model->on_device = own;
    if (!own) {
        return mf_fail(err, MF_ERR_NOMEM, "out of memory");
    }
    own->num_counts = 1 + (size_t)(config->num_moe_layers > 0 ? config->num_layers * config->gate.num_experts : 0);
    own->logit_rows = model->max_batch_tokens < LOGIT_ROWS ? (int32_t)model->max_batch_tokens : LOGIT_ROWS;
    const size_t logits = (size_t)own->logit_rows * (size_t)config->vocab_size * sizeof(float);
    MF_TRY(mf_device_malloc(model->device, logits, (void **)&own->logits, err));
    own->key_offset = (own->num_counts * sizeof(int32_t) + 63) / 64 * 64;
    const size_t counts = own->key_offset + (size_t)model->max_batch_tokens * sizeof(uint64_t);
    MF_TRY(mf_device_malloc(model->device, counts, (void **)&own->counts, err));
    MF_TRY(memory_of(model)->alloc_host(model->device, counts, (void **)&own->host_counts, err));
    model->scratch.total_bytes += (int64_t)logits;
    if (model->device->ops->pick) {
        const size_t picked = (size_t)model->max_batch_tokens * sizeof *own->picked;
        const size_t work = model->device->ops->pick_bytes(model->device, own->logit_rows, config->vocab_size);
        MF_TRY(mf_device_malloc(model->device, work, &own->pick_work, err));
        MF_TRY(mf_device_malloc(model->device, picked, (void **)&own->picked, err));
        MF_TRY(memory_of(model)->alloc_host(model->device, picked, (void **)&own->host_picked, err));
        model->scratch.total_bytes += (int64_t)(work + picked);
    }
    return grow_inputs(model, (size_t)model->max_batch_tokens * 64, err);
}

void mf_model_device_close(mf_model *model)
{
    mf_model_device *own = model->on_device;
    if (own) {
        drop_graphs(model);
        close_inputs(model);
        mf_device_free(model->device, own->logits);
        mf_device_free(model->device, own->counts);
        memory_of(model)->release_host(model->device, own->host_counts);
        mf_device_free(model->device, own->pick_work);
        mf_device_free(model->device, own->picked);
        memory_of(model)->release_host(model->device, own->host_picked);
        mf_free(own);
        model->on_device = NULL;
    }
}

mf_status mf_model_device_print(const mf_model *model, mf_buffer *out)
{
    int64_t available, total;
    mf_error err;
    if (!model->on_device || memory_of(model)->info(model->device, &available, &total, &err) != MF_OK) {
        return MF_OK;
    }
    const double gib = 0x1p-30, may = model->memory_utilization * (double)total;
    return mf_buffer_printf(out, "gpu     %.1f GiB, may use %.2f of it: %.1f GiB | in use %.1f GiB | left %.1f GiB\n",
                            (double)total * gib, model->memory_utilization, may * gib,
                            (double)(total - available) * gib, (may - (double)(total - available)) * gib);
}

/* ---- a step's inputs ---- */

typedef struct packer {
    uint8_t *host, *device; /* NULL: counting */
    size_t used;
} packer;

static size_t take(packer *p, size_t bytes)
{
    const size_t at = p->used;
    p->used += (bytes + 15) / 16 * 16;
    return at;
}

static const void *pack(packer *p, const void *data, size_t bytes)
{
    const size_t at = take(p, bytes);
    if (!p->host) {
        return NULL;
    }
    memcpy(p->host + at, data, bytes);
    return p->device + at;
}

static void pack_step(packer *p, const mf_batch *batch, const mf_step *step, mf_step *out)
{
    const size_t rows = (size_t)step->num_tokens, word = sizeof(int32_t);
    const mf_state_view *states = &step->states;
    out->token_ids = pack(p, step->token_ids, rows * word);
    out->position = pack(p, step->position, rows * word);
    out->sequence = pack(p, step->sequence, rows * word);
    if (states->num_runs > 0) {
        const size_t runs = (size_t)states->num_runs;
        out->states.rows = pack(p, states->rows, rows * word);
        out->states.start = pack(p, states->start, (runs + 1) * word);
        out->states.slot = pack(p, states->slot, runs * word);
        out->states.is_new = pack(p, states->is_new, runs);
    }
    const size_t stride = (size_t)out->max_blocks * word, row = (size_t)batch->max_blocks * word;
    const size_t at = take(p, (size_t)batch->num_sequences * stride);
    for (int32_t i = 0; p->host && i < batch->num_sequences; i++) {
        uint8_t *to = p->host + at + (size_t)i * stride;
        memcpy(to, batch->block_table + (int64_t)i * batch->max_blocks, row);
        memset(to + row, 0, stride - row); /* behind every sequence's end */
    }
    out->block_table = p->host ? (const int32_t *)(const void *)(p->device + at) : NULL;
    if (batch->picks) { /* the changes last: their number moves nothing else */
        out->picks = pack(p, batch->picks, (size_t)batch->num_logit_rows * sizeof *batch->picks);
        const size_t changes = take(p, (size_t)batch->num_changes * sizeof *batch->changes);
        if (p->host) {
            memcpy(p->host + changes, batch->changes, (size_t)batch->num_changes * sizeof *batch->changes);
            out->changes = (mf_pick_change *)(void *)(p->device + changes);
        }
    }
}

/* ---- graphs ---- */

static int64_t power_of_two(int64_t n)
{
    int64_t p = 1;
    while (p < n) {
        p *= 2;
    }
    return p;
}

/* 0: nothing but logits is wanted. */
static int32_t best_ids(const mf_batch *batch)
{
    return batch->best || batch->picks ? batch->num_best_ids : 0;
}

/* The graph of such steps; its place, taken from the one that was not used for longest, when there is none yet. */
static step_graph *find_graph(mf_model *model, const mf_kv_store *store, const mf_batch *batch, const mf_step *step)
{
    mf_model_device *own = model->on_device;
    step_graph *oldest = &own->graphs[0];
    for (int i = 0; i < NUM_GRAPHS; i++) {
        step_graph *g = &own->graphs[i];
        if (g->is_taken && g->num_tokens == step->num_tokens && g->num_sequences == batch->num_sequences &&
            g->max_blocks == step->max_blocks && g->num_best_ids == best_ids(batch) &&
            g->picks == (batch->picks != NULL) && g->num_runs == step->states.num_runs && g->store == store) {
            return g;
        }
        oldest = !g->is_taken || (oldest->is_taken && g->last_used < oldest->last_used) ? g : oldest;
    }
    if (oldest->graph) {
        memory_of(model)->graph_close(model->device, oldest->graph);
    }
    *oldest = (step_graph){ .num_tokens = step->num_tokens,
                            .num_sequences = batch->num_sequences,
                            .max_blocks = step->max_blocks,
                            .num_runs = step->states.num_runs,
                            .num_best_ids = best_ids(batch),
                            .picks = batch->picks != NULL,
                            .store = store };
    return oldest;
}

bool mf_model_picks_best(const mf_model *model)
{
    return model->on_device && model->device->ops->best;
}

bool mf_model_picks(const mf_model *model)
{
    return model->on_device && model->on_device->pick_work;
}

int64_t mf_model_step_launches(const mf_model *model)
{
    return model->on_device ? model->on_device->num_launches : 0;
}

void *mf_model_alloc_logits(const mf_model *model, size_t bytes)
{
    void *block;
    mf_error ignored;
    return model->on_device && memory_of(model)->alloc_host(model->device, bytes, &block, &ignored) == MF_OK ? block
                                                                                                             : NULL;
}

void mf_model_free_logits(const mf_model *model, void *logits)
{
    if (logits) {
        memory_of(model)->release_host(model->device, logits);
    }
}

void mf_model_device_forget(mf_model *model)
{
    if (model->on_device) {
        drop_graphs(model);
    }
}

/* ---- a step ---- */

/* Counts, and keys where they are wanted. */
static size_t bytes_of_counts(const mf_model *model, const mf_batch *batch)
{
    const mf_model_device *own = model->on_device;
    return batch->best ? own->key_offset + (size_t)batch->num_logit_rows * sizeof(uint64_t)
                       : own->num_counts * sizeof(int32_t);
}

/* Logits of rows [first, first + count), and their largest or what else is chosen. */
static void run_head(mf_model *model, const mf_batch *batch, const mf_step *step, mf_head_fn head, int32_t first,
                     int32_t count)
{
    mf_model_device *own = model->on_device;
    if (count > 0) {
        head(model, batch, first, count, own->logits);
    }
    if (count > 0 && batch->best) {
        uint64_t *keys = (uint64_t *)(void *)((char *)own->counts + own->key_offset);
        model->device->ops->best(model->device, own->logits, count, model->config->vocab_size, batch->num_best_ids,
                                 keys + first);
    } else if (count > 0 && batch->picks) {
        const mf_pick_call call = { .logits = own->logits,
                                    .num_rows = count,
                                    .n = model->config->vocab_size,
                                    .num_ids = batch->num_best_ids,
                                    .picks = step->picks + first,
                                    .changes = step->changes,
                                    .picked = own->picked + first,
                                    .workspace = own->pick_work };
        model->device->ops->pick(model->device, &call);
    }
}

/* -1 where the key says that there is no largest number. */
static int32_t id_of_key(uint64_t key)
{
    const uint32_t minus_infinity = 0x007fffffu; /* as the upper half has it */
    return key == UINT64_MAX || (uint32_t)(key >> 32) <= minus_infinity ? -1 : (int32_t)(UINT32_MAX - (uint32_t)key);
}

/* Steps that only decode a few rows. */
static bool may_be_noted(const mf_model *model, const mf_batch *batch)
{
    return memory_of(model)->graph_begin && batch->num_tokens <= GRAPH_TOKENS &&
           batch->num_logit_rows == batch->num_tokens;
}

/* Whether a step's inputs and results travel among its launches, and so in its graph. */
static bool carries(const mf_model *model, const mf_batch *batch)
{
    return memory_of(model)->carry && may_be_noted(model, batch) && !batch->picks;
}

static mf_status launch(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step,
                        mf_walk_fn walk, mf_head_fn head, int32_t count, mf_error *err)
{
    mf_model_device *own = model->on_device;
    const mf_device_memory_ops *memory = memory_of(model);
    const size_t counted = bytes_of_counts(model, batch);
    const bool is_carried = carries(model, batch);
    if (is_carried) {
        MF_TRY(memory->carry(model->device, own->inputs, own->host, own->used, own->counts, counted, err));
    } else {
        MF_TRY(memory->zero(model->device, own->counts, counted, err));
    }
    MF_TRY(walk(model, store, batch, step, err));
    run_head(model, batch, step, head, 0, count);
    return is_carried ? memory->carry(model->device, own->host_counts, own->counts, counted, NULL, 0, err) : MF_OK;
}

static mf_status note(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step, mf_walk_fn walk,
                      mf_head_fn head, void **graph, mf_error *err)
{
    mf_error ignored;
    mf_batch silent = *batch;
    silent.beat = NULL; /* noting is no progress */
    MF_TRY(memory_of(model)->graph_begin(model->device, err));
    mf_status status = launch(model, store, &silent, step, walk, head, batch->num_logit_rows, err);
    mf_status ended = memory_of(model)->graph_end(model->device, graph, &model->on_device->num_launches,
                                                  status == MF_OK ? err : &ignored);
    return status != MF_OK ? status : ended;
}

static mf_status run_launches(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step,
                              mf_walk_fn walk, mf_head_fn head, mf_error *err)
{
    mf_model_device *own = model->on_device;
    const int32_t first = batch->num_logit_rows < own->logit_rows ? batch->num_logit_rows : own->logit_rows;
    if (!may_be_noted(model, batch)) {
        return launch(model, store, batch, step, walk, head, first, err);
    }
    step_graph *g = find_graph(model, store, batch, step);
    const bool is_known = g->is_taken;
    g->is_taken = true;
    g->last_used = own->num_steps;
    if (!is_known) {
        return launch(model, store, batch, step, walk, head, first, err);
    }
    if (!g->graph) {
        MF_TRY(note(model, store, batch, step, walk, head, &g->graph, err));
    }
    if (batch->beat) {
        batch->beat(batch->beat_context);
    }
    return memory_of(model)->graph_run(model->device, g->graph, err);
}

/* Logits of the chunk's rows [first, first + count): of all, or of those that the device did not choose from. */
static mf_status fetch_logits(mf_model *model, const mf_batch *batch, int32_t first, int32_t count, float *logits,
                              mf_error *err)
{
    mf_model_device *own = model->on_device;
    const int64_t vocab = model->config->vocab_size;
    if (!batch->picks) {
        return memory_of(model)->copy_async(model->device, logits + first * vocab, own->logits,
                                            (size_t)count * (size_t)vocab * sizeof(float), err);
    }
    mf_picked *picked = own->host_picked + first;
    MF_TRY(memory_of(model)->copy_async(model->device, picked, own->picked + first, (size_t)count * sizeof *picked, err));
    MF_TRY(mf_device_synchronize(model->device, err));
    memcpy(batch->picked + first, picked, (size_t)count * sizeof *picked);
    for (int32_t i = 0; i < count; i++) {
        if (picked[i].state == MF_PICKED_LOGITS) {
            MF_TRY(memory_of(model)->copy_async(model->device, logits + (first + i) * vocab, own->logits + i * vocab,
                                                (size_t)vocab * sizeof(float), err));
        }
    }
    return MF_OK;
}

/* What is wanted of the rows' logits, and the head of what did not fit the room for them at once. */
static mf_status finish_logits(mf_model *model, const mf_batch *batch, const mf_step *step, mf_head_fn head,
                               float *logits, mf_error *err)
{
    mf_model_device *own = model->on_device;
    for (int32_t i = 0; i < batch->num_logit_rows; i += own->logit_rows) {
        const int32_t left = batch->num_logit_rows - i, count = left < own->logit_rows ? left : own->logit_rows;
        if (i > 0) {
            run_head(model, batch, step, head, i, count);
        }
        if (!batch->best) {
            MF_TRY(fetch_logits(model, batch, i, count, logits, err));
        }
    }
    return MF_OK;
}

mf_status mf_model_device_run(mf_model *model, mf_kv_store *store, const mf_batch *batch, const mf_step *step,
                              mf_walk_fn walk, mf_head_fn head, float *logits, mf_error *err)
{
    mf_model_device *own = model->on_device;
    const size_t counted = own->num_counts - 1;
    mf_step there = *step;
    own->num_steps++;
    if (may_be_noted(model, batch)) {
        there.max_blocks = power_of_two(step->max_blocks);
        there.max_context = there.max_blocks * store->block_size;
        there.max_context = there.max_context < model->max_len ? there.max_context : model->max_len;
        there.max_context = there.max_context > step->max_context ? there.max_context : step->max_context;
    }
    packer p = { 0 };
    pack_step(&p, batch, step, &there);
    MF_TRY(grow_inputs(model, p.used, err));
    p = (packer){ .host = own->host, .device = own->inputs };
    pack_step(&p, batch, step, &there);
    there.load = counted > 0 ? own->counts : NULL;
    there.bad_rows = own->counts + counted;
    own->used = p.used;
    const bool is_carried = carries(model, batch);
    if (!is_carried) {
        MF_TRY(memory_of(model)->copy_async(model->device, own->inputs, own->host, p.used, err));
    }
    MF_TRY(run_launches(model, store, batch, &there, walk, head, err));
    MF_TRY(finish_logits(model, batch, &there, head, logits, err));
    if (!is_carried) {
        MF_TRY(memory_of(model)->copy_async(model->device, own->host_counts, own->counts, bytes_of_counts(model, batch),
                                            err));
    }
    MF_TRY(mf_device_synchronize(model->device, err));
    for (size_t i = 0; step->load && i < counted; i++) {
        step->load[i] += own->host_counts[i];
    }
    if (step->bad_rows) {
        *step->bad_rows += own->host_counts[counted];
    }
    const uint64_t *keys = (const uint64_t *)(const void *)((const char *)own->host_counts + own->key_offset);
    for (int32_t i = 0; batch->best && i < batch->num_logit_rows; i++) {
        batch->best[i] = id_of_key(keys[i]);
    }
    return MF_OK;
}
