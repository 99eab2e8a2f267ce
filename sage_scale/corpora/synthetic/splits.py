"""Which sentences a corpus holds: train, dev and test, disjoint as sentences and as gloss sequences.

Training sentences are drawn at random; towards the end those are preferred that hold signs still too rare, so
that every sign of the lexicon can be learnt. Evaluation sentences are drawn freely, but only with signs that
training shows at least `LEAST_TRAIN_COUNT` times (where training is large enough for that).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from sage_scale.corpora.synthetic.grammar import Meaning, choose_sentence, sample, signing
from sage_scale.corpora.synthetic.lexicon import LEXICON

LEAST_TRAIN_COUNT = 5
"""Each sign of an evaluation sentence is in so many training signs at least."""
_WANTED = 6
_CANDIDATES = 40

Candidate = tuple[Meaning, str]
Free = Callable[[Meaning, str], bool]
"""Whether neither sentence nor glosses are taken."""


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
    """The sentences of all splits; `counts` maps split names to numbers of clips, and must name train first.

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
