/* eval_answer.c - see eval_answer.h.  Two regular expressions and four substitutions, written out. */
#include "cli/eval_answer.h"

#include <string.h>

static const char invalid[] = "[invalid]";

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_number_char(char c) /* [0-9.,] */
{
    return is_digit(c) || c == '.' || c == ',';
}

mf_status mf_answer_strict(const char *text, size_t size, mf_buffer *out)
{
    for (size_t i = 0; i + 5 < size; i++) {
        if (memcmp(text + i, "#### ", 5) != 0) {
            continue;
        }
        size_t start = i + 5, digits = start + (text[start] == '-'), end = digits;
        while (end < size && is_number_char(text[end])) {
            end++;
        }
        if (end > digits) {
            return mf_buffer_append(out, text + start, end - start);
        }
    }
    return mf_buffer_append_text(out, invalid);
}

/* The length of a match that begins at text[at], 0 for none. */
static size_t match_number(const char *text, size_t size, size_t at)
{
    size_t first = at + (text[at] == '-'), end = first;
    while (end < size && (is_number_char(text[end]) || text[end] == '$')) {
        end++;
    }
    if (end >= first + 2) { /* the first alternative: at least two characters of [$0-9.,] */
        return end - at;
    }
    for (end = first; end < size && is_digit(text[end]); end++) {
    }
    return end > first ? end - at : 0;
}

mf_status mf_answer_flexible(const char *text, size_t size, mf_buffer *out)
{
    size_t start = 0, length = 0;
    for (size_t i = 0; i < size;) {
        size_t n = match_number(text, size, i);
        if (n > 0) {
            start = i;
            length = n;
        }
        i += n > 0 ? n : 1;
    }
    return length ? mf_buffer_append(out, text + start, length) : mf_buffer_append_text(out, invalid);
}

mf_status mf_answer_normalise(const char *text, size_t size, mf_buffer *out)
{
    mf_buffer kept = { 0 };
    mf_status status = mf_buffer_reserve(&kept, size);
    for (size_t i = 0; i < size && status == MF_OK; i++) {
        if (text[i] != ',' && text[i] != '$') {
            status = mf_buffer_append(&kept, text + i, 1);
        }
    }
    const char *from = mf_buffer_text(&kept), *end = from + kept.size;
    for (const char *p = from; p + 5 <= end; p++) {
        if (memcmp(p, "#### ", 5) == 0) {
            from = p + 5;
        }
    }
    /* In Python `$` is also the place before a line feed that ends the text. */
    const char *point = end - (end > from && end[-1] == '\n');
    point = point > from && point[-1] == '.' ? point - 1 : NULL;
    for (const char *p = from; p < end && status == MF_OK; p++) {
        char c = *p >= 'A' && *p <= 'Z' ? (char)(*p - 'A' + 'a') : *p;
        if (p != point) {
            status = mf_buffer_append(out, &c, 1);
        }
    }
    mf_buffer_close(&kept);
    return status;
}

mf_status mf_answer_matches(const char *answer, size_t answer_size, const char *gold, size_t gold_size, bool *matches)
{
    mf_buffer a = { 0 }, b = { 0 };
    mf_status status = mf_answer_normalise(answer, answer_size, &a);
    if (status == MF_OK) {
        status = mf_answer_normalise(gold, gold_size, &b);
    }
    *matches = status == MF_OK && a.size == b.size && memcmp(mf_buffer_text(&a), mf_buffer_text(&b), a.size) == 0;
    mf_buffer_close(&a);
    mf_buffer_close(&b);
    return status;
}
