/* api_align.c - mf_moe_align_block_size: arguments checked once, then the device. */
#include "base/sys.h"
#include "kernels/align_chunks.h"
#include "kernels/ops.h"
#include "kernels/ref/ref_gate.h"
#include "kernels/tensor_check.h"

/* At most min(M, P) slots are not empty and each wastes at most b - 1 entries; the padded total is a multiple of b. */
int64_t mf_moe_align_capacity(int64_t num_tokens, int64_t num_columns, int64_t block_size, int64_t num_slots)
{
    int64_t m, padding, total;
    if (num_tokens < 0 || num_columns < 0 || block_size < 1 || num_slots < 1 || !mf_mul_ok(num_tokens, num_columns, &m)) {
        return -1;
    }
    int64_t slots = m < num_slots ? m : num_slots;
    if (!mf_mul_ok(slots, block_size - 1, &padding) || !mf_add_ok(m, padding, &total)) {
        return -1;
    }
    int64_t capacity = total / block_size * block_size;
    return capacity > INT32_MAX ? -1 : capacity;
}

size_t mf_moe_align_workspace_bytes(const mf_align_args *args)
{
    if (!args || args->num_slots < 1 || args->num_slots > INT32_MAX) {
        return 0;
    }
    /* One count per slot and chunk: what a device that counts chunks side by side needs; others use the first chunk's. */
    int64_t pairs = 0;
    if (args->topk_ids.ndim == 2 && !mf_mul_ok(args->topk_ids.shape[0], args->topk_ids.shape[1], &pairs)) {
        pairs = 0;
    }
    return mf_ref_align_workspace_bytes(args->num_slots) * (size_t)mf_align_chunks(pairs, args->num_slots);
}

/* An output of at least `needed` entries. */
static mf_status check_output(const mf_tensor *t, const char *name, int64_t needed, mf_error *err)
{
    MF_TRY(mf_check_1d(t, name, MF_DT(MF_I32), MF_ANY, err));
    if (t->shape[0] < needed) {
        return mf_fail(err, MF_ERR_INVALID, "%s: %lld entries; expected at least %lld", name, (long long)t->shape[0],
                       (long long)needed);
    }
    return MF_OK;
}

static mf_status check(const mf_align_args *args, mf_align_call *call, mf_error *err)
{
    const uint32_t i32 = MF_DT(MF_I32);
    MF_TRY(mf_check_2d(&args->topk_ids, "topk_ids", i32, MF_ANY, MF_ANY, err));
    int64_t t = args->topk_ids.shape[0], c = args->topk_ids.shape[1], m;
    if (args->block_size < 1) {
        return mf_fail(err, MF_ERR_INVALID, "block_size %lld: expected at least 1", (long long)args->block_size);
    }
    if (args->num_slots < 1 || args->num_slots > INT32_MAX) {
        return mf_fail(err, MF_ERR_INVALID, "num_slots %lld: expected 1 to 2147483647", (long long)args->num_slots);
    }
    if (!mf_mul_ok(t, c, &m) || m > INT32_MAX) {
        return mf_fail(err, MF_ERR_INVALID, "topk_ids: shape [%lld, %lld] has 2^31 entries or more; split the batch",
                       (long long)t, (long long)c);
    }
    int64_t capacity = mf_moe_align_capacity(t, c, args->block_size, args->num_slots);
    if (capacity < 0) {
        return mf_fail(err, MF_ERR_INVALID,
                       "block_size %lld with topk_ids [%lld, %lld] and num_slots %lld needs 2^31 sorted entries or more",
                       (long long)args->block_size, (long long)t, (long long)c, (long long)args->num_slots);
    }
    MF_TRY(mf_check_optional_1d(&args->histogram, "histogram", i32, args->num_slots, err));
    MF_TRY(check_output(&args->sorted_token_ids, "sorted_token_ids", capacity, err));
    MF_TRY(check_output(&args->expert_ids, "expert_ids", capacity / args->block_size, err));
    MF_TRY(mf_check_1d(&args->num_tokens_post_padded, "num_tokens_post_padded", i32, 1, err));
    MF_TRY(mf_check_optional_1d(&args->offsets, "offsets", i32, args->num_slots + 1, err));
    MF_TRY(mf_check_optional_1d(&args->error_count, "error_count", i32, 1, err));
    *call = (mf_align_call){ .args = args, .num_tokens = t, .num_columns = c, .block_size = args->block_size,
                             .num_slots = args->num_slots, .capacity = capacity };
    return MF_OK;
}

mf_status mf_moe_align_block_size(mf_device *device, const mf_align_args *args, void *workspace, size_t workspace_bytes,
                                  mf_error *err)
{
    if (!device || !args) {
        return mf_fail(err, MF_ERR_INVALID, "%s is NULL", device ? "args" : "device");
    }
    mf_align_call call;
    MF_TRY(check(args, &call, err));
    MF_TRY(mf_check_workspace(workspace, workspace_bytes, mf_moe_align_workspace_bytes(args), err));
    call.workspace = workspace;
    return device->ops->align(device, &call, err);
}
