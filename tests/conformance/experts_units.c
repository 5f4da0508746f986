/* experts_units.c - experts whose sizes are whole units of matrix hardware: right, and the same bits for one token alone, a
 * few, and many, in every way a device may tile them. */
#include "experts_batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 5, COLUMNS = 2, MAX_TOKENS = 330, SMALL_TOKENS = 130 };

typedef struct unit_case {
    mf_format format;
    mf_act_quant act_quant;
    int variant;
    int64_t hidden, width, shared_width;
    mf_dtype act_dtype, y_dtype;
    bool has_bias, scales_input;
    mf_activation activation;
} unit_case;

static const unit_case cases[] = {
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 128, 64, 64, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 576, 192, 320, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 64, 128, 192, MF_BF16, MF_BF16, false, true, MF_ACT_SILU },
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 192, 64, 128, MF_BF16, MF_F32, true, false, MF_ACT_RELU2 },
    { MF_FORMAT_MXFP4, MF_ACT_QUANT_NONE, 100, 160, 96, 224, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_MXFP4, MF_ACT_QUANT_NONE, 101, 576, 320, 64, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 100, 160, 96, 224, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 106, 576, 320, 64, MF_BF16, MF_F32, true, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 101, 256, 96, 384, MF_BF16, MF_F32, true, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 107, 544, 192, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 102, 128, 128, 64, MF_BF16, MF_F16, false, true, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 128, 128, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 640, 256, 384, MF_BF16, MF_F32, true, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8_E8M0, 3, 256, 384, 128, MF_F16, MF_F32, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 3, 384, 128, 256, MF_F32, MF_F32, false, false, MF_ACT_GELU_TANH },
    /* slots of one width: the last FOR_MANY, for many tokens a slot, too */
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 320, 192, 192, MF_BF16, MF_BF16, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 128, 320, 320, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_BF16, MF_ACT_QUANT_NONE, 0, 64, 64, 64, MF_BF16, MF_BF16, true, false, MF_ACT_SILU_CLAMP },
};
enum { FOR_MANY = 3, MANY_TOKENS = 2100 };

/* Slots with more tokens than a tile, where FP8 has a kernel of its own: one, two, three and five lines of w2, rows of H that end
 * inside a tile, and H of whole four lines, whose scales come four at a time. */
static const unit_case many_fp8[] = {
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 128, 128, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 384, 256, 384, MF_BF16, MF_BF16, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8_E8M0, 0, 512, 256, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 128, 640, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU_CLAMP },
    /* one token's stages of w13 are fewer than blocks, and a unit has three of them */
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 2304, 128, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
};
enum { MANY_FP8_TOKENS = 500, SOME_FP8_TOKENS = 200 };

/* Weights of 8 and 16 bits beside activations that are not quantised, or with a scale a token: sizes of whole 16 columns,
 * scales of every kind; FP8 blocks of slots of one width, too, which few tokens have a kernel of their own for. */
static const unit_case wide_codes[] = {
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 100, 128, 128, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 101, 592, 208, 336, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 102, 272, 96, 464, MF_BF16, MF_BF16, true, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 104, 144, 176, 16, MF_BF16, MF_F16, false, true, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_NONE, 100, 256, 192, 64, MF_BF16, MF_BF16, true, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_NONE, 103, 592, 144, 272, MF_BF16, MF_F32, false, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_NONE, 101, 256, 192, 64, MF_BF16, MF_BF16, false, false, MF_ACT_SILU_CLAMP_AFTER },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_NONE, 102, 592, 144, 272, MF_BF16, MF_F32, true, false, MF_ACT_SILU },
    { MF_FORMAT_F16, MF_ACT_QUANT_NONE, 100, 256, 192, 64, MF_BF16, MF_BF16, true, false, MF_ACT_SILU },
    { MF_FORMAT_F16, MF_ACT_QUANT_NONE, 101, 592, 144, 272, MF_BF16, MF_F32, false, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 100, 256, 192, 64, MF_BF16, MF_BF16, true, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 103, 592, 144, 272, MF_BF16, MF_F32, false, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_INT8, 101, 256, 192, 64, MF_BF16, MF_BF16, false, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_W8A8, 102, 592, 144, 272, MF_BF16, MF_F32, true, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 101, 592, 208, 208, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 102, 1040, 464, 464, MF_BF16, MF_BF16, true, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_NONE, 100, 4112, 96, 96, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    /* A scale a row and slots of one width, which one token has a kernel of its own for: rows that end inside 128 columns. */
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_NONE, 102, 592, 208, 208, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_NONE, 101, 1040, 336, 336, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_NONE, 103, 592, 208, 208, MF_BF16, MF_BF16, true, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_NONE, 100, 272, 96, 96, MF_BF16, MF_F32, false, false, MF_ACT_SILU },
};

/* 4 bits of slots of one width, which a few tokens have a kernel of their own for: rows that end inside 128 columns and
 * inside 256, groups of 32, 64 and 128, scales of every dtype at any alignment, zero points, biases. */
static const unit_case four_bits[] = {
    { MF_FORMAT_MXFP4, MF_ACT_QUANT_NONE, 100, 160, 96, 96, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_MXFP4, MF_ACT_QUANT_NONE, 101, 1056, 160, 160, MF_BF16, MF_BF16, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_MXFP4, MF_ACT_QUANT_NONE, 100, 64, 544, 544, MF_BF16, MF_F32, true, false, MF_ACT_SILU_CLAMP_AFTER },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 100, 160, 96, 96, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 106, 576, 320, 320, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 112, 1184, 96, 96, MF_BF16, MF_BF16, true, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 101, 256, 384, 384, MF_BF16, MF_F16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 105, 608, 224, 224, MF_BF16, MF_BF16, true, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 107, 544, 192, 192, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 110, 352, 160, 160, MF_BF16, MF_F32, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_NONE, 115, 96, 544, 544, MF_BF16, MF_BF16, true, false, MF_ACT_SILU },
};

/* Codes of 8 bits on both sides, scales per row and token, in sizes of whole 128: one, two, three and five lines of w2, rows of
 * H that end inside a tile, one scale for a whole matrix, rows of more columns than a warp holds; the last three: scales of bf16. */
static const unit_case row_codes[] = {
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 102, 128, 128, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_INT8, 105, 384, 256, 384, MF_BF16, MF_BF16, true, false, MF_ACT_SWIGLU_OAI },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 105, 640, 384, 256, MF_BF16, MF_F32, true, false, MF_ACT_SILU_CLAMP },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_W8A8, 111, 128, 640, 128, MF_BF16, MF_F32, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 111, 384, 640, 640, MF_BF16, MF_BF16, true, false, MF_ACT_SILU_CLAMP_AFTER },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_W8A8, 102, 2304, 128, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 102, 128, 2304, 2304, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_W8A8, 103, 256, 384, 384, MF_BF16, MF_BF16, true, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 106, 384, 256, 128, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
    { MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, 109, 256, 256, 256, MF_BF16, MF_F32, true, false, MF_ACT_SILU },
};

/* Slots 0..3 of one width, slot 4 wider: a shared one. */
static void make_table(case_table *table, const unit_case *c, uint64_t *seed)
{
    *table = (case_table){ .hidden_size = c->hidden };
    for (int s = 0; s < SLOTS; s++) {
        case_slot_spec spec = silu(c->format, c->variant, s == SLOTS - 1 ? c->shared_width : c->width);
        spec.has_bias = c->has_bias;
        spec.activation = c->activation;
        spec.limit = 3.0f;
        spec.alpha = 1.702f;
        case_table_add(table, seed, &spec);
    }
}

static const void *row_of(const batch *b, int64_t t)
{
    return (const char *)b->x + (size_t)(t * b->hidden) * mf_dtype_size(b->act_dtype);
}

static int64_t y_row(const batch *b)
{
    return b->num_columns * b->hidden;
}

/* Hopper's FP8 products add with some 13 bits behind the largest addend's first one, so that the intermediate crosses a
 * boundary of its codes more often than by f32 sums: measured 2.7e-5 here. */
static double bound_of(const unit_case *c, const char *device)
{
    const bool fp8 = c->format == MF_FORMAT_FP8_BLOCK || c->format == MF_FORMAT_FP8_CHANNEL;
    const bool cuda_fp8 = fp8 && strncmp(device, "cuda", 4) == 0;
    return c->act_quant == MF_ACT_QUANT_NONE ? 2e-5 : cuda_fp8 ? 5e-5 : 1e-5;
}

/* `count` tokens from `first` as a batch of their own: the bits of the whole. */
static void check_part(const conf_device *d, const mf_experts *experts, const batch *b, const float *scale, int64_t first,
                       int64_t count, void *y, const char *what)
{
    case_run(d->device, experts, row_of(b, first), b->act_dtype, b->ids + first * b->num_columns,
             scale ? scale + first * b->num_columns : NULL, count, b->num_columns, b->hidden, b->y_dtype, y);
    for (int64_t i = 0; i < count * b->num_columns; i++) {
        if (b->ids[first * b->num_columns + i] < 0) {
            continue;
        }
        const size_t bytes = (size_t)b->hidden * mf_dtype_size(b->y_dtype);
        const char *whole = (const char *)b->y + (size_t)(first * b->num_columns + i) * bytes;
        if (conf_difference(whole, (const char *)y + (size_t)i * bytes, b->y_dtype, b->hidden) >= 0) {
            fail_msg("%s: %s: token %lld of %lld has other bits in a batch of %lld", d->label, what,
                     (long long)(first + i / b->num_columns), (long long)b->num_tokens, (long long)count);
        }
    }
}

/* How many of seven tokens each have the last slot in their first column, and the one before it in their second; slots
 * that are named at most, 0: all. */
typedef struct crowd {
    int last, before_last, most;
} crowd;

static void check_crowded(const unit_case *c, uint64_t seed, int64_t num_tokens, crowd of)
{
    case_table table;
    batch b;
    make_table(&table, c, &seed);
    make_batch(&b, &seed, num_tokens, COLUMNS, c->hidden, c->act_dtype, c->y_dtype, SLOTS);
    for (int64_t t = 0; t < num_tokens; t++) {
        int32_t *ids = b.ids + t * COLUMNS;
        ids[0] = t % 7 < of.last ? SLOTS - 1 : ids[0];
        ids[1] = t % 7 < of.before_last ? SLOTS - 2 : ids[1];
        for (int i = 0; i < COLUMNS && of.most > 0; i++) {
            ids[i] = SLOTS - 1 - ids[i] % of.most;
        }
    }
    for (int64_t i = 0; i < num_tokens * COLUMNS; i++) {
        if (i % 17 == 3) {
            b.ids[i] = -1;
        }
    }
    float *scale = c->scales_input ? malloc((size_t)(num_tokens * COLUMNS) * sizeof *scale) : NULL;
    for (int64_t i = 0; scale && i < num_tokens * COLUMNS; i++) {
        scale[i] = (float)(0.5 + mf_random_unit(&seed));
    }
    double *expected = scale ? NULL : expect(&table, &b, c->act_quant);
    void *y = conf_alloc((size_t)(num_tokens * y_row(&b)) * mf_dtype_size(c->y_dtype));
    const char *what = label("%s H %d I %d T %d", mf_format_name(c->format), (int)c->hidden, (int)c->width, (int)num_tokens);
    char name[200];
    snprintf(name, sizeof name, "%s", what);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_experts *experts = case_experts(devices[d].device, &table, c->act_dtype, c->act_quant);
        case_run(devices[d].device, experts, b.x, b.act_dtype, b.ids, scale, num_tokens, COLUMNS, c->hidden, c->y_dtype, b.y);
        if (expected) {
            /* Of a few like rows it shows if one code of the intermediate rounds the other way. */
            check_nmse(&b, expected, bound_of(c, devices[d].label) * (of.most > 0 ? 8 : 1), devices[d].label, name);
        }
        for (int64_t t = 0; t < num_tokens; t += conf_small() ? num_tokens : num_tokens / 5 + 1) {
            check_part(&devices[d], experts, &b, scale, t, 1, y, name);
        }
        for (int64_t few = 2; few <= 16 && few + 4 <= num_tokens; few *= 2) {
            check_part(&devices[d], experts, &b, scale, 3, few, y, name);
        }
        if (num_tokens > 40) {
            check_part(&devices[d], experts, &b, scale, 7, 30, y, name);
            if (!conf_small()) {
                check_part(&devices[d], experts, &b, scale, 1, num_tokens - 30, y, name);
            }
        }
        mf_experts_destroy(&experts);
    }
    conf_free(y);
    free(expected);
    free(scale);
    free_batch(&b);
    case_table_free(&table);
}

static void check_case(const unit_case *c, uint64_t seed, int64_t num_tokens)
{
    check_crowded(c, seed, num_tokens, (crowd){ 0, 0, 0 });
}

TEST(experts_of_whole_units_are_right_and_have_the_same_bits_alone_and_in_company)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_case(&cases[i], 900 + i, 3);
        check_case(&cases[i], 900 + i, conf_whole() ? 150 : 45);
        if (conf_whole() || i % 6 == 1) {
            check_case(&cases[i], 900 + i, conf_small() ? SMALL_TOKENS : MAX_TOKENS);
        }
    }
}

TEST(experts_of_many_tokens_a_slot_are_right_and_have_the_bits_of_few)
{
    for (size_t i = sizeof cases / sizeof cases[0] - FOR_MANY; i < sizeof cases / sizeof cases[0]; i++) {
        const bool many = conf_whole() || (conf_small() && i + 1 == sizeof cases / sizeof cases[0]);
        check_case(&cases[i], 900 + i, many ? MANY_TOKENS : 100);
    }
}

/* One slot with many tiles of tokens, as a shared expert has them; two, alike, nearly and not at all. */
TEST(experts_of_slots_that_most_tokens_share_are_right_and_have_the_bits_of_few)
{
    static const struct {
        int of; /* cases[] */
        int64_t num_tokens;
        crowd crowd;
    } crowded[] = { { 15, 900, { 7, 0, 0 } }, { 15, 900, { 7, 7, 0 } }, { 15, 900, { 7, 6, 0 } }, { 15, 1400, { 7, 3, 0 } },
                    { 1, 530, { 7, 0, 0 } },  { 1, 530, { 7, 7, 0 } },  { 12, 530, { 7, 0, 0 } } };
    for (size_t i = 0; i < sizeof crowded / sizeof crowded[0]; i++) {
        if (conf_whole() || i % 3 == 0) {
            check_crowded(&cases[crowded[i].of], 930 + i, conf_whole() ? crowded[i].num_tokens : 100, crowded[i].crowd);
        }
    }
}

/* Sums of w13 that go from block to block, where there are fewer chains of them than blocks and where there are more: the
 * bits are those of many tokens. */
TEST(experts_of_few_tokens_and_slots_have_the_bits_of_many_where_blocks_go_on_with_sums)
{
    static const unit_case long_rows[] = {
        { MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, 0, 2304, 384, 384, MF_BF16, MF_BF16, false, false, MF_ACT_SILU },
        { MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_INT8, 105, 1152, 640, 640, MF_BF16, MF_F32, true, false, MF_ACT_SWIGLU_OAI },
    };
    for (size_t i = 0; i < sizeof long_rows / sizeof long_rows[0]; i++) {
        for (int most = 1; most <= SLOTS; most += conf_whole() ? 1 : 2) {
            check_crowded(&long_rows[i], 950 + i, 9, (crowd){ .most = most });
        }
    }
}

TEST(experts_of_fp8_have_the_same_bits_where_slots_have_many_tokens)
{
    for (size_t i = 0; i < sizeof many_fp8 / sizeof many_fp8[0]; i++) {
        check_case(&many_fp8[i], 950 + i, conf_whole() ? MANY_FP8_TOKENS : conf_small() ? SOME_FP8_TOKENS : 100);
    }
}

TEST(experts_of_8_and_16_bits_are_right_and_have_the_same_bits_alone_and_in_company)
{
    for (size_t i = 0; i < sizeof wide_codes / sizeof wide_codes[0]; i++) {
        check_case(&wide_codes[i], 970 + i, 3);
        if (conf_whole() || wide_codes[i].hidden < 1000) {
            check_case(&wide_codes[i], 970 + i, conf_whole() ? 150 : 45);
        }
        if (conf_whole() || i % 4 == 1) {
            check_case(&wide_codes[i], 970 + i, conf_small() ? SMALL_TOKENS : MAX_TOKENS);
        }
    }
}

TEST(experts_of_4_bits_are_right_and_have_the_same_bits_alone_and_in_company)
{
    for (size_t i = 0; i < sizeof four_bits / sizeof four_bits[0]; i++) {
        check_case(&four_bits[i], 930 + i, 3);
        check_case(&four_bits[i], 930 + i, conf_whole() ? 150 : 45);
    }
}

TEST(experts_of_row_codes_are_right_and_have_the_same_bits_alone_and_in_company)
{
    for (size_t i = 0; i < sizeof row_codes / sizeof row_codes[0]; i++) {
        const bool is_short = row_codes[i].hidden + row_codes[i].width < 1200;
        check_case(&row_codes[i], 990 + i, 3);
        check_case(&row_codes[i], 990 + i, conf_whole() ? 150 : is_short ? 45 : 9);
        if (conf_whole() || (is_short && conf_small())) {
            check_case(&row_codes[i], 990 + i, conf_whole() ? MANY_FP8_TOKENS : SOME_FP8_TOKENS);
        }
    }
}

/* A token that is not a number, infinite or zero leaves the others' bits alone, however they share a tile. */
TEST(experts_of_row_codes_keep_odd_tokens_to_themselves)
{
    enum { HIDDEN = 256, WIDTH = 384 };
    static const int64_t tokens[] = { 7, 40, SOME_FP8_TOKENS };
    for (int i = 0; i < 6; i++) {
        const bool fp8 = i % 2 == 0;
        const int64_t num_tokens = tokens[i / 2];
        uint64_t seed = 80 + (uint64_t)i;
        case_table table = { .hidden_size = HIDDEN };
        for (int s = 0; s < SLOTS; s++) {
            case_slot_spec spec = silu(fp8 ? MF_FORMAT_FP8_CHANNEL : MF_FORMAT_INT8_CHANNEL, 102, WIDTH);
            case_table_add(&table, &seed, &spec);
        }
        batch b;
        make_batch(&b, &seed, num_tokens, COLUMNS, HIDDEN, MF_BF16, MF_BF16, SLOTS);
        const size_t count = (size_t)(num_tokens * y_row(&b));
        uint16_t *before = conf_alloc(count * 2), *kept = conf_alloc((size_t)(num_tokens * HIDDEN) * 2);
        memcpy(kept, b.x, (size_t)(num_tokens * HIDDEN) * 2);
        int num_devices;
        const conf_device *devices = conf_devices(&num_devices);
        for (int d = 0; d < num_devices; d++) {
            mf_experts *experts = case_experts(devices[d].device, &table, MF_BF16, MF_ACT_QUANT_W8A8);
            memcpy(b.x, kept, (size_t)(num_tokens * HIDDEN) * 2);
            run_batch(devices[d].device, experts, &b);
            memcpy(before, b.y, count * 2);
            for (int64_t t = 0; t < num_tokens; t++) {
                uint16_t *x = (uint16_t *)b.x + t * HIDDEN;
                if (t % 5 == 1 || t % 5 == 2) {
                    x[(t * 37) % HIDDEN] = t % 5 == 1 ? 0x7fc1 : t % 2 ? 0x7f80 : 0xff80;
                } else if (t % 5 == 3) {
                    memset(x, 0, HIDDEN * 2);
                }
            }
            run_batch(devices[d].device, experts, &b);
            mf_experts_destroy(&experts);
            for (size_t k = 0; k < count; k++) {
                const int kind = (int)(k / (size_t)y_row(&b) % 5);
                const float v = (float)conf_get(b.y, MF_BF16, (int64_t)k);
                const bool right = kind == 1   ? isnan(v)
                                   : kind == 2 ? !isfinite(v)
                                   : kind == 3 ? v == 0
                                               : ((const uint16_t *)b.y)[k] == before[k];
                if (!right) {
                    fail_msg("%s: %s of %d tokens: token %d, column %d: %g", devices[d].label, fp8 ? "fp8" : "int8",
                             (int)num_tokens, (int)(k / (size_t)y_row(&b)), (int)(k % HIDDEN), (double)v);
                }
            }
        }
        conf_free(before);
        conf_free(kept);
        free_batch(&b);
        case_table_free(&table);
    }
}

/* Codes 0x7f and 0xff of E4M3: in rows of w2 they are two columns of every output of their slot, and touch nothing else. */
TEST(experts_of_fp8_have_nan_where_a_code_is_one)
{
    enum { HIDDEN = 160, WIDTH = 96, TOKENS = 70 };
    for (int kind = 0; kind < 3; kind++) { /* blocks; rows; rows beside activations that are codes, too */
        const bool channel = kind > 0;
        const int64_t hidden = kind == 2 ? 256 : HIDDEN, width = kind == 2 ? 128 : WIDTH;
        uint64_t seed = 60 + (uint64_t)kind;
        case_table table = { .hidden_size = hidden };
        batch b;
        for (int s = 0; s < SLOTS; s++) {
            case_slot_spec spec = silu(channel ? MF_FORMAT_FP8_CHANNEL : MF_FORMAT_FP8_BLOCK, kind == 2 ? 102 : 100, width);
            case_table_add(&table, &seed, &spec);
        }
        make_batch(&b, &seed, TOKENS, COLUMNS, hidden, MF_BF16, MF_F32, SLOTS);
        float *before = conf_alloc((size_t)(TOKENS * y_row(&b)) * sizeof *before), *alone = conf_alloc((size_t)y_row(&b) * sizeof *alone);
        uint8_t *codes = table.slots[1].down.codes;
        const int64_t at[2] = { 9 * width + 37, 133 * width + 94 };
        const uint8_t kept[2] = { codes[at[0]], codes[at[1]] };
        int count;
        const conf_device *devices = conf_devices(&count);
        for (int d = 0; d < count; d++) {
            for (int with = 0; with < 2; with++) {
                codes[at[0]] = with ? 0x7f : kept[0];
                codes[at[1]] = with ? 0xff : kept[1];
                mf_experts *experts = case_experts(devices[d].device, &table, MF_BF16,
                                                   kind == 2 ? MF_ACT_QUANT_W8A8 : MF_ACT_QUANT_NONE);
                run_batch(devices[d].device, experts, &b);
                for (int64_t t = 0; t < TOKENS; t += 23) {
                    check_part(&devices[d], experts, &b, NULL, t, 1, alone, with ? "NaNs" : "none");
                }
                mf_experts_destroy(&experts);
                if (!with) {
                    memcpy(before, b.y, (size_t)(TOKENS * y_row(&b)) * sizeof *before);
                }
            }
            for (int64_t i = 0; i < TOKENS * COLUMNS; i++) {
                for (int64_t k = 0; k < hidden && b.ids[i] >= 0; k++) {
                    const float v = ((const float *)b.y)[i * hidden + k];
                    if (b.ids[i] == 1 && (k == 9 || k == 133) ? !isnan(v) : v != before[i * hidden + k]) {
                        fail_msg("%s: pair %d of slot %d, column %d: %g, before %g", devices[d].label, (int)i, (int)b.ids[i],
                                 (int)k, (double)v, (double)before[i * hidden + k]);
                    }
                }
            }
        }
        conf_free(alone);
        conf_free(before);
        free_batch(&b);
        case_table_free(&table);
    }
}

/* Scales times 2^power, zero points of the whole byte. */
static void change_scales(case_matrix *c, int power, uint64_t *seed)
{
    mf_matrix *m = &c->m;
    const int64_t count = (m->n - 1) * m->scale_row_stride + (m->k - 1) / (m->group_size ? m->group_size : 32) + 1;
    for (int64_t i = 0; i < count; i++) {
        if (m->format == MF_FORMAT_MXFP4) {
            ((uint8_t *)c->scales)[i] = (uint8_t)(((uint8_t *)c->scales)[i] + power);
        } else {
            conf_put(c->scales, m->scale_dtype, i, conf_get(c->scales, m->scale_dtype, i) * ldexp(1, power));
        }
        if (c->zeros) {
            c->zeros[i] = (uint8_t)conf_below(seed, 256);
        }
    }
    case_matrix_decode(c);
}

TEST(experts_of_4_bits_take_scales_of_any_size_and_any_zero_point)
{
    enum { HIDDEN = 160, WIDTH = 96, TOKENS = 20 };
    static const struct {
        mf_format format;
        int variant;
    } kinds[] = { { MF_FORMAT_MXFP4, 100 }, { MF_FORMAT_INT4_GROUP, 100 }, { MF_FORMAT_INT4_GROUP, 101 }, { MF_FORMAT_INT4_GROUP, 107 } };
    static const int powers[SLOTS] = { 0, 9, 16, -20, 5 };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        uint64_t seed = 40 + i;
        case_table table = { .hidden_size = HIDDEN };
        batch b;
        for (int s = 0; s < SLOTS; s++) {
            case_slot_spec spec = silu(kinds[i].format, kinds[i].variant, WIDTH);
            case_table_add(&table, &seed, &spec);
            case_slot *slot = &table.slots[s];
            change_scales(&slot->gate, powers[s] < 0 ? 0 : powers[s], &seed);
            change_scales(&slot->up, powers[s], &seed);
            change_scales(&slot->down, powers[s], &seed);
        }
        make_batch(&b, &seed, TOKENS, COLUMNS, HIDDEN, MF_BF16, MF_F32, SLOTS);
        float *alone = conf_alloc((size_t)y_row(&b) * sizeof *alone);
        int count;
        const conf_device *devices = conf_devices(&count);
        for (int64_t s = 0; s < SLOTS; s++) { /* apart: their results differ by many powers of 2 */
            for (int64_t t = 0; t < TOKENS * COLUMNS; t++) {
                b.ids[t] = (int32_t)s;
            }
            double *expected = expect(&table, &b, MF_ACT_QUANT_NONE);
            for (int d = 0; d < count; d++) {
                mf_experts *experts = case_experts(devices[d].device, &table, MF_BF16, MF_ACT_QUANT_NONE);
                run_batch(devices[d].device, experts, &b);
                const char *what = label("%s variant %d, scales times 2^%d", mf_format_name(kinds[i].format), kinds[i].variant, powers[s]);
                check_nmse(&b, expected, 2e-5, devices[d].label, what);
                for (int64_t t = 0; t < TOKENS; t += 9) {
                    check_part(&devices[d], experts, &b, NULL, t, 1, alone, what);
                }
                mf_experts_destroy(&experts);
            }
            free(expected);
        }
        conf_free(alone);
        free_batch(&b);
        case_table_free(&table);
    }
}

/* One layer's rows from batches of every size: the ways of gate, experts and combine meet. */
static void run_layer(mf_device *device, const unit_case *c, const case_table *table, const float *logits, const batch *b,
                      int64_t first, int64_t count, mf_layer_mode mode, void *out)
{
    const bool slot = mode == MF_MODE_SLOT;
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = SLOTS - 1;
    config.top_k = 2;
    config.num_shared_slots = slot;
    config.scoring = MF_SCORING_SIGMOID;
    config.bias_domain = MF_BIAS_NONE;
    config.renorm = MF_RENORM_SUM;
    config.routed_scaling_factor = 2.5;
    case_table routed = *table, shared = *table;
    routed.num_slots = slot ? SLOTS : SLOTS - 1;
    shared.num_slots = 1;
    shared.list[0] = table->list[SLOTS - 1];
    mf_experts *experts = case_experts(device, &routed, c->act_dtype, c->act_quant);
    mf_experts *apart = slot ? NULL : case_experts(device, &shared, c->act_dtype, c->act_quant);
    mf_gate_args gate = { .config = &config,
                          .router_logits = mf_tensor_2d(logits + first * (SLOTS - 1), MF_F32, count, SLOTS - 1) };
    mf_layer_args args = { .gate = &gate,
                           .experts = experts,
                           .shared = apart,
                           .mode = mode,
                           .y_dtype = c->y_dtype,
                           .x = mf_tensor_2d(row_of(b, first), c->act_dtype, count, c->hidden),
                           .out = mf_tensor_2d(out, MF_F32, count, c->hidden) };
    mf_error err = { 0 };
    size_t bytes = mf_moe_layer_workspace_bytes(&args);
    void *workspace = conf_alloc(bytes);
    CHECK_OK(mf_moe_layer(device, &args, workspace, bytes, &err), err);
    conf_free(workspace);
    mf_experts_destroy(&experts);
    mf_experts_destroy(&apart);
}

TEST(layer_of_whole_units_has_the_same_bits_in_every_mode_and_batch)
{
    enum { TOKENS = 150 };
    static const int64_t parts[][2] = { { 0, 1 }, { 5, 8 }, { 20, 42 }, { 9, 100 }, { 3, 2 }, { 30, 4 } };
    int count;
    const conf_device *devices = conf_devices(&count);
    const size_t own = sizeof cases / sizeof cases[0], wide = own + sizeof wide_codes / sizeof wide_codes[0],
                 four = wide + sizeof four_bits / sizeof four_bits[0];
    for (size_t i = 0; i < four + sizeof row_codes / sizeof row_codes[0]; i += 2) {
        const unit_case *c = i < own    ? &cases[i]
                             : i < wide ? &wide_codes[i - own]
                             : i < four ? &four_bits[i - wide]
                                        : &row_codes[i - four];
        if (c->scales_input || (!conf_whole() && i % (conf_small() ? 8 : 4) != 0)) {
            continue;
        }
        uint64_t seed = 70 + i;
        case_table table;
        batch b;
        make_table(&table, c, &seed);
        make_batch(&b, &seed, TOKENS, 1, c->hidden, c->act_dtype, c->y_dtype, SLOTS);
        float *logits = conf_alloc(TOKENS * (SLOTS - 1) * sizeof *logits);
        for (int64_t k = 0; k < TOKENS * (SLOTS - 1); k++) {
            logits[k] = (float)conf_normal(&seed);
        }
        float *whole = conf_alloc((size_t)(TOKENS * c->hidden) * 4), *part = conf_alloc((size_t)(TOKENS * c->hidden) * 4);
        for (int d = 0; d < count; d++) {
            run_layer(devices[d].device, c, &table, logits, &b, 0, TOKENS, MF_MODE_SLOT, whole);
            for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
                for (int mode = MF_MODE_SLOT; mode <= MF_MODE_SERIAL; mode++) {
                    run_layer(devices[d].device, c, &table, logits, &b, parts[p][0], parts[p][1], (mf_layer_mode)mode, part);
                    if (conf_difference(whole + parts[p][0] * c->hidden, part, MF_F32, parts[p][1] * c->hidden) >= 0) {
                        fail_msg("%s: %s H %d I %d: tokens %d to %d, mode %s: other bits", devices[d].label,
                                 mf_format_name(c->format), (int)c->hidden, (int)c->width, (int)parts[p][0],
                                 (int)(parts[p][0] + parts[p][1]), mf_layer_mode_name((mf_layer_mode)mode));
                    }
                }
            }
        }
        conf_free(whole);
        conf_free(part);
        conf_free(logits);
        free_batch(&b);
        case_table_free(&table);
    }
}
