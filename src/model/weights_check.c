/* weights_check.c - `check`: every problem of a checkpoint that can be told apart, instead of the first. */
#include "model/weights_impl.h"

typedef struct checker {
    mf_finding_fn report;
    void *context;
    int32_t found, most;
} checker;

static bool note_bad_file(void *context, const mf_error *err)
{
    checker *check = context;
    if (check->found < check->most) {
        check->report(check->context, err->message);
        check->found++;
    }
    return check->found < check->most;
}

mf_status mf_weights_check(const char *dir, const mf_model_config *config, bool deep, int32_t max_findings,
                           mf_finding_fn report, void *context, int32_t *num_findings, mf_error *err)
{
    *num_findings = 0;
    mf_error local = { 0 };
    checker check = { .report = report, .context = context, .most = max_findings > 0 ? max_findings : 1 };
    mf_checkpoint_options opening = { .use_map = true, .bad_file = note_bad_file, .context = &check };
    mf_checkpoint *checkpoint = NULL;
    mf_weights *w = NULL;
    mf_status status = mf_checkpoint_open_with(dir, &opening, &checkpoint, &local);
    if (status == MF_OK) {
        status = mf_weights_plausible(dir, config, checkpoint, &local);
    }
    if (status != MF_OK && status != MF_ERR_NOMEM && check.found == 0) {
        note_bad_file(&check, &local); /* not a bad shard: the directory, the index, the sizes */
    }
    if (status == MF_OK) {
        MF_TRY_GOTO(mf_weights_alloc(config, mf_weights_arena_limit(checkpoint, true), &w, &local), done);
        w->checkpoint = checkpoint;
        checkpoint = NULL;
        mf_match_options match = {
            .dir = dir, .deep = deep, .report = report, .context = context, .max_findings = check.most
        };
        status = mf_weights_match(w, &match, &check.found, &local);
    }
done:
    mf_checkpoint_close(&checkpoint);
    mf_weights_close(&w);
    *num_findings = check.found;
    if (status == MF_ERR_NOMEM) {
        if (err) {
            *err = local;
        }
        return status;
    }
    return MF_OK;
}
