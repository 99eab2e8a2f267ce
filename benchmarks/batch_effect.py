"""What a larger contrastive batch brings: stage 1 at batch 16, 64 and 256 with the same number of clips seen.

    python benchmarks/batch_effect.py [--home runs/batch-effect] [--jobs 2] [--seeds 3] [--batches 16 64 256]

On the synthetic corpus, with the demo's model. For each batch size the learning rate is tuned on seed 0 by the loss on
dev (a best rate at the edge of the grid widens the grid), then every seed trains stage 1, is scored by retrieval
on one fixed gallery (the test clips, whose sentences and videos are never trained on), and goes through the same stage
2. Batch sizes differ in nothing else: each passes through the embedding cache in chunks of 16 clips, which are
BatchNorm's groups, and all start from one language model.

Everything ends by counts, not by the clock. A run is one process with one thread in a folder of its own; `--jobs` of
them run at a time, and finished ones are recognised, so the command may be stopped and repeated. A good hour on two
idle cores: 7,168 clips at 30 (direct) or 21 (cached) a second and core, 15 times or more, are two thirds of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import parse, sage, spread

from sage_scale.evaluation.stored import read_scores

CHUNK = 16
"""Clips that pass the encoder at once, at every batch size; the smallest batch is one chunk."""
WIDEST = 3
"""Learning rates that tuning may add to the first ones, by factors of 2 while the best lies at an edge."""


@dataclass(frozen=True)
class Size:
    """How much is made and trained."""

    corpus: dict[str, object]
    stage1_epochs: float
    stage2: dict[str, object]
    denoise_steps: int
    rates: tuple[float, ...]
    """Where tuning begins, AdamW; a single one is not tuned."""


FULL = Size(
    corpus={"train_clips": 1024, "dev_clips": 96, "test_clips": 512, "heldout_clips": 8},
    stage1_epochs=7,
    stage2={"epochs": 6, "frozen_views": 2},
    denoise_steps=600,
    rates=(5e-4, 1e-3, 2e-3),
)
SMALL = Size(
    corpus={"train_clips": 16, "dev_clips": 4, "test_clips": 4, "heldout_clips": 2},
    stage1_epochs=1,
    stage2={"epochs": 1, "frozen_views": 1},
    denoise_steps=5,
    rates=(1e-3,),
)


class Experiment:
    """Folders, commands and results of one campaign."""

    def __init__(self, home: Path, size: Size, jobs: int) -> None:
        self.home, self.size, self.jobs = home.resolve(), size, jobs
        self.shards = self.home / "shards"
        self.language = self.home / "language" / "language_model"
        # Every third frame, where the demo has every second: two thirds of the work.
        self.data = [f"corpus.{name}={value}" for name, value in size.corpus.items()] + [
            "vision.frame_stride=3"
        ]

    def prepare(self) -> None:
        """Corpus, shards and the language model that all runs share."""
        corpus = self.home / "corpus"
        if not (self.shards / "index.json").is_file():
            self.call("corpus", sage("corpus", "make", "--root", corpus, "--recipe", "demo", *self.data))
            self.call("shards", sage("precompute", "--corpus", "synthetic", "--root", corpus, "--out", self.shards,
                                     "--recipe", "demo", *self.data))  # fmt: skip
        if not (self.language / "prepared.json").is_file():
            self.call("language", own("language", self.language.parent, self.shards, self.size.denoise_steps))

    def stage1(self, batch: int, rate: float, seed: int) -> Path:
        """The folder of a finished stage 1, with `retrieval.json` in it."""
        run = self.home / f"batch-{batch}" / f"rate-{rate:g}" / f"seed-{seed}"
        if not (run / "retrieval.json").is_file():
            changes = [
                *self.data, "denoise.enabled=false", f"model.language_model={self.language}",
                "text.trim_vocabulary=false", "model.batchnorm=group", f"pretrain.micro_batch={CHUNK}",
                f"pretrain.batch_size={batch}", f"pretrain.lr={rate}", f"pretrain.epochs={self.size.stage1_epochs}",
                "pretrain.max_minutes=0", "pretrain.evaluate_every=-1", "pretrain.save_every=-1",
                f"pretrain.seed={seed}", f"finetune.seed={seed}", "finetune.max_minutes=0", "pretrain.max_steps=0",
                "finetune.max_steps=0",
                *(f"finetune.{name}={value}" for name, value in self.size.stage2.items()),
            ]  # fmt: skip
            self.call(
                "stage 1", sage("pretrain", "--run", run, "--data", self.shards, "--recipe", "demo", *changes)
            )
            self.call("gallery", own("gallery", run, self.shards))
        return run

    def stage2(self, run: Path) -> None:
        """Stage 2 and its BLEU, from the run's own recipe."""
        if "test" not in read_scores(run):
            self.call("stage 2", sage("finetune", "--run", run, "--data", self.shards))
            self.call("evaluate", sage("evaluate", "--run", run, "--data", self.shards, "--no-controls"))

    def tune(self, batch: int) -> dict[float, float]:
        """Dev loss by learning rate, seed 0; the least stands between two others, or `WIDEST` rates were added."""
        rates = list(self.size.rates)
        for _ in range(WIDEST + 1):
            runs = self.side_by_side(lambda rate: self.stage1(batch, rate, 0), rates)
            losses = {rate: dev_loss(run) for rate, run in zip(rates, runs, strict=True)}
            best = min(losses, key=losses.__getitem__)
            if len(rates) in (1, len(self.size.rates) + WIDEST) or best not in (min(rates), max(rates)):
                break
            rates.append(best / 2 if best == min(rates) else best * 2)
        return losses

    def side_by_side(self, work: Callable, items: Sequence) -> list:
        """`work` of every item, `jobs` at a time."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(work, items))

    def call(self, what: str, command: list[str]) -> None:
        """Run a command with one thread, its output into a log, its CPU time into cpu.jsonl."""
        log = self.home / "log.txt"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_LOG_LEVEL": "error",
            "PYTHONWARNINGS": "ignore",
        }
        print(f"{what}: {' '.join(command[1:])[-150:]}", flush=True)
        with log.open("ab") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        with (self.home / "cpu.jsonl").open("a") as file:
            file.write(json.dumps({"what": what, "cpu_s": used.ru_utime + used.ru_stime}) + "\n")
        if process.returncode:
            raise SystemExit(f"{what} failed with code {process.returncode}; the end of {log} says why")


def own(*arguments: object) -> list[str]:
    """This script, for one of its parts that need a process of their own."""
    return [sys.executable, str(Path(__file__).resolve()), "--part", *map(str, arguments)]


def make_language_model(run: str, shards: str, steps: str) -> None:
    """The demo's language model for these shards, in `run`/language_model."""
    from sage_scale.config import load_recipe
    from sage_scale.streaming import open_datasets
    from sage_scale.training import distributed
    from sage_scale.training.language.prepare import prepare_language_model

    recipe = load_recipe("demo", ["denoise.max_minutes=0", f"denoise.steps={steps}"])
    Path(run).mkdir(parents=True, exist_ok=True)
    prepare_language_model(recipe, Path(run), open_datasets(shards), distributed.initialise())


def measure_gallery(run: str, shards: str) -> None:
    """Retrieval among all test clips by the tokens that stage 1 left, into `run`/retrieval.json."""
    from contextlib import nullcontext

    import torch

    from sage_scale.config import load_recipe
    from sage_scale.evaluation.stage1_scores import tiled_retrieval
    from sage_scale.losses import objective_of
    from sage_scale.models.sage import pretraining as alignment
    from sage_scale.models.sage.mbart import TextEncoder, load_language_model
    from sage_scale.models.sage.model import SageAligner
    from sage_scale.streaming import open_datasets
    from sage_scale.training import distributed
    from sage_scale.training.export import load_tensors
    from sage_scale.training.stage import STAGE1

    folder = Path(run)
    recipe = load_recipe(folder / "recipe.yaml")
    language_model, tokenizer = load_language_model(recipe.model.language_model)
    model = SageAligner(recipe, language_model)
    model.load_state_dict(load_tensors(folder / STAGE1), strict=False)
    trained: Any = SimpleNamespace(
        evaluation_model=model.eval(), ranks=distributed.initialise(), precision=nullcontext
    )
    text = TextEncoder(language_model, tokenizer)
    rows = alignment.embed_split(recipe, trained, text, open_datasets(shards), "test")
    sides = [[row[name] for row in rows] for name in ("visual", "embeddings")]
    visual_ND, text_MD = map(torch.cat, sides)
    n, m = ([len(tokens) for tokens in side] for side in sides)
    figures = tiled_retrieval(objective_of(recipe.clcl), visual_ND, text_MD, n, m)
    texts = len({row["text"] for row in rows})
    (folder / "retrieval.json").write_text(json.dumps({"clips": len(rows), "texts": texts, **figures}) + "\n")


def dev_loss(run: Path) -> float:
    """Loss over all dev clips as one batch, of the weights that were kept."""
    return min(row["loss"] for row in events(run, "dev"))


def events(run: Path, kind: str) -> list[dict]:
    """Rows of stage 1's log of one kind."""
    rows = map(json.loads, (run / "pretrain" / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == kind]


def print_tables(runs: dict[int, list[Path]], tuned: dict[int, dict[float, float]]) -> None:
    """What was tried, and what came of it."""
    print("\n| batch | dev loss at each learning rate (seed 0) |\n|---|---|")
    for batch, losses in tuned.items():
        best = min(losses, key=losses.__getitem__)
        tried = ", ".join(
            f"{rate:g}: {'**' if rate == best else ''}{losses[rate]:.3f}{'**' if rate == best else ''}"
            for rate in sorted(losses)
        )
        print(f"| {batch} | {tried} |")
    gallery = json.loads((next(iter(runs.values()))[0] / "retrieval.json").read_text())
    print(
        f"\nGallery: {gallery['clips']} test clips, {gallery['texts']} different texts. Percent; mean ± deviation.\n"
    )
    scores = ("r1", "r5", "r10", "median_rank")
    names = [f"{score}_{way}" for way in ("v2t", "t2v") for score in scores]
    shown = [f"{name.split('_')[0].upper().replace('R', 'R@') if name[0] == 'r' else 'median rank'} {name[-3:]}"
             for name in names]  # fmt: skip
    head = ["batch", "rate", "updates", "clips seen", "same text, % of a batch", *shown, "BLEU-4", "seeds"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for batch, folders in runs.items():
        figures = [json.loads((run / "retrieval.json").read_text()) for run in folders]
        bleu = [read_scores(run)["test"]["bleu4"] for run in folders]
        steps = events(folders[0], "step")
        repeated = 100 * statistics.fmean(row["same_text_share"] for row in steps)
        cells = [
            batch, folders[0].parent.name.removeprefix("rate-"), len(steps),
            f"{sum(row['clips'] for row in steps):.0f}", f"{repeated:.1f}",
            *(spread([row[name] for row in figures]) for name in names), spread(bleu), len(folders),
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("runs/batch-effect"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--epochs", type=float, help="of stage 1; all batch sizes see as many clips")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parse(parser, seeds=1, batches=[16])
    if options.part:
        part: Callable[..., None] = make_language_model if options.part[0] == "language" else measure_gallery
        part(*options.part[1:])
    elif options.small:
        with tempfile.TemporaryDirectory() as folder:
            options.home = Path(folder)
            compare(options, SMALL)
    else:
        compare(options, FULL)


def compare(options: argparse.Namespace, size: Size) -> None:
    """Tune, train and score all batch sizes, then print the tables."""
    options.home.mkdir(parents=True, exist_ok=True)
    if options.epochs:
        size = replace(size, stage1_epochs=options.epochs)
    experiment = Experiment(options.home, size, options.jobs)
    experiment.prepare()
    tuned = dict(zip(options.batches, [experiment.tune(batch) for batch in options.batches], strict=True))
    wanted = [
        (batch, min(losses, key=losses.__getitem__), seed)
        for batch, losses in tuned.items()
        for seed in range(options.seeds)
    ]
    folders = experiment.side_by_side(lambda case: experiment.stage1(*case), wanted)
    experiment.side_by_side(experiment.stage2, folders)
    runs = {
        batch: [folder for case, folder in zip(wanted, folders, strict=True) if case[0] == batch]
        for batch in tuned
    }
    print_tables(runs, tuned)
    used = [json.loads(line)["cpu_s"] for line in (experiment.home / "cpu.jsonl").read_text().splitlines()]
    print(f"\nCPU time of all runs, also of earlier calls: {sum(used) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
