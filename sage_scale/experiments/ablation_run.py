"""One run of an ablation table, in one process: the stages in turn, the evaluation, and the row that they leave.

A Ray actor makes run after run, so that torch and DeepSpeed are imported once.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.errors import SageError, UsageError
from sage_scale.experiments.ablation_data import locked
from sage_scale.experiments.ablation_rows import digest
from sage_scale.registry import model_spec
from sage_scale.untrusted.display import message_line
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import parse_json
from sage_scale.untrusted.printer import tell

LOG = "ablate.log"
"""File in a run's folder with all that the run printed."""
IDENTITY = "identity"
"""File in a run's folder with the identity of its row: a run of another recipe begins anew."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One cell with one seed, ready to train."""

    cell: str
    seed: int
    recipe: Recipe
    stages: tuple[str, ...]
    split: str
    identity: str
    folder: Path
    data: str
    """Its dataset."""
    language_model: Path | None
    """Folder of the language model that all runs share; None where the model has none."""
    controls: bool = False
    """Whether controls are scored as well."""


class RunActor:
    """A process that makes runs, one after the other; the class of a Ray actor."""

    def __init__(self, variables: Mapping[str, str], folder: str, threads: int) -> None:
        """Takes the driver's variables and working folder; uses so many threads."""
        os.environ.update(variables)
        with contextlib.suppress(OSError):
            os.chdir(folder)
        import torch

        torch.set_num_threads(threads)

    def language_model(self, recipe: Recipe, data: str, folder: Path) -> str:
        """Makes the language model of runs in `folder`, once. Returns the reason of a failure, else nothing."""
        with printed_to(folder / LOG):
            return _failure(lambda: make_language_model(recipe, data, folder))

    def run(self, run: Run) -> tuple[dict[str, Any], str]:
        """Returns the row of a run and an empty text, or an empty row and the reason of its failure."""
        row: dict[str, Any] = {}
        with printed_to(run.folder / LOG):
            failure = _failure(lambda: row.update(make_run(run)))
            gc.collect()  # models and caches of a run refer to themselves
        return row, failure


def make_language_model(recipe: Recipe, data: str, folder: Path) -> None:
    """Prepares `folder/language_model` as a run of `recipe` would."""
    import torch

    from sage_scale.streaming import open_datasets
    from sage_scale.training import distributed
    from sage_scale.training.inherited import inherit
    from sage_scale.training.language.prepare import check_language_model, prepare_language_model

    ranks, datasets = distributed.initialise(), open_datasets(data)
    recipe = inherit(recipe, datasets, folder).recipe
    check_language_model(recipe, folder, datasets)
    prepare_language_model(recipe, folder, datasets, ranks, threads=torch.get_num_threads())


def make_run(run: Run) -> dict[str, Any]:
    """Trains and scores a run, from where an earlier try was ended; returns its row."""
    with begun(run):
        return _made(run)


def _made(run: Run) -> dict[str, Any]:
    from sage_scale.training import evaluate_run
    from sage_scale.training.stage import run_stage

    worked = time.process_time()
    seconds: dict[str, float] = {}
    figures: dict[str, dict[str, Any]] = {}
    for stage in run.stages:
        with _timed(seconds, stage):
            figures[stage] = run_stage(stage, run.recipe, run.folder, run.data)
    scores: dict[str, Any] = {}
    if "finetune" in run.stages:
        with _timed(seconds, "evaluate"):
            scores = evaluate_run.run(run.folder, run.data, run.split, controls=run.controls, say=print)
    row = describe(run, figures, scores)
    row |= {"seconds": {name: round(value, 1) for name, value in seconds.items()}}
    row |= {"cpu_seconds": round(time.process_time() - worked, 1)}
    for stage in run.stages:  # only a resumed stage reads them
        shutil.rmtree(run.folder / stage / "checkpoints", ignore_errors=True)
    return row


@contextlib.contextmanager
def begun(run: Run) -> Iterator[None]:
    """Holds the lock of the run's folder, which is made; a run of another recipe is removed from it first.

    Raises UsageError where another call trains in the folder, or where it holds files that are of no run.
    """
    path = run.folder / IDENTITY
    others = [old for old in run.folder.iterdir() if old.name != LOG] if run.folder.exists() else []
    if others and not path.is_file():
        raise UsageError(f"{run.folder} holds other files than a run's: move them, or choose another --home")
    run.folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not locked(file):
            raise UsageError(f"{run.folder} is in use: another `sage-scale ablate` trains this run")
        file.seek(0)
        if file.read().strip() != run.identity:
            for old in others:
                if old.name != IDENTITY:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            file.truncate(0)
            file.write(run.identity + "\n")
            file.flush()
        link = run.folder / "language_model"
        if run.language_model is not None and not link.exists():
            link.symlink_to(run.language_model / "language_model", target_is_directory=True)
        yield


def describe(run: Run, figures: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of a finished run, without its seconds."""
    rows = predictions(run.folder / "predictions" / f"{run.split}.jsonl") if scores else []
    return {
        "cell": run.cell,
        "seed": run.seed,
        "identity": run.identity,
        "recipe": run.recipe.name,
        "split": run.split,
        "stages": list(run.stages),
        "scores": numbers(scores) | _best_control(scores) | _stage_figures(run, figures),
        "signature": scores.get("signature", ""),
        "clips": scores.get("clips", 0),
        "languages": sorted({row["language"] for row in rows}),
        "hypotheses": digest([row["hypothesis"] for row in rows]),
        "references": digest([row["reference"] for row in rows]),
        "steps": {stage: values["steps"] for stage, values in figures.items()},
        **logged_totals(run),
        "ceiling": ceiling(run),
        "notice": scores.get("notice", ""),
        "device": device(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "texts": [(row["hypothesis"], row["reference"], row["language"]) for row in rows],
    }


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the finite numbers of nested mappings by dotted name."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            found[f"{prefix}{name}"] = round(float(value), 4)
    return found


def _best_control(scores: Mapping[str, Any]) -> dict[str, float]:
    found = [values["bleu4"] for values in scores.get("controls", {}).values()]
    return {"best_control": round(max(found), 4)} if found else {}


def _stage_figures(run: Run, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for stage, values in figures.items():
        found |= numbers({k: v for k, v in values.items() if k not in ("steps", "seconds")}, f"{stage}.")
    path = run.folder / "prototypes.json"
    if path.is_file():
        splits = parse_json(read_bytes(path)).get("splits", {})
        found |= numbers(splits.get(run.split, {}), "prototypes.")
    return found


def predictions(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file of predictions."""
    return [parse_json(line) for line in read_bytes(path).splitlines()]


def logged_totals(run: Run) -> dict[str, Any]:
    """Returns clips and visual and text tokens that all stages were given, and those of an epoch of the last."""
    clips = tokens = 0.0
    in_epoch: dict[str, float] = {}
    for stage in run.stages:
        clips_before, tokens_before, epochs = clips, tokens, 0.0
        for line in read_bytes(run.folder / stage / "log.jsonl").splitlines():
            row = parse_json(line)
            if row.get("event") == "step":
                tokens += (row.get("visual_tokens") or 0) + (row.get("text_tokens") or 0)
                clips += row.get("clips") or 0
                epochs = row.get("epoch") or 0
        if epochs:
            in_epoch = {
                "epoch_clips": (clips - clips_before) / epochs,
                "epoch_tokens": (tokens - tokens_before) / epochs,
            }
    return {
        name: round(value) for name, value in ({"tokens": tokens, "clips_seen": clips} | in_epoch).items()
    }


def ceiling(run: Run) -> float | None:
    """Returns BLEU-4 of what the language model makes of dev's pseudo-glosses; None where it was not measured."""
    path = run.folder / "language_model" / "prepared.json"
    value = parse_json(read_bytes(path)).get("dev_gloss_to_text_bleu4") if path.is_file() else None
    return float(value) if isinstance(value, int | float) else None


def device() -> str:
    """Returns the device in general terms."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} thread"


def versions() -> dict[str, str]:
    """Returns the versions that the figures depend on."""
    names = ("sage-scale", "torch", "deepspeed", "transformers", "sacrebleu")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def needs_language_model(recipe: Recipe, stages: Sequence[str]) -> bool:
    """Returns whether these stages of the recipe's model read a language model, which is to be prepared."""
    spec = model_spec(recipe.model.kind)
    return spec.language is not None and (spec.language_in_pretrain or "finetune" in stages)


@contextlib.contextmanager
def printed_to(path: Path) -> Iterator[None]:
    """Sends all that this process prints, libraries and children included, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [(number, os.dup(number)) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _flush()
        for number, _ in kept:
            os.dup2(file, number)
        yield
    finally:
        _flush()
        for number, before in kept:
            os.dup2(before, number)
            os.close(before)
        os.close(file)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _failure(work: Any) -> str:
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        tell(*traceback.format_exc().splitlines())
        if isinstance(error, SageError):
            return message_line(error)
        return message_line(f"{type(error).__name__}: {error}")
    return ""


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun
