/* doctor_system.h - what /proc and /sys say about this machine, for `moefuse doctor`. */
#ifndef MF_CLI_DOCTOR_SYSTEM_H
#define MF_CLI_DOCTOR_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

enum { MF_DOCTOR_MAX_CACHES = 8 };

typedef struct mf_doctor_cache {
    int32_t level;
    char type[16];       /* "Data", "Instruction", "Unified" */
    int64_t bytes;
    int32_t shared_by;   /* logical CPUs; 0: not known */
} mf_doctor_cache;

typedef struct mf_doctor_system {
    char cpu[96], kernel[96], machine[32];
    int32_t online_cpus, allowed_cpus; /* logical */
    int32_t cores;                     /* physical cores among the allowed CPUs; 0: not known */
    int32_t threads_per_core;          /* 0: not known */
    double quota_cpus;                 /* of the control group; 0: none */
    int32_t numa_nodes;                /* 0: not known */
    mf_doctor_cache caches[MF_DOCTOR_MAX_CACHES];
    int32_t num_caches;
    char huge_pages[16];               /* "always", "madvise", "never"; "" not known */
    int64_t memory_bytes, available_bytes;
    int64_t open_files;                /* soft limit */
    int64_t open_files_most;           /* hard limit */
} mf_doctor_system;

void mf_doctor_system_read(mf_doctor_system *out);

#endif
