"""Hands-On, the segmenter of the SAGE paper (He et al., FG 2025): HaMeR and angle features to O/I/B by a transformer.

The checkpoint is the released one, a Lightning `.ckpt` (or its state dict, also as safetensors); only tensors are
loaded. The network sees windows of 50 frames at 25 frames a second. The released code cuts a clip into windows that do
not overlap and returns wrong labels for the last one; here windows overlap by half, and their probabilities are
averaged.

A features file is `.npy` (T, 392) or `.npz` with `features` (T, 392), or with `hamer` (T, 288) and `angles` (T, 104),
or with `hamer`, `body_angles`, `right_angles` and `left_angles`; `fps` if the frame rate is not 25. The 392 numbers
are: both hands' poses, 2 x 15 rotation matrices, both hands' orientations, 2 matrices (one hand seen: twice; none: 0),
then the angles of body, right and left hand.
"""

from __future__ import annotations

import math
import pathlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.errors import CheckpointError, ClipRejected
from sage_scale.segmentation.decoding import averaged_windows
from sage_scale.segmentation.rules import RULE_FPS
from sage_scale.segmentation.tagger import Probabilities, fingerprint
from sage_scale.untrusted.damage import damage_rejects
from sage_scale.untrusted.display import printable
from sage_scale.untrusted.files import open_regular
from sage_scale.vision.pretrained_weights import load_exactly, read_state_dict

HAMER, ANGLES = 288, 104
WIDTH, HEADS, INNER, LAYERS = 512, 4, 1024, 4
WINDOW = 50
"""Frames that the network was trained on."""
_LARGEST_BYTES = 1 << 30
_UNUSED = ("mixer.", "gloss_layer.", "pe.", "encoder.pe.")
"""Parts of the released checkpoint that labels do not need: positions are computed."""
_DROPPED_FRAMES = 2
"""The released tool for angles drops up to so many frames at a clip's end."""


class HandsOn(nn.Module):
    """The network and its windows."""

    name = "hands-on"
    decoding = "hands-on"

    def __init__(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Raises CheckpointError where the weights (from `path`) do not fit."""
        super().__init__()
        self.hamer_input_layer, self.pose_input_layer = _mlp(HAMER), _mlp(ANGLES)
        self.input_layer = _mlp(2 * WIDTH)
        self.encoder = _Encoder()
        self.sign_layer, self.sentence_layer = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)
        kept = {name: value.float() for name, value in weights.items() if not name.startswith(_UNUSED)}
        load_exactly(self, kept, path)
        self.eval()
        self.fingerprint = fingerprint(self.state_dict(), self.name)

    @torch.no_grad()
    def forward(self, features_TC: Tensor) -> Tensor:
        """Returns probabilities (T, 6) of O, I, B for signs, then sentences, of one window of features (T, 392)."""
        hamer_TC, angles_TC = features_TC.split([HAMER, ANGLES], dim=1)
        hands, body = self.hamer_input_layer(hamer_TC), self.pose_input_layer(angles_TC)
        x_TD = self.input_layer(torch.cat([body, hands], dim=1))
        x_TD = self.encoder(x_TD + sine_positions(len(x_TD)))
        return torch.cat([head(x_TD).softmax(-1) for head in (self.sign_layer, self.sentence_layer)], dim=1)

    def __call__(self, features_TC: np.ndarray) -> Probabilities:  # type: ignore[override]
        """Returns the probabilities of a clip from its features, float32 (T, 392) at 25 frames a second."""
        x_TC = torch.from_numpy(features_TC)
        p_T6 = averaged_windows(
            lambda start, end: self.forward(x_TC[start:end]).numpy(), len(x_TC), WINDOW, WINDOW // 2
        ).astype(np.float32)
        return Probabilities(sign_T3=p_T6[:, :3], sentence_T3=p_T6[:, 3:], fps=RULE_FPS)


class _Encoder(nn.Module):
    """The transformer. This class and the next three have the names of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.layer_norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x_TD: Tensor) -> Tensor:
        for layer in self.layers:
            x_TD = layer(x_TD)
        return self.layer_norm(x_TD)


class _Layer(nn.Module):
    """A layer with norms before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.src_src_att = _Attention()
        self.feed_forward = _FeedForward()

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.feed_forward(x_TD + self.src_src_att(self.layer_norm(x_TD)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k_layer, self.v_layer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_layer, self.output_layer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_TD: Tensor) -> Tensor:
        layers = (self.q_layer, self.k_layer, self.v_layer)
        q, k, v = (layer(x_TD).unflatten(1, (HEADS, -1)).transpose(0, 1)[None] for layer in layers)
        attended = F.scaled_dot_product_attention(q, k, v)[0]
        return self.output_layer(attended.transpose(0, 1).flatten(1))


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.pwff_layer = nn.Sequential(
            nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Identity(), nn.Linear(INNER, WIDTH)
        )

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD + self.pwff_layer(self.layer_norm(x_TD))


def _mlp(inputs: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for width in (inputs, WIDTH, WIDTH):
        steps += [nn.Linear(width, WIDTH), nn.ReLU()]
    return nn.Sequential(*steps)


def sine_positions(frames: int) -> Tensor:
    """Returns (T, 512): sine and cosine of the frame number in turn, at wavelengths from 2 pi to 10,000 times that."""
    rates = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10_000.0) / WIDTH))
    angle = torch.arange(frames)[:, None] * rates
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def open_hands_on(path: Path) -> HandsOn:
    """Returns the model of a checkpoint, or of the one `.ckpt` or weights file in a folder. Raises CheckpointError."""
    weights = read_checkpoint(path)
    if "hamer_input_layer.0.weight" not in weights:
        raise CheckpointError(f"{printable(str(path))} is no checkpoint of Hands-On: it has other tensors")
    return HandsOn(weights, path)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint, or of the one in a folder. Raises CheckpointError."""
    if path.is_dir() and (found := sorted(path.glob("*.ckpt"))):
        path = found[0]
    # Lightning stores the run's folder beside the tensors; a path is no code.
    with torch.serialization.safe_globals([(pathlib.PosixPath, "pathlib.PosixPath")]):
        return read_state_dict(path)


def read_features(path: Path) -> np.ndarray:
    """Returns a clip's features, float32 (T, 392) at 25 frames a second (of other rates the nearest frames).

    Raises ClipRejected `bad-features`.
    """
    with damage_rejects("features", "bad-features"), open_regular(path) as file:
        if path.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > _LARGEST_BYTES:
                    raise ClipRejected("bad-features", "more than 1 GiB")
            file.seek(0)
        loaded = np.load(file, allow_pickle=False)
        arrays = (
            {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {"features": loaded}
        )
    fps = float(arrays["fps"]) if arrays.get("fps", np.zeros(2)).size == 1 else RULE_FPS
    values = arrays["features"] if "features" in arrays else _joined(arrays)
    if values.ndim != 2 or values.shape[1] != HAMER + ANGLES or not len(values):
        raise ClipRejected(
            "bad-features", f"features of shape {values.shape}, expected (T, {HAMER + ANGLES})"
        )
    if not np.isfinite(values).all() or not 1 <= fps <= 1000:
        raise ClipRejected("bad-features", "numbers that are not finite, or a frame rate outside 1 to 1000")
    total = max(1, math.ceil(len(values) * RULE_FPS / fps - 1e-6))
    rows = np.rint(np.arange(total) * fps / RULE_FPS).astype(int).clip(max=len(values) - 1)
    return values[rows].astype(np.float32)


def _joined(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    parts = (
        ["hamer", "angles"] if "angles" in arrays else ["hamer", "body_angles", "right_angles", "left_angles"]
    )
    lacking = [name for name in parts if name not in arrays or arrays[name].ndim != 2]
    if lacking:
        raise ClipRejected("bad-features", f"no array `{lacking[0]}` (T, numbers)")
    hamer, *angles = (arrays[name] for name in parts)
    missing = len(hamer) - len(angles[0])
    if not 0 <= missing <= _DROPPED_FRAMES or any(len(part) != len(angles[0]) for part in angles):
        raise ClipRejected("bad-features", f"{len(hamer)} frames of hamer, {len(angles[0])} of angles")
    angles = [np.concatenate([part, part[-1:].repeat(missing, axis=0)]) for part in angles]
    return np.concatenate([hamer, *angles], axis=1)
