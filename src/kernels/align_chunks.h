/* align_chunks.h - into how many chunks a device cuts an alignment: the workspace holds one count per slot and chunk. */
#ifndef MF_KERNELS_ALIGN_CHUNKS_H
#define MF_KERNELS_ALIGN_CHUNKS_H

#include <stdint.h>

enum { MF_ALIGN_CHUNK = 4096, MF_ALIGN_MAX_CHUNKS = 128, MF_ALIGN_MAX_COUNTS = 1 << 20 };

/* 1 up to MF_ALIGN_CHUNK pairs; past that, chunks of about that many, fewer where the counts would grow large. */
static inline int64_t mf_align_chunks(int64_t num_pairs, int64_t num_slots)
{
    if (num_pairs <= MF_ALIGN_CHUNK) {
        return 1;
    }
    int64_t chunks = (num_pairs - 1) / MF_ALIGN_CHUNK + 1;
    int64_t most = MF_ALIGN_MAX_COUNTS / num_slots;
    chunks = chunks < MF_ALIGN_MAX_CHUNKS ? chunks : MF_ALIGN_MAX_CHUNKS;
    chunks = chunks < most ? chunks : most;
    return chunks < 2 ? 2 : chunks;
}

#endif
