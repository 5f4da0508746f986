/* weights_rest.c - tensors that nobody asked for: skipped by an explicit rule, or named as unexpected. */
#include <string.h>

#include "base/log.h"
#include "model/weights_matcher.h"

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* The N of PREFIXmodel.layers.N.rest; -1 when the name has another form.  *rest points behind the point. */
static int64_t layer_of(const mf_model_config *config, const char *name, const char **rest)
{
    static const char layers[] = "model.layers.";
    size_t prefix = strlen(config->family->prefix);
    if (strncmp(name, config->family->prefix, prefix) != 0 || strncmp(name + prefix, layers, sizeof layers - 1) != 0) {
        return -1;
    }
    const char *p = name + prefix + sizeof layers - 1;
    int64_t n = 0;
    int digits = 0;
    for (; *p >= '0' && *p <= '9' && digits < 6; p++, digits++) {
        n = n * 10 + (*p - '0');
    }
    bool leading_zero = digits > 1 && p[-digits] == '0';
    if (digits == 0 || leading_zero || *p != '.') {
        return -1;
    }
    *rest = p + 1;
    return n;
}

/* A draft layer repeats embedding and head; they are not loaded, but a different shape means a different model. */
static mf_status check_draft_copy(mf_matcher *m, const mf_st_tensor *t, const char *rest)
{
    mf_role role = strcmp(rest, "embed_tokens.weight") == 0       ? MF_ROLE_EMBED
                   : strcmp(rest, "shared_head.head.weight") == 0 ? MF_ROLE_LM_HEAD
                                                                  : MF_ROLE_COUNT;
    char name[MF_MAX_TENSOR_NAME];
    if (role == MF_ROLE_COUNT ||
        !mf_tensor_name(m->config->family, m->config->family->names[role], -1, -1, name, sizeof name)) {
        return MF_OK;
    }
    const mf_st_tensor *main_one = mf_checkpoint_find(m->checkpoint, name);
    if (main_one && !mf_match_has_shape(t, main_one->shape, main_one->ndim)) {
        return mf_match_wrong_shape(m, t, main_one->shape, main_one->ndim, " as the main model's");
    }
    return MF_OK;
}

static bool is_zero(const mf_st_tensor *t)
{
    uint8_t any = 0;
    for (uint64_t i = 0; i < t->bytes; i++) {
        any |= t->data[i];
    }
    return any == 0;
}

typedef struct skipped {
    int64_t rotary, kv_scales, draft, input_scales, biases, other;
    uint8_t layer_seen[MF_MAX_LAYERS];
} skipped;

static mf_status skip_or_complain(mf_matcher *m, const mf_st_tensor *t, skipped *s)
{
    const mf_model_config *c = m->config;
    const char *rest = "";
    int64_t layer = layer_of(c, t->name, &rest);
    if (ends_with(t->name, ".rotary_emb.inv_freq")) {
        s->rotary++;
        return MF_OK;
    }
    if (layer >= c->num_layers && layer < c->num_layers + c->num_nextn_layers) {
        m->weights->stats.num_skipped_layers += !s->layer_seen[layer];
        s->layer_seen[layer] = 1;
        s->draft++;
        return check_draft_copy(m, t, rest);
    }
    if (strncmp(t->name, "mtp.", 4) == 0) {
        s->draft++;
        return MF_OK;
    }
    if (layer >= 0 && layer < c->num_layers && (ends_with(t->name, ".k_scale") || ends_with(t->name, ".v_scale"))) {
        s->kv_scales++;
        return MF_OK;
    }
    if (c->quant.static_inputs && (ends_with(t->name, ".input_scale") || ends_with(t->name, ".activation_scale") ||
                                   ends_with(t->name, ".input_zero_point"))) {
        s->input_scales++;
        return MF_OK;
    }
    if (c->quant.num_schemes > 0 && c->quant.schemes[0].method == MF_QUANT_INT4_GPTQ && ends_with(t->name, ".bias") &&
        is_zero(t)) {
        s->biases++; /* some writers give every module one */
        return MF_OK;
    }
    for (const char *const *p = c->family->skip; p && *p; p++) {
        size_t n = strlen(*p);
        if (strncmp(t->name, *p, n) == 0 && t->name[n] == '.') {
            s->other++;
            return MF_OK;
        }
    }
    return mf_match_add_name(m, &m->unexpected, "unexpected", t->name);
}

/* The entries of the config's list that this tensor or its module matches. */
static void mark_modules(mf_matcher *m, const char *name)
{
    char module[MF_ST_MAX_NAME + 1];
    const char *point = strrchr(name, '.');
    mf_module_is_excluded(&m->config->quant, name, m->module_matched);
    if (point && (size_t)(point - name) < sizeof module) {
        memcpy(module, name, (size_t)(point - name));
        module[point - name] = '\0';
        mf_module_is_excluded(&m->config->quant, module, m->module_matched);
    }
}

mf_status mf_match_look_at_rest(mf_matcher *m)
{
    skipped *s = mf_arena_alloc(m->arena, sizeof *s);
    if (!s) {
        return mf_fail(&m->error, MF_ERR_NOMEM, "%s: out of memory", m->options->dir);
    }
    for (int64_t i = 0; i < m->checkpoint->num_tensors; i++) {
        const mf_st_tensor *t = &m->checkpoint->tensors[i];
        if (!m->used[i]) {
            MF_TRY(skip_or_complain(m, t, s));
        }
        if (m->module_matched) {
            mark_modules(m, t->name);
        }
    }
    if (s->input_scales > 0) {
        mf_log(MF_LOG_INFO, "%lld stored scales of activations are not used: products take activations as they are",
               (long long)s->input_scales);
    }
    m->weights->stats.num_skipped_tensors =
        s->rotary + s->kv_scales + s->draft + s->input_scales + s->biases + s->other;
    if (m->weights->stats.num_skipped_tensors > 0) {
        mf_log(
            MF_LOG_INFO,
            "skipped tensors: %lld of draft layers, %lld rotary tables, %lld key and value scales, %lld of other parts",
            (long long)s->draft, (long long)s->rotary, (long long)s->kv_scales,
            (long long)(s->input_scales + s->biases + s->other));
    }
    const mf_module_list *list = &m->config->quant.excluded;
    for (int64_t i = 0; m->module_matched && i < list->num_names + list->num_patterns; i++) {
        if (!m->module_matched[i]) {
            const bool is_name = i < list->num_names;
            mf_log(MF_LOG_WARN, "config.json: quantization_config: %s \"%.120s\" matches no tensor",
                   is_name ? "module" : "pattern", is_name ? list->names[i] : list->pattern_texts[i - list->num_names]);
        }
    }
    return MF_OK;
}
