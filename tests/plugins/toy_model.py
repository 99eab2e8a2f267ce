"""A third model and a third objective in one file, as a plug-in writes them (SAGE_SCALE_PLUGINS=toy_model).

Stage 1 aligns the mean colour of segments with learned vectors of pseudo-glosses, by the loss of pooled tokens. Stage 2
reads a word at each position off the mean token of a clip.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor, nn

from sage_scale.config import Recipe, to_yaml
from sage_scale.losses import Objective, objective_of
from sage_scale.losses.clcl import mean_tokens
from sage_scale.nn.weights import put_weights
from sage_scale.registry import ModelSpec, Part, ReportSection, register_model, register_objective
from sage_scale.reporting.runlog import RunRecord
from sage_scale.shards import Dataset, read_metadata
from sage_scale.streaming import Batch, open_evaluation
from sage_scale.training.export import load_tensors, replace_folder, save_tensors
from sage_scale.training.frozen import FrozenOutputs
from sage_scale.training.stage import STAGE1, Task, TaskContext
from sage_scale.training.translation_task import TranslationTask
from sage_scale.vision.packed import PackedVideo

TEXTS, LONGEST, END = 64, 6, "."


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The toy model."""

    width: int = 8
    """Width of a token."""


class PooledDot(Objective):
    """Cross-entropy of videos over texts, by the cosine of mean tokens."""

    name = "toy_pooled"

    def similarity(self, visual_ND, text_MD, visual_lengths_B, text_lengths_B):
        visual_BD = F.normalize(mean_tokens(visual_ND, visual_lengths_B), dim=-1)
        Z_BB = visual_BD @ F.normalize(mean_tokens(text_MD, text_lengths_B), dim=-1).T
        return Z_BB, Z_BB

    def loss(self, Zv_BB, Zt_BB, scale, text_ids_B=None):
        return F.cross_entropy(scale * Zv_BB, torch.arange(len(Zv_BB), device=Zv_BB.device))


class ToyVisual(nn.Module):
    """PackedVideo to tokens (N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)

    def forward(self, video: PackedVideo) -> Tensor:
        colours_FC = video.frames_FCHW.float().mean((2, 3)) / 255
        return torch.segment_reduce(
            torch.tanh(self.linear(colours_FC)), "mean", lengths=video.segment_frames_N, axis=0, unsafe=True
        )


class ToyAligner(nn.Module):
    """Stage 1."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.visual = ToyVisual(recipe.model.toy.width)
        self.text = nn.Embedding(TEXTS, recipe.model.toy.width)
        self.log_scale = nn.Parameter(torch.ones(1))
        self.objective = objective_of(recipe.clcl)

    def forward(self, video: PackedVideo, ids_M: Tensor, lengths_B: Tensor) -> Tensor:
        return self.objective.share(
            self.visual(video), self.text(ids_M), video.clip_segments_B, lengths_B, self.log_scale.exp()
        )


class ToyAlignment(Task):
    """Stage 1: loss, dev loss, and the visual side at the end."""

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        pass

    def __init__(self, context: TaskContext) -> None:
        self.context, self.stream_seed = context, context.recipe.pretrain.seed
        self.model = self.build()

    def build(self) -> ToyAligner:
        return ToyAligner(self.context.recipe)

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        glosses = [meta["pseudo_glosses"] for meta in batch.metas]
        ids = [zlib.crc32(gloss.encode()) % TEXTS for clip in glosses for gloss in clip]
        return torch.tensor(ids, dtype=torch.int64), torch.tensor([len(clip) for clip in glosses])

    def compute(self, batch: Batch) -> dict[str, float]:
        share = self.engine.forward(batch.video, *self.texts(batch))
        self.engine.backward(share)
        return {"loss": float(share.detach())}

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float]:
        losses = [
            float(self.engine.evaluation_model(batch.video, *self.texts(batch)))
            for batch in open_evaluation(
                self.context.datasets, self.context.recipe, "dev", rank=0, world=1, batch_size=8
            )
        ]
        loss = sum(losses) / max(len(losses), 1)
        return {"loss": loss}, -loss

    def finish(self, model: Any, progress: Any) -> dict[str, Any]:
        figures, _ = self.evaluate(progress.step)
        if self.context.ranks.is_main:
            state = {name: value for name, value in model.state_dict().items() if name.startswith("visual.")}
            save_tensors(state, self.context.folder / STAGE1)
            (self.context.folder / "toy.json").write_text(json.dumps({"loss": figures["loss"]}))
        return figures


class ToyTranslator(nn.Module):
    """Stage 2, and what is used afterwards."""

    def __init__(self, recipe: Recipe, words: int) -> None:
        super().__init__()
        self.visual = ToyVisual(recipe.model.toy.width)
        self.words = nn.Linear(recipe.model.toy.width, LONGEST * words)

    def logits(self, video: PackedVideo) -> Tensor:
        pooled_BD = mean_tokens(self.visual(video), video.clip_segments_B)
        return self.words(pooled_BD).unflatten(1, (LONGEST, -1))

    def forward(self, video, labels_BL, inputs_BL, label_smoothing=0.0) -> tuple[Tensor, Tensor]:
        logits_BLV = self.logits(video)
        loss = F.cross_entropy(
            logits_BLV.flatten(0, 1), labels_BL.flatten(), reduction="sum", ignore_index=-100
        )
        return loss + logits_BLV.sum() * 0, (labels_BL != -100).sum()

    @torch.no_grad()
    def generate(self, video, tokenizer, languages, beams=4, max_tokens=150, length_penalty=1.0) -> list[str]:
        rows = self.logits(video).argmax(-1).tolist()
        return [" ".join(tokenizer[word] for word in row).partition(END)[0].strip() for row in rows]


class ToyTranslation(TranslationTask):
    """Stage 2."""

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        metas = [meta for dataset in context.datasets for meta in read_metadata(dataset, "train")]
        self.tokenizer = sorted({word for meta in metas for word in meta["sentence"].split()} | {END})
        self.model = self.build()
        if self.stage.init != "none":
            state = load_tensors(context.folder / STAGE1)
            put_weights(self.model, state, state.keys(), "stage 1")
        self.outputs = FrozenOutputs(self.model, self.stage)
        self.forward = self.outputs.forward

    def build(self) -> ToyTranslator:
        return ToyTranslator(self.recipe, len(self.tokenizer))

    def texts(self, metas: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        labels_BL = torch.full((len(metas), LONGEST), -100)
        for row, meta in enumerate(metas):
            words = [*meta["sentence"].split(), END][:LONGEST]
            labels_BL[row, : len(words)] = torch.tensor([self.tokenizer.index(word) for word in words])
        return labels_BL, labels_BL

    def save(self, model: Any, folder: Path) -> None:
        with replace_folder(folder) as partial:
            save_tensors(model.state_dict(), partial / "toy.safetensors")
            (partial / "words.json").write_text(json.dumps(self.tokenizer))
            (partial / "recipe.yaml").write_text(to_yaml(self.recipe))


def load_translator(
    path: Path, recipe: Recipe, device: Any = "cpu"
) -> tuple[ToyTranslator, list[str], Recipe]:
    """Returns what `save` wrote."""
    words = json.loads((path / "words.json").read_text())
    model, state = ToyTranslator(recipe, len(words)), load_tensors(path / "toy.safetensors")
    put_weights(model, state, state.keys(), path)
    return model.to(device).eval(), words, recipe


def describe(recipe: Recipe) -> list[Part]:
    """One part."""
    count = sum(parameter.numel() for parameter in ToyVisual(recipe.model.toy.width).parameters())
    return [Part("toy visual", count, count, count)]


def report(record: RunRecord) -> Markup:
    """The loss, in a section of its own."""
    return Markup("<p>dev loss {}</p>").format(record.own["toy.json"].get("loss", ""))


register_objective(PooledDot)
register_model(
    ModelSpec(
        name="toy",
        title="Toy2Text",
        pretrain=ToyAlignment,
        finetune=ToyTranslation,
        breaking_keys=("model.toy.width",),
        section=Toy,
        check=lambda recipe, need: need(recipe.model.toy.width % 2 == 0, "model.toy.width must be even"),
        load=load_translator,
        export_file="toy.safetensors",
        describe=describe,
        stage_titles=("colours", "words"),
        tokens_are_segments=True,
        report=(ReportSection("toy", "Toy", "toy.json", dict, "toy figures", report),),
    )
)
