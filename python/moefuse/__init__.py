"""moefuse for PyTorch: the mixture-of-experts ops of libmoefuse on torch tensors.

    from moefuse import moe_fused_gate, moe_sum_reduce      # in place of: from sgl_kernel import ...

Ids, weights, alignments and sums have the same bits on every device and in every batch."""
from ._abi import __version__
from ._device import MoefuseError, device_description
from .align import align_capacity, moe_align_block_size
from .combine import moe_sum_reduce
from .experts import Experts, fused_experts, moe_layer
from .gate import gate_config, moe_fused_gate, run_gate

__all__ = ["Experts", "MoefuseError", "align_capacity", "device_description", "fused_experts", "gate_config", "moe_align_block_size",
           "moe_fused_gate", "moe_layer", "moe_sum_reduce", "run_gate", "__version__"]
