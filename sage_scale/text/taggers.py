"""Part-of-speech taggers as spaCy pipelines.

An installed spaCy model (`de_core_news_lg`, ...) is taken as it is. Where there is none, a blank spaCy
pipeline gets a component: HanTa for German, English and Dutch (models inside its package, right on
the lower-case German of PHOENIX14T) or jieba for Chinese. Both set `token.lemma_`, `token.tag_` (their own)
and `token.pos_` (universal), so that no caller depends on the tagger.
"""

from __future__ import annotations

import functools
import logging
from importlib.metadata import version
from typing import Any

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.vocab import Vocab

from sage_scale.errors import RecipeError

HANTA_MODELS = {"de": "morphmodel_ger.pgz", "en": "morphmodel_en.pgz", "nl": "morphmodel_dutch.pgz"}
_SIZES = ("lg", "md", "sm", "trf")  # Sign2GPT's code uses the large German pipeline

_STTS = {
    "ADJ": "ADJ", "ADV": "ADV", "PROAV": "ADV", "PWAV": "ADV", "NN": "NOUN", "NNA": "NOUN", "NNI": "NOUN",
    "NE": "PROPN", "CARD": "NUM", "VV": "VERB", "VA": "AUX", "VM": "AUX", "PPER": "PRON", "PRF": "PRON",
    "PDS": "PRON", "PIS": "PRON", "PRELS": "PRON", "PWS": "PRON", "PPOSS": "PRON", "PDAT": "DET",
    "PIAT": "DET", "PPOSAT": "DET", "PRELAT": "DET", "PWAT": "DET", "ART": "DET", "APPR": "ADP",
    "APPRART": "ADP", "APPO": "ADP", "APZR": "ADP", "PTKVZ": "ADP", "PTKA": "PART", "PTKNEG": "PART",
    "PTKZU": "PART", "PTKANT": "PART", "KON": "CCONJ", "KOKOM": "CCONJ", "KOUI": "SCONJ", "KOUS": "SCONJ",
    "ITJ": "INTJ",
}  # fmt: skip
_C5 = {
    "AJ": "ADJ", "ORD": "ADJ", "AV": "ADV", "AVP": "ADP", "NN": "NOUN", "NP": "PROPN", "CRD": "NUM",
    "PN": "PRON", "DPS": "PRON", "EX": "PRON", "VV": "VERB", "VB": "AUX", "VD": "AUX", "VH": "AUX",
    "VM": "AUX", "AT": "DET", "DT": "DET", "PRP": "ADP", "PRF": "ADP", "IN": "ADP", "CJC": "CCONJ",
    "CJ": "SCONJ", "XX": "PART", "TO": "PART", "POS": "PART", "ITJ": "INTJ", "PU": "PUNCT",
}  # fmt: skip
_CGN = {
    "ADJ": "ADJ", "BW": "ADV", "LID": "DET", "N(eigen": "PROPN", "N": "NOUN", "SPEC(deeleigen": "PROPN",
    "TW(rang": "ADJ", "TW": "NUM", "TSW": "INTJ", "VG(neven": "CCONJ", "VG": "SCONJ", "VZ": "ADP",
    "WW": "VERB", "VNW": "PRON", "LET": "PUNCT",
}  # fmt: skip
_DUTCH_AUXILIARIES = frozenset({"zijn", "worden", "hebben", "zullen", "kunnen", "mogen", "moeten", "willen"})
_JIEBA = {
    "n": "NOUN", "nr": "PROPN", "ns": "PROPN", "nt": "PROPN", "nz": "PROPN", "t": "NOUN", "s": "NOUN",
    "f": "PART", "m": "NUM", "q": "NUM", "r": "PRON", "v": "VERB", "vn": "NOUN", "a": "ADJ", "ad": "ADV",
    "an": "NOUN", "b": "ADJ", "z": "ADJ", "d": "ADV", "p": "ADP", "c": "CCONJ", "u": "PART", "y": "PART",
    "e": "INTJ", "h": "PART", "k": "PART", "i": "VERB", "l": "NOUN", "j": "PROPN",
}  # fmt: skip


def universal_pos(tag: str, scheme: str, word: str, lemma: str = "") -> str:
    """Returns the universal part of speech of a tag of HanTa (`de`: STTS, `en`: BNC C5, `nl`: CGN) or jieba (`zh`)."""
    if not any(character.isalnum() for character in word):
        return "PUNCT"
    if scheme == "de":
        return _STTS.get(tag.split("(")[0], "X")
    if scheme == "nl":
        if tag.startswith("VNW") and ",det," in tag:
            return "DET"
        if tag.startswith("WW") and lemma.lower() in _DUTCH_AUXILIARIES:
            return "AUX"
    table = {"en": _C5, "nl": _CGN, "zh": _JIEBA}[scheme]
    prefixes = [key for key in table if tag.startswith(key)]
    return table[max(prefixes, key=len)] if prefixes else "X"


LONGEST_WORD = 100
"""First letters of a word that HanTa analyses: its time grows with their cube (400 letters take 5 s)."""


@functools.cache
def _hanta(model: str) -> Any:
    from HanTa import HanoverTagger

    class Tagger(HanoverTagger.HanoverTagger):
        """HanTa with a memory: it analyses each word anew, but a corpus repeats its words (4x faster)."""

        @functools.lru_cache(maxsize=100_000)  # noqa: B019  (one tagger a process, kept for its lifetime)
        def analyze_forward(self, word: str) -> Any:
            return super().analyze_forward(word)

        @functools.lru_cache(maxsize=100_000)  # noqa: B019
        def _analyze(self, word: str, pos: int, taglevel: int = 1) -> Any:
            return super()._analyze(word, pos, taglevel)

    return Tagger(model)


@Language.factory(
    "hanta_tagger", default_config={"scheme": "de"}, assigns=["token.tag", "token.pos", "token.lemma"]
)
class HantaTagger:
    """spaCy component: lemma, tag and part of speech by HanTa."""

    def __init__(self, nlp: Language, name: str, scheme: str) -> None:
        self.scheme = scheme
        self.tagger = _hanta(HANTA_MODELS[scheme])

    def __call__(self, doc: Doc) -> Doc:
        tokens = [token for token in doc if not token.is_space]
        words = [token.text for token in tokens]
        # Case says something only where both cases occur: HanTa would take the lower-case nouns of PHOENIX14T
        # for foreign words and adverbs (213 words tagged FM instead of 2, 3,400 nouns fewer).
        mixed = any(word[0].isupper() for word in words) and any(word[0].islower() for word in words)
        for token, (lemma, tag) in zip(tokens, self._tag(words, mixed), strict=True):
            token.tag_ = tag
            token.lemma_ = lemma
            token.pos_ = universal_pos(tag, self.scheme, token.text, lemma)
        return doc

    def _tag(self, words: list[str], case_sensitive: bool) -> list[tuple[str, str]]:
        if not words:
            return []
        if any(len(word) > LONGEST_WORD for word in words):
            tagged = zip(
                words, self._tag([word[:LONGEST_WORD] for word in words], case_sensitive), strict=True
            )
            return [(word if len(word) > LONGEST_WORD else lemma, tag) for word, (lemma, tag) in tagged]
        try:
            tagged = self.tagger.tag_sent(words, taglevel=1, casesensitive=case_sensitive)
            return [(lemma, tag) for _, lemma, tag in tagged]
        except (KeyError, IndexError):  # HanTa finds no path through some odd sentences: tag word by word
            return [self._tag_alone(word, case_sensitive) for word in words]

    def _tag_alone(self, word: str, case_sensitive: bool) -> tuple[str, str]:
        try:
            return self.tagger.analyze(word, casesensitive=case_sensitive)
        except (KeyError, IndexError):
            return word, "XY"


class JiebaTokenizer:
    """spaCy tokenizer: jieba segments and tags in one pass, so the tags come with the words."""

    def __init__(self, vocab: Vocab) -> None:
        import jieba

        jieba.setLogLevel(logging.WARNING)  # it announces its dictionary on stderr
        import jieba.posseg

        self.vocab = vocab
        self.cut = jieba.posseg.lcut

    def __call__(self, text: str) -> Doc:
        pairs = [(pair.word, pair.flag) for pair in self.cut(text)]
        words = [word for word, _ in pairs]
        return Doc(self.vocab, words=words, spaces=[False] * len(words), tags=[flag for _, flag in pairs])


@Language.component("jieba_pos", assigns=["token.pos", "token.lemma"])
def jieba_pos(doc: Doc) -> Doc:
    """spaCy component: universal part of speech from jieba's tags; a Chinese word is its own lemma."""
    for token in doc:
        token.lemma_ = token.text
        token.pos_ = "SPACE" if token.is_space else universal_pos(token.tag_, "zh", token.text)
    return doc


def installed_spacy_model(language: str) -> str:
    """Returns the name of the largest installed spaCy pipeline of a language; empty where there is none."""
    names = [name for name in spacy.util.get_installed_models() if name.startswith(f"{language}_")]
    ranked = sorted(names, key=lambda n: (_SIZES.index(s) if (s := n.rsplit("_", 1)[-1]) in _SIZES else 9, n))
    return ranked[0] if ranked else ""


def choose_tagger(language: str, tagger: str = "auto") -> str:
    """Returns "hanta", "jieba", the name of an installed spaCy pipeline, or "" where nothing fits; loads nothing.

    `tagger` is auto, spacy, hanta or jieba. Raises RecipeError where a tagger asked for by name is not available.
    """
    model = installed_spacy_model(language) if tagger in ("auto", "spacy") else ""
    if model:
        return model
    if tagger == "spacy":
        raise RecipeError(
            f"text.tagger=spacy: no spaCy pipeline for '{language}' is installed; get one with `python "
            f"-m spacy download` (de_core_news_lg, zh_core_web_sm, en_core_web_sm) or set text.tagger=auto"
        )
    if language in HANTA_MODELS and tagger in ("auto", "hanta"):
        return "hanta"
    if language == "zh" and tagger in ("auto", "jieba"):
        return "jieba"
    if tagger in ("hanta", "jieba"):
        known = "de, en and nl" if tagger == "hanta" else "zh"
        raise RecipeError(f"text.tagger={tagger} knows {known}, not '{language}': set text.tagger=auto")
    return ""


def load_pipeline(language: str, tagger: str = "auto") -> tuple[Language, str] | None:
    """Returns the spaCy pipeline of a language (`de`, `zh`, ...) and its name with version; None where nothing fits.

    Raises RecipeError as `choose_tagger`.
    """
    chosen = choose_tagger(language, tagger)
    if not chosen:
        return None
    if chosen == "hanta":
        nlp = spacy.blank(language)
        nlp.add_pipe("hanta_tagger", config={"scheme": language})
        return nlp, f"HanTa {version('HanTa')} ({HANTA_MODELS[language].removesuffix('.pgz')})"
    if chosen == "jieba":
        nlp = spacy.blank("zh")
        nlp.tokenizer = JiebaTokenizer(nlp.vocab)
        nlp.add_pipe("jieba_pos")
        return nlp, f"jieba {version('jieba')} (posseg)"
    nlp = spacy.load(chosen, exclude=["ner"])
    return nlp, f"spaCy {chosen} {nlp.meta['version']}"
