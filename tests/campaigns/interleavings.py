"""Claim: whatever order the requests of several commands take, and whatever fails between them, every end is one whole
dataset, or open units that the next run finishes.

    python tests/campaigns/interleavings.py --examples 2000 --seed 0

Hypothesis' state machine starts commands (precompute, --extend, --retry-rejects, --overwrite; removal, both repairs,
`shards index`, merge; readers) on one bucket in memory, grants each request of each thread
(factories/interleaving.py), and fails some: an answer lost before or after the effect, 409, 412, 503, the death of a
command or an actor, an actor that is only thought dead, a flipped bit in a stored tar. Then the commands end, or all
die, and the same command is given once more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse
from factories import simulated_commands as toys
from factories.interleaving import FAULTS, Process, Simulation, Task
from factories.simulated_bucket import SimulatedStore

from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import DatasetError, NoDataset, SageError, TooManyRejects, UnitsOpen, UsageError
from sage_scale.shards import open_dataset, rebuild_index, verify_dataset
from sage_scale.shards.addition_plan import load_additions
from sage_scale.shards.dataset import open_finished
from sage_scale.shards.index import build_index, make_marker
from sage_scale.shards.layout import DATASET_JSON, INDEX_JSON, list_units, parse_info
from sage_scale.shards.merge import merge_datasets
from sage_scale.shards.rejects import CHANGED_JSON, current_rejects, reject_key, removed_keys
from sage_scale.shards.remove import remove_clips
from sage_scale.storage import Unavailable

ALIVE = 4
"""Most commands that run at once."""
LONGEST = 20_000
"""Requests after which commands count as endless."""
FAULT = st.sampled_from(("", "", "", "", *FAULTS))
NUMBER = st.integers(0, 5)
STATISTICS: Counter[str] = Counter()


class Interleavings(RuleBasedStateMachine):
    """Commands on one dataset, and the requests that are granted to them."""

    prefix: ClassVar[str] = "data"
    kinds: ClassVar[tuple[str, ...]] = (
        "precompute", "remove", "keep", "drop", "extend", "retry", "overwrite", "read", "index",
    )  # fmt: skip
    removable: ClassVar[tuple[str, ...]] = ("train-0", "train-2", "dev-0", "train-4")

    def __init__(self) -> None:
        super().__init__()
        self.closing = contextlib.ExitStack()
        self.folder = self.closing.enter_context(tempfile.TemporaryDirectory(prefix="interleavings-"))
        self.simulation = Simulation()
        self.closing.enter_context(self.simulation.patched())
        self.corpus = self.closing.enter_context(toys.toy_clips())
        self.store = SimulatedStore(self.simulation, self.prefix)
        """Of the test itself: its requests are granted at once."""
        self.commands: list[tuple[str, Process]] = []
        self.drivers: list[toys.Driver] = []
        self.begun: Counter[str] = Counter()
        self.killed = self.damaged = self.drain = self.retried = False
        self.known: dict[bytes, Any] = {}

    # Commands

    def other_store(self, prefix: str = "") -> SimulatedStore:
        """Returns the store of another process."""
        return SimulatedStore(self.simulation, prefix or self.prefix)

    def work_of(self, kind: str, name: str, manifest: Manifest | None = None) -> Callable[[], Any]:
        """Returns a command, which has made no request yet; `name` is the clip to be removed."""
        self.begun[kind] += 1
        store = self.other_store()
        match kind:
            case "remove":
                return lambda: remove_clips(store, [name], ignore_unknown=True)
            case "keep" | "drop":
                return lambda: toys.repair(store, kind)
            case "index":
                return lambda: rebuild_index(store)
            case "read":
                return lambda: toys.read_all(store)
        option = {"extend": "extend", "retry": "retry_rejects", "overwrite": "overwrite"}.get(kind)
        manifest = manifest or (toys.GROWN if kind == "extend" else toys.FIRST)
        made = toys.driver(self.simulation, self.folder, manifest, **{option: True} if option else {})
        self.drivers.append(made)
        return made.execute

    @initialize(
        drain=st.booleans(), finished=st.booleans(),
        numbers=st.lists(st.tuples(NUMBER, NUMBER), min_size=2, max_size=ALIVE),
    )  # fmt: skip
    def start(self, drain: bool, finished: bool, numbers: list[tuple[int, int]]) -> None:
        """An output that is empty, or finished, and the first commands."""
        self.drain = drain
        if finished:
            self.alone(self.kinds[0])
            self.begun.clear()
        for kind, name in numbers:
            self.begin(kind, name)

    @property
    def alive(self) -> int:
        return sum(not process.ended for _, process in self.commands)

    @precondition(lambda self: self.alive < ALIVE)
    @rule(kind=st.integers(0, 8), name=NUMBER)
    def begin(self, kind: int, name: int) -> None:
        """Another command. After --overwrite late shards of an addition would be strays: the two exclude each other."""
        chosen = self.kinds[kind % len(self.kinds)]
        added = self.begun["extend"] + self.begun["retry"]
        replaced = self.begun["overwrite"]
        if {"extend": replaced, "retry": replaced, "overwrite": added}.get(chosen):
            chosen = self.kinds[0]
        work = self.work_of(chosen, self.removable[name % len(self.removable)])
        self.commands.append((chosen, self.simulation.process(chosen, work)))

    @precondition(lambda self: self.simulation.requests)
    @rule(turns=st.lists(st.tuples(NUMBER, FAULT), min_size=8))
    def grant(self, turns: list[tuple[int, str]]) -> None:
        """Single requests, each of any thread."""
        for number, fault in turns:
            waiting = self.simulation.requests
            if waiting:
                self.take(waiting[number % len(waiting)], fault)

    @precondition(lambda self: self.simulation.requests)
    @rule(number=NUMBER, most=st.integers(1, 80))
    def run_on(self, number: int, most: int) -> None:
        """One process runs on while all others pause."""
        waiting = self.simulation.requests
        process = waiting[number % len(waiting)].process
        for _ in range(most):
            mine = [task for task in self.simulation.requests if task.process is process]
            if mine:
                self.take(mine[0])

    @precondition(lambda self: self.simulation.requests)
    @rule(number=NUMBER, lives_on=st.booleans())
    def kill(self, number: int, lives_on: bool) -> None:
        """A command or an actor dies. An actor may live on, although its driver takes it for dead."""
        waiting = self.simulation.requests
        process = waiting[number % len(waiting)].process
        actors = [one for made in self.drivers for one in made.actors if one.process is process]
        self.killed = True
        for one in actors:
            one.lose()
        if not (lives_on and actors):
            self.simulation.kill(process)
        self.simulation.settle()

    @precondition(lambda self: not self.damaged and self.tars)
    @rule(number=NUMBER, share=st.floats(0, 0.999))
    def damage(self, number: int, share: float) -> None:
        """One bit of a stored tar flips."""
        self.damaged = True
        key = self.tars[number % len(self.tars)]
        data, put_id = self.simulation.objects[key]
        at = int(share * len(data))
        self.simulation.objects[key] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], put_id
        self.simulation.log.append(f"damage {key}")

    @property
    def tars(self) -> list[str]:
        return sorted(
            key for key in self.simulation.objects if key.startswith(self.prefix) and key.endswith(".tar")
        )

    @rule()
    def mend(self) -> None:
        """The spoilt video is replaced. (Always possible, so that no example ends for want of a rule.)"""
        self.corpus.mended = True

    def take(self, task: Task, fault: str = "") -> None:
        self.simulation.grant(task, fault)
        self.check_objects()

    def check_objects(self) -> None:
        """After each request: index.json describes the stored tars exactly, unless `changed.json` says to look."""
        objects = self.simulation.objects
        stored = objects.get(f"{self.prefix}/{INDEX_JSON}")
        if stored is None or self.damaged:
            return
        if stored[0] not in self.known:
            self.known[stored[0]] = open_finished(self.store)
        for unit in self.known[stored[0]].units:
            data, _ = objects.get(f"{self.prefix}/{unit.tar}", (b"", ""))
            if data and data not in self.known:
                with memoryview(data) as view:
                    self.known[data] = make_marker(build_index(view))
            same = self.known.get(data) == unit
            assert same or f"{self.prefix}/{CHANGED_JSON}" in objects, (
                f"{unit.tar} is gone, and nothing says so"
            )

    def check_outcome(self, kind: str, process: Process) -> None:
        """A command fails for a reason that the run gave it, with the exit code of that reason."""
        allowed: tuple[type[BaseException], ...] = ()
        if kind in ("remove", "index", "read"):
            allowed += (NoDataset,)
        if kind == "read":  # of an unfinished dataset, or one that is being changed
            allowed += (DatasetError,)
        if (
            kind == "index"
            or self.begun["drop"]
            or self.killed
            or self.simulation.counts.keys() & set(FAULTS)
        ):
            allowed += (UnitsOpen,)
        if process.faults:
            allowed += (Unavailable,)
        if kind in ("extend", "retry") or self.begun["extend"]:
            allowed += (UsageError,)
        if self.damaged or self.begun["drop"]:
            allowed += (DatasetError, TooManyRejects, UnitsOpen)
        if self.begun["overwrite"]:
            allowed += (SageError,)
        error = process.error
        if error is not None and not process.dead and not isinstance(error, allowed):
            raise AssertionError(f"{process} ended with {type(error).__name__}: {error}") from error

    def alone(self, kind: str, manifest: Manifest | None = None) -> None:
        """A command that nothing disturbs, to its end."""
        process = self.simulation.process(kind, self.work_of(kind, "", manifest))
        while waiting := self.simulation.requests:
            self.take(waiting[0])
        assert process.ended, f"alone, {process} hangs"
        if process.error is not None:
            raise AssertionError(f"alone, {process} ended with {process.error!r}") from process.error

    def teardown(self) -> None:
        try:
            self.end()
        except AssertionError as error:
            error.add_note("\n".join(self.simulation.log))
            raise
        finally:
            for process in self.simulation.processes:
                self.simulation.kill(process)
            self.closing.close()

    def end(self) -> None:
        """The commands end or die; then the same command finishes the dataset, and nothing is left to be done."""
        turn = 0
        while self.drain and (waiting := self.simulation.requests):
            self.take(waiting[turn % len(waiting)])
            turn += 1
            assert turn < LONGEST, "the commands do not end"
        for kind, process in self.commands:
            if process.ended:
                self.check_outcome(kind, process)
            else:
                assert not self.drain, f"{process} hangs"
        STATISTICS.update(self.simulation.counts)
        STATISTICS.update({f"command {kind}": count for kind, count in self.begun.items()})
        STATISTICS.update(
            {"examples": 1, "examples with a death": self.killed, "examples with damage": self.damaged}
        )
        for process in self.simulation.processes:
            self.simulation.kill(process)
        removed = removed_keys(self.store)
        self.corpus.mended = self.corpus.mended or self.damaged or bool(self.begun["retry"])
        last, clips = self.finish()
        before = dict(self.simulation.objects)
        self.alone(*last)
        assert self.simulation.objects == before, "one more run changes the dataset"
        self.check_whole({one.key for one in clips.clips} - removed, removed)

    def finish(self) -> tuple[tuple[str, Manifest], Manifest]:
        """Give the commands again that were begun. Returns the last one, and the clips that the dataset has to hold."""
        if self.begun["overwrite"] and not self.store.exists(DATASET_JSON):
            self.alone("overwrite")
        elif self.damaged:
            self.alone("keep")
        base, manifest = toys.FIRST, toys.FIRST
        if self.store.exists(DATASET_JSON):
            info = parse_info(self.store.get(DATASET_JSON), "")
            base = manifest = toys.GROWN if info.manifest == toys.GROWN.digest() else toys.FIRST
            if any(plan.manifest == toys.GROWN.digest() for plan in load_additions(self.store)):
                manifest = toys.GROWN
        again = self.retried = self.damaged or self.begun["retry"] > 0
        self.alone("retry" if again else "precompute", base)
        if manifest is not base:
            self.alone("extend")
        before = None
        while (
            again and before != self.simulation.objects
        ):  # what was cut off is ended first, then all else is tried
            before = dict(self.simulation.objects)
            self.alone("retry", manifest)
        return ("extend" if manifest is not base else "precompute", manifest), manifest

    def check_whole(self, wanted: set[str], removed: frozenset[str]) -> None:
        """The dataset holds these clips once, with their bytes, and nothing of removed ones."""
        problems = verify_dataset(self.store).problems
        assert not problems, problems
        keys = [f"{key:016x}" for key in open_dataset(self.store).records["key"].tolist()]
        assert len(keys) == len(set(keys)), "a clip is there twice"
        assert set(keys) <= wanted, "a clip came back"
        named = {reject_key(reject) for _, reject in current_rejects(open_dataset(self.store))}
        assert wanted - set(keys) <= named - removed, "a clip is gone, and no reject names it"
        assert wanted <= set(keys) or not self.retried, "a clip is gone after all was tried again"
        toys.read_all(self.store)
        assert not list_units(self.store).superseded
        stored = [
            data for key, (data, _) in self.simulation.objects.items() if key.startswith(f"{self.prefix}/")
        ]
        for one in (*toys.GROWN.clips, *toys.OTHER.clips):
            gone = one.key not in removed or not any(toys.BYTES[one.key][:2048] in data for data in stored)
            assert gone, f"data of {one.id} are still there"


class Merges(Interleavings):
    """Merges of the same two datasets into one output, and commands on that."""

    prefix = "merged"
    removable = ("train-0", "train-5", "dev-3")
    kinds = ("merge", "remove", "keep", "drop", "read", "index")

    def __init__(self) -> None:
        super().__init__()
        self.corpus.mended = True
        Interleavings.alone(self, "precompute")
        for key, stored in tuple(self.simulation.objects.items()):
            self.simulation.objects[key.replace("data/", "one/")] = stored
            del self.simulation.objects[key]
        Interleavings.alone(self, "precompute", toys.OTHER)
        self.begun.clear()

    def work_of(self, kind: str, name: str, manifest: Manifest | None = None) -> Callable[[], Any]:
        if kind != "merge":
            return super().work_of(kind, name, manifest)
        self.begun[kind] += 1
        store, sources = self.other_store(), [self.other_store("one"), self.other_store("data")]
        return lambda: merge_datasets(store, [open_dataset(source) for source in sources])

    def finish(self) -> tuple[tuple[str, Manifest], Manifest]:
        if self.damaged:  # what `keep` gives up a merge would not bring back
            self.alone("drop")
        self.alone("merge")
        return ("merge", toys.FIRST), Manifest((*toys.FIRST.clips, *toys.OTHER.clips))


def run(machine: type[Interleavings], examples: int, number: int | None, shrink: bool = True) -> None:
    """Raises the error of an interleaving that breaks the claim, as small as hypothesis finds it.

    Without a number the examples are the same each time.
    """
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=number is None,
        phases=phases, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine if number is None else seed(number)(machine), settings=chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--examples", type=int, default=2000, help="of precompute's commands; a fifth as many of merges"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, examples=10)
    begun = time.perf_counter()
    run(Interleavings, options.examples, options.seed)
    run(Merges, max(1, options.examples // 5), options.seed)
    print(f"{options.examples:,} examples and {max(1, options.examples // 5):,} of merges, every end whole")
    print(f"{time.perf_counter() - begun:.0f} s, {time.process_time():.0f} s of processor time")
    for name, count in sorted(STATISTICS.items()):
        print(f"{count:>10,} {name}")


if __name__ == "__main__":
    main()
