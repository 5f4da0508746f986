/* sampler.c - choosing a token: see sampler.h.
 *
 * V = vocab_size, N = num_sampled_ids.  The order of ids is that of 64-bit keys, logit descending then id ascending.  Nobody
 * sorts a vocabulary: a few best ids are picked from the spans whose maxima are large enough; for a nucleus, ids fall into
 * buckets by their distance from the maximum, whole buckets are weighed, and only the one in which the nucleus ends and the
 * one in which the draw falls are sorted, by a radix sort: linear in time whatever the logits are. */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/fixed_math.h"
#include "base/number.h"
#include "base/sys.h"
#include "kernels/pick.h"


enum {
    LANES = 8,
    BUCKET_BITS = 12,
    NUM_BUCKETS = 1 << BUCKET_BITS,
    BUCKETS_PER_UNIT = 128, /* of ln(weight): the last bucket takes what is e^-32 of the best or less */
    SPAN = 512,
    FEW = 128 /* best ids that are picked one by one */
};

struct mf_sampler {
    int32_t vocab_size, num_sampled_ids;
    uint64_t *keys, *keys_other; /* [N] */
    float *weights;              /* [N] */
    double *span_sums;           /* of weights, one per SPAN ids */
    double *bucket_sums;         /* [NUM_BUCKETS + 1], of weights; the last: of what no nucleus reaches */
    uint16_t *buckets;           /* [N]: an id's bucket */
    float *span_max;             /* one per SPAN ids of the row at hand */
    float *row;                  /* [V]: the logits as the parameters changed them */
    int32_t *counts;             /* [V], zero between calls */
    uint8_t *marks;              /* [V], zero between calls */
    int32_t *histogram;          /* [NUM_BUCKETS] */
    uint32_t *mask;              /* [V] bits: what a guide allows */
};

static size_t num_mask_words(int32_t vocab_size)
{
    return ((size_t)vocab_size + 31) / 32;
}

mf_status mf_sampler_open(int32_t vocab_size, int32_t num_sampled_ids, mf_sampler **out, mf_error *err)
{
    *out = NULL;
    if (vocab_size < 1 || num_sampled_ids < 1 || num_sampled_ids > vocab_size) {
        return mf_fail(err, MF_ERR_INVALID, "num_sampled_ids: expected 1 to the vocabulary's %d; got %d", vocab_size,
                       num_sampled_ids);
    }
    mf_sampler *s = mf_alloc_zero(sizeof *s);
    if (!s) {
        return mf_fail(err, MF_ERR_NOMEM, "sampler: out of memory");
    }
    size_t n = (size_t)num_sampled_ids;
    s->vocab_size = vocab_size;
    s->num_sampled_ids = num_sampled_ids;
    s->keys = mf_alloc_array(n, sizeof *s->keys);
    s->keys_other = mf_alloc_array(n, sizeof *s->keys_other);
    s->weights = mf_alloc_array(n, sizeof *s->weights);
    s->span_sums = mf_alloc_array((n + SPAN - 1) / SPAN, sizeof *s->span_sums);
    s->bucket_sums = mf_alloc_array(NUM_BUCKETS + 1, sizeof *s->bucket_sums);
    s->buckets = mf_alloc_array(n, sizeof *s->buckets);
    s->span_max = mf_alloc_array(((size_t)vocab_size + SPAN - 1) / SPAN, sizeof *s->span_max);
    s->row = mf_alloc_array((size_t)vocab_size, sizeof *s->row);
    s->counts = mf_alloc_array((size_t)vocab_size, sizeof *s->counts);
    s->marks = mf_alloc_array((size_t)vocab_size, sizeof *s->marks);
    s->histogram = mf_alloc_array(NUM_BUCKETS, sizeof *s->histogram);
    s->mask = mf_alloc_array(num_mask_words(vocab_size), sizeof *s->mask);
    if (!s->keys || !s->keys_other || !s->weights || !s->span_sums || !s->bucket_sums || !s->buckets || !s->span_max || !s->row ||
        !s->counts || !s->marks || !s->histogram || !s->mask) {
        mf_sampler_close(&s);
        return mf_fail(err, MF_ERR_NOMEM, "sampler: out of memory for %d ids", vocab_size);
    }
    *out = s;
    return MF_OK;
}

void mf_sampler_close(mf_sampler **out)
{
    mf_sampler *s = *out;
    if (s) {
        mf_free(s->keys);
        mf_free(s->keys_other);
        mf_free(s->weights);
        mf_free(s->span_sums);
        mf_free(s->bucket_sums);
        mf_free(s->buckets);
        mf_free(s->span_max);
        mf_free(s->row);
        mf_free(s->counts);
        mf_free(s->marks);
        mf_free(s->histogram);
        mf_free(s->mask);
        mf_free(s);
        *out = NULL;
    }
}

double mf_sampler_uniform(uint64_t seed, int64_t position)
{
    return mf_pick_uniform(seed, position);
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

static int32_t span_size(int32_t start, int32_t n)
{
    return n - start < SPAN ? n - start : SPAN;
}

/* Bits of a float as an integer of the same order; NaNs lie outside the two infinities.  The mapping is its own inverse. */
static int32_t ordered_bits(int32_t bits)
{
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

/* The largest of n values, and those of its spans; false when there is a NaN or +infinity among them, or nothing but
 * -infinity.  Integers, since compilers vectorise no maximum of floats that knows NaNs. */
static bool row_max(const float *x, int32_t n, float *span_max, float *largest)
{
    const int32_t infinity = 0x7f800000, minus_infinity = ordered_bits((int32_t)0xff800000u);
    int32_t all_most = INT32_MIN, all_least = INT32_MAX;
    for (int32_t start = 0; start < n; start += SPAN) {
        const int32_t size = span_size(start, n);
        int32_t bits[SPAN], most = INT32_MIN, least = INT32_MAX;
        memcpy(bits, x + start, (size_t)size * sizeof *bits);
        for (int32_t i = 0; i < size; i++) {
            const int32_t key = ordered_bits(bits[i]);
            most = key > most ? key : most;
            least = key < least ? key : least;
        }
        const int32_t back = ordered_bits(most);
        memcpy(&span_max[start / SPAN], &back, sizeof back);
        all_most = most > all_most ? most : all_most;
        all_least = least < all_least ? least : all_least;
    }
    const int32_t back = ordered_bits(all_most);
    memcpy(largest, &back, sizeof back);
    return all_most < infinity && all_least >= minus_infinity && all_most > minus_infinity;
}

/* The lowest id that has the value of the row's maximum. */
static int32_t row_find(const float *x, int32_t n, const float *span_max, float value)
{
    for (int32_t start = 0; start < n; start += SPAN) {
        for (int32_t i = start; span_max[start / SPAN] == value && i < start + span_size(start, n); i++) {
            if (x[i] == value) {
                return i;
            }
        }
    }
    return -1;
}

/* out[i] = e^((x[i] - max) * scale) */
static void exps(const float *restrict x, int32_t n, float max, float scale, float *restrict out)
{
    for (int32_t i = 0; i < n; i++) {
        out[i] = mf_fixed_exp((x[i] - max) * scale);
    }
}

/* Eight running sums, then a tree. */
static double sum_of(const float *x, int32_t n)
{
    double sum[LANES] = { 0 };
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int32_t j = 0; j < LANES; j++) {
            sum[j] += (double)x[i + j];
        }
    }
    for (int32_t j = 0; i + j < n; j++) {
        sum[j] += (double)x[i + j];
    }
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

/* ln of the sum of e^(x - max). */
static double log_sum_exp(const float *x, int32_t n, float max)
{
    float values[SPAN];
    double sum = 0.0;
    for (int32_t start = 0; start < n; start += SPAN) {
        int32_t size = span_size(start, n);
        exps(x + start, size, max, 1.0f, values);
        sum += sum_of(values, size);
    }
    return mf_fixed_log(sum);
}

static float logprob_of(float logit, float max, double log_sum)
{
    return (float)((double)logit - (double)max - log_sum);
}

/* The k best ids of x[0..n) into top, best first, ties by id: an insertion into a short sorted list.  -infinity only with
 * `all`. */
static int32_t select_top(const float *x, int32_t n, const float *span_max, int32_t k, bool all, mf_logprob *top)
{
    int32_t count = 0;
    k = k < n ? k : n;
    for (int32_t start = 0; start < n && k > 0; start += SPAN) {
        if (count == k && !(span_max[start / SPAN] > top[k - 1].logprob)) {
            continue;
        }
        for (int32_t id = start; id < start + span_size(start, n); id++) {
            if ((count == k && !(x[id] > top[k - 1].logprob)) || (!all && x[id] == -INFINITY)) {
                continue;
            }
            int32_t place = count < k ? count++ : k - 1;
            for (; place > 0 && x[id] > top[place - 1].logprob; place--) {
                top[place] = top[place - 1];
            }
            top[place] = (mf_logprob){ .token_id = id, .logprob = x[id] };
        }
    }
    return count;
}

/* How many ids come before it when the best come first and ties go by id, and itself. */
static int32_t rank_of(const float *x, int32_t n, int32_t id)
{
    float own = x[id];
    int32_t rank = 1;
    for (int32_t i = 0; i < n; i++) {
        rank += x[i] > own;
    }
    for (int32_t i = 0; i < n && i < id; i++) {
        rank += x[i] == own;
    }
    return rank;
}

/* s->span_max: of the logits. */
static void describe(const mf_sampler *s, const float *logits, float max, int32_t token_id, int32_t num_top,
                     mf_sample *sample, mf_logprob *top)
{
    double log_sum = log_sum_exp(logits, s->vocab_size, max);
    sample->token_id = token_id;
    sample->rank = 0;
    sample->logprob = logprob_of(logits[token_id], max, log_sum);
    sample->num_top = select_top(logits, s->num_sampled_ids, s->span_max, num_top, true, top);
    for (int32_t i = 0; i < sample->num_top; i++) {
        top[i].logprob = logprob_of(top[i].logprob, max, log_sum);
    }
}

bool mf_sampler_logprobs(const mf_sampler *s, const float *logits, int32_t token_id, int32_t num_top, mf_sample *sample,
                         mf_logprob *top)
{
    float max;
    if (!row_max(logits, s->vocab_size, s->span_max, &max)) {
        return false;
    }
    describe(s, logits, max, token_id, num_top, sample, top);
    sample->rank = rank_of(logits, s->num_sampled_ids, token_id);
    return true;
}

/* ---- changes to the logits ---------------------------------------------------------------------------------------- */

static void forbid(float *logits, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        logits[ids[i]] = -INFINITY;
    }
}

/* Asks the guide and forbids what it does not allow. */
static void keep_guided(mf_sampler *s, float *logits, const mf_guide *guide)
{
    memset(s->mask, 0, num_mask_words(s->vocab_size) * sizeof *s->mask);
    guide->fill(guide->context, s->mask, s->vocab_size);
    for (int32_t start = 0; start < s->num_sampled_ids; start += 32) {
        uint32_t word = s->mask[start / 32];
        int32_t n = s->num_sampled_ids - start < 32 ? s->num_sampled_ids - start : 32;
        for (int32_t i = 0; i < n && word != UINT32_MAX; i++) {
            logits[start + i] = word >> i & 1 ? logits[start + i] : -INFINITY;
        }
    }
}

/* Whether the guide, asked just before, leaves no choice but ids that end the text. */
static bool guide_only_ends(mf_sampler *s, const mf_sample_context *c)
{
    const int32_t *ids[] = { c->eos_token_ids, c->params->stop_token_ids };
    const int32_t counts[] = { c->num_eos_token_ids, c->params->num_stop_token_ids };
    for (int i = 0; i < 2; i++) {
        for (int32_t j = 0; j < counts[i]; j++) {
            s->mask[ids[i][j] / 32] &= ~(1u << ids[i][j] % 32);
        }
    }
    for (int32_t start = 0; start < s->num_sampled_ids; start += 32) {
        int32_t n = s->num_sampled_ids - start;
        if (s->mask[start / 32] & (n < 32 ? (1u << n) - 1 : UINT32_MAX)) {
            return false;
        }
    }
    return true;
}

static void keep_allowed(mf_sampler *s, float *logits, const mf_sampling_params *p)
{
    for (int32_t i = 0; i < p->num_allowed_token_ids; i++) {
        s->marks[p->allowed_token_ids[i]] = 1;
    }
    for (int32_t id = 0; id < s->num_sampled_ids; id++) {
        logits[id] = s->marks[id] ? logits[id] : -INFINITY;
    }
    for (int32_t i = 0; i < p->num_allowed_token_ids; i++) {
        s->marks[p->allowed_token_ids[i]] = 0;
    }
}

bool mf_sampler_ends_with(const mf_sample_context *c, const int32_t *ids, int32_t n)
{
    return n <= c->num_tokens - c->num_prompt_tokens &&
           memcmp(ids, c->tokens + c->num_tokens - n, (size_t)n * sizeof *ids) == 0;
}

/* A bad word's last token is forbidden when the completion ends with the tokens before it. */
static void forbid_bad_words(float *logits, const mf_sample_context *c)
{
    const mf_sampling_params *p = c->params;
    const int32_t *word = p->bad_words;
    for (int32_t i = 0; i < p->num_bad_words; i++) {
        int32_t n = p->bad_word_lengths[i] - 1;
        if (mf_sampler_ends_with(c, word, n)) {
            logits[word[n]] = -INFINITY;
        }
        word += n + 1;
    }
}

/* Each distinct token once: by its count in the completion, and whether it occurs anywhere. */
static void penalise(mf_sampler *s, float *logits, const mf_sample_context *c)
{
    const mf_sampling_params *p = c->params;
    float repetition = (float)p->repetition_penalty;
    float frequency = (float)p->frequency_penalty;
    float presence = (float)p->presence_penalty;
    for (int32_t i = c->num_prompt_tokens; i < c->num_tokens; i++) {
        s->counts[c->tokens[i]]++;
    }
    for (int32_t i = 0; i < c->num_tokens; i++) {
        int32_t id = c->tokens[i];
        if (s->marks[id]) {
            continue;
        }
        s->marks[id] = 1;
        float x = logits[id];
        if (x == -INFINITY) {
            continue; /* forbidden, and times a penalty that rounds to 0 it would be a NaN */
        }
        x = x > 0.0f ? x / repetition : x * repetition;
        if (s->counts[id] > 0) {
            x -= frequency * (float)s->counts[id];
            x -= presence;
        }
        /* A tiny repetition penalty must not make an infinity. */
        logits[id] = x > FLT_MAX ? FLT_MAX : x;
    }
    for (int32_t i = 0; i < c->num_tokens; i++) {
        s->counts[c->tokens[i]] = 0;
        s->marks[c->tokens[i]] = 0;
    }
}

static void apply_params(mf_sampler *s, float *logits, const mf_sample_context *c)
{
    const mf_sampling_params *p = c->params;
    if (c->guide) {
        keep_guided(s, logits, c->guide);
    }
    if (p->num_allowed_token_ids > 0) {
        keep_allowed(s, logits, p);
    }
    if (p->num_bad_words > 0) {
        forbid_bad_words(logits, c);
    }
    if (c->num_tokens - c->num_prompt_tokens < p->min_tokens && !(c->guide && guide_only_ends(s, c))) {
        forbid(logits, c->eos_token_ids, c->num_eos_token_ids);
        forbid(logits, p->stop_token_ids, p->num_stop_token_ids);
    }
    for (int32_t i = 0; i < p->num_logit_bias; i++) {
        logits[p->logit_bias[i].token_id] += p->logit_bias[i].bias;
    }
    if (p->repetition_penalty != 1.0 || p->presence_penalty != 0.0 || p->frequency_penalty != 0.0) {
        penalise(s, logits, c);
    }
}

/* ---- choosing ----------------------------------------------------------------------------------------------------- */

/* Ascending order of these bits is descending order of the floats. */
static uint32_t descending_bits(float x)
{
    uint32_t u = mf_f32_bits(x + 0.0f); /* -0 and 0 are one value */
    return u & 0x80000000u ? u : ~u & 0x7fffffffu;
}

static uint64_t make_key(float x, int32_t id)
{
    return (uint64_t)descending_bits(x) << 32 | (uint32_t)id;
}

/* Stable, by the upper halves; equal logits stay in the order of ids in which they came. */
static void sort_keys(mf_sampler *s, int32_t n)
{
    int32_t sorted = 1;
    while (sorted < n && s->keys[sorted - 1] <= s->keys[sorted]) {
        sorted++;
    }
    if (sorted >= n) {
        return;
    }
    for (int shift = 32; shift < 64; shift += 8) {
        int32_t starts[257] = { 0 };
        for (int32_t i = 0; i < n; i++) {
            starts[((s->keys[i] >> shift) & 255) + 1]++;
        }
        for (int i = 0; i < 256; i++) {
            starts[i + 1] += starts[i];
        }
        for (int32_t i = 0; i < n; i++) {
            s->keys_other[starts[(s->keys[i] >> shift) & 255]++] = s->keys[i];
        }
        uint64_t *swap = s->keys;
        s->keys = s->keys_other;
        s->keys_other = swap;
    }
}

/* The k best ids with their weights, sorted, in keys; those that weigh nothing left out.  Of few ids no other is weighed. */
static int32_t gather_few(mf_sampler *s, const float *logits, float max, const mf_sampling_params *p)
{
    const float scale = (float)(1.0 / p->temperature), least = (float)p->min_p;
    mf_logprob top[FEW];
    const int32_t count = select_top(logits, s->num_sampled_ids, s->span_max, p->top_k, false, top);
    int32_t n = 0;
    for (int32_t i = 0; i < count; i++) {
        float weight;
        exps(&top[i].logprob, 1, max, scale, &weight);
        if (weight >= least && weight > 0.0f) {
            s->weights[top[i].token_id] = weight;
            s->keys[n++] = make_key(top[i].logprob, top[i].token_id);
        }
    }
    return n;
}

/* The k best of the ids with weight > 0, sorted, in keys.  A histogram of the logits' high bits leaves few to sort. */
static int32_t gather_top_k(mf_sampler *s, const float *logits, int32_t k)
{
    memset(s->histogram, 0, NUM_BUCKETS * sizeof *s->histogram);
    for (int32_t id = 0; id < s->num_sampled_ids; id++) {
        s->histogram[descending_bits(logits[id]) >> (32 - BUCKET_BITS)] += s->weights[id] > 0.0f;
    }
    int32_t last = 0;
    for (int64_t sum = s->histogram[0]; sum < k && last < NUM_BUCKETS - 1; sum += s->histogram[last]) {
        last++;
    }
    int32_t n = 0;
    for (int32_t id = 0; id < s->num_sampled_ids; id++) {
        if (s->weights[id] > 0.0f && descending_bits(logits[id]) >> (32 - BUCKET_BITS) <= (uint32_t)last) {
            s->keys[n++] = make_key(logits[id], id);
        }
    }
    sort_keys(s, n);
    return n < k ? n : k;
}

static double key_weight(const mf_sampler *s, int32_t i)
{
    return (double)s->weights[(uint32_t)s->keys[i]];
}

/* The first id at which the running sum passes target; the last one when rounding lets none pass. */
static int32_t draw_sorted(const mf_sampler *s, int32_t n, double target)
{
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) {
        sum += key_weight(s, i);
        if (sum > target) {
            return (int32_t)(uint32_t)s->keys[i];
        }
    }
    return (int32_t)(uint32_t)s->keys[n - 1];
}

/* The same over all ids in their order: first the span in which the sum passes target, then the id. */
static int32_t draw_any(const mf_sampler *s, double target)
{
    int32_t num_spans = (s->num_sampled_ids + SPAN - 1) / SPAN;
    int32_t span = 0;
    int32_t last_span = 0;
    double sum = 0.0;
    for (; span < num_spans; span++) {
        if (s->span_sums[span] > 0.0) {
            last_span = span;
            if (sum + s->span_sums[span] > target) {
                break;
            }
            sum += s->span_sums[span];
        }
    }
    int32_t end = last_span * SPAN + span_size(last_span * SPAN, s->num_sampled_ids);
    int32_t last = -1;
    for (int32_t id = last_span * SPAN; id < end; id++) {
        if (s->weights[id] > 0.0f) {
            last = id;
            sum += (double)s->weights[id];
            if (sum > target) {
                break;
            }
        }
    }
    return last;
}

/* weights[id] = e^((logit - max) / temperature), 0 when min_p cuts it off; the best id weighs 1.  Returns their sum. */
static double make_weights(mf_sampler *s, const float *logits, float max, const mf_sampling_params *p)
{
    float scale = (float)(1.0 / p->temperature);
    float least = (float)p->min_p;
    double total = 0.0;
    for (int32_t start = 0; start < s->num_sampled_ids; start += SPAN) {
        int32_t n = span_size(start, s->num_sampled_ids);
        float *weights = s->weights + start;
        exps(logits + start, n, max, scale, weights);
        for (int32_t i = 0; i < n; i++) {
            weights[i] = weights[i] >= least ? weights[i] : 0.0f;
        }
        s->span_sums[start / SPAN] = sum_of(weights, n);
        total += s->span_sums[start / SPAN];
    }
    return total;
}

/* ---- a nucleus ---- */

/* Buckets of all ids, and their sums in the ids' order.  Ids below (1 - p) total / N weigh less than 1 - p together and are
 * the lightest, so they are outside the nucleus; half of that bound leaves room for rounding. */
static void fill_buckets(mf_sampler *s, const float *logits, float max, double total, const mf_sampling_params *p)
{
    const float scale = (float)(1.0 / p->temperature) * BUCKETS_PER_UNIT;
    double bound = 0.5 * (1.0 - p->top_p) * total / s->num_sampled_ids;
    const float least = bound > (double)FLT_MIN ? (float)bound : FLT_MIN;
    memset(s->bucket_sums, 0, (NUM_BUCKETS + 1) * sizeof *s->bucket_sums);
    for (int32_t start = 0; start < s->num_sampled_ids; start += SPAN) {
        const int32_t n = span_size(start, s->num_sampled_ids);
        const float *x = logits + start, *weights = s->weights + start;
        uint16_t *buckets = s->buckets + start;
        for (int32_t i = 0; i < n; i++) {
            float place = (max - x[i]) * scale;
            place = place < (float)(NUM_BUCKETS - 1) ? place : (float)(NUM_BUCKETS - 1);
            buckets[i] = (uint16_t)(int32_t)(weights[i] >= least ? place : (float)NUM_BUCKETS);
        }
        for (int32_t i = 0; i < n; i++) {
            s->bucket_sums[buckets[i]] += (double)weights[i];
        }
    }
}

/* The ids of one bucket, sorted, in keys. */
static int32_t gather_bucket(mf_sampler *s, const float *logits, int32_t bucket)
{
    int32_t n = 0;
    for (int32_t start = 0; start < s->num_sampled_ids; start += SPAN) {
        const int32_t size = span_size(start, s->num_sampled_ids);
        const uint16_t *buckets = s->buckets + start;
        int32_t found = 0;
        for (int32_t i = 0; i < size; i++) {
            found += buckets[i] == (uint16_t)bucket;
        }
        for (int32_t i = 0; found > 0 && i < size; i++) {
            if (buckets[i] == (uint16_t)bucket) {
                s->keys[n++] = make_key(logits[start + i], start + i);
                found--;
            }
        }
    }
    sort_keys(s, n);
    return n;
}

/* top_p keeps an id when those before it weigh less than p: whole buckets, then ids of the one in which p is passed.  The
 * draw goes the same way. */
static int32_t choose_from_nucleus(mf_sampler *s, const float *logits, float max, double total, double u,
                                   const mf_sampling_params *p)
{
    const double enough = p->top_p * total;
    double kept = 0.0, last_sum = 0.0;
    int32_t last = 0, n = 0, num_kept = 0;
    fill_buckets(s, logits, max, total, p);
    for (; last < NUM_BUCKETS - 1 && kept + s->bucket_sums[last] < enough; last++) {
        kept += s->bucket_sums[last];
    }
    last_sum = kept;
    n = gather_bucket(s, logits, last);
    while (num_kept < n && (num_kept == 0 || kept < enough)) {
        kept += key_weight(s, num_kept++);
    }
    const double target = u * kept;
    if (num_kept > 0 && last_sum <= target) {
        return draw_sorted(s, num_kept, target - last_sum);
    }
    double sum = 0.0;
    int32_t bucket = 0, nearest = 0; /* the last bucket that holds anything: rounding may let none pass */
    for (; bucket < last; bucket++) {
        nearest = s->bucket_sums[bucket] > 0.0 ? bucket : nearest;
        if (sum + s->bucket_sums[bucket] > target) {
            break;
        }
        sum += s->bucket_sums[bucket];
    }
    sum -= bucket == last ? s->bucket_sums[nearest] : 0.0;
    n = gather_bucket(s, logits, nearest);
    return draw_sorted(s, n, target - sum);
}

static int32_t choose_random(mf_sampler *s, const float *logits, float max, const mf_sample_context *c)
{
    const mf_sampling_params *p = c->params;
    const double u = mf_sampler_uniform(c->seed, c->num_tokens);
    const bool has_top_k = p->top_k > 0 && p->top_k < s->num_sampled_ids;
    const bool has_few = has_top_k && p->top_k <= FEW;
    double total = has_few ? 0.0 : make_weights(s, logits, max, p);
    if (!has_top_k) {
        return p->top_p < 1.0 ? choose_from_nucleus(s, logits, max, total, u, p) : draw_any(s, u * total);
    }
    const int32_t n = has_few ? gather_few(s, logits, max, p) : gather_top_k(s, logits, p->top_k);
    total = 0.0;
    for (int32_t i = 0; i < n; i++) {
        total += key_weight(s, i);
    }
    /* top_p keeps an id when those before it weigh less than p. */
    double kept = 0.0;
    int32_t num_kept = 0;
    while (num_kept < n && (num_kept == 0 || !(p->top_p < 1.0) || kept < p->top_p * total)) {
        kept += key_weight(s, num_kept++);
    }
    return draw_sorted(s, num_kept, u * kept);
}

static bool changes_logits(const mf_sample_context *c)
{
    const mf_sampling_params *p = c->params;
    return c->guide || p->num_allowed_token_ids > 0 || p->num_bad_words > 0 || p->num_logit_bias > 0 || p->repetition_penalty != 1.0 ||
           p->presence_penalty != 0.0 || p->frequency_penalty != 0.0 ||
           c->num_tokens - c->num_prompt_tokens < p->min_tokens;
}

bool mf_sampler_is_largest(const mf_sample_context *c)
{
    return c->params->temperature < MF_SAMPLER_GREEDY_BELOW && c->params->logprobs < 0 && !changes_logits(c);
}

bool mf_sampler_sample(mf_sampler *s, const float *logits, const mf_sample_context *c, mf_sample *sample, mf_logprob *top)
{
    const mf_sampling_params *p = c->params;
    float raw_max;
    if (!row_max(logits, s->vocab_size, s->span_max, &raw_max)) {
        return false;
    }
    const bool changes = changes_logits(c), is_raw = !changes && s->num_sampled_ids == s->vocab_size;
    const float *row = logits;
    float max = raw_max;
    if (changes) {
        memcpy(s->row, logits, (size_t)s->vocab_size * sizeof *s->row);
        apply_params(s, s->row, c);
        row = s->row;
    }
    if (!is_raw && !row_max(row, s->num_sampled_ids, s->span_max, &max)) {
        return false;
    }
    int32_t id = p->temperature < MF_SAMPLER_GREEDY_BELOW ? row_find(row, s->num_sampled_ids, s->span_max, max)
                                               : choose_random(s, row, max, c);
    if (p->logprobs >= 0) {
        if (!is_raw) {
            (void)row_max(logits, s->vocab_size, s->span_max, &raw_max);
        }
        describe(s, logits, raw_max, id, p->logprobs, sample, top);
    } else {
        *sample = (mf_sample){ .token_id = id, .logprob = NAN };
    }
    return true;
}
