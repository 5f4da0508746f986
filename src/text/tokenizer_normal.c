/* tokenizer_normal.c - the two ends of a tokenizer.json: normalizer, what is done to a text first, and decoder, what
 * becomes of tokens' texts.  What is not known is refused by name. */
#include <string.h>

#include "base/sys.h"
#include "text/tokenizer_load.h"
#include "text/utf8.h"

/* A member that must be a string of at most MF_NORMALIZER_MAX_TEXT bytes. */
static mf_status read_text(const mf_tokenizer_loader *l, const json_t *object, const char *where, const char *key,
                           char **text, size_t *size)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s.%s: expected a string; got %s", l->name, where, key,
                       mf_json_type_name(value));
    }
    if (json_string_length(value) > MF_NORMALIZER_MAX_TEXT) {
        return mf_fail(l->err, MF_ERR_UNSUPPORTED, "%s: %s.%s: more than %d bytes are not supported", l->name, where,
                       key, MF_NORMALIZER_MAX_TEXT);
    }
    *size = json_string_length(value);
    *text = mf_strndup(json_string_value(value), *size);
    return *text ? MF_OK : mf_load_no_memory(l);
}

/* {"pattern": {"String": ..}, "content": ..} */
static mf_status load_replace(const mf_tokenizer_loader *l, const json_t *item, const char *where, mf_replacement *out)
{
    const json_t *pattern = json_object_get(item, "pattern");
    if (!json_is_object(pattern) || json_object_size(pattern) != 1) {
        return mf_fail(l->err, MF_ERR_FORMAT,
                       "%s: %s Replace.pattern: expected an object with one of Regex, String; got %s", l->name, where,
                       mf_json_type_name(pattern));
    }
    if (!json_object_get(pattern, "String")) {
        return mf_load_unsupported(l, where, "Replace with a Regex");
    }
    MF_TRY(read_text(l, pattern, where, "String", &out->pattern, &out->pattern_size));
    MF_TRY(read_text(l, item, where, "content", &out->content, &out->content_size));
    return out->pattern_size > 0 ? MF_OK : mf_load_unsupported(l, where, "Replace of an empty String");
}

mf_status mf_load_normalizer(mf_tokenizer_loader *l)
{
    const json_t *items[MF_LOAD_MAX_COMPONENTS];
    size_t count;
    mf_normalizer *normalizer = &l->tok->normalizer;
    MF_TRY(mf_load_flatten(l, "normalizer", "normalizers", items, &count));
    for (size_t i = 0; i < count; i++) {
        const char *type;
        MF_TRY(mf_load_type(l, items[i], "normalizer", &type));
        if (normalizer->num_steps == MF_NORMALIZER_MAX_STEPS) {
            return mf_load_unsupported(l, "normalizer", "Sequence of more than 16 components");
        }
        mf_normalizer_step *step = &normalizer->steps[normalizer->num_steps++];
        if (strcmp(type, "NFC") == 0) {
            step->kind = MF_NORMALIZER_NFC;
        } else if (strcmp(type, "Prepend") == 0) {
            step->kind = MF_NORMALIZER_PREPEND;
            MF_TRY(
                read_text(l, items[i], "normalizer Prepend", "prepend", &step->text.content, &step->text.content_size));
        } else if (strcmp(type, "Replace") == 0) {
            step->kind = MF_NORMALIZER_REPLACE;
            MF_TRY(load_replace(l, items[i], "normalizer", &step->text));
        } else {
            return mf_load_unsupported(l, "normalizer", type);
        }
    }
    return MF_OK;
}

/* ---- decoder ------------------------------------------------------------------------------------------------------
 */

static mf_status load_strip(const mf_tokenizer_loader *l, const json_t *item, mf_decoder *decoder)
{
    const json_t *content = json_object_get(item, "content"), *start = json_object_get(item, "start"),
                 *stop = json_object_get(item, "stop");
    size_t size = json_string_length(content), at = 0;
    if (!json_is_string(content) || size == 0 || (mf_utf8_next(json_string_value(content), &at), at != size)) {
        return mf_load_mismatch(l, "decoder Strip.content", "one character", content);
    }
    if (!json_is_integer(start) || json_integer_value(start) < 0) {
        return mf_load_mismatch(l, "decoder Strip.start", "a number of characters", start);
    }
    if (!json_is_integer(stop) || json_integer_value(stop) != 0) {
        return mf_load_unsupported(l, "decoder", "Strip at a text's end");
    }
    memcpy(decoder->strip, json_string_value(content), size);
    decoder->strip_size = size;
    decoder->strip_count = (size_t)json_integer_value(start);
    return MF_OK;
}

/* What Metaspace undoes: its replacement is a blank again, and nothing in the first token unless it puts none before.
 */
static mf_status load_metaspace(const mf_tokenizer_loader *l, const json_t *item, mf_decoder *decoder)
{
    mf_replacement *replacement = &decoder->replacements[decoder->num_replacements++];
    const json_t *scheme = json_object_get(item, "prepend_scheme");
    bool prefix = true;
    size_t at = 0;
    MF_TRY(read_text(l, item, "decoder Metaspace", "replacement", &replacement->pattern, &replacement->pattern_size));
    if (replacement->pattern_size == 0 || (mf_utf8_next(replacement->pattern, &at), at != replacement->pattern_size)) {
        return mf_load_mismatch(l, "decoder Metaspace.replacement", "one character",
                                json_object_get(item, "replacement"));
    }
    replacement->content = mf_strndup(" ", 1);
    replacement->content_size = 1;
    if (!replacement->content) {
        return mf_load_no_memory(l);
    }
    if (json_object_get(item, "add_prefix_space")) {
        MF_TRY(mf_load_bool(l, item, "decoder Metaspace", "add_prefix_space", &prefix));
    }
    decoder->drops_in_first = prefix && !(json_is_string(scheme) && strcmp(json_string_value(scheme), "never") == 0);
    return MF_OK;
}

static mf_status load_byte_level(mf_tokenizer_loader *l, const json_t *const *items, size_t count)
{
    l->tok->decoder.byte_level = true;
    l->tok->decoder.plain_from = INT32_MAX;
    for (size_t i = 0; i < count; i++) {
        const char *type;
        MF_TRY(mf_load_type(l, items[i], "decoder", &type));
        /* After ByteLevel there is one string, which Fuse leaves alone. */
        if (strcmp(type, i == 0 ? "ByteLevel" : "Fuse") != 0) {
            return mf_load_unsupported(l, "decoder", type);
        }
    }
    return count > 0 ? MF_OK : mf_load_unsupported(l, "decoder", "null");
}

mf_status mf_load_decoder(mf_tokenizer_loader *l)
{
    const json_t *items[MF_LOAD_MAX_COMPONENTS];
    size_t count;
    mf_decoder *decoder = &l->tok->decoder;
    bool fused = false, any = false;
    MF_TRY(mf_load_flatten(l, "decoder", "decoders", items, &count));
    if (!l->tok->by_chars) {
        return load_byte_level(l, items, count);
    }
    for (size_t i = 0; i < count; i++) {
        const char *type;
        MF_TRY(mf_load_type(l, items[i], "decoder", &type));
        if (strcmp(type, "ByteLevel") == 0) {
            return mf_load_unsupported(l, "decoder", "ByteLevel without a pre_tokenizer ByteLevel");
        }
        bool replaces = strcmp(type, "Replace") == 0, metaspace = strcmp(type, "Metaspace") == 0;
        if (replaces || metaspace) {
            /* What they find must lie within one token, and Metaspace must see tokens as they are. */
            if (fused || decoder->byte_fallback || (metaspace && i > 0) ||
                decoder->num_replacements == MF_DECODER_MAX_REPLACEMENTS) {
                return mf_load_unsupported(l, "decoder Sequence: this place of", type);
            }
            any = true;
            MF_TRY(replaces ? load_replace(l, items[i], "decoder", &decoder->replacements[decoder->num_replacements++])
                            : load_metaspace(l, items[i], decoder));
        } else if (strcmp(type, "ByteFallback") == 0 && !fused) {
            any = decoder->byte_fallback = true;
        } else if (strcmp(type, "Fuse") == 0) {
            any = fused = true;
        } else if (strcmp(type, "Strip") == 0 && fused && decoder->strip_count == 0) {
            MF_TRY(load_strip(l, items[i], decoder));
        } else {
            return mf_load_unsupported(l, "decoder", type);
        }
    }
    return any ? MF_OK : mf_load_unsupported(l, "decoder", "null");
}
