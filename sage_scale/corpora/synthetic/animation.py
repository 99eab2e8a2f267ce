"""From signs to motion: timing of the signs, and hands, face and head in every frame.

Timing follows real DGS (272 clips of the Public DGS Corpus with human sign boundaries): signs last 80/180/500 ms
at p10/50/90, 200/360/720 ms from onset to onset, and hands move at 1.6 shoulder widths a second in the median.
Between two signs the hands move without a rest; handshape and orientation of the next sign are there before its
place is. The weak hand rises early for a sign that needs it and lingers after one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from sage_scale.corpora.synthetic import articulation
from sage_scale.corpora.synthetic.articulation import ANGLE, MAP, READY, REST, U, Y, Z, base_hand
from sage_scale.corpora.synthetic.grammar import Sign
from sage_scale.corpora.synthetic.lexicon import LEXICON, Entry
from sage_scale.corpora.synthetic.signers import Signer

FPS = 25
LEAST_FRAMES, MOST_FRAMES = 60, 150
LENGTHS = {"short": 2.5, "medium": 5.2, "long": 12.0}
"""Mean duration of a sign, frames."""


@dataclass(frozen=True)
class Span:
    """A sign in time: its hold or movement, without the transition to it, frames [start, end)."""

    sign: Sign
    start: int
    end: int


@dataclass
class Motion:
    """A signed sentence, T frames. Hands in the signer's space (articulation.py), u to the side of each hand."""

    spans: list[Span]
    strong: np.ndarray
    """(T, 14)"""
    weak: np.ndarray
    """(T, 14)"""
    mouth: np.ndarray
    """(T, 2): opening and width of the mouth, 1 is neutral width."""
    brows: np.ndarray
    """(T,): -1 drawn together, 1 raised."""
    cheeks: np.ndarray
    """(T,): 1 puffed."""
    head: np.ndarray
    """(T, 3): turn to the viewer's right, nod (positive down), approach to the viewer."""
    gaze: np.ndarray
    """(T, 2): gaze in picture directions, -1 to 1."""
    blink: np.ndarray
    """(T,): 1 closed."""

    @property
    def frames(self) -> int:
        """T."""
        return len(self.strong)


def animate(signs: tuple[Sign, ...], signer: Signer, rng: Random) -> Motion:
    """Returns the motion of a signed sentence; a pure function of its arguments."""
    entries = [LEXICON[sign.gloss] for sign in signs]
    lengths = [LENGTHS[entry.form_in(signer.dialect).length] for entry in entries]
    spans, total = _placed(signs, draw_timing(signs, entries, lengths, signer, rng))
    return play(spans, entries, total, signer, rng)


def play(spans: list[Span], entries: Sequence[Entry], total: int, signer: Signer, rng: Random) -> Motion:
    """Returns the motion, `total` frames, of signs at given times; `entries` has the sign of each span."""
    strong, weak = _hands(spans, entries, total, signer, rng)
    mouth = _mouth(spans, entries, total)
    brows, cheeks, head = _marks(spans, total, rng)
    gaze = _gaze(spans, entries, total)
    blink = np.zeros(total)
    for start in _blinks(total, rng):
        blink[start : start + 3] = 1.0
    return Motion(spans, strong, weak, mouth, brows, cheeks, head, gaze, blink)


@dataclass(frozen=True)
class Timing:
    """Drawn durations of a sentence of N signs, frames."""

    signs: list[float]
    """N, of the signs."""
    gaps: list[float]
    """N - 1, between them."""
    lead_in: float
    lead_out: float


def draw_timing(
    signs: Sequence[Sign], entries: Sequence[Entry], lengths: Sequence[float], signer: Signer, rng: Random
) -> Timing:
    """Returns random durations; `lengths` are the signs' mean ones, frames. A gap grows with the way of the hand."""
    tempo = signer.tempo * rng.lognormvariate(0.0, 0.06)
    durations, gaps = [], []
    forms = [entry.form_in(signer.dialect) for entry in entries]
    for position, (sign, form) in enumerate(zip(signs, forms)):
        length = lengths[position] * tempo * rng.lognormvariate(0.0, 0.3)
        if "negation" in sign.marks or "intensity" in sign.marks:
            length *= 1.3
        durations.append(max(1.6, length))
        if position:
            way = base_hand(form)[[U, Y, Z]] - base_hand(forms[position - 1])[[U, Y, Z]]
            distance = float(np.linalg.norm(way))
            gaps.append(max(1.5, (2.0 + 4.8 * distance) * tempo * rng.lognormvariate(0.0, 0.25)))
    lead_in = 7.0 + 4 * rng.random() + 6.0 * tempo
    lead_out = 6.0 + 4 * rng.random() + 6.0 * tempo
    return Timing(durations, gaps, lead_in, lead_out)


def _placed(signs: Sequence[Sign], timing: Timing) -> tuple[list[Span], int]:
    signing, lead_in, lead_out = sum(timing.signs) + sum(timing.gaps), timing.lead_in, timing.lead_out
    # Sentences at either end of the range are paced so that a clip stays within 60 to 150 frames.
    pace = min(max(1.0, (LEAST_FRAMES + 3 - lead_in - lead_out) / signing),
               max(1.0, (MOST_FRAMES - 3 - lead_in - lead_out)) / signing)  # fmt: skip
    now = lead_in
    spans: list[Span] = []
    for position, (sign, duration) in enumerate(zip(signs, timing.signs)):
        start = round(now)
        end = max(start + 2, round(now + duration * pace))
        if spans and start <= spans[-1].end:
            start = spans[-1].end + 1
            end = max(start + 2, end)
        spans.append(Span(sign, start, end))
        gap = timing.gaps[position] * pace if position < len(timing.gaps) else 0.0
        now = max(now + duration * pace, end) + gap
    total = min(max(round(spans[-1].end + lead_out), LEAST_FRAMES), MOST_FRAMES)
    return spans, total


def _hands(
    spans: list[Span], entries: Sequence[Entry], total: int, signer: Signer, rng: Random
) -> tuple[np.ndarray, np.ndarray]:
    strong_keys: list[tuple[int, np.ndarray]] = []
    weak_keys: list[tuple[int, np.ndarray]] = []
    side = 1.0 if signer.left_handed else -1.0  # picture x of the strong hand's side
    forms = [entry.form_in(signer.dialect) for entry in entries]
    needs = [form.hands != "one" for form in forms]
    for index, (span, form, entry) in enumerate(zip(spans, forms, entries)):
        count = span.end - span.start
        tau = np.linspace(0.0, 1.0, count)
        path = tuple(np.array([MAP[place][0] * side, MAP[place][1]]) for place in _path(span.sign, entry))
        shift = 0.35 * np.array([MAP[span.sign.place][0] * side, MAP[span.sign.place][1]])
        shift += entry.nuance.shift
        wander = np.array([rng.gauss(0, signer.sloppiness), rng.gauss(0, signer.sloppiness)])
        stress = 1.35 if "intensity" in span.sign.marks else 1.0
        reach = signer.reach * rng.lognormvariate(0.0, 0.1) * stress * entry.nuance.extent
        hand = articulation.trajectory(form, tau, reach, path)  # type: ignore[arg-type]
        weak = articulation.weak_trajectory(form, tau, hand, reach)
        hand[:, [U, Y]] += wander + shift
        hand[:, ANGLE] += rng.gauss(0, 120 * signer.sloppiness) + entry.nuance.turn
        strong_keys += list(zip(range(span.start, span.end), hand))
        if weak is not None:
            weak[:, [U, Y]] += wander * 0.7 + shift * (-1, 1)
            weak_keys += list(zip(range(span.start, span.end), weak))
        elif index + 1 < len(spans) and needs[index + 1]:  # rises early for the next sign
            weak_keys.append((span.end - 1, READY))
        elif index and needs[index - 1]:  # lingers after the last one
            weak_keys.append((span.start + 1, READY))
        elif index + 1 < len(spans):
            weak_keys.append(((span.start + span.end) // 2, REST))
    rise = max(2, spans[0].start - 6 - rng.randint(0, 1))
    fall = min(total - 3, spans[-1].end + 7 + rng.randint(0, 1))
    for keys in (strong_keys, weak_keys):
        keys.insert(0, (rise, REST))
        keys.append((fall, REST))
        keys.sort(key=lambda key: key[0])
    return _interpolate(strong_keys, total), _interpolate(weak_keys, total)


def _path(sign: Sign, entry: Entry) -> tuple[str, str]:
    movement = entry.form.movement
    return {"east": ("", "ost"), "west": ("", "west")}.get(movement, sign.path)


def _interpolate(keys: list[tuple[int, np.ndarray]], total: int) -> np.ndarray:
    """Returns hands between key frames: minimum jerk for the place, the shape and direction ahead of it."""
    hands = np.empty((total, len(articulation.CHANNELS)))
    first, last = keys[0], keys[-1]
    hands[: first[0] + 1] = first[1]
    hands[last[0] :] = last[1]
    for (t0, a), (t1, b) in itertools.pairwise(keys):
        if t1 <= t0:
            hands[t0] = b
            continue
        tau = np.arange(t0, t1 + 1 if t1 < total else t1, dtype=float)
        tau = (tau - t0) / (t1 - t0)
        target = b.copy()
        target[ANGLE] = a[ANGLE] + (b[ANGLE] - a[ANGLE] + 180.0) % 360.0 - 180.0
        place = (0.65 * _jerk(tau) + 0.35 * tau)[:, None]
        shape = _jerk(np.clip(tau / 0.65, 0.0, 1.0))[:, None]
        block = a + (target - a) * shape
        block[:, [U, Y, Z]] = a[[U, Y, Z]] + (b - a)[[U, Y, Z]] * place
        if t1 - t0 > 3:  # hands travel in shallow arcs
            block[:, Y] -= 0.06 * np.sin(np.pi * tau) * min(1.0, abs(b[U] - a[U]) + abs(b[Y] - a[Y]))
        hands[t0 : t0 + len(block)] = block
    hands[:, ANGLE] = np.rad2deg(np.unwrap(np.deg2rad(hands[:, ANGLE])))
    return _smooth(hands)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns (T, ...) values after a light low-pass over time: the inertia of arms."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return 0.18 * padded[:-2] + 0.64 * padded[1:-1] + 0.18 * padded[2:]


def _jerk(tau: np.ndarray) -> np.ndarray:
    return tau**3 * (10 - 15 * tau + 6 * tau**2)


_MOUTHS = {"closed": (0.0, 0.85), "open": (1.0, 0.95), "wide": (0.4, 1.35), "round": (0.75, 0.5)}


def _mouth(spans: list[Span], entries: Sequence[Entry], total: int) -> np.ndarray:
    mouth = np.tile([0.12, 1.0], (total, 1))
    for span, entry in zip(spans, entries):
        shapes = entry.mouthing
        start, end = max(0, span.start - 1), min(total, span.end + 2)
        for frame in range(start, end):
            shape = min(len(shapes) - 1, (frame - start) * len(shapes) // (end - start))
            mouth[frame] = _MOUTHS[shapes[shape]]
        if "intensity" in span.sign.marks:
            mouth[start:end] = (0.3, 0.45)
    return mouth


def _marks(spans: list[Span], total: int, rng: Random) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns brows, cheeks and head: the marks spread over the gaps between signs that carry them."""
    time = np.arange(total)
    brows, cheeks, head = np.zeros(total), np.zeros(total), np.zeros((total, 3))
    head[:, 0] = 0.07 * np.sin(2 * np.pi * (time / FPS * 0.31 + rng.random()))
    head[:, 1] = 0.05 * np.sin(2 * np.pi * (time / FPS * 0.43 + rng.random()))
    for mark, first, last in marked_spans(spans):
        start, end = max(0, first - 3), min(total, last + 4)
        on = slice(start, end)
        course = np.sin(np.pi * (np.arange(start, end) - start + 0.5) / (end - start)) ** 0.4
        if mark == "negation":
            shake = np.sin(2 * np.pi * 2.3 * (np.arange(start, end) - start) / FPS)
            head[on, 0] = 1.05 * course * shake
            brows[on] = -0.5 * course
        elif mark == "question":
            brows[on] = course
            head[on, 2] += 0.75 * course
            head[on, 1] += 0.25 * course
        else:
            cheeks[on] = course
            brows[on] = np.minimum(brows[on], -0.9 * course)
            head[on, 1] += 0.35 * course
    return brows, cheeks, head


def marked_spans(spans: list[Span]) -> list[tuple[str, int, int]]:
    """Returns the marks of a sentence in time: kind and frames [start, end) of each run of signs that carry it."""
    found: list[tuple[str, int, int]] = []
    for mark in ("negation", "question", "intensity"):
        previous = False
        for span in spans:
            carries = mark in span.sign.marks
            if carries and previous:
                found[-1] = (mark, found[-1][1], span.end)
            elif carries:
                found.append((mark, span.start, span.end))
            previous = carries
    return found


def _gaze(spans: list[Span], entries: Sequence[Entry], total: int) -> np.ndarray:
    """Returns the gaze, (T, 2): at the viewer, or along a movement over the map."""
    gaze = np.zeros((total, 2))
    for span, entry in zip(spans, entries):
        place = _path(span.sign, entry)[1] or span.sign.place
        if place and (span.sign.path[1] or entry.form.movement in ("east", "west")):
            gaze[span.start : span.end] = np.array(MAP[place]) * 2
    return np.clip(gaze, -1, 1)


def _blinks(total: int, rng: Random) -> list[int]:
    starts, frame = [], rng.randint(5, 40)
    while frame < total - 3:
        starts.append(frame)
        frame += rng.randint(30, 80)
    return starts
