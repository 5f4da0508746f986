"""moe_sum_reduce: the weighted sum of a token's columns, in a fixed order, in f32."""
import ctypes
from typing import Optional

import torch

from . import _abi
from ._device import check, device_for, lib, view


def sum_reduce(input_tensor, output_tensor, routed_scaling_factor, topk_weights, topk_ids, num_shared_columns):
    device = input_tensor.device
    d = device_for(input_tensor, "input_tensor")
    args = _abi.SumReduceArgs(routed_scaling_factor=routed_scaling_factor, num_shared_columns=num_shared_columns)
    args.x, args.out = view(input_tensor, "input_tensor", device), view(output_tensor, "output_tensor", device)
    args.topk_weights, args.topk_ids = view(topk_weights, "topk_weights", device), view(topk_ids, "topk_ids", device)
    error = _abi.Error()
    with d:
        check(lib.mf_moe_sum_reduce(d.handle, ctypes.byref(args), ctypes.byref(error)), error)


@torch.library.custom_op("moefuse::moe_sum_reduce", mutates_args=("output_tensor",))
def _moe_sum_reduce(input_tensor: torch.Tensor, output_tensor: torch.Tensor, routed_scaling_factor: float,
                    topk_weights: Optional[torch.Tensor] = None, topk_ids: Optional[torch.Tensor] = None,
                    num_shared_columns: int = 0) -> None:
    sum_reduce(input_tensor, output_tensor, routed_scaling_factor, topk_weights, topk_ids, num_shared_columns)


@_moe_sum_reduce.register_fake
def _(input_tensor, output_tensor, routed_scaling_factor, topk_weights=None, topk_ids=None, num_shared_columns=0):
    return None


def moe_sum_reduce(input_tensor, output_tensor, routed_scaling_factor=0, *, topk_weights=None, topk_ids=None, num_shared_columns=0):
    """sgl_kernel.moe_sum_reduce: output_tensor [T, H] = routed_scaling_factor * sum over columns of input_tensor [T, C, H].
    Beyond it: topk_weights f32 [T, C] weigh the columns, those whose topk_ids are negative are not read, and the last
    num_shared_columns are not multiplied by the factor."""
    _moe_sum_reduce(input_tensor, output_tensor, float(routed_scaling_factor), topk_weights, topk_ids, num_shared_columns)
