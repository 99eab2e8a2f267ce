"""Rate of a recipe's own training steps on this machine, from short runs of both stages on a dataset.

Each stage runs twice from the start, for a few steps and for more of them, as the commands of a user would: the
difference is the steps', the rest is the start, with one evaluation and one save.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sage_scale.config import load_recipe
from sage_scale.errors import SageError
from sage_scale.experiments.calibration import Calibration, run_verb
from sage_scale.planning.training_time import STAGES
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

FEW, MORE = 6, 18
"""Steps of the two runs. With four frozen views and one step an epoch the first run has seen each view."""


def calibrate_steps(found: Calibration, name: str, overrides: Sequence[str], data: Sequence[str]) -> None:
    """Measure `train.flops_per_cpu_s` and `train.start_cpu_s` of a recipe's stages. Raises SageError if a run fails."""
    recipe = load_recipe(name, overrides)
    rates: dict[str, float] = {}
    starts: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sage-scale-calibrate-") as scratch:
        spent: dict[tuple[str, int], float] = {}
        for steps in (FEW, MORE):
            for stage in STAGES:
                run = Path(scratch) / str(steps)
                spent[stage, steps] = _run(name, overrides, data, run, stage, steps)
        for stage in STAGES:
            step_s = (spent[stage, MORE] - spent[stage, FEW]) / (MORE - FEW)
            if step_s <= 0:
                raise SageError(
                    f"calibration: {MORE} steps of {stage} took no longer than {FEW}, as other work disturbed the "
                    "runs: run it again on an idle machine"
                )
            starts[f"{recipe.name} {stage}"] = max(0.1, spent[stage, FEW] - FEW * step_s)
            rates[f"{recipe.name} {stage}"] = _operations(Path(scratch) / str(MORE), stage) / step_s
    second = "second" if torch.cuda.is_available() else "CPU second"
    unit = f"FLOP a {second} of a rank in training steps, by recipe and stage"
    if torch.cuda.is_available():
        found.add("train.flops_per_gpu_s", rates, unit)
    else:
        found.add("train.flops_per_cpu_s", rates, unit)
        # Of each stage by itself: stage 1 also prepares the language model.
        found.add(
            "train.start_cpu_s",
            starts,
            "CPU seconds outside of the steps, with one save, by recipe and stage",
        )


def _run(
    name: str, overrides: Sequence[str], data: Sequence[str], run: Path, stage: str, steps: int
) -> float:
    """Returns the CPU seconds (with a GPU, seconds) of a stage of so many steps, on one rank."""
    changes = [
        *overrides, f"{stage}.max_steps={steps}", f"{stage}.max_minutes=0", f"{stage}.epochs=1e9",
        f"{stage}.evaluate_every=-1", f"{stage}.save_every=1000000000", "denoise.steps=2", "denoise.max_minutes=0",
    ]  # fmt: skip
    given = [word for url in data for word in ("--data", url)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run_verb(f"{stage} of recipe {name}", stage, "--run", run, *given, "--recipe", name, *changes)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if torch.cuda.is_available():
        return time.monotonic() - begun
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _operations(run: Path, stage: str) -> float:
    """Returns the FLOPs of a mean step of a finished run, by its log."""
    counts = []
    for line in (run / stage / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            row = parse_json_object(line)
        except InvalidJSON:
            continue
        if row.get("event") == "step" and row.get("tflops") and row.get("samples_per_s"):
            counts.append(row["tflops"] * 1e12 * row["clips"] / row["samples_per_s"])
    if not counts:
        raise SageError(f"calibration: the model of the recipe counts no operations of {stage}")
    return statistics.fmean(counts)
