/* weights_mxfp4.c - routed experts in gpt-oss's MXFP4: per layer NAME_blocks u8 [E, rows, k/32, 16] and NAME_scales u8
 * [E, rows, k/32], NAME being gate_up_proj (2I rows) or down_proj.
 *
 * A block's 16 bytes are 32 codes, the low nibble first, which is the kernels' MXFP4: views, also where gate and up
 * rows alternate, because a view has a stride of its own. */
#include <stdio.h>

#include "kernels/ops.h"
#include "model/weights_matcher.h"

enum { GROUP = 32 };

mf_matrix mf_mxfp4_view(const uint8_t *blocks, const uint8_t *scales, int64_t expert, int64_t rows, int64_t k,
                        int64_t first, int64_t step, int64_t n)
{
    const int64_t row = expert * rows + first;
    return (mf_matrix){ .data = blocks + row * (k / 2),
                        .n = n,
                        .k = k,
                        .row_stride = step * k,
                        .format = MF_FORMAT_MXFP4,
                        .scale = scales + row * (k / GROUP),
                        .scale_dtype = MF_F8_E8M0,
                        .scale_row_stride = step * (k / GROUP) };
}

static mf_status check_u8(mf_matcher *m, const mf_st_tensor *t, const int64_t *shape, int32_t ndim, bool *ok)
{
    *ok = false;
    if (t->dtype != MF_U8) {
        return mf_match_wrong_dtype(m, t, "u8");
    }
    if (!mf_match_has_shape(t, shape, ndim)) {
        return mf_match_wrong_shape(m, t, shape, ndim, "");
    }
    *ok = true;
    return MF_OK;
}

static mf_status check_scales(mf_matcher *m, const mf_st_tensor *t)
{
    for (int64_t i = 0; m->options->deep && i < t->num_elements; i++) {
        if (t->data[i] == 255) {
            mf_fail(&m->error, MF_ERR_FORMAT, "%s: tensor \"%.256s\": element %lld is 255, which is NaN", t->file,
                    t->name, (long long)i);
            return mf_match_problem(m);
        }
    }
    return MF_OK;
}

mf_status mf_match_mxfp4(mf_matcher *m, const mf_wanted *x)
{
    const mf_family *family = m->config->family;
    const bool is_down = x->role == MF_ROLE_EXPERT_DOWN, is_up = x->role == MF_ROLE_EXPERT_UP;
    const char *template = is_down ? family->stacked_down : family->stacked_gate_up;
    const int64_t rows = is_down ? x->n : 2 * x->n;
    char base[MF_MAX_TENSOR_NAME], name[MF_MAX_TENSOR_NAME + 16];
    if (x->expert < 0 || !template || !mf_tensor_name(family, template, x->layer, -1, base, sizeof base) ||
        x->k % GROUP != 0) {
        mf_fail(&m->error, MF_ERR_UNSUPPORTED,
                "%.256s: mxfp4 is loaded for routed experts with widths that are multiples of 32", x->name);
        return mf_match_problem(m);
    }
    const bool says = x->expert == 0 && !is_up; /* once per tensor */
    snprintf(name, sizeof name, "%s_blocks", base);
    const mf_st_tensor *blocks = mf_match_take(m, name);
    if (!blocks && says) {
        MF_TRY(mf_match_add_name(m, &m->missing, "missing", name));
    }
    snprintf(name, sizeof name, "%s_scales", base);
    const mf_st_tensor *scales = mf_match_take(m, name);
    if (!scales && says) {
        MF_TRY(mf_match_add_name(m, &m->missing, "missing", name));
    }
    if (!blocks || !scales) {
        return MF_OK;
    }
    const int64_t shape[4] = { m->config->gate.num_experts, rows, x->k / GROUP, GROUP / 2 };
    if (says) {
        bool blocks_ok, scales_ok;
        MF_TRY(check_u8(m, blocks, shape, 4, &blocks_ok));
        MF_TRY(check_u8(m, scales, shape, 3, &scales_ok));
        MF_TRY(scales_ok ? check_scales(m, scales) : MF_OK);
    }
    if (!mf_match_has_shape(blocks, shape, 4) || !mf_match_has_shape(scales, shape, 3)) { /* reported */
        return MF_OK;
    }
    const bool in_turn = !is_down && family->stacked_rows_alternate;
    const int64_t first = !is_up ? 0 : in_turn ? 1 : x->n;
    *x->matrix = mf_mxfp4_view(blocks->data, scales->data, x->expert, rows, x->k, first, in_turn ? 2 : 1, x->n);
    mf_match_count(m, MF_FORMAT_MXFP4, mf_matrix_bytes(x->matrix));
    return MF_OK;
}
