/* guide_walk.c - sets of configs: a byte further, a token further, and over the whole vocabulary.
 *
 * A state's mask is what its own bytes allow whoever called its rule, with the trie nodes behind which the rule may have ended:
 * from those the walk goes on in the caller.  So a string's thousands of tokens are looked up, and only what follows its quote is
 * walked.  Masks are kept in two halves of fixed size; when one is full the other is emptied and filled. */
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"

enum {
    MAX_FRAMES = 65536,
    FRAME_SLOTS = 8192,
    MAX_WORK_CONFIGS = 1 << 17,
    MAX_EXITS = 1 << 16,
    MAX_STEPS = 8 << 20, /* of one call: some 0.2 s */
    CACHE_HALF = 1 << 20 /* words */
};

mf_status mf_guide_work_open(mf_guide_work *w, const mf_guide_vocab *vocab, mf_error *err)
{
    *w = (mf_guide_work){ 0 };
    w->frames = mf_alloc(MAX_FRAMES * sizeof *w->frames);
    w->remap = mf_alloc(MAX_FRAMES * sizeof *w->remap);
    w->frame_cache = mf_alloc_array(FRAME_SLOTS, sizeof *w->frame_cache);
    w->configs = mf_alloc(MAX_WORK_CONFIGS * sizeof *w->configs);
    w->levels = mf_alloc_array((size_t)vocab->max_depth + 2, sizeof *w->levels);
    w->words = mf_alloc_array(vocab->num_words + 1, sizeof *w->words);
    w->out = mf_alloc_array(vocab->num_words + 1, sizeof *w->out);
    w->exits = mf_alloc(MAX_EXITS * sizeof *w->exits);
    if (!w->frames || !w->remap || !w->frame_cache || !w->configs || !w->levels || !w->words || !w->out || !w->exits) {
        mf_guide_work_close(w);
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for walking");
    }
    w->frames[MF_GUIDE_ROOT] = (mf_guide_frame){ 0 };
    w->frames[MF_GUIDE_CALLER] = (mf_guide_frame){ 0 };
    w->num_frames = MF_GUIDE_FIRST_FRAME;
    return MF_OK;
}

void mf_guide_work_close(mf_guide_work *w)
{
    mf_free(w->frames);
    mf_free(w->remap);
    mf_free(w->frame_cache);
    mf_free(w->configs);
    mf_free(w->levels);
    mf_free(w->words);
    mf_free(w->out);
    mf_free(w->exits);
    *w = (mf_guide_work){ 0 };
}

/* ---- sets --------------------------------------------------------------------------------------------------------- */

/* The stack with one more frame; -1: too deep, or no room. */
static int32_t push_frame(mf_guide_work *w, int32_t back, int32_t below)
{
    uint32_t slot = ((uint32_t)back * 2654435761u ^ (uint32_t)below * 40503u) >> 5 & (FRAME_SLOTS - 1);
    int32_t known = w->frame_cache[slot];
    if (known >= MF_GUIDE_FIRST_FRAME && known < w->num_frames && w->frames[known].back == back &&
        w->frames[known].below == below) {
        return known;
    }
    if (w->num_frames == MAX_FRAMES) {
        w->has_failed = true;
        return -1;
    }
    w->frames[w->num_frames] = (mf_guide_frame){ back, below, w->frames[below].depth + 1 };
    w->frame_cache[slot] = w->num_frames;
    return w->num_frames++;
}

static void add_config(mf_guide_program *p, int32_t state, int32_t stack)
{
    mf_guide_work *w = &p->work;
    int32_t reach = w->frames[stack].depth + p->dfa.states[state].need;
    w->reach = reach > w->reach ? reach : w->reach;
    if (reach > MF_GUIDE_MAX_STACK) {
        return; /* could not be ended within the depth */
    }
    for (int32_t i = w->begin; i < w->end; i++) {
        if (w->configs[i].state == state && w->configs[i].stack == stack) {
            return;
        }
    }
    if (w->end - w->begin >= MF_GUIDE_MAX_CONFIGS || w->end == MAX_WORK_CONFIGS) {
        w->has_failed = true;
        return;
    }
    w->configs[w->end++] = (mf_guide_config){ state, stack };
}

static void add_calls(mf_guide_program *p, mf_guide_config c)
{
    mf_guide_dfa *d = &p->dfa;
    mf_guide_work *w = &p->work;
    if (d->states[c.state].calls_at < 0) {
        mf_guide_dfa_make_calls(d, c.state);
    }
    for (int32_t i = 0; i < d->states[c.state].num_calls; i++) {
        const mf_guide_call *call = &d->calls[d->states[c.state].calls_at + i];
        int32_t stack = c.stack;
        if (!call->is_last) {
            int32_t reach = w->frames[stack].depth + d->states[call->back].need;
            w->reach = reach > w->reach ? reach : w->reach;
            stack = reach > MF_GUIDE_MAX_STACK ? -1 : push_frame(w, call->back, stack);
        }
        if (stack >= 0) {
            add_config(p, call->start, stack);
        }
    }
}

/* Adds what the set calls, and what it returns to where it may end. */
static void close_set(mf_guide_program *p)
{
    mf_guide_work *w = &p->work;
    for (int32_t i = w->begin; i < w->end; i++) {
        mf_guide_config c = w->configs[i];
        if (p->dfa.states[c.state].has_calls) {
            add_calls(p, c);
        }
        if (p->dfa.states[c.state].is_end) {
            if (c.stack < MF_GUIDE_FIRST_FRAME) {
                w->at_end = true;
            } else {
                add_config(p, w->frames[c.stack].back, w->frames[c.stack].below);
            }
        }
    }
    w->num_steps += w->end - w->begin;
}

static void begin_set(mf_guide_work *w, int32_t begin)
{
    w->begin = begin;
    w->end = begin;
    w->at_end = false;
}

/* The set behind configs [begin, end) and one byte, from `end` on. */
static void step_set(mf_guide_program *p, int32_t begin, int32_t end, uint8_t byte)
{
    mf_guide_work *w = &p->work;
    begin_set(w, end);
    for (int32_t i = begin; i < end; i++) {
        int32_t next = mf_guide_dfa_next(&p->dfa, w->configs[i].state, p->dfa.classes[byte]);
        if (next >= 0) {
            add_config(p, next, w->configs[i].stack);
        }
    }
    close_set(p);
}

/* ---- the trie ----------------------------------------------------------------------------------------------------- */

static inline void allow(const mf_guide_vocab *v, uint32_t *words, const mf_guide_trie_node *node)
{
    int32_t id = node->token_id;
    if (id >= 0) {
        words[id >> 5] |= 1u << (id & 31);
        while (node->has_same && (id = v->next_same[id]) >= 0) {
            words[id >> 5] |= 1u << (id & 31);
        }
    }
}

static void record_exit(mf_guide_work *w, uint32_t node)
{
    if (w->num_exits == MAX_EXITS) {
        w->num_exits = -1;
    }
    if (w->num_exits >= 0) {
        w->exits[w->num_exits++] = node;
    }
}

/* Walks trie nodes [at, last) from the set in configs [begin, end); allows the tokens that do not die, and records exits when
 * the stacks' bottom is an unknown caller. */
static void walk(mf_guide_program *p, uint32_t at, uint32_t last, int32_t begin, int32_t end, uint32_t *words, bool has_caller)
{
    mf_guide_work *w = &p->work;
    mf_guide_dfa *d = &p->dfa;
    const mf_guide_trie_node *nodes = p->vocab->nodes;
    int32_t base = at < last ? nodes[at].depth : 1;
    w->levels[0] = (mf_guide_level){ begin, end, w->num_frames };
    while (at < last && !w->has_failed) {
        const mf_guide_trie_node *node = &nodes[at];
        const mf_guide_level *level = &w->levels[node->depth - base];
        mf_guide_level *deeper = &w->levels[node->depth - base + 1];
        w->num_steps++;
        if (level->end - level->begin == 1) { /* most often: one config, which calls and returns to nobody */
            mf_guide_config c = w->configs[level->begin];
            int32_t next = mf_guide_dfa_next(d, c.state, d->classes[node->byte]);
            if (next < 0) {
                at = node->end;
                continue;
            }
            const mf_guide_dfa_state *s = &d->states[next];
            bool is_plain = !s->has_calls && s->need == 0 && (!s->is_end || c.stack < MF_GUIDE_FIRST_FRAME);
            if (is_plain && level->end < MAX_WORK_CONFIGS) {
                w->configs[level->end] = (mf_guide_config){ next, c.stack };
                *deeper = (mf_guide_level){ level->end, level->end + 1, level->num_frames };
                allow(p->vocab, words, node);
                if (s->is_end && has_caller && node->end > at + 1) {
                    record_exit(w, at);
                }
                at++;
                continue;
            }
        }
        w->num_frames = level->num_frames;
        step_set(p, level->begin, level->end, node->byte);
        if (w->end > w->begin || w->at_end) {
            allow(p->vocab, words, node);
        }
        if (w->at_end && has_caller && node->end > at + 1) {
            record_exit(w, at);
        }
        if (w->end > w->begin) {
            *deeper = (mf_guide_level){ w->begin, w->end, w->num_frames };
            at++;
        } else {
            at = node->end;
        }
        w->has_failed = w->has_failed || d->is_full || w->num_steps + d->work > MAX_STEPS;
    }
    w->has_failed = w->has_failed || d->is_full || w->num_steps + d->work > MAX_STEPS;
    w->num_frames = w->levels[0].num_frames;
}

void mf_guide_walk_mask(mf_guide_program *p, int32_t state)
{
    mf_guide_work *w = &p->work;
    memset(w->words, 0, p->vocab->num_words * sizeof *w->words);
    w->num_exits = 0;
    w->reach = 0;
    int32_t begin = w->end;
    if (begin == MAX_WORK_CONFIGS) {
        w->has_failed = true;
        return;
    }
    w->configs[begin] = (mf_guide_config){ state, MF_GUIDE_CALLER };
    walk(p, 0, p->vocab->num_nodes, begin, begin + 1, w->words, p->dfa.states[state].rule != 0); /* nobody calls rule 0 */
    w->end = begin;
}

/* ---- masks that are kept ------------------------------------------------------------------------------------------ */

enum { HEAD = 3 };

static uint32_t *take_cache(mf_guide_program *p, mf_guide_dfa_state *s, uint32_t size)
{
    if (size > p->cache_size) {
        return NULL;
    }
    if (p->cache_used[p->cache_half] + size > p->cache_size) {
        p->cache_half = 1 - p->cache_half;
        p->cache_used[p->cache_half] = 0;
        p->cache_serial[p->cache_half] = ++p->cache_last_serial;
    }
    s->mask_half = (uint8_t)p->cache_half;
    s->mask_at = p->cache_used[p->cache_half];
    s->mask_serial = p->cache_serial[p->cache_half];
    p->cache_used[p->cache_half] += size;
    return p->cache + (size_t)p->cache_half * p->cache_size + s->mask_at;
}

static void keep_mask(mf_guide_program *p, int32_t state)
{
    const mf_guide_work *w = &p->work;
    mf_guide_dfa_state *s = &p->dfa.states[state];
    size_t num_words = p->vocab->num_words;
    uint32_t num_ids = 0;
    for (size_t i = 0; i < num_words; i++) {
        num_ids += (uint32_t)__builtin_popcount(w->words[i]);
    }
    bool is_list = num_ids < num_words;
    uint32_t body = is_list ? num_ids : (uint32_t)num_words;
    uint32_t *to = w->num_exits < 0 ? NULL : take_cache(p, s, HEAD + body + (uint32_t)w->num_exits);
    if (!to) {
        s->is_direct = true;
        return;
    }
    to[0] = is_list ? num_ids : UINT32_MAX;
    to[1] = (uint32_t)w->num_exits;
    to[2] = (uint32_t)w->reach;
    to += HEAD;
    if (is_list) {
        for (size_t i = 0; i < num_words; i++) {
            for (uint32_t bits = w->words[i]; bits; bits &= bits - 1) {
                *to++ = (uint32_t)(i * 32) + (uint32_t)__builtin_ctz(bits);
            }
        }
    } else {
        memcpy(to, w->words, num_words * sizeof *to);
        to += num_words;
    }
    memcpy(to, w->exits, (size_t)w->num_exits * sizeof *to);
}

/* Inside a counted string: of what any string allows, the tokens that begin no more characters than are left, and that close it
 * no sooner than there are enough. */
static bool make_counted_mask(mf_guide_program *p, const mf_guide_dfa_state *s)
{
    const mf_guide_vocab *v = p->vocab;
    const mf_guide_rule *rule = &p->nfa.rules[s->rule];
    mf_guide_work *w = &p->work;
    if (!v->string_next || s->string_state != v->string_inside) {
        return false;
    }
    const mf_guide_mask *any = &v->shared[s->string_state].mask;
    int32_t left = rule->max_chars < 0 ? INT32_MAX : rule->max_chars - s->num_chars;
    int32_t wanted = rule->min_chars - s->num_chars;
    memcpy(w->words, any->words, v->num_words * sizeof *w->words);
    for (int32_t i = v->num_inside; i-- > 0 && v->inside_chars[i] > left;) {
        w->words[v->inside_ids[i] >> 5] &= ~(1u << (v->inside_ids[i] & 31));
    }
    for (int32_t i = 0; i < v->num_closers; i++) {
        if (v->closer_chars[i] < wanted) {
            w->words[v->closers[i] >> 5] &= ~(1u << (v->closers[i] & 31));
        }
    }
    w->num_exits = 0;
    for (int32_t i = 0; i < any->num_exits; i++) {
        if (v->exit_chars[i] <= left && v->exit_chars[i] >= wanted) {
            w->exits[w->num_exits++] = any->exits[i];
        }
    }
    w->reach = any->reach;
    w->num_steps += v->num_inside / 16;
    return true;
}

/* false: there is none, walk. */
static bool find_mask(mf_guide_program *p, int32_t state, mf_guide_mask *mask)
{
    mf_guide_dfa_state *s = &p->dfa.states[state];
    if (s->shared >= 0) {
        *mask = p->vocab->shared[s->shared].mask;
        return true;
    }
    if (!s->is_direct && (s->mask_serial == 0 || s->mask_serial != p->cache_serial[s->mask_half])) {
        if (!make_counted_mask(p, s)) {
            mf_guide_walk_mask(p, state);
        }
        if (p->work.has_failed) {
            return false;
        }
        keep_mask(p, state);
    }
    if (s->is_direct) {
        return false;
    }
    const uint32_t *from = p->cache + (size_t)s->mask_half * p->cache_size + s->mask_at;
    *mask = (mf_guide_mask){ .num_ids = (int32_t)from[0], .num_exits = (int32_t)from[1], .reach = (int32_t)from[2] };
    const uint32_t *body = from + HEAD;
    mask->ids = (const int32_t *)body;
    mask->words = body;
    mask->exits = body + (mask->num_ids >= 0 ? (size_t)mask->num_ids : p->vocab->num_words);
    return true;
}

/* ---- what may come next ------------------------------------------------------------------------------------------- */

static void or_mask(const mf_guide_vocab *v, uint32_t *out, const mf_guide_mask *mask)
{
    for (int32_t i = 0; i < mask->num_ids; i++) {
        out[mask->ids[i] >> 5] |= 1u << (mask->ids[i] & 31);
    }
    for (size_t i = 0; mask->num_ids < 0 && i < v->num_words; i++) {
        out[i] |= mask->words[i];
    }
}

/* From each exit on in the caller; most of their children begin with a byte that the caller cannot take. */
static void walk_exits(mf_guide_program *p, const mf_guide_mask *mask, int32_t stack)
{
    mf_guide_work *w = &p->work;
    const mf_guide_trie_node *nodes = p->vocab->nodes;
    int32_t begin = w->end;
    int32_t num_frames = w->num_frames;
    begin_set(w, begin);
    add_config(p, w->frames[stack].back, w->frames[stack].below);
    close_set(p);
    int32_t end = w->end;
    bool takes[256] = { false };
    for (int32_t i = begin; i < end; i++) {
        for (int32_t c = 0; c < p->dfa.num_classes; c++) {
            if (p->dfa.states[w->configs[i].state].has_bytes && mf_guide_dfa_next(&p->dfa, w->configs[i].state, c) >= 0) {
                takes[c] = true;
            }
        }
    }
    for (int32_t i = 0; i < mask->num_exits && end > begin && !w->has_failed; i++) {
        uint32_t last = nodes[mask->exits[i]].end;
        for (uint32_t at = mask->exits[i] + 1; at < last; at = nodes[at].end) {
            if (takes[p->dfa.classes[nodes[at].byte]]) {
                walk(p, at, nodes[at].end, begin, end, w->out, false);
            }
        }
    }
    w->end = begin;
    w->num_frames = num_frames;
}

static void fill_config(mf_guide_program *p, int32_t index)
{
    mf_guide_work *w = &p->work;
    mf_guide_config c = w->configs[index];
    mf_guide_mask mask;
    if (find_mask(p, c.state, &mask) && w->frames[c.stack].depth + mask.reach <= MF_GUIDE_MAX_STACK) {
        or_mask(p->vocab, w->out, &mask);
        if (c.stack >= MF_GUIDE_FIRST_FRAME && mask.num_exits > 0) {
            walk_exits(p, &mask, c.stack);
        }
    } else if (!w->has_failed && w->end < MAX_WORK_CONFIGS) {
        int32_t begin = w->end;
        w->configs[begin] = c;
        walk(p, 0, p->vocab->num_nodes, begin, begin + 1, w->out, false);
        w->end = begin;
    }
}

static void begin_work(mf_guide_program *p)
{
    p->work.num_steps = 0;
    p->work.has_failed = false;
    p->work.reach = 0;
    p->dfa.work = 0;
}

/* ---- a sequence's state ------------------------------------------------------------------------------------------- */

static void load_state(mf_guide_work *w, const mf_guide_state *s)
{
    memcpy(w->frames + MF_GUIDE_FIRST_FRAME, s->frames, (size_t)s->num_frames * sizeof *s->frames);
    memcpy(w->configs, s->configs, (size_t)s->num_configs * sizeof *s->configs);
    w->num_frames = MF_GUIDE_FIRST_FRAME + s->num_frames;
    w->begin = 0;
    w->end = s->num_configs;
}

/* The set with the frames it holds.  Configs that take no byte have done their part when the set was closed. */
static void store_state(mf_guide_program *p, mf_guide_state *s)
{
    mf_guide_work *w = &p->work;
    memset(w->remap, 0, (size_t)w->num_frames * sizeof *w->remap);
    s->num_configs = 0;
    s->num_frames = 0;
    s->may_end = w->at_end;
    s->has_failed = s->has_failed || w->has_failed || p->dfa.is_full || (w->end == w->begin && !w->at_end);
    for (int32_t i = w->begin; i < w->end; i++) {
        if (p->dfa.states[w->configs[i].state].has_bytes) {
            s->configs[s->num_configs++] = w->configs[i];
            for (int32_t f = w->configs[i].stack; f >= MF_GUIDE_FIRST_FRAME && !w->remap[f]; f = w->frames[f].below) {
                w->remap[f] = 1;
            }
        }
    }
    for (int32_t f = MF_GUIDE_FIRST_FRAME; f < w->num_frames; f++) { /* a frame's number is above those below it */
        if (w->remap[f]) {
            if (s->num_frames == MF_GUIDE_MAX_STATE_FRAMES) {
                s->has_failed = true;
                break;
            }
            mf_guide_frame frame = w->frames[f];
            frame.below = frame.below < MF_GUIDE_FIRST_FRAME ? frame.below : w->remap[frame.below];
            w->remap[f] = MF_GUIDE_FIRST_FRAME + s->num_frames;
            s->frames[s->num_frames++] = frame;
        }
    }
    for (int32_t i = 0; i < s->num_configs && !s->has_failed; i++) {
        int32_t stack = s->configs[i].stack;
        s->configs[i].stack = stack < MF_GUIDE_FIRST_FRAME ? stack : w->remap[stack];
    }
}

void mf_guide_start_set(mf_guide_program *p, mf_guide_state *s)
{
    mf_guide_work *w = &p->work;
    pthread_mutex_lock(&p->mutex);
    begin_work(p);
    w->num_frames = MF_GUIDE_FIRST_FRAME;
    begin_set(w, 0);
    int32_t start = mf_guide_dfa_start(&p->dfa, 0);
    if (start >= 0) {
        add_config(p, start, MF_GUIDE_ROOT);
    }
    close_set(p);
    store_state(p, s);
    pthread_mutex_unlock(&p->mutex);
}

static bool is_eos(const mf_guide_vocab *v, int32_t id)
{
    for (int32_t i = 0; i < v->num_eos; i++) {
        if (v->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

void mf_guide_state_accept(mf_guide_state *s, int32_t token_id)
{
    mf_guide_program *p = s->program;
    const mf_guide_vocab *v = p->vocab;
    if (is_eos(v, token_id)) {
        s->has_failed = s->has_failed || !(s->may_end || s->has_ended);
        s->has_ended = true;
        return;
    }
    uint32_t at = token_id >= 0 && token_id < v->num_ids ? v->bytes_at[token_id] : 0;
    uint32_t end = token_id >= 0 && token_id < v->num_ids ? v->bytes_at[token_id + 1] : 0;
    if (s->has_ended || s->has_failed || at == end) {
        s->has_failed = true; /* not one that the mask allowed */
        return;
    }
    pthread_mutex_lock(&p->mutex);
    mf_guide_work *w = &p->work;
    begin_work(p);
    load_state(w, s);
    for (; at < end; at++) {
        step_set(p, w->begin, w->end, v->bytes[at]);
        int32_t n = w->end - w->begin; /* down to the front: a long token must not run out of room */
        memmove(w->configs, w->configs + w->begin, (size_t)n * sizeof *w->configs);
        w->begin = 0;
        w->end = n;
        w->has_failed = w->has_failed || w->num_steps + p->dfa.work > MAX_STEPS;
    }
    store_state(p, s);
    pthread_mutex_unlock(&p->mutex);
}

bool mf_guide_state_may_end(const mf_guide_state *s)
{
    return s->may_end && !s->has_failed;
}

void mf_guide_state_fill(mf_guide_state *s, uint32_t *mask, int32_t vocab_size)
{
    mf_guide_program *p = s->program;
    const mf_guide_vocab *v = p->vocab;
    size_t num_words = vocab_size > 0 ? ((size_t)vocab_size + 31) / 32 : 0;
    size_t shared = num_words < v->num_words ? num_words : v->num_words;
    memset(mask, 0, num_words * sizeof *mask);
    if (s->has_failed) {
        return;
    }
    if (!s->has_ended) {
        pthread_mutex_lock(&p->mutex);
        mf_guide_work *w = &p->work;
        begin_work(p);
        load_state(w, s);
        memset(w->out, 0, v->num_words * sizeof *w->out);
        for (int32_t i = 0; i < s->num_configs && !w->has_failed; i++) {
            fill_config(p, i);
        }
        if (w->has_failed) {
            s->has_failed = true; /* what was found is not all that may come: rather nothing */
        } else {
            memcpy(mask, w->out, shared * sizeof *mask);
        }
        pthread_mutex_unlock(&p->mutex);
        if (s->has_failed) {
            return;
        }
    }
    for (int32_t i = 0; (s->may_end || s->has_ended) && i < v->num_eos; i++) {
        if (v->eos_ids[i] < vocab_size) {
            mask[v->eos_ids[i] / 32] |= 1u << v->eos_ids[i] % 32;
        }
    }
    if (vocab_size % 32 != 0 && shared == num_words) {
        mask[num_words - 1] &= (1u << vocab_size % 32) - 1;
    }
}

/* ---- a program ---------------------------------------------------------------------------------------------------- */

mf_status mf_guide_program_make(mf_guide_build *b, const mf_guide_vocab *vocab, mf_guide_program **out)
{
    *out = NULL;
    mf_error *err = b->err;
    mf_guide_program *p = b->status == MF_OK ? mf_alloc_zero(sizeof *p) : NULL;
    if (!p) {
        return b->status != MF_OK ? b->status : mf_fail(err, MF_ERR_NOMEM, "guide: out of memory");
    }
    p->num_refs = 1;
    p->vocab = vocab;
    mf_status status = pthread_mutex_init(&p->mutex, NULL) == 0 ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "guide: no mutex");
    if (status != MF_OK) {
        mf_free(p);
        return status;
    }
    MF_TRY_GOTO(mf_guide_nfa_make(b, &p->nfa), fail);
    MF_TRY_GOTO(mf_guide_dfa_open(&p->dfa, &p->nfa, vocab, err), fail);
    MF_TRY_GOTO(mf_guide_work_open(&p->work, vocab, err), fail);
    p->cache_size = CACHE_HALF;
    p->cache = mf_alloc((size_t)2 * CACHE_HALF * sizeof *p->cache);
    if (!p->cache) {
        status = mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for masks");
        goto fail;
    }
    p->cache_last_serial = 2;
    p->cache_serial[0] = 1;
    p->cache_serial[1] = 2;
    *out = p;
    return MF_OK;
fail:
    mf_guide_program_close(&p);
    return status;
}

mf_guide_program *mf_guide_program_ref(mf_guide_program *p)
{
    __atomic_add_fetch(&p->num_refs, 1, __ATOMIC_RELAXED);
    return p;
}

void mf_guide_program_close(mf_guide_program **out)
{
    mf_guide_program *p = *out;
    *out = NULL;
    if (p && __atomic_sub_fetch(&p->num_refs, 1, __ATOMIC_ACQ_REL) == 0) {
        mf_guide_work_close(&p->work);
        mf_guide_dfa_close(&p->dfa);
        mf_guide_nfa_close(&p->nfa);
        mf_free(p->cache);
        pthread_mutex_destroy(&p->mutex);
        mf_free(p);
    }
}

mf_status mf_guide_state_open(mf_guide_program *program, mf_guide_state **out, mf_error *err)
{
    *out = NULL;
    mf_guide_state *s = mf_alloc(sizeof *s);
    if (!s) {
        return mf_fail(err, MF_ERR_NOMEM, "guide: out of memory for a sequence");
    }
    s->program = mf_guide_program_ref(program);
    s->num_configs = 0;
    s->num_frames = 0;
    s->may_end = false;
    s->has_ended = false;
    s->has_failed = false;
    mf_guide_start_set(program, s);
    *out = s;
    return MF_OK;
}

void mf_guide_state_close(mf_guide_state **out)
{
    mf_guide_state *s = *out;
    *out = NULL;
    if (s) {
        mf_guide_program_close(&s->program);
        mf_free(s);
    }
}
