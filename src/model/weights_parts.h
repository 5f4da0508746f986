/* weights_parts.h - the parts of a model whose weights may each be stored in a format of their own. */
#ifndef MF_MODEL_WEIGHTS_PARTS_H
#define MF_MODEL_WEIGHTS_PARTS_H

#include "model/tensor_map.h"

typedef enum mf_part {
    MF_PART_EMBED,
    MF_PART_ATTENTION,
    MF_PART_DENSE,
    MF_PART_ROUTER,
    MF_PART_EXPERTS,
    MF_PART_SHARED,
    MF_PART_HEAD,
    MF_PART_COUNT
} mf_part;

const char *mf_part_name(mf_part part);
mf_part mf_part_of(mf_role role); /* of a matrix */

/* Stored bytes of the matrices, by part and format. */
mf_status mf_weights_by_part(const mf_weights *weights, int64_t bytes[MF_PART_COUNT][MF_FORMAT_COUNT]);

#endif
