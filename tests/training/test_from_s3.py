"""The same stage trains from object storage as from a folder: the same batches, so the same losses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_world import make_language_folder, make_shards, tiny_recipe

PLAN = [("train", 20), ("train", 9), ("dev", 6)]


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["s3", "ceph"])
@pytest.mark.parametrize("kind", ["frames", "features"])
def test_training_from_s3_equals_training_from_a_folder(server, kind, request, tmp_path):
    from sage_scale.training import pretrain

    bucket = request.getfixturevalue(server)
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(kind, f"model.language_model={language}", "pretrain.max_steps=6")
    losses = {}
    for place in (str(tmp_path / "shards"), f"{bucket.url}/shards"):
        data = make_shards(place, tmp_path, recipe, PLAN)
        run = tmp_path / f"run-{len(losses)}"
        pretrain.run(recipe, run, data)
        rows = map(json.loads, (run / "pretrain" / "log.jsonl").read_text().splitlines())
        losses[place] = [row["loss"] for row in rows if row["event"] == "step"]
    folder, remote = losses.values()
    assert len(folder) == 6
    assert remote == pytest.approx(folder, rel=1e-5)
