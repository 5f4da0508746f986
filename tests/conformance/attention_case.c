/* attention_case.c - see attention_case.h. */
#include "attention_case.h"

#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "kernels/cpu/cpu_kernels.h"

enum { SEQUENCES = ATTENTION_SEQUENCES };

/* Blocks of the kernels are 128 positions, spans 512, panels 64 query rows: the lengths lie around these. */
static const attention_shape shapes[] = {
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
    { "mla, 3 heads of 160", true, 3, 1, 160, 24, 8, 40, 16, { 150, 70, 3 }, MF_FORMAT_BF16 },
    { "5 heads alone, window 37, blocks of 17", false, 5, 5, 24, 24, 0, 0, 17, { 530, 64, 2 }, .window = 37 },
    { "16 heads on 2, window 128, sinks",
      false,
      16,
      2,
      40,
      40,
      0,
      0,
      16,
      { 700, 129, 3 },
      .window = 128,
      .has_sinks = true },
    { "6 heads on 3, window 300, values of 40", false, 6, 3, 24, 40, 0, 0, 16, { 900, 301, 1 }, .window = 300 },
    { "4 heads on 2, window 1", false, 4, 2, 8, 8, 0, 0, 16, { 140, 17, 1 }, .window = 1 },
    { "10 heads on 2, chunks of 96, blocks of 17", false, 10, 2, 24, 24, 0, 0, 17, { 400, 97, 1 }, .chunk = 96 },
    { "3 heads on one, chunks of 600, sinks",
      false,
      3,
      1,
      24,
      24,
      0,
      0,
      16,
      { 1230, 601, 600 },
      .chunk = 600,
      .has_sinks = true },
    { "4 heads alone, window 50 in chunks of 131",
      false,
      4,
      4,
      8,
      24,
      0,
      0,
      1,
      { 300, 131, 7 },
      .window = 50,
      .chunk = 131 },
    { "12 heads on 2 of 64, window 100, sinks",
      false,
      12,
      2,
      64,
      64,
      0,
      0,
      16,
      { 300, 129, 65 },
      .window = 100,
      .has_sinks = true },
    { "10 heads on 2 of 64, chunks of 96, blocks of 17", false, 10, 2, 64, 64, 0, 0, 17, { 260, 97, 1 }, .chunk = 96 },
    { "6 heads on 3, 128, blocks of 64", false, 6, 3, 128, 128, 0, 0, 64, { 330, 129, 65 } },
    { "16 heads on 2 of 64, window 150, blocks of 96",
      false,
      16,
      2,
      64,
      64,
      0,
      0,
      96,
      { 400, 97, 1 },
      .window = 150 },
    { "20 heads on one, 128", false, 20, 1, 128, 128, 0, 0, 16, { 200, 64, 3 } },
    { "mla, 16 heads, 512 and 64", true, 16, 1, 32, 32, 64, 512, 16, { 140, 65, 1 }, MF_FORMAT_BF16 },
    { "mla, 2 heads of 128, 512 and 64", true, 2, 1, 128, 128, 64, 512, 16, { 140, 65, 1 }, MF_FORMAT_BF16 },
    { "mla, 2 heads of 64, 512 and 64", true, 2, 1, 64, 64, 64, 512, 16, { 140, 65, 1 }, MF_FORMAT_BF16 },
    { "mla, 32 heads, 512 and 64, blocks of 17", true, 32, 1, 8, 8, 64, 512, 17, { 70, 30, 3 }, MF_FORMAT_BF16 },
    { "70 heads on one, window 100, sinks",
      false,
      70,
      1,
      8,
      8,
      0,
      0,
      16,
      { 150, 40, 9 },
      .window = 100,
      .has_sinks = true },
};

int attention_num_shapes(void)
{
    return 2 * (int)(sizeof shapes / sizeof shapes[0]);
}

const attention_shape *attention_shape_at(int i)
{
    static attention_shape s;
    s = shapes[i / 2];
    s.cache = i % 2 ? MF_BF16 : MF_F32;
    static const int few[ATTENTION_SEQUENCES] = { 80, 33, 2 };
    for (int k = 0; conf_small() && k < ATTENTION_SEQUENCES; k++) {
        s.length[k] = s.length[k] < few[k] ? s.length[k] : few[k];
    }
    return &s;
}

bool attention_is_sampled(int i)
{
    const attention_shape *s = &shapes[i / 2];
    if (conf_small()) { /* those that GPUs have kernels of their own for, and a few for the rest */
        return i % 2 ? s->key == 64 || s->key == 128 || s->rank == 512 : i % 16 == 0;
    }
    return conf_full() || i % 2 == 0 || i % 4 == 1;
}

bool attention_meets(const conf_device *devices, int i, int d, bool with_ref)
{
    if (conf_full() || d == 0) {
        return d > 0 || with_ref;
    }
    if (!mf_device_uses_host_memory(devices[d].device)) {
        return true;
    }
    const mf_cpu_attention_kernels *of = &mf_cpu_kernels_of(devices[d].device)->attention;
    int rung = 0;
    for (int j = 1; j < d; j++) {
        if (mf_device_num_threads(devices[j].device) == mf_device_num_threads(devices[d].device)) {
            rung++;
            if (memcmp(of, &mf_cpu_kernels_of(devices[j].device)->attention, sizeof *of) == 0) {
                return false;
            }
        }
    }
    if (rung == 0 && i / 2 % 2 == 1) {
        return false; /* plain C takes as long as all others together */
    }
    return (mf_device_num_threads(devices[d].device) > 1) == ((i / (rung == 0 ? 4 : 2) + rung) % 2 == 0);
}

static float *normals(uint64_t *seed, int64_t n, double scale)
{
    float *x = conf_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(scale * conf_normal(seed));
    }
    return x;
}

/* ---- the case ---- */

int64_t attention_cached_bytes(const attention_case *a, int64_t values)
{
    return values * (int64_t)mf_dtype_size(a->s.cache);
}

uint8_t *attention_cached_row(const attention_case *a, int sequence, int position)
{
    int block = a->table[sequence * a->max_blocks + position / a->s.block_size];
    return a->cache +
           attention_cached_bytes(a, ((int64_t)block * a->s.block_size + position % a->s.block_size) * a->row_size);
}

void attention_put(const attention_case *a, const float *x, int64_t n, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        const float value = x ? x[i] : NAN;
        const uint16_t bits = mf_f32_to_bf16(value);
        memcpy(out + attention_cached_bytes(a, i), a->s.cache == MF_F32 ? (const void *)&value : &bits,
               mf_dtype_size(a->s.cache));
    }
}

/* conf_alloc's filling is a small number as float. */
void attention_fill(attention_case *a)
{
    attention_put(a, NULL, (int64_t)a->num_blocks * a->s.block_size * a->row_size, a->cache);
    for (int s = 0; s < ATTENTION_SEQUENCES; s++) {
        for (int p = 0; p < a->s.length[s]; p++) {
            attention_put(a, a->rows + (int64_t)(a->first[s] + p) * a->row_size, a->row_size,
                          attention_cached_row(a, s, p));
        }
    }
}

/* Keys [key] and values [value] of one head at every position, in double. */
static void keys_and_values(const attention_case *a, int head, int sequence, double *keys, double *values)
{
    const attention_shape *s = &a->s;
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

int attention_first(const attention_case *a, int position)
{
    int first = a->s.window && position - a->s.window + 1 > 0 ? position - a->s.window + 1 : 0;
    while (a->s.chunk && first / a->s.chunk < position / a->s.chunk) {
        first++;
    }
    return first;
}

static void oracle(attention_case *a, int head, int sequence)
{
    const attention_shape *s = &a->s;
    const int key = s->key + s->rope, length = s->length[sequence];
    double *keys = malloc((size_t)(length * key) * 8), *values = malloc((size_t)(length * s->value) * 8);
    double *score = malloc((size_t)length * 8);
    keys_and_values(a, head, sequence, keys, values);
    for (int t = 0; t < length; t++) {
        const float *q = a->q + (int64_t)(a->first[sequence] + t) * a->query + head * key;
        double *out = a->want + (int64_t)(a->first[sequence] + t) * a->out + head * s->value;
        const double sink = s->has_sinks ? (double)a->sinks[head] : -INFINITY;
        double max = sink, sum = 0;
        for (int p = attention_first(a, t); p <= t; p++) {
            score[p] = 0;
            for (int j = 0; j < key; j++) {
                score[p] += (double)q[j] * keys[p * key + j];
            }
            score[p] *= (double)a->scale;
            max = score[p] > max ? score[p] : max;
        }
        memset(out, 0, (size_t)s->value * 8);
        for (int p = attention_first(a, t); p <= t; p++) {
            const double weight = exp(score[p] - max);
            sum += weight;
            for (int j = 0; j < s->value; j++) {
                out[j] += weight * values[p * s->value + j];
            }
        }
        sum += exp(sink - max);
        for (int j = 0; j < s->value; j++) {
            out[j] /= sum;
        }
    }
    free(keys);
    free(values);
    free(score);
}

void attention_make(attention_case *a, const attention_shape *s, uint64_t seed)
{
    *a = (attention_case){ .s = *s, .scale = 0.3f };
    a->row_size = s->is_mla ? s->rank + s->rope : s->kv_heads * (s->key + s->value);
    a->query = s->heads * (s->key + s->rope);
    a->out = s->heads * s->value;
    for (int i = 0; i < ATTENTION_SEQUENCES; i++) {
        const int blocks = (s->length[i] + s->block_size - 1) / s->block_size;
        a->first[i] = a->tokens;
        a->tokens += s->length[i];
        a->max_blocks = blocks > a->max_blocks ? blocks : a->max_blocks;
    }
    a->num_blocks = ATTENTION_SEQUENCES * a->max_blocks + 1;
    while (a->num_blocks % 7 == 0) {
        a->num_blocks++;
    }
    a->table = conf_alloc((size_t)(ATTENTION_SEQUENCES * a->max_blocks) * sizeof *a->table);
    for (int i = 0; i < ATTENTION_SEQUENCES * a->max_blocks; i++) {
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
    if (s->has_sinks) { /* below, among and above the scores */
        a->sinks = normals(&seed, s->heads, 4.0);
    }
    a->cache = conf_alloc((size_t)attention_cached_bytes(a, (int64_t)a->num_blocks * s->block_size * a->row_size));
    attention_fill(a);
}

void attention_make_want(attention_case *a)
{
    a->want = conf_alloc((size_t)(a->tokens * a->out) * 8);
    for (int head = 0; head < a->s.heads; head++) {
        for (int i = 0; i < ATTENTION_SEQUENCES; i++) {
            oracle(a, head, i);
        }
    }
}

void attention_discard(attention_case *a)
{
    if (a->s.is_mla) {
        case_matrix_free(&a->kv_b);
    }
    conf_free(a->table);
    conf_free(a->q);
    conf_free(a->sinks);
    conf_free(a->rows);
    conf_free(a->cache);
    conf_free(a->want);
}

/* ---- batches ---- */

/* As attention_attend, into `out` [n, a->out], in the batch's order. */
static void attend_batch(mf_device *device, const attention_case *a, int n, const int32_t *sequence,
                         const int32_t *position, float *out)
{
    const attention_shape *s = &a->s;
    float *q = conf_alloc((size_t)(n * a->query) * 4);
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
                             .out = out };
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
                             .window = s->window,
                             .chunk = s->chunk,
                             .sinks = a->sinks,
                             .q = q,
                             .kv = kv,
                             .out = out };
        args.scratch = conf_alloc(device->ops->gqa_scratch_floats(device, &args) * 4);
        device->ops->gqa_attention(device, &args);
        conf_free(args.scratch);
    }
    conf_free(q);
}

void attention_attend(mf_device *device, const attention_case *a, int n, const int32_t *sequence,
                      const int32_t *position, float *out)
{
    float *part = conf_alloc((size_t)(n * a->out) * 4);
    attend_batch(device, a, n, sequence, position, part);
    for (int i = 0; i < n; i++) {
        memcpy(out + (int64_t)(a->first[sequence[i]] + position[i]) * a->out, part + (int64_t)i * a->out,
               (size_t)a->out * 4);
    }
    conf_free(part);
}

float *attention_attend_whole(mf_device *device, const attention_case *a)
{
    int32_t *sequence = malloc((size_t)a->tokens * 4), *position = malloc((size_t)a->tokens * 4);
    float *out = conf_alloc((size_t)(a->tokens * a->out) * 4);
    for (int i = 0, n = 0; i < ATTENTION_SEQUENCES; i++) {
        for (int p = 0; p < a->s.length[i]; p++, n++) {
            sequence[n] = i;
            position[n] = p;
        }
    }
    attention_attend(device, a, a->tokens, sequence, position, out);
    free(sequence);
    free(position);
    return out;
}

void attention_check_batch(const conf_device *d, const attention_case *a, const float *whole, int n,
                           const int32_t *sequence, const int32_t *position, const char *how)
{
    float *out = conf_alloc((size_t)(n * a->out) * 4);
    attend_batch(d->device, a, n, sequence, position, out);
    for (int i = 0; i < n; i++) {
        const int64_t at = (int64_t)(a->first[sequence[i]] + position[i]) * a->out;
        if (conf_difference(out + (int64_t)i * a->out, whole + at, MF_F32, a->out) >= 0) {
            fail_msg("%s, %s: %s gives sequence %d, position %d other bits", d->label, a->s.name, how, (int)sequence[i],
                     (int)position[i]);
        }
    }
    conf_free(out);
}
