/* tool_format.c - see tool_format.h. */
#include "server/tool_format.h"

#include <string.h>

/* The more particular markers come first: GLM's tags stand inside hermes' own. */
static const mf_tool_format formats[] = {
    { .name = "glm45",
      .syntax = MF_CALL_ARG_KEYS,
      .call_begin = "<tool_call>",
      .call_end = "</tool_call>",
      .marker = "<arg_key>",
      .families = { "glm4_moe", "glm4_moe_lite" } },
    { .name = "kimi_k2",
      .syntax = MF_CALL_SEPARATED,
      .call_begin = "<|tool_call_begin|>",
      .call_end = "<|tool_call_end|>",
      .section_begin = "<|tool_calls_section_begin|>",
      .section_end = "<|tool_calls_section_end|>",
      .separator = "<|tool_call_argument_begin|>",
      .head_is_id = true,
      .written_by_specials = true,
      .marker = "<|tool_calls_section_begin|>",
      .families = { "kimi_k2" } },
    { .name = "deepseek_v3",
      .syntax = MF_CALL_SEPARATED,
      .call_begin = "<｜tool▁call▁begin｜>",
      .call_end = "<｜tool▁call▁end｜>",
      .section_begin = "<｜tool▁calls▁begin｜>",
      .section_end = "<｜tool▁calls▁end｜>",
      .separator = "<｜tool▁sep｜>",
      .fenced = true,
      .written_by_specials = true,
      .marker = "<｜tool▁calls▁begin｜>",
      .families = { "deepseek_v2", "deepseek_v3", "deepseek_v32" } },
    { .name = "harmony",
      .syntax = MF_CALL_CHANNELS,
      .written_by_specials = true,
      .others = { "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>" },
      .marker = "<|channel|>",
      .families = { "gpt_oss" } },
    { .name = "hermes",
      .syntax = MF_CALL_OBJECT,
      .call_begin = "<tool_call>",
      .call_end = "</tool_call>",
      .marker = "<tool_call>",
      .families = { "qwen2_moe", "qwen3_moe", "qwen3_next" } },
};

enum { NUM_FORMATS = sizeof formats / sizeof *formats };

static bool holds(const char *text, size_t size, const char *part)
{
    return text && memmem(text, size, part, strlen(part)) != NULL;
}

const mf_tool_format *mf_tool_format_find(const char *family, const char *template_source, size_t template_size)
{
    for (size_t i = 0; i < NUM_FORMATS; i++) {
        if (holds(template_source, template_size, formats[i].marker)) {
            return &formats[i];
        }
    }
    for (size_t i = 0; family && i < NUM_FORMATS; i++) {
        for (const char *const *f = formats[i].families; *f; f++) {
            if (strcmp(*f, family) == 0) {
                return &formats[i];
            }
        }
    }
    return &formats[NUM_FORMATS - 1];
}

bool mf_template_has_reasoning(const char *template_source, size_t template_size)
{
    return holds(template_source, template_size, "</think>");
}

static bool is_text(const char *marker, const char *text, size_t size)
{
    return marker && strlen(marker) == size && memcmp(marker, text, size) == 0;
}

bool mf_tool_format_is_marker(const mf_tool_format *format, const char *text, size_t size)
{
    const char *const markers[] = { format->call_begin,  format->call_end,  format->section_begin,
                                    format->section_end, format->separator, "<think>",
                                    "</think>" };
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        if (is_text(markers[i], text, size)) {
            return true;
        }
    }
    for (const char *const *other = format->others; *other; other++) {
        if (is_text(*other, text, size)) {
            return true;
        }
    }
    return false;
}
