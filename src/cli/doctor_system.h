/* doctor_system.h - what this machine is, for `moefuse doctor`: names, limits and memory; its shape is
 * base/topology.h's. */
#ifndef MF_CLI_DOCTOR_SYSTEM_H
#define MF_CLI_DOCTOR_SYSTEM_H

#include "base/topology.h"

typedef struct mf_doctor_system {
    char cpu[96], kernel[96], machine[32];
    int32_t online_cpus; /* logical; topology counts those that this process may use */
    double quota_cpus;   /* of the control group; 0: none */
    int64_t memory_bytes, available_bytes;
    int64_t open_files; /* soft limit */
    const mf_topology *topology;
} mf_doctor_system;

void mf_doctor_system_read(mf_doctor_system *out);

const char *mf_doctor_thp_name(mf_thp thp); /* "always", "madvise", "never", "not told" */

#endif
