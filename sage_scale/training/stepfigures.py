"""What one step came to over all ranks: one small sum that also carries a stop request, so that all act alike."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sage_scale.streaming import ReadCounts
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks
from sage_scale.training.stage_log import memory_mb

READING = ("samples", "bytes", "cache_hits", "node_hits", "requests", "retries", "hedges")
"""What the log says of reading, summed over the ranks (ReadCounts)."""


@dataclass(frozen=True)
class StepFigures:
    """A step over all ranks; the same on every rank, but for `memory_mb`, which is this rank's."""

    shares: dict[str, float]
    """What `compute` returned, summed over the ranks: the loss, its parts, scales."""
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
        """The loss of the global batch."""
        return self.shares.get("loss", 0.0)

    @property
    def samples_per_s(self) -> float:
        """Clips a second, all ranks together."""
        return self.clips / max(self.seconds, 1e-9)

    def logged(self) -> dict[str, float]:
        """The figures by their names in log.jsonl."""
        return {
            **self.shares,
            "clips": self.clips,
            "skipped": self.skipped,
            "samples_per_s": self.samples_per_s,
            "wait_s": self.wait_s,
            **self.reading,
            "memory_mb": self.memory_mb,
        }


def share_step(
    shares: dict[str, float], waited: float, started: float, spent: ReadCounts, asked: bool, ranks: Ranks
) -> StepFigures:
    """Sum a step's figures over the ranks (a collective). `started` is time.monotonic() at the step's begin."""
    names = sorted(shares)
    local = [shares[name] for name in names]
    local += [float(getattr(spent, name)) for name in READING]
    local += [float(len(spent.skipped)), float(asked)]
    local += [waited, time.monotonic() - started] if ranks.first else [0.0, 0.0]
    summed = distributed.sum_over_ranks(local, ranks.device)
    reading = dict(zip(READING, summed[len(names) :]))
    clips = reading.pop("samples")
    skipped, asked_all, wait_s, seconds = summed[len(names) + len(READING) :]
    return StepFigures(
        shares=dict(zip(names, summed)),
        clips=clips,
        skipped=skipped,
        reading=reading,
        wait_s=wait_s,
        seconds=seconds,
        memory_mb=memory_mb(ranks.device),
        stop_asked=asked_all > 0,
    )
