"""A sheet of a dataset's clips: one self-contained page with segments over time, pictures, sentences and rejects."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from sage_scale.errors import DatasetError
from sage_scale.reporting import clip_figures
from sage_scale.reporting.page import Missing, document, html, readable
from sage_scale.shards import Dataset, Sample
from sage_scale.shards.rejects import current_rejects

TEMPLATE = "reporting/templates/sheet.html"
PICTURE = 112
"""Longest side of a picture, pixels."""
LARGEST = 4096
"""Longest side of a stored frame, pixels."""
FIRST = 3
"""Rejected clips named of each reason."""
Rows = dict[str, list[int]]
"""Split -> rows of the dataset's samples."""


def rows_of(dataset: Dataset, splits: Sequence[str], clips: int, seed: int | None = None) -> Rows:
    """Returns at most `clips` rows of each of these splits (default: all), at even distances, or drawn with `seed`.

    Raises DatasetError for an unknown split.
    """
    split_of_row = _splits(dataset)
    for split in splits:
        dataset.samples(split)
    chosen = {}
    for split in splits or dataset.splits:
        rows = np.flatnonzero(split_of_row == split)
        count = min(clips, len(rows))
        if seed is None:
            at = np.linspace(0, max(len(rows) - 1, 0), count).astype(int)
        else:
            at = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
        chosen[split] = rows[at].tolist()
    return {split: rows for split, rows in chosen.items() if rows}


def by_split(dataset: Dataset, rows: Sequence[int]) -> Rows:
    """Returns rows by their split, in the given order."""
    found: Rows = defaultdict(list)
    split_of_row = _splits(dataset)
    for row in rows:
        found[str(split_of_row[row])].append(row)
    return found


def clip_sheet(
    dataset: Dataset, chosen: Rows, progress: Callable[[int, int], None] = lambda done, of: None
) -> str:
    """Returns the page of the chosen clips and of all rejects. A damaged clip is named in its place."""
    missing: Missing = []
    total, done = sum(map(len, chosen.values())), 0
    parts: list[tuple[str, str, Markup]] = []
    vision = dataset.info.recipe_part.get("vision", {})
    for number, (split, rows) in enumerate(chosen.items()):
        shown, damaged = [], []
        for row in rows:
            try:
                shown.append(_clip(dataset.read(dataset.samples(), row), vision))
            except DatasetError as error:
                damaged.append(str(error))
            done += 1
            progress(done, total)
        anchor, title = f"split-{number}", f"Split {split}"
        values = {
            "anchor": anchor, "title": title, "shown": f"{len(shown):,}", "clips": shown, "damaged": damaged,
            "total": f"{dataset.splits[split]:,}", "size": vision.get("size"),
            "crop": _crop(vision) if dataset.info.kind == "frames" else None,
        }  # fmt: skip
        parts.append((anchor, title, html("clips", values, TEMPLATE)))
    left_out = readable(lambda: html("rejects", rejects(dataset), TEMPLATE), "", missing, "rejects")
    parts.append(("rejects", "Rejects", Markup(left_out)))
    about = [("dataset of", "b", dataset.info.kind), ("", "code", dataset.url)]
    if isinstance(notice := dataset.info.notes.get("notice"), str):
        about.append(("", "b", notice))
    tiles = [(f"clips of {split}", f"{count:,}", "") for split, count in dataset.splits.items()]
    if dataset.info.kind != "frames":
        missing.append(("pictures", "the dataset stores features"))
    return document("Clips", html("about", about), html("tiles", tiles), parts, missing)


def rejects(dataset: Dataset) -> dict[str, Any] | None:
    """Returns the rejected clips by reason, the most frequent first; None without any."""
    counts: Counter[str] = Counter()
    first: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for _, reject in current_rejects(dataset):
        counts[reject.reason] += 1
        if len(first[reject.reason]) < FIRST:
            first[reject.reason].append((reject.id, reject.detail))
    rows = [
        {"reason": reason, "clips": f"{count:,}", "first": first[reason]}
        for reason, count in counts.most_common()
    ]
    return {"total": f"{counts.total():,}", "rows": rows} if rows else None


def _clip(sample: Sample, vision: Mapping[str, Any]) -> dict[str, Any]:
    meta, segments = sample.meta, sample.segments.tolist()
    frames, fps = int(meta["frames"]), float(meta["fps"])
    return {
        "id": meta["id"], "sentence": meta["sentence"], "language": meta["language"], "signer": meta["signer"],
        "glosses": ", ".join(map(str, meta["pseudo_glosses"])), "seconds": f"{frames / fps:.1f}",
        "segments": len(segments), "strip": clip_figures.film_strip(frames, segments, _pictures(sample, vision)),
        "drawing": Markup(clip_figures.timeline(frames, fps, segments)),
    }  # fmt: skip


def _pictures(sample: Sample, vision: Mapping[str, Any]) -> dict[int, str]:
    """Returns a small JPEG in base64 of the stored frame in the middle of each segment; the first with the crop."""
    if not sample.frames:
        return {}
    stored = np.array(sorted(sample.frames))
    found = {}
    for number, (start, end) in enumerate(sample.segments.tolist()):
        nearest = int(stored[np.abs(stored - (start + end) / 2).argmin()])
        try:
            with Image.open(io.BytesIO(sample.frames[nearest]), formats=("JPEG",)) as opened:
                if max(opened.size) > LARGEST:  # before the pixels are decoded: a header may claim anything
                    raise OSError(f"{opened.width} x {opened.height} pixels")
                picture = opened.convert("RGB")
        except OSError as error:
            raise DatasetError(
                f"sample {sample.key}, frame {nearest} is no readable JPEG ({error}): run `sage-scale shards verify`"
            ) from None
        crop, size = _crop(vision), picture.width
        if number == 0 and crop and crop < size:
            edge = (size - crop) // 2
            box = (edge, edge, edge + crop - 1, edge + crop - 1)
            ImageDraw.Draw(picture).rectangle(box, outline=(255, 120, 0), width=max(1, size // 64))
        picture.thumbnail((PICTURE, PICTURE))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=75)
        found[number] = base64.b64encode(out.getvalue()).decode()
    return found


def _crop(vision: Mapping[str, Any]) -> int | None:
    """Returns the pixels that the model sees in the middle; None where it sees all."""
    size, crop = vision.get("size"), vision.get("crop")
    return crop if isinstance(size, int) and isinstance(crop, int) and crop < size else None


def _splits(dataset: Dataset) -> np.ndarray:
    """Returns the split of each sample."""
    names = np.array(dataset.units.splits, dtype=object)
    return names[dataset.units.table["split"]][dataset.unit_of_row]
