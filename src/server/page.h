/* page.h - the chat page: one HTML file, compiled in, with what its answer's headers must say. */
#ifndef MF_SERVER_PAGE_H
#define MF_SERVER_PAGE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

typedef struct mf_page {
    const char *html; /* [size], static */
    size_t size;
    char etag[40];                     /* quoted, from the page's SHA-256 */
    char content_security_policy[320]; /* allows this page's script by its SHA-256, and nothing from elsewhere */
} mf_page;

/* Fills *page: hashes the page and its script, once, at start. */
mf_status mf_page_open(mf_page *page, mf_error *err);

/* true when an If-None-Match header (NULL: there is none) names this page: the answer is 304 without a body. */
bool mf_page_matches(const mf_page *page, const char *if_none_match);

#endif
