/* gate_row.h - one row of the gate between its steps, so that a backend can put faster steps in the place of the plain ones.
 *
 * A backend replaces what is wide (all N columns of a row); what follows touches K columns and is the reference's own. */
#ifndef MF_KERNELS_REF_GATE_ROW_H
#define MF_KERNELS_REF_GATE_ROW_H

#include "kernels/ops.h"
#include "kernels/ref/canonical.h"

/* Everything that is known about one row.  Keys are finite; a bad expert (NaN logit) has key -inf, which is below them all.
 * Columns from N on hold nothing, but a step may write and read them up to the next multiple of 32.  Arrays start at cache
 * lines, so that no vector of a step lies across two. */
typedef struct mf_gate_row {
    int64_t t;
    bool has_nan;
    _Alignas(64) float x[MF_GATE_MAX_WIDTH]; /* canonical logits, with the bias when bias_domain is LOGIT */
    float a[MF_GATE_MAX_WIDTH];   /* scores; 0 for a bad expert */
    float key[MF_GATE_MAX_WIDTH];
    bool bad[MF_GATE_MAX_WIDTH];
    bool allowed[MF_GATE_MAX_WIDTH]; /* may be chosen: group kept, not masked, not chosen yet */
    int32_t id[MF_GATE_MAX_COLUMNS]; /* chosen ids; the steps after the choice turn them into emitted ones */
    float w[MF_GATE_MAX_COLUMNS];
    float identity;
} mf_gate_row;

typedef void (*mf_gate_step)(const mf_gate_call *call, mf_gate_row *row);

typedef struct mf_gate_steps {
    mf_gate_step read_logits; /* x, bad, has_nan */
    mf_gate_step score;       /* a, unless scoring is TOPK_SOFTMAX */
    mf_gate_step make_keys;   /* key; allowed = true for all */
    mf_gate_step drop_groups; /* allowed, with n_group > 1 */
    mf_gate_step choose;      /* id[0..K); applies expert_mask */
} mf_gate_steps;

extern const mf_gate_steps mf_ref_gate_steps;

void mf_gate_clear_histogram(const mf_gate_call *call);

/* Row row->t, from its logits to its outputs and counters. */
void mf_gate_run_row(const mf_gate_call *call, const mf_gate_steps *steps, mf_gate_row *row);

#endif
