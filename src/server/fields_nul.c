/* fields_nul.c - where a body may hold \u0000: in text that is the user's own and goes, with its length, to the
 * tokenizer or through the template.  A byte-level vocabulary has a token for byte 0, and benchmark clients send
 * prompts that hold it. All other strings are names, which readers compare as C strings: "system\u0000x" must not pass
 * for "system". */
#include "server/fields.h"

#include <stdio.h>
#include <string.h>

#include "base/json_walk.h"

/* Deep enough for the longest path below, messages[i].tool_calls[j].function.arguments. */
enum { PATH_LEVELS = 6, MAX_KEY_BYTES = 24, PLACE_BYTES = 6 * (MAX_KEY_BYTES * 8 + 8) };

typedef struct path {
    const char *key[PATH_LEVELS]; /* NULL in a list */
    size_t index[PATH_LEVELS];
    int levels; /* of the value, which may be more than are kept */
} path;

static bool is_at(const path *p, int level, const char *key)
{
    return level < p->levels && level < PATH_LEVELS && p->key[level] && strcmp(p->key[level], key) == 0;
}

static bool may_hold_nul(const path *p)
{
    if (is_at(p, 0, "prompt")) {
        return true;
    }
    if (is_at(p, 0, "tools")) {
        return p->levels == 4 && is_at(p, 2, "function") && is_at(p, 3, "description");
    }
    if (!is_at(p, 0, "messages")) {
        return false;
    }
    if (is_at(p, 2, "content")) {
        return p->levels == 3 || (p->levels == 5 && is_at(p, 4, "text"));
    }
    if (is_at(p, 2, "tool_calls")) {
        return is_at(p, 4, "function") && is_at(p, 5, "arguments");
    }
    return p->levels == 3 && (is_at(p, 2, "reasoning") || is_at(p, 2, "reasoning_content"));
}

/* "messages[2].role" */
static void write_place(const path *p, char out[PLACE_BYTES])
{
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < p->levels && i < PATH_LEVELS && n < PLACE_BYTES - 1; i++) {
        char quote[MF_QUOTE_BYTES];
        size_t size = p->key[i] ? strlen(p->key[i]) : 0;
        mf_text_quote(p->key[i] ? p->key[i] : "", size < MAX_KEY_BYTES ? size : MAX_KEY_BYTES, quote);
        quote[strlen(quote) - 1] = '\0';
        int added = p->key[i] ? snprintf(out + n, PLACE_BYTES - n, "%s%s", i ? "." : "", quote + 1)
                              : snprintf(out + n, PLACE_BYTES - n, "[%zu]", p->index[i]);
        n += added > 0 ? (size_t)added : 0;
    }
}

mf_status mf_body_check_nul(const json_t *document, mf_api_error *error)
{
    path p = { .levels = 0 };
    mf_json_walk walk;
    const char *key;
    size_t index;
    json_t *value;
    mf_json_walk_begin(&walk, (json_t *)document);
    while ((value = mf_json_walk_next(&walk, NULL, &key, &index))) {
        p.levels = walk.depth;
        if (walk.depth <= PATH_LEVELS) {
            p.key[walk.depth - 1] = key;
            p.index[walk.depth - 1] = index;
        }
        if (json_is_string(value) && memchr(json_string_value(value), 0, json_string_length(value)) &&
            !may_hold_nul(&p)) {
            char place[PLACE_BYTES], quote[MF_QUOTE_BYTES];
            write_place(&p, place);
            return mf_api_fail(error, 400, p.key[0], "%s cannot hold a NUL character, got %s.", place,
                               mf_json_quote(value, quote));
        }
    }
    return MF_OK;
}
