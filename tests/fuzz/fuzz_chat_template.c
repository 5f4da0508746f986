/* fuzz_chat_template.c - any bytes as a chat template: refused with a message, or rendered within the limits, twice to the
 * same UTF-8 text.  What follows a byte 0x1e is the JSON of the variables. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "text/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char default_variables[] =
    "{\"s\": \"H\\u00e9 \\ud83d\\ude00\\n\", \"i\": 3, \"f\": 2.5, \"b\": true, \"n\": null, \"l\": [3, 1, 2], \"d\": {\"a\": 1, \"b\": [1]},"
    " \"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"add_generation_prompt\": true, \"messages\": ["
    "{\"role\": \"system\", \"content\": \"be nice\"}, {\"role\": \"user\", \"content\": \"hi\"},"
    " {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"1\", \"function\": {\"name\": \"f\", \"arguments\": {\"q\": \"x\"}}}]},"
    " {\"role\": \"tool\", \"content\": \"42\"}], \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\","
    " \"parameters\": {\"type\": \"object\", \"properties\": {\"q\": {\"type\": \"string\"}}}}}]}";

static int64_t fixed_clock(void)
{
    return 1000000000000000000;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const mf_template_limits limits = { .fuel = 20000, .output_bytes = 1 << 16, .range = 1000, .time_ns = 10000000000 };
    static const mf_json_limits json_limits = { .max_depth = 32, .max_values = 1000 };
    const char *source = (const char *)data;
    const char *split = size ? memchr(source, 0x1e, size) : NULL;
    size_t source_size = split ? (size_t)(split - source) : size;
    const char *text = split ? split + 1 : default_variables;
    size_t text_size = split ? size - source_size - 1 : sizeof default_variables - 1;
    mf_error err = { 0 };
    mf_chat_template *t = NULL;
    json_t *variables = NULL;
    mf_buffer out = { 0 };
    mf_buffer again = { 0 };
    mf_chat_template_clock_ns = fixed_clock;
    if (mf_chat_template_parse(source, source_size, "t", &t, &err) != MF_OK) {
        if (t || !err.message[0] || err.status == MF_ERR_INTERNAL) {
            abort();
        }
        return 0;
    }
    if (mf_json_parse(text, text_size, "variables", &json_limits, &variables, &err) == MF_OK) {
        err = (mf_error){ 0 };
        mf_status status = mf_chat_template_render(t, variables, &limits, &out, &err);
        if (status != MF_OK && (out.size || err.status != status || status == MF_ERR_INTERNAL)) {
            abort();
        }
        if (out.size > limits.output_bytes || !mf_utf8_valid(mf_buffer_text(&out), out.size, NULL)) {
            abort();
        }
        if (mf_chat_template_render(t, variables, &limits, &again, &err) != status || again.size != out.size ||
            memcmp(mf_buffer_text(&again), mf_buffer_text(&out), out.size) != 0) {
            abort();
        }
    }
    mf_buffer_close(&out);
    mf_buffer_close(&again);
    json_decref(variables);
    mf_chat_template_close(&t);
    return 0;
}
