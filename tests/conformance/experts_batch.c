/* experts_batch.c - batches for mf_fused_experts: see experts_batch.h. */
#include "experts_batch.h"

#include <stdlib.h>

void make_batch(batch *b, uint64_t *seed, int64_t num_tokens, int64_t num_columns, int64_t hidden, mf_dtype act_dtype,
                mf_dtype y_dtype, int64_t num_slots)
{
    *b = (batch){ num_tokens, num_columns, hidden, act_dtype, y_dtype, 0, 0, 0 };
    b->x = conf_alloc((size_t)(num_tokens * hidden) * mf_dtype_size(act_dtype));
    b->y = conf_alloc((size_t)(num_tokens * num_columns * hidden) * mf_dtype_size(y_dtype));
    b->ids = conf_alloc((size_t)(num_tokens * num_columns) * sizeof(int32_t));
    for (int64_t i = 0; i < num_tokens * hidden; i++) {
        conf_put(b->x, act_dtype, i, conf_normal(seed));
    }
    for (int64_t i = 0; i < num_tokens * num_columns; i++) {
        b->ids[i] = (int32_t)conf_below(seed, num_slots);
    }
}

void free_batch(batch *b)
{
    conf_free(b->x);
    conf_free(b->y);
    conf_free(b->ids);
}

void run_batch(mf_device *device, const mf_experts *experts, batch *b)
{
    case_run(device, experts, b->x, b->act_dtype, b->ids, NULL, b->num_tokens, b->num_columns, b->hidden, b->y_dtype,
             b->y);
}

static double *x_row(const batch *b, int64_t t, double *row)
{
    for (int64_t i = 0; i < b->hidden; i++) {
        row[i] = conf_get(b->x, b->act_dtype, t * b->hidden + i);
    }
    return row;
}

double *expect(const case_table *table, const batch *b, mf_act_quant act_quant)
{
    double *y = calloc((size_t)(b->num_tokens * b->num_columns * b->hidden), sizeof *y);
    double *row = malloc((size_t)b->hidden * sizeof *row);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        x_row(b, t, row);
        for (int64_t c = 0; c < b->num_columns; c++) {
            int32_t id = b->ids[t * b->num_columns + c];
            if (id >= 0 && id < table->num_slots) {
                case_oracle(&table->slots[id], row, b->hidden, b->act_dtype, act_quant,
                            y + (t * b->num_columns + c) * b->hidden);
            }
        }
    }
    free(row);
    return y;
}

void check_nmse(const batch *b, const double *expected, double bound, const char *device, const char *what)
{
    case_error e = { 0 };
    int64_t n = b->num_tokens * b->num_columns * b->hidden;
    for (int64_t i = 0; i < n; i++) {
        if (b->ids[i / b->hidden] >= 0) {
            case_error_add(&e, conf_get(b->y, b->y_dtype, i), expected[i]);
        }
    }
    if (!(case_nmse(&e) <= bound)) {
        fail_msg("%s, %s: NMSE %g; bound %g", device, what, case_nmse(&e), bound);
    }
}

const char *label(const char *fmt, ...)
{
    static char text[200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return text;
}

case_slot_spec silu(mf_format format, int variant, int64_t width)
{
    return (case_slot_spec){ .format = format, .variant = variant, .width = width, .activation = MF_ACT_SILU };
}
