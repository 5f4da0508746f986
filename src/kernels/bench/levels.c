/* levels.c - the rungs of the cpu device's ladder, which of them this machine climbs, and why not the others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"
#include "kernels/bench/bench_parts.h"

static const mf_rates *const all_rates[] = {
    &mf_rates_c,
#if defined(__x86_64__)
    &mf_rates_avx2, &mf_rates_avx512, &mf_rates_avx512_vnni, &mf_rates_avx512_bf16, &mf_rates_amx,
#elif defined(__aarch64__)
    &mf_rates_neon,
    &mf_rates_neon_dotprod,
    &mf_rates_neon_bf16,
#endif
};

const mf_rates *mf_bench_rates_of(const char *level)
{
    for (size_t i = 0; i < sizeof all_rates / sizeof all_rates[0]; i++) {
        if (strcmp(all_rates[i]->level, level) == 0) {
            return all_rates[i];
        }
    }
    return NULL;
}

static void explain(mf_bench_level *level, const char *passed_over, const char *top, bool is_above_top)
{
    const char *refusal = strcmp(level->name, "amx") == 0 ? mf_cpu_amx_refusal() : NULL;
    if (!level->is_available && refusal) {
        snprintf(level->reason, sizeof level->reason, "%s", refusal);
    } else if (!level->is_available) {
        snprintf(level->reason, sizeof level->reason, "this CPU, or its system, does not offer %s", level->needs);
    } else if (is_above_top) {
        snprintf(level->reason, sizeof level->reason, "MOEFUSE_ISA=%.20s stops below it", top);
    } else if (passed_over && !(top && strcmp(top, level->name) == 0)) {
        level->is_passed_over = true;
        snprintf(level->reason, sizeof level->reason, "%s; MOEFUSE_ISA=%s asks for it", passed_over, level->name);
    } else {
        level->is_used = true;
    }
}

int32_t mf_bench_levels(mf_bench_level *levels, int32_t capacity)
{
    const char *top = getenv("MOEFUSE_ISA");
    bool is_above_top = false;
    int32_t count = 0;
    for (mf_isa_level rung = mf_cpu_isa_level(0); rung.name && count < capacity;
         rung = mf_cpu_isa_level((size_t)count)) {
        mf_bench_level *level = &levels[count++];
        *level = (mf_bench_level){ .name = rung.name, .needs = rung.needs, .is_available = rung.is_available };
        explain(level, rung.passed_over, top, is_above_top);
        is_above_top = is_above_top || (top && strcmp(top, rung.name) == 0);
    }
    return count;
}
