/* shipped_model_test.c - the shipped model end to end: its text equals transformers', fusion changes no bit, FP8 is as good. */
#include "test.h"

#include <jansson.h>
#include <stdlib.h>

#include "answers.h"

#define MODEL MF_SOURCE_DIR "/models/word-problems"
#define QUESTIONS MODEL "/eval/word_problems.jsonl"
#define GOLDENS MF_SOURCE_DIR "/tests/model/goldens/word_problems.jsonl"

/* Sanitizers are here for the memory, not for the statistics, and take ten times as long. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { NUM_GOLDENS = 8, NUM_FUSED = 6, MIN_FUSED_TOKENS = 200, NUM_COMPANY = 6, NUM_ACCURACY = 20 };
#else
enum { NUM_GOLDENS = 50, NUM_FUSED = 60, MIN_FUSED_TOKENS = 2000, NUM_COMPANY = 24, NUM_ACCURACY = 200 };
#endif

static void make(answer_options options, answers *out)
{
    mf_error err = { 0 };
    options.questions = options.questions ? options.questions : QUESTIONS;
    options.max_tokens = 256;
    CHECK_OK(answers_make(&options, out, &err), err);
}

static void check_equal_bits(const answers *a, const answers *b)
{
    CHECK_EQ(a->count, b->count);
    for (int32_t i = 0; i < a->count; i++) {
        CHECK_EQ(a->items[i].num_ids, b->items[i].num_ids);
        CHECK_MEM(a->items[i].ids, b->items[i].ids, (size_t)a->items[i].num_ids * sizeof(int32_t));
        CHECK_MEM(a->items[i].logprobs, b->items[i].logprobs, (size_t)a->items[i].num_ids * sizeof(float));
    }
}

/* transformers ran in float32; ours differs in summation order only, far below the gap between the two best tokens. */
TEST(greedy_text_equals_transformers_on_50_held_out_problems)
{
    answers got;
    make((answer_options){ .model_dir = MODEL, .limit = NUM_GOLDENS }, &got);
    FILE *f = fopen(GOLDENS, "r");
    CHECK(f != NULL);
    char *line = NULL;
    size_t capacity = 0;
    int32_t compared = 0;
    for (; compared < NUM_GOLDENS && getline(&line, &capacity, f) > 0; compared++) {
        json_t *golden = json_loads(line, 0, NULL);
        CHECK(golden != NULL && compared < got.count);
        const answer *a = &got.items[compared];
        const json_t *ids = json_object_get(golden, "ids");
        CHECK_STR(a->question, json_string_value(json_object_get(golden, "question")));
        CHECK_STR(a->text, json_string_value(json_object_get(golden, "text")));
        CHECK_EQ(a->num_ids, json_array_size(ids));
        for (int32_t i = 0; i < a->num_ids; i++) {
            CHECK_EQ(a->ids[i], json_integer_value(json_array_get(ids, (size_t)i)));
        }
        json_decref(golden);
    }
    free(line);
    fclose(f);
    CHECK_EQ(compared, NUM_GOLDENS);
    answers_free(&got);
}

TEST(fused_and_unfused_log_probabilities_are_equal_bits_over_2000_tokens)
{
    answers fused, separate, unfused_gate, replicas;
    make((answer_options){ .model_dir = MODEL, .limit = NUM_FUSED }, &fused);
    CHECK(fused.num_tokens >= MIN_FUSED_TOKENS);
    make((answer_options){ .model_dir = MODEL, .limit = NUM_FUSED, .disable_fusion = true }, &separate);
    check_equal_bits(&fused, &separate);
    make((answer_options){ .model_dir = MODEL, .limit = NUM_FUSED, .disable_fusion = true, .disable_fused_gate = true }, &unfused_gate);
    check_equal_bits(&fused, &unfused_gate);
    make((answer_options){ .model_dir = MODEL, .limit = NUM_FUSED, .replicas = 3 }, &replicas);
    check_equal_bits(&fused, &replicas);
    answers_free(&fused);
    answers_free(&separate);
    answers_free(&unfused_gate);
    answers_free(&replicas);
}

TEST(answers_do_not_depend_on_neighbours_or_threads)
{
    answers many, alone;
    make((answer_options){ .model_dir = MODEL, .limit = NUM_COMPANY, .threads = 2 }, &many);
    make((answer_options){ .model_dir = MODEL, .limit = NUM_COMPANY, .threads = 1, .max_num_seqs = 1 }, &alone);
    check_equal_bits(&many, &alone);
    answers_free(&many);
    answers_free(&alone);
}

TEST(accuracy_holds_in_bf16_and_fp8)
{
    answers bf16, fp8;
    make((answer_options){ .model_dir = MODEL, .limit = NUM_ACCURACY }, &bf16);
    make((answer_options){ .model_dir = MODEL "/fp8", .limit = NUM_ACCURACY }, &fp8);
    /* 97 % is the promise over all 1,000 (`make accuracy`); FP8 stays within half a point: one of 200. */
    CHECK(bf16.num_correct * 100 >= NUM_ACCURACY * 97);
    CHECK(abs(bf16.num_correct - fp8.num_correct) <= 1);
    answers_free(&bf16);
    answers_free(&fp8);
}
