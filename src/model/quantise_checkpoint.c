/* quantise_checkpoint.c - writes what quantise_plan.c decided, shard by shard, a tensor at a time: see
 * quantise_checkpoint.h.
 *
 * Everything goes into OUT.partial-PID beside OUT, each file synced, and becomes OUT by one rename; whatever ends the
 * work before that leaves no OUT.  Memory: the largest matrix's codes, and 128 rows per thread. */
#include "model/quantise_checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu_features.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "base/threads.h"
#include "model/checkpoint.h"
#include "model/quantise_rows.h"
#include "model/safetensors_write.h"
#include "model/weights_impl.h"

enum { COPY_BYTES = 8 << 20, MAX_SMALL_FILE = 256 << 20, PAGE = 4096, MAX_ENTRIES = 3 };

typedef struct quantiser {
    const char *in;
    const mf_quantise_options *options;
    mf_quantise_plan plan;
    mf_quantise_report *report;
    char *partial; /* the folder that is written */
    mf_pool *pool;
    uint8_t *codes, *scales; /* of one matrix */
    float *rows;             /* [threads][row_floats] */
    int64_t row_floats;
    mf_quantise_sums *sums; /* [tasks] of one matrix */
    const mf_quantise_item *item;
    int64_t bytes_done, bytes_total, start, last;
    int32_t files_done, files_total;
} quantiser;

/* ---- the tensors of an item ---- */

static int32_t item_entries(const mf_quantise_item *item, char names[MAX_ENTRIES][MF_ST_MAX_NAME + 32],
                            mf_st_entry *entries)
{
    if (item->tensor) {
        const mf_st_tensor *t = item->tensor;
        entries[0] = (mf_st_entry){ .name = t->name, .dtype = t->dtype, .ndim = t->ndim, .bytes = t->bytes };
        memcpy(entries[0].shape, t->shape, sizeof entries[0].shape);
        return 1;
    }
    const mf_matrix *to = &item->to;
    const bool is_four = to->format == MF_FORMAT_INT4_GROUP, by_block = to->format == MF_FORMAT_FP8_BLOCK;
    const size_t size = MF_ST_MAX_NAME + 32;
    snprintf(names[0], size, "%s.%s", item->module, is_four ? "weight_packed" : "weight");
    snprintf(names[1], size, "%s.%s", item->module, by_block ? "weight_scale_inv" : "weight_scale");
    snprintf(names[2], size, "%s.weight_shape", item->module);
    entries[0] = (mf_st_entry){ .name = names[0],
                                .dtype = is_four    ? MF_I32
                                         : by_block ? MF_F8_E4M3
                                                    : MF_I8,
                                .ndim = 2,
                                .shape = { to->n, is_four ? to->row_stride / 8 : to->k },
                                .bytes = (uint64_t)item->code_bytes };
    entries[1] =
        (mf_st_entry){ .name = names[1],
                       .dtype = to->scale_dtype,
                       .ndim = 2,
                       .shape = { by_block ? mf_div_up(to->n, MF_QUANTISE_ROWS) : to->n, to->scale_row_stride },
                       .bytes = (uint64_t)item->scale_bytes };
    entries[2] = (mf_st_entry){ .name = names[2], .dtype = MF_I64, .ndim = 1, .shape = { 2 }, .bytes = 16 };
    return is_four ? 3 : 2;
}

/* ---- one matrix ---- */

static void run_task(void *context, int64_t task, int32_t thread)
{
    const quantiser *q = context;
    const mf_quantise_item *item = q->item;
    const int64_t first = task * MF_QUANTISE_ROWS;
    const int64_t count = item->to.n - first < MF_QUANTISE_ROWS ? item->to.n - first : MF_QUANTISE_ROWS;
    float *rows = q->rows + thread * q->row_floats, *coded = rows + q->row_floats / 2;
    mf_quantise_rows(&item->from, &item->to, first, count, rows);
    mf_quantise_sums sums = { 0 };
    for (int64_t r = first; r < first + count; r++) {
        mf_matrix_decode_row(&item->from, r, 0, item->to.k, rows);
        mf_matrix_decode_row(&item->to, r, 0, item->to.k, coded);
        for (int64_t k = 0; k < item->to.k; k++) {
            const double difference = (double)coded[k] - (double)rows[k];
            sums.error += difference * difference;
            sums.weight += (double)rows[k] * (double)rows[k];
        }
    }
    q->sums[task] = sums;
}

/* Pages of the checkpoint that have been read and are not needed again. */
static void drop_pages(const uint8_t *data, int64_t bytes)
{
    const uintptr_t begin = ((uintptr_t)data + PAGE - 1) / PAGE * PAGE,
                    end = ((uintptr_t)data + (uintptr_t)bytes) / PAGE * PAGE;
    if (end > begin) {
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
}

static mf_status write_matrix(quantiser *q, mf_quantise_item *item, mf_st_writer *writer, mf_error *err)
{
    item->to.data = q->codes;
    item->to.scale = q->scales;
    q->item = item;
    const int64_t tasks = mf_div_up(item->to.n, MF_QUANTISE_ROWS);
    mf_pool_run(q->pool, tasks, run_task, q);
    mf_quantise_sums *total = item->layer >= 0 ? &q->report->layers[item->layer][item->part] : NULL;
    for (int64_t i = 0; total && i < tasks; i++) {
        total->error += q->sums[i].error;
        total->weight += q->sums[i].weight;
    }
    if (total) {
        total->num_matrices++;
    }
    q->report->num_matrices++;
    MF_TRY(mf_st_writer_write(writer, q->codes, (uint64_t)item->code_bytes, err));
    MF_TRY(mf_st_writer_write(writer, q->scales, (uint64_t)item->scale_bytes, err));
    if (item->to.format == MF_FORMAT_INT4_GROUP) {
        const int64_t shape[2] = { item->to.n, item->to.k };
        MF_TRY(mf_st_writer_write(writer, shape, sizeof shape, err));
    }
    const int64_t bytes = mf_matrix_bytes(&item->from);
    drop_pages(item->from.data, bytes);
    q->bytes_done += bytes;
    return MF_OK;
}

static mf_status show_progress(quantiser *q, mf_error *err)
{
    const mf_progress *progress = &q->options->progress;
    const int64_t now = mf_now_ns();
    if (!progress->fn || (now - q->last < 100000000 && q->bytes_done < q->bytes_total)) {
        return MF_OK;
    }
    q->last = now;
    const mf_progress_info info = { .what = "quantising",
                                    .files_done = q->files_done,
                                    .files_total = q->files_total,
                                    .bytes_done = q->bytes_done,
                                    .bytes_total = q->bytes_total,
                                    .seconds = (double)(now - q->start) * 1e-9 };
    return progress->fn(progress->context, &info) ? MF_OK : mf_fail(err, MF_ERR_CANCELLED, "quantising was cancelled");
}

static mf_status copy_tensor(quantiser *q, const mf_st_tensor *t, mf_st_writer *writer, mf_error *err)
{
    for (uint64_t at = 0; at < t->bytes; at += COPY_BYTES) {
        const uint64_t n = t->bytes - at < COPY_BYTES ? t->bytes - at : COPY_BYTES;
        MF_TRY(mf_st_writer_write(writer, t->data + at, n, err));
        drop_pages(t->data + at, (int64_t)n);
        q->bytes_done += (int64_t)n;
        MF_TRY(show_progress(q, err));
    }
    return MF_OK;
}

/* ---- files ---- */

static mf_status write_shard(quantiser *q, int64_t first, int64_t count, const char *name, json_t *weight_map,
                             mf_error *err)
{
    char(*names)[MAX_ENTRIES][MF_ST_MAX_NAME + 32] = mf_alloc_array((size_t)count, sizeof *names);
    mf_st_entry *entries = mf_alloc_array((size_t)count, MAX_ENTRIES * sizeof *entries);
    char *path = mf_path_join(q->partial, name);
    mf_st_writer writer = { 0 };
    mf_status status = MF_OK;
    int64_t num_entries = 0;
    if (!names || !entries || !path) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
        goto done;
    }
    for (int64_t i = 0; i < count; i++) {
        num_entries += item_entries(&q->plan.items[first + i], names[i], entries + num_entries);
    }
    for (int64_t i = 0; i < num_entries; i++) {
        q->report->bytes_out += (int64_t)entries[i].bytes;
        if (weight_map && json_object_set_new(weight_map, entries[i].name, json_string(name)) != 0) {
            status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
            goto done;
        }
    }
    MF_TRY_GOTO(mf_st_writer_open(path, entries, num_entries, &writer, err), done);
    for (int64_t i = 0; i < count; i++) {
        mf_quantise_item *item = &q->plan.items[first + i];
        MF_TRY_GOTO(item->tensor ? copy_tensor(q, item->tensor, &writer, err) : write_matrix(q, item, &writer, err),
                    done);
        MF_TRY_GOTO(show_progress(q, err), done);
    }
    MF_TRY_GOTO(mf_st_writer_finish(&writer, err), done);
    q->files_done++;
done:
    mf_st_writer_close(&writer);
    mf_free(path);
    mf_free(entries);
    mf_free(names);
    return status;
}

static mf_status write_json(const quantiser *q, const char *name, const json_t *value, mf_error *err)
{
    char *text = json_dumps(value, JSON_INDENT(2)), *path = mf_path_join(q->partial, name);
    mf_status status = text && path ? mf_write_new_file(path, text, strlen(text), err)
                                    : mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
    free(text);
    mf_free(path);
    return status;
}

static mf_status write_weights(quantiser *q, mf_error *err)
{
    const mf_checkpoint *c = q->plan.weights->checkpoint;
    const bool has_index = strcmp(mf_checkpoint_list_name(c), "model.safetensors") != 0;
    json_t *weight_map = has_index ? json_object() : NULL;
    mf_status status = MF_OK;
    for (int64_t first = 0, end; first < q->plan.num_items && status == MF_OK; first = end) {
        for (end = first; end < q->plan.num_items && q->plan.items[end].shard == q->plan.items[first].shard;) {
            end++;
        }
        status = write_shard(q, first, end - first, c->shards[q->plan.items[first].shard].name, weight_map, err);
    }
    if (status == MF_OK && has_index) {
        json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)q->report->bytes_out,
                                  "weight_map", weight_map);
        status = index ? write_json(q, "model.safetensors.index.json", index, err)
                       : mf_fail(err, MF_ERR_NOMEM, "the index: out of memory");
        json_decref(index);
    }
    json_decref(weight_map);
    return status;
}

static mf_status write_config(const quantiser *q, mf_error *err)
{
    char *path = mf_path_join(q->in, "config.json");
    const mf_json_limits limits = { .top_is_object = true };
    json_t *config = NULL;
    mf_status status = path ? mf_json_load(path, MAX_SMALL_FILE, &limits, &config, err)
                            : mf_fail(err, MF_ERR_NOMEM, "config.json: out of memory");
    if (status == MF_OK && json_object_set(config, "quantization_config", q->plan.quantization_config) != 0) {
        status = mf_fail(err, MF_ERR_NOMEM, "config.json: out of memory");
    }
    status = status == MF_OK ? write_json(q, "config.json", config, err) : status;
    json_decref(config);
    mf_free(path);
    return status;
}

static bool has_ending(const char *name, const char *ending)
{
    const size_t n = strlen(name), k = strlen(ending);
    return n > k && strcmp(name + n - k, ending) == 0;
}

/* Tokenizer, template, generation defaults, licence: what is small and no weights. */
static bool is_copied(const char *name)
{
    static const char *const endings[] = { ".json", ".txt", ".model", ".jinja", ".md", ".py", ".tiktoken" };
    bool wanted = strncmp(name, "LICENSE", 7) == 0;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        wanted |= has_ending(name, endings[i]);
    }
    return wanted && name[0] != '.' && strcmp(name, "config.json") != 0 && !has_ending(name, ".index.json");
}

static mf_status copy_file(const quantiser *q, const char *name, mf_error *err)
{
    char *from = mf_path_join(q->in, name), *to = mf_path_join(q->partial, name);
    mf_file file = { 0 };
    mf_status status = from && to ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
    if (status == MF_OK && mf_path_is_file(from)) {
        status = mf_file_open(from, true, MAX_SMALL_FILE, &file, err);
        status = status == MF_OK ? mf_write_new_file(to, file.data, file.size, err) : status;
        mf_file_close(&file);
    }
    mf_free(from);
    mf_free(to);
    return status;
}

static mf_status copy_small_files(const quantiser *q, mf_error *err)
{
    DIR *listing = opendir(q->in);
    mf_status status = listing ? MF_OK : mf_fail(err, MF_ERR_IO, "%s: %s", q->in, strerror(errno));
    for (const struct dirent *e; status == MF_OK && (e = readdir(listing));) {
        status = is_copied(e->d_name) ? copy_file(q, e->d_name, err) : MF_OK;
    }
    if (listing) {
        closedir(listing);
    }
    return status;
}

/* Our own folder: plain files only. */
static void remove_partial(const char *dir)
{
    DIR *listing = opendir(dir);
    for (const struct dirent *e; listing && (e = readdir(listing));) {
        char *path = mf_path_join(dir, e->d_name);
        if (path && strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            (void)unlink(path);
        }
        mf_free(path);
    }
    if (listing) {
        closedir(listing);
    }
    (void)rmdir(dir);
}

static void sync_folder(const char *dir)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
}

/* ---- the whole ---- */

static mf_status make_room(quantiser *q, mf_error *err)
{
    int64_t codes = 0, scales = 0, tasks = 0;
    const int32_t threads = q->options->num_threads > 0 ? q->options->num_threads : mf_cpu_features_get()->num_cores;
    for (int64_t i = 0; i < q->plan.num_items; i++) {
        const mf_quantise_item *item = &q->plan.items[i];
        q->bytes_total += item->tensor ? (int64_t)item->tensor->bytes : mf_matrix_bytes(&item->from);
        if (!item->tensor) {
            const int64_t scratch = mf_quantise_scratch(&item->to), runs = mf_div_up(item->to.n, MF_QUANTISE_ROWS);
            const int64_t floats = 2 * (scratch > item->to.k ? scratch : item->to.k); /* and a decoded row behind it */
            codes = item->code_bytes > codes ? item->code_bytes : codes;
            scales = item->scale_bytes > scales ? item->scale_bytes : scales;
            tasks = runs > tasks ? runs : tasks;
            q->row_floats = floats > q->row_floats ? floats : q->row_floats;
        }
    }
    q->report->bytes_in = q->bytes_total;
    q->report->num_layers = q->plan.config->num_layers;
    q->report->layers = mf_alloc_array((size_t)q->report->num_layers, sizeof *q->report->layers);
    q->codes = mf_alloc_aligned((size_t)codes);
    q->scales = mf_alloc_aligned((size_t)scales);
    q->rows = mf_alloc_array((size_t)threads, (size_t)q->row_floats * sizeof *q->rows);
    q->sums = mf_alloc_array((size_t)tasks, sizeof *q->sums);
    if (!q->report->layers || !q->codes || !q->scales || !q->rows || !q->sums) {
        return mf_fail(err, MF_ERR_NOMEM, "quantising: out of memory");
    }
    return mf_pool_open(threads, &q->pool, err);
}

static mf_status write_all(quantiser *q, const char *out, mf_error *err)
{
    MF_TRY(make_room(q, err));
    if (mkdir(q->partial, 0777) != 0) {
        return mf_fail(err, MF_ERR_IO, "%s: cannot be made: %s", q->partial, strerror(errno));
    }
    mf_status status = copy_small_files(q, err);
    status = status == MF_OK ? write_config(q, err) : status;
    status = status == MF_OK ? write_weights(q, err) : status;
    if (status == MF_OK) {
        sync_folder(q->partial);
        if (mf_path_exists(out)) { /* since the start: an empty folder would be replaced without a word */
            status = mf_fail(err, MF_ERR_IO, "%s: exists", out);
        } else if (rename(q->partial, out) != 0) {
            status = mf_fail(err, MF_ERR_IO, "%s: cannot be renamed to %s: %s", q->partial, out, strerror(errno));
        }
    }
    if (status != MF_OK) {
        remove_partial(q->partial);
    }
    return status;
}

mf_status mf_checkpoint_quantise(const char *in, const char *out, const mf_quantise_options *options,
                                 mf_quantise_report *report, mf_error *err)
{
    *report = (mf_quantise_report){ 0 };
    quantiser q = { .in = in, .options = options, .report = report, .start = mf_now_ns() };
    mf_status status;
    size_t n = strlen(out);
    if (mf_path_exists(out)) {
        return mf_fail(err, MF_ERR_IO, "%s: exists; the output must be a new folder", out);
    }
    while (n > 1 && out[n - 1] == '/') {
        n--;
    }
    const size_t room = n + 32;
    q.partial = mf_alloc(room);
    char *name = mf_strndup(out, n);
    if (!q.partial || !name) {
        status = mf_fail(err, MF_ERR_NOMEM, "quantising: out of memory");
        goto done;
    }
    snprintf(q.partial, room, "%s.partial-%ld", name, (long)getpid());
    MF_TRY_GOTO(mf_quantise_plan_make(in, options, &q.plan, err), done);
    report->has_short_groups = q.plan.has_short_groups;
    q.files_total = q.plan.weights->checkpoint->num_shards;
    q.last = q.start - 1000000000;
    status = write_all(&q, name, err);
done:
    mf_pool_close(&q.pool);
    mf_quantise_plan_close(&q.plan);
    mf_free_aligned(q.codes);
    mf_free_aligned(q.scales);
    mf_free(q.rows);
    mf_free(q.sums);
    mf_free(q.partial);
    mf_free(name);
    if (status != MF_OK) {
        mf_quantise_report_close(report);
    }
    return status;
}

void mf_quantise_report_close(mf_quantise_report *report)
{
    mf_free(report->layers);
    *report = (mf_quantise_report){ 0 };
}
