"""From BCP 47 tags, which manifests carry, to the language codes of mBART-50, which its tokenizer wants."""

from __future__ import annotations

from sage_scale.errors import UsageError

MBART50_CODES: tuple[str, ...] = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT",
    "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK",
    "tr_TR", "vi_VN", "zh_CN", "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE",
    "km_KH", "mk_MK", "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN",
    "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
)  # fmt: skip
"""The 52 codes of mBART-50, in the order of their ids; the first 25 are those of mBART-cc25."""

_BY_SUBTAG = {code.split("_")[0]: code for code in MBART50_CODES}
# Deprecated or sister subtags that BCP 47 users still write for a language that mBART-50 has.
_BY_SUBTAG |= {"iw": "he_IL", "in": "id_ID", "fil": "tl_XX", "cmn": "zh_CN", "arb": "ar_AR", "prs": "fa_IR"}

UNSPACED = frozenset({"zh", "ja", "th", "km", "my", "cmn", "lo", "yue"})
"""Languages written without spaces between words: scored per character."""


def primary_subtag(language: str) -> str:
    """The language subtag of a BCP 47 tag, in lower case: `zh-Hans-CN` gives `zh`."""
    return language.strip().replace("_", "-").split("-")[0].lower()


def has_code(language: str) -> bool:
    """Whether mBART-50 has the language of a BCP 47 tag."""
    return primary_subtag(language) in _BY_SUBTAG


def language_code(language: str) -> str:
    """The mBART-50 code of a BCP 47 tag: `de` and `de-AT` give `de_DE`, `zh-Hans` gives `zh_CN`.

    Script and region do not matter, since mBART-50 knows one form of each language. Its own codes pass
    unchanged. Raises UsageError for a language that mBART-50 does not have.
    """
    subtag = primary_subtag(language)
    if subtag in _BY_SUBTAG:
        return _BY_SUBTAG[subtag]
    raise UsageError(
        f"mBART-50 has no language '{language}': give the BCP 47 tag of the sentences' spoken language, "
        f"one of {', '.join(sorted(code.split('_')[0] for code in MBART50_CODES))}"
    )
