"""Metrics of a step over all ranks (loss, data wait, memory, MFU), and a profiler trace of a few steps.

The peak of a GPU is its data sheet's (planning/step.py); it is known for 16-bit products only. For a CPU,
one rank times a matrix product in the stage's precision when the stage begins, and the log says so.
"""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from sage_scale.planning.constants import load_constants
from sage_scale.planning.step import StepSize, gpu_named
from sage_scale.streaming import Batch, ReadCounts
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks
from sage_scale.training.engine import Engine

READING = ("samples", "bytes", "cache_hits", "node_hits", "requests", "retries", "hedges")
"""Reading counts (ReadCounts) that are summed over the ranks for the log."""
SIZES = ("frames", "visual_tokens", "text_tokens")
_SIDE = 768
"""Of the square matrices whose product is timed."""
CHARACTERS = 4.5
"""Of a sentence, for each subword, about."""
LONG_STEP_S = 60.0
"""Seconds of a step from which on a line tells it before progress does."""
FIRST_TRACED = 4
"""The first step of a trace: those before it compile, allocate and fill caches."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step over all ranks; the same on every rank, except `memory_mb`, which is this rank's."""

    shares: dict[str, float]
    """The values that `compute` returned, summed over the ranks: the loss, its parts, scales."""
    clips: float
    """Clips of the global batch."""
    skipped: float
    """Damaged samples left out."""
    reading: dict[str, float]
    """How they were read, by the names of READING."""
    wait_s: float
    """Rank 0's time waiting for data, seconds."""
    seconds: float
    """Rank 0's time for the step, seconds."""
    memory_mb: float
    """Peak memory of this process, MB."""
    stop_asked: bool
    """Whether any rank was asked to stop."""

    @property
    def loss(self) -> float:
        """Returns the loss of the global batch."""
        return self.shares.get("loss", 0.0)

    @property
    def samples_per_s(self) -> float:
        """Returns clips per second, over all ranks."""
        return self.clips / max(self.seconds, 1e-9)

    def logged(self) -> dict[str, float]:
        """Returns the metrics by their names in log.jsonl."""
        return {
            **self.shares,
            "clips": self.clips,
            "skipped": self.skipped,
            "samples_per_s": self.samples_per_s,
            "wait_s": self.wait_s,
            **self.reading,
            "memory_mb": self.memory_mb,
        }


def reduce_metrics(
    shares: dict[str, float], waited: float, started: float, spent: ReadCounts, asked: bool, ranks: Ranks
) -> StepMetrics:
    """Returns a step's metrics over all ranks (a collective); `started` is time.monotonic() at the step's begin.

    The same all-reduce carries the stop request, so that all ranks act alike.
    """
    names = sorted(shares)
    local = [shares[name] for name in names]
    local += [float(getattr(spent, name)) for name in READING]
    local += [float(len(spent.skipped)), float(asked)]
    local += [waited, time.monotonic() - started] if ranks.is_main else [0.0, 0.0]
    summed = distributed.sum_over_ranks(local, ranks.device)
    reading = dict(zip(READING, summed[len(names) :]))
    clips = reading.pop("samples")
    skipped, asked_all, wait_s, seconds = summed[len(names) + len(READING) :]
    return StepMetrics(
        shares=dict(zip(names, summed)),
        clips=clips,
        skipped=skipped,
        reading=reading,
        wait_s=wait_s,
        seconds=seconds,
        memory_mb=memory_mb(ranks.device),
        stop_asked=asked_all > 0,
    )


def long_step(seconds: float, steps: int, device: torch.device, measured: bool = False) -> str:
    """Returns a line on steps that take more than a minute, else ""."""
    if seconds < LONG_STEP_S:
        return ""
    lacking = "" if device.type == "cuda" else "no GPU: "
    took = f"the first step took {seconds:.0f} s" if measured else f"about {seconds:.0f} s a step"
    left = f"{steps:,} step{'s' * (steps != 1)} to go"
    return f"{lacking}{took}, {left} (Ctrl-C saves and stops; `sage-scale plan` computes GPUs)"


def video_sizes(batch: Batch) -> dict[str, float]:
    """Returns the numbers of frames and visual tokens in a rank's part of the batch."""
    return {
        "frames": float(batch.video.segment_frames_N.sum()),
        "visual_tokens": float(batch.video.clip_segments_B.sum()),
    }


class Throughput:
    """Computes the throughput of a stage's steps, over all ranks."""

    def __init__(self, engine: Engine, operations: Callable[[StepSize], float] | None = None) -> None:
        """`operations` returns the FLOPs of a step; without it MFU is not computed."""
        self._engine = engine
        self._operations = operations
        self.peak, self.source = peak_rate(engine.ranks.device, engine.compute_dtype)

    def job(self) -> dict[str, Any]:
        """Returns the hardware and settings of the job, for the log event `start`."""
        engine, stage = self._engine, self._engine.stage
        device = engine.ranks.device
        local = int(os.environ.get("LOCAL_WORLD_SIZE", engine.ranks.world))
        cuda = device.type == "cuda"
        return {
            "ranks": engine.ranks.world,
            "hosts": max(1, engine.ranks.world // max(local, 1)),
            "device": torch.cuda.get_device_name(device) if cuda else f"CPU ({platform.machine()})",
            "zero_stage": stage.zero_stage,
            "offload": stage.offload,
            "precision": str(engine.compute_dtype).removeprefix("torch."),
            "batch_size": stage.batch_size,
            "micro_batch": stage.micro_batch,
            "recompute": stage.recompute,
            "parameters": sum(math.prod(engine.full_shape(p)) for p in engine.model.parameters()),
            "trained_parameters": sum(
                math.prod(engine.full_shape(p)) for _, p in engine.trainable_parameters()
            ),
            "peak_tflops": None if self.peak is None else self.peak / 1e12,
            "peak_source": self.source,
        }

    def estimate(self, batch: Batch) -> float:
        """Returns the seconds that a step of this rank's part of a batch will take, about; 0 where nothing is known.

        Operations of forward and backward, over the share of the peak that the planner assumes.
        """
        if self._operations is None or self.peak is None or not batch.keys:
            return 0.0
        subwords = sum(map(len, batch.sentences)) / CHARACTERS
        size = StepSize(len(batch.keys), **video_sizes(batch), text_tokens=subwords)
        share = load_constants().number(
            f"{'gpu' if self._engine.ranks.device.type == 'cuda' else 'cpu'}.share"
        )
        return self._operations(size) / (self.peak * share)

    def rates(self, metrics: StepMetrics) -> dict[str, float]:
        """Returns tokens_per_s and frames_per_s of a step, and where known tflops (a rank's) and mfu (0 to 1)."""
        seconds = max(metrics.seconds, 1e-9)
        sizes = {name: metrics.shares.get(name, 0.0) for name in SIZES}
        found = {
            "tokens_per_s": (sizes["visual_tokens"] + sizes["text_tokens"]) / seconds,
            "frames_per_s": sizes["frames"] / seconds,
        }
        if self._operations is not None:
            done = self._operations(StepSize(metrics.clips, **sizes)) / seconds / self._engine.ranks.world
            found["tflops"] = done / 1e12
            if self.peak is not None:
                found["mfu"] = done / self.peak
        return found


def peak_rate(device: torch.device, dtype: torch.dtype) -> tuple[float | None, str]:
    """Returns (peak FLOP/s of one rank's device, source of the figure); None if unknown."""
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


def memory_now(device: torch.device) -> dict[str, float]:
    """Returns the current memory of this process, MB: torch's reserved memory on a GPU, else resident."""
    if device.type == "cuda":
        return {
            "memory_now_mb": torch.cuda.memory_allocated(device) / 1e6,
            "memory_reserved_mb": torch.cuda.memory_reserved(device) / 1e6,
        }
    return {"memory_now_mb": psutil.Process().memory_info().rss / 1e6}


def memory_mb(device: torch.device) -> float:
    """Returns the peak memory of this process so far, MB: GPU memory on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


class StepTrace:
    """Traces `steps` steps of this process, from the 4th on, into `folder`/profile; `steps` 0 disables it."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / "profile" / "trace.json"
        self._last = FIRST_TRACED + steps - 1 if steps else 0
        self._done = 0
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def step(self) -> str:
        """Call after each step; once the trace is written, returns a line that says where."""
        self._done += 1
        if self._last and self._done == FIRST_TRACED - 1:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, profile_memory=True)
            self._profiler.start()
        if self._profiler is None or self._done < self._last:
            return ""
        self._profiler.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.path))
        self._profiler = None
        return f"steps {FIRST_TRACED} to {self._done} are traced in {self.path}: open it in ui.perfetto.dev or chrome://tracing"
