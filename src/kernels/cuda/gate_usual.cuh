/* gate_usual.cuh - what gate_rows.cu and router_gate.cu share: the usual models' calls, their arithmetic, a row's weights and
 * outputs, and the general way for a row that a block has to itself.
 *
 * Within |x| <= 64 no score, key or sum of two keys can be subnormal or -0: scores are at least 2^-93, so all are multiples
 * of 2^-117.  That is why the canonical zero is not applied to them here. */
#ifndef MF_KERNELS_CUDA_GATE_USUAL_CUH
#define MF_KERNELS_CUDA_GATE_USUAL_CUH

#include "kernels/cuda/gate_row.cuh"
#include "kernels/cuda/sm90.cuh"

namespace
{

constexpr int MAX_K = 8;

/* What the usual row needs, close together; the general call lies behind it. */
struct rows_call {
    const void *logits;
    const float *bias;
    int32_t *ids;
    float *weights, *identity;
    uint32_t *histogram, *load;
    const int32_t *num_valid;
    const uint8_t *row_valid;
    uint32_t *arrivals, *generation;
    int32_t logits_stride, ids_stride, weights_stride, num_tokens, rows;
    int32_t top_k, num_shared, num_slots, shared_base, shared_stride, topk_group, renorm, fold, reciprocal;
    int32_t num_experts, counting; /* ids are counted: for histogram, load or both */
    int32_t warms;                 /* all code runs once before the kernel in front has ended */
    float renorm_eps, factor;
    mf_cuda_gate general;
};

static inline rows_call rows_call_of(const mf_cuda_gate *g, const mf_cuda_grid *grid)
{
    rows_call c = {};
    c.logits = g->logits;
    c.bias = g->bias_domain == MF_BIAS_NONE ? nullptr : (const float *)g->bias;
    c.ids = (int32_t *)g->ids;
    c.weights = (float *)g->weights;
    c.identity = (float *)g->identity;
    c.histogram = (uint32_t *)g->histogram;
    c.load = (uint32_t *)g->load;
    c.num_valid = (const int32_t *)g->num_valid;
    c.row_valid = g->row_valid;
    c.arrivals = g->ticket + 1;
    c.generation = g->ticket + 2;
    c.logits_stride = (int32_t)g->logits_stride;
    c.ids_stride = (int32_t)g->ids_stride;
    c.weights_stride = (int32_t)g->weights_stride;
    c.num_tokens = (int32_t)g->num_tokens;
    c.rows = grid->rows;
    c.top_k = g->top_k;
    c.num_shared = g->num_shared;
    c.num_slots = g->num_slots;
    c.shared_base = g->shared_base;
    c.shared_stride = g->shared_stride;
    c.topk_group = g->topk_group;
    c.renorm = g->renorm;
    c.fold = g->fold;
    c.reciprocal = g->shared_weight == MF_SHARED_RECIPROCAL;
    c.num_experts = g->num_experts;
    c.counting = g->histogram || g->load;
    c.warms = grid->warms;
    c.renorm_eps = g->renorm_eps;
    c.factor = g->factor;
    c.general = *g;
    if (grid->rows > 0 && g->load) { /* a general row is counted with the block's */
        c.general.load = nullptr;
        c.general.histogram = g->histogram ? g->histogram : g->load; /* only whether there is one matters there */
    }
    c.general.counts_to_output = grid->rows == 0; /* there are no counts of a block */
    return c;
}

/* ---- arithmetic on values that are known to be in range ---- */

/* gate_exp for -87 <= x <= 0: the result is normal, so 2^n is an addition to the exponent. */
MF_DEV float exp_in_range(float x)
{
    const float v = __fmul_rn(x, 0x1.715476p+0f), shifted = __fadd_rn(v, 0x1.8p23f), n = __fadd_rn(shifted, -0x1.8p23f);
    const float p = exp_of_rest(x, n);
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

/* gate_sigmoid for |x| <= 64.  The division is Markstein's; it is correctly rounded for every z in [0, 1] on sm_90, which
 * tests/cuda/sigmoid_sweep.cu tries one by one.  (Where the reciprocal of 0x1.fffffep0 is not the nearest, 1 / (1 + z) is
 * wrong there; other GPUs divide as usual.) */
MF_DEV float sigmoid_in_range(float x)
{
    const float z = exp_in_range(-fabsf(x)), d = __fadd_rn(1.0f, z), a = x >= 0.0f ? 1.0f : z;
#if __CUDA_ARCH__ == 900
    float y = reciprocal_approx(d);
    y = __fmaf_rn(y, __fmaf_rn(-d, y, 1.0f), y);
    const float q = __fmul_rn(a, y);
    return __fmaf_rn(__fmaf_rn(-d, q, a), y, q);
#else
    return __fdiv_rn(a, d);
#endif
}

/* Its branch is laid out of the way. */
MF_DEV bool rarely(bool condition)
{
    return __builtin_expect(condition, 0);
}

/* ---- what follows the choice, eight lanes a row ---- */

struct choice {
    int32_t id;
    float w;
};

/* Row t's choice k in this lane.  w: the score, or for SOFTMAX its e^(x - most), of which sum is the row's sum. */
template <bool SOFTMAX, typename COUNT>
MF_DEV void emit(const rows_call &c, int t, int k, bool here, bool valid, choice mine, float sum, COUNT count)
{
    const bool routed = valid && k < c.top_k;
    float w = routed ? mine.w : SOFTMAX ? 1.0f : 0.0f; /* of a zero the division would go its long way */
    if (SOFTMAX) {
        w = canon_zero(__fdiv_rn(w, sum));
        keep_here(w); /* not around the division: see gate_row_kernel */
        w = routed ? w : 0.0f;
    }
    if (c.renorm != MF_RENORM_NONE) {
        float s = 0.0f;
#pragma unroll
        for (int o = 0; o < MAX_K; o++) { /* +0 past top_k changes nothing */
            s = __fadd_rn(s, __shfl_sync(MF_FULL_WARP, w, o, 8));
        }
        if (c.renorm == MF_RENORM_SUM) {
            s = s > 0.0f ? s : 1.0f;
        } else if (c.renorm == MF_RENORM_SUM_EPS) {
            s = __fadd_rn(s, c.renorm_eps);
        } else {
            s = s > c.renorm_eps ? s : c.renorm_eps;
        }
        w = canon_zero(__fdiv_rn(routed ? w : 1.0f, s));
        keep_here(w);
        w = routed ? w : 0.0f;
    }
    if (c.fold) {
        w = canon_zero(__fmul_rn(w, c.factor));
    }
    int32_t *ids = c.ids + (int64_t)t * c.ids_stride;
    float *weights = c.weights + (int64_t)t * c.weights_stride;
    if (here && k < c.top_k) {
        ids[k] = routed ? mine.id : -1;
        weights[k] = w;
    }
    if (here && k < c.num_shared) {
        const int32_t id = c.shared_base + k * c.shared_stride;
        float one = 1.0f;
        if (rarely(c.reciprocal)) {
            one = canon_zero(__fdiv_rn(1.0f, c.factor));
        }
        ids[c.top_k + k] = valid ? id : -1;
        weights[c.top_k + k] = valid ? one : 0.0f;
        if (valid) {
            count(id);
        }
    }
    if (routed) {
        count(mine.id);
    }
    if (here && k == 0 && c.identity) { /* there are no zero experts */
        c.identity[t] = 0.0f;
    }
}

/* ---- a row that the quick way cannot vouch for ---- */

struct candidate {
    uint32_t key;
    int32_t id;
    float w;
    int32_t reserved;
};

/* The general way, in the memory that the row no longer needs. */
template <int N>
static __device__ __noinline__ void take_general_row_alone(const mf_cuda_gate &p, candidate *list, int64_t t,
                                                           int64_t valid_rows)
{
    static_assert(N * sizeof(candidate) >= COLUMNS * 8 + N * 4 + 160 || N == 64, "room for a general row");
    row_memory mem;
    mem.id = (int32_t *)list;
    mem.w = (float *)(mem.id + COLUMNS);
    mem.key = (uint32_t *)(mem.w + COLUMNS);
    mem.group = (float *)(mem.key + N);
    mem.kept = (uint8_t *)(mem.group + 32);
    run_row<0, MF_CUDA_GATE_FUSED>(p, mem, nullptr, t, valid_rows, threadIdx.x & 31);
}

} // namespace

#endif
