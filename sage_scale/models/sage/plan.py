"""Memory and arithmetic of SAGE's stages on one rank at any batch, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import MBartConfig, MBartForConditionalGeneration

from sage_scale.config import Recipe
from sage_scale.models.sage.describe import describe, language_model_config
from sage_scale.models.sage.model import SageAligner, SageTranslator
from sage_scale.models.sage.operations import StepOperations, VisualOperations, translation_operations
from sage_scale.planning.loss import WAYS, LossSize, Way, loss_bytes, loss_operations
from sage_scale.planning.measure import REST, autocast, fake_tensor, kept_per_clip, without_memory
from sage_scale.planning.step import (
    LOGIT_BYTES,
    PASSES,
    RESERVED,
    ClipSize,
    PlanRequest,
    StepPlan,
    StepSize,
    WeightsMemory,
    gb,
    largest,
    step_table,
    weights_bytes,
)
from sage_scale.vision.backbone_choice import encoder_width
from sage_scale.vision.packed import PackedVideo

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class ClipCost:
    """Cost of one clip in the visual encoder, mapper and context encoder."""

    frames: float
    """Frames of the clip that pass the frame encoder."""
    frame_bytes: float
    """Kept by the frame encoder for one frame between its forward and backward pass."""
    frame_output_bytes: float
    """Output of the frame encoder for a frame."""
    after_bytes: float
    """Kept by all that follows, for the clip."""
    frame_operations: float
    """Of one frame's forward pass through the frame encoder."""
    operations: float
    """Of the clip's forward pass."""
    trained_operations: float
    """Of the clip's forward and backward pass."""
    token_bytes: float
    """Tokens and hidden states in float32, with their gradients."""
    input_bytes: float
    """Frames or features as they come from the loader."""

    @property
    def activation_bytes(self) -> float:
        """Returns the bytes kept between the clip's forward and backward pass, all its frames at once."""
        return self.frames * self.frame_bytes + self.after_bytes

    def held_bytes(self, clips: float, chunk_frames: int) -> float:
        """Returns the bytes kept for a number of clips whose frames pass the frame encoder in chunks (0: at once)."""
        frames = clips * self.frames
        if not chunk_frames or frames <= chunk_frames:
            return clips * self.activation_bytes
        return chunk_frames * self.frame_bytes + frames * self.frame_output_bytes + clips * self.after_bytes

    def step_operations(self, clips: float, passes: int, chunk_frames: int) -> float:
        """Returns the operations of a step with so many forward passes of each clip, and one backward; chunks pass once
        more."""
        again = bool(chunk_frames) and clips * self.frames > chunk_frames
        more = (passes - 1) * self.operations + again * self.frames * self.frame_operations
        return clips * (self.trained_operations + more)


def clip_cost(
    recipe: Recipe, clip: ClipSize, bf16: bool, context: bool = True, language: MBartConfig | None = None
) -> ClipCost:
    """Returns the cost of one clip with stage 1's `context` encoder or without, bytes measured on fake tensors.

    `language` is the language model's configuration. Raises CheckpointError where it is not given and the recipe's is
    unknown.
    """
    language = copy(language or language_model_config(recipe))
    model, features = recipe.model, recipe.vision.kind == "features"
    layers = model.context_layers if context and (recipe.clcl.beta < 1 or recipe.clcl.sentence) else 0
    language.encoder_layers = language.decoder_layers = 1  # they are not measured here
    plain = replace(
        recipe,
        pretrain=replace(recipe.pretrain, chunk_frames=0, compile=False, recompute=False),
        model=replace(
            model, context_layers=layers, context_init="random", backbone=replace(model.backbone, weights="")
        ),
    )
    aligner = without_memory(lambda: SageAligner(plain, MBartForConditionalGeneration(language)).train())
    tokens = max(1, round(clip.visual_tokens))
    frames = max(tokens, round(clip.frames))
    side = recipe.vision.size

    def forward(clips: int) -> Any:
        pixels = None if features else fake_tensor(clips * frames, 3, side, side, dtype=torch.uint8)
        # Features that a frame encoder gives have a gradient; stored ones are kept as well, as the products' factors.
        stored = fake_tensor(clips * frames, model.feature_dim) if features else None
        lengths_N = torch.full((tokens,), frames // tokens)
        lengths_N[: frames % tokens] += 1
        video = PackedVideo(
            segment_frames_N=lengths_N.repeat(clips),
            clip_segments_B=torch.full((clips,), tokens),
            frames_FCHW=pixels,
            features_FC=stored,
            clip_seeds_B=torch.arange(clips),
        )
        with autocast("bf16" if bf16 else "fp32"):
            return aligner.encode(video)

    kept = kept_per_clip(forward, aligner, {"frames": [aligner.visual.backbone]})
    width = model.feature_dim if features else encoder_width(model.backbone)
    counts = VisualOperations.of(plain, language)
    seen = counts.frames_seen(frames, tokens)
    return ClipCost(
        frames=counts.frames_seen(clip.frames, clip.visual_tokens),
        frame_bytes=kept["frames"] / seen,
        frame_output_bytes=width * (2 if bf16 else 4),
        after_bytes=kept[REST],
        frame_operations=counts.backbone,
        operations=counts.of_clips(clip.frames, clip.visual_tokens),
        trained_operations=counts.trained(clip.frames, clip.visual_tokens),
        token_bytes=(2 if layers else 1) * 2 * 4 * language.d_model * clip.visual_tokens,
        input_bytes=clip.frames * (2.0 * model.feature_dim if features else 3.0 * side**2),
    )


ENCODER, LANGUAGE, TOKENS, LOSS = (
    "frame encoder to tokens", "language model's layers", "tokens of all clips", "loss",
)  # fmt: skip
"""Parts of a plan. The loss of stage 1 is one level at its peak, with the other's normalised tokens, which wait for
their backward pass; that of stage 2 logits, their probabilities and gradients."""


class Stage1:
    """Stage 1 of a recipe on a number of ranks, for any batch."""

    def __init__(self, recipe: Recipe, clip: ClipSize, ranks: int, bf16: bool) -> None:
        """Raises CheckpointError where the recipe's language model is unknown."""
        self.clip, self.ranks = clip, ranks
        self.cost = clip_cost(recipe, clip, bf16)
        self.width = language_model_config(recipe).d_model
        self.levels = 2 if recipe.model.context_layers and 0 < recipe.clcl.beta < 1 else 1
        self._chunk_frames = recipe.pretrain.chunk_frames
        parts = describe(recipe)
        # The frozen text side is about half of the language model, whole on every rank.
        self._frozen = next(part.parameters for part in parts if part.name == "language model") / 2
        self.trained = float(sum(part.stage1 for part in parts))
        self._stage, self._bf16 = recipe.pretrain, bf16

    def on(self, ranks: int) -> Stage1:
        """Returns the same stage on another number of ranks, without measuring again."""
        other = copy(self)
        other.ranks = ranks
        return other

    def _weights(self, cached: bool) -> WeightsMemory:
        return weights_bytes(self._stage, self.trained, self._frozen, self.ranks, self._bf16, cached)

    def plan(self, batch: int, way: Way = "ring", micro_batch: int = 0) -> StepPlan:
        """Returns a step at a global batch; `micro_batch` clips pass the encoder at once (0: all of the rank's).

        The loss runs between the passes of a step in chunks, and beside the activations of a direct one.
        """
        own = -(-batch // self.ranks)
        cached = 0 < micro_batch < own
        size = LossSize(batch, self.clip.visual_tokens, self.clip.text_tokens, self.width, self.ranks)
        waiting = 4 * self.width * own * (self.clip.visual_tokens + self.clip.text_tokens)
        encoder = self.cost.held_bytes(micro_batch if cached else own, self._chunk_frames)
        tokens, loss = own * self.cost.token_bytes, loss_bytes(size, way) + (self.levels - 1) * waiting
        return StepPlan(
            batch=batch,
            weights=self._weights(cached),
            parts={ENCODER: encoder, LANGUAGE: 0.0, TOKENS: tokens, LOSS: loss},
            peak_bytes=tokens + (max(encoder, loss) if cached else encoder + loss),
            operations=self.encoder_operations(batch, cached) + self.loss_operations(batch, way),
            # Every other rank's texts come once round the ring, and once more in the backward pass.
            exchanged=2 * self.levels * 4 * self.width * own * self.clip.text_tokens * (self.ranks - 1),
        )

    def encoder_operations(self, batch: int, cached: bool) -> float:
        """Returns the FLOPs of a rank's clips in the encoder; `cached`: they pass in chunks, twice."""
        own = -(-batch // self.ranks)
        return self.cost.step_operations(own, 2 if cached else 1, self._chunk_frames)

    def loss_operations(self, batch: int, way: Way = "ring") -> float:
        """Returns the FLOPs of a rank's part of the loss, both levels."""
        size = LossSize(batch, self.clip.visual_tokens, self.clip.text_tokens, self.width, self.ranks)
        return self.levels * loss_operations(size, way)

    def largest_batch(self, memory_bytes: float, way: Way = "ring", micro_batch: int = 0) -> int:
        """Returns the largest global batch whose step fits into a rank's memory, to within one clip; 0 where none
        does."""
        room = (1 - RESERVED) * memory_bytes
        return largest(lambda batch: self.plan(batch, way, micro_batch).device_bytes <= room)


class Stage2:
    """Stage 2 of a recipe on a number of ranks, for any batch."""

    def __init__(self, recipe: Recipe, clip: ClipSize, ranks: int, bf16: bool, vocabulary: int = 0) -> None:
        """`vocabulary`: subwords that trimming leaves (0: the language model's own). Raises CheckpointError where the
        recipe's language model is unknown.
        """
        self.clip, self.ranks, self._stage = clip, ranks, recipe.finetune
        self.cost = clip_cost(recipe, clip, bf16, context=False)
        self._config = config = copy(language_model_config(recipe))
        self.vocabulary = vocabulary or config.vocab_size
        trimmed = (config.vocab_size - self.vocabulary) * config.d_model
        config.vocab_size = self.vocabulary
        parts = describe(recipe)
        trained = sum(part.stage2 for part in parts) - trimmed
        # Stage 1's own parts are not there.
        own = sum(part.parameters for part in parts if "stage 1" not in part.name) - trimmed
        self.trained, self._frozen, self._bf16 = float(trained), own - trained, bf16
        self._value = 2 if bf16 else 4
        self._language = _kept_by_language_model(recipe, clip, config, bf16)
        self._operations = StepOperations(recipe, "finetune", config)

    def on(self, ranks: int) -> Stage2:
        """Returns the same stage on another number of ranks, without measuring again."""
        other = copy(self)
        other.ranks = ranks
        return other

    def plan(self, batch: int, micro_batch: int = 0) -> StepPlan:
        """Returns a step at a global batch; `micro_batch` clips are held at once (0: `finetune.micro_batch`)."""
        own = -(-batch // self.ranks)
        micro_batch = micro_batch or self._stage.micro_batch
        held = min(own, micro_batch) if micro_batch else own
        N, M = self.clip.visual_tokens, self.clip.text_tokens + 2  # language code and end of sentence
        frozen = self._stage.freeze
        cost = self.cost
        visual = 0.0 if frozen == "visual" else held * cost.after_bytes
        if frozen == "none":
            visual = cost.held_bytes(held, self._stage.chunk_frames)
        size = StepSize(own, own * self.clip.frames, own * N, own * M)
        operations = self._operations(size)
        if frozen == "none":  # what chunks compute again counts as well
            operations = cost.step_operations(own, 1, self._stage.chunk_frames)
            operations += PASSES * translation_operations(self._config, size)
        logits = held * M * self.vocabulary * LOGIT_BYTES[self._value]
        parts = {ENCODER: visual, LANGUAGE: held * self._language, TOKENS: 0.0, LOSS: logits}
        embeddings = self.vocabulary * self._config.d_model
        weights = weights_bytes(
            self._stage, self.trained, self._frozen, self.ranks, self._bf16, largest=embeddings
        )
        return StepPlan(batch, weights, parts, sum(parts.values()), operations)


def _kept_by_language_model(recipe: Recipe, clip: ClipSize, config: MBartConfig, bf16: bool) -> float:
    """Returns bytes that all layers of mBART keep for a clip."""
    plain = replace(
        recipe,
        vision=replace(recipe.vision, kind="features"),
        finetune=replace(recipe.finetune, recompute=False),
    )
    model = without_memory(lambda: SageTranslator(plain, MBartForConditionalGeneration(config)).train())
    tokens, words = max(1, round(clip.visual_tokens)), round(clip.text_tokens) + 2

    def forward(clips: int) -> Any:
        shown = fake_tensor(clips * tokens, config.d_model).requires_grad_()
        labels_BL = torch.full((clips, words), 5)
        segments_B = torch.full((clips,), tokens)
        with autocast("bf16" if bf16 else "fp32"):
            return model.forward_tokens(shown, segments_B, labels_BL, labels_BL, 0.1, torch.arange(clips))

    return kept_per_clip(forward, model, {"layers": [model.language_model.model]})["layers"]


class SagePlans:
    """Both stages of a recipe."""

    def __init__(self, request: PlanRequest) -> None:
        """Raises CheckpointError where the recipe's language model is unknown."""
        self._request, recipe, ranks = request, request.recipe, request.ranks
        self._first = Stage1(recipe, request.clip, ranks, recipe.pretrain.precision != "fp32")
        half = recipe.finetune.precision != "fp32"
        self._second = Stage2(recipe, request.clip, ranks, half, request.vocabulary)
        self.trained = {"pretrain": self._first.trained, "finetune": self._second.trained}

    def step(self, stage: str, batch: int, ranks: int, micro_batch: int) -> StepPlan:
        """Returns a step at a global batch; a rank holds at most `micro_batch` of its clips at once (0: all)."""
        if stage == "pretrain":
            return self._first.on(ranks).plan(batch, micro_batch=micro_batch)
        return self._second.on(ranks).plan(batch, micro_batch)

    def shown(self) -> Iterator[str | Table]:
        """Yields the memory of both stages by part at the recipe's batch; stage 1 at others, and the largest that
        fits."""
        from rich.table import Table

        request, stage, second = self._request, self._first, self._second
        chosen, clip, ranks, device = request.recipe, request.clip, request.ranks, request.device
        tokens, words, width = clip.visual_tokens, clip.text_tokens, stage.width
        bf16 = chosen.pretrain.precision != "fp32"
        micro = request.chunk or chosen.pretrain.micro_batch or 16
        yield (
            f"recipe {chosen.name}: {ranks} x {request.gpu} with {device.memory_gb:g} GB, "
            f"ZeRO-{chosen.pretrain.zero_stage}, "
            f"encoder in {'bfloat16' if bf16 else 'float32'}\n"
            f"a clip: {clip.frames:.0f} stored frames, {tokens:.3g} visual and {words:.3g} text tokens of width "
            f"{width}\n"
        )
        first = stage.plan(chosen.pretrain.batch_size, micro_batch=chosen.pretrain.micro_batch)
        steps = (first, second.plan(chosen.finetune.batch_size))
        yield step_table(
            "the recipe's own steps, one rank, GB by part",
            {f"stage {number}, batch {step.batch}": step for number, step in enumerate(steps, start=1)},
        )
        table = Table(title="stage 1 on one rank, GB", title_justify="left")
        for name in ("batch", "loss naive", "tiled", "ring", "weights", "direct step", f"cached by {micro}",
                     "host", "PFLOP encoder", "loss", "seconds a step"):  # fmt: skip
            table.add_column(name, justify="right")
        for size in request.batches or (16, 256, 4096, 65536):
            losses = [loss_bytes(LossSize(size, tokens, words, width, ranks), way) for way in WAYS]
            direct, cached = stage.plan(size), stage.plan(size, micro_batch=micro)
            host = -(-size // ranks) * stage.cost.input_bytes
            encoder = stage.encoder_operations(size, micro < -(-size // ranks))
            loss = stage.loss_operations(size)
            table.add_row(
                f"{size:,}", *map(gb, losses), gb(direct.weights.total), gb(direct.device_bytes),
                gb(cached.device_bytes), gb(host), f"{encoder / 1e15:.3g}", f"{loss / 1e15:.3g}",
                f"{cached.operations / (request.share * device.bf16_tflops * 1e12):.3g}",
            )  # fmt: skip
        yield table
        largest = Table(title=f"largest batch in {device.memory_gb:g} GB a rank", title_justify="left")
        for name in ("encoder", *(f"loss {way}" for way in WAYS)):
            largest.add_column(name, justify="right")
        for name, held in (("direct", 0), (f"cached by {micro}", micro)):
            found = [stage.largest_batch(device.memory_gb * 1e9, way, held) for way in WAYS]
            largest.add_row(name, *(f"{size:,}" for size in found))
        yield largest
        yield (
            f"seconds: the cached step at {100 * request.share:g}% of {device.bf16_tflops:g} TFLOP/s, without loading "
            "and traffic; host: the rank's clips before decoding is repeated"
        )
