/* file.c - opening untrusted files: see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sys.h"

static const uint8_t empty_byte[1];

static mf_status read_all(int fd, size_t size, uint8_t *data, const char *path, mf_error *err)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, data + done, size - done, (off_t)done);
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
    }
    return MF_OK;
}

mf_status mf_file_open(const char *path, bool use_map, uint64_t max_bytes, mf_file *file, mf_error *err)
{
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
    if (use_map) {
        void *map = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            status = mf_fail(err, MF_ERR_IO, "%s: cannot map %zu bytes: %s", path, file->size, strerror(errno));
            goto done;
        }
        file->data = map;
        file->mapped = true;
    } else {
        owned = mf_alloc(file->size);
        if (!owned) {
            status = mf_fail(err, MF_ERR_NOMEM, "%s: cannot allocate %zu bytes", path, file->size);
            goto done;
        }
        status = read_all(fd, file->size, owned, path, err);
        file->data = owned;
    }
done:
    close(fd);
    if (status != MF_OK) {
        mf_free(owned);
        mf_free(file->path);
        *file = (mf_file){ 0 };
    }
    return status;
}

void mf_file_close(mf_file *file)
{
    if (file->mapped) {
        munmap((void *)(uintptr_t)file->data, file->size);
    } else if (file->data && file->data != empty_byte) {
        mf_free((void *)(uintptr_t)file->data);
    }
    mf_free(file->path);
    *file = (mf_file){ 0 };
}

bool mf_path_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
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
