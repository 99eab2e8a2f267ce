"""Segmentation models with random weights, in the forms of the published ones, and tracks for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sage_scale.keypoints.names import HOLISTIC_75
from sage_scale.keypoints.track import KeypointTrack, track_of
from sage_scale.segmentation.models import published_2026


def track(points: np.ndarray, confidence: np.ndarray, fps: float, names=HOLISTIC_75) -> KeypointTrack:
    """A track of a picture of 1280 x 720 pixels."""
    return track_of(names, points, confidence, fps=fps, width=1280, height=720)


def random_track(frames: int, seed: int = 0, fps: float = 30.0) -> KeypointTrack:
    """A signer of MediaPipe's points that jump about, some of them missing."""
    rng = np.random.default_rng(seed)
    points = rng.normal([640, 360, 0], [80, 60, 0.2], (frames, 75, 3))
    points[:, 11] = rng.normal([760, 300, -0.2], 2, (frames, 3))
    points[:, 12] = rng.normal([520, 310, -0.2], 2, (frames, 3))
    return track(points, (rng.random((frames, 75)) > 0.15).astype(np.float32), fps)


def small_2023(seed: int = 2023) -> dict[str, torch.Tensor]:
    """Random weights of the segmenter of 2023."""
    torch.manual_seed(seed)
    network = {
        "pose_projection": torch.nn.Linear(225, 256),
        "encoder": torch.nn.LSTM(256, 128, bidirectional=True, batch_first=True),
        "sign_bio_head": torch.nn.Linear(256, 3),
        "sentence_bio_head": torch.nn.Linear(256, 3),
    }
    values = {f"{part}.{name}": v for part, one in network.items() for name, v in one.state_dict().items()}
    return values | {"sign_loss_function.weight": torch.ones(3)}


def write_2026(folder: Path, pieces: int = 16) -> Path:
    """A folder with a small instance with random weights, as published: bfloat16 and a configuration."""
    config = {"pose_dims": [50, 6], "hidden_dim": 16, "encoder_depth": 2, "num_classes": 4, "attn_nhead": 2}
    config |= {"attn_ff_mult": 2, "num_frames": pieces, "learning_rate": 1e-3}
    torch.manual_seed(2026)
    blocks = [
        published_2026.UBlock((6, 16, 32, 64), (5, 11, 21), (1, 1, 2), 50, 16),
        published_2026.UBlock((1, 16, 32, 64, 128), (5, 11, 21, 21), (1, 2, 2, 2), 16, 16),
    ]
    values = {"input_norm.weight": torch.rand(16) + 0.5}
    for number, block in zip((0, 2), blocks):
        values |= {f"frame_cnn.{number}.{name}": value for name, value in block.state_dict().items()}
    for number in range(2):
        layer = published_2026.Layer(16, 2, 32)
        layer.inv_freq.copy_(10000 ** (-torch.arange(4) / 4))
        values |= {f"encoder_attn.{number}.{name}": value for name, value in layer.state_dict().items()}
    for name in ("sign", "sentence"):
        head = published_2026.Head(16)
        values |= {f"{name}_bio_head.{key}": value for key, value in head.state_dict().items()}
    kept = {k: v.bfloat16() if v.is_floating_point() else v for k, v in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in kept.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_2023(folder: Path, seed: int = 2023) -> Path:
    """A folder with random weights of the segmenter of 2023."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(small_2023(seed), folder / "model.safetensors")
    return folder


def mlp(inputs: int) -> torch.nn.Sequential:
    steps = [(torch.nn.Linear(width, 512), torch.nn.ReLU()) for width in (inputs, 512, 512)]
    return torch.nn.Sequential(*(layer for step in steps for layer in step))


class Released:
    """Hands-On: the network in the paper's words, of torch's own parts, and its state under the checkpoint's names."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.hamer, self.pose, self.joined = mlp(288), mlp(104), mlp(1024)
        self.layers = [
            torch.nn.TransformerEncoderLayer(
                512, 4, 1024, dropout=0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=True
            ).eval()
            for _ in range(4)
        ]
        self.norm = torch.nn.LayerNorm(512, eps=1e-6)
        self.sign, self.sentence = torch.nn.Linear(512, 3), torch.nn.Linear(512, 3)

    def state(self) -> dict[str, torch.Tensor]:
        parts = {"hamer_input_layer": self.hamer, "pose_input_layer": self.pose, "input_layer": self.joined}
        parts |= {"encoder.layer_norm": self.norm, "sign_layer": self.sign, "sentence_layer": self.sentence}
        found = {f"{part}.{name}": v for part, one in parts.items() for name, v in one.state_dict().items()}
        for number, layer in enumerate(self.layers):
            head = f"encoder.layers.{number}"
            for kind in ("weight", "bias"):
                packed = getattr(layer.self_attn, f"in_proj_{kind}").detach()
                for name, part in zip("qkv", packed.chunk(3)):
                    found[f"{head}.src_src_att.{name}_layer.{kind}"] = part.clone()
                found[f"{head}.src_src_att.output_layer.{kind}"] = getattr(
                    layer.self_attn.out_proj, kind
                ).detach()
                found[f"{head}.layer_norm.{kind}"] = getattr(layer.norm1, kind).detach()
                found[f"{head}.feed_forward.layer_norm.{kind}"] = getattr(layer.norm2, kind).detach()
                found[f"{head}.feed_forward.pwff_layer.0.{kind}"] = getattr(layer.linear1, kind).detach()
                found[f"{head}.feed_forward.pwff_layer.3.{kind}"] = getattr(layer.linear2, kind).detach()
        return found

    @torch.no_grad()
    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        x = self.joined(torch.cat([self.pose(features[:, 288:]), self.hamer(features[:, :288])], dim=1))
        frame = torch.arange(len(x), dtype=torch.float64)[:, None]
        rates = 10_000.0 ** -(torch.arange(0, 512, 2, dtype=torch.float64) / 512)
        positions = torch.zeros(len(x), 512)
        positions[:, 0::2], positions[:, 1::2] = (frame * rates).sin().float(), (frame * rates).cos().float()
        x = (x + positions)[None]
        for layer in self.layers:
            x = layer(x)
        return self.sign(self.norm(x[0])).softmax(-1)
