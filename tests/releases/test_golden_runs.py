"""Golden runs: losses of ten steps, tensors, files of runs, models and datasets, exit codes, verbs and options.

`golden_runs.json` was written at commit b34d5b3 by `python tests/releases/test_golden_runs.py`. Losses, tensors and
files must be the same; log fields, JSON keys, verbs and options may grow. A commit that changes it says why.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors import safe_open

from sage_scale.cli.main import app, run

GOLDEN_FILE = Path(__file__).with_name("golden_runs.json")
GOLDEN: dict[str, Any] = json.loads(GOLDEN_FILE.read_text()) if GOLDEN_FILE.is_file() else {}
ARCHIVE = Path(__file__).with_name("0.1.0.tar.xz")
STEPS = ["pretrain.max_steps=10", "finetune.max_steps=10", "pretrain.lr=3e-4", "finetune.lr=3e-4"]
CHUNKS = ["pretrain.optimizer=sgd", "pretrain.micro_batch=2", "model.batchnorm=group"]
FRAMES = [
    "vision.kind=frames",
    "model.dropout=0.1",
    "pretrain.augment.brightness=0.2",
    "pretrain.augment.rotation=5",
]
CASES: dict[str, tuple[str, str, list[str]]] = {
    "sage-features": ("sage", "sage", ["pretrain.optimizer=sgd", "finetune.zero_stage=3"]),
    "sage-frames": ("sage", "sign2gpt", [*FRAMES, "pretrain.optimizer=sgd", "pretrain.zero_stage=2"]),
    "sage-clip": ("sage", "sage", ["clcl.loss=clip", "pretrain.optimizer=sgd"]),
    "sage-maxsim": ("sage", "sage", ["clcl.loss=maxsim", *CHUNKS]),
    "sign2gpt-frames": ("sign2gpt", "sign2gpt", ["finetune.zero_stage=2"]),
    "sign2gpt-sgd": ("sign2gpt", "sign2gpt", CHUNKS),
}  # fmt: skip
"""Name -> recipe, dataset and changes of the recipe; all in float32."""
STAGE_1_ONLY = ("sage-clip", "sage-maxsim", "sign2gpt-sgd")
SMALLER_NAMES = (
    (re.compile(r"-[0-9a-f]{8}\.safetensors"), "-*.safetensors"),
    (re.compile(r"events\.out\.tfevents.*"), "events.out.tfevents*"),
)
"""Parts of file names that differ from run to run."""


def unpack_release(folder: Path) -> Path:
    """Unpack the files of release 0.1.0 in `folder` and return their folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "release-0.1.0"


def train(name: str, folder: str = "") -> Path:
    """Train both stages of a case in the current folder; returns the run's folder, called as the case unless given."""
    recipe, data, changes = CASES[name]
    folder = folder or name
    arguments = ["--run", folder, "--data", f"{data}-shards"]
    assert run(["pretrain", *arguments, "--recipe", f"{recipe}/recipe.yaml", *STEPS, *changes]) == 0
    if name not in STAGE_1_ONLY:
        for verb in (["finetune", *arguments], ["evaluate", *arguments], ["report", folder]):
            assert run(verb) == 0
    return Path(folder)


def describe_run(folder: Path) -> dict[str, Any]:
    """Everything of a run's folder that later versions keep."""
    found: dict[str, Any] = {"files": files_of(folder), "losses": {}, "log": {}, "tensors": {}, "json": {}}
    for stage in sorted(path.parent.name for path in folder.glob("*/log.jsonl")):
        rows = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
        found["losses"][stage] = [row["loss"] for row in rows if row["event"] == "step"]
        for row in rows:
            fields = found["log"].setdefault(f"{stage} {row['event']}", [])
            fields.extend(name for name in row if name not in fields)
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes = {
                name: "x".join(map(str, file.get_slice(name).get_shape())) for name in sorted(file.keys())
            }
        found["tensors"][shorter(path.relative_to(folder).as_posix())] = shapes
    for path in sorted(folder.rglob("*.json")):
        found["json"][path.relative_to(folder).as_posix()] = json_keys(path)
    return found


def describe_datasets() -> dict[str, Any]:
    """Files, JSON keys and members of the first shard of datasets that the verbs of `shards` write."""
    clip = "train-0"
    commands = (
        ["merge", "merged", "sage-shards"],
        ["split", "sage-shards", "--out", "split", "--count", "few=2"],
        ["remove", "merged", "--ids", clip],
        ["index", "sign2gpt-shards"],
        ["repair", "merged"],
    )
    for command in commands:
        assert run(["shards", *command]) == 0, command
    found: dict[str, Any] = {}
    for folder in map(Path, ("merged", "split", "sage-shards", "sign2gpt-shards")):
        documents = sorted([*folder.rglob("*.json"), *folder.rglob("*.idx")])
        with tarfile.open(min(folder.rglob("*.tar"))) as shard:
            members = sorted({name.partition(".")[2] or name for name in shard.getnames()})
        keys = {path.relative_to(folder).as_posix(): json_keys(path) for path in documents if is_json(path)}
        found[folder.name] = {"files": files_of(folder), "members": members, "json": keys}
    return found


def files_of(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(map(shorter, paths))


def shorter(name: str) -> str:
    for pattern, short in SMALLER_NAMES:
        name = pattern.sub(short, name)
    return name


def is_json(path: Path) -> bool:
    return path.suffix == ".json" or path.read_bytes()[:1] == b"{"


def json_keys(path: Path) -> list[str]:
    """Dotted keys of a JSON file, without those of a recipe in it and those of a tokenizer's tables."""

    def keys(value: Any, prefix: str) -> set[str]:
        if isinstance(value, list):
            return set().union(*(keys(item, f"{prefix}[]") for item in value[:1]))
        if not isinstance(value, dict) or prefix in (
            "recipe",
            "recipe_part",
            "model",
            "added_tokens[]",
            "samples",
        ):
            return {prefix}
        return {prefix}.union(*(keys(item, f"{prefix}.{key}".strip(".")) for key, item in value.items()))

    return sorted(map(shorter, keys(json.loads(path.read_text()), "") - {""}))


def options(command: Any, verb: str = "") -> dict[str, list[str]]:
    """Verb -> its options, over all verbs below `command`."""
    found = {verb: sorted(name for option in command.params for name in option.opts if name.startswith("-"))}
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        found |= options(command.get_command(None, name), f"{verb} {name}".strip())
    return found


def damage_shards() -> None:
    """Make datasets with one changed byte, without an index, and a folder that is none."""
    for name in ("damaged", "open"):
        assert run(["shards", "merge", name, "sage-shards"]) == 0
    tar = bytearray(Path("damaged/000000.tar").read_bytes())
    tar[len(tar) // 3] ^= 1
    Path("damaged/000000.tar").write_bytes(tar)
    Path("open/index.json").unlink()
    Path("open/000001.json").unlink()
    Path("empty").mkdir()
    Path("broken.yaml").write_text("name: [\n")
    Path("no-video.mp4").write_bytes(b"no video")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_release(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def here(release: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(release)
    return release


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_golden_one(here: Path, name: str):
    found, golden = describe_run(train(name)), GOLDEN["runs"][name]
    for stage, losses in golden["losses"].items():
        assert found["losses"][stage] == pytest.approx(losses, rel=1e-5, abs=1e-5), stage
    assert found["tensors"] == golden["tensors"]
    assert found["files"] == golden["files"]
    for part in ("log", "json"):
        assert missing(golden[part], found[part]) == {}, part


@pytest.mark.parametrize("name", ["sage-frames", "sign2gpt-frames"])
def test_a_second_run_gives_the_same_bits(here: Path, name: str):
    """Losses as logged, and every file of weights that leaves training."""
    one, other = (train(name, f"{name}-{number}") for number in (1, 2))
    assert describe_run(one)["losses"] == describe_run(other)["losses"]
    weights = [path.relative_to(one) for path in (one / "model").rglob("*.safetensors")]
    for file in (*weights, Path("pretrain/visual.safetensors")):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert weights


@pytest.mark.system
@pytest.mark.parametrize("name", ["sage-frames", "sign2gpt-frames"])
def test_two_ranks_have_the_golden_losses(here: Path, name: str):
    recipe, data, changes = CASES[name]
    folder = f"{name}-of-two"
    arguments = ["--run", folder, "--data", f"{data}-shards", "--ranks", "2"]
    assert run(["pretrain", *arguments, "--recipe", f"{recipe}/recipe.yaml", *STEPS, *changes]) == 0
    assert run(["finetune", *arguments]) == 0
    for stage, losses in describe_run(Path(folder))["losses"].items():
        golden = GOLDEN["runs"][name]["losses"][stage]
        assert losses == pytest.approx(golden, rel=1e-5, abs=1e-5), stage


def test_the_datasets_have_the_golden_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(unpack_release(tmp_path))
    found = describe_datasets()
    for name, golden in GOLDEN["datasets"].items():
        assert found[name]["files"] == golden["files"] and found[name]["members"] == golden["members"], name
        assert missing(golden["json"], found[name]["json"]) == {}, name


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each command line of the table, in its order."""
    monkeypatch.chdir(unpack_release(tmp_path))
    damage_shards()
    found = {line: run(line.split()) for line in GOLDEN["exit_codes"]}
    assert found == GOLDEN["exit_codes"]


def test_no_verb_and_no_option_is_gone():
    assert missing(GOLDEN["verbs"], options(typer.main.get_command(app))) == {}


def missing(golden: dict[str, list[str]], found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Entries of `golden` that `found` lacks."""
    lost = {
        name: [item for item in items if item not in found.get(name, ())] for name, items in golden.items()
    }
    return {name: items for name, items in lost.items() if items or name not in found}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(unpack_release(Path(scratch)))
        made = {"runs": {name: describe_run(train(name)) for name in CASES}}
        made["datasets"] = describe_datasets()
        damage_shards()
        made["exit_codes"] = {line: run(line.split()) for line in GOLDEN["exit_codes"]}
        made["verbs"] = options(typer.main.get_command(app))
        os.chdir(GOLDEN_FILE.parent)
    GOLDEN_FILE.write_text(json.dumps(made, indent=1) + "\n")
