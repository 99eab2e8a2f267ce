"""German phrases of the weather grammar (german.yaml), and German numbers.

A phrase has the signs it is signed with and the words it is spoken with. The two differ in number on purpose: NORD OST
is "im nordosten", DREI ZWANZIG is "dreiundzwanzig", TAG is "am tag", NACHT MONTAG is "in der nacht zum montag". Lists
are in order of frequency; a phrase of rank r is drawn with weight (r + 1)^-0.7, which gives the Zipfian tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Phrase:
    """Glosses in signing order, the German words, and a place in signing space ("" is the signer's centre)."""

    glosses: tuple[str, ...]
    words: str
    place: str = ""


@dataclass(frozen=True)
class Predicate:
    """A statement on a region: its signs, and for each mark two German forms (german.yaml)."""

    signs: str
    plain: tuple[str, str]
    negation: tuple[str, str] | None = None
    intensity: tuple[str, str] | None = None
    adverbs: tuple[str, ...] = ()
    region: bool = True

    def forms(self, mark: str) -> tuple[str, str]:
        """Returns the two forms under "", "negation" or "intensity"."""
        forms: tuple[str, str] | None = getattr(self, mark or "plain")
        assert forms is not None, f"{self.signs} has no {mark}"
        return forms


_DATA = yaml.safe_load(Path(__file__).with_name("german.yaml").read_text(encoding="utf-8"))


def _phrases(name: str) -> dict[str, Phrase]:
    """Returns the phrases by their glosses; the file has "words" or "words, place"."""
    parts = {glosses: value.partition(", ") for glosses, value in _DATA[name].items()}
    return {
        glosses: Phrase(tuple(glosses.split()), words, place) for glosses, (words, _, place) in parts.items()
    }


WEEKDAYS: tuple[str, ...] = tuple(_DATA["weekdays"])
MONTHS: tuple[str, ...] = tuple(_DATA["months"])
ADJECTIVES: tuple[str, ...] = tuple(_DATA["adjectives"])
AIR: tuple[str, ...] = tuple(_DATA["air"])
TIMES, LATER_TIMES, REGIONS, COUNTRIES = map(_phrases, ("times", "later_times", "regions", "countries"))
ADVERBS: dict[str, str] = _DATA["adverbs"]
DIRECTIONS: dict[str, str] = _DATA["directions"]
MOVING: dict[str, str] = _DATA["moving"]
PRESSURE: dict[str, str] = _DATA["pressure"]
DANGERS: dict[str, tuple[str, str]] = _DATA["dangers"]
PREDICATES: dict[str, Predicate] = {
    name: Predicate(**values | {"adverbs": tuple(_DATA["adverb_sets"].get(values.get("adverbs"), ()))})
    for name, values in _DATA["predicates"].items()
}

_ONES = (
    "null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf",
)  # fmt: skip
_TEENS = ["dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"]
_ORDINAL_STEMS = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}


def adjective(gloss: str) -> str:
    """Returns the uninflected adjective of a gloss: HEISS is "heiß"."""
    return "heiß" if gloss == "HEISS" else gloss.lower()


def number_words(value: int) -> str:
    """Returns a cardinal from -12 to 30 in words, one word but for "minus"."""
    if value < 0:
        return f"minus {number_words(-value)}"
    if value <= 12:
        return _ONES[value]
    if value < 20:
        return _TEENS[value - 13]
    if value in (20, 30):
        return "zwanzig" if value == 20 else "dreißig"
    ones = "ein" if value == 21 else _ONES[value - 20]
    return f"{ones}undzwanzig"


def ordinal_words(value: int) -> str:
    """Returns the day of a date in the accusative: 3 is "dritten", 21 "einundzwanzigsten"."""
    if value < 20:
        return _ORDINAL_STEMS.get(value, number_words(value) + "t") + "en"
    return number_words(value) + "sten"


def number_glosses(value: int) -> tuple[str, ...]:
    """Returns the signs of a number: ones come first, as in German (23 is DREI ZWANZIG, 13 is DREI ZEHN)."""
    if value < 0:
        return ("MINUS", *number_glosses(-value))
    if value <= 12:
        return (_ONES[value].upper(),)
    if value < 20:
        return (_ONES[value - 10].upper(), "ZEHN")
    if value in (20, 30):
        return ("ZWANZIG" if value == 20 else "DREISSIG",)
    return (_ONES[value - 20].upper(), "ZWANZIG")
