/* fuzz_bench_results.c - a file of benchmark results, whatever it holds, is refused or compared and drawn; the page is
 * UTF-8 and holds no markup but its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/bench_compare.h"
#include "cli/bench_report.h"
#include "cli/jsonl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *nowhere;
    nowhere = nowhere ? nowhere : fopen("/dev/null", "w");
    mf_error err = { 0 };
    json_t *documents = NULL;
    mf_result_set set;
    if (mf_jsonl_parse((const char *)data, size, "input", &documents, &err) != MF_OK ||
        mf_result_set_make(documents, "input", &set, &err) != MF_OK) {
        return 0;
    }
    mf_compare_options options = { .name_a = "a", .name_b = "b", .threshold = 0.05, .force = size & 1 };
    json_t *document = json_object();
    bool worse;
    mf_compare(&set, NULL, &options, nowhere, NULL, &worse, &err);
    mf_compare(&set, &set, &options, nowhere, document, &worse, &err);
    json_decref(document);
    mf_buffer html = { 0 };
    if (mf_report_make(&set, NULL, &html, &err) == MF_OK &&
        (!mf_utf8_valid(html.data, html.size, NULL) || strstr(html.data, "<script") || !strstr(html.data, "</html>"))) {
        abort();
    }
    mf_buffer_close(&html);
    mf_result_set_close(&set);
    return 0;
}
