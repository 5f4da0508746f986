/* report_html.c - see report_html.h. */
#include "cli/report_html.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void mf_html_raw(mf_html *html, const char *fmt, ...)
{
    if (html->status != MF_OK) {
        return;
    }
    char small[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof small) { /* our own formats are short; long text goes through mf_html_text */
        html->status = MF_ERR_INTERNAL;
        return;
    }
    html->status = mf_buffer_append(html->out, small, (size_t)n);
}

static void append(mf_html *html, const char *text)
{
    if (html->status == MF_OK) {
        html->status = mf_buffer_append_text(html->out, text);
    }
}

void mf_html_text(mf_html *html, const char *text)
{
    for (const char *p = text; *p && html->status == MF_OK;) {
        size_t n = strcspn(p, "&<>\"'");
        html->status = mf_buffer_append(html->out, p, n);
        p += n;
        if (*p) {
            append(html, *p == '&'   ? "&amp;"
                         : *p == '<' ? "&lt;"
                         : *p == '>' ? "&gt;"
                         : *p == '"' ? "&quot;"
                                     : "&#39;");
            p++;
        }
    }
}

void mf_format_figure(double value, char *out, size_t size)
{
    double magnitude = fabs(value);
    if (!isfinite(value)) {
        snprintf(out, size, "-");
    } else if (magnitude >= 999.5) {
        char digits[40];
        int n = snprintf(digits, sizeof digits, "%.0f", value);
        size_t used = 0;
        for (int i = 0; i < n && used + 2 < size; i++) {
            if (i > 0 && digits[i - 1] != '-' && (n - i) % 3 == 0) {
                out[used++] = ',';
            }
            out[used++] = digits[i];
        }
        out[used] = '\0';
    } else {
        snprintf(out, size, "%.*f",
                 magnitude >= 99.95    ? 0
                 : magnitude >= 9.995  ? 1
                 : magnitude >= 0.9995 ? 2
                                       : 3,
                 value);
    }
}

void mf_html_number(mf_html *html, double value)
{
    char text[48];
    mf_format_figure(value, text, sizeof text);
    append(html, text);
}

static const char *const style[] = {
    ":root{color-scheme:light "
    "dark;--page:#f7f7f5;--card:#fff;--ink:#1d1d1b;--soft:#63625d;--line:#e3e2dd;--axis:#a3a29b;"
    "--s0:#2563c9;--s1:#d1570f;--s2:#0f8a65;--s3:#8a44c4;--s4:#b3294e;--s5:#6b6a12;--heat:#2563c9;--mark:#d1570f;--"
    "good:#0f7a55;"
    "--bad:#b3294e}\n",
    "@media(prefers-color-scheme:dark){:root{--page:#161615;--card:#1f1f1d;--ink:#efeeea;--soft:#a5a49d;--line:#34332f;"
    "--axis:#716f68;"
    "--s0:#6ea3f7;--s1:#f2914f;--s2:#3fc596;--s3:#bd8cf0;--s4:#f0708f;--s5:#c9c64a;--heat:#6ea3f7;--mark:#f2914f;--"
    "good:#3fc596;"
    "--bad:#f0708f}}\n",
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe "
    "UI\",Roboto,\"Noto Sans\","
    "sans-serif}\n"
    "main{max-width:1160px;margin:0 auto;padding:28px 20px 56px}\n"
    "h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650;overflow-wrap:anywhere}\n"
    "h2{font-size:18px;margin:36px 0 4px;font-weight:650}\n"
    "h3{font-size:14px;margin:0;font-weight:600}\n"
    "p{margin:0 0 12px;max-width:76ch}\n"
    ".soft,figcaption{color:var(--soft)}\n",
    "figcaption{font-size:12.5px;line-height:1.35;margin-bottom:6px}\n"
    ".grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,318px),1fr));gap:14px;margin-top:12px}\n"
    "figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 14px "
    "8px;min-width:0}\n"
    "svg{display:block;width:100%;height:auto}\n"
    "svg text{font:11px system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\",sans-serif;fill:var(--soft)}\n"
    ".g{stroke:var(--line);stroke-width:1}.a{stroke:var(--axis);stroke-width:1}\n"
    ".l{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.w{stroke-width:1.5}.d{stroke-dasharray:4 "
    "4;stroke-width:1.5}\n"
    ".p{stroke:var(--card);stroke-width:1.5}.o{fill:var(--card);stroke-width:1.5}\n",
    ".c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}.c4{--c:var(--s4)}.c5{--c:var(--s5)}\n"
    ".c0,.c1,.c2,.c3,.c4,.c5{stroke:var(--c)}.p{fill:var(--c)}.p.c0,.p.c1,.p.c2,.p.c3,.p.c4,.p.c5{stroke:var(--card)}\n"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:10px 0 0;padding:0;list-style:none;font-size:13.5px}\n"
    ".legend li{display:flex;align-items:center;gap:7px}.legend svg{width:30px;flex:none}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:14px;margin-top:18px}\n"
    ".tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}\n"
    ".tile b{display:block;font-size:23px;font-weight:650;line-height:1.25;white-space:nowrap}.tile b "
    "small{font-size:14px;font-weight:500}"
    ".tile span{font-size:12.5px;color:var(--soft)}\n",
    ".scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;margin-top:12px}\n"
    "table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:6px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}\n"
    "thead th{border-top:0;color:var(--soft);font-weight:500;vertical-align:bottom}\n"
    "th.t,td.t{text-align:left}tr.first td{border-top-color:var(--axis)}\n"
    ".kv th{width:1%;color:var(--soft);font-weight:500;text-align:left}.kv "
    "td{text-align:left;white-space:normal;overflow-wrap:anywhere}\n"
    ".kv tr:first-child>*{border-top:0}\n"
    ".better{color:var(--good)}.worse{color:var(--bad)}\n",
    ".heat{padding:14px}.heat svg{min-width:520px;max-width:860px}.h{fill:var(--heat)}.m{fill:var(--mark)}\n"
    "@media(max-width:520px){main{padding:20px 14px 40px}h1{font-size:22px}th,td{padding:6px 9px}}\n",
};

void mf_html_begin(mf_html *html, const char *title)
{
    append(html, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                 "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>");
    mf_html_text(html, title);
    append(html, "</title>\n<style>\n");
    for (size_t i = 0; i < sizeof style / sizeof *style; i++) {
        append(html, style[i]);
    }
    append(html, "</style>\n</head>\n<body>\n<main>\n");
}

void mf_html_end(mf_html *html)
{
    append(html, "</main>\n</body>\n</html>\n");
}
