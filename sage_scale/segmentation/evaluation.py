"""Taggers against annotation: `evaluate` tags each clip by several settings and counts what scores.py scores.

The annotation is what `segmentation.labels` can be: label files, ELAN files, tables of intervals, a folder of any
of them (`precomputed.py`). Every setting is scored on the same clips: one that a setting cannot tag is left out of all.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.config import Segmentation, Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, Reject, UsageError
from sage_scale.segmentation.intervals import SETTINGS_FILE
from sage_scale.segmentation.label_files import Labels, clip_names, read_table
from sage_scale.segmentation.precomputed import SUFFIXES, find_labels
from sage_scale.segmentation.rules import apply_rule, label_segments, resample_labels
from sage_scale.segmentation.scores import COUNTS, TOLERANCES, bootstrap_intervals, clip_counts, scores
from sage_scale.segmentation.sources import decode_for_tagger
from sage_scale.segmentation.tagger import (
    HANDS_ON,
    Probabilities,
    cached_hands_on,
    cached_tagger,
    decode,
    has_model,
    own_limits,
    tag_clip,
    wants_keypoints,
)
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, is_folder
from sage_scale.vision.decode import DecodedClip

WHOLE = "whole clip as one segment"
"""Row that every table has: what a tagger gives that finds nothing."""
CHOSEN = "threshold and gap chosen on the other groups"
THRESHOLDS, GAPS_S = (0.2, 0.3, 0.4, 0.5, 0.6), (0.08, 0.12, 0.16, 0.2, 0.24)
"""Values of which `choose` takes those with the largest sum of the onset F1 within one, two and three frames."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting to score."""

    name: str
    segmentation: Segmentation
    after_rule: bool = False
    """Score the segments of `segmentation.rule`, and not the signs as they were labelled."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Counts of each clip by each row."""

    clips: tuple[str, ...]
    groups: tuple[str, ...]
    """Of each clip, "" where clips are in no group."""
    counts: Mapping[str, np.ndarray]
    """Row -> float64 (C, K), the columns scores.COUNTS."""
    left_out: tuple[Reject, ...]
    """Clips that were not scored."""
    unread: tuple[str, ...]
    """Annotated signs that were left out, or cut at the end of their pictures, one line each."""
    chosen: Mapping[str, tuple[float, float]]
    """Group -> threshold and gap in seconds that the other groups chose for it."""
    fps: float

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return int(self.counts[WHOLE][:, COUNTS.index("frames")].sum())

    @property
    def signs(self) -> int:
        """Annotated signs of all clips."""
        return int(self.counts[WHOLE][:, COUNTS.index("gold_segments")].sum())

    def left_out_by_reason(self) -> dict[str, int]:
        """Returns the number of clips that were not scored, by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.left_out).most_common())

    def table(self) -> list[dict[str, Any]]:
        """Returns a row for each setting and each group: `name`, `group`, `clips`, and by score value and interval."""
        rows = []
        names = sorted(set(self.groups))
        for name, counts_CK in self.counts.items():
            for group in ("", *(names if len(names) > 1 else ())):
                part = counts_CK[[not group or other == group for other in self.groups]]
                values, intervals = scores(part.sum(0), self.fps), bootstrap_intervals(part, self.fps)
                found = {
                    score: {"value": float(value), "interval": list(intervals[score])}
                    for score, value in values.items()
                }
                rows.append({"name": name, "group": group, "clips": len(part), "scores": found})
        return rows


def evaluate(
    clips: Sequence[Clip],
    gold: str,
    rows: Sequence[Row],
    vision: Vision,
    *,
    fps: float,
    groups: Mapping[str, str] | None = None,
    sign_tier: str = "SIGN",
    choose: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Evaluation:
    """Returns the counts of each clip that `gold` annotates, by each row; times are compared at `fps`.

    `groups` names each clip's group, such as its recording. `choose` adds a row: peaks of the first row with a model,
    for each group with the threshold and gap of the grid above that are best on all other groups. Raises UsageError
    where nothing can be scored, or where `choose` has no groups or no model.
    """
    base = next((row for row in rows if has_model(row.segmentation)), None)
    if choose and (base is None or len(set((groups or {}).values())) < 2):
        raise UsageError(
            "--choose-on-others needs a tagger with a model, and --group with two groups or more"
        )
    grid = list(itertools.product(THRESHOLDS, GAPS_S)) if choose and base is not None else []
    counts: dict[str, list[np.ndarray]] = {WHOLE: [], **{row.name: [] for row in rows}}
    on_grid: list[np.ndarray] = []
    kept: list[str] = []
    left_out: list[Reject] = []
    unread: list[str] = []
    for number, clip in enumerate(clips):
        try:
            tags = _ClipTags(clip, vision, fps)
            labels = find_labels(gold, clip, sign_tier)
            total = tags.total(rows)
            gold_M2, odd = annotated(labels, clip, total, fps)
            found = [clip_counts(np.array([[0, total]]), gold_M2, total)]
            found += [clip_counts(tags.segments(row, total), gold_M2, total) for row in rows]
            if grid and base is not None:
                choices = [clip_counts(tags.peaks(base, *choice), gold_M2, total) for choice in grid]
                on_grid.append(np.array(choices))
        except ClipRejected as rejected:
            left_out.append(Reject(id=clip.id, reason=rejected.reason, detail=rejected.detail))
            continue
        finally:
            progress(number + 1, len(clips))
        kept.append(clip.id)
        unread += [f"'{shortened(clip.id)}': {line}" for line in odd]
        for name, row_counts in zip(counts, found, strict=True):
            counts[name].append(row_counts)
    if not kept:
        first = (
            f"; the first: '{left_out[0].id}': {left_out[0].reason} ({left_out[0].detail})"
            if left_out
            else ""
        )
        raise UsageError(f"no clip can be scored{first}")
    of_groups = tuple((groups or {}).get(name, "") for name in kept)
    stacked = {name: np.array(values) for name, values in counts.items()}
    chosen: dict[str, tuple[float, float]] = {}
    if grid and base is not None:
        stacked[f"{base.name}, {CHOSEN}"], chosen = choose_on_others(np.array(on_grid), grid, of_groups, fps)
    return Evaluation(
        clips=tuple(kept), groups=of_groups, counts=stacked, left_out=tuple(left_out),
        unread=tuple(unread), chosen=chosen, fps=fps,
    )  # fmt: skip


def choose_on_others(
    counts_CGK: np.ndarray, grid: Sequence[tuple[float, float]], groups: Sequence[str], fps: float
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Returns each clip's counts (C, K) by the point of the grid (G points) that is best on all other groups, and that
    point by group. Of equal points the first is taken."""
    chosen: dict[str, tuple[float, float]] = {}
    counts_CK = np.empty((len(groups), counts_CGK.shape[-1]))
    for group in sorted(set(groups)):
        here = np.array([other == group for other in groups])
        others = scores(counts_CGK[~here].sum(0), fps)
        best = int(np.argmax(np.sum([others[f"onset_f1_{near}"] for near in TOLERANCES], axis=0)))
        chosen[group] = grid[best]
        counts_CK[here] = counts_CGK[here, best]
    return counts_CK, chosen


def annotation(place: str | Path) -> Path:
    """Returns the file or folder of the annotation: of a synthetic corpus its `gold`. Raises UsageError without one."""
    path = expanded(on_this_machine(place, "an annotation"))
    if not path.exists():
        raise UsageError(f"--gold {shortened(place, 300)}: there is no such file or folder")
    return path / "gold" if is_folder(path / "gold") else path


def without_media(gold: Path, clips: Iterable[Clip]) -> list[str]:
    """Returns the annotated names that belong to none of the clips, sorted."""
    if gold.is_dir():
        files = (path.relative_to(gold).as_posix() for path in gold.rglob("*"))
        names = {os.path.splitext(name)[0] for name in files if name.lower().endswith(SUFFIXES)}
        names.discard(os.path.splitext(SETTINGS_FILE)[0])
    elif gold.suffix.lower() == ".eaf":
        return []
    else:
        names = {name for entries in read_table(gold).by_split.values() for name in entries}
    known: set[str] = set()
    for clip in clips:
        known.update([clip.key, Path(clip.video).stem])
        known.update(
            form for name in clip_names(clip.id, clip.split) for form in (name, name.replace("/", "__"))
        )
    return sorted(names - known)


def annotated(labels: Labels, clip: Clip, total: int, fps: float) -> tuple[np.ndarray, list[str]]:
    """Returns the annotated signs of a clip of `total` frames at `fps`, and a line on each that is not scored as it is.

    Signs are float64 (M, 2), in frames from the clip's start. Only parts within its frames are scored, since no tagger
    sees more: signs are cut at both ends, and those wholly outside are left out.
    """
    lines = list(labels.left_out)
    values = labels.values if labels.values.ndim == 2 else label_segments(labels.values)
    start_s = clip.start_s if labels.of_video else 0.0
    # Rounded, so that half a frame stays one: 0.46 s is 11.5 frames at 25 a second, not 11.500000000000002.
    gold_M2 = np.round((np.asarray(values, np.float64) / labels.fps - start_s) * fps, 6)
    if clip.end_s is None:  # a whole video; of a part, signs of its neighbours are no fault
        for start, end in gold_M2[gold_M2[:, 1] >= total + 1].tolist():
            done = "left out" if start >= total else f"cut at the end ({total / fps:.2f} s)"
            lines.append(f"a sign from {start / fps:.2f} s to {end / fps:.2f} s: {done}")
    inside = (gold_M2[:, 1] > 0) & (gold_M2[:, 0] < total)
    return np.clip(gold_M2[inside], 0, total), lines


class _ClipTags:
    """Labels of one clip by any row; it is decoded, and each model applied, once."""

    def __init__(self, clip: Clip, vision: Vision, fps: float) -> None:
        self.clip, self.vision, self.fps = clip, vision, fps
        self._decoded: dict[bool, DecodedClip] = {}
        self._probabilities: dict[tuple[str, str, str], Probabilities] = {}

    def total(self, rows: Sequence[Row]) -> int:
        """Returns the clip's frames, which all rows share: those of the first row's source."""
        return self._decode(rows[0].segmentation if rows else Segmentation()).total_frames

    def segments(self, row: Row, total: int) -> np.ndarray:
        """Returns the row's segments, (N, 2), in frames."""
        labels_T = self._labels(row.segmentation)
        if row.after_rule:
            return apply_rule(labels_T, row.segmentation, self.fps)
        return label_segments(labels_T)

    def peaks(self, row: Row, threshold: float, gap_s: float) -> np.ndarray:
        """Returns the segments of the row's model with `decoding=peaks` and these limits."""
        peaks = replace(
            row.segmentation, decoding="peaks", decoding_threshold=threshold, decoding_gap_s=gap_s
        )
        return label_segments(self._labels(peaks))

    def _labels(self, segmentation: Segmentation) -> np.ndarray:
        decoded = self._decode(segmentation)
        if not has_model(segmentation):
            return tag_clip(decoded, segmentation, self.fps).labels_T
        model = (segmentation.tagger, segmentation.weights, segmentation.features)
        if model not in self._probabilities:
            found = tag_clip(decoded, segmentation, self.fps).probabilities
            assert found is not None, "a model gives probabilities"
            self._probabilities[model] = found
        probabilities = self._probabilities[model]
        labels_S = decode(probabilities, segmentation, *_own_decoding(segmentation))
        return resample_labels(labels_S, probabilities.fps, decoded.total_frames, self.fps)

    def _decode(self, segmentation: Segmentation) -> DecodedClip:
        by_model = wants_keypoints(segmentation)
        if by_model not in self._decoded:
            self._decoded[by_model] = decode_for_tagger(
                self.clip, replace(self.vision, fps=self.fps), segmentation
            )
        return self._decoded[by_model]


def _own_decoding(segmentation: Segmentation) -> tuple[str, tuple[float, float] | None]:
    if segmentation.tagger == HANDS_ON:
        return cached_hands_on(segmentation.weights).decoding, None
    tagger = cached_tagger(segmentation.tagger, segmentation.weights)
    return tagger.decoding, own_limits(tagger)
