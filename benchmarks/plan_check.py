"""`sage-scale plan` beside what this machine does: storage, memory, precompute and the stages of the demo.

    python benchmarks/plan_check.py --out docs/results/plan.md             # times in CPU seconds: other work may go on
    python benchmarks/plan_check.py --clock --out docs/results/plan.md     # by the clock: leave the machine alone
    python benchmarks/plan_check.py --small

1. A pilot (a few clips of the synthetic corpus) is made, and `bench calibrate` runs with its videos and shards.
2. The corpus is made with other clips and looked at by `corpus inspect --probe --json`; the plan is computed from this
   file and the calibration alone.
3. Precompute really runs, to frames, and on the pilot to features of two views: bytes of all objects, CPU seconds of
   the actors' work (without Ray; with `--clock` the command, with Ray, by the clock).
4. Both stages really run from those shards for a number of steps, their language model of two steps.
5. Peak memory of both stages' steps under DeepSpeed, by torch's profiler, beside the plan's.

Allowed: storage 5%, memory 10%, times 25%.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import MEANINGLESS, parse, sage
from factories.memory import peak_bytes
from frames_path import random_targets
from train_gpu import WORDS, made_video
from transformers import MBartForConditionalGeneration

from sage_scale.config import Recipe, load_recipe
from sage_scale.corpora.registry import read_corpus
from sage_scale.experiments import calibration
from sage_scale.experiments.calibration_pieces import pieces
from sage_scale.experiments.calibration_steps import calibrate_steps
from sage_scale.models.sage.describe import language_model_config
from sage_scale.models.sage.model import SageAligner, SageTranslator
from sage_scale.models.sage.plan import SagePlans, Stage1, Stage2
from sage_scale.planning import Gpu, PlanRequest
from sage_scale.planning.constants import load_constants
from sage_scale.planning.corpus_size import corpus_size, dataset_size
from sage_scale.planning.preprocessing import clip_size, preprocessing, storage
from sage_scale.planning.training_time import STAGES, Machine, stage_time
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.precompute.progress import UnitDone
from sage_scale.shards import finish_dataset, open_dataset
from sage_scale.storage import open_store
from sage_scale.training import distributed
from sage_scale.training.engine import Engine

ALLOWED = {"storage": 0.05, "memory": 0.10, "time": 0.25}
FEATURES = ("vision.kind=features", "vision.allow_random_backbone=true", "vision.feature_views=2")
NEEDED = ("decoding", "JPEG", "segments and text", "writing and loading")
"""Measurements that the demo's plan uses."""


@dataclass(frozen=True)
class Line:
    """One comparison."""

    kind: str
    name: str
    planned: float
    measured: float
    unit: str

    @property
    def off(self) -> float:
        return self.planned / self.measured - 1

    @property
    def good(self) -> bool:
        return abs(self.off) <= ALLOWED[self.kind]


class Lines(list[Line]):
    """The comparisons, each told when it is made."""

    def __iadd__(self, more: Iterable[Line]) -> Lines:  # type: ignore[override,misc]
        for line in more:
            print(
                f"{line.kind}: {line.name}: {line.planned:.4g} {line.unit}, measured {line.measured:.4g}",
                flush=True,
            )
            self.append(line)
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=160, help="training clips")
    parser.add_argument("--pilot", type=int, default=32, help="training clips of the pilot")
    parser.add_argument("--steps", type=int, default=30, help="of each stage; 0: stages are left out")
    parser.add_argument("--batch", type=int, default=32, help="clips of the steps whose memory is measured")
    parser.add_argument(
        "--clock", action="store_true", help="times by the clock, with Ray, on an idle machine"
    )
    parser.add_argument("--out", type=Path, help="page of Markdown to write")
    options = parse(parser, clips=4, pilot=3, steps=0, batch=2)
    torch.set_num_threads(1)
    lines = Lines()
    with tempfile.TemporaryDirectory(prefix="sage-scale-plan-") as scratch:
        folder = Path(scratch)
        few = corpus_counts(options.pilot, seed=1)
        pilot, shards = make_corpus(folder / "pilot", few), folder / "pilot-shards"
        precompute(load_recipe("demo", [f"corpus.root={pilot}", *few]), shards)
        seconds = 0.02 if options.small else 1.0
        needed = NEEDED + (("start of precompute",) if options.clock else ())
        rates = calibrate(pilot, shards, folder / "machine.yaml", options.steps, seconds, needed)
        counts = corpus_counts(options.clips, seed=2)
        root = make_corpus(folder / "corpus", counts)
        lines += check_precompute(root, counts, rates, folder, "frames", options.clock)
        lines += check_precompute(
            pilot, [*few, *FEATURES], rates, folder, "features of two views", options.clock
        )
        if options.steps:
            lines += check_stages(folder / "frames", rates, options.steps, options.clock)
    lines += check_memory(options.batch)
    page = report(lines, options)
    print(page)
    if options.out:
        options.out.write_text(page, encoding="utf-8")


def corpus_counts(clips: int, seed: int) -> list[str]:
    few = max(1, clips // 10)
    return [f"corpus.seed={seed}", f"corpus.train_clips={clips}", f"corpus.dev_clips={few}",
            f"corpus.test_clips={few}", f"corpus.heldout_clips={few}"]  # fmt: skip


def make_corpus(root: Path, counts: Sequence[str]) -> Path:
    subprocess.run(sage("corpus", "make", "--root", root, *counts), check=True, capture_output=True)
    return root


def precompute(recipe: Recipe, out: Path) -> float:
    """Make a dataset in this process, without Ray. Returns its CPU seconds."""
    job = PrecomputeJob(recipe=recipe, manifest=read_corpus(recipe.corpus), url=str(out), quiet=True)
    worker = UnitWorker(recipe, str(out))
    digest = job.environment_check(None)(worker.environment())
    begun = time.process_time()
    for unit in job.units:
        *_, last = worker.work(unit, digest)
        assert isinstance(last, UnitDone), last
    spent = time.process_time() - begun
    finish_dataset(open_store(str(out)))
    return spent


def calibrate(
    pilot: Path, shards: Path, out: Path, steps: int, seconds: float, needed: Sequence[str]
) -> Path:
    """What `sage-scale bench calibrate --videos PILOT --data SHARDS --recipe demo` measures, as far as it is used."""
    found = calibration.Calibration("sage-scale bench calibrate --videos PILOT --data SHARDS --recipe demo")
    videos = calibration.videos_of(pilot / "videos")
    settings = calibration.Settings(recipe=load_recipe("demo"), seconds=seconds, videos=videos)
    for name, measure in pieces(settings):
        if name in needed:
            measure(found)
    if steps:
        calibrate_steps(found, "demo", (), [str(shards)])
    out.write_text(found.to_yaml(), encoding="utf-8")
    return out


def check_precompute(
    root: Path, changes: Sequence[str], rates: Path, folder: Path, name: str, clock: bool
) -> list[Line]:
    """Storage, and the time of precompute; of features, whose backbone was not calibrated on, storage alone."""
    inspect = folder / "inspect.json"
    asked = sage("corpus", "inspect", "--root", root, "--probe", "--json", *changes)
    inspect.write_text(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    recipe = load_recipe("demo", [f"corpus.root={root}", *changes])
    features = recipe.vision.kind == "features"
    if features:
        recipe = replace(recipe, model=replace(recipe.model, feature_dim=512))
    constants = load_constants(str(rates))
    corpus = corpus_size(recipe, str(inspect))
    stored = storage(recipe, corpus, clip_size(recipe, corpus, constants), constants)
    out, begun = folder / recipe.vision.kind, time.monotonic()
    if clock and not features:
        cpus = os.cpu_count() or 1
        made = preprocessing(recipe, corpus, stored, constants, cpus)
        made_there = ("--corpus", "synthetic", "--root", root)
        command = sage("precompute", *made_there, "--out", out, "--recipe", "demo", *changes)
        subprocess.run(command, check=True, capture_output=True)
        planned, spent = made.wall_seconds, time.monotonic() - begun
    else:
        made = preprocessing(recipe, corpus, stored, constants, 1)
        planned, spent = 3600 * made.cpu_hours, precompute(recipe, out)
    found = sum(path.stat().st_size for path in out.iterdir())
    lines = [Line("storage", f"dataset of {name}", stored.total / 1e6, found / 1e6, "MB")]
    if not features:
        unit = "s" if clock else "CPU s"
        lines.append(Line("time", f"precompute of {corpus.clips} clips", planned, spent, unit))
    return lines


def check_stages(shards: Path, rates: Path, steps: int, clock: bool) -> Iterator[Line]:
    """Seconds of both stages, on one rank."""
    limits = [
        f"{stage}.{key}" for stage in STAGES for key in (f"max_steps={steps}", "epochs=1e9", "max_minutes=0")
    ]
    recipe = load_recipe("demo", limits)
    constants = load_constants(str(rates))
    corpus = dataset_size(recipe, [open_dataset(shards)], 128)
    clip = clip_size(recipe, corpus, constants)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    device = Gpu(memory, 0.1)
    plans = SagePlans(PlanRequest(recipe, clip, 1, "cpu", device, (), 0, 1, 0, 0.3))
    machine = Machine(gpu="cpu", device=device, cpus=1.0, share=0.0, remote=False)
    stored = storage(recipe, corpus, clip, constants)
    with tempfile.TemporaryDirectory(prefix="sage-scale-plan-run-") as run:
        for stage in STAGES:
            time_of = stage_time(recipe, stage, plans, corpus, clip, stored, constants, machine, 1, 1)
            small = ["denoise.steps=2", "denoise.max_minutes=0"]
            command = sage(stage, "--run", run, "--data", shards, "--recipe", "demo", *limits, *small)
            before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            measured = time.monotonic() - begun if clock else spent
            unit = "s" if clock else "CPU s"
            yield Line("time", f"{stage} of the demo, {steps} steps", time_of.seconds, measured, unit)


def check_memory(clips: int) -> Iterator[Line]:
    """Peak of tensors of two steps of each stage under DeepSpeed, the model's making included."""
    ranks = distributed.initialise()
    recipe = load_recipe(
        "demo", ["pretrain.precision=fp32", "finetune.precision=fp32", "finetune.freeze=none"]
    )
    video, clip = made_video(recipe, clips, 48)
    config = language_model_config(recipe)

    def first() -> None:
        engine = Engine(SageAligner(recipe, MBartForConditionalGeneration(config)), recipe.pretrain, ranks)
        text = random_targets(clips, config.d_model, ranks.device)
        for _ in range(2):
            share, _ = engine.forward(video, text)
            engine.backward(share)
            engine.step(0.5)
            del share

    def second() -> None:
        engine = Engine(SageTranslator(recipe, MBartForConditionalGeneration(config)), recipe.finetune, ranks)
        labels = torch.randint(4, config.vocab_size, (clips, WORDS + 2))
        for _ in range(2):
            loss, tokens = engine.forward(video, labels, labels.roll(1, 1), 0.1)
            engine.backward(loss / tokens)
            engine.step(0.5)
            del loss

    planned_1 = Stage1(recipe, clip, 1, False).plan(clips)
    planned_2 = Stage2(recipe, clip, 1, False).plan(clips)
    without_text = (
        planned_1.device_bytes - planned_1.weights.frozen
    )  # the frozen text side is outside of a step here
    for name, work, planned in (("1", first, without_text), ("2", second, planned_2.device_bytes)):
        yield Line("memory", f"stage {name}, {clips} clips", planned / 1e6, peak_bytes(work) / 1e6, "MB")


def report(lines: Sequence[Line], options: argparse.Namespace) -> str:
    """The page."""
    how = "by the clock" if options.clock else "in CPU seconds, beside other work"
    command = " ".join(["python benchmarks/plan_check.py", *sys.argv[1:]])
    page = [
        "# The plan beside this machine",
        "",
        *([MEANINGLESS, ""] if options.small else []),
        f"{time.strftime('%Y-%m-%d')}, {calibration.machine()}; `{command}`. Times are {how}.",
        "",
        "| | planned | measured | unit | off | allowed | |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        page.append(
            f"| {line.kind}: {line.name} | {line.planned:,.4g} | {line.measured:,.4g} | {line.unit} "
            f"| {line.off:+.1%} | {ALLOWED[line.kind]:.0%} | {'within' if line.good else 'outside'} |"
        )
    left = "Not run: the same by the clock, with Ray's start (`--clock`), which needs an idle machine."
    page += [] if options.clock else ["", left]
    return "\n".join(page) + "\n"


if __name__ == "__main__":
    main()
