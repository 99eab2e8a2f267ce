"""Sentences of a beam search with their scores.

A score is the log-probability of a sentence divided by its number of tokens, the end mark and a forced language code
(log-probability 0) included. With `evaluation.length_penalty=1` beam search ranks by it. It is computed by one
teacher-forced pass over the sentences found: the search itself would keep the logits of every step and beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A sentence that beam search found."""

    sentence: str
    score: float | None = None
    """Mean log-probability of a token, at most 0; None of a model that gives none."""


def log_probabilities(logits_BLV: Tensor, ids_1L: Tensor) -> Tensor:
    """Returns the log-probability (B, L) of each token of one sequence under each row of logits that predict it."""
    ids_BL = ids_1L.expand(len(logits_BLV), -1)
    return -F.cross_entropy(logits_BLV.float().transpose(1, 2), ids_BL, reduction="none")


def mean_log_probabilities(logits_BLV: Tensor, ids_BL: Tensor, end: int, forced: bool = False) -> list[float]:
    """Returns the mean log-probability of each row's tokens, of which the last is the first `end`, if it has one.

    `logits_BLV` predict `ids_BL`. A `forced` first token counts with log-probability 0.
    """
    loss_BL = F.cross_entropy(logits_BLV.float().transpose(1, 2), ids_BL, reduction="none")
    loss_BL[:, : int(forced)] = 0
    ends_BL = (ids_BL == end).long()
    counted_BL = ends_BL.cumsum(1) - ends_BL == 0
    return (-(loss_BL * counted_BL).sum(1) / counted_BL.sum(1)).tolist()


def ranked(
    ids_BCL: Tensor,
    tokenizer: Any,
    finish: Callable[[str, int], str],
    score: Callable[[Tensor], Sequence[float]] | None,
) -> list[list[Candidate]]:
    """Returns the candidates of each of B clips, best first, without repeated sentences.

    `ids_BCL` are the sequences of a beam search. `finish` makes a sentence of (decoded text, clip); `score` gives the
    scores of (B, L), one sequence a clip; without it they are None.
    """
    found: list[list[Candidate]] = [[] for _ in ids_BCL]
    for ids_BL in ids_BCL.unbind(1):
        texts = tokenizer.batch_decode(ids_BL, skip_special_tokens=True)
        scores = [None] * len(texts) if score is None else score(ids_BL)
        for clip, (text, value) in enumerate(zip(texts, scores, strict=True)):
            sentence = finish(text, clip)
            if all(sentence != other.sentence for other in found[clip]):
                found[clip].append(Candidate(sentence, value))
    return found


def by_clip(ids: Tensor, count: int) -> Tensor:
    """Returns sequences (B * count, L) of transformers as (B, count, L)."""
    return torch.unflatten(ids, 0, (-1, count))
