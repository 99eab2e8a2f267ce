"""The tagger `precomputed`: O/I/B labels or sign intervals from files beside a corpus.

`segmentation.labels` is a folder or one file. A folder has one `.npy`, `.pt` or `.json` file per clip, named by the
clip's key or id (with or without its split; / in an id becomes __ or a subfolder), or one ELAN file (`.eaf`) per
video, named by the clip or the video. A single file is `.pt` or `.json`, a mapping from clip id to labels or from split
to such mappings (SAGE's release and the same lab's toolkit: .pt), or `.csv` with the columns id and labels, or id,
start and end (frames, one sign per row), or the `.eaf` of the only video.

Labels of a clip are an array, tensor or list (T,) of 0, 1, 2 (O, I, B), scores (T, 3) or intervals (N, 2) in frames, or
a string of the letters O, I, B; or a mapping with `labels` or `segments`, and `fps` if the frame rate is not 25; or
with `signs` (`segmentation/intervals.py`), whose times, like those of an ELAN file, are of the video and not the clip.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import ClipRejected, StorageError, TooManyRejects, UsageError
from sage_scale.segmentation.elan import read_eaf
from sage_scale.segmentation.intervals import SIGN_TIER
from sage_scale.segmentation.label_files import (
    Entry,
    Labels,
    clip_names,
    labels_of_intervals,
    read_clip_file,
    read_table,
)
from sage_scale.segmentation.rules import resample_labels, segments_to_labels
from sage_scale.storage.store import is_name
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import NotRegularFile
from sage_scale.vision.decode import Source

SUFFIXES = (".npy", ".pt", ".json", ".eaf")
"""Endings of files with the labels of one clip or video."""


def find_labels(labels: str, clip: Source, sign_tier: str = SIGN_TIER) -> Labels:
    """Returns the labels of a clip from the file or folder `labels`, at their own rate.

    `sign_tier` names the tier of ELAN files. Raises ClipRejected `no-labels` or `bad-labels`; UsageError if `labels` is
    not a label file.
    """
    path = _labels_path(labels)
    file = file_of(path, clip) if path.is_dir() else path
    entry: Entry | None = None
    if file is path and not _is_elan(path):
        entry = read_table(path).find(clip.id, clip.split)
    elif file is not None:
        entry = _of_file(file, sign_tier, _video_name(clip))
    if entry is None:
        raise ClipRejected("no-labels", f"{path.name} has none for this clip")
    if isinstance(entry, str):
        raise ClipRejected("bad-labels", entry)
    return replace(entry, file=(file or path).name)


def has_labels(labels: str, clip: Source) -> bool:
    """Returns whether the file or folder has labels of the clip. Raises UsageError if it is not a label file."""
    path = _labels_path(labels)
    if path.is_dir():
        return file_of(path, clip) is not None
    return _is_elan(path) or read_table(path).find(clip.id, clip.split) is not None


def check_labels(recipe: Recipe, manifest: Manifest, exceeded: Callable[[int], bool]) -> None:
    """Check the labels of a manifest before any work begins; of a folder only the file names.

    Raises UsageError if `segmentation.labels` is not a label file or has no usable labels for any clip,
    TooManyRejects if `exceeded(number of clips without labels)` is true.
    """
    segmentation = recipe.segmentation
    if segmentation.tagger != "precomputed":
        return
    if recipe.precompute.address and not os.path.exists(segmentation.labels):
        return  # only the nodes can read the labels
    path = _labels_path(segmentation.labels)
    if path.is_dir():
        lacking, example = lacking_files(path, manifest.clips)
    elif _is_elan(path):
        if isinstance(fault := _of_file(path, segmentation.sign_tier, ""), str):
            raise UsageError(f"segmentation.labels: {path.name}: {fault}")
        return
    else:
        table = read_table(path)
        example = table.first()
        found = ((clip.id, table.find(clip.id, clip.split)) for clip in manifest.clips)
        lacking = [name for name, entry in found if not isinstance(entry, Labels)]
    if not lacking:
        return
    of_them = f"{len(lacking):,} of {len(manifest.clips):,} clips (the first: '{shortened(lacking[0])}')"
    none_for = f"{path} has no labels that can be used for {of_them}"
    if len(lacking) == len(manifest.clips):
        other = f"there is '{shortened(example)}'" if example else "it is empty"
        raise UsageError(f"segmentation.labels: {none_for}; {other}")
    if exceeded(len(lacking)):
        raise TooManyRejects(
            f"segmentation.labels: {none_for}, more than shards.max_reject_rate allows: nothing was begun"
        )


def _labels_path(labels: str) -> Path:
    if not labels:
        raise UsageError("segmentation.tagger=precomputed needs segmentation.labels=FILE_OR_FOLDER")
    path = Path(labels)
    if not os.path.exists(path):
        raise UsageError(f"segmentation.labels: there is no {shortened(path, 300)}")
    return path


def _is_elan(path: Path) -> bool:
    return path.suffix.lower() == ".eaf"


def _video_name(clip: Source) -> str:
    return clip.video.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _file_names(clip: Source, suffixes: Sequence[str]) -> list[str]:
    """Returns the names that a clip's file may have below the folder, in the order to try them."""
    names = clip_names(clip.id, clip.split)
    flat = [name.replace("/", "__") for name in names]
    stems = [*flat, clip.key, *(name for name in names if "/" in name and is_name(name))]
    video = _video_name(clip)
    whole = [f"{name}.eaf" for name in (os.path.splitext(video)[0], video) if is_name(name)]
    own = [f"{stem}{suffix}" for stem in stems for suffix in suffixes]
    return [*own, *whole] if ".eaf" in suffixes else own


def lacking_files(
    folder: Path, clips: Sequence[Source], suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[list[str], str]:
    """Returns the ids of the clips without a file in the folder, and the first name there; only names are read."""
    there = _all_files(folder, suffixes)
    example = next(iter(sorted(there)), "")
    return [clip.id for clip in clips if there.isdisjoint(_file_names(clip, suffixes))], example


def _all_files(folder: Path, suffixes: tuple[str, ...]) -> set[str]:
    """Returns the names of all files below a folder with one of the endings."""

    def refuse(error: OSError) -> None:
        raise StorageError(f"{folder} cannot be read: {error.strerror}") from None

    found = set()
    for place, _, files in os.walk(folder, onerror=refuse):
        inside = "" if place == str(folder) else f"{os.path.relpath(place, folder)}/"
        found |= {inside + name for name in files if name.endswith(suffixes)}
    return found


def file_of(folder: Path, clip: Source, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    """Returns the file of a clip (of labels, or with other `suffixes`) in a folder, None where there is none."""
    files = (folder / name for name in _file_names(clip, suffixes))
    return next((file for file in files if os.path.lexists(file)), None)


def _of_file(file: Path, sign_tier: str, video: str) -> Entry:
    try:
        stamp = file.stat()
        if _is_elan(file):
            return _elan_labels(file, sign_tier, video, (stamp.st_mtime_ns, stamp.st_size))
        return read_clip_file(file)
    except (NotRegularFile, IsADirectoryError, FileNotFoundError) as error:
        return f"{shortened(file.name)}: {error.strerror}"
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=4)
def _elan_labels(file: Path, sign_tier: str, video: str, stamp: tuple[int, int]) -> Entry:
    """Returns the labels of a video, kept for the clips of one video that follow each other."""
    try:
        return labels_of_intervals(read_eaf(file, sign_tier, "", video=video))
    except ClipRejected as error:
        return error.detail


def fitted(labels: Labels, start_s: float, total: int, fps: float) -> np.ndarray:
    """Returns the labels resampled to `total` frames at `fps` of a clip that starts at `start_s` of its video.

    Raises ClipRejected for another length.
    """
    needed = total / fps
    tolerance_s = max(0.5, 0.05 * needed)
    if labels.of_video:
        frames_N2 = np.floor((labels.values / labels.fps - start_s) * fps + 0.5)
        return segments_to_labels(frames_N2.astype(int), total)
    if labels.values.ndim == 2:
        last = float(labels.values.max(initial=0)) / labels.fps
        if last > needed + tolerance_s:
            detail = f"the last sign ends at {last:.2f} s, the clip at {needed:.2f} s"
            raise ClipRejected("bad-labels", detail)
        return segments_to_labels(np.floor(labels.values * fps / labels.fps + 0.5).astype(int), total)
    if labels.fps == fps and len(labels.values) == total:
        return labels.values
    seconds = len(labels.values) / labels.fps
    if abs(seconds - needed) > tolerance_s:
        rate = f" (at {labels.fps:g} frames a second)"
        raise ClipRejected("bad-labels", f"labels last {seconds:.2f} s, the clip {needed:.2f} s{rate}")
    return resample_labels(labels.values, labels.fps, total, fps)
