"""Ray: starting or joining a cluster, and a pool of actors that each own one work unit at a time.

An actor that dies (killed, out of memory, its node lost) is restarted by Ray up to `precompute.max_restarts` times and
replaced by a new one after that; its unit comes back as `UnitFailed`, and the driver decides what becomes of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sage_scale.config import Recipe
from sage_scale.errors import SageError, UnitsOpen, UsageError
from sage_scale.precompute.description import Environment
from sage_scale.precompute.events import ClipDone, Event, UnitDone, UnitFailed
from sage_scale.precompute.memory import memory_budget_mb, room_for_actors
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.scratch import ray_folder
from sage_scale.untrusted.printer import tell

_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
CONNECT_S = 10.0
"""How long a cluster's address is tried, seconds."""
LOOK_EVERY_S = 10.0
"""How often the cluster is looked at for room for more actors, seconds."""
ENDED = (
    "Ray has ended (was its gcs_server or raylet killed, or out of memory?): what is done stays done, run the same "
    "command again"
)
ENDED_S = 5.0
"""How long a call of Ray may still block once Ray has ended, seconds."""
_left_behind = False
"""Whether a Ray of this process ended so; a process has no other one after it."""
LOST_IN_A_ROW = 20
"""Actors that may fail to start, one after the other without any clip done in between, before the run ends."""


@contextlib.contextmanager
def ray_session(recipe: Recipe) -> Iterator[None]:
    """Ray for the time of a run, started here or joined.

    Joined is what `precompute.address` or RAY_ADDRESS names, or the session this process has already; without any
    of these one is started, which listens on the loopback interface alone, and ended with the run. Raises UsageError
    for a wrong address.
    """
    # Ray warns about these at each start; neither changes anything here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        _hush()
        yield
        return
    with contextlib.ExitStack() as folder:
        address = recipe.precompute.address or os.environ.get("RAY_ADDRESS", "")
        if address:
            _join(address)
        else:
            temporary = folder.enter_context(ray_folder())
            with _on_loopback():
                _start_here(recipe, str(temporary))
        _hush()
        over = threading.Event()
        threading.Thread(target=_end_with_ray, args=[over], name="ray-ended", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            if ray_ended():
                _leave_behind()
            else:
                ray.shutdown()


def _join(address: str) -> None:
    import ray

    try:
        _knock(address)
        ray.init(address=address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"no Ray cluster at '{address}' ({first}); start one, or leave precompute.address empty"
        ) from None


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Has a Ray that is started here listen on 127.0.0.1 alone.

    On Linux Ray replaces that address by the machine's own one, and then listens on all interfaces, unless a variable
    forbids clusters, as it does on macOS and Windows. It is read when Ray is imported, and by Ray's processes.
    """
    from ray._private import ray_constants

    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    allowed, variable = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = allowed
        os.environ.pop(name)
        if variable is not None:
            os.environ[name] = variable


def ray_ended() -> bool:
    """Whether the gcs_server or raylet of a Ray that this process has started is gone.

    Ray itself waits for them for a minute, in silence, and then ends this process.
    """
    node = _head_node()
    return _left_behind or (
        node is not None
        and any(
            info.process.poll() is not None
            for kind in ("gcs_server", "raylet")
            for info in node.all_processes.get(kind, ())
        )
    )


def _end_with_ray(over: threading.Event) -> None:
    """Ends this process where Ray has ended and a call of it does not return, as Ray would after a minute or more."""
    while not over.wait(0.5):
        if ray_ended() and not over.wait(ENDED_S):
            tell(f"sage-scale: {ENDED}")
            _leave_behind()
            os._exit(UnitsOpen.exit_code)


def _leave_behind() -> None:
    """Ends what is left of a Ray whose gcs_server is gone: `ray.shutdown` would wait for it."""
    global _left_behind
    _left_behind = True
    import psutil

    below = []
    with contextlib.suppress(Exception):
        for infos in _head_node().all_processes.values():
            for info in infos:
                with contextlib.suppress(psutil.Error):
                    below += psutil.Process(info.process.pid).children(recursive=True)
        _head_node().kill_all_processes(check_alive=False, allow_graceful=False)
    for process in below:  # actors and agents of the raylet, some of which outlive it
        with contextlib.suppress(psutil.Error):
            process.kill()


def _head_node() -> Any:
    """Ray's own account of the processes that it started for this one; None where it joined others."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        node: Any = worker._global_node
        if node is not None and node.is_head() and node.all_processes is not None:
            return node
    return None


def _start_here(recipe: Recipe, temporary: str) -> None:
    """Start Ray on this machine; once more where it was too slow. Raises SageError where it is then, too."""
    import ray

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    actors = recipe.precompute.actors
    settings: dict[str, Any] = {
        "num_cpus": max(actors, cores) if actors else None,
        "object_store_memory": max(recipe.precompute.object_store_mb, 80) * 2**20,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": temporary,
        **_QUIET,
    }
    for last in (False, True):
        try:
            ray.init(address="local", **settings)
            return
        except Exception as error:  # Ray's own, of no class of its own
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if last:
                raise SageError(
                    "Ray did not start on this machine in its time, twice: most often it is overloaded or out of "
                    "memory. What is done stays done: run the same command again when it has room"
                ) from None


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _hush() -> None:
    """Ray prints pages of its own logs whenever a worker dies; the driver says it in one line."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        worker.print_to_stdstream  # noqa: B018  (an AttributeError where a later Ray has none)
        worker.print_to_stdstream = lambda *_, **__: None


@dataclass
class _Worker:
    handle: Any
    hello: Any = None
    """Pending answer to the first call, None once the actor is known to run."""
    unit: Unit | None = None
    events: Any = None
    """Ray's generator of the unit's events."""
    started: float = 0.0
    clips_done: int = 0
    timed_out: bool = False
    ending: bool = False
    """Told to end; its death is still to be seen."""

    @property
    def idle(self) -> bool:
        return self.hello is None and self.unit is None and not self.ending

    @property
    def waits_for(self) -> Any:
        return self.hello if self.hello is not None else self.events


class Pool:
    """Actors of one run. Use as a context manager; leaving it ends every actor, whatever it is doing."""

    def __init__(
        self,
        recipe: Recipe,
        make: Callable[[int], Any],
        most: int,
        greet: Callable[[Environment], str],
    ) -> None:
        """`make` gives a new actor handle (of actor.UnitWorker) with a memory budget in MB; `most` actors make sense at
        all; `greet` takes each actor's environment, may refuse it, and gives the digest of dataset.json."""
        self.recipe, self._make, self._greet = recipe, make, greet
        self._digest = ""
        self._lost_in_a_row = 0
        self.memory_mb = 0
        """Budget of each actor, MB; known once the pool is entered."""
        self._workers: list[_Worker] = []
        self._most = most
        self._looked = 0.0

    def __enter__(self) -> Pool:
        self._add_actors()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for worker in self._workers if not ray_ended() else ():
            with contextlib.suppress(Exception):  # a session that is gone already has no actors
                ray.kill(worker.handle, no_restart=True)
        self._workers.clear()

    @property
    def idle(self) -> int:
        """Actors that are ready for a unit."""
        return sum(worker.idle for worker in self._workers)

    @property
    def busy(self) -> int:
        """Units being worked on."""
        return sum(worker.unit is not None for worker in self._workers)

    def start(self, unit: Unit, tar_stored: bool, exact: bool = False) -> None:
        """Give the unit to an idle actor. `exact` makes the actor go clip by clip and wait until each of
        its events was seen, so that the clip in work at its death is known."""
        worker = next(worker for worker in self._workers if worker.idle)
        options: dict[str, Any] = {"num_returns": "streaming"}
        if exact:
            options["_generator_backpressure_num_objects"] = 1
        worker.events = worker.handle.work.options(**options).remote(unit, self._digest, tar_stored, exact)
        worker.unit, worker.started, worker.clips_done, worker.timed_out = unit, time.monotonic(), 0, False

    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]:
        """What the actors have to tell; waits for at most `timeout_s`. The last event of a unit frees its actor."""
        import ray

        self._end_overdue()
        self._look_round()
        by_source = {worker.waits_for: worker for worker in self._workers if worker.waits_for is not None}
        if not by_source:  # all idle: the schedule lets a store recover before a unit is tried again
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(by_source), num_returns=1, timeout=timeout_s, fetch_local=False)
        told: list[tuple[Unit, Event]] = []
        for source in ready:
            worker = by_source[source]
            if worker.hello is not None:
                self._greeted(worker)
            else:
                told.extend(self._next(worker))
        return told

    def _next(self, worker: _Worker) -> Iterator[tuple[Unit, Event]]:
        import ray

        if worker.ending:
            with contextlib.suppress(StopIteration, ray.exceptions.RayError):
                next(worker.events)
                return
            worker.ending, worker.events = False, None
            self._revive(worker)
            return
        unit = worker.unit
        assert unit is not None
        try:
            event = ray.get(next(worker.events))
        except StopIteration:  # every unit ends with UnitDone or UnitFailed, which was seen before
            raise AssertionError(f"the actor of unit {unit.name} ended without a word") from None
        except ray.exceptions.RayTaskError as error:
            event = UnitFailed(kind="error", message=_first_line(error), clip=self._clip(worker))
        except ray.exceptions.RayError as error:
            seconds = time.monotonic() - worker.started
            if worker.timed_out:
                limit = self.recipe.precompute.unit_timeout_s
                event = UnitFailed(
                    kind="time-out", message=f"took more than {limit:g} s", clip=self._clip(worker)
                )
            else:
                event = UnitFailed(
                    kind="killed",
                    message=f"its actor died after {seconds:.1f} s ({_cause(error)})",
                    clip=self._clip(worker),
                )
            worker.unit = worker.events = None
            self._revive(worker)
            yield unit, event
            return
        if isinstance(event, ClipDone):
            worker.clips_done += 1
            self._lost_in_a_row = 0
        elif isinstance(event, UnitFailed) and event.ends_actor:
            worker.unit, worker.ending = None, True
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.kill(worker.handle, no_restart=False)
        elif isinstance(event, UnitDone | UnitFailed):
            worker.unit = worker.events = None
        yield unit, event

    def _look_round(self) -> None:
        """End the run where Ray is no more; every few seconds, add actors where nodes have joined."""
        import ray

        if ray_ended():
            raise UnitsOpen(ENDED)
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        waiting = all(worker.hello is not None for worker in self._workers)
        if waiting and not any(node["Alive"] for node in ray.nodes()):
            raise UnitsOpen("Ray has lost its last node (was its raylet killed?): run the same command again")
        self._add_actors()

    def _add_actors(self) -> None:
        """As many actors as the recipe says or the cluster has room for by now."""
        import ray

        nodes = ray.nodes()
        if not self.memory_mb:
            self.memory_mb = memory_budget_mb(self.recipe, nodes)
        room = room_for_actors(self.recipe, nodes, self.memory_mb)
        while len(self._workers) < max(1, min(room, self._most)):
            worker = _Worker(self._make(self.memory_mb))
            self._call_hello(worker)
            self._workers.append(worker)

    @staticmethod
    def _clip(worker: _Worker) -> str:
        assert worker.unit is not None
        clips = worker.unit.clips
        return clips[worker.clips_done].id if worker.clips_done < len(clips) else ""

    def _end_overdue(self) -> None:
        import ray

        limit = self.recipe.precompute.unit_timeout_s
        for worker in self._workers:
            if worker.unit and not worker.timed_out and time.monotonic() - worker.started > limit:
                worker.timed_out = True
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    ray.kill(worker.handle, no_restart=False)

    def _call_hello(self, worker: _Worker) -> None:
        worker.hello = worker.handle.hello.remote()

    def _greeted(self, worker: _Worker) -> None:
        import ray

        reference, worker.hello = worker.hello, None
        try:
            environment = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _own(error) from None
        except ray.exceptions.ActorDiedError as error:
            if "creation task" in str(error):  # it would fail in the same way each time
                last = str(error).strip().splitlines()[-1]
                raise SageError(f"an actor could not start: {last.strip()}") from None
            self._revive(worker, error)
        except ray.exceptions.RayError as error:
            self._revive(worker, error)
        else:
            self._digest = self._greet(environment)

    def _revive(self, worker: _Worker, error: Exception | None = None) -> None:
        """Wait for Ray's restart of an actor, or put a new one in its place where Ray has given it up."""
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
        self._call_hello(worker)


def _own(error: Exception) -> Exception:
    cause = getattr(error, "cause", None)
    return (
        cause
        if isinstance(cause, SageError)
        else SageError(f"an actor could not start: {_first_line(error)}")
    )


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0] if text else 'no message'}"


def _cause(error: Exception | None) -> str:
    text = str(error)
    for sign, words in (
        ("OutOfMemory", "out of memory"),
        ("memory usage threshold", "out of memory"),
        ("node", "its node or process was lost"),
    ):
        if sign in text or sign in type(error).__name__:
            return words
    return "killed or crashed"
