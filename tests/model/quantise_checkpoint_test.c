/* quantise_checkpoint_test.c - a checkpoint written again as fp8, int8 or int4: it loads, its bits are those of
 * quantising while loading, and whatever ends the work early leaves nothing. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoint_writer.h"
#include "kernels/format.h"
#include "model/quantise_checkpoint.h"
#include "test.h"

typedef struct loaded {
    mf_model_config *config;
    mf_weights *weights;
} loaded;

static void load(const char *dir, mf_quantization quantization, loaded *l)
{
    mf_error err = { 0 };
    const mf_weights_options options = { .use_map = true, .num_threads = 2, .quantization = quantization };
    *l = (loaded){ 0 };
    CHECK_OK(mf_model_config_load(dir, &l->config, &err), err);
    CHECK_OK(mf_weights_load(dir, l->config, &options, &l->weights, &err), err);
}

static void close_loaded(loaded *l)
{
    mf_weights_close(&l->weights);
    mf_model_config_close(&l->config);
}

enum { MAX_MATRICES = 1000 };

typedef struct collection {
    const mf_matrix *matrices[MAX_MATRICES];
    mf_role roles[MAX_MATRICES];
    int count;
} collection;

static mf_status collect(void *context, const mf_wanted *x)
{
    collection *c = context;
    if (x->kind == MF_WANT_LINEAR) {
        CHECK(c->count < MAX_MATRICES);
        c->roles[c->count] = x->role;
        c->matrices[c->count++] = x->matrix;
    }
    return MF_OK;
}

/* Codes and scales, not only values. */
static void check_same_bits(const mf_matrix *a, const mf_matrix *b)
{
    CHECK_EQ(a->format, b->format);
    CHECK_EQ(a->n, b->n);
    CHECK_EQ(a->k, b->k);
    float *x = calloc((size_t)a->k, sizeof *x), *y = calloc((size_t)a->k, sizeof *y);
    const int64_t group = mf_matrix_group(a),
                  columns = group ? (a->k + group - 1) / group : a->format >= MF_FORMAT_FP8_BLOCK;
    CHECK_EQ(group, mf_matrix_group(b));
    for (int64_t r = 0; r < a->n; r++) {
        mf_matrix_decode_codes(a, r, 0, a->k, x);
        mf_matrix_decode_codes(b, r, 0, a->k, y);
        CHECK_MEM(x, y, (size_t)a->k * sizeof *x);
        for (int64_t g = 0; g < columns; g++) {
            const float s = mf_matrix_scale_at(a, mf_matrix_scale_row(a, r) + g),
                        t = mf_matrix_scale_at(b, mf_matrix_scale_row(b, r) + g);
            CHECK_MEM(&s, &t, sizeof s);
        }
    }
    free(x);
    free(y);
}

static const struct {
    mf_format format;
    mf_quantization while_loading;
} formats[] = { { MF_FORMAT_FP8_BLOCK, MF_QUANTIZATION_FP8 },
                { MF_FORMAT_INT8_CHANNEL, MF_QUANTIZATION_INT8 },
                { MF_FORMAT_INT4_GROUP, MF_QUANTIZATION_INT4 } };

static void output_of(const cw *w, char *out, size_t size)
{
    snprintf(out, size, "%s-out", w->dir);
}

/* Nothing beside IN whose name starts like OUT's. */
static void check_nothing_left(const char *out)
{
    char partial[400];
    struct stat unused;
    snprintf(partial, sizeof partial, "%s.partial-%ld", out, (long)getpid());
    CHECK(stat(partial, &unused) != 0);
}

TEST(the_output_holds_the_bits_of_quantising_while_loading)
{
    static const struct {
        cw_kind kind;
        int shards;
    } inputs[] = { { CW_V3, 0 }, { CW_V3_STACKED, 0 }, { CW_QWEN3, 3 } };
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            cw *w = cw_new(inputs[i].kind);
            cw_shard(w, inputs[i].shards);
            cw_write(w);
            cw_write_bytes(cw_path(w, "tokenizer.json"), "{}", 2);
            cw_write_bytes(cw_path(w, "weights.bin"), "x", 1);
            char out[330], copied[360];
            output_of(w, out, sizeof out);
            mf_error err = { 0 };
            const mf_quantise_options options = { .format = formats[f].format, .group = 32, .num_threads = 2 };
            mf_quantise_report report;
            CHECK_OK(mf_checkpoint_quantise(w->dir, out, &options, &report, &err), err);
            CHECK(report.num_matrices > 0 && report.bytes_out < report.bytes_in);
            const mf_quantise_sums *sums = &report.layers[1][MF_PART_EXPERTS];
            CHECK_EQ(sums->num_matrices, 36);
            CHECK(sums->error > 0 && sums->error < 0.03 * sums->weight);
            mf_quantise_report_close(&report);
            snprintf(copied, sizeof copied, "%s/tokenizer.json", out);
            CHECK(access(copied, R_OK) == 0);
            snprintf(copied, sizeof copied, "%s/weights.bin", out);
            CHECK(access(copied, F_OK) != 0);
            check_nothing_left(out);

            loaded written, direct;
            load(out, MF_QUANTIZATION_NONE, &written);
            load(w->dir, formats[f].while_loading, &direct);
            collection a = { .count = 0 }, b = { .count = 0 };
            mf_tensor_map_walk(written.config, written.weights, collect, &a);
            mf_tensor_map_walk(direct.config, direct.weights, collect, &b);
            CHECK_EQ(a.count, b.count);
            for (int k = 0; k < a.count; k++) {
                CHECK_EQ(a.matrices[k]->format, a.roles[k] == MF_ROLE_KV_B_PROJ ? MF_FORMAT_BF16 : formats[f].format);
                check_same_bits(a.matrices[k], b.matrices[k]);
            }
            CHECK_EQ(written.weights->lm_head.format, MF_FORMAT_BF16);
            close_loaded(&written);
            close_loaded(&direct);

            CHECK_EQ(mf_checkpoint_quantise(w->dir, out, &options, &report, &err), MF_ERR_IO);
            CHECK_HAS(err.message, "-out: exists; the output must be a new folder");
            char again[340];
            snprintf(again, sizeof again, "%s-again", out);
            CHECK_EQ(mf_checkpoint_quantise(out, again, &options, &report, &err), MF_ERR_UNSUPPORTED);
            CHECK_HAS(err.message, "is quantised already");
            CHECK(access(again, F_OK) != 0);
            cw_remove_dir(out);
            cw_free(w);
        }
    }
}

TEST(groups_of_64_and_128_are_written_and_read)
{
    for (int64_t group = 64; group <= 128; group += 64) {
        cw *w = cw_new(CW_QWEN3);
        cw_write(w);
        char out[330];
        output_of(w, out, sizeof out);
        mf_error err = { 0 };
        mf_quantise_report report;
        CHECK_OK(mf_checkpoint_quantise(
                     w->dir, out,
                     &(mf_quantise_options){ .format = MF_FORMAT_INT4_GROUP, .group = group, .num_threads = 1 },
                     &report, &err),
                 err);
        CHECK(report.has_short_groups); /* rows of 16 */
        mf_quantise_report_close(&report);
        loaded l;
        load(out, MF_QUANTIZATION_NONE, &l);
        CHECK_EQ(l.weights->layers[1].experts[0].gate.format, MF_FORMAT_INT4_GROUP);
        close_loaded(&l);
        cw_remove_dir(out);
        cw_free(w);
    }
}

/* A fused projection is quantised whole; the small projection of linear layers is not; tensors named mtp are copied, and the
 * config names them among what is not quantised. */
TEST(fused_projections_linear_layers_and_draft_layers_are_written_as_they_load)
{
    static const char *const names[] = { "qwen3_next", "bailing" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char in[512], out[330];
        cw *w = cw_new(CW_QWEN3); /* for its directory's name */
        output_of(w, out, sizeof out);
        snprintf(in, sizeof in, "%s/tests/model/goldens/%s", MF_SOURCE_DIR, names[i]);
        mf_error err = { 0 };
        mf_quantise_report report;
        const mf_quantise_options options = { .format = MF_FORMAT_INT8_CHANNEL, .num_threads = 1 };
        CHECK_OK(mf_checkpoint_quantise(in, out, &options, &report, &err), err);
        mf_quantise_report_close(&report);
        loaded written, direct;
        load(out, MF_QUANTIZATION_NONE, &written);
        load(in, MF_QUANTIZATION_INT8, &direct);
        CHECK(written.weights->stats.num_skipped_tensors > 0);
        CHECK_EQ(written.weights->stats.num_skipped_tensors, direct.weights->stats.num_skipped_tensors);
        collection a = { .count = 0 }, b = { .count = 0 };
        mf_tensor_map_walk(written.config, written.weights, collect, &a);
        mf_tensor_map_walk(direct.config, direct.weights, collect, &b);
        CHECK_EQ(a.count, b.count);
        for (int k = 0; k < a.count; k++) {
            CHECK_EQ(a.matrices[k]->format, a.roles[k] == MF_ROLE_LINEAR_BA ? MF_FORMAT_BF16 : MF_FORMAT_INT8_CHANNEL);
            check_same_bits(a.matrices[k], b.matrices[k]);
        }
        close_loaded(&written);
        close_loaded(&direct);
        char path[360];
        snprintf(path, sizeof path, "%s/config.json", out);
        mf_file config;
        CHECK_OK(mf_file_open(path, false, 1 << 20, &config, &err), err);
        CHECK_EQ(memmem(config.data, config.size, "re:mtp", 6) != NULL, i == 0);
        mf_file_close(&config);
        cw_remove_dir(out);
        cw_free(w);
    }
}

static bool stop_after(void *context, const mf_progress_info *info)
{
    int *calls = context;
    CHECK_STR(info->what, "quantising");
    return --*calls > 0;
}

/* 144 rows of queries: a block of 128 rows would cross into the keys, so the projection stays and the config says so. */
TEST(a_fused_projection_that_blocks_would_cross_stays_as_it_is)
{
    char in[512], out[330];
    cw *w = cw_new(CW_QWEN3);
    output_of(w, out, sizeof out);
    snprintf(in, sizeof in, "%s/tests/model/goldens/bailing", MF_SOURCE_DIR);
    mf_error err = { 0 };
    mf_quantise_report report;
    const mf_quantise_options options = { .format = MF_FORMAT_FP8_BLOCK, .num_threads = 1 };
    CHECK_OK(mf_checkpoint_quantise(in, out, &options, &report, &err), err);
    mf_quantise_report_close(&report);
    loaded written, direct;
    load(out, MF_QUANTIZATION_NONE, &written);
    load(in, MF_QUANTIZATION_FP8, &direct);
    collection a = { .count = 0 }, b = { .count = 0 };
    mf_tensor_map_walk(written.config, written.weights, collect, &a);
    mf_tensor_map_walk(direct.config, direct.weights, collect, &b);
    CHECK_EQ(a.count, b.count);
    for (int k = 0; k < a.count; k++) {
        CHECK_EQ(a.matrices[k]->format, a.roles[k] == MF_ROLE_QKV_PROJ ? MF_FORMAT_BF16 : MF_FORMAT_FP8_BLOCK);
        check_same_bits(a.matrices[k], b.matrices[k]);
    }
    close_loaded(&written);
    close_loaded(&direct);
    cw_remove_dir(out);
    cw_free(w);
}

TEST(a_cancelled_run_leaves_no_output)
{
    cw *w = cw_new(CW_V3);
    cw_write(w);
    char out[330];
    output_of(w, out, sizeof out);
    mf_error err = { 0 };
    mf_quantise_report report;
    int calls = 1;
    const mf_quantise_options options = { .format = MF_FORMAT_INT8_CHANNEL,
                                          .num_threads = 1,
                                          .progress = { stop_after, &calls } };
    CHECK_EQ(mf_checkpoint_quantise(w->dir, out, &options, &report, &err), MF_ERR_CANCELLED);
    CHECK(!report.layers);
    CHECK(access(out, F_OK) != 0);
    check_nothing_left(out);
    cw_free(w);
}
