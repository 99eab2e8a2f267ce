"""Named filters for the captions of crawled videos, in the order in which they are applied.

| name | recipe key | rejects |
|---|---|---|
| `filter-not-speech` | `captions.not_speech` | sounds and notes alone: `[Music]`, `(applause)`, a line of notes |
| `filter-credits` | `captions.credits` | addresses, handles, and who made the subtitles |
| `filter-script` | `captions.script` | text whose letters are of another script than the language's |
| `filter-text-short`, `filter-text-long` | `captions.min_characters`, `max_characters` | few letters; long texts |
| `filter-short`, `filter-long` | `captions.min_seconds`, `max_seconds` | captions of too short or long duration |
| `filter-beyond-end` | `captions.beyond_end` | captions that end after the video does, where its length is known |
| `filter-overlap` | `captions.overlap_s` | captions that begin so long before the one before them ends |
| `filter-repeated` | `captions.repeat_s` | the same text again within so many seconds of its end |

A caption is rejected under the first name that fits. Every report counts these rows; `shards.max_reject_rate` does
not, since the recipe asked for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sage_scale.config import Captions
from sage_scale.corpora.captions import Cue, has_words
from sage_scale.untrusted.display import shortened

_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S+|(?<![\w-])[\w-]+\.(?:com|org|net|de|tv|fr|co\.uk)\b(?:/\S*)?|@\w{2,}|#[^\W\d]\w+",
    re.I,
)
_MADE = (
    r"subtitles?|subtitled|subtitling|captions?|captioned|captioning|transcripts?|transcription|transcribed|"
    r"translations?|translated|synced|untertitel|untertitelung|übersetzung|sous-titres?|sous-titrage|traduction|"
    r"sottotitoli|subtítulos|legendas?|ondertiteling|napisy|titulky"
)
_CREDITS = re.compile(
    rf"^\W*(?:(?:closed|english|deutsche)\W+)?(?:{_MADE})"
    rf"(?:\W+(?:{_MADE}|provided|made|created|edited|and|und|et|y|e|is|are|were))*"
    r"\W*(?::|\b(?:by|von|par|a cura di|por|door|im auftrag)\b).{0,60}$|^\W*字幕.{0,30}$|amara\.org",
    re.I,
)
_SCRIPTS = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "mk": "CYRILLIC", "bg": "CYRILLIC", "el": "GREEK", "he": "HEBREW",
    "ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "ps": "ARABIC", "th": "THAI", "ka": "GEORGIAN",
    "hi": "DEVANAGARI", "ne": "DEVANAGARI", "bn": "BENGALI", "ta": "TAMIL", "te": "TELUGU", "ko": "HANGUL",
    "zh": "CJK", "yue": "CJK", "ja": "CJK",
}  # fmt: skip
_LATIN = frozenset((
    "en", "de", "fr", "es", "pt", "it", "nl", "sv", "da", "nb", "nn", "no", "fi", "is", "et", "lv", "lt", "pl", "cs",
    "sk", "sl", "hr", "hu", "ro", "ca", "gl", "id", "tl", "fil", "vi", "tr", "sw", "ga", "af",
))  # fmt: skip


@dataclass(frozen=True)
class Dropped:
    """A rejected caption, with the filter's name and one line of detail."""

    cue: Cue
    reason: str
    detail: str


def filter_cues(
    cues: Sequence[Cue], options: Captions, language: str, duration_s: float | None = None
) -> tuple[list[Cue], list[Dropped]]:
    """Returns the kept cues, by time, and the rejected ones.

    `language` is the captions' BCP 47 tag, `duration_s` the video's length in seconds where it is known. A cue
    that ends before it starts is rejected as `bad-interval` in every recipe.
    """
    kept: list[Cue] = []
    dropped: list[Dropped] = []
    ends: dict[str, float] = {}
    for cue in sorted(cues, key=lambda cue: (cue.start_s, cue.end_s)):
        reason, detail = _fault(cue, options, language, duration_s)
        if not reason and options.repeat_s and cue.start_s - ends.get(cue.text, -1e9) <= options.repeat_s:
            reason, detail = "filter-repeated", f"said {cue.start_s - ends[cue.text]:.1f} s before"
        if not reason and options.overlap_s and kept and kept[-1].end_s - cue.start_s > options.overlap_s:
            reason, detail = "filter-overlap", f"by {kept[-1].end_s - cue.start_s:.1f} s"
        if reason:
            dropped.append(Dropped(cue, reason, detail))
        else:
            kept.append(cue)
        if not reason or reason == "filter-repeated":
            ends[cue.text] = max(cue.end_s, ends.get(cue.text, -1e9))
    return kept, dropped


def _fault(cue: Cue, options: Captions, language: str, duration_s: float | None) -> tuple[str, str]:
    """Returns reason and detail of the first filter that fits a cue by itself, ("", "") where none does."""
    length_s = cue.end_s - cue.start_s
    if length_s <= 0:
        return "bad-interval", f"from {cue.start_s:g} s to {cue.end_s:g} s"
    if not cue.text:
        return "no-sentence", ""
    if options.not_speech and not has_words(cue.text):
        return "filter-not-speech", shortened(cue.text, 60)
    if options.credits and is_credit(cue.text):
        return "filter-credits", shortened(cue.text, 60)
    if options.script and not in_script(cue.text, language):
        return "filter-script", f"not the letters of {language}: {shortened(cue.text, 40)}"
    letters = sum(map(str.isalnum, cue.text))
    if letters < options.min_characters:
        return "filter-text-short", shortened(cue.text)
    if options.max_characters and len(cue.text) > options.max_characters:
        return "filter-text-long", f"{len(cue.text)} characters"
    # A thousandth of tolerance: captions' times are decimal, their differences are not.
    if length_s < options.min_seconds - 1e-3:
        return "filter-short", f"{length_s:.2f} s"
    if options.max_seconds and length_s > options.max_seconds + 1e-3:
        return "filter-long", f"{length_s:.1f} s"
    if options.beyond_end and duration_s and cue.end_s > duration_s + 1.0:
        return "filter-beyond-end", f"ends at {cue.end_s:.1f} s, the video at {duration_s:.1f} s"
    return "", ""


def is_credit(text: str) -> bool:
    """Returns whether a caption is hardly more than an address or handle, or credits the makers of the subtitles."""
    if _CREDITS.search(text):
        return True
    rest, addresses = _ADDRESS.subn(" ", text)
    return addresses > 0 and sum(map(str.isalpha, rest)) <= 12


def in_script(text: str, language: str) -> bool:
    """Returns whether at least half of the letters are of the script in which `language` is written.

    Languages that are not listed, and text without letters, pass.
    """
    primary = language.split("-")[0].lower()
    wanted = "LATIN" if primary in _LATIN else _SCRIPTS.get(primary)
    if wanted is None or (wanted == "LATIN" and text.isascii()):
        return True
    letters = [letter for letter in text if letter.isalpha()]
    return not letters or 2 * sum(_script(letter) == wanted for letter in letters) >= len(letters)


@lru_cache(maxsize=20_000)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").split(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HALFWIDTH") else name
