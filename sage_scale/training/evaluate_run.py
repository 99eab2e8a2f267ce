"""Scores a trained run on unseen clips, and the controls that a translator must beat.

Writes into `scores.json` an entry of the split (`sage_scale.evaluation.split_scores`; other splits keep theirs),
`predictions/<split>.jsonl`, `.txt` and `.tsv`, and for the report `timelines/<split>.json`.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sage_scale.config import Recipe
from sage_scale.config.recipe import values_of
from sage_scale.errors import DatasetError, NoModel, UsageError
from sage_scale.evaluation.baselines import text_controls
from sage_scale.evaluation.hypotheses import write_predictions
from sage_scale.evaluation.metrics import content_f1
from sage_scale.evaluation.neural import neural_counts, open_scorer
from sage_scale.evaluation.split_scores import split_scores
from sage_scale.evaluation.stored import write_scores
from sage_scale.registry import model_spec
from sage_scale.shards import Dataset, notice_note, read_metadata
from sage_scale.streaming import Data, OncePerNode, open_datasets
from sage_scale.training import distributed
from sage_scale.training.decode import blank_video, first_batch, has_split, score_arguments, translate_split
from sage_scale.training.engine import has_fast_bf16
from sage_scale.training.export import SearchingModel, export_folder, load_translator
from sage_scale.training.familiarity import FILE as FAMILIARITY
from sage_scale.training.familiarity import add_familiarity
from sage_scale.training.inherited import contradictions, recorded_keys
from sage_scale.training.model_card import add_scores
from sage_scale.training.run_place import run_place
from sage_scale.training.stage_log import record_timing
from sage_scale.training.throughput import memory_mb
from sage_scale.untrusted.display import shortened

Say = Callable[[str], None]
TIMELINES, THUMBNAIL = 6, 72
"""Clips of `timelines/<split>.json`, and the width of their thumbnails, pixels."""


def run(
    run_folder: str | Path,
    data: Data,
    split: str = "test",
    controls: bool = True,
    say: Say = lambda _: None,
    metrics: Sequence[str] = (),
    gold: str | Path | None = None,
) -> dict[str, Any]:
    """Translate `split` with the run's export and score it; returns its entry of `scores.json`.

    `run_folder` may be a run's URL (run_place.py). `metrics` are optional ones (`evaluation.neural`), made on rank 0.
    `gold` is an annotation of signs, against which stage 1's visual tokens are scored as `alignment`
    (`evaluation.sign_alignment`). Where the dataset has a split `<split>_heldout` (signers never seen in training), it
    is scored as well.
    """
    place = run_place(run_folder)
    folder = place.folder
    scorers = dict(open_scorer(written) for written in metrics)
    signs = None
    if gold is not None:
        from sage_scale.training.alignment_scores import open_gold  # with PyAV, which scores alone do without

        signs = open_gold(gold)
    started = time.monotonic()
    ranks = distributed.initialise()
    datasets = open_datasets(data, OncePerNode(distributed.gather_objects))
    if not has_split(datasets, split):
        there = sorted({name for dataset in datasets for name in dataset.splits})
        raise UsageError(
            f"{datasets[0].url} has no clip in split '{split}'; it has {', '.join(there)}: give --split, or "
            "precompute a corpus that has it"
        )
    if signs is not None and not any(
        (found := signs(meta)) and found.signs
        for dataset in datasets
        for meta in read_metadata(dataset, split)
    ):  # said before hours of translation
        raise UsageError(
            f"--gold {shortened(gold, 300)} has no signs of any clip of the split '{split}': name its files or rows "
            "by the ids or the videos of the clips"
        )
    distributed.run_on_each_host(place.fetch_to_read)
    model, tokenizer, recipe = load_translator(folder, ranks.device)
    for line in contradictions(recipe, datasets):
        say(line)
    use_bf16 = recipe.finetune.precision != "fp32" and has_fast_bf16(ranks.device)

    def precision() -> Any:
        return torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=use_bf16)

    export = export_folder(folder)
    if isinstance(model, SearchingModel) and not (export / FAMILIARITY).is_file():  # exported before 0.2.0
        say("measuring the signing that is familiar, for warnings of other signing")
        add_familiarity(export, recipe, model, tokenizer, datasets, ranks, precision, say)

    def translate(name: str, change: Any = None) -> list[dict[str, Any]]:
        return translate_split(recipe, model, tokenizer, datasets, name, ranks, precision, change)

    say(f"translating {split}")
    rows = translate(split)
    if not rows:  # all that was planned for it was rejected
        raise DatasetError(f"{datasets[0].url} has no clip in split '{split}'")
    hypotheses, references, _ = score_arguments(rows)
    texts = None
    if controls:
        say("scoring the controls")
        texts = _controls(recipe, datasets, rows, translate(split, blank_video))
    neural = {
        name: neural_counts(scorer, hypotheses, references)
        for name, scorer in scorers.items()
        if ranks.is_main
    }
    result: dict[str, Any] = {
        **split_scores(rows, texts, neural),
        "split": split,
        **notice_note(datasets),
    }
    try:
        result["content_f1"] = content_f1(*score_arguments(rows))
    except ModuleNotFoundError as missing:  # a machine that only trains needs no tagger
        say(f"content-word F1 is left out: the package '{missing.name}' is not installed")
    if recipe.finetune.glosses:
        result["input"] = "glosses"  # the ceiling of translation
    elif model_spec(recipe.model.kind).tokens_are_segments:
        segments, frames = sum(len(row["segments"]) for row in rows), sum(row["frames"] for row in rows)
        result["token_ratio"] = segments / max(frames, 1)
        result["taggers"] = values_of(map(recorded_keys, datasets)).get("segmentation.tagger", [])
    if signs is not None:
        try:
            from sage_scale.training.alignment_scores import alignment_scores

            result["alignment"] = alignment_scores(folder, recipe, datasets, split, ranks, signs)
        except NoModel as missing:
            say(f"the alignment with gold signs is left out: {missing}")
    if ranks.is_main:
        write_predictions(folder / "predictions", split, rows)
    heldout = translate(f"{split}_heldout")
    if heldout:
        result["heldout"] = split_scores(heldout)
        if ranks.is_main:
            write_predictions(folder / "predictions", f"{split}_heldout", heldout)
    if ranks.is_main:
        if lost := write_scores(folder, split, result):
            say(lost)
        add_scores(export_folder(folder), split, result)
        write_timelines(recipe, datasets, split, rows, folder / "timelines" / f"{split}.json")
        name = "evaluate" if split == "test" else f"evaluate {split}"
        record_timing(folder, name, time.monotonic() - started, memory_mb(ranks.device))
        place.upload(recipe.stream.give_up_after_s)
    return result


def _controls(
    recipe: Recipe, data: Sequence[Dataset], rows: list[dict[str, Any]], blind: list[dict[str, Any]]
) -> dict[str, list[str]]:
    """Returns the answers of the controls: wrong videos, blank videos, and training sentences chosen without video."""
    hypotheses, _, languages = score_arguments(rows)
    train = [
        meta
        for dataset in data
        for meta in read_metadata(dataset)
        if meta["split"] == "train" and meta["sentence"]
    ]
    answers = text_controls(
        [meta["sentence"] for meta in train],
        [int(meta["frames"]) for meta in train],
        [row["frames"] for row in rows],
        languages,
        [meta["language"] or recipe.corpus.language for meta in train],
    )
    # A translation depends on its own video and language alone, so exchanging videos of one language is exchanging
    # hypotheses.
    exchanged = list(hypotheses)
    for tag in set(languages):
        own = [row for row, other in enumerate(languages) if other == tag]
        for row, other in zip(own, derangement(len(own), seed=recipe.finetune.seed)):
            exchanged[row] = hypotheses[own[other]]
    return {
        "exchanged_videos": exchanged,
        "blank_videos": [row["hypothesis"] for row in blind],
        "nearest_in_length": answers["nearest_length"],
        "prior_sentence": answers["prior"],
    }


def derangement(count: int, seed: int) -> list[int]:
    """Returns a random permutation of range(count) without fixed point (unless count is 1)."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    result = np.empty(count, dtype=int)
    result[order] = np.roll(order, 1)
    return result.tolist()


def write_timelines(
    recipe: Recipe, data: Sequence[Dataset], split: str, rows: list[dict[str, Any]], path: Path
) -> None:
    """Write a few clips with their segments and a thumbnail per segment, for the report; of features, no clips."""
    by_key = {row["key"]: row for row in rows}
    timelines = []
    batch = first_batch(recipe, data, split, TIMELINES)
    frames_FCHW = batch.video.frames_FCHW
    firsts = np.concatenate([[0], np.cumsum(batch.video.segment_frames_N.numpy())])
    middles = iter((firsts[:-1] + firsts[1:]) // 2)
    for key, meta, segments in zip(batch.keys, batch.metas, batch.segments):
        if frames_FCHW is None:
            break
        thumbnails = [
            {"frame": (start + end) // 2, "jpeg": thumbnail(frames_FCHW[int(next(middles))], THUMBNAIL)}
            for start, end in segments.tolist()
        ]
        row = by_key[key]
        timelines.append(
            {
                "key": key,
                **{name: meta[name] for name in ("id", "sentence", "fps", "frames")},
                **{name: row[name] for name in ("hypothesis", "language")},
                "segments": segments.tolist(),
                "thumbnails": thumbnails,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(timelines, ensure_ascii=False) + "\n", encoding="utf-8")


def thumbnail(frame_CHW: torch.Tensor, width: int) -> str:
    """Returns a uint8 frame as a base64 JPEG at most `width` pixels wide."""
    image = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((width, width))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
