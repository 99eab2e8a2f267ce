"""Processes that decode and segment uploaded videos, and that can be killed.

A decoder is a process of its own, started anew (spawn), without the model. It reads one job after the other from a
pipe: lines of JSON in, a line of JSON and the bytes of a sample (shards/README.md) out; nothing of it is unpickled. A
decoder that takes too long, too much memory, or dies is replaced, and its request alone is refused.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, SageError
from sage_scale.serving.limits import Limits, Refused
from sage_scale.shards import Sample, read_sample
from sage_scale.shards.writer import sample_bytes
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.json_values import parse_json_object

START_S = 120.0
"""Longest start of a decoder, seconds."""


class Decoders:
    """A pool of decoders: one is started at once, more of them when all are at work."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._recipe: tuple[Recipe, bool] | None = None
        self._free, self._started, self._waiting = [_Decoder(limits)], 1, 0
        self._changed = threading.Condition()

    def use(self, recipe: Recipe, on_gpu: bool) -> None:
        """Set the recipe by which videos are decoded; called once, before `make`."""
        self._recipe = recipe, on_gpu

    def make(self, video: Path) -> Sample:
        """Returns the sample of a video. Raises Refused."""
        assert self._recipe is not None
        with self._decoder() as decoder:
            return decoder.make(video, *self._recipe)

    def close(self) -> None:
        """End the decoders that are at rest; the others end with this process."""
        with self._changed:
            for decoder in self._free:
                decoder.kill()

    @contextlib.contextmanager
    def _decoder(self) -> Iterator[_Decoder]:
        with self._changed:
            if not self._free and self._started >= self.limits.decoders:
                if self._waiting >= self.limits.waiting:
                    raise Refused(503, "the server is busy: try again in a minute", retry_s=30)
                self._waiting += 1
                self._changed.wait_for(lambda: self._free)
                self._waiting -= 1
            decoder = self._free.pop() if self._free else None
            self._started += decoder is None
        decoder = decoder or _Decoder(self.limits)
        try:
            yield decoder
        finally:
            if not decoder.alive():
                decoder = _Decoder(self.limits)
            with self._changed:
                self._free.append(decoder)
                self._changed.notify()


class _Decoder:
    """One process."""

    def __init__(self, limits: Limits) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        given = (theirs, limits)
        self._process = spawn.Process(target=_decode, args=given, name="sage-scale decoder", daemon=True)
        self._process.start()
        theirs.close()
        self._limits, self._ready = limits, False

    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def make(self, video: Path, recipe: Recipe, on_gpu: bool) -> Sample:
        try:
            if not self._ready:
                self._pipe.send((recipe, on_gpu))
                self._answer(START_S)
                self._ready = True
            self._pipe.send_bytes(json.dumps({"video": str(video)}).encode())
            row = parse_json_object(self._answer(self._limits.decode_s))
            if "refused" in row:
                raise Refused(int(row["status"]), str(row["refused"]))
            return read_sample(self._answer(self._limits.decode_s))
        except TimeoutError:
            self.kill()
            raise Refused(
                422, f"the video took longer than {self._limits.decode_s:.0f} s to decode"
            ) from None
        except (EOFError, OSError, SageError):
            self.kill()
            raise Refused(
                422, "the video cannot be decoded: its decoder ended (damaged, or too large)"
            ) from None

    def _answer(self, wait_s: float) -> bytes:
        if not self._pipe.poll(wait_s):
            raise TimeoutError
        return self._pipe.recv_bytes(1 << 30)


def _decode(pipe: Connection, limits: Limits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    import torch

    from sage_scale.translation.preparation import Preparation

    torch.set_num_threads(1)
    try:
        recipe, on_gpu = pipe.recv()  # of the server itself
    except EOFError:
        return
    preparation = Preparation(recipe, on_gpu)
    _limit(limits)
    pipe.send_bytes(b"{}")
    while True:
        try:
            video = Path(json.loads(pipe.recv_bytes())["video"])
        except EOFError:
            return
        try:
            check_header(video, limits)
            sample = preparation.sample(Clip(id="upload", video=str(video), language=recipe.corpus.language))
            data = sample_bytes(sample)
        except Refused as error:
            pipe.send_bytes(_row(error.status, error.line))
        except ClipRejected as error:
            reason = str(error).replace(str(video), "the video")
            pipe.send_bytes(_row(422, f"the video cannot be translated: {shortened(reason, 300)}"))
        except MemoryError:
            pipe.send_bytes(_row(413, "the video needs more memory than a decoder has: give a smaller one"))
        else:
            pipe.send_bytes(b"{}")
            pipe.send_bytes(data)


def _row(status: int, line: str) -> bytes:
    return json.dumps({"status": status, "refused": line}).encode()


def _limit(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else 0
    if pages:
        most = pages * os.sysconf("SC_PAGE_SIZE") + limits.memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def check_header(video: Path, limits: Limits) -> None:
    """Raise Refused for a file that is no video, or whose header states more than the limits."""
    import av

    try:
        with av.open(str(video), options={"protocol_whitelist": "file"}) as container:
            stream: Any = container.streams.video[0]
            side = max(stream.codec_context.width, stream.codec_context.height)
            lengths = [float(stream.duration * stream.time_base)] if stream.duration else []
            lengths += [container.duration / 1e6] if container.duration else []
    except (av.error.FFmpegError, IndexError, ValueError, OSError):
        raise Refused(415, "this file is no video that can be read (MP4, WebM, MKV, MOV, AVI)") from None
    if side > limits.side:
        raise Refused(413, f"the pictures have {side:,} pixels a side, at most {limits.side:,} are taken")
    if lengths and max(lengths) > limits.seconds:
        raise Refused(
            413,
            f"the video has {max(lengths):,.0f} s, at most {limits.seconds:.0f} are taken: cut it, or use "
            "`sage-scale translate --captions`",
        )
