/* console.c - errors, log lines and progress on stderr: see console.h. */
#include "cli/console.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/sys.h"
#include "cli/log_output.h"

void mf_console_error(const mf_error *err)
{
    const char *message = err->message[0] ? err->message : mf_status_name(err->status);
    fflush(stdout);
    if (mf_log_output_takes_all()) {
        mf_log_lines(MF_LOG_ERROR, message);
    }
    if (!mf_log_output_is_json()) {
        fprintf(stderr, "moefuse: error: %s\n", message);
    }
}

void mf_console_json(json_t *document, size_t flags)
{
    char *text = document ? json_dumps(document, flags) : NULL;
    if (text) {
        puts(text);
        fflush(stdout);
    }
    mf_free(text);
    json_decref(document);
}

int mf_exit_code(mf_status status)
{
    switch (status) {
    case MF_OK: return MF_EXIT_OK;
    case MF_ERR_NOMEM:
    case MF_ERR_DEVICE: return MF_EXIT_RESOURCE;
    case MF_ERR_CANCELLED: return MF_EXIT_INTERRUPTED;
    case MF_ERR_INTERNAL: return MF_EXIT_FAILED;
    default: return MF_EXIT_MODEL;
    }
}

void mf_console_progress_start(mf_console_progress *state, bool disabled)
{
    *state =
        (mf_console_progress){ .enabled = !disabled && !mf_log_output_is_json(), .tty = isatty(STDERR_FILENO) == 1 };
}

bool mf_console_progress_draw(void *context, const mf_progress_info *info)
{
    mf_console_progress *state = context;
    if (!state->enabled || info->bytes_total <= 0) {
        return true;
    }
    bool done = info->bytes_done >= info->bytes_total;
    double share = (double)info->bytes_done / (double)info->bytes_total;
    double rate = info->seconds > 0 ? (double)info->bytes_done / info->seconds : 0;
    int32_t tenth = (int32_t)(share * 10);
    char have[32], all[32], files[40] = "";
    if (info->files_total > 0) {
        snprintf(files, sizeof files, " %d/%d files", info->files_done, info->files_total);
    }
    mf_format_bytes(info->bytes_done, have, sizeof have);
    mf_format_bytes(info->bytes_total, all, sizeof all);
    if (state->tty) {
        if (!done && info->seconds - state->last_time < 0.1) {
            return true;
        }
        state->last_time = info->seconds;
        char bar[25];
        for (int i = 0; i < 24; i++) {
            bar[i] = i < (int)(share * 24) ? '#' : '-';
        }
        bar[24] = '\0';
        double eta = rate > 0 ? (double)(info->bytes_total - info->bytes_done) / rate : 0;
        fprintf(stderr, "\r%s%s [%s] %3.0f %%  %s/%s  %.1f GB/s  ETA %.0f s \033[K", info->what, files, bar, share * 100, have, all, rate * 1e-9, eta);
        state->drawn = true;
        fflush(stderr);
    } else if (done || (tenth > state->last_tenth && info->seconds - state->last_time >= 5.0)) {
        state->last_tenth = tenth;
        state->last_time = info->seconds;
        fprintf(stderr, "%s%s %3.0f %%  %s/%s  %.1f GB/s\n", info->what, files, share * 100, have, all, rate * 1e-9);
    }
    return true;
}

void mf_console_progress_end(mf_console_progress *state)
{
    if (state->drawn) {
        fputc('\n', stderr);
        state->drawn = false;
    }
}

const char *mf_format_bytes(int64_t bytes, char *out, size_t size)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1000 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(out, size, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return out;
}

const char *mf_format_count(int64_t count, char *out, size_t size)
{
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)count);
    size_t used = 0;
    for (int i = 0; i < n && used + 2 < size; i++) {
        if (i > 0 && digits[i - 1] != '-' && (n - i) % 3 == 0) {
            out[used++] = ',';
        }
        out[used++] = digits[i];
    }
    out[used] = '\0';
    return out;
}

const char *mf_format_params(int64_t count, char *out, size_t size)
{
    if (count >= 1000000000) {
        snprintf(out, size, "%.1f B", (double)count * 1e-9);
    } else {
        snprintf(out, size, "%.1f M", (double)count * 1e-6);
    }
    return out;
}
