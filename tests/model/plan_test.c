/* plan_test.c - the fusion plan: reasons, cuts, replicas, and that nothing is copied.
 *
 * The plan sees only a config and matrices, so most tests build both by hand; the last ones use whole checkpoints. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/sys.h"
#include "golden_support.h"
#include "kernels/format.h"

/* ---- a small model by hand: layer 0 dense, the others MoE ---- */

enum { LAYERS = 4, EXPERTS = 3, HIDDEN = 256, WIDTH = 128, CHUNKS = 2, SHARED = WIDTH * CHUNKS };

typedef struct fixture {
    mf_model_config *config;
    mf_weights weights;
    mf_layer_weights layers[LAYERS];
    mf_mlp_weights experts[LAYERS][EXPERTS];
    uint8_t *codes, *scales;
} fixture;

/* A matrix over the fixture's bytes; contents are random but scales are finite. */
static mf_matrix matrix(const fixture *f, mf_format format, int64_t n, int64_t k)
{
    mf_matrix m = { .data = f->codes, .n = n, .k = k, .row_stride = k, .format = format };
    if (format >= MF_FORMAT_FP8_BLOCK) {
        m.scale = f->scales;
        m.scale_dtype = format == MF_FORMAT_MXFP4 ? MF_F8_E8M0 : MF_F32;
        m.group_size = format == MF_FORMAT_INT4_GROUP ? 32 : 0;
        int64_t group = mf_matrix_group(&m);
        m.scale_row_stride = group ? (k - 1) / group + 1 : 1;
    }
    return m;
}

static mf_mlp_weights mlp(const fixture *f, mf_format format, int64_t width)
{
    return (mf_mlp_weights){ .gate = matrix(f, format, width, HIDDEN),
                             .up = matrix(f, format, width, HIDDEN),
                             .down = matrix(f, format, HIDDEN, width) };
}

static void fixture_open(fixture *f)
{
    memset(f, 0, sizeof *f);
    size_t bytes = (size_t)SHARED * HIDDEN * 4;
    f->config = mf_alloc_zero(sizeof *f->config);
    f->codes = mf_alloc(bytes);
    f->scales = mf_alloc(bytes);
    CHECK(f->config && f->codes && f->scales);
    for (size_t i = 0; i < bytes; i++) {
        f->codes[i] = (uint8_t)(i * 37 + i / 251);
    }
    for (size_t i = 0; i < bytes / 4; i++) {
        float scale = 1.0f + (float)(i % 97);
        memcpy(f->scales + 4 * i, &scale, 4);
    }
    f->config->num_layers = LAYERS;
    f->config->num_moe_layers = LAYERS - 1;
    f->config->hidden_size = HIDDEN;
    f->config->moe_intermediate_size = WIDTH;
    f->config->num_shared_experts = CHUNKS;
    f->config->gate = (mf_gate_config)MF_GATE_CONFIG_INIT;
    f->config->gate.num_experts = EXPERTS;
    f->weights.config = f->config;
    f->weights.layers = f->layers;
    for (int l = 0; l < LAYERS; l++) {
        f->config->layer_is_moe[l] = l > 0;
        f->layers[l].experts = f->experts[l];
        for (int e = 0; e < EXPERTS; e++) {
            f->experts[l][e] = mlp(f, MF_FORMAT_BF16, WIDTH);
        }
        if (l > 0) {
            f->layers[l].shared = mlp(f, MF_FORMAT_BF16, SHARED);
        } else {
            f->layers[l].dense = mlp(f, MF_FORMAT_BF16, SHARED);
        }
    }
}

static void fixture_close(fixture *f)
{
    mf_free(f->config);
    mf_free(f->codes);
    mf_free(f->scales);
}

static const mf_plan_options defaults = { .num_shared_expert_replicas = 1 };

static mf_plan *make(const fixture *f, const mf_plan_options *options)
{
    mf_error err;
    mf_plan *plan = NULL;
    CHECK_OK(mf_plan_make(f->config, &f->weights, options, &plan, &err), err);
    return plan;
}

static void check_print(const mf_plan *plan, bool all_layers, const char *expected)
{
    mf_buffer out = { 0 };
    CHECK_EQ(mf_plan_print(plan, "cpu", all_layers, &out), MF_OK);
    CHECK_STR(mf_buffer_text(&out), expected);
    mf_buffer_close(&out);
}

/* ---- decisions and their words ---- */

TEST(a_plain_model_has_every_shared_expert_in_slots)
{
    fixture f;
    fixture_open(&f);
    mf_plan *plan = make(&f, &defaults);
    check_print(plan, false, "fusion  gate fused 3/3 | shared slots: SLOT 3, OVERLAP 0, SERIAL 0 | replicas 1\n");
    check_print(plan, true,
                "fusion  gate fused 3/3 | shared slots: SLOT 3, OVERLAP 0, SERIAL 0 | replicas 1\n"
                "        layer 0: dense\n"
                "        layer 1: bf16 experts, bf16 shared expert in slots 3..4\n"
                "        layer 2: bf16 experts, bf16 shared expert in slots 3..4\n"
                "        layer 3: bf16 experts, bf16 shared expert in slots 3..4\n");
    CHECK_EQ(plan->num_warnings, 0);
    mf_plan_close(&plan);
    CHECK(plan == NULL);
    mf_plan_close(&plan);
    fixture_close(&f);
}

/* Bands are a device's: a shape that was measured, one that was not, and slots at any number of tokens by a flag. */
TEST(a_device_with_a_second_stream_says_which_bands_it_goes_by)
{
    fixture f;
    fixture_open(&f);
    mf_plan_options options = { .num_shared_expert_replicas = 1, .has_second_stream = true, .gpu = "sm_90" };
    mf_plan *plan = make(&f, &options);
    check_print(plan, false,
                "fusion  gate fused 3/3 | shared slots: SLOT 3, OVERLAP 0, SERIAL 0 | replicas 1\n"
                "        SLOT at any number of tokens (this shape was not measured)\n");
    CHECK(plan->layers[1].has_slots && !plan->layers[1].is_apart);
    mf_plan_close(&plan);
    options.disable_shared_experts_fusion = true;
    plan = make(&f, &options);
    check_print(plan, false,
                "fusion  gate fused 3/3 | shared slots: SLOT 0, OVERLAP 3, SERIAL 0 | replicas 1\n"
                "        OVERLAP at any number of tokens (this shape was not measured)\n"
                "        3 layers: shared expert separate (overlap): --disable-shared-experts-fusion\n");
    mf_plan_close(&plan);
    options = (mf_plan_options){
        .num_shared_expert_replicas = 1, .has_second_stream = true, .gpu = "sm_90", .disable_fusion_bands = true
    };
    plan = make(&f, &options);
    check_print(plan, false, "fusion  gate fused 3/3 | shared slots: SLOT 3, OVERLAP 0, SERIAL 0 | replicas 1\n");
    CHECK(plan->layers[1].bands == NULL);
    mf_plan_close(&plan);
    fixture_close(&f);
}

/* Every list ends, ascends, and has slots only where they are possible; DeepSeek-V2-Lite's is found. */
TEST(shipped_bands_are_lists_that_end)
{
    mf_band_table key = { .gpu = "sm_90",
                          .format = MF_FORMAT_BF16,
                          .hidden_size = 2048,
                          .width = 1408,
                          .num_experts = 64,
                          .top_k = 6,
                          .num_shared = 2 };
    const mf_band_table *found = mf_bands_find(&key);
    CHECK(found && found->source);
    CHECK_EQ(mf_bands_mode(found->fused, 1), MF_MODE_SLOT);
    const mf_mode_band *lists[] = { found->fused, found->apart, mf_bands_unmeasured, mf_bands_unmeasured_apart };
    for (int i = 0; i < 4; i++) {
        int n = 0;
        while (lists[i][n].max_tokens != INT64_MAX) {
            CHECK(n + 1 < MF_MAX_BANDS && lists[i][n].max_tokens < lists[i][n + 1].max_tokens);
            n++;
        }
        CHECK(i % 2 == 0 || mf_bands_mode(lists[i], 1) != MF_MODE_SLOT);
        CHECK_EQ(mf_bands_mode(lists[i], INT64_MAX), lists[i][n].mode);
    }
    key.gpu = "";
    CHECK(mf_bands_find(&key) == NULL);
}

TEST(a_shared_expert_of_another_format_is_still_in_slots)
{
    fixture f;
    fixture_open(&f);
    for (int format = 0; format < MF_FORMAT_COUNT; format++) {
        for (int e = 0; e < EXPERTS; e++) {
            f.experts[1][e] = mlp(&f, (mf_format)format, WIDTH);
            f.experts[2][e] = mlp(&f, MF_FORMAT_INT4_GROUP, WIDTH);
        }
        f.layers[2].shared = mlp(&f, (mf_format)format, SHARED);
        mf_plan *plan = make(&f, &defaults);
        CHECK_EQ(plan->num_slot, 3);
        CHECK_EQ(plan->layers[1].routed_format, format);
        CHECK_EQ(plan->layers[1].shared_format, MF_FORMAT_BF16);
        CHECK_EQ(plan->layers[2].shared_format, format);
        mf_plan_close(&plan);
    }
    fixture_close(&f);
}

TEST(a_shared_expert_of_another_format_is_apart_where_the_device_wants_one_format_a_table)
{
    fixture f;
    fixture_open(&f);
    for (int e = 0; e < EXPERTS; e++) {
        f.experts[2][e] = mlp(&f, MF_FORMAT_INT4_GROUP, WIDTH);
    }
    mf_plan_options options = defaults;
    options.one_format_a_table = true;
    mf_plan *plan = make(&f, &options);
    check_print(plan, false,
                "fusion  gate fused 3/3 | shared slots: SLOT 2, OVERLAP 0, SERIAL 1 | replicas 1\n"
                "        layer 2: shared expert separate (serial): it is bf16, the routed experts are int4_group: the device has no "
                "kernel for both in one table\n");
    mf_plan_close(&plan);
    fixture_close(&f);
}

TEST(fp8_experts_whose_inputs_stay_wide_are_warned_of_where_that_is_slow)
{
    fixture f;
    fixture_open(&f);
    mf_plan_options options = defaults;
    options.warns_of_wide_inputs = true;
    mf_plan *plan = make(&f, &options);
    CHECK_EQ(plan->num_warnings, 0);
    mf_plan_close(&plan);
    for (int e = 0; e < EXPERTS; e++) {
        f.experts[2][e] = mlp(&f, MF_FORMAT_FP8_BLOCK, WIDTH);
    }
    plan = make(&f, &options);
    CHECK_EQ(plan->num_warnings, 1);
    CHECK_HAS(plan->warnings[0], "--act-quant w8a8");
    mf_plan_close(&plan);
    fixture_close(&f);
}

TEST(one_layer_that_differs_is_printed_with_its_first_reason)
{
    fixture f;
    fixture_open(&f);
    f.config->moe_intermediate_size = 96; /* FP8 blocks of 128 straddle the cut at 96; bf16 has no blocks */
    for (int l = 1; l < LAYERS; l++) {
        f.layers[l].shared = mlp(&f, l == 2 ? MF_FORMAT_FP8_BLOCK : MF_FORMAT_BF16, 192);
    }
    mf_plan *plan = make(&f, &defaults);
    check_print(plan, false,
                "fusion  gate fused 3/3 | shared slots: SLOT 2, OVERLAP 0, SERIAL 1 | replicas 1\n"
                "        layer 2: shared expert separate (serial): gate_proj is fp8_block [192, 256], chunks of 96 rows straddle "
                "its scale blocks of 128\n");
    CHECK_EQ(plan->layers[2].num_shared_chunks, 1); /* no cut: one wide product */
    CHECK_EQ(plan->layers[1].num_shared_chunks, 2);
    mf_plan_close(&plan);
    fixture_close(&f);
}

TEST(scale_blocks_decide_only_where_a_cut_would_split_one)
{
    struct {
        mf_format format;
        int64_t width;
        int chunks;
        const char *reason; /* NULL: in slots */
    } cases[] = {
        { MF_FORMAT_FP8_BLOCK, 128, 2, NULL },
        { MF_FORMAT_FP8_BLOCK, 96, 1, NULL }, /* one chunk is not cut */
        { MF_FORMAT_FP8_BLOCK, 64, 2, "gate_proj is fp8_block [128, 256], chunks of 64 rows straddle its scale blocks of 128" },
        { MF_FORMAT_INT4_GROUP, 64, 3, NULL },
        { MF_FORMAT_INT4_GROUP, 48, 2, "down_proj is int4_group [256, 96], chunks of 48 columns straddle its scale blocks of 32" },
        { MF_FORMAT_MXFP4, 32, 2, NULL },
        { MF_FORMAT_MXFP4, 40, 2, "down_proj is mxfp4 [256, 80], chunks of 40 columns straddle its scale blocks of 32" },
        { MF_FORMAT_FP8_CHANNEL, 40, 2, NULL },
        { MF_FORMAT_INT8_CHANNEL, 40, 2, NULL },
        { MF_FORMAT_F16, 17, 3, NULL },
        { MF_FORMAT_F32, 1, 3, NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture f;
        fixture_open(&f);
        f.config->moe_intermediate_size = cases[i].width;
        f.layers[1].shared = mlp(&f, cases[i].format, cases[i].width * cases[i].chunks);
        mf_plan *plan = make(&f, &defaults);
        CHECK_EQ(plan->layers[1].mode, cases[i].reason ? MF_MODE_SERIAL : MF_MODE_SLOT);
        CHECK_STR(plan->layers[1].reason, cases[i].reason ? cases[i].reason : "");
        CHECK_EQ(plan->layers[1].num_shared_chunks, cases[i].reason ? 1 : cases[i].chunks);
        mf_plan_close(&plan);
        fixture_close(&f);
    }
}

TEST(other_widths_and_too_many_slots_are_named)
{
    fixture f;
    fixture_open(&f);
    f.layers[1].shared.up.k = 64;
    f.config->gate.num_experts = 8180; /* only the number counts here */
    mf_plan_options options = { .num_shared_expert_replicas = 7 };
    mf_plan *plan = make(&f, &options);
    CHECK_STR(plan->layers[1].reason, "it maps 64 channels to 256, the routed experts 256 to 256");
    CHECK_STR(plan->layers[2].reason, "8180 experts and 2 x 7 shared slots exceed 8192 slots");
    mf_plan_close(&plan);
    options.num_shared_expert_replicas = 6;
    plan = make(&f, &options);
    CHECK_EQ(plan->layers[2].mode, MF_MODE_SLOT);
    mf_plan_close(&plan);
    f.config->gate.num_experts = EXPERTS;
    f.config->moe_intermediate_size = 8;
    f.layers[3].shared = mlp(&f, MF_FORMAT_BF16, 8 * 17);
    plan = make(&f, &defaults);
    CHECK_STR(plan->layers[3].reason, "17 chunks of width 8; the gate has at most 16 shared columns");
    CHECK_EQ(plan->layers[3].num_shared_chunks, 1); /* the combine, too, takes 16 addends at most */
    mf_plan_close(&plan);
    fixture_close(&f);
}

TEST(toggles_are_visible_and_unfused_layers_keep_the_chunks)
{
    fixture f;
    fixture_open(&f);
    mf_plan_options options = { .disable_shared_experts_fusion = true, .disable_fused_gate = true, .num_shared_expert_replicas = 1 };
    mf_plan *plan = make(&f, &options);
    check_print(plan, false,
                "fusion  gate fused 0/3 | shared slots: SLOT 0, OVERLAP 0, SERIAL 3 | replicas 1\n"
                "        3 layers: shared expert separate (serial): --disable-shared-experts-fusion\n");
    for (int l = 1; l < LAYERS; l++) {
        CHECK_EQ(plan->layers[l].num_shared_chunks, CHUNKS);
        CHECK(!plan->layers[l].fused_gate);
    }
    CHECK_EQ(plan->num_warnings, 0);
    mf_plan_close(&plan);
    fixture_close(&f);
}

TEST(replicas_are_1_to_64_and_say_when_they_cannot_help)
{
    fixture f;
    fixture_open(&f);
    mf_error err;
    mf_plan *plan = NULL;
    static const int32_t refused[] = { 0, -1, 65, INT32_MAX };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        mf_plan_options options = { .num_shared_expert_replicas = refused[i] };
        CHECK_EQ(mf_plan_make(f.config, &f.weights, &options, &plan, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, "--num-shared-expert-replicas: expected 1..64; got ");
        CHECK(plan == NULL);
    }
    mf_plan_options options = { .num_shared_expert_replicas = 64 };
    plan = make(&f, &options);
    check_print(plan, false, "fusion  gate fused 3/3 | shared slots: SLOT 3, OVERLAP 0, SERIAL 0 | replicas 64\n");
    CHECK_EQ(plan->num_warnings, 1);
    CHECK_HAS(plan->warnings[0], "--num-shared-expert-replicas 64: no benefit expected");
    mf_plan_close(&plan);
    options.disable_shared_experts_fusion = true;
    plan = make(&f, &options);
    CHECK_EQ(plan->num_warnings, 1);
    CHECK_STR(plan->warnings[0], "--num-shared-expert-replicas 64 has no effect: no shared expert is in slots");
    CHECK_EQ(plan->options.num_shared_expert_replicas, 1);
    mf_plan_close(&plan);
    fixture_close(&f);
}

TEST(flags_without_effect_are_warnings)
{
    fixture f;
    fixture_open(&f);
    for (int l = 1; l < LAYERS; l++) {
        memset(&f.layers[l].shared, 0, sizeof f.layers[l].shared);
    }
    mf_plan_options options = { .disable_shared_experts_fusion = true, .num_shared_expert_replicas = 2 };
    mf_plan *plan = make(&f, &options);
    check_print(plan, false, "fusion  gate fused 3/3 | shared slots: none, the model has no shared expert | replicas 1\n");
    CHECK_EQ(plan->num_warnings, 2);
    CHECK_STR(plan->warnings[0], "--disable-shared-experts-fusion has no effect: the model has no shared expert");
    CHECK_STR(plan->warnings[1], "--num-shared-expert-replicas 2 has no effect: the model has no shared expert");
    mf_plan_close(&plan);
    memset(f.config->layer_is_moe, 0, sizeof f.config->layer_is_moe);
    options = (mf_plan_options){ .disable_fused_gate = true, .num_shared_expert_replicas = 1 };
    plan = make(&f, &options);
    check_print(plan, false, "fusion  none: the model has no MoE layer\n");
    CHECK_STR(plan->warnings[0], "--disable-fused-gate has no effect: the model has no MoE layer");
    mf_plan_close(&plan);
    fixture_close(&f);
}

/* ---- the slots ---- */

/* Values of the view equal the parent's values at its offset, and its bytes are the parent's bytes. */
static void check_view(const mf_matrix *view, const mf_matrix *parent, int64_t first_row, int64_t first_column)
{
    float expected[SHARED + HIDDEN], got[SHARED + HIDDEN];
    CHECK_EQ(view->format, parent->format);
    CHECK_EQ(view->row_stride, parent->row_stride);
    int64_t bits = mf_format_bits(parent->format);
    const uint8_t *at = (const uint8_t *)parent->data + (first_row * parent->row_stride + first_column) * bits / 8;
    CHECK(view->data == (const void *)at);
    for (int64_t r = 0; r < view->n; r++) {
        mf_matrix_decode_row(parent, first_row + r, first_column, view->k, expected);
        mf_matrix_decode_row(view, r, 0, view->k, got);
        CHECK_MEM(expected, got, (size_t)view->k * sizeof(float));
    }
}

TEST(slots_are_views_of_the_stored_matrices)
{
    for (int format = 0; format < MF_FORMAT_COUNT; format++) {
        for (int separate = 0; separate < 2; separate++) {
            fixture f;
            fixture_open(&f);
            f.layers[1].shared = mlp(&f, (mf_format)format, SHARED);
            mf_plan_options options = { .disable_shared_experts_fusion = separate, .num_shared_expert_replicas = 3 };
            mf_plan *plan = make(&f, &options);
            mf_arena arena = { 0 };
            mf_error err;
            mf_slot *slots, *shared;
            int64_t num_slots, num_shared;
            CHECK_OK(mf_plan_layer_slots(plan, &f.weights, 1, &arena, &slots, &num_slots, &shared, &num_shared, &err), err);
            CHECK_EQ(num_slots, separate ? EXPERTS : EXPERTS + CHUNKS * 3);
            CHECK_EQ(num_shared, separate ? CHUNKS : 0);
            for (int e = 0; e < EXPERTS; e++) {
                CHECK_MEM(&slots[e].gate, &f.experts[1][e].gate, sizeof(mf_matrix));
                CHECK_MEM(&slots[e].up, &f.experts[1][e].up, sizeof(mf_matrix));
                CHECK_MEM(&slots[e].down, &f.experts[1][e].down, sizeof(mf_matrix));
            }
            for (int j = 0; j < CHUNKS; j++) {
                for (int r = 0; r < (separate ? 1 : 3); r++) {
                    const mf_slot *slot = separate ? &shared[j] : &slots[EXPERTS + j * 3 + r];
                    CHECK_EQ(slot->gate.n, WIDTH);
                    CHECK_EQ(slot->down.k, WIDTH);
                    check_view(&slot->gate, &f.layers[1].shared.gate, j * WIDTH, 0);
                    check_view(&slot->up, &f.layers[1].shared.up, j * WIDTH, 0);
                    check_view(&slot->down, &f.layers[1].shared.down, 0, j * WIDTH);
                }
            }
            mf_arena_clear(&arena);
            mf_plan_close(&plan);
            fixture_close(&f);
        }
    }
}

/* A slot has its own width, so a shared MLP that is no multiple of I needs no padding. */
TEST(a_last_chunk_may_be_narrower)
{
    fixture f;
    fixture_open(&f);
    f.layers[1].shared = mlp(&f, MF_FORMAT_BF16, WIDTH + 40);
    mf_plan *plan = make(&f, &defaults);
    mf_arena arena = { 0 };
    mf_error err;
    mf_slot *slots, *shared;
    int64_t num_slots, num_shared;
    CHECK_OK(mf_plan_layer_slots(plan, &f.weights, 1, &arena, &slots, &num_slots, &shared, &num_shared, &err), err);
    CHECK_EQ(num_slots, EXPERTS + 2);
    CHECK_EQ(slots[EXPERTS + 1].up.n, 40);
    CHECK_EQ(slots[EXPERTS + 1].down.k, 40);
    check_view(&slots[EXPERTS + 1].up, &f.layers[1].shared.up, WIDTH, 0);
    check_view(&slots[EXPERTS + 1].down, &f.layers[1].shared.down, 0, WIDTH);
    mf_arena_clear(&arena);
    mf_plan_close(&plan);
    fixture_close(&f);
}

/* ---- whole checkpoints ---- */

static bool inside_checkpoint(const mf_checkpoint *checkpoint, const void *data)
{
    for (int64_t i = 0; i < mf_checkpoint_num_tensors(checkpoint); i++) {
        const mf_st_tensor *tensor = mf_checkpoint_tensor(checkpoint, i);
        if ((const uint8_t *)data >= tensor->data && (const uint8_t *)data < tensor->data + tensor->bytes) {
            return true;
        }
    }
    return false;
}

static void check_matrix_inside(const mf_checkpoint *checkpoint, const mf_matrix *m)
{
    int64_t bits = mf_format_bits(m->format);
    CHECK(inside_checkpoint(checkpoint, m->data));
    CHECK(inside_checkpoint(checkpoint, (const uint8_t *)m->data + (((m->n - 1) * m->row_stride + m->k) * bits - 1) / 8));
    if (m->scale) {
        CHECK(inside_checkpoint(checkpoint, m->scale));
    }
}

TEST(every_slot_of_a_mapped_checkpoint_points_into_the_mapping)
{
    for (int i = 0; golden_names[i]; i++) {
        golden g;
        golden_open(golden_names[i], &g);
        mf_model_options options = golden_options("ref");
        options.plan.num_shared_expert_replicas = 2;
        mf_model *model = golden_model(&g, &options);
        const mf_weights *weights = mf_model_get_weights(model);
        for (int64_t l = 0; l < weights->config->num_layers; l++) {
            if (!weights->config->layer_is_moe[l] || weights->converted) { /* GPTQ and AWQ are laid out anew */
                continue;
            }
            mf_error err;
            mf_arena arena = { 0 };
            mf_slot *slots, *shared;
            int64_t num_slots, num_shared;
            CHECK_OK(mf_plan_layer_slots(mf_model_get_plan(model), weights, l, &arena, &slots, &num_slots, &shared, &num_shared,
                                         &err), err);
            for (int64_t s = 0; s < num_slots + num_shared; s++) {
                const mf_slot *slot = s < num_slots ? &slots[s] : &shared[s - num_slots];
                check_matrix_inside(weights->checkpoint, &slot->gate);
                check_matrix_inside(weights->checkpoint, &slot->up);
                check_matrix_inside(weights->checkpoint, &slot->down);
            }
            mf_arena_clear(&arena);
        }
        mf_model_close(&model);
        golden_close(&g);
    }
}

TEST(the_start_up_lines_name_model_device_memory_and_fusion)
{
    golden g;
    golden_open("v3_fp8_straddle", &g);
    mf_model_options options = golden_options("ref");
    mf_model *model = golden_model(&g, &options);
    mf_buffer out = { 0 };
    CHECK_EQ(mf_model_print_plan(model, false, &out), MF_OK);
    const char *text = mf_buffer_text(&out);
    CHECK_HAS(text, "model   deepseek_v3 \"v3_fp8_straddle\"  2 layers (1 dense, 1 MoE)  6 experts top-2 + 2 shared  ");
    CHECK_HAS(text, "\ndevice  ref  1 thread | activations f32\n");
    CHECK_HAS(text, "\nmemory  weights ");
    CHECK_HAS(text, " (mapped; fp8_block, ");
    CHECK_HAS(text, " bf16");
    CHECK_HAS(text,
              "\nfusion  gate fused 1/1 | shared slots: SLOT 0, OVERLAP 0, SERIAL 1 | replicas 1\n"
              "        1 layer: shared expert separate (serial): gate_proj is fp8_block [144, 32], chunks of 72 rows straddle its "
              "scale blocks of 128\n");
    mf_buffer_close(&out);
    mf_model_close(&model);
    golden_close(&g);
}

/* smaps_rollup counts pages; statm's counters are spread over the CPUs and may be tens of pages behind. */
static int64_t resident_pages(void)
{
    char line[128];
    long long kilobytes = -1;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    CHECK(f != NULL);
    while (kilobytes < 0 && fgets(line, sizeof line, f)) {
        sscanf(line, "Rss: %lld", &kilobytes);
    }
    fclose(f);
    CHECK(kilobytes > 0);
    return kilobytes / 4;
}

/* Pages that opening a model and one forward call add, in a process of its own so that nothing is left over. */
static int64_t pages_of(const golden *g, const mf_plan_options *plan)
{
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        mf_model_options options = golden_options("ref");
        options.plan = *plan;
        options.use_map = false; /* every byte of the weights is resident */
        options.max_batch_tokens = 1;
        int64_t before = resident_pages();
        mf_model *model = golden_model(g, &options);
        float *logits = golden_logits(g, 1);
        golden_run(model, g->ids, 1, 1, logits, NULL, NULL);
        int64_t pages = resident_pages() - before;
        _exit(write(ends[1], &pages, sizeof pages) == sizeof pages ? 0 : 1);
    }
    int64_t pages = -1;
    int status = 0;
    close(ends[1]); /* a child that dies ends the read */
    CHECK_EQ(read(ends[0], &pages, sizeof pages), sizeof pages);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    close(ends[0]);
    return pages;
}

/* v2_lite: its shared experts hold 36 kB, 9 pages; 64 copies of them would be 576 pages.  The slot tables grow by a few. */
TEST(fusion_and_replicas_cost_no_memory)
{
    golden g;
    golden_open("v2_lite", &g);
    mf_plan_options separate = { .disable_shared_experts_fusion = true, .num_shared_expert_replicas = 1 };
    mf_plan_options fused = { .num_shared_expert_replicas = 1 };
    mf_plan_options replicas = { .num_shared_expert_replicas = 64 };
    int64_t pages_separate = pages_of(&g, &separate), pages_fused = pages_of(&g, &fused), pages_replicas = pages_of(&g, &replicas);
    if (getenv("MOEFUSE_TEST_VERBOSE")) {
        printf("resident pages: separate %lld, fused %lld, 64 replicas %lld\n", (long long)pages_separate, (long long)pages_fused,
               (long long)pages_replicas);
    }
    CHECK(pages_separate > 60); /* the weights are 300 kB */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const int64_t noise = 64; /* shadow memory comes and goes with every block */
#else
    const int64_t noise = 8;
#endif
    CHECK(llabs(pages_fused - pages_separate) <= noise);
    CHECK(pages_replicas - pages_fused <= 56 + noise); /* 2 layers x 128 slots of 450 bytes are 28 pages, and again while made */
    golden_close(&g);
}
