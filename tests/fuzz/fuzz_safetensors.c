/* fuzz_safetensors.c - any bytes as a .safetensors file: refused, or every tensor's bytes can be read. */
#include <stdint.h>
#include <stdlib.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mf_checkpoint *c;
    mf_error err;
    volatile uint8_t sink = 0;
    if (mf_safetensors_parse(data, size, "f.safetensors", &c, &err) != MF_OK) {
        if (!err.message[0] || c) {
            abort();
        }
        return 0;
    }
    uint64_t sum = 0;
    for (int64_t i = 0; i < mf_checkpoint_num_tensors(c); i++) {
        const mf_st_tensor *t = mf_checkpoint_tensor(c, i);
        sum += t->bytes;
        if (t->bytes != (uint64_t)t->num_elements * mf_dtype_size(t->dtype) || mf_checkpoint_find(c, t->name) != t) {
            abort();
        }
        for (uint64_t j = 0; j < t->bytes; j++) {
            sink = (uint8_t)(sink ^ t->data[j]);
        }
    }
    if (sum != (uint64_t)mf_checkpoint_bytes(c) || sum > size) {
        abort();
    }
    mf_checkpoint_close(&c);
    return 0;
}
