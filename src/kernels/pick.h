/* pick.h - what a device that chooses tokens itself is asked of a row of logits, and what it answers.
 *
 * engine/sampler.c is the specification: the token that mf_sampler_sample gives for the same row and wish.  A device may
 * also answer that it cannot say; the row then goes to the host. */
#ifndef MF_KERNELS_PICK_H
#define MF_KERNELS_PICK_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#include "base/random.h"

enum {
    MF_PICK_MOST_TOP = 20, /* of the best ids */
    MF_PICK_FEW = 128,     /* a larger top_k goes without min_p */
};

typedef enum mf_pick_kind {
    MF_PICK_LOGITS,   /* the row is wanted as it is */
    MF_PICK_CHOOSE,   /* a token, by the fields below */
    MF_PICK_DESCRIBE, /* the rank and log-probability of token_id, and the best ids */
} mf_pick_kind;

typedef struct mf_pick {
    double temperature; /* 0: the largest */
    double top_p;
    uint64_t seed;      /* with the position of the token it gives the random number */
    int64_t position;
    float min_p;
    float repetition_penalty, frequency_penalty, presence_penalty; /* of changes with is_seen */
    int32_t kind;
    int32_t top_k;   /* 0: all */
    int32_t num_top; /* best ids to tell of; -1: no log-probabilities at all */
    int32_t token_id;
    int32_t first_change, num_changes; /* CHOOSE; an id has one at most */
} mf_pick;

/* An id whose logit is not taken as it is. */
typedef struct mf_pick_change {
    int32_t token_id;
    int32_t count;   /* in the completion */
    float bias;
    float logit;     /* scratch of the device: what it was */
    uint8_t is_forbidden, is_seen, is_unused[2];
} mf_pick_change;

typedef enum mf_picked_state {
    MF_PICKED_LOGITS, /* the host must choose */
    MF_PICKED,
    MF_PICKED_NONE,   /* a NaN or +infinity in the row, or no id is left */
} mf_picked_state;

typedef struct mf_picked {
    int32_t state, token_id;
    float logprob; /* of the row as it came, like those of the best ids; where num_top >= 0 */
    int32_t rank;  /* DESCRIBE: 1 = the best */
    int32_t num_top;
    int32_t top_ids[MF_PICK_MOST_TOP];
    float top_logprobs[MF_PICK_MOST_TOP];
} mf_picked;

/* Uniform in [0, 1). */
MF_FIXED double mf_pick_uniform(uint64_t seed, int64_t position)
{
    uint64_t state = mf_random_mix(seed + 0x9e3779b97f4a7c15u) ^ ((uint64_t)position * 0xd1342543de82ef95u);
    return mf_random_unit(&state);
}

/* The logit that a change makes of x: the sampler's steps in their order. */
MF_FIXED float mf_pick_changed(const mf_pick *p, const mf_pick_change *c, float x)
{
    const float minus_infinity = -(float)INFINITY;
    x = c->is_forbidden ? minus_infinity : x;
    x = c->bias != 0.0f ? x + c->bias : x;
    if (!c->is_seen || x == minus_infinity) {
        return x;
    }
    x = x > 0.0f ? x / p->repetition_penalty : x * p->repetition_penalty;
    if (c->count > 0) {
        x -= p->frequency_penalty * (float)c->count;
        x -= p->presence_penalty;
    }
    return x > FLT_MAX ? FLT_MAX : x;
}

#endif
