"""Captions of a long video: it is read once, cut into windows at pauses, and its windows are translated in batches.

| source | pauses |
|---|---|
| video or pictures without keypoints, live pictures | the hands rest: movement of small grey pictures |
| with a keypoint file, where the published segmenter is installed | between its sentences |
| with a keypoint file else | the hands rest: movement of the keypoints |

A window of pictures is the same clip as precompute would decode at its times. Memory is that of a batch of windows; a
keypoint file is held whole.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, NoModel, or_rejected
from sage_scale.keypoints.cleaning import completed
from sage_scale.keypoints.names import OPENPOSE_67
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.segmentation.decoding import runs
from sage_scale.segmentation.motion import keypoint_movement
from sage_scale.segmentation.rules import O, resample_labels
from sage_scale.segmentation.tagger import KeypointTagger, cached_tagger
from sage_scale.shards import Sample
from sage_scale.translation.result import Translation
from sage_scale.translation.windows import LEAST_SPEED, Cutter, Limits, Window, grey_speed
from sage_scale.untrusted.files import is_folder
from sage_scale.vision.decode import DecodedClip, decode_clips, local_path, picture_settings, probe
from sage_scale.vision.keypoints import is_keypoint_file, keypoints_of, read_keypoints
from sage_scale.vision.packed import PackedVideo
from sage_scale.vision.sampling import check_interval, nearest_frames
from sage_scale.vision.video_stream import Gap, Picture, VideoStream, live_pictures

if TYPE_CHECKING:
    from sage_scale.translation.translate import Translator

BATCH = 8
"""Windows that are translated at once; the first one alone, so that its caption comes early."""
LONGEST_S = 20.0
"""Longest window of a model whose card does not say how long training clips were, seconds."""
BLOCK_S, MARGIN_S = 120.0, 10.0
"""Keypoints are segmented in blocks of this length that reach this far into their neighbours, seconds."""
LIVE = "live"
"""The video's name in captions of a live source."""

Note = Callable[[str], None]
"""Takes a line for people."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A window as the model's input."""

    clip: Clip
    sample: Sample
    video: PackedVideo
    signing_s: tuple[float, float]
    """Start and end of its signing, seconds of the recording."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The translation of one window of a recording."""

    start_s: float
    """When signing begins, seconds of the recording."""
    end_s: float
    """When it ends, or its window where nothing rests."""
    window_start_s: float
    """First frame that the model saw; segments and rests of the translation count from it."""
    translation: Translation

    def as_mapping(self) -> dict[str, Any]:
        """Returns a mapping for JSON; all times are seconds of the recording."""
        found = self.translation.as_mapping()
        for name in ("segments_s", "rests_s"):
            moved = np.array(found[name]).reshape(-1, 2) + self.window_start_s
            found[name] = moved.round(3).tolist()
        return {"start_s": round(self.start_s, 3), "end_s": round(self.end_s, 3), **found}


def file_captions(
    translator: Translator,
    video: str | Path,
    language: str = "",
    start_s: float = 0.0,
    end_s: float | None = None,
    candidates: int = 1,
    on_read: Callable[[float, float | None], None] = lambda time_s, end_s: None,
    on_note: Note = lambda line: None,
) -> Iterator[Caption]:
    """Yields the captions of a file or folder, as `Translator.captions`."""
    path = local_path(str(video))
    check_interval(start_s, end_s, None)
    vision = translator.recipe.vision
    keypoints = path if is_keypoint_file(path) else keypoints_of(path, vision)
    if keypoints is not None or (vision.backbone == "keypoints" and vision.kind == "features"):
        prepared = _of_keypoints(translator, path, keypoints, start_s, end_s, on_read, on_note)
    else:
        prepared = _of_video(translator, path, start_s, end_s, on_read, on_note)
    return _translated(translator, prepared, language, candidates, BATCH)


def live_captions(
    translator: Translator,
    source: Iterable[tuple[float, np.ndarray]],
    language: str = "",
    candidates: int = 1,
    on_note: Note = lambda line: None,
) -> Iterator[Caption]:
    """Yields the captions of a live source, each as soon as its pause is sure (`windows.PAD_S`)."""
    settings = picture_settings(translator.recipe.vision, grey=True)
    prepared = _cut(translator, LIVE, live_pictures(source, settings), on_note)
    return _translated(translator, prepared, language, candidates, 1)


def limits_of(translator: Translator, pause: int = 0) -> Limits:
    """Returns the limits of windows that this model saw in training, at the recipe's rate."""
    vision = translator.recipe.vision
    seconds = translator.card.clip_seconds if translator.card else ()
    shortest_s, longest_s = seconds if len(seconds) == 2 else (0.0, LONGEST_S)
    cutting = Limits(fps=vision.fps, longest=1, grid=vision.frame_stride)
    most = min(round(longest_s * vision.fps), vision.max_frames - 2 * cutting.pad)
    return dataclasses.replace(
        cutting,
        longest=max(most, 2 * cutting.grid, 2),
        shortest=max(vision.min_frames, round(shortest_s * vision.fps) - 2 * cutting.pad),
        pause=pause,
    )


def _of_video(
    translator: Translator,
    path: Path,
    start_s: float,
    end_s: float | None,
    on_read: Callable[[float, float | None], None],
    on_note: Note,
) -> Iterator[Prepared]:
    vision = translator.recipe.vision
    settings = picture_settings(vision, grey=True, folder=is_folder(path))
    stream = VideoStream(path, settings, vision.source_fps)

    def pictures() -> Iterator[Picture | Gap]:
        for each in stream.pictures(start_s, end_s):
            for line in stream.stats.take_notes():
                on_note(line)
            stop_s = stream.end_s if end_s is None else min(end_s, stream.end_s or end_s)
            if isinstance(each, Gap):
                if each.reason:
                    on_note(f"{each.start_s:.1f} to {each.end_s:.1f} s cannot be read: {each.reason}")
                on_read(each.end_s, stop_s)
            else:
                on_read(each.time_s, stop_s)
            yield each

    yield from _cut(translator, str(path), pictures(), on_note)


def _cut(
    translator: Translator, name: str, pictures: Iterable[Picture | Gap], on_note: Note
) -> Iterator[Prepared]:
    """Yields the windows of a stream of pictures, prepared."""
    limits, fps = limits_of(translator), translator.recipe.vision.fps
    cutter, held = Cutter(limits), list[Picture]()
    before: np.ndarray | None = None

    def prepared(window: Window) -> Iterator[Prepared]:
        frames = held[window.start - first : window.end - first]
        yield from _prepared(translator, name, frames, window, zero_s, on_note)

    first, zero_s = 0, 0.0
    for each in itertools.chain(pictures, [Gap(0, 0)]):
        if isinstance(each, Gap):
            for window in cutter.finish():
                yield from prepared(window)
            cutter, held, before, first = Cutter(limits), [], None, 0
            continue
        if not held and not first:
            zero_s = each.time_s
        held.append(each)
        speed = 0.0 if before is None else grey_speed(before, each.grey_HW, fps)
        before = each.grey_HW
        if (cut := cutter.push(speed)) is not None:
            yield from prepared(cut)
        del held[: cutter.first - first]
        first = cutter.first


def _prepared(
    translator: Translator, name: str, frames: list[Picture], window: Window, zero_s: float, on_note: Note
) -> Iterator[Prepared]:
    vision = translator.recipe.vision
    if len(frames) < vision.min_frames:
        return
    clip = _clip(translator, name, window, zero_s)
    decoded = DecodedClip(
        clip=clip,
        frames=np.stack([frame.colour_HWC for frame in frames[:: vision.frame_stride]]),  # type: ignore[misc]
        total_frames=len(frames),
        fps=vision.fps,
        stride=vision.frame_stride,
        source_fps=vision.fps,
        grey_THW=np.stack([frame.grey_HW for frame in frames]),
    )
    yield from _ready(translator, clip, decoded, window, zero_s, on_note)


def _of_keypoints(
    translator: Translator,
    path: Path,
    keypoints: Path | None,
    start_s: float,
    end_s: float | None,
    on_read: Callable[[float, float | None], None],
    on_note: Note,
) -> Iterator[Prepared]:
    """Yields the windows of a video with a keypoint file, which says where the pauses are."""
    vision = translator.recipe.vision
    if keypoints is None:
        translator.preparation.prepare(
            Clip(id=str(path), video=str(path))
        )  # raises: there are no keypoints of this video
        return
    found = or_rejected(probe, str(path))
    if isinstance(found, ClipRejected):
        if vision.kind == "frames" or vision.backbone != "keypoints":
            raise found
        found = None  # the model sees no pictures
    first_s = found.first_s if found is not None else 0.0
    track = read_keypoints(keypoints, vision)
    chosen_T = nearest_frames(
        len(track),
        track.fps,
        vision.fps,
        max(0.0, start_s - first_s),
        None if end_s is None else max(1 / vision.fps, end_s - first_s),
    )
    zero_s = max(start_s, first_s)
    windows = list(_windows_of_track(translator, track, chosen_T))
    clips = [_clip(translator, str(path), window, zero_s) for window in windows]
    if not clips:
        return
    _, tagger = translator.preparation.named(clips[0])
    maker = translator.preparation.maker(tagger)
    done = 0.0
    for number, decoded in decode_clips(
        clips, vision, grey=maker.wants_grey, keypoints=maker.wants_keypoints
    ):
        window, clip = windows[number], clips[number]
        done = max(done, clip.end_s or 0.0)
        on_read(done, clips[-1].end_s)
        if isinstance(decoded, ClipRejected):
            if decoded.reason != "too-short":
                on_note(f"{clip.start_s:.1f} to {clip.end_s:.1f} s cannot be read: {decoded.detail}")
            continue
        yield from _ready(translator, clip, decoded, window, zero_s, on_note)


def _windows_of_track(translator: Translator, track: KeypointTrack, chosen_T: np.ndarray) -> Iterator[Window]:
    """Yields the windows of a track whose frames `chosen_T` are those of the recording at the recipe's rate."""
    fps = translator.recipe.vision.fps
    sentences = _sentence_model(translator)
    cutter = Cutter(limits_of(translator, pause=1 if sentences else 0))
    block, margin = round(BLOCK_S * fps), round(MARGIN_S * fps)
    for begin in range(0, len(chosen_T), block):
        low, high = max(0, begin - margin), min(len(chosen_T), begin + block + margin)
        part = chosen_T[low:high]
        at_rate = track.replace(
            points_TKC=track.points_TKC[part], confidence_TK=track.confidence_TK[part], fps=fps
        )
        points_TKC = completed(at_rate, OPENPOSE_67).points_TKC[..., :2]
        speed_T = keypoint_movement(points_TKC, fps).speed_T
        if sentences is not None:
            own = track.part(chosen_T[low] / track.fps, (chosen_T[high - 1] + 1) / track.fps)
            inside_T = _sentence_frames(sentences, own, high - low, fps)
            speed_T = np.where(inside_T, 1e3 * LEAST_SPEED + speed_T, 0.0)  # all of a sentence is signing
        for speed in speed_T[begin - low : begin - low + block].tolist():
            window = cutter.push(speed)
            if window is not None:
                yield window
    yield from cutter.finish()


def _sentence_model(translator: Translator) -> KeypointTagger | None:
    """Returns the published segmenter, which finds sentences: of the recipe, else of the installed package, or None."""
    segmentation = translator.recipe.segmentation
    try:
        return cached_tagger("published", segmentation.weights if segmentation.tagger == "published" else "")
    except NoModel:
        return None


def _sentence_frames(model: KeypointTagger, track: KeypointTrack, total: int, fps: float) -> np.ndarray:
    """Returns bool (total,): frames at `fps` inside a sentence."""
    found = model(track)
    assert found.sentence_T3 is not None, f"{model.name} finds sentences"
    return resample_labels(runs(found.sentence_T3), found.fps, total, fps) != O


def _clip(translator: Translator, name: str, window: Window, zero_s: float) -> Clip:
    fps, language = translator.recipe.vision.fps, translator.recipe.corpus.language
    start_s, end_s = zero_s + window.start / fps, zero_s + window.end / fps
    return Clip(id=name, video=name, start_s=start_s, end_s=end_s, language=language)


def _ready(
    translator: Translator, clip: Clip, decoded: DecodedClip, window: Window, zero_s: float, on_note: Note
) -> Iterator[Prepared]:
    """Yields the window if the model can be given it."""
    found = or_rejected(translator.preparation.prepare, clip, decoded)
    if isinstance(found, ClipRejected):
        on_note(f"{clip.start_s:.1f} to {clip.end_s or 0:.1f} s cannot be translated: {found}")
        return
    fps = translator.recipe.vision.fps
    signing_s = zero_s + window.signing_start / fps, zero_s + window.signing_end / fps
    yield Prepared(clip, *found, signing_s)


def _translated(
    translator: Translator, windows: Iterable[Prepared], language: str, candidates: int, batch: int
) -> Iterator[Caption]:
    waiting: list[Prepared] = []
    wanted = 1
    for window in itertools.chain(windows, [None]):
        if window is not None:
            waiting.append(window)
            if len(waiting) < wanted:
                continue
            wanted = batch
        if not waiting:
            continue
        given = [(each.clip, each.sample, each.video) for each in waiting]
        for each, found in zip(
            waiting, translator.translate_prepared(given, language, candidates), strict=True
        ):
            start_s, end_s = each.signing_s
            yield Caption(start_s=start_s, end_s=end_s, window_start_s=each.clip.start_s, translation=found)
        waiting = []
