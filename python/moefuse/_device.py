"""Devices, tensors and errors: what every op needs between torch and the C library."""
import ctypes
import itertools
import threading
import weakref

import torch

from . import _abi

lib = _abi.load()

_DTYPES = {torch.float32: _abi.MF_F32, torch.bfloat16: _abi.MF_BF16, torch.float16: _abi.MF_F16, torch.float64: _abi.MF_F64,
           torch.float8_e4m3fn: _abi.MF_F8_E4M3, torch.int8: _abi.MF_I8, torch.uint8: _abi.MF_U8, torch.int32: _abi.MF_I32,
           torch.int64: _abi.MF_I64, torch.bool: _abi.MF_U8}


class MoefuseError(RuntimeError):
    """status: mf_status's number; the text is the library's."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def check(status, error):
    """Wrong arguments are ValueErrors, as torch's are."""
    if status == 1:
        raise ValueError(error.message.decode(errors="replace"))
    if status != 0:
        raise MoefuseError(status, error.message.decode(errors="replace"))


def dtype_of(dtype, name):
    found = _DTYPES.get(dtype)
    if found is None:
        raise ValueError(f"{name}: dtype {dtype} is not supported")
    return found


def view(tensor, name, device):
    """An mf_tensor over a torch tensor's memory; None is an absent one."""
    t = _abi.Tensor()
    if tensor is None:
        return t
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}; got one on {tensor.device}")
    if tensor.dim() > 4:
        raise ValueError(f"{name}: expected at most 4 dimensions; got {tensor.dim()}")
    t.data, t.dtype, t.ndim = tensor.data_ptr(), dtype_of(tensor.dtype, name), tensor.dim()
    for i in range(tensor.dim()):
        t.shape[i], t.stride[i] = tensor.shape[i], tensor.stride(i)
    if tensor.numel() == 0:
        t.data = t.data or 64  # torch gives empty tensors no address; an absent argument is something else
    return t


class Device:
    """One device of the library and its workspace; calls from several threads take turns."""

    def __init__(self, torch_device):
        self.lock = threading.Lock()
        self.torch_device = torch_device
        self.handle = ctypes.c_void_p()
        self.kept = None  # the CPU's workspace
        self.stream = None
        options = _abi.DeviceOptions(num_threads=torch.get_num_threads())
        error = _abi.Error()
        name = "cpu" if torch_device.type == "cpu" else f"cuda:{torch_device.index}"
        refuse_capture(torch_device, "the library's device opens with its first call")
        check(lib.mf_device_open(name.encode(), ctypes.byref(options), ctypes.byref(self.handle), ctypes.byref(error)), error)

    def __enter__(self):
        """The device is this thread's, and its calls go to torch's current stream, after those of the stream before."""
        self.lock.acquire()
        try:
            if self.torch_device.type == "cuda":
                stream = torch.cuda.current_stream(self.torch_device)
                handle = stream.cuda_stream or 1  # cudaStreamLegacy: 0 would be the library's own
                if handle != self.stream:
                    if self.stream is not None and not torch.cuda.is_current_stream_capturing():
                        stream.wait_stream(self.torch_stream)  # one device's calls share counters
                    error = _abi.Error()
                    check(lib.mf_device_set_stream(self.handle, handle, ctypes.byref(error)), error)
                    self.stream, self.torch_stream = handle, stream
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_):
        self.lock.release()

    def scratch(self, num_bytes):
        """(pointer, bytes, owner), 64-byte aligned, for a call that is made before the owner goes.  On CUDA torch's allocator
        keeps it for the stream, or in a graph's own memory while one is captured."""
        if self.torch_device.type == "cuda":
            owner = torch.empty(num_bytes + 64, dtype=torch.uint8, device=self.torch_device)
        else:
            if self.kept is None or self.kept.numel() < num_bytes + 64:
                self.kept = torch.empty(num_bytes + 64, dtype=torch.uint8)
            owner = self.kept
        return ctypes.c_void_p((owner.data_ptr() + 63) & ~63), num_bytes, owner


def refuse_capture(torch_device, why):
    if torch_device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"a CUDA graph is being captured, and {why}: call it once before the capture")


_kept = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def keep(thing):
    """A number for something that torch's operators cannot take; it lasts as long as the thing."""
    number = next(_numbers)
    _kept[number] = thing
    return number


def kept(number):
    return _kept[number]


_devices = {}
_devices_lock = threading.Lock()


def device_for(tensor, name):
    """The library's device for a tensor's; opened once."""
    where = tensor.device
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a CPU or CUDA tensor; got one on {where}")
    with _devices_lock:
        if where not in _devices:
            _devices[where] = Device(where)
        return _devices[where]


def device_description(device="cpu"):
    """What the library runs on: "cpu amx, 2 threads"."""
    return lib.mf_device_description(device_for(torch.empty(0, device=device), "device").handle).decode()
