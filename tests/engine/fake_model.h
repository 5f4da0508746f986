/* fake_model.h - a model whose logits are a hash of the sequence's tokens, read back through a paged store.
 *
 * forward writes each row's token, and a chain value computed from the position before, into the slot that block table and
 * position name; logits come from reading all slots of the sequence again.  A block mixed up, freed too early, reused without
 * being equal, or not computed again changes the answer. */
#ifndef MF_TESTS_FAKE_MODEL_H
#define MF_TESTS_FAKE_MODEL_H

#include "engine/engine_model.h"
#include "engine/sampler.h"

enum { FAKE_VOCAB = 40, FAKE_SAMPLED = 37, FAKE_EOS = 5 };

typedef struct fake_slot {
    int32_t token;
    uint64_t chain;
} fake_slot;

typedef struct fake_state {
    int32_t length; /* tokens taken in */
    uint64_t chain;
} fake_state;

typedef struct fake_model {
    bool has_states;    /* set before the engine opens: chains come from states, and a state must go on where it is */
    fake_state *states; /* [num_states] */
    int32_t num_states;
    fake_slot *slots; /* [num_blocks, block_size] */
    int32_t num_blocks, block_size;
    int32_t max_batch_tokens;
    bool picks_best;       /* set before the engine opens: finds the largest logits itself, and then gives none */
    int64_t num_picks;     /* forwards that did */
    mf_sampler *picks;     /* set before the engine opens: answers batch->picks with it, lent; each fifth row gives logits */
    int64_t num_picked;    /* rows that were answered */
    int32_t vocab_size;    /* FAKE_VOCAB unless changed before the engine opens */
    int32_t poison_token;  /* a sequence that holds it has NaN logits from there on; -1 = none */
    int32_t fail_countdown; /* > 0: the forward that brings it to 0 fails */
    int32_t num_open;      /* stores */
    int32_t num_closed;    /* calls of close */
    int64_t num_forwards;
    int32_t num_beats, beat_ms; /* a forward takes num_beats times beat_ms and tells of each */
    int32_t largest_batch, largest_num_sequences, largest_num_logit_rows;
} fake_model;

void fake_model_init(fake_model *fake, int32_t max_batch_tokens);
mf_engine_model fake_model_table(fake_model *fake, int64_t max_model_len);

/* The logits behind tokens[0..n), without any store. */
void fake_logits(const fake_model *fake, const int32_t *tokens, int32_t n, float *logits);

#endif
