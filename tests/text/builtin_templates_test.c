/* builtin_templates_test.c - what the built-in chat templates write, and when one is taken. */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "text/chat_template.h"
#include "text/prompt.h"
#include "text/tiny_tokenizer.h"

static int64_t fixed_clock(void)
{
    return 1722470400123456789; /* 2024-08-01 */
}

/* Conversations: S system, U user, A assistant, in turn, each with its letter and place as content. */
static json_t *variables_of(const char *turns, bool prompt)
{
    json_t *messages = json_array();
    for (int i = 0; turns[i]; i++) {
        const char *role = turns[i] == 'S' ? "system" : turns[i] == 'U' ? "user" : "assistant";
        char content[3] = { turns[i], (char)('0' + i), '\0' };
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", role, "content", content));
    }
    return json_pack("{s:o, s:n, s:b, s:s, s:s}", "messages", messages, "tools", "add_generation_prompt", (int)prompt,
                     "bos_token", "<bos>", "eos_token", "<eos>");
}

static void check_text(const char *name, const char *turns, bool prompt, const char *expected)
{
    mf_error err = { 0 };
    const mf_builtin_template *t = mf_builtin_template_find(name);
    CHECK(t != NULL);
    mf_chat_template *parsed = NULL;
    mf_buffer out = { 0 };
    json_t *variables = variables_of(turns, prompt);
    CHECK_OK(mf_chat_template_parse(t->source, strlen(t->source), name, &parsed, &err), err);
    CHECK_OK(mf_chat_template_render(parsed, variables, NULL, &out, &err), err);
    CHECK_STR(mf_buffer_text(&out), expected);
    mf_buffer_close(&out);
    json_decref(variables);
    mf_chat_template_close(&parsed);
}

TEST(builtin_templates_write_what_the_releases_write)
{
    mf_chat_template_clock_ns = fixed_clock;
    check_text("chatml", "SU", true,
               "<|im_start|>system\nS0<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n");
    check_text("deepseek-v2", "SUAU", true, "<bos>S0\n\nUser: U1\n\nAssistant: A2<eos>User: U3\n\nAssistant:");
    check_text("deepseek-v3", "SUAU", true,
               "<bos>S0<｜User｜>U1<｜Assistant｜>A2<｜end▁of▁sentence｜><｜User｜>U3<｜Assistant｜>");
    check_text("dots1", "SU", true, "<|system|>S0<|endofsystem|><|userprompt|>U1<|endofuserprompt|><|response|>");
    check_text("dots1", "UA", false,
               "<|system|>You are a helpful assistant.<|endofsystem|><|userprompt|>U0<|endofuserprompt|><|response|>A1"
               "<|endofresponse|>");
    check_text("ernie-4.5", "SUAU", true,
               "<|begin_of_sentence|>S0\nUser: U1\nAssistant: A2<|end_of_sentence|>User: U3\nAssistant: ");
    check_text("glm-4.5", "SUAU", true,
               "[gMASK]<sop><|system|>\nS0<|user|>\nU1<|assistant|>\n<think></think>\nA2<|user|>\nU3<|assistant|>");
    check_text(
        "gpt-oss", "SUA", false,
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
        "2024-06\n"
        "Current date: 2024-08-01\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must "
        "be "
        "included for every message.<|end|><|start|>developer<|message|># Instructions\n\nS0\n\n<|end|><|start|>user"
        "<|message|>U1<|end|><|start|>assistant<|channel|>final<|message|>A2<|return|>");
    check_text("hunyuan", "SUAU", true,
               "<|startoftext|>S0<|extra_4|>U1<|extra_0|>A2<|eos|><|startoftext|>U3<|extra_0|>");
    check_text("hunyuan", "UAU", true, "<|startoftext|>U0<|extra_0|>A1<|eos|><|startoftext|>U2<|extra_0|>");
    check_text(
        "kimi-k2", "U", true,
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|><|im_user|>user"
        "<|im_middle|>U0<|im_end|><|im_assistant|>assistant<|im_middle|>");
    check_text("ling", "SUA", false,
               "<role>SYSTEM</role>S0<|role_end|><role>HUMAN</role>U1<|role_end|><role>ASSISTANT</role>A2<|role_end|>");
    check_text("llama-4", "SU", true,
               "<bos><|header_start|>system<|header_end|>\n\nS0<|eot|><|header_start|>user<|header_end|>\n\nU1<|eot|>"
               "<|header_start|>assistant<|header_end|>\n\n");
    check_text("minimax-m2", "SUAU", true,
               "]~!b[]~b]system\nS0[e~[\n]~b]user\nU1[e~[\n]~b]ai\nA2[e~[\n]~b]user\nU3[e~[\n]~b]ai\n<think>\n");
    check_text("mixtral", "SUAU", true, "<bos> [INST] S0\n\nU1 [/INST] A2<eos> [INST] U3 [/INST]");
    check_text("olmoe", "SUA", false, "<bos><|system|>\nS0\n<|user|>\nU1\n<|assistant|>\nA2<eos>");
}

TEST(builtin_templates_refuse_tools_by_name)
{
    mf_error err = { 0 };
    for (const mf_builtin_template *t = mf_builtin_templates; t->name; t++) {
        mf_chat_template *parsed = NULL;
        mf_buffer out = { 0 };
        json_t *variables = variables_of("U", true);
        json_object_set_new(variables, "tools", json_pack("[{s:s}]", "type", "function"));
        CHECK_OK(mf_chat_template_parse(t->source, strlen(t->source), t->name, &parsed, &err), err);
        CHECK_EQ(mf_chat_template_render(parsed, variables, NULL, &out, &err), MF_ERR_INVALID);
        CHECK_STR(err.message, "the built-in chat template has no tools; use --chat-template FILE");
        mf_buffer_close(&out);
        json_decref(variables);
        mf_chat_template_close(&parsed);
    }
}

TEST(builtin_template_is_chosen_only_where_the_tokenizer_has_its_tokens)
{
    static const char *const names[] = { "kimi-k2", "deepseek-v3", NULL };
    mf_tokenizer *tok = tiny_open(&(tiny_parts){
        .added_tokens = "[{\"id\":256,\"content\":\"<｜User｜>\"},{\"id\":257,\"content\":\"<｜Assistant｜>\"},"
                        "{\"id\":258,\"content\":\"<｜end▁of▁sentence｜>\"}]" });
    CHECK_STR(mf_builtin_template_choose(names, tok)->name, "deepseek-v3");
    CHECK(mf_builtin_template_choose((const char *const[]){ "glm-4.5", NULL }, tok) == NULL);
    CHECK(mf_builtin_template_choose(NULL, tok) == NULL);
    mf_tokenizer_close(&tok);
}

static void put_file(const char *dir, const char *name, const char *text, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, size, f) == size && fclose(f) == 0);
}

TEST(builtin_template_serves_a_checkpoint_without_one_and_its_turns_end)
{
    static const char *const fallbacks[] = { "glm-4.5", "chatml", NULL };
    static const char config[] = "{\"eos_token\":\"<|endoftext|>\"}";
    char dir[] = "/tmp/moefuse-builtin-XXXXXX";
    CHECK(mkdtemp(dir) != NULL);
    mf_buffer json = { 0 };
    tiny_json(&(tiny_parts){ .added_tokens = "[{\"id\":256,\"content\":\"<|endoftext|>\",\"special\":true},"
                                             "{\"id\":257,\"content\":\"<|im_start|>\",\"special\":true},"
                                             "{\"id\":258,\"content\":\"<|im_end|>\",\"special\":true}]" },
              &json);
    put_file(dir, "tokenizer.json", mf_buffer_text(&json), json.size);
    put_file(dir, "tokenizer_config.json", config, sizeof config - 1);
    mf_error err = { 0 };
    mf_prompt prompt;
    CHECK_OK(mf_prompt_open(dir, NULL, fallbacks, 128, &prompt, &err), err);
    CHECK(prompt.is_fallback);
    CHECK_STR(prompt.builtin->name, "chatml");
    CHECK_EQ(prompt.num_stop_token_ids, 2);
    CHECK_EQ(prompt.stop_token_ids[0], 256);
    CHECK_EQ(prompt.stop_token_ids[1], 258);
    mf_prompt_close(&prompt);
    CHECK_OK(mf_prompt_open(dir, NULL, NULL, 128, &prompt, &err), err);
    CHECK(!prompt.chat_template && !prompt.builtin && prompt.num_stop_token_ids == 1);
    mf_prompt_close(&prompt);
    put_file(dir, "chat_template.jinja", "own", 3);
    CHECK_OK(mf_prompt_open(dir, NULL, fallbacks, 128, &prompt, &err), err);
    CHECK(prompt.chat_template && !prompt.builtin);
    mf_prompt_close(&prompt);
    CHECK_OK(mf_prompt_open(dir, "mixtral", fallbacks, 128, &prompt, &err), err);
    CHECK(!prompt.is_fallback);
    CHECK_STR(prompt.builtin->name, "mixtral");
    mf_prompt_close(&prompt);
    mf_buffer_close(&json);
    static const char *const names[] = { "tokenizer.json", "tokenizer_config.json", "chat_template.jinja" };
    for (int i = 0; i < 3; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        CHECK_EQ(unlink(path), 0);
    }
    CHECK_EQ(rmdir(dir), 0);
}
