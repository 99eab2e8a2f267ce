"""Writing frames to a real H.264 file, the same bytes for the same frames."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_h264(path: Path, frames: Iterable[np.ndarray], fps: int, size: int) -> int:
    """Encode uint8 (size, size, 3) frames into an MP4 file; gives the number of frames.

    One encoder thread, because x264's bytes depend on the number of threads; the muxer leaves out clock and
    library version.
    """
    count = 0
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "21", "threads": "1", "g": "50"}
        reformatter = av.video.reformatter.VideoReformatter()
        for count, array in enumerate(frames, start=1):
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(array, format="rgb24"), format="yuv420p"
            )
            picture.pts = count - 1
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return count
