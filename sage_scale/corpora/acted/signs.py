"""Invents a sign for any gloss and a person for any signer, each by its name and the seed alone.

A sign has the parameters of the synthetic lexicon (handshape, place, movement, hands, orientation: some 130,000 forms),
and a nuance of place, direction and extent, so that two glosses with one form by chance still differ, as they do in
their mouthing. So a gloss has the same sign in every table, and no two glosses have the same one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log
from random import Random

import numpy as np

from sage_scale.corpora.synthetic.animation import Motion, Span, Timing, draw_timing, play
from sage_scale.corpora.synthetic.articulation import ORIENTATIONS, PLACES, SHAPES
from sage_scale.corpora.synthetic.grammar import Sign
from sage_scale.corpora.synthetic.lexicon import Entry, Form, Nuance
from sage_scale.corpora.synthetic.signers import Colour, Signer

MOVEMENTS = (
    "up", "down", "in", "out", "forward", "back", "arc", "circle", "circles", "tap", "shake", "zigzag", "twist",
    "rain", "open", "close", "nod", "hold",
)  # fmt: skip
"""Movements that need no place of a map."""
HANDS = ("one", "one", "one", "sym", "sym", "alt", "base")
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
FRAMES = (1.6, 2.1, 4.6, 12.0, 16.0)
"""Quantiles of the signs' typical lengths, frames at 25 a second. With the variation of animation.py signs last 80, 180
and 500 ms (p10, 50, 90), as measured on real DGS."""
VARIANTS = 0.2
"""Share of the signs that dialect B signs differently."""
_SKIN = ((250, 206, 180), (240, 190, 164), (222, 170, 132), (198, 140, 104), (172, 118, 84), (136, 90, 64))
_HAIR = ((26, 22, 22), (58, 40, 30), (92, 58, 34), (150, 62, 30), (214, 170, 92), (120, 116, 112))
_STYLES = ("short", "long", "bun", "bald")


@dataclass(frozen=True)
class InventedSign:
    """A sign, and its typical length in frames."""

    entry: Entry
    frames: float


@functools.lru_cache(maxsize=1 << 16)
def sign_of(gloss: str, seed: int) -> InventedSign:
    """Returns the sign of a gloss; a pure function of its arguments."""
    rng = Random(f"sign/{seed}/{gloss}")
    parameters: dict[str, Sequence[str]] = {
        "handshape": tuple(SHAPES), "place": tuple(PLACES), "movement": MOVEMENTS, "hands": HANDS,
        "orientation": tuple(ORIENTATIONS),
    }  # fmt: skip
    form = Form(**{name: rng.choice(values) for name, values in parameters.items()}, length="medium")
    variant = None
    if rng.random() < VARIANTS:
        name = rng.choice(tuple(parameters))
        others = [value for value in parameters[name] if value != getattr(form, name)]
        variant = replace(form, **{name: rng.choice(others)})
    shift = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    nuance = Nuance(shift, rng.uniform(-14.0, 14.0), rng.uniform(0.75, 1.3))
    frames = exp(float(np.interp(rng.random(), QUANTILES, [log(one) for one in FRAMES])))
    return InventedSign(Entry(gloss, form, variant, nuance), frames)


@functools.lru_cache(maxsize=1 << 12)
def signer_of(name: str, seed: int) -> Signer:
    """Returns the person that acts a signer of the table; a pure function of its arguments."""
    rng = Random(f"signer/{seed}/{name}")

    def colour(darkest: int, lightest: int) -> Colour:
        return rng.randint(darkest, lightest), rng.randint(darkest, lightest), rng.randint(darkest, lightest)

    return Signer(
        name, rng.choice(_SKIN), rng.choice(_HAIR), rng.choice(_STYLES), colour(20, 90), colour(150, 220),
        tempo=min(max(rng.lognormvariate(0.0, 0.15), 0.75), 1.33), left_handed=rng.random() < 0.12,
        dialect="B" if rng.random() < 0.35 else "A", shoulders=rng.uniform(0.31, 0.37), arm=rng.uniform(0.43, 0.475),
        head=rng.uniform(0.96, 1.04), hand=rng.uniform(0.96, 1.06), reach=rng.uniform(0.9, 1.08),
        sloppiness=rng.uniform(0.015, 0.03), bare_arms=rng.random() < 0.15, lean=rng.uniform(-0.02, 0.02),
    )  # fmt: skip


def act(
    glosses: Sequence[str],
    signer: Signer,
    seed: int,
    rng: Random,
    frames: int = 0,
    gloss_frames: Sequence[int] = (),
) -> Motion:
    """Returns the motion of a sentence; a pure function of its arguments.

    `frames` is the clip's length, 0 where unknown; signs and gaps are stretched to it, at most by 2.5, and a clip too
    short for its signs gets `least_frames`. `gloss_frames` are the lengths of the signs themselves, where known.
    """
    signs = [Sign(gloss) for gloss in glosses]
    found = [sign_of(gloss, seed) for gloss in glosses]
    entries = [sign.entry for sign in found]
    timing = draw_timing(signs, entries, [sign.frames for sign in found], signer, rng)
    if gloss_frames:
        timing = replace(timing, signs=[float(max(1, length)) for length in gloss_frames])
    spans, total = _placed(signs, timing, frames)
    return play(spans, entries, total, signer, rng)


LEAST_SIGN, LEAST_GAP, LEAST_LEAD = 2, 1, 4
MOST_STRETCH = 2.5


def least_frames(signs: int) -> int:
    """Returns the frames of the shortest clip of so many signs."""
    return signs * (LEAST_SIGN + LEAST_GAP) + 2 * LEAST_LEAD


def _placed(signs: Sequence[Sign], timing: Timing, frames: int) -> tuple[list[Span], int]:
    signing, leads = sum(timing.signs) + sum(timing.gaps), timing.lead_in + timing.lead_out
    lead_in, stretch = timing.lead_in, 1.0
    total = max(round(leads + signing), least_frames(len(signs)))
    if frames:
        total = max(frames, least_frames(len(signs)))
        # Cut clips begin and end near their signs: the rests take a quarter at most, and all that no stretch fills.
        rests = max(min(leads, 0.25 * total), 2.0 * LEAST_LEAD)
        stretch = min((total - rests) / signing, MOST_STRETCH)
        rests = total - stretch * signing
        lead_in = rests * timing.lead_in / leads
    now, times = lead_in, []
    for length, gap in zip(timing.signs, [*timing.gaps, 0.0]):
        times.append((round(now), round(now + stretch * length)))
        now += stretch * (length + gap)
    spans: list[Span] = []
    first = LEAST_LEAD
    for number, (sign, (start, end)) in enumerate(zip(signs, times)):
        # The signs that follow need their frames, too.
        latest = total - LEAST_LEAD - (LEAST_SIGN + LEAST_GAP) * (len(signs) - 1 - number)
        start = min(max(start, first), latest - LEAST_SIGN)
        end = min(max(end, start + LEAST_SIGN), latest)
        spans.append(Span(sign, start, end))
        first = end + LEAST_GAP
    return spans, total
