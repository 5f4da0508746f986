/* peer_table.c - open addressing with linear probing; a removal closes its gap, so that no tombstones pile up. */
#include "server/peer_table.h"

#include <netinet/in.h>
#include <sodium.h>
#include <string.h>

#include "base/sys.h"

void mf_peer_table_init(mf_peer_table *table)
{
    *table = (mf_peer_table){ 0 };
    randombytes_buf(table->key, sizeof table->key);
}

void mf_peer_table_close(mf_peer_table *table)
{
    mf_free(table->slots);
    *table = (mf_peer_table){ 0 };
}

bool mf_peer_address(const struct sockaddr *from, unsigned char address[16])
{
    memset(address, 0, 16);
    if (from->sa_family == AF_INET) {
        address[10] = address[11] = 0xff;
        memcpy(address + 12, &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
        return true;
    }
    if (from->sa_family == AF_INET6) {
        const struct in6_addr *in6 = &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr;
        /* Whoever has one IPv6 address has its whole network of 64 bits. */
        memcpy(address, in6, IN6_IS_ADDR_V4MAPPED(in6) ? 16 : 8);
        return true;
    }
    return false;
}

static size_t home_of(const mf_peer_table *table, const unsigned char address[16])
{
    uint64_t hash;
    crypto_shorthash((unsigned char *)&hash, address, 16, table->key);
    return (size_t)hash & (table->num_slots - 1);
}

/* The address's slot, or the free one where it belongs. */
static mf_peer_slot *find(const mf_peer_table *table, const unsigned char address[16])
{
    size_t i = home_of(table, address);
    while (table->slots[i].count && memcmp(table->slots[i].address, address, 16) != 0) {
        i = (i + 1) & (table->num_slots - 1);
    }
    return &table->slots[i];
}

static bool grow(mf_peer_table *table)
{
    mf_peer_table larger = { .num_slots = table->num_slots ? table->num_slots * 2 : 64, .num_used = table->num_used };
    memcpy(larger.key, table->key, sizeof larger.key);
    larger.slots = mf_alloc_array(larger.num_slots, sizeof *larger.slots);
    if (!larger.slots) {
        return false;
    }
    for (size_t i = 0; i < table->num_slots; i++) {
        if (table->slots[i].count) {
            *find(&larger, table->slots[i].address) = table->slots[i];
        }
    }
    mf_free(table->slots);
    *table = larger;
    return true;
}

bool mf_peer_table_add(mf_peer_table *table, const unsigned char address[16], int32_t most)
{
    if ((table->num_used + 1) * 4 > table->num_slots * 3 && !grow(table)) {
        return false;
    }
    mf_peer_slot *slot = find(table, address);
    if (slot->count >= most) {
        return false;
    }
    if (slot->count++ == 0) {
        memcpy(slot->address, address, 16);
        table->num_used++;
    }
    return true;
}

void mf_peer_table_remove(mf_peer_table *table, const unsigned char address[16])
{
    if (!table->num_slots) {
        return;
    }
    mf_peer_slot *slot = find(table, address);
    if (slot->count == 0 || --slot->count > 0) {
        return;
    }
    table->num_used--;
    /* Those behind the gap that were pushed past it move up. */
    size_t mask = table->num_slots - 1, gap = (size_t)(slot - table->slots);
    for (size_t i = (gap + 1) & mask; table->slots[i].count; i = (i + 1) & mask) {
        size_t home = home_of(table, table->slots[i].address);
        if (((i - home) & mask) >= ((i - gap) & mask)) {
            table->slots[gap] = table->slots[i];
            table->slots[i].count = 0;
            gap = i;
        }
    }
}
