/* cuda_load.c - finds and opens libmoefuse_cuda.so, part of the library that every program links.
 *
 * A machine without CUDA runs the same program: nothing of CUDA is linked, and asking for device "cuda" there says what is
 * missing.  MOEFUSE_CUDA_LIBRARY names the file; else it is looked for beside the program or library that this code is in,
 * in lib/ next to that folder, and where the system's loader looks. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"
#include "base/sys.h"
#include "kernels/cuda/backend.h"

enum { MAX_PATH = 4096 };

static const char file_name[] = "libmoefuse_cuda.so";

/* Into text: the folder that holds this code, with its final slash; "" when the system does not say. */
static void own_folder(char *text, size_t size)
{
    Dl_info info;
    text[0] = '\0';
    if (dladdr((const void *)(uintptr_t)mf_cuda_device_init, &info) && info.dli_fname) {
        snprintf(text, size, "%s", info.dli_fname);
        char *slash = strrchr(text, '/');
        *(slash ? slash + 1 : text) = '\0';
    }
}

/* It stays once it is there: the runtime inside it does not like to go and come back, and takes a second to. */
static void *open_library(char *reason, size_t size)
{
    const char *named = getenv("MOEFUSE_CUDA_LIBRARY");
    char folder[MAX_PATH], path[MAX_PATH + 64];
    void *library = NULL;
    reason[0] = '\0';
    if (named && named[0]) {
        library = dlopen(named, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    } else {
        static const char *const places[] = { "", "../lib/" };
        own_folder(folder, sizeof folder);
        for (size_t i = 0; folder[0] && !library && i < sizeof places / sizeof places[0]; i++) {
            snprintf(path, sizeof path, "%s%s%s", folder, places[i], file_name);
            library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        }
        library = library ? library : dlopen(file_name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    if (!library) {
        const char *text = dlerror();
        snprintf(reason, size, "%s", text ? text : "not found");
    }
    return library;
}

/* What stays on the host, sampling, takes a few threads. */
static int32_t sampling_threads(void)
{
    const int32_t cores = mf_cpu_features_get()->num_cores;
    return cores < 8 ? cores : 8;
}

mf_status mf_cuda_device_init(mf_device *device, const mf_device_options *options, mf_error *err)
{
    char reason[512];
    void *library = open_library(reason, sizeof reason);
    if (!library) {
        mf_status status = mf_fail(err, MF_ERR_DEVICE, "device %s: %s cannot be opened: %s", device->name, file_name,
                                   reason);
        mf_error_advise(err, "it is built where nvcc is (cmake -DMOEFUSE_CUDA=ON); MOEFUSE_CUDA_LIBRARY may name the file");
        return status;
    }
    device->library = library;
    const mf_cuda_backend *(*get)(void) = NULL;
    void *symbol = dlsym(library, MF_CUDA_BACKEND_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* C has no conversion from an object's pointer to a function's */
    const mf_cuda_backend *backend = get ? get() : NULL;
    if (!backend || strcmp(backend->version, MF_VERSION_STRING) != 0 || backend->device_bytes != sizeof(mf_device) ||
        backend->ops_bytes != sizeof(mf_device_ops)) {
        const bool same_version = backend && strcmp(backend->version, MF_VERSION_STRING) == 0;
        return mf_fail(err, MF_ERR_UNSUPPORTED, "device %s: %s is of another build (%.40s; expected %s%s)", device->name,
                       file_name, backend ? backend->version : "no entry point", MF_VERSION_STRING,
                       same_version ? ", built with this program" : "");
    }
    MF_TRY(backend->init(device, err));
    return mf_pool_open(options->num_threads > 0 ? options->num_threads : sampling_threads(), &device->pool, err);
}

void mf_cuda_library_close(mf_device *device)
{
    if (device->library) {
        dlclose(device->library);
        device->library = NULL;
    }
}
