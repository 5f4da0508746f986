/* hex.h - hexadecimal digits, as every escape and chunk size writes them. */
#ifndef MF_BASE_HEX_H
#define MF_BASE_HEX_H

#include <stddef.h>
#include <stdint.h>

/* 0 to 15; -1: not a digit. */
static inline int mf_hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The value of at most `digits` (8 or fewer) digits from text[*at] on, below `end`; *at moves behind those that are.  How many
 * there were. */
static inline size_t mf_hex_read(const char *text, size_t end, size_t *at, size_t digits, uint32_t *value)
{
    size_t n = 0;
    *value = 0;
    for (; n < digits && *at < end && mf_hex_digit(text[*at]) >= 0; n++, (*at)++) {
        *value = *value << 4 | (uint32_t)mf_hex_digit(text[*at]);
    }
    return n;
}

#endif
