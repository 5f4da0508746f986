/* idmap.c - filling the map: see idmap.h. */
#include "text/idmap.h"

#include <string.h>

#include "base/sys.h"

mf_status mf_idmap_open(mf_idmap *map, size_t max_keys)
{
    size_t size = 16;
    /* At most half full, so a search ends after a few slots. */
    while (size / 2 < max_keys) {
        size *= 2;
    }
    map->slots = mf_alloc_array(size, sizeof *map->slots);
    if (!map->slots) {
        return MF_ERR_NOMEM;
    }
    memset(map->slots, 0xff, size * sizeof *map->slots);
    map->mask = size - 1;
    return MF_OK;
}

mf_status mf_idmap_put(mf_idmap *map, uint64_t key, uint64_t value)
{
    uint64_t i = mf_idmap_hash(key) & map->mask;
    for (int probes = 0; probes < MF_HASH_MAX_PROBES; probes++, i = (i + 1) & map->mask) {
        if (map->slots[i].key == key || map->slots[i].key == UINT64_MAX) {
            map->slots[i] = (mf_idmap_slot){ key, value };
            return MF_OK;
        }
    }
    return MF_ERR_LIMIT;
}

void mf_idmap_close(mf_idmap *map)
{
    mf_free(map->slots);
    *map = (mf_idmap){ 0 };
}
