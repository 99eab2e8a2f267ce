"""A video file gets the sentence that evaluation gives the same clip in a dataset; wrong input gets one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from factories.datasets import write_dataset
from factories.training import make_language_folder, tiny_recipe
from factories.videos import write_signing
from PIL import Image

from sage_scale.cli import main as command_line
from sage_scale.config import override
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.models.sage.export import save_translator
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sage.model import SageTranslator
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.streaming import open_datasets, open_evaluation
from sage_scale.training.decode import translate_split
from sage_scale.training.distributed import Ranks
from sage_scale.translation.timeline import segment_pictures, write_timeline
from sage_scale.translation.translate import Translator, choose_device

RECIPE = override(tiny_recipe(), ["vision.size=24", "vision.crop=16", "vision.background=median"])


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_signing(folder / f"clip-{n}.mp4", seed=n, frames=48 + 7 * n) for n in range(3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with an untrained model whose sentences still depend on the video: its weights are made large."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    language_model, tokenizer = load_language_model(make_language_folder(folder / "language_model"))
    torch.manual_seed(3)
    model = SageTranslator(RECIPE, language_model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5)
    save_translator(model, tokenizer, RECIPE, folder / "model")
    return folder


@pytest.fixture(scope="module")
def translator(run) -> Translator:
    return Translator(run, device="cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, videos) -> str:
    """The same videos as a dataset's test split, as precompute makes it."""
    folder = tmp_path_factory.mktemp("dataset")
    maker = SampleMaker(RECIPE)
    clips = [Clip(id=path.stem, video=str(path), sentence="rot blau", split="test") for path in videos]
    write_dataset(folder / "shards", [("test", [maker.make(clip) for clip in clips])], RECIPE)
    return str(folder / "shards")


def test_the_model_sees_the_bytes_it_would_see_in_a_dataset(translator, dataset, videos):
    batches = list(open_evaluation(dataset, RECIPE, "test", rank=0, world=1, batch_size=1))
    stored = {batch.metas[0]["id"]: batch.video for batch in batches}
    for path in videos:
        _, video = translator.prepare(Clip(id=path.stem, video=str(path)))
        for name in ("frames_FCHW", "background_BCHW", "segment_frames_N", "clip_segments_B"):
            assert torch.equal(getattr(video, name), getattr(stored[path.stem], name)), name


def test_sentences_are_those_of_evaluation(translator, dataset, videos):
    ranks = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    datasets = open_datasets(dataset)
    rows = translate_split(
        RECIPE, translator.model, translator.tokenizer, datasets, "test", ranks, contextlib.nullcontext
    )
    expected = {row["id"]: row["hypothesis"] for row in rows}
    assert len(set(expected.values())) > 1, "the sentences depend on the video, or this test shows nothing"
    for path in videos:
        translation = translator.translate(path)
        assert translation.sentence == expected[path.stem]
        assert translation.segments.tolist() == next(
            row["segments"] for row in rows if row["id"] == path.stem
        )


def test_a_run_and_its_export_are_the_same_model(run, translator, videos):
    assert Translator(run / "model", device="cpu").translate(videos[0]).sentence == (
        translator.translate(videos[0]).sentence
    )


def test_a_stretch_of_a_video_is_a_clip_of_its_own(translator, videos):
    part = translator.translate(videos[2], start_s=0.4, end_s=1.4)
    assert part.frames == 25
    assert part.segments.min() >= 0 and part.segments.max() <= 25


def test_overrides_change_the_segments(run, videos):
    uniform = Translator(run, "cpu", ["segmentation.tagger=uniform", "segmentation.uniform_frames=8"])
    segments = uniform.translate(videos[0]).segments
    assert {int(end - start) for start, end in segments} == {8}


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    code = command_line.run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_verb_prints_sentences(capsys, run, videos, translator):
    code, out, _ = call(capsys, "translate", videos[0], "--model", run, "--device", "cpu")
    assert (code, out) == (0, translator.translate(videos[0]).sentence + "\n")
    code, out, _ = call(capsys, "translate", *videos, "--model", run, "--device", "cpu", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["video"] for row in rows] == [str(path) for path in videos]
    first = translator.translate(videos[0])
    assert rows[0]["segments_s"] == [[a / 25, b / 25] for a, b in first.segments.tolist()]


def test_one_bad_video_among_good_ones(capsys, run, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all")
    code, out, err = call(capsys, "translate", videos[0], bad, videos[1], "--model", run, "--device", "cpu")
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines()] == ["clip-0.mp4", "clip-1.mp4"]
    assert "bad.mp4 cannot be translated: unreadable" in err and "1 of 3 videos" in err


@pytest.mark.parametrize(
    "kind", ["video", "model", "empty-model", "figure-suffix", "figure-folder", "device"]
)
def test_wrong_input_is_one_line(capsys, run, videos, tmp_path, kind):
    arguments = {
        "video": ("no-such.mp4", "--model", run),
        "model": (videos[0], "--model", tmp_path / "nowhere"),
        "empty-model": (videos[0], "--model", tmp_path),
        "figure-suffix": (videos[0], "--model", run, "--figure", tmp_path / "figure.xyz"),
        "figure-folder": (videos[0], "--model", run, "--figure", tmp_path / "nowhere" / "figure.png"),
        "device": (videos[0], "--model", run, "--device", "cuda:99"),
    }[kind]
    expected = {
        "video": "no-such.mp4",
        "model": "nowhere",
        "empty-model": "no trained translator",
        "figure-suffix": ".png",
        "figure-folder": "there is no folder",
        "device": "no device 'cuda:99'",
    }[kind]
    code, out, err = call(capsys, "translate", *arguments)
    assert code in (1, 2) and out == ""
    assert err.startswith("sage-scale: ") and expected in err and len(err.splitlines()) == 1, err
    assert "this is a fault in sage-scale" not in err


def test_a_video_that_is_too_short_says_so(translator, tmp_path):
    with pytest.raises(ClipRejected, match="too-short"):
        translator.translate(write_signing(tmp_path / "short.mp4", seed=0, frames=4))


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="no device 'toaster'"):
        choose_device("toaster")


def test_pictures_are_the_stored_frames_nearest_the_middles(translator, videos):
    translation = translator.translate(videos[1])
    pictures = segment_pictures(translation.sample)
    numbers = sorted(translation.sample.frames)
    assert len(pictures) == len(translation.segments)
    for (start, end), picture in zip(translation.segments.tolist(), pictures, strict=True):
        middle = (start + end) / 2
        nearest = [n for n in numbers if abs(n - middle) == min(abs(m - middle) for m in numbers)]
        stored = [np.asarray(Image.open(io.BytesIO(translation.sample.frames[n]))) for n in nearest]
        assert any(np.array_equal(picture, other) for other in stored)


def test_the_timeline_shows_segments_at_their_times(translator, videos, tmp_path):
    """Read back from the SVG: as many bars as segments, their widths in proportion, the sentence above."""
    translation = translator.translate(videos[0])
    path = tmp_path / "timeline.svg"
    write_timeline(translation, path)
    drawing = path.read_text()
    colours = {"#3b6fd4", "#d9822b", "#2e9e83", "#a94fb8", "#c8453c", "#7a8b2f"}
    bars = re.findall(
        r'<path d="M ([\d.]+) [\d.]+ L? ?\n?L ([\d.]+)[^"]*" clip-path[^>]*style="fill: (#\w+)', drawing
    )
    bars = [(float(a), float(b)) for a, b, colour in bars if colour in colours]
    assert len(bars) == len(translation.segments)
    lengths = np.array([b - a for a, b in bars])
    expected = np.diff(translation.segments, axis=1)[:, 0]
    assert np.allclose(lengths / lengths.sum(), expected / expected.sum(), atol=0.01)


@pytest.mark.parametrize(("count", "length", "every"), [(5, 20, 30), (14, 7, 8), (60, 4, 5)])
def test_the_timelines_pictures_stand_over_their_segments(translator, videos, tmp_path, count, length, every):
    """Read back from the SVG: centres of pictures are those of their bars, and none lies on another."""
    made = translator.translate(videos[0])
    segments = np.array([[n * every, n * every + length] for n in range(count)], dtype=np.int32)
    frames = int(segments[-1, 1]) + 3
    jpeg = next(iter(made.sample.frames.values()))
    sample = dataclasses.replace(
        made.sample, segments=segments, frames=dict.fromkeys(range(0, frames, 2), jpeg)
    )
    translation = dataclasses.replace(
        made, segments=segments, frames=frames, sample=sample, sentence="wort" * 90
    )
    write_timeline(translation, tmp_path / "timeline.svg")
    drawing = (tmp_path / "timeline.svg").read_text()
    pictures = re.findall(r'id="segment (\d+)"[^>]* x="([-\d.]+)"[^>]* width="([\d.]+)"', drawing)
    bars = re.findall(
        r'<path d="M ([\d.]+) [\d.]+ L? ?\n?L ([\d.]+)[^"]*" clip-path[^>]*style="fill: #', drawing
    )
    assert len(bars) == count and 3 <= len(pictures) <= count
    if count < 20:
        assert len(pictures) == count
    right = -99.0
    for number, x, width in pictures:
        left, end = (float(place) for place in bars[int(number) - 1])
        assert float(x) + float(width) / 2 == pytest.approx((left + end) / 2, abs=1)
        assert float(width) <= max(end - left, 0.36 * 72) + 1 and float(x) > right - 1
        right = float(x) + float(width)


def test_a_title_with_dollars_and_markup_is_drawn_as_it_stands(translator, videos, tmp_path):
    translation = dataclasses.replace(translator.translate(videos[0]), sentence=r"kosten $5_{ & <b> \frac $")
    write_timeline(translation, tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as image:
        assert image.size[0] == 1800


REAL_VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"


@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason=f"the real videos are not at {REAL_VIDEOS}")
def test_real_videos_of_any_size_and_rate_go_through(translator, tmp_path):
    paths = sorted(REAL_VIDEOS.glob("*.mp4"))
    assert paths
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            seconds = float(stream.frames / stream.average_rate)
        translation = translator.translate(path)
        assert translation.frames / 25 == pytest.approx(seconds, abs=0.1)
        starts, ends = translation.segments.T
        assert (starts < ends).all() and (ends[:-1] <= starts[1:]).all()
        assert starts[0] >= 0 and ends[-1] <= translation.frames
        assert len(translation.segments) >= seconds, "real signing has more than one sign a second"
        write_timeline(translation, tmp_path / f"{path.stem}.png")
        with Image.open(tmp_path / f"{path.stem}.png") as image:
            assert image.size[0] == 1800


def test_clips_translated_together_have_the_sentences_and_scores_of_each_alone(translator, videos):
    packed = [translator.prepare(Clip(id=path.stem, video=str(path)))[1] for path in videos]
    together = translator.generate(packed, count=2)
    assert translator.generate([]) == [] and all(1 <= len(candidates) <= 2 for candidates in together)
    for path, candidates in zip(videos, together, strict=True):
        alone = translator.translate(path)
        assert candidates[0].sentence == alone.sentence
        assert candidates[0].score == pytest.approx(alone.score, abs=1e-3) and alone.score <= 0
        assert all(other.score <= candidates[0].score for other in candidates)
