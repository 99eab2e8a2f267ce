"""Detects NaN or infinite losses and gradients, and spikes of the loss.

The loss is summed over the ranks *before* the optimizer moves anything, so every rank comes to the same verdict and
the update is left out everywhere. The recipe (`on_bad_loss`) decides what follows: `stop`; `skip`, as if the batch
had not been; or `roll_back` to the last checkpoint's weights and on with the batches behind the bad one, as PaLM was
trained past its spikes (Chowdhery et al. 2022, section 5.1). A spike is a loss above `spike_factor` times the median
of the last 64 good ones. Those are part of a checkpoint, so a resumed run judges as the undisturbed one.
"""

from __future__ import annotations

import math
import statistics

import torch

from sage_scale.config import Stage
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.checkpoint.snapshot import stored_buffers
from sage_scale.training.engine import Engine

WINDOW = 64
"""Losses that the median is taken of."""
FEWEST = 8
"""Fewest losses for a median that decides on spikes."""


class LossGuard:
    """Judges each step of a stage; the losses it remembers are in `progress`, which the loop may exchange."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        self._engine = engine
        self._stage = stage
        # A batch whose loss is not finite also leaves such values in BatchNorm's running statistics.
        kept = stage.on_bad_loss != "stop"
        self._buffers = [buffer for _, buffer in stored_buffers(engine)] if kept else []
        self._before = [torch.empty_like(buffer) for buffer in self._buffers]

    def begin(self) -> None:
        """Before the forward pass: keep the buffers that it changes."""
        for kept, buffer in zip(self._before, self._buffers):
            kept.copy_(buffer)

    def judge(self, share: float, progress: TrainingProgress) -> str:
        """After the backward pass: returns why this step must not move the weights, or "" (a collective)."""
        loss = distributed.sum_over_ranks([share], self._engine.ranks.device)[0]
        reason = judge_loss(loss, progress.recent_losses, self._stage.spike_factor)
        if not reason:
            progress.recent_losses = [*progress.recent_losses[1 - WINDOW :], loss]
        return reason

    def judge_gradient(self) -> str:
        """After the optimizer, which leaves out gradients that are not finite: returns a line on them, or ""."""
        norm = self._engine.gradient_norm()
        if math.isfinite(norm) or self._engine.scale.enabled:
            return ""  # with a scaled loss an overflow is how its scale is found
        return f"the gradient norm is {norm}"

    def undo_forward(self) -> None:
        """Put running statistics back to their values before the step."""
        for kept, buffer in zip(self._before, self._buffers):
            buffer.copy_(kept)


def judge_loss(loss: float, recent: list[float], spike_factor: float) -> str:
    """Returns why a loss is bad, or "". `recent` are the last good losses; `spike_factor` 0 looks for no spikes."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if spike_factor > 0 and len(recent) >= FEWEST:
        usual = statistics.median(recent)
        if usual > 0 and loss > spike_factor * usual:
            return f"the loss of {loss:.4g} is {loss / usual:.1f} times the usual {usual:.4g}"
    return ""
