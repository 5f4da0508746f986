/* page_dump.c - prints the page's headers, an empty line and the page, as the server answers: for
 * tests/server/page_mock.py. */
#include <stdio.h>

#include "server/page.h"

int main(void)
{
    mf_page page;
    mf_error err = { 0 };
    if (mf_page_open(&page, &err) != MF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("ETag: %s\nContent-Security-Policy: %s\n\n", page.etag, page.content_security_policy);
    fwrite(page.html, 1, page.size, stdout);
    return 0;
}
