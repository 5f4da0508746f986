/* completion.c - what shells and the manual need to know of verbs and flags, printed from the tables that parse them.
 *
 * Each verb is run with nothing but a listener installed: it hands over its table where it would parse its arguments.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

/* ---- bash ---- */

/* Single-quoted for bash: choices, names and help hold no quotes, and one that did would be dropped, not mangled. */
static void print_word(const char *text)
{
    for (; *text; text++) {
        if (*text != '\'') {
            putchar(*text);
        }
    }
}

/* Open ones stand for names that nobody knows here. */
static void print_choices(const char *choices)
{
    for (const char *p = choices; *p;) {
        const size_t len = strcspn(p, "|");
        for (size_t i = 0; i < len && !mf_choice_is_open(p, len); i++) {
            putchar(p[i] == '\'' ? ' ' : p[i]);
        }
        p += len;
        if (*p == '|') {
            putchar(' ');
            p++;
        }
    }
}

static bool takes_path(const mf_flag *flag, bool *only_folders)
{
    const char *argument = flag->argument ? flag->argument : "";
    *only_folders = strcmp(argument, "DIR") == 0 || strcmp(argument, "FOLDER") == 0;
    return *only_folders || strcmp(argument, "FILE") == 0 || strcmp(argument, "PATH") == 0 ||
           strcmp(argument, "F") == 0;
}

static void bash_table(mf_flags_listener *listener, const mf_flag *flags, size_t num_flags)
{
    printf("    '%s')\n        flags='", listener->command);
    for (size_t i = 0; i < num_flags; i++) {
        printf("%s%s%s%s", i ? " " : "", flags[i].name, flags[i].alias ? " " : "",
               flags[i].alias ? flags[i].alias : "");
    }
    printf("'\n        case $prev in\n");
    for (size_t i = 0; i < num_flags; i++) {
        const mf_flag *f = &flags[i];
        if (f->type == MF_FLAG_BOOL) {
            continue;
        }
        bool only_folders;
        printf("        %s%s%s) ", f->name, f->alias ? "|" : "", f->alias ? f->alias : "");
        if (f->choices) {
            printf("values='");
            print_choices(f->choices);
            printf("'");
        } else {
            printf("kind=%s", !takes_path(f, &only_folders) ? "other" : only_folders ? "folder" : "file");
        }
        printf(" ;;\n");
    }
    printf("        esac ;;\n");
}

static void for_each_verb(mf_flags_listener *listener)
{
    mf_flags_listing = listener;
    for (size_t i = 0; i < mf_num_verbs; i++) {
        listener->command = mf_verbs[i].name;
        char *nothing[] = { NULL };
        mf_verbs[i].main(0, nothing);
    }
    mf_flags_listing = NULL;
}

/* The second words of verbs that have modes. */
static void mode_table(mf_flags_listener *listener, const mf_flag *flags, size_t num_flags)
{
    (void)flags;
    (void)num_flags;
    const char *mode = strchr(listener->command, ' ');
    if (mode) {
        printf("    %.*s) modes=\"$modes%s\" ;;&\n", (int)(mode - listener->command), listener->command, mode);
    }
}

static void print_bash(void)
{
    printf("# bash completion for moefuse, made by `moefuse --completion bash`\n"
           "_moefuse()\n{\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev= verbs='");
    for (size_t i = 0; i < mf_num_verbs; i++) {
        printf("%s", i ? " " : "");
        print_word(mf_verbs[i].name);
    }
    printf("' modes= flags= values= kind=\n"
           "    COMPREPLY=()\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        COMPREPLY=($(compgen -W \"$verbs --help --version\" -- \"$cur\"))\n"
           "        return\n"
           "    fi\n"
           "    prev=${COMP_WORDS[COMP_CWORD-1]}\n"
           "    local command=${COMP_WORDS[1]}\n"
           "    case $command in\n");
    mf_flags_listener modes = { .table = mode_table };
    for_each_verb(&modes);
    printf("    *) ;;\n"
           "    esac\n"
           "    if [ -n \"$modes\" ]; then\n"
           "        if [ \"$COMP_CWORD\" -eq 2 ]; then\n"
           "            COMPREPLY=($(compgen -W \"$modes --help\" -- \"$cur\"))\n"
           "            return\n"
           "        fi\n"
           "        command=\"$command ${COMP_WORDS[2]}\"\n"
           "    fi\n"
           "    # --flag=value comes as three words\n"
           "    if [ \"$cur\" = = ]; then cur=; elif [ \"$prev\" = = ]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
           "    case $command in\n");
    mf_flags_listener tables = { .table = bash_table };
    for_each_verb(&tables);
    printf("    *) ;;\n"
           "    esac\n"
           "    if [ -n \"$values\" ]; then COMPREPLY=($(compgen -W \"$values\" -- \"$cur\"))\n"
           "    elif [ \"$kind\" = folder ]; then compopt -o filenames; COMPREPLY=($(compgen -d -- \"$cur\"))\n"
           "    elif [ \"$kind\" = file ]; then compopt -o filenames; COMPREPLY=($(compgen -f -- \"$cur\"))\n"
           "    elif [ \"$kind\" = other ]; then return\n"
           "    elif [[ $cur == -* ]]; then COMPREPLY=($(compgen -W \"$flags\" -- \"$cur\"))\n"
           "    else compopt -o filenames; COMPREPLY=($(compgen -d -- \"$cur\"))\n"
           "    fi\n"
           "}\n"
           "complete -F _moefuse moefuse\n");
}

/* ---- the manual ---- */

enum { ROFF_COLUMNS = 76 };

/* Text for roff in lines of a page's width: a hyphen that is typed, a backslash, and no control character at the start
 * of a line. */
static void print_roff(const char *text)
{
    size_t column = 0;
    for (const char *p = text; *p; p++) {
        if (*p == ' ' && column + 1 + strcspn(p + 1, " ") > ROFF_COLUMNS) {
            putchar('\n');
            column = 0;
            continue;
        }
        if (column == 0 && (*p == '.' || *p == '\'')) {
            printf("\\&");
        }
        column += (*p == '-' || *p == '\\') + 1;
        if (*p == '-') {
            printf("\\-");
        } else if (*p == '\\') {
            printf("\\e");
        } else {
            putchar(*p);
        }
    }
}

static void roff_table(mf_flags_listener *listener, const mf_flag *flags, size_t num_flags)
{
    printf(".SS moefuse %s\n", listener->command);
    for (size_t i = 0; i < num_flags; i++) {
        /* Groups in the order of their first flag, as --help prints them. */
        bool seen = false;
        for (size_t j = 0; j < i; j++) {
            seen = seen || strcmp(flags[j].group, flags[i].group) == 0;
        }
        if (seen) {
            continue;
        }
        printf("%s.I ", i ? ".PP\n" : "");
        print_roff(flags[i].group);
        printf("\n");
        for (size_t j = i; j < num_flags; j++) {
            const mf_flag *f = &flags[j];
            if (strcmp(f->group, flags[i].group) != 0) {
                continue;
            }
            printf(".TP\n");
            if (f->alias) {
                printf("\\fB");
                print_roff(f->alias);
                printf("\\fR, ");
            }
            printf("\\fB");
            print_roff(f->name);
            printf("\\fR");
            if (f->type != MF_FLAG_BOOL) {
                printf(" \\fI");
                print_roff(f->choices ? f->choices : f->argument);
                printf("\\fR");
            }
            printf("\n");
            print_roff(f->help);
            printf("\n");
        }
    }
}

static void print_man(void)
{
    mf_flags_listener tables = { .table = roff_table };
    for_each_verb(&tables);
}

int mf_completion_print(const char *what)
{
    if (strcmp(what, "bash") == 0) {
        print_bash();
    } else if (strcmp(what, "man") == 0) {
        print_man();
    } else {
        mf_error err = { 0 };
        mf_fail(&err, MF_ERR_INVALID, "--completion: expected one of bash|man; got \"%.64s\"", what);
        return mf_usage_error(&err);
    }
    return fflush(stdout) == 0 ? MF_EXIT_OK : MF_EXIT_FAILED;
}
