"""The pseudo-glosses with a prototype, and their word vectors (Sign2GPT, section 3.3).

A corpus without a fastText file takes vectors of co-occurrence: positive pointwise mutual information, factorised. They
are close to those of skip-gram with negative sampling (Levy and Goldberg 2014, "Neural Word Embedding as Implicit
Matrix Factorization", sections 3 and 5; distances and smoothed contexts after Levy, Goldberg and Dagan 2015, section
3), but know nothing beyond the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sage_scale.errors import RecipeError
from sage_scale.text.fasttext import read_word_vectors

WINDOW = 5
"""Words on either side that count as near; one at distance d counts 1/d."""
SMOOTHING = 0.75
"""Power of a context's count."""


@dataclass(frozen=True)
class PrototypeVocabulary:
    """The pseudo-glosses with a prototype, sorted, so that the same corpus has the same numbers."""

    glosses: tuple[str, ...]
    """Pseudo-gloss of each class."""
    frequent: tuple[str, ...] = ()
    """Pseudo-glosses left out because they occur too often."""

    def targets(self, glosses_of_clips: Iterable[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Returns classes of all clips, packed (int64, G), and their number by clip (int64, B), for `prototype_loss`.

        Repeats are given once; pseudo-glosses without a prototype are left out.
        """
        number = {gloss: index for index, gloss in enumerate(self.glosses)}
        rows = [sorted({number[word] for word in words if word in number}) for words in glosses_of_clips]
        classes = torch.tensor([index for row in rows for index in row], dtype=torch.int64)
        return classes, torch.tensor([len(row) for row in rows], dtype=torch.int64)


def select_prototypes(
    clips: Iterable[tuple[str, Sequence[str]]], max_frequency: float = 1.0
) -> PrototypeVocabulary:
    """Returns the vocabulary of clips, each a sentence with its pseudo-glosses.

    Below `max_frequency=1`, a pseudo-gloss is left out whose occurrences in all clips, over the number of distinct
    sentences, are at least that share (released code: 0.4). Raises RecipeError where none is left.
    """
    counts: Counter[str] = Counter()
    sentences: set[str] = set()
    for sentence, glosses in clips:
        counts.update(glosses)
        sentences.add(sentence)
    limit = max_frequency * len(sentences) if max_frequency < 1 else float("inf")
    kept = sorted(gloss for gloss, count in counts.items() if count < limit)
    if not kept:
        raise RecipeError(
            "no pseudo-gloss is left to make a prototype of: the dataset has none (text.tagger), or "
            f"prototypes.max_frequency={max_frequency} is too small"
        )
    return PrototypeVocabulary(tuple(kept), tuple(sorted(counts.keys() - set(kept))))


def fasttext_prototypes(
    vocabulary: PrototypeVocabulary, path: str | Path
) -> tuple[PrototypeVocabulary, Tensor, tuple[str, ...]]:
    """Returns the vocabulary, its prototypes float32 (U, D), and the pseudo-glosses without a vector, left out of both.

    With a `.bin` none is left out unless it has no character n-gram; a vector of zeros would be the zero class again.
    """
    read = read_word_vectors(path, vocabulary.glosses)
    missing = set(read.missing)
    kept = [index for index, gloss in enumerate(vocabulary.glosses) if gloss not in missing]
    if not kept:
        raise RecipeError(f"{path} has a vector for none of the {len(vocabulary.glosses)} pseudo-glosses")
    smaller = PrototypeVocabulary(tuple(vocabulary.glosses[index] for index in kept), vocabulary.frequent)
    return smaller, torch.from_numpy(read.vectors_UD[kept]), read.missing


def random_prototypes(vocabulary: PrototypeVocabulary, dim: int, seed: int = 0) -> Tensor:
    """Returns random directions, float32 (U, dim), each a function of its pseudo-gloss and the seed: the control."""
    rows = []
    for gloss in vocabulary.glosses:
        number = int.from_bytes(gloss.encode(), "big") + seed * 2_654_435_761
        generator = torch.Generator().manual_seed(number % (2**63))
        rows.append(torch.randn(dim, generator=generator))
    return torch.stack(rows)


def cooccurrence_vectors(texts: Iterable[Sequence[str]], dim: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns (words, float32 (words, dim)) of lists of words; words that are never near another are left out.

    Up to rotation: U sqrt(S) of the symmetric matrix of positive mutual information. Memory is words squared. Raises
    RecipeError where no two words are near each other.
    """
    near: Counter[tuple[str, str]] = Counter()
    for words in texts:
        for index, word in enumerate(words):
            for distance, other in enumerate(words[index + 1 : index + 1 + WINDOW], start=1):
                if word != other:
                    near[word, other] += 1 / distance  # type: ignore[assignment]
                    near[other, word] += 1 / distance  # type: ignore[assignment]
    known = tuple(sorted({word for word, _ in near}))
    if not known:
        raise RecipeError("no two words are near each other in the texts: no vectors can be made of them")
    number = {word: index for index, word in enumerate(known)}
    count_UU = np.zeros((len(known), len(known)))
    for (word, other), weight in near.items():
        count_UU[number[word], number[other]] = weight
    of_word_U = count_UU.sum(1)
    of_context_U = of_word_U**SMOOTHING
    expected_UU = np.outer(of_word_U, of_context_U / of_context_U.sum())
    ratio_UU = np.maximum(count_UU / expected_UU, 1.0)
    information_UU = np.log(ratio_UU)
    left_UU, strength_U, _ = np.linalg.svd((information_UU + information_UU.T) / 2)
    kept = min(dim, len(known))
    vectors_UD = np.zeros((len(known), dim), np.float32)
    vectors_UD[:, :kept] = left_UU[:, :kept] * np.sqrt(strength_U[:kept])
    some = np.linalg.norm(vectors_UD, axis=1) > 0
    return tuple(word for word, there in zip(known, some) if there), vectors_UD[some]
