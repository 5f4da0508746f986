/* tokenizer_load.c - opening a tokenizer.json: its model, and the order of its parts.  The file is hostile until
 * checked. */
#include "text/tokenizer_load.h"

#include <string.h>

#include "base/file.h"
#include "base/sys.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

mf_status mf_load_no_memory(const mf_tokenizer_loader *l)
{
    return mf_fail(l->err, MF_ERR_NOMEM, "%s: out of memory", l->name);
}

mf_status mf_load_add_token(const mf_tokenizer_loader *l, const char *where, const char *text, size_t size, int64_t id)
{
    mf_status status = mf_vocab_add(&l->tok->vocab, text, size, id);
    int shown = (int)(size < 100 ? size : 100);
    switch (status) {
    case MF_OK:
        return MF_OK;
    case MF_ERR_INVALID:
        if (size == 0 || size > MF_VOCAB_MAX_TOKEN_BYTES) {
            return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s: token of id %lld: expected 1 to %d bytes; got %zu", l->name,
                           where, (long long)id, MF_VOCAB_MAX_TOKEN_BYTES, size);
        }
        if (id < 0 || id >= MF_VOCAB_MAX_IDS) {
            return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s: token \"%.*s\": expected an id from 0 to %d; got %lld",
                           l->name, where, shown, text, MF_VOCAB_MAX_IDS - 1, (long long)id);
        }
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s: token \"%.*s\": id %lld is taken by \"%.100s\"", l->name, where,
                       shown, text, (long long)id, mf_tokenizer_token_text(l->tok, (int32_t)id));
    case MF_ERR_FORMAT:
        return mf_fail(l->err, status, "%s: %s: token \"%.*s\" occurs twice", l->name, where, shown, text);
    case MF_ERR_LIMIT:
        return mf_fail(l->err, status, "%s: %s: tokens that crowd the hash table", l->name, where);
    default:
        return mf_load_no_memory(l);
    }
}

static mf_status load_vocab(mf_tokenizer_loader *l, const char *json, mf_json_span span)
{
    if (span.end == 0) {
        return mf_load_mismatch(l, "model.vocab", "an object",
                                json_object_get(json_object_get(l->root, "model"), "vocab"));
    }
    mf_json_cursor cursor = {
        .json = json, .at = span.start, .end = span.end, .name = l->name, .member = "model.vocab", .err = l->err
    };
    mf_status status;
    for (;;) {
        bool more = false;
        int64_t id = 0;
        status = mf_json_next_token(&cursor, &more, &id);
        if (status != MF_OK || !more) {
            break;
        }
        status = mf_load_add_token(l, "model.vocab", mf_buffer_text(&cursor.text), cursor.text.size, id);
        if (status != MF_OK) {
            break;
        }
    }
    mf_json_cursor_close(&cursor);
    MF_TRY(status);
    const mf_vocab *vocab = &l->tok->vocab;
    if (vocab->num_tokens == 0) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: model.vocab: expected tokens; got none", l->name);
    }
    if (vocab->num_tokens != vocab->size) {
        return mf_fail(l->err, MF_ERR_FORMAT,
                       "%s: model.vocab: expected ids without gaps; got %zu tokens with ids up to %zu", l->name,
                       vocab->num_tokens, vocab->size - 1);
    }
    return MF_OK;
}

static void find_byte_ids(mf_tokenizer *tok, bool *complete)
{
    *complete = true;
    for (int b = 0; b < 256; b++) {
        char text[4];
        tok->bpe.byte_ids[b] = mf_vocab_find(&tok->vocab, text, mf_utf8_put(mf_byte_to_char((uint8_t)b), text));
        *complete &= tok->bpe.byte_ids[b] >= 0;
    }
}

/* ---- merges -------------------------------------------------------------------------------------------------------
 */

/* One merge; *skip for a "#version" line, which old files carry over from merges.txt. */
static mf_status read_merge(mf_tokenizer_loader *l, mf_json_cursor *cursor, mf_buffer *joined, bool *more, bool *skip,
                            int32_t ids[3])
{
    bool pair = false;
    *skip = false;
    MF_TRY(mf_json_next_merge(cursor, more, &pair));
    if (!*more) {
        return MF_OK;
    }
    const char *left = mf_buffer_text(&cursor->text), *right = mf_buffer_text(&cursor->second);
    size_t left_size = cursor->text.size, right_size = cursor->second.size;
    if (!pair) {
        if (strncmp(left, "#version", 8) == 0) {
            *skip = true;
            return MF_OK;
        }
        const char *space = strchr(left, ' ');
        if (!space || strchr(space + 1, ' ')) {
            return mf_fail(l->err, MF_ERR_FORMAT,
                           "%s: model.merges: \"%.100s\": expected two tokens with one space between them", l->name,
                           left);
        }
        right = space + 1;
        right_size = left_size - (size_t)(right - left);
        left_size = (size_t)(space - left);
    }
    mf_buffer_clear(joined);
    if (mf_buffer_append(joined, left, left_size) != MF_OK || mf_buffer_append(joined, right, right_size) != MF_OK) {
        return mf_load_no_memory(l);
    }
    ids[0] = mf_vocab_find(&l->tok->vocab, left, left_size);
    ids[1] = mf_vocab_find(&l->tok->vocab, right, right_size);
    ids[2] = mf_vocab_find(&l->tok->vocab, mf_buffer_text(joined), joined->size);
    if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0) {
        return mf_fail(l->err, MF_ERR_FORMAT,
                       "%s: model.merges: \"%.*s\" + \"%.*s\": expected tokens of model.vocab, joined and apart",
                       l->name, (int)(left_size < 100 ? left_size : 100), left,
                       (int)(right_size < 100 ? right_size : 100), right);
    }
    return MF_OK;
}

mf_status mf_load_set_merges(mf_tokenizer_loader *l, const char *where, const uint64_t *keys, const int32_t *ranks,
                             size_t count)
{
    mf_status status = mf_bpe_set_merges(&l->tok->bpe, keys, ranks, count);
    if (status == MF_ERR_LIMIT) {
        return mf_fail(l->err, status, "%s: %s: merges that crowd the hash table", l->name, where);
    }
    return status == MF_OK ? MF_OK : mf_load_no_memory(l);
}

static mf_status load_merges(mf_tokenizer_loader *l, const char *json, mf_json_span span)
{
    mf_bpe *bpe = &l->tok->bpe;
    if (span.end == 0) {
        return mf_load_mismatch(l, "model.merges", "a list",
                                json_object_get(json_object_get(l->root, "model"), "merges"));
    }
    /* Each merge is put down as read; the table is made once their number is known. */
    uint64_t *keys = NULL;
    size_t count = 0, capacity = 0;
    mf_buffer joined = { 0 };
    mf_json_cursor cursor = {
        .json = json, .at = span.start, .end = span.end, .name = l->name, .member = "model.merges", .err = l->err
    };
    mf_status status;
    for (;;) {
        bool more = false, skip = false;
        int32_t ids[3] = { 0 };
        status = read_merge(l, &cursor, &joined, &more, &skip, ids);
        if (status != MF_OK || !more) {
            break;
        }
        if (skip) {
            continue;
        }
        if (count == MF_BPE_MAX_MERGES) {
            status = mf_fail(l->err, MF_ERR_LIMIT, "%s: model.merges: more than %d merges", l->name, MF_BPE_MAX_MERGES);
            break;
        }
        if (count == capacity) {
            capacity = capacity ? capacity * 2 : 1024;
            uint64_t *more_keys = mf_resize_array(keys, capacity, sizeof *keys);
            keys = more_keys ? more_keys : keys;
            int32_t *more_ids = mf_resize_array(bpe->rank_ids, capacity, sizeof *more_ids);
            bpe->rank_ids = more_ids ? more_ids : bpe->rank_ids;
            if (!more_keys || !more_ids) {
                status = mf_load_no_memory(l);
                break;
            }
        }
        keys[count] = (uint64_t)(uint32_t)ids[0] << 20 | (uint32_t)ids[1];
        bpe->rank_ids[count++] = ids[2];
    }
    mf_json_cursor_close(&cursor);
    mf_buffer_close(&joined);
    bpe->num_ranks = count;
    if (status == MF_OK) {
        status = mf_load_set_merges(l, "model.merges", keys, NULL, count);
    }
    mf_free(keys);
    return status;
}

/* ---- the model ----------------------------------------------------------------------------------------------------
 */

static mf_status check_affix(const mf_tokenizer_loader *l, const json_t *model, const char *key)
{
    const json_t *value = json_object_get(model, key);
    bool none = !value || json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0);
    return none ? MF_OK : mf_load_unsupported(l, "model", key);
}

static mf_status prepare_chars(mf_tokenizer_loader *l, const json_t *model)
{
    mf_bpe_chars *chars = &l->tok->chars;
    const json_t *unk = json_object_get(model, "unk_token");
    chars->unk_id = -1;
    MF_TRY(mf_load_bool(l, model, "model", "fuse_unk", &chars->fuse_unk));
    if (unk && !json_is_null(unk)) {
        if (!json_is_string(unk)) {
            return mf_load_mismatch(l, "model.unk_token", "a string", unk);
        }
        chars->unk_id = mf_vocab_find(&l->tok->vocab, json_string_value(unk), json_string_length(unk));
        if (chars->unk_id < 0) {
            return mf_fail(l->err, MF_ERR_FORMAT, "%s: model.unk_token: \"%.100s\" is not in model.vocab", l->name,
                           json_string_value(unk));
        }
    }
    mf_bpe_chars_prepare(chars, &l->tok->bpe, &l->tok->vocab);
    return MF_OK;
}

static mf_status load_model(mf_tokenizer_loader *l, const char *json, mf_json_span vocab, mf_json_span merges)
{
    const json_t *model = json_object_get(l->root, "model");
    bool byte_fallback = false, complete = false;
    if (!json_is_object(model)) {
        return mf_load_mismatch(l, "model", "an object", model);
    }
    /* GPT-2's own file has no type. */
    const char *type = "BPE";
    if (json_object_get(model, "type")) {
        MF_TRY(mf_load_type(l, model, "model", &type));
    }
    if (strcmp(type, "BPE") != 0) {
        return mf_load_unsupported(l, "model", type);
    }
    MF_TRY(mf_load_bool(l, model, "model", "byte_fallback", &byte_fallback));
    if (byte_fallback && !l->tok->by_chars) {
        return mf_load_unsupported(l, "model", "byte_fallback behind a pre_tokenizer ByteLevel");
    }
    MF_TRY(mf_load_bool(l, model, "model", "ignore_merges", &l->tok->bpe.whole_words));
    MF_TRY(check_affix(l, model, "continuing_subword_prefix"));
    MF_TRY(check_affix(l, model, "end_of_word_suffix"));
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0.0) {
        return mf_load_unsupported(l, "model", "dropout");
    }
    MF_TRY(load_vocab(l, json, vocab));
    l->tok->bpe.num_ids = (int32_t)l->tok->vocab.size;
    MF_TRY(load_merges(l, json, merges));
    if (l->tok->by_chars) {
        l->tok->chars.byte_fallback = byte_fallback;
        return prepare_chars(l, model);
    }
    find_byte_ids(l->tok, &complete);
    const json_t *unk = json_object_get(model, "unk_token");
    if (!complete && unk && !json_is_null(unk)) {
        return mf_fail(l->err, MF_ERR_UNSUPPORTED,
                       "%s: model.unk_token is not supported where model.vocab lacks a byte", l->name);
    }
    return MF_OK;
}

/* ---- the interface ------------------------------------------------------------------------------------------------
 */

static mf_status load(mf_tokenizer_loader *l, const char *json, mf_json_span vocab, mf_json_span merges)
{
    /* Small parts first: a file of another kind is told from them at once. */
    MF_TRY(mf_load_normalizer(l));
    MF_TRY(mf_load_pre_tokenizer(l));
    MF_TRY(mf_load_decoder(l));
    MF_TRY(load_model(l, json, vocab, merges));
    MF_TRY(mf_load_added_tokens(l));
    return mf_load_post_processor(l);
}

mf_status mf_tokenizer_parse(const char *json, size_t size, const char *name, mf_tokenizer **out, mf_error *err)
{
    *out = NULL;
    if (size > MF_TOKENIZER_MAX_FILE_BYTES) {
        return mf_fail(err, MF_ERR_LIMIT, "%s: expected at most %d bytes; got %zu", name, MF_TOKENIZER_MAX_FILE_BYTES,
                       size);
    }
    json_t *root = NULL;
    mf_json_span vocab, merges;
    MF_TRY(mf_tokenizer_json_parse(json, size, name, &root, &vocab, &merges, err));
    mf_tokenizer *tok = mf_alloc_zero(sizeof *tok);
    mf_tokenizer_loader loader = { .tok = tok, .root = root, .name = name, .err = err };
    mf_status status = tok ? load(&loader, json, vocab, merges) : mf_load_no_memory(&loader);
    json_decref(root);
    if (status != MF_OK) {
        mf_tokenizer_close(&tok);
        return status;
    }
    *out = tok;
    return MF_OK;
}

mf_status mf_tokenizer_open(const char *path, mf_tokenizer **out, mf_error *err)
{
    *out = NULL;
    mf_file file;
    MF_TRY(mf_file_open(path, false, MF_TOKENIZER_MAX_FILE_BYTES, &file, err));
    mf_status status = mf_tokenizer_parse((const char *)file.data, file.size, path, out, err);
    mf_file_close(&file);
    return status;
}

void mf_tokenizer_close(mf_tokenizer **tok)
{
    mf_tokenizer *t = *tok;
    if (!t) {
        return;
    }
    mf_vocab_close(&t->vocab);
    mf_bpe_close(&t->bpe);
    mf_added_tokens_close(&t->added);
    mf_normalizer_close(&t->normalizer);
    mf_pretokenizer_close(&t->pre);
    mf_decoder_close(&t->decoder);
    mf_free(t->flags);
    mf_free(t);
    *tok = NULL;
}
