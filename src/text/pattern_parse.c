/* pattern_parse.c - a pattern's text into code, in one pass.
 *
 * Jumps are relative, so a finished piece of code can be moved and copied.  Groups are kept on a stack of frames; a
 * repeat or an alternative wraps the code that has just been written. */
#include <string.h>

#include "base/sys.h"
#include "text/pattern_impl.h"
#include "text/utf8.h"

typedef enum group_kind { GROUP_PLAIN, GROUP_AHEAD, GROUP_NOT_AHEAD, GROUP_BEHIND, GROUP_NOT_BEHIND } group_kind;

typedef struct frame {
    group_kind kind;
    int32_t start;       /* of the group's code, its LOOK included */
    int32_t alternative; /* start of the alternative being written */
    int32_t jumps; /* last JUMP to the group's end, each JUMP's `a` being the index of the one before; -1 = none */
    bool caseless; /* outside this group */
} frame;

typedef struct parser {
    mf_pattern *pattern;
    mf_pattern_reader *reader;
    frame frames[MF_PATTERN_MAX_DEPTH];
    size_t depth;
    size_t looks;          /* how many of the frames are lookaheads */
    int32_t atom;          /* start of what a repeat would apply to; -1 = nothing */
    bool atom_is_set;      /* it is one SET */
    bool atom_is_fixed;    /* a lookaround or an assertion: no repeats */
    uint32_t last_literal; /* the character just before, for folds of two characters; 0 = none */
} parser;

static mf_status fail(parser *p, mf_status status, const char *message)
{
    return mf_pattern_fail(p->reader, status, message);
}

static int32_t code_size(const parser *p)
{
    return (int32_t)p->pattern->size;
}

static mf_status emit(parser *p, mf_instruction instruction)
{
    instruction.in_look = p->looks > 0;
    return mf_pattern_emit(p->pattern, p->reader, instruction);
}

/* Moves the code from `at` to the end up by one and puts an instruction there. */
static mf_status insert(parser *p, int32_t at, mf_instruction instruction)
{
    MF_TRY(emit(p, instruction));
    mf_instruction *code = p->pattern->code;
    mf_instruction added = code[code_size(p) - 1];
    memmove(code + at + 1, code + at, (size_t)(code_size(p) - 1 - at) * sizeof *code);
    code[at] = added;
    return MF_OK;
}

static mf_status emit_set(parser *p, mf_charset *set)
{
    uint8_t index = 0;
    MF_TRY(mf_pattern_use_set(p->pattern, p->reader, set, &index));
    p->atom = code_size(p);
    p->atom_is_set = true;
    p->atom_is_fixed = false;
    return emit(p, (mf_instruction){ .op = MF_OP_SET, .set = index });
}

/* Oniguruma matches "ss" against a sharp s and "fi" against its ligature when case is ignored. */
static bool folds_to_one(uint32_t first, uint32_t second)
{
    static const char pairs[][2] = { { 's', 's' }, { 's', 't' }, { 'f', 'f' }, { 'f', 'i' }, { 'f', 'l' } };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if ((first | 0x20) == (uint32_t)pairs[i][0] && (second | 0x20) == (uint32_t)pairs[i][1]) {
            return true;
        }
    }
    return false;
}

static mf_status parse_literal(parser *p, uint32_t c)
{
    if (p->reader->caseless && folds_to_one(p->last_literal, c)) {
        return fail(p, MF_ERR_UNSUPPORTED, "a pair of letters that has a one-letter form, where case is ignored");
    }
    mf_charset set = { 0 };
    mf_status status = mf_pattern_add_literal(p->reader, &set, c);
    mf_charset_settle(&set);
    if (status == MF_OK) {
        status = emit_set(p, &set);
    }
    mf_charset_close(&set);
    p->last_literal = c;
    return status;
}

static mf_status parse_dot(parser *p)
{
    mf_charset set = { 0 };
    mf_status status = mf_charset_add(&set, '\n', '\n');
    if (status == MF_OK) {
        status = mf_charset_invert(&set);
    }
    if (status != MF_OK) {
        mf_charset_close(&set);
        return fail(p, status, "out of memory");
    }
    p->reader->at++;
    status = emit_set(p, &set);
    mf_charset_close(&set);
    return status;
}

static mf_status emit_assertion(parser *p, mf_assertion kind)
{
    mf_pattern *pattern = p->pattern;
    bool word = kind == MF_AT_WORD_EDGE || kind == MF_AT_NO_WORD_EDGE;
    int32_t *wanted = word ? &pattern->word_set : &pattern->newline_set;
    if (*wanted < 0) {
        mf_charset set = { 0 };
        uint8_t index = 0;
        mf_status status = word ? mf_charset_add_word(&set) : mf_charset_add(&set, '\n', '\n');
        mf_charset_settle(&set);
        status =
            status == MF_OK ? mf_pattern_use_set(pattern, p->reader, &set, &index) : fail(p, status, "out of memory");
        mf_charset_close(&set);
        MF_TRY(status);
        *wanted = index;
    }
    p->atom = code_size(p);
    p->atom_is_set = false;
    p->atom_is_fixed = true;
    return emit(p, (mf_instruction){ .op = MF_OP_ASSERT, .flag = (uint8_t)kind });
}

static mf_status parse_escape(parser *p)
{
    static const struct {
        char letter;
        mf_assertion kind;
    } assertions[] = { { 'A', MF_AT_TEXT_BEGIN },
                       { 'z', MF_AT_TEXT_END },
                       { 'Z', MF_AT_LAST_LINE_END },
                       { 'b', MF_AT_WORD_EDGE },
                       { 'B', MF_AT_NO_WORD_EDGE } };
    mf_pattern_reader *reader = p->reader;
    char letter = reader->at + 1 < reader->size ? reader->text[reader->at + 1] : '\0';
    for (size_t i = 0; i < sizeof assertions / sizeof *assertions; i++) {
        if (letter == assertions[i].letter) {
            reader->at += 2;
            return emit_assertion(p, assertions[i].kind);
        }
    }
    mf_charset set = { 0 };
    int64_t single = -1;
    mf_status status = mf_pattern_read_escape(reader, &set, &single);
    mf_charset_settle(&set);
    if (status == MF_OK && single >= 0 && reader->caseless && folds_to_one(p->last_literal, (uint32_t)single)) {
        status = fail(p, MF_ERR_UNSUPPORTED, "a pair of letters that has a one-letter form, where case is ignored");
    }
    if (status == MF_OK) {
        status = emit_set(p, &set);
    }
    mf_charset_close(&set);
    p->last_literal = single >= 0 ? (uint32_t)single : 0;
    return status;
}

static mf_status open_group(parser *p)
{
    static const struct {
        const char *text;
        group_kind kind;
        bool sets_case, caseless;
    } openings[] = {
        { "(?:", GROUP_PLAIN, false, false },       { "(?i:", GROUP_PLAIN, true, true },
        { "(?-i:", GROUP_PLAIN, true, false },      { "(?=", GROUP_AHEAD, false, false },
        { "(?!", GROUP_NOT_AHEAD, false, false },   { "(?<=", GROUP_BEHIND, false, false },
        { "(?<!", GROUP_NOT_BEHIND, false, false },
    };
    mf_pattern_reader *reader = p->reader;
    const char *s = reader->text + reader->at;
    size_t left = reader->size - reader->at;
    if (p->depth == MF_PATTERN_MAX_DEPTH) {
        return fail(p, MF_ERR_UNSUPPORTED, "groups nested too deeply");
    }
    frame f = { .kind = GROUP_PLAIN, .start = code_size(p), .jumps = -1, .caseless = reader->caseless };
    size_t length = 1;
    if (left > 1 && s[1] == '?') {
        size_t i = 0, count = sizeof openings / sizeof *openings;
        while (i < count &&
               (strlen(openings[i].text) > left || memcmp(s, openings[i].text, strlen(openings[i].text)) != 0)) {
            i++;
        }
        if (i == count) {
            return fail(p, MF_ERR_UNSUPPORTED, "this kind of group");
        }
        length = strlen(openings[i].text);
        f.kind = openings[i].kind;
        if (openings[i].sets_case) {
            reader->caseless = openings[i].caseless;
        }
    }
    if (f.kind == GROUP_AHEAD || f.kind == GROUP_NOT_AHEAD) {
        MF_TRY(emit(p, (mf_instruction){ .op = MF_OP_LOOK, .flag = f.kind == GROUP_NOT_AHEAD }));
        p->looks++;
    }
    reader->at += length;
    f.alternative = code_size(p);
    p->frames[p->depth++] = f;
    p->atom = -1;
    p->last_literal = 0;
    return MF_OK;
}

static mf_status next_alternative(parser *p)
{
    frame *f = &p->frames[p->depth - 1];
    MF_TRY(insert(p, f->alternative, (mf_instruction){ .op = MF_OP_SPLIT, .a = 1 }));
    MF_TRY(emit(p, (mf_instruction){ .op = MF_OP_JUMP, .a = f->jumps }));
    f->jumps = code_size(p) - 1;
    p->pattern->code[f->alternative].b = code_size(p) - f->alternative;
    f->alternative = code_size(p);
    p->atom = -1;
    p->last_literal = 0;
    return MF_OK;
}

static mf_status close_group(parser *p)
{
    frame *f = &p->frames[--p->depth];
    mf_instruction *code = p->pattern->code;
    for (int32_t at = f->jumps; at >= 0;) {
        int32_t before = code[at].a;
        code[at].a = code_size(p) - at;
        at = before;
    }
    p->reader->caseless = f->caseless;
    p->last_literal = 0;
    p->atom = f->start;
    p->atom_is_set = false;
    p->atom_is_fixed = f->kind != GROUP_PLAIN;
    if (f->kind == GROUP_AHEAD || f->kind == GROUP_NOT_AHEAD) {
        MF_TRY(emit(p, (mf_instruction){ .op = MF_OP_LOOK_END }));
        p->looks--;
        p->pattern->code[f->start].a = code_size(p) - f->start;
    } else if (f->kind == GROUP_BEHIND || f->kind == GROUP_NOT_BEHIND) {
        if (code_size(p) != f->start + 1 || code[f->start].op != MF_OP_SET) {
            return fail(p, MF_ERR_UNSUPPORTED, "a lookbehind of anything but one character");
        }
        code[f->start].op = MF_OP_BEHIND;
        code[f->start].flag = f->kind == GROUP_NOT_BEHIND;
    } else {
        p->atom_is_set = code_size(p) == f->start + 1 && code[f->start].op == MF_OP_SET;
    }
    return MF_OK;
}

/* Can the code from `start` to the end be passed without consuming anything? */
static bool can_be_empty(const parser *p, int32_t start)
{
    bool seen[MF_PATTERN_MAX_CODE + 1] = { false };
    int16_t stack[2 * MF_PATTERN_MAX_CODE];
    size_t top = 0;
    stack[top++] = (int16_t)start;
    while (top > 0) {
        int32_t pc = stack[--top];
        if (pc == code_size(p)) {
            return true;
        }
        if (seen[pc]) {
            continue;
        }
        seen[pc] = true;
        const mf_instruction *in = &p->pattern->code[pc];
        switch ((mf_op)in->op) {
        case MF_OP_SET:
            break;
        case MF_OP_SPLIT:
            stack[top++] = (int16_t)(pc + in->a);
            stack[top++] = (int16_t)(pc + in->b);
            break;
        case MF_OP_JUMP:
        case MF_OP_LOOK:
            stack[top++] = (int16_t)(pc + in->a);
            break;
        default:
            stack[top++] = (int16_t)(pc + 1);
            break;
        }
    }
    return false;
}

typedef struct repeat {
    int32_t least, most; /* most < 0: without end */
    bool lazy, possessive;
} repeat;

/* Reads "{n}", "{n,}", "{,m}", "{n,m}" at reader->at; *found is false for a '{' that is only a character. */
static mf_status read_interval(parser *p, repeat *r, bool *found)
{
    mf_pattern_reader *reader = p->reader;
    size_t at = reader->at + 1;
    int32_t numbers[2] = { -1, -1 };
    int which = 0;
    *found = false;
    for (; at < reader->size && reader->text[at] != '}'; at++) {
        char c = reader->text[at];
        if (c == ',' && which == 0) {
            which = 1;
        } else if (c >= '0' && c <= '9') {
            int32_t value = (numbers[which] < 0 ? 0 : numbers[which]) * 10 + (c - '0');
            numbers[which] = value;
            if (value > MF_PATTERN_MAX_REPEAT) {
                return fail(p, MF_ERR_UNSUPPORTED, "a repeat count this large");
            }
        } else {
            return MF_OK;
        }
    }
    if (at == reader->size || (numbers[0] < 0 && numbers[1] < 0)) {
        return MF_OK;
    }
    *found = true;
    reader->at = at + 1;
    r->least = numbers[0] < 0 ? 0 : numbers[0];
    r->most = which == 0 ? numbers[0] : numbers[1];
    if (r->most >= 0 && r->most < r->least) {
        return fail(p, MF_ERR_UNSUPPORTED, "a repeat whose end comes before its start");
    }
    return MF_OK;
}

/* Appends a copy of `n` instructions. */
static mf_status append(parser *p, const mf_instruction *code, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        MF_TRY(mf_pattern_emit(p->pattern, p->reader, code[i]));
    }
    return MF_OK;
}

static mf_status emit_split(parser *p, bool lazy, int32_t inside, int32_t outside)
{
    return emit(p, (mf_instruction){ .op = MF_OP_SPLIT, .a = lazy ? outside : inside, .b = lazy ? inside : outside });
}

/* Rewrites the atom, whose code has been taken off, as its repeat. */
static mf_status emit_repeat(parser *p, const repeat *r, const mf_instruction *atom, int32_t n)
{
    for (int32_t i = 0; i < r->least; i++) {
        MF_TRY(append(p, atom, (size_t)n));
    }
    if (r->possessive) {
        return emit(p, (mf_instruction){ .op = r->most < 0 ? MF_OP_POSSESS : MF_OP_TAKE, .set = atom->set });
    }
    if (r->most < 0) {
        MF_TRY(emit_split(p, r->lazy, 1, n + 2));
        MF_TRY(append(p, atom, (size_t)n));
        return emit(p, (mf_instruction){ .op = MF_OP_JUMP, .a = -(n + 1) });
    }
    int32_t optional = r->most - r->least;
    for (int32_t i = 0; i < optional; i++) {
        MF_TRY(emit_split(p, r->lazy, 1, (optional - i) * (n + 1)));
        MF_TRY(append(p, atom, (size_t)n));
    }
    return MF_OK;
}

/* At a character that may be a repeat of the last atom; *found is false when it is none. */
static mf_status parse_repeat(parser *p, bool *found)
{
    mf_pattern_reader *reader = p->reader;
    repeat r = { 0, -1, false, false };
    char c = reader->text[reader->at];
    bool interval = c == '{';
    if (interval) {
        MF_TRY(read_interval(p, &r, found));
        if (!*found) {
            return MF_OK;
        }
    } else {
        *found = true;
        r.least = c == '+';
        r.most = c == '?' ? 1 : -1;
        reader->at++;
    }
    if (p->atom < 0) {
        return fail(p, MF_ERR_UNSUPPORTED, "a repeat of nothing");
    }
    if (p->atom_is_fixed) {
        return fail(p, MF_ERR_UNSUPPORTED, "a repeat of an assertion");
    }
    char next = reader->at < reader->size ? reader->text[reader->at] : '\0';
    if (next == '?' || (next == '+' && !interval)) {
        if (next == '?' && interval && r.least == r.most) {
            return fail(p, MF_ERR_UNSUPPORTED, "a lazy repeat of a fixed count");
        }
        r.lazy = next == '?';
        r.possessive = next == '+';
        reader->at++;
    }
    if (r.possessive && (!p->atom_is_set || p->looks > 0)) {
        return fail(p, MF_ERR_UNSUPPORTED, "a possessive repeat of a group or inside a lookahead");
    }
    int32_t start = p->atom, n = code_size(p) - start;
    /* Engines differ in what an empty round means for the rounds after it. */
    if ((r.most < 0 || r.most > 1) && can_be_empty(p, start)) {
        return fail(p, MF_ERR_UNSUPPORTED, "a repeat of something that can be empty");
    }
    mf_instruction *atom = mf_alloc_array((size_t)n + 1, sizeof *atom);
    if (!atom) {
        return fail(p, MF_ERR_NOMEM, "out of memory");
    }
    if (n > 0) {
        memcpy(atom, p->pattern->code + start, (size_t)n * sizeof *atom);
    }
    p->pattern->size = (size_t)start;
    mf_status status = emit_repeat(p, &r, atom, n);
    mf_free(atom);
    MF_TRY(status);
    p->atom_is_set = false;
    p->last_literal = 0;
    /* "x{2}+" repeats the interval; two of the other kind in a row are more likely a mistake. */
    next = reader->at < reader->size ? reader->text[reader->at] : '\0';
    if (next == '*' || next == '?' || (next == '+' && !(interval && !r.lazy))) {
        return fail(p, MF_ERR_UNSUPPORTED, "two repeats in a row");
    }
    return MF_OK;
}

static mf_status parse_one(parser *p)
{
    mf_pattern_reader *reader = p->reader;
    char c = reader->text[reader->at];
    mf_status status = MF_OK;
    bool found = false;
    switch (c) {
    case '*':
    case '+':
    case '?':
    case '{':
        MF_TRY(parse_repeat(p, &found));
        if (found) {
            return MF_OK;
        }
        break;
    case '|':
        reader->at++;
        return next_alternative(p);
    case '(':
        return open_group(p);
    case ')':
        if (p->depth == 1) {
            return fail(p, MF_ERR_FORMAT, "')' without '('");
        }
        reader->at++;
        return close_group(p);
    case '.':
        p->last_literal = 0;
        return parse_dot(p);
    case '^':
        p->last_literal = 0;
        reader->at++;
        return emit_assertion(p, MF_AT_LINE_BEGIN);
    case '$':
        p->last_literal = 0;
        reader->at++;
        return emit_assertion(p, MF_AT_LINE_END);
    case '\\':
        return parse_escape(p);
    case '[': {
        mf_charset set = { 0 };
        p->last_literal = 0;
        status = mf_pattern_read_class(reader, &set);
        if (status == MF_OK) {
            status = emit_set(p, &set);
        }
        mf_charset_close(&set);
        return status;
    }
    default:
        break;
    }
    return parse_literal(p, mf_utf8_next(reader->text, &reader->at));
}

mf_status mf_pattern_parse(mf_pattern *pattern, mf_pattern_reader *reader)
{
    parser p = { .pattern = pattern, .reader = reader, .depth = 1, .atom = -1 };
    p.frames[0] = (frame){ .kind = GROUP_PLAIN, .jumps = -1 };
    while (reader->at < reader->size) {
        MF_TRY(parse_one(&p));
    }
    if (p.depth != 1) {
        return fail(&p, MF_ERR_FORMAT, "'(' without ')'");
    }
    return close_group(&p);
}
