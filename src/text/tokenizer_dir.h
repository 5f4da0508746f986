/* tokenizer_dir.h - a model folder's tokenizer: its tokenizer.json, or the tiktoken file that its tokenizer_class goes
 * with. */
#ifndef MF_TEXT_TOKENIZER_DIR_H
#define MF_TEXT_TOKENIZER_DIR_H

#include "text/tokenizer.h"

/* MF_ERR_UNSUPPORTED: there is no tokenizer.json, and no tiktoken file of a known tokenizer_class; the message lists
 * those. */
mf_status mf_tokenizer_open_dir(const char *dir, mf_tokenizer **out, mf_error *err);

/* Whether the folder has a file that one might come from. */
bool mf_tokenizer_in_dir(const char *dir);

#endif
