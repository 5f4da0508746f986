/* tiktoken_classes.c - the tokenizers that are known by their tokenizer_class: see tiktoken.h.
 *
 * The patterns are those of the models' Python code, written in the syntax that pattern.h reads. */
#include "text/tiktoken.h"

#include <string.h>

#define ENDINGS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

/* Kimi (tokenization_kimi.py): runs of Han; words of other letters, which end with small ones or have none; up to three
 * digits. */
#define LARGE "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define SMALL "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define BEFORE_WORD "[^\\r\\n\\p{L}\\p{N}]?"
#define BLANKS "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const char kimi_pattern[] = "[\\p{Han}]+|" BEFORE_WORD LARGE "*" SMALL "+" ENDINGS "?|" BEFORE_WORD LARGE
                                   "+" SMALL "*" ENDINGS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" BLANKS;

/* Hunyuan (tokenization_hy.py). */
static const char hunyuan_pattern[] = ENDINGS "|" BEFORE_WORD "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" BLANKS;

static const char *const no_specials[] = { NULL };
static const char *const hunyuan_specials[] = { "<|endoftext|>", "<|startoftext|>", "<|bos|>",
                                                "<|eos|>",       "<|pad|>",         NULL };

static const mf_tiktoken_class classes[] = {
    { .name = "TikTokenTokenizer",
      .file = "tiktoken.model",
      .pattern = kimi_pattern,
      .first_specials = no_specials,
      .other_specials = "<|reserved_token_",
      .others_have_ids = true,
      .num_specials = 256 },
    { .name = "HYTokenizer",
      .file = "hy.tiktoken",
      .pattern = hunyuan_pattern,
      .nfc = true,
      .counts_lines = true,
      .first_specials = hunyuan_specials,
      .other_specials = "<|extra_",
      .num_specials = 5 + 205 },
};

const mf_tiktoken_class *mf_tiktoken_get_class(size_t index)
{
    return index < sizeof classes / sizeof *classes ? &classes[index] : NULL;
}

const mf_tiktoken_class *mf_tiktoken_find_class(const char *name)
{
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (strcmp(classes[i].name, name) == 0) {
            return &classes[i];
        }
    }
    return NULL;
}
