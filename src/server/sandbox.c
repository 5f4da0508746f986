/* sandbox.c - see sandbox.h. */
#include "server/sandbox.h"

#include <stdio.h>
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
    char landlock[256] = "on", seccomp[256] = "on";
    mf_status status = mf_sandbox_enter_landlock(options, state, &missing);
    if (status == MF_ERR_UNSUPPORTED) {
        snprintf(landlock, sizeof landlock, "off (%.200s)", missing.message);
    } else if (status != MF_OK) {
        return mf_fail(err, status, "%s", missing.message);
    }
    /* The filter comes last: it does not let the calls of Landlock through. */
    if (!options->landlock_only) {
        status = mf_sandbox_enter_seccomp(options, &missing);
        if (status == MF_ERR_UNSUPPORTED) {
            snprintf(seccomp, sizeof seccomp, "off (%.200s)", missing.message);
        } else if (status != MF_OK) {
            return mf_fail(err, status, "sandbox: %s", missing.message);
        }
        state->seccomp = status == MF_OK;
    }
    if (options->landlock_only) {
        snprintf(seccomp, sizeof seccomp, "off (the device's driver needs its own calls)");
    }
    bool covers_all = !state->landlock_abi || state->landlock_threads == state->num_threads;
    if (!covers_all) {
        snprintf(landlock, sizeof landlock, "on for %d of %d threads: the others block signals",
                 state->landlock_threads, state->num_threads);
    }
    bool is_whole = state->landlock_abi && covers_all && (state->seccomp || options->landlock_only);
    mf_log(is_whole ? MF_LOG_INFO : MF_LOG_WARN, "sandbox: seccomp (system calls) %s; Landlock (files) %s", seccomp,
           landlock);
    return MF_OK;
}
