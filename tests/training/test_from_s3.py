"""The same stage trains from object storage as from a folder: the same batches, so the same losses."""

from __future__ import annotations

import pytest
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.storage import open_store

PLAN = [("train", 20), ("train", 9), ("dev", 6)]


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", ["s3", "ceph"])
@pytest.mark.parametrize("kind", ["frames", "features"])
def test_training_from_s3_equals_training_from_a_folder(server, kind, request, tmp_path):
    from sage_scale.training.stage import run_stage

    bucket = request.getfixturevalue(server)
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(kind, f"model.language_model={language}", "pretrain.max_steps=6")
    losses = {}
    for place in (str(tmp_path / "shards"), f"{bucket.url}/shards"):
        data = make_shards(place, recipe, PLAN)
        run = tmp_path / f"run-{len(losses)}"
        run_stage("pretrain", recipe, run, data)
        losses[place] = [row["loss"] for row in log_rows(run, event="step")]
    folder, remote = losses.values()
    assert len(folder) == 6
    assert remote == pytest.approx(folder, rel=1e-5)


def test_a_place_that_takes_no_checkpoint_is_told_before_the_run_begins(s3, behind_proxy, tmp_path):
    from sage_scale.errors import StorageError
    from sage_scale.training.stage import run_stage

    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "pretrain.max_steps=1")
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    refusing = behind_proxy(s3).add(
        "status", method="PUT", path=s3.name, times=99, status=403, code="AccessDenied"
    )
    for place, code in (("s3://no-such-bucket-here/x", 2), (s3.url, 1)):
        with pytest.raises(StorageError, match=r"does not exist|refuses") as told:
            run_stage("pretrain", override(recipe, [f"pretrain.checkpoints={place}"]), tmp_path / "run", data)
        assert told.value.exit_code == code and not (tmp_path / "run").exists()
    refusing.times = 0
    run_stage("pretrain", override(recipe, [f"pretrain.checkpoints={s3.url}"]), tmp_path / "run", data)
    assert {entry.name.split("/")[2] for entry in open_store(s3.url).list()} == {"step-00000001"}
