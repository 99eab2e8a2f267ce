"""`sage-scale corpus align`: a manifest with new times and the old ones beside; what has no partner is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from factories.segmenters import random_track
from factories.training import make_language_folder, sign2gpt_recipe, tiny_recipe
from factories.videos import write_video
from typer.testing import CliRunner

from sage_scale.cli import corpus as verb
from sage_scale.cli.main import run
from sage_scale.config import Corpus, extension, from_mapping, to_yaml
from sage_scale.corpora.alignment import Alignment
from sage_scale.corpora.manifest import Clip
from sage_scale.corpora.registry import read_corpus
from sage_scale.keypoints.files import npz_bytes
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.models.sage.export import save_visual
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sage.model import SageAligner
from sage_scale.segmentation import tagger
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.intervals import Interval, SignIntervals
from sage_scale.segmentation.rules import B, I
from sage_scale.segmentation.tagger import Probabilities
from sage_scale.translation import caption_alignment

SENTENCES = ("heute regnet es im norden", "morgen scheint im süden die sonne", "gute nacht")
MOVES = ((1.0, 3.0), (4.0, 6.6), (7.6, 8.6))
"""When something moves in the video."""


def moving_video(path: Path, seconds: float = 10.0) -> Path:
    """A video at 25 fps in which a bright square jumps about within MOVES, and stands still else."""
    rng, pictures, place = np.random.default_rng(0), [], (20, 20)
    for t in range(int(seconds * 25)):
        if any(start <= t / 25 < end for start, end in MOVES):
            place = tuple(rng.integers(4, 40, 2))
        picture = np.full((64, 64, 3), 60, np.uint8)
        picture[place[0] : place[0] + 16, place[1] : place[1] + 16] = 220
        pictures.append(picture)
    return write_video(path, pictures)


def write_manifest(path: Path, video: Path, times, sentences=SENTENCES) -> None:
    rows = [
        {"id": f"c{n}", "video": str(video), "start_s": a, "end_s": b, "sentence": text}
        for n, ((a, b), text) in enumerate(zip(times, sentences, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def invoke(*arguments: object):
    return CliRunner().invoke(verb.app, ["align", *map(str, arguments)], catch_exceptions=False)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A manifest whose captions are 1.3 s late."""
    video = moving_video(tmp_path / "film.mp4")
    write_manifest(tmp_path / "late.jsonl", video, [(a + 1.3, b + 1.3) for a, b in MOVES])
    return tmp_path / "late.jsonl"


def test_late_captions_go_back_to_their_movement(moved, tmp_path):
    result = invoke("--corpus", "manifest", "--root", moved, "--out", tmp_path / "new.jsonl")
    assert result.exit_code == 0 and "3 of 3 captions moved to their signing, by 1.3" in result.stdout
    found = rows(tmp_path / "new.jsonl")
    for row, (start, end) in zip(found, MOVES, strict=True):
        assert abs(row["start_s"] - start) < 0.25 and abs(row["end_s"] - end) < 0.25
        assert row["caption_start_s"] == pytest.approx(start + 1.3) and 0 < row["alignment_score"] <= 1
        assert row["caption_end_s"] == pytest.approx(end + 1.3)
    manifest = read_corpus(Corpus(name="manifest", root=str(tmp_path / "new.jsonl")))
    assert [clip.start_s for clip in manifest.clips] == [row["start_s"] for row in found]
    assert not manifest.rejected and not (tmp_path / "new.jsonl.part").exists()


def test_late_captions_go_back_to_the_movement_of_keypoints(tmp_path):
    """Hands that stand still between sentences are pauses in a keypoint file, too."""
    track = random_track(250, fps=25.0)
    track.confidence_TK[:] = 1
    track.points_TKC[:] = np.random.default_rng(0).normal([640, 360, 0], [80, 60, 0.2], (250, 75, 3))
    for t in range(1, 250):
        if not any(start <= t / 25 < end for start, end in MOVES):
            track.points_TKC[t] = track.points_TKC[t - 1]
    (tmp_path / "film.npz").write_bytes(npz_bytes(track))
    write_manifest(tmp_path / "late.jsonl", tmp_path / "film.npz", [(a + 1.3, b + 1.3) for a, b in MOVES])
    invoke("--corpus", "manifest", "--root", tmp_path / "late.jsonl", "--out", tmp_path / "new.jsonl")
    for row, (start, end) in zip(rows(tmp_path / "new.jsonl"), MOVES, strict=True):
        assert abs(row["start_s"] - start) < 0.25 and abs(row["end_s"] - end) < 0.25


def test_segments_from_files_replace_the_tagger_and_partners_are_named(tmp_path):
    video = moving_video(tmp_path / "film.mp4")
    times = [(0.2, 1.0), (0.9, 2.9), (3.0, 3.5), (30.0, 31.0)]
    write_manifest(tmp_path / "a.jsonl", video, times, (*SENTENCES[:2], "...", SENTENCES[2]))
    (tmp_path / "signs").mkdir()
    signs = [(0.5, 1.2), (2.0, 3.0), (3.1, 4.0), *((t, t + 0.9) for t in range(10, 20))]
    intervals = SignIntervals(signs=tuple(Interval(a, b) for a, b in signs))
    (tmp_path / "signs" / "film.eaf").write_bytes(eaf_bytes(intervals))
    out = tmp_path / "new.jsonl"
    result = invoke(
        "--corpus", "manifest", "--root", tmp_path / "a.jsonl", "--out", out, "--segments", tmp_path / "signs"
    )
    assert result.exit_code == 0
    found = {row["id"]: row for row in rows(out)}
    assert (found["c0"]["start_s"], found["c0"]["end_s"]) == (0.5, 1.2)
    assert (found["c1"]["start_s"], found["c1"]["end_s"]) == (2.0, 4.0)
    for name, old in (("c2", times[2]), ("c3", times[3])):
        assert (found[name]["start_s"], found[name]["end_s"]) == old and found[name][
            "alignment_score"
        ] is None
    for line in (
        "film.mp4: 1 without words, time kept: c2",
        "film.mp4: 1 overlapping the one before: c1",
        "film.mp4: 1 without signing in reach, time kept: c3",
        "film.mp4: 9 s of signing without a caption, the first at 10.0 s",
    ):
        assert line in result.stdout
    (tmp_path / "signs" / "film.eaf").write_text("<x/>")
    result = invoke(
        "--corpus", "manifest", "--root", tmp_path / "a.jsonl", "--out", out, "--segments", tmp_path / "signs"
    )
    assert "film.mp4: film.eaf: not an ELAN file: its root is x" in result.stdout


def test_pieces_do_not_depend_on_the_windows_in_which_a_video_is_read(tmp_path, monkeypatch):
    """Labels of a file, read in windows of 1 s and in one: the same signs, none cut, lost or doubled at a seam."""
    video = moving_video(tmp_path / "film.mp4")
    signs = [(0.4, 1.2), (1.2, 2.6), (2.8, 3.04), (3.96, 5.0), (5.0, 6.0), (7.2, 9.08)]
    (tmp_path / "film.eaf").write_bytes(
        eaf_bytes(SignIntervals(signs=tuple(Interval(a, b) for a, b in signs)))
    )
    labels = {"tagger": "precomputed", "labels": str(tmp_path)}
    recipe = from_mapping({"segmentation": labels, "corpus": {"name": "manifest"}})
    clips = [Clip(id="c", video=str(video), start_s=0.0, end_s=10.0, sentence="ja")]
    for seconds in (1.0, 3.0, 100.0):
        monkeypatch.setattr(caption_alignment, "WINDOW_S", seconds)
        found = caption_alignment.read_signing(clips, recipe, Alignment())
        assert np.allclose(found.pieces_N2, signs) and not found.notes


class Sentences:
    """A segmenter on keypoints that finds the sentences MOVES, and in each a sign every 0.4 s."""

    name, fingerprint, decoding = "sentences", "0", "likeliest"

    def __init__(self, folder: Path) -> None: ...

    def __call__(self, track: KeypointTrack) -> Probabilities:
        begin = round(float(track.points_TKC[0, 0, 0]))  # the number of its first frame
        frames_T = begin + np.arange(len(track))
        sentence_T, sign_T = np.zeros((2, len(track)), int)
        for start, end in MOVES:
            inside = (frames_T >= 25 * start) & (frames_T < 25 * end)
            sentence_T[inside], sign_T[inside] = I, I
            sign_T[inside & (np.round(frames_T - 25 * start) % 10 == 0)] = B
        return Probabilities(
            sign_T3=np.eye(3, dtype=np.float32)[sign_T],
            sentence_T3=np.eye(3, dtype=np.float32)[sentence_T],
            fps=25.0,
        )


def test_a_segmenter_on_keypoints_gives_signs_or_sentences(tmp_path, monkeypatch):
    track = random_track(250, fps=25.0)
    points_TKC = track.points_TKC.copy()
    points_TKC[:, 0, 0] = np.arange(250)
    (tmp_path / "film.npz").write_bytes(npz_bytes(dataclasses.replace(track, points_TKC=points_TKC)))
    write_manifest(tmp_path / "late.jsonl", tmp_path / "film.npz", [(a + 1.3, b + 1.3) for a, b in MOVES])
    monkeypatch.setattr(tagger, "MODELS", dict(tagger.MODELS))
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    tagger.register_segmenter("sentences", Sentences)
    monkeypatch.setattr(caption_alignment, "WINDOW_S", 3.0)
    for more in ([], ["--sentences"]):
        settings = ["segmentation.tagger=sentences", f"segmentation.weights={tmp_path}"]
        result = invoke(
            "--corpus",
            "manifest",
            "--root",
            tmp_path / "late.jsonl",
            "--out",
            tmp_path / "x",
            *more,
            *settings,
        )
        assert result.exit_code == 0, result.output
        assert np.allclose(
            [(row["start_s"], row["end_s"]) for row in rows(tmp_path / "x")], MOVES, atol=0.021
        )


def test_an_unreadable_video_keeps_its_captions_times(moved, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with moved.open("a") as file:
        file.write(
            json.dumps({"id": "b", "video": "broken.mp4", "start_s": 1.0, "end_s": 2.0, "sentence": "ja"})
            + "\n"
        )
    result = invoke("--corpus", "manifest", "--root", moved, "--out", tmp_path / "new.jsonl")
    assert result.exit_code == 0 and "3 of 4 captions" in result.stdout
    assert "broken.mp4: unreadable" in result.stdout
    assert rows(tmp_path / "new.jsonl")[3]["start_s"] == 1.0


def test_a_manifest_in_another_folder_finds_the_videos(tmp_path, monkeypatch):
    """Relative paths of a manifest begin at its folder, not at the folder of the command."""
    monkeypatch.chdir(tmp_path)
    for folder in ("videos", "new"):
        Path(folder).mkdir()
    moving_video(Path("videos/film.mp4"))
    Path("videos/film.vtt").write_text("WEBVTT\n\n00:02.000 --> 00:04.000\nheute regnet es\n")
    Path("videos/film.txt").touch()
    for out in ("near.jsonl", "new/far.jsonl", str(tmp_path / "new" / "whole.jsonl")):
        assert (
            invoke("--corpus", "videos", "--root", "videos", "--out", out, "corpus.language=de").exit_code
            == 0
        )
        (clip,) = read_corpus(Corpus(name="manifest", root=out, language="de")).clips
        assert Path(clip.video).is_file(), (out, clip.video)
    assert rows(Path("near.jsonl"))[0]["video"] == "videos/film.mp4"


def test_an_interrupted_run_is_continued_with_whole_videos(moved, tmp_path, monkeypatch):
    """Of a file that a stop left, the rows of whole videos are taken as they are, the others made again; with other
    settings all are made again."""
    moving_video(tmp_path / "other.mp4")
    with moved.open("a") as file:
        file.write(
            json.dumps({"id": "o", "video": "other.mp4", "start_s": 2.0, "end_s": 4.0, "sentence": "gut so"})
            + "\n"
        )
    out, partial = tmp_path / "new.jsonl", tmp_path / "new.jsonl.part"
    assert invoke("--corpus", "manifest", "--root", moved, "--out", out).exit_code == 0
    whole = out.read_bytes()

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(caption_alignment, "align_video", stopped)
        assert invoke("--corpus", "manifest", "--root", moved, "--out", out).exit_code != 0
    marked = rows(out)[3] | {"signer": "from the first run"}
    kept = [rows(partial)[0], marked, *rows(out)[:2]]
    whole_and_cut = "".join(json.dumps(row) + "\n" for row in kept) + '{"id": "c2", "vid'
    for text, more, continued in (
        (whole_and_cut, (), True),
        (whole_and_cut, ("--reach-s", 5), False),
        ('{"manifest": "of others"}\n' + json.dumps(marked) + "\n", (), False),
        ("", (), False),
    ):
        partial.write_text(text)
        assert invoke("--corpus", "manifest", "--root", moved, "--out", out, *more).exit_code == 0
        assert (rows(out)[3] == marked) == continued
        assert more or rows(out)[:3] == [json.loads(x) for x in whole.splitlines()[:3]]


def _align(corpus: Path, out: Path) -> list[str]:
    return ["corpus", "align", "--corpus", "manifest", "--root", str(corpus), "--out", str(out)]


def test_wrong_use_gives_one_line(tmp_path, capsys, moved):
    base = _align(moved, tmp_path / "x.jsonl")
    for more, says in (
        (["--out", str(tmp_path)], "is a folder: name the file"),
        (["--out", str(tmp_path / "none" / "x.jsonl")], "none/x.jsonl cannot be written: No such file"),
        (["--out", "/proc/x.jsonl"], "/proc/x.jsonl cannot be written: "),
        (["--reach-s", "inf"], "Invalid value for '--reach-s'"),
        (["--reach-s", "1e12"], "Invalid value for '--reach-s'"),
        (["--segments", str(tmp_path / "none")], "--segments: there is no folder"),
        (["--model", str(tmp_path / "none")], "--model: there is no run"),
        (["--sentences"], "segmentation.tagger=motion finds no sentences"),
    ):
        assert run([*base, *more]) == 2
        assert says in capsys.readouterr().err


def test_a_stage_1_takes_part(moved, tmp_path, capsys):
    """The similarity of a tiny run without training: the verb finds it, and without a stage 1 says so."""
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe("frames", f"model.language_model={language}")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    command = _align(moved, tmp_path / "x.jsonl")
    command += ["--model", str(folder), "segmentation.tagger=motion"]
    assert run(command) == 2
    assert "has no trained stage 1" in capsys.readouterr().err
    language_model, _ = load_language_model(language)
    (folder / "pretrain").mkdir()
    save_visual(SageAligner(recipe, language_model), folder / "pretrain" / "visual.safetensors")
    assert run(command) == 0
    assert "3 of 3 captions moved" in capsys.readouterr().out
    (folder / "recipe.yaml").write_text(to_yaml(sign2gpt_recipe()))
    assert run(command) == 2
    assert "Sign2GPT has no similarity of captions and segments" in capsys.readouterr().err
