/* mutate.c - see mutate.h. */
#include "mutate.h"

#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/random.h"
#include "checkpoint_writer.h"

enum { MAX_FILES = 64 };

typedef struct mutant_file {
    char name[256];
    uint8_t *data;
    size_t size;
} mutant_file;

typedef struct mutant {
    mutant_file files[MAX_FILES];
    int num_files;
    uint64_t random;
    char *what;
    size_t what_size;
} mutant;

static size_t below(mutant *m, size_t n)
{
    return n ? (size_t)mf_random_below(&m->random, n) : 0;
}

static void note(mutant *m, const char *action, const mutant_file *f, size_t at)
{
    size_t n = strlen(m->what);
    snprintf(m->what + n, m->what_size - n, "%s%s %s at %zu", n ? ", " : "", action, f->name, at);
}

static bool is_json(const mutant_file *f)
{
    size_t n = strlen(f->name);
    return n > 5 && strcmp(f->name + n - 5, ".json") == 0;
}

/* The part of a file that is JSON text: all of it, or a safetensors header as far as the file holds it. */
static void text_part(const mutant_file *f, size_t *first, size_t *size)
{
    *first = is_json(f) ? 0 : 8;
    *size = f->size;
    if (!is_json(f)) {
        uint64_t n = 0;
        for (int i = 7; i >= 0 && f->size >= 8; i--) {
            n = n << 8 | f->data[i];
        }
        *size = f->size < 8 ? 0 : n > f->size - 8 ? f->size - 8 : (size_t)n;
        *first = f->size < 8 ? 0 : 8;
    }
}

/* data[at, at + old) becomes the given bytes. */
static void splice(mutant_file *f, size_t at, size_t old, const void *bytes, size_t n)
{
    uint8_t *data = malloc(f->size - old + n + 1);
    memcpy(data, f->data, at);
    memcpy(data + at, bytes, n);
    memcpy(data + at + n, f->data + at + old, f->size - at - old);
    free(f->data);
    f->data = data;
    f->size = f->size - old + n;
}

/* A replacement inside a safetensors header keeps the header's length field right. */
static void splice_text(mutant_file *f, size_t at, size_t old, const char *text)
{
    size_t first, size, n = strlen(text);
    text_part(f, &first, &size);
    splice(f, at, old, text, n);
    if (!is_json(f) && f->size >= 8) {
        uint64_t length = size - old + n;
        for (int i = 0; i < 8; i++) {
            f->data[i] = (uint8_t)(length >> (8 * i));
        }
    }
}

/* The k-th token of the kind in text: a number or a quoted string; false when there is none. */
static bool find_token(mutant *m, const mutant_file *f, bool number, size_t *at, size_t *length)
{
    size_t first, size, count = 0;
    text_part(f, &first, &size);
    for (int pass = 0; pass < 2; pass++) {
        size_t wanted = pass ? below(m, count) : 0, seen = 0;
        for (size_t i = first; i < first + size;) {
            size_t n = 0;
            bool is_number = isdigit(f->data[i]) || f->data[i] == '-';
            if (f->data[i] == '"') {
                for (n = 1; i + n < first + size && f->data[i + n] != '"'; n++) {
                }
                n = i + n < first + size ? n + 1 : n;
            } else if (is_number) {
                while (i + n < first + size && strchr("0123456789+-.eE", f->data[i + n])) {
                    n++;
                }
            }
            if (n > 0 && number == is_number) {
                if (pass && seen == wanted) {
                    *at = i;
                    *length = n;
                    return true;
                }
                seen++;
            }
            i += n ? n : 1;
        }
        count = seen;
        if (count == 0) {
            return false;
        }
    }
    return false;
}

static void change_number(mutant *m, mutant_file *f)
{
    static const char *const numbers[] = { "0",
                                           "-1",
                                           "1",
                                           "2",
                                           "3",
                                           "7",
                                           "16",
                                           "64",
                                           "128",
                                           "255",
                                           "256",
                                           "1000",
                                           "65536",
                                           "1048576",
                                           "2147483647",
                                           "2147483648",
                                           "4294967295",
                                           "4294967296",
                                           "4611686018427387904",
                                           "9223372036854775807",
                                           "9223372036854775808",
                                           "-9223372036854775808",
                                           "1e3",
                                           "0.5",
                                           "1e-300",
                                           "1e308",
                                           "1e400",
                                           "null",
                                           "true",
                                           "\"8\"",
                                           "[]",
                                           "{}",
                                           "[1,2]",
                                           "" };
    size_t at, n;
    if (find_token(m, f, true, &at, &n)) {
        splice_text(f, at, n, numbers[below(m, sizeof numbers / sizeof numbers[0])]);
        note(m, "number", f, at);
    }
}

static void change_string(mutant *m, mutant_file *f)
{
    static const char *const strings[] = { "\"\"",
                                           "\"x\"",
                                           "\"F32\"",
                                           "\"BF16\"",
                                           "\"F64\"",
                                           "\"F8_E4M3\"",
                                           "\"I8\"",
                                           "\"dtype\"",
                                           "\"shape\"",
                                           "\"data_offsets\"",
                                           "\"../x\"",
                                           "\"/etc/passwd\"",
                                           "\"model.safetensors\"",
                                           "\"yarn\"",
                                           "\"fp8\"",
                                           "\"greedy\"",
                                           "\"DeepseekV2ForCausalLM\"",
                                           "\"\\u0000\"",
                                           "\"\\ud800\"",
                                           "1",
                                           "null",
                                           "{}",
                                           "\"model.layers.1.mlp.gate.weight\"",
                                           "\"model.norm.weight\"",
                                           "\"lm_head.weight\"" };
    size_t at, n;
    if (find_token(m, f, false, &at, &n)) {
        splice_text(f, at, n, strings[below(m, sizeof strings / sizeof strings[0])]);
        note(m, "string", f, at);
    }
}

/* One token of the text over another of the same kind. */
static void copy_token(mutant *m, mutant_file *f)
{
    bool number = below(m, 2);
    size_t from, n, at, old;
    if (find_token(m, f, number, &from, &n) && n < 400 && find_token(m, f, number, &at, &old)) {
        char text[400];
        memcpy(text, f->data + from, n);
        text[n] = '\0';
        splice_text(f, at, old, text);
        note(m, "copied token", f, at);
    }
}

static void change_byte(mutant *m, mutant_file *f, size_t first, size_t size, const char *action)
{
    if (size > 0) {
        size_t at = first + below(m, size);
        f->data[at] = below(m, 2) ? (uint8_t)(f->data[at] ^ (1u << below(m, 8))) : (uint8_t)below(m, 256);
        note(m, action, f, at);
    }
}

static void cut_or_grow(mutant *m, mutant_file *f)
{
    size_t how = below(m, 4);
    if (how == 0) {
        f->size = below(m, f->size + 1);
    } else if (how == 1) {
        f->size -= f->size ? 1 + below(m, f->size < 16 ? f->size : 16) : 0;
    } else if (how == 2) {
        uint8_t junk[16] = { 0 };
        splice(f, f->size, 0, junk, 1 + below(m, 16));
    } else {
        size_t n = below(m, f->size < 32 ? f->size + 1 : 32), at = below(m, f->size - n + 1);
        splice(f, at, n, "", 0);
    }
    note(m, "length", f, f->size);
}

static void change_once(mutant *m)
{
    /* Half of the changes hit the small JSON files, which would be rare among the shards otherwise. */
    int pick = (int)below(m, (size_t)m->num_files);
    for (int tries = 0; tries < 64 && below(m, 2) && !is_json(&m->files[pick]); tries++) {
        pick = (int)below(m, (size_t)m->num_files);
    }
    mutant_file *f = &m->files[pick];
    size_t first, size;
    text_part(f, &first, &size);
    switch (below(m, 16)) {
    case 0:
        cut_or_grow(m, f);
        break;
    case 1:
        change_byte(m, f, 0, f->size < 8 ? f->size : 8, "length field");
        break;
    case 2:
        change_byte(m, f, first, size, "text byte");
        break;
    case 3:
    case 4:
        change_byte(m, f, 0, f->size, "byte");
        break;
    case 5:
        copy_token(m, f);
        break;
    case 6: /* two files change places */
    {
        mutant_file *g = &m->files[below(m, (size_t)m->num_files)];
        mutant_file swap = *f;
        f->data = g->data;
        f->size = g->size;
        g->data = swap.data;
        g->size = swap.size;
        note(m, "swapped", f, 0);
        break;
    }
    case 7:
        f->size = below(m, 4) ? f->size : 0;
        note(m, "emptied", f, f->size);
        break;
    case 8:
    case 9:
    case 10:
        change_string(m, f);
        break;
    default:
        change_number(m, f);
        break;
    }
}

void mutate_directory(const char *from, const char *to, uint64_t seed, char *what, size_t what_size)
{
    mutant m = { .what = what, .what_size = what_size, .random = seed };
    what[0] = '\0';
    DIR *listing = opendir(from);
    for (const struct dirent *e; listing && (e = readdir(listing)) && m.num_files < MAX_FILES;) {
        if (e->d_name[0] != '.' && e->d_type != DT_DIR) {
            snprintf(m.files[m.num_files++].name, sizeof m.files[0].name, "%s", e->d_name);
        }
    }
    closedir(listing);
    /* The system's order differs between runs. */
    qsort(m.files, (size_t)m.num_files, sizeof m.files[0], (int (*)(const void *, const void *))strcmp);
    char path[700];
    for (int i = 0; i < m.num_files; i++) {
        snprintf(path, sizeof path, "%s/%s", from, m.files[i].name);
        m.files[i].data = cw_read(path, &m.files[i].size);
    }
    mf_random_next(&m.random);
    size_t changes = 1 + below(&m, 3);
    for (size_t i = 0; i < changes; i++) {
        change_once(&m);
    }
    listing = opendir(to);
    for (const struct dirent *e; listing && (e = readdir(listing));) {
        snprintf(path, sizeof path, "%s/%s", to, e->d_name);
        if (e->d_name[0] != '.') {
            unlink(path);
        }
    }
    closedir(listing);
    for (int i = 0; i < m.num_files; i++) {
        snprintf(path, sizeof path, "%s/%s", to, m.files[i].name);
        cw_write_bytes(path, m.files[i].data, m.files[i].size);
        free(m.files[i].data);
    }
}
