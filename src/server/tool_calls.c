/* tool_calls.c - the parser of answers: see tool_calls.h.
 *
 * Text that is not settled waits in `in` from `at` on.  Each state looks at it and moves on, or waits for more; what it
 * decides depends on the text alone, never on where it was cut. */
#include "server/tool_calls.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "server/tool_json.h"

typedef enum parser_state {
    STATE_START = 0, /* reasoning may begin here */
    STATE_REASONING,
    STATE_CONTENT,
    STATE_SECTION,   /* `at` is where section_begin stands */
    STATE_CALL,      /* `at` is where call_begin stands */
    STATE_WHOLE,     /* the same, and the call is read when its end is there */
    STATE_ARGUMENTS, /* `at` is inside a JSON object */
    STATE_TAIL,      /* behind it */
    STATE_PAIRS,     /* arg_key, arg_value pairs */
    STATE_BETWEEN,   /* behind a call */
    STATE_NAMED,     /* everything is arguments */
    STATE_LIST,      /* the list's bracket, or a comma, comes next */
    STATE_ITEM,      /* a call of the list */
    STATE_REST,      /* of a list, read at the end */
    STATE_LIST_END,  /* behind the list's bracket */
    STATE_PLAIN      /* everything is content */
} parser_state;

/* A head, a name or what stands before the arguments is this long at most. */
enum { MAX_HEAD_BYTES = 1024, MAX_NAME_BYTES = 256, ID_BYTES = MAX_NAME_BYTES + 1 };

struct mf_answer_parser {
    mf_answer_options options;
    mf_answer_emit emit;
    void *context;
    parser_state state;
    mf_buffer in;
    size_t at;       /* what lies before is settled */
    size_t searched; /* STATE_WHOLE, STATE_PAIRS: no end begins before */
    bool final;      /* no more text comes */
    bool in_section;
    bool fenced;   /* this call's arguments stand between fences */
    bool has_pair; /* PAIRS: one was written */
    mf_json_scan scan;
    int32_t num_calls;
    mf_status status; /* of emit, or of memory: sticky */
};

typedef enum found { FOUND_NO = 0, FOUND_PART, FOUND_YES } found;
typedef enum step { STEP_WAIT = 0, STEP_ON } step;

static const char think_begin[] = "<think>", think_end[] = "</think>";

/* ---- looking at the text --------------------------------------------------------------------------------------------
 */

/* Is `marker` at pos?  PART: the text ends inside it. */
static found at_marker(const mf_answer_parser *p, size_t pos, const char *marker)
{
    if (!marker) {
        return FOUND_NO;
    }
    size_t size = strlen(marker), left = p->in.size - pos;
    if (left >= size) {
        return memcmp(p->in.data + pos, marker, size) == 0 ? FOUND_YES : FOUND_NO;
    }
    return left == 0 || memcmp(p->in.data + pos, marker, left) == 0 ? FOUND_PART : FOUND_NO;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static size_t skip_space(const mf_answer_parser *p, size_t pos)
{
    while (pos < p->in.size && is_space(p->in.data[pos])) {
        pos++;
    }
    return pos;
}

/* The first place from pos on where one of the markers is, or may be when the text ends inside one; else the text's
 * end. */
static found find_marker(const mf_answer_parser *p, size_t pos, const char *const *markers, size_t count, size_t *where,
                         size_t *which)
{
    while (pos < p->in.size) {
        const char *next = memchr(p->in.data + pos, '<', p->in.size - pos);
        if (!next) {
            break;
        }
        pos = (size_t)(next - p->in.data);
        for (size_t i = 0; i < count; i++) {
            found f = at_marker(p, pos, markers[i]);
            if (f == FOUND_YES || (f == FOUND_PART && !p->final)) {
                *where = pos;
                *which = i;
                return f;
            }
        }
        pos++;
    }
    *where = p->in.size;
    return FOUND_NO;
}

/* ---- giving out -----------------------------------------------------------------------------------------------------
 */

static void give(mf_answer_parser *p, mf_answer_kind kind, const char *text, size_t size)
{
    if (size > 0 && p->status == MF_OK) {
        mf_answer_piece piece = { .kind = kind, .index = p->num_calls - 1, .text = text, .size = size };
        p->status = p->emit(p->context, &piece);
    }
}

/* What lies from `at` to `end`. */
static void give_to(mf_answer_parser *p, mf_answer_kind kind, size_t end)
{
    give(p, kind, p->in.data + p->at, end - p->at);
    p->at = end;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* id_size 0: one is made. */
static void begin_call(mf_answer_parser *p, const char *name, size_t name_size, const char *id, size_t id_size)
{
    char name_text[MAX_NAME_BYTES + 1], id_text[ID_BYTES];
    snprintf(name_text, sizeof name_text, "%.*s", (int)name_size, name);
    if (id_size > 0) {
        snprintf(id_text, sizeof id_text, "%.*s", (int)id_size, id);
    } else {
        uint64_t first = mix(p->options.id_seed + (uint64_t)p->num_calls);
        snprintf(id_text, sizeof id_text, "call_%016llx%08x", (unsigned long long)first, (unsigned)(mix(first) >> 32));
    }
    mf_answer_piece piece = { .kind = MF_ANSWER_CALL, .index = p->num_calls++, .id = id_text, .name = name_text };
    if (p->status == MF_OK) {
        p->status = p->emit(p->context, &piece);
    }
}

static step go(mf_answer_parser *p, parser_state state)
{
    p->state = state;
    return STEP_ON;
}

/* What stands at `at` is no call after all: the marker is content, and what follows is looked at anew. */
static step no_call(mf_answer_parser *p, const char *marker)
{
    give_to(p, MF_ANSWER_CONTENT, p->at + strlen(marker));
    p->in_section = false;
    return go(p, STATE_CONTENT);
}

/* Waits when more may come, else it is no call. */
static step wait_or_no_call(mf_answer_parser *p, const char *marker)
{
    return p->final ? no_call(p, marker) : STEP_WAIT;
}

/* ---- reasoning, content ---------------------------------------------------------------------------------------------
 */

static step step_start(mf_answer_parser *p)
{
    size_t pos = skip_space(p, p->at);
    found f = at_marker(p, pos, think_begin);
    if (f == FOUND_PART && !p->final) {
        return STEP_WAIT;
    }
    if (f == FOUND_YES) {
        p->at = pos + sizeof think_begin - 1;
        return go(p, STATE_REASONING);
    }
    return go(p, STATE_CONTENT);
}

static step step_reasoning(mf_answer_parser *p)
{
    static const char *const markers[] = { think_end };
    size_t where, which;
    found f = find_marker(p, p->at, markers, 1, &where, &which);
    give_to(p, MF_ANSWER_REASONING, where);
    if (f != FOUND_YES) {
        return STEP_WAIT;
    }
    p->at += sizeof think_end - 1;
    return go(p, STATE_CONTENT);
}

static step step_content(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    const char *const markers[] = { format->call_begin, format->section_begin };
    size_t where = p->in.size, which = 0;
    found f = p->options.calls ? find_marker(p, p->at, markers, 2, &where, &which) : FOUND_NO;
    give_to(p, MF_ANSWER_CONTENT, where);
    return f == FOUND_YES ? go(p, which == 0 ? STATE_CALL : STATE_SECTION) : STEP_WAIT;
}

static step step_section(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t pos = skip_space(p, p->at + strlen(format->section_begin));
    switch (at_marker(p, pos, format->call_begin)) {
    case FOUND_YES:
        /* The section's marker comes back as content should the call be none. */
        return go(p, STATE_CALL);
    case FOUND_PART:
        return wait_or_no_call(p, format->section_begin);
    default:
        return no_call(p, format->section_begin);
    }
}

static step step_between(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t pos = skip_space(p, p->at);
    if (pos == p->in.size) {
        p->at = p->final ? pos : p->at; /* white space behind the last call */
        return STEP_WAIT;
    }
    const char *const markers[] = { format->call_begin, format->section_begin,
                                    p->in_section ? format->section_end : NULL };
    for (size_t i = 0; i < 3; i++) {
        found f = at_marker(p, pos, markers[i]);
        if (f == FOUND_PART && !p->final) {
            return STEP_WAIT;
        }
        if (f == FOUND_YES) {
            p->at = i == 2 ? pos + strlen(markers[2]) : pos;
            p->in_section = p->in_section && i != 2;
            return i == 2 ? STEP_ON : go(p, i == 0 ? STATE_CALL : STATE_SECTION);
        }
    }
    p->in_section = false;
    return go(p, STATE_CONTENT);
}

/* ---- calls ----------------------------------------------------------------------------------------------------------
 */

/* Where the call's own marker begins: behind the section's, when both are still there. */
static size_t call_at(const mf_answer_parser *p)
{
    const char *section = p->options.format->section_begin;
    return at_marker(p, p->at, section) == FOUND_YES ? skip_space(p, p->at + strlen(section)) : p->at;
}

static const char *outer_marker(const mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    return call_at(p) == p->at ? format->call_begin : format->section_begin;
}

static bool is_name(const char *name, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        bool ok = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
                  c == '.';
        if (!ok) {
            return false;
        }
    }
    return size >= 1 && size <= MAX_NAME_BYTES;
}

static step enter_arguments(mf_answer_parser *p, size_t arguments)
{
    p->in_section = call_at(p) != p->at || p->in_section;
    p->at = arguments;
    p->scan = (mf_json_scan){ 0 };
    return go(p, STATE_ARGUMENTS);
}

/* {"name": NAME, "arguments": { in this order is given out as it comes; anything else when it is whole. */
static step step_object(mf_answer_parser *p, size_t body)
{
    mf_call_head head;
    switch (mf_call_head_read(p->in.data + body, p->in.size - body, &head)) {
    case MF_HEAD_YES:
        begin_call(p, p->in.data + body + head.name_at, head.name_size, NULL, 0);
        return enter_arguments(p, body + head.arguments_at);
    case MF_HEAD_PART:
        if (!p->final) {
            return STEP_WAIT;
        }
        return no_call(p, outer_marker(p));
    default:
        p->searched = body;
        return go(p, STATE_WHOLE);
    }
}

static step step_whole(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t body = call_at(p) + strlen(format->call_begin), where, which;
    const char *const markers[] = { format->call_end, format->call_begin };
    found f = find_marker(p, p->searched, markers, 2, &where, &which);
    p->searched = where;
    if (f != FOUND_YES && !p->final) {
        return STEP_WAIT;
    }
    mf_call_text call;
    if (f != FOUND_YES || which != 0 || !mf_call_text_read(p->in.data + body, where - body, &call)) {
        return no_call(p, outer_marker(p));
    }
    begin_call(p, json_string_value(call.name), json_string_length(call.name), NULL, 0);
    give(p, MF_ANSWER_ARGUMENTS, call.arguments, call.arguments_size);
    mf_call_text_close(&call);
    p->at = where + strlen(format->call_end);
    return go(p, STATE_BETWEEN);
}

/* functions.NAME:INDEX, which is an id too, or a name. */
static bool head_name(const mf_tool_format *format, const char *head, size_t size, const char **name, size_t *name_size,
                      bool *is_id)
{
    static const char prefix[] = "functions.";
    *name = head;
    *name_size = size;
    *is_id = false;
    if (!format->head_is_id) {
        return is_name(head, size);
    }
    size_t digits = 0;
    while (digits < size && head[size - 1 - digits] >= '0' && head[size - 1 - digits] <= '9') {
        digits++;
    }
    if (digits > 0 && digits < size && head[size - 1 - digits] == ':') {
        *name_size = size - digits - 1;
        *is_id = true;
    }
    if (*name_size >= sizeof prefix - 1 && memcmp(head, prefix, sizeof prefix - 1) == 0) {
        *name += sizeof prefix - 1;
        *name_size -= sizeof prefix - 1;
    }
    return is_name(*name, *name_size) && size < ID_BYTES;
}

static size_t trim_end(const mf_answer_parser *p, size_t start, size_t end)
{
    while (end > start && is_space(p->in.data[end - 1])) {
        end--;
    }
    return end;
}

/* "function" SEPARATOR NAME ```json {: *start, *end get the name, *after what follows the fence. */
static found read_fence(const mf_answer_parser *p, size_t pos, size_t *start, size_t *end, size_t *after)
{
    static const char fence[] = "```json";
    *start = pos = skip_space(p, pos);
    while (pos < p->in.size && p->in.data[pos] != '`' && p->in.data[pos] != '<' && pos - *start <= MAX_NAME_BYTES) {
        pos++;
    }
    if (pos == p->in.size) {
        return FOUND_PART;
    }
    found f = at_marker(p, pos, fence);
    *end = trim_end(p, *start, pos);
    *after = pos + sizeof fence - 1;
    return f;
}

static step step_separated(mf_answer_parser *p, size_t body)
{
    const mf_tool_format *format = p->options.format;
    const char *const markers[] = { format->separator, format->call_begin, format->call_end, format->section_begin,
                                    format->section_end };
    const char *outer = outer_marker(p);
    size_t where, which = 0;
    found f = find_marker(p, body, markers, 5, &where, &which);
    if (f != FOUND_YES && where - body <= MAX_HEAD_BYTES) {
        return wait_or_no_call(p, outer);
    }
    if (f != FOUND_YES || which != 0 || where - body > MAX_HEAD_BYTES) {
        return no_call(p, outer);
    }
    size_t start = skip_space(p, body), end, after = where + strlen(format->separator);
    end = trim_end(p, start, where);
    size_t pos = skip_space(p, after);
    if (pos == p->in.size) {
        return wait_or_no_call(p, outer);
    }
    size_t head_at = start, head_end = end;
    p->fenced =
        format->fenced && p->in.data[pos] != '{' && end - start == 8 && memcmp(p->in.data + start, "function", 8) == 0;
    if (p->fenced) {
        switch (read_fence(p, pos, &start, &end, &after)) {
        case FOUND_NO:
            return no_call(p, outer);
        case FOUND_PART:
            return wait_or_no_call(p, outer);
        default:
            break;
        }
        pos = skip_space(p, after);
        if (pos == p->in.size) {
            return wait_or_no_call(p, outer);
        }
    }
    const char *name;
    size_t name_size;
    bool is_id;
    if (!head_name(format, p->in.data + start, end - start, &name, &name_size, &is_id)) {
        return no_call(p, outer);
    }
    found ends = p->in.data[pos] == '{' ? FOUND_NO : at_marker(p, pos, format->call_end);
    if (ends == FOUND_PART) {
        return wait_or_no_call(p, outer);
    }
    if (ends == FOUND_NO && p->in.data[pos] != '{') {
        return no_call(p, outer);
    }
    begin_call(p, name, name_size, p->in.data + head_at, is_id ? head_end - head_at : 0);
    if (ends == FOUND_YES) {
        give(p, MF_ANSWER_ARGUMENTS, "{}", 2); /* no arguments at all */
        enter_arguments(p, pos);
        return go(p, STATE_TAIL);
    }
    return enter_arguments(p, pos);
}

/* ---- arguments ------------------------------------------------------------------------------------------------------
 */

static step step_arguments(mf_answer_parser *p)
{
    size_t taken = mf_json_scan_run(&p->scan, p->in.data + p->at, p->in.size - p->at);
    give_to(p, MF_ANSWER_ARGUMENTS, p->at + taken);
    if (!p->scan.done) {
        return STEP_WAIT;
    }
    return go(p, p->options.choice == MF_TOOLS_REQUIRED ? STATE_LIST : STATE_TAIL);
}

/* Behind the arguments: the object's brace or the fence, then the call's end.  Anything else is content. */
static step step_tail(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    const char *closing = format->syntax == MF_CALL_SEPARATED ? (p->fenced ? "```" : NULL) : "}";
    size_t pos = skip_space(p, p->at);
    found f = at_marker(p, pos, closing);
    if (f == FOUND_YES) {
        pos = skip_space(p, pos + strlen(closing));
    }
    if (f != FOUND_PART) {
        f = at_marker(p, pos, format->call_end);
    }
    if (f == FOUND_PART) {
        p->at = p->final ? p->in.size : p->at; /* an end that was cut */
        return STEP_WAIT;
    }
    if (f == FOUND_NO) {
        p->in_section = false;
        return go(p, STATE_CONTENT);
    }
    p->at = pos + strlen(format->call_end);
    return go(p, STATE_BETWEEN);
}

/* ---- pairs ----------------------------------------------------------------------------------------------------------
 */

static step step_pairs_begin(mf_answer_parser *p, size_t body)
{
    size_t start = skip_space(p, body), end = start;
    const char *outer = outer_marker(p);
    if (start < p->in.size && p->in.data[start] == '{') {
        return step_object(p, body);
    }
    while (end < p->in.size && p->in.data[end] != '\n' && p->in.data[end] != '<' && end - start <= MAX_NAME_BYTES) {
        end++;
    }
    size_t pos = skip_space(p, end);
    if (pos == p->in.size && end - start <= MAX_NAME_BYTES) {
        return wait_or_no_call(p, outer);
    }
    found key = at_marker(p, pos, "<arg_key>"), over = at_marker(p, pos, p->options.format->call_end);
    if (key != FOUND_YES && over != FOUND_YES && (key == FOUND_PART || over == FOUND_PART)) {
        return wait_or_no_call(p, outer);
    }
    size_t name_end = trim_end(p, start, end);
    if ((key != FOUND_YES && over != FOUND_YES) || !is_name(p->in.data + start, name_end - start)) {
        return no_call(p, outer);
    }
    begin_call(p, p->in.data + start, name_end - start, NULL, 0);
    give(p, MF_ANSWER_ARGUMENTS, "{", 1);
    p->has_pair = false;
    p->at = p->searched = pos;
    return go(p, STATE_PAIRS);
}

static const json_t *schema_of_argument(const mf_answer_parser *p, const char *key, size_t size)
{
    /* The last call's name is not kept: an argument of this name has one type in all tools, or it is looked at as JSON.
     */
    const json_t *type = NULL;
    for (size_t i = 0; i < json_array_size(p->options.tools); i++) {
        const json_t *parameters =
            json_object_get(json_object_get(json_array_get(p->options.tools, i), "function"), "parameters");
        const json_t *schema = json_object_getn(json_object_get(parameters, "properties"), key, size);
        const json_t *this_type = json_object_get(schema, "type");
        if (this_type && type && !json_equal((json_t *)this_type, (json_t *)type)) {
            return NULL;
        }
        type = this_type ? this_type : type;
    }
    return type;
}

/* A value stands for itself when it is JSON and not said to be a string. */
static mf_status write_value(const mf_answer_parser *p, const char *key, size_t key_size, const char *text, size_t size,
                             mf_buffer *out)
{
    const json_t *type = schema_of_argument(p, key, key_size);
    json_t *value = NULL;
    bool string = json_is_string(type) && strcmp(json_string_value(type), "string") == 0;
    if (!string && mf_json_parse(text, size, "value", NULL, &value, NULL) == MF_OK) {
        json_decref(value);
        return mf_buffer_append(out, text, size);
    }
    return mf_json_write_string(text, size, out);
}

static void give_pair(mf_answer_parser *p, const char *key, size_t key_size, const char *text, size_t size)
{
    mf_buffer pair = { 0 };
    mf_status status = mf_buffer_append_text(&pair, p->has_pair ? ", " : "");
    status = status == MF_OK ? mf_json_write_string(key, key_size, &pair) : status;
    status = status == MF_OK ? mf_buffer_append_text(&pair, ": ") : status;
    status = status == MF_OK ? write_value(p, key, key_size, text, size, &pair) : status;
    if (status == MF_OK) {
        give(p, MF_ANSWER_ARGUMENTS, pair.data, pair.size);
    } else if (p->status == MF_OK) {
        p->status = status;
    }
    p->has_pair = true;
    mf_buffer_close(&pair);
}

static step end_pairs(mf_answer_parser *p, size_t at, parser_state state)
{
    give(p, MF_ANSWER_ARGUMENTS, "}", 1);
    p->at = at;
    return go(p, state);
}

/* The pair at `pos`, where its key's tag begins: STEP_ON when it was given out. */
static step read_pair(mf_answer_parser *p, size_t pos)
{
    static const char value_begin[] = "<arg_value>";
    static const char *const key_end[] = { "</arg_key>" }, *const value_end[] = { "</arg_value>" };
    size_t key = pos + strlen("<arg_key>"), end, which;
    found f = find_marker(p, key, key_end, 1, &end, &which);
    size_t key_size = end - key;
    if (f != FOUND_YES || key_size > MAX_HEAD_BYTES) {
        return p->final || key_size > MAX_HEAD_BYTES ? end_pairs(p, p->at, STATE_CONTENT) : STEP_WAIT;
    }
    pos = skip_space(p, end + strlen(key_end[0]));
    f = at_marker(p, pos, value_begin);
    if (f != FOUND_YES) {
        return f == FOUND_PART && !p->final ? STEP_WAIT : end_pairs(p, p->at, STATE_CONTENT);
    }
    size_t text = pos + sizeof value_begin - 1;
    f = find_marker(p, p->searched > text ? p->searched : text, value_end, 1, &end, &which);
    if (f != FOUND_YES && !p->final) {
        p->searched = end;
        return STEP_WAIT;
    }
    give_pair(p, p->in.data + key, key_size, p->in.data + text, end - text);
    if (f != FOUND_YES) {
        p->at = p->in.size; /* cut inside a value: no brace, as the arguments are not whole */
        return STEP_WAIT;
    }
    p->at = end + strlen(value_end[0]);
    return STEP_ON;
}

static step step_pairs(mf_answer_parser *p)
{
    const char *call_end = p->options.format->call_end;
    size_t pos = skip_space(p, p->at);
    found over = at_marker(p, pos, call_end), begins = at_marker(p, pos, "<arg_key>");
    if (over == FOUND_YES) {
        return end_pairs(p, pos + strlen(call_end), STATE_BETWEEN);
    }
    if (begins == FOUND_YES) {
        return read_pair(p, pos);
    }
    bool part = over == FOUND_PART || begins == FOUND_PART;
    if (part && !p->final) {
        return STEP_WAIT;
    }
    return end_pairs(p, part ? p->in.size : p->at, STATE_CONTENT);
}

/* ---- forced calls ---------------------------------------------------------------------------------------------------
 */

static step step_named(mf_answer_parser *p)
{
    if (p->at < p->in.size && p->num_calls == 0) {
        begin_call(p, p->options.tool_name, strlen(p->options.tool_name), NULL, 0);
    }
    give_to(p, MF_ANSWER_ARGUMENTS, p->in.size);
    return STEP_WAIT;
}

/* [ ITEM , ITEM ]: `at` is before the bracket, or behind an item's arguments. */
static step step_list(mf_answer_parser *p)
{
    size_t pos = skip_space(p, p->at);
    if (p->num_calls > 0 && pos < p->in.size && p->in.data[pos] == '}') {
        pos = skip_space(p, pos + 1);
    }
    if (pos == p->in.size) {
        p->at = p->final && p->num_calls > 0 ? pos : p->at;
        return p->final && p->num_calls == 0 ? go(p, STATE_PLAIN) : STEP_WAIT;
    }
    char c = p->in.data[pos];
    if (c == (p->num_calls > 0 ? ',' : '[')) {
        p->at = pos + 1;
        return go(p, STATE_ITEM);
    }
    if (p->num_calls > 0 && c == ']') {
        p->at = pos + 1;
        return go(p, STATE_LIST_END);
    }
    return go(p, STATE_PLAIN);
}

static step step_list_end(mf_answer_parser *p)
{
    if (skip_space(p, p->at) < p->in.size) {
        return go(p, STATE_PLAIN);
    }
    p->at = p->final ? p->in.size : p->at;
    return STEP_WAIT;
}

static step step_item(mf_answer_parser *p)
{
    mf_call_head head;
    switch (mf_call_head_read(p->in.data + p->at, p->in.size - p->at, &head)) {
    case MF_HEAD_YES:
        begin_call(p, p->in.data + p->at + head.name_at, head.name_size, NULL, 0);
        return enter_arguments(p, p->at + head.arguments_at);
    case MF_HEAD_PART:
        if (!p->final) {
            return STEP_WAIT;
        }
        return go(p, STATE_REST);
    default:
        return go(p, STATE_REST);
    }
}

/* Items in another order of members: read when all is there.  `at` is behind the bracket or comma. */
static step step_rest(mf_answer_parser *p)
{
    if (!p->final) {
        return STEP_WAIT;
    }
    size_t pos = p->at;
    for (;;) {
        mf_json_scan scan = { 0 };
        pos = skip_space(p, pos);
        size_t size = pos < p->in.size && p->in.data[pos] == '{'
                          ? mf_json_scan_run(&scan, p->in.data + pos, p->in.size - pos)
                          : 0;
        mf_call_text call;
        if (size == 0 || !scan.done || !mf_call_text_read(p->in.data + pos, size, &call)) {
            break;
        }
        begin_call(p, json_string_value(call.name), json_string_length(call.name), NULL, 0);
        give(p, MF_ANSWER_ARGUMENTS, call.arguments, call.arguments_size);
        mf_call_text_close(&call);
        pos = p->at = skip_space(p, pos + size);
        if (pos == p->in.size || p->in.data[pos] != ',') {
            p->at = pos < p->in.size && p->in.data[pos] == ']' ? pos + 1 : pos;
            return go(p, STATE_LIST_END);
        }
        p->at = ++pos;
    }
    if (p->num_calls == 0) {
        give(p, MF_ANSWER_CONTENT, "[", 1);
    }
    return go(p, STATE_PLAIN);
}

/* ---- the machine ----------------------------------------------------------------------------------------------------
 */

static step step_call(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t body = call_at(p) + strlen(format->call_begin);
    switch (format->syntax) {
    case MF_CALL_OBJECT:
        return step_object(p, body);
    case MF_CALL_SEPARATED:
        return step_separated(p, body);
    default:
        return step_pairs_begin(p, body);
    }
}

static step take_step(mf_answer_parser *p)
{
    switch (p->state) {
    case STATE_START:
        return step_start(p);
    case STATE_REASONING:
        return step_reasoning(p);
    case STATE_CONTENT:
        return step_content(p);
    case STATE_SECTION:
        return step_section(p);
    case STATE_CALL:
        return step_call(p);
    case STATE_WHOLE:
        return step_whole(p);
    case STATE_ARGUMENTS:
        return step_arguments(p);
    case STATE_TAIL:
        return step_tail(p);
    case STATE_PAIRS:
        return step_pairs(p);
    case STATE_BETWEEN:
        return step_between(p);
    case STATE_NAMED:
        return step_named(p);
    case STATE_LIST:
        return step_list(p);
    case STATE_ITEM:
        return step_item(p);
    case STATE_REST:
        return step_rest(p);
    case STATE_LIST_END:
        return step_list_end(p);
    case STATE_PLAIN:
        give_to(p, MF_ANSWER_CONTENT, p->in.size);
        return STEP_WAIT;
    }
    return STEP_WAIT;
}

static mf_status run(mf_answer_parser *p)
{
    while (p->status == MF_OK && take_step(p) == STEP_ON) {
    }
    if (p->at > 0) {
        size_t left = p->in.size - p->at;
        memmove(p->in.data, p->in.data + p->at, left);
        p->in.size = left;
        p->in.data[left] = '\0';
        p->searched = p->searched > p->at ? p->searched - p->at : 0;
        p->at = 0;
    }
    return p->status;
}

mf_status mf_answer_parser_open(const mf_answer_options *options, mf_answer_emit emit, void *context,
                                mf_answer_parser **out)
{
    mf_answer_parser *p = *out = mf_alloc_zero(sizeof *p);
    if (!p) {
        return MF_ERR_NOMEM;
    }
    p->options = *options;
    p->emit = emit;
    p->context = context;
    p->state = options->choice == MF_TOOLS_NAMED      ? STATE_NAMED
               : options->choice == MF_TOOLS_REQUIRED ? STATE_LIST
               : options->opens_reasoning             ? STATE_REASONING
               : options->reasoning                   ? STATE_START
                                                      : STATE_CONTENT;
    return MF_OK;
}

void mf_answer_parser_close(mf_answer_parser **parser)
{
    if (*parser) {
        mf_buffer_close(&(*parser)->in);
        mf_free(*parser);
        *parser = NULL;
    }
}

mf_status mf_answer_parser_push(mf_answer_parser *p, const char *text, size_t size)
{
    if (p->status == MF_OK && size > 0) {
        p->status = mf_buffer_append(&p->in, text, size);
    }
    return size > 0 && p->status == MF_OK ? run(p) : p->status;
}

mf_status mf_answer_parser_finish(mf_answer_parser *p)
{
    p->final = true;
    if (p->in.size == 0 && p->state != STATE_PAIRS && p->state != STATE_ITEM && p->state != STATE_REST) {
        return p->status;
    }
    MF_TRY(mf_buffer_reserve(&p->in, 1));
    return run(p);
}

int32_t mf_answer_parser_num_calls(const mf_answer_parser *p)
{
    return p->num_calls;
}

mf_answer_options mf_answer_options_for(const mf_serve_model *model, const mf_api_request *request,
                                        const mf_prepared_prompt *prompt, uint64_t id_seed)
{
    size_t size = 0;
    const char *source =
        model->prompt->chat_template ? mf_chat_template_source(model->prompt->chat_template, &size) : NULL;
    bool forced = request->tool_choice == MF_TOOLS_REQUIRED || request->tool_choice == MF_TOOLS_NAMED;
    bool constrained = forced || request->constraint != MF_CONSTRAINT_NONE;
    return (mf_answer_options){ .format = mf_tool_format_find(model->family, source, size),
                                .calls = request->tool_choice == MF_TOOLS_AUTO,
                                .reasoning = !constrained && mf_template_has_reasoning(source, size),
                                .opens_reasoning = !constrained && prompt->opens_reasoning,
                                .choice = request->tool_choice,
                                .tool_name = request->tool_name,
                                .tools = request->tools,
                                .id_seed = id_seed };
}
