"""Rates of this machine for `sage-scale plan --calibration`, measured one after the other on one thread.

Rates of processors are in CPU seconds, so that other work on the machine changes them little (shared caches and cores
still do); disk, store and all-reduce are in seconds of the clock, and say the machine's load. Pictures are made unless
videos are given: a textured ground, a patch that moves, a camera's noise.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sage_scale.config import Recipe
from sage_scale.errors import SageError, UsageError
from sage_scale.planning.constants import Constant
from sage_scale.untrusted.display import shortened
from sage_scale.vision.backbone_choice import bfloat16_units


@dataclass(frozen=True)
class Settings:
    """How long and on what is measured."""

    recipe: Recipe
    seconds: float = 1.0
    """CPU seconds of a measurement, at least."""
    videos: tuple[Path, ...] = ()
    """Videos in place of made ones."""
    store: str = ""
    """Object store or folder whose rate is measured; empty: none."""


def cpu_rate(
    work: Callable[[], float], seconds: float, clock: Callable[[], float] = time.process_time
) -> float:
    """Returns what `work` does in a CPU second (a second of `clock`); it returns its amount. The median of three, after
    one to warm up."""
    work()
    rates = []
    for _ in range(3):
        amount, begun = 0.0, clock()
        while clock() - begun < seconds / 3:
            amount += work()
        rates.append(amount / (clock() - begun))
    return statistics.median(rates)


def run_verb(title: str, *words: object) -> None:
    """Run a verb as a user would. Raises SageError with `title` and its last line if it fails."""
    command = [sys.executable, "-m", "sage_scale.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SageError(f"calibration: {title} ended with {done.returncode}: {shortened(last, 500)}")


def machine() -> str:
    """Returns processor, CPUs and load, for the source of a figure."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(errors="replace") if listing.exists() else ""
    name = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU"
    )
    units = bfloat16_units() or "no bfloat16 units"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} CPUs, {units}{gpu}, load {os.getloadavg()[0]:.1f}"


class Calibration:
    """Collects the measured constants; `command` is the command line that they are measured by."""

    def __init__(self, command: str) -> None:
        self.command, self.constants = command, dict[str, Constant]()

    def add(self, name: str, value: float | Mapping[str, float], unit: str) -> None:
        """Take a constant, three digits of each number."""
        rounded: Any = (
            {str(key): float(f"{v:.3g}") for key, v in value.items()}
            if isinstance(value, Mapping)
            else float(f"{value:.3g}")
        )
        self.constants[name] = Constant(
            name=name,
            value=rounded,
            unit=unit,
            device=machine(),
            date=time.strftime("%Y-%m-%d"),
            command=self.command,
        )

    def to_yaml(self) -> str:
        """Returns a file for `plan --calibration`."""
        entries = {
            name: {
                "value": dict(c.value) if isinstance(c.value, Mapping) else c.value,
                "unit": c.unit, "device": c.device, "date": c.date, "command": c.command,
            }
            for name, c in self.constants.items()
        }  # fmt: skip
        return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10_000)


def videos_of(folder: Path, most: int = 8) -> tuple[Path, ...]:
    """Returns at most so many videos of a folder, evenly spaced by name. Raises UsageError where there is none."""
    endings = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise UsageError(f"--videos: no video in {folder}")
    return tuple(
        found[number * len(found) // min(most, len(found))] for number in range(min(most, len(found)))
    )
