/* safetensors_write.c - see safetensors_write.h. */
#include "model/safetensors_write.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"

const char *mf_st_dtype_name(mf_dtype dtype)
{
    switch (dtype) {
    case MF_F32:
        return "F32";
    case MF_F16:
        return "F16";
    case MF_BF16:
        return "BF16";
    case MF_F8_E4M3:
        return "F8_E4M3";
    case MF_F8_E8M0:
        return "F8_E8M0";
    case MF_I8:
        return "I8";
    case MF_U8:
        return "U8";
    case MF_I32:
        return "I32";
    case MF_I64:
        return "I64";
    default:
        return NULL;
    }
}

static mf_status cannot_write(const char *path, mf_error *err)
{
    return mf_fail(err, MF_ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
}

static mf_status open_new(const char *path, FILE **file, mf_error *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    *file = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (*file) {
        return MF_OK;
    }
    if (fd >= 0) {
        close(fd);
    }
    return cannot_write(path, err);
}

static mf_status append_entry(mf_buffer *text, const mf_st_entry *e, uint64_t at)
{
    json_t *name = json_string(e->name);
    char *quoted = name ? json_dumps(name, JSON_ENCODE_ANY) : NULL;
    json_decref(name);
    if (!quoted) {
        return MF_ERR_NOMEM;
    }
    mf_status status = mf_buffer_printf(text, ",%s:{\"dtype\":\"%s\",\"shape\":[", quoted, mf_st_dtype_name(e->dtype));
    free(quoted);
    for (int32_t i = 0; i < e->ndim && status == MF_OK; i++) {
        status = mf_buffer_printf(text, "%s%lld", i ? "," : "", (long long)e->shape[i]);
    }
    return status == MF_OK ? mf_buffer_printf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                                              (unsigned long long)(at + e->bytes))
                           : status;
}

mf_status mf_st_writer_open(const char *path, const mf_st_entry *entries, int64_t num_entries, mf_st_writer *writer,
                            mf_error *err)
{
    *writer = (mf_st_writer){ .path = path };
    mf_buffer text = { 0 };
    mf_status status = mf_buffer_append_text(&text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0; i < num_entries && status == MF_OK; i++) {
        status = append_entry(&text, &entries[i], writer->bytes_left);
        writer->bytes_left += entries[i].bytes;
    }
    status = status == MF_OK ? mf_buffer_append_text(&text, "}") : status;
    while (status == MF_OK && text.size % 8 != 0) {
        status = mf_buffer_append_text(&text, " ");
    }
    if (status != MF_OK) {
        status = mf_fail(err, status, "%s: out of memory for its header", path);
        goto done;
    }
    MF_TRY_GOTO(open_new(path, &writer->file, err), done);
    uint8_t size[8];
    for (int i = 0; i < 8; i++) {
        size[i] = (uint8_t)((uint64_t)text.size >> (8 * i));
    }
    if (fwrite(size, 1, 8, writer->file) != 8 ||
        fwrite(mf_buffer_text(&text), 1, text.size, writer->file) != text.size) {
        status = cannot_write(path, err);
    }
done:
    mf_buffer_close(&text);
    return status;
}

mf_status mf_st_writer_write(mf_st_writer *writer, const void *data, uint64_t bytes, mf_error *err)
{
    if (bytes > writer->bytes_left) {
        return mf_fail(err, MF_ERR_INTERNAL, "%s: more bytes than its header says", writer->path);
    }
    if (fwrite(data, 1, bytes, writer->file) != bytes) {
        return cannot_write(writer->path, err);
    }
    writer->bytes_left -= bytes;
    return MF_OK;
}

static mf_status finish(FILE **file, const char *path, mf_error *err)
{
    const bool ok = fflush(*file) == 0 && fsync(fileno(*file)) == 0;
    const int saved = errno;
    const bool closed = fclose(*file) == 0;
    *file = NULL;
    if (ok && closed) {
        return MF_OK;
    }
    errno = ok ? errno : saved;
    return cannot_write(path, err);
}

mf_status mf_st_writer_finish(mf_st_writer *writer, mf_error *err)
{
    if (writer->bytes_left > 0) {
        return mf_fail(err, MF_ERR_INTERNAL, "%s: fewer bytes than its header says", writer->path);
    }
    return finish(&writer->file, writer->path, err);
}

void mf_st_writer_close(mf_st_writer *writer)
{
    if (writer->file) {
        (void)fclose(writer->file);
        writer->file = NULL;
    }
}

mf_status mf_write_new_file(const char *path, const void *data, size_t size, mf_error *err)
{
    FILE *file;
    MF_TRY(open_new(path, &file, err));
    if (fwrite(data, 1, size, file) != size) {
        const mf_status status = cannot_write(path, err);
        (void)fclose(file);
        return status;
    }
    return finish(&file, path, err);
}
