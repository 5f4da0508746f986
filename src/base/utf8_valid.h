/* utf8_valid.h - whether bytes are UTF-8; apart from json.c, so that what only logs does not need a JSON library. */
#ifndef MF_BASE_UTF8_VALID_H
#define MF_BASE_UTF8_VALID_H

#include <stdbool.h>
#include <stddef.h>

/* true when bytes are well-formed UTF-8; else *bad_at (optional) is the offset of the first wrong byte. */
bool mf_utf8_valid(const char *text, size_t size, size_t *bad_at);

#endif
