"""Reading a video file with PyAV: one decoder thread, one reused scaler for each output, no trust in the
header.

Colour pictures are made for the stride grid only; a small grey one is made for every frame, for the tagger of
hand motion. Measured on 2 cores with 210 x 260 H.264 and 256 x 256 output: see docs/results/vision.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import LARGEST_PIXELS, SquarePlan, check_picture, plan_square
from sage_scale.vision.sampling import check_interval, check_length, sample_stream

# Playlists and concat scripts are videos to ffmpeg too, and would let a corpus file open other files or
# addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,mxf,rm"
_TRUNCATED_S = 1.0
_SOURCE_FRAMES_PER_FRAME = 16


class SquareScaler:
    """Scales decoded frames to one square format; keeps its scaler, which costs most of the work when
    remade."""

    def __init__(self, size: int, pixel_format: str, *, stretch: bool) -> None:
        self.size, self.pixel_format, self.stretch = size, pixel_format, stretch
        self._reformatter = VideoReformatter()
        self._plan: SquarePlan | None = None
        self._plan_for: tuple[int, int, int, float] | None = None

    def __call__(self, frame: VideoFrame, rotation: int, pixel_ratio: float) -> np.ndarray:
        """uint8 (size, size, 3) for rgb24, (size, size) for gray."""
        shape = (frame.width, frame.height, rotation, pixel_ratio)
        if self._plan is None or shape != self._plan_for:
            self._plan = plan_square(
                frame.width,
                frame.height,
                self.size,
                stretch=self.stretch,
                rotation=rotation,
                pixel_ratio=pixel_ratio,
            )
            self._plan_for = shape
        scaled = self._reformatter.reformat(
            frame, width=self._plan.width, height=self._plan.height, format=self.pixel_format, threads=1
        )
        return self._plan.cut(scaled.to_ndarray())


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a video file for reading; what ffmpeg says against it becomes ClipRejected.

    A file that cannot be read to its end (permission, a failing disk) is an OSError instead: nothing is known
    of it.
    """
    try:
        container = av.open(
            # The prefix keeps a name with a colon from being taken for a protocol.
            f"file:{path}",
            options={"max_pixels": str(LARGEST_PIXELS), "threads": "1", "format_whitelist": CONTAINERS},
            metadata_errors="replace",
        )
    except av.error.MemoryError:
        raise MemoryError(f"no memory to open {path}") from None
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        _read_through(path)
        raise ClipRejected("unreadable", _words(error)) from None
    try:
        yield container
    except ClipRejected:
        _read_through(path)
        raise
    finally:
        container.close()


def _read_through(path: Path) -> None:
    """Raise OSError where the file system, rather than the file, is at fault."""
    with path.open("rb") as file:
        while file.read(2**22):
            pass


def probe_video(path: Path) -> tuple[float, float]:
    """Duration in seconds (0 if the header does not say) and frame rate of a video file, from its header
    alone."""
    with open_video(path) as container:
        stream = _video_stream(container)
        return _duration_s(container, stream) or 0.0, float(stream.average_rate or stream.guessed_rate or 0)


def read_video(
    path: Path,
    *,
    start_s: float,
    end_s: float | None,
    fps: float,
    stride: int,
    size: int,
    grey_size: int,
    stretch: bool,
    min_frames: int,
    max_frames: int,
    colour: bool = True,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The clip's stride-grid frames uint8 (n, size, size, 3), grey frames (T, grey, grey) and the source's
    rate.

    Raises ClipRejected for whatever lies in the file's bytes.
    """
    with open_video(path) as container:
        stream = _video_stream(container)
        check_picture(stream.codec_context.width, stream.codec_context.height)
        duration_s = _duration_s(container, stream)
        check_interval(start_s, end_s, duration_s)
        stop_s = end_s if duration_s is None else min(end_s or duration_s, duration_s)
        if stop_s is not None:  # saves decoding what is refused anyway
            check_length(round((stop_s - start_s) * fps), 0, max_frames)
        pixel_ratio = float(stream.sample_aspect_ratio or 1)
        scale_colour = SquareScaler(size, "rgb24", stretch=stretch)
        scale_grey = SquareScaler(grey_size, "gray", stretch=stretch)
        frames: list[np.ndarray] = []
        greys: list[np.ndarray] = []
        shown: VideoFrame | None = None
        timed = _Timed(container, stream, start_s, limit=(max_frames + 1) * _SOURCE_FRAMES_PER_FRAME)
        for k, frame in sample_stream(timed, fps, start_s, end_s, max_frames):
            grey = greys[-1] if frame is shown else scale_grey(frame, frame.rotation, pixel_ratio)
            greys.append(grey)
            if colour and k % stride == 0:
                frames.append(scale_colour(frame, frame.rotation, pixel_ratio))
            shown = frame
        _check_complete(timed, duration_s, stop_s, path)
        check_length(len(greys), min_frames, max_frames)
        rate = float(stream.average_rate or stream.guessed_rate or fps)
    stacked = np.stack(frames) if frames else np.zeros((0, size, size, 3), np.uint8)
    return stacked, np.stack(greys), rate


class _Timed:
    """Iterates (time, duration, frame) from a little before `start_s`, in seconds from the video's first
    frame."""

    def __init__(self, container, stream, start_s: float, limit: int) -> None:
        self.container, self.stream, self.start_s, self.limit = container, stream, start_s, limit
        self.last_end_s = 0.0
        self.decoded = 0

    def __iter__(self) -> Iterator[tuple[float, float, VideoFrame]]:
        if self.start_s > 0 and self._seek():
            timed = self._decode()
            first = next(timed, None)
            if first is not None and first[0] <= self.start_s + 1e-6:
                yield first
                yield from timed
                return
            timed.close()
            # Without a usable index a seek can land behind its target; then read from the beginning.
            with contextlib.suppress(av.error.FFmpegError):
                self.container.seek(0)
        yield from self._decode()

    def _seek(self) -> bool:
        offset = int(self.start_s / self.stream.time_base) + (self.stream.start_time or 0)
        try:
            self.container.seek(offset, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _decode(self) -> Generator[tuple[float, float, VideoFrame], None, None]:
        time_base = float(self.stream.time_base)
        origin = self.stream.start_time or 0
        rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        previous_s: float | None = None
        try:
            for frame in self.container.decode(self.stream):
                check_picture(frame.width, frame.height)
                if frame.pts is not None:
                    time_s = (frame.pts - origin) * time_base
                else:
                    time_s = 0.0 if previous_s is None else previous_s + 1 / rate
                if previous_s is not None and time_s <= previous_s:
                    continue
                duration_s = (frame.duration or 0) * time_base
                if not 0 < duration_s <= 1:
                    duration_s = 1 / rate
                previous_s = time_s
                self.last_end_s = time_s + duration_s
                if time_s >= self.start_s:
                    self.decoded += 1
                    if self.decoded > self.limit:
                        raise ClipRejected("too-long", f"more than {self.limit} source frames")
                yield time_s, duration_s, frame
        except av.error.MemoryError:
            raise MemoryError(f"no memory to decode {self.container.name}") from None
        except av.error.FFmpegError as error:
            raise ClipRejected("corrupt", f"{_words(error)} after {self.last_end_s:.2f} s") from None


def _check_complete(timed: _Timed, duration_s: float | None, stop_s: float | None, path: Path) -> None:
    """A file cut short decodes without an error up to its end: compare with what its header promises."""
    if timed.last_end_s == 0:
        raise ClipRejected("empty", "no frame could be decoded")
    if duration_s is None or stop_s is None:
        return
    missing_s = stop_s - timed.last_end_s
    if missing_s > _TRUNCATED_S and missing_s > 0.1 * duration_s:
        raise ClipRejected("truncated", f"ends at {timed.last_end_s:.2f} s of {duration_s:.2f} s")


def _video_stream(container):
    streams = container.streams.video
    if not streams:
        raise ClipRejected("no-video", f"{len(container.streams)} streams, none of them video")
    stream = streams[0]
    if stream.codec_context is None:
        raise ClipRejected("unreadable", "no decoder for this video codec")
    with contextlib.suppress(av.error.FFmpegError, RuntimeError):
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
    return stream


def _duration_s(container, stream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    return None


def _words(error: Exception) -> str:
    """ffmpeg's message without the path, which would make a reject depend on the machine."""
    return getattr(error, "strerror", None) or str(error).split(":")[0] or type(error).__name__
