"""The few real shards that lie in shards/sample: whole, small, and what the specification's first look says of them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import webdataset
from factories.datasets import make_sample
from test_shard import GOOD, KEY, Trap, in_shard, member

from sage_scale.cli.main import run
from sage_scale.config import load_recipe, override
from sage_scale.shards import open_dataset, read_sample, verify_dataset
from sage_scale.streaming import open_stream

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "shards" / "sample"


def test_they_are_whole_small_and_without_a_trace_of_their_maker() -> None:
    assert verify_dataset(SAMPLE).problems == ()
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 400_000
    text = (SAMPLE / "dataset.json").read_text()
    assert not re.search(r'"/|://|localhost|\broot\b|home', text)


def test_the_first_look_of_the_readme(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    lines = re.findall(
        r"^sage-scale (shards \w+ shards/sample.*)$", (ROOT / "shards" / "README.md").read_text(), re.M
    )
    assert len(lines) >= 4
    for line in lines:
        assert run(line.split("#")[0].split()) == 0, line
    said = capsys.readouterr().out
    assert "000000.tar" in said and "finished" in said and "all is as written" in said


def test_a_model_can_be_fed_from_them() -> None:
    made = open_dataset(SAMPLE).info.recipe_part["vision"]
    changes = [f"vision.{name}={made[name]}" for name in ("size", "crop", "frame_stride")]
    recipe = override(load_recipe("demo"), changes)
    batches = list(open_stream(SAMPLE, recipe, "train", batch_size=2, epochs=1))
    assert sum(len(batch.keys) for batch in batches) == 3
    assert batches[0].video.frames_FCHW is not None and batches[0].video.frames_FCHW.shape[1:] == (3, 48, 48)


def test_webdataset_reads_them() -> None:
    tars = sorted(map(str, SAMPLE.glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 5 and all(sample["000000.jpg"].shape == (48, 48, 3) for sample in samples)
    assert {sample["json"]["split"] for sample in samples} == {"train", "dev", "test"}


def test_a_pickle_in_a_shard_is_not_even_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    traps = [(member(f"{KEY}.{ending}"), pickle.dumps(Trap())) for ending in ("pkl", "pyd", "pth", "npz")]
    sample = read_sample(in_shard([*((member(name), body) for name, body in GOOD), *traps]), key=KEY)
    assert sample.meta == make_sample("clip").meta and not list(tmp_path.iterdir())
