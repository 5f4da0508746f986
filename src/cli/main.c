/* main.c - finds the verb and runs it. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cli.h"

const mf_verb mf_verbs[] = {
    { "run", "load a model and generate text: one prompt, a pipe, or a chat on a terminal", mf_verb_run },
    { "serve", "answer the OpenAI API over HTTP, with a chat page at /", mf_verb_serve },
    { "info", "what a model is and what will be fused: reads headers only", mf_verb_info },
    { "check", "validate every file of a model as untrusted input", mf_verb_check },
    { "quantize", "write a model again as fp8, int8 or int4, with the error of each layer", mf_verb_quantize },
    { "bench", "measure kernels, latency, throughput or a server; compare and draw results", mf_verb_bench },
    { "eval", "accuracy on a file of questions, fused and not", mf_verb_eval },
    { "doctor", "what this machine offers, what of it is used, and how fast it is", mf_verb_doctor },
};
const size_t mf_num_verbs = sizeof mf_verbs / sizeof *mf_verbs;

static void print_help(FILE *out)
{
    fprintf(out, "moefuse %s - serves mixture-of-experts language models with the whole MoE layer fused\n\n"
                 "usage: moefuse VERB [MODEL] [flags]\n\n"
                 "MODEL is a directory in Hugging Face layout; left out, the small model shipped with the program is used.\n\n"
                 "verbs:\n",
            MF_VERSION_STRING);
    for (size_t i = 0; i < mf_num_verbs; i++) {
        fprintf(out, "  %-8s  %s\n", mf_verbs[i].name, mf_verbs[i].summary);
    }
    fprintf(out, "\n`moefuse VERB --help` lists a verb's flags.  Each flag has an environment variable:\n"
                 "--max-model-len is MOEFUSE_MAX_MODEL_LEN.  --version prints the version.\n\n"
                 "exit codes: 0 success, 1 failed, 2 usage, 3 a comparison failed, 4 model refused, 5 memory or device not available,\n"
                 "            6 cannot bind, 66 weights unreadable after load, 130 interrupted\n");
}

int mf_usage_error(const mf_error *err)
{
    if (!mf_flags_listing) {
        mf_console_error(err);
    }
    return MF_EXIT_USAGE;
}

const char *mf_default_model_dir(void)
{
    static char found[PATH_MAX];
    static const char *const places[] = { "../share/moefuse/models/word-problems", "../../../models/word-problems" };
    char program[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) {
        return NULL;
    }
    program[n] = '\0';
    char *slash = strrchr(program, '/');
    if (!slash) {
        return NULL;
    }
    *slash = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char candidate[2 * PATH_MAX];
        snprintf(candidate, sizeof candidate, "%s/%s", program, places[i]);
        if (realpath(candidate, found) && mf_path_is_dir(found)) {
            return found;
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(argc < 2 ? stderr : stdout);
        return argc < 2 ? MF_EXIT_USAGE : MF_EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("moefuse %s\n", mf_version());
        return MF_EXIT_OK;
    }
    if (strcmp(argv[1], "--completion") == 0) {
        return mf_completion_print(argc > 2 ? argv[2] : "");
    }
    const char *names[32];
    for (size_t i = 0; i < mf_num_verbs; i++) {
        if (strcmp(argv[1], mf_verbs[i].name) == 0) {
            return mf_verbs[i].main(argc - 2, argv + 2);
        }
        names[i] = mf_verbs[i].name;
    }
    mf_error err = { 0 };
    const char *near = mf_nearest_name(argv[1], names, mf_num_verbs);
    if (near) {
        mf_fail(&err, MF_ERR_INVALID, "unknown verb \"%.64s\"; did you mean \"%s\"?", argv[1], near);
    } else {
        mf_fail(&err, MF_ERR_INVALID, "unknown verb \"%.64s\"; known: run, serve, info, check, bench, eval, doctor (moefuse --help)",
                argv[1]);
    }
    return mf_usage_error(&err);
}
