"""Weights of others: read safely into a state dict, and loaded exactly or not at all.

Nothing here unpickles: `.safetensors` files are read as such, others with torch's `weights_only`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sage_scale.errors import CheckpointError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of the one weights file in a folder; CheckpointError says what is
    wrong."""
    if path.is_dir():
        found = [
            path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()
        ]
        if not found:
            raise CheckpointError(f"{path}: no model.safetensors in this folder")
        path = found[0]
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # unpickling damaged or hostile bytes raises nearly anything
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a weights file that can be read safely: {reason}") from None
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{path}: expected a mapping from names to tensors")
    return {name.removeprefix("module."): value for name, value in values.items()}


def load_exactly(model: torch.nn.Module, values: Mapping[str, Tensor], path: Path) -> None:
    """Load `values` into `model`: all of them and nothing missing, or CheckpointError with the first
    difference."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in values and not name.endswith("num_batches_tracked")]
    extra = [name for name in values if name not in wanted]
    shaped = [name for name in wanted if name in values and values[name].shape != wanted[name].shape]
    for kind, names in (("lacks", missing), ("has a strange", extra), ("has another shape of", shaped)):
        if names:
            raise CheckpointError(
                f"{path} does not fit {type(model).__name__}: it {kind} {names[0]} ({len(names)} such)"
            )
    model.load_state_dict(dict(values), strict=False)
