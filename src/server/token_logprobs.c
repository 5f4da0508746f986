/* token_logprobs.c - see token_logprobs.h. */
#include "server/token_logprobs.h"

#include <math.h>

#include "base/json.h"

void mf_token_name_write(const mf_token_names *names, int32_t id, mf_json_out *out)
{
    size_t size = 0;
    const char *bytes =
        names->as_ids || !names->tokenizer ? NULL : mf_tokenizer_token_bytes(names->tokenizer, id, &size);
    if (!bytes) {
        mf_json_lit(out, "token_id:");
        mf_json_int(out, id);
    } else if (mf_utf8_valid(bytes, size, NULL)) {
        mf_json_escaped(out, bytes, size);
    } else {
        static const char hex[] = "0123456789abcdef";
        mf_json_lit(out, "bytes:");
        for (size_t i = 0; i < size; i++) {
            unsigned char c = (unsigned char)bytes[i];
            const char code[5] = { '\\', '\\', 'x', hex[c >> 4], hex[c & 15] };
            mf_json_raw(out, code, sizeof code);
        }
    }
}

static void write_quoted_name(const mf_token_names *names, int32_t id, mf_json_out *out)
{
    mf_json_lit(out, "\"");
    mf_token_name_write(names, id, out);
    mf_json_lit(out, "\"");
}

/* Characters that begin in the token's bytes: a character cut over two tokens counts with the first. */
static int64_t num_characters(const mf_token_names *names, int32_t id)
{
    size_t size = 0;
    const char *bytes = names->tokenizer ? mf_tokenizer_token_bytes(names->tokenizer, id, &size) : NULL;
    if (!bytes || (names->skip_special && mf_tokenizer_is_special(names->tokenizer, id))) {
        return 0;
    }
    int64_t n = 0;
    for (size_t i = 0; i < size; i++) {
        n += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    }
    return n;
}

/* ---- completions --------------------------------------------------------------------------------------------------
 */

/* One key of a top_logprobs object.  Two ids may have one text: the later one is named by its id. */
typedef struct key_span {
    size_t at, size;
} key_span;

static bool is_among(const mf_buffer *scratch, const key_span *keys, int32_t n, key_span key)
{
    for (int32_t i = 0; i < n; i++) {
        if (keys[i].size == key.size && memcmp(scratch->data + keys[i].at, scratch->data + key.at, key.size) == 0) {
            return true;
        }
    }
    return false;
}

static void write_key(mf_logprob_lists *l, const mf_token_names *names, int32_t id, key_span *keys, int32_t n,
                      mf_json_out *out)
{
    mf_json_out scratch = { .buffer = &l->scratch };
    keys[n].at = l->scratch.size;
    mf_token_name_write(names, id, &scratch);
    keys[n].size = l->scratch.size - keys[n].at;
    if (scratch.status == MF_OK && keys[n].size > 0 && is_among(&l->scratch, keys, n, keys[n])) {
        l->scratch.size = keys[n].at;
        mf_json_lit(&scratch, "token_id:");
        mf_json_int(&scratch, id);
        keys[n].size = l->scratch.size - keys[n].at;
    }
    if (scratch.status != MF_OK) {
        out->status = scratch.status;
        return;
    }
    mf_json_lit(out, "\"");
    mf_json_raw(out, mf_buffer_text(&l->scratch) + keys[n].at, keys[n].size);
    mf_json_lit(out, "\":");
}

static void write_tops(mf_logprob_lists *l, const mf_token_names *names, int32_t id, float logprob,
                       const mf_logprob *top, int32_t num_top, mf_json_out *out)
{
    key_span keys[MF_MAX_LOGPROBS + 1];
    int32_t n = 0;
    bool has_own = false;
    mf_buffer_clear(&l->scratch);
    mf_json_lit(out, "{");
    for (int32_t i = 0; i < num_top; i++) {
        if (i > 0) {
            mf_json_lit(out, ",");
        }
        write_key(l, names, top[i].token_id, keys, n++, out);
        mf_json_logprob(out, top[i].logprob);
        has_own = has_own || top[i].token_id == id;
    }
    if (!has_own) {
        if (n > 0) {
            mf_json_lit(out, ",");
        }
        write_key(l, names, id, keys, n, out);
        mf_json_logprob(out, logprob);
    }
    mf_json_lit(out, "}");
}

static mf_status add_to_completion(mf_logprob_lists *l, const mf_token_names *names, int32_t id, float logprob,
                                   const mf_logprob *top, int32_t num_top)
{
    mf_json_out tokens = { .buffer = &l->tokens }, values = { .buffer = &l->values };
    mf_json_out tops = { .buffer = &l->tops }, offsets = { .buffer = &l->offsets };
    if (l->count > 0) {
        mf_json_lit(&tokens, ",");
        mf_json_lit(&values, ",");
        mf_json_lit(&tops, ",");
        mf_json_lit(&offsets, ",");
    }
    write_quoted_name(names, id, &tokens);
    mf_json_logprob(&values, logprob);
    mf_json_int(&offsets, l->offset);
    if (isnan(logprob)) {
        mf_json_lit(&tops, "null");
    } else {
        write_tops(l, names, id, logprob, top, num_top, &tops);
    }
    MF_TRY(tokens.status);
    MF_TRY(values.status);
    MF_TRY(tops.status);
    return offsets.status;
}

/* ---- chat ---------------------------------------------------------------------------------------------------------
 */

static void write_chat_token(const mf_token_names *names, int32_t id, float logprob, mf_json_out *out)
{
    size_t size = 0;
    const char *bytes = names->tokenizer ? mf_tokenizer_token_bytes(names->tokenizer, id, &size) : NULL;
    mf_json_lit(out, "{\"token\":");
    write_quoted_name(names, id, out);
    mf_json_lit(out, ",\"logprob\":");
    mf_json_logprob(out, logprob);
    mf_json_lit(out, ",\"bytes\":");
    if (!bytes) {
        mf_json_lit(out, "null");
        return;
    }
    mf_json_lit(out, "[");
    for (size_t i = 0; i < size; i++) {
        if (i > 0) {
            mf_json_lit(out, ",");
        }
        mf_json_int(out, (unsigned char)bytes[i]);
    }
    mf_json_lit(out, "]");
}

static mf_status add_to_chat(mf_logprob_lists *l, const mf_token_names *names, int32_t id, float logprob,
                             const mf_logprob *top, int32_t num_top)
{
    mf_json_out out = { .buffer = &l->tokens };
    if (l->count > 0) {
        mf_json_lit(&out, ",");
    }
    write_chat_token(names, id, logprob, &out);
    mf_json_lit(&out, ",\"top_logprobs\":[");
    for (int32_t i = 0; i < num_top; i++) {
        if (i > 0) {
            mf_json_lit(&out, ",");
        }
        write_chat_token(names, top[i].token_id, top[i].logprob, &out);
        mf_json_lit(&out, "}");
    }
    mf_json_lit(&out, "]}");
    return out.status;
}

/* ---- lists --------------------------------------------------------------------------------------------------------
 */

mf_status mf_logprob_lists_add(mf_logprob_lists *l, const mf_token_names *names, int32_t id, float logprob,
                               const mf_logprob *top, int32_t num_top)
{
    num_top = num_top < l->num_top ? num_top : l->num_top;
    MF_TRY(l->is_chat ? add_to_chat(l, names, id, logprob, top, num_top)
                      : add_to_completion(l, names, id, logprob, top, num_top));
    l->count++;
    l->offset += num_characters(names, id);
    return MF_OK;
}

static void write_list(const mf_buffer *list, mf_json_out *out)
{
    mf_json_lit(out, "[");
    mf_json_raw(out, mf_buffer_text(list), list->size);
    mf_json_lit(out, "]");
}

void mf_logprob_lists_write(const mf_logprob_lists *l, mf_json_out *out)
{
    if (l->is_chat) {
        mf_json_lit(out, "{\"content\":");
        write_list(&l->tokens, out);
    } else {
        mf_json_lit(out, "{\"tokens\":");
        write_list(&l->tokens, out);
        mf_json_lit(out, ",\"token_logprobs\":");
        write_list(&l->values, out);
        mf_json_lit(out, ",\"top_logprobs\":");
        write_list(&l->tops, out);
        mf_json_lit(out, ",\"text_offset\":");
        write_list(&l->offsets, out);
    }
    mf_json_lit(out, "}");
}

void mf_logprob_lists_clear(mf_logprob_lists *l)
{
    l->count = 0;
    mf_buffer_clear(&l->tokens);
    mf_buffer_clear(&l->values);
    mf_buffer_clear(&l->tops);
    mf_buffer_clear(&l->offsets);
}

void mf_logprob_lists_close(mf_logprob_lists *l)
{
    mf_buffer_close(&l->tokens);
    mf_buffer_close(&l->values);
    mf_buffer_close(&l->tops);
    mf_buffer_close(&l->offsets);
    mf_buffer_close(&l->scratch);
}

/* ---- prompt_logprobs ----------------------------------------------------------------------------------------------
 */

static void write_ranked(const mf_token_names *names, int32_t id, float logprob, int32_t rank, mf_json_out *out)
{
    mf_token_names shown = *names;
    shown.as_ids = false;
    mf_json_lit(out, "\"");
    mf_json_int(out, id);
    mf_json_lit(out, "\":{\"logprob\":");
    mf_json_logprob(out, logprob);
    mf_json_lit(out, ",\"rank\":");
    mf_json_int(out, rank);
    mf_json_lit(out, ",\"decoded_token\":");
    write_quoted_name(&shown, id, out);
    mf_json_lit(out, "}");
}

void mf_prompt_logprob_write(const mf_token_names *names, int32_t id, float logprob, int32_t rank,
                             const mf_logprob *top, int32_t num_top, mf_json_out *out)
{
    bool has_own = false;
    mf_json_lit(out, "{");
    for (int32_t i = 0; i < num_top; i++) {
        if (i > 0) {
            mf_json_lit(out, ",");
        }
        write_ranked(names, top[i].token_id, top[i].logprob, i + 1, out);
        has_own = has_own || top[i].token_id == id;
    }
    if (!has_own) {
        if (num_top > 0) {
            mf_json_lit(out, ",");
        }
        write_ranked(names, id, logprob, rank, out);
    }
    mf_json_lit(out, "}");
}
