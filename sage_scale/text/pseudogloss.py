"""Pseudo-glosses: content lemmas of a sentence, in sentence order (Sign2GPT, section 3.2; SAGE, 3.1.2)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sage_scale.errors import RecipeError
from sage_scale.text.languages import primary_subtag, unspaced


class TextSettings(Protocol):
    """The keys of the recipe's section `text` (config.Text) that are read here."""

    @property
    def target(self) -> str: ...
    @property
    def tagger(self) -> str: ...
    @property
    def keep_pos(self) -> tuple[str, ...]: ...
    @property
    def drop_lemmas(self) -> tuple[str, ...]: ...
    @property
    def lowercase(self) -> bool: ...
    def __hash__(self) -> int: ...


Tagger = Callable[[str], Iterable[Any]]
"""Sentence -> tokens with `text`, `lemma_`, `pos_` (universal) and `is_space`, as those of spaCy."""
TAGGERS: dict[str, Callable[[str], tuple[Tagger, str] | None]] = {}
"""Registered taggers (`registry.register_tagger`): language subtag -> the tagger and its name with version, or None."""


class PseudoGlosser:
    """Returns, when called, the pseudo-glosses of a sentence: lemmas of the kept parts of speech, with repeats.

    A sentence without content lemmas returns all its words, so every non-empty sentence has a pseudo-gloss. A language
    without tagger returns every word, and requires `text.target=sentence` (RecipeError otherwise).
    """

    def __init__(self, language: str, settings: TextSettings) -> None:
        self.language = primary_subtag(language)
        self.settings = settings
        self.name: str
        """Tagger and version, recorded in dataset.json."""
        self.reason = ""
        """Reason for the missing tagger; empty if there is a tagger."""
        self._nlp: Tagger | None = None
        if settings.tagger == "none":
            self.reason = "text.tagger=none"
        else:
            found = _load_tagger(self.language, settings.tagger)
            if found is None:
                self.reason = f"no tagger for '{language}'"
            else:
                self._nlp, self.name = found
        if self._nlp is None:
            _check_target(self.reason, language, settings)
            self.name = f"none ({self.reason}): every word of the sentence"
        self._drop = {lemma.lower() for lemma in settings.drop_lemmas}

    def __call__(self, sentence: str) -> list[str]:
        """Returns the pseudo-glosses of a sentence; none only for an empty sentence."""
        sentence = sentence.strip()
        if self._nlp is None:
            return self._cased(words(sentence, self.language))
        doc = list(self._nlp(sentence))
        lemmas = [
            token.lemma_.strip() or token.text
            for token in doc
            if token.pos_ in self.settings.keep_pos and not token.is_space
        ]
        lemmas = [lemma for lemma in lemmas if lemma.lower() not in self._drop]
        if not lemmas:
            lemmas = [token.text for token in doc if any(c.isalnum() for c in token.text)] or sentence.split()
        return self._cased(lemmas)

    def _cased(self, lemmas: list[str]) -> list[str]:
        # str.lower, not casefold: casefold turns ß into ss, which does not occur in the sentence's subwords.
        return [lemma.lower() for lemma in lemmas] if self.settings.lowercase else lemmas


def words(sentence: str, language: str) -> list[str]:
    """Returns the words of a sentence without punctuation, or its characters if the language has no spaces."""
    pattern = r"[^\W_]" if unspaced(language) else r"[^\W_]+(?:[-'’.,][^\W_]+)*"
    return re.findall(pattern, sentence) or sentence.split()


def check_tagger(language: str, settings: TextSettings) -> None:
    """Raise the RecipeError that `PseudoGlosser` would raise, without loading a model."""
    if settings.tagger == "none":
        _check_target("text.tagger=none", language, settings)
        return
    if settings.tagger in TAGGERS:
        return
    from sage_scale.text.taggers import choose_tagger

    if not choose_tagger(primary_subtag(language), settings.tagger):
        _check_target(f"no tagger for '{language}'", language, settings)


def _load_tagger(language: str, name: str) -> tuple[Tagger, str] | None:
    if name in TAGGERS:
        return TAGGERS[name](language)
    from sage_scale.text.taggers import load_pipeline  # spaCy takes seconds to import

    return load_pipeline(language, name)


def _check_target(reason: str, language: str, settings: TextSettings) -> None:
    if settings.target != "sentence":
        raise RecipeError(
            f"{reason}, so there are no pseudo-glosses: set text.target=sentence, or install a spaCy pipeline for "
            f"'{language}'"
        )


@functools.lru_cache(maxsize=16)
def cached_glosser(language: str, settings: TextSettings) -> PseudoGlosser:
    """Returns the PseudoGlosser of a language and settings, cached per process."""
    return PseudoGlosser(language, settings)


def pseudo_glosses(sentence: str, language: str, settings: TextSettings) -> list[str]:
    """Returns the pseudo-glosses of a sentence, by the cached PseudoGlosser of its language."""
    return cached_glosser(language, settings)(sentence)
