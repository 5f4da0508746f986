/* golden_support.h - goldens made by tools/make_tiny_model.py and the ways in which tests run a text through a model. */
#ifndef MF_GOLDEN_SUPPORT_H
#define MF_GOLDEN_SUPPORT_H

#include "base/file.h"
#include "model/model.h"
#include "test.h"

typedef struct golden {
    const char *name;
    char dir[512];
    int32_t num_prompt, num_generated, num_tokens, vocab_size;
    const int32_t *ids;  /* [num_tokens] prompt, then transformers' greedy continuation */
    const float *logits; /* [num_tokens, vocab_size] */
    mf_file file;
} golden;

extern const char *const golden_names[]; /* NULL-terminated */

void golden_open(const char *name, golden *out);
/* The same for another file than golden.bin. */
void golden_open_file(const char *name, const char *file, golden *out);
void golden_close(golden *g);

/* A device as tests name it: "ref", "cpu" (best ISA) or "cpu/c", "cpu/avx2"; "cuda" only where MOEFUSE_GOLDEN_DEVICE, which
 * leaves out all others, names it. */
extern const char *const golden_devices[]; /* NULL-terminated; ISAs that this machine has not are left out at run time */
bool golden_device_usable(const char *device);

/* Defaults: mapped, one thread, fusion on. */
mf_model_options golden_options(const char *device);
mf_model *golden_model(const golden *g, const mf_model_options *options);

/* Runs one text in chunks of `chunk` rows over scattered blocks of 4 tokens; logits [n, vocab] of every row. */
void golden_run(mf_model *model, const int32_t *ids, int32_t n, int32_t chunk, float *logits, int32_t *expert_load,
                int32_t *bad_rows);

/* New memory for the logits of n rows; release with mf_free. */
float *golden_logits(const golden *g, int32_t n);

#endif
