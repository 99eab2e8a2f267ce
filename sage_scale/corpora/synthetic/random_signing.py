"""Random signing as keypoints, for a segmenter that has never seen a real signer (`segment train --synthetic`).

A clip is a row of random signs: forms of the lexicon with parameters exchanged, played as articulation.py plays them,
under strong randomisation: signer and camera, size and place of signing space, tempo, rests and pauses, movements that
are cut short, handshapes between their ideal and a relaxed hand, transitions that arrive early or late, and the faults
of detectors: jitter, drift, lost and confused hands. Durations and gaps are those of real DGS (animation.py). The other
ranges were widened until hands were about as fast inside signs as between them, as those of real signers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sage_scale.corpora.synthetic import articulation
from sage_scale.corpora.synthetic.animation import Motion
from sage_scale.corpora.synthetic.articulation import (
    ANGLE,
    CHANNELS,
    FLIP,
    LENGTH,
    MAP,
    READY,
    REST,
    SHAPE,
    U,
    Y,
    Z,
)
from sage_scale.corpora.synthetic.lexicon import LEXICON, Form
from sage_scale.corpora.synthetic.signers import Signer
from sage_scale.corpora.synthetic.skeleton import skeleton_track
from sage_scale.keypoints.track import LEFT_HAND, RIGHT_HAND, KeypointTrack

FPS = 50.0
_FORMS = [form for entry in LEXICON.values() for form in (entry.form, entry.variant) if form]
_MOVEMENTS = sorted({form.movement for form in _FORMS})
_HANDS: tuple[str, ...] = ("one", "one", "sym", "alt", "base")
_EXCHANGED = 0.5
"""Probability that a parameter of a form is exchanged for a random one."""
_MIDDLE = np.array([0.18, -0.1, 0.3])
"""Signing space contracts towards it."""
_SHAPE_NOISE = np.array([0.12, 0.1, 0.1, 0.1, 0.1, 4.0, 12.0, 10.0])
Key = tuple[int, np.ndarray]
"""A frame and the hand in it, (14,)."""


def random_signing(rng: np.random.Generator) -> tuple[KeypointTrack, np.ndarray]:
    """Returns a random clip as a detector might give it, at 50 frames a second, and start and end of its signs in
    seconds, float64 (N, 2), N >= 2."""
    forms = [_form(rng) for _ in range(int(np.clip(rng.lognormal(1.7, 0.6), 2, 16)))]
    spans, total = _timing(forms, rng)
    signer = _signer(rng)
    motion = _motion(forms, spans, total, signer, rng)
    track = skeleton_track(motion, signer).replace(fps=FPS)
    return _detected(track, rng), _annotated(np.array(spans) / FPS, rng)


def _form(rng: np.random.Generator) -> Form:
    form = _FORMS[rng.integers(len(_FORMS))]

    def or_other(value: str, others: Sequence[str], share: float = _EXCHANGED) -> str:
        return others[int(rng.integers(len(others)))] if rng.random() < share else value

    return Form(
        or_other(form.handshape, list(articulation.SHAPES)),
        or_other(form.place, list(articulation.PLACES)),
        or_other(form.movement, _MOVEMENTS),
        or_other(form.hands, _HANDS, 0.3),
        or_other(form.orientation, list(articulation.ORIENTATIONS)),
        form.length,
    )


def _timing(forms: Sequence[Form], rng: np.random.Generator) -> tuple[list[tuple[int, int]], int]:
    """Returns the signs' frames [start, end) and the number of frames; the clip may begin and end at once."""
    tempo, gap = rng.lognormal(0.0, 0.15), rng.uniform(0.08, 0.14)
    now = rng.uniform(0, 0.25) if rng.random() < 0.4 else rng.uniform(0.1, 1.0)
    places = [articulation.base_hand(form)[[U, Y, Z]] for form in forms]
    spans: list[tuple[int, int]] = []
    for number, place in enumerate(places):
        if number:
            distance = 0.4 * np.linalg.norm(place - places[number - 1])
            now += np.clip((gap + 0.14 * distance) * tempo * rng.lognormal(0, 0.35), 0.03, 2.0)
            now += rng.exponential(0.5) if rng.random() < 0.06 else 0.0
        start = max(round(now * FPS), spans[-1][1] + 1 if spans else 0)
        end = max(
            start + 3, round((now + np.clip(rng.lognormal(np.log(0.195), 0.63), 0.06, 1.4) * tempo) * FPS)
        )
        spans.append((start, end))
        now = end / FPS
    tail = rng.uniform(0, 0.3) if rng.random() < 0.4 else rng.uniform(0.1, 1.0)
    return spans, round((now + tail) * FPS) + 2


def _signer(rng: np.random.Generator) -> Signer:
    grey = (0, 0, 0)
    return Signer(
        "random", grey, grey, "bald", grey, grey, 1.0,
        left_handed=bool(rng.random() < 0.15), shoulders=rng.uniform(0.28, 0.42), arm=rng.uniform(0.38, 0.52),
        head=rng.uniform(0.85, 1.1), hand=rng.uniform(0.6, 1.3), reach=rng.lognormal(-0.05, 0.4),
        sloppiness=rng.uniform(0.01, 0.08), lean=rng.uniform(-0.05, 0.05),
    )  # fmt: skip


def _motion(
    forms: Sequence[Form],
    spans: Sequence[tuple[int, int]],
    total: int,
    signer: Signer,
    rng: np.random.Generator,
) -> Motion:
    strong: list[Key] = []
    weak: list[Key] = []
    rests = _rest(rng), _rest(rng)
    spread, returns = rng.uniform(0.15, 0.6), rng.random() < 0.5
    two_hands = [form.hands != "one" for form in forms]
    for number, (form, (start, end)) in enumerate(zip(forms, spans)):
        hand, other = _played(form, end - start, spread, signer, rng)
        strong += zip(range(start, end), hand)
        follows, draw = number + 1 < len(forms), rng.random()
        if other is not None:
            weak += zip(range(start, end), other)
        elif follows and two_hands[number + 1] and draw < 0.7:  # rises early
            weak.append((end - 1, READY + rng.normal(0, 0.03, len(READY))))
        elif number and two_hands[number - 1] and draw < 0.8:  # stays, or lingers
            weak.append((end - 1, weak[-1][1]) if draw < 0.4 and weak else (start + 1, READY))
        elif returns or draw < 0.5:
            weak.append(((start + end) // 2, rests[1] + rng.normal(0, 0.02, len(REST))))
        if follows and spans[number + 1][0] - end > 0.6 * FPS:  # a pause: the hand sinks or waits
            waits = rests[0] if rng.random() < 0.6 else hand[-1]
            strong += [(end + 12, waits), (spans[number + 1][0] - 12, waits)]
    _begin_and_end(strong, weak, rests, spans, total, rng)
    inertia = rng.uniform(1.0, 3.0)
    hands = [_smooth(_between(keys, total, rng), inertia) for keys in (strong, weak)]
    still, sway = np.zeros(total), _sways(total, rng)
    return Motion(
        [], hands[0], hands[1], np.stack([still, still + 1], 1), still, still, sway, np.zeros((total, 2)), still
    )  # fmt: skip


def _played(
    form: Form, frames: int, spread: float, signer: Signer, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the strong hand along a sign, (frames, 14), and the weak one where it takes part."""
    side = 1.0 if signer.left_handed else -1.0
    names = list(MAP)
    path = tuple(np.array([MAP[names[rng.integers(len(names))]][0] * side, MAP[names[rng.integers(len(names))]][1]])
                 for _ in range(2))  # fmt: skip
    reach = (
        signer.reach * rng.lognormal(0, 0.25) * min(1.0, frames / (0.2 * FPS)) ** 0.7
    )  # short signs move less
    tau = np.linspace(0.0, 1.0, frames)
    hand = articulation.trajectory(form, tau, reach, path)  # type: ignore[arg-type]
    weak = articulation.weak_trajectory(form, tau, hand, reach)
    wander = rng.normal(0, signer.sloppiness, 2)
    for one, share in ((hand, 1.0), (weak, 0.7)):
        if one is not None:
            one[:, [U, Y, Z]] = _MIDDLE + (one[:, [U, Y, Z]] - _MIDDLE) * spread
            one[:, [U, Y]] += share * wander
            one[:, ANGLE] += rng.normal(0, 15)
    relaxed = rng.uniform(0, 0.35)
    hand[:, SHAPE] = (
        (1 - relaxed) * hand[:, SHAPE] + relaxed * REST[SHAPE] + rng.normal(0, 1, 8) * _SHAPE_NOISE
    )
    hand[:, LENGTH] *= rng.uniform(0.5, 1.0)
    return hand, weak


def _rest(rng: np.random.Generator) -> np.ndarray:
    """Returns a resting hand, in the lap or in front of the body."""
    hand = REST.copy()
    hand[[U, Y, Z]] = rng.uniform(-0.05, 0.4), rng.uniform(-1.0, -0.45), rng.uniform(0.05, 0.3)
    hand[ANGLE] = rng.uniform(90, 200) if rng.random() < 0.6 else -80.0
    hand[FLIP], hand[LENGTH] = rng.choice([-1.0, 1.0]), rng.uniform(0.5, 1.0)
    hand[SHAPE] += rng.normal(0, 1, 8) * _SHAPE_NOISE
    return hand


def _begin_and_end(
    strong: list[Key], weak: list[Key], rests: tuple[np.ndarray, np.ndarray], spans: Sequence[tuple[int, int]],
    total: int, rng: np.random.Generator,
) -> None:  # fmt: skip
    """Adds key frames before the first and after the last sign: from rest to rest, or cut out of running signing."""

    def before(least: float, most: float) -> int:
        return max(0, spans[0][0] - int(rng.uniform(least, most) * FPS))

    def after(least: float, most: float) -> int:
        return min(total - 1, spans[-1][1] + int(rng.uniform(least, most) * FPS))

    def elsewhere() -> np.ndarray:
        hand = articulation.base_hand(_form(rng))
        hand[[U, Y]] += rng.normal(0, 0.05, 2)
        return hand

    if rng.random() < 1 / 3:
        strong.insert(0, (before(0.2, 0.5), rests[0]))
        weak.insert(0, (before(0.2, 0.5), rests[1]))
    else:
        strong.insert(0, (before(0.1, 0.4), elsewhere()))
        weak.insert(0, (0, rests[1]))
    kind = rng.integers(3)
    if kind == 0:
        strong.append((after(0.2, 0.6), rests[0]))
    elif kind == 1:  # the last sign is held while it sinks
        strong.append((after(0.1, 0.5), strong[-1][1] - 0.05 * np.eye(len(CHANNELS))[Y]))
    else:
        strong.append((after(0.1, 0.4), elsewhere()))
    weak.append((after(0.2, 0.6) if kind == 0 else total - 1, rests[1]))
    for keys in (strong, weak):
        keys.sort(key=lambda key: key[0])


def _between(keys: Sequence[Key], total: int, rng: np.random.Generator) -> np.ndarray:
    """Returns hands (total, 14) through key frames, each transition in its own way."""
    hands = np.empty((total, len(CHANNELS)))
    hands[: keys[0][0] + 1], hands[keys[-1][0] :] = keys[0][1], keys[-1][1]
    for (start, a), (end, b) in pairwise(keys):
        if end <= start:
            hands[start] = b
            continue
        tau = (np.arange(start, min(end + 1, total)) - start) / (end - start)
        target = b.copy()
        target[ANGLE] = a[ANGLE] + (b[ANGLE] - a[ANGLE] + 180.0) % 360.0 - 180.0
        even = rng.uniform(0.4, 0.9)
        block = a + (target - a) * _jerk(np.clip(tau / rng.uniform(0.6, 1.0), 0, 1))[:, None]
        block[:, [U, Y, Z]] = (
            a[[U, Y, Z]] + (b - a)[[U, Y, Z]] * ((1 - even) * _jerk(tau) + even * tau)[:, None]
        )
        if end - start > 3:
            arc = np.sin(np.pi * tau) * min(1.0, abs(b[U] - a[U]) + abs(b[Y] - a[Y]))
            block[:, Y] -= rng.normal(0.04, 0.06) * arc
            block[:, U] += rng.normal(0.0, 0.05) * arc
        hands[start : start + len(block)] = block
    hands[:, ANGLE] = np.rad2deg(np.unwrap(np.deg2rad(hands[:, ANGLE])))
    return hands


def _jerk(tau: np.ndarray) -> np.ndarray:
    return tau**3 * (10 - 15 * tau + 6 * tau**2)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Returns (T, ...) values after a Gaussian over time of `sigma` frames."""
    reach = int(3 * sigma) + 1
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.concatenate([np.repeat(values[:1], reach, 0), values, np.repeat(values[-1:], reach, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)
    return windows @ (weights / weights.sum())


def _sways(total: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the head (T, 3), which turns, nods and comes nearer in slow waves."""
    time = np.arange(total) / FPS
    waves = [np.sin(2 * np.pi * (time * rng.uniform(0.2, 1.5) + rng.random())) for _ in range(3)]
    return np.stack(waves, 1) * rng.uniform(0, 0.6, 3)


def _annotated(signs_N2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the intervals as a person might set them: some 30 ms off, in order and without overlap."""
    signs = signs_N2 + rng.normal(0, 0.03, signs_N2.shape)
    signs[:, 0] = np.maximum.accumulate(np.maximum(signs[:, 0], 0))
    signs[1:, 0] = np.maximum(signs[1:, 0], signs_N2[:-1, 0] + 0.04)
    signs[:, 1] = np.maximum(signs[:, 1], signs[:, 0] + 0.04)
    signs[:-1, 1] = np.maximum(np.minimum(signs[:-1, 1], signs[1:, 0]), signs[:-1, 0] + 0.02)
    return signs


def _detected(track: KeypointTrack, rng: np.random.Generator) -> KeypointTrack:
    """Returns the track as a detector gives it of a turned picture: with jitter, drift, lost and confused hands."""
    points, seen_TK = track.points_TKC.astype(np.float64), track.seen_TK
    frames, half, clarity = len(points), track.width / 2, rng.uniform(0.3, 1.0)
    angle = rng.normal(0, 0.05)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flat = (points[..., :2] - half) @ turn.T * np.array([rng.uniform(0.8, 1.1), 1.0])
    flat += half * clarity * rng.uniform(0.001, 0.008) * rng.standard_normal(flat.shape)
    for names in (LEFT_HAND, RIGHT_HAND):
        hand = [track.names.index(name) for name in names]
        drift = _smooth(rng.standard_normal((frames, 1, 2)), rng.uniform(1, 4)) * rng.uniform(0, 0.02)
        wobble = _smooth(rng.standard_normal((frames, len(hand), 2)), rng.uniform(1, 3)) * rng.uniform(
            0, 0.015
        )
        flat[:, hand] += half * clarity * (drift + wobble)
        if rng.random() < 0.3:
            for _ in range(rng.integers(1, 4)):
                lost = _stretch(frames, 12, rng)
                seen_TK[lost, hand[0] : hand[-1] + 1] = False
        if rng.random() < 0.2:
            flat[_stretch(frames, 8, rng), hand[0] : hand[-1] + 1] += half * rng.normal(
                0, 0.03, (1, len(hand), 2)
            )
    points[..., :2] = flat + half
    return track.replace(
        points_TKC=np.where(seen_TK[..., None], points, 0).astype(np.float32),
        confidence_TK=seen_TK.astype(np.float32),
    )


def _stretch(frames: int, most: int, rng: np.random.Generator) -> slice:
    first = int(rng.integers(0, frames))
    return slice(first, first + int(rng.integers(1, most)))
