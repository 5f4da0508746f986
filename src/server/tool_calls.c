/* tool_calls.c - the parser of answers: see tool_calls.h, and answer_parser_impl.h for how it looks at a text. */
#include "server/tool_calls.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"
#include "server/answer_parser_impl.h"

static const char think_begin[] = "<think>", think_end[] = "</think>";

static mf_step go(mf_answer_parser *p, mf_parser_state state)
{
    p->state = state;
    return MF_STEP_ON;
}

/* What stands at `at` is no call after all: the marker is content, and what follows is looked at anew. */
static mf_step no_call(mf_answer_parser *p, const char *marker)
{
    mf_answer_give_to(p, MF_ANSWER_CONTENT, p->at + strlen(marker));
    p->in_section = false;
    return go(p, STATE_CONTENT);
}

/* Waits when more may come, else it is no call. */
static mf_step wait_or_no_call(mf_answer_parser *p, const char *marker)
{
    return p->final ? no_call(p, marker) : MF_STEP_WAIT;
}

/* ---- reasoning, content ---------------------------------------------------------------------------------------------
 */

static mf_step step_start(mf_answer_parser *p)
{
    size_t pos = mf_answer_skip_space(p, p->at);
    mf_found f = mf_answer_at_marker(p, pos, think_begin);
    if (f == MF_FOUND_PART && !p->final) {
        return MF_STEP_WAIT;
    }
    if (f == MF_FOUND_YES) {
        p->at = pos + sizeof think_begin - 1;
        return go(p, STATE_REASONING);
    }
    return go(p, STATE_CONTENT);
}

static mf_step step_reasoning(mf_answer_parser *p)
{
    static const char *const markers[] = { think_end };
    size_t where, which;
    mf_found f = mf_answer_find_marker(p, p->at, markers, 1, &where, &which);
    mf_answer_give_to(p, MF_ANSWER_REASONING, where);
    if (f != MF_FOUND_YES) {
        return MF_STEP_WAIT;
    }
    p->at += sizeof think_end - 1;
    return go(p, STATE_CONTENT);
}

static mf_step step_content(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    const char *const markers[] = { format->call_begin, format->section_begin };
    size_t where = p->in.size, which = 0;
    mf_found f = p->options.calls ? mf_answer_find_marker(p, p->at, markers, 2, &where, &which) : MF_FOUND_NO;
    mf_answer_give_to(p, MF_ANSWER_CONTENT, where);
    return f == MF_FOUND_YES ? go(p, which == 0 ? STATE_CALL : STATE_SECTION) : MF_STEP_WAIT;
}

static mf_step step_section(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t pos = mf_answer_skip_space(p, p->at + strlen(format->section_begin));
    switch (mf_answer_at_marker(p, pos, format->call_begin)) {
    case MF_FOUND_YES:
        /* The section's marker comes back as content should the call be none. */
        return go(p, STATE_CALL);
    case MF_FOUND_PART:
        return wait_or_no_call(p, format->section_begin);
    default:
        return no_call(p, format->section_begin);
    }
}

static mf_step step_between(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t pos = mf_answer_skip_space(p, p->at);
    if (pos == p->in.size) {
        p->at = p->final ? pos : p->at; /* white space behind the last call */
        return MF_STEP_WAIT;
    }
    const char *const markers[] = { format->call_begin, format->section_begin,
                                    p->in_section ? format->section_end : NULL };
    for (size_t i = 0; i < 3; i++) {
        mf_found f = mf_answer_at_marker(p, pos, markers[i]);
        if (f == MF_FOUND_PART && !p->final) {
            return MF_STEP_WAIT;
        }
        if (f == MF_FOUND_YES) {
            p->at = i == 2 ? pos + strlen(markers[2]) : pos;
            p->in_section = p->in_section && i != 2;
            return i == 2 ? MF_STEP_ON : go(p, i == 0 ? STATE_CALL : STATE_SECTION);
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
    return mf_answer_at_marker(p, p->at, section) == MF_FOUND_YES ? mf_answer_skip_space(p, p->at + strlen(section))
                                                                  : p->at;
}

static const char *outer_marker(const mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    return call_at(p) == p->at ? format->call_begin : format->section_begin;
}

static mf_step enter_arguments(mf_answer_parser *p, size_t arguments)
{
    p->in_section = call_at(p) != p->at || p->in_section;
    p->at = arguments;
    p->scan = (mf_json_scan){ 0 };
    return go(p, STATE_ARGUMENTS);
}

/* {"name": NAME, "arguments": { in this order is given out as it comes; anything else when it is whole. */
static mf_step step_object(mf_answer_parser *p, size_t body)
{
    mf_call_head head;
    switch (mf_call_head_read(p->in.data + body, p->in.size - body, &head)) {
    case MF_HEAD_YES:
        mf_answer_begin_call(p, p->in.data + body + head.name_at, head.name_size, NULL, 0);
        return enter_arguments(p, body + head.arguments_at);
    case MF_HEAD_PART:
        if (!p->final) {
            return MF_STEP_WAIT;
        }
        return no_call(p, outer_marker(p));
    default:
        p->searched = body;
        return go(p, STATE_WHOLE);
    }
}

static mf_step step_whole(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    size_t body = call_at(p) + strlen(format->call_begin), where, which;
    const char *const markers[] = { format->call_end, format->call_begin };
    mf_found f = mf_answer_find_marker(p, p->searched, markers, 2, &where, &which);
    p->searched = where;
    if (f != MF_FOUND_YES && !p->final) {
        return MF_STEP_WAIT;
    }
    mf_call_text call;
    if (f != MF_FOUND_YES || which != 0 || !mf_call_text_read(p->in.data + body, where - body, &call)) {
        return no_call(p, outer_marker(p));
    }
    mf_answer_begin_call(p, json_string_value(call.name), json_string_length(call.name), NULL, 0);
    mf_answer_give(p, MF_ANSWER_ARGUMENTS, call.arguments, call.arguments_size);
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
        return mf_answer_is_name(head, size);
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
    return mf_answer_is_name(*name, *name_size) && size < ID_BYTES;
}

static size_t trim_end(const mf_answer_parser *p, size_t start, size_t end)
{
    while (end > start && mf_answer_is_space(p->in.data[end - 1])) {
        end--;
    }
    return end;
}

/* "function" SEPARATOR NAME ```json {: *start, *end get the name, *after what follows the fence. */
static mf_found read_fence(const mf_answer_parser *p, size_t pos, size_t *start, size_t *end, size_t *after)
{
    static const char fence[] = "```json";
    *start = pos = mf_answer_skip_space(p, pos);
    while (pos < p->in.size && p->in.data[pos] != '`' && p->in.data[pos] != '<' && pos - *start <= MAX_NAME_BYTES) {
        pos++;
    }
    if (pos == p->in.size) {
        return MF_FOUND_PART;
    }
    mf_found f = mf_answer_at_marker(p, pos, fence);
    *end = trim_end(p, *start, pos);
    *after = pos + sizeof fence - 1;
    return f;
}

static mf_step step_separated(mf_answer_parser *p, size_t body)
{
    const mf_tool_format *format = p->options.format;
    const char *const markers[] = { format->separator, format->call_begin, format->call_end, format->section_begin,
                                    format->section_end };
    const char *outer = outer_marker(p);
    size_t where, which = 0;
    mf_found f = mf_answer_find_marker(p, body, markers, 5, &where, &which);
    if (f != MF_FOUND_YES && where - body <= MAX_HEAD_BYTES) {
        return wait_or_no_call(p, outer);
    }
    if (f != MF_FOUND_YES || which != 0 || where - body > MAX_HEAD_BYTES) {
        return no_call(p, outer);
    }
    size_t start = mf_answer_skip_space(p, body), end, after = where + strlen(format->separator);
    end = trim_end(p, start, where);
    size_t pos = mf_answer_skip_space(p, after);
    if (pos == p->in.size) {
        return wait_or_no_call(p, outer);
    }
    size_t head_at = start, head_end = end;
    p->fenced =
        format->fenced && p->in.data[pos] != '{' && end - start == 8 && memcmp(p->in.data + start, "function", 8) == 0;
    if (p->fenced) {
        switch (read_fence(p, pos, &start, &end, &after)) {
        case MF_FOUND_NO:
            return no_call(p, outer);
        case MF_FOUND_PART:
            return wait_or_no_call(p, outer);
        default:
            break;
        }
        pos = mf_answer_skip_space(p, after);
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
    mf_found ends = p->in.data[pos] == '{' ? MF_FOUND_NO : mf_answer_at_marker(p, pos, format->call_end);
    if (ends == MF_FOUND_PART) {
        return wait_or_no_call(p, outer);
    }
    if (ends == MF_FOUND_NO && p->in.data[pos] != '{') {
        return no_call(p, outer);
    }
    mf_answer_begin_call(p, name, name_size, p->in.data + head_at, is_id ? head_end - head_at : 0);
    if (ends == MF_FOUND_YES) {
        mf_answer_give(p, MF_ANSWER_ARGUMENTS, "{}", 2); /* no arguments at all */
        enter_arguments(p, pos);
        return go(p, STATE_TAIL);
    }
    return enter_arguments(p, pos);
}

/* ---- arguments ------------------------------------------------------------------------------------------------------
 */

static mf_step step_arguments(mf_answer_parser *p)
{
    size_t taken = mf_json_scan_run(&p->scan, p->in.data + p->at, p->in.size - p->at);
    mf_answer_give_to(p, MF_ANSWER_ARGUMENTS, p->at + taken);
    if (!p->scan.done) {
        return MF_STEP_WAIT;
    }
    return go(p, p->options.choice == MF_TOOLS_REQUIRED ? STATE_LIST : STATE_TAIL);
}

/* Behind the arguments: the object's brace or the fence, then the call's end.  Anything else is content. */
static mf_step step_tail(mf_answer_parser *p)
{
    const mf_tool_format *format = p->options.format;
    const char *closing = format->syntax == MF_CALL_SEPARATED ? (p->fenced ? "```" : NULL) : "}";
    size_t pos = mf_answer_skip_space(p, p->at);
    mf_found f = mf_answer_at_marker(p, pos, closing);
    if (f == MF_FOUND_YES) {
        pos = mf_answer_skip_space(p, pos + strlen(closing));
    }
    if (f != MF_FOUND_PART) {
        f = mf_answer_at_marker(p, pos, format->call_end);
    }
    if (f == MF_FOUND_PART) {
        p->at = p->final ? p->in.size : p->at; /* an end that was cut */
        return MF_STEP_WAIT;
    }
    if (f == MF_FOUND_NO) {
        p->in_section = false;
        return go(p, STATE_CONTENT);
    }
    p->at = pos + strlen(format->call_end);
    return go(p, STATE_BETWEEN);
}

/* ---- pairs ----------------------------------------------------------------------------------------------------------
 */

static mf_step step_pairs_begin(mf_answer_parser *p, size_t body)
{
    size_t start = mf_answer_skip_space(p, body), end = start;
    const char *outer = outer_marker(p);
    if (start < p->in.size && p->in.data[start] == '{') {
        return step_object(p, body);
    }
    while (end < p->in.size && p->in.data[end] != '\n' && p->in.data[end] != '<' && end - start <= MAX_NAME_BYTES) {
        end++;
    }
    size_t pos = mf_answer_skip_space(p, end);
    if (pos == p->in.size && end - start <= MAX_NAME_BYTES) {
        return wait_or_no_call(p, outer);
    }
    mf_found key = mf_answer_at_marker(p, pos, "<arg_key>"),
             over = mf_answer_at_marker(p, pos, p->options.format->call_end);
    if (key != MF_FOUND_YES && over != MF_FOUND_YES && (key == MF_FOUND_PART || over == MF_FOUND_PART)) {
        return wait_or_no_call(p, outer);
    }
    size_t name_end = trim_end(p, start, end);
    if ((key != MF_FOUND_YES && over != MF_FOUND_YES) || !mf_answer_is_name(p->in.data + start, name_end - start)) {
        return no_call(p, outer);
    }
    mf_answer_begin_call(p, p->in.data + start, name_end - start, NULL, 0);
    mf_answer_give(p, MF_ANSWER_ARGUMENTS, "{", 1);
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
        mf_answer_give(p, MF_ANSWER_ARGUMENTS, pair.data, pair.size);
    } else if (p->status == MF_OK) {
        p->status = status;
    }
    p->has_pair = true;
    mf_buffer_close(&pair);
}

static mf_step end_pairs(mf_answer_parser *p, size_t at, mf_parser_state state)
{
    mf_answer_give(p, MF_ANSWER_ARGUMENTS, "}", 1);
    p->at = at;
    return go(p, state);
}

/* The pair at `pos`, where its key's tag begins: MF_STEP_ON when it was given out. */
static mf_step read_pair(mf_answer_parser *p, size_t pos)
{
    static const char value_begin[] = "<arg_value>";
    static const char *const key_end[] = { "</arg_key>" }, *const value_end[] = { "</arg_value>" };
    size_t key = pos + strlen("<arg_key>"), end, which;
    mf_found f = mf_answer_find_marker(p, key, key_end, 1, &end, &which);
    size_t key_size = end - key;
    if (f != MF_FOUND_YES || key_size > MAX_HEAD_BYTES) {
        return p->final || key_size > MAX_HEAD_BYTES ? end_pairs(p, p->at, STATE_CONTENT) : MF_STEP_WAIT;
    }
    pos = mf_answer_skip_space(p, end + strlen(key_end[0]));
    f = mf_answer_at_marker(p, pos, value_begin);
    if (f != MF_FOUND_YES) {
        return f == MF_FOUND_PART && !p->final ? MF_STEP_WAIT : end_pairs(p, p->at, STATE_CONTENT);
    }
    size_t text = pos + sizeof value_begin - 1;
    f = mf_answer_find_marker(p, p->searched > text ? p->searched : text, value_end, 1, &end, &which);
    if (f != MF_FOUND_YES && !p->final) {
        p->searched = end;
        return MF_STEP_WAIT;
    }
    give_pair(p, p->in.data + key, key_size, p->in.data + text, end - text);
    if (f != MF_FOUND_YES) {
        p->at = p->in.size; /* cut inside a value: no brace, as the arguments are not whole */
        return MF_STEP_WAIT;
    }
    p->at = end + strlen(value_end[0]);
    return MF_STEP_ON;
}

static mf_step step_pairs(mf_answer_parser *p)
{
    const char *call_end = p->options.format->call_end;
    size_t pos = mf_answer_skip_space(p, p->at);
    mf_found over = mf_answer_at_marker(p, pos, call_end), begins = mf_answer_at_marker(p, pos, "<arg_key>");
    if (over == MF_FOUND_YES) {
        return end_pairs(p, pos + strlen(call_end), STATE_BETWEEN);
    }
    if (begins == MF_FOUND_YES) {
        return read_pair(p, pos);
    }
    bool part = over == MF_FOUND_PART || begins == MF_FOUND_PART;
    if (part && !p->final) {
        return MF_STEP_WAIT;
    }
    return end_pairs(p, part ? p->in.size : p->at, STATE_CONTENT);
}

/* ---- forced calls ---------------------------------------------------------------------------------------------------
 */

static mf_step step_named(mf_answer_parser *p)
{
    if (p->at < p->in.size && p->num_calls == 0) {
        mf_answer_begin_call(p, p->options.tool_name, strlen(p->options.tool_name), NULL, 0);
    }
    mf_answer_give_to(p, MF_ANSWER_ARGUMENTS, p->in.size);
    return MF_STEP_WAIT;
}

/* [ ITEM , ITEM ]: `at` is before the bracket, or behind an item's arguments. */
static mf_step step_list(mf_answer_parser *p)
{
    size_t pos = mf_answer_skip_space(p, p->at);
    if (p->num_calls > 0 && pos < p->in.size && p->in.data[pos] == '}') {
        pos = mf_answer_skip_space(p, pos + 1);
    }
    if (pos == p->in.size) {
        p->at = p->final && p->num_calls > 0 ? pos : p->at;
        return p->final && p->num_calls == 0 ? go(p, STATE_PLAIN) : MF_STEP_WAIT;
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

static mf_step step_list_end(mf_answer_parser *p)
{
    if (mf_answer_skip_space(p, p->at) < p->in.size) {
        return go(p, STATE_PLAIN);
    }
    p->at = p->final ? p->in.size : p->at;
    return MF_STEP_WAIT;
}

static mf_step step_item(mf_answer_parser *p)
{
    mf_call_head head;
    switch (mf_call_head_read(p->in.data + p->at, p->in.size - p->at, &head)) {
    case MF_HEAD_YES:
        mf_answer_begin_call(p, p->in.data + p->at + head.name_at, head.name_size, NULL, 0);
        return enter_arguments(p, p->at + head.arguments_at);
    case MF_HEAD_PART:
        if (!p->final) {
            return MF_STEP_WAIT;
        }
        return go(p, STATE_REST);
    default:
        return go(p, STATE_REST);
    }
}

/* Items in another order of members: read when all is there.  `at` is behind the bracket or comma. */
static mf_step step_rest(mf_answer_parser *p)
{
    if (!p->final) {
        return MF_STEP_WAIT;
    }
    size_t pos = p->at;
    for (;;) {
        mf_json_scan scan = { 0 };
        pos = mf_answer_skip_space(p, pos);
        size_t size = pos < p->in.size && p->in.data[pos] == '{'
                          ? mf_json_scan_run(&scan, p->in.data + pos, p->in.size - pos)
                          : 0;
        mf_call_text call;
        if (size == 0 || !scan.done || !mf_call_text_read(p->in.data + pos, size, &call)) {
            break;
        }
        mf_answer_begin_call(p, json_string_value(call.name), json_string_length(call.name), NULL, 0);
        mf_answer_give(p, MF_ANSWER_ARGUMENTS, call.arguments, call.arguments_size);
        mf_call_text_close(&call);
        pos = p->at = mf_answer_skip_space(p, pos + size);
        if (pos == p->in.size || p->in.data[pos] != ',') {
            p->at = pos < p->in.size && p->in.data[pos] == ']' ? pos + 1 : pos;
            return go(p, STATE_LIST_END);
        }
        p->at = ++pos;
    }
    if (p->num_calls == 0) {
        mf_answer_give(p, MF_ANSWER_CONTENT, "[", 1);
    }
    return go(p, STATE_PLAIN);
}

/* ---- the machine ----------------------------------------------------------------------------------------------------
 */

static mf_step step_call(mf_answer_parser *p)
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

static mf_step take_step(mf_answer_parser *p)
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
    case STATE_HARMONY:
        return mf_harmony_step(p);
    case STATE_PLAIN:
        mf_answer_give_to(p, MF_ANSWER_CONTENT, p->in.size);
        return MF_STEP_WAIT;
    }
    return MF_STEP_WAIT;
}

static mf_status run(mf_answer_parser *p)
{
    while (p->status == MF_OK && take_step(p) == MF_STEP_ON) {
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
    bool channels = options->format->syntax == MF_CALL_CHANNELS;
    p->state = options->choice == MF_TOOLS_NAMED      ? STATE_NAMED
               : options->choice == MF_TOOLS_REQUIRED ? STATE_LIST
               : channels                             ? (options->reasoning ? STATE_HARMONY : STATE_PLAIN)
               : options->opens_reasoning             ? STATE_REASONING
               : options->reasoning                   ? STATE_START
                                                      : STATE_CONTENT;
    mf_harmony_begin(p);
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
    bool ends_in_text =
        p->state != STATE_PAIRS && p->state != STATE_ITEM && p->state != STATE_REST && p->state != STATE_HARMONY;
    if (p->in.size == 0 && ends_in_text) {
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
    const mf_tool_format *format = mf_tool_format_find(model->family, source, size);
    bool has_reasoning = format->syntax == MF_CALL_CHANNELS || mf_template_has_reasoning(source, size);
    return (mf_answer_options){ .format = format,
                                .calls = request->tool_choice == MF_TOOLS_AUTO,
                                .reasoning = !constrained && has_reasoning,
                                .opens_reasoning = !constrained && prompt->opens_reasoning,
                                .choice = request->tool_choice,
                                .tool_name = request->tool_name,
                                .tools = request->tools,
                                .id_seed = id_seed };
}
