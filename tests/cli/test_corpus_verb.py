"""`sage-scale corpus`: made once, made again without work, and inspected as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sage_scale.cli import corpus as verb
from sage_scale.errors import UsageError

COUNTS = ["corpus.train_clips=3", "corpus.dev_clips=1", "corpus.test_clips=1", "corpus.heldout_clips=1"]


def invoke(*arguments: object):
    return CliRunner().invoke(verb.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "made here: #1"
    result = invoke("make", "--root", root, *COUNTS)
    assert result.exit_code == 0, result.output
    return root


def test_make_says_what_it_made_and_inspect_counts_it(made) -> None:
    again = invoke("make", "--root", made, *COUNTS)
    assert again.exit_code == 0 and again.stdout.startswith("6 clips, ")
    lines = invoke("inspect", "--root", made, "--probe", *COUNTS).stdout.splitlines()
    assert lines[0].startswith("corpus synthetic, manifest ") and lines[0].endswith(", 6 clips")
    counts = {line.split()[0]: int(line.split()[1]) for line in lines[2:6]}
    assert counts == {"train": 3, "dev": 1, "test": 1, "test_heldout": 1}
    frames = int(again.stdout.split()[2])
    hours = sum(float(line.split()[4]) for line in lines[2:6])
    assert hours == pytest.approx(frames / 25 / 3600, abs=0.02)


def test_inspect_names_defects(made, tmp_path) -> None:
    videos = sorted((made / "videos").glob("*.mp4"))
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        shutil.copy(videos[0], tmp_path / name)
    (tmp_path / "a.txt").write_text("Ein Satz.")
    (tmp_path / "b.vtt").write_text("WEBVTT\n\n00:59.000 --> 01:00.500\nZu spät.\n")
    (tmp_path / "c.mp4").write_bytes(b"no video")
    shown = invoke("inspect", "--corpus", "videos", "--root", tmp_path, "--probe").stdout
    assert (
        "1 x beyond-end: starts after the video's end (will be rejected there), first: b.mp4@59.000-60.500"
        in shown
    )
    assert "1 x no sentence" in shown and "c.mp4: unreadable" in shown
    assert [name for name in ("train", "dev", "test") if f"no clip in split '{name}'" in shown] == [
        "dev",
        "test",
    ]


def test_inspect_warns_of_a_language_that_sage_cannot_be_trained_on(tmp_path) -> None:
    rows = [
        {"id": str(n), "video": "a.mp4", "sentence": "Satz", "language": tag}
        for n, tag in enumerate(("xx", "de"))
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("inspect", "--corpus", "manifest", "--root", tmp_path)
    warned = [line for line in invoke(*arguments).stdout.splitlines() if "warning" in line]
    assert len(warned) == 1 and "1 clips in 'xx'" in warned[0]
    assert "warning" not in invoke(*arguments, "--recipe", "sign2gpt-demo").stdout


def test_chinese_is_counted_in_characters_and_named_so(tmp_path) -> None:
    sentences = [
        ("train", "zh", "今天天气好"),
        ("train", "zh-Hant", "明天 天气好"),
        ("test", "ja", "雨です"),
        ("test", "de", "es regnet"),
        ("test", "ko", "비가 온다"),
    ]
    rows = [
        {"id": str(n), "video": f"{n}.mp4", "sentence": sentence, "language": tag, "split": split}
        for n, (split, tag, sentence) in enumerate(sentences)
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = invoke("inspect", "--corpus", "manifest", "--root", tmp_path).stdout.splitlines()
    train, test = (next(line for line in shown if line.startswith(split)) for split in ("train", "test"))
    assert "  5 characters  zh" in train, "今天气好明"
    assert "  4 + 3 characters  " in test


def test_wrong_usage_is_one_line(tmp_path) -> None:
    for arguments, words in (
        (["make", "--recipe", "demo"], "--root PATH"),
        (["make", "--corpus", "phoenix14t", "--root", tmp_path], "only the synthetic corpus is made"),
        (["inspect", "--corpus", "videos", "--root", tmp_path], "is empty"),
        (["inspect", "--root", tmp_path / "none"], "corpus make"),
    ):
        result = invoke(*arguments)
        assert isinstance(result.exception, UsageError), arguments
        assert words in str(result.exception) and "\n" not in str(result.exception)


def test_inspect_opens_no_video_unless_asked_and_writes_what_was_set_aside(tmp_path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    cues = [
        "00:01.000 --> 00:03.000\nHallo.",
        "00:04.000 --> 00:06.000\n[Musik]",
        "00:07.000 --> 00:07.100\nJa!",
    ]
    (tmp_path / "a.de.vtt").write_text("WEBVTT\n\n" + "\n\n".join(cues))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "b.en.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nHello.\n")
    rows = tmp_path / "rejects.jsonl"
    result = invoke("inspect", "--corpus", "videos", "--root", tmp_path, "--rejects", rows)
    assert "1 x rejected: filter-not-speech" in result.stdout and "unreadable" not in result.stdout
    assert [json.loads(line)["reason"] for line in rows.read_text().splitlines()] == [
        "filter-not-speech",
        "filter-short",
    ]
    languages = {
        line.split()[0]: line.split()[1] for line in result.stdout.splitlines() if line[:3] in ("de ", "en ")
    }
    assert languages == {"de": "1", "en": "1"}
    assert (
        "b.mp4: unreadable" in invoke("inspect", "--corpus", "videos", "--root", tmp_path, "--probe").stdout
    )
