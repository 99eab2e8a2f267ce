"""Memory and arithmetic of Sign2GPT's stages on one rank, at any batch.

What the layers keep is measured as that of one clip more in the recipe's own modules (`kept`), at their real widths,
with one and two layers of the language model; weights, logits and what passes below the adapters are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from sage_scale.config import Recipe, Stage
from sage_scale.models.sign2gpt.decoder import SignDecoder
from sage_scale.models.sign2gpt.describe import causal_model_config, describe
from sage_scale.models.sign2gpt.operations import Sign2GptOperations
from sage_scale.models.sign2gpt.prototype_head import PrototypeHead
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder
from sage_scale.models.sign2gpt.spatial import SpatialModel
from sage_scale.models.sign2gpt.vit import VisionTransformer
from sage_scale.planning.kept import slope
from sage_scale.planning.step import LOGIT_BYTES, RESERVED, ClipSize, PlanRequest, StepSize, gb, largest
from sage_scale.planning.weights import WeightsMemory, weights_bytes

if TYPE_CHECKING:
    from rich.table import Table

BELOW = 11
"""Values of a row's width that a frozen block holds at once: in, normed, residual, and its feed-forward part twice."""
FEW, MANY = 16, 48
"""Rows that are measured."""


@dataclass(frozen=True, slots=True)
class Sign2GptStep:
    """One step of a stage on one rank, bytes and operations."""

    batch: int
    weights: WeightsMemory
    pixels_bytes: float
    """Frames as they are stored, or features."""
    below_bytes: float
    """Held at most while frames pass what is below the adapters; gone before anything behind it is there."""
    spatial_bytes: float
    """Kept by the spatial model."""
    signs_bytes: float
    """Kept by the sign encoder, and the comparison with prototypes."""
    language_bytes: float
    """Kept by the language model's layers."""
    logits_bytes: float
    operations: float

    @property
    def device_bytes(self) -> float:
        """Peak, where the backward pass begins, or, with few adapted blocks, below them."""
        behind = self.spatial_bytes + self.signs_bytes + self.language_bytes + self.logits_bytes
        return self.weights.total + self.pixels_bytes + max(self.below_bytes, behind)


class Sign2GptPlan:
    """Both stages of a recipe on so many ranks, for any batch. Takes seconds: parts of the model are run on the CPU."""

    def __init__(self, recipe: Recipe, clip: ClipSize, ranks: int, prototypes: int = 2500) -> None:
        """`clip` has frames and text tokens of a mean clip (visual tokens follow from the frames); `prototypes` is how
        many stage 1 compares with. Raises CheckpointError where the recipe's language model is unknown."""
        settings = replace(recipe.model.sign2gpt, vit_weights="")
        backbone = replace(recipe.model.backbone, weights="")
        self.recipe = replace(recipe, model=replace(recipe.model, sign2gpt=settings, backbone=backbone))
        self.ranks, self._config = ranks, causal_model_config(recipe)
        self._settings, self._prototypes = settings, prototypes
        frames = min(clip.frames, settings.max_frames) if settings.max_frames else clip.frames
        tokens = frames if settings.spatial == "signs" or not settings.downsample_after else -(-frames // 2)
        self.clip = ClipSize(frames, tokens, clip.text_tokens)
        self._parts = {part.name: part for part in describe(self.recipe)}
        precisions = {recipe.pretrain.precision, recipe.finetune.precision}
        self._signs = {precision: self._measure_signs(precision) for precision in precisions}
        self._head = self._measure_head()
        self._language = self._measure_decoder()

    def plan(self, stage: str, batch: int) -> Sign2GptStep:
        """A step of `pretrain` or `finetune` at a global batch; with `micro_batch` fewer clips are held at once."""
        settings: Stage = getattr(self.recipe, stage)
        own = -(-batch // self.ranks)
        held = min(own, settings.micro_batch) if settings.micro_batch else own
        N, M = self.clip.visual_tokens, self.clip.text_tokens + 1
        first, value = stage == "pretrain", 4 if settings.precision == "fp32" else 2
        pixels = below = spatial = signs = 0.0
        if settings.freeze != "visual" and self._settings.spatial != "signs":
            pixels, below, spatial, signs = self._visual(stage, held)
        head = held * N * (self._head if first else 0.0)
        language = 0.0 if first else held * self._language
        if not first and settings.recompute:  # what enters a layer is all that stays, and one layer's own
            H, layers = self._config.hidden_size, self._config.num_hidden_layers
            language = language / layers + held * M * H * layers * value
        count = Sign2GptOperations(self.recipe, stage, self._config, self._prototypes)
        size = StepSize(own, own * self.clip.frames, own * N, own * M)
        return Sign2GptStep(
            batch=batch,
            weights=self._weights(stage),
            pixels_bytes=pixels,
            below_bytes=below,
            spatial_bytes=spatial,
            signs_bytes=signs + head,
            language_bytes=language,
            logits_bytes=0.0 if first else held * M * self._config.vocab_size * LOGIT_BYTES[value],
            operations=count(size),
        )

    def largest_batch(self, stage: str, memory_bytes: float) -> int:
        """The largest global batch whose step fits into a rank's memory; 0 where none does."""
        room = (1 - RESERVED) * memory_bytes
        return largest(lambda batch: self.plan(stage, batch).device_bytes <= room, limit=1 << 20)

    def _weights(self, stage: str) -> WeightsMemory:
        settings: Stage = getattr(self.recipe, stage)
        trained = frozen = rounded = 0.0
        for name, part in self._parts.items():
            decoder = name == "decoder"
            if decoder and stage == "pretrain":
                continue
            own = part.stage1 if stage == "pretrain" else part.stage2
            if not decoder and settings.freeze == "visual":
                own = 0
            held = getattr(torch, self._settings.language_dtype).itemsize if decoder else 4
            trained += own
            frozen += held * (part.parameters - own)
            # Gradients pass through: once more in bfloat16.
            if decoder and held == 4 and settings.precision != "fp32":
                rounded = 2.0 * (part.parameters - own)
        found = weights_bytes(settings, trained, 0, self.ranks, settings.precision != "fp32")
        return replace(found, frozen=frozen, rounded=found.rounded + rounded)

    def _visual(self, stage: str, clips: float) -> tuple[float, float, float, float]:
        """(stored frames, held below the adapters, kept by the spatial model and by the sign encoder) of clips."""
        recipe, g = self.recipe, self._settings
        settings: Stage = getattr(recipe, stage)
        frames = clips * self.clip.frames
        per_frame, per_clip = self._signs[settings.precision]
        signs = clips * per_clip
        if recipe.vision.kind == "features":
            return 2.0 * frames * recipe.model.feature_dim, 0.0, frames * per_frame, signs
        value = 4 if settings.precision == "fp32" else 2
        pixels = frames * 3.0 * recipe.vision.size**2
        at_once = min(frames, settings.chunk_frames or frames)
        floats = at_once * 3.0 * 4 * recipe.vision.crop**2
        if g.spatial != "dinov2":
            return pixels, 0.0, floats + at_once * per_frame, signs
        rows = (recipe.vision.crop // g.vit_patch) ** 2 + 1
        entering = frames * rows * g.vit_width * 4.0
        below = floats + at_once * rows * g.vit_width * BELOW * value
        # In chunks what has passed waits for the rest.
        return pixels, below + (entering if at_once < frames else 0.0), entering + at_once * per_frame, signs

    def _measure_signs(self, precision: str) -> tuple[float, float]:
        """Bytes that the spatial model keeps for a frame, and the sign encoder for a clip."""
        if self._settings.spatial == "signs":
            return 0.0, 0.0
        crop, width = self.recipe.vision.crop, self._settings.width
        spatial, encoder = SpatialModel(self.recipe).train(), SignEncoder(self._settings).train()
        backbone = spatial.backbone

        def seen(frames: int) -> Any:
            if isinstance(backbone, VisionTransformer):
                rows = (crop // self._settings.vit_patch) ** 2 + 1
                entering = torch.randn(frames, rows, backbone.width)
                return spatial.rows(backbone.above(entering, torch.arange(frames)))
            if backbone is not None:
                return spatial.rows(backbone(torch.randn(frames, 3, crop, crop)))
            return spatial.rows(torch.randn(frames, self.recipe.model.feature_dim))

        frames = round(self.clip.frames)

        def encoded(clips: int) -> Any:
            rows = torch.randn(clips * frames, width, requires_grad=True)
            return encoder(rows, torch.full((clips,), frames), torch.arange(clips))

        with _autocast(precision):
            return (
                slope(seen, 2, 4, [*spatial.parameters(), *spatial.buffers()]),
                slope(encoded, 1, 2, encoder.parameters()),
            )

    def _measure_head(self) -> float:
        """Bytes that the comparison with the prototypes keeps for a token."""
        g = self._settings
        prototypes_UD = torch.randn(self._prototypes, self.recipe.prototypes.dim)
        head = PrototypeHead(g.width, self.recipe.prototypes, prototypes_UD).train()

        def compared(tokens: int) -> Any:
            rows = torch.randn(tokens, g.width, requires_grad=True)
            return head(rows, torch.tensor([tokens]), torch.tensor([1]))

        return slope(compared, FEW, MANY, [*head.parameters(), *head.buffers()])

    def _measure_decoder(self) -> float:
        """Bytes that all layers of the language model keep for a clip."""
        config = copy(self._config)
        layers = config.num_hidden_layers
        config.vocab_size = 64
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            if getattr(config, name, None) is not None:
                setattr(config, name, 1)
        one, two = (self._kept_by_layers(config, count) for count in (1, 2))
        return one + (layers - 1) * (two - one)

    def _kept_by_layers(self, config: Any, layers: int) -> float:
        """The same of a language model of so many layers."""
        config = copy(config)
        _set_layers(config, layers)
        decoder = SignDecoder(self._settings, AutoModelForCausalLM.from_config(config)).train()
        tokens, words = round(self.clip.visual_tokens), round(self.clip.text_tokens) + 1
        one = torch.ones(1, dtype=torch.int64)

        def told(clips: int) -> Any:
            shown = torch.randn(clips * tokens, self._settings.width, requires_grad=True)
            return decoder.hidden(
                shown, tokens * one.expand(clips), one.expand(clips, words), one.expand(clips)
            )

        with _autocast(self.recipe.finetune.precision):
            return slope(told, 1, 2, [*decoder.parameters(), *decoder.buffers()])


def _autocast(precision: str) -> AbstractContextManager:
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", torch.bfloat16)


def _set_layers(config: Any, layers: int) -> None:
    for name in ("num_layers", "num_hidden_layers"):
        if name in vars(config) or name in getattr(config, "attribute_map", {}):
            setattr(config, name, layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def show_plan(request: PlanRequest) -> Iterator[str | Table]:
    """Both stages' steps by part, at the recipe's batch and others."""
    from rich.table import Table

    plan = Sign2GptPlan(request.recipe, request.clip, request.ranks, request.prototypes)
    gpu, device, batches, share = request.gpu, request.device, request.batches, request.share
    recipe, clip = plan.recipe, plan.clip
    sizes = f"{clip.frames:.0f} stored frames, {clip.visual_tokens:.0f} visual and {clip.text_tokens:g} text tokens"
    yield f"recipe {recipe.name}: {plan.ranks} x {gpu} with {device.memory_gb:g} GB\na clip: {sizes}\n"
    for stage, number in (("pretrain", 1), ("finetune", 2)):
        steps = [plan.plan(stage, size) for size in (getattr(recipe, stage).batch_size, *batches)]
        table = Table(title=f"stage {number} on one rank, GB by part", title_justify="left")
        table.add_column("part")
        for step in steps:
            table.add_column(f"batch {step.batch:,}", justify="right")
        for name, of in (
            ("frozen weights", lambda step: step.weights.frozen),
            ("trained weights, gradients, optimizer", lambda step: step.weights.total - step.weights.frozen),
            (
                "stored frames" if recipe.vision.kind == "frames" else "features",
                lambda step: step.pixels_bytes,
            ),
            ("below the adapters (then free)", lambda step: step.below_bytes),
            ("spatial model", lambda step: step.spatial_bytes),
            ("sign encoder" + (" and prototypes" if number == 1 else ""), lambda step: step.signs_bytes),
            ("language model's layers", lambda step: step.language_bytes),
            ("logits", lambda step: step.logits_bytes),
        ):
            if any(of(step) for step in steps):
                table.add_row(name, *(gb(of(step)) for step in steps))
        table.add_section()
        table.add_row("peak", *(gb(step.device_bytes) for step in steps))
        rate = share * device.bf16_tflops * 1e12
        table.add_row("seconds a step", *(f"{step.operations / rate:.3g}" for step in steps))
        yield table
        most = plan.largest_batch(stage, device.memory_gb * 1e9)
        yield f"largest batch in {device.memory_gb:g} GB a rank: {most:,}\n"
    reached = f"{100 * share:g}% of {device.bf16_tflops:g} TFLOP/s"
    yield f"seconds: at {reached}, without loading, traffic and what chunks compute again"
