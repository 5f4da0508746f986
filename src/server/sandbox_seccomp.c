/* sandbox_seccomp.c - the list of system calls that a serving process still makes; every other one fails with EPERM.
 *
 * A list of what is allowed, so that a call nobody thought of is refused.  EPERM and not death: a call that a library
 * tries and can do without must not end the server. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <termios.h>
#include <unistd.h>

#include "server/sandbox_impl.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true; /* LeakSanitizer traces a clone of the process at its end */
#else
static const bool sanitized = false;
#endif

/* Memory, threads and time; descriptors that are open; what can be asked without changing anything. */
/* clang-format off */
static const char *const free_calls[] = {
    "accept", "accept4", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "close_range", "dup",
    "dup2", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "exit",
    "exit_group", "faccessat", "faccessat2", "access", "fadvise64", "fcntl", "fdatasync", "fstat", "fstatfs",
    "fsync", "futex", "futex_waitv", "get_mempolicy", "get_robust_list", "getcpu", "getcwd", "getdents64",
    "getegid", "geteuid", "getgid", "getpeername", "getpid", "getppid", "getrandom", "getrlimit", "getrusage",
    "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "lseek", "madvise", "mbind", "membarrier",
    "mincore", "mremap", "munmap", "nanosleep", "newfstatat", "pipe2", "poll", "ppoll", "pread64", "preadv",
    "preadv2", "pselect6", "pwrite64", "read", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg",
    "recvmsg", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
    "sched_getparam", "sched_getscheduler", "sched_setaffinity", "sched_yield", "select", "sendmmsg", "sendmsg",
    "sendto", "set_robust_list", "set_tid_address", "setsockopt", "shutdown", "sigaltstack", "signalfd4", "stat",
    "lstat", "statx", "sysinfo", "time", "timerfd_create", "timerfd_gettime", "timerfd_settime", "times", "uname",
    "write", "writev",
};
/* clang-format on */

static const char *const sanitizer_calls[] = { "ptrace",           "wait4", "kill",       "tkill",
                                               "process_vm_readv", "clone", "personality" };

static bool allow(scmp_filter_ctx ctx, const char *name)
{
    int number = seccomp_syscall_resolve_name(name);
    return number == __NR_SCMP_ERROR || seccomp_rule_add(ctx, SCMP_ACT_ALLOW, number, 0) == 0;
}

/* Allows a call when (argument & mask) == value. */
static bool allow_when(scmp_filter_ctx ctx, const char *name, unsigned argument, uint64_t mask, uint64_t value)
{
    int number = seccomp_syscall_resolve_name(name);
    const struct scmp_arg_cmp compare = {
        .arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value
    };
    return number == __NR_SCMP_ERROR || seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, number, 1, &compare) == 0;
}

static bool add_rules(scmp_filter_ctx ctx, const mf_sandbox_options *options)
{
    bool ok = true;
    for (size_t i = 0; i < sizeof free_calls / sizeof *free_calls; i++) {
        ok = ok && allow(ctx, free_calls[i]);
    }
    /* Reading only.  A file without a name (O_TMPFILE) needs a writing mode. */
    const uint64_t writes = O_ACCMODE | O_CREAT | O_TRUNC;
    ok = ok && allow_when(ctx, "open", 1, writes, O_RDONLY) && allow_when(ctx, "openat", 2, writes, O_RDONLY);
    /* Memory that is never executable. */
    ok = ok && allow_when(ctx, "mmap", 2, PROT_EXEC, 0) && allow_when(ctx, "mprotect", 2, PROT_EXEC, 0);
    /* Threads and no processes.  clone3's flags lie in memory, out of a filter's sight: libraries go back to clone. */
    ok = ok && allow_when(ctx, "clone", 0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM) &&
         seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0) == 0;
    /* Signals to this process alone. */
    ok = ok && allow_when(ctx, "tgkill", 0, UINT32_MAX, (uint32_t)getpid());
    ok = ok && allow_when(ctx, "prctl", 0, UINT32_MAX, PR_SET_NAME) &&
         allow_when(ctx, "prctl", 0, UINT32_MAX, PR_GET_NAME);
    const uint64_t requests[] = { FIONBIO, FIONREAD, FIOCLEX, TCGETS, TIOCGWINSZ };
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        ok = ok && allow_when(ctx, "ioctl", 1, UINT32_MAX, requests[i]);
    }
    /* Asking for limits, of this process, and not setting them. */
    const struct scmp_arg_cmp own[] = { { .arg = 0, .op = SCMP_CMP_EQ, .datum_a = 0 },
                                        { .arg = 2, .op = SCMP_CMP_EQ, .datum_a = 0 } };
    ok = ok && seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, own) == 0;
    bool removes = false;
    for (size_t i = 0; i < options->num_removable; i++) {
        removes = removes || options->removable[i];
    }
    if (removes) {
        ok = ok && allow(ctx, "unlink") && allow(ctx, "unlinkat");
    }
    for (size_t i = 0; sanitized && i < sizeof sanitizer_calls / sizeof *sanitizer_calls; i++) {
        ok = ok && allow(ctx, sanitizer_calls[i]);
    }
    ok = ok && (!sanitized || allow_when(ctx, "prctl", 0, 0, 0));
    return ok;
}

mf_status mf_sandbox_enter_seccomp(const mf_sandbox_options *options, mf_error *err)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!ctx) {
        return mf_fail(err, MF_ERR_NOMEM, "sandbox: out of memory for the filter");
    }
    mf_status status = MF_OK;
    /* All threads at once; libseccomp sets no_new_privs before it loads. */
    if (seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1) != 0 || !add_rules(ctx, options)) {
        status = mf_fail(err, MF_ERR_DEVICE, "a rule of the filter was not taken: libseccomp is too old");
    } else {
        /* A sorted tree instead of a list: a handful of comparisons per call. */
        seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        int rc = seccomp_load(ctx);
        if (rc != 0) {
            status = mf_fail(err, rc == -ENOSYS || rc == -EINVAL ? MF_ERR_UNSUPPORTED : MF_ERR_DEVICE,
                             "the filter was not taken: %s", strerror(rc < 0 ? -rc : rc));
        }
    }
    seccomp_release(ctx);
    return status;
}
