/* slots.c - the expert tables of a layer under the plan.
 *
 * A slot is a pointer, not a copy: a shared MLP of width S*I becomes S views into the checkpoint's bytes, and a replica is a
 * second slot with the same pointers. */
#include "base/arena.h"
#include "model/plan.h"

#include "kernels/ops.h"

static mf_slot slot_of(const mf_model_config *config, const mf_mlp_weights *mlp)
{
    return (mf_slot){ .gate = mlp->gate,
                      .up = mlp->up,
                      .down = mlp->down,
                      .gate_bias = mlp->gate_bias,
                      .up_bias = mlp->up_bias,
                      .down_bias = mlp->down_bias,
                      .activation = config->activation,
                      .limit = (float)config->activation_limit,
                      .alpha = (float)config->activation_alpha };
}

/* Columns [first, first + count) of the intermediate: rows of gate and up, columns of down. */
static mf_slot chunk_of(const mf_model_config *config, const mf_mlp_weights *mlp, int64_t first, int64_t count)
{
    mf_mlp_weights chunk = { .up = mf_matrix_rows(&mlp->up, first, count), .down = mf_matrix_columns(&mlp->down, first, count) };
    if (mlp->gate.data) {
        chunk.gate = mf_matrix_rows(&mlp->gate, first, count);
    }
    return slot_of(config, &chunk);
}

/* Chunk j of S, or the whole MLP when S is 1. */
static mf_slot shared_chunk(const mf_plan *plan, const mf_mlp_weights *shared, int32_t num_chunks, int32_t j)
{
    if (num_chunks == 1) {
        return slot_of(plan->config, shared);
    }
    int64_t width = plan->config->moe_intermediate_size;
    int64_t first = j * width;
    int64_t left = shared->up.n - first;
    return chunk_of(plan->config, shared, first, left < width ? left : width);
}

mf_status mf_plan_layer_slots(const mf_plan *plan, const mf_weights *weights, int64_t layer, mf_arena *arena, mf_slot **slots,
                              int64_t *num_slots, mf_slot **shared, int64_t *num_shared, mf_error *err)
{
    const mf_layer_plan *decided = &plan->layers[layer];
    const mf_layer_weights *w = &weights->layers[layer];
    int32_t num_experts = plan->config->gate.num_experts;
    int32_t num_chunks = decided->has_shared ? decided->num_shared_chunks : 0;
    int32_t replicas = decided->num_replicas;
    const bool in_slots = decided->has_shared && decided->has_slots,
               is_apart = decided->has_shared && decided->is_apart;
    *num_slots = num_experts + (in_slots ? num_chunks * replicas : 0);
    *num_shared = is_apart ? num_chunks : 0;
    *slots = mf_arena_array(arena, (size_t)*num_slots, sizeof **slots);
    *shared = *num_shared ? mf_arena_array(arena, (size_t)*num_shared, sizeof **shared) : NULL;
    if (!*slots || (*num_shared && !*shared)) {
        return mf_fail(err, MF_ERR_NOMEM, "layer %lld: out of memory for %lld slots", (long long)layer,
                       (long long)(*num_slots + *num_shared));
    }
    for (int32_t e = 0; e < num_experts; e++) {
        (*slots)[e] = slot_of(plan->config, &w->experts[e]);
    }
    for (int32_t j = 0; j < num_chunks; j++) {
        mf_slot chunk = shared_chunk(plan, &w->shared, num_chunks, j);
        if (is_apart) {
            (*shared)[j] = chunk;
        }
        for (int32_t r = 0; in_slots && r < replicas; r++) {
            (*slots)[num_experts + j * replicas + r] = chunk;
        }
    }
    return MF_OK;
}
