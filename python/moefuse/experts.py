"""Grouped products over routed and shared slots, and the whole layer."""
import ctypes
import weakref
from typing import Optional, Sequence

import torch

from . import _abi
from ._device import check, device_for, dtype_of, keep, kept, lib, refuse_capture, view
from .combine import sum_reduce
from .gate import gate_args

_PLAIN = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def _format_of(weight, scale, block_shape, name):
    if weight.dtype in _PLAIN:
        return _PLAIN[weight.dtype]
    if scale is None:
        raise ValueError(f"{name}: {weight.dtype} weights need their scales")
    if weight.dtype == torch.float8_e4m3fn:
        if block_shape is None:
            return "fp8_channel"
        if list(block_shape) != [128, 128]:
            raise ValueError(f"block_shape: expected [128, 128]; got {list(block_shape)}")
        return "fp8_block"
    if weight.dtype == torch.int8:
        return "int8_channel"
    raise ValueError(f"{name}: dtype {weight.dtype} needs weight_format: int4_group or mxfp4")


class _Stack:
    """[E, n, k] weights of one kind with their scales, from which rows are cut as matrices."""

    def __init__(self, weight, scale, zero, form, group_size, name):
        if weight.dim() != 3 or weight.stride(2) != 1:
            raise ValueError(f"{name}: expected [E, rows, columns] with contiguous rows; got {list(weight.shape)}, "
                             f"strides {list(weight.stride())}")
        self.weight, self.scale, self.zero, self.form, self.group_size = weight, scale, zero, form, group_size
        packed = form in ("int4_group", "mxfp4")
        self.rows, self.columns = weight.shape[1], weight.shape[2] * (2 if packed else 1)
        self.per_scale = {"fp8_block": 128}.get(form, 1)
        if scale is not None:
            if form in ("fp8_channel", "int8_channel") and scale.dim() == 2:
                self.scale = scale = scale.unsqueeze(2)
            grid = {"fp8_block": [-(-self.rows // 128), -(-self.columns // 128)], "fp8_channel": [self.rows, 1],
                    "int8_channel": [self.rows, 1], "int4_group": [self.rows, -(-self.columns // (group_size or 1))],
                    "mxfp4": [self.rows, self.columns // 32]}[form]
            if list(scale.shape) != [weight.shape[0], *grid] or (scale.shape[2] > 1 and scale.stride(2) != 1):
                raise ValueError(f"{name}_scale: expected {[weight.shape[0], *grid]}; got {list(scale.shape)}")

    def matrix(self, expert, first, rows):
        m = _abi.Matrix(n=rows, k=self.columns, format=_abi.FORMAT[self.form])
        part = self.weight[expert, first:first + rows]
        m.data = part.data_ptr()
        m.row_stride = part.stride(0) * (2 if self.form in ("int4_group", "mxfp4") else 1)
        if self.scale is not None:
            if first % self.per_scale:
                raise ValueError(f"w1: expert width {first} is no multiple of {self.per_scale}, so gate and up share a block of scales")
            scale = self.scale[expert, first // self.per_scale:]
            m.scale, m.scale_row_stride = scale.data_ptr(), scale.stride(0)
            m.scale_dtype = _abi.MF_F8_E8M0 if scale.dtype == torch.uint8 else dtype_of(scale.dtype, "scale")
            m.group_size = self.group_size or 0
            if self.zero is not None:
                m.zero = self.zero[expert, first:].data_ptr()
        return m


class Experts:
    """A table of slots over stacked weights, which it keeps: w1 [E, 2I, H] (gate rows first; [E, I, H] for relu2), w2 [E, H, I].

    shared_w1 [S, 2I, H] and shared_w2 [S, H, I] are shared experts in slots E, E + 1, ...; they may have another format.
    weight_format names what the dtype does not tell: int4_group (two codes a byte, low nibble first) or mxfp4."""

    def __init__(self, w1, w2, *, w1_scale=None, w2_scale=None, w1_zero=None, w2_zero=None, w1_bias=None, w2_bias=None,
                 shared_w1=None, shared_w2=None, shared_w1_scale=None, shared_w2_scale=None, weight_format=None, block_shape=None,
                 group_size=None, activation="silu", act_dtype=None, act_quant="none", limit=0.0, alpha=1.702, beta=0.0, lbeta=0.0):
        if activation not in _abi.ACTIVATION:
            raise ValueError(f"activation: expected one of {', '.join(_abi.ACTIVATION)}; got {activation!r}")
        if act_quant not in _abi.ACT_QUANT:
            raise ValueError(f"act_quant: expected one of {', '.join(_abi.ACT_QUANT)}; got {act_quant!r}")
        self.device = device_for(w1, "w1")
        self.act_dtype = act_dtype or (w1.dtype if w1.dtype in _PLAIN else torch.bfloat16)
        given = {"w2": w2, "w1_scale": w1_scale, "w2_scale": w2_scale, "w1_zero": w1_zero, "w2_zero": w2_zero, "w1_bias": w1_bias,
                 "w2_bias": w2_bias, "shared_w1": shared_w1, "shared_w2": shared_w2, "shared_w1_scale": shared_w1_scale,
                 "shared_w2_scale": shared_w2_scale}
        for name, tensor in given.items():
            if tensor is not None and tensor.device != w1.device:
                raise ValueError(f"{name}: expected a tensor on {w1.device}, where w1 is; got one on {tensor.device}")
        form = weight_format or _format_of(w1, w1_scale, block_shape, "w1")
        self.num_routed, self.hidden_size = w1.shape[0], w2.shape[1]
        tables = [(_Stack(w1, w1_scale, w1_zero, form, group_size, "w1"), _Stack(w2, w2_scale, w2_zero, form, group_size, "w2"))]
        if shared_w1 is not None:
            shared_form = _format_of(shared_w1, shared_w1_scale, block_shape, "shared_w1")
            tables.append((_Stack(shared_w1, shared_w1_scale, None, shared_form, group_size, "shared_w1"),
                           _Stack(shared_w2, shared_w2_scale, None, shared_form, group_size, "shared_w2")))
        self.num_slots = sum(up.weight.shape[0] for up, _ in tables)
        self._tensors = (tables, w1_bias, w2_bias)
        gated = activation != "relu2"
        slots = (_abi.Slot * self.num_slots)()
        at = 0
        for table, (up, down) in enumerate(tables):
            width = up.rows // 2 if gated else up.rows
            if down.columns != width or down.rows != self.hidden_size or up.columns != self.hidden_size or \
                    down.weight.shape[0] != up.weight.shape[0]:
                raise ValueError(f"w1 {list(up.weight.shape)} and w2 {list(down.weight.shape)} do not fit: expected [E, 2I, H] and [E, H, I]")
            for expert in range(up.weight.shape[0]):
                s = slots[at]
                if gated:
                    s.gate = up.matrix(expert, 0, width)
                s.up = up.matrix(expert, width if gated else 0, width)
                s.down = down.matrix(expert, 0, self.hidden_size)
                if table == 0 and w1_bias is not None:
                    s.gate_bias, s.up_bias = w1_bias[expert].data_ptr(), w1_bias[expert, width:].data_ptr()
                if table == 0 and w2_bias is not None:
                    s.down_bias = w2_bias[expert].data_ptr()
                s.activation, s.limit, s.alpha, s.beta, s.lbeta = _abi.ACTIVATION[activation], limit, alpha, beta, lbeta
                at += 1
        for name, bias in (("w1_bias", w1_bias), ("w2_bias", w2_bias)):
            if bias is not None and (bias.dtype != torch.float32 or not bias.is_contiguous()):
                raise ValueError(f"{name}: expected contiguous float32; got {bias.dtype}")
        desc = _abi.ExpertsDesc(num_slots=self.num_slots, hidden_size=self.hidden_size, slots=slots,
                                act_dtype=dtype_of(self.act_dtype, "act_dtype"), act_quant=_abi.ACT_QUANT[act_quant])
        self.handle = ctypes.c_void_p()
        error = _abi.Error()
        refuse_capture(self.device.torch_device, "a table of experts is made with its first call")
        with self.device:
            check(lib.mf_experts_create(self.device.handle, ctypes.byref(desc), ctypes.byref(self.handle), ctypes.byref(error)), error)
        self._end = weakref.finalize(self, lib.mf_experts_destroy, ctypes.byref(self.handle))
        self.number = keep(self)

    def __call__(self, x, topk_ids, *, input_scale=None, out_dtype=None):
        """y [T, C, H]: every column's expert, not weighted.  Rows of negative ids are left as torch.empty gives them."""
        return _products(x, topk_ids, input_scale, self.number, self.hidden_size, out_dtype or x.dtype)


def products(table, x, topk_ids, input_scale, out_dtype):
    where = table.device.torch_device
    y = torch.empty(*topk_ids.shape, table.hidden_size, dtype=out_dtype, device=where)
    args = _abi.ExpertsArgs(experts=table.handle)
    args.x, args.topk_ids, args.y = view(x, "x", where), view(topk_ids, "topk_ids", where), view(y, "y", where)
    args.input_scale = view(input_scale, "input_scale", where)
    error = _abi.Error()
    with table.device:
        space, num_bytes, _owner = table.device.scratch(lib.mf_fused_experts_workspace_bytes(table.handle, *topk_ids.shape))
        check(lib.mf_fused_experts(table.device.handle, ctypes.byref(args), space, num_bytes, ctypes.byref(error)), error)
    return y


@torch.library.custom_op("moefuse::experts", mutates_args=())
def _products(x: torch.Tensor, topk_ids: torch.Tensor, input_scale: Optional[torch.Tensor], experts: int, hidden_size: int,
              out_dtype: torch.dtype) -> torch.Tensor:
    return products(kept(experts), x, topk_ids, input_scale, out_dtype)


@_products.register_fake
def _(x, topk_ids, input_scale, experts, hidden_size, out_dtype):
    return x.new_empty(*topk_ids.shape, hidden_size, dtype=out_dtype)


_tables = {}


def _experts_for(w1, w2, options):
    """The table over these very tensors; it lives as long as w1 does."""
    tensors = {k: v for k, v in options.items() if isinstance(v, torch.Tensor)}
    key = (w1.data_ptr(), w2.data_ptr(), tuple(w1.shape), tuple(w2.shape), w1.dtype,
           tuple(sorted((k, v.data_ptr()) for k, v in tensors.items())),
           tuple(sorted((k, str(v)) for k, v in options.items() if k not in tensors)))
    found = _tables.get(key)
    if found is None:
        # Views, so that the table does not keep the caller's own tensor objects alive: their end is its end.
        found = _tables[key] = Experts(w1.detach(), w2.detach(), **options)
        weakref.finalize(w1, _tables.pop, key, None)
    return found


@torch.library.custom_op("moefuse::fused_experts", mutates_args=("out",))
def _fused_experts(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor,
                   out: torch.Tensor, routed_scaling_factor: float, num_shared_columns: int, activation: str,
                   act_dtype: torch.dtype, act_quant: str, weight_format: Optional[str], block_shape: Optional[Sequence[int]],
                   group_size: Optional[int], limit: float, alpha: float, beta: float, lbeta: float,
                   w1_scale: Optional[torch.Tensor], w2_scale: Optional[torch.Tensor], w1_zero: Optional[torch.Tensor],
                   w2_zero: Optional[torch.Tensor], w1_bias: Optional[torch.Tensor], w2_bias: Optional[torch.Tensor],
                   shared_w1: Optional[torch.Tensor], shared_w2: Optional[torch.Tensor],
                   shared_w1_scale: Optional[torch.Tensor], shared_w2_scale: Optional[torch.Tensor]) -> None:
    table = _experts_for(w1, w2, dict(
        activation=activation, act_dtype=act_dtype, act_quant=act_quant, weight_format=weight_format, block_shape=block_shape,
        group_size=group_size, limit=limit, alpha=alpha, beta=beta, lbeta=lbeta, w1_scale=w1_scale, w2_scale=w2_scale,
        w1_zero=w1_zero, w2_zero=w2_zero, w1_bias=w1_bias, w2_bias=w2_bias, shared_w1=shared_w1, shared_w2=shared_w2,
        shared_w1_scale=shared_w1_scale, shared_w2_scale=shared_w2_scale))
    y = products(table, x, topk_ids, None, x.dtype)
    sum_reduce(y, out, routed_scaling_factor, topk_weights, topk_ids, num_shared_columns)


@_fused_experts.register_fake
def _(*_):
    return None


def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, inplace=False, activation="silu", *, routed_scaling_factor=1.0,
                  num_shared_columns=0, act_dtype=None, act_quant="none", weight_format=None, block_shape=None, group_size=None,
                  limit=0.0, alpha=1.702, beta=0.0, lbeta=0.0, w1_scale=None, w2_scale=None, w1_zero=None, w2_zero=None,
                  w1_bias=None, w2_bias=None, shared_w1=None, shared_w2=None, shared_w1_scale=None, shared_w2_scale=None):
    """vLLM's and SGLang's fused_experts: [T, H] -> [T, H], weighted and summed in f32.  w1 [E, 2I, H], w2 [E, H, I]; options are
    those of Experts (w1_scale, w2_scale, block_shape, shared_w1, ...).  A table over w1 and w2 is made with the first call."""
    out = hidden_states if inplace else torch.empty_like(hidden_states)
    _fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, out, float(routed_scaling_factor), num_shared_columns, activation,
                   act_dtype or hidden_states.dtype, act_quant, weight_format, block_shape, group_size, float(limit), float(alpha),
                   float(beta), float(lbeta), w1_scale, w2_scale, w1_zero, w2_zero, w1_bias, w2_bias, shared_w1, shared_w2,
                   shared_w1_scale, shared_w2_scale)
    return out


@torch.library.custom_op("moefuse::moe_layer", mutates_args=())
def _layer(x: torch.Tensor, router_logits: torch.Tensor, bias: Optional[torch.Tensor], shared_gate: Optional[torch.Tensor],
           residual: Optional[torch.Tensor], experts: int, gate: int, y_dtype: torch.dtype) -> torch.Tensor:
    table = kept(experts)
    d = table.device
    where = d.torch_device
    inner = gate_args(where, kept(gate), router_logits, bias, shared_gate, None)
    out = torch.empty(x.shape, dtype=x.dtype, device=where)
    args = _abi.LayerArgs(gate=ctypes.pointer(inner), experts=table.handle, mode=_abi.MODE["slot"], y_dtype=dtype_of(y_dtype, "y_dtype"))
    args.x, args.out, args.residual = view(x, "x", where), view(out, "out", where), view(residual, "residual", where)
    error = _abi.Error()
    with d:
        space, num_bytes, _owner = d.scratch(lib.mf_moe_layer_workspace_bytes(ctypes.byref(args)))
        check(lib.mf_moe_layer(d.handle, ctypes.byref(args), space, num_bytes, ctypes.byref(error)), error)
    return out


@_layer.register_fake
def _(x, router_logits, bias, shared_gate, residual, experts, gate, y_dtype):
    return x.new_empty(x.shape)


def moe_layer(x, router_logits, experts, config, *, e_score_correction_bias=None, shared_gate=None, residual=None, y_dtype=None):
    """One MoE layer with the shared experts as slots: gate_config's gate, Experts' products, the combine.  [T, H] -> [T, H]."""
    return _layer(x, router_logits, e_score_correction_bias, shared_gate, residual, experts.number, config.number, y_dtype or x.dtype)
