/* jinja_lexer.h - a template's tokens, one at a time, with jinja2's rules for white space around tags. */
#ifndef MF_TEXT_JINJA_LEXER_H
#define MF_TEXT_JINJA_LEXER_H

#include "text/jinja_ast.h"

typedef enum jinja_token_type {
    JINJA_TOK_EOF,
    JINJA_TOK_DATA,
    JINJA_TOK_VARIABLE_BEGIN,
    JINJA_TOK_VARIABLE_END,
    JINJA_TOK_BLOCK_BEGIN,
    JINJA_TOK_BLOCK_END,
    JINJA_TOK_NAME,
    JINJA_TOK_STRING,
    JINJA_TOK_INTEGER,
    JINJA_TOK_FLOAT,
    JINJA_TOK_ADD,
    JINJA_TOK_SUB,
    JINJA_TOK_MUL,
    JINJA_TOK_DIV,
    JINJA_TOK_FLOORDIV,
    JINJA_TOK_MOD,
    JINJA_TOK_POW,
    JINJA_TOK_TILDE,
    JINJA_TOK_LBRACKET,
    JINJA_TOK_RBRACKET,
    JINJA_TOK_LPAREN,
    JINJA_TOK_RPAREN,
    JINJA_TOK_LBRACE,
    JINJA_TOK_RBRACE,
    JINJA_TOK_EQ,
    JINJA_TOK_NE,
    JINJA_TOK_GT,
    JINJA_TOK_GTEQ,
    JINJA_TOK_LT,
    JINJA_TOK_LTEQ,
    JINJA_TOK_ASSIGN,
    JINJA_TOK_DOT,
    JINJA_TOK_COLON,
    JINJA_TOK_PIPE,
    JINJA_TOK_COMMA,
    JINJA_TOK_SEMICOLON
} jinja_token_type;

typedef struct jinja_token {
    jinja_token_type type;
    uint32_t line;
    const char *data; /* DATA, STRING (unescaped) */
    size_t size;
    jinja_name *name;
    int64_t integer;
    double real;
} jinja_token;

typedef struct jinja_lexer {
    jinja_parse *parse;
    const char *data; /* line breaks are \n */
    size_t size, pos;
    size_t line_pos; /* line is the line of this byte */
    uint32_t line;
    enum { JINJA_LEX_TEXT, JINJA_LEX_VARIABLE, JINJA_LEX_BLOCK } mode;
    bool line_starting;            /* the last thing read ended a line */
    bool begin_pending;            /* text was returned, the tag that ended it is next */
    char brackets[JINJA_MAX_NESTING]; /* closers waited for */
    uint32_t num_brackets;
} jinja_lexer;

mf_status jinja_lexer_open(jinja_lexer *lexer, jinja_parse *parse, const char *source, size_t size);
mf_status jinja_lexer_next(jinja_lexer *lexer, jinja_token *token);
const char *jinja_token_describe(const jinja_token *token); /* "end of print statement", "=" */

#endif
