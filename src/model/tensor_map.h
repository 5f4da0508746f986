/* tensor_map.h - the full set of tensors that a config asks for, one by one: name, shape, format and the place in
 * mf_weights where it belongs.  The loader, the dummy loader and the size counts all walk this one list. */
#ifndef MF_MODEL_TENSOR_MAP_H
#define MF_MODEL_TENSOR_MAP_H

#include "model/family.h"
#include "model/weights.h"

enum { MF_MAX_TENSOR_NAME = 256 };

typedef enum mf_wanted_kind {
    MF_WANT_MATRIX, /* never quantised: embedding, router; lm_head only where the config's groups take it in */
    MF_WANT_LINEAR, /* quantised when the config says so */
    MF_WANT_VECTOR  /* small, becomes f32 */
} mf_wanted_kind;

typedef struct mf_wanted {
    mf_role role;
    mf_wanted_kind kind;
    int64_t layer, expert;               /* -1: none */
    int64_t n, k;                        /* [n, k], a vector is [n] */
    bool more_rows_allowed;              /* the vocabulary may be padded */
    bool optional;                       /* lm_head of tied embeddings */
    const mf_quant_scheme *scheme;       /* NULL: not quantised */
    char name[MF_MAX_TENSOR_NAME];       /* of the codes, where they have a name of their own ("qweight") */
    char scale_name[MF_MAX_TENSOR_NAME]; /* also when not quantised: it must be absent then */
    size_t module_bytes;                 /* of name, before ".weight"; 0: it does not end so */
    mf_matrix *matrix;                   /* MATRIX, LINEAR; NULL when weights are NULL */
    const float **vector;                /* VECTOR */
} mf_wanted;

typedef mf_status (*mf_wanted_fn)(void *context, const mf_wanted *wanted);

/* Calls fn for every wanted tensor in a fixed order: embedding, layers (an expert's three matrices together), norm,
 * head. weights: layers and experts allocated; NULL: targets are NULL.  Stops at the first status that is not MF_OK. */
mf_status mf_tensor_map_walk(const mf_model_config *config, mf_weights *weights, mf_wanted_fn fn, void *context);

/* Tensors of the walk, scales not counted; at most 2^50. */
int64_t mf_tensor_map_count(const mf_model_config *config);

/* Writes prefix and template with {l} and {e} filled in.  false: it does not fit. */
bool mf_tensor_name(const mf_family *family, const char *name_template, int64_t layer, int64_t expert, char *out,
                    size_t size);

/* The name of another tensor of x's module: "model.layers.3.mlp.gate_proj." and part.  false: it does not fit. */
bool mf_wanted_part(const mf_wanted *x, const char *part, char out[MF_MAX_TENSOR_NAME]);

/* How `module` ("model.layers.3.mlp.gate_proj") is stored; NULL: unquantised. */
const mf_quant_scheme *mf_quant_scheme_of(const mf_quant_config *quant, const char *module);

/* true when the config leaves `module` out: a name matches whole dotted components anywhere in it, so "mlp.gate"
 * excludes model.layers.3.mlp.gate and not mlp.gate_proj; a pattern matches from its first character.  matched
 * (optional, one byte per name, then per pattern) is set to 1 for every entry that matches. */
bool mf_module_is_excluded(const mf_quant_config *quant, const char *module, uint8_t *matched);

#endif
