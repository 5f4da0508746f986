/* experts.c - the grouped product: pairs (token, column) sorted by slot, rows of each slot's matrices shared out as
 * tasks.
 *
 * Per pass over at most PASS_TOKENS tokens, four steps, each a loop over independent tasks:
 *   inputs   x to f32, or to codes and scales for the W8A8 rules that some slot's w13 asks for
 *   up       gate and up rows of an active slot, the activation, into h
 *   requant  h to codes for W8A8 slots
 *   down     rows of w2 into y
 * A task is a range of rows, so a few experts still occupy every core.  What one row of y holds depends on its own
 * token and slot alone. */
#include "kernels/activation.h"
#include "kernels/carve.h"
#include "kernels/cpu/cpu_ops.h"

enum {
    PASS_TOKENS = 1024, /* bounds the workspace; no result depends on it */
    TILE_TOKENS = 24,
    UP_ROWS = 64,
    DOWN_ROWS = 64
};

/* x in one of the forms that products take. */
typedef struct input_form {
    uint8_t *rows; /* f32, or i16 codes over them; row_bytes apart */
    int64_t row_bytes;
    float *scales; /* of i16 codes */
    bool by_pair;  /* a row per (token, column), not per token */
} input_form;

typedef struct pass {
    const mf_cpu_kernels *kernels;
    const mf_experts *experts;
    const mf_experts_args *args;
    int64_t first_token, num_tokens, num_columns;

    int32_t *pairs;      /* [kept]: t * C + c of this pass, by slot, ascending inside a slot */
    int32_t *offsets;    /* [P + 1] into pairs */
    int32_t *active;     /* [num_active] slots with pairs */
    int64_t *first_task; /* [num_active + 1] of the step at hand */
    int64_t num_active, num_kept;
    input_form x[MF_QUANT_COUNT];
    const uint8_t *direct; /* f32 x used in place; rows direct_bytes apart */
    int64_t direct_bytes;
    uint8_t *h;       /* [kept][h_stride] f32, or i16 codes over them */
    int64_t h_stride; /* floats */
    float *h_scales;  /* [kept], of i16 codes */
} pass;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static bool e8m0(const pass *p)
{
    return p->experts->act_quant == MF_ACT_QUANT_W8A8_E8M0;
}

static mf_quant quant13(const pass *p, const mf_slot *slot)
{
    return mf_quant_for(p->experts->act_quant, slot->up.format, slot->input_scale13);
}

static mf_quant quant2(const pass *p, const mf_slot *slot)
{
    return mf_quant_for(p->experts->act_quant, slot->down.format, slot->input_scale2);
}

static const uint8_t *element(const mf_tensor *t, int64_t i, int64_t j)
{
    return (const uint8_t *)t->data + (i * t->stride[0] + j * t->stride[1]) * (int64_t)mf_dtype_size(t->dtype);
}

/* ---- workspace ---- */

/* Tokens of one pass.  With an input per pair, passes are shorter so that the inputs need no more room. */
static int64_t pass_tokens(int64_t num_tokens, int64_t num_columns, bool by_pair)
{
    int64_t limit = by_pair ? PASS_TOKENS / num_columns : PASS_TOKENS;
    limit = limit < 1 ? 1 : limit;
    return num_tokens < limit ? num_tokens : limit;
}

/* Views over base for the largest pass; returns the bytes they take. */
static size_t lay_out(pass *p, const mf_experts *experts, int64_t num_tokens, int64_t num_columns, void *base)
{
    const int64_t tokens = pass_tokens(num_tokens, num_columns, false);
    const int64_t pairs = mf_carve_count(tokens, num_columns, 1);
    const int64_t pass_pairs = num_columns > PASS_TOKENS ? num_columns : PASS_TOKENS;
    const int64_t all_pairs = mf_carve_count(num_tokens, num_columns, 1);
    const int64_t most_inputs = all_pairs < pass_pairs ? all_pairs : pass_pairs; /* enough by token and by pair */
    size_t total = 0;
    p->pairs = mf_carve(base, &total, pairs, sizeof *p->pairs);
    p->offsets = mf_carve(base, &total, experts->num_slots + 1, sizeof *p->offsets);
    p->active = mf_carve(base, &total, experts->num_slots, sizeof *p->active);
    p->first_task = mf_carve(base, &total, experts->num_slots + 1, sizeof *p->first_task);
    for (int q = 0; q < MF_QUANT_COUNT; q++) {
        if (experts->quants13 & (1u << q)) {
            input_form *x = &p->x[q];
            x->row_bytes = ceil_div(experts->hidden_size, 16) * 16 * (int64_t)sizeof(float);
            x->rows = mf_carve(base, &total, mf_carve_count(most_inputs, x->row_bytes, 1), 1);
            x->scales = mf_carve(base, &total, most_inputs, sizeof(float));
        }
    }
    p->h_stride = ceil_div(experts->max_intermediate_size, 16) * 16;
    p->h = mf_carve(base, &total, mf_carve_count(pairs, p->h_stride, 1), sizeof(float));
    p->h_scales = mf_carve(base, &total, pairs, sizeof(float));
    return total;
}

size_t mf_cpu_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns)
{
    pass p = { 0 };
    return lay_out(&p, experts, num_tokens, num_columns, NULL);
}

/* ---- sorting ---- */

static int32_t id_of(const pass *p, int64_t t, int64_t c)
{
    int32_t id;
    memcpy(&id, element(&p->args->topk_ids, p->first_token + t, c), 4);
    return id;
}

static uint8_t *y_of(const pass *p, int32_t pair)
{
    return (uint8_t *)element(&p->args->y, p->first_token + pair / p->num_columns, pair % p->num_columns);
}

/* A stable counting sort of the pairs by slot. */
static void sort_pairs(pass *p)
{
    const int64_t num_slots = p->experts->num_slots;
    memset(p->offsets, 0, (size_t)(num_slots + 1) * sizeof *p->offsets);
    for (int64_t t = 0; t < p->num_tokens; t++) {
        for (int64_t c = 0; c < p->num_columns; c++) {
            int32_t id = id_of(p, t, c);
            if (id >= num_slots) {
                /* A caller's mistake that the gate has counted: the column is zero rather than left over. */
                memset(y_of(p, (int32_t)(t * p->num_columns + c)), 0,
                       (size_t)p->experts->hidden_size * mf_dtype_size(p->args->y.dtype));
            } else if (id >= 0) {
                p->offsets[id]++;
            }
        }
    }
    int32_t sum = 0;
    p->num_active = 0;
    for (int64_t s = 0; s < num_slots; s++) {
        int32_t count = p->offsets[s];
        if (count > 0) {
            p->active[p->num_active++] = (int32_t)s;
        }
        p->offsets[s] = sum;
        sum += count;
    }
    p->num_kept = sum;
    for (int64_t t = 0; t < p->num_tokens; t++) {
        for (int64_t c = 0; c < p->num_columns; c++) {
            int32_t id = id_of(p, t, c);
            if (id >= 0 && id < num_slots) {
                p->pairs[p->offsets[id]++] = (int32_t)(t * p->num_columns + c);
            }
        }
    }
    /* Every offset has moved to its slot's end, which is the next slot's beginning. */
    memmove(p->offsets + 1, p->offsets, (size_t)num_slots * sizeof *p->offsets);
    p->offsets[0] = 0;
}

/* Tasks of all active slots in a row; returns their number.  `is_up`: rows of w13, else of w2. */
static int64_t count_tasks(pass *p, bool is_up)
{
    int64_t sum = 0;
    for (int64_t a = 0; a < p->num_active; a++) {
        const mf_slot *slot = &p->experts->slots[p->active[a]];
        p->first_task[a] = sum;
        sum += is_up ? ceil_div(slot->up.n, UP_ROWS) : ceil_div(slot->down.n, DOWN_ROWS);
    }
    p->first_task[p->num_active] = sum;
    return sum;
}

/* The active slot that a task belongs to. */
static int64_t active_of(const pass *p, int64_t task)
{
    int64_t low = 0;
    int64_t high = p->num_active - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (p->first_task[middle] <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* ---- inputs ---- */

/* Which form of x a slot reads, and the row of it that a pair reads. */
static const void *input_row(const pass *p, mf_quant quant, int32_t pair, float *scale)
{
    const input_form *x = &p->x[quant];
    int64_t row = x->by_pair ? pair : pair / p->num_columns;
    *scale = quant == MF_QUANT_INT8_TOKEN ? x->scales[row] : 1.0f;
    if (quant == MF_QUANT_NONE && p->direct) {
        return p->direct + row * p->direct_bytes;
    }
    return x->rows + row * x->row_bytes;
}

typedef struct input_step {
    pass *p;
    mf_quant quant;
} input_step;

static void prepare_input(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const input_step *step = context;
    const pass *p = step->p;
    const input_form *x = &p->x[step->quant];
    const int64_t hidden = p->experts->hidden_size;
    const int64_t t = x->by_pair ? task / p->num_columns : task;
    const int64_t c = x->by_pair ? task % p->num_columns : 0;
    const uint8_t *source = element(&p->args->x, p->first_token + t, 0);
    float *row = (float *)(void *)(x->rows + task * x->row_bytes);
    float static_scale = 0.0f;
    if (x->by_pair) {
        int32_t id = id_of(p, t, c);
        if (id < 0 || id >= p->experts->num_slots || quant13(p, &p->experts->slots[id]) != step->quant) {
            return;
        }
        static_scale = p->experts->slots[id].input_scale13;
    }
    const bool scaled = p->args->input_scale.data != NULL;
    float factor = 1.0f;
    if (scaled) {
        memcpy(&factor, element(&p->args->input_scale, p->first_token + t, c), 4);
    }
    p->kernels->load_row(source, p->experts->act_dtype, hidden, row);
    for (int64_t i = 0; scaled && i < hidden; i++) {
        row[i] = mf_round_to_dtype(row[i] * factor, p->experts->act_dtype);
    }
    if (step->quant != MF_QUANT_NONE) {
        p->kernels->quantise(step->quant, static_scale, e8m0(p), row, hidden, x->scales + task);
    }
}

static void prepare_inputs(mf_device *device, pass *p)
{
    const mf_experts *experts = p->experts;
    const bool scaled = p->args->input_scale.data != NULL;
    const mf_tensor *x = &p->args->x;
    p->direct = NULL;
    if (!scaled && experts->act_dtype == MF_F32 && (uintptr_t)x->data % sizeof(float) == 0) {
        p->direct = element(x, p->first_token, 0);
        p->direct_bytes = x->stride[0] * (int64_t)sizeof(float);
    }
    for (int q = 0; q < MF_QUANT_COUNT; q++) {
        p->x[q].by_pair = scaled || q == MF_QUANT_FP8_STATIC;
        if (!(experts->quants13 & (1u << q)) || (q == MF_QUANT_NONE && p->direct)) {
            continue;
        }
        input_step step = { .p = p, .quant = (mf_quant)q };
        int64_t rows = p->x[q].by_pair ? p->num_tokens * p->num_columns : p->num_tokens;
        mf_cpu_run(device, (double)rows * (double)experts->hidden_size, rows, prepare_input, &step);
    }
}

/* ---- products ---- */

/* One product of rows [first, first + count) of w with the inputs of a tile's pairs, bias added. */
static void multiply(const pass *p, const mf_matrix *w, const float *bias, mf_quant quant, mf_cpu_tile *tile)
{
    const mf_cpu_kernels *kernels = p->kernels;
    tile->w = w;
    (quant == MF_QUANT_INT8_TOKEN ? kernels->tile_int8_codes : kernels->tile[w->format])(tile);
    for (int64_t t = 0; bias && t < tile->num_tokens; t++) {
        for (int64_t r = 0; r < tile->num_rows; r++) {
            tile->out[t * tile->out_stride + r] += bias[tile->first_row + r];
        }
    }
}

static void run_up(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const pass *p = context;
    const int64_t a = active_of(p, task);
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const mf_quant quant = quant13(p, slot);
    const int64_t first_row = (task - p->first_task[a]) * UP_ROWS;
    const int64_t num_rows = slot->up.n - first_row < UP_ROWS ? slot->up.n - first_row : UP_ROWS;
    const int64_t end = p->offsets[p->active[a] + 1];
    for (int64_t i = p->offsets[p->active[a]]; i < end; i += TILE_TOKENS) {
        const void *x[TILE_TOKENS];
        float scales[TILE_TOKENS];
        float gate[TILE_TOKENS * UP_ROWS];
        float up[TILE_TOKENS * UP_ROWS];
        const int64_t n = end - i < TILE_TOKENS ? end - i : TILE_TOKENS;
        for (int64_t j = 0; j < n; j++) {
            x[j] = input_row(p, quant, p->pairs[i + j], &scales[j]);
        }
        mf_cpu_tile tile = { .first_row = first_row,
                             .num_rows = num_rows,
                             .num_tokens = n,
                             .x = x,
                             .x_scale = scales,
                             .out = up,
                             .out_stride = UP_ROWS };
        multiply(p, &slot->up, slot->up_bias, quant, &tile);
        if (slot->gate.data) {
            tile.out = gate;
            multiply(p, &slot->gate, slot->gate_bias, quant, &tile);
        }
        for (int64_t j = 0; j < n; j++) {
            float *h = (float *)(void *)p->h + (i + j) * p->h_stride + first_row;
            p->kernels->activate(slot, p->experts->act_dtype, slot->gate.data ? gate + j * UP_ROWS : up + j * UP_ROWS,
                                 up + j * UP_ROWS, num_rows, h);
        }
    }
}

static void run_requant(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const pass *p = context;
    const int32_t pair = p->pairs[task];
    const mf_slot *slot = &p->experts->slots[id_of(p, pair / p->num_columns, pair % p->num_columns)];
    const mf_quant quant = quant2(p, slot);
    if (quant != MF_QUANT_NONE) {
        float *h = (float *)(void *)p->h + task * p->h_stride;
        p->kernels->quantise(quant, slot->input_scale2, e8m0(p), h, slot->down.k, p->h_scales + task);
    }
}

static void run_down(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const pass *p = context;
    const int64_t a = active_of(p, task);
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const mf_quant quant = quant2(p, slot);
    const mf_dtype dtype = p->args->y.dtype;
    const int64_t first_row = (task - p->first_task[a]) * DOWN_ROWS;
    const int64_t num_rows = slot->down.n - first_row < DOWN_ROWS ? slot->down.n - first_row : DOWN_ROWS;
    const int64_t end = p->offsets[p->active[a] + 1];
    for (int64_t i = p->offsets[p->active[a]]; i < end; i += TILE_TOKENS) {
        const void *h[TILE_TOKENS];
        float scales[TILE_TOKENS];
        float out[TILE_TOKENS * DOWN_ROWS];
        const int64_t n = end - i < TILE_TOKENS ? end - i : TILE_TOKENS;
        for (int64_t j = 0; j < n; j++) {
            h[j] = p->h + (i + j) * p->h_stride * (int64_t)sizeof(float);
            scales[j] = quant == MF_QUANT_INT8_TOKEN ? p->h_scales[i + j] : 1.0f;
        }
        mf_cpu_tile tile = { .first_row = first_row,
                             .num_rows = num_rows,
                             .num_tokens = n,
                             .x = h,
                             .x_scale = scales,
                             .out = out,
                             .out_stride = DOWN_ROWS };
        multiply(p, &slot->down, slot->down_bias, quant, &tile);
        for (int64_t j = 0; j < n; j++) {
            p->kernels->store_row(out + j * DOWN_ROWS, num_rows, dtype,
                                  y_of(p, p->pairs[i + j]) + first_row * (int64_t)mf_dtype_size(dtype));
        }
    }
}

mf_status mf_cpu_experts(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    (void)err;
    const mf_experts *experts = call->experts;
    pass p = {
        .kernels = mf_cpu_kernels_of(device), .experts = experts, .args = call->args, .num_columns = call->num_columns
    };
    lay_out(&p, experts, call->num_tokens, call->num_columns, call->workspace);
    const bool by_pair = call->args->input_scale.data != NULL || (experts->quants13 & (1u << MF_QUANT_FP8_STATIC));
    const int64_t step = pass_tokens(call->num_tokens, call->num_columns, by_pair);
    for (; p.first_token < call->num_tokens; p.first_token += step) {
        p.num_tokens = call->num_tokens - p.first_token < step ? call->num_tokens - p.first_token : step;
        sort_pairs(&p);
        if (p.num_kept == 0) {
            continue;
        }
        const double work = (double)p.num_kept * (double)experts->hidden_size * (double)experts->max_intermediate_size;
        prepare_inputs(device, &p);
        mf_cpu_run(device, 2 * work, count_tasks(&p, true), run_up, &p);
        if (experts->quants2 & ~(1u << MF_QUANT_NONE)) {
            mf_cpu_run(device, (double)p.num_kept * (double)experts->max_intermediate_size * 4, p.num_kept, run_requant,
                       &p);
        }
        mf_cpu_run(device, work, count_tasks(&p, false), run_down, &p);
    }
    return MF_OK;
}
