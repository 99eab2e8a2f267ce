"""Hands-On: a checkpoint of the released form, made here, against torch's own transformer; features files of a clip."""

from __future__ import annotations

import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sage_scale.config import Segmentation
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import CheckpointError, ClipRejected, NoModel, UsageError
from sage_scale.segmentation.models.hands_on import HandsOn, open_hands_on, read_features
from sage_scale.segmentation.rules import decode_oib
from sage_scale.segmentation.tagger import tag_clip
from sage_scale.vision.decode import DecodedClip


def mlp(inputs: int) -> torch.nn.Sequential:
    steps = [(torch.nn.Linear(width, 512), torch.nn.ReLU()) for width in (inputs, 512, 512)]
    return torch.nn.Sequential(*(layer for step in steps for layer in step))


class Released:
    """The network in the paper's words, of torch's own parts, and its state under the checkpoint's names."""

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


@pytest.fixture(scope="module")
def released() -> Released:
    return Released()


@pytest.fixture(scope="module")
def checkpoint(released, tmp_path_factory) -> Path:
    """As Lightning writes it: the tensors, parts that labels do not need, and the training's settings."""
    state = released.state()
    state |= {
        "mixer.trg_trg_att.k_layer.weight": torch.zeros(2, 2),
        "gloss_layer.weight": torch.zeros(5, 512),
    }
    state |= {"pe.pe": torch.zeros(1, 9, 512), "encoder.pe.pe": torch.zeros(1, 9, 512)}
    settings = {
        "model_config": {"input_type": "hamer_mix"},
        "model_dir": pathlib.PosixPath("runs/handson_ckpt"),
    }
    path = tmp_path_factory.mktemp("handson_ckpt") / "epoch=9.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": settings, "epoch": 9, "callbacks": {}}, path)
    return path


def features(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 392)).astype(np.float32)


def test_the_network_is_the_papers(released, checkpoint) -> None:
    model = open_hands_on(checkpoint.parent)
    x = features(50)
    expected = released.probabilities(torch.from_numpy(x))
    found = model(x)
    np.testing.assert_allclose(found.sign_T3, expected, atol=1e-5)
    assert found.fps == 25.0 and found.sentence_T3 is not None and found.sentence_T3.shape == (50, 3)
    assert len(model(features(3)).sign_T3) == 3


def test_no_label_depends_on_where_a_window_ends(released, checkpoint) -> None:
    """Each frame is the mean over the windows of 50 frames that hold it, weighted by its distance to their edges."""
    model = open_hands_on(checkpoint)
    x = features(80)
    windows = {
        start: released.probabilities(torch.from_numpy(x[start : start + 50])) for start in (0, 25, 30)
    }
    for frame in (0, 24, 40, 49, 51, 79):
        held = [(start, p) for start, p in windows.items() if start <= frame < start + 50]
        weights = [min(frame - start + 1, start + 50 - frame) for start, _ in held]
        mean = sum(w * p[frame - start] for w, (start, p) in zip(weights, held)) / sum(weights)
        np.testing.assert_allclose(model(x).sign_T3[frame], mean, atol=1e-5)


def test_a_clip_is_tagged_by_its_features_file(checkpoint, tmp_path) -> None:
    x = features(60)
    np.save(tmp_path / "train__one.npy", x)
    recipe = Segmentation(tagger="hands-on", weights=str(checkpoint), features=str(tmp_path))

    def decoded(total: int, name: str = "train/one") -> DecodedClip:
        clip = Clip(id=name, video="one.mp4", split="train")
        frames = np.zeros((0, 8, 8, 3), np.uint8)
        return DecodedClip(clip=clip, frames=frames, total_frames=total, fps=25.0, stride=2, source_fps=25.0)

    expected = decode_oib(open_hands_on(checkpoint)(x).sign_T3)
    tagging = tag_clip(decoded(60), recipe, 25.0)
    assert tagging.labels_T.tolist() == expected.tolist() and tagging.probabilities is not None
    with pytest.raises(ClipRejected, match="no-features"):
        tag_clip(decoded(60, "train/two"), recipe, 25.0)
    with pytest.raises(ClipRejected, match=r"last 2\.40 s, the clip 12\.00 s"):
        tag_clip(decoded(300), recipe, 25.0)
    with pytest.raises(UsageError, match=r"needs segmentation\.features=FOLDER"):
        tag_clip(decoded(60), Segmentation(tagger="hands-on", weights=str(checkpoint)), 25.0)
    with pytest.raises(NoModel, match=r"needs segmentation\.weights=FOLDER"):
        tag_clip(decoded(60), Segmentation(tagger="hands-on", features=str(tmp_path)), 25.0)


def test_the_forms_of_a_features_file(tmp_path) -> None:
    x = features(10)
    body, right, left = np.split(x[:, 288:], [60, 82], axis=1)
    angles = {"body_angles": body, "right_angles": right, "left_angles": left}
    np.savez(tmp_path / "one.npz", features=x)
    np.savez(tmp_path / "two.npz", hamer=x[:, :288], angles=x[:, 288:])
    np.savez(tmp_path / "parts.npz", hamer=x[:, :288], **angles)
    for name in ("one", "two", "parts"):
        assert (read_features(tmp_path / f"{name}.npz") == x).all()
    # The tool for angles drops up to two frames at the end: the last one stands for them.
    np.savez(tmp_path / "short.npz", hamer=x[:, :288], **{name: part[:8] for name, part in angles.items()})
    short = read_features(tmp_path / "short.npz")
    assert (short[:8] == x[:8]).all() and (short[8:, 288:] == x[7, 288:]).all()
    np.savez(tmp_path / "fast.npz", features=x, fps=50.0)
    assert (read_features(tmp_path / "fast.npz") == x[::2]).all()


@pytest.mark.parametrize(
    "arrays,told",
    [
        ({"features": np.zeros((4, 100))}, r"shape \(4, 100\)"),
        ({"features": np.zeros((0, 392))}, "shape"),
        ({"features": np.full((4, 392), np.nan)}, "not finite"),
        ({"features": np.zeros((4, 392)), "fps": 0.0}, "frame rate"),
        ({"hamer": np.zeros((4, 288))}, "no array `body_angles`"),
        ({"hamer": np.zeros((9, 288)), "angles": np.zeros((4, 104))}, "9 frames of hamer, 4 of angles"),
        ({"features": np.array([{}] * 3, dtype=object)}, "features"),
    ],
)
def test_wrong_features_reject_their_clip(tmp_path, arrays, told) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ClipRejected, match=told) as caught:
        read_features(tmp_path / "x.npz")
    assert caught.value.reason == "bad-features" and "\n" not in str(caught.value)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(ClipRejected, match="bad-features"):
        read_features(tmp_path / "x.npy")


def test_other_files_are_no_checkpoint(tmp_path, released) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint of Hands-On"):
        open_hands_on(tmp_path / "a.ckpt")
    state = released.state()
    del state["sign_layer.bias"]
    with pytest.raises(CheckpointError, match=r"lacks sign_layer\.bias"):
        HandsOn(state, tmp_path / "a.ckpt")
