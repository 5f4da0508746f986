/* tokenizer_added.c - opening a tokenizer: the tokens that are looked for in a text before anything else. */
#include <string.h>

#include "base/sys.h"
#include "text/tokenizer_load.h"

static mf_status normalize(mf_tokenizer *tok)
{
    mf_normalizer_work work = { 0 };
    mf_status status = MF_OK;
    for (size_t i = 0; i < tok->added.size && status == MF_OK; i++) {
        mf_added_token *token = &tok->added.tokens[i];
        if (!token->normalized) {
            continue;
        }
        const char *normal = NULL;
        status = mf_normalizer_run(&tok->normalizer, token->content, token->size, &work, &normal, &token->normal_size);
        if (status == MF_OK && normal != token->content) {
            token->normal = mf_strndup(normal, token->normal_size);
            status = token->normal ? MF_OK : MF_ERR_NOMEM;
        }
    }
    mf_normalizer_work_close(&work);
    return status;
}

/* The tokens that are looked for in the normalised text, or (normalized: false) before.  Special tokens come first: of
 * two with one normal form they win.  `written`: the special ones among the normalised, as their files write them. */
static mf_status build_trie(mf_tokenizer *tok, bool normalized, bool written, mf_added_trie *trie)
{
    mf_added_tokens *added = &tok->added;
    size_t bytes = 0;
    for (size_t i = 0; i < added->size; i++) {
        const mf_added_token *token = &added->tokens[i];
        bytes += token->normalized == normalized ? token->size + token->normal_size : 0;
    }
    mf_status status = mf_added_trie_open(trie, bytes);
    for (int special = 1; special >= written; special--) {
        for (size_t i = 0; i < added->size && status == MF_OK; i++) {
            const mf_added_token *token = &added->tokens[i];
            bool normal = token->normal && !written;
            if (token->normalized == normalized && token->special == (bool)special) {
                status = mf_added_trie_add(trie, normal ? token->normal : token->content,
                                           normal ? token->normal_size : token->size, (int32_t)i);
            }
        }
    }
    return status;
}

mf_status mf_load_begin_added(mf_tokenizer_loader *l, size_t count)
{
    mf_tokenizer *tok = l->tok;
    tok->added.tokens = mf_alloc_array(count, sizeof *tok->added.tokens);
    tok->flags = mf_alloc_array(tok->vocab.size + count, sizeof *tok->flags);
    return tok->added.tokens && tok->flags ? MF_OK : mf_load_no_memory(l);
}

mf_status mf_load_put_added(mf_tokenizer_loader *l, const char *text, size_t size, int32_t id, mf_added_token **out)
{
    mf_added_tokens *added = &l->tok->added;
    mf_added_token *token = &added->tokens[added->size];
    token->content = mf_strndup(text, size);
    if (!token->content) {
        return mf_load_no_memory(l);
    }
    added->size++;
    token->size = size;
    token->id = id;
    l->tok->flags[id] = MF_TOKEN_ADDED;
    *out = token;
    return MF_OK;
}

mf_status mf_load_finish_added(mf_tokenizer_loader *l)
{
    mf_tokenizer *tok = l->tok;
    int32_t id = 0;
    mf_status status = normalize(tok);
    if (status == MF_ERR_LIMIT) {
        return mf_fail(l->err, status, "%s: normalizer: expected an added token's text to grow %d times at most",
                       l->name, MF_NORMALIZER_MAX_GROWTH);
    }
    if (status == MF_OK) {
        status = build_trie(tok, false, false, &tok->added.raw);
    }
    if (status == MF_OK) {
        status = build_trie(tok, true, false, &tok->added.normalized);
    }
    if (status == MF_OK) {
        status = build_trie(tok, true, true, &tok->added.written);
    }
    if (status == MF_ERR_LIMIT) {
        return mf_fail(l->err, status, "%s: added_tokens: tokens that crowd the hash table", l->name);
    }
    if (status == MF_OK) {
        status = mf_decoder_make_bytes(&tok->decoder, &tok->vocab, &id);
    }
    for (size_t i = 0; i < tok->added.size && status == MF_OK; i++) {
        const mf_added_token *token = &tok->added.tokens[i];
        id = token->id;
        status = token->normal ? mf_decoder_set_bytes(&tok->decoder, &tok->vocab, id, token->normal, token->normal_size)
                               : MF_OK;
    }
    if (status == MF_ERR_INVALID) {
        return mf_fail(l->err, status, "%s: decoder: the text of token %d: expected at most %d bytes", l->name, id,
                       MF_VOCAB_MAX_TOKEN_BYTES);
    }
    if (status == MF_ERR_LIMIT) {
        return mf_fail(l->err, status, "%s: decoder: expected tokens' texts of at most %d times the vocabulary's",
                       l->name, MF_DECODER_MAX_GROWTH);
    }
    return status == MF_OK ? MF_OK : mf_load_no_memory(l);
}

static mf_status load_added_token(mf_tokenizer_loader *l, const json_t *item, size_t base_size, int64_t *highest)
{
    const json_t *content = json_object_get(item, "content"), *id = json_object_get(item, "id");
    if (!json_is_object(item) || !json_is_string(content) || !json_is_integer(id)) {
        return mf_load_mismatch(l, "added_tokens", "objects with a string \"content\" and an integer \"id\"", item);
    }
    const char *text = json_string_value(content);
    size_t size = json_string_length(content);
    if (size == 0 || size > MF_ADDED_MAX_BYTES) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: added_tokens: id %lld: expected a content of 1 to %d bytes; got %zu",
                       l->name, (long long)json_integer_value(id), MF_ADDED_MAX_BYTES, size);
    }
    /* Tokenizers gives ids by this rule whatever the file says; a file that says otherwise means something else. */
    int64_t known = mf_vocab_find(&l->tok->vocab, text, size);
    int64_t expected = known >= 0 ? known : *highest >= (int64_t)base_size ? *highest + 1 : (int64_t)base_size;
    if (known >= 0 && l->tok->flags[known]) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: added_tokens: \"%.100s\" occurs twice", l->name, text);
    }
    if (json_integer_value(id) != expected) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: added_tokens: \"%.100s\": expected id %lld; got %lld", l->name, text,
                       (long long)expected, (long long)json_integer_value(id));
    }
    if (known < 0) {
        MF_TRY(mf_load_add_token(l, "added_tokens", text, size, expected));
    }
    *highest = expected > *highest ? expected : *highest;
    mf_added_token *token = NULL;
    MF_TRY(mf_load_put_added(l, text, size, (int32_t)expected, &token));
    MF_TRY(mf_load_bool(l, item, "added_tokens", "special", &token->special));
    l->tok->flags[expected] |= token->special ? MF_TOKEN_SPECIAL : 0;
    MF_TRY(mf_load_bool(l, item, "added_tokens", "normalized", &token->normalized));
    MF_TRY(mf_load_bool(l, item, "added_tokens", "lstrip", &token->lstrip));
    MF_TRY(mf_load_bool(l, item, "added_tokens", "rstrip", &token->rstrip));
    return mf_load_bool(l, item, "added_tokens", "single_word", &token->single_word);
}

mf_status mf_load_added_tokens(mf_tokenizer_loader *l)
{
    const json_t *list = json_object_get(l->root, "added_tokens");
    size_t count = json_is_array(list) ? json_array_size(list) : 0, base_size = l->tok->vocab.size;
    if (list && !json_is_array(list) && !json_is_null(list)) {
        return mf_load_mismatch(l, "added_tokens", "a list", list);
    }
    MF_TRY(mf_load_begin_added(l, count));
    int64_t highest = -1;
    for (size_t i = 0; i < count; i++) {
        MF_TRY(load_added_token(l, json_array_get(list, i), base_size, &highest));
    }
    return mf_load_finish_added(l);
}
