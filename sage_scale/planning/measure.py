"""Memory that a training step keeps for its backward pass, and operations of the frame encoder, both measured.

Memory is measured by the forward pass on fake tensors, operations by torch's counter on the meta device.

A fake tensor (torch's FakeTensorMode) has shape, type and device, and no memory: a model of any size is measured in
seconds, and no weights are read. Whole numbers that decide shapes (lengths, segments) are real tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sage_scale.config import Recipe
from sage_scale.nn.frame_encoder import make_frame_encoder

M = TypeVar("M", bound=nn.Module)
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
REST = ""
"""Part of the tensors that are saved outside of the named modules."""


def without_memory(make: Callable[[], M]) -> M:
    """Returns the module that `make` makes, with weights that have no memory."""
    with torch.device("meta"):
        module = make()
    with _FAKE:
        return module.to_empty(device="cpu")


def fake_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns a fake tensor."""
    with _FAKE:
        return torch.empty(shape, dtype=dtype)


@contextmanager
def autocast(precision: str) -> Iterator[None]:
    """Set a stage's `precision` with the types that a GPU has: its autocast normalises in float32."""
    if precision == "fp32":
        yield
    else:
        with torch.autocast("cpu", torch.bfloat16), _Float32Norms():
            yield


class _Float32Norms(TorchFunctionMode):
    """CUDA's autocast runs layer and group norms in float32, the CPU's in the type of their input."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.layer_norm, F.group_norm):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def kept_per_clip(
    forward: Callable[[int], Any], model: nn.Module, parts: Mapping[str, Sequence[nn.Module | None]]
) -> dict[str, float]:
    """Returns the bytes that `forward` of one clip more (its argument) keeps, by part: modules of `model`; `REST`."""
    one, two = (kept_bytes(partial(forward, clips), model, parts) for clips in (1, 2))
    return {name: float(two[name] - one[name]) for name in one}


def kept_bytes(
    forward: Callable[[], Any], model: nn.Module, parts: Mapping[str, Sequence[nn.Module | None]]
) -> dict[str, int]:
    """Returns the bytes of the tensors that `forward` saves for a backward pass, each piece of memory once, by part.

    A tensor belongs to the innermost module that runs. Weights and buffers do not count.
    """
    known = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    held: dict[int, Any] = {}
    found, inside = dict.fromkeys((*parts, REST), 0), [REST]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known and storage._cdata not in held:
            held[storage._cdata] = storage  # held, so that no other gets its address meanwhile
            found[inside[-1]] += storage.nbytes()
        return tensor

    with _named(parts, inside), saved_tensors_hooks(pack, lambda tensor: tensor), _RealIndices():
        result = forward()
    del result
    return found


@contextmanager
def _named(parts: Mapping[str, Sequence[nn.Module | None]], inside: list[str]) -> Iterator[None]:
    """Keep the name of the part that runs at the end of `inside`."""
    handles = []
    for name, modules in parts.items():
        for module in filter(None, modules):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def frame_operations(recipe: Recipe) -> tuple[float, float]:
    """Returns the operations of the trained frame encoder on one frame: of the forward pass, and with the backward pass
    (pixels have no gradient)."""
    side = recipe.vision.crop
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        encoder = make_frame_encoder(recipe).eval()
        with FlopCounterMode(display=False) as counter:
            rows = encoder(torch.zeros(1, 3, side, side))
            forward = counter.get_total_flops()
            rows.sum().backward()
    return float(forward), float(counter.get_total_flops())


class _RealIndices(TorchDispatchMode):
    """Turns a real mask into whole numbers before it selects from a fake tensor, whose shape would not be known."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            indices: list[Any] = []
            for index in args[1]:
                mask = index is not None and index.dtype is torch.bool
                indices += index.nonzero().unbind(1) if mask else [index]
            args = (args[0], indices, *args[2:])
        return func(*args, **(kwargs or {}))
