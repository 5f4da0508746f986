/* conf.c - shared parts of the conformance programs: see conf.h. */
#include "conf.h"

#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "kernels/ops.h"
#include "small.h"
#include "staging.h"

enum { GUARD = 64, MAX_DEVICES = 16 };

static conf_device devices[MAX_DEVICES];
static int num_devices;

static void close_devices(void)
{
    for (int i = 0; i < num_devices; i++) {
        mf_device_close(&devices[i].device);
    }
}

/* A device whose description is already listed is the same code: not opened twice. */
static void open_device(const char *name, const char *isa, int32_t num_threads)
{
    mf_error err = { 0 };
    mf_device *device = NULL;
    mf_device_options options = { .num_threads = num_threads };
    if (isa) {
        setenv("MOEFUSE_ISA", isa, 1);
    }
    mf_status status = mf_device_open(name, &options, &device, &err);
    unsetenv("MOEFUSE_ISA");
    if (status != MF_OK) {
        fprintf(stderr, "%s %s: %s\n", name, isa ? isa : "", err.message);
        abort();
    }
    for (int i = 0; i < num_devices; i++) {
        if (strncmp(devices[i].label, mf_device_description(device), strlen(mf_device_description(device))) == 0) {
            mf_device_close(&device);
            return;
        }
    }
    conf_device *d = &devices[num_devices++];
    d->device = device;
    stage_dense_operations(device);
    snprintf(d->label, sizeof d->label, "%s%s%s", mf_device_description(device), isa ? " MOEFUSE_ISA=" : "", isa ? isa : "");
}

/* Under AddressSanitizer the emulation of AMX's tiles takes minutes for what it shows in seconds without; its own program,
 * amx_products.c, runs there all the same. */
static bool is_left_out(const char *level)
{
#if defined(__SANITIZE_ADDRESS__)
    return strcmp(level, "amx_emulated") == 0;
#else
    (void)level;
    return false;
#endif
}

const conf_device *conf_devices(int *count)
{
    if (num_devices == 0) {
        char wanted[64] = "";
        const char *set = getenv("MOEFUSE_ISA");
        snprintf(wanted, sizeof wanted, "%s", set ? set : "");
        const char *only = getenv("MOEFUSE_CONFORMANCE_DEVICE");
        open_device("ref", NULL, 1);
        if (only) {
            open_device(only, NULL, 0);
        }
        for (size_t i = 0; !only && mf_cpu_isa_level(i).name; i++) {
            if (mf_cpu_isa_level(i).is_available && !is_left_out(mf_cpu_isa_level(i).name)) {
                open_device("cpu", mf_cpu_isa_level(i).name, 1);
                open_device("cpu", mf_cpu_isa_level(i).name, 3);
            }
        }
        if (wanted[0]) {
            setenv("MOEFUSE_ISA", wanted, 1);
        }
        atexit(close_devices);
    }
    *count = num_devices;
    return devices;
}

mf_device *conf_ref(void)
{
    int count;
    return conf_devices(&count)[0].device;
}

bool conf_full(void)
{
    const char *v = getenv("MOEFUSE_CONFORMANCE");
    return v && strcmp(v, "full") == 0;
}

bool conf_small(void)
{
    return is_small();
}

bool conf_whole(void)
{
    return conf_full() || (!conf_small() && getenv("MOEFUSE_CONFORMANCE_DEVICE") != NULL);
}

void *conf_alloc(size_t bytes)
{
    char *base = NULL;
    if (posix_memalign((void **)&base, GUARD, bytes + 2 * GUARD) != 0) {
        fail_msg("out of memory: %zu bytes", bytes);
    }
    memset(base, CONF_POISON, bytes + 2 * GUARD);
    memcpy(base, &bytes, sizeof bytes);
    return base + GUARD;
}

void conf_check_guards(const void *block)
{
    if (!block) {
        return;
    }
    const unsigned char *base = (const unsigned char *)block - GUARD;
    size_t bytes;
    memcpy(&bytes, base, sizeof bytes);
    for (size_t i = sizeof bytes; i < GUARD; i++) {
        if (base[i] != CONF_POISON) {
            fail_msg("a byte before a buffer of %zu bytes was written", bytes);
        }
    }
    for (size_t i = 0; i < GUARD; i++) {
        if (base[GUARD + bytes + i] != CONF_POISON) {
            fail_msg("byte %zu of a buffer of %zu bytes was written", bytes + i, bytes);
        }
    }
}

void conf_free(void *block)
{
    if (block) {
        conf_check_guards(block);
        free((char *)block - GUARD);
    }
}

double conf_normal(uint64_t *seed)
{
    double u = 1.0 - mf_random_unit(seed);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * mf_random_unit(seed));
}

int64_t conf_below(uint64_t *seed, int64_t n)
{
    return (int64_t)mf_random_below(seed, (uint64_t)n);
}

int64_t conf_pick(uint64_t *seed, const int64_t *list, size_t n)
{
    return list[conf_below(seed, (int64_t)n)];
}

void conf_put(void *data, mf_dtype dtype, int64_t i, double v)
{
    float f = (float)v;
    uint16_t h = dtype == MF_BF16 ? mf_f32_to_bf16(f) : mf_f32_to_f16(f);
    switch (dtype) {
    case MF_F64:
        memcpy((char *)data + i * 8, &v, 8);
        break;
    case MF_F32:
        memcpy((char *)data + i * 4, &f, 4);
        break;
    default:
        memcpy((char *)data + i * 2, &h, 2);
        break;
    }
}

double conf_get(const void *data, mf_dtype dtype, int64_t i)
{
    double v;
    float f;
    uint16_t h;
    switch (dtype) {
    case MF_F64:
        memcpy(&v, (const char *)data + i * 8, 8);
        return v;
    case MF_F32:
        memcpy(&f, (const char *)data + i * 4, 4);
        return (double)f;
    default:
        memcpy(&h, (const char *)data + i * 2, 2);
        return (double)(dtype == MF_BF16 ? mf_bf16_to_f32(h) : mf_f16_to_f32(h));
    }
}

int64_t conf_difference(const void *a, const void *b, mf_dtype dtype, int64_t n)
{
    int64_t size = (int64_t)mf_dtype_size(dtype);
    if (n == 0 || memcmp(a, b, (size_t)(n * size)) == 0) {
        return -1;
    }
    bool real = dtype == MF_F32 || dtype == MF_BF16 || dtype == MF_F16 || dtype == MF_F64;
    for (int64_t i = 0; i < n; i++) {
        if (memcmp((const char *)a + i * size, (const char *)b + i * size, (size_t)size) != 0 &&
            !(real && isnan(conf_get(a, dtype, i)) && isnan(conf_get(b, dtype, i)))) {
            return i;
        }
    }
    return -1;
}
