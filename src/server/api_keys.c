/* api_keys.c - see api_keys.h. */
#include "server/api_keys.h"

#include <assert.h>
#include <sodium.h>
#include <string.h>
#include <strings.h>

#include "base/sys.h"

static_assert(crypto_hash_sha256_BYTES == 32, "digests are 32 bytes");

static void digest(const char *key, unsigned char out[32])
{
    crypto_hash_sha256(out, (const unsigned char *)key, strlen(key));
}

mf_status mf_api_keys_open(const char *const *keys, size_t num_keys, mf_api_keys *out, mf_error *err)
{
    *out = (mf_api_keys){ 0 };
    if (num_keys == 0) {
        return MF_OK;
    }
    if (sodium_init() < 0) {
        return mf_fail(err, MF_ERR_INTERNAL, "libsodium could not be set up: the system gave no random bytes");
    }
    out->digests = mf_alloc_array(num_keys, sizeof *out->digests);
    if (!out->digests) {
        return mf_fail(err, MF_ERR_NOMEM, "no memory for %zu API keys", num_keys);
    }
    for (size_t i = 0; i < num_keys; i++) {
        bool carried = keys[i][0] != '\0';
        for (const char *p = keys[i]; *p; p++) {
            carried &= *p > ' ' && *p < 0x7f;
        }
        if (!carried) {
            mf_api_keys_close(out);
            return mf_fail(err, MF_ERR_INVALID,
                           "API key %zu: expected printable ASCII without blanks; got something else", i + 1);
        }
        digest(keys[i], out->digests[i]);
    }
    out->num_keys = num_keys;
    return MF_OK;
}

void mf_api_keys_close(mf_api_keys *keys)
{
    if (keys->digests) {
        sodium_memzero(keys->digests, keys->num_keys * sizeof *keys->digests);
    }
    mf_free(keys->digests);
    *keys = (mf_api_keys){ 0 };
}

bool mf_api_keys_allow(const mf_api_keys *keys, const char *authorization)
{
    if (keys->num_keys == 0) {
        return true;
    }
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0) {
        return false;
    }
    unsigned char got[32];
    digest(authorization + 7 + strspn(authorization + 7, " "), got);
    int matches = 0;
    for (size_t i = 0; i < keys->num_keys; i++) {
        matches |= sodium_memcmp(got, keys->digests[i], sizeof got) == 0;
    }
    return matches != 0;
}
