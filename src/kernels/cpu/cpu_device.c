/* cpu_device.c - "cpu": the fastest code that this machine's ISA allows, on a pool of threads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"
#include "base/sys.h"
#include "base/topology.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ref/ref_ops.h"

/* Inputs of a dense product, packed: enough tokens to stream its weights once for many. */
enum { LINEAR_SCRATCH_BYTES = 16 << 20 };

static void close_device(mf_device *device)
{
    mf_free((void *)device->kernels);
    mf_free_huge(device->scratch);
    device->scratch = NULL;
    device->kernels = NULL;
}

static const mf_device_ops cpu_ops = {
    .name = "cpu",
    .close = close_device,
    .gate = mf_cpu_gate,
    .align = mf_ref_align,
    .experts_workspace_bytes = mf_cpu_experts_workspace_bytes,
    .experts = mf_cpu_experts,
    .experts_combine_workspace_bytes = mf_cpu_experts_combine_workspace_bytes,
    .experts_combine = mf_cpu_experts_combine,
    .sum_reduce = mf_cpu_sum_reduce,
    .embed = mf_cpu_embed,
    .rms_norm = mf_cpu_rms_norm,
    .linear = mf_cpu_linear,
    .rope = mf_cpu_rope,
    .kv_write = mf_cpu_kv_write,
    .mla_scratch_floats = mf_cpu_mla_scratch_floats,
    .mla_attention = mf_cpu_mla_attention,
    .gqa_scratch_floats = mf_cpu_gqa_scratch_floats,
    .gqa_attention = mf_cpu_gqa_attention,
    .delta_net_scratch_floats = mf_cpu_delta_net_scratch_floats,
    .delta_net = mf_cpu_delta_net,
    .sigmoid_gate = mf_cpu_sigmoid_gate,
    .convert = mf_cpu_convert,
    .add = mf_cpu_add,
    .clip = mf_cpu_clip,
    .scale_rows = mf_cpu_scale_rows,
};

/* The rungs of the ladder, lowest first. */
typedef struct rung {
    const char *name; /* as MOEFUSE_ISA says it */
    bool (*is_available)(const mf_cpu_features *features);
    void (*fill)(mf_cpu_kernels *kernels);
    const char *needs;
    const char *(*objection)(const mf_cpu_features *features); /* of mf_isa_level.passed_over; NULL: none */
} rung;

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

static bool has_avx512_vnni(const mf_cpu_features *features)
{
    return has_avx512(features) && features->avx512_vnni;
}

static bool has_avx512_bf16(const mf_cpu_features *features)
{
    return has_avx512(features) && features->avx512_vnni && features->avx512_bf16 && features->avx512_vbmi;
}

/* A rule by vendor and not a measurement, since bits hang on the rung. */
static const char *bf16_is_slow(const mf_cpu_features *features)
{
    return features->is_intel ? "VDPBF16PS is slower than f32 products on Intel's CPUs" : NULL;
}

static bool has_amx(const mf_cpu_features *features)
{
    return has_avx512(features) && features->avx512_vbmi && features->avx512_fp16 && !mf_cpu_amx_refusal();
}

static void fill_amx(mf_cpu_kernels *kernels)
{
    mf_cpu_kernels_fill_amx(kernels);
    if (mf_cpu_features_get()->avx512_bf16) { /* as every processor with AMX has it */
        mf_cpu_attention_fill_amx(kernels);
    }
}

#if defined(MF_AMX_EMULATE)
static bool has_amx_emulated(const mf_cpu_features *features)
{
    return has_avx512(features) && features->avx512_vbmi;
}

static void fill_amx_emulated(mf_cpu_kernels *kernels)
{
    mf_cpu_kernels_fill_amx_emulated(kernels);
    mf_cpu_attention_fill_amx_emulated(kernels);
}
#endif
#endif

#if defined(__aarch64__)
static bool has_neon(const mf_cpu_features *features)
{
    return features->neon;
}

static bool has_neon_dotprod(const mf_cpu_features *features)
{
    return features->neon_dotprod;
}

static bool has_neon_bf16(const mf_cpu_features *features)
{
    return features->neon_bf16;
}
#endif

static const rung ladder[] = {
    { "c", always, mf_cpu_kernels_fill_c, "nothing" },
#if defined(__x86_64__)
    { "avx2", has_avx2, mf_cpu_kernels_fill_avx2, "AVX2, FMA, F16C" },
    { "avx512", has_avx512, mf_cpu_kernels_fill_avx512, "AVX-512 F, BW, VL, DQ" },
    { "avx512_vnni", has_avx512_vnni, mf_cpu_products_fill_avx512_vnni, "AVX-512 VNNI" },
    { "avx512_bf16", has_avx512_bf16, mf_cpu_products_fill_avx512_bf16, "AVX-512 VNNI, BF16, VBMI", bf16_is_slow },
    { "amx", has_amx, fill_amx, "AMX TILE, BF16, AVX-512 VBMI, FP16" },
#if defined(MF_AMX_EMULATE)
    { "amx_emulated", has_amx_emulated, fill_amx_emulated, "AVX-512 VBMI" },
#endif
#endif
#if defined(__aarch64__)
    { "neon", has_neon, mf_cpu_kernels_fill_neon, "NEON" },
    { "neon_dotprod", has_neon_dotprod, mf_cpu_kernels_fill_neon_dotprod, "SDOT" },
    { "neon_bf16", has_neon_bf16, mf_cpu_kernels_fill_neon_bf16, "BFDOT" },
#endif
};
enum { NUM_RUNGS = sizeof ladder / sizeof ladder[0] };

mf_isa_level mf_cpu_isa_level(size_t i)
{
    if (i >= NUM_RUNGS) {
        return (mf_isa_level){ 0 };
    }
    const mf_cpu_features *features = mf_cpu_features_get();
    return (mf_isa_level){ .name = ladder[i].name,
                           .is_available = ladder[i].is_available(features),
                           .needs = ladder[i].needs,
                           .passed_over = ladder[i].objection ? ladder[i].objection(features) : NULL };
}

/* The highest rung to climb to: MOEFUSE_ISA can lower the machine's, not raise it.  is_named: it says which. */
static mf_status choose_top(size_t *top, bool *is_named, mf_error *err)
{
    const char *wanted = getenv("MOEFUSE_ISA");
    *top = NUM_RUNGS - 1;
    *is_named = wanted && *wanted;
    if (!*is_named) {
        return MF_OK;
    }
    char known[160] = "";
    for (size_t i = 0; i < NUM_RUNGS; i++) {
        if (strcmp(wanted, ladder[i].name) == 0) {
            *top = i;
            return MF_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", ladder[i].name);
    }
    return mf_fail(err, MF_ERR_INVALID, "MOEFUSE_ISA \"%.20s\": unknown; expected one of %s", wanted, known);
}

/* By the rung that products of bf16 come from; a rule and not a measurement, since a model's bits hang on it. */
static bool prefers_bf16(const char *isa)
{
    return strncmp(isa, "amx", 3) == 0 || strcmp(isa, "neon_bf16") == 0 ||
           (strcmp(isa, "avx512_bf16") == 0 && mf_cpu_features_get()->is_amd);
}

static mf_status open_pool(const mf_device_options *options, int32_t num_threads, mf_pool **pool, mf_error *err)
{
    mf_pool_options pool_options = { .num_threads = num_threads };
    int32_t cpus[MF_MAX_CPUS];
    if (options->pin_threads && num_threads <= MF_MAX_CPUS) {
        mf_topology_order(mf_topology_get(), options->numa == MF_NUMA_INTERLEAVE, num_threads, cpus);
        pool_options.cpus = cpus;
    }
    return mf_pool_open_with(&pool_options, pool, err);
}

mf_status mf_cpu_device_init(mf_device *device, const mf_device_options *options, mf_error *err)
{
    const mf_cpu_features *features = mf_cpu_features_get();
    size_t top;
    bool is_named;
    MF_TRY(choose_top(&top, &is_named, err));
    mf_cpu_kernels *kernels = mf_alloc_zero(sizeof *kernels);
    if (!kernels) {
        return mf_fail(err, MF_ERR_NOMEM, "device cpu: out of memory");
    }
    for (size_t i = 0; i <= top; i++) {
        const mf_isa_level level = mf_cpu_isa_level(i);
        if (level.is_available && (!level.passed_over || (is_named && i == top))) {
            ladder[i].fill(kernels);
        }
    }
    device->kernels = kernels;
    device->ops = &cpu_ops;
    device->prefers_bf16 = prefers_bf16(kernels->isa);
    device->scratch_bytes = LINEAR_SCRATCH_BYTES; /* pages nobody needs cost nothing */
    device->scratch = mf_alloc_huge(device->scratch_bytes + 64, options->numa);
    if (!device->scratch) {
        return mf_fail(err, MF_ERR_NOMEM, "device cpu: out of memory");
    }
    int32_t num_threads = options->num_threads > 0 ? options->num_threads : features->num_cores;
    mf_fp_env saved = mf_fp_enter(); /* threads inherit it */
    mf_status status = open_pool(options, num_threads, &device->pool, err);
    mf_fp_leave(saved);
    MF_TRY(status);
    snprintf(device->description, sizeof device->description, "cpu %s, %d thread%s%s", kernels->isa, (int)num_threads,
             num_threads == 1 ? "" : "s", mf_pool_num_pinned(device->pool) == num_threads ? ", pinned" : "");
    const char *refusal = strcmp(ladder[top].name, "amx") == 0 && features->amx_bf16 ? mf_cpu_amx_refusal() : NULL;
    if (refusal) { /* the machine could be faster */
        const size_t n = strlen(device->description);
        snprintf(device->description + n, sizeof device->description - n, "; amx: %s", refusal);
    }
    return MF_OK;
}
