/* tok_dump.c - the tokenizer behind a pipe, for tokenizer_oracle.py.
 *
 *     tok_dump [TOKENIZER.JSON | FOLDER]
 *
 * A request is 4 bytes (operation and three arguments), a 32-bit size and that many bytes; an answer a 32-bit status, a
 * 32-bit size and that many bytes (a message when the status is not 0).  Numbers are little-endian. E flags encode:
 * UTF-8 -> int32 ids D skip        decode: int32 ids -> UTF-8 S skip        the same through a stream, one id at a time
 *   P behavior invert literal   split by a pattern: uint32 pattern size, pattern, text -> uint32 start, end of each
 * piece in code points N             canonical composition: UTF-8 -> UTF-8 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "text/nfc.h"
#include "text/pretokenizer.h"
#include "text/stream.h"
#include "text/tokenizer_dir.h"

static void fail(const char *message)
{
    fprintf(stderr, "tok_dump: %s\n", message);
    exit(2);
}

static void answer(mf_status status, const void *data, size_t size)
{
    uint32_t head[2] = { (uint32_t)status, (uint32_t)size };
    if (fwrite(head, sizeof head, 1, stdout) != 1 || (size > 0 && fwrite(data, 1, size, stdout) != size)) {
        fail("cannot write");
    }
}

static mf_status split(const uint8_t *arg, const char *data, size_t size, mf_pretokens *out, mf_error *err)
{
    uint32_t n;
    mf_pretokenizer pre = { .num_steps = 1, .steps[0] = { .behavior = (mf_split_behavior)arg[0], .invert = arg[1] } };
    if (size < sizeof n || (memcpy(&n, data, sizeof n), n > size - sizeof n)) {
        fail("bad request");
    }
    const char *pattern = data + sizeof n, *text = pattern + n;
    mf_status status = arg[2] ? mf_pattern_compile_literal(pattern, n, &pre.steps[0].pattern, err)
                              : mf_pattern_compile(pattern, n, &pre.steps[0].pattern, err);
    if (status == MF_OK) {
        status = mf_pretokenizer_run(&pre, text, size - sizeof n - n, true, out);
        mf_pretokenizer_close(&pre);
        if (status != MF_OK) {
            mf_fail(err, status, "%s", mf_status_name(status));
        }
    }
    return status;
}

static mf_status stream(const mf_tokenizer *tok, bool skip, const int32_t *ids, size_t n, mf_buffer *out, mf_error *err)
{
    mf_stream *s = NULL;
    int32_t stop;
    mf_stream_options options = { .skip_special = skip };
    mf_status status = mf_stream_open(tok, &options, &s, err);
    for (size_t i = 0; i < n && status == MF_OK; i++) {
        status = mf_stream_push(s, ids[i], out, &stop, err);
    }
    if (status == MF_OK) {
        status = mf_stream_finish(s, out, &stop, err);
    }
    mf_stream_close(&s);
    return status;
}

int main(int argc, char **argv)
{
    mf_error err = { 0 };
    mf_tokenizer *tok = NULL;
    if (argc > 1 && (mf_path_is_dir(argv[1]) ? mf_tokenizer_open_dir(argv[1], &tok, &err)
                                             : mf_tokenizer_open(argv[1], &tok, &err)) != MF_OK) {
        fail(err.message);
    }
    mf_ids ids = { 0 };
    mf_buffer text = { 0 };
    mf_pretokens pieces = { 0 };
    struct {
        uint8_t op, arg[3];
        uint32_t size;
    } head;
    char *data = NULL;
    while (fread(&head, sizeof head, 1, stdin) == 1) {
        free(data);
        data = malloc((size_t)head.size + 1);
        if (!data || fread(data, 1, head.size, stdin) != head.size) {
            fail("short request");
        }
        mf_status status = MF_ERR_INVALID;
        const void *result = NULL;
        size_t size = 0;
        ids.size = 0;
        mf_buffer_clear(&text);
        switch (head.op) {
        case 'E':
            status = mf_tokenizer_encode(tok, data, head.size, head.arg[0], &ids, &err);
            result = ids.data;
            size = ids.size * sizeof *ids.data;
            break;
        case 'D':
        case 'S':
            status = head.op == 'D'
                         ? mf_tokenizer_decode(tok, (const int32_t *)(const void *)data, head.size / 4, head.arg[0],
                                               &text, &err)
                         : stream(tok, head.arg[0], (const int32_t *)(const void *)data, head.size / 4, &text, &err);
            result = text.data;
            size = text.size;
            break;
        case 'P':
            status = split(head.arg, data, head.size, &pieces, &err);
            result = pieces.pieces.data;
            size = pieces.pieces.size * sizeof(mf_piece);
            break;
        case 'N':
            status = mf_nfc(data, head.size, &text);
            result = text.data;
            size = text.size;
            break;
        default:
            fail("unknown operation");
        }
        if (status != MF_OK) {
            answer(status, err.message, strlen(err.message));
        } else {
            answer(status, result, size);
        }
    }
    if (fflush(stdout) != 0) {
        fail("cannot write");
    }
    free(data);
    mf_ids_close(&ids);
    mf_buffer_close(&text);
    mf_pretokens_close(&pieces);
    mf_tokenizer_close(&tok);
    return 0;
}
