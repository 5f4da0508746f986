/* metrics_dump.c - prints the exposition of a made-up server: metrics_dump [MODEL_NAME].  With --per-expert as the
 * second argument, series per expert. */
#include <stdio.h>
#include <string.h>

#include "base/buffer.h"
#include "server/metrics.h"

enum { LAYERS = 3, EXPERTS = 20 };

int main(int argc, char **argv)
{
    static const char *const modes[LAYERS] = { NULL, "slot", "serial" };
    static int64_t load[LAYERS * EXPERTS];
    for (int i = EXPERTS; i < LAYERS * EXPERTS; i++) {
        load[i] = i * 7 % 31;
    }
    mf_metrics_options options = { .model_name = argc > 1 ? argv[1] : "m",
                                   .version = "0.1.0",
                                   .commit = "abc",
                                   .isa = "avx2",
                                   .device = "cpu",
                                   .max_model_len = 4096,
                                   .num_layers = LAYERS,
                                   .num_experts = EXPERTS,
                                   .num_shared = 1,
                                   .layer_modes = modes,
                                   .per_expert = argc > 2 && strcmp(argv[2], "--per-expert") == 0 };
    mf_service_snapshot snapshot = { .expert_load = load };
    snapshot.stats.expert_load = load;
    snapshot.stats.num_layers = LAYERS;
    snapshot.stats.num_experts = EXPERTS;
    snapshot.stats.computed_tokens = 50;
    mf_metrics *metrics = NULL;
    mf_error err = { 0 };
    mf_buffer out = { 0 };
    if (mf_metrics_open(&options, &metrics, &err) != MF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    for (int i = 0; i < 1000; i++) {
        mf_metrics_observe(metrics, MF_HIST_TTFT, i * 1e-3);
        mf_metrics_observe(metrics, MF_HIST_PROMPT_TOKENS, i);
    }
    mf_metrics_answered(metrics, 200);
    mf_metrics_now now = { .snapshot = &snapshot, .heartbeat_age_s = 0.001 };
    int code = mf_metrics_write(metrics, &now, &out) != MF_OK;
    fwrite(mf_buffer_text(&out), 1, out.size, stdout);
    mf_buffer_close(&out);
    mf_metrics_close(&metrics);
    return code;
}
