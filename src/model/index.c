/* index.c - the set of files that make one checkpoint: model.safetensors alone, or model.safetensors.index.json and the
 * shards it names.  A tensor must stand exactly where the index puts it. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "model/checkpoint.h"

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

enum { MAX_INDEX_BYTES = 256 << 20 };

/* [A-Za-z0-9._-]+ ending in .safetensors: no separators, not ".." */
static bool name_is_plain(const char *name)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strlen(name), end = strlen(".safetensors");
    return n > end && n < 256 && strspn(name, allowed) == n && strcmp(name + n - end, ".safetensors") == 0;
}

/* The distinct shard names of a weight map, each with its place as an integer. */
static mf_status collect_shards(const json_t *map, const char *index_name, json_t *shards, mf_error *err)
{
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value)
    {
        const char *shard = json_string_value(value);
        if (!shard) {
            return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\": expected a file's name; got %s", index_name,
                           tensor, mf_json_type_name(value));
        }
        if (!name_is_plain(shard)) {
            return mf_fail(err, MF_ERR_FORMAT,
                           "%s: tensor \"%.200s\": file name \"%.100s\": expected letters, digits, '.', '_' and '-', "
                           "then .safetensors",
                           index_name, tensor, shard);
        }
        if (json_object_get(shards, shard)) {
            continue;
        }
        if (json_object_size(shards) >= MF_MAX_SHARDS) {
            return mf_fail(err, MF_ERR_LIMIT, "%s: more than %d files", index_name, MF_MAX_SHARDS);
        }
        if (json_object_set_new(shards, shard, json_integer((json_int_t)json_object_size(shards))) != 0) {
            return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", index_name);
        }
    }
    return MF_OK;
}

/* How far the opening has come. */
typedef struct opening {
    const mf_checkpoint_options *options;
    const mf_checkpoint *checkpoint;
    int32_t files_done;
    int64_t bytes_done, bytes_total; /* total: of files that are read, else 0 */
    int64_t start, last_report;
} opening;

/* false: somebody wants it to end */
static bool report(opening *o, const char *what)
{
    const int64_t now = mf_now_ns();
    const mf_progress *progress = &o->options->progress;
    if (!progress->fn || now - o->last_report <= 100000000) {
        return true;
    }
    o->last_report = now;
    const mf_progress_info info = { .what = what,
                                    .files_done = o->files_done,
                                    .files_total = o->checkpoint->num_shards,
                                    .bytes_done = o->bytes_done,
                                    .bytes_total = o->bytes_total,
                                    .seconds = (double)(now - o->start) * 1e-9 };
    return progress->fn(progress->context, &info);
}

static bool note_read(void *context, int64_t bytes)
{
    opening *o = context;
    o->bytes_done += bytes;
    return report(o, "reading");
}

static mf_status open_shard(opening *o, const char *dir, mf_checkpoint *c, mf_shard *shard, mf_error *err)
{
    char *path = mf_path_join(dir, shard->name);
    if (!path) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", shard->name);
    }
    const mf_file_options file_options = {
        .use_map = o->options->use_map, .numa = o->options->numa, .was_read = note_read, .context = o
    };
    mf_status status = mf_file_open_with(path, &file_options, &shard->file, err);
    mf_free(path);
    MF_TRY(status);
    shard->first_tensor = c->num_tensors;
    MF_TRY(mf_checkpoint_add(c, shard->file.data, shard->file.size, shard->name, err));
    shard->num_tensors = c->num_tensors - shard->first_tensor;
    return MF_OK;
}

/* What will be read, for the progress: 0 when files are mapped. */
static mf_status count_bytes_to_read(const char *dir, opening *o, mf_error *err)
{
    for (int32_t i = 0; !o->options->use_map && i < o->checkpoint->num_shards; i++) {
        char *path = mf_path_join(dir, o->checkpoint->shards[i].name);
        if (!path) {
            return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", o->checkpoint->shards[i].name);
        }
        const uint64_t size = mf_path_size(path);
        mf_free(path);
        o->bytes_total += size < (uint64_t)(INT64_MAX - o->bytes_total) ? (int64_t)size : 0;
    }
    return MF_OK;
}

/* Opens all shards; a bad one stops the opening unless options->bad_file takes note of it. */
static mf_status open_shards(const mf_checkpoint_options *options, const char *dir, mf_checkpoint *c, mf_error *err)
{
    opening o = { .options = options, .checkpoint = c, .start = mf_now_ns() };
    mf_status first_bad = MF_OK;
    MF_TRY(count_bytes_to_read(dir, &o, err));
    for (int32_t i = 0; i < c->num_shards; i++) {
        mf_status status = open_shard(&o, dir, c, &c->shards[i], err);
        if (status != MF_OK) {
            if (!options->bad_file || status == MF_ERR_NOMEM || status == MF_ERR_CANCELLED ||
                !options->bad_file(options->context, err)) {
                return status;
            }
            first_bad = first_bad ? first_bad : status;
        }
        o.files_done = i + 1;
        o.bytes_done += options->use_map ? (int64_t)c->shards[i].file.size : 0;
        if (!report(&o, "opening")) {
            return mf_fail(err, MF_ERR_CANCELLED, "opening %s was cancelled", dir);
        }
    }
    return first_bad;
}

/* Both directions: every tensor where the index says, every entry of the index with a tensor. */
static mf_status compare_with_map(const mf_checkpoint *c, const json_t *map, const char *index_name, mf_error *err)
{
    for (int64_t i = 0; i < c->num_tensors; i++) {
        const mf_st_tensor *t = &c->tensors[i];
        const char *shard = json_string_value(json_object_get(map, t->name));
        if (!shard) {
            return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\" stands in %s but not in the index", index_name,
                           t->name, t->file);
        }
        if (strcmp(shard, t->file) != 0) {
            return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\" stands in %s; the index puts it in %s",
                           index_name, t->name, t->file, shard);
        }
    }
    if ((size_t)c->num_tensors == json_object_size(map)) {
        return MF_OK;
    }
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value)
    {
        if (!mf_checkpoint_find(c, tensor)) {
            return mf_fail(err, MF_ERR_FORMAT, "%s: tensor \"%.200s\" is not in %s, where the index puts it",
                           index_name, tensor, json_string_value(value));
        }
    }
    return MF_OK;
}

mf_status mf_checkpoint_parse_index(const char *text, size_t size, const char *name, json_t **out, json_t **files,
                                    mf_error *err)
{
    *out = *files = NULL;
    mf_json_limits limits = { .max_depth = 8, .max_values = 100000 + (int64_t)(size / 32), .top_is_object = true };
    json_t *root = NULL, *names = NULL;
    MF_TRY(mf_json_parse(text, size, name, &limits, &root, err));
    mf_status status;
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        status =
            mf_fail(err, MF_ERR_FORMAT, "%s: key \"weight_map\": expected an object of tensor names and files; got %s",
                    name, json_is_object(map) ? "an empty one" : mf_json_type_name(map));
        goto fail;
    }
    names = json_object();
    if (!names) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", name);
        goto fail;
    }
    MF_TRY_GOTO(collect_shards(map, name, names, err), fail);
    *out = root;
    *files = names;
    return MF_OK;
fail:
    json_decref(root);
    json_decref(names);
    return status;
}

static mf_status open_sharded(const mf_checkpoint_options *options, const char *dir, const json_t *root, json_t *files,
                              const char *index_name, mf_checkpoint *c, mf_error *err)
{
    c->shards = mf_alloc_array(json_object_size(files), sizeof *c->shards);
    if (!c->shards) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", index_name);
    }
    const char *name;
    json_t *unused;
    json_object_foreach(files, name, unused)
    {
        (void)unused;
        c->shards[c->num_shards].name = mf_arena_strdup(&c->arena, name);
        if (!c->shards[c->num_shards++].name) {
            return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", index_name);
        }
    }
    MF_TRY(open_shards(options, dir, c, err));
    MF_TRY(mf_checkpoint_index(c, err));
    return compare_with_map(c, json_object_get(root, "weight_map"), index_name, err);
}

static mf_status load_index(const char *path, json_t **root, json_t **files, mf_error *err)
{
    mf_file file;
    MF_TRY(mf_file_open(path, false, MAX_INDEX_BYTES, &file, err));
    mf_status status = mf_checkpoint_parse_index((const char *)file.data, file.size, path, root, files, err);
    mf_file_close(&file);
    return status;
}

const char *mf_checkpoint_list_name(const mf_checkpoint *c)
{
    return c->num_shards == 1 && strcmp(c->shards[0].name, SINGLE) == 0 ? SINGLE : INDEX;
}

static mf_status open_single(const mf_checkpoint_options *options, const char *dir, mf_checkpoint *c, mf_error *err)
{
    c->shards = mf_alloc_array(1, sizeof *c->shards);
    if (!c->shards) {
        return mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", dir);
    }
    c->num_shards = 1;
    c->shards[0].name = SINGLE;
    MF_TRY(open_shards(options, dir, c, err));
    return mf_checkpoint_index(c, err);
}

/* A second index (of another precision, say) would make it a guess which weights are meant. */
static mf_status refuse_other_index(const char *dir, mf_error *err)
{
    DIR *listing = opendir(dir);
    if (!listing) {
        return mf_fail(err, MF_ERR_IO, "%s: cannot list the directory: %s", dir, strerror(errno));
    }
    mf_status status = MF_OK;
    for (const struct dirent *e; status == MF_OK && (e = readdir(listing));) {
        static const char end[] = ".safetensors.index.json";
        size_t n = strlen(e->d_name);
        if (n >= sizeof end - 1 && strcmp(e->d_name + n - (sizeof end - 1), end) == 0 &&
            strcmp(e->d_name, INDEX) != 0) {
            status = mf_fail(err, MF_ERR_FORMAT, "%s: holds the index %.200s; expected no other than " INDEX, dir,
                             e->d_name);
        }
    }
    closedir(listing);
    return status;
}

mf_status mf_checkpoint_open_with(const char *dir, const mf_checkpoint_options *options, mf_checkpoint **out,
                                  mf_error *err)
{
    *out = NULL;
    mf_checkpoint *c = mf_alloc_zero(sizeof *c);
    char *index_path = mf_path_join(dir, INDEX);
    char *single_path = mf_path_join(dir, SINGLE);
    json_t *root = NULL, *files = NULL;
    mf_status status = MF_OK;
    if (!c || !index_path || !single_path) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", dir);
        goto done;
    }
    bool has_index = mf_path_exists(index_path), has_single = mf_path_exists(single_path);
    MF_TRY_GOTO(refuse_other_index(dir, err), done);
    if (has_index && has_single) {
        status = mf_fail(err, MF_ERR_FORMAT, "%s: holds both " SINGLE " and " INDEX "; expected one of them", dir);
    } else if (has_single) {
        status = open_single(options, dir, c, err);
    } else if (has_index) {
        status = load_index(index_path, &root, &files, err);
        if (status == MF_OK) {
            status = open_sharded(options, dir, root, files, index_path, c, err);
        }
    } else {
        status = mf_fail(err, MF_ERR_IO, "%s: holds neither " SINGLE " nor " INDEX, dir);
    }
done:
    json_decref(root);
    json_decref(files);
    mf_free(index_path);
    mf_free(single_path);
    if (status != MF_OK && c) {
        mf_checkpoint_close(&c);
    }
    *out = c;
    return status;
}

mf_status mf_checkpoint_open(const char *dir, bool use_map, mf_checkpoint **checkpoint, mf_error *err)
{
    mf_checkpoint_options options = { .use_map = use_map };
    return mf_checkpoint_open_with(dir, &options, checkpoint, err);
}
