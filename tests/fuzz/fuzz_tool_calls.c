/* fuzz_tool_calls.c - any text as an answer, in every format: whole and cut (the first bytes say where) it is the same
 * message. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/tool_calls.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok)
{
    if (!ok) {
        abort();
    }
}

/* kind, call, text; pieces of one kind and call in a row are one. */
typedef struct trace {
    mf_buffer text;
    int kind, index;
} trace;

static mf_status note(void *context, const mf_answer_piece *piece)
{
    trace *t = context;
    bool joined = t->kind == (int)piece->kind && t->index == piece->index;
    t->kind = (int)piece->kind;
    t->index = piece->index;
    if (piece->kind == MF_ANSWER_CALL) {
        return mf_buffer_printf(&t->text, "\x01%d call %d %s %s\x02", piece->kind, piece->index, piece->id,
                                piece->name);
    }
    check(piece->size > 0);
    if (!joined) {
        MF_TRY(mf_buffer_printf(&t->text, "\x01%d %d ", piece->kind, piece->index));
    }
    return mf_buffer_append(&t->text, piece->text, piece->size);
}

static void run(const mf_answer_options *options, const uint8_t *data, size_t size, const uint8_t *cuts,
                size_t num_cuts, trace *out)
{
    mf_answer_parser *parser = NULL;
    out->kind = -1;
    check(mf_answer_parser_open(options, note, out, &parser) == MF_OK);
    for (size_t at = 0, i = 0; at < size;) {
        size_t n = num_cuts ? (size_t)cuts[i++ % num_cuts] % 19 + 1 : size;
        n = n < size - at ? n : size - at;
        check(mf_answer_parser_push(parser, (const char *)data + at, n) == MF_OK);
        at += n;
    }
    check(mf_answer_parser_finish(parser) == MF_OK);
    mf_answer_parser_close(&parser);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const templates[] = { "<tool_call>", "<arg_key>", "<｜tool▁calls▁begin｜>",
                                             "<|tool_calls_section_begin|>", "<|channel|>" };
    static const mf_tool_choice choices[] = { MF_TOOLS_AUTO, MF_TOOLS_REQUIRED, MF_TOOLS_NAMED };
    if (size < 4) {
        return 0;
    }
    for (int format = 0; format < 5; format++) {
        for (int choice = 0; choice < 3; choice++) {
            mf_answer_options options = { .format =
                                              mf_tool_format_find(NULL, templates[format], strlen(templates[format])),
                                          .calls = true,
                                          .reasoning = data[0] & 1 || format == 4,
                                          .opens_reasoning = data[0] & 2,
                                          .choice = choices[choice],
                                          .tool_name = "f" };
            trace whole = { .kind = -1 }, cut = { .kind = -1 };
            run(&options, data + 4, size - 4, NULL, 0, &whole);
            run(&options, data + 4, size - 4, data, 4, &cut);
            check(whole.text.size == cut.text.size &&
                  memcmp(mf_buffer_text(&whole.text), mf_buffer_text(&cut.text), whole.text.size) == 0);
            mf_buffer_close(&whole.text);
            mf_buffer_close(&cut.text);
        }
    }
    return 0;
}
