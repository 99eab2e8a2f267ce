"""Stage 2 of either model: label-smoothed cross-entropy of the sentence, chosen by BLEU-4 of beam search on dev."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sage_scale.config import Recipe
from sage_scale.evaluation.metrics import score
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.decode import sides, translate_split
from sage_scale.training.export import need_tensors
from sage_scale.training.frozen import FrozenOutputs
from sage_scale.training.language.prepare import check_language_model
from sage_scale.training.stage import STAGE1, Task, TaskContext, agree, even_slices
from sage_scale.training.throughput import video_sizes


class TranslationTask(Task):
    """A translator, its tokenizer, and what of it is frozen; a subclass makes them."""

    outputs: FrozenOutputs
    tokenizer: Any

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        check_language_model(recipe, folder, datasets)
        if recipe.finetune.init != "none":
            need_tensors(folder / STAGE1)

    def __init__(self, context: TaskContext) -> None:
        self.context, self.recipe = context, context.recipe
        self.stage = context.recipe.finetune
        self.stream_seed = self.stage.seed + 1

    @abstractmethod
    def texts(self, metas: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Labels, -100 on padding, and the decoder's inputs, both int64 (B, L)."""

    @abstractmethod
    def save(self, whole: Any, folder: Path) -> None:
        """Write the export."""

    def sizes(self, batch: Batch) -> dict[str, float]:
        """Frames and visual tokens of a rank's part of a batch, shares of the global ones."""
        return video_sizes(batch)

    def compute(self, batch: Batch) -> dict[str, float]:
        engine, stage = self.engine, self.stage
        device = engine.ranks.device
        self.outputs.set_mode()
        if stage.micro_batch:
            batch = batch.by_length()
        labels, inputs = self.texts(batch.metas)
        # Over ranks and accumulation alike: the loss is a mean over the tokens of the whole global batch.
        tokens = int((labels != -100).sum())
        total_tokens, chunks = agree(tokens, len(batch.keys), stage.micro_batch)
        loss_sum = 0.0
        for number, rows in enumerate(even_slices(len(batch.keys), chunks)):
            part = batch.select(rows) if chunks > 1 else batch
            video, kept = self.outputs.inputs(part, engine)
            summed, _ = engine.forward(
                video, kept, labels[rows].to(device), inputs[rows].to(device), stage.label_smoothing
            )
            engine.backward(summed / max(total_tokens, 1), last=number == chunks - 1)
            loss_sum += float(summed.detach())
        sizes = self.sizes(batch) | {"text_tokens": float(tokens)}
        return {"loss": loss_sum / max(total_tokens, 1), **sizes}

    def evaluate(self, step: int) -> tuple[dict[str, float], float]:
        engine, recipe = self.engine, self.recipe
        rows = translate_split(
            recipe,
            engine.evaluation_model,
            self.tokenizer,
            self.context.datasets,
            "dev",
            engine.ranks,
            engine.precision,
        )
        if not rows:
            return {"clips": 0}, 0.0
        scores = score(*sides(rows))
        shown = {name: scores[name] for name in ("bleu4", "bleu1", "rouge_l")}
        return {"clips": len(rows), **shown}, float(scores["bleu4"])

    def finish(self, whole: Any, progress: TrainingProgress) -> dict[str, Any]:
        """The export `model/`."""
        if self.engine.ranks.first:
            self.save(whole, self.context.folder / "model")
        return {"dev_bleu4": progress.best_score}


def choose_attention(language_model: PreTrainedModel, device: torch.device) -> None:
    """The attention that trains fastest on `device`."""
    if device.type == "cpu":
        # The backward of torch's fused attention takes longer on a CPU than all matrix products of a small model.
        language_model.set_attn_implementation("eager")
