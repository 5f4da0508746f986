/* rows_ahead.h - what a thread reads some kilobytes after the rows at hand, for loops that ask the memory for it.
 *
 * A few short rows at a time are no pattern that hardware prefetchers follow, least of all where a tile ends and the
 * next one's rows, of another slot's matrix, lie elsewhere. */
#ifndef MF_KERNELS_CPU_ROWS_AHEAD_H
#define MF_KERNELS_CPU_ROWS_AHEAD_H

#include "kernels/cpu/cpu_kernels.h"

/* The matrix and row that stand `ahead` rows behind row r of the tile, on through what is read after it; w NULL: nobody
 * knows. */
typedef struct mf_cpu_rows_ahead {
    const mf_matrix *w;
    int64_t row;
} mf_cpu_rows_ahead;

static inline mf_cpu_rows_ahead mf_cpu_rows_ahead_of(const mf_cpu_tile *tile, int64_t r, int64_t ahead)
{
    const int64_t past = r + ahead - tile->num_rows;
    if (past < 0) {
        return (mf_cpu_rows_ahead){ tile->w, tile->first_row + r + ahead };
    }
    if (!tile->next || tile->next->format != tile->w->format || tile->next_row + past >= tile->next->n) {
        return (mf_cpu_rows_ahead){ 0 };
    }
    return (mf_cpu_rows_ahead){ tile->next, tile->next_row + past };
}

#endif
