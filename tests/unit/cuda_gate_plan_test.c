/* cuda_gate_plan_test.c - what device cuda would launch for a gate and for a router with its gate, without a GPU. */
#include <stdlib.h>

#include "kernels/cuda/plan.h"
#include "kernels/cuda/router_gate.h"
#include "test.h"

static const mf_cuda_gpu h200 = { .capability = 90, .num_multiprocessors = 132, .shared_bytes = 232448 };
static const mf_cuda_gpu a100 = { .capability = 80, .num_multiprocessors = 108, .shared_bytes = 166912 };

static mf_error err;

typedef struct gate_problem {
    mf_gate_args args;
    mf_gate_call call;
    mf_cuda_gate gate;
    mf_cuda_grid grid;
    bool memset;
} gate_problem;

static char memory[64] __attribute__((aligned(64)));

static void make_gate(gate_problem *p, int64_t tokens, int32_t width, int32_t groups, int32_t slots)
{
    memset(p, 0, sizeof *p);
    p->args.router_logits = mf_tensor_2d(memory, MF_F32, tokens, width);
    p->args.topk_ids = mf_tensor_2d(memory, MF_I32, tokens, 9);
    p->args.topk_weights = mf_tensor_2d(memory, MF_F32, tokens, 9);
    p->args.histogram = mf_tensor_1d(memory, MF_I32, slots);
    p->call = (mf_gate_call){ .cfg = MF_GATE_CONFIG_INIT, .args = &p->args, .num_tokens = tokens, .num_valid_tokens = tokens,
                              .num_columns = 9, .row_width = width };
    p->call.cfg.num_experts = width;
    p->call.cfg.top_k = 8;
    p->call.cfg.num_shared_slots = 1;
    p->call.cfg.n_group = groups;
    p->call.cfg.num_slots = slots;
}

static mf_status plan(gate_problem *p)
{
    return mf_cuda_plan_gate(&h200, &p->call, &p->gate, &p->grid, &p->memset, &err);
}

TEST(gate_holds_a_row_in_registers_up_to_1024_columns)
{
    static const int32_t widths[][2] = { { 1, 1 },    { 32, 1 },   { 33, 2 },   { 128, 4 },  { 160, 8 },
                                         { 256, 8 },  { 384, 12 }, { 512, 16 }, { 513, 32 }, { 1024, 32 },
                                         { 1025, 0 }, { 4096, 0 } };
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        gate_problem p;
        make_gate(&p, 4096, widths[i][0], 1, 300);
        CHECK_OK(plan(&p), err);
        CHECK_EQ(p.grid.values, widths[i][1]);
        CHECK(p.grid.blocks * p.grid.warps <= 4096 + p.grid.warps && p.grid.blocks >= 1);
        CHECK(p.grid.shared_bytes <= 48 * 1024);
    }
}

TEST(gate_spreads_few_rows_over_the_multiprocessors)
{
    static const int64_t tokens[] = { 1, 7, 132, 500, 4096, 65536, (int64_t)1 << 31 };
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        gate_problem p;
        make_gate(&p, tokens[i], 256, 8, 257);
        CHECK_OK(plan(&p), err);
        CHECK(p.grid.blocks <= 132 * 64);
        CHECK(p.grid.blocks * p.grid.warps >= tokens[i] || p.grid.blocks * p.grid.warps >= 132 * 32);
        CHECK(tokens[i] > 132 || p.grid.warps == 1);
    }
}

TEST(gate_with_an_unaligned_view_takes_the_general_kernel)
{
    gate_problem p;
    make_gate(&p, 5, 64, 1, 65);
    p.args.router_logits.data = memory + 1;
    CHECK_OK(plan(&p), err);
    CHECK_EQ(p.grid.values, 0);
    CHECK_EQ(p.gate.bytewise, 1);
    make_gate(&p, 5, 64, 1, 65);
    p.args.load = mf_tensor_1d(memory + 2, MF_I32, 3);
    CHECK_EQ(plan(&p), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "load: not 4-byte aligned");
}

TEST(gate_needs_a_second_launch_for_a_histogram_of_more_than_65536_slots_only)
{
    gate_problem p;
    make_gate(&p, 5, 64, 1, 65536);
    CHECK_OK(plan(&p), err);
    CHECK(!p.memset);
    make_gate(&p, 5, 64, 1, 65537);
    CHECK_OK(plan(&p), err);
    CHECK(p.memset && p.gate.counts_to_output);
}

TEST(gate_groups_of_a_power_of_two_are_found_by_a_shift)
{
    gate_problem p;
    make_gate(&p, 5, 256, 8, 257);
    CHECK_OK(plan(&p), err);
    CHECK_EQ(p.gate.group_shift, 5);
    make_gate(&p, 5, 60, 5, 61);
    CHECK_OK(plan(&p), err);
    CHECK_EQ(p.gate.group_size, 12);
    CHECK_EQ(p.gate.group_shift, -1);
}

static void make_usual_gate(gate_problem *p, int64_t tokens, int32_t width, int32_t groups)
{
    make_gate(p, tokens, width, groups, width + 1);
    p->call.cfg.scoring = MF_SCORING_SIGMOID;
    p->call.cfg.bias_domain = MF_BIAS_NONE;
    p->call.cfg.group_score = groups > 1 ? MF_GROUP_SCORE_TOP2_SUM : MF_GROUP_SCORE_UNSET;
    p->call.cfg.topk_group = groups > 1 ? 4 : 1;
    p->call.cfg.num_physical_experts = p->call.cfg.shared_base = width;
    p->call.cfg.shared_stride = 1;
}

TEST(gate_of_usual_models_has_a_warp_or_a_block_for_every_row)
{
    static const int32_t widths[] = { 64, 128, 256, 384 };
    static const int64_t tokens[] = { 1, 2, 528, 529, 4207, 4208, 4209, 65536, 1000000 };
    for (size_t w = 0; w < 4; w++) {
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
            gate_problem p;
            make_usual_gate(&p, tokens[i], widths[w], widths[w] == 256 ? 8 : 1);
            CHECK_OK(plan(&p), err);
            CHECK_EQ(p.grid.rows_width, widths[w]);
            CHECK_EQ(p.grid.starts_early, 1);
            const int64_t working = p.grid.blocks - (tokens[i] > 1); /* block 0 clears the histogram */
            if (p.grid.rows == 0) {
                CHECK_EQ(working, tokens[i]);
                CHECK_EQ(p.grid.warps * 32, widths[w]);
            } else {
                CHECK_EQ(p.grid.warps, 16);
                CHECK(p.grid.rows <= 4 && p.grid.blocks <= 2 * 132);
                CHECK(p.grid.rows > 1 || working * p.grid.warps >= tokens[i]);
            }
        }
    }
}

TEST(gate_with_something_unusual_takes_the_general_kernel)
{
    for (int what = 0; what < 9; what++) {
        gate_problem p;
        make_usual_gate(&p, 100, 256, 8);
        p.args.expert_mask.data = what == 0 ? memory : NULL;
        p.args.load.data = what == 1 || what == 8 ? memory : NULL; /* counted, but where a shared slot is an expert's */
        p.call.cfg.shared_base = what == 1 ? 255 : p.call.cfg.shared_base;
        p.args.per_expert_scale.data = what == 2 ? memory : NULL;
        p.call.cfg.ep_size = what == 3 ? 2 : 0;
        p.call.cfg.out_order = what == 4 ? MF_ORDER_ID : MF_ORDER_KEY;
        p.call.cfg.num_replicas = what == 5 ? 2 : 1;
        p.call.cfg.scoring = what == 6 ? MF_SCORING_SQRTSOFTPLUS : MF_SCORING_SIGMOID;
        p.args.router_logits.data = memory + (what == 7 ? 4 : 0); /* not 16 bytes */
        CHECK_OK(plan(&p), err);
        CHECK_EQ(p.grid.rows_width, what < 8 ? 0 : 256);
    }
}

static mf_cuda_linear router_of(int64_t experts, int64_t k)
{
    static float row[1];
    return (mf_cuda_linear){ .num = 1,
                             .w = { { .n = experts, .k = k, .row_stride = k } },
                             .out = { (float *)memory },
                             .num_tokens = 1,
                             .parts = 3,
                             .runs = k >= 3072 ? 16 : 8,
                             .norm_acc = row,
                             .norm_add = row,
                             .norm_weight = row };
}

TEST(a_router_of_whole_runs_waits_for_its_gate)
{
    static const struct {
        int64_t experts, k;
        bool is_one;
    } cases[] = { { 64, 2048, true },   { 128, 2048, true },  { 128, 4096, true },  { 256, 2048, false },
                  { 160, 2048, false }, { 128, 1024, false }, { 128, 3072, false }, { 128, 7168, false } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const mf_cuda_linear router = router_of(cases[i].experts, cases[i].k);
        CHECK_EQ(mf_cuda_is_router(&h200, &router), cases[i].is_one);
        CHECK(!mf_cuda_is_router(&a100, &router));
        CHECK(!cases[i].is_one || mf_cuda_router_shared(cases[i].experts, 2) <= h200.shared_bytes - 16 * 1024);
    }
    mf_cuda_linear router = router_of(128, 2048);
    router.parts = 1; /* a product of bf16 inputs */
    CHECK(!mf_cuda_is_router(&h200, &router));
    router.parts = 3;
    router.norm_add = NULL;
    CHECK(!mf_cuda_is_router(&h200, &router));
}

TEST(a_gate_is_its_routers_where_it_reads_just_its_logits)
{
    const mf_cuda_linear router = router_of(128, 2048);
    gate_problem p;
    make_usual_gate(&p, 1, 128, 1);
    p.args.histogram = (mf_tensor){ 0 };
    CHECK_OK(plan(&p), err);
    CHECK(mf_cuda_router_chooses(&router, &p.gate, &p.grid));
    const mf_cuda_linear smaller = router_of(64, 2048);
    CHECK(!mf_cuda_router_chooses(&smaller, &p.gate, &p.grid));
    mf_cuda_gate g = p.gate;
    g.logits = memory + 16;
    CHECK(!mf_cuda_router_chooses(&router, &g, &p.grid));
    g = p.gate;
    g.num_valid = memory;
    CHECK(!mf_cuda_router_chooses(&router, &g, &p.grid));
    g = p.gate;
    g.histogram = memory;
    CHECK(!mf_cuda_router_chooses(&router, &g, &p.grid));
    p.call.cfg.pack = 1; /* not the usual kernels' */
    p.args.packed = mf_tensor_2d(memory, MF_I32, 1, 9);
    CHECK_OK(plan(&p), err);
    CHECK(!mf_cuda_router_chooses(&router, &p.gate, &p.grid));
}
