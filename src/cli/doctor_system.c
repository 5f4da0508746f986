/* doctor_system.c - see doctor_system.h.  What cannot be read stays zero: a container may hide any of it. */
#include "cli/doctor_system.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
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

/* CPUs of a list such as "0-3,8": how many, and the first. */
static int32_t count_list(const char *list, int32_t *first)
{
    int32_t count = 0;
    const char *p = list;
    while (*p >= '0' && *p <= '9') {
        char *end;
        long a = strtol(p, &end, 10), b = a;
        if (*end == '-') {
            b = strtol(end + 1, &end, 10);
        }
        if (b < a || b - a > 1 << 16) {
            break;
        }
        *first = count == 0 ? (int32_t)a : *first;
        count += (int32_t)(b - a + 1);
        p = *end == ',' ? end + 1 : end;
    }
    return count;
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

/* A core counts once: at its first CPU among the allowed ones' lists of siblings. */
static void read_cores(mf_doctor_system *s)
{
    cpu_set_t set;
    s->online_cpus = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    s->allowed_cpus = s->online_cpus;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return;
    }
    s->allowed_cpus = CPU_COUNT(&set);
    bool counted[CPU_SETSIZE] = { false };
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[128], list[256];
        if (!CPU_ISSET(cpu, &set)) {
            continue;
        }
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        int32_t first = 0;
        int32_t siblings = read_line(path, list, sizeof list) ? count_list(list, &first) : 0;
        if (siblings < 1 || first < 0 || first >= CPU_SETSIZE) {
            s->cores = 0;
            return;
        }
        s->cores += !counted[first];
        counted[first] = true;
        s->threads_per_core = siblings > s->threads_per_core ? siblings : s->threads_per_core;
    }
}

static void read_caches(mf_doctor_system *s)
{
    for (int i = 0; i < MF_DOCTOR_MAX_CACHES; i++) {
        char path[128], text[256];
        mf_doctor_cache c = { 0 };
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        if (!read_line(path, text, sizeof text)) {
            break;
        }
        c.level = (int32_t)strtol(text, NULL, 10);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        read_line(path, c.type, sizeof c.type);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        char *unit = text;
        c.bytes = read_line(path, text, sizeof text) ? strtoll(text, &unit, 10) : 0;
        c.bytes *= *unit == 'K' ? 1024 : *unit == 'M' ? 1024 * 1024 : 1;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/shared_cpu_list", i);
        int32_t first;
        c.shared_by = read_line(path, text, sizeof text) ? count_list(text, &first) : 0;
        s->caches[s->num_caches++] = c;
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
        s->open_files_most = files.rlim_max == RLIM_INFINITY ? INT64_MAX : (int64_t)files.rlim_max;
    }
}

static void read_memory(mf_doctor_system *s)
{
    char text[256];
    s->memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    s->available_bytes = mf_available_memory();
    int32_t first;
    s->numa_nodes = read_line("/sys/devices/system/node/online", text, sizeof text) ? count_list(text, &first) : 0;
    if (read_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text)) {
        char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;
        if (close) {
            *close = '\0';
            snprintf(s->huge_pages, sizeof s->huge_pages, "%.15s", open + 1);
        }
    }
}

void mf_doctor_system_read(mf_doctor_system *out)
{
    *out = (mf_doctor_system){ 0 };
    struct utsname name;
    if (uname(&name) == 0) {
        snprintf(out->kernel, sizeof out->kernel, "%.20s %.70s", name.sysname, name.release);
        snprintf(out->machine, sizeof out->machine, "%.31s", name.machine);
    }
    read_cpu_name(out->cpu, sizeof out->cpu);
    read_cores(out);
    read_caches(out);
    read_limits(out);
    read_memory(out);
}
