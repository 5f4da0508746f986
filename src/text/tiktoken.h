/* tiktoken.h - tokenizers of models that come with a tiktoken file and no tokenizer.json.
 *
 * The file has a line for each token, its bytes in base64 and its rank, which is its id.  Any two neighbours are merged
 * whose bytes together are a token, the lowest rank first.  How a text is cut before, and what the special tokens are
 * called that tokenizer_config.json does not name, is only in the Python code of the model: here it is in one table, by
 * tokenizer_class.
 *
 * The ids equal those of PyPI's tiktoken with that code's pattern, but for three things: a special token next to a
 * combining mark that composes with its last character stays one; NFC knows Unicode 9 as elsewhere here; and a text is
 * never cut because it is long (Kimi's code cuts after 25,000 characters without, or of nothing but, white space). */
#ifndef MF_TEXT_TIKTOKEN_H
#define MF_TEXT_TIKTOKEN_H

#include <jansson.h>

#include "text/tokenizer.h"

typedef struct mf_tiktoken_class {
    const char *name;    /* tokenizer_class */
    const char *file;    /* in the model's folder */
    const char *pattern; /* what a text is cut into */
    bool nfc;            /* first normalise it */
    bool counts_lines;   /* a rank is the number of tokens before it, whatever the line says; repeats are left out */
    const char *const *first_specials; /* behind the last rank, NULL-terminated */
    const char *other_specials;        /* then these, with ids or numbers between the two halves */
    bool others_have_ids;              /* their own ids; else from 0 */
    int32_t num_specials;              /* all of them */
} mf_tiktoken_class;

const mf_tiktoken_class *mf_tiktoken_find_class(const char *name); /* NULL: not known */
const mf_tiktoken_class *mf_tiktoken_get_class(size_t index);      /* NULL behind the last */

/* From memory: `text` is the file of ranks and `name` stands for it in messages; `config` is the tokenizer_config.json,
 * named config_name.  Neither is kept. */
mf_status mf_tiktoken_parse(const mf_tiktoken_class *class, const char *text, size_t size, const char *name,
                            const json_t *config, const char *config_name, mf_tokenizer **out, mf_error *err);

#endif
