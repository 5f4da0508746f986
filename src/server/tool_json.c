/* tool_json.c - see tool_json.h. */
#include "server/tool_json.h"

#include <string.h>

#include "base/json.h"

enum { MAX_NAME_BYTES = 256, MAX_HEAD_BYTES = 1024 };

size_t mf_json_scan_run(mf_json_scan *scan, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (scan->in_string) {
            if (scan->escaped) {
                scan->escaped = false;
            } else if (c == '\\') {
                scan->escaped = true;
            } else if (c == '"') {
                scan->in_string = false;
            }
        } else if (c == '"') {
            scan->in_string = true;
        } else if (c == '{' || c == '[') {
            scan->depth++;
        } else if ((c == '}' || c == ']') && --scan->depth <= 0) {
            scan->done = true;
            return i + 1;
        } else if (c == '<') {
            scan->done = true;
            return i;
        }
    }
    return size;
}

/* ---- the head of a call ---------------------------------------------------------------------------------------------
 */

typedef struct cursor {
    const char *text;
    size_t size, at;
    mf_head_found found; /* YES until something is missing (PART) or wrong (NO) */
} cursor;

static void skip_space(cursor *c)
{
    while (c->at < c->size &&
           (c->text[c->at] == ' ' || c->text[c->at] == '\t' || c->text[c->at] == '\n' || c->text[c->at] == '\r')) {
        c->at++;
    }
}

static void expect(cursor *c, const char *literal)
{
    if (c->found != MF_HEAD_YES) {
        return;
    }
    skip_space(c);
    size_t size = strlen(literal), left = c->size - c->at, n = left < size ? left : size;
    if (memcmp(c->text + c->at, literal, n) != 0) {
        c->found = MF_HEAD_NO;
    } else if (n < size) {
        c->found = MF_HEAD_PART;
    }
    c->at += n;
}

static void expect_name(cursor *c, mf_call_head *head)
{
    expect(c, "\"");
    if (c->found != MF_HEAD_YES) {
        return;
    }
    head->name_at = c->at;
    while (c->at < c->size && c->text[c->at] != '"' && c->text[c->at] != '\\' &&
           (unsigned char)c->text[c->at] >= 0x20 && c->at - head->name_at <= MAX_NAME_BYTES) {
        c->at++;
    }
    head->name_size = c->at - head->name_at;
    if (c->at == c->size && head->name_size <= MAX_NAME_BYTES) {
        c->found = MF_HEAD_PART;
    } else if (c->text[c->at] != '"' || head->name_size < 1 || head->name_size > MAX_NAME_BYTES) {
        c->found = MF_HEAD_NO;
    }
    c->at++;
}

/* Their first letters tell the two keys apart. */
static void expect_arguments(cursor *c)
{
    if (c->found == MF_HEAD_YES) {
        skip_space(c);
        bool parameters = c->at + 1 < c->size && c->text[c->at + 1] == 'p';
        expect(c, parameters ? "\"parameters\"" : "\"arguments\"");
    }
}

mf_head_found mf_call_head_read(const char *text, size_t size, mf_call_head *head)
{
    cursor c = { .text = text, .size = size, .found = MF_HEAD_YES };
    expect(&c, "{");
    expect(&c, "\"name\"");
    expect(&c, ":");
    expect_name(&c, head);
    expect(&c, ",");
    expect_arguments(&c);
    expect(&c, ":");
    expect(&c, "{");
    head->arguments_at = c.at - 1;
    /* White space without end is no head. */
    return c.at > MAX_HEAD_BYTES ? MF_HEAD_NO : c.found;
}

/* ---- a whole call ---------------------------------------------------------------------------------------------------
 */

/* The text of member `key` of an object that is known to be well formed; the value begins with a brace. */
static bool find_member(const char *text, size_t size, const char *key, const char **value, size_t *value_size)
{
    mf_json_scan scan = { 0 };
    size_t key_size = strlen(key);
    for (size_t i = 0; i < size; i++) {
        bool key_begins =
            !scan.in_string && scan.depth == 1 && size - i > key_size && memcmp(text + i, key, key_size) == 0;
        if (key_begins) {
            cursor c = { .text = text, .size = size, .at = i + key_size, .found = MF_HEAD_YES };
            expect(&c, ":");
            expect(&c, "{");
            if (c.found == MF_HEAD_YES) {
                mf_json_scan inner = { 0 };
                *value = text + c.at - 1;
                *value_size = mf_json_scan_run(&inner, *value, size - (c.at - 1));
                return inner.done;
            }
        }
        mf_json_scan_run(&scan, text + i, 1);
    }
    return false;
}

static bool is_object_text(const json_t *string)
{
    json_t *value = NULL;
    static const mf_json_limits limits = { .top_is_object = true, .allow_nul = true };
    bool ok = mf_json_parse(json_string_value(string), json_string_length(string), "arguments", &limits, &value,
                            NULL) == MF_OK;
    json_decref(value);
    return ok;
}

bool mf_call_text_read(const char *text, size_t size, mf_call_text *call)
{
    static const mf_json_limits limits = { .top_is_object = true, .allow_nul = true };
    *call = (mf_call_text){ .arguments = "{}", .arguments_size = 2 };
    if (mf_json_parse(text, size, "call", &limits, &call->document, NULL) != MF_OK) {
        return false;
    }
    call->name = json_object_get(call->document, "name");
    const char *key = json_object_get(call->document, "arguments") ? "arguments" : "parameters";
    const json_t *arguments = json_object_get(call->document, key);
    size_t name_size = json_string_length(call->name);
    bool ok = json_is_string(call->name) && name_size >= 1 && name_size <= MAX_NAME_BYTES &&
              !memchr(json_string_value(call->name), 0, name_size);
    if (ok && json_is_object(arguments)) {
        ok = find_member(text, size, strcmp(key, "arguments") == 0 ? "\"arguments\"" : "\"parameters\"",
                         &call->arguments, &call->arguments_size);
    } else if (ok && json_is_string(arguments)) {
        ok = is_object_text(arguments);
        call->arguments = json_string_value(arguments);
        call->arguments_size = json_string_length(arguments);
    } else if (ok) {
        ok = !arguments || json_is_null(arguments);
    }
    if (!ok) {
        mf_call_text_close(call);
    }
    return ok;
}

void mf_call_text_close(mf_call_text *call)
{
    json_decref(call->document);
    *call = (mf_call_text){ .document = NULL };
}

mf_status mf_json_write_string(const char *text, size_t size, mf_buffer *out)
{
    MF_TRY(mf_buffer_append(out, "\"", 1));
    size_t plain = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') {
            continue;
        }
        MF_TRY(mf_buffer_append(out, text + plain, i - plain));
        plain = i + 1;
        switch (c) {
        case '"':
            MF_TRY(mf_buffer_append(out, "\\\"", 2));
            break;
        case '\\':
            MF_TRY(mf_buffer_append(out, "\\\\", 2));
            break;
        case '\n':
            MF_TRY(mf_buffer_append(out, "\\n", 2));
            break;
        case '\t':
            MF_TRY(mf_buffer_append(out, "\\t", 2));
            break;
        case '\r':
            MF_TRY(mf_buffer_append(out, "\\r", 2));
            break;
        default:
            MF_TRY(mf_buffer_printf(out, "\\u%04x", c));
            break;
        }
    }
    MF_TRY(mf_buffer_append(out, text + plain, size - plain));
    return mf_buffer_append(out, "\"", 1);
}
