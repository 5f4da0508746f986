/* What the metrics say: counts, buckets, labels, the load of the last minute, and the names that dashboards key on. */
#include "server/metrics.h"

#include <math.h>
#include <stdlib.h>

#include "base/buffer.h"
#include "base/json.h"
#include "base/sys.h"
#include "server/expert_load.h"
#include "server/metrics_names.h"
#include "test.h"

enum { LAYERS = 3, EXPERTS = 4 };
static const char *const modes[LAYERS] = { NULL, "slot", "overlap" };
static const int32_t ids[LAYERS] = { 0, 1, 2 };

static mf_metrics *open_metrics(const char *model_name, bool per_expert)
{
    mf_metrics_options options = {
        .model_name = model_name,
        .version = "0.1.0",
        .commit = "abc",
        .isa = "avx2",
        .device = "cpu",
        .max_model_len = 1024,
        .num_layers = LAYERS,
        .num_experts = EXPERTS,
        .num_shared = 2,
        .layer_modes = modes,
        .layer_ids = ids,
        .per_expert = per_expert,
    };
    mf_metrics *metrics = NULL;
    mf_error err = { 0 };
    CHECK_OK(mf_metrics_open(&options, &metrics, &err), err);
    return metrics;
}

/* Counts as the engine has them after `tokens` rows, each with top 2: layer 1 all on experts 0 and 1, layer 2 even. */
static void fill(mf_service_snapshot *snapshot, int64_t *load, int64_t tokens)
{
    *snapshot = (mf_service_snapshot){ .queued_reqs = 3, .expert_load = load };
    snapshot->stats = (mf_engine_stats){
        .num_running = 2,
        .kv_blocks_total = 100,
        .kv_blocks_used = 25,
        .kv_blocks_free = 70,
        .kv_blocks_cached = 5,
        .prompt_tokens = 40,
        .generation_tokens = 60,
        .computed_tokens = tokens,
        .expert_load = load,
        .num_layers = LAYERS,
        .num_experts = EXPERTS,
        .num_bad_rows = 1,
    };
    memset(load, 0, LAYERS * EXPERTS * sizeof *load);
    load[EXPERTS + 0] = load[EXPERTS + 1] = tokens;
    for (int e = 0; e < EXPERTS; e++) {
        load[2 * EXPERTS + e] = tokens / 2;
    }
}

static const char *write_text(const mf_metrics *metrics, const mf_service_snapshot *snapshot, mf_buffer *out)
{
    mf_metrics_now now = { .snapshot = snapshot, .http_connections = 7, .heartbeat_age_s = 0.25 };
    mf_buffer_clear(out);
    CHECK_EQ(mf_metrics_write(metrics, &now, out), MF_OK);
    return mf_buffer_text(out);
}

TEST(a_value_on_a_bound_falls_into_its_bucket)
{
    mf_metrics *metrics = open_metrics("m", false);
    mf_buffer out = { 0 };
    mf_metrics_observe(metrics, MF_HIST_TTFT, 0.005);
    mf_metrics_observe(metrics, MF_HIST_TTFT, 0.0050001);
    mf_metrics_observe(metrics, MF_HIST_TTFT, 1e9);
    mf_metrics_observe(metrics, MF_HIST_TTFT, NAN);
    const char *text = write_text(metrics, NULL, &out);
    CHECK_HAS(text, "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.001\"} 0\n");
    CHECK_HAS(text, "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.005\"} 1\n");
    CHECK_HAS(text, "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"0.01\"} 2\n");
    CHECK_HAS(text, "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"2560.0\"} 2\n");
    CHECK_HAS(text, "vllm:time_to_first_token_seconds_bucket{model_name=\"m\",engine=\"0\",le=\"+Inf\"} 3\n");
    CHECK_HAS(text, "vllm:time_to_first_token_seconds_count{model_name=\"m\",engine=\"0\"} 3\n");
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
}

TEST(token_buckets_are_1_2_5_up_to_the_models_length)
{
    double bounds[MF_MAX_BUCKETS];
    CHECK_EQ(mf_histogram_bounds(MF_HIST_PROMPT_TOKENS, 1024, bounds), 10);
    CHECK(bounds[0] == 1 && bounds[1] == 2 && bounds[2] == 5 && bounds[9] == 1000);
    CHECK_EQ(mf_histogram_bounds(MF_HIST_PROMPT_TOKENS, 1000, bounds), 10);
    CHECK_EQ(mf_histogram_bounds(MF_HIST_PROMPT_TOKENS, 999, bounds), 9);
    CHECK_EQ(mf_histogram_bounds(MF_HIST_PROMPT_TOKENS, 0, bounds), 0);
    CHECK(mf_histogram_bounds(MF_HIST_PROMPT_TOKENS, INT64_MAX, bounds) <= MF_MAX_BUCKETS);
    CHECK_EQ(mf_histogram_bounds(MF_HIST_ITERATION_TOKENS, 8, bounds), 13);
}

TEST(labels_are_escaped)
{
    mf_metrics *metrics = open_metrics("a\"b\\c\nd", false);
    mf_buffer out = { 0 };
    CHECK_HAS(write_text(metrics, NULL, &out),
              "vllm:num_requests_running{model_name=\"a\\\"b\\\\c\\nd\",engine=\"0\"} 0\n");
    mf_metrics_close(&metrics);
    metrics = open_metrics("bad \xff utf-8", false);
    CHECK_HAS(write_text(metrics, NULL, &out), "model_name=\"bad ? utf-8\"");
    mf_metrics_close(&metrics);
    mf_buffer_close(&out);
}

TEST(the_engines_numbers_and_the_counts_appear)
{
    mf_metrics *metrics = open_metrics("m", false);
    int64_t load[LAYERS * EXPERTS];
    mf_service_snapshot snapshot;
    fill(&snapshot, load, 100);
    mf_metrics_finished(metrics, "stop");
    mf_metrics_finished(metrics, "tool_calls");
    mf_metrics_finished(metrics, "no such reason");
    mf_metrics_rejected(metrics, MF_REJECT_QUEUE_FULL);
    mf_metrics_cancelled(metrics, MF_CANCEL_SLOW_READER);
    mf_metrics_answered(metrics, 200);
    mf_metrics_answered(metrics, 429);
    mf_metrics_answered(metrics, 429);
    mf_metrics_answered(metrics, 7777);
    mf_buffer out = { 0 };
    const char *text = write_text(metrics, &snapshot, &out);
    CHECK_HAS(text, "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 2\n");
    CHECK_HAS(text, "vllm:num_requests_waiting{model_name=\"m\",engine=\"0\"} 3\n");
    CHECK_HAS(text, "vllm:kv_cache_usage_perc{model_name=\"m\",engine=\"0\"} 0.25\n");
    CHECK_HAS(text, "vllm:generation_tokens_total{model_name=\"m\",engine=\"0\"} 60\n");
    CHECK_HAS(text, "finished_reason=\"stop\"} 2\n");
    CHECK_HAS(text, "finished_reason=\"other\"} 1\n");
    CHECK_HAS(text, "reason=\"queue_full\"} 1\n");
    CHECK_HAS(text, "cause=\"slow_reader\"} 1\n");
    CHECK_HAS(text, "moefuse:http_responses_total{model_name=\"m\",engine=\"0\",code=\"429\"} 2\n");
    CHECK_HAS(text, "moefuse:kv_blocks{model_name=\"m\",engine=\"0\",state=\"cached\"} 5\n");
    CHECK_HAS(text, "moefuse:heartbeat_age_seconds{model_name=\"m\",engine=\"0\"} 0.25\n");
    CHECK_HAS(text, "moefuse:http_connections{model_name=\"m\",engine=\"0\"} 7\n");
    CHECK_HAS(text, "moefuse:expert_tokens_total{model_name=\"m\",engine=\"0\",layer=\"1\",kind=\"routed\"} 200\n");
    CHECK_HAS(text, "moefuse:expert_tokens_total{model_name=\"m\",engine=\"0\",layer=\"1\",kind=\"shared\"} 200\n");
    CHECK_HAS(text, "moefuse:layer_mode{model_name=\"m\",engine=\"0\",layer=\"2\",mode=\"overlap\"} 1\n");
    CHECK(!strstr(text, "layer=\"0\"")); /* dense */
    CHECK(!strstr(text, "expert=\""));
    /* Layer 1 has half of its four experts busy: (2x)^2 / (4 * 2x^2) = 0.5; layer 2 is even. */
    CHECK_HAS(text, "moefuse:expert_load_jain{model_name=\"m\",engine=\"0\",layer=\"1\"} 0.5\n");
    CHECK_HAS(text, "moefuse:expert_load_jain{model_name=\"m\",engine=\"0\",layer=\"2\"} 1.0\n");
    CHECK_HAS(text, "moefuse:expert_load_max_over_mean{model_name=\"m\",engine=\"0\",layer=\"1\"} 2.0\n");
    CHECK_HAS(text, "process_resident_memory_bytes ");
    CHECK_HAS(text, "process_open_fds ");
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
}

TEST(per_expert_series_add_up_to_the_layers_sum)
{
    mf_metrics *metrics = open_metrics("m", true);
    int64_t load[LAYERS * EXPERTS];
    mf_service_snapshot snapshot;
    fill(&snapshot, load, 10);
    mf_buffer out = { 0 };
    const char *text = write_text(metrics, &snapshot, &out);
    int64_t routed = 0, shared = 0;
    for (const char *p = text; (p = strstr(p, "moefuse:expert_tokens_total{model_name")) != NULL; p++) {
        const char *value = strchr(p, '}');
        if (strstr(p, "kind=\"routed\",expert=") && strstr(p, "kind=\"routed\",expert=") < value) {
            routed += strtoll(value + 1, NULL, 10);
        } else if (strstr(p, "kind=\"shared\",expert=") && strstr(p, "kind=\"shared\",expert=") < value) {
            shared += strtoll(value + 1, NULL, 10);
        } else {
            fail_msg("a sum beside its parts would count tokens twice: %.120s", p);
        }
    }
    CHECK_EQ(routed, 2 * 10 * 2);
    CHECK_EQ(shared, 2 * 10 * 2);
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
}

TEST(the_window_forgets_what_is_older_than_a_minute)
{
    const int64_t s = 1000000000;
    bool is_moe[LAYERS] = { false, true, true };
    mf_expert_load load;
    mf_error err = { 0 };
    CHECK_OK(mf_expert_load_open(&load, LAYERS, is_moe, EXPERTS, 0, &err), err);
    int64_t counts[LAYERS * EXPERTS] = { 0 }, row[EXPERTS];
    mf_engine_stats stats = { .expert_load = counts, .num_layers = LAYERS, .num_experts = EXPERTS };
    /* Expert 0 in the first 100 s, expert 1 after that; one token a second. */
    for (int64_t t = 1; t <= 130; t++) {
        counts[EXPERTS + (t <= 100 ? 0 : 1)]++;
        stats.computed_tokens++;
        mf_expert_load_tick(&load, &stats, t * s);
        mf_expert_load_tick(&load, &stats, t * s + s / 4); /* too early: changes nothing */
    }
    mf_load_window w = mf_expert_load_window(&load, &stats, 60, 130 * s);
    CHECK(w.window_s == 60);
    CHECK_EQ(w.tokens, 60);
    CHECK_EQ(mf_expert_load_row(&load, &stats, &w, 0, row), 60);
    CHECK_EQ(row[0], 30);
    CHECK_EQ(row[1], 30);
    w = mf_expert_load_window(&load, &stats, 10, 130 * s);
    CHECK_EQ(mf_expert_load_row(&load, &stats, &w, 0, row), 10);
    CHECK_EQ(row[0], 0);
    w = mf_expert_load_window(&load, &stats, 0, 130 * s);
    CHECK_EQ(mf_expert_load_row(&load, &stats, &w, 0, row), 130);
    CHECK(w.window_s == 130);
    mf_expert_load_close(&load);
}

TEST(the_window_is_right_when_the_low_words_wrap)
{
    const int64_t s = 1000000000;
    bool is_moe[1] = { true };
    mf_expert_load load;
    mf_error err = { 0 };
    CHECK_OK(mf_expert_load_open(&load, 1, is_moe, 1, 0, &err), err);
    int64_t count = (int64_t)UINT32_MAX - 5, row[1];
    mf_engine_stats stats = { .expert_load = &count, .num_layers = 1, .num_experts = 1 };
    mf_expert_load_tick(&load, &stats, s);
    count += 12;
    mf_load_window w = mf_expert_load_window(&load, &stats, 1, 2 * s);
    CHECK_EQ(mf_expert_load_row(&load, &stats, &w, 0, row), 12);
    mf_expert_load_close(&load);
}

TEST(the_ring_of_a_wide_model_stays_within_its_bound)
{
    bool is_moe[256];
    memset(is_moe, 1, sizeof is_moe);
    mf_expert_load load;
    mf_error err = { 0 };
    CHECK_OK(mf_expert_load_open(&load, 256, is_moe, 4096, 0, &err), err);
    CHECK((int64_t)load.num_slots * 256 * 4096 * 4 <= MF_EXPERT_LOAD_MAX_BYTES);
    CHECK(load.num_slots >= 2);
    CHECK(load.spacing_ns * (load.num_slots - 1) > 59999999000); /* the whole minute, but for rounding */
    mf_expert_load_close(&load);
}

TEST(jain_and_max_over_mean_are_as_defined)
{
    const int64_t even[4] = { 5, 5, 5, 5 }, one[4] = { 0, 0, 9, 0 }, none[4] = { 0 };
    CHECK(mf_load_jain(even, 4) == 1);
    CHECK(mf_load_jain(one, 4) == 0.25);
    CHECK(isnan(mf_load_jain(none, 4)));
    CHECK(mf_load_max_over_mean(even, 4) == 1);
    CHECK(mf_load_max_over_mean(one, 4) == 4);
    CHECK(isnan(mf_load_max_over_mean(none, 4)));
}

TEST(expert_load_json_has_the_counts_of_each_moe_layer)
{
    mf_metrics *metrics = open_metrics("m", false);
    int64_t load[LAYERS * EXPERTS];
    mf_service_snapshot snapshot;
    fill(&snapshot, load, 100);
    mf_buffer out = { 0 };
    mf_error err = { 0 };
    json_t *top = NULL;
    CHECK_EQ(mf_metrics_write_expert_load(metrics, &snapshot, 60, -1, &out), MF_OK);
    CHECK_OK(mf_json_parse(mf_buffer_text(&out), out.size, "expert-load", NULL, &top, &err), err);
    json_t *layers = json_object_get(top, "layers"), *layer = json_array_get(layers, 0);
    CHECK_EQ(json_array_size(layers), 2);
    CHECK_EQ(json_integer_value(json_object_get(top, "tokens")), 100);
    CHECK_EQ(json_integer_value(json_object_get(layer, "layer")), 1);
    CHECK_STR(json_string_value(json_object_get(layer, "mode")), "slot");
    CHECK_EQ(json_array_size(json_object_get(layer, "routed")), EXPERTS);
    CHECK_EQ(json_integer_value(json_array_get(json_object_get(layer, "routed"), 1)), 100);
    CHECK_EQ(json_array_size(json_object_get(layer, "shared")), 2);
    CHECK_EQ(json_integer_value(json_array_get(json_object_get(layer, "shared"), 0)), 100);
    CHECK(json_number_value(json_object_get(layer, "jain")) == 0.5);
    CHECK_EQ(json_integer_value(json_array_get(json_object_get(layer, "top"), 0)), 0);
    CHECK_EQ(json_integer_value(json_array_get(json_object_get(layer, "bottom"), 0)), 2);
    json_decref(top);

    mf_buffer_clear(&out);
    CHECK_EQ(mf_metrics_write_expert_load(metrics, &snapshot, 0, 2, &out), MF_OK);
    CHECK(!strstr(mf_buffer_text(&out), "\"layer\": 1"));
    mf_buffer_clear(&out);
    CHECK_EQ(mf_metrics_write_expert_load(metrics, &snapshot, 0, 0, &out), MF_ERR_INVALID);
    mf_buffer_clear(&out);
    CHECK_EQ(mf_metrics_write_expert_load(metrics, NULL, 10, -1, &out), MF_OK);
    CHECK_HAS(mf_buffer_text(&out), "\"jain\": null");
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
}

TEST(metrics_opened_before_the_model_are_described_later)
{
    mf_metrics_options loading = { .model_name = "m", .version = "0.1.0" }, ready = loading;
    mf_metrics *metrics = NULL;
    mf_error err = { 0 };
    CHECK_OK(mf_metrics_open(&loading, &metrics, &err), err);
    mf_metrics_rejected(metrics, MF_REJECT_LOADING);
    ready.max_model_len = 64;
    ready.num_layers = LAYERS;
    ready.num_experts = EXPERTS;
    ready.layer_modes = modes;
    CHECK_OK(mf_metrics_describe(metrics, &ready, &err), err);
    mf_buffer out = { 0 };
    const char *text = write_text(metrics, NULL, &out);
    CHECK_HAS(text, "reason=\"loading\"} 1\n");
    CHECK_HAS(text, "vllm:request_prompt_tokens_bucket{model_name=\"m\",engine=\"0\",le=\"50.0\"} 0\n");
    CHECK_HAS(text, "moefuse:layer_mode{model_name=\"m\",engine=\"0\",layer=\"1\",mode=\"slot\"} 1\n");
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
}

static int64_t failing_at, allocations;

static void *fail_one(size_t bytes)
{
    return ++allocations == failing_at ? NULL : malloc(bytes);
}

TEST(every_allocation_may_fail)
{
    mf_sys saved = mf_sys_table;
    mf_error err = { 0 };
    mf_metrics_options options = {
        .model_name = "m", .num_layers = LAYERS, .num_experts = EXPERTS, .layer_modes = modes
    };
    for (failing_at = 1; failing_at < 100; failing_at++) {
        mf_metrics *metrics = NULL;
        allocations = 0;
        mf_sys_table.alloc = fail_one;
        mf_status status = mf_metrics_open(&options, &metrics, &err);
        mf_sys_table = saved;
        mf_metrics_close(&metrics);
        if (status == MF_OK) {
            break;
        }
        CHECK_EQ(status, MF_ERR_NOMEM);
    }
    CHECK(failing_at > 5 && failing_at < 100);
}

TEST(the_set_of_names_is_the_golden_one)
{
    mf_metrics *metrics = open_metrics("m", false);
    mf_buffer out = { 0 }, names = { 0 };
    const char *text = write_text(metrics, NULL, &out);
    for (const char *p = text; (p = strstr(p, "# TYPE ")) != NULL;) {
        p += strlen("# TYPE ");
        mf_buffer_append(&names, p, (size_t)(strchr(p, '\n') + 1 - p));
    }
    char golden[16384] = { 0 };
    FILE *file = fopen(MF_SOURCE_DIR "/tests/server/metrics.golden", "rb");
    CHECK(file);
    CHECK(fread(golden, 1, sizeof golden - 1, file) > 0);
    fclose(file);
    CHECK_STR(mf_buffer_text(&names), golden);
    mf_buffer_close(&names);
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
}
