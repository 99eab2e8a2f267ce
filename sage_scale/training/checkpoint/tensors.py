"""Files of tensors and folders of a model, which appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from sage_scale.errors import NoModel
from sage_scale.nn.weights import read_weights, write_weights
from sage_scale.untrusted.hashes import seal


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, numbers as float32, atomically."""
    tensors = {
        name: value.detach().float().cpu().contiguous().clone()
        if value.is_floating_point()
        else value.cpu().clone()
        for name, value in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(tensors, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of `save_tensors`. Raises NoModel where the file is missing, else as `read_weights`."""
    try:
        return read_weights(path)
    except FileNotFoundError:
        raise _missing(path) from None


def need_tensors(path: Path) -> None:
    """Raise NoModel where there is no such file: `load_tensors` will be called later."""
    if not path.is_file():
        raise _missing(path)


def _missing(path: Path) -> NoModel:
    return NoModel(f"{path} is missing: run `sage-scale pretrain` first, or set finetune.init=none")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` when it is whole, with hashes of its files."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    seal(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
