/* fuzz_index.c - any bytes as model.safetensors.index.json: refused, or every file's name stays inside the directory.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root, *files;
    mf_error err;
    if (mf_checkpoint_parse_index((const char *)data, size, "i.json", &root, &files, &err) != MF_OK) {
        if (!err.message[0] || root || files) {
            abort();
        }
        return 0;
    }
    const char *name;
    json_t *unused;
    if (json_object_size(files) == 0) {
        abort();
    }
    json_object_foreach(files, name, unused)
    {
        (void)unused;
        if (strchr(name, '/') || strcmp(name, "..") == 0 || strlen(name) > 255) {
            abort();
        }
    }
    json_decref(root);
    json_decref(files);
    return 0;
}
