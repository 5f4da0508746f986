/* attention.c - MLA and grouped-query attention on every device: against double precision, and their promises about
 * bits.
 *
 * A case is a cache filled with the rows of a few sequences and queries for every token of them; a batch is any list of
 * these tokens.  Whatever the batch, a token's result has the bits that it has when its prompt comes in one piece. */
#include "experts_case.h"

#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "kernels/ops.h"

enum { SEQUENCES = 3 };

typedef struct shape {
    const char *name;
    bool is_mla;
    int heads, kv_heads, key, value; /* head_dim and v_head_dim; MLA: qk_nope_head_dim and v_head_dim */
    int rope, rank;                  /* MLA */
    int block_size;
    int length[SEQUENCES];
    mf_format format; /* of kv_b */
    mf_dtype cache;   /* set by the claims, which run for both */
} shape;

/* Blocks of the kernels are 128 positions, spans 512, panels 64 query rows: the lengths lie around these. */
static const shape shapes[] = {
    { "one head of 24, blocks of 1", false, 1, 1, 24, 24, 0, 0, 1, { 300, 129, 1 } },
    { "4 heads on one of 40, values of 24", false, 4, 1, 40, 24, 0, 0, 16, { 700, 64, 2 } },
    { "7 heads alone, 80 and 40, blocks of 17", false, 7, 7, 80, 40, 0, 0, 17, { 260, 128, 3 } },
    { "8 heads on 4, 24 and 40, blocks of 17", false, 8, 4, 24, 40, 0, 0, 17, { 530, 129, 17 } },
    { "8 heads on 2, 128", false, 8, 2, 128, 128, 0, 0, 16, { 200, 33, 1 } },
    { "28 heads on 4, 40", false, 28, 4, 40, 40, 0, 0, 16, { 180, 40, 9 } },
    { "70 heads on one of 8", false, 70, 1, 8, 8, 0, 0, 16, { 150, 40, 9 } },
    { "mla, 3 heads, blocks of 4", true, 3, 1, 12, 10, 8, 40, 4, { 150, 21, 20 }, MF_FORMAT_F32 },
    { "mla, one head, blocks of 1", true, 1, 1, 24, 40, 4, 24, 1, { 300, 5, 5 }, MF_FORMAT_BF16 },
    { "mla, 4 heads, blocks of 16", true, 4, 1, 24, 24, 8, 40, 16, { 600, 64, 1 }, MF_FORMAT_FP8_BLOCK },
    { "mla, 7 heads, blocks of 17", true, 7, 1, 40, 80, 24, 80, 17, { 260, 129, 2 }, MF_FORMAT_INT8_CHANNEL },
    { "mla, 16 heads, a wide latent", true, 16, 1, 32, 16, 16, 256, 16, { 100, 20, 7 }, MF_FORMAT_BF16 },
    { "mla, 72 heads", true, 72, 1, 8, 8, 8, 16, 16, { 150, 20, 7 }, MF_FORMAT_F16 },
};
enum { NUM_SHAPES = 2 * (sizeof shapes / sizeof shapes[0]) };

/* Every shape with a cache of f32, then of bf16. */
static const shape *shape_at(int i)
{
    static shape s;
    s = shapes[i / 2];
    s.cache = i % 2 ? MF_BF16 : MF_F32;
    return &s;
}

typedef struct attention {
    shape s;
    int row_size, query, out;     /* floats per token */
    int first[SEQUENCES], tokens; /* a sequence's first token in q, rows and want */
    int max_blocks, num_blocks;
    float scale;
    float *q, *rows; /* rows hold what the cache's dtype holds */
    uint8_t *cache;
    int32_t *table;
    case_matrix kv_b;
    double *want; /* [tokens, out] in double, by the unabsorbed definition */
} attention;

static float *normals(uint64_t *seed, int64_t n, double scale)
{
    float *x = conf_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(scale * conf_normal(seed));
    }
    return x;
}

/* ---- the case ---- */

static int64_t cached_bytes(const attention *a, int64_t values)
{
    return values * (int64_t)mf_dtype_size(a->s.cache);
}

static uint8_t *cached_row(const attention *a, int sequence, int position)
{
    int block = a->table[sequence * a->max_blocks + position / a->s.block_size];
    return a->cache + cached_bytes(a, ((int64_t)block * a->s.block_size + position % a->s.block_size) * a->row_size);
}

/* n values as the cache stores them: x, or NaN without x. */
static void put_values(const attention *a, const float *x, int64_t n, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        const float value = x ? x[i] : NAN;
        const uint16_t bits = mf_f32_to_bf16(value);
        memcpy(out + cached_bytes(a, i), a->s.cache == MF_F32 ? (const void *)&value : &bits, mf_dtype_size(a->s.cache));
    }
}

/* The cache holds the case's rows and, wherever no token is, NaN (conf_alloc's filling is a small number as float). */
static void fill_cache(attention *a)
{
    put_values(a, NULL, (int64_t)a->num_blocks * a->s.block_size * a->row_size, a->cache);
    for (int s = 0; s < SEQUENCES; s++) {
        for (int p = 0; p < a->s.length[s]; p++) {
            put_values(a, a->rows + (int64_t)(a->first[s] + p) * a->row_size, a->row_size, cached_row(a, s, p));
        }
    }
}

/* Keys [key] and values [value] of one head at every position, in double. */
static void keys_and_values(const attention *a, int head, int sequence, double *keys, double *values)
{
    const shape *s = &a->s;
    const int kv = head / (s->heads / s->kv_heads);
    const int key = s->key + s->rope;
    for (int p = 0; p < s->length[sequence]; p++) {
        const float *row = a->rows + (int64_t)(a->first[sequence] + p) * a->row_size;
        for (int j = 0; j < key; j++) {
            double k = s->is_mla ? 0.0 : (double)row[kv * s->key + j];
            for (int i = 0; s->is_mla && j < s->key && i < s->rank; i++) {
                k += a->kv_b.value[((int64_t)head * (s->key + s->value) + j) * s->rank + i] * (double)row[i];
            }
            keys[p * key + j] = s->is_mla && j >= s->key ? (double)row[s->rank + j - s->key] : k;
        }
        for (int j = 0; j < s->value; j++) {
            double v = s->is_mla ? 0.0 : (double)row[s->kv_heads * s->key + kv * s->value + j];
            for (int i = 0; s->is_mla && i < s->rank; i++) {
                v += a->kv_b.value[((int64_t)head * (s->key + s->value) + s->key + j) * s->rank + i] * (double)row[i];
            }
            values[p * s->value + j] = v;
        }
    }
}

static void oracle(attention *a, int head, int sequence)
{
    const shape *s = &a->s;
    const int key = s->key + s->rope, length = s->length[sequence];
    double *keys = malloc((size_t)(length * key) * 8), *values = malloc((size_t)(length * s->value) * 8);
    double *score = malloc((size_t)length * 8);
    keys_and_values(a, head, sequence, keys, values);
    for (int t = 0; t < length; t++) {
        const float *q = a->q + (int64_t)(a->first[sequence] + t) * a->query + head * key;
        double *out = a->want + (int64_t)(a->first[sequence] + t) * a->out + head * s->value;
        double max = -INFINITY, sum = 0;
        for (int p = 0; p <= t; p++) {
            score[p] = 0;
            for (int j = 0; j < key; j++) {
                score[p] += (double)q[j] * keys[p * key + j];
            }
            score[p] *= (double)a->scale;
            max = score[p] > max ? score[p] : max;
        }
        memset(out, 0, (size_t)s->value * 8);
        for (int p = 0; p <= t; p++) {
            const double weight = exp(score[p] - max);
            sum += weight;
            for (int j = 0; j < s->value; j++) {
                out[j] += weight * values[p * s->value + j];
            }
        }
        for (int j = 0; j < s->value; j++) {
            out[j] /= sum;
        }
    }
    free(keys);
    free(values);
    free(score);
}

static void make(attention *a, const shape *s, uint64_t seed)
{
    *a = (attention){ .s = *s, .scale = 0.3f };
    a->row_size = s->is_mla ? s->rank + s->rope : s->kv_heads * (s->key + s->value);
    a->query = s->heads * (s->key + s->rope);
    a->out = s->heads * s->value;
    for (int i = 0; i < SEQUENCES; i++) {
        const int blocks = (s->length[i] + s->block_size - 1) / s->block_size;
        a->first[i] = a->tokens;
        a->tokens += s->length[i];
        a->max_blocks = blocks > a->max_blocks ? blocks : a->max_blocks;
    }
    a->num_blocks = SEQUENCES * a->max_blocks + 1;
    while (a->num_blocks % 7 == 0) {
        a->num_blocks++;
    }
    a->table = conf_alloc((size_t)(SEQUENCES * a->max_blocks) * sizeof *a->table);
    for (int i = 0; i < SEQUENCES * a->max_blocks; i++) {
        a->table[i] = (7 * i + 3) % a->num_blocks; /* scattered, without repeats: 7 does not divide their number */
    }
    if (s->is_mla) {
        case_matrix_make(&a->kv_b, &seed, s->format, (int)s->format, (int64_t)s->heads * (s->key + s->value), s->rank);
    }
    /* Scores of a few units: a softmax that is neither flat nor one-hot. */
    a->q = normals(&seed, (int64_t)a->tokens * a->query, 1.5 / sqrt(0.1 * (s->key + s->rope)));
    a->rows = normals(&seed, (int64_t)a->tokens * a->row_size, s->is_mla ? 1.0 / sqrt(0.25 * s->rank) : 1.0);
    for (int64_t i = 0; s->cache == MF_BF16 && i < (int64_t)a->tokens * a->row_size; i++) {
        a->rows[i] = mf_bf16_to_f32(mf_f32_to_bf16(a->rows[i]));
    }
    a->cache = conf_alloc((size_t)cached_bytes(a, (int64_t)a->num_blocks * s->block_size * a->row_size));
    fill_cache(a);
}

static void make_want(attention *a)
{
    a->want = conf_alloc((size_t)(a->tokens * a->out) * 8);
    for (int head = 0; head < a->s.heads; head++) {
        for (int i = 0; i < SEQUENCES; i++) {
            oracle(a, head, i);
        }
    }
}

static void discard(attention *a)
{
    if (a->s.is_mla) {
        case_matrix_free(&a->kv_b);
    }
    conf_free(a->table);
    conf_free(a->q);
    conf_free(a->rows);
    conf_free(a->cache);
    conf_free(a->want);
}

/* ---- batches ---- */

/* Rows (sequence[i], position[i]) as one batch; out [tokens, a->out] gets each at its token's place. */
static void attend(mf_device *device, const attention *a, int n, const int32_t *sequence, const int32_t *position,
                   float *out)
{
    const shape *s = &a->s;
    float *q = conf_alloc((size_t)(n * a->query) * 4), *part = conf_alloc((size_t)(n * a->out) * 4);
    mf_kv_view kv = { .cache = a->cache,
                      .dtype = s->cache,
                      .row_size = a->row_size,
                      .block_size = s->block_size,
                      .block_table = a->table,
                      .max_blocks = a->max_blocks,
                      .sequence = sequence,
                      .position = position };
    for (int i = 0; i < n; i++) {
        memcpy(q + (int64_t)i * a->query, a->q + (int64_t)(a->first[sequence[i]] + position[i]) * a->query,
               (size_t)a->query * 4);
        kv.max_context = position[i] >= kv.max_context ? position[i] + 1 : kv.max_context;
    }
    if (s->is_mla) {
        mf_mla_args args = { .num_tokens = n,
                             .num_heads = s->heads,
                             .qk_nope_head_dim = s->key,
                             .qk_rope_head_dim = s->rope,
                             .v_head_dim = s->value,
                             .kv_lora_rank = s->rank,
                             .softmax_scale = a->scale,
                             .q = q,
                             .kv_b = &a->kv_b.m,
                             .kv = kv,
                             .out = part };
        args.scratch = conf_alloc(device->ops->mla_scratch_floats(device, &args) * 4);
        device->ops->mla_attention(device, &args);
        conf_free(args.scratch);
    } else {
        mf_gqa_args args = { .num_tokens = n,
                             .num_heads = s->heads,
                             .num_kv_heads = s->kv_heads,
                             .head_dim = s->key,
                             .v_head_dim = s->value,
                             .softmax_scale = a->scale,
                             .q = q,
                             .kv = kv,
                             .out = part };
        args.scratch = conf_alloc(device->ops->gqa_scratch_floats(device, &args) * 4);
        device->ops->gqa_attention(device, &args);
        conf_free(args.scratch);
    }
    for (int i = 0; i < n; i++) {
        memcpy(out + (int64_t)(a->first[sequence[i]] + position[i]) * a->out, part + (int64_t)i * a->out,
               (size_t)a->out * 4);
    }
    conf_free(q);
    conf_free(part);
}

/* Every token: each sequence in one piece, one sequence after the other, in one batch. */
static float *attend_whole(mf_device *device, const attention *a)
{
    int32_t *sequence = malloc((size_t)a->tokens * 4), *position = malloc((size_t)a->tokens * 4);
    float *out = conf_alloc((size_t)(a->tokens * a->out) * 4);
    for (int i = 0, n = 0; i < SEQUENCES; i++) {
        for (int p = 0; p < a->s.length[i]; p++, n++) {
            sequence[n] = i;
            position[n] = p;
        }
    }
    attend(device, a, a->tokens, sequence, position, out);
    free(sequence);
    free(position);
    return out;
}

/* The tokens of a batch have the bits that they have in `whole`. */
static void check_batch(const conf_device *d, const attention *a, const float *whole, int n, const int32_t *sequence,
                        const int32_t *position, const char *how)
{
    float *out = conf_alloc((size_t)(a->tokens * a->out) * 4);
    attend(d->device, a, n, sequence, position, out);
    for (int i = 0; i < n; i++) {
        const int64_t at = (int64_t)(a->first[sequence[i]] + position[i]) * a->out;
        if (conf_difference(out + at, whole + at, MF_F32, a->out) >= 0) {
            fail_msg("%s, %s: %s gives sequence %d, position %d other bits", d->label, a->s.name, how, (int)sequence[i],
                     (int)position[i]);
        }
    }
    conf_free(out);
}

/* ---- the claims ---- */

/* Sums of n terms in f32 err by about sqrt(n) 2^-25 of their size: 5e-7 for 300 terms, ten times that in a weight whose
 * score is 10; NMSE squares it.  The other formats of kv_b only make other numbers.  With a bf16 cache queries, weights and
 * latent results may be rounded, each by up to 2^-9 of its size, 2^-10 in the mean: 1e-6 each, a little more through the
 * scores. */
static double bound_of(const shape *s)
{
    return s->cache == MF_F32 ? 1e-11 : 1e-5;
}

TEST(attention_is_within_rounding_of_the_unabsorbed_definition_in_double)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 40 + (uint64_t)i);
        make_want(&a);
        for (int d = 0; d < count; d++) {
            float *out = attend_whole(devices[d].device, &a);
            case_error e = { 0 };
            for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
                case_error_add(&e, (double)out[j], a.want[j]);
            }
            if (!(case_nmse(&e) <= bound_of(&a.s))) {
                fail_msg("%s, %s: NMSE %g", devices[d].label, a.s.name, case_nmse(&e));
            }
            conf_free(out);
        }
        discard(&a);
    }
}

TEST(attention_decodes_the_latent_weights_of_every_format)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < 2 * MF_FORMAT_COUNT; i++) {
        const mf_format f = (mf_format)(i / 2);
        shape s = { "mla, 3 heads of 11 and 9, latent 52", true, 3, 1, 11, 9, 6, 52, 16, { 40, 3, 1 }, f };
        s.cache = i % 2 ? MF_BF16 : MF_F32;
        attention a;
        make(&a, &s, 70 + (uint64_t)f);
        make_want(&a);
        for (int d = 0; d < count; d++) {
            float *out = attend_whole(devices[d].device, &a);
            case_error e = { 0 };
            for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
                case_error_add(&e, (double)out[j], a.want[j]);
            }
            if (!(case_nmse(&e) <= bound_of(&s))) {
                fail_msg("%s, %s: NMSE %g", devices[d].label, mf_format_name(f), case_nmse(&e));
            }
            conf_free(out);
        }
        discard(&a);
    }
}

TEST(attention_bits_do_not_depend_on_how_a_prompt_is_cut)
{
    static const int chunks[] = { 1, 5, 64, 100 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 80 + (uint64_t)i);
        for (int d = 0; d < count; d++) {
            float *whole = attend_whole(devices[d].device, &a);
            for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
                /* token by token, only around the cuts of the context and at the end */
                for (int first = 0; first < a.s.length[0]; first += chunks[c]) {
                    int32_t sequence[100] = { 0 }, position[100];
                    const int left = a.s.length[0] - first, n = left < chunks[c] ? left : chunks[c];
                    if (chunks[c] == 1 && first > 2 && (first + 2) % 64 > 3 && left > 1) {
                        continue;
                    }
                    for (int t = 0; t < n; t++) {
                        position[t] = first + t;
                    }
                    check_batch(&devices[d], &a, whole, n, sequence, position, "a chunk");
                }
            }
            conf_free(whole);
        }
        discard(&a);
    }
}

TEST(attention_bits_do_not_depend_on_the_rest_of_the_batch)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        uint64_t seed = 90 + (uint64_t)i;
        make(&a, shape_at(i), seed);
        for (int d = 0; d < count; d++) {
            float *whole = attend_whole(devices[d].device, &a);
            enum { MOST = 60 };
            int32_t sequence[MOST], position[MOST];
            /* the last token of each sequence: decoding */
            for (int s = 0; s < SEQUENCES; s++) {
                sequence[s] = s;
                position[s] = a.s.length[s] - 1;
            }
            check_batch(&devices[d], &a, whole, SEQUENCES, sequence, position, "decoding three sequences");
            /* a chunk of the first, decoding the others, in an order that is not theirs */
            int n = 0;
            sequence[n] = 2;
            position[n++] = a.s.length[2] - 1;
            for (int t = a.s.length[0] - 40; t < a.s.length[0]; t++, n++) {
                sequence[n] = 0;
                position[n] = t;
            }
            sequence[n] = 1;
            position[n++] = a.s.length[1] - 1;
            check_batch(&devices[d], &a, whole, n, sequence, position, "a chunk beside decoding");
            /* any tokens in any order, with repeats */
            for (n = 0; n < MOST; n++) {
                sequence[n] = (int32_t)conf_below(&seed, SEQUENCES);
                position[n] = (int32_t)conf_below(&seed, a.s.length[sequence[n]]);
            }
            check_batch(&devices[d], &a, whole, MOST, sequence, position, "a batch in any order");
            conf_free(whole);
        }
        discard(&a);
    }
}

TEST(attention_bits_do_not_depend_on_the_number_of_threads)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 110 + (uint64_t)i);
        for (int d = 0; d + 1 < count; d++) {
            const char *isa = devices[d].label, *comma = strchr(isa, ',');
            if (!comma || strncmp(isa, devices[d + 1].label, (size_t)(comma - isa)) != 0) {
                continue;
            }
            float *one = attend_whole(devices[d].device, &a);
            float *three = attend_whole(devices[d + 1].device, &a);
            CHECK_EQ(conf_difference(one, three, MF_F32, (int64_t)a.tokens * a.out), -1);
            conf_free(one);
            conf_free(three);
        }
        discard(&a);
    }
}

/* A context whose parts do not fit the slots that threads share at once: a few tokens (their spans are tasks, in
 * several waves) and many (each token is a task). */
TEST(attention_of_a_long_context_has_the_same_bits_alone_and_in_company)
{
    static const shape long_shapes[] = {
        { "64 heads of 8, a long context", false, 64, 1, 8, 8, 0, 0, 16, { 20000, 1200, 3 } },
        { "mla, a long context", true, 5, 1, 8, 4, 4, 12, 16, { 20000, 1200, 3 }, MF_FORMAT_F32 },
    };
    enum { TOKENS = 12 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < 4; i++) {
        attention a;
        shape s = long_shapes[i / 2];
        s.cache = i % 2 ? MF_BF16 : MF_F32;
        make(&a, &s, 120 + (uint64_t)i);
        for (int d = 1; d < count; d++) {
            int32_t sequence[TOKENS] = { 0 }, position[TOKENS];
            float *company = conf_alloc((size_t)(a.tokens * a.out) * 4);
            for (int t = 0; t < TOKENS; t++) {
                sequence[t] = t % 4 == 1;
                position[t] = sequence[t] ? 1199 - t : 19999 - t * 128;
            }
            attend(devices[d].device, &a, TOKENS, sequence, position, company);
            for (int n = 1; n <= 5; n++) {
                check_batch(&devices[d], &a, company, n, sequence, position, "a small batch");
            }
            conf_free(company);
        }
        discard(&a);
    }
}

/* 0 * NaN is a NaN: a row that a token may not see must not even be weighed with 0. */
TEST(attention_reads_no_row_past_a_tokens_position)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 130 + (uint64_t)i);
        for (int d = 0; d < count; d++) {
            float *whole = attend_whole(devices[d].device, &a);
            /* decoding with a cache that is NaN behind the token */
            for (int t = 0; t < a.s.length[0]; t += 1 + a.s.length[0] / 9) {
                const int32_t sequence = 0, position = t;
                for (int p = t + 1; p < a.s.length[0]; p++) {
                    put_values(&a, NULL, a.row_size, cached_row(&a, 0, p));
                }
                check_batch(&devices[d], &a, whole, 1, &sequence, &position, "a cache of NaN behind the token");
                fill_cache(&a);
            }
            /* one poisoned token within the prompt: those before it keep their bits, the others see it */
            const int bad = a.s.length[0] / 2;
            put_values(&a, NULL, a.row_size, cached_row(&a, 0, bad));
            float *out = attend_whole(devices[d].device, &a);
            CHECK_EQ(conf_difference(out, whole, MF_F32, (int64_t)bad * a.out), -1);
            for (int64_t j = (int64_t)bad * a.out; j < (int64_t)a.s.length[0] * a.out; j++) {
                CHECK(isnan(out[j]));
            }
            const int64_t rest = (int64_t)a.first[1] * a.out;
            CHECK_EQ(conf_difference(out + rest, whole + rest, MF_F32, (int64_t)a.tokens * a.out - rest), -1);
            conf_free(out);
            conf_free(whole);
            fill_cache(&a);
        }
        discard(&a);
    }
}

TEST(attention_of_a_query_with_nan_or_infinity_touches_its_own_result_alone)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 150 + (uint64_t)i);
        for (int d = 0; d < count; d++) {
            float *whole = attend_whole(devices[d].device, &a);
            const int bad = a.s.length[0] / 3;
            float *q = a.q + (int64_t)bad * a.query;
            const float saved[2] = { q[0], q[a.query - 1] };
            q[0] = NAN;
            q[a.query - 1] = INFINITY;
            float *out = attend_whole(devices[d].device, &a);
            CHECK(isnan(out[(int64_t)bad * a.out]));
            CHECK(isnan(out[(int64_t)(bad + 1) * a.out - 1])); /* infinity - infinity, or no weight at all */
            CHECK_EQ(conf_difference(out, whole, MF_F32, (int64_t)bad * a.out), -1);
            const int64_t rest = (int64_t)(bad + 1) * a.out;
            CHECK_EQ(conf_difference(out + rest, whole + rest, MF_F32, (int64_t)a.tokens * a.out - rest), -1);
            q[0] = saved[0];
            q[a.query - 1] = saved[1];
            conf_free(out);
            conf_free(whole);
        }
        discard(&a);
    }
}

/* softmax over one position is 1, whatever the score, large ones included */
TEST(attention_with_one_token_gives_its_value_back)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 170 + (uint64_t)i);
        make_want(&a);
        for (int j = 0; j < a.query; j++) {
            a.q[j] *= 1e10f;
        }
        for (int d = 0; d < count; d++) {
            const int32_t zero = 0;
            float *out = conf_alloc((size_t)(a.tokens * a.out) * 4);
            attend(devices[d].device, &a, 1, &zero, &zero, out);
            case_error e = { 0 };
            for (int j = 0; j < a.out; j++) {
                case_error_add(&e, (double)out[j], a.want[j]);
            }
            CHECK(case_nmse(&e) <= bound_of(&a.s));
            conf_free(out);
        }
        discard(&a);
    }
}

/* Scores far apart: weights underflow to 0 and the sums stay those of the large ones. */
TEST(attention_survives_scores_of_any_size)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    const shape s = { "steep", false, 2, 1, 8, 8, 0, 0, 16, { 700, 1, 1 } };
    attention a;
    make(&a, &s, 190);
    for (int t = 0; t < s.length[0]; t++) {
        /* a maximum that rises, falls below all others for a whole span, and comes back */
        const float size = t < 300 ? (float)t : t < 600 ? -1e30f : 200.0f;
        for (int j = 0; j < 8; j++) {
            a.rows[(int64_t)t * a.row_size + j] = size;
            for (int h = 0; h < 2; h++) {
                a.q[(int64_t)t * a.query + h * 8 + j] = h ? 1.0f : 1e-3f;
            }
        }
    }
    fill_cache(&a);
    make_want(&a);
    for (int d = 0; d < count; d++) {
        float *out = attend_whole(devices[d].device, &a);
        case_error e = { 0 };
        for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
            case_error_add(&e, (double)out[j], a.want[j]);
        }
        if (!(case_nmse(&e) <= 1e-9)) { /* scores up to 700 carry errors of 2^-15 */
            fail_msg("%s: NMSE %g", devices[d].label, case_nmse(&e));
        }
        conf_free(out);
    }
    discard(&a);
}

TEST(attention_needs_no_more_scratch_for_longer_prompts_and_little_for_longer_contexts)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    const mf_matrix kv_b = { .n = 16 * 256, .k = 512, .row_stride = 512, .format = MF_FORMAT_BF16 };
    for (int d = 1; d < count; d++) {
        mf_device *device = devices[d].device;
        const double threads = mf_device_num_threads(device);
        mf_mla_args mla = { .num_tokens = 8192,
                            .num_heads = 128,
                            .qk_nope_head_dim = 128,
                            .qk_rope_head_dim = 64,
                            .v_head_dim = 128,
                            .kv_lora_rank = 512,
                            .kv_b = &kv_b,
                            .kv.max_context = 163840 };
        mf_gqa_args gqa = { .num_tokens = 8192,
                            .num_heads = 96,
                            .num_kv_heads = 8,
                            .head_dim = 128,
                            .v_head_dim = 128,
                            .kv.max_context = 163840 };
        const double large[2] = { 4.0 * (double)device->ops->mla_scratch_floats(device, &mla),
                                  4.0 * (double)device->ops->gqa_scratch_floats(device, &gqa) };
        CHECK(large[0] <= (16 + 16 * threads) * 1048576.0); /* the portion's queries and results are shared */
        CHECK(large[1] <= 16 * threads * 1048576.0);
        for (int64_t n = 1; n <= 8192; n *= 2) { /* sized at open for the largest batch and context */
            mla.num_tokens = gqa.num_tokens = n;
            mla.kv.max_context = gqa.kv.max_context = 20 * n;
            CHECK(4.0 * (double)device->ops->mla_scratch_floats(device, &mla) <= large[0]);
            CHECK(4.0 * (double)device->ops->gqa_scratch_floats(device, &gqa) <= large[1]);
        }
    }
}

TEST(attention_cache_rows_go_to_their_blocks)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        attention a;
        make(&a, shape_at(i), 200 + (uint64_t)i);
        const int64_t values = (int64_t)a.num_blocks * a.s.block_size * a.row_size;
        const size_t bytes = (size_t)cached_bytes(&a, values);
        uint8_t *filled = conf_alloc(bytes);
        memcpy(filled, a.cache, bytes);
        for (int d = 0; d < count; d++) {
            put_values(&a, NULL, values, a.cache);
            enum { STEP = 23 };
            for (int s = 0; s < SEQUENCES; s++) {
                for (int first = 0; first < a.s.length[s]; first += STEP) {
                    int32_t sequence[STEP], position[STEP];
                    const int n = a.s.length[s] - first < STEP ? a.s.length[s] - first : STEP;
                    const int64_t stride = a.row_size + 3;
                    float *rows = conf_alloc((size_t)(n * stride) * 4);
                    for (int t = 0; t < n; t++) { /* the later ones first */
                        sequence[t] = s;
                        position[t] = first + n - 1 - t;
                        memcpy(rows + t * stride, a.rows + (int64_t)(a.first[s] + position[t]) * a.row_size,
                               (size_t)a.row_size * 4);
                    }
                    mf_kv_view kv = { .cache = a.cache,
                                      .dtype = a.s.cache,
                                      .row_size = a.row_size,
                                      .block_size = a.s.block_size,
                                      .block_table = a.table,
                                      .max_blocks = a.max_blocks,
                                      .sequence = sequence,
                                      .position = position,
                                      .max_context = first + n };
                    devices[d].device->ops->kv_write(devices[d].device, &kv, rows, stride, n);
                    conf_free(rows);
                }
            }
            CHECK_EQ(memcmp(a.cache, filled, bytes), 0);
        }
        conf_free(filled);
        discard(&a);
    }
}
