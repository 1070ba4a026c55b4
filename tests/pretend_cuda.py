"""A GPU that is not there: tensors that say they lie on cuda:0, are computed on the CPU, and refuse what CUDA
refuses. On machines without a GPU it finds tensors on the wrong device, and what makes the host wait.

It has no streams, no rounding and no memory of CUDA's own: nothing is late, nothing runs out. Of the waits
inside an operation it knows those listed here.
"""

import contextlib
import itertools
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
# The host waits for the GPU: the shape of a result, or a branch of the caller, depends on values.
WAITING = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
COPYING = {"_to_copy", "copy_", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Besides the elementwise operations they take a single number that lies on the host.
TAKING_NUMBERS = {*INDEXING, "fill", "fill_", "index_fill", "masked_fill", "masked_fill_"}
# What torch.autocast("cuda") casts, of the functions that detectors call: C++ does so for its own tensors.
LOWER = ("conv2d", "linear", "matmul", "__matmul__")
FULL = ("softmax", "log_softmax", "group_norm", "layer_norm")


class CudaTensor(torch.Tensor):
    """What seems to lie on the GPU; `inner` holds its values.

    To C++ it is a meta tensor, of which autograd asks no driver; to Python it says cuda:0.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner):
        with torch.inference_mode(False):  # else no view of a parameter could be made in inference mode
            empty = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
            self = torch.Tensor._make_subclass(cls, empty)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {}, [])

    def __repr__(self, **_):
        return f"{self.inner} on {CUDA}"

    def get_device(self):
        return CUDA.index

    def numpy(self, **_):
        raise TypeError(f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):
        storage = self.inner.untyped_storage()
        SAVED[storage.data_ptr()] = storage
        return self.inner.__reduce_ex__(protocol)


SAVED = {}  # storages by their addresses, of which a file says that they were on a GPU


def inner_of(leaf):
    return leaf.inner if isinstance(leaf, CudaTensor) else leaf


def compute(operation, args, kwargs, waits):
    """What an operation gives, on the device where CUDA has it; raises what CUDA does."""
    name = operation.overloadpacket.__name__
    leaves = tree_leaves((args, kwargs))
    ours = any(isinstance(leaf, CudaTensor) for leaf in leaves)
    asked = kwargs.get("device")
    on_cuda = ours if asked is None else asked.type == "cuda"
    if asked is not None and asked.type == "meta":  # C++ asks where our tensor is; else it is meant
        on_cuda = ours or name == "scalar_tensor" or (name == "ones" and args[0] == [1])
    if not (ours or on_cuda):
        return operation(*args, **kwargs)
    if name not in COPYING:
        expect_one_device(operation, name, args, leaves)
    if waits_for_gpu(name, args, kwargs, on_cuda):
        waits.append(name)
    given = {id(inner_of(leaf)): leaf for leaf in leaves}  # what an operation in place gives back

    def wrapped(leaf):
        if not on_cuda or not isinstance(leaf, torch.Tensor):
            return leaf
        return given[id(leaf)] if id(leaf) in given else CudaTensor(leaf)

    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return tree_map(wrapped, operation(*tree_map(inner_of, args), **tree_map(inner_of, kwargs)))


def expect_one_device(operation, name, args, leaves):
    """Of the host's tensors CUDA takes indices, and single numbers in elementwise operations."""
    indices = {id(index) for index in args[1]} if name in INDEXING else set()
    numbers = name in TAKING_NUMBERS or name.startswith("_foreach") or torch.Tag.pointwise in operation.tags
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, CudaTensor) or id(leaf) in indices:
            continue
        if not numbers or leaf.dim() or (leaf is args[0] and name.endswith("_")):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{CUDA} and {leaf.device}! ({operation})"
            )


def waits_for_gpu(name, args, kwargs, on_cuda):
    """Whether the host goes on only after what it has launched; or copies memory that is not pinned."""
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        to_cuda = on_cuda if name == "_to_copy" else isinstance(args[0], CudaTensor)
        unblocked = kwargs.get("non_blocking") or True in args[2:]
        if to_cuda and not isinstance(source, CudaTensor):
            return not (unblocked and hasattr(source, "pinned"))
        return not to_cuda and not unblocked
    if name in INDEXING:  # by booleans: `nonzero`, and then an index
        return any(
            not isinstance(index, CudaTensor) or index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
            if index is not None
        )
    return name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None)


class PretendCuda(TorchDispatchMode):
    """The GPU. `waits`: the operations in which the host waited for it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {}, self.waits)


def cast(function, lower):
    """A function of torch's, under autocast."""

    def to_kind(leaf):
        kind = torch.get_autocast_dtype("cuda") if lower else torch.float32
        return leaf.to(kind) if isinstance(leaf, CudaTensor) and leaf.is_floating_point() else leaf

    def called(*args, **kwargs):
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = tree_map(to_kind, (args, kwargs))
        return function(*args, **kwargs)

    return called


@contextlib.contextmanager
def pretend_cuda():
    """A machine with one GPU, of 9.0, as long as the block lasts."""
    gpu = PretendCuda()
    nothing = ("_lazy_init", "reset_peak_memory_stats", "set_device", "synchronize", "set_rng_state")
    answers = {
        torch.cuda: {
            **dict.fromkeys(nothing),
            **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), 0),
            "is_available": True,
            "device_count": 1,
            "get_device_name": "pretended GPU",
            "get_device_capability": (9, 0),
            "is_bf16_supported": True,
            "is_current_stream_capturing": False,
            "max_memory_allocated": 10**9,
            "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        },
        torch.accelerator: {
            "is_available": True,
            "current_accelerator": CUDA,
            "current_device_index": 0,
            "set_device_index": None,
            "current_stream": SimpleNamespace(is_capturing=lambda: False),
        },
    }
    to, run = torch.Tensor.to, threading.Thread.run

    def to_numbered(tensor, *args, **more):  # which GPU "cuda" is, C++ would ask a driver
        return to(tensor, *(CUDA if str(arg) == "cuda" else arg for arg in args), **more)

    def pin_memory(tensor, *_):
        pinned = tensor.clone()
        pinned.pinned = True
        return pinned

    def run_with_gpu(thread):  # a mode is one thread's
        with gpu:
            run(thread)

    with pytest.MonkeyPatch.context() as patch:
        for place, named in answers.items():
            for name, answer in named.items():
                patch.setattr(place, name, lambda *_, _answer=answer, **__: _answer)
        patch.setattr(torch.cuda, "_initialized", True)
        patch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
        patch.setattr(torch.backends.cudnn, "enabled", False)  # it has operations of its own
        patch.setattr(torch.Tensor, "to", to_numbered)
        patch.setattr(torch.Tensor, "pin_memory", pin_memory)
        patch.setattr(threading.Thread, "run", run_with_gpu)
        for place, name in itertools.product((torch, torch.nn.functional, torch.Tensor), LOWER + FULL):
            if hasattr(place, name):
                patch.setattr(place, name, cast(getattr(place, name), name in LOWER))
        # A module gets new parameters: one of the host cannot become a CudaTensor.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        for name in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            patch.setattr(sys.modules[name], "_foreach_supported_types", [torch.Tensor, CudaTensor])
        with_foreach = ["cuda", "meta"]
        patch.setattr(
            torch.utils._foreach_utils, "_get_foreach_kernels_supported_devices", lambda: with_foreach
        )
        tag = (0, lambda storage: str(CUDA) if storage.data_ptr() in SAVED else None, lambda *_: None)
        patch.setattr(torch.serialization, "_package_registry", [tag, *torch.serialization._package_registry])
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that the mode sees torch.tensor(…, device="cuda:0")
        try:
            with gpu:
                yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
            SAVED.clear()
