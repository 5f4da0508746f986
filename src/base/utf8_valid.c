/* utf8_valid.c - see utf8_valid.h. */
#include "base/utf8_valid.h"

#include <stdint.h>

bool mf_utf8_valid(const char *text, size_t size, size_t *bad_at)
{
    const uint8_t *s = (const uint8_t *)text;
    size_t i = 0;
    while (i < size) {
        uint8_t c = s[i];
        size_t n = c < 0x80 ? 1 : (c >= 0xc2 && c <= 0xdf) ? 2 : (c >= 0xe0 && c <= 0xef) ? 3 : (c >= 0xf0 && c <= 0xf4) ? 4 : 0;
        bool ok = n != 0 && n <= size - i;
        for (size_t j = 1; ok && j < n; j++) {
            ok = (s[i + j] & 0xc0) == 0x80;
        }
        /* Overlong forms, surrogates and values past U+10FFFF show in the second byte. */
        if (ok && ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) || (c == 0xf0 && s[i + 1] < 0x90) ||
                   (c == 0xf4 && s[i + 1] > 0x8f))) {
            ok = false;
        }
        if (!ok) {
            if (bad_at) {
                *bad_at = i;
            }
            return false;
        }
        i += n;
    }
    return true;
}
