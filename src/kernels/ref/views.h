/* views.h - single elements of a tensor view, at any byte alignment.  Offsets count elements and are 64-bit. */
#ifndef MF_KERNELS_REF_VIEWS_H
#define MF_KERNELS_REF_VIEWS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/number.h"
#include "moefuse.h"

static inline float mf_load_f32(const mf_tensor *t, int64_t i)
{
    const char *base = t->data;
    uint16_t h;
    float f;
    switch (t->dtype) {
    case MF_BF16:
        memcpy(&h, base + i * 2, 2);
        return mf_bf16_to_f32(h);
    case MF_F16:
        memcpy(&h, base + i * 2, 2);
        return mf_f16_to_f32(h);
    default:
        memcpy(&f, base + i * 4, 4);
        return f;
    }
}

static inline void mf_store_f32(const mf_tensor *t, int64_t i, float v)
{
    memcpy((char *)t->data + i * 4, &v, 4);
}

static inline int32_t mf_load_i32(const mf_tensor *t, int64_t i)
{
    int32_t v;
    memcpy(&v, (const char *)t->data + i * 4, 4);
    return v;
}

static inline void mf_store_i32(const mf_tensor *t, int64_t i, int32_t v)
{
    memcpy((char *)t->data + i * 4, &v, 4);
}

/* i32 or i64 */
static inline int64_t mf_load_index(const mf_tensor *t, int64_t i)
{
    if (t->dtype == MF_I64) {
        int64_t v;
        memcpy(&v, (const char *)t->data + i * 8, 8);
        return v;
    }
    return mf_load_i32(t, i);
}

static inline uint8_t mf_load_u8(const mf_tensor *t, int64_t i)
{
    return ((const uint8_t *)t->data)[i];
}

/* An i32 counter that wraps instead of overflowing; an absent one counts nothing. */
static inline void mf_count(const mf_tensor *t, int64_t i)
{
    if (t->data) {
        mf_store_i32(t, i, (int32_t)((uint32_t)mf_load_i32(t, i) + 1u));
    }
}

/* Row t of a batch takes part: before num_valid and not marked invalid. */
static inline bool mf_row_is_valid(const mf_tensor *row_valid, int64_t num_valid, int64_t t)
{
    return t < num_valid && (!row_valid->data || mf_load_u8(row_valid, t) != 0);
}

#endif
