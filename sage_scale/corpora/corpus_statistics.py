"""Corpus statistics: clips, signers, words and hours of a manifest, and defects found without opening a video."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.text.languages import split_words, unspaced

SHORT_S = 1.0
"""Clips under this many seconds are counted as short."""


@dataclass(frozen=True, kw_only=True)
class ClipCounts:
    """Counts of the clips of one split, or of one language."""

    name: str
    """The split, or the language's BCP 47 tag."""
    clips: int
    videos: int
    signers: int
    hours: float | None
    """Total duration, hours; None if no clip's length is known."""
    unknown_lengths: int
    """Clips of unknown length, not counted in `hours`."""
    sentences: int
    """Distinct sentences, without empty ones."""
    words: int
    """Distinct words, split at spaces, of languages written with spaces."""
    characters: int
    """Distinct characters of languages written without spaces, such as Chinese."""
    mean_words: float
    """Mean words of a sentence (characters, in languages written without spaces); 0 without sentences."""
    languages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CorpusStatistics:
    """Statistics of a whole manifest."""

    splits: tuple[ClipCounts, ...]
    languages: tuple[ClipCounts, ...] = ()
    """Counts by spoken language of the sentences, most clips first."""
    defects: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Defect -> (number of clips or rows, the first of them)."""


def corpus_statistics(
    manifest: Manifest, durations_s: Mapping[str, float] | None = None, fps: float = 25.0
) -> CorpusStatistics:
    """Returns the statistics of `manifest`; `durations_s` maps `Clip.video` to the video's length, seconds."""
    durations_s = durations_s or {}

    def seconds(clip: Clip) -> float | None:
        return clip_seconds(clip, durations_s, fps)

    languages = _counts(manifest.clips, lambda clip: clip.language, seconds)
    return CorpusStatistics(
        splits=tuple(_counts(manifest.clips, lambda clip: clip.split, seconds)),
        languages=tuple(sorted(languages, key=lambda counts: (-counts.clips, counts.name))),
        defects=_defects(manifest, durations_s, fps),
    )


def clip_seconds(clip: Clip, durations_s: Mapping[str, float], fps: float) -> float | None:
    """Returns a clip's length in seconds from its interval, video length or frame count; None if unknown."""
    end_s = clip.end_s if clip.end_s is not None else durations_s.get(clip.video)
    if end_s is not None:
        return max(0.0, end_s - clip.start_s)
    return clip.frames / fps if clip.frames else None


def _counts(
    clips: Iterable[Clip], key: Callable[[Clip], str], seconds: Callable[[Clip], float | None]
) -> list[ClipCounts]:
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[key(clip)].append(clip)
    counts = []
    for name, group in groups.items():
        known = [length for length in map(seconds, group) if length is not None]
        words: dict[bool, set[str]] = {True: set(), False: set()}
        lengths: dict[tuple[str, str], int] = {}
        for sentence, language in {(clip.sentence, clip.language) for clip in group}:
            found = split_words(sentence, language)
            words[unspaced(language)].update(found)
            lengths[sentence, language] = len(found)
        said = [lengths[clip.sentence, clip.language] for clip in group if clip.sentence]
        counts.append(
            ClipCounts(
                name=name,
                clips=len(group),
                videos=len({clip.video for clip in group}),
                signers=len({clip.signer for clip in group if clip.signer}),
                hours=sum(known) / 3600 if known else None,
                unknown_lengths=len(group) - len(known),
                sentences=len({clip.sentence for clip in group if clip.sentence}),
                words=len(words[False]),
                characters=len(words[True]),
                mean_words=round(sum(said) / len(said), 2) if said else 0.0,
                languages=tuple(sorted({clip.language for clip in group})),
            )
        )
    return counts


def _defects(manifest: Manifest, durations_s: Mapping[str, float], fps: float) -> dict[str, tuple[int, str]]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}

    def note(defect: str, where: str) -> None:
        counts[defect] += 1
        first.setdefault(defect, where)

    for row in manifest.rejected:
        note(f"rejected: {row.reason}", f"{row.id} ({row.detail})" if row.detail else row.id)
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
    for before, after in itertools.pairwise(
        sorted(manifest.clips, key=lambda clip: (clip.video, clip.start_s))
    ):
        if before.video == after.video and before.end_s is not None and after.start_s < before.end_s:
            note("overlaps the clip before", after.id)
    return {defect: (number, first[defect]) for defect, number in counts.most_common()}
