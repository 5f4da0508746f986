/* amx_hardware.c - one tile product by the instructions themselves: what amx_emulation.c compares with. */
#include "amx_hardware.h"

#include "kernels/cpu/amx_tiles.h"

void amx_hardware_product(bool int8, int depth, const void *left, const void *right, void *sums)
{
    const amx_config config = amx_config_of(AMX_SIDE, depth);
    AMX_CONFIGURE(&config);
    AMX_LOAD(0, sums, AMX_ROW_BYTES);
    AMX_LOAD(4, left, AMX_ROW_BYTES);
    AMX_LOAD(6, right, AMX_ROW_BYTES);
    if (int8) {
        AMX_INT8(0, 4, 6);
    } else {
        AMX_BF16(0, 4, 6);
    }
    AMX_STORE(0, sums, AMX_ROW_BYTES);
    AMX_RELEASE();
}
