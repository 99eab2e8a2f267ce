"""Data augmentation by recombination: exchanges words between training sentences that occur in the same context.

A few hundred sentences show each content word a handful of times, too few to learn from that its lemma is to be
read and not guessed from the rest. Two words are taken as exchangeable if somewhere in the training text they
stood between the same neighbours ("im süden und", "im norden und": after Andreas 2020, "Good-Enough Compositional
Data Augmentation"). The word is exchanged together with its pseudo-gloss.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

Pair = tuple[str, tuple[str, ...]]
"""A sentence and its pseudo-glosses."""
_Unit = tuple[str, str]
"""A word and its lemma."""
_EDGE = "\0"


def align(words: Sequence[str], glosses: Sequence[str]) -> dict[int, int]:
    """Returns the alignment of words to pseudo-glosses: word index -> gloss index, both ascending.

    A gloss is aligned to the next word that begins with the gloss less its last three letters (but at least its
    first three). Words whose lemma is spelled differently ("ist", "sein") stay unaligned.
    """
    found: dict[int, int] = {}
    start = 0
    for number, gloss in enumerate(glosses):
        beginning = gloss[: max(3, len(gloss) - 3)].lower()
        for index in range(start, len(words)):
            if words[index].lower().startswith(beginning):
                found[index] = number
                start = index + 1
                break
    return found


def recombine(
    sentences: Sequence[str], glosses: Sequence[Sequence[str]], count: int, seed: int = 0, share: float = 0.5
) -> list[Pair]:
    """Returns up to `count` distinct new sentences with their pseudo-glosses, none of them a training sentence.

    Each is a training sentence in which every exchangeable word was exchanged with probability `share`. Same
    input and seed, same output. Words must be separated by spaces; fewer come back where little is exchangeable.
    """
    rows = [(sentence.split(), list(row)) for sentence, row in zip(sentences, glosses, strict=True)]
    contexts: defaultdict[tuple[str, str], set[_Unit]] = defaultdict(set)
    slots: list[list[tuple[int, int]]] = []
    for words, row in rows:
        aligned = align(words, row)
        slots.append(list(aligned.items()))
        framed = [_EDGE, *words, _EDGE]
        for word, gloss in aligned.items():
            contexts[framed[word], framed[word + 2]].add((words[word], row[gloss]))
    shared: defaultdict[_Unit, Counter[_Unit]] = defaultdict(Counter)
    for alike in contexts.values():
        for unit in alike:
            shared[unit].update(alike - {unit})
    # Words that share many contexts are more likely of one kind than words that share a single one.
    choices = {unit: (sorted(alike), [alike[u] for u in sorted(alike)]) for unit, alike in shared.items()}

    rng = random.Random(f"recombine/{seed}")
    seen = {" ".join(words) for words, _ in rows}
    made: list[Pair] = []
    for _ in range(20 * count if rows else 0):  # some draws change nothing or repeat one another
        if len(made) == count:
            break
        number = rng.randrange(len(rows))
        words, row = list(rows[number][0]), list(rows[number][1])
        for word, gloss in slots[number]:
            candidates, weights = choices[words[word], row[gloss]]
            if candidates and rng.random() < share:
                [(words[word], row[gloss])] = rng.choices(candidates, weights)
        sentence = " ".join(words)
        if sentence not in seen:
            seen.add(sentence)
            made.append((sentence, tuple(row)))
    return made
