/* flags.h - one table of flags per verb: parsing, environment, help, and the nearest name for a mistyped one.
 *
 * Order: flag > environment MOEFUSE_<FLAG_IN_CAPITALS> > default.  `--flag value` and `--flag=value`; flags stand before or
 * after positional arguments; `--` ends them. */
#ifndef MF_CLI_FLAGS_H
#define MF_CLI_FLAGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

typedef enum mf_flag_type {
    MF_FLAG_BOOL,  /* bool *; takes no value; the environment's 1/true/yes/on or 0/false/no/off */
    MF_FLAG_INT,   /* int64_t *; min..max */
    MF_FLAG_REAL,  /* double *; min..max */
    MF_FLAG_TEXT,  /* const char ** */
    MF_FLAG_LIST   /* mf_flag_list *: may be given several times */
} mf_flag_type;

enum { MF_FLAG_LIST_MAX = 16 };

typedef struct mf_flag_list {
    const char *items[MF_FLAG_LIST_MAX];
    int32_t count;
} mf_flag_list;

typedef struct mf_flag {
    const char *group;    /* heading in --help */
    const char *name;     /* "--threads" */
    const char *alias;    /* "-t" or NULL */
    mf_flag_type type;
    void *value;          /* holds the default before parsing */
    bool *given;          /* optional: set when flag or environment gave it */
    double min, max;
    const char *choices;  /* TEXT: "auto|dummy" or NULL; "cuda:N": any number there */
    const char *argument; /* "N", "TEXT" for --help */
    const char *help;     /* default included */
} mf_flag;

/* Parses argv[0..argc) into the table; positionals (at most max_positionals) in order.  MF_ERR_INVALID names the flag. */
mf_status mf_flags_parse(const mf_flag *flags, size_t num_flags, int argc, char **argv, const char **positionals,
                         int32_t max_positionals, int32_t *num_positionals, mf_error *err);

/* Who wants to see every table instead of having arguments parsed: while mf_flags_listing is set, mf_flags_parse shows it its
 * table and returns MF_ERR_CANCELLED.  So each verb's flags can be listed from where they stand (completion.c). */
typedef struct mf_flags_listener {
    void (*table)(struct mf_flags_listener *listener, const mf_flag *flags, size_t num_flags);
    const char *command; /* "run", "bench latency": whose table comes next */
} mf_flags_listener;

extern mf_flags_listener *mf_flags_listing;

/* Whether a choice of so many bytes stands for any number behind a name: "cuda:N". */
bool mf_choice_is_open(const char *choice, size_t len);

void mf_flags_help(const mf_flag *flags, size_t num_flags, FILE *out);

/* The candidate nearest to `name` by edit distance, or NULL when none is near. */
const char *mf_nearest_name(const char *name, const char *const *candidates, size_t count);

#endif
