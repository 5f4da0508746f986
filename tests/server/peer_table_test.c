/* peer_table_test.c - the counts of connections per address against a plain array. */
#include "server/peer_table.h"

#include <arpa/inet.h>

#include "base/random.h"
#include "test.h"

TEST(counts_agree_with_a_plain_array_over_random_comings_and_goings)
{
    enum { ADDRESSES = 300, MOST = 5 };
    static int32_t counts[ADDRESSES];
    uint64_t seed = 20261129;
    mf_peer_table table;
    mf_peer_table_init(&table);
    for (int i = 0; i < 200000; i++) {
        uint32_t a = (uint32_t)mf_random_below(&seed, ADDRESSES);
        unsigned char address[16] = { 0 };
        memcpy(address + 12, &a, sizeof a);
        /* long phases of growing and of shrinking */
        if (mf_random_below(&seed, 100) < ((i / 5000) % 2 ? 30u : 70u)) {
            CHECK_EQ(mf_peer_table_add(&table, address, MOST), counts[a] < MOST);
            counts[a] += counts[a] < MOST;
        } else {
            mf_peer_table_remove(&table, address);
            counts[a] -= counts[a] > 0;
        }
    }
    size_t used = 0;
    for (int a = 0; a < ADDRESSES; a++) {
        used += counts[a] > 0;
    }
    CHECK_EQ(table.num_used, used);
    CHECK_EQ(table.num_slots, 512);
    mf_peer_table_close(&table);
}

TEST(an_ipv4_client_counts_the_same_on_a_dual_stack_socket_and_an_ipv6_one_by_its_network)
{
    struct sockaddr_in v4 = { .sin_family = AF_INET };
    struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
    unsigned char a[16], b[16];
    inet_pton(AF_INET, "192.0.2.7", &v4.sin_addr);
    inet_pton(AF_INET6, "::ffff:192.0.2.7", &v6.sin6_addr);
    CHECK(mf_peer_address((struct sockaddr *)&v4, a) && mf_peer_address((struct sockaddr *)&v6, b));
    CHECK_MEM(a, b, 16);
    inet_pton(AF_INET6, "2001:db8:1:2:3:4:5:6", &v6.sin6_addr);
    CHECK(mf_peer_address((struct sockaddr *)&v6, a));
    inet_pton(AF_INET6, "2001:db8:1:2::9", &v6.sin6_addr);
    CHECK(mf_peer_address((struct sockaddr *)&v6, b));
    CHECK_MEM(a, b, 16);
    inet_pton(AF_INET6, "2001:db8:1:3::9", &v6.sin6_addr);
    CHECK(mf_peer_address((struct sockaddr *)&v6, b));
    CHECK(memcmp(a, b, 16) != 0);
    struct sockaddr unix_socket = { .sa_family = AF_UNIX };
    CHECK(!mf_peer_address(&unix_socket, a));
}
