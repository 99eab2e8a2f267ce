"""Draws the signer: from motion to RGB frames, and to an H.264 file.

The figure is three-dimensional up to the joints (two-bone inverse kinematics bend the elbows) and is drawn as
shaded polygons, in twice the size and reduced, which smooths the edges. Hands are drawn a fifth too large and
with every finger outlined, so that handshapes stay apart on frames of 64 pixels. Camera and background are still.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from sage_scale.corpora.synthetic.animation import Motion
from sage_scale.corpora.synthetic.articulation import SHAPE, Z
from sage_scale.corpora.synthetic.signers import Colour, Signer
from sage_scale.corpora.synthetic.skeleton import (
    DROP,
    NECK_Y,
    SIZE,
    ZOOM,
    arm_joints,
    hand_joints,
    head_place,
    on_face,
    palm_of,
    picture_hand,
    trunk_sway,
)

_OVER = 2
_PIXELS = SIZE * _OVER / 2

Part = tuple[np.ndarray, Colour]
"""A polygon in every frame, (T, P, 2) in picture coordinates (x right, y up, -1 to 1), and its colour."""


def render(motion: Motion, signer: Signer) -> Iterator[np.ndarray]:
    """Yields the frames of a clip, each uint8 (SIZE, SIZE, 3)."""
    still = _background(signer)
    parts = _figure(motion, signer)
    colours = [colour for _, colour in parts]
    polygons = [_to_pixels(points) for points, _ in parts]
    picture = still.copy()
    draw = ImageDraw.Draw(picture)
    for frame in range(motion.frames):
        picture.paste(still)  # a tenth of the time of a copy
        for polygon, colour in zip(polygons, colours):
            draw.polygon(polygon[frame], fill=colour)
        yield np.asarray(picture.reduce(_OVER))


def write_h264(path: Path, frames: Iterable[np.ndarray], fps: int, size: int) -> int:
    """Encodes uint8 (size, size, 3) frames into an MP4 file, the same bytes for the same frames; returns their number.

    One encoder thread, because x264's bytes depend on the number of threads; the muxer leaves out clock and
    library version.
    """
    count = 0
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "21", "threads": "1", "g": "50"}
        reformatter = av.video.reformatter.VideoReformatter()
        for count, array in enumerate(frames, start=1):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            picture = reformatter.reformat(frame, format="yuv420p")
            picture.pts = count - 1
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return count


def _to_pixels(points: np.ndarray) -> list[list[float]]:
    pixels = np.empty_like(points)
    pixels[..., 0] = (ZOOM * points[..., 0] + 1) * _PIXELS
    pixels[..., 1] = (1 - ZOOM * points[..., 1] - DROP) * _PIXELS
    # Whole pixels of the large picture: the last bit of a sine, which differs between machines, rarely reaches them.
    return np.rint(pixels).reshape(len(points), -1).tolist()


def _background(signer: Signer) -> Image.Image:
    """Returns a plain wall, a little lighter around the signer."""
    side = SIZE * _OVER
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    light = 1.06 - 0.35 * (x**2 + y**2)[..., None]
    wall = np.clip(np.array(signer.background) * light, 0, 255).astype(np.uint8)
    return Image.fromarray(wall)


def _figure(motion: Motion, signer: Signer) -> list[Part]:
    """Returns all parts, back to front."""
    side = 1.0 if signer.left_handed else -1.0
    body = trunk_sway(motion, signer, side)
    head = head_place(motion, signer, body)
    strong = picture_hand(motion.strong, side, signer)
    weak = picture_hand(motion.weak, -side, signer)
    parts = _hair_behind(head, signer) + _trunk(body, signer) + _head(motion, head, signer)
    for hand, hand_side in ((weak, -side), (strong, side)):
        parts += _arm(hand, hand_side, body, signer) + _hand(hand, hand_side, signer)
    return parts


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(max(0, min(255, c * factor))) for c in colour)  # type: ignore[return-value]


def _ellipse(
    centre: np.ndarray, rx: np.ndarray | float, ry: np.ndarray | float, points: int = 14
) -> np.ndarray:
    turn = np.arange(points) * (2 * np.pi / points)
    rx, ry = np.broadcast_to(rx, len(centre)), np.broadcast_to(ry, len(centre))
    return np.stack(
        [centre[:, :1] + rx[:, None] * np.cos(turn), centre[:, 1:2] + ry[:, None] * np.sin(turn)], -1
    )


def _capsule(a: np.ndarray, b: np.ndarray, ra: np.ndarray | float, rb: np.ndarray | float) -> np.ndarray:
    """Returns a limb with round ends from a (T, 2) to b (T, 2), radii ra and rb: (T, 10, 2)."""
    along = b - a
    angle = np.arctan2(along[:, 1], along[:, 0])[:, None]
    ra, rb = np.broadcast_to(ra, len(a))[:, None], np.broadcast_to(rb, len(a))[:, None]
    back = angle + np.deg2rad([90, 135, 180, 225, 270])
    front = angle + np.deg2rad([-90, -45, 0, 45, 90])
    first = a[:, None] + np.stack([ra * np.cos(back), ra * np.sin(back)], -1)
    second = b[:, None] + np.stack([rb * np.cos(front), rb * np.sin(front)], -1)
    return np.concatenate([first, second], 1)


def _trunk(body: np.ndarray, signer: Signer) -> list[Part]:
    w, y = signer.shoulders, NECK_Y
    half = np.array([
        (0.08, y), (0.14, y - 0.02), (w - 0.1, y - 0.05), (w - 0.02, y - 0.07), (w + 0.05, y - 0.11),
        (w + 0.06, y - 0.2), (w + 0.0, y - 0.33), (w - 0.02, y - 0.5), (w - 0.045, y - 0.8),
        (w - 0.02, y - 1.05), (w, -1.1),
    ])  # fmt: skip
    outline = np.concatenate([half, (half * (-1, 1))[::-1]])
    neck = np.array(
        [(-0.075, y + 0.14), (-0.085, y), (-0.05, y - 0.06), (0.05, y - 0.06), (0.085, y), (0.075, y + 0.14)]
    )

    def placed(points: np.ndarray) -> np.ndarray:
        return points[None] + body[:, None]

    return [(placed(outline), signer.clothes), (placed(neck), _shade(signer.skin, 0.8))]


def _hair_behind(head: np.ndarray, signer: Signer) -> list[Part]:
    centre, rx, ry, turn = head[:, :2], head[:, 2], head[:, 3], head[:, 4]
    if signer.hair_style == "long":
        lower = np.column_stack([centre[:, 0], centre[:, 1] - 0.9 * ry])
        return [
            (_capsule(centre + np.array([0.0, 0.04]), lower, 1.22 * rx, 1.02 * rx), _shade(signer.hair, 0.8))
        ]
    if signer.hair_style == "bun":
        bun = np.column_stack([centre[:, 0] - 0.25 * rx * turn, centre[:, 1] + 1.12 * ry])
        return [(_ellipse(bun, 0.5 * rx, 0.38 * rx), signer.hair)]
    return []


def _head(motion: Motion, head: np.ndarray, signer: Signer) -> list[Part]:
    centre, rx, ry, turn = head[:, :2], head[:, 2], head[:, 3], head[:, 4]
    nod = motion.head[:, 1]
    skin = signer.skin

    def at(x: float | np.ndarray, y: float | np.ndarray) -> np.ndarray:
        return on_face(head, nod, x, y)

    parts: list[Part] = []
    if signer.hair_style != "bald":
        parts.append((_ellipse(centre + np.array([0.0, 0.035]), 1.1 * rx, 1.06 * ry), signer.hair))
    if signer.hair_style != "long":
        for s in (-1, 1):
            ear = np.column_stack([centre[:, 0] + s * rx * 0.98, centre[:, 1] - 0.05 * ry])
            parts.append((_ellipse(ear, 0.13 * rx, 0.2 * ry, 8), _shade(skin, 0.86)))
    face = np.column_stack([centre[:, 0], centre[:, 1] - 0.06 * ry])
    parts.append((_ellipse(face, 0.97 * rx, 0.96 * ry, 18), skin))
    jaw = np.column_stack([centre[:, 0] + 0.1 * rx * turn, centre[:, 1] - 0.45 * ry])
    parts.append((_ellipse(jaw, (0.76 + 0.1 * motion.cheeks) * rx, 0.55 * ry), skin))
    blush = np.clip(motion.cheeks, 0, 1)
    for s in (-1, 1):
        parts.append((_ellipse(at(s * 0.62, -0.3), 0.36 * rx * blush, 0.26 * ry * blush, 10),
                      (min(255, skin[0] + 14), int(skin[1] * 0.72), int(skin[2] * 0.72))))  # fmt: skip
    opened = 1 - 0.85 * motion.blink
    squint = 1 - 0.35 * np.clip(-motion.brows, 0, 1) + 0.35 * np.clip(motion.brows, 0, 1)
    for s in (-1, 1):
        eye = at(s * 0.42, 0.1)
        parts.append((_ellipse(eye, 0.21 * rx, 0.1 * ry * opened * squint, 8), (248, 248, 246)))
        pupil = eye + np.column_stack([0.08 * rx * motion.gaze[:, 0], 0.03 * ry * motion.gaze[:, 1]])
        parts.append((_ellipse(pupil, 0.1 * rx, 0.095 * ry * opened * squint, 8), (34, 28, 28)))
        height = 0.3 + 0.2 * np.clip(motion.brows, 0, 1) + 0.08 * np.clip(motion.brows, -1, 0)
        slope = 0.09 * np.clip(motion.brows, -1, 0)
        inner, outer = at(s * 0.18, height + slope), at(s * 0.64, height - slope * 0.4)
        brow = _shade(signer.hair, 0.75) if signer.hair_style != "bald" else (52, 38, 32)
        parts.append((_capsule(inner, outer, 0.075 * rx, 0.05 * rx), brow))
    parts.append((_capsule(at(0.0, 0.02), at(0.06, -0.2), 0.05 * rx, 0.1 * rx), _shade(skin, 0.86)))
    width, gap = 0.36 * rx * motion.mouth[:, 1], 0.2 * ry * motion.mouth[:, 0]
    mouth = at(0.0, -0.5)
    parts.append((_ellipse(mouth, width, gap + 0.055 * ry, 12), (172, 66, 68)))
    parts.append((_ellipse(mouth, 0.78 * width, np.maximum(gap - 0.01, 0.008), 10), (70, 14, 22)))
    if signer.hair_style != "bald":
        fringe = np.linspace(np.deg2rad(15), np.deg2rad(165), 9)
        top = np.stack([centre[:, :1] + 1.04 * rx[:, None] * np.cos(fringe),
                        centre[:, 1:2] + ry[:, None] * (0.12 + 0.94 * np.sin(fringe))], -1)  # fmt: skip
        low = np.stack([centre[:, :1] + (0.9 * rx[:, None]) * np.cos(fringe[::-1]),
                        centre[:, 1:2] + ry[:, None] * (0.2 + 0.44 * np.sin(fringe[::-1]) ** 0.7
                                                        - 0.12 * nod[:, None])], -1)  # fmt: skip
        parts.append((np.concatenate([top, low], 1), signer.hair))
    else:
        parts.append((_capsule(at(-0.2, 0.62), at(0.1, 0.68), 0.07 * rx, 0.05 * rx), _shade(skin, 1.08)))
    return parts


def _arm(hand: np.ndarray, side: float, body: np.ndarray, signer: Signer) -> list[Part]:
    """Returns upper arm, forearm and cuff from the shoulder to the wrist of a hand."""
    shoulder, elbow, wrist = arm_joints(hand, side, body, signer)
    sleeve = signer.clothes
    bright = sum(sleeve) > 420
    light = _shade(sleeve, 1.14 if bright else 1.4)
    upper, dark = _shade(sleeve, 1.06 if bright else 1.12), _shade(sleeve, 0.78)
    near = 1 + 0.12 * hand[:, Z]
    a, b, c = shoulder[:, :2], elbow[:, :2], wrist[:, :2]
    parts: list[Part] = [
        (_capsule(a, b, 0.102, 0.092), dark),
        (_capsule(a, b, 0.092, 0.082), upper),
    ]
    if signer.bare_arms:
        half = 0.35 * c + 0.65 * b
        parts += [(_capsule(b, c, 0.08, 0.056 * near), _shade(signer.skin, 0.62)),
                  (_capsule(b, c, 0.071, 0.047 * near), _shade(signer.skin, 0.9)),
                  (_capsule(b, half, 0.092, 0.086), light)]  # fmt: skip
    else:
        parts += [(_capsule(b, c, 0.092, 0.070 * near), dark), (_capsule(b, c, 0.082, 0.060 * near), light)]
    return parts


def _hand(hand: np.ndarray, side: float, signer: Signer) -> list[Part]:
    """Returns palm and fingers; every finger has a dark outline and its own shade."""
    palm = palm_of(hand, side, signer)
    joints = hand_joints(hand, side, signer)
    scale = palm.scale
    _, index, middle, ring, pinky, *_ = hand[:, SHAPE].T
    skin, shadow, edge = signer.skin, _shade(signer.skin, 0.88), _shade(signer.skin, 0.42)

    def finger(places: tuple[np.ndarray, np.ndarray, np.ndarray], width: float, colour: Colour) -> list[Part]:
        outer, inner = width * scale, (width - 0.011) * scale
        return [(_bent(*places, outer), edge), (_bent(*places, inner), colour)]

    palm_shape = [(-0.105, -0.05), (-0.03, -0.083), (0.075, -0.085), (0.098, -0.06), (0.105, 0.0),
                  (0.098, 0.06), (0.075, 0.085), (-0.03, 0.083), (-0.105, 0.05)]  # fmt: skip
    rim = np.stack([palm.point(a * 1.08, b * 1.13) for a, b in palm_shape], 1)
    surface = np.stack([palm.point(a, b) for a, b in palm_shape], 1)
    fingers: list[Part] = []
    for number, tone in ((3, 0.90), (2, 0.96), (1, 1.0), (0, 1.05)):
        fingers += finger(joints.fingers[number], 0.029, _shade(skin, tone))
    thumb_parts = finger(joints.thumb, 0.033, _shade(skin, 1.08))
    # Knuckles of folded fingers: a dark fold over the palm where they lie.
    folded = np.clip(1 - 2.2 * (index + middle + ring + pinky) / 4, 0, 1)
    fold = _capsule(
        palm.point(0.035, -0.065), palm.point(0.035, 0.06), 0.03 * scale * folded, 0.03 * scale * folded
    )
    return [(rim, edge), (surface, shadow), *fingers, (fold, _shade(skin, 0.66)), *thumb_parts]


def _bent(base: np.ndarray, mid: np.ndarray, tip: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Returns a finger of two joints as one polygon, (T, 9, 2)."""

    def normal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        along = b - a
        along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
        return np.column_stack([-along[:, 1], along[:, 0]]) * radius[:, None]

    n1, n2 = normal(base, mid), normal(mid, tip)
    joint = 0.5 * (n1 + n2)
    ahead = np.column_stack([n2[:, 1], -n2[:, 0]])
    return np.stack([base + n1, mid + joint, tip + 0.9 * n2, tip + 0.55 * n2 + 0.8 * ahead, tip + ahead,
                     tip - 0.55 * n2 + 0.8 * ahead, tip - 0.9 * n2, mid - joint, base - n1], 1)  # fmt: skip
