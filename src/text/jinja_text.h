/* jinja_text.h - reading UTF-8 by code point and Python's character classes and case mappings. */
#ifndef MF_TEXT_JINJA_TEXT_H
#define MF_TEXT_JINJA_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The code point at data[*pos], which is moved past it.  The text is valid UTF-8 and *pos < size. */
int32_t jinja_next_char(const char *data, size_t size, size_t *pos);
/* The code point before data[*pos], which is moved to its start.  *pos > 0. */
int32_t jinja_prev_char(const char *data, size_t *pos);
/* Byte offset of code point number `chars`, or size. */
size_t jinja_char_offset(const char *data, size_t size, int64_t chars);

bool jinja_is_space(int32_t c);      /* str.isspace, and \s */
bool jinja_is_line_break(int32_t c); /* where str.splitlines cuts */
bool jinja_is_printable(int32_t c);
bool jinja_is_alpha(int32_t c);
bool jinja_is_decimal(int32_t c);
bool jinja_is_digit(int32_t c);
bool jinja_is_numeric(int32_t c);
bool jinja_is_word(int32_t c); /* \w */
bool jinja_is_name(int32_t c); /* inside an identifier */
bool jinja_is_upper(int32_t c);
bool jinja_is_lower(int32_t c);
bool jinja_is_title(int32_t c);
int32_t jinja_decimal_value(int32_t c); /* -1: not a decimal digit */

typedef enum jinja_case { JINJA_LOWER, JINJA_UPPER, JINJA_TITLE, JINJA_FOLD } jinja_case;
/* Full case mapping of one code point: 1 to 3 code points into out; returns how many. */
int jinja_map_case(int32_t c, jinja_case to, int32_t out[3]);
/* The lower case of the capital sigma at data[pos]: at the end of a word another letter. */
int32_t jinja_lower_sigma(const char *data, size_t size, size_t pos);

#endif
