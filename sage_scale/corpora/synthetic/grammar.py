"""From a meaning to the signs and to the German sentences of a weather forecast.

A `Meaning` is sampled first (sampling.py); `signing` returns its signs, `realisations` its German sentences with their
probabilities, the dominant one first. Neither is made from the other, and they differ as sign and spoken
language do: signs go time, place, circumstance, predicate, while German has its verb second; function words are
not signed; pointing (IX) and the open palm (PALM) have no word; negation, question and intensity are shown on the
face and head alone; directions are paths of a verb through signing space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from random import Random

from sage_scale.corpora.synthetic import german as de


@dataclass(frozen=True)
class Sign:
    """A sign in a sentence: gloss, marks of face and head on it, and its use of signing space."""

    gloss: str
    marks: tuple[str, ...] = ()
    """Any of negation, question, intensity."""
    path: tuple[str, str] = ("", "")
    """Places of the map from and to which an inflected sign moves; "" is the signer's centre."""
    place: str = ""
    """Place of the map to which the sign is shifted."""


@dataclass(frozen=True)
class Clause:
    """One predicate with its circumstances; every field names an entry of german.py."""

    predicate: str
    time: str = ""
    later: str = ""
    region: str = ""
    adverb: str = ""
    mark: str = ""
    numbers: tuple[int, ...] = ()
    filler: str = ""
    """Adjective or danger (# of the predicate)."""
    actor: str = ""
    """Country or moving thing (% of the predicate)."""
    pressure: str = ""
    path: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Opening:
    """The announcement of a forecast: for which day, with an optional greeting."""

    day: str
    weekday: str
    date: int
    month: str
    greeting: bool = False


@dataclass(frozen=True)
class Meaning:
    """The content of a sentence, in a form that is neither German nor signing."""

    clauses: tuple[Clause, ...] = ()
    opening: Opening | None = None
    topic: str = "time"
    """Start of the first clause: time or region."""
    question: bool = False
    pointing: bool = False
    """The signer also points at the first region (no word)."""
    palm: bool = False
    """An open palm ends the sentence (no word)."""


def signing(meaning: Meaning) -> tuple[Sign, ...]:
    """Returns the signs of a meaning, in order."""
    signs: list[Sign] = []
    if meaning.opening:
        o = meaning.opening
        greeting = ("GUT", "ABEND", "ZUSCHAUER") if o.greeting else ()
        glosses = (*greeting, "JETZT", "WETTER", o.day, o.weekday, *de.number_glosses(o.date), o.month)
        signs += [Sign(gloss) for gloss in glosses if gloss]
    for number, clause in enumerate(meaning.clauses):
        last = number == len(meaning.clauses) - 1
        signs += _clause_signs(clause, meaning, first=number == 0, question=meaning.question and last)
    if meaning.palm:
        signs.append(Sign("PALM", marks=("question",) if meaning.question else ()))
    return tuple(signs)


def _clause_signs(clause: Clause, meaning: Meaning, first: bool, question: bool) -> list[Sign]:
    asked = ("question",) if question else ()
    time = [Sign(gloss, asked) for gloss in _time_glosses(clause)]
    region: list[Sign] = []
    place = ""
    if clause.region:
        phrase = de.REGIONS[clause.region]
        place = phrase.place
        region = [Sign(gloss, asked) for gloss in phrase.glosses]
        if first and meaning.pointing:
            region.append(Sign("IX", asked, path=("", place or "nord")))
    opener = region + time if first and meaning.topic == "region" else time + region
    if clause.adverb:
        opener.append(Sign(clause.adverb, asked))
    return opener + _predicate_signs(clause, asked, place)


def _time_glosses(clause: Clause) -> tuple[str, ...]:
    if clause.later:
        return de.LATER_TIMES[clause.later].glosses
    if clause.time in de.MONTHS:
        return (clause.time,)
    return de.TIMES[clause.time].glosses if clause.time else ()


def _predicate_signs(clause: Clause, asked: tuple[str, ...], place: str) -> list[Sign]:
    marks = (*asked, clause.mark) if clause.mark else asked
    signs: list[Sign] = []
    for slot in de.PREDICATES[clause.predicate].signs.split():
        if slot == "@":
            for number, value in enumerate(clause.numbers):
                between = ("BIS",) if number else ()
                signs += [Sign(gloss, marks) for gloss in (*between, *de.number_glosses(value))]
        elif slot.endswith("*"):
            signs.append(Sign(slot[:-1], marks, path=clause.path))
        else:
            gloss = {"#": clause.filler, "%": clause.actor, "&": clause.pressure}.get(slot, slot)
            signs.append(Sign(gloss, marks, place=place))
    return signs


@lru_cache(maxsize=4096)
def realisations(meaning: Meaning) -> tuple[tuple[float, str], ...]:
    """Returns all German sentences of a meaning with their probabilities, the dominant one first."""
    if meaning.opening:
        return _opening_sentences(meaning.opening)
    both = bool(meaning.clauses[0].region) and not meaning.question
    joined = len(meaning.clauses) > 1 and not meaning.question
    options: list[list[tuple[float, int]]] = [
        *([(0.8, 0), (0.2, 1)] for _ in meaning.clauses),  # form of the predicate
        [(0.85, 0), (0.15, 1)]
        if both
        else [(1.0, 0)],  # the first clause in the order of the signs, or turned
        [(0.82, 0), (0.18, 1)] if joined else [(1.0, 0)],  # "und", or "dagegen" and "dann"
    ]
    words = [[_predicate_words(clause, form) for form in (0, 1)] for clause in meaning.clauses]
    found: dict[str, float] = {}
    for choice in product(*options):
        probability = 1.0
        for share, _ in choice:
            probability *= share
        *forms, turned, joint = (value for _, value in choice)
        region_first = both and (meaning.topic == "region") != bool(turned)
        predicates = [pair[form] for pair, form in zip(words, forms)]
        sentence = _sentence(meaning, predicates, region_first, joint)
        found[sentence] = found.get(sentence, 0.0) + probability
    shares = ((share, sentence) for sentence, share in found.items())
    return tuple(sorted(shares, key=lambda item: (-item[0], item[1])))


def dominant(meaning: Meaning) -> str:
    """Returns the most probable German sentence of a meaning."""
    return realisations(meaning)[0][1]


def choose_sentence(meaning: Meaning, rng: Random) -> str:
    """Returns one German sentence, drawn by its probability."""
    point = rng.random()
    options = realisations(meaning)
    for share, sentence in options:
        point -= share
        if point < 0:
            return sentence
    return options[0][1]


def _opening_sentences(o: Opening) -> tuple[tuple[float, str], ...]:
    weekday = o.weekday.lower()
    date = f"{weekday} den {de.ordinal_words(o.date)} {o.month.lower()}"
    day = f"{o.day.lower()} {date}" if o.day else date
    if o.greeting:
        return ((0.82, f"guten abend liebe zuschauer und nun das wetter für {day}"),
                (0.18, f"liebe zuschauer guten abend und jetzt das wetter für {day}"))  # fmt: skip
    return ((0.82, f"und nun die wettervorhersage für {day}"),
            (0.18, f"und jetzt das wetter für {day}"))  # fmt: skip


def _sentence(meaning: Meaning, predicates: list[tuple[str, str]], region_first: bool, joint: int) -> str:
    first, *rest = meaning.clauses
    verb, middle = predicates[0]
    time, region, adverb = _time_words(first), _region_words(first), _adverb_words(first)
    if meaning.question:
        parts = [verb, time, region, adverb, middle]
    elif region_first:
        parts = [region, verb, time, adverb, middle]
    else:
        parts = [time, verb, region, adverb, middle]
    for clause, (verb, middle) in zip(rest, predicates[1:]):
        opener = _time_words(clause) if clause.later else _region_words(clause)
        adverb = _adverb_words(clause)
        if meaning.question:
            parts += ["und", verb, opener, adverb, middle]
        elif joint and clause.later:
            parts += [opener, verb, "" if clause.later == "DANN" else "dann", adverb, middle]
        elif joint:
            parts += [opener, "dagegen", verb, adverb, middle]
        else:
            parts += ["und", opener, verb, adverb, middle]
    return " ".join(part for part in parts if part)


def _time_words(clause: Clause) -> str:
    if clause.later:
        return de.LATER_TIMES[clause.later].words
    if clause.time in de.MONTHS:
        return f"für {clause.time.lower()}"
    return de.TIMES[clause.time].words if clause.time else ""


def _region_words(clause: Clause) -> str:
    return de.REGIONS[clause.region].words if clause.region else ""


def _adverb_words(clause: Clause) -> str:
    return de.ADVERBS[clause.adverb] if clause.adverb else ""


def _predicate_words(clause: Clause, form: int) -> tuple[str, str]:
    verb, middle = de.PREDICATES[clause.predicate].forms(clause.mark)[form].split("|")
    words = {"a": "", "ae": "", "vor": "", "sehr": ""}
    if clause.predicate == "warnung":
        words["vor"], words["sehr"] = de.DANGERS[clause.filler]
    elif clause.filler:
        words["a"] = de.adjective(clause.filler)
        words["ae"] = words["a"] + "e"
    numbers = [de.number_words(value) for value in clause.numbers] or [""]
    origin, goal = (de.DIRECTIONS.get(place, "") for place in clause.path)
    country = de.COUNTRIES.get(clause.actor)
    values = {
        **words, "n": numbers[0], "n1": numbers[0], "n2": numbers[-1], "von": origin, "nach": goal,
        "land": country.words if country else "", "zieht": de.MOVING.get(clause.actor, ""),
        "druck": de.PRESSURE.get(clause.pressure, ""),
    }  # fmt: skip
    return verb.format(**values), middle.format(**values).strip()
