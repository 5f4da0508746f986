/* tensor.c - dtypes, tensor views and the names of formats and modes. */
#include "moefuse.h"

static const struct {
    const char *name;
    size_t size;
} dtypes[MF_DTYPE_COUNT] = {
    [MF_F32] = { "f32", 4 },         [MF_BF16] = { "bf16", 2 },       [MF_F16] = { "f16", 2 }, [MF_F64] = { "f64", 8 },
    [MF_F8_E4M3] = { "f8_e4m3", 1 }, [MF_F8_E8M0] = { "f8_e8m0", 1 }, [MF_I8] = { "i8", 1 },   [MF_U8] = { "u8", 1 },
    [MF_I32] = { "i32", 4 },         [MF_I64] = { "i64", 8 },
};

size_t mf_dtype_size(mf_dtype dtype)
{
    return (unsigned)dtype < MF_DTYPE_COUNT ? dtypes[dtype].size : 0;
}

const char *mf_dtype_name(mf_dtype dtype)
{
    return (unsigned)dtype < MF_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

mf_tensor mf_tensor_1d(const void *data, mf_dtype dtype, int64_t n0)
{
    return (mf_tensor){ .data = (void *)data, .dtype = dtype, .ndim = 1, .shape = { n0 }, .stride = { 1 } };
}

mf_tensor mf_tensor_2d(const void *data, mf_dtype dtype, int64_t n0, int64_t n1)
{
    return (mf_tensor){ .data = (void *)data, .dtype = dtype, .ndim = 2, .shape = { n0, n1 }, .stride = { n1, 1 } };
}

mf_tensor mf_tensor_3d(const void *data, mf_dtype dtype, int64_t n0, int64_t n1, int64_t n2)
{
    int64_t outer;
    if (__builtin_mul_overflow(n1, n2, &outer)) {
        outer = -1; /* refused by every op's checks */
    }
    return (mf_tensor){
        .data = (void *)data, .dtype = dtype, .ndim = 3, .shape = { n0, n1, n2 }, .stride = { outer, n2, 1 }
    };
}

const char *mf_format_name(mf_format format)
{
    static const char *const names[MF_FORMAT_COUNT] = {
        [MF_FORMAT_F32] = "f32",
        [MF_FORMAT_BF16] = "bf16",
        [MF_FORMAT_F16] = "f16",
        [MF_FORMAT_FP8_BLOCK] = "fp8_block",
        [MF_FORMAT_FP8_CHANNEL] = "fp8_channel",
        [MF_FORMAT_INT8_CHANNEL] = "int8_channel",
        [MF_FORMAT_INT4_GROUP] = "int4_group",
        [MF_FORMAT_MXFP4] = "mxfp4",
    };
    return (unsigned)format < MF_FORMAT_COUNT ? names[format] : "?";
}

const char *mf_layer_mode_name(mf_layer_mode mode)
{
    switch (mode) {
    case MF_MODE_SLOT:
        return "SLOT";
    case MF_MODE_OVERLAP:
        return "OVERLAP";
    case MF_MODE_SERIAL:
        return "SERIAL";
    }
    return "?";
}
