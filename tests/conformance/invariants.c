/* invariants.c - what must hold between calls: fused and unfused, alone and in a batch, replicas, permutations, order of
 * memory.  Checked on every device. */
#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "gate_oracle.h"

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

static void run_ok(gate_outputs *o, const gate_case *c, int device, bool unfused)
{
    gate_outputs_open(o, c);
    gate_run(o, device_at(device), unfused);
    if (o->status != MF_OK) {
        fail_msg("%s\n  %s", o->err.message, gate_case_text(c));
    }
}

/* 1: the steps one by one give the fused gate's bits, on every device. */
TEST(fused_equals_unfused)
{
    uint64_t seed = 101;
    for (int i = 0; i < 300; i++) {
        gate_spec s = gate_spec_random(&seed, 4000);
        gate_case c;
        gate_case_open(&c, &s);
        for (int d = 0; d < num_devices(); d++) {
            gate_outputs a, b;
            run_ok(&a, &c, d, false);
            run_ok(&b, &c, d, true);
            gate_expect_equal(&c, &a, &b, "unfused");
            gate_outputs_close(&a);
            gate_outputs_close(&b);
        }
        gate_case_close(&c);
    }
}

/* 1: shared chunks as slots of the routed product or as addends from a product of their own: the same combine. */
TEST(shared_columns_and_addends_combine_to_the_same_bits)
{
    enum { T = 5, K = 3, S = 3, H = 37 };
    static const mf_dtype dtypes[] = { MF_F32, MF_BF16, MF_F16 };
    uint64_t seed = 7;
    for (int turn = 0; turn < 36; turn++) {
        mf_dtype dtype = dtypes[turn % 3];
        char joint[T * (K + S) * H * 4], routed[T * K * H * 4], chunk[S][T * H * 4];
        float w[T * (K + S)], w_routed[T * K], w_shared[T * S], residual[T * H], a_out[T * H], b_out[T * H];
        for (int i = 0; i < T * (K + S); i++) {
            int t = i / (K + S), k = i % (K + S);
            w[i] = (float)conf_normal(&seed);
            *(k < K ? &w_routed[t * K + k] : &w_shared[t * S + k - K]) = w[i];
            for (int h = 0; h < H; h++) {
                double v = conf_normal(&seed);
                conf_put(joint, dtype, i * H + h, v);
                conf_put(k < K ? routed : chunk[k - K], dtype, k < K ? (t * K + k) * H + h : t * H + h, v);
            }
        }
        for (int i = 0; i < T * H; i++) {
            residual[i] = (float)conf_normal(&seed);
        }
        mf_tensor addends[S];
        for (int j = 0; j < S; j++) {
            addends[j] = mf_tensor_2d(chunk[j], dtype, T, H);
        }
        mf_sum_reduce_args fused = { .x = mf_tensor_3d(joint, dtype, T, K + S, H), .topk_weights = mf_tensor_2d(w, MF_F32, T, K + S),
                                     .routed_scaling_factor = turn % 2 ? 2.5f : 1.0f, .num_shared_columns = S,
                                     .residual = mf_tensor_2d(residual, MF_F32, T, H), .out = mf_tensor_2d(a_out, MF_F32, T, H) };
        mf_sum_reduce_args apart = fused;
        apart.x = mf_tensor_3d(routed, dtype, T, K, H);
        apart.topk_weights = mf_tensor_2d(w_routed, MF_F32, T, K);
        apart.num_shared_columns = 0;
        apart.num_addends = S;
        apart.addends = addends;
        apart.addend_weights = mf_tensor_2d(w_shared, MF_F32, T, S);
        apart.out.data = b_out;
        for (int d = 0; d < num_devices(); d++) {
            mf_error err;
            CHECK_OK(mf_moe_sum_reduce(device_at(d), &fused, &err), err);
            CHECK_OK(mf_moe_sum_reduce(device_at(d), &apart, &err), err);
            CHECK_MEM(a_out, b_out, sizeof a_out);
        }
    }
}

/* 2: a row alone gives the bits it has in a batch, wherever it stands, given the same row_base + t. */
TEST(a_row_does_not_depend_on_its_batch)
{
    uint64_t seed = 202;
    for (int i = 0; i < 150; i++) {
        gate_spec s = gate_spec_random(&seed, 3000);
        if (s.T == 0) {
            continue;
        }
        gate_case c;
        gate_outputs whole;
        gate_case_open(&c, &s);
        int d = i % num_devices();
        run_ok(&whole, &c, d, false);
        for (int n = 0; n < 4; n++) {
            int64_t t = conf_below(&seed, s.T);
            gate_case one = c;
            int32_t valid = 1;
            size_t size = mf_dtype_size(s.logits_dtype);
            one.spec.T = 1;
            one.args.config = &one.spec.cfg;
            one.args.row_base = s.row_base + t;
            one.args.router_logits.data = (char *)c.args.router_logits.data + (size_t)(t * c.args.router_logits.stride[0]) * size;
            mf_tensor *const rows[] = { &one.args.router_logits, &one.args.row_is_alt, &one.args.shared_gate, &one.args.token_ids,
                                        &one.args.row_valid };
            for (int r = 0; r < 5; r++) {
                if (rows[r]->data) {
                    rows[r]->shape[0] = 1;
                    if (r > 0) {
                        rows[r]->data = (char *)rows[r]->data + (size_t)t * mf_dtype_size(rows[r]->dtype);
                    }
                }
            }
            if (c.args.num_valid_tokens.data) {
                valid = t < *(const int32_t *)c.args.num_valid_tokens.data;
                one.args.num_valid_tokens.data = &valid;
            }
            gate_outputs o;
            run_ok(&o, &one, (d + n) % num_devices(), n % 2);
            CHECK_EQ(conf_difference(o.ids, whole.ids + t * whole.row, MF_I32, c.C), -1);
            CHECK_EQ(conf_difference(o.weights, whole.weights + t * whole.row, MF_F32, c.C), -1);
            if (s.cfg.num_zero_experts > 0) {
                CHECK_EQ(conf_difference(o.identity, whole.identity + t, MF_F32, 1), -1);
            }
            gate_outputs_close(&o);
        }
        gate_outputs_close(&whole);
        gate_case_close(&c);
    }
}

/* 3: R and row_base move shared ids between replicas of the same chunk and change nothing else. */
TEST(replicas_change_only_which_copy_a_shared_column_names)
{
    uint64_t seed = 303;
    for (int i = 0; i < 60; i++) {
        gate_spec s = gate_spec_default();
        s.T = 40;
        s.seed = mf_random_next(&seed);
        s.cfg.num_shared_slots = 1 + i % 4;
        gate_case one;
        gate_outputs a;
        gate_case_open(&one, &s);
        run_ok(&a, &one, i % num_devices(), false);
        s.cfg.num_replicas = 1 + (int32_t)conf_below(&seed, 8);
        s.row_base = conf_below(&seed, 1000);
        gate_case many;
        gate_outputs b;
        gate_case_open(&many, &s);
        run_ok(&b, &many, i % num_devices(), false);
        CHECK_EQ(conf_difference(a.weights, b.weights, MF_F32, s.T * a.row), -1);
        int32_t used[16] = { 0 };
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = 0; k < many.C; k++) {
                int32_t id = b.ids[t * b.row + k];
                if (k >= s.cfg.top_k) { /* slot E + j*R + replica stands for chunk j */
                    int32_t replica = (id - 8) % s.cfg.num_replicas;
                    CHECK_EQ(replica, (s.row_base + t) % s.cfg.num_replicas);
                    used[replica]++;
                    id = 8 + (id - 8) / s.cfg.num_replicas;
                }
                CHECK_EQ(id, a.ids[t * a.row + k]);
            }
        }
        for (int r = 0; r < s.cfg.num_replicas; r++) { /* counts differ by at most one row */
            CHECK(abs(used[r] - used[0]) <= s.cfg.num_shared_slots);
        }
        gate_outputs_close(&a);
        gate_outputs_close(&b);
        gate_case_close(&one);
        gate_case_close(&many);
    }
}

TEST(ep_of_size_one_equals_no_ep)
{
    uint64_t seed = 313;
    for (int i = 0; i < 40; i++) {
        gate_spec s = gate_spec_random(&seed, 2000);
        s.cfg.num_replicas = 1;
        s.cfg.ep_size = 0;
        s.cfg.ep_rank = -1;
        s.cfg.num_slots = s.cfg.shared_base = s.cfg.shared_stride = -1;
        s.cfg.pack = 0;
        gate_spec e = s;
        e.cfg.ep_size = 1;
        e.cfg.ep_rank = i % 2 - 1;
        gate_case a, b;
        gate_outputs x, y;
        gate_case_open(&a, &s);
        gate_case_open(&b, &e);
        run_ok(&x, &a, i % num_devices(), false);
        run_ok(&y, &b, i % num_devices(), false);
        gate_expect_equal(&a, &x, &y, "ep_size 1");
        gate_outputs_close(&x);
        gate_outputs_close(&y);
        gate_case_close(&a);
        gate_case_close(&b);
    }
}

/* 4: renaming experts renames ids and keeps weights, bit for bit when no keys tie; with SOFTMAX within its stated ulps. */
TEST(permuting_experts_permutes_ids)
{
    uint64_t seed = 404;
    for (int i = 0; i < 120; i++) {
        gate_spec s = gate_spec_default();
        s.T = 6;
        s.seed = mf_random_next(&seed);
        s.cfg.num_experts = (int32_t)CONF_PICK(&seed, 16, 64, 160, 512);
        s.cfg.top_k = 4;
        s.cfg.scoring = (mf_scoring)(1 + i % 5);
        bool softmax = s.cfg.scoring == MF_SCORING_SOFTMAX; /* its ulps are those of the probabilities themselves */
        s.cfg.renorm = softmax || s.cfg.scoring == MF_SCORING_TOPK_SOFTMAX ? MF_RENORM_NONE : MF_RENORM_SUM_EPS;
        s.cfg.routed_scaling_factor = softmax ? 1.0 : 2.5;
        s.cfg.bias_domain = s.cfg.scoring == MF_SCORING_TOPK_SOFTMAX || i % 2 ? MF_BIAS_LOGIT : MF_BIAS_SCORE;
        if (i % 3 == 0 && s.cfg.scoring != MF_SCORING_TOPK_SOFTMAX) {
            s.cfg.n_group = 8;
            s.cfg.topk_group = 3;
            s.cfg.group_score = MF_GROUP_SCORE_TOP2_SUM;
        }
        gate_case c, p;
        gate_case_open(&c, &s);
        gate_case_open(&p, &s);
        /* Groups change places as a whole and experts change places within them. */
        int64_t size = c.N / s.cfg.n_group;
        int32_t to[512];
        for (int64_t e = 0; e < c.N; e++) {
            int64_t g = (e / size * 3 + 1) % s.cfg.n_group; /* 3 is coprime to 8 and to 1 */
            to[e] = (int32_t)(g * size + (e % size + 5) % size);
        }
        for (int64_t e = 0; e < c.N; e++) {
            ((float *)p.args.e_score_correction_bias.data)[to[e]] = ((const float *)c.args.e_score_correction_bias.data)[e];
            for (int64_t t = 0; t < s.T; t++) {
                ((float *)p.args.router_logits.data)[t * c.N + to[e]] = ((const float *)c.args.router_logits.data)[t * c.N + e];
            }
        }
        gate_outputs a, b;
        run_ok(&a, &c, i % num_devices(), false);
        run_ok(&b, &p, i % num_devices(), false);
        int64_t most = softmax ? 4 : 0;
        for (int64_t n = 0; n < s.T * a.row; n++) {
            CHECK_EQ(b.ids[n], to[a.ids[n]]);
            CHECK(llabs((int64_t)mf_f32_bits(a.weights[n]) - (int64_t)mf_f32_bits(b.weights[n])) <= most);
        }
        gate_outputs_close(&a);
        gate_outputs_close(&b);
        gate_case_close(&c);
        gate_case_close(&p);
    }
}

/* 5: a softmax does not feel a constant.  The logits are multiples of 1/4, so the addition is exact. */
TEST(adding_a_constant_to_softmax_logits_changes_nothing)
{
    uint64_t seed = 505;
    for (int i = 0; i < 40; i++) {
        gate_spec s = gate_spec_default();
        s.T = 8;
        s.seed = mf_random_next(&seed);
        s.cfg.num_experts = 72;
        s.cfg.top_k = 6;
        s.cfg.scoring = MF_SCORING_SOFTMAX;
        s.values = VALUES_TIES;
        gate_case c, p;
        gate_case_open(&c, &s);
        gate_case_open(&p, &s);
        for (int64_t n = 0; n < s.T * c.N; n++) {
            ((float *)p.args.router_logits.data)[n] += (float)(i - 20) * 0.5f;
        }
        gate_outputs a, b;
        run_ok(&a, &c, i % num_devices(), false);
        run_ok(&b, &p, i % num_devices(), false);
        gate_expect_equal(&c, &a, &b, "shifted logits");
        gate_outputs_close(&a);
        gate_outputs_close(&b);
        gate_case_close(&c);
        gate_case_close(&p);
    }
}

TEST(a_zero_bias_equals_no_bias)
{
    uint64_t seed = 515;
    for (int i = 0; i < 120; i++) {
        gate_spec s = gate_spec_random(&seed, 2000);
        s.cfg.hash = 0;
        s.mask = false;
        s.cfg.scoring = (mf_scoring)CONF_PICK(&seed, MF_SCORING_SIGMOID, MF_SCORING_SQRTSOFTPLUS, MF_SCORING_SQRTSOFTPLUS_LOG1P);
        s.cfg.bias_domain = MF_BIAS_NONE;
        s.bias_alt = false;
        gate_spec z = s;
        z.cfg.bias_domain = i % 2 ? MF_BIAS_SCORE : MF_BIAS_LOGIT;
        z.bias_values = VALUES_ZERO;
        gate_case c, p;
        gate_case_open(&c, &s);
        gate_case_open(&p, &z);
        /* Drawing the bias moved the generator: the rest of the inputs comes from the first case. */
        mf_tensor bias = p.args.e_score_correction_bias;
        p.args = c.args;
        p.args.config = &p.spec.cfg;
        p.args.e_score_correction_bias = bias;
        gate_outputs a, b;
        run_ok(&a, &c, i % num_devices(), false);
        run_ok(&b, &p, i % num_devices(), false);
        gate_expect_equal(&c, &a, &b, "zero bias");
        gate_outputs_close(&a);
        gate_outputs_close(&b);
        gate_case_close(&c);
        gate_case_close(&p);
    }
}

/* 6 */
TEST(routed_ids_are_unique_and_weights_are_finite_and_not_negative)
{
    uint64_t seed = 606;
    for (int i = 0; i < 300; i++) {
        gate_spec s = gate_spec_random(&seed, 3000);
        s = gate_spec_without_events(&s);
        s.cfg.routed_scaling_factor = fmin(s.cfg.routed_scaling_factor, 16.0);
        gate_case c;
        gate_outputs o;
        gate_case_open(&c, &s);
        run_ok(&o, &c, i % num_devices(), i % 3 == 0);
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = 0; k < c.C; k++) {
                int32_t id = o.ids[t * o.row + k];
                float w = o.weights[t * o.row + k];
                CHECK(isfinite(w) && w >= 0.0f && (mf_f32_bits(w) & 0x80000000u) == 0);
                CHECK(w == 0.0f || w >= 0x1p-126f);
                CHECK(id >= -1 && id < (k < s.cfg.top_k ? s.cfg.num_experts : c.P));
                CHECK(id >= 0 || w == 0.0f);
                for (int64_t j = 0; j < k && id >= 0 && !s.cfg.hash; j++) {
                    CHECK(o.ids[t * o.row + j] != id);
                }
            }
        }
        gate_outputs_close(&o);
        gate_case_close(&c);
    }
}

/* 8: twice the same, whatever ran before. */
TEST(two_runs_give_the_same_bits)
{
    uint64_t seed = 808;
    for (int i = 0; i < 60; i++) {
        gate_spec s = gate_spec_random(&seed, 20000);
        gate_case c;
        gate_case_open(&c, &s);
        for (int d = 0; d < num_devices(); d++) {
            gate_outputs a, b;
            run_ok(&a, &c, d, false);
            run_ok(&b, &c, d, false);
            gate_expect_equal(&c, &a, &b, "second run");
            gate_outputs_close(&a);
            gate_outputs_close(&b);
        }
        gate_case_close(&c);
    }
}

/* 10: where the logits lie does not matter. */
TEST(strided_offset_and_unaligned_logits_equal_dense_ones)
{
    uint64_t seed = 1010;
    for (int i = 0; i < 80; i++) {
        gate_spec s = gate_spec_random(&seed, 3000);
        s.layout = LAYOUT_DENSE;
        for (int d = 0; d < num_devices(); d++) {
            gate_case dense;
            gate_outputs want;
            gate_case_open(&dense, &s);
            run_ok(&want, &dense, d, false);
            for (int l = LAYOUT_DENSE + 1; l < LAYOUT_COUNT; l++) {
                gate_spec other = s;
                other.layout = (layout_kind)l;
                gate_case c;
                gate_outputs o;
                gate_case_open(&c, &other);
                run_ok(&o, &c, d, false);
                gate_expect_equal(&c, &want, &o, "layout");
                gate_outputs_close(&o);
                gate_case_close(&c);
            }
            gate_outputs_close(&want);
            gate_case_close(&dense);
        }
    }
}

/* 11 */
TEST(the_histogram_sums_to_the_columns_that_remain)
{
    uint64_t seed = 1111;
    for (int i = 0; i < 150; i++) {
        gate_spec s = gate_spec_random(&seed, 3000);
        s.histogram = true;
        gate_case c;
        gate_outputs o;
        gate_case_open(&c, &s);
        run_ok(&o, &c, i % num_devices(), false);
        int64_t sum = 0, remain = 0;
        for (int64_t p = 0; p < c.P; p++) {
            sum += o.histogram[p];
        }
        for (int64_t t = 0; t < s.T; t++) {
            for (int64_t k = 0; k < c.C; k++) {
                int32_t id = o.ids[t * o.row + k];
                remain += id >= 0 && id < c.P;
            }
        }
        CHECK_EQ(sum, remain);
        gate_outputs_close(&o);
        gate_case_close(&c);
    }
}
