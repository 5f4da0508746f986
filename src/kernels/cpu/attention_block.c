/* attention_block.c - one block of the cache: see attention_block.h.
 *
 * Memory is fast where it is read in order.  Few query rows keep a core too short a time at a cached row to hide a read
 * of 512 bytes here and there, so then a task takes a bundle of items, the groups that share the rows, and asks for
 * whole rows, one after the other, a block ahead. */
#include "kernels/cpu/attention_block.h"

#include <float.h>
#include <string.h>

#include "kernels/ref/ref_ops.h"

enum {
    QUERIES = MF_CPU_QUERIES,
    ROWS = MF_CPU_KV_ROWS,
    WEIGHTS = MF_CPU_SPAN_BLOCKS * MF_CPU_TILE_WEIGHTS_BYTES / 4 /* floats */
};

typedef mf_cpu_attend_item item;
typedef mf_cpu_attend_block block;
typedef mf_cpu_attend_part part;

/* ---- memory: scores, keys, values ---- */

static int64_t key_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call)
{
    return mf_cpu_attend_uses_tiles(kernels, call) ? ROWS * mf_cpu_tile_columns(call->key_dim) / 2
                                                   : ROWS * mf_cpu_spread(call->key_dim);
}

/* Values inside the key are not copied twice. */
static int64_t value_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call)
{
    return mf_cpu_attend_uses_tiles(kernels, call)  ? ROWS * mf_cpu_tile_columns(call->value_dim) / 2
           : mf_cpu_attend_values_are_in_keys(call) ? 0
                                                    : ROWS * mf_cpu_spread(call->value_dim);
}

static float *scores_of(float *room)
{
    return room;
}

static float *keys_of(float *room)
{
    return room + QUERIES * ROWS;
}

/* Tiles have a place for each block of a span. */
static float *values_of(const mf_cpu_kernels *kernels, const mf_cpu_attend *call, float *room, int64_t first)
{
    const int64_t place = mf_cpu_attend_uses_tiles(kernels, call) ? first / ROWS % MF_CPU_SPAN_BLOCKS : 0;
    return keys_of(room) + key_floats(kernels, call) + place * value_floats(kernels, call);
}

int64_t mf_cpu_attend_block_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call)
{
    const int64_t places = mf_cpu_attend_uses_tiles(kernels, call) ? MF_CPU_SPAN_BLOCKS : 1;
    return QUERIES * ROWS + key_floats(kernels, call) + places * value_floats(kernels, call);
}

int64_t mf_cpu_attend_panel_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call, int64_t num_queries)
{
    if (!mf_cpu_attend_uses_tiles(kernels, call)) {
        return num_queries * call->key_dim;
    }
    return num_queries * mf_cpu_tile_columns(call->key_dim) / 2 + (num_queries < MF_CPU_COPY_QUERIES ? 0 : WEIGHTS);
}

/* Behind a panel's queries: its weights of the blocks of a span. */
static void *weights_of(const mf_cpu_kernels *kernels, const mf_cpu_attend *call, float *panel, int64_t place)
{
    float *end = panel + mf_cpu_attend_panel_floats(kernels, call, QUERIES);
    return end - WEIGHTS + place * (WEIGHTS / MF_CPU_SPAN_BLOCKS);
}

void mf_cpu_attend_pack(const mf_cpu_kernels *kernels, const item *it, float *panel)
{
    const mf_cpu_attend *call = it->call;
    const float *queries[QUERIES];
    for (int64_t q = 0; q < it->num_queries; q++) {
        const int64_t head = it->group * call->group_heads + it->first_head + q % it->num_heads;
        queries[q] = call->q + (it->first + q / it->num_heads) * call->q_token_stride + head * call->q_head_stride;
    }
    if (mf_cpu_attend_uses_tiles(kernels, call)) {
        kernels->attention.tiles->pack(queries, it->num_queries, call->key_dim, panel, it->stride);
    } else {
        kernels->attention.pack(queries, it->num_queries, call->key_dim, panel, it->stride);
    }
}

/* ---- the block ---- */

static int64_t value_bytes(const mf_cpu_attend *call)
{
    return call->kv->dtype == MF_F32 ? 4 : 2;
}

/* Pointers to the keys and values of positions [first, first + n) of a group. */
static void find_rows(const item *it, int64_t group, int64_t first, int64_t n, const void **keys, const void **values)
{
    const mf_cpu_attend *call = it->call;
    const mf_kv_view *kv = call->kv;
    const int64_t size = value_bytes(call), row_bytes = mf_kv_row_bytes(kv);
    for (int64_t s = 0; s < n;) {
        const uint8_t *row = mf_kv_row(kv, call->first_token + it->first, first + s);
        const int64_t left = kv->block_size - (first + s) % kv->block_size;
        for (const int64_t end = s + left < n ? s + left : n; s < end; s++, row += row_bytes) {
            keys[s] = row + group * call->key_step * size;
            values[s] = row + (call->value_first + group * call->value_step) * size;
        }
    }
}

/* To be asked for: memory is memory, whatever it holds. */
static void find_next_rows(const item *it, int64_t group, int64_t first, int64_t n, block *b)
{
    const void *keys[ROWS], *values[ROWS];
    find_rows(it, group, first, n, keys, values);
    for (int64_t s = 0; s < n; s++) {
        b->next_keys[s] = keys[s];
        b->next_values[s] = values[s];
    }
}

/* `width` values of n rows as f32, `dim` of them now. */
static void copy_rows(const mf_cpu_kernels *kernels, mf_dtype dtype, const void *const *rows, int64_t n, int64_t dim,
                      float *to, const float **copies)
{
    for (int64_t s = 0; s < n; s++, to += mf_cpu_spread(dim)) {
        if (dtype == MF_F32) {
            memcpy(to, rows[s], (size_t)dim * sizeof *to);
        } else {
            kernels->load_row(rows[s], dtype, dim, to);
        }
        copies[s] = to;
    }
}

/* Share c of the rows [0, n), split into `shares`. */
static mf_cpu_ahead share_of(const float *const *rows, int64_t n, int64_t floats, int64_t c, int64_t shares)
{
    const int64_t first = n * c / shares;
    return (mf_cpu_ahead){ rows + first, n * (c + 1) / shares - first, floats };
}

/* Reads a task's first block in order, before its parts are wanted here and there. */
static void touch_rows(const float *const *rows, int64_t n, int64_t floats)
{
    for (int64_t s = 0; s < n; s++) {
        for (int64_t i = 0; i < floats; i += 16) {
            (void)*(const volatile float *)(rows[s] + i);
        }
    }
}

/* What the rows become as f32. */
static void make_floats(const mf_cpu_kernels *kernels, const item *it, float *room, block *b)
{
    const mf_cpu_attend *call = it->call;
    const mf_dtype dtype = call->kv->dtype;
    if (dtype == MF_F32 && it->num_queries < MF_CPU_COPY_QUERIES) {
        for (int64_t s = 0; s < b->n; s++) {
            b->keys[s] = b->raw_keys[s];
            b->values[s] = b->raw_values[s];
        }
        return;
    }
    copy_rows(kernels, dtype, b->raw_keys, b->n, call->key_dim, keys_of(room), b->keys);
    if (mf_cpu_attend_values_are_in_keys(call)) {
        for (int64_t s = 0; s < b->n; s++) {
            b->values[s] = b->keys[s] + call->value_first;
        }
    } else {
        copy_rows(kernels, dtype, b->raw_values, b->n, call->value_dim, values_of(kernels, call, room, 0), b->values);
    }
}

/* What the rows become for tiles.  Sixteen rows of a cache's block that begins with them are a tile as they lie,
 * whatever stands in those that no query sees: each row makes scores of its own. */
static void make_tile_rows(const mf_cpu_kernels *kernels, const item *it, float *room, block *b)
{
    const mf_cpu_attend *call = it->call;
    b->is_finite = kernels->attention.tiles->pack_rows(b->raw_values, b->n, call->value_dim, &b->ahead,
                                                       values_of(kernels, call, room, b->first));
    const bool in_place = call->kv->block_size % MF_CPU_TILE_ROWS == 0 && call->key_dim % MF_CPU_TILE_COLUMNS == 0;
    const int64_t columns = mf_cpu_tile_columns(call->key_dim), bytes = columns * 2;
    uint8_t *copies = (uint8_t *)keys_of(room);
    b->key_stride = in_place ? mf_kv_row_bytes(call->kv) : bytes;
    for (int64_t s = 0; s < b->n; s++) {
        if (!in_place) {
            memcpy(copies + s * bytes, b->raw_keys[s], (size_t)call->key_dim * 2);
            memset(copies + s * bytes + call->key_dim * 2, 0, (size_t)(bytes - call->key_dim * 2));
        }
        if (s % MF_CPU_TILE_ROWS == 0) {
            b->key_groups[s / MF_CPU_TILE_ROWS] = in_place ? b->raw_keys[s] : copies + s * bytes;
        }
    }
}

void mf_cpu_attend_make_block(const mf_cpu_kernels *kernels, const item *it, mf_cpu_attend_share share, float *room,
                              int64_t first, bool starts, block *b)
{
    const mf_cpu_attend *call = it->call;
    const int64_t context = mf_cpu_attend_item_context(it), next = first + ROWS;
    const int64_t left = context <= next ? 0 : context - next < ROWS ? context - next : ROWS;
    const int64_t size = value_bytes(call), row_floats = mf_kv_row_bytes(call->kv) / 4;
    const bool has_tiles = mf_cpu_attend_uses_tiles(kernels, call);
    const bool in_place = call->kv->dtype == MF_F32 && it->num_queries < MF_CPU_COPY_QUERIES;
    const int64_t unseen = mf_cpu_attend_begin(call, it->first) - first;
    b->first = first + (unseen > 0 ? unseen / MF_CPU_TILE_COLUMNS * MF_CPU_TILE_COLUMNS : 0);
    b->n = (context < next ? context : next) - b->first;
    find_rows(it, it->group, b->first, b->n, b->raw_keys, b->raw_values);
    b->during_scores = b->during_blend = (mf_cpu_ahead){ 0 };
    b->ahead = (mf_cpu_asker){ 0 };
    if (has_tiles && it->num_queries >= MF_CPU_COPY_QUERIES) {
        /* read in order once, then much computing: hardware fetches ahead well enough */
    } else if (mf_cpu_attend_values_are_in_keys(call) || share.whole_rows) {
        if (starts && share.index == 0) {
            find_next_rows(it, 0, b->first, b->n, b);
            touch_rows(b->next_keys, b->n, row_floats);
        }
        find_next_rows(it, 0, next, left, b);
        b->during_scores = share_of(b->next_keys, left, row_floats, 2 * share.index, 2 * share.count);
        b->during_blend = share_of(b->next_keys, left, row_floats, 2 * share.index + 1, 2 * share.count);
        b->ahead.rows = share_of(b->next_keys, left, row_floats, share.index, share.count);
    } else if (in_place) {
        find_next_rows(it, it->group, b->first, b->n, b);
        b->during_scores = (mf_cpu_ahead){ b->next_values, b->n, call->value_dim };
        find_next_rows(it, it->group, next, left, b);
        b->during_blend = (mf_cpu_ahead){ b->next_keys, left, call->key_dim };
    } else {
        find_next_rows(it, it->group, next, left, b);
        b->during_scores = (mf_cpu_ahead){ b->next_keys, left, call->key_dim * size / 4 };
        b->during_blend = (mf_cpu_ahead){ b->next_values, left, call->value_dim * size / 4 };
    }
    if (has_tiles) {
        make_tile_rows(kernels, it, room, b);
    } else {
        make_floats(kernels, it, room, b);
    }
}

/* ---- a panel meets the block ---- */

/* Which of a block's rows the query rows of a panel see. */
typedef struct view {
    const int32_t *begins, *limits; /* begins: NULL when all are 0 */
    int64_t first_query, first_row; /* before them nothing is seen */
} view;

static void make_scores(const mf_cpu_kernels *kernels, const item *it, block *b, const float *panel, const view *seen,
                        float *out)
{
    if (mf_cpu_attend_uses_tiles(kernels, it->call)) {
        const mf_cpu_tile_scores scores = { .groups = b->key_groups,
                                            .key_stride = b->key_stride,
                                            .ahead = &b->ahead,
                                            .first_row = seen->first_row,
                                            .dim = mf_cpu_tile_columns(it->call->key_dim),
                                            .queries = panel,
                                            .limits = seen->limits,
                                            .first_query = seen->first_query,
                                            .stride = it->stride,
                                            .out = out };
        kernels->attention.tiles->scores(&scores);
        return;
    }
    const mf_cpu_scores scores = { .rows = b->keys,
                                   .ahead = b->during_scores,
                                   .first_row = seen->first_row,
                                   .dim = it->call->key_dim,
                                   .queries = panel,
                                   .limits = seen->limits,
                                   .first_query = seen->first_query,
                                   .stride = it->stride,
                                   .out = out };
    kernels->attention.scores(&scores);
}

static mf_cpu_tile_sums tile_sums(const item *it, float *acc)
{
    return (mf_cpu_tile_sums){ .num_queries = it->num_queries,
                               .n = it->call->value_dim,
                               .acc = acc,
                               .acc_stride = mf_cpu_attend_acc_stride(it->call) };
}

/* Where a value is not finite, rows that a token may not see must not even be weighed with 0: the block's rows are laid
 * out for each token on its own. */
static void blend_by_token(const mf_cpu_kernels *kernels, const item *it, const block *b, mf_cpu_tile_weights *weights,
                           mf_cpu_tile_blend *blend, mf_cpu_tile_sums sums, void *weighed, float *rows)
{
    const mf_cpu_attention_tiles *tiles = kernels->attention.tiles;
    mf_cpu_asker nothing = { 0 };
    blend->ahead = &nothing;
    for (int64_t q = blend->first_query; q < it->num_queries; q = sums.num_queries) {
        blend->first_query = weights->first_query = q;
        sums.num_queries = weights->num_queries = q + it->num_heads - q % it->num_heads;
        blend->num_rows = weights->num_rows = weights->limits[q];
        const void *seen[ROWS] = { NULL };
        for (int64_t s = weights->begins ? weights->begins[q] : 0; s < blend->num_rows; s++) {
            seen[s] = b->raw_values[s];
        }
        tiles->pack_rows(seen, blend->num_rows, it->call->value_dim, &nothing, rows);
        tiles->weigh(weights, weighed);
        tiles->blend(blend, 1, &sums);
    }
    tiles->pack_rows(b->raw_values, b->n, it->call->value_dim, &nothing, rows);
}

/* Weighted sums by tiles, now or at the span's end. */
static void make_tile_sums(const mf_cpu_kernels *kernels, const item *it, block *b, const view *seen,
                           const float *alpha, const float *beta, float *panel, float *room, const part *span,
                           mf_cpu_attend_pending *pending)
{
    const mf_cpu_attend *call = it->call;
    const bool is_all_seen = !seen->begins && seen->limits[seen->first_query] == b->n;
    _Alignas(64) uint8_t here[MF_CPU_TILE_WEIGHTS_BYTES];
    float *rows = values_of(kernels, call, room, b->first);
    mf_cpu_tile_weights weights = { .weights = scores_of(room),
                                    .first_row = seen->first_row,
                                    .num_rows = b->n,
                                    .ahead = &b->ahead,
                                    .begins = seen->begins,
                                    .limits = seen->limits,
                                    .first_query = seen->first_query,
                                    .num_queries = it->num_queries,
                                    .stride = it->stride };
    mf_cpu_tile_blend blend = { .rows = rows,
                                .weights = here,
                                .first_row = seen->first_row,
                                .num_rows = b->n,
                                .ahead = &b->ahead,
                                .first_query = seen->first_query,
                                .alpha = alpha,
                                .beta = beta };
    const mf_cpu_tile_sums sums = tile_sums(it, span->acc);
    if (!b->is_finite && !is_all_seen) {
        if (pending) {
            mf_cpu_attend_end_span(kernels, it, span, pending);
        }
        blend_by_token(kernels, it, b, &weights, &blend, sums, here, rows);
    } else if (pending) {
        const int64_t i = pending->count++;
        void *weighed = weights_of(kernels, call, panel, i);
        kernels->attention.tiles->weigh(&weights, weighed);
        blend.weights = weighed;
        blend.ahead = &pending->nothing;
        if (alpha) {
            blend.alpha = memcpy(pending->alpha[i], alpha, sizeof pending->alpha[i]);
            blend.beta = memcpy(pending->beta[i], beta, sizeof pending->beta[i]);
        }
        pending->parts[i] = blend;
    } else {
        kernels->attention.tiles->weigh(&weights, here);
        kernels->attention.tiles->blend(&blend, 1, &sums);
    }
}

void mf_cpu_attend_end_span(const mf_cpu_kernels *kernels, const item *it, const part *span,
                            mf_cpu_attend_pending *pending)
{
    if (pending->count > 0) {
        const mf_cpu_tile_sums sums = tile_sums(it, span->acc);
        kernels->attention.tiles->blend(pending->parts, pending->count, &sums);
        pending->count = 0;
    }
}

static void make_sums(const mf_cpu_kernels *kernels, const item *it, block *b, const view *seen, const float *alpha,
                      const float *beta, float *room, float *acc)
{
    const mf_cpu_attend *call = it->call;
    const mf_cpu_blend blend = { .rows = b->values,
                                 .ahead = b->during_blend,
                                 .weights = scores_of(room),
                                 .begins = seen->begins,
                                 .limits = seen->limits,
                                 .first_query = seen->first_query,
                                 .num_queries = it->num_queries,
                                 .stride = it->stride,
                                 .n = call->value_dim,
                                 .alpha = alpha,
                                 .beta = beta,
                                 .acc = acc,
                                 .acc_stride = mf_cpu_attend_acc_stride(call) };
    kernels->attention.blend(&blend);
}

void mf_cpu_attend_clear(const mf_cpu_attend *call, const part *sums, int64_t num_queries)
{
    for (int64_t q = 0; q < QUERIES; q++) {
        sums->max[q] = -FLT_MAX;
        sums->sum[q] = 0.0f;
    }
    memset(sums->acc, 0, (size_t)(num_queries * mf_cpu_attend_acc_stride(call)) * sizeof *sums->acc);
}

/* With a window a query that comes to see rows after others of its panel did must find what it finds alone: nothing. */
void mf_cpu_attend_add_block(const mf_cpu_kernels *kernels, const item *it, block *b, bool starts, float *panel,
                             float *room, const part *span, mf_cpu_attend_pending *pending)
{
    const mf_cpu_attend *call = it->call;
    const int64_t first_query = mf_cpu_attend_first_query(it, b->first);
    const bool is_windowed = mf_cpu_attend_is_windowed(call);
    int32_t begins[QUERIES] = { 0 }, limits[QUERIES] = { 0 };
    for (int64_t q = first_query; q < it->num_queries; q++) {
        const int64_t seen = mf_cpu_attend_context(call, it->first + q / it->num_heads) - b->first;
        limits[q] = (int32_t)(seen < b->n ? seen : b->n);
    }
    for (int64_t q = 0; is_windowed && q < it->stride; q++) {
        const int64_t t = it->first + q / it->num_heads;
        const int64_t unseen = q < it->num_queries ? mf_cpu_attend_begin(call, t) - b->first : b->n;
        begins[q] = (int32_t)(unseen < 0 ? 0 : unseen < b->n ? unseen : b->n);
    }
    const view seen = { .begins = is_windowed ? begins : NULL,
                        .limits = limits,
                        .first_query = first_query,
                        .first_row = begins[first_query] / MF_CPU_TILE_COLUMNS * MF_CPU_TILE_COLUMNS };
    if (is_windowed && starts) {
        mf_cpu_attend_clear(call, span, it->num_queries);
        starts = false;
    }
    make_scores(kernels, it, b, panel, &seen, scores_of(room));
    float max[QUERIES], sum[QUERIES], alpha[QUERIES], beta[QUERIES];
    mf_cpu_softmax softmax = { .scores = scores_of(room),
                               .begins = seen.begins,
                               .limits = limits,
                               .first_query = first_query,
                               .stride = it->stride,
                               .scale = call->scale,
                               .max = starts ? span->max : max,
                               .sum = starts ? span->sum : sum,
                               .ahead = mf_cpu_attend_uses_tiles(kernels, call) ? &b->ahead : NULL };
    for (int64_t q = 0; q < first_query; q++) {
        softmax.max[q] = -FLT_MAX;
        softmax.sum[q] = 0.0f;
    }
    kernels->attention.softmax(&softmax);
    if (!starts) {
        kernels->attention.merge(span->max, span->sum, max, sum, it->stride, alpha, beta);
    }
    const float *a = starts ? NULL : alpha, *c = starts ? NULL : beta;
    if (mf_cpu_attend_uses_tiles(kernels, call)) {
        make_tile_sums(kernels, it, b, &seen, a, c, panel, room, span, pending);
    } else {
        make_sums(kernels, it, b, &seen, a, c, room, span->acc);
    }
}
