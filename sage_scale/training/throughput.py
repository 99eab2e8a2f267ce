"""How well a step uses the machine: clips, tokens and operations a second, and their share of what the device can do.

The peak of a GPU is its data sheet's (planning/gpus.py); it is known for 16-bit products only. A CPU has no such sheet,
so a matrix product is timed on one rank when the stage begins, in the stage's precision, and the log says so.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from sage_scale.planning.gpus import gpu_named
from sage_scale.planning.step import StepSize
from sage_scale.streaming import Batch
from sage_scale.training.engine import Engine
from sage_scale.training.stepfigures import StepFigures

SIZES = ("frames", "visual_tokens", "text_tokens")
_SIDE = 768
"""Of the square matrices whose product is timed."""


def video_sizes(batch: Batch) -> dict[str, float]:
    """Frames and visual tokens of a rank's part of a batch, shares of the global ones."""
    return {
        "frames": float(batch.video.segment_frames_N.sum()),
        "visual_tokens": float(batch.video.clip_segments_B.sum()),
    }


class Throughput:
    """Rates of a stage's steps on all ranks together."""

    def __init__(self, engine: Engine, operations: Callable[[StepSize], float] | None = None) -> None:
        """`operations` counts those of a step; without it there is no MFU."""
        self._engine = engine
        self._operations = operations
        self.peak, self.source = peak_rate(engine.ranks.device, engine.compute_type)

    def job(self) -> dict[str, Any]:
        """What runs where, for the log's event `start`."""
        engine, stage = self._engine, self._engine.stage
        device = engine.ranks.device
        local = int(os.environ.get("LOCAL_WORLD_SIZE", engine.ranks.world))
        return {
            "ranks": engine.ranks.world,
            "hosts": max(1, engine.ranks.world // max(local, 1)),
            "device": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"CPU ({platform.machine()})",
            "zero_stage": stage.zero_stage,
            "offload": stage.offload,
            "precision": str(engine.compute_type).removeprefix("torch."),
            "batch_size": stage.batch_size,
            "micro_batch": stage.micro_batch,
            "recompute": stage.recompute,
            "parameters": sum(math.prod(engine.shape(p)) for p in engine.model.parameters()),
            "trained_parameters": sum(math.prod(engine.shape(p)) for _, p in engine.trained()),
            "peak_tflops": None if self.peak is None else self.peak / 1e12,
            "peak_source": self.source,
        }

    def rates(self, figures: StepFigures) -> dict[str, float]:
        """tokens_per_s and frames_per_s, and where they can be known tflops (a rank's) and mfu (0 to 1) of a step."""
        seconds = max(figures.seconds, 1e-9)
        sizes = {name: figures.shares.get(name, 0.0) for name in SIZES}
        found = {
            "tokens_per_s": (sizes["visual_tokens"] + sizes["text_tokens"]) / seconds,
            "frames_per_s": sizes["frames"] / seconds,
        }
        if self._operations is not None:
            done = self._operations(StepSize(figures.clips, **sizes)) / seconds / self._engine.ranks.world
            found["tflops"] = done / 1e12
            if self.peak is not None:
                found["mfu"] = done / self.peak
        return found


def peak_rate(device: torch.device, dtype: torch.dtype) -> tuple[float | None, str]:
    """(operations a second of one rank's device, where that is from); None where nobody knows."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        gpu = gpu_named(name)
        if gpu is None or dtype is torch.float32:
            return None, f"none for {name} in {str(dtype).removeprefix('torch.')}"
        return gpu.bf16_tflops * 1e12, f"data sheet of {name}"
    ones = torch.ones(_SIDE, _SIDE, dtype=dtype)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(ones, ones)
        times.append(time.perf_counter() - started)
    return 2 * _SIDE**3 / min(times), "a matrix product timed at the start"
