/* rope_test.c - rotary tables against those of transformers (goldens/rope.bin, made by tools/make_tiny_model.py). */
#include <math.h>

#include "base/file.h"
#include "base/sys.h"
#include "model/rope.h"
#include "test.h"

/* Reads n items and moves on. */
static void take(const uint8_t **at, void *out, size_t bytes)
{
    memcpy(out, *at, bytes);
    *at += bytes;
}

/* inv_freq: transformers' powers are good to about one ulp (vectorised pow), then come up to six roundings.
 * Angles: the frequency's error times the position, and cosines of one ulp. */
TEST(rope_tables_agree_with_transformers)
{
    enum { MAX_DIM = 128, MAX_POSITIONS = 32 };
    mf_error err;
    mf_file file;
    CHECK_OK(mf_file_open(MF_SOURCE_DIR "/tests/model/goldens/rope.bin", true, 0, &file, &err), err);
    const uint8_t *at = file.data + 4;
    CHECK_MEM(file.data, "MFRP", 4);
    int32_t header[2];
    take(&at, header, sizeof header);
    CHECK_EQ(header[0], 1);
    CHECK(header[1] >= 9);
    for (int32_t c = 0; c < header[1]; c++) {
        int32_t ints[5], positions[MAX_POSITIONS];
        double d[8];
        float inv_freq[MAX_DIM / 2], expected[MAX_DIM / 2], row[MAX_DIM];
        take(&at, ints, sizeof ints);
        take(&at, d, sizeof d);
        mf_rope_config rope = { .type = (const mf_rope_type[]){ MF_ROPE_DEFAULT, MF_ROPE_YARN, MF_ROPE_LINEAR, MF_ROPE_LLAMA3 }[ints[0]],
                                .theta = d[0],
                                .dim = ints[1],
                                .factor = d[1],
                                .original_max_position_embeddings = ints[2],
                                .beta_fast = d[2],
                                .beta_slow = d[3],
                                .high_freq_factor = d[2], /* llama3's in the places of yarn's */
                                .low_freq_factor = d[3],
                                .mscale = d[4],
                                .mscale_all_dim = d[5],
                                .attention_factor = d[6],
                                .truncate = ints[3] };
        int32_t half = ints[1] / 2, num_positions = ints[4];
        CHECK(ints[1] <= MAX_DIM && num_positions <= MAX_POSITIONS);
        CHECK(fabs(mf_rope_attention_factor(&rope) - d[7]) < 1e-14);
        take(&at, expected, (size_t)half * sizeof(float));
        mf_rope_inv_freq(&rope, inv_freq);
        double worst = 0.0;
        for (int32_t i = 0; i < half; i++) {
            worst = fmax(worst, fabs((double)inv_freq[i] / (double)expected[i] - 1.0));
        }
        if (worst > 3 * 0x1p-23) {
            fail_msg("case %d: inv_freq off by %g", (int)c, worst);
        }
        take(&at, positions, (size_t)num_positions * sizeof(int32_t));
        float *table = NULL;
        CHECK_OK(mf_rope_table_make(&rope, positions[num_positions - 1] + 1, &table, &err), err);
        for (int32_t p = 0; p < num_positions; p++) {
            take(&at, row, (size_t)ints[1] * sizeof(float));
            for (int32_t i = 0; i < ints[1]; i++) {
                double angle = (double)positions[p] * (double)expected[i / 2];
                double bound = d[7] * (0x1p-22 + angle * worst + (worst > 0.0 ? angle * 0x1p-23 : 0.0));
                double difference = fabs((double)table[(int64_t)positions[p] * ints[1] + i] - (double)row[i]);
                if (difference > bound) {
                    fail_msg("case %d, position %d, element %d: off by %g, bound %g", (int)c, (int)positions[p], (int)i,
                             difference, bound);
                }
            }
        }
        mf_free_aligned(table);
    }
    CHECK_EQ(at - file.data, file.size);
    mf_file_close(&file);
}

/* yarn by hand, dim 4, theta 10000, factor 4, original 64, no truncation: the turns within 64 positions are 64/(2 pi) = 10.19
 * for pair 0 and 0.102 for pair 1.  low = 4 ln(64 / (32 * 2 pi)) / (2 ln 10000) < 0 -> 0; high = 4 ln(64 / (2 pi)) / (2 ln
 * 10000) = 0.504.  ramp = 0 and (1 - 0) / 0.504 -> 1: pair 0 keeps its frequency 1, pair 1 is stretched: 0.01 / 4. */
TEST(yarn_keeps_fast_waves_and_stretches_slow_ones)
{
    mf_rope_config rope = { .type = MF_ROPE_YARN, .theta = 10000.0, .dim = 4, .factor = 4.0, .beta_fast = 32.0, .beta_slow = 1.0,
                            .original_max_position_embeddings = 64 };
    float inv_freq[2];
    mf_rope_inv_freq(&rope, inv_freq);
    CHECK(inv_freq[0] == 1.0f);
    CHECK(inv_freq[1] == 0.0025f);
    CHECK(fabs(mf_rope_attention_factor(&rope) - (1.0 + 0.1 * log(4.0))) < 1e-15);
}

TEST(an_odd_rope_dimension_or_an_endless_table_is_refused)
{
    mf_error err;
    float *table = NULL;
    mf_rope_config rope = { .type = MF_ROPE_DEFAULT, .theta = 10000.0, .dim = 7, .factor = 1.0 };
    CHECK_EQ(mf_rope_table_make(&rope, 4, &table, &err), MF_ERR_INVALID);
    rope.dim = 64;
    CHECK_EQ(mf_rope_table_make(&rope, INT64_MAX / 8, &table, &err), MF_ERR_INVALID);
    CHECK(table == NULL);
}

/* log1p(floor((p + 1) / 9)) * 0.4 + 1: 1 up to position 7, then 1 + 0.4 ln 2, from 17 on 1 + 0.4 ln 3. */
TEST(queries_without_rope_are_scaled_by_steps_of_their_position)
{
    mf_error err;
    float *scales;
    CHECK_OK(mf_rope_query_scales_make(9, 0.4, 20, &scales, &err), err);
    CHECK(scales[0] == 1.0f && scales[7] == 1.0f);
    CHECK(fabs((double)scales[8] - 1.2772588722) < 1e-6 && scales[16] == scales[8]);
    CHECK(fabs((double)scales[17] - 1.4394449155) < 1e-6);
    mf_free_aligned(scales);
}
