"""Stage 2 with a frozen part: its outputs are computed once a clip (and view) and kept in memory.

With `finetune.freeze=backbone` the frame encoder stays as stage 1 left it and its features are kept; with `visual`
the whole visual side does and its tokens are kept. `frozen_views` augmented views of a clip keep some of the
variety that training on frames would have seen; epoch e sees view e mod views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sage_scale.config import Stage
from sage_scale.models.sage import SageTranslator
from sage_scale.streaming import Batch
from sage_scale.training.engine import Engine
from sage_scale.vision.packed import PackedVideo


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of B clips after the mapper, packed: (N, D) with the segments of each clip."""

    tokens_ND: Tensor
    clip_segments_B: Tensor


class FrozenOutputs:
    """Decides what the translator is given for a batch, and keeps frozen modules frozen."""

    def __init__(self, model: SageTranslator, stage: Stage) -> None:
        self.model = model
        self.kind = stage.freeze
        self.views = max(1, stage.frozen_views)
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._modules = {
            "none": [],
            "backbone": [model.visual.backbone],
            "visual": [model.visual, model.mapper],
        }[stage.freeze]
        for module in self._modules:
            module.requires_grad_(False)

    def set_mode(self) -> None:
        """Frozen modules run as in evaluation: running statistics, no dropout."""
        for module in self._modules:
            module.eval()

    def inputs(self, batch: Batch, engine: Engine) -> PackedVideo | VisualTokens:
        """What the translator's forward takes for this batch."""
        if self.kind == "none" or not batch.keys:
            return batch.video.to(engine.ranks.device)
        view = batch.epoch % self.views
        missing = [i for i, key in enumerate(batch.keys) if (key, view) not in self._kept]
        if missing:
            self._compute(batch, missing, view, engine)
        kept = torch.cat([self._kept[key, view] for key in batch.keys]).to(engine.ranks.device)
        video = replace(batch.video, frames_FCHW=None, background_BCHW=None).to(engine.ranks.device)
        if self.kind == "visual":
            return VisualTokens(kept, video.clip_segments_B)
        return replace(video, features_FC=kept)

    @torch.no_grad()
    def _compute(self, batch: Batch, missing: list[int], view: int, engine: Engine) -> None:
        some = batch.select(missing)
        video = some.video.to(engine.ranks.device)
        generator = torch.Generator().manual_seed(view)
        salt = int(torch.randint(1 << 62, (1,), generator=generator))
        draws = None if view == 0 or video.draws_B is None else _fixed_draws(some.keys, salt).to(engine.ranks.device)
        video = replace(video, draws_B=draws)
        with engine.precision():
            if self.kind == "visual":
                values, lengths = self.model.encode_tokens(video), video.clip_segments_B
            else:
                values = self.model.visual.frame_features(video)
                lengths = torch.zeros_like(video.clip_segments_B).index_add_(
                    0, torch.repeat_interleave(video.clip_segments_B), video.segment_frames_N
                )
        for key, value in zip(some.keys, values.detach().cpu().split(lengths.tolist())):
            self._kept[key, view] = value.clone()


def _fixed_draws(keys: list[str], salt: int) -> Tensor:
    # Of clip and view alone: whichever rank and epoch comes first, the view is the same.
    return torch.tensor([(int(key, 16) ^ salt) & ((1 << 62) - 1) for key in keys], dtype=torch.int64)
