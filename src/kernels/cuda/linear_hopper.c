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

/* Rows of a tile: those whose last wave leaves least undone; wider ones read less. */
static int32_t tile_rows(const mf_cuda_gpu *gpu, const mf_cuda_linear *call)
{
    mf_cuda_linear p = *call;
    const int64_t others = (p.num_tokens + 127) / 128 * (p.num_batches > 0 ? p.num_batches : 1);
    const int64_t all = gpu->num_multiprocessors;
    const int64_t narrow = (cut(&p, 128) * others + all - 1) / all * 128 * 11 / 10,
                  wide = (cut(&p, 192) * others + all - 1) / all * 192;
    return narrow < wide ? 128 : 192;
}

bool mf_cuda_linear_is_tall(const mf_cuda_linear *call)
{
    enum { LEAST = 65536 };
    return call->num_batches == 0 && call->parts == 1 && call->w[0].n >= LEAST;
}

int mf_cuda_linear_hopper(const mf_cuda_gpu *gpu, const mf_cuda_linear *call, void *stream)
{
    mf_cuda_encode_fn make = NULL;
    int code = mf_cuda_find_encode(&make);
    if (code != 0) {
        return code;
    }
    mf_cuda_linear_maps maps = { .p = *call };
    mf_cuda_linear *p = &maps.p;
    const bool is_few = p->num_tokens <= MF_CUDA_STREAM_TOKENS && !mf_cuda_linear_is_tall(p);
    maps.w_rows = is_few ? 64 : tile_rows(gpu, p);
    for (maps.x_rows = is_few ? 16 : 128; is_few && maps.x_rows < p->num_tokens; maps.x_rows *= 2) {
    }
    (void)cut(p, maps.w_rows);
    for (int i = 0; i < p->num && code == 0; i++) {
        code = encode(make, p->w[i].data, p->w[i].n, p->w[i].row_stride, p->w[i].k, maps.w_rows, &maps.w[i]);
    }
    if (code == 0) {
        const int64_t width = p->num_batches > 0 ? p->num_batches * p->x_step : p->w[0].k;
        code = encode(make, p->x, p->parts * p->num_tokens, p->x_stride, width, maps.x_rows, &maps.x);
    }
    return code != 0 ? code
           : is_few  ? mf_cuda_launch_linear_stream(&maps, stream)
                     : mf_cuda_launch_linear_tiles(&maps, gpu->num_multiprocessors, stream);
}
