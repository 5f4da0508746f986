/* weights_problems.c - what is said when a checkpoint and its config do not fit: see weights_matcher.h. */
#include <stdio.h>
#include <string.h>

#include "base/buffer.h"
#include "model/weights_matcher.h"

enum { MAX_NAMES = 20, NAMES_BYTES_OF_TWO = 400 }; /* of a message's 1,016 bytes */

mf_status mf_match_problem(mf_matcher *m)
{
    mf_status status = m->error.status;
    if (!m->options->report || status == MF_ERR_NOMEM) {
        return status;
    }
    m->options->report(m->options->context, m->error.message);
    m->num_findings++;
    return m->num_findings >= m->options->max_findings ? MF_ERR_LIMIT : MF_OK;
}

mf_status mf_match_add_name(mf_matcher *m, mf_name_list *list, const char *what, const char *name)
{
    list->total++;
    if (m->options->report) {
        mf_fail(&m->error, MF_ERR_FORMAT, "%s: %.256s", what, name);
        return mf_match_problem(m);
    }
    size_t n = strlen(name), gap = list->used ? 2 : 0;
    if (list->shown < MAX_NAMES && list->used + gap + n < sizeof list->text && list->shown == list->total - 1) {
        snprintf(list->text + list->used, sizeof list->text - list->used, "%s%s", gap ? ", " : "", name);
        list->used += gap + n;
        list->shown++;
    }
    return MF_OK;
}

/* limit: bytes that the names may take; last ones make room. */
static void describe_names(mf_name_list *list, const char *what, size_t limit, mf_buffer *out)
{
    if (list->total == 0) {
        return;
    }
    while (list->used > limit) {
        char *comma = strrchr(list->text, ',');
        list->used = comma ? (size_t)(comma - list->text) : 0;
        list->text[list->used] = '\0';
        list->shown--;
    }
    mf_buffer_printf(out, "%s%s: %s", out->size ? "; " : "", what, list->text);
    if (list->shown == 0) {
        mf_buffer_printf(out, "%lld tensors with long names", (long long)list->total);
    } else if (list->total > list->shown) {
        mf_buffer_printf(out, " (+%lld more)", (long long)(list->total - list->shown));
    }
}

static void describe_shape(const int64_t *shape, int32_t ndim, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (int32_t i = 0; i < ndim; i++) {
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    snprintf(out + used, size - used, "]");
}

mf_status mf_match_wrong_shape(mf_matcher *m, const mf_st_tensor *t, const int64_t *shape, int32_t ndim,
                               const char *more)
{
    char expected[200], got[200];
    describe_shape(shape, ndim, expected, sizeof expected);
    describe_shape(t->shape, t->ndim, got, sizeof got);
    mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.256s\": expected shape %s%s; got %s", t->file, t->name, expected,
            more, got);
    return mf_match_problem(m);
}

mf_status mf_match_wrong_dtype(mf_matcher *m, const mf_st_tensor *t, const char *expected)
{
    mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.256s\": expected dtype %s; got %s", t->file, t->name, expected,
            mf_dtype_name(t->dtype));
    return mf_match_problem(m);
}

bool mf_match_has_shape(const mf_st_tensor *t, const int64_t *shape, int32_t ndim)
{
    return t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0;
}

/* In load mode: one message for both lists. */
mf_status mf_match_complain_about_names(mf_matcher *m)
{
    if (m->options->report || m->missing.total + m->unexpected.total == 0) {
        return MF_OK;
    }
    mf_buffer text = { 0 };
    size_t limit = m->missing.total && m->unexpected.total ? NAMES_BYTES_OF_TWO : MF_NAMES_BYTES;
    describe_names(&m->missing, "missing", limit, &text);
    describe_names(&m->unexpected, "unexpected", limit, &text);
    mf_status status = mf_fail(&m->error, MF_ERR_FORMAT, "%s/%s: %s", m->options->dir,
                               mf_checkpoint_list_name(m->checkpoint), mf_buffer_text(&text));
    mf_buffer_close(&text);
    return status;
}
