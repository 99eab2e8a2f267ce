"""Recombination invents only what the training text licenses."""

from __future__ import annotations

import random
from itertools import product

from sage_scale.training.language.recombine import align, recombine

DAYS = ["montag", "dienstag", "mittwoch", "freitag"]
PLACES = ["norden", "süden", "westen", "osten"]
WEATHER = {"regnen": "regnet", "schneien": "schneit"}
ALL = {
    f"am {day} {WEATHER[lemma]} es im {place}": (day, lemma, place)
    for day, lemma, place in product(DAYS, WEATHER, PLACES)
}


def test_it_finds_exactly_the_missing_combinations_with_their_glosses():
    sentences = sorted(ALL)
    random.Random(0).shuffle(sentences)
    train, missing = sentences[:22], sentences[22:]
    made = dict(recombine(train, [ALL[s] for s in train], count=500))
    assert set(made) == set(missing)
    assert all(made[s] == ALL[s] for s in made)


def test_every_exchanged_word_has_stood_between_such_neighbours():
    train = [
        "im norden fällt schnee",
        "im süden fällt regen",
        "am montag scheint die sonne",
        "im norden bleibt es warm",
    ]
    glosses = [["norden", "fallen", "schnee"], ["süden", "fallen", "regen"], ["montag", "scheinen", "sonne"],
               ["norden", "bleiben", "warm"]]  # fmt: skip
    made = {sentence for sentence, _ in recombine(train, glosses, count=100)}
    assert made == {
        "im süden fällt schnee", "im norden fällt regen", "im süden bleibt es warm",
    }  # fmt: skip


def test_same_input_and_seed_same_output():
    train = sorted(ALL)[:20]
    glosses = [ALL[s] for s in train]
    assert recombine(train, glosses, 8, seed=1) == recombine(train, glosses, 8, seed=1)
    assert recombine(train, glosses, 8, seed=1) != recombine(train, glosses, 8, seed=2)
    assert len(recombine(train, glosses, 3)) == 3


def test_nothing_exchangeable_gives_nothing():
    assert recombine(["guten abend"], [["gut", "abend"]], 10) == []
    assert recombine([], [], 10) == []


def test_alignment_is_monotone_and_by_beginning():
    words = [
        "am",
        "montag",
        "regnet",
        "es",
        "und",
        "es",
        "ist",
        "in",
        "den",
        "bergen",
        "am",
        "montag",
        "kalt",
    ]
    assert align(words, ["montag", "regnen", "berg", "montag", "kalt"]) == {1: 0, 2: 1, 9: 2, 11: 3, 12: 4}
    assert align(["es", "ist", "gut"], ["sein", "gut"]) == {2: 1}
