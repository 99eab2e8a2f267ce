"""Alignment of visual tokens with gold signs: does a token's most similar pseudo-gloss match its sign?

For each visual token (segment) of a clip:

- its sign is the gold sign whose interval overlaps the segment most, the first of equal ones; a token that overlaps
  none is not scored;
- its pseudo-gloss is the one of the clip's with the highest similarity, the first of equal ones;
- a sign's pseudo-glosses are those of the clip that `matches` its gloss; a token whose sign has none is not scored.

Accuracy is the share of scored tokens whose pseudo-gloss is one of their sign's. Chance is what a uniformly random
pseudo-gloss of the clip would have. Counts are additive over clips and ranks.

Shape letters: N segments of a clip, G pseudo-glosses, S gold signs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from fractions import Fraction

import numpy as np

LEAST_LETTERS = 3
"""Letters of a beginning that counts as a match."""


@dataclass(frozen=True)
class AlignmentCounts:
    """Counts over some clips."""

    clips: int = 0
    tokens: int = 0
    signed: int = 0
    """Tokens that overlap a gold sign."""
    scored: int = 0
    """Of these, tokens whose sign has a pseudo-gloss in the clip."""
    right: int = 0
    by_chance: Fraction = Fraction(0)
    """Exact, so that the order of the clips changes nothing."""

    def __add__(self, other: AlignmentCounts) -> AlignmentCounts:
        return AlignmentCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def scores(self) -> dict[str, float]:
        """Returns `accuracy` and `chance` in percent, and the counts; 0 where no token is scored."""
        scored = max(self.scored, 1)
        return {
            "accuracy": 100 * self.right / scored,
            "chance": float(100 * self.by_chance / scored),
            "clips": self.clips,
            "tokens": self.tokens,
            "signed": self.signed,
            "scored": self.scored,
        }


def clip_counts(
    similarity_NG: np.ndarray,
    pseudo_glosses: Sequence[str],
    segments_N2: np.ndarray,
    signs_S2: np.ndarray,
    glosses: Sequence[str],
) -> AlignmentCounts:
    """Returns the counts of one clip.

    `segments_N2` and `signs_S2` are half-open intervals of the same unit from the clip's start; `glosses` are those of
    the signs.
    """
    count = len(similarity_NG)
    overlap_NS = np.minimum(segments_N2[:, None, 1], signs_S2[None, :, 1]) - np.maximum(
        segments_N2[:, None, 0], signs_S2[None, :, 0]
    )
    signed = scored = right = 0
    by_chance = Fraction(0)
    for similarity_G, overlap_S in zip(similarity_NG, overlap_NS):
        if not len(overlap_S) or overlap_S.max() <= 0:
            continue
        signed += 1
        gloss = glosses[int(overlap_S.argmax())]
        own = [number for number, word in enumerate(pseudo_glosses) if matches(gloss, word)]
        if own:
            scored += 1
            right += int(similarity_G.argmax()) in own
            by_chance += Fraction(len(own), len(pseudo_glosses))
    return AlignmentCounts(1, count, signed, scored, right, by_chance)


def matches(gloss: str, pseudo_gloss: str) -> bool:
    """Returns whether a gloss, or one of its parts between hyphens, digits and other marks, is a pseudo-gloss.

    Two words are one where they are equal or one begins with the other, of three letters or more (NORD and Norden),
    without case, with umlauts as ä or ae. REGEN and regnen are two: tokens of such signs are not scored.
    """
    word = _letters(pseudo_gloss)
    return any(_same(part, word) for part in _parts(gloss))


def _same(a: str, b: str) -> bool:
    return bool(a) and (
        a == b or (min(len(a), len(b)) >= LEAST_LETTERS and (a.startswith(b) or b.startswith(a)))
    )


def _parts(gloss: str) -> list[str]:
    spaced = "".join(letter if letter.isalpha() else " " for letter in unicodedata.normalize("NFC", gloss))
    return [_letters(part) for part in spaced.split()]


def _letters(word: str) -> str:
    folded = unicodedata.normalize("NFC", word).casefold()
    return "".join(_UMLAUTS.get(letter, letter) for letter in folded if letter.isalpha())


_UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue"}
