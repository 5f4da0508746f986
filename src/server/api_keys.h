/* api_keys.h - the keys that open the server: kept as SHA-256 digests only, compared in constant time, all of them. */
#ifndef MF_SERVER_API_KEYS_H
#define MF_SERVER_API_KEYS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

typedef struct mf_api_keys {
    unsigned char (*digests)[32]; /* owned */
    size_t num_keys;              /* 0: no key is asked for */
} mf_api_keys;

/* An empty key or one with a byte that no header can carry is MF_ERR_INVALID. */
mf_status mf_api_keys_open(const char *const *keys, size_t num_keys, mf_api_keys *out, mf_error *err);
void mf_api_keys_close(mf_api_keys *keys);

/* `authorization` is the header's value or NULL.  The time depends on its length and on the number of keys alone. */
bool mf_api_keys_allow(const mf_api_keys *keys, const char *authorization);

#endif
