/* guide_schema.h - what the files that read JSON schemas share; nobody else includes it.
 *
 * A schema becomes a rule, its parts are queued, and each is read once however often it is named: so recursion by $ref costs
 * nothing, and nothing here recurses. */
#ifndef MF_TEXT_GUIDE_SCHEMA_H
#define MF_TEXT_GUIDE_SCHEMA_H

#include "base/json.h"
#include "text/guide_impl.h"

enum { MF_SCHEMA_SLOTS = 1 << 16 };

typedef struct mf_schema_entry {
    const json_t *schema; /* NULL = free */
    int32_t rule;
} mf_schema_entry;

typedef struct mf_schema_reader {
    mf_guide_build *b;
    const json_t *root;
    mf_schema_entry *entries;  /* [MF_SCHEMA_SLOTS], by address */
    const json_t **queue;      /* [MF_GUIDE_MAX_RULES] schemas whose rules have no body yet */
    int32_t *queue_rules;
    int32_t queue_head, queue_tail;
    json_t *made;              /* array: schemas that were made by merging, kept until the end */
} mf_schema_reader;

void mf_schema_fail(mf_schema_reader *r, mf_status status, const char *keyword, const char *message);

/* Refuses keywords that are not done.  true when there is any that constrains. */
bool mf_schema_check_keywords(mf_schema_reader *r, const json_t *schema);
bool mf_schema_constrains(const char *keyword);

/* What a schema stands for: a rule's reference, or, for plain strings and numbers, the expression itself. */
mf_guide_expr *mf_schema_expr(mf_schema_reader *r, const json_t *schema);

/* guide_schema_merge.c: $ref, and allOf and siblings as one schema; NULL = failed. */
const json_t *mf_schema_resolve(mf_schema_reader *r, const char *reference);
/* `base` without the keyword `without`, and all that must hold with it. */
const json_t *mf_schema_merge(mf_schema_reader *r, const json_t *base, const char *without, const json_t *const *others,
                              size_t num_others);

/* guide_schema_types.c: by type. */
mf_guide_expr *mf_schema_typed(mf_schema_reader *r, const json_t *schema, const char *type);

#endif
