/* unicode.h - the Unicode properties of the tokenizers' engines, as ranges.  The data is generated: see
 * unicode_tables.c. */
#ifndef MF_TEXT_UNICODE_H
#define MF_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MF_UNICODE_LAST = 0x10ffff };

typedef struct mf_char_range {
    uint32_t first, last; /* both inclusive */
} mf_char_range;

/* The order that tools/make_unicode_tables.py writes. */
enum mf_unicode_category {
    MF_GC_LU,
    MF_GC_LL,
    MF_GC_LT,
    MF_GC_LM,
    MF_GC_LO,
    MF_GC_MN,
    MF_GC_MC,
    MF_GC_ME,
    MF_GC_ND,
    MF_GC_NL,
    MF_GC_NO,
    MF_GC_PC,
    MF_GC_PD,
    MF_GC_PS,
    MF_GC_PE,
    MF_GC_PI,
    MF_GC_PF,
    MF_GC_PO,
    MF_GC_SM,
    MF_GC_SC,
    MF_GC_SK,
    MF_GC_SO,
    MF_GC_ZS,
    MF_GC_ZL,
    MF_GC_ZP,
    MF_GC_CC,
    MF_GC_CF,
    MF_GC_CS,
    MF_GC_CO,
    MF_GC_CN,
    MF_GC_COUNT
};

typedef struct mf_unicode_script {
    const char *name; /* lower case */
    const mf_char_range *ranges;
    size_t count;
} mf_unicode_script;

extern const uint32_t mf_unicode_runs[]; /* first code point << 8 | category; the first run begins at 0 */
extern const size_t mf_unicode_num_runs;
extern const mf_char_range mf_unicode_space[], mf_unicode_word_extra[], mf_unicode_neighbour_extra[];
extern const mf_char_range mf_unicode_digits_extra[], mf_unicode_nfc_unknown[];
extern const size_t mf_unicode_space_count, mf_unicode_word_extra_count, mf_unicode_neighbour_extra_count;
extern const size_t mf_unicode_digits_extra_count, mf_unicode_nfc_unknown_count;
extern const mf_unicode_script mf_unicode_scripts[];
extern const size_t mf_unicode_num_scripts;

enum mf_unicode_category mf_unicode_category_of(uint32_t c);
bool mf_unicode_in(const mf_char_range *ranges, size_t count, uint32_t c);
bool mf_unicode_is_space(uint32_t c);
bool mf_unicode_is_neighbour_word(uint32_t c); /* a word character beside a single_word token */

#endif
