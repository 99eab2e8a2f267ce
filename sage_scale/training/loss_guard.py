"""Losses that go wrong: no number, infinite, or far above what was usual, and gradients that are no numbers.

The loss is summed over the ranks *before* the optimizer moves anything, so every rank comes to the same verdict and
the update is left out everywhere. What then happens says the recipe (`on_bad_loss`): `stop`; `skip`, as if the batch
had not been; or `roll_back` to the last checkpoint's weights and on with the batches behind the bad one, as PaLM was
trained past its spikes (Chowdhery et al. 2022, section 5.1). A spike is a loss above `spike_factor` times the median
of the last 64 good ones. Those are part of a checkpoint, so a resumed run judges as the undisturbed one.
"""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from sage_scale.config import Stage
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.checkpoint.snapshot import stored_buffers
from sage_scale.training.engine import Engine

WINDOW = 64
"""Losses that the median is taken of."""
FEWEST = 8
"""Losses that a median must rest on before anything is called a spike."""


class LossGuard:
    """Judges each step of a stage; the losses it remembers are in `progress`, which the loop may exchange."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        self._engine = engine
        self._stage = stage
        # A batch that gives no numbers also leaves none in BatchNorm's running statistics.
        self._buffers = (
            [buffer for _, buffer in stored_buffers(engine)] if stage.on_bad_loss != "stop" else []
        )
        self._before: list[Tensor] = [torch.empty_like(buffer) for buffer in self._buffers]

    def begin(self) -> None:
        """Before the forward pass: keep what it changes besides gradients."""
        for kept, buffer in zip(self._before, self._buffers):
            kept.copy_(buffer)

    def judge(self, share: float, progress: TrainingProgress) -> str:
        """After the backward pass: why this step must not move the weights, or "" (a collective)."""
        loss = distributed.sum_over_ranks([share], self._engine.ranks.device)[0]
        reason = judge_loss(loss, progress.recent_losses, self._stage.spike_factor)
        if not reason:
            progress.recent_losses = [*progress.recent_losses[1 - WINDOW :], loss]
        return reason

    def judge_gradient(self) -> str:
        """After the optimizer's turn, which leaves such gradients out by itself: whether they were no numbers."""
        norm = self._engine.gradient_norm()
        if math.isfinite(norm) or self._engine.scale.enabled:
            return ""  # with a scaled loss an overflow is how its scale is found
        return f"the gradient norm is {norm}"

    def undo_forward(self) -> None:
        """Put running statistics back to where they were before the step."""
        for kept, buffer in zip(self._before, self._buffers):
            buffer.copy_(kept)


def judge_loss(loss: float, recent: list[float], spike_factor: float) -> str:
    """Why a loss is bad, or "". `recent` are good losses of before; `spike_factor` 0 looks for no spikes."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if spike_factor > 0 and len(recent) >= FEWEST:
        usual = statistics.median(recent)
        if usual > 0 and loss > spike_factor * usual:
            return f"the loss of {loss:.4g} is {loss / usual:.1f} times the usual {usual:.4g}"
    return ""
