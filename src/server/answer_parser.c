/* answer_parser.c - what every form of answers needs: looking at the text that waits, and giving pieces of it out; see
 * answer_parser_impl.h. */
#include <stdio.h>
#include <string.h>

#include "server/answer_parser_impl.h"

/* ---- looking at the text --------------------------------------------------------------------------------------------
 */

mf_found mf_answer_at_marker(const mf_answer_parser *p, size_t pos, const char *marker)
{
    if (!marker) {
        return MF_FOUND_NO;
    }
    size_t size = strlen(marker), left = p->in.size - pos;
    if (left >= size) {
        return memcmp(p->in.data + pos, marker, size) == 0 ? MF_FOUND_YES : MF_FOUND_NO;
    }
    return left == 0 || memcmp(p->in.data + pos, marker, left) == 0 ? MF_FOUND_PART : MF_FOUND_NO;
}

bool mf_answer_is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

size_t mf_answer_skip_space(const mf_answer_parser *p, size_t pos)
{
    while (pos < p->in.size && mf_answer_is_space(p->in.data[pos])) {
        pos++;
    }
    return pos;
}

mf_found mf_answer_find_marker(const mf_answer_parser *p, size_t pos, const char *const *markers, size_t count,
                               size_t *where, size_t *which)
{
    while (pos < p->in.size) {
        const char *next = memchr(p->in.data + pos, '<', p->in.size - pos);
        if (!next) {
            break;
        }
        pos = (size_t)(next - p->in.data);
        for (size_t i = 0; i < count; i++) {
            mf_found f = mf_answer_at_marker(p, pos, markers[i]);
            if (f == MF_FOUND_YES || (f == MF_FOUND_PART && !p->final)) {
                *where = pos;
                *which = i;
                return f;
            }
        }
        pos++;
    }
    *where = p->in.size;
    return MF_FOUND_NO;
}

bool mf_answer_is_name(const char *name, size_t size)
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

/* ---- giving out -----------------------------------------------------------------------------------------------------
 */

void mf_answer_give(mf_answer_parser *p, mf_answer_kind kind, const char *text, size_t size)
{
    if (size > 0 && p->status == MF_OK) {
        mf_answer_piece piece = { .kind = kind, .index = p->num_calls - 1, .text = text, .size = size };
        p->status = p->emit(p->context, &piece);
    }
}

void mf_answer_give_to(mf_answer_parser *p, mf_answer_kind kind, size_t end)
{
    mf_answer_give(p, kind, p->in.data + p->at, end - p->at);
    p->at = end;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void mf_answer_begin_call(mf_answer_parser *p, const char *name, size_t name_size, const char *id, size_t id_size)
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
