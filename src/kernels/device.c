/* device.c - opening a device by its backend's name. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "kernels/ops.h"

typedef struct backend {
    const char *name;
    mf_status (*init)(mf_device *device, const mf_device_options *options, mf_error *err);
} backend;

static const backend backends[] = {
    { "cpu", mf_cpu_device_init },
    { "ref", mf_ref_device_init },
    { "cuda", mf_cuda_device_init },
};
enum { NUM_BACKENDS = sizeof backends / sizeof backends[0] };

/* "cuda" is also "cuda:N" with up to three digits. */
static bool is_named(const char *name, const char *known, int32_t *ordinal)
{
    size_t n = strlen(known);
    if (strncmp(name, known, n) != 0 || (name[n] != '\0' && strcmp(known, "cuda") != 0)) {
        return false;
    }
    if (name[n] == '\0') {
        return true;
    }
    const char *digits = name + n + 1;
    size_t count = strspn(digits, "0123456789");
    if (name[n] != ':' || count < 1 || count > 3 || digits[count] != '\0') {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        *ordinal = *ordinal * 10 + (digits[i] - '0');
    }
    return true;
}

mf_status mf_device_open(const char *name, const mf_device_options *options, mf_device **out, mf_error *err)
{
    if (!out) {
        return mf_fail(err, MF_ERR_INVALID, "device: the place for the result is NULL");
    }
    *out = NULL;
    const backend *found = NULL;
    int32_t ordinal = 0;
    for (size_t i = 0; name && i < NUM_BACKENDS; i++) {
        if (is_named(name, backends[i].name, &ordinal)) {
            found = &backends[i];
        }
    }
    if (!found) {
        return mf_fail(err, MF_ERR_INVALID, "device \"%.40s\": unknown; expected cpu, ref, cuda or cuda:N", name ? name : "");
    }
    if (options && options->num_threads < 0) {
        return mf_fail(err, MF_ERR_INVALID, "device %s: num_threads %d; expected 0 (all cores) or more", name,
                       (int)options->num_threads);
    }
    if (options && (options->pin_threads < 0 || options->pin_threads > 1)) {
        return mf_fail(err, MF_ERR_INVALID, "device %s: pin_threads %d; expected 0 or 1", name, (int)options->pin_threads);
    }
    if (options && options->numa != MF_NUMA_FIRST_TOUCH && options->numa != MF_NUMA_INTERLEAVE) {
        return mf_fail(err, MF_ERR_INVALID, "device %s: numa %d; expected 0 (first touch) or 1 (interleave)", name,
                       (int)options->numa);
    }
    mf_device *device = mf_alloc_zero(sizeof *device);
    if (!device) {
        return mf_fail(err, MF_ERR_NOMEM, "device %s: out of memory", name);
    }
    snprintf(device->name, sizeof device->name, "%s", name);
    device->ordinal = ordinal;
    static const mf_device_options defaults;
    mf_status status = found->init(device, options ? options : &defaults, err);
    if (status != MF_OK) {
        mf_device_close(&device);
        return status;
    }
    *out = device;
    return MF_OK;
}

void mf_device_close(mf_device **out)
{
    if (!out || !*out) {
        return;
    }
    mf_device *device = *out;
    if (device->ops && device->ops->close) {
        device->ops->close(device);
    }
    mf_cuda_library_close(device);
    mf_pool_close(&device->pool);
    mf_free(device);
    *out = NULL;
}

const char *mf_device_name(const mf_device *device)
{
    return device->name;
}

const char *mf_device_description(const mf_device *device)
{
    return device->description;
}

int32_t mf_device_num_threads(const mf_device *device)
{
    return mf_pool_num_threads(device->pool);
}

int32_t mf_device_uses_host_memory(const mf_device *device)
{
    return device->ops->memory == NULL;
}

mf_status mf_device_malloc(mf_device *device, size_t bytes, void **block, mf_error *err)
{
    *block = NULL;
    if (device->ops->memory) {
        return device->ops->memory->alloc(device, bytes, block, err);
    }
    *block = mf_alloc_aligned(bytes);
    return *block ? MF_OK : mf_fail(err, MF_ERR_NOMEM, "device %s: no memory for %zu bytes", device->name, bytes);
}

void mf_device_free(mf_device *device, void *block)
{
    if (device->ops->memory) {
        device->ops->memory->release(device, block);
    } else {
        mf_free_aligned(block);
    }
}

mf_status mf_device_copy(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err)
{
    if (device->ops->memory) {
        return device->ops->memory->copy(device, to, from, bytes, err);
    }
    memcpy(to, from, bytes);
    return MF_OK;
}

mf_status mf_device_synchronize(mf_device *device, mf_error *err)
{
    return device->ops->memory ? device->ops->memory->synchronize(device, err) : MF_OK;
}

mf_status mf_device_set_stream(mf_device *device, void *stream, mf_error *err)
{
    if (!device->ops->memory) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "device %s has no streams", device->name);
    }
    return device->ops->memory->set_stream(device, stream, err);
}

void *mf_device_stream(const mf_device *device)
{
    return device->ops->memory ? device->ops->memory->stream(device) : NULL;
}
