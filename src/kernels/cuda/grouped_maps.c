/* grouped_maps.c - tensor maps of a table's matrices, and of a call's rows: how the copy engine of Hopper reads boxes
 * of them. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/grouped_maps.h"
#include "kernels/cuda/tensor_maps.h"
#include "kernels/format.h"

/* mf_cuda_encode_lines for grouped_rows.cu, 128 rows of a line: of every 32 the four pairs of rows that one thread's
 * sums are of, 8 i + 2 q and the next, come from rows 8 q + 2 i, so that a thread holds eight rows in one piece. */
static CUresult encode_turned(mf_cuda_encode_fn make, const mf_cuda_matrix *m, CUtensorMap *out)
{
    const cuuint64_t row = (cuuint64_t)m->row_stride;
    const cuuint64_t sizes[5] = { (cuuint64_t)m->k, 2, 4, 4, (cuuint64_t)m->n / 32 };
    const cuuint64_t pitch[4] = { row, 8 * row, 2 * row, 32 * row };
    const cuuint32_t box[5] = { 128, 2, 4, 4, 4 }, every[5] = { 1, 1, 1, 1, 1 };
    return make(out, CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, (void *)m->data, sizes, pitch, box, every,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static CUresult encode_box(mf_cuda_encode_fn make, const mf_cuda_matrix *m, int64_t hidden, int64_t blocks, int box,
                           CUtensorMap *out)
{
    const bool has_codes = mf_format_bits((mf_format)m->format) == 8;
    const int64_t size = has_codes ? 1 : 2;
    if (box == MF_CUDA_BOX_TURNED && has_codes) {
        return encode_turned(make, m, out);
    }
    const int32_t down_rows = mf_cuda_box_rows(has_codes, hidden, blocks);
    const uint32_t rows[MF_CUDA_BOXES] = { 64, 32, 64, 8, (uint32_t)down_rows, 64 };
    const uint32_t lines[MF_CUDA_BOXES] = { 1, 4, 2, 8, (uint32_t)mf_cuda_box_lines(down_rows, m->k * size), 1 };
    return mf_cuda_encode_lines(make, m->data, has_codes, m->n, m->k, m->row_stride * size, rows[box], lines[box], out);
}

/* A matrix of codes as rows of bytes; boxes of 64 rows by 128 bytes, swizzled, zeros past its end. */
static CUresult encode_packed(mf_cuda_encode_fn make, const mf_cuda_matrix *m, CUtensorMap *out)
{
    const cuuint64_t bits = (cuuint64_t)mf_format_bits((mf_format)m->format),
                     pitch = (cuuint64_t)m->row_stride * bits / 8;
    const cuuint64_t sizes[2] = { (cuuint64_t)m->k * bits / 8, (cuuint64_t)m->n };
    const cuuint32_t box[2] = { 128, 64 }, every[2] = { 1, 1 };
    return make(out, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)m->data, sizes, &pitch, box, every,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static size_t boxes_of(bool packed)
{
    return packed ? 1 : MF_CUDA_BOXES;
}

size_t mf_cuda_grouped_maps_bytes(int64_t num_slots, bool packed)
{
    return ((size_t)num_slots * 3 * boxes_of(packed) + 3) * sizeof(CUtensorMap); /* and the even slots' */
}

static mf_status find_encode(mf_cuda_encode_fn *out, mf_error *err)
{
    return mf_cuda_find_encode(out) == 0
               ? MF_OK
               : mf_fail(err, MF_ERR_DEVICE,
                         "the NVIDIA driver has no cuTensorMapEncodeTiled: expected one for CUDA 12.0 or later");
}

mf_status mf_cuda_grouped_row_maps(const mf_cuda_grouped *call, mf_cuda_row_maps *out, mf_error *err)
{
    mf_cuda_encode_fn make = NULL;
    MF_TRY(find_encode(&make, err));
    const int64_t pairs = call->e.num_pairs, hidden = call->e.hidden_size;
    for (int i = 0; i < MF_CUDA_ROW_BOXES; i++) {
        const uint32_t rows = 128u >> i;
        CUresult made = mf_cuda_encode_lines(make, call->h_bytes, false, pairs, call->e.h_stride, call->h_pitch, rows,
                                             1, (CUtensorMap *)out->h[i]);
        if (made == CUDA_SUCCESS) {
            made = mf_cuda_encode_lines(make, call->x_sorted, false, pairs, hidden, hidden * 2, rows, 1,
                                        (CUtensorMap *)out->x[i]);
        }
        if (made != CUDA_SUCCESS) {
            return mf_fail(err, MF_ERR_DEVICE, "experts: the driver makes no tensor map of %lld rows (error %d)",
                           (long long)call->e.num_pairs, (int)made);
        }
    }
    return MF_OK;
}

mf_status mf_cuda_grouped_maps(const mf_cuda_slot *slots, int64_t num_slots, bool packed, const mf_cuda_even *even,
                               int64_t blocks, void *maps, mf_error *err)
{
    static const char *const names[3] = { "gate", "up", "down" };
    mf_cuda_encode_fn make = NULL;
    MF_TRY(find_encode(&make, err));
    CUtensorMap *out = maps;
    for (int64_t s = 0; s < num_slots; s++) {
        const mf_cuda_matrix *of[3] = { &slots[s].gate, &slots[s].up, &slots[s].down };
        for (int i = 0; i < 3; i++) {
            for (size_t box = 0; box < boxes_of(packed); box++, out++) {
                const CUresult made =
                    packed ? encode_packed(make, of[i], out) : encode_box(make, of[i], of[2]->n, blocks, (int)box, out);
                if (made != CUDA_SUCCESS) {
                    return mf_fail(err, MF_ERR_DEVICE,
                                   "slot %lld, %s [%lld, %lld]: the driver makes no tensor map (error %d)",
                                   (long long)s, names[i], (long long)of[i]->n, (long long)of[i]->k, (int)made);
                }
            }
        }
    }
    for (int i = 0; i < 3 && even->slots > 0; i++) {
        mf_cuda_matrix all = i == 0 ? slots[0].gate : i == 1 ? slots[0].up : slots[0].down;
        all.n += (int64_t)(even->slots - 1) * even->rows[i];
        const CUresult made =
            encode_box(make, &all, slots[0].down.n, blocks, i == 2 ? MF_CUDA_BOX_DOWN : MF_CUDA_BOX_UP, out++);
        if (made != CUDA_SUCCESS) {
            return mf_fail(err, MF_ERR_DEVICE, "%s of %d slots, %lld rows: the driver makes no tensor map (error %d)",
                           names[i], (int)even->slots, (long long)all.n, (int)made);
        }
    }
    return MF_OK;
}
