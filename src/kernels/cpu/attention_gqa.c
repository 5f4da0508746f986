/* attention_gqa.c - grouped-query attention (see mf_gqa_args): portions of the tokens go through attention_blocks.c. */
#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/cpu_ops.h"

static mf_cpu_attend make_attend(const mf_gqa_args *args)
{
    const int64_t tokens = args->num_tokens < MF_CPU_ATTEND_TOKENS ? args->num_tokens : MF_CPU_ATTEND_TOKENS;
    return (mf_cpu_attend){ .kv = &args->kv,
                            .num_tokens = tokens,
                            .num_groups = args->num_kv_heads,
                            .group_heads = args->num_heads / args->num_kv_heads,
                            .key_dim = args->head_dim,
                            .key_step = args->head_dim,
                            .value_dim = args->v_head_dim,
                            .value_first = args->num_kv_heads * args->head_dim,
                            .value_step = args->v_head_dim,
                            .scale = args->softmax_scale,
                            .window = args->window,
                            .chunk = args->chunk,
                            .sinks = args->sinks,
                            .q = args->q,
                            .q_token_stride = args->num_heads * args->head_dim,
                            .q_head_stride = args->head_dim,
                            .out = args->out,
                            .out_dtype = MF_F32,
                            .out_token_stride = args->num_heads * args->v_head_dim,
                            .out_head_stride = args->v_head_dim,
                            .scratch = args->scratch };
}

size_t mf_cpu_gqa_scratch_floats(const mf_device *device, const mf_gqa_args *args)
{
    const mf_cpu_attend attend = make_attend(args);
    return (size_t)mf_cpu_attend_scratch_floats(device, &attend);
}

void mf_cpu_gqa_attention(mf_device *device, const mf_gqa_args *args)
{
    mf_cpu_attend attend = make_attend(args);
    for (; attend.first_token < args->num_tokens; attend.first_token += MF_CPU_ATTEND_TOKENS) {
        const int64_t left = args->num_tokens - attend.first_token;
        attend.num_tokens = left < MF_CPU_ATTEND_TOKENS ? left : MF_CPU_ATTEND_TOKENS;
        mf_cpu_attend_run(device, &attend);
        attend.q += attend.num_tokens * attend.q_token_stride;
        attend.out = (float *)attend.out + attend.num_tokens * attend.out_token_stride;
    }
}
