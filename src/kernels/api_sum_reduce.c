/* api_sum_reduce.c - mf_moe_sum_reduce: arguments checked once, then the device. */
#include <math.h>

#include "kernels/fp_env.h"
#include "kernels/ops.h"
#include "kernels/tensor_check.h"

/* x, hidden and addends have one dtype; residual and out have one, which x's may differ from unless either is f64. */
static mf_status check_terms(const mf_sum_reduce_args *a, bool has_x, mf_error *err)
{
    if (has_x) {
        MF_TRY(mf_check_3d(&a->x, "x", MF_DT_FLOAT4, MF_ANY, MF_ANY, MF_ANY, err));
    }
    const uint32_t same = MF_DT(a->x.dtype);
    int64_t t = a->x.shape[0], c = a->x.shape[1], h = a->x.shape[2];
    MF_TRY(mf_check_optional_2d(&a->topk_ids, "topk_ids", MF_DT(MF_I32), t, c, err));
    MF_TRY(mf_check_optional_2d(&a->topk_weights, "topk_weights", MF_DT(MF_F32), t, c, err));
    if (a->num_shared_columns < 0 || a->num_shared_columns > c) {
        return mf_fail(err, MF_ERR_INVALID, "num_shared_columns %d: expected 0 to the %lld columns of x",
                       (int)a->num_shared_columns, (long long)c);
    }
    if (a->routed_scaling_factor == 0.0f) {
        return mf_fail(err, MF_ERR_INVALID, "routed_scaling_factor is not set");
    }
    if (!isfinite(a->routed_scaling_factor)) {
        return mf_fail(err, MF_ERR_INVALID, "routed_scaling_factor %g: expected a finite number",
                       (double)a->routed_scaling_factor);
    }
    MF_TRY(mf_check_optional_1d(&a->identity_weight, "identity_weight", MF_DT(MF_F32), t, err));
    if (mf_tensor_present(&a->identity_weight) && !mf_tensor_present(&a->hidden)) {
        return mf_fail(err, MF_ERR_INVALID, "identity_weight needs hidden");
    }
    MF_TRY(mf_check_optional_2d(&a->hidden, "hidden", same, t, h, err));
    if (a->num_addends < 0 || (a->num_addends > 0 && !a->addends)) {
        return mf_fail(err, MF_ERR_INVALID, "num_addends %d: %s", (int)a->num_addends,
                       a->num_addends < 0 ? "expected at least 0" : "addends is NULL");
    }
    for (int32_t i = 0; i < a->num_addends; i++) {
        mf_status status = mf_check_2d(&a->addends[i], "tensor", same, t, h, err);
        if (status != MF_OK) {
            return mf_fail_context(err, status, "addends[%d]", (int)i);
        }
    }
    return mf_check_optional_2d(&a->addend_weights, "addend_weights", MF_DT(MF_F32), t, a->num_addends, err);
}

static bool same_place(const mf_tensor *a, const mf_tensor *b)
{
    return a->data == b->data && (a->shape[0] <= 1 || a->stride[0] == b->stride[0]);
}

/* The output may be the residual, and nothing else that is read. */
static mf_status check_out(const mf_sum_reduce_args *a, mf_error *err)
{
    int64_t t = a->x.shape[0], h = a->x.shape[2];
    MF_TRY(mf_check_2d(&a->out, "out", a->x.dtype == MF_F64 ? MF_DT(MF_F64) : MF_DT_FLOAT3, t, h, err));
    MF_TRY(mf_check_optional_2d(&a->residual, "residual", MF_DT(a->out.dtype), t, h, err));
    const mf_tensor *const inputs[] = { &a->x,      &a->topk_ids,       &a->topk_weights,     &a->identity_weight,
                                        &a->hidden, &a->addend_weights, &a->num_valid_tokens, &a->row_valid };
    static const char *const names[] = { "x",      "topk_ids",       "topk_weights",     "identity_weight",
                                         "hidden", "addend_weights", "num_valid_tokens", "row_valid" };
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        MF_TRY(mf_check_disjoint(&a->out, "out", inputs[i], names[i], err));
    }
    for (int32_t i = 0; i < a->num_addends; i++) {
        MF_TRY(mf_check_disjoint(&a->out, "out", &a->addends[i], "addends", err));
    }
    if (mf_tensor_present(&a->residual) && !same_place(&a->residual, &a->out)) {
        MF_TRY(mf_check_disjoint(&a->out, "out", &a->residual, "residual", err));
    }
    return MF_OK;
}

mf_status mf_sum_reduce_check(const mf_device *device, const mf_sum_reduce_args *args, bool has_x, mf_sum_reduce_call *call,
                              mf_error *err)
{
    MF_TRY(check_terms(args, has_x, err));
    *call = (mf_sum_reduce_call){ .args = args, .num_tokens = args->x.shape[0], .num_columns = args->x.shape[1],
                                  .hidden_size = args->x.shape[2] };
    MF_TRY(mf_check_rows(&args->num_valid_tokens, &args->row_valid, call->num_tokens, !device->ops->memory,
                         &call->num_valid_tokens, err));
    return check_out(args, err);
}

static MF_NOINLINE mf_status sum_reduce(mf_device *device, const mf_sum_reduce_args *args, mf_error *err)
{
    mf_sum_reduce_call call;
    MF_TRY(mf_sum_reduce_check(device, args, true, &call, err));
    return device->ops->sum_reduce(device, &call, err);
}

mf_status mf_moe_sum_reduce(mf_device *device, const mf_sum_reduce_args *args, mf_error *err)
{
    if (!device || !args) {
        return mf_fail(err, MF_ERR_INVALID, "%s is NULL", device ? "args" : "device");
    }
    mf_fp_env env = mf_fp_enter();
    mf_status status = sum_reduce(device, args, err);
    mf_fp_leave(env);
    return status;
}
