/* cuda_linear.c - the host's side of a model's dense products on device cuda, and of norms in front of them: which path a
 * matrix takes, which kernels it means for so many tokens.
 *
 * The inputs of bf16 products are rounded once, into memory that the device keeps and that grows outside graphs only. */
#include <cuda_runtime_api.h>

#include "kernels/cuda/dense_ops.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/router_gate.h"

int mf_cuda_starts_early;

/* ---- matrices ---- */

bool mf_cuda_takes_mma(const mf_matrix *m, mf_dtype act_dtype)
{
    return (act_dtype == MF_BF16 || act_dtype == MF_F32) && m->format == MF_FORMAT_BF16 && m->k % 64 == 0 &&
           m->row_stride % 8 == 0 && on16(m->data);
}

/* FP8 codes, widened to bf16: inputs must be rounded to bf16 anyway. */
static bool takes_fp8(const mf_device *device, const mf_matrix *m, mf_dtype act_dtype)
{
    return act_dtype == MF_BF16 && (m->format == MF_FORMAT_FP8_BLOCK || m->format == MF_FORMAT_FP8_CHANNEL) &&
           m->k % 128 == 0 && m->row_stride % 16 == 0 && on16(m->data) && mf_cuda_state_of(device)->gpu.capability >= 89;
}

static mf_cuda_linear_path path_of(const mf_device *device, const mf_matrix *m, mf_dtype act_dtype)
{
    const mf_cuda_packed kind = mf_cuda_codes_of(device, m, act_dtype);
    return mf_cuda_takes_mma(m, act_dtype)   ? MF_CUDA_LINEAR_MMA
           : takes_fp8(device, m, act_dtype) ? MF_CUDA_LINEAR_FP8
           : kind != MF_CUDA_PACKED_NONE     ? (mf_cuda_linear_path)(MF_CUDA_LINEAR_CODES + kind)
                                             : MF_CUDA_LINEAR_PLAIN;
}

bool mf_cuda_takes_bf16_inputs(const mf_device *device, const mf_matrix *m)
{
    return path_of(device, m, MF_BF16) != MF_CUDA_LINEAR_PLAIN;
}

bool mf_cuda_takes_wgmma_together(const mf_device *device, const mf_linear_call *call, const mf_cuda_linear *p,
                                  mf_cuda_linear_path *path)
{
    *path = path_of(device, call->w[0], call->act_dtype);
    for (int i = 1; i < call->num; i++) {
        if (path_of(device, call->w[i], call->act_dtype) != *path) {
            return false;
        }
    }
    return *path == MF_CUDA_LINEAR_MMA || (*path >= MF_CUDA_LINEAR_CODES && mf_cuda_can_widen(p));
}

bool mf_cuda_make_bf16(mf_device *device, mf_cuda_linear *p, mf_cuda_linear_path path)
{
    return path < MF_CUDA_LINEAR_CODES || mf_cuda_widen(device, p, (mf_cuda_packed)(path - MF_CUDA_LINEAR_CODES));
}

/* ---- rounded inputs ---- */

mf_status mf_cuda_reserve(mf_device *device, size_t bytes, mf_error *err)
{
    mf_cuda_state *state = mf_cuda_state_of(device);
    if (bytes <= state->rounded_bytes) {
        return MF_OK;
    }
    MF_TRY(mf_cuda_check(device, cudaStreamSynchronize(state->stream), "cudaStreamSynchronize", err));
    MF_TRY(mf_cuda_check(device, cudaFree(state->rounded), "cudaFree", err));
    state->rounded = NULL;
    state->rounded_bytes = 0;
    cudaError_t error = cudaMalloc(&state->rounded, bytes);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return mf_fail(err, MF_ERR_NOMEM, "device %s: no memory for %zu bytes of rounded inputs", device->name, bytes);
    }
    MF_TRY(mf_cuda_check(device, error, "cudaMalloc", err));
    state->rounded_bytes = bytes;
    return MF_OK;
}

static mf_status reserve(mf_device *device, int64_t num_tokens, int64_t k, uint32_t formats, int64_t *bytes, mf_error *err)
{
    MF_TRY(mf_cuda_enter(device, err));
    MF_TRY(mf_cuda_reserve(device, (size_t)(num_tokens * k) * 2, err));
    *bytes = num_tokens * k * 2;
    return mf_cuda_reserve_widened(device, formats, bytes, err);
}

void mf_cuda_dense_close(mf_device *device)
{
    (void)cudaFree(mf_cuda_state_of(device)->rounded);
    (void)cudaFree(mf_cuda_state_of(device)->widened);
}

/* ---- linear ---- */

/* false: there is no room for so many planes in `rounded`, which a later call tells. */
static bool has_room(mf_device *device, int64_t planes, int64_t num_tokens, int64_t width)
{
    mf_cuda_state *state = mf_cuda_state_of(device);
    mf_error err;
    if (mf_cuda_reserve(device, (size_t)(planes * num_tokens * width) * 2, &err) != MF_OK) {
        state->failure = state->failure.status == MF_OK ? err : state->failure;
        return false;
    }
    return true;
}

/* x of a product as planes of bf16: where it is already, or in the device's own memory. */
static bool round_x(mf_device *device, mf_cuda_linear *p, int64_t width)
{
    const mf_cuda_state *state = mf_cuda_state_of(device);
    if (!has_room(device, p->parts, p->num_tokens, width)) {
        return false;
    }
    done(device,
         p->parts == 1
             ? mf_cuda_launch_convert(p->x, p->x_stride, p->num_tokens, width, MF_BF16, state->rounded, state->stream)
             : mf_cuda_launch_split(p->x, p->x_stride, p->num_tokens, width, state->rounded, state->stream),
         "linear's input");
    p->x = state->rounded;
    p->x_stride = width;
    p->x_plane = p->num_tokens * width;
    return true;
}

int32_t mf_cuda_linear_runs(int64_t k)
{
    return k >= 3072 ? 16 : 8;
}

/* Hopper's own products, of the same bits; the fewest tokens are quicker without. */
static bool takes_wgmma(const mf_device *device, const mf_cuda_linear *p)
{
    return mf_cuda_state_of(device)->gpu.capability == 90 && p->num_tokens > MF_CUDA_LINEAR_RING &&
           (p->num_batches == 0 || p->x_step % 64 == 0);
}

static void launch_wgmma(mf_device *device, mf_cuda_linear *p, const void *rounded)
{
    const int64_t width = p->num_batches > 0 ? p->num_batches * p->x_step : p->w[0].k;
    if (rounded && p->parts == 1 && on16(rounded)) {
        p->x = rounded;
        p->x_stride = width;
    } else if (!round_x(device, p, width)) {
        return;
    }
    done(device, mf_cuda_linear_hopper(&mf_cuda_state_of(device)->gpu, p, stream_of(device)), "linear");
}

/* Whether few tokens' products go through rings, and how deep ones. */
static bool plan_ring(const mf_device *device, mf_cuda_linear *p)
{
    enum { EARLY = 1 };
    const mf_cuda_gpu *gpu = &mf_cuda_state_of(device)->gpu;
    const int64_t room = gpu->shared_bytes - 1024;
    if (p->num_tokens > MF_CUDA_LINEAR_RING) {
        return false;
    }
    p->most_blocks = gpu->num_multiprocessors;
    p->early = EARLY;
    p->most_window = gpu->window_bytes;
    p->element_bits = 16;
    for (p->is_deep = 1; p->is_deep >= 0; p->is_deep--) {
        mf_cuda_linear_ring_plan(p);
        if (mf_cuda_linear_ring_shared(p) <= room) {
            return true;
        }
    }
    return false;
}

void mf_cuda_launch_mma(mf_device *device, mf_cuda_linear *p, const void *rounded)
{
    p->runs = mf_cuda_linear_runs(p->w[0].k);
    if (takes_wgmma(device, p)) {
        launch_wgmma(device, p, rounded);
        return;
    }
    const int64_t width = p->num_batches > 0 ? p->num_batches * p->x_step : p->w[0].k;
    const bool rings = plan_ring(device, p);
    const bool is_few = p->num_tokens > MF_CUDA_LINEAR_RING && p->num_tokens <= MF_CUDA_LINEAR_FEW;
    if (rounded && p->parts == 1) {
        p->x = rounded;
        p->x_stride = width;
    } else if (rings && p->x_is_wide) {
        p->x_is_f32 = 1;
    } else if (!round_x(device, p, width)) {
        return;
    }
    done(device,
         rings    ? mf_cuda_launch_linear_ring(p, stream_of(device))
         : is_few ? mf_cuda_launch_linear_few(p, stream_of(device))
                  : mf_cuda_launch_linear_tile(p, stream_of(device)),
         "linear");
}

static void launch_fp8(mf_device *device, mf_cuda_linear *p, const void *rounded)
{
    p->parts = 1;
    p->most_window = p->num_tokens <= 32 ? mf_cuda_state_of(device)->gpu.window_bytes : 0; /* more read weights again */
    p->element_bits = 8;
    if (rounded && on16(rounded)) {
        p->x = rounded;
        p->x_stride = p->w[0].k;
    } else if (!round_x(device, p, p->w[0].k)) {
        return;
    }
    done(device, mf_cuda_launch_linear_fp8(p, stream_of(device)), "linear");
}

/* Some tokens' products take the codes as they are; more those of bf16, in pieces that fit where they are widened. */
static void launch_codes(mf_device *device, mf_cuda_linear *p, const void *rounded, mf_cuda_linear_path path)
{
    const mf_cuda_gpu *gpu = &mf_cuda_state_of(device)->gpu;
    const int kind = path - MF_CUDA_LINEAR_CODES;
    p->parts = 1;
    p->runs = mf_cuda_linear_runs(p->w[0].k);
    const bool is_few = p->num_tokens <= MF_CUDA_CODES_FEW && mf_cuda_codes_are_a_wave(device, p);
    const bool rings = !is_few && mf_cuda_plan_codes_ring(device, p, (mf_cuda_packed)kind);
    if (rounded && on16(rounded)) {
        p->x = rounded;
        p->x_stride = p->w[0].k;
    } else if ((rings || (is_few && p->num_tokens <= MF_CUDA_LINEAR_RING)) && p->x_is_wide) {
        p->x_is_f32 = 1;
    } else if (!round_x(device, p, p->w[0].k)) {
        return;
    }
    if (rings || is_few) {
        p->most_window = gpu->window_bytes;
        p->element_bits = mf_format_bits((mf_format)p->w[0].format);
        done(device,
             rings ? mf_cuda_launch_codes_ring(p, kind, stream_of(device))
                   : mf_cuda_launch_linear_codes(p, kind, stream_of(device)),
             "linear");
    } else if (p->num_tokens <= MF_CUDA_CODES_TOKENS) {
        done(device, mf_cuda_linear_hopper_codes(p, kind, stream_of(device)), "linear");
    } else {
        for (mf_cuda_codes_piece at = { 0 }; mf_cuda_next_piece(p, &at);) {
            if (!mf_cuda_make_bf16(device, &at.p, path)) {
                return;
            }
            done(device, mf_cuda_linear_hopper(gpu, &at.p, stream_of(device)), "linear");
        }
    }
}

/* The call's i-th product, behind those that p has. */
static void add_product(mf_cuda_linear *p, const mf_linear_call *call, int i)
{
    p->w[p->num] = seen_matrix(call->w[i]);
    p->bias[p->num] = call->bias[i];
    p->out[p->num] = call->out[i];
    p->out_stride[p->num++] = call->out_stride[i];
}

/* The products of `chosen` (a set of indices), all of one path and, unless it is that of bf16, of one format. */
static void launch_linear(mf_device *device, const mf_linear_call *call, uint32_t chosen, mf_cuda_linear_path path)
{
    mf_cuda_linear p = { .x = call->x, .x_stride = call->x_stride, .num_tokens = call->num_tokens };
    for (int i = 0; i < call->num; i++) {
        if (chosen >> i & 1) {
            add_product(&p, call, i);
        }
    }
    p.x_is_wide = on16(call->x) && call->x_stride % 4 == 0;
    if (path == MF_CUDA_LINEAR_MMA) {
        p.parts = call->act_dtype == MF_F32 ? 3 : 1;
        mf_cuda_launch_mma(device, &p, call->rounded);
    } else if (path == MF_CUDA_LINEAR_FP8) {
        launch_fp8(device, &p, call->rounded);
    } else if (path >= MF_CUDA_LINEAR_CODES) {
        launch_codes(device, &p, call->rounded, path);
    } else {
        p.round_x = call->act_dtype == MF_BF16;
        done(device, mf_cuda_launch_linear_plain(&p, stream_of(device)), "linear");
    }
}

static void linear_many(mf_device *device, const mf_linear_call *call)
{
    if (call->num_tokens == 0 || !begin(device)) {
        return;
    }
    uint32_t left = (1u << call->num) - 1u;
    while (left) {
        int first = 0;
        while (!(left >> first & 1)) {
            first++;
        }
        const mf_cuda_linear_path path = path_of(device, call->w[first], call->act_dtype);
        uint32_t same = 0;
        for (int i = first; i < call->num; i++) {
            const bool alike = path_of(device, call->w[i], call->act_dtype) == path &&
                               (path == MF_CUDA_LINEAR_MMA || call->w[i]->format == call->w[first]->format);
            same |= (uint32_t)((left >> i & 1) && alike) << i;
        }
        launch_linear(device, call, same, path);
        left &= ~same;
    }
}

/* The products of a norm's result, x and the norm left open.  false: they are not of one path through wgmma. */
static bool plan_of_norm(const mf_device *device, const mf_add_norm_call *norm, const mf_linear_call *call,
                         mf_cuda_linear *p, mf_cuda_linear_path *path)
{
    *p = (mf_cuda_linear){ .num_tokens = call->num_tokens,
                           .parts = call->act_dtype == MF_F32 ? 3 : 1,
                           .runs = mf_cuda_linear_runs(norm->n) };
    for (int i = 0; i < call->num; i++) {
        if (call->w[i]->k != norm->n) {
            return false;
        }
        add_product(p, call, i);
    }
    return mf_cuda_takes_wgmma_together(device, call, p, path);
}

/* Several rows whose products read three planes: the norm leaves them. */
static bool norm_planes_linear(mf_device *device, const mf_add_norm_call *norm, float *acc_out, mf_cuda_linear *p)
{
    const mf_cuda_state *state = mf_cuda_state_of(device);
    if (p->parts != 3 || p->num_tokens > MF_NORM_LINEAR_ROWS || !takes_wgmma(device, p)) {
        return false;
    }
    if (!begin(device) || !has_room(device, 3, p->num_tokens, norm->n)) {
        return true; /* told by a later call */
    }
    const mf_cuda_norm n = { .acc = acc_out,
                             .add = norm->add,
                             .x = norm->acc,
                             .x_stride = norm->n,
                             .num_tokens = p->num_tokens,
                             .n = norm->n,
                             .weight = norm->weight,
                             .eps = norm->eps,
                             .rounded = norm->rounded,
                             .planes = state->rounded };
    done(device, mf_cuda_launch_norm(&n, stream_of(device)), "norm");
    p->x = state->rounded;
    p->x_stride = norm->n;
    p->x_plane = p->num_tokens * norm->n;
    done(device, mf_cuda_linear_hopper(&state->gpu, p, stream_of(device)), "linear");
    return true;
}

static mf_cuda_norm norm_of_rows(const mf_add_norm_call *call, uint16_t *rests)
{
    return (mf_cuda_norm){ .acc = call->acc,
                           .add = call->add,
                           .num_tokens = call->num_tokens,
                           .n = call->n,
                           .weight = call->weight,
                           .eps = call->eps,
                           .rounded = call->rounded,
                           .rests = rests };
}

void mf_cuda_norm_rounded(mf_device *device, const mf_add_norm_call *call, uint16_t *rests)
{
    const mf_cuda_norm p = norm_of_rows(call, rests);
    done(device, mf_cuda_launch_norm_rows(&p, stream_of(device)), "add and norm");
}

/* The products of more tokens than STREAM takes read planes of bf16 alone: the norm leaves just these. */
static bool norm_linear_many(mf_device *device, const mf_add_norm_call *norm, const float *acc_out,
                             const mf_linear_call *call)
{
    enum { LEAST = 257 };
    const mf_cuda_state *state = mf_cuda_state_of(device);
    mf_cuda_linear p;
    mf_cuda_linear_path path;
    if (call->num_tokens <= MF_CUDA_STREAM_TOKENS || state->gpu.capability != 90 || !norm->rounded ||
        norm->rounded_dtype != MF_BF16 || !on16(norm->rounded) || (norm->add && acc_out != norm->acc) ||
        norm->n < LEAST || !plan_of_norm(device, norm, call, &p, &path)) {
        return false;
    }
    if (p.parts == 3 && p.num == 1 && p.w[0].n <= MF_CUDA_ROUTER_ROWS && !norm->add && on16(norm->acc) && on16(norm->weight) &&
        mf_cuda_linear_is_many(&state->gpu, p.num_tokens)) {
        if (begin(device)) { /* else told by a later call */
            const mf_cuda_norm n = norm_of_rows(norm, NULL);
            done(device, mf_cuda_linear_hopper_router(&p, &n, stream_of(device)), "norm and linear");
        }
        return true;
    }
    if (!begin(device) || (p.parts == 3 && !has_room(device, 2, p.num_tokens, norm->n))) {
        return true; /* told by a later call */
    }
    uint16_t *rests = p.parts == 3 ? state->rounded : NULL;
    p.x = norm->rounded;
    p.x_stride = norm->n;
    p.x_rests = rests;
    mf_cuda_norm_rounded(device, norm, rests);
    if (mf_cuda_make_bf16(device, &p, path)) {
        done(device, mf_cuda_linear_hopper(&state->gpu, &p, stream_of(device)), "linear");
    }
    return true;
}

/* One token, whose blocks are few enough that each can take the norm itself; the norm's width is that of
 * norm_kernel<8>.  More tokens: a norm that leaves what the products read. */
static bool norm_linear(mf_device *device, const mf_add_norm_call *norm, float *acc_out, const mf_linear_call *call)
{
    enum { LEAST = 257, MOST = 16384 };
    if (norm_linear_many(device, norm, acc_out, call)) {
        return true;
    }
    mf_cuda_linear p;
    mf_cuda_linear_path path;
    if (norm->n < LEAST || norm->n > MOST || (norm->rounded && norm->rounded_dtype != MF_BF16) || !on16(norm->acc) ||
        !on16(norm->add) || !on16(norm->weight) || !on16(acc_out) || !on16(norm->rounded) ||
        !plan_of_norm(device, norm, call, &p, &path) || path != MF_CUDA_LINEAR_MMA) {
        return false;
    }
    if (call->num_tokens > 1) {
        return norm_planes_linear(device, norm, acc_out, &p);
    }
    p.norm_acc = norm->acc;
    p.norm_add = norm->add;
    p.norm_weight = norm->weight;
    p.norm_out = norm->add ? acc_out : NULL;
    p.norm_rounded = norm->rounded;
    p.norm_eps = norm->eps;
    if (!plan_ring(device, &p)) {
        return false;
    }
    if (begin(device)) { /* else told by a later call */
        mf_cuda_state *state = mf_cuda_state_of(device);
        if (mf_cuda_is_router(&state->gpu, &p)) {
            state->router = p;
            state->router_waits = true;
        } else {
            done(device, mf_cuda_launch_linear_ring(&p, stream_of(device)), "norm and linear");
        }
    }
    return true;
}

static void linear(mf_device *device, const mf_matrix *w, const float *bias, mf_dtype act_dtype, const float *x,
                   int64_t x_stride, int64_t num_tokens, float *out, int64_t out_stride)
{
    const mf_linear_call call = { .num = 1,
                                  .w = { w },
                                  .bias = { bias },
                                  .out = { out },
                                  .out_stride = { out_stride },
                                  .act_dtype = act_dtype,
                                  .x = x,
                                  .x_stride = x_stride,
                                  .num_tokens = num_tokens };
    linear_many(device, &call);
}

/* So many tokens' product that norm_linear_many's is a launch with its norm, which is quick with nothing to add. */
static bool linear_add(mf_device *device, const mf_linear_call *call)
{
    const mf_cuda_gpu *gpu = &mf_cuda_state_of(device)->gpu;
    mf_cuda_linear p = { .num_tokens = call->num_tokens, .parts = 1, .runs = mf_cuda_linear_runs(call->w[0]->k) };
    mf_cuda_linear_path path;
    if (call->num != 1 || call->num_tokens <= MF_CUDA_STREAM_TOKENS ||
        !mf_cuda_linear_is_many(gpu, call->num_tokens) || call->act_dtype != MF_BF16 || !call->rounded ||
        !on16(call->rounded) || !takes_wgmma(device, &p)) {
        return false;
    }
    add_product(&p, call, 0);
    p.x = call->rounded;
    p.x_stride = call->w[0]->k;
    if (!mf_cuda_takes_wgmma_together(device, call, &p, &path) || !mf_cuda_linear_can_add(&p)) {
        return false;
    }
    if (begin(device) && mf_cuda_make_bf16(device, &p, path)) { /* else told by a later call */
        done(device, mf_cuda_linear_hopper_add(gpu, &p, stream_of(device)), "linear");
    }
    return true;
}

/* ---- norms that the combine takes along ---- */

static void offer_norm(mf_device *device, const mf_add_norm_call *norm, const mf_linear_call *readers)
{
    mf_cuda_state *state = mf_cuda_state_of(device);
    state->offered = *norm;
    state->norm_is_taken = false;
    state->norm_is_rounded = readers->num > 0 && readers->act_dtype == MF_BF16 && norm->rounded && norm->rounded_dtype == MF_BF16;
    for (int i = 0; i < readers->num; i++) {
        state->norm_is_rounded = state->norm_is_rounded && mf_cuda_takes_bf16_inputs(device, readers->w[i]);
    }
}

static bool took_norm(mf_device *device)
{
    mf_cuda_state_of(device)->offered.weight = NULL;
    return mf_cuda_state_of(device)->norm_is_taken;
}

void mf_cuda_add_linear_ops(mf_device_ops *ops)
{
    ops->linear = linear;
    ops->linear_many = linear_many;
    ops->linear_add = linear_add;
    ops->norm_linear = norm_linear;
    ops->offer_norm = offer_norm;
    ops->took_norm = took_norm;
    ops->reserve = reserve;
}
