"""CiCo's objective (Cheng et al. 2023, section 3.2; code: FangyunWei/SLRT, CiCo/CLCL, its default settings).

CLCL comes from here, so similarity and InfoNCE are those of `clcl` with alpha = 1/2, on one level: set `clcl.beta=0`.
What CiCo adds is a second view of the text: the text-to-video similarities, and these alone, read the sentence with two
of its words swapped, with probability 1/2 a clip and step. Word vectors do not know their order, so the view shows at
the hidden-state level only.

Left out, as the published code has it by accident of its batches: padded positions, and the video's class token, stand
in the inner softmax; gradients are 1/W of the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from sage_scale.losses.objectives import OBJECTIVES, Clcl
from sage_scale.losses.pair_losses import InfoNce

SWAPPED_SHARE = 0.5
"""Probability that a clip's second view differs."""


class Cico(Clcl):
    """Token-level CLCL whose text-to-video similarities may read a second view of the texts."""

    name = "cico"
    second_view: ClassVar[bool] = True

    def share(
        self, visual_ND: Tensor, text_MD: Tensor, visual_lengths_B: Tensor, text_lengths_B: Tensor, *rest: Any,
        view: tuple[Tensor, Tensor] | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        """Returns `Clcl.share`; `view` are packed tokens and lengths of the second view of the same clips' texts."""
        given = (visual_ND, text_MD, visual_lengths_B, text_lengths_B, *rest)
        if view is None:
            return super().share(*given, **options)
        of_video = super().share(*given, **{**options, "pair_loss": self._half(0)})
        given = (visual_ND, view[0], visual_lengths_B, view[1], *rest)
        return of_video + super().share(*given, **{**options, "pair_loss": self._half(1)})

    def _half(self, of: int) -> InfoNce:
        """Returns `pair_loss` with the terms of Zv (0) or Zt (1) alone."""
        whole = self.pair_loss()
        assert isinstance(whole, InfoNce)
        rows, columns = ([0.0, 0.0] for _ in range(2))
        rows[of], columns[of] = whole.rows[of], whole.columns[of]
        return InfoNce((rows[0], rows[1]), (columns[0], columns[1]))


def swapped_words(texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Returns each text, or, in half of the cases, with two of its words swapped; the seeds, one a text, decide."""
    views = []
    for text, seed in zip(texts, seeds, strict=True):
        draw, words = np.random.default_rng(abs(seed)), text.split(" ")
        if len(words) > 1 and draw.random() < SWAPPED_SHARE:
            one, other = draw.choice(len(words), 2, replace=False)
            words[one], words[other] = words[other], words[one]
        views.append(" ".join(words))
    return views


OBJECTIVES[Cico.name] = Cico
