/* tiktoken.c - reading a tiktoken file: see tiktoken.h.  The files are hostile until checked. */
#include "text/tiktoken.h"

#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "text/tokenizer_load.h"
#include "text/utf8.h"

enum {
    MAX_TOKEN_BYTES = MF_VOCAB_MAX_TOKEN_BYTES / 2, /* as text, a byte takes up to two */
    MAX_SPLIT_WORK = 1 << 28 /* squares of tokens' lengths, summed: real files have a twentieth */
};

typedef struct reader {
    mf_tokenizer_loader *l;
    const mf_tiktoken_class *class;
    const char *text;
    size_t size, at;
    int64_t line;
    uint8_t token[MAX_TOKEN_BYTES];
    size_t token_size;
} reader;

static mf_status fail_line(const reader *r, mf_status status, const char *message)
{
    return mf_fail(r->l->err, status, "%s: line %lld: %s", r->l->name, (long long)r->line, message);
}

/* ---- lines --------------------------------------------------------------------------------------------------------
 */

static int32_t base64_digit(char c)
{
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}

static mf_status read_base64(reader *r)
{
    size_t begin = r->at;
    uint32_t bits = 0;
    r->token_size = 0;
    for (; r->at < r->size && base64_digit(r->text[r->at]) >= 0; r->at++) {
        size_t place = (r->at - begin) % 4;
        bits = bits << 6 | (uint32_t)base64_digit(r->text[r->at]);
        if (place > 0) {
            if (r->token_size == MAX_TOKEN_BYTES) {
                return fail_line(r, MF_ERR_LIMIT, "a token of more than 2048 bytes");
            }
            r->token[r->token_size++] = (uint8_t)(bits >> (6 - 2 * place));
        }
    }
    size_t digits = r->at - begin, padding = 0;
    while (r->at < r->size && r->text[r->at] == '=') {
        r->at++;
        padding++;
    }
    if (digits == 0 || digits % 4 == 1 || padding != (4 - digits % 4) % 4) {
        return fail_line(r, MF_ERR_FORMAT, "expected a token in base64");
    }
    return MF_OK;
}

static mf_status read_rank(reader *r, int64_t *rank)
{
    size_t begin = r->at;
    *rank = 0;
    for (; r->at < r->size && r->text[r->at] >= '0' && r->text[r->at] <= '9'; r->at++) {
        *rank = *rank * 10 + (r->text[r->at] - '0');
        if (*rank >= MF_VOCAB_MAX_IDS) {
            return mf_fail(r->l->err, MF_ERR_LIMIT, "%s: line %lld: expected a rank from 0 to %d", r->l->name,
                           (long long)r->line, MF_VOCAB_MAX_IDS - 1);
        }
    }
    return r->at > begin ? MF_OK : fail_line(r, MF_ERR_FORMAT, "expected a rank behind the token");
}

static bool skip_blanks(reader *r)
{
    size_t begin = r->at;
    while (r->at < r->size && (r->text[r->at] == ' ' || r->text[r->at] == '\t')) {
        r->at++;
    }
    return r->at > begin;
}

static bool skip_line_end(reader *r)
{
    r->at += r->at + 1 < r->size && r->text[r->at] == '\r' && r->text[r->at + 1] == '\n';
    if (r->at < r->size && r->text[r->at] == '\n') {
        r->at++;
        return true;
    }
    return r->at == r->size;
}

static mf_status add_base_token(reader *r, int64_t rank)
{
    char text[2 * MAX_TOKEN_BYTES], where[64];
    size_t size = 0;
    mf_vocab *vocab = &r->l->tok->vocab;
    for (size_t i = 0; i < r->token_size; i++) {
        size += mf_utf8_put(mf_byte_to_char(r->token[i]), text + size);
    }
    if (r->class->counts_lines) {
        if (mf_vocab_find(vocab, text, size) >= 0) {
            return MF_OK;
        }
        rank = (int64_t)vocab->num_tokens;
    }
    snprintf(where, sizeof where, "line %lld", (long long)r->line);
    return mf_load_add_token(r->l, where, text, size, rank);
}

static mf_status read_base_tokens(reader *r)
{
    for (r->line = 1; r->at < r->size; r->line++) {
        if (skip_line_end(r)) {
            continue;
        }
        int64_t rank = 0;
        MF_TRY(read_base64(r));
        if (!skip_blanks(r)) {
            return fail_line(r, MF_ERR_FORMAT, "expected a token in base64, a blank and a rank");
        }
        MF_TRY(read_rank(r, &rank));
        if (!skip_line_end(r)) {
            return fail_line(r, MF_ERR_FORMAT, "expected the line's end behind the rank");
        }
        MF_TRY(add_base_token(r, rank));
    }
    const mf_vocab *vocab = &r->l->tok->vocab;
    if (vocab->num_tokens == 0) {
        return mf_fail(r->l->err, MF_ERR_FORMAT, "%s: expected lines of a token in base64 and its rank; got none",
                       r->l->name);
    }
    if (vocab->num_tokens != vocab->size) {
        return mf_fail(r->l->err, MF_ERR_FORMAT, "%s: expected ranks without gaps; got %zu tokens with ranks up to %zu",
                       r->l->name, vocab->num_tokens, vocab->size - 1);
    }
    return MF_OK;
}

/* ---- merges -------------------------------------------------------------------------------------------------------
 */

static mf_status find_bytes(mf_tokenizer_loader *l)
{
    for (int b = 0; b < 256; b++) {
        char text[4];
        int32_t id = mf_vocab_find(&l->tok->vocab, text, mf_utf8_put(mf_byte_to_char((uint8_t)b), text));
        if (id < 0) {
            return mf_fail(l->err, MF_ERR_FORMAT, "%s: no token is the byte 0x%02x alone", l->name, (unsigned)b);
        }
        l->tok->bpe.byte_ids[b] = id;
    }
    return MF_OK;
}

typedef struct merge_list {
    uint64_t *keys;
    int32_t *ranks;
    size_t count, capacity;
} merge_list;

static mf_status add_merge(const mf_tokenizer_loader *l, merge_list *list, int32_t left, int32_t right, int32_t rank)
{
    if (list->count == MF_BPE_MAX_MERGES) {
        return mf_fail(l->err, MF_ERR_LIMIT, "%s: more than %d ways to join two tokens to another", l->name,
                       MF_BPE_MAX_MERGES);
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 4096;
        uint64_t *keys = mf_resize_array(list->keys, capacity, sizeof *keys);
        list->keys = keys ? keys : list->keys;
        int32_t *ranks = mf_resize_array(list->ranks, capacity, sizeof *ranks);
        list->ranks = ranks ? ranks : list->ranks;
        if (!keys || !ranks) {
            return mf_load_no_memory(l);
        }
        list->capacity = capacity;
    }
    list->keys[list->count] = (uint64_t)(uint32_t)left << 20 | (uint32_t)right;
    list->ranks[list->count++] = rank;
    return MF_OK;
}

/* Each way to cut a token into two tokens is a merge with the token's rank. */
static mf_status add_splits(const mf_tokenizer_loader *l, merge_list *list, int32_t id)
{
    const mf_vocab *vocab = &l->tok->vocab;
    size_t size, at = 0;
    const char *text = mf_vocab_text(vocab, id, &size);
    mf_utf8_next(text, &at);
    while (at < size) {
        int32_t left = mf_vocab_find(vocab, text, at);
        int32_t right = left < 0 ? -1 : mf_vocab_find(vocab, text + at, size - at);
        if (right >= 0) {
            MF_TRY(add_merge(l, list, left, right, id));
        }
        mf_utf8_next(text, &at);
    }
    return MF_OK;
}

static mf_status make_merges(mf_tokenizer_loader *l)
{
    mf_bpe *bpe = &l->tok->bpe;
    const mf_vocab *vocab = &l->tok->vocab;
    merge_list list = { 0 };
    uint64_t work = 0;
    bpe->num_ids = (int32_t)vocab->size;
    bpe->num_ranks = vocab->size;
    bpe->whole_words = true;
    bpe->rank_ids = mf_alloc_array(vocab->size, sizeof *bpe->rank_ids);
    mf_status status = bpe->rank_ids ? MF_OK : mf_load_no_memory(l);
    for (int32_t id = 0; id < bpe->num_ids && status == MF_OK; id++) {
        size_t size = vocab->entries[id].text_size;
        bpe->rank_ids[id] = id;
        work += (uint64_t)size * size;
        if (work > MAX_SPLIT_WORK) {
            status = mf_fail(l->err, MF_ERR_LIMIT, "%s: too many long tokens", l->name);
        } else {
            status = add_splits(l, &list, id);
        }
    }
    if (status == MF_OK) {
        status = mf_load_set_merges(l, "ranks", list.keys, list.ranks, list.count);
    }
    mf_free(list.keys);
    mf_free(list.ranks);
    return status;
}

/* ---- special tokens -----------------------------------------------------------------------------------------------
 */

typedef struct special {
    char own[64];     /* what it is called unless the configuration says */
    const char *text; /* NUL-terminated */
    bool is_special;
} special;

/* "<|extra_7|>" for what tokenizer_config.json leaves out. */
static void name_special(const mf_tiktoken_class *class, int32_t base, int32_t index, special *out)
{
    int32_t num_first = 0;
    while (class->first_specials[num_first] && num_first < index) {
        num_first++;
    }
    out->is_special = true;
    out->text = class->first_specials[num_first];
    if (!out->text) {
        snprintf(out->own, sizeof out->own, "%s%d|>", class->other_specials,
                 class->others_have_ids ? base + index : index - num_first);
        out->text = out->own;
    }
}

/* added_tokens_decoder: {"163584": {"content": "[BOS]", "special": true, ..}, ..} */
static mf_status read_named(mf_tokenizer_loader *l, const json_t *config, int32_t base, int32_t count,
                            special *specials)
{
    const json_t *named = json_object_get(config, "added_tokens_decoder"), *item;
    const char *key;
    if (named && !json_is_object(named) && !json_is_null(named)) {
        return mf_load_mismatch(l, "added_tokens_decoder", "an object", named);
    }
    json_object_foreach((json_t *)named, key, item)
    {
        int64_t id = 0;
        for (const char *c = key; *c; c++) {
            id = *c >= '0' && *c <= '9' && id < MF_VOCAB_MAX_IDS ? id * 10 + (*c - '0') : MF_VOCAB_MAX_IDS;
        }
        if (!key[0] || id < base || id >= base + count) {
            return mf_fail(l->err, MF_ERR_FORMAT, "%s: added_tokens_decoder: \"%.40s\": expected ids from %d to %d",
                           l->name, key, base, base + count - 1);
        }
        const json_t *content = json_object_get(item, "content");
        if (!json_is_string(content)) {
            return mf_load_mismatch(l, "added_tokens_decoder", "objects with a string \"content\"", item);
        }
        if (json_string_length(content) == 0 || json_string_length(content) > MF_ADDED_MAX_BYTES) {
            return mf_fail(l->err, MF_ERR_FORMAT,
                           "%s: added_tokens_decoder: id %lld: expected a content of 1 to %d bytes; got %zu", l->name,
                           (long long)id, MF_ADDED_MAX_BYTES, json_string_length(content));
        }
        special *s = &specials[id - base];
        s->text = json_string_value(content);
        if (json_object_get(item, "special")) {
            MF_TRY(mf_load_bool(l, item, "added_tokens_decoder", "special", &s->is_special));
        }
    }
    return MF_OK;
}

static mf_status add_specials(mf_tokenizer_loader *l, const mf_tiktoken_class *class, const json_t *config)
{
    int32_t base = (int32_t)l->tok->vocab.size, count = class->num_specials;
    special *specials = mf_alloc_array((size_t)count, sizeof *specials);
    if (!specials) {
        return mf_load_no_memory(l);
    }
    for (int32_t i = 0; i < count; i++) {
        name_special(class, base, i, &specials[i]);
    }
    mf_status status = read_named(l, config, base, count, specials);
    if (status == MF_OK) {
        status = mf_load_begin_added(l, (size_t)count);
    }
    for (int32_t i = 0; i < count && status == MF_OK; i++) {
        const char *text = specials[i].text;
        mf_added_token *token = NULL;
        status = mf_load_add_token(l, "special tokens", text, strlen(text), base + i);
        if (status == MF_OK) {
            status = mf_load_put_added(l, text, strlen(text), base + i, &token);
        }
        if (status == MF_OK) {
            token->special = specials[i].is_special;
            l->tok->flags[base + i] |= token->special ? MF_TOKEN_SPECIAL : 0;
        }
    }
    mf_free(specials);
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------
 */

static mf_status prepare_text(mf_tokenizer_loader *l, const mf_tiktoken_class *class)
{
    mf_tokenizer *tok = l->tok;
    if (class->nfc) {
        tok->normalizer.steps[tok->normalizer.num_steps++].kind = MF_NORMALIZER_NFC;
    }
    mf_pretokenizer_step *step = &tok->pre.steps[tok->pre.num_steps++];
    step->behavior = MF_SPLIT_ISOLATED;
    tok->decoder.byte_level = true;
    return mf_pattern_compile(class->pattern, strlen(class->pattern), &step->pattern, l->err);
}

static mf_status load(reader *r, const json_t *config, const char *config_name)
{
    mf_tokenizer_loader *l = r->l;
    MF_TRY(prepare_text(l, r->class));
    MF_TRY(read_base_tokens(r));
    l->tok->decoder.plain_from = (int32_t)l->tok->vocab.size;
    MF_TRY(find_bytes(l));
    MF_TRY(make_merges(l));
    l->name = config_name;
    MF_TRY(add_specials(l, r->class, config));
    return mf_load_finish_added(l);
}

mf_status mf_tiktoken_parse(const mf_tiktoken_class *class, const char *text, size_t size, const char *name,
                            const json_t *config, const char *config_name, mf_tokenizer **out, mf_error *err)
{
    *out = NULL;
    if (size > MF_TOKENIZER_MAX_FILE_BYTES) {
        return mf_fail(err, MF_ERR_LIMIT, "%s: expected at most %d bytes; got %zu", name, MF_TOKENIZER_MAX_FILE_BYTES,
                       size);
    }
    mf_tokenizer *tok = mf_alloc_zero(sizeof *tok);
    mf_tokenizer_loader loader = { .tok = tok, .name = name, .err = err };
    reader *r = mf_alloc_zero(sizeof *r);
    if (r) {
        *r = (reader){ .l = &loader, .class = class, .text = text, .size = size };
    }
    mf_status status = tok && r ? load(r, config, config_name) : mf_load_no_memory(&loader);
    mf_free(r);
    if (status != MF_OK) {
        mf_tokenizer_close(&tok);
        return status;
    }
    *out = tok;
    return MF_OK;
}
