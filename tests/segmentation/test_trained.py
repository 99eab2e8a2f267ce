"""The trained segmenter: it learns, its folder gives the same probabilities, and these depend on the signer alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sage_scale.config import Segmentation
from sage_scale.corpora.synthetic.random_signing import random_signing
from sage_scale.errors import CheckpointError
from sage_scale.keypoints.cleaning import mirrored, resampled
from sage_scale.keypoints.track import OPENPOSE_67, KeypointTrack
from sage_scale.segmentation.decoding import peaks
from sage_scale.segmentation.models import trained as model
from sage_scale.segmentation.models.trained import Network, SignerPoints, TrainedTagger, features
from sage_scale.segmentation.motion import keypoint_movement, motion_labels
from sage_scale.segmentation.rules import labels_to_segments
from sage_scale.segmentation.scores import clip_counts, scores
from sage_scale.segmentation.tagger import Probabilities, decode, open_tagger, own_limits, uniform_labels
from sage_scale.segmentation.training import (
    Settings,
    Trained,
    chosen_limits,
    score_examples,
    train,
    write_tagger,
)
from sage_scale.segmentation.training_data import GAP_FRAMES, packed, random_examples, read_examples, targets

DGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dgs_motion"
SMALL = Settings(networks=2, passes=7, width=24, learning_rate=6e-3)


@pytest.fixture(scope="module")
def learnt() -> Trained:
    return train(random_examples(40, seed=1), SMALL)


@pytest.fixture(scope="module")
def folder(learnt: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tagger")
    write_tagger(learnt, out, {})
    return out


@pytest.fixture(scope="module")
def tagger(folder: Path) -> TrainedTagger:
    found = open_tagger(folder)
    assert isinstance(found, TrainedTagger)
    return found


@pytest.fixture(scope="module")
def track() -> KeypointTrack:
    return random_signing(np.random.default_rng(7))[0]


def test_it_learns_what_uniform_segments_do_not_know(learnt: Trained) -> None:
    examples = random_examples(30, seed=2)
    uniform = sum(
        clip_counts(labels_to_segments(uniform_labels(e.frames, 8), "plain"), e.signs_N2 * 25, e.frames)
        for e in examples
    )
    theirs, ours = scores(uniform, 25), scores(score_examples(learnt.networks, examples).sum(0), 25)
    assert ours["frame_macro_f1"] > theirs["frame_macro_f1"] + 0.15


def test_scores_in_the_configuration_are_of_parts_that_were_held_out(learnt: Trained, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    examples = random_examples(40, seed=1)
    assert len(learnt.counts_CK) == len(examples)
    frames = [example.frames for example in examples]
    assert learnt.counts_CK[:, 0].tolist() == frames
    assert config["held_out_scores"]["frame_macro_f1"]["value"] == pytest.approx(
        float(scores(learnt.counts_CK.sum(0), 25)["frame_macro_f1"]), abs=1e-4
    )


def test_limits_are_chosen_where_others_are_clearly_better_and_are_the_models_own(
    folder: Path, tmp_path: Path
) -> None:
    """Onsets that stand out by .3 alone are lost at the usual .4; the tagger decodes by what is in its folder."""
    examples = random_examples(6, seed=4)
    found = []
    for example in examples:
        p_T3 = np.tile([0.1, 0.8, 0.1], (example.frames, 1))
        for start, end in np.rint(example.signs_N2 * 25).astype(int).tolist():
            p_T3[end : end + 1] = [0.8, 0.1, 0.1]
            p_T3[start] = [0.3, 0.4, 0.3]
        found.append(p_T3)
    (threshold, gap_s), counts_CK = chosen_limits(found, examples)
    assert threshold < 0.4 and len(counts_CK) == 6
    assert chosen_limits([np.tile([1.0, 0, 0], (e.frames, 1)) for e in examples], examples)[0] == (0.4, 0.16)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    tagger = {}
    for name, own in (("usual", {}), ("own", {"decoding_threshold": threshold, "decoding_gap_s": gap_s})):
        without = {key: value for key, value in config.items() if not key.startswith("decoding_")}
        (tmp_path / "config.json").write_text(json.dumps({**without, **own}))
        tagger[name] = open_tagger(tmp_path)
    assert own_limits(tagger["usual"]) is None and own_limits(tagger["own"]) == (threshold, gap_s)
    assert tagger["usual"].fingerprint != tagger["own"].fingerprint
    one = Probabilities(sign_T3=found[0], sentence_T3=None, fps=25.0)
    by = {
        "own": decode(one, Segmentation(), "peaks", (threshold, gap_s)),
        "recipe": decode(one, Segmentation(decoding_threshold=0.6), "peaks", (threshold, gap_s)),
        "peaks": decode(one, Segmentation(decoding="peaks"), "peaks", (threshold, gap_s)),
    }
    assert (by["own"] == peaks(found[0], 25.0, threshold, gap_s)).all()
    assert (by["recipe"] == peaks(found[0], 25.0, 0.6, 0.16)).all()
    assert (by["peaks"] == peaks(found[0], 25.0)).all() and (by["own"] != by["peaks"]).any()


def test_the_same_data_and_seed_give_the_same_weights_and_another_seed_others() -> None:
    examples = random_examples(8, seed=3)

    def weights(seed: int) -> np.ndarray:
        settings = Settings(networks=1, passes=2, width=8, seed=seed)
        return np.concatenate(
            [value.numpy().ravel() for value in train(examples, settings).tensors().values()]
        )

    first = weights(0)
    assert np.array_equal(first, weights(0)) and not np.array_equal(first, weights(1))


def test_the_opened_folder_gives_the_networks_own_probabilities(
    learnt: Trained, tagger: TrainedTagger, track: KeypointTrack
) -> None:
    import torch

    points = SignerPoints.of(track)
    times = np.arange(int(np.ceil(len(track) / 2))) / 25
    views = [points.at(times), points.at(times).mirrored()]
    with torch.no_grad():
        each = [
            network(torch.from_numpy(features(view))[None], torch.ones(1, len(times)))[0].softmax(-1)
            for network in learnt.networks
            for view in views
        ]
    found = tagger(track)
    assert found.fps == 25 and found.sentence_T3 is None
    assert found.sign_T3 == pytest.approx(torch.stack(each).mean(0).numpy(), abs=1e-5)


def test_no_result_depends_on_where_a_piece_ends(
    tagger: TrainedTagger, track: KeypointTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tagger(track).sign_T3
    for piece in (9, 32):
        monkeypatch.setattr(model, "_PIECE", piece)
        assert tagger(track).sign_T3 == pytest.approx(whole, abs=1e-5)


def test_a_part_of_a_track_far_from_its_ends_is_as_in_the_whole(tagger: TrainedTagger) -> None:
    import torch

    reach = max(network.reach for network in tagger.networks)
    x_TF = torch.randn(3 * reach, model.FEATURES)
    network = tagger.networks[0]
    with torch.no_grad():
        whole = network(x_TF[None], torch.ones(1, len(x_TF)))[0]
        part = network(x_TF[None, : 2 * reach], torch.ones(1, 2 * reach))[0]
    assert part[:reach].numpy() == pytest.approx(whole[:reach].numpy(), abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda track: track.select(OPENPOSE_67), id="layout of OpenPose"),
        pytest.param(lambda track: track.select(track.names[::-1]), id="another order"),
        pytest.param(
            lambda track: track.replace(
                points_TKC=track.points_TKC * np.float32([3, 3, 9])
                + np.float32([50, 20, 5]) * track.seen_TK[..., None]
            ),
            id="another picture, depth in another unit",
        ),
        pytest.param(mirrored, id="mirrored"),
        pytest.param(lambda track: resampled(track, 100.0), id="twice the frame rate"),
    ],
)
def test_probabilities_depend_on_the_signer_alone(
    tagger: TrainedTagger, track: KeypointTrack, change: Callable[[KeypointTrack], KeypointTrack]
) -> None:
    assert tagger(change(track)).sign_T3 == pytest.approx(tagger(track).sign_T3, abs=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda track: track.part(0, 0), id="empty"),
        pytest.param(lambda track: track.part(0, 0.02), id="one frame"),
        pytest.param(lambda track: track.part(0, 0.04), id="two frames"),
        pytest.param(lambda track: resampled(track, 120.0), id="120 fps"),
        pytest.param(lambda track: track.replace(fps=12.5), id="12.5 fps"),
        pytest.param(lambda track: track.select(["body.nose"]), id="no shoulders"),
        pytest.param(lambda track: track.select([n for n in track.names if "hand" not in n]), id="no hands"),
        pytest.param(lambda track: _unseen(track, slice(0, len(track) // 2)), id="half missing"),
        pytest.param(lambda track: _unseen(track, slice(len(track) - 1, None)), id="black last frame"),
        pytest.param(lambda track: _unseen(track, slice(None)), id="nothing seen"),
    ],
)
def test_odd_tracks_have_defined_results(
    tagger: TrainedTagger, track: KeypointTrack, change: Callable[[KeypointTrack], KeypointTrack]
) -> None:
    odd = change(track)
    found = tagger(odd)
    assert found.sign_T3.shape == (int(np.ceil(len(odd) * 25 / odd.fps - 1e-6)), 3)
    assert found.sign_T3.dtype == np.float32 and np.isfinite(found.sign_T3).all()
    assert found.sign_T3.sum(1) == pytest.approx(1, abs=1e-5)


def _unseen(track: KeypointTrack, frames: slice) -> KeypointTrack:
    confidence, points = track.confidence_TK.copy(), track.points_TKC.copy()
    confidence[frames] = points[frames] = 0
    return track.replace(confidence_TK=confidence, points_TKC=points)


def test_clips_of_a_row_do_not_see_each_other() -> None:
    import torch

    rng = np.random.default_rng(0)
    network = Network(16, Settings().dilations).eval()
    clips = [
        (rng.normal(size=(n, model.FEATURES)).astype(np.float32), np.zeros((n, 3), np.float32))
        for n in (9, 30, 5)
    ]
    (row,) = packed(clips, 80)
    assert max(network.dilations) <= GAP_FRAMES
    with torch.no_grad():
        together = network(torch.from_numpy(row.x_LF)[None], torch.from_numpy(row.real_L)[None])[0]
        for start, (x_TF, _) in zip(row.starts, clips):
            alone = network(torch.from_numpy(x_TF)[None], torch.ones(1, len(x_TF)))[0]
            assert together[start : start + len(x_TF)].numpy() == pytest.approx(alone.numpy(), abs=1e-5)
    assert [len(row.starts) for row in packed(clips, 48)] == [2, 1]
    assert [len(row.x_LF) for row in packed(clips, 10)] == [10, 30, 10]


def test_targets_are_probabilities_with_their_onsets_on_the_nearest_frame() -> None:
    found = targets(np.array([[0.11, 0.5], [0.62, 0.8]]), np.arange(25) / 25)
    assert found.sum(1) == pytest.approx(1)
    assert [int(t) for t in np.flatnonzero(found[:, 2] > 0.9)] == [3]
    assert found[:, 2].argmax() == 3 and found[10, 1] > 0.99 and found[23, 0] > 0.99


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    for config, message in (
        ({"tagger": "trained"}, "whole numbers width"),
        ({"tagger": "trained", "width": 24, "networks": 2, "dilations": "1"}, "whole numbers width"),
        ({"tagger": "trained", "width": 10**9, "networks": 2, "dilations": [1]}, "whole numbers width"),
        ({"tagger": "trained", "width": 24, "networks": 3, "dilations": [1, 2, 4, 8, 4, 2]}, "other sizes"),
        ({"tagger": "trained", "width": 16, "networks": 2, "dilations": [1, 2, 4, 8, 4, 2]}, "other sizes"),
        (
            {"tagger": "trained", "width": 4096, "networks": 64, "dilations": [9] * 64},
            "other sizes",
        ),  # a terabyte
        ({"tagger": ["trained"]}, "no tagger"),
        (
            {
                "tagger": "trained",
                "width": 24,
                "networks": 2,
                "dilations": [1, 2, 4, 8, 4, 2],
                "decoding_threshold": 7.0,
                "decoding_gap_s": 0.1,
            },
            "no numbers above 0",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=message):
            open_tagger(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_tagger(tmp_path)


def test_random_signing_is_timed_like_real_signing() -> None:
    """Public DGS Corpus, p10/50/90: signs 80/180/500 ms, gaps of 160 ms in the median, half of the frames in signs."""
    examples = random_examples(100, seed=0)
    durations = np.concatenate([np.diff(e.signs_N2)[:, 0] for e in examples])
    gaps = np.concatenate([e.signs_N2[1:, 0] - e.signs_N2[:-1, 1] for e in examples])
    assert (np.abs(np.percentile(durations, [10, 50, 90]) - [0.08, 0.18, 0.5]) <= [0.02, 0.03, 0.12]).all()
    assert np.median(gaps) == pytest.approx(0.16, abs=0.04) and (gaps >= 0).all()
    assert durations.sum() / sum(e.seconds for e in examples) == pytest.approx(0.5, abs=0.12)
    assert all(e.signs_N2.min() >= 0 for e in examples)
    assert all(e.signs_N2.max() <= e.seconds + 0.12 for e in examples), "a person sets the last end, too"


@pytest.mark.skipif(not DGS.is_dir(), reason="../shared/data/dgs_motion is missing")
def test_the_model_of_the_package_finds_real_signs_that_motion_does_not() -> None:
    """Every third of 272 real clips with human boundaries (docs/results/segmentation.md has all of them)."""
    examples, left_out = read_examples(
        DGS / "clips.jsonl", DGS / "keypoints", default_fps=50, picture=(1280, 720), group="recording"
    )
    assert len(examples) == 272 and not left_out and len({example.group for example in examples}) == 3
    examples = examples[::3]
    shipped = open_tagger("trained")
    assert isinstance(shipped, TrainedTagger)
    motion = []
    for example in examples:
        shares = np.load(DGS / "keypoints" / f"{example.id}.npz")["keypoints"][::2].reshape(-1, 67, 2)
        labels = motion_labels(keypoint_movement(shares.astype(np.float32), 25.0), 25.0)
        signs = labels_to_segments(labels, "plain")
        motion.append(clip_counts(signs, example.signs_N2 * 25, example.frames))
    theirs = scores(np.sum(motion, 0), 25)
    ours = scores(score_examples(shipped.networks, examples).sum(0), 25)
    assert ours["frame_macro_f1"] > max(0.57, theirs["frame_macro_f1"] + 0.15)
    assert (
        ours["segment_f1_50"] > theirs["segment_f1_50"]
        and ours["onset_f1_1"] > theirs["even_onset_f1_1"] + 0.08
    )
