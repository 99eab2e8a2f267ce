"""stream.on_corrupt=skip: a damaged sample is left out, counted in the log, and shown in the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe

from sage_scale.errors import DatasetError
from sage_scale.reporting.page import write_report
from sage_scale.shards import open_dataset
from sage_scale.training.stage import run_stage


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[str, Path]:
    """Shards of which one training sample is damaged, and a folder with the language model."""
    language = make_language_folder(tmp_path / "language")
    url = make_shards(tmp_path / "shards", tiny_recipe("features"), [("train", 12), ("dev", 4)])
    dataset = open_dataset(url)
    table = dataset.samples("train")
    path = dataset.store.local_path(dataset.units[0].tar)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[int(table.offset[5] + table.length[5]) - 700] ^= 1
    path.write_bytes(bytes(data))
    return str(url), language


def test_a_skip_is_counted_logged_and_shown(
    damaged, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, language = damaged
    changes = ("stream.on_corrupt=skip", "pretrain.epochs=2", f"model.language_model={language}")
    recipe = tiny_recipe("features", *changes)
    run = tmp_path / "run"
    run_stage("pretrain", recipe, run, url)
    steps = log_rows(run, event="step")
    assert sum(row["skipped"] for row in steps) == 2  # once an epoch
    assert sum(row["clips"] for row in steps) == 2 * 11
    assert sum("skipped sample" in line and "000000.tar" in line for line in caplog.messages) == 2
    page = write_report(run).read_text()
    assert "2 damaged samples skipped" in page


def test_the_default_ends_the_run_with_one_line(damaged, tmp_path: Path) -> None:
    url, language = damaged
    with pytest.raises(DatasetError, match=r"sample [0-9a-f]{16} of .*000000\.tar"):
        run_stage(
            "pretrain", tiny_recipe("features", f"model.language_model={language}"), tmp_path / "run", url
        )
