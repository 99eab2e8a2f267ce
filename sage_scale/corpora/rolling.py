"""Rolling captions: each line shown again while the next one rolls in below it, brought to each line once.

Automatic captions and roll-up subtitles of broadcasters repeat the lines before in every cue:

    0.0  2.5  hello my friends
    2.5  2.6  hello my friends
    2.6  5.0  hello my friends / today we

becomes `hello my friends` from 0.0 to 2.6 and `today we` from 2.6 to 5.0. Only lines that are still on the screen
are taken for repeated: a speaker who says the same again later says it twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from sage_scale.corpora.captions import Cue

GAP_S = 0.1
"""Cues this close after one another, in seconds, may show the same line on."""


def merge_rolling(cues: Sequence[Cue]) -> tuple[list[Cue], int]:
    """The cues with each shown line once, in the same order, and in how many cues lines were taken away.

    A cue of nothing but the lines before it makes the cue before longer.
    """
    merged: list[Cue] = []
    touched = 0
    shown: tuple[str, ...] = ()
    shown_from_s = shown_until_s = float("-inf")
    for cue in cues:
        still = shown_from_s <= cue.start_s <= shown_until_s + GAP_S
        repeated = _repeated(shown, cue.lines) if still else 0
        if repeated and repeated == len(cue.lines):
            touched += 1
            last = merged[-1]
            merged[-1] = Cue(last.start_s, max(last.end_s, cue.end_s), last.text, last.lines)
        elif repeated:
            touched += 1
            lines = cue.lines[repeated:]
            merged.append(Cue(cue.start_s, cue.end_s, " ".join(lines), lines))
        else:
            merged.append(cue)
        if cue.lines:
            shown, shown_from_s, shown_until_s = cue.lines, cue.start_s, cue.end_s
    return merged, touched


def _repeated(shown: tuple[str, ...], lines: tuple[str, ...]) -> int:
    """How many of the first `lines` are the last ones of `shown`."""
    for count in range(min(len(shown), len(lines)), 0, -1):
        if shown[-count:] == lines[:count]:
            return count
    return 0
