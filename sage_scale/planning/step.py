"""Sizes of clips and steps, accelerators, and weights and optimizer states of a rank under ZeRO.

Operations of a step are those of MFU (Chowdhery et al. 2022, appendix B): forward and backward once, each
multiplication and addition of a matrix product as one operation. Work that is computed twice (recomputed layers, the
embedding cache) does not count twice, and a backward pass is two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sage_scale.config import Recipe, Stage

if TYPE_CHECKING:
    from rich.table import Table

PASSES = 3
"""Forward, and backward with twice its work."""
LOGIT_BYTES = {4: 12, 2: 14}
"""Kept for a subword of the vocabulary (product, float32, log-probability, gradient), by bytes of a product's value."""
RESERVED = 0.08
"""Share of a GPU's memory that is not ours: context, libraries, fragments."""
BUCKET_ELEMENTS = 50_000_000
"""Gradient elements that DeepSpeed reduces over the ranks in one bucket, unless one weight is larger."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device."""

    memory_gb: float
    """Memory, 10^9 bytes."""
    bf16_tflops: float
    """Dense bfloat16 products accumulated in float32, 10^12 operations a second."""


GPUS: dict[str, Gpu] = {
    "rtx3090": Gpu(24, 71),
    "rtx4090": Gpu(24, 165),
    "l40s": Gpu(48, 362),
    "a100-40": Gpu(40, 312),
    "a100": Gpu(80, 312),
    "h100": Gpu(80, 989),
    "h200": Gpu(141, 989),
    "b200": Gpu(180, 2250),
}


def gpu_named(name: str) -> Gpu | None:
    """Returns the data sheet of a device by the name its driver gives it ("NVIDIA H100 80GB HBM3"), or None."""
    plain = name.lower().replace(" ", "").replace("-", "")
    found = [key for key in GPUS if key.replace("-", "") in plain]
    return GPUS[max(found, key=len)] if found else None


@dataclass(frozen=True, slots=True)
class ClipSize:
    """A mean clip of a corpus."""

    frames: float
    """Stored frames (on the recipe's stride) in its segments."""
    visual_tokens: float
    """Segments, N."""
    text_tokens: float
    """Subwords of its pseudo-glosses or sentence, M."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """Sizes of a global batch; means may be multiplied by a number of clips."""

    clips: float
    frames: float
    """Frames in segments."""
    visual_tokens: float
    text_tokens: float
    """Subwords: stage 1, of pseudo-glosses or sentences; stage 2, labels."""


@dataclass(frozen=True)
class PlanRequest:
    """A plan that is asked for."""

    recipe: Recipe
    clip: ClipSize
    ranks: int
    gpu: str
    """Name of the device."""
    device: Gpu
    batches: tuple[int, ...]
    """Global batches beside the recipe's; empty: the model's choice."""
    chunk: int
    """Clips in a chunk of the embedding cache; 0: the recipe's."""
    prototypes: int
    """Pseudo-glosses with a prototype."""
    vocabulary: int
    """Subwords that trimming leaves; 0: the language model's own."""
    share: float
    """Share of the device's matrix rate that is reached."""


def gb(size: float) -> str:
    """Returns bytes as GB (10^9), three digits."""
    return f"{size / 1e9:.3g}" if size < 1e12 else f"{size / 1e9:,.0f}"


class StagePlans(Protocol):
    """The plan of a model's stages, which `ModelSpec.plan` makes of a PlanRequest."""

    @property
    def trained(self) -> Mapping[str, float]:
        """Returns the numbers that `pretrain` and `finetune` train."""
        ...

    def shown(self) -> Iterator[str | Table]:
        """Yields the memory of both stages by part, and the largest batches."""

    def step(self, stage: str, batch: int, ranks: int, micro_batch: int) -> StepPlan:
        """Returns a step at a global batch; a rank holds at most `micro_batch` of its clips at once (0: all)."""


def largest(fits: Callable[[int], bool], limit: int = 1 << 30) -> int:
    """Returns the largest number up to `limit` for which `fits` holds, where it holds for all smaller ones; 0 for
    none."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


WEIGHT_ROWS = {
    "weights, float32": "weights",
    "gradients": "gradients",
    "optimizer states": "states",
    "own part of the weights (ZeRO-1, 2)": "flat",
    "frozen weights": "frozen",
    "bfloat16 copies of a step": "rounded",
    "reduction buffer": "buffer",
}
"""Rows of `step_table` for the fields of WeightsMemory."""


@dataclass(frozen=True, slots=True)
class WeightsMemory:
    """Bytes on one rank."""

    weights: float
    """float32, as they are trained."""
    gradients: float
    states: float
    """Optimizer states: momentum, or AdamW's two."""
    flat: float
    """ZeRO-1 and 2: the rank's own part of the weights once more."""
    frozen: float
    """Frozen weights, float32, whole on every rank."""
    rounded: float
    """bfloat16 copies that autocast makes of the weights for a step."""
    buffer: float
    """Bucket in which DeepSpeed reduces float32 gradients (ZeRO-1 to 3)."""

    @property
    def total(self) -> float:
        """Returns the sum."""
        own = self.weights + self.gradients + self.states + self.flat
        return own + self.frozen + self.rounded + self.buffer


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of a stage on one rank."""

    batch: int
    """Clips of the global batch."""
    weights: WeightsMemory
    parts: Mapping[str, float]
    """Bytes of activations by part, in the order of the forward pass, 0 for parts that are not there."""
    peak_bytes: float
    """Most bytes of activations that are there at the same time."""
    operations: float
    """FLOPs of the step."""
    exchanged: float = 0.0
    """Bytes of tokens that the rank passes on in the loss, beside gradients."""

    @property
    def device_bytes(self) -> float:
        """Returns the peak, with weights, gradients and optimizer states."""
        return self.weights.total + self.peak_bytes


def step_table(title: str, steps: Mapping[str, StepPlan]) -> Table:
    """Returns a table of the memory of steps by part, a column for each step; rows without memory are left out."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for heading in steps:
        table.add_column(heading, justify="right")
    rows: dict[str, list[float]] = {}
    for name, field in WEIGHT_ROWS.items():
        rows[name] = [getattr(step.weights, field) for step in steps.values()]
    for name in dict.fromkeys(name for step in steps.values() for name in step.parts):
        rows[name] = [step.parts.get(name, 0.0) for step in steps.values()]
    for name, values in rows.items():
        if any(values):
            table.add_row(name, *map(gb, values))
    table.add_section()
    table.add_row("peak", *(gb(step.device_bytes) for step in steps.values()))
    return table


def weights_bytes(
    stage: Stage,
    trained: float,
    frozen: float,
    ranks: int,
    bf16: bool,
    cached: bool = False,
    largest: float = 0,
) -> WeightsMemory:
    """Returns the memory for numbers of trained and frozen parameters. `cached`: gradients of a step in chunks, which
    are whole on every rank until they are reduced, once. `largest` is the size of the largest trained weight.
    """
    zero = stage.zero_stage
    bucket = min(trained, max(BUCKET_ELEMENTS, largest))
    states = 2 if stage.optimizer == "adamw" else int(stage.momentum > 0)
    return WeightsMemory(
        weights=4 * trained / (ranks if zero == 3 else 1),
        gradients=4 * trained / (ranks if zero >= 2 and not cached else 1),
        states=4 * states * trained / (ranks if zero >= 1 else 1),
        flat=4 * trained / ranks if zero in (1, 2) else 0,
        frozen=4 * frozen,
        rounded=2 * trained if bf16 else 0,
        buffer=4 * bucket if zero else 0,
    )
