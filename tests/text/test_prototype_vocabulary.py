"""Which pseudo-glosses get a prototype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sage_scale.errors import RecipeError
from sage_scale.text.prototype_vocabulary import (
    PrototypeVocabulary,
    fasttext_prototypes,
    random_prototypes,
    select_prototypes,
)

FASTTEXT = Path(__file__).parent / "fasttext"
CLIPS = [
    ("morgen regnet es", ["morgen", "regnen"]),
    ("morgen regnet es", ["morgen", "regnen"]),
    ("morgen schneit es", ["morgen", "schneien"]),
    ("der wind weht", ["wind", "wehen", "wind"]),
    ("im süden", ["süden"]),
]


def test_vocabulary_is_sorted_whatever_the_order_of_clips():
    wanted = ("morgen", "regnen", "schneien", "süden", "wehen", "wind")
    assert select_prototypes(CLIPS).glosses == select_prototypes(reversed(CLIPS)).glosses == wanted


def test_frequent_ones_are_left_out_by_occurrences_over_distinct_sentences():
    """Four distinct sentences: morgen 3 / 4, regnen and wind 2 / 4, the others 1 / 4."""
    for share, frequent in ((0.8, ()), (0.75, ("morgen",)), (0.5, ("morgen", "regnen", "wind"))):
        vocabulary = select_prototypes(CLIPS, share)
        assert vocabulary.frequent == frequent
        assert set(vocabulary.glosses) == {g for _, glosses in CLIPS for g in glosses} - set(frequent)
    with pytest.raises(RecipeError, match="max_frequency"):
        select_prototypes(CLIPS, 0.2)
    with pytest.raises(RecipeError, match="tagger"):
        select_prototypes([("nichts", [])])


def test_targets_are_packed_each_once_unknown_ones_left_out():
    vocabulary = select_prototypes(CLIPS, 0.75)
    classes, counts = vocabulary.targets([["wind", "wehen", "wind"], ["morgen"], [], ["regnen", "nie"]])
    assert counts.tolist() == [2, 0, 0, 1]
    assert [vocabulary.glosses[place] for place in classes.tolist()] == ["wehen", "wind", "regnen"]


def test_vectors_of_fasttext_and_what_has_none():
    vocabulary = PrototypeVocabulary(("morgen", "schneeweiß", "wind"))
    kept, vectors, missing = fasttext_prototypes(vocabulary, FASTTEXT / "small.bin")
    assert kept.glosses == vocabulary.glosses and not missing and vectors.shape == (3, 5)
    kept, fewer, missing = fasttext_prototypes(vocabulary, FASTTEXT / "small.vec")
    assert kept.glosses == ("morgen", "wind") and missing == ("schneeweiß",)
    torch.testing.assert_close(fewer, vectors[[0, 2]], rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match="none of the 1"):
        fasttext_prototypes(PrototypeVocabulary(("schneeweiß",)), FASTTEXT / "small.vec")


def test_random_directions_are_a_function_of_gloss_and_seed():
    a = random_prototypes(PrototypeVocabulary(("süden", "wind")), 300)
    b = random_prototypes(PrototypeVocabulary(("morgen", "wind")), 300)
    assert torch.equal(a[1], b[1]) and not torch.equal(a[0], b[0])
    assert not torch.equal(a, random_prototypes(PrototypeVocabulary(("süden", "wind")), 300, seed=1))
