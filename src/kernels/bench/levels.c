/* levels.c - the rungs of the ladder, which of them this machine climbs, and why not the others. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"
#include "kernels/bench/bench_parts.h"

static bool always(const mf_cpu_features *features)
{
    (void)features;
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(const mf_cpu_features *features)
{
    return features->avx2_fma_f16c;
}

static bool has_avx512(const mf_cpu_features *features)
{
    return features->avx2_fma_f16c && features->avx512_core;
}

static bool has_vnni(const mf_cpu_features *features)
{
    return has_avx512(features) && features->avx512_vnni;
}

static bool has_bf16(const mf_cpu_features *features)
{
    return has_avx512(features) && features->avx512_bf16;
}

static bool has_amx(const mf_cpu_features *features)
{
    return has_avx512(features) && features->amx_int8 && !mf_cpu_amx_refusal();
}
#elif defined(__aarch64__)
static bool has_neon(const mf_cpu_features *features)
{
    return features->neon;
}

static bool has_dot(const mf_cpu_features *features)
{
    return features->neon && features->neon_dotprod;
}

static bool has_bf16(const mf_cpu_features *features)
{
    return features->neon && features->neon_bf16;
}
#endif

/* What the processors of this architecture can have; the device's own ladder says what it has kernels for. */
static const struct {
    const mf_rates *rates;
    bool (*is_available)(const mf_cpu_features *features);
    const char *needs;
} known[] = {
    { &mf_rates_c, always, "nothing" },
#if defined(__x86_64__)
    { &mf_rates_avx2, has_avx2, "AVX2, FMA, F16C" },
    { &mf_rates_avx512, has_avx512, "AVX-512 F, BW, VL, DQ" },
    { &mf_rates_avx512_vnni, has_vnni, "AVX-512 VNNI" },
    { &mf_rates_avx512_bf16, has_bf16, "AVX-512 BF16" },
    { &mf_rates_amx, has_amx, "AMX TILE, BF16, INT8" },
#elif defined(__aarch64__)
    { &mf_rates_neon, has_neon, "NEON" },
    { &mf_rates_neon_dotprod, has_dot, "NEON with dot products" },
    { &mf_rates_neon_bf16, has_bf16, "NEON with BF16" },
#endif
};
enum { NUM_KNOWN = sizeof known / sizeof known[0] };

const mf_rates *mf_bench_rates_of(const char *level)
{
    for (size_t i = 0; i < NUM_KNOWN; i++) {
        if (strcmp(known[i].rates->level, level) == 0) {
            return known[i].rates;
        }
    }
    return NULL;
}

static int32_t find(const mf_bench_level *levels, int32_t count, const char *name)
{
    for (int32_t i = 0; i < count; i++) {
        if (strcmp(levels[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

static void explain(mf_bench_level *level, const char *top, bool is_above_top)
{
    if (!level->is_available) {
        snprintf(level->reason, sizeof level->reason, "this CPU, or its system, does not offer %s", level->needs);
#if defined(__x86_64__)
        if (strcmp(level->name, "amx") == 0 && mf_cpu_amx_refusal()) {
            snprintf(level->reason, sizeof level->reason, "%s", mf_cpu_amx_refusal());
        }
#endif
    } else if (!level->is_built) {
        snprintf(level->reason, sizeof level->reason, "this build has no kernels for it");
    } else if (is_above_top) {
        snprintf(level->reason, sizeof level->reason, "MOEFUSE_ISA=%.20s stops below it", top);
    } else {
        level->is_used = true;
    }
}

int32_t mf_bench_levels(mf_bench_level *levels, int32_t capacity)
{
    const mf_cpu_features *features = mf_cpu_features_get();
    int32_t count = 0;
    for (size_t i = 0; i < NUM_KNOWN && count < capacity; i++) {
        levels[count++] = (mf_bench_level){ .name = known[i].rates->level,
                                            .needs = known[i].needs,
                                            .is_available = known[i].is_available(features) };
    }
    for (size_t i = 0;; i++) {
        mf_isa_level rung = mf_cpu_isa_level(i);
        if (!rung.name) {
            break;
        }
        int32_t at = find(levels, count, rung.name);
        if (at < 0 && count < capacity) {
            at = count++;
            levels[at] = (mf_bench_level){ .name = rung.name };
        }
        if (at >= 0) {
            levels[at].needs = rung.needs;
            levels[at].is_built = true;
            levels[at].is_available = rung.is_available;
        }
    }
    const char *top = getenv("MOEFUSE_ISA");
    int32_t last = top && *top ? find(levels, count, top) : -1;
    for (int32_t i = 0; i < count; i++) {
        explain(&levels[i], top, last >= 0 && i > last);
    }
    return count;
}
