"""Every rendering keeps every rule; each mutation breaks the rule that it is about, and its valid twin breaks none."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from k8s.mutations import BROKEN_RULES, Mutation
from k8s.objects import OVERLAYS, changed, objects_of, rendered_file
from k8s.rules import findings


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    return objects_of(rendered_file(name).read_text())


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_rendering_keeps_every_rule(name):
    assert findings(rendered(name)) == []


@pytest.mark.parametrize("mutation", BROKEN_RULES, ids=lambda one: one.name)
def test_a_mutation_is_found_and_its_valid_twin_passes(mutation: Mutation):
    found = findings(changed(rendered(mutation.overlay), *mutation.changes))
    assert any(mutation.said in line for line in found), found
    assert findings(changed(rendered(mutation.overlay), *mutation.twin)) == []
