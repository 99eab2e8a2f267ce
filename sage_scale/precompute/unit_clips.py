"""A unit's samples in the order of its plan, made in the order in which decoding gives them.

The clips of one video are decoded in one pass, which completes them in the order of time; samples wait for their turn
in a reorder buffer. A thread decodes the next clip while a sample of the last one is made. Neither changes a byte.
With `alone` there is neither, so that a clip that kills its actor is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

import numpy as np

from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, or_rejected
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.shards import Sample
from sage_scale.shards.sample import read_sample
from sage_scale.shards.tar import header, padding
from sage_scale.shards.writer import sample_members
from sage_scale.vision.decode import DecodedClip, decode_clips
from sage_scale.vision.video_frames import DecodeStats

BUFFER_BYTES = 256 * 2**20
"""Most memory of finished samples that wait for their turn, bytes; further ones wait in a file."""

Outcome = Sample | ClipRejected
T = TypeVar("T")


class UnitClips:
    """Makes the samples of a unit's clips."""

    def __init__(self, maker: SampleMaker, clips: Sequence[Clip], *, alone: bool = False) -> None:
        self.maker, self.clips, self.alone = maker, clips, alone
        self.stats = DecodeStats()
        """Work of reading the videos."""
        self.current: Clip | None = None
        """The clip that is being made into a sample, None while the next one is being decoded."""

    def __iter__(self) -> Generator[tuple[Clip, Outcome], None, None]:
        """Yields each clip, in order, with its sample or its rejection. Raises errors that lie in the machine."""
        if self.alone:
            for clip in self.clips:
                self.current = clip
                yield clip, or_rejected(self.maker.make, clip, self.stats)
            return
        with ReorderBuffer() as buffer, contextlib.closing(self._outcomes()) as outcomes:
            turn = 0
            for number, outcome in outcomes:
                buffer.put(number, outcome)
                while (ready := buffer.take(turn)) is not None:
                    yield self.clips[turn], ready
                    turn += 1
        assert turn == len(self.clips), "every clip has an outcome"

    def _outcomes(self) -> Generator[tuple[int, Outcome], None, None]:
        """Yields (number in `clips`, outcome) as the outcomes become known."""
        batches = self.maker.batches()
        with one_ahead(self._decode()) as decoded:
            while True:
                with self.maker.stage("decode"):
                    got = next(decoded, None)
                if got is None:
                    break
                number, clip = got
                if isinstance(clip, ClipRejected):
                    yield number, clip
                elif batches is None or not len(clip.frames):
                    yield self._finished(number, clip)
                else:
                    self.current = self.clips[number]
                    # Without its frames, since its features may wait for the next clip's.
                    rest = dataclasses.replace(clip, frames=clip.frames[:0].copy())
                    with self.maker.stage("features"):
                        seeds = self.maker.view_seeds(self.current)
                        known = list(batches.add((number, rest), clip.frames, seeds))
                    for (done, kept), rows in known:
                        yield self._finished(done, kept, rows)
                del clip, got
                self.current = None
        if batches is not None:
            with self.maker.stage("features"):
                known = list(batches.flush())
            for (done, kept), rows in known:
                yield self._finished(done, kept, rows)

    def _finished(
        self, number: int, decoded: DecodedClip, rows: np.ndarray | None = None
    ) -> tuple[int, Outcome]:
        self.current = self.clips[number]
        outcome = or_rejected(self.maker.finish, self.current, decoded, rows)
        self.current = None
        return number, outcome

    def _decode(self) -> Generator[tuple[int, DecodedClip | ClipRejected], None, None]:
        by_video: dict[str, list[int]] = {}
        for number, clip in enumerate(self.clips):
            by_video.setdefault(clip.video, []).append(number)
        vision = self.maker.recipe.vision
        wanted = {"grey": self.maker.wants_grey, "keypoints": self.maker.wants_keypoints}
        for numbers in by_video.values():
            clips = [self.clips[number] for number in numbers]
            for position, decoded in decode_clips(clips, vision, self.stats, **wanted):
                yield numbers[position], decoded


@contextlib.contextmanager
def one_ahead(items: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """Yields an iterator of the items, each made by a thread while its predecessor is used: two exist at most."""
    with contextlib.closing(items), ThreadPoolExecutor(1, "decode ahead") as thread:
        yield _taken(items, thread)


def _taken(items: Iterator[T], thread: ThreadPoolExecutor) -> Iterator[T]:
    end: Any = object()
    future = thread.submit(next, items, end)
    while (item := future.result()) is not end:
        future = thread.submit(next, items, end)
        yield item
        del item


class ReorderBuffer:
    """Outcomes whose turn has not come, by number; as a context manager it removes its file."""

    def __init__(self, most_bytes: int = BUFFER_BYTES) -> None:
        self._most, self._held = most_bytes, 0
        self._in_memory: dict[int, Outcome] = {}
        self._sizes: dict[int, int] = {}
        self._in_file: dict[int, tuple[int, int]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ReorderBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, number: int, outcome: Outcome) -> None:
        """Keep an outcome until it is taken."""
        if isinstance(outcome, Sample):
            size = _size(outcome)
            if self._held and self._held + size > self._most:
                self._store(number, outcome)
                return
            self._held += size
            self._sizes[number] = size
        self._in_memory[number] = outcome

    def take(self, number: int) -> Outcome | None:
        """Returns the outcome of a number and forgets it; None where it is not there yet."""
        if number in self._in_file:
            begin, length = self._in_file.pop(number)
            assert self._file is not None
            self._file.seek(begin)
            return read_sample(self._file.read(length))
        self._held -= self._sizes.pop(number, 0)
        return self._in_memory.pop(number, None)

    def _store(self, number: int, sample: Sample) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the buffer
        begin = self._file.seek(0, 2)
        for name, data in sample_members(sample):
            self._file.write(header(name, len(data)) + data + padding(len(data)))
        self._in_file[number] = (begin, self._file.tell() - begin)


def _size(sample: Sample) -> int:
    frames = sum(map(len, (sample.frames or {}).values()))
    features = sum(view.nbytes for view in (sample.features, *sample.views) if view is not None)
    return frames + features + len(sample.background or b"")
