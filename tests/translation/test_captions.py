"""A long video becomes captions at its pauses: each the sentence that its stretch has by itself, in a readable file."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from factories.segmenters import write_2023
from factories.training import make_language_folder, tiny_recipe
from factories.videos import write_video

from sage_scale.cli import main as command_line
from sage_scale.config import override
from sage_scale.corpora.captions import parse_captions
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.keypoints.names import OPENPOSE_67, row_width
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.models.sage.export import save_translator
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sage.model import SageTranslator
from sage_scale.segmentation.elan import read_eaf
from sage_scale.segmentation.tagger import Probabilities
from sage_scale.translation import caption_files, captions
from sage_scale.translation.caption_files import clock, open_captions, seconds_of
from sage_scale.translation.translate import Translator

RECIPE = override(tiny_recipe(), ["vision.size=24", "vision.crop=16", "vision.background=median"])
SENTENCES = [(10, 60), (25, 70), (30, 55), (20, 80), (12, 12)]
"""Frames of rest, then of signing; a rest follows the last one."""


def signing(pieces=SENTENCES, seed: int = 0, size: int = 64):
    """Pictures of a square that stands still, travels between points, and stands again."""
    rng = np.random.default_rng(seed)
    here = there = rng.uniform(10, size - 10, 2)

    def picture(at):
        shown = np.full((size, size, 3), 40, np.uint8)
        x, y = at.round().astype(int)
        shown[max(y - 7, 0) : y + 7, max(x - 7, 0) : x + 7] = (200, 180, 90)
        return shown

    for rest, moving in pieces:
        yield from (picture(here) for _ in range(rest))
        for t in range(moving):
            if t % 9 == 0:
                here, there = there, rng.uniform(10, size - 10, 2)
            yield picture(here + (there - here) * (t % 9 + 1) / 9)
        here = there
    yield from (picture(here) for _ in range(15))


def times(pieces=SENTENCES) -> list[tuple[float, float]]:
    """Start and end of the signing of each piece, seconds."""
    edges = list(itertools.accumulate(itertools.chain(*pieces)))
    return [(start / 25, end / 25) for start, end in zip(edges[::2], edges[1::2])]


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
def talk(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "talk.mp4", signing(), options={"crf": "18"})


def near(found, expected, within_s: float = 0.2) -> bool:
    return len(found) == len(expected) and np.abs(np.subtract(found, expected)).max() <= within_s


def test_each_caption_is_the_sentence_of_its_stretch(translator, talk):
    found = list(translator.captions(talk))
    assert near([(c.start_s, c.end_s) for c in found], times())
    for caption in found:
        start_s = caption.window_start_s
        alone = translator.translate(talk, "", start_s, start_s + caption.translation.frames / 25)
        assert caption.translation.sentence == alone.sentence
        assert caption.translation.segments.tolist() == alone.segments.tolist()


def test_a_video_shorter_than_a_window_has_the_sentence_of_translate(translator, tmp_path):
    path = write_video(tmp_path / "short.mp4", signing([(8, 50)]))
    (caption,) = translator.captions(path)
    assert caption.translation.sentence == translator.translate(path).sentence


def test_times_in_json_are_those_of_the_video(translator, talk):
    for caption in translator.captions(talk, start_s=2.0):
        row = caption.as_mapping()
        segments = np.array(row["segments_s"])
        assert row["start_s"] - 0.6 <= segments.min() and segments.max() <= row["end_s"] + 0.6
        assert row["end_s"] >= 2.0


def test_an_interval_has_its_captions_only(translator, talk):
    found = list(translator.captions(talk, start_s=times()[0][1], end_s=times()[3][0]))
    assert near([(c.start_s, c.end_s) for c in found], times()[1:3])
    with pytest.raises(ClipRejected, match="beyond-end"):
        list(translator.captions(talk, start_s=1000.0))


def test_the_first_caption_comes_before_the_end_of_reading(translator, talk):
    read: list[float] = []
    next(translator.captions(talk, on_read=lambda time_s, end_s: read.append(time_s)))
    assert times()[0][1] < read[-1] < times()[1][1]


def test_live_captions_come_as_soon_as_a_pause_ends(translator):
    shown: list[float] = []

    def camera():
        for number, picture in enumerate(signing()):
            shown.append(number / 25)
            yield shown[-1], picture

    for caption, (start_s, end_s) in zip(translator.captions(camera()), times(), strict=True):
        assert near([(caption.start_s, caption.end_s)], [(start_s, end_s)])
        # Twice the rest that a window keeps, and a picture or two.
        assert shown[-1] - end_s < 1.4
    with pytest.raises(UsageError, match="live"):
        translator.captions(camera(), start_s=1.0)


def test_a_recording_without_signing_or_with_a_single_picture_has_no_captions(translator, tmp_path):
    still = np.full((64, 64, 3), 90, np.uint8)
    assert list(translator.captions(write_video(tmp_path / "still.mp4", [still] * 60))) == []
    assert list(translator.captions([])) == []
    assert list(translator.captions([(0.0, still)])) == []


def test_damage_in_the_middle_leaves_the_captions_around_it(translator, tmp_path):
    pieces = [(20, 60)] * 8
    path = write_video(tmp_path / "talk.mp4", signing(pieces), options={"crf": "18", "g": "25"})
    data, whole = bytearray(path.read_bytes()), times(pieces)
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    notes: list[str] = []
    found = [(c.start_s, c.end_s) for c in translator.captions(path, on_note=notes.append)]
    assert any("cannot be read" in line for line in notes)
    kept = [row for row in whole if any(near([row], [other]) for other in found)]
    assert {whole[0], whole[1], whole[-1]} <= set(kept) and len(kept) < 8, (found, notes)


def track_of(pieces) -> KeypointTrack:
    """Keypoints of a signer whose hands move as the square of `signing` does."""
    names = OPENPOSE_67
    rng, at, rows = np.random.default_rng(0), np.zeros(2), []
    for rest, moving in [*pieces, (15, 0)]:
        rows += [at] * rest
        for _ in range(moving):
            at = at + rng.choice([-6, 6], 2)
            rows.append(at)
    points = np.zeros((len(rows), len(names), 3), np.float32)
    points[:] = np.random.default_rng(1).uniform(100, 200, (len(names), 3))
    hands = [4, 7, *range(25, 67)]  # wrists and hands
    points[:, hands, :2] += np.array(rows)[:, None]
    ones = np.ones(points.shape[:2], np.float32)
    sides = {"width": 640, "height": 480}
    return KeypointTrack(names=names, points_TKC=points, confidence_TK=ones, fps=25.0, has_z=False, **sides)


def test_with_keypoints_beside_the_video_they_say_where_the_pauses_are(translator, tmp_path, monkeypatch):
    """Also sentences of the published segmenter, which need no rest between them."""
    pieces = [(20, 60)] * 4
    path = write_video(tmp_path / "talk.mp4", signing(pieces))
    (tmp_path / "talk.npz").write_bytes(npz_bytes(track_of(pieces)))
    monkeypatch.setattr(captions, "BLOCK_S", 4.0)
    monkeypatch.setattr(captions, "MARGIN_S", 1.0)
    monkeypatch.setattr(captions, "_sentence_model", lambda translator: None)
    found = list(translator.captions(path))
    assert near([(c.start_s, c.end_s) for c in found], times(pieces))

    class Halves:
        name = "halves"

        def __call__(self, track):
            """A sentence of 1 s, then 0.2 s without, from the middle of the picture's noise on."""
            inside_T = np.arange(len(track)) % 30 < 25
            sentence_T3 = np.stack([~inside_T, inside_T, 0 * inside_T], 1).astype(np.float32)
            return Probabilities(sign_T3=sentence_T3, sentence_T3=sentence_T3, fps=25.0)

    monkeypatch.setattr(captions, "BLOCK_S", 1000.0)
    monkeypatch.setattr(captions, "_sentence_model", lambda translator: Halves())
    found = list(translator.captions(path))
    assert near([(c.start_s, c.end_s) for c in found], [(n * 1.2, min(n * 1.2 + 1, 13.4)) for n in range(12)])


def test_a_model_of_keypoints_captions_a_keypoint_file(tmp_path):
    """Without a video; also with the sentences of a published segmenter, whose weights are random here."""
    width = row_width("openpose", velocities=False, z=False)
    recipe = tiny_recipe("features", "vision.backbone=keypoints", f"model.feature_dim={width}")
    language_model, tokenizer = load_language_model(make_language_folder(tmp_path / "language_model"))
    save_translator(SageTranslator(recipe, language_model), tokenizer, recipe, tmp_path / "run" / "model")
    pieces = [(20, 60)] * 4
    path = tmp_path / "talk.npz"
    path.write_bytes(npz_bytes(track_of(pieces)))
    points = Translator(tmp_path / "run", device="cpu")
    found = list(points.captions(path))
    assert near([(c.start_s, c.end_s) for c in found], times(pieces))
    later = points.captions(path, start_s=times(pieces)[0][1])
    assert near([(c.start_s, c.end_s) for c in later], times(pieces)[1:])
    start_s = found[1].window_start_s
    alone = points.translate(path, "", start_s, start_s + found[1].translation.frames / 25)
    assert alone.sentence == found[1].translation.sentence
    weights = write_2023(tmp_path / "weights")
    published = ["segmentation.tagger=published", f"segmentation.weights={weights}"]
    ends = [c.end_s for c in Translator(tmp_path / "run", "cpu", published).captions(path)]
    assert ends == sorted(ends)


@pytest.mark.parametrize(("text", "seconds"), [
    ("90", 90), ("90.5", 90.5), ("1:30", 90), ("00:01:30.25", 90.25), ("100:00:00", 360000), ("0", 0),
])  # fmt: skip
def test_times_are_seconds_or_a_clock(text, seconds):
    assert seconds_of(text, "--start") == seconds
    assert seconds_of(clock(seconds), "--start") == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:60", "1:61:00", "nan", "1e3", "1:2:3:4", "five", "٣"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="--end"):
        seconds_of(text, "--end")


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    code = command_line.run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def read_captions(path: Path) -> list[tuple[float, float, str]]:
    """What the project's own readers find in a caption file."""
    if path.suffix == ".eaf":
        return [tuple(row) for row in read_eaf(path).sentences]
    if path.suffix == ".json":
        return [(row["start_s"], row["end_s"], row["sentence"]) for row in json.loads(path.read_text())]
    found = parse_captions(path.read_text())
    assert not found.broken
    return [(cue.start_s, cue.end_s, cue.text) for cue in found.cues]


def test_every_format_has_the_same_captions(capsys, run, translator, talk, tmp_path):
    expected = [(c.start_s, c.end_s, c.translation.sentence) for c in translator.captions(talk)]
    for suffix in (".vtt", ".srt", ".json", ".eaf"):
        file = open_captions(tmp_path / f"talk{suffix}", str(talk), "model --> of <tests>")
        for number, caption in enumerate(translator.captions(talk), start=1):
            file.add(caption)  # players hide empty cues, which have a dash
            rows = read_captions(tmp_path / f"talk{suffix}")
            assert len(rows) == number, "readable after each caption"
        assert np.allclose([row[:2] for row in rows], [row[:2] for row in expected], atol=1e-3)
        texts = [" ".join(row[2].strip("–").split()) for row in rows]
        assert texts == [" ".join(row[2].split()) for row in expected]
        file.close()
    signs = read_eaf(tmp_path / "talk.eaf").signs
    assert len(signs) == sum(len(c.translation.segments) for c in translator.captions(talk))


def test_a_large_elan_file_is_written_now_and_then_and_at_the_end(translator, talk, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_files, "SOON_S", 0.0)
    file = open_captions(tmp_path / "talk.eaf", str(talk), "")
    monkeypatch.setattr(file, "_took_s", 60.0)
    for caption in translator.captions(talk):
        file.add(caption)
    assert read_captions(tmp_path / "talk.eaf") == []
    file.close()
    assert len(read_captions(tmp_path / "talk.eaf")) == len(SENTENCES)
    assert [path.name for path in tmp_path.iterdir()] == ["talk.eaf"]


def test_mark_up_in_a_sentence_stays_text(translator, talk, tmp_path):
    (caption, *_) = translator.captions(talk, end_s=3.0)
    odd = "<b>rot</b> & --> blau\n\n2\n00:00:01.000 --> 00:00:02.000"
    caption = dataclasses.replace(caption, translation=dataclasses.replace(caption.translation, sentence=odd))
    for suffix in (".vtt", ".srt"):
        open_captions(tmp_path / f"odd{suffix}", str(talk), "").add(caption)
        assert len(read_captions(tmp_path / f"odd{suffix}")) == 1


def test_the_verb_writes_and_prints_captions(capsys, run, talk, tmp_path):
    target = tmp_path / "talk.vtt"
    code, out, err = call(capsys, "translate", talk, "--model", run, "--captions", target, "--device", "cpu")
    assert code == 0
    assert len(out.splitlines()) == len(SENTENCES) and "5 captions" in err
    assert "NOTE model " in target.read_text(), "a caption file says which model wrote it"
    code, out, err = call(
        capsys, "translate", talk, "--model", run, "--captions", tmp_path / "part.json", "--start", "0:02.5",
        "--end", "00:00:07", "--json", "--device", "cpu",
    )  # fmt: skip
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and rows == json.loads((tmp_path / "part.json").read_text())
    assert all(2.5 <= row["start_s"] < row["end_s"] <= 7 for row in rows) and rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{talk}", "{talk}", "--captions", "a.vtt"], "one video"),
        (["{talk}", "--captions", "a.txt"], ".vtt, .srt, .json, .eaf"),
        (["{talk}", "--captions", "no/such/a.vtt"], "there is no folder no/such"),
        (["{talk}", "--captions", "there.vtt"], "there already"),
        (["{talk}", "--captions", "a.vtt", "--figure", "a.png"], "--figure"),
        (["{talk}", "--captions", "a.vtt", "--start", "soon"], "--start soon"),
        (["{talk}", "--captions", "a.vtt", "--start", "9", "--end", "8"], "--end 8 is not after --start 9"),
    ],
)
def test_wrong_options_are_refused_in_one_line(capsys, run, talk, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.vtt").write_text("of somebody")
    given = [argument.format(talk=talk) for argument in arguments]
    code, out, err = call(capsys, "translate", *given, "--model", run, "--device", "cpu")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and words in err
    assert (tmp_path / "there.vtt").read_text() == "of somebody" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_no_video_leaves_no_captions(capsys, run, tmp_path):
    (tmp_path / "talk.mp4").write_text("a text")
    code, out, err = call(
        capsys, "translate", tmp_path / "talk.mp4", "--model", run, "--captions", tmp_path / "a.vtt", "--device", "cpu"
    )  # fmt: skip
    assert code == 1 and out == "" and "talk.mp4 cannot be translated" in err.splitlines()[-1]
    assert not (tmp_path / "a.vtt").exists()


def test_a_truncated_file_has_captions_up_to_its_end_and_code_1(capsys, run, talk, tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(talk)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    code, _out, err = call(
        capsys, "translate", cut, "--model", run, "--captions", tmp_path / "a.srt", "--device", "cpu"
    )
    assert code == 1 and "no captions of a part of" in err and "cannot be read" in err
    assert 1 <= len(read_captions(tmp_path / "a.srt")) < len(SENTENCES)


def test_ctrl_c_says_how_far_the_captions_go(capsys, run, talk, tmp_path, monkeypatch):
    found = Translator.captions

    def interrupted(self, *given, **named):
        with contextlib.closing(found(self, *given, **named)) as rows:
            yield next(rows)
            raise KeyboardInterrupt

    monkeypatch.setattr(Translator, "captions", interrupted)
    code, _, err = call(
        capsys, "translate", talk, "--model", run, "--captions", tmp_path / "a.vtt", "--device", "cpu"
    )
    assert code == 130 and "1 caption, up to 00:00:0" in err.splitlines()[-1] and "--start 00:00:0" in err
    assert len(read_captions(tmp_path / "a.vtt")) == 1
    shutil.rmtree(tmp_path)
