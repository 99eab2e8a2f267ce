"""Which pseudo-glosses get a prototype, and their word vectors (Sign2GPT, section 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sage_scale.errors import RecipeError
from sage_scale.text.fasttext import read_word_vectors


@dataclass(frozen=True)
class PrototypeVocabulary:
    """The pseudo-glosses with a prototype, sorted, so that the same corpus gives the same numbers."""

    glosses: tuple[str, ...]
    """Pseudo-gloss of each class."""
    frequent: tuple[str, ...] = ()
    """Left out because they occur too often."""

    def targets(self, glosses_of_clips: Iterable[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Classes of all clips, packed (int64, G), and how many each clip has (int64, B): what `prototype_loss` takes.

        Repeats are given once; pseudo-glosses without a prototype are left out.
        """
        number = {gloss: place for place, gloss in enumerate(self.glosses)}
        rows = [
            sorted({number[gloss] for gloss in glosses if gloss in number}) for glosses in glosses_of_clips
        ]
        classes = torch.tensor([place for row in rows for place in row], dtype=torch.int64)
        return classes, torch.tensor([len(row) for row in rows], dtype=torch.int64)


def select_prototypes(
    clips: Iterable[tuple[str, Sequence[str]]], max_frequency: float = 1.0
) -> PrototypeVocabulary:
    """The vocabulary of clips, each a sentence with its pseudo-glosses.

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
    """The vocabulary, its prototypes float32 (U, D), and the pseudo-glosses left out of both, which have no vector.

    With a `.bin` none is left out unless it has no character n-gram; a vector of zeros would be the zero class again.
    """
    read = read_word_vectors(path, vocabulary.glosses)
    missing = set(read.missing)
    kept = [place for place, gloss in enumerate(vocabulary.glosses) if gloss not in missing]
    if not kept:
        raise RecipeError(f"{path} has a vector for none of the {len(vocabulary.glosses)} pseudo-glosses")
    smaller = PrototypeVocabulary(tuple(vocabulary.glosses[place] for place in kept), vocabulary.frequent)
    return smaller, torch.from_numpy(read.vectors_UD[kept]), read.missing


def random_prototypes(vocabulary: PrototypeVocabulary, dim: int, seed: int = 0) -> Tensor:
    """float32 (U, dim) directions at random, each a function of its pseudo-gloss and the seed: the control without word
    vectors, and what a synthetic corpus takes."""
    rows = []
    for gloss in vocabulary.glosses:
        number = int.from_bytes(gloss.encode(), "big") + seed * 2_654_435_761
        generator = torch.Generator().manual_seed(number % (2**63))
        rows.append(torch.randn(dim, generator=generator))
    return torch.stack(rows)
