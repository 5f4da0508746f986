/* part.h - the parts that a model's time is told by. */
#ifndef MF_KERNELS_PART_H
#define MF_KERNELS_PART_H

typedef enum mf_part {
    MF_PART_ATTENTION, /* without its projections: rope, the cache, scores, values; linear attention */
    MF_PART_GATE,
    MF_PART_EXPERTS,
    MF_PART_COMBINE,   /* where it is a launch of its own; else it counts to the experts */
    MF_PART_DENSE,     /* projections, router, dense MLPs, the head */
    MF_PART_REST,      /* norms, sums, embedding, sampling, copies, and the host's time where the device waits for it */
    MF_NUM_PARTS
} mf_part;

#endif
