/* sandbox.c - see sandbox.h. */
#include "server/sandbox.h"

#include <sys/prctl.h>

#include "base/log.h"
#include "server/sandbox_impl.h"

mf_status mf_sandbox_enter(const mf_sandbox_options *options, mf_sandbox_state *state, mf_error *err)
{
    mf_sandbox_state own = { 0 };
    state = state ? state : &own;
    *state = own;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return mf_fail(err, MF_ERR_DEVICE, "sandbox: PR_SET_NO_NEW_PRIVS is refused");
    }
    mf_error missing = { 0 };
    mf_status status = mf_sandbox_enter_landlock(options, state, &missing);
    if (status == MF_ERR_UNSUPPORTED) {
        mf_log(MF_LOG_WARN, "%s: files are not fenced off", missing.message);
    } else if (status != MF_OK) {
        return mf_fail(err, status, "%s", missing.message);
    }
    /* The filter comes last: it does not let the calls of Landlock through. */
    if (!options->landlock_only) {
        status = mf_sandbox_enter_seccomp(options, &missing);
        if (status == MF_ERR_UNSUPPORTED) {
            mf_log(MF_LOG_WARN, "%s: system calls are not filtered", missing.message);
        } else if (status != MF_OK) {
            return mf_fail(err, status, "%s", missing.message);
        }
        state->seccomp = status == MF_OK;
    }
    if (state->landlock_abi && state->landlock_threads < state->num_threads) {
        mf_log(MF_LOG_WARN, "sandbox: Landlock covers %d of %d threads: the others block signals",
               state->landlock_threads, state->num_threads);
    }
    mf_log(MF_LOG_INFO, "sandbox: seccomp %s, Landlock %s", state->seccomp ? "on" : "off",
           state->landlock_abi ? "on" : "off");
    return MF_OK;
}
