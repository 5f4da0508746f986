/* cuda_device.c - "cuda:N": an NVIDIA GPU behind the table of operations.  The one file that speaks with the CUDA runtime
 * on the host's side, and the shared object's only entry.
 *
 * An operation plans (plan.c, experts_plan.c), launches on the device's stream and returns; it allocates nothing and waits
 * for nothing.  Every call is checked.  A failure that the runtime keeps reporting (a kernel's bad access) is kept as the
 * device's own: its text is what every later operation returns.  Host memory comes from calloc: the shared object has its
 * own copy of what it needs of base/, and one table of memory functions per process is enough. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/combine_norm.h"
#include "kernels/cuda/dense_calls.h"
#include "kernels/cuda/device_state.h"
#include "kernels/cuda/grouped_maps.h"
#include "kernels/cuda/router_gate.h"
#include "kernels/part.h"

typedef mf_cuda_state cuda_state;

typedef struct cuda_experts {
    mf_cuda_slot *slots; /* on the device */
    void *maps;          /* there too, where grouped.cu computes the table */
    mf_cuda_paths paths;
} cuda_experts;

static cuda_state *state_of(const mf_device *device)
{
    return device->backend;
}

static mf_status failed(const mf_device *device, int code, const char *what, mf_error *err)
{
    const cudaError_t error = (cudaError_t)code;
    return mf_fail(err, MF_ERR_DEVICE, "device %s: %s: %s (%s)", device->name, what, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}

/* Errors of a call whose failure leaves the device in doubt. */
static mf_status check(mf_device *device, int code, const char *what, mf_error *err)
{
    if (code == cudaSuccess) {
        return MF_OK;
    }
    cuda_state *state = state_of(device);
    if (state->failure.status == MF_OK) {
        failed(device, code, what, &state->failure);
    }
    return failed(device, code, what, err);
}

/* Makes the device current; refuses after a failure. */
static mf_status make_current(mf_device *device, mf_error *err)
{
    cuda_state *state = state_of(device);
    if (state->failure.status != MF_OK) {
        return mf_fail(err, MF_ERR_DEVICE, "%s", state->failure.message);
    }
    return check(device, cudaSetDevice(device->ordinal), "cudaSetDevice", err);
}

static mf_status launch_router(mf_device *device, mf_error *err)
{
    cuda_state *state = state_of(device);
    if (!state->router_waits) {
        return MF_OK;
    }
    state->router_waits = false;
    return check(device, mf_cuda_launch_linear_ring(&state->router, state->stream), "norm and linear", err);
}

static mf_status enter(mf_device *device, mf_error *err)
{
    MF_TRY(make_current(device, err));
    return launch_router(device, err);
}

mf_status mf_cuda_check(mf_device *device, int code, const char *what, mf_error *err)
{
    return check(device, code, what, err);
}

mf_status mf_cuda_enter(mf_device *device, mf_error *err)
{
    return enter(device, err);
}

#define MF_CUDA(device, call, err) MF_TRY(check(device, (int)(call), #call, err))

/* ---- memory and order ---- */

static mf_status memory_alloc(mf_device *device, size_t bytes, void **out, mf_error *err)
{
    MF_TRY(enter(device, err));
    cudaError_t error = cudaMalloc(out, bytes > 0 ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        *out = NULL;
        return mf_fail(err, MF_ERR_NOMEM, "device %s: no memory for %zu bytes", device->name, bytes);
    }
    return check(device, error, "cudaMalloc", err);
}

static void memory_release(mf_device *device, void *block)
{
    mf_error ignored;
    if (block && enter(device, &ignored) == MF_OK) {
        check(device, cudaFree(block), "cudaFree", &ignored);
    }
}

static mf_status synchronize(mf_device *device, mf_error *err)
{
    MF_TRY(enter(device, err));
    MF_CUDA(device, cudaStreamSynchronize(state_of(device)->stream), err);
    return MF_OK;
}

static mf_status memory_copy(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err)
{
    MF_TRY(enter(device, err));
    cudaStream_t stream = state_of(device)->stream;
    if (bytes > 0) {
        MF_CUDA(device, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), err);
    }
    MF_CUDA(device, cudaStreamSynchronize(stream), err);
    return MF_OK;
}

static mf_status set_stream(mf_device *device, void *stream, mf_error *err)
{
    MF_TRY(enter(device, err));
    cuda_state *state = state_of(device);
    state->stream = stream ? (cudaStream_t)stream : state->own;
    return MF_OK;
}

static void *get_stream(const mf_device *device)
{
    return state_of(device)->stream;
}

static mf_device_memory_ops memory_ops = { .alloc = memory_alloc,
                                                 .release = memory_release,
                                                 .copy = memory_copy,
                                                 .synchronize = synchronize,
                                                 .set_stream = set_stream,
                                                 .stream = get_stream };

/* ---- a second stream ---- */

/* Calls go to the other stream, with the counters that grouped products keep there. */
static void change_streams(cuda_state *state, cudaStream_t to)
{
    uint32_t *work = state->work;
    state->stream = to;
    state->work = state->work_beside;
    state->work_beside = work;
}

/* With marks everything stays in one stream: their parts follow one another. */
static mf_status beside_begin(mf_device *device, mf_error *err)
{
    cuda_state *state = state_of(device);
    MF_TRY(enter(device, err));
    if (state->marks) {
        return MF_OK;
    }
    MF_CUDA(device, cudaEventRecord(state->fork, state->stream), err);
    MF_CUDA(device, cudaStreamWaitEvent(state->beside, state->fork, 0), err);
    state->in_front = state->stream;
    change_streams(state, state->beside);
    return MF_OK;
}

static mf_status beside_end(mf_device *device, mf_error *err)
{
    cuda_state *state = state_of(device);
    if (!state->in_front) {
        return MF_OK;
    }
    change_streams(state, state->in_front);
    state->in_front = NULL;
    MF_TRY(enter(device, err));
    MF_CUDA(device, cudaEventRecord(state->join, state->beside), err);
    state->must_join = true;
    return MF_OK;
}

static mf_status beside_join(mf_device *device, mf_error *err)
{
    cuda_state *state = state_of(device);
    if (!state->must_join) {
        return MF_OK;
    }
    state->must_join = false;
    MF_TRY(enter(device, err));
    MF_CUDA(device, cudaStreamWaitEvent(state->stream, state->join, 0), err);
    return MF_OK;
}

/* The launch behind a join depends on two others, of which only one could let it start early. */
static mf_status join_for_sum(mf_device *device, mf_cuda_sum *sum, mf_error *err)
{
    if (state_of(device)->must_join && sum->num_addends > 0) {
        MF_TRY(beside_join(device, err));
        sum->starts_early = 0;
    }
    return MF_OK;
}

/* ---- gate, align, combine ---- */

static mf_status gate(mf_device *device, const mf_gate_call *call, bool fused, void *workspace, mf_error *err)
{
    cuda_state *state = state_of(device);
    mf_cuda_gate g;
    mf_cuda_grid grid;
    bool zero_first;
    MF_TRY(make_current(device, err));
    const mf_status planned = mf_cuda_plan_gate(&state->gpu, call, &g, &grid, &zero_first, err);
    g.counts = state->counts;
    g.ticket = state->counts + MF_CUDA_HISTOGRAM_SLOTS;
    if (planned == MF_OK && fused && state->router_waits && mf_cuda_router_chooses(&state->router, &g, &grid)) {
        state->router_waits = false;
        return check(device, mf_cuda_launch_router_gate(&state->router, &g, &grid, state->stream), "router and gate", err);
    }
    MF_TRY(launch_router(device, err));
    MF_TRY(planned);
    if (g.histogram && (zero_first || g.num_tokens == 0)) {
        MF_CUDA(device, cudaMemsetAsync(g.histogram, 0, (size_t)g.num_slots * 4, state->stream), err);
    }
    if (g.num_tokens == 0) {
        return MF_OK;
    }
    if (fused) {
        return check(device, mf_cuda_launch_gate(&g, &grid, MF_CUDA_GATE_FUSED, state->stream), "gate", err);
    }
    mf_cuda_plan_gate_steps(&state->gpu, call, workspace, &g, &grid);
    MF_TRY(check(device, mf_cuda_launch_gate(&g, &grid, MF_CUDA_GATE_KEYS, state->stream), "gate keys", err));
    MF_TRY(check(device, mf_cuda_launch_gate(&g, &grid, MF_CUDA_GATE_CHOOSE, state->stream), "gate choice", err));
    return check(device, mf_cuda_launch_gate(&g, &grid, MF_CUDA_GATE_EMIT, state->stream), "gate output", err);
}

static mf_status gate_fused(mf_device *device, const mf_gate_call *call, mf_error *err)
{
    return gate(device, call, true, NULL, err);
}

static mf_status gate_unfused(mf_device *device, const mf_gate_call *call, void *workspace, mf_error *err)
{
    return gate(device, call, false, workspace, err);
}

static mf_status align(mf_device *device, const mf_align_call *call, mf_error *err)
{
    mf_cuda_align a;
    MF_TRY(enter(device, err));
    MF_TRY(mf_cuda_plan_align(&state_of(device)->gpu, call, &a, err));
    return check(device, mf_cuda_launch_align(&a, state_of(device)->stream), "align", err);
}

static mf_status sum_reduce(mf_device *device, const mf_sum_reduce_call *call, mf_error *err)
{
    mf_cuda_sum sum;
    MF_TRY(enter(device, err));
    MF_TRY(mf_cuda_plan_sum(&state_of(device)->gpu, call, true, &sum, err));
    if (sum.num_tokens == 0 || sum.hidden_size == 0) {
        return MF_OK;
    }
    MF_TRY(join_for_sum(device, &sum, err));
    return check(device, mf_cuda_launch_sum_reduce(&sum, state_of(device)->stream), "sum-reduce", err);
}

static mf_status layer_rows(mf_device *device, const mf_layer_rows_call *call, mf_error *err)
{
    mf_cuda_layer_rows rows;
    MF_TRY(enter(device, err));
    mf_cuda_plan_layer_rows(call, &rows);
    return check(device, mf_cuda_launch_layer_rows(&rows, state_of(device)->stream), "layer rows", err);
}

/* ---- experts ---- */

static void experts_close(mf_experts *experts)
{
    cuda_experts *own = experts->backend;
    memory_release(experts->device, own->slots);
    memory_release(experts->device, own->maps);
    free(own);
    experts->backend = NULL;
}

static mf_status open_maps(mf_device *device, const mf_experts *experts, const mf_cuda_slot *slots, cuda_experts *own,
                           mf_error *err)
{
    mf_status status;
    const size_t bytes = mf_cuda_grouped_maps_bytes(experts->num_slots, own->paths.packed != MF_CUDA_PACKED_NONE);
    void *maps = aligned_alloc(64, bytes);
    if (!maps) {
        return mf_fail(err, MF_ERR_NOMEM, "experts: no memory for the maps of %lld slots", (long long)experts->num_slots);
    }
    const bool packed = own->paths.packed != MF_CUDA_PACKED_NONE;
    own->paths.even = packed ? (mf_cuda_even){ .slots = 0 } : mf_cuda_even_slots(slots, experts->num_slots);
    MF_TRY_GOTO(mf_cuda_grouped_maps(slots, experts->num_slots, packed, &own->paths.even,
                                     state_of(device)->gpu.num_multiprocessors, maps, err),
                done);
    MF_TRY_GOTO(memory_alloc(device, bytes, &own->maps, err), done);
    MF_TRY_GOTO(memory_copy(device, own->maps, maps, bytes, err), done);
    own->paths.maps = own->maps;
    own->paths.width = (int32_t)experts->max_intermediate_size;
    for (int64_t s = 0; s < experts->num_slots; s++) {
        own->paths.width = slots[s].up.n == experts->max_intermediate_size ? own->paths.width : 0;
    }
done:
    free(maps);
    return status;
}

static mf_status experts_open(mf_device *device, mf_experts *experts, mf_error *err)
{
    mf_status status = MF_OK;
    const size_t bytes = (size_t)experts->num_slots * sizeof(mf_cuda_slot);
    mf_cuda_slot *slots = calloc((size_t)experts->num_slots, sizeof *slots);
    cuda_experts *own = calloc(1, sizeof *own);
    experts->backend = own;
    if (!slots || !own) {
        status = mf_fail(err, MF_ERR_NOMEM, "experts: no memory for %lld slots", (long long)experts->num_slots);
        goto done;
    }
    for (int64_t s = 0; s < experts->num_slots; s++) {
        mf_cuda_plan_slot(&state_of(device)->gpu, experts, &experts->slots[s], &slots[s]);
        own->paths.w13 |= 1u << slots[s].path13;
        own->paths.w2 |= 1u << slots[s].path2;
    }
    MF_TRY_GOTO(memory_alloc(device, bytes, (void **)&own->slots, err), done);
    MF_TRY_GOTO(memory_copy(device, own->slots, slots, bytes, err), done);
    const bool grouped = mf_cuda_is_grouped(&state_of(device)->gpu, experts, slots, &own->paths.codes);
    own->paths.packed = grouped ? MF_CUDA_PACKED_NONE : mf_cuda_packed_of(&state_of(device)->gpu, experts, slots);
    own->paths.quant = own->paths.packed ? slots[0].up.quant : 0;
    if (own->paths.packed) {
        mf_cuda_alike_slots(slots, experts->num_slots, &own->paths.alike);
    }
    if (grouped || own->paths.packed) {
        status = open_maps(device, experts, slots, own, err);
    }
done:
    free(slots);
    return status; /* the caller closes what there is */
}

static size_t experts_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns)
{
    const cuda_experts *own = experts->backend;
    return mf_cuda_experts_bytes(experts, &own->paths, num_tokens, num_columns);
}

static size_t experts_combine_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns, mf_dtype y_dtype)
{
    const cuda_experts *own = experts->backend;
    return mf_cuda_experts_combine_bytes(experts, &own->paths, num_tokens, num_columns, y_dtype);
}

static bool takes(uint32_t set, mf_cuda_path path)
{
    return (set >> path & 1) != 0;
}

/* Everything up to the intermediate. */
static mf_status launch_up(mf_device *device, const mf_cuda_experts_plan *plan, const mf_cuda_paths *paths,
                           cudaStream_t stream, mf_error *err)
{
    const mf_cuda_experts *call = &plan->call;
    if (plan->sorts) {
        MF_TRY(check(device, mf_cuda_launch_align(&plan->align, stream), "experts' alignment", err));
    }
    mf_cuda_experts wide = *call;
    if (plan->copies_x) {
        MF_TRY(check(device, mf_cuda_launch_copy_x(call, plan->x_copy, stream), "experts' copy of x", err));
        wide.x = plan->x_copy;
        wide.x_stride = call->hidden_size;
    }
    if (takes(paths->w13, MF_CUDA_PATH_FP8) && !call->quantises_itself) {
        MF_TRY(check(device, mf_cuda_launch_quantise_x(call, stream), "experts' quantised x", err));
    }
    if (takes(paths->w13, MF_CUDA_PATH_PLAIN)) {
        MF_TRY(check(device, mf_cuda_launch_plain(call, 0, stream), "experts' w13", err));
    }
    for (mf_cuda_path path = MF_CUDA_PATH_BF16; path < MF_CUDA_PATH_COUNT; path = (mf_cuda_path)(path + 1)) {
        if (takes(paths->w13, path)) {
            MF_TRY(check(device, plan->is_few ? mf_cuda_launch_few_up(&wide, path, stream)
                                              : mf_cuda_launch_tile_up(&wide, path, stream), "experts' w13", err));
        }
    }
    if (takes(paths->w2, MF_CUDA_PATH_FP8) && !call->quantises_itself) {
        MF_TRY(check(device, mf_cuda_launch_quantise_h(call, stream), "experts' quantised intermediate", err));
    }
    return MF_OK;
}

static mf_status launch_down(mf_device *device, const mf_cuda_experts_plan *plan, const mf_cuda_paths *paths,
                             cudaStream_t stream, mf_error *err)
{
    const mf_cuda_experts *call = &plan->call;
    for (mf_cuda_path path = MF_CUDA_PATH_BF16; path < MF_CUDA_PATH_COUNT; path = (mf_cuda_path)(path + 1)) {
        if (takes(paths->w2, path)) {
            MF_TRY(check(device, plan->is_few ? mf_cuda_launch_few_down(call, path, stream)
                                              : mf_cuda_launch_tile_down(call, path, stream), "experts' w2", err));
        }
    }
    if (takes(paths->w2, MF_CUDA_PATH_PLAIN)) {
        MF_TRY(check(device, mf_cuda_launch_plain(call, 1, stream), "experts' w2", err));
    } else if (!plan->is_few) { /* tiles do not see ids past the last slot */
        MF_TRY(check(device, mf_cuda_launch_zero_rows(call, stream), "experts' rows without a slot", err));
    }
    return MF_OK;
}

/* Both products of a table on Hopper; sum: the combine that follows, done if it can be: then *combined. */
static mf_status launch_grouped(mf_device *device, const mf_cuda_experts_plan *plan, const mf_cuda_sum *sum, bool *combined,
                                mf_error *err)
{
    cuda_state *state = state_of(device);
    mf_cuda_grouped call = plan->grouped;
    call.work = state->work;
    if (call.e.num_pairs == 0) {
        return MF_OK;
    }
    if (plan->copies_x) {
        MF_TRY(check(device, mf_cuda_launch_copy_x(&call.e, plan->x_copy, state->stream), "experts' copy of x", err));
    }
    if (call.one.tokens) {
        call.one.combines = sum && mf_cuda_one_combines(&call, sum);
        *combined = call.one.combines != 0;
        return check(device, mf_cuda_launch_grouped_one(&call, sum, state->stream), "experts' products", err);
    }
    if (call.few_rows) { /* they are sorted, and their codes made, where they are multiplied */
        return check(device, mf_cuda_launch_grouped_few(&call, state->stream), "experts' products", err);
    }
    if (plan->packed_one.of[0].warps) {
        call.few_combines = sum && mf_cuda_few4_combines(&call, sum);
        *combined = call.few_combines != 0;
        return check(device, mf_cuda_launch_packed_one(&call, &plan->packed_one, sum, state->stream), "experts' products", err);
    }
    if (call.few_blocks && call.packed < MF_CUDA_PACKED_FP8_BLOCK) {
        call.few_combines = sum && mf_cuda_few4_combines(&call, sum);
        *combined = call.few_combines != 0;
        return check(device, mf_cuda_launch_packed_few4(&call, sum, state->stream), "experts' products", err);
    }
    if (call.few_blocks) {
        return check(device, mf_cuda_launch_packed_few(&call, state->stream), "experts' products", err);
    }
    if (call.packed) {
        MF_TRY(check(device, mf_cuda_launch_prepare(&call, state->stream), "experts' sorting", err));
        if (call.quant) {
            call.phase = 1;
            MF_TRY(check(device, mf_cuda_launch_grouped_packed(&call, state->stream), "experts' first product", err));
            MF_TRY(check(device, mf_cuda_launch_quantise_packed(&call, state->stream), "experts' codes", err));
            call.phase = 2;
        }
        return check(device, mf_cuda_launch_grouped_packed(&call, state->stream), "experts' products", err);
    }
    MF_TRY(check(device, mf_cuda_launch_prepare(&call, state->stream), "experts' sorting", err));
    if (call.x_in_order) {
        mf_cuda_row_maps maps;
        MF_TRY(mf_cuda_grouped_row_maps(&call, &maps, err));
        return check(device, mf_cuda_launch_grouped_pairs(&call, &maps, state->stream), "experts' products", err);
    }
    if (call.rows_group) {
        return check(device, mf_cuda_launch_grouped_rows(&call, state->stream), "experts' products", err);
    }
    return check(device, mf_cuda_launch_grouped(&call, state->stream), "experts' products", err);
}

static bool on16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* Whether the offered norm is that of what this sum writes, and the usual sum into f32, of many rows from bf16. */
static bool takes_norm(const mf_cuda_sum *sum, const mf_add_norm_call *norm)
{
    enum { COLUMNS = 10, LEAST = 257, MOST = 8192 };
    const bool is_many = sum->num_tokens > MF_CUDA_COMBINE_NORM_FEW;
    const bool is_plain = sum->vector > 1 && (sum->dtype == MF_F32 || sum->dtype == MF_BF16) &&
                          sum->out_dtype == MF_F32 && sum->num_columns <= COLUMNS && !sum->identity &&
                          !sum->num_addends && !sum->num_valid && !sum->row_valid &&
                          (!sum->residual || sum->wide_residual);
    return norm->weight && is_plain && sum->out == norm->acc && sum->num_tokens == norm->num_tokens &&
           (!is_many || (sum->dtype == MF_BF16 && norm->n % 8 == 0)) && sum->hidden_size == norm->n && norm->n >= LEAST && norm->n <= MOST &&
           !norm->add && sum->out_stride == norm->n && on16(norm->weight) && on16(norm->out) && on16(norm->rounded) &&
           on16(sum->out) && (!norm->rounded || norm->rounded_dtype == MF_BF16);
}

static mf_status launch_sum(mf_device *device, const mf_cuda_sum *sum, mf_error *err)
{
    cuda_state *state = state_of(device);
    const mf_add_norm_call *norm = &state->offered;
    const bool is_many = sum->num_tokens > MF_CUDA_COMBINE_NORM_FEW;
    if (!takes_norm(sum, norm)) {
        return check(device, mf_cuda_launch_sum_reduce(sum, state->stream), "sum-reduce", err);
    }
    const mf_cuda_combine_norm call = { .x = sum->x,
                                        .weights = sum->weights,
                                        .residual = sum->residual,
                                        .ids = sum->ids,
                                        .out = sum->out,
                                        .x_stride = sum->x_stride,
                                        .column_stride = sum->column_stride,
                                        .ids_stride = sum->ids_stride,
                                        .weights_stride = sum->weights_stride,
                                        .residual_stride = sum->residual_stride,
                                        .out_stride = sum->out_stride,
                                        .num_tokens = sum->num_tokens,
                                        .hidden_size = (int32_t)sum->hidden_size,
                                        .num_columns = sum->num_columns,
                                        .routed = sum->num_columns - sum->num_shared,
                                        .x_is_bf16 = sum->dtype == MF_BF16,
                                        .factor = sum->factor,
                                        .norm_eps = norm->eps,
                                        .norm_weight = norm->weight,
                                        .norm_out = state->norm_is_rounded && is_many ? NULL : norm->out,
                                        .norm_rounded = norm->rounded };
    state->norm_is_taken = true;
    return check(device, mf_cuda_launch_combine_norm(&call, sum->starts_early, state->stream), "sum-reduce and norm",
                 err);
}

static mf_status experts(mf_device *device, const mf_experts_call *call, mf_error *err)
{
    const cuda_experts *own = call->experts->backend;
    cuda_state *state = state_of(device);
    mf_cuda_experts_plan plan;
    MF_TRY(enter(device, err));
    MF_TRY(mf_cuda_plan_experts(&state->gpu, call, own->slots, &own->paths, false, call->args->y.dtype, &plan, err));
    bool combined = false;
    if (plan.is_grouped) {
        return launch_grouped(device, &plan, NULL, &combined, err);
    }
    MF_TRY(launch_up(device, &plan, &own->paths, state->stream, err));
    return launch_down(device, &plan, &own->paths, state->stream, err);
}

static mf_status experts_combine(mf_device *device, const mf_experts_call *call, const mf_sum_reduce_call *sum_call,
                                 mf_error *err)
{
    const cuda_experts *own = call->experts->backend;
    cuda_state *state = state_of(device);
    mf_cuda_experts_plan plan;
    mf_cuda_sum sum;
    const mf_dtype y_dtype = sum_call->args->x.dtype;
    MF_TRY(enter(device, err));
    MF_TRY(mf_cuda_plan_experts(&state->gpu, call, own->slots, &own->paths, true, y_dtype, &plan, err));
    mf_sum_reduce_args args = *sum_call->args;
    mf_sum_reduce_call over_y = *sum_call;
    over_y.args = &args;
    if (!plan.is_combined) {
        args.x = mf_tensor_3d(plan.y, y_dtype, call->num_tokens, call->num_columns, call->experts->hidden_size);
    }
    MF_TRY(mf_cuda_plan_sum(&state->gpu, &over_y, !plan.is_combined, &sum, err));
    if (plan.is_grouped) {
        bool combined = false;
        MF_TRY(launch_grouped(device, &plan, &sum, &combined, err));
        if (combined) {
            return MF_OK;
        }
        mf_cuda_mark(device, MF_PART_COMBINE);
        MF_TRY(join_for_sum(device, &sum, err));
        return launch_sum(device, &sum, err);
    }
    MF_TRY(launch_up(device, &plan, &own->paths, state->stream, err));
    if (plan.is_combined) {
        if (state->must_join) {
            MF_TRY(beside_join(device, err));
            plan.call.starts_early = 0;
        }
        const mf_cuda_path path = takes(own->paths.w2, MF_CUDA_PATH_FP8) ? MF_CUDA_PATH_FP8 : MF_CUDA_PATH_BF16;
        return check(device, mf_cuda_launch_few_combine(&plan.call, path, &sum, state->stream), "experts' w2 and combine", err);
    }
    MF_TRY(launch_down(device, &plan, &own->paths, state->stream, err));
    mf_cuda_mark(device, MF_PART_COMBINE);
    MF_TRY(join_for_sum(device, &sum, err));
    return launch_sum(device, &sum, err);
}

/* ---- opening ---- */

static void close_device(mf_device *device)
{
    cuda_state *state = state_of(device);
    if (!state) {
        return;
    }
    (void)cudaSetDevice(device->ordinal);
    if (state->own) {
        (void)cudaStreamSynchronize(state->own);
        (void)cudaStreamDestroy(state->own);
    }
    if (state->beside) {
        (void)cudaStreamSynchronize(state->beside);
        (void)cudaStreamDestroy(state->beside);
    }
    if (state->fork) {
        (void)cudaEventDestroy(state->fork);
    }
    if (state->join) {
        (void)cudaEventDestroy(state->join);
    }
    (void)cudaFree(state->counts);
    (void)cudaFree(state->work);
    (void)cudaFree(state->work_beside);
    (void)cudaFree(state->exchange);
    mf_cuda_dense_close(device);
    free(state);
    device->backend = NULL;
}

static mf_device_ops cuda_ops = {
    .name = "cuda",
    .close = close_device,
    .memory = &memory_ops,
    .layer_chunk_tokens = 16384,
    .gate = gate_fused,
    .gate_unfused = gate_unfused,
    .layer_rows = layer_rows,
    .experts_open = experts_open,
    .experts_close = experts_close,
    .align = align,
    .experts_workspace_bytes = experts_bytes,
    .experts = experts,
    .experts_combine_workspace_bytes = experts_combine_bytes,
    .experts_combine = experts_combine,
    .sum_reduce = sum_reduce,
    .beside_begin = beside_begin,
    .beside_end = beside_end,
    .beside_join = beside_join,
};

static mf_status find_gpu(mf_device *device, struct cudaDeviceProp *prop, mf_error *err)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        return mf_fail(err, MF_ERR_DEVICE, "device %s: no NVIDIA driver, or one older than CUDA %d.%d", device->name,
                       CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        return mf_fail(err, MF_ERR_DEVICE, "device %s: this machine has no NVIDIA GPU%s", device->name,
                       getenv("CUDA_VISIBLE_DEVICES") ? " that CUDA_VISIBLE_DEVICES names" : "");
    }
    if (error != cudaSuccess) {
        return failed(device, error, "cudaGetDeviceCount", err);
    }
    if (device->ordinal >= count) {
        return mf_fail(err, MF_ERR_INVALID, "device %s: this machine has %d NVIDIA GPU%s; expected cuda:0 to cuda:%d",
                       device->name, count, count == 1 ? "" : "s", count - 1);
    }
    error = cudaGetDeviceProperties(prop, device->ordinal);
    if (error != cudaSuccess) {
        return failed(device, error, "cudaGetDeviceProperties", err);
    }
    if (prop->major < 8) {
        return mf_fail(err, MF_ERR_UNSUPPORTED, "device %s: %s has compute capability %d.%d; expected 8.0 or later",
                       device->name, prop->name, prop->major, prop->minor);
    }
    return MF_OK;
}

/* What launches are cut for: MOEFUSE_CUDA_MULTIPROCESSORS, where there are more, for tools that pay for every block. */
static int32_t multiprocessors(const struct cudaDeviceProp *prop)
{
    const char *fewer = getenv("MOEFUSE_CUDA_MULTIPROCESSORS");
    const long n = fewer ? strtol(fewer, NULL, 10) : 0;
    return n > 0 && n < prop->multiProcessorCount ? (int32_t)n : prop->multiProcessorCount;
}

static mf_status init(mf_device *device, mf_error *err)
{
    struct cudaDeviceProp prop;
    MF_TRY(find_gpu(device, &prop, err));
    cuda_state *state = calloc(1, sizeof *state);
    if (!state) {
        return mf_fail(err, MF_ERR_NOMEM, "device %s: out of memory", device->name);
    }
    mf_cuda_add_memory_ops(&memory_ops);
    mf_cuda_add_mark_ops(&memory_ops);
    mf_cuda_add_dense_ops(&cuda_ops);
    device->backend = state;
    device->ops = &cuda_ops;
    device->prefers_bf16 = device->rounds_outputs = true;
    state->gpu = (mf_cuda_gpu){ .capability = prop.major * 10 + prop.minor,
                                .num_multiprocessors = multiprocessors(&prop),
                                .shared_bytes = (int64_t)prop.sharedMemPerBlockOptin,
                                .window_bytes = prop.accessPolicyMaxWindowSize };
    device->one_format_a_table = state->gpu.capability == 90;
    device->wants_fp8_inputs = state->gpu.capability >= 89;
    mf_cuda_starts_early = state->gpu.capability >= 90;
    const size_t bytes = MF_CUDA_GATE_WORDS * sizeof *state->counts;
    MF_CUDA(device, cudaSetDevice(device->ordinal), err);
    MF_CUDA(device, cudaStreamCreateWithFlags(&state->own, cudaStreamNonBlocking), err);
    state->stream = state->own;
    MF_CUDA(device, cudaMalloc((void **)&state->counts, bytes), err);
    MF_CUDA(device, cudaMemsetAsync(state->counts, 0, bytes, state->stream), err);
    uint32_t **const works[] = { &state->work, &state->work_beside };
    for (size_t i = 0; i < sizeof works / sizeof works[0]; i++) {
        const size_t size = MF_CUDA_WORK_WORDS * sizeof *state->work;
        MF_CUDA(device, cudaMalloc((void **)works[i], size), err);
        MF_CUDA(device, cudaMemsetAsync(*works[i], 0, size, state->stream), err);
    }
    if (state->gpu.capability == 90) {
        const size_t size = MF_CUDA_ROW_FRONT + (size_t)MF_CUDA_ROW_UNITS * MF_CUDA_ROW_WORDS * 16;
        MF_CUDA(device, cudaMalloc(&state->exchange, size), err);
        MF_CUDA(device, cudaMemsetAsync(state->exchange, 0, size, state->stream), err);
    }
    MF_CUDA(device, cudaStreamCreateWithFlags(&state->beside, cudaStreamNonBlocking), err);
    MF_CUDA(device, cudaEventCreateWithFlags(&state->fork, cudaEventDisableTiming), err);
    MF_CUDA(device, cudaEventCreateWithFlags(&state->join, cudaEventDisableTiming), err);
    MF_CUDA(device, cudaStreamSynchronize(state->stream), err);
    snprintf(device->gpu, sizeof device->gpu, "sm_%d", (int)state->gpu.capability);
    snprintf(device->description, sizeof device->description, "cuda %.60s sm_%d, %lld GiB", prop.name,
             (int)state->gpu.capability, (long long)(prop.totalGlobalMem >> 30));
    return MF_OK;
}

const mf_cuda_backend *mf_cuda_backend_get(void)
{
    static const mf_cuda_backend backend = { .version = MF_VERSION_STRING,
                                             .device_bytes = sizeof(mf_device),
                                             .ops_bytes = sizeof(mf_device_ops),
                                             .init = init };
    return &backend;
}
