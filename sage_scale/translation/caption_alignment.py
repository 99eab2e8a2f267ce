"""Aligns the captions of a corpus with its signing: pieces of signing of each video, then `corpora.alignment`.

A video is read once, in overlapping windows, so memory does not grow with its length but for its labels (a byte a
frame) and, with a model, its visual tokens (2 kB a sign). Pieces come from files of intervals, else from the recipe's
tagger; `motion`, which marks no pauses, is given those in which the hands rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sage_scale.config import Recipe
from sage_scale.corpora.alignment import Alignment, Caption, Placement, Text, align, text_term
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, StorageError, UsageError, or_rejected
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.segmentation.decoding import runs
from sage_scale.segmentation.intervals import Interval, read_video_file
from sage_scale.segmentation.motion import resting
from sage_scale.segmentation.rules import O, label_segments
from sage_scale.segmentation.sources import decode_for_tagger
from sage_scale.segmentation.tagger import movement_of, tag_clip
from sage_scale.shards import Sample
from sage_scale.untrusted.display import shortened
from sage_scale.vision.decode import DecodedClip, decode_clips, local_path, probe
from sage_scale.vision.keypoints import is_keypoint_file

WINDOW_S, SIGN_S, SENTENCE_S = 20.0, 2.0, 10.0
"""Seconds of a window, and by which it reaches into its neighbours: the longest whole sign or sentence."""
TEXT_WEIGHT = 10.0
"""Weight of the text's term: cosines of a trained stage 1 differ by some tenths."""


class Similarity(Protocol):
    """A trained stage 1 (`ModelSpec.captions`)."""

    def visual(self, sample: Sample) -> np.ndarray: ...
    def texts(self, sentences: Sequence[str], languages: Sequence[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Signing:
    """The signing of a video."""

    pieces_N2: np.ndarray
    """Start and end of each piece, seconds, sorted and disjoint."""
    tokens_TD: np.ndarray | None = None
    """Visual tokens, float16, of length one."""
    token_times_T: np.ndarray | None = None
    """Middle of each token's segment, seconds."""
    notes: tuple[str, ...] = ()


def align_video(
    clips: Sequence[Clip],
    signing: Signing,
    settings: Alignment,
    similarity: Similarity | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the clips of one video, in their order, as rows of a manifest at their new times, and notes.

    `caption_start_s` and `caption_end_s` are the old times, `alignment_score` is from 0 to 1, None where the old time
    was kept. A note is a line on captions or signing that found no partner. `progress` is told of the share of the
    alignment that is done.
    """
    name = shortened(clips[0].video.replace("\\", "/").rpartition("/")[2])
    usable = [clip for clip in clips if clip.end_s is not None and _letters(clip)]
    ordered = sorted(usable, key=lambda clip: (clip.start_s, clip.end_s or 0.0))
    captions = [Caption(start_s=c.start_s, end_s=c.end_s or 0.0, letters=_letters(c)) for c in ordered]
    text = None
    if similarity is not None and ordered and signing.tokens_TD is not None and len(signing.tokens_TD):
        words = similarity.texts([clip.sentence for clip in ordered], [clip.language for clip in ordered])
        text = _text(words, signing)
    placements = align(captions, signing.pieces_N2, settings, text, progress)
    found = {clip.id: new for clip, new in zip(ordered, placements, strict=True)}
    rows = []
    for clip in clips:
        row, new = unmoved(clip), found.get(clip.id)
        if new is not None:
            row |= {"start_s": round(new.start_s, 3), "end_s": round(new.end_s, 3), "frames": 0}
            row["alignment_score"] = round(new.score, 4)
        rows.append(row)
    lines = [*signing.notes, *_named(clips, ordered, signing.pieces_N2, found, settings)]
    return rows, [f"{name}: {line}" for line in lines]


def unmoved(clip: Clip) -> dict[str, Any]:
    """Returns the row of a clip that keeps its time."""
    old = {"caption_start_s": clip.start_s, "caption_end_s": clip.end_s, "alignment_score": None}
    return dataclasses.asdict(clip) | old


def read_signing(
    clips: Sequence[Clip],
    recipe: Recipe,
    settings: Alignment,
    *,
    intervals: Path | None = None,
    sentences: bool = False,
    similarity: Similarity | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Signing:
    """Returns the signing of the clips' video, from `settings.reach_s` before the first caption to that after the last.

    `intervals` is a folder of .eaf or .json files by the videos' names, whose times replace the tagger's; `sentences`
    takes sentences in place of signs as pieces. `progress` is told of the share that was read.
    """
    pieces: np.ndarray | None = None
    notes: list[str] = []
    if intervals is not None:
        pieces, notes = _from_file(clips[0].video, intervals, recipe.segmentation.sign_tier, sentences)
    if pieces is not None and similarity is None:
        return Signing(pieces_N2=pieces, notes=tuple(notes))
    windows = _windows(clips, settings.reach_s, SENTENCE_S if sentences else SIGN_S)
    vision = dataclasses.replace(recipe.vision, max_frames=10**6, min_frames=1)
    maker = SampleMaker(dataclasses.replace(recipe, vision=vision))
    outcomes: dict[int, tuple[list[tuple[float, float]], np.ndarray | None, np.ndarray | None]] = {}
    decoding = _decoded(windows, maker, for_model=similarity is not None)
    for done, (number, decoded) in enumerate(decoding, start=1):
        begin = windows[0].start_s + number * WINDOW_S
        core = begin, begin + WINDOW_S
        progress(done / len(windows))
        try:
            if isinstance(decoded, ClipRejected):
                raise decoded
            labelled = _pieces(decoded, recipe, sentences)
            tokens = times = None
            if similarity is not None:
                sample = maker.finish(windows[number], decoded)
                times = windows[number].start_s + sample.segments.mean(1) / decoded.fps
                inside = (times >= core[0]) & (times < core[1])
                tokens, times = similarity.visual(sample)[inside], times[inside]
        except ClipRejected as rejected:
            if rejected.reason != "beyond-end":
                notes.append(f"{core[0]:.0f} to {core[1]:.0f} s: {rejected}")
            continue
        # A piece belongs to the window in whose core it begins; it may end beyond.
        outcomes[number] = [pair for pair in labelled if core[0] <= pair[0] < core[1]], tokens, times
    ordered = [outcomes[number] for number in sorted(outcomes)]
    if pieces is None:
        pieces = joined_pieces([pair for part, _, _ in ordered for pair in part])
    if similarity is None or not ordered:
        return Signing(pieces_N2=pieces, notes=tuple(notes))
    return Signing(
        pieces_N2=pieces,
        tokens_TD=np.concatenate([tokens for _, tokens, _ in ordered if tokens is not None]),
        token_times_T=np.concatenate([times for _, _, times in ordered if times is not None]),
        notes=tuple(notes),
    )


def _windows(clips: Sequence[Clip], reach_s: float, margin_s: float) -> list[Clip]:
    start = max(0.0, min(clip.start_s for clip in clips) - reach_s)
    end = max((clip.end_s or clip.start_s) for clip in clips) + reach_s
    track = probe(clips[0].video)
    if track is not None and track.end_s:
        end = min(end, track.end_s)
    count = max(1, math.ceil((end - start) / WINDOW_S))
    return [
        dataclasses.replace(
            clips[0],
            id=f"window {number}",
            sentence="",
            start_s=max(start, start + number * WINDOW_S - margin_s),
            end_s=min(end, start + (number + 1) * WINDOW_S + margin_s),
        )
        for number in range(count)
    ]


def _decoded(
    windows: Sequence[Clip], maker: SampleMaker, for_model: bool
) -> Iterator[tuple[int, DecodedClip | ClipRejected]]:
    """Yields the windows with what the tagger sees, and what the model sees; pictures of a video in one pass."""
    vision, segmentation = maker.recipe.vision, maker.recipe.segmentation
    of_keypoints = maker.wants_keypoints or is_keypoint_file(local_path(windows[0].video))
    if of_keypoints and not for_model:
        for number, window in enumerate(windows):
            yield number, or_rejected(decode_for_tagger, window, vision, segmentation)
        return
    if not for_model:
        vision = dataclasses.replace(vision, kind="frames", size=8, crop=8, frame_stride=10**6)
    yield from decode_clips(windows, vision, grey=maker.wants_grey, keypoints=maker.wants_keypoints)


def _pieces(decoded: DecodedClip, recipe: Recipe, sentences: bool) -> list[tuple[float, float]]:
    """Returns start and end of the signs (or sentences) of a window, in seconds of the video."""
    tagging = tag_clip(decoded, recipe.segmentation, decoded.fps)
    labels_T, fps = tagging.labels_T.copy(), decoded.fps
    if sentences:
        if tagging.probabilities is None or tagging.probabilities.sentence_T3 is None:
            raise UsageError(
                f"segmentation.tagger={recipe.segmentation.tagger} finds no sentences: leave out --sentences, or take "
                "a published model (segmentation.tagger=published)"
            )
        labels_T, fps = runs(tagging.probabilities.sentence_T3), tagging.probabilities.fps
    elif recipe.segmentation.tagger == "motion":
        labels_T[resting(movement_of(decoded, fps), fps)] = O
    times_N2 = decoded.clip.start_s + label_segments(labels_T) / fps
    return [(start, end) for start, end in times_N2.tolist()]


def joined_pieces(pairs: list[tuple[float, float]]) -> np.ndarray:
    """Returns pieces (N, 2), sorted, each ended where the next one begins."""
    pieces_N2 = np.array(sorted(pairs), np.float64).reshape(-1, 2)
    if len(pieces_N2):
        pieces_N2[:-1, 1] = np.minimum(pieces_N2[:-1, 1], pieces_N2[1:, 0])
    return pieces_N2[np.diff(pieces_N2)[:, 0] > 1e-6]


def _from_file(
    video: str, folder: Path, sign_tier: str, sentences: bool
) -> tuple[np.ndarray | None, list[str]]:
    name = video.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    for file in (folder / f"{base}{suffix}" for base in (stem, name) for suffix in (".eaf", ".json")):
        if not file.is_file():
            continue
        try:
            found = read_video_file(file, "" if sentences else sign_tier)
        except ClipRejected as rejected:
            return None, [f"{file.name}: {rejected.detail}"]
        except OSError as error:
            raise StorageError(f"{file} cannot be read: {error.strerror}") from None
        rows: Sequence[Interval] = found.sentences if sentences else found.signs
        return joined_pieces([row[:2] for row in rows]), list(found.left_out)
    return None, [f"there is no {stem}.eaf or .json in {folder.name}: segmented by the recipe's tagger"]


def _text(words: Sequence[np.ndarray], signing: Signing) -> Text:
    tokens_TD, times_T, pieces_N2 = signing.tokens_TD, signing.token_times_T, signing.pieces_N2
    assert tokens_TD is not None and times_T is not None

    def term(number: int, low: int, high: int) -> np.ndarray:
        first = np.searchsorted(times_T, pieces_N2[low:high, 0])
        after = np.searchsorted(times_T, pieces_N2[low:high, 1])
        begin, end = int(first[0]), int(after[-1])
        if end <= begin:
            return np.zeros((high - low, high - low))
        similarity_MN = words[number] @ tokens_TD[begin:end].astype(np.float32).T
        return text_term(similarity_MN, np.stack([first, after], axis=1) - begin, TEXT_WEIGHT)

    return term


def _named(
    clips: Sequence[Clip],
    ordered: Sequence[Clip],
    pieces_N2: np.ndarray,
    found: dict[str, Placement | None],
    settings: Alignment,
) -> list[str]:
    """Returns lines on captions without words, end or signing, on overlapping ones, and on signing without captions."""

    def listed(ids: Sequence[str], what: str) -> list[str]:
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        return (
            [f"{len(ids)} {what}: {', '.join(shortened(name, 40) for name in ids[:3])}{more}"] if ids else []
        )

    lines = listed([clip.id for clip in clips if not _letters(clip)], "without words, time kept")
    lines += listed(
        [clip.id for clip in clips if _letters(clip) and clip.end_s is None], "of the whole video, time kept"
    )
    over = [
        b.id for a, b in itertools.pairwise(ordered) if a.end_s is not None and b.start_s < a.end_s - 1e-3
    ]
    lines += listed(over, "overlapping the one before")
    lines += listed(
        [name for name, new in found.items() if new is None], "without signing in reach, time kept"
    )
    taken = np.zeros(len(pieces_N2), bool)
    for new in found.values():
        if new is not None:
            taken[new.first : new.after] = True
    free_s = float(np.diff(pieces_N2)[~taken].sum())
    if free_s >= settings.reach_s:
        first = float(pieces_N2[~taken][0, 0])
        lines.append(f"{free_s:.0f} s of signing without a caption, the first at {first:.1f} s")
    return lines


def _letters(clip: Clip) -> int:
    return sum(map(str.isalnum, clip.sentence))
