/* experts_bits.c - mf_fused_experts' promises about bits, about columns it leaves alone, and about what it refuses. */
#include "experts_batch.h"

#include <math.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "base/number.h"

/* ---- bits ---- */

/* One slot of each format and, where it matters, quantisation; wide enough that the pool has work. */
static void bit_table(case_table *table, int64_t hidden, int64_t width)
{
    uint64_t seed = 31;
    *table = (case_table){ .hidden_size = hidden };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        case_slot_spec spec = silu((mf_format)f, f, width + f);
        spec.has_bias = f % 2;
        spec.input_scale13 = f == MF_FORMAT_FP8_CHANNEL ? 0.02f : 0;
        case_table_add(table, &seed, &spec);
    }
}

static void check_alone(int64_t tokens, int64_t hidden)
{
    enum { COLUMNS = 4 };
    case_table table;
    bit_table(&table, hidden, 130);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int quant = MF_ACT_QUANT_NONE; quant <= MF_ACT_QUANT_INT8; quant++) {
            uint64_t seed = 41;
            mf_experts *experts = case_experts(devices[d].device, &table, MF_BF16, (mf_act_quant)quant);
            batch b;
            make_batch(&b, &seed, tokens, COLUMNS, hidden, MF_BF16, MF_F32, table.num_slots);
            run_batch(devices[d].device, experts, &b);
            float *alone = conf_alloc((size_t)(COLUMNS * hidden) * sizeof(float));
            for (int64_t t = 0; t < tokens; t++) {
                case_run(devices[d].device, experts, (const uint16_t *)b.x + t * hidden, MF_BF16, b.ids + t * COLUMNS,
                         NULL, 1, COLUMNS, hidden, MF_F32, alone);
                int64_t at = conf_difference(alone, (float *)b.y + t * COLUMNS * hidden, MF_F32, COLUMNS * hidden);
                if (at >= 0) {
                    fail_msg("%s, act_quant %d: token %d, column %d (slot %d) differs alone", devices[d].label, quant,
                             (int)t, (int)(at / hidden), (int)b.ids[t * COLUMNS + at / hidden]);
                }
            }
            conf_free(alone);
            free_batch(&b);
            mf_experts_destroy(&experts);
        }
    }
    case_table_free(&table);
}

TEST(experts_a_rows_bits_do_not_depend_on_the_batch)
{
    check_alone(29, 200);
    check_alone(7, 1160); /* w2 in products of 64 rows to 512, by what is picked */
}

TEST(experts_bits_do_not_depend_on_threads)
{
    enum { TOKENS = 40, COLUMNS = 3, HIDDEN = 256 };
    case_table table;
    bit_table(&table, HIDDEN, 192);
    for (int quant = MF_ACT_QUANT_NONE; quant <= MF_ACT_QUANT_INT8; quant++) {
        float *first = NULL;
        for (int32_t threads = 1; threads <= 4; threads++) {
            mf_error err = { 0 };
            mf_device *device;
            mf_device_options options = { .num_threads = threads };
            CHECK_OK(mf_device_open("cpu", &options, &device, &err), err);
            CHECK_EQ(mf_device_num_threads(device), threads);
            mf_experts *experts = case_experts(device, &table, MF_F32, (mf_act_quant)quant);
            uint64_t seed = 51;
            batch b;
            make_batch(&b, &seed, TOKENS, COLUMNS, HIDDEN, MF_F32, MF_F32, table.num_slots);
            for (int repeat = 0; repeat < 3; repeat++) {
                run_batch(device, experts, &b);
                if (!first) {
                    first = malloc(TOKENS * COLUMNS * HIDDEN * sizeof(float));
                    memcpy(first, b.y, TOKENS * COLUMNS * HIDDEN * sizeof(float));
                }
                CHECK_EQ(conf_difference(first, b.y, MF_F32, TOKENS * COLUMNS * HIDDEN), -1);
            }
            free_batch(&b);
            mf_experts_destroy(&experts);
            mf_device_close(&device);
        }
        free(first);
    }
    case_table_free(&table);
}

TEST(experts_passes_over_many_tokens_give_the_bits_of_one_token)
{
    enum { TOKENS = 1100, COLUMNS = 2, HIDDEN = 24 }; /* more than one pass of the cpu backend's */
    uint64_t seed = 61;
    case_table table = { .hidden_size = HIDDEN };
    for (int s = 0; s < 4; s++) {
        case_slot_spec spec = silu(s % 2 ? MF_FORMAT_INT8_CHANNEL : MF_FORMAT_BF16, s, 8);
        case_table_add(&table, &seed, &spec);
    }
    batch b;
    make_batch(&b, &seed, TOKENS, COLUMNS, HIDDEN, MF_F32, MF_BF16, 4);
    float *scale = malloc(TOKENS * COLUMNS * sizeof(float));
    for (int i = 0; i < TOKENS * COLUMNS; i++) {
        scale[i] = (float)mf_random_unit(&seed);
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_experts *experts = case_experts(devices[d].device, &table, MF_F32, MF_ACT_QUANT_W8A8);
        for (int scaled = 0; scaled < 2; scaled++) {
            case_run(devices[d].device, experts, b.x, MF_F32, b.ids, scaled ? scale : NULL, TOKENS, COLUMNS, HIDDEN,
                     MF_BF16, b.y);
            uint16_t *alone = conf_alloc(COLUMNS * HIDDEN * 2);
            for (int64_t t = 0; t < TOKENS; t += 91) {
                case_run(devices[d].device, experts, (float *)b.x + t * HIDDEN, MF_F32, b.ids + t * COLUMNS,
                         scaled ? scale + t * COLUMNS : NULL, 1, COLUMNS, HIDDEN, MF_BF16, alone);
                CHECK_EQ(conf_difference(alone, (uint16_t *)b.y + t * COLUMNS * HIDDEN, MF_BF16, COLUMNS * HIDDEN), -1);
            }
            conf_free(alone);
        }
        mf_experts_destroy(&experts);
    }
    free(scale);
    free_batch(&b);
    case_table_free(&table);
}

TEST(experts_replicas_of_a_slot_give_the_same_bits)
{
    enum { HIDDEN = 70, REPLICAS = 8 };
    uint64_t seed = 71;
    case_table table = { .hidden_size = HIDDEN };
    case_slot_spec spec = silu(MF_FORMAT_FP8_BLOCK, 1, 50);
    case_table_add(&table, &seed, &spec);
    for (int r = 1; r < REPLICAS; r++) {
        table.list[r] = table.list[0]; /* the same pointers again */
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        table.num_slots = REPLICAS;
        mf_experts *experts = case_experts(devices[d].device, &table, MF_BF16, MF_ACT_QUANT_NONE);
        table.num_slots = 1;
        batch b;
        make_batch(&b, &seed, 1, REPLICAS, HIDDEN, MF_BF16, MF_BF16, 1);
        for (int32_t r = 0; r < REPLICAS; r++) {
            b.ids[r] = r;
        }
        run_batch(devices[d].device, experts, &b);
        for (int r = 1; r < REPLICAS; r++) {
            CHECK_MEM((uint16_t *)b.y + r * HIDDEN, b.y, HIDDEN * 2);
        }
        free_batch(&b);
        mf_experts_destroy(&experts);
    }
    case_table_free(&table);
}

TEST(experts_keep_subnormals_whatever_the_caller_set)
{
#if defined(__x86_64__)
    enum { HIDDEN = 64, TOKENS = 50 };
    case_table table;
    bit_table(&table, HIDDEN, 64);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        uint64_t seed = 81;
        mf_experts *experts = case_experts(devices[d].device, &table, MF_F32, MF_ACT_QUANT_NONE);
        batch b;
        make_batch(&b, &seed, TOKENS, 2, HIDDEN, MF_F32, MF_F32, table.num_slots);
        for (int64_t i = 0; i < TOKENS * HIDDEN; i++) {
            ((float *)b.x)[i] *= i % 2 ? 0x1p-64f : 0x1p-70f; /* g * u near 2^-130 */
        }
        run_batch(devices[d].device, experts, &b);
        float *plain = malloc(TOKENS * 2 * HIDDEN * sizeof(float));
        memcpy(plain, b.y, TOKENS * 2 * HIDDEN * sizeof(float));
        unsigned saved = _mm_getcsr();
        _mm_setcsr(saved | 0x8040u | 0x2000u); /* FTZ, DAZ, round down */
        run_batch(devices[d].device, experts, &b);
        bool kept = (_mm_getcsr() & 0xe040u) == 0xa040u;
        _mm_setcsr(saved);
        CHECK(kept);
        CHECK_EQ(conf_difference(plain, b.y, MF_F32, TOKENS * 2 * HIDDEN), -1);
        free(plain);
        free_batch(&b);
        mf_experts_destroy(&experts);
    }
    case_table_free(&table);
#endif
}

/* ---- ids ---- */

TEST(experts_leave_columns_without_an_id_untouched)
{
    enum { TOKENS = 9, COLUMNS = 3, HIDDEN = 33 };
    uint64_t seed = 91;
    case_table table = { .hidden_size = HIDDEN };
    for (int s = 0; s < 6; s++) {
        case_slot_spec spec = silu(MF_FORMAT_BF16, s, 20);
        case_table_add(&table, &seed, &spec);
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_experts *experts = case_experts(devices[d].device, &table, MF_F32, MF_ACT_QUANT_NONE);
        for (int kind = 0; kind < 4; kind++) { /* half, all, one slot takes everything, an id past the table */
            batch b;
            make_batch(&b, &seed, TOKENS, COLUMNS, HIDDEN, MF_F32, MF_F32, 6);
            for (int64_t i = 0; i < TOKENS * COLUMNS; i++) {
                b.ids[i] = kind == 0 && i % 2 ? -1 : kind == 1 ? -(int32_t)i - 1 : kind == 2 ? 4 : b.ids[i];
            }
            b.ids[5] = kind == 3 ? 6 : b.ids[5];
            double *expected = expect(&table, &b, MF_ACT_QUANT_NONE);
            run_batch(devices[d].device, experts, &b);
            check_nmse(&b, expected, 1e-11, devices[d].label, label("ids of kind %d", kind));
            for (int64_t i = 0; i < TOKENS * COLUMNS * HIDDEN; i++) {
                if (b.ids[i / HIDDEN] < 0) {
                    CHECK_EQ(mf_f32_bits(((float *)b.y)[i]), 0xa5a5a5a5u);
                }
                if (kind == 3 && i / HIDDEN == 5) {
                    CHECK_EQ(mf_f32_bits(((float *)b.y)[i]), 0u);
                }
            }
            free(expected);
            free_batch(&b);
        }
        mf_experts_destroy(&experts);
    }
    case_table_free(&table);
}

/* The bits of a slot's rows when it is alone in a table. */
static void check_slot_alone(mf_device *device, const case_table *table, int32_t slot, const char *name)
{
    const int64_t hidden = table->hidden_size;
    uint64_t seed = 101;
    batch b;
    make_batch(&b, &seed, 5, 3, hidden, MF_BF16, MF_F32, table->num_slots - 1);
    for (int64_t t = 0; t < 5; t++) {
        b.ids[3 * t + 2] = slot;
    }
    mf_experts *together = case_experts(device, table, MF_BF16, MF_ACT_QUANT_NONE);
    run_batch(device, together, &b);
    case_table one = { .num_slots = 1, .hidden_size = hidden, .list = { table->list[slot] } };
    mf_experts *alone = case_experts(device, &one, MF_BF16, MF_ACT_QUANT_NONE);
    int32_t zeros[5] = { 0 };
    float *y = conf_alloc((size_t)(5 * hidden) * sizeof(float));
    case_run(device, alone, b.x, MF_BF16, zeros, NULL, 5, 1, hidden, MF_F32, y);
    for (int64_t t = 0; t < 5; t++) {
        if (conf_difference(y + t * hidden, (float *)b.y + (3 * t + 2) * hidden, MF_F32, hidden) >= 0) {
            fail_msg("%s: slot %d computes something else beside other slots", name, (int)slot);
        }
    }
    conf_free(y);
    free_batch(&b);
    mf_experts_destroy(&alone);
    mf_experts_destroy(&together);
}

TEST(experts_a_shared_slot_keeps_its_own_format_width_and_limits)
{
    /* Routed int4 and mxfp4 experts with a clamp; shared slots behind them: bf16 of a width below 32, fp8, no clamp; of widths
     * that kernels for tables of one format do not take. */
    uint64_t seed = 111;
    case_table table = { .hidden_size = 192 };
    for (int s = 0; s < 4; s++) {
        case_slot_spec spec = silu(s % 2 ? MF_FORMAT_MXFP4 : MF_FORMAT_INT4_GROUP, 0, 64);
        spec.activation = MF_ACT_SILU_CLAMP;
        spec.limit = 0.01f;
        case_table_add(&table, &seed, &spec);
    }
    case_slot_spec narrow = silu(MF_FORMAT_BF16, 0, 17), fp8 = silu(MF_FORMAT_FP8_BLOCK, 0, 120);
    case_table_add(&table, &seed, &narrow);
    case_table_add(&table, &seed, &fp8);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int32_t slot = 4; slot < 6; slot++) {
            check_slot_alone(devices[d].device, &table, slot, devices[d].label);
        }
    }
    batch b;
    make_batch(&b, &seed, 4, 2, 192, MF_F32, MF_F32, 1);
    for (int i = 0; i < 8; i++) {
        b.ids[i] = 4 + i % 2;
    }
    double *expected = expect(&table, &b, MF_ACT_QUANT_NONE); /* with a clamp at 0.01 it would be far away */
    mf_experts *experts = case_experts(conf_ref(), &table, MF_F32, MF_ACT_QUANT_NONE);
    run_batch(conf_ref(), experts, &b);
    check_nmse(&b, expected, 1e-11, "ref", "unclamped shared slots");
    mf_experts_destroy(&experts);
    free(expected);
    free_batch(&b);
    case_table_free(&table);
}

TEST(experts_input_scale_multiplies_x_and_rounds_to_its_dtype)
{
    enum { TOKENS = 6, COLUMNS = 2, HIDDEN = 80 };
    uint64_t seed = 121;
    case_table table = { .hidden_size = HIDDEN };
    for (int s = 0; s < 3; s++) {
        case_slot_spec spec = silu(s == 2 ? MF_FORMAT_FP8_CHANNEL : MF_FORMAT_BF16, 0, 40);
        case_table_add(&table, &seed, &spec);
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int quant = MF_ACT_QUANT_NONE; quant <= MF_ACT_QUANT_INT8; quant++) {
            batch b;
            make_batch(&b, &seed, TOKENS, COLUMNS, HIDDEN, MF_BF16, MF_F32, 3);
            float scale[TOKENS * COLUMNS];
            uint16_t x[TOKENS * COLUMNS * HIDDEN]; /* the scaled rows, as tokens of their own */
            for (int i = 0; i < TOKENS * COLUMNS; i++) {
                scale[i] = (float)mf_random_unit(&seed);
                for (int h = 0; h < HIDDEN; h++) {
                    conf_put(x, MF_BF16, i * HIDDEN + h,
                             (double)((float)conf_get(b.x, MF_BF16, i / COLUMNS * HIDDEN + h) * scale[i]));
                }
            }
            mf_experts *experts = case_experts(devices[d].device, &table, MF_BF16, (mf_act_quant)quant);
            float *expected = conf_alloc(TOKENS * COLUMNS * HIDDEN * sizeof(float));
            case_run(devices[d].device, experts, x, MF_BF16, b.ids, NULL, TOKENS * COLUMNS, 1, HIDDEN, MF_F32,
                     expected);
            case_run(devices[d].device, experts, b.x, MF_BF16, b.ids, scale, TOKENS, COLUMNS, HIDDEN, MF_F32, b.y);
            CHECK_EQ(conf_difference(expected, b.y, MF_F32, TOKENS * COLUMNS * HIDDEN), -1);
            conf_free(expected);
            free_batch(&b);
            mf_experts_destroy(&experts);
        }
    }
    case_table_free(&table);
}

TEST(experts_take_strided_and_unaligned_rows)
{
    enum { TOKENS = 4, COLUMNS = 2, HIDDEN = 37 };
    uint64_t seed = 131;
    case_table table = { .hidden_size = HIDDEN };
    case_slot_spec spec = silu(MF_FORMAT_BF16, 1, 19);
    case_table_add(&table, &seed, &spec);
    case_table_add(&table, &seed, &spec);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int dtype = 0; dtype < 3; dtype++) {
            const size_t size = mf_dtype_size(case_act_dtypes[dtype]);
            mf_experts *experts = case_experts(devices[d].device, &table, case_act_dtypes[dtype], MF_ACT_QUANT_NONE);
            batch b;
            make_batch(&b, &seed, TOKENS, COLUMNS, HIDDEN, case_act_dtypes[dtype], case_act_dtypes[dtype], 2);
            run_batch(devices[d].device, experts, &b);
            uint8_t *x = conf_alloc(TOKENS * 41 * size + 1), *y = conf_alloc(TOKENS * 97 * size + 1);
            for (int64_t t = 0; t < TOKENS; t++) {
                memcpy(x + 1 + (size_t)(t * 41) * size, (uint8_t *)b.x + (size_t)(t * HIDDEN) * size, HIDDEN * size);
            }
            mf_tensor xs = mf_tensor_2d(x + 1, case_act_dtypes[dtype], TOKENS, HIDDEN);
            mf_tensor ys = mf_tensor_3d(y + 1, case_act_dtypes[dtype], TOKENS, COLUMNS, HIDDEN);
            xs.stride[0] = 41;
            ys.stride[0] = 97;
            ys.stride[1] = 45;
            mf_error err = { 0 };
            size_t bytes = mf_fused_experts_workspace_bytes(experts, TOKENS, COLUMNS);
            void *workspace = conf_alloc(bytes);
            mf_experts_args args = {
                .experts = experts, .x = xs, .topk_ids = mf_tensor_2d(b.ids, MF_I32, TOKENS, COLUMNS), .y = ys
            };
            CHECK_OK(mf_fused_experts(devices[d].device, &args, workspace, bytes, &err), err);
            for (int64_t i = 0; i < TOKENS * COLUMNS; i++) {
                CHECK_MEM(y + 1 + (size_t)(i / COLUMNS * 97 + i % COLUMNS * 45) * size,
                          (uint8_t *)b.y + (size_t)(i * HIDDEN) * size, HIDDEN * size);
            }
            CHECK_EQ(y[0], CONF_POISON);
            CHECK_EQ(y[1 + HIDDEN * size], CONF_POISON); /* between rows */
            conf_free(workspace);
            conf_free(x);
            conf_free(y);
            free_batch(&b);
            mf_experts_destroy(&experts);
        }
    }
    case_table_free(&table);
}

/* ---- bad arguments ---- */

static mf_slot good_slot(void)
{
    static const float weights[64 * 64];
    mf_matrix m = { .data = weights, .n = 8, .k = 16, .row_stride = 16, .format = MF_FORMAT_F32 };
    mf_slot slot = { .gate = m, .up = m, .down = m };
    slot.down.n = 16;
    slot.down.k = 8;
    slot.down.row_stride = 8;
    return slot;
}

static void refuse_desc(const mf_experts_desc *desc, mf_status expected, const char *part)
{
    mf_error err = { 0 };
    mf_experts *experts = NULL;
    mf_status status = mf_experts_create(conf_ref(), desc, &experts, &err);
    CHECK(experts == NULL);
    CHECK_HAS(err.message, part);
    CHECK_EQ(status, expected);
}

TEST(experts_create_names_what_is_wrong)
{
    static const float scales[64];
    static const uint8_t bytes[64];
    mf_slot slots[2] = { good_slot(), good_slot() };
    mf_experts_desc good = { .num_slots = 2, .hidden_size = 16, .slots = slots, .act_dtype = MF_F32 }, desc;
    mf_error err = { 0 };
    mf_experts *experts;
    CHECK_OK(mf_experts_create(conf_ref(), &good, &experts, &err), err);
    mf_experts_destroy(&experts);
    CHECK(experts == NULL);
    mf_experts_destroy(&experts);
#define REFUSE(change, part)                                                                                           \
    do {                                                                                                               \
        desc = good;                                                                                                   \
        slots[0] = slots[1] = good_slot();                                                                             \
        change;                                                                                                        \
        refuse_desc(&desc, MF_ERR_INVALID, part);                                                                      \
    } while (0)
    REFUSE(desc.num_slots = 0, "num_slots 0; expected 1 to");
    REFUSE(desc.hidden_size = 0, "hidden_size 0");
    REFUSE(desc.act_dtype = MF_I8, "act_dtype i8; expected f32, bf16 or f16");
    REFUSE(desc.act_quant = (mf_act_quant)7, "act_quant 7");
    REFUSE(desc.hidden_size = 17, "slot 0 up: shape [8, 16]; expected [8, 17]");
    REFUSE(slots[1].down.n = 15, "slot 1 down: shape [15, 8]; expected [16, 8]");
    REFUSE(slots[1].gate.n = 7, "slot 1 gate: shape [7, 16]; expected [8, 16]");
    REFUSE(slots[1].gate.data = NULL, "slot 1: gate weights are missing");
    REFUSE(slots[1].activation = MF_ACT_RELU2, "RELU2 has no gate");
    REFUSE(slots[1].activation = (mf_activation)99, "slot 1: activation 99");
    REFUSE(slots[0].activation = MF_ACT_SILU_CLAMP, "slot 0: limit 0; expected a number > 0");
    REFUSE((slots[0].activation = MF_ACT_SWIGLU_OAI, slots[0].limit = 7, slots[0].alpha = NAN), "alpha nan");
    REFUSE(slots[0].activation = MF_ACT_SITU, "beta 0, lbeta 0");
    REFUSE(slots[0].input_scale2 = -1, "input scales 0 and -1");
    REFUSE(slots[0].up.data = NULL, "slot 0 up: weights are missing");
    REFUSE(slots[0].up.format = (mf_format)42, "slot 0 up: format 42");
    REFUSE(slots[0].up.row_stride = 15, "row_stride 15");
    REFUSE((slots[0].up.n = INT64_MAX / 8), "do not fit in memory");
    REFUSE(slots[0].up.format = MF_FORMAT_FP8_BLOCK, "slot 0 up: format fp8_block needs a scale");
    REFUSE(
        (slots[0].up.format = MF_FORMAT_INT8_CHANNEL, slots[0].up.scale = scales, slots[0].up.scale_dtype = MF_F8_E8M0),
        "scale dtype f8_e8m0; expected f32, bf16 or f16 for format int8_channel");
    REFUSE((slots[0].up.format = MF_FORMAT_MXFP4, slots[0].up.scale = bytes), "scale dtype f32; expected f8_e8m0");
    REFUSE((slots[0].up.format = MF_FORMAT_INT4_GROUP, slots[0].up.scale = scales), "group_size 0");
    REFUSE((slots[0].up.format = MF_FORMAT_INT4_GROUP, slots[0].up.scale = scales, slots[0].up.group_size = 4,
            slots[0].up.scale_row_stride = 3),
           "scale_row_stride 3; expected at least 4");
    REFUSE((slots[0].up.format = MF_FORMAT_INT8_CHANNEL, slots[0].up.scale = scales, slots[0].up.scale_row_stride = 1),
           "slot 0 gate: format f32; expected that of up, int8_channel");
#undef REFUSE
}

TEST(experts_run_names_what_is_wrong)
{
    mf_slot slot = good_slot();
    mf_experts_desc desc = { .num_slots = 1, .hidden_size = 16, .slots = &slot, .act_dtype = MF_F32 };
    mf_error err = { 0 };
    mf_experts *experts;
    CHECK_OK(mf_experts_create(conf_ref(), &desc, &experts, &err), err);
    float x[48], y[96];
    int32_t ids[6] = { 0 };
    size_t bytes = mf_fused_experts_workspace_bytes(experts, 3, 2);
    void *workspace = conf_alloc(bytes);
    mf_experts_args good = { .experts = experts,
                             .x = mf_tensor_2d(x, MF_F32, 3, 16),
                             .topk_ids = mf_tensor_2d(ids, MF_I32, 3, 2),
                             .y = mf_tensor_3d(y, MF_F32, 3, 2, 16) };
#define REFUSE(change, part)                                                                                           \
    do {                                                                                                               \
        mf_experts_args args = good;                                                                                   \
        change;                                                                                                        \
        CHECK_EQ(mf_fused_experts(conf_ref(), &args, workspace, bytes, &err), MF_ERR_INVALID);                         \
        CHECK_HAS(err.message, part);                                                                                  \
    } while (0)
    REFUSE(args.x.dtype = MF_BF16, "x: dtype bf16; expected f32");
    REFUSE(args.x.shape[1] = 15, "x: shape [3, 15]; expected [3, 16]");
    REFUSE(args.topk_ids.dtype = MF_I64, "topk_ids: dtype i64; expected i32");
    REFUSE(args.y.shape[1] = 3, "y: shape [3, 3, 16]; expected [3, 2, 16]");
    REFUSE(args.y.dtype = MF_F64, "y: dtype f64");
    REFUSE(args.y.stride[1] = 15, "y: stride");
    REFUSE(args.y.data = x, "y overlaps x");
    REFUSE(args.experts = NULL, "experts is NULL");
    REFUSE(args.input_scale = mf_tensor_2d(x, MF_F32, 3, 3), "input_scale: shape [3, 3]; expected [3, 2]");
#undef REFUSE
    CHECK_EQ(mf_fused_experts(conf_ref(), &good, workspace, bytes - 1, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "workspace");
    mf_device *other;
    CHECK_OK(mf_device_open("cpu", NULL, &other, &err), err);
    CHECK_EQ(mf_fused_experts(other, &good, workspace, bytes, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "created for another device (ref)");
    mf_device_close(&other);
    good.x.shape[0] = good.topk_ids.shape[0] = good.y.shape[0] = 0; /* no tokens: nothing to do, nothing needed */
    CHECK_OK(mf_fused_experts(conf_ref(), &good, NULL, 0, &err), err);
    CHECK_EQ(mf_fused_experts_workspace_bytes(experts, INT64_MAX / 2, 9), bytes); /* ref works column by column */
    mf_experts_destroy(&experts);
    conf_free(workspace);
}

TEST(device_names_known_backends_and_isas)
{
    mf_error err = { 0 };
    mf_device *device = NULL;
    CHECK_EQ(mf_device_open("gpu", NULL, &device, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "device \"gpu\": unknown; expected cpu, ref, cuda or cuda:N");
    CHECK(device == NULL);
    setenv("MOEFUSE_ISA", "sse9", 1);
    CHECK_EQ(mf_device_open("cpu", NULL, &device, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "MOEFUSE_ISA \"sse9\": unknown; expected one of c");
    setenv("MOEFUSE_ISA", "c", 1);
    mf_device_options options = { .num_threads = 2 };
    CHECK_OK(mf_device_open("cpu", &options, &device, &err), err);
    unsetenv("MOEFUSE_ISA");
    CHECK_STR(mf_device_description(device), "cpu c, 2 threads");
    CHECK_STR(mf_device_name(device), "cpu");
    mf_device_close(&device);
    CHECK(device == NULL);
    mf_device_close(&device);
    options.num_threads = -1;
    CHECK_EQ(mf_device_open("cpu", &options, &device, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "num_threads -1");
}
