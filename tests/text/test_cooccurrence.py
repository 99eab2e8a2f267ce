"""Vectors of co-occurrence: what they are near to, and that fastText's reader takes the file."""

from __future__ import annotations

import numpy as np
import pytest

from sage_scale.errors import RecipeError
from sage_scale.text.fasttext import read_word_vectors, write_vec
from sage_scale.text.prototype_vocabulary import cooccurrence_vectors


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_words_of_one_place_are_nearer_than_others_and_the_file_says_the_same(tmp_path):
    """`nord` and `süd` stand in the same places, `regen` and `schnee` in others; they never meet their likes."""
    rng = np.random.default_rng(0)
    texts = [
        ["im", str(rng.choice(["nord", "süd"])), "fällt", str(rng.choice(["regen", "schnee"])), "viel"]
        for _ in range(200)
    ] + [["einsam"]]
    words, vectors = cooccurrence_vectors(texts, 4)
    assert "einsam" not in words and list(words) == sorted(words) and vectors.shape == (len(words), 4)
    of = dict(zip(words, vectors, strict=True))
    assert cosine(of["nord"], of["süd"]) > 0.9 > cosine(of["nord"], of["regen"])
    write_vec(tmp_path / "made.vec", words, vectors)
    read = read_word_vectors(tmp_path / "made.vec", ["süd", "einsam", "regen"])
    assert read.missing == ("einsam",)
    np.testing.assert_allclose(read.vectors_UD[[0, 2]], [of["süd"], of["regen"]], rtol=1e-4, atol=1e-6)


def test_full_rank_vectors_give_the_information_back():
    """U sqrt(S) times itself is the matrix of positive mutual information up to the signs of its eigenvalues."""
    texts = [["a", "b", "c"], ["b", "a"], ["c", "d", "a"], ["d", "b"]]
    words, vectors = cooccurrence_vectors(texts, 4)
    count = np.zeros((4, 4))
    for text in texts:
        for i, one in enumerate(text):
            for j, other in enumerate(text):
                if i != j:
                    count[words.index(one), words.index(other)] += 1 / abs(i - j)
    context = count.sum(0) ** 0.75
    expected = np.outer(count.sum(1), context / context.sum())
    information = np.log(np.maximum(count / expected, 1))
    symmetric = (information + information.T) / 2
    # vectors @ vectors.T = sqrt(symmetric squared), which squares to the same.
    product = vectors @ vectors.T
    np.testing.assert_allclose(product @ product, symmetric @ symmetric, atol=1e-4)


def test_nothing_near_anything_is_said():
    with pytest.raises(RecipeError, match="near"):
        cooccurrence_vectors([["a"], ["b"]], 4)
