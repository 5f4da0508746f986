/* pattern_match.c - backtracking with a memory of what has failed: see pattern.h.
 *
 * A state is an instruction at a position.  Whether the rest of the pattern matches from a state does not depend on how
 * it was reached, so a state that was left without a match need never be tried again, by this search or a later one in
 * the same piece.  A state is marked when it is entered; after a match the marks of abandoned states are true, and
 * those of the match's own states lie before its end or at it: the marks at its end are wiped, those before are never
 * asked again. Inside a lookahead "match" means reaching its LOOK_END; as the position then goes back, the states on
 * the way there are kept on a trail and re-marked as ones that succeed. */
#include <string.h>

#include "base/sys.h"
#include "text/pattern_impl.h"

enum { ENTRY_ALTERNATIVE = -2, NO_LOOK = -1 };

struct mf_match_entry {
    uint32_t pc, position;
    uint32_t trail;
    int32_t look; /* ENTRY_ALTERNATIVE, or for an open lookahead the index of the one around it (NO_LOOK = none) */
};

struct mf_match_mark {
    uint32_t position;
    int32_t memo;
};

mf_status mf_matcher_begin(mf_matcher *m, const mf_pattern *pattern, const uint8_t *symbols, size_t length)
{
    m->pattern = pattern;
    m->symbols = symbols;
    m->steps = 0;
    size_t words;
    /* Positions are kept in 32 bits. */
    if (length >= UINT32_MAX / 2 || !mf_mul_ok(length + 1, pattern->memo_words, &words)) {
        return MF_ERR_LIMIT;
    }
    /* Lookaheads keep their place in 31 bits. */
    m->stack_limit = length < INT32_MAX / 16 - 512 ? 4096 + (length + 1) * 16 : INT32_MAX;
    if (words > m->memo_capacity) {
        mf_free(m->memo);
        m->memo_capacity = 0;
        m->memo = mf_alloc_array(words, sizeof *m->memo);
        if (!m->memo) {
            return MF_ERR_NOMEM;
        }
        m->memo_capacity = words;
    } else if (words > 0) {
        memset(m->memo, 0, words * sizeof *m->memo);
    }
    return MF_OK;
}

void mf_matcher_close(mf_matcher *m)
{
    mf_free(m->memo);
    mf_free(m->stack);
    mf_free(m->trail);
    *m = (mf_matcher){ 0 };
}

static void wipe_marks(mf_matcher *m, size_t position)
{
    size_t words = m->pattern->memo_words;
    if (words > 0) {
        memset(m->memo + position * words, 0, words * sizeof *m->memo);
    }
}

void mf_matcher_end_piece(mf_matcher *m, size_t high)
{
    /* The next piece begins where this one ends, and there "end of text" is no longer true. */
    wipe_marks(m, high);
}

static uint64_t *memo_word(mf_matcher *m, size_t position, int32_t bit)
{
    return &m->memo[position * m->pattern->memo_words + (size_t)bit / 64];
}

static bool test_mark(mf_matcher *m, size_t position, int32_t bit)
{
    return *memo_word(m, position, bit) >> (bit % 64) & 1;
}

/* Returns whether it was marked already. */
static bool mark(mf_matcher *m, size_t position, int32_t bit)
{
    uint64_t *word = memo_word(m, position, bit), mask = (uint64_t)1 << (bit % 64);
    bool was = *word & mask;
    *word |= mask;
    return was;
}

static mf_status push(mf_matcher *m, size_t pc, size_t position, int32_t look)
{
    if (m->stack_size == m->stack_capacity) {
        if (m->stack_size >= m->stack_limit) {
            return MF_ERR_LIMIT;
        }
        size_t capacity = m->stack_capacity ? m->stack_capacity * 2 : 256;
        mf_match_entry *stack = mf_resize_array(m->stack, capacity, sizeof *stack);
        if (!stack) {
            return MF_ERR_NOMEM;
        }
        m->stack = stack;
        m->stack_capacity = capacity;
    }
    m->stack[m->stack_size++] = (mf_match_entry){ (uint32_t)pc, (uint32_t)position, (uint32_t)m->trail_size, look };
    return MF_OK;
}

static mf_status push_trail(mf_matcher *m, size_t position, int32_t memo)
{
    if (m->trail_size == m->trail_capacity) {
        size_t capacity = m->trail_capacity ? m->trail_capacity * 2 : 64;
        mf_match_mark *trail = mf_resize_array(m->trail, capacity, sizeof *trail);
        if (!trail) {
            return MF_ERR_NOMEM;
        }
        m->trail = trail;
        m->trail_capacity = capacity;
    }
    m->trail[m->trail_size++] = (mf_match_mark){ (uint32_t)position, memo };
    return MF_OK;
}

static bool in_set(const mf_matcher *m, size_t position, int32_t set)
{
    return m->pattern->symbol_sets[m->symbols[position]] >> set & 1;
}

static bool can_begin(const mf_matcher *m, size_t pc, size_t position, size_t high)
{
    const mf_first *first = &m->pattern->first[pc];
    uint8_t symbol;
    if (first->empty || position == high) {
        return first->empty;
    }
    symbol = m->symbols[position];
    return first->symbols[symbol / 64] >> (symbol % 64) & 1;
}

static bool assertion_holds(const mf_matcher *m, mf_assertion kind, size_t low, size_t high, size_t at)
{
    const mf_pattern *p = m->pattern;
    switch (kind) {
    case MF_AT_LINE_BEGIN:
        return at == low || (at < high && in_set(m, at - 1, p->newline_set));
    case MF_AT_LINE_END:
        return at == high || in_set(m, at, p->newline_set);
    case MF_AT_TEXT_BEGIN:
        return at == low;
    case MF_AT_TEXT_END:
        return at == high;
    case MF_AT_LAST_LINE_END:
        return at == high || (at + 1 == high && in_set(m, at, p->newline_set));
    case MF_AT_WORD_EDGE:
    case MF_AT_NO_WORD_EDGE: {
        bool before = at > low && in_set(m, at - 1, p->word_set);
        bool after = at < high && in_set(m, at, p->word_set);
        return (before != after) == (kind == MF_AT_WORD_EDGE);
    }
    }
    return false;
}

/* Tries to match at `start`. */
static mf_status match_at(mf_matcher *m, size_t low, size_t high, size_t start, bool *found, size_t *end)
{
    const mf_pattern *pattern = m->pattern;
    size_t pc = 0, at = start;
    int32_t look = NO_LOOK;
    m->stack_size = m->trail_size = 0;
    for (;;) {
        const mf_instruction *in = &pattern->code[pc];
        bool failed = false, body_done = false;
        m->steps++;
        switch ((mf_op)in->op) {
        case MF_OP_SET:
            failed = at == high || !in_set(m, at, in->set);
            at++;
            pc++;
            break;
        case MF_OP_SPLIT: {
            if (in->in_look && test_mark(m, at, in->memo + 1)) {
                body_done = true;
                break;
            }
            if (mark(m, at, in->memo)) {
                failed = true;
                break;
            }
            if (in->in_look) {
                MF_TRY(push_trail(m, at, in->memo));
            }
            size_t first = pc + (size_t)(ptrdiff_t)in->a, second = pc + (size_t)(ptrdiff_t)in->b;
            bool second_can = can_begin(m, second, at, high);
            if (!can_begin(m, first, at, high)) {
                failed = !second_can;
                pc = second;
                break;
            }
            if (second_can) {
                MF_TRY(push(m, second, at, ENTRY_ALTERNATIVE));
            }
            pc = first;
            break;
        }
        case MF_OP_JUMP:
            pc += (size_t)(ptrdiff_t)in->a;
            break;
        case MF_OP_RUN: {
            size_t begin = at;
            while (at < high && in_set(m, at, in->set)) {
                at++;
            }
            m->steps += at - begin;
            pc++;
            break;
        }
        case MF_OP_POSSESS:
            while (!(failed = mark(m, at, in->memo)) && at < high && in_set(m, at, in->set)) {
                at++;
                m->steps++;
            }
            pc++;
            break;
        case MF_OP_TAKE:
            at += at < high && in_set(m, at, in->set);
            pc++;
            break;
        case MF_OP_LOOK:
            MF_TRY(push(m, pc, at, look));
            look = (int32_t)m->stack_size - 1;
            pc++;
            break;
        case MF_OP_LOOK_END:
            body_done = true;
            break;
        case MF_OP_BEHIND:
            failed = (at > low && in_set(m, at - 1, in->set)) == (bool)in->flag;
            pc++;
            break;
        case MF_OP_ASSERT:
            failed = !assertion_holds(m, (mf_assertion)in->flag, low, high, at);
            pc++;
            break;
        case MF_OP_MATCH:
            wipe_marks(m, at);
            *found = true;
            *end = at;
            return MF_OK;
        }
        if (body_done) {
            mf_match_entry around = m->stack[look];
            for (size_t i = around.trail; i < m->trail_size; i++) {
                mf_match_mark passed = m->trail[i];
                *memo_word(m, passed.position, passed.memo) &= ~((uint64_t)1 << (passed.memo % 64));
                mark(m, passed.position, passed.memo + 1);
            }
            m->trail_size = around.trail;
            m->stack_size = (size_t)look;
            look = around.look;
            failed = pattern->code[around.pc].flag;
            pc = around.pc + (size_t)(ptrdiff_t)pattern->code[around.pc].a;
            at = around.position;
        }
        while (failed) {
            if (m->stack_size == 0) {
                return MF_OK;
            }
            mf_match_entry entry = m->stack[--m->stack_size];
            m->trail_size = entry.trail;
            pc = entry.pc;
            at = entry.position;
            failed = false;
            if (entry.look != ENTRY_ALTERNATIVE) {
                /* The lookahead's body has no more ways to match. */
                look = entry.look;
                failed = !pattern->code[pc].flag;
                pc += (size_t)(ptrdiff_t)pattern->code[pc].a;
            }
        }
    }
}

mf_status mf_matcher_find(mf_matcher *m, size_t low, size_t high, size_t from, bool *found, size_t *start, size_t *end)
{
    *found = false;
    for (size_t at = from; at <= high; at++) {
        m->steps++;
        if (!can_begin(m, 0, at, high)) {
            continue;
        }
        MF_TRY(match_at(m, low, high, at, found, end));
        if (*found) {
            *start = at;
            return MF_OK;
        }
    }
    return MF_OK;
}
