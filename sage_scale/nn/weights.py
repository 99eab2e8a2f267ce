"""Files of weights with a hash of their tensors, and what refuses weights and scores that are NaN or infinite.

Such weights would otherwise give empty or arbitrary sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import LogitsProcessor

from sage_scale.errors import CheckpointError

_DIGEST = "sage_scale_xxh3_128"
"""Key of the hash in the metadata of a safetensors file."""


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes CPU tensors as safetensors with their hash, atomically, readable as the umask asks for."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(
        save(dict(tensors), {_DIGEST: _digest(tensors)})
    )  # save_file's are their owner's alone
    partial.replace(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of `write_weights`; files of 0.1.0 have no hash.

    Raises FileNotFoundError, and CheckpointError where the file is damaged or holds NaN or infinities.
    """
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get(_DIGEST)
        tensors = load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if digest is not None and digest != _digest(tensors):
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those that were saved (their hash differs)"
        )
    check_finite(tensors, path)
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns xxh3-128 over names, types, shapes and bytes."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raises CheckpointError naming the first tensor that holds NaN or an infinity; one pass, no copy."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            low, high = torch.aminmax(value.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise CheckpointError(
                    f"{where}: the weights of {name} are not finite: export or copy the model again"
                )


def put_weights(module: nn.Module, tensors: Mapping[str, Tensor], names: Set[str], where: object) -> None:
    """Puts the tensors called `names` into a module; the rest of it stays.

    Raises CheckpointError naming the first that is missing or of another shape; `where` says whose they are.
    """
    missing = sorted(names - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} weights, such as {missing[0]}: was its recipe another?"
        )
    own = module.state_dict()
    for name in sorted(names):
        if tensors[name].shape != own[name].shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(tensors[name].shape)}, the recipe's {tuple(own[name].shape)}: use one "
                "recipe"
            )
    module.load_state_dict({name: tensors[name] for name in names}, strict=False)


class FiniteScores(LogitsProcessor):
    """Raises CheckpointError where a model gives NaN for the next token (finite weights may overflow, too)."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns (beams, V) log-probabilities as they are."""
        if torch.isnan(scores).any():
            raise CheckpointError(
                "the model's scores are not numbers (NaN): its weights are damaged or its values overflow; try "
                "finetune.precision=fp32, or export the model again"
            )
        return scores
