/* gate_wide.h - what the gate's wide steps share on every ISA: padding, where keys come from, which groups stay. */
#ifndef MF_KERNELS_CPU_GATE_WIDE_H
#define MF_KERNELS_CPU_GATE_WIDE_H

#include "kernels/ref/gate_row.h"
#include "kernels/ref/views.h"

/* Columns are padded to PAD with bad experts: whole vectors everywhere, and lanesum32's 32 lanes. */
enum { PAD = 32 };

static inline int64_t padded(const mf_gate_call *call)
{
    return (call->row_width + PAD - 1) / PAD * PAD;
}

static inline const mf_tensor *bias_of_row(const mf_gate_call *call, int64_t t)
{
    const mf_gate_args *a = call->args;
    return a->bias_alt.data && mf_load_u8(&a->row_is_alt, t) != 0 ? &a->bias_alt : &a->e_score_correction_bias;
}

/* What keys are made of: logits or scores, and the bias to add (NULL: none). */
static inline const float *key_source(const mf_gate_call *call, const mf_gate_row *row, const mf_tensor **bias)
{
    const mf_scoring scoring = call->cfg.scoring;
    const bool by_logit = scoring == MF_SCORING_SOFTMAX || scoring == MF_SCORING_TOPK_SOFTMAX ||
                          scoring == MF_SCORING_TOPK_SIGMOID;
    *bias = call->cfg.bias_domain == MF_BIAS_SCORE ? bias_of_row(call, row->t) : NULL;
    return by_logit && !*bias ? row->x : row->a;
}

/* A group's score from its two largest keys. */
static inline float score_of_group(const mf_gate_call *call, float first, float second)
{
    return call->cfg.group_score == MF_GROUP_SCORE_MAX ? first : mf_canon_zero(first + second);
}

/* Allows the topk_group groups of best score, the earlier of equals, and no other. */
static inline void allow_best_groups(const mf_gate_call *call, const float *score, mf_gate_row *row)
{
    const int64_t num_groups = call->cfg.n_group, size = call->row_width / num_groups;
    memset(row->allowed, 0, (size_t)call->row_width);
    for (int32_t n = 0; n < call->cfg.topk_group; n++) {
        int64_t best = -1;
        for (int64_t g = 0; g < num_groups; g++) {
            if (!row->allowed[g * size] && (best < 0 || score[g] > score[best])) {
                best = g;
            }
        }
        memset(row->allowed + best * size, 1, (size_t)size);
    }
}

#endif
