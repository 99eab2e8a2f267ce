"""The lexicon: some 160 invented signs, each a bundle of phonological parameters.

A sign is written as handshape, place, movement, hands, orientation and length, as sign phonology does (Stokoe;
Brentari's prosodic model). The forms are ours: a few are iconic, none is taken from a dictionary of DGS. At
least a fifth of the signs have a partner that differs in one parameter only (a minimal pair), and a few share
their whole form with another sign (homonyms), told apart by the mouthing or only by the words around them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any

HANDSHAPES = (
    "flat", "fist", "spread", "index", "two", "three", "four", "claw", "o", "c", "f", "l", "y", "pinky", "hook",
    "beak", "horns", "thumb",
)  # fmt: skip
PLACES = (
    "forehead", "temple", "cheek", "mouth", "chin", "neck", "shoulder", "chest", "belly", "center", "side", "high",
    "low", "contra",
)  # fmt: skip
MOVEMENTS = (
    "hold", "up", "down", "in", "out", "forward", "back", "arc", "circle", "circles", "tap", "shake", "zigzag",
    "twist", "rain", "open", "close", "nod", "east", "west", "path",
)  # fmt: skip
HANDS = ("one", "sym", "alt", "base")
ORIENTATIONS = ("up", "back", "in", "out", "down", "fwd")
LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True)
class Form:
    """What the hands do in a sign.

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
        """Names of the parameters in which the two forms differ."""
        return tuple(f.name for f in fields(Form) if getattr(self, f.name) != getattr(other, f.name))


@dataclass(frozen=True)
class Entry:
    """A sign: its gloss, its form, the form some signers use instead, and its mouthing."""

    gloss: str
    form: Form
    variant: Form | None = None
    """Used by the signers of dialect B (signers.py)."""

    @property
    def mouthing(self) -> tuple[str, ...]:
        """Mouth shapes of the silently spoken word: closed, open, wide or round, at most three."""
        shapes: list[str] = []
        for letter in self.gloss.lower():
            shape = _VISEMES.get(letter)
            if shape and (not shapes or shapes[-1] != shape):
                shapes.append(shape)
        return tuple(shapes[:3]) or ("closed",)


_VISEMES = {"a": "open", "e": "wide", "i": "wide", "ä": "wide", "o": "round", "u": "round", "ö": "round",
            "ü": "round", "m": "closed", "b": "closed", "p": "closed"}  # fmt: skip

# gloss: handshape place movement hands orientation length; "|" starts the form of dialect B
_TABLE = """
HEUTE        flat    center   down    sym  fwd   short
MORGEN       thumb   cheek    forward one  up    medium
ÜBERMORGEN   two     cheek    forward one  up    medium
JETZT        flat    low      down    sym  fwd   short
NACHT        flat    chest    down    alt  in    medium
ABEND        beak    high     close   sym  up    medium
FRÜH         beak    low      open    one  up    medium
VORMITTAG    flat    side     up      base up    medium
MITTAG       flat    side     hold    base up    short
NACHMITTAG   flat    side     out     base up    medium
TAG          c       high     arc     one  up    long
WOCHE        index   chest    out     base in    medium
WOCHENENDE   index   chest    down    base in    medium
NÄCHSTE      flat    center   arc     one  in    short
MONTAG       index   chin     twist   one  up    medium
DIENSTAG     two     chin     twist   one  up    medium
MITTWOCH     three   chin     twist   one  up    medium
DONNERSTAG   fist    forehead tap     one  up    short   | fist temple tap one up short
FREITAG      f       mouth    forward one  up    medium
SAMSTAG      spread  chest    circle  one  in    medium  | y chest circle one in medium
SONNTAG      flat    chest    hold    sym  up    short   | flat forehead down sym up medium
JANUAR       index   temple   shake   one  up    medium
FEBRUAR      two     temple   shake   one  up    medium
MÄRZ         fist    shoulder tap     one  in    short
APRIL        l       temple   twist   one  up    medium
MAI          o       side     open    one  up    medium
JUNI         pinky   cheek    down    one  up    medium
JULI         pinky   cheek    twist   one  up    long
AUGUST       claw    cheek    down    one  up    medium
SEPTEMBER    c       shoulder down    one  in    medium
OKTOBER      o       chest    circles one  in    long
NOVEMBER     horns   chest    down    one  up    medium
DEZEMBER     horns   forehead up      one  up    medium
NORD         index   high     up      one  up    short
SÜD          index   low      down    one  down  short
OST          index   center   east    one  up    short
WEST         index   center   west    one  up    short
MITTE        flat    center   nod     base down  short
HÄLFTE       flat    center   down    base in    medium
KÜSTE        flat    low      out     base in    medium
MEER         spread  low      zigzag  one  fwd   long
ALPEN        spread  high     zigzag  sym  up    long
BERG         flat    high     arc     one  in    medium
BAYERN       f       chest    down    one  in    medium
SACHSEN      hook    cheek    circle  one  up    medium
HESSEN       horns   side     twist   one  up    medium
BERLIN       l       forehead tap     one  up    medium
HAMBURG      l       side     shake   one  up    medium
KÖLN         y       chin     shake   one  up    medium
MÜNCHEN      y       forehead tap     one  up    medium
DRESDEN      four    shoulder in      one  in    medium
RHEIN        two     low      zigzag  one  in    long
DONAU        two     low      zigzag  one  in    long
ELBE         three   low      zigzag  one  in    long
EIFEL        claw    side     circle  one  up    medium
HARZ         claw    high     in      one  up    medium
SCHWARZ      index   forehead in      one  in    short
WALD         spread  side     twist   sym  up    long
TAL          flat    center   arc     sym  down  medium
FLUSS        four    low      zigzag  one  in    medium
INSEL        index   center   circle  base down  medium
ÜBERALL      flat    center   circle  one  fwd   medium
DEUTSCHLAND  index   forehead hold    one  up    short
POLEN        two     contra   out     one  in    medium
FRANKREICH   f       shoulder up      one  up    medium
ENGLAND      hook    chin     hold    one  in    short
SKANDINAVIEN three   high     in      one  up    medium
ITALIEN      beak    side     shake   one  up    medium
SPANIEN      horns   temple   out     one  up    medium
RUSSLAND     index   mouth    out     one  in    medium
ATLANTIK     spread  contra   zigzag  sym  fwd   long
REGEN        spread  high     rain    sym  down  long
SCHNEE       spread  high     zigzag  sym  down  long
HAGEL        fist    high     rain    sym  down  long
NIESEL       beak    high     rain    one  down  medium
SCHAUER      spread  side     down    one  down  medium
GEWITTER     index   high     zigzag  one  down  medium  | horns high zigzag one down medium
NEBEL        spread  forehead circle  sym  in    long
DUNST        spread  forehead circle  sym  in    long
SONNE        beak    high     open    one  down  medium
WOLKE        claw    high     circle  sym  up    long
WIND         flat    side     shake   sym  up    medium
WEHEN        flat    center   path    sym  up    medium
STURM        spread  side     circles sym  up    long
FROST        claw    chest    shake   sym  in    medium
GLATT        flat    low      forward one  fwd   medium
REIF         four    low      out     sym  down  medium
LUFT         spread  cheek    shake   one  up    medium
TROCKEN      hook    chin     out     one  in    medium  | l chin out one in medium
NASS         beak    chin     open    one  up    medium
WARM         claw    mouth    up      one  in    medium
KALT         fist    chest    shake   sym  in    medium
KÜHL         flat    shoulder shake   sym  in    medium
FRISCH       flat    shoulder shake   sym  in    medium
MILD         flat    cheek    down    one  up    medium
HEISS        claw    mouth    out     one  in    medium  | claw forehead out one in medium
SCHWÜL       claw    neck     shake   one  up    medium
KLAR         o       center   out     sym  up    medium
FREUNDLICH   flat    mouth    out     one  in    medium
TRÜB         flat    forehead zigzag  one  in    medium
WECHSELHAFT  three   center   twist   one  up    long
RUHIG        flat    center   out     sym  fwd   medium
BLEIBEN      y       center   forward one  fwd   short   | y center down one fwd short
KOMMEN       index   center   path    sym  up    medium
ZIEHEN       claw    center   path    one  fwd   medium
WEG          beak    center   open    sym  down  medium
STEIGEN      flat    side     up      one  fwd   medium
SINKEN       flat    side     down    one  fwd   medium
HOCH         flat    side     up      one  fwd   medium
TIEF         flat    side     down    one  fwd   medium
BRINGEN      flat    center   path    sym  fwd   medium
WARNEN       index   forehead shake   one  up    medium
ÄNDERN       l       center   twist   sym  up    medium
ANFANGEN     flat    center   open    base in    medium
AUFHÖREN     flat    center   close   sym  up    medium
WETTER       l       center   shake   sym  fwd   medium
DIENST       l       chest    tap     base in    short
TEMPERATUR   index   contra   up      base up    medium
GRAD         o       side     circle  one  up    short   | o high circle one up short
ZUSCHAUER    two     temple   forward one  fwd   medium
GUT          f       mouth    hold    one  up    short   | thumb mouth hold one up short
NULL         o       side     hold    one  up    short
EINS         thumb   side     hold    one  up    short
ZWEI         l       side     hold    one  up    short
DREI         three   side     hold    one  up    short
VIER         four    side     hold    one  back  short
FÜNF         spread  side     hold    one  back  short
SECHS        thumb   chest    hold    alt  up    short
SIEBEN       l       chest    hold    alt  up    short
ACHT         three   chest    hold    alt  up    short
NEUN         four    chest    hold    alt  back  short
ZEHN         spread  chest    hold    alt  back  short
ELF          thumb   side     shake   one  up    medium
ZWÖLF        l       side     tap     one  up    medium
ZWANZIG      l       side     close   one  up    short
DREISSIG     three   side     close   one  up    short
MINUS        index   center   out     one  in    short
BIS          index   center   arc     one  in    short
OFT          thumb   low      rain    one  out   medium
VEREINZELT   index   low      tap     alt  down  medium
ÖRTLICH      claw    low      tap     one  down  medium
TEIL         flat    low      tap     base in    medium
MÖGLICH      y       low      circles sym  fwd   medium
WIEDER       two     side     twist   one  in    short
WEITER       two     side     forward one  fwd   medium
ZUERST       thumb   center   up      one  up    short
SPÄTER       l       side     forward one  fwd   medium
DANN         index   side     forward one  fwd   short
LANGSAM      flat    contra   up      base in    long
SCHNELL      o       chest    forward sym  in    short
ZU           fist    center   forward one  fwd   short
BESSER       thumb   chest    up      one  up    medium
SCHLECHT     pinky   chest    down    one  in    medium
IX           index   center   path    one  fwd   short
PALM         flat    low      out     sym  out   medium
"""

HOMONYMS: tuple[tuple[str, str, str], ...] = (
    ("RHEIN", "DONAU", "mouthing"),
    ("NEBEL", "DUNST", "mouthing"),
    ("KÜHL", "FRISCH", "mouthing"),
    ("HOCH", "STEIGEN", "context"),
    ("TIEF", "SINKEN", "context"),
)
"""Pairs with the same form on the hands, and what tells them apart."""


def _read_table() -> dict[str, Entry]:
    lexicon: dict[str, Entry] = {}
    for line in _TABLE.strip().splitlines():
        main, _, other = line.partition("|")
        gloss, *parameters = main.split()
        variant = Form(*other.split()) if other.strip() else None
        lexicon[gloss] = Entry(gloss, Form(*parameters), variant)
    return lexicon


LEXICON: dict[str, Entry] = _read_table()


def form_of(gloss: str, dialect: str) -> Form:
    """The form that a signer of dialect A or B uses."""
    entry = LEXICON[gloss]
    return entry.variant if dialect == "B" and entry.variant else entry.form


def minimal_pairs() -> list[tuple[str, str, str]]:
    """All pairs of signs whose forms differ in exactly one parameter, with its name."""
    found = []
    for a, b in combinations(LEXICON.values(), 2):
        differences = a.form.differences(b.form)
        if len(differences) == 1:
            found.append((a.gloss, b.gloss, differences[0]))
    return found


def as_json() -> dict[str, Any]:
    """The lexicon as plain data, for lexicon.json beside a made corpus."""
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
