/* host_memory.h - how much memory this process may still take. */
#ifndef MF_ENGINE_HOST_MEMORY_H
#define MF_ENGINE_HOST_MEMORY_H

#include <stdint.h>

/* The smaller of what the machine has available and what the control group leaves, page cache counted as available;
 * 0 when the system does not tell. */
int64_t mf_host_memory_available(void);

/* The number behind `key` ("MemAvailable:") in a text of lines; -1 when there is none. */
int64_t mf_host_memory_find(const char *text, const char *key);

#endif
