/* pattern_impl.h - what the parser, the compiler and the matcher of patterns share; nobody else includes it. */
#ifndef MF_TEXT_PATTERN_IMPL_H
#define MF_TEXT_PATTERN_IMPL_H

#include "text/pattern.h"

enum {
    MF_PATTERN_MAX_TEXT = 8192,
    MF_PATTERN_MAX_CODE = 4096,
    MF_PATTERN_MAX_SETS = 64, /* so that a symbol's sets fit one word */
    MF_PATTERN_MAX_DEPTH = 32,
    MF_PATTERN_MAX_REPEAT = 1000
};

typedef enum mf_op {
    MF_OP_SET,     /* one symbol of `set` */
    MF_OP_SPLIT,   /* try pc + a, then pc + b */
    MF_OP_JUMP,    /* go to pc + a */
    MF_OP_RUN,     /* all symbols of `set`; what follows cannot fail, so nothing is ever given back */
    MF_OP_POSSESS, /* all symbols of `set`, nothing given back */
    MF_OP_TAKE,    /* one symbol of `set` if there is one, not given back */
    MF_OP_LOOK,    /* the body up to its LOOK_END must match here (flag: must not); continues at pc + a */
    MF_OP_LOOK_END,
    MF_OP_BEHIND, /* the symbol before is of `set` (flag: there is none of it) */
    MF_OP_ASSERT, /* flag: an mf_assertion */
    MF_OP_MATCH
} mf_op;

typedef enum mf_assertion {
    MF_AT_LINE_BEGIN,
    MF_AT_LINE_END,
    MF_AT_TEXT_BEGIN,
    MF_AT_TEXT_END,
    MF_AT_LAST_LINE_END,
    MF_AT_WORD_EDGE,
    MF_AT_NO_WORD_EDGE
} mf_assertion;

typedef struct mf_instruction {
    uint8_t op;
    uint8_t flag;
    uint8_t set;
    bool in_look;
    int32_t a, b;
    int32_t memo; /* bit of the memo words at each position; inside a look, the next bit says "the body matches from
                     here" */
} mf_instruction;

/* Which symbols can come next from an instruction. */
typedef struct mf_first {
    uint64_t symbols[4];
    bool empty; /* it may get by without consuming any */
} mf_first;

enum { MF_PATTERN_PAGES = (MF_UNICODE_LAST + 1) / 256 };

struct mf_pattern {
    mf_instruction *code;
    size_t size, capacity;
    mf_charset sets[MF_PATTERN_MAX_SETS];
    size_t num_sets;
    int32_t newline_set, word_set; /* -1 while no assertion needs them */
    mf_first *first;               /* [size] */
    size_t memo_words;
    uint64_t symbol_sets[256]; /* bit s: the symbol is in sets[s] */
    size_t num_symbols;
    uint16_t page_block[MF_PATTERN_PAGES]; /* index of the 256 symbols of each page of code points */
    uint8_t *blocks;
    size_t num_blocks, blocks_capacity;
};

/* Reading position while a pattern is parsed; the whole text is kept for messages. */
typedef struct mf_pattern_reader {
    const char *text;
    size_t size, at;
    bool caseless;
    mf_error *err;
} mf_pattern_reader;

/* "pattern "TEXT": byte N: MESSAGE" */
mf_status mf_pattern_fail(mf_pattern_reader *reader, mf_status status, const char *message);

/* Reads a bracket class, whose '[' is at reader->at, into a settled set. */
mf_status mf_pattern_read_class(mf_pattern_reader *reader, mf_charset *set);

/* Reads an escape, whose backslash is at reader->at, that stands for characters.  *single is the character when it
 * stands for just one, else -1.  Escapes that are no characters are MF_ERR_UNSUPPORTED. */
mf_status mf_pattern_read_escape(mf_pattern_reader *reader, mf_charset *set, int64_t *single);

/* Adds what a literal character matches: itself, or its case variants too. */
mf_status mf_pattern_add_literal(mf_pattern_reader *reader, mf_charset *set, uint32_t c);

/* Parses a whole pattern into code, without MF_OP_MATCH, and sets. */
mf_status mf_pattern_parse(mf_pattern *pattern, mf_pattern_reader *reader);

mf_status mf_pattern_emit(mf_pattern *pattern, mf_pattern_reader *reader, mf_instruction instruction);

/* Takes the set over (it is empty afterwards); *index is that of an equal one or a new one. */
mf_status mf_pattern_use_set(mf_pattern *pattern, mf_pattern_reader *reader, mf_charset *set, uint8_t *index);

#endif
