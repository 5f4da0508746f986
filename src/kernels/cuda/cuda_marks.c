/* cuda_marks.c - where a GPU's time goes: an event in the stream at each part's beginning (kernels/profile.h), and a range
 * of the same name for NVIDIA's profilers where the toolkit has NVTX's headers. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "kernels/cuda/device_state.h"
#include "kernels/part.h"

#if defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define HAS_NVTX
#endif
#endif

enum { MOST_MARKS = 8192 };

struct mf_cuda_marks {
    cudaEvent_t events[MOST_MARKS];
    int parts[MOST_MARKS];
    int num;
    double seconds[MF_NUM_PARTS]; /* of marks that had to make room */
};

static void show_range(int part, bool is_first)
{
#ifdef HAS_NVTX
    static const char *const names[MF_NUM_PARTS] = { "attention", "gate", "experts", "combine", "dense products", "rest" };
    if (!is_first) {
        (void)nvtxRangePop();
    }
    if (part >= 0) {
        (void)nvtxRangePushA(names[part]);
    }
#else
    (void)part;
    (void)is_first;
#endif
}

static void marks_close(mf_device *device)
{
    mf_cuda_marks *m = mf_cuda_state_of(device)->marks;
    if (m) {
        for (int i = 0; i < MOST_MARKS && m->events[i]; i++) {
            (void)cudaEventDestroy(m->events[i]);
        }
        free(m);
        mf_cuda_state_of(device)->marks = NULL;
    }
}

static mf_status marks_open(mf_device *device, mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    mf_cuda_marks *m = calloc(1, sizeof *m);
    mf_cuda_state_of(device)->marks = m;
    if (!m) {
        return mf_fail(err, MF_ERR_NOMEM, "device %s: out of memory", device->name);
    }
    for (int i = 0; i < MOST_MARKS; i++) {
        mf_status status = mf_cuda_check(device, cudaEventCreate(&m->events[i]), "cudaEventCreate", err);
        if (status != MF_OK) {
            m->events[i] = NULL;
            marks_close(device);
            return status;
        }
    }
    return MF_OK;
}

/* Ends the last part here, and adds up. */
static mf_status gather(mf_device *device, mf_cuda_marks *m, mf_error *err)
{
    if (m->num == 0) {
        return MF_OK;
    }
    cudaEvent_t end = m->events[m->num];
    MF_TRY(mf_cuda_check(device, cudaEventRecord(end, mf_cuda_state_of(device)->stream), "cudaEventRecord", err));
    MF_TRY(mf_cuda_check(device, cudaEventSynchronize(end), "cudaEventSynchronize", err));
    for (int i = 0; i < m->num; i++) {
        float ms = 0.0f;
        MF_TRY(mf_cuda_check(device, cudaEventElapsedTime(&ms, m->events[i], m->events[i + 1]), "cudaEventElapsedTime", err));
        m->seconds[m->parts[i]] += (double)ms * 1e-3;
    }
    m->num = 0;
    show_range(-1, false);
    return MF_OK;
}

void mf_cuda_mark(mf_device *device, int part)
{
    mf_cuda_marks *m = mf_cuda_state_of(device)->marks;
    mf_error err;
    if (!m || (m->num > 0 && m->parts[m->num - 1] == part) || mf_cuda_enter(device, &err) != MF_OK) {
        return;
    }
    if (m->num == MOST_MARKS - 1 && gather(device, m, &err) != MF_OK) {
        return;
    }
    show_range(part, m->num == 0);
    m->parts[m->num] = part;
    (void)mf_cuda_check(device, cudaEventRecord(m->events[m->num++], mf_cuda_state_of(device)->stream), "cudaEventRecord", &err);
}

static mf_status marks_take(mf_device *device, double *seconds, mf_error *err)
{
    mf_cuda_marks *m = mf_cuda_state_of(device)->marks;
    MF_TRY(mf_cuda_enter(device, err));
    MF_TRY(gather(device, m, err));
    for (int i = 0; i < MF_NUM_PARTS; i++) {
        seconds[i] += m->seconds[i];
        m->seconds[i] = 0.0;
    }
    return MF_OK;
}

void mf_cuda_add_mark_ops(mf_device_memory_ops *ops)
{
    ops->marks_open = marks_open;
    ops->mark = mf_cuda_mark;
    ops->marks_take = marks_take;
    ops->marks_close = marks_close;
}
