/* align.c - token-expert pairs sorted by slot, each slot's run padded to whole blocks.
 *
 * A counting sort: stable, so the result is a function of the ids alone.  The histogram that a caller may lend is not
 * used here: counting costs less than trusting it, and the result is defined to be the same. */
#include "kernels/ref/ref_gate.h"

#include "kernels/ref/views.h"

static int32_t id_at(const mf_align_call *call, int64_t t, int64_t c)
{
    const mf_tensor *ids = &call->args->topk_ids;
    return mf_load_i32(ids, t * ids->stride[0] + c);
}

size_t mf_ref_align_workspace_bytes(int64_t num_slots)
{
    return (size_t)num_slots * sizeof(int32_t);
}

mf_status mf_ref_align(mf_device *device, const mf_align_call *call, mf_error *err)
{
    (void)device;
    (void)err;
    const mf_align_args *args = call->args;
    int64_t b = call->block_size, num_slots = call->num_slots;
    int32_t fill = (int32_t)(call->num_tokens * call->num_columns);
    int32_t *next = call->workspace; /* per slot: its count, later the place of its next entry */

    for (int64_t s = 0; s < num_slots; s++) {
        next[s] = 0;
    }
    for (int64_t t = 0; t < call->num_tokens; t++) {
        for (int64_t c = 0; c < call->num_columns; c++) {
            int32_t id = id_at(call, t, c);
            if (id >= num_slots) {
                mf_count(&args->error_count, 0);
            } else if (id >= 0) {
                next[id]++;
            }
        }
    }
    int64_t place = 0, kept = 0;
    for (int64_t s = 0; s < num_slots; s++) {
        int64_t count = next[s];
        if (args->offsets.data) {
            mf_store_i32(&args->offsets, s, (int32_t)kept);
        }
        next[s] = (int32_t)place;
        int64_t blocks = (count + b - 1) / b;
        for (int64_t i = 0; i < blocks; i++) {
            mf_store_i32(&args->expert_ids, place / b + i, (int32_t)s);
        }
        place += blocks * b;
        kept += count;
    }
    if (args->offsets.data) {
        mf_store_i32(&args->offsets, num_slots, (int32_t)kept);
    }
    mf_store_i32(&args->num_tokens_post_padded, 0, (int32_t)place);
    for (int64_t i = place / b; i < call->capacity / b; i++) {
        mf_store_i32(&args->expert_ids, i, -1);
    }
    for (int64_t i = 0; i < call->capacity; i++) {
        mf_store_i32(&args->sorted_token_ids, i, fill);
    }
    for (int64_t t = 0; t < call->num_tokens; t++) {
        for (int64_t c = 0; c < call->num_columns; c++) {
            int32_t id = id_at(call, t, c);
            if (id >= 0 && id < num_slots) {
                mf_store_i32(&args->sorted_token_ids, next[id]++, (int32_t)(t * call->num_columns + c));
            }
        }
    }
    return MF_OK;
}
