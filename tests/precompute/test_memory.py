"""Memory budgets: how many actors fit, and what becomes of one that does not keep to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.config import Recipe, from_mapping, override
from sage_scale.errors import UsageError
from sage_scale.precompute.memory import (
    CEILING_MB,
    FLOOR_MB,
    FLOOR_TAGGER_MB,
    FLOOR_UNKNOWN_MB,
    least_memory_mb,
    memory_budget_mb,
    room_for_actors,
)

MB = 2**20


def recipe(**precompute: float) -> Recipe:
    return from_mapping({"precompute": precompute})


def node(cpus: int, memory_mb: float, gpus: int = 0, alive: bool = True) -> dict:
    resources = {"CPU": float(cpus), "memory": memory_mb * MB, "GPU": float(gpus)}
    return {"Alive": alive, "Resources": {name: value for name, value in resources.items() if value}}


CLUSTERS = st.lists(
    st.builds(node, st.integers(0, 64), st.integers(300, 300_000), alive=st.booleans()), max_size=5
)


def test_a_model_has_a_higher_least_budget() -> None:
    """Torch and a tagger's model; a backbone whose weights are known by name, seen in a folder, or not to be seen."""
    features = ["vision.kind=features", "segmentation.tagger=published"]
    for changes, least_mb in (
        ([], FLOOR_MB),
        (["segmentation.tagger=published"], FLOOR_TAGGER_MB),
        (["segmentation.tagger=hands-on"], FLOOR_TAGGER_MB),
        (["vision.kind=features", "vision.backbone=keypoints"], FLOOR_MB),
        (features, 1588),
        ([*features, "vision.backbone_batch=128"], 1588 + 3 * 384),
        ([*features, "precompute.gpus_per_actor=0.5"], FLOOR_UNKNOWN_MB),
        ([*features, "vision.backbone=/no/such/run"], FLOOR_UNKNOWN_MB),
    ):
        assert memory_budget_mb(override(Recipe(), changes), []) == least_mb
        assert least_memory_mb(override(Recipe(), changes)) == least_mb


def test_larger_weights_have_a_larger_budget_even_above_the_usual_ceiling(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(4400 * MB)  # a ViT-g in float32
    giant = override(Recipe(), ["vision.kind=features", f"vision.backbone={tmp_path}"])
    assert least_memory_mb(giant) == 1024 + 2 * 4400 + 384
    assert memory_budget_mb(giant, [node(8, 64_000)]) == 1024 + 2 * 4400 + 384


# What Ray counts as memory: what is free (some 4% is not) less the object store, 30% by default.
@pytest.mark.parametrize(
    ("machine", "cpus", "gib", "object_store_mb"),
    [("m7i.4xlarge", 16, 64, None), ("m7i.large", 2, 8, None), ("c7i.4xlarge", 16, 32, 1000), ("c7i.large", 2, 4, 80)],
)  # fmt: skip
def test_common_machines_are_full_of_actors_with_a_backbone(machine, cpus, gib, object_store_mb) -> None:
    free_mb = gib * 1024 * 0.96
    there = node(cpus, free_mb * 0.7 if object_store_mb is None else free_mb - object_store_mb)
    features = override(Recipe(), ["vision.kind=features"])
    budget_mb = memory_budget_mb(features, [there])
    assert room_for_actors(features, [there], budget_mb) == cpus
    # Where an actor waits for its first node, the autoscaler's arithmetic with the least budget gives as many.
    assert room_for_actors(features, [there], least_memory_mb(features)) == cpus


@given(CLUSTERS, st.sampled_from([0, 256, 1500, 4000]), st.integers(0, 40))
def test_budgets_never_add_up_to_more_than_a_node_has(nodes, wanted_mb, actors):
    chosen = recipe(actor_memory_mb=wanted_mb, actors=actors)
    budget = memory_budget_mb(chosen, nodes)
    try:
        room = room_for_actors(chosen, nodes, budget)
    except UsageError:
        room = 0
    working = [n["Resources"] for n in nodes if n["Alive"] and n["Resources"].get("CPU")]
    # However Ray spreads them, each node takes whole budgets only.
    places = sum(int(resources["memory"] // (budget * MB)) for resources in working)
    assert room <= places
    if actors:
        assert room <= actors
    else:
        assert room <= sum(resources["CPU"] for resources in working)
    assert budget == wanted_mb or FLOOR_MB <= budget <= CEILING_MB


@pytest.mark.parametrize(
    ("nodes", "budget", "room"),
    [
        ([node(16, 32_000)], 2000, 16),  # an equal share
        ([node(8, 5_000)], FLOOR_MB, 4),  # a laptop: fewer actors rather than smaller ones
        ([node(2, 200_000)], CEILING_MB, 2),
        ([node(0, 8_000), node(4, 8_000), node(4, 16_000)], 2000, 8),  # a head without CPUs
        ([node(4, 8_000), node(64, 4_000, alive=False)], 2000, 4),
        ([node(0, 8_000)], FLOOR_MB, 0),  # workers are yet to come
    ],
)
def test_the_share_of_an_actor(nodes, budget, room) -> None:
    assert memory_budget_mb(recipe(), nodes) == budget
    assert room_for_actors(recipe(), nodes, budget) == room


def test_too_little_memory_for_one_actor_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"no node has the 9,000 MB .*largest has 8,000 MB.*actor_memory_mb"):
        room_for_actors(recipe(actor_memory_mb=9000), [node(4, 8000), node(4, 2000)], 9000)


def test_a_share_of_a_gpu_bounds_the_actors_of_a_node() -> None:
    chosen = recipe(gpus_per_actor=0.25)
    nodes = [node(16, 64_000, gpus=1), node(2, 64_000, gpus=8)]
    assert room_for_actors(chosen, nodes, 1024) == 4 + 2
    with pytest.raises(UsageError, match="no GPU"):
        room_for_actors(chosen, [node(16, 64_000)], 1024)


GROWS = """
import sys, threading, time
from sage_scale.precompute.memory import MemoryGuard, own_memory_mb
guard = MemoryGuard(int(own_memory_mb()) + 60)
if sys.argv[1] == "told":
    guard.on_excess(lambda line: print(line, flush=True))
held = []
for _ in range(400):
    held.append(bytearray(b"x") * (4 * 2**20))
    time.sleep(0.005)
time.sleep(8)
print("never ended")
"""


@pytest.mark.parametrize("told", ["told", "not told"])
def test_a_process_above_its_budget_tells_once_and_ends(told: str) -> None:
    done = subprocess.run([sys.executable, "-c", GROWS, told], capture_output=True, text=True, timeout=60)
    assert done.returncode == 137, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == (told == "told") and all("MB of an actor" in line for line in lines)
