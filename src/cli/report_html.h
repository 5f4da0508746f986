/* report_html.h - writing HTML: text escaped, the first failure kept, the page's frame and style. */
#ifndef MF_CLI_REPORT_HTML_H
#define MF_CLI_REPORT_HTML_H

#include "base/buffer.h"

typedef struct mf_html {
    mf_buffer *out;
    mf_status status; /* the first failure; later calls do nothing */
} mf_html;

void mf_html_raw(mf_html *html, const char *fmt, ...) MF_PRINTF(2, 3); /* as it stands */
void mf_html_text(mf_html *html, const char *text);                    /* escaped, for elements and attributes */
/* 12345.678 -> "12,346", 9.4273 -> "9.43": three digits that say something. */
void mf_html_number(mf_html *html, double value);
void mf_format_figure(double value, char *out, size_t size);

void mf_html_begin(mf_html *html, const char *title);
void mf_html_end(mf_html *html);

#endif
