/* key_check.c - key_check HEADER: whether an Authorization header opens a server with a fixed key; for key_timing_test.py, which
 * counts the instructions. */
#include <stdio.h>

#include "server/api_keys.h"

int main(int argc, char **argv)
{
    static const char *const set[] = { "sk-0123456789abcdef0123456789abcdef", "sk-another-key-beside-it" };
    mf_api_keys keys;
    mf_error err = { 0 };
    if (argc != 2 || mf_api_keys_open(set, 2, &keys, &err) != MF_OK) {
        return 2;
    }
    puts(mf_api_keys_allow(&keys, argv[1]) ? "allowed" : "refused");
    mf_api_keys_close(&keys);
    return 0;
}
