/* peer_table.h - how many connections each address holds: a hash table with a random key, so that nobody can choose
 * addresses that collide. */
#ifndef MF_SERVER_PEER_TABLE_H
#define MF_SERVER_PEER_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

typedef struct mf_peer_slot {
    unsigned char address[16]; /* IPv4 as ::ffff:a.b.c.d; of IPv6 the network, its first 64 bits */
    int32_t count;             /* 0: free */
} mf_peer_slot;

typedef struct mf_peer_table {
    mf_peer_slot *slots; /* owned; a power of two of them */
    size_t num_slots, num_used;
    unsigned char key[16];
} mf_peer_table;

void mf_peer_table_init(mf_peer_table *table);
void mf_peer_table_close(mf_peer_table *table);

/* What is counted of an address; false: it is none of IPv4 or IPv6. */
bool mf_peer_address(const struct sockaddr *from, unsigned char address[16]);
/* One more connection; false and nothing counted when it would be more than `most`, or when memory is out. */
bool mf_peer_table_add(mf_peer_table *table, const unsigned char address[16], int32_t most);
void mf_peer_table_remove(mf_peer_table *table, const unsigned char address[16]);

#endif
