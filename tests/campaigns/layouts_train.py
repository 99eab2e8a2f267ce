"""Claim: neither ranks, nor ZeRO stage, nor a resume at another layout changes what a stage learns.

    python tests/campaigns/layouts_train.py [--pairwise] [--steps 50] [--keep FOLDER] > docs/results/training_layouts.md

Both stages train a tiny model in float32 without dropout, under ZeRO 0, 1, 2, 3 with 1, 2, 3 and 4 gloo ranks, at one
global batch, with BatchNorm `sync` and `frozen`. Then each checkpoint of 1, 2 and 4 ranks, saved in the middle of an
epoch, is resumed by 2, 3 and 1 ranks at every ZeRO stage. Then batches that leave a rank with no clip at all, and
micro-batches (stage 1: the embedding cache, stage 2: gradient accumulation). Checked are

- every step's loss against one rank under ZeRO-0 (stage 2 always begins with that rank's stage 1);
- the clips of every whole epoch, over all ranks and across the resume: each of the dataset once.

`--models` takes Sign2GPT on two ranks, and on one after them, whose frozen weights must stay byte for byte, and frames
in chunks. `--pairwise` takes 16 layouts, with a resume each, in which every pair of (ranks, ZeRO stage, stage and
BatchNorm, ZeRO stage after the resume) occurs. Ranks are forked from this process, whose imports they share. Prints one
table and ends with code 1 where a loss is further off than TOLERANCE or a clip is seen too often or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "error")

import deepspeed
import deepspeed.runtime.zero.muon.original_muon

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse
from factories.forks import fork_ranks, in_fork
from factories.training import (
    SIZE,
    make_causal_folder,
    make_language_folder,
    make_shards,
    sign2gpt_recipe,
    tiny_recipe,
)
from transformers import ViTConfig, ViTModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from sage_scale.config import load_recipe, override, to_yaml
from sage_scale.training.stage import run_stage

STAGES, NORMS, ZEROS, RANKS = ("pretrain", "finetune"), ("sync", "frozen"), (0, 1, 2, 3), (1, 2, 3, 4)
RESUMED_BY = {1: 2, 2: 3, 3: 4, 4: 1}
"""Ranks that go on with the checkpoint of so many."""
PLAN = [("train", 20), ("train", 9), ("dev", 4)]
BATCH = 5
"""Odd: two, three and four ranks never get equal parts; 29 clips are six steps, the last of four clips."""
TOLERANCE = 1e-4
"""Of a loss, relative."""
IMAGE = ("model.backbone.folder={folder}/image",)
"""A vision transformer in place of the ResNet."""
LR = {"pretrain": 3e-4, "finetune": 3e-3}
"""At 3e-3 stage 1 is chaotic: a sum in another order flips a ReLU, and 45 steps later losses are 4e-4 off."""
get_checkpoint_conversion_mapping("mbart")  # what a first model is loaded with, kept for the forks
deepspeed.ops.__compatible_ops__  # noqa: B018  (what this machine can compile, found out once)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One run of one stage."""

    stage: str
    norm: str
    ranks: int
    zero: int
    batch: int = BATCH
    micro: int = 0
    model: str = "sage"
    chunk_frames: int = 0
    kept: tuple[str, ...] = ()
    """Changes of the recipe that the reference has, too."""

    @property
    def name(self) -> str:
        kept = "-image" if self.kept == IMAGE else "-augmented" if self.kept else ""
        options = f"b{self.batch}-m{self.micro}-c{self.chunk_frames}{kept}"
        return f"{self.model}-{self.stage}-{self.norm}-{self.ranks}x{self.zero}-{options}"

    def reference(self) -> Layout:
        """What it must equal."""
        return dataclasses.replace(self, ranks=1, zero=0, micro=0, chunk_frames=0)


@dataclasses.dataclass
class Told:
    """What a run told: the loss of each step, and each step's (epoch, clip)s, over all ranks."""

    losses: dict[int, float]
    clips: dict[int, list[tuple[int, str]]]
    seconds: float
    frozen: str = ""
    """sha256 of the frozen weights in the export, where the model has some."""


class Grid:
    """Runs layouts in `folder`, each once, and compares."""

    def __init__(self, folder: Path, steps: int, saved: int) -> None:
        self.folder, self.steps, self.saved = folder, steps, saved
        self.known: dict[str, Told] = {}
        if not (folder / "sign2gpt.yaml").is_file():
            in_fork(lambda: self._make_world())

    def _make_world(self) -> None:
        language = make_language_folder(self.folder / "language")
        causal = make_causal_folder(self.folder / "causal")
        config = ViTConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=SIZE,
            patch_size=8,
        )  # fmt: skip
        ViTModel(config).save_pretrained(self.folder / "image")
        recipe = tiny_recipe("frames", f"model.language_model={language}")
        make_shards(self.folder / "shards", recipe, PLAN)
        (self.folder / "sage.yaml").write_text(to_yaml(recipe))
        (self.folder / "sign2gpt.yaml").write_text(
            to_yaml(sign2gpt_recipe("frames", f"model.language_model={causal}"))
        )

    def straight(self, layout: Layout) -> Told:
        """A run from the first step to the last, with a checkpoint after `saved`."""
        return self._run(layout, layout.name, None)

    def resumed(self, layout: Layout, after: Layout) -> Told:
        """`layout` resumes the checkpoint of `after`; what both told, of the steps that count."""
        self.straight(after)
        part = self._run(layout, f"{layout.name}-after-{after.ranks}x{after.zero}", after)
        first = self.known[after.name]
        before = range(1, self.saved + 1)
        return Told(
            losses={step: first.losses[step] for step in before} | part.losses,
            clips={step: first.clips[step] for step in before} | part.clips,
            seconds=part.seconds,
            frozen=part.frozen,
        )

    def off(self, layout: Layout, told: Told) -> float:
        """The largest relative deviation of a loss from the reference's.

        Infinite where a step is missing or a frozen weight differs.
        """
        wanted = self.straight(layout.reference())
        if (
            told.frozen != wanted.frozen
            or told.losses.keys() != wanted.losses.keys()
            or len(wanted.losses) != self.steps
        ):
            return float("inf")
        return max(abs(told.losses[step] / loss - 1) for step, loss in wanted.losses.items())

    def epochs_wrong(self, told: Told) -> int:
        """Clips of whole epochs that were not seen exactly once; another than the dataset's counts as well."""
        by_epoch: dict[int, Counter[str]] = {}
        for seen in told.clips.values():
            for epoch, key in seen:
                by_epoch.setdefault(epoch, Counter())[key] += 1
        total = sum(count for split, count in PLAN if split == "train")
        whole = [counts for epoch, counts in by_epoch.items() if epoch < max(by_epoch)]
        everything = set().union(*whole)
        wrong = abs(len(everything) - total) if whole else 0
        return wrong + sum(1 for counts in whole for key in everything if counts[key] != 1)

    def _run(self, layout: Layout, name: str, after: Layout | None) -> Told:
        if name in self.known:
            return self.known[name]
        run = self.folder / name
        told = run / "told.json"
        if told.is_file():
            kept = json.loads(told.read_text())
            losses = {int(step): loss for step, loss in kept["losses"].items()}
            clips = {int(step): [(e, key) for e, key in seen] for step, seen in kept["clips"].items()}
            self.known[name] = Told(losses, clips, kept["seconds"], kept["frozen"])
            return self.known[name]
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        if layout.stage == "finetune":
            stage1 = Layout("pretrain", layout.norm, 1, 0, model=layout.model)
            self.straight(stage1)
            without = shutil.ignore_patterns("checkpoints", "log.jsonl")
            shutil.copytree(self.folder / stage1.name / "pretrain", run / "pretrain", ignore=without)
        if after is not None:
            checkpoint = Path(after.stage) / "checkpoints" / f"step-{self.saved:08d}"
            shutil.copytree(self.folder / after.name / checkpoint, run / checkpoint)
        changes = [f"model.batchnorm={layout.norm}"]
        settings: dict[str, float] = {
            "zero_stage": layout.zero, "batch_size": layout.batch, "micro_batch": layout.micro,
            "chunk_frames": layout.chunk_frames, "max_steps": self.steps, "save_every": self.saved,
            "keep_checkpoints": 9, "lr": LR[layout.stage],
        }  # fmt: skip
        changes += [change.format(folder=self.folder) for change in layout.kept]
        changes += [f"{layout.stage}.{key}={value}" for key, value in settings.items()]
        recipe = override(load_recipe(str(self.folder / f"{layout.model}.yaml")), changes)
        began = time.monotonic()

        def train() -> list[tuple[int, list[str]]]:
            seen: list[tuple[int, list[str]]] = []
            with noting(seen):
                run_stage(layout.stage, recipe, run, str(self.folder / "shards"))
            return seen

        seen = fork_ranks(layout.ranks, train)
        rows = map(json.loads, (run / layout.stage / "log.jsonl").read_text().splitlines())
        losses = {row["step"]: row["loss"] for row in rows if row["event"] == "step"}
        offset = self.saved if after is not None else 0
        clips = {}
        for rank in seen:
            for number, (epoch, keys) in enumerate(rank, start=offset + 1):
                clips.setdefault(number, []).extend((epoch, key) for key in keys)
        weights = run / "model" / "frozen.safetensors"
        frozen = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""
        assert frozen or layout.model == "sage" or layout.stage == "pretrain", "no frozen weights"
        self.known[name] = Told(losses, clips, time.monotonic() - began, frozen)
        told.write_text(json.dumps(dataclasses.asdict(self.known[name])))
        for path in (run / layout.stage / "tensorboard", run / "model"):
            shutil.rmtree(path, ignore_errors=True)
        return self.known[name]


@contextlib.contextmanager
def noting(seen: list[tuple[int, list[str]]]) -> Iterator[None]:
    """Within it every training batch that is taken from a stream is noted."""
    from sage_scale.training import loop, stage

    class Noted(loop.Loop):
        def train(self, compute, evaluate):  # type: ignore[no-untyped-def]
            def noted(batch):  # type: ignore[no-untyped-def]
                seen.append((int(batch.epoch), list(batch.keys)))
                return compute(batch)

            return super().train(noted, evaluate)

    stage.Loop = Noted  # type: ignore[misc]
    yield


def pairwise() -> list[tuple[Layout, Layout]]:
    """16 layouts and what resumes each: two orthogonal Latin squares over (ranks, ZeRO stage)."""
    kinds = [(stage, norm) for stage in STAGES for norm in NORMS]
    rows = []
    for a in range(4):
        for b in range(4):
            stage, norm = kinds[a ^ b]
            layout = Layout(stage, norm, RANKS[a], ZEROS[b])
            # Twice b in the field of four elements makes the second square orthogonal to the first.
            then = ZEROS[a ^ (0, 2, 3, 1)[b]]
            rows.append((layout, dataclasses.replace(layout, ranks=RESUMED_BY[RANKS[a]], zero=then)))
    return rows


def further(some: bool) -> list[Layout]:
    """Ranks without any clip in every step, and micro-batches; or a few of them."""
    if some:
        return [
            Layout("finetune", "sync", 3, 3, batch=2),
            Layout("pretrain", "frozen", 2, 2, micro=2),
            Layout("finetune", "frozen", 2, 1, micro=2),
        ]
    rows = [Layout(stage, "frozen", 4, zero, batch=3) for stage in STAGES for zero in ZEROS]
    rows += [Layout("finetune", "sync", 4, zero, batch=3) for zero in (2, 3)]
    rows += [Layout(stage, "frozen", ranks, zero, micro=2) for stage in STAGES for ranks, zero in
             ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (4, 2), (3, 3))]  # fmt: skip
    return rows


def of_models() -> list[tuple[Layout, Layout]]:
    """Sign2GPT's stages on two ranks, resumed by one, a trained image model, and SAGE's frames in chunks."""
    rows = []
    for stage, ends in (("pretrain", {2: 3}), ("finetune", {3: 1, 1: 0})):
        for zero in (1, 2, 3):
            layout = Layout(stage, "sync", 2, zero, model="sign2gpt")
            ended = dataclasses.replace(layout, ranks=1, zero=ends.get(zero, zero))
            rows.append((layout, ended if zero in ends else layout))
    # The second one leaves ranks without a clip.
    for ranks, zero, batch in ((2, 3, BATCH), (4, 2, 3)):
        image = Layout("pretrain", "frozen", ranks, zero, batch=batch, kept=IMAGE)
        rows.append((image, image))
    augmented = ("pretrain.augment.rotation=15", "pretrain.augment.brightness=0.2")
    for ranks, zero, micro in ((2, 1, 0), (2, 3, 0), (1, 2, 2)):  # chunks of frames within those of the cache
        chunked = Layout("pretrain", "frozen", ranks, zero, micro=micro, chunk_frames=7, kept=augmented)
        rows.append((chunked, chunked))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairwise", action="store_true", help="a covering part of the grid")
    parser.add_argument("--models", action="store_true", help="Sign2GPT and frames in chunks")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="folder for the runs, which goes on with those it has")
    parser.add_argument("--most", type=int, help="layouts of the covering part, no others")
    options = parse(parser, pairwise=True, steps=6, most=1)
    saved = options.steps // 2 + 1  # in the middle of an epoch, and once
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        grid = Grid(folder, options.steps, saved)
        found: dict[tuple[str, ...], list[tuple[str, float, int]]] = {}
        began = time.monotonic()

        def note(title: tuple[str, ...], label: str, layout: Layout, told: Told) -> None:
            row = (label, grid.off(layout, told), grid.epochs_wrong(told))
            found.setdefault(title, []).append(row)
            print(f"{time.monotonic() - began:6.0f} s  {' '.join(title)}: {label}  {row[1]:.1e}",
                  file=sys.stderr, flush=True)  # fmt: skip

        pairs, more = pairwise()[: options.most], further(options.pairwise) if options.most is None else []
        if options.models:
            pairs, more = of_models(), []
        elif not options.pairwise:
            every = [Layout(s, n, r, z) for s in STAGES for n in NORMS for r in RANKS for z in ZEROS]
            pairs = [(layout, dataclasses.replace(layout, ranks=RESUMED_BY[layout.ranks], zero=zero))
                     for layout in every for zero in ZEROS if layout.ranks != 3]  # fmt: skip
            pairs += [(layout, layout) for layout in every if layout.ranks == 3]
        for layout, then in pairs:
            title = (
                layout.stage if layout.model == "sage" else f"{layout.model} {layout.stage}",
                layout.norm,
            )
            if layout.name not in {row[0] for row in found.get((*title, "straight"), [])}:
                note((*title, "straight"), layout.name, layout, grid.straight(layout))
            if then != layout:
                label = f"{layout.ranks} ranks ZeRO-{layout.zero} -> {then.ranks} ranks ZeRO-{then.zero}"
                moved = f"{layout.ranks} to {then.ranks} ranks"
                note((*title, moved), label, then, grid.resumed(then, layout))
        for layout in more:
            kind = "micro-batches of 2" if layout.micro else "a rank without a clip"
            note((layout.stage, layout.norm, kind), layout.name, layout, grid.straight(layout))
    print("# Training: what does not change a run, the whole grid\n")
    print(f"{datetime.date.today()}, {os.cpu_count()} CPU cores. "
          f"`python tests/campaigns/layouts_train.py{' --pairwise' * options.pairwise} --steps {options.steps}`: "
          f"{options.steps} steps, checkpoints after step {saved}, global batch {BATCH}, "
          f"{sum(count for split, count in PLAN if split == 'train')} clips, float32, gloo; "
          f"tolerance {TOLERANCE:.0e}\n")  # fmt: skip
    print("| stage | BatchNorm | what | runs | largest deviation of a loss | clips seen wrongly |")
    print("|---|---|---|---|---|---|")
    bad = 0
    for (stage, norm, what), results in sorted(found.items()):
        most = max(row[1] for row in results)
        wrong = sum(row[2] for row in results)
        bad += sum(row[1] > TOLERANCE or row[2] > 0 for row in results)
        print(f"| {stage} | {norm} | {what} | {len(results)} | {most:.1e} | {wrong} |")
    total = sum(map(len, found.values()))
    print(f"\n{total - bad} of {total} runs as one rank under ZeRO-0, in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
