"""Stage 2 with frozen modules: their outputs are computed once per clip and view, and kept in memory.

With `finetune.freeze=backbone` the frame encoder is frozen and its features are kept; with `visual` the whole visual
side is frozen and its tokens are kept. `frozen_views` augmented views of a clip preserve part of the augmentation;
epoch e uses view e mod `frozen_views`, and view 0 is not augmented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.config import Stage
from sage_scale.errors import RecipeError
from sage_scale.streaming import Batch
from sage_scale.training.engine import Engine
from sage_scale.vision.packed import PackedVideo, view_seed


class FrozenOutputs:
    """Outputs of a translator's frozen modules, and its loss from stored outputs; the base class freezes nothing."""

    def __init__(
        self, model: Any, stage: Stage, backbone: nn.Module | None = None, visual: Sequence[nn.Module] = ()
    ) -> None:
        """`backbone` is the frame encoder, `visual` the whole visual side."""
        self.model = model
        self.kind = stage.freeze
        if self.kind == "backbone" and backbone is None:
            self.kind = "none"  # features come from the shards: there is no backbone to freeze
        self.views = max(1, stage.frozen_views)
        self._kept: dict[tuple[str, int], Tensor] = {}
        parts: dict[str, Sequence[Any]] = {"none": [], "backbone": [backbone], "visual": visual}
        self._modules = parts[self.kind]
        for module in self._modules:
            module.requires_grad_(False)

    def set_mode(self) -> None:
        """Put frozen modules in evaluation mode: running statistics, no dropout."""
        for module in self._modules:
            module.eval()

    def forward(self, video: PackedVideo, kept: Tensor | None, *text: Any) -> tuple[Tensor, Tensor]:
        """Returns the translator's summed loss and number of labels, from the stored outputs `kept` or, with None,
        from the video. `text` is labels (B, L), input ids (B, L) and label smoothing."""
        return self.model(video, *text) if kept is None else self.forward_kept(video, kept, *text)

    def forward_kept(self, video: PackedVideo, kept: Tensor, *text: Any) -> tuple[Tensor, Tensor]:
        """Returns `forward` from stored frame features (F, C) or tokens (N, D)."""
        raise NotImplementedError

    def values(self, video: PackedVideo, augmented: bool) -> tuple[Tensor, list[int]]:
        """Returns the outputs to store for a batch of clips, packed, and the number of rows of each clip."""
        raise RecipeError(
            f"finetune.freeze={self.kind}: this model cannot freeze a part: set finetune.freeze=none"
        )

    def inputs(self, batch: Batch, engine: Engine) -> tuple[PackedVideo, Tensor | None]:
        """Returns the batch on the engine's device, with its stored outputs instead of its frames."""
        device = engine.ranks.device
        if self.kind == "none" or not batch.keys:
            return batch.video.to(device), None
        view = batch.epoch % self.views
        missing = [row for row, key in enumerate(batch.keys) if (key, view) not in self._kept]
        if missing:
            self._compute(batch.select(missing), view, engine)
        kept = torch.cat([self._kept[key, view] for key in batch.keys]).to(device)
        return replace(batch.video, frames_FCHW=None, background_BCHW=None).to(device), kept

    @torch.no_grad()
    def _compute(self, batch: Batch, view: int, engine: Engine) -> None:
        # Of clip and view alone: whichever rank and epoch comes first, the view is the same.
        clip_seeds_B = torch.tensor([view_seed(key, view) for key in batch.keys], dtype=torch.int64)
        video = replace(batch.video, clip_seeds_B=clip_seeds_B).to(engine.ranks.device)
        with engine.precision():
            values, lengths = self.values(video, augmented=view > 0)
        for key, value in zip(batch.keys, values.detach().cpu().split(lengths)):
            self._kept[key, view] = value.clone()
