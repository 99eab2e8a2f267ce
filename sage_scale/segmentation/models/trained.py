"""Our own segmenter on keypoints: dilated convolutions over time, as small as one CPU core wants it.

A folder has `model.safetensors` and `config.json`; `sage-scale segment train` writes it (training.py). The input is the
signer at 25 frames a second as nose, shoulders, elbows, wrists and both hands, of any extractor that has them, without
depth and without face: places by the shoulders, hands by their wrists, and how fast these change. Several networks that
saw different parts of the data, each of the track and of its mirror image, are averaged.

A network sees `reach` frames on either side and no more. Pieces of a long track are computed with that surrounding, so
that no result depends on where a piece ends, and memory is that of one piece.

Shape letters beside the package's: F = features of a frame, M = networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.errors import CheckpointError
from sage_scale.keypoints.cleaning import normalised, opposite
from sage_scale.keypoints.track import LEFT_HAND, RIGHT_HAND, KeypointTrack
from sage_scale.segmentation.tagger import Probabilities, fingerprint
from sage_scale.vision.pretrained_weights import load_exactly

FPS = 25.0
"""Frame rate of the networks' input."""
POINTS = (
    "body.nose", "body.left_shoulder", "body.right_shoulder", "body.left_elbow", "body.right_elbow",
    "body.left_wrist", "body.right_wrist", *LEFT_HAND, *RIGHT_HAND,
)  # fmt: skip
"""The 49 points of the input."""
BODY, LEFT, RIGHT = slice(0, 7), slice(7, 28), slice(28, 49)
_OPPOSITE = [POINTS.index(opposite(name)) for name in POINTS]
_FINGERS = slice(1, 21)
_TIPS = [3, 7, 11, 15, 19]
"""Finger tips among the 20 points of a hand without its wrist."""
_KNUCKLES = [4, 8, 12, 16]
_LARGEST = 10.0
"""A feature beyond is a wrong detection and is cut off there."""
_EDGE = 3
"""Frames on either side that velocities and accelerations need."""
_PIECE = 2000


@dataclass(frozen=True, eq=False)
class SignerPoints:
    """The 49 points by the shoulders at the source's rate, without gaps."""

    values_TKC: np.ndarray
    """float32 (T, 49, 2): shoulder widths from the middle of the shoulders; a point never seen is at the middle."""
    seen_TK: np.ndarray
    """float32 (T, 49): 1 where the point was seen, 0 where it is filled in from its nearest frames."""
    fps: float

    @classmethod
    def of(cls, track: KeypointTrack) -> SignerPoints:
        """Returns the points of a track in any layout; names that it lacks are points never seen."""
        chosen = track.select(POINTS)
        flat = np.concatenate([chosen.points_TKC[..., :2], np.zeros_like(chosen.points_TKC[..., :1])], -1)
        chosen = normalised(dataclasses.replace(chosen, points_TKC=flat, has_z=False))
        values, seen_TK = chosen.points_TKC[..., :2].copy(), chosen.seen_TK
        frames = np.arange(len(values))
        for point in np.flatnonzero(seen_TK.any(0) & ~seen_TK.all(0)):
            seen_T = seen_TK[:, point]
            for axis in (0, 1):
                values[:, point, axis] = np.interp(frames, frames[seen_T], values[seen_T, point, axis])
        return cls(values, seen_TK.astype(np.float32), track.fps)

    def at(self, times_S: np.ndarray) -> SignerPoints:
        """Returns the points at these times in seconds, S >= 0: linear in time, constant beyond the ends."""
        last = len(self.values_TKC) - 1
        places_S = np.clip(times_S * self.fps, 0, last)
        first_S = np.minimum(places_S.astype(int), max(last - 1, 0))
        share_S = (places_S - first_S).astype(np.float32)[:, None, None]
        values = (
            self.values_TKC[first_S] * (1 - share_S)
            + self.values_TKC[np.minimum(first_S + 1, last)] * share_S
        )
        return SignerPoints(values, self.seen_TK[np.rint(places_S).astype(int)], FPS)

    def mirrored(self) -> SignerPoints:
        """Returns the mirror image: a left-handed signer becomes right-handed."""
        values = self.values_TKC[:, _OPPOSITE] * np.array([-1, 1], np.float32)
        return SignerPoints(values, self.seen_TK[:, _OPPOSITE], self.fps)


def features(points: SignerPoints) -> np.ndarray:
    """Returns the networks' input, float32 (T, F), of points at 25 frames a second.

    Places of the body and of the wrists, shapes of the hands (from their wrists, three times as large), whether a hand
    was seen, the changes of all of them to the frame before; of each hand also speed, change of shape and acceleration,
    and how far each finger is stretched; the distance of the wrists.
    """
    values, frames = points.values_TKC, len(points.values_TKC)
    wrists = [values[:, hand.start] for hand in (LEFT, RIGHT)]
    hands = [
        3 * (values[:, hand][:, _FINGERS] - wrist[:, None]) for hand, wrist in zip((LEFT, RIGHT), wrists)
    ]
    place = np.concatenate([values[:, BODY].reshape(frames, -1), *wrists], 1)
    shape = np.concatenate([hand.reshape(frames, -1) for hand in hands], 1)
    seen = [points.seen_TK[:, hand].mean(1, keepdims=True) for hand in (LEFT, RIGHT)]
    parts = [place, shape, *seen, _steps(place) * 0.2 * FPS, _steps(shape) * 0.1 * FPS]
    for wrist, hand in zip(wrists, hands):
        speed = np.linalg.norm(_slope(wrist), axis=1, keepdims=True)
        change = np.linalg.norm(_slope(hand), axis=2).mean(1, keepdims=True)
        size = np.linalg.norm(hand[:, _KNUCKLES], axis=2).mean(1, keepdims=True) + 0.15
        stretched = np.linalg.norm(hand[:, _TIPS], axis=2) / size
        parts += [
            np.log1p(speed),
            np.log1p(change),
            _slope(speed) / 20,
            stretched - 1.5,
            _slope(stretched) / 5,
        ]
    parts.append(np.linalg.norm(wrists[0] - wrists[1], axis=1, keepdims=True) - 1)
    return np.clip(np.concatenate(parts, 1), -_LARGEST, _LARGEST).astype(np.float32)


FEATURES = 18 + 80 + 2 + 98 + 2 * (3 + 10) + 1
"""F, the width of `features`."""


def _steps(values: np.ndarray) -> np.ndarray:
    return np.diff(values, axis=0, prepend=values[:1])


def _slope(values: np.ndarray) -> np.ndarray:
    """Returns the change a second, central differences."""
    return np.gradient(values, axis=0) * FPS if len(values) > 1 else np.zeros_like(values)


class Network(nn.Module):
    """Residual blocks of dilated convolutions with three taps over time, pre-norm; (B, T, F) -> logits of O, I, B."""

    def __init__(
        self, width: int, dilations: Sequence[int], dropout: float = 0.0, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.width, self.dilations = width, tuple(dilations)
        self.drop, self.input_drop = nn.Dropout(dropout), nn.Dropout(input_dropout)
        self.project = nn.Linear(FEATURES, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in dilations)
        self.taps = nn.ModuleList(nn.Linear(3 * width, width) for _ in dilations)
        self.mixes = nn.ModuleList(nn.Linear(width, width) for _ in dilations)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    @property
    def reach(self) -> int:
        """Frames on either side that a frame's result depends on, velocities included."""
        return sum(self.dilations) + _EDGE

    def forward(self, x_BTF: Tensor, real_BT: Tensor) -> Tensor:
        """Returns (B, T, 3). Frames where `real_BT` is 0 are padding: 0 to their neighbours, like those beyond ends."""
        x_BTD = self.project(self.input_drop(x_BTF))
        real_BT1, frames = real_BT[..., None], x_BTF.shape[1]
        for dilation, norm, taps, mix in zip(self.dilations, self.norms, self.taps, self.mixes):
            padded = F.pad(norm(x_BTD) * real_BT1, (0, 0, dilation, dilation))
            seen = [padded[:, tap * dilation : tap * dilation + frames] for tap in range(3)]
            x_BTD = x_BTD + self.drop(mix(F.gelu(taps(torch.cat(seen, -1)))))
        return self.head(self.norm(x_BTD))


class TrainedTagger:
    """Networks of one configuration, averaged; a KeypointTagger."""

    name = "trained"
    decoding = "peaks"

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
        """Raises CheckpointError where configuration or weights (from `path`) do not fit."""
        width, dilations, members = (config.get(key) for key in ("width", "dilations", "networks"))
        sizes = [width, members, *(dilations if isinstance(dilations, list) else [None])]
        if (
            not all(type(size) is int and 0 < size <= 4096 for size in sizes)
            or len(sizes) > 66
            or sizes[1] > 64
        ):
            raise CheckpointError(
                f"{path} is no model of `sage-scale segment train`: its config.json needs whole numbers width, "
                "networks and a list dilations"
            )
        parts = [name.split(".") for name in weights]
        members = {part[1] for part in parts if part[0] == "networks" and len(part) > 2}
        blocks = {part[3] for part in parts if part[1:3] == ["0", "taps"] and len(part) > 3}
        bias = weights.get("networks.0.project.bias")
        if [len(members), len(blocks)] != [sizes[1], len(sizes) - 2] or bias is None or len(bias) != sizes[0]:
            raise CheckpointError(f"{path}: config.json gives other sizes than the tensors have")
        limits = [config.get(key) for key in ("decoding_threshold", "decoding_gap_s")]
        if limits != [None, None] and not all(type(x) is float and 0 < x <= 1 for x in limits):
            raise CheckpointError(
                f"{path}: decoding_threshold and decoding_gap_s are no numbers above 0, at most 1"
            )
        self.limits = None if limits == [None, None] else tuple(limits)
        """Threshold and gap (s) that its training chose; of the package's model none, the recipe's are for it."""
        self.networks = [Network(sizes[0], sizes[2:]).eval() for _ in range(sizes[1])]
        module = nn.ModuleDict({"networks": nn.ModuleList(self.networks)})
        load_exactly(module, weights, path)
        about = f"trained {sizes}" + (f" {limits}" if self.limits else "")
        self.fingerprint = fingerprint(module.state_dict(), about)

    def __call__(self, track: KeypointTrack) -> Probabilities:
        """Returns the probabilities of a track, at 25 frames a second; of an empty track none."""
        total = int(np.ceil(len(track) * FPS / track.fps - 1e-6))
        p_T3 = np.zeros((total, 3), np.float32)
        if total:
            points = SignerPoints.of(track)
            for start in range(0, total, _PIECE):
                p_T3[start : start + _PIECE] = self._piece(points, start, min(start + _PIECE, total), total)
        return Probabilities(sign_T3=p_T3, sentence_T3=None, fps=FPS)

    @torch.no_grad()
    def _piece(self, points: SignerPoints, start: int, end: int, total: int) -> np.ndarray:
        reach = max(network.reach for network in self.networks)
        first, last = max(0, start - reach), min(total, end + reach)
        here = points.at(np.arange(first, last) / FPS)
        x_BTF = torch.from_numpy(np.stack([features(here), features(here.mirrored())]))
        views = [network(x_BTF, torch.ones(2, last - first)).softmax(-1) for network in self.networks]
        return torch.stack(views).mean((0, 1))[start - first : end - first].numpy()
