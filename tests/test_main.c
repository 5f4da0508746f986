/* test_main.c - runs the tests that registered themselves: see test.h. */
#include "test.h"

#include <stdlib.h>

enum { MAX_TESTS = 1024 };

static struct CMUnitTest tests[MAX_TESTS];
static size_t num_tests;

void mf_test_register(const char *name, CMUnitTestFunction fn)
{
    if (num_tests < MAX_TESTS) {
        tests[num_tests++] = (struct CMUnitTest){ .name = name, .test_func = fn };
    } else {
        fprintf(stderr, "too many tests: %s\n", name);
        abort();
    }
}

int main(int argc, char **argv)
{
    static struct CMUnitTest chosen[MAX_TESTS];
    size_t n = 0;
    for (size_t i = 0; i < num_tests; i++) {
        int wanted = 0, any = 0, unwanted = 0;
        for (int a = 1; a < argc; a++) {
            const int leaves_out = argv[a][0] == '-';
            const int found = strstr(tests[i].name, argv[a] + leaves_out) != NULL;
            any |= !leaves_out;
            wanted |= found && !leaves_out;
            unwanted |= found && leaves_out;
        }
        wanted = (wanted || !any) && !unwanted;
        if (wanted) {
            chosen[n++] = tests[i];
        }
    }
    return _cmocka_run_group_tests(argv[0], chosen, n, NULL, NULL);
}
