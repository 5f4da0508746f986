/* bench_profile.c - see bench_profile.h. */
#include "cli/bench_profile.h"

#include <stdio.h>

#include "base/sys.h"
#include "engine/engine.h"

static const char *const names[MF_NUM_PARTS] = { "attention", "gate", "experts", "combine", "dense products", "rest" };
static const char *const keys[MF_NUM_PARTS] = { "attention", "gate", "experts", "combine", "dense", "rest" };

static mf_status run_phases(mf_bench_requests *requests, int64_t num_sequences, mf_bench_profile *out, mf_error *err)
{
    mf_bench_tally tally = { 0 };
    for (int64_t i = 0; i < num_sequences; i++) {
        MF_TRY(mf_bench_submit_next(requests, err));
    }
    while (tally.finished < num_sequences) {
        mf_bench_phase *phase = tally.first_tokens < num_sequences ? &out->prefill : &out->decode;
        const double start = mf_now_s();
        MF_TRY(mf_bench_step(requests, &tally, err));
        MF_TRY(mf_model_profile_take(requests->session->model, phase->parts_s, err));
        phase->wall_s += mf_now_s() - start;
        phase->steps++;
        if (mf_bench_interrupted()) {
            return mf_fail(err, MF_ERR_CANCELLED, "interrupted");
        }
    }
    return MF_OK;
}

mf_status mf_bench_profile_batch(mf_bench_requests *requests, int64_t num_sequences, mf_bench_profile *out, mf_error *err)
{
    *out = (mf_bench_profile){ 0 };
    mf_engine_reset_prefix_cache(requests->session->engine);
    MF_TRY(mf_model_profile_begin(requests->session->model, err));
    const mf_status status = run_phases(requests, num_sequences, out, err);
    mf_model_profile_end(requests->session->model);
    return status;
}

static void print_phase(const mf_bench_phase *phase, double seconds)
{
    printf("  %12.3f %6.1f %%", seconds * 1e3 / (double)phase->steps,
           phase->wall_s > 0 ? seconds / phase->wall_s * 100.0 : 0.0);
}

static void print_line(const char *name, const mf_bench_profile *p, double prefill_s, double decode_s)
{
    printf("  %-16s", name);
    print_phase(&p->prefill, prefill_s);
    if (p->decode.steps > 0) {
        print_phase(&p->decode, decode_s);
    }
    printf("\n");
}

void mf_bench_profile_print(const mf_session *session, const mf_bench_profile *p)
{
    const bool is_device = mf_model_picks_best(session->model);
    double prefill_s = 0.0, decode_s = 0.0;
    printf("Profile: milliseconds of a step%s\n",
           is_device ? "; without graphs, and parts one after the other: slower than a run without it"
                     : "");
    printf("  %-16s  %4lld with prompts     ", "", (long long)p->prefill.steps);
    printf(p->decode.steps > 0 ? "  %4lld decoding\n" : "\n", (long long)p->decode.steps);
    for (int i = 0; i < MF_NUM_PARTS; i++) {
        print_line(names[i], p, p->prefill.parts_s[i], p->decode.parts_s[i]);
        prefill_s += p->prefill.parts_s[i];
        decode_s += p->decode.parts_s[i];
    }
    if (is_device) {
        print_line("host", p, p->prefill.wall_s - prefill_s, p->decode.wall_s - decode_s);
    }
    print_line("all", p, p->prefill.wall_s, p->decode.wall_s);
}

static json_t *phase_json(const mf_bench_phase *phase)
{
    json_t *object = json_pack("{s:I, s:f}", "steps", (json_int_t)phase->steps, "seconds", phase->wall_s);
    for (int i = 0; object && i < MF_NUM_PARTS; i++) {
        json_object_set_new(object, keys[i], json_real(phase->parts_s[i]));
    }
    return object;
}

json_t *mf_bench_profile_json(const mf_bench_profile *p)
{
    return json_pack("{s:o, s:o}", "prefill", phase_json(&p->prefill), "decode", phase_json(&p->decode));
}
