/* builtin_templates.c - see builtin_templates.h.
 *
 * What the releases' own templates write for plain conversations; those are the authority, and come with nearly every
 * checkpoint. */
#include "text/builtin_templates.h"

#include <stdio.h>
#include <string.h>

/* A content is a string, null, or a list of which the text parts count. */
#define TEXT                                                                                                           \
    "{%- macro text(c) -%}{%- if c is string -%}{{ c }}{%- elif c -%}{%- for part in c -%}{%- if part is string -%}"   \
    "{{ part }}{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro "   \
    "-%}"                                                                                                              \
    "{%- if tools -%}{{ raise_exception('the built-in chat template has no tools; use --chat-template FILE') }}"       \
    "{%- endif -%}"
#define EACH "{%- for m in messages -%}"
#define END "{%- endfor -%}"
#define ROLE_ERROR "{%- else -%}{{ raise_exception('the built-in chat template has no role ' ~ m.role) }}{%- endif -%}"
#define PROMPT(text) "{%- if add_generation_prompt -%}{{ " text " }}{%- endif -%}"

static const char chatml[] =
    TEXT EACH "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ text(m.content) ~ '<|im_end|>\\n' }}" END PROMPT(
        "'<|im_start|>assistant\\n'");

static const char deepseek_v2[] =
    TEXT "{{ bos_token }}" EACH "{%- if m.role == 'system' -%}{{ text(m.content) ~ '\\n\\n' }}"
         "{%- elif m.role == 'user' -%}{{ 'User: ' ~ text(m.content) ~ '\\n\\n' }}"
         "{%- elif m.role == 'assistant' -%}{{ 'Assistant: ' ~ text(m.content) ~ eos_token }}" ROLE_ERROR END PROMPT(
             "'Assistant:'");

static const char deepseek_v3[] = TEXT
    "{{ bos_token }}" EACH "{%- if m.role == 'system' -%}{{ text(m.content) }}"
    "{%- elif m.role == 'user' -%}{{ '<｜User｜>' ~ text(m.content) }}"
    "{%- elif m.role == 'assistant' -%}{{ '<｜Assistant｜>' ~ text(m.content) ~ '<｜end▁of▁sentence｜>' }}" ROLE_ERROR
        END PROMPT("'<｜Assistant｜>'");

static const char kimi_k2[] = TEXT
    "{%- if not messages or messages[0].role != 'system' -%}"
    "{{ '<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>' }}{%- endif "
    "-%}" EACH "{%- set kind = m.role if m.role in ['user', 'assistant'] else 'system' -%}"
    "{{ '<|im_' ~ kind ~ '|>' ~ (m.name or m.role) ~ '<|im_middle|>' ~ text(m.content) ~ '<|im_end|>' }}" END PROMPT(
        "'<|im_assistant|>assistant<|im_middle|>'");

/* Reasoning of earlier turns is dropped. */
static const char glm45[] =
    TEXT "{{ '[gMASK]<sop>' }}" EACH "{%- if m.role == 'system' -%}{{ '<|system|>\\n' ~ text(m.content) }}"
         "{%- elif m.role == 'user' -%}{{ '<|user|>\\n' ~ text(m.content) }}"
         "{%- if enable_thinking is defined and not enable_thinking and not text(m.content).endswith('/nothink') -%}"
         "{{ '/nothink' }}{%- endif -%}"
         "{%- elif m.role == 'assistant' -%}{%- set answer = text(m.content).split('</think>')[-1].strip() -%}"
         "{{ '<|assistant|>\\n<think></think>' ~ ('\\n' ~ answer if answer else '') }}" ROLE_ERROR END PROMPT(
             "'<|assistant|>' ~ ('\\n<think></think>' if enable_thinking is defined and not enable_thinking else '')");

/* A system message goes into the first user's. */
static const char mixtral[] = TEXT
    "{{ bos_token }}{%- set ns = namespace(system='') -%}" EACH
    "{%- if m.role == 'system' -%}{%- set ns.system = text(m.content) ~ '\\n\\n' -%}"
    "{%- elif m.role == 'user' -%}{{ ' [INST] ' ~ ns.system ~ text(m.content) ~ ' [/INST]' }}{%- set ns.system = '' -%}"
    "{%- elif m.role == 'assistant' -%}{{ ' ' ~ text(m.content) ~ eos_token }}" ROLE_ERROR END;

static const char olmoe[] =
    TEXT "{{ bos_token }}" EACH
         "{%- if m.role in ['system', 'user'] -%}{{ '<|' ~ m.role ~ '|>\\n' ~ text(m.content) ~ '\\n' }}"
         "{%- elif m.role == 'assistant' -%}"
         "{{ '<|assistant|>\\n' ~ text(m.content) ~ eos_token ~ ('' if loop.last else '\\n') }}" ROLE_ERROR END PROMPT(
             "'<|assistant|>\\n'");

static const char ernie45[] = TEXT
    "{{ '<|begin_of_sentence|>' }}" EACH "{%- if m.role == 'system' -%}{{ text(m.content) ~ '\\n' }}"
    "{%- elif m.role == 'user' -%}{{ 'User: ' ~ text(m.content) ~ '\\n' }}"
    "{%- elif m.role == 'assistant' -%}{{ 'Assistant: ' ~ text(m.content) ~ '<|end_of_sentence|>' }}" ROLE_ERROR END
        PROMPT("'Assistant: '");

static const char minimax_m2[] = TEXT
    "{%- if not messages or messages[0].role != 'system' -%}"
    "{{ ']~!b[]~b]system\\nYou are a helpful assistant.[e~[\\n' }}{%- endif -%}" EACH
    "{%- if m.role == 'system' -%}{{ (']~!b[' if loop.first else '') ~ ']~b]system\\n' ~ text(m.content) ~ '[e~[\\n' }}"
    "{%- elif m.role == 'user' -%}{{ ']~b]user\\n' ~ text(m.content) ~ '[e~[\\n' }}"
    "{%- elif m.role == 'assistant' -%}"
    "{{ ']~b]ai\\n' ~ text(m.content).split('</think>')[-1].strip('\\n') ~ '[e~[\\n' }}" ROLE_ERROR END PROMPT(
        "']~b]ai\\n<think>\\n'");

static const char dots1[] =
    TEXT "{%- if not messages or messages[0].role != 'system' -%}"
         "{{ '<|system|>You are a helpful assistant.<|endofsystem|>' }}{%- endif -%}" EACH
         "{%- if m.role == 'system' -%}{{ '<|system|>' ~ text(m.content) ~ '<|endofsystem|>' }}"
         "{%- elif m.role == 'user' -%}{{ '<|userprompt|>' ~ text(m.content) ~ '<|endofuserprompt|>' }}"
         "{%- elif m.role == 'assistant' -%}{{ '<|response|>' ~ text(m.content) ~ '<|endofresponse|>' }}" ROLE_ERROR END
             PROMPT("'<|response|>'");

/* The first user's text stands right behind a system message. */
static const char hunyuan[] =
    TEXT EACH "{%- if m.role == 'system' -%}{{ '<|startoftext|>' ~ text(m.content) ~ '<|extra_4|>' }}"
              "{%- elif m.role == 'user' -%}"
              "{%- if not (loop.index0 == 1 and messages[0].role == 'system') -%}{{ '<|startoftext|>' }}{%- endif -%}"
              "{{ text(m.content) ~ '<|extra_0|>' }}"
              "{%- elif m.role == 'assistant' -%}{{ text(m.content) ~ '<|eos|>' }}" ROLE_ERROR END;

static const char ling[] =
    TEXT "{%- if not messages or messages[0].role != 'system' -%}"
         "{{ '<role>SYSTEM</role>detailed thinking off<|role_end|>' }}{%- endif -%}" EACH
         "{%- set role = 'HUMAN' if m.role == 'user' else m.role | upper -%}"
         "{{ '<role>' ~ role ~ '</role>' ~ text(m.content) ~ '<|role_end|>' }}" END PROMPT("'<role>ASSISTANT</role>'");

static const char llama4[] =
    TEXT "{{ bos_token }}" EACH
         "{{ '<|header_start|>' ~ m.role ~ '<|header_end|>\\n\\n' ~ text(m.content).strip() ~ '<|eot|>' }}" END PROMPT(
             "'<|header_start|>assistant<|header_end|>\\n\\n'");

static const char gpt_oss[] = TEXT
    "{{ '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\\n"
    "Knowledge cutoff: 2024-06\\nCurrent date: ' ~ strftime_now('%Y-%m-%d') ~ '\\n\\nReasoning: ' ~ "
    "(reasoning_effort if reasoning_effort is defined else 'medium') ~ '\\n\\n# Valid channels: analysis, commentary, "
    "final. Channel must be included for every message.<|end|>' }}" EACH "{%- if m.role in ['system', 'developer'] -%}"
    "{{ '<|start|>developer<|message|># Instructions\\n\\n' ~ text(m.content) ~ '\\n\\n<|end|>' }}"
    "{%- elif m.role == 'user' -%}{{ '<|start|>user<|message|>' ~ text(m.content) ~ '<|end|>' }}"
    "{%- elif m.role == 'assistant' -%}{{ '<|start|>assistant<|channel|>final<|message|>' ~ text(m.content) ~ "
    "('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') }}" ROLE_ERROR END PROMPT(
        "'<|start|>assistant'");

const mf_builtin_template mf_builtin_templates[] = {
    { "chatml", chatml, { "<|im_start|>", "<|im_end|>" }, { "<|im_end|>" } },
    { "deepseek-v2", deepseek_v2, { "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>" }, { "<｜end▁of▁sentence｜>" } },
    { "deepseek-v3",
      deepseek_v3,
      { "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>" },
      { "<｜end▁of▁sentence｜>" } },
    { "dots1",
      dots1,
      { "<|userprompt|>", "<|endofuserprompt|>", "<|response|>", "<|endofresponse|>" },
      { "<|endofresponse|>" } },
    { "ernie-4.5", ernie45, { "<|begin_of_sentence|>", "<|end_of_sentence|>" }, { "<|end_of_sentence|>" } },
    { "glm-4.5",
      glm45,
      { "[gMASK]", "<sop>", "<|user|>", "<|assistant|>" },
      { "<|endoftext|>", "<|user|>", "<|observation|>" } },
    { "gpt-oss", gpt_oss, { "<|start|>", "<|message|>", "<|channel|>", "<|end|>" }, { "<|return|>", "<|call|>" } },
    { "hunyuan", hunyuan, { "<|startoftext|>", "<|extra_0|>", "<|extra_4|>", "<|eos|>" }, { "<|eos|>" } },
    { "kimi-k2", kimi_k2, { "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>" }, { "<|im_end|>" } },
    { "ling", ling, { "<role>", "</role>", "<|role_end|>" }, { "<|role_end|>" } },
    { "llama-4", llama4, { "<|header_start|>", "<|header_end|>", "<|eot|>" }, { "<|eot|>" } },
    { "minimax-m2", minimax_m2, { "]~!b[", "]~b]", "[e~[" }, { "[e~[" } },
    { "mixtral", mixtral, { "<s>", "</s>" }, { "</s>" } },
    { "olmoe", olmoe, { "<|endoftext|>" }, { "<|endoftext|>" } },
    { NULL, NULL, { NULL }, { NULL } }
};

const mf_builtin_template *mf_builtin_template_find(const char *name)
{
    for (const mf_builtin_template *t = mf_builtin_templates; t->name; t++) {
        if (strcmp(t->name, name) == 0) {
            return t;
        }
    }
    return NULL;
}

static bool has_marks(const mf_builtin_template *t, const mf_tokenizer *tok)
{
    for (const char *const *mark = t->marks; *mark; mark++) {
        if (!mf_tokenizer_is_added(tok, mf_tokenizer_token_id(tok, *mark))) {
            return false;
        }
    }
    return true;
}

const mf_builtin_template *mf_builtin_template_choose(const char *const *names, const mf_tokenizer *tok)
{
    for (; names && *names; names++) {
        const mf_builtin_template *t = mf_builtin_template_find(*names);
        if (t && has_marks(t, tok)) {
            return t;
        }
    }
    return NULL;
}

void mf_builtin_template_list(char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (const mf_builtin_template *t = mf_builtin_templates; t->name; t++) {
        int n = snprintf(out + used, size - used, "%s%s", used ? ", " : "", t->name);
        if (n < 0 || (size_t)n >= size - used) {
            return;
        }
        used += (size_t)n;
    }
}
