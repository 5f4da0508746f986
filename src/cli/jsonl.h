/* jsonl.h - files of JSON documents: one per line, or one document in all; a list counts as its entries. */
#ifndef MF_CLI_JSONL_H
#define MF_CLI_JSONL_H

#include <jansson.h>

#include "base/error.h"

enum { MF_JSONL_MAX_BYTES = 512 << 20 };

/* *out is a new list.  Messages name file and line. */
mf_status mf_jsonl_load(const char *path, json_t **out, mf_error *err);
mf_status mf_jsonl_parse(const char *text, size_t size, const char *name, json_t **out, mf_error *err);

#endif
