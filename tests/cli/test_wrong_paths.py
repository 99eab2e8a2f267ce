"""A path that is no dataset, run, corpus or recipe is wrong usage, code 2, for every verb; and nothing is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sage_scale.cli import main as command_line

SHARDS = Path(__file__).resolve().parents[2] / "shards" / "sample"
VERBS = (
    "shards ls PLACE",
    "shards cat PLACE anybody",
    "shards stats PLACE",
    "shards verify PLACE",
    "shards index PLACE",
    "shards remove PLACE --ids anybody",
    "shards remove PLACE --signer anybody",
    "shards sheet PLACE --out NEW",
    "shards export PLACE --out NEW",
    "shards resegment PLACE --out NEW segmentation.tagger=uniform",
    "shards repair PLACE",
    "shards merge NEW PLACE PLACE",
    "shards split PLACE --out NEW --share a=0.5",
    "pretrain --run NEW --data PLACE --recipe demo",
    "pretrain --run PLACE --data SHARDS",
    "finetune --run NEW --data PLACE --recipe demo",
    "finetune --run PLACE --data SHARDS",
    "evaluate --run PLACE --data SHARDS",
    "report PLACE",
    "report PLACE PLACE",
    "translate VIDEO --model PLACE",
    "models describe PLACE",
    "models merge PLACE --out NEW",
    "models signs PLACE --data SHARDS --out NEW",
    "plan PLACE",
    "recipe show PLACE",
    "segment train --annotation PLACE --keypoints SHARDS --out NEW",
    "corpus inspect --root PLACE",
    "corpus inspect --corpus videos --root PLACE",
    "corpus inspect --corpus manifest --root PLACE",
    "corpus inspect --corpus phoenix14t --root PLACE",
    "segment predict --root PLACE --out NEW",
    "segment predict --corpus videos --root PLACE --out NEW",
    "segment evaluate --gold SHARDS --root PLACE",
    "keypoints --root PLACE --out NEW",
    "precompute --corpus videos --root PLACE --out NEW",
    "precompute --corpus csl_daily --root PLACE --out NEW",
)


@pytest.mark.parametrize("place", ["missing", "empty folder", "file"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_path_is_code_2_and_one_line(tmp_path, capsys, verb, place) -> None:
    (tmp_path / "empty folder").mkdir()
    for name in ("file", "video.mp4"):
        (tmp_path / name).write_text("nothing of ours\n")
    names = {"PLACE": place, "NEW": "new", "VIDEO": "video.mp4"}
    paths = {word: str(tmp_path / name) for word, name in names.items()} | {"SHARDS": str(SHARDS)}
    before = sorted(tmp_path.rglob("*"))
    code = command_line.run([paths.get(word, word) for word in verb.split()])
    said = capsys.readouterr().err
    assert code == 2, said
    assert paths["PLACE"] in said and len(said.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("recipe", ["demo", "sign2gpt-demo"])
def test_a_stage_2_without_stage_1_leaves_no_run_behind(tmp_path, capsys, recipe) -> None:
    words = ["finetune", "--run", str(tmp_path / "run"), "--data", str(SHARDS), "--recipe", recipe]
    made_with = ["vision.frame_stride=4", "vision.size=48", "vision.crop=48"]
    assert command_line.run([*words, *made_with]) == 2
    assert "run `sage-scale pretrain` first" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


NO_URL = (
    "pretrain --run OTHER --data SHARDS --recipe demo",
    "pretrain --run OTHER --data SHARDS --recipe demo --ranks 2",
    "finetune --run OTHER --data SHARDS --recipe demo",
    "evaluate --run OTHER --data SHARDS",
    "score --hypotheses VIDEO --references URL --language de",
    "report OTHER",
    "report SHARDS --out URL",
    "translate URL --model SHARDS",
    "translate VIDEO --model OTHER",
    "models merge URL --out NEW",
    "models merge SHARDS --out URL",
    "models signs URL --data SHARDS --out NEW",
    "corpus make --root URL",
    "corpus inspect --corpus videos --root URL",
    "segment train --annotation URL --keypoints SHARDS --out NEW",
    "segment train --synthetic 2 --out URL",
    "keypoints --root URL --out NEW",
    "precompute --corpus manifest --root URL --out NEW",
    "segment predict --root URL --out NEW",
    "segment evaluate --gold SHARDS --root URL",
    "segment evaluate --gold URL --root SHARDS",
    "segment evaluate --gold SHARDS --root SHARDS --out URL",
    "demo --run URL",
    "shards ls s3:/one-slash/alone",
)


@pytest.mark.parametrize("verb", NO_URL)
def test_a_url_where_a_folder_belongs_makes_no_folder_of_that_name(
    tmp_path, capsys, monkeypatch, verb
) -> None:
    (tmp_path / "video.mp4").write_text("nothing of ours\n")
    monkeypatch.chdir(tmp_path)
    # A run may lie in S3 (tests/training/test_run_at_url.py), not in other stores.
    words = {
        "URL": "s3://bucket/place",
        "OTHER": "gs://bucket/place",
        "NEW": "new",
        "VIDEO": "video.mp4",
        "SHARDS": str(SHARDS),
    }
    code = command_line.run([words.get(word, word) for word in verb.split()])
    said = capsys.readouterr().err
    assert (
        code == 2 and re.search("not a local folder|nor a URL", said) and len(said.strip().splitlines()) == 1
    ), said
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_file_is_no_run(tmp_path, capsys, stage) -> None:
    (tmp_path / "file").write_text("nothing of ours\n")
    words = [stage, "--run", str(tmp_path / "file"), "--data", str(SHARDS), "--recipe", "demo"]
    assert command_line.run(words) == 2
    assert "is a file: name the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [
    "pretrain --data NEW --recipe demo --run", "finetune --data NEW --recipe demo --run", "evaluate --data NEW --run",
    "shards ls", "precompute --corpus videos --root . --out", "shards split NEW --share a=0.5 --out", "shards merge",
    "segment predict --out NEW --root", "segment predict --root . --out", "segment evaluate --gold . --root",
    "segment evaluate --root . --gold", "report",
    "translate --model NEW", "translate NEW --model", "corpus inspect --corpus videos --root",
])  # fmt: skip
@pytest.mark.parametrize("path", ["x" * 300, "file/x", "loop", "~nobody-of-that-name/x"])
def test_a_path_that_nothing_can_bear_is_wrong_usage(tmp_path, capsys, monkeypatch, verb, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert command_line.run([*verb.split(), path]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and len(line) < 500 and "fault" not in line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize(
    "key", ["corpus.root", "model.language_model", "vision.backbone_weights", "prototypes.fasttext"]
)
def test_the_home_of_an_unknown_user_is_a_path_like_any_other(capsys, key):
    words = [
        "pretrain",
        "--run",
        "~nobody-of-that-name/r",
        "--data",
        "~nobody-of-that-name/d",
        "--recipe",
        "demo",
    ]
    assert command_line.run([*words, f"{key}=~nobody-of-that-name/x"]) == 2
    assert "fault" not in capsys.readouterr().err
