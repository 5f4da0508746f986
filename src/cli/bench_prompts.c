/* bench_prompts.c - see bench_prompts.h. */
#include "cli/bench_prompts.h"

#include <math.h>
#include <string.h>

#include "base/json.h"
#include "base/random.h"
#include "base/sys.h"
#include "cli/jsonl.h"

enum { MAX_ADJUSTMENTS = 10, DEFAULT_OUTPUT_LEN = 256 };

void mf_bench_prompts_close(mf_bench_prompts *prompts)
{
    for (int64_t i = 0; prompts->items && i < prompts->count; i++) {
        mf_free(prompts->items[i].text);
        mf_free(prompts->items[i].ids);
    }
    mf_free(prompts->items);
    *prompts = (mf_bench_prompts){ 0 };
}

static mf_status out_of_memory(mf_error *err)
{
    return mf_fail(err, MF_ERR_NOMEM, "bench: out of memory for prompts");
}

/* ---- random ---- */

static int64_t draw_length(int64_t length, double ratio, int64_t least, uint64_t *state)
{
    int64_t low = (int64_t)floor((double)length * (1 - ratio)), high = (int64_t)ceil((double)length * (1 + ratio));
    low = low < least ? least : low;
    high = high < low ? low : high;
    return low + (int64_t)mf_random_below(state, (uint64_t)(high - low + 1));
}

/* Makes text and ids agree: too many ids are cut, missing ones are drawn, and the text is made anew, a few times. */
static mf_status settle(const mf_tokenizer *tok, const mf_ids *allowed, mf_ids *ids, size_t wanted, uint64_t *state,
                        mf_buffer *text, mf_error *err)
{
    for (int32_t round = 0;; round++) {
        mf_buffer_clear(text);
        MF_TRY(mf_tokenizer_decode(tok, ids->data, ids->size, false, text, err));
        ids->size = 0;
        MF_TRY(mf_tokenizer_encode(tok, mf_buffer_text(text), text->size, 0, ids, err));
        if (ids->size == wanted || round == MAX_ADJUSTMENTS) {
            return MF_OK;
        }
        if (ids->size > wanted) {
            ids->size = wanted;
            continue;
        }
        if (ids->capacity < wanted) {
            int32_t *more = mf_resize_array(ids->data, wanted, sizeof *more);
            if (!more) {
                return out_of_memory(err);
            }
            ids->data = more;
            ids->capacity = wanted;
        }
        while (ids->size < wanted) {
            ids->data[ids->size++] = allowed->data[mf_random_below(state, allowed->size)];
        }
    }
}

static mf_status allowed_ids(const mf_tokenizer *tok, mf_ids *out, mf_error *err)
{
    const int32_t n = mf_tokenizer_vocab_size(tok);
    out->data = mf_alloc_array((size_t)n, sizeof *out->data);
    if (!out->data) {
        return out_of_memory(err);
    }
    out->capacity = (size_t)n;
    for (int32_t id = 0; id < n; id++) {
        size_t size = 0;
        const char *bytes = mf_tokenizer_token_bytes(tok, id, &size);
        /* Bytes that are no character alone would all become the same U+FFFD, and a NUL is what servers refuse in JSON.
         */
        if (!mf_tokenizer_is_special(tok, id) && bytes && size && !memchr(bytes, '\0', size) &&
            mf_utf8_valid(bytes, size, NULL)) {
            out->data[out->size++] = id;
        }
    }
    return out->size ? MF_OK : mf_fail(err, MF_ERR_INVALID, "the tokenizer has no token that is text");
}

static mf_status make_random(const mf_tokenizer *tok, const mf_random_prompts *o, const mf_ids *allowed,
                             const int32_t *prefix, size_t num_special, uint64_t *state, mf_bench_prompt *out,
                             int64_t index, int64_t *num_inexact, mf_error *err)
{
    size_t length = (size_t)draw_length(o->input_len, o->range_ratio, o->prefix_len ? 0 : 1, state);
    length = length > num_special ? length - num_special : o->prefix_len ? 0 : 1;
    size_t wanted = (size_t)o->prefix_len + length;
    out->output_len = draw_length(o->output_len, o->range_ratio, 1, state);
    uint64_t offset = mf_random_below(state, allowed->size);
    mf_ids ids = { .data = mf_alloc_array(wanted, sizeof *ids.data), .size = wanted, .capacity = wanted };
    if (!ids.data) {
        return out_of_memory(err);
    }
    if (o->prefix_len) {
        memcpy(ids.data, prefix, (size_t)o->prefix_len * sizeof *prefix);
    }
    for (size_t i = 0; i < length; i++) {
        ids.data[(size_t)o->prefix_len + i] = allowed->data[(offset + (uint64_t)index + i) % allowed->size];
    }
    mf_buffer text = { 0 };
    mf_status status = settle(tok, allowed, &ids, wanted, state, &text, err);
    if (status == MF_OK) {
        *num_inexact += ids.size != wanted;
        out->prompt_len = (int64_t)ids.size;
        out->size = text.size;
        out->text = mf_strndup(mf_buffer_text(&text), text.size);
        status = out->text ? MF_OK : out_of_memory(err);
    }
    mf_buffer_close(&text);
    mf_ids_close(&ids);
    return status;
}

mf_status mf_bench_prompts_random(const mf_tokenizer *tok, const mf_random_prompts *o, mf_bench_prompts *out,
                                  mf_error *err)
{
    *out = (mf_bench_prompts){ 0 };
    uint64_t state = o->seed;
    mf_ids allowed = { 0 };
    int32_t *prefix = mf_alloc_array((size_t)o->prefix_len + 1, sizeof *prefix);
    mf_status status = prefix ? allowed_ids(tok, &allowed, err) : out_of_memory(err);
    mf_ids special = { 0 };
    if (status == MF_OK) {
        status = mf_tokenizer_encode(tok, "", 0, MF_ENCODE_ADD_SPECIAL, &special, err);
    }
    size_t num_special = special.size;
    mf_ids_close(&special);
    for (int64_t i = 0; status == MF_OK && i < o->prefix_len; i++) {
        prefix[i] = allowed.data[mf_random_below(&state, allowed.size)];
    }
    if (status == MF_OK) {
        out->items = mf_alloc_array((size_t)o->count, sizeof *out->items);
        status = out->items ? MF_OK : out_of_memory(err);
    }
    for (int64_t i = 0; status == MF_OK && i < o->count; i++) {
        out->count = i + 1;
        status = make_random(tok, o, &allowed, prefix, num_special, &state, &out->items[i], i, &out->num_inexact, err);
    }
    mf_free(prefix);
    mf_ids_close(&allowed);
    if (status != MF_OK) {
        mf_bench_prompts_close(out);
    }
    return status;
}

mf_status mf_bench_prompts_random_ids(int64_t vocab_size, const mf_random_prompts *o, mf_bench_prompts *out,
                                      mf_error *err)
{
    *out = (mf_bench_prompts){ 0 };
    uint64_t state = o->seed;
    const uint64_t prefix_seed = mf_random_below(&state, UINT64_MAX);
    out->items = mf_alloc_array((size_t)o->count, sizeof *out->items);
    if (!out->items) {
        return out_of_memory(err);
    }
    for (int64_t i = 0; i < o->count; i++) {
        mf_bench_prompt *p = &out->items[i];
        uint64_t prefix_state = prefix_seed;
        out->count = i + 1;
        p->prompt_len = o->prefix_len + draw_length(o->input_len, o->range_ratio, o->prefix_len ? 0 : 1, &state);
        p->output_len = draw_length(o->output_len, o->range_ratio, 1, &state);
        p->ids = mf_alloc_array((size_t)p->prompt_len, sizeof *p->ids);
        if (!p->ids) {
            mf_bench_prompts_close(out);
            return out_of_memory(err);
        }
        for (int64_t k = 0; k < p->prompt_len; k++) {
            uint64_t *from = k < o->prefix_len ? &prefix_state : &state;
            p->ids[k] = (int32_t)mf_random_below(from, (uint64_t)vocab_size);
        }
    }
    return MF_OK;
}

/* ---- files ---- */

static mf_status count_tokens(const mf_tokenizer *tok, const char *text, size_t size, int64_t *out, mf_error *err)
{
    *out = 0;
    if (!tok) {
        return MF_OK;
    }
    mf_ids ids = { 0 };
    mf_status status = mf_tokenizer_encode(tok, text, size, MF_ENCODE_ADD_SPECIAL, &ids, err);
    *out = (int64_t)ids.size;
    mf_ids_close(&ids);
    return status;
}

static const json_t *text_of(const json_t *entry, bool sharegpt)
{
    if (sharegpt) {
        return json_object_get(json_array_get(json_object_get(entry, "conversations"), 0), "value");
    }
    const json_t *text = json_object_get(entry, "prompt");
    return text ? text : json_object_get(entry, "question");
}

static mf_status take_entry(const mf_tokenizer *tok, const char *path, const json_t *entry, size_t number,
                            bool sharegpt, int64_t output_len, mf_bench_prompt *out, mf_error *err)
{
    const json_t *text = text_of(entry, sharegpt);
    if (!json_is_string(text) || json_string_length(text) == 0) {
        return mf_fail(err, MF_ERR_FORMAT, "%.400s: entry %zu: expected %s; got %s", path, number,
                       sharegpt ? "\"conversations\" of {\"value\"}" : "a string \"prompt\" or \"question\"",
                       mf_json_type_name(text));
    }
    const char *prompt = json_string_value(text);
    out->size = json_string_length(text);
    MF_TRY(count_tokens(tok, prompt, out->size, &out->prompt_len, err));
    out->output_len = output_len;
    if (output_len <= 0 && sharegpt) {
        const json_t *answer = json_object_get(json_array_get(json_object_get(entry, "conversations"), 1), "value");
        MF_TRY(count_tokens(tok, json_is_string(answer) ? json_string_value(answer) : "", json_string_length(answer),
                            &out->output_len, err));
    } else if (output_len <= 0) {
        const json_t *asked = json_object_get(entry, "output_tokens");
        out->output_len = json_is_integer(asked) ? json_integer_value(asked) : DEFAULT_OUTPUT_LEN;
    }
    out->output_len = out->output_len < 1 ? 1 : out->output_len;
    out->text = mf_strndup(prompt, out->size);
    return out->text ? MF_OK : out_of_memory(err);
}

static void shuffle(json_t *entries, uint64_t seed)
{
    uint64_t state = seed ^ 0x73687566666c65u;
    for (size_t i = json_array_size(entries); i > 1; i--) {
        size_t j = (size_t)mf_random_below(&state, i);
        json_t *a = json_incref(json_array_get(entries, i - 1)), *b = json_incref(json_array_get(entries, j));
        json_array_set_new(entries, i - 1, b);
        json_array_set_new(entries, j, a);
    }
}

mf_status mf_bench_prompts_file(const mf_tokenizer *tok, const char *path, bool sharegpt, int64_t count,
                                int64_t output_len, uint64_t seed, mf_bench_prompts *out, mf_error *err)
{
    *out = (mf_bench_prompts){ 0 };
    if (sharegpt && !tok && output_len <= 0) {
        return mf_fail(err, MF_ERR_INVALID,
                       "--dataset-name sharegpt: expected --tokenizer DIR or --output-len; got neither");
    }
    json_t *entries = NULL;
    mf_status status = mf_jsonl_load(path, &entries, err);
    if (status == MF_OK && json_array_size(entries) == 0) {
        status = mf_fail(err, MF_ERR_FORMAT, "%.400s: expected prompts; got an empty file", path);
    }
    if (status == MF_OK) {
        if (sharegpt) {
            shuffle(entries, seed);
        }
        out->items = mf_alloc_array((size_t)count, sizeof *out->items);
        status = out->items ? MF_OK : out_of_memory(err);
    }
    for (int64_t i = 0; status == MF_OK && i < count; i++) {
        size_t number = (size_t)i % json_array_size(entries);
        out->count = i + 1;
        status = take_entry(tok, path, json_array_get(entries, number), number + 1, sharegpt, output_len,
                            &out->items[i], err);
    }
    json_decref(entries);
    if (status != MF_OK) {
        mf_bench_prompts_close(out);
    }
    return status;
}
