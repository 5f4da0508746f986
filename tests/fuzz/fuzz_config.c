/* fuzz_config.c - any bytes as config.json (and the same as generation_config.json): refused, or every size is in range
 * and the list of tensors can be walked. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/tensor_map.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_VISITS = 20000 };

typedef struct visits {
    int64_t num;
} visits;

static mf_status visit(void *context, const mf_wanted *x)
{
    visits *v = context;
    if (!x->name[0] || x->n <= 0 || (x->kind != MF_WANT_VECTOR && x->k <= 0)) {
        abort();
    }
    return ++v->num < MOST_VISITS ? MF_OK : MF_ERR_LIMIT;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mf_model_config *c;
    mf_error err;
    if (mf_model_config_parse((const char *)data, size, "config.json", &c, &err) != MF_OK) {
        if (!err.message[0] || c) {
            abort();
        }
        return 0;
    }
    mf_model_size total = mf_model_config_size(c);
    visits v = { 0 };
    if (total.total_params <= 0 || total.active_params > total.total_params || !isfinite(c->softmax_scale) ||
        c->softmax_scale <= 0 || c->gate.top_k > c->gate.num_experts || c->num_eos_token_ids > MF_MAX_EOS_IDS) {
        abort();
    }
    (void)mf_tensor_map_walk(c, NULL, visit, &v);
    (void)mf_model_config_parse_generation(c, (const char *)data, size, "generation_config.json", &err);
    mf_model_config_close(&c);
    return 0;
}
