/* json_walk.h - every value below a JSON value, parents first, without recursion. */
#ifndef MF_BASE_JSON_WALK_H
#define MF_BASE_JSON_WALK_H

#include <jansson.h>
#include <stdbool.h>

/* A body is at most 64 deep; a tool call's arguments are JSON of that depth inside it. */
enum { MF_JSON_WALK_DEPTH = 144 };

typedef struct mf_json_walk {
    struct {
        json_t *container;
        void *member; /* an object's next member */
        size_t index; /* a list's next entry */
    } stack[MF_JSON_WALK_DEPTH];
    int depth; /* of the value that was given out last: 1 = an entry of the root */
    int open;  /* containers on the stack */
    json_t *pending;
    bool too_deep; /* something below was left out */
} mf_json_walk;

void mf_json_walk_begin(mf_json_walk *walk, json_t *root);
/* NULL at the end.  *parent, *key (NULL in a list) and *index say where the value hangs; any may be NULL. */
json_t *mf_json_walk_next(mf_json_walk *walk, json_t **parent, const char **key, size_t *index);

#endif
