"""The whole plan of a corpus and a recipe: storage, precompute, both stages on several layouts, and advice.

Pure: figures in, figures out. `cli/plan.py` prints it as tables, Markdown or JSON.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sage_scale.config import Recipe
from sage_scale.planning.constants import Constants
from sage_scale.planning.corpus_size import CorpusSize
from sage_scale.planning.preprocessing import (
    Preprocessing,
    Storage,
    half_precision_gain,
    preprocessing,
    storage,
    stored_otherwise,
)
from sage_scale.planning.prices import Prices
from sage_scale.planning.step import ClipSize, StagePlans
from sage_scale.planning.training_time import STAGES, Machine, StageTime, stage_time

LAYOUTS = ((1, 1), (1, 8), (4, 8))
"""Nodes and GPUs of a node that every plan compares."""
WASTE = 1.3
"""More GPUs are recommended while their GPU hours stay within this multiple of the fewest."""


@dataclass(frozen=True)
class Overview:
    """A plan; seconds, bytes and counts."""

    recipe: Recipe
    corpus: CorpusSize
    clip: ClipSize
    storage: Storage
    preprocessing: Preprocessing
    stages: Sequence[StageTime]
    """Both stages on each layout."""
    machine: Machine
    nodes: int
    """Of precompute."""
    cpus: int
    """CPUs of a node, of precompute."""
    prices: Prices | None
    constants: Constants

    def of(self, stage: str) -> list[StageTime]:
        """Returns a stage on each layout."""
        return [time for time in self.stages if time.stage == stage]

    def recommended(self, stage: str) -> StageTime | None:
        """Returns the stage on the most GPUs whose GPU hours are near the fewest; None where no layout fits."""
        fitting = [time for time in self.of(stage) if time.fits]
        if not fitting:
            return None
        least = min(time.gpu_hours for time in fitting)
        return max((t for t in fitting if t.gpu_hours <= WASTE * least), key=lambda time: time.ranks)

    def price(self, time: StageTime) -> float | None:
        """Returns the price of a stage's GPU hours, None where it is not known."""
        hour = self.prices.gpu_hour.get(self.machine.gpu) if self.prices else None
        return None if hour is None else hour * time.gpu_hours

    @property
    def precompute_price(self) -> float | None:
        """Returns the price of the nodes' CPUs while precompute runs."""
        hour = self.prices.cpu_hour if self.prices else None
        wall_hours = self.preprocessing.wall_seconds / 3600
        return None if hour is None else hour * wall_hours * self.nodes * self.cpus

    @property
    def storage_price(self) -> float | None:
        """Returns the price of the dataset for a month."""
        month = self.prices.storage_gb_month if self.prices else None
        return None if month is None else month * self.storage.total / 1e9

    def advice(self) -> list[str]:
        """Returns lines on what to change or choose before the start."""
        lines, recipe = [], self.recipe
        gain = half_precision_gain(recipe, self.constants)
        if gain > 1 and self.preprocessing.device == "cpu":
            lines.append(
                "vision.backbone_dtype=bfloat16 where every processor of precompute has bfloat16 units (AMX, AVX-512; "
                f"`sage-scale doctor` says so): the backbone is then {gain:.1f} times faster. It gives other bytes; "
                "nothing switches by machine"
            )
        for stage in STAGES:
            best = self.recommended(stage)
            if best is None:
                most = max(self.of(stage), key=lambda time: time.ranks)
                lines.append(
                    f"{stage} does not fit into {self.machine.device.memory_gb:g} GB on any of these layouts (it needs "
                    f"{most.memory_bytes / 1e9:,.0f} GB on {most.ranks} GPUs): see docs/memory.md"
                )
                continue
            lines.append(self._recommendation(best))
            if best.micro_batch:
                group = " and model.batchnorm=group or frozen" if stage == "pretrain" else ""
                lines.append(f"{stage} fits with {stage}.micro_batch={best.micro_batch}{group}")
            if best.bound == "decoding":
                lines.append(f"{stage} waits for decoding: raise stream.workers up to the CPUs of a GPU")
            if best.inline and recipe.vision.kind == "frames":
                lines.append(f"{stage} decodes between its steps: set stream.workers=4 or more")
        cache = recipe.stream.cache_gb * 1e9
        if self.machine.remote and self.storage.total > cache:
            lines.append(
                f"the dataset ({digits(self.storage.total / 1e9)} GB) is larger than a node's cache: with "
                f"stream.cache_gb={math.ceil(self.storage.total / 1e9 * 1.05)} and such a disk it is transferred once"
            )
        return lines

    def _recommendation(self, best: StageTime) -> str:
        others = [t for t in self.of(best.stage) if t.ranks > best.ranks and t.fits]
        more = ""
        if others:
            most = max(others, key=lambda time: time.ranks)
            times = most.gpu_hours / best.gpu_hours
            more = f"; {most.ranks} take {hours(most.hours)} and {times:.1f} times the GPU hours"
        kind = "rank" if self.machine.gpu == "cpu" else self.machine.gpu
        return f"{best.stage}: {best.ranks} x {kind}, {hours(best.hours)}, bound by {best.bound}{more}"

    def to_mapping(self) -> dict[str, Any]:
        """Returns the plan as plain values, for JSON."""
        return {
            "recipe": self.recipe.name,
            "corpus": dataclasses.asdict(self.corpus),
            "clip": dataclasses.asdict(self.clip),
            "storage": {
                **dataclasses.asdict(self.storage),
                "total_bytes": self.storage.total,
                "otherwise_bytes": stored_otherwise(self.recipe, self.corpus, self.clip, self.constants),
                "price_a_month": self.storage_price,
            },
            "precompute": {
                **dataclasses.asdict(self.preprocessing),
                "nodes": self.nodes,
                "cpus_a_node": self.cpus,
                "cpu_hours": self.preprocessing.cpu_hours,
                "price": self.precompute_price,
            },
            "stages": [
                {
                    **dataclasses.asdict(time),
                    "ranks": time.ranks,
                    "bound": time.bound,
                    "hours": time.hours,
                    "gpu_hours": time.gpu_hours,
                    "price": self.price(time),
                }
                for time in self.stages
            ],
            "advice": self.advice(),
            "prices": None if self.prices is None else dataclasses.asdict(self.prices),
            "constants": [{**dataclasses.asdict(c), "source": c.source} for c in self.constants.used],
        }


def make_overview(
    recipe: Recipe,
    corpus: CorpusSize,
    clip: ClipSize,
    plans: StagePlans,
    constants: Constants,
    machine: Machine,
    nodes: int,
    gpus: int,
    cpus: int,
    prices: Prices | None = None,
) -> Overview:
    """Returns the plan; `nodes` with `gpus` and `cpus` each are a layout of their own beside LAYOUTS."""
    stored = storage(recipe, corpus, clip, constants)
    on_gpu = None if machine.gpu == "cpu" else machine.device
    made = preprocessing(recipe, corpus, stored, constants, nodes * cpus, on_gpu, nodes * gpus)
    standard = () if machine.gpu == "cpu" else LAYOUTS
    layouts = sorted({*standard, (nodes, gpus)}, key=lambda pair: (pair[0] * pair[1], pair[0]))
    stages = [
        stage_time(recipe, stage, plans, corpus, clip, stored, constants, machine, *layout)
        for stage in STAGES
        for layout in layouts
    ]
    return Overview(recipe, corpus, clip, stored, made, stages, machine, nodes, cpus, prices, constants)


def hours(value: float) -> str:
    """Returns hours as minutes, hours or days."""
    if value < 1:
        return f"{60 * value:.2g} min" if value < 1 / 6 else f"{60 * value:.0f} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days"


def tables(plan: Overview) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Returns title, columns and rows of each table of a plan."""
    found: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = []
    corpus, stored, made = plan.corpus, plan.storage, plan.preprocessing
    rows = [(name, digits(size / 1e9)) for name, size in stored.parts.items()]
    rows.append((f"all, {stored.units:,} shards", digits(stored.total / 1e9)))
    if plan.machine.remote:
        cache = min(stored.total, plan.recipe.stream.cache_gb * 1e9)
        rows.append(
            (
                f"of it in a node's cache (stream.cache_gb={plan.recipe.stream.cache_gb:g})",
                digits(cache / 1e9),
            )
        )
    if plan.prices:
        rows.append(("a month", plan.prices.shown(plan.storage_price)))
    found.append((f"storage of {corpus.clips:,} clips as {stored.kind}", ("part", "GB"), rows))
    others = stored_otherwise(plan.recipe, corpus, plan.clip, plan.constants)
    rows = [(name, digits(size / 1e9)) for name, size in others.items()]
    found.append(("the same clips as other samples", ("kind", "GB"), rows))
    rows = [(name, digits(seconds / 3600)) for name, seconds in made.cpu_seconds.items()]
    rows.append(("all stages, CPU hours", digits(made.cpu_hours)))
    if made.gpu_seconds:
        rows.append(("backbone, GPU hours", digits(made.gpu_seconds / 3600)))
    rows.append((f"by the clock, {made.actors:,} actors", hours(made.wall_seconds / 3600)))
    if plan.prices:
        rows.append((f"{plan.nodes} x {plan.cpus} CPUs meanwhile", plan.prices.shown(plan.precompute_price)))
    found.append(("precompute", ("stage", "CPU hours"), rows))
    kind = "ranks" if plan.machine.gpu == "cpu" else plan.machine.gpu
    columns = [kind, "steps", "ms of a step: compute", "ms: decoding", "ms: network", "ms: store", "bound by", "time",
               "of it beside steps", "GPU hours",
               "GB a rank", "checkpoint, GB", "seconds of its save, in the background"]  # fmt: skip
    if plan.prices:
        columns.append("price")
    for stage, number in zip(STAGES, (1, 2)):
        lines = []
        for time in plan.of(stage):
            lines.append(
                [
                    f"{time.ranks}" if time.nodes == 1 else f"{time.nodes} nodes x {time.gpus}",
                    f"{time.steps:,}",
                    *(digits(1000 * seconds) for seconds in time.parts.values()),
                    time.bound,
                    hours(time.hours),
                    hours(sum(time.extra.values()) / 3600),
                    digits(time.gpu_hours),
                    digits(time.memory_bytes / 1e9) + ("" if time.fits else " (too much)"),
                    digits(time.checkpoint_bytes / 1e9),
                    digits(time.save_seconds),
                    *([plan.prices.shown(plan.price(time))] if plan.prices else []),
                ]
            )
        batch = getattr(plan.recipe, stage).batch_size
        title = f"stage {number}, {stage}, batch {batch:,}"
        first, *rest = zip(columns, *lines)
        found.append((title, first, rest))
    return found


def sources(plan: Overview) -> list[str]:
    """Returns a line for each constant that the plan used: value, unit, and device, date and command, or `assumed`."""
    return [f"{c.name} = {c.shown} {c.unit} ({c.source})" for c in plan.constants.used]


def digits(value: float) -> str:
    """Returns a number with three digits, without exponent."""
    if value >= 1000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value >= 0.001 else "<0.001"


def notes(plan: Overview) -> list[str]:
    """Returns lines before the tables: what is planned, and what the figures rest on."""
    corpus, clip = plan.corpus, plan.clip
    beside = ", ".join(plan.stages[0].extra)
    lines = [
        f"corpus {corpus.name}: {corpus.train:,} training, {corpus.dev:,} dev and {corpus.test:,} other clips, "
        f"{digits(corpus.hours)} hours ({corpus.source})",
        f"a clip: {corpus.seconds:.3g} s, {clip.frames:.3g} stored frames, {clip.visual_tokens:.3g} visual and "
        f"{clip.text_tokens:.3g} text tokens; its pictures are {corpus.height} pixels high",
    ]
    if plan.machine.gpu != "cpu":
        lines.append("no GPU has run this project: all rates of GPUs are assumed (last list)")
    lines.append(f"a stage's time beside its steps: {beside}")
    if plan.machine.remote:
        lines.append("the dataset is taken to lie in an object store; --shards FOLDER measures one on disk")
    if plan.prices is None:
        lines.append(
            "no prices are known: give a file of yours with --prices (launch/prices.yaml shows the form)"
        )
    else:
        false = "placeholders, which mean nothing" if plan.prices.placeholder else "prices"
        lines.append(f"{false}: {plan.prices.source}")
    return lines
