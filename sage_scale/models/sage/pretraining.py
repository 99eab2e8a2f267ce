"""Stage 1 of SAGE: visual tokens are aligned with pseudo-gloss tokens by CLCL at two levels (SAGE, section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.config import Recipe
from sage_scale.evaluation.stage1_scores import tiled_retrieval
from sage_scale.losses import objective_of
from sage_scale.losses.cico import swapped_words
from sage_scale.losses.collectives import gather_counts, gather_rows
from sage_scale.losses.ring import sum_over_ranks
from sage_scale.models.sage import export
from sage_scale.models.sage.embedding_cache import EmbeddingCache, run_task
from sage_scale.models.sage.mbart import TextEncoder, TextTargets, load_language_model, make_labels
from sage_scale.models.sage.model import SageAligner
from sage_scale.models.sage.operations import StepOperations
from sage_scale.nn.frame_encoder import check_frame_encoder
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch
from sage_scale.text.tokenizer import encode_texts
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.decode import first_batch, split_batches
from sage_scale.training.engine import Engine
from sage_scale.training.language.prepare import check_language_model, prepare_language_model
from sage_scale.training.stage import STAGE1, Task, TaskContext
from sage_scale.training.throughput import video_sizes


class AlignmentTask(Task):
    """Stage 1 of SAGE."""

    @staticmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        check_frame_encoder(recipe)
        check_language_model(recipe, folder, datasets)

    def __init__(self, context: TaskContext) -> None:
        recipe, ranks = context.recipe, context.ranks
        self.recipe, self.folder, self.datasets = recipe, context.folder, context.datasets
        self.stage = recipe.pretrain
        language_folder = prepare_language_model(
            recipe, context.folder, context.datasets, ranks, share=context.share
        )
        self.language_model, self.tokenizer = load_language_model(language_folder)
        self.model: SageAligner = SageAligner(recipe, self.language_model)
        self.text = TextEncoder(
            self.language_model, self.tokenizer, cache_bytes=self.stage.text_cache_mb * 1_000_000,
            hidden=recipe.clcl.beta < 1,
        )  # fmt: skip
        self.text.to(ranks.device)
        self.forward = run_task
        self.frozen = [language_folder]
        self.operations = StepOperations(recipe, "pretrain", self.language_model.config)
        self.stream_seed = self.stage.seed

    def build(self) -> SageAligner:
        return SageAligner(self.recipe, self.language_model)

    def begin(self, engine: Engine) -> None:
        super().begin(engine)
        self.cache = EmbeddingCache(self.model, engine)

    def compute(self, batch: Batch) -> dict[str, float]:
        device = self.engine.ranks.device
        texts, languages = alignment_texts(self.recipe, batch.metas)
        targets = self.text.encode(texts, languages, device)
        if self.model.objective.second_view and batch.video.clip_seeds_B is not None:
            views = swapped_words(texts, batch.video.clip_seeds_B.tolist())
            targets = replace(targets, view=self.text.encode(views, languages, device))
        if self.recipe.clcl.sentence:
            targets = self.with_sentences(targets, batch.metas)
        ids = text_ids(texts, device)
        clips, repeated = repeated_texts(ids)
        micro = self.stage.micro_batch
        chunks = max(-(-count // micro) for count in clips) if micro else 1
        if chunks > 1:
            share, parts = self.cache.backward(batch, targets, ids, chunks)
        else:
            share, parts = self.engine.forward(self.model, batch.video.to(device), targets, ids)
            self.engine.backward(share)
        first = float(self.engine.ranks.is_main)
        figures = {"loss": float(share.detach()), "same_text_share": repeated / max(sum(clips), 1)}
        figures |= video_sizes(batch) | {"text_tokens": float(targets.lengths_B.sum())}
        for name, value in parts.items():
            # Losses are shares and add up; scales and biases are the same on every rank and are counted once.
            figures[name] = float(value) * (1.0 if name.startswith("loss") else first)
        return figures

    def with_sentences(self, targets: TextTargets, metas: Sequence[dict[str, Any]]) -> TextTargets:
        """Returns the targets with the clips' sentences as labels."""
        longest = self.language_model.config.max_position_embeddings - 2
        sentences, languages = ([meta[key] for meta in metas] for key in ("sentence", "language"))
        labels_BL, inputs_BL = make_labels(self.tokenizer, sentences, languages, longest)
        return replace(targets, labels_BL=labels_BL, inputs_BL=inputs_BL).to(targets.lengths_B.device)

    def evaluate(self, step: int) -> tuple[dict[str, float], float]:
        return dev_figures(self.recipe, self.engine, self.text, self.datasets, "dev")

    def finish(self, model: Any, progress: TrainingProgress) -> dict[str, Any]:
        """Write `pretrain/visual.safetensors` and `alignment.json`."""
        figures, _ = dev_figures(self.recipe, self.engine, self.text, self.datasets, "dev")
        if self.engine.ranks.is_main:
            export.save_visual(model, self.folder / STAGE1)
            path = self.folder / "alignment.json"
            write_alignment(self.recipe, self.engine, self.text, self.tokenizer, self.datasets, path)
        return figures


def alignment_texts(recipe: Recipe, metas: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Returns the text that each clip is aligned with (its pseudo-glosses in one string, or its sentence), and the
    languages."""
    glosses = recipe.text.target == "pseudo_gloss"
    texts = [" ".join(meta["pseudo_glosses"]) if glosses else meta["sentence"] for meta in metas]
    return texts, [meta["language"] for meta in metas]


def text_ids(texts: list[str], device: torch.device) -> torch.Tensor:
    """Returns int64 (B,): equal texts have equal ids, on every rank."""
    import xxhash

    ids = [xxhash.xxh3_64_intdigest(text.encode()) >> 1 for text in texts]
    return torch.tensor(ids, dtype=torch.int64, device=device)


def repeated_texts(ids_B: torch.Tensor) -> tuple[list[int], int]:
    """Returns the clips of every rank, and how many of this rank's have the text of another clip of the global
    batch."""
    clips = [counts[0] for counts in gather_counts([ids_B.numel()], device=ids_B.device)]
    all_ids = gather_rows(ids_B, clips)
    texts, times = torch.unique(all_ids, return_counts=True)
    return clips, int(torch.isin(ids_B, texts[times > 1]).sum())


@torch.no_grad()
def embed_split(
    recipe: Recipe, engine: Engine, text: TextEncoder, data: Sequence[Dataset], split: str
) -> list[dict[str, Any]]:
    """Returns this rank's clips of a split, a row each: key, meta, text, and the tokens of both sides, float32.

    Rank r has every W-th clip, and may have none.
    """
    ranks = engine.ranks
    rows: list[dict[str, Any]] = []
    for batch in split_batches(recipe, data, split, ranks):
        texts, languages = alignment_texts(recipe, batch.metas)
        with engine.precision():
            tokens, hidden = engine.evaluation_model.encode(batch.video.to(ranks.device))
        targets = text.encode(texts, languages, ranks.device)
        segments = batch.video.clip_segments_B.tolist()
        words = targets.lengths_B.tolist()
        visual = [part.float().cpu() for part in tokens.split(segments)]
        contexts: list[Any] = [None] * len(visual)
        if hidden is not None:
            contexts = [part.float().cpu() for part in hidden.split(segments)]
        lexical = [part.float().cpu() for part in targets.embeddings_MD.split(words)]
        contextual = [part.float().cpu() for part in targets.hidden_MD.split(words)]
        names = ("key", "meta", "text", "visual", "hidden", "embeddings", "states")
        columns = (batch.keys, batch.metas, texts, visual, contexts, lexical, contextual)
        rows += [dict(zip(names, values)) for values in zip(*columns)]
    return rows


@torch.no_grad()
def dev_figures(
    recipe: Recipe, engine: Engine, text: TextEncoder, data: Sequence[Dataset], split: str
) -> tuple[dict[str, float], float]:
    """Returns the loss over the whole split as one batch with retrieval in both directions, and the score, minus the
    loss (a collective).

    Each rank keeps the tokens of its own clips, and computes its share of both by tiles (`Objective.share`,
    `tiled_retrieval`), in float64.
    """
    rows = embed_split(recipe, engine, text, data, split)
    device = engine.ranks.device
    widths = [_width(rows, name) for name in ("visual", "embeddings", "hidden", "states")]
    every = gather_counts([len(rows), *widths], device=device)
    clips = sum(counts[0] for counts in every)
    if not clips:
        return {"clips": 0}, 0.0
    visual, embeddings, hidden, states = (max(counts[n] for counts in every) for n in range(1, 5))
    # The reference holds all pairs of tokens of a split at once.
    objective = objective_of(replace(recipe.clcl, implementation="auto"))
    figures: dict[str, float] = {"clips": clips}
    total = 0.0
    beta, values = recipe.clcl.beta, engine.evaluation_model.logit_values()
    levels = [
        ("embedding", ("visual", visual), ("embeddings", embeddings), beta),
        ("hidden", ("hidden", hidden), ("states", states), 1 - beta),
    ]
    levels = [level for level in levels if level[3] > 0]
    # Repeated texts are negatives on dev, whatever `clcl.same_text`.
    ids_B = torch.arange(len(rows), device=device) * len(every) + engine.ranks.rank
    for name, of_visual, of_text, weight in levels:
        (visual_ND, n_B), (text_MD, m_B) = (_packed(rows, *side) for side in (of_visual, of_text))
        numbers = {kind: value.detach().double() for kind, value in values[name].items()}
        exact_ND, exact_MD = (tokens.to(device, torch.float64) for tokens in (visual_ND, text_MD))
        share = objective.share(
            exact_ND, exact_MD, n_B.to(device), m_B.to(device), text_ids_B=ids_B, **numbers
        )
        loss = float(sum_over_ranks(share, None))
        figures[f"loss_{name}"] = loss
        total += weight * loss
        if name == levels[0][0]:  # embeddings, unless beta=0 does not train them
            figures |= tiled_retrieval(objective, visual_ND, text_MD, n_B.tolist(), m_B.tolist(), device)
    return {"loss": total, **figures}, -total


def _width(rows: list[dict[str, Any]], name: str) -> int:
    """Returns the width of a kind of tokens; 0 where there are none."""
    return rows[0][name].shape[1] if rows and rows[0][name] is not None else 0


def _packed(rows: list[dict[str, Any]], name: str, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the clips' tokens of a kind, (sum of lengths, width), and their lengths, int64 (b,)."""
    tokens_ND = torch.cat([torch.zeros(0, width), *(row[name] for row in rows)])
    return tokens_ND, torch.tensor([len(row[name]) for row in rows], dtype=torch.int64)


@torch.no_grad()
def write_alignment(
    recipe: Recipe,
    engine: Engine,
    text: TextEncoder,
    tokenizer: Any,
    data: Sequence[Dataset],
    path: Path,
    clips: int = 6,
) -> None:
    """Write token similarities of a few dev clips, as in the paper's Figure 4, for the report (rank 0 only)."""
    batch = first_batch(recipe, data, "dev", clips)
    texts, languages = alignment_texts(recipe, batch.metas)
    with engine.precision():
        tokens, hidden = engine.evaluation_model.encode(batch.video.to(engine.ranks.device))
    targets = text.encode(texts, languages, engine.ranks.device)
    sides = (tokens, targets.embeddings_MD)
    if recipe.clcl.beta == 0:  # the embeddings are not aligned
        sides = (hidden, targets.hidden_MD)
    visual, lexical = (torch.nn.functional.normalize(side.float(), dim=-1).cpu() for side in sides)
    visual_parts = visual.split(batch.video.clip_segments_B.tolist())
    lexical_parts = lexical.split(targets.lengths_B.tolist())
    rows = []
    for number, (v, t) in enumerate(zip(visual_parts, lexical_parts, strict=True)):
        pieces = tokenizer.convert_ids_to_tokens(encode_texts(tokenizer, [texts[number]])[0])
        rows.append(
            {
                "key": batch.keys[number],
                "sentence": batch.metas[number]["sentence"],
                "tokens": [piece.replace("\u2581", "") or piece for piece in pieces][: len(t)],
                "similarity": np.round((v @ t.T).numpy(), 3).tolist(),
                "segments": batch.segments[number].tolist() if batch.segments else [],
            }
        )
    path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
