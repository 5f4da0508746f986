/* attention.c - multi-head latent attention, absorbed form (see mf_mla_args), in three steps over a portion of the
 * tokens: query = (W_UK^T q_nope, q_rope), per head for all of the portion's tokens, each row of W_UK decoded once;
 *   attention in the latent space, where all heads share a cached row as key and its first rank floats as value;
 *   out = W_UV result, per head, a product as any other. */
#include <string.h>

#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/inputs.h"
#include "kernels/ref/ref_ops.h"

enum {
    TOKENS = MF_CPU_QUERIES,           /* most of a portion */
    TILE_TOKENS = MF_CPU_ATTEND_TOKENS, /* the same where W_UK is laid out for tiles, TOKENS of them at a time */
    DECODED_ROWS = 32,       /* of W_UK at a time */
    FEW_ROWS = 8,            /* the same for FEW_TOKENS: they stay in the first level */
    FEW_TOKENS = 8,
    AHEAD = 8192,            /* bytes between what is decoded and what memory is asked for */
    PORTION_FLOATS = 4 << 20 /* queries and results of a portion, unless one token needs more */
};

typedef struct mla_call {
    const mf_cpu_kernels *kernels;
    const mf_mla_args *args;
    int64_t first, num_tokens;           /* the portion */
    int64_t query_stride, result_stride; /* floats per head */
    float *query;                        /* [num_tokens, heads, query_stride] */
    void *result;                        /* [num_tokens, heads, result_stride] of the cache's type */
    float *room;                         /* threads' parts: room_floats each; or the inner attention's scratch memory */
    int64_t room_floats;
    int64_t row_bytes; /* of a packed result */
    bool has_tiles;    /* for W_UK */
    mf_cpu_source source;
} mla_call;

/* Memory of the results of so many tokens, whole cache lines. */
static int64_t result_floats(const mla_call *c, int64_t num_tokens)
{
    const int64_t values = num_tokens * c->args->num_heads * c->result_stride;
    return ((c->args->kv.dtype == MF_BF16 ? values / 2 : values) + 15) / 16 * 16;
}

/* Of one head's queries of the portion: TOKENS at a time. */
static int64_t packed_floats(const mla_call *c)
{
    return c->args->qk_nope_head_dim * ((c->num_tokens + TOKENS - 1) / TOKENS * TOKENS);
}

/* Sizes first; memory when args bring some. */
static mla_call make_call(const mf_device *device, const mf_mla_args *args)
{
    const mf_cpu_kernels *kernels = mf_cpu_kernels_of(device);
    mla_call c = { .kernels = kernels, .args = args };
    c.query_stride = mf_cpu_spread(args->kv_lora_rank + args->qk_rope_head_dim);
    c.result_stride = mf_cpu_spread(args->kv_lora_rank);
    c.has_tiles = args->kv.dtype == MF_BF16 && kernels->attention.tiles && args->kv_b->format == MF_FORMAT_BF16;
    const int64_t per_token = args->num_heads * c.query_stride + result_floats(&c, 1);
    const int64_t most = c.has_tiles ? TILE_TOKENS : TOKENS, fit = PORTION_FLOATS / per_token;
    c.num_tokens = fit < 1 ? 1 : fit < most ? fit : most;
    c.num_tokens = args->num_tokens < c.num_tokens ? args->num_tokens : c.num_tokens;
    c.source = mf_cpu_source_for(kernels, args->kv_b->format, args->kv.dtype, MF_QUANT_NONE);
    c.row_bytes = mf_cpu_form_bytes(c.source.form, args->kv_lora_rank);
    const int64_t rows =
        c.has_tiles ? MF_CPU_KV_ROWS * mf_cpu_tile_columns(args->kv_lora_rank) / 2 : DECODED_ROWS * c.result_stride;
    const int64_t absorbing = rows + packed_floats(&c);
    const int64_t expanding = (c.num_tokens * c.row_bytes + 3) / 4 + args->kv_lora_rank;
    c.room_floats = ((absorbing > expanding ? absorbing : expanding) + 15) / 16 * 16;
    if (args->scratch) {
        c.query = args->scratch + (64 - (uintptr_t)args->scratch % 64) % 64 / sizeof(float);
        c.result = c.query + c.num_tokens * args->num_heads * c.query_stride;
        c.room = (float *)c.result + result_floats(&c, c.num_tokens);
    }
    return c;
}

static mf_cpu_attend make_attend(const mla_call *c)
{
    const mf_mla_args *args = c->args;
    return (mf_cpu_attend){ .kv = &args->kv,
                            .first_token = c->first,
                            .num_tokens = c->num_tokens,
                            .num_groups = 1,
                            .group_heads = args->num_heads,
                            .key_dim = args->kv_lora_rank + args->qk_rope_head_dim,
                            .value_dim = args->kv_lora_rank,
                            .scale = args->softmax_scale,
                            .q = c->query,
                            .q_token_stride = args->num_heads * c->query_stride,
                            .q_head_stride = c->query_stride,
                            .out = c->result,
                            .out_dtype = args->kv.dtype,
                            .out_token_stride = args->num_heads * c->result_stride,
                            .out_head_stride = c->result_stride,
                            .scratch = c->room };
}

size_t mf_cpu_mla_scratch_floats(const mf_device *device, const mf_mla_args *args)
{
    mf_mla_args sizes = *args;
    sizes.scratch = NULL;
    const mla_call c = make_call(device, &sizes);
    const mf_cpu_attend attend = make_attend(&c);
    const int64_t inner = mf_cpu_attend_scratch_floats(device, &attend);
    const int64_t rooms = c.room_floats * mf_pool_num_threads(device->pool);
    return (size_t)(16 + c.num_tokens * args->num_heads * c.query_stride + result_floats(&c, c.num_tokens) +
                    (inner > rooms ? inner : rooms));
}

/* A row further on: rows in scattered pages, or of few bytes, are not always fetched ahead by hardware alone. */
static void ask_ahead(const mf_matrix *w, int64_t row)
{
    const uint8_t *codes = mf_matrix_row(w, row);
    const int64_t bytes = w->k * mf_format_bits(w->format) / 8;
    for (int64_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(codes + AHEAD + i);
    }
}

static int64_t packed_stride(int64_t count)
{
    return (count + MF_CPU_QUERY_LANES - 1) / MF_CPU_QUERY_LANES * MF_CPU_QUERY_LANES;
}

/* The head's queries of `count` <= TOKENS tokens from `first` on, columns one after the other. */
static void pack_queries(const mla_call *c, int64_t head, int64_t first, int64_t count, float *packed)
{
    const mf_mla_args *args = c->args;
    const int64_t dim = args->qk_nope_head_dim + args->qk_rope_head_dim;
    const float *q[TOKENS];
    for (int64_t t = 0; t < count; t++) {
        q[t] = args->q + ((c->first + first + t) * args->num_heads + head) * dim;
    }
    c->kernels->attention.pack(q, count, args->qk_nope_head_dim, packed, packed_stride(count));
}

/* With tiles: rows of W_UK are to its queries what cached values are to softmax weights. */
static void absorb_by_tiles(const mla_call *c, int64_t head, float *rows, float *packed)
{
    const mf_mla_args *args = c->args;
    const mf_cpu_attention_tiles *tiles = c->kernels->attention.tiles;
    const int64_t nope = args->qk_nope_head_dim, first_row = head * (nope + args->v_head_dim);
    float ones[TOKENS];
    _Alignas(64) uint8_t weighed[MF_CPU_TILE_WEIGHTS_BYTES];
    mf_cpu_asker nothing = { 0 };
    for (int64_t t = 0; t < TOKENS; t++) {
        ones[t] = 1.0f;
    }
    for (int64_t j = 0; j < nope; j += MF_CPU_KV_ROWS) {
        const int64_t rows_left = nope - j < MF_CPU_KV_ROWS ? nope - j : MF_CPU_KV_ROWS;
        const void *stored[MF_CPU_KV_ROWS];
        for (int64_t i = 0; i < rows_left; i++) {
            stored[i] = mf_matrix_row(args->kv_b, first_row + j + i);
        }
        tiles->pack_rows(stored, rows_left, args->kv_lora_rank, &nothing, rows);
        for (int64_t first = 0, count; first < c->num_tokens; first += count) {
            float *own = packed + first * nope;
            int32_t limits[TOKENS] = { 0 };
            count = c->num_tokens - first < TOKENS ? c->num_tokens - first : TOKENS;
            const int64_t stride = packed_stride(count);
            if (j == 0) {
                pack_queries(c, head, first, count, own);
            }
            for (int64_t t = 0; t < count; t++) {
                limits[t] = (int32_t)rows_left;
            }
            const mf_cpu_tile_weights of = { .weights = own + j * stride,
                                             .num_rows = rows_left,
                                             .ahead = &nothing,
                                             .limits = limits,
                                             .num_queries = count,
                                             .stride = stride };
            const mf_cpu_tile_blend blend = { .rows = rows,
                                              .weights = weighed,
                                              .num_rows = rows_left,
                                              .ahead = &nothing,
                                              .alpha = j > 0 ? ones : NULL,
                                              .beta = j > 0 ? ones : NULL };
            const int64_t step = args->num_heads * c->query_stride;
            const mf_cpu_tile_sums sums = { .num_queries = count,
                                            .n = args->kv_lora_rank,
                                            .acc = c->query + first * step + head * c->query_stride,
                                            .acc_stride = step };
            tiles->weigh(&of, weighed);
            tiles->blend(&blend, 1, &sums);
        }
    }
}

/* Queries of one head. */
static void absorb_head(void *context, int64_t head, int32_t thread)
{
    const mla_call *c = context;
    const mf_mla_args *args = c->args;
    const int64_t rank = args->kv_lora_rank, nope = args->qk_nope_head_dim, rope = args->qk_rope_head_dim;
    float *rows = c->room + thread * c->room_floats;
    float *packed = rows + c->room_floats - packed_floats(c);
    float *query = c->query + head * c->query_stride;
    for (int64_t t = 0; t < c->num_tokens; t++) {
        const float *q = args->q + ((c->first + t) * args->num_heads + head) * (nope + rope);
        memcpy(query + t * args->num_heads * c->query_stride + rank, q + nope, (size_t)rope * sizeof *query);
    }
    if (c->has_tiles) {
        absorb_by_tiles(c, head, rows, packed);
        return;
    }
    const int64_t stride = packed_stride(c->num_tokens);
    int32_t limits[TOKENS];
    pack_queries(c, head, 0, c->num_tokens, packed);
    const int64_t step = c->num_tokens <= FEW_TOKENS ? FEW_ROWS : DECODED_ROWS;
    for (int64_t j = 0; j < nope; j += step) {
        const float *decoded[DECODED_ROWS];
        const int64_t count = nope - j < step ? nope - j : step;
        for (int64_t i = 0; i < count; i++) {
            float *row = rows + i * c->result_stride;
            ask_ahead(args->kv_b, head * (nope + args->v_head_dim) + j + i);
            c->kernels->attention.decode_row(args->kv_b, head * (nope + args->v_head_dim) + j + i, 0, rank, row);
            decoded[i] = row;
        }
        for (int64_t t = 0; t < c->num_tokens; t++) {
            limits[t] = (int32_t)count;
        }
        mf_cpu_blend blend = { .rows = decoded,
                               .weights = packed + j * stride,
                               .limits = limits,
                               .num_queries = c->num_tokens,
                               .stride = stride,
                               .n = rank,
                               .onto_acc = j > 0,
                               .acc = query,
                               .acc_stride = args->num_heads * c->query_stride };
        c->kernels->attention.blend(&blend);
    }
}

/* What expand_head multiplies: one head's results of all tokens, behind `rows` room for one of them as f32. */
static void pack_results(const mla_call *c, int64_t head, uint8_t *rows)
{
    const int64_t rank = c->args->kv_lora_rank, step = c->args->num_heads * c->result_stride;
    const bool is_bf16 = c->args->kv.dtype == MF_BF16;
    const bool turns = is_bf16 && c->kernels->turn_panel && c->source.form == MF_CPU_FORM_BF16_PANEL;
    float *wide = (float *)(void *)rows + (c->num_tokens * c->row_bytes + 3) / 4;
    for (int64_t t = 0; t < c->num_tokens; t++) {
        const int64_t at = t * step + head * c->result_stride;
        const uint16_t *stored = (const uint16_t *)c->result + at;
        if (turns && c->num_tokens - t >= MF_CPU_PANEL) {
            const uint16_t *panel[MF_CPU_PANEL];
            for (int64_t i = 0; i < MF_CPU_PANEL; i++) {
                panel[i] = stored + i * step;
            }
            c->kernels->turn_panel(panel, rank, rows + t * c->row_bytes);
            t += MF_CPU_PANEL - 1;
            continue;
        }
        const mf_cpu_pack pack = mf_cpu_pack_at(c->source.form, rank, rows, c->row_bytes, t, c->num_tokens);
        if (is_bf16) {
            c->kernels->load_row(stored, MF_BF16, rank, wide);
        }
        c->kernels->pack(&pack, is_bf16 ? wide : (const float *)c->result + at, 0, rank);
    }
}

/* Outputs of one head. */
static void expand_head(void *context, int64_t head, int32_t thread)
{
    const mla_call *c = context;
    const mf_mla_args *args = c->args;
    const int64_t width = args->num_heads * args->v_head_dim;
    uint8_t *rows = (uint8_t *)(c->room + thread * c->room_floats);
    pack_results(c, head, rows);
    const int64_t step = c->kernels->tile_tokens;
    for (int64_t t = 0; t < c->num_tokens; t += step) {
        const void *x[MF_CPU_MOST_TILE_TOKENS];
        mf_cpu_tile tile = { .w = args->kv_b,
                             .first_row = head * (args->qk_nope_head_dim + args->v_head_dim) + args->qk_nope_head_dim,
                             .num_rows = args->v_head_dim,
                             .num_tokens = c->num_tokens - t < step ? c->num_tokens - t : step,
                             .x = x,
                             .out = args->out + (c->first + t) * width + head * args->v_head_dim,
                             .out_stride = width };
        mf_cpu_point(c->source.form, rows, c->row_bytes, t, tile.num_tokens, x);
        c->source.fn(&tile);
    }
}

void mf_cpu_mla_attention(mf_device *device, const mf_mla_args *args)
{
    mla_call c = make_call(device, args);
    const int64_t portion = c.num_tokens;
    for (; c.first < args->num_tokens; c.first += portion) {
        c.num_tokens = args->num_tokens - c.first < portion ? args->num_tokens - c.first : portion;
        const double weights = (double)(args->num_heads * args->kv_lora_rank * c.num_tokens);
        mf_cpu_run(device, weights * (double)args->qk_nope_head_dim, args->num_heads, absorb_head, &c);
        const mf_cpu_attend attend = make_attend(&c);
        mf_cpu_attend_run(device, &attend);
        mf_cpu_run(device, weights * (double)args->v_head_dim, args->num_heads, expand_head, &c);
    }
}
