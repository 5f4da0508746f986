/* device.c - opening a device by its backend's name. */
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
};
enum { NUM_BACKENDS = sizeof backends / sizeof backends[0] };

mf_status mf_device_open(const char *name, const mf_device_options *options, mf_device **out, mf_error *err)
{
    if (!out) {
        return mf_fail(err, MF_ERR_INVALID, "device: the place for the result is NULL");
    }
    *out = NULL;
    const backend *found = NULL;
    for (size_t i = 0; name && i < NUM_BACKENDS; i++) {
        if (strcmp(name, backends[i].name) == 0) {
            found = &backends[i];
        }
    }
    if (!found) {
        return mf_fail(err, MF_ERR_INVALID, "device \"%.40s\": unknown; expected cpu or ref", name ? name : "");
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
    snprintf(device->name, sizeof device->name, "%s", found->name);
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
