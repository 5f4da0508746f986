/* mutate.h - seeded mutants of a checkpoint directory: the k-th is always the same.  Knows files as bytes and as JSON text,
 * not what they mean. */
#ifndef MF_MUTATE_H
#define MF_MUTATE_H

#include <stddef.h>
#include <stdint.h>

/* Copies the plain files of `from` into the existing directory `to` (emptied first) and changes one to three places in them:
 * header length, header text, tensor data, lengths, JSON values, keys, whole files.  what: one line for messages. */
void mutate_directory(const char *from, const char *to, uint64_t seed, char *what, size_t what_size);

#endif
