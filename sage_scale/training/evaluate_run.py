"""Scores of a trained run on unseen clips, beside the controls that a translator must beat.

Writes `scores.json` (the mapping of `sage_scale.evaluation.score` for the split, with controls beside it),
`predictions/<split>.jsonl` and `timelines/` for the report.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.config import Recipe
from sage_scale.config.recipe import values_of
from sage_scale.errors import DatasetError, UsageError
from sage_scale.evaluation.baselines import nearest_in_length, prior_sentence
from sage_scale.evaluation.metrics import content_f1, score
from sage_scale.shards import Dataset, read_texts
from sage_scale.streaming import Data, open_datasets, open_evaluation
from sage_scale.training import distributed
from sage_scale.training.decode import blank, has_split, translate_split
from sage_scale.training.engine import fast_bf16
from sage_scale.training.export import load_translator
from sage_scale.training.inherited import contradictions, described
from sage_scale.training.pictures import thumbnail
from sage_scale.training.runlog import memory_mb, record_timing

Say = Callable[[str], None]


def run(
    run_folder: str | Path, data: Data, split: str = "test", controls: bool = True, say: Say = lambda _: None
) -> dict[str, Any]:
    """Translate `split` with the run's export and score it; returns what `scores.json` holds.

    Where the dataset has a split `<split>_heldout` (signers never seen in training), it is scored as well.
    """
    folder = Path(run_folder)
    started = time.monotonic()
    datasets = open_datasets(data)
    if not has_split(datasets, split):
        there = sorted({name for dataset in datasets for name in dataset.splits})
        raise UsageError(
            f"{datasets[0].url} has no clip in split '{split}'; it has {', '.join(there)}: give --split, or "
            "precompute a corpus that has it"
        )
    ranks = distributed.initialise()
    model, tokenizer, recipe = load_translator(folder, ranks.device)
    for line in contradictions(recipe, datasets):
        say(line)
    language = recipe.corpus.language
    use_bf16 = recipe.finetune.precision != "fp32" and fast_bf16(ranks.device)

    def precision() -> Any:
        return torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=use_bf16)

    def translate(name: str, change: Any = None) -> list[dict[str, Any]]:
        return translate_split(recipe, model, tokenizer, datasets, name, ranks, precision, change)

    say(f"translating {split}")
    rows = translate(split)
    if not rows:  # all that was planned for it was rejected
        raise DatasetError(f"{datasets[0].url} has no clip in split '{split}'")
    references = [row["reference"] for row in rows]
    scores = score([row["hypothesis"] for row in rows], references, language)
    result: dict[str, Any] = {
        **scores,
        "split": split,
        "clips": len(rows),
        "content_f1": content_f1([row["hypothesis"] for row in rows], references, language),
    }
    if recipe.model.kind == "sage":  # a token is a segment
        segments, frames = sum(len(row["segments"]) for row in rows), sum(row["frames"] for row in rows)
        result["token_ratio"] = segments / max(frames, 1)
        result["taggers"] = values_of(map(described, datasets)).get("segmentation.tagger", [])
    if ranks.first:
        write_rows(folder / "predictions" / f"{split}.jsonl", rows)
    heldout = translate(f"{split}_heldout")
    if heldout:
        result["heldout"] = {
            **score([row["hypothesis"] for row in heldout], [row["reference"] for row in heldout], language),
            "clips": len(heldout),
        }
        if ranks.first:
            write_rows(folder / "predictions" / f"{split}_heldout.jsonl", heldout)
    if controls:
        say("scoring the controls")
        result["controls"] = _controls(recipe, datasets, rows, translate(split, blank), language)
    if ranks.first:
        (folder / "scores.json").write_text(
            json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        write_timelines(recipe, datasets, split, rows, folder / "timelines" / "timelines.json")
        record_timing(folder, "evaluate", time.monotonic() - started, memory_mb(ranks.device))
    return result


def _controls(
    recipe: Recipe,
    data: Sequence[Dataset],
    rows: list[dict[str, Any]],
    blind: list[dict[str, Any]],
    language: str,
) -> dict[str, Any]:
    """What a translator must beat: wrong videos, no video, and training sentences chosen without looking."""
    references = [row["reference"] for row in rows]
    hypotheses = [row["hypothesis"] for row in rows]
    train = [
        meta
        for dataset in data
        for meta in read_texts(dataset)
        if meta["split"] == "train" and meta["sentence"]
    ]
    sentences = [meta["sentence"] for meta in train]
    lengths = [int(meta["frames"]) for meta in train]
    # A translation depends on its own video alone, so exchanging videos is exchanging hypotheses.
    shift = derangement(len(rows), seed=recipe.finetune.seed)
    return {
        "exchanged_videos": score([hypotheses[i] for i in shift], references, language),
        "blank_videos": score([row["hypothesis"] for row in blind], references, language),
        "nearest_in_length": score(
            nearest_in_length(sentences, lengths, [row["frames"] for row in rows]), references, language
        ),
        "prior_sentence": score([prior_sentence(sentences, language)] * len(rows), references, language),
    }


def derangement(count: int, seed: int) -> list[int]:
    """A random permutation of range(count) that leaves nothing in its place (count of 1 excepted)."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    result = np.empty(count, dtype=int)
    result[order] = np.roll(order, 1)
    return result.tolist()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON Lines, one clip a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_timelines(
    recipe: Recipe,
    data: Sequence[Dataset],
    split: str,
    rows: list[dict[str, Any]],
    path: Path,
    clips: int = 6,
    width: int = 72,
) -> None:
    """A few clips with their segments and a thumbnail for each, for the report."""
    by_key = {row["key"]: row for row in rows}
    timelines = []
    for batch in open_evaluation(data, recipe, split, rank=0, world=1, batch_size=clips):
        if batch.video.frames_FCHW is None:
            break
        firsts = np.concatenate([[0], np.cumsum(batch.video.segment_frames_N.numpy())])
        position = 0
        for key, meta, segments in zip(batch.keys, batch.metas, batch.segments):
            thumbnails = []
            for start, end in segments.tolist():
                middle = int((firsts[position] + firsts[position + 1]) // 2)
                thumbnails.append(
                    {"frame": (start + end) // 2, "jpeg": thumbnail(batch.video.frames_FCHW[middle], width)}
                )
                position += 1
            timelines.append(
                {
                    "key": key,
                    "id": meta["id"],
                    "sentence": meta["sentence"],
                    "hypothesis": by_key[key]["hypothesis"],
                    "fps": meta["fps"],
                    "frames": meta["frames"],
                    "segments": segments.tolist(),
                    "thumbnails": thumbnails,
                }
            )
        break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(timelines, ensure_ascii=False) + "\n", encoding="utf-8")
