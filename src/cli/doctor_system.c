/* doctor_system.c - see doctor_system.h.  What cannot be read stays zero: a container may hide any of it. */
#include "cli/doctor_system.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/sys.h"

/* The first line of a file, without its end. */
static bool read_line(const char *path, char *out, size_t size)
{
    out[0] = '\0';
    FILE *f = fopen(path, "re");
    if (!f) {
        return false;
    }
    bool got = fgets(out, (int)size, f) != NULL;
    fclose(f);
    out[strcspn(out, "\n")] = '\0';
    return got && out[0];
}

static void read_cpu_name(char *out, size_t size)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    snprintf(out, size, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (colon && (strncmp(line, "model name", 10) == 0 || strncmp(line, "CPU part", 8) == 0)) {
            colon += 1 + strspn(colon + 1, " \t");
            colon[strcspn(colon, "\n")] = '\0';
            snprintf(out, size, "%s", colon);
            break;
        }
    }
    if (f) {
        fclose(f);
    }
}

static void read_limits(mf_doctor_system *s)
{
    char text[256];
    long long quota, period;
    if (read_line("/sys/fs/cgroup/cpu.max", text, sizeof text) && sscanf(text, "%lld %lld", &quota, &period) == 2 &&
        quota > 0 && period > 0) {
        s->quota_cpus = (double)quota / (double)period;
    }
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        s->open_files = files.rlim_cur == RLIM_INFINITY ? INT64_MAX : (int64_t)files.rlim_cur;
    }
}

const char *mf_doctor_thp_name(mf_thp thp)
{
    return thp == MF_THP_ALWAYS    ? "always"
           : thp == MF_THP_MADVISE ? "madvise"
           : thp == MF_THP_NEVER   ? "never"
                                   : "not told";
}

void mf_doctor_system_read(mf_doctor_system *out)
{
    *out = (mf_doctor_system){ .topology = mf_topology_get() };
    struct utsname name;
    if (uname(&name) == 0) {
        snprintf(out->kernel, sizeof out->kernel, "%.20s %.70s", name.sysname, name.release);
        snprintf(out->machine, sizeof out->machine, "%.31s", name.machine);
    }
    read_cpu_name(out->cpu, sizeof out->cpu);
    out->online_cpus = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    out->memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    out->available_bytes = mf_available_memory();
    read_limits(out);
}
