"""Examples to train a segmenter on: keypoints with sign intervals, their augmentation, and rows of packed clips.

Shape letters: T frames, N signs, F features, L frames of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sage_scale.corpora.synthetic.random_signing import random_signing
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.keypoints.files import read_track
from sage_scale.segmentation.intervals import (
    SETTINGS_FILE,
    SignIntervals,
    read_table,
    read_video_file,
    table_column,
)
from sage_scale.segmentation.models.trained import BODY, FPS, LEFT, RIGHT, SignerPoints, features
from sage_scale.storage.store import is_name
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import is_file, is_folder

KEYPOINT_SUFFIXES = (".pose", ".npz", ".npy", ".json")
ANNOTATION_SUFFIXES = (".eaf", ".json")
BEGIN_FRAMES = 1.0
"""Standard deviation of P(B) around an onset: people set it a frame early or late."""
GAP_FRAMES = 8
"""Padding between the clips of a row: the largest dilation, so that no clip reaches into the next."""


@dataclass(frozen=True, eq=False)
class Example:
    """The keypoints of one clip and its signs."""

    id: str
    points: SignerPoints
    signs_N2: np.ndarray
    """float64 (N, 2), start and end in seconds."""
    group: str = ""
    """Recording or signer: a fold of cross-validation."""

    @property
    def seconds(self) -> float:
        return len(self.points.values_TKC) / self.points.fps

    @property
    def frames(self) -> int:
        """T at 25 frames a second."""
        return int(np.ceil(self.seconds * FPS - 1e-6))


def read_examples(
    annotation: Path,
    keypoints: Path,
    *,
    default_fps: float = FPS,
    picture: tuple[float, float] | None = None,
    group: str = "",
) -> tuple[list[Example], list[str]]:
    """Returns the examples whose annotation and keypoints can be read, and one line on each of the others.

    `annotation` is a table of intervals (.csv, .jsonl), a file of one video (.eaf, .json), a folder of such files, or a
    synthetic corpus. The keypoints of id NAME are NAME.pose, .npz, .npy or .json in `keypoints`, or a folder NAME of
    OpenPose's files. `group` is a column of the table. Raises UsageError where nothing is left.
    """
    found, left_out = _annotations(annotation)
    groups = table_column(annotation, group, "--folds") if group else {}
    examples = []
    for name, intervals in found.items():
        left_out += [f"{shortened(name)}: {line}" for line in intervals.left_out]
        try:
            if group and name not in groups:
                raise ClipRejected("bad-labels", f"no column {group}")
            track = read_track(_keypoints_of(keypoints, name), default_fps=default_fps, picture=picture)
            signs = np.array([sign[:2] for sign in intervals.signs], np.float64).reshape(-1, 2)
            points = SignerPoints.of(track)
            if not points.seen_TK.any():
                raise ClipRejected("bad-keypoints", "no frame with both shoulders")
            examples.append(Example(name, points, signs, groups.get(name, "")))
        except ClipRejected as rejected:
            left_out.append(f"{shortened(name)}: {rejected}")
    if not any(len(example.signs_N2) for example in examples):
        why = f"; the first: {left_out[0]}" if left_out else ""
        raise UsageError(
            f"{shortened(annotation, 300)}: no sign with keypoints in {shortened(keypoints, 300)}{why}"
        )
    return examples, left_out


def _annotations(path: Path) -> tuple[dict[str, SignIntervals], list[str]]:
    if is_folder(path / "gold"):  # the root of a synthetic corpus
        path = path / "gold"
    if not is_folder(path) and path.suffix.lower() not in ANNOTATION_SUFFIXES:
        return read_table(path), []
    files = sorted(path.iterdir()) if is_folder(path) else [path]
    found, left_out = {}, []
    for file in files:
        if file.suffix.lower() in ANNOTATION_SUFFIXES and file.name != SETTINGS_FILE:
            try:
                found[file.stem] = read_video_file(file)
            except ClipRejected as rejected:
                left_out.append(f"{shortened(file.name)}: {rejected}")
    return found, left_out


def _keypoints_of(folder: Path, name: str) -> Path:
    if not is_name(name):
        raise ClipRejected("bad-labels", "the id is no file name")
    for suffix in KEYPOINT_SUFFIXES:
        if is_file(folder / f"{name}{suffix}"):
            return folder / f"{name}{suffix}"
    if is_folder(folder / name):
        return folder / name
    raise ClipRejected("no-keypoints", f"no keypoint file in {shortened(folder, 300)}")


# -- what the networks see in one pass over the data -----------------------------------------------------------


def drawn(example: Example, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns augmented features (T, F) and targets (T, 3) of one example.

    Another tempo, another phase of the frames, the mirror image, a turned, shifted and scaled signer, hands turned and
    scaled by themselves, noise, a part of the body or some frames not seen.
    """
    tempo = float(np.clip(np.exp(rng.normal(0, 0.12)), 0.7, 1.4))
    times_T = (np.arange(max(2, int(example.seconds * tempo * FPS))) + rng.random()) / FPS
    points = example.points.at(times_T / tempo)
    if rng.random() < 0.5:
        points = points.mirrored()
    values = _moved(points.values_TKC, rng)
    seen_TK = points.seen_TK.copy()
    if rng.random() < 0.2:
        part = (BODY, LEFT, RIGHT, slice(0, 1))[rng.integers(4)]
        values[:, part], seen_TK[:, part] = values[:, part].mean(0), 0
    if rng.random() < 0.3 and len(values) > 8:
        for _ in range(rng.integers(1, 4)):
            first = int(rng.integers(0, len(values) - 3))
            lost = slice(first, first + int(rng.integers(1, 4)))
            values[lost], seen_TK[lost] = values[max(first - 1, 0)], 0
    return features(SignerPoints(values, seen_TK, FPS)), targets(example.signs_N2 * tempo, times_T)


def _moved(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = values @ _turn(rng.normal(0, 0.08), rng.normal(0, 0.1)) * np.exp([rng.normal(0, 0.06), 0.0])
    moved = (moved + rng.normal(0, 0.08, 2)).astype(np.float32)
    for hand in (LEFT, RIGHT):
        wrist = moved[:, hand.start, None]
        moved[:, hand] = (moved[:, hand] - wrist) @ _turn(rng.normal(0, 0.12), rng.normal(0, 0.12)) + wrist
    return moved + rng.standard_normal(moved.shape, np.float32) * np.float32(0.008 * rng.random())


def _turn(angle: float, log_scale: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return (np.array([[c, s], [-s, c]]) * np.exp(log_scale)).astype(np.float32)


def targets(signs_N2: np.ndarray, times_T: np.ndarray) -> np.ndarray:
    """Returns the wanted probabilities of O, I, B, float32 (T, 3): P(B) is a bump around each onset."""
    inside_T = np.zeros(len(times_T), bool)
    distance_T = np.full(len(times_T), np.inf)
    for start, end in signs_N2:
        inside_T |= (times_T >= start - 0.5 / FPS) & (times_T < end - 0.5 / FPS)
        distance_T = np.minimum(distance_T, np.abs(times_T - start) * FPS)
    begin_T = np.exp(-0.5 * (distance_T / BEGIN_FRAMES) ** 2)
    return np.stack([(1 - begin_T) * ~inside_T, (1 - begin_T) * inside_T, begin_T], 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Row:
    """Clips one after the other, with padding between them."""

    x_LF: np.ndarray
    targets_L3: np.ndarray
    real_L: np.ndarray
    """float32: 0 is padding."""
    starts: tuple[int, ...]


def packed(clips: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> list[Row]:
    """Returns rows of `length` frames that hold all clips (features, targets) in order; a longer clip gets a row of its
    own length."""
    rows: list[list[int]] = [[]]
    at = 0
    for number, (x_TF, _) in enumerate(clips):
        if rows[-1] and at + len(x_TF) > length:
            rows.append([])
            at = 0
        rows[-1].append(number)
        at += len(x_TF) + GAP_FRAMES
    return [_row([clips[number] for number in row], length) for row in rows if row]


def _row(clips: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> Row:
    starts = np.cumsum([0, *(len(x_TF) + GAP_FRAMES for x_TF, _ in clips[:-1])])
    length = max(length, int(starts[-1]) + len(clips[-1][0]))
    x_LF = np.zeros((length, clips[0][0].shape[1]), np.float32)
    targets_L3, real_L = np.zeros((length, 3), np.float32), np.zeros(length, np.float32)
    for start, (x_TF, targets_T3) in zip(starts, clips):
        here = slice(start, start + len(x_TF))
        x_LF[here], targets_L3[here], real_L[here] = x_TF, targets_T3, 1
    return Row(x_LF, targets_L3, real_L, tuple(starts.tolist()))


def random_examples(count: int, seed: int) -> list[Example]:
    """Returns clips of random synthetic signing; a pure function of its arguments."""
    rng = np.random.default_rng(seed)
    clips = (random_signing(rng) for _ in range(count))
    return [Example(f"random-{n}", SignerPoints.of(track), signs) for n, (track, signs) in enumerate(clips)]


def description(examples: Sequence[Example], left_out: int) -> dict[str, object]:
    """Returns what a model was trained on, for config.json."""
    groups = sorted({example.group for example in examples} - {""})
    return {
        "clips": len(examples),
        "clips_left_out": left_out,
        "seconds": round(sum(example.seconds for example in examples), 1),
        "signs": sum(len(example.signs_N2) for example in examples),
        "groups": len(groups),
    }
