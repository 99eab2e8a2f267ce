"""Asks Ray's autoscaler for the nodes that the units left can use, and gives them up as units are done.

A pool has as many actors as the living nodes have room for, so that none of them waits for a node: without a request
an autoscaler would never add one. The request is the size of the whole cluster, one bundle of resources for each unit
left, up to `precompute.actors`. It ends once each unit left has an actor, since autoscalers may keep idle nodes for it
beside busy ones. Ray keeps one request a cluster; it is repeated, since the end of another job withdraws it.

Ray's second autoscaler adds nothing at all for a request beyond its maximum. It tells nobody that maximum, only that a
request was refused, so requests are bisected between what fits and what was refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from sage_scale.config import Recipe
from sage_scale.precompute.memory import MB, least_memory_mb
from sage_scale.untrusted.printer import tell

MOST_REQUESTED = 1000
"""Actors that are asked for where `precompute.actors` is 0; the autoscaler's own maximum counts beside it."""

STATUS_S = 5
"""Time limit for asking what became of a request, seconds."""

Bundle = dict[str, float]
"""Amount by name of a resource."""


def request(bundles: list[Bundle]) -> None:
    """Replaces the cluster's request: the autoscaler makes room for all these bundles at once."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def refused() -> int:
    """Returns the bundles of the request that the autoscaler has refused as a whole; 0 where it has not."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if not is_autoscaler_v2():
        return 0
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    reply = GetClusterStatusReply()
    reply.ParseFromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=STATUS_S))
    constraints = reply.autoscaling_state.infeasible_cluster_resource_constraints
    return sum(part.count for constraint in constraints for part in constraint.resource_requests)


class ResourceRequests:
    """The requests of one job."""

    def __init__(
        self,
        recipe: Recipe,
        send: Callable[[list[Bundle]], None] = request,
        refused: Callable[[], int] = refused,
    ) -> None:
        """`send` replaces the cluster's request; `refused` returns the bundles of a request that was refused."""
        settings = recipe.precompute
        self._send, self._refused, self._most = send, refused, settings.actors or MOST_REQUESTED
        self._fits, self._too_many = 0, 10**9
        # The least memory: an autoscaler's idea of a node's memory is less than the node then has.
        self.bundle: Bundle = {"CPU": 1, "memory": least_memory_mb(recipe) * MB}
        if settings.gpus_per_actor > 0:
            self.bundle["GPU"] = settings.gpus_per_actor
        self.asked = 0
        """Actors of the last request."""
        self._failed = False

    def ask(self, actors: int) -> None:
        """Asks for room for so many actors. A failure is printed once: the job goes on with the nodes that it has."""
        if not actors:
            self.withdraw()
            return
        try:
            self._learn()
            self.asked = min(actors, self._most)
            if self.asked >= self._too_many:
                self.asked = (self._fits + self._too_many) // 2
            self._send([self.bundle] * self.asked)
        except Exception as error:  # of the autoscaler's client, which raises plain exceptions
            if not self._failed:
                tell(f"the cluster's autoscaler cannot be asked for nodes ({type(error).__name__}: {error})")
            self._failed = True

    def _learn(self) -> None:
        """Takes what became of the last request. A refusal is certain; what is not refused yet may be later."""
        count = self._refused() if self.asked else 0
        if count:
            self._too_many = min(self._too_many, count)
        else:
            self._fits = max(self._fits, self.asked)
        if self._fits >= self._too_many:
            self._fits = 0

    def withdraw(self) -> None:
        """Takes the request back, where one was made."""
        if self.asked:
            self.asked = 0
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._send([])
