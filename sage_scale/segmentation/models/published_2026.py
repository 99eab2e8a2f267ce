"""The published sign segmenter of 2026 (sign-language-processing/segmentation, v2026.4.27): two convolutional U blocks
over time, a transformer over pieces of the clip, heads for signs and sentences.

A folder has `model.safetensors` and `config.json`. The input needs the mean and deviation of pose-anonymization 0.0.1
(`normalisation_2026.json`; MIT, Copyright (c) 2024 Sign Language Processing).

Shape letters beside the package's: J series of C channels, H attention heads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.errors import CheckpointError
from sage_scale.keypoints.names import BODY_33, HOLISTIC_75
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.segmentation.models.holistic import by_shoulders
from sage_scale.segmentation.tagger import Probabilities, fingerprint
from sage_scale.vision.pretrained_weights import load_exactly

_KEPT = ("shoulder", "elbow", "wrist", "hip")
KEPT = [BODY_33.index(f"body.{side}_{name}") for name in _KEPT for side in ("left", "right")]
"""Body points of the input, in its order; both hands follow."""
_HIPS = slice(6, 8)
_HANDS = (slice(8, 29), slice(29, 50))
_RADIUS = 176
"""Frames on either side that the convolutions see (168), up to a multiple of `_STRIDE`."""
_STRIDE = 8
"""Product of the strides of a block's convolutions."""
MOST = 65536
"""Largest number that a configuration may hold."""
_UNKNOWN, _O, _B, _I = range(4)
"""The model's classes."""


class Published2026(nn.Module):
    """The network and its input; a KeypointTagger."""

    name = "published-2026"
    decoding = "runs"

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
        """Raises CheckpointError where the configuration or the weights (from `path`) do not fit."""
        super().__init__()
        names = ("hidden_dim", "encoder_depth", "attn_nhead", "attn_ff_mult", "num_frames")
        sizes: list[int] = [size for name in names if isinstance(size := config.get(name), int)]
        if len(sizes) < len(names) or not all(0 < size <= MOST for size in sizes):
            raise CheckpointError(f"{path}: config.json needs whole numbers above 0 for {', '.join(names)}")
        if config.get("pose_dims") != [50, 6] or config.get("num_classes") != 4 or sizes[0] % (2 * sizes[2]):
            raise CheckpointError(f"{path}: config.json describes another network than that of 2026")
        width, depth, heads, widening, self.piece = sizes
        layers = {name.split(".")[1] for name in weights if name.startswith("encoder_attn.")}
        tensors = [("input_norm.weight", width), ("encoder_attn.0.ffn.0.weight", widening * width)]
        if len(layers) != depth or any(name in weights and len(weights[name]) != n for name, n in tensors):
            raise CheckpointError(f"{path}: config.json gives other sizes than the tensors have")
        self.frame_cnn = nn.ModuleList(
            [
                UBlock((6, 16, 32, 64), (5, 11, 21), (1, 1, 2), 50, width),
                nn.Identity(),
                UBlock((1, 16, 32, 64, 128), (5, 11, 21, 21), (1, 2, 2, 2), width, width),
            ]
        )
        self.input_norm = nn.RMSNorm(width)
        self.encoder_attn = nn.ModuleList(Layer(width, heads, widening * width) for _ in range(depth))
        self.sign_bio_head, self.sentence_bio_head = Head(width), Head(width)
        load_exactly(self, {name: value.float() for name, value in weights.items()}, path)
        self.eval()
        self.fingerprint = fingerprint(self.state_dict(), f"{self.name} {sizes}")

    @torch.no_grad()
    def forward(self, x_TKC: Tensor, time_T: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities (T, 4) of UNK, O, B, I for signs and for sentences.

        `x_TKC` (T, 50, 6) is the network's input, `time_T` the frames' times in seconds. The transformer sees
        consecutive pieces of `num_frames` frames, of which the last is padded with zeros; memory is that of one piece.
        """
        total = len(x_TKC)
        parts = [self._piece(x_TKC, time_T, start) for start in range(0, total, self.piece)]
        return torch.cat([signs for signs, _ in parts]), torch.cat([sentences for _, sentences in parts])

    def _piece(self, x_TKC: Tensor, time_T: Tensor, start: int) -> tuple[Tensor, Tensor]:
        total = len(x_TKC)
        end = min(start + self.piece, total)
        # Convolutions of the part with its surroundings are those of the whole clip: their grid begins at 0.
        first = max(0, (start - _RADIUS) // _STRIDE * _STRIDE)
        last = min(total, -(-(end + _RADIUS) // _STRIDE) * _STRIDE)
        x_TD = self.encode(x_TKC[first:last])[start - first : end - first]
        padding = self.piece - len(x_TD) if total > self.piece else 0
        x_TD, time_T = F.pad(x_TD, (0, 0, 0, padding)), F.pad(time_T[start:end], (0, padding))
        for layer in self.encoder_attn:
            x_TD = layer(x_TD, time_T)
        signs, sentences = self.sign_bio_head(x_TD), self.sentence_bio_head(x_TD)
        return signs[: end - start], sentences[: end - start]

    def encode(self, x_TKC: Tensor) -> Tensor:
        """Returns the input of the transformer, (T, D): both U blocks and the norm."""
        first, _, second = self.frame_cnn
        x_TD = first(x_TKC.permute(1, 2, 0))
        return self.input_norm(second(x_TD.T[:, None]))

    def __call__(self, track: KeypointTrack) -> Probabilities:  # type: ignore[override]
        """Returns the probabilities of a track, at its own rate."""
        x_TKC, time_T = network_input(track)
        signs, sentences = self.forward(torch.from_numpy(x_TKC), torch.from_numpy(time_T))
        return Probabilities(sign_T3=_three(signs), sentence_T3=_three(sentences), fps=track.fps)


class UBlock(nn.Module):
    """(J, C, T) -> (T, D): convolutions over time and back, each step added to the one it mirrors; mean of the
    channels; linear over the series."""

    def __init__(
        self,
        channels: tuple[int, ...],
        kernels: tuple[int, ...],
        strides: tuple[int, ...],
        series: int,
        width: int,
    ) -> None:
        super().__init__()
        steps = list(zip(channels, channels[1:], kernels, strides))
        self.encoder_layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(a, b, k, s, k // 2), nn.BatchNorm1d(b), nn.SiLU()) for a, b, k, s in steps
        )
        self.decoder_layers = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose1d(b, a, k, s, k // 2), nn.BatchNorm1d(a), nn.SiLU())
            for a, b, k, s in reversed(steps)
        )
        self.fc = nn.Linear(series, width)

    def forward(self, x_JCT: Tensor) -> Tensor:
        kept = []
        for layer in self.encoder_layers:
            x_JCT = layer(x_JCT)
            kept.append(x_JCT)
        for layer in self.decoder_layers:
            skip = kept.pop()
            x_JCT = layer(F.pad(x_JCT, (0, skip.shape[-1] - x_JCT.shape[-1])) + skip)
        return self.fc(x_JCT.mean(1).T)


class Layer(nn.Module):
    """A transformer layer with norms before and rotary positions by time."""

    inv_freq: Tensor

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("inv_freq", torch.zeros(width // heads // 2))
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.ffn = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x_TD: Tensor, time_T: Tensor) -> Tensor:
        angle_TC = (time_T * 50)[:, None] * self.inv_freq
        cos_TC, sin_TC = (torch.cat([values, values], -1) for values in (angle_TC.cos(), angle_TC.sin()))
        qkv_3HTC = self.qkv(self.norm1(x_TD)).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        q, k = (x * cos_TC + _rotated(x) * sin_TC for x in qkv_3HTC[:2])
        attended = F.scaled_dot_product_attention(q[None], k[None], qkv_3HTC[2][None])[0]
        x_TD = x_TD + self.out_proj(attended.permute(1, 0, 2).flatten(1))
        return x_TD + self.ffn(self.norm2(x_TD))


class Head(nn.Module):
    """(T, D) -> log-probabilities (T, 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.net(x_TD).log_softmax(-1)


def network_input(track: KeypointTrack) -> tuple[np.ndarray, np.ndarray]:
    """Returns the network's input, float32 (T, 50, 6): position and velocity, and the frames' times, float32 (T,)."""
    points, seen_TK = by_shoulders(track)
    rows = [*KEPT, *range(len(BODY_33), len(HOLISTIC_75))]
    points, seen_TK = points[:, rows], seen_TK[:, rows]
    seen_TK[:, _HIPS] = False
    for hand in _HANDS:  # relative to its own wrist; without it the hand is not known
        points[:, hand] -= points[:, hand.start : hand.start + 1]
        seen_TK[:, hand] &= seen_TK[:, hand.start : hand.start + 1]
    mean_KC, deviation_KC = normalisation()
    places = np.where(seen_TK[..., None], (points - mean_KC) / deviation_KC, 0).astype(np.float32)
    time_T = np.arange(len(track), dtype=np.float32) / np.float32(track.fps)
    velocities = np.zeros_like(places)
    velocities[1:] = np.diff(places, axis=0) / np.diff(time_T)[:, None, None]
    return np.concatenate([places, velocities], axis=-1), time_T


@functools.cache
def normalisation() -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of the 50 points, float64 (50, 3), in shoulder widths."""
    values = json.loads(Path(__file__).with_name("normalisation_2026.json").read_text(encoding="utf-8"))
    return np.array(values["mean"]), np.array(values["deviation"])


def _rotated(x_HTC: Tensor) -> Tensor:
    left, right = x_HTC.chunk(2, -1)
    return torch.cat([-right, left], -1)


def _three(log_T4: Tensor) -> np.ndarray:
    """Returns probabilities (T, 3) of O, I, B with the same likeliest class: UNK is O where it is the likeliest, else
    it is left out."""
    p_T4 = log_T4.exp().numpy()
    outside_T = p_T4[:, _O] + np.where(p_T4.argmax(1) == _UNKNOWN, p_T4[:, _UNKNOWN], 0)
    p_T3 = np.stack([outside_T, p_T4[:, _I], p_T4[:, _B]], axis=1)
    return (p_T3 / p_T3.sum(1, keepdims=True)).astype(np.float32)
