/* page.c - see page.h. */
#include "server/page.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

/* Made by cmake/embed.cmake from page/index.html. */
extern const unsigned char mf_page_bytes[];
extern const size_t mf_page_bytes_size;

/* The only script of the page: what lies between its tags is what browsers hash. */
static bool find_script(const char *html, size_t size, const char **start, size_t *script_size)
{
    static const char open_tag[] = "<script>", close_tag[] = "</script>";
    const char *begin = memmem(html, size, open_tag, sizeof open_tag - 1);
    if (!begin) {
        return false;
    }
    begin += sizeof open_tag - 1;
    const char *end = memmem(begin, size - (size_t)(begin - html), close_tag, sizeof close_tag - 1);
    if (!end) {
        return false;
    }
    *start = begin;
    *script_size = (size_t)(end - begin);
    return true;
}

mf_status mf_page_open(mf_page *page, mf_error *err)
{
    *page = (mf_page){ .html = (const char *)mf_page_bytes, .size = mf_page_bytes_size };
    unsigned char digest[crypto_hash_sha256_BYTES];
    const char *script;
    size_t script_size;
    if (sodium_init() < 0) {
        return mf_fail(err, MF_ERR_INTERNAL, "libsodium does not start: no source of random numbers");
    }
    if (!find_script(page->html, page->size, &script, &script_size)) {
        return mf_fail(err, MF_ERR_INTERNAL, "the chat page holds no script");
    }
    char base64[sodium_base64_ENCODED_LEN(crypto_hash_sha256_BYTES, sodium_base64_VARIANT_ORIGINAL)];
    crypto_hash_sha256(digest, (const unsigned char *)script, script_size);
    sodium_bin2base64(base64, sizeof base64, digest, sizeof digest, sodium_base64_VARIANT_ORIGINAL);
    snprintf(
        page->content_security_policy, sizeof page->content_security_policy,
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-%s'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        base64);
    crypto_hash_sha256(digest, (const unsigned char *)page->html, page->size);
    page->etag[0] = '"';
    sodium_bin2hex(page->etag + 1, sizeof page->etag - 1, digest, 16);
    strncat(page->etag, "\"", sizeof page->etag - strlen(page->etag) - 1);
    return MF_OK;
}

bool mf_page_matches(const mf_page *page, const char *if_none_match)
{
    /* A list of quoted tags, weak ones too, or a star; our tag holds no character that could be part of another. */
    return if_none_match && (strcmp(if_none_match, "*") == 0 || strstr(if_none_match, page->etag));
}
