"""Repairs a damaged dataset: keeps the intact samples, and names every lost clip.

Two ways with a damaged shard. `keep` writes a new generation of it with the intact samples; the lost clips become
rejects with the reason `damaged`, so that the dataset is finished and can be trained on, and `precompute
--retry-rejects` makes them again in new shards. `drop` deletes the shard, and the same precompute command makes it
again, byte for byte.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from sage_scale.errors import DatasetError, Reject
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards import layout
from sage_scale.shards.damage import DamagedUnit, DatasetState, LostClip, find_damage, read_state
from sage_scale.shards.publish import (
    delete_superseded,
    finish_dataset,
    memory_reader,
    publish_copies,
    restore_markers,
    verified_samples,
)
from sage_scale.shards.rejects import KEY_PREFIX, announce_change
from sage_scale.shards.tar import map_tar
from sage_scale.storage import NotFound, Store

Mode = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class RepairPlan:
    """The faults of a dataset, and so the work of a repair."""

    store: Store
    state: DatasetState
    damaged: tuple[DamagedUnit, ...]
    """Units with a fault, by number."""

    @property
    def bytes(self) -> int:
        """Bytes of the tars that were read."""
        return sum(self.state.listing.tar_bytes.values())

    @property
    def lost(self) -> tuple[LostClip, ...]:
        """Clips whose bytes are gone."""
        return tuple(clip for unit in self.damaged for clip in unit.lost)

    @property
    def stale(self) -> bool:
        """Whether index.json, although every unit is stored, is missing or names other generations than are stored."""
        state, newest = self.state, self.state.listing.generation
        if state.indexed is None:
            return newest.keys() >= set(range(len(state.info.units)))
        return {unit.unit: unit.generation for unit in state.indexed.units} != newest

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.damaged or self.state.problems or self.state.listing.superseded or self.stale)


def plan_repair(store: Store, *, threads: int = 4, progress: ProgressCallback | None = None) -> RepairPlan:
    """Reads every byte and finds the damage, as `verify` does. Changes nothing.

    Raises DatasetError where dataset.json fits few of the shards and index.json is gone: nothing may be dropped then.
    """
    state = read_state(store)
    units = state.units
    found = map_threads(
        lambda unit: find_damage(store, state, unit),
        units,
        threads=threads,
        progress=progress,
        size=lambda unit: state.listing.tar_bytes.get(unit, 0),
    )
    damaged = tuple(unit for unit in found if unit is not None)
    exchanged = sum("exchanged" in unit.problem for unit in damaged)
    if state.indexed is None and exchanged > max(1, len(units) // 2):
        raise DatasetError(
            f"{store.url}: most shards say that they belong to another dataset than {layout.DATASET_JSON}, which is "
            "damaged or was exchanged, and there is no index.json to tell by: restore it; nothing was changed"
        )
    return RepairPlan(store=store, state=state, damaged=damaged)


def carry_out_repair(plan: RepairPlan, mode: Mode = "keep") -> bool:
    """Repairs the dataset. Returns whether it is finished afterwards.

    May be killed at any moment; a new plan then finds the rest.
    """
    store, state = plan.store, plan.state
    if state.restore_info:
        store.put(layout.DATASET_JSON, state.info.to_bytes())
    dropped = any(is_dropped(unit, mode) for unit in plan.damaged)
    if dropped:
        # First: without its shards an unfinished dataset is left, never a wrong one. Older generations go too, or the
        # newest of them would replace the dropped one. `changed.json` makes later writers look what is stored.
        announce_change(store)
        store.delete(layout.INDEX_JSON)
        delete_superseded(store)
    for unit in plan.damaged:
        if unit.fault == "marker":
            restore_markers(store, [unit.unit])
        elif is_dropped(unit, mode):
            # The tar goes last: a listing finds index and marker by it.
            for name in (layout.marker_name, layout.index_name, layout.tar_name):
                store.delete(name(unit.unit, unit.generation))
        else:
            with contextlib.suppress(NotFound):  # another repair has replaced or dropped the shard
                _keep_intact(store, state.info, unit)
    listing = layout.list_units(store)
    if set(range(len(state.info.units))) <= listing.generation.keys():
        finish_dataset(store)
        return True
    if dropped:  # once more, if a writer that saw the shards has stored it since
        store.delete(layout.INDEX_JSON)
    restore_markers(store, listing.unmarked)
    delete_superseded(store)
    return False


def is_dropped(unit: DamagedUnit, mode: Mode) -> bool:
    """Returns whether the unit's objects are deleted. A unit whose clips are unknown cannot be kept in part."""
    return unit.fault in ("stray", "unknown") or (unit.fault == "tar" and mode == "drop")


def precompute_command(url: str, info: layout.DatasetInfo, mode: Mode) -> str:
    """Returns the command that makes lost clips again, as far as dataset.json tells it; empty after merge and split."""
    if "made_from" in info.notes:
        return ""
    corpus = info.recipe_part.get("corpus", {}).get("name", "NAME")
    again = " --retry-rejects" if mode == "keep" else ""
    return f"sage-scale precompute --corpus {quote(str(corpus))} --root ROOT --out {quote(url)} --recipe RECIPE{again}"


def _keep_intact(store: Store, info: layout.DatasetInfo, unit: DamagedUnit) -> None:
    header = layout.ShardHeader(
        unit=unit.unit, split=unit.split, dataset=info.digest, generation=unit.generation + 1
    )
    rejects = list(unit.rejects or ())
    for clip in unit.lost:
        name = clip.id or f"{KEY_PREFIX}{clip.key}"
        rejects.append(Reject(id=name, reason=layout.DAMAGED, detail="lost to damage of the shard"))
    if not len(unit.intact):  # the tar may be gone
        publish_copies(store, header, (), rejects)
        return
    tar = layout.tar_name(unit.unit, unit.generation)
    with map_tar(store, tar) as view:
        samples = verified_samples(memory_reader(view), unit.intact, f"{store.url}/{tar}")
        publish_copies(store, header, samples, rejects)
