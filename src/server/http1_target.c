/* http1_target.c - the texts inside a request's head that have a grammar of their own: tokens, authorities, escaped
 * paths and queries. */
#include <string.h>

#include "base/hex.h"

#include "server/http1.h"

bool mf_http1_is_token(const char *text)
{
    if (!*text) {
        return false;
    }
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        bool alnum = (*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z');
        if (!alnum && !strchr("!#$%&'*+-.^_`|~", *p)) {
            return false;
        }
    }
    return true;
}

static bool is_host_byte(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '.' || c == '-' ||
           c == '_';
}

static bool is_port(const char *text)
{
    uint32_t port = 0;
    size_t n = 0;
    for (; text[n] >= '0' && text[n] <= '9' && n < 6; n++) {
        port = port * 10 + (uint32_t)(text[n] - '0');
    }
    return n > 0 && n < 6 && !text[n] && port <= 65535;
}

bool mf_http1_is_authority(const char *text)
{
    const char *p = text;
    if (*p == '[') {
        for (p++; (*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'f') || (*p >= 'A' && *p <= 'F') || *p == ':' ||
                  *p == '.';) {
            p++;
        }
        if (*p != ']' || p - text < 3) {
            return false;
        }
        p++;
    } else {
        while (is_host_byte(*p)) {
            p++;
        }
        if (p == text) {
            return false;
        }
    }
    return !*p || (*p == ':' && is_port(p + 1));
}

/* One byte of escaped text at *p, which moves on; -1: broken, or no byte that a path or query may stand for. */
static int next_byte(const char **p)
{
    int c = (unsigned char)*(*p)++;
    if (c == '%') {
        int high = mf_hex_digit(**p);
        int low = high < 0 ? -1 : mf_hex_digit((*p)[1]);
        if (low < 0) {
            return -1;
        }
        *p += 2;
        c = high * 16 + low;
    }
    return c < 0x20 || c >= 0x7f ? -1 : c;
}

/* The segment from `start` to `end` leads elsewhere: "." or "..". */
static bool is_dots(const char *start, const char *end)
{
    return (end - start == 1 && start[0] == '.') || (end - start == 2 && start[0] == '.' && start[1] == '.');
}

bool mf_http1_decode_path(char *path)
{
    char *out = path, *segment = path;
    for (const char *p = path; *p;) {
        bool escaped = *p == '%';
        int c = next_byte(&p);
        if (c < 0 || (c == '/' && escaped) || (c == '/' && is_dots(segment, out))) {
            return false;
        }
        *out++ = (char)c;
        if (c == '/') {
            segment = out;
        }
    }
    *out = '\0';
    return !is_dots(segment, out);
}

bool mf_http1_query_is_clean(const char *query)
{
    for (const char *p = query; *p;) {
        if (next_byte(&p) < 0) {
            return false;
        }
    }
    return true;
}

bool mf_http1_query_value(const char *query, const char *name, char *out, size_t size)
{
    size_t name_size = strlen(name);
    for (const char *p = query; *p;) {
        const char *end = p + strcspn(p, "&");
        const char *equals = memchr(p, '=', (size_t)(end - p));
        const char *name_end = equals ? equals : end;
        if ((size_t)(name_end - p) == name_size && memcmp(p, name, name_size) == 0) {
            size_t n = 0;
            for (const char *v = equals ? equals + 1 : end; v < end;) {
                int c = *v == '+' ? (v++, ' ') : next_byte(&v);
                if (c < 0 || n + 1 >= size) {
                    return false;
                }
                out[n++] = (char)c;
            }
            if (n >= size) {
                return false;
            }
            out[n] = '\0';
            return true;
        }
        p = *end ? end + 1 : end;
    }
    return false;
}
