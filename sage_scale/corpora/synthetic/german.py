"""German phrases of the weather grammar: times, regions, predicates, numbers.

Each slot filler is a `Phrase`: the signs it is signed with and the words it is spoken with. The two differ in
number on purpose: NORD OST is "im nordosten", DREI ZWANZIG is "dreiundzwanzig", TAG is "am tag", NACHT MONTAG is
"in der nacht zum montag". Lists are in order of frequency; a filler of rank r is drawn with weight
(r + 1)^-0.7, which gives the Zipfian tail.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrase:
    """A slot filler: glosses in signing order, words in German, and where in signing space it is placed."""

    glosses: tuple[str, ...]
    words: str
    place: str = ""


WEEKDAYS = ("MONTAG", "DIENSTAG", "MITTWOCH", "DONNERSTAG", "FREITAG", "SAMSTAG", "SONNTAG")
MONTHS = (
    "JANUAR", "FEBRUAR", "MÄRZ", "APRIL", "MAI", "JUNI", "JULI", "AUGUST", "SEPTEMBER", "OKTOBER", "NOVEMBER",
    "DEZEMBER",
)  # fmt: skip
COUNTRIES = {
    "ATLANTIK": Phrase(("ATLANTIK",), "dem atlantik", "west"),
    "SKANDINAVIEN": Phrase(("SKANDINAVIEN",), "skandinavien", "nord"),
    "FRANKREICH": Phrase(("FRANKREICH",), "frankreich", "west"),
    "POLEN": Phrase(("POLEN",), "polen", "ost"),
    "ENGLAND": Phrase(("ENGLAND",), "england", "west"),
    "ITALIEN": Phrase(("ITALIEN",), "italien", "süd"),
    "RUSSLAND": Phrase(("RUSSLAND",), "russland", "ost"),
    "SPANIEN": Phrase(("SPANIEN",), "spanien", "süd"),
}


def _phrases(table: str) -> dict[str, Phrase]:
    phrases = {}
    for line in table.strip().splitlines():
        glosses, words, *place = (part.strip() for part in line.split("|"))
        phrases[glosses] = Phrase(tuple(glosses.split()), words, place[0] if place else "")
    return phrases


TIMES = _phrases("""
MORGEN            | morgen
HEUTE NACHT       | heute nacht
HEUTE             | heute
SAMSTAG           | am samstag
SONNTAG           | am sonntag
MONTAG            | am montag
TAG               | am tag
ÜBERMORGEN        | übermorgen
MORGEN FRÜH       | morgen früh
FREITAG           | am freitag
DIENSTAG          | am dienstag
HEUTE ABEND       | heute abend
MITTWOCH          | am mittwoch
DONNERSTAG        | am donnerstag
WOCHENENDE        | am wochenende
VORMITTAG         | am vormittag
MORGEN NACHMITTAG | morgen nachmittag
NÄCHSTE WOCHE     | in der nächsten woche
MONTAG ABEND      | am montagabend
NACHT SONNTAG     | in der nacht zum sonntag
MITTAG            | am mittag
NACHT FREITAG     | in der nacht zum freitag
SAMSTAG ABEND     | am samstagabend
NACHT MITTWOCH    | in der nacht zum mittwoch
DIENSTAG NACHMITTAG | am dienstagnachmittag
NÄCHSTE TAG       | in den nächsten tagen
""")
LATER_TIMES = _phrases("""
DANN       | danach
ABEND      | am abend
SPÄTER     | später
NACHMITTAG | am nachmittag
NACHT      | in der nacht
MITTAG     | am mittag
""")
REGIONS = _phrases("""
NORD         | im norden            | nord
SÜD          | im süden             | süd
OST          | im osten             | ost
WEST         | im westen            | west
BERG         | in den bergen
KÜSTE        | an der küste         | nord
MITTE        | in der mitte
NORD OST     | im nordosten         | nord
ALPEN        | an den alpen         | süd
SÜD WEST     | im südwesten         | süd
NORD MEER    | an der nordsee       | nord
BAYERN       | in bayern            | süd
NORD WEST    | im nordwesten        | nord
SÜD OST      | im südosten          | süd
OST MEER     | an der ostsee        | nord
SÜD HÄLFTE   | in der südhälfte     | süd
ÜBERALL      | überall
RHEIN        | am rhein             | west
TAL          | in den tälern
DEUTSCHLAND  | in ganz deutschland
DONAU        | an der donau         | süd
SACHSEN      | in sachsen           | ost
SCHWARZ WALD | im schwarzwald       | süd
ELBE         | an der elbe          | ost
BERLIN       | in berlin            | ost
NORD HÄLFTE  | in der nordhälfte    | nord
HAMBURG      | in hamburg           | nord
MÜNCHEN      | in münchen           | süd
HESSEN       | in hessen
KÖLN         | in köln              | west
HARZ         | im harz
DRESDEN      | in dresden           | ost
EIFEL        | in der eifel         | west
FLUSS        | an den flüssen
BAYERN WALD  | im bayerischen wald  | süd
INSEL        | auf den inseln       | nord
""")
ADVERBS = {
    "WIEDER": "wieder", "ÖRTLICH": "örtlich", "TEIL": "teilweise", "WEITER": "weiterhin", "OFT": "häufig",
    "VEREINZELT": "vereinzelt", "ZUERST": "zunächst", "LANGSAM": "langsam", "SCHNELL": "rasch",
}  # fmt: skip
DIRECTIONS = {"west": "westen", "ost": "osten", "nord": "norden", "süd": "süden"}
ADJECTIVES = (
    "TROCKEN", "KALT", "FREUNDLICH", "WARM", "NASS", "MILD", "KLAR", "KÜHL", "HEISS", "TRÜB", "FRISCH", "SCHWÜL",
    "WECHSELHAFT", "RUHIG",
)  # fmt: skip
AIR = ("KALT", "WARM", "MILD", "FRISCH", "KÜHL", "TROCKEN", "SCHWÜL", "HEISS")

_ONES = (
    "null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf",
)  # fmt: skip
_ONES_SIGNS = (
    "NULL", "EINS", "ZWEI", "DREI", "VIER", "FÜNF", "SECHS", "SIEBEN", "ACHT", "NEUN", "ZEHN", "ELF", "ZWÖLF",
)  # fmt: skip
_TEENS = ["dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"]
_ORDINAL_STEMS = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}


def adjective(gloss: str) -> str:
    """The uninflected adjective of a gloss: HEISS is "heiß"."""
    return "heiß" if gloss == "HEISS" else gloss.lower()


def number_words(value: int) -> str:
    """A cardinal from -12 to 30 in words, one word but for "minus"."""
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
    """The day of a date in the accusative: 3 is "dritten", 21 "einundzwanzigsten"."""
    if value < 20:
        return _ORDINAL_STEMS.get(value, number_words(value) + "t") + "en"
    return number_words(value) + "sten"


def number_glosses(value: int) -> tuple[str, ...]:
    """The signs of a number: ones come first, as in German (23 is DREI ZWANZIG, 13 is DREI ZEHN)."""
    if value < 0:
        return ("MINUS", *number_glosses(-value))
    if value <= 12:
        return (_ONES_SIGNS[value],)
    if value < 20:
        return (_ONES_SIGNS[value - 10], "ZEHN")
    if value in (20, 30):
        return ("ZWANZIG" if value == 20 else "DREISSIG",)
    return (_ONES_SIGNS[value - 20], "ZWANZIG")


@dataclass(frozen=True)
class Predicate:
    """What is said of a region: its signs, and for each mark two German forms, the usual one first.

    A form is "finite verb and pronoun or subject | rest"; time, region and adverb stand at the bar or before the
    verb. Placeholders: {n} numbers, {a} adjective, {ae} the same inflected, {von} {nach} directions, {land}.
    In `signs`, @ is replaced by the numbers, # by the adjective, % by the country, and * marks a sign that is
    inflected in space: it moves from and to the places of the map.
    """

    signs: str
    plain: tuple[str, str]
    negation: tuple[str, str] | None = None
    intensity: tuple[str, str] | None = None
    adverbs: tuple[str, ...] = ()
    region: bool = True

    def forms(self, mark: str) -> tuple[str, str]:
        """The two forms under "", "negation" or "intensity"."""
        forms = {"": self.plain, "negation": self.negation, "intensity": self.intensity}[mark]
        assert forms is not None, f"{self.signs} has no {mark}"
        return forms


_FALL = ("ÖRTLICH", "WIEDER", "VEREINZELT", "WEITER", "OFT", "TEIL", "ZUERST")
_STATE = ("WIEDER", "TEIL", "ZUERST", "WEITER", "ÖRTLICH")
_CHANGE = ("LANGSAM", "SCHNELL", "WIEDER")


PREDICATES: dict[str, Predicate] = {
    "regen": Predicate("REGEN", ("regnet es|", "fällt|regen"), ("regnet es|nicht", "fällt|kein regen"),
                       ("fällt|kräftiger regen", "regnet es|kräftig"), _FALL),
    "sonne": Predicate("SONNE", ("scheint|die sonne", "ist es|sonnig"),
                       ("scheint|die sonne nicht", "ist es|nicht sonnig"),
                       ("ist es|sehr sonnig", "scheint|kräftig die sonne"), _STATE),
    "adjektiv": Predicate("#", ("ist es|{a}", "wird es|{a}"), ("ist es|nicht {a}", "wird es|nicht {a}"),
                          ("wird es|sehr {a}", "ist es|sehr {a}"), _STATE),
    "temperatur": Predicate("TEMPERATUR @ GRAD", ("liegen die temperaturen|bei {n} grad", "werden|{n} grad erreicht")),
    "luft": Predicate("& % BRINGEN* # LUFT", ("bringt {druck} über {land}|{ae} luft zu uns",
                                              "bringt uns {druck} über {land}|{ae} luft"), None,
                      ("bringt {druck} über {land}|sehr {ae} luft zu uns",
                       "bringt uns {druck} über {land}|sehr {ae} luft"), region=False),
    "schnee": Predicate("SCHNEE", ("schneit es|", "fällt|schnee"), ("schneit es|nicht", "fällt|kein schnee"),
                        ("fällt|viel schnee", "schneit es|kräftig"), _FALL),
    "wolken": Predicate("WOLKE", ("ist es|bewölkt", "gibt es|wolken"), ("ist es|nicht bewölkt", "gibt es|keine wolken"),
                        ("ist es|stark bewölkt", "gibt es|viele wolken"), _STATE),
    "gewitter": Predicate("GEWITTER", ("gibt es|gewitter", "ziehen|gewitter auf"),
                          ("gibt es|keine gewitter", "ziehen|keine gewitter auf"),
                          ("gibt es|heftige gewitter", "ziehen|heftige gewitter auf"), _FALL),
    "spanne": Predicate("TEMPERATUR @ GRAD",
                        ("liegen die temperaturen|zwischen {n1} und {n2} grad",
                         "werden|{n1} bis {n2} grad erreicht")),
    "nebel": Predicate("NEBEL", ("bildet sich|nebel", "gibt es|nebel"),
                       ("bildet sich|kein nebel", "gibt es|keinen nebel"),
                       ("bildet sich|dichter nebel", "gibt es|dichten nebel"), _FALL),
    "ziehen": Predicate("% ZIEHEN*", ("{zieht}|von {von} nach {nach}", "{zieht}|aus {von} nach {nach}"),
                        adverbs=_CHANGE[:2], region=False),
    "bleiben": Predicate("BLEIBEN #", ("bleibt es|{a}", "bleibt das wetter|{a}"),
                         ("bleibt es|nicht {a}", "bleibt das wetter|nicht {a}"),
                         ("bleibt es|sehr {a}", "bleibt das wetter|sehr {a}")),
    "wind": Predicate("WIND", ("ist es|windig", "weht|ein wind"), ("ist es|nicht windig", "weht|kein wind"),
                      ("weht|starker wind", "ist es|sehr windig"), _STATE),
    "schauer": Predicate("SCHAUER", ("gibt es|schauer", "fallen|schauer"),
                       ("gibt es|keine schauer", "fallen|keine schauer"),
                         ("gibt es|kräftige schauer", "fallen|kräftige schauer"), _FALL),
    "frost": Predicate("FROST", ("gibt es|frost", "friert es|"), ("gibt es|keinen frost", "friert es|nicht"),
                       ("gibt es|strengen frost", "friert es|stark"), _FALL),
    "wehen": Predicate("WIND WEHEN*", ("weht der wind|aus {von}", "kommt der wind|aus {von}"), None,
                       ("weht der wind|kräftig aus {von}", "kommt der wind|kräftig aus {von}")),
    "warnung": Predicate("WETTER DIENST WARNEN #", ("warnt der wetterdienst|vor {vor}", "gilt|eine warnung vor {vor}"),
                         None, ("warnt der wetterdienst|vor {sehr}", "gilt|eine warnung vor {sehr}")),
    "zu": Predicate("ZU #", ("ist es|zu {a}", "wird es|zu {a}"), None, ("ist es|viel zu {a}", "wird es|viel zu {a}")),
    "steigen": Predicate("TEMPERATUR STEIGEN @ GRAD", ("steigen die temperaturen|auf {n} grad",
                                                       "klettern die temperaturen|auf {n} grad"), adverbs=_CHANGE[:2]),
    "sinken": Predicate("TEMPERATUR SINKEN @ GRAD", ("sinken die temperaturen|auf {n} grad",
                                                     "fallen die temperaturen|auf {n} grad"), adverbs=_CHANGE[:2]),
    "wolken kommen": Predicate("WOLKE KOMMEN*", ("ziehen|wolken aus {von} auf", "kommen|wolken aus {von}"),
                               adverbs=_CHANGE),
    "regenschauer": Predicate("REGEN SCHAUER", ("gibt es|regenschauer", "fallen|regenschauer"),
                              ("gibt es|keine regenschauer", "fallen|keine regenschauer"),
                              ("gibt es|kräftige regenschauer", "fallen|kräftige regenschauer"), _FALL),
    "sturm": Predicate("STURM", ("gibt es|sturm", "stürmt es|"), ("gibt es|keinen sturm", "stürmt es|nicht"),
                       ("gibt es|schweren sturm", "stürmt es|heftig"), _STATE),
    "glatt": Predicate("GLATT", ("wird es|glatt", "ist es|glatt"), ("wird es|nicht glatt", "ist es|nicht glatt"),
                       ("wird es|sehr glatt", "ist es|sehr glatt"), _FALL),
    "besser": Predicate("WETTER BESSER", ("wird das wetter|besser", "bessert sich das wetter|"), adverbs=_CHANGE),
    "wolken weg": Predicate("WOLKE WEG", ("lösen sich die wolken|auf", "verschwinden die wolken|"),
                            ("lösen sich die wolken|nicht auf", "verschwinden die wolken|nicht"), None, _CHANGE),
    "nebel weg": Predicate("NEBEL WEG", ("löst sich der nebel|auf", "verschwindet der nebel|"),
                           ("löst sich der nebel|nicht auf", "verschwindet der nebel|nicht"), None, _CHANGE),
    "regen hört auf": Predicate("REGEN AUFHÖREN", ("hört der regen|auf", "lässt der regen|nach"),
                                ("hört der regen|nicht auf", "lässt der regen|nicht nach"), None, _CHANGE),
    "gewitter möglich": Predicate("GEWITTER MÖGLICH", ("sind|gewitter möglich", "kann es|gewitter geben"),
                                  adverbs=("WIEDER", "VEREINZELT")),
    "wetter ändern": Predicate("WETTER ÄNDERN", ("ändert sich das wetter|", "stellt sich das wetter|um"),
                               ("ändert sich das wetter|nicht", "stellt sich das wetter|nicht um"), None, _CHANGE),
    "hagel": Predicate("HAGEL", ("gibt es|hagel", "hagelt es|"), ("gibt es|keinen hagel", "hagelt es|nicht"),
                       ("gibt es|starken hagel", "hagelt es|stark"), _FALL),
    "regen fängt an": Predicate("REGEN ANFANGEN", ("beginnt der regen|", "setzt der regen|ein"),
                                ("beginnt der regen|nicht", "setzt der regen|nicht ein"), None, _CHANGE),
    "dunst": Predicate("DUNST", ("bildet sich|dunst", "gibt es|dunst"),
                       ("bildet sich|kein dunst", "gibt es|keinen dunst"),
                       None, _FALL),
    "nieselregen": Predicate("NIESEL REGEN", ("fällt|nieselregen", "nieselt es|"),
                             ("fällt|kein nieselregen", "nieselt es|nicht"), None, _FALL),
    "schneeschauer": Predicate("SCHNEE SCHAUER", ("gibt es|schneeschauer", "fallen|schneeschauer"),
                               ("gibt es|keine schneeschauer", "fallen|keine schneeschauer"),
                               ("gibt es|kräftige schneeschauer", "fallen|kräftige schneeschauer"), _FALL),
    "reif": Predicate("REIF", ("bildet sich|reif", "gibt es|reif"), ("bildet sich|kein reif", "gibt es|keinen reif"),
                      None, _FALL),
    "schlecht": Predicate("WETTER SCHLECHT", ("wird das wetter|schlechter", "verschlechtert sich das wetter|"),
                          adverbs=_CHANGE),
    "schauer möglich": Predicate("SCHAUER MÖGLICH", ("sind|schauer möglich", "kann es|schauer geben"),
                                 adverbs=("WIEDER", "VEREINZELT")),
    "schnee hört auf": Predicate("SCHNEE AUFHÖREN", ("hört der schneefall|auf", "lässt der schneefall|nach"),
                                 ("hört der schneefall|nicht auf", "lässt der schneefall|nicht nach"), None, _CHANGE),
    "schnee fängt an": Predicate("SCHNEE ANFANGEN", ("beginnt der schneefall|", "setzt der schneefall|ein"),
                                 ("beginnt der schneefall|nicht", "setzt der schneefall|nicht ein"), None, _CHANGE),
}  # fmt: skip
"""In order of frequency."""

MOVING = {
    "REGEN": "zieht der regen", "TIEF": "zieht das tief", "WOLKE": "ziehen die wolken",
    "GEWITTER": "ziehen die gewitter",
    "HOCH": "zieht das hoch", "STURM": "zieht der sturm",
}  # fmt: skip
"""What may move across the map, with its verb."""

DANGERS = {
    "STURM": ("sturm", "schwerem sturm"), "GEWITTER": ("gewittern", "heftigen gewittern"),
    "GLATT": ("glätte", "gefährlicher glätte"), "REGEN": ("regen", "starkem regen"),
    "FROST": ("frost", "strengem frost"), "SCHNEE": ("schnee", "viel schnee"), "NEBEL": ("nebel", "dichtem nebel"),
    "HAGEL": ("hagel", "starkem hagel"),
}  # fmt: skip
"""What is warned of, in the dative, plain and intensified."""

PRESSURE = {"HOCH": "ein hoch", "TIEF": "ein tief"}
