"""Files of a video's segments: ELAN, WebVTT, JSON and a figure, by the names that `--format` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from sage_scale.errors import ClipRejected, UsageError
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.intervals import Interval, SignIntervals, interval_json
from sage_scale.segmentation.segment_figure import excerpt, segment_figure, segment_pictures
from sage_scale.untrusted.display import printable


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentedVideo:
    """A video's segments and their source, for export."""

    intervals: SignIntervals
    duration_s: float
    """End of the part that was segmented, seconds of the video."""
    fps: float
    start_s: float = 0.0
    """Its start: time of the first frame of the probabilities."""
    video: str = ""
    """Path or URL of the video or keypoint file; empty links none."""
    pictures: str = ""
    """Path of the video whose pictures stand in the figure; empty: `video`."""
    probabilities_T3: np.ndarray | None = None
    """P(O), P(I), P(B) at `fps`, float (T, 3)."""
    gold: SignIntervals | None = None
    title: str = ""
    about: str = ""
    """Name of the tagger, in the JSON document."""


def exported(
    formats: Sequence[str], name: str, video: SegmentedVideo, folder: str | Path = ""
) -> Iterator[tuple[str, bytes]]:
    """Yields file name and content for each format. `folder` is that of the files, to which ELAN's link is relative."""
    for kind in formats:
        suffix, write = FORMATS[kind]
        yield f"{name}{suffix}", write(video, folder)


def check_formats(formats: str) -> tuple[str, ...]:
    """Returns the formats of a comma-separated list. Raises UsageError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))
    if unknown := [name for name in names if name not in FORMATS]:
        raise UsageError(f"--format {unknown[0]}: the formats are {', '.join(FORMATS)}")
    return names


def vtt_text(intervals: Sequence[Interval]) -> str:
    """Returns WebVTT with a cue an interval; one without a text has its number, since players hide empty cues."""
    cues = [
        f"{_vtt_time(start_s)} --> {_vtt_time(end_s)}\n{escape(printable(text), quote=False) or number}\n"
        for number, (start_s, end_s, text) in enumerate(intervals, start=1)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _vtt_time(seconds: float) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}.{whole % 1000:03d}"


def _figure(video: SegmentedVideo, folder: str | Path) -> bytes:
    signs = video.intervals.signs
    start_s, end_s = excerpt(signs, video.start_s, video.duration_s)
    part = "" if end_s - start_s >= video.duration_s - video.start_s else f" ({start_s:.1f} to {end_s:.1f} s)"
    try:
        source = video.pictures or video.video
        pictures = segment_pictures(source, signs, start_s, end_s) if source else {}
    except ClipRejected:  # keypoints without their video: a figure without pictures
        pictures = {}
    return segment_figure(
        signs,
        end_s,
        start_s=start_s,
        gold=None if video.gold is None else video.gold.signs,
        probabilities_T3=video.probabilities_T3,
        first_s=video.start_s,
        fps=video.fps,
        pictures=pictures,
        title=video.title + part,
    )


def _json(video: SegmentedVideo, folder: str | Path) -> bytes:
    about = {
        "video": video.video,
        "tagger": video.about,
        "fps": video.fps,
        "duration_s": round(video.duration_s, 3),
    }
    return interval_json(video.intervals, **about)


FORMATS: dict[str, tuple[str, Callable[[SegmentedVideo, str | Path], bytes]]] = {
    "eaf": (".eaf", lambda video, folder: eaf_bytes(video.intervals, video=video.video, folder=folder)),
    "vtt": (".vtt", lambda video, folder: vtt_text(video.intervals.signs).encode()),
    "json": (".json", _json),
    "figure": (".png", _figure),
}
"""Name -> suffix and function that writes the file's bytes."""
