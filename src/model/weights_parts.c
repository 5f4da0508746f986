/* weights_parts.c - which part of a model a matrix belongs to, and what each part is stored as: see weights_parts.h. */
#include "model/weights_parts.h"

#include <string.h>

#include "kernels/ops.h"

const char *mf_part_name(mf_part part)
{
    static const char *const names[] = { "embedding",      "attention",      "dense MLP", "router",
                                         "routed experts", "shared experts", "head" };
    return (unsigned)part < MF_PART_COUNT ? names[part] : "?";
}

mf_part mf_part_of(mf_role role)
{
    switch (role) {
    case MF_ROLE_EMBED:
        return MF_PART_EMBED;
    case MF_ROLE_LM_HEAD:
        return MF_PART_HEAD;
    case MF_ROLE_DENSE_GATE:
    case MF_ROLE_DENSE_UP:
    case MF_ROLE_DENSE_DOWN:
        return MF_PART_DENSE;
    case MF_ROLE_ROUTER:
    case MF_ROLE_SHARED_EXPERT_GATE:
        return MF_PART_ROUTER;
    case MF_ROLE_EXPERT_GATE:
    case MF_ROLE_EXPERT_UP:
    case MF_ROLE_EXPERT_DOWN:
        return MF_PART_EXPERTS;
    case MF_ROLE_SHARED_GATE:
    case MF_ROLE_SHARED_UP:
    case MF_ROLE_SHARED_DOWN:
        return MF_PART_SHARED;
    default:
        return MF_PART_ATTENTION;
    }
}

typedef struct counter {
    int64_t (*bytes)[MF_FORMAT_COUNT];
} counter;

static mf_status count_matrix(void *context, const mf_wanted *x)
{
    const counter *c = context;
    if (x->kind != MF_WANT_VECTOR && x->matrix->data && !x->optional) {
        c->bytes[mf_part_of(x->role)][x->matrix->format] += mf_matrix_bytes(x->matrix);
    }
    return MF_OK;
}

mf_status mf_weights_by_part(const mf_weights *weights, int64_t bytes[MF_PART_COUNT][MF_FORMAT_COUNT])
{
    counter c = { .bytes = bytes };
    memset(bytes, 0, sizeof(int64_t) * MF_PART_COUNT * MF_FORMAT_COUNT);
    return mf_tensor_map_walk(weights->config, (mf_weights *)(uintptr_t)weights, count_matrix, &c);
}
