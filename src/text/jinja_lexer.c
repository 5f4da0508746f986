/* jinja_lexer.c - tokens: see jinja_lexer.h.
 *
 * trim_blocks and lstrip_blocks are on and one final line break is dropped, as transformers sets jinja2 up. */
#include "text/jinja_lexer.h"

#include <stdlib.h>
#include <string.h>

#include "base/hex.h"
#include "text/jinja_text.h"

mf_status jinja_lexer_open(jinja_lexer *lexer, jinja_parse *parse, const char *source, size_t size)
{
    *lexer = (jinja_lexer){ .parse = parse, .line = 1, .line_starting = true };
    char *copy = mf_arena_alloc(parse->arena, size ? size : 1);
    if (!copy) {
        return jinja_parse_no_memory(parse);
    }
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        if (source[i] == '\r') {
            copy[n++] = '\n';
            i += i + 1 < size && source[i + 1] == '\n';
        } else {
            copy[n++] = source[i];
        }
    }
    if (n && copy[n - 1] == '\n') {
        n--;
    }
    lexer->data = copy;
    lexer->size = n;
    return MF_OK;
}

static uint32_t line_at(jinja_lexer *lx, size_t pos)
{
    for (; lx->line_pos < pos; lx->line_pos++) {
        lx->line += lx->data[lx->line_pos] == '\n';
    }
    return lx->line;
}

static bool at(const jinja_lexer *lx, size_t pos, const char *text)
{
    size_t n = strlen(text);
    return n <= lx->size - pos && memcmp(lx->data + pos, text, n) == 0;
}

static size_t skip_space(const jinja_lexer *lx, size_t pos)
{
    while (pos < lx->size) {
        size_t next = pos;
        if (!jinja_is_space(jinja_next_char(lx->data, lx->size, &next))) {
            break;
        }
        pos = next;
    }
    return pos;
}

static bool all_space(const jinja_lexer *lx, size_t start, size_t end)
{
    while (start < end) {
        if (!jinja_is_space(jinja_next_char(lx->data, end, &start))) {
            return false;
        }
    }
    return true;
}

/* Where the text before a tag ends: `sign` is the tag's - or +, or 0. */
static size_t strip_before(const jinja_lexer *lx, size_t start, size_t end, char sign, bool variable)
{
    if (sign == '-') {
        while (end > start) {
            size_t before = end;
            if (!jinja_is_space(jinja_prev_char(lx->data, &before))) {
                break;
            }
            end = before;
        }
    } else if (sign != '+' && !variable) {
        size_t line = end;
        while (line > start && lx->data[line - 1] != '\n') {
            line--;
        }
        if ((line > start || lx->line_starting) && all_space(lx, line, end)) {
            return line;
        }
    }
    return end;
}

/* The end of a tag at pos, `close` with an optional sign: returns the position after it and the white space it eats,
 * or 0 when it is not there. */
static size_t tag_end(const jinja_lexer *lx, size_t pos, const char *close, bool variable)
{
    if (!variable && at(lx, pos, "+") && at(lx, pos + 1, close)) {
        return pos + 3;
    }
    if (at(lx, pos, "-") && at(lx, pos + 1, close)) {
        return skip_space(lx, pos + 3);
    }
    if (at(lx, pos, close)) {
        return pos + 2 + (!variable && at(lx, pos + 2, "\n"));
    }
    return 0;
}

static void move_to(jinja_lexer *lx, size_t pos)
{
    lx->pos = pos;
    lx->line_starting = pos > 0 && lx->data[pos - 1] == '\n';
}

/* {% raw %} at pos: the position after it, or 0. */
static size_t raw_begin(const jinja_lexer *lx, size_t pos)
{
    pos += 2;
    pos += at(lx, pos, "-") || at(lx, pos, "+");
    pos = skip_space(lx, pos);
    if (!at(lx, pos, "raw")) {
        return 0;
    }
    pos = skip_space(lx, pos + 3);
    if (at(lx, pos, "-%}")) {
        return skip_space(lx, pos + 3);
    }
    return at(lx, pos, "%}") ? pos + 2 : 0;
}

/* Finds {% endraw %} from pos: *start and *end of the tag and its sign. */
static bool raw_end(const jinja_lexer *lx, size_t pos, size_t *start, size_t *end, char *sign)
{
    for (; pos + 2 <= lx->size; pos++) {
        if (!at(lx, pos, "{%")) {
            continue;
        }
        size_t p = pos + 2;
        *sign = at(lx, p, "-") || at(lx, p, "+") ? lx->data[p] : 0;
        p = skip_space(lx, p + (*sign != 0));
        if (!at(lx, p, "endraw")) {
            continue;
        }
        *end = tag_end(lx, skip_space(lx, p + 6), "%}", false);
        if (*end) {
            *start = pos;
            return true;
        }
    }
    return false;
}

static void data_token(jinja_lexer *lx, jinja_token *token, size_t start, size_t end)
{
    token->type = JINJA_TOK_DATA;
    token->line = line_at(lx, start);
    token->data = lx->data + start;
    token->size = end - start;
}

static mf_status skip_comment(jinja_lexer *lx, size_t pos)
{
    if (pos >= lx->size) { /* jinja2 lets a comment that opens at the very end be */
        lx->pos = pos;
        return MF_OK;
    }
    const char *end = memmem(lx->data + pos, lx->size - pos, "#}", 2);
    if (!end) {
        return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, line_at(lx, pos), "missing end of comment");
    }
    size_t p = (size_t)(end - lx->data);
    p -= p > pos && (lx->data[p - 1] == '-' || lx->data[p - 1] == '+');
    move_to(lx, tag_end(lx, p, "#}", false));
    return MF_OK;
}

static mf_status next_in_text(jinja_lexer *lx, jinja_token *token, bool *found)
{
    size_t start = lx->pos;
    *found = true;
    if (start >= lx->size) {
        token->type = JINJA_TOK_EOF;
        token->line = line_at(lx, start);
        return MF_OK;
    }
    size_t p = start;
    while (p < lx->size && !at(lx, p, "{{") && !at(lx, p, "{%") && !at(lx, p, "{#")) {
        const char *brace = memchr(lx->data + p + 1, '{', lx->size - p - 1);
        p = brace ? (size_t)(brace - lx->data) : lx->size;
    }
    if (p >= lx->size) {
        data_token(lx, token, start, lx->size);
        lx->pos = lx->size;
        return MF_OK;
    }
    char open = lx->data[p + 1];
    char sign = at(lx, p + 2, "-") || at(lx, p + 2, "+") ? lx->data[p + 2] : 0;
    if (!lx->begin_pending) {
        size_t end = strip_before(lx, start, p, sign, open == '{');
        if (end > start) {
            data_token(lx, token, start, end);
            lx->pos = p;
            lx->begin_pending = true;
            return MF_OK;
        }
    }
    lx->pos = p;
    lx->begin_pending = false;
    size_t raw = open == '%' ? raw_begin(lx, p) : 0;
    if (raw) {
        size_t tag;
        size_t end;
        if (raw >= lx->size) {
            lx->pos = raw;
            *found = false;
            return MF_OK;
        }
        if (!raw_end(lx, raw, &tag, &end, &sign)) {
            return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, line_at(lx, p), "missing end of raw directive");
        }
        move_to(lx, raw);
        data_token(lx, token, raw, strip_before(lx, raw, tag, sign, false));
        move_to(lx, end);
        *found = token->size > 0;
        return MF_OK;
    }
    if (open == '#') {
        *found = false;
        return skip_comment(lx, p + 2 + (sign != 0));
    }
    token->type = open == '{' ? JINJA_TOK_VARIABLE_BEGIN : JINJA_TOK_BLOCK_BEGIN;
    token->line = line_at(lx, p);
    lx->mode = open == '{' ? JINJA_LEX_VARIABLE : JINJA_LEX_BLOCK;
    lx->pos = p + 2 + (sign != 0);
    return MF_OK;
}

/* ---- inside a tag ------------------------------------------------------------------------------------------------- */

static bool is_digit(const jinja_lexer *lx, size_t pos)
{
    return pos < lx->size && lx->data[pos] >= '0' && lx->data[pos] <= '9';
}

/* (\d+_)*\d+ at pos: the end, or pos when there is none. */
static size_t digits_end(const jinja_lexer *lx, size_t pos)
{
    size_t p = pos;
    while (is_digit(lx, p)) {
        do {
            p++;
        } while (is_digit(lx, p));
        if (p < lx->size && lx->data[p] == '_' && is_digit(lx, p + 1)) {
            p++;
        }
    }
    return p;
}

static size_t exponent_end(const jinja_lexer *lx, size_t pos)
{
    if (pos >= lx->size || (lx->data[pos] | 32) != 'e') {
        return pos;
    }
    size_t p = pos + 1;
    p += p < lx->size && (lx->data[p] == '+' || lx->data[p] == '-');
    size_t end = digits_end(lx, p);
    return end > p ? end : pos;
}

static size_t float_end(const jinja_lexer *lx, size_t pos)
{
    size_t whole = digits_end(lx, pos);
    if (whole == pos || (pos > 0 && lx->data[pos - 1] == '.')) {
        return pos;
    }
    size_t fraction = whole;
    if (whole < lx->size && lx->data[whole] == '.' && is_digit(lx, whole + 1)) {
        fraction = digits_end(lx, whole + 1);
    }
    size_t end = exponent_end(lx, fraction);
    return end > whole ? end : pos;
}

static bool is_base_digit(char c, int base)
{
    return mf_hex_digit(c) >= 0 && mf_hex_digit(c) < base;
}

/* Repeats (_?digit) from pos. */
static size_t run_end(const jinja_lexer *lx, size_t pos, int base)
{
    for (;;) {
        size_t p = pos + (pos < lx->size && lx->data[pos] == '_');
        if (p >= lx->size || !is_base_digit(lx->data[p], base)) {
            return pos;
        }
        pos = p + 1;
    }
}

static size_t integer_end(const jinja_lexer *lx, size_t pos)
{
    if (!is_digit(lx, pos)) {
        return pos;
    }
    if (lx->data[pos] != '0') {
        return run_end(lx, pos, 10);
    }
    char kind = pos + 1 < lx->size ? (char)(lx->data[pos + 1] | 32) : 0;
    int base = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' ? 16 : 0;
    if (base) {
        size_t end = run_end(lx, pos + 2, base);
        if (end > pos + 2) {
            return end;
        }
    }
    return run_end(lx, pos, 1);
}

static mf_status number_token(jinja_lexer *lx, jinja_token *token, size_t end, bool real)
{
    size_t n = end - lx->pos;
    bool ok = real ? jinja_parse_float(lx->data + lx->pos, n, &token->real)
                   : jinja_parse_int(lx->data + lx->pos, n, 0, &token->integer) == JINJA_PARSED;
    if (!ok) {
        return jinja_parse_fail(lx->parse, MF_ERR_UNSUPPORTED, token->line, "the number %.*s does not fit 64 bits",
                                n > 60 ? 60 : (int)n, lx->data + lx->pos);
    }
    token->type = real ? JINJA_TOK_FLOAT : JINJA_TOK_INTEGER;
    lx->pos = end;
    return MF_OK;
}

static size_t put_utf8(char *out, int32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (size_t i = n; i-- > 1; c >>= 6) {
        out[i] = (char)(0x80 | (c & 0x3f));
    }
    out[0] = (char)(lead[n] | c);
    return n;
}

/* One escape at s[*i], just after the backslash; writes at most 10 bytes.  false: malformed. */
static bool unescape(const char *s, size_t size, size_t *i, char *out, size_t *n)
{
    static const char from[] = "abfnrtv\\'\"";
    static const char to[] = "\a\b\f\n\r\t\v\\'\"";
    char c = s[*i];
    if (c == '\n') {
        (*i)++;
        return true;
    }
    const char *known = c ? strchr(from, c) : NULL;
    if (known) {
        out[(*n)++] = to[known - from];
        (*i)++;
        return true;
    }
    if (c >= '0' && c <= '7') {
        int32_t v = 0;
        for (int k = 0; k < 3 && *i < size && s[*i] >= '0' && s[*i] <= '7'; k++) {
            v = v * 8 + (s[(*i)++] - '0');
        }
        *n += put_utf8(out + *n, v);
        return true;
    }
    int width = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (width) {
        int64_t v = 0;
        (*i)++;
        for (int k = 0; k < width; k++, (*i)++) {
            int digit = *i < size ? mf_hex_digit(s[*i]) : -1;
            if (digit < 0) {
                return false;
            }
            v = v * 16 + digit;
        }
        if (v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) {
            return false;
        }
        *n += put_utf8(out + *n, (int32_t)v);
        return true;
    }
    if (c == 'N') {
        return false;
    }
    /* An unknown escape stays as written; jinja2 shows what is not ASCII as its escape then. */
    out[(*n)++] = '\\';
    if ((unsigned char)c < 0x80) {
        out[(*n)++] = c;
        (*i)++;
        return true;
    }
    unsigned v = (unsigned)jinja_next_char(s, size, i);
    int digits = v < 0x100 ? 2 : v < 0x10000 ? 4 : 8;
    out[(*n)++] = digits == 2 ? 'x' : digits == 4 ? 'u' : 'U';
    for (int k = digits - 1; k >= 0; k--) {
        out[(*n)++] = "0123456789abcdef"[v >> (4 * k) & 15];
    }
    return true;
}

static mf_status string_token(jinja_lexer *lx, jinja_token *token)
{
    const char *s = lx->data + lx->pos;
    size_t left = lx->size - lx->pos;
    size_t end = 1;
    bool escapes = false;
    while (end < left && s[end] != s[0]) {
        escapes |= s[end] == '\\';
        end += s[end] == '\\' ? 2 : 1;
    }
    if (end >= left) {
        return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, token->line, "a string is not closed");
    }
    token->type = JINJA_TOK_STRING;
    token->data = s + 1;
    token->size = end - 1;
    lx->pos += end + 1;
    if (!escapes) {
        return MF_OK;
    }
    /* An escape of two bytes can become ten. */
    char *out = mf_arena_array(lx->parse->arena, token->size, 5);
    if (!out) {
        return jinja_parse_no_memory(lx->parse);
    }
    size_t n = 0;
    for (size_t i = 0; i < token->size;) {
        if (token->data[i] != '\\') {
            out[n++] = token->data[i++];
            continue;
        }
        i++;
        if (!unescape(token->data, token->size, &i, out, &n)) {
            return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, token->line, "a string has a malformed escape");
        }
    }
    token->data = out;
    token->size = n;
    return MF_OK;
}

static mf_status operator_token(jinja_lexer *lx, jinja_token *token)
{
    static const struct {
        char text[3];
        uint8_t type;
    } operators[] = {
        { "//", JINJA_TOK_FLOORDIV }, { "**", JINJA_TOK_POW },      { "==", JINJA_TOK_EQ },
        { "!=", JINJA_TOK_NE },       { ">=", JINJA_TOK_GTEQ },     { "<=", JINJA_TOK_LTEQ },
        { "+", JINJA_TOK_ADD },       { "-", JINJA_TOK_SUB },       { "/", JINJA_TOK_DIV },
        { "*", JINJA_TOK_MUL },       { "%", JINJA_TOK_MOD },       { "~", JINJA_TOK_TILDE },
        { "[", JINJA_TOK_LBRACKET },  { "]", JINJA_TOK_RBRACKET },  { "(", JINJA_TOK_LPAREN },
        { ")", JINJA_TOK_RPAREN },    { "{", JINJA_TOK_LBRACE },    { "}", JINJA_TOK_RBRACE },
        { ">", JINJA_TOK_GT },        { "<", JINJA_TOK_LT },        { "=", JINJA_TOK_ASSIGN },
        { ".", JINJA_TOK_DOT },       { ":", JINJA_TOK_COLON },     { "|", JINJA_TOK_PIPE },
        { ",", JINJA_TOK_COMMA },     { ";", JINJA_TOK_SEMICOLON },
    };
    char c = lx->data[lx->pos];
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (!at(lx, lx->pos, operators[i].text)) {
            continue;
        }
        if (c == '(' || c == '[' || c == '{') {
            if (lx->num_brackets == JINJA_MAX_NESTING) {
                return jinja_parse_fail(lx->parse, MF_ERR_LIMIT, token->line, "brackets nested deeper than %d",
                                        JINJA_MAX_NESTING);
            }
            lx->brackets[lx->num_brackets++] = (char)(c == '(' ? ')' : c == '[' ? ']' : '}');
        } else if (c == ')' || c == ']' || c == '}') {
            if (lx->num_brackets == 0 || lx->brackets[lx->num_brackets - 1] != c) {
                return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, token->line, "unexpected '%c'", c);
            }
            lx->num_brackets--;
        }
        token->type = (jinja_token_type)operators[i].type;
        lx->pos += strlen(operators[i].text);
        return MF_OK;
    }
    if ((unsigned char)c >= 0x80) {
        size_t pos = lx->pos;
        int32_t point = jinja_next_char(lx->data, lx->size, &pos);
        return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, token->line, "unexpected character U+%04X", (unsigned)point);
    }
    return jinja_parse_fail(lx->parse, MF_ERR_FORMAT, token->line, "unexpected character '%c'", c);
}

static mf_status next_in_tag(jinja_lexer *lx, jinja_token *token)
{
    bool variable = lx->mode == JINJA_LEX_VARIABLE;
    for (;;) {
        token->line = line_at(lx, lx->pos);
        if (lx->pos >= lx->size) {
            token->type = JINJA_TOK_EOF;
            return MF_OK;
        }
        size_t end = lx->num_brackets ? 0 : tag_end(lx, lx->pos, variable ? "}}" : "%}", variable);
        if (end) {
            token->type = variable ? JINJA_TOK_VARIABLE_END : JINJA_TOK_BLOCK_END;
            lx->mode = JINJA_LEX_TEXT;
            move_to(lx, end);
            return MF_OK;
        }
        size_t after_space = skip_space(lx, lx->pos);
        if (after_space == lx->pos) {
            break;
        }
        lx->pos = after_space;
    }
    size_t end = float_end(lx, lx->pos);
    if (end > lx->pos) {
        return number_token(lx, token, end, true);
    }
    end = integer_end(lx, lx->pos);
    if (end > lx->pos) {
        return number_token(lx, token, end, false);
    }
    while (end < lx->size) {
        size_t next = end;
        int32_t c = jinja_next_char(lx->data, lx->size, &next);
        if (!jinja_is_word(c) && !jinja_is_name(c)) {
            break;
        }
        end = next;
    }
    if (end > lx->pos) {
        token->type = JINJA_TOK_NAME;
        MF_TRY(jinja_parse_name(lx->parse, lx->data + lx->pos, end - lx->pos, &token->name));
        lx->pos = end;
        return MF_OK;
    }
    char c = lx->data[lx->pos];
    return c == '"' || c == '\'' ? string_token(lx, token) : operator_token(lx, token);
}

mf_status jinja_lexer_next(jinja_lexer *lexer, jinja_token *token)
{
    *token = (jinja_token){ .type = JINJA_TOK_EOF };
    bool found = lexer->mode != JINJA_LEX_TEXT;
    if (found) {
        return next_in_tag(lexer, token);
    }
    while (!found) {
        MF_TRY(next_in_text(lexer, token, &found));
    }
    return MF_OK;
}

const char *jinja_token_describe(const jinja_token *token)
{
    switch (token->type) {
    case JINJA_TOK_EOF: return "end of template";
    case JINJA_TOK_DATA: return "text";
    case JINJA_TOK_VARIABLE_BEGIN: return "begin of print statement";
    case JINJA_TOK_VARIABLE_END: return "end of print statement";
    case JINJA_TOK_BLOCK_BEGIN: return "begin of statement block";
    case JINJA_TOK_BLOCK_END: return "end of statement block";
    case JINJA_TOK_NAME: return token->name ? token->name->data : "name";
    case JINJA_TOK_STRING: return "string";
    case JINJA_TOK_INTEGER: return "integer";
    case JINJA_TOK_FLOAT: return "float";
    case JINJA_TOK_ADD: return "+";
    case JINJA_TOK_SUB: return "-";
    case JINJA_TOK_MUL: return "*";
    case JINJA_TOK_DIV: return "/";
    case JINJA_TOK_FLOORDIV: return "//";
    case JINJA_TOK_MOD: return "%";
    case JINJA_TOK_POW: return "**";
    case JINJA_TOK_TILDE: return "~";
    case JINJA_TOK_LBRACKET: return "[";
    case JINJA_TOK_RBRACKET: return "]";
    case JINJA_TOK_LPAREN: return "(";
    case JINJA_TOK_RPAREN: return ")";
    case JINJA_TOK_LBRACE: return "{";
    case JINJA_TOK_RBRACE: return "}";
    case JINJA_TOK_EQ: return "==";
    case JINJA_TOK_NE: return "!=";
    case JINJA_TOK_GT: return ">";
    case JINJA_TOK_GTEQ: return ">=";
    case JINJA_TOK_LT: return "<";
    case JINJA_TOK_LTEQ: return "<=";
    case JINJA_TOK_ASSIGN: return "=";
    case JINJA_TOK_DOT: return ".";
    case JINJA_TOK_COLON: return ":";
    case JINJA_TOK_PIPE: return "|";
    case JINJA_TOK_COMMA: return ",";
    case JINJA_TOK_SEMICOLON: return ";";
    }
    return "?";
}
