"""Asks Ray's autoscaler for the nodes that the units left can use, and gives them up as units are done.

A pool has as many actors as the living nodes have room for, so that none of them waits for a node: without a request
an autoscaler would never add one. The request is the size of the whole cluster, one bundle of resources for each unit
left, up to `precompute.actors`. Ray keeps one request a cluster; it is repeated, since another job's end withdraws it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from sage_scale.config import Recipe
from sage_scale.precompute.memory import MB, least_memory_mb
from sage_scale.untrusted.printer import tell

MOST_REQUESTED = 1000
"""Actors that are asked for where `precompute.actors` is 0; the autoscaler's own maximum counts beside it."""

Bundle = dict[str, float]
"""Amount by name of a resource."""


def request(bundles: list[Bundle]) -> None:
    """Replaces the cluster's request: the autoscaler makes room for all these bundles at once."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


class ResourceRequests:
    """The requests of one job."""

    def __init__(self, recipe: Recipe, send: Callable[[list[Bundle]], None] = request) -> None:
        """`send` replaces the cluster's request."""
        settings = recipe.precompute
        self._send, self._most = send, settings.actors or MOST_REQUESTED
        # The least memory: an autoscaler's idea of a node's memory is less than the node then has.
        self.bundle: Bundle = {"CPU": 1, "memory": least_memory_mb(recipe) * MB}
        if settings.gpus_per_actor > 0:
            self.bundle["GPU"] = settings.gpus_per_actor
        self.asked = 0
        """Actors of the last request."""
        self._failed = False

    def ask(self, actors: int) -> None:
        """Asks for room for so many actors. A failure is printed once: the job goes on with the nodes that it has."""
        self.asked = min(actors, self._most)
        try:
            self._send([self.bundle] * self.asked)
        except Exception as error:  # of the autoscaler's client, which raises plain exceptions
            if not self._failed:
                tell(f"the cluster's autoscaler cannot be asked for nodes ({type(error).__name__}: {error})")
            self._failed = True

    def withdraw(self) -> None:
        """Takes the request back, where one was made."""
        if self.asked:
            self.asked = 0
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._send([])
