"""Values of release 0.1.0 that later versions keep: fingerprints and orders of samples.

`0.1.0.json` was written by that release. A fingerprint that changes would refuse every dataset made before; a changed
order would break resumption in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sage_scale.config import load_recipe
from sage_scale.config.extension import FIRST_RELEASE
from sage_scale.config.recipe import flat, without_younger_defaults
from sage_scale.streaming.order import dataset_order

RELEASED: dict[str, Any] = json.loads((Path(__file__).parent / "0.1.0.json").read_text())

_ROTATION = [f"{stage}.augment.{key}" for stage in ("pretrain", "finetune")
             for key in ("rotation=10.0", "rotation_share=1.0")]  # fmt: skip
CHANGED = {
    "demo": ["denoise.max_minutes=1.75", "pretrain.max_steps=0", "pretrain.max_minutes=5", "finetune.max_steps=0",
             "finetune.max_minutes=1.75"],
    "sage-csl-daily": _ROTATION,
    "sage-phoenix14t": _ROTATION,
    "sign2gpt-demo": ["denoise.steps=900", "denoise.max_minutes=1.25", "pretrain.max_steps=0", "pretrain.max_minutes=5",
                      "finetune.max_steps=0", "finetune.max_minutes=4"],
}  # fmt: skip
"""Values of the release that its recipes do not have any more: minutes and steps of the demos, rotations."""


@pytest.mark.parametrize("recipe", RELEASED["dataset_fingerprints"])
def test_dataset_fingerprints(recipe: str):
    assert load_recipe(recipe).dataset_fingerprint() == RELEASED["dataset_fingerprints"][recipe]


@pytest.mark.parametrize("recipe", RELEASED["recipe_fingerprints"])
def test_recipe_fingerprints(recipe: str):
    """With the values that the release's recipes had. `sage-phoenix14t-released` names a variant that is gone."""
    assert (
        load_recipe(recipe, CHANGED.get(recipe, ())).fingerprint() == RELEASED["recipe_fingerprints"][recipe]
    )


def test_keys_without_a_mark_are_those_of_the_release():
    """A key that the release did not have is marked by `since`, and then changes no fingerprint at its default."""
    marked = without_younger_defaults(load_recipe("demo"), FIRST_RELEASE)
    assert list(flat(marked)) == RELEASED["recipe_keys"].split()


@pytest.mark.parametrize("case", RELEASED["orders"], ids=lambda case: case["name"])
def test_orders_of_samples(case: dict[str, Any]):
    """Samples of made sizes in shards of made lengths; sha256 over the samples of two epochs as int64."""
    assert order_digest(**case["arguments"]) == case["sha256"]


def order_digest(samples: int, shards: int, **constants: int) -> str:
    numbers = np.arange(samples)
    order = dataset_order(numbers * shards // samples, 1000 + 7919 * numbers % 60_000, **constants)
    digest = hashlib.sha256()
    for epoch in (0, 5):
        digest.update(order.epoch(epoch).astype("<i8").tobytes())
    return digest.hexdigest()
