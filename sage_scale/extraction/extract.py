"""From a video to its keypoint track."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sage_scale.errors import ClipRejected
from sage_scale.extraction.extractor import Extractor, ExtractorFailed
from sage_scale.keypoints.track import KeypointTrack, track_of
from sage_scale.vision.video_frames import DecodeStats
from sage_scale.vision.whole_video import whole_pictures


def extract(
    path: Path,
    extractor: Extractor,
    *,
    source_fps: float = 25.0,
    stats: DecodeStats | None = None,
    report: Callable[[int, float], None] = lambda frames, share: None,
) -> KeypointTrack:
    """Returns the track of a video file, or of a folder with `source_fps` pictures a second, in pixels of the picture.

    The track has the video's own average rate and begins with the first picture. Frame k is the picture nearest to
    k / fps, so that a variable rate becomes a constant one; each picture is looked at once. Frames without a person
    have confidence 0. After each picture `report` gets the frames so far and their share of the video (0 where
    unknown). Raises ClipRejected for faults of the video, ExtractorFailed, OSError.
    """
    repeats: list[int] = []
    share = fps = 0.0
    shape: tuple[int, ...] = ()

    def pictures() -> Iterator[np.ndarray]:
        nonlocal share, fps, shape
        for picture in whole_pictures(path, source_fps, stats):
            repeats.append(picture.frames)
            share, fps, shape = picture.share, picture.fps, picture.rgb_HWC.shape
            yield picture.rgb_HWC

    points: list[np.ndarray] = []
    confidence: list[np.ndarray] = []
    frames, count = 0, len(extractor.names)
    for points_KC, confidence_K in extractor(pictures()):
        points.append(np.asarray(points_KC, np.float32))
        confidence.append(np.asarray(confidence_K, np.float32))
        shapes = points[-1].shape, confidence[-1].shape
        if shapes not in (((count, 2), (count,)), ((count, 3), (count,))):
            given = (
                f"points {shapes[0]} and confidence {shapes[1]} in place of ({count}, 2 or 3) and ({count},)"
            )
            raise ExtractorFailed("nonsense", f"the extractor answered with {given}")
        if len(points) > len(repeats):
            raise ExtractorFailed("nonsense", "the extractor answered more often than it had pictures")
        frames += repeats[len(points) - 1]
        report(frames, share)
    if not repeats:
        raise ClipRejected("empty", "no picture could be decoded")
    if len(points) < len(repeats):
        raise ExtractorFailed("nonsense", f"the extractor answered {len(points)} of {len(repeats)} pictures")
    height, width = shape[:2]
    return track_of(
        extractor.names,
        np.repeat(np.stack(points), repeats, axis=0),
        np.repeat(np.stack(confidence), repeats, axis=0),
        fps=fps,
        width=width,
        height=height,
    )
