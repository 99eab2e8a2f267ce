"""A folder with a language model that cannot be read is one line of our own, whatever a library says about it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from factories.training import make_language_folder

from sage_scale.errors import CheckpointError
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sign2gpt.decoder import load_causal_model


class Runs:
    def __reduce__(self):
        return print, ("the pickle has run",)


def with_value(name: str, **values: object):
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def with_bytes(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def only_pickle(data: bytes):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(data)

    return change


DAMAGE = {
    "only a pickle": (only_pickle(pickle.dumps(Runs())), "pickle"),
    "a pickle of an old kind": (only_pickle(pickle.dumps({"x": Runs()}, protocol=0)), "pickle"),
    "only noise named as a pickle": (only_pickle(b"noise"), "pickle"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    "weights cut off": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"), "cannot be loaded"),
    "vocab_size is text": (with_value("config.json", vocab_size="x"), "cannot be loaded"),
    "d_model is a list": (with_value("config.json", d_model=[]), "cannot be loaded"),
    "d_model -1": (with_value("config.json", d_model=-1), "cannot be loaded"),
    "layers 1e9 as text": (with_value("config.json", encoder_layers="1e9"), "cannot be loaded"),
    "config.json is []": (with_bytes("config.json", b"[]"), "config.json is damaged"),
    "config.json is deep": (with_bytes("config.json", b"[" * 100_000), "config.json is damaged"),
    "config.json is no text": (with_bytes("config.json", b"\xff\xfe{"), "config.json is damaged"),
    "tokenizer.json is []": (with_bytes("tokenizer.json", b"[]"), "tokenizer.json is damaged"),
    "a million layers": (with_value("config.json", encoder_layers=10**6), "encoder_layers=1,000,000"),
    "a billion layers of another name": (with_value("config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "vocab_size 1e12": (with_value("config.json", vocab_size=10**12), "other shapes than its config.json"),
    "positions 2": (with_value("config.json", max_position_embeddings=2), "other shapes than its config.json"),
    "quantised": (with_value("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
                  "is quantised"),
    "quantised by nobody knows": (with_value("config.json", quantization_config={"quant_method": "x"}), "is quantised"),
    "tokenizer_config.json is []": (with_bytes("tokenizer_config.json", b"[]"), "tokenizer_config.json is damaged"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_language_folder(tmp_path_factory.mktemp("whole") / "model")


@pytest.mark.parametrize("load", [load_language_model, load_causal_model])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_folder_is_one_line_of_our_own(tmp_path, whole, capfd, damage, load):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change, expected = DAMAGE[damage]
    change(folder)
    with pytest.raises(CheckpointError) as refused:
        load(folder)
    line = str(refused.value)
    assert expected in line or load is load_causal_model
    assert str(folder) in line and "\n" not in line and len(line) < 500
    assert "weights_only" not in line and "ignore_mismatched" not in line and "pip install" not in line
    assert "the pickle has run" not in "".join(capfd.readouterr())
