/* sandbox_landlock.c - reading a few folders only, for each thread that there is.
 *
 * Landlock restricts the thread that asks and those it starts later, but the pool and the engine's thread run already:
 * each one is sent a signal and restricts itself in the handler.  The calls are made raw: their wrappers and the newer
 * constants are not in every libc. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "server/sandbox_impl.h"

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

enum { RIGHT_READ_FILE = 1 << 2, RIGHT_READ_DIR = 1 << 3, RIGHT_REMOVE_FILE = 1 << 5, RIGHT_IOCTL_DEV = 1 << 15 };
enum { CREATE_RULESET_VERSION = 1, RULE_PATH_BENEATH = 1, NET_BIND_TCP = 1, NET_CONNECT_TCP = 2 };
enum { MAX_THREADS = 4096 };

/* As the kernel has them; a shorter size stands for an older one. */
typedef struct ruleset_attr {
    uint64_t handled_access_fs, handled_access_net;
} ruleset_attr;

typedef struct path_beneath_attr {
    uint64_t allowed_access;
    int32_t parent_fd;
} __attribute__((packed)) path_beneath_attr;

/* Rights on files that each version of Landlock knows. */
static uint64_t known_rights(long abi)
{
    static const int num_rights[] = { 0, 13, 14, 15, 15, 16 };
    return ((uint64_t)1 << num_rights[abi > 5 ? 5 : abi]) - 1;
}

static mf_status allow_path(int ruleset, const char *path, uint64_t rights, mf_error *err)
{
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT || errno == EACCES || errno == ENOTDIR
                   ? MF_OK
                   : mf_fail(err, MF_ERR_DEVICE, "sandbox: %.200s: %s", path, strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) == 0 && !S_ISDIR(st.st_mode)) {
        rights &= RIGHT_READ_FILE; /* the others are of folders */
    }
    const path_beneath_attr rule = { .allowed_access = rights, .parent_fd = fd };
    long rc = rights ? syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0) : 0;
    int problem = errno;
    close(fd);
    return rc == 0 ? MF_OK
                   : mf_fail(err, MF_ERR_DEVICE, "sandbox: Landlock rule for %.200s: %s", path, strerror(problem));
}

static mf_status add_rules(int ruleset, const mf_sandbox_options *options, mf_error *err)
{
    /* What libraries look up by themselves: processors and memory, the clock's zone. */
    static const char *const always[] = { "/proc",          "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm",
                                          "/etc/localtime", "/usr/share/zoneinfo", "/dev/null",      "/dev/urandom" };
    const uint64_t reading = RIGHT_READ_FILE | RIGHT_READ_DIR;
    for (size_t i = 0; i < sizeof always / sizeof *always; i++) {
        MF_TRY(allow_path(ruleset, always[i], reading, err));
    }
    if (options->model_dir) {
        MF_TRY(allow_path(ruleset, options->model_dir, reading, err));
    }
    for (size_t i = 0; i < options->num_readable; i++) {
        MF_TRY(allow_path(ruleset, options->readable[i], reading, err));
    }
    for (size_t i = 0; i < options->num_removable; i++) {
        const char *path = options->removable[i];
        if (path) { /* a right of its folder */
            char folder[4096];
            const char *slash = strrchr(path, '/');
            int n = slash ? (int)(slash - path) + (slash == path) : 1;
            snprintf(folder, sizeof folder, "%.*s", n, slash ? path : ".");
            MF_TRY(allow_path(ruleset, folder, RIGHT_REMOVE_FILE, err));
        }
    }
    return MF_OK;
}

/* ---- every thread ---- */

static int shared_ruleset;
static atomic_int num_answered, num_restricted, first_problem;

static bool restrict_this_thread(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(SYS_landlock_restrict_self, shared_ruleset, 0) == 0) {
        return true;
    }
    int none = 0;
    atomic_compare_exchange_strong(&first_problem, &none, errno);
    return false;
}

static void on_signal(int number)
{
    (void)number;
    int saved = errno;
    atomic_fetch_add(&num_restricted, restrict_this_thread());
    atomic_fetch_add(&num_answered, 1);
    errno = saved;
}

static bool known(const pid_t *ids, int n, pid_t id)
{
    for (int i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

/* Sends the signal to each thread that is not in ids[*n] and puts it there; how many there were. */
static int signal_new_threads(DIR *tasks, pid_t *ids, int *n, int number)
{
    int sent = 0;
    rewinddir(tasks);
    for (const struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        pid_t id = (pid_t)strtol(entry->d_name, NULL, 10);
        if (id > 0 && *n < MAX_THREADS && !known(ids, *n, id)) {
            ids[(*n)++] = id;
            sent += syscall(SYS_tgkill, getpid(), id, number) == 0;
        }
    }
    return sent;
}

/* A thread that one of the old threads starts before it was restricted is found in a further round. */
static mf_status restrict_all_threads(mf_sandbox_state *state, mf_error *err)
{
    static pid_t ids[MAX_THREADS];
    const int number = SIGRTMAX - 3;
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, before;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "/proc/self/task: %s", strerror(errno));
    }
    sigfillset(&action.sa_mask);
    sigaction(number, &action, &before);
    atomic_store(&num_answered, 0);
    atomic_store(&num_restricted, restrict_this_thread());
    atomic_store(&first_problem, atomic_load(&num_restricted) ? 0 : errno);
    int n = 1, sent = 0, new_ones = 1;
    ids[0] = (pid_t)syscall(SYS_gettid);
    for (int round = 0; round < 100 && new_ones > 0; round++) {
        new_ones = signal_new_threads(tasks, ids, &n, number);
        sent += new_ones;
        /* A second at most: a thread that blocks every signal is told of, not waited for. */
        for (int wait = 0; wait < 1000 && atomic_load(&num_answered) < sent; wait++) {
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        }
    }
    closedir(tasks);
    /* Left in place when an answer is missing: the default for the signal is death. */
    if (atomic_load(&num_answered) == sent) {
        sigaction(number, &before, NULL);
    }
    state->num_threads = sent + 1;
    state->landlock_threads = atomic_load(&num_restricted);
    if (state->landlock_threads == 0) {
        return mf_fail(err, MF_ERR_DEVICE, "sandbox: Landlock was refused: %s", strerror(atomic_load(&first_problem)));
    }
    return MF_OK;
}

mf_status mf_sandbox_enter_landlock(const mf_sandbox_options *options, mf_sandbox_state *state, mf_error *err)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
    if (abi < 1) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "%s",
                       errno == EOPNOTSUPP ? "switched off in this kernel" : "not in this kernel");
    }
    const ruleset_attr attr = {
        /* Controls of devices that are open are the filter's business. */
        .handled_access_fs = known_rights(abi) & ~(uint64_t)RIGHT_IOCTL_DEV,
        .handled_access_net = abi >= 4 ? NET_BIND_TCP | NET_CONNECT_TCP : 0,
    };
    int ruleset =
        (int)syscall(SYS_landlock_create_ruleset, &attr, abi >= 4 ? sizeof attr : sizeof attr.handled_access_fs, 0);
    if (ruleset < 0) {
        return mf_fail(err, MF_ERR_DEVICE, "sandbox: Landlock: %s", strerror(errno));
    }
    shared_ruleset = ruleset;
    mf_status status = add_rules(ruleset, options, err);
    if (status == MF_OK) {
        status = restrict_all_threads(state, err);
    }
    close(ruleset);
    state->landlock_abi = status == MF_OK ? (int)abi : 0;
    return status;
}
