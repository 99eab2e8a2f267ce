"""Languages: BCP 47 tags, mBART-50's codes, splitting into words or characters, and normalisation of texts.

langcodes (https://github.com/georgkrause/langcodes) knows the registered tags. It is imported only when a tag needs it:
training on plain tags such as de or zh-CN works without it.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened

MBART50_CODES: tuple[str, ...] = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT",
    "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK",
    "tr_TR", "vi_VN", "zh_CN", "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE",
    "km_KH", "mk_MK", "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN",
    "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
)  # fmt: skip
"""The 52 codes of mBART-50, in the order of their ids; the first 25 are those of mBART-cc25."""

_BY_SUBTAG = {code.split("_")[0]: code for code in MBART50_CODES}
# Deprecated or related subtags in use for a language of mBART-50.
_BY_SUBTAG |= {"iw": "he_IL", "in": "id_ID", "fil": "tl_XX", "cmn": "zh_CN", "arb": "ar_AR", "prs": "fa_IR"}

UNSPACED = frozenset({"zh", "ja", "th", "km", "my", "cmn", "lo", "yue"})
"""Languages written without spaces between words: scored per character."""
_CHINESE = frozenset({"zh", "cmn", "yue"})
_FULL_WIDTH = str.maketrans({"?": "？", "!": "！", ":": "：", ",": "，"})
# The rules of SentencePiece's `nmt_nfkc` (the normaliser of mBART and XGLM) besides NFKC: control characters are
# removed; zero-width characters and Unicode separators become spaces.
_REMOVED = (*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F)
_SPACES = (0x061C, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD)
_NMT = {**dict.fromkeys(_REMOVED), **dict.fromkeys(_SPACES, " ")}


@lru_cache(maxsize=1024)
def language_tag(written: str, registered: bool = False) -> str:
    """Returns the canonical BCP 47 form of a language tag, or "" for an invalid tag.

    With `registered`, a tag with an unregistered subtag is invalid, too.

    zh_CN gives zh-CN, PT-br pt-BR, por pt, cmn-Hans zh-Hans, iw he, en-Latn en.
    """
    import langcodes

    if len(written) > 64:  # RFC 5646 asks for room for 35 characters
        return ""
    try:
        # Three-letter members of a macrolanguage become it (cmn: zh, arb: ar); nb, of two letters, stays apart from no.
        language = langcodes.Language.get(written.strip())
        tag = langcodes.standardize_tag(language, macro=len(language.language or "") == 3)
        return tag if not registered or langcodes.tag_is_valid(tag) else ""
    except ValueError:
        return ""


def checked_tag(written: str, where: str) -> str:
    """Returns the BCP 47 form of a language tag. Raises UsageError for an invalid tag; `where` is its option or key."""
    tag = language_tag(written)
    if not tag:
        raise UsageError(
            f"{where}={shortened(written)} is not a language tag of BCP 47, such as de, pt-BR or zh-Hans"
        )
    return tag


def tag_distance(wanted: str, tag: str) -> int:
    """Returns the distance of a tag from the wanted one, 0 to 134 (Unicode CLDR): for zh-TW, zh-Hant is nearest."""
    import langcodes

    return langcodes.tag_distance(wanted, tag)


def matches(tag: str, wanted: str) -> bool:
    """Returns whether a BCP 47 tag is in a language range (RFC 4647): pt-BR is in pt and pt-BR; pt is not in pt-BR."""
    return f"{tag}-".lower().startswith(f"{wanted}-".lower())


def primary_subtag(language: str) -> str:
    """Returns the language subtag of a BCP 47 tag, in lower case: `zh-Hans-CN` gives `zh`, `por` gives `pt`."""
    subtag = language.strip().replace("_", "-").split("-")[0].lower()
    if len(subtag) != 3:
        return subtag
    try:
        return language_tag(subtag).split("-")[0] or subtag
    except ImportError:  # a machine that only trains
        return subtag


def has_mbart50_code(language: str) -> bool:
    """Returns whether mBART-50 has the language of a BCP 47 tag."""
    return primary_subtag(language) in _BY_SUBTAG


def mbart50_code(language: str) -> str:
    """Returns the mBART-50 code of a BCP 47 tag: `de` and `de-AT` give `de_DE`, `zh-Hans` gives `zh_CN`.

    Script and region are ignored, since mBART-50 has one form of each language. Its own codes are returned
    unchanged. Raises UsageError for a language without a code.
    """
    subtag = primary_subtag(language)
    if subtag in _BY_SUBTAG:
        return _BY_SUBTAG[subtag]
    raise UsageError(
        f"mBART-50 has no language '{shortened(language)}': give the BCP 47 tag of the sentences' spoken language, "
        f"one of {', '.join(sorted(code.split('_')[0] for code in MBART50_CODES))}"
    )


def unspaced(language: str) -> bool:
    """Returns whether a language (BCP 47) is written without spaces between words."""
    return primary_subtag(language) in UNSPACED


def split_words(sentence: str, language: str) -> list[str]:
    """Returns the words of a sentence, split at spaces, or its characters if the language has no spaces."""
    return list("".join(sentence.split())) if unspaced(language) else sentence.split()


def normal_form(text: str) -> str:
    """Returns the text normalised as by SentencePiece's `nmt_nfkc` (mBART, XGLM), with single spaces.

    NFKC: full-width letters, digits and punctuation become those of ASCII, "…" three full stops, presentation forms of
    Arabic and half-width kana their ordinary letters, decomposed letters composed ones. Quotation marks stay.
    """
    return " ".join(unicodedata.normalize("NFKC", text.translate(_NMT)).split())


def restore_punctuation(sentence: str, language: str) -> str:
    """Returns a generated sentence with full-width punctuation (？！：，) where its language is Chinese.

    `normal_form` replaces that punctuation by ASCII (Sign2GPT, appendix A.2).
    """
    return sentence.translate(_FULL_WIDTH) if primary_subtag(language) in _CHINESE else sentence
