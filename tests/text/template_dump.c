/* template_dump.c - renders chat templates for chat_template_oracle.py.
 *
 *   template_dump TEMPLATE VARIABLES     prints the text, or "error: STATUS: MESSAGE" and ends with 1
 *   template_dump --lines                for each line {"template": ..., "variables": ..., "limits"?: {fuel, range,
 *                                        output_bytes, time_ns}} of standard input one line: {"text": ...} or
 *                                        {"error": ..., "status": ...}
 *   template_dump --built-in             prints {NAME: SOURCE} of the built-in templates
 * --clock NS stands before either and fixes the time of strftime_now. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "text/builtin_templates.h"
#include "text/chat_template.h"

static int64_t fixed_ns;

static int64_t fixed_clock(void)
{
    return fixed_ns;
}

static mf_status render(const char *source, size_t size, const char *name, const json_t *variables,
                        const mf_template_limits *limits, mf_buffer *out, mf_error *err)
{
    mf_chat_template *t;
    MF_TRY(mf_chat_template_parse(source, size, name, &t, err));
    mf_status status = mf_chat_template_render(t, variables, limits, out, err);
    mf_chat_template_close(&t);
    return status;
}

static int dump_files(const char *template_path, const char *variables_path)
{
    mf_error err = { 0 };
    mf_file file = { 0 };
    json_t *variables = NULL;
    mf_buffer out = { 0 };
    mf_template_limits limits = { .time_ns = 60000000000 };
    mf_status status = mf_file_open(template_path, false, 0, &file, &err);
    MF_TRY_GOTO(status, done);
    MF_TRY_GOTO(mf_json_load(variables_path, 0, NULL, &variables, &err), done);
    status = render((const char *)file.data, file.size, template_path, variables, &limits, &out, &err);
done:
    if (status == MF_OK) {
        fwrite(mf_buffer_text(&out), 1, out.size, stdout);
    } else {
        printf("error: %s: %s\n", mf_status_name(status), err.message);
    }
    mf_buffer_close(&out);
    json_decref(variables);
    mf_file_close(&file);
    return status != MF_OK;
}

static json_t *answer(const json_t *request)
{
    mf_error err = { 0 };
    mf_buffer out = { 0 };
    const json_t *source = json_object_get(request, "template");
    const json_t *l = json_object_get(request, "limits");
    mf_template_limits limits = {
        .fuel = json_integer_value(json_object_get(l, "fuel")),
        .output_bytes = (size_t)json_integer_value(json_object_get(l, "output_bytes")),
        .range = json_integer_value(json_object_get(l, "range")),
        .time_ns = json_integer_value(json_object_get(l, "time_ns")),
    };
    limits.time_ns = limits.time_ns ? limits.time_ns : 60000000000;
    mf_status status = render(json_string_value(source), json_string_length(source), "template",
                              json_object_get(request, "variables"), &limits, &out, &err);
    json_t *reply = status == MF_OK ? json_pack("{s:o}", "text", json_stringn(mf_buffer_text(&out), out.size))
                                    : json_pack("{s:s, s:s}", "error", err.message, "status", mf_status_name(status));
    mf_buffer_close(&out);
    return reply;
}

static int dump_lines(void)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    int failed = 0;
    while ((n = getline(&line, &capacity, stdin)) > 0) {
        json_error_t problem;
        json_t *request = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, &problem);
        json_t *reply = request ? answer(request) : json_pack("{s:s, s:s}", "error", problem.text, "status", "request");
        if (!reply || json_dumpf(reply, stdout, JSON_COMPACT) != 0) {
            /* An error message cut inside a character is not UTF-8. */
            printf("{\"error\":\"?\",\"status\":\"?\"}");
        }
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        json_decref(request);
    }
    free(line);
    return failed;
}

static int dump_built_in(void)
{
    json_t *all = json_object();
    for (const mf_builtin_template *t = mf_builtin_templates; t->name; t++) {
        json_object_set_new(all, t->name, json_string(t->source));
    }
    const int failed = json_dumpf(all, stdout, JSON_INDENT(1)) != 0;
    json_decref(all);
    return failed;
}

int main(int argc, char **argv)
{
    int at = 1;
    if (argc > 2 && strcmp(argv[1], "--clock") == 0) {
        fixed_ns = strtoll(argv[2], NULL, 10);
        mf_chat_template_clock_ns = fixed_clock;
        at = 3;
    }
    if (argc == at + 1 && strcmp(argv[at], "--lines") == 0) {
        return dump_lines();
    }
    if (argc == at + 1 && strcmp(argv[at], "--built-in") == 0) {
        return dump_built_in();
    }
    if (argc == at + 2) {
        return dump_files(argv[at], argv[at + 1]);
    }
    fprintf(stderr, "usage: template_dump [--clock NS] TEMPLATE VARIABLES | --lines | --built-in\n");
    return 2;
}
