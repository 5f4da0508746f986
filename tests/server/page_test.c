/* The compiled-in chat page: whole, small, and with headers that fit it. */
#include "server/page.h"

#include <stdio.h>

#include "test.h"

TEST(the_page_is_the_file_and_small)
{
    mf_page page;
    mf_error err = { 0 };
    CHECK_OK(mf_page_open(&page, &err), err);
    static char file_bytes[65536 + 1];
    FILE *file = fopen(MF_SOURCE_DIR "/src/server/page/index.html", "rb");
    CHECK(file);
    size_t n = fread(file_bytes, 1, sizeof file_bytes, file);
    fclose(file);
    CHECK(n <= 65536);
    CHECK_EQ(n, page.size);
    CHECK_MEM(file_bytes, page.html, n);
    CHECK_EQ(page.html[n], '\0');
}

TEST(the_tag_answers_conditional_requests)
{
    mf_page page;
    mf_error err = { 0 };
    CHECK_OK(mf_page_open(&page, &err), err);
    CHECK_EQ(strlen(page.etag), 34);
    char header[128];
    snprintf(header, sizeof header, "\"abc\", W/%s", page.etag);
    CHECK(mf_page_matches(&page, header));
    CHECK(mf_page_matches(&page, page.etag));
    CHECK(mf_page_matches(&page, "*"));
    CHECK(!mf_page_matches(&page, NULL));
    CHECK(!mf_page_matches(&page, "\"0123456789abcdef0123456789abcdef\""));
    CHECK(!mf_page_matches(&page, ""));
}

TEST(the_policy_lets_nothing_in_from_elsewhere)
{
    mf_page page;
    mf_error err = { 0 };
    CHECK_OK(mf_page_open(&page, &err), err);
    CHECK_HAS(page.content_security_policy, "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-");
    CHECK_HAS(page.content_security_policy, "; connect-src 'self'");
    CHECK(!strstr(page.content_security_policy, "http"));
}
