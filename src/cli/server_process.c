/* server_process.c - see server_process.h. */
#include "cli/server_process.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/sys.h"
#include "base/threads.h"

enum { MAX_ARGUMENTS = 128, ARGUMENT_BYTES = 16384, LAST_LINE_BYTES = 512 };

struct mf_server_process {
    pid_t pid;
    int log_fd;
    pthread_t reader;
    bool has_reader, reaped, show_log;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    bool ready, ended;
    char url[128], last_error[LAST_LINE_BYTES], last_line[LAST_LINE_BYTES];
};

/* ---- the child's log ---- */

static void take_line(mf_server_process *p, const char *line)
{
    static const char mark[] = "ready on http://";
    pthread_mutex_lock(&p->lock);
    const char *ready = strstr(line, mark);
    if (ready && !p->ready) {
        ready += sizeof mark - 1 - strlen("http://");
        size_t n = strcspn(ready, " \r\n");
        snprintf(p->url, sizeof p->url, "%.*s", (int)(n < sizeof p->url ? n : sizeof p->url - 1), ready);
        p->ready = true;
        pthread_cond_broadcast(&p->changed);
    } else if ((p->show_log && !p->ready) || strstr(line, "warning:") || strstr(line, "error:")) {
        fprintf(stderr, "%s\n", line);
    }
    snprintf(p->last_line, sizeof p->last_line, "%s", line);
    if (strstr(line, "error:")) {
        snprintf(p->last_error, sizeof p->last_error, "%s", line);
    }
    pthread_mutex_unlock(&p->lock);
}

/* Reads for the child's whole life: a full pipe would stop it. */
static void *read_log(void *context)
{
    mf_server_process *p = context;
    FILE *log = fdopen(p->log_fd, "r");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    while (log && (n = getline(&line, &capacity, log)) > 0) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) {
            line[--n] = '\0';
        }
        take_line(p, line);
    }
    free(line);
    if (log) {
        fclose(log);
    } else {
        close(p->log_fd);
    }
    pthread_mutex_lock(&p->lock);
    p->ended = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- arguments ---- */

typedef struct arguments {
    char *list[MAX_ARGUMENTS + 1];
    size_t count, used;
    char text[ARGUMENT_BYTES];
    bool overflow;
} arguments;

static void add(arguments *a, const char *fmt, ...) MF_PRINTF(2, 3);
static void add(arguments *a, const char *fmt, ...)
{
    size_t room = sizeof a->text - a->used;
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(a->text + a->used, room, fmt, args);
    va_end(args);
    if (a->count == MAX_ARGUMENTS || n < 0 || (size_t)n >= room) {
        a->overflow = true;
        return;
    }
    a->list[a->count++] = a->text + a->used;
    a->used += (size_t)n + 1;
}

/* Every value is said, defaults too: the environment, which the child also reads, was read here already. */
static void add_row(arguments *a, const mf_flag *row)
{
    static const char *const not_handed_on[] = { "--model", "--help", "--no-progress" };
    for (size_t i = 0; i < sizeof not_handed_on / sizeof *not_handed_on; i++) {
        if (strcmp(row->name, not_handed_on[i]) == 0) {
            return;
        }
    }
    switch (row->type) {
    case MF_FLAG_BOOL:
        add(a, "%s=%s", row->name, *(const bool *)row->value ? "true" : "false");
        break;
    case MF_FLAG_INT:
        if ((double)*(const int64_t *)row->value >= row->min) { /* "not given" may lie outside: --max-model-len's 0 */
            add(a, "%s=%lld", row->name, (long long)*(const int64_t *)row->value);
        }
        break;
    case MF_FLAG_REAL:
        add(a, "%s=%.17g", row->name, *(const double *)row->value);
        break;
    case MF_FLAG_TEXT:
        if (*(const char *const *)row->value) {
            add(a, "%s=%s", row->name, *(const char *const *)row->value);
        }
        break;
    case MF_FLAG_LIST:
        for (int32_t i = 0; i < ((const mf_flag_list *)row->value)->count; i++) {
            add(a, "%s=%s", row->name, ((const mf_flag_list *)row->value)->items[i]);
        }
        break;
    }
}

static mf_status make_arguments(const mf_server_options *o, arguments *a, mf_error *err)
{
    add(a, "moefuse");
    add(a, "serve");
    add(a, "--model=%s", o->model);
    add(a, "--host=127.0.0.1");
    add(a, "--port=0");
    for (size_t i = 0; i < o->num_model_rows; i++) {
        add_row(a, &o->model_rows[i]);
    }
    for (const char *const *more = o->more; more && *more; more++) {
        add(a, "%s", *more);
    }
    return a->overflow ? mf_fail(err, MF_ERR_LIMIT, "the flags for the server are longer than %d bytes", ARGUMENT_BYTES)
                       : MF_OK;
}

/* ---- start and stop ---- */

static void run_child(char *const *argv, int log_fd, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) { /* it died before that */
        _exit(1);
    }
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
    execv("/proc/self/exe", argv);
    static const char message[] = "moefuse: error: cannot start the server: exec of /proc/self/exe failed\n";
    (void)!write(STDERR_FILENO, message, sizeof message - 1);
    _exit(127);
}

static mf_status wait_until_ready(mf_server_process *p, bool (*stop)(void), mf_error *err)
{
    mf_status status = MF_OK;
    pthread_mutex_lock(&p->lock);
    while (!p->ready && !p->ended && status == MF_OK) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&p->changed, &p->lock, &until);
        if (stop && stop()) {
            status = mf_fail(err, MF_ERR_CANCELLED, "interrupted");
        }
    }
    if (status == MF_OK && !p->ready) {
        const char *said = p->last_error[0] ? p->last_error : p->last_line[0] ? p->last_line : "nothing";
        status = mf_fail(err, MF_ERR_DEVICE, "the server ended before it was ready; it said: %s", said);
    }
    pthread_mutex_unlock(&p->lock);
    return status;
}

mf_status mf_server_process_start(const mf_server_options *options, mf_server_process **out, char *url, size_t size,
                                  mf_error *err)
{
    *out = NULL;
    arguments *argv = mf_alloc_zero(sizeof *argv);
    mf_server_process *p = mf_alloc_zero(sizeof *p);
    int ends[2] = { -1, -1 };
    mf_status status =
        argv && p ? make_arguments(options, argv, err) : mf_fail(err, MF_ERR_NOMEM, "server: out of memory");
    if (status == MF_OK && pipe2(ends, O_CLOEXEC) != 0) {
        status = mf_fail(err, MF_ERR_IO, "server: no pipe: %s", strerror(errno));
    }
    if (status == MF_OK) {
        pid_t self = getpid();
        fflush(stderr);
        p->pid = fork();
        if (p->pid == 0) {
            run_child(argv->list, ends[1], self);
        }
        close(ends[1]);
        if (p->pid < 0) {
            close(ends[0]);
            status = mf_fail(err, MF_ERR_IO, "server: cannot fork: %s", strerror(errno));
        }
    }
    mf_free(argv);
    if (status != MF_OK) {
        mf_free(p);
        return status;
    }
    p->log_fd = ends[0];
    p->show_log = options->show_log;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->has_reader = mf_thread_start(&p->reader, "mf-log", read_log, p) == 0;
    status = p->has_reader ? wait_until_ready(p, options->stop, err) : mf_fail(err, MF_ERR_NOMEM, "server: no thread");
    *out = p;
    if (status != MF_OK) {
        mf_server_process_stop(out);
        return status;
    }
    snprintf(url, size, "%s", p->url);
    return MF_OK;
}

bool mf_server_process_runs(mf_server_process *p)
{
    if (!p->reaped && waitpid(p->pid, NULL, WNOHANG) == p->pid) {
        p->reaped = true;
    }
    return !p->reaped;
}

void mf_server_process_stop(mf_server_process **process)
{
    mf_server_process *p = *process;
    if (!p) {
        return;
    }
    if (mf_server_process_runs(p)) {
        kill(p->pid, SIGTERM);
    }
    for (double end = mf_now_s() + 20; mf_server_process_runs(p);) {
        if (mf_now_s() > end) {
            kill(p->pid, SIGKILL);
        }
        nanosleep(&(struct timespec){ 0, 10000000 }, NULL);
    }
    if (p->has_reader) {
        pthread_join(p->reader, NULL);
    } else {
        close(p->log_fd);
    }
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    mf_free(p);
    *process = NULL;
}
