/* process_stats.h - this process's memory, processor time and descriptors, under the names of the usual client
 * libraries.
 *
 * The files of /proc are opened once, so that the numbers still come after the process has given up opening files. */
#ifndef MF_SERVER_PROCESS_STATS_H
#define MF_SERVER_PROCESS_STATS_H

#include <dirent.h>
#include <stdint.h>

typedef struct mf_process_stats {
    int stat_fd;    /* /proc/self/stat; -1 where there is none */
    DIR *fd_folder; /* /proc/self/fd; NULL where there is none */
    double boot_s;  /* of the machine, since the epoch; 0 = not known */
} mf_process_stats;

typedef struct mf_process_numbers {
    int64_t virtual_bytes, resident_bytes, open_fds, max_fds; /* -1 = not known */
    double cpu_s, start_s;                                    /* NaN = not known */
} mf_process_numbers;

void mf_process_stats_open(mf_process_stats *stats);
void mf_process_stats_close(mf_process_stats *stats);
void mf_process_stats_read(const mf_process_stats *stats, mf_process_numbers *out);

#endif
