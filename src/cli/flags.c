/* flags.c - the flag table's parser: see flags.h. */
#include "cli/flags.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 64 };

mf_flags_listener *mf_flags_listing;

static size_t edit_distance(const char *a, const char *b)
{
    size_t row[MAX_NAME + 1];
    size_t na = strlen(a), nb = strlen(b);
    if (na > MAX_NAME || nb > MAX_NAME) {
        return MAX_NAME;
    }
    for (size_t j = 0; j <= nb; j++) {
        row[j] = j;
    }
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = row[j] + 1 < best ? row[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            row[j] = best;
        }
    }
    return row[nb];
}

const char *mf_nearest_name(const char *name, const char *const *candidates, size_t count)
{
    const char *best = NULL;
    size_t best_distance = strlen(name) / 2 + 1;
    for (size_t i = 0; i < count; i++) {
        size_t d = edit_distance(name, candidates[i]);
        if (d < best_distance) {
            best_distance = d;
            best = candidates[i];
        }
    }
    return best;
}

bool mf_choice_is_open(const char *choice, size_t len)
{
    return len >= 2 && memcmp(choice + len - 2, ":N", 2) == 0;
}

/* An open choice takes every number of up to three digits. */
static bool is_choice(const char *choice, size_t len, const char *text)
{
    if (!mf_choice_is_open(choice, len)) {
        return strlen(text) == len && memcmp(choice, text, len) == 0;
    }
    const size_t digits = strncmp(text, choice, len - 1) == 0 ? strspn(text + len - 1, "0123456789") : 0;
    return digits >= 1 && digits <= 3 && text[len - 1 + digits] == '\0';
}

static bool choice_matches(const char *choices, const char *text)
{
    for (const char *p = choices; p && *p;) {
        const char *end = strchr(p, '|');
        size_t len = end ? (size_t)(end - p) : strlen(p);
        if (is_choice(p, len, text)) {
            return true;
        }
        p = end ? end + 1 : NULL;
    }
    return false;
}

static mf_status parse_bool(const char *text, const char *name, bool *out, mf_error *err)
{
    static const char *const yes[] = { "1", "true", "yes", "on" };
    static const char *const no[] = { "0", "false", "no", "off", "" };
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        if (strcasecmp(text, yes[i]) == 0) {
            *out = true;
            return MF_OK;
        }
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        if (strcasecmp(text, no[i]) == 0) {
            *out = false;
            return MF_OK;
        }
    }
    return mf_fail(err, MF_ERR_INVALID, "%s: expected true or false; got \"%.64s\"", name, text);
}

static mf_status parse_number(const mf_flag *flag, const char *name, const char *text, mf_error *err)
{
    char *end = NULL;
    errno = 0;
    bool is_int = flag->type == MF_FLAG_INT;
    double real = 0;
    long long integer = 0;
    if (is_int) {
        integer = strtoll(text, &end, 10);
        real = (double)integer;
    } else {
        real = strtod(text, &end);
    }
    const char *kind = is_int ? "an integer" : "a number";
    if (end == text || *end != '\0' || errno == ERANGE || isnan(real) || isspace((unsigned char)text[0])) {
        return mf_fail(err, MF_ERR_INVALID, "%s: expected %s; got \"%.64s\"", name, kind, text);
    }
    if (real < flag->min || real > flag->max) {
        if (flag->max >= 9e18) {
            return mf_fail(err, MF_ERR_INVALID, "%s: expected %s of at least %.15g; got %.64s", name, kind, flag->min, text);
        }
        return mf_fail(err, MF_ERR_INVALID, "%s: expected %s in %.15g..%.15g; got %.64s", name, kind, flag->min, flag->max,
                       text);
    }
    if (is_int) {
        *(int64_t *)flag->value = integer;
    } else {
        *(double *)flag->value = real;
    }
    return MF_OK;
}

static mf_status set_value(const mf_flag *flag, const char *name, const char *text, mf_error *err)
{
    switch (flag->type) {
    case MF_FLAG_BOOL: MF_TRY(parse_bool(text, name, flag->value, err)); break;
    case MF_FLAG_INT:
    case MF_FLAG_REAL: MF_TRY(parse_number(flag, name, text, err)); break;
    case MF_FLAG_TEXT:
        if (flag->choices && !choice_matches(flag->choices, text)) {
            return mf_fail(err, MF_ERR_INVALID, "%s: expected one of %s; got \"%.64s\"", name, flag->choices, text);
        }
        *(const char **)flag->value = text;
        break;
    case MF_FLAG_LIST: {
        mf_flag_list *list = flag->value;
        if (list->count == MF_FLAG_LIST_MAX) {
            return mf_fail(err, MF_ERR_INVALID, "%s: expected at most %d times", name, MF_FLAG_LIST_MAX);
        }
        list->items[list->count++] = text;
        break;
    }
    }
    if (flag->given) {
        *flag->given = true;
    }
    return MF_OK;
}

static mf_status read_environment(const mf_flag *flags, size_t num_flags, mf_error *err)
{
    for (size_t i = 0; i < num_flags; i++) {
        char name[MAX_NAME + 16] = "MOEFUSE_";
        size_t n = strlen(name);
        for (const char *p = flags[i].name + 2; *p && n + 1 < sizeof name; p++) {
            name[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
        }
        name[n] = '\0';
        const char *text = getenv(name);
        if (text) {
            MF_TRY(set_value(&flags[i], name, text, err));
        }
    }
    return MF_OK;
}

static const mf_flag *find_flag(const mf_flag *flags, size_t num_flags, const char *name, size_t n)
{
    for (size_t i = 0; i < num_flags; i++) {
        if ((strlen(flags[i].name) == n && memcmp(flags[i].name, name, n) == 0) ||
            (flags[i].alias && strlen(flags[i].alias) == n && memcmp(flags[i].alias, name, n) == 0)) {
            return &flags[i];
        }
    }
    return NULL;
}

static mf_status unknown_flag(const mf_flag *flags, size_t num_flags, const char *name, size_t n, mf_error *err)
{
    const char *names[256];
    size_t count = 0;
    for (size_t i = 0; i < num_flags && count < 256; i++) {
        names[count++] = flags[i].name;
    }
    char shown[MAX_NAME + 1];
    snprintf(shown, sizeof shown, "%.*s", (int)(n > MAX_NAME ? MAX_NAME : n), name);
    const char *near = mf_nearest_name(shown, names, count);
    if (near) {
        return mf_fail(err, MF_ERR_INVALID, "unknown flag %s; did you mean %s?", shown, near);
    }
    return mf_fail(err, MF_ERR_INVALID, "unknown flag %s; --help lists the flags", shown);
}

mf_status mf_flags_parse(const mf_flag *flags, size_t num_flags, int argc, char **argv, const char **positionals,
                         int32_t max_positionals, int32_t *num_positionals, mf_error *err)
{
    *num_positionals = 0;
    if (mf_flags_listing) {
        mf_flags_listing->table(mf_flags_listing, flags, num_flags);
        return MF_ERR_CANCELLED;
    }
    MF_TRY(read_environment(flags, num_flags, err));
    bool seen_list[256] = { false };
    bool only_positionals = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (only_positionals || word[0] != '-' || word[1] == '\0') {
            if (*num_positionals == max_positionals) {
                return mf_fail(err, MF_ERR_INVALID, "unexpected argument \"%.128s\"", word);
            }
            positionals[(*num_positionals)++] = word;
            continue;
        }
        if (strcmp(word, "--") == 0) {
            only_positionals = true;
            continue;
        }
        const char *equals = word[1] == '-' ? strchr(word, '=') : NULL;
        size_t n = equals ? (size_t)(equals - word) : strlen(word);
        const mf_flag *flag = find_flag(flags, num_flags, word, n);
        if (!flag) {
            return unknown_flag(flags, num_flags, word, n, err);
        }
        /* A list on the command line replaces the environment's. */
        if (flag->type == MF_FLAG_LIST && flag - flags < 256 && !seen_list[flag - flags]) {
            seen_list[flag - flags] = true;
            ((mf_flag_list *)flag->value)->count = 0;
        }
        const char *text = equals ? equals + 1 : NULL;
        if (!text && flag->type == MF_FLAG_BOOL) {
            text = "true";
        } else if (!text) {
            if (i + 1 == argc) {
                return mf_fail(err, MF_ERR_INVALID, "%s: expected a value (%s)", flag->name, flag->argument);
            }
            text = argv[++i];
        }
        MF_TRY(set_value(flag, flag->name, text, err));
    }
    return MF_OK;
}

static void print_flag(const mf_flag *flag, FILE *out)
{
    bool takes_value = flag->type != MF_FLAG_BOOL;
    char left[96];
    snprintf(left, sizeof left, "%s%s%s%s%s", flag->alias ? flag->alias : "", flag->alias ? ", " : "", flag->name,
             takes_value ? " " : "", !takes_value ? "" : flag->choices ? flag->choices : flag->argument);
    if (strlen(left) <= 32) {
        fprintf(out, "  %-32s  %s\n", left, flag->help);
    } else {
        fprintf(out, "  %s\n  %-32s  %s\n", left, "", flag->help);
    }
}

/* Groups in the order of their first flag; a verb's own flags and the shared ones may fall into one group. */
void mf_flags_help(const mf_flag *flags, size_t num_flags, FILE *out)
{
    for (size_t i = 0; i < num_flags; i++) {
        bool seen = false;
        for (size_t j = 0; j < i; j++) {
            seen = seen || strcmp(flags[j].group, flags[i].group) == 0;
        }
        if (seen) {
            continue;
        }
        fprintf(out, "\n%s:\n", flags[i].group);
        for (size_t j = i; j < num_flags; j++) {
            if (strcmp(flags[j].group, flags[i].group) == 0) {
                print_flag(&flags[j], out);
            }
        }
    }
}
