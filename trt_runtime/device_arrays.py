"""Arrays of other libraries that lie on the GPU, taken as they are: no copy, no import of that library.

PyCUDA's GPUArray, CuPy and Numba speak `__cuda_array_interface__`, PyTorch and CuPy DLPack. DLPack goes
first where both are there: it tells the library whose stream is going to read.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgfl.trt_runtime.cuda_calls import LEGACY_STREAM, Cuda

CUDA_DEVICES = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged
DLPACK_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}


@dataclass(frozen=True)
class DeviceArray:
    """Memory of somebody else on the device.

    Attributes:
        address: where it begins.
        shape, dtype: of its contents, which are contiguous in C's order.
        owner: what keeps it alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Part of it along the first axis, as `array[start:stop]`."""
        start, stop, _ = rows.indices(len(self))
        row = int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize
        shape = (stop - start, *self.shape[1:])
        return DeviceArray(self.address + start * row, shape, self.dtype, self.owner)


def is_on_device(array: Any) -> bool:
    """Whether `array` says that it lies on a GPU."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in CUDA_DEVICES
    return hasattr(array, "__cuda_array_interface__")


def borrow(array: Any, cuda: Cuda, stream: int) -> DeviceArray:
    """`array`, readable on `stream` once what its library has enqueued so far is done.

    Raises:
        ValueError: it lies on another device, or with gaps or another order, or its library keeps it.
    """
    through_dlpack = hasattr(array, "__dlpack_device__")
    borrowed, strides = _dlpack(array, stream) if through_dlpack else _interface(array, cuda, stream)
    device = cuda.device_of(borrowed.address)
    if device != cuda.device:
        where = "host memory" if device is None else f"device {device}"
        raise ValueError(f"expected an array on device {cuda.device}, this one lies in {where}; copy it over")
    if strides is not None and not _contiguous(borrowed.shape, strides):
        raise ValueError(
            f"expected a contiguous array, got shape {borrowed.shape} with strides of {strides} elements; "
            "make a contiguous copy"
        )
    return borrowed


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _interface(array: Any, cuda: Cuda, stream: int) -> tuple[DeviceArray, tuple[int, ...] | None]:
    """By `__cuda_array_interface__`, versions 2 and 3."""
    facts = array.__cuda_array_interface__
    # Version 3 names the stream that writes. Where it says None, and in version 2, which cannot say, it is
    # taken to be the default stream, which ours does not wait for by itself: so PyCUDA and Numba mean it.
    producer = facts.get("stream")
    event = cuda.event()
    try:
        cuda.record(event, LEGACY_STREAM if producer is None else int(producer))
        cuda.wait(stream, event)
    finally:
        cuda.destroy_event(event)  # CUDA keeps it until the wait is over
    dtype = np.dtype(facts["typestr"])
    strides = facts.get("strides")
    if strides is not None:
        strides = tuple(stride // dtype.itemsize for stride in strides)
    shape = tuple(map(int, facts["shape"]))
    return DeviceArray(int(facts["data"][0]), shape, dtype.name, array), strides


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _dlpack(array: Any, stream: int) -> tuple[DeviceArray, tuple[int, ...] | None]:
    """By DLPack. The capsule is kept and never consumed, so its own destructor gives the memory back."""
    try:
        capsule = array.__dlpack__(stream=stream)
    except BufferError as error:  # PyTorch's, for a tensor of another device than its current one
        raise ValueError(f"the array cannot be read where it is: {error}") from error
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    kind = DLPACK_KINDS.get(tensor.code, f"kind {tensor.code} of ")
    dtype = f"{kind}{tensor.bits}" if tensor.lanes == 1 else f"{kind}{tensor.bits}x{tensor.lanes}"
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule), strides
