"""Captions put where the signing is, video by video: dynamic programming over start and end of each caption.

The signing of a video is a row of pieces (signs or sentences) with pauses between them. Each caption takes a run of
neighbouring pieces, in the captions' order, or none. Chosen are the runs with the largest sum of

    E = - (move of start)^2 / 2 s^2 - (move of end)^2 / 2 s^2          the old time, s = `spread_s`
        - (log length - log expected length)^2 / 2 l^2                 the old length and the number of letters
        - w (pauses missing at both ends + pauses within)              a sentence begins and ends at a pause
        + text                                                         similarity with the caption, where a model has it

over captions, less `skip` for each second of signing that no caption takes and `alone` for each caption without
signing. A first pass counts moves from the old times, and another, with a spread of 1 s, from the old times moved by
the best of several offsets. A second pass takes the moves of a first as a line over time (an offset and a drift) and
`spread_s` from what is left. Of the two results the one with the larger sum without moves is taken: its lengths, pauses
and text fit best. Time is linear in captions, memory that of the pieces and of one caption's window at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Text = Callable[[int, int, int], np.ndarray]
"""(caption, first piece, after the last) -> (W, W): entry [a, b] is the text's term for the pieces a to b of the W."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption with its old time."""

    start_s: float
    end_s: float
    letters: int
    """Letters and digits of its text, at least 1."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A caption's run of pieces."""

    first: int
    after: int
    """Pieces [first, after)."""
    start_s: float
    end_s: float
    energy: float
    """E."""
    fit: float
    """E without its moves."""

    @property
    def score(self) -> float:
        """e^E, from 0 to 1: 1 is at its expected time, of its expected length, between two pauses, with the likeliest
        text."""
        return math.exp(min(0.0, self.energy))


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Weights of the terms."""

    reach_s: float = 6.0
    """Farthest move of a start or end, seconds."""
    spread_s: float = 3.0
    """Usual move in the first pass, seconds."""
    length: float = 0.4
    """Usual difference of a length from the expected one, as a logarithm."""
    pause: float = 2.0
    """Weight of a pause."""
    least_pause_s: float = 0.2
    """Silence up to which there is no pause, seconds; at least 1.5 times the video's median silence between pieces."""
    whole_pause_s: float = 0.4
    """Further silence that makes a whole pause, seconds."""
    skip: float = 0.3
    """Cost of a second of signing without a caption."""
    alone: float = 12.0
    """Cost of a caption without signing."""


def align(
    captions: Sequence[Caption],
    pieces_N2: np.ndarray,
    settings: Alignment | None = None,
    text: Text | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Placement | None]:
    """Returns the place of each caption, None where there is no signing for it; both passes.

    `captions` are sorted by start, `pieces_N2` (seconds) sorted and disjoint. Places are disjoint and in the captions'
    order, whatever overlap the old times had. `progress` is told of the share that is done.
    """
    settings = settings or Alignment()
    captions, pieces_N2 = _disjoint(captions), np.asarray(pieces_N2, np.float64).reshape(-1, 2)
    narrow = dataclasses.replace(settings, spread_s=min(settings.spread_s, 1.0))
    far = math.floor(settings.reach_s / 2)
    of_all = (2 * far + 4) * max(len(captions), 1)
    steps = itertools.count(1)

    def placed() -> None:
        progress(min(1.0, next(steps) / of_all))

    shifted = [
        place(captions, _moved(captions, by), pieces_N2, narrow, text, placed) for by in range(-far, far + 1)
    ]
    firsts = [
        place(captions, captions, pieces_N2, settings, text, placed),
        max(shifted, key=lambda found: _total(found, pieces_N2, settings, "energy")),
    ]
    finals = [_second_pass(captions, found, pieces_N2, settings, text, placed) for found in firsts]
    return max(finals, key=lambda found: _total(found, pieces_N2, settings, "fit"))


def place(
    captions: Sequence[Caption],
    expected: Sequence[Caption],
    pieces_N2: np.ndarray,
    settings: Alignment,
    text: Text | None = None,
    placed: Callable[[], None] = lambda: None,
) -> list[Placement | None]:
    """Returns the places of largest sum. `expected` are the captions at the times from which moves are counted;
    `placed` is called after each caption."""
    skipped = np.concatenate([[0.0], np.cumsum(np.diff(pieces_N2)[:, 0])]) * settings.skip
    per_letter_s, pauses = seconds_per_letter(captions), pause_shares(pieces_N2, settings)
    # best[x]: captions so far, none of them beyond boundary x (before piece x), with the signing that they skip added.
    best = np.zeros(len(pieces_N2) + 1)
    windows: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    high = 0
    for number, caption in enumerate(captions):
        low = int(np.searchsorted(pieces_N2[:, 0], caption.start_s - settings.reach_s))
        high = max(
            high, int(np.searchsorted(pieces_N2[:, 1], caption.end_s + settings.reach_s, "right")), low
        )
        before = best[low : high + 1]
        pieces_W2, around = pieces_N2[low:high], pauses[low : high + 1]
        fit = fits(caption, pieces_W2, around, per_letter_s, settings)
        if text is not None and high > low:
            fit = fit + text(number, low, high)
        energy = fit + moves(caption, expected[number], pieces_W2, settings)
        # Entry [a, b] ends at boundary b + 1 of the window.
        sums = energy + (before[:-1] - skipped[low:high])[:, None]
        begin = sums.argmax(0) if high > low else np.zeros(0, int)
        ends = np.arange(high - low)
        ended = sums[begin, ends] + skipped[low + 1 : high + 1]
        values = np.concatenate([[-math.inf], ended])
        last = np.maximum.accumulate(
            np.where(values == np.maximum.accumulate(values), np.arange(len(values)), 0)
        )
        alone = best - settings.alone
        taken = values[last] > alone[low : high + 1]
        best = alone
        best[low : high + 1] = np.where(taken, values[last], alone[low : high + 1])
        best[high + 1 :] = best[high]
        windows.append((low, np.where(taken, last, 0), begin, energy[begin, ends], fit[begin, ends]))
        placed()
    return _walk_back(pieces_N2, windows)


def pause_shares(pieces_N2: np.ndarray, settings: Alignment) -> np.ndarray:
    """Returns (N + 1,): from 0 (no pause) to 1 (a whole one) before each piece and after the last."""
    silence = pieces_N2[1:, 0] - pieces_N2[:-1, 1]
    none = max(settings.least_pause_s, 1.5 * float(np.median(silence)) if len(silence) else 0.0)
    return np.concatenate([[1.0], np.clip((silence - none) / settings.whole_pause_s, 0, 1), [1.0]])


def moves(caption: Caption, expected: Caption, pieces_W2: np.ndarray, settings: Alignment) -> np.ndarray:
    """Returns the term of the moves from the expected time, (W, W), for each run of W pieces; -inf beyond the reach."""
    starts, ends = pieces_W2.T
    squares = (starts - expected.start_s)[:, None] ** 2 + (ends - expected.end_s)[None, :] ** 2
    far = (np.abs(starts - caption.start_s) > settings.reach_s)[:, None]
    far = far | (np.abs(ends - caption.end_s) > settings.reach_s)[None, :]
    return np.where(far, -np.inf, -squares / (2 * settings.spread_s**2))


def fits(
    caption: Caption, pieces_W2: np.ndarray, pauses: np.ndarray, per_letter_s: float, settings: Alignment
) -> np.ndarray:
    """Returns the terms of length and pauses, (W, W), for each run of W pieces, with the pauses (W + 1,) around them;
    -inf where a run ends before it begins."""
    starts, ends = pieces_W2.T
    lengths = ends[None, :] - starts[:, None]
    wanted_s = math.sqrt(max(caption.end_s - caption.start_s, 0.1) * max(caption.letters * per_letter_s, 0.1))
    with np.errstate(invalid="ignore", divide="ignore"):
        stretch = np.log(lengths / wanted_s) ** 2 / (2 * settings.length**2)
    inner = np.concatenate(
        [[0.0], np.cumsum(pauses[1:-1])]
    )  # pauses before each piece, from the window's second on
    within = inner[None, :] - inner[:, None]
    missing = (1 - pauses[:-1])[:, None] + (1 - pauses[1:])[None, :]
    backwards = np.tri(len(starts), k=-1, dtype=bool)
    return np.where(backwards, -np.inf, -stretch - settings.pause * (missing + within))


def seconds_per_letter(captions: Sequence[Caption]) -> float:
    """Returns the median duration of a letter."""
    each = [(caption.end_s - caption.start_s) / max(caption.letters, 1) for caption in captions]
    return float(np.median(each)) if each else 0.0


def text_term(similarity_MN: np.ndarray, tokens_W2: np.ndarray, weight: float) -> np.ndarray:
    """Returns the text's term (W, W), at most 0, from the cosines of M text tokens with the visual tokens of a window.

    Pieces a to b have the visual tokens [tokens_W2[a, 0], tokens_W2[b, 1]). The similarity of a run is the mean over
    its visual tokens of the nearest text token, plus the mean over text tokens of the nearest visual one (MaxSim in
    both directions; SAGE, section 3.1.5, at tau = 0). The term is `weight` times its distance from the window's
    largest.
    """
    count = len(tokens_W2)
    sums = np.concatenate([[0.0], np.cumsum(similarity_MN.max(0))])
    found = np.full((count, count), -np.inf)
    for a, (first, _) in enumerate(tokens_W2.tolist()):
        ends = tokens_W2[a:, 1]
        if first >= similarity_MN.shape[1]:
            continue
        nearest = np.maximum.accumulate(similarity_MN[:, first:], axis=1).mean(0)
        numbers = np.maximum(ends - first, 1)
        found[a, a:] = (sums[first + numbers] - sums[first]) / numbers + nearest[numbers - 1]
    most = found.max(initial=-np.inf)
    return weight * (found - most) if np.isfinite(most) else np.zeros((count, count))


def _walk_back(
    pieces_N2: np.ndarray, windows: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
) -> list[Placement | None]:
    """Returns the chosen places, from the last caption to the first."""
    found: list[Placement | None] = []
    boundary = len(pieces_N2)
    for low, last, begin, energy, fit in reversed(windows):
        end = int(last[min(boundary - low, len(last) - 1)]) if boundary >= low else 0
        if not end:
            found.append(None)
            continue
        first, after = low + int(begin[end - 1]), low + end
        placed = Placement(
            first=first,
            after=after,
            start_s=float(pieces_N2[first, 0]),
            end_s=float(pieces_N2[after - 1, 1]),
            energy=float(energy[end - 1]),
            fit=float(fit[end - 1]),
        )
        found.append(placed)
        boundary = first
    return found[::-1]


def _second_pass(
    captions: Sequence[Caption],
    found: list[Placement | None],
    pieces_N2: np.ndarray,
    settings: Alignment,
    text: Text | None,
    placed: Callable[[], None],
) -> list[Placement | None]:
    """Returns the places around the line of the moves that were found."""
    moved = [(caption.start_s, new.start_s - caption.start_s) for caption, new in zip(captions, found) if new]
    if len(moved) < 4:
        return found
    slope, offset, left = _line(np.array(moved))
    spread_s = min(settings.spread_s, max(0.6, 1.5 * left))
    narrow = dataclasses.replace(settings, spread_s=spread_s)
    return place(captions, _moved(captions, offset, slope), pieces_N2, narrow, text, placed)


def _moved(captions: Sequence[Caption], offset_s: float, slope: float = 0.0) -> list[Caption]:
    return [
        dataclasses.replace(
            caption,
            start_s=caption.start_s * (1 + slope) + offset_s,
            end_s=caption.end_s * (1 + slope) + offset_s,
        )
        for caption in captions
    ]


def _total(found: Sequence[Placement | None], pieces_N2: np.ndarray, settings: Alignment, term: str) -> float:
    """Returns the sum that is made largest, of the placements' `energy` or `fit`."""
    free = np.ones(len(pieces_N2), bool)
    for new in found:
        if new is not None:
            free[new.first : new.after] = False
    placed = sum(getattr(new, term) for new in found if new is not None)
    alone = settings.alone * sum(new is None for new in found)
    return placed - alone - settings.skip * float(np.diff(pieces_N2)[free].sum())


def _disjoint(captions: Sequence[Caption]) -> list[Caption]:
    """Returns the captions, each ended where the next one begins: what lies beyond is not its length."""
    nexts = [caption.start_s for caption in captions[1:]] + [math.inf]
    return [
        dataclasses.replace(
            caption, end_s=min(caption.end_s, after) if after > caption.start_s else caption.end_s
        )
        for caption, after in zip(captions, nexts)
    ]


def _line(moves_N2: np.ndarray) -> tuple[float, float, float]:
    """Returns slope, offset and the median distance of moves over time from a line (Theil and Sen's estimator)."""
    times, moves = moves_N2.T
    chosen = np.linspace(0, len(times) - 1, min(len(times), 300)).astype(int)
    dt = times[chosen][:, None] - times[chosen][None, :]
    pairs = dt > 1.0
    slopes = (moves[chosen][:, None] - moves[chosen][None, :])[pairs] / dt[pairs]
    slope = float(np.clip(np.median(slopes), -0.2, 0.2)) if len(slopes) else 0.0
    offset = float(np.median(moves - slope * times))
    return slope, offset, float(np.median(np.abs(moves - slope * times - offset)))
