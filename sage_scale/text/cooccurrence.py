"""Word vectors from which words stand near each other: positive pointwise mutual information, factorised.

What a corpus takes that has no fastText file. Such vectors are close to those of skip-gram with negative sampling (Levy
and Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization", sections 3 and 5; distances and smoothed
contexts after Levy, Goldberg and Dagan 2015, section 3), but know nothing beyond the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sage_scale.errors import RecipeError

WINDOW = 5
"""Words on either side that are near; one at distance d counts 1/d."""
SMOOTHING = 0.75
"""Power of a context's count."""


def cooccurrence_vectors(texts: Iterable[Sequence[str]], dim: int) -> tuple[tuple[str, ...], np.ndarray]:
    """(words, float32 (words, dim)) of lists of words; words that never stand near another are left out.

    Up to rotation: U sqrt(S) of the symmetric matrix of positive mutual information. Memory is words squared. Raises
    RecipeError where fewer than two words stand near each other.
    """
    near: Counter[tuple[str, str]] = Counter()
    for words in texts:
        for place, word in enumerate(words):
            for distance, other in enumerate(words[place + 1 : place + 1 + WINDOW], start=1):
                if word != other:
                    near[word, other] += 1 / distance  # type: ignore[assignment]
                    near[other, word] += 1 / distance  # type: ignore[assignment]
    known = tuple(sorted({word for word, _ in near}))
    if not known:
        raise RecipeError("no two words stand near each other in the texts: no vectors can be made of them")
    number = {word: place for place, word in enumerate(known)}
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


def write_vec(path: Path, words: Sequence[str], vectors_UD: np.ndarray) -> None:
    """A fastText `.vec` file, which `read_word_vectors` reads. Words hold no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{len(words)} {vectors_UD.shape[1]}"]
    lines += [
        word + " " + " ".join(f"{value:.6g}" for value in row)
        for word, row in zip(words, vectors_UD.tolist())
    ]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
