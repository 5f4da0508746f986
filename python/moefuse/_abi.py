"""include/moefuse.h in ctypes: the same names, field by field.  tests/python/abi_test.py compares every offset."""
import ctypes
import os
import pathlib

__version__ = "0.1.0"

i32, i64, f32, f64, ptr, size = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_void_p, ctypes.c_size_t
enum = ctypes.c_int

MF_F32, MF_BF16, MF_F16, MF_F64, MF_F8_E4M3, MF_F8_E8M0, MF_I8, MF_U8, MF_I32, MF_I64 = range(10)
SCORING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 3, "sqrtsoftplus_log1p": 4, "topk_softmax": 5, "topk_sigmoid": 6}
BIAS_DOMAIN = {"none": 1, "score": 2, "logit": 3}
RENORM = {"none": 1, "sum": 2, "sum_eps": 3, "sum_floor": 4}
GROUP_SCORE = {"max": 1, "top2_sum": 2}
SHARED_WEIGHT = {"one": 0, "per_token": 1, "reciprocal": 2}
FORMAT = {"f32": 0, "bf16": 1, "f16": 2, "fp8_block": 3, "fp8_channel": 4, "int8_channel": 5, "int4_group": 6, "mxfp4": 7}
ACTIVATION = {"silu": 0, "silu_clamp": 1, "silu_clamp_after": 2, "swiglu_oai": 3, "gelu_tanh": 4, "gelu": 5, "situ": 6, "relu2": 7}
ACT_QUANT = {"none": 0, "w8a8": 1, "w8a8_e8m0": 2, "int8": 3}
MODE = {"slot": 0, "overlap": 1, "serial": 2}


class Error(ctypes.Structure):
    _fields_ = [("status", enum), ("message", ctypes.c_char * 1016)]


class Tensor(ctypes.Structure):
    _fields_ = [("data", ptr), ("dtype", enum), ("ndim", i32), ("shape", i64 * 4), ("stride", i64 * 4)]


class DeviceOptions(ctypes.Structure):
    _fields_ = [("num_threads", i32), ("pin_threads", i32), ("numa", enum)]


class GateConfig(ctypes.Structure):
    _fields_ = [
        ("num_experts", i32), ("top_k", i32), ("num_zero_experts", i32), ("num_shared_slots", i32), ("num_replicas", i32),
        ("num_physical_experts", i32), ("num_slots", i32), ("scoring", enum), ("bias_domain", enum), ("renorm", enum),
        ("renorm_eps", f64), ("n_group", i32), ("topk_group", i32), ("group_score", enum), ("routed_scaling_factor", f64),
        ("fold_scale", i32), ("shared_weight", enum), ("shared_base", i32), ("shared_stride", i32), ("ep_size", i32),
        ("ep_rank", i32), ("window_first", i64), ("window_count", i64), ("out_order", enum), ("pack", i32), ("hash", i32),
        ("input_scale_supported", i32), ("softcap_given", i32), ("jitter_given", i32),
    ]


GATE_INPUTS = ("router_logits", "e_score_correction_bias", "bias_alt", "row_is_alt", "per_expert_scale", "shared_gate",
               "expert_mask", "hash_table", "token_ids", "expert_map", "expert_copies", "num_valid_tokens", "row_valid")
GATE_OUTPUTS = ("topk_ids", "topk_weights", "identity_weight", "packed", "histogram", "load", "bad_rows", "error_count")


class GateArgs(ctypes.Structure):
    _fields_ = ([("config", ctypes.POINTER(GateConfig))] + [(name, Tensor) for name in GATE_INPUTS] + [("row_base", i64)] +
                [(name, Tensor) for name in GATE_OUTPUTS])


class AlignArgs(ctypes.Structure):
    _fields_ = [("topk_ids", Tensor), ("block_size", i64), ("num_slots", i64), ("histogram", Tensor), ("sorted_token_ids", Tensor),
                ("expert_ids", Tensor), ("num_tokens_post_padded", Tensor), ("offsets", Tensor), ("error_count", Tensor)]


class Matrix(ctypes.Structure):
    _fields_ = [("data", ptr), ("n", i64), ("k", i64), ("row_stride", i64), ("format", enum), ("scale", ptr), ("scale_dtype", enum),
                ("scale_row_stride", i64), ("group_size", i64), ("zero", ptr)]


class Slot(ctypes.Structure):
    _fields_ = [("gate", Matrix), ("up", Matrix), ("down", Matrix), ("gate_bias", ptr), ("up_bias", ptr), ("down_bias", ptr),
                ("activation", enum), ("limit", f32), ("alpha", f32), ("beta", f32), ("lbeta", f32), ("input_scale13", f32),
                ("input_scale2", f32)]


class ExpertsDesc(ctypes.Structure):
    _fields_ = [("num_slots", i64), ("hidden_size", i64), ("slots", ctypes.POINTER(Slot)), ("act_dtype", enum), ("act_quant", enum)]


class ExpertsArgs(ctypes.Structure):
    _fields_ = [("experts", ptr), ("x", Tensor), ("topk_ids", Tensor), ("input_scale", Tensor), ("y", Tensor)]


class SumReduceArgs(ctypes.Structure):
    _fields_ = [("x", Tensor), ("topk_ids", Tensor), ("topk_weights", Tensor), ("routed_scaling_factor", f32),
                ("num_shared_columns", i32), ("identity_weight", Tensor), ("hidden", Tensor), ("num_addends", i32),
                ("addends", ctypes.POINTER(Tensor)), ("addend_weights", Tensor), ("residual", Tensor), ("num_valid_tokens", Tensor),
                ("row_valid", Tensor), ("out", Tensor)]


class LayerArgs(ctypes.Structure):
    _fields_ = [("gate", ctypes.POINTER(GateArgs)), ("experts", ptr), ("shared", ptr), ("mode", enum), ("unfused_gate", i32),
                ("y_dtype", enum), ("x", Tensor), ("shared_gate_weight", Tensor), ("residual", Tensor), ("out", Tensor)]


STRUCTS = {"mf_error": Error, "mf_tensor": Tensor, "mf_device_options": DeviceOptions, "mf_gate_config": GateConfig,
           "mf_gate_args": GateArgs, "mf_align_args": AlignArgs, "mf_matrix": Matrix, "mf_slot": Slot, "mf_experts_desc": ExpertsDesc,
           "mf_experts_args": ExpertsArgs, "mf_sum_reduce_args": SumReduceArgs, "mf_layer_args": LayerArgs}


def find_library():
    """MOEFUSE_LIBRARY, else the wheel's own, else whatever the system's loader finds."""
    given = os.environ.get("MOEFUSE_LIBRARY")
    if given:
        return given
    own = pathlib.Path(__file__).resolve().parent / "lib" / "libmoefuse_kernels.so"
    return str(own) if own.exists() else "libmoefuse.so.0"


def load():
    lib = ctypes.CDLL(find_library())
    error = ctypes.POINTER(Error)
    signatures = {
        "mf_version": (ctypes.c_char_p, []),
        "mf_device_open": (enum, [ctypes.c_char_p, ctypes.POINTER(DeviceOptions), ctypes.POINTER(ptr), error]),
        "mf_device_description": (ctypes.c_char_p, [ptr]),
        "mf_device_set_stream": (enum, [ptr, ptr, error]),
        "mf_moe_fused_gate": (enum, [ptr, ctypes.POINTER(GateArgs), error]),
        "mf_moe_align_capacity": (i64, [i64, i64, i64, i64]),
        "mf_moe_align_workspace_bytes": (size, [ctypes.POINTER(AlignArgs)]),
        "mf_moe_align_block_size": (enum, [ptr, ctypes.POINTER(AlignArgs), ptr, size, error]),
        "mf_experts_create": (enum, [ptr, ctypes.POINTER(ExpertsDesc), ctypes.POINTER(ptr), error]),
        "mf_experts_destroy": (None, [ctypes.POINTER(ptr)]),
        "mf_fused_experts_workspace_bytes": (size, [ptr, i64, i64]),
        "mf_fused_experts": (enum, [ptr, ctypes.POINTER(ExpertsArgs), ptr, size, error]),
        "mf_moe_sum_reduce": (enum, [ptr, ctypes.POINTER(SumReduceArgs), error]),
        "mf_moe_layer_workspace_bytes": (size, [ctypes.POINTER(LayerArgs)]),
        "mf_moe_layer": (enum, [ptr, ctypes.POINTER(LayerArgs), ptr, size, error]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    found = lib.mf_version().decode()
    if found.split(".")[:2] != __version__.split(".")[:2]:
        raise ImportError(f"libmoefuse is version {found}; expected {__version__}: set MOEFUSE_LIBRARY, or reinstall")
    return lib
