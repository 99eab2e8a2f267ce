"""A corpus small enough to precompute in a second, and a driver whose actors live in the test's own process."""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from factories.videos import write_square

from sage_scale.config import Recipe, from_mapping
from sage_scale.corpora.manifest import Manifest
from sage_scale.corpora.registry import read_corpus
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import Event, UnitDone, UnitFailed
from sage_scale.storage.folder import FolderStore

CLIPS = 7


def write_corpus(root: Path, clips: int = CLIPS) -> Path:
    """`clips` training clips and two dev clips, in the layout of the corpus `videos`."""
    for split, count in (("train", clips), ("dev", 2)):
        for number in range(count):
            video = root / split / f"{split}{number:02d}.mp4"
            write_square(video, frames=24 + 2 * number, seed=number + 100 * (split == "dev"))
            video.with_suffix(".txt").write_text(f"Satz Nummer {number} im {split}.\n", encoding="utf-8")
    return root


def recipe_for(root: Path, **sections: dict) -> Recipe:
    """A recipe for a corpus root, with changes by section."""
    values: dict = {
        "corpus": {"name": "videos", "root": str(root), "language": "de"},
        "vision": {"size": 32, "crop": 32},
        "text": {"tagger": "none", "target": "sentence"},
        "shards": {"clips_per_unit": 2, "max_reject_rate": 0.0},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return from_mapping(values)


def manifest_of(recipe: Recipe) -> Manifest:
    """The manifest of the recipe's corpus."""
    return read_corpus(recipe.corpus)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class HerePool:
    """A pool of one worker in this process: starts a unit when asked and does all of it in the next wait."""

    def __init__(
        self, worker: UnitWorker, digest: str, interrupt: Callable[[Unit], None] | None = None
    ) -> None:
        self.worker, self.digest, self.interrupt = worker, digest, interrupt
        self.waiting: deque[tuple[Unit, bool]] = deque()

    @property
    def idle(self) -> int:
        return 1 - len(self.waiting)

    @property
    def busy(self) -> int:
        return len(self.waiting)

    def want(self, units: int) -> None:
        pass

    def start(self, unit: Unit, tar_stored: bool, alone: bool = False) -> None:
        self.waiting.append((unit, tar_stored))

    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]:
        told: list[tuple[Unit, Event]] = []
        while self.waiting:
            unit, tar_stored = self.waiting.popleft()
            if self.interrupt:
                self.interrupt(unit)
            told.extend((unit, event) for event in self.worker.work(unit, self.digest, tar_stored))
            assert isinstance(told[-1][1], UnitDone | UnitFailed)
        return told


class HereRun(PrecomputeJob):
    """A run without Ray."""

    interrupt: Callable[[Unit], None] | None = None

    def metrics(self) -> None:
        return None

    @contextlib.contextmanager
    def pool(self, units: int, check: Callable) -> Iterator[HerePool]:
        worker = UnitWorker(self.recipe, self.store.url, self.give_up)
        yield HerePool(worker, check(worker.environment()), self.interrupt)


def run_here(recipe: Recipe, out: Path | str, **settings) -> HereRun:
    """A run without Ray, to be executed."""
    settings.setdefault("manifest", manifest_of(recipe))
    return HereRun(recipe=recipe, url=str(out), quiet=True, **settings)


class Counted(FolderStore):
    """A store that notes every request."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: list[str] = []

    def __getattribute__(self, name: str):
        if name in ("get", "read", "get_range", "put", "put_if_absent", "list", "size", "exists", "delete"):
            self.requests.append("get" if name == "read" else name)
        return super().__getattribute__(name)
