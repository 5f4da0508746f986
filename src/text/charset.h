/* charset.h - sets of code points as sorted ranges: what a regex's classes become while it is compiled. */
#ifndef MF_TEXT_CHARSET_H
#define MF_TEXT_CHARSET_H

#include "base/error.h"
#include "text/unicode.h"

typedef struct mf_charset {
    mf_char_range
        *ranges; /* sorted, apart from each other, unless ranges were added since the last mf_charset_settle */
    size_t count, capacity;
} mf_charset;

/* Adding only appends: mf_charset_settle sorts and joins.  The set operations below expect settled sets and leave one.
 */
mf_status mf_charset_add(mf_charset *set, uint32_t first, uint32_t last);
mf_status mf_charset_add_ranges(mf_charset *set, const mf_char_range *ranges, size_t count);
mf_status mf_charset_add_set(mf_charset *set, const mf_charset *other);
mf_status mf_charset_add_categories(mf_charset *set, uint32_t categories); /* bit 1 << MF_GC_* each */
mf_status mf_charset_add_word(mf_charset *set);                            /* \w */
void mf_charset_settle(mf_charset *set);
mf_status mf_charset_invert(mf_charset *set);
mf_status mf_charset_intersect(mf_charset *set, const mf_charset *other);
bool mf_charset_equal(const mf_charset *a, const mf_charset *b);
void mf_charset_close(mf_charset *set); /* a zeroed one is fine */

/* Adds what `name` in \p{name} stands for: a general category, a script of the table, Any.  MF_ERR_UNSUPPORTED when
 * there is no such name; err stays untouched. */
mf_status mf_charset_add_property(mf_charset *set, const char *name, size_t size);

#endif
