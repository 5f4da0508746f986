/* name_pattern.h - the regular expressions that quantisation configs hold module names against
 * ("re:.*mlp\\.(gate|up)_proj$").
 *
 * The subset that releases use: literals, '.', escaped punctuation, \d and \w, classes, groups, '|', '*', '+', '?', '^'
 * and '$'. As Python's re.match does, a pattern starts at the name's first character and may end before its last.
 * Matching takes time proportional to the name times the pattern, whatever the pattern: configs are untrusted. */
#ifndef MF_MODEL_NAME_PATTERN_H
#define MF_MODEL_NAME_PATTERN_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/error.h"

typedef struct mf_name_pattern mf_name_pattern;

/* text without "re:"; the pattern lives in the arena.  *why names what is not supported (MF_ERR_UNSUPPORTED) or wrong
 * (MF_ERR_INVALID); MF_ERR_NOMEM leaves it NULL. */
mf_status mf_name_pattern_compile(const char *text, mf_arena *arena, const mf_name_pattern **out, const char **why);

bool mf_name_pattern_matches(const mf_name_pattern *pattern, const char *name);

#endif
