/* The sandbox, from inside: a child enters it and tries what a serving process does and what it must not. */
#include "server/sandbox.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "server/process_stats.h"
#include "test.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const bool sanitized = true; /* may trace and clone: LeakSanitizer does */
#else
static const bool sanitized = false;
#endif

static char folder[64]; /* of this test; "model" and "other" in it */
static mf_sandbox_state state;

/* In the child: a claim that does not hold is printed, and the child ends with 1. */
#define HOLDS(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            dprintf(2, "%s:%d: %s does not hold (errno %d)\n", __FILE__, __LINE__, #condition, errno);                 \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)
#define REFUSED(call) HOLDS((errno = 0, (long)(call) == -1) && (errno == EPERM || errno == EACCES))

static const char *in_folder(const char *name)
{
    static _Thread_local char path[160];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *name)
{
    int fd = open(in_folder(name), O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0 && write(fd, "text", 4) == 4);
    close(fd);
}

static void make_folder(void)
{
    strcpy(folder, "/tmp/moefuse-sandbox-XXXXXX");
    CHECK(mkdtemp(folder));
    CHECK(mkdir(in_folder("model"), 0700) == 0 && mkdir(in_folder("other"), 0700) == 0 &&
          mkdir(in_folder("run"), 0700) == 0);
    write_file("model/weights");
    write_file("other/secret");
}

static void remove_folder(void)
{
    static const char *const files[] = { "model/weights", "other/secret", "run/socket", "log" };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        unlink(in_folder(files[i]));
    }
    rmdir(in_folder("model"));
    rmdir(in_folder("other"));
    rmdir(in_folder("run"));
    rmdir(folder);
}

static int run_child(void (*body)(void))
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        body();
        _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- what every thread must find shut ---- */

static int unconnected = -1;

static void try_forbidden(void)
{
    char *const arguments[] = { "/bin/true", NULL };
    REFUSED(execve("/bin/true", arguments, NULL));
    REFUSED(socket(AF_INET, SOCK_STREAM, 0));
    REFUSED(socket(AF_UNIX, SOCK_STREAM, 0));
    REFUSED(socket(AF_INET, SOCK_DGRAM, 0));
    int pair[2];
    REFUSED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    const struct sockaddr_in address = { .sin_family = AF_INET,
                                         .sin_port = htons(9),
                                         .sin_addr = { htonl(INADDR_LOOPBACK) } };
    REFUSED(connect(unconnected, (const struct sockaddr *)&address, sizeof address));
    REFUSED(bind(unconnected, (const struct sockaddr *)&address, sizeof address));
    REFUSED(listen(unconnected, 1));
    REFUSED(open(in_folder("model/weights"), O_WRONLY));
    REFUSED(open(in_folder("model/weights"), O_RDWR));
    REFUSED(open(in_folder("model/weights"), O_RDONLY | O_TRUNC));
    REFUSED(open(in_folder("model/new"), O_RDONLY | O_CREAT, 0600));
    REFUSED(open("/dev/null", O_WRONLY));
    REFUSED(open("/tmp", O_TMPFILE | O_RDWR, 0600));
    REFUSED(syscall(SYS_memfd_create, "x", 0));
    REFUSED(unlink(in_folder("model/weights")));
    REFUSED(rename(in_folder("model/weights"), in_folder("model/new")));
    REFUSED(mkdir(in_folder("model/sub"), 0700));
    REFUSED(symlink("/etc/passwd", in_folder("model/link")));
    REFUSED(chmod(in_folder("model/weights"), 0777));
    REFUSED(truncate(in_folder("model/weights"), 0));
    REFUSED(syscall(SYS_unshare, 0x10000000));
    REFUSED(syscall(SYS_bpf, 0, NULL, 0));
    REFUSED(syscall(SYS_io_uring_setup, 1, NULL));
    REFUSED(syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    REFUSED(syscall(SYS_keyctl, 0, 0, 0, 0, 0));
    REFUSED(syscall(SYS_pidfd_open, getpid(), 0));
    REFUSED(syscall(SYS_seccomp, 0, 0, NULL));
    REFUSED(syscall(SYS_setuid, 0));
    const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
    REFUSED(setrlimit(RLIMIT_CORE, &unlimited));
    REFUSED((long)mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLDS(page != MAP_FAILED);
    REFUSED(mprotect(page, 4096, PROT_READ | PROT_EXEC));
    munmap(page, 4096);
    REFUSED(syscall(SYS_tgkill, getppid(), getppid(), 0));
    if (!sanitized) {
        REFUSED(fork());
        REFUSED(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
        REFUSED(kill(getppid(), 0));
        struct iovec none = { 0 };
        REFUSED(process_vm_readv(getppid(), &none, 1, &none, 1, 0));
    }
}

static void try_reading_elsewhere(void)
{
    REFUSED(open(in_folder("other/secret"), O_RDONLY));
    REFUSED(open("/etc/passwd", O_RDONLY));
    REFUSED(open("/", O_RDONLY | O_DIRECTORY));
    int fd = open(in_folder("model/weights"), O_RDONLY);
    HOLDS(fd >= 0);
    close(fd);
}

static void *thread_tries(void *argument)
{
    sem_t *go = argument;
    if (go) {
        while (sem_wait(go) != 0) {
        }
    }
    try_forbidden();
    if (state.landlock_abi) {
        try_reading_elsewhere();
    }
    return NULL;
}

static void enter(const char *uds_path, bool landlock_only)
{
    char model[160];
    snprintf(model, sizeof model, "%s/model", folder);
    const mf_sandbox_options options = {
        .model_dir = model, .removable = &uds_path, .num_removable = 1, .landlock_only = landlock_only
    };
    mf_error err = { 0 };
    if (mf_sandbox_enter(&options, &state, &err) != MF_OK) {
        dprintf(2, "%s\n", err.message);
        _exit(2);
    }
}

static void forbidden_body(void)
{
    unconnected = socket(AF_INET, SOCK_STREAM, 0);
    sem_t go;
    sem_init(&go, 0, 0);
    pthread_t before[3], after;
    for (int i = 0; i < 3; i++) {
        HOLDS(pthread_create(&before[i], NULL, thread_tries, &go) == 0);
    }
    enter(NULL, false);
    HOLDS(state.seccomp);
    HOLDS(!state.landlock_abi || (state.num_threads >= 4 && state.landlock_threads == state.num_threads));
    thread_tries(NULL);
    for (int i = 0; i < 3; i++) {
        sem_post(&go);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(before[i], NULL);
    }
    HOLDS(pthread_create(&after, NULL, thread_tries, NULL) == 0);
    pthread_join(after, NULL);
}

TEST(no_thread_can_do_what_a_server_need_not)
{
    make_folder();
    int code = run_child(forbidden_body);
    remove_folder();
    CHECK_EQ(code, 0);
}

/* ---- what must go on ---- */

static void *touch_memory(void *argument)
{
    (void)argument;
    size_t size = (size_t)8 << 20;
    char *block = malloc(size);
    HOLDS(block);
    memset(block, 1, size);
    free(block);
    return NULL;
}

static void serving_body(void)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t length = sizeof address;
    HOLDS(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0);
    HOLDS(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    HOLDS(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    int log = open(in_folder("log"), O_CREAT | O_WRONLY | O_APPEND, 0600);
    int weights = open(in_folder("model/weights"), O_RDONLY);
    const char *mapped = mmap(NULL, 4, PROT_READ, MAP_SHARED, weights, 0); /* not touched yet */
    close(weights);
    mf_process_stats stats;
    mf_process_stats_open(&stats);
    HOLDS(listener >= 0 && client >= 0 && log >= 0 && mapped != MAP_FAILED);

    enter(NULL, false);

    HOLDS(memcmp(mapped, "text", 4) == 0);
    int served = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    HOLDS(served >= 0 && send(client, "hello", 5, 0) == 5);
    int epoll = epoll_create1(EPOLL_CLOEXEC), wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event event = { .events = EPOLLIN };
    HOLDS(epoll >= 0 && wake >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, served, &event) == 0);
    HOLDS(epoll_ctl(epoll, EPOLL_CTL_ADD, wake, &event) == 0 && eventfd_write(wake, 1) == 0);
    HOLDS(epoll_wait(epoll, &event, 1, 1000) == 1);
    char text[8];
    int one = 1;
    HOLDS(recv(served, text, sizeof text, 0) == 5);
    HOLDS(setsockopt(served, IPPROTO_TCP, 1, &one, sizeof one) == 0);
    const struct iovec parts[2] = { { "a", 1 }, { "b", 1 } };
    HOLDS(writev(served, parts, 2) == 2 && shutdown(served, SHUT_WR) == 0 && close(served) == 0);
    HOLDS(write(log, "line\n", 5) == 5 && fsync(log) == 0);

    touch_memory(NULL);
    void *big = mmap(NULL, (size_t)64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLDS(big != MAP_FAILED && madvise(big, 4096, MADV_DONTNEED) == 0 && munmap(big, (size_t)64 << 20) == 0);
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) {
        HOLDS(pthread_create(&threads[i], NULL, touch_memory, NULL) == 0);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    int fd = open(in_folder("model/weights"), O_RDONLY | O_CLOEXEC);
    HOLDS(fd >= 0 && read(fd, text, 4) == 4 && close(fd) == 0);
    fd = open("/proc/meminfo", O_RDONLY);
    HOLDS(fd >= 0 && close(fd) == 0);
    mf_process_numbers numbers;
    mf_process_stats_read(&stats, &numbers);
    HOLDS(numbers.resident_bytes > 0 && numbers.open_fds > 3 && numbers.max_fds > 0);
    mf_process_stats_close(&stats);
    struct timespec now;
    HOLDS(clock_gettime(CLOCK_MONOTONIC, &now) == 0 && nanosleep(&(struct timespec){ .tv_nsec = 1000 }, NULL) == 0);
    HOLDS(raise(0) == 0 && prctl(PR_SET_NAME, "inside") == 0);
}

TEST(a_server_goes_on_inside)
{
    make_folder();
    int code = run_child(serving_body);
    remove_folder();
    CHECK_EQ(code, 0);
}

static void uds_body(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof address.sun_path, "%s/run/socket", folder);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    HOLDS(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    enter(address.sun_path, false);
    HOLDS(!state.landlock_abi || (unlink(in_folder("model/weights")) == -1 && errno == EACCES));
    HOLDS(unlink(address.sun_path) == 0);
}

TEST(a_server_on_a_unix_socket_can_remove_it_and_nothing_else)
{
    make_folder();
    int code = run_child(uds_body);
    remove_folder();
    CHECK_EQ(code, 0);
}

static void landlock_only_body(void)
{
    enter(NULL, true);
    HOLDS(!state.seccomp);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    HOLDS(fd >= 0);
    if (state.landlock_abi) {
        try_reading_elsewhere();
        char *const arguments[] = { "/bin/true", NULL };
        REFUSED(execve("/bin/true", arguments, NULL));
        REFUSED(open(in_folder("model/new"), O_CREAT | O_WRONLY, 0600));
    }
    if (state.landlock_abi >= 4) {
        const struct sockaddr_in address = { .sin_family = AF_INET,
                                             .sin_port = htons(9),
                                             .sin_addr = { htonl(INADDR_LOOPBACK) } };
        REFUSED(connect(fd, (const struct sockaddr *)&address, sizeof address));
    }
}

TEST(landlock_alone_fences_off_files_and_connections)
{
    make_folder();
    int code = run_child(landlock_only_body);
    remove_folder();
    CHECK_EQ(code, 0);
}

static void *block_signals(void *argument)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    sem_post(argument);
    for (;;) {
        pause();
    }
    return NULL;
}

static char last_line[512];

static void keep_warning(void *context, mf_log_level level, const char *line)
{
    (void)context;
    if (level == MF_LOG_WARN) {
        snprintf(last_line, sizeof last_line, "%s", line);
    }
}

static void deaf_body(void)
{
    sem_t ready;
    sem_init(&ready, 0, 0);
    pthread_t thread;
    HOLDS(pthread_create(&thread, NULL, block_signals, &ready) == 0);
    while (sem_wait(&ready) != 0) {
    }
    mf_log_set_sink(keep_warning, NULL, MF_LOG_INFO);
    enter(NULL, false);
    HOLDS(state.seccomp);
    HOLDS(!state.landlock_abi ||
          (state.landlock_threads == state.num_threads - 1 && strstr(last_line, "block signals")));
}

TEST(a_thread_that_blocks_signals_is_told_of)
{
    make_folder();
    int code = run_child(deaf_body);
    remove_folder();
    CHECK_EQ(code, 0);
}
