/* bench_throughput.c - `moefuse bench throughput`: many prompts at once, as fast as the scheduler takes them. */
#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "cli/bench_modes.h"

typedef struct throughput_flags {
    mf_bench_common common;
    int64_t num_prompts;
} throughput_flags;

typedef struct figures {
    double elapsed_s;
    mf_bench_tally tally;
    int64_t preemptions;
} figures;

/* The queue is bounded: what it does not take waits here until a step has made room. */
static mf_status run_all(const throughput_flags *f, mf_bench_requests *requests, figures *out, mf_error *err)
{
    int64_t submitted = 0;
    double start = mf_now_s(), told = start;
    while (out->tally.finished < f->num_prompts) {
        mf_status status = MF_OK;
        while (submitted < f->num_prompts && status == MF_OK) {
            status = mf_bench_submit_next(requests, err);
            submitted += status == MF_OK;
        }
        if (status != MF_OK && status != MF_ERR_BUSY) {
            return status;
        }
        MF_TRY(mf_bench_step(requests, &out->tally, err));
        if (mf_bench_interrupted()) {
            return mf_fail(err, MF_ERR_CANCELLED, "interrupted");
        }
        double now = mf_now_s();
        if (!f->common.model.no_progress && now - told > 2) {
            told = now;
            fprintf(stderr, "%lld/%lld prompts, %lld tokens, %.1f tok/s\n", (long long)out->tally.finished,
                    (long long)f->num_prompts, (long long)out->tally.tokens, (double)out->tally.tokens / (now - start));
        }
    }
    out->elapsed_s = mf_now_s() - start;
    mf_engine_stats stats;
    mf_engine_get_stats(requests->session->engine, &stats);
    out->preemptions = stats.num_preemptions;
    return MF_OK;
}

static mf_status show(const throughput_flags *f, const mf_session *session, const figures *r, mf_error *err)
{
    const double prompts = (double)f->num_prompts, made = (double)r->tally.tokens,
                 read = (double)r->tally.prompt_tokens;
    if (!f->common.json) {
        printf("Throughput: %.2f requests/s, %.2f total tokens/s, %.2f output tokens/s\n", prompts / r->elapsed_s,
               (made + read) / r->elapsed_s, made / r->elapsed_s);
        printf("Total num prompt tokens:  %lld\nTotal num output tokens:  %lld\n", (long long)r->tally.prompt_tokens,
               (long long)r->tally.tokens);
        if (r->preemptions) {
            printf("Preemptions:  %lld\n", (long long)r->preemptions);
        }
    }
    if (!f->common.json && !f->common.output_json) {
        return MF_OK;
    }
    json_t *document =
        json_pack("{s:s, s:f, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:o}", "model_id", f->common.model.model,
                  "elapsed_time", r->elapsed_s, "num_requests", (json_int_t)f->num_prompts, "total_num_tokens",
                  (json_int_t)(r->tally.tokens + r->tally.prompt_tokens), "requests_per_second", prompts / r->elapsed_s,
                  "tokens_per_second", (made + read) / r->elapsed_s, "output_tokens_per_second", made / r->elapsed_s,
                  "total_output_tokens", (json_int_t)r->tally.tokens, "num_preemptions", (json_int_t)r->preemptions,
                  "moefuse", mf_bench_about(session, &f->common));
    return mf_bench_write_json(&f->common, document, err);
}

int mf_bench_mode_throughput(int argc, char **argv)
{
    throughput_flags f = { .common = { .input_len = 128, .output_len = 128 }, .num_prompts = 1000 };
    mf_flag rows[1 + MF_NUM_BENCH_COMMON_FLAGS] = {
        { "load", "--num-prompts", NULL, MF_FLAG_INT, &f.num_prompts, .min = 1, .max = 1 << 24, .argument = "N",
          .help = "prompts in all (1000)" },
    };
    const size_t num_rows = sizeof rows / sizeof *rows;
    mf_bench_common_fill(&f.common, rows + 1);
    const char *positionals[1];
    int32_t num_positionals;
    mf_error err = { 0 };
    if (mf_flags_parse(rows, num_rows, argc, argv, positionals, 1, &num_positionals, &err) != MF_OK) {
        return mf_usage_error(&err);
    }
    if (f.common.model.help) {
        printf("usage: moefuse bench throughput [MODEL] [flags]\n\nRuns many prompts (--input-len 128, --output-len "
               "128) at once.  "
               "MODEL may be a config.json alone, under\nany name: weights are then random.\n");
        mf_flags_help(rows, num_rows, stdout);
        return MF_EXIT_OK;
    }
    mf_session session;
    int exit_code;
    mf_status status =
        mf_bench_open(&f.common, positionals, num_positionals, f.num_prompts, &session, &exit_code, &err);
    if (status != MF_OK) {
        mf_console_error(&err);
        return exit_code;
    }
    mf_bench_requests requests;
    figures result = { 0 };
    status = mf_bench_requests_open(&session, &f.common, &requests, &err);
    if (status == MF_OK) {
        status = run_all(&f, &requests, &result, &err);
        mf_bench_requests_close(&requests);
    }
    if (status == MF_OK) {
        status = show(&f, &session, &result, &err);
    }
    mf_session_close(&session);
    if (status != MF_OK) {
        mf_console_error(&err);
        return status == MF_ERR_CANCELLED ? MF_EXIT_INTERRUPTED : MF_EXIT_FAILED;
    }
    return MF_EXIT_OK;
}
