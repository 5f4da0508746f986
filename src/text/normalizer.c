/* normalizer.c - what is done to a text before it is cut: see normalizer.h. */
#include "text/normalizer.h"

#include <string.h>

#include "base/sys.h"
#include "text/nfc.h"

/* As memmem, which reads ahead of what it finds where a sanitizer watches: each of many finds would read the whole
 * text. */
static const char *find(const char *text, size_t size, const char *part, size_t part_size)
{
    const char *end = text + size;
    while ((size_t)(end - text) >= part_size) {
        text = memchr(text, part[0], (size_t)(end - text) - part_size + 1);
        if (!text || memcmp(text, part, part_size) == 0) {
            return text;
        }
        text++;
    }
    return NULL;
}

mf_status mf_replacement_run(const mf_replacement *replacement, const char *text, size_t size, mf_buffer *out)
{
    size_t done = 0;
    while (done < size) {
        const char *found = find(text + done, size - done, replacement->pattern, replacement->pattern_size);
        if (!found) {
            break;
        }
        size_t at = (size_t)(found - text);
        MF_TRY(mf_buffer_append(out, text + done, at - done));
        MF_TRY(mf_buffer_append(out, replacement->content, replacement->content_size));
        done = at + replacement->pattern_size;
    }
    return mf_buffer_append(out, text + done, size - done);
}

static bool changes(const mf_normalizer_step *step, const char *text, size_t size)
{
    switch (step->kind) {
    case MF_NORMALIZER_NFC:
        return !mf_nfc_is_plain(text, size);
    case MF_NORMALIZER_PREPEND:
        return size > 0;
    case MF_NORMALIZER_REPLACE:
        return size > 0 && find(text, size, step->text.pattern, step->text.pattern_size) != NULL;
    }
    return false;
}

mf_status mf_normalizer_run(const mf_normalizer *normalizer, const char *text, size_t size, mf_normalizer_work *work,
                            const char **out, size_t *out_size)
{
    size_t next = 0, limit = MF_NORMALIZER_MAX_BYTES;
    if (size < limit / MF_NORMALIZER_MAX_GROWTH - MF_NORMALIZER_MAX_TEXT) {
        limit = size * MF_NORMALIZER_MAX_GROWTH + MF_NORMALIZER_MAX_TEXT;
    }
    for (size_t i = 0; i < normalizer->num_steps; i++) {
        const mf_normalizer_step *step = &normalizer->steps[i];
        if (!changes(step, text, size)) {
            continue;
        }
        mf_buffer *to = &work->buffers[next];
        next = 1 - next;
        mf_buffer_clear(to);
        to->limit = limit;
        if (step->kind == MF_NORMALIZER_NFC) {
            MF_TRY(mf_nfc(text, size, to));
        } else if (step->kind == MF_NORMALIZER_PREPEND) {
            MF_TRY(mf_buffer_reserve(to, step->text.content_size + size));
            MF_TRY(mf_buffer_append(to, step->text.content, step->text.content_size));
            MF_TRY(mf_buffer_append(to, text, size));
        } else {
            MF_TRY(mf_replacement_run(&step->text, text, size, to));
        }
        text = mf_buffer_text(to);
        size = to->size;
    }
    *out = text;
    *out_size = size;
    return MF_OK;
}

void mf_normalizer_work_close(mf_normalizer_work *work)
{
    mf_buffer_close(&work->buffers[0]);
    mf_buffer_close(&work->buffers[1]);
}

void mf_replacement_close(mf_replacement *replacement)
{
    mf_free(replacement->pattern);
    mf_free(replacement->content);
    *replacement = (mf_replacement){ 0 };
}

void mf_normalizer_close(mf_normalizer *normalizer)
{
    for (size_t i = 0; i < normalizer->num_steps; i++) {
        mf_replacement_close(&normalizer->steps[i].text);
    }
    normalizer->num_steps = 0;
}
