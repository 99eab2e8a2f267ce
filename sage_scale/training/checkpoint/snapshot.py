"""Copies a rank's part of a checkpoint to host memory, and restores tensors into an engine.

The engine gathers weights and optimizer tensors unsharded, one at a time; one rank keeps each tensor, chosen so that
all ranks write about the same number of bytes. Names are `weight/<parameter>`, `buffer/<name>` (running statistics of
BatchNorm) and `<state>/<parameter>` (momentum_buffer, exp_avg, exp_avg_sq).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sage_scale.training.engine import Engine
from sage_scale.training.optimizer import UNBOUNDED, bounds_of, state_names


class HostCopies:
    """Host buffers for snapshots; on CUDA they are pinned and reused, since pinning is slow."""

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    def copy(self, name: str, value: Tensor) -> Tensor:
        """Returns a copy in host memory; on CUDA it is complete after the next synchronisation."""
        if value.device.type != "cuda":
            return value.detach().clone(memory_format=torch.contiguous_format)
        kept = self._pinned.get(name)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            kept = self._pinned[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return kept.copy_(value.detach(), non_blocking=True)


def take_snapshot(engine: Engine, copies: HostCopies) -> dict[str, Tensor]:
    """Returns copies of this rank's part of the tensors (a collective: every rank takes part in each gather)."""
    ranks = engine.ranks
    tensors: dict[str, Tensor] = {}
    written = [0] * ranks.world
    for name, parameter in engine.trainable_parameters():
        owner = written.index(min(written))  # the rank with the fewest numbers so far
        written[owner] += math.prod(engine.full_shape(parameter))
        for kind in ("weight", *state_names(engine.stage)):
            value = engine.weight(parameter) if kind == "weight" else engine.optimizer_state(parameter, kind)
            if owner == ranks.rank:
                tensors[f"{kind}/{name}"] = copies.copy(f"{kind}/{name}", value)
    if ranks.is_main:
        for name, buffer in stored_buffers(engine):
            tensors[f"buffer/{name}"] = copies.copy(f"buffer/{name}", buffer)
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    return tensors


def stored_buffers(engine: Engine) -> list[tuple[str, Tensor]]:
    """Returns the persistent buffers, such as BatchNorm's statistics."""
    # Tied weights have several names; ZeRO-3 holds an empty part under each.
    parameters = {name for name, _ in engine.model.named_parameters(remove_duplicate=False)}
    return [(name, value) for name, value in engine.model.state_dict().items() if name not in parameters]


def shapes(engine: Engine) -> dict[str, list[int]]:
    """Returns the unsharded shapes of the trainable parameters by name."""
    return {name: list(engine.full_shape(parameter)) for name, parameter in engine.trainable_parameters()}


def old_scale_names(model: nn.Module) -> dict[str, str]:
    """Returns version 0.1.0's name of each scale parameter -> the parameter that now holds its logarithm."""
    return getattr(model, "old_scale_names", {})


def with_present_names(engine: Engine, shaped: dict[str, list[int]]) -> dict[str, list[int]]:
    """Returns a checkpoint's shapes, with version 0.1.0's parameter names replaced by the present ones."""
    return {old_scale_names(engine.model).get(name, name): shape for name, shape in shaped.items()}


class Restore:
    """Restores a checkpoint's tensors file by file, without holding all of them in memory."""

    def __init__(self, engine: Engine, updates: int) -> None:
        """`updates` is the number of updates of the weights; AdamW's bias correction counts them."""
        engine.prepare_optimizer_state(updates)
        self._engine = engine
        self._parameters = dict(engine.trainable_parameters())
        self._buffers = dict(stored_buffers(engine))
        self._bounds = bounds_of(engine.model)
        self._old_scales = old_scale_names(engine.model)
        self._kinds = state_names(engine.stage)

    @torch.no_grad()
    def put(self, name: str, value: Tensor) -> None:
        """Set one tensor; a tensor unknown to the engine (another optimizer's state) is ignored.

        A scale of version 0.1.0 is converted to its logarithm, whose optimizer tensors are set to zero.
        """
        kind, _, rest = name.partition("/")
        if rest in self._old_scales:
            rest = self._old_scales[rest]
            # Nothing held a scale of 0.1.0 above 0; one that is not begins at 1.
            value = torch.where(value > 0, value, 1.0).log() if kind == "weight" else torch.zeros_like(value)
        if kind == "buffer" and rest in self._buffers:
            self._buffers[rest].copy_(value)
        elif kind == "weight" and rest in self._parameters:
            parameter = self._parameters[rest]
            self._engine.set_weight(parameter, value.clamp(*self._bounds.get(parameter, UNBOUNDED)))
        elif kind in self._kinds and rest in self._parameters:
            self._engine.set_optimizer_state(self._parameters[rest], kind, value)


def split_by_size(tensors: dict[str, Tensor], most_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Yields the tensors in groups of at most `most_bytes`; a larger tensor is a group of its own."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, value in tensors.items():
        if group and size + value.nbytes > most_bytes:
            yield group
            group, size = {}, 0
        group[name] = value
        size += value.nbytes
    if group:
        yield group
