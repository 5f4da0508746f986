/* conversation_plain.c - see conversation_plain.h.
 *
 * The marks are put into the JSON text of messages, tools and variables, so that keys and values are treated alike. */
#include "text/conversation_plain.h"

#include <string.h>

#include "base/json.h"
#include "base/sys.h"

/* Noncharacters, U+FDD0 and up: no tokenizer or template looks at them.  One that nobody wrote is the mark. */
enum { MARK_BYTES = 3, NUM_MARKS = 16, MAX_DEPTH = 160, MAX_VALUES = 1 << 23 };

static int append(const char *bytes, size_t size, void *out)
{
    return mf_buffer_append(out, bytes, size) == MF_OK ? 0 : -1;
}

/* [messages, tools, variables] as JSON. */
static bool write_inputs(const mf_conversation *c, mf_buffer *out)
{
    json_t *all = json_pack("[O, O?, O?]", c->messages, c->tools, c->variables);
    bool ok = all && json_dump_callback(all, append, out, JSON_COMPACT) == 0;
    json_decref(all);
    return ok;
}

static bool choose_mark(const mf_buffer *json, char mark[MARK_BYTES])
{
    memcpy(mark, "\xef\xb7\x90", MARK_BYTES);
    for (int i = 0; i < NUM_MARKS; i++, mark[2]++) {
        if (!memmem(json->data, json->size, mark, MARK_BYTES)) {
            return true;
        }
    }
    return false;
}

/* Copies the JSON text with a mark before each special token's text inside strings; *count of them. */
static mf_status put_marks(const mf_tokenizer *tok, const mf_buffer *json, const char *mark, mf_buffer *marked,
                           size_t *count)
{
    bool in_string = false;
    size_t copied = 0;
    *count = 0;
    for (size_t i = 0; i < json->size; i++) {
        char c = json->data[i];
        if (c == '"') {
            in_string = !in_string;
        } else if (in_string && c == '\\') {
            i++;
        } else if (in_string && mf_tokenizer_special_begins(tok, json->data, json->size, i)) {
            MF_TRY(mf_buffer_append(marked, json->data + copied, i - copied));
            MF_TRY(mf_buffer_append(marked, mark, MARK_BYTES));
            copied = i;
            (*count)++;
        }
    }
    return mf_buffer_append(marked, json->data + copied, json->size - copied);
}

static json_t *member(json_t *all, size_t index)
{
    json_t *value = json_array_get(all, index);
    return json_is_null(value) ? NULL : value;
}

static mf_status render_marked(const mf_prompt *prompt, const mf_conversation *c, const mf_buffer *json, mf_buffer *out,
                               mf_error *err)
{
    static const mf_json_limits limits = { .max_depth = MAX_DEPTH, .max_values = MAX_VALUES,
                                           .allow_nul = true };
    json_t *all = NULL;
    mf_status status = mf_json_parse(json->data, json->size, "conversation", &limits, &all, err);
    if (status == MF_OK) {
        mf_conversation marked = *c;
        marked.messages = member(all, 0);
        marked.tools = member(all, 1);
        marked.variables = member(all, 2);
        status = mf_conversation_render(prompt, &marked, out, err);
    }
    json_decref(all);
    return status;
}

/* Takes the marks out of `marked`; false when what is left is not `text`, or more or fewer bytes. */
static bool take_marks(const mf_buffer *marked, const char *mark, const mf_buffer *text, mf_plain_places *places,
                       size_t capacity)
{
    size_t at = 0, i = 0;
    while (i < marked->size) {
        if (marked->size - i >= MARK_BYTES && memcmp(marked->data + i, mark, MARK_BYTES) == 0) {
            if (places->count == capacity) {
                return false;
            }
            places->at[places->count++] = at;
            i += MARK_BYTES;
        } else if (at == text->size || marked->data[i] != text->data[at]) {
            return false;
        } else {
            at++;
            i++;
        }
    }
    return at == text->size;
}

static mf_status compare_renders(const mf_prompt *prompt, const mf_conversation *c, const mf_buffer *json,
                                 const char *mark, const mf_buffer *text, mf_plain_places *places, mf_error *err)
{
    mf_prompt roomy = *prompt; /* the marks take room that the text does not */
    roomy.max_text_bytes += json->size;
    mf_buffer marked = { .limit = roomy.max_text_bytes };
    mf_error ignored = { 0 };
    mf_status status = render_marked(&roomy, c, json, &marked, &ignored);
    size_t capacity = marked.size / MARK_BYTES + 1;
    if (status == MF_ERR_NOMEM) {
        mf_buffer_close(&marked);
        return mf_fail(err, status, "out of memory");
    }
    /* A template that refuses marked text hides nothing: the text is encoded as transformers does. */
    if (status == MF_OK && (places->at = mf_alloc_array(capacity, sizeof *places->at)) != NULL &&
        !take_marks(&marked, mark, text, places, capacity)) {
        places->count = 0;
    }
    mf_buffer_close(&marked);
    return status == MF_OK && !places->at ? mf_fail(err, MF_ERR_NOMEM, "out of memory") : MF_OK;
}

mf_status mf_conversation_find_plain(const mf_prompt *prompt, const mf_conversation *c, const mf_buffer *text,
                                     mf_plain_places *places, mf_error *err)
{
    mf_buffer json = { 0 }, marked = { 0 };
    char mark[MARK_BYTES];
    size_t count = 0;
    *places = (mf_plain_places){ 0 };
    mf_status status = write_inputs(c, &json) ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "out of memory");
    if (status == MF_OK && choose_mark(&json, mark)) {
        status = put_marks(prompt->tokenizer, &json, mark, &marked, &count);
        status = status == MF_OK ? MF_OK : mf_fail(err, status, "out of memory");
    }
    mf_buffer_close(&json);
    if (status == MF_OK && count > 0) {
        status = compare_renders(prompt, c, &marked, mark, text, places, err);
    }
    mf_buffer_close(&marked);
    return status;
}
