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

typedef struct skipped {
    int64_t rotary, kv_scales, draft, other;
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
    for (const char *const *p = c->family->skip; p && *p; p++) {
        size_t n = strlen(*p);
        if (strncmp(t->name, *p, n) == 0 && t->name[n] == '.') {
            s->other++;
            return MF_OK;
        }
    }
    return mf_match_add_name(m, &m->unexpected, "unexpected", t->name);
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
            mf_module_is_excluded(&m->config->quant, t->name, m->module_matched);
        }
    }
    m->weights->stats.num_skipped_tensors = s->rotary + s->kv_scales + s->draft + s->other;
    if (m->weights->stats.num_skipped_tensors > 0) {
        mf_log(
            MF_LOG_INFO,
            "skipped tensors: %lld of draft layers, %lld rotary tables, %lld key and value scales, %lld of other parts",
            (long long)s->draft, (long long)s->rotary, (long long)s->kv_scales, (long long)s->other);
    }
    for (int64_t i = 0; m->module_matched && i < m->config->quant.num_modules_to_not_convert; i++) {
        if (!m->module_matched[i]) {
            mf_log(MF_LOG_WARN, "config.json: quantization_config: module \"%.120s\" matches no tensor",
                   m->config->quant.modules_to_not_convert[i]);
        }
    }
    return MF_OK;
}
