"""The spoken languages in which captions of a sign language's videos are written.

YouTube-SL-25 names the sign language of each video by its ISO 639-3 code (two by a country). A video may have captions
in many languages, most of them translations: those in a language written where the sign language is used are taken.
"""

from __future__ import annotations

UNKNOWN = "???"
"""Code in the list of YouTube-SL-25 of an unknown sign language."""

_SIGNED = {
    "ar": "jos",  # Jordan
    "ca es": "csc",  # Catalonia
    "cs": "cse",
    "da": "dsl",
    "de": "asq gsg sgg",  # Austria, Germany, Switzerland
    "el": "gss",
    "en": "ase asf bfi ils nzs sls",  # America, Australia, Britain, International Sign, New Zealand, Singapore
    "en ga": "isg",  # Ireland
    "en hi": "ins",  # India
    "es": "aed csg csn mfs prl ssp",  # Argentina, Chile, Colombia, Mexico, Peru, Spain
    "et": "eso",
    "fi": "fse",
    "fil tl en": "psp",  # Philippines
    "fr": "fcs fsl sfb ssr",  # Quebec, France, Belgium, Switzerland
    "he": "isr",
    "hr": "csq",
    "hu": "hsh",
    "id": "inl",
    "is": "icl",
    "it": "ise slf",  # Italy, Switzerland
    "ja": "jsl",
    "ko": "kvk",
    "lt": "lls",
    "lv": "lsl",
    "nl": "dse vgt",  # Netherlands, Flanders
    "no nb nn": "nsl",
    "pl": "pso",
    "pt": "bzs psr",  # Brazil, Portugal
    "ro": "rms",
    "ru": "rsl",
    "sk": "svk",
    "sl": "slovenia",
    "sv": "swl",
    "sv fi": "fss",  # Swedish speakers of Finland
    "th": "tsq",
    "tr": "tsm",
    "uk": "ukl",
    "ur en": "pks",  # Pakistan
    "vi": "vietnam",
    "zh": "csl tss",  # China, Taiwan
    "zh yue en": "hks",  # Hong Kong
}
WRITTEN = {code: tuple(written.split()) for written, codes in _SIGNED.items() for code in codes.split()}
"""Code of a sign language -> primary subtags of the languages written there, in order of preference."""
