/* api_gate.c - mf_moe_fused_gate and its unfused twin: the configuration and every argument are checked once here, then
 * the device runs.  What this build cannot do is refused as UNSUPPORTED: never a silently different result. */
#include <limits.h>
#include <math.h>

#include "base/sys.h"
#include "kernels/fp_env.h"
#include "kernels/ops.h"
#include "kernels/ref/canonical.h"
#include "kernels/ref/ref_gate.h"
#include "kernels/tensor_check.h"

static bool is_topk(mf_scoring scoring)
{
    return scoring == MF_SCORING_TOPK_SOFTMAX || scoring == MF_SCORING_TOPK_SIGMOID;
}

static const char *scoring_name(mf_scoring scoring)
{
    static const char *const names[] = { "unset", "SOFTMAX", "SIGMOID", "SQRTSOFTPLUS", "SQRTSOFTPLUS_LOG1P",
                                         "TOPK_SOFTMAX", "TOPK_SIGMOID" };
    return names[scoring];
}

static const char *bias_name(mf_bias_domain domain)
{
    static const char *const names[] = { "unset", "NONE", "SCORE", "LOGIT" };
    return names[domain];
}

static mf_status check_at_least(const char *field, int64_t value, int64_t least, mf_error *err)
{
    if (value < least) {
        return mf_fail(err, MF_ERR_INVALID, "%s %lld: expected at least %lld", field, (long long)value, (long long)least);
    }
    return MF_OK;
}

/* Enum fields come from callers in other languages: any integer may be in them. */
static mf_status check_choice(const char *field, int value, int first, int last, mf_error *err)
{
    if (value == 0 && first > 0) {
        return mf_fail(err, MF_ERR_INVALID, "%s is not set", field);
    }
    if (value < first || value > last) {
        return mf_fail(err, MF_ERR_INVALID, "%s %d: expected %d to %d", field, value, first, last);
    }
    return MF_OK;
}

static mf_status check_counts(const mf_gate_config *c, mf_error *err)
{
    MF_TRY(check_at_least("num_experts", c->num_experts, 1, err));
    MF_TRY(check_at_least("top_k", c->top_k, 1, err));
    MF_TRY(check_at_least("num_zero_experts", c->num_zero_experts, 0, err));
    MF_TRY(check_at_least("num_shared_slots", c->num_shared_slots, 0, err));
    MF_TRY(check_at_least("num_replicas", c->num_replicas, 1, err));
    if (c->top_k > (int64_t)c->num_experts + c->num_zero_experts) {
        if (c->num_zero_experts > 0) {
            return mf_fail(err, MF_ERR_INVALID, "top_k %d exceeds num_experts %d + num_zero_experts %d", (int)c->top_k,
                           (int)c->num_experts, (int)c->num_zero_experts);
        }
        return mf_fail(err, MF_ERR_INVALID, "top_k %d exceeds num_experts %d", (int)c->top_k, (int)c->num_experts);
    }
    return MF_OK;
}

static mf_status check_choices(const mf_gate_config *c, mf_error *err)
{
    MF_TRY(check_choice("scoring", (int)c->scoring, MF_SCORING_SOFTMAX, MF_SCORING_TOPK_SIGMOID, err));
    MF_TRY(check_choice("bias_domain", (int)c->bias_domain, MF_BIAS_NONE, MF_BIAS_LOGIT, err));
    MF_TRY(check_choice("renorm", (int)c->renorm, MF_RENORM_NONE, MF_RENORM_SUM_FLOOR, err));
    MF_TRY(check_choice("group_score", (int)c->group_score, MF_GROUP_SCORE_UNSET, MF_GROUP_SCORE_TOP2_SUM, err));
    MF_TRY(check_choice("shared_weight", (int)c->shared_weight, MF_SHARED_ONE, MF_SHARED_RECIPROCAL, err));
    return check_choice("out_order", (int)c->out_order, MF_ORDER_KEY, MF_ORDER_ID, err);
}

static mf_status check_groups(const mf_gate_config *c, mf_error *err)
{
    int64_t width = (int64_t)c->num_experts + c->num_zero_experts;
    MF_TRY(check_at_least("n_group", c->n_group, 1, err));
    MF_TRY(check_at_least("topk_group", c->topk_group, 1, err));
    if (c->topk_group > c->n_group) {
        return mf_fail(err, MF_ERR_INVALID, "topk_group %d exceeds n_group %d", (int)c->topk_group, (int)c->n_group);
    }
    if (c->n_group == 1) {
        return MF_OK;
    }
    if (c->num_zero_experts > 0) {
        return mf_fail(err, MF_ERR_INVALID, "n_group %d with num_zero_experts %d: groups hold routed experts only",
                       (int)c->n_group, (int)c->num_zero_experts);
    }
    if (is_topk(c->scoring) || c->hash) {
        return mf_fail(err, MF_ERR_INVALID, "n_group %d cannot be combined with %s", (int)c->n_group,
                       c->hash ? "hash" : scoring_name(c->scoring));
    }
    if (width % c->n_group != 0) {
        return mf_fail(err, MF_ERR_INVALID, "n_group %d does not divide num_experts %d", (int)c->n_group,
                       (int)c->num_experts);
    }
    if (c->topk_group * (width / c->n_group) < c->top_k) {
        return mf_fail(err, MF_ERR_INVALID, "topk_group %d x %lld experts cannot give top_k %d", (int)c->topk_group,
                       (long long)(width / c->n_group), (int)c->top_k);
    }
    if (c->group_score == MF_GROUP_SCORE_UNSET) {
        return mf_fail(err, MF_ERR_INVALID, "group_score is not set with n_group %d", (int)c->n_group);
    }
    return MF_OK;
}

static mf_status check_bias(const mf_gate_args *a, mf_error *err)
{
    const mf_gate_config *c = a->config;
    bool bias = mf_tensor_present(&a->e_score_correction_bias);
    bool alt = mf_tensor_present(&a->bias_alt);
    if (c->hash && (c->bias_domain != MF_BIAS_NONE || bias || alt)) {
        return mf_fail(err, MF_ERR_INVALID, "hash cannot be combined with %s",
                       alt ? "bias_alt" : bias ? "e_score_correction_bias" : "a bias_domain other than NONE");
    }
    if (c->bias_domain == MF_BIAS_NONE && (bias || alt)) {
        return mf_fail(err, MF_ERR_INVALID, "bias_domain NONE with %s given", bias ? "e_score_correction_bias" : "bias_alt");
    }
    if (c->bias_domain != MF_BIAS_NONE && !bias) {
        return mf_fail(err, MF_ERR_INVALID, "bias_domain %s needs e_score_correction_bias", bias_name(c->bias_domain));
    }
    if (c->bias_domain == MF_BIAS_SCORE && is_topk(c->scoring)) {
        return mf_fail(err, MF_ERR_INVALID, "bias_domain SCORE cannot be combined with scoring %s: it chooses by logit",
                       scoring_name(c->scoring));
    }
    if (alt && !mf_tensor_present(&a->row_is_alt)) {
        return mf_fail(err, MF_ERR_INVALID, "bias_alt needs row_is_alt");
    }
    return MF_OK;
}

static mf_status check_hash(const mf_gate_args *a, mf_error *err)
{
    const mf_gate_config *c = a->config;
    if (!c->hash) {
        return MF_OK;
    }
    if (c->scoring == MF_SCORING_SOFTMAX || is_topk(c->scoring)) {
        return mf_fail(err, MF_ERR_INVALID, "hash cannot be combined with scoring %s", scoring_name(c->scoring));
    }
    if (mf_tensor_present(&a->expert_mask)) {
        return mf_fail(err, MF_ERR_INVALID, "hash cannot be combined with expert_mask");
    }
    if (!mf_tensor_present(&a->hash_table) || !mf_tensor_present(&a->token_ids)) {
        return mf_fail(err, MF_ERR_INVALID, "hash needs %s",
                       mf_tensor_present(&a->hash_table) ? "token_ids" : "hash_table");
    }
    return MF_OK;
}

/* A number that becomes f32 and must stay a positive normal one. */
static mf_status check_number(const char *field, double value, float *out, mf_error *err)
{
    if (isnan(value)) {
        return mf_fail(err, MF_ERR_INVALID, "%s is not set", field);
    }
    *out = (float)value;
    if (!(*out >= FLT_MIN && *out <= FLT_MAX)) {
        return mf_fail(err, MF_ERR_INVALID, "%s %g: expected a finite f32 of at least 2^-126", field, value);
    }
    return MF_OK;
}

static mf_status check_weights(const mf_gate_args *a, mf_gate_call *call, mf_error *err)
{
    const mf_gate_config *c = a->config;
    if (is_topk(c->scoring) && c->renorm != MF_RENORM_NONE) {
        return mf_fail(err, MF_ERR_INVALID, "renorm %d with scoring %s: expected NONE (%d)", (int)c->renorm,
                       scoring_name(c->scoring), (int)MF_RENORM_NONE);
    }
    MF_TRY(check_number("routed_scaling_factor", c->routed_scaling_factor, &call->routed_scaling_factor, err));
    if (c->scoring == MF_SCORING_TOPK_SIGMOID && c->fold_scale && call->routed_scaling_factor != 1.0f) {
        return mf_fail(err, MF_ERR_INVALID, "fold_scale 1 with scoring TOPK_SIGMOID: routed_scaling_factor %g would scale "
                       "the experts' input; expected fold_scale 0 or a factor of 1", c->routed_scaling_factor);
    }
    call->renorm_eps = 1e-20f;
    if (c->renorm == MF_RENORM_SUM_FLOOR || (c->renorm == MF_RENORM_SUM_EPS && !isnan(c->renorm_eps))) {
        MF_TRY(check_number("renorm_eps", c->renorm_eps, &call->renorm_eps, err));
    }
    bool gate = mf_tensor_present(&a->shared_gate);
    if (c->shared_weight == MF_SHARED_PER_TOKEN && !gate) {
        return mf_fail(err, MF_ERR_INVALID, "shared_weight PER_TOKEN needs shared_gate");
    }
    if (c->num_shared_slots == 0 && gate) {
        return mf_fail(err, MF_ERR_INVALID, "shared_gate is given but num_shared_slots is 0");
    }
    if (c->shared_weight == MF_SHARED_RECIPROCAL && c->fold_scale) {
        return mf_fail(err, MF_ERR_INVALID, "shared_weight RECIPROCAL with fold_scale 1: the factor would not be applied "
                       "to the shared columns");
    }
    return MF_OK;
}

/* Resolves the defaults of the emitted ids and keeps every id that arithmetic can make within an i32. */
static mf_status check_ids(const mf_gate_args *a, mf_gate_config *c, mf_error *err)
{
    if (c->num_physical_experts == -1) {
        c->num_physical_experts = c->num_experts;
    }
    MF_TRY(check_at_least("num_physical_experts", c->num_physical_experts, 1, err));
    if (!mf_tensor_present(&a->expert_map) && c->num_physical_experts < c->num_experts) {
        return mf_fail(err, MF_ERR_INVALID, "num_physical_experts %d is less than num_experts %d without expert_map",
                       (int)c->num_physical_experts, (int)c->num_experts);
    }
    int64_t physical = c->num_physical_experts, shared = c->num_shared_slots;
    c->shared_base = c->shared_base == -1 ? c->num_physical_experts : c->shared_base;
    c->shared_stride = c->shared_stride == -1 ? c->num_replicas : c->shared_stride;
    if (c->shared_base < physical) {
        return mf_fail(err, MF_ERR_INVALID, "shared_base %d is less than num_physical_experts %lld", (int)c->shared_base,
                       (long long)physical);
    }
    if (shared > 1 && c->shared_stride < c->num_replicas) {
        return mf_fail(err, MF_ERR_INVALID, "shared_stride %d is less than num_replicas %d", (int)c->shared_stride,
                       (int)c->num_replicas);
    }
    int64_t last = c->shared_base + (shared - 1) * (int64_t)c->shared_stride + c->num_replicas - 1;
    if (shared > 0 && last > INT32_MAX) {
        return mf_fail(err, MF_ERR_INVALID, "shared_base %d + num_shared_slots: shared id %lld exceeds 2147483647",
                       (int)c->shared_base, (long long)last);
    }
    if (c->num_slots == -1) {
        int64_t slots = physical + shared * c->num_replicas;
        if (slots > INT32_MAX) {
            return mf_fail(err, MF_ERR_INVALID, "num_slots %lld exceeds 2147483647", (long long)slots);
        }
        c->num_slots = (int32_t)slots;
    }
    MF_TRY(check_at_least("num_slots", c->num_slots, 1, err));
    if (c->pack && c->num_slots > 32768) {
        return mf_fail(err, MF_ERR_INVALID, "pack with num_slots %d: expected at most 32768", (int)c->num_slots);
    }
    return MF_OK;
}

static mf_status check_ranks(const mf_gate_config *c, mf_error *err)
{
    MF_TRY(check_at_least("ep_size", c->ep_size, 0, err));
    if (c->ep_size > 0) {
        if (c->num_physical_experts % c->ep_size != 0) {
            return mf_fail(err, MF_ERR_INVALID, "ep_size %d does not divide num_physical_experts %d", (int)c->ep_size,
                           (int)c->num_physical_experts);
        }
        if (c->ep_rank < -1 || c->ep_rank >= c->ep_size) {
            return mf_fail(err, MF_ERR_INVALID, "ep_rank %d: expected -1 to %d", (int)c->ep_rank, (int)c->ep_size - 1);
        }
        int64_t end = c->num_physical_experts + (int64_t)c->ep_size * c->num_shared_slots;
        if (end > INT32_MAX) {
            return mf_fail(err, MF_ERR_INVALID, "ep_size %d: ids up to %lld exceed 2147483647", (int)c->ep_size,
                           (long long)end);
        }
    }
    MF_TRY(check_at_least("window_count", c->window_count, -1, err));
    if (c->window_count >= 0) {
        MF_TRY(check_at_least("window_first", c->window_first, 0, err));
    }
    return MF_OK;
}

static mf_status check_supported(const mf_gate_config *c, mf_error *err)
{
    int64_t width = (int64_t)c->num_experts + c->num_zero_experts;
    const mf_status unsupported = MF_ERR_UNSUPPORTED;
    if (width > MF_GATE_MAX_WIDTH) {
        return mf_fail(err, unsupported, "num_experts %d + num_zero_experts %d: at most %d are supported",
                       (int)c->num_experts, (int)c->num_zero_experts, (int)MF_GATE_MAX_WIDTH);
    }
    if (c->top_k > MF_GATE_MAX_TOP_K) {
        return mf_fail(err, unsupported, "top_k %d: at most %d is supported", (int)c->top_k, (int)MF_GATE_MAX_TOP_K);
    }
    if (c->num_shared_slots > MF_GATE_MAX_SHARED) {
        return mf_fail(err, unsupported, "num_shared_slots %d: at most %d are supported", (int)c->num_shared_slots,
                       (int)MF_GATE_MAX_SHARED);
    }
    if (c->softcap_given || c->jitter_given) {
        return mf_fail(err, unsupported, "%s is not supported", c->softcap_given ? "soft-capping of router logits" :
                       "router jitter");
    }
    if (c->scoring == MF_SCORING_TOPK_SIGMOID && !c->input_scale_supported &&
        (c->top_k > 1 || c->shared_weight == MF_SHARED_PER_TOKEN)) {
        return mf_fail(err, unsupported, "scoring TOPK_SIGMOID with %s needs experts with a per-column input scale",
                       c->top_k > 1 ? "top_k above 1" : "shared_weight PER_TOKEN");
    }
    return MF_OK;
}

/* [N], or [1, N] as some checkpoints store it; leaves a [N] view in *t. */
static mf_status check_bias_shape(mf_tensor *t, const char *name, int64_t n, mf_error *err)
{
    if (t->ndim == 2 && t->shape[0] == 1) {
        t->ndim = 1;
        t->shape[0] = t->shape[1];
        t->stride[0] = t->stride[1];
    }
    return mf_check_optional_1d(t, name, MF_DT_FLOAT3, n, err);
}

static mf_status check_inputs(const mf_device *device, mf_gate_args *a, mf_gate_call *call, mf_error *err)
{
    const mf_gate_config *c = &call->cfg;
    const uint32_t u8 = MF_DT(MF_U8), i32 = MF_DT(MF_I32);
    int64_t t = call->num_tokens, n = call->row_width;
    MF_TRY(check_bias_shape(&a->e_score_correction_bias, "e_score_correction_bias", n, err));
    MF_TRY(check_bias_shape(&a->bias_alt, "bias_alt", n, err));
    MF_TRY(mf_check_optional_1d(&a->row_is_alt, "row_is_alt", u8, t, err));
    MF_TRY(mf_check_optional_1d(&a->per_expert_scale, "per_expert_scale", MF_DT(MF_F32), n, err));
    MF_TRY(mf_check_optional_1d(&a->shared_gate, "shared_gate", MF_DT_FLOAT3, t, err));
    MF_TRY(mf_check_optional_1d(&a->expert_mask, "expert_mask", u8, n, err));
    if (c->hash) {
        MF_TRY(mf_check_2d(&a->hash_table, "hash_table", i32, MF_ANY, c->top_k, err));
        MF_TRY(mf_check_1d(&a->token_ids, "token_ids", i32 | MF_DT(MF_I64), t, err));
        call->hash_rows = a->hash_table.shape[0];
    }
    if (mf_tensor_present(&a->expert_map)) {
        call->map_copies = 1;
        if (a->expert_map.ndim == 2) {
            MF_TRY(mf_check_2d(&a->expert_map, "expert_map", i32, c->num_experts, MF_ANY, err));
            int64_t copies = a->expert_map.shape[1];
            if (copies < 1 || copies > INT32_MAX) {
                return mf_fail(err, MF_ERR_INVALID, "expert_map: %lld copies; expected at least 1", (long long)copies);
            }
            call->map_copies = (int32_t)copies;
            MF_TRY(mf_check_1d(&a->expert_copies, "expert_copies", i32, c->num_experts, err));
        } else {
            MF_TRY(mf_check_1d(&a->expert_map, "expert_map", i32, c->num_experts, err));
            MF_TRY(mf_check_optional_1d(&a->expert_copies, "expert_copies", i32, c->num_experts, err));
        }
    }
    return mf_check_rows(&a->num_valid_tokens, &a->row_valid, t, !device->ops->memory, &call->num_valid_tokens, err);
}

static mf_status check_outputs(const mf_gate_args *a, const mf_gate_call *call, mf_error *err)
{
    const mf_gate_config *c = &call->cfg;
    const uint32_t i32 = MF_DT(MF_I32), f32 = MF_DT(MF_F32);
    int64_t t = call->num_tokens, columns = call->num_columns;
    MF_TRY(mf_check_2d(&a->topk_ids, "topk_ids", i32, t, columns, err));
    MF_TRY(mf_check_2d(&a->topk_weights, "topk_weights", f32, t, columns, err));
    if (c->num_zero_experts > 0 && !mf_tensor_present(&a->identity_weight)) {
        return mf_fail(err, MF_ERR_INVALID, "num_zero_experts %d needs identity_weight", (int)c->num_zero_experts);
    }
    MF_TRY(mf_check_optional_1d(&a->identity_weight, "identity_weight", f32, t, err));
    if (c->pack) {
        MF_TRY(mf_check_2d(&a->packed, "packed", i32, t, columns, err));
    }
    MF_TRY(mf_check_optional_1d(&a->histogram, "histogram", i32, c->num_slots, err));
    MF_TRY(mf_check_optional_1d(&a->load, "load", i32, c->num_experts, err));
    MF_TRY(mf_check_optional_1d(&a->bad_rows, "bad_rows", i32, 1, err));
    return mf_check_optional_1d(&a->error_count, "error_count", i32, 1, err);
}

/* The configuration first, tensors second.  *args is the caller's struct, copied so that views can be normalised. */
static mf_status check(const mf_device *device, mf_gate_args *args, mf_gate_call *call, mf_error *err)
{
    const mf_gate_config *c = args->config;
    if (!c) {
        return mf_fail(err, MF_ERR_INVALID, "config is NULL");
    }
    *call = (mf_gate_call){ .cfg = *c, .args = args };
    MF_TRY(check_counts(c, err));
    MF_TRY(check_choices(c, err));
    MF_TRY(check_groups(c, err));
    MF_TRY(check_bias(args, err));
    MF_TRY(check_hash(args, err));
    MF_TRY(check_weights(args, call, err));
    MF_TRY(check_ids(args, &call->cfg, err));
    MF_TRY(check_ranks(&call->cfg, err));
    MF_TRY(check_supported(c, err));
    call->row_width = c->num_experts + c->num_zero_experts;
    call->num_columns = c->top_k + c->num_shared_slots;
    MF_TRY(mf_check_2d(&args->router_logits, "router_logits", MF_DT_FLOAT3, MF_ANY, call->row_width, err));
    call->num_tokens = args->router_logits.shape[0];
    MF_TRY(check_at_least("row_base", args->row_base, 0, err));
    if (args->row_base > INT64_MAX - call->num_tokens) {
        return mf_fail(err, MF_ERR_INVALID, "row_base %lld + %lld rows exceeds 63 bits", (long long)args->row_base,
                       (long long)call->num_tokens);
    }
    MF_TRY(check_inputs(device, args, call, err));
    return check_outputs(args, call, err);
}

/* Not inlined: float arithmetic here must stay between the two switches of the environment. */
static MF_NOINLINE mf_status run_gate(mf_device *device, const mf_gate_args *caller_args, bool fused, void *workspace,
                                      size_t workspace_bytes, mf_error *err)
{
    mf_gate_args args = *caller_args;
    mf_gate_call call;
    MF_TRY(check(device, &args, &call, err));
    if (fused) {
        return device->ops->gate(device, &call, err);
    }
    size_t needed = mf_moe_gate_workspace_bytes(caller_args);
    if (needed == 0 && call.num_tokens > 0) {
        return mf_fail(err, MF_ERR_INVALID, "workspace: its size for %lld rows does not fit in 63 bits",
                       (long long)call.num_tokens);
    }
    MF_TRY(mf_check_workspace(workspace, workspace_bytes, needed, err));
    return device->ops->gate_unfused ? device->ops->gate_unfused(device, &call, workspace, err)
                                     : mf_ref_gate_unfused(device, &call, workspace, err);
}

static mf_status enter_gate(mf_device *device, const mf_gate_args *args, bool fused, void *workspace, size_t bytes,
                            mf_error *err)
{
    if (!device || !args) {
        return mf_fail(err, MF_ERR_INVALID, "%s is NULL", device ? "args" : "device");
    }
    mf_fp_env env = mf_fp_enter();
    mf_status status = run_gate(device, args, fused, workspace, bytes, err);
    mf_fp_leave(env);
    return status;
}

mf_status mf_moe_fused_gate(mf_device *device, const mf_gate_args *args, mf_error *err)
{
    return enter_gate(device, args, true, NULL, 0, err);
}

mf_status mf_moe_gate_unfused(mf_device *device, const mf_gate_args *args, void *workspace, size_t workspace_bytes,
                              mf_error *err)
{
    return enter_gate(device, args, false, workspace, workspace_bytes, err);
}

size_t mf_moe_gate_workspace_bytes(const mf_gate_args *args)
{
    const mf_gate_config *c = args ? args->config : NULL;
    if (!c || c->num_experts < 1 || c->num_zero_experts < 0 || c->top_k < 1 || c->num_shared_slots < 0 || c->n_group < 1) {
        return 0;
    }
    return mf_ref_gate_unfused_bytes(args->router_logits.shape[0], (int64_t)c->num_experts + c->num_zero_experts,
                                     c->n_group, (int64_t)c->top_k + c->num_shared_slots);
}
