/* align.c - conformance of mf_moe_align_block_size: every device against a stable sort of (slot, flat index) pairs. */
#include <stdlib.h>

#include "conf.h"

typedef struct align_case {
    int64_t T, C, b, P;
    int64_t stride;         /* of ids */
    int32_t *ids;
    mf_tensor ids_view;
    int64_t capacity;
    int64_t slack;          /* entries behind the capacity */
} align_case;

typedef struct align_outputs {
    int32_t *sorted, *experts, *total, *offsets, *errors;
} align_outputs;

static int64_t num_blocks(const align_case *c)
{
    return c->capacity / c->b;
}

static void open_outputs(align_outputs *o, const align_case *c)
{
    o->sorted = conf_alloc((size_t)(c->capacity + c->slack) * 4);
    o->experts = conf_alloc((size_t)(num_blocks(c) + c->slack) * 4);
    o->total = conf_alloc(4);
    o->offsets = conf_alloc((size_t)(c->P + 1) * 4);
    o->errors = conf_alloc(4);
    *o->errors = 7;
}

static void close_outputs(align_outputs *o)
{
    conf_free(o->sorted);
    conf_free(o->experts);
    conf_free(o->total);
    conf_free(o->offsets);
    conf_free(o->errors);
}

static mf_align_args make_args(const align_case *c, const align_outputs *o)
{
    return (mf_align_args){
        .topk_ids = c->ids_view,
        .block_size = c->b,
        .num_slots = c->P,
        .sorted_token_ids = mf_tensor_1d(o->sorted, MF_I32, c->capacity + c->slack),
        .expert_ids = mf_tensor_1d(o->experts, MF_I32, num_blocks(c) + c->slack),
        .num_tokens_post_padded = mf_tensor_1d(o->total, MF_I32, 1),
        .offsets = mf_tensor_1d(o->offsets, MF_I32, c->P + 1),
        .error_count = mf_tensor_1d(o->errors, MF_I32, 1),
    };
}

static mf_status run(mf_device *device, const mf_align_args *args, mf_error *err)
{
    size_t bytes = mf_moe_align_workspace_bytes(args);
    void *workspace = conf_alloc(bytes);
    mf_status status = mf_moe_align_block_size(device, args, workspace, bytes, err);
    conf_free(workspace);
    return status;
}

/* ---- the oracle ---- */

typedef struct pair {
    int32_t slot, flat;
} pair;

static int by_slot(const void *a, const void *b)
{
    const pair *x = a, *y = b;
    return x->slot != y->slot ? (x->slot < y->slot ? -1 : 1) : (x->flat < y->flat ? -1 : x->flat > y->flat);
}

static void expect(const align_case *c, align_outputs *o)
{
    int64_t kept = 0, m = c->T * c->C;
    pair *pairs = conf_alloc((size_t)(m + 1) * sizeof *pairs);
    *o->errors = 7;
    for (int64_t i = 0; i < m; i++) {
        int32_t id = c->ids[i / c->C * c->stride + i % c->C];
        *o->errors += id >= c->P;
        if (id >= 0 && id < c->P) {
            pairs[kept++] = (pair){ id, (int32_t)i };
        }
    }
    qsort(pairs, (size_t)kept, sizeof *pairs, by_slot);
    for (int64_t i = 0; i < c->capacity; i++) {
        o->sorted[i] = (int32_t)m;
    }
    for (int64_t i = 0; i < num_blocks(c); i++) {
        o->experts[i] = -1;
    }
    int64_t place = 0, seen = 0;
    for (int32_t s = 0; s < c->P; s++) {
        o->offsets[s] = (int32_t)seen;
        int64_t first = place;
        for (; seen < kept && pairs[seen].slot == s; seen++) {
            if ((place - first) % c->b == 0) {
                o->experts[place / c->b] = s;
            }
            o->sorted[place++] = pairs[seen].flat;
        }
        place = (place + c->b - 1) / c->b * c->b;
    }
    o->offsets[c->P] = (int32_t)seen;
    *o->total = (int32_t)place;
    conf_free(pairs);
}

static void expect_array(const align_case *c, const char *label, const char *name, const int32_t *want, const int32_t *got,
                         int64_t n)
{
    int64_t at = conf_difference(want, got, MF_I32, n);
    if (at >= 0) {
        fail_msg("%s: %s[%lld] is %d, expected %d (T %lld C %lld b %lld P %lld)", label, name, (long long)at, got[at],
                 want[at], (long long)c->T, (long long)c->C, (long long)c->b, (long long)c->P);
    }
}

static void check(const align_case *c)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    align_outputs want;
    open_outputs(&want, c);
    expect(c, &want);
    int32_t *histogram = conf_alloc((size_t)c->P * 4);
    for (int64_t s = 0; s < c->P; s++) {
        histogram[s] = want.offsets[s + 1] - want.offsets[s];
    }
    for (int i = 0; i < 2 * count; i++) {
        align_outputs o;
        mf_error err = { 0 };
        const char *label = devices[i / 2].label;
        open_outputs(&o, c);
        mf_align_args args = make_args(c, &o);
        if (i % 2) {
            args.histogram = mf_tensor_1d(histogram, MF_I32, c->P);
        }
        CHECK_OK(run(devices[i / 2].device, &args, &err), err);
        expect_array(c, label, "num_tokens_post_padded", want.total, o.total, 1);
        expect_array(c, label, "sorted_token_ids", want.sorted, o.sorted, c->capacity + c->slack);
        expect_array(c, label, "expert_ids", want.experts, o.experts, num_blocks(c) + c->slack);
        expect_array(c, label, "offsets", want.offsets, o.offsets, c->P + 1);
        expect_array(c, label, "error_count", want.errors, o.errors, 1);
        close_outputs(&o);
    }
    conf_free(histogram);
    close_outputs(&want);
}

/* ---- the grid ---- */

typedef enum id_kind { IDS_UNIFORM = 0, IDS_HALF_DROPPED, IDS_ALL_DROPPED, IDS_ONE_SLOT, IDS_PAST_END, IDS_ODD, IDS_COUNT } id_kind;

static int32_t draw_id(uint64_t *seed, id_kind kind, int64_t P, int32_t one)
{
    switch (kind) {
    case IDS_HALF_DROPPED:
        return conf_below(seed, 2) ? -1 : (int32_t)conf_below(seed, P);
    case IDS_ALL_DROPPED:
        return -1;
    case IDS_ONE_SLOT:
        return one;
    case IDS_PAST_END:
        return (int32_t)conf_below(seed, P + P / 4 + 2);
    case IDS_ODD:
        return (int32_t)CONF_PICK(seed, 0, P - 1, P, INT32_MAX, INT32_MIN, -2, P / 2);
    default:
        return (int32_t)conf_below(seed, P);
    }
}

static align_case open_case(int64_t T, int64_t C, int64_t b, int64_t P, id_kind kind, uint64_t *seed)
{
    align_case c = { .T = T, .C = C, .b = b, .P = P };
    c.stride = C + conf_below(seed, 2) * 3;
    c.slack = conf_below(seed, 2) * 5;
    c.capacity = mf_moe_align_capacity(T, C, b, P);
    int64_t n = T > 0 ? (T - 1) * c.stride + C : 0;
    c.ids = conf_alloc((size_t)n * 4);
    int32_t one = (int32_t)conf_below(seed, P);
    for (int64_t i = 0; i < n; i++) {
        c.ids[i] = draw_id(seed, kind, P, one);
    }
    c.ids_view = mf_tensor_2d(c.ids, MF_I32, T, C);
    c.ids_view.stride[0] = c.stride;
    return c;
}

TEST(align_is_a_stable_sort_by_slot_padded_to_blocks)
{
    static const int64_t bs[] = { 1, 16, 32, 48, 64, 128, 256 };
    static const int64_t ts[] = { 0, 1, 2, 3, 4, 8, 255, 256, 2256, 4096, 4097 };
    static const int64_t cs[] = { 1, 2, 4, 8, 9, 16, 17, 32, 64 };
    static const int64_t ps[] = { 1, 64, 129, 160, 256, 257, 260, 264, 513, 1025, 2048, 4095, 8192 };
    uint64_t seed = 31;
    int64_t turn = 0;
    for (size_t t = 0; t < 11; t++) {
        for (size_t p = 0; p < 13; p++) {
            for (size_t i = 0; i < 9; i++) {
                for (size_t b = 0; b < 7; b++) {
                    /* Quick: one block size and one kind of ids per (T, P, C); big products are thinned further. */
                    bool big = ts[t] * cs[i] > 20000;
                    turn++;
                    if (!conf_full() && (b != (t + p + i) % 7 || (big && (t + 3 * p + i) % 6 != 0))) {
                        continue;
                    }
                    align_case c = open_case(ts[t], cs[i], bs[b], ps[p], (id_kind)(turn % IDS_COUNT), &seed);
                    check(&c);
                    conf_free(c.ids);
                }
            }
        }
    }
}

/* Around 32, 512, 4,096, 8,192 and 40,960 pairs and 512 and 1,024 slots, where device cuda's ways end. */
TEST(align_is_that_sort_on_both_sides_of_its_ways_bounds)
{
    static const int64_t ts[] = { 31,   33,   511,  512,  513,   1025,  4095,  4096,
                                  4097, 8191, 8192, 8193, 36865, 40959, 40960, 40961 };
    static const int64_t ps[] = { 1, 257, 512, 513, 1024, 1025 };
    static const int64_t bs[] = { 64, 1, 48 };
    uint64_t seed = 35;
    int turn = 0;
    for (size_t t = 0; t < sizeof ts / sizeof ts[0]; t++) {
        for (size_t p = 0; p < sizeof ps / sizeof ps[0]; p++, turn++) {
            const int64_t columns = ts[t] % 9 == 0 ? 9 : ts[t] % 8 == 0 ? 8 : 1;
            align_case c =
                open_case(ts[t] / columns, columns, bs[turn % 3], ps[p], (id_kind)(turn / 3 % IDS_COUNT), &seed);
            check(&c);
            conf_free(c.ids);
        }
    }
}

TEST(align_worked_example)
{
    /* T 3, C 2, b 4, P 4: slot 0 takes flats 1 and 2, slot 2 takes 0, 3 and 5; flat 4 is dropped; slots 1 and 3 are empty. */
    static const int32_t ids[6] = { 2, 0, 0, 2, -1, 2 };
    static const int32_t sorted[16] = { 1, 2, 6, 6, 0, 3, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6 };
    static const int32_t experts[4] = { 0, 2, -1, -1 };
    static const int32_t offsets[5] = { 0, 2, 2, 5, 5 };
    int count;
    const conf_device *devices = conf_devices(&count);
    align_case c = { .T = 3, .C = 2, .b = 4, .P = 4, .ids_view = mf_tensor_2d(ids, MF_I32, 3, 2) };
    c.capacity = mf_moe_align_capacity(3, 2, 4, 4);
    CHECK_EQ(c.capacity, 16); /* 4 * floor((6 + 4 * 3) / 4) */
    for (int i = 0; i < count; i++) {
        align_outputs o;
        mf_error err = { 0 };
        open_outputs(&o, &c);
        mf_align_args args = make_args(&c, &o);
        CHECK_OK(run(devices[i].device, &args, &err), err);
        CHECK_MEM(o.sorted, sorted, sizeof sorted);
        CHECK_MEM(o.experts, experts, sizeof experts);
        CHECK_MEM(o.offsets, offsets, sizeof offsets);
        CHECK_EQ(*o.total, 8);
        CHECK_EQ(*o.errors, 7);
        close_outputs(&o);
    }
}

TEST(align_counts_ids_past_the_last_slot_as_errors)
{
    static const int32_t ids[4] = { 3, 4, INT32_MAX, INT32_MIN };
    int count;
    const conf_device *devices = conf_devices(&count);
    align_case c = { .T = 2, .C = 2, .b = 1, .P = 4, .ids_view = mf_tensor_2d(ids, MF_I32, 2, 2) };
    c.capacity = mf_moe_align_capacity(2, 2, 1, 4);
    for (int i = 0; i < count; i++) {
        align_outputs o;
        mf_error err = { 0 };
        open_outputs(&o, &c);
        mf_align_args args = make_args(&c, &o);
        CHECK_OK(run(devices[i].device, &args, &err), err);
        CHECK_EQ(*o.errors, 7 + 2);
        CHECK_EQ(*o.total, 1);
        args.error_count = (mf_tensor){ 0 }; /* not asked for: still dropped */
        CHECK_OK(run(devices[i].device, &args, &err), err);
        CHECK_EQ(*o.errors, 7 + 2);
        CHECK_EQ(*o.total, 1);
        close_outputs(&o);
    }
}

TEST(a_wrong_histogram_never_leads_out_of_bounds)
{
    uint64_t seed = 8;
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int turn = 0; turn < 60; turn++) {
        align_case c = open_case(CONF_PICK(&seed, 1, 7, 64), 5, CONF_PICK(&seed, 1, 16, 48), CONF_PICK(&seed, 1, 9, 70),
                                 (id_kind)conf_below(&seed, IDS_COUNT), &seed);
        int32_t *histogram = conf_alloc((size_t)c.P * 4);
        for (int64_t s = 0; s < c.P; s++) {
            histogram[s] = (int32_t)CONF_PICK(&seed, 0, -1, INT32_MAX, INT32_MIN, 3, 1000000);
        }
        for (int i = 0; i < count; i++) {
            align_outputs o;
            mf_error err = { 0 };
            open_outputs(&o, &c);
            mf_align_args args = make_args(&c, &o);
            args.histogram = mf_tensor_1d(histogram, MF_I32, c.P);
            CHECK_OK(run(devices[i].device, &args, &err), err);
            close_outputs(&o); /* guard bytes */
        }
        conf_free(histogram);
        conf_free(c.ids);
    }
}

/* ---- what is refused ---- */

TEST(align_capacity_is_the_formula_and_refuses_2_to_the_31)
{
    CHECK_EQ(mf_moe_align_capacity(0, 8, 64, 256), 0);
    CHECK_EQ(mf_moe_align_capacity(1, 1, 64, 256), 64);
    CHECK_EQ(mf_moe_align_capacity(2, 8, 16, 256), 256);       /* 16 * floor((16 + 16 * 15) / 16) */
    CHECK_EQ(mf_moe_align_capacity(4096, 9, 64, 257), 53055 / 64 * 64);
    CHECK_EQ(mf_moe_align_capacity(INT32_MAX, 1, 1, 1), INT32_MAX);
    CHECK_EQ(mf_moe_align_capacity(1LL << 31, 1, 1, 1), -1);
    CHECK_EQ(mf_moe_align_capacity(INT64_MAX, 64, 1, 1), -1);
    CHECK_EQ(mf_moe_align_capacity(1, 1, INT64_MAX, 1), -1);
    CHECK_EQ(mf_moe_align_capacity(1, 1, 1LL << 31, 1), -1);
    CHECK_EQ(mf_moe_align_capacity(0, 1, INT64_MAX, 1), 0);
    CHECK_EQ(mf_moe_align_capacity(-1, 1, 1, 1), -1);
    CHECK_EQ(mf_moe_align_capacity(1, 1, 0, 1), -1);
    CHECK_EQ(mf_moe_align_capacity(1, 1, 1, 0), -1);
}

static void refuses(mf_align_args args, const char *text)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    static char workspace[4096] __attribute__((aligned(64)));
    for (int i = 0; i < count; i++) {
        mf_error err = { 0 };
        CHECK_EQ(mf_moe_align_block_size(devices[i].device, &args, workspace, sizeof workspace, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, text);
    }
}

TEST(align_refuses_by_name_and_says_the_needed_number)
{
    static int32_t ids[6];
    align_case c = { .T = 3, .C = 2, .b = 4, .P = 4, .ids_view = mf_tensor_2d(ids, MF_I32, 3, 2), .capacity = 16 };
    align_outputs o;
    open_outputs(&o, &c);
    mf_align_args good = make_args(&c, &o), a;
    a = good, a.sorted_token_ids.shape[0] = 15, refuses(a, "sorted_token_ids: 15 entries; expected at least 16");
    a = good, a.expert_ids.shape[0] = 3, refuses(a, "expert_ids: 3 entries; expected at least 4");
    a = good, a.block_size = 0, refuses(a, "block_size 0");
    a = good, a.block_size = 1LL << 31, refuses(a, "2^31");
    a = good, a.num_slots = 0, refuses(a, "num_slots 0");
    a = good, a.num_slots = 1LL << 31, refuses(a, "num_slots 2147483648");
    a = good, a.topk_ids.dtype = MF_I64, refuses(a, "topk_ids: dtype i64; expected i32");
    a = good, a.topk_ids.shape[0] = 1LL << 30, a.topk_ids.shape[1] = 2, refuses(a, "split the batch");
    a = good, a.topk_ids = (mf_tensor){ 0 }, refuses(a, "topk_ids is missing");
    a = good, a.sorted_token_ids = (mf_tensor){ 0 }, refuses(a, "sorted_token_ids is missing");
    a = good, a.num_tokens_post_padded = (mf_tensor){ 0 }, refuses(a, "num_tokens_post_padded is missing");
    a = good, a.num_tokens_post_padded.dtype = MF_F32, refuses(a, "num_tokens_post_padded: dtype f32");
    a = good, a.offsets.shape[0] = 4, refuses(a, "offsets: shape [4]; expected [5]");
    a = good, a.histogram = mf_tensor_1d(ids, MF_I32, 5), refuses(a, "histogram: shape [5]; expected [4]");
    a = good, a.error_count.dtype = MF_I64, refuses(a, "error_count: dtype i64");
    mf_error err;
    CHECK_EQ(mf_moe_align_block_size(conf_ref(), &good, NULL, 0, &err), MF_ERR_INVALID);
    CHECK_HAS(err.message, "workspace");
    CHECK_EQ(mf_moe_align_block_size(NULL, &good, NULL, 0, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_moe_align_block_size(conf_ref(), NULL, NULL, 0, &err), MF_ERR_INVALID);
    CHECK_EQ(mf_moe_align_workspace_bytes(NULL), 0);
    close_outputs(&o);
}
