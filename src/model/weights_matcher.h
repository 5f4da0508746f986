/* weights_matcher.h - the state of one comparison of a checkpoint with its config, shared by weights_match.c (what is
 * wanted), weights_rest.c (what nobody asked for) and weights_problems.c (what is said). */
#ifndef MF_MODEL_WEIGHTS_MATCHER_H
#define MF_MODEL_WEIGHTS_MATCHER_H

#include "model/weights_impl.h"

enum { MF_NAMES_BYTES = 800 };

/* Up to 20 names, as far as a message has room, and how many there are. */
typedef struct mf_name_list {
    char text[MF_NAMES_BYTES];
    size_t used;
    int64_t shown, total;
} mf_name_list;

/* A tensor's bytes ready for use. */
typedef struct mf_ready_tensor {
    const mf_st_tensor *tensor; /* NULL: absent, or unusable and reported */
    const uint8_t *data;        /* aligned */
} mf_ready_tensor;

/* The re-saved form of one layer's experts: all of them in one tensor. */
typedef struct mf_stacked_layer {
    int64_t layer; /* that the rest is about; -1: none yet */
    bool stacked;
    const char *file; /* of one of them, for messages */
    mf_ready_tensor gate_up, down, gate_up_scale, down_scale;
    char gate_up_name[MF_MAX_TENSOR_NAME], down_name[MF_MAX_TENSOR_NAME];
} mf_stacked_layer;

typedef struct mf_matcher {
    const mf_model_config *config;
    const mf_checkpoint *checkpoint;
    mf_weights *weights;
    mf_arena *arena;
    const mf_match_options *options;
    uint8_t *used; /* [num_tensors] */
    uint8_t *module_matched;
    mf_name_list missing, unexpected;
    mf_stacked_layer stack;
    int32_t num_findings;
    bool warned_bias;
    mf_error error; /* the caller's may be NULL */
} mf_matcher;

/* The tensor of this name, NULL when there is none; it counts as wanted. */
const mf_st_tensor *mf_match_take(mf_matcher *m, const char *name);
/* The tensor's bytes at an address that suits its dtype: files may place a tensor anywhere. */
mf_status mf_match_aligned(mf_matcher *m, const mf_st_tensor *t, const uint8_t **data);
/* `check --deep`: every value of a float tensor is finite.  t may be NULL. */
mf_status mf_match_check_deep(mf_matcher *m, const mf_st_tensor *t);
/* Bytes of weights in use. */
void mf_match_count(mf_matcher *m, mf_format format, int64_t bytes);

/* The tensor with its bytes aligned; t may be NULL. */
mf_status mf_match_make_ready(mf_matcher *m, const mf_st_tensor *t, mf_ready_tensor *out);
/* false: no f32, bf16 or f16. */
bool mf_match_float_format(mf_dtype dtype, mf_format *format);
/* Element i of a float tensor, aligned or not; 0 for other dtypes. */
float mf_match_value_at(const uint8_t *data, mf_dtype dtype, int64_t i);
mf_status mf_match_check_finite(mf_matcher *m, const mf_st_tensor *t);
int64_t mf_match_scale_rows(const mf_quant_scheme *scheme, int64_t n);
int64_t mf_match_scale_columns(const mf_quant_scheme *scheme, int64_t k);
/* dtype of a weight and presence, shape and dtype of its scale.  *ok: the tensors can be used. */
mf_status mf_match_check_format(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t, const char *scale_name,
                                const mf_st_tensor *scale, const int64_t *scale_shape, int32_t scale_ndim, bool *ok);
/* One [rows, k] matrix inside a tensor that may hold several: where it starts, and its scales if any. */
void mf_match_place_slice(mf_matcher *m, const mf_wanted *x, int64_t rows, mf_ready_tensor weight, int64_t first_element,
                          mf_ready_tensor scale, int64_t first_scale);

/* x's matrix is not what the tensor holds: noted for mf_weights_convert. */
mf_status mf_match_add_conversion(mf_matcher *m, const mf_wanted *x, const mf_conversion *conversion);

/* weights_stacked.c: a matrix or bias of a routed expert, where its layer's are stacked; *is_placed false: they are not. */
mf_status mf_match_stacked(mf_matcher *m, const mf_wanted *x, bool *is_placed);

/* weights_packed.c: a matrix of four-bit codes, t holding the codes; and the zero points of an int8 one that is placed.
 */
mf_status mf_match_four_bits(mf_matcher *m, const mf_wanted *x, const mf_st_tensor *t);
mf_status mf_match_int8_zeros(mf_matcher *m, const mf_wanted *x);

/* weights_mxfp4.c: a matrix of a routed expert inside its layer's blocks and scales. */
mf_status mf_match_mxfp4(mf_matcher *m, const mf_wanted *x);
/* The view: rows first, first + step, ... of one expert's `rows`; k is a multiple of 32. */
mf_matrix mf_mxfp4_view(const uint8_t *blocks, const uint8_t *scales, int64_t expert, int64_t rows, int64_t k,
                        int64_t first, int64_t step, int64_t n);

/* After mf_fail wrote m->error: its status, which ends the walk; in a check the finding is handed over and the walk
 * goes on (MF_OK) until there are enough (MF_ERR_LIMIT). */
mf_status mf_match_problem(mf_matcher *m);
/* Notes a missing or unexpected tensor for the message at the end; in a check it is a finding at once. */
mf_status mf_match_add_name(mf_matcher *m, mf_name_list *list, const char *what, const char *name);
/* Loading: an error when a list is not empty. */
mf_status mf_match_complain_about_names(mf_matcher *m);
mf_status mf_match_wrong_shape(mf_matcher *m, const mf_st_tensor *t, const int64_t *shape, int32_t ndim,
                               const char *more);
mf_status mf_match_wrong_dtype(mf_matcher *m, const mf_st_tensor *t, const char *expected);
bool mf_match_has_shape(const mf_st_tensor *t, const int64_t *shape, int32_t ndim);

/* Every tensor that the walk did not use: skipped by a rule and counted, or unexpected.  Also warns of modules in the
 * config's list that match nothing. */
mf_status mf_match_look_at_rest(mf_matcher *m);

#endif
