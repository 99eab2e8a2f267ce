"""Every rendering keeps every rule, and the command line parses its commands; each mutation breaks its rule, and its
valid twin breaks none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from k8s.commands import command_findings, recipe_of
from k8s.mutations import BROKEN_COMMANDS, BROKEN_RULES, Mutation
from k8s.objects import OVERLAYS, changed, find, objects_of, rendered_file
from k8s.rules import findings

from sage_scale.precompute.autoscaling import ResourceRequests


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    return objects_of(rendered_file(name).read_text())


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_rendering_keeps_every_rule(name):
    assert findings(rendered(name)) + command_findings(rendered(name)) == []


@pytest.mark.parametrize("mutation", BROKEN_RULES, ids=lambda one: one.name)
def test_a_mutation_is_found_and_its_valid_twin_passes(mutation: Mutation):
    found = findings(changed(rendered(mutation.overlay), *mutation.changes))
    assert any(mutation.said in line for line in found), found
    assert findings(changed(rendered(mutation.overlay), *mutation.twin)) == []


@pytest.mark.parametrize("mutation", BROKEN_COMMANDS, ids=lambda one: one.name)
def test_a_wrong_command_is_found_and_its_valid_twin_passes(mutation: Mutation):
    found = command_findings(changed(rendered(mutation.overlay), *mutation.changes))
    assert any(mutation.said in line for line in found), found
    twin = changed(rendered(mutation.overlay), *mutation.twin)
    assert findings(twin) + command_findings(twin) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_scales_workers_whose_processors_all_get_an_actor(name):
    """The cluster as the autoscaler in the head's pod reads it, against the bundles that precompute asks for."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    job = find(rendered(name), "RayJob")
    cluster = {
        "metadata": {"name": "precompute", "namespace": "signs"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    bundle = ResourceRequests(recipe_of(rendered(name))).bundle
    worker = types["cpu"]["resources"]
    assert worker["memory"] // bundle["memory"] >= worker["CPU"] // bundle["CPU"] > 0


REFERENCES = re.compile(
    r"serviceAccountName|.*\.claimName|.*configMap\.name|.*volumeMounts\.\d+\.name|.*secretRef\.name"
    r"|.*runtimeRef\.name|.*containerName|.*replicatedJob|metadata\.labels\.kueue~x-k8s~io/queue-name"
)
"""Paths at which one object, or one part of an object, names another."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each scalar inside an object."""
    parts = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if parts is None:
        yield path[1:], value
        return
    for name, inner in parts:
        yield from leaves(inner, f"{path}.{str(name).replace('.', '~')}")


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_misspelt_name_is_found_wherever_it_stands(name):
    objects, missed, tried = rendered(name), [], 0
    for one in objects:
        target = f"{one['kind']}/{one['metadata']['name']}"
        for path, value in leaves(one):
            if REFERENCES.fullmatch(path):
                tried += 1
                if not findings(changed(objects, (target, path, f"{value}x"))):
                    missed.append(f"{target} {path}")
    assert missed == [] and tried > 30
