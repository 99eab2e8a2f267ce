"""One side of the contrastive loss: packed tokens of unit length, clips sorted by length, cut into blocks.

Packed tokens need no masks: a block holds whole clips, and consecutive clips of one length are a
*run*, over which sums and broadcasts are plain reshapes. Sorting by length makes runs long. There is no padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor

EPSILON = 1e-12
"""Shorter vectors are divided by this instead of their length, as in torch.nn.functional.normalize."""

ROWS_AT_ONCE = 4096
"""Tokens that element by element work takes at once, so that its temporaries stay small."""


@dataclass(frozen=True, slots=True)
class LengthRun:
    """A run: `clips` clips of `length` tokens each, with the positions of the first clip and token in the block."""

    clip: int
    token: int
    clips: int
    length: int

    @property
    def tokens(self) -> slice:
        """Returns the run's tokens as a slice of its block."""
        return slice(self.token, self.token + self.clips * self.length)

    @property
    def clip_slice(self) -> slice:
        """Returns the run's clips as a slice of its block."""
        return slice(self.clip, self.clip + self.clips)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive clips of one side, with their tokens."""

    clip: int
    """Index of the first clip on the side."""
    token: int
    """Index of the first token on the side."""
    lengths: tuple[int, ...]
    """Tokens of each clip, ascending."""
    runs: tuple[LengthRun, ...]
    _held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def starts_and_lengths(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns each clip's first token in the block and its number of tokens; cached per device and dtype."""
        if (device, dtype) not in self._held:
            starts = [0, *accumulate(self.lengths)][:-1]
            both = torch.tensor([starts, self.lengths], dtype=dtype, device=device)
            self._held[device, dtype] = (both[0], both[1])
        return self._held[device, dtype]

    @property
    def clips(self) -> slice:
        """Returns the block's clips as a slice of its side."""
        return slice(self.clip, self.clip + len(self.lengths))

    @property
    def size(self) -> int:
        """Returns the number of tokens in the block."""
        return sum(self.lengths)


def blocks_of(lengths: Sequence[int], tokens: int) -> tuple[Block, ...]:
    """Returns blocks of consecutive clips with at most `tokens` tokens each (or one longer clip)."""
    blocks: list[Block] = []
    held: list[int] = []
    clip = token = 0
    for length in lengths:
        if held and sum(held) + length > tokens:
            blocks.append(_block(clip, token, held))
            clip, token, held = clip + len(held), token + sum(held), []
        held.append(length)
    return (*blocks, _block(clip, token, held)) if held else tuple(blocks)


def length_order(lengths: Sequence[int]) -> list[int]:
    """Returns the permutation that sorts clips by length (stable, ascending)."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def _block(clip: int, token: int, lengths: list[int]) -> Block:
    runs: list[LengthRun] = []
    at_clip = at_token = 0
    for length, group in groupby(lengths):
        clips = len(list(group))
        runs.append(LengthRun(at_clip, at_token, clips, length))
        at_clip, at_token = at_clip + clips, at_token + clips * length
    return Block(clip, token, tuple(lengths), tuple(runs))


class Side:
    """The tokens of one side, normalised and sorted by clip length, and the gradient in their original order."""

    def __init__(
        self, tokens_ND: Tensor, lengths: Sequence[int], compute: torch.dtype, spare: int = 0
    ) -> None:
        """`tokens_ND` (sum of lengths, D) of any floating type; computed in `compute`, with `spare` rows of zeros.

        Raises ValueError where the lengths do not sum to the rows, or a clip has no token.
        """
        if sum(lengths) != tokens_ND.shape[0]:
            raise ValueError(f"lengths sum to {sum(lengths)}, but there are {tokens_ND.shape[0]} rows")
        if any(length < 1 for length in lengths):
            raise ValueError(f"clip {next(b for b, n in enumerate(lengths) if n < 1)} has no tokens")
        self.order = length_order(lengths)
        """Original index of each sorted clip."""
        self.lengths = [lengths[clip] for clip in self.order]
        """Tokens of each sorted clip, ascending."""
        self.index_N = None if self.order == list(range(len(lengths))) else _token_index(lengths, self.order)
        """Original row of each sorted token; None if the clips were sorted already."""
        if self.index_N is not None:
            self.index_N = self.index_N.to(tokens_ND.device)
        self.compute, self.spare = compute, spare
        self.tokens_ND = tokens_ND.detach()
        """The tokens as they were given. Normalised ones are made where they are needed: a copy of all would take as
        much memory as they do, and making one takes no time beside its products."""
        self.norm_N = torch.empty(tokens_ND.shape[0], dtype=compute, device=tokens_ND.device)
        """Length of each token, in sorted order, at least EPSILON."""
        for part in self._parts():
            self.norm_N[part] = torch.linalg.vector_norm(self._given(part), dim=1).clamp_min(EPSILON)

    def unit(self, rows: slice) -> Tensor:
        """Returns the normalised tokens at these positions, in the dtype `compute`; zeros for spare rows."""
        count = self.norm_N.shape[0]
        real = slice(rows.start, min(rows.stop, count))
        unit_RD = self._given(real) / self.norm_N[real, None]
        if rows.stop > count:
            unit_RD = torch.cat([unit_RD, unit_RD.new_zeros(rows.stop - count, unit_RD.shape[1])])
        return unit_RD

    def normalised(self, dtype: torch.dtype) -> Tensor:
        """Returns all normalised tokens in sorted order, then the spare rows, in `dtype`."""
        unit_ND = self.zeros(dtype)
        for part in self._parts():
            unit_ND[part] = self.unit(part)
        return unit_ND

    def zeros(self, dtype: torch.dtype | None = None) -> Tensor:
        """Returns zeros (tokens + spare rows, D), of dtype `compute` by default."""
        rows = self.norm_N.shape[0] + self.spare
        return self.norm_N.new_zeros(rows, self.tokens_ND.shape[1], dtype=dtype or self.compute)

    def gradient(self, grad_ND: Tensor) -> Tensor:
        """Returns the gradient of the original tokens, in their dtype, from that of the normalised ones (overwritten).

        For v = x / |x|: dL/dx = (g - v (v . g)) / |x| with g = dL/dv.
        """
        dtype = self.tokens_ND.dtype
        for part in self._parts():
            unit_ND = self.unit(part)
            along_N1 = (grad_ND[part] * unit_ND).sum(dim=1, keepdim=True)
            grad_ND[part].addcmul_(unit_ND, along_N1, value=-1).div_(self.norm_N[part, None])
        grad_ND = grad_ND[: self.norm_N.shape[0]]
        if self.index_N is None:
            return grad_ND.to(dtype)
        given_ND = torch.empty_like(grad_ND, dtype=dtype)
        for part in self._parts():
            given_ND[self.index_N[part]] = grad_ND[part].to(dtype)
        return given_ND

    def _given(self, rows: slice) -> Tensor:
        given_RD = self.tokens_ND[rows] if self.index_N is None else self.tokens_ND[self.index_N[rows]]
        return given_RD.to(self.compute)

    def _parts(self) -> Iterator[slice]:
        count = self.norm_N.shape[0]
        for start in range(0, count, ROWS_AT_ONCE):
            yield slice(start, min(start + ROWS_AT_ONCE, count))


def _token_index(lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    starts = [0, *accumulate(lengths)]
    parts = [torch.arange(starts[clip], starts[clip + 1]) for clip in order]
    return torch.cat(parts)


def pad_packed(rows_ND: Tensor, lengths_B: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns packed rows as (B, L, D), padded with zeros, and the mask (B, L) of real rows.

    L is `width`, or the longest length. Raises ValueError where the lengths do not sum to the rows.
    """
    lengths = [int(length) for length in lengths_B.tolist()]
    if sum(lengths) != rows_ND.shape[0]:
        raise ValueError(f"lengths sum to {sum(lengths)}, but there are {rows_ND.shape[0]} rows")
    width = max(lengths, default=0) if width is None else width
    mask_BL = torch.arange(width, device=rows_ND.device) < lengths_B.to(rows_ND.device)[:, None]
    padded_BLD = rows_ND.new_zeros(len(lengths), width, *rows_ND.shape[1:])
    scattered = mask_BL.reshape(*mask_BL.shape, *[1] * (rows_ND.ndim - 1))
    return padded_BLD.masked_scatter(scattered, rows_ND), mask_BL
