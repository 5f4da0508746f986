/* base_test.c - number formats, buffers, arenas, JSON limits, the thread pool. */
#include "test.h"

#include <math.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/number.h"
#include "base/sys.h"
#include "base/threads.h"

static const char *escaped(const char *text, size_t size, size_t room)
{
    static char out[256];
    mf_log_escape(text, size, out, room);
    return out;
}

TEST(a_log_line_holds_no_byte_that_steers_a_terminal)
{
    CHECK_STR(escaped("a\x1b[31m\n\x7f", 8, 256), "a\\x1b[31m\\x0a\\x7f");
    CHECK_STR(escaped("\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80", 11, 256), "\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80");
    CHECK_STR(escaped("\xc2\x9b", 2, 256), "\\xc2\\x9b"); /* CSI in one character */
    CHECK_STR(escaped("\xc2\xa0", 2, 256), "\xc2\xa0");
    CHECK_STR(escaped("\xff\xe4\xb8", 3, 256), "\\xff\\xe4\\xb8");
    CHECK_STR(escaped("\xed\xa0\x80", 3, 256), "\\xed\\xa0\\x80");
    CHECK_STR(escaped("abc", 3, 3), "ab"); /* cut at whole pieces */
    CHECK_STR(escaped("ab\xc3\xa9", 4, 4), "ab");
    CHECK_STR(escaped("ab\n", 3, 6), "ab");
}

static char last_line[2048];

static void keep_line(void *context, mf_log_level level, const char *line)
{
    (void)context;
    (void)level;
    snprintf(last_line, sizeof last_line, "%s", line);
}

TEST(a_log_line_is_escaped_and_at_most_a_kibibyte_of_its_text)
{
    char text[3000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    mf_log_set_sink(keep_line, NULL, MF_LOG_INFO);
    mf_log(MF_LOG_INFO, "a %s", "b\nmoefuse: error: forged");
    CHECK_STR(last_line, "a b\\x0amoefuse: error: forged");
    mf_log(MF_LOG_INFO, "%s", text);
    CHECK_EQ(strlen(last_line), 1023);
    mf_log_set_sink(NULL, NULL, MF_LOG_INFO);
    int64_t before = mf_log_num_dropped();
    mf_log_add_dropped(3);
    CHECK_EQ(mf_log_num_dropped() - before, 3);
}

static void *measure_stack(void *size)
{
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstacksize(&attributes, size);
        pthread_attr_destroy(&attributes);
    }
    return NULL;
}

static void measure_task(void *sizes, int64_t task, int32_t thread)
{
    (void)task;
    if (thread > 0) {
        measure_stack((size_t *)sizes + thread);
    } else {
        usleep(500); /* the others have time to come */
    }
}

TEST(threads_have_small_stacks)
{
    size_t alone = 0, sizes[3] = { 0 };
    pthread_t thread;
    mf_pool *pool;
    mf_error err = { 0 };
    CHECK_EQ(mf_thread_start(&thread, "mf-test", measure_stack, &alone), 0);
    pthread_join(thread, NULL);
    CHECK_OK(mf_pool_open(3, &pool, &err), err);
    for (int i = 0; i < 1000 && !sizes[1] && !sizes[2]; i++) {
        mf_pool_run(pool, 8, measure_task, sizes);
    }
    mf_pool_close(&pool);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const size_t expected = 4 * MF_THREAD_STACK_BYTES;
#else
    const size_t expected = MF_THREAD_STACK_BYTES;
#endif
    CHECK_EQ(alone, expected);
    CHECK(sizes[1] + sizes[2] > 0); /* at least one worker came awake in time */
    for (int i = 1; i < 3; i++) {
        CHECK(sizes[i] == 0 || sizes[i] == expected);
    }
}

TEST(f16_round_trips_every_code)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = mf_f16_to_f32((uint16_t)h);
        if (isnan(x)) {
            CHECK(isnan(mf_f16_to_f32(mf_f32_to_f16(x))));
        } else {
            CHECK_EQ(mf_f32_to_f16(x), h);
        }
    }
}

TEST(f16_conversion_equals_the_compiler_on_a_sweep)
{
#if defined(__FLT16_MANT_DIG__)
    for (uint64_t u = 0; u < 0x100000000u; u += 9973) {
        float x = mf_f32_from_bits((uint32_t)u);
        if (isnan(x)) {
            continue;
        }
        _Float16 h = (_Float16)x;
        uint16_t bits;
        memcpy(&bits, &h, 2);
        CHECK_EQ(mf_f32_to_f16(x), bits);
    }
#endif
}

/* The nearest e4m3fn by search over all codes, ties to the even code, saturating. */
static uint8_t nearest_e4m3(float x)
{
    double best = INFINITY;
    uint8_t code = 0;
    for (int c = 0; c < 0x7f; c++) {
        double d = fabs(fabs((double)x) - (double)mf_e4m3_to_f32((uint8_t)c));
        if (d < best || (d == best && !(c & 1))) {
            best = d;
            code = (uint8_t)c;
        }
    }
    return (uint8_t)(code | (signbit(x) ? 0x80 : 0));
}

TEST(e4m3_rounds_to_the_nearest_code)
{
    CHECK_EQ(mf_f32_to_e4m3(448.0f), 0x7e);
    CHECK_EQ(mf_f32_to_e4m3(-1e9f), 0xfe);
    CHECK_EQ(mf_f32_to_e4m3(NAN) & 0x7f, 0x7f);
    for (uint64_t u = 0x38000000u; u < 0x44000000u; u += 39979) {
        float x = mf_f32_from_bits((uint32_t)u);
        CHECK_EQ(mf_f32_to_e4m3(x), nearest_e4m3(x));
        CHECK_EQ(mf_f32_to_e4m3(-x), nearest_e4m3(-x));
    }
    for (int c = 0; c < 0x7f; c++) {
        CHECK_EQ(mf_f32_to_e4m3(mf_e4m3_to_f32((uint8_t)c)), c);
    }
}

TEST(bf16_rounds_to_nearest_even_and_keeps_nan)
{
    CHECK_EQ(mf_f32_to_bf16(1.0f), 0x3f80);
    CHECK_EQ(mf_f32_to_bf16(mf_f32_from_bits(0x3f808000)), 0x3f80); /* tie, even below */
    CHECK_EQ(mf_f32_to_bf16(mf_f32_from_bits(0x3f818000)), 0x3f82); /* tie, even above */
    CHECK(isnan(mf_bf16_to_f32(mf_f32_to_bf16(mf_f32_from_bits(0x7f800001)))));
}

TEST(buffer_stops_at_its_limit_and_keeps_its_bytes)
{
    mf_buffer b = { .limit = 10 };
    CHECK_EQ(mf_buffer_append_text(&b, "12345"), MF_OK);
    CHECK_EQ(mf_buffer_append_text(&b, "678901"), MF_ERR_LIMIT);
    CHECK_EQ(mf_buffer_printf(&b, "%d", 67890), MF_OK);
    CHECK_STR(mf_buffer_text(&b), "1234567890");
    mf_buffer_close(&b);
}

TEST(arena_gives_zeroed_aligned_memory_up_to_its_limit)
{
    mf_arena arena = { .limit_bytes = 1 << 20 };
    for (int i = 1; i < 300; i++) {
        unsigned char *p = mf_arena_alloc(&arena, (size_t)i * 7);
        CHECK(p != NULL && (uintptr_t)p % 16 == 0);
        for (int j = 0; j < i * 7; j++) {
            CHECK_EQ(p[j], 0);
        }
        memset(p, 0xff, (size_t)i * 7);
    }
    CHECK(mf_arena_alloc(&arena, 1 << 20) == NULL);
    CHECK(mf_arena_array(&arena, SIZE_MAX / 2, 3) == NULL);
    mf_arena_clear(&arena);
}

static mf_status parse(const char *text, const mf_json_limits *limits, mf_error *err)
{
    json_t *root = NULL;
    mf_status status = mf_json_parse(text, strlen(text), "t.json", limits, &root, err);
    json_decref(root);
    return status;
}

TEST(json_refuses_what_lenient_readers_accept)
{
    mf_error err = { 0 };
    CHECK_EQ(parse("{\"a\": [1, 2.5, \"x\", null, true]}", NULL, &err), MF_OK);
    CHECK_EQ(parse("{\"a\":1,\"a\":2}", NULL, &err), MF_ERR_FORMAT);
    CHECK_HAS(err.message, "t.json");
    CHECK_EQ(parse("{} x", NULL, &err), MF_ERR_FORMAT);
    CHECK_EQ(parse("\xef\xbb\xbf{}", NULL, &err), MF_ERR_FORMAT);
    CHECK_EQ(parse("{\"a\":\"\\u0000\"}", NULL, &err), MF_ERR_FORMAT);
    CHECK_EQ(parse("\"\xc3\"", NULL, &err), MF_ERR_FORMAT);
    CHECK_EQ(parse("[NaN]", NULL, &err), MF_ERR_FORMAT);
    CHECK_EQ(parse("[1]", &(mf_json_limits){ .top_is_object = true }, &err), MF_ERR_FORMAT);
}

TEST(json_strings_hold_nul_only_where_allowed_and_keys_never)
{
    mf_error err = { 0 };
    CHECK_EQ(parse("[\"a\\u0000\"]", NULL, &err), MF_ERR_FORMAT);
    CHECK_EQ(parse("[\"a\\u0000\"]", &(mf_json_limits){ .allow_nul = true }, &err), MF_OK);
    CHECK_EQ(parse("{\"a\\u0000\": 1}", &(mf_json_limits){ .allow_nul = true }, &err), MF_ERR_FORMAT);
}

TEST(json_depth_and_count_are_capped_before_parsing)
{
    mf_error err = { 0 };
    char deep[200];
    for (int depth = 63; depth <= 65; depth++) {
        memset(deep, '[', (size_t)depth);
        memset(deep + depth, ']', (size_t)depth);
        deep[2 * depth] = '\0';
        CHECK_EQ(parse(deep, NULL, &err), depth <= 64 ? MF_OK : MF_ERR_LIMIT);
    }
    CHECK_EQ(parse("[1,2,3]", &(mf_json_limits){ .max_values = 4 }, &err), MF_OK);
    CHECK_EQ(parse("[1,2,3,4]", &(mf_json_limits){ .max_values = 4 }, &err), MF_ERR_LIMIT);
    CHECK_EQ(parse("[\"[[[[\"]", &(mf_json_limits){ .max_depth = 1 }, &err), MF_OK);
}

TEST(a_directory_or_device_is_not_opened_as_a_file)
{
    mf_error err = { 0 };
    mf_file file;
    CHECK_EQ(mf_file_open("/", true, 0, &file, &err), MF_ERR_IO);
    CHECK_EQ(mf_file_open("/dev/null", true, 0, &file, &err), MF_ERR_IO);
    CHECK_HAS(err.message, "/dev/null");
}

static void count_task(void *context, int64_t task, int32_t thread)
{
    (void)thread;
    atomic_fetch_add((atomic_int *)context + task, 1);
}

TEST(pool_runs_each_task_once)
{
    enum { TASKS = 997 };
    static atomic_int counts[TASKS];
    mf_error err = { 0 };
    for (int threads = 1; threads <= 5; threads++) {
        mf_pool *pool;
        CHECK_OK(mf_pool_open(threads, &pool, &err), err);
        for (int round = 0; round < 200; round++) {
            memset(counts, 0, sizeof counts);
            int64_t n = round % 3 == 0 ? TASKS : round;
            mf_pool_run(pool, n, count_task, counts);
            for (int i = 0; i < TASKS; i++) {
                CHECK_EQ(counts[i], i < n);
            }
        }
        mf_pool_close(&pool);
    }
}
