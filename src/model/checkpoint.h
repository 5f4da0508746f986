/* checkpoint.h - the inside of mf_checkpoint, shared by safetensors.c (one file) and index.c (the set of files). */
#ifndef MF_MODEL_CHECKPOINT_H
#define MF_MODEL_CHECKPOINT_H

#include <jansson.h>

#include "base/arena.h"
#include "base/file.h"
#include "model/safetensors.h"

enum { MF_ST_MAX_NAME = 512, MF_ST_MAX_DIMS = 8, MF_MAX_SHARDS = 16384 };
#define MF_ST_MAX_HEADER 100000000u

typedef struct mf_shard {
    mf_file file;
    const char *name;     /* "model-00001-of-00004.safetensors", in the arena */
    int64_t first_tensor; /* its tensors stand together */
    int64_t num_tensors;
} mf_shard;

struct mf_checkpoint {
    mf_arena arena; /* names */
    mf_shard *shards;
    int32_t num_shards;
    mf_st_tensor *tensors;
    int64_t num_tensors, capacity;
    int64_t *by_name; /* [num_tensors] indices in name order; made by mf_checkpoint_index */
    int64_t bytes;
};

/* Checks one file's bytes and appends its tensors.  name: for messages; kept by pointer. */
mf_status mf_checkpoint_add(mf_checkpoint *checkpoint, const uint8_t *data, uint64_t size, const char *name,
                            mf_error *err);

/* What weights.c and the checker want beyond mf_checkpoint_open. */
typedef struct mf_checkpoint_options {
    bool use_map;
    mf_numa numa; /* of files that are read */
    mf_progress progress;
    /* Called with each bad file's error; true: go on with the next file (the opening fails in the end).  May be NULL.
     */
    bool (*bad_file)(void *context, const mf_error *err);
    void *context;
} mf_checkpoint_options;

mf_status mf_checkpoint_open_with(const char *dir, const mf_checkpoint_options *options, mf_checkpoint **checkpoint,
                                  mf_error *err);

/* The index's text into JSON within its limits, every file name checked; *files: an object whose keys are the distinct
 * ones. Both are released with json_decref. */
mf_status mf_checkpoint_parse_index(const char *text, size_t size, const char *name, json_t **root, json_t **files,
                                    mf_error *err);

/* The file that lists the tensors: the single one's or the index's name. */
const char *mf_checkpoint_list_name(const mf_checkpoint *checkpoint);

/* Sorts the names; the same name twice is an error that names both files. */
mf_status mf_checkpoint_index(mf_checkpoint *checkpoint, mf_error *err);

#endif
