/* results_test.c - saved results: reading three engines' files, comparing them, drawing them.
 *
 * fixtures/sweep.html is what the report makes of fixtures/sweep.jsonl; MF_UPDATE_GOLDEN=1 writes it anew, to be looked
 * at. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#include "base/file.h"
#include "cli/bench_compare.h"
#include "cli/bench_report.h"
#include "cli/jsonl.h"

#define FIXTURE(name) MF_SOURCE_DIR "/tests/client/fixtures/" name

static void load(const char *path, mf_result_set *set)
{
    mf_error err = { 0 };
    CHECK_OK(mf_result_set_load(&path, 1, set, &err), err);
}

static void make(const char *text, mf_result_set *set)
{
    mf_error err = { 0 };
    json_t *documents = NULL;
    CHECK_OK(mf_jsonl_parse(text, strlen(text), "text", &documents, &err), err);
    CHECK_OK(mf_result_set_make(documents, "text", set, &err), err);
}

TEST(runs_of_one_setting_are_rounds_in_order_of_concurrency)
{
    mf_result_set set;
    load(FIXTURE("sweep.jsonl"), &set);
    CHECK_EQ(set.num_variants, 3);
    CHECK_STR(set.variants[0], "fused");
    CHECK_EQ(set.num_groups, 9);
    const double levels[] = { 1, 4, 16 };
    for (int i = 0; i < 9; i++) {
        CHECK_EQ(set.groups[i].num_runs, 3);
        CHECK(set.groups[i].concurrency == levels[i % 3] && isinf(set.groups[i].rate));
        CHECK_STR(set.groups[i].variant, set.variants[i / 3]);
    }
    CHECK(mf_result_set_find(&set, "gate separate", 4, INFINITY) == &set.groups[7]);
    CHECK(mf_result_set_find(&set, NULL, 5, INFINITY) == NULL);
    mf_result_set_close(&set);
}

TEST(sglangs_lines_are_read_under_vllms_names)
{
    mf_result_set set;
    load(FIXTURE("sglang.jsonl"), &set); /* holds Infinity and NaN */
    size_t count;
    const mf_metric *metrics = mf_metrics_of(MF_RESULT_SERVE, &count);
    double value = 0;
    for (size_t i = 0; i < count; i++) {
        size_t n = mf_result_values(&set.groups[0], &metrics[i], &value, 1);
        if (strcmp(metrics[i].key, "median_e2el_ms") == 0) {
            CHECK(n == 1 && value == 198);
        } else if (strcmp(metrics[i].key, "total_token_throughput") == 0) {
            CHECK(n == 1 && value == 2482);
        }
    }
    mf_result_set_close(&set);
}

TEST(a_file_that_holds_no_results_is_refused_by_name)
{
    const char *path = MF_SOURCE_DIR "/models/word-problems/config.json";
    mf_result_set set;
    mf_error err = { 0 };
    CHECK(mf_result_set_load(&path, 1, &set, &err) != MF_OK);
    CHECK_HAS(err.message, "config.json");
    path = MF_SOURCE_DIR "/nothing.json";
    CHECK(mf_result_set_load(&path, 1, &set, &err) != MF_OK);
    CHECK_HAS(err.message, "nothing.json");
}

TEST(several_files_without_a_name_are_told_apart_by_it)
{
    const char *paths[] = { FIXTURE("vllm.json"), FIXTURE("sglang.jsonl") };
    mf_result_set set;
    mf_error err = { 0 };
    CHECK_OK(mf_result_set_load(paths, 2, &set, &err), err);
    CHECK_EQ(set.num_variants, 2);
    CHECK_STR(set.variants[0], "vllm.json");
    mf_result_set_close(&set);
}

/* ---- comparing ---- */

static const mf_metric throughput = { "output_throughput", "T", true, NULL },
                       ttft = { "median_ttft_ms", "L", false, NULL };

static void compare_values(const char *a, const char *b, const mf_metric *metric, mf_compared *out)
{
    mf_result_set x, y;
    make(a, &x);
    make(b, &y);
    CHECK(mf_compare_metric(&x.groups[0], &y.groups[0], metric, out));
    mf_result_set_close(&x);
    mf_result_set_close(&y);
}

#define RUN(throughput_, ttft_)                                                                                        \
    "{\"request_throughput\":1,\"output_throughput\":" #throughput_ ",\"median_ttft_ms\":" #ttft_ "}\n"

TEST(more_throughput_is_better_and_more_latency_worse)
{
    mf_compared c;
    compare_values(RUN(100, 10) RUN(101, 10.1) RUN(99, 9.9), RUN(110, 12) RUN(111, 12.1) RUN(109, 11.9), &throughput,
                   &c);
    CHECK_STR(c.verdict, "better");
    CHECK(c.has_interval && fabs(c.change - 0.1) < 1e-9 && c.low > 0.07 && c.high < 0.13);
    compare_values(RUN(100, 10) RUN(101, 10.1) RUN(99, 9.9), RUN(110, 12) RUN(111, 12.1) RUN(109, 11.9), &ttft, &c);
    CHECK_STR(c.verdict, "worse");
}

TEST(what_lies_within_the_rounds_noise_is_the_same)
{
    mf_compared c;
    compare_values(RUN(100, 1) RUN(120, 1) RUN(80, 1), RUN(110, 1) RUN(130, 1) RUN(90, 1), &throughput, &c);
    CHECK_STR(c.verdict, "same");
    CHECK(c.low < 0 && c.high > 0);
}

TEST(one_round_has_no_interval_and_a_change_of_a_per_cent_counts)
{
    mf_compared c;
    compare_values(RUN(100, 1), RUN(100.5, 1), &throughput, &c);
    CHECK(!c.has_interval);
    CHECK_STR(c.verdict, "same");
    compare_values(RUN(100, 1), RUN(98, 1), &throughput, &c);
    CHECK_STR(c.verdict, "worse");
}

static mf_status compare_sets(const char *a, const char *b, double threshold, bool force, bool *worse, char **text,
                              mf_error *err)
{
    mf_result_set x, y;
    load(a, &x);
    if (b) {
        load(b, &y);
    }
    mf_compare_options o = { .name_a = "a", .name_b = "b", .threshold = threshold, .force = force };
    size_t size = 0;
    FILE *out = open_memstream(text, &size);
    mf_status status = mf_compare(&x, b ? &y : NULL, &o, out, NULL, worse, err);
    fclose(out);
    mf_result_set_close(&x);
    if (b) {
        mf_result_set_close(&y);
    }
    return status;
}

TEST(a_file_is_compared_with_itself_and_nothing_changed)
{
    bool worse = true;
    char *text = NULL;
    mf_error err = { 0 };
    CHECK_OK(compare_sets(FIXTURE("sweep.jsonl"), FIXTURE("sweep.jsonl"), 0.01, false, &worse, &text, &err), err);
    CHECK(!worse);
    CHECK(!strstr(text, "worse") && !strstr(text, "better"));
    CHECK_HAS(text, "concurrency 16, rounds 3 and 3: A = a gate separate, B = b gate separate\n");
    free(text);
}

TEST(one_files_variants_are_compared_with_its_first)
{
    bool worse = false;
    char *text = NULL;
    mf_error err = { 0 };
    CHECK_OK(compare_sets(FIXTURE("sweep.jsonl"), NULL, 0.05, false, &worse, &text, &err), err);
    CHECK(worse); /* separate shared experts: 7 % less throughput in the fixture */
    CHECK_HAS(text, "A = a fused, B = b shared experts separate");
    free(text);
    CHECK_OK(compare_sets(FIXTURE("sweep.jsonl"), NULL, 0.1, false, &worse, &text, &err), err);
    CHECK(!worse);
    free(text);
}

TEST(vllms_file_is_compared_with_sglangs)
{
    bool worse = false;
    char *text = NULL;
    mf_error err = { 0 };
    CHECK_OK(compare_sets(FIXTURE("vllm.json"), FIXTURE("sglang.jsonl"), NAN, false, &worse, &text, &err), err);
    CHECK_HAS(text, "Median TTFT (ms)");
    CHECK_HAS(text, "P99 E2EL (ms)");
    free(text);
}

TEST(latencies_of_one_run_count_as_rounds)
{
    bool worse = false;
    char *text = NULL;
    mf_error err = { 0 };
    CHECK_OK(compare_sets(FIXTURE("latency_a.json"), FIXTURE("latency_b.json"), 0.1, false, &worse, &text, &err), err);
    CHECK(worse);
    CHECK_HAS(text, "Average latency (s)");
    free(text);
}

TEST(unequal_workloads_are_refused_unless_forced)
{
    static const char *const b[] = {
        "{\"request_throughput\":1,\"num_prompts\":65,\"max_concurrency\":4,\"request_rate\":\"inf\",\"output_"
        "throughput\":1}",
        "{\"request_throughput\":1,\"num_prompts\":64,\"max_concurrency\":4,\"total_input_tokens\":5000,\"output_"
        "throughput\":1}",
        "{\"request_throughput\":1,\"num_prompts\":64,\"max_concurrency\":4,\"total_output_tokens\":5000,\"output_"
        "throughput\":1}",
    };
    static const char *const why[] = { "64 against 65 prompts", "4096 against 5000 input tokens",
                                       "4096 against 5000 generated tokens" };
    for (int i = 0; i < 3; i++) {
        mf_result_set x, y;
        load(FIXTURE("vllm.json"), &x);
        make(b[i], &y);
        mf_compare_options o = { .name_a = "a", .name_b = "b", .threshold = NAN };
        bool worse;
        mf_error err = { 0 };
        json_t *document = json_object();
        CHECK_EQ(mf_compare(&x, &y, &o, stdout, document, &worse, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, why[i]);
        o.force = true;
        CHECK_OK(mf_compare(&x, &y, &o, stdout, document, &worse, &err), err);
        CHECK_EQ(json_array_size(json_object_get(document, "groups")), 1);
        json_decref(document);
        mf_result_set_close(&x);
        mf_result_set_close(&y);
    }
}

TEST(results_without_a_common_concurrency_are_not_compared)
{
    mf_result_set x, y;
    load(FIXTURE("vllm.json"), &x);
    make("{\"request_throughput\":1,\"max_concurrency\":5}", &y);
    mf_compare_options o = { .name_a = "a", .name_b = "b", .threshold = NAN };
    bool worse;
    mf_error err = { 0 };
    CHECK_EQ(mf_compare(&x, &y, &o, stdout, NULL, &worse, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "no concurrency and rate in common");
    mf_result_set_close(&x);
    mf_result_set_close(&y);
}

/* ---- drawing ---- */

static void draw(const char *path, mf_buffer *html)
{
    mf_result_set set;
    mf_error err = { 0 };
    load(path, &set);
    CHECK_OK(mf_report_make(&set, NULL, html, &err), err);
    mf_result_set_close(&set);
}

TEST(the_reports_bytes_are_the_golden_ones)
{
    mf_buffer html = { 0 };
    draw(FIXTURE("sweep.jsonl"), &html);
    if (getenv("MF_UPDATE_GOLDEN")) {
        FILE *out = fopen(FIXTURE("sweep.html"), "w");
        CHECK(out && fwrite(html.data, 1, html.size, out) == html.size);
        fclose(out);
    }
    mf_file golden;
    mf_error err = { 0 };
    CHECK_OK(mf_file_open(FIXTURE("sweep.html"), false, 0, &golden, &err), err);
    CHECK_EQ(golden.size, html.size);
    CHECK_MEM(golden.data, html.data, html.size);
    mf_file_close(&golden);
    mf_buffer_close(&html);
}

TEST(the_report_runs_and_fetches_nothing_and_escapes_what_it_shows)
{
    mf_buffer html = { 0 };
    draw(FIXTURE("sweep.jsonl"), &html);
    const char *text = mf_buffer_text(&html);
    static const char *const absent[] = { "<script", "http:", "https:", "//",   "url(", "@import",
                                          "<link",   "<img",  "<CPU>",  "src=", "nan" };
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        if (strstr(text, absent[i])) {
            fail_msg("the report holds %s", absent[i]);
        }
    }
    CHECK_HAS(text, "A &lt;CPU&gt; &amp; &quot;more&quot;");
    CHECK_HAS(text, "prefers-color-scheme:dark");
    mf_buffer_close(&html);
}

TEST(a_report_of_other_engines_files_needs_nothing_of_moefuse)
{
    mf_buffer html = { 0 };
    draw(FIXTURE("sglang.jsonl"), &html);
    CHECK_HAS(mf_buffer_text(&html), "End-to-end latency");
    CHECK(!strstr(mf_buffer_text(&html), "Expert load"));
    mf_buffer_close(&html);
}

TEST(a_report_of_latencies_alone_is_refused)
{
    mf_result_set set;
    mf_buffer html = { 0 };
    mf_error err = { 0 };
    load(FIXTURE("latency_a.json"), &set);
    CHECK_EQ(mf_report_make(&set, NULL, &html, &err), MF_ERR_INVALID);
    mf_result_set_close(&set);
    mf_buffer_close(&html);
}
