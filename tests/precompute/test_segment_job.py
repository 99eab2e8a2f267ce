"""`segment predict`: its files say what the tagger said, precompute takes them for it, and faults are named."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.precompute import hashes
from factories.videos import write_square
from safetensors.torch import save_file

from sage_scale.cli.main import run
from sage_scale.config import Segmentation, Vision, load_recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.corpora.videos import whole_videos
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.keypoints.track import HOLISTIC_75, track_of
from sage_scale.precompute.segment_job import SegmentFiles, predict_segments
from sage_scale.segmentation import segment_clip
from sage_scale.segmentation.elan import read_eaf
from sage_scale.segmentation.intervals import read_video_file
from sage_scale.segmentation.tagger import tag_clip
from sage_scale.vision.decode import decode_clip
from sage_scale.vision.video_frames import DecodeStats

KEYPOINTS = Vision(kind="features", backbone="keypoints", min_frames=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published network of 2023 with random weights, scaled so that all labels occur."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    shapes = {"pose_projection": (256, 225), "sign_bio_head": (3, 256), "sentence_bio_head": (3, 256)}
    tensors = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    tensors["pose_projection.weight"] /= 10
    tensors |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    lstm = torch.nn.LSTM(256, 128, bidirectional=True)
    tensors |= {f"encoder.{name}": value.detach().clone() for name, value in lstm.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def keypoints(path: Path, frames: int, fps: float, seed: int = 0) -> Path:
    """A signer whose hands move at random."""
    chance = np.random.default_rng(seed)
    points = np.full((frames, 75, 3), 300.0)
    points[:, 11, 0] = 420
    phases, rates = chance.uniform(0, 6, (42, 2)), chance.uniform(2, 9, (42, 2))
    points[:, 33:, :2] += 80 * np.sin(phases + rates * np.arange(frames)[:, None, None] / fps)
    track = track_of(HOLISTIC_75, points, np.ones((frames, 75), np.float32), fps=fps, width=640, height=640)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(npz_bytes(track))
    return path


def made(clip: Clip, segmentation: Segmentation, *formats: str, folder: str = "") -> dict[str, bytes]:
    recipe = dataclasses.replace(load_recipe("demo"), segmentation=segmentation)
    maker = SegmentFiles(recipe, ("json", *formats), folder)
    maker.load()
    return dict(maker.make(clip, DecodeStats()).files)


@pytest.mark.parametrize("fps", [25.0, 29.97, 50.0])
def test_precompute_takes_the_files_for_the_tagger(fps, weights, tmp_path):
    """Equal segments by the rule, from the model at once and by way of its files, for whole videos and for clips."""
    keypoints(tmp_path / "kp" / "talk.npz", round(4 * fps), fps)
    published = Segmentation(tagger="published", weights=str(weights), decoding="likeliest")
    (whole,) = whole_videos(tmp_path / "kp").clips
    part = dataclasses.replace(whole, id="talk@1.000-3.200", start_s=1.0, end_s=3.2)
    for number, clip in enumerate((whole, part)):
        folder = tmp_path / f"labels{number}"
        folder.mkdir()
        for suffix, data in made(clip, published).items():
            (folder / f"{clip.id}{suffix}").write_bytes(data)
        decoded = decode_clip(clip, KEYPOINTS)
        assert len(np.unique(tag_clip(decoded, published, 25.0).labels_T)) == 3
        stored = Segmentation(tagger="precomputed", labels=str(folder))
        for rule in ("sage", "plain"):
            direct = segment_clip(decoded, dataclasses.replace(published, rule=rule))
            assert segment_clip(decoded, dataclasses.replace(stored, rule=rule)).tolist() == direct.tolist()


def test_all_files_of_a_clip_say_the_same(weights, tmp_path):
    path = keypoints(tmp_path / "talk.npz", 120, 25.0)
    clip = Clip(id="talk", video=str(path), start_s=1.0, end_s=4.0)
    files = made(
        clip, Segmentation(tagger="published", weights=str(weights), decoding="likeliest"), "eaf", "vtt"
    )
    assert list(files) == [".npz", ".json", ".eaf", ".vtt"]
    for suffix, data in files.items():
        (tmp_path / f"out{suffix}").write_bytes(data)
    with np.load(io.BytesIO(files[".npz"])) as stored:
        labels, sign = stored["labels"], stored["sign"]
        assert stored["sentence"].shape == sign.shape == (75, 3) and float(stored["fps"]) == 25
        np.testing.assert_allclose(sign.sum(1), 1, atol=1e-5)
    intervals = read_video_file(tmp_path / "out.json")
    assert [(sign.start_s, sign.end_s) for sign in intervals.signs] == [
        (round(sign.start_s, 3), round(sign.end_s, 3)) for sign in read_eaf(tmp_path / "out.eaf").signs
    ]
    # Times are those of the video, in which the clip begins at one second.
    assert intervals.labels(1.0, 75, 25.0).tolist() == labels.tolist()
    assert files[".vtt"].count(b"-->") == len(intervals.signs) > 0
    assert intervals.sentences and min(intervals.sentences).start_s >= 1.0


def test_a_tagger_without_a_model_has_labels_only(tmp_path):
    write_square(tmp_path / "talk.mp4", frames=40, seed=1)
    (clip,) = whole_videos(tmp_path).clips
    for tagger in ("motion", "uniform"):
        files = made(clip, Segmentation(tagger=tagger))
        with np.load(io.BytesIO(files[".npz"])) as stored:
            assert set(stored) == {"labels", "fps"} and stored["labels"].shape == (40,)
        assert json.loads(files[".json"])["video"].endswith("talk.mp4")


def test_a_video_takes_its_keypoints_from_beside_it(weights, tmp_path):
    write_square(tmp_path / "talk.mp4", frames=40, seed=1)
    (clip,) = whole_videos(tmp_path).clips
    published = Segmentation(tagger="published", weights=str(weights))
    with pytest.raises(ClipRejected, match="no-keypoints"):
        made(clip, published)
    keypoints(tmp_path / "talk.npz", 40, 25.0)
    assert [clip] == list(whole_videos(tmp_path).clips)
    assert json.loads(made(clip, published)[".json"])["duration_s"] == 1.6


def test_tracks_of_one_frame_and_long_ones_have_segments(weights, tmp_path):
    published = Segmentation(tagger="published", weights=str(weights))
    for frames in (1, 2, 5000):
        path = keypoints(tmp_path / f"{frames}.npz", frames, 25.0)
        files = made(Clip(id="x", video=str(path)), published)
        with np.load(io.BytesIO(files[".npz"])) as stored:
            assert len(stored["labels"]) == len(stored["sign"]) == frames


def test_what_is_missing_is_said_before_ray_starts(weights, tmp_path, monkeypatch):
    from sage_scale.precompute import file_job

    monkeypatch.setattr(file_job, "ray_actors", None)
    write_square(tmp_path / "in" / "talk.mp4", frames=20, seed=1)
    for changes, words in (
        (["segmentation.tagger=published", f"segmentation.weights={weights}"], "no keypoint file"),
        (["segmentation.tagger=precomputed"], "segmentation.labels"),
    ):
        with pytest.raises(UsageError, match=words):
            predict_segments(load_recipe("demo", changes), tmp_path / "in", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "_settings.json").exists()


def test_auto_is_decided_once_for_an_output(weights, tmp_path, monkeypatch):
    """An output that was begun with the model goes on with it when its weights are no longer given."""
    from sage_scale.precompute import segment_job

    taken = []

    def job(**given):
        taken.append(given["settings"]["segmentation"]["tagger"])
        raise KeyboardInterrupt

    monkeypatch.setattr(segment_job, "FileJob", job)
    keypoints(tmp_path / "in" / "talk.npz", 30, 25.0)
    automatic, given = "segmentation.tagger=auto", f"segmentation.weights={weights}"
    for stored, changes in ((False, [automatic, given]), (False, [automatic]), (True, [automatic, given])):
        if stored:
            (tmp_path / "out").mkdir()
            settings = {"settings": {"segmentation": {"tagger": "uniform"}}}
            (tmp_path / "out" / "_settings.json").write_text(json.dumps(settings))
        with pytest.raises(KeyboardInterrupt):
            predict_segments(load_recipe("demo", changes), tmp_path / "in", tmp_path / "out", quiet=True)
    assert taken == ["published", "motion", "uniform"]


def said(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = run(["segment", "predict", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_wrong_usage_is_one_line(tmp_path, capsys):
    write_square(tmp_path / "in" / "talk.mp4", frames=20, seed=1)
    for more, words in (
        (["--format", "doc"], "--format doc"),
        (["--root", tmp_path / "none"], "there is no"),
        (["--give-up", "other"], "--give-up other"),
        (["--out", tmp_path / "in"], "would be taken for keypoints"),
        (["--out", tmp_path / "in" / "segments"], "would be taken for keypoints"),
        (["--out", f"file://{tmp_path}/in/../in"], "would be taken for keypoints"),
        (["--root", tmp_path / "in" / "talk.mp4", "--out", tmp_path / "in"], "would be taken for keypoints"),
        (["--corpus", "none"], "no corpus reader"),
        (["segmentation.tagger=magic"], "segmentation.tagger"),
    ):
        code, out, err = said(capsys, "--root", tmp_path / "in", "--out", tmp_path / "out", *more)
        assert code == 2 and not out and words in err.splitlines()[-1], err


@pytest.mark.system
def test_the_verb_on_ray_names_rejects_and_goes_on(weights, tmp_path, capsys):
    """Videos and keypoints together; a corpus by its clips; other weights are refused."""
    for number in range(3):
        keypoints(tmp_path / "in" / f"talk{number}.npz", 60 + number, 25.0, seed=number)
    (tmp_path / "in" / "bad.npz").write_text("no archive")
    own = ["precompute.actors=1", "precompute.object_store_mb=80", "shards.max_reject_rate=.5"]
    model = ["segmentation.tagger=published", f"segmentation.weights={weights}", *own]
    given = ["--root", tmp_path / "in", "--out", tmp_path / "out", "--format", "eaf"]
    code, out, err = said(capsys, *given, *model)
    assert code == 0 and "3 clips, 1 rejects (1 bad-keypoints)" in out and "rejected: 'bad'" in err
    assert sorted(path.name for path in (tmp_path / "out").glob("talk1*")) == [
        "talk1.eaf",
        "talk1.json",
        "talk1.npz",
    ]
    before = hashes(tmp_path / "out")
    (tmp_path / "out" / "talk1.json").unlink()
    assert said(capsys, *given, *model)[0] == 0 and hashes(tmp_path / "out") == before
    code, _, err = said(capsys, *given, *model, "segmentation.decoding=runs")
    assert code == 2 and "decoding is own there, runs here" in err
    code, _, err = said(
        capsys, *given, *own, "shards.max_reject_rate=0", *model[:2], "--out", tmp_path / "strict"
    )
    assert code == 3 and "bad-keypoints" in err
