/* moefuse.h - the kernel library's C interface: the operations of one mixture-of-experts layer.
 *
 * Four operations (gate, align, experts, sum-reduce) and the whole layer composed of them, on a device ("ref", "cpu",
 * "cuda:N").  Ids, weights, alignments and combines have the same bits on every device; matrix products agree within
 * a stated bound.
 *
 * Rules that hold for every function:
 *  - A function that can fail returns mf_status and, when `err` is not NULL, writes a one-line message into it that names the
 *    argument, its value and what was expected.  Nothing here exits, aborts or prints.
 *  - Tensors are views: the caller owns the memory.  Strides count elements.  Unless said otherwise the last axis has unit
 *    stride and any outer stride >= the width is accepted, aligned or not.
 *  - Ops allocate nothing: scratch memory comes from the caller's workspace; mf_*_workspace_bytes says how much.
 *  - Sizes and offsets are 64-bit.  T = 0 is legal everywhere.
 *
 * Symbols: T tokens, E routed experts, Z zero experts, N = E + Z, K = top_k, S shared slots, C = K + S columns,
 * H hidden size, I expert width, P physical slots. */
#ifndef MOEFUSE_H
#define MOEFUSE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MF_API
#else
#define MF_API __attribute__((visibility("default")))
#endif

#define MF_VERSION_MAJOR 0
#define MF_VERSION_MINOR 1
#define MF_VERSION_PATCH 0
#define MF_VERSION_STRING "0.1.0"

/* ---- status and errors -------------------------------------------------------------------------------------------- */

typedef enum mf_status {
    MF_OK = 0,
    MF_ERR_INVALID = 1,     /* an argument, field or flag is wrong; the message names it */
    MF_ERR_UNSUPPORTED = 2, /* well formed, but this build or device cannot do it */
    MF_ERR_NOMEM = 3,       /* memory could not be had */
    MF_ERR_IO = 4,          /* the system refused to open, read or map */
    MF_ERR_FORMAT = 5,      /* a file's bytes break its format; the message names file and place */
    MF_ERR_DEVICE = 6,      /* the device failed */
    MF_ERR_BUSY = 7,        /* a bounded queue is full; try later */
    MF_ERR_LIMIT = 8,       /* a stated limit (bytes, depth, fuel, time) was reached */
    MF_ERR_CANCELLED = 9,   /* stopped on request */
    MF_ERR_INTERNAL = 10    /* a defect of moefuse */
} mf_status;

typedef struct mf_error {
    mf_status status;
    char message[1016]; /* one line, UTF-8, no final full stop; may be followed by one line of advice */
} mf_error;

MF_API const char *mf_status_name(mf_status status); /* "invalid argument", ... never NULL */
MF_API const char *mf_version(void);                 /* MF_VERSION_STRING of the library in use */

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

typedef enum mf_dtype {
    MF_F32 = 0,
    MF_BF16,
    MF_F16,
    MF_F64,
    MF_F8_E4M3,
    MF_F8_E8M0,
    MF_I8,
    MF_U8,
    MF_I32,
    MF_I64,
    MF_DTYPE_COUNT
} mf_dtype;

MF_API size_t mf_dtype_size(mf_dtype dtype);      /* bytes of one element; 0 for an unknown dtype */
MF_API const char *mf_dtype_name(mf_dtype dtype); /* "f32", "bf16", ... "?" for an unknown dtype */

#define MF_MAX_DIMS 4

/* A view of memory that somebody else owns.  data == NULL means "absent" for optional arguments. */
typedef struct mf_tensor {
    void *data;
    mf_dtype dtype;
    int32_t ndim; /* 0..MF_MAX_DIMS */
    int64_t shape[MF_MAX_DIMS];
    int64_t stride[MF_MAX_DIMS]; /* in elements */
} mf_tensor;

/* Contiguous views.  The const is cast away: inputs are never written. */
MF_API mf_tensor mf_tensor_1d(const void *data, mf_dtype dtype, int64_t n0);
MF_API mf_tensor mf_tensor_2d(const void *data, mf_dtype dtype, int64_t n0, int64_t n1);
MF_API mf_tensor mf_tensor_3d(const void *data, mf_dtype dtype, int64_t n0, int64_t n1, int64_t n2);

/* ---- devices ------------------------------------------------------------------------------------------------------ */

typedef struct mf_device mf_device;

/* Where the pages of large blocks lie on a machine with several memory nodes. */
typedef enum mf_numa {
    MF_NUMA_FIRST_TOUCH = 0, /* near the thread that first writes them */
    MF_NUMA_INTERLEAVE       /* in turn over all nodes */
} mf_numa;

typedef struct mf_device_options {
    int32_t num_threads; /* CPU: size of the pool, the caller included; 0 = one per core this process may use */
    int32_t pin_threads; /* CPU: 1 = each thread stays on a CPU of its own, one per physical core before any core's sibling.
                            The calling thread too, until the device is closed by it */
    mf_numa numa;        /* CPU: INTERLEAVE also makes pinned threads take turns over the nodes, where FIRST_TOUCH fills one
                            node after the other */
} mf_device_options;

/* Opens "ref" (the specification in plain C, one thread), "cpu" (the fastest code this machine's ISA allows; the
 * environment variable MOEFUSE_ISA = c | avx2 lowers it) or "cuda" or "cuda:N" (the N-th NVIDIA GPU, compute capability 8.0
 * or later, by a shared object that is looked for at that moment: libmoefuse_cuda.so beside this library or program, or
 * what MOEFUSE_CUDA_LIBRARY names).  options may be NULL.  A device may be used from one thread at a time; the caller's takes
 * part in the work and needs 512 KiB of stack.  mf_device_close accepts NULL and sets *device to NULL. */
MF_API mf_status mf_device_open(const char *name, const mf_device_options *options, mf_device **device, mf_error *err);
MF_API void mf_device_close(mf_device **device);
MF_API const char *mf_device_name(const mf_device *device);        /* "ref", "cpu" */
MF_API const char *mf_device_description(const mf_device *device); /* "cpu avx2+fma+f16c, 2 threads" */
MF_API int32_t mf_device_num_threads(const mf_device *device);

/* Memory of a device.  "ref" and "cpu" work in the process's own.  A CUDA device works in its own: all pointers in tensors,
 * matrices, slots' biases and workspaces are then device pointers, num_valid_tokens and the counters included; structs and
 * the arrays of them (slots, addends) stay in the host's memory.
 *
 * There, operations are put on the device's stream and return before they are done: they allocate nothing, wait for nothing
 * and may be captured into a graph.  Operations of one device must run in the order in which they were called (one stream,
 * or streams that the caller orders), because they share the device's own counters.  What a kernel did wrong shows at the
 * next call that waits; from then on every operation of the device returns MF_ERR_DEVICE with the first failure's text. */
MF_API int32_t mf_device_uses_host_memory(const mf_device *device); /* 1: the process's own */
MF_API mf_status mf_device_malloc(mf_device *device, size_t bytes, void **block, mf_error *err); /* 64-byte aligned */
MF_API void mf_device_free(mf_device *device, void *block);
/* Copies in any direction, after all operations so far, and waits for it. */
MF_API mf_status mf_device_copy(mf_device *device, void *to, const void *from, size_t bytes, mf_error *err);
MF_API mf_status mf_device_synchronize(mf_device *device, mf_error *err);
/* The stream (cudaStream_t) that operations go to; NULL = the device's own.  UNSUPPORTED on devices without streams. */
MF_API mf_status mf_device_set_stream(mf_device *device, void *stream, mf_error *err);
MF_API void *mf_device_stream(const mf_device *device);

/* ---- the gate ----------------------------------------------------------------------------------------------------- */

/* Value 0 of every enum below means "not set": required fields have no silent default. */
typedef enum mf_scoring {
    MF_SCORING_UNSET = 0,
    MF_SCORING_SOFTMAX,            /* Qwen, Mixtral, OLMoE, DeepSeek-V2, Ernie */
    MF_SCORING_SIGMOID,            /* DeepSeek-V3, Kimi-K2, GLM, MiniMax, dots1, Ling */
    MF_SCORING_SQRTSOFTPLUS,       /* DeepSeek-V4 */
    MF_SCORING_SQRTSOFTPLUS_LOG1P, /* the same bits; a name that checkpoints use */
    MF_SCORING_TOPK_SOFTMAX,       /* gpt-oss: choose by logit, softmax over the chosen */
    MF_SCORING_TOPK_SIGMOID        /* Llama-4: choose by logit; the weight multiplies the expert's input */
} mf_scoring;

typedef enum mf_bias_domain {
    MF_BIAS_UNSET = 0,
    MF_BIAS_NONE,
    MF_BIAS_SCORE, /* key = score + e_score_correction_bias; the weight is the score without it */
    MF_BIAS_LOGIT  /* logit + bias before scoring */
} mf_bias_domain;

typedef enum mf_renorm {
    MF_RENORM_UNSET = 0,
    MF_RENORM_NONE,
    MF_RENORM_SUM,      /* w / sum, or w when the sum is 0 */
    MF_RENORM_SUM_EPS,  /* w / (sum + renorm_eps) */
    MF_RENORM_SUM_FLOOR /* w / max(sum, renorm_eps) */
} mf_renorm;

typedef enum mf_group_score {
    MF_GROUP_SCORE_UNSET = 0,
    MF_GROUP_SCORE_MAX,     /* DeepSeek-V2 */
    MF_GROUP_SCORE_TOP2_SUM /* DeepSeek-V3 */
} mf_group_score;

typedef enum mf_shared_weight {
    MF_SHARED_ONE = 0,    /* exactly 1.0f */
    MF_SHARED_PER_TOKEN,  /* sigmoid(shared_gate[t]): Qwen2-MoE, Qwen3-Next */
    MF_SHARED_RECIPROCAL  /* 1 / routed_scaling_factor, for callers whose combine multiplies every column */
} mf_shared_weight;

typedef enum mf_out_order { MF_ORDER_KEY = 0, MF_ORDER_ID } mf_out_order;

/* Start from MF_GATE_CONFIG_INIT, then set at least num_experts, top_k, scoring, bias_domain, renorm and
 * routed_scaling_factor. */
typedef struct mf_gate_config {
    int32_t num_experts;           /* E, required */
    int32_t top_k;                 /* K, required */
    int32_t num_zero_experts;      /* Z, 0 */
    int32_t num_shared_slots;      /* S, 0 */
    int32_t num_replicas;          /* R, 1 */
    int32_t num_physical_experts;  /* Ep; -1 = E */
    int32_t num_slots;             /* P; -1 = Ep + S*R */
    mf_scoring scoring;            /* required */
    mf_bias_domain bias_domain;    /* required */
    mf_renorm renorm;              /* required */
    double renorm_eps;             /* NaN = not given: 1e-20 with SUM_EPS, an error with SUM_FLOOR */
    int32_t n_group, topk_group;   /* 1, 1 */
    mf_group_score group_score;    /* required when n_group > 1 */
    double routed_scaling_factor;  /* required: NaN = not set; 1.0 must be said */
    int32_t fold_scale;            /* 1: the gate multiplies the factor into the routed weights; 0: the combine does */
    mf_shared_weight shared_weight;
    int32_t shared_base;           /* -1 = Ep */
    int32_t shared_stride;         /* -1 = R */
    int32_t ep_size;               /* D; 0 = off: per-rank numbering of physical ids */
    int32_t ep_rank;               /* -1 = all-reduce EP: the owner of a shared column is (row_base + t) mod D */
    int64_t window_first;          /* local window over final ids; window_count -1 = off */
    int64_t window_count;
    mf_out_order out_order;
    int32_t pack;                  /* 1: `packed` is written */
    int32_t hash;                  /* 1: ids come from hash_table[token_ids[t]] */
    int32_t input_scale_supported; /* the experts op applies a per-column input scale (TOPK_SIGMOID with K > 1) */
    int32_t softcap_given, jitter_given; /* nonzero is UNSUPPORTED: never a silently different result */
} mf_gate_config;

#define MF_GATE_CONFIG_INIT                                                                                                 \
    {                                                                                                                       \
        .num_replicas = 1, .num_physical_experts = -1, .num_slots = -1, .renorm_eps = __builtin_nan(""), .n_group = 1,      \
        .topk_group = 1, .routed_scaling_factor = __builtin_nan(""), .fold_scale = 1, .shared_base = -1,                    \
        .shared_stride = -1, .ep_rank = -1, .window_count = -1                                                              \
    }

typedef struct mf_gate_args {
    const mf_gate_config *config;
    /* inputs */
    mf_tensor router_logits;          /* [T, N] f32, bf16 or f16; row stride >= N */
    mf_tensor e_score_correction_bias; /* [N] or [1, N] f32, bf16, f16; absent with bias_domain NONE */
    mf_tensor bias_alt;               /* [N], used instead for rows with row_is_alt != 0; absent = none */
    mf_tensor row_is_alt;             /* u8 [T]; required with bias_alt */
    mf_tensor per_expert_scale;       /* f32 [N]; absent = none */
    mf_tensor shared_gate;            /* [T] f32, bf16 or f16; with PER_TOKEN */
    mf_tensor expert_mask;            /* u8 [N]; 0 = never chosen; absent = all allowed */
    mf_tensor hash_table;             /* i32 [V, K]; with config.hash */
    mf_tensor token_ids;              /* i32 or i64 [T]; with config.hash */
    mf_tensor expert_map;             /* i32 [E] or [E, max_copies]; logical -> physical, may hold -1 */
    mf_tensor expert_copies;          /* i32 [E]; required when expert_map is [E, max_copies] */
    mf_tensor num_valid_tokens;       /* i32 [1]; absent = T; clamped to [0, T] */
    mf_tensor row_valid;              /* u8 [T]; absent = all valid */
    int64_t row_base;                 /* index of row 0 in the caller's numbering: replica and copy choice use it */
    /* outputs */
    mf_tensor topk_ids;               /* i32 [T, C], required */
    mf_tensor topk_weights;           /* f32 [T, C], required */
    mf_tensor identity_weight;        /* f32 [T]; required when num_zero_experts > 0 */
    mf_tensor packed;                 /* i32 [T, C]; required when config.pack */
    mf_tensor histogram;              /* i32 [P]; overwritten; absent = not wanted */
    mf_tensor load;                   /* i32 [E]; accumulates logical routed ids */
    mf_tensor bad_rows;               /* i32 [1]; accumulates rows that hold a NaN */
    mf_tensor error_count;            /* i32 [1]; accumulates caller's mistakes in ids */
} mf_gate_args;

/* Scores, groups, picks, weighs, writes shared columns, maps, pads, sorts, packs and counts in one call. */
MF_API mf_status mf_moe_fused_gate(mf_device *device, const mf_gate_args *args, mf_error *err);

/* The same result from separate steps, one buffer each; what --disable-fused-gate runs.  Same arguments, same bits.
 * workspace: mf_moe_gate_workspace_bytes(args) bytes, any alignment of at least 64. */
MF_API size_t mf_moe_gate_workspace_bytes(const mf_gate_args *args);
MF_API mf_status mf_moe_gate_unfused(mf_device *device, const mf_gate_args *args, void *workspace, size_t workspace_bytes,
                                     mf_error *err);

/* ---- align -------------------------------------------------------------------------------------------------------- */

typedef struct mf_align_args {
    mf_tensor topk_ids;              /* i32 [T, C] */
    int64_t block_size;              /* b >= 1 */
    int64_t num_slots;               /* P */
    mf_tensor histogram;             /* optional i32 [P], of exactly these ids */
    /* outputs, i32 */
    mf_tensor sorted_token_ids;      /* >= mf_moe_align_capacity entries */
    mf_tensor expert_ids;            /* >= capacity / block_size entries */
    mf_tensor num_tokens_post_padded; /* [1] */
    mf_tensor offsets;               /* optional [P + 1]: prefix sums of unpadded counts */
    mf_tensor error_count;           /* optional [1], accumulates ids >= P */
} mf_align_args;

/* Entries that sorted_token_ids needs: b * floor((M + min(M, P) * (b-1)) / b), M = T*C.  -1 when it is >= 2^31. */
MF_API int64_t mf_moe_align_capacity(int64_t num_tokens, int64_t num_columns, int64_t block_size, int64_t num_slots);
MF_API size_t mf_moe_align_workspace_bytes(const mf_align_args *args);
MF_API mf_status mf_moe_align_block_size(mf_device *device, const mf_align_args *args, void *workspace,
                                         size_t workspace_bytes, mf_error *err);

/* ---- experts ------------------------------------------------------------------------------------------------------ */

typedef enum mf_format {
    MF_FORMAT_F32 = 0,
    MF_FORMAT_BF16,
    MF_FORMAT_F16,
    MF_FORMAT_FP8_BLOCK,    /* e4m3fn, scale per 128 x 128 block, multiplied */
    MF_FORMAT_FP8_CHANNEL,  /* e4m3fn, scale per row */
    MF_FORMAT_INT8_CHANNEL, /* int8, scale per row */
    MF_FORMAT_INT4_GROUP,   /* two codes a byte, low nibble = even k; (c - 8 or zero) * scale per row and group */
    MF_FORMAT_MXFP4,        /* two e2m1 a byte, low nibble = even k; one e8m0 byte per 32 */
    MF_FORMAT_COUNT
} mf_format;

MF_API const char *mf_format_name(mf_format format); /* "bf16", "fp8_block", ... */

/* One weight matrix [n, k] as stored; a view.  value[r][c] as in mf_format.  A chunk of a wider matrix is the same struct
 * with other pointers and the parent's strides, so cutting copies nothing. */
typedef struct mf_matrix {
    const void *data;
    int64_t n, k;             /* rows (outputs), columns (inputs) */
    int64_t row_stride;       /* elements of the stored row (codes for 4-bit formats, even) */
    mf_format format;
    const void *scale;        /* per mf_format; NULL for F32, BF16, F16 */
    mf_dtype scale_dtype;     /* MF_F32, MF_BF16, MF_F16 or, for FP8_BLOCK and MXFP4, MF_F8_E8M0 */
    int64_t scale_row_stride; /* elements between rows of the scale grid (blocks, channels or rows as the format says);
                                 0 = one scale for all rows (per-tensor, channel formats only) */
    int64_t group_size;       /* INT4_GROUP: columns per scale */
    const uint8_t *zero;      /* INT4_GROUP: optional zero points, one byte each, laid out like scale */
} mf_matrix;

typedef enum mf_activation {
    MF_ACT_SILU = 0,         /* g * sigmoid(g) * u */
    MF_ACT_SILU_CLAMP,       /* silu(min(g, L)) * clamp(u, -L, L) */
    MF_ACT_SILU_CLAMP_AFTER, /* min(silu(g), L) * clamp(u, -L, L) */
    MF_ACT_SWIGLU_OAI,       /* g = min(g, L), u = clamp(u, -L, L); g * sigmoid(alpha * g) * (u + 1) */
    MF_ACT_GELU_TANH,
    MF_ACT_GELU_ERF,
    MF_ACT_SITU,             /* beta * tanh(g / beta) * sigmoid(g) * lbeta * tanh(u / lbeta) */
    MF_ACT_RELU2             /* max(u, 0)^2, no gate: w13 is [I, H] and `gate` is absent */
} mf_activation;

/* One entry of the expert weight table: routed expert, chunk of a shared expert, or a replica (same pointers again). */
typedef struct mf_slot {
    mf_matrix gate;          /* [I, H], rows 0..I-1 of w13; data NULL for ungated activations */
    mf_matrix up;            /* [I, H], rows I..2I-1 of w13 */
    mf_matrix down;          /* [H, I], w2 */
    const float *gate_bias;  /* optional [I] */
    const float *up_bias;    /* optional [I] */
    const float *down_bias;  /* optional [H] */
    mf_activation activation;
    float limit, alpha, beta, lbeta; /* as mf_activation names them */
    float input_scale13, input_scale2; /* > 0: static activation scale (FP8_CHANNEL w8a8); 0 = dynamic */
} mf_slot;

typedef enum mf_act_quant {
    MF_ACT_QUANT_NONE = 0, /* weight only: x keeps its dtype */
    MF_ACT_QUANT_W8A8,     /* FP8_BLOCK, FP8_CHANNEL, INT8_CHANNEL quantise x and the intermediate; others do not */
    MF_ACT_QUANT_W8A8_E8M0, /* the same with FP8_BLOCK's activation scales rounded up to a power of two */
    MF_ACT_QUANT_INT8       /* INT8_CHANNEL (w8a8) and INT4_GROUP (w4a8) quantise x and the intermediate to int8, one scale
                               per token: max(amax, 1e-10) / 127, codes rint(x / scale); others do not.  INT4_GROUP:
                               (sum over groups, ascending, of scale_w * f32(i32 dot of code - zero)) * scale_x */
} mf_act_quant;

typedef struct mf_experts_desc {
    int64_t num_slots;     /* P */
    int64_t hidden_size;   /* H */
    const mf_slot *slots;  /* [P]; copied (the pointers, not the weights, which must outlive the experts) */
    mf_dtype act_dtype;    /* dtype of x and of the intermediate: MF_F32, MF_BF16 or MF_F16 */
    mf_act_quant act_quant;
} mf_experts_desc;

typedef struct mf_experts mf_experts;

/* Validates every slot once and keeps the table.  Weights stay where they are. */
MF_API mf_status mf_experts_create(mf_device *device, const mf_experts_desc *desc, mf_experts **experts, mf_error *err);
MF_API void mf_experts_destroy(mf_experts **experts);

typedef struct mf_experts_args {
    const mf_experts *experts;
    mf_tensor x;           /* [T, H], dtype = act_dtype */
    mf_tensor topk_ids;    /* i32 [T, C]; ids < 0 are not computed and their rows of y not written */
    mf_tensor input_scale; /* optional f32 [T, C]: x * scale, rounded to x's dtype, enters column c (TOPK_SIGMOID) */
    mf_tensor y;           /* [T, C, H] f32, bf16 or f16 */
} mf_experts_args;

MF_API size_t mf_fused_experts_workspace_bytes(const mf_experts *experts, int64_t num_tokens, int64_t num_columns);
MF_API mf_status mf_fused_experts(mf_device *device, const mf_experts_args *args, void *workspace, size_t workspace_bytes,
                                  mf_error *err);

/* ---- sum-reduce (combine) ----------------------------------------------------------------------------------------- */

typedef struct mf_sum_reduce_args {
    mf_tensor x;                   /* [T, C, H] f64, f32, bf16 or f16 */
    mf_tensor topk_ids;            /* optional i32 [T, C]: columns with id < 0 are not read */
    mf_tensor topk_weights;        /* optional f32 [T, C]; absent = 1 */
    float routed_scaling_factor;   /* applied to the routed sum; 1 when the gate folded it; 0 = not set, INVALID */
    int32_t num_shared_columns;    /* S: the last S columns are never scaled by the factor */
    mf_tensor identity_weight;     /* optional f32 [T], with hidden */
    mf_tensor hidden;              /* optional [T, H], dtype of x */
    int32_t num_addends;           /* A */
    const mf_tensor *addends;      /* A tensors [T, H], dtype of x: separately computed shared chunks */
    mf_tensor addend_weights;      /* optional f32 [T, A]; absent = 1 */
    mf_tensor residual;            /* optional [T, H], dtype of out; may be out itself */
    mf_tensor num_valid_tokens;    /* as in mf_gate_args */
    mf_tensor row_valid;
    mf_tensor out;                 /* [T, H] */
} mf_sum_reduce_args;

/* r = sum of fma(w[k], x[t,k], r) over routed columns; s the same over shared columns and addends; out = factor * r + s. */
MF_API mf_status mf_moe_sum_reduce(mf_device *device, const mf_sum_reduce_args *args, mf_error *err);

/* ---- the layer ---------------------------------------------------------------------------------------------------- */

typedef enum mf_layer_mode {
    MF_MODE_SLOT = 0, /* shared chunks are slots of the grouped product */
    MF_MODE_OVERLAP,  /* shared MLP beside the routed experts on a second stream (on a CPU: as SERIAL) */
    MF_MODE_SERIAL    /* shared MLP as a product of its own, added by the combine */
} mf_layer_mode;

MF_API const char *mf_layer_mode_name(mf_layer_mode mode); /* "SLOT", ... */

typedef struct mf_layer_args {
    const mf_gate_args *gate;      /* with num_shared_slots = S in SLOT, and 0 otherwise; its outputs may be absent: the
                                      layer then keeps ids and weights in the workspace */
    const mf_experts *experts;     /* SLOT: routed and shared slots; otherwise routed slots */
    const mf_experts *shared;      /* OVERLAP, SERIAL: the S shared chunks as slots 0..S-1; NULL = no shared expert */
    mf_layer_mode mode;
    int32_t unfused_gate;          /* 1: the gate runs as separate steps; same bits */
    mf_dtype y_dtype;              /* dtype of the experts' outputs before the combine */
    mf_tensor x;                   /* [T, H] */
    mf_tensor shared_gate_weight;  /* OVERLAP, SERIAL with PER_TOKEN: f32 [T] shared gate logits */
    mf_tensor residual;            /* optional [T, H] */
    mf_tensor out;                 /* [T, H] */
} mf_layer_args;

MF_API size_t mf_moe_layer_workspace_bytes(const mf_layer_args *args);
MF_API mf_status mf_moe_layer(mf_device *device, const mf_layer_args *args, void *workspace, size_t workspace_bytes,
                              mf_error *err);

#ifdef __cplusplus
}
#endif
#endif
