"""moe_align_block_size: which rows each expert's blocks take."""
import ctypes

import torch

from . import _abi
from ._device import check, device_for, lib, view


def align_capacity(num_tokens, num_columns, block_size, num_experts):
    """Entries that sorted_token_ids needs."""
    return lib.mf_moe_align_capacity(num_tokens, num_columns, block_size, num_experts)


@torch.library.custom_op("moefuse::moe_align_block_size",
                         mutates_args=("sorted_token_ids", "experts_ids", "num_tokens_post_pad"))
def _align(topk_ids: torch.Tensor, num_experts: int, block_size: int, sorted_token_ids: torch.Tensor, experts_ids: torch.Tensor,
           num_tokens_post_pad: torch.Tensor) -> None:
    device = topk_ids.device
    d = device_for(topk_ids, "topk_ids")
    args = _abi.AlignArgs(block_size=block_size, num_slots=num_experts)
    args.topk_ids = view(topk_ids, "topk_ids", device)
    args.sorted_token_ids = view(sorted_token_ids, "sorted_token_ids", device)
    args.expert_ids = view(experts_ids, "experts_ids", device)
    args.num_tokens_post_padded = view(num_tokens_post_pad, "num_tokens_post_pad", device)
    error = _abi.Error()
    with d:
        workspace, num_bytes, _owner = d.scratch(lib.mf_moe_align_workspace_bytes(ctypes.byref(args)))
        check(lib.mf_moe_align_block_size(d.handle, ctypes.byref(args), workspace, num_bytes, ctypes.byref(error)), error)


@_align.register_fake
def _(topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad):
    return None


def moe_align_block_size(topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad, cumsum_buffer=None,
                         pad_sorted_token_ids=False):
    """sgl_kernel.moe_align_block_size, stable: within an expert the rows ascend.  cumsum_buffer is scratch there and is not
    touched; the padding is always written."""
    _align(topk_ids, num_experts, block_size, sorted_token_ids, experts_ids, num_tokens_post_pad)
