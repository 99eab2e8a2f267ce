"""Scores of stage 1: precision, recall and F1 of pseudo-glosses (Sign2GPT, Table 8), and video-sentence retrieval.

Pseudo-glosses: the paper names neither the mean nor the split; here both means are reported for a named split. Counts
are additive: each rank counts its own clips.

Retrieval: every rank keeps the tokens of its own clips; those of the texts go round the ranks (`losses.ring`), and of
each tile of similarities only the ranks of the matches are kept. Tiles are computed in float64 and rounded to float32,
so that a pair has the same similarity in any tile, and the figures are the same at any number of ranks.

Shape letters: B clips of the split, b of this rank, U pseudo-glosses with a prototype, N and M tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sage_scale.losses import Objective
from sage_scale.losses.collectives import gather_counts, gather_rows, group_rank
from sage_scale.losses.ring import Ring, sum_over_ranks
from sage_scale.losses.tokens import Block, blocks_of

TILE_TOKENS, TILE_CLIPS = 2048, 64
"""Most tokens and clips of a side of a tile."""


@dataclass(frozen=True)
class PresenceCounts:
    """Counts of each pseudo-gloss over some clips: predicted, present, and both."""

    both_U: np.ndarray
    found_U: np.ndarray
    there_U: np.ndarray
    clips: int

    @classmethod
    def of(cls, presence_BU: np.ndarray, there_BU: np.ndarray, threshold: float) -> PresenceCounts:
        """Returns a batch's counts. A presence above `threshold` is a prediction; `there_BU` (bool) is the target."""
        found_BU = presence_BU > threshold
        return cls((found_BU & there_BU).sum(0), found_BU.sum(0), there_BU.sum(0), len(there_BU))

    @classmethod
    def none(cls, glosses: int) -> PresenceCounts:
        """Returns the counts of no clips."""
        zeros = np.zeros(glosses, np.int64)
        return cls(zeros, zeros, zeros, 0)

    def __add__(self, other: PresenceCounts) -> PresenceCounts:
        return PresenceCounts(
            self.both_U + other.both_U,
            self.found_U + other.found_U,
            self.there_U + other.there_U,
            self.clips + other.clips,
        )

    def scores(self) -> dict[str, float]:
        """Returns `precision`, `recall` and `f1` in percent over all occurrences (micro), and `macro_*`.

        `macro_*` are means over the pseudo-glosses that occur in these clips; `clips` and `occurring` are the numbers
        of clips and of these pseudo-glosses. A score without predictions or without targets is 0.
        """
        occurring_U = self.there_U > 0
        micro = _scores(self.both_U.sum(), self.found_U.sum(), self.there_U.sum())
        each = _scores(self.both_U[occurring_U], self.found_U[occurring_U], self.there_U[occurring_U])
        figures = {name: float(value) for name, value in micro.items()}
        for name, values in each.items():
            figures[f"macro_{name}"] = float(values.mean()) if values.size else 0.0
        return figures | {"clips": float(self.clips), "occurring": float(occurring_U.sum())}


def frequency_control(
    training: Sequence[Sequence[int]], clips: Sequence[Sequence[int]], glosses: int
) -> dict[str, float]:
    """Returns the scores on `clips` of a constant prediction: the most frequent pseudo-glosses of `training`.

    Their number is the one with the best micro F1 on `training`. Both arguments hold the classes of each clip, without
    repeats.
    """
    counts_U = np.bincount(np.array([c for row in training for c in row], np.int64), minlength=glosses)
    order_U = np.argsort(-counts_U, kind="stable")
    sizes = np.arange(1, glosses + 1)
    f1 = 2 * counts_U[order_U].cumsum() / np.maximum(sizes * len(training) + counts_U.sum(), 1)
    answer = np.zeros((1, glosses))
    answer[0, order_U[: int(f1.argmax()) + 1]] = 1.0
    there_BU = np.zeros((len(clips), glosses), bool)
    for number, row in enumerate(clips):
        there_BU[number, list(row)] = True
    return PresenceCounts.of(np.repeat(answer, len(clips), axis=0), there_BU, 0.5).scores()


def _scores(both: np.ndarray, found: np.ndarray, there: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "precision": 100 * both / np.maximum(found, 1),
        "recall": 100 * both / np.maximum(there, 1),
        "f1": 200 * both / np.maximum(found + there, 1),
    }


def retrieval(similarity_VT: np.ndarray) -> dict[str, float]:
    """Returns recall at 1, 5 and 10 (percent) and the median rank of the correct match in video-sentence retrieval, in
    both directions, scored with (Zv + Zt) / 2 as in CiCo.

    `similarity_VT` is (B, B), videos by texts, partners on the diagonal. Ties count against us: the rank is one
    plus the number of others that are not less similar, as no number is.
    """
    if similarity_VT.ndim != 2 or similarity_VT.shape[0] != similarity_VT.shape[1]:
        raise ValueError(f"similarity must be square, got {similarity_VT.shape}")
    own_V = np.diagonal(similarity_VT)
    return _retrieval_figures(
        (~(similarity_VT < own_V[:, None])).sum(axis=1), (~(similarity_VT < own_V[None])).sum(axis=0)
    )


@torch.no_grad()
def tiled_retrieval(
    objective: Objective,
    visual_ND: Tensor,
    text_MD: Tensor,
    visual_lengths: Sequence[int],
    text_lengths: Sequence[int],
    device: torch.device | str = "cpu",
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Returns `retrieval` of all ranks' clips from this rank's own tokens, the same on every rank (a collective).

    `visual_ND` and `text_MD` are packed, of the same b clips, of any floating type and on any device; a rank may have
    none, with tokens (0, D). Tiles are computed on `device`, which the group's backend must take. Memory beside the
    tokens: those of the texts of three ranks, one tile, and numbers of a clip.
    """
    every = gather_counts([len(text_lengths), len(text_MD)], group, device)
    clips, tokens = [counts[0] for counts in every], [counts[1] for counts in every]
    rank, starts = group_rank(group), np.cumsum([0, *clips]).tolist()
    lengths_B = gather_rows(torch.tensor(text_lengths, dtype=torch.int64, device=device), clips, group)
    lengths_W = [part.tolist() for part in lengths_B.split(clips)]
    own_MD = text_MD.to(device, torch.float32)
    videos = _short_blocks(visual_lengths)

    def similarity(rows: Block, rows_RD: Tensor, columns: Block, block_MD: Tensor) -> Tensor:
        columns_CD = block_MD[columns.token : columns.token + columns.size].double()
        lengths = (torch.tensor(block.lengths, device=device) for block in (rows, columns))
        Zv_ab, Zt_ab = objective.similarity(rows_RD, columns_CD, *lengths)
        return ((Zv_ab + Zt_ab) / 2).float()

    def tokens_of(rows: Block) -> Tensor:
        return visual_ND[rows.token : rows.token + rows.size].to(device, torch.float64)

    matched_b = torch.zeros(clips[rank], device=device)
    ends = np.cumsum([0, *text_lengths]).tolist()
    for rows in videos:
        partners = Block(rows.clip, ends[rows.clip], tuple(lengths_W[rank][rows.clips]), ())
        matched_b[rows.clips] = similarity(rows, tokens_of(rows), partners, own_MD).diagonal()
    matched_B = gather_rows(matched_b, clips, group)
    above_b = torch.zeros(clips[rank], dtype=torch.int64, device=device)
    above_B = torch.zeros(sum(clips), dtype=torch.int64, device=device)
    for owner, block_MD in Ring(tokens, group).rounds(own_MD):
        for rows in videos:
            rows_RD = tokens_of(rows)
            for columns in _short_blocks(lengths_W[owner]):
                theirs = slice(starts[owner] + columns.clips.start, starts[owner] + columns.clips.stop)
                Z_ab = similarity(rows, rows_RD, columns, block_MD)
                less_2ab = torch.stack((Z_ab < matched_b[rows.clips, None], Z_ab < matched_B[None, theirs]))
                if owner == rank:  # a clip's own text is no other
                    less_2ab.diagonal(rows.clip - columns.clip, 1, 2).fill_(True)
                above_b[rows.clips] += (~less_2ab[0]).sum(1)
                above_B[theirs] += (~less_2ab[1]).sum(0)
    above_V, above_T = gather_rows(above_b, clips, group), sum_over_ranks(above_B, group)
    return _retrieval_figures(1 + above_V.cpu().numpy(), 1 + above_T.cpu().numpy())


def _short_blocks(lengths: Sequence[int]) -> list[Block]:
    """Returns blocks of at most `TILE_TOKENS` tokens (or one longer clip) and `TILE_CLIPS` clips."""
    blocks: list[Block] = []
    clip = token = 0
    for begin in range(0, len(lengths), TILE_CLIPS):
        for block in blocks_of(lengths[begin : begin + TILE_CLIPS], TILE_TOKENS):
            blocks.append(Block(clip, token, block.lengths, block.runs))
            clip, token = clip + len(block.lengths), token + block.size
    return blocks


def _retrieval_figures(ranks_V: np.ndarray, ranks_T: np.ndarray) -> dict[str, float]:
    """Returns the figures of `retrieval` from the rank of each video's text and of each text's video."""
    figures: dict[str, float] = {}
    for name, ranks in (("v2t", ranks_V), ("t2v", ranks_T)) if len(ranks_V) else ():
        for k in (1, 5, 10):
            figures[f"r{k}_{name}"] = float((ranks <= k).mean() * 100)
        figures[f"median_rank_{name}"] = float(np.median(ranks))
    return figures
