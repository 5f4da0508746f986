/* bench_report.h - saved results as one HTML file: inline CSS and SVG, no script, nothing fetched, light and dark.
 * Equal input gives equal bytes. */
#ifndef MF_CLI_BENCH_REPORT_H
#define MF_CLI_BENCH_REPORT_H

#include "base/buffer.h"
#include "cli/result_set.h"

/* title NULL: the model's name. */
mf_status mf_report_make(const mf_result_set *set, const char *title, mf_buffer *html, mf_error *err);

#endif
