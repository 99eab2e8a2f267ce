"""A pool of Ray actors that each own one work unit at a time.

An actor that dies (killed, out of memory, its node lost) is restarted by Ray up to `precompute.max_restarts` times and
replaced by a new one after that; its unit comes back as `UnitFailed`, and the schedule decides whether it is retried.

The pool grows with the cluster and shrinks with the units left: an autoscaler is asked for nodes (autoscaling.py), new
nodes get actors, and actors without a unit end, so that their nodes become idle and go.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sage_scale.config import Recipe
from sage_scale.errors import SageError, UnitsOpen
from sage_scale.precompute.autoscaling import ResourceRequests
from sage_scale.precompute.environment import Environment
from sage_scale.precompute.memory import has_processors, memory_budget_mb, room_for_actors
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, Event, Failure, FramesDone, UnitDone, UnitFailed
from sage_scale.precompute.ray_session import (
    ENDED,
    ray_ended,
    ray_session,
    sigterm_as_interrupt,
    started_here,
)
from sage_scale.untrusted.printer import tell

PASSED_ON = ("AWS_", "SAGE_SCALE_", "XDG_DATA_HOME")
"""Variables of the driver that its actors get, by their beginning; a node of a cluster may lack them."""
LOOK_EVERY_S = 10.0
"""Seconds between two looks at the cluster for room for more actors, and two requests for nodes."""
LOST_IN_A_ROW = 20
"""Actors that may die one after the other, without any clip done in between, before the job ends."""


@dataclass
class _Worker:
    handle: Any
    environment: Any = None
    """Pending answer to the first call; None once the actor is known to run."""
    unit: Unit | None = None
    events: Any = None
    """Ray's generator of the unit's events."""
    started: float = 0.0
    clips_done: int = 0
    timed_out: bool = False
    ending: bool = False
    """Killed; its death is still to be seen."""

    @property
    def idle(self) -> bool:
        return self.environment is None and self.unit is None and not self.ending

    @property
    def pending(self) -> Any:
        return self.environment if self.environment is not None else self.events

    @property
    def clip(self) -> str:
        """Id of the first clip of the unit that was not reported done."""
        clips = self.unit.clips if self.unit else ()
        return clips[self.clips_done].id if self.clips_done < len(clips) else ""


class ActorPool:
    """Actors of one job. Use as a context manager; leaving it kills every actor."""

    def __init__(
        self,
        recipe: Recipe,
        make: Callable[[int], Any],
        units: int,
        check: Callable[[Environment], str],
        requests: ResourceRequests | None = None,
    ) -> None:
        """`make` returns a new actor handle (of worker.Worker) for a memory budget in MB; `units` are left, which
        limits the actors; `check` takes each actor's environment, may refuse it, and returns the digest of
        dataset.json; `requests` go to the cluster's autoscaler."""
        self.recipe, self._make, self._units, self._check = recipe, make, units, check
        self._requests = requests
        self.memory_mb = 0
        """Budget of each new actor, MB: the least one until a node has joined."""
        self._sized = False
        self._digest = ""
        self._lost_in_a_row = 0
        self._looked = 0.0
        self._workers: list[_Worker] = []

    def __enter__(self) -> ActorPool:
        self._follow_cluster()
        return self

    def __exit__(self, *_: object) -> None:
        if self._requests and not ray_ended():
            self._requests.withdraw()
        for worker in self._workers if not ray_ended() else ():
            _kill(worker, no_restart=True)
        self._workers.clear()

    @property
    def idle(self) -> int:
        """Actors that are ready for a unit."""
        return sum(worker.idle for worker in self._workers)

    @property
    def busy(self) -> int:
        """Units being worked on."""
        return sum(worker.unit is not None for worker in self._workers)

    def want(self, units: int) -> None:
        """Take the number of units that are left, those in progress included."""
        self._units = units

    def start(self, unit: Unit, tar_stored: bool, alone: bool = False) -> None:
        """Give the unit to an idle actor. `alone` makes the actor go clip by clip and wait until each of its events was
        seen, so that the clip that was being made at its death is known."""
        worker = next(worker for worker in self._workers if worker.idle)
        options: dict[str, Any] = {"num_returns": "streaming"}
        if alone:
            options["_generator_backpressure_num_objects"] = 1
        worker.events = worker.handle.work.options(**options).remote(unit, self._digest, tar_stored, alone)
        worker.unit, worker.started, worker.clips_done, worker.timed_out = unit, time.monotonic(), 0, False

    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]:
        """Returns new events; waits for at most `timeout_s`. The last event of a unit frees its actor."""
        import ray

        self._kill_overdue()
        self._look_at_cluster()
        by_source = {worker.pending: worker for worker in self._workers if worker.pending is not None}
        if not by_source:  # all idle: the schedule lets a store recover before a unit is tried again
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(by_source), num_returns=1, timeout=timeout_s, fetch_local=False)
        events: list[tuple[Unit, Event]] = []
        for source in ready:
            worker = by_source[source]
            if worker.environment is not None:
                self._take_environment(worker)
            else:
                events.extend(self._next(worker))
        return events

    def _next(self, worker: _Worker) -> Iterator[tuple[Unit, Event]]:
        import ray

        if worker.ending:
            with contextlib.suppress(StopIteration, ray.exceptions.RayError):
                next(worker.events)
                return
            worker.ending, worker.events = False, None
            self._restart(worker)
            return
        unit = worker.unit
        assert unit is not None
        died = False
        try:
            event: Event = ray.get(next(worker.events))
        except StopIteration:  # every unit ends with UnitDone or UnitFailed, which was seen before
            raise AssertionError(f"the actor of unit {unit.name} ended without a last event") from None
        except ray.exceptions.RayTaskError as error:
            event = UnitFailed(kind="error", message=_first_line(error), clip=worker.clip)
        except ray.exceptions.RayError as error:
            died = True
            kind: Failure = "time-out" if worker.timed_out else "killed"
            message = f"took more than {self.recipe.precompute.unit_timeout_s:g} s"
            if not worker.timed_out:
                seconds = time.monotonic() - worker.started
                message = f"its actor died after {seconds:.1f} s ({_cause(error)})"
            event = UnitFailed(kind=kind, message=message, clip=worker.clip)
        if isinstance(event, ClipDone):
            worker.clips_done += 1
            self._lost_in_a_row = 0
        elif isinstance(event, FramesDone):
            worker.started = time.monotonic()  # `unit_timeout_s` counts from the last sign of life
        elif isinstance(event, UnitFailed) and event.ends_actor:
            worker.unit, worker.ending = None, True
            _kill(worker)
        elif isinstance(event, UnitDone | UnitFailed):
            worker.unit = worker.events = None
        if died:
            self._restart(worker)
        yield unit, event

    def _look_at_cluster(self) -> None:
        """End the job where Ray has ended; every few seconds, follow the cluster and the units left."""
        import ray

        if ray_ended():
            raise UnitsOpen(ENDED)
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        starting = all(worker.environment is not None for worker in self._workers)
        if starting and not any(node["Alive"] for node in ray.nodes()):
            raise UnitsOpen("Ray has lost its last node (was its raylet killed?): run the same command again")
        self._follow_cluster()

    def _follow_cluster(self) -> None:
        """Have as many actors as the recipe says or the cluster has room for by now, and none without a unit."""
        import ray

        nodes = ray.nodes()
        if not self._sized:
            self.memory_mb = memory_budget_mb(self.recipe, nodes)
            self._sized = any(has_processors(node) for node in nodes)
        if self._requests:
            first = not self._requests.asked
            running = sum(worker.environment is None for worker in self._workers)
            self._requests.ask(self._units if self._units > running else 0)
            if first and not self._sized:
                tell(
                    f"the cluster has no node for actors yet: its autoscaler is asked for {self._requests.asked:,}"
                )
        room = room_for_actors(self.recipe, nodes, self.memory_mb)
        while len(self._workers) < max(1, min(room, self._units)):
            worker = _Worker(self._make(self.memory_mb))
            worker.environment = worker.handle.environment.remote()
            self._workers.append(worker)
        # Those that wait for a node go first: they would keep the autoscaler from ending others.
        spare = sorted(
            (worker for worker in self._workers if worker.unit is None and not worker.ending),
            key=lambda worker: worker.idle,
        )
        for worker in spare[: max(0, len(self._workers) - max(1, self._units))]:
            _kill(worker, no_restart=True)
            self._workers.remove(worker)

    def _kill_overdue(self) -> None:
        limit = self.recipe.precompute.unit_timeout_s
        for worker in self._workers:
            if worker.unit and not worker.timed_out and time.monotonic() - worker.started > limit:
                worker.timed_out = True
                _kill(worker)

    def _take_environment(self, worker: _Worker) -> None:
        import ray

        reference, worker.environment = worker.environment, None
        try:
            environment = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SageError):
                raise cause from None
            raise SageError(f"an actor could not start: {_first_line(error)}") from None
        except ray.exceptions.RayError as error:
            # A constructor that raised would raise again each time.
            if isinstance(error, ray.exceptions.ActorDiedError) and "creation task" in str(error):
                last = str(error).strip().splitlines()[-1]
                raise SageError(f"an actor could not start: {last.strip()}") from None
            self._restart(worker, error)
        else:
            self._digest = self._check(environment)

    def _restart(self, worker: _Worker, error: Exception | None = None) -> None:
        """Wait for Ray's restart of an actor, or make a new one where Ray has given it up."""
        import ray

        self._lost_in_a_row += 1
        if self._lost_in_a_row > LOST_IN_A_ROW:
            raise UnitsOpen(
                f"{self._lost_in_a_row} actors in a row died before finishing a clip"
                + (f" (last: {_cause(error)})" if error else "")
                + "; look at the machine's memory and Ray's logs, then run the same command again"
            )
        if isinstance(error, ray.exceptions.ActorDiedError):
            worker.handle = self._make(self.memory_mb)
        worker.environment = worker.handle.environment.remote()


@contextlib.contextmanager
def ray_actors(
    recipe: Recipe, make: Callable[[int], Any], units: int, check: Callable[[Environment], str]
) -> Iterator[ActorPool]:
    """Yields a pool in a Ray session of its own, or the one that is there; SIGTERM ends it as Ctrl-C does."""
    # The handler comes after Ray's start, which sets one of its own.
    with ray_session(recipe), sigterm_as_interrupt():
        requests = None if started_here() else ResourceRequests(recipe)
        with ActorPool(recipe, make, units, check, requests) as pool:
            yield pool


def new_actor(
    worker: type, recipe: Recipe, url: str, give_up: frozenset[str], memory_mb: int, **more: Any
) -> Any:
    """Returns a handle to a new Ray actor of the class `worker` (worker.Worker) with that memory budget."""
    import ray

    settings = recipe.precompute
    actor: Any = ray.remote(worker).options(
        num_cpus=1,
        num_gpus=settings.gpus_per_actor,
        memory=memory_mb * 2**20,
        max_restarts=settings.max_restarts,
        max_task_retries=0,
    )
    # Handed over as an argument rather than as Ray's runtime environment, which Ray writes to its logs.
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    folder = ""
    with contextlib.suppress(FileNotFoundError):  # Ray removed a submitted job's: then all paths are absolute
        folder = os.getcwd()
    return actor.remote(recipe, url, give_up, folder, variables, memory_mb, **more)


def _kill(worker: _Worker, no_restart: bool = False) -> None:
    import ray

    with contextlib.suppress(Exception):  # it is dead already, or the session is gone
        ray.kill(worker.handle, no_restart=no_restart)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0] if text else 'no message'}"


def _cause(error: Exception | None) -> str:
    text = f"{type(error).__name__} {error}"
    if "OutOfMemory" in text or "memory usage threshold" in text:
        return "out of memory"
    return "its node or process was lost" if "node" in text else "killed or crashed"
