/* experts.c - the grouped product: pairs (token, column) sorted by slot, rows of each slot's matrices shared out as
 * tasks.
 *
 * Per pass over a bounded number of tokens, four steps, each a loop over independent tasks:
 *   inputs   x into each form that the slots' w13 products take (quantised where W8A8 or W4A8 says so)
 *   up       gate and up rows of an active slot, the activation, into h in the form that w2's product takes
 *   requant  h to codes, for slots whose w2 takes them
 *   down     rows of w2 into y; or, with the combine behind it, one block of output columns for all slots, whose y never
 *            leaves the thread's own block
 * A task is a range of rows, so a few experts still occupy every core.  What one row of y holds depends on its own
 * token and slot alone. */
#include "kernels/activation.h"
#include "kernels/carve.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/inputs.h"

enum {
    PASS_TOKENS = 1024, /* these three bound the workspace; no result depends on them */
    PASS_PAIRS = 16384,
    PASS_INPUT_BYTES = 126 << 20, /* 1,024 tokens of nine columns of 7,168 bf16 */
    UP_ROWS = 64, /* = MF_CPU_COLUMNS: a task's columns of h are packed on their own */
    DOWN_ROWS = 64,  /* of one product */
    DOWN_BYTES = 128 << 10, /* of w2 make a task, where that leaves enough of them: memory is read in long pieces */
    MOST_DOWN_BLOCKS = 8,   /* products of one task */
    LEAST_TASKS = 8,        /* of a thread */
    FEW_PAIRS = 256,        /* whose blocks of y stay in a cache though they are wider */
    MOST_TOKENS = MF_CPU_MOST_TILE_TOKENS,
    MAX_SOURCES = 16 /* (quantisation, form) pairs */
};
_Static_assert((int)UP_ROWS == (int)MF_CPU_COLUMNS, "rows of one task are columns of one pack");
_Static_assert(MF_CPU_PANEL * MOST_DOWN_BLOCKS <= MOST_TOKENS, "sums of one product have room");

/* x in one of the forms that products take. */
typedef struct input_rows {
    mf_quant quant;
    mf_cpu_form form;
    bool by_pair;    /* a row per (token, column); panels: per sorted pair */
    bool is_direct;  /* the caller's x serves as it is */
    uint8_t *rows;
    int64_t row_bytes;
    float *scales;   /* [rows], of codes */
    uint8_t *codes;  /* [tokens][codes_bytes]: int8 panels are made of rows that are quantised once for all pairs */
    float *code_scales; /* [tokens] */
    int64_t codes_bytes;
} input_rows;

typedef struct pass {
    const mf_cpu_kernels *kernels;
    const mf_experts *experts;
    const mf_experts_args *args;
    const mf_sum_reduce_call *sum; /* the combine behind w2, or NULL */
    int64_t first_token, num_tokens, num_columns;
    int64_t num_threads;

    int32_t *pairs;      /* [kept]: t * C + c of this pass, by slot, ascending inside a slot */
    int32_t *offsets;    /* [P + 1] into pairs */
    int32_t *active;     /* [num_active] slots with pairs */
    int64_t *first_task; /* [num_active + 1] of the step at hand */
    int64_t num_active, num_kept;
    input_rows x[MAX_SOURCES];
    int32_t num_sources;
    bool has_quant2;      /* some slot's w2 takes quantised inputs */
    float *thread_rows;   /* [threads][row_floats]: a row while it is quantised */
    int64_t row_floats;
    float *h_values;      /* [pairs][h_floats], for rows that are quantised */
    int64_t h_floats;
    uint8_t *h;           /* [pairs] in the form of each slot's w2 */
    int64_t h_bytes;
    float *h_scales;      /* [pairs], of codes */
    uint8_t *y_blocks;    /* [threads][tokens * C][DOWN_ROWS] of y_dtype, for the combine */
    int64_t y_block_bytes;
    int64_t down_rows;    /* output columns of one task of down and combine */
} pass;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static bool e8m0(const pass *p)
{
    return p->experts->act_quant == MF_ACT_QUANT_W8A8_E8M0;
}

static mf_cpu_source source13(const pass *p, const mf_slot *slot)
{
    const mf_experts *e = p->experts;
    return mf_cpu_source_for(p->kernels, slot->up.format, e->act_dtype,
                             mf_quant_for(e->act_quant, slot->up.format, slot->input_scale13));
}

static mf_cpu_source source2(const pass *p, const mf_slot *slot)
{
    const mf_experts *e = p->experts;
    return mf_cpu_source_for(p->kernels, slot->down.format, e->act_dtype,
                             mf_quant_for(e->act_quant, slot->down.format, slot->input_scale2));
}

static const uint8_t *element(const mf_tensor *t, int64_t i, int64_t j)
{
    return (const uint8_t *)t->data + (i * t->stride[0] + j * t->stride[1]) * (int64_t)mf_dtype_size(t->dtype);
}

/* ---- workspace ---- */

/* The forms of x that the slots ask for, and the largest row of h. */
static void find_sources(pass *p, bool has_input_scale)
{
    const mf_experts *e = p->experts;
    p->num_sources = 0;
    p->has_quant2 = false;
    p->h_bytes = 0;
    for (int64_t s = 0; s < e->num_slots; s++) {
        const mf_slot *slot = &e->slots[s];
        const mf_cpu_source in = source13(p, slot);
        const mf_cpu_source out = source2(p, slot);
        const int64_t bytes = mf_cpu_row_bytes(out.form, slot->down.k);
        p->h_bytes = bytes > p->h_bytes ? bytes : p->h_bytes;
        p->has_quant2 |= out.quant != MF_QUANT_NONE;
        int32_t i = 0;
        while (i < p->num_sources && (p->x[i].quant != in.quant || p->x[i].form != in.form)) {
            i++;
        }
        if (i == p->num_sources && i < MAX_SOURCES) {
            const bool panel = mf_cpu_form_is_panel(in.form);
            p->x[p->num_sources++] = (input_rows){ .quant = in.quant,
                                                   .form = in.form,
                                                   .by_pair = panel || has_input_scale || in.quant == MF_QUANT_FP8_STATIC,
                                                   .row_bytes = mf_cpu_row_bytes(in.form, e->hidden_size) };
        }
    }
}

/* Tokens of one pass, by what they need. */
static int64_t pass_tokens(const pass *p, int64_t num_tokens, int64_t num_columns)
{
    int64_t limit = PASS_TOKENS < PASS_PAIRS / num_columns ? PASS_TOKENS : PASS_PAIRS / num_columns;
    for (int32_t i = 0; i < p->num_sources; i++) {
        const int64_t bytes = p->x[i].row_bytes * (p->x[i].by_pair ? num_columns : 1);
        limit = limit * bytes > PASS_INPUT_BYTES ? PASS_INPUT_BYTES / bytes : limit;
    }
    limit = limit < 1 ? 1 : limit;
    return num_tokens < limit ? num_tokens : limit;
}

/* Views over base for passes of `tokens`; returns the bytes they take. */
static size_t lay_out(pass *p, int64_t tokens, int64_t num_columns, int32_t num_threads, const mf_dtype *y_dtype, void *base)
{
    const mf_experts *e = p->experts;
    const int64_t pairs = mf_carve_count(tokens, num_columns, 1);
    size_t total = 0;
    p->pairs = mf_carve(base, &total, pairs, sizeof *p->pairs);
    p->offsets = mf_carve(base, &total, e->num_slots + 1, sizeof *p->offsets);
    p->active = mf_carve(base, &total, e->num_slots, sizeof *p->active);
    p->first_task = mf_carve(base, &total, e->num_slots + 1, sizeof *p->first_task);
    for (int32_t i = 0; i < p->num_sources; i++) {
        input_rows *x = &p->x[i];
        const int64_t rows = x->by_pair ? pairs : tokens;
        x->rows = mf_carve(base, &total, mf_carve_count(rows, x->row_bytes, 1), 1);
        x->scales = mf_carve(base, &total, rows, sizeof(float));
        x->codes_bytes = x->form == MF_CPU_FORM_I8_PANEL ? mf_cpu_row_bytes(MF_CPU_FORM_I8, e->hidden_size) : 0;
        x->codes = mf_carve(base, &total, mf_carve_count(tokens, x->codes_bytes, 1), 1);
        x->code_scales = mf_carve(base, &total, x->codes_bytes ? tokens : 0, sizeof(float));
    }
    p->row_floats = mf_cpu_round_columns(e->hidden_size);
    p->thread_rows = mf_carve(base, &total, mf_carve_count(num_threads, p->row_floats, 1), sizeof(float));
    p->h_floats = p->has_quant2 ? mf_cpu_round_columns(e->max_intermediate_size) : 0;
    p->h_values = mf_carve(base, &total, mf_carve_count(pairs, p->h_floats, 1), sizeof(float));
    p->h = mf_carve(base, &total, mf_carve_count(pairs, p->h_bytes, 1), 1);
    p->h_scales = mf_carve(base, &total, pairs, sizeof(float));
    if (y_dtype) {
        const int64_t few = pairs < FEW_PAIRS ? pairs : FEW_PAIRS; /* grows with the tokens */
        const int64_t wide = few * MOST_DOWN_BLOCKS;
        p->y_block_bytes = (wide > pairs ? wide : pairs) * DOWN_ROWS * (int64_t)mf_dtype_size(*y_dtype);
        p->y_blocks = mf_carve(base, &total, mf_carve_count(num_threads, p->y_block_bytes, 1), 1);
    }
    return total;
}

static size_t workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns, const mf_dtype *y_dtype)
{
    pass p = { .kernels = mf_cpu_kernels_of(experts->device), .experts = experts };
    find_sources(&p, true); /* the more demanding case: a row per pair */
    const size_t scaled =
        lay_out(&p, pass_tokens(&p, num_tokens, num_columns), num_columns, mf_pool_num_threads(experts->device->pool), y_dtype, NULL);
    find_sources(&p, false);
    const size_t plain =
        lay_out(&p, pass_tokens(&p, num_tokens, num_columns), num_columns, mf_pool_num_threads(experts->device->pool), y_dtype, NULL);
    return plain > scaled ? plain : scaled;
}

size_t mf_cpu_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns)
{
    return workspace_bytes(experts, num_tokens, num_columns, NULL);
}

size_t mf_cpu_experts_combine_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns,
                                              mf_dtype y_dtype)
{
    return workspace_bytes(experts, num_tokens, num_columns, &y_dtype);
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
            if (id >= 0 && id < num_slots) {
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

typedef int64_t (*count_fn)(const pass *p, int64_t slot);

static int64_t count_up(const pass *p, int64_t slot)
{
    return ceil_div(p->experts->slots[slot].up.n, UP_ROWS);
}

/* Products of DOWN_ROWS rows of w2 that one task is, of `all`. */
static int64_t down_blocks(const pass *p, int64_t slot, int64_t all, int64_t least_tasks)
{
    const mf_matrix *w = &p->experts->slots[slot].down;
    int64_t blocks = 1;
    while (blocks < MOST_DOWN_BLOCKS && blocks * DOWN_ROWS * w->k * mf_format_bits(w->format) / 8 < DOWN_BYTES &&
           all >= 2 * blocks * least_tasks * p->num_threads) {
        blocks *= 2;
    }
    return blocks;
}

/* Rows of w2 of one task. */
static int64_t down_task_rows(const pass *p, int64_t slot)
{
    const int64_t all = p->num_active * ceil_div(p->experts->hidden_size, DOWN_ROWS);
    return DOWN_ROWS * down_blocks(p, slot, all, LEAST_TASKS);
}

static int64_t count_down(const pass *p, int64_t slot)
{
    return ceil_div(p->experts->slots[slot].down.n, down_task_rows(p, slot));
}

static int64_t count_panels(const pass *p, int64_t slot)
{
    return ceil_div(p->offsets[slot + 1] - p->offsets[slot], MF_CPU_PANEL);
}

/* Tasks of all active slots in a row; returns their number. */
static int64_t count_tasks(pass *p, count_fn count)
{
    int64_t sum = 0;
    for (int64_t a = 0; a < p->num_active; a++) {
        p->first_task[a] = sum;
        sum += count(p, p->active[a]);
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

typedef struct input_step {
    pass *p;
    input_rows *x;
} input_step;

/* x of one pair (or token, c = 0) packed as row i of `count`. */
static void prepare_row(const pass *p, const input_rows *x, int32_t thread, int64_t t, int64_t c, float static_scale,
                        uint8_t *rows, int64_t i, int64_t count, float *scale)
{
    const mf_experts *e = p->experts;
    const int64_t hidden = e->hidden_size;
    float *row = p->thread_rows + thread * p->row_floats;
    p->kernels->load_row(element(&p->args->x, p->first_token + t, 0), e->act_dtype, hidden, row);
    if (p->args->input_scale.data) {
        float factor;
        memcpy(&factor, element(&p->args->input_scale, p->first_token + t, c), 4);
        for (int64_t k = 0; k < hidden; k++) {
            row[k] = mf_round_to_dtype(row[k] * factor, e->act_dtype);
        }
    }
    if (x->quant != MF_QUANT_NONE) {
        p->kernels->quantise(x->quant, static_scale, e8m0(p), row, hidden, scale);
    }
    const mf_cpu_pack pack = mf_cpu_pack_at(x->form, hidden, rows, x->row_bytes, i, count);
    p->kernels->pack(&pack, row, 0, hidden);
}

static void prepare_token(void *context, int64_t task, int32_t thread)
{
    const input_step *step = context;
    prepare_row(step->p, step->x, thread, task, 0, 0.0f, step->x->rows, task, 1, step->x->scales + task);
}

static void prepare_pair(void *context, int64_t task, int32_t thread)
{
    const input_step *step = context;
    const pass *p = step->p;
    const int32_t pair = p->pairs[task];
    const mf_slot *slot = &p->experts->slots[id_of(p, pair / p->num_columns, pair % p->num_columns)];
    const mf_cpu_source source = source13(p, slot);
    if (source.quant == step->x->quant && source.form == step->x->form) {
        prepare_row(p, step->x, thread, pair / p->num_columns, pair % p->num_columns, slot->input_scale13, step->x->rows,
                    task, 1, step->x->scales + task);
    }
}

/* Whether a panel of `count` rows of bf16 that follow one another can be turned at once. */
static bool can_turn(const pass *p, const mf_cpu_source *to, int64_t count)
{
    return p->kernels->turn_panel && to->form == MF_CPU_FORM_BF16_PANEL && to->quant == MF_QUANT_NONE &&
           p->experts->act_dtype == MF_BF16 && count >= MF_CPU_PANEL;
}

/* Rows of bf16 as the caller has them, to a panel. */
static void interleave_panel(const pass *p, const int32_t *pairs, int64_t n, uint8_t *panel)
{
    const int64_t hidden = p->experts->hidden_size, words = hidden / 2;
    for (int64_t t = 0; t < n; t++) {
        const uint8_t *row = element(&p->args->x, p->first_token + pairs[t] / p->num_columns, 0);
        if (n == 1) {
            memcpy(panel, row, (size_t)words * 4);
        }
        for (int64_t i = 0; n > 1 && i < words; i++) {
            memcpy(panel + 4 * (i * n + t), row + 4 * i, 4);
        }
    }
    memset(panel + 4 * words * n, 0, (size_t)((mf_cpu_round_columns(hidden) - hidden) * n) * 2);
}

/* One panel of a slot's pairs. */
static void prepare_panel(void *context, int64_t task, int32_t thread)
{
    const input_step *step = context;
    const pass *p = step->p;
    const int64_t a = active_of(p, task);
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const mf_cpu_source source = source13(p, slot);
    if (source.quant != step->x->quant || source.form != step->x->form) {
        return;
    }
    const int64_t first = p->offsets[p->active[a]];
    const int64_t count = p->offsets[p->active[a] + 1] - first;
    uint8_t *rows = step->x->rows + first * step->x->row_bytes;
    const int64_t begin = (task - p->first_task[a]) * MF_CPU_PANEL;
    if (can_turn(p, &source, count - begin) && !p->args->input_scale.data) {
        const uint16_t *x[MF_CPU_PANEL];
        for (int64_t i = 0; i < MF_CPU_PANEL; i++) {
            const int32_t pair = p->pairs[first + begin + i];
            x[i] = (const uint16_t *)(const void *)element(&p->args->x, p->first_token + pair / p->num_columns, 0);
        }
        p->kernels->turn_panel(x, p->experts->hidden_size, rows + begin * step->x->row_bytes);
        return;
    }
    if (source.form == MF_CPU_FORM_BF16_PANEL && source.quant == MF_QUANT_NONE && p->experts->act_dtype == MF_BF16 &&
        p->experts->hidden_size % 2 == 0 && !p->args->input_scale.data) {
        const int64_t n = count - begin < MF_CPU_PANEL ? count - begin : MF_CPU_PANEL;
        interleave_panel(p, p->pairs + first + begin, n, rows + begin * step->x->row_bytes);
        return;
    }
    for (int64_t i = begin; i < begin + MF_CPU_PANEL && i < count; i++) {
        const int32_t pair = p->pairs[first + i];
        prepare_row(p, step->x, thread, pair / p->num_columns, pair % p->num_columns, slot->input_scale13, rows, i, count,
                    step->x->scales + first + i);
    }
}

/* Whether the caller's f32 rows are what a product reads. */
static bool can_read_directly(const pass *p, const input_rows *x)
{
    const mf_tensor *t = &p->args->x;
    return x->form == MF_CPU_FORM_F32 && x->quant == MF_QUANT_NONE && !x->by_pair && t->dtype == MF_F32 &&
           p->experts->hidden_size % MF_CPU_COLUMNS == 0 && (uintptr_t)t->data % 64 == 0 && t->stride[0] % 16 == 0;
}

/* The row that int8 panels of all the token's pairs are made of. */
static void prepare_codes(void *context, int64_t task, int32_t thread)
{
    const input_step *step = context;
    const input_rows row = { .quant = step->x->quant, .form = MF_CPU_FORM_I8, .row_bytes = step->x->codes_bytes };
    prepare_row(step->p, &row, thread, task, 0, 0.0f, step->x->codes, task, 1, step->x->code_scales + task);
}

/* [words][count] of four bytes from `count` rows of them. */
static void turn_words(const uint8_t *const *rows, int64_t words, int64_t count, uint8_t *panel)
{
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < words; j++) {
            memcpy(panel + (j * count + i) * 4, rows[i] + j * 4, 4);
        }
    }
}

/* One panel of a slot's pairs, of rows of codes and their sums. */
static void prepare_panel_of_codes(void *context, int64_t task, int32_t thread)
{
    const input_step *step = context;
    const pass *p = step->p;
    const input_rows *x = step->x;
    (void)thread;
    const int64_t a = active_of(p, task);
    const mf_cpu_source source = source13(p, &p->experts->slots[p->active[a]]);
    if (source.quant != x->quant || source.form != x->form) {
        return;
    }
    const int64_t begin = p->offsets[p->active[a]] + (task - p->first_task[a]) * MF_CPU_PANEL;
    const int64_t left = p->offsets[p->active[a] + 1] - begin, count = left < MF_CPU_PANEL ? left : MF_CPU_PANEL;
    const int64_t columns = mf_cpu_round_columns(p->experts->hidden_size);
    const uint8_t *codes[MF_CPU_PANEL], *sums[MF_CPU_PANEL];
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = p->pairs[begin + i] / p->num_columns;
        codes[i] = x->codes + t * x->codes_bytes;
        sums[i] = codes[i] + columns;
        x->scales[begin + i] = x->code_scales[t];
    }
    uint8_t *panel = x->rows + begin * x->row_bytes;
    if (p->kernels->turn_panel && count == MF_CPU_PANEL && columns % (2 * MF_CPU_COLUMNS) == 0) {
        /* pairs of bf16 are words of four bytes, too */
        p->kernels->turn_panel((const uint16_t *const *)(const void *)codes, columns / 2, panel);
    } else {
        turn_words(codes, columns / 4, count, panel);
    }
    turn_words(sums, columns / 32, count, panel + columns * count);
}

static void prepare_inputs(mf_device *device, pass *p)
{
    const double hidden = (double)p->experts->hidden_size;
    for (int32_t i = 0; i < p->num_sources; i++) {
        input_step step = { .p = p, .x = &p->x[i] };
        step.x->is_direct = can_read_directly(p, step.x);
        if (step.x->is_direct) {
            continue;
        }
        if (step.x->codes_bytes && step.x->quant == MF_QUANT_INT8_TOKEN && !p->args->input_scale.data) {
            mf_cpu_run(device, (double)p->num_tokens * hidden, p->num_tokens, prepare_codes, &step);
            mf_cpu_run(device, (double)p->num_kept * hidden, count_tasks(p, count_panels), prepare_panel_of_codes, &step);
        } else if (mf_cpu_form_is_panel(step.x->form)) {
            mf_cpu_run(device, (double)p->num_kept * hidden, count_tasks(p, count_panels), prepare_panel, &step);
        } else if (step.x->by_pair) {
            mf_cpu_run(device, (double)p->num_kept * hidden, p->num_kept, prepare_pair, &step);
        } else {
            mf_cpu_run(device, (double)p->num_tokens * hidden, p->num_tokens, prepare_token, &step);
        }
    }
}

/* Inputs of n sorted pairs from `begin`, all of one slot whose pairs start at `first`. */
static void point_to_inputs(const pass *p, const mf_cpu_source *source, int64_t first, int64_t begin, int64_t n,
                            const void **x, float *scales)
{
    const input_rows *in = p->x;
    while (in->quant != source->quant || in->form != source->form) {
        in++;
    }
    if (in->by_pair) {
        mf_cpu_point(in->form, in->rows + first * in->row_bytes, in->row_bytes, begin - first, n, x);
        memcpy(scales, in->scales + begin, (size_t)n * sizeof *scales);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        const int64_t t = p->pairs[begin + j] / p->num_columns;
        x[j] = in->is_direct ? element(&p->args->x, p->first_token + t, 0) : in->rows + t * in->row_bytes;
        scales[j] = in->scales[t];
    }
}

/* ---- products ---- */

/* One product of a tile's rows and inputs, bias added. */
static void multiply(mf_cpu_tile_fn fn, const mf_matrix *w, const float *bias, mf_cpu_tile *tile)
{
    tile->w = w;
    fn(tile);
    for (int64_t t = 0; bias && t < tile->num_tokens; t++) {
        for (int64_t r = 0; r < tile->num_rows; r++) {
            tile->out[t * tile->out_stride + r] += bias[tile->first_row + r];
        }
    }
}

/* The tile is followed by rows of w from `row` on, or nobody knows by what. */
static void set_next(mf_cpu_tile *tile, const mf_matrix *w, int64_t row)
{
    tile->next = w && row < w->n ? w : NULL;
    tile->next_row = row;
}

/* By the rows of `up` that the thread of these rows takes next when all threads are equally fast. */
static void set_next_up(const pass *p, int64_t a, int64_t first_row, mf_cpu_tile *tile)
{
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const int64_t row = first_row + p->num_threads * UP_ROWS;
    if (row < slot->up.n) {
        set_next(tile, &slot->up, row);
    } else {
        const bool is_last = a + 1 == p->num_active;
        set_next(tile, is_last ? NULL : &p->experts->slots[p->active[a + 1]].up, 0);
    }
}

/* Columns [first, first + n) of h of a panel's tokens. */
static void turn_stored(const pass *p, uint16_t stored[MF_CPU_PANEL][UP_ROWS], int64_t n, int64_t first, uint8_t *panel)
{
    const uint16_t *rows[MF_CPU_PANEL];
    for (int i = 0; i < MF_CPU_PANEL; i++) {
        rows[i] = stored[i];
    }
    p->kernels->turn_panel(rows, n, panel + first * MF_CPU_PANEL * (int64_t)sizeof(uint16_t));
}

static void run_up(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const pass *p = context;
    const int64_t a = active_of(p, task);
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const mf_cpu_source in = source13(p, slot);
    const mf_cpu_source next = source2(p, slot);
    const int64_t first_row = (task - p->first_task[a]) * UP_ROWS;
    const int64_t num_rows = slot->up.n - first_row < UP_ROWS ? slot->up.n - first_row : UP_ROWS;
    const int64_t begin = p->offsets[p->active[a]];
    const int64_t end = p->offsets[p->active[a] + 1];
    uint8_t *h_rows = p->h + begin * p->h_bytes;
    for (int64_t i = begin, n; i < end; i += n) {
        const void *x[MOST_TOKENS];
        float scales[MOST_TOKENS];
        _Alignas(64) float gate[MOST_TOKENS * UP_ROWS];
        _Alignas(64) float up[MOST_TOKENS * UP_ROWS];
        n = mf_cpu_tile_share(p->kernels, end - i);
        point_to_inputs(p, &in, begin, i, n, x, scales);
        mf_cpu_tile tile = { .first_row = first_row,
                             .num_rows = num_rows,
                             .num_tokens = n,
                             .x = x,
                             .x_scale = scales,
                             .out = up,
                             .out_stride = UP_ROWS };
        const bool is_last = i + n == end;
        set_next(&tile, is_last && slot->gate.data ? &slot->gate : NULL, first_row);
        multiply(in.fn, &slot->up, slot->up_bias, &tile);
        if (slot->gate.data) {
            tile.out = gate;
            set_next(&tile, NULL, 0);
            if (is_last) {
                set_next_up(p, a, first_row, &tile);
            }
            multiply(in.fn, &slot->gate, slot->gate_bias, &tile);
        }
        uint16_t stored[MF_CPU_PANEL][UP_ROWS]; /* of the panel at hand */
        for (int64_t j = 0; j < n; j++) {
            float *u = up + j * UP_ROWS;
            p->kernels->activate(slot, p->experts->act_dtype, slot->gate.data ? gate + j * UP_ROWS : u, u, num_rows, u);
            if (next.quant != MF_QUANT_NONE) {
                memcpy(p->h_values + (i + j) * p->h_floats + first_row, u, (size_t)num_rows * sizeof *u);
                continue;
            }
            if (can_turn(p, &next, end - i - j / MF_CPU_PANEL * MF_CPU_PANEL)) { /* tiles of tokens are whole panels */
                p->kernels->store_row(u, num_rows, MF_BF16, stored[j % MF_CPU_PANEL]);
                if (j % MF_CPU_PANEL == MF_CPU_PANEL - 1) {
                    turn_stored(p, stored, num_rows, first_row, h_rows + (i + j + 1 - MF_CPU_PANEL - begin) * p->h_bytes);
                }
                continue;
            }
            const mf_cpu_pack pack = mf_cpu_pack_at(next.form, slot->down.k, h_rows, p->h_bytes, i + j - begin, end - begin);
            p->kernels->pack(&pack, u, first_row, num_rows);
        }
    }
}

/* Quantises one row of h, or one panel's rows. */
static void run_requant(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    const pass *p = context;
    const int64_t a = active_of(p, task);
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const mf_cpu_source source = source2(p, slot);
    if (source.quant == MF_QUANT_NONE) {
        return;
    }
    const int64_t first = p->offsets[p->active[a]];
    const int64_t count = p->offsets[p->active[a] + 1] - first;
    const int64_t begin = (task - p->first_task[a]) * MF_CPU_PANEL;
    for (int64_t i = begin; i < begin + MF_CPU_PANEL && i < count; i++) {
        float *values = p->h_values + (first + i) * p->h_floats;
        p->kernels->quantise(source.quant, slot->input_scale2, e8m0(p), values, slot->down.k, p->h_scales + first + i);
        const mf_cpu_pack pack =
            mf_cpu_pack_at(source.form, slot->down.k, p->h + first * p->h_bytes, p->h_bytes, i, count);
        p->kernels->pack(&pack, values, 0, slot->down.k);
    }
}

typedef void (*store_fn)(const pass *p, int32_t thread, int32_t pair, int64_t first_row, int64_t num_rows, const float *y);

/* Rows of one product: for a panel of tokens or less as many as there is room for, since each product begins and ends
 * with steps that wait. */
static int64_t down_step(const pass *p, int64_t a)
{
    const int64_t pairs = p->offsets[p->active[a] + 1] - p->offsets[p->active[a]];
    return pairs <= MF_CPU_PANEL ? DOWN_ROWS * MOST_DOWN_BLOCKS : DOWN_ROWS;
}

/* At most down_step() rows of w2 of active slot a from first_row on times its pairs; each pair's sums go to store(). */
static void multiply_down_block(const pass *p, int32_t thread, int64_t a, int64_t first_row, int64_t num_rows,
                                const mf_matrix *next, int64_t next_row, store_fn store)
{
    const mf_slot *slot = &p->experts->slots[p->active[a]];
    const mf_cpu_source source = source2(p, slot);
    const int64_t begin = p->offsets[p->active[a]];
    const int64_t end = p->offsets[p->active[a] + 1];
    const int64_t stride = down_step(p, a);
    for (int64_t i = begin, n; i < end; i += n) {
        const void *h[MOST_TOKENS];
        _Alignas(64) float out[MOST_TOKENS * DOWN_ROWS];
        n = mf_cpu_tile_share(p->kernels, end - i);
        mf_cpu_point(source.form, p->h + begin * p->h_bytes, p->h_bytes, i - begin, n, h);
        mf_cpu_tile tile = { .first_row = first_row,
                             .num_rows = num_rows,
                             .num_tokens = n,
                             .x = h,
                             .x_scale = p->h_scales + i,
                             .out = out,
                             .out_stride = stride };
        set_next(&tile, i + n == end ? next : NULL, next_row);
        multiply(source.fn, &slot->down, slot->down_bias, &tile);
        for (int64_t j = 0; j < n; j++) {
            store(p, thread, p->pairs[i + j], first_row, num_rows, out + j * stride);
        }
    }
}

/* Any number of them; next: what comes after the last. */
static void multiply_down(const pass *p, int32_t thread, int64_t a, int64_t first, int64_t num_rows,
                          const mf_matrix *next, int64_t next_row, store_fn store)
{
    const mf_matrix *w = &p->experts->slots[p->active[a]].down;
    const int64_t step = down_step(p, a);
    int64_t row = first;
    for (; first + num_rows - row > step; row += step) {
        multiply_down_block(p, thread, a, row, step, w, row + step, store);
    }
    multiply_down_block(p, thread, a, row, first + num_rows - row, next, next_row, store);
}

static void store_y(const pass *p, int32_t thread, int32_t pair, int64_t first_row, int64_t num_rows, const float *y)
{
    (void)thread;
    const mf_dtype dtype = p->args->y.dtype;
    p->kernels->store_row(y, num_rows, dtype, y_of(p, pair) + first_row * (int64_t)mf_dtype_size(dtype));
}

static void run_down(void *context, int64_t task, int32_t thread)
{
    const pass *p = context;
    const int64_t a = active_of(p, task);
    const int64_t task_rows = down_task_rows(p, p->active[a]);
    const int64_t first = (task - p->first_task[a]) * task_rows;
    const int64_t left = p->experts->hidden_size - first;
    multiply_down(p, thread, a, first, left < task_rows ? left : task_rows, &p->experts->slots[p->active[a]].down,
                  first + p->num_threads * task_rows, store_y);
}

static void store_block(const pass *p, int32_t thread, int32_t pair, int64_t first_row, int64_t num_rows, const float *y)
{
    const mf_dtype dtype = p->sum->args->x.dtype;
    uint8_t *block = p->y_blocks + thread * p->y_block_bytes;
    const int64_t at = pair * p->down_rows + first_row % p->down_rows;
    p->kernels->store_row(y, num_rows, dtype, block + at * (int64_t)mf_dtype_size(dtype));
}

/* One block of output columns: w2 of every active slot into the thread's block of y, then the combine over it. */
static void run_down_combine(void *context, int64_t task, int32_t thread)
{
    const pass *p = context;
    const int64_t hidden = p->experts->hidden_size;
    const int64_t first = task * p->down_rows;
    const int64_t rows = hidden - first < p->down_rows ? hidden - first : p->down_rows;
    for (int64_t a = 0; a < p->num_active; a++) {
        const bool is_last = a + 1 == p->num_active;
        const mf_matrix *next = &p->experts->slots[p->active[is_last ? 0 : a + 1]].down;
        multiply_down(p, thread, a, first, rows, next, is_last ? first + p->num_threads * p->down_rows : first,
                      store_block);
    }
    /* The combine finds column h of pair (t, c) at its stride from a base that lies `first` columns, and the passes
     * before this one, below the block. */
    const int64_t size = (int64_t)mf_dtype_size(p->sum->args->x.dtype);
    mf_sum_reduce_args args = *p->sum->args;
    mf_sum_reduce_call call = *p->sum;
    call.args = &args;
    args.x.stride[0] = p->num_columns * p->down_rows;
    args.x.stride[1] = p->down_rows;
    args.x.data = (void *)((uintptr_t)(p->y_blocks + thread * p->y_block_bytes) -
                           (uintptr_t)((p->first_token * args.x.stride[0] + first) * size));
    for (int64_t t = p->first_token; t < p->first_token + p->num_tokens; t++) {
        mf_cpu_sum_part(p->kernels, &call, t, first, rows);
    }
}

static void zero_columns_past_slots(const pass *p, int32_t thread_count)
{
    /* A caller's mistake that the gate has counted: such a column is zero rather than left over. */
    for (int64_t t = 0; t < p->num_tokens; t++) {
        for (int64_t c = 0; c < p->num_columns; c++) {
            if (id_of(p, t, c) < p->experts->num_slots) {
                continue;
            }
            const int64_t pair = t * p->num_columns + c;
            if (!p->sum) {
                memset(y_of(p, (int32_t)pair), 0, (size_t)p->experts->hidden_size * mf_dtype_size(p->args->y.dtype));
                continue;
            }
            const int64_t bytes = p->down_rows * (int64_t)mf_dtype_size(p->sum->args->x.dtype);
            for (int32_t i = 0; i < thread_count; i++) {
                memset(p->y_blocks + i * p->y_block_bytes + pair * bytes, 0, (size_t)bytes);
            }
        }
    }
}

/* Output columns of one task of down and combine: enough tasks for every thread. */
static int64_t choose_down_rows(const pass *p, int64_t pairs)
{
    enum { TASKS = 4 }; /* of a thread */
    const int64_t hidden = p->experts->hidden_size;
    int64_t rows = DOWN_ROWS;
    if (pairs <= FEW_PAIRS && p->experts->num_slots > 0) {
        rows *= down_blocks(p, 0, ceil_div(hidden, DOWN_ROWS), TASKS);
    }
    while (rows > 16 && ceil_div(hidden, rows) < TASKS * p->num_threads) {
        rows /= 2;
    }
    return rows;
}

static void run_pass(mf_device *device, pass *p)
{
    const mf_experts *e = p->experts;
    sort_pairs(p);
    zero_columns_past_slots(p, mf_pool_num_threads(device->pool));
    const double work = (double)p->num_kept * (double)e->hidden_size * (double)e->max_intermediate_size;
    if (p->num_kept > 0) {
        prepare_inputs(device, p);
        mf_cpu_run(device, 2 * work, count_tasks(p, count_up), run_up, p);
        if (p->has_quant2) {
            mf_cpu_run(device, (double)p->num_kept * (double)e->max_intermediate_size * 4, count_tasks(p, count_panels),
                       run_requant, p);
        }
    }
    if (p->sum) { /* tokens without an expert still have an output */
        const double terms = (double)p->num_tokens * (double)e->hidden_size * (double)p->num_columns;
        mf_cpu_run(device, work + terms, ceil_div(e->hidden_size, p->down_rows), run_down_combine, p);
    } else if (p->num_kept > 0) {
        mf_cpu_run(device, work, count_tasks(p, count_down), run_down, p);
    }
}

static mf_status run(mf_device *device, const mf_experts_call *call, const mf_sum_reduce_call *sum)
{
    pass p = { .kernels = mf_cpu_kernels_of(device),
               .experts = call->experts,
               .args = call->args,
               .sum = sum,
               .num_columns = call->num_columns };
    const int32_t num_threads = mf_pool_num_threads(device->pool);
    find_sources(&p, call->args->input_scale.data != NULL);
    const int64_t most = pass_tokens(&p, call->num_tokens, call->num_columns);
    /* as equal as possible: each pass reads the weights anew */
    const int64_t step = most > 0 ? ceil_div(call->num_tokens, ceil_div(call->num_tokens, most)) : 0;
    lay_out(&p, step, call->num_columns, num_threads, sum ? &sum->args->x.dtype : NULL, call->workspace);
    p.num_threads = num_threads;
    p.down_rows = choose_down_rows(&p, step * call->num_columns);
    for (; p.first_token < call->num_tokens; p.first_token += step) {
        p.num_tokens = call->num_tokens - p.first_token < step ? call->num_tokens - p.first_token : step;
        run_pass(device, &p);
    }
    return MF_OK;
}

mf_status mf_cpu_experts(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    (void)err;
    return run(device, call, NULL);
}

mf_status mf_cpu_experts_combine(mf_device *device, const mf_experts_call *call, const mf_sum_reduce_call *sum, mf_error *err)
{
    (void)err;
    return run(device, call, sum);
}
