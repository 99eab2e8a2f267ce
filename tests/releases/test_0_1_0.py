"""Datasets, checkpoints, runs and models that release 0.1.0 wrote still open, resume, score and translate.

`0.1.0.tar.xz` was written by that release (commit 4ca8529): for SAGE (features) and Sign2GPT (frames) a dataset of 14
clips, a tiny language model, a run of both stages, and a run whose stage 1 was interrupted at step 3 of 8.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from sage_scale.cli.main import run

ARCHIVE = Path(__file__).parent / "0.1.0.tar.xz"
MODELS = ("sage", "sign2gpt")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that holds the release's files; recipes in it name language models relative to it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "release-0.1.0"
    monkeypatch.chdir(folder)
    return folder


def steps(log: Path) -> list[int]:
    rows = map(json.loads, log.read_text().splitlines())
    return [row["step"] for row in rows if row["event"] == "step"]


@pytest.mark.parametrize("model", MODELS)
def test_datasets_verify(release: Path, model: str):
    assert run(["shards", "verify", f"{model}-shards"]) == 0


@pytest.mark.parametrize("model", MODELS)
def test_an_interrupted_stage_1_goes_on_and_stage_2_follows(release: Path, model: str):
    folder = f"{model}-interrupted"
    assert run(["pretrain", "--run", folder, "--data", f"{model}-shards"]) == 0
    assert steps(release / folder / "pretrain" / "log.jsonl") == list(range(1, 9))
    assert run(["finetune", "--run", folder, "--data", f"{model}-shards"]) == 0
    assert (release / folder / "model" / "recipe.yaml").is_file()


@pytest.mark.parametrize("model", MODELS)
def test_stage_2_starts_from_the_stage_1_of_the_release(release: Path, model: str):
    (release / model / "finetune").rename(release / "finetune-of-the-release")
    assert run(["finetune", "--run", model, "--data", f"{model}-shards"]) == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_model_translates_as_it_did(release: Path, model: str):
    table = release / model / "predictions" / "test.jsonl"
    before = [json.loads(line) for line in table.read_text().splitlines()]
    table.unlink()
    assert run(["evaluate", "--run", model, "--data", f"{model}-shards"]) == 0
    after = [json.loads(line) for line in table.read_text().splitlines()]
    assert [row["hypothesis"] for row in after] == [row["hypothesis"] for row in before]
    assert run(["report", model]) == 0
    assert (release / model / "report.html").is_file()


def test_runs_of_the_release_are_compared(release: Path):
    assert run(["report", *MODELS, "--out", "comparison.html"]) == 0
    page = (release / "comparison.html").read_text()
    assert (
        "Scores on test" in page and "model.kind" in page.replace("<wbr>", "") and "not significant" in page
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_report_of_the_release_needs_nothing_else(release: Path, model: str):
    assert run(["report", model]) == 0
    assert "BLEU" in (release / model / "report.html").read_text()
