"""Accelerators by name: memory and dense matrix rate, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device."""

    memory_gb: float
    """Memory, 10^9 bytes."""
    bf16_tflops: float
    """Dense bfloat16 products accumulated in float32, 10^12 operations a second."""


GPUS: dict[str, Gpu] = {
    "rtx3090": Gpu(24, 71),
    "rtx4090": Gpu(24, 165),
    "l40s": Gpu(48, 362),
    "a100-40": Gpu(40, 312),
    "a100": Gpu(80, 312),
    "h100": Gpu(80, 989),
    "h200": Gpu(141, 989),
    "b200": Gpu(180, 2250),
}


def gpu_named(name: str) -> Gpu | None:
    """The data sheet of a device by the name its driver gives it ("NVIDIA H100 80GB HBM3"), or None."""
    plain = name.lower().replace(" ", "").replace("-", "")
    found = [key for key in GPUS if key.replace("-", "") in plain]
    return GPUS[max(found, key=len)] if found else None
