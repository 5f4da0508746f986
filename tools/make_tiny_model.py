#!/usr/bin/env python3
"""Makes the tiny random checkpoints of tests/model/goldens and the numbers that transformers computes for them.

    python tools/make_tiny_model.py --out tests/model/goldens [--only NAME ...]

Needs torch, transformers >= 5.0 and safetensors; runs on a CPU in about a minute.

Each DIR/NAME holds a checkpoint in the layout that models are released in (one tensor per expert and projection, scales
beside FP8 weights) and golden.bin: the float32 logits of transformers' own model code for a prompt and its greedy
continuation.  DIR/rope.bin holds rotary tables of transformers' rope functions.  Everything follows from a seed per case.

transformers stacks experts in memory, so the per-expert tensors are written here and read back two ways: through
from_pretrained and through load_state_dict with stacks built here.  Both must give the same logits.  FP8 weights are
given to transformers dequantised (code * weight_scale_inv of its 128 x 128 block, code * weight_scale of its row), and so
are those of compressed-tensors, GPTQ and AWQ: (code - zero point) * scale.

A random router has near ties, and a near tie makes an honest rounding difference pick another expert.  A seed is taken
only if every choice of an expert, of a group and of the next greedy token is wider than the bounds below.

golden.bin, little endian: "MFGL", i32 version 1, num_prompt, num_generated, vocab_size; i32 ids of prompt and
continuation; f32 logits [num_prompt + num_generated, vocab_size].
golden_bf16.bin, for some cases: the same with the logits of the same ids when what enters every linear layer and expert is
rounded to bf16 (routers excepted), all else staying f32.  golden_bf16_outputs.bin, where its choices of
experts are wide enough: what leaves an expert is rounded, too, before it is weighed.
rope.bin: "MFRP", i32 version 1, num_cases; per case i32 type (0 default, 1 yarn, 2 linear, 3 llama3: beta_fast and
beta_slow are high_freq_factor and low_freq_factor), dim, original_max, truncate,
num_positions; f64 theta, factor, beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor (0 = not set); f64 factor on
cos and sin; f32 inv_freq [dim/2]; i32 positions; f32 (cos, sin) [num_positions, dim/2].
"""
import argparse
import json
import math
import os
import re
import shutil
import struct
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config  # noqa: E402
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding  # noqa: E402
from transformers.utils import logging  # noqa: E402

MIN_KEY_GAP = 1e-4    # between the last chosen and the first rejected expert or group
MIN_LOGIT_GAP = 1e-2  # between the greedy token and the next
MIN_BF16_KEY_GAP = 2e-3  # as MIN_KEY_GAP with rounded activations, where a rounding that goes the other way costs 2^-9
NUM_PROMPT = 20
NUM_GENERATED = 16  # unless a case says otherwise

MLA_SMALL = dict(num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8,
                 v_head_dim=12)

V2 = dict(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", hidden_act="silu", rms_norm_eps=1e-6,
          attention_bias=False, norm_topk_prob=False, scoring_func="softmax", moe_layer_freq=1, tie_word_embeddings=False,
          bos_token_id=0, eos_token_id=1, rope_theta=10000.0, max_position_embeddings=640, **MLA_SMALL)
V3 = dict(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", hidden_act="silu", rms_norm_eps=1e-6,
          attention_bias=False, norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1,
          num_nextn_predict_layers=0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, rope_theta=10000.0,
          max_position_embeddings=640, q_lora_rank=20, **MLA_SMALL)
QWEN3 = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", hidden_act="silu", rms_norm_eps=1e-6,
             attention_bias=False, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False,
             tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, rope_theta=10000.0, max_position_embeddings=640)
GLM4 = dict(architectures=["Glm4MoeForCausalLM"], model_type="glm4_moe", hidden_act="silu", rms_norm_eps=1e-5,
            attention_bias=True, norm_topk_prob=True, use_qk_norm=True, n_shared_experts=1, tie_word_embeddings=False,
            num_nextn_predict_layers=0, bos_token_id=0, eos_token_id=1, rope_theta=10000.0, partial_rotary_factor=0.5,
            max_position_embeddings=640)
PLAIN = dict(hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, rope_theta=10000.0,
             max_position_embeddings=640)
BAILING = dict(architectures=["BailingMoeV2ForCausalLM"], model_type="bailing_moe", hidden_act="silu", rms_norm_eps=1e-6,
               norm_topk_prob=True, use_bias=False, use_qkv_bias=False, use_qk_norm=True, use_rmsnorm=True, router_dtype="fp32",
               score_function="sigmoid", moe_router_enable_expert_bias=True, routed_scaling_factor=2.5, tie_word_embeddings=False,
               bos_token_id=0, eos_token_id=1, rope_theta=600000.0, rope_scaling=None, partial_rotary_factor=0.5, max_position_embeddings=640,
               num_nextn_predict_layers=0)
FP8 = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128])
FP8_CHANNEL = dict(quant_method="compressed-tensors", format="float-quantized", quantization_status="compressed", ignore=["lm_head"],
                   config_groups=dict(group_0=dict(
                       targets=["Linear"], weights=dict(num_bits=8, type="float", strategy="channel", symmetric=True, dynamic=False),
                       input_activations=dict(num_bits=8, type="float", strategy="token", symmetric=True, dynamic=True))))


def compressed(format, groups, ignore):
    """quantization_config of compressed-tensors; groups: (targets, weights' arguments, format of the group or None)."""
    names = dict(actorder=None, block_structure=None, dynamic=False, group_size=None, observer="minmax", observer_kwargs={})
    return dict(quant_method="compressed-tensors", format=format, quantization_status="compressed", ignore=ignore,
                global_compression_ratio=None, kv_cache_scheme=None,
                config_groups={f"group_{i}": dict(dict(targets=targets, weights=dict(names, **weights), input_activations=None,
                                                       output_activations=None), **(dict(format=own) if own else {}))
                               for i, (targets, weights, own) in enumerate(groups)})


INT4 = dict(num_bits=4, type="int", strategy="group", symmetric=True, group_size=32)
# Kimi-K2-Thinking's: routed experts only, by patterns
KIMI_INT4 = compressed("pack-quantized", [(["Linear"], INT4, None)],
                       ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"])
MIXED = compressed("mixed-precision", [
    (["re:.*mlp\\.experts\\.\\d+\\..*_proj$"], dict(INT4, symmetric=False), "pack-quantized"),
    (["Linear"], dict(num_bits=8, type="float", strategy="channel", symmetric=True), "float-quantized")],
    ["lm_head", "re:.*mlp\\.gate$", "re:.*shared_experts.*"])
INT8 = compressed("int-quantized", [(["Linear"], dict(num_bits=8, type="int", strategy="channel", symmetric=True), None)], ["lm_head"])
FP8_TENSOR = dict(quant_method="fp8", activation_scheme="static", ignored_layers=["lm_head"])
GPTQ = dict(quant_method="gptq", bits=4, group_size=16, sym=False, desc_act=False, checkpoint_format="gptq", damp_percent=0.01,
            true_sequential=True, static_groups=False, dynamic={r"-:.*layers\.0\.mlp\.experts\.2\..*": {}})
AWQ = dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm", modules_to_not_convert=["self_attn.k", "mlp.gate"])

MXFP4 = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.gate", "lm_head"])


GPT_OSS_MXFP4 = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                   "model.embed_tokens", "lm_head"])


def yarn(**changes):
    values = dict(type="yarn", factor=40, original_max_position_embeddings=16, beta_fast=32, beta_slow=1, mscale=1.0,
                  mscale_all_dim=1.0)
    values.update(changes)
    return {k: v for k, v in values.items() if v is not None}


# name -> (storage, seed, options, config).  Together they hold every switch of the families.
CASES = {
    # noaux_tc, groups, one shared expert, yarn as V3 has it
    "v3": ("bf16", 1, {}, dict(V3, vocab_size=128, hidden_size=48, intermediate_size=72, moe_intermediate_size=20,
                               num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=16, num_experts_per_tok=4,
                               n_shared_experts=1, n_group=4, topk_group=2, routed_scaling_factor=2.5, rope_scaling=yarn())),
    # no query LoRA, plain softmax top-k, two shared experts, mscale 0.707
    "v2_lite": ("bf16", 2, {}, dict(V2, vocab_size=96, hidden_size=64, intermediate_size=80, moe_intermediate_size=24,
                                    num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=3,
                                    n_shared_experts=2, n_group=1, topk_group=1, topk_method="greedy", q_lora_rank=None,
                                    routed_scaling_factor=1.0, rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707))),
    # query LoRA, group_limited_greedy, factor 16
    "v2": ("bf16", 3, {}, dict(V2, vocab_size=80, hidden_size=32, intermediate_size=56, moe_intermediate_size=16,
                               num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=16, num_experts_per_tok=4,
                               n_shared_experts=2, n_group=4, topk_group=2, topk_method="group_limited_greedy", q_lora_rank=20,
                               routed_scaling_factor=16.0, rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707))),
    # 60 experts (not a power of two), three shared, no dense layer, no yarn; another rms_norm_eps than the latents' 1e-6
    "v2_e60": ("bf16", 4, {}, dict(V2, vocab_size=64, hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
                                   num_hidden_layers=1, first_k_dense_replace=0, n_routed_experts=60, num_experts_per_tok=4,
                                   n_shared_experts=3, n_group=1, topk_group=1, topk_method="greedy", q_lora_rank=None,
                                   routed_scaling_factor=1.0, rms_norm_eps=1e-3)),
    # FP8 blocks, two shared experts whose chunks meet the block edge; 144 rows or columns: a short last block
    "v3_fp8": ("fp8", 5, {}, dict(V3, vocab_size=64, hidden_size=48, intermediate_size=144, moe_intermediate_size=128,
                                  num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2,
                                  n_shared_experts=2, n_group=2, topk_group=1, routed_scaling_factor=2.5,
                                  num_attention_heads=6, num_key_value_heads=6, v_head_dim=24, rope_scaling=yarn(),
                                  quantization_config=FP8)),
    # FP8 blocks that straddle the chunks: 2 x 72 columns, blocks of 128
    "v3_fp8_straddle": ("fp8", 6, {}, dict(V3, vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=72,
                                           num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=6,
                                           num_experts_per_tok=2, n_shared_experts=2, n_group=1, topk_group=1,
                                           routed_scaling_factor=1.5, quantization_config=FP8)),
    # f16, attention biases, half rope, yarn by its factor alone, tied embeddings
    "v3_f16": ("f16", 7, {}, dict(V3, vocab_size=96, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
                                  num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=12, num_experts_per_tok=3,
                                  n_shared_experts=1, n_group=3, topk_group=2, routed_scaling_factor=2.0, attention_bias=True,
                                  rope_interleave=False, tie_word_embeddings=True,
                                  max_position_embeddings=64, rope_scaling=yarn(mscale=None, mscale_all_dim=None, factor=4))),
    # f32 in three shards with an index, linear rope in the newer spelling
    "v3_sharded": ("f32", 8, dict(shards=3), dict(V3, vocab_size=64, hidden_size=24, intermediate_size=40,
                                                  moe_intermediate_size=12, num_hidden_layers=3, first_k_dense_replace=2,
                                                  n_routed_experts=10, num_experts_per_tok=3, n_shared_experts=1, n_group=1,
                                                  topk_group=1, routed_scaling_factor=2.5, num_attention_heads=3,
                                                  num_key_value_heads=3, q_lora_rank=None, rope_theta=None,
                                                  rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.0))),
    # a multi-token-prediction layer behind the last one, to be skipped; weights not renormalised
    "v3_mtp": ("bf16", 9, dict(mtp=True), dict(V3, vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
                                               num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=8,
                                               num_experts_per_tok=3, n_shared_experts=1, n_group=2, topk_group=1,
                                               routed_scaling_factor=2.5, norm_topk_prob=False, num_nextn_predict_layers=1,
                                               rope_scaling=yarn())),
    # routed experts only, one group kept of two
    "v3_no_shared": ("bf16", 11, {}, dict(V3, vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
                                          num_hidden_layers=2, first_k_dense_replace=0, n_routed_experts=6,
                                          num_experts_per_tok=2, n_shared_experts=0, n_group=2, topk_group=1,
                                          routed_scaling_factor=2.5, rope_scaling=yarn())),
    # no MoE layer at all
    "v3_dense": ("bf16", 12, {}, dict(V3, vocab_size=64, hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
                                      num_hidden_layers=2, first_k_dense_replace=2, n_routed_experts=6,
                                      num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1,
                                      routed_scaling_factor=2.5, rope_scaling=yarn())),
    # Kimi-K2: DeepSeek-V3's code under another model_type, which transformers cannot load: its oracle is deepseek_v3
    "kimi_k2": ("bf16", 10, dict(oracle_model_type="deepseek_v3"),
                dict(V3, model_type="kimi_k2", vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
                     num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=24, num_experts_per_tok=4,
                     n_shared_experts=1, n_group=1, topk_group=1, routed_scaling_factor=2.827, rope_theta=50000.0,
                     max_position_embeddings=512, rope_scaling=yarn(factor=32))),
    # grouped queries with norms on every head; heads * head_dim is not hidden_size
    "qwen3": ("bf16", 13, dict(generated=64, bf16=True),
              dict(QWEN3, vocab_size=64, hidden_size=48, intermediate_size=72, moe_intermediate_size=20, num_hidden_layers=3,
                   num_experts=16, num_experts_per_tok=4, num_attention_heads=6, num_key_value_heads=2, head_dim=16)),
    # tied embeddings, a dense layer by the list, 12 experts, weights not renormalised, biases on all four, head_dim derived
    "qwen3_e12": ("bf16", 14, dict(generated=64),
                  dict(QWEN3, vocab_size=64, hidden_size=48, intermediate_size=56, moe_intermediate_size=24,
                       num_hidden_layers=3, mlp_only_layers=[1], num_experts=12, num_experts_per_tok=3,
                       num_attention_heads=4, num_key_value_heads=1, attention_bias=True, norm_topk_prob=False,
                       tie_word_embeddings=True)),
    # FP8 blocks with short last ones, every second layer dense, as many kv heads as heads, yarn that scales cos and sin
    "qwen3_fp8": ("fp8", 15, dict(generated=64),
                  dict(QWEN3, vocab_size=48, hidden_size=32, intermediate_size=144, moe_intermediate_size=136,
                       num_hidden_layers=4, decoder_sparse_step=2, num_experts=6, num_experts_per_tok=2,
                       num_attention_heads=4, num_key_value_heads=4, head_dim=36, quantization_config=FP8,
                       rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
                       max_position_embeddings=128)),
    # half of a head rotated, norms, biases on three, groups, a shared expert, an MTP layer to skip
    "glm4": ("bf16", 16, dict(generated=64, bf16=True, mtp=True),
             dict(GLM4, vocab_size=64, hidden_size=48, intermediate_size=72, moe_intermediate_size=20, num_hidden_layers=2,
                  first_k_dense_replace=1, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2,
                  routed_scaling_factor=2.5, num_attention_heads=6, num_key_value_heads=2, head_dim=24,
                  num_nextn_predict_layers=1)),
    # GLM-4.5-Air's switches: no head norms, one group; two shards, the newer spelling of rope
    "glm4_air": ("f16", 17, dict(generated=64, shards=2),
                 dict(GLM4, vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
                      num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=10, num_experts_per_tok=3, n_group=1,
                      topk_group=1, routed_scaling_factor=1.0, num_attention_heads=8, num_key_value_heads=2, head_dim=12,
                      use_qk_norm=False, rope_theta=None, partial_rotary_factor=None,
                      rope_parameters=dict(rope_type="default", rope_theta=1000000.0, partial_rotary_factor=0.5))),
    # the FP8 of GLM's releases: one bf16 scale per row
    "glm4_fp8": ("fp8_channel", 19, dict(generated=64),
                 dict(GLM4, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2,
                      first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1,
                      routed_scaling_factor=2.5, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                      quantization_config=FP8_CHANNEL)),
    # no bias, no shared expert, a quarter of a head rotated, weights not renormalised
    "glm4_plain": ("bf16", 18, dict(generated=64),
                   dict(GLM4, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=16,
                        num_hidden_layers=2, first_k_dense_replace=0, n_routed_experts=9, num_experts_per_tok=2, n_group=3,
                        topk_group=2, routed_scaling_factor=1.5, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                        n_shared_experts=0, norm_topk_prob=False, attention_bias=False, partial_rotary_factor=0.25)),
    # GLM-4.7-Flash: latent attention with a query LoRA, a dense layer in the middle by the list, two groups, an MTP layer
    "glm4_lite": ("bf16", 20, dict(generated=64, mtp=True),
                  dict(PLAIN, **MLA_SMALL, architectures=["Glm4MoeLiteForCausalLM"], model_type="glm4_moe_lite", vocab_size=64,
                       hidden_size=48, intermediate_size=56, moe_intermediate_size=24, num_hidden_layers=3, q_lora_rank=20,
                       mlp_layer_types=["sparse", "dense", "sparse"], first_k_dense_replace=2, n_routed_experts=12,
                       num_experts_per_tok=3, n_shared_experts=1, n_group=2, topk_group=1, routed_scaling_factor=1.8,
                       norm_topk_prob=True, attention_bias=False, num_nextn_predict_layers=1)),
    # a gated shared expert of four chunks, a dense layer by the step, biases on q, k and v by the class default
    "qwen2": ("bf16", 21, dict(generated=64, bf16=True),
              dict(PLAIN, architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", vocab_size=64, hidden_size=48,
                   intermediate_size=72, moe_intermediate_size=16, shared_expert_intermediate_size=64, num_hidden_layers=4,
                   decoder_sparse_step=2, num_experts=12, num_experts_per_tok=4, norm_topk_prob=False, num_attention_heads=6,
                   num_key_value_heads=2)),
    # a shared expert whose last chunk is narrower, no biases, weights renormalised
    "qwen2_wide": ("f16", 22, dict(generated=64),
                   dict(PLAIN, architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", vocab_size=48, hidden_size=32,
                        intermediate_size=40, moe_intermediate_size=16, shared_expert_intermediate_size=40, num_hidden_layers=2,
                        num_experts=9, num_experts_per_tok=3, norm_topk_prob=True, num_attention_heads=4,
                        num_key_value_heads=4, qkv_bias=False, mlp_only_layers=[0])),
    # three layers with a gated delta net, one of gated attention by the interval; two value heads per key head, norms of 1 + w,
    # a shared expert of two chunks behind a sigmoid, a dense layer, a draft layer named mtp to be skipped
    "qwen3_next": ("bf16", 37, dict(generated=64, bf16=True, flat_mtp=True),
                   dict(PLAIN, architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next", vocab_size=64, hidden_size=48,
                        intermediate_size=56, moe_intermediate_size=20, shared_expert_intermediate_size=40, num_hidden_layers=4,
                        num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[1],
                        num_attention_heads=4, num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.25,
                        full_attention_interval=4, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
                        linear_value_head_dim=24, linear_conv_kernel_dim=4)),
    # layers by their types, the first of attention; as many key as value heads, sizes that no vector divides, three taps, biases
    "qwen3_next_odd": ("f16", 38, dict(generated=64),
                       dict(PLAIN, architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next", vocab_size=48, hidden_size=40,
                            intermediate_size=48, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_hidden_layers=5,
                            num_experts=6, num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[],
                            num_attention_heads=3, num_key_value_heads=1, head_dim=12, partial_rotary_factor=0.5,
                            attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=1e7,
                            layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention",
                                         "linear_attention"],
                            linear_num_key_heads=3, linear_num_value_heads=3, linear_key_head_dim=11,
                            linear_value_head_dim=37, linear_conv_kernel_dim=3)),
    # a fused query_key_value, groups, an MTP layer to skip.  transformers has no class for it: GLM-4.5's is the same mathematics
    # (norms on every head, half of a head rotated, sigmoid gate with a bias, sums of two per group), so the oracle is a
    # Glm4MoeForCausalLM whose tensors are stored under Bailing's names, q, k and v on top of each other
    "bailing": ("bf16", 39, dict(generated=64, mtp=True, oracle="glm4_moe"),
                dict(BAILING, vocab_size=64, hidden_size=48, intermediate_size=72, moe_intermediate_size=20, num_hidden_layers=3,
                     first_k_dense_replace=1, num_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, num_attention_heads=6,
                     num_key_value_heads=2, head_dim=24, num_shared_experts=1, num_nextn_predict_layers=1)),
    # biases on the fused projection, FP8 with one scale per row, two shared experts, one group
    "bailing_fp8": ("fp8_channel", 40, dict(generated=64, oracle="glm4_moe"),
                    dict(BAILING, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2,
                         first_k_dense_replace=0, num_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_shared_experts=2, use_qkv_bias=True,
                         routed_scaling_factor=1.5, quantization_config=FP8_CHANNEL)),
    "mixtral": ("bf16", 23, dict(generated=64, shards=2),
                dict(PLAIN, architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=64, hidden_size=48,
                     intermediate_size=40, num_hidden_layers=2, num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
                     num_attention_heads=6, num_key_value_heads=2, rope_theta=1e6)),
    # norms over whole projections and a clip that cuts
    "olmoe": ("bf16", 24, dict(generated=64),
              dict(PLAIN, architectures=["OlmoeForCausalLM"], model_type="olmoe", vocab_size=64, hidden_size=48,
                   intermediate_size=24, num_hidden_layers=2, num_experts=12, num_experts_per_tok=4, norm_topk_prob=False,
                   num_attention_heads=6, num_key_value_heads=2, clip_qkv=1.25, attention_bias=False)),
    # pairs in rope, a bias that steers only, a floor of the sum, two shared experts, tied by the class default
    "ernie": ("bf16", 25, dict(generated=64),
              dict({k: v for k, v in PLAIN.items() if k != "tie_word_embeddings"}, architectures=["Ernie4_5_MoeForCausalLM"],
                   model_type="ernie4_5_moe", vocab_size=64, hidden_size=48, intermediate_size=56, moe_intermediate_size=16,
                   num_hidden_layers=4, moe_layer_start_index=1, moe_layer_end_index=-1, moe_layer_interval=1, moe_num_experts=12,
                   moe_k=3, moe_num_shared_experts=2, moe_norm_min=1e-12, use_bias=False, num_attention_heads=6,
                   num_key_value_heads=2, rope_theta=500000.0)),
    # every other layer MoE up to the last but one, no shared expert, own head
    "ernie_plain": ("bf16", 26, dict(generated=64),
                    dict(PLAIN, architectures=["Ernie4_5_MoeForCausalLM"], model_type="ernie4_5_moe", vocab_size=48, hidden_size=32,
                         intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=5, moe_layer_start_index=1,
                         moe_layer_end_index=3, moe_layer_interval=2, moe_num_experts=6, moe_k=2, moe_num_shared_experts=0,
                         use_bias=False, num_attention_heads=4, num_key_value_heads=1)),
    # norms over whole projections, part of a head rotated, renormalised without an epsilon
    "minimax": ("bf16", 27, dict(generated=64),
                dict(PLAIN, architectures=["MiniMaxM2ForCausalLM"], model_type="minimax_m2", vocab_size=64, hidden_size=48,
                     intermediate_size=24, num_hidden_layers=2, num_local_experts=12, num_experts_per_tok=4,
                     num_attention_heads=6, num_key_value_heads=2, head_dim=16, rotary_dim=8, scoring_func="sigmoid",
                     use_routing_bias=True, use_qk_norm=True, qk_norm_type="per_layer", rope_theta=5e6)),
    "dots1": ("bf16", 28, dict(generated=64),
              dict(PLAIN, architectures=["Dots1ForCausalLM"], model_type="dots1", vocab_size=64, hidden_size=48,
                   intermediate_size=56, moe_intermediate_size=16, num_hidden_layers=3, first_k_dense_replace=1,
                   n_routed_experts=12, num_experts_per_tok=4, n_shared_experts=2, n_group=1, topk_group=1, norm_topk_prob=True,
                   routed_scaling_factor=2.5, scoring_func="noaux_tc", num_attention_heads=4, num_key_value_heads=4, head_dim=16,
                   attention_bias=False, sliding_window=None, max_window_layers=3)),
    # norms after rope, a base enlarged by alpha, a shared MLP beside the experts
    "hunyuan": ("bf16", 29, dict(generated=64),
                dict(PLAIN, architectures=["HunYuanMoEV1ForCausalLM"], model_type="hunyuan_v1_moe", vocab_size=64, hidden_size=48,
                     intermediate_size=20, num_hidden_layers=2, num_experts=12, moe_topk=[4, 4], num_attention_heads=6,
                     num_key_value_heads=2, head_dim=16, attention_bias=False,
                     rope_scaling=dict(type="dynamic", alpha=1000.0, factor=1.0))),
}

CASES.update({
    # sliding windows shorter than the text: every layer, every other one below max_window_layers, those from it on, by a list
    "mixtral_window": ("bf16", 40, dict(generated=64),
                       dict(PLAIN, architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=48, hidden_size=32,
                            intermediate_size=24, num_hidden_layers=2, num_local_experts=6, num_experts_per_tok=2, sliding_window=9,
                            num_attention_heads=4, num_key_value_heads=2, rope_theta=1e6)),
    "qwen2_window": ("bf16", 41, dict(generated=64),
                     dict(PLAIN, architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", vocab_size=48, hidden_size=32,
                          intermediate_size=40, moe_intermediate_size=16, shared_expert_intermediate_size=32, num_hidden_layers=5,
                          num_experts=6, num_experts_per_tok=2, norm_topk_prob=False, num_attention_heads=4, num_key_value_heads=2,
                          use_sliding_window=True, sliding_window=13, max_window_layers=3)),
    "qwen3_window": ("bf16", 42, dict(generated=64),
                     dict(QWEN3, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=2,
                          num_experts=6, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                          use_sliding_window=True, sliding_window=17)),
    "dots1_window": ("bf16", 43, dict(generated=64),
                     dict(PLAIN, architectures=["Dots1ForCausalLM"], model_type="dots1", vocab_size=48, hidden_size=32,
                          intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=3, first_k_dense_replace=1,
                          n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, norm_topk_prob=True,
                          routed_scaling_factor=2.5, num_attention_heads=4, num_key_value_heads=4, head_dim=16, attention_bias=False,
                          sliding_window=7, max_window_layers=1)),
    "dots1_layer_types": ("bf16", 44, dict(generated=64),
                          dict(PLAIN, architectures=["Dots1ForCausalLM"], model_type="dots1", vocab_size=48, hidden_size=32,
                               intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=3, first_k_dense_replace=1,
                               n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=0, n_group=1, topk_group=1,
                               norm_topk_prob=True, routed_scaling_factor=1.5, num_attention_heads=4, num_key_value_heads=2,
                               head_dim=16, attention_bias=True, sliding_window=11, max_window_layers=3,
                               layer_types=["full_attention", "sliding_attention", "full_attention"])),
    # Kimi-K2-Thinking's release: int4 experts in groups of 32, all else bf16
    "kimi_k2_int4": ("bf16", 30, dict(oracle_model_type="deepseek_v3", quantise=[(r"mlp\.experts\.", "pack")]),
                     dict(V3, model_type="kimi_k2", vocab_size=64, hidden_size=64, intermediate_size=48, moe_intermediate_size=32,
                          num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=2,
                          n_shared_experts=1, n_group=1, topk_group=1, routed_scaling_factor=2.827, rope_theta=50000.0,
                          max_position_embeddings=512, rope_scaling=yarn(factor=32), quantization_config=KIMI_INT4)),
    # three formats in one layer: int4 experts with zero points and a short last group, two bf16 shared experts, fp8 attention
    "v3_mixed": ("bf16", 31, dict(quantise=[(r"mlp\.experts\.", "pack_zeros"), (r"shared_experts", None), (r"_proj", "fp8_channel")]),
                 dict(V3, vocab_size=64, hidden_size=48, intermediate_size=56, moe_intermediate_size=24, num_hidden_layers=2,
                      first_k_dense_replace=1, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=2, n_group=2,
                      topk_group=1, routed_scaling_factor=2.5, quantization_config=MIXED)),
    "qwen3_int8": ("bf16", 32, dict(quantise=[(r"_proj", "int8")]),
                   dict(QWEN3, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2,
                        num_experts=6, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                        quantization_config=INT8)),
    # one scale per tensor, scales of activations beside them
    "mixtral_fp8": ("bf16", 33, dict(quantise=[(r"_proj", "fp8_tensor")]),
                    dict(PLAIN, architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=48, hidden_size=32,
                         intermediate_size=40, num_hidden_layers=2, num_local_experts=6, num_experts_per_tok=2, sliding_window=None,
                         num_attention_heads=4, num_key_value_heads=2, rope_theta=1e6, quantization_config=FP8_TENSOR)),
    # zero points stored less one, groups of 16, one expert left out by a pattern
    "qwen3_gptq": ("f16", 34, dict(quantise=[(r"layers\.0\.mlp\.experts\.2\.", None), (r"_proj", "gptq")]),
                   dict(QWEN3, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=2,
                        num_experts=6, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                        quantization_config=GPTQ)),
    # gpt-oss's MXFP4 under another family: blocks and scales of all experts of a layer
    "v3_mxfp4": ("bf16", 36, dict(quantise=[(r"mlp\.experts\.", "mxfp4")]),
                 dict(V3, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=64, num_hidden_layers=2,
                      first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1,
                      routed_scaling_factor=2.5, quantization_config=MXFP4)),
    # AWQ's order, k and the router left out by parts of names
    "qwen3_awq": ("f16", 35, dict(quantise=[(r"k_proj", None), (r"_proj", "awq")]),
                  dict(QWEN3, vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=32, num_hidden_layers=2,
                       num_experts=6, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                       quantization_config=AWQ)),
})

GPT_OSS = dict(PLAIN, architectures=["GptOssForCausalLM"], model_type="gpt_oss", rope_theta=150000.0, max_position_embeddings=512,
               rope_scaling=dict(rope_type="yarn", factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                                 original_max_position_embeddings=64))
CASES.update({
    # windows in every other layer, sinks, biases everywhere, a clamp that cuts, experts by columns
    "gpt_oss": ("bf16", 50, dict(generated=64, bf16=True),
                dict(GPT_OSS, vocab_size=64, hidden_size=48, intermediate_size=24, num_hidden_layers=3, num_local_experts=8,
                     num_experts_per_tok=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16, sliding_window=11,
                     swiglu_limit=1.25, layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    # experts in MXFP4 as released: a multiple of 32 wide
    "gpt_oss_mxfp4": ("bf16", 51, dict(generated=64, bf16=True, quantise=[(r"experts\.(gate_up|down)_proj$", "mxfp4_stack")]),
                      dict(GPT_OSS, vocab_size=48, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_local_experts=6,
                           num_experts_per_tok=2, num_attention_heads=8, num_key_value_heads=2, head_dim=8, sliding_window=17,
                           quantization_config=GPT_OSS_MXFP4)),
    # f32, no biases in attention, one sliding layer by the list, another alpha
    "gpt_oss_f32": ("f32", 52, dict(generated=64, shards=2),
                    dict(GPT_OSS, vocab_size=48, hidden_size=32, intermediate_size=20, num_hidden_layers=2, num_local_experts=5,
                         num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8, sliding_window=5,
                         attention_bias=False, swiglu_alpha=1.5, layer_types=["full_attention", "sliding_attention"])),
})

LLAMA4 = dict(PLAIN, architectures=["Llama4ForCausalLM"], model_type="llama4_text", rope_theta=500000.0, max_position_embeddings=512,
              attention_bias=False)
CASES.update({
    # as Scout: every layer MoE, chunks, one layer of four without rope and with scaled queries, unweighted norms, llama3's rope
    "llama4": ("bf16", 60, dict(generated=64),
               dict(LLAMA4, vocab_size=64, hidden_size=48, intermediate_size=24, intermediate_size_mlp=40, num_hidden_layers=4,
                    num_local_experts=6, num_experts_per_tok=1, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
                    attention_chunk_size=13, floor_scale=9, attn_scale=0.4, interleave_moe_layer_step=1, use_qk_norm=True,
                    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                      original_max_position_embeddings=32))),
    # as Maverick: every other layer dense, no norms; two experts a token, lists of layers
    "llama4_dense": ("f32", 61, dict(generated=64),
                     dict(LLAMA4, vocab_size=48, hidden_size=32, intermediate_size=20, intermediate_size_mlp=40, num_hidden_layers=3,
                          num_local_experts=5, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8,
                          attention_chunk_size=7, moe_layers=[0, 2], no_rope_layers=[1, 0, 1], use_qk_norm=False,
                          attn_temperature_tuning=False, layer_types=["chunked_attention", "full_attention", "full_attention"])),
    # the multimodal file: text_config, a prefix, tensors of the vision part
    "llama4_vision": ("bf16", 62, dict(generated=64, multimodal=("Llama4ForConditionalGeneration", "llama4", "language_model.",
                                                                 ["vision_model.layernorm_post.weight", "multi_modal_projector.linear_1.weight"])),
                      dict(LLAMA4, vocab_size=48, hidden_size=32, intermediate_size=16, intermediate_size_mlp=24, num_hidden_layers=2,
                           num_local_experts=4, num_experts_per_tok=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                           attention_chunk_size=11, interleave_moe_layer_step=2, no_rope_layer_interval=2, floor_scale=16)),
})

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "fp8": torch.bfloat16,
          "fp8_channel": torch.bfloat16}
CONFIG_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "fp8": "bfloat16",
                 "fp8_channel": "bfloat16"}


# model_type -> how releases spell what transformers has renamed
MIXTRAL_NAMES = [(r"\.mlp\.experts\.(\d+)\.gate_proj\.", r".block_sparse_moe.experts.\1.w1."),
                 (r"\.mlp\.experts\.(\d+)\.up_proj\.", r".block_sparse_moe.experts.\1.w3."),
                 (r"\.mlp\.experts\.(\d+)\.down_proj\.", r".block_sparse_moe.experts.\1.w2."),
                 (r"\.mlp\.", ".block_sparse_moe.")]
STACKED = ("gpt_oss", "llama4_text")  # released as transformers holds them
BAILING_NAMES = [(r"\.embed_tokens\.", ".word_embeddings."), (r"\.self_attn\.q_norm\.", ".attention.query_layernorm."),
                 (r"\.self_attn\.k_norm\.", ".attention.key_layernorm."), (r"\.self_attn\.o_proj\.", ".attention.dense."),
                 (r"\.self_attn\.", ".attention."), (r"\.gate\.e_score_correction_bias$", ".gate.expert_bias")]
RELEASED = {"bailing_moe": BAILING_NAMES, "mixtral": MIXTRAL_NAMES, "minimax_m2": MIXTRAL_NAMES,
            "ernie4_5_moe": [(r"\.mlp\.gate\.moe_statics\.", ".mlp.moe_statics.")]}


def released(name, config):
    for pattern, replacement in RELEASED.get(config["model_type"], []):
        name = re.sub(pattern, replacement, name)
    return name


def fuse_qkv(tensors):
    """Bailing's query_key_value: the rows of q, then of k, then of v; biases and scales per row alike."""
    for name in [n for n in tensors if ".attention.q_proj." in n]:
        parts = [tensors.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        tensors[name.replace(".q_proj.", ".query_key_value.")] = torch.cat(parts)


def oracle_of(config, model_type):
    """The config of the transformers class that computes what a Bailing model does."""
    renamed = dict(num_experts="n_routed_experts", num_shared_experts="n_shared_experts", use_qkv_bias="attention_bias")
    dropped = ("use_bias", "use_rmsnorm", "router_dtype", "score_function", "moe_router_enable_expert_bias")
    return dict({renamed.get(k, k): v for k, v in config.items() if k not in dropped}, model_type=model_type,
                architectures=["Glm4MoeForCausalLM"])


def released_names(state, model_type):
    """transformers' parameter names and shapes -> released ones: stacked experts become one tensor each, but where releases
    stack them too."""
    shapes = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue  # a shared MLP of no width is not stored
        if model_type in STACKED:
            shapes[name] = tuple(tensor.shape)
            continue
        if name.endswith("mlp.experts.gate_up_proj"):
            for e in range(tensor.shape[0]):
                half = tensor.shape[1] // 2
                for part in ("gate_proj", "up_proj"):
                    shapes[name[: -len("gate_up_proj")] + f"{e}.{part}.weight"] = (half, tensor.shape[2])
        elif name.endswith("mlp.experts.down_proj"):
            for e in range(tensor.shape[0]):
                shapes[name[: -len("down_proj")] + f"{e}.down_proj.weight"] = tuple(tensor.shape[1:])
        else:
            shapes[name] = tuple(tensor.shape)
    return shapes


def mtp_names(shapes, config):
    """The extra layer of a V3 release: a whole decoder layer, two norms, the joining projection, and repeats of the ends."""
    last, extra = config["num_hidden_layers"] - 1, config["num_hidden_layers"]
    hidden = config["hidden_size"]
    prefix = f"model.layers.{extra}."
    names = {name.replace(f"layers.{last}.", f"layers.{extra}."): shape for name, shape in shapes.items()
             if name.startswith(f"model.layers.{last}.")}
    names.update({prefix + "enorm.weight": (hidden,), prefix + "hnorm.weight": (hidden,),
                  prefix + "eh_proj.weight": (hidden, 2 * hidden), prefix + "shared_head.norm.weight": (hidden,),
                  prefix + "shared_head.head.weight": shapes["lm_head.weight"],
                  prefix + "embed_tokens.weight": shapes["model.embed_tokens.weight"]})
    return names


def flat_mtp_names(shapes, config):
    """The draft layer of a Qwen3-Next release: beside the model's layers, under a name of its own."""
    last, hidden = f"model.layers.{config['num_hidden_layers'] - 1}.", config["hidden_size"]
    names = {name.replace(last, "mtp.layers.0."): shape for name, shape in shapes.items() if name.startswith(last)}
    names.update({"mtp.fc.weight": (hidden, 2 * hidden), "mtp.norm.weight": (hidden,),
                  "mtp.pre_fc_norm_embedding.weight": (hidden,), "mtp.pre_fc_norm_hidden.weight": (hidden,)})
    return names


def random_tensor(name, shape, generator, model_type):
    x = torch.randn(shape, generator=generator)
    if name.endswith("A_log"):  # decays of a few tokens to a few dozen
        return x - 1.5
    if model_type == "qwen3_next" and name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return 0.2 * x  # multiplies by 1 + w
    if name.endswith("e_score_correction_bias"):
        return x * 0.1
    if name.endswith("bias"):
        return x * 0.2
    if name.endswith("sinks"):
        return x * 1.5
    if len(shape) == 3:  # by columns
        return x / math.sqrt(shape[1])
    if len(shape) == 1:  # norms
        return 1.0 + 0.2 * x
    if "embed_tokens" in name:
        return x
    gain = 2.0 if name.endswith(("mlp.gate.weight", "router.weight", "lm_head.weight")) else 1.0
    return x * (gain / math.sqrt(shape[-1]))


def quantise_fp8(weight):
    """e4m3fn codes and one scale per 128 x 128 block; the last blocks are short."""
    n, k = weight.shape
    scale = torch.empty(-(-n // 128), -(-k // 128))
    codes = torch.empty(n, k, dtype=torch.float8_e4m3fn)
    value = torch.empty(n, k)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            scale[i, j] = weight[block].abs().max() / 448.0
            codes[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
            value[block] = codes[block].float() * scale[i, j]
    return codes, scale, value


def quantise_fp8_channel(weight):
    """e4m3fn codes and one bf16 scale per row."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 448.0).bfloat16()
    codes = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scale, codes.float() * scale.float()


def nibbles_to_words(codes, dim, order=range(8)):
    """Eight codes along dim into one int32, code i into nibble order[i]; a short last word is filled with zeros."""
    codes = codes.movedim(dim, -1).long()
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 8)).unflatten(-1, (-1, 8))
    words = sum(codes[..., i] << (4 * order[i]) for i in range(8))
    return torch.where(words >= 2**31, words - 2**32, words).int().movedim(-1, dim)


def int4_codes(weight, group, symmetric, scale_dtype):
    """Codes 0..15 [n, k], scales and zero points [n, groups], and the value (code - zero) * scale."""
    n, k = weight.shape
    codes, value = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k)
    scales, zeros = [], []
    for first in range(0, k, group):
        w = weight[:, first:first + group]
        if symmetric:
            scale = (w.abs().amax(dim=1, keepdim=True) / 7.5).to(scale_dtype).float()
            zero = torch.full_like(scale, 8.0)
        else:
            low, high = w.amin(dim=1, keepdim=True).clamp(max=0), w.amax(dim=1, keepdim=True).clamp(min=0)
            scale = ((high - low) / 15).to(scale_dtype).float()
            zero = (-low / scale).round().clamp(1, 15)
        code = ((w / scale).round() + zero).clamp(0, 15)
        codes[:, first:first + group] = code.int()
        value[:, first:first + group] = (code - zero) * scale
        scales.append(scale.to(scale_dtype))
        zeros.append(zero.int())
    return codes, torch.cat(scales, dim=1), torch.cat(zeros, dim=1), value


def quantise_as(kind, weight, group):
    """The tensors of one module by the part after its name, and the value that they stand for."""
    n, k = weight.shape
    if kind == "fp8_channel":
        codes, scale, value = quantise_fp8_channel(weight)
        return {"weight": codes, "weight_scale": scale}, value
    if kind == "fp8_tensor":
        scale = weight.abs().max() / 448.0
        codes = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}, codes.float() * scale
    if kind == "int8":
        scale = (weight.abs().amax(dim=1, keepdim=True) / 127.0).bfloat16()
        codes = (weight / scale.float()).round().clamp(-128, 127)
        return {"weight": codes.to(torch.int8), "weight_scale": scale}, codes * scale.float()
    if kind in ("pack", "pack_zeros"):
        codes, scales, zeros, value = int4_codes(weight, group, kind == "pack", torch.bfloat16)
        parts = {"weight_packed": nibbles_to_words(codes, 1), "weight_scale": scales, "weight_shape": torch.tensor([n, k])}
        if kind == "pack_zeros":
            parts["weight_zero_point"] = nibbles_to_words(zeros, 0)
        return parts, value
    if kind == "mxfp4":
        blocks = weight.view(n, k // 32, 32)
        exponent = torch.floor(torch.log2(blocks.abs().amax(dim=2, keepdim=True))) - 2
        magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        scaled = blocks * torch.exp2(-exponent)
        codes = (scaled.abs().unsqueeze(-1) - magnitudes).abs().argmin(dim=-1)
        value = magnitudes[codes] * scaled.sign() * torch.exp2(exponent)
        codes = codes + 8 * (scaled < 0)
        return {"blocks": (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8),
                "scales": (exponent.squeeze(2) + 127).to(torch.uint8)}, value.view(n, k)
    codes, scales, zeros, value = int4_codes(weight, group, False, torch.float16)
    if kind == "gptq":
        return {"qweight": nibbles_to_words(codes.T, 0), "qzeros": nibbles_to_words(zeros.T - 1, 1), "scales": scales.T,
                "g_idx": (torch.arange(k) // group).int(), "bias": torch.zeros(n, dtype=torch.float16)}, value
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    return {"qweight": nibbles_to_words(codes.T, 1, order), "qzeros": nibbles_to_words(zeros.T, 1, order), "scales": scales.T}, value


def stack_mxfp4(stored):
    """Per-expert blocks and scales -> gate_up_proj_blocks, ..._scales, down_proj_blocks, ..._scales of a layer."""
    layers = {m.group(1) for m in (re.match(r"(.*\.experts\.)0\.down_proj\.blocks$", name) for name in stored) if m}
    for base in layers:
        for part in ("blocks", "scales"):
            taken = {}
            for projection in ("gate_proj", "up_proj", "down_proj"):
                names = [name for name in (f"{base}{e}.{projection}.{part}" for e in range(1024)) if name in stored]
                taken[projection] = torch.stack([stored.pop(name) for name in names])
            stored[f"{base}gate_up_proj_{part}"] = torch.cat([taken["gate_proj"], taken["up_proj"]], dim=1)
            stored[f"{base}down_proj_{part}"] = taken["down_proj"]


def storage_of(name, rules):
    """The kind of the first rule whose pattern the name has; None: unquantised."""
    may_be = is_quantised(name) or re.search(r"experts\.(gate_up|down)_proj$", name)
    return next((kind for pattern, kind in rules if re.search(pattern, name)), None) if may_be else None


def is_quantised(name):
    return "_proj" in name and name.endswith(".weight") and ".layers." in name and not name.endswith("eh_proj.weight")


def stacked_state(values, template):
    """Released tensors as the parameters of transformers' model."""
    state = {}
    for name, tensor in template.items():
        if name in values:
            state[name] = values[name]
        elif name.endswith("mlp.experts.gate_up_proj"):
            base = name[: -len("gate_up_proj")]
            state[name] = torch.stack([torch.cat([values[f"{base}{e}.gate_proj.weight"], values[f"{base}{e}.up_proj.weight"]])
                                       for e in range(tensor.shape[0])])
        elif name.endswith("mlp.experts.down_proj"):
            base = name[: -len("down_proj")]
            state[name] = torch.stack([values[f"{base}{e}.down_proj.weight"] for e in range(tensor.shape[0])])
        elif tensor.numel() == 0:
            state[name] = tensor
        elif name == "lm_head.weight":  # tied
            state[name] = values["model.embed_tokens.weight"]
    return state


def write_config(directory, config):
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def write_weights(directory, tensors, shards):
    tensors = {name: t.contiguous() for name, t in sorted(tensors.items())}
    if shards == 1:
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        return
    names, weight_map, total = list(tensors), {}, 0
    for i in range(shards):
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in part}, os.path.join(directory, file), metadata={"format": "pt"})
        for n in part:
            weight_map[n] = file
            total += tensors[n].numel() * tensors[n].element_size()
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=1)
        f.write("\n")


def smallest_gap(keys, count):
    """Between the count-th and the next largest of each row; infinite when all are taken."""
    if count >= keys.shape[-1]:
        return float("inf")
    order = keys.sort(dim=-1, descending=True).values
    return (order[..., count - 1] - order[..., count]).min().item()


def router_gap(logits, module, config):
    """How far the closest decision of one router is from going the other way."""
    logits = logits.double()
    if config["model_type"] == "ernie4_5_moe":
        bias = module.moe_statics.e_score_correction_bias.double().squeeze()
        keys, grouped = torch.softmax(logits, dim=-1) + bias, False
    elif config["model_type"] == "minimax_m2":
        keys, grouped = logits.sigmoid() + module.watched_bias.double(), False
    elif config["model_type"] in ("gpt_oss", "llama4_text", "deepseek_v2", "qwen3_moe", "qwen2_moe", "qwen3_next", "mixtral", "olmoe", "hunyuan_v1_moe"):
        keys, grouped = logits, config.get("topk_method") == "group_limited_greedy"
    else:
        keys, grouped = logits.sigmoid() + module.e_score_correction_bias.double(), True
    gap = float("inf")
    groups = config.get("n_group", 1)
    if grouped and groups > 1:
        members = keys.view(keys.shape[0], groups, -1)
        score = members.max(dim=-1).values if keys is logits else members.topk(2, dim=-1).values.sum(dim=-1)
        gap = smallest_gap(score, config["topk_group"])
        kept = torch.zeros_like(score).scatter_(1, score.topk(config["topk_group"], dim=-1).indices, 1.0)
        keys = members.masked_fill(kept.unsqueeze(-1) == 0, float("-inf")).flatten(1)
    top_k = config.get("moe_k") or config.get("moe_topk") or config["num_experts_per_tok"]
    return min(gap, smallest_gap(keys, top_k[0] if isinstance(top_k, list) else top_k))


def watch_routers(model, config):
    """Collects every router's closest decision; returns the list and the hooks to remove."""
    gaps = []
    for m in model.modules():  # MiniMax keeps its router's bias one level up
        if hasattr(m, "gate") and hasattr(m, "e_score_correction_bias"):
            m.gate.watched_bias = m.e_score_correction_bias
    logits = 1 if config["model_type"] == "llama4_text" else 0
    hooks = [m.register_forward_hook(lambda module, _, out: gaps.append(router_gap(out[logits], module, config)))
             for name, m in model.named_modules() if name.endswith(("mlp.gate", "mlp.router", "feed_forward.router"))]
    return gaps, hooks


@torch.no_grad()
def run_rounded(model, config, ids, results=False):
    """The logits of a text when the input of every linear layer but the routers is rounded to bf16; and every expert's result."""
    routers = {m.weight.data_ptr() for name, m in model.named_modules() if name.endswith(("mlp.gate", "mlp.router", "shared_expert_gate"))}
    plain = torch.nn.functional.linear

    last = {p.untyped_storage().data_ptr() for name, p in model.named_parameters()
            if results and re.search(r"mlp\.(experts|shared_experts?)\.down_proj(_bias|\.weight)?$", name)}

    def rounding_linear(x, weight, bias=None):
        y = plain(x if weight.data_ptr() in routers else x.bfloat16().float(), weight, bias)
        return y.bfloat16().float() if weight.untyped_storage().data_ptr() in last else y

    def rounding_matmul(x, weight):  # gpt-oss's experts
        return plain_matmul(x.bfloat16().float(), weight)

    def rounding_add(x, y):  # and their bias
        both = plain_add(x, y)
        return both.bfloat16().float() if torch.is_tensor(y) and y.untyped_storage().data_ptr() in last else both

    plain_matmul, plain_add = torch.Tensor.__matmul__, torch.Tensor.__add__
    model.set_experts_implementation("eager")  # one linear call per expert
    gaps, hooks = watch_routers(model, config)
    torch.nn.functional.linear = rounding_linear
    torch.Tensor.__matmul__, torch.Tensor.__add__ = rounding_matmul, rounding_add
    try:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        torch.nn.functional.linear = plain
        torch.Tensor.__matmul__, torch.Tensor.__add__ = plain_matmul, plain_add
    for hook in hooks:
        hook.remove()
    return logits, min(gaps, default=float("inf"))


@torch.no_grad()
def run_oracle(model, config, prompt, num_generated):
    """Greedy continuation by whole forward passes, then the logits of the whole text; and the closest decisions."""
    gaps, hooks = watch_routers(model, config)
    ids, logit_gap = list(prompt), float("inf")
    for _ in range(num_generated):
        row = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logit_gap = min(logit_gap, smallest_gap(row[None], 1))
        ids.append(int(row.argmax()))
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return ids, logits, min(gaps, default=float("inf")), logit_gap


def load_oracle(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def write_golden(path, ids, logits, vocab_size):
    with open(path, "wb") as f:
        f.write(b"MFGL" + struct.pack("<4i", 1, NUM_PROMPT, len(ids) - NUM_PROMPT, vocab_size))
        f.write(struct.pack(f"<{len(ids)}i", *ids))
        f.write(logits.float().contiguous().numpy().astype("<f4").tobytes())


def make_case(name, out, attempt):
    storage, seed, options, config = CASES[name]
    config = {k: v for k, v in config.items() if v is not None or k == "q_lora_rank"}
    config["torch_dtype"] = CONFIG_DTYPES[storage]
    oracle_config = {k: v for k, v in config.items() if k != "quantization_config"}
    oracle_config["model_type"] = options.get("oracle_model_type", config["model_type"])
    if options.get("oracle"):
        oracle_config = oracle_of(oracle_config, options["oracle"])
    generator = torch.Generator().manual_seed(1000 * seed + attempt)

    directory = os.path.join(out, name)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    with tempfile.TemporaryDirectory() as scratch:
        write_config(scratch, oracle_config)
        template = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(scratch), attn_implementation="eager")
        template = template.float().eval()
        state = template.state_dict()
        shapes = released_names(state, config["model_type"])
        if template.config.tie_word_embeddings:
            shapes.pop("lm_head.weight", None)
        if options.get("mtp"):
            shapes.update(mtp_names(shapes, config))
        if options.get("flat_mtp"):
            shapes.update(flat_mtp_names(shapes, config))
        stored, values = {}, {}
        for tensor, shape in sorted(shapes.items()):
            w = random_tensor(tensor, shape, generator, config["model_type"])
            if tensor.endswith("e_score_correction_bias"):
                stored[tensor] = values[tensor] = w
            elif storage == "fp8" and is_quantised(tensor):
                stored[tensor], stored[tensor + "_scale_inv"], values[tensor] = quantise_fp8(w)
            elif storage == "fp8_channel" and is_quantised(tensor):
                stored[tensor], stored[tensor + "_scale"], values[tensor] = quantise_fp8_channel(w)
            elif storage_of(tensor, options.get("quantise", [])) == "mxfp4_stack":
                rows = w.transpose(1, 2)  # [E, n, k]
                parts, value = quantise_as("mxfp4", rows.flatten(0, 1), 32)
                values[tensor] = value.view(rows.shape).transpose(1, 2).contiguous()
                stored.update({f"{tensor}_{part}": t.unflatten(0, rows.shape[:2]) for part, t in parts.items()})
            elif storage_of(tensor, options.get("quantise", [])):
                kind = storage_of(tensor, options["quantise"])
                group = {"gptq": GPTQ["group_size"]}.get(kind, 32)
                parts, values[tensor] = quantise_as(kind, w, group)
                stored.update({tensor[: -len("weight")] + part: t for part, t in parts.items()})
            else:
                stored[tensor] = w.to(DTYPES[storage])
                values[tensor] = stored[tensor].float()
        stack_mxfp4(stored)
        if options.get("mtp"):  # a release repeats the ends of the main model in the extra layer
            prefix = f"model.layers.{config['num_hidden_layers']}."
            stored[prefix + "shared_head.head.weight"] = stored["lm_head.weight"].clone()
            stored[prefix + "embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
        spelled = {released(tensor, config): t for tensor, t in stored.items()}
        if config["model_type"] == "bailing_moe":
            fuse_qkv(spelled)
        written = config
        if options.get("multimodal"):
            architecture, model_type, prefix, others = options["multimodal"]
            written = dict(architectures=[architecture], model_type=model_type, text_config=config, torch_dtype=config["torch_dtype"],
                           vision_config=dict(model_type=f"{model_type}_vision_model", hidden_size=16))
            spelled = {prefix + tensor: t for tensor, t in spelled.items()}
            spelled.update({name: torch.ones(16, dtype=DTYPES[storage]) for name in others})
        write_config(directory, written)
        write_weights(directory, spelled, options.get("shards", 1))
        if oracle_config != written:
            write_weights(scratch, {released(tensor, oracle_config): t for tensor, t in values.items()}, 1)
        model = load_oracle(scratch if oracle_config != written else directory)

        prompt = torch.randint(2, config["vocab_size"], (NUM_PROMPT,), generator=generator).tolist()
        generated = options.get("generated", NUM_GENERATED)
        ids, logits, key_gap, logit_gap = run_oracle(model, oracle_config, prompt, generated)
        if key_gap < MIN_KEY_GAP or logit_gap < MIN_LOGIT_GAP:
            return key_gap, logit_gap, logits
        missing, unexpected = template.load_state_dict(stacked_state(values, state), strict=False)
        if missing or unexpected:
            raise SystemExit(f"{name}: {missing} {unexpected}")
        if not torch.equal(run_oracle(template, oracle_config, prompt, generated)[1], logits):
            raise SystemExit(f"{name}: from_pretrained does not read the released names as they are meant")
        if options.get("bf16"):
            rounded, rounded_gap = run_rounded(model, oracle_config, ids)
            if rounded_gap < MIN_BF16_KEY_GAP:
                return 0.0, logit_gap, logits
            print(f"{name}: bf16 activations: closest expert {rounded_gap:.2e}, "
                  f"largest change of a logit {(rounded - logits).abs().max():.3e}")
            write_golden(os.path.join(directory, "golden_bf16.bin"), ids, rounded, config["vocab_size"])
            rounded, rounded_gap = run_rounded(model, oracle_config, ids, results=True)
            if rounded_gap >= MIN_BF16_KEY_GAP:
                write_golden(os.path.join(directory, "golden_bf16_outputs.bin"), ids, rounded, config["vocab_size"])
    write_golden(os.path.join(directory, "golden.bin"), ids, logits, config["vocab_size"])
    return key_gap, logit_gap, logits


ROPE_CASES = [  # theta, dim, max positions, rope parameters
    (10000.0, 64, 163840, dict(rope_type="default")),
    (10000.0, 64, 163840, dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
                               mscale=1.0, mscale_all_dim=1.0)),
    (10000.0, 64, 163840, dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
                               mscale=0.707, mscale_all_dim=0.5)),
    (50000.0, 64, 131072, dict(rope_type="yarn", factor=32.0, original_max_position_embeddings=4096, beta_fast=1, beta_slow=1)),
    (150000.0, 64, 131072, dict(rope_type="yarn", factor=32.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
                                truncate=False)),
    (10000.0, 16, 4096, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16, beta_slow=2,
                             attention_factor=0.75)),
    (500000.0, 32, 8192, dict(rope_type="linear", factor=8.0)),
    (500000.0, 128, 131072, dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                 original_max_position_embeddings=8192)),
    (500000.0, 128, 163840, dict(rope_type="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0,
                                 original_max_position_embeddings=8192)),
]


def write_rope(path):
    with open(path, "wb") as f:
        f.write(b"MFRP" + struct.pack("<2i", 1, len(ROPE_CASES)))
        for theta, dim, limit, parameters in ROPE_CASES:
            config = DeepseekV3Config(qk_rope_head_dim=dim, max_position_embeddings=limit,
                                      rope_parameters=dict(parameters, rope_theta=theta))
            module = DeepseekV3RotaryEmbedding(config)
            positions = [p for p in (0, 1, 2, 3, 17, 63, 64, 1000, 4095, 4096, 8191, 65536, 131071, 163839) if p < limit]
            cos, sin = module(torch.zeros(1), torch.tensor([positions]))
            half = dim // 2
            table = torch.stack([cos[0, :, :half], sin[0, :, :half]], dim=-1)
            get = parameters.get
            kind = {"default": 0, "yarn": 1, "linear": 2, "llama3": 3}[parameters["rope_type"]]
            f.write(struct.pack("<5i", kind, dim, get("original_max_position_embeddings", 0), int(get("truncate", True)),
                                len(positions)))
            f.write(struct.pack("<8d", theta, get("factor", 1.0), get("beta_fast", get("high_freq_factor", 32.0)),
                                get("beta_slow", get("low_freq_factor", 1.0)),
                                get("mscale", 0.0), get("mscale_all_dim", 0.0), get("attention_factor", 0.0),
                                module.attention_scaling))
            f.write(module.inv_freq.numpy().astype("<f4").tobytes())
            f.write(struct.pack(f"<{len(positions)}i", *positions))
            f.write(table.contiguous().numpy().astype("<f4").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", default=sorted(CASES), choices=sorted(CASES))
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of sums
    torch.use_deterministic_algorithms(True)
    os.makedirs(args.out, exist_ok=True)
    write_rope(os.path.join(args.out, "rope.bin"))
    for name in args.only:
        for attempt in range(200):
            key_gap, logit_gap, logits = make_case(name, args.out, attempt)
            if key_gap >= MIN_KEY_GAP and logit_gap >= MIN_LOGIT_GAP:
                break
        else:
            raise SystemExit(f"{name}: no seed with clear decisions")
        size = sum(os.path.getsize(os.path.join(args.out, name, f)) for f in os.listdir(os.path.join(args.out, name)))
        print(f"{name}: attempt {attempt}, closest expert {key_gap:.2e}, closest token {logit_gap:.2e}, "
              f"largest logit {logits.abs().max():.3f}, {size} bytes")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
