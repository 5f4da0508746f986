/* nfc.c - canonical composition: see nfc.h.
 *
 * utf8proc supplies decompositions, combining classes and the composition of a sorted sequence.  Code points that the
 * tokenizers' data does not know stand alone: nothing moves or composes across them, which is what a normaliser does
 * with an unassigned code point.  The sorting of marks is ours because utf8proc's takes quadratic time on a long run of
 * them. */
#include "text/nfc.h"

#include <string.h>
#include <utf8proc.h>

#include "base/sys.h"
#include "text/unicode.h"
#include "text/utf8.h"

typedef struct stretch {
    utf8proc_int32_t *points, *sorted;
    uint8_t *classes;
    size_t size, capacity;
} stretch;

bool mf_nfc_is_plain(const char *text, size_t size)
{
    /* Below U+0300 (0xcc 0x80) nothing decomposes, moves or follows a composition's first character. */
    for (size_t i = 0; i < size; i++) {
        if ((uint8_t)text[i] >= 0xcc) {
            return false;
        }
    }
    return true;
}

static mf_status reserve(stretch *s, size_t n)
{
    if (s->size + n <= s->capacity) {
        return MF_OK;
    }
    size_t capacity = s->capacity ? s->capacity * 2 : 256;
    utf8proc_int32_t *points = mf_resize_array(s->points, capacity, sizeof *points);
    s->points = points ? points : s->points;
    utf8proc_int32_t *sorted = mf_resize_array(s->sorted, capacity, sizeof *sorted);
    s->sorted = sorted ? sorted : s->sorted;
    uint8_t *classes = mf_resize_array(s->classes, capacity, 1);
    s->classes = classes ? classes : s->classes;
    if (!points || !sorted || !classes) {
        return MF_ERR_NOMEM;
    }
    s->capacity = capacity;
    return MF_OK;
}

/* A stable counting sort of the marks [begin, end) by combining class. */
static void sort_marks(stretch *s, size_t begin, size_t end)
{
    bool in_order = true;
    for (size_t i = begin + 1; i < end && in_order; i++) {
        in_order = s->classes[i - 1] <= s->classes[i];
    }
    if (in_order) {
        return;
    }
    size_t next[256] = { 0 };
    for (size_t i = begin; i < end; i++) {
        next[s->classes[i]]++;
    }
    size_t sum = begin;
    for (int c = 0; c < 256; c++) {
        size_t count = next[c];
        next[c] = sum;
        sum += count;
    }
    for (size_t i = begin; i < end; i++) {
        s->sorted[next[s->classes[i]]++] = s->points[i];
    }
    memcpy(s->points + begin, s->sorted + begin, (end - begin) * sizeof *s->points);
}

/* Composes what has been gathered and writes it out. */
static mf_status flush(stretch *s, mf_buffer *out)
{
    for (size_t i = 0; i < s->size; i++) {
        if (s->classes[i] != 0) {
            size_t begin = i;
            while (i < s->size && s->classes[i] != 0) {
                i++;
            }
            sort_marks(s, begin, i);
        }
    }
    utf8proc_ssize_t n = utf8proc_normalize_utf32(s->points, (utf8proc_ssize_t)s->size,
                                                  (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (n < 0) {
        return MF_ERR_INTERNAL;
    }
    MF_TRY(mf_buffer_reserve(out, (size_t)n * 4));
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        char bytes[4];
        MF_TRY(mf_buffer_append(out, bytes, mf_utf8_put((uint32_t)s->points[i], bytes)));
    }
    s->size = 0;
    return MF_OK;
}

/* utf8proc takes U+11A7, one before the first final consonant of Hangul, for a final consonant and swallows it. */
enum { NOT_A_FINAL_CONSONANT = 0x11a7 };

/* Code points that stand alone. */
static bool stands_alone(uint32_t c)
{
    return c >= 0x300 && (c == NOT_A_FINAL_CONSONANT || mf_unicode_category_of(c) == MF_GC_CN ||
                          mf_unicode_in(mf_unicode_nfc_unknown, mf_unicode_nfc_unknown_count, c));
}

static mf_status gather(stretch *s, uint32_t c)
{
    enum { LONGEST = 8 }; /* canonical decompositions have up to 4 code points */
    utf8proc_int32_t parts[LONGEST];
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, parts, LONGEST,
                                                 (utf8proc_option_t)(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &boundary);
    if (n < 0 || n > LONGEST) {
        return MF_ERR_INTERNAL;
    }
    MF_TRY(reserve(s, (size_t)n));
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        s->points[s->size] = parts[i];
        s->classes[s->size++] = (uint8_t)utf8proc_get_property(parts[i])->combining_class;
    }
    return MF_OK;
}

mf_status mf_nfc(const char *text, size_t size, mf_buffer *out)
{
    stretch s = { 0 };
    mf_status status = MF_OK;
    for (size_t at = 0; at < size && status == MF_OK;) {
        uint32_t c = mf_utf8_next(text, &at);
        if (stands_alone(c)) {
            char bytes[4];
            status = flush(&s, out);
            if (status == MF_OK) {
                status = mf_buffer_append(out, bytes, mf_utf8_put(c, bytes));
            }
        } else {
            status = gather(&s, c);
        }
    }
    if (status == MF_OK) {
        status = flush(&s, out);
    }
    mf_free(s.points);
    mf_free(s.sorted);
    mf_free(s.classes);
    return status;
}
