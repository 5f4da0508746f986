/* tokenizer_json.c - the two large members of a tokenizer.json: see tokenizer_json.h. */
#include "text/tokenizer_json.h"

#include <string.h>

#include "base/hex.h"
#include "base/sys.h"
#include "text/utf8.h"

/* ---- finding them -------------------------------------------------------------------------------------------------
 */

typedef struct finder {
    const char *json;
    size_t size;
    int depth;
    bool in_model;        /* inside the object that is the top object's "model" */
    bool expects_key;     /* the next string at this depth is a key */
    size_t key, key_size; /* the last key at depth 1 or 2 */
    size_t value;         /* where the value of a wanted key at depth 2 begins; 0 = none is open */
    mf_json_span *open;   /* which of the two it is */
} finder;

static size_t skip_string(const char *json, size_t size, size_t at)
{
    for (at++; at < size && json[at] != '"'; at++) {
        at += json[at] == '\\';
    }
    return at < size ? at + 1 : size;
}

static bool key_is(const finder *f, const char *text)
{
    return f->key_size == strlen(text) && memcmp(f->json + f->key, text, f->key_size) == 0;
}

/* Only counts brackets: whether the file is JSON is for the two parsers to say, who between them read each byte. */
static void find_members(finder *f, mf_json_span *vocab, mf_json_span *merges)
{
    size_t at = 0;
    while (at < f->size) {
        char c = f->json[at];
        if (c == '"') {
            size_t end = skip_string(f->json, f->size, at);
            if (f->expects_key && (f->depth == 1 || (f->depth == 2 && f->in_model))) {
                f->key = at + 1;
                f->key_size = end - at >= 2 ? end - at - 2 : 0;
            }
            f->expects_key = false;
            at = end;
            continue;
        }
        if (c == '{' || c == '[') {
            if (f->depth == 1 && c == '{' && key_is(f, "model")) {
                f->in_model = true;
                f->key_size = 0;
            } else if (f->depth == 2 && f->in_model) {
                f->open = c == '{' && key_is(f, "vocab") ? vocab : c == '[' && key_is(f, "merges") ? merges : NULL;
                f->value = at;
            }
            f->depth++;
            f->expects_key = c == '{';
        } else if (c == '}' || c == ']') {
            f->depth--;
            if (f->depth == 2 && f->open) {
                /* A second member of the same name stays in the text, where it counts as a duplicate key. */
                if (f->open->end == 0) {
                    *f->open = (mf_json_span){ f->value, at + 1 };
                }
                f->open = NULL;
            }
            if (f->depth == 1) {
                f->in_model = false;
            }
        } else if (c == ',') {
            f->expects_key = f->depth == 1 || (f->depth == 2 && f->in_model);
        }
        at++;
    }
}

mf_status mf_tokenizer_json_parse(const char *json, size_t size, const char *name, json_t **root, mf_json_span *vocab,
                                  mf_json_span *merges, mf_error *err)
{
    *root = NULL;
    *vocab = *merges = (mf_json_span){ 0 };
    size_t bad_at = 0;
    if (!mf_utf8_valid(json, size, &bad_at)) {
        return mf_fail(err, MF_ERR_FORMAT, "%s: not valid UTF-8 at byte %zu", name, bad_at);
    }
    finder f = { .json = json, .size = size };
    find_members(&f, vocab, merges);
    const mf_json_span *first = vocab, *second = merges;
    if (merges->end != 0 && merges->start < vocab->start) {
        first = merges;
        second = vocab;
    }
    mf_buffer rest = { 0 };
    size_t at = 0;
    mf_status status = MF_OK;
    for (int i = 0; i < 2 && status == MF_OK; i++) {
        const mf_json_span *span = i == 0 ? first : second;
        if (span->end == 0) {
            continue;
        }
        status = mf_buffer_append(&rest, json + at, span->start - at);
        if (status == MF_OK) {
            status = mf_buffer_append_text(&rest, span == vocab ? "{}" : "[]");
        }
        at = span->end;
    }
    if (status == MF_OK) {
        status = mf_buffer_append(&rest, json + at, size - at);
    }
    if (status == MF_OK) {
        /* Added tokens are most of it: room for 18,000 of them. */
        mf_json_limits limits = { .max_values = 262144, .top_is_object = true };
        status = mf_json_parse(mf_buffer_text(&rest), rest.size, name, &limits, root, err);
    } else {
        status = mf_fail(err, status, "%s: out of memory", name);
    }
    mf_buffer_close(&rest);
    return status;
}

/* ---- reading them -------------------------------------------------------------------------------------------------
 */

static mf_status fail_at(const mf_json_cursor *c, mf_status status, const char *message)
{
    return mf_fail(c->err, status, "%s: %s: byte %zu: %s", c->name, c->member, c->at, message);
}

static char skip_space(mf_json_cursor *c)
{
    while (c->at < c->end &&
           (c->json[c->at] == ' ' || c->json[c->at] == '\t' || c->json[c->at] == '\n' || c->json[c->at] == '\r')) {
        c->at++;
    }
    return c->at < c->end ? c->json[c->at] : '\0';
}

static bool read_hex4(mf_json_cursor *c, uint32_t *value)
{
    return mf_hex_read(c->json, c->end, &c->at, 4, value) == 4;
}

/* Behind the backslash. */
static mf_status read_escape(mf_json_cursor *c, mf_buffer *out)
{
    static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    char letter = c->at < c->end ? c->json[c->at++] : '\0';
    const char *found = letter ? strchr(plain, letter) : NULL;
    if (found) {
        return mf_buffer_append(out, &meant[found - plain], 1);
    }
    uint32_t u = 0, low = 0;
    if (letter != 'u' || !read_hex4(c, &u)) {
        return fail_at(c, MF_ERR_FORMAT, "unknown escape in a string");
    }
    if (u >= 0xd800 && u <= 0xdbff) {
        if (c->end - c->at < 2 || c->json[c->at] != '\\' || c->json[c->at + 1] != 'u') {
            return fail_at(c, MF_ERR_FORMAT, "half of a surrogate pair in a string");
        }
        c->at += 2;
        if (!read_hex4(c, &low) || low < 0xdc00 || low > 0xdfff) {
            return fail_at(c, MF_ERR_FORMAT, "half of a surrogate pair in a string");
        }
        u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
    } else if (u == 0 || (u >= 0xdc00 && u <= 0xdfff)) {
        return fail_at(c, MF_ERR_FORMAT, u == 0 ? "a NUL in a string" : "half of a surrogate pair in a string");
    }
    char bytes[4];
    return mf_buffer_append(out, bytes, mf_utf8_put(u, bytes));
}

static mf_status read_string(mf_json_cursor *c, mf_buffer *out)
{
    mf_buffer_clear(out);
    if (skip_space(c) != '"') {
        return fail_at(c, MF_ERR_FORMAT, "expected a string");
    }
    c->at++;
    for (;;) {
        size_t begin = c->at;
        while (c->at < c->end && c->json[c->at] != '"' && c->json[c->at] != '\\' && (uint8_t)c->json[c->at] >= 0x20) {
            c->at++;
        }
        MF_TRY(mf_buffer_append(out, c->json + begin, c->at - begin));
        char stop = c->at < c->end ? c->json[c->at] : '\0';
        if (stop == '\\') {
            c->at++;
            MF_TRY(read_escape(c, out));
        } else if (stop == '"') {
            c->at++;
            return MF_OK;
        } else {
            return fail_at(c, MF_ERR_FORMAT, "a control character or the end of the file in a string");
        }
    }
}

static mf_status read_integer(mf_json_cursor *c, int64_t *value)
{
    char first = skip_space(c);
    size_t begin = c->at;
    *value = 0;
    while (c->at < c->end && c->json[c->at] >= '0' && c->json[c->at] <= '9' && c->at - begin < 10) {
        *value = *value * 10 + (c->json[c->at++] - '0');
    }
    char next = c->at < c->end ? c->json[c->at] : '\0';
    bool number_goes_on = (next >= '0' && next <= '9') || next == '.' || next == 'e' || next == 'E';
    if (c->at == begin || (first == '0' && c->at - begin > 1) || number_goes_on) {
        return fail_at(c, MF_ERR_FORMAT, "expected an integer from 0 to 1048575");
    }
    return MF_OK;
}

/* Steps over the opening bracket, a comma, or the closing bracket, which must be the span's last byte. */
static mf_status next_item(mf_json_cursor *c, char close, bool *more)
{
    if (!c->begun) {
        c->begun = true;
        c->at++;
        *more = skip_space(c) != close;
    } else {
        char sign = skip_space(c);
        *more = sign == ',';
        if (sign != ',' && sign != close) {
            return fail_at(c, MF_ERR_FORMAT, "expected ',' or the closing bracket");
        }
        c->at += *more;
    }
    if (!*more && c->at + 1 != c->end) {
        return fail_at(c, MF_ERR_FORMAT, "brackets that do not match");
    }
    return MF_OK;
}

static mf_status named(const mf_json_cursor *c, mf_status status)
{
    return status == MF_ERR_NOMEM ? fail_at(c, status, "out of memory") : status;
}

mf_status mf_json_next_token(mf_json_cursor *c, bool *more, int64_t *id)
{
    MF_TRY(next_item(c, '}', more));
    if (!*more) {
        return MF_OK;
    }
    MF_TRY(named(c, read_string(c, &c->text)));
    if (skip_space(c) != ':') {
        return fail_at(c, MF_ERR_FORMAT, "expected ':'");
    }
    c->at++;
    return read_integer(c, id);
}

mf_status mf_json_next_merge(mf_json_cursor *c, bool *more, bool *pair)
{
    MF_TRY(next_item(c, ']', more));
    if (!*more) {
        return MF_OK;
    }
    *pair = skip_space(c) == '[';
    if (!*pair) {
        return named(c, read_string(c, &c->text));
    }
    c->at++;
    MF_TRY(named(c, read_string(c, &c->text)));
    if (skip_space(c) != ',') {
        return fail_at(c, MF_ERR_FORMAT, "expected a merge of two strings");
    }
    c->at++;
    MF_TRY(named(c, read_string(c, &c->second)));
    if (skip_space(c) != ']') {
        return fail_at(c, MF_ERR_FORMAT, "expected a merge of two strings");
    }
    c->at++;
    return MF_OK;
}

void mf_json_cursor_close(mf_json_cursor *c)
{
    mf_buffer_close(&c->text);
    mf_buffer_close(&c->second);
}
