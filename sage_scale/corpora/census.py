"""Counting a manifest: clips, signers, words, hours, and the defects that a look at the rows alone can
show."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sage_scale.corpora.clip import Clip, Manifest
from sage_scale.text.writing import split_words, unspaced

SHORT_S = 1.0
"""Clips under this many seconds are counted as short."""


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """What one split holds."""

    split: str
    clips: int
    videos: int
    signers: int
    hours: float | None
    """Hours of signing; None where no clip's length is known."""
    unknown_lengths: int
    """Clips whose length is not known and not in `hours`."""
    sentences: int
    """Different sentences, empty ones left out."""
    words: int
    """Different words, parted by spaces, of languages that are written with them."""
    characters: int
    """Different characters of languages that are written without spaces, such as Chinese."""
    languages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LanguageCount:
    """What one language's captions come to."""

    language: str
    clips: int
    videos: int
    hours: float | None
    """Hours of signing; None where no clip's length is known."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """The whole manifest."""

    splits: tuple[SplitCount, ...]
    languages: tuple[LanguageCount, ...] = ()
    """Spoken languages of the sentences, the largest first."""
    defects: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """What is odd -> how often, and the first clip or row."""


def count(manifest: Manifest, durations_s: Mapping[str, float] | None = None, fps: float = 25.0) -> Census:
    """Count `manifest`; `durations_s` gives the length of whole videos by `Clip.video`, seconds."""
    durations_s = durations_s or {}
    by_split: dict[str, list[Clip]] = defaultdict(list)
    for clip in manifest.clips:
        by_split[clip.split].append(clip)
    splits = tuple(_count_split(name, clips, durations_s, fps) for name, clips in by_split.items())
    languages = _count_languages(manifest.clips, durations_s, fps)
    return Census(splits=splits, languages=languages, defects=_defects(manifest, durations_s, fps))


def clip_seconds(clip: Clip, durations_s: Mapping[str, float], fps: float) -> float | None:
    """The clip's length in seconds from its interval, its video or its expected frames; None if unknown."""
    end_s = clip.end_s if clip.end_s is not None else durations_s.get(clip.video)
    if end_s is not None:
        return max(0.0, end_s - clip.start_s)
    return clip.frames / fps if clip.frames else None


def _count_split(name: str, clips: list[Clip], durations_s: Mapping[str, float], fps: float) -> SplitCount:
    lengths = [clip_seconds(clip, durations_s, fps) for clip in clips]
    known = [length for length in lengths if length is not None]
    sentences = {clip.sentence for clip in clips if clip.sentence}
    words: dict[bool, set[str]] = {True: set(), False: set()}
    for sentence, language in {(clip.sentence, clip.language) for clip in clips}:
        words[unspaced(language)].update(split_words(sentence, language))
    return SplitCount(
        split=name,
        clips=len(clips),
        videos=len({clip.video for clip in clips}),
        signers=len({clip.signer for clip in clips if clip.signer}),
        hours=sum(known) / 3600 if known else None,
        unknown_lengths=len(lengths) - len(known),
        sentences=len(sentences),
        words=len(words[False]),
        characters=len(words[True]),
        languages=tuple(sorted({clip.language for clip in clips})),
    )


def _count_languages(
    clips: Iterable[Clip], durations_s: Mapping[str, float], fps: float
) -> tuple[LanguageCount, ...]:
    by_language: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_language[clip.language].append(clip)
    counts = []
    for language, group in by_language.items():
        lengths = [clip_seconds(clip, durations_s, fps) for clip in group]
        known = [length for length in lengths if length is not None]
        counts.append(
            LanguageCount(
                language=language,
                clips=len(group),
                videos=len({clip.video for clip in group}),
                hours=sum(known) / 3600 if known else None,
            )
        )
    return tuple(sorted(counts, key=lambda count: (-count.clips, count.language)))


def _defects(manifest: Manifest, durations_s: Mapping[str, float], fps: float) -> dict[str, tuple[int, str]]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}

    def note(what: str, where: str) -> None:
        counts[what] += 1
        first.setdefault(what, where)

    for row in manifest.rejected:
        note(f"set aside: {row.reason}", f"{row.id} ({row.detail})" if row.detail else row.id)
    trained = {clip.sentence for clip in manifest.clips if clip.split == "train" and clip.sentence}
    for clip in manifest.clips:
        length = clip_seconds(clip, durations_s, fps)
        whole = durations_s.get(clip.video)
        if not clip.sentence:
            note("no sentence (can be translated, not trained on)", clip.id)
        elif clip.split != "train" and clip.sentence in trained:
            note(f"{clip.split} sentence also in train", clip.id)
        if length is not None and length < SHORT_S:
            note(f"shorter than {SHORT_S:g} s", clip.id)
        if whole is not None and clip.start_s >= whole:
            note("beyond-end: starts after the video's end (will be rejected there)", clip.id)
        elif whole is not None and clip.end_s is not None and clip.end_s > whole + 1 / fps:
            note("beyond-end: ends after the video's end (will be cut there)", clip.id)
    for before, after in _neighbours(manifest):
        if before.end_s is not None and after.start_s < before.end_s:
            note("overlaps the clip before", after.id)
    return {what: (number, first[what]) for what, number in counts.most_common()}


def _neighbours(manifest: Manifest) -> list[tuple[Clip, Clip]]:
    ordered = sorted(manifest.clips, key=lambda clip: (clip.video, clip.start_s))
    return [(a, b) for a, b in itertools.pairwise(ordered) if a.video == b.video]
