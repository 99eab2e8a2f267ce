"""Samples the sentences of a corpus: train, dev and test, disjoint as sentences and as gloss sequences.

Training sentences are drawn at random; towards the end those with signs still too rare are preferred, so
that every sign of the lexicon can be learnt. Evaluation sentences are drawn freely, but only with signs that
training shows at least `LEAST_TRAIN_COUNT` times (where training is large enough for that).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from sage_scale.corpora.synthetic import german as de
from sage_scale.corpora.synthetic.grammar import (
    Clause,
    Meaning,
    Opening,
    choose_sentence,
    realisations,
    signing,
)
from sage_scale.corpora.synthetic.lexicon import LEXICON

LEAST_TRAIN_COUNT = 5
"""Least number of training signs of each sign in an evaluation sentence."""
ZIPF = 0.7
"""Exponent of the weights of phrases by rank."""
_WANTED = 6
_CANDIDATES = 40

Candidate = tuple[Meaning, str]
Free = Callable[[Meaning, str], bool]
"""Returns whether neither sentence nor glosses are taken."""


@dataclass(frozen=True)
class Item:
    """A sentence to be signed."""

    split: str
    number: int
    meaning: Meaning
    sentence: str

    @property
    def glosses(self) -> tuple[str, ...]:
        """The gold glosses."""
        return tuple(sign.gloss for sign in signing(self.meaning))


def draw_splits(seed: int, counts: dict[str, int]) -> list[Item]:
    """Returns the sentences of all splits; `counts` maps split names to numbers of clips, train first.

    The training sentences depend on seed and number of training clips alone.
    """
    taken_sentences: set[str] = set()
    taken_glosses: set[tuple[str, ...]] = set()
    train_counts: Counter[str] = Counter()
    items: list[Item] = []

    def free(meaning: Meaning, sentence: str) -> bool:
        return (
            sentence not in taken_sentences and tuple(s.gloss for s in signing(meaning)) not in taken_glosses
        )

    for split, count in counts.items():
        rng = Random(f"sentences/{seed}/{split}")
        for number in range(count):
            if split == "train":
                meaning, sentence = _draw_train(rng, free, train_counts, left=count - number)
                train_counts.update(sign.gloss for sign in signing(meaning))
            else:
                meaning, sentence = _draw_evaluation(rng, free, train_counts)
            item = Item(split, number, meaning, sentence)
            taken_sentences.add(sentence)
            taken_glosses.add(item.glosses)
            items.append(item)
    return items


def _draw(rng: Random, free: Free) -> Candidate:
    while True:
        meaning = sample(rng)
        sentence = choose_sentence(meaning, rng)
        if free(meaning, sentence):
            return meaning, sentence


def _draw_train(rng: Random, free: Free, counts: Counter[str], left: int) -> Candidate:
    lacking = {gloss: _WANTED - counts[gloss] for gloss in LEXICON if counts[gloss] < _WANTED}
    # A candidate chosen for its rare signs brings about two of them: start when that is needed, no earlier.
    if not lacking or sum(lacking.values()) < 0.8 * left:
        return _draw(rng, free)
    candidates = [_draw(rng, free) for _ in range(_CANDIDATES)]

    def gain(candidate: Candidate) -> int:
        return sum(lacking.get(gloss, 0) for gloss in {sign.gloss for sign in signing(candidate[0])})

    return max(candidates, key=gain)


def _draw_evaluation(rng: Random, free: Free, counts: Counter[str]) -> Candidate:
    best, best_count = _draw(rng, free), -1
    for _ in range(60):
        candidate = _draw(rng, free)
        least = min(counts[sign.gloss] for sign in signing(candidate[0]))
        if least >= LEAST_TRAIN_COUNT:
            return candidate
        if least > best_count:
            best, best_count = candidate, least
    return best  # training is too small to cover anything better


def sample(rng: Random) -> Meaning:
    """Returns a random meaning of 5 to 10 signs and 8 to 16 words."""
    while True:
        meaning = _opening(rng) if rng.random() < 0.08 else _forecast(rng)
        if meaning is None or not 5 <= len(signing(meaning)) <= 10:
            continue
        if all(8 <= len(sentence.split()) <= 16 for _, sentence in realisations(meaning)):
            return meaning


def _zipf(rng: Random, items: Sequence[str]) -> str:
    weights = [(rank + 1.0) ** -ZIPF for rank in range(len(items))]
    return rng.choices(items, weights)[0]


def _opening(rng: Random) -> Meaning:
    day = rng.choices(["MORGEN", "HEUTE", "ÜBERMORGEN", ""], [6, 2, 1, 1])[0]
    date = rng.choice(de.WEEKDAYS), rng.randint(1, 30), rng.choice(de.MONTHS)
    return Meaning(opening=Opening(day, *date, greeting=rng.random() < 0.3))


def _forecast(rng: Random) -> Meaning | None:
    first = _clause(rng, first=True)
    clauses = [first]
    if rng.random() < 0.78:
        second = _clause(rng, first=False)
        same_region = second.region and second.region == first.region
        same_time = second.later and second.later in first.time
        if second.predicate == first.predicate or same_region or same_time:
            return None
        clauses.append(second)
    topic = "region" if first.region and rng.random() < 0.2 else "time"
    return Meaning(
        clauses=tuple(clauses), topic=topic, question=rng.random() < 0.08,
        pointing=bool(first.region) and rng.random() < 0.1, palm=rng.random() < 0.1,
    )  # fmt: skip


def _clause(rng: Random, first: bool) -> Clause:
    name = _zipf(rng, list(de.PREDICATES))
    predicate = de.PREDICATES[name]
    mark = rng.choices(["", "negation", "intensity"], [72, 12, 16])[0]
    if mark and getattr(predicate, mark) is None:
        mark = ""
    adverb = ""
    if predicate.adverbs and not mark and rng.random() < 0.3:
        adverb = _zipf(rng, list(predicate.adverbs))
    time = later = region = ""
    if first:
        time = rng.choice(de.MONTHS) if name == "zu" else _zipf(rng, list(de.TIMES))
        if predicate.region and rng.random() < 0.9:
            region = _zipf(rng, list(de.REGIONS))
    elif not predicate.region or rng.random() < 0.3:
        later = _zipf(rng, list(de.LATER_TIMES))
    else:
        region = _zipf(rng, list(de.REGIONS))
    filler = actor = pressure = ""
    path = ("", "")
    if name in ("adjektiv", "bleiben", "zu"):
        filler = _zipf(rng, de.ADJECTIVES)
    elif name == "warnung":
        filler = _zipf(rng, list(de.DANGERS))
    elif name == "luft":
        filler, actor = _zipf(rng, de.AIR), rng.choice(list(de.COUNTRIES))
        pressure = rng.choice(list(de.PRESSURE))
        path = (de.COUNTRIES[actor].place, "")
    if name == "ziehen":
        actor = _zipf(rng, list(de.MOVING))
        ways = [("west", "ost"), ("nord", "süd"), ("ost", "west"), ("süd", "nord")]
        path = rng.choices(ways, [4, 2, 1, 1])[0]
    elif name in ("wehen", "wolken kommen"):
        path = (rng.choices(["west", "nord", "ost", "süd"], [4, 2, 2, 1])[0], "")
    return Clause(name, time, later, region, adverb, mark, _numbers(rng, name), filler, actor, pressure, path)


def _numbers(rng: Random, predicate: str) -> tuple[int, ...]:
    if predicate == "spanne":
        low = rng.choice([*range(-6, -1), *range(2, 25)])
        return (low, rng.choice([value for value in range(low + 2, low + 9) if 1 < abs(value) <= 30]))
    if predicate in ("temperatur", "steigen", "sinken"):
        return (rng.choice([*range(-10, -1), *range(2, 13), *range(2, 13), *range(13, 31), 0, 0]),)
    return ()
