/* cuda_plan_test.c - what device cuda would launch, without a GPU: grids, paths, workspaces, refusals; and that asking for
 * it where it cannot be had is an error with text. */
#include <stdlib.h>

#include "kernels/align_chunks.h"
#include "kernels/cuda/packed_few4.h"
#include "kernels/cuda/plan.h"
#include "kernels/quantise.h"
#include "test.h"

static const mf_cuda_gpu h200 = { .capability = 90, .num_multiprocessors = 132, .shared_bytes = 232448 };
static const mf_cuda_gpu a100 = { .capability = 80, .num_multiprocessors = 108, .shared_bytes = 166912 };

static mf_error err;

static char memory[64] __attribute__((aligned(64)));

/* ---- align ---- */

static mf_cuda_align plan_align(const mf_cuda_gpu *gpu, int64_t tokens, int64_t slots)
{
    mf_align_args args = { .topk_ids = mf_tensor_2d(memory, MF_I32, tokens, 9) };
    mf_align_call call = { .args = &args, .num_tokens = tokens, .num_columns = 9, .block_size = 64, .num_slots = slots };
    mf_cuda_align out;
    call.capacity = mf_moe_align_capacity(tokens, 9, 64, slots);
    CHECK_OK(mf_cuda_plan_align(gpu, &call, &out, &err), err);
    return out;
}

TEST(align_is_one_launch_where_its_tables_fit_and_two_else)
{
    static const int64_t tokens[] = { 0, 1, 64, 113, 114, 455, 456, 4096, 8192, 9102, 9103, 200000000 };
    static const int64_t slots[] = { 1, 257, 1024, 1025, 8192, 13824 };
    const mf_cuda_gpu *gpus[] = { &h200, &a100 };
    for (size_t t = 0; t < sizeof tokens / sizeof tokens[0]; t++) {
        for (size_t s = 0; s < sizeof slots / sizeof slots[0]; s++) {
            for (size_t g = 0; g < 2; g++) {
                const mf_cuda_align a = plan_align(gpus[g], tokens[t], slots[s]);
                const bool hopper = gpus[g] == &h200;
                CHECK_EQ(a.chunks == 1, tokens[t] * 9 <= 4096);
                CHECK(a.chunks * a.chunk >= a.num_pairs && a.warps >= 1 && a.warps <= 32);
                CHECK((2 + a.warps) * slots[s] * 4 + 1024 <= gpus[g]->shared_bytes);
                /* A block of a cluster counts up to 5,120 pairs of 257 slots, 512 of 1,024. */
                const int64_t most = slots[s] <= 257 ? (hopper ? 81920 : 4096) : (hopper ? 8192 : 1024);
                CHECK_EQ(a.once_blocks > 0, tokens[t] * 9 <= most && slots[s] <= 1024);
                CHECK_EQ(a.once_blocks > 0 && a.run > 0, hopper && tokens[t] * 9 > 1024 && a.once_blocks > 0);
                if (a.once_blocks > 0 && a.run > 0) {
                    CHECK(a.run % 32 == 0 && a.run <= 5120 && a.run * a.shares >= a.num_pairs);
                    CHECK(a.shares == (tokens[t] * 9 <= 4096 ? 8 : 16) && a.once_blocks % a.shares == 0);
                } else if (a.once_blocks > 0) {
                    CHECK(a.slice % 4 == 0 && a.capacity <= (int64_t)a.slice * a.once_blocks);
                }
            }
        }
    }
    const mf_cuda_gpu part = { .capability = 90, .num_multiprocessors = 16, .shared_bytes = 232448 };
    CHECK_EQ(plan_align(&part, 1024, 257).shares, 8); /* a part of a GPU may have no 16 neighbours */
}

TEST(align_refuses_more_slots_than_shared_memory_holds)
{
    const int64_t most[] = { 16384, 13824 };
    const mf_cuda_gpu *gpus[] = { &h200, &a100 };
    for (int g = 0; g < 2; g++) {
        mf_align_args args = { .topk_ids = mf_tensor_2d(memory, MF_I32, 3, 9) };
        mf_align_call call = { .args = &args, .num_tokens = 3, .num_columns = 9, .block_size = 64, .num_slots = most[g] };
        mf_cuda_align out;
        CHECK_OK(mf_cuda_plan_align(gpus[g], &call, &out, &err), err);
        call.num_slots++;
        CHECK_EQ(mf_cuda_plan_align(gpus[g], &call, &out, &err), MF_ERR_UNSUPPORTED);
        CHECK_HAS(err.message, "num_slots");
    }
}

TEST(align_workspace_holds_a_count_per_slot_and_chunk)
{
    static const int64_t tokens[] = { 1, 455, 456, 8192, 238609294 };
    for (size_t t = 0; t < 5; t++) {
        mf_cuda_align a = plan_align(&h200, tokens[t], 257);
        mf_align_args args = { .topk_ids = mf_tensor_2d(memory, MF_I32, tokens[t], 9), .num_slots = 257 };
        CHECK(mf_moe_align_workspace_bytes(&args) >= (size_t)a.chunks * 257 * 4);
    }
    CHECK_EQ(mf_align_chunks(4096, 5), 1);
    CHECK_EQ(mf_align_chunks(4097, 5), 2);
    CHECK_EQ(mf_align_chunks(INT32_MAX, 16384), 64);
}

/* ---- combine ---- */

TEST(combine_takes_16_bytes_a_thread_where_every_row_allows_it)
{
    mf_sum_reduce_args args = { .x = mf_tensor_3d(memory, MF_BF16, 3, 2, 64), .routed_scaling_factor = 1,
                                .out = mf_tensor_2d(memory, MF_F32, 3, 64) };
    mf_sum_reduce_call call = { .args = &args, .num_tokens = 3, .num_columns = 2, .hidden_size = 64 };
    mf_cuda_sum sum;
    CHECK_OK(mf_cuda_plan_sum(&h200, &call, true, &sum, &err), err);
    CHECK_EQ(sum.vector, 8);
    CHECK_EQ(sum.narrow, 1);
    call.num_tokens = 100000;
    CHECK_OK(mf_cuda_plan_sum(&h200, &call, true, &sum, &err), err);
    CHECK_EQ(sum.narrow, 0);
    call.num_tokens = 3;
    args.x.stride[0] += 4; /* 8 bytes */
    CHECK_OK(mf_cuda_plan_sum(&h200, &call, true, &sum, &err), err);
    CHECK_EQ(sum.vector, 1);
    CHECK_EQ(sum.bytewise, 0);
    args.x.stride[0] += 4;
    args.out.data = memory + 1;
    CHECK_OK(mf_cuda_plan_sum(&h200, &call, true, &sum, &err), err);
    CHECK_EQ(sum.vector, 1);
    CHECK_EQ(sum.bytewise, 1);
    args.num_addends = MF_CUDA_MAX_ADDENDS + 1;
    CHECK_EQ(mf_cuda_plan_sum(&h200, &call, true, &sum, &err), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "num_addends 17");
}

/* ---- experts ---- */

static mf_slot slot_of(mf_format format, int64_t hidden, int64_t width)
{
    mf_matrix up = { .data = memory, .n = width, .k = hidden, .row_stride = hidden, .format = format };
    up.scale = format >= MF_FORMAT_FP8_BLOCK ? memory : NULL;
    mf_matrix down = up;
    down.n = hidden;
    down.k = down.row_stride = width;
    return (mf_slot){ .gate = up, .up = up, .down = down };
}

static mf_cuda_slot planned(const mf_cuda_gpu *gpu, mf_slot slot, mf_dtype act_dtype, mf_act_quant act_quant)
{
    mf_experts experts = { .hidden_size = slot.up.k, .act_dtype = act_dtype, .act_quant = act_quant };
    mf_cuda_slot out;
    mf_cuda_plan_slot(gpu, &experts, &slot, &out);
    return out;
}

TEST(a_slots_path_follows_its_format_sizes_and_alignment)
{
    const mf_act_quant none = MF_ACT_QUANT_NONE, w8a8 = MF_ACT_QUANT_W8A8;
    mf_slot bf16 = slot_of(MF_FORMAT_BF16, 2048, 768), fp8 = slot_of(MF_FORMAT_FP8_BLOCK, 7168, 256);
    CHECK_EQ(planned(&h200, bf16, MF_BF16, none).path13, MF_CUDA_PATH_BF16);
    CHECK_EQ(planned(&a100, bf16, MF_BF16, none).path2, MF_CUDA_PATH_BF16);
    CHECK_EQ(planned(&h200, bf16, MF_F32, none).path13, MF_CUDA_PATH_PLAIN); /* f32 inputs keep f32 products */
    CHECK_EQ(planned(&h200, fp8, MF_BF16, w8a8).path13, MF_CUDA_PATH_FP8);
    CHECK_EQ(planned(&h200, fp8, MF_F16, w8a8).path2, MF_CUDA_PATH_FP8);
    CHECK_EQ(planned(&a100, fp8, MF_BF16, w8a8).path13, MF_CUDA_PATH_PLAIN); /* no e4m3 instruction */
    CHECK_EQ(planned(&h200, fp8, MF_BF16, none).path13, MF_CUDA_PATH_PLAIN); /* weight only */
    CHECK_EQ(planned(&h200, slot_of(MF_FORMAT_BF16, 2048, 100), MF_BF16, none).path13, MF_CUDA_PATH_PLAIN);
    CHECK_EQ(planned(&h200, slot_of(MF_FORMAT_FP8_BLOCK, 7168, 192), MF_BF16, w8a8).path13, MF_CUDA_PATH_PLAIN);
    CHECK_EQ(planned(&h200, slot_of(MF_FORMAT_INT4_GROUP, 2048, 768), MF_BF16, none).path13, MF_CUDA_PATH_PLAIN);
    bf16.down.data = memory + 2;
    CHECK_EQ(planned(&h200, bf16, MF_BF16, none).path13, MF_CUDA_PATH_BF16);
    CHECK_EQ(planned(&h200, bf16, MF_BF16, none).path2, MF_CUDA_PATH_PLAIN);
    bf16.gate.row_stride += 1;
    CHECK_EQ(planned(&h200, bf16, MF_BF16, none).path13, MF_CUDA_PATH_PLAIN);
}

typedef struct experts_problem {
    mf_experts experts;
    mf_cuda_paths paths;
    mf_experts_args args;
    mf_experts_call call;
    mf_cuda_experts_plan plan;
} experts_problem;

static void make_experts(experts_problem *p, int64_t slots, mf_cuda_path path, int64_t tokens, void *workspace)
{
    memset(p, 0, sizeof *p);
    p->experts = (mf_experts){ .num_slots = slots, .hidden_size = 2048, .max_intermediate_size = 768, .act_dtype = MF_BF16 };
    p->paths = (mf_cuda_paths){ 1u << path, 1u << path };
    p->paths.codes = path == MF_CUDA_PATH_FP8 ? MF_CUDA_CODES_FP8_BLOCK : MF_CUDA_CODES_NONE;
    p->args = (mf_experts_args){ .experts = &p->experts, .x = mf_tensor_2d(memory, MF_BF16, tokens, 2048),
                                 .topk_ids = mf_tensor_2d(memory, MF_I32, tokens, 8),
                                 .y = mf_tensor_3d(memory, MF_BF16, tokens, 8, 2048) };
    p->call = (mf_experts_call){ .experts = &p->experts, .args = &p->args, .num_tokens = tokens, .num_columns = 8,
                                 .workspace = workspace };
}

TEST(few_pairs_are_not_sorted_and_end_with_the_combine)
{
    experts_problem p;
    make_experts(&p, 128, MF_CUDA_PATH_BF16, 16, memory);
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK(p.plan.is_few && p.plan.is_combined && !p.plan.sorts);
    make_experts(&p, 128, MF_CUDA_PATH_BF16, 17, memory);
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK(!p.plan.is_few && !p.plan.is_combined && p.plan.sorts);
    CHECK_EQ(p.plan.call.tile_tokens, 32);
    make_experts(&p, 128, MF_CUDA_PATH_BF16, 8192, memory);
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK_EQ(p.plan.call.tile_tokens, 128);
    CHECK_EQ(p.plan.align.block_size, 128);
    CHECK(p.plan.call.num_blocks * 128 == p.plan.align.capacity);
    p.paths.w2 |= 1u << MF_CUDA_PATH_PLAIN; /* mixed: y goes through memory */
    make_experts(&p, 128, MF_CUDA_PATH_BF16, 1, memory);
    p.paths.w2 |= 1u << MF_CUDA_PATH_PLAIN;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK(p.plan.is_few && !p.plan.is_combined && p.plan.y);
}

TEST(an_x_that_is_not_aligned_to_16_bytes_is_copied_for_the_tensor_cores)
{
    experts_problem p;
    make_experts(&p, 128, MF_CUDA_PATH_BF16, 3, memory);
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, false, MF_BF16, &p.plan, &err), err);
    CHECK(!p.plan.copies_x);
    p.args.x.stride[0] += 1;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, false, MF_BF16, &p.plan, &err), err);
    CHECK(p.plan.copies_x && p.plan.x_copy);
}

TEST(fewer_tokens_never_need_more_workspace)
{
    for (int path = MF_CUDA_PATH_PLAIN; path < MF_CUDA_PATH_COUNT; path++) {
        experts_problem p;
        size_t before = 0;
        make_experts(&p, 128, (mf_cuda_path)path, 1, NULL);
        for (int64_t t = 1; t < 3000; t += 1 + t / 9) {
            size_t bytes = mf_cuda_experts_bytes(&p.experts, &p.paths, t, 8);
            CHECK(bytes >= before);
            before = bytes;
        }
        CHECK(mf_cuda_experts_bytes(&p.experts, &p.paths, (int64_t)1 << 61, 8) == SIZE_MAX);
    }
}

/* ---- both products in one launch, on Hopper ---- */

static bool is_grouped(const mf_cuda_gpu *gpu, mf_slot slot, mf_dtype act_dtype, mf_act_quant act_quant, int64_t slots)
{
    mf_experts experts = { .num_slots = slots, .hidden_size = slot.up.k, .act_dtype = act_dtype, .act_quant = act_quant };
    mf_cuda_slot *all = calloc((size_t)slots, sizeof *all);
    for (int64_t s = 0; s < slots; s++) {
        mf_cuda_plan_slot(gpu, &experts, &slot, &all[s]);
    }
    int32_t codes;
    const bool is = mf_cuda_is_grouped(gpu, &experts, all, &codes);
    free(all);
    return is;
}

TEST(hopper_groups_the_products_of_plain_swiglu_tables)
{
    const mf_act_quant none = MF_ACT_QUANT_NONE, w8a8 = MF_ACT_QUANT_W8A8;
    mf_slot bf16 = slot_of(MF_FORMAT_BF16, 2048, 768), fp8 = slot_of(MF_FORMAT_FP8_BLOCK, 7168, 256);
    CHECK(is_grouped(&h200, bf16, MF_BF16, none, 128) && is_grouped(&h200, fp8, MF_BF16, w8a8, 257));
    CHECK(!is_grouped(&a100, bf16, MF_BF16, none, 128)); /* no wgmma */
    CHECK(!is_grouped(&h200, bf16, MF_F32, none, 128));
    CHECK(!is_grouped(&h200, fp8, MF_BF16, none, 257));
    CHECK(!is_grouped(&h200, bf16, MF_BF16, none, MF_CUDA_GROUPED_SLOTS + 1));
    mf_slot other = bf16;
    other.activation = MF_ACT_GELU_TANH;
    CHECK(!is_grouped(&h200, other, MF_BF16, none, 8));
    other = bf16;
    other.activation = MF_ACT_SWIGLU_OAI;
    CHECK(is_grouped(&h200, other, MF_BF16, none, 8));
    other = bf16;
    other.gate.data = NULL;
    CHECK(!is_grouped(&h200, other, MF_BF16, none, 8));
    other = fp8;
    other.up.scale_dtype = MF_BF16;
    CHECK(!is_grouped(&h200, other, MF_BF16, w8a8, 8));
}

static int32_t codes_of(mf_slot slot, mf_slot last, mf_act_quant act_quant)
{
    mf_experts experts = { .num_slots = 3, .hidden_size = slot.up.k, .act_dtype = MF_BF16, .act_quant = act_quant };
    mf_cuda_slot all[3];
    for (int s = 0; s < 3; s++) {
        mf_cuda_plan_slot(&h200, &experts, s == 2 ? &last : &slot, &all[s]);
    }
    int32_t codes;
    return mf_cuda_is_grouped(&h200, &experts, all, &codes) ? codes : -1;
}

TEST(hopper_multiplies_codes_with_a_scale_a_row_as_they_are_where_tokens_have_one_too)
{
    const mf_act_quant none = MF_ACT_QUANT_NONE, w8a8 = MF_ACT_QUANT_W8A8, int8 = MF_ACT_QUANT_INT8;
    const mf_slot fp8 = slot_of(MF_FORMAT_FP8_CHANNEL, 2048, 768), bytes = slot_of(MF_FORMAT_INT8_CHANNEL, 4096, 1408);
    CHECK_EQ(codes_of(fp8, fp8, w8a8), MF_CUDA_CODES_FP8_ROW);
    CHECK_EQ(codes_of(bytes, bytes, w8a8), MF_CUDA_CODES_INT8_ROW);
    CHECK_EQ(codes_of(bytes, bytes, int8), MF_CUDA_CODES_INT8_ROW);
    CHECK_EQ(codes_of(fp8, fp8, none), -1);
    CHECK_EQ(codes_of(fp8, fp8, int8), -1);
    CHECK_EQ(codes_of(fp8, slot_of(MF_FORMAT_INT8_CHANNEL, 2048, 768), w8a8), -1);
    CHECK_EQ(codes_of(fp8, slot_of(MF_FORMAT_FP8_CHANNEL, 2048, 256), w8a8), MF_CUDA_CODES_FP8_ROW); /* a width of its own */
    CHECK_EQ(codes_of(fp8, slot_of(MF_FORMAT_FP8_CHANNEL, 2048, 784), w8a8), -1);
    for (int what = 0; what < 7; what++) { /* whose codes are widened, or computed one by one */
        mf_slot other = fp8;
        other.down.data = memory + (what == 0 ? 8 : 0);
        other.gate.row_stride += what == 1 ? 8 : 0;
        other.activation = what == 2 ? MF_ACT_GELU_ERF : MF_ACT_SILU;
        other.up.scale_dtype = what == 3 ? MF_F16 : MF_BF16;
        other.down.scale = (const uint8_t *)other.down.scale + (what == 4);
        other.input_scale2 = what == 5 ? 0.5f : 0.0f;
        other.gate.data = what == 6 ? NULL : other.gate.data;
        CHECK_EQ(codes_of(fp8, other, w8a8), -1);
    }
}

static mf_slot packed_slot(mf_format format, int64_t hidden, int64_t width)
{
    mf_slot slot = slot_of(format, hidden, width);
    mf_matrix *const all[] = { &slot.gate, &slot.up, &slot.down };
    for (int i = 0; i < 3; i++) {
        all[i]->scale_dtype = format == MF_FORMAT_MXFP4 ? MF_F8_E8M0 : MF_BF16;
        all[i]->group_size = 32;
        all[i]->scale_row_stride = all[i]->k / 32;
    }
    return slot;
}

static mf_cuda_packed packed(const mf_cuda_gpu *gpu, mf_slot slot, mf_slot other, mf_dtype act_dtype, mf_act_quant act_quant)
{
    mf_experts experts = { .num_slots = 2, .hidden_size = slot.up.k, .act_dtype = act_dtype, .act_quant = act_quant };
    mf_cuda_slot both[2];
    mf_cuda_plan_slot(gpu, &experts, &slot, &both[0]);
    mf_cuda_plan_slot(gpu, &experts, &other, &both[1]);
    return mf_cuda_packed_of(gpu, &experts, both);
}

TEST(hopper_multiplies_4_bit_weights_where_every_matrix_is_made_for_it)
{
    const mf_act_quant none = MF_ACT_QUANT_NONE;
    const mf_slot fp4 = packed_slot(MF_FORMAT_MXFP4, 2880, 2880), int4 = packed_slot(MF_FORMAT_INT4_GROUP, 2048, 768);
    CHECK_EQ(packed(&h200, fp4, fp4, MF_BF16, none), MF_CUDA_PACKED_MXFP4);
    CHECK_EQ(packed(&h200, fp4, fp4, MF_BF16, MF_ACT_QUANT_W8A8), MF_CUDA_PACKED_MXFP4); /* never quantised */
    CHECK_EQ(packed(&h200, int4, int4, MF_BF16, none), MF_CUDA_PACKED_INT4);
    CHECK_EQ(packed(&h200, int4, int4, MF_BF16, MF_ACT_QUANT_INT8), MF_CUDA_PACKED_NONE);
    CHECK_EQ(packed(&a100, fp4, fp4, MF_BF16, none), MF_CUDA_PACKED_NONE);
    CHECK_EQ(packed(&h200, fp4, fp4, MF_F16, none), MF_CUDA_PACKED_NONE);
    CHECK_EQ(packed(&h200, fp4, int4, MF_BF16, none), MF_CUDA_PACKED_NONE);
    mf_slot other = int4;
    other.down.zero = (const uint8_t *)memory;
    CHECK_EQ(packed(&h200, int4, other, MF_BF16, none), MF_CUDA_PACKED_INT4_ANY);
    CHECK_EQ(packed(&h200, other, int4, MF_BF16, none), MF_CUDA_PACKED_INT4_ANY);
    other = int4;
    other.down.scale_dtype = MF_F16;
    CHECK_EQ(packed(&h200, int4, other, MF_BF16, none), MF_CUDA_PACKED_INT4_ANY);
    for (int what = 0; what < 8; what++) {
        other = int4;
        other.up.group_size = what == 0 ? 16 : what == 1 ? 96 : 32;
        other.down.data = memory + (what == 2 ? 8 : 0);
        other.gate.row_stride += what == 3 ? 16 : 0;
        other.activation = what == 4 ? MF_ACT_GELU_ERF : MF_ACT_SILU;
        other.gate.data = what == 5 ? NULL : other.gate.data;
        other.gate.zero = what == 6 ? (const uint8_t *)memory : NULL; /* gate and up are one unit */
        other.up.scale_dtype = what == 7 ? MF_F32 : MF_BF16;
        CHECK_EQ(packed(&h200, int4, other, MF_BF16, none), MF_CUDA_PACKED_NONE);
    }
    other = packed_slot(MF_FORMAT_INT4_GROUP, 2048, 784); /* rows of w2 that are no whole 16 bytes */
    CHECK_EQ(packed(&h200, int4, other, MF_BF16, none), MF_CUDA_PACKED_NONE);
}

TEST(hopper_multiplies_weights_of_8_and_16_bits_that_meet_bf16)
{
    const mf_act_quant none = MF_ACT_QUANT_NONE, w8a8 = MF_ACT_QUANT_W8A8, int8 = MF_ACT_QUANT_INT8;
    const mf_slot block = slot_of(MF_FORMAT_FP8_BLOCK, 7168, 256), channel = slot_of(MF_FORMAT_FP8_CHANNEL, 2048, 768);
    const mf_slot bytes = slot_of(MF_FORMAT_INT8_CHANNEL, 2048, 784), half = slot_of(MF_FORMAT_F16, 2048, 768);
    CHECK_EQ(packed(&h200, block, block, MF_BF16, none), MF_CUDA_PACKED_FP8_BLOCK);
    CHECK_EQ(packed(&h200, block, slot_of(MF_FORMAT_FP8_BLOCK, 7168, 208), MF_BF16, none), MF_CUDA_PACKED_FP8_BLOCK);
    CHECK_EQ(packed(&h200, channel, channel, MF_BF16, none), MF_CUDA_PACKED_FP8_CHANNEL);
    CHECK_EQ(packed(&h200, bytes, bytes, MF_BF16, none), MF_CUDA_PACKED_INT8);
    CHECK_EQ(packed(&h200, half, half, MF_BF16, none), MF_CUDA_PACKED_F16);
    CHECK_EQ(packed(&h200, half, half, MF_BF16, w8a8), MF_CUDA_PACKED_F16); /* never quantised */
    CHECK_EQ(packed(&h200, channel, channel, MF_BF16, int8), MF_CUDA_PACKED_FP8_CHANNEL);
    CHECK_EQ(packed(&h200, block, block, MF_BF16, w8a8), MF_CUDA_PACKED_NONE); /* grouped.cu's */
    CHECK_EQ(packed(&h200, channel, channel, MF_BF16, w8a8), MF_CUDA_PACKED_FP8_CHANNEL); /* a scale a token */
    CHECK_EQ(packed(&h200, bytes, bytes, MF_BF16, int8), MF_CUDA_PACKED_INT8);
    mf_slot fixed = channel;
    fixed.input_scale2 = 0.5f; /* a scale that the token does not choose */
    CHECK_EQ(packed(&h200, channel, fixed, MF_BF16, w8a8), MF_CUDA_PACKED_NONE);
    const mf_slot all[] = { block, channel, bytes, half };
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(packed(&a100, all[i], all[i], MF_BF16, none), MF_CUDA_PACKED_NONE);
        CHECK_EQ(packed(&h200, all[i], all[i], MF_F16, none), MF_CUDA_PACKED_NONE);
        CHECK_EQ(packed(&h200, all[i], all[(i + 1) % 4], MF_BF16, none), MF_CUDA_PACKED_NONE); /* one format a table */
        for (int what = 0; what < 4; what++) {
            mf_slot other = all[i];
            other.down.data = memory + (what == 0 ? 8 : 0);
            other.gate.row_stride += what == 1 ? 4 : 0;
            other.activation = what == 2 ? MF_ACT_GELU_ERF : MF_ACT_SILU;
            other.up.k -= what == 3 ? 4 : 0;
            CHECK_EQ(packed(&h200, all[i], other, MF_BF16, none), MF_CUDA_PACKED_NONE);
        }
    }
    mf_slot other = block;
    other.down.scale_dtype = MF_BF16;
    CHECK_EQ(packed(&h200, block, other, MF_BF16, none), MF_CUDA_PACKED_FP8_BLOCK);
    other.down.scale = (const uint8_t *)other.down.scale + 1;
    CHECK_EQ(packed(&h200, block, other, MF_BF16, none), MF_CUDA_PACKED_NONE);
    other = block;
    other.up.scale_dtype = MF_BF16; /* gate and up are one unit */
    CHECK_EQ(packed(&h200, block, other, MF_BF16, none), MF_CUDA_PACKED_NONE);
}

static void check_packed_plan(mf_cuda_packed kind, int64_t tokens)
{
    experts_problem p;
    make_experts(&p, 128, MF_CUDA_PATH_PLAIN, tokens, memory);
    p.paths.maps = memory;
    p.paths.packed = (int32_t)kind;
    p.experts.hidden_size = 2080;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    const mf_cuda_grouped *g = &p.plan.grouped;
    const bool has_two = kind >= MF_CUDA_PACKED_FP8_BLOCK && kind != MF_CUDA_PACKED_F16;
    const bool many = tokens >= (has_two ? 767 : 768); /* 47 a slot, 48 */
    CHECK(p.plan.is_grouped && !p.plan.copies_x && g->few_rows == 0 && g->packed == (int32_t)kind);
    const bool several = tokens == 200 && kind >= MF_CUDA_PACKED_FP8_BLOCK, few = tokens <= 9;
    CHECK_EQ(g->max_tokens, many ? MF_CUDA_PACKED_MANY : few ? MF_CUDA_PACKED_FEW : several ? MF_CUDA_PACKED_SEVERAL : MF_CUDA_PACKED_SOME);
    CHECK_EQ(g->blocks, few || several ? 264 : 132);
    const int64_t up = 64 * mf_cuda_packed_tiles(g->packed, g->max_tokens);
    CHECK_EQ(up, many && kind != MF_CUDA_PACKED_F16 ? 128 : 64);
    CHECK(g->up_tiles * up >= 768 && (g->up_tiles - 1) * up < 768);
    CHECK(g->down_tiles * 2 * up >= 2080 && g->down_units * g->down_steps >= g->down_tiles);
    CHECK(g->stages >= 2 && g->stages * mf_cuda_packed_stage_bytes(g->packed, g->max_tokens) * (few || several ? 2 : 1) + 6 * 1024 <= h200.shared_bytes);
    CHECK(g->x_groups * 128 >= 2080 && g->x_pitch == g->x_groups * 256 && g->h_pitch == 1536);
    CHECK(p.plan.y && g->x_bytes && g->h_bytes && !g->h_scales);
    if (kind == MF_CUDA_PACKED_INT8) {
        const size_t without = mf_cuda_experts_bytes(&p.experts, &p.paths, tokens, 8);
        p.paths.quant = MF_QUANT_INT8_TOKEN;
        CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
        CHECK(g->quant == MF_QUANT_INT8_TOKEN && g->h_scales && g->x_scales_out);
        CHECK(mf_cuda_experts_bytes(&p.experts, &p.paths, tokens, 8) >= without + 4 * (size_t)tokens * 9);
    }
}

TEST(packed_products_fit_shared_memory_and_cover_every_row)
{
    static const int64_t tokens[] = { 1, 8, 9, 200, 767, 768, 8192, 100000 };
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        for (int kind = MF_CUDA_PACKED_MXFP4; kind <= MF_CUDA_PACKED_F16; kind++) {
            check_packed_plan((mf_cuda_packed)kind, tokens[i]);
        }
    }
}

static const mf_cuda_grouped *plan_fp8_blocks(experts_problem *p, int64_t columns, int64_t hidden, int64_t width, int64_t tokens, const void *x)
{
    make_experts(p, 128, MF_CUDA_PATH_PLAIN, tokens, memory);
    p->experts.hidden_size = hidden;
    p->experts.max_intermediate_size = width;
    p->args.x = mf_tensor_2d((void *)(uintptr_t)x, MF_BF16, tokens, hidden);
    p->args.topk_ids = mf_tensor_2d(memory, MF_I32, tokens, columns);
    p->args.y = mf_tensor_3d(memory, MF_BF16, tokens, columns, hidden);
    p->call.num_columns = columns;
    p->paths.maps = memory;
    p->paths.packed = MF_CUDA_PACKED_FP8_BLOCK;
    p->paths.width = (int32_t)width;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p->call, NULL, &p->paths, true, MF_BF16, &p->plan, &err), err);
    return &p->plan.grouped;
}

TEST(a_few_tokens_beside_fp8_blocks_divide_columns_where_tiles_are_few)
{
    static const struct {
        int64_t columns, hidden, width;
        int32_t splits[4], splits2[4]; /* by tokens */
    } shapes[] = { { 9, 7168, 256, { 8, 8, 8, 8 }, { 1, 1, 1, 1 } },
                   { 8, 2048, 768, { 4, 2, 2, 2 }, { 2, 1, 1, 1 } },
                   { 9, 4096, 1408, { 8, 4, 0, 0 }, { 4, 2, 0, 0 } }, /* 467 MB of three tokens */
                   { 2, 16384, 16, { 8, 8, 8, 8 }, { 1, 1, 1, 1 } } };
    experts_problem p;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int64_t t = 1; t <= 5; t++) {
            const mf_cuda_grouped *g = plan_fp8_blocks(&p, shapes[i].columns, shapes[i].hidden, shapes[i].width, t, memory);
            CHECK_EQ(g->few_blocks, t <= 4 && shapes[i].splits[t - 1] ? 132 : 0);
            if (t <= 4) {
                CHECK_EQ(g->few_splits, shapes[i].splits[t - 1]);
                CHECK_EQ(g->few_splits2, shapes[i].splits2[t - 1]);
            }
        }
    }
    CHECK_EQ(plan_fp8_blocks(&p, 9, 7168, 256, 1, memory + 2)->few_blocks, 0); /* rows of x are copied by 16 bytes */
    CHECK_EQ(plan_fp8_blocks(&p, 17, 7168, 256, 4, memory)->few_blocks, 0);    /* 68 pairs */
    CHECK_EQ(plan_fp8_blocks(&p, 9, 128 * 600, 256, 1, memory)->few_blocks, 0);
    CHECK(p.plan.is_grouped && p.plan.grouped.stages >= 2); /* the other kernel's plan is there all the same */
    p.paths.width = 0;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK_EQ(p.plan.grouped.few_blocks, 0);
}

/* After make_experts. */
static const mf_cuda_grouped *plan_four_bits_again(experts_problem *p, mf_cuda_packed kind, int64_t columns, int64_t hidden,
                                                   int64_t width, int64_t tokens, const void *x)
{
    p->experts.hidden_size = hidden;
    p->experts.max_intermediate_size = width;
    p->args.x = mf_tensor_2d((void *)(uintptr_t)x, MF_BF16, tokens, hidden);
    p->args.topk_ids = mf_tensor_2d(memory, MF_I32, tokens, columns);
    p->args.y = mf_tensor_3d(memory, MF_BF16, tokens, columns, hidden);
    p->call.num_columns = columns;
    p->paths.maps = memory;
    p->paths.packed = (int32_t)kind;
    p->paths.width = (int32_t)width;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p->call, NULL, &p->paths, true, MF_BF16, &p->plan, &err), err);
    return &p->plan.grouped;
}

static const mf_cuda_grouped *plan_four_bits(experts_problem *p, mf_cuda_packed kind, int64_t slots, int64_t columns, int64_t hidden,
                                             int64_t width, int64_t tokens, const void *x)
{
    make_experts(p, slots, MF_CUDA_PATH_PLAIN, tokens, memory);
    return plan_four_bits_again(p, kind, columns, hidden, width, tokens, x);
}

TEST(a_few_tokens_beside_4_bits_have_rings_that_fit_and_a_thread_a_pair)
{
    static const struct {
        mf_cuda_packed kind;
        int64_t slots, columns, hidden, width, tokens; /* at most */
    } shapes[] = { { MF_CUDA_PACKED_INT4, 128, 8, 2048, 768, 8 },   { MF_CUDA_PACKED_INT4_ANY, 128, 8, 2048, 768, 8 },
                   { MF_CUDA_PACKED_MXFP4, 128, 4, 2880, 2880, 16 }, { MF_CUDA_PACKED_INT4, 129, 9, 4096, 1408, 8 },
                   { MF_CUDA_PACKED_INT4, 257, 9, 7168, 256, 8 },   { MF_CUDA_PACKED_MXFP4, 5, 2, 64, 32, 16 },
                   { MF_CUDA_PACKED_MXFP4, 64, 10, 512, 512, 16 } };
    experts_problem p;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int64_t t = 1; t <= 17; t++) {
            const mf_cuda_grouped *g = plan_four_bits(&p, shapes[i].kind, shapes[i].slots, shapes[i].columns, shapes[i].hidden,
                                                      shapes[i].width, t, memory);
            CHECK(p.plan.is_grouped && g->stages >= 2); /* the other kernel's plan is there all the same */
            CHECK_EQ(g->few_blocks, t <= shapes[i].tokens ? 132 : 0);
            if (!g->few_blocks) {
                continue;
            }
            const int64_t pairs = t * shapes[i].columns;
            CHECK(g->few_warps * 32 >= pairs && g->few_warps2 * 32 >= pairs && g->few_warps <= 16 && g->few_warps2 <= 16);
            CHECK(g->few_depth >= 2 && g->few_depth <= 4 && g->few_depth2 >= 2 && g->few_depth2 <= 4);
            CHECK(g->few_bytes <= h200.shared_bytes && g->few_bytes2 <= h200.shared_bytes);
            CHECK(g->few_most >= 1 && g->few_most <= MF_CUDA_FEW4_MOST && (t > 2 || g->few_most == t));
            const bool mxfp4 = shapes[i].kind == MF_CUDA_PACKED_MXFP4, any = shapes[i].kind == MF_CUDA_PACKED_INT4_ANY;
            CHECK(g->few_bytes >= g->few_warps * g->few_depth * mf_cuda_few4_stage_bytes(mxfp4, any, 0) + pairs * MF_CUDA_FEW4_SLOT +
                                      t * 2 * shapes[i].hidden);
            const int64_t tiles = (shapes[i].hidden / 16 + 131) / 132; /* of a block, whose results wait for the combine */
            CHECK(g->few_bytes2 >= g->few_warps2 * g->few_depth2 * mf_cuda_few4_stage_bytes(mxfp4, any, g->few_most) +
                                       pairs * MF_CUDA_FEW4_SLOT + pairs * 4 * (1 + 16 * tiles));
        }
    }
}

TEST(a_few_tokens_beside_4_bits_combine_where_blocks_have_like_shares)
{
    experts_problem p;
    const mf_cuda_grouped *g = plan_four_bits(&p, MF_CUDA_PACKED_INT4, 128, 8, 2048, 768, 4, memory); /* 128 tiles of w2, 132 blocks */
    CHECK(g->few_combines);
    mf_cuda_sum sum = { .ids = g->e.ids, .ids_stride = g->e.ids_stride };
    CHECK(mf_cuda_few4_combines(g, &sum));
    sum.num_addends = 1;
    CHECK(!mf_cuda_few4_combines(g, &sum));
    CHECK(!plan_four_bits(&p, MF_CUDA_PACKED_MXFP4, 32, 4, 2880, 2880, 2, memory)->few_combines); /* 180 */
    CHECK(plan_four_bits(&p, MF_CUDA_PACKED_MXFP4, 32, 4, 2880, 2880, 1, memory)->few_combines);
    /* One token: both launches' rings share a multiprocessor where w13 has a warp for every unit then. */
    g = plan_four_bits(&p, MF_CUDA_PACKED_INT4, 128, 8, 2048, 768, 1, memory);
    CHECK(g->few_bytes + g->few_bytes2 + 2048 <= h200.shared_bytes && g->few_warps == 6 && g->few_warps2 == 8);
    g = plan_four_bits(&p, MF_CUDA_PACKED_INT4, 129, 9, 4096, 1408, 1, memory);
    CHECK(g->few_bytes + g->few_bytes2 > h200.shared_bytes && g->few_warps == 12);
    CHECK_EQ(plan_four_bits(&p, MF_CUDA_PACKED_INT4, 128, 8, 2048, 768, 1, memory + 2)->few_blocks, 0); /* x is read 16 bytes at a time */
    CHECK_EQ(plan_four_bits(&p, MF_CUDA_PACKED_MXFP4, 128, 11, 2048, 768, 15, memory)->few_blocks, 0); /* 165 pairs */
    CHECK_EQ(plan_four_bits(&p, MF_CUDA_PACKED_INT4, 128, 8, 65536, 768, 8, memory)->few_blocks, 0);  /* x does not fit */
    p.paths.width = 0;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK_EQ(p.plan.grouped.few_blocks, 0);
}

/* Slots whose matrices follow one another, group columns a scale (f16) and a zero point. */
static void fill_slots(mf_cuda_slot *slots, int64_t count, int64_t hidden, int64_t width, int64_t group)
{
    for (int64_t s = 0; s < count; s++) {
        mf_cuda_matrix *of[3] = { &slots[s].gate, &slots[s].up, &slots[s].down };
        slots[s] = (mf_cuda_slot){ .activation = MF_ACT_SILU };
        for (int64_t i = 0; i < 3; i++) {
            const int64_t n = i < 2 ? width : hidden, k = i < 2 ? hidden : width, scales = (k + group - 1) / group;
            *of[i] = (mf_cuda_matrix){ .data = (uint8_t *)(0x10000000 + (3 * s + i) * n * k / 2),
                                       .scale = (uint8_t *)(0x20000000 + (3 * s + i) * n * scales * 2),
                                       .zero = (uint8_t *)(0x30000000 + (3 * s + i) * n * scales),
                                       .row_stride = k,
                                       .scale_row_stride = scales,
                                       .group_size = group,
                                       .n = n,
                                       .k = k,
                                       .format = MF_FORMAT_INT4_GROUP,
                                       .scale_dtype = MF_F16 };
        }
    }
}

TEST(slots_are_alike_where_addresses_alone_differ)
{
    mf_cuda_slot slots[5];
    mf_cuda_alike alike;
    fill_slots(slots, 5, 2048, 768, 128);
    mf_cuda_alike_slots(slots, 5, &alike);
    CHECK(alike.is && !alike.has_biases);
    CHECK(alike.up.row_bytes == 1024 && alike.up.scale_stride == 16 && alike.up.group_shift == 7);
    CHECK(alike.down.row_bytes == 384 && alike.down.scale_size == 2 && alike.down.has_zeros);
    slots[2].down_bias = (const float *)memory;
    mf_cuda_alike_slots(slots, 5, &alike);
    CHECK(alike.is && alike.has_biases);
    mf_cuda_alike_slots(slots, 1, &alike);
    CHECK(alike.is && !alike.has_biases);
    for (int i = 0; i < 5; i++) { /* what kernels read from one slot for all */
        fill_slots(slots, 5, 2048, 768, 128);
        slots[4].gate.group_size = i == 0 ? 64 : 128;
        slots[4].up.row_stride += i == 1 ? 32 : 0;
        slots[4].down.zero = i == 2 ? NULL : slots[4].down.zero;
        slots[4].activation = i == 3 ? MF_ACT_SWIGLU_OAI : MF_ACT_SILU;
        for (int s = 0; s < 5; s++) {
            slots[s].down.scale_row_stride += i == 4; /* gaps between rows of scales */
        }
        mf_cuda_alike_slots(slots, 5, &alike);
        CHECK(!alike.is);
    }
}

TEST(one_token_beside_codes_has_rings_of_both_launches_that_fit_together)
{
    static const struct {
        mf_cuda_packed kind;
        int64_t columns, hidden, width, group, tokens; /* at most */
    } shapes[] = { { MF_CUDA_PACKED_INT4_ANY, 8, 2048, 768, 128, 1 }, { MF_CUDA_PACKED_INT4_ANY, 8, 2048, 768, 32, 1 },
                   { MF_CUDA_PACKED_INT4_ANY, 9, 4096, 1408, 128, 0 }, { MF_CUDA_PACKED_INT4_ANY, 1, 64, 32, 32, 1 },
                   { MF_CUDA_PACKED_INT8, 8, 2048, 768, 128, 2 },      { MF_CUDA_PACKED_FP8_CHANNEL, 9, 4096, 1408, 128, 1 },
                   { MF_CUDA_PACKED_MXFP4, 8, 2048, 768, 32, 0 } };
    experts_problem p;
    mf_cuda_slot slots[4];
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const mf_cuda_packed_one_launch *up = &p.plan.packed_one.of[0], *down = &p.plan.packed_one.of[1];
        plan_four_bits(&p, shapes[i].kind, 4, shapes[i].columns, shapes[i].hidden, shapes[i].width, 1, memory);
        CHECK_EQ(up->warps, 0); /* slots that are not alike */
        fill_slots(slots, 4, shapes[i].hidden, shapes[i].width, shapes[i].group);
        for (int64_t t = 1; t <= 3; t++) {
            make_experts(&p, 4, MF_CUDA_PATH_PLAIN, t, memory);
            mf_cuda_alike_slots(slots, 4, &p.paths.alike);
            const mf_cuda_grouped *g =
                plan_four_bits_again(&p, shapes[i].kind, shapes[i].columns, shapes[i].hidden, shapes[i].width, t, memory);
            CHECK_EQ(up->warps > 0, t <= shapes[i].tokens);
            if (t > shapes[i].tokens) {
                continue;
            }
            CHECK(g->few_blocks == 132 && g->few_combines);
            CHECK(up->bytes + down->bytes + 2048 <= h200.shared_bytes);
            CHECK(up->warps >= 4 && down->warps >= 4 && (up->warps + down->warps) * 32 * 72 <= 65536);
            CHECK(up->depth >= 2 && down->depth >= 2 && up->depth <= MF_CUDA_PACKED_ONE_DEPTH && down->depth <= MF_CUDA_PACKED_ONE_DEPTH);
            const int64_t stages = (shapes[i].hidden + 511) / 512; /* of a unit: its scales stay while a stage of it does */
            CHECK(shapes[i].kind >= MF_CUDA_PACKED_FP8_BLOCK || (up->turns - 1) * stages >= up->depth - 1);
        }
    }
}

static void plan_grouped(experts_problem *p, int64_t slots, mf_cuda_path path, int64_t tokens, int32_t width)
{
    make_experts(p, slots, path, tokens, memory);
    p->paths.maps = memory;
    p->paths.width = width;
    CHECK_OK(mf_cuda_plan_experts(&h200, &p->call, NULL, &p->paths, true, MF_BF16, &p->plan, &err), err);
}

TEST(grouped_products_fit_shared_memory_and_cover_every_row)
{
    static const int64_t tokens[] = { 1, 2, 3, 8, 9, 64, 767, 768, 1071, 1072, 1535, 3071, 3072, 8192, 100000 };
    for (int path = MF_CUDA_PATH_BF16; path <= MF_CUDA_PATH_FP8; path += MF_CUDA_PATH_FP8 - MF_CUDA_PATH_BF16) {
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
            experts_problem p;
            plan_grouped(&p, 128, (mf_cuda_path)path, tokens[i], 768);
            const mf_cuda_grouped *g = &p.plan.grouped;
            if (g->rows_group) { /* grouped_rows.cu's: below */
                CHECK(path == MF_CUDA_PATH_FP8 && tokens[i] >= 1024);
                continue;
            }
            const bool few = tokens[i] <= MF_CUDA_FEW_GROUPED_TOKENS;
            CHECK(p.plan.is_grouped && !p.plan.is_combined && !p.plan.sorts && p.plan.y);
            CHECK_EQ(g->few_rows != 0, few);
            CHECK_EQ(g->few_rows, !few ? 0 : tokens[i] <= 2 ? 32 : 64);
            const int64_t up = few ? g->few_rows : 128, down = few ? 2 * g->few_rows : 256;
            CHECK(g->up_tiles * up >= 768 && (g->up_tiles - 1) * up < 768);
            CHECK(g->down_tiles * down >= 2048 && g->down_units * g->down_steps >= g->down_tiles);
            CHECK((g->down_units - 1) * g->down_steps < g->down_tiles);
            const int64_t stage = few ? mf_cuda_few_stage_bytes(g->few_rows) : mf_cuda_grouped_stage_bytes(g->codes, g->max_tokens);
            const int64_t fixed = g->x_in_order ? 4 * MF_CUDA_PAIR_PIECE + MF_CUDA_PAIR_STATE + 8 * 129 : 12 * 1024;
            CHECK(g->stages >= 3 && g->stages <= 6 && g->stages * stage + fixed <= h200.shared_bytes);
            CHECK_EQ(g->x_in_order, path == MF_CUDA_PATH_BF16 && tokens[i] * 8 / 128 >= 192);
            if (g->x_in_order) { /* slots of several widths are the other kernel's */
                experts_problem mixed;
                plan_grouped(&mixed, 128, (mf_cuda_path)path, tokens[i], 0);
                CHECK(!mixed.plan.grouped.x_in_order && mixed.plan.is_grouped);
            }
            const bool some = tokens[i] < 1072; /* 66 a slot */
            CHECK_EQ(g->max_tokens, tokens[i] < 768            ? 64
                                    : path == MF_CUDA_PATH_FP8 ? 128
                                    : some                     ? MF_CUDA_GROUPED_SOME
                                                               : 160);
            CHECK(g->max_tokens != MF_CUDA_GROUPED_SOME || g->stages == 5);
            CHECK_EQ(g->clears_counts, tokens[i] * 8 > MF_CUDA_SORTED_PAIRS);
        }
    }
}

TEST(many_tokens_of_many_slots_have_four_stages)
{
    experts_problem p;
    plan_grouped(&p, 512, MF_CUDA_PATH_BF16, 512 * 100 / 8, 512);
    CHECK_EQ(p.plan.grouped.max_tokens, 160);
    CHECK_EQ(p.plan.grouped.stages, 4);
}

TEST(fp8_tokens_are_rows_where_slots_have_many_of_them)
{
    static const int64_t tokens[] = { 1023, 1024, 8192, 100000 }, widths[] = { 128, 256, 768, 2048 };
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
            experts_problem p;
            make_experts(&p, 128, MF_CUDA_PATH_FP8, tokens[i], memory);
            p.paths.maps = memory;
            p.experts.max_intermediate_size = widths[w];
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
            const mf_cuda_grouped *g = &p.plan.grouped;
            CHECK_EQ(g->rows_group > 0, tokens[i] >= 1024); /* 64 a slot */
            CHECK(p.plan.is_grouped && g->max_tokens == 128);
            if (g->rows_group) {
                CHECK_EQ(g->stages, 4);
                CHECK(g->stages * mf_cuda_rows_stage_bytes(g->codes) + 4096 <= h200.shared_bytes);
                CHECK(g->up_tiles * 128 >= widths[w] && (g->up_tiles - 1) * 128 < widths[w]);
                CHECK(g->down_units * g->down_steps >= g->down_tiles && (g->down_units - 1) * g->down_steps < g->down_tiles);
                CHECK(g->down_tiles * 256 >= 2048 && g->rows_group * g->up_tiles >= g->blocks - g->up_tiles);
            }
            /* Other outputs than whole 16 bytes of bf16 are grouped.cu's. */
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_F32, &p.plan, &err), err);
            CHECK_EQ(g->rows_group, 0);
            p.args.y.data = memory + 2;
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, false, MF_BF16, &p.plan, &err), err);
            CHECK_EQ(g->rows_group, 0);
        }
    }
}

TEST(rows_of_codes_have_scales_and_a_bf16_intermediate_of_their_own)
{
    static const int64_t tokens[] = { 1, 8, 9, 64, 1023, 1024, 8192 };
    for (int codes = MF_CUDA_CODES_FP8_ROW; codes <= MF_CUDA_CODES_INT8_ROW; codes++) {
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
            experts_problem p;
            make_experts(&p, 128, MF_CUDA_PATH_PLAIN, tokens[i], memory);
            p.paths.maps = memory;
            p.paths.codes = codes;
            p.paths.width = 768;
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
            const mf_cuda_grouped *g = &p.plan.grouped;
            CHECK(p.plan.is_grouped && g->codes == codes && g->x_bytes == g->x_codes && g->h_bytes == g->h_codes);
            CHECK_EQ(g->x_pitch, 2048);
            CHECK_EQ((const uint8_t *)g->h_codes - (const uint8_t *)g->x_scales, mf_cuda_round_up(4 * tokens[i], 64));
            CHECK_EQ((const uint8_t *)g->e.h - (const uint8_t *)g->h_scales, mf_cuda_round_up(4 * tokens[i] * 8, 64));
            CHECK((const uint8_t *)p.plan.y - (const uint8_t *)g->e.h >= tokens[i] * 8 * 768 * 2);
            CHECK_EQ(g->few_rows > 0, tokens[i] <= MF_CUDA_FEW_GROUPED_TOKENS);
            CHECK_EQ(g->rows_group > 0, tokens[i] >= 1024);
            if (g->rows_group) {
                CHECK(g->stages == 4 && g->stages * mf_cuda_rows_stage_bytes(codes) + 6 * 1024 <= h200.shared_bytes);
            }
        }
    }
}

static void check_one_layout(const mf_cuda_one *one, bool fp8, int32_t width, int64_t tokens)
{
    const int32_t ring = one->stages * 2 * MF_CUDA_ONE_HALF;
    CHECK(one->stages >= 6 && one->stages <= MF_CUDA_ONE_STAGES && one->bytes <= h200.shared_bytes);
    const int32_t places[] = { one->x_at, one->up_parts_at, one->h_at, one->sums_at, one->floats_at, one->state_at };
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        CHECK(places[i] >= ring && places[i] <= one->bytes && places[i] % 1024 == 0);
    }
    CHECK_EQ(one->state_at + MF_CUDA_ONE_STATE, one->bytes);
    CHECK_EQ(one->x_lines, fp8 ? 16 : 32);
    CHECK_EQ(one->h_lines, width == 1408 ? 24 : width * (fp8 ? 1 : 2) / 128); /* 22: three boxes of 8 */
    CHECK_EQ(one->down_rows, 16);
    CHECK(one->h_at + (fp8 ? one->most_tiles * one->h_lines * 8 * 128 : 8 * tokens * width * 2) <= one->sums_at);
    CHECK_EQ(one->most_tiles, 8 * tokens);
    CHECK(one->most_units * 132 >= 8 * tokens * width / 8 && one->groups >= 1);
}

TEST(a_few_tokens_of_slots_of_one_width_fit_one_launch)
{
    static const struct {
        mf_cuda_path path;
        int32_t width;
        int64_t tokens; /* at most: 320 MB of weights for two tokens, else 160, FP8 200; room for h */
    } cases[] = { { MF_CUDA_PATH_BF16, 1408, 2 }, { MF_CUDA_PATH_BF16, 768, 2 }, { MF_CUDA_PATH_FP8, 768, 2 },
                  { MF_CUDA_PATH_BF16, 256, 4 }, { MF_CUDA_PATH_FP8, 640, 2 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int64_t tokens = 1; tokens <= 5; tokens++) {
            experts_problem p;
            make_experts(&p, 128, cases[i].path, tokens, memory);
            p.paths.maps = memory;
            p.experts.max_intermediate_size = cases[i].width;
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
            CHECK_EQ(p.plan.grouped.one.tokens, 0); /* widths differ */
            p.paths.width = cases[i].width;
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
            const mf_cuda_one *one = &p.plan.grouped.one;
            CHECK_EQ(one->tokens, tokens > cases[i].tokens ? 0 : tokens > 2 ? 4 : 2);
            if (one->tokens) {
                check_one_layout(one, cases[i].path == MF_CUDA_PATH_FP8, cases[i].width, tokens);
            }
        }
    }
}

TEST(a_few_tokens_of_row_codes_fit_one_launch_where_every_block_has_a_stage)
{
    static const struct {
        int64_t hidden;
        int32_t width, tokens; /* at most */
    } cases[] = { { 2048, 768, 2 }, { 4096, 1408, 1 }, { 1024, 128, 4 }, { 2304, 128, 0 }, { 2048, 2176, 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int64_t tokens = 1; tokens <= 5; tokens++) {
            experts_problem p;
            make_experts(&p, 128, MF_CUDA_PATH_PLAIN, tokens, memory);
            p.experts.hidden_size = cases[i].hidden;
            p.experts.max_intermediate_size = p.paths.width = cases[i].width;
            p.paths.maps = memory;
            p.paths.codes = MF_CUDA_CODES_INT8_ROW;
            p.args.x = mf_tensor_2d(memory, MF_BF16, tokens, cases[i].hidden);
            p.args.y = mf_tensor_3d(memory, MF_BF16, tokens, 8, cases[i].hidden);
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
            const mf_cuda_one *one = &p.plan.grouped.one;
            CHECK_EQ(one->tokens, tokens > cases[i].tokens ? 0 : tokens > 2 ? 4 : 2);
            const int64_t scales = 2 * 8 * one->most_units + (int64_t)one->most_tiles * one->down_rows; /* of one group, at least */
            CHECK(!one->tokens || one->state_at - one->floats_at >= 4 * scales);
        }
    }
}

/* A block hands a unit that it has begun to the next one: a block without a stage would hand nothing on, for ever. */
TEST(fp8_blocks_do_not_take_one_launch_where_a_block_may_have_no_stage)
{
    static const struct {
        int64_t hidden;
        int32_t width, tokens; /* at most */
    } cases[] = { { 7168, 256, 4 }, { 2048, 768, 2 }, { 1024, 128, 4 }, { 1152, 128, 0 }, { 7168, 128, 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int64_t tokens = 1; tokens <= 5; tokens++) {
            experts_problem p;
            make_experts(&p, 128, MF_CUDA_PATH_FP8, tokens, memory);
            p.experts.hidden_size = cases[i].hidden;
            p.experts.max_intermediate_size = p.paths.width = cases[i].width;
            p.paths.maps = memory;
            p.args.x = mf_tensor_2d(memory, MF_BF16, tokens, cases[i].hidden);
            p.args.y = mf_tensor_3d(memory, MF_BF16, tokens, 8, cases[i].hidden);
            CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
            CHECK_EQ(p.plan.grouped.one.tokens, tokens > cases[i].tokens ? 0 : tokens > 2 ? 4 : 2);
        }
    }
}

TEST(boxes_of_w2_are_large_and_cover_a_row_alike)
{
    CHECK_EQ(mf_cuda_box_rows(1, 7168, 132), 56); /* DeepSeek-V3: 54.3 rows a block, whole swizzle atoms */
    CHECK_EQ(mf_cuda_box_rows(1, 128, 132), 8);
    CHECK_EQ(mf_cuda_box_rows(1, 16384, 132), 64); /* 124.1: two of a product's 64 */
    CHECK_EQ(mf_cuda_box_rows(0, 7168, 132), 16);
    CHECK_EQ(mf_cuda_box_lines(56, 256), 2);
    CHECK_EQ(mf_cuda_box_lines(56, 384), 2); /* 3 lines: 2 and 1 */
    CHECK_EQ(mf_cuda_box_lines(8, 2048), 16);
    CHECK_EQ(mf_cuda_box_lines(16, 1536), 6); /* 12 lines: 6 and 6 */
    CHECK_EQ(mf_cuda_box_lines(16, 2816), 8); /* 22: 8, 8 and 6 */
    for (int64_t hidden = 128; hidden <= 32768; hidden += 128) {
        for (int64_t bytes = 128; bytes <= 8192; bytes += 128) {
            const int32_t rows = mf_cuda_box_rows(1, hidden, 132), lines = mf_cuda_box_lines(rows, bytes);
            CHECK(rows >= 8 && rows <= 64 && rows % 8 == 0 && lines >= 1 && rows * lines * 128 <= 2 * MF_CUDA_ONE_HALF);
        }
    }
}

TEST(slots_share_maps_where_they_lie_evenly)
{
    static uint8_t block[1];
    mf_cuda_slot slots[4];
    memset(slots, 0, sizeof slots);
    const int64_t step = (int64_t)3 * 64 * 128 * 2;
    for (int s = 0; s < 4; s++) {
        const mf_cuda_matrix m = { .data = block + s * step, .n = 64, .k = 128, .row_stride = 128, .format = MF_FORMAT_BF16 };
        slots[s].gate = slots[s].up = slots[s].down = m;
        slots[s].up.data += step / 3;
        slots[s].down.data += 2 * step / 3;
        slots[s].down.n = 128;
        slots[s].down.k = slots[s].down.row_stride = 64;
    }
    mf_cuda_even even = mf_cuda_even_slots(slots, 4);
    CHECK_EQ(even.slots, 4);
    CHECK(even.rows[0] == 192 && even.rows[1] == 192 && even.rows[2] == 384);
    CHECK_EQ(mf_cuda_even_slots(slots, 1).slots, 0);
    slots[3].down.data += 256; /* the last one lies elsewhere, as a shared expert may */
    CHECK_EQ(mf_cuda_even_slots(slots, 4).slots, 3);
    slots[2].up.n = 32;
    CHECK_EQ(mf_cuda_even_slots(slots, 4).slots, 2);
    slots[1].gate.data += 128; /* no whole rows apart */
    CHECK_EQ(mf_cuda_even_slots(slots, 4).slots, 0);
}

TEST(grouped_products_take_other_ways_for_input_scales_and_refuse_millions_of_pairs)
{
    experts_problem p;
    plan_grouped(&p, 128, MF_CUDA_PATH_BF16, 3, 0);
    p.args.input_scale = mf_tensor_2d(memory, MF_F32, 3, 8);
    CHECK_OK(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), err);
    CHECK(!p.plan.is_grouped);
    make_experts(&p, 128, MF_CUDA_PATH_BF16, 2000000, memory);
    p.paths.maps = memory;
    CHECK_EQ(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, true, MF_BF16, &p.plan, &err), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "16000000 token-expert pairs in one call; device cuda takes 10465280");
    p.paths.maps = NULL;
    const size_t others = mf_cuda_experts_bytes(&p.experts, &p.paths, 9, 8);
    p.paths.maps = memory;
    CHECK(mf_cuda_experts_bytes(&p.experts, &p.paths, 9, 8) >= others); /* room for either way */
}

TEST(input_scales_of_fp8_slots_are_unsupported)
{
    experts_problem p;
    make_experts(&p, 4, MF_CUDA_PATH_FP8, 3, memory);
    p.args.input_scale = mf_tensor_2d(memory, MF_F32, 3, 8);
    CHECK_EQ(mf_cuda_plan_experts(&h200, &p.call, NULL, &p.paths, false, MF_BF16, &p.plan, &err), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "input_scale");
}

/* ---- opening ---- */

TEST(a_missing_shared_object_is_an_error_that_says_so)
{
    mf_device *device = NULL;
    setenv("MOEFUSE_CUDA_LIBRARY", "/nonexistent/libmoefuse_cuda.so", 1);
    CHECK_EQ(mf_device_open("cuda", NULL, &device, &err), MF_ERR_DEVICE);
    CHECK_HAS(err.message, "device cuda: libmoefuse_cuda.so cannot be opened");
    CHECK_HAS(err.message, "/nonexistent/");
    CHECK(device == NULL);
    unsetenv("MOEFUSE_CUDA_LIBRARY");
}

TEST(a_library_without_the_entry_point_is_refused)
{
    mf_device *device = NULL;
    setenv("MOEFUSE_CUDA_LIBRARY", "libm.so.6", 1);
    CHECK_EQ(mf_device_open("cuda:0", NULL, &device, &err), MF_ERR_UNSUPPORTED);
    CHECK_HAS(err.message, "device cuda:0: libmoefuse_cuda.so is of another build");
    unsetenv("MOEFUSE_CUDA_LIBRARY");
}

TEST(odd_ordinals_are_refused)
{
    static const char *const names[] = { "cuda:", "cuda:x", "cuda:-1", "cuda:1000", "cuda:0 ", "cudax", "ref:0", "cpu:1" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        mf_device *device = NULL;
        CHECK_EQ(mf_device_open(names[i], NULL, &device, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, "unknown; expected cpu, ref, cuda or cuda:N");
    }
}

/* Where the shared object was built: it opens, and says what this machine lacks or offers. */
TEST(the_shared_object_opens_without_a_gpu)
{
    mf_device *device = NULL;
    const char *path = MF_CUDA_LIBRARY;
    if (!path[0]) {
        return;
    }
    setenv("MOEFUSE_CUDA_LIBRARY", path, 1);
    mf_status status = mf_device_open("cuda", NULL, &device, &err);
    if (status == MF_OK) {
        CHECK_STR(mf_device_name(device), "cuda");
        CHECK_EQ(mf_device_uses_host_memory(device), 0);
        mf_device_close(&device);
    } else {
        CHECK(status == MF_ERR_DEVICE || status == MF_ERR_UNSUPPORTED);
        CHECK(strstr(err.message, "no NVIDIA") || strstr(err.message, "compute capability"));
    }
    unsetenv("MOEFUSE_CUDA_LIBRARY");
}

TEST(devices_of_the_hosts_memory_allocate_and_copy_there)
{
    mf_device *device = NULL;
    void *block;
    CHECK_OK(mf_device_open("ref", NULL, &device, &err), err);
    CHECK_EQ(mf_device_uses_host_memory(device), 1);
    CHECK_OK(mf_device_malloc(device, 100, &block, &err), err);
    CHECK_EQ((uintptr_t)block % 64, 0);
    CHECK_OK(mf_device_copy(device, block, "text", 5, &err), err);
    CHECK_STR((char *)block, "text");
    CHECK_OK(mf_device_synchronize(device, &err), err);
    CHECK_EQ(mf_device_set_stream(device, block, &err), MF_ERR_UNSUPPORTED);
    CHECK(mf_device_stream(device) == NULL);
    mf_device_free(device, block);
    mf_device_close(&device);
}
