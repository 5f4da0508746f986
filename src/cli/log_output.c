/* log_output.c - see log_output.h. */
#include "cli/log_output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/sys.h"

enum { MAX_OUT = 8192, TELL_EVERY_S = 60 };

static struct {
    int fd;
    bool is_json, is_file;
    const char *path;
    _Atomic bool is_cut; /* the last line is there in part */
    _Atomic int64_t num_untold;
    _Atomic int64_t told_ns;
} output = { .fd = STDERR_FILENO };

static const char *const level_names[] = { "debug", "info", "warning", "error" };

/* ---- a line -------------------------------------------------------------------------------------------------------
 */

static size_t append(char *out, size_t used, size_t size, const char *text, size_t n)
{
    if (used + n < size) {
        memcpy(out + used, text, n);
        used += n;
        out[used] = '\0';
    }
    return used;
}

/* The line is UTF-8 without control characters: two characters are left to escape. */
static size_t append_json_text(char *out, size_t used, size_t size, const char *line)
{
    for (const char *p = line; *p && used + 8 < size; p++) {
        if (*p == '"' || *p == '\\') {
            out[used++] = '\\';
        }
        out[used++] = *p;
    }
    return used;
}

size_t mf_log_output_format(bool json, bool has_time, int64_t seconds, int milliseconds, mf_log_level level,
                            const char *line, char *out, size_t size)
{
    char when[48] = "";
    time_t clock = (time_t)seconds;
    struct tm utc;
    if (has_time && gmtime_r(&clock, &utc)) {
        char date[32];
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
        snprintf(when, sizeof when, "%s.%03dZ", date, milliseconds);
    }
    int n;
    size_t used;
    if (json) {
        n = snprintf(out, size, "{\"time\":\"%s\",\"level\":\"%s\",\"message\":\"", when, level_names[level]);
        used = append_json_text(out, (size_t)n, size, line);
        return append(out, used, size, "\"}\n", 3);
    }
    n = has_time ? snprintf(out, size, "%s %s: ", when, level_names[level])
                 : snprintf(out, size, "moefuse: %s: ", level_names[level]);
    used = append(out, (size_t)n, size, line, strlen(line));
    return append(out, used, size, "\n", 1);
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */

/* false with errno: not all of it went out. */
static bool write_all(int fd, const char *text, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = write(fd, text + done, size - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            errno = n == 0 ? ENOSPC : errno;
            atomic_store(&output.is_cut, done > 0 || atomic_load(&output.is_cut));
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

static void tell_of_dropped(int problem)
{
    int64_t now_ns = mf_now_ns(), told_ns = atomic_load(&output.told_ns);
    if ((told_ns != 0 && now_ns - told_ns < (int64_t)TELL_EVERY_S * 1000000000) ||
        !atomic_compare_exchange_strong(&output.told_ns, &told_ns, now_ns)) {
        return;
    }
    char text[512], line[1024];
    snprintf(text, sizeof text, "log %.300s: lines that could not be written: %lld: %s",
             output.is_file ? output.path : "on stderr", (long long)atomic_exchange(&output.num_untold, 0),
             strerror(problem));
    size_t n = mf_log_output_format(output.is_json, output.is_json, (int64_t)time(NULL), 0, MF_LOG_WARN, text, line,
                                    sizeof line);
    (void)!write(STDERR_FILENO, line, n);
}

static void write_line(void *context, mf_log_level level, const char *line)
{
    (void)context;
    char out[MAX_OUT];
    struct timespec now = { 0 };
    bool has_time = output.is_json || output.is_file;
    if (has_time) {
        clock_gettime(CLOCK_REALTIME, &now);
    }
    /* A line that is there in part is ended, so that this one begins where lines begin. */
    size_t lead = atomic_exchange(&output.is_cut, false) ? 1 : 0;
    out[0] = '\n';
    size_t n = lead + mf_log_output_format(output.is_json, has_time, now.tv_sec, (int)(now.tv_nsec / 1000000), level,
                                           line, out + lead, sizeof out - lead);
    if (!write_all(output.fd, out, n)) {
        int problem = errno;
        if (lead) {
            atomic_store(&output.is_cut, true);
        }
        mf_log_add_dropped(1);
        atomic_fetch_add(&output.num_untold, 1);
        tell_of_dropped(problem);
    }
}

/* ---- opening ------------------------------------------------------------------------------------------------------
 */

static mf_status open_file(const char *path, mf_error *err)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0640);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        int problem = errno;
        if (fd >= 0) {
            close(fd);
        }
        return mf_fail(err, MF_ERR_IO, "--log-file %.400s: %s", path, strerror(problem));
    }
    if (S_ISDIR(st.st_mode)) {
        close(fd);
        return mf_fail(err, MF_ERR_IO, "--log-file %.400s: expected a file; got a directory", path);
    }
    output.fd = fd;
    output.is_file = true;
    output.path = path;
    return MF_OK;
}

mf_status mf_log_output_start(const mf_log_output_options *options, mf_error *err)
{
    const char *level = options->level;
    mf_log_level least = strcmp(level, "debug") == 0   ? MF_LOG_DEBUG
                         : strcmp(level, "warn") == 0  ? MF_LOG_WARN
                         : strcmp(level, "error") == 0 ? MF_LOG_ERROR
                                                       : MF_LOG_INFO;
    if (options->file) {
        MF_TRY(open_file(options->file, err));
    }
    output.is_json = options->format && strcmp(options->format, "json") == 0;
    mf_log_set_sink(write_line, NULL, least);
    return MF_OK;
}

bool mf_log_output_is_json(void)
{
    return output.is_json;
}

bool mf_log_output_takes_all(void)
{
    return output.is_json || output.is_file;
}

void mf_log_lines(mf_log_level level, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "\n");
        mf_log(level, "%.*s", (int)(n < 1000 ? n : 1000), text);
        text += n + (text[n] == '\n');
    }
}
