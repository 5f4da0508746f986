"""The fused gate: scores, groups, picks top-k and writes the shared columns in one call."""
import ctypes
import functools
from typing import Optional

import torch

from . import _abi
from ._device import check, device_for, keep, kept, lib, view


class Gate:
    """A gate's mf_gate_config, and a number that stands for it where torch traces."""

    def __init__(self, struct):
        self.struct, self.columns = struct, struct.top_k + struct.num_shared_slots
        self.number = keep(self)


def gate_config(num_experts, top_k, *, scoring, routed_scaling_factor, bias_domain="none", renorm="none", renorm_eps=None,
                n_group=1, topk_group=1, group_score=None, num_shared_slots=0, num_replicas=1, fold_scale=True,
                shared_weight="one"):
    """A Gate from names; include/moefuse.h says what each means."""

    def pick(table, name, value):
        if value not in table:
            raise ValueError(f"{name}: expected one of {', '.join(table)}; got {value!r}")
        return table[value]

    nan = float("nan")
    return Gate(_abi.GateConfig(
        num_experts=num_experts, top_k=top_k, num_shared_slots=num_shared_slots, num_replicas=num_replicas,
        num_physical_experts=-1, num_slots=-1, scoring=pick(_abi.SCORING, "scoring", scoring),
        bias_domain=pick(_abi.BIAS_DOMAIN, "bias_domain", bias_domain), renorm=pick(_abi.RENORM, "renorm", renorm),
        renorm_eps=nan if renorm_eps is None else renorm_eps, n_group=n_group, topk_group=topk_group,
        group_score=0 if group_score is None else pick(_abi.GROUP_SCORE, "group_score", group_score),
        routed_scaling_factor=routed_scaling_factor, fold_scale=int(fold_scale),
        shared_weight=pick(_abi.SHARED_WEIGHT, "shared_weight", shared_weight), shared_base=-1, shared_stride=-1, ep_rank=-1,
        window_count=-1))


def gate_args(device, gate, router_logits, bias, shared_gate, num_valid_tokens):
    args = _abi.GateArgs(config=ctypes.pointer(gate.struct))
    args.router_logits = view(router_logits, "router_logits", device)
    args.e_score_correction_bias = view(bias, "e_score_correction_bias", device)
    args.shared_gate = view(shared_gate, "shared_gate", device)
    args.num_valid_tokens = view(num_valid_tokens, "num_valid_tokens", device)
    return args


def _call(gate, router_logits, bias, shared_gate, num_valid_tokens):
    if router_logits.dim() != 2:
        raise ValueError(f"router_logits: expected [T, E]; got {list(router_logits.shape)}")
    d = device_for(router_logits, "router_logits")
    ids = torch.empty(router_logits.shape[0], gate.columns, dtype=torch.int32, device=router_logits.device)
    weights = torch.empty(router_logits.shape[0], gate.columns, dtype=torch.float32, device=router_logits.device)
    args = gate_args(router_logits.device, gate, router_logits, bias, shared_gate, num_valid_tokens)
    args.topk_ids, args.topk_weights = view(ids, "topk_ids", ids.device), view(weights, "topk_weights", ids.device)
    error = _abi.Error()
    with d:
        check(lib.mf_moe_fused_gate(d.handle, ctypes.byref(args), ctypes.byref(error)), error)
    return weights, ids


@torch.library.custom_op("moefuse::run_gate", mutates_args=())
def _run_gate(router_logits: torch.Tensor, bias: Optional[torch.Tensor], shared_gate: Optional[torch.Tensor],
              num_valid_tokens: Optional[torch.Tensor], gate: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _call(kept(gate), router_logits, bias, shared_gate, num_valid_tokens)


@_run_gate.register_fake
def _(router_logits, bias, shared_gate, num_valid_tokens, gate, columns):
    rows = router_logits.shape[0]
    return router_logits.new_empty(rows, columns, dtype=torch.float32), router_logits.new_empty(rows, columns, dtype=torch.int32)


def run_gate(config, router_logits, bias=None, shared_gate=None, num_valid_tokens=None):
    """(topk_weights f32 [T, C], topk_ids i32 [T, C]) of any gate that gate_config describes."""
    return _run_gate(router_logits, bias, shared_gate, num_valid_tokens, config.number, config.columns)


@functools.lru_cache(maxsize=64)
def _biased_grouped(num_experts, num_expert_group, topk_group, topk, shared, factor, on_output):
    return gate_config(
        num_experts, topk - shared, scoring="sigmoid", bias_domain="score", renorm="sum", n_group=num_expert_group,
        topk_group=topk_group, group_score="top2_sum" if num_expert_group > 1 else None, num_shared_slots=shared,
        routed_scaling_factor=factor, fold_scale=on_output, shared_weight="reciprocal" if shared and not on_output else "one")


@torch.library.custom_op("moefuse::moe_fused_gate", mutates_args=())
def _moe_fused_gate(input_tensor: torch.Tensor, bias: torch.Tensor, num_expert_group: int, topk_group: int, topk: int,
                    num_fused_shared_experts: int, routed_scaling_factor: float,
                    apply_routed_scaling_factor_on_output: bool) -> tuple[torch.Tensor, torch.Tensor]:
    gate = _biased_grouped(input_tensor.shape[1] if input_tensor.dim() == 2 else 0, num_expert_group, topk_group, topk,
                           num_fused_shared_experts, routed_scaling_factor, apply_routed_scaling_factor_on_output)
    return _call(gate, input_tensor, bias, None, None)


@_moe_fused_gate.register_fake
def _(input_tensor, bias, num_expert_group, topk_group, topk, num_fused_shared_experts, routed_scaling_factor,
      apply_routed_scaling_factor_on_output):
    rows = input_tensor.shape[0]
    return input_tensor.new_empty(rows, topk, dtype=torch.float32), input_tensor.new_empty(rows, topk, dtype=torch.int32)


def moe_fused_gate(input_tensor, bias, num_expert_group, topk_group, topk, num_fused_shared_experts=0, routed_scaling_factor=0,
                   apply_routed_scaling_factor_on_output=False):
    """sgl_kernel.moe_fused_gate: DeepSeek-V3's gate.  input_tensor [T, E] f32, bf16 or f16, bias [E]; topk counts the shared
    columns, which are the last ones, with ids E, E + 1, ... and weight 1 / routed_scaling_factor (1 when the factor is applied
    on the output).  Returns (topk_weights f32 [T, topk], topk_ids i32 [T, topk])."""
    factor = float(routed_scaling_factor)
    if not num_fused_shared_experts and not apply_routed_scaling_factor_on_output and factor == 0:
        factor = 1.0  # sgl's default, where the factor is not used at all
    return _moe_fused_gate(input_tensor, bias, num_expert_group, topk_group, topk, num_fused_shared_experts, factor,
                           apply_routed_scaling_factor_on_output)
