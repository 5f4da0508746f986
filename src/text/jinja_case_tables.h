/* jinja_case_tables.h - generated tables behind jinja_text.c. */
#ifndef MF_TEXT_JINJA_CASE_TABLES_H
#define MF_TEXT_JINJA_CASE_TABLES_H

#include <stddef.h>
#include <stdint.h>

typedef struct jinja_case_row {
    uint16_t from;
    uint16_t to[3]; /* 0 = none */
} jinja_case_row;

typedef struct jinja_char_range {
    int32_t first, last;
} jinja_char_range;

/* Characters whose mapping is more than one character. */
extern const jinja_case_row jinja_upper_rows[];
extern const size_t jinja_upper_rows_count;
extern const jinja_case_row jinja_title_rows[];
extern const size_t jinja_title_rows_count;
extern const jinja_case_row jinja_fold_rows[];
extern const size_t jinja_fold_rows_count;

/* Members of a class that their general category does not tell. */
extern const jinja_char_range jinja_other_upper[];
extern const size_t jinja_other_upper_count;
extern const jinja_char_range jinja_other_lower[];
extern const size_t jinja_other_lower_count;
extern const jinja_char_range jinja_other_digit[];
extern const size_t jinja_other_digit_count;
extern const jinja_char_range jinja_other_numeric[];
extern const size_t jinja_other_numeric_count;
extern const jinja_char_range jinja_decimal_zero[]; /* each zero is followed by 1 to 9 */
extern const size_t jinja_decimal_zero_count;

#endif
