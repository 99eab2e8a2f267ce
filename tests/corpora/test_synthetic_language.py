"""The synthetic language: lexicon, grammar and splits of a corpus of the demo's size."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from sage_scale.corpora.synthetic import animation, articulation, german
from sage_scale.corpora.synthetic.grammar import (
    Clause,
    Meaning,
    choose_sentence,
    dominant,
    realisations,
    signing,
)
from sage_scale.corpora.synthetic.lexicon import HOMONYMS, LEXICON, Form, form_of, minimal_pairs
from sage_scale.corpora.synthetic.sampling import LEAST_TRAIN_COUNT, Item, draw_splits, sample
from sage_scale.evaluation import score

COUNTS = {"train": 480, "dev": 64, "test": 96, "test_heldout": 48}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return draw_splits(0, COUNTS)


@pytest.fixture(scope="module")
def meanings() -> list[Meaning]:
    rng = Random(5)
    return [sample(rng) for _ in range(1500)]


# -- lexicon


def test_about_160_signs_each_of_known_parameters() -> None:
    assert 150 <= len(LEXICON) <= 170
    straight = "hold up down in out forward back east west path"
    curved = "arc circle circles tap shake zigzag twist rain open close nod"
    known = {
        "handshape": articulation.SHAPES, "place": articulation.PLACES, "movement": f"{straight} {curved}".split(),
        "hands": ("one", "sym", "alt", "base"), "orientation": articulation.ORIENTATIONS, "length": animation.LENGTHS,
    }  # fmt: skip
    for entry in LEXICON.values():
        for form in (entry.form, entry.variant):
            if form:
                assert all(getattr(form, name) in values for name, values in known.items()), entry


def test_a_fifth_of_the_signs_has_a_minimal_pair() -> None:
    paired = {gloss for a, b, _ in minimal_pairs() for gloss in (a, b)}
    assert len(paired) >= 0.2 * len(LEXICON)
    for a, b, parameter in minimal_pairs():
        first, second = vars(LEXICON[a].form), vars(LEXICON[b].form)
        assert [key for key in first if first[key] != second[key]] == [parameter]


def test_only_the_declared_homonyms_share_a_form() -> None:
    forms: dict[Form, set[str]] = {}
    for gloss, entry in LEXICON.items():
        for form in {entry.form, form_of(gloss, "B")}:
            forms.setdefault(form, set()).add(gloss)
    shared = {frozenset(glosses) for glosses in forms.values() if len(glosses) > 1}
    assert shared == {frozenset(pair[:2]) for pair in HOMONYMS}
    assert {kind for *_, kind in HOMONYMS} == {"mouthing", "context"}
    for a, b, kind in HOMONYMS:
        if kind == "mouthing":
            assert LEXICON[a].mouthing != LEXICON[b].mouthing


def test_context_homonyms_never_stand_in_the_same_surroundings(meanings: list[Meaning]) -> None:
    around: dict[str, set[tuple[str, str]]] = {}
    for meaning in meanings:
        glosses = ["", *(sign.gloss for sign in signing(meaning)), ""]
        for before, gloss, after in zip(glosses, glosses[1:], glosses[2:]):
            around.setdefault(gloss, set()).add((before, after))
    for a, b, kind in HOMONYMS:
        if kind == "context":
            assert around[a] and around[b] and not around[a] & around[b]


# -- grammar


def test_clauses_keep_to_five_to_ten_signs_and_plain_lower_case(meanings: list[Meaning]) -> None:
    for meaning in meanings:
        assert 5 <= len(signing(meaning)) <= 10
        for _, sentence in realisations(meaning):
            assert re.fullmatch(r"[a-zäöüß]+( [a-zäöüß]+)*", sentence), sentence
            assert 8 <= len(sentence.split()) <= 16


def test_every_meaning_has_paraphrases_and_a_dominant_one(meanings: list[Meaning]) -> None:
    for meaning in meanings:
        options = realisations(meaning)
        assert len(options) >= 2
        assert sum(share for share, _ in options) == pytest.approx(1)
        assert options[0][0] > options[1][0]
    rng = Random(2)
    meaning = meanings[0]
    drawn = Counter(choose_sentence(meaning, rng) for _ in range(4000))
    for share, sentence in realisations(meaning):
        assert drawn[sentence] / 4000 == pytest.approx(share, abs=0.035)


def test_signing_decides_the_text(meanings: list[Meaning]) -> None:
    """What is signed, marks and paths included, never stands for two different sets of sentences."""
    said: dict[tuple, tuple] = {}
    for meaning in meanings:
        assert said.setdefault(signing(meaning), realisations(meaning)) == realisations(meaning)


def _sentence(**changes: object) -> Meaning:
    question = bool(changes.pop("question", False))
    first = Clause("regen", time="MORGEN", region="NORD", mark=str(changes.pop("mark", "")))
    second = Clause("wolken kommen", region="SÜD", path=changes.pop("path", ("west", "")))  # type: ignore[arg-type]
    return Meaning(clauses=(first, second), question=question)


def test_face_head_and_space_alone_change_the_text() -> None:
    plain = _sentence()
    assert dominant(plain) == "morgen regnet es im norden und im süden ziehen wolken aus westen auf"
    others = {
        "morgen regnet es im norden nicht und im süden ziehen wolken aus westen auf": _sentence(
            mark="negation"
        ),
        "morgen fällt im norden kräftiger regen und im süden ziehen wolken aus westen auf": _sentence(
            mark="intensity"
        ),
        "regnet es morgen im norden und ziehen im süden wolken aus westen auf": _sentence(question=True),
        "morgen regnet es im norden und im süden ziehen wolken aus osten auf": _sentence(path=("ost", "")),
    }
    for sentence, meaning in others.items():
        assert dominant(meaning) == sentence
        assert [sign.gloss for sign in signing(meaning)] == [sign.gloss for sign in signing(plain)]
        assert signing(meaning) != signing(plain)


def test_numbers_are_german() -> None:
    words = {0: "null", 7: "sieben", 12: "zwölf", 13: "dreizehn", 16: "sechzehn", 17: "siebzehn", 20: "zwanzig",
             21: "einundzwanzig", 26: "sechsundzwanzig", 27: "siebenundzwanzig", 30: "dreißig",
             -3: "minus drei"}  # fmt: skip
    for value, word in words.items():
        assert german.number_words(value) == word
    ordinals = {1: "ersten", 2: "zweiten", 3: "dritten", 7: "siebten", 8: "achten", 12: "zwölften", 19: "neunzehnten",
                20: "zwanzigsten", 21: "einundzwanzigsten", 30: "dreißigsten"}  # fmt: skip
    for value, word in ordinals.items():
        assert german.ordinal_words(value) == word
    # Many signs for one word, and each number signed in its own way.
    assert german.number_glosses(23) == ("DREI", "ZWANZIG")
    signed = {german.number_glosses(value) for value in range(-12, 31)}
    assert len(signed) == 43


def test_order_and_number_of_words_differ_from_the_signs(items: list[Item]) -> None:
    """Sign order is not word order: the same pair of signs and words stands in both orders."""
    crossed = 0
    for item in items:
        for clause in item.meaning.clauses[:1]:
            glosses = [sign.gloss for sign in signing(item.meaning)]
            predicate = german.PREDICATES[clause.predicate].signs.split()[0]
            region = german.REGIONS[clause.region].glosses[0] if clause.region else ""
            if region and predicate in glosses:
                words = german.REGIONS[clause.region].words
                verb = item.sentence.split(words)[0].split()
                crossed += glosses.index(predicate) > glosses.index(region) and len(verb) > 1
    assert crossed > 0.3 * len(items)
    words = [len(item.sentence.split()) for item in items]
    signs = [len(item.glosses) for item in items]
    assert abs(np.corrcoef(words, signs)[0, 1]) < 0.75
    assert 12 < np.mean(words) < 15 and 6.5 < np.mean(signs) < 8  # PHOENIX14T: 14.0 words and 7.8 glosses


# -- splits


def test_splits_are_disjoint_and_covered(items: list[Item]) -> None:
    assert Counter(item.split for item in items) == Counter(COUNTS)
    assert len({item.sentence for item in items}) == len(items)
    assert len({item.glosses for item in items}) == len(items)
    train = Counter(gloss for item in items if item.split == "train" for gloss in item.glosses)
    for item in items:
        if item.split != "train":
            assert min(train[gloss] for gloss in item.glosses) >= LEAST_TRAIN_COUNT == 5
    assert len(train) == len(LEXICON)


def test_coverage_holds_for_a_smaller_corpus() -> None:
    items = draw_splits(7, {"train": 400, "test": 60})
    train = Counter(gloss for item in items if item.split == "train" for gloss in item.glosses)
    assert min(train[gloss] for item in items if item.split == "test" for gloss in item.glosses) >= 5
    tested = {gloss for item in items if item.split == "test" for gloss in item.glosses}
    assert len(tested) > 0.6 * len(LEXICON)


def test_frequencies_are_zipfian(items: list[Item]) -> None:
    """Counts fall with rank along a power law, and a few signs make up much of the text."""
    counts = sorted(Counter(gloss for item in items for gloss in item.glosses).values(), reverse=True)
    slope = np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0]
    assert -1.2 < slope < -0.6
    assert sum(counts[:16]) > 0.33 * sum(counts)


def test_a_reader_of_glosses_could_reach_70_to_85_bleu(items: list[Item]) -> None:
    """The ceiling: the dominant sentence of the true meaning. The floor: any other sentence of the corpus."""
    test = [item for item in items if item.split != "train"]
    references = [item.sentence for item in test]
    ceiling = score([dominant(item.meaning) for item in test], references, "de")["bleu4"]
    assert 70 <= ceiling <= 86
    turned = references[1:] + references[:1]
    assert score(turned, references, "de")["bleu4"] < 10


def test_marks_and_left_overs_occur_often_enough_to_be_learnt(items: list[Item]) -> None:
    train = [item for item in items if item.split == "train"]
    marks = Counter(
        mark for item in train for mark in {m for sign in signing(item.meaning) for m in sign.marks}
    )
    assert all(marks[mark] >= 15 for mark in ("negation", "question", "intensity"))
    glosses = Counter(gloss for item in train for gloss in item.glosses)
    assert glosses["IX"] >= 10 and glosses["PALM"] >= 10  # signs without a word
    assert sum(sign.path != ("", "") for item in train for sign in signing(item.meaning)) >= 40


def test_the_same_seed_gives_the_same_sentences() -> None:
    counts = {"train": 30, "dev": 5}
    assert draw_splits(3, counts) == draw_splits(3, counts)
    assert draw_splits(3, counts) != draw_splits(4, counts)
    # More evaluation clips leave the training sentences as they are.
    assert draw_splits(3, {"train": 30, "dev": 9})[:30] == draw_splits(3, counts)[:30]
