"""SignCL: near frames of a clip alike, distant ones apart (Ye et al. 2024, section 4.1, equations 4 and 5).

A term of its own beside any objective (`clcl.neighbours`, published weight .01). For the F frames x_i of a clip, with
the Euclidean distance d and the clip's margin max(10, 2.3 F / M) over M text tokens,

    loss = 1/F sum_i [ mean of d(x_i, x_j) over |i - j| = 1
                       + mean of max(0, m - d(x_i, x_j)) over |i - j| > 2 margin ]

The paper draws one such j of each kind; this is the expectation of the draw, the same at any number of ranks. A frame
without a distant one has no second part. m is 64 there, for features 1,024 wide; distances of a narrower feature are
stretched to that width, by sqrt(1,024 / D), so that m and the weight keep their meaning.

The published code differs from the paper: sums of absolute differences, softplus around 32 on both sides, 2 and 4
drawn frames; and its script of the first stage logs the term without training it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sage_scale.losses.tokens import pad_packed

FARTHEST = 64.0
"""m of equation 5: distant frames are pushed apart up to this distance."""
PUBLISHED_WIDTH = 1024
LEAST_MARGIN, FRAMES_A_SIGN = 10.0, 2.3
"""A sign stands for 2.3 spoken words (section 4.1)."""


def neighbour_loss(frames_FD: Tensor, clip_frames_B: Tensor, text_lengths_B: Tensor) -> Tensor:
    """Returns the loss of packed frames, summed over the clips, a scalar; at least float32.

    `clip_frames_B` and `text_lengths_B` are int64, the frames and text tokens of each clip. A clip of one frame, and no
    clips, give 0, with a gradient of zeros.
    """
    kind = torch.float64 if frames_FD.dtype == torch.float64 else torch.float32
    device_type = frames_FD.device.type
    with torch.autocast(device_type, enabled=False):
        x_BLD, real_BL = pad_packed(frames_FD.to(kind), clip_frames_B)
        if not real_BL.numel():
            return frames_FD.to(kind).sum() * 0
        frames_B = clip_frames_B.to(device=x_BLD.device)
        stretch = (PUBLISHED_WIDTH / frames_FD.shape[1]) ** 0.5
        return (
            (_near(x_BLD, real_BL, stretch) + _far(x_BLD, real_BL, text_lengths_B, stretch)) / frames_B
        ).sum()


def _near(x_BLD: Tensor, real_BL: Tensor, stretch: float) -> Tensor:
    """Returns (B,): the sum over frames of the mean distance to the one or two next to them."""
    pairs_BK = real_BL[:, 1:]  # of frames k and k + 1
    steps_BK = stretch * torch.linalg.vector_norm(x_BLD[:, 1:] - x_BLD[:, :-1], dim=2)
    neighbours_BL = torch.zeros_like(real_BL, dtype=x_BLD.dtype)
    neighbours_BL[:, 1:] += pairs_BK
    neighbours_BL[:, :-1] += pairs_BK
    share_BL = 1 / neighbours_BL.clamp_min(1)
    return (steps_BK * pairs_BK * (share_BL[:, 1:] + share_BL[:, :-1])).sum(1)


def _far(x_BLD: Tensor, real_BL: Tensor, text_lengths_B: Tensor, stretch: float) -> Tensor:
    """Returns (B,): the sum over frames of the mean of what is missing to `FARTHEST`, over distant frames."""
    frames_B = real_BL.sum(1)
    words_B = text_lengths_B.to(frames_B.device).clamp_min(1)
    margin_B = (FRAMES_A_SIGN * frames_B / words_B).clamp_min(LEAST_MARGIN)
    place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
    gap_LL = (place_L[:, None] - place_L).abs()
    distant_BLL = (gap_LL > 2 * margin_B[:, None, None]) & real_BL[:, :, None] & real_BL[:, None, :]
    # The way over a product of matrices loses the digits of small distances.
    d_BLL = torch.cdist(x_BLD, x_BLD, compute_mode="donot_use_mm_for_euclid_dist")
    missing_BLL = (FARTHEST - stretch * d_BLL).clamp_min(0) * distant_BLL
    return (missing_BLL.sum(2) / distant_BLL.sum(2).clamp_min(1)).sum(1)
