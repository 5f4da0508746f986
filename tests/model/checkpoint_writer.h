/* checkpoint_writer.h - builds small checkpoints for tests: a list of named tensors and a config, changed at will, written as
 * one file or as shards with an index into a temporary directory.  Knows nothing of the loader's code. */
#ifndef MF_CHECKPOINT_WRITER_H
#define MF_CHECKPOINT_WRITER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cw_tensor {
    char name[256];
    char dtype[16]; /* as safetensors spells it */
    int ndim;
    int64_t shape[8];
    uint8_t *data;
    size_t bytes;
    int shard;
} cw_tensor;

typedef struct cw {
    json_t *config;     /* config.json; tests set keys with cw_set */
    json_t *generation; /* generation_config.json, or NULL */
    cw_tensor *tensors;
    size_t num_tensors, capacity;
    int num_shards;     /* 0: model.safetensors; else shards, with tensors dealt in turn by cw_shard */
    size_t pad_header;  /* bytes by which the data starts behind a multiple of 8 */
    char dir[300];      /* set by cw_write */
} cw;

typedef enum cw_kind {
    CW_V3,
    CW_V2,
    CW_V2_LITE,
    CW_V3_FP8,
    CW_V3_STACKED,
    CW_V3_FP8_STACKED,
    CW_QWEN3, /* layer 0 dense by mlp_only_layers, no shared expert */
    CW_QWEN3_FP8,
    CW_GLM4   /* biases of q, k and v, norms of heads */
} cw_kind;

/* A whole tiny model: 3 layers (the first dense), 12 experts, a shared one, values seeded.  Aborts when out of memory. */
cw *cw_new(cw_kind kind);
void cw_free(cw *w); /* removes the written directory too */

/* Adds a tensor of small seeded values (F32, F16, BF16, F8_E4M3; other dtypes get bytes 120..127). */
cw_tensor *cw_add(cw *w, const char *name, const char *dtype, int ndim, const int64_t *shape);
cw_tensor *cw_get(cw *w, const char *name); /* aborts when there is none: a misspelt test must not pass */
void cw_remove(cw *w, const char *name);
/* Another dtype and/or shape with new values. */
void cw_remake(cw *w, const char *name, const char *dtype, int ndim, const int64_t *shape);
/* Copy of a tensor's bytes under another name. */
cw_tensor *cw_copy(cw *w, const char *from, const char *to);

/* Sets a key of the config ("rope_scaling.factor" goes into the object) to a JSON text; NULL removes it. */
void cw_set(cw *w, const char *key, const char *json_text);

void cw_shard(cw *w, int num_shards);
/* Writes all files into a new temporary directory (or again into the same). */
void cw_write(cw *w);
/* The path of a written file; in a static buffer. */
const char *cw_path(const cw *w, const char *file);
void cw_write_bytes(const char *path, const void *data, size_t size);
/* A whole file in memory of malloc. */
uint8_t *cw_read(const char *path, size_t *size);
/* Bytes of one .safetensors file with these tensors (shard < 0: all); malloc. */
uint8_t *cw_file(const cw *w, int shard, size_t *size);

/* An empty temporary directory; removed by cw_remove_dir with the plain files in it. */
void cw_make_dir(char *out, size_t size);
void cw_remove_dir(const char *dir);

#endif
