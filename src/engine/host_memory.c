/* host_memory.c - reads /proc/meminfo and the control group's files: see host_memory.h. */
#include "engine/host_memory.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* Kernel files are short and have no size of their own. */
static bool read_text(const char *path, char *text, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    size_t size = 0;
    ssize_t n = 1;
    while (n > 0 && size + 1 < capacity) {
        n = read(fd, text + size, capacity - 1 - size);
        size += n > 0 ? (size_t)n : 0;
    }
    close(fd);
    text[size] = '\0';
    return size > 0;
}

static int64_t parse_number(const char *p)
{
    while (*p == ' ' || *p == '\t') {
        p++;
    }
    if (*p < '0' || *p > '9') {
        return -1;
    }
    int64_t value = 0;
    for (; *p >= '0' && *p <= '9' && value < INT64_MAX / 16; p++) {
        value = value * 10 + (*p - '0');
    }
    return value;
}

int64_t mf_host_memory_find(const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, n) == 0) {
            return parse_number(line + n);
        }
    }
    return -1;
}

/* Page cache counts against the group's limit, but is given up when memory is wanted. */
static int64_t group_available(void)
{
    char text[8192];
    int64_t limit = read_text("/sys/fs/cgroup/memory.max", text, sizeof text) ? parse_number(text) : -1;
    int64_t current = read_text("/sys/fs/cgroup/memory.current", text, sizeof text) ? parse_number(text) : -1;
    if (limit < 0 || current < 0) {
        return INT64_MAX;
    }
    int64_t file = read_text("/sys/fs/cgroup/memory.stat", text, sizeof text) ? mf_host_memory_find(text, "file ") : -1;
    int64_t used = current - (file > 0 ? file : 0);
    return limit > used ? limit - used : 0;
}

int64_t mf_host_memory_available(void)
{
    char text[8192];
    int64_t kib = read_text("/proc/meminfo", text, sizeof text) ? mf_host_memory_find(text, "MemAvailable:") : -1;
    if (kib < 0) {
        return 0;
    }
    int64_t group = group_available();
    return kib * 1024 < group ? kib * 1024 : group;
}
