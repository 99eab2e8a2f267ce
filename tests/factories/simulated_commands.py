"""Precompute over a simulated bucket (`simulated_bucket.py`): the product's driver and unit worker, with toy samples.

In place of Ray is a pool whose actors are processes of the simulation; in place of videos are samples that follow from
their clips.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from factories.interleaving import Simulation
from factories.simulated_bucket import SimulatedStore

from sage_scale.config import from_mapping
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import ClipRejected, NoDataset
from sage_scale.precompute import actor
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.environment import Environment
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, Event, FramesDone, UnitFailed
from sage_scale.precompute.sample_maker import source_name
from sage_scale.shards import Sample, open_dataset
from sage_scale.shards.repair import carry_out_repair, plan_repair
from sage_scale.shards.writer import sample_bytes
from sage_scale.vision.video_frames import DecodeStats

ACTORS = 2
SPOILT = "train-3"
"""Clip that is rejected until the corpus is mended."""
ENVIRONMENT = Environment(versions={"sage_scale": "simulated"}, device="cpu", tagger="none")
RECIPE = from_mapping(
    {
        "corpus": {"name": "videos"},
        "vision": {"kind": "features", "backbone": "keypoints"},
        "model": {"feature_dim": 134},
        "text": {"tagger": "none", "target": "sentence"},
        "shards": {"clips_per_unit": 2, "max_reject_rate": 0.5},
    }
)


def clip(name: str) -> Clip:
    """Returns the clip of this id; its split begins the id."""
    return Clip(id=name, video=f"{name}.npz", sentence="s", split=name.partition("-")[0])


FIRST = Manifest(tuple(map(clip, ("train-0", "train-1", "train-2", SPOILT, "dev-0"))))
GROWN = Manifest((*FIRST.clips, clip("train-4"), clip("dev-1"), clip("dev-2")))
OTHER = Manifest(tuple(map(clip, ("train-5", "train-6", "dev-3"))))


def sample(of: Clip) -> Sample:
    """A sample that follows from its clip, as small as may be."""
    meta = {
        "id": of.id, "sentence": of.sentence, "pseudo_glosses": [], "language": of.language, "fps": 25.0,
        "frame_stride": 2, "frames": 2, "source": source_name(of), "signer": "", "split": of.split,
    }  # fmt: skip
    features = np.frombuffer(of.key.encode(), np.float16).reshape(1, 8).copy()
    return Sample(key=of.key, meta=meta, segments=np.array([[0, 2]], np.int32), features=features)


BYTES = {one.key: sample_bytes(sample(one)) for one in (*GROWN.clips, *OTHER.clips)}
"""Stored bytes of every clip's sample."""


class ToyClips:
    """Stands for `UnitClips`."""

    mended = False
    """Whether the corpus was mended."""

    def __init__(self, maker: Any, clips: Sequence[Clip], *, alone: bool = False) -> None:
        self.stats, self.current, self.clips = DecodeStats(), None, clips

    def __iter__(self) -> Iterator[tuple[Clip, Sample | ClipRejected]]:
        for one in self.clips:
            spoilt = one.id == SPOILT and not self.mended
            yield one, ClipRejected("unreadable", "spoilt") if spoilt else sample(one)


class Actor:
    """An actor of a driver: a process that makes one unit after the other."""

    def __init__(self, simulation: Simulation, run: Driver) -> None:
        self.unit: Unit | None = None
        self.events: list[tuple[Unit, Event]] = []
        self.lost = False
        """The driver takes it for dead."""
        self._call: tuple[Unit, str, bool, bool] | None = None
        self._simulation, self._run = simulation, run
        self.process = simulation.process("actor", self._work)
        run.actors.append(self)

    def start(self, unit: Unit, digest: str, tar_stored: bool, alone: bool) -> None:
        """Give it a unit."""
        self.unit, self._call = unit, (unit, digest, tar_stored, alone)

    def lose(self) -> None:
        """Make the driver take it for dead, whether it is or not."""
        self.lost = True
        if self.unit:
            self.events.append((self.unit, UnitFailed(kind="killed", message="its actor died")))

    def _work(self) -> None:
        worker = UnitWorker(RECIPE, "/nowhere", self._run.give_up)
        worker.store = SimulatedStore(self._simulation)
        worker.scratch = Path(tempfile.mkdtemp(dir=self._run.folder))
        while True:
            self._simulation.wait(lambda: self._call is not None)
            assert self._call is not None
            (unit, *rest), self._call = self._call, None
            for event in worker.work(unit, *rest):
                if not self.lost:
                    self.events.append((unit, event))


class Pool:
    """The actors of a driver, as `pool.ActorPool`."""

    def __init__(self, run: Driver, most: int, check: Callable[[Environment], str]) -> None:
        self._run, self._check = run, check
        self._actors = [self._new() for _ in range(min(ACTORS, most))]

    def _new(self) -> Actor:
        self._digest = self._check(ENVIRONMENT)
        return Actor(self._run.simulation, self._run)

    @property
    def idle(self) -> int:
        return sum(one.unit is None for one in self._actors)

    @property
    def busy(self) -> int:
        return len(self._actors) - self.idle

    def want(self, units: int) -> None:
        pass

    def start(self, unit: Unit, tar_stored: bool, alone: bool = False) -> None:
        next(one for one in self._actors if one.unit is None).start(unit, self._digest, tar_stored, alone)

    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]:
        if not self.busy:
            self._run.simulation.clock += 20 * timeout_s
            return []
        self._run.simulation.wait(lambda: any(one.events for one in self._actors))
        events: list[tuple[Unit, Event]] = []
        for number, one in enumerate(self._actors):
            events += one.events
            if one.events and not isinstance(one.events[-1][1], ClipDone | FramesDone):
                one.unit = None
            one.events = []
            if one.lost:
                self._actors[number] = self._new()
        return events

    def end(self) -> None:
        """Kill the actors, as the real pool does."""
        for one in self._actors:
            self._run.simulation.kill(one.process)


class Driver(PrecomputeJob):
    """A precompute command."""

    simulation: Simulation
    folder: str
    actors: list[Actor]

    def metrics(self) -> None:
        return None

    @contextlib.contextmanager
    def pool(self, units: int, check: Callable[[Environment], str]) -> Iterator[Pool]:  # type: ignore[override]
        pool = Pool(self, units, check)
        yield pool
        pool.end()


def driver(simulation: Simulation, folder: str, manifest: Manifest, **options: Any) -> Driver:
    """Returns a command that has made no request yet; `folder` takes its actors' scratch files."""
    with mock.patch("sage_scale.precompute.job.open_store", lambda url: SimulatedStore(simulation)):
        made = Driver(recipe=RECIPE, manifest=manifest, url="s3://bucket/data", quiet=True, **options)
    made.simulation, made.folder, made.actors = simulation, folder, []
    return made


@contextlib.contextmanager
def toy_clips() -> Iterator[type[ToyClips]]:
    """Replaces the making of samples; gives the class, whose `mended` may be set."""
    fresh = type("FreshClips", (ToyClips,), {})
    with mock.patch.object(actor, "UnitClips", fresh):
        yield fresh


def repair(store: SimulatedStore, mode: Any) -> None:
    """A repair of what dataset there may be."""
    with contextlib.suppress(NoDataset):
        carry_out_repair(plan_repair(store), mode)


def read_all(store: SimulatedStore) -> None:
    """A reader: opens the dataset and reads every sample. Raises AssertionError for other bytes than were made."""
    dataset = open_dataset(store)
    table = dataset.samples()
    for row in range(len(table)):
        read = dataset.read(table, row)
        assert sample_bytes(read) == BYTES[read.key], "a reader got other bytes"
