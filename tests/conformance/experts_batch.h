/* experts_batch.h - a guarded batch for mf_fused_experts, its run, and what the oracle expects of it. */
#ifndef MF_TESTS_EXPERTS_BATCH_H
#define MF_TESTS_EXPERTS_BATCH_H

#include "experts_case.h"

static const mf_dtype case_act_dtypes[] = { MF_F32, MF_BF16, MF_F16 };

typedef struct batch {
    int64_t num_tokens, num_columns, hidden;
    mf_dtype act_dtype, y_dtype;
    void *x, *y;
    int32_t *ids; /* [T, C], random slots */
} batch;

void make_batch(batch *b, uint64_t *seed, int64_t num_tokens, int64_t num_columns, int64_t hidden, mf_dtype act_dtype,
                mf_dtype y_dtype, int64_t num_slots);
void free_batch(batch *b);
void run_batch(mf_device *device, const mf_experts *experts, batch *b);

/* Expected rows [T * C][H] from the oracle (free them); columns that are not computed are 0. */
double *expect(const case_table *table, const batch *b, mf_act_quant act_quant);

/* Fails with the device and `what` when the NMSE over all columns with an id >= 0 is above the bound. */
void check_nmse(const batch *b, const double *expected, double bound, const char *device, const char *what);

/* printf into a static text. */
const char *label(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

case_slot_spec silu(mf_format format, int variant, int64_t width);

#endif
