/* log.c - see log.h. */
#include "base/log.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8_valid.h"

enum { MAX_LINE = 1024, MAX_ESCAPED = 2048 };

static mf_log_sink current_sink;
static void *current_context;
static mf_log_level current_least = MF_LOG_INFO;
static _Atomic int64_t num_dropped;

void mf_log_set_sink(mf_log_sink sink, void *context, mf_log_level least)
{
    current_sink = sink;
    current_context = context;
    current_least = least;
}

/* Bytes of the character at p, which is to stay as it is; 0: its first byte is to be escaped. */
static size_t size_of_plain(const unsigned char *p, size_t left)
{
    if (*p < 0x80) {
        return *p >= 0x20 && *p != 0x7f;
    }
    size_t size = *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : 2;
    if (size > left || !mf_utf8_valid((const char *)p, size, NULL)) {
        return 0;
    }
    return p[0] == 0xc2 && p[1] < 0xa0 ? 0 : size;
}

void mf_log_escape(const char *text, size_t size, char *out, size_t out_size)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *p = (const unsigned char *)text, *end = p + size;
    size_t used = 0;
    while (p < end) {
        size_t n = size_of_plain(p, (size_t)(end - p));
        if (used + (n ? n : 4) >= out_size) {
            break;
        }
        if (n) {
            memcpy(out + used, p, n);
            used += n;
            p += n;
        } else {
            const char escaped[] = { '\\', 'x', digits[*p >> 4], digits[*p & 15] };
            memcpy(out + used, escaped, sizeof escaped);
            used += sizeof escaped;
            p++;
        }
    }
    out[used] = '\0';
}

void mf_log(mf_log_level level, const char *fmt, ...)
{
    if (!current_sink || level < current_least) {
        return;
    }
    char line[MAX_LINE], escaped[MAX_ESCAPED];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    mf_log_escape(line, strlen(line), escaped, sizeof escaped);
    current_sink(current_context, level, escaped);
}

void mf_log_add_dropped(int64_t lines)
{
    atomic_fetch_add(&num_dropped, lines);
}

int64_t mf_log_num_dropped(void)
{
    return atomic_load(&num_dropped);
}
