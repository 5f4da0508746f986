/* test.h - a test reads as a claim: TEST(gate_ties_go_to_the_lower_id) { CHECK_EQ(ids[0], 3); }
 *
 * A thin layer over cmocka: tests register themselves, test_main.c runs them.  A program's arguments are substrings of test
 * names to run; with a dash in front, not to run. */
#ifndef MF_TEST_H
#define MF_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

void mf_test_register(const char *name, CMUnitTestFunction fn);

#define TEST(name)                                                                        \
    static void test_##name(void **test_state);                                           \
    __attribute__((constructor)) static void register_##name(void)                        \
    {                                                                                     \
        mf_test_register(#name, test_##name);                                             \
    }                                                                                     \
    static void test_##name(void **test_state __attribute__((unused)))

#define CHECK(condition) assert_true(condition)
#define CHECK_EQ(a, b) assert_int_equal((a), (b))
#define CHECK_STR(a, b) assert_string_equal((a), (b))
#define CHECK_MEM(a, b, n) assert_memory_equal((a), (b), (n))
/* The text holds the part; prints both when it does not. */
#define CHECK_HAS(text, part)                                               \
    do {                                                                    \
        if (!strstr((text), (part))) {                                      \
            fail_msg("expected \"%s\" in \"%s\"", (part), (text));          \
        }                                                                   \
    } while (0)
#define CHECK_OK(call, err)                                                 \
    do {                                                                    \
        if ((call) != MF_OK) {                                              \
            fail_msg("%s: %s", #call, (err).message);                       \
        }                                                                   \
    } while (0)

#endif
