"""Rolling captions: each line shown again while the next one rolls in below it, brought to each line once.

Automatic captions and roll-up subtitles of broadcasters repeat the lines before in every cue:

    0.0  2.5  hello my friends
    2.5  2.6  hello my friends
    2.6  5.0  hello my friends / today we

becomes `hello my friends` from 0.0 to 2.6 and `today we` from 2.6 to 5.0. Only lines that are still
on the screen are taken for repeated: a speaker who says the same again later says it twice. Captions that are written
one by one repeat a line now and then; a file rolls where at least a third of the cues that follow another at once begin
with its last lines and add to them, or show them for a moment too short to read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sage_scale.corpora.captions import JOIN_S, Cue, is_blink


def merge_rolling(cues: Sequence[Cue]) -> tuple[list[Cue], int]:
    """Returns the cues with each shown line once, in the same order, and in how many cues lines were taken away.

    A cue of nothing but the lines before it makes the cue before longer. Cues that do not roll come back as they are.
    """
    if not _roll(cues):
        return list(cues), 0
    merged: list[Cue] = []
    touched = 0
    before: Cue | None = None
    for cue in cues:
        repeated = _repeated(before, cue)
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
            before = cue
    return merged, touched


def _roll(cues: Sequence[Cue]) -> bool:
    shown = [cue for cue in cues if cue.lines]
    pairs = [(a, b) for a, b in itertools.pairwise(shown) if _follows(a, b)]
    steps = sum(0 < _repeated(a, b) < len(b.lines) or is_blink(a, b) for a, b in pairs)
    return steps > 0 and 3 * steps >= len(pairs)


def _follows(before: Cue, cue: Cue) -> bool:
    return before.start_s <= cue.start_s <= before.end_s + JOIN_S


def _repeated(before: Cue | None, cue: Cue) -> int:
    """Returns how many of the first lines of `cue` are the last ones of `before`, 0 where those are no longer shown."""
    if before is None or not _follows(before, cue):
        return 0
    for count in range(min(len(before.lines), len(cue.lines)), 0, -1):
        if before.lines[-count:] == cue.lines[:count]:
            return count
    return 0
