"""Stage 2: label-smoothed cross-entropy of the sentences; the best weights have the highest dev BLEU-4."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sage_scale.config import Recipe
from sage_scale.errors import RecipeError
from sage_scale.evaluation.metrics import score
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.decode import score_arguments, translate_split
from sage_scale.training.export import need_tensors
from sage_scale.training.familiarity import add_familiarity
from sage_scale.training.frozen import FrozenOutputs
from sage_scale.training.gold_glosses import check_glosses
from sage_scale.training.language.prepare import check_language_model, language_kind
from sage_scale.training.model_card import write_card
from sage_scale.training.stage import STAGE1, Task, TaskContext, accumulate, global_batch_counts
from sage_scale.training.throughput import video_sizes
from sage_scale.untrusted.printer import tell


class TranslationTask(Task):
    """The task of stage 2; a subclass makes the translator, its tokenizer and its frozen modules."""

    outputs: FrozenOutputs
    tokenizer: Any

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        check_language_model(recipe, folder, datasets)
        if recipe.finetune.glosses:
            if not language_kind(recipe).reads_glosses:
                raise RecipeError(
                    f"finetune.glosses: the language model of model.kind={recipe.model.kind} reads none"
                )
            check_glosses(recipe, datasets)
        elif recipe.finetune.init != "none":
            need_tensors(folder / STAGE1)

    def __init__(self, context: TaskContext) -> None:
        self.context, self.recipe = context, context.recipe
        self.stage = context.recipe.finetune
        self.stream_seed = self.stage.seed + 1

    @abstractmethod
    def texts(self, metas: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Returns labels (-100 on padding) and decoder input ids, both int64 (B, L)."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write the export folder."""

    def sizes(self, batch: Batch) -> dict[str, float]:
        """Returns the numbers of frames and visual tokens in a rank's part of the batch."""
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
        total_tokens, chunks = global_batch_counts(tokens, len(batch.keys), stage.micro_batch)

        def summed(part: Batch, rows: slice) -> Tensor:
            texts = labels[rows].to(device), inputs[rows].to(device)
            return engine.forward(*self.outputs.inputs(part, engine), *texts, stage.label_smoothing)[0]

        share = accumulate(engine, batch, chunks, summed, max(total_tokens, 1))
        sizes = self.sizes(batch) | {"text_tokens": float(tokens)}
        return {"loss": share, **sizes}

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
        scores = score(*score_arguments(rows))
        shown = {name: scores[name] for name in ("bleu4", "bleu1", "rouge_l")}
        return {"clips": len(rows), **shown}, float(scores["bleu4"])

    def finish(self, model: Any, progress: TrainingProgress) -> dict[str, Any]:
        """Write the export `model/`, its card, and what its training data looks like."""
        export, ranks = self.context.folder / "model", self.engine.ranks
        if ranks.is_main:
            self.save(model, export)
            write_card(export, self.recipe, self.context.datasets)
        add_familiarity(
            export, self.recipe, model, self.tokenizer, self.context.datasets, ranks, self.engine.precision,
            lambda line: tell(f"sage-scale finetune: {line}") if ranks.is_main else None,
        )  # fmt: skip
        return {"dev_bleu4": progress.best_score}


def choose_attention(language_model: PreTrainedModel, device: torch.device) -> None:
    """Set the attention implementation that trains fastest on `device`."""
    if device.type == "cpu":
        # The backward of torch's fused attention takes longer on a CPU than all matrix products of a small model.
        language_model.set_attn_implementation("eager")
