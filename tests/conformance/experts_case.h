/* experts_case.h - random weight tables in every stored format, and what they compute in double, decoded by code of its
 * own. */
#ifndef MF_TESTS_EXPERTS_CASE_H
#define MF_TESTS_EXPERTS_CASE_H

#include "conf.h"

/* A stored matrix and its dequantised values.  Buffers are exactly as long as the format needs, so that a sanitizer
 * sees any byte read past them. */
typedef struct case_matrix {
    mf_matrix m;
    void *codes, *scales;
    uint8_t *zeros;
    double *value; /* [n, k] */
} case_matrix;

/* variant picks scale dtype, group size, zero points, per-tensor scales and row padding; from here on rows begin at whole
 * 32 elements. */
enum { CASE_WIDE_ROWS = 100 };
void case_matrix_make(case_matrix *out, uint64_t *seed, mf_format format, int variant, int64_t n, int64_t k);
void case_matrix_free(case_matrix *m);
/* Decodes m.m's codes again after a test has changed them. */
void case_matrix_decode(case_matrix *m);

enum { CASE_MAX_SLOTS = 80 };

typedef struct case_slot {
    case_matrix gate, up, down;
    float *gate_bias, *up_bias, *down_bias;
    mf_slot slot;
} case_slot;

typedef struct case_table {
    int64_t num_slots, hidden_size;
    case_slot slots[CASE_MAX_SLOTS];
    mf_slot list[CASE_MAX_SLOTS]; /* the slots' mf_slot, for mf_experts_desc */
} case_table;

typedef struct case_slot_spec {
    mf_format format;
    int variant;
    int64_t width;
    mf_activation activation;
    float limit, alpha, beta, lbeta;
    bool has_bias;
    float input_scale13, input_scale2;
} case_slot_spec;

void case_table_add(case_table *table, uint64_t *seed, const case_slot_spec *spec);
void case_table_free(case_table *table);

/* An experts object of the whole table on a device. */
mf_experts *case_experts(mf_device *device, const case_table *table, mf_dtype act_dtype, mf_act_quant act_quant);

/* y [H] = w2 . act(w13 . x) in double; with act_quant the operands are quantised as the specification says, and the
 * intermediate rounded to act_dtype first.  act_quant NONE: no rounding anywhere. */
void case_oracle(const case_slot *slot, const double *x, int64_t hidden, mf_dtype act_dtype, mf_act_quant act_quant,
                 double *y);

/* Runs the op on guarded memory: x [T, H] of act_dtype, ids [T, C]; y is poisoned first. */
void case_run(mf_device *device, const mf_experts *experts, const void *x, mf_dtype act_dtype, const int32_t *ids,
              const float *input_scale, int64_t num_tokens, int64_t num_columns, int64_t hidden, mf_dtype y_dtype,
              void *y);

typedef struct case_error {
    double square, norm;
} case_error;
void case_error_add(case_error *e, double found, double expected);
double case_nmse(const case_error *e);

/* The bound on a product whose only error is rounding, by the narrowest dtype on its way. */
double case_bound(mf_dtype act_dtype, mf_dtype y_dtype);

#endif
