"""The phonological parameters in space: handshapes, places, orientations and movements as numbers.

Space is the signer's: u to the side of the strong hand, y up, z towards the viewer; lengths in half frame
heights, the chin near y = 0.37. A hand is a vector of `HAND` channels, so that any two hands can be blended.
"""

from __future__ import annotations

import numpy as np

from sage_scale.corpora.synthetic.lexicon import Form

CHANNELS = (
    "u", "y", "z", "angle", "flip", "length", "thumb", "index", "middle", "ring", "pinky", "spread", "curl",
    "thumb_angle",
)  # fmt: skip
"""A hand: palm centre (u, y, z); direction of the fingers in degrees (90 is up, 180 across to the other side);
flip 1 shows the palm, -1 the back; length foreshortens the fingers; extensions of the five fingers; fan, bend of
the finger tips, and thumb direction in degrees."""
U, Y, Z, ANGLE, FLIP, LENGTH = range(6)
SHAPE = slice(6, 14)

SHAPES = {
    #           thumb index middle ring pinky spread curl thumb_angle
    "flat":    (0.75, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 18.0),
    "fist":    (0.55, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -20.0),
    "spread":  (1.0, 1.0, 1.0, 1.0, 1.0, 17.0, 0.0, 62.0),
    "index":   (0.4, 1.15, 0.0, 0.0, 0.0, 0.0, 0.0, -20.0),
    "two":     (0.4, 1.1, 1.1, 0.0, 0.0, 26.0, 0.0, -25.0),
    "three":   (1.0, 1.1, 1.1, 0.0, 0.0, 20.0, 0.0, 70.0),
    "four":    (0.3, 1.0, 1.0, 1.0, 1.0, 15.0, 0.0, -40.0),
    "claw":    (0.9, 0.95, 0.95, 0.95, 0.95, 16.0, 62.0, 60.0),
    "o":       (0.95, 0.85, 0.8, 0.8, 0.75, -4.0, 105.0, 40.0),
    "c":       (1.0, 1.1, 1.1, 1.05, 1.0, 0.0, 75.0, 78.0),
    "f":       (0.8, 0.6, 1.05, 1.05, 1.0, 14.0, 20.0, 30.0),
    "l":       (1.15, 1.15, 0.0, 0.0, 0.0, 0.0, 0.0, 82.0),
    "y":       (1.15, 0.0, 0.0, 0.0, 1.15, 8.0, 0.0, 82.0),
    "pinky":   (0.35, 0.0, 0.0, 0.0, 1.25, 4.0, 0.0, -25.0),
    "hook":    (0.4, 1.0, 0.0, 0.0, 0.0, 0.0, 95.0, -20.0),
    "beak":    (0.85, 0.8, 0.8, 0.8, 0.75, -8.0, 28.0, 22.0),
    "horns":   (0.4, 1.1, 0.0, 0.0, 1.1, 6.0, 0.0, -20.0),
    "thumb":   (1.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 84.0),
}  # fmt: skip

PLACES = {
    "forehead": (0.10, 0.80, 0.25), "temple": (0.27, 0.76, 0.15), "cheek": (0.25, 0.56, 0.2),
    "mouth": (0.08, 0.45, 0.3), "chin": (0.06, 0.33, 0.25), "neck": (0.10, 0.22, 0.2),
    "shoulder": (-0.24, 0.14, 0.25), "chest": (0.10, -0.02, 0.28), "belly": (0.12, -0.36, 0.28),
    "center": (0.16, -0.22, 0.45), "side": (0.50, 0.08, 0.4), "high": (0.50, 0.48, 0.35),
    "low": (0.36, -0.52, 0.4), "contra": (-0.28, -0.16, 0.35),
}  # fmt: skip

_CENTRE = np.array([0.18, 0.1, 0.3])
"""Signing contracts a little towards the middle of signing space."""

ORIENTATIONS = {  # angle, flip, length
    "up": (90.0, 1.0, 1.0), "back": (90.0, -1.0, 1.0), "in": (178.0, -1.0, 1.0),
    "out": (15.0, 1.0, 1.0), "down": (-90.0, -1.0, 1.0), "fwd": (118.0, -1.0, 0.5),
}  # fmt: skip

MAP = {"nord": (0.0, 0.42), "süd": (0.0, -0.36), "ost": (0.46, 0.0), "west": (-0.46, 0.0), "": (0.0, 0.0)}
"""Places of the map as the viewer sees them: x to the right, y up, from the centre of signing space."""

REST = np.array([0.30, -0.84, 0.12, -80.0, 1.0, 1.0, 0.7, 0.8, 0.8, 0.8, 0.75, 2.0, 25.0, 20.0])
"""The hand hangs down, at the lower edge of the picture."""
READY = np.array([0.30, -0.66, 0.2, 150.0, -1.0, 0.85, 0.7, 0.8, 0.8, 0.8, 0.75, 4.0, 35.0, 25.0])
"""The weak hand waits for a sign that needs it."""

AMPLITUDE = 0.40
"""Extent of a straight movement."""


def base_hand(form: Form) -> np.ndarray:
    """Returns the strong hand of a form at rest in its place, (14,)."""
    hand = np.empty(len(CHANNELS))
    hand[[U, Y, Z]] = _CENTRE + 0.92 * (np.array(PLACES[form.place]) - _CENTRE)
    hand[[ANGLE, FLIP, LENGTH]] = ORIENTATIONS[form.orientation]
    hand[SHAPE] = SHAPES[form.handshape]
    if form.hands in ("sym", "alt") and hand[U] < 0.2:
        hand[U] = 0.2 if form.place in ("forehead", "mouth", "chin") else 0.24  # room for two
    if form.hands == "base":
        hand[[U, Y]] = (0.06, max(hand[Y], -0.2)) if form.place != "side" else (0.14, 0.06)
    return hand


def resting_hand(form: Form) -> np.ndarray:
    """Returns the weak hand under a sign of the kind `base`: flat, palm up, pointing across, (14,)."""
    hand = np.empty(len(CHANNELS))
    hand[[U, Y, Z]] = (0.14, -0.36 if form.place != "side" else -0.22, 0.3)
    hand[[ANGLE, FLIP, LENGTH]] = (168.0, 1.0, 1.0)
    hand[SHAPE] = SHAPES["flat"]
    return hand


def trajectory(form: Form, tau: np.ndarray, reach: float, path: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns the strong hand along a sign, (n, 14), at times `tau` in 0..1.

    `path` are offsets (u, y) from and to which an inflected sign moves; `reach` scales the movement.
    """
    hand = np.repeat(base_hand(form)[None], len(tau), axis=0)
    a = AMPLITUDE * reach
    ramp = _ease(tau) - 0.5
    turn = 2 * np.pi * tau
    sign = 1 if form.movement in ("up", "out", "forward") else -1
    match form.movement:
        case "up" | "down":
            hand[:, Y] += a * ramp * sign
        case "in" | "out":
            hand[:, U] += a * ramp * sign
        case "forward" | "back":
            hand[:, Z] += sign * 0.7 * a * ramp
            hand[:, Y] += sign * -0.55 * a * ramp
            hand[:, U] += sign * 0.35 * a * ramp
            hand[:, LENGTH] *= 1 - 0.35 * (0.5 + sign * ramp)
        case "arc":
            hand[:, U] += -0.5 * a * np.cos(np.pi * _ease(tau)) * (-1 if form.hands == "sym" else 1)
            hand[:, Y] += 0.55 * a * (np.sin(np.pi * _ease(tau)) - 0.5)
        case "circle":
            hand[:, U] += 0.34 * a * np.sin(turn)
            hand[:, Y] += 0.34 * a * np.cos(turn)
        case "circles":
            hand[:, U] += 0.28 * a * np.sin(2 * turn)
            hand[:, Y] += 0.28 * a * np.cos(2 * turn)
        case "tap":
            hand[:, Y] -= 0.22 * a * (np.abs(np.sin(turn)) - 0.5)
            hand[:, Z] -= 0.2 * a * np.abs(np.sin(turn))
        case "shake":
            hand[:, U] += 0.24 * a * np.sin(2 * turn)
            hand[:, ANGLE] -= 12 * np.sin(2 * turn)
        case "zigzag":
            hand[:, Y] -= 0.9 * a * (tau - 0.5)
            hand[:, U] += 0.2 * a * np.sin(2.5 * turn)
        case "twist":
            hand[:, ANGLE] += 38 * np.sin(1.5 * turn)
            hand[:, FLIP] *= np.cos(1.5 * turn)
        case "rain":
            hand[:, Y] -= 0.8 * a * (np.mod(2 * tau, 1.0001) - 0.5)
        case "open" | "close":
            fist = np.array(SHAPES["fist" if form.movement == "close" else "beak"])
            closed = 1 - _ease(np.clip(1.6 * tau - 0.3, 0, 1))
            closed = (1 - closed if form.movement == "close" else closed)[:, None]
            opened = np.array(SHAPES["spread" if form.handshape in ("beak", "o") else form.handshape])
            hand[:, SHAPE] = closed * fist + (1 - closed) * opened
            hand[:, Y] += 0.15 * a * ramp * (-1 if form.movement == "close" else 1)
        case "nod":
            hand[:, ANGLE] += 45 * np.sin(np.pi * tau)
            hand[:, Y] -= 0.3 * a * ramp
        case "east" | "west" | "path":
            start, end = path
            hand[:, [U, Y]] += start + (end - start) * _ease(tau)[:, None]
    return hand


def weak_trajectory(form: Form, tau: np.ndarray, strong: np.ndarray, reach: float) -> np.ndarray | None:
    """Returns the weak hand beside the strong one, (n, 14) with u to its own side, or None where it rests."""
    if form.hands == "sym":
        weak = strong.copy()
        if form.movement == "path":  # over the map both hands move the same way, not mirrored
            weak[:, U] = 2 * base_hand(form)[U] - strong[:, U]
        return weak
    if form.hands == "alt":
        if form.movement == "hold":  # numbers above five: the weak hand shows five, side by side
            hand = strong.copy()
            hand[:, SHAPE] = SHAPES["spread"]
            hand[:, [U, FLIP]] += (0.06, 0.0)
            return hand
        centre = np.zeros(2)
        return trajectory(form, 1 - tau, reach, (centre, centre))
    if form.hands == "base":
        return np.repeat(resting_hand(form)[None], len(tau), axis=0)
    return None


def _ease(tau: np.ndarray) -> np.ndarray:
    """Returns a minimum-jerk course from 0 to 1, softened towards linear: signs do not stop at their ends."""
    smooth = tau**3 * (10 - 15 * tau + 6 * tau**2)
    return 0.6 * smooth + 0.4 * tau
