/* attention_bits.c - what attention promises about bits: whatever the batch, a token's result is what it is when its
 * prompt comes in one piece, and rows that it may not see do not touch it. */
#include "attention_case.h"

#include <math.h>
#include <stdlib.h>

TEST(attention_bits_do_not_depend_on_how_a_prompt_is_cut)
{
    static const int chunks[] = { 1, 5, 64, 100 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        if (!attention_is_sampled(i)) {
            continue;
        }
        attention_case a;
        attention_make(&a, attention_shape_at(i), 80 + (uint64_t)i);
        for (int d = 0; d < count; d++) {
            if (!attention_meets(devices, i, d, false)) {
                continue;
            }
            float *whole = attention_attend_whole(devices[d].device, &a);
            for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
                /* few tokens at a time only around the cuts of the context and at the end */
                for (int first = 0; first < a.s.length[0]; first += chunks[c]) {
                    int32_t sequence[100] = { 0 }, position[100];
                    const int left = a.s.length[0] - first, n = left < chunks[c] ? left : chunks[c];
                    if (chunks[c] < 64 && first > 2 && (first + chunks[c] + 1) % 64 > chunks[c] + 2 &&
                        left > chunks[c]) {
                        continue;
                    }
                    for (int t = 0; t < n; t++) {
                        position[t] = first + t;
                    }
                    attention_check_batch(&devices[d], &a, whole, n, sequence, position, "a chunk");
                }
            }
            conf_free(whole);
        }
        attention_discard(&a);
    }
}

TEST(attention_bits_do_not_depend_on_the_rest_of_the_batch)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        if (!conf_whole() && !attention_is_sampled(i)) {
            continue;
        }
        attention_case a;
        uint64_t seed = 90 + (uint64_t)i;
        attention_make(&a, attention_shape_at(i), seed);
        for (int d = 0; d < count; d++) {
            if (!attention_meets(devices, i, d, false)) {
                continue;
            }
            float *whole = attention_attend_whole(devices[d].device, &a);
            enum { MOST = 60 };
            int32_t sequence[MOST], position[MOST];
            /* the last token of each sequence: decoding */
            for (int s = 0; s < ATTENTION_SEQUENCES; s++) {
                sequence[s] = s;
                position[s] = a.s.length[s] - 1;
            }
            attention_check_batch(&devices[d], &a, whole, ATTENTION_SEQUENCES, sequence, position,
                                  "decoding three sequences");
            /* a chunk of the first, decoding the others, in an order that is not theirs */
            int n = 0;
            sequence[n] = 2;
            position[n++] = a.s.length[2] - 1;
            for (int t = a.s.length[0] - 40; t < a.s.length[0]; t++, n++) {
                sequence[n] = 0;
                position[n] = t;
            }
            sequence[n] = 1;
            position[n++] = a.s.length[1] - 1;
            attention_check_batch(&devices[d], &a, whole, n, sequence, position, "a chunk beside decoding");
            /* any tokens in any order, with repeats */
            for (n = 0; n < MOST; n++) {
                sequence[n] = (int32_t)conf_below(&seed, ATTENTION_SEQUENCES);
                position[n] = (int32_t)conf_below(&seed, a.s.length[sequence[n]]);
            }
            attention_check_batch(&devices[d], &a, whole, MOST, sequence, position, "a batch in any order");
            conf_free(whole);
        }
        attention_discard(&a);
    }
}

TEST(attention_bits_do_not_depend_on_the_number_of_threads)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        if (!attention_is_sampled(i)) {
            continue;
        }
        attention_case a;
        attention_make(&a, attention_shape_at(i), 110 + (uint64_t)i);
        for (int d = 1; d + 1 < count; d++) {
            if (!attention_meets(devices, i, d, false) && !attention_meets(devices, i, d + 1, false)) {
                continue;
            }
            const char *isa = devices[d].label, *comma = strchr(isa, ',');
            if (!comma || strncmp(isa, devices[d + 1].label, (size_t)(comma - isa)) != 0) {
                continue;
            }
            float *one = attention_attend_whole(devices[d].device, &a);
            float *three = attention_attend_whole(devices[d + 1].device, &a);
            CHECK_EQ(conf_difference(one, three, MF_F32, (int64_t)a.tokens * a.out), -1);
            conf_free(one);
            conf_free(three);
        }
        attention_discard(&a);
    }
}

/* A context whose parts do not fit the slots that threads share at once: a few tokens (their spans are tasks, in
 * several waves) and many (each token is a task). */
TEST(attention_of_a_long_context_has_the_same_bits_alone_and_in_company)
{
    static const attention_shape long_shapes[] = {
        { "64 heads of 8, a long context", false, 64, 1, 8, 8, 0, 0, 16, { 9000, 1200, 3 } },
        { "mla, a long context", true, 5, 1, 8, 4, 4, 12, 16, { 9000, 1200, 3 }, MF_FORMAT_F32 },
        { "3 heads alone, a long window, sinks",
          false,
          3,
          3,
          8,
          8,
          0,
          0,
          16,
          { 9000, 1200, 3 },
          .window = 6001,
          .has_sinks = true },
        { "8 heads on 2, long chunks", false, 8, 2, 8, 8, 0, 0, 16, { 9000, 1200, 3 }, .chunk = 5000 },
    };
    enum { TOKENS = 12 };
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < 2 * (int)(sizeof long_shapes / sizeof long_shapes[0]); i++) {
        attention_case a;
        attention_shape s = long_shapes[i / 2];
        s.cache = i % 2 ? MF_BF16 : MF_F32;
        attention_make(&a, &s, 120 + (uint64_t)i);
        for (int d = 1; d < count; d++) {
            if (!attention_meets(devices, i, d, false)) {
                continue;
            }
            int32_t sequence[TOKENS] = { 0 }, position[TOKENS];
            float *company = conf_alloc((size_t)(a.tokens * a.out) * 4);
            for (int t = 0; t < TOKENS; t++) {
                sequence[t] = t % 4 == 1;
                position[t] = sequence[t] ? 1199 - t : 8999 - t * 128;
            }
            attention_attend(devices[d].device, &a, TOKENS, sequence, position, company);
            for (int n = 1; n <= 5; n++) {
                attention_check_batch(&devices[d], &a, company, n, sequence, position, "a small batch");
            }
            conf_free(company);
        }
        attention_discard(&a);
    }
}

/* 0 * NaN is a NaN: a row that a token may not see must not even be weighed with 0. */
TEST(attention_reads_no_row_that_a_token_may_not_see)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int i = 0; i < attention_num_shapes(); i++) {
        if (!attention_is_sampled(i)) {
            continue;
        }
        attention_case a;
        attention_make(&a, attention_shape_at(i), 130 + (uint64_t)i);
        const int length = a.s.length[0];
        for (int d = 0; d < count; d++) {
            if (!attention_meets(devices, i, d, i % 2 == 0)) {
                continue;
            }
            float *whole = attention_attend_whole(devices[d].device, &a);
            /* decoding with a cache that is NaN behind the token, and before what it sees */
            for (int t = 0; t < length; t += 1 + length / 5) {
                const int32_t sequence = 0, position = t;
                for (int p = 0; p < length; p++) {
                    if (p < attention_first(&a, t) || p > t) {
                        attention_put(&a, NULL, a.row_size, attention_cached_row(&a, 0, p));
                    }
                }
                attention_check_batch(&devices[d], &a, whole, 1, &sequence, &position,
                                      "a cache of NaN around the view");
                attention_fill(&a);
            }
            /* one poisoned token within the prompt: those that do not see it keep their bits */
            const int bad = length / 2;
            attention_put(&a, NULL, a.row_size, attention_cached_row(&a, 0, bad));
            float *out = attention_attend_whole(devices[d].device, &a);
            for (int t = 0; t < length; t++) {
                const int64_t at = (int64_t)t * a.out;
                if (bad < attention_first(&a, t) || bad > t) {
                    if (conf_difference(out + at, whole + at, MF_F32, a.out) >= 0) {
                        fail_msg("%s, %s: a poisoned row %d reaches position %d", devices[d].label, a.s.name, bad, t);
                    }
                    continue;
                }
                for (int64_t j = 0; j < a.out; j++) {
                    CHECK(isnan(out[at + j]));
                }
            }
            const int64_t rest = (int64_t)a.first[1] * a.out;
            CHECK_EQ(conf_difference(out + rest, whole + rest, MF_F32, (int64_t)a.tokens * a.out - rest), -1);
            conf_free(out);
            conf_free(whole);
            attention_fill(&a);
        }
        attention_discard(&a);
    }
}

/* A window that cuts nothing off leaves the same sums, begun from nothing: the same numbers, but for the sign of a
 * zero. */
TEST(attention_with_a_window_or_chunk_past_the_context_and_sinks_of_no_weight_gives_the_same_numbers)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    for (int cache = 0; cache < 2; cache++) {
        const attention_shape s = {
            "6 heads on 2", false, 6, 2, 24, 24, 0, 0, 16, { 650, 129, 1 }, .cache = cache ? MF_BF16 : MF_F32
        };
        attention_case a;
        attention_make(&a, &s, 140);
        float none[6];
        for (int h = 0; h < s.heads; h++) {
            none[h] = -INFINITY;
        }
        for (int d = 0; d < count; d++) {
            float *plain = attention_attend_whole(devices[d].device, &a);
            for (int kind = 0; kind < 3; kind++) {
                attention_case b = a;
                b.s.window = kind == 0 ? 650 : 0;
                b.s.chunk = kind == 1 ? 1000 : 0;
                b.sinks = kind == 2 ? none : NULL;
                float *out = attention_attend_whole(devices[d].device, &b);
                for (int64_t j = 0; j < (int64_t)a.tokens * a.out; j++) {
                    CHECK(out[j] == plain[j]);
                }
                conf_free(out);
            }
            conf_free(plain);
        }
        attention_discard(&a);
    }
}

/* One row of score x and a sink of s: the value times 1 / (1 + e^(s - x)); a sink far above every score leaves nothing.
 */
TEST(attention_of_one_row_and_a_sink_weighs_the_value_by_hand)
{
    int count;
    const conf_device *devices = conf_devices(&count);
    const attention_shape s = { "3 heads on one", false, 3, 1, 8, 8, 0, 0, 16, { 1, 1, 1 } };
    attention_case a;
    attention_make(&a, &s, 141);
    float sinks[3] = { -2.0f, 3.5f, 1e30f };
    a.sinks = sinks;
    for (int d = 0; d < count; d++) {
        float *out = attention_attend_whole(devices[d].device, &a);
        for (int h = 0; h < 3; h++) {
            double x = 0;
            for (int j = 0; j < 8; j++) {
                x += (double)a.q[h * 8 + j] * (double)a.rows[j];
            }
            const double weight = 1.0 / (1.0 + exp((double)sinks[h] - x * (double)a.scale));
            for (int j = 0; j < 8; j++) {
                CHECK(fabs((double)out[h * 8 + j] - weight * (double)a.rows[8 + j]) <= 1e-6);
            }
        }
        conf_free(out);
    }
    a.sinks = NULL;
    attention_discard(&a);
}
