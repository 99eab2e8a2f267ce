"""Stage 1 on one rank: weights and optimizer, encoder, loss; and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sage_scale.config import Recipe
from sage_scale.models.sage.clip_cost import clip_cost
from sage_scale.models.sage.describe import describe, language_model_config
from sage_scale.models.sage.plan_stage2 import Stage2
from sage_scale.planning.loss import WAYS, LossSize, Way, loss_bytes, loss_operations
from sage_scale.planning.step import RESERVED, ClipSize, PlanRequest, gb, largest
from sage_scale.planning.weights import WeightsMemory, weights_bytes

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One step of stage 1 on one rank; bytes and operations."""

    batch: int
    memory: WeightsMemory
    """Weights, gradients and optimizer states, as ZeRO spreads them."""
    encoder_bytes: float
    """Activations of the clips that are in the encoder at once."""
    tokens_bytes: float
    """Tokens, hidden states and their gradients, of all own clips."""
    loss_bytes: float
    """One level at its peak, and the other's normalised tokens, which wait for their backward pass."""
    host_bytes: float
    """The rank's clips in host memory, once."""
    encoder_operations: float
    loss_operations: float
    """Both levels."""
    cached: bool
    """Whether clips pass in chunks, twice."""

    @property
    def weights_bytes(self) -> float:
        """Weights, gradients and optimizer states together."""
        return self.memory.total

    @property
    def device_bytes(self) -> float:
        """Peak: the loss runs between the passes of a cached step, and beside the activations of a direct one."""
        parts = self.encoder_bytes, self.loss_bytes
        return self.weights_bytes + self.tokens_bytes + (max(parts) if self.cached else sum(parts))

    @property
    def operations(self) -> float:
        """Of a whole step on this rank."""
        return self.encoder_operations + self.loss_operations


class Stage1:
    """Stage 1 of a recipe on so many ranks, for any batch."""

    def __init__(self, recipe: Recipe, clip: ClipSize, ranks: int, bf16: bool) -> None:
        """Raises CheckpointError where the recipe's language model is unknown."""
        self.clip, self.ranks = clip, ranks
        self.cost = clip_cost(recipe, clip, bf16)
        self.width = language_model_config(recipe).d_model
        self.levels = 2 if recipe.model.context_layers and recipe.clcl.beta < 1 else 1
        self._chunk_frames = recipe.pretrain.chunk_frames
        parts = describe(recipe)
        # The frozen text side is about half of the language model, whole on every rank.
        frozen = next(part.parameters for part in parts if part.name == "language model") / 2
        trained = sum(part.stage1 for part in parts)
        self._memory = {
            cached: weights_bytes(recipe.pretrain, trained, frozen, ranks, bf16, cached)
            for cached in (False, True)
        }

    def plan(self, batch: int, way: Way = "ring", micro_batch: int = 0) -> StagePlan:
        """A step at a global batch; `micro_batch` clips pass the encoder at once (0: direct, all of the rank's)."""
        own = -(-batch // self.ranks)
        cached = 0 < micro_batch < own
        size = LossSize(batch, self.clip.visual_tokens, self.clip.text_tokens, self.width, self.ranks)
        waiting = 4 * self.width * own * (self.clip.visual_tokens + self.clip.text_tokens)
        return StagePlan(
            batch=batch,
            memory=self._memory[cached],
            encoder_bytes=self.cost.held_bytes(micro_batch if cached else own, self._chunk_frames),
            tokens_bytes=own * self.cost.token_bytes,
            loss_bytes=loss_bytes(size, way) + (self.levels - 1) * waiting,
            host_bytes=own * self.cost.input_bytes,
            encoder_operations=self.cost.step_operations(own, 2 if cached else 1, self._chunk_frames),
            loss_operations=self.levels * loss_operations(size, way),
            cached=cached,
        )

    def largest_batch(self, memory_bytes: float, way: Way = "ring", micro_batch: int = 0) -> int:
        """The largest global batch whose step fits into a rank's memory, to within one clip; 0 where none does."""
        room = (1 - RESERVED) * memory_bytes
        return largest(lambda batch: self.plan(batch, way, micro_batch).device_bytes <= room)


def show_plan(request: PlanRequest) -> Iterator[str | Table]:
    """Memory of both stages by part at the recipe's batch; stage 1 at others, and the largest that fits."""
    from rich.table import Table

    chosen, clip, ranks, device, share = (
        request.recipe, request.clip, request.ranks, request.device, request.share,
    )  # fmt: skip
    tokens, words = clip.visual_tokens, clip.text_tokens
    bf16 = chosen.pretrain.precision != "fp32"
    micro = request.chunk or chosen.pretrain.micro_batch or 16
    stage = Stage1(chosen, clip, ranks, bf16)
    width = stage.width
    yield (
        f"recipe {chosen.name}: {ranks} x {request.gpu} with {device.memory_gb:g} GB, "
        f"ZeRO-{chosen.pretrain.zero_stage}, "
        f"encoder in {'bfloat16' if bf16 else 'float32'}\n"
        f"a clip: {clip.frames:.0f} stored frames, {tokens:g} visual and {words:g} text tokens of width {width}\n"
    )
    second = Stage2(chosen, clip, ranks, chosen.finetune.precision != "fp32", request.vocabulary)
    yield (_by_part(chosen, stage, second))
    table = Table(title="stage 1 on one rank, GB", title_justify="left")
    for name in ("batch", "loss naive", "tiled", "ring", "weights", "direct step", f"cached by {micro}",
                 "host", "PFLOP encoder", "loss", "seconds a step"):  # fmt: skip
        table.add_column(name, justify="right")
    for size in request.batches or (16, 256, 4096, 65536):
        losses = [loss_bytes(LossSize(size, tokens, words, width, ranks), way) for way in WAYS]
        direct, cached = stage.plan(size), stage.plan(size, micro_batch=micro)
        table.add_row(
            f"{size:,}", *map(gb, losses), gb(direct.weights_bytes), gb(direct.device_bytes),
            gb(cached.device_bytes), gb(cached.host_bytes), f"{cached.encoder_operations / 1e15:.3g}",
            f"{cached.loss_operations / 1e15:.3g}",
            f"{cached.operations / (share * device.bf16_tflops * 1e12):.3g}",
        )  # fmt: skip
    yield (table)
    largest = Table(title=f"largest batch in {device.memory_gb:g} GB a rank", title_justify="left")
    for name in ("encoder", *(f"loss {way}" for way in WAYS)):
        largest.add_column(name, justify="right")
    for name, held in (("direct", 0), (f"cached by {micro}", micro)):
        found = [stage.largest_batch(device.memory_gb * 1e9, way, held) for way in WAYS]
        largest.add_row(name, *(f"{size:,}" for size in found))
    yield (largest)
    yield (
        f"seconds: the cached step at {100 * share:g}% of {device.bf16_tflops:g} TFLOP/s, without loading and "
        "traffic; host: the rank's clips before decoding is repeated"
    )


def _by_part(recipe: Recipe, stage1: Stage1, stage2: Stage2) -> Table:
    """Memory of a step of each stage at the recipe's own batch."""
    from rich.table import Table

    first = stage1.plan(recipe.pretrain.batch_size, micro_batch=recipe.pretrain.micro_batch)
    second = stage2.plan(recipe.finetune.batch_size)
    table = Table(title="the recipe's own steps, one rank, GB by part", title_justify="left")
    table.add_column("part")
    table.add_column(f"stage 1, batch {first.batch}", justify="right")
    table.add_column(f"stage 2, batch {second.batch}", justify="right")
    for name, part in (
        ("weights, float32", "weights"),
        ("gradients", "gradients"),
        ("optimizer states", "states"),
        ("own part of the weights (ZeRO-1, 2)", "flat"),
        ("frozen weights", "frozen"),
        ("bfloat16 copies of a step", "rounded"),
    ):
        table.add_row(name, gb(getattr(first.memory, part)), gb(getattr(second.weights, part)))
    table.add_row("frame encoder to tokens", gb(first.encoder_bytes), gb(second.visual_bytes))
    table.add_row("language model's layers", "", gb(second.language_bytes))
    table.add_row("tokens of all clips", gb(first.tokens_bytes), "")
    table.add_row("loss", gb(first.loss_bytes), gb(second.logits_bytes))
    table.add_section()
    table.add_row("peak", gb(first.device_bytes), gb(second.device_bytes))
    return table
