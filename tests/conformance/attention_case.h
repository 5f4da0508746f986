/* attention_case.h - one case of attention: a cache filled with the rows of a few sequences, queries for every token of
 * them, and what they must give, in double.  A batch is any list of these tokens. */
#ifndef MF_TESTS_ATTENTION_CASE_H
#define MF_TESTS_ATTENTION_CASE_H

#include "experts_case.h"
#include "kernels/ops.h"

enum { ATTENTION_SEQUENCES = 3 };

typedef struct attention_shape {
    const char *name;
    bool is_mla;
    int heads, kv_heads, key, value; /* head_dim and v_head_dim; MLA: qk_nope_head_dim and v_head_dim */
    int rope, rank;                  /* MLA */
    int block_size;
    int length[ATTENTION_SEQUENCES];
    mf_format format;  /* of kv_b */
    int window, chunk; /* GQA: as mf_gqa_args has them */
    bool has_sinks;
    mf_dtype cache; /* set by the claims, which run for both */
} attention_shape;

typedef struct attention_case {
    attention_shape s;
    int row_size, query, out;               /* floats per token */
    int first[ATTENTION_SEQUENCES], tokens; /* a sequence's first token in q, rows and want */
    int max_blocks, num_blocks;
    float scale;
    float *q, *sinks;
    float *rows; /* rows hold what the cache's dtype holds */
    uint8_t *cache;
    int32_t *table;
    case_matrix kv_b;
    double *want; /* [tokens, out] in double, by the unabsorbed definition */
} attention_case;

/* The shapes of the claims: every other one with a cache of f32, its neighbour of bf16. */
int attention_num_shapes(void);
const attention_shape *attention_shape_at(int i);
/* For costly claims: a cache of bf16 with every other shape only. */
bool attention_is_sampled(int i);

/* Whether a costly claim about bits runs shape i on device d: not where the rung's attention is that of the one below,
 * and each rung with one thread for half of the shapes and with three for the others, C with every other shape only.
 * "ref", which goes through batches token by token, only where rows it may not see are at stake. */
bool attention_meets(const conf_device *devices, int i, int d, bool with_ref);

void attention_make(attention_case *a, const attention_shape *s, uint64_t seed);
void attention_make_want(attention_case *a);
void attention_discard(attention_case *a);

int64_t attention_cached_bytes(const attention_case *a, int64_t values);
uint8_t *attention_cached_row(const attention_case *a, int sequence, int position);
/* n values as the cache stores them: x, or NaN without x. */
void attention_put(const attention_case *a, const float *x, int64_t n, uint8_t *out);
/* The cache holds the case's rows and, wherever no token is, NaN. */
void attention_fill(attention_case *a);
/* The first position that a token sees. */
int attention_first(const attention_case *a, int position);

/* Rows (sequence[i], position[i]) as one batch; out [tokens, a->out] gets each at its token's place. */
void attention_attend(mf_device *device, const attention_case *a, int n, const int32_t *sequence,
                      const int32_t *position, float *out);
/* Every token: each sequence in one piece, one sequence after the other, in one batch. */
float *attention_attend_whole(mf_device *device, const attention_case *a);
/* The tokens of a batch have the bits that they have in `whole`. */
void attention_check_batch(const conf_device *d, const attention_case *a, const float *whole, int n,
                           const int32_t *sequence, const int32_t *position, const char *how);

#endif
