/* cpu_features.c - cpuid and xgetbv, or the kernel's HWCAP words, and the scheduler's mask: see cpu_features.h. */
#include "base/cpu_features.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static mf_cpu_features features;
static pthread_once_t features_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
static bool cpu_has_tiles; /* whatever the system makes of them */
static char amx_refusal[160];
static pthread_once_t amx_once = PTHREAD_ONCE_INIT;
#endif

static int32_t count_cores(void)
{
    int32_t cores = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        cores = CPU_COUNT(&set);
    }
    /* A container's quota: more threads than it pays for only wait on each other. */
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        long long quota, period;
        if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            int32_t allowed = (int32_t)((quota + period - 1) / period);
            if (allowed >= 1 && allowed < cores) {
                cores = allowed;
            }
        }
        fclose(f);
    }
    return cores < 1 ? 1 : cores;
}

#if defined(__x86_64__)
static uint64_t read_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}

static void detect_x86(void)
{
    uint32_t a, b, c, d;
    if (__get_cpuid(0, &a, &b, &c, &d)) {
        features.is_amd = b == 0x68747541u && d == 0x69746e65u && c == 0x444d4163u; /* "AuthenticAMD" */
        features.is_intel = b == 0x756e6547u && d == 0x49656e69u && c == 0x6c65746eu; /* "GenuineIntel" */
    }
    if (!__get_cpuid(1, &a, &b, &c, &d)) {
        return;
    }
    bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29), avx = c & (1u << 28);
    if (!osxsave || !avx) {
        return;
    }
    uint64_t xcr0 = read_xcr0();
    bool ymm = (xcr0 & 0x6) == 0x6, zmm = (xcr0 & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        return;
    }
    uint32_t sub_a = 0, sub_b = 0, sub_c = 0, sub_d = 0;
    __get_cpuid_count(7, 1, &sub_a, &sub_b, &sub_c, &sub_d);
    features.avx2_fma_f16c = ymm && fma && f16c && (b & (1u << 5));
    features.avx512_core = zmm && (b & (1u << 16)) && (b & (1u << 30)) && (b & (1u << 31)) && (b & (1u << 17));
    features.avx512_vnni = features.avx512_core && (c & (1u << 11));
    features.avx512_bf16 = features.avx512_core && (sub_a & (1u << 5));
    features.avx512_vbmi = features.avx512_core && (c & (1u << 1));
    features.avx512_fp16 = features.avx512_core && (d & (1u << 23));
    cpu_has_tiles = (d & (1u << 24)) && (d & (1u << 22));
    bool tiles = (xcr0 & 0x60000) == 0x60000 && (d & (1u << 24));
    features.amx_bf16 = tiles && (d & (1u << 22));
    features.amx_int8 = tiles && (d & (1u << 25));
}
#endif

#if defined(__aarch64__)
static void detect_aarch64(void)
{
    features.neon = true;
#if defined(__linux__)
    enum { ASIMDDP = 20, BF16 = 14 }; /* bits of AT_HWCAP and AT_HWCAP2; older headers lack their names */
    features.neon_dotprod = getauxval(AT_HWCAP) >> ASIMDDP & 1;
    features.neon_bf16 = features.neon_dotprod && (getauxval(AT_HWCAP2) >> BF16 & 1);
#endif
}
#endif

static void detect(void)
{
#if defined(__x86_64__)
    detect_x86();
#elif defined(__aarch64__)
    detect_aarch64();
#endif
    features.num_cores = count_cores();
}

const mf_cpu_features *mf_cpu_features_get(void)
{
    pthread_once(&features_once, detect);
    return &features;
}

#if defined(__x86_64__)
static void ask_for_tiles(void)
{
    if (!mf_cpu_features_get()->amx_bf16) {
        snprintf(amx_refusal, sizeof amx_refusal, "%s",
                 cpu_has_tiles ? "the system does not save tile registers (XCR0)" : "this CPU has no AMX tiles with bf16");
        return;
    }
#if defined(SYS_arch_prctl)
    /* Tile data makes a thread's saved state 8 KiB larger, so Linux (5.16 and later) gives it only to who asks. */
    enum { GET_PERMISSION = 0x1022, ASK_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned long permitted = 0;
    if (syscall(SYS_arch_prctl, ASK_PERMISSION, TILE_DATA) != 0) {
        snprintf(amx_refusal, sizeof amx_refusal, "arch_prctl(ARCH_REQ_XCOMP_PERM) was refused: %s", strerror(errno));
    } else if (syscall(SYS_arch_prctl, GET_PERMISSION, &permitted) != 0 || !(permitted >> TILE_DATA & 1)) {
        snprintf(amx_refusal, sizeof amx_refusal, "arch_prctl(ARCH_GET_XCOMP_PERM) shows no permission for tile data");
    }
#else
    snprintf(amx_refusal, sizeof amx_refusal, "this build does not know how to ask for tile data");
#endif
}
#endif

const char *mf_cpu_amx_refusal(void)
{
#if defined(__x86_64__)
    pthread_once(&amx_once, ask_for_tiles);
    return amx_refusal[0] ? amx_refusal : NULL;
#else
    return "this CPU has no AMX tiles with bf16";
#endif
}
