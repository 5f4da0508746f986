/* ref_device.c - "ref": the specification in plain C on the calling thread. */
#include <stdio.h>

#include "kernels/ref/ref_ops.h"

static const mf_device_ops ref_ops = {
    .name = "ref",
    .gate = mf_ref_gate,
    .align = mf_ref_align,
    .experts_workspace_bytes = mf_ref_experts_workspace_bytes,
    .experts = mf_ref_experts,
    .sum_reduce = mf_ref_sum_reduce,
    .embed = mf_ref_embed,
    .rms_norm = mf_ref_rms_norm,
    .linear = mf_ref_linear,
    .rope = mf_ref_rope,
    .kv_write = mf_ref_kv_write,
    .mla_scratch_floats = mf_ref_mla_scratch_floats,
    .mla_attention = mf_ref_mla_attention,
    .gqa_scratch_floats = mf_ref_gqa_scratch_floats,
    .gqa_attention = mf_ref_gqa_attention,
    .delta_net_scratch_floats = mf_ref_delta_net_scratch_floats,
    .delta_net = mf_ref_delta_net,
    .sigmoid_gate = mf_ref_sigmoid_gate,
    .convert = mf_ref_convert,
    .add = mf_ref_add,
    .clip = mf_ref_clip,
    .scale_rows = mf_ref_scale_rows,
};

mf_status mf_ref_device_init(mf_device *device, const mf_device_options *options, mf_error *err)
{
    (void)options; /* one thread, whatever is asked for */
    (void)err;
    device->ops = &ref_ops;
    snprintf(device->description, sizeof device->description, "ref, 1 thread");
    return MF_OK;
}
