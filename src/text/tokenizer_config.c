/* tokenizer_config.c - two of the components of a tokenizer.json around its model: pre_tokenizer and post_processor,
 * and how any of them is read.  Each is one component or a Sequence of them; what is not known is refused by name. */
#include <string.h>

#include "text/tokenizer_load.h"
#include "text/utf8.h"

/* GPT-2's pattern, which a ByteLevel pre-tokenizer uses unless told not to. */
static const char byte_level_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

mf_status mf_load_mismatch(const mf_tokenizer_loader *l, const char *where, const char *what, const json_t *got)
{
    return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s: expected %s; got %s", l->name, where, what, mf_json_type_name(got));
}

mf_status mf_load_unsupported(const mf_tokenizer_loader *l, const char *where, const char *type)
{
    return mf_fail(l->err, MF_ERR_UNSUPPORTED, "%s: %s \"%.100s\" is not supported", l->name, where, type);
}

mf_status mf_load_bool(const mf_tokenizer_loader *l, const json_t *object, const char *where, const char *key,
                       bool *value)
{
    const json_t *member = json_object_get(object, key);
    *value = json_is_true(member);
    if (member && !json_is_boolean(member) && !json_is_null(member)) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s.%s: expected true or false; got %s", l->name, where, key,
                       mf_json_type_name(member));
    }
    return MF_OK;
}

mf_status mf_load_type(const mf_tokenizer_loader *l, const json_t *object, const char *where, const char **type)
{
    if (!json_is_object(object)) {
        return mf_load_mismatch(l, where, "an object", object);
    }
    const json_t *member = json_object_get(object, "type");
    if (!json_is_string(member)) {
        return mf_fail(l->err, MF_ERR_FORMAT, "%s: %s.type: expected a string; got %s", l->name, where,
                       mf_json_type_name(member));
    }
    *type = json_string_value(member);
    return MF_OK;
}

mf_status mf_load_flatten(const mf_tokenizer_loader *l, const char *key, const char *list_key, const json_t **out,
                          size_t *count)
{
    struct {
        const json_t *list;
        size_t next;
    } stack[8];
    size_t depth = 0;
    const json_t *item = json_object_get(l->root, key);
    *count = 0;
    if (!item || json_is_null(item)) {
        return MF_OK;
    }
    for (;;) {
        const char *type;
        MF_TRY(mf_load_type(l, item, key, &type));
        if (strcmp(type, "Sequence") == 0) {
            const json_t *list = json_object_get(item, list_key);
            if (!json_is_array(list)) {
                return mf_load_mismatch(l, list_key, "a list", list);
            }
            if (depth == sizeof stack / sizeof *stack) {
                return mf_load_unsupported(l, key, "Sequence nested 8 deep");
            }
            stack[depth].list = list;
            stack[depth++].next = 0;
        } else if (*count == MF_LOAD_MAX_COMPONENTS) {
            return mf_load_unsupported(l, key, "Sequence of more than 64 components");
        } else {
            out[(*count)++] = item;
        }
        while (depth > 0 && stack[depth - 1].next == json_array_size(stack[depth - 1].list)) {
            depth--;
        }
        if (depth == 0) {
            return MF_OK;
        }
        item = json_array_get(stack[depth - 1].list, stack[depth - 1].next++);
    }
}

/* ---- pre_tokenizer ------------------------------------------------------------------------------------------------
 */

static mf_status compile(const mf_tokenizer_loader *l, const json_t *text, bool literal, mf_pattern **pattern)
{
    size_t size = json_string_length(text);
    mf_status status = literal ? mf_pattern_compile_literal(json_string_value(text), size, pattern, l->err)
                               : mf_pattern_compile(json_string_value(text), size, pattern, l->err);
    return status == MF_OK ? MF_OK : mf_fail_context(l->err, status, "%s: pre_tokenizer", l->name);
}

static mf_status load_split(const mf_tokenizer_loader *l, const json_t *item, mf_pretokenizer_step *step)
{
    static const char *const names[] = { [MF_SPLIT_ISOLATED] = "Isolated",
                                         [MF_SPLIT_REMOVED] = "Removed",
                                         [MF_SPLIT_CONTIGUOUS] = "Contiguous",
                                         [MF_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                         [MF_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext" };
    const json_t *pattern = json_object_get(item, "pattern"), *behavior = json_object_get(item, "behavior");
    if (!json_is_object(pattern) || json_object_size(pattern) != 1) {
        return mf_load_mismatch(l, "pre_tokenizer Split.pattern", "an object with one of Regex, String", pattern);
    }
    const json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    if (!json_is_string(regex) && !json_is_string(string)) {
        return mf_load_mismatch(l, "pre_tokenizer Split.pattern.Regex", "a string", regex ? regex : string);
    }
    if (!json_is_string(behavior)) {
        return mf_load_mismatch(l, "pre_tokenizer Split.behavior", "a string", behavior);
    }
    size_t b = 0, num_names = sizeof names / sizeof *names;
    while (b < num_names && strcmp(names[b], json_string_value(behavior)) != 0) {
        b++;
    }
    if (b == num_names) {
        return mf_load_unsupported(l, "pre_tokenizer Split.behavior", json_string_value(behavior));
    }
    step->behavior = (mf_split_behavior)b;
    MF_TRY(mf_load_bool(l, item, "pre_tokenizer Split", "invert", &step->invert));
    return compile(l, regex ? regex : string, !regex, &step->pattern);
}

static mf_status load_digits(const mf_tokenizer_loader *l, const json_t *item, mf_pretokenizer_step *step)
{
    bool individual;
    MF_TRY(mf_load_bool(l, item, "pre_tokenizer Digits", "individual_digits", &individual));
    step->behavior = individual ? MF_SPLIT_ISOLATED : MF_SPLIT_CONTIGUOUS;
    mf_charset digits = { 0 };
    mf_status status = mf_charset_add_categories(&digits, 1u << MF_GC_ND | 1u << MF_GC_NL | 1u << MF_GC_NO);
    if (status == MF_OK) {
        status = mf_charset_add_ranges(&digits, mf_unicode_digits_extra, mf_unicode_digits_extra_count);
    }
    mf_charset_settle(&digits);
    status = status == MF_OK ? mf_pattern_compile_set(&digits, &step->pattern, l->err)
                             : mf_fail(l->err, status, "%s: out of memory", l->name);
    mf_charset_close(&digits);
    return status;
}

static mf_status load_byte_level(const mf_tokenizer_loader *l, const json_t *item, mf_pretokenizer_step *step)
{
    /* Files older than the switch mean true. */
    bool use_regex = true;
    bool prefix_space;
    MF_TRY(mf_load_bool(l, item, "pre_tokenizer ByteLevel", "add_prefix_space", &prefix_space));
    step->prefix = prefix_space ? MF_PREFIX_ALWAYS : MF_PREFIX_NEVER;
    if (json_object_get(item, "use_regex")) {
        MF_TRY(mf_load_bool(l, item, "pre_tokenizer ByteLevel", "use_regex", &use_regex));
    }
    return use_regex ? mf_pattern_compile(byte_level_pattern, sizeof byte_level_pattern - 1, &step->pattern, l->err)
                     : MF_OK;
}

static mf_status load_prepend_scheme(const mf_tokenizer_loader *l, const json_t *item, mf_prefix_place *place)
{
    static const char *const names[] = {
        [MF_PREFIX_NEVER] = "never", [MF_PREFIX_FIRST] = "first", [MF_PREFIX_ALWAYS] = "always"
    };
    const json_t *scheme = json_object_get(item, "prepend_scheme"), *old = json_object_get(item, "add_prefix_space");
    bool old_value = true;
    if (old && !json_is_null(old)) {
        MF_TRY(mf_load_bool(l, item, "pre_tokenizer Metaspace", "add_prefix_space", &old_value));
    }
    *place = MF_PREFIX_ALWAYS;
    if (scheme) {
        if (!json_is_string(scheme)) {
            return mf_load_mismatch(l, "pre_tokenizer Metaspace.prepend_scheme", "a string", scheme);
        }
        size_t i = 0, count = sizeof names / sizeof *names;
        while (i < count && strcmp(names[i], json_string_value(scheme)) != 0) {
            i++;
        }
        if (i == count) {
            return mf_load_unsupported(l, "pre_tokenizer Metaspace.prepend_scheme", json_string_value(scheme));
        }
        *place = (mf_prefix_place)i;
    }
    /* Files older than the scheme have only the switch; tokenizers refuses one that contradicts the scheme. */
    if (!old_value && !scheme) {
        *place = MF_PREFIX_NEVER;
    } else if (!old_value && *place != MF_PREFIX_NEVER) {
        return mf_fail(l->err, MF_ERR_FORMAT,
                       "%s: pre_tokenizer Metaspace.add_prefix_space: contradicts prepend_scheme", l->name);
    }
    return MF_OK;
}

/* Blanks become the replacement, one may be put before, and pieces begin with it. */
static mf_status load_metaspace(const mf_tokenizer_loader *l, const json_t *item, mf_pretokenizer_step *step)
{
    const json_t *replacement = json_object_get(item, "replacement"), *split = json_object_get(item, "split");
    bool does_split = true;
    size_t at = 0;
    if (!json_is_string(replacement) || json_string_length(replacement) == 0) {
        return mf_load_mismatch(l, "pre_tokenizer Metaspace.replacement", "one character", replacement);
    }
    step->blank = mf_utf8_next(json_string_value(replacement), &at);
    if (at != json_string_length(replacement) || step->blank == 0) {
        return mf_load_mismatch(l, "pre_tokenizer Metaspace.replacement", "one character", replacement);
    }
    MF_TRY(load_prepend_scheme(l, item, &step->prefix));
    if (split && !json_is_null(split)) {
        MF_TRY(mf_load_bool(l, item, "pre_tokenizer Metaspace", "split", &does_split));
    }
    step->behavior = MF_SPLIT_MERGED_WITH_NEXT;
    return does_split ? compile(l, replacement, true, &step->pattern) : MF_OK;
}

mf_status mf_load_pre_tokenizer(mf_tokenizer_loader *l)
{
    const json_t *items[MF_LOAD_MAX_COMPONENTS];
    size_t count;
    mf_pretokenizer *pre = &l->tok->pre;
    bool byte_level = false;
    MF_TRY(mf_load_flatten(l, "pre_tokenizer", "pretokenizers", items, &count));
    for (size_t i = 0; i < count; i++) {
        const char *type;
        MF_TRY(mf_load_type(l, items[i], "pre_tokenizer", &type));
        if (byte_level) {
            return mf_fail(l->err, MF_ERR_UNSUPPORTED, "%s: pre_tokenizer \"%.100s\" after ByteLevel is not supported",
                           l->name, type);
        }
        if (pre->num_steps == MF_PRETOKENIZER_MAX_STEPS) {
            return mf_load_unsupported(l, "pre_tokenizer", "Sequence of more than 16 components");
        }
        mf_pretokenizer_step *step = &pre->steps[pre->num_steps++];
        if (strcmp(type, "Split") == 0) {
            MF_TRY(load_split(l, items[i], step));
        } else if (strcmp(type, "Digits") == 0) {
            MF_TRY(load_digits(l, items[i], step));
        } else if (strcmp(type, "Metaspace") == 0) {
            MF_TRY(load_metaspace(l, items[i], step));
        } else if (strcmp(type, "ByteLevel") == 0) {
            byte_level = true;
            MF_TRY(load_byte_level(l, items[i], step));
        } else {
            return mf_load_unsupported(l, "pre_tokenizer", type);
        }
    }
    l->tok->by_chars = !byte_level;
    return MF_OK;
}

/* ---- post_processor -----------------------------------------------------------------------------------------------
 */

static mf_status add_template_id(mf_tokenizer_loader *l, int64_t id)
{
    mf_tokenizer *tok = l->tok;
    if (id != MF_TEMPLATE_SEQUENCE && (id < 0 || (size_t)id >= tok->vocab.size)) {
        return mf_fail(l->err, MF_ERR_FORMAT,
                       "%s: post_processor TemplateProcessing: expected token ids below %zu; got %lld", l->name,
                       tok->vocab.size, (long long)id);
    }
    if (tok->template_size == MF_TEMPLATE_MAX_PIECES) {
        return mf_load_unsupported(l, "post_processor", "TemplateProcessing with more than 64 tokens");
    }
    tok->template_ids[tok->template_size++] = (int32_t)id;
    return MF_OK;
}

/* {"Sequence": {"id": "A"}} or {"SpecialToken": {"id": NAME}}, NAME being a key of special_tokens with its ids. */
static mf_status load_template_piece(mf_tokenizer_loader *l, const json_t *piece, const json_t *specials)
{
    const json_t *sequence = json_object_get(piece, "Sequence"), *special = json_object_get(piece, "SpecialToken");
    const char *id = json_string_value(json_object_get(sequence ? sequence : special, "id"));
    if (!id) {
        return mf_load_mismatch(l, "post_processor TemplateProcessing.single",
                                "pieces {\"Sequence\" or \"SpecialToken\": {\"id\": ..}}", piece);
    }
    if (sequence) {
        return strcmp(id, "A") == 0 ? add_template_id(l, MF_TEMPLATE_SEQUENCE)
                                    : mf_load_unsupported(l, "post_processor TemplateProcessing.single sequence", id);
    }
    const json_t *ids = json_object_get(json_object_get(specials, id), "ids");
    if (!json_is_array(ids)) {
        return mf_fail(l->err, MF_ERR_FORMAT,
                       "%s: post_processor TemplateProcessing.special_tokens: no ids for \"%.100s\"", l->name, id);
    }
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *value = json_array_get(ids, i);
        if (!json_is_integer(value)) {
            return mf_load_mismatch(l, "post_processor TemplateProcessing.special_tokens ids", "integers", value);
        }
        MF_TRY(add_template_id(l, json_integer_value(value) < 0 ? INT64_MAX : json_integer_value(value)));
    }
    return MF_OK;
}

mf_status mf_load_post_processor(mf_tokenizer_loader *l)
{
    const json_t *items[MF_LOAD_MAX_COMPONENTS];
    size_t count;
    bool templated = false;
    size_t texts = 0;
    MF_TRY(mf_load_flatten(l, "post_processor", "processors", items, &count));
    for (size_t i = 0; i < count; i++) {
        const char *type;
        MF_TRY(mf_load_type(l, items[i], "post_processor", &type));
        if (strcmp(type, "ByteLevel") == 0) {
            continue; /* changes offsets only */
        }
        if (strcmp(type, "TemplateProcessing") != 0) {
            return mf_load_unsupported(l, "post_processor", type);
        }
        const json_t *single = json_object_get(items[i], "single");
        if (templated) {
            return mf_load_unsupported(l, "post_processor", "Sequence with two TemplateProcessing");
        }
        if (!json_is_array(single) || json_array_size(single) == 0) {
            return mf_load_mismatch(l, "post_processor TemplateProcessing.single", "a list of pieces", single);
        }
        templated = true;
        for (size_t k = 0; k < json_array_size(single); k++) {
            MF_TRY(load_template_piece(l, json_array_get(single, k), json_object_get(items[i], "special_tokens")));
        }
    }
    for (size_t i = 0; i < l->tok->template_size; i++) {
        texts += l->tok->template_ids[i] == MF_TEMPLATE_SEQUENCE;
    }
    return texts == templated
               ? MF_OK
               : mf_load_unsupported(l, "post_processor", "TemplateProcessing without exactly one sequence A");
}
