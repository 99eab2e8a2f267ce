"""`shards/sample`, made anew by the command of shards/README.md, is the one that lies there, byte for byte.

Only the digest of dataset.json differs, which every tar names: recipes have gained keys since it was made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from factories.precompute import run_here

from sage_scale.cli.main import run
from sage_scale.config import load_recipe, override
from sage_scale.shards import open_dataset

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
(SIZES,) = re.findall(r'SIZES="([^"]+)"', (SAMPLE.parent / "README.md").read_text())


def test_the_sample_made_anew_has_the_same_bytes(tmp_path: Path) -> None:
    assert run(["corpus", "make", "--root", str(tmp_path / "corpus"), *SIZES.split()]) == 0
    given = [*SIZES.split(), "corpus.name=synthetic", f"corpus.root={tmp_path / 'corpus'}"]
    run_here(override(load_recipe("demo"), given), tmp_path / "made").execute()
    made, stored = open_dataset(tmp_path / "made"), open_dataset(SAMPLE)
    if made.info.versions != stored.info.versions:
        pytest.skip(f"the sample was made with {dict(stored.info.versions)}")
    digests = made.info.digest.encode(), stored.info.digest.encode()
    for name in sorted(path.name for path in SAMPLE.iterdir()):
        ours, theirs = (folder.joinpath(name).read_bytes() for folder in (tmp_path / "made", SAMPLE))
        if name.endswith((".tar", ".idx")):
            assert ours.replace(*digests) == theirs, name
    assert made.records.tobytes() == stored.records.tobytes()
    for name in ("kind", "recipe", "manifest", "units", "device"):
        assert getattr(made.info, name) == getattr(stored.info, name), name
    assert [without_digests(unit.to_mapping()) for unit in made.units] == [
        without_digests(unit.to_mapping()) for unit in stored.units
    ]
    for section, values in stored.info.recipe_part.items():
        assert json.loads(json.dumps(made.info.recipe_part))[section].items() >= values.items()


def without_digests(values: dict) -> dict:
    return {key: values[key] for key in values.keys() - {"dataset", "sha256"}}
