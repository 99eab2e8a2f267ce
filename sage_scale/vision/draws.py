"""Random numbers as functions of a key, so that no layout of ranks, batches or workers changes a draw.

A counter-based hash (the finaliser of SplitMix64, Steele et al. 2014) on int64 tensors: the same on every device, free
of state, and the same again when a step is recomputed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def mix(key: Tensor, counter: Tensor | int) -> Tensor:
    """int64 hash of two int64 tensors (or a tensor and a number), elementwise with broadcasting."""
    if isinstance(counter, Tensor):
        z = key + counter * _GOLDEN + _GOLDEN
    else:
        z = key + _wrap(counter * _GOLDEN + _GOLDEN)
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def uniform(key: Tensor, counter: Tensor | int) -> Tensor:
    """float32 in [0, 1), of 24 bits, with the shape of `mix(key, counter)`."""
    return _shift(mix(key, counter), 40).to(torch.float32) / 2**24


def view_draw(key: str, view: int) -> int:
    """What decides the change of a clip's augmented view: of its key (16 hex digits) and the view alone, so that
    whoever makes the view, and when, makes the same one."""
    return (int(key, 16) ^ (view * 0x9E3779B97F4A7C15)) & ((1 << 62) - 1)


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask makes the shift a logical one.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
