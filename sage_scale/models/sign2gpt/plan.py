"""Memory and arithmetic of Sign2GPT's stages on one rank, at any batch.

Activations of the layers are measured on fake tensors in the recipe's own modules; weights, logits and activations
below the adapters are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from sage_scale.config import Recipe, Stage
from sage_scale.models.sign2gpt.decoder import SignDecoder
from sage_scale.models.sign2gpt.describe import causal_model_config, describe
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer
from sage_scale.models.sign2gpt.operations import Sign2GptOperations
from sage_scale.planning.measure import REST, autocast, fake_tensor, kept_per_clip, without_memory
from sage_scale.planning.step import (
    LOGIT_BYTES,
    RESERVED,
    ClipSize,
    PlanRequest,
    StepPlan,
    StepSize,
    WeightsMemory,
    largest,
    step_table,
    weights_bytes,
)
from sage_scale.vision.packed import PackedVideo

if TYPE_CHECKING:
    from rich.table import Table

STORED, BELOW, SPATIAL, SIGNS, LANGUAGE, LOGITS = (
    "stored frames or features", "below the adapters (then free)", "spatial model", "sign encoder and prototypes",
    "language model's layers", "logits",
)  # fmt: skip
"""Parts of a plan. The peak is where the backward pass begins, or, with few adapted blocks, below them."""
BELOW_FP32, BELOW_BF16 = 3 * 4 + 8 * 4, 3 * 4 + 8 * 2
"""Bytes for each number of a row that a frozen block holds at once: in, normed, residual, feed-forward part twice."""


class Sign2GptPlan:
    """Both stages of a recipe on a number of ranks, for any batch. Takes seconds: the model is run on fake tensors."""

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
        signs = settings.spatial != "signs"
        self._kept = {precision: self._measure_signs(precision) for precision in precisions} if signs else {}
        self._language = self._measure_decoder()

    def on(self, ranks: int) -> Sign2GptPlan:
        """Returns the same plan on another number of ranks, without measuring again."""
        other = copy(self)
        other.ranks = ranks
        return other

    def trained(self, stage: str) -> float:
        """Returns the numbers that a stage trains."""
        return float(
            sum(part.stage1 if stage == "pretrain" else part.stage2 for part in self._parts.values())
        )

    def plan(self, stage: str, batch: int, micro_batch: int = 0) -> StepPlan:
        """Returns a step of `pretrain` or `finetune` at a global batch; `micro_batch` clips are held at once (0: the
        recipe's)."""
        settings: Stage = getattr(self.recipe, stage)
        own = -(-batch // self.ranks)
        micro_batch = micro_batch or settings.micro_batch
        held = min(own, micro_batch) if micro_batch else own
        N, M = self.clip.visual_tokens, self.clip.text_tokens + 1
        first, value = stage == "pretrain", 4 if settings.precision == "fp32" else 2
        pixels = below = spatial = signs = head = 0.0
        if settings.freeze != "visual" and self._settings.spatial != "signs":
            pixels, below, spatial, signs = self._visual(stage, held)
            head = held * self._kept[settings.precision][REST] if first else 0.0
        language = 0.0 if first else held * self._language
        if not first and settings.recompute:  # what enters a layer is all that stays, and one layer's own
            H, layers = self._config.hidden_size, self._config.num_hidden_layers
            language = language / layers + held * M * H * layers * value
        count = Sign2GptOperations(self.recipe, stage, self._config, self._prototypes)
        size = StepSize(own, own * self.clip.frames, own * N, own * M)
        logits = 0.0 if first else held * M * self._config.vocab_size * LOGIT_BYTES[value]
        behind = {SPATIAL: spatial, SIGNS: signs + head, LANGUAGE: language, LOGITS: logits}
        return StepPlan(
            batch=batch,
            weights=self._weights(stage),
            parts={STORED: pixels, BELOW: below, **behind},
            peak_bytes=pixels + max(below, sum(behind.values())),
            operations=count(size),
        )

    def largest_batch(self, stage: str, memory_bytes: float) -> int:
        """Returns the largest global batch whose step fits into a rank's memory; 0 where none does."""
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
        """Returns (stored frames, held below the adapters, kept by the spatial model and by the sign encoder) of
        clips."""
        recipe, g = self.recipe, self._settings
        settings: Stage = getattr(recipe, stage)
        frames = clips * self.clip.frames
        kept = self._kept[settings.precision]
        per_frame, signs = kept["spatial"] / round(self.clip.frames), clips * kept["signs"]
        if recipe.vision.kind == "features":
            return 2.0 * frames * recipe.model.feature_dim, 0.0, frames * per_frame, signs
        held = BELOW_FP32 if settings.precision == "fp32" else BELOW_BF16
        pixels = frames * 3.0 * recipe.vision.size**2
        at_once = min(frames, settings.chunk_frames or frames)
        if g.spatial != "dinov2":
            return pixels, 0.0, at_once * per_frame, signs
        rows = (recipe.vision.crop // g.vit_patch) ** 2 + 1
        # In chunks what has passed the frozen blocks waits for the rest.
        waiting = (frames - at_once) * rows * g.vit_width * 4.0
        below = at_once * (3.0 * 4 * recipe.vision.crop**2 + rows * g.vit_width * held)
        return pixels, below + waiting, waiting + at_once * per_frame, signs

    def _measure_signs(self, precision: str) -> dict[str, float]:
        """Returns bytes that the spatial model, the sign encoder and, behind them, stage 1's head and loss keep for a
        clip."""
        recipe, frames = self.recipe, round(self.clip.frames)
        plain = replace(
            recipe,
            pretrain=replace(recipe.pretrain, chunk_frames=0),
            model=replace(recipe.model, sign2gpt=replace(self._settings, max_frames=0, start_jitter=0)),
        )
        shape = (self._prototypes, recipe.prototypes.dim)
        model = without_memory(lambda: Sign2GptPretrainer(plain, torch.empty(shape)).train())
        side, features = recipe.vision.size, recipe.vision.kind == "features"

        def forward(clips: int) -> Any:
            count = clips * frames
            video = PackedVideo(
                segment_frames_N=torch.full((clips,), frames),
                clip_segments_B=torch.ones(clips, dtype=torch.int64),
                frames_FCHW=None if features else fake_tensor(count, 3, side, side, dtype=torch.uint8),
                features_FC=fake_tensor(count, recipe.model.feature_dim) if features else None,
                clip_seeds_B=torch.arange(clips),
            )
            with autocast(precision):
                return model(video, torch.arange(clips), torch.ones(clips, dtype=torch.int64))

        return kept_per_clip(forward, model, {"spatial": [model.spatial], "signs": [model.sign_encoder]})

    def _measure_decoder(self) -> float:
        """Returns bytes that all layers of the language model keep for a clip."""
        config, settings = self._config, self._settings
        decoder = without_memory(
            lambda: SignDecoder(settings, AutoModelForCausalLM.from_config(config)).train()
        )
        tokens, words = round(self.clip.visual_tokens), round(self.clip.text_tokens) + 1

        def forward(clips: int) -> Any:
            shown = fake_tensor(clips * tokens, settings.width).requires_grad_()
            texts_BL = torch.ones(clips, words, dtype=torch.int64)
            with autocast(self.recipe.finetune.precision):
                return decoder.hidden(shown, torch.full((clips,), tokens), texts_BL, torch.arange(clips))

        return sum(kept_per_clip(forward, decoder, {}).values())


class Sign2GptPlans:
    """Both stages of a recipe."""

    def __init__(self, request: PlanRequest) -> None:
        """Raises CheckpointError where the recipe's language model is unknown."""
        self._request = request
        self._plan = Sign2GptPlan(request.recipe, request.clip, request.ranks, request.prototypes)
        self.trained = {stage: self._plan.trained(stage) for stage in ("pretrain", "finetune")}

    def step(self, stage: str, batch: int, ranks: int, micro_batch: int) -> StepPlan:
        """Returns a step at a global batch; a rank holds at most `micro_batch` of its clips at once (0: all)."""
        return self._plan.on(ranks).plan(stage, batch, micro_batch)

    def shown(self) -> Iterator[str | Table]:
        """Yields both stages' steps by part, at the recipe's batch and others."""
        request, plan = self._request, self._plan
        gpu, device, batches, share = request.gpu, request.device, request.batches, request.share
        recipe, clip = plan.recipe, plan.clip
        sizes = (
            f"{clip.frames:.0f} stored frames, {clip.visual_tokens:.0f} visual and "
            f"{clip.text_tokens:.3g} text tokens"
        )
        yield f"recipe {recipe.name}: {plan.ranks} x {gpu} with {device.memory_gb:g} GB\na clip: {sizes}\n"
        for stage, number in (("pretrain", 1), ("finetune", 2)):
            steps = [plan.plan(stage, size) for size in (getattr(recipe, stage).batch_size, *batches)]
            table = step_table(
                f"stage {number} on one rank, GB by part", {f"batch {step.batch:,}": step for step in steps}
            )
            rate = share * device.bf16_tflops * 1e12
            table.add_row("seconds a step", *(f"{step.operations / rate:.3g}" for step in steps))
            yield table
            most = plan.largest_batch(stage, device.memory_gb * 1e9)
            yield f"largest batch in {device.memory_gb:g} GB a rank: {most:,}\n"
        reached = f"{100 * share:g}% of {device.bf16_tflops:g} TFLOP/s"
        yield f"seconds: at {reached}, without loading, traffic and what chunks compute again"
