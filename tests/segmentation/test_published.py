"""The published segmenters of 2023 and 2026 against the reference's own outputs, and against parts written out."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.segmenters import random_track, small_2023, track, write_2023, write_2026
from safetensors.torch import load_file, save_file

from sage_scale.config import Segmentation
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import CheckpointError, ClipRejected, NoModel
from sage_scale.keypoints.files import read_track
from sage_scale.keypoints.names import BODY_25, BODY_33, HOLISTIC_75, OPENPOSE_67
from sage_scale.segmentation import tagger
from sage_scale.segmentation.decoding import runs
from sage_scale.segmentation.models import published_2023, published_2026
from sage_scale.segmentation.models.holistic import holistic_75
from sage_scale.segmentation.rules import resample_labels
from sage_scale.segmentation.tagger import open_tagger, tag_clip
from sage_scale.vision.decode import DecodedClip

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
VECTORS = SHARED / "sign_segmenter"
with_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="the reference's vectors (../shared/data/sign_segmenter) are not here"
)


def segments(labels: np.ndarray) -> list[list[int]]:
    """First and last frame of each run of B and I."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], labels != 0, [False]])))
    return [[start, end - 1] for start, end in edges.reshape(-1, 2).tolist()]


@with_vectors
@pytest.mark.parametrize("case", ["t40", "t200", "t1500"])
def test_the_2026_vectors(case) -> None:
    model = open_tagger(VECTORS / "tiny_2026")
    with np.load(VECTORS / f"{case}.npz") as known:
        of = track(known["points"], known["confidence"], float(known["fps"]))
        x, times = published_2026.network_input(of)
        np.testing.assert_allclose(x[: len(known["input_first"])], known["input_first"], atol=1e-3)
        np.testing.assert_allclose(x.sum(0, dtype=np.float64), known["input_sum"], atol=1e-2)
        signs, sentences = model.forward(torch.from_numpy(x), torch.from_numpy(times))
        np.testing.assert_allclose(signs, known["sign_log_probs"], atol=1e-3)
        np.testing.assert_allclose(sentences, known["sentence_log_probs"], atol=1e-3)
        found = model(of)
        assert found.fps == of.fps
        for p_T3, name in ((found.sign_T3, "sign"), (found.sentence_T3, "sentence")):
            np.testing.assert_allclose(p_T3.sum(1), 1, atol=1e-6)
            assert segments(runs(p_T3)) == known[f"{name}_segments"].tolist()
            ms = [[int(a / of.fps * 1000), int(b / of.fps * 1000)] for a, b in segments(runs(p_T3))]
            assert ms == known[f"{name}_ms"].tolist()


@with_vectors
def test_a_real_pose_file_gives_the_references_segments() -> None:
    model, of = open_tagger(VECTORS / "tiny_2026"), read_track(VECTORS / "example.pose")
    outputs = model.forward(*map(torch.from_numpy, published_2026.network_input(of)))
    found = model(of)
    with np.load(VECTORS / "example_expected.npz") as known:
        for name, log_T4, p_T3 in zip(("sign", "sentence"), outputs, (found.sign_T3, found.sentence_T3)):
            np.testing.assert_allclose(log_T4, known[f"{name}_log_probs"], atol=1e-3)
            assert segments(runs(p_T3)) == known[f"{name}_segments"].tolist()


@with_vectors
def test_the_2023_case_from_openpose_points() -> None:
    """The reference's input was filled in from OpenPose's points; ours is made from those of the clip."""
    with np.load(VECTORS / "v2023" / "case.npz") as known:
        filled = track(known["points"], known["confidence"], float(known["fps"]))
        np.testing.assert_allclose(published_2023.network_input(filled), known["input"], atol=1e-6)
        model = open_tagger(VECTORS / "v2023")
        ours = model(filled)
        for p_T3, name in ((ours.sign_T3, "sign"), (ours.sentence_T3, "sentence")):
            np.testing.assert_allclose(np.log(p_T3[:, [0, 2, 1]]), known[f"{name}_log_probs"], atol=1e-4)
        clip = SHARED / "dgs_motion" / "keypoints" / "seg_0001.npz"
        if not clip.is_file():
            pytest.skip("the clip of the case (../shared/data/dgs_motion) is not here")
        with np.load(clip) as file:
            points = file["keypoints"].astype(np.float32).reshape(-1, 67, 2) * np.float32([1280, 720])
        recorded = track(points, (points != 0).any(-1).astype(np.float32), 50.0, OPENPOSE_67)
        given = holistic_75(recorded)
        np.testing.assert_allclose(given.points_TKC[::2], known["points"], atol=0.01)
        assert ((given.confidence_TK[::2] > 0) == (known["confidence"] > 0)).all()
        np.testing.assert_allclose(
            np.log(model(recorded).sign_T3[:, [0, 2, 1]]), known["sign_log_probs"], atol=1e-3
        )


def test_the_2023_network_written_out(tmp_path) -> None:
    """One direction of the LSTM and the heads, step by step."""
    write_2023(tmp_path)
    model = open_tagger(tmp_path)
    assert model.name == "published-2023" and model.decoding == "peaks"
    of = random_track(12, fps=25.0)
    x = published_2023.network_input(of)
    assert not x[:, 25:33].any() and x[:, 23:25].any()  # legs and feet; hips stay
    w = {name: value.double().numpy() for name, value in small_2023().items()}
    rows = x.reshape(12, -1).astype(np.float64) @ w["pose_projection.weight"].T + w["pose_projection.bias"]

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    outputs = []
    for end, order in (("", range(12)), ("_reverse", range(11, -1, -1))):
        h, c, out = np.zeros(128), np.zeros(128), np.zeros((12, 128))
        for t in order:
            gates = w[f"encoder.weight_ih_l0{end}"] @ rows[t] + w[f"encoder.bias_ih_l0{end}"]
            gates += w[f"encoder.weight_hh_l0{end}"] @ h + w[f"encoder.bias_hh_l0{end}"]
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = out[t] = sigmoid(o) * np.tanh(c)
        outputs.append(out)
    scores = np.concatenate(outputs, 1) @ w["sign_bio_head.weight"].T + w["sign_bio_head.bias"]
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(model(of).sign_T3, expected[:, [0, 2, 1]], atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 7, 40])
def test_the_2026_u_block_written_out(frames) -> None:
    """Convolutions and their transposes as sums over taps, for every length."""
    torch.manual_seed(frames)
    block = published_2026.UBlock((2, 3, 4), (5, 11), (1, 2), 3, 5).eval()
    for norm in (module for module in block.modules() if isinstance(module, torch.nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 2, frames)
    w = {name: value.double().numpy() for name, value in block.state_dict().items()}

    def after(y, name):
        scale = w[f"{name}.1.weight"] / np.sqrt(w[f"{name}.1.running_var"] + 1e-5)
        y = (y - w[f"{name}.1.running_mean"][:, None]) * scale[:, None] + w[f"{name}.1.bias"][:, None]
        return y / (1 + np.exp(-y))

    results = []
    for one in x.double().numpy():
        kept = []
        for layer, (k, s) in enumerate(((5, 1), (11, 2))):
            weight, bias = w[f"encoder_layers.{layer}.0.weight"], w[f"encoder_layers.{layer}.0.bias"]
            padded = np.pad(one, ((0, 0), (k // 2, k // 2)))
            steps = (padded.shape[1] - k) // s + 1
            taps = [np.einsum("oik,ik->o", weight, padded[:, s * t : s * t + k]) + bias for t in range(steps)]
            one = after(np.stack(taps, 1), f"encoder_layers.{layer}")
            kept.append(one)
        for layer, (k, s) in enumerate(((11, 2), (5, 1))):
            weight, bias = w[f"decoder_layers.{layer}.0.weight"], w[f"decoder_layers.{layer}.0.bias"]
            skip = kept.pop()
            one = np.pad(one, ((0, 0), (0, skip.shape[1] - one.shape[1]))) + skip
            spread = np.zeros((weight.shape[1], (one.shape[1] - 1) * s + k))
            for t in range(one.shape[1]):
                spread[:, s * t : s * t + k] += np.einsum("iok,i->ok", weight, one[:, t])
            spread = spread[:, k // 2 : spread.shape[1] - k // 2] + bias[:, None]
            one = after(spread, f"decoder_layers.{layer}")
        results.append(one.mean(0))
    expected = np.stack(results, 1) @ w["fc.weight"].T + w["fc.bias"]
    np.testing.assert_allclose(block(x).detach(), expected, atol=1e-5)


def test_the_2026_attention_written_out() -> None:
    torch.manual_seed(1)
    layer = published_2026.Layer(8, 2, 16)
    layer.inv_freq.copy_(torch.tensor([1.0, 0.03]))
    x, times = torch.randn(5, 8), torch.tensor([0.0, 0.04, 0.09, 0.5, 0.0])
    w = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    eps = np.finfo(np.float32).eps

    def normed(y, weight):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + eps) * weight

    rows = x.double().numpy()
    q, k, v = np.split(normed(rows, w["norm1.weight"]) @ w["qkv.weight"].T, 3, axis=1)
    angle = 50 * times.double().numpy()[:, None] * w["inv_freq"]
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        turned = []
        for values in (q[:, head], k[:, head]):  # pairs (i, i + 2) turn by the angle
            a, b = values[:, :2], values[:, 2:]
            turned.append(
                np.hstack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])
            )
        scores = np.exp(turned[0] @ turned[1].T / 2)
        parts.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
    rows = rows + np.hstack(parts) @ w["out_proj.weight"].T
    inner = normed(rows, w["norm2.weight"]) @ w["ffn.0.weight"].T + w["ffn.0.bias"]
    inner *= 0.5 * (1 + np.vectorize(math.erf)(inner / np.sqrt(2)))
    rows = rows + inner @ w["ffn.3.weight"].T + w["ffn.3.bias"]
    np.testing.assert_allclose(layer(x, times).detach(), rows, atol=1e-5)


def test_pieces_of_a_long_clip_see_the_convolutions_of_the_whole(tmp_path) -> None:
    model = open_tagger(write_2026(tmp_path, pieces=300))
    x, times = (torch.from_numpy(part) for part in published_2026.network_input(random_track(905)))
    with torch.no_grad():
        whole = model.encode(x)
        expected = []
        for start in range(0, 905, 300):
            rows, at = whole[start : start + 300], times[start : start + 300]
            short = 300 - len(rows)
            rows, at = (
                torch.nn.functional.pad(rows, (0, 0, 0, short)),
                torch.nn.functional.pad(at, (0, short)),
            )
            for layer in model.encoder_attn:
                rows = layer(rows, at)
            expected.append(model.sign_bio_head(rows)[: 300 - short])
    torch.testing.assert_close(model.forward(x, times)[0], torch.cat(expected), atol=1e-4, rtol=0)


def test_missing_points_hips_and_wrists_of_the_2026_input() -> None:
    of = random_track(6)
    hidden = of.confidence_TK.copy()
    hidden[:, 11:13], hidden[2, HOLISTIC_75.index("left_hand.wrist")] = 1, 0
    of = of.replace(confidence_TK=hidden)
    x, _ = published_2026.network_input(of)
    assert not x[:, 6:8].any()  # hips
    assert not x[2, 8:29, :3].any()  # a hand without its wrist
    unseen = of.confidence_TK[:, HOLISTIC_75.index("body.left_elbow")] == 0
    assert not x[unseen, 2, :3].any()
    np.testing.assert_allclose(x[1:, :, 3:], np.diff(x[..., :3], axis=0) * 30, rtol=1e-3, atol=1e-3)
    nobody = of.replace(confidence_TK=np.zeros_like(of.confidence_TK))
    assert not published_2026.network_input(nobody)[0].any()
    assert not published_2023.network_input(nobody).any()


@pytest.mark.parametrize("frames", [1, 2, 50])
def test_any_track_has_probabilities(tmp_path, frames) -> None:
    write_2023(tmp_path)
    for model in (open_tagger(tmp_path), open_tagger(write_2026(tmp_path / "2026"))):
        found = model(random_track(frames, fps=120.0))
        assert np.isfinite(found.sign_T3).all() and found.sentence_T3.shape == found.sign_T3.shape
        np.testing.assert_allclose(found.sign_T3.sum(1), 1, atol=1e-5)
        assert abs(len(found.sign_T3) / found.fps - frames / 120) <= 1 / found.fps


def test_mediapipe_points_pass_through_and_openpose_ones_are_filled_in() -> None:
    of = random_track(4)
    given = holistic_75(of)
    assert (given.points_TKC == of.points_TKC).all() and (given.confidence_TK == of.confidence_TK).all()
    points = np.ones((1, 67, 3))
    points[0, BODY_25.index("body.left_shoulder")] = [200, 1, 0]
    points[0, BODY_25.index("body.right_shoulder")] = [100, 1, 0]
    seen = np.ones((1, 67))
    seen[0, 25:46] = 0
    filled = holistic_75(track(points, seen, 25.0, OPENPOSE_67))
    assert (filled.confidence_TK[0, :33] > 0).all() and not filled.confidence_TK[0, 33:54].any()
    # The left hand was not seen: its fingers stand beside the wrist, the right ones on the hand.
    assert filled.points_TKC[0, BODY_33.index("body.left_pinky"), 1] == pytest.approx(1 + 11.312, abs=0.01)
    assert filled.points_TKC[0, BODY_33.index("body.right_pinky")].tolist() == [1, 1, 1]


def test_the_installed_package_is_found_without_importing_it(tmp_path, monkeypatch) -> None:
    package = tmp_path / "site" / "sign_language_segmentation"
    write_2026(package / "dist" / "2026")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert open_tagger("published").name == "published-2026"
    monkeypatch.undo()
    with pytest.raises(NoModel, match=r"segmentation\.weights=FOLDER"):
        open_tagger("published")


def test_folders_that_hold_no_segmenter(tmp_path) -> None:
    with pytest.raises(NoModel, match="there is no segmentation model"):
        open_tagger(tmp_path / "none")
    with pytest.raises(NoModel, match=r"model\.safetensors is missing"):
        open_tagger(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:  # as torch.jit.save lays it out
        archive.writestr("model/code/__torch__.py", "class Model(Module): ...")
    for place in (tmp_path, tmp_path / "model.pth"):
        with pytest.raises(CheckpointError, match="TorchScript, which is code and is not opened"):
            open_tagger(place)
    (tmp_path / "model.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="not a weights file"):
        open_tagger(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no published segmenter"):
        open_tagger(tmp_path)
    (tmp_path / "config.json").write_text('{"tagger": "new\\nline"}')
    with pytest.raises(CheckpointError, match="no tagger") as caught:
        open_tagger(tmp_path)
    assert "\n" not in str(caught.value)
    folder = write_2026(tmp_path / "2026")
    config = json.loads((folder / "config.json").read_text())
    absurd = ({"hidden_dim": 65536}, {"encoder_depth": 65536}, {"attn_ff_mult": 65536})  # terabytes, minutes
    for wrong in (*absurd, {"hidden_dim": "x"}, {"hidden_dim": 10**9}, {"pose_dims": [75, 3]}):
        (folder / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(CheckpointError):
            open_tagger(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_tagger(folder)


def test_weights_that_are_not_finite_or_no_tensors_are_refused(tmp_path) -> None:
    folder = write_2026(tmp_path / "2026")
    weights = load_file(folder / "model.safetensors")
    weights["sign_bio_head.net.0.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors")
    save_file(
        small_2023() | {"sign_bio_head.bias": torch.tensor([0, torch.inf, 0])}, tmp_path / "x.safetensors"
    )
    for path in (folder, tmp_path / "x.safetensors"):
        with pytest.raises(CheckpointError, match=r"sign_bio_head\..*bias holds NaN or infinite values"):
            open_tagger(path)
    (tmp_path / "y.pth").write_bytes(pickle.dumps({"a": pathlib.PurePosixPath("x")}))
    with pytest.raises(CheckpointError, match="objects other than tensors") as caught:
        open_tagger(tmp_path / "y.pth")
    assert "weights_only" not in str(caught.value)


def test_the_fingerprint_tells_weights_apart(tmp_path) -> None:
    one = open_tagger(write_2026(tmp_path / "a")).fingerprint
    assert one == open_tagger(write_2026(tmp_path / "b")).fingerprint
    assert one != open_tagger(write_2026(tmp_path / "c", pieces=8)).fingerprint
    weights = small_2023()
    save_file(weights, tmp_path / "x.safetensors")
    save_file(weights | {"sign_bio_head.bias": torch.ones(3)}, tmp_path / "y.safetensors")
    two = [open_tagger(tmp_path / f"{name}.safetensors").fingerprint for name in "xy"]
    assert len({one, *two}) == 3
    assert tagger.cached_tagger("published", str(tmp_path / "a")).fingerprint == one


def test_a_clip_is_tagged_at_its_own_rate(tmp_path) -> None:
    """The model's labels, 25 frames a second, on a clip taken at 50; a clip without keypoints says so."""
    write_2023(tmp_path)
    recipe = Segmentation(tagger="published", weights=str(tmp_path), decoding="runs")
    of = random_track(80, fps=40.0)
    clip = Clip(id="a", video="a.mp4")
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    decoded = DecodedClip(
        clip=clip, frames=frames, total_frames=100, fps=50.0, stride=2, source_fps=40.0, track=of
    )
    tagging = tag_clip(decoded, recipe, 50.0)
    labels_S = runs(open_tagger(tmp_path)(of).sign_T3)
    assert tagging.probabilities is not None and len(tagging.probabilities.sign_T3) == len(labels_S) == 50
    assert tagging.labels_T.tolist() == resample_labels(labels_S, 25.0, 100, 50.0).tolist()
    with pytest.raises(ClipRejected, match="no-keypoints"):
        tag_clip(dataclasses.replace(decoded, track=None), recipe, 50.0)
    with pytest.raises(ClipRejected, match="no frame in the clip"):
        tag_clip(dataclasses.replace(decoded, track=of.part(9)), recipe, 50.0)
