/* api_experts.c - mf_experts_* and mf_fused_experts: everything is checked here, backends trust what they get. */
#include <math.h>
#include <stdio.h>

#include "base/sys.h"
#include "kernels/fp_env.h"
#include "kernels/quantise.h"
#include "kernels/tensor_check.h"

enum { MAX_SLOTS = 1 << 20 };

static mf_status check_shape(const mf_matrix *m, int64_t n, int64_t k, const char *what, mf_error *err)
{
    if (m->n != n || m->k != k) {
        return mf_fail(err, MF_ERR_INVALID, "%s: shape [%lld, %lld]; expected [%lld, %lld]", what, (long long)m->n,
                       (long long)m->k, (long long)n, (long long)k);
    }
    return MF_OK;
}

static mf_status check_width(const mf_matrix *m, mf_quant quant, const char *what, mf_error *err)
{
    if (quant == MF_QUANT_INT8_TOKEN && m->k > MF_MAX_K_INT8) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "%s: %lld columns; int8 products take at most %d", what,
                       (long long)m->k, MF_MAX_K_INT8);
    }
    return MF_OK;
}

static mf_status check_activation(const mf_slot *slot, const char *what, mf_error *err)
{
    mf_activation act = slot->activation;
    if ((unsigned)act > MF_ACT_RELU2) {
        return mf_fail(err, MF_ERR_INVALID, "%s: activation %d; expected 0 to %d", what, (int)act, MF_ACT_RELU2);
    }
    bool limited = act == MF_ACT_SILU_CLAMP || act == MF_ACT_SILU_CLAMP_AFTER || act == MF_ACT_SWIGLU_OAI;
    if (limited && !(slot->limit > 0)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: limit %g; expected a number > 0", what, (double)slot->limit);
    }
    if (act == MF_ACT_SWIGLU_OAI && !isfinite(slot->alpha)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: alpha %g; expected a finite number", what, (double)slot->alpha);
    }
    if (act == MF_ACT_SITU && !(slot->beta > 0 && slot->lbeta > 0 && isfinite(slot->beta) && isfinite(slot->lbeta))) {
        return mf_fail(err, MF_ERR_INVALID, "%s: beta %g, lbeta %g; expected finite numbers > 0", what,
                       (double)slot->beta, (double)slot->lbeta);
    }
    if (!(slot->input_scale13 >= 0 && slot->input_scale2 >= 0 && isfinite(slot->input_scale13) &&
          isfinite(slot->input_scale2))) {
        return mf_fail(err, MF_ERR_INVALID, "%s: input scales %g and %g; expected finite numbers >= 0", what,
                       (double)slot->input_scale13, (double)slot->input_scale2);
    }
    if ((act == MF_ACT_RELU2) != (slot->gate.data == NULL)) {
        return mf_fail(err, MF_ERR_INVALID, "%s: %s", what,
                       act == MF_ACT_RELU2 ? "RELU2 has no gate; expected no gate weights"
                                           : "gate weights are missing");
    }
    return MF_OK;
}

static mf_status check_slot(mf_experts *experts, int64_t s, mf_error *err)
{
    const mf_slot *slot = &experts->slots[s];
    const int64_t hidden = experts->hidden_size;
    const int64_t width = slot->up.n;
    char what[48];
    snprintf(what, sizeof what, "slot %lld", (long long)s);
    MF_TRY(check_activation(slot, what, err));
    mf_quant quant13 = mf_quant_for(experts->act_quant, slot->up.format, slot->input_scale13);
    mf_quant quant2 = mf_quant_for(experts->act_quant, slot->down.format, slot->input_scale2);

    snprintf(what, sizeof what, "slot %lld up", (long long)s);
    MF_TRY(mf_matrix_check(&slot->up, what, err));
    MF_TRY(check_shape(&slot->up, width, hidden, what, err));
    MF_TRY(check_width(&slot->up, quant13, what, err));
    if (slot->gate.data) {
        snprintf(what, sizeof what, "slot %lld gate", (long long)s);
        MF_TRY(mf_matrix_check(&slot->gate, what, err));
        MF_TRY(check_shape(&slot->gate, width, hidden, what, err));
        if (slot->gate.format != slot->up.format) {
            return mf_fail(err, MF_ERR_INVALID, "%s: format %s; expected that of up, %s", what,
                           mf_format_name(slot->gate.format), mf_format_name(slot->up.format));
        }
    }
    snprintf(what, sizeof what, "slot %lld down", (long long)s);
    MF_TRY(mf_matrix_check(&slot->down, what, err));
    MF_TRY(check_shape(&slot->down, hidden, width, what, err));
    MF_TRY(check_width(&slot->down, quant2, what, err));

    experts->max_intermediate_size = width > experts->max_intermediate_size ? width : experts->max_intermediate_size;
    experts->quants13 |= 1u << quant13;
    experts->quants2 |= 1u << quant2;
    return MF_OK;
}

mf_status mf_experts_create(mf_device *device, const mf_experts_desc *desc, mf_experts **out, mf_error *err)
{
    if (!out) {
        return mf_fail(err, MF_ERR_INVALID, "experts: the place for the result is NULL");
    }
    *out = NULL;
    if (!device || !desc || !desc->slots) {
        return mf_fail(err, MF_ERR_INVALID, "%s is NULL", !device ? "device" : !desc ? "desc" : "slots");
    }
    if (desc->num_slots < 1 || desc->num_slots > MAX_SLOTS) {
        return mf_fail(err, MF_ERR_INVALID, "num_slots %lld; expected 1 to %d", (long long)desc->num_slots, MAX_SLOTS);
    }
    if (desc->hidden_size < 1) {
        return mf_fail(err, MF_ERR_INVALID, "hidden_size %lld; expected at least 1", (long long)desc->hidden_size);
    }
    if (desc->act_dtype != MF_F32 && desc->act_dtype != MF_BF16 && desc->act_dtype != MF_F16) {
        return mf_fail(err, MF_ERR_INVALID, "act_dtype %s; expected f32, bf16 or f16", mf_dtype_name(desc->act_dtype));
    }
    if ((unsigned)desc->act_quant > MF_ACT_QUANT_INT8) {
        return mf_fail(err, MF_ERR_INVALID, "act_quant %d; expected 0 to %d", (int)desc->act_quant,
                       MF_ACT_QUANT_INT8);
    }
    mf_experts *experts = mf_alloc_zero(sizeof *experts);
    if (!experts) {
        return mf_fail(err, MF_ERR_NOMEM, "experts: out of memory");
    }
    mf_status status = MF_OK;
    experts->device = device;
    experts->num_slots = desc->num_slots;
    experts->hidden_size = desc->hidden_size;
    experts->act_dtype = desc->act_dtype;
    experts->act_quant = desc->act_quant;
    experts->slots = mf_alloc_array((size_t)desc->num_slots, sizeof *experts->slots);
    if (!experts->slots) {
        status = mf_fail(err, MF_ERR_NOMEM, "experts: no memory for %lld slots", (long long)desc->num_slots);
        goto fail;
    }
    memcpy(experts->slots, desc->slots, (size_t)desc->num_slots * sizeof *experts->slots);
    for (int64_t s = 0; s < desc->num_slots; s++) {
        MF_TRY_GOTO(check_slot(experts, s, err), fail);
    }
    if (device->ops->experts_open) {
        MF_TRY_GOTO(device->ops->experts_open(device, experts, err), fail);
    }
    *out = experts;
    return MF_OK;
fail:
    mf_experts_destroy(&experts);
    return status;
}

void mf_experts_destroy(mf_experts **out)
{
    if (!out || !*out) {
        return;
    }
    if ((*out)->backend) {
        (*out)->device->ops->experts_close(*out);
    }
    mf_free((*out)->slots);
    mf_free(*out);
    *out = NULL;
}

/* SIZE_MAX, which no caller can lend, when the sizes overflow. */
size_t mf_fused_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns)
{
    if (!experts || num_tokens <= 0 || num_columns <= 0) {
        return 0;
    }
    return experts->device->ops->experts_workspace_bytes(experts, num_tokens, num_columns);
}

static MF_NOINLINE mf_status run(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    return device->ops->experts(device, call, err);
}

mf_status mf_fused_experts(mf_device *device, const mf_experts_args *args, void *workspace, size_t workspace_bytes,
                           mf_error *err)
{
    if (!device || !args || !args->experts) {
        return mf_fail(err, MF_ERR_INVALID, "%s is NULL", !device ? "device" : !args ? "args" : "experts");
    }
    const mf_experts *experts = args->experts;
    if (experts->device != device) {
        return mf_fail(err, MF_ERR_INVALID, "experts: created for another device (%s)", experts->device->name);
    }
    const int64_t hidden = experts->hidden_size;
    MF_TRY(mf_check_2d(&args->topk_ids, "topk_ids", MF_DT(MF_I32), MF_ANY, MF_ANY, err));
    const int64_t num_tokens = args->topk_ids.shape[0];
    const int64_t num_columns = args->topk_ids.shape[1];
    MF_TRY(mf_check_2d(&args->x, "x", MF_DT(experts->act_dtype), num_tokens, hidden, err));
    MF_TRY(mf_check_optional_2d(&args->input_scale, "input_scale", MF_DT(MF_F32), num_tokens, num_columns, err));
    MF_TRY(mf_check_3d(&args->y, "y", MF_DT_FLOAT3, num_tokens, num_columns, hidden, err));
    if (num_tokens == 0 || num_columns == 0) {
        return MF_OK;
    }
    int64_t num_pairs;
    if (!mf_mul_ok(num_tokens, num_columns, &num_pairs) || num_pairs > INT32_MAX) {
        return mf_fail(err, MF_ERR_INVALID, "topk_ids: %lld x %lld entries; expected fewer than 2^31",
                       (long long)num_tokens, (long long)num_columns);
    }
    MF_TRY(mf_check_disjoint(&args->y, "y", &args->x, "x", err));
    MF_TRY(mf_check_disjoint(&args->y, "y", &args->topk_ids, "topk_ids", err));
    MF_TRY(mf_check_disjoint(&args->y, "y", &args->input_scale, "input_scale", err));
    size_t needed = mf_fused_experts_workspace_bytes(experts, num_tokens, num_columns);
    MF_TRY(mf_check_workspace(workspace, workspace_bytes, needed, err));
    mf_experts_call call = {
        .experts = experts, .args = args, .num_tokens = num_tokens, .num_columns = num_columns, .workspace = workspace
    };
    mf_fp_env saved = mf_fp_enter();
    mf_status status = run(device, &call, err);
    mf_fp_leave(saved);
    return status;
}
