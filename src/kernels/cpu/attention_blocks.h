/* attention_blocks.h - softmax attention over the paged cache, for queries of any kind: what MLA and GQA share.
 *
 * The context is cut at fixed positions, multiples of 128: each block makes a part (maximum, sum, weighted sum of
 * rows), the four blocks of a span are merged in order, then the spans in order.  A token's result so depends on its
 * position and the cached rows up to it alone: not on the other tokens of the batch, nor on which thread made which
 * part.  With a window or chunks the parts begin where the token's view does, blocks before it are left out, and each
 * sum starts from nothing, so that rows which only others of the batch see change no bit. */
#ifndef MF_KERNELS_CPU_ATTENTION_BLOCKS_H
#define MF_KERNELS_CPU_ATTENTION_BLOCKS_H

#include "kernels/cpu/cpu_kernels.h"

enum {
    MF_CPU_SPAN_ROWS = 4 * MF_CPU_KV_ROWS,
    MF_CPU_ATTEND_TOKENS = 256 /* most tokens of one call */
};

/* Heads come in groups that share the keys and values of a cached row.  Group g's key is key_dim floats at g *
 * key_step, its value value_dim floats at value_first + g * value_step. */
typedef struct mf_cpu_attend {
    const mf_kv_view *kv;
    int64_t first_token, num_tokens; /* rows of the view */
    int64_t num_groups, group_heads;
    int64_t key_dim, key_step;
    int64_t value_dim, value_first, value_step;
    float scale;
    int64_t window, chunk; /* as in mf_gqa_args */
    const float *sinks;    /* [heads of all groups] or NULL */
    const float *q; /* token t of the call, head h: q + t * q_token_stride + h * q_head_stride */
    int64_t q_token_stride, q_head_stride;
    void *out; /* likewise, value_dim values of out_dtype: f32, or bf16 to nearest even */
    mf_dtype out_dtype;
    int64_t out_token_stride, out_head_stride;
    float *scratch; /* mf_cpu_attend_scratch_floats */
} mf_cpu_attend;

/* Grows with num_tokens, kv->max_context and the number of threads, up to fixed limits. */
int64_t mf_cpu_attend_scratch_floats(const mf_device *device, const mf_cpu_attend *call);
void mf_cpu_attend_run(mf_device *device, const mf_cpu_attend *call);

/* Floats of a row in scratch memory: an odd number of cache lines, so that columns of many rows spread over a cache's
 * sets. */
static inline int64_t mf_cpu_spread(int64_t n)
{
    return ((n + 15) / 16 | 1) * 16;
}

#endif
