"""From a decoded frame to a small upright square: cut first, then scale, with ffmpeg's own filters and scaler.

Cutting copies nothing, so the scaler reads only the pixels that are kept; one scaler is reused, since making one costs
most of the work. Of interlaced frames only the upper field is used: two fields show two moments, which doubles moving
hands, and one field still has the lines of a 256-pixel square (288 of 576, 540 of 1080). Unlike filters over several
frames (yadif, bwdif) this depends on no neighbour, so a frame is the same wherever reading began.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from sage_scale.vision.crop import (
    UPRIGHT,
    Box,
    Orientation,
    Region,
    check_picture,
    plan_cut,
    plan_square,
    plausible,
)


@dataclass(frozen=True)
class _Shape:
    """Properties of a frame that decide its scaling; they may change within a video."""

    width: int
    height: int
    pixel_format: str
    interlaced: bool
    orientation: Orientation
    pixel_ratio: float
    region: Region | None


class SquareScaler:
    """Scales decoded frames to squares of one size and format."""

    def __init__(self, size: int, pixel_format: str, *, stretch: bool, cut_first: bool = True) -> None:
        """`cut_first` cuts the square out of the frame and scales it; else the whole frame is scaled and its middle cut
        out, as for the grey pictures of the motion tagger."""
        self.size, self.pixel_format, self.stretch, self.cut_first = size, pixel_format, stretch, cut_first
        self._reformatter = VideoReformatter()
        self._shape: _Shape | None = None
        self._filter: av.filter.Graph | None = None
        self._scale_to = (size, size)
        self._middle = (slice(0, size), slice(0, size))

    def __call__(
        self,
        frame: VideoFrame,
        pixel_ratio: float = 1.0,
        region: Region | None = None,
        orientation: Orientation = UPRIGHT,
    ) -> np.ndarray:
        """Returns uint8 (size, size, 3) for rgb24, (size, size) for gray; a view of ffmpeg's memory.

        `pixel_ratio` is a pixel's width by its height; `region` the part of the upright picture to cut out, instead of
        its middle; `orientation` turns the frame upright.
        """
        shape = _Shape(
            frame.width,
            frame.height,
            frame.format.name,
            bool(frame.interlaced_frame),
            orientation,
            pixel_ratio,
            region,
        )
        if shape != self._shape:
            self._prepare(shape)
        if self._filter is not None:
            self._filter.push(frame)
            frame = self._filter.pull()  # type: ignore[assignment]
        width, height = self._scale_to
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format=self.pixel_format, threads=1
        )
        return orientation(_pixels(scaled)[self._middle])

    def _prepare(self, shape: _Shape) -> None:
        width, height = shape.width, shape.height
        check_picture(width, height)
        self._middle = (slice(0, self.size), slice(0, self.size))
        self._scale_to = (self.size, self.size)
        box: Box | None = None
        if shape.region is not None or (self.cut_first and not self.stretch):
            box = plan_cut(width, height, shape.region, shape.orientation, shape.pixel_ratio)
        elif not self.stretch:
            plan = plan_square(width, height, self.size, stretch=False, pixel_ratio=shape.pixel_ratio)
            self._scale_to = (plan.width, plan.height)
            self._middle = plan.middle
        self._filter = _filter(shape, box)
        self._shape = shape


class WholeScaler:
    """Turns decoded frames of one video into whole upright pictures with square pixels, all of the first one's size."""

    def __init__(self, pixel_ratio: float = 1.0) -> None:
        """`pixel_ratio` is a pixel's width by its height."""
        self._ratio = plausible(pixel_ratio)
        self._reformatter = VideoReformatter()
        self._upper_field: tuple[_Shape, av.filter.Graph | None] | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame, orientation: Orientation = UPRIGHT) -> np.ndarray:
        """Returns uint8 (H, W, 3) RGB; a view of ffmpeg's memory."""
        check_picture(frame.width, frame.height)
        crossed = orientation.turns % 2
        if self._size is None:
            shown = max(1, round(frame.width * self._ratio)), frame.height
            self._size = shown[::-1] if crossed else shown
        width, height = self._size[::-1] if crossed else self._size
        if frame.interlaced_frame:
            shape = _Shape(frame.width, frame.height, frame.format.name, True, UPRIGHT, 1.0, None)
            if self._upper_field is None or self._upper_field[0] != shape:
                self._upper_field = shape, _filter(shape, None)
            graph = self._upper_field[1]
            assert graph is not None
            graph.push(frame)
            frame = graph.pull()  # type: ignore[assignment]
        scaled = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        return orientation(_pixels(scaled))


def _filter(shape: _Shape, box: Box | None) -> av.filter.Graph | None:
    """Returns the filters before the scaler, None without any."""
    steps: list[tuple[str, str]] = []
    lines = 1
    if shape.interlaced:
        steps.append(("field", "type=top"))
        lines = 2
    if box is not None and (box.width, box.height) != (shape.width, shape.height):
        place = f"{box.width}:{max(1, box.height // lines)}:{box.left}:{box.top // lines}"
        steps.append(("crop", f"{place}:exact=0"))
    if not steps:
        return None
    graph = av.filter.Graph()
    # The time base is not used: one frame goes in, one comes out.
    ends = [
        graph.add_buffer(
            width=shape.width,
            height=shape.height,
            format=av.VideoFormat(shape.pixel_format),
            time_base=Fraction(1, 1000),
        )
    ]
    ends += [graph.add(name, arguments) for name, arguments in steps]
    ends.append(graph.add("buffersink"))
    for one, other in itertools.pairwise(ends):
        one.link_to(other)
    graph.configure()
    return graph


def _pixels(frame: VideoFrame) -> np.ndarray:
    """Returns a view of a picture: uint8 (height, width, 3) or (height, width), without the lines' padding."""
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    if frame.format.name == "gray":
        return lines[:, : frame.width]
    return lines[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


class PictureStack:
    """An array of pictures of one shape, to which each is copied at once, so that ffmpeg can reuse its memory."""

    def __init__(self, shape: tuple[int, ...], expected: int) -> None:
        self._array = np.empty((max(1, expected), *shape), np.uint8)
        self.count = 0

    def append(self, picture: np.ndarray) -> None:
        """Copy one more picture."""
        if self.count == len(self._array):
            self._resize(2 * self.count)
        self._array[self.count] = picture
        self.count += 1

    def array(self) -> np.ndarray:
        """Returns all of them, (count, ...); nothing may be added afterwards."""
        self._resize(self.count)
        return self._array

    def _resize(self, count: int) -> None:
        self._array.resize((count, *self._array.shape[1:]), refcheck=False)  # no other reference exists
