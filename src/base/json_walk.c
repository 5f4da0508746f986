/* json_walk.c - see json_walk.h. */
#include "base/json_walk.h"

static void enter(mf_json_walk *walk, json_t *value)
{
    bool full =
        (json_is_array(value) && json_array_size(value) > 0) || (json_is_object(value) && json_object_size(value) > 0);
    if (!full) {
        return;
    }
    if (walk->open == MF_JSON_WALK_DEPTH) {
        walk->too_deep = true;
        return;
    }
    walk->stack[walk->open].container = value;
    walk->stack[walk->open].member = json_is_object(value) ? json_object_iter(value) : NULL;
    walk->stack[walk->open++].index = 0;
}

void mf_json_walk_begin(mf_json_walk *walk, json_t *root)
{
    walk->open = walk->depth = 0;
    walk->pending = NULL;
    walk->too_deep = false;
    enter(walk, root);
}

json_t *mf_json_walk_next(mf_json_walk *walk, json_t **parent, const char **key, size_t *index)
{
    if (walk->pending) {
        enter(walk, walk->pending);
        walk->pending = NULL;
    }
    while (walk->open > 0) {
        json_t *container = walk->stack[walk->open - 1].container;
        void *member = walk->stack[walk->open - 1].member;
        size_t at = walk->stack[walk->open - 1].index;
        bool list = json_is_array(container);
        if (list ? at == json_array_size(container) : !member) {
            walk->open--;
            continue;
        }
        json_t *value = list ? json_array_get(container, at) : json_object_iter_value(member);
        if (parent) {
            *parent = container;
        }
        if (key) {
            *key = list ? NULL : json_object_iter_key(member);
        }
        if (index) {
            *index = at;
        }
        walk->stack[walk->open - 1].index++;
        walk->stack[walk->open - 1].member = list ? NULL : json_object_iter_next(container, member);
        walk->depth = walk->open;
        walk->pending = value;
        return value;
    }
    return NULL;
}
