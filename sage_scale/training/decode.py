"""Translates a whole split, with its clips divided over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from sage_scale.config import Recipe
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch, open_evaluation
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks
from sage_scale.training.export import TranslationModel
from sage_scale.training.gold_glosses import gold_glosses
from sage_scale.vision.packed import PackedVideo

Change = Callable[[PackedVideo], PackedVideo]


@torch.no_grad()
def translate_split(
    recipe: Recipe,
    model: TranslationModel,
    tokenizer: Any,
    data: Sequence[Dataset],
    split: str,
    ranks: Ranks,
    precision: Callable[[], AbstractContextManager],
    change: Change | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Returns one row per clip, in dataset order, on every rank (a collective).

    A row has key, id, language, hypothesis, reference, pseudo-glosses, segments, frames and signer. `change` replaces
    the video of a batch, for controls such as blank videos; `progress` receives this rank's number of rows. With
    `finetune.glosses` the model reads these in place of the video, and nothing where the video is replaced.
    """
    model.eval()
    glosses = gold_glosses(recipe)
    evaluation = recipe.evaluation
    rows: list[dict[str, Any]] = []
    for batch in split_batches(recipe, data, split, ranks):
        video = change(batch.video) if change else batch.video
        languages = [meta["language"] or recipe.corpus.language for meta in batch.metas]
        read = (
            {}
            if glosses is None
            else {"texts": ["" if change else glosses.text(meta) for meta in batch.metas]}
        )
        with precision():
            hypotheses = model.generate(
                video.to(ranks.device),
                tokenizer,
                languages,
                beams=evaluation.beams,
                max_tokens=evaluation.max_tokens,
                length_penalty=evaluation.length_penalty,
                **read,
            )
        rows += _rows(batch, languages, hypotheses)
        if progress:
            progress(len(rows))
    return gather_clips(rows)


def split_batches(recipe: Recipe, data: Sequence[Dataset], split: str, ranks: Ranks) -> Iterator[Batch]:
    """Yields this rank's batches of a split for evaluation, none of them empty; nothing where no dataset has it."""
    if has_split(data, split):
        size = recipe.evaluation.batch_size
        batches = open_evaluation(data, recipe, split, rank=ranks.rank, world=ranks.world, batch_size=size)
        yield from (batch for batch in batches if batch.keys)


def first_batch(recipe: Recipe, data: Sequence[Dataset], split: str, clips: int) -> Batch:
    """Returns the first clips of a split, or of `train` where no dataset has it, for the report."""
    split = split if has_split(data, split) else "train"
    return next(iter(open_evaluation(data, recipe, split, rank=0, world=1, batch_size=clips)))


def gather_clips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of all ranks in dataset order, which their entry `position` gives (a collective).

    Rank r has every W-th clip.
    """
    every = [row for part in distributed.gather_objects(rows) for row in part]
    every.sort(key=lambda row: row["position"])
    return [{key: value for key, value in row.items() if key != "position"} for row in every]


def score_arguments(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Returns (hypotheses, references, languages) of the rows, the arguments of `evaluation.score`."""
    hypotheses, references, languages = (
        [str(row[name]) for row in rows] for name in ("hypothesis", "reference", "language")
    )
    return hypotheses, references, languages


def has_split(data: Sequence[Dataset], split: str) -> bool:
    """Returns whether any dataset holds clips of the split."""
    return any(split in dataset.splits for dataset in data)


def blank_video(video: PackedVideo) -> PackedVideo:
    """Returns clips of the same lengths without signing: frames show their background or grey, features are zero."""
    if video.features_FC is not None:
        return replace(video, features_FC=torch.zeros_like(video.features_FC))
    assert video.frames_FCHW is not None
    if video.background_BCHW is not None:
        return replace(video, frames_FCHW=video.background_BCHW[video.frame_clip_F()])
    return replace(video, frames_FCHW=torch.full_like(video.frames_FCHW, 128))


def _rows(batch: Batch, languages: list[str], hypotheses: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "position": int(position),
            "key": key,
            "id": meta["id"],
            "language": language,
            "hypothesis": hypothesis,
            "reference": meta["sentence"],
            "pseudo_glosses": meta["pseudo_glosses"],
            "segments": segments.tolist(),
            "frames": meta["frames"],
            "signer": meta["signer"],
        }
        for position, key, meta, language, hypothesis, segments in zip(
            batch.positions_B, batch.keys, batch.metas, languages, hypotheses, batch.segments
        )
    ]
