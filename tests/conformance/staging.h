/* staging.h - copies of what one operation's views name, on a device with memory of its own: see staging.c. */
#ifndef MF_TESTS_STAGING_H
#define MF_TESTS_STAGING_H

#include "conf.h"
#include "kernels/ops.h"

enum { STAGE_VIEWS = 64 };

typedef struct range {
    uintptr_t first, end; /* of the host */
    char *block, *at;     /* on the device: with guards; the byte that stands for `first` */
    bool is_output;
} range;

typedef struct stage {
    mf_device *device;
    range ranges[STAGE_VIEWS];
    int num_ranges;
} stage;

/* Ranges that touch become one. */
void stage_range(stage *s, const void *data, size_t bytes, bool is_output);
void stage_view(stage *s, const mf_tensor *t, bool is_output);
void stage_to_device(stage *s);
/* Outputs back; a byte changed around a view or in an input fails the test. */
void stage_from_device(stage *s);
/* Where a byte of the host's is there; NULL stays NULL. */
void *stage_moved(const stage *s, const void *p);
void *stage_open_workspace(mf_device *device, size_t bytes);
void stage_close_workspace(mf_device *device, void *block, size_t bytes);

/* The dense operations of a device with memory of its own take the host's pointers from here on (staging_dense.c). */
void stage_dense_operations(mf_device *device);

#endif
