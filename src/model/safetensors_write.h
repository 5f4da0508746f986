/* safetensors_write.h - one .safetensors file written from front to back: the header first, then each tensor's bytes in
 * the order of the header, in pieces of any size. */
#ifndef MF_MODEL_SAFETENSORS_WRITE_H
#define MF_MODEL_SAFETENSORS_WRITE_H

#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

typedef struct mf_st_entry {
    const char *name;
    mf_dtype dtype;
    int32_t ndim;
    int64_t shape[8];
    uint64_t bytes;
} mf_st_entry;

typedef struct mf_st_writer {
    FILE *file;
    const char *path;    /* borrowed, for messages */
    uint64_t bytes_left; /* of tensor data */
} mf_st_writer;

/* A new file (an existing one is refused) with its header. */
mf_status mf_st_writer_open(const char *path, const mf_st_entry *entries, int64_t num_entries, mf_st_writer *writer,
                            mf_error *err);
mf_status mf_st_writer_write(mf_st_writer *writer, const void *data, uint64_t bytes, mf_error *err);
/* Everything is on the disk, and as long as the header says; or an error. */
mf_status mf_st_writer_finish(mf_st_writer *writer, mf_error *err);
void mf_st_writer_close(mf_st_writer *writer); /* after an error, too; a finished one is fine */

const char *mf_st_dtype_name(mf_dtype dtype); /* "BF16"; NULL: not in safetensors here */

/* A whole small file, on the disk when it returns.  An existing one is refused. */
mf_status mf_write_new_file(const char *path, const void *data, size_t size, mf_error *err);

#endif
