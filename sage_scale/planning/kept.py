"""What a piece of a model keeps between its forward and backward pass, by running it and looking at what it saves.

Counting by hand (as `encoder` and `stage2` do for SAGE) wants a formula for each layer; adapters in a language model of
any family have too many. What a layer keeps is linear in its rows, so a few rows of the real thing, at its real widths,
tell what thousands keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def kept_bytes(work: Callable[[], Any], weights: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that `work` saves for a backward pass, each piece of memory once, `weights` left out."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    held: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage  # held, so that no other gets its place meanwhile
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    total = sum(storage.nbytes() for storage in held.values())
    del result
    return total


def slope(work: Callable[[int], Any], first: int, second: int, weights: Iterable[Tensor] = ()) -> float:
    """Bytes that one more of what `work` takes a number of makes it keep."""
    weights = list(weights)
    few, many = (kept_bytes(partial(work, count), weights) for count in (first, second))
    return (many - few) / (second - first)
