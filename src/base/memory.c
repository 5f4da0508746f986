/* memory.c - how much memory is left: /proc/meminfo and the control group's limit. */
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/sys.h"

/* A small file of the system as text; false when it cannot be read. */
static bool read_text(const char *path, char *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t n = read(fd, out, size - 1);
    close(fd);
    out[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* The number behind `key` (or at the start when key is ""); -1 when there is none, as for "max". */
static int64_t number_after(const char *text, const char *key)
{
    const char *p = strstr(text, key);
    if (!p) {
        return -1;
    }
    p += strlen(key);
    p += strspn(p, " \t:");
    int64_t value = 0;
    bool any = false;
    for (; *p >= '0' && *p <= '9'; p++) {
        any = true;
        if (!mf_mul_ok(value, (int64_t)10, &value) || !mf_add_ok(value, (int64_t)(*p - '0'), &value)) {
            return INT64_MAX;
        }
    }
    return any ? value : -1;
}

/* What a control group still allows; file pages that it could drop count as free.  -1: no limit. */
static int64_t group_left(const char *limit_path, const char *usage_path, const char *stat_path, const char *file_key)
{
    char text[8192];
    int64_t limit = read_text(limit_path, text, sizeof text) ? number_after(text, "") : -1;
    if (limit < 0 || limit > (int64_t)1 << 60) {
        return -1;
    }
    int64_t usage = read_text(usage_path, text, sizeof text) ? number_after(text, "") : 0;
    int64_t droppable = read_text(stat_path, text, sizeof text) ? number_after(text, file_key) : 0;
    int64_t left = limit - usage + (droppable > 0 ? droppable : 0);
    return left < 0 ? 0 : left > limit ? limit : left;
}

int64_t mf_available_memory(void)
{
    char text[8192];
    int64_t available = read_text("/proc/meminfo", text, sizeof text) ? number_after(text, "MemAvailable:") : -1;
    if (available > 0 && !mf_mul_ok(available, (int64_t)1024, &available)) {
        available = -1;
    }
    int64_t v2 = group_left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat",
                            "\ninactive_file");
    int64_t v1 =
        group_left("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                   "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file");
    int64_t left = v2 >= 0 ? v2 : v1;
    if (left >= 0 && (available < 0 || left < available)) {
        available = left;
    }
    return available > 0 ? available : 0;
}
