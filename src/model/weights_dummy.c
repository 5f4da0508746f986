/* weights_dummy.c - seeded random weights of a config's shapes and formats, for measuring without a checkpoint.
 *
 * Every value depends on the seed, the tensor's name and its place alone: the same seed gives the same bytes with any
 * number of threads and on every machine. */
#include <math.h>
#include <string.h>

#include "base/cpu_features.h"
#include "base/number.h"
#include "base/random.h"
#include "base/sys.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/weights_impl.h"

enum {
    CHUNK = 1 << 18,    /* values that one task makes */
    TASKS_PER_RUN = 256 /* between two looks at progress and cancel */
};

typedef enum fill_kind { FILL_NORMAL, FILL_ONES, FILL_BYTES } fill_kind;

/* One run of values in the block. */
typedef struct fill {
    uint64_t seed;
    uint8_t *data;
    int64_t count;
    int64_t first_task;
    mf_dtype dtype;
    fill_kind kind;
    float scale; /* standard deviation; for e8m0 and f32 block scales the value itself */
} fill;

typedef struct maker {
    const mf_weights_options *options;
    uint8_t *block; /* NULL while only counting */
    size_t bytes;   /* used so far */
    fill *fills;
    int64_t num_fills, capacity, num_tasks;
    int64_t window_first; /* the pool's task 0 */
    mf_weights *weights;
    mf_format format; /* of what is not quantised */
} maker;

/* ---- values ---- */

/* A value is the sum of four random bytes, centred and scaled: close to a normal, never past 3.5 deviations.  Only 1021
 * sums exist, so each task encodes them once and then copies codes. */
enum { NUM_SUMS = 4 * 255 + 1 };

static void encode_sums(const fill *f, uint32_t codes[NUM_SUMS])
{
    for (int sum = 0; sum < NUM_SUMS; sum++) {
        /* A byte's variance is (256^2 - 1) / 12; four of them deviate by 147.80. */
        float v = f->kind == FILL_ONES ? f->scale : (float)(sum - 510) * (1.0f / 147.80054f) * f->scale;
        codes[sum] = f->dtype == MF_BF16      ? mf_f32_to_bf16(v)
                     : f->dtype == MF_F16     ? mf_f32_to_f16(v)
                     : f->dtype == MF_F8_E4M3 ? mf_f32_to_e4m3(v)
                     : f->dtype == MF_F8_E8M0 ? (uint32_t)(ilogbf(v) + 127)
                     : f->dtype == MF_I8      ? (uint32_t)(uint8_t)(int8_t)lrintf(v)
                                              : mf_f32_bits(v);
    }
}

/* Two sums from one random number: bytes added in pairs, then pairs of pairs. */
static inline void next_sums(uint64_t *state, uint32_t sums[2])
{
    const uint64_t bytes = 0x00ff00ff00ff00ffu, halves = 0x0000ffff0000ffffu;
    uint64_t u = mf_random_next(state);
    u = (u & bytes) + (u >> 8 & bytes);
    u = (u & halves) + (u >> 16 & halves);
    sums[0] = (uint32_t)u;
    sums[1] = (uint32_t)(u >> 32);
}

static void fill_values(const fill *f, int64_t first, int64_t count)
{
    uint32_t codes[NUM_SUMS], sums[2];
    uint64_t state = mf_random_mix(f->seed + (uint64_t)(first / CHUNK));
    if (f->kind == FILL_BYTES) {
        for (int64_t i = 0; i < count; i++) {
            f->data[first + i] = (uint8_t)(mf_random_next(&state) >> 56);
        }
        return;
    }
    encode_sums(f, codes);
    size_t size = mf_dtype_size(f->dtype);
    uint8_t *to = f->data + (size_t)first * size;
    for (int64_t i = 0; i < count; i += 2) {
        next_sums(&state, sums);
        int n = i + 1 < count ? 2 : 1;
        for (int k = 0; k < n; k++) {
            uint32_t code = codes[sums[k]];
            if (size == 2) {
                uint16_t h = (uint16_t)code;
                memcpy(to, &h, 2);
            } else if (size == 1) {
                *to = (uint8_t)code;
            } else {
                memcpy(to, &code, 4);
            }
            to += size;
        }
    }
}

static void run_task(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const maker *m = context;
    task += m->window_first;
    int64_t low = 0, high = m->num_fills - 1; /* the last fill whose first task is <= task */
    while (low < high) {
        int64_t mid = low + (high - low + 1) / 2;
        if (m->fills[mid].first_task <= task) {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    const fill *f = &m->fills[low];
    int64_t first = (task - f->first_task) * CHUNK;
    fill_values(f, first, f->count - first < CHUNK ? f->count - first : CHUNK);
}

/* ---- the list of fills ---- */

static uint64_t hash_name(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++) {
        h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    }
    return h;
}

/* Takes room for count values and notes how to fill them; returns where (NULL while counting). */
static mf_status add_fill(maker *m, const char *name, int64_t count, mf_dtype dtype, fill_kind kind, float scale,
                          void **out)
{
    *out = NULL;
    if (m->block) {
        fill f = { .seed = mf_random_mix(m->options->seed) ^ hash_name(name),
                   .data = m->block + m->bytes,
                   .count = count,
                   .first_task = m->num_tasks,
                   .dtype = dtype,
                   .kind = kind,
                   .scale = scale };
        *out = f.data;
        m->fills[m->num_fills++] = f;
        m->num_tasks += mf_div_up(count, CHUNK);
    } else {
        m->capacity++;
    }
    m->bytes += ((size_t)count * mf_dtype_size(dtype) + 63) & ~(size_t)63;
    return MF_OK;
}

static mf_dtype format_dtype(mf_format format)
{
    return format == MF_FORMAT_F32 ? MF_F32 : format == MF_FORMAT_F16 ? MF_F16 : MF_BF16;
}

static mf_status add_wanted(void *context, const mf_wanted *x)
{
    maker *m = context;
    void *data;
    if (x->optional) { /* tied: the embedding's view */
        return MF_OK;
    }
    if (x->kind == MF_WANT_VECTOR) {
        bool is_norm = x->role == MF_ROLE_NORM || x->role == MF_ROLE_INPUT_NORM ||
                       x->role == MF_ROLE_POST_ATTENTION_NORM || x->role == MF_ROLE_Q_A_NORM ||
                       x->role == MF_ROLE_KV_A_NORM || x->role == MF_ROLE_Q_NORM || x->role == MF_ROLE_K_NORM ||
                       x->role == MF_ROLE_LINEAR_NORM;
        float spread = x->role == MF_ROLE_LINEAR_CONV ? 0.5f : 0.01f; /* a convolution keeps the size of its input */
        MF_TRY(add_fill(m, x->name, x->n, MF_F32, is_norm ? FILL_ONES : FILL_NORMAL, is_norm ? 1.0f : spread, &data));
        if (m->block) {
            *x->vector = data;
            m->weights->stats.bytes_by_format[MF_FORMAT_F32] += x->n * 4;
        }
        return MF_OK;
    }
    float deviation = (float)(1.0 / sqrt((double)x->k)); /* keeps the size of a normed input */
    mf_matrix matrix = { .n = x->n, .k = x->k, .row_stride = x->k, .format = m->format };
    int64_t bytes;
    if (x->scheme) {
        /* Codes with deviation 64 use most of e4m3's range (448), with 32 of int8's; uniform nibbles deviate by 4.6, as
         * e2m1 by 2.9.  The scale brings them to the wanted size.  A power of two suits checkpoints whose scales are
         * exponents too. */
        const mf_quant_scheme *scheme = x->scheme;
        matrix.format = mf_quant_format(scheme->method);
        const bool is_mx = matrix.format == MF_FORMAT_MXFP4, is_four = is_mx || matrix.format == MF_FORMAT_INT4_GROUP,
                   is_int8 = matrix.format == MF_FORMAT_INT8_CHANNEL;
        const float spread = is_mx ? 2.9f : is_four ? 4.6f : is_int8 ? 32.0f : 64.0f;
        int64_t rows = mf_div_up(x->n, scheme->block_n), columns = mf_div_up(x->k, scheme->block_k);
        float scale = ldexpf(1.0f, ilogbf(deviation / spread));
        matrix.scale_dtype = is_mx ? MF_F8_E8M0 : is_four ? MF_F16 : MF_F32;
        matrix.scale_row_stride = rows == 1 && matrix.format != MF_FORMAT_FP8_BLOCK && x->n > 1 ? 0 : columns;
        if (is_four) {
            matrix.row_stride = (x->k + 1) / 2 * 2;
            matrix.group_size = is_mx ? 0 : scheme->block_k == MF_QUANT_WHOLE_ROW ? matrix.row_stride : scheme->block_k;
            MF_TRY(add_fill(m, x->name, x->n * matrix.row_stride / 2, MF_U8, FILL_BYTES, 0.0f, &data));
        } else {
            MF_TRY(add_fill(m, x->name, x->n * x->k, is_int8 ? MF_I8 : MF_F8_E4M3, FILL_NORMAL, spread, &data));
        }
        matrix.data = data;
        MF_TRY(add_fill(m, x->scale_name, rows * columns, matrix.scale_dtype, FILL_ONES, scale, &data));
        matrix.scale = data;
        bytes = mf_matrix_bytes(&matrix);
    } else {
        MF_TRY(add_fill(m, x->name, x->n * x->k, format_dtype(m->format), FILL_NORMAL, deviation, &data));
        matrix.data = data;
        bytes = x->n * x->k * (int64_t)mf_dtype_size(format_dtype(m->format));
    }
    if (m->block) {
        *x->matrix = matrix;
        m->weights->stats.bytes_by_format[matrix.format] += bytes;
    }
    return MF_OK;
}

static mf_format plain_format(const mf_model_config *config)
{
    return config->torch_dtype == MF_F32   ? MF_FORMAT_F32
           : config->torch_dtype == MF_F16 ? MF_FORMAT_F16
                                           : MF_FORMAT_BF16;
}

int64_t mf_weights_dummy_bytes(const mf_model_config *config)
{
    maker m = { .format = plain_format(config) };
    return mf_tensor_map_walk(config, NULL, add_wanted, &m) == MF_OK ? (int64_t)m.bytes : -1;
}

/* ---- making ---- */

static mf_status run_fills(maker *m, mf_error *err)
{
    int32_t threads = m->options->num_threads > 0 ? m->options->num_threads : mf_cpu_features_get()->num_cores;
    mf_pool *pool = NULL;
    MF_TRY(mf_pool_open(threads, &pool, err));
    mf_status status = MF_OK;
    int64_t start = mf_now_ns(), last = start - 1000000000;
    const mf_progress *progress = &m->options->progress;
    for (int64_t done = 0; done < m->num_tasks && status == MF_OK;) {
        int64_t n = m->num_tasks - done < TASKS_PER_RUN ? m->num_tasks - done : TASKS_PER_RUN;
        m->window_first = done;
        mf_pool_run(pool, n, run_task, m);
        done += n;
        int64_t now = mf_now_ns();
        if (progress->fn && (now - last >= 100000000 || done == m->num_tasks)) {
            last = now;
            mf_progress_info info = { .what = "making dummy weights",
                                      .bytes_total = (int64_t)m->bytes,
                                      .bytes_done = (int64_t)((double)m->bytes * (double)done / (double)m->num_tasks),
                                      .seconds = (double)(now - start) * 1e-9 };
            if (!progress->fn(progress->context, &info)) {
                status = mf_fail(err, MF_ERR_CANCELLED, "making dummy weights was cancelled");
            }
        }
    }
    mf_pool_close(&pool);
    return status;
}

/* The same bytes, made on the device. */
static mf_status run_fills_there(const maker *m, mf_device *device, mf_error *err)
{
    const mf_progress *progress = &m->options->progress;
    const int64_t start = mf_now_ns();
    int64_t last = start - 1000000000;
    for (int64_t i = 0; i < m->num_fills; i++) {
        const fill *f = &m->fills[i];
        uint32_t codes[NUM_SUMS] = { 0 };
        if (f->kind != FILL_BYTES) {
            encode_sums(f, codes);
        }
        const mf_fill_call call = { .data = f->data,
                                    .count = f->count,
                                    .chunk = CHUNK,
                                    .seed = f->seed,
                                    .size = (int32_t)mf_dtype_size(f->dtype),
                                    .is_bytes = f->kind == FILL_BYTES,
                                    .codes = codes };
        MF_TRY(device->ops->memory->fill(device, &call, err));
        const int64_t now = mf_now_ns();
        if (progress->fn && (now - last >= 100000000 || i + 1 == m->num_fills)) {
            last = now;
            MF_TRY(mf_device_synchronize(device, err));
            mf_progress_info info = { .what = "making dummy weights",
                                      .bytes_total = (int64_t)m->bytes,
                                      .bytes_done = i + 1 == m->num_fills ? (int64_t)m->bytes : (int64_t)(f->data - m->block),
                                      .seconds = (double)(now - start) * 1e-9 };
            if (!progress->fn(progress->context, &info)) {
                return mf_fail(err, MF_ERR_CANCELLED, "making dummy weights was cancelled");
            }
        }
    }
    return mf_device_synchronize(device, err);
}

/* Where they are made: on the device, unless they become other codes first. */
static mf_device *device_for(const mf_weights_options *options)
{
    return options->quantization == MF_QUANTIZATION_NONE ? options->device : NULL;
}

static mf_status take_block(maker *m, mf_weights *w, mf_error *err)
{
    mf_device *device = device_for(m->options);
    if (device) {
        w->device = device;
        MF_TRY(mf_device_malloc(device, m->bytes, &w->placed, err));
        m->block = w->placed;
        return MF_OK;
    }
    w->memory = mf_alloc_huge(m->bytes + 64, m->options->numa);
    if (!w->memory) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for %.1f GiB of dummy weights", (double)m->bytes * 0x1p-30);
    }
    m->block = (uint8_t *)(((uintptr_t)w->memory + 63) & ~(uintptr_t)63);
    return MF_OK;
}

mf_status mf_weights_make_dummy(const mf_model_config *config, const mf_weights_options *options, mf_weights **out,
                                mf_error *err)
{
    *out = NULL;
    double start = mf_now_s();
    mf_weights *w = NULL;
    maker m = { .options = options, .format = plain_format(config) };
    mf_status status;
    int64_t available = mf_available_memory();
    MF_TRY(mf_tensor_map_walk(config, NULL, add_wanted, &m)); /* cannot fail: only counts */
    if (!device_for(options) && available > 0 && m.bytes > (uint64_t)available) {
        return mf_fail(err, MF_ERR_NOMEM,
                       "dummy weights of this config take %.1f GiB; %.1f GiB of memory are available",
                       (double)m.bytes * 0x1p-30, (double)available * 0x1p-30);
    }
    MF_TRY(mf_weights_alloc(config, 0, &w, err));
    m.weights = w;
    m.fills = mf_alloc_array((size_t)m.capacity, sizeof *m.fills);
    if (!m.fills) {
        status = mf_fail(err, MF_ERR_NOMEM, "no memory for the list of %lld dummy weights", (long long)m.capacity);
        goto done;
    }
    MF_TRY_GOTO(take_block(&m, w, err), done);
    m.bytes = 0;
    MF_TRY_GOTO(mf_tensor_map_walk(config, w, add_wanted, &m), done);
    if (config->tie_word_embeddings) {
        w->lm_head = w->embed_tokens;
    }
    MF_TRY_GOTO(w->placed ? run_fills_there(&m, w->device, err) : run_fills(&m, err), done);
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        w->stats.bytes_total += w->stats.bytes_by_format[f];
    }
    w->stats.seconds = mf_now_s() - start;
done:
    mf_free(m.fills);
    if (status != MF_OK) {
        mf_weights_close(&w);
    }
    *out = w;
    return status;
}
