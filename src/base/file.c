/* file.c - opening untrusted files: see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sys.h"

#if !defined(MADV_HUGEPAGE)
#define MADV_HUGEPAGE 14
#endif

static const uint8_t empty_byte[1];

/* The mappings in use, for mf_file_find_mapped.  A row is free while start is 0; size and path are written before it. */
enum { MAX_MAPPINGS = 1024 };

typedef struct mapping {
    atomic_uintptr_t start;
    atomic_size_t size;
    _Atomic(const char *) path;
} mapping;

static mapping mappings[MAX_MAPPINGS];
static pthread_mutex_t mappings_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards taking a row */

static void remember_mapping(const mf_file *file)
{
    pthread_mutex_lock(&mappings_mutex);
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        if (atomic_load(&mappings[i].start) == 0) {
            atomic_store(&mappings[i].size, file->size);
            atomic_store(&mappings[i].path, file->path);
            atomic_store(&mappings[i].start, (uintptr_t)file->data);
            break;
        }
    }
    pthread_mutex_unlock(&mappings_mutex);
}

static void forget_mapping(const mf_file *file)
{
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        if (atomic_load(&mappings[i].start) == (uintptr_t)file->data) {
            atomic_store(&mappings[i].start, 0);
            return;
        }
    }
}

bool mf_file_find_mapped(const void *address, const char **path, uint64_t *offset)
{
    for (int i = 0; i < MAX_MAPPINGS; i++) {
        uintptr_t start = atomic_load(&mappings[i].start);
        if (start && (uintptr_t)address - start < atomic_load(&mappings[i].size)) {
            *path = atomic_load(&mappings[i].path);
            *offset = (uintptr_t)address - start;
            return true;
        }
    }
    return false;
}

static mf_status read_all(int fd, size_t size, uint8_t *data, const char *path, const mf_file_options *options,
                          mf_error *err)
{
    enum { PORTION = 16 << 20 };
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, data + done, size - done < PORTION ? size - done : PORTION, (off_t)done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return mf_fail(err, MF_ERR_IO, "%s: read failed at byte %zu: %s", path, done, strerror(errno));
        }
        if (n == 0) {
            return mf_fail(err, MF_ERR_IO, "%s: file shrank while being read: expected %zu bytes; got %zu", path, size, done);
        }
        done += (size_t)n;
        if (options->was_read && !options->was_read(options->context, (int64_t)n)) {
            return mf_fail(err, MF_ERR_CANCELLED, "%s: reading was cancelled after %zu of %zu bytes", path, done, size);
        }
    }
    return MF_OK;
}

mf_status mf_file_open(const char *path, bool use_map, uint64_t max_bytes, mf_file *file, mf_error *err)
{
    const mf_file_options options = { .use_map = use_map, .max_bytes = max_bytes };
    return mf_file_open_with(path, &options, file, err);
}

mf_status mf_file_open_with(const char *path, const mf_file_options *options, mf_file *file, mf_error *err)
{
    const uint64_t max_bytes = options->max_bytes;
    *file = (mf_file){ 0 };
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return mf_fail(err, MF_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    mf_status status = MF_OK;
    struct stat st;
    void *owned = NULL;
    if (fstat(fd, &st) != 0) {
        status = mf_fail(err, MF_ERR_IO, "%s: cannot stat: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        status = mf_fail(err, MF_ERR_IO, "%s: expected a regular file; got a %s", path,
                         S_ISDIR(st.st_mode) ? "directory" : "special file");
        goto done;
    }
    uint64_t size = (uint64_t)st.st_size;
    if (max_bytes && size > max_bytes) {
        status = mf_fail(err, MF_ERR_LIMIT, "%s: expected at most %" PRIu64 " bytes; got %" PRIu64, path, max_bytes, size);
        goto done;
    }
    file->path = mf_strdup(path);
    if (!file->path) {
        status = mf_fail(err, MF_ERR_NOMEM, "%s: out of memory", path);
        goto done;
    }
    file->size = (size_t)size;
    file->data = empty_byte;
    if (size == 0) {
        goto done;
    }
    if (options->use_map) {
        void *map = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            status = mf_fail(err, MF_ERR_IO, "%s: cannot map %zu bytes: %s", path, file->size, strerror(errno));
            goto done;
        }
        (void)madvise(map, file->size, MADV_HUGEPAGE); /* few systems have huge pages for files */
        file->data = map;
        file->mapped = true;
        remember_mapping(file);
    } else {
        owned = mf_alloc_huge(file->size, options->numa);
        if (!owned) {
            status = mf_fail(err, MF_ERR_NOMEM, "%s: cannot allocate %zu bytes", path, file->size);
            goto done;
        }
        status = read_all(fd, file->size, owned, path, options, err);
        file->data = owned;
    }
done:
    close(fd);
    if (status != MF_OK) {
        mf_free_huge(owned);
        mf_free(file->path);
        *file = (mf_file){ 0 };
    }
    return status;
}

void mf_file_close(mf_file *file)
{
    if (file->mapped) {
        forget_mapping(file);
        munmap((void *)(uintptr_t)file->data, file->size);
    } else if (file->data && file->data != empty_byte) {
        mf_free_huge((void *)(uintptr_t)file->data);
    }
    mf_free(file->path);
    *file = (mf_file){ 0 };
}

bool mf_path_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

uint64_t mf_path_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
}

bool mf_path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool mf_path_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

char *mf_path_join(const char *dir, const char *name)
{
    size_t nd = strlen(dir), nn = strlen(name);
    bool slash = nd > 0 && dir[nd - 1] != '/';
    char *path = mf_alloc(nd + nn + 2);
    if (path) {
        memcpy(path, dir, nd);
        if (slash) {
            path[nd++] = '/';
        }
        memcpy(path + nd, name, nn + 1);
    }
    return path;
}
