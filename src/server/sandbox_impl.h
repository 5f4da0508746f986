/* sandbox_impl.h - the two halves of sandbox.c. */
#ifndef MF_SERVER_SANDBOX_IMPL_H
#define MF_SERVER_SANDBOX_IMPL_H

#include "server/sandbox.h"

/* MF_ERR_UNSUPPORTED: the kernel has no filters that cover all threads. */
mf_status mf_sandbox_enter_seccomp(const mf_sandbox_options *options, mf_error *err);
/* MF_ERR_UNSUPPORTED: the kernel has no Landlock, or it is off. */
mf_status mf_sandbox_enter_landlock(const mf_sandbox_options *options, mf_sandbox_state *state, mf_error *err);

#endif
