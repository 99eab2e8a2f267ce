"""The demo: all commands from corpus to report, run on one machine.

Synthetic corpus, shards, both stages under DeepSpeed, scores with controls, the translation of one
video, and the report. Every command can be repeated: finished steps are skipped, interrupted ones resume.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sage_scale.config import Recipe, load_recipe
from sage_scale.errors import SageError
from sage_scale.evaluation.stored import read_scores
from sage_scale.registry import model_spec
from sage_scale.storage import on_this_machine
from sage_scale.training import launcher
from sage_scale.training.stage_log import clock, record_timing
from sage_scale.untrusted.printer import echo


def run(
    recipe_name: str = "demo",
    run_folder: str | Path | None = None,
    control: bool = False,
    overrides: Sequence[str] = (),
    ranks: int = 0,
) -> Path:
    """Run the demo and return the path of its report.

    `control` skips stage 1 and gives stage 2 the training time of both; it shares corpus and shards with the demo.
    `ranks` processes train (0: one for each core, two at most).
    """
    recipe = load_recipe(recipe_name, overrides)
    home = Path("runs") / Path(recipe_name).stem
    run_path = (
        Path(run_folder) if run_folder else (home.with_name(f"{home.name}-control") if control else home)
    )
    data_home = home_of_data(recipe, home)
    corpus, shards = data_home / "corpus", data_home / "shards"
    changes = list(overrides) + (control_overrides(recipe) if control else [])
    ranks = ranks or min(os.cpu_count() or 1, 2)
    on_this_machine(run_path, "a run")
    run_path.mkdir(parents=True, exist_ok=True)
    said = Steps(run_path, total=6 if control else 7)

    said.step("corpus", "a synthetic corpus: rendered signing with German weather sentences")
    said.call(sage("corpus", "make", "--root", corpus, "--recipe", recipe_name, *overrides))
    said.step("precompute", "segments and frames into WebDataset shards, by Ray actors")
    said.call(
        sage(
            "precompute",
            "--corpus",
            "synthetic",
            "--root",
            corpus,
            "--out",
            shards,
            "--recipe",
            recipe_name,
            *overrides,
        )
    )
    summaries = model_spec(recipe.model.kind).stage_summaries
    training = ["--run", run_path, "--data", shards, "--recipe", recipe_name, *changes]
    if not control:
        said.step("stage 1", f"{summaries[0]}, under DeepSpeed", timed=False)
        said.call(sage("pretrain", *training, "--ranks", ranks))
    said.step("stage 2", f"{summaries[1]}, under DeepSpeed", timed=False)
    said.call(sage("finetune", *training, "--ranks", ranks))
    said.step("evaluate", "unseen sentences, held-out signers, and the controls to beat", timed=False)
    aligned = not control and model_spec(recipe.model.kind).gloss_similarity is not None
    gold = ["--gold", corpus] if aligned else []
    said.call(sage("evaluate", "--run", run_path, "--data", shards, *gold))
    said.step("translate", "one video, one sentence")
    video = first_test_video(corpus)
    said.call(sage("translate", video, "--model", run_path, "--figure", run_path / "translation.png"))
    said.step("report", "one page", timed=False)
    said.call(sage("report", run_path))
    said.finish()
    return run_path / "report.html"


def home_of_data(recipe: Recipe, home: Path) -> Path:
    """Returns the folder of corpus and shards: the demo's if the dataset is the same, else the run's."""
    demo = load_recipe("demo")
    same = recipe.dataset_part() == demo.dataset_part() and recipe.corpus_part() == demo.corpus_part()
    return home.with_name("demo") if same else home


def control_overrides(recipe: Recipe) -> list[str]:
    """Returns the overrides that skip stage 1 at the same budget of time.

    Stage 2 then trains all weights from the start, the visual side at stage 1's learning rate.
    """
    first, second = recipe.pretrain, recipe.finetune
    steps = round(model_spec(recipe.model.kind).control_steps * (first.max_steps + second.max_steps))
    limited = first.max_minutes and second.max_minutes
    return [
        "finetune.init=none",
        "finetune.freeze=none",
        f"finetune.max_steps={steps if first.max_steps and second.max_steps else 0}",
        f"finetune.max_minutes={first.max_minutes + second.max_minutes if limited else 0.0}",
        f"finetune.epochs={first.epochs + second.epochs}",
        f"finetune.visual_lr_scale={recipe.pretrain.lr / recipe.finetune.lr}",
    ]


def prototype_line(path: Path) -> str:
    """Returns a line with the micro F1 of the pseudo-glosses found in test clips, and of a constant prediction."""
    scores = json.loads(path.read_text(encoding="utf-8"))["splits"]["test"]
    return (
        f"pseudo-glosses found with F1 {scores['f1']:.1f} (by frequency alone {scores['control']['f1']:.1f})"
    )


def first_test_video(corpus: Path) -> Path:
    """Returns the video of the first test clip of the synthetic corpus."""
    for line in (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "test":
            return corpus / row["video"]
    raise SageError(f"{corpus}/manifest.jsonl has no test clip")


def sage(*arguments: object) -> list[str]:
    """Returns the command line of a `sage-scale` command under this interpreter."""
    return [sys.executable, "-m", "sage_scale.cli.main", *map(str, arguments)]


class Steps:
    """Runs the commands in turn; prints each command, its duration and the paths of the results."""

    def __init__(self, run_path: Path, total: int) -> None:
        self.run_path = run_path
        self.total = total
        self.number = 0
        self.started = time.monotonic()
        self._name = ""
        self._timed = False

    def step(self, name: str, what: str, timed: bool = True) -> None:
        """Announce the next step; `timed` steps are recorded here, the others record themselves."""
        self.number += 1
        self._name, self._timed = name, timed
        echo("", f"[{self.number}/{self.total}] {name}: {what}", flush=True)

    def call(self, command: list[str]) -> None:
        """Run a command. Raises SageError with its exit code if it fails."""
        shown = [Path(command[0]).name, *command[1:]]
        if command[1:3] == ["-m", "sage_scale.cli.main"]:
            shown = ["sage-scale", *command[3:]]
        echo("  $ " + " ".join(shown), flush=True)
        started = time.monotonic()
        environment = launcher.environment()
        if not torch.cuda.is_available():
            environment.setdefault("DS_ACCELERATOR", "cpu")  # the launcher would guess, and say so
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            error = SageError(
                f"the demo stopped at '{self._name}' (exit code {code}); run it again to go on from there"
            )
            error.exit_code = code if 0 < code < 126 else 1
            raise error
        seconds = time.monotonic() - started
        if self._timed:
            record_timing(self.run_path, self._name, seconds, 0)
        echo(f"  done in {clock(seconds)}", flush=True)

    def finish(self) -> None:
        """Print the closing lines: scores beside the best control, and the paths of the results."""
        scores = read_scores(self.run_path)["test"]
        line = f"BLEU-4 {scores['bleu4']:.1f} on {scores['clips']} unseen test sentences"
        if "heldout" in scores:
            line += f", {scores['heldout']['bleu4']:.1f} with held-out signers"
        controls = {name: values["bleu4"] for name, values in scores.get("controls", {}).items()}
        if controls:
            best = max(controls, key=controls.__getitem__)
            line += f"; best control ({best.replace('_', ' ')}) {controls[best]:.1f}"
        if (self.run_path / "prototypes.json").is_file():
            line += "; " + prototype_line(self.run_path / "prototypes.json")
        timing = json.loads((self.run_path / "timing.json").read_text(encoding="utf-8"))
        short = [f"{row['stage']}: {row['note']}" for row in timing if row.get("note")]
        took = f"all of it took {clock(time.monotonic() - self.started)}"
        echo("", line, *short, f"report: {self.run_path}/report.html", took, flush=True)
