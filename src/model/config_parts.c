/* config_parts.c - attention, rope and token ids of config.json: see config_parts.h. */
#include "model/config_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/json.h"

mf_status mf_config_refuse_true(const mf_reader *reader, const char *key, const char *why)
{
    static const bool off = false;
    bool value;
    MF_TRY(mf_read_bool(reader, key, &off, &value));
    return value ? mf_read_fail(reader, MF_ERR_UNSUPPORTED, key, "expected false; got true: %s", why) : MF_OK;
}

mf_status mf_config_only_text(const mf_reader *reader, const char *key, const char *only, const char *why)
{
    const char *text;
    MF_TRY(mf_read_text(reader, key, false, &text));
    if (text && strcmp(text, only) != 0) {
        char expected[200];
        snprintf(expected, sizeof expected, "\"%s\"%s%s", only, why ? ": " : "", why ? why : "");
        return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, key, expected);
    }
    return MF_OK;
}

static bool is_one_of(const char *text, const char *const *list)
{
    for (; *list; list++) {
        if (strcmp(text, *list) == 0) {
            return true;
        }
    }
    return false;
}

mf_status mf_config_only_keys(const mf_reader *reader, const char *const *known, const char *otherwise)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)reader->object, key, value)
    {
        if (!json_is_null(value) && !is_one_of(key, known)) {
            return mf_read_fail(reader, MF_ERR_UNSUPPORTED, key, "%s", otherwise);
        }
    }
    return MF_OK;
}

/* ---- rope ---- */

double mf_yarn_mscale(double scale, double k)
{
    return scale <= 1.0 ? 1.0 : 0.1 * k * log(scale) + 1.0;
}

/* partial_rotary_factor beside rope_theta or among the scaling's keys: whichever is there, *partial when none is.
 * only_whole: the family rotates whole heads and no implementation reads the key. */
static mf_status read_partial(const mf_reader *reader, bool only_whole, double *partial)
{
    static const double whole = 1.0;
    MF_TRY(mf_read_number(reader, "partial_rotary_factor", 0, 1, only_whole ? &whole : partial, partial));
    return only_whole && *partial != 1.0
               ? mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "partial_rotary_factor", "1")
               : MF_OK;
}

/* "dynamic" with an alpha is a fixed, larger base: theta * alpha^(d / (d - 2)), whatever the length.  (With a factor the
 * base would depend on the length of the text, which no released MoE model asks for.) */
static mf_status read_alpha(const mf_reader *scaling, const char *type_key, mf_rope_config *rope)
{
    if (!mf_read_value(scaling, "alpha")) {
        return mf_read_unexpected(scaling, MF_ERR_UNSUPPORTED, type_key,
                                  "\"default\", \"linear\", \"yarn\", or \"dynamic\" with \"alpha\"");
    }
    double alpha;
    MF_TRY(mf_read_number(scaling, "rope_theta", 2, 1e12, &rope->theta, &rope->theta));
    MF_TRY(mf_read_number(scaling, "alpha", 1e-3, 1e9, NULL, &alpha));
    if (rope->dim < 4) {
        return mf_read_fail(scaling, MF_ERR_INVALID, "alpha", "needs 4 or more rotated dimensions; got %lld",
                            (long long)rope->dim);
    }
    rope->type = MF_ROPE_DEFAULT;
    rope->theta *= pow(alpha, (double)rope->dim / (double)(rope->dim - 2));
    return MF_OK;
}

/* The scaling object's own keys; rope->theta holds the outer rope_theta already. */
static mf_status read_scaling(const mf_reader *scaling, int64_t max_position_embeddings, mf_rope_config *rope)
{
    static const char *const known[] = { "type",
                                         "rope_type",
                                         "rope_theta",
                                         "factor",
                                         "beta_fast",
                                         "beta_slow",
                                         "mscale",
                                         "mscale_all_dim",
                                         "truncate",
                                         "attention_factor",
                                         "original_max_position_embeddings",
                                         "partial_rotary_factor",
                                         "alpha",
                                         NULL };
    MF_TRY(mf_config_only_keys(scaling, known, "is not a rope key that is known here"));
    const char *type, *old_type;
    MF_TRY(mf_read_text(scaling, "rope_type", false, &type));
    MF_TRY(mf_read_text(scaling, "type", false, &old_type));
    if (type && old_type && strcmp(type, old_type) != 0) {
        return mf_read_fail(scaling, MF_ERR_INVALID, "rope_type", "is \"%s\" and \"type\" is \"%s\": expected the same",
                            type, old_type);
    }
    const char *type_key = type ? "rope_type" : "type";
    type = type ? type : old_type;
    if (type && strcmp(type, "dynamic") == 0) {
        return read_alpha(scaling, type_key, rope);
    }
    if (mf_read_value(scaling, "alpha")) {
        return mf_read_fail(scaling, MF_ERR_UNSUPPORTED, "alpha", "belongs to the type \"dynamic\"; got another");
    }
    if (!type && mf_read_value(scaling, "factor")) {
        return mf_read_fail(scaling, MF_ERR_INVALID, "rope_type",
                            "expected \"default\", \"linear\" or \"yarn\"; got nothing");
    }
    if (!type || strcmp(type, "default") == 0) {
        rope->type = MF_ROPE_DEFAULT;
    } else if (strcmp(type, "yarn") == 0) {
        rope->type = MF_ROPE_YARN;
    } else if (strcmp(type, "linear") == 0) {
        rope->type = MF_ROPE_LINEAR;
    } else {
        return mf_read_unexpected(scaling, MF_ERR_UNSUPPORTED, type_key, "\"default\", \"linear\" or \"yarn\"");
    }
    MF_TRY(mf_read_number(scaling, "rope_theta", 2, 1e12, &rope->theta, &rope->theta));
    if (rope->type == MF_ROPE_DEFAULT) {
        return MF_OK;
    }
    static const double zero = 0.0, fast = 32.0, slow = 1.0;
    static const bool yes = true;
    MF_TRY(mf_read_int(scaling, "original_max_position_embeddings", 1, 1 << 30, &max_position_embeddings,
                       &rope->original_max_position_embeddings));
    double ratio = (double)max_position_embeddings / (double)rope->original_max_position_embeddings;
    bool may_derive = rope->type == MF_ROPE_YARN && ratio >= 1.0;
    MF_TRY(mf_read_number(scaling, "factor", 1, 1e6, may_derive ? &ratio : NULL, &rope->factor));
    MF_TRY(mf_read_number(scaling, "beta_fast", 1e-3, 1e6, &fast, &rope->beta_fast));
    MF_TRY(mf_read_number(scaling, "beta_slow", 1e-3, 1e6, &slow, &rope->beta_slow));
    MF_TRY(mf_read_number(scaling, "mscale", 0, 100, &zero, &rope->mscale));
    MF_TRY(mf_read_number(scaling, "mscale_all_dim", 0, 100, &zero, &rope->mscale_all_dim));
    MF_TRY(mf_read_number(scaling, "attention_factor", 1e-3, 1e3, &zero, &rope->attention_factor));
    MF_TRY(mf_read_bool(scaling, "truncate", &yes, &rope->truncate));
    if (rope->beta_fast < rope->beta_slow) {
        return mf_read_fail(scaling, MF_ERR_INVALID, "beta_fast", "expected at least beta_slow %g; got %g",
                            rope->beta_slow, rope->beta_fast);
    }
    return MF_OK;
}

static bool rope_equal(const mf_rope_config *a, const mf_rope_config *b)
{
    return a->type == b->type && a->theta == b->theta && a->factor == b->factor &&
           a->original_max_position_embeddings == b->original_max_position_embeddings && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->mscale == b->mscale && a->mscale_all_dim == b->mscale_all_dim &&
           a->attention_factor == b->attention_factor && a->truncate == b->truncate;
}

/* The factor of dim that is rotated: an even number of dimensions. */
static mf_status read_rotated(const mf_reader *reader, const mf_reader *const inner[2], int64_t dim, const double *partial,
                              int64_t *rotated)
{
    double factor = partial ? *partial : 1.0, found = __builtin_nan("");
    MF_TRY(read_partial(reader, !partial, &factor));
    if (mf_read_value(reader, "partial_rotary_factor")) {
        found = factor;
    }
    for (int i = 0; i < 2; i++) {
        if (!inner[i]->object) {
            continue;
        }
        MF_TRY(read_partial(inner[i], !partial, &factor));
        if (found == found && found != factor) {
            return mf_read_fail(inner[i], MF_ERR_INVALID, "partial_rotary_factor", "is %g here and %g elsewhere", factor,
                                found);
        }
        found = mf_read_value(inner[i], "partial_rotary_factor") ? factor : found;
    }
    double size = (double)dim * factor;
    *rotated = (int64_t)size;
    if (size != floor(size) || *rotated < 2 || *rotated % 2 != 0) {
        return mf_read_fail(reader, MF_ERR_INVALID, "partial_rotary_factor",
                            "expected an even number of rotated dimensions; got %g x %lld", factor, (long long)dim);
    }
    return MF_OK;
}

mf_status mf_config_read_rope(const mf_reader *reader, int64_t dim, const double *partial, mf_model_config *config)
{
    /* 10000 is what implementations take when rope_theta is absent and the family has no default of its own. */
    const double default_theta = config->rope.theta > 0 ? config->rope.theta : 10000.0;
    mf_rope_config old = { .truncate = true };
    MF_TRY(mf_read_number(reader, "rope_theta", 2, 1e12, &default_theta, &old.theta));
    mf_reader scaling = { 0 }, parameters = { 0 };
    char scope[128], other_scope[128];
    bool has_scaling, has_parameters;
    MF_TRY(mf_read_object(reader, "rope_scaling", &scaling, scope, sizeof scope, &has_scaling));
    MF_TRY(mf_read_object(reader, "rope_parameters", &parameters, other_scope, sizeof other_scope, &has_parameters));
    MF_TRY(read_rotated(reader, (const mf_reader *[2]){ &scaling, &parameters }, dim, partial, &old.dim));
    mf_rope_config fresh = old;
    if (has_scaling) {
        MF_TRY(read_scaling(&scaling, config->max_position_embeddings, &old));
    }
    if (has_parameters) {
        MF_TRY(read_scaling(&parameters, config->max_position_embeddings, &fresh));
        bool has_theta = mf_read_value(reader, "rope_theta") != NULL;
        if (has_scaling && !rope_equal(&old, &fresh)) {
            return mf_read_fail(reader, MF_ERR_INVALID, "rope_parameters",
                                "differs from \"%srope_scaling\" and \"rope_theta\"", reader->scope);
        }
        if (has_theta && old.theta != fresh.theta) {
            return mf_read_fail(reader, MF_ERR_INVALID, "rope_parameters.rope_theta",
                                "is %g and \"%srope_theta\" is %g", fresh.theta, reader->scope, old.theta);
        }
        old = fresh;
    }
    old.pair = config->rope.pair;
    config->rope = old;
    return MF_OK;
}

/* ---- attention ---- */

mf_status mf_config_read_mla(const mf_reader *reader, const bool *rope_interleave_default, mf_model_config *config)
{
    static const mf_int_key keys[] = {
        { "num_attention_heads", NULL, 1, 4096, MF_KEY_REQUIRED, offsetof(mf_model_config, num_heads) },
        { "q_lora_rank", NULL, 1, 65536, 0, offsetof(mf_model_config, q_lora_rank) }, /* null: one q_proj */
        { "kv_lora_rank", NULL, 1, 65536, MF_KEY_REQUIRED, offsetof(mf_model_config, kv_lora_rank) },
        { "qk_nope_head_dim", NULL, 1, 4096, MF_KEY_REQUIRED, offsetof(mf_model_config, qk_nope_head_dim) },
        { "qk_rope_head_dim", NULL, 2, 4096, MF_KEY_REQUIRED, offsetof(mf_model_config, qk_rope_head_dim) },
        { "v_head_dim", NULL, 1, 4096, MF_KEY_REQUIRED, offsetof(mf_model_config, v_head_dim) },
    };
    MF_TRY(mf_read_int_keys(reader, keys, sizeof keys / sizeof keys[0], config));
    if (config->qk_rope_head_dim % 2 != 0) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, "qk_rope_head_dim", "an even integer");
    }
    int64_t kv_heads;
    MF_TRY(mf_read_int(reader, "num_key_value_heads", 1, 4096, &config->num_heads, &kv_heads));
    if (kv_heads != config->num_heads) {
        return mf_read_fail(reader, MF_ERR_UNSUPPORTED, "num_key_value_heads",
                            "expected num_attention_heads %lld (latent attention has no fewer key heads); got %lld",
                            (long long)config->num_heads, (long long)kv_heads);
    }
    static const bool off = false;
    MF_TRY(mf_read_bool(reader, "attention_bias", &off, &config->input_bias));
    config->output_bias = config->input_bias;
    config->rope.pair = true;
    if (rope_interleave_default) {
        MF_TRY(mf_read_bool(reader, "rope_interleave", rope_interleave_default, &config->rope.pair));
    }
    config->latent_norm_eps = 1e-6; /* the norms' class default: rms_norm_eps is not passed to them */
    MF_TRY(mf_config_read_rope(reader, config->qk_rope_head_dim, NULL, config));

    /* Yarn's temperature sits in the softmax scale; both sides of the product carry it, hence squared. */
    double scale = 1.0 / sqrt((double)(config->qk_nope_head_dim + config->qk_rope_head_dim));
    if (config->rope.type != MF_ROPE_DEFAULT && config->rope.mscale_all_dim != 0.0) {
        double m = mf_yarn_mscale(config->rope.factor, config->rope.mscale_all_dim);
        scale *= m * m;
    }
    config->softmax_scale = scale;
    return MF_OK;
}

mf_status mf_config_read_gqa(const mf_reader *reader, const mf_gqa_defaults *defaults, mf_model_config *config)
{
    static const mf_gqa_defaults none = { 0 };
    defaults = defaults ? defaults : &none;
    MF_TRY(mf_read_int(reader, "num_attention_heads", 1, 4096, NULL, &config->num_heads));
    MF_TRY(mf_read_int(reader, "num_key_value_heads", 1, 4096, defaults->kv_heads_optional ? &config->num_heads : NULL,
                       &config->num_kv_heads));
    if (config->num_heads % config->num_kv_heads != 0) {
        return mf_read_fail(reader, MF_ERR_INVALID, "num_key_value_heads", "%lld does not divide num_attention_heads %lld",
                            (long long)config->num_kv_heads, (long long)config->num_heads);
    }
    int64_t derived = config->hidden_size / config->num_heads;
    derived = defaults->head_dim ? defaults->head_dim : derived;
    if (!mf_read_value(reader, "head_dim") && !defaults->head_dim && config->hidden_size % config->num_heads != 0) {
        return mf_read_fail(reader, MF_ERR_INVALID, "head_dim",
                            "is absent and num_attention_heads %lld does not divide hidden_size %lld",
                            (long long)config->num_heads, (long long)config->hidden_size);
    }
    MF_TRY(mf_read_int(reader, "head_dim", 2, 4096, &derived, &config->head_dim));
    config->attention = MF_ATTENTION_GQA;
    config->v_head_dim = config->head_dim;
    MF_TRY(mf_read_bool(reader, defaults->bias_key ? defaults->bias_key : "attention_bias", &defaults->bias,
                        &config->input_bias));
    config->rope.pair = defaults->pair;
    config->rope.theta = defaults->rope_theta;
    config->softmax_scale = 1.0 / sqrt((double)config->head_dim);
    return mf_config_read_rope(reader, config->head_dim, defaults->partial, config);
}

mf_status mf_config_refuse_sliding_window(const mf_reader *reader)
{
    MF_TRY(mf_config_refuse_true(reader, "use_sliding_window", "every layer attends to the whole context here"));
    const json_t *types = mf_read_value(reader, "layer_types");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention") != 0) {
            return mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "layer_types", "\"full_attention\" for every layer");
        }
    }
    return MF_OK;
}

mf_status mf_config_refuse_window_size(const mf_reader *reader)
{
    return mf_read_value(reader, "sliding_window") ? mf_read_unexpected(reader, MF_ERR_UNSUPPORTED, "sliding_window",
                                                                        "null (every layer attends to the whole context here)")
                                                   : MF_OK;
}

/* ---- token ids ---- */

static mf_status add_eos(const mf_reader *reader, const json_t *value, mf_model_config *config)
{
    char expected[96];
    snprintf(expected, sizeof expected, "a token id in 0..%lld or a list of them", (long long)config->vocab_size - 1);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= config->vocab_size) {
        return mf_read_unexpected(reader, MF_ERR_INVALID, "eos_token_id", expected);
    }
    int32_t id = (int32_t)json_integer_value(value);
    for (int32_t i = 0; i < config->num_eos_token_ids; i++) {
        if (config->eos_token_ids[i] == id) {
            return MF_OK;
        }
    }
    if (config->num_eos_token_ids == MF_MAX_EOS_IDS) {
        return mf_read_fail(reader, MF_ERR_LIMIT, "eos_token_id", "more than %d different ids", MF_MAX_EOS_IDS);
    }
    config->eos_token_ids[config->num_eos_token_ids++] = id;
    return MF_OK;
}

mf_status mf_config_read_tokens(const mf_reader *reader, mf_model_config *config)
{
    int64_t none = -1, bos;
    if (config->bos_token_id < 0) {
        MF_TRY(mf_read_int(reader, "bos_token_id", 0, config->vocab_size - 1, &none, &bos));
        config->bos_token_id = (int32_t)bos;
    }
    const json_t *eos = mf_read_value(reader, "eos_token_id");
    if (!json_is_array(eos)) {
        return eos ? add_eos(reader, eos, config) : MF_OK;
    }
    for (size_t i = 0; i < json_array_size(eos); i++) {
        MF_TRY(add_eos(reader, json_array_get(eos, i), config));
    }
    return MF_OK;
}
