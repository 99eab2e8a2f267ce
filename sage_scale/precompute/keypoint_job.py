"""Keypoints of whole videos on Ray: `sage-scale keypoints`, and the stage of precompute before its samples."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe, Vision
from sage_scale.corpora.folder import KEYPOINT_SUFFIXES, is_text, walk
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.corpora.videos import whole_videos
from sage_scale.errors import UsageError
from sage_scale.extraction.extract import extract
from sage_scale.extraction.extractor import Extractor, open_extractor
from sage_scale.keypoints.files import pose_bytes
from sage_scale.precompute.file_job import ClipFiles, FileJob, FileSummary
from sage_scale.untrusted.files import expanded, is_folder
from sage_scale.untrusted.printer import tell
from sage_scale.vision.archives import split_path
from sage_scale.vision.frame_folders import PICTURES
from sage_scale.vision.keypoints import keypoints_of
from sage_scale.vision.video_frames import DecodeStats

REPORT_S = 2.0
"""Least time between two reports of one actor, seconds."""


@dataclass
class KeypointFiles:
    """Makes the `.pose` file of a whole video, with one extractor a process."""

    vision: Vision
    suffixes: tuple[str, ...] = (".pose",)
    stage: str = "features"
    _extractor: Extractor | None = field(default=None, repr=False)

    def load(self) -> Mapping[str, str]:
        """Opens the extractor. Returns its versions, and the hashes of its models."""
        self._extractor = self._extractor or open_extractor(self.vision)
        return self._extractor.facts

    def make(self, clip: Clip, stats: DecodeStats) -> ClipFiles:
        """Returns the track of a video. Raises ClipRejected for its faults, ExtractorFailed."""
        assert self._extractor is not None, "an actor loads first"
        told, told_at = 0, time.monotonic()

        def report(frames: int, share: float) -> None:
            nonlocal told, told_at
            if time.monotonic() - told_at > REPORT_S:
                stats.part(frames - told, share)
                told, told_at = frames, time.monotonic()

        fps = self.vision.source_fps
        track = extract(Path(clip.video), self._extractor, source_fps=fps, stats=stats, report=report)
        return ClipFiles(
            files={".pose": pose_bytes(track)}, frames=len(track), seconds=len(track) / track.fps
        )


def extract_keypoints(
    root: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    give_up: Iterable[str] = (),
    events: Path | None = None,
    quiet: bool = False,
) -> FileSummary:
    """Extracts the keypoints of all videos below `root` (or of one video) into `out`, a folder or s3://bucket/prefix.

    Videos are files, and folders that hold pictures only. A track has the name of its video below `root`, with the
    ending `.pose`; if `out` is `root`, it lies beside the video, and videos with a keypoint file are left out. Raises
    UsageError, TooManyRejects, UnitsOpen.
    """
    manifest = _videos(root)
    if "://" not in str(out) and os.path.realpath(expanded(out)) == os.path.realpath(expanded(root)):
        beside = dataclasses.replace(recipe.vision, keypoints="")
        manifest = _without_others(manifest, beside)
    return _job(recipe, manifest, str(out), str(root), frozenset(give_up), events, quiet).execute()


def extract_missing(
    recipe: Recipe, manifest: Manifest, *, events: Path | None = None, quiet: bool = False
) -> None:
    """Extracts keypoints of the videos of a manifest that have none: beside them, or into `vision.keypoints`.

    Raises UsageError where nothing can be written there, TooManyRejects, UnitsOpen.
    """
    root = expanded(recipe.corpus.root)
    root = Path(os.path.abspath(root if is_folder(root) else root.parent))
    clips: list[Clip] = []
    elsewhere = 0
    for video in dict.fromkeys(clip.video.removeprefix("file://") for clip in manifest.clips):
        path = Path(os.path.abspath(video))
        if "://" in video or not path.is_relative_to(root) or split_path(path) is not None:
            elsewhere += 1
        elif path.suffix.lower() not in KEYPOINT_SUFFIXES:
            name = path.relative_to(root).as_posix()
            clips.append(Clip(id=name if is_folder(path) else os.path.splitext(name)[0], video=str(path)))
    if elsewhere and not quiet:
        tell(f"{elsewhere} videos lie in archives or outside {root}: their keypoints are not extracted")
    ours = _without_others(Manifest(tuple(clips)), recipe.vision)
    if any(keypoints_of(Path(clip.video), recipe.vision) is None for clip in ours.clips):
        out = recipe.vision.keypoints or str(root)
        summary = _job(recipe, ours, out, str(root), frozenset(), events, quiet).execute()
        if not quiet:
            tell(f"keypoints: {summary.line()}")


def _job(
    recipe: Recipe,
    manifest: Manifest,
    out: str,
    root: str,
    give_up: frozenset[str],
    events: Path | None,
    quiet: bool,
) -> FileJob:
    vision = recipe.vision
    settings: dict[str, Any] = {"extractor": vision.extractor, "source_fps": vision.source_fps}
    if vision.extractor == "mediapipe":
        settings["complexity"] = vision.extractor_complexity
        if not recipe.precompute.address:
            open_extractor(vision)  # says before Ray starts that MediaPipe is missing; starts nothing
    # The largest first, so that no actor is left alone with it at the end.
    clips = sorted(manifest.clips, key=lambda clip: (-_size(clip.video), clip.id))
    return FileJob(
        # Extraction uses no backbone, hence neither its memory nor its GPU.
        recipe=dataclasses.replace(
            recipe,
            corpus=dataclasses.replace(recipe.corpus, root=os.path.abspath(expanded(root))),
            vision=dataclasses.replace(vision, kind="frames"),
            precompute=dataclasses.replace(recipe.precompute, gpus_per_actor=0.0),
        ),
        manifest=Manifest(tuple(clips), manifest.rejected),
        url=out,
        files=KeypointFiles(vision),
        settings=settings,
        give_up=give_up,
        events=events,
        quiet=quiet,
    )


def _without_others(manifest: Manifest, vision: Vision) -> Manifest:
    """Returns the videos without those that have a keypoint file of another kind."""
    files = ((clip, keypoints_of(Path(clip.video), vision)) for clip in manifest.clips)
    clips = (clip for clip, found in files if found is None or found.suffix == ".pose")
    return Manifest(tuple(clips), manifest.rejected)


def _videos(root: str | Path) -> Manifest:
    """Returns the video files below a folder, and its subfolders that hold pictures only."""
    base = expanded(root)
    folders = []
    for folder, names in walk(base) if base.is_dir() else ():
        suffixes = {os.path.splitext(name)[1].lower() for name in names}
        if folder != base and suffixes and suffixes <= PICTURES and is_text(str(folder)):
            name = folder.relative_to(base).as_posix()
            folders.append(Clip(id=name, video=os.path.abspath(folder)))
    try:
        files = whole_videos(root)
    except UsageError:
        if not folders:
            raise
        files = Manifest(())
    clips = [
        dataclasses.replace(clip, video=os.path.abspath(clip.video))
        for clip in files.clips
        if Path(clip.video).suffix.lower() not in KEYPOINT_SUFFIXES
    ]
    if not clips and not folders:
        raise UsageError(f"no video below {base}, only keypoint files")
    return Manifest((*clips, *folders), files.rejected)


def _size(video: str) -> int:
    try:
        return os.path.getsize(video)
    except OSError:
        return 0
