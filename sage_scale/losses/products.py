"""Matrix products in a chosen precision, accumulated in float32 (float64 stays float64).

float32    as it is, whatever the process allows elsewhere
tfloat32   on CUDA: 10 bits of mantissa in the factors; elsewhere float32
bfloat16   7 bits of mantissa in the factors, float32 in and out: on CPU oneDNN rounds inside its kernels (about 3.5
           times the float32 rate where the processor has AMX; plain float32 where it has no bfloat16 units), on CUDA
           the factors are rounded first
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "tfloat32", "bfloat16"]

ONEDNN_GRANULE = 64
"""oneDNN compiles a kernel for each shape: tiles are rounded up to multiples of this, so that shapes are few."""


def granule(precision: Precision, compute: torch.dtype, device: torch.device) -> int:
    """Returns the number that sizes of products should be multiples of; the caller pads with zeros."""
    return (
        ONEDNN_GRANULE if precision == "bfloat16" and compute == torch.float32 and device.type == "cpu" else 1
    )


def factor_type(precision: Precision, compute: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns the dtype of the factors of `multiply` and `accumulate`."""
    rounded = precision == "bfloat16" and compute == torch.float32 and device.type != "cpu"
    return torch.bfloat16 if rounded else compute


def multiply(left_RK: Tensor, right_KC: Tensor, out_RC: Tensor) -> None:
    """Compute out = left @ right; factors of a narrower dtype are accumulated in the precision of `out`."""
    if left_RK.dtype == out_RC.dtype:
        torch.mm(left_RK, right_KC, out=out_RC)
    else:
        torch.mm(left_RK, right_KC, out_dtype=out_RC.dtype, out=out_RC)


def accumulate(sum_RC: Tensor, left_RK: Tensor, right_KC: Tensor) -> None:
    """Compute sum += left @ right."""
    if left_RK.dtype == sum_RC.dtype:
        torch.addmm(sum_RC, left_RK, right_KC, out=sum_RC)
    else:
        sum_RC.add_(torch.mm(left_RK, right_KC, out_dtype=sum_RC.dtype))


@contextmanager
def precision_of_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set the precision of float32 products on `device` within this context.

    The setting is process-wide; autocast, which would override it, is disabled.
    """
    wanted = {"cpu": {"bfloat16": "bf16"}, "cuda": {"tfloat32": "tf32"}}.get(device.type, {})
    backend: Any = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = wanted.get(precision, "ieee")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        backend.matmul.fp32_precision = before
