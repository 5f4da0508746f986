/* weights.c - opening a model's weights: see weights.h.  The comparison with the config is weights_match.c. */
#include "model/weights.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "kernels/ops.h"
#include "model/weights_impl.h"

/* Beside the files: tables of matrices for models of thousands of experts, and f32 copies of small vectors. */
enum { TABLE_BYTES = 48 << 20 };

mf_status mf_weights_alloc(const mf_model_config *config, size_t arena_limit, mf_weights **out, mf_error *err)
{
    *out = NULL;
    mf_weights *w = mf_alloc_zero(sizeof *w);
    mf_arena *arena = mf_alloc_zero(sizeof *arena);
    if (!w || !arena) {
        mf_free(w);
        mf_free(arena);
        return mf_fail(err, MF_ERR_NOMEM, "out of memory");
    }
    w->config = config;
    w->arena = arena;
    arena->limit_bytes = arena_limit;
    w->layers = mf_arena_array(arena, (size_t)config->num_layers, sizeof *w->layers);
    bool ok = w->layers != NULL;
    for (int64_t i = 0; ok && i < config->num_layers; i++) {
        if (config->layer_is_moe[i]) {
            w->layers[i].experts =
                mf_arena_array(arena, (size_t)config->gate.num_experts, sizeof *w->layers[i].experts);
            ok = w->layers[i].experts != NULL;
        }
    }
    if (!ok) {
        mf_weights_close(&w);
        return mf_fail(err, MF_ERR_NOMEM, "no memory for the tables of %lld layers with %d experts",
                       (long long)config->num_layers, (int)config->gate.num_experts);
    }
    *out = w;
    return MF_OK;
}

mf_status mf_weights_plausible(const char *dir, const mf_model_config *config, const mf_checkpoint *c, mf_error *err)
{
    int64_t wanted = mf_tensor_map_count(config);
    int64_t params = mf_model_config_size(config).total_params; /* a byte each at least */
    if (wanted > 16 * c->num_tensors + 100000 && params > c->bytes) {
        return mf_fail(err, MF_ERR_FORMAT,
                       "%s: config.json asks for %lld tensors with %lld parameters; the checkpoint holds %lld tensors "
                       "of %lld bytes",
                       dir, (long long)wanted, (long long)params, (long long)c->num_tensors, (long long)c->bytes);
    }
    return MF_OK;
}

size_t mf_weights_arena_limit(const mf_checkpoint *c, bool mapped)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < c->num_shards; i++) {
        bytes += c->shards[i].file.size;
    }
    return (size_t)(mapped ? 2 * bytes : bytes) + TABLE_BYTES;
}

/* Reads one byte of every page.  Mapped pages come from the disk now, not under the first token. */
static mf_status touch_files(const mf_checkpoint *c, const mf_progress *progress, mf_error *err)
{
    enum { PAGE = 4096, CHUNK = 16 << 20 };
    int64_t total = 0, done = 0;
    for (int32_t i = 0; i < c->num_shards; i++) {
        total += (int64_t)c->shards[i].file.size;
    }
    int64_t start = mf_now_ns(), last = start - 1000000000;
    volatile uint8_t sink = 0;
    for (int32_t i = 0; i < c->num_shards; i++) {
        const mf_file *file = &c->shards[i].file;
        for (size_t at = 0; at < file->size; at += CHUNK) {
            size_t n = file->size - at < CHUNK ? file->size - at : CHUNK;
            if (file->mapped) {
                (void)madvise((void *)(uintptr_t)(file->data + at), n, MADV_WILLNEED);
            }
            for (size_t p = 0; p < n; p += PAGE) {
                sink = (uint8_t)(sink ^ file->data[at + p]);
            }
            done += (int64_t)n;
            int64_t now = mf_now_ns();
            if (progress->fn && (now - last >= 100000000 || done == total)) {
                last = now;
                mf_progress_info info = { .what = "loading",
                                          .files_done = done == total ? c->num_shards : i,
                                          .files_total = c->num_shards,
                                          .bytes_done = done,
                                          .bytes_total = total,
                                          .seconds = (double)(now - start) * 1e-9 };
                if (!progress->fn(progress->context, &info)) {
                    return mf_fail(err, MF_ERR_CANCELLED, "loading was cancelled after %lld of %lld bytes",
                                   (long long)done, (long long)total);
                }
            }
        }
    }
    return MF_OK;
}

/* The views of a fused projection: rows of queries, then of keys, then of values. */
static mf_status split_qkv(mf_weights *w, mf_error *err)
{
    const mf_model_config *c = w->config;
    const int64_t rows[3] = { mf_model_config_q_size(c), c->num_kv_heads * c->head_dim, c->num_kv_heads * c->v_head_dim };
    for (int64_t l = 0; l < c->num_layers; l++) {
        mf_layer_weights *layer = &w->layers[l];
        const mf_matrix *all = &layer->qkv_proj;
        mf_matrix *const parts[3] = { &layer->q_proj, &layer->k_proj, &layer->v_proj };
        const float **const biases[3] = { &layer->q_bias, &layer->k_bias, &layer->v_bias };
        if (!all->data) {
            continue; /* of a family that stores them apart, or a layer without */
        }
        int64_t first = 0;
        for (int i = 0; i < 3; first += rows[i++]) {
            if (all->format == MF_FORMAT_FP8_BLOCK && first % 128 != 0) {
                return mf_fail(err, MF_ERR_UNSUPPORTED,
                               "layer %lld: fused queries, keys and values of %lld, %lld and %lld rows: blocks of 128 rows with one "
                               "scale cross from one to the next",
                               (long long)l, (long long)rows[0], (long long)rows[1], (long long)rows[2]);
            }
            *parts[i] = mf_matrix_rows(all, first, rows[i]);
            *biases[i] = layer->qkv_bias ? layer->qkv_bias + first : NULL;
        }
    }
    return MF_OK;
}

mf_status mf_weights_load(const char *dir, const mf_model_config *config, const mf_weights_options *options,
                          mf_weights **out, mf_error *err)
{
    *out = NULL;
    double start = mf_now_s();
    if (options->dummy) {
        MF_TRY(mf_weights_make_dummy(config, options, out, err));
        mf_status made = options->quantization ? mf_weights_quantise(*out, options, err) : MF_OK;
        made = made == MF_OK && options->device && !(*out)->placed ? mf_weights_place(*out, options, err) : made;
        made = made == MF_OK ? split_qkv(*out, err) : made;
        if (made != MF_OK) {
            mf_weights_close(out);
        }
        return made;
    }
    mf_checkpoint *checkpoint = NULL;
    mf_weights *w = NULL;
    mf_checkpoint_options opening = { .use_map = options->use_map, .numa = options->numa, .progress = options->progress };
    mf_status status;
    MF_TRY_GOTO(mf_checkpoint_open_with(dir, &opening, &checkpoint, err), fail);
    MF_TRY_GOTO(mf_weights_plausible(dir, config, checkpoint, err), fail);
    MF_TRY_GOTO(mf_weights_alloc(config, mf_weights_arena_limit(checkpoint, options->use_map), &w, err), fail);
    w->checkpoint = checkpoint;
    checkpoint = NULL;
    mf_match_options match = { .dir = dir };
    MF_TRY_GOTO(mf_weights_match(w, &match, NULL, err), fail);
    if (!options->headers_only) {
        MF_TRY_GOTO(mf_weights_convert(w, options, err), fail);
    }
    if (options->quantization) {
        MF_TRY_GOTO(mf_weights_quantise(w, options, err), fail);
    } else if (options->touch && options->use_map && !options->device) { /* what was read is in memory */
        MF_TRY_GOTO(touch_files(w->checkpoint, &options->progress, err), fail);
    }
    if (options->device) {
        MF_TRY_GOTO(mf_weights_place(w, options, err), fail);
    }
    if (!options->headers_only) {
        MF_TRY_GOTO(split_qkv(w, err), fail);
    }
    w->stats.seconds = mf_now_s() - start;
    *out = w;
    return MF_OK;
fail:
    mf_checkpoint_close(&checkpoint);
    mf_weights_close(&w);
    return status;
}

void mf_weights_close(mf_weights **weights)
{
    mf_weights *w = *weights;
    if (w) {
        if (w->placed) {
            mf_device_free(w->device, w->placed);
        }
        mf_checkpoint_close(&w->checkpoint);
        if (w->arena) {
            mf_arena_clear(w->arena);
            mf_free(w->arena);
        }
        mf_free_huge(w->memory);
        mf_free_huge(w->quantised);
        mf_free_huge(w->converted);
        mf_free(w);
        *weights = NULL;
    }
}
