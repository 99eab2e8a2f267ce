"""A frozen backbone in bfloat16: actors with other units are refused, and a processor without units is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factories.precompute import manifest_of, recipe_for, write_corpus

from sage_scale.errors import UsageError
from sage_scale.precompute import environment
from sage_scale.precompute.environment import EnvironmentCheck, environment_here
from sage_scale.precompute.plan import Limits, plan_units
from sage_scale.storage import open_store

FEATURES = {"kind": "features", "allow_random_backbone": True, "backbone_dtype": "bfloat16"}


def test_units_are_part_of_the_device_and_may_not_be_mixed(tmp_path, monkeypatch):
    recipe = recipe_for(write_corpus(tmp_path / "corpus", 2), vision=FEATURES)
    manifest = manifest_of(recipe)
    units = plan_units(manifest, Limits(clips=2, frames=1000, fps=25.0))
    here = {}
    for flag in ("amx_bf16", "avx512_bf16", ""):
        monkeypatch.setattr(environment, "bfloat16_units", lambda flag=flag: flag)
        here[flag] = environment_here(recipe, "none")
    said: list[str] = []
    check = EnvironmentCheck(open_store(str(tmp_path / "out")), recipe, manifest, units, None)
    check.say = said.append
    check(here["amx_bf16"])
    check(here["amx_bf16"])
    assert said == []
    for other in ("avx512_bf16", ""):
        with pytest.raises(UsageError, match="another kind of device"):
            check(here[other])
    alone = EnvironmentCheck(open_store(str(tmp_path / "alone")), recipe, manifest, units, None)
    alone.say = said.append
    alone(here[""])
    alone(here[""])
    assert len(said) == 1 and "slower than float32" in said[0]
    plain = replace(recipe, vision=replace(recipe.vision, backbone_dtype="float32"))
    assert "bfloat16" not in environment_here(plain, "none").device
