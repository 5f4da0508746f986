/* traps.c - mistakes that have been made in the field, one claim each, as far as a gate, an align and a combine can make
 * them.  Every claim is checked on every device. */
#include <math.h>
#include <sys/mman.h>

#include "base/number.h"
#include "gate_oracle.h"
#include "kernels/ref/canonical.h"

typedef struct trap_run {
    gate_case c;
    gate_outputs o;
} trap_run;

static int num_devices(void)
{
    int count;
    conf_devices(&count);
    return count;
}

static mf_device *device_at(int i)
{
    int count;
    return conf_devices(&count)[i].device;
}

static void open_run(trap_run *r, const gate_spec *s)
{
    gate_case_open(&r->c, s);
    gate_outputs_open(&r->o, &r->c);
}

static void run_on(trap_run *r, int device)
{
    gate_outputs_close(&r->o);
    gate_outputs_open(&r->o, &r->c);
    gate_run(&r->o, device_at(device), false);
    CHECK_OK(r->o.status, r->o.err);
}

static void close_run(trap_run *r)
{
    gate_outputs_close(&r->o);
    gate_case_close(&r->c);
}

static int32_t id_at(const trap_run *r, int64_t t, int64_t k)
{
    return r->o.ids[t * r->o.row + k];
}

static float weight_at(const trap_run *r, int64_t t, int64_t k)
{
    return r->o.weights[t * r->o.row + k];
}

/* ---- 1 to 4: shared columns beside routed ones ---- */

/* Equal scores: routed weights 1/2 each.  Routed experts answer 1, the shared one 3: 2.5 * (1/2 + 1/2) + 3, exactly. */
TEST(trap_01_the_factor_is_applied_once_to_routed_and_never_to_shared)
{
    for (int fold = 0; fold < 2; fold++) {
        gate_spec s = gate_spec_default();
        s.T = 2;
        s.values = VALUES_ZERO;
        s.cfg.num_shared_slots = 1;
        s.cfg.fold_scale = fold;
        trap_run r;
        open_run(&r, &s);
        for (int d = 0; d < num_devices(); d++) {
            static const float y[6] = { 1.0f, 1.0f, 3.0f, 1.0f, 1.0f, 3.0f };
            float out[2];
            mf_error err;
            run_on(&r, d);
            mf_sum_reduce_args a = { .x = mf_tensor_3d(y, MF_F32, 2, 3, 1), .topk_ids = r.o.args.topk_ids,
                                     .topk_weights = r.o.args.topk_weights, .routed_scaling_factor = fold ? 1.0f : 2.5f,
                                     .num_shared_columns = 1, .out = mf_tensor_2d(out, MF_F32, 2, 1) };
            CHECK_OK(mf_moe_sum_reduce(device_at(d), &a, &err), err);
            CHECK(out[0] == 5.5f && out[1] == 5.5f);
        }
        close_run(&r);
    }
}

TEST(trap_02_and_03_the_shared_weight_is_one_whatever_happens_to_the_routed_ones)
{
    uint64_t seed = 23;
    for (int i = 0; i < 200; i++) {
        gate_spec s = gate_spec_random(&seed, 2000);
        s.padding = PAD_NONE;
        s.cfg.hash = 0;
        s.cfg.window_count = -1;
        s.cfg.num_shared_slots += s.cfg.num_shared_slots == 0;
        s.cfg.num_slots = -1;
        s.cfg.shared_weight = MF_SHARED_ONE;
        s.cfg.pack = 0;
        trap_run r;
        open_run(&r, &s);
        run_on(&r, i % num_devices());
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = s.cfg.top_k; k < r.c.C; k++) {
                CHECK_EQ(mf_f32_bits(weight_at(&r, t, k)), 0x3f800000);
            }
        }
        close_run(&r);
    }
}

TEST(trap_04_shared_columns_come_in_addition_to_k_routed_ones)
{
    uint64_t seed = 4;
    for (int i = 0; i < 60; i++) {
        gate_spec s = gate_spec_default();
        s.T = 7;
        s.seed = mf_random_next(&seed);
        s.cfg.num_experts = 64;
        s.cfg.top_k = 1 + i % 8;
        s.values = i % 2 ? VALUES_TIES : VALUES_NORMAL;
        gate_spec with = s;
        with.cfg.num_shared_slots = 1 + i % 4;
        trap_run a, b;
        open_run(&a, &s);
        open_run(&b, &with);
        run_on(&a, i % num_devices());
        run_on(&b, i % num_devices());
        for (int64_t t = 0; t < s.T; t++) {
            CHECK_EQ(conf_difference(a.o.ids + t * a.o.row, b.o.ids + t * b.o.row, MF_I32, s.cfg.top_k), -1);
            CHECK_EQ(conf_difference(a.o.weights + t * a.o.row, b.o.weights + t * b.o.row, MF_F32, s.cfg.top_k), -1);
        }
        close_run(&a);
        close_run(&b);
    }
}

/* ---- 5: align and the ids of shared slots ---- */

TEST(trap_05_ids_from_e_to_p_survive_align)
{
    gate_spec s = gate_spec_default();
    s.T = 33;
    s.cfg.num_experts = 129; /* not a power of two, past a multiple of 64 */
    s.cfg.top_k = 4;
    s.cfg.num_shared_slots = 2;
    s.cfg.num_replicas = 3;
    trap_run r;
    open_run(&r, &s);
    for (int d = 0; d < num_devices(); d++) {
        run_on(&r, d);
        int64_t capacity = mf_moe_align_capacity(33, 6, 16, r.c.P), shared = 0;
        int32_t *sorted = conf_alloc((size_t)capacity * 4), *experts = conf_alloc((size_t)capacity / 16 * 4), total = 0;
        mf_align_args a = { .topk_ids = r.o.args.topk_ids, .block_size = 16, .num_slots = r.c.P,
                            .histogram = r.o.args.histogram,
                            .sorted_token_ids = mf_tensor_1d(sorted, MF_I32, capacity),
                            .expert_ids = mf_tensor_1d(experts, MF_I32, capacity / 16),
                            .num_tokens_post_padded = mf_tensor_1d(&total, MF_I32, 1) };
        size_t bytes = mf_moe_align_workspace_bytes(&a);
        void *workspace = conf_alloc(bytes);
        mf_error err;
        CHECK_OK(mf_moe_align_block_size(device_at(d), &a, workspace, bytes, &err), err);
        for (int64_t i = 0; i < total; i++) {
            if (sorted[i] < 33 * 6) {
                CHECK_EQ(experts[i / 16], id_at(&r, sorted[i] / 6, sorted[i] % 6));
                shared += experts[i / 16] >= 129;
            }
        }
        CHECK_EQ(shared, 33 * 2);
        conf_free(workspace);
        conf_free(sorted);
        conf_free(experts);
    }
    close_run(&r);
}

/* ---- 13, 14: more than one rank ---- */

TEST(trap_13_a_shared_id_outside_the_window_is_minus_one_and_not_another_row)
{
    gate_spec s = gate_spec_default();
    s.T = 20;
    s.cfg.num_shared_slots = 2;
    s.cfg.window_first = 4; /* slots 4..7: routed ones only; shared ids are 8 and 9 */
    s.cfg.window_count = 4;
    trap_run r;
    open_run(&r, &s);
    for (int d = 0; d < num_devices(); d++) {
        run_on(&r, d);
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = 0; k < 4; k++) {
                int32_t id = id_at(&r, t, k);
                CHECK(k < 2 ? id >= -1 && id < 4 : id == -1);
                CHECK(id >= 0 || mf_f32_bits(weight_at(&r, t, k)) == 0);
            }
        }
    }
    close_run(&r);
}

/* All ranks number the whole batch alike; each keeps its window.  Every column is kept by exactly one rank, with the
 * weight it has without ranks: never a share of it. */
TEST(trap_14_all_reduce_ep_computes_every_column_on_exactly_one_rank)
{
    enum { D = 4, T = 37 };
    gate_spec s = gate_spec_default();
    s.T = T;
    s.cfg.num_experts = 16;
    s.cfg.top_k = 3;
    s.cfg.num_shared_slots = 2;
    s.row_base = 5;
    trap_run plain;
    open_run(&plain, &s);
    for (int d = 0; d < num_devices(); d++) {
        int owners[T * 5] = { 0 };
        run_on(&plain, d);
        for (int rank = 0; rank < D; rank++) {
            gate_spec e = s;
            e.cfg.ep_size = D;
            e.cfg.window_first = rank * (16 / D + 2);
            e.cfg.window_count = 16 / D + 2;
            e.cfg.num_slots = 16 / D + 2;
            trap_run r;
            open_run(&r, &e);
            run_on(&r, d);
            for (int64_t t = 0; t < T; t++) {
                for (int64_t k = 0; k < 5; k++) {
                    int32_t id = id_at(&r, t, k);
                    if (id < 0) {
                        continue;
                    }
                    owners[t * 5 + k]++;
                    CHECK_EQ(mf_f32_bits(weight_at(&r, t, k)), mf_f32_bits(weight_at(&plain, t, k)));
                    if (k < 3) { /* local slot e of rank r is expert r * El + e */
                        CHECK_EQ(rank * 4 + id, id_at(&plain, t, k));
                    } else {
                        CHECK_EQ(id, 4 + k - 3);
                        CHECK_EQ(rank, (5 + t) % D);
                    }
                }
            }
            CHECK_EQ(*r.o.error_count, 2000);
            close_run(&r);
        }
        for (int i = 0; i < T * 5; i++) {
            CHECK_EQ(owners[i], 1);
        }
    }
    close_run(&plain);
}

TEST(trap_14_dispatch_ep_keeps_shared_columns_on_their_own_rank)
{
    gate_spec s = gate_spec_default();
    s.cfg.num_experts = 12;
    s.cfg.num_shared_slots = 2;
    s.cfg.ep_size = 3;
    s.cfg.num_slots = 12 + 3 * 2;
    for (int rank = 0; rank < 3; rank++) {
        s.cfg.ep_rank = rank;
        trap_run r;
        open_run(&r, &s);
        for (int d = 0; d < num_devices(); d++) {
            run_on(&r, d);
            for (int64_t t = 0; t < s.T; t++) {
                CHECK_EQ(id_at(&r, t, 2), rank * 6 + 4);
                CHECK_EQ(id_at(&r, t, 3), rank * 6 + 5);
                CHECK(id_at(&r, t, 0) % 6 < 4 && id_at(&r, t, 1) % 6 < 4);
            }
        }
        close_run(&r);
    }
}

/* ---- 15, 16, 19, 20: shared columns on every path ---- */

TEST(trap_15_all_shared_columns_have_distinct_ids_and_weight_one)
{
    for (int32_t shared = 2; shared <= 16; shared += 2) {
        gate_spec s = gate_spec_default();
        s.cfg.num_shared_slots = shared;
        trap_run r;
        open_run(&r, &s);
        for (int d = 0; d < num_devices(); d++) {
            run_on(&r, d);
            for (int64_t t = 0; t < s.T; t++) {
                for (int64_t j = 0; j < shared; j++) {
                    CHECK_EQ(id_at(&r, t, 2 + j), 8 + j);
                    CHECK_EQ(mf_f32_bits(weight_at(&r, t, 2 + j)), 0x3f800000);
                }
            }
        }
        close_run(&r);
    }
}

TEST(trap_16_every_path_emits_the_shared_columns)
{
    for (int path = 0; path < 5; path++) {
        gate_spec s = gate_spec_default();
        s.T = 11;
        s.cfg.num_shared_slots = 2;
        s.cfg.hash = path == 0;
        s.cfg.bias_domain = path == 1 ? MF_BIAS_SCORE : MF_BIAS_NONE;
        s.bias_alt = path == 1;
        s.cfg.scoring = path == 2 ? MF_SCORING_SQRTSOFTPLUS : MF_SCORING_SIGMOID;
        s.padding = path == 3 ? PAD_HALF : PAD_NONE;
        s.cfg.num_zero_experts = path == 4 ? 3 : 0;
        trap_run r;
        open_run(&r, &s);
        for (int d = 0; d < num_devices(); d++) {
            run_on(&r, d);
            for (int64_t t = 0; t < s.T; t++) {
                bool padded = path == 3 && t >= s.T / 2;
                for (int64_t j = 0; j < 2; j++) {
                    CHECK_EQ(id_at(&r, t, 2 + j), padded ? -1 : 8 + j);
                    CHECK_EQ(mf_f32_bits(weight_at(&r, t, 2 + j)), padded ? 0 : 0x3f800000);
                }
            }
        }
        close_run(&r);
    }
}

TEST(trap_19_padded_rows_are_minus_one_and_zero_in_all_columns)
{
    uint64_t seed = 19;
    for (int i = 0; i < 150; i++) {
        gate_spec s = gate_spec_random(&seed, 2000);
        s.padding = (padding_kind)(1 + i % (PAD_COUNT - 1));
        s.T += s.T == 0;
        s.cfg.renorm = i % 2 || s.cfg.scoring >= MF_SCORING_TOPK_SOFTMAX ? MF_RENORM_NONE : s.cfg.renorm;
        trap_run r;
        open_run(&r, &s);
        run_on(&r, i % num_devices());
        const uint8_t *valid = r.c.args.row_valid.data;
        const int32_t *num_valid = r.c.args.num_valid_tokens.data;
        for (int64_t t = 0; t < s.T; t++) {
            if ((num_valid && t >= *num_valid) || (valid && !valid[t])) {
                for (int64_t k = 0; k < r.c.C; k++) {
                    CHECK_EQ(id_at(&r, t, k), -1);
                    CHECK_EQ(mf_f32_bits(weight_at(&r, t, k)), 0);
                }
            }
        }
        close_run(&r);
    }
}

TEST(trap_19_num_valid_tokens_is_clamped)
{
    for (int i = 0; i < 3; i++) {
        static const int32_t given[3] = { -5, 1000, INT32_MIN };
        gate_spec s = gate_spec_default();
        s.padding = PAD_ONE;
        trap_run r;
        open_run(&r, &s);
        *(int32_t *)r.c.args.num_valid_tokens.data = given[i];
        for (int d = 0; d < num_devices(); d++) {
            run_on(&r, d);
            for (int64_t t = 0; t < s.T; t++) {
                CHECK((id_at(&r, t, 0) >= 0) == (given[i] > 0));
            }
        }
        close_run(&r);
    }
}

TEST(trap_20_an_empty_batch_is_fine_for_every_op)
{
    for (int d = 0; d < num_devices(); d++) {
        for (int unfused = 0; unfused < 2; unfused++) {
            gate_spec s = gate_spec_default();
            s.T = 0;
            s.cfg.num_shared_slots = 2;
            trap_run r;
            open_run(&r, &s);
            r.o.args.router_logits.data = r.o.args.topk_ids.data = r.o.args.topk_weights.data = NULL; /* as allocators give */
            gate_run(&r.o, device_at(d), unfused);
            CHECK_OK(r.o.status, r.o.err);
            for (int64_t p = 0; p < r.c.P; p++) {
                CHECK_EQ(r.o.histogram[p], 0);
            }
            for (int e = 0; e < 8; e++) {
                CHECK_EQ(r.o.load[e], 100 + e);
            }
            CHECK_EQ(*r.o.bad_rows, 1000);
            CHECK_EQ(*r.o.error_count, 2000);
            close_run(&r);
        }
        mf_error err;
        int32_t total = -1, offsets[9];
        mf_align_args a = { .topk_ids = mf_tensor_2d(NULL, MF_I32, 0, 4), .block_size = 64, .num_slots = 8,
                            .sorted_token_ids = mf_tensor_1d(NULL, MF_I32, 0), .expert_ids = mf_tensor_1d(NULL, MF_I32, 0),
                            .num_tokens_post_padded = mf_tensor_1d(&total, MF_I32, 1),
                            .offsets = mf_tensor_1d(offsets, MF_I32, 9) };
        size_t bytes = mf_moe_align_workspace_bytes(&a);
        void *workspace = conf_alloc(bytes);
        CHECK_OK(mf_moe_align_block_size(device_at(d), &a, workspace, bytes, &err), err);
        CHECK_EQ(total, 0);
        CHECK_EQ(offsets[8], 0);
        conf_free(workspace);
        mf_sum_reduce_args c = { .x = mf_tensor_3d(NULL, MF_BF16, 0, 4, 128), .routed_scaling_factor = 1.0f,
                                 .topk_ids = mf_tensor_2d(NULL, MF_I32, 0, 4), .out = mf_tensor_2d(NULL, MF_BF16, 0, 128) };
        CHECK_OK(mf_moe_sum_reduce(device_at(d), &c, &err), err);
    }
}

/* ---- 21, 22 ---- */

TEST(trap_21_the_replica_is_a_function_of_the_row)
{
    gate_spec s = gate_spec_default();
    s.T = 12;
    s.cfg.num_shared_slots = 1;
    s.cfg.num_replicas = 4;
    static const int64_t bases[] = { 0, 3, 1LL << 40, INT64_MAX - 12 };
    for (int i = 0; i < 4; i++) {
        s.row_base = bases[i];
        trap_run r;
        open_run(&r, &s);
        for (int d = 0; d < num_devices(); d++) {
            run_on(&r, d);
            for (int64_t t = 0; t < s.T; t++) {
                CHECK_EQ(id_at(&r, t, 2), 8 + (bases[i] + t) % 4);
            }
        }
        close_run(&r);
    }
}

TEST(trap_22_a_wrong_dtype_is_refused_by_every_op)
{
    for (int d = 0; d < num_devices(); d++) {
        static float memory[64];
        mf_error err;
        int32_t total;
        mf_align_args a = { .topk_ids = mf_tensor_2d(memory, MF_F32, 2, 2), .block_size = 1, .num_slots = 4,
                            .sorted_token_ids = mf_tensor_1d(memory + 8, MF_I32, 4),
                            .expert_ids = mf_tensor_1d(memory + 16, MF_I32, 4),
                            .num_tokens_post_padded = mf_tensor_1d(&total, MF_I32, 1) };
        static char workspace[256] __attribute__((aligned(64)));
        CHECK_EQ(mf_moe_align_block_size(device_at(d), &a, workspace, sizeof workspace, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, "topk_ids: dtype f32; expected i32");
        mf_sum_reduce_args c = { .x = mf_tensor_3d(memory, MF_F8_E4M3, 1, 2, 2), .routed_scaling_factor = 1.0f,
                                 .out = mf_tensor_2d(memory + 8, MF_F32, 1, 2) };
        CHECK_EQ(mf_moe_sum_reduce(device_at(d), &c, &err), MF_ERR_INVALID);
        CHECK_HAS(err.message, "x: dtype f8_e4m3");
        trap_run r;
        gate_spec s = gate_spec_default();
        open_run(&r, &s);
        r.o.args.router_logits.dtype = MF_I32;
        gate_run(&r.o, device_at(d), false);
        CHECK_EQ(r.o.status, MF_ERR_INVALID);
        CHECK_HAS(r.o.err.message, "router_logits: dtype i32");
        close_run(&r);
    }
}

/* ---- 23, 25, 26, 27 ---- */

TEST(trap_23_few_experts_with_shared_slots_are_right)
{
    uint64_t seed = 2323;
    for (int32_t n = 1; n < 32; n++) {
        gate_spec s = gate_spec_default();
        s.seed = mf_random_next(&seed);
        s.cfg.num_experts = n;
        s.cfg.top_k = n < 3 ? n : 3;
        s.cfg.num_shared_slots = 1 + n % 4;
        trap_run r;
        open_run(&r, &s);
        for (int d = 0; d < num_devices(); d++) {
            run_on(&r, d);
            CHECK_EQ(gate_oracle_check(&r.c, &r.o, "few experts"), 0);
            CHECK_EQ(id_at(&r, 4, s.cfg.top_k), n);
        }
        close_run(&r);
    }
}

/* Half of the routed experts live elsewhere (-1); the shared slots, at ids from E on, stay. */
TEST(trap_25_a_split_that_sends_routed_experts_away_keeps_shared_slots)
{
    gate_spec s = gate_spec_default();
    s.T = 30;
    s.cfg.num_shared_slots = 2;
    s.map = MAP_PLAIN;
    trap_run r;
    open_run(&r, &s);
    for (int e = 0; e < 8; e++) {
        ((int32_t *)r.c.args.expert_map.data)[e] = e % 2 ? -1 : e;
    }
    for (int d = 0; d < num_devices(); d++) {
        int64_t away = 0;
        run_on(&r, d);
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = 0; k < 2; k++) {
                CHECK(id_at(&r, t, k) % 2 <= 0);
                away += id_at(&r, t, k) < 0;
            }
            CHECK_EQ(id_at(&r, t, 2), 8);
            CHECK_EQ(id_at(&r, t, 3), 9);
        }
        CHECK(away > 0);
    }
    close_run(&r);
}

/* Two copies of each expert on one rank: rows take them in turn, with the same weights, and both are counted. */
TEST(trap_26_copies_of_an_expert_change_ids_and_nothing_else)
{
    gate_spec s = gate_spec_default();
    s.T = 16;
    gate_spec m = s;
    m.map = MAP_COPIES;
    m.cfg.num_physical_experts = 16;
    m.row_base = 3;
    trap_run a, b;
    open_run(&a, &s);
    open_run(&b, &m);
    for (int e = 0; e < 8; e++) {
        ((int32_t *)b.c.args.expert_copies.data)[e] = 2;
        for (int n = 0; n < 3; n++) {
            ((int32_t *)b.c.args.expert_map.data)[e * 3 + n] = n < 2 ? e + 8 * n : -7; /* the third must not be used */
        }
    }
    for (int d = 0; d < num_devices(); d++) {
        run_on(&a, d);
        run_on(&b, d);
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = 0; k < 2; k++) {
                CHECK_EQ(id_at(&b, t, k), id_at(&a, t, k) + 8 * ((3 + t) % 2));
                CHECK_EQ(mf_f32_bits(weight_at(&b, t, k)), mf_f32_bits(weight_at(&a, t, k)));
            }
        }
        CHECK_MEM(a.o.load, b.o.load, 8 * 4); /* logical */
    }
    close_run(&a);
    close_run(&b);
}

/* load has E entries and counts K per row: shared columns never reach it (its guard bytes are checked on closing). */
TEST(trap_27_what_is_captured_is_k_wide)
{
    gate_spec s = gate_spec_default();
    s.T = 50;
    s.cfg.num_shared_slots = 4;
    s.padding = PAD_HALF;
    trap_run r;
    open_run(&r, &s);
    for (int d = 0; d < num_devices(); d++) {
        int64_t sum = 0;
        run_on(&r, d);
        for (int e = 0; e < 8; e++) {
            sum += r.o.load[e] - (100 + e);
        }
        CHECK_EQ(sum, 25 * 2);
    }
    close_run(&r);
}

/* ---- 28, 29 ---- */

TEST(trap_28_zero_over_zero_is_zero_and_nan_never_duplicates_an_id)
{
    for (int renorm = MF_RENORM_NONE; renorm <= MF_RENORM_SUM_FLOOR; renorm++) {
        for (int scoring = MF_SCORING_SOFTMAX; scoring <= MF_SCORING_TOPK_SIGMOID; scoring++) {
            gate_spec s = gate_spec_default();
            bool topk = scoring >= MF_SCORING_TOPK_SOFTMAX;
            s.T = 40;
            s.cfg.num_experts = 12;
            s.cfg.top_k = 5;
            s.cfg.scoring = (mf_scoring)scoring;
            s.cfg.renorm = topk ? MF_RENORM_NONE : (mf_renorm)renorm;
            s.cfg.renorm_eps = 1e-12;
            s.cfg.routed_scaling_factor = 1.0;
            s.values = VALUES_SPECIAL;
            trap_run r;
            open_run(&r, &s);
            float *x = r.c.args.router_logits.data;
            for (int i = 0; i < 12; i++) {
                x[i] = -INFINITY; /* sigmoid and sqrtsoftplus are 0 for every expert */
                x[12 + i] = NAN;
                x[24 + i] = i == 7 ? -1000.0f : NAN;
            }
            for (int d = 0; d < num_devices(); d++) {
                run_on(&r, d);
                for (int64_t t = 0; t < s.T; t++) {
                    uint32_t seen = 0;
                    for (int64_t k = 0; k < 5; k++) {
                        CHECK(!isnan(weight_at(&r, t, k)));
                        CHECK((seen & 1u << id_at(&r, t, k)) == 0);
                        seen |= 1u << id_at(&r, t, k);
                    }
                }
                for (int64_t k = 0; k < 5; k++) {
                    CHECK_EQ(id_at(&r, 0, k), k);
                    CHECK_EQ(id_at(&r, 1, k), k);
                    CHECK_EQ(mf_f32_bits(weight_at(&r, 1, k)), 0);
                    CHECK_EQ(id_at(&r, 2, k), k == 0 ? 7 : k - 1);
                    CHECK(weight_at(&r, 0, k) == 0.0f || scoring == MF_SCORING_SOFTMAX || topk);
                }
            }
            close_run(&r);
        }
    }
}

/* Ernie: softmax scores, a bias on the choice, weights from the scores alone, floored renormalisation. */
TEST(trap_29_a_score_bias_steers_choice_and_not_weight)
{
    gate_spec s = gate_spec_default();
    s.T = 1;
    s.cfg.num_experts = 4;
    s.cfg.scoring = MF_SCORING_SOFTMAX;
    s.cfg.bias_domain = MF_BIAS_SCORE;
    s.cfg.renorm = MF_RENORM_SUM_FLOOR;
    s.cfg.renorm_eps = 1e-12;
    s.cfg.routed_scaling_factor = 1.0;
    trap_run r;
    open_run(&r, &s);
    static const float logits[4] = { 3.0f, 2.0f, 1.0f, 1.0f };
    static const float bias[4] = { -1.0f, 0.0f, 0.0f, 0.5f };
    memcpy(r.c.args.router_logits.data, logits, sizeof logits);
    memcpy(r.c.args.e_score_correction_bias.data, bias, sizeof bias);
    for (int d = 0; d < num_devices(); d++) {
        run_on(&r, d);
        /* Scores .61 .22 .08 .08: with the bias 3 wins before 1; weights are in the ratio exp(1) : exp(2). */
        CHECK_EQ(id_at(&r, 0, 0), 3);
        CHECK_EQ(id_at(&r, 0, 1), 1);
        CHECK(fabs((double)weight_at(&r, 0, 0) - 0.2689414213699951) < 1e-6);
        CHECK(fabs((double)weight_at(&r, 0, 1) - 0.7310585786300049) < 1e-6);
    }
    close_run(&r);
}

/* ---- 30: offsets past 2^31 ---- */

/* Address space without memory behind it: only pages that are touched are real. */
static char *sparse(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Three rows whose strides put the last one past 2^31 elements, in the inputs and in every output. */
TEST(trap_30_the_gates_offsets_are_64_bit)
{
    const int64_t stride = (1LL << 30) + 7;
    const size_t bytes = (size_t)(2 * stride + 64) * 4;
    gate_spec s = gate_spec_default();
    s.T = 3;
    s.cfg.num_shared_slots = 1;
    s.cfg.pack = 1;
    trap_run r;
    open_run(&r, &s);
    char *logits = sparse(bytes), *ids = sparse(bytes), *weights = sparse(bytes), *packed = sparse(bytes);
    if (!logits || !ids || !weights || !packed) {
        skip();
    }
    for (int d = 0; d < num_devices(); d++) {
        run_on(&r, d);
        gate_outputs wide = r.o;
        for (int t = 0; t < 3; t++) {
            memcpy(logits + t * stride * 4, (char *)r.c.args.router_logits.data + t * 32, 32);
            memset(ids + t * stride * 4, CONF_POISON, 12);
        }
        mf_tensor *const views[] = { &wide.args.router_logits, &wide.args.topk_ids, &wide.args.topk_weights, &wide.args.packed };
        char *const data[] = { logits, ids, weights, packed };
        for (int i = 0; i < 4; i++) {
            views[i]->data = data[i];
            views[i]->stride[0] = stride;
        }
        for (int unfused = 0; unfused < 2; unfused++) {
            gate_run(&wide, device_at(d), unfused);
            CHECK_OK(wide.status, wide.err);
            for (int t = 0; t < 3; t++) {
                CHECK_MEM(ids + t * stride * 4, r.o.ids + t * 3, 12);
                CHECK_MEM(weights + t * stride * 4, r.o.weights + t * 3, 12);
                CHECK_MEM(packed + t * stride * 4, r.o.packed + t * 3, 12);
            }
        }
    }
    munmap(logits, bytes);
    munmap(ids, bytes);
    munmap(weights, bytes);
    munmap(packed, bytes);
    close_run(&r);
}

/* x [3, 2, 8] with both outer strides past 2^30 elements; out and residual with rows past 2^31. */
TEST(trap_30_the_combines_offsets_are_64_bit)
{
    enum { T = 3, C = 2, H = 8 };
    const int64_t column = (1LL << 30) + 3, row = 2 * column, out_row = (1LL << 31) - 1;
    const size_t x_bytes = (size_t)(2 * row + column + H) * 2, out_bytes = (size_t)(2 * out_row + H) * 2;
    char *x = sparse(x_bytes), *out = sparse(out_bytes);
    if (!x || !out) {
        skip();
    }
    uint64_t seed = 30;
    uint16_t dense[T * C * H], want[T * H];
    for (int i = 0; i < T * C * H; i++) {
        conf_put(dense, MF_BF16, i, conf_normal(&seed));
        memcpy(x + (i / (C * H) * row + i / H % C * column + i % H) * 2, &dense[i], 2);
    }
    mf_sum_reduce_args a = { .x = mf_tensor_3d(dense, MF_BF16, T, C, H), .routed_scaling_factor = 2.5f,
                             .out = mf_tensor_2d(want, MF_BF16, T, H) };
    mf_error err;
    CHECK_OK(mf_moe_sum_reduce(conf_ref(), &a, &err), err);
    a.x.data = x;
    a.x.stride[0] = row;
    a.x.stride[1] = column;
    a.out.data = out;
    a.out.stride[0] = out_row;
    for (int d = 0; d < num_devices(); d++) {
        for (int t = 0; t < T; t++) {
            memset(out + t * out_row * 2, CONF_POISON, H * 2);
        }
        CHECK_OK(mf_moe_sum_reduce(device_at(d), &a, &err), err);
        for (int t = 0; t < T; t++) {
            CHECK_MEM(out + t * out_row * 2, want + t * H, H * 2);
        }
    }
    munmap(x, x_bytes);
    munmap(out, out_bytes);
}

/* In full runs 32,768 x 4096 = 2^27 logits. */
TEST(trap_30_32k_tokens_with_many_experts)
{
    gate_spec s = gate_spec_default();
    s.T = 32768;
    s.cfg.num_experts = conf_full() ? 4096 : 72;
    s.cfg.top_k = 8;
    s.cfg.num_shared_slots = 1;
    s.logits_dtype = MF_BF16;
    trap_run a, b;
    open_run(&a, &s);
    run_on(&a, 0);
    for (int d = 1; d < num_devices(); d++) {
        b.c = a.c;
        gate_outputs_open(&b.o, &b.c);
        gate_run(&b.o, device_at(d), false);
        gate_expect_equal(&a.c, &a.o, &b.o, "32k tokens");
        gate_outputs_close(&b.o);
    }
    close_run(&a);
}

/* ---- contraction ---- */

/* Each row: a logit, the bits of sqrtsoftplus by the definition, and the bits a compiler gets that contracts p * s into
 * the following addition.  From exact rational arithmetic, rounded to f32 after every step. */
static const uint32_t contraction_rows[8][3] = {
    { 0x3f6b31be, 0x3f8f5daf, 0x3f8f5db0 }, { 0x3ef7f95b, 0x3f7b652b, 0x3f7b652a }, { 0x3df5adcd, 0x3f5e6de4, 0x3f5e6de3 },
    { 0x3ff6e157, 0x3fb7e9a1, 0x3fb7e9a2 }, { 0x3f0fb525, 0x3f80cf95, 0x3f80cf94 }, { 0x3ec5ddcb, 0x3f7386f4, 0x3f7386f3 },
    { 0x3e960b55, 0x3f6c126c, 0x3f6c126b }, { 0x400ed638, 0x3fc38aba, 0x3fc38ab9 },
};

TEST(sqrtsoftplus_is_not_contracted)
{
    gate_spec s = gate_spec_default();
    s.T = 1;
    s.cfg.num_experts = s.cfg.top_k = 8;
    s.cfg.scoring = MF_SCORING_SQRTSOFTPLUS;
    s.cfg.renorm = MF_RENORM_NONE;
    s.cfg.routed_scaling_factor = 1.0;
    trap_run r;
    open_run(&r, &s);
    for (int i = 0; i < 8; i++) {
        CHECK(contraction_rows[i][1] != contraction_rows[i][2]);
        ((float *)r.c.args.router_logits.data)[i] = mf_f32_from_bits(contraction_rows[i][0]);
    }
    for (int d = 0; d < num_devices(); d++) {
        run_on(&r, d);
        for (int k = 0; k < 8; k++) {
            CHECK_EQ(mf_f32_bits(weight_at(&r, 0, k)), contraction_rows[id_at(&r, 0, k)][1]);
        }
    }
    close_run(&r);
}

/* identity_weight adds products that were rounded before: w * factor must not become part of an fma. */
TEST(folding_into_the_identity_weight_is_not_contracted)
{
    gate_spec s = gate_spec_default();
    s.T = 64;
    s.cfg.num_experts = 1;
    s.cfg.num_zero_experts = 2;
    s.cfg.top_k = 2;
    s.cfg.renorm = MF_RENORM_NONE;
    s.cfg.routed_scaling_factor = 0.3;
    trap_run r;
    open_run(&r, &s);
    for (int64_t t = 0; t < s.T; t++) {
        ((float *)r.c.args.router_logits.data)[t * 3] = -50.0f; /* both zero experts are chosen */
    }
    for (int d = 0; d < num_devices(); d++) {
        int64_t sensitive = 0;
        run_on(&r, d);
        for (int64_t t = 0; t < s.T; t++) {
            const float *x = (const float *)r.c.args.router_logits.data + t * 3;
            float a = mf_sigmoid(x[1] >= x[2] ? x[1] : x[2]), b = mf_sigmoid(x[1] >= x[2] ? x[2] : x[1]);
            volatile float pa = a * 0.3f, pb = b * 0.3f, sum = pa + pb;
            sensitive += sum != fmaf(b, 0.3f, pa);
            CHECK_EQ(mf_f32_bits(r.o.identity[t]), mf_f32_bits(sum));
        }
        CHECK(sensitive > 0);
    }
    close_run(&r);
}
