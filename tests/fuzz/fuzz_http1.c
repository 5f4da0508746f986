/* fuzz_http1.c - any bytes as HTTP requests, one after the other: cut at random places they read exactly as in one
 * piece, and what is accepted obeys the rules. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "server/http1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact)
{
    if (!fact) {
        abort();
    }
}

typedef struct trace {
    uint64_t hash; /* of every event that does not depend on cuts, and of all body bytes */
    size_t used;
} trace;

static void mix(trace *t, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        t->hash = (t->hash ^ ((const uint8_t *)bytes)[i]) * UINT64_C(0x100000001b3);
    }
}

static void mix_text(trace *t, const char *text)
{
    mix(t, text, strlen(text) + 1);
}

static void check_head(trace *t, const mf_http1 *p)
{
    const char *path = mf_http1_text(p, p->path), *query = mf_http1_text(p, p->query);
    require(mf_http1_is_token(mf_http1_text(p, p->method)));
    require(p->is_asterisk ? strcmp(path, "*") == 0 : path[0] == '/');
    require(!strstr(path, "/../") && p->num_fields <= p->limits.num_fields && p->head_size <= p->limits.head_bytes);
    require(!(p->chunked && p->content_length >= 0) && !(p->minor == 0 && p->chunked));
    require(p->minor == 0 || mf_http1_is_authority(mf_http1_host(p)));
    mix_text(t, mf_http1_text(p, p->method));
    mix_text(t, path);
    mix_text(t, query);
    mix(t, &p->content_length, sizeof p->content_length);
    mix(t, &(bool[3]){ p->keep_alive, p->chunked, p->expects_continue }, 3);
    for (int32_t i = 0; i < p->num_fields; i++) {
        const char *name = mf_http1_text(p, p->fields[i].name), *value = mf_http1_text(p, p->fields[i].value);
        require(mf_http1_is_token(name) && mf_http1_find(p, name));
        for (const unsigned char *v = (const unsigned char *)value; *v; v++) {
            require(*v == '\t' || (*v >= 0x20 && *v != 0x7f));
        }
        mix_text(t, name);
        mix_text(t, value);
        mix(t, &(bool[2]){ mf_http1_is_token(value), mf_http1_is_authority(value) }, 2);
    }
    require(!mf_http1_find(p, "no such name"));
    char value[16];
    if (mf_http1_query_value(query, "window", value, sizeof value)) {
        mix_text(t, value);
    }
}

/* seed 0: in one piece */
static trace run(const uint8_t *data, size_t size, uint64_t seed)
{
    static const mf_http1_limits limits = { .head_bytes = 512, .url_bytes = 64, .body_bytes = 256, .num_fields = 8 };
    trace t = { .hash = 1 };
    mf_http1 parser;
    mf_http1_init(&parser, &limits);
    size_t end = seed ? 0 : size;
    for (;;) {
        const void *body;
        size_t used, body_size;
        mf_http1_event event = mf_http1_feed(&parser, data + t.used, end - t.used, &used, &body, &body_size);
        require(used <= end - t.used);
        t.used += used;
        if (event == MF_HTTP1_HEAD) {
            check_head(&t, &parser);
        } else if (event == MF_HTTP1_BODY) {
            require(body_size > 0 && (const uint8_t *)body + body_size == data + t.used);
            mix(&t, body, body_size);
        } else if (event == MF_HTTP1_DONE) {
            mix(&t, &t.used, sizeof t.used);
            mf_http1_reset(&parser);
        } else if (event == MF_HTTP1_FAILED) {
            require(parser.status >= 400 && parser.status < 500 && parser.problem[0]);
            mix(&t, &parser.status, sizeof parser.status);
            break;
        } else if (end == size) {
            require(t.used == size);
            break;
        } else {
            end += 1 + (size_t)mf_random_below(&seed, 12);
            end = end < size ? end : size;
        }
    }
    mf_http1_close(&parser);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    trace whole = run(data, size, 0);
    uint64_t seed = size + 1;
    for (size_t i = 0; i < size; i++) {
        seed = mf_random_mix(seed ^ data[i]);
    }
    for (int i = 0; i < 3; i++) {
        trace cut = run(data, size, (seed + (uint64_t)i) | 1);
        require(whole.hash == cut.hash && whole.used == cut.used);
    }
    return 0;
}
