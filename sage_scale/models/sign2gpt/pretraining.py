"""Stage 1 of Sign2GPT: which pseudo-glosses occur in a clip, and where (Sign2GPT, section 3.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.evaluation.stage1_scores import PresenceCounts, frequency_control
from sage_scale.models.sign2gpt.checkpoint import save_signs
from sage_scale.models.sign2gpt.localisation import write_localisation
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer
from sage_scale.models.sign2gpt.operations import Sign2GptOperations
from sage_scale.models.sign2gpt.prototypes import prototype_loss
from sage_scale.models.sign2gpt.run_prototypes import check_vectors, load_or_make_prototypes, target_glosses
from sage_scale.models.sign2gpt.spatial import check_spatial, frozen_files, sizes
from sage_scale.shards import Dataset, read_metadata
from sage_scale.streaming import Batch
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.decode import has_split, split_batches
from sage_scale.training.stage import STAGE1, Task, TaskContext, accumulate, global_batch_counts

SCORES = "prototypes.json"
"""Precision, recall and F1 of each split, in the run's folder."""


class PrototypeTask(Task):
    """Stage 1 of Sign2GPT."""

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        check_vectors(recipe, folder)
        check_spatial(recipe)

    def __init__(self, context: TaskContext) -> None:
        self.context, self.recipe, self.stage = context, context.recipe, context.recipe.pretrain
        made = load_or_make_prototypes(context)
        self.vocabulary, self.prototypes_UD = made.vocabulary, made.prototypes_UD
        self.model: Sign2GptPretrainer = self.build()
        self.operations = Sign2GptOperations(self.recipe, "pretrain", prototypes=len(self.prototypes_UD))
        self.frozen = [made.file, *frozen_files(context.recipe)]
        self.stream_seed = self.stage.seed

    def build(self) -> Sign2GptPretrainer:
        return Sign2GptPretrainer(self.recipe, self.prototypes_UD)

    def targets(self, metas: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Returns the arguments of `prototype_loss`, on the engine's device."""
        classes_G, counts_B = self.vocabulary.targets(target_glosses(self.recipe, meta) for meta in metas)
        device = self.context.ranks.device
        return classes_G.to(device), counts_B.to(device)

    def compute(self, batch: Batch) -> dict[str, float]:
        engine = self.engine
        if self.stage.micro_batch:
            batch = batch.by_length()
        # No clip is another's negative: micro-batches add up to the batch, and are no approximation.
        clips, chunks = global_batch_counts(len(batch.keys), len(batch.keys), self.stage.micro_batch)
        summands = max(clips * len(self.vocabulary.glosses), 1)

        def summed(part: Batch, rows: slice) -> Tensor:
            return engine.forward(part.video.to(engine.ranks.device), *self.targets(part.metas))[0]

        share = accumulate(engine, batch, chunks, summed, summands)
        glosses = float(self.targets(batch.metas)[1].sum())
        # Temperatures are the same on every rank and are counted once.
        first = float(engine.ranks.is_main)
        head = self.model.head
        taus = {name: first * float(engine.weight(getattr(head, name))) for name in ("tau_time", "tau_class")}
        return {"loss": share, **taus, **sizes(self.recipe, batch), "text_tokens": glosses}

    def evaluate(self, step: int) -> tuple[dict[str, float], float]:
        figures = self.split_figures("dev")
        return (figures, -figures["loss"]) if figures else ({"clips": 0}, 0.0)

    def finish(self, model: Any, progress: TrainingProgress) -> dict[str, Any]:
        """Write `pretrain/visual.safetensors`, `prototypes.json` and `localisation.json`."""
        figures = {split: self.split_figures(split) for split in ("dev", "test")}
        if self.context.ranks.is_main:
            save_signs(model, self.recipe, self.context.folder / STAGE1)
            self._write_scores(figures, self.context.folder / SCORES)
            glosses, path = self.vocabulary.glosses, self.context.folder / "localisation.json"
            write_localisation(self.context, self.engine, glosses, model, path)
        return figures["dev"]

    @torch.no_grad()
    def split_figures(self, split: str) -> dict[str, float]:
        """Returns loss and scores of a split with the engine's evaluation model; empty where there is none (a
        collective)."""
        datasets, ranks, recipe = self.context.datasets, self.context.ranks, self.recipe
        if not has_split(datasets, split):
            return {}
        counted = PresenceCounts.none(len(self.vocabulary.glosses))
        loss = 0.0
        for batch in split_batches(recipe, datasets, split, ranks):
            classes_G, counts_B = self.targets(batch.metas)
            with self.engine.precision():
                presence_BU = self.engine.evaluation_model.scores(batch.video.to(ranks.device)).presence_BU
            loss += float(prototype_loss(presence_BU, classes_G, counts_B)[0]) * recipe.prototypes.weight
            there_BU = torch.zeros(presence_BU.shape, dtype=torch.bool, device=ranks.device)
            there_BU[torch.repeat_interleave(counts_B), classes_G] = True
            counted += PresenceCounts.of(
                presence_BU.float().cpu().numpy(), there_BU.cpu().numpy(), recipe.prototypes.threshold
            )
        parts = distributed.gather_objects((counted, loss))
        every = sum((part[0] for part in parts), PresenceCounts.none(len(self.vocabulary.glosses)))
        summands = max(every.clips * len(self.vocabulary.glosses), 1)
        return {"loss": sum(part[1] for part in parts) / summands, **every.scores()}

    def _write_scores(self, figures: dict[str, dict[str, float]], path: Path) -> None:
        """Write the scores of each split, and those of guessing by frequency, for the report."""
        metas = [meta for dataset in self.context.datasets for meta in read_metadata(dataset)]

        def classes(split: str) -> list[list[int]]:
            rows = [target_glosses(self.recipe, meta) for meta in metas if meta["split"] == split]
            packed, counts = self.vocabulary.targets(rows)
            return [part.tolist() for part in packed.split(counts.tolist())]

        training, glosses = classes("train"), len(self.vocabulary.glosses)
        said = {
            "prototypes": glosses,
            "vectors": self.recipe.prototypes.vectors,
            "threshold": self.recipe.prototypes.threshold,
            "frequent": len(self.vocabulary.frequent),
            "splits": {
                split: {**scores, "control": frequency_control(training, classes(split), glosses)}
                for split, scores in figures.items()
                if scores
            },
        }
        path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
