/* bench_profile.h - `--profile`: a table of where steps spend their time, prompts' and decoding's apart. */
#ifndef MF_CLI_BENCH_PROFILE_H
#define MF_CLI_BENCH_PROFILE_H

#include "cli/bench_modes.h"

typedef struct mf_bench_phase {
    double parts_s[MF_NUM_PARTS], wall_s;
    int64_t steps;
} mf_bench_phase;

/* Steps until all sequences have a token are the first phase's. */
typedef struct mf_bench_profile {
    mf_bench_phase prefill, decode;
} mf_bench_profile;

/* One batch of num_sequences, every step noted. */
mf_status mf_bench_profile_batch(mf_bench_requests *requests, int64_t num_sequences, mf_bench_profile *out, mf_error *err);

void mf_bench_profile_print(const mf_session *session, const mf_bench_profile *profile);
json_t *mf_bench_profile_json(const mf_bench_profile *profile);

#endif
