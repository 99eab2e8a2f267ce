"""The lexicon: some 160 invented signs (lexicon.txt), each a bundle of phonological parameters.

A sign is written as handshape, place, movement, hands, orientation and length, as sign phonology does (Stokoe;
Brentari's prosodic model). The forms are ours: a few are iconic, none is taken from a dictionary of DGS. At
least a fifth of the signs have a partner that differs in one parameter only (a minimal pair), and a few share
their whole form with another sign (homonyms), told apart by the mouthing or only by the words around them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

_MOUTH_SHAPES = {"a": "open", "e": "wide", "i": "wide", "ä": "wide", "o": "round", "u": "round", "ö": "round",
                 "ü": "round", "m": "closed", "b": "closed", "p": "closed"}  # fmt: skip
HOMONYMS: tuple[tuple[str, str, str], ...] = (
    ("RHEIN", "DONAU", "mouthing"),
    ("NEBEL", "DUNST", "mouthing"),
    ("KÜHL", "FRISCH", "mouthing"),
    ("HOCH", "STEIGEN", "context"),
    ("TIEF", "SINKEN", "context"),
)
"""Pairs with the same form on the hands, and what distinguishes them."""


@dataclass(frozen=True)
class Form:
    """The hands of a sign.

    `hands`: one hand; both symmetrically (`sym`) or in opposite phase (`alt`); or the strong hand above a resting
    flat weak hand (`base`). `orientation` is where the fingers point (`back`: up, with the back of the hand shown).
    """

    handshape: str
    place: str
    movement: str
    hands: str
    orientation: str
    length: str

    def differences(self, other: Form) -> tuple[str, ...]:
        """Returns the names of the parameters in which the two forms differ."""
        return tuple(f.name for f in fields(Form) if getattr(self, f.name) != getattr(other, f.name))


@dataclass(frozen=True)
class Nuance:
    """Differences of a sign from others of the same form; the default is none."""

    shift: tuple[float, float] = (0.0, 0.0)
    """Of the place: u and y (articulation.py)."""
    turn: float = 0.0
    """Of the direction of the fingers, degrees."""
    extent: float = 1.0
    """Factor on the extent of the movement."""


@dataclass(frozen=True)
class Entry:
    """A sign: its gloss, its form, its variant of dialect B (signers.py), its nuance, and its mouthing."""

    gloss: str
    form: Form
    variant: Form | None = None
    nuance: Nuance = Nuance()

    def form_in(self, dialect: str) -> Form:
        """Returns the form that a signer of dialect A or B uses."""
        return self.variant if dialect == "B" and self.variant else self.form

    @property
    def mouthing(self) -> tuple[str, ...]:
        """Mouth shapes of the silently spoken word: closed, open, wide or round, at most three."""
        shapes: list[str] = []
        for letter in self.gloss.lower():
            shape = _MOUTH_SHAPES.get(letter)
            if shape and (not shapes or shapes[-1] != shape):
                shapes.append(shape)
        return tuple(shapes[:3]) or ("closed",)


def _read_lexicon() -> dict[str, Entry]:
    lexicon: dict[str, Entry] = {}
    for line in Path(__file__).with_name("lexicon.txt").read_text(encoding="utf-8").splitlines()[1:]:
        main, _, other = line.partition("|")
        gloss, *parameters = main.split()
        lexicon[gloss] = Entry(gloss, Form(*parameters), Form(*other.split()) if other else None)
    return lexicon


LEXICON: dict[str, Entry] = _read_lexicon()


def form_of(gloss: str, dialect: str) -> Form:
    """Returns the form that a signer of dialect A or B uses."""
    return LEXICON[gloss].form_in(dialect)


def minimal_pairs() -> list[tuple[str, str, str]]:
    """Returns all pairs of signs whose forms differ in exactly one parameter, with its name."""
    pairs = ((a, b, a.form.differences(b.form)) for a, b in combinations(LEXICON.values(), 2))
    return [(a.gloss, b.gloss, differences[0]) for a, b, differences in pairs if len(differences) == 1]


def as_json() -> dict[str, Any]:
    """Returns the lexicon as plain data, for lexicon.json beside a corpus."""
    return {
        "signs": {
            entry.gloss: {
                "form": asdict(entry.form),
                "variant": asdict(entry.variant) if entry.variant else None,
                "mouthing": list(entry.mouthing),
            }
            for entry in LEXICON.values()
        },
        "homonyms": [list(pair) for pair in HOMONYMS],
        "minimal_pairs": [list(pair) for pair in minimal_pairs()],
    }
