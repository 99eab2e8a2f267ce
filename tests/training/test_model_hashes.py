"""A model folder whose weights are not those that were exported, or are no numbers, is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from factories.training import make_language_folder, make_shards, tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sage_scale.errors import CheckpointError
from sage_scale.nn.weights import read_weights, write_weights
from sage_scale.training import evaluate_run, export
from sage_scale.training.stage import run_stage
from sage_scale.untrusted.hashes import HASHES, check_hashes, write_hashes

LANGUAGE = "language_model/model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("hashes")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "finetune.init=none", "finetune.max_steps=2"
    )
    make_shards(root / "shards", recipe, [("train", 8), ("dev", 2), ("test", 2)])
    before = os.umask(0o027)
    try:
        run_stage("finetune", recipe, root / "run", str(root / "shards"))
    finally:
        os.umask(before)
    return root


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)


def change(path: Path, *changed) -> None:
    """Rewrites a safetensors file with the tensors that `changed` gives, as another program would."""
    save_file({**load_file(path), **changed[0](load_file(path))}, path, {"format": "pt"})


def exchanged(tensors):
    """Two tensors of one shape, each under the other's name."""
    for one in tensors:
        for other in tensors:
            if (
                one != other
                and tensors[one].shape == tensors[other].shape
                and not tensors[one].equal(tensors[other])
            ):
                return {one: tensors[other].clone(), other: tensors[one].clone()}
    raise AssertionError("no two tensors of one shape")


def with_value(value: float):
    def changed(tensors):
        name = next(name for name in sorted(tensors) if tensors[name].dim() == 2)
        tensors[name][0, 0] = value
        return {name: tensors[name]}

    return changed


@pytest.mark.parametrize("file", ["visual.safetensors", LANGUAGE])
@pytest.mark.parametrize("damage", [
    lambda path: flip(path, 0.999), lambda path: flip(path, 0.6), lambda path: change(path, exchanged),
    lambda path: change(path, with_value(float("nan"))), lambda path: path.write_bytes(path.read_bytes()[:-8]),
    lambda path: path.unlink(),
])  # fmt: skip
def test_weights_that_are_not_those_exported_are_refused(run, file, damage):
    path = run / "model" / file
    damage(path)
    with pytest.raises(CheckpointError) as refused:
        export.load_translator(run)
    assert "\n" not in str(refused.value) and path.name in str(refused.value)


def test_other_files_are_looked_at_and_the_recipe_may_be_edited(run):
    recipe = run / "model" / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "\n# a note\n")
    export.load_translator(run)
    tokenizer = run / "model" / "language_model" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(CheckpointError, match="not the file that was exported"):
        export.load_translator(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("file", ["visual.safetensors", LANGUAGE])
def test_weights_that_are_no_numbers_are_refused_without_hashes_too(run, file, value):
    (run / "model" / HASHES).unlink()  # as 0.1.0 exported
    export.load_translator(run)
    change(run / "model" / file, with_value(value))
    with pytest.raises(CheckpointError, match="not finite"):
        export.load_translator(run)


@pytest.mark.parametrize("file", ["visual.safetensors", LANGUAGE])
@pytest.mark.parametrize("shape", [(), (7, 7), (0,), (1, 2, 3, 4)])
def test_weights_of_another_shape_are_refused(run, file, shape):
    (run / "model" / HASHES).unlink()
    change(
        run / "model" / file,
        lambda tensors: {min(n for n in tensors if tensors[n].dim() == 2): torch.ones(shape)},
    )
    with pytest.raises(CheckpointError, match=r"the recipe's|other shapes") as refused:
        export.load_translator(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("table", [
    "[]", "{}", '{"format": 1, "files": []}', '{"format": 1, "files": {}}', '{"format": true, "files": {"a": 1}}',
    '{"format": 1, "files": {"a": null}}', '{"format": 1, "files": {"a": {"bytes": -1, "xxh3_128": "x"}}}',
    '{"format": 1, "files": {"../x": {"bytes": 1, "xxh3_128": "x"}}}',
    '{"format": 1, "files": {"%s": {"bytes": 1, "xxh3_128": "x"}}}' % ("x" * 5000), None,
])  # fmt: skip
def test_a_table_of_hashes_that_is_none_is_one_short_line(run, table):
    path = run / "model" / HASHES
    path.unlink()
    os.mkfifo(path) if table is None else path.write_text(table)
    with pytest.raises(CheckpointError) as refused:
        export.load_translator(run)
    line = str(refused.value)
    assert len(line) < 600 and not any(word in line for word in ("attribute", "NoneType", "Errno", "\n"))


@pytest.mark.parametrize("file", ["visual.safetensors", LANGUAGE])
def test_weights_that_overflow_give_no_empty_sentence(trained, run, file):
    (run / "model" / HASHES).unlink()
    change(run / "model" / file, lambda tensors: {name: torch.full_like(value, 3e38) for name, value in tensors.items()
                                                  if value.dim() == 2})  # fmt: skip
    with pytest.raises(CheckpointError, match="NaN"):
        evaluate_run.run(run, str(trained / "shards"))


def test_exported_files_have_the_mode_that_the_umask_asks_for(trained):
    files = [path for path in (trained / "run" / "model").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


@pytest.mark.parametrize("damage", ["flip", "exchange", "nan"])
def test_a_lone_file_of_weights_carries_its_hash(tmp_path, damage):
    path = tmp_path / "visual.safetensors"
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(2, 3),
        "n": torch.tensor(7),
        "e": torch.empty(0),
    }
    write_weights(tensors, path)
    read = read_weights(path)
    assert read.keys() == tensors.keys() and all(read[name].equal(value) for name, value in tensors.items())
    if damage == "flip":
        flip(path, 0.99)
    elif damage == "exchange":  # the header is kept, names and all
        text = path.read_bytes().replace(b'"a":', b'"?":').replace(b'"b":', b'"a":').replace(b'"?":', b'"b":')
        path.write_bytes(text)
    else:
        write_weights({"a": torch.tensor([0.0, float("nan")])}, path)
    with pytest.raises(CheckpointError, match="finite" if damage == "nan" else "damaged"):
        read_weights(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["format", "files", "a", "bytes", "xxh3_128"]), inner, max_size=4), max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_table_of_hashes_gives_one_named_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "table"
    folder.mkdir(exist_ok=True)
    (folder / "a").write_bytes(b"x")
    (folder / HASHES).write_bytes(data)
    with pytest.raises(CheckpointError) as refused:
        check_hashes(folder)
        raise CheckpointError(f"{folder} agrees")  # an empty table of files
    assert str(folder) in str(refused.value)
    write_hashes(folder)
    check_hashes(folder)
