/* families.c - the table of known families. */
#include <stdio.h>
#include <string.h>

#include "model/family.h"

const mf_family *const mf_families[] = {
    &mf_family_deepseek_v2, &mf_family_deepseek_v3, &mf_family_kimi_k25,  &mf_family_glm4_moe, &mf_family_glm4_moe_lite,
    &mf_family_qwen2_moe,   &mf_family_qwen3_moe,   &mf_family_mixtral,   &mf_family_olmoe,    &mf_family_ernie4_5_moe,
    &mf_family_minimax_m2,  &mf_family_dots1,       &mf_family_hunyuan_moe, &mf_family_gpt_oss, &mf_family_qwen3_next,
    &mf_family_bailing_moe_v2, &mf_family_llama4,   &mf_family_llama4_conditional, NULL
};

const mf_family *mf_family_find(const char *architecture)
{
    for (const mf_family *const *f = mf_families; *f; f++) {
        if (strcmp((*f)->architecture, architecture) == 0) {
            return *f;
        }
    }
    return NULL;
}

void mf_family_list(char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (const mf_family *const *f = mf_families; *f; f++) {
        int n = snprintf(out + used, size - used, "%s%s", used ? ", " : "", (*f)->architecture);
        if (n < 0 || (size_t)n >= size - used) {
            return;
        }
        used += (size_t)n;
    }
}
