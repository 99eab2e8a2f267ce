"""A unit's samples in the order of its plan, made in the order in which decoding gives them.

The clips of one video are decoded in one pass, which completes them in the order of time; a sample whose turn has not
come waits, in memory or, beyond WAITING_BYTES, in a file. A thread decodes the next clip while a sample of the last one
is made. Neither changes a byte. `one_by_one` does without both, so that whoever kills its actor is known by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import IO, Any

import numpy as np

from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected
from sage_scale.precompute.sample import SampleMaker
from sage_scale.shards import Sample
from sage_scale.shards.sample import read_sample
from sage_scale.shards.tar import header, padding
from sage_scale.shards.writer import sample_members
from sage_scale.vision.decode import DecodedClip, decode_clips
from sage_scale.vision.video_frames import Tally

WAITING_BYTES = 256 * 2**20
"""Finished samples that wait for their turn in memory, bytes; further ones wait in a file."""

Outcome = Sample | ClipRejected
Decoded = tuple[int, "DecodedClip | ClipRejected"]


class UnitClips:
    """Makes the samples of a unit's clips."""

    def __init__(self, maker: SampleMaker, clips: Sequence[Clip], *, one_by_one: bool = False) -> None:
        self.maker, self.clips, self.one_by_one = maker, clips, one_by_one
        self.tally = Tally()
        """What reading the videos took."""
        self.at_work: Clip | None = None
        """The clip that is being made into a sample, None while the next one is being decoded."""

    def __iter__(self) -> Generator[tuple[Clip, Outcome], None, None]:
        """Each clip, in order, with its sample or why there is none. Errors that lie in the machine are raised."""
        if self.one_by_one:
            yield from self._alone()
            return
        with Waiting() as waiting, contextlib.closing(self._outcomes()) as outcomes:
            turn = 0
            for place, outcome in outcomes:
                waiting.put(place, outcome)
                while (ready := waiting.take(turn)) is not None:
                    yield self.clips[turn], ready
                    turn += 1
        assert turn == len(self.clips), "every clip has an outcome"

    def _alone(self) -> Iterator[tuple[Clip, Outcome]]:
        for clip in self.clips:
            self.at_work = clip
            try:
                outcome: Outcome = self.maker.make(clip, self.tally)
            except ClipRejected as rejected:
                outcome = rejected
            yield clip, outcome

    def _outcomes(self) -> Generator[tuple[int, Outcome], None, None]:
        """(place in `clips`, outcome) in the order in which they become known."""
        batches = self.maker.batches()
        with Ahead(self._decode()) as decoded:
            while True:
                with self.maker.stage("decode"):
                    got = next(decoded, None)
                if got is None:
                    break
                place, clip = got
                if isinstance(clip, ClipRejected):
                    yield place, clip
                elif batches is None or not len(clip.frames):
                    yield self._finished(place, clip)
                else:
                    self.at_work = self.clips[place]
                    # All that is needed of it when its features are known; they may wait for the next clip's frames.
                    rest = dataclasses.replace(clip, frames=clip.frames[:0].copy())
                    with self.maker.stage("features"):
                        known = list(
                            batches.add((place, rest), clip.frames, self.maker.view_seeds(self.at_work))
                        )
                    for (number, kept), rows in known:
                        yield self._finished(number, kept, rows)
                del clip, got
                self.at_work = None
        if batches is not None:
            with self.maker.stage("features"):
                known = list(batches.flush())
            for (number, kept), rows in known:
                yield self._finished(number, kept, rows)

    def _finished(
        self, place: int, decoded: DecodedClip, rows: np.ndarray | None = None
    ) -> tuple[int, Outcome]:
        clip = self.at_work = self.clips[place]
        known = () if rows is None else (rows,)
        try:
            outcome: Outcome = self.maker.finish(clip, decoded, *known)
        except ClipRejected as rejected:
            outcome = rejected
        self.at_work = None
        return place, outcome

    def _decode(self) -> Iterator[Decoded]:
        by_video: dict[str, list[int]] = {}
        for place, clip in enumerate(self.clips):
            by_video.setdefault(clip.video, []).append(place)
        vision = self.maker.recipe.vision
        for places in by_video.values():
            clips = [self.clips[place] for place in places]
            for number, decoded in decode_clips(clips, vision, self.tally, grey=self.maker.wants_grey):
                yield places[number], decoded


class Ahead:
    """Draws from an iterator in a thread, one item ahead of its user; as a context manager it ends the thread.

    The next item is begun when the last one was taken, so that there are never more than two.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decode ahead", daemon=True)

    def __enter__(self) -> Iterator[Any]:
        self._thread.start()
        return self._drawn()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._take(timeout_s=0.05)
        self._thread.join()

    def _drawn(self) -> Iterator[Any]:
        while True:
            kind, value = self._take()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
            del value

    def _take(self, timeout_s: float | None = None) -> tuple[str, Any]:
        taken = self._ready.get(timeout=timeout_s)
        self._ready.task_done()
        return taken

    def _run(self) -> None:
        try:
            for item in self._items:
                self._ready.put(("item", item))
                del item
                self._ready.join()
                if self._stop.is_set():
                    return
            self._ready.put(("end", None))
        except BaseException as error:
            self._ready.put(("error", error))
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()


class Waiting:
    """Outcomes whose turn has not come, by place; as a context manager it removes its file."""

    def __init__(self, most_bytes: int = WAITING_BYTES) -> None:
        self._most, self._held = most_bytes, 0
        self._here: dict[int, Outcome] = {}
        self._sizes: dict[int, int] = {}
        self._there: dict[int, tuple[int, int]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, place: int, outcome: Outcome) -> None:
        """Keep an outcome until it is taken."""
        if isinstance(outcome, Sample):
            size = _size(outcome)
            if self._held and self._held + size > self._most:
                self._store(place, outcome)
                return
            self._held += size
            self._sizes[place] = size
        self._here[place] = outcome

    def take(self, place: int) -> Outcome | None:
        """The outcome at `place`, None where it is not there yet; it is kept no longer."""
        if place in self._there:
            at, length = self._there.pop(place)
            assert self._file is not None
            self._file.seek(at)
            return read_sample(self._file.read(length))
        self._held -= self._sizes.pop(place, 0)
        return self._here.pop(place, None)

    def _store(self, place: int, sample: Sample) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the waiting room
        at = self._file.seek(0, 2)
        for name, data in sample_members(sample):
            self._file.write(header(name, len(data)) + data + padding(len(data)))
        self._there[place] = (at, self._file.tell() - at)


def _size(sample: Sample) -> int:
    frames = sum(map(len, (sample.frames or {}).values()))
    features = sum(view.nbytes for view in (sample.features, *sample.views) if view is not None)
    return frames + features + len(sample.background or b"")
