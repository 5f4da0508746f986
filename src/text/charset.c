/* charset.c - sets of code points: see charset.h. */
#include "text/charset.h"

#include <stdlib.h>
#include <string.h>

#include "base/sys.h"

mf_status mf_charset_add(mf_charset *set, uint32_t first, uint32_t last)
{
    if (set->count == set->capacity) {
        size_t capacity = set->capacity ? set->capacity * 2 : 8;
        mf_char_range *ranges = mf_resize_array(set->ranges, capacity, sizeof *ranges);
        if (!ranges) {
            return MF_ERR_NOMEM;
        }
        set->ranges = ranges;
        set->capacity = capacity;
    }
    set->ranges[set->count++] = (mf_char_range){ first, last };
    return MF_OK;
}

mf_status mf_charset_add_ranges(mf_charset *set, const mf_char_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        MF_TRY(mf_charset_add(set, ranges[i].first, ranges[i].last));
    }
    return MF_OK;
}

mf_status mf_charset_add_set(mf_charset *set, const mf_charset *other)
{
    return mf_charset_add_ranges(set, other->ranges, other->count);
}

mf_status mf_charset_add_categories(mf_charset *set, uint32_t categories)
{
    for (size_t i = 0; i < mf_unicode_num_runs; i++) {
        if (categories >> (mf_unicode_runs[i] & 0xff) & 1) {
            uint32_t last = i + 1 < mf_unicode_num_runs ? (mf_unicode_runs[i + 1] >> 8) - 1 : MF_UNICODE_LAST;
            MF_TRY(mf_charset_add(set, mf_unicode_runs[i] >> 8, last));
        }
    }
    return MF_OK;
}

mf_status mf_charset_add_word(mf_charset *set)
{
    MF_TRY(mf_charset_add_categories(set, ((1u << (MF_GC_ND + 1)) - 1) | 1u << MF_GC_PC));
    return mf_charset_add_ranges(set, mf_unicode_word_extra, mf_unicode_word_extra_count);
}

static int compare_ranges(const void *a, const void *b)
{
    uint32_t x = ((const mf_char_range *)a)->first, y = ((const mf_char_range *)b)->first;
    return (x > y) - (x < y);
}

void mf_charset_settle(mf_charset *set)
{
    if (set->count < 2) {
        return;
    }
    qsort(set->ranges, set->count, sizeof *set->ranges, compare_ranges);
    size_t n = 0;
    for (size_t i = 1; i < set->count; i++) {
        mf_char_range *into = &set->ranges[n], r = set->ranges[i];
        if (r.first <= into->last + 1) {
            into->last = r.last > into->last ? r.last : into->last;
        } else {
            set->ranges[++n] = r;
        }
    }
    set->count = n + 1;
}

mf_status mf_charset_invert(mf_charset *set)
{
    mf_charset out = { 0 };
    uint32_t next = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (set->ranges[i].first > next && mf_charset_add(&out, next, set->ranges[i].first - 1) != MF_OK) {
            mf_charset_close(&out);
            return MF_ERR_NOMEM;
        }
        next = set->ranges[i].last + 1;
    }
    if (next <= MF_UNICODE_LAST && mf_charset_add(&out, next, MF_UNICODE_LAST) != MF_OK) {
        mf_charset_close(&out);
        return MF_ERR_NOMEM;
    }
    mf_charset_close(set);
    *set = out;
    return MF_OK;
}

mf_status mf_charset_intersect(mf_charset *set, const mf_charset *other)
{
    mf_charset out = { 0 };
    for (size_t i = 0, j = 0; i < set->count && j < other->count;) {
        mf_char_range a = set->ranges[i], b = other->ranges[j];
        uint32_t first = a.first > b.first ? a.first : b.first;
        uint32_t last = a.last < b.last ? a.last : b.last;
        if (first <= last && mf_charset_add(&out, first, last) != MF_OK) {
            mf_charset_close(&out);
            return MF_ERR_NOMEM;
        }
        i += a.last <= b.last;
        j += b.last <= a.last;
    }
    mf_charset_close(set);
    *set = out;
    return MF_OK;
}

bool mf_charset_equal(const mf_charset *a, const mf_charset *b)
{
    return a->count == b->count && (a->count == 0 || memcmp(a->ranges, b->ranges, a->count * sizeof *a->ranges) == 0);
}

void mf_charset_close(mf_charset *set)
{
    mf_free(set->ranges);
    *set = (mf_charset){ 0 };
}

#define GC(name) (1u << MF_GC_##name)

static const struct {
    const char *name; /* lower case, without '_', '-' and spaces */
    uint32_t categories;
} category_names[] = {
    { "l", GC(LU) | GC(LL) | GC(LT) | GC(LM) | GC(LO) },
    { "letter", GC(LU) | GC(LL) | GC(LT) | GC(LM) | GC(LO) },
    { "lu", GC(LU) },
    { "uppercaseletter", GC(LU) },
    { "ll", GC(LL) },
    { "lowercaseletter", GC(LL) },
    { "lt", GC(LT) },
    { "titlecaseletter", GC(LT) },
    { "lm", GC(LM) },
    { "modifierletter", GC(LM) },
    { "lo", GC(LO) },
    { "otherletter", GC(LO) },
    { "m", GC(MN) | GC(MC) | GC(ME) },
    { "mark", GC(MN) | GC(MC) | GC(ME) },
    { "mn", GC(MN) },
    { "nonspacingmark", GC(MN) },
    { "mc", GC(MC) },
    { "spacingmark", GC(MC) },
    { "me", GC(ME) },
    { "enclosingmark", GC(ME) },
    { "n", GC(ND) | GC(NL) | GC(NO) },
    { "number", GC(ND) | GC(NL) | GC(NO) },
    { "nd", GC(ND) },
    { "decimalnumber", GC(ND) },
    { "nl", GC(NL) },
    { "letternumber", GC(NL) },
    { "no", GC(NO) },
    { "othernumber", GC(NO) },
    { "p", GC(PC) | GC(PD) | GC(PS) | GC(PE) | GC(PI) | GC(PF) | GC(PO) },
    { "punctuation", GC(PC) | GC(PD) | GC(PS) | GC(PE) | GC(PI) | GC(PF) | GC(PO) },
    { "pc", GC(PC) },
    { "pd", GC(PD) },
    { "ps", GC(PS) },
    { "pe", GC(PE) },
    { "pi", GC(PI) },
    { "pf", GC(PF) },
    { "po", GC(PO) },
    { "s", GC(SM) | GC(SC) | GC(SK) | GC(SO) },
    { "symbol", GC(SM) | GC(SC) | GC(SK) | GC(SO) },
    { "sm", GC(SM) },
    { "sc", GC(SC) },
    { "sk", GC(SK) },
    { "so", GC(SO) },
    { "z", GC(ZS) | GC(ZL) | GC(ZP) },
    { "separator", GC(ZS) | GC(ZL) | GC(ZP) },
    { "zs", GC(ZS) },
    { "zl", GC(ZL) },
    { "zp", GC(ZP) },
    { "c", GC(CC) | GC(CF) | GC(CS) | GC(CO) | GC(CN) },
    { "cc", GC(CC) },
    { "cf", GC(CF) },
    { "cs", GC(CS) },
    { "co", GC(CO) },
    { "cn", GC(CN) },
    { "any", (1u << MF_GC_COUNT) - 1 },
};

mf_status mf_charset_add_property(mf_charset *set, const char *name, size_t size)
{
    char plain[32];
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        if (c == ' ' || c == '_' || c == '-') {
            continue;
        }
        if (n + 1 == sizeof plain) {
            return MF_ERR_UNSUPPORTED;
        }
        plain[n++] = (char)(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    plain[n] = '\0';
    for (size_t i = 0; i < sizeof category_names / sizeof *category_names; i++) {
        if (strcmp(category_names[i].name, plain) == 0) {
            return mf_charset_add_categories(set, category_names[i].categories);
        }
    }
    for (size_t i = 0; i < mf_unicode_num_scripts; i++) {
        if (strcmp(mf_unicode_scripts[i].name, plain) == 0) {
            return mf_charset_add_ranges(set, mf_unicode_scripts[i].ranges, mf_unicode_scripts[i].count);
        }
    }
    return MF_ERR_UNSUPPORTED;
}
