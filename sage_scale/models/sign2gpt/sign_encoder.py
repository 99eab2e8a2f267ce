"""The sign encoder: a transformer with local attention that halves the frames (Sign2GPT, section 3.1).

Four post-norm layers, 8 heads: sine positions at the input, rotations on queries and keys, LayerScale and stochastic
depth; behind the second layer the mean of 3 frames at every second one. Rows of all clips are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.config import Sign2Gpt
from sage_scale.models.sign2gpt.local_attention import DenseMask, Windows
from sage_scale.models.sign2gpt.positions import packed_positions, rotate, rotations, sine_positions
from sage_scale.nn.dropout import keyed_dropout, token_seeds
from sage_scale.vision.packed import uniform

_SALT = 30_000


@dataclass(frozen=True)
class Rows:
    """Packed rows of B clips: `lengths_B` each, of which the first `real_B` are real (others are padding)."""

    lengths_B: Tensor
    real_B: Tensor
    window: int
    padded: bool
    """Whether padding takes part as in the released code."""

    @property
    def clip_N(self) -> Tensor:
        """Returns int64 (N,): the clip of each row."""
        return self._positions[0]

    @property
    def position_N(self) -> Tensor:
        """Returns int64 (N,): the position of each row in its clip."""
        return self._positions[1]

    @cached_property
    def _positions(self) -> tuple[Tensor, Tensor]:
        return packed_positions(self.lengths_B)

    @cached_property
    def attention(self) -> Windows | DenseMask:
        """Returns the attention of these rows, made once for all layers."""
        if self.window and not self.padded:
            return Windows(self.clip_N, self.window)
        return DenseMask(self.lengths_B, self.real_B, self.window)

    def halved(self) -> Rows:
        """Returns ceil(n / 2) rows a clip. With padding, an even clip's last frame makes a token with padding as
        well."""
        lengths_B = (self.lengths_B + 1) // 2
        real_B = torch.minimum(self.real_B // 2 + 1, lengths_B) if self.padded else lengths_B
        return Rows(lengths_B, real_B, self.window, self.padded)


class SignEncoder(nn.Module):
    """Z* (F, width) to Z: about half as many rows, packed. Without layers, Z* itself (Table 10)."""

    def __init__(self, settings: Sign2Gpt) -> None:
        super().__init__()
        self.settings = settings
        last = max(settings.layers - 1, 1)
        self.layers = nn.ModuleList(
            EncoderLayer(settings, settings.drop_path * number / last, _SALT + 10 * number)
            for number in range(settings.layers)
        )

    def token_lengths(self, frames_B: Tensor) -> Tensor:
        """Returns int64 (B,): tokens that clips of so many frames have."""
        return self._through(self._rows(frames_B)).real_B

    def forward(
        self, x_FD: Tensor, frames_B: Tensor, clip_seeds_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens (N, width) and how many each clip has, int64 (B,): half as many as frames, rounded up.

        `clip_seeds_B` (int64) decide dropout and depth in training, where they are needed.
        """
        if not self.layers:
            return x_FD, frames_B
        rows = self._rows(frames_B)
        if rows.padded:
            x_FD = _with_padding(x_FD, rows)
        x_FD = x_FD + sine_positions(rows.position_N, x_FD.shape[1]).to(x_FD.dtype)
        seeds_N = token_seeds(clip_seeds_B, rows.lengths_B)
        for number, layer in enumerate(self.layers, start=1):
            x_FD = layer(x_FD, rows, clip_seeds_B, seeds_N)
            if number == self.settings.downsample_after:
                x_FD = average_strided(x_FD, rows)
                rows = rows.halved()
                seeds_N = token_seeds(clip_seeds_B, rows.lengths_B)
        return (x_FD[rows.position_N < rows.real_B[rows.clip_N]] if rows.padded else x_FD), rows.real_B

    def _rows(self, frames_B: Tensor) -> Rows:
        if self.settings.padding == "released" and frames_B.numel():
            return Rows(frames_B.max().expand_as(frames_B), frames_B, self.settings.window, True)
        return Rows(frames_B, frames_B, self.settings.window, False)

    def _through(self, rows: Rows) -> Rows:
        return rows.halved() if self.settings.downsample_after else rows


class EncoderLayer(nn.Module):
    """x = norm1(x + scale1 * attention(x)); x = norm2(x + scale2 * mlp(x))."""

    def __init__(self, settings: Sign2Gpt, drop_path: float, salt: int) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.dropout, self.drop_path, self.salt = (
            settings.heads,
            settings.dropout,
            drop_path,
            salt,
        )
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, settings.ffn), nn.Linear(settings.ffn, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.scale1 = nn.Parameter(torch.full((width,), settings.layer_scale))
        self.scale2 = nn.Parameter(torch.full((width,), settings.layer_scale))
        for linear in (self.query, self.key, self.value, self.out, self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, x_ND: Tensor, rows: Rows, clip_seeds_B: Tensor | None = None, seeds_N: Tensor | None = None
    ) -> Tensor:
        """Draws as for `SignEncoder.forward`, of the clips and of the rows."""
        attended = self._drop(self.out(self._attend(x_ND, rows)), seeds_N, 0)
        x_ND = self.norm1(x_ND + self._kept(self.scale1 * attended, rows, clip_seeds_B, 3))
        fed = self._drop(F.gelu(self.fc1(x_ND)), seeds_N, 1)
        fed = self._drop(self.fc2(fed), seeds_N, 2)
        return self.norm2(x_ND + self._kept(self.scale2 * fed, rows, clip_seeds_B, 4))

    def _attend(self, x_ND: Tensor, rows: Rows) -> Tensor:
        q, k, v = (
            linear(x_ND).unflatten(1, (self.heads, -1)) for linear in (self.query, self.key, self.value)
        )
        cos, sin = rotations(rows.position_N, q.shape[-1])
        return rows.attention.attend(rotate(q, cos, sin), rotate(k, cos, sin), v).flatten(1)

    def _drop(self, x_ND: Tensor, seeds_N: Tensor | None, site: int) -> Tensor:
        return keyed_dropout(x_ND, seeds_N, self.dropout, self.salt + site, self.training)

    def _kept(self, x_ND: Tensor, rows: Rows, clip_seeds_B: Tensor | None, site: int) -> Tensor:
        """Apply stochastic depth: a clip's whole branch is left out with probability `drop_path` (Huang et al.
        2016)."""
        if not self.training or not self.drop_path:
            return x_ND
        if clip_seeds_B is None:
            raise ValueError("stochastic depth in training needs the clips' random numbers, clip_seeds_B")
        keep_B = (uniform(clip_seeds_B, self.salt + site) >= self.drop_path).to(x_ND.dtype)
        return x_ND * (keep_B / (1 - self.drop_path))[rows.clip_N][:, None]


def average_strided(x_ND: Tensor, rows: Rows) -> Tensor:
    """Returns the mean of rows 2j - 1, 2j, 2j + 1 of each clip, for every j: kernel 3, stride 2 (section 3.1).

    A neighbour beyond the clip's ends is a zero, and the sum is divided by 3 all the same.
    """
    halved = rows.halved()
    starts_B = rows.lengths_B.cumsum(0) - rows.lengths_B
    offsets_3 = torch.arange(-1, 2, device=x_ND.device)
    position_M3 = 2 * halved.position_N[:, None] + offsets_3
    inside_M3 = (position_M3 >= 0) & (position_M3 < rows.lengths_B[halved.clip_N][:, None])
    row_M3 = (starts_B[halved.clip_N][:, None] + position_M3).clamp(0, max(x_ND.shape[0] - 1, 0))
    return (x_ND[row_M3] * inside_M3[..., None].to(x_ND.dtype)).sum(1) / 3


def _with_padding(x_FD: Tensor, rows: Rows) -> Tensor:
    """Returns rows of zeros behind each clip's real ones, up to its length."""
    real_N = rows.position_N < rows.real_B[rows.clip_N]
    return x_FD.new_zeros(real_N.numel(), x_FD.shape[1]).masked_scatter(real_N[:, None], x_FD)
