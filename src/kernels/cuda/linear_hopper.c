/* linear_hopper.c - the host's side of linear_wgmma.cu: which kernel, which tiles, and the tensor maps of a call. */
#include <cuda_runtime_api.h>

#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/tensor_maps.h"

/* Rows of bf16; a box is `box` rows of one line. */
static int encode(mf_cuda_encode_fn make, const void *data, int64_t rows, int64_t stride, int64_t columns, int32_t box,
                  CUtensorMap *out)
{
    const CUresult made = mf_cuda_encode_lines(make, data, false, rows, columns, stride * 2, (uint32_t)box, 1, out);
    return made == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

static int64_t rows_of(const mf_cuda_linear *p, int i)
{
    return p->num_batches > 0 ? p->rows : p->w[i].n;
}

static int64_t cut(mf_cuda_linear *p, int64_t rows)
{
    int64_t blocks = 0;
    for (int i = 0; i < p->num; i++) {
        p->first_block[i] = blocks;
        blocks += (rows_of(p, i) + rows - 1) / rows;
    }
    p->first_block[p->num] = blocks;
    return blocks;
}

/* Runs of four lines each, as linear_tiles.cu's DOUBLE wants them. */
static bool is_even(const mf_cuda_linear *p)
{
    bool is = p->parts == 1 && p->num_tokens > MF_CUDA_STREAM_TOKENS && p->runs % 8 == 0;
    for (int i = 0; i < p->num; i++) {
        is = is && p->w[i].k == 4 * 64 * p->runs;
    }
    return is;
}

bool mf_cuda_linear_can_add(const mf_cuda_linear *call)
{
    return call->num == 1 && call->num_batches == 0 && is_even(call) && !mf_cuda_linear_is_tall(call) &&
           call->w[0].n % 128 == 0 && call->out_stride[0] % 2 == 0 && (uintptr_t)call->out[0] % 8 == 0;
}

/* Tiles: those whose last wave leaves least undone; wider ones read less, but have no registers for a second set of
 * sums. Few rows of f32 inputs (a router's) are cut finer, so that every multiprocessor has some. */
static void choose_tiles(const mf_cuda_gpu *gpu, mf_cuda_linear_maps *maps)
{
    enum { PAIRS_FROM = 4096 }; /* tokens: at 2,048 blocks are as quick alone */
    mf_cuda_linear p = maps->p;
    const int64_t batches = p.num_batches > 0 ? p.num_batches : 1, others = (p.num_tokens + 127) / 128 * batches;
    const int64_t all = gpu->num_multiprocessors;
    const int64_t narrow = (cut(&p, 128) * others + all - 1) / all * 128 * 11 / 10,
                  wide = (cut(&p, 192) * others + all - 1) / all * 192;
    maps->x_rows = 128;
    maps->tile_rows = narrow < wide ? 128 : 192;
    maps->is_double = is_even(&p);
    if (maps->makes_heads || maps->is_double) {
        maps->tile_rows = 128;
    }
    if (p.parts == 3 && cut(&p, 128) * others < all) {
        maps->x_rows = 64;
        maps->tile_rows = cut(&p, 128) * ((p.num_tokens + 63) / 64) * batches * 2 <= all ? 64 : 128;
    }
    maps->is_paired = p.parts == 1 && p.num_tokens >= PAIRS_FROM && p.num_batches == 0 && maps->tile_rows == 128;
    maps->w_rows = maps->is_paired ? maps->tile_rows / 2 : maps->tile_rows;
}

bool mf_cuda_linear_is_tall(const mf_cuda_linear *call)
{
    enum { LEAST = 65536 };
    return call->num_batches == 0 && call->parts == 1 && call->w[0].n >= LEAST;
}

/* The maps of a call whose boxes have w_rows and x_rows rows. */
static int encode_call(mf_cuda_linear_maps *maps)
{
    mf_cuda_encode_fn make = NULL;
    mf_cuda_linear *p = &maps->p;
    int code = mf_cuda_find_encode(&make);
    if (code != 0) {
        return code;
    }
    (void)cut(p, maps->tile_rows);
    for (int i = 0; i < p->num && code == 0; i++) {
        code = encode(make, p->w[i].data, p->w[i].n, p->w[i].row_stride, p->w[i].k, maps->w_rows, &maps->w[i]);
    }
    const int64_t width = p->num_batches > 0 ? p->num_batches * p->x_step : p->w[0].k;
    const int64_t planes = p->x_rests ? 1 : p->parts;
    if (code == 0) {
        code = encode(make, p->x, planes * p->num_tokens, p->x_stride, width, maps->x_rows, &maps->x);
    }
    if (code == 0 && p->parts > 1) {
        const uint16_t *rests = p->x_rests ? p->x_rests : (const uint16_t *)p->x + p->x_plane;
        code = encode(make, rests, (p->parts - 1) * p->num_tokens, p->x_rests ? width : p->x_stride, width,
                      maps->x_rows, &maps->rests);
    }
    return code;
}

int mf_cuda_linear_hopper(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, void *stream)
{
    mf_cuda_linear_maps maps = { .p = *call };
    const bool is_few = call->num_tokens <= MF_CUDA_STREAM_TOKENS && !mf_cuda_linear_is_tall(call);
    if (is_few) {
        maps.w_rows = maps.tile_rows = 64;
        for (maps.x_rows = 16; maps.x_rows < call->num_tokens; maps.x_rows *= 2) {
        }
    } else {
        choose_tiles(gpu, &maps);
    }
    const int code = encode_call(&maps);
    return code != 0 ? code
           : is_few  ? mf_cuda_launch_linear_stream(&maps, stream)
                     : mf_cuda_launch_linear_tiles(&maps, gpu->num_multiprocessors, stream);
}

int mf_cuda_linear_hopper_codes(const mf_cuda_linear *call, int kind, void *stream)
{
    mf_cuda_linear_maps maps = { .p = *call };
    mf_cuda_encode_fn make = NULL;
    int code = mf_cuda_find_encode(&make);
    for (maps.x_rows = 16; maps.x_rows < call->num_tokens; maps.x_rows *= 2) {
    }
    (void)cut(&maps.p, 64);
    if (code == 0) {
        code = encode(make, call->x, call->num_tokens, call->x_stride, call->w[0].k, maps.x_rows, &maps.x);
    }
    return code != 0 ? code : mf_cuda_launch_linear_codes_stream(&maps, kind, stream);
}

int mf_cuda_linear_hopper_add(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, void *stream)
{
    mf_cuda_linear_maps maps = { .p = *call, .adds = 1 };
    choose_tiles(gpu, &maps);
    const int code = encode_call(&maps);
    return code != 0 ? code : mf_cuda_launch_linear_tiles(&maps, gpu->num_multiprocessors, stream);
}

bool mf_cuda_linear_is_many(const mf_cuda_gpu *gpu, int64_t num_tokens)
{
    return 2 * num_tokens > MF_CUDA_ROUTER_TOKENS * (int64_t)gpu->num_multiprocessors; /* of half of them at least */
}

int mf_cuda_linear_hopper_router(const mf_cuda_linear *call, const mf_cuda_norm *norm, void *stream)
{
    mf_cuda_router router = { .norm = *norm,
                              .bias = call->bias[0],
                              .out = call->out[0],
                              .out_stride = call->out_stride[0],
                              .rows = (int32_t)call->w[0].n,
                              .runs = call->runs };
    mf_cuda_encode_fn make = NULL;
    int code = mf_cuda_find_encode(&make);
    if (code == 0) {
        code = encode(make, call->w[0].data, call->w[0].n, call->w[0].row_stride, call->w[0].k, MF_CUDA_ROUTER_ROWS,
                      &router.w);
    }
    return code != 0 ? code : mf_cuda_launch_router(&router, stream);
}

int mf_cuda_linear_hopper_heads(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, const mf_cuda_gqa_prepare *heads,
                                float query_scale, void *stream)
{
    mf_cuda_linear_maps maps = { .p = *call, .makes_heads = 1, .heads = *heads, .query_scale = query_scale };
    choose_tiles(gpu, &maps);
    const int code = encode_call(&maps);
    return code != 0 ? code : mf_cuda_launch_linear_tiles(&maps, gpu->num_multiprocessors, stream);
}
