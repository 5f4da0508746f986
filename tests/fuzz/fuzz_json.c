/* fuzz_json.c - any bytes as JSON: refused, or what was read can be written and read again to the same value. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/sys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const mf_json_limits limits = { .max_depth = 32, .max_values = 10000 };
    json_t *value, *again;
    mf_error err;
    if (mf_json_parse((const char *)data, size, "f.json", &limits, &value, &err) != MF_OK) {
        if (!err.message[0] || value) {
            abort();
        }
        return 0;
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (!text || mf_json_parse(text, strlen(text), "f.json", &limits, &again, &err) != MF_OK ||
        !json_equal(value, again)) {
        abort();
    }
    mf_free(text); /* jansson's memory comes from mf_alloc */
    json_decref(value);
    json_decref(again);
    return 0;
}
