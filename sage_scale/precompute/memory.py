"""Memory: how many actors the nodes of a cluster have room for, and a guard that ends an actor above its budget.

Each actor reserves its budget (`precompute.actor_memory_mb`) as Ray's resource `memory`, so that no node is given more
actors than it has memory for; the guard holds each actor to it. An actor that grows beyond reports the clip to its
driver and is killed, before the machine or other actors run out of memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil

from sage_scale.config import Recipe
from sage_scale.errors import UsageError
from sage_scale.precompute.frozen_backbone import weights_mb
from sage_scale.segmentation.tagger import has_model

MB = 2**20
FLOOR_MB = 1024
"""Least budget that is chosen for an actor without a neural network."""
FLOOR_TAGGER_MB = 1280
"""Least budget that is chosen for one with torch and a tagger's model, which takes up to 0.6 GB (that of 2026)."""
FLOOR_UNKNOWN_MB = 3072
"""Least budget that is chosen for one whose backbone runs on a GPU, or lies where its driver cannot see it."""
BATCH_MB = 384
"""Activations of 32 frames of 224 x 224 pixels in a frozen backbone, with room to spare."""
CEILING_MB = 8192
"""Most that is chosen where a backbone needs no more; a recipe may give more."""
LOOK_EVERY_S = 0.05
GRACE_S = 5.0
"""An actor that lives so long after it reported to be above its budget ends itself, seconds."""
FAR_ABOVE_MB = 1024
"""An actor so much above its budget (or half of the budget, if that is more) ends itself at once."""


def least_memory_mb(recipe: Recipe) -> int:
    """Returns the least budget of one actor, MB: `precompute.actor_memory_mb`, or enough for its neural networks.

    An actor with a ResNet-34 or DINOv2-S/14 gets 1.6 GB, of which it uses 0.8 (docs/results/precompute.md), so that the
    CPUs of machines with 2 GB each are full, too.
    """
    settings, vision = recipe.precompute, recipe.vision
    if settings.actor_memory_mb:
        return settings.actor_memory_mb
    if vision.kind != "features" or vision.backbone == "keypoints":
        return FLOOR_TAGGER_MB if has_model(recipe.segmentation) else FLOOR_MB
    weights = weights_mb(vision)
    if weights is None or settings.gpus_per_actor > 0:
        return FLOOR_UNKNOWN_MB
    activations = BATCH_MB * vision.backbone_batch / 32 * (vision.crop / 224) ** 2
    return int(FLOOR_MB + 2 * weights + activations)  # while they are loaded, weights are there twice


def memory_budget_mb(recipe: Recipe, nodes: Iterable[Mapping[str, Any]]) -> int:
    """Returns the budget of one actor: the recipe's, or an equal share of the smallest node that can run actors.

    `nodes` are those of `ray.nodes()`. Every actor of a job has the same budget.
    """
    least = least_memory_mb(recipe)
    if recipe.precompute.actor_memory_mb:
        return least
    shares = []
    for resources in _working(nodes):
        if actors := _by_processors(resources, recipe.precompute.gpus_per_actor):
            shares.append(int(_memory_mb(resources) / actors))
    return max(least, min([CEILING_MB, *shares]) if shares else 0)


def room_for_actors(recipe: Recipe, nodes: Iterable[Mapping[str, Any]], budget_mb: int) -> int:
    """Returns how many actors the nodes have processors (or GPUs) and memory for, at most `precompute.actors`.

    Raises UsageError where there are nodes, but none with a GPU, or none with so much memory.
    """
    settings = recipe.precompute
    alive = list(_working(nodes))
    if settings.gpus_per_actor > 0 and alive and not any(node.get("GPU", 0) for node in alive):
        raise UsageError(
            f"precompute.gpus_per_actor={settings.gpus_per_actor:g}, but the cluster has no GPU; set it to 0 to use "
            "CPUs"
        )
    by_memory = [int(_memory_mb(node) / budget_mb) for node in alive]
    if alive and not any(by_memory):
        largest = max(_memory_mb(node) for node in alive)
        raise UsageError(
            f"no node has the {budget_mb:,} MB of one actor (the largest has {largest:,.0f} MB for Ray): lower "
            "precompute.actor_memory_mb, or precompute.object_store_mb"
        )
    by_processors = [_by_processors(node, settings.gpus_per_actor) for node in alive]
    room = sum(min(pair) for pair in zip(by_memory, by_processors))
    return min(settings.actors, sum(by_memory)) if settings.actors else room


class MemoryGuard:
    """Watches this process's own memory (anonymous pages, not shared ones) on a thread."""

    def __init__(self, budget_mb: int) -> None:
        """`budget_mb` 0 watches nothing."""
        self.budget_mb = budget_mb
        self.peak_mb = 0.0
        """Highest reading so far."""
        self._tell: Callable[[str], None] | None = None
        self._told_at = 0.0
        if budget_mb:
            threading.Thread(target=self._watch, name="memory guard", daemon=True).start()

    def on_excess(self, tell: Callable[[str], None] | None) -> None:
        """Call `tell` with one line, once, when the budget is exceeded; None removes it."""
        self._tell = tell

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            used = own_memory_mb()
            self.peak_mb = max(self.peak_mb, used)
            if used <= self.budget_mb:
                continue
            tell, now = self._tell, time.monotonic()
            if tell is not None and not self._told_at:
                self._told_at = now
                tell(f"needs more than the {self.budget_mb:,} MB of an actor (precompute.actor_memory_mb)")
            elif used > self.budget_mb + max(FAR_ABOVE_MB, self.budget_mb // 2) or (
                self._told_at and now > self._told_at + GRACE_S
            ):
                os._exit(137)  # not sys.exit: threads of libraries still allocate


def own_memory_mb() -> float:
    """Returns the anonymous resident memory of this process, MB."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / MB


def has_processors(node: Mapping[str, Any]) -> bool:
    """Returns whether a node of `ray.nodes()` lives and has processors for actors; a cluster's head may have none."""
    return bool(node.get("Alive")) and node.get("Resources", {}).get("CPU", 0) >= 1


def _working(nodes: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, float]]:
    """Yields the resources of nodes that can run actors."""
    return (node["Resources"] for node in nodes if has_processors(node))


def _memory_mb(resources: Mapping[str, float]) -> float:
    return resources.get("memory", 0.0) / MB


def _by_processors(resources: Mapping[str, float], gpus_per_actor: float) -> int:
    slots = int(resources.get("CPU", 0))
    return min(slots, int(resources.get("GPU", 0) / gpus_per_actor)) if gpus_per_actor > 0 else slots
