"""Hands-On: a checkpoint of the released form, made here, against torch's own transformer; features files of a clip."""

from __future__ import annotations

import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.segmenters import Released

from sage_scale.config import Segmentation
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import CheckpointError, ClipRejected, NoModel, UsageError
from sage_scale.segmentation.models.hands_on import HandsOn, open_hands_on, read_features
from sage_scale.segmentation.rules import decode_oib
from sage_scale.segmentation.tagger import tag_clip
from sage_scale.vision.decode import DecodedClip


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
