/* cli.h - the verbs and what they share. */
#ifndef MF_CLI_CLI_H
#define MF_CLI_CLI_H

#include "cli/console.h"
#include "cli/flags.h"
#include "cli/model_flags.h"

typedef struct mf_verb {
    const char *name;
    const char *summary;              /* one line for --help */
    int (*main)(int argc, char **argv); /* arguments after the verb; returns an exit code */
} mf_verb;

extern const mf_verb mf_verbs[];
extern const size_t mf_num_verbs;

int mf_verb_run(int argc, char **argv);
int mf_verb_info(int argc, char **argv);
int mf_verb_serve(int argc, char **argv);
int mf_verb_check(int argc, char **argv);
int mf_verb_quantize(int argc, char **argv);
int mf_verb_bench(int argc, char **argv);
int mf_verb_eval(int argc, char **argv);
int mf_verb_doctor(int argc, char **argv);

/* Prints "moefuse: error: ..." for a usage mistake and returns MF_EXIT_USAGE. */
int mf_usage_error(const mf_error *err);

/* `moefuse --completion bash`: the completion script; `moefuse --completion man`: the manual's OPTIONS section.  Both are made
 * from the verbs' own tables. */
int mf_completion_print(const char *what);

/* The shipped model's folder, found beside the program or in the source tree; NULL when it is not there.  Static memory. */
const char *mf_default_model_dir(void);

#endif
