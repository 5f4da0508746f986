/* about.c - see about.h. */
#include "cli/about.h"

#include <string.h>

#include "cli/doctor_system.h"
#include "kernels/bench/bench.h"

#ifndef MF_COMMIT
#define MF_COMMIT "unknown"
#endif

static const char *highest_level(void)
{
    static mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t count = mf_bench_levels(levels, MF_BENCH_MAX_LEVELS);
    const char *name = "c";
    for (int32_t i = 0; i < count; i++) {
        name = levels[i].is_used ? levels[i].name : name;
    }
    return name;
}

json_t *mf_about_build(void)
{
    mf_doctor_system system;
    mf_doctor_system_read(&system);
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:s}", "version", mf_version(), "commit", MF_COMMIT, "machine",
                     system.machine, "cpu", system.cpu, "cores", (int)system.topology->num_cores, "isa",
                     highest_level());
}

json_t *mf_about_flags(const mf_flag *rows, size_t num_rows)
{
    json_t *out = json_object();
    for (size_t i = 0; out && i < num_rows; i++) {
        const mf_flag *row = &rows[i];
        char key[64];
        snprintf(key, sizeof key, "%s", row->name + 2);
        for (char *p = key; *p; p++) {
            *p = *p == '-' ? '_' : *p;
        }
        json_t *value = NULL;
        switch (row->type) {
        case MF_FLAG_BOOL:
            value = json_boolean(*(const bool *)row->value);
            break;
        case MF_FLAG_INT:
            value = json_integer(*(const int64_t *)row->value);
            break;
        case MF_FLAG_REAL:
            value = json_real(*(const double *)row->value);
            break;
        case MF_FLAG_TEXT:
            value = *(const char *const *)row->value ? json_string(*(const char *const *)row->value) : NULL;
            break;
        case MF_FLAG_LIST:
            break;
        }
        if (value) {
            json_object_set_new(out, key, value);
        }
    }
    return out;
}
