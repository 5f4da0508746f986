/* file.h - opening untrusted files: regular files only, whole and read-only, mapped or read into memory. */
#ifndef MF_BASE_FILE_H
#define MF_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct mf_file {
    const uint8_t *data; /* size bytes; never NULL after an open, also when size is 0 */
    size_t size;
    char *path;  /* owned copy, for messages */
    bool mapped; /* false: read into memory */
} mf_file;

typedef struct mf_file_options {
    bool use_map;       /* memory-map it, else read it into a block on huge pages */
    uint64_t max_bytes; /* 0 = no cap */
    mf_numa numa;       /* of that block */
    bool (*was_read)(void *context, int64_t bytes); /* after each portion that was read, may be NULL; false: MF_ERR_CANCELLED */
    void *context;
} mf_file_options;

/* Opens a regular file (O_NONBLOCK, fstat: a FIFO, device or directory is refused) of at most max_bytes (0 = no cap).
 * use_map: memory-map it, else read it.  Errors name the path. */
mf_status mf_file_open_with(const char *path, const mf_file_options *options, mf_file *file, mf_error *err);
mf_status mf_file_open(const char *path, bool use_map, uint64_t max_bytes, mf_file *file, mf_error *err);
void mf_file_close(mf_file *file); /* a zeroed or closed one is fine */

/* Which mapped file holds this address: for a SIGBUS handler, after a file shrank under its mapping.  Async-signal-safe.
 * Files past the 1,024th mapped at once are not found. */
bool mf_file_find_mapped(const void *address, const char **path, uint64_t *offset);

bool mf_path_is_file(const char *path);
bool mf_path_is_dir(const char *path);
uint64_t mf_path_size(const char *path); /* of a regular file; else 0 */
bool mf_path_exists(const char *path); /* of any kind; a symbolic link to nothing counts */

/* "dir/name" into a new string (mf_free); NULL when out of memory. */
char *mf_path_join(const char *dir, const char *name);

#endif
