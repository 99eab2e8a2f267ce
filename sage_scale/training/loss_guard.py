"""Detects NaN or infinite losses and gradients, and spikes of the loss.

The loss is summed over the ranks *before* the optimizer step, so every rank decides alike and skips the same update.
The recipe (`on_bad_loss`) decides what follows: `stop`; `skip` the batch; or `roll_back` to the last checkpoint's
weights and continue with the batches after the bad one, as PaLM did at its loss spikes (Chowdhery et al. 2022, section
5.1). A spike is a loss above `spike_factor` times the median of the last 64 good losses. These are stored in
checkpoints, so a resumed run decides as the uninterrupted one.
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
    """Checks the loss and gradient of each step; recent losses are in `progress`, which the loop may replace."""

    def __init__(self, engine: Engine, stage: Stage) -> None:
        self._engine = engine
        self._stage = stage
        # A batch whose loss is not finite also leaves such values in BatchNorm's running statistics.
        kept = stage.on_bad_loss != "stop"
        self._buffers = [buffer for _, buffer in stored_buffers(engine)] if kept else []
        self._before = [torch.empty_like(buffer) for buffer in self._buffers]

    def begin(self) -> None:
        """Call before the forward pass: copies the buffers that the pass changes."""
        for kept, buffer in zip(self._before, self._buffers):
            kept.copy_(buffer)

    def check_loss(self, share: float, progress: TrainingProgress) -> str:
        """Call after the backward pass: returns the reason to skip this step's update, or "" (a collective)."""
        loss = distributed.sum_over_ranks([share], self._engine.ranks.device)[0]
        reason = fault_of_loss(loss, progress.recent_losses, self._stage.spike_factor)
        if not reason:
            progress.recent_losses = [*progress.recent_losses[1 - WINDOW :], loss]
        return reason

    def check_gradient(self) -> str:
        """Call after the optimizer step, which skips non-finite gradients: returns a line on them, or ""."""
        norm = self._engine.gradient_norm()
        if math.isfinite(norm) or self._engine.loss_scale.enabled:
            return ""  # with a scaled loss an overflow is how its scale is found
        return f"the gradient norm is {norm}"

    def restore_buffers(self) -> None:
        """Restore the buffers (running statistics) from before the forward pass."""
        for kept, buffer in zip(self._before, self._buffers):
            buffer.copy_(kept)


def fault_of_loss(loss: float, recent: list[float], spike_factor: float) -> str:
    """Returns why a loss is bad, or "". `recent` are the last good losses; `spike_factor` 0 disables spikes."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if spike_factor > 0 and len(recent) >= FEWEST:
        usual = statistics.median(recent)
        if usual > 0 and loss > spike_factor * usual:
            return f"the loss of {loss:.4g} is {loss / usual:.1f} times the usual {usual:.4g}"
    return ""
