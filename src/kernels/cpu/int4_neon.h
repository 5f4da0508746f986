/* int4_neon.h - INT4_GROUP through the product loops, whatever its groups; included after them. */
#ifndef MF_KERNELS_CPU_INT4_NEON_H
#define MF_KERNELS_CPU_INT4_NEON_H

#include "kernels/cpu/product_loops.h"

/* `step` columns are decoded at once. */
INLINE void int4_product(const mf_cpu_tile *tile, int64_t step, mf_cpu_form form)
{
    const mf_matrix *w = tile->w;
    if (w->group_size < w->k && w->group_size % step != 0) { /* groups start inside vectors */
        mf_cpu_tile_rare(tile, form, 1);
        return;
    }
    if (w->group_size <= CHUNK_COLUMNS || w->k <= CHUNK_COLUMNS) {
        product(MF_FORMAT_INT4_GROUP, tile);
        return;
    }
    for (int64_t t = 0; t < tile->num_tokens; t += 2) { /* more would be flushed at the end of each chunk of a group */
        mf_cpu_tile two = *tile;
        two.num_tokens = tile->num_tokens - t < 2 ? 1 : 2;
        two.x += t;
        two.out += t * tile->out_stride;
        product(MF_FORMAT_INT4_GROUP, &two);
    }
}

#endif
