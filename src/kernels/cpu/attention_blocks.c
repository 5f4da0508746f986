/* attention_blocks.c - the loops of attention: see attention_blocks.h.
 *
 * An item is heads of one group times consecutive tokens of one sequence: one to MOST_PANELS panels of query rows,
 * which all meet a block of the cache while it is near.  With enough items each is a task; with few (decoding) every
 * span of every item is one, and its part waits in a slot until the parts are merged in order. */
#include "kernels/cpu/attention_block.h"

#include <math.h>
#include <string.h>

enum {
    QUERIES = MF_CPU_QUERIES,
    ROWS = MF_CPU_KV_ROWS,
    MOST_TILES = MF_CPU_ATTEND_TOKENS,
    MOST_PANELS = 4,
    MOST_BUNDLE = 16,
    PANELS_FLOATS = 1 << 17, /* of an item's panels and parts: half of a second-level cache of 1 MiB */
    ITEMS_PER_THREAD = 2,    /* with fewer, spans become tasks */
    WAVE_SPANS = 16,         /* slots per item, of 64 query rows */
    MERGE_QUERIES = 4
};

typedef mf_cpu_attend_item item;
typedef mf_cpu_attend_part part;

/* Consecutive tokens of one sequence. */
typedef struct tile {
    int32_t first, count; /* tokens of the call */
} tile;

typedef struct plan {
    const mf_cpu_kernels *kernels;
    const mf_cpu_attend *call;
    int64_t chunk_heads, num_chunks; /* of a group */
    int64_t num_panels;              /* most of an item */
    int64_t bundle;                  /* items of a task, all of one tile; 1 when items have several panels */
    int64_t panel_queries;
    int64_t num_tiles;
    int64_t part_floats, thread_floats;
    float *rooms, *slots;
    bool is_split;                  /* spans are tasks */
    int64_t first_span, wave_spans; /* from each item's own first span on */
    tile tiles[MOST_TILES];
} plan;

/* One thread's memory. */
typedef struct room {
    float *block;              /* mf_cpu_attend_block_floats */
    float *panel[MOST_BUNDLE]; /* of an item's panels, or of a bundle's items */
    part total[MOST_BUNDLE], span[MOST_BUNDLE];
} room;

static int64_t part_floats(const mf_cpu_attend *call, int64_t num_queries)
{
    return 2 * QUERIES + num_queries * mf_cpu_attend_acc_stride(call);
}

static int64_t most_queries(const mf_cpu_attend *call)
{
    const int64_t heads = call->group_heads < QUERIES ? call->group_heads : QUERIES;
    const int64_t tokens = call->num_tokens < QUERIES / heads ? call->num_tokens : QUERIES / heads;
    return heads * (tokens > 0 ? tokens : 1);
}

/* Of an item's panel and its two parts. */
static int64_t panel_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call, int64_t num_queries)
{
    return mf_cpu_attend_panel_floats(kernels, call, num_queries) + 2 * part_floats(call, num_queries);
}

static int64_t most_panels(const mf_cpu_kernels *kernels, const mf_cpu_attend *call)
{
    const int64_t floats = mf_cpu_attend_uses_tiles(kernels, call) ? 2 * PANELS_FLOATS : PANELS_FLOATS;
    const int64_t n = floats / panel_floats(kernels, call, QUERIES);
    return n < 1 ? 1 : n < MOST_PANELS ? n : MOST_PANELS;
}

static int64_t thread_floats(const mf_cpu_kernels *kernels, const mf_cpu_attend *call)
{
    return mf_cpu_attend_block_floats(kernels, call) +
           most_panels(kernels, call) * panel_floats(kernels, call, QUERIES);
}

static part part_at(float *memory)
{
    return (part){ .max = memory, .sum = memory + QUERIES, .acc = memory + 2 * QUERIES };
}

static room room_of(const plan *p, int32_t thread)
{
    const mf_cpu_attend *call = p->call;
    room r = { .block = p->rooms + thread * p->thread_floats };
    float *panel = r.block + mf_cpu_attend_block_floats(p->kernels, call);
    const int64_t count = p->bundle > 1 ? p->bundle : p->num_panels;
    for (int64_t i = 0; i < count; i++, panel += panel_floats(p->kernels, call, p->panel_queries)) {
        r.panel[i] = panel;
        r.total[i] = part_at(panel + mf_cpu_attend_panel_floats(p->kernels, call, p->panel_queries));
        r.span[i] = part_at(r.total[i].max + part_floats(call, p->panel_queries));
    }
    return r;
}

static int64_t count_spans(int64_t context)
{
    return (context + MF_CPU_SPAN_ROWS - 1) / MF_CPU_SPAN_ROWS;
}

/* Spans that an item's view begins after, and how many it meets. */
static int64_t skipped_spans(const item *it)
{
    return mf_cpu_attend_begin(it->call, it->first) / MF_CPU_SPAN_ROWS;
}

static int64_t item_spans(const item *it)
{
    return count_spans(mf_cpu_attend_item_context(it)) - skipped_spans(it);
}

/* Slots that splitting contexts may use: a fixed share per thread, less when contexts are short. */
static int64_t slots_floats(const mf_device *device, const mf_cpu_attend *call)
{
    const int64_t threads = mf_pool_num_threads(device->pool);
    const int64_t spans = count_spans(call->kv->max_context);
    if (threads == 1 || spans == 1) {
        return 0;
    }
    const int64_t chunks = (call->group_heads + QUERIES - 1) / QUERIES;
    const int64_t one = part_floats(call, QUERIES);
    const int64_t token = call->num_groups * chunks * part_floats(call, chunks > 1 ? QUERIES : call->group_heads);
    return ITEMS_PER_THREAD * threads * (spans < WAVE_SPANS ? spans : WAVE_SPANS) * (one > token ? one : token);
}

int64_t mf_cpu_attend_scratch_floats(const mf_device *device, const mf_cpu_attend *call)
{
    return MF_CPU_COLUMNS + thread_floats(mf_cpu_kernels_of(device), call) * mf_pool_num_threads(device->pool) +
           slots_floats(device, call);
}

/* ---- items ---- */

static void make_tiles(plan *p)
{
    const mf_cpu_attend *call = p->call;
    const int32_t *sequence = call->kv->sequence + call->first_token;
    const int64_t most = p->num_panels * (QUERIES / p->chunk_heads);
    p->num_tiles = 0;
    for (int64_t t = 0; t < call->num_tokens;) {
        tile *next = &p->tiles[p->num_tiles++];
        next->first = (int32_t)t++;
        while (t < call->num_tokens && t - next->first < most && sequence[t] == sequence[t - 1] &&
               mf_cpu_attend_context(call, t) > mf_cpu_attend_context(call, t - 1)) {
            t++;
        }
        next->count = (int32_t)t - next->first;
    }
}

static void set_tokens(item *it, int64_t first, int64_t num_tokens)
{
    it->first = first;
    it->num_tokens = num_tokens;
    it->num_queries = num_tokens * it->num_heads;
    it->stride = (it->num_queries + MF_CPU_QUERY_LANES - 1) / MF_CPU_QUERY_LANES * MF_CPU_QUERY_LANES;
}

static item item_at(const plan *p, int64_t i)
{
    const mf_cpu_attend *call = p->call;
    const tile *tokens = &p->tiles[i / (call->num_groups * p->num_chunks)];
    item it = { .call = call,
                .group = i / p->num_chunks % call->num_groups,
                .first_head = i % p->num_chunks * p->chunk_heads };
    it.num_heads =
        call->group_heads - it.first_head < p->chunk_heads ? call->group_heads - it.first_head : p->chunk_heads;
    set_tokens(&it, tokens->first, tokens->count);
    return it;
}

/* Panel i of an item; false when the item has no so many. */
static bool panel_at(const plan *p, const item *it, int64_t i, item *panel)
{
    const int64_t most = QUERIES / p->chunk_heads, done = i * most;
    if (done >= it->num_tokens) {
        return false;
    }
    *panel = *it;
    set_tokens(panel, it->first + done, it->num_tokens - done < most ? it->num_tokens - done : most);
    return true;
}

/* ---- one span ---- */

/* The first block of a span that is not before a view's begin. */
static int64_t first_block(int64_t span, int64_t begin)
{
    const int64_t block = begin / ROWS * ROWS;
    return block > span * MF_CPU_SPAN_ROWS ? block : span * MF_CPU_SPAN_ROWS;
}

/* The parts of a span for every panel of the task's items that sees it; `it` is the first of them. */
static void attend_span(const plan *p, const item *it, const room *r, int64_t span, const part *out)
{
    const bool whole_rows = p->bundle > 1 && p->bundle == p->call->num_groups * p->num_chunks;
    const int64_t begin = mf_cpu_attend_begin(p->call, it->first);
    const int64_t task_begin = first_block(p->is_split ? span : 0, begin);
    const int64_t context = mf_cpu_attend_item_context(it);
    const int64_t end = (span + 1) * MF_CPU_SPAN_ROWS < context ? (span + 1) * MF_CPU_SPAN_ROWS : context;
    mf_cpu_attend_pending pending[MOST_PANELS];
    const bool puts_off = p->bundle == 1 && p->panel_queries == QUERIES && mf_cpu_attend_uses_tiles(p->kernels, p->call);
    for (int64_t i = 0; i < MOST_PANELS; i++) {
        pending[i].count = 0;
        pending[i].nothing = (mf_cpu_asker){ 0 };
    }
    for (int64_t first = first_block(span, begin); first < end; first += ROWS) {
        for (int64_t j = 0; j < p->bundle; j++) {
            const mf_cpu_attend_share share = { .index = j, .count = p->bundle, .whole_rows = whole_rows };
            mf_cpu_attend_block b;
            item panel;
            mf_cpu_attend_make_block(p->kernels, &it[j], share, r->block, first, first == task_begin, &b);
            for (int64_t i = 0; panel_at(p, &it[j], i, &panel); i++) {
                const int64_t panel_first = first_block(span, mf_cpu_attend_begin(p->call, panel.first));
                if (first >= panel_first && mf_cpu_attend_item_context(&panel) > first) {
                    mf_cpu_attend_add_block(p->kernels, &panel, &b, first == panel_first, r->panel[j + i], r->block,
                                            &out[j + i], puts_off ? &pending[i] : NULL);
                    b.during_scores.num_rows = 0; /* asked for once */
                    b.during_blend.num_rows = 0;
                }
            }
        }
    }
    item panel;
    for (int64_t i = 0; puts_off && panel_at(p, it, i, &panel); i++) {
        mf_cpu_attend_end_span(p->kernels, &panel, &out[i], &pending[i]);
    }
}

/* total = total and a later span's part, for query rows [first, end) of the item; max and sum of all rows. */
static void merge_span(const plan *p, const item *it, int64_t span, const part *total, const part *later, int64_t first,
                       int64_t end)
{
    const mf_cpu_attention_kernels *kernels = &p->kernels->attention;
    const int64_t stride = mf_cpu_attend_acc_stride(it->call);
    const int64_t seen = mf_cpu_attend_first_query(it, span * MF_CPU_SPAN_ROWS);
    float alpha[QUERIES], beta[QUERIES];
    kernels->merge(total->max, total->sum, later->max, later->sum, it->stride, alpha, beta);
    for (int64_t q = first > seen ? first : seen; q < end; q++) {
        kernels->combine(total->acc + q * stride, later->acc + q * stride, alpha[q], beta[q], it->call->value_dim);
    }
}

/* What a query row's weighted sum is multiplied with: its sink joins the softmax as one more part, which has no value.
 */
static float last_factor(const part *total, int64_t q, const float *sink)
{
    if (!sink) {
        return 1.0f / total->sum[q];
    }
    const float max = *sink > total->max[q] ? *sink : total->max[q];
    const float factor = expf(total->max[q] - max);
    return factor / (total->sum[q] * factor + expf(*sink - max));
}

static void finish(const plan *p, const item *it, const part *total, int64_t first, int64_t end)
{
    const mf_cpu_attend *call = it->call;
    for (int64_t q = first; q < end; q++) {
        const int64_t head = it->group * call->group_heads + it->first_head + q % it->num_heads;
        const int64_t at = (it->first + q / it->num_heads) * call->out_token_stride + head * call->out_head_stride;
        const float factor = last_factor(total, q, call->sinks ? call->sinks + head : NULL);
        float *acc = total->acc + q * mf_cpu_attend_acc_stride(call);
        if (call->out_dtype == MF_F32) {
            p->kernels->attention.scale(acc, factor, call->value_dim, (float *)call->out + at);
        } else {
            p->kernels->attention.scale(acc, factor, call->value_dim, acc);
            p->kernels->store_row(acc, call->value_dim, call->out_dtype, (uint16_t *)call->out + at);
        }
    }
}

/* ---- items as tasks ---- */

/* Bundle `task`: its items, their queries packed. */
static void start_bundle(const plan *p, int64_t task, const room *r, item *items)
{
    for (int64_t j = 0; j < p->bundle; j++) {
        item panel;
        items[j] = item_at(p, task * p->bundle + j);
        for (int64_t i = 0; panel_at(p, &items[j], i, &panel); i++) {
            mf_cpu_attend_pack(p->kernels, &panel, r->panel[j + i]);
        }
    }
}

static void run_items(void *context, int64_t task, int32_t thread)
{
    const plan *p = context;
    const room r = room_of(p, thread);
    item items[MOST_BUNDLE], panel;
    start_bundle(p, task, &r, items);
    const int64_t spans = count_spans(mf_cpu_attend_item_context(&items[0]));
    const bool is_windowed = mf_cpu_attend_is_windowed(p->call);
    for (int64_t j = 0; is_windowed && j < p->bundle; j++) {
        for (int64_t i = 0; panel_at(p, &items[j], i, &panel); i++) {
            mf_cpu_attend_clear(p->call, &r.total[j + i], panel.num_queries);
        }
    }
    if (!is_windowed) {
        attend_span(p, items, &r, 0, r.total);
    }
    for (int64_t span = is_windowed ? skipped_spans(&items[0]) : 1; span < spans; span++) {
        attend_span(p, items, &r, span, r.span);
        for (int64_t j = 0; j < p->bundle; j++) {
            for (int64_t i = 0; panel_at(p, &items[j], i, &panel); i++) {
                if (span >= skipped_spans(&panel) && mf_cpu_attend_item_context(&panel) > span * MF_CPU_SPAN_ROWS) {
                    merge_span(p, &panel, span, &r.total[j + i], &r.span[j + i], 0, panel.num_queries);
                }
            }
        }
    }
    for (int64_t j = 0; j < p->bundle; j++) {
        for (int64_t i = 0; panel_at(p, &items[j], i, &panel); i++) {
            finish(p, &panel, &r.total[j + i], 0, panel.num_queries);
        }
    }
}

/* ---- spans as tasks: items of one panel ---- */

/* Slot 0 of an item holds its total; later ones the parts of the wave at hand.  Spans count from the item's first one,
 * whose part is the total to begin with; with a window the total begins with nothing, see attention_blocks.h. */
static part slot_of(const plan *p, int64_t i, int64_t slot)
{
    return part_at(p->slots + (i * (p->wave_spans + 1) + slot) * p->part_floats);
}

/* Of the wave at hand: the first span that is merged onto the total. */
static int64_t first_merged(const plan *p)
{
    return p->first_span > 0 || mf_cpu_attend_is_windowed(p->call) ? p->first_span : 1;
}

/* The spans of a wave onto query rows [first, end) of an item's total; the maxima and sums of all. */
static void merge_wave(const plan *p, int64_t i, const item *it, const part *total, int64_t first, int64_t end)
{
    const int64_t spans = item_spans(it), skipped = skipped_spans(it);
    const int64_t stop = p->first_span + p->wave_spans < spans ? p->first_span + p->wave_spans : spans;
    if (p->first_span == 0 && first_merged(p) == 0) {
        const part rows = { total->max, total->sum, total->acc + first * mf_cpu_attend_acc_stride(it->call) };
        mf_cpu_attend_clear(it->call, &rows, end - first);
    }
    for (int64_t span = first_merged(p); span < stop; span++) {
        const part later = slot_of(p, i, 1 + span - p->first_span);
        merge_span(p, it, skipped + span, total, &later, first, end);
    }
}

static void run_span(void *context, int64_t task, int32_t thread)
{
    const plan *p = context;
    const int64_t b = task / p->wave_spans, span = p->first_span + task % p->wave_spans;
    const item first = item_at(p, b * p->bundle);
    if (span >= item_spans(&first)) {
        return;
    }
    const room r = room_of(p, thread);
    item items[MOST_BUNDLE];
    part out[MOST_BUNDLE];
    start_bundle(p, b, &r, items);
    for (int64_t j = 0; j < p->bundle; j++) {
        out[j] = slot_of(p, b * p->bundle + j, span < first_merged(p) ? 0 : 1 + span - p->first_span);
    }
    attend_span(p, items, &r, skipped_spans(&first) + span, out);
}

/* Merges a wave's parts for a few query rows of one item.  Every task follows the item's maxima and sums on its own, in
 * its own copy; the one of the first rows hands them on to the next wave. */
static void run_merge(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const plan *p = context;
    const int64_t shares = QUERIES / MERGE_QUERIES;
    const int64_t i = task / shares, first = task % shares * MERGE_QUERIES;
    const item it = item_at(p, i);
    const int64_t end = first + MERGE_QUERIES < it.num_queries ? first + MERGE_QUERIES : it.num_queries;
    const int64_t spans = item_spans(&it);
    if (first >= it.num_queries || p->first_span >= spans) {
        return;
    }
    const part slot = slot_of(p, i, 0);
    float max[QUERIES], sum[QUERIES];
    memcpy(max, slot.max, sizeof max);
    memcpy(sum, slot.sum, sizeof sum);
    const part total = { .max = max, .sum = sum, .acc = slot.acc };
    merge_wave(p, i, &it, &total, first, end);
    if (p->first_span + p->wave_spans >= spans) {
        finish(p, &it, &total, first, end);
    }
}

/* After a wave that is not the last: an item's maxima and sums, once its merging tasks have read the old ones. */
static void run_carry(void *context, int64_t i, int32_t thread)
{
    (void)thread;
    const plan *p = context;
    const item it = item_at(p, i);
    const part total = slot_of(p, i, 0);
    merge_wave(p, i, &it, &total, 0, 0);
}

static void run_split(mf_device *device, plan *p, int64_t num_items, int64_t spans, int64_t floats, double work)
{
    p->part_floats = part_floats(p->call, most_queries(p->call));
    const int64_t room_for = floats / (num_items * p->part_floats) - 1;
    p->wave_spans = room_for < spans ? room_for : spans;
    const int64_t waves = (spans + p->wave_spans - 1) / p->wave_spans;
    for (p->first_span = 0; p->first_span < spans; p->first_span += p->wave_spans) {
        mf_cpu_run(device, work / (double)waves, num_items / p->bundle * p->wave_spans, run_span, p);
        mf_cpu_run(device, work / (double)waves, num_items * (QUERIES / MERGE_QUERIES), run_merge, p);
        if (p->first_span + p->wave_spans < spans) {
            mf_cpu_run(device, 0.0, num_items, run_carry, p);
        }
    }
}

/* Panels, bundles and spans such that there are at least so many tasks, and as few as possible; the number of items. */
static int64_t make_tasks(plan *p, int64_t least, int64_t spans)
{
    const mf_cpu_attend *call = p->call;
    const int64_t per_tile = call->num_groups * p->num_chunks;
    for (p->num_panels = most_panels(p->kernels, call);; p->num_panels--) {
        make_tiles(p);
        if (p->num_tiles * per_tile >= least || p->num_panels == 1) {
            break;
        }
    }
    int64_t longest_tile = 0;
    for (int64_t i = 0; i < p->num_tiles; i++) {
        longest_tile = p->tiles[i].count > longest_tile ? p->tiles[i].count : longest_tile;
    }
    const int64_t queries = longest_tile * p->chunk_heads;
    p->bundle = 1;
    p->panel_queries = QUERIES;
    if (queries < MF_CPU_COPY_QUERIES) {
        p->num_panels = 1;
        p->panel_queries = (queries + MF_CPU_QUERY_LANES - 1) / MF_CPU_QUERY_LANES * MF_CPU_QUERY_LANES;
        const int64_t most = most_panels(p->kernels, call) * panel_floats(p->kernels, call, QUERIES) /
                             panel_floats(p->kernels, call, p->panel_queries);
        p->bundle = per_tile;
        while (p->bundle > 1 && (per_tile % p->bundle != 0 || p->bundle > most || p->bundle > MOST_BUNDLE ||
                                 per_tile / p->bundle * p->num_tiles * spans < least)) {
            p->bundle--;
        }
    }
    const int64_t num_items = p->num_tiles * per_tile;
    p->is_split = spans > 1 && num_items / p->bundle < least;
    return num_items;
}

void mf_cpu_attend_run(mf_device *device, const mf_cpu_attend *call)
{
    const int64_t threads = mf_pool_num_threads(device->pool);
    plan p = { .kernels = mf_cpu_kernels_of(device), .call = call };
    p.thread_floats = thread_floats(p.kernels, call);
    p.num_chunks = (call->group_heads + QUERIES - 1) / QUERIES;
    p.chunk_heads = (call->group_heads + p.num_chunks - 1) / p.num_chunks;
    p.rooms = call->scratch + (64 - (uintptr_t)call->scratch % 64) % 64 / sizeof(float);
    p.slots = p.rooms + threads * p.thread_floats;
    int64_t most = 1;
    double work = 0;
    for (int64_t t = 0; t < call->num_tokens; t++) {
        const int64_t context = mf_cpu_attend_context(call, t), begin = mf_cpu_attend_begin(call, t);
        const int64_t spans = count_spans(context) - begin / MF_CPU_SPAN_ROWS;
        most = spans > most ? spans : most;
        work += (double)(context - begin);
    }
    work *= (double)(call->num_groups * call->group_heads * (call->key_dim + call->value_dim));
    const int64_t floats = slots_floats(device, call);
    const int64_t num_items = make_tasks(&p, threads > 1 ? ITEMS_PER_THREAD * threads : 1, floats > 0 ? most : 1);
    if (p.is_split) {
        for (int64_t i = 0; i < num_items; i++) { /* several tokens of an item see more than each of them */
            const item it = item_at(&p, i);
            most = item_spans(&it) > most ? item_spans(&it) : most;
        }
        run_split(device, &p, num_items, most, floats, work);
    } else {
        mf_cpu_run(device, work, num_items / p.bundle, run_items, &p);
    }
}
