"""A GPU that is not there: its tensors lie in host memory, and what a real one would refuse is an error.

Within `VirtualGpu()`, `tensor.to("cuda:0")`, `module.to(...)` and `torch.zeros(..., device=...)` give tensors that
Python sees on `cuda:0`, with the CPU's numbers. Operands on two devices, a CUDA index into a tensor of the host,
`.numpy()` of what is on the GPU and a fused optimizer with a part of its state on the host raise RuntimeError or
TypeError, as on a GPU. What it cannot show: kernels, autocast's lists, streams, memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

_MAY_MIX = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}


class OnGpu(Tensor):
    """A tensor of the GPU; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=held.device,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    # Python's view alone: torch's core takes the tensor for the host's, which it is.

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return aten._to_copy(self, device=torch.device("cpu"))

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, str | torch.device):
                device = torch.device(value)
        if device is not None and not _is_cuda(device):
            return aten._to_copy(self, device=device, dtype=dtype)
        return self if dtype in (None, self.dtype) else aten._to_copy(self, dtype=dtype)

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(CUDA)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def storage(self) -> Any:
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"


class VirtualGpu(TorchDispatchMode):
    """Within it there is one GPU."""

    def __enter__(self) -> VirtualGpu:
        self._saved = torch.cuda._lazy_init, torch.tensor, torch.as_tensor, nn.Module._apply
        torch.cuda._lazy_init = lambda: None
        torch.tensor, torch.as_tensor = map(_below_the_dispatcher, self._saved[1:3])
        nn.Module._apply = _Moves().apply
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.cuda._lazy_init, torch.tensor, torch.as_tensor, nn.Module._apply = self._saved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moves:
    """Modules to another device by new parameters; torch would put the new numbers into the old ones."""

    def __init__(self) -> None:
        self._new: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    @property
    def apply(self) -> Any:
        moves = self

        def _apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
            for child in module.children():
                child._apply(function)
            for name, old in module._parameters.items():
                module._parameters[name] = moves._moved(old, function)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else function(buffer)
            return module

        return _apply

    def _moved(self, old: nn.Parameter | None, function: Any) -> nn.Parameter | None:
        if old is None or id(old) in self._new:
            return None if old is None else self._new[id(old)][1]  # tied weights stay tied
        with torch.no_grad():
            value = function(old.detach())
        if value.dtype == old.dtype and isinstance(value, OnGpu) == isinstance(old, OnGpu):
            return old
        self._new[id(old)] = old, nn.Parameter(value, old.requires_grad)
        return self._new[id(old)][1]


def _below_the_dispatcher(make: Any) -> Any:
    """`torch.tensor` and `torch.as_tensor` build theirs where no mode sees it."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        return make(*args, **kwargs).to(CUDA) if _is_cuda(device) else make(*args, device=device, **kwargs)

    return made


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(value, OnGpu) for value in tensors)
    wanted = kwargs.get("device")
    if there:
        _check(func, args, tensors)
    to_gpu = there if wanted is None else _is_cuda(wanted)
    if func is aten.copy_.default:
        to_gpu = isinstance(args[0], OnGpu)
    if _in_derivative():
        to_gpu = there or not tensors
    if _is_cuda(wanted):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func is aten._local_scalar_dense.default or not to_gpu:
        return out
    wrapped = tree_map(lambda value: OnGpu(value) if isinstance(value, Tensor) else value, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raise what a GPU would of these operands."""
    if func in _MAY_MIX:
        return
    if func in _INDEXED:  # an index may lie on the host, where what is indexed does not
        if not isinstance(args[0], OnGpu):
            raise RuntimeError(f"{func}: the indices are on cuda:0, what is indexed on cpu")
        tensors = [value for value in (args[0], *args[2:3]) if isinstance(value, Tensor)]
    fused = "_fused_" in str(func)  # its kernel reads even single numbers where the weights are
    strangers = [value for value in tensors if not isinstance(value, OnGpu) and (fused or value.dim())]
    if strangers:
        raise RuntimeError(f"{func}: operands on cuda:0 and, {[tuple(s.shape) for s in strangers]}, on cpu")


def _in_derivative() -> bool:
    """Whether one of torch's own derivatives runs: it makes tensors where it takes its operands to be, on the host."""
    node = torch._C._current_autograd_node()
    return node is not None and not isinstance(node, BackwardCFunction)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value
