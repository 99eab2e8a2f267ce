"""Simulated processes that share a bucket in memory (`simulated_bucket.py`) and give way before every request to it.

The product's code runs as it is: `S3Store`, `map_threads`, the actor's thread. Each process is a set of greenlets; each
request of one waits until the test grants it, with a fault or without. So the test decides the order of all requests,
and the same decisions give the same run.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

from greenlet import getcurrent, greenlet

from sage_scale import parallel
from sage_scale.precompute import schedule, worker
from sage_scale.retry import retry
from sage_scale.storage import s3

ATTEMPTS = 2
"""Attempts of a request before it fails, in place of six: faults then end it within reach of short examples."""
POOL_THREADS = 2
"""Most threads of a pool."""
FAULTS = ("lost before", "lost after", "409", "503")
"""An answer lost before or after the effect (a GET: body cut off), two conditional PUTs that clash, a busy server."""


class Killed(BaseException):
    """Ends a killed process at the request it waits for."""


class Task(greenlet):
    """A thread of a process."""

    def __init__(self, simulation: Simulation, process: Process, work: Callable[[], Any]) -> None:
        super().__init__(parent=simulation.main)
        self.process, self._work = process, work
        self.ready: Callable[[], bool] = lambda: True
        self.request = ""
        """The request that waits to be granted; empty while it waits for another thread."""
        self.begun = self.done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        self.begun = True
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error
        self.done = True


class Process:
    """Tasks that die together; the first one's end is the process's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: list[Task] = []
        self.dead = False
        self.faults = 0

    @property
    def ended(self) -> bool:
        return self.dead or self.tasks[0].done

    @property
    def error(self) -> BaseException | None:
        return self.tasks[0].error

    def __repr__(self) -> str:
        return self.name


class Simulation:
    """Processes, and the objects of their bucket by key."""

    def __init__(self) -> None:
        self.main = getcurrent()
        self.objects: dict[str, tuple[bytes, str]] = {}
        """Bytes and put-id."""
        self.processes: list[Process] = []
        self.counts: Counter[str] = Counter()
        """Requests, and faults by kind."""
        self.log: list[str] = []
        self.clock = 0.0
        self._fault = ""

    def process(self, name: str, work: Callable[[], Any]) -> Process:
        """Returns a new process, which runs to its first request."""
        process = Process(f"{name}-{len(self.processes)}")
        self.processes.append(process)
        self.task(process, work)
        if getcurrent() is self.main:
            self.settle()
        return process

    def task(self, process: Process, work: Callable[[], Any]) -> Task:
        """Returns a new thread of a process."""
        task = Task(self, process, work)
        process.tasks.append(task)
        return task

    @property
    def requests(self) -> list[Task]:
        """Threads that wait for a request to be granted."""
        return [
            task
            for process in self.processes
            for task in process.tasks
            if task.request and not task.done and not process.dead
        ]

    def grant(self, task: Task, fault: str = "") -> None:
        """Carry out the request of a task, with a fault or without."""
        conditional = task.request.startswith("PUT-IF-ABSENT")
        if fault == "409" and not conditional:
            fault = "503"
        self.counts["requests"] += 1
        if fault:
            self.counts[fault] += 1
            task.process.faults += 1
        self.log.append(f"{task.process} {task.request} {fault}".strip())
        self._fault, task.request = fault, ""
        task.switch()
        self.settle()
        if task.process.ended:
            self.log.append(f"{task.process} ended: {task.process.error!r}")

    def kill(self, process: Process) -> None:
        """End a process at once, between two requests."""
        if not process.ended:
            self.log.append(f"{process} killed")
        process.dead = True
        if getcurrent() is self.main:
            self.settle()

    def ask(self, request: str) -> str:
        """Wait until a request is granted; returns its fault. Without a process it is granted at once."""
        task = getcurrent()
        if not isinstance(task, Task):
            return ""
        if task.process.dead:
            raise Killed
        task.request = request
        self.main.switch()
        return self._fault

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait, in a process, for another thread of it."""
        task = getcurrent()
        assert isinstance(task, Task)
        if task.process.dead:
            raise Killed
        while not ready():
            task.ready = ready
            self.main.switch()

    def settle(self) -> None:
        """Run all threads to their next request, and those of dead processes to their end."""
        ran = True
        while ran:
            ran = False
            for process in tuple(self.processes):
                for task in tuple(process.tasks):
                    if task.done:
                        continue
                    if process.dead and task.begun:
                        task.throw(Killed)
                    elif process.dead:
                        task.done = True
                    elif not task.request and task.ready():
                        task.switch()
                    else:
                        continue
                    ran = True

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Threads, pauses and clocks of the product become the simulation's."""
        threading = SimpleNamespace(
            Thread=lambda target, **_: _Thread(self, target),
            Event=lambda: SimpleNamespace(wait=lambda: self.wait(bool)),
        )
        clock = SimpleNamespace(monotonic=lambda: self.clock)
        with contextlib.ExitStack() as stack:
            for module, name, value in (
                (parallel, "ThreadPoolExecutor", lambda threads: _Pool(self, threads)),
                (worker, "threading", threading),
                (worker, "queue", SimpleNamespace(Queue=lambda: _Queue(self))),
                (schedule, "time", clock),
                (s3, "ATTEMPTS", ATTEMPTS),
                (s3, "retry", lambda *given: retry(*given, sleep=lambda seconds: None)),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
            yield


class _Thread:
    def __init__(self, simulation: Simulation, target: Callable[[], Any]) -> None:
        self._simulation, self._target = simulation, target

    def start(self) -> None:
        self._task = self._simulation.task(_here().process, self._target)

    def join(self) -> None:
        self._simulation.wait(lambda: self._task.done)


class _Queue:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._items: deque[Any] = deque()
        self._open = 0

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._open += 1

    def get(self) -> Any:
        self._simulation.wait(lambda: bool(self._items))
        return self._items.popleft()

    def task_done(self) -> None:
        self._open -= 1

    def join(self) -> None:
        self._simulation.wait(lambda: not self._open)


class _Future:
    def __init__(self, simulation: Simulation, work: Callable[[], Any]) -> None:
        self._simulation, self._work = simulation, work
        self.done = False

    def carry_out(self) -> None:
        self._value, self._error = None, None
        try:
            self._value = self._work()
        except Exception as error:
            self._error = error
        self.done = True

    def result(self) -> Any:
        self._simulation.wait(lambda: self.done)
        if self._error:
            raise self._error
        return self._value


class _Pool:
    """Stands for ThreadPoolExecutor in a process; is one outside of processes."""

    def __init__(self, simulation: Simulation, threads: int) -> None:
        self._simulation = simulation
        self._real = None if isinstance(getcurrent(), Task) else ThreadPoolExecutor(threads)
        self._most, self._tasks = min(threads, POOL_THREADS), []  # type: ignore[var-annotated]
        self._todo: deque[_Future] = deque()

    def submit(self, work: Callable[..., Any], *given: Any) -> Any:
        if self._real:
            return self._real.submit(work, *given)
        future = _Future(self._simulation, lambda: work(*given))
        self._todo.append(future)
        if len(self._tasks) < self._most:
            self._tasks.append(self._simulation.task(_here().process, self._run))
        return future

    def _run(self) -> None:
        while self._todo:
            self._todo.popleft().carry_out()

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        if self._real:
            self._real.shutdown(wait, cancel_futures=cancel_futures)
        elif cancel_futures:
            self._todo.clear()
        elif wait:
            self._simulation.wait(lambda: all(task.done for task in self._tasks))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _here() -> Task:
    task = getcurrent()
    assert isinstance(task, Task)
    return task
