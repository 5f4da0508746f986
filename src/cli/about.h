/* about.h - which build ran on which machine: beside every result that is saved. */
#ifndef MF_CLI_ABOUT_H
#define MF_CLI_ABOUT_H

#include <jansson.h>

#include "cli/flags.h"

/* A new object: version, commit, machine, cpu, cores, isa. */
json_t *mf_about_build(void);
/* A new object: the rows' values by name without dashes; rows without a value are left out. */
json_t *mf_about_flags(const mf_flag *rows, size_t num_rows);

#endif
