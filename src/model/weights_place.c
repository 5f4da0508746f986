/* weights_place.c - weights move to a device with memory of its own: every matrix and vector of the tensor map into one
 * block there, rows without gaps, on whole cache lines.  What lay in the host's memory is let go of. */
#include "base/sys.h"
#include "kernels/format.h"
#include "model/staging.h"
#include "model/weights_impl.h"

enum { ALIGNMENT = 256 };

typedef struct placer {
    mf_weights *weights;
    mf_device *device;
    mf_staging staging;
    uint8_t *block; /* NULL: counting */
    size_t bytes, total;
    mf_error *err;
} placer;

static uint8_t *take(placer *p, size_t bytes)
{
    uint8_t *place = p->block ? p->block + p->bytes : NULL;
    p->bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return place;
}

/* num_rows rows of row_bytes, `stride` bytes apart; gives where they are now. */
static mf_status move_rows(placer *p, const void *from, size_t stride, size_t row_bytes, size_t num_rows,
                           const void **to)
{
    uint8_t *place = take(p, row_bytes * num_rows);
    if (!place) {
        return MF_OK;
    }
    *to = place;
    return mf_staging_add(&p->staging, (size_t)(place - p->block), from, stride, row_bytes, num_rows, p->err);
}

static mf_status move_matrix(placer *p, mf_matrix *m)
{
    const size_t bits = (size_t)mf_format_bits(m->format);
    const int64_t group = mf_matrix_group(m), whole = mf_format_is_4bit(m->format) ? (m->k + 1) / 2 * 2 : m->k;
    mf_matrix to = *m;
    MF_TRY(move_rows(p, m->data, (size_t)m->row_stride * bits / 8, (size_t)whole * bits / 8, (size_t)m->n, &to.data));
    to.row_stride = whole;
    if (m->format >= MF_FORMAT_FP8_BLOCK) {
        const size_t size = mf_dtype_size(m->scale_dtype);
        const bool is_single = m->scale_row_stride == 0;
        const int64_t columns = group ? mf_div_up(m->k, group) : 1;
        const int64_t rows = is_single                          ? 1
                             : m->format == MF_FORMAT_FP8_BLOCK ? mf_div_up(m->n, MF_FP8_BLOCK_SIZE)
                                                                : m->n;
        const size_t stride = (size_t)m->scale_row_stride;
        MF_TRY(move_rows(p, m->scale, stride * size, (size_t)columns * size, (size_t)rows, &to.scale));
        if (m->zero) {
            const void *zero = NULL;
            MF_TRY(move_rows(p, m->zero, stride, (size_t)columns, (size_t)rows, &zero));
            to.zero = zero;
        }
        to.scale_row_stride = is_single ? 0 : columns;
    }
    if (p->block) {
        *m = to;
    }
    return MF_OK;
}

static mf_status place(void *context, const mf_wanted *x)
{
    placer *p = context;
    if (x->kind == MF_WANT_VECTOR) {
        if (*x->vector) {
            const void *to = *x->vector;
            MF_TRY(move_rows(p, *x->vector, (size_t)x->n * 4, (size_t)x->n * 4, 1, &to));
            *x->vector = to;
        }
    } else if (x->matrix->data && !x->optional) { /* a tied head follows its embedding */
        MF_TRY(move_matrix(p, x->matrix));
    }
    return MF_OK;
}

/* What is left of the host's: nothing points there any more. */
static void let_go(mf_weights *w)
{
    mf_checkpoint_close(&w->checkpoint);
    mf_free_huge(w->memory);
    mf_free_huge(w->quantised);
    mf_free_huge(w->converted);
    w->memory = w->quantised = w->converted = NULL;
    w->conversions = NULL;
}

mf_status mf_weights_place(mf_weights *w, const mf_weights_options *options, mf_error *err)
{
    placer p = {
        .weights = w, .device = options->device, .err = err
    };
    const bool is_tied = w->lm_head.data == w->embed_tokens.data;
    MF_TRY(mf_tensor_map_walk(w->config, w, place, &p));
    p.total = p.bytes;
    p.bytes = 0;
    w->device = options->device;
    mf_status status = mf_device_malloc(p.device, p.total, &w->placed, err);
    if (status != MF_OK) {
        return mf_fail_context(err, status, "weights of %.1f GiB", (double)p.total * 0x1p-30);
    }
    p.block = w->placed;
    status = mf_tensor_map_walk(w->config, w, place, &p);
    status = status == MF_OK ? mf_staging_run(&p.staging, p.device, w->placed, p.total, &options->progress, err) : status;
    mf_staging_close(&p.staging);
    MF_TRY(status);
    if (is_tied) {
        w->lm_head = w->embed_tokens;
    }
    let_go(w);
    return MF_OK;
}
