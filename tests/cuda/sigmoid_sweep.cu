/* sigmoid_sweep.cu - the gate's quick exp and sigmoid against its plain ones, every float of their ranges, on this GPU.
 * They are private to the kernel's file, so that is included. */
#include "kernels/cuda/gate_rows.cu"

#include <stdio.h>

__global__ void sweep(uint32_t last, int what, unsigned long long *wrong, uint32_t *example)
{
    const uint32_t step = gridDim.x * blockDim.x;
    for (uint64_t u = blockIdx.x * blockDim.x + threadIdx.x; u <= last; u += step) {
        const float x = __uint_as_float((uint32_t)u | (what == 1 ? 0u : 0x80000000u));
        const float got = what == 2 ? exp_in_range(x) : sigmoid_in_range(x);
        const float want = what == 2 ? gate_exp(x) : gate_sigmoid(x);
        if (__float_as_uint(got) != __float_as_uint(want)) {
            atomicAdd(wrong, 1ull);
            *example = __float_as_uint(x);
        }
    }
}

int main()
{
    static const struct {
        const char *claim;
        float last;
        int what;
    } sweeps[] = { { "exp_in_range of 0 to -87", 87.0f, 2 },
                   { "sigmoid_in_range of 0 to 64", 64.0f, 1 },
                   { "sigmoid_in_range of 0 to -64", 64.0f, 0 } };
    unsigned long long *wrong;
    int failed = 0;
    if (cudaMallocManaged(&wrong, 16) != cudaSuccess) {
        printf("Bail out! no GPU\n");
        return 1;
    }
    for (int i = 0; i < 3; i++) {
        uint32_t last, *example = (uint32_t *)(wrong + 1);
        memcpy(&last, &sweeps[i].last, 4);
        *wrong = 0;
        sweep<<<4096, 256>>>(last, sweeps[i].what, wrong, example);
        const cudaError_t error = cudaDeviceSynchronize();
        const bool ok = error == cudaSuccess && *wrong == 0;
        failed |= !ok;
        printf("%s %d - %s (%s)\n", ok ? "ok" : "not ok", i + 1, sweeps[i].claim, cudaGetErrorString(error));
        if (!ok) {
            printf("# %llu differ, one at 0x%08x\n", *wrong, *example);
        }
    }
    printf("1..3\n");
    return failed;
}
