/* tensor_map.c - from a config to the list of its tensors: see tensor_map.h. */
#include "model/tensor_map.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "model/name_pattern.h"

/* ATTENTION and LINEAR are the two kinds of a layer's first half; LAYER is what both have. */
typedef enum scope { SCOPE_MODEL, SCOPE_LAYER, SCOPE_ATTENTION, SCOPE_LINEAR, SCOPE_DENSE, SCOPE_MOE, SCOPE_EXPERT } scope;

/* Where a role lives: `offset` counts from mf_weights, mf_layer_weights or the expert's mf_mlp_weights. */
typedef struct role_row {
    mf_role role;
    scope scope;
    mf_wanted_kind kind;
    size_t offset;
} role_row;

#define IN_MODEL(field) offsetof(mf_weights, field)
#define IN_LAYER(field) offsetof(mf_layer_weights, field)
#define IN_MLP(field) offsetof(mf_mlp_weights, field)

/* In the walk's order inside one scope. */
static const role_row rows[] = {
    { MF_ROLE_EMBED, SCOPE_MODEL, MF_WANT_MATRIX, IN_MODEL(embed_tokens) },
    { MF_ROLE_NORM, SCOPE_MODEL, MF_WANT_VECTOR, IN_MODEL(norm) },
    { MF_ROLE_LM_HEAD, SCOPE_MODEL, MF_WANT_MATRIX, IN_MODEL(lm_head) },
    { MF_ROLE_INPUT_NORM, SCOPE_LAYER, MF_WANT_VECTOR, IN_LAYER(input_norm) },
    { MF_ROLE_Q_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(q_proj) },
    { MF_ROLE_QKV_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(qkv_proj) },
    { MF_ROLE_QKV_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(qkv_bias) },
    { MF_ROLE_Q_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(q_bias) },
    { MF_ROLE_K_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(k_proj) },
    { MF_ROLE_K_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(k_bias) },
    { MF_ROLE_V_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(v_proj) },
    { MF_ROLE_V_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(v_bias) },
    { MF_ROLE_Q_NORM, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(q_norm) },
    { MF_ROLE_K_NORM, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(k_norm) },
    { MF_ROLE_SINKS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(sinks) },
    { MF_ROLE_Q_A_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(q_a_proj) },
    { MF_ROLE_Q_A_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(q_a_bias) },
    { MF_ROLE_Q_A_NORM, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(q_a_norm) },
    { MF_ROLE_Q_B_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(q_b_proj) },
    { MF_ROLE_KV_A_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(kv_a_proj) },
    { MF_ROLE_KV_A_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(kv_a_bias) },
    { MF_ROLE_KV_A_NORM, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(kv_a_norm) },
    { MF_ROLE_KV_B_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(kv_b_proj) },
    { MF_ROLE_O_PROJ, SCOPE_ATTENTION, MF_WANT_LINEAR, IN_LAYER(o_proj) },
    { MF_ROLE_O_BIAS, SCOPE_ATTENTION, MF_WANT_VECTOR, IN_LAYER(o_bias) },
    { MF_ROLE_LINEAR_QKVZ, SCOPE_LINEAR, MF_WANT_LINEAR, IN_LAYER(linear_qkvz) },
    { MF_ROLE_LINEAR_BA, SCOPE_LINEAR, MF_WANT_LINEAR, IN_LAYER(linear_ba) },
    { MF_ROLE_LINEAR_CONV, SCOPE_LINEAR, MF_WANT_VECTOR, IN_LAYER(linear_conv) },
    { MF_ROLE_LINEAR_A_LOG, SCOPE_LINEAR, MF_WANT_VECTOR, IN_LAYER(linear_a_log) },
    { MF_ROLE_LINEAR_DT_BIAS, SCOPE_LINEAR, MF_WANT_VECTOR, IN_LAYER(linear_dt_bias) },
    { MF_ROLE_LINEAR_NORM, SCOPE_LINEAR, MF_WANT_VECTOR, IN_LAYER(linear_norm) },
    { MF_ROLE_LINEAR_OUT, SCOPE_LINEAR, MF_WANT_LINEAR, IN_LAYER(linear_out) },
    { MF_ROLE_POST_ATTENTION_NORM, SCOPE_LAYER, MF_WANT_VECTOR, IN_LAYER(post_attention_norm) },
    { MF_ROLE_DENSE_GATE, SCOPE_DENSE, MF_WANT_LINEAR, IN_LAYER(dense.gate) },
    { MF_ROLE_DENSE_UP, SCOPE_DENSE, MF_WANT_LINEAR, IN_LAYER(dense.up) },
    { MF_ROLE_DENSE_DOWN, SCOPE_DENSE, MF_WANT_LINEAR, IN_LAYER(dense.down) },
    { MF_ROLE_ROUTER, SCOPE_MOE, MF_WANT_MATRIX, IN_LAYER(router) },
    { MF_ROLE_ROUTER_BIAS, SCOPE_MOE, MF_WANT_VECTOR, IN_LAYER(router_bias) },
    { MF_ROLE_CORRECTION_BIAS, SCOPE_MOE, MF_WANT_VECTOR, IN_LAYER(e_score_correction_bias) },
    { MF_ROLE_SHARED_EXPERT_GATE, SCOPE_MOE, MF_WANT_MATRIX, IN_LAYER(shared_expert_gate) },
    { MF_ROLE_SHARED_GATE, SCOPE_MOE, MF_WANT_LINEAR, IN_LAYER(shared.gate) },
    { MF_ROLE_SHARED_UP, SCOPE_MOE, MF_WANT_LINEAR, IN_LAYER(shared.up) },
    { MF_ROLE_SHARED_DOWN, SCOPE_MOE, MF_WANT_LINEAR, IN_LAYER(shared.down) },
    { MF_ROLE_EXPERT_GATE, SCOPE_EXPERT, MF_WANT_LINEAR, IN_MLP(gate) },
    { MF_ROLE_EXPERT_UP, SCOPE_EXPERT, MF_WANT_LINEAR, IN_MLP(up) },
    { MF_ROLE_EXPERT_DOWN, SCOPE_EXPERT, MF_WANT_LINEAR, IN_MLP(down) },
    { MF_ROLE_EXPERT_GATE_BIAS, SCOPE_EXPERT, MF_WANT_VECTOR, IN_MLP(gate_bias) },
    { MF_ROLE_EXPERT_UP_BIAS, SCOPE_EXPERT, MF_WANT_VECTOR, IN_MLP(up_bias) },
    { MF_ROLE_EXPERT_DOWN_BIAS, SCOPE_EXPERT, MF_WANT_VECTOR, IN_MLP(down_bias) },
};
enum { NUM_ROWS = sizeof rows / sizeof rows[0] };

static int64_t norm_width(const mf_model_config *c, int64_t projection)
{
    return c->qk_norm == MF_QK_NORM_NONE || c->qk_norm_unweighted ? 0 : c->qk_norm == MF_QK_NORM_HEAD ? c->head_dim : projection;
}

/* The shape of a role under a config; *n = 0: this config has no such tensor. */
static void role_shape(const mf_model_config *c, mf_role role, int64_t *n, int64_t *k)
{
    int64_t hidden = c->hidden_size, moe = c->moe_intermediate_size, shared = c->shared_intermediate_size;
    bool gqa = c->attention == MF_ATTENTION_GQA, biased = c->input_bias;
    int64_t q_rows = mf_model_config_q_size(c), q_proj_rows = c->has_attention_gate ? 2 * q_rows : q_rows;
    int64_t kv_a_rows = gqa ? 0 : mf_model_config_kv_size(c);
    int64_t k_rows = c->num_kv_heads * c->head_dim, v_rows = c->num_kv_heads * c->v_head_dim; /* 0 with MLA */
    int64_t shape[2] = { 0, 0 };
    switch (role) {
    case MF_ROLE_EMBED:
    case MF_ROLE_LM_HEAD:
        shape[0] = c->vocab_size;
        shape[1] = hidden;
        break;
    case MF_ROLE_NORM:
    case MF_ROLE_INPUT_NORM:
    case MF_ROLE_POST_ATTENTION_NORM:
        shape[0] = hidden;
        break;
    case MF_ROLE_Q_PROJ:
        shape[0] = c->q_lora_rank ? 0 : q_proj_rows;
        shape[1] = hidden;
        break;
    case MF_ROLE_Q_BIAS:
        shape[0] = gqa && biased ? q_proj_rows : 0;
        break;
    case MF_ROLE_QKV_PROJ:
        shape[0] = q_rows + k_rows + v_rows;
        shape[1] = hidden;
        break;
    case MF_ROLE_QKV_BIAS:
        shape[0] = biased ? q_rows + k_rows + v_rows : 0;
        break;
    case MF_ROLE_K_PROJ:
        shape[0] = k_rows;
        shape[1] = hidden;
        break;
    case MF_ROLE_K_BIAS:
        shape[0] = biased ? k_rows : 0;
        break;
    case MF_ROLE_V_PROJ:
        shape[0] = v_rows;
        shape[1] = hidden;
        break;
    case MF_ROLE_V_BIAS:
        shape[0] = biased ? v_rows : 0;
        break;
    case MF_ROLE_Q_NORM:
        shape[0] = norm_width(c, q_rows);
        break;
    case MF_ROLE_K_NORM:
        shape[0] = norm_width(c, k_rows);
        break;
    case MF_ROLE_SINKS:
        shape[0] = c->has_sinks ? c->num_heads : 0;
        break;
    case MF_ROLE_Q_A_PROJ:
        shape[0] = c->q_lora_rank;
        shape[1] = hidden;
        break;
    case MF_ROLE_Q_A_BIAS:
        shape[0] = biased ? c->q_lora_rank : 0;
        break;
    case MF_ROLE_Q_A_NORM:
        shape[0] = c->q_lora_rank;
        break;
    case MF_ROLE_Q_B_PROJ:
        shape[0] = c->q_lora_rank ? q_rows : 0;
        shape[1] = c->q_lora_rank;
        break;
    case MF_ROLE_KV_A_PROJ:
        shape[0] = kv_a_rows;
        shape[1] = hidden;
        break;
    case MF_ROLE_KV_A_BIAS:
        shape[0] = biased ? kv_a_rows : 0;
        break;
    case MF_ROLE_KV_A_NORM:
        shape[0] = c->kv_lora_rank;
        break;
    case MF_ROLE_KV_B_PROJ:
        shape[0] = gqa ? 0 : c->num_heads * (c->qk_nope_head_dim + c->v_head_dim);
        shape[1] = c->kv_lora_rank;
        break;
    case MF_ROLE_O_PROJ:
        shape[0] = hidden;
        shape[1] = c->num_heads * c->v_head_dim;
        break;
    case MF_ROLE_O_BIAS:
        shape[0] = c->output_bias ? hidden : 0;
        break;
    case MF_ROLE_LINEAR_QKVZ:
        shape[0] = mf_model_config_qkvz_size(c);
        shape[1] = hidden;
        break;
    case MF_ROLE_LINEAR_BA:
        shape[0] = 2 * c->linear_num_v_heads;
        shape[1] = hidden;
        break;
    case MF_ROLE_LINEAR_CONV:
        shape[0] = mf_model_config_conv_channels(c) * c->linear_conv_size;
        break;
    case MF_ROLE_LINEAR_A_LOG:
    case MF_ROLE_LINEAR_DT_BIAS:
        shape[0] = c->linear_num_v_heads;
        break;
    case MF_ROLE_LINEAR_NORM:
        shape[0] = c->linear_v_dim;
        break;
    case MF_ROLE_LINEAR_OUT:
        shape[0] = hidden;
        shape[1] = mf_model_config_linear_v_size(c);
        break;
    case MF_ROLE_DENSE_GATE:
    case MF_ROLE_DENSE_UP:
        shape[0] = c->intermediate_size;
        shape[1] = hidden;
        break;
    case MF_ROLE_DENSE_DOWN:
        shape[0] = hidden;
        shape[1] = c->intermediate_size;
        break;
    case MF_ROLE_ROUTER:
        shape[0] = c->gate.num_experts;
        shape[1] = hidden;
        break;
    case MF_ROLE_ROUTER_BIAS:
        shape[0] = c->router_bias ? c->gate.num_experts : 0;
        break;
    case MF_ROLE_CORRECTION_BIAS:
        shape[0] = c->has_correction_bias ? c->gate.num_experts : 0;
        break;
    case MF_ROLE_EXPERT_GATE:
    case MF_ROLE_EXPERT_UP:
        shape[0] = moe;
        shape[1] = hidden;
        break;
    case MF_ROLE_EXPERT_DOWN:
        shape[0] = hidden;
        shape[1] = moe;
        break;
    case MF_ROLE_EXPERT_GATE_BIAS:
    case MF_ROLE_EXPERT_UP_BIAS:
        shape[0] = c->expert_bias ? moe : 0;
        break;
    case MF_ROLE_EXPERT_DOWN_BIAS:
        shape[0] = c->expert_bias ? hidden : 0;
        break;
    case MF_ROLE_SHARED_EXPERT_GATE:
        shape[0] = c->has_shared_gate && shared ? 1 : 0;
        shape[1] = hidden;
        break;
    case MF_ROLE_SHARED_GATE:
    case MF_ROLE_SHARED_UP:
        shape[0] = shared;
        shape[1] = hidden;
        break;
    case MF_ROLE_SHARED_DOWN:
        shape[0] = shared ? hidden : 0;
        shape[1] = shared;
        break;
    case MF_ROLE_COUNT:
        break;
    }
    *n = shape[0];
    *k = shape[1];
}

/* ---- names ---- */

bool mf_tensor_name(const mf_family *family, const char *name_template, int64_t layer, int64_t expert, char *out,
                    size_t size)
{
    size_t used = strlen(family->prefix);
    if (used >= size) {
        return false;
    }
    memcpy(out, family->prefix, used);
    for (const char *p = name_template; *p;) {
        char digits[24];
        const char *piece = p;
        size_t n = 1;
        if (p[0] == '{') { /* {l} or {e} */
            n = (size_t)snprintf(digits, sizeof digits, "%lld", (long long)(p[1] == 'l' ? layer : expert));
            piece = digits;
            p += 3;
        } else {
            p++;
        }
        if (used + n >= size) {
            return false;
        }
        memcpy(out + used, piece, n);
        used += n;
    }
    out[used] = '\0';
    return true;
}

/* Orders the n bytes at text against a whole string. */
static int compare_part(const char *text, size_t n, const char *entry)
{
    int order = strncmp(text, entry, n);
    return order ? order : entry[n] == '\0' ? 0 : -1;
}

/* The first of the sorted names that equals text[0..n), or -1. */
static int64_t find_name(const mf_module_list *list, const char *text, size_t n)
{
    int64_t low = 0, high = list->num_names;
    while (low < high) {
        int64_t mid = low + (high - low) / 2;
        if (compare_part(text, n, list->names[mid]) > 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    bool found = low < list->num_names && compare_part(text, n, list->names[low]) == 0;
    return found ? low : -1;
}

enum { MAX_COMPONENTS = 16 }; /* of a name that is looked at: ours have at most nine */

/* Looks up every run of whole components: some thirty lookups for a tensor's name, however long the list is. */
static bool is_named(const mf_module_list *list, const char *module, uint8_t *matched)
{
    bool found = false;
    if (list->num_names == 0) {
        return false;
    }
    int starts = 0;
    for (const char *from = module; from && starts < MAX_COMPONENTS; starts++) {
        const char *end = from;
        for (int parts = 0; end && parts < MAX_COMPONENTS; parts++) {
            const char *point = strchr(end, '.');
            int64_t entry = find_name(list, from, point ? (size_t)(point - from) : strlen(from));
            found |= entry >= 0;
            if (matched && entry >= 0) {
                matched[entry] = 1;
            }
            end = point ? point + 1 : NULL;
        }
        from = strchr(from, '.');
        from = from ? from + 1 : NULL;
    }
    return found;
}

static bool has_pattern(const mf_module_list *list, const char *module, uint8_t *matched)
{
    bool found = false;
    for (int64_t i = 0; i < list->num_patterns && (matched || !found); i++) {
        if (mf_name_pattern_matches(list->patterns[i], module)) {
            found = true;
            if (matched) {
                matched[i] = 1;
            }
        }
    }
    return found;
}

static bool has_part(const mf_module_list *list, const char *module, uint8_t *matched)
{
    bool found = false;
    for (int64_t i = 0; i < list->num_names && (matched || !found); i++) {
        if (strstr(module, list->names[i])) {
            found = true;
            if (matched) {
                matched[i] = 1;
            }
        }
    }
    return found;
}

bool mf_module_is_excluded(const mf_quant_config *quant, const char *module, uint8_t *matched)
{
    const mf_module_list *list = &quant->excluded;
    bool named = quant->excluded_by_part ? has_part(list, module, matched) : is_named(list, module, matched);
    return has_pattern(list, module, matched ? matched + list->num_names : NULL) || named;
}

const mf_quant_scheme *mf_quant_scheme_of(const mf_quant_config *quant, const char *module)
{
    if (quant->num_schemes == 0 || mf_module_is_excluded(quant, module, NULL)) {
        return NULL;
    }
    const mf_quant_scheme *by_pattern = NULL, *by_class = NULL;
    for (int64_t i = 0; i < quant->num_schemes; i++) {
        const mf_quant_scheme *scheme = &quant->schemes[i];
        if (is_named(&scheme->targets, module, NULL)) {
            return scheme;
        }
        by_pattern = !by_pattern && has_pattern(&scheme->targets, module, NULL) ? scheme : by_pattern;
        by_class = scheme->every_linear ? scheme : by_class;
    }
    return by_pattern ? by_pattern : by_class;
}

/* ---- the walk ---- */

typedef struct walk {
    const mf_model_config *config;
    mf_weights *weights;
    mf_wanted_fn fn;
    void *context;
    mf_wanted wanted;
} walk;

/* Finds how a matrix is stored and names its codes and its scales.  false: a name does not fit. */
static bool name_parts(const mf_model_config *config, mf_wanted *x)
{
    const mf_quant_config *quant = &config->quant;
    const size_t n = strlen(x->name), suffix = strlen(".weight");
    if (n <= suffix || strcmp(x->name + n - suffix, ".weight") != 0) {
        return true;
    }
    x->module_bytes = n - suffix;
    if (x->kind == MF_WANT_LINEAR || (x->role == MF_ROLE_LM_HEAD && quant->head_too && !config->tie_word_embeddings)) {
        x->name[x->module_bytes] = '\0';
        x->scheme = mf_quant_scheme_of(quant, x->name);
        x->name[x->module_bytes] = '.';
    }
    const mf_quant_method method = x->scheme ? x->scheme->method : MF_QUANT_NONE;
    const char *weight = "weight";
    const char *scale = x->scheme            ? x->scheme->scale_suffix
                        : quant->num_schemes ? quant->schemes[0].scale_suffix
                                             : "_scale_inv";
    if (method == MF_QUANT_INT4_PACKED) {
        weight = "weight_packed";
    } else if (method == MF_QUANT_INT4_GPTQ || method == MF_QUANT_INT4_AWQ) {
        weight = "qweight";
    }
    if (!mf_wanted_part(x, scale ? "weight" : "scales", x->scale_name) ||
        n + strlen(scale ? scale : "") >= sizeof x->scale_name || n + strlen("_packed") >= sizeof x->name) {
        return false;
    }
    if (scale) {
        memcpy(x->scale_name + n, scale, strlen(scale) + 1);
    }
    memcpy(x->name + x->module_bytes + 1, weight, strlen(weight) + 1);
    return true;
}

bool mf_wanted_part(const mf_wanted *x, const char *part, char out[MF_MAX_TENSOR_NAME])
{
    const size_t n = x->module_bytes + 1;
    if (n + strlen(part) >= MF_MAX_TENSOR_NAME) {
        return false;
    }
    memcpy(out, x->name, n);
    memcpy(out + n, part, strlen(part) + 1);
    return true;
}

static mf_status visit(walk *w, const role_row *row, int64_t layer, int64_t expert, char *base)
{
    const mf_family *family = w->config->family;
    mf_wanted *x = &w->wanted;
    const char *template = family->names[row->role];
    role_shape(w->config, row->role, &x->n, &x->k);
    if (x->n == 0 || !template) {
        return MF_OK;
    }
    x->role = row->role;
    x->kind = row->kind;
    x->layer = layer;
    x->expert = expert;
    x->more_rows_allowed = row->role == MF_ROLE_EMBED || row->role == MF_ROLE_LM_HEAD;
    x->optional = row->role == MF_ROLE_LM_HEAD && w->config->tie_word_embeddings;
    x->scheme = NULL;
    x->scale_name[0] = '\0';
    x->module_bytes = 0;
    if (!mf_tensor_name(family, template, layer, expert, x->name, sizeof x->name)) {
        return MF_ERR_INTERNAL;
    }
    if (row->kind != MF_WANT_VECTOR && !name_parts(w->config, x)) {
        return MF_ERR_INTERNAL;
    }
    x->matrix = base && row->kind != MF_WANT_VECTOR ? (mf_matrix *)(void *)(base + row->offset) : NULL;
    x->vector = base && row->kind == MF_WANT_VECTOR ? (const float **)(void *)(base + row->offset) : NULL;
    return w->fn(w->context, x);
}

/* `also`: a second scope, whose rows stand among those of the first. */
static mf_status visit_scopes(walk *w, scope which, scope also, int64_t layer, int64_t expert, void *base)
{
    for (size_t i = 0; i < NUM_ROWS; i++) {
        if (rows[i].scope == which || rows[i].scope == also) {
            MF_TRY(visit(w, &rows[i], layer, expert, base));
        }
    }
    return MF_OK;
}

static mf_status visit_scope(walk *w, scope which, int64_t layer, int64_t expert, void *base)
{
    return visit_scopes(w, which, which, layer, expert, base);
}

mf_status mf_tensor_map_walk(const mf_model_config *config, mf_weights *weights, mf_wanted_fn fn, void *context)
{
    walk w = { .config = config, .weights = weights, .fn = fn, .context = context };
    MF_TRY(visit_scope(&w, SCOPE_MODEL, -1, -1, weights));
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        mf_layer_weights *target = weights ? &weights->layers[layer] : NULL;
        scope half = config->layer_is_linear[layer] ? SCOPE_LINEAR : SCOPE_ATTENTION;
        MF_TRY(visit_scopes(&w, SCOPE_LAYER, half, layer, -1, target));
        if (!config->layer_is_moe[layer]) {
            MF_TRY(visit_scope(&w, SCOPE_DENSE, layer, -1, target));
            continue;
        }
        MF_TRY(visit_scope(&w, SCOPE_MOE, layer, -1, target));
        for (int64_t expert = 0; expert < config->gate.num_experts; expert++) {
            MF_TRY(visit_scope(&w, SCOPE_EXPERT, layer, expert, target ? &target->experts[expert] : NULL));
        }
    }
    return MF_OK;
}

/* ---- counts ---- */

/* Tensors and parameters of one scope. */
static void count_scope(const mf_model_config *config, scope which, int64_t *tensors, double *params)
{
    *tensors = 0;
    *params = 0;
    for (size_t i = 0; i < NUM_ROWS; i++) {
        int64_t n, k;
        role_shape(config, rows[i].role, &n, &k);
        bool tied_head = rows[i].role == MF_ROLE_LM_HEAD && config->tie_word_embeddings;
        if (rows[i].scope == which && n > 0 && config->family->names[rows[i].role] && !tied_head) {
            ++*tensors;
            *params += rows[i].kind == MF_WANT_VECTOR ? (double)n : (double)n * (double)k;
        }
    }
}

int64_t mf_tensor_map_count(const mf_model_config *config)
{
    int64_t model, layer, attention, linear, dense, moe, expert;
    double params;
    count_scope(config, SCOPE_MODEL, &model, &params);
    count_scope(config, SCOPE_LAYER, &layer, &params);
    count_scope(config, SCOPE_ATTENTION, &attention, &params);
    count_scope(config, SCOPE_LINEAR, &linear, &params);
    count_scope(config, SCOPE_DENSE, &dense, &params);
    count_scope(config, SCOPE_MOE, &moe, &params);
    count_scope(config, SCOPE_EXPERT, &expert, &params);
    return model + layer * config->num_layers + attention * (config->num_layers - config->num_linear_layers) +
           linear * config->num_linear_layers + dense * (config->num_layers - config->num_moe_layers) +
           (moe + expert * config->gate.num_experts) * config->num_moe_layers;
}

/* Sums are doubles: exact up to 2^53 and without overflow past it, where a config is refused anyway. */
mf_model_size mf_model_config_size(const mf_model_config *config)
{
    int64_t unused;
    double model, layer, attention, linear, dense, moe, expert;
    count_scope(config, SCOPE_MODEL, &unused, &model);
    count_scope(config, SCOPE_LAYER, &unused, &layer);
    count_scope(config, SCOPE_ATTENTION, &unused, &attention);
    count_scope(config, SCOPE_LINEAR, &unused, &linear);
    count_scope(config, SCOPE_DENSE, &unused, &dense);
    count_scope(config, SCOPE_MOE, &unused, &moe);
    count_scope(config, SCOPE_EXPERT, &unused, &expert);
    double moe_layers = (double)config->num_moe_layers, layers = (double)config->num_layers;
    double linear_layers = (double)config->num_linear_layers;
    double outside = model + layer * layers + attention * (layers - linear_layers) + linear * linear_layers + dense * (layers - moe_layers) + moe * moe_layers;
    double total = outside + expert * moe_layers * config->gate.num_experts;
    double active = outside + expert * moe_layers * config->gate.top_k;
    double most = 0x1p62;
    return (mf_model_size){ .total_params = (int64_t)(total < most ? total : most),
                            .active_params = (int64_t)(active < most ? active : most) };
}
