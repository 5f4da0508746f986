/* pretokenizer.c - cutting a text into pre-tokens: see pretokenizer.h. */
#include "text/pretokenizer.h"

#include <string.h>

#include "base/sys.h"
#include "text/utf8.h"

static mf_status add_piece(mf_piece_list *list, size_t start, size_t end)
{
    if (list->size == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        mf_piece *data = mf_resize_array(list->data, capacity, sizeof *data);
        if (!data) {
            return MF_ERR_NOMEM;
        }
        list->data = data;
        list->capacity = capacity;
    }
    list->data[list->size++] = (mf_piece){ (uint32_t)start, (uint32_t)end };
    return MF_OK;
}

static mf_status add_unless_empty(mf_piece_list *list, size_t start, size_t end)
{
    return start < end ? add_piece(list, start, end) : MF_OK;
}

static mf_status reserve_points(mf_pretokens *w, size_t n)
{
    if (n <= w->capacity) {
        return MF_OK;
    }
    uint32_t *points = mf_resize_array(w->points, n, sizeof *points);
    w->points = points ? points : w->points;
    uint8_t *symbols = mf_resize_array(w->symbols, n, 1);
    w->symbols = symbols ? symbols : w->symbols;
    if (!points || !symbols) {
        return MF_ERR_NOMEM;
    }
    w->capacity = n;
    return MF_OK;
}

/* In a list of cuts this bit of `start` says that the cut is a match. */
#define MATCH_BIT 0x80000000u

/* Fills w->cuts with the matches of the pattern in [low, high) and what lies between them. */
static mf_status find_cuts(mf_pretokens *w, const mf_pretokenizer_step *step, size_t low, size_t high)
{
    uint32_t match = step->invert ? 0 : MATCH_BIT, gap = step->invert ? MATCH_BIT : 0;
    size_t done = low, from = low, last_end = SIZE_MAX;
    w->cuts.size = 0;
    while (from <= high) {
        bool found = false;
        size_t start = 0, end = 0;
        MF_TRY(mf_matcher_find(&w->matcher, low, high, from, &found, &start, &end));
        if (!found) {
            break;
        }
        /* An empty match right behind a match is passed over, one character on. */
        if (start == end && end == last_end) {
            from = end + 1;
            continue;
        }
        if (done != start) {
            MF_TRY(add_piece(&w->cuts, done | gap, start));
        }
        MF_TRY(add_piece(&w->cuts, start | match, end));
        done = from = last_end = end;
    }
    if (done != high) {
        MF_TRY(add_piece(&w->cuts, done | gap, high));
    }
    mf_matcher_end_piece(&w->matcher, high);
    return MF_OK;
}

static mf_status keep_cuts(mf_pretokens *w, mf_split_behavior behavior)
{
    mf_piece_list *next = &w->next;
    size_t n = w->cuts.size, begin = next->size;
    bool before = false; /* the cut before (after, when merging with the next) is a match */
    for (size_t k = 0; k < n; k++) {
        size_t i = behavior == MF_SPLIT_MERGED_WITH_NEXT ? n - 1 - k : k;
        bool matched = w->cuts.data[i].start & MATCH_BIT;
        uint32_t start = w->cuts.data[i].start & ~MATCH_BIT, end = w->cuts.data[i].end;
        mf_piece *last = next->size > begin ? &next->data[next->size - 1] : NULL;
        bool joins = false;
        switch (behavior) {
        case MF_SPLIT_REMOVED:
            if (matched) {
                continue;
            }
            break;
        case MF_SPLIT_CONTIGUOUS:
            joins = last && matched == before;
            break;
        case MF_SPLIT_MERGED_WITH_PREVIOUS:
        case MF_SPLIT_MERGED_WITH_NEXT:
            joins = last && matched && !before;
            break;
        case MF_SPLIT_ISOLATED:
            break;
        }
        if (joins && behavior == MF_SPLIT_MERGED_WITH_NEXT) {
            last->start = start;
        } else if (joins) {
            last->end = end;
        } else {
            MF_TRY(add_piece(next, start, end));
        }
        before = matched;
    }
    if (behavior == MF_SPLIT_MERGED_WITH_NEXT) {
        for (size_t i = begin, j = next->size; i + 1 < j; i++) {
            mf_piece swap = next->data[i];
            next->data[i] = next->data[--j];
            next->data[j] = swap;
        }
    }
    /* Empty matches leave empty pieces; none goes on. */
    size_t kept = begin;
    for (size_t i = begin; i < next->size; i++) {
        if (next->data[i].start < next->data[i].end) {
            next->data[kept++] = next->data[i];
        }
    }
    next->size = kept;
    return MF_OK;
}

static mf_status split(mf_pretokens *w, const mf_pretokenizer_step *step)
{
    mf_pattern_map(step->pattern, w->points, w->num_points, w->symbols);
    MF_TRY(mf_matcher_begin(&w->matcher, step->pattern, w->symbols, w->num_points));
    w->next.size = 0;
    for (size_t i = 0; i < w->pieces.size; i++) {
        MF_TRY(find_cuts(w, step, w->pieces.data[i].start, w->pieces.data[i].end));
        MF_TRY(keep_cuts(w, step->behavior));
    }
    w->steps += w->matcher.steps;
    mf_piece_list swap = w->pieces;
    w->pieces = w->next;
    w->next = swap;
    return MF_OK;
}

static mf_status put_blanks(mf_pretokens *w, uint32_t blank, bool first_only)
{
    size_t need = w->num_points + w->pieces.size;
    if (need > w->other_capacity) {
        uint32_t *points = mf_resize_array(w->other_points, need, sizeof *points);
        if (!points) {
            return MF_ERR_NOMEM;
        }
        w->other_points = points;
        w->other_capacity = need;
    }
    size_t n = 0;
    for (size_t i = 0; i < w->pieces.size; i++) {
        mf_piece *piece = &w->pieces.data[i];
        size_t start = n, size = piece->end - piece->start;
        if (w->points[piece->start] != blank && !(first_only && piece->start > 0)) {
            w->other_points[n++] = blank;
        }
        memcpy(w->other_points + n, w->points + piece->start, size * sizeof *w->points);
        n += size;
        *piece = (mf_piece){ (uint32_t)start, (uint32_t)n };
    }
    MF_TRY(reserve_points(w, n));
    if (n > 0) {
        memcpy(w->points, w->other_points, n * sizeof *w->points);
    }
    w->num_points = n;
    return MF_OK;
}

static void write_blanks(mf_pretokens *w, uint32_t blank)
{
    for (size_t i = 0; i < w->num_points; i++) {
        w->points[i] = w->points[i] == ' ' ? blank : w->points[i];
    }
}

mf_status mf_pretokenizer_run(const mf_pretokenizer *pre, const char *text, size_t size, bool begins, mf_pretokens *out)
{
    out->pieces.size = 0;
    out->num_points = 0;
    out->steps = 0;
    /* Positions carry a bit, and a space may come before each character. */
    if (size >= MATCH_BIT / 4) {
        return MF_ERR_LIMIT;
    }
    MF_TRY(reserve_points(out, size));
    for (size_t at = 0; at < size;) {
        out->points[out->num_points++] = mf_utf8_next(text, &at);
    }
    MF_TRY(add_unless_empty(&out->pieces, 0, out->num_points));
    for (size_t i = 0; i < pre->num_steps && out->pieces.size > 0; i++) {
        const mf_pretokenizer_step *step = &pre->steps[i];
        if (step->blank) {
            write_blanks(out, step->blank);
        }
        if (step->prefix == MF_PREFIX_ALWAYS || (step->prefix == MF_PREFIX_FIRST && begins)) {
            MF_TRY(put_blanks(out, step->blank ? step->blank : ' ', step->prefix == MF_PREFIX_FIRST));
        }
        if (step->pattern) {
            MF_TRY(split(out, step));
        }
    }
    return MF_OK;
}

void mf_pretokens_close(mf_pretokens *out)
{
    mf_free(out->points);
    mf_free(out->other_points);
    mf_free(out->symbols);
    mf_free(out->pieces.data);
    mf_free(out->next.data);
    mf_free(out->cuts.data);
    mf_matcher_close(&out->matcher);
    *out = (mf_pretokens){ 0 };
}

void mf_pretokenizer_close(mf_pretokenizer *pre)
{
    for (size_t i = 0; i < pre->num_steps; i++) {
        mf_pattern_close(&pre->steps[i].pattern);
    }
    *pre = (mf_pretokenizer){ 0 };
}
