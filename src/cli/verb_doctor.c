/* verb_doctor.c - `moefuse doctor`: what this machine offers, what of it is used and why the rest is not, how fast it
 * reads memory and multiplies. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/cpu_features.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "cli/doctor_system.h"
#include "kernels/bench/bench.h"

enum { MAX_COUNTS = 12, MAX_WARNINGS = 12, MAX_RATES = MF_BENCH_MAX_LEVELS * MF_RATE_COUNT };

typedef struct doctor_flags {
    bool json, help;
    int64_t threads;
    double seconds;
} doctor_flags;

typedef struct rate_line {
    const char *level;
    mf_rate_kind kind;
    double gops[MAX_COUNTS];
} rate_line;

typedef struct findings {
    mf_doctor_system system;
    mf_bench_level levels[MF_BENCH_MAX_LEVELS];
    int32_t num_levels;
    int32_t threads[MAX_COUNTS], num_counts; /* 1, 2, 4, ... and all */
    int64_t read_bytes, huge_bytes;
    double read_small[MAX_COUNTS], read_huge[MAX_COUNTS];
    rate_line rates[MAX_RATES];
    int32_t num_rates;
    char warnings[MAX_WARNINGS][200];
    int32_t num_warnings;
    double seconds;
} findings;

static void MF_PRINTF(2, 3) warn(findings *f, const char *fmt, ...)
{
    if (f->num_warnings < MAX_WARNINGS) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(f->warnings[f->num_warnings++], sizeof f->warnings[0], fmt, args);
        va_end(args);
    }
}

/* ---- measuring ---- */

static void choose_counts(findings *f, int32_t most)
{
    for (int32_t n = 1; n < most && f->num_counts < MAX_COUNTS - 1; n *= 2) {
        f->threads[f->num_counts++] = n;
    }
    f->threads[f->num_counts++] = most;
}

/* Loops that exist at a level, found by asking each for its rate at one thread. */
static mf_status measure_rates(findings *f, double seconds_each, mf_error *err)
{
    for (int32_t l = 0; l < f->num_levels; l++) {
        if (!f->levels[l].is_available) {
            continue;
        }
        for (int kind = 0; kind < MF_RATE_COUNT; kind++) {
            rate_line line = { .level = f->levels[l].name, .kind = (mf_rate_kind)kind };
            for (int32_t c = 0; c < f->num_counts && (c == 0 || line.gops[0] > 0); c++) {
                MF_TRY(mf_bench_rate(line.level, false, line.kind, f->threads[c], seconds_each, &line.gops[c], err));
            }
            if (line.gops[0] > 0 && f->num_rates < MAX_RATES) {
                f->rates[f->num_rates++] = line;
            }
        }
    }
    return MF_OK;
}

/* A block that no cache holds, and that fits twice into what is free. */
static int64_t choose_read_bytes(const mf_doctor_system *s)
{
    int64_t largest = 0, bytes = (int64_t)512 << 20;
    for (int32_t i = 0; i < s->topology->num_caches; i++) {
        largest = s->topology->caches[i].bytes > largest ? s->topology->caches[i].bytes : largest;
    }
    bytes = 4 * largest > bytes ? 4 * largest : bytes;
    int64_t most = s->available_bytes / 2;
    return s->available_bytes > 0 && bytes > most ? most : bytes;
}

static mf_status measure(findings *f, double seconds, mf_error *err)
{
    /* A share for each figure; each takes its least time all the same. */
    double each = seconds / (double)(f->num_counts * (2 + 8));
    double started = mf_now_s();
    f->read_bytes = choose_read_bytes(&f->system);
    int64_t ignored;
    MF_TRY(mf_bench_read_rates(f->threads, f->num_counts, false, f->read_bytes, each, f->read_small, &ignored, err));
    MF_TRY(
        mf_bench_read_rates(f->threads, f->num_counts, true, f->read_bytes, each, f->read_huge, &f->huge_bytes, err));
    MF_TRY(measure_rates(f, each, err));
    f->seconds = mf_now_s() - started;
    return MF_OK;
}

/* ---- judging ---- */

static void judge(findings *f)
{
    const mf_doctor_system *s = &f->system;
    for (int32_t i = 0; i < f->num_levels; i++) {
        if (f->levels[i].is_available && !f->levels[i].is_used && !f->levels[i].is_passed_over) {
            warn(f, "%s is not used: %s", f->levels[i].name, f->levels[i].reason);
        }
    }
    if (f->num_levels > 1 && !f->levels[1].is_available) {
        warn(f, "only plain C: this CPU lacks %s, so everything is slow", f->levels[1].needs);
    }
    if (s->topology->thp == MF_THP_NEVER) {
        warn(f, "huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    } else if (f->huge_bytes >= 0 && f->huge_bytes < f->read_bytes / 2) {
        warn(f, "the system gave huge pages to %.0f %% of a block that asked for them: memory is fragmented",
             100.0 * (double)f->huge_bytes / (double)f->read_bytes);
    }
    if (s->quota_cpus > 0 && s->quota_cpus < s->topology->num_cpus) {
        warn(f, "the control group pays for %.1f of %d CPUs: threads beyond that only wait", s->quota_cpus,
             s->topology->num_cpus);
    }
    if (s->open_files > 0 && s->open_files < 1024) {
        warn(f, "open files are limited to %lld: ulimit -n 4096", (long long)s->open_files);
    }
    if (s->available_bytes > 0 && s->available_bytes < (int64_t)1 << 30) {
        warn(f, "less than 1 GiB of memory is free");
    }
}

/* ---- showing ---- */

static json_t *numbers(const double *values, int32_t count)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < count; i++) {
        json_array_append_new(list, json_real(values[i]));
    }
    return list;
}

static const char *cache_type(char type)
{
    return type == 'd' ? "Data" : type == 'i' ? "Instruction" : "Unified";
}

static json_t *caches_json(const mf_topology *t)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < t->num_caches; i++) {
        const mf_cache_info *c = &t->caches[i];
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:I, s:i}", "level", (int)c->level, "type", cache_type(c->type),
                                        "bytes", (json_int_t)c->bytes, "shared_by", (int)c->num_cpus));
    }
    return list;
}

static json_t *nodes_json(const mf_topology *t)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < t->num_nodes; i++) {
        const mf_numa_node *n = &t->nodes[i];
        json_array_append_new(list, json_pack("{s:i, s:i, s:I}", "id", (int)n->id, "cpus", (int)n->num_cpus,
                                              "memory_bytes", (json_int_t)n->memory_bytes));
    }
    return list;
}

static json_t *levels_json(const findings *f)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < f->num_levels; i++) {
        const mf_bench_level *l = &f->levels[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:b, s:b, s:s}", "name", l->name, "needs", l->needs, "available",
                                        (int)l->is_available, "used", (int)l->is_used, "reason", l->reason));
    }
    return list;
}

static json_t *findings_json(const findings *f)
{
    const mf_doctor_system *s = &f->system;
    json_t *threads = json_array(), *rates = json_array(), *warnings = json_array();
    for (int32_t i = 0; i < f->num_counts; i++) {
        json_array_append_new(threads, json_integer(f->threads[i]));
    }
    for (int32_t i = 0; i < f->num_rates; i++) {
        json_array_append_new(rates, json_pack("{s:s, s:s, s:o}", "level", f->rates[i].level, "kind",
                                               mf_rate_kind_name(f->rates[i].kind), "gops",
                                               numbers(f->rates[i].gops, f->num_counts)));
    }
    for (int32_t i = 0; i < f->num_warnings; i++) {
        json_array_append_new(warnings, json_string(f->warnings[i]));
    }
    json_t *cpu =
        json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:o, s:o}", "name", s->cpu, "machine", s->machine, "kernel",
                  s->kernel, "online_cpus", (int)s->online_cpus, "allowed_cpus", (int)s->topology->num_cpus, "cores",
                  (int)s->topology->num_cores, "packages", (int)s->topology->num_packages, "quota_cpus", s->quota_cpus,
                  "numa_nodes", nodes_json(s->topology), "caches", caches_json(s->topology));
    json_t *memory =
        json_pack("{s:I, s:I, s:s, s:I, s:I}", "bytes", (json_int_t)s->memory_bytes, "available_bytes",
                  (json_int_t)s->available_bytes, "transparent_huge_pages", mf_doctor_thp_name(s->topology->thp),
                  "huge_page_bytes", (json_int_t)s->topology->huge_page_bytes, "open_files", (json_int_t)s->open_files);
    json_t *read = json_pack("{s:I, s:I, s:o, s:o}", "bytes", (json_int_t)f->read_bytes, "huge_bytes",
                             (json_int_t)f->huge_bytes, "small_pages_gb_per_s", numbers(f->read_small, f->num_counts),
                             "huge_pages_gb_per_s", numbers(f->read_huge, f->num_counts));
    return json_pack("{s:s, s:o, s:o, s:o, s:i, s:o, s:o, s:o, s:o, s:f}", "version", mf_version(), "cpu", cpu,
                     "levels", levels_json(f), "memory", memory, "default_threads",
                     (int)mf_cpu_features_get()->num_cores, "threads", threads, "read", read, "rates", rates,
                     "warnings", warnings, "seconds", f->seconds);
}

static void print_caches(const mf_topology *t)
{
    printf("caches    ");
    for (int32_t i = 0; i < t->num_caches; i++) {
        const mf_cache_info *c = &t->caches[i];
        char suffix[2] = { c->type == 'u' ? '\0' : c->type, '\0' };
        bool mib = c->bytes >= 1 << 20;
        printf("%sL%d%s %lld %s", i ? ", " : "", c->level, suffix, (long long)(c->bytes >> (mib ? 20 : 10)),
               mib ? "MiB" : "KiB");
        if (c->num_cpus > 1) {
            printf(" shared by %d", c->num_cpus);
        }
    }
    printf("%s\n", t->num_caches ? "" : "not told");
}

/* "s" unless there is one. */
static const char *plural(int64_t n)
{
    return n == 1 ? "" : "s";
}

static void print_pages(const mf_doctor_system *s)
{
    char bytes[32], available[32];
    const mf_topology *t = s->topology;
    printf("memory    %s, %s available", mf_format_bytes(s->memory_bytes, bytes, sizeof bytes),
           mf_format_bytes(s->available_bytes, available, sizeof available));
    for (int32_t i = 0; t->num_nodes > 1 && i < t->num_nodes; i++) {
        printf("%s node %d %s", i ? "," : ";", t->nodes[i].id,
               mf_format_bytes(t->nodes[i].memory_bytes, bytes, sizeof bytes));
    }
    printf("\npages     transparent huge pages: %s", mf_doctor_thp_name(t->thp));
    if (t->huge_page_bytes) {
        printf(", of %lld KiB", (long long)(t->huge_page_bytes >> 10));
    }
    for (int32_t i = 0; i < t->num_page_pools; i++) {
        const mf_page_pool *pool = &t->page_pools[i];
        if (pool->num_pages) {
            printf("; set aside: %lld of %lld KiB, %lld free", (long long)pool->num_pages,
                   (long long)(pool->page_bytes >> 10), (long long)pool->num_free);
        }
    }
    putchar('\n');
}

static void print_system(const findings *f)
{
    const mf_doctor_system *s = &f->system;
    const mf_topology *t = s->topology;
    const int32_t threads = mf_cpu_features_get()->num_cores;
    printf("program   moefuse %s, jansson %s\n", mf_version(), jansson_version_str());
    printf("system    %s, %s\n", s->kernel, s->machine);
    printf("cpu       %s: %d of %d logical CPUs, %d core%s, %s, %d NUMA node%s", s->cpu, t->num_cpus, s->online_cpus,
           t->num_cores, plural(t->num_cores), t->num_cpus > t->num_cores ? "SMT" : "no SMT", t->num_nodes,
           plural(t->num_nodes));
    if (s->quota_cpus > 0) {
        printf(", quota %.1f CPUs", s->quota_cpus);
    }
    printf("; %d thread%s by default\n", threads, plural(threads));
    print_caches(t);
    print_pages(s);
    printf("limits    %lld open files\n", (long long)s->open_files);
    for (int32_t i = 0; i < f->num_levels; i++) {
        const mf_bench_level *l = &f->levels[i];
        printf("%-9s %-12s %-5s %s%s\n", i ? "" : "levels", l->name, l->is_used ? "used" : "off",
               l->is_used ? "needs " : "", l->is_used ? l->needs : l->reason);
    }
}

static void print_counts(const char *title, const findings *f)
{
    printf("\n%-30s", title);
    for (int32_t i = 0; i < f->num_counts; i++) {
        printf(" %7d thread%s", f->threads[i], f->threads[i] == 1 ? " " : "s");
    }
    putchar('\n');
}

static void print_line(const char *name, const double *values, int32_t count)
{
    printf("%-30s", name);
    for (int32_t i = 0; i < count; i++) {
        printf(" %15.1f", values[i]);
    }
    putchar('\n');
}

static void print_measured(const findings *f)
{
    char name[64];
    print_counts("read, GB/s", f);
    print_line("  small pages", f->read_small, f->num_counts);
    print_line("  huge pages", f->read_huge, f->num_counts);
    print_counts("arithmetic, 10^9 operations/s", f);
    for (int32_t i = 0; i < f->num_rates; i++) {
        snprintf(name, sizeof name, "  %-12s %s", f->rates[i].level, mf_rate_kind_name(f->rates[i].kind));
        print_line(name, f->rates[i].gops, f->num_counts);
    }
    putchar('\n');
    for (int32_t i = 0; i < f->num_warnings; i++) {
        printf("warn      %s\n", f->warnings[i]);
    }
    if (!f->num_warnings) {
        printf("ok        nothing stands in the way\n");
    }
}

int mf_verb_doctor(int argc, char **argv)
{
    doctor_flags v = { .seconds = 4 };
    const mf_flag rows[] = {
        { "doctor", "--seconds", NULL, MF_FLAG_REAL, &v.seconds, .min = 0, .max = 3600, .argument = "S",
          .help = "spent on measuring, about; a quick look takes its least time all the same (4)" },
        { "doctor", "--threads", "-t", MF_FLAG_INT, &v.threads, .min = 0, .max = 256, .argument = "N",
          .help = "measure with up to N threads; 0: one per core (0)" },
        { "output", "--json", NULL, MF_FLAG_BOOL, &v.json, .help = "one JSON document on stdout" },
        { "output", "--help", "-h", MF_FLAG_BOOL, &v.help, .help = "this text" },
    };
    const size_t num_rows = sizeof rows / sizeof *rows;
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, NULL, 0, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (v.help) {
        printf("usage: moefuse doctor [flags]\n\nSays what this machine offers, which instruction sets are used and "
               "why others are "
               "not, and measures\nhow fast it reads memory and multiplies: what `moefuse bench` divides by.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    static findings f;
    mf_doctor_system_read(&f.system);
    f.num_levels = mf_bench_levels(f.levels, MF_BENCH_MAX_LEVELS);
    choose_counts(&f, v.threads ? (int32_t)v.threads : mf_cpu_features_get()->num_cores);
    if (!v.json) {
        print_system(&f);
        fflush(stdout);
    }
    if (measure(&f, v.seconds, &err) != MF_OK) {
        mf_console_error(&err);
        return MF_EXIT_RESOURCE;
    }
    judge(&f);
    if (v.json) {
        mf_console_json(findings_json(&f), JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    } else {
        print_measured(&f);
    }
    return MF_EXIT_OK;
}
