/* guide_state.c - a sequence's state between two calls, and the life of programs and states.
 *
 * A state holds its set of configs and the frames they stand on; a call takes the program's mutex, loads them into the program's
 * working memory, and stores what it has become. */
#include <string.h>

#include "base/sys.h"
#include "text/guide_impl.h"

enum { CACHE_HALF = 1 << 20 /* words */ };

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

static void start_state(mf_guide_program *p, mf_guide_state *s)
{
    pthread_mutex_lock(&p->mutex);
    mf_guide_begin_work(p);
    mf_guide_first_set(p);
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
    mf_guide_begin_work(p);
    load_state(w, s);
    for (; at < end; at++) {
        mf_guide_step_set(p, w->begin, w->end, v->bytes[at]);
        int32_t n = w->end - w->begin; /* down to the front: a long token must not run out of room */
        memmove(w->configs, w->configs + w->begin, (size_t)n * sizeof *w->configs);
        w->begin = 0;
        w->end = n;
        w->has_failed = mf_guide_is_spent(p);
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
        mf_guide_begin_work(p);
        load_state(w, s);
        memset(w->out, 0, v->num_words * sizeof *w->out);
        for (int32_t i = 0; i < s->num_configs && !w->has_failed; i++) {
            mf_guide_fill_config(p, i);
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
    mf_guide_begin_work(p);
    mf_guide_first_set(p);
    if (mf_guide_is_spent(p)) {
        status = mf_guide_build_fail(b, MF_ERR_LIMIT, "the text can begin in more than %d ways", MF_GUIDE_MAX_CONFIGS);
        goto fail;
    }
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
    start_state(program, s);
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
