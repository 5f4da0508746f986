/* accuracy_main.c - `make accuracy`: greedy accuracy on held-out problems, fusion on and off, with the texts compared.
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
    printf("%-24s n %d  acc %.4f  95 %% interval %.4f..%.4f  %lld tokens  %.0f tok/s  %.1f s\n", name, a->count, p,
           centre - half, centre + half > 1 ? 1 : centre + half, (long long)a->num_tokens, (double)a->num_tokens / a->seconds,
           a->seconds);
    fflush(stdout);
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
    answers fused, separate;
    if (answers_make(&options, &fused, &err) != MF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    print_line("fused", &fused);
    options.disable_fusion = options.disable_fused_gate = true;
    if (answers_make(&options, &separate, &err) != MF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    print_line("not fused", &separate);
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
    int failed = differing > 0;
    answers_free(&fused);
    answers_free(&separate);
    return failed ? 3 : 0;
}
