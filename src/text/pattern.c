/* pattern.c - compiling: sets into symbols, code into a program that the matcher can trust. */
#include "text/pattern_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "text/utf8.h"

mf_status mf_pattern_emit(mf_pattern *pattern, mf_pattern_reader *reader, mf_instruction instruction)
{
    if (pattern->size == MF_PATTERN_MAX_CODE) {
        return mf_pattern_fail(reader, MF_ERR_UNSUPPORTED, "the pattern is too large once its repeats are written out");
    }
    if (pattern->size == pattern->capacity) {
        size_t capacity = pattern->capacity ? pattern->capacity * 2 : 64;
        mf_instruction *code = mf_resize_array(pattern->code, capacity, sizeof *code);
        if (!code) {
            return mf_pattern_fail(reader, MF_ERR_NOMEM, "out of memory");
        }
        pattern->code = code;
        pattern->capacity = capacity;
    }
    pattern->code[pattern->size++] = instruction;
    return MF_OK;
}

mf_status mf_pattern_use_set(mf_pattern *pattern, mf_pattern_reader *reader, mf_charset *set, uint8_t *index)
{
    for (size_t i = 0; i < pattern->num_sets; i++) {
        if (mf_charset_equal(&pattern->sets[i], set)) {
            mf_charset_close(set);
            *index = (uint8_t)i;
            return MF_OK;
        }
    }
    if (pattern->num_sets == MF_PATTERN_MAX_SETS) {
        return mf_pattern_fail(reader, MF_ERR_UNSUPPORTED, "more than 64 different classes and characters");
    }
    *index = (uint8_t)pattern->num_sets;
    pattern->sets[pattern->num_sets++] = *set;
    *set = (mf_charset){ 0 };
    return MF_OK;
}

/* ---- symbols ------------------------------------------------------------------------------------------------------
 */

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static mf_status find_symbol(mf_pattern *pattern, mf_pattern_reader *reader, uint64_t sets, uint8_t *symbol)
{
    for (size_t i = 0; i < pattern->num_symbols; i++) {
        if (pattern->symbol_sets[i] == sets) {
            *symbol = (uint8_t)i;
            return MF_OK;
        }
    }
    if (pattern->num_symbols == 256) {
        return mf_pattern_fail(reader, MF_ERR_UNSUPPORTED, "classes that overlap in more than 256 ways");
    }
    *symbol = (uint8_t)pattern->num_symbols;
    pattern->symbol_sets[pattern->num_symbols++] = sets;
    return MF_OK;
}

/* Blocks of one symbol are shared; there is one for each symbol at most. */
static mf_status store_page(mf_pattern *pattern, mf_pattern_reader *reader, const uint8_t *page, size_t index,
                            int32_t *plain)
{
    bool same = memcmp(page, page + 1, 255) == 0;
    if (same && plain[page[0]] >= 0) {
        pattern->page_block[index] = (uint16_t)plain[page[0]];
        return MF_OK;
    }
    if (pattern->num_blocks == pattern->blocks_capacity) {
        size_t capacity = pattern->blocks_capacity ? pattern->blocks_capacity * 2 : 64;
        uint8_t *blocks = mf_resize_array(pattern->blocks, capacity, 256);
        if (!blocks) {
            return mf_pattern_fail(reader, MF_ERR_NOMEM, "out of memory");
        }
        pattern->blocks = blocks;
        pattern->blocks_capacity = capacity;
    }
    memcpy(pattern->blocks + pattern->num_blocks * 256, page, 256);
    if (same) {
        plain[page[0]] = (int32_t)pattern->num_blocks;
    }
    pattern->page_block[index] = (uint16_t)pattern->num_blocks++;
    return MF_OK;
}

/* Sweeps over the places where a set begins or ends; between two of them all code points are alike. */
static mf_status build_symbols(mf_pattern *pattern, mf_pattern_reader *reader)
{
    size_t count = 0;
    for (size_t s = 0; s < pattern->num_sets; s++) {
        count += 2 * pattern->sets[s].count;
    }
    uint64_t *edges = mf_alloc_array(count + 1, sizeof *edges); /* code point << 8 | set */
    if (!edges) {
        return mf_pattern_fail(reader, MF_ERR_NOMEM, "out of memory");
    }
    size_t n = 0;
    for (size_t s = 0; s < pattern->num_sets; s++) {
        for (size_t i = 0; i < pattern->sets[s].count; i++) {
            edges[n++] = (uint64_t)pattern->sets[s].ranges[i].first << 8 | s;
            edges[n++] = (uint64_t)(pattern->sets[s].ranges[i].last + 1) << 8 | s;
        }
    }
    qsort(edges, n, sizeof *edges, compare_u64);
    edges[n] = UINT64_MAX;
    uint8_t page[256];
    int32_t plain[256];
    memset(plain, 0xff, sizeof plain);
    uint64_t sets = 0;
    size_t at = 0;
    mf_status status = MF_OK;
    for (size_t index = 0; index < MF_PATTERN_PAGES && status == MF_OK; index++) {
        uint32_t c = (uint32_t)index * 256, end = c + 256;
        while (c < end && status == MF_OK) {
            while (edges[at] >> 8 == c) {
                sets ^= (uint64_t)1 << (edges[at++] & 0xff);
            }
            uint32_t next = edges[at] >> 8 < end ? (uint32_t)(edges[at] >> 8) : end;
            uint8_t symbol = 0;
            status = find_symbol(pattern, reader, sets, &symbol);
            memset(page + (c & 0xff), symbol, next - c);
            c = next;
        }
        if (status == MF_OK) {
            status = store_page(pattern, reader, page, index, plain);
        }
    }
    mf_free(edges);
    return status;
}

/* ---- the program --------------------------------------------------------------------------------------------------
 */

/* Whether a match from here is certain: everything on the way can be skipped. */
static bool always_matches(const mf_pattern *pattern, size_t pc)
{
    /* Only steps forward are followed, so this ends. */
    for (;;) {
        const mf_instruction *in = &pattern->code[pc];
        size_t next = pc + 1;
        if (in->op == MF_OP_MATCH) {
            return true;
        }
        if (in->op == MF_OP_SPLIT) {
            next = pc + (size_t)(in->b > in->a ? in->b : in->a);
        } else if (in->op == MF_OP_JUMP) {
            if (in->a <= 0) {
                return false;
            }
            next = pc + (size_t)in->a;
        } else if (in->op != MF_OP_RUN && in->op != MF_OP_POSSESS && in->op != MF_OP_TAKE) {
            return false;
        }
        pc = next;
    }
}

/* A greedy loop over one set before something that always matches never gives anything back. */
static void find_runs(mf_pattern *pattern)
{
    for (size_t i = pattern->size; i-- > 0;) {
        mf_instruction *in = &pattern->code[i];
        if (in->in_look) {
            continue;
        }
        if (in->op == MF_OP_POSSESS && always_matches(pattern, i + 1)) {
            in->op = MF_OP_RUN;
        } else if (in->op == MF_OP_SPLIT && in->a == 1 && in->b == 3 && in[1].op == MF_OP_SET &&
                   in[2].op == MF_OP_JUMP && in[2].a == -2 && always_matches(pattern, i + 3)) {
            in->op = MF_OP_RUN;
            in->set = in[1].set;
            in[1] = (mf_instruction){ .op = MF_OP_JUMP, .a = 2 };
            in[2] = (mf_instruction){ .op = MF_OP_JUMP, .a = 1 };
        }
    }
}

static void number_memos(mf_pattern *pattern)
{
    int32_t bits = 0;
    for (size_t i = 0; i < pattern->size; i++) {
        mf_instruction *in = &pattern->code[i];
        in->memo = -1;
        if (in->op == MF_OP_SPLIT || in->op == MF_OP_POSSESS) {
            in->memo = bits;
            bits += in->in_look ? 2 : 1;
        }
    }
    pattern->memo_words = ((size_t)bits + 63) / 64;
}

static void add_set(const mf_pattern *pattern, uint8_t set, mf_first *first)
{
    for (size_t s = 0; s < pattern->num_symbols; s++) {
        if (pattern->symbol_sets[s] >> set & 1) {
            first->symbols[s / 64] |= (uint64_t)1 << (s % 64);
        }
    }
}

static bool join(mf_first *into, const mf_first *from)
{
    mf_first before = *into;
    for (int i = 0; i < 4; i++) {
        into->symbols[i] |= from->symbols[i];
    }
    into->empty |= from->empty;
    return memcmp(before.symbols, into->symbols, sizeof before.symbols) != 0 || before.empty != into->empty;
}

/* Repeated until nothing changes: backward jumps need a second look. */
static mf_status find_firsts(mf_pattern *pattern, mf_pattern_reader *reader)
{
    pattern->first = mf_alloc_array(pattern->size, sizeof *pattern->first);
    if (!pattern->first) {
        return mf_pattern_fail(reader, MF_ERR_NOMEM, "out of memory");
    }
    for (size_t i = 0; i < pattern->size; i++) {
        mf_op op = (mf_op)pattern->code[i].op;
        if (op == MF_OP_MATCH || op == MF_OP_LOOK_END) {
            pattern->first[i] = (mf_first){ { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX }, true };
        } else if (op == MF_OP_SET || op == MF_OP_RUN || op == MF_OP_POSSESS || op == MF_OP_TAKE) {
            add_set(pattern, pattern->code[i].set, &pattern->first[i]);
        }
    }
    bool changed = true;
    while (changed) {
        changed = false;
        for (size_t i = pattern->size; i-- > 0;) {
            const mf_instruction *in = &pattern->code[i];
            mf_first *first = &pattern->first[i];
            switch ((mf_op)in->op) {
            case MF_OP_SET:
            case MF_OP_MATCH:
            case MF_OP_LOOK_END:
                break;
            case MF_OP_SPLIT:
                changed |= join(first, first + in->a);
                changed |= join(first, first + in->b);
                break;
            case MF_OP_JUMP:
            case MF_OP_LOOK:
                changed |= join(first, first + in->a);
                break;
            default:
                changed |= join(first, first + 1);
                break;
            }
        }
    }
    return MF_OK;
}

static mf_status finish(mf_pattern *pattern, mf_pattern_reader *reader)
{
    MF_TRY(mf_pattern_emit(pattern, reader, (mf_instruction){ .op = MF_OP_MATCH }));
    MF_TRY(build_symbols(pattern, reader));
    find_runs(pattern);
    number_memos(pattern);
    return find_firsts(pattern, reader);
}

/* ---- the interface ------------------------------------------------------------------------------------------------
 */

typedef enum source { SOURCE_REGEX, SOURCE_LITERAL, SOURCE_SET } source;

static mf_status compile(source kind, const char *text, size_t size, const mf_charset *set, mf_pattern **out,
                         mf_error *err)
{
    *out = NULL;
    mf_pattern_reader reader = { .text = text, .size = size, .err = err };
    if (size > MF_PATTERN_MAX_TEXT) {
        return mf_pattern_fail(&reader, MF_ERR_UNSUPPORTED, "longer than 8,192 bytes");
    }
    if (size == 0 && kind != SOURCE_SET) {
        return mf_pattern_fail(&reader, MF_ERR_UNSUPPORTED, "an empty pattern");
    }
    mf_pattern *pattern = mf_alloc_zero(sizeof *pattern);
    if (!pattern) {
        return mf_pattern_fail(&reader, MF_ERR_NOMEM, "out of memory");
    }
    pattern->newline_set = pattern->word_set = -1;
    mf_status status = MF_OK;
    if (kind == SOURCE_REGEX) {
        status = mf_pattern_parse(pattern, &reader);
    }
    while (kind != SOURCE_REGEX && status == MF_OK && (kind == SOURCE_SET || reader.at < size)) {
        mf_charset own = { 0 };
        uint8_t index = 0;
        uint32_t c = set ? 0 : mf_utf8_next(text, &reader.at);
        status = set ? mf_charset_add_set(&own, set) : mf_charset_add(&own, c, c);
        status = status == MF_OK ? mf_pattern_use_set(pattern, &reader, &own, &index)
                                 : mf_pattern_fail(&reader, status, "out of memory");
        mf_charset_close(&own);
        if (status == MF_OK) {
            status = mf_pattern_emit(pattern, &reader, (mf_instruction){ .op = MF_OP_SET, .set = index });
        }
        if (kind == SOURCE_SET) {
            break;
        }
    }
    if (status == MF_OK) {
        status = finish(pattern, &reader);
    }
    for (size_t i = 0; i < pattern->num_sets; i++) {
        mf_charset_close(&pattern->sets[i]);
    }
    if (status != MF_OK) {
        mf_pattern_close(&pattern);
        return status;
    }
    *out = pattern;
    return MF_OK;
}

mf_status mf_pattern_compile(const char *text, size_t size, mf_pattern **out, mf_error *err)
{
    return compile(SOURCE_REGEX, text, size, NULL, out, err);
}

mf_status mf_pattern_compile_literal(const char *text, size_t size, mf_pattern **out, mf_error *err)
{
    return compile(SOURCE_LITERAL, text, size, NULL, out, err);
}

mf_status mf_pattern_compile_set(const mf_charset *set, mf_pattern **out, mf_error *err)
{
    return compile(SOURCE_SET, "", 0, set, out, err);
}

void mf_pattern_close(mf_pattern **pattern)
{
    if (!*pattern) {
        return;
    }
    mf_free((*pattern)->code);
    mf_free((*pattern)->first);
    mf_free((*pattern)->blocks);
    mf_free(*pattern);
    *pattern = NULL;
}

void mf_pattern_map(const mf_pattern *pattern, const uint32_t *code_points, size_t n, uint8_t *symbols)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t c = code_points[i];
        symbols[i] = pattern->blocks[(size_t)pattern->page_block[c >> 8] * 256 + (c & 0xff)];
    }
}

size_t mf_pattern_size(const mf_pattern *pattern)
{
    return pattern->size;
}
