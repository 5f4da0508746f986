/* utf8.c - repairing a byte stream into UTF-8: see utf8.h. */
#include "text/utf8.h"

#include <stdbool.h>

static const char replacement[3] = { '\xef', '\xbf', '\xbd' };

static bool begin_character(mf_utf8_repair *r, uint8_t c)
{
    r->low = 0x80;
    r->high = 0xbf;
    if (c >= 0xc2 && c <= 0xdf) {
        r->need = 2;
    } else if (c >= 0xe0 && c <= 0xef) {
        r->need = 3;
        r->low = c == 0xe0 ? 0xa0 : 0x80;
        r->high = c == 0xed ? 0x9f : 0xbf;
    } else if (c >= 0xf0 && c <= 0xf4) {
        r->need = 4;
        r->low = c == 0xf0 ? 0x90 : 0x80;
        r->high = c == 0xf4 ? 0x8f : 0xbf;
    } else {
        return false;
    }
    r->kept[0] = c;
    r->num_kept = 1;
    return true;
}

mf_status mf_utf8_repair_push(mf_utf8_repair *repair, const void *bytes, size_t n, mf_buffer *out)
{
    const uint8_t *s = bytes;
    size_t i = 0;
    while (i < n) {
        if (repair->num_kept == 0) {
            size_t start = i;
            while (i < n && s[i] < 0x80) {
                i++;
            }
            MF_TRY(mf_buffer_append(out, s + start, i - start));
            if (i < n) {
                if (!begin_character(repair, s[i])) {
                    MF_TRY(mf_buffer_append(out, replacement, sizeof replacement));
                }
                i++;
            }
        } else if (s[i] < repair->low || s[i] > repair->high) {
            /* The byte is looked at again as the beginning of something. */
            repair->num_kept = 0;
            MF_TRY(mf_buffer_append(out, replacement, sizeof replacement));
        } else {
            repair->low = 0x80;
            repair->high = 0xbf;
            repair->kept[repair->num_kept++] = s[i++];
            if (repair->num_kept == repair->need) {
                repair->num_kept = 0;
                MF_TRY(mf_buffer_append(out, repair->kept, repair->need));
            }
        }
    }
    return MF_OK;
}

mf_status mf_utf8_repair_finish(mf_utf8_repair *repair, mf_buffer *out)
{
    if (repair->num_kept == 0) {
        return MF_OK;
    }
    repair->num_kept = 0;
    return mf_buffer_append(out, replacement, sizeof replacement);
}
