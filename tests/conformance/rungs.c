/* rungs.c - the CPU's ladder: MOEFUSE_ISA lowers it, and a rung that the CPU lacks is never climbed.
 *
 * MOEFUSE_EXPECT_RUNG names the top rung of the CPU that the tests run on, where the caller knows it (an emulated one).
 */
#include <stdlib.h>

#include "base/cpu_features.h"
#include "conf.h"
#include "kernels/ops.h"

/* The device that MOEFUSE_ISA = isa (NULL: unset) gives must be the rung `expected`: its name, or a longer form of it.
 */
static void check_device(const char *isa, const char *expected)
{
    mf_error err = { 0 };
    mf_device *device = NULL;
    mf_device_options options = { .num_threads = 1 };
    char start[40], wanted[64] = "";
    const char *set = getenv("MOEFUSE_ISA");
    snprintf(wanted, sizeof wanted, "%s", set ? set : "");
    if (isa) {
        setenv("MOEFUSE_ISA", isa, 1);
    } else {
        unsetenv("MOEFUSE_ISA");
    }
    mf_status status = mf_device_open("cpu", &options, &device, &err);
    if (wanted[0]) {
        setenv("MOEFUSE_ISA", wanted, 1);
    } else {
        unsetenv("MOEFUSE_ISA");
    }
    CHECK_OK(status, err);
    const char *description = mf_device_description(device);
    const size_t n = (size_t)snprintf(start, sizeof start, "cpu %s", expected);
    if (strncmp(description, start, n) != 0 || !strchr(",+", description[n])) {
        fail_msg("MOEFUSE_ISA %s: device \"%s\"; expected rung %s", isa ? isa : "unset", description, expected);
    }
    mf_device_close(&device);
}

TEST(each_rung_of_this_cpu_opens_by_its_name)
{
    for (size_t i = 0; mf_cpu_isa_level(i).name; i++) {
        if (mf_cpu_isa_level(i).is_available) {
            check_device(mf_cpu_isa_level(i).name, mf_cpu_isa_level(i).name);
        }
    }
}

/* A rule and no measurement: VDPBF16PS has half the rate of f32 products there. */
TEST(on_intel_bf16_vectors_are_used_by_name_only)
{
    for (size_t i = 0; mf_cpu_isa_level(i).name; i++) {
        const bool is_bf16 = strcmp(mf_cpu_isa_level(i).name, "avx512_bf16") == 0;
        CHECK_EQ(mf_cpu_isa_level(i).passed_over != NULL, is_bf16 && mf_cpu_features_get()->is_intel);
    }
}

TEST(a_rung_that_this_cpu_lacks_gives_the_highest_one_below)
{
    const char *below = "c";
    for (size_t i = 0; mf_cpu_isa_level(i).name; i++) {
        if (mf_cpu_isa_level(i).is_available) {
            below = mf_cpu_isa_level(i).passed_over ? below : mf_cpu_isa_level(i).name;
        } else {
            check_device(mf_cpu_isa_level(i).name, below);
        }
    }
    check_device(NULL, below);
}

TEST(the_top_rung_is_the_one_that_the_cpu_is_known_for)
{
    const char *expected = getenv("MOEFUSE_EXPECT_RUNG");
    if (!expected) {
        skip();
    }
    check_device(NULL, expected);
}
