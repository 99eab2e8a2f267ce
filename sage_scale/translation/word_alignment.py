"""Which segments a word of a translation depends on, by occlusion (Zeiler and Fergus 2014).

Each visual token is left out in turn; a word is aligned with it by the log-probability that the word loses.
Attention weights would be cheaper, and say what a layer reads, not what the word depends on (Jain and Wallace 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

LARGEST = 64
"""Most tokens of a clip that is aligned, which takes a pass for each."""
_BATCH = 4
"""Occluded clips at once: logits over 250,000 subwords are large."""


@runtime_checkable
class ScoringModel(Protocol):
    """A translator that scores a given sentence."""

    def score_sentence(
        self, tokens_ND: Tensor, lengths_B: Tensor, tokenizer: Any, sentence: str, language: str
    ) -> tuple[list[int], Tensor]:
        """Returns the sentence's subword ids (L), and their log-probabilities under each clip's tokens (B, L)."""
        ...


@dataclass(frozen=True)
class WordAlignment:
    """The words of a sentence and their dependence on segments."""

    words: tuple[str, ...]
    weights_WN: tuple[tuple[float, ...], ...]
    """Log-probability that a word loses without a token, at least 0."""


@torch.no_grad()
def align_words(
    model: ScoringModel, tokens_ND: Tensor, tokenizer: Any, sentence: str, language: str
) -> WordAlignment | None:
    """Returns the alignment of a sentence with a clip's visual tokens; None of one token, or more than LARGEST."""
    count = len(tokens_ND)
    if not 2 <= count <= LARGEST or not sentence.strip():
        return None
    device = tokens_ND.device

    def scores(left_out: list[int]) -> tuple[list[int], Tensor]:
        kept = [torch.cat([tokens_ND[:n], tokens_ND[n + 1 :]]) if n >= 0 else tokens_ND for n in left_out]
        lengths = torch.tensor([len(tokens) for tokens in kept], device=device)
        return model.score_sentence(torch.cat(kept), lengths, tokenizer, sentence, language)

    ids, whole_1L = scores([-1])
    parts = [scores(list(range(first, min(first + _BATCH, count))))[1] for first in range(0, count, _BATCH)]
    lost_NL = (whole_1L - torch.cat(parts)).float()
    words, rows = [], []
    for word, places in _words(tokenizer, ids):
        words.append(word)
        rows.append(tuple(lost_NL[:, places].sum(1).clamp(min=0).tolist()))
    return WordAlignment(tuple(words), tuple(rows))


def _words(tokenizer: Any, ids: list[int]) -> list[tuple[str, list[int]]]:
    """Returns each word with the places of its subwords; in languages without spaces a subword is a word."""
    found: list[tuple[str, list[int]]] = []
    special = set(tokenizer.all_special_ids)
    for place, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if ids[place] in special:
            continue
        begins = piece.startswith("\u2581")
        text = piece.replace("\u2581", "")
        spaced = not any("\u3000" <= letter <= "\u9fff" for letter in text)
        if found and not begins and spaced:
            word, places = found[-1]
            found[-1] = word + text, [*places, place]
        else:
            found.append((text, [place]))
    return [(word, places) for word, places in found if word]
