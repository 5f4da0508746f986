/* json_out.c - see json_out.h. */
#include "server/json_out.h"

#include <math.h>
#include <stdio.h>

void mf_json_raw(mf_json_out *out, const char *bytes, size_t size)
{
    mf_status status = mf_buffer_append(out->buffer, bytes, size);
    if (status != MF_OK && out->status == MF_OK) {
        out->status = status;
    }
}

void mf_json_escaped(mf_json_out *out, const char *text, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    size_t from = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) {
            continue;
        }
        mf_json_raw(out, text + from, i - from);
        from = i + 1;
        switch (c) {
        case '"':
            mf_json_lit(out, "\\\"");
            break;
        case '\\':
            mf_json_lit(out, "\\\\");
            break;
        case '\n':
            mf_json_lit(out, "\\n");
            break;
        case '\r':
            mf_json_lit(out, "\\r");
            break;
        case '\t':
            mf_json_lit(out, "\\t");
            break;
        default: {
            const char code[6] = { '\\', 'u', '0', '0', hex[c >> 4], hex[c & 15] };
            mf_json_raw(out, code, sizeof code);
        }
        }
    }
    mf_json_raw(out, text + from, size - from);
}

void mf_json_text(mf_json_out *out, const char *text, size_t size)
{
    mf_json_lit(out, "\"");
    mf_json_escaped(out, text, size);
    mf_json_lit(out, "\"");
}

void mf_json_cstr(mf_json_out *out, const char *text)
{
    if (text) {
        mf_json_text(out, text, strlen(text));
    } else {
        mf_json_lit(out, "null");
    }
}

void mf_json_int(mf_json_out *out, int64_t value)
{
    char digits[24];
    size_t first = sizeof digits;
    uint64_t left = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do {
        digits[--first] = (char)('0' + left % 10);
        left /= 10;
    } while (left);
    if (value < 0) {
        digits[--first] = '-';
    }
    mf_json_raw(out, digits + first, sizeof digits - first);
}

void mf_json_ids(mf_json_out *out, const int32_t *ids, size_t count)
{
    mf_json_lit(out, "[");
    for (size_t i = 0; i < count; i++) {
        if (i > 0) {
            mf_json_lit(out, ",");
        }
        mf_json_int(out, ids[i]);
    }
    mf_json_lit(out, "]");
}

void mf_json_bool(mf_json_out *out, int value)
{
    if (value) {
        mf_json_lit(out, "true");
    } else {
        mf_json_lit(out, "false");
    }
}

void mf_json_fixed(mf_json_out *out, double value)
{
    char text[64];
    if (!(fabs(value) < 1e15)) {
        value = 0;
    }
    int n = snprintf(text, sizeof text, "%.3f", value);
    mf_json_raw(out, text, n > 0 ? (size_t)n : 0);
}

void mf_json_logprob(mf_json_out *out, float value)
{
    char text[40];
    if (isnan(value)) {
        mf_json_lit(out, "null");
        return;
    }
    if (isinf(value)) {
        mf_json_lit(out, "-9999.0");
        return;
    }
    int n = snprintf(text, sizeof text, "%.9g", (double)value);
    size_t size = n > 0 ? (size_t)n : 0;
    mf_json_raw(out, text, size);
    if (!memchr(text, '.', size) && !memchr(text, 'e', size)) {
        mf_json_lit(out, ".0");
    }
}
