/* idmap.h - a fixed-size hash map from 64-bit keys to 64-bit values, filled while loading and read-only afterwards. */
#ifndef MF_TEXT_IDMAP_H
#define MF_TEXT_IDMAP_H

#include <stdbool.h>

#include "base/error.h"

/* A file whose keys crowd more than this many slots in a row was made to do so: it is refused rather than read slowly.
 */
enum { MF_HASH_MAX_PROBES = 1024 };

typedef struct mf_idmap_slot {
    uint64_t key, value;
} mf_idmap_slot;

typedef struct mf_idmap {
    mf_idmap_slot *slots; /* key UINT64_MAX = free */
    uint64_t mask;
} mf_idmap;

mf_status mf_idmap_open(mf_idmap *map, size_t max_keys);
mf_status mf_idmap_put(mf_idmap *map, uint64_t key, uint64_t value); /* replaces; MF_ERR_LIMIT when crowded */
void mf_idmap_close(mf_idmap *map);

static inline uint64_t mf_idmap_hash(uint64_t key)
{
    key = (key ^ key >> 32) * 0x9e3779b97f4a7c15u;
    return key ^ key >> 29;
}

static inline bool mf_idmap_get(const mf_idmap *map, uint64_t key, uint64_t *value)
{
    for (uint64_t i = mf_idmap_hash(key) & map->mask;; i = (i + 1) & map->mask) {
        if (map->slots[i].key == key) {
            *value = map->slots[i].value;
            return true;
        }
        if (map->slots[i].key == UINT64_MAX) {
            return false;
        }
    }
}

#endif
