/* delta_net.c - the gated delta net on every device against its definition in double precision, and its promises: the
 * bits of a text do not depend on how it is cut, on its company or on threads, and a state belongs to one sequence. */
#include "experts_case.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"

enum { MAX_SEQUENCES = 6, SLACK = 16 };

typedef struct shape {
    int64_t k_heads, v_heads, k_dim, v_dim, taps;
} shape;

/* One vector and a tail, two columns of tasks, no multiple of anything, one tap, the release's head. */
static const shape shapes[] = {
    { 2, 4, 16, 40, 4 }, { 3, 3, 11, 37, 3 },   { 1, 1, 1, 1, 1 },
    { 2, 6, 33, 65, 2 }, { 1, 2, 128, 128, 4 }, { 1, 1, 300, 32, 7 },
};
enum { NUM_SHAPES = sizeof shapes / sizeof shapes[0] };

/* Texts of several sequences: rows of sequence s begin at first[s]. */
typedef struct net {
    shape s;
    int64_t channels, width, out_width, state_floats, slot_floats, rows;
    int32_t num_sequences, length[MAX_SEQUENCES], first[MAX_SEQUENCES];
    float *qkvz, *ba, *conv, *a_log, *dt_bias, *norm;
} net;

static float *normals(uint64_t *seed, int64_t n, double scale, double offset)
{
    float *x = conf_alloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(offset + scale * conf_normal(seed));
    }
    return x;
}

/* decay_log: mean of a_log; -6 keeps a state over hundreds of tokens. */
static void make(net *n, shape s, uint64_t seed, int32_t num_sequences, const int32_t *length, double decay_log)
{
    *n = (net){ .s = s, .num_sequences = num_sequences };
    for (int32_t i = 0; i < num_sequences; i++) {
        n->length[i] = length[i];
        n->first[i] = (int32_t)n->rows;
        n->rows += length[i];
    }
    n->channels = 2 * s.k_heads * s.k_dim + s.v_heads * s.v_dim;
    n->width = n->channels + s.v_heads * s.v_dim;
    n->out_width = s.v_heads * s.v_dim;
    n->state_floats = s.v_heads * s.k_dim * s.v_dim + (s.taps - 1) * n->channels;
    n->qkvz = normals(&seed, n->rows * n->width, 1.0, 0.0);
    n->ba = normals(&seed, n->rows * 2 * s.v_heads, 1.5, 0.0);
    n->conv = normals(&seed, n->channels * s.taps, 1.0 / sqrt((double)s.taps), 0.0);
    n->a_log = normals(&seed, s.v_heads, 1.0, decay_log);
    n->dt_bias = normals(&seed, s.v_heads, 0.5, 0.0);
    n->norm = normals(&seed, s.v_dim, 0.2, 1.0);
}

static void discard(net *n)
{
    float *const parts[] = { n->qkvz, n->ba, n->conv, n->a_log, n->dt_bias, n->norm };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        conf_free(parts[i]);
    }
}

/* ---- running ---- */

typedef struct result {
    float *out;    /* [rows, out_width] */
    float *states; /* [num_sequences, slot_floats] */
} result;

static result new_result(net *n, mf_device *device)
{
    (void)device;
    const mf_delta_net_args sizes = { .num_k_heads = n->s.k_heads,
                                      .num_v_heads = n->s.v_heads,
                                      .k_dim = n->s.k_dim,
                                      .v_dim = n->s.v_dim,
                                      .conv_size = n->s.taps };
    CHECK(mf_delta_net_state_floats(&sizes) >= n->state_floats);
    n->slot_floats = mf_delta_net_state_floats(&sizes) + SLACK;
    result r = { conf_alloc((size_t)(n->rows * n->out_width) * sizeof(float)),
                 conf_alloc((size_t)(n->num_sequences * n->slot_floats) * sizeof(float)) };
    return r; /* poisoned: a new sequence must not read its slot */
}

static void free_result(result *r)
{
    conf_free(r->out);
    conf_free(r->states);
}

/* One batch: sequence s gives rows from[s] to to[s]; neighbours in turn with `mix`, else one after the other. */
static void run_batch(const net *n, mf_device *device, const int32_t *from, const int32_t *to, bool mix, result *r)
{
    int32_t *rows = conf_alloc((size_t)n->rows * sizeof *rows), start[MAX_SEQUENCES + 1], slot[MAX_SEQUENCES];
    int32_t *source = conf_alloc((size_t)n->rows * sizeof *source); /* of each row of the batch */
    uint8_t is_new[MAX_SEQUENCES];
    int32_t next[MAX_SEQUENCES], num_rows = 0, num_runs = 0, placed = 0;
    memcpy(next, from, (size_t)n->num_sequences * sizeof *next);
    for (int32_t left = 1; left > 0;) {
        left = 0;
        for (int32_t s = n->num_sequences; s-- > 0;) {
            for (bool go = next[s] < to[s]; go; go = !mix && next[s] < to[s]) {
                source[num_rows++] = n->first[s] + next[s]++;
            }
            left += to[s] - next[s];
        }
    }
    for (int32_t s = 0; s < n->num_sequences; s++) {
        if (from[s] == to[s]) {
            continue;
        }
        start[num_runs] = placed;
        slot[num_runs] = s;
        is_new[num_runs++] = from[s] == 0;
        for (int32_t i = 0; i < num_rows; i++) {
            if (source[i] >= n->first[s] && source[i] < n->first[s] + n->length[s]) {
                rows[placed++] = i;
            }
        }
    }
    start[num_runs] = placed;
    CHECK_EQ(placed, num_rows);
    float *qkvz = conf_alloc((size_t)(num_rows * n->width) * 4),
          *ba = conf_alloc((size_t)(num_rows * 2 * n->s.v_heads) * 4);
    float *out = conf_alloc((size_t)(num_rows * n->out_width) * 4);
    for (int32_t i = 0; i < num_rows; i++) {
        memcpy(qkvz + i * n->width, n->qkvz + source[i] * n->width, (size_t)n->width * 4);
        memcpy(ba + i * 2 * n->s.v_heads, n->ba + source[i] * 2 * n->s.v_heads, (size_t)n->s.v_heads * 8);
    }
    mf_delta_net_args args = { .num_tokens = num_rows,
                               .num_k_heads = n->s.k_heads,
                               .num_v_heads = n->s.v_heads,
                               .k_dim = n->s.k_dim,
                               .v_dim = n->s.v_dim,
                               .conv_size = n->s.taps,
                               .norm_eps = 1e-6f,
                               .qkvz = qkvz,
                               .ba = ba,
                               .conv = n->conv,
                               .a_log = n->a_log,
                               .dt_bias = n->dt_bias,
                               .norm = n->norm,
                               .state = { .states = r->states,
                                          .slot_floats = n->slot_floats,
                                          .num_runs = num_runs,
                                          .rows = rows,
                                          .start = start,
                                          .slot = slot,
                                          .is_new = is_new },
                               .out = out };
    args.scratch = conf_alloc(device->ops->delta_net_scratch_floats(device, &args) * sizeof(float));
    device->ops->delta_net(device, &args);
    for (int32_t i = 0; i < num_rows; i++) {
        memcpy(r->out + source[i] * n->out_width, out + i * n->out_width, (size_t)n->out_width * 4);
    }
    conf_free(args.scratch);
    conf_free(qkvz);
    conf_free(ba);
    conf_free(out);
    conf_free(rows);
    conf_free(source);
}

/* All texts in steps of `chunk` rows each; the last sequences join later. */
static result run_in_chunks(net *n, mf_device *device, int32_t chunk, bool mix)
{
    result r = new_result(n, device);
    int32_t from[MAX_SEQUENCES] = { 0 }, to[MAX_SEQUENCES];
    for (int32_t step = 0, left = 1; left > 0; step++) {
        left = 0;
        int32_t any = 0;
        for (int32_t s = 0; s < n->num_sequences; s++) {
            to[s] = step < s ? 0 : from[s] + chunk < n->length[s] ? from[s] + chunk : n->length[s];
            left += n->length[s] - to[s];
            any += to[s] - from[s];
        }
        if (any > 0) {
            run_batch(n, device, from, to, mix, &r);
        }
        memcpy(from, to, sizeof from);
    }
    return r;
}

static result run_whole(net *n, mf_device *device)
{
    result r = new_result(n, device);
    int32_t from[MAX_SEQUENCES] = { 0 };
    run_batch(n, device, from, n->length, false, &r);
    return r;
}

static void check_same(const net *n, const conf_device *d, const char *how, const result *a, const result *b)
{
    if (conf_difference(a->out, b->out, MF_F32, n->rows * n->out_width) != -1) {
        fail_msg("%s, %s: outputs differ at %lld", d->label, how,
                 (long long)conf_difference(a->out, b->out, MF_F32, n->rows * n->out_width));
    }
    for (int32_t s = 0; s < n->num_sequences; s++) {
        const float *x = a->states + s * n->slot_floats, *y = b->states + s * n->slot_floats;
        if (conf_difference(x, y, MF_F32, n->state_floats) != -1) {
            fail_msg("%s, %s: states %d differ", d->label, how, s);
        }
    }
}

/* ---- the definition in double precision ---- */

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* A channel before the convolution; 0 before the text begins. */
static double raw(const net *n, int32_t s, int64_t t, int64_t key_head, int64_t at)
{
    const int64_t section = n->width / n->s.k_heads;
    return t < 0 ? 0.0 : (double)n->qkvz[(n->first[s] + t) * n->width + key_head * section + at];
}

static double convolved(const net *n, int32_t s, int64_t t, int64_t key_head, int64_t at, int64_t channel)
{
    double sum = 0.0;
    for (int64_t j = 0; j < n->s.taps; j++) {
        sum += (double)n->conv[channel * n->s.taps + j] * raw(n, s, t - (n->s.taps - 1) + j, key_head, at);
    }
    return sum * sigmoid(sum);
}

static void unit(double *x, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    for (int64_t i = 0; i < n; i++) {
        x[i] /= sqrt(sum + 1e-6);
    }
}

/* One value head over one text: out [length, v_dim] and the final S. */
static void head_oracle(const net *n, int32_t s, int64_t head, double *out, double *state)
{
    const int64_t k_dim = n->s.k_dim, v_dim = n->s.v_dim, ratio = n->s.v_heads / n->s.k_heads, key_head = head / ratio;
    double *q = calloc((size_t)(2 * k_dim + v_dim), sizeof *q), *k = q + k_dim, *v = k + k_dim;
    memset(state, 0, (size_t)(k_dim * v_dim) * sizeof *state);
    for (int64_t t = 0; t < n->length[s]; t++) {
        for (int64_t i = 0; i < k_dim; i++) {
            q[i] = convolved(n, s, t, key_head, i, key_head * k_dim + i);
            k[i] = convolved(n, s, t, key_head, k_dim + i, (n->s.k_heads + key_head) * k_dim + i);
        }
        for (int64_t j = 0; j < v_dim; j++) {
            v[j] = convolved(n, s, t, key_head, 2 * k_dim + head % ratio * v_dim + j,
                             2 * n->s.k_heads * k_dim + head * v_dim + j);
        }
        unit(q, k_dim);
        unit(k, k_dim);
        const float *ba = n->ba + (n->first[s] + t) * 2 * n->s.v_heads + key_head * 2 * ratio;
        const double beta = sigmoid((double)ba[head % ratio]);
        const double x = (double)ba[ratio + head % ratio] + (double)n->dt_bias[head];
        const double decay = exp(-exp((double)n->a_log[head]) * log1p(exp(x)));
        double square = 0.0;
        for (int64_t j = 0; j < v_dim; j++) {
            double seen = 0.0, o = 0.0;
            for (int64_t i = 0; i < k_dim; i++) {
                state[i * v_dim + j] *= decay;
                seen += k[i] * state[i * v_dim + j];
            }
            for (int64_t i = 0; i < k_dim; i++) {
                state[i * v_dim + j] += k[i] * beta * (v[j] - seen);
                o += q[i] * state[i * v_dim + j];
            }
            out[t * v_dim + j] = o / sqrt((double)k_dim);
            square += out[t * v_dim + j] * out[t * v_dim + j];
        }
        for (int64_t j = 0; j < v_dim; j++) {
            const double z = raw(n, s, t, key_head, 2 * k_dim + (ratio + head % ratio) * v_dim + j);
            out[t * v_dim + j] *= (double)n->norm[j] / sqrt(square / (double)v_dim + 1e-6) * z * sigmoid(z);
        }
    }
    free(q);
}

/* Relative roundings of 2^-24 / sqrt 3 rms: some twenty on the way to q, k and v and through both sums, and what S has
 * gathered: an update shrinks S along k and never stretches it (|k| = 1, beta < 1), so errors of earlier tokens add at
 * most as independent ones do, three per token that still counts, and the longest text here has 300.  (20 + 3 * 300)
 * * 1.2e-15 = 1.1e-12 of S; the last norm divides by |o|, which lies a few times below |q| |S| / sqrt(k_dim), so 10
 * times that for what comes out.  A wrong tap, head or factor is off by 1e-2 and more. */
#define STATE_BOUND 1.1e-12
#define OUT_BOUND 1.1e-11

static void compare(net *n, const conf_device *d, const result *r)
{
    case_error out_error = { 0 }, state_error = { 0 };
    const int64_t matrix = n->s.k_dim * n->s.v_dim;
    double *state = calloc((size_t)matrix, sizeof *state), *out = calloc((size_t)(n->rows * n->s.v_dim), sizeof *out);
    for (int32_t s = 0; s < n->num_sequences; s++) {
        for (int64_t head = 0; head < n->s.v_heads; head++) {
            head_oracle(n, s, head, out, state);
            for (int64_t i = 0; i < n->length[s] * n->s.v_dim; i++) {
                const int64_t row = n->first[s] + i / n->s.v_dim;
                case_error_add(&out_error, (double)r->out[row * n->out_width + head * n->s.v_dim + i % n->s.v_dim],
                               out[i]);
            }
            for (int64_t i = 0; i < matrix; i++) {
                case_error_add(&state_error, (double)r->states[s * n->slot_floats + head * matrix + i], state[i]);
            }
        }
    }
    if (getenv("MOEFUSE_TEST_VERBOSE")) {
        print_message("%s: heads %d, %d of [%d, %d]: NMSE out %.3g, state %.3g\n", d->label, (int)n->s.k_heads,
                      (int)n->s.v_heads, (int)n->s.k_dim, (int)n->s.v_dim, case_nmse(&out_error),
                      case_nmse(&state_error));
    }
    if (!(case_nmse(&out_error) <= OUT_BOUND && case_nmse(&state_error) <= STATE_BOUND)) {
        fail_msg("%s: heads of [%d, %d]: NMSE out %g, state %g", d->label, (int)n->s.k_dim, (int)n->s.v_dim,
                 case_nmse(&out_error), case_nmse(&state_error));
    }
    free(state);
    free(out);
}

/* ---- claims ---- */

static const int32_t lengths[] = { 1, 9, 34, 3 };

TEST(delta_net_is_within_rounding_of_its_definition)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        net n;
        make(&n, shapes[i], 10 + (uint64_t)i, 4, lengths, -1.5);
        for (int d = 0; d < count; d++) {
            result r = run_whole(&n, devices[d].device);
            compare(&n, &devices[d], &r);
            free_result(&r);
        }
        discard(&n);
    }
}

TEST(delta_net_remembers_hundreds_of_tokens_without_drift)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    net n;
    make(&n, (shape){ 1, 2, 32, 40, 4 }, 20, 1, (const int32_t[]){ 300 }, -7.0);
    for (int d = 0; d < count; d++) {
        result r = run_whole(&n, devices[d].device);
        compare(&n, &devices[d], &r);
        free_result(&r);
    }
    discard(&n);
}

TEST(delta_net_bits_do_not_depend_on_how_texts_are_cut_and_mixed)
{
    static const int32_t chunks[] = { 1, 2, 3, 5, 16 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        net n;
        make(&n, shapes[i], 30 + (uint64_t)i, 4, lengths, -1.5);
        n.qkvz[n.first[2] * n.width] = -0.0f; /* a zero of either sign before the text counts for nothing */
        for (int d = 0; d < count; d++) {
            result whole = run_whole(&n, devices[d].device);
            for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
                result parts = run_in_chunks(&n, devices[d].device, chunks[c], c % 2);
                check_same(&n, &devices[d], "in chunks", &whole, &parts);
                free_result(&parts);
            }
            free_result(&whole);
        }
        discard(&n);
    }
}

TEST(delta_net_bits_do_not_depend_on_other_sequences_or_threads)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < NUM_SHAPES; i++) {
        net all, alone;
        make(&all, shapes[i], 40 + (uint64_t)i, 4, lengths, -1.5);
        alone = all;
        alone.num_sequences = 1;
        alone.first[0] = 0;
        alone.length[0] = alone.rows = lengths[2];
        alone.qkvz += all.first[2] * all.width;
        alone.ba += all.first[2] * 2 * all.s.v_heads;
        for (int d = 0; d < count; d++) {
            result among = run_whole(&all, devices[d].device), one = run_whole(&alone, devices[d].device);
            const float *rows = among.out + all.first[2] * all.out_width;
            CHECK_EQ(conf_difference(rows, one.out, MF_F32, alone.rows * all.out_width), -1);
            CHECK_EQ(conf_difference(among.states + 2 * all.slot_floats, one.states, MF_F32, all.state_floats), -1);
            const char *isa = devices[d].label, *comma = strchr(isa, ',');
            if (comma && d + 1 < count && strncmp(isa, devices[d + 1].label, (size_t)(comma - isa)) == 0) {
                result threads = run_whole(&all, devices[d + 1].device);
                check_same(&all, &devices[d], "with more threads", &among, &threads);
                free_result(&threads);
            }
            free_result(&among);
            free_result(&one);
        }
        discard(&all);
    }
}

TEST(delta_net_nan_in_one_sequence_stays_there)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    net n;
    make(&n, shapes[0], 50, 4, lengths, -1.5);
    for (int d = 0; d < count; d++) {
        result clean = run_in_chunks(&n, devices[d].device, 4, true);
        float *poisoned = n.qkvz + (n.first[1] + 2) * n.width + n.s.k_dim, saved = *poisoned; /* a key's: S keeps it */
        *poisoned = NAN;
        result r = run_in_chunks(&n, devices[d].device, 4, true);
        *poisoned = saved;
        for (int32_t s = 0; s < n.num_sequences; s++) {
            const float *a = clean.out + n.first[s] * n.out_width, *b = r.out + n.first[s] * n.out_width;
            const bool same = conf_difference(a, b, MF_F32, n.length[s] * n.out_width) == -1;
            CHECK_EQ(same, s != 1);
        }
        CHECK_EQ(conf_difference(clean.out + n.first[1] * n.out_width, r.out + n.first[1] * n.out_width, MF_F32,
                                 2 * n.out_width),
                 -1); /* and not before it */
        CHECK(isnan(r.out[(n.first[1] + 8) * n.out_width]));
        free_result(&clean);
        free_result(&r);
    }
    discard(&n);
}

/* new_result poisons the slots, so the tests above show that a new sequence reads nothing of its slot. */
TEST(delta_net_writes_no_state_but_those_of_its_runs)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    net n;
    make(&n, shapes[1], 60, 4, lengths, -1.5);
    for (int d = 0; d < count; d++) {
        result r = new_result(&n, devices[d].device);
        const int32_t from[] = { 0, 0, 0, 0 }, to[] = { 0, 5, 0, 3 };
        run_batch(&n, devices[d].device, from, to, true, &r);
        const uint8_t *bytes = (const uint8_t *)r.states;
        for (int32_t s = 0; s < 4; s++) {
            const int64_t first = s % 2 ? n.slot_floats - SLACK : 0; /* behind a run's own state, nothing either */
            for (int64_t i = (s * n.slot_floats + first) * 4; i < (s + 1) * n.slot_floats * 4; i++) {
                CHECK_EQ(bytes[i], CONF_POISON);
            }
        }
        free_result(&r);
    }
    discard(&n);
}

TEST(delta_net_takes_an_empty_batch)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    net n;
    make(&n, shapes[0], 70, 2, lengths, -1.5);
    for (int d = 0; d < count; d++) {
        result r = new_result(&n, devices[d].device);
        const int32_t none[] = { 0, 0 };
        run_batch(&n, devices[d].device, none, none, false, &r);
        CHECK_EQ(((uint8_t *)r.states)[0], CONF_POISON);
        free_result(&r);
    }
    discard(&n);
}

TEST(sigmoid_gate_is_within_rounding_and_keeps_to_its_columns)
{
    static const int64_t widths[] = { 1, 7, 8, 16, 37, 256 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
        const int64_t n = widths[w], rows = 700, x_stride = n + 1,
                      gate_stride = 2 * n + 3; /* enough for several tasks */
        uint64_t seed = 80 + w;
        float *x = normals(&seed, rows * x_stride, 1.0, 0.0), *gate = normals(&seed, rows * gate_stride, 4.0, 0.0);
        gate[0] = 200.0f;
        gate[gate_stride] = -200.0f;
        for (int d = 0; d < count; d++) {
            float *y = conf_alloc((size_t)(rows * x_stride) * 4);
            memcpy(y, x, (size_t)(rows * x_stride) * 4);
            devices[d].device->ops->sigmoid_gate(devices[d].device, y, x_stride, gate, gate_stride, rows, n);
            for (int64_t r = 0; r < rows; r++) {
                for (int64_t i = 0; i < n; i++) {
                    const double expected = (double)x[r * x_stride + i] * sigmoid((double)gate[r * gate_stride + i]);
                    CHECK(fabs((double)y[r * x_stride + i] - expected) <= 1e-6 * fabs(expected) + 1e-37);
                }
                CHECK(y[r * x_stride + n] == x[r * x_stride + n]);
            }
            conf_free(y);
        }
        conf_free(x);
        conf_free(gate);
    }
}
