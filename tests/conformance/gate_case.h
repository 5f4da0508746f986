/* gate_case.h - one gate problem: what is varied, its inputs in guarded memory, and sets of outputs to compare. */
#ifndef MF_TESTS_GATE_CASE_H
#define MF_TESTS_GATE_CASE_H

#include "conf.h"

typedef enum value_kind {
    VALUES_NORMAL = 0,
    VALUES_TIES,      /* multiples of 1/4 in [-2, 2]: exact ties inside and across groups */
    VALUES_NEGATIVE,  /* logits in [-5, -1], biases in [-4, -3]: every biased score is negative */
    VALUES_WIDE,      /* normal times 40: scores saturate and underflow */
    VALUES_TINY,      /* around 2^-126, both signs, subnormals, zeros of both signs */
    VALUES_SPECIAL,   /* NaN, infinities, largest numbers, -0, subnormals among normal ones */
    VALUES_ALL_MINUS_INF,
    VALUES_ONE_PLUS_INF,
    VALUES_ALL_NAN,
    VALUES_ZERO,
    VALUES_COUNT
} value_kind;

typedef enum layout_kind { LAYOUT_DENSE = 0, LAYOUT_STRIDED, LAYOUT_OFFSET, LAYOUT_ODD_BYTE, LAYOUT_COUNT } layout_kind;
typedef enum padding_kind { PAD_NONE = 0, PAD_ONE, PAD_HALF, PAD_ALL, PAD_ROWS, PAD_BOTH, PAD_COUNT } padding_kind;
typedef enum map_kind { MAP_NONE = 0, MAP_PLAIN, MAP_COPIES, MAP_COUNT } map_kind;

typedef struct gate_spec {
    mf_gate_config cfg;
    int64_t T;
    uint64_t seed;
    mf_dtype logits_dtype, bias_dtype, shared_gate_dtype, token_dtype;
    value_kind values, bias_values;
    layout_kind layout;
    padding_kind padding;
    map_kind map;
    bool bias_alt, scale, mask, bias_2d;
    bool bad_hash; /* some table entries and tokens are out of range */
    bool histogram, load, counters;
    int64_t row_base;
    int64_t out_slack; /* extra elements per row of the outputs */
} gate_spec;

/* SIGMOID, no bias, SUM, factor 2.5, E = 8, K = 2, f32 normal logits, every optional output. */
gate_spec gate_spec_default(void);

enum { GATE_NUM_INPUTS = 16 };

typedef struct gate_case {
    gate_spec spec;
    int64_t N, C, P;       /* P as resolved */
    mf_gate_args args;     /* inputs; outputs are absent */
    void *inputs[GATE_NUM_INPUTS];
    int num_inputs;
} gate_case;

void gate_case_open(gate_case *c, const gate_spec *spec);
void gate_case_close(gate_case *c);

typedef struct gate_outputs {
    mf_gate_args args;     /* the case's inputs and these outputs */
    int32_t *ids;          /* [T, C + slack] */
    float *weights;
    float *identity;       /* [T] */
    int32_t *packed;
    int32_t *histogram;    /* [P] */
    int32_t *load;         /* [E], starts at 100 + e */
    int32_t *bad_rows, *error_count; /* start at 1000 and 2000 */
    int64_t row;           /* C + slack */
    mf_status status;
    mf_error err;
} gate_outputs;

void gate_outputs_open(gate_outputs *o, const gate_case *c); /* poisoned */
void gate_outputs_close(gate_outputs *o);
void gate_run(gate_outputs *o, mf_device *device, bool unfused);

/* Fails the test, naming label and place, unless both hold the same bits, slack included. */
void gate_expect_equal(const gate_case *c, const gate_outputs *a, const gate_outputs *b, const char *label);

/* One line that tells what the case is, for failure messages. */
const char *gate_case_text(const gate_case *c);

/* A random legal spec whose T * N stays near max_work. */
gate_spec gate_spec_random(uint64_t *seed, int64_t max_work);

#endif
