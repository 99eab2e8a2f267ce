"""Roll-up captions: how they are told, and how each of their lines is brought to one cue.

Automatic captions and roll-up subtitles of broadcasters show each line again while the next one rolls in below it:

    0.0  2.5  hello my friends
    2.5  2.6  hello my friends
    2.6  5.0  hello my friends / today we

becomes `hello my friends` from 0.0 to 2.6 and `today we` from 2.6 to 5.0. Only lines still on the screen count as
repeated: a speaker who says the same again later says it twice. Captions that are written one by one repeat a line now
and then; a file rolls up where at least a third of the cues that follow another at once begin with its last lines and
add to them, or show them for a moment too short to read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from sage_scale.corpora.captions import JOIN_S, Cue

BLINK_S = 0.2
"""A cue that shows a line again for at most this many seconds is a step of roll-up captions."""
AUTOMATIC_BLINK_S = 0.05
"""The same of YouTube's automatic captions, whose steps last 0.01 s."""
_WORD_TIMES = re.compile(r"<\d{2}:\d{2}:\d{2}\.\d{3}><c>")


def is_automatic(text: str, cues: Sequence[Cue] = ()) -> bool:
    """Returns whether captions are a speech recogniser's: their text times each word, or their cues blink.

    Converted to .srt they have lost the words' times, but every line is shown again in a cue of 10 ms.
    """
    if _WORD_TIMES.search(text[:100_000]):
        return True
    blinks = sum(_blinks(before, cue, AUTOMATIC_BLINK_S) for before, cue in itertools.pairwise(cues))
    return blinks > 0 and 3 * blinks >= len(cues)


def merge_roll_up(cues: Sequence[Cue]) -> tuple[list[Cue], int]:
    """Returns the cues with each shown line once, in the same order, and the number of cues that lost lines.

    A cue with no other lines than the one before makes that one longer. Other captions are returned as they are.
    """
    if not _rolls_up(cues):
        return list(cues), 0
    merged: list[Cue] = []
    touched = 0
    before: Cue | None = None
    for cue in cues:
        repeated = _repeated(before, cue)
        touched += repeated > 0
        if repeated and repeated == len(cue.lines):
            merged[-1] = replace(merged[-1], end_s=max(merged[-1].end_s, cue.end_s))
        else:
            lines = cue.lines[repeated:]
            merged.append(replace(cue, text=" ".join(lines), lines=lines) if repeated else cue)
        if cue.lines:
            before = cue
    return merged, touched


def _rolls_up(cues: Sequence[Cue]) -> bool:
    pairs = [(a, b) for a, b in itertools.pairwise(cue for cue in cues if cue.lines) if _follows(a, b)]
    steps = sum(0 < _repeated(a, b) < len(b.lines) or _blinks(a, b, BLINK_S) for a, b in pairs)
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


def _blinks(before: Cue, cue: Cue, longest_s: float) -> bool:
    """Returns whether a cue shows the last line of the one before again, for less time than reading it takes.

    Some converters write both lines of a cue as one.
    """
    repeated = bool(before.lines and cue.lines) and before.lines[-1].endswith(cue.lines[-1])
    return repeated and 0 < cue.end_s - cue.start_s <= longest_s + 1e-6
