/* accuracy_main.c - `make accuracy`: greedy accuracy on held-out problems, in float32 and as the program chooses by
 * default, fusion on and off with the texts compared.
 *
 *     word_problems_accuracy MODEL QUESTIONS [LIMIT] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answers.h"

/* The Wilson interval at 95 %. */
static void print_line(const char *name, const answers *a)
{
    double n = a->count, p = a->num_correct / n, z = 1.959964;
    double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
    double half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n);
    printf("%-26s n %d  acc %.4f  95 %% interval %.4f..%.4f  %lld tokens  %.0f tok/s  %.1f s\n", name, a->count, p,
           centre - half, centre + half > 1 ? 1 : centre + half, (long long)a->num_tokens, (double)a->num_tokens / a->seconds,
           a->seconds);
    fflush(stdout);
}

/* Fused and separate; true when no id and no bit of a log-probability differs. */
static mf_status run_pair(answer_options *options, const char *dtype, bool *is_same, mf_error *err)
{
    char name[64];
    answers fused, separate;
    options->disable_fusion = options->disable_fused_gate = false;
    mf_status status = answers_make(options, &fused, err);
    if (status != MF_OK) {
        return status;
    }
    snprintf(name, sizeof name, "%s, fused", dtype);
    print_line(name, &fused);
    options->disable_fusion = options->disable_fused_gate = true;
    status = answers_make(options, &separate, err);
    if (status != MF_OK) {
        answers_free(&fused);
        return status;
    }
    snprintf(name, sizeof name, "%s, not fused", dtype);
    print_line(name, &separate);
    int32_t differing = 0;
    for (int32_t i = 0; i < fused.count; i++) {
        const answer *a = &fused.items[i], *b = &separate.items[i];
        differing += a->num_ids != b->num_ids || memcmp(a->ids, b->ids, (size_t)a->num_ids * sizeof *a->ids) != 0 ||
                     memcmp(a->logprobs, b->logprobs, (size_t)a->num_ids * sizeof *a->logprobs) != 0;
        if (!a->correct) {
            printf("wrong: %s\n  expected %s\n  got %s\n", a->question, a->expected, a->text);
        }
    }
    printf("answers whose ids or log-probability bits differ between the two: %d of %d\n", differing, fused.count);
    *is_same = differing == 0;
    answers_free(&fused);
    answers_free(&separate);
    return MF_OK;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL QUESTIONS.jsonl [LIMIT]\n", argv[0]);
        return 2;
    }
    answer_options options = { .model_dir = argv[1], .questions = argv[2], .max_tokens = 256 };
    options.limit = argc > 3 ? atoi(argv[3]) : 0;
    mf_error err = { 0 };
    bool same[2] = { false, false };
    for (int i = 0; i < 2; i++) {
        options.auto_dtype = i == 1;
        if (run_pair(&options, i ? "--dtype auto" : "float32", &same[i], &err) != MF_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
    }
    return same[0] && same[1] ? 0 : 3;
}
