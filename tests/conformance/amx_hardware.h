/* amx_hardware.h - see amx_hardware.c. */
#ifndef MF_TESTS_AMX_HARDWARE_H
#define MF_TESTS_AMX_HARDWARE_H

#include <stdbool.h>

/* sums [16][16] += left [16][depth words] * right [depth][16 words], rows 64 bytes apart; only where tiles are permitted. */
void amx_hardware_product(bool int8, int depth, const void *left, const void *right, void *sums);

#endif
