/* utf8.h - code points of text that is known to be valid UTF-8, and bytes that are not known to be. */
#ifndef MF_TEXT_UTF8_H
#define MF_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

/* The code point at text[*at]; *at moves behind it.  The text must be valid. */
static inline uint32_t mf_utf8_next(const char *text, size_t *at)
{
    const uint8_t *s = (const uint8_t *)text + *at;
    if (s[0] < 0x80) {
        *at += 1;
        return s[0];
    }
    if (s[0] < 0xe0) {
        *at += 2;
        return (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    }
    if (s[0] < 0xf0) {
        *at += 3;
        return (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    }
    *at += 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 | (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f);
}

static inline size_t mf_utf8_size(uint32_t c)
{
    return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
}

/* Writes the 1..4 bytes of a code point. */
static inline size_t mf_utf8_put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

/* Repairs a byte stream piece by piece: whole characters pass, each maximal run of bytes that cannot begin or continue
 * one becomes U+FFFD (the WHATWG rule, also Rust's from_utf8_lossy).  At most three bytes are kept between pieces. */
typedef struct mf_utf8_repair {
    uint8_t kept[4];
    uint8_t num_kept, need, low,
        high; /* need: bytes of the character that kept begins; low, high: bounds of its next byte */
} mf_utf8_repair;

mf_status mf_utf8_repair_push(mf_utf8_repair *repair, const void *bytes, size_t n, mf_buffer *out);
mf_status mf_utf8_repair_finish(mf_utf8_repair *repair, mf_buffer *out); /* a cut character becomes U+FFFD */

#endif
