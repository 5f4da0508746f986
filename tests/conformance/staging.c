/* staging.c - runs the conformance programs, whose tensors are the host's, on a device with memory of its own.
 *
 * The linker sends every call of an operation here first (--wrap, see CMakeLists.txt).  For a device that works in the
 * process's memory the call goes on as it is.  Else all memory that its views name is copied to the device, with the same
 * alignment and guard bytes around, the operation runs there, and its outputs are copied back; the workspace is the
 * device's, poisoned.  Arguments are checked beforehand by a device that does nothing, so that a view that the operation
 * refuses is never followed here. */
#include <stdlib.h>

#include "kernels/format.h"
#include "staging.h"

enum { ALIGN = 256, GUARD_BYTES = 256 };

#define REAL(result, name, ...)            \
    result __real_##name(__VA_ARGS__);     \
    result __wrap_##name(__VA_ARGS__);     \
    result __wrap_##name(__VA_ARGS__)

/* ---- a device that checks and does nothing ---- */

static mf_status no_gate(mf_device *d, const mf_gate_call *c, mf_error *e)
{
    return (void)d, (void)c, (void)e, MF_OK;
}
static mf_status no_gate_unfused(mf_device *d, const mf_gate_call *c, void *w, mf_error *e)
{
    return (void)d, (void)c, (void)w, (void)e, MF_OK;
}
static mf_status no_align(mf_device *d, const mf_align_call *c, mf_error *e)
{
    return (void)d, (void)c, (void)e, MF_OK;
}
static mf_status no_experts(mf_device *d, const mf_experts_call *c, mf_error *e)
{
    return (void)d, (void)c, (void)e, MF_OK;
}
static mf_status no_sum(mf_device *d, const mf_sum_reduce_call *c, mf_error *e)
{
    return (void)d, (void)c, (void)e, MF_OK;
}
static mf_status no_rows(mf_device *d, const mf_layer_rows_call *c, mf_error *e)
{
    return (void)d, (void)c, (void)e, MF_OK;
}
static mf_status no_combine(mf_device *d, const mf_experts_call *c, const mf_sum_reduce_call *s, mf_error *e)
{
    return (void)d, (void)c, (void)s, (void)e, MF_OK;
}

static mf_device_ops nothing_ops;
static mf_device nothing;

/* A twin of the device: its name, its sizes, no work. */
static mf_device *twin_of(const mf_device *device)
{
    nothing_ops = *device->ops;
    nothing_ops.gate = no_gate;
    nothing_ops.gate_unfused = no_gate_unfused;
    nothing_ops.align = no_align;
    nothing_ops.experts = no_experts;
    nothing_ops.sum_reduce = no_sum;
    nothing_ops.layer_rows = no_rows;
    nothing_ops.experts_combine = no_combine;
    nothing_ops.experts_open = NULL;
    nothing = *device;
    nothing.ops = &nothing_ops;
    return &nothing;
}

static bool inside; /* an operation calls others: their arguments are the device's already */

static bool is_host(const mf_device *device)
{
    return inside || !device || mf_device_uses_host_memory(device);
}

static void must(mf_status status, const mf_error *err)
{
    if (status != MF_OK) {
        fail_msg("staging: %s", err->message);
    }
}

/* ---- memory of one operation: from one block, because asking the device for each view takes longer than the operation ---- */

enum { POOL_BYTES = 64 << 20 };

static char *pool;
static size_t pool_used;
static mf_device *pool_device;

static char *take(mf_device *device, size_t bytes)
{
    mf_error err = { 0 };
    void *block;
    if (pool_device != device) {
        must(mf_device_malloc(device, POOL_BYTES, &block, &err), &err);
        pool = block; /* of an earlier device: gone with it */
        pool_device = device;
        pool_used = 0;
    }
    const size_t whole = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (whole <= POOL_BYTES - pool_used) {
        pool_used += whole;
        return pool + pool_used - whole;
    }
    must(mf_device_malloc(device, bytes, &block, &err), &err);
    return block;
}

static void give(mf_device *device, char *block)
{
    if (block < pool || block >= pool + POOL_BYTES) {
        mf_device_free(device, block);
    }
}

/* ---- views ---- */


void stage_range(stage *s, const void *data, size_t bytes, bool is_output)
{
    if (!data || bytes == 0) {
        return;
    }
    assert_true(s->num_ranges < STAGE_VIEWS);
    range r = { (uintptr_t)data, (uintptr_t)data + bytes, NULL, NULL, is_output };
    for (int i = 0; i < s->num_ranges; i++) { /* overlapping ranges become one */
        range *o = &s->ranges[i];
        if (r.first <= o->end && o->first <= r.end) {
            r.first = r.first < o->first ? r.first : o->first;
            r.end = r.end > o->end ? r.end : o->end;
            r.is_output |= o->is_output;
            *o = s->ranges[--s->num_ranges];
            i = -1;
        }
    }
    s->ranges[s->num_ranges++] = r;
}

void stage_view(stage *s, const mf_tensor *t, bool is_output)
{
    int64_t extent = 1;
    for (int32_t i = 0; i < t->ndim; i++) {
        if (t->shape[i] <= 0) {
            return;
        }
        extent += (t->shape[i] - 1) * t->stride[i];
    }
    stage_range(s, t->data, t->ndim > 0 ? (size_t)extent * mf_dtype_size(t->dtype) : 0, is_output);
}

void stage_to_device(stage *s)
{
    mf_error err = { 0 };
    for (int i = 0; i < s->num_ranges; i++) {
        range *r = &s->ranges[i];
        size_t bytes = r->end - r->first, whole = bytes + 2 * GUARD_BYTES + ALIGN;
        char *image = malloc(whole);
        assert_non_null(image);
        r->block = take(s->device, whole);
        r->at = r->block + GUARD_BYTES + r->first % ALIGN;
        memset(image, CONF_POISON, whole);
        memcpy(image + (r->at - r->block), (const void *)r->first, bytes);
        must(mf_device_copy(s->device, r->block, image, whole, &err), &err);
        free(image);
    }
}

/* Outputs back; a byte changed around a view or in an input fails the test. */
void stage_from_device(stage *s)
{
    mf_error err = { 0 };
    for (int i = 0; i < s->num_ranges; i++) {
        range *r = &s->ranges[i];
        size_t bytes = r->end - r->first, whole = bytes + 2 * GUARD_BYTES + ALIGN, before = (size_t)(r->at - r->block);
        unsigned char *image = malloc(whole);
        assert_non_null(image);
        must(mf_device_copy(s->device, image, r->block, whole, &err), &err);
        for (size_t k = 0; k < whole; k++) {
            if ((k < before || k >= before + bytes) && image[k] != CONF_POISON) {
                fail_msg("staging: byte %lld of a view of %zu bytes was written on the device",
                         (long long)k - (long long)before, bytes);
            }
        }
        if (r->is_output) {
            memcpy((void *)r->first, image + before, bytes);
        } else if (memcmp((const void *)r->first, image + before, bytes) != 0) {
            fail_msg("staging: an input of %zu bytes was written on the device", bytes);
        }
        free(image);
        give(s->device, r->block);
    }
    pool_used = 0;
}

void *stage_moved(const stage *s, const void *p)
{
    for (int i = 0; p && i < s->num_ranges; i++) {
        const range *r = &s->ranges[i];
        if ((uintptr_t)p >= r->first && (uintptr_t)p < r->end) {
            return r->at + ((uintptr_t)p - r->first);
        }
    }
    return NULL;
}

static void move(const stage *s, mf_tensor *t)
{
    t->data = stage_moved(s, t->data);
}

/* ---- workspaces ---- */

void *stage_open_workspace(mf_device *device, size_t bytes)
{
    mf_error err = { 0 };
    char *block = take(device, bytes + GUARD_BYTES);
    char *poison = malloc(bytes + GUARD_BYTES);
    assert_non_null(poison);
    memset(poison, CONF_POISON, bytes + GUARD_BYTES);
    must(mf_device_copy(device, block, poison, bytes + GUARD_BYTES, &err), &err);
    free(poison);
    return block;
}

void stage_close_workspace(mf_device *device, void *block, size_t bytes)
{
    mf_error err = { 0 };
    unsigned char guard[GUARD_BYTES];
    must(mf_device_copy(device, guard, (char *)block + bytes, GUARD_BYTES, &err), &err);
    for (int i = 0; i < GUARD_BYTES; i++) {
        if (guard[i] != CONF_POISON) {
            fail_msg("staging: byte %d past a workspace of %zu bytes was written", i, bytes);
        }
    }
    give(device, block);
}

/* ---- the operations ---- */

enum { NUM_GATE_VIEWS = 21, NUM_GATE_INPUTS = 13 };

static void gate_views(mf_gate_args *a, mf_tensor *views[NUM_GATE_VIEWS])
{
    mf_tensor *const list[NUM_GATE_VIEWS] = {
        &a->router_logits, &a->e_score_correction_bias, &a->bias_alt,     &a->row_is_alt,       &a->per_expert_scale,
        &a->shared_gate,   &a->expert_mask,             &a->hash_table,   &a->token_ids,        &a->expert_map,
        &a->expert_copies, &a->num_valid_tokens,        &a->row_valid,    &a->topk_ids,         &a->topk_weights,
        &a->identity_weight, &a->packed,                &a->histogram,    &a->load,             &a->bad_rows,
        &a->error_count
    };
    memcpy(views, list, sizeof list);
}

static void stage_gate(stage *s, mf_gate_args *a)
{
    mf_tensor *views[NUM_GATE_VIEWS];
    gate_views(a, views);
    for (int i = 0; i < NUM_GATE_VIEWS; i++) {
        stage_view(s, views[i], i >= NUM_GATE_INPUTS);
    }
}

static void move_gate(const stage *s, mf_gate_args *a)
{
    mf_tensor *views[NUM_GATE_VIEWS];
    gate_views(a, views);
    for (int i = 0; i < NUM_GATE_VIEWS; i++) {
        move(s, views[i]);
    }
}

static mf_status finish(stage *s, mf_status status, mf_error *err)
{
    mf_error waiting = { 0 };
    inside = false;
    mf_status done = mf_device_synchronize(s->device, &waiting);
    if (done != MF_OK) {
        fail_msg("the device failed: %s", waiting.message);
    }
    (void)err;
    stage_from_device(s);
    return status;
}

REAL(mf_status, mf_moe_fused_gate, mf_device *device, const mf_gate_args *args, mf_error *err)
{
    if (is_host(device) || !args) {
        return __real_mf_moe_fused_gate(device, args, err);
    }
    mf_status status = __real_mf_moe_fused_gate(twin_of(device), args, err);
    if (status != MF_OK) {
        return status;
    }
    stage s = { .device = device };
    mf_gate_args a = *args;
    stage_gate(&s, &a);
    stage_to_device(&s);
    move_gate(&s, &a);
    return finish(&s, __real_mf_moe_fused_gate(device, &a, err), err);
}

REAL(mf_status, mf_moe_gate_unfused, mf_device *device, const mf_gate_args *args, void *workspace, size_t bytes, mf_error *err)
{
    if (is_host(device) || !args) {
        return __real_mf_moe_gate_unfused(device, args, workspace, bytes, err);
    }
    mf_status status = __real_mf_moe_gate_unfused(twin_of(device), args, workspace, bytes, err);
    if (status != MF_OK) {
        return status;
    }
    stage s = { .device = device };
    mf_gate_args a = *args;
    stage_gate(&s, &a);
    stage_to_device(&s);
    move_gate(&s, &a);
    void *room = stage_open_workspace(device, bytes);
    status = __real_mf_moe_gate_unfused(device, &a, room, bytes, err);
    stage_close_workspace(device, room, bytes);
    return finish(&s, status, err);
}

REAL(mf_status, mf_moe_align_block_size, mf_device *device, const mf_align_args *args, void *workspace, size_t bytes,
     mf_error *err)
{
    if (is_host(device) || !args) {
        return __real_mf_moe_align_block_size(device, args, workspace, bytes, err);
    }
    mf_status status = __real_mf_moe_align_block_size(twin_of(device), args, workspace, bytes, err);
    if (status != MF_OK) {
        return status;
    }
    stage s = { .device = device };
    mf_align_args a = *args;
    mf_tensor *const views[] = { &a.topk_ids, &a.histogram, &a.sorted_token_ids, &a.expert_ids, &a.num_tokens_post_padded,
                                 &a.offsets, &a.error_count };
    for (int i = 0; i < 7; i++) {
        stage_view(&s, views[i], i >= 2);
    }
    stage_to_device(&s);
    for (int i = 0; i < 7; i++) {
        move(&s, views[i]);
    }
    void *room = stage_open_workspace(device, bytes);
    status = __real_mf_moe_align_block_size(device, &a, room, bytes, err);
    stage_close_workspace(device, room, bytes);
    return finish(&s, status, err);
}

static void stage_sum(stage *s, mf_sum_reduce_args *a, mf_tensor *addends)
{
    mf_tensor *const views[] = { &a->x, &a->topk_ids, &a->topk_weights, &a->identity_weight, &a->hidden,
                                 &a->addend_weights, &a->residual, &a->num_valid_tokens, &a->row_valid, &a->out };
    for (int i = 0; i < 10; i++) {
        stage_view(s, views[i], i == 9);
    }
    for (int32_t i = 0; i < a->num_addends; i++) {
        addends[i] = a->addends[i];
        stage_view(s, &addends[i], false);
    }
    stage_to_device(s);
    for (int i = 0; i < 10; i++) {
        move(s, views[i]);
    }
    for (int32_t i = 0; i < a->num_addends; i++) {
        move(s, &addends[i]);
    }
    a->addends = addends;
}

REAL(mf_status, mf_moe_sum_reduce, mf_device *device, const mf_sum_reduce_args *args, mf_error *err)
{
    if (is_host(device) || !args) {
        return __real_mf_moe_sum_reduce(device, args, err);
    }
    mf_status status = __real_mf_moe_sum_reduce(twin_of(device), args, err);
    if (status != MF_OK) {
        return status;
    }
    stage s = { .device = device };
    mf_sum_reduce_args a = *args;
    mf_tensor addends[STAGE_VIEWS];
    assert_true(a.num_addends <= STAGE_VIEWS / 2);
    stage_sum(&s, &a, addends);
    return finish(&s, __real_mf_moe_sum_reduce(device, &a, err), err);
}

/* ---- experts: weights stay on the device as long as their table ---- */

enum { MAX_TABLES = 64, MAX_BLOCKS = 256 };

typedef struct table {
    mf_experts *experts;
    mf_device *device;
    void *blocks[MAX_BLOCKS];
    int num_blocks;
} table;

static table tables[MAX_TABLES];

static const void *keep(table *t, const void *data, size_t bytes)
{
    mf_error err = { 0 };
    if (!data) {
        return NULL;
    }
    assert_true(t->num_blocks < MAX_BLOCKS);
    char *block;
    must(mf_device_malloc(t->device, bytes + ALIGN, (void **)&block, &err), &err);
    t->blocks[t->num_blocks++] = block;
    char *at = block + (uintptr_t)data % ALIGN;
    must(mf_device_copy(t->device, at, data, bytes, &err), &err);
    return at;
}

static void keep_matrix(table *t, mf_matrix *m)
{
    if (!m->data) {
        return;
    }
    const int64_t elements = (m->n - 1) * m->row_stride + m->k;
    m->data = keep(t, m->data, (size_t)((elements * mf_format_bits(m->format) + 7) / 8));
    if (m->format < MF_FORMAT_FP8_BLOCK) {
        return;
    }
    const int64_t group = mf_matrix_group(m), columns = group ? (m->k - 1) / group + 1 : 1;
    const int64_t rows = m->format == MF_FORMAT_FP8_BLOCK ? (m->n - 1) / 128 + 1 : m->n;
    const size_t count = (size_t)((rows - 1) * m->scale_row_stride + columns);
    m->scale = keep(t, m->scale, count * mf_dtype_size(m->scale_dtype));
    m->zero = keep(t, m->zero, count);
}

static void forget(table *t)
{
    for (int i = 0; i < t->num_blocks; i++) {
        mf_device_free(t->device, t->blocks[i]);
    }
    *t = (table){ 0 };
}

REAL(mf_status, mf_experts_create, mf_device *device, const mf_experts_desc *desc, mf_experts **experts, mf_error *err)
{
    if (is_host(device) || !desc || !experts || !desc->slots) {
        return __real_mf_experts_create(device, desc, experts, err);
    }
    mf_device *twin = twin_of(device);
    mf_status status = __real_mf_experts_create(twin, desc, experts, err);
    if (status != MF_OK) {
        return status;
    }
    mf_experts_destroy(experts);
    table *t = NULL;
    for (int i = 0; i < MAX_TABLES && !t; i++) {
        t = tables[i].device ? NULL : &tables[i];
    }
    assert_non_null(t);
    *t = (table){ .device = device };
    mf_slot *slots = malloc((size_t)desc->num_slots * sizeof *slots);
    assert_non_null(slots);
    for (int64_t i = 0; i < desc->num_slots; i++) {
        mf_slot *slot = &slots[i];
        *slot = desc->slots[i];
        keep_matrix(t, &slot->gate);
        keep_matrix(t, &slot->up);
        keep_matrix(t, &slot->down);
        slot->gate_bias = keep(t, slot->gate_bias, (size_t)slot->up.n * 4);
        slot->up_bias = keep(t, slot->up_bias, (size_t)slot->up.n * 4);
        slot->down_bias = keep(t, slot->down_bias, (size_t)slot->down.n * 4);
    }
    mf_experts_desc d = *desc;
    d.slots = slots;
    status = __real_mf_experts_create(device, &d, experts, err);
    free(slots);
    t->experts = *experts;
    if (status != MF_OK) {
        forget(t);
    }
    return status;
}

REAL(void, mf_experts_destroy, mf_experts **experts)
{
    mf_experts *gone = experts ? *experts : NULL;
    __real_mf_experts_destroy(experts);
    for (int i = 0; gone && i < MAX_TABLES; i++) {
        if (tables[i].experts == gone) {
            forget(&tables[i]);
        }
    }
}

REAL(mf_status, mf_fused_experts, mf_device *device, const mf_experts_args *args, void *workspace, size_t bytes, mf_error *err)
{
    if (is_host(device) || !args || !args->experts || args->experts->device != device) {
        return __real_mf_fused_experts(device, args, workspace, bytes, err);
    }
    mf_experts twin_experts = *args->experts;
    mf_experts_args a = *args;
    twin_experts.device = twin_of(device);
    a.experts = &twin_experts;
    mf_status status = __real_mf_fused_experts(twin_experts.device, &a, workspace, bytes, err);
    if (status != MF_OK) {
        return status;
    }
    stage s = { .device = device };
    mf_tensor *const views[] = { &a.x, &a.topk_ids, &a.input_scale, &a.y };
    a.experts = args->experts;
    for (int i = 0; i < 4; i++) {
        stage_view(&s, views[i], i == 3);
    }
    stage_to_device(&s);
    for (int i = 0; i < 4; i++) {
        move(&s, views[i]);
    }
    void *room = stage_open_workspace(device, bytes);
    status = __real_mf_fused_experts(device, &a, room, bytes, err);
    stage_close_workspace(device, room, bytes);
    return finish(&s, status, err);
}

/* ---- the layer ---- */

REAL(mf_status, mf_moe_layer, mf_device *device, const mf_layer_args *args, void *workspace, size_t bytes, mf_error *err)
{
    if (is_host(device) || !args || !args->gate || !args->experts || args->experts->device != device ||
        (args->shared && args->shared->device != device)) {
        return __real_mf_moe_layer(device, args, workspace, bytes, err);
    }
    mf_experts routed = *args->experts, shared = args->shared ? *args->shared : routed;
    mf_gate_args gate = *args->gate;
    mf_layer_args a = *args;
    routed.device = shared.device = twin_of(device);
    a.experts = &routed;
    a.shared = args->shared ? &shared : NULL;
    inside = true;
    mf_status status = __real_mf_moe_layer(routed.device, &a, workspace, bytes, err);
    inside = false;
    if (status != MF_OK) {
        return status;
    }
    a = *args;
    a.gate = &gate;
    stage s = { .device = device };
    stage_gate(&s, &gate);
    mf_tensor *const views[] = { &a.x, &a.shared_gate_weight, &a.residual, &a.out };
    for (int i = 0; i < 4; i++) {
        stage_view(&s, views[i], i == 3);
    }
    stage_to_device(&s);
    move_gate(&s, &gate);
    for (int i = 0; i < 4; i++) {
        move(&s, views[i]);
    }
    void *room = stage_open_workspace(device, bytes);
    inside = true;
    status = __real_mf_moe_layer(device, &a, room, bytes, err);
    inside = false;
    stage_close_workspace(device, room, bytes);
    return finish(&s, status, err);
}
