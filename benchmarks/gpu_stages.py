"""Both stages on one GPU from shards made beforehand: losses beside the CPU's, ZeRO 0 to 3, offload, launcher.

    python benchmarks/gpu_stages.py --data SHARDS --recipe demo [--part stages|zero] [--set KEY=VALUE ...]
    python benchmarks/gpu_stages.py --data SHARDS --recipe demo --small    # few steps, on a CPU too

`stages`: float32 losses of the first steps beside those of the CPU; both stages in the recipe's precision on the GPU,
begun under ZeRO 1 and resumed under ZeRO 2, and their scores. `zero`: stage 1 in float32 under ZeRO 0 to 3, with
offload to host memory, and by DeepSpeed's launcher, which must have one course of losses. It ends with code 1 where
losses differ. Every run is a process of its own, as a user starts it. Needs no package of precompute.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import parse, sage

from sage_scale.config import LAUNCH_FOLDER
from sage_scale.evaluation.stored import read_scores

STAGES = ("pretrain", "finetune")
CLOSE = 2e-3
"""Largest relative difference of a float32 loss between devices or ZeRO stages over some ten steps."""
EXACT = ["precision=fp32", "evaluate_every=-1", "save_every=-1"]


@dataclass(frozen=True)
class Runs:
    """The runs of one dataset and recipe, in one folder that is removed afterwards."""

    home: Path
    data: str
    recipe: str
    changes: list[str]
    device: str

    def train(
        self, name: str, stage: str, settings: Iterable[str], *, device: str = "", launcher: bool = False
    ) -> list[dict[str, Any]]:
        """Run a stage, or resume it, and return the rows of its steps. Raises SystemExit where it fails.

        The first run's language model serves all of them.
        """
        language = self.home / "language_model"
        options = ["--run", self.home / name, "--data", self.data, "--recipe", self.recipe, *self.changes]
        options += [f"{stage}.{setting}" for setting in settings]
        if language.is_dir():
            options += [f"model.language_model={language}", "denoise.enabled=false"]
        if launcher:
            gpus = "--num_gpus" if (device or self.device) == "cuda" else "--num_accelerators"
            module = [
                sys.executable,
                "-m",
                "deepspeed.launcher.runner",
                gpus,
                "1",
                LAUNCH_FOLDER / f"{stage}.py",
            ]
            command = [str(part) for part in [*module, *options]]
        else:
            command = sage(stage, *options)
        self.call(command, device)
        if (made := self.home / name / "language_model").is_dir() and not language.is_dir():
            shutil.copytree(made, language)
        log = (self.home / name / stage / "log.jsonl").read_text(encoding="utf-8")
        return [row for line in log.splitlines() if (row := json.loads(line))["event"] == "step"]

    def call(self, command: list[str], device: str = "") -> None:
        """Run a command. Raises SystemExit with the end of its output where it fails."""
        environment = dict(os.environ)
        if "precision=fp32" in " ".join(command):
            environment["NVIDIA_TF32_OVERRIDE"] = "0"  # float32 convolutions are TF32 by default
        if (device or self.device) == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(f"  {' '.join(command[1:4])} ...: {time.perf_counter() - begun:.0f} s", flush=True)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(command)}\nended with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="dataset of shards")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--part", choices=("stages", "zero"), default="stages")
    parser.add_argument(
        "--steps", type=int, default=60, help="steps of each stage; a sixth of them is compared in float32"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    options = parse(parser, device=True, steps=6)
    changes = ["finetune.freeze=none", *(["evaluation.max_tokens=8"] if options.small else []), *options.set]
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.data, options.recipe, changes, options.device)
        same = (
            stages(runs, options.steps)
            if options.part == "stages"
            else zero_stages(runs, options.steps, options.small)
        )
    raise SystemExit(0 if same else 1)


def stages(runs: Runs, steps: int) -> bool:
    """Print losses beside the CPU's, then both stages with their scores; returns whether the losses agree."""
    few = max(2, steps // 6)
    found = {
        device: runs.train(device, "pretrain", [*EXACT, f"max_steps={few}"], device=device)
        for device in dict.fromkeys((runs.device, "cpu"))
    }
    here, cpu = ([float(row["loss"]) for row in rows] for rows in (found[runs.device], found["cpu"]))
    apart = max(abs(a - b) / abs(b) for a, b in zip(here, cpu, strict=True))
    print(
        f"float32, {few} steps of stage 1: {runs.device} {here[-1]:.6f}, CPU {cpu[-1]:.6f}, apart at most {apart:.1e}"
    )
    print(
        "\n| stage | ZeRO | steps | last loss | clips/s (median) | waiting for data | memory, GB | MFU |\n"
        + "|---" * 8
        + "|"
    )
    for stage in STAGES:
        half = steps // 2
        common = ["evaluate_every=-1", f"save_every={half}"]
        runs.train("whole", stage, [*common, "zero_stage=1", f"max_steps={half}"])
        rows = runs.train("whole", stage, [*common, "zero_stage=2", f"max_steps={steps}"])
        assert [row["step"] for row in rows] == list(range(1, steps + 1)), (
            "the resumed run lost or repeated a step"
        )
        print(
            f"| {stage} | 1, resumed under 2 | {steps} | {rows[-1]['loss']:.3f} | {rates(rows)} |", flush=True
        )
    runs.call(sage("evaluate", "--run", runs.home / "whole", "--data", runs.data))
    scores = read_scores(runs.home / "whole")["test"]
    print(f"\nBLEU-4 {scores['bleu4']:.2f} on {scores['clips']} test clips after {steps} steps of each stage")
    return report(apart)


def zero_stages(runs: Runs, steps: int, small: bool) -> bool:
    """Print stage 1 under every ZeRO stage, with offload and by the launcher; returns whether the losses agree."""
    few = max(2, steps // 6)
    numbers = (0, 3) if small else range(4)
    cases: dict[str, list[str]] = {f"ZeRO {stage}": [f"zero_stage={stage}"] for stage in numbers}
    cases["ZeRO 2, offload to host memory"] = ["zero_stage=2", "offload=cpu"]
    cases["ZeRO 3, offload to host memory"] = ["zero_stage=3", "offload=cpu"]
    cases["ZeRO 1, deepspeed launcher"] = ["zero_stage=1"]
    if runs.device == "cpu":
        cases = {name: settings for name, settings in cases.items() if "offload" not in name}
    print("| | last loss | clips/s (median) | waiting for data | memory, GB | MFU |\n" + "|---" * 6 + "|")
    losses: list[list[float]] = []
    for number, (name, settings) in enumerate(cases.items()):
        rows = runs.train(
            str(number), "pretrain", [*EXACT, f"max_steps={few}", *settings], launcher="launcher" in name
        )
        losses.append([float(row["loss"]) for row in rows])
        print(f"| {name} | {losses[-1][-1]:.6f} | {rates(rows)} |", flush=True)
    return report(
        max(abs(a - b) / abs(b) for other in losses[1:] for a, b in zip(other, losses[0], strict=True))
    )


def report(apart: float) -> bool:
    """Print the largest relative difference of the losses; returns whether it is small enough."""
    print(f"largest relative difference of the losses: {apart:.1e} (limit {CLOSE:.0e})")
    return apart <= CLOSE


def rates(rows: list[dict[str, Any]]) -> str:
    """Returns cells of a table: clips a second, share of the time waiting for data, memory, MFU."""
    later = rows[len(rows) // 3 :]  # the first steps compile and fill caches
    middle = sorted(later, key=lambda row: row["samples_per_s"])[len(later) // 2]
    seconds = sum(row["clips"] / row["samples_per_s"] for row in later)
    wait = sum(row["wait_s"] for row in later) / seconds
    mfu = f"{middle['mfu']:.0%}" if middle.get("mfu") is not None else "unknown"
    return f"{middle['samples_per_s']:.1f} | {wait:.1%} | {max(row['memory_mb'] for row in rows) / 1000:.2f} | {mfu}"


if __name__ == "__main__":
    main()
