/* safetensors.h - one validated view of a checkpoint's tensors, whether in one file or in shards with an index.
 *
 * The only place that makes tensor views from file bytes: every offset, size, dtype and name is checked here first, and
 * everything downstream trusts what it hands out. */
#ifndef MF_MODEL_SAFETENSORS_H
#define MF_MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/progress.h"

typedef struct mf_st_tensor {
    const char *name;
    const char *file;    /* the shard's file name, for messages */
    mf_dtype dtype;
    int32_t ndim;        /* 0..8 */
    int64_t shape[8];
    int64_t num_elements;
    const uint8_t *data; /* inside the mapping */
    uint64_t bytes;
    uint64_t file_offset;
} mf_st_tensor;

typedef struct mf_checkpoint mf_checkpoint;

/* Opens DIR/model.safetensors, or DIR/model.safetensors.index.json and every shard it names.  Both, neither, a missing or
 * foreign shard, a tensor in one and not in the other, a duplicate: each its own error.  use_map false reads the files. */
mf_status mf_checkpoint_open(const char *dir, bool use_map, mf_checkpoint **checkpoint, mf_error *err);
void mf_checkpoint_close(mf_checkpoint **checkpoint);

int64_t mf_checkpoint_num_tensors(const mf_checkpoint *checkpoint);
const mf_st_tensor *mf_checkpoint_tensor(const mf_checkpoint *checkpoint, int64_t index);
const mf_st_tensor *mf_checkpoint_find(const mf_checkpoint *checkpoint, const char *name); /* NULL when absent */
int32_t mf_checkpoint_num_files(const mf_checkpoint *checkpoint);
int64_t mf_checkpoint_bytes(const mf_checkpoint *checkpoint); /* of tensor data */

/* One shard's bytes as a list of tensors: the fuzz target and the unit tests' entry.  data must outlive the result. */
mf_status mf_safetensors_parse(const uint8_t *data, uint64_t size, const char *name, mf_checkpoint **checkpoint,
                               mf_error *err);

#endif
