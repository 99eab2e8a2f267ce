"""Which spoken language the captions of a sign language's videos are written in.

YouTube-SL-25 names the sign language of each video by its ISO 639-3 code (two by a country). A video may carry
captions in many languages, most of them translations of the captions: the one written where the sign language is
used is taken. Where several are, they stand in order of preference; regions and scripts do not matter.
"""

from __future__ import annotations

UNKNOWN = "???"
"""What the list of YouTube-SL-25 writes where the sign language was not told."""

WRITTEN: dict[str, tuple[str, ...]] = {
    "aed": ("es",),  # Argentina
    "ase": ("en",),  # American
    "asf": ("en",),  # Auslan
    "asq": ("de",),  # Austria
    "bfi": ("en",),  # British
    "bzs": ("pt",),  # Brazil, Libras
    "csc": ("ca", "es"),  # Catalonia
    "cse": ("cs",),  # Czech Republic
    "csg": ("es",),  # Chile
    "csl": ("zh",),  # China
    "csn": ("es",),  # Colombia
    "csq": ("hr",),  # Croatia
    "dse": ("nl",),  # Netherlands
    "dsl": ("da",),  # Denmark
    "eso": ("et",),  # Estonia
    "fcs": ("fr",),  # Quebec
    "fse": ("fi",),  # Finland
    "fsl": ("fr",),  # France
    "fss": ("sv", "fi"),  # Finland, Swedish
    "gsg": ("de",),  # Germany
    "gss": ("el",),  # Greece
    "hks": ("zh", "yue", "en"),  # Hong Kong
    "hsh": ("hu",),  # Hungary
    "icl": ("is",),  # Iceland
    "ils": ("en",),  # International Sign: captions are mostly English
    "inl": ("id",),  # Indonesia
    "ins": ("en", "hi"),  # India
    "ise": ("it",),  # Italy
    "isg": ("en", "ga"),  # Ireland
    "isr": ("he",),  # Israel
    "jos": ("ar",),  # Jordan
    "jsl": ("ja",),  # Japan
    "kvk": ("ko",),  # Korea
    "lls": ("lt",),  # Lithuania
    "lsl": ("lv",),  # Latvia
    "mfs": ("es",),  # Mexico
    "nsl": ("no", "nb", "nn"),  # Norway
    "nzs": ("en",),  # New Zealand
    "pks": ("ur", "en"),  # Pakistan
    "prl": ("es",),  # Peru
    "pso": ("pl",),  # Poland
    "psp": ("fil", "tl", "en"),  # Philippines
    "psr": ("pt",),  # Portugal
    "rms": ("ro",),  # Romania
    "rsl": ("ru",),  # Russia
    "sfb": ("fr",),  # Belgium, French
    "sgg": ("de",),  # Switzerland, German
    "slf": ("it",),  # Switzerland, Italian
    "slovenia": ("sl",),
    "sls": ("en",),  # Singapore
    "ssp": ("es",),  # Spain
    "ssr": ("fr",),  # Switzerland, French
    "svk": ("sk",),  # Slovakia
    "swl": ("sv",),  # Sweden
    "tsm": ("tr",),  # Turkey
    "tsq": ("th",),  # Thailand
    "tss": ("zh",),  # Taiwan
    "ukl": ("uk",),  # Ukraine
    "vgt": ("nl",),  # Flanders
    "vietnam": ("vi",),
}
"""Code of a sign language -> primary subtags of the languages written around it, in order of preference."""
