"""The processes that make the runs of an ablation: Ray actors, each of one core, or one share of a GPU."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sage_scale.config import Recipe
from sage_scale.errors import UsageError
from sage_scale.experiments.ablation_rows import Row
from sage_scale.experiments.ablation_run import Run, RunActor
from sage_scale.precompute.pool import PASSED_ON
from sage_scale.precompute.ray_session import ray_session, sigterm_as_interrupt

Finished = tuple[Run, Row, str, float]
"""Run, its row (empty after a failure), the reason of the failure, seconds."""


class Pool(Protocol):
    """Processes that make runs."""

    count: int

    @property
    def idle(self) -> int:
        """Returns how many runs could start now."""
        ...

    def language_model(self, recipe: Recipe, data: str, folder: Path) -> str:
        """Makes a language model; returns the reason of a failure, else nothing."""
        ...

    def start(self, run: Run) -> None:
        """Starts a run; one must be idle."""
        ...

    def finished(self) -> list[Finished]:
        """Returns runs that have ended, after a second at most."""
        ...


class RayPool:
    """Ray actors, one a run at a time; one whose process is lost is replaced."""

    def __init__(self, recipe: Recipe, runs: int) -> None:
        import ray

        settings, there = recipe.precompute, ray.cluster_resources()
        free, self._gpus = max(1, int(there.get("CPU", 1))), settings.gpus_per_actor
        if self._gpus:
            free = min(free, int(there.get("GPU", 0) / self._gpus))
        if not free:
            raise UsageError(
                f"precompute.gpus_per_actor={self._gpus:g}, and Ray has {there.get('GPU', 0):g} GPUs: set it to 0, or "
                "join a cluster with GPUs (precompute.address)"
            )
        self.count = min(settings.actors or free, free, runs)
        self._all: list[Any] = []
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Run, Any, float]] = {}

    @property
    def idle(self) -> int:
        return self.count - len(self._running)

    def language_model(self, recipe: Recipe, data: str, folder: Path) -> str:
        actor = self._taken()
        found, lost = self._result(actor.language_model.remote(recipe, data, folder), actor)
        return lost or found

    def start(self, run: Run) -> None:
        actor = self._taken()
        self._running[actor.run.remote(run)] = (run, actor, time.monotonic())

    def finished(self) -> list[Finished]:
        import ray

        ready, _ = ray.wait(list(self._running), timeout=1.0)
        ended: list[Finished] = []
        for reference in ready:
            run, actor, since = self._running.pop(reference)
            found, lost = self._result(reference, actor)
            row, failure = ({}, lost) if lost else found
            ended.append((run, row, failure, time.monotonic() - since))
        return ended

    def end(self) -> None:
        """Ends all processes."""
        import ray

        for actor in self._all:
            with contextlib.suppress(Exception):
                ray.kill(actor)

    def _taken(self) -> Any:
        """Returns an idle actor. The first are made when they are needed, since precompute uses the cores before."""
        return self._idle.pop() if self._idle else self._new()

    def _new(self) -> Any:
        import ray

        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
        actor = ray.remote(RunActor).options(num_cpus=1, num_gpus=self._gpus)
        self._all.append(actor.remote(variables, os.getcwd(), threads))
        return self._all[-1]

    def _result(self, reference: Any, actor: Any) -> tuple[Any, str]:
        """Returns the result of an actor's call, and makes it idle again; (None, reason) where its process ended."""
        import ray

        try:
            found = ray.get(reference)
        except ray.exceptions.RayError as error:
            with contextlib.suppress(Exception):
                ray.kill(actor)
            return None, f"its process ended ({type(error).__name__}: killed, or out of memory)"
        self._idle.append(actor)
        return found, ""


@contextlib.contextmanager
def ray_pool(recipe: Recipe, runs: int) -> Iterator[RayPool]:
    """Yields processes for so many runs on the cluster that the recipe's `precompute.address` names, or on this
    machine."""
    with ray_session(recipe), sigterm_as_interrupt():  # Ray sets a handler of its own when it starts
        pool = RayPool(recipe, runs)
        try:
            yield pool
        finally:
            pool.end()
