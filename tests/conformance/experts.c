/* experts.c - mf_fused_experts on every device against double precision. */
#include "experts_batch.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"

/* ---- products ---- */

/* Two routed slots and one shared slot of another format and width; every device within rounding of double precision.
 */
static void check_pair(uint64_t seed, mf_format routed, mf_format shared, int variant, int64_t tokens, int64_t hidden,
                       int64_t width, mf_dtype act_dtype, mf_dtype y_dtype)
{
    uint64_t first_seed = seed;
    case_table table = { .hidden_size = hidden };
    case_slot_spec spec = silu(routed, variant, width);
    case_table_add(&table, &seed, &spec);
    case_table_add(&table, &seed, &spec);
    spec = silu(shared, variant + 1, width / 2 + 1);
    case_table_add(&table, &seed, &spec);
    batch b;
    make_batch(&b, &seed, tokens, 3, hidden, act_dtype, y_dtype, 2);
    for (int64_t t = 0; t < tokens; t++) {
        b.ids[3 * t + 2] = 2;
    }
    double *expected = expect(&table, &b, MF_ACT_QUANT_NONE);
    double bound = case_bound(act_dtype, y_dtype);
    if (width < 100) {
        bound *= 2; /* few terms: the rounding of the largest decides, and its square is up to 3 times the average's */
    }
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_experts *experts = case_experts(devices[d].device, &table, act_dtype, MF_ACT_QUANT_NONE);
        run_batch(devices[d].device, experts, &b);
        check_nmse(&b, expected, bound, devices[d].label,
                   label("%s x %s variant %d, T %d H %d I %d %s -> %s, seed %llu", mf_format_name(routed),
                         mf_format_name(shared), variant, (int)tokens, (int)hidden, (int)width,
                         mf_dtype_name(act_dtype), mf_dtype_name(y_dtype), (unsigned long long)first_seed));
        mf_experts_destroy(&experts);
    }
    free(expected);
    free_batch(&b);
    case_table_free(&table);
}

TEST(experts_every_pair_of_formats_is_within_rounding_of_double_precision)
{
    static const int64_t shapes[][2] = { { 64, 32 }, { 129, 65 }, { 130, 67 }, { 256, 48 } };
    for (int routed = 0; routed < MF_FORMAT_COUNT; routed++) {
        for (int shared = 0; shared < MF_FORMAT_COUNT; shared++) {
            int i = routed * MF_FORMAT_COUNT + shared;
            const int64_t *shape = shapes[(routed + 2 * shared) % 4];
            int64_t tokens =
                conf_full() ? (const int64_t[]){ 16, 33, 128, 1000 }[i % 4] : (const int64_t[]){ 1, 2, 7, 3, 4 }[i % 5];
            check_pair(1000 + (uint64_t)i, (mf_format)routed, (mf_format)shared, i, tokens, shape[0], shape[1],
                       case_act_dtypes[i % 3], case_act_dtypes[(i / 3) % 3]);
        }
    }
}

TEST(experts_of_model_shapes_are_within_rounding_of_double_precision)
{
    static const int64_t small[][2] = { { 512, 352 }, { 360, 360 } };
    static const int64_t large[][2] = { { 2048, 768 }, { 2048, 1408 }, { 2880, 2880 }, { 4096, 1408 }, { 7168, 2048 } };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        for (size_t s = 0; s < 2; s++) {
            check_pair(77 + (uint64_t)f, (mf_format)f, (mf_format)((f + 3) % MF_FORMAT_COUNT), f + (int)s, 5,
                       small[s][0], small[s][1], MF_F32, MF_F32);
        }
        for (size_t s = 0; conf_full() && s < 5; s++) {
            check_pair(99 + (uint64_t)f, (mf_format)f, (mf_format)((f + 5) % MF_FORMAT_COUNT), f, s < 2 ? 16 : 2,
                       large[s][0], large[s][1], case_act_dtypes[(f + s) % 2], MF_F32);
        }
    }
}

/* The slot's rows and columns [first, first + count) of its width, as views. */
static mf_slot part_of(const mf_slot *slot, int64_t first, int64_t count)
{
    mf_slot part = *slot;
    part.gate = mf_matrix_rows(&slot->gate, first, count);
    part.up = mf_matrix_rows(&slot->up, first, count);
    part.down = mf_matrix_columns(&slot->down, first, count);
    part.gate_bias += first;
    part.up_bias += first;
    part.down_bias = first == 0 ? slot->down_bias : NULL;
    return part;
}

TEST(experts_parts_of_a_wide_slot_add_up_to_it)
{
    /* Chunks of a shared MLP and shards of tensor parallelism are views; units of 128 keep scale blocks and groups
     * whole. */
    enum { HIDDEN = 70, UNITS = 9, WIDTH = 128 * UNITS, TOKENS = 2 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        for (int parts = 1; parts <= 8; parts++) {
            uint64_t seed = 40 + (uint64_t)f;
            case_table whole = { .hidden_size = HIDDEN };
            case_slot_spec spec = silu((mf_format)f, f == MF_FORMAT_INT4_GROUP ? 1 : f, WIDTH);
            spec.has_bias = true;
            case_table_add(&whole, &seed, &spec);
            case_table cut = { .num_slots = parts, .hidden_size = HIDDEN };
            for (int64_t p = 0, first = 0; p < parts; p++) {
                int64_t units = UNITS / parts + (p < UNITS % parts); /* earlier parts take the extra ones */
                cut.list[p] = part_of(&whole.list[0], 128 * first, 128 * units);
                first += units;
            }
            batch b, one;
            make_batch(&b, &seed, TOKENS, parts, HIDDEN, MF_F32, MF_F32, 1);
            make_batch(&one, &seed, TOKENS, 1, HIDDEN, MF_F32, MF_F32, 1);
            memcpy(one.x, b.x, TOKENS * HIDDEN * sizeof(float));
            for (int32_t i = 0; i < TOKENS * parts; i++) {
                b.ids[i] = i % parts;
            }
            double *expected = expect(&whole, &one, MF_ACT_QUANT_NONE);
            for (int d = 0; d < count; d++) {
                mf_experts *experts = case_experts(devices[d].device, &cut, MF_F32, MF_ACT_QUANT_NONE);
                run_batch(devices[d].device, experts, &b);
                case_error e = { 0 };
                for (int64_t i = 0; i < TOKENS * HIDDEN; i++) {
                    double sum = 0;
                    for (int64_t p = 0; p < parts; p++) {
                        sum += (double)((float *)b.y)[(i / HIDDEN * parts + p) * HIDDEN + i % HIDDEN];
                    }
                    case_error_add(&e, sum, expected[i]);
                }
                if (!(case_nmse(&e) <= 1e-11)) {
                    fail_msg("%s: %d parts of a %s slot: NMSE %g", devices[d].label, parts,
                             mf_format_name((mf_format)f), case_nmse(&e));
                }
                mf_experts_destroy(&experts);
            }
            free(expected);
            free_batch(&b);
            free_batch(&one);
            case_table_free(&whole);
        }
    }
}

TEST(experts_follow_every_activation_with_limits_and_biases)
{
    uint64_t seed = 5;
    case_table table = { .hidden_size = 96 };
    for (int a = 0; a <= MF_ACT_RELU2; a++) {
        for (int biased = 0; biased < 2; biased++) {
            case_slot_spec spec = { .format = a % 2 ? MF_FORMAT_BF16 : MF_FORMAT_F32,
                                    .width = 41,
                                    .activation = (mf_activation)a,
                                    .limit = a == MF_ACT_SWIGLU_OAI ? 0.7f : 0.5f, /* low, so that it binds */
                                    .alpha = 1.702f,
                                    .beta = 1.5f,
                                    .lbeta = 0.75f,
                                    .has_bias = biased };
            case_table_add(&table, &seed, &spec);
        }
    }
    batch b;
    make_batch(&b, &seed, 3, table.num_slots, 96, MF_F32, MF_F32, table.num_slots);
    for (int64_t i = 0; i < 3 * table.num_slots; i++) {
        b.ids[i] = (int32_t)(i % table.num_slots);
    }
    double *expected = expect(&table, &b, MF_ACT_QUANT_NONE);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_experts *experts = case_experts(devices[d].device, &table, MF_F32, MF_ACT_QUANT_NONE);
        run_batch(devices[d].device, experts, &b);
        for (int64_t i = 0; i < 3 * table.num_slots; i++) {
            case_error e = { 0 };
            for (int64_t h = 0; h < 96; h++) {
                case_error_add(&e, conf_get(b.y, MF_F32, i * 96 + h), expected[i * 96 + h]);
            }
            if (!(case_nmse(&e) <= 1e-11)) {
                fail_msg("%s: activation %d, bias %d: NMSE %g", devices[d].label, (int)(i % table.num_slots / 2),
                         (int)(i % 2), case_nmse(&e));
            }
        }
        mf_experts_destroy(&experts);
    }
    free(expected);
    free_batch(&b);
    case_table_free(&table);
}

/* ---- quantised activations ---- */

static void check_w8a8(mf_format format, mf_act_quant act_quant, int variant, mf_dtype act_dtype, float scale13,
                       float scale2)
{
    uint64_t seed = 300 + (uint64_t)(format * 7 + (int)act_quant * 3 + variant);
    const int64_t hidden = 300, width = 200;
    case_table table = { .hidden_size = hidden };
    for (int s = 0; s < 3; s++) {
        case_slot_spec spec = silu(s == 2 ? MF_FORMAT_BF16 : format, variant + s, width);
        spec.input_scale13 = s == 1 ? 0 : scale13;
        spec.input_scale2 = scale2;
        case_table_add(&table, &seed, &spec);
    }
    batch b;
    make_batch(&b, &seed, 6, 3, hidden, act_dtype, MF_F32, 3);
    double *exact = expect(&table, &b, MF_ACT_QUANT_NONE);
    double *quantised = expect(&table, &b, act_quant);
    const char *what = label("%s, act_quant %d, %s, scales %g %g", mf_format_name(format), (int)act_quant,
                             mf_dtype_name(act_dtype), (double)scale13, (double)scale2);
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_experts *experts = case_experts(devices[d].device, &table, act_dtype, act_quant);
        run_batch(devices[d].device, experts, &b);
        check_nmse(&b, exact, format == MF_FORMAT_INT8_CHANNEL ? 2e-3 : 3e-3, devices[d].label, what);
        check_nmse(&b, quantised, 1e-5, devices[d].label, what);
        mf_experts_destroy(&experts);
    }
    free(exact);
    free(quantised);
    free_batch(&b);
    case_table_free(&table);
}

TEST(experts_quantise_activations_by_the_format_of_the_weights)
{
    for (int v = 0; v < 4; v++) {
        for (int a = 0; a < 3; a++) {
            check_w8a8(MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_W8A8_E8M0, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_FP8_CHANNEL, MF_ACT_QUANT_W8A8, v, case_act_dtypes[a], 0.01f, 0.05f);
            check_w8a8(MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_W8A8, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_W8A8, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_INT8_CHANNEL, MF_ACT_QUANT_INT8, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_INT4_GROUP, MF_ACT_QUANT_INT8, v, case_act_dtypes[a], 0, 0);
            check_w8a8(MF_FORMAT_FP8_BLOCK, MF_ACT_QUANT_INT8, v, case_act_dtypes[a], 0, 0);
        }
    }
}

TEST(experts_static_scale_saturates_codes_past_448)
{
    /* w13 = 1, w2 = 1, H = I = 1: x = 4 with scale 2^-10 is 4096 codes, saturates to 448 * 2^-10 = 0.4375; g = u =
     * 0.4375, h = silu(g) * u = 0.4375^2 * sigmoid(0.4375) = 0.1163...; dynamic w2 scale reproduces h exactly as its
     * own maximum. */
    float one = 1.0f;
    uint8_t code = 0x38; /* 1.0 */
    mf_matrix m = { .data = &code,
                    .n = 1,
                    .k = 1,
                    .row_stride = 1,
                    .format = MF_FORMAT_FP8_CHANNEL,
                    .scale = &one,
                    .scale_dtype = MF_F32 };
    mf_slot slot = { .gate = m, .up = m, .down = m, .input_scale13 = 0x1p-10f };
    mf_experts_desc desc = {
        .num_slots = 1, .hidden_size = 1, .slots = &slot, .act_dtype = MF_F32, .act_quant = MF_ACT_QUANT_W8A8
    };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        mf_error err = { 0 };
        mf_experts *experts;
        CHECK_OK(mf_experts_create(devices[d].device, &desc, &experts, &err), err);
        float x = 4.0f, *y = conf_alloc(sizeof *y);
        int32_t id = 0;
        case_run(devices[d].device, experts, &x, MF_F32, &id, NULL, 1, 1, 1, MF_F32, y);
        CHECK(fabs(*y - 0.4375 * 0.4375 / (1 + exp(-0.4375))) < 1e-6);
        conf_free(y);
        mf_experts_destroy(&experts);
    }
}

/* ---- NaN and inf ---- */

/* y of one slot for x with one special value at position `at`. */
static void run_special(mf_device *device, const case_table *table, mf_act_quant act_quant, double special, float *y)
{
    const int64_t hidden = table->hidden_size;
    uint64_t seed = 12;
    mf_experts *experts = case_experts(device, table, MF_BF16, act_quant);
    batch b;
    make_batch(&b, &seed, 3, table->num_slots, hidden, MF_BF16, MF_F32, table->num_slots);
    for (int64_t i = 0; i < 3 * table->num_slots; i++) {
        b.ids[i] = (int32_t)(i % table->num_slots);
    }
    conf_put(b.x, MF_BF16, hidden + 17, special); /* token 1 */
    run_batch(device, experts, &b);
    memcpy(y, b.y, (size_t)(3 * table->num_slots * hidden) * sizeof(float));
    free_batch(&b);
    mf_experts_destroy(&experts);
}

TEST(experts_nan_and_inf_reach_every_output_of_their_token_and_no_other)
{
    enum { HIDDEN = 160 };
    uint64_t seed = 11;
    case_table table = { .hidden_size = HIDDEN };
    for (int f = 0; f < MF_FORMAT_COUNT; f++) {
        /* every activation, each with an L that would hide a NaN if its clamp dropped it */
        case_slot_spec spec = { .format = (mf_format)f,
                                .variant = f,
                                .width = 37,
                                .activation = (mf_activation)f,
                                .limit = 0.5f,
                                .alpha = 1.0f,
                                .beta = 1,
                                .lbeta = 1 };
        case_table_add(&table, &seed, &spec);
    }
    int64_t per_token = table.num_slots * HIDDEN;
    float *clean = malloc((size_t)(3 * per_token) * sizeof(float)),
          *y = malloc((size_t)(3 * per_token) * sizeof(float));
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int d = 0; d < count; d++) {
        for (int quant = MF_ACT_QUANT_NONE; quant <= MF_ACT_QUANT_INT8; quant++) {
            run_special(devices[d].device, &table, (mf_act_quant)quant, 0.25, clean);
            run_special(devices[d].device, &table, (mf_act_quant)quant, NAN, y);
            CHECK_EQ(conf_difference(clean, y, MF_F32, per_token), -1);
            CHECK_EQ(conf_difference(clean + 2 * per_token, y + 2 * per_token, MF_F32, per_token), -1);
            for (int64_t i = per_token; i < 2 * per_token; i++) {
                if (!isnan(y[i])) {
                    fail_msg("%s: slot %d (act_quant %d) output %d is %g for a NaN in x", devices[d].label,
                             (int)(i / HIDDEN % table.num_slots), quant, (int)(i % HIDDEN), (double)y[i]);
                }
            }
            run_special(devices[d].device, &table, (mf_act_quant)quant, INFINITY, y);
            CHECK_EQ(conf_difference(clean, y, MF_F32, per_token), -1);
            CHECK_EQ(conf_difference(clean + 2 * per_token, y + 2 * per_token, MF_F32, per_token), -1);
            for (int64_t i = per_token; i < 2 * per_token; i++) {
                int64_t slot = i / HIDDEN % table.num_slots;
                bool bounded = slot == MF_ACT_SILU_CLAMP || slot == MF_ACT_SILU_CLAMP_AFTER ||
                               slot == MF_ACT_SWIGLU_OAI ||
                               slot == MF_ACT_SITU; /* a clamp may make an inf finite again */
                if (isfinite(y[i]) && !bounded) {
                    fail_msg("%s: slot %d (act_quant %d) output %d is %g for an inf in x", devices[d].label, (int)slot,
                             quant, (int)(i % HIDDEN), (double)y[i]);
                }
            }
        }
    }
    free(clean);
    free(y);
    case_table_free(&table);
}

TEST(experts_nan_weights_make_their_own_rows_nan_and_no_other)
{
    enum { HIDDEN = 140, WIDTH = 37, ROW = 77 };
    static const mf_format formats[] = { MF_FORMAT_F32, MF_FORMAT_BF16, MF_FORMAT_F16, MF_FORMAT_FP8_BLOCK,
                                         MF_FORMAT_FP8_CHANNEL };
    for (size_t f = 0; f < 5; f++) {
        for (int64_t column = 0; column < WIDTH; column += 9) {
            uint64_t seed = 21;
            case_table table = { .hidden_size = HIDDEN };
            case_slot_spec spec = silu(formats[f], 2, WIDTH);
            case_table_add(&table, &seed, &spec);
            case_matrix *down = &table.slots[0].down;
            int64_t at = ROW * down->m.row_stride + column;
            if (formats[f] >= MF_FORMAT_FP8_BLOCK) {
                ((uint8_t *)down->codes)[at] = column % 2 ? 0x7f : 0xff;
            } else {
                conf_put(down->codes, case_act_dtypes[formats[f]], at, NAN);
            }
            int count;
            const conf_device *devices = conf_devices(&count);
            for (int d = 0; d < count; d++) {
                for (int quant = 0; quant < 2; quant++) {
                    batch b;
                    make_batch(&b, &seed, 5, 1, HIDDEN, MF_F32, MF_F32, 1);
                    mf_experts *experts = case_experts(devices[d].device, &table, MF_F32, (mf_act_quant)quant);
                    run_batch(devices[d].device, experts, &b);
                    for (int64_t i = 0; i < 5 * HIDDEN; i++) {
                        CHECK_EQ(isnan(((float *)b.y)[i]), i % HIDDEN == ROW);
                    }
                    mf_experts_destroy(&experts);
                    free_batch(&b);
                }
            }
            case_table_free(&table);
        }
    }
}
