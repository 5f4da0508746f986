/* bench_test.c - what `moefuse bench kernels` measures with: the ids it draws, the weights it makes, what it divides
 * by. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/bench/bench_parts.h"

static const mf_bench_shape *shape_named(const char *name)
{
    for (size_t i = 0; i < mf_bench_num_shapes; i++) {
        if (strcmp(mf_bench_shapes[i].name, name) == 0) {
            return &mf_bench_shapes[i];
        }
    }
    return NULL;
}

static mf_bench_run *new_run(mf_bench_options *options, const char *shape)
{
    mf_bench_run *run = mf_alloc_zero(sizeof *run);
    *run = (mf_bench_run){ .options = options, .shape = shape_named(shape), .act_dtype = MF_BF16, .seed = 1 };
    CHECK(run->shape != NULL);
    return run;
}

TEST(a_row_of_ids_has_no_id_twice_and_ends_with_the_shared_experts)
{
    enum { TOKENS = 200 };
    mf_bench_options options = MF_BENCH_OPTIONS_INIT;
    const char *const routings[] = { "uniform", "skewed" };
    for (size_t s = 0; s < mf_bench_num_shapes; s++) {
        for (int r = 0; r < 2; r++) {
            options.routing = routings[r];
            mf_bench_run *run = new_run(&options, mf_bench_shapes[s].name);
            const int64_t columns = run->shape->top_k + run->shape->shared,
                          slots = run->shape->experts + run->shape->shared;
            int32_t *ids = mf_alloc_array((size_t)(TOKENS * columns), sizeof *ids);
            uint8_t *used = mf_alloc_zero((size_t)slots), *seen = mf_alloc_zero((size_t)slots);
            int64_t distinct = mf_bench_draw_ids(run, TOKENS, ids, used), count = 0;
            for (int64_t t = 0; t < TOKENS; t++) {
                for (int64_t c = 0; c < columns; c++) {
                    int32_t id = ids[t * columns + c];
                    if (c < run->shape->top_k) {
                        CHECK(id >= 0 && id < run->shape->experts);
                    } else {
                        CHECK_EQ(id, run->shape->experts + c - run->shape->top_k);
                    }
                    for (int64_t k = 0; k < c; k++) {
                        CHECK(ids[t * columns + k] != id);
                    }
                    count += !seen[id];
                    seen[id] = 1;
                }
            }
            CHECK_EQ(distinct, count);
            mf_free(ids);
            mf_free(used);
            mf_free(seen);
            mf_free(run);
        }
    }
}

/* Zipf's law over 128: the first expert is wanted by 1 / H(128) = 18 % of the draws, where uniform routing gives 0.8 %.
 */
TEST(skewed_routing_prefers_few_experts)
{
    enum { TOKENS = 500 };
    mf_bench_options options = MF_BENCH_OPTIONS_INIT;
    options.routing = "skewed";
    mf_bench_run *run = new_run(&options, "qwen3-30b");
    static int32_t ids[TOKENS * 8];
    uint8_t used[128];
    int32_t counts[128] = { 0 }, most = 0;
    mf_bench_draw_ids(run, TOKENS, ids, used);
    for (int i = 0; i < TOKENS * 8; i++) {
        counts[ids[i]]++;
        most = counts[ids[i]] > most ? counts[ids[i]] : most;
    }
    CHECK(most > TOKENS / 2); /* in most rows, for a row holds an expert once */
    mf_free(run);
}

TEST(matrices_of_every_format_are_valid_finite_and_inside_their_room)
{
    const int64_t n = 130, k = 260; /* scale blocks that do not divide the sizes */
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        mf_error err = { 0 };
        mf_bench_block block;
        size_t room = mf_bench_matrix_room((mf_format)f, 64, n, k);
        CHECK_EQ(mf_bench_block_open(&block, NULL, room, MF_BENCH_PAGES_HUGE, &err), MF_OK);
        mf_matrix m;
        CHECK_EQ(mf_bench_make_matrix(&block, (mf_format)f, 64, n, k, &m, &err), MF_OK);
        CHECK_EQ(mf_matrix_check(&m, "w", &err), MF_OK);
        CHECK(block.used <= room);
        float row[260];
        double largest = 0;
        for (int64_t r = 0; r < n; r++) {
            mf_matrix_decode_row(&m, r, 0, k, row);
            for (int64_t i = 0; i < k; i++) {
                CHECK(isfinite(row[i]));
                largest = fabs(row[i]) > largest ? fabs(row[i]) : largest;
            }
        }
        CHECK(largest > 0 && largest < 1e3);
        mf_bench_block_close(&block);
    }
}

TEST(a_block_gives_aligned_pieces_until_it_is_full)
{
    mf_error err = { 0 };
    mf_bench_block block;
    CHECK_EQ(mf_bench_block_open(&block, NULL, 1, MF_BENCH_PAGES_SMALL, &err), MF_OK);
    CHECK((uintptr_t)block.data % 64 == 0);
    uint8_t *a = mf_bench_block_take(&block, 1), *b = mf_bench_block_take(&block, 65);
    CHECK(b == a + 64);
    CHECK(mf_bench_block_take(&block, block.bytes) == NULL);
    CHECK(mf_bench_block_take(&block, block.bytes - 192) == b + 128);
    CHECK(mf_bench_block_take(&block, 1) == NULL);
    mf_bench_block_close(&block);
    CHECK(block.data == NULL);
    CHECK_EQ(mf_bench_block_open(&block, NULL, SIZE_MAX, MF_BENCH_PAGES_HUGE, &err), MF_ERR_NOMEM);
}

/* 1 us, 20,000 bytes, 30,000 operations: 20 GB/s and 30 GFLOP/s. */
TEST(a_share_is_of_the_ceiling_that_binds)
{
    mf_bench_run run = { .read_ceiling = 40,
                         .rate = { [MF_RATE_F32] = 100, [MF_RATE_BF16] = 300, [MF_RATE_INT8] = 60 } };
    mf_bench_row row = { .us = 1, .tokens = 64 };
    mf_bench_set_rates(&run, &row, 20000, 30000, MF_RATE_BF16);
    CHECK(row.gb_per_s == 20 && row.gflops == 30 && row.share == 0.5 && row.ceiling == 40);
    CHECK_STR(row.ceiling_unit, "GB/s");
    mf_bench_set_rates(&run, &row, 20000, 210000, MF_RATE_BF16);
    CHECK(row.share == 0.7 && row.ceiling == 300);
    CHECK_STR(row.ceiling_unit, "GFLOP/s");
    mf_bench_set_rates(&run, &row, 2000, 30000, MF_RATE_INT8); /* no int8 instruction to speak of: f32's rate holds */
    CHECK(row.share == 0.3 && row.ceiling == 100);
    CHECK_STR(row.ceiling_unit, "GOP/s");
    mf_bench_set_rates(&run, &row, 0, 30000, MF_RATE_F32); /* nothing read */
    CHECK(row.share == 0.3 && row.ceiling == 100);
}

TEST(a_level_that_is_used_is_available_and_has_loops)
{
    mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t count = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS);
    CHECK(count >= 1);
    CHECK_STR(levels[0].name, "c");
    for (int32_t i = 0; i < count; i++) {
        CHECK(!levels[i].is_used || levels[i].is_available);
        CHECK(levels[i].is_used == (levels[i].reason[0] == '\0'));
        const mf_rates *rates = mf_bench_rates_of(levels[i].name);
        for (int kind = 0; levels[i].is_available && rates && kind < MF_RATE_COUNT; kind++) {
            if (rates->rate[kind]) { /* twice the rounds, twice the operations */
                CHECK(rates->rate[kind](200) > 0);
                CHECK(rates->rate[kind](400) == 2 * rates->rate[kind](200));
            }
        }
        if (levels[i].is_available && rates && rates->read) {
            _Alignas(64) uint64_t data[128] = { 0 };
            CHECK(rates->read(data, sizeof data, 0) == 0);
        }
    }
}

/* ---- a run from options to rows ---- */

static int32_t num_rows;

static void count_row(void *context, const mf_bench_row *row)
{
    (void)context;
    CHECK(row->us > 0 && row->us_min <= row->us && row->us_p10 <= row->us_p90);
    num_rows++;
}

static const mf_bench_sink counting = { count_row, NULL, NULL };

static mf_bench_options tiny_run(void)
{
    mf_bench_options options = MF_BENCH_OPTIONS_INIT;
    options.shapes = "tiny";
    options.tokens = "1";
    options.threads = 1;
    options.repeats = 1;
    options.seconds = 0;
    return options;
}

TEST(a_layer_with_a_shared_expert_gives_a_row_per_mode)
{
    mf_bench_options options = tiny_run();
    options.ops = "layer";
    mf_error err = { 0 };
    num_rows = 0;
    CHECK_EQ(mf_bench_kernels(&options, &counting, &err), MF_OK);
    CHECK_EQ(num_rows, 2);
}

static int64_t allocations_left;

static void *alloc_until_none_is_left(size_t bytes)
{
    return allocations_left-- > 0 ? malloc(bytes) : NULL;
}

static mf_status run_points(mf_bench_run *run, mf_error *err)
{
    mf_bench_layers layers;
    mf_status status;
    MF_TRY_GOTO(mf_bench_layers_open(run, &layers, err), done);
    MF_TRY_GOTO(mf_bench_experts(run, &layers, 2, err), done);
    MF_TRY_GOTO(mf_bench_layer(run, &layers, 2, err), done);
    MF_TRY_GOTO(mf_bench_gate(run, 2, err), done);
    MF_TRY_GOTO(mf_bench_align(run, 2, err), done);
    MF_TRY_GOTO(mf_bench_sum_reduce(run, 2, err), done);
    MF_TRY_GOTO(mf_bench_linear(run, false, 2, err), done);
    MF_TRY_GOTO(mf_bench_attention(run, 2, false, err), done);
    MF_TRY_GOTO(mf_bench_attention(run, 2, true, err), done);
done:
    mf_bench_layers_close(&layers);
    return status;
}

TEST(each_allocation_that_fails_ends_the_run_with_a_message)
{
    mf_bench_options options = tiny_run();
    options.context = 16;
    mf_bench_run *run = new_run(&options, "tiny");
    run->sink = &counting;
    run->format = MF_FORMAT_INT4_GROUP;
    run->level = "c";
    mf_device_options one = { .num_threads = 1 };
    mf_error err = { 0 };
    CHECK_EQ(mf_device_open("cpu", &one, &run->device, &err), MF_OK);
    const mf_sys saved = mf_sys_table;
    mf_status status = MF_ERR_NOMEM;
    int64_t k = 0;
    for (; status != MF_OK && k < 5000; k++) {
        memset(&err, 0, sizeof err);
        allocations_left = k;
        mf_sys_table.alloc = alloc_until_none_is_left;
        status = run_points(run, &err);
        mf_sys_table = saved;
        CHECK(status == MF_OK || (status == MF_ERR_NOMEM && err.message[0]));
    }
    CHECK_EQ(status, MF_OK);
    CHECK(k > 40);
    mf_device_close(&run->device);
    mf_free(run);
}
