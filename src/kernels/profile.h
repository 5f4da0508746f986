/* profile.h - where a device's time goes, by part: every operation is called through a table that notes its part first.
 *
 * On the host a part lasts until the next one begins, by the clock.  A device with memory of its own notes events in its
 * stream, so that a part's time holds what it waits for in front of its first launch, too; steps are not replayed from
 * graphs then, and kernels do not start early across parts. */
#ifndef MF_KERNELS_PROFILE_H
#define MF_KERNELS_PROFILE_H

#include "kernels/part.h"
#include "kernels/ops.h"

/* From here to close, on a device that is at rest; one at a time for a device. */
mf_status mf_profile_open(mf_device *device, mf_error *err);
void mf_profile_close(mf_device *device);

/* Adds the seconds of each part since the last call, or open; waits for the device. */
mf_status mf_profile_take(mf_device *device, double seconds[MF_NUM_PARTS], mf_error *err);

#endif
