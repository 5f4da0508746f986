/* process_stats.c - see process_stats.h. */
#include "server/process_stats.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The machine's start in seconds since the epoch, from the "btime" line of /proc/stat. */
static double boot_time(void)
{
    /* "intr" before it has a number per interrupt and may be long. */
    static const char key[] = "\nbtime ";
    char text[16384];
    size_t kept = 0;
    double found = 0;
    int fd = open("/proc/stat", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && found == 0) {
        ssize_t n = read(fd, text + kept, sizeof text - 1 - kept);
        if (n <= 0) {
            break;
        }
        size_t size = kept + (size_t)n;
        text[size] = '\0';
        const char *line = strstr(text, key);
        if (line && strchr(line + 1, '\n')) {
            found = strtod(line + sizeof key - 1, NULL);
            break;
        }
        /* The line may lie over the end of this portion. */
        kept = size < 64 ? size : 64;
        memmove(text, text + size - kept, kept);
    }
    if (fd >= 0) {
        close(fd);
    }
    return found;
}

void mf_process_stats_open(mf_process_stats *stats)
{
    *stats = (mf_process_stats){ .stat_fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC), .boot_s = boot_time() };
    int fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    stats->fd_folder = fd >= 0 ? fdopendir(fd) : NULL;
    if (fd >= 0 && !stats->fd_folder) {
        close(fd);
    }
}

void mf_process_stats_close(mf_process_stats *stats)
{
    if (stats->stat_fd >= 0) {
        close(stats->stat_fd);
    }
    if (stats->fd_folder) {
        closedir(stats->fd_folder);
    }
    *stats = (mf_process_stats){ .stat_fd = -1 };
}

static void read_stat(const mf_process_stats *stats, mf_process_numbers *out)
{
    char text[2048];
    ssize_t n = stats->stat_fd >= 0 ? pread(stats->stat_fd, text, sizeof text - 1, 0) : -1;
    if (n <= 0) {
        return;
    }
    text[n] = '\0';
    /* Field 2 is the program's name in brackets and may hold anything; the fields are counted behind it. */
    const char *p = strrchr(text, ')');
    double fields[25] = { 0 };
    int count = 2;
    for (p = p ? p + 1 : ""; *p && count < 24; count++) {
        p += strspn(p, " ");
        fields[count + 1] = strtod(p, NULL); /* the state, field 3, is a letter and reads as 0 */
        p += strcspn(p, " ");
    }
    if (count < 24) {
        return;
    }
    double ticks = (double)sysconf(_SC_CLK_TCK);
    out->cpu_s = (fields[14] + fields[15]) / ticks;
    out->start_s = stats->boot_s > 0 ? stats->boot_s + fields[22] / ticks : NAN;
    out->virtual_bytes = (int64_t)fields[23];
    out->resident_bytes = (int64_t)fields[24] * sysconf(_SC_PAGESIZE);
}

void mf_process_stats_read(const mf_process_stats *stats, mf_process_numbers *out)
{
    *out = (mf_process_numbers){ -1, -1, -1, -1, NAN, NAN };
    read_stat(stats, out);
    if (stats->fd_folder) {
        rewinddir(stats->fd_folder);
        out->open_fds = 0;
        for (const struct dirent *entry; (entry = readdir(stats->fd_folder)) != NULL;) {
            out->open_fds += entry->d_name[0] != '.';
        }
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        out->max_fds = (int64_t)limit.rlim_cur;
    }
}
